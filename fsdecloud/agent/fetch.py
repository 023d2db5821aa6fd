"""How one entry is brought from the peers: any k shards, the fastest first, each checked by its id.

Called only from the trio thread; decoding, hashing and writing happen in worker threads. Equal requests under way are one
request. Foreground requests never wait behind read-ahead. A slow shard is hedged: after the time its peer should have taken
twice over, another one is asked for as well, and whoever is first wins (fault 48). A wrong or missing shard costs another
request, never a wrong byte (fault 69).
"""

from __future__ import annotations

import errno
import logging
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
from fsdecloud.swarm.score import HEDGE_MAX
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


@dataclass(eq=False)
class _Shared:
    """One request under way, and those who wait for it."""

    done: trio.Event = field(default_factory=trio.Event)
    result: object = None
    error: BaseException | None = None
    in_gate: trio.CancelScope | None = None
    """While it waits for a place among the read-ahead."""


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
                    found = await self._share(entry, partial(self._fetch_whole, place), ahead=ahead)
                else:
                    found = await self._fetch_packed(entry, place, ahead=ahead)
        except trio.TooSlowError:
            raise RemoteTimeout(f"entry {entry.hex()[:16]} could not be fetched within {FETCH_DEADLINE:g} s") from None
        self.fetched_entries += 1
        return found

    async def _fetch_whole(self, place: Place) -> FetchedEntry:
        """Fetch an entry that is a blob of its own."""
        shards = await self._gather_row(place)
        return await trio.to_thread.run_sync(self._finish_whole, place, shards)

    def _finish_whole(self, place: Place, shards: dict[int, bytes]) -> FetchedEntry:
        """Decode, verify and append, in a worker thread."""
        return self._append(_decode(place, shards))

    async def _fetch_packed(self, entry: EntryId, place: Place, *, ahead: bool) -> FetchedEntry:
        pack = self._packs.get(place.blob)
        if pack is None:
            pack = await self._share(place.blob, partial(self._fetch_pack, place), ahead=ahead)
        else:
            self._packs.move_to_end(place.blob)
        data = pack[place.offset : place.offset + place.length]
        if blake3(data).digest() != entry:
            raise BlobCorrupt(f"the location map has a wrong place for entry {entry.hex()[:16]}")
        return await self._deliver(data)

    async def _fetch_pack(self, place: Place) -> bytes:
        shards = await self._gather_row(place)
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
        peers.update(dict.fromkeys(known.id for known in self._book.registry))
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

    # ---- shards ----------------------------------------------------------------------------------------------------
    def _may_ask(self, peer: PeerId, now: float) -> bool:
        known = self._book.peer(peer)
        return known.address is not None and (known.is_readable or known.score.may_try(now))

    def plan_sources(self, place: Place, now: float) -> list[Source]:
        """Return where the blob's shards may be had, best first; peers that just failed are left out.

        First each shard at the peer that the row names; then, for shards that moved, at its host under other epochs.
        """
        row, blob = place.row, place.blob
        size = shard_size(row.k, row.length)
        exceptions = dict(row.exceptions)
        table = self._hosts.ranking(blob, row.epoch)
        first: list[tuple[float, Source]] = []
        later: dict[Source, None] = {}
        for index in range(row.n):
            own = exceptions.get(index) or (table[index] if index < len(table) else None)
            if own is not None and self._may_ask(own, now):
                peer = self._book.peer(own)
                cost = peer.score.expected(size)
                if index >= row.k:
                    cost = cost * _DECODE_FACTOR + _DECODE_COST
                cost += (_CORRUPT_COST * peer.corrupt) + (FETCH_DEADLINE if not peer.is_readable else 0.0)
                first.append((cost, Source(index, own, row.shard(blob, index))))
            for epoch in {self._hosts.map.epoch, row.epoch, row.epoch - 1}:
                other = self._hosts.ranking(blob, epoch)
                if index < len(other) and other[index] != own and self._may_ask(other[index], now):
                    later[Source(index, other[index], row.shard(blob, index))] = None
        first.sort(key=lambda item: item[0])
        return [source for _, source in first] + list(later)

    def _may_hedge(self, waited: float) -> bool:
        """Spend one of the hedges that fetching has earned; past HEDGE_MAX seconds it needs none."""
        if waited >= HEDGE_MAX:
            return True
        if self._hedges < 1:
            return False
        self._hedges -= 1
        return True

    async def _gather_row(self, place: Place) -> dict[int, bytes]:
        sources = self.plan_sources(place, trio.current_time())
        return await self._gather(sources, place.row.k, shard_size(place.row.k, place.row.length), place.row.n)

    async def _gather(self, sources: Sequence[Source], k: int, size: int, expected: int) -> dict[int, bytes]:
        """Return k shards by index: ask for k at once, for another one whenever one fails or is late.

        Raises BlobMissing when `expected` peers answered that they do not have it, else NotEnoughPeers.
        """
        if len({source.index for source in sources}) < k:
            self._book.urge()
            raise NotEnoughPeers(f"{k} shards are needed, {len(sources)} can be reached now: {self._book.last_error}")
        found: dict[int, bytes] = {}
        rest = list(reversed(sources))
        running = missing = 0
        send, receive = trio.open_memory_channel[tuple[Source, bytes | FsdecloudError]](len(sources))

        async def get(source: Source) -> None:
            try:
                data: bytes | FsdecloudError = await self._book.get(source.peer, source.shard, size)
            except (RemoteError, ProtocolError) as exc:
                data = exc
            send.send_nowait((source, data))

        def ask(nursery: trio.Nursery) -> float:
            """Ask the next source; returns when to ask another one as well."""
            nonlocal running
            while rest:
                source = rest.pop()
                if source.index not in found:
                    running += 1
                    nursery.start_soon(get, source)
                    return self._book.peer(source.peer).score.hedge_after(size)
            return FETCH_DEADLINE

        started = trio.current_time()
        self._hedges = min(self._hedges + k * HEDGE_SHARE, HEDGE_BURST)
        async with trio.open_nursery() as nursery:
            patience = max([ask(nursery) for _ in range(k)])
            while len(found) < k and running:
                with trio.move_on_after(patience) as late:
                    source, data = await receive.receive()
                if late.cancelled_caught:
                    if self._may_hedge(trio.current_time() - started):
                        patience = ask(nursery)
                    continue
                running -= 1
                if isinstance(data, bytes):
                    found[source.index] = data
                else:
                    missing += isinstance(data, BlobMissing | BlobCorrupt)
                    patience = ask(nursery)
            nursery.cancel_scope.cancel()
        if len(found) == k:
            return found
        if missing >= expected:
            raise BlobMissing(f"none of the {missing} peers that should have it has the right bytes")
        self._book.urge()
        raise NotEnoughPeers(f"{k} shards are needed, {len(found)} could be fetched: {self._book.last_error}")


def _decode(place: Place, shards: dict[int, bytes]) -> bytes:
    """Return the blob, verified. In a worker thread. Raises BlobCorrupt."""
    row = place.row
    try:
        data = decode_shards(row.k, row.n, row.length, shards)
    except MalformedError as exc:
        raise BlobCorrupt(f"blob {place.blob.hex()[:16]}: {exc}") from exc
    if blake3(data).digest() != place.blob:
        # Each shard was what the row says, so the row is wrong: whoever coded the blob did it badly.
        raise BlobCorrupt(f"the shards of blob {place.blob.hex()[:16]} do not make that blob")
    return data
