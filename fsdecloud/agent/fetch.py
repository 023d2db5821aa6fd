"""How one entry is brought from the peers: found, gathered (`agent.gather`), decoded, and left where the driver finds it.

Called only from the trio thread; decoding, hashing and writing happen in worker threads. Equal requests under way are one
request. Foreground requests never wait behind read-ahead.
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

from fsdecloud.agent.erasure import decode_shards
from fsdecloud.agent.gather import FETCH_DEADLINE, Gatherer, Place, Source
from fsdecloud.agent.hosts import Hosts
from fsdecloud.agent.peers import PeerBook
from fsdecloud.errors import (
    AgentLost,
    BlobCorrupt,
    FsdecloudError,
    MalformedError,
    RemoteTimeout,
    StoreError,
    StoreFull,
)
from fsdecloud.limits import BLOB_MAX, MIB, SMALL_ENTRY, STAGE_RESERVE
from fsdecloud.store.segments import SegmentStore
from fsdecloud.types import BlobId, EntryId, PeerId, ShardId
from fsdecloud.wire.agentapi import FetchedEntry

log = logging.getLogger(__name__)

R = TypeVar("R")

FETCHES_MAX: Final = 24
"""Blobs fetched at once, each up to three MiB in memory."""

AHEAD_MAX: Final = 12
"""Of those for read-ahead: foreground requests always find a place."""

PACKS_KEPT: Final = 32 * MIB
"""Decoded packs in memory: the small files that were written together are read together."""

COPY_SOURCES_MAX: Final = 64
"""Peers asked in turn for a whole copy whose place is not known."""


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
        self.gatherer = Gatherer(book, hosts, locate)
        self._entries: dict[object, _Shared] = {}
        self._packs: OrderedDict[BlobId, bytes] = OrderedDict()
        self._packs_size = 0
        self._gate = trio.CapacityLimiter(FETCHES_MAX)
        self._ahead_gate = trio.CapacityLimiter(AHEAD_MAX)
        self._is_cache_broken = False
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
                    found = await self._share(entry, partial(self._fetch_whole, place, ahead=ahead), ahead=ahead)
                else:
                    found = await self._fetch_packed(entry, place, ahead=ahead)
        except trio.TooSlowError:
            raise RemoteTimeout(f"entry {entry.hex()[:16]} could not be fetched within {FETCH_DEADLINE:g} s") from None
        self.fetched_entries += 1
        return found

    async def _fetch_whole(self, place: Place, *, ahead: bool) -> FetchedEntry:
        """Fetch an entry that is a blob of its own."""
        shards = await self.gatherer.gather(place, is_background=ahead)
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
        shards = await self.gatherer.gather(place, is_background=ahead)
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
        usable = [peer for peer in peers if self.gatherer.may_ask(peer, now)][:COPY_SOURCES_MAX]
        usable.sort(key=lambda peer: not self._book.peer(peer).is_readable)
        sources = [Source(i, peer, ShardId(entry)) for i, peer in enumerate(usable)]
        found = await self.gatherer.gather_from(sources, 1, size, max(len(peers), 1))
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
            shards = await self.gatherer.gather(place, is_background=True)
        return await trio.to_thread.run_sync(_decode, place, shards)


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
