"""How one entry is brought from the peers: any k shards, the fastest first, each checked by its id.

Called only from the trio thread; decoding, hashing and writing happen in worker threads. Equal requests under way are one
request. Foreground requests never wait behind read-ahead. A slow shard is hedged: after the time that 95 of 100 answers of
such peers take, another one is asked for as well, whoever is first wins, and who was late is asked later from then on (faults
48 and 75). A wrong or missing shard costs another request, never a wrong byte (fault 69).
"""

from __future__ import annotations

import errno
import logging
import math
import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeVar

import trio
from blake3 import blake3

from fsdecloud.agent.erasure import decode_shards, shard_size
from fsdecloud.agent.hosts import Hosts
from fsdecloud.agent.peers import PeerBook
from fsdecloud.agent.rows import BlobRow
from fsdecloud.errors import (
    AgentLost,
    BlobCorrupt,
    BlobMissing,
    FsdecloudError,
    MalformedError,
    NotEnoughPeers,
    ProtocolError,
    RemoteError,
    RemoteTimeout,
    StoreError,
    StoreFull,
)
from fsdecloud.limits import BLOB_MAX, HANDLER_DEADLINE, MIB, SMALL_ENTRY, STAGE_RESERVE
from fsdecloud.store.segments import SegmentStore
from fsdecloud.swarm.score import HEDGE_MAX, HEDGE_MIN
from fsdecloud.types import BlobId, EntryId, PeerId, ShardId
from fsdecloud.wire.agentapi import FetchedEntry

log = logging.getLogger(__name__)

R = TypeVar("R")

FETCH_DEADLINE: Final = HANDLER_DEADLINE * 3 / 4
"""A fetch gives up after this: before the driver's handler does, so that the error says what was missing."""

FETCHES_MAX: Final = 24
"""Blobs fetched at once, each up to three MiB in memory."""

AHEAD_MAX: Final = 12
"""Of those for read-ahead: foreground requests always find a place."""

PACKS_KEPT: Final = 32 * MIB
"""Decoded packs in memory: the small files that were written together are read together."""

COPY_SOURCES_MAX: Final = 64
"""Peers asked in turn for a whole copy whose place is not known."""

OPEN_AHEAD: Final = 12
"""Further holders of a blob to which connections are opened while it is fetched: a hedge then takes one round trip and not
five, and so do the next files, which lie on others. They close when nobody needs them (`net.link.IDLE_TIMEOUT`)."""

HEDGE_SHARE: Final = 1 / 16
HEDGE_BURST: Final = 8.0
"""Hedges earned by each shard asked for, and how many may be saved up. One slow peer is few shards; when everything is
late it is this machine that is busy, and asking for more would only make it later (measured: 40 % more bytes)."""

_DECODE_COST: Final = 0.03
_DECODE_FACTOR: Final = 2.0
"""A parity shard is asked for before one of the blob's own slices only when it should be this much faster: seconds, and by
ratio. Slices need no decoding, which costs as much as TLS does, and placement spreads them over all peers as it is."""

_CORRUPT_COST: Final = 1.0
"""The same for a shard from a peer that has sent wrong bytes."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an entry lies: bytes [offset, offset + length) of a blob."""

    blob: BlobId
    row: BlobRow
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Source:
    """One shard at one peer."""

    index: int
    peer: PeerId
    shard: ShardId


@dataclass(slots=True)
class _Request:
    """A shard that is asked for."""

    since: float = math.inf
    """When it was sent; it may have to wait for its turn."""
    late_at: float = math.inf
    is_hedged: bool = False


@dataclass(eq=False)
class _Shared:
    """One request under way, and those who wait for it."""

    done: trio.Event = field(default_factory=trio.Event)
    result: object = None
    error: BaseException | None = None
    in_gate: trio.CancelScope | None = None
    """While it waits for a place among the read-ahead."""


async def _find_nowhere(_blob: BlobId) -> BlobRow | None:
    return None


class Fetcher:
    """Fetches entries and whole copies."""

    def __init__(
        self,
        *,
        book: PeerBook,
        hosts: Hosts,
        cache: SegmentStore,
        locate: Callable[[EntryId], Awaitable[Place | None]],
    ) -> None:
        self._book = book
        self._hosts = hosts
        self._cache = cache
        self._locate = locate
        self._entries: dict[object, _Shared] = {}
        self._packs: OrderedDict[BlobId, bytes] = OrderedDict()
        self._packs_size = 0
        self._gate = trio.CapacityLimiter(FETCHES_MAX)
        self._ahead_gate = trio.CapacityLimiter(AHEAD_MAX)
        self._is_cache_broken = False
        self._hedges = HEDGE_BURST
        self.fetched_entries = 0
        self.on_miss: Callable[[Place, Source, FsdecloudError], None] = lambda _place, _source, _error: None
        """Called when a peer does not have a shard that it should have, or sends other bytes."""
        self.find: Callable[[BlobId], Awaitable[BlobRow | None]] = _find_nowhere
        """Looks for a blob's shards elsewhere; returns its row if that helped."""

    # ---- entries ---------------------------------------------------------------------------------------------------
    async def fetch(self, entry: EntryId, *, ahead: bool, holders: Sequence[PeerId] = ()) -> FetchedEntry:
        """Return one sealed entry, inline or where it was appended to the cache segments.

        With `holders` it is a whole copy that no location map knows: they are asked first, then all others. Raises
        BlobMissing, NotEnoughPeers, RemoteTimeout.
        """
        try:
            with trio.fail_after(FETCH_DEADLINE):
                place = None if holders else await self._locate(entry)
                if place is None:
                    data = await self.fetch_copy(entry, BLOB_MAX, holders)
                    found = await self._deliver(data)
                elif bytes(place.blob) == bytes(entry):
                    found = await self._share(entry, partial(self._fetch_whole, place, ahead=ahead), ahead=ahead)
                else:
                    found = await self._fetch_packed(entry, place, ahead=ahead)
        except trio.TooSlowError:
            raise RemoteTimeout(f"entry {entry.hex()[:16]} could not be fetched within {FETCH_DEADLINE:g} s") from None
        self.fetched_entries += 1
        return found

    async def _fetch_whole(self, place: Place, *, ahead: bool) -> FetchedEntry:
        """Fetch an entry that is a blob of its own."""
        shards = await self._gather_row(place, is_background=ahead)
        return await trio.to_thread.run_sync(self._finish_whole, place, shards)

    def _finish_whole(self, place: Place, shards: dict[int, bytes]) -> FetchedEntry:
        """Decode and append, in a worker thread. Each shard was verified; the driver verifies the entry as it opens it."""
        return self._append(_join(place, shards))

    async def _fetch_packed(self, entry: EntryId, place: Place, *, ahead: bool) -> FetchedEntry:
        pack = self._packs.get(place.blob)
        if pack is None:
            pack = await self._share(place.blob, partial(self._fetch_pack, place, ahead=ahead), ahead=ahead)
        else:
            self._packs.move_to_end(place.blob)
        data = pack[place.offset : place.offset + place.length]
        if blake3(data).digest() != entry:
            raise BlobCorrupt(f"the location map has a wrong place for entry {entry.hex()[:16]}")
        return await self._deliver(data)

    async def _fetch_pack(self, place: Place, *, ahead: bool) -> bytes:
        shards = await self._gather_row(place, is_background=ahead)
        pack = await trio.to_thread.run_sync(_decode, place, shards)
        self._packs[place.blob] = pack
        self._packs_size += len(pack)
        while self._packs_size > PACKS_KEPT:
            _, gone = self._packs.popitem(last=False)
            self._packs_size -= len(gone)
        return pack

    async def _deliver(self, data: bytes) -> FetchedEntry:
        if len(data) <= SMALL_ENTRY:
            return FetchedEntry(data, 0, 0, len(data))
        return await trio.to_thread.run_sync(self._append, data)

    def _append(self, data: bytes) -> FetchedEntry:
        if len(data) <= SMALL_ENTRY:
            return FetchedEntry(data, 0, 0, len(data))
        try:
            self._check_disk(len(data))
            location = self._cache.append(data)
        except StoreError as exc:
            # A full disk must not stop reading (fault 13): the socket takes an entry as well, only more slowly.
            if not self._is_cache_broken:
                log.warning("cannot cache what is fetched, it goes through the socket: %s", exc)
            self._is_cache_broken = True
            return FetchedEntry(data, 0, 0, len(data))
        self._is_cache_broken = False
        return FetchedEntry(b"", location.segment, location.offset, location.length)

    def _check_disk(self, size: int) -> None:
        """Raise StoreFull when only the driver may still take from the disk. The cache's limit is the driver's business."""
        try:
            status = os.statvfs(self._cache.directory)
        except OSError:
            return  # appending says why
        if status.f_bavail * status.f_frsize < size + 2 * STAGE_RESERVE:
            raise StoreFull(f"{self._cache.directory}: {os.strerror(errno.ENOSPC)}")

    # ---- whole copies ----------------------------------------------------------------------------------------------
    async def fetch_copy(self, entry: EntryId, size: int, holders: Sequence[PeerId] = ()) -> bytes:
        """Return an entry that is stored as whole copies, found by its id alone: map nodes and manifests.

        Raises BlobMissing when nobody has it, NotEnoughPeers when nobody answers.
        """
        return await self._share(("copy", entry), partial(self._fetch_copy, entry, size, holders), ahead=False)

    async def _fetch_copy(self, entry: EntryId, size: int, holders: Sequence[PeerId]) -> bytes:
        peers = dict.fromkeys(holders)
        for table in self._hosts.map.tables:
            peers.update(dict.fromkeys(self._hosts.ranking(entry, table.epoch)))
        peers.update(dict.fromkeys(self._book.everybody()))
        now = trio.current_time()
        usable = [peer for peer in peers if self._may_ask(peer, now)][:COPY_SOURCES_MAX]
        usable.sort(key=lambda peer: not self._book.peer(peer).is_readable)
        sources = [Source(i, peer, ShardId(entry)) for i, peer in enumerate(usable)]
        found = await self._gather(sources, 1, size, max(len(peers), 1))
        return next(iter(found.values()))

    # ---- sharing and order -----------------------------------------------------------------------------------------
    async def _share(self, key: object, work: Callable[[], Awaitable[R]], *, ahead: bool) -> R:
        """Do `work` once for all who ask for `key` at the same time; all get its result, or its error."""
        shared = self._entries.get(key)
        if shared is not None:
            if not ahead and shared.in_gate is not None:
                shared.in_gate.cancel()  # somebody waits for it now: it need not queue behind other read-ahead
            await shared.done.wait()
            if shared.error is not None:
                raise shared.error
            return shared.result  # type: ignore[return-value]
        shared = self._entries[key] = _Shared(error=AgentLost("the agent is ending"))
        try:
            async with self._place_for(shared, ahead=ahead):
                result = await work()
            shared.result, shared.error = result, None
            return result
        except FsdecloudError as exc:
            shared.error = exc
            raise
        except trio.Cancelled:
            shared.error = RemoteTimeout("the request that fetched it was given up")
            raise
        finally:
            del self._entries[key]
            shared.done.set()

    @asynccontextmanager
    async def _place_for(self, shared: _Shared, *, ahead: bool) -> AsyncIterator[None]:
        is_ahead = False
        if ahead:
            with trio.CancelScope() as shared.in_gate:
                await self._ahead_gate.acquire_on_behalf_of(shared)
                is_ahead = True
            shared.in_gate = None
        try:
            async with self._gate:
                yield
        finally:
            if is_ahead:
                self._ahead_gate.release_on_behalf_of(shared)

    def has_pack(self, blob: BlobId) -> bool:
        """Whether a pack is in memory, decoded: what lies in it needs no peer."""
        return blob in self._packs

    @property
    def is_busy(self) -> bool:
        """True while somebody waits for an entry."""
        return bool(self._entries)

    async def fetch_blob(self, place: Place) -> bytes:
        """Return a whole blob, verified, for repair: behind all read-ahead. Raises BlobMissing, NotEnoughPeers, BlobCorrupt."""
        async with self._ahead_gate:
            shards = await self._gather_row(place, is_background=True)
        return await trio.to_thread.run_sync(_decode, place, shards)

    # ---- shards ----------------------------------------------------------------------------------------------------
    def _may_ask(self, peer: PeerId, now: float) -> bool:
        """Whether a request may go to a peer: not to one that failed a moment ago, nor to one whose failing takes long, which
        everybody would wait for in vain again and again until a probe finds it back (fault 46)."""
        known = self._book.peer(peer)
        may_try = known.score.may_try(now) and not known.score.fails_slowly
        return known.address is not None and (known.is_readable or may_try)

    def _own_sources(self, place: Place, now: float) -> list[Source]:
        """Return each shard at the peer that the row names, best first; peers that just failed are left out."""
        row = place.row
        size = shard_size(row.k, row.length)
        found: list[tuple[float, Source]] = []
        for index, own in enumerate(self._named(place)):
            if own is not None and self._may_ask(own, now):
                peer = self._book.peer(own)
                cost = peer.score.cost(size, now)
                if index >= row.k:
                    cost = cost * _DECODE_FACTOR + _DECODE_COST
                cost += (_CORRUPT_COST * peer.corrupt) + (FETCH_DEADLINE if not peer.is_readable else 0.0)
                found.append((cost, Source(index, own, row.shard(place.blob, index))))
        found.sort(key=lambda item: item[0])
        return [source for _, source in found]

    def _other_sources(self, place: Place) -> list[Source]:
        """Return where shards that moved may be: at their hosts under other epochs."""
        row, now = place.row, trio.current_time()
        found: dict[Source, None] = {}
        for index, own in enumerate(self._named(place)):
            for epoch in {self._hosts.map.epoch, row.epoch, row.epoch - 1}:
                other = self._hosts.ranking(place.blob, epoch)
                if index < len(other) and other[index] != own and self._may_ask(other[index], now):
                    found[Source(index, other[index], row.shard(place.blob, index))] = None
        return list(found)

    def _named(self, place: Place) -> list[PeerId | None]:
        """Return the peers that the row names, by index; None for one whose epoch's table is not kept."""
        exceptions = dict(place.row.exceptions)
        table = self._hosts.ranking(place.blob, place.row.epoch)
        return [exceptions.get(i) or (table[i] if i < len(table) else None) for i in range(place.row.n)]

    def _may_hedge(self, waited: float) -> bool:
        """Spend one of the hedges that fetching has earned; past HEDGE_MAX seconds it needs none."""
        if waited >= HEDGE_MAX:
            return True
        if self._hedges < 1:
            return False
        self._hedges -= 1
        return True

    async def _gather_row(self, place: Place, *, is_background: bool) -> dict[int, bytes]:
        """Return k shards of a blob; where too few can be had at the places that are known, others are looked for."""
        try:
            return await self._gather_from(place, is_background=is_background)
        except (BlobMissing, NotEnoughPeers):
            known = await self._locate(EntryId(place.blob))
            is_newer = known is not None and known.row != place.row  # it was coded anew, or moved, meanwhile
            row = known.row if known is not None and is_newer else await self.find(place.blob)
            if row is None:
                raise
        found = Place(place.blob, row, place.offset, place.length)
        return await self._gather_from(found, is_background=is_background)

    async def _gather_from(self, place: Place, *, is_background: bool) -> dict[int, bytes]:
        sources = self._own_sources(place, trio.current_time())
        others = partial(self._other_sources, place)
        for source in sources[place.row.k :][:OPEN_AHEAD]:
            self._book.open_ahead(source.peer)
        size = shard_size(place.row.k, place.row.length)
        missed = partial(self._missed, place)
        return await self._gather(sources, place.row.k, size, place.row.n, missed, others, is_background=is_background)

    def _missed(self, place: Place, source: Source, error: FsdecloudError) -> None:
        """Tell of a shard that its own peer does not have; hosts under other epochs need not have it."""
        if self._named(place)[source.index] == source.peer:
            self.on_miss(place, source, error)

    async def _gather(
        self,
        sources: Sequence[Source],
        k: int,
        size: int,
        expected: int,
        missed: Callable[[Source, FsdecloudError], None] = lambda _source, _error: None,
        others: Callable[[], list[Source]] = list,
        *,
        is_background: bool = False,
    ) -> dict[int, bytes]:
        """Return k shards by index: ask for k at once, for another one whenever one fails or is late, `others` last.

        Raises BlobMissing when `expected` peers answered that they do not have it, else NotEnoughPeers.
        """
        rest = list(reversed(sources))
        if len({source.index for source in rest}) < k:
            rest[:0], others = reversed(others()), list
        if len({source.index for source in rest}) < k:
            self._book.urge()
            raise NotEnoughPeers(f"{k} shards are needed, {len(rest)} can be reached now: {self._book.last_error}")
        found: dict[int, bytes] = {}
        running: dict[Source, _Request] = {}
        missing = 0
        send, receive = trio.open_memory_channel[tuple[Source, bytes | FsdecloudError]](math.inf)
        patience = trio.CancelScope()

        async def get(source: Source) -> None:
            def asked() -> None:
                """It is on its way, perhaps after it waited for its turn: only now can it be late."""
                now = trio.current_time()
                late_at = now + self._book.hedge_after(source.peer, size)
                running[source] = _Request(now, late_at)
                patience.deadline = min(patience.deadline, late_at)

            try:
                data: bytes | FsdecloudError = await self._book.read(
                    source.peer, source.shard, size, is_background=is_background, asked=asked
                )
            except (RemoteError, ProtocolError) as exc:
                data = exc
            send.send_nowait((source, data))

        def has_rest() -> bool:
            """Whether another source may be asked; the others are looked up only when they are needed."""
            nonlocal others
            if not rest:
                rest[:], others = reversed(others()), list
            return bool(rest)

        def ask(nursery: trio.Nursery) -> bool:
            """Ask the next source; returns whether there is one."""
            while has_rest():
                source = rest.pop()
                if source.index not in found:
                    running[source] = _Request()
                    nursery.start_soon(get, source)
                    return True
            return False

        def hedge(nursery: trio.Nursery, now: float) -> None:
            """Ask another source for the request that is late longest; without a hedge to spend, look again soon."""
            late = min(running.values(), key=lambda request: request.late_at)
            if not has_rest():
                late.late_at = math.inf
            elif self._may_hedge(now - started) and ask(nursery):
                late.late_at, late.is_hedged = math.inf, True
            else:
                late.late_at = now + HEDGE_MIN

        async def take(nursery: trio.Nursery) -> None:
            """Take answers until there are enough, or one is late."""
            nonlocal missing
            while len(found) < k and running:
                source, data = await receive.receive()
                del running[source]
                if isinstance(data, bytes):
                    found[source.index] = data
                    continue
                if isinstance(data, BlobMissing | BlobCorrupt):
                    missing += 1
                    missed(source, data)
                elif type(data) is RemoteError:  # it answered that it cannot
                    missed(source, data)
                ask(nursery)

        started = trio.current_time()
        self._hedges = min(self._hedges + k * HEDGE_SHARE, HEDGE_BURST)
        async with trio.open_nursery() as nursery:
            for _ in range(k):
                ask(nursery)
            while len(found) < k and running:
                now = trio.current_time()
                if min(request.late_at for request in running.values()) <= now:
                    hedge(nursery, now)
                    continue
                # Requests that are answered leave its deadline too early: looking once in vain costs less than each change.
                patience = trio.CancelScope(deadline=min(request.late_at for request in running.values()))
                with patience:
                    await take(nursery)
            nursery.cancel_scope.cancel()
        if len(found) == k:
            now = trio.current_time()
            for source, request in running.items():
                if request.is_hedged:
                    self._book.overtaken(source.peer, now - request.since)
        if len(found) == k:
            return found
        if missing >= expected:
            raise BlobMissing(f"none of the {missing} peers that should have it has the right bytes")
        self._book.urge()
        raise NotEnoughPeers(f"{k} shards are needed, {len(found)} could be fetched: {self._book.last_error}")


def _decode(place: Place, shards: dict[int, bytes]) -> bytes:
    """Return the blob, verified. In a worker thread. Raises BlobCorrupt."""
    data = _join(place, shards)
    if blake3(data).digest() != place.blob:
        # Each shard was what the row says, so the row is wrong: whoever coded the blob did it badly.
        raise BlobCorrupt(f"the shards of blob {place.blob.hex()[:16]} do not make that blob")
    return data


def _join(place: Place, shards: dict[int, bytes]) -> bytes:
    """Return what the shards make, which is the blob if the row is right. In a worker thread. Raises BlobCorrupt."""
    row = place.row
    try:
        return decode_shards(row.k, row.n, row.length, shards)
    except MalformedError as exc:
        raise BlobCorrupt(f"blob {place.blob.hex()[:16]}: {exc}") from exc
