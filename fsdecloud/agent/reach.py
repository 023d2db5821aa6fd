"""Which entries cannot be had from the peers now: fewer than k shards of their blob are with peers that answer.

Called only from the trio thread. Fetches nothing but nodes of the location map that are not on this machine, and changes
nothing. What counts as there is what `agent.repair` counts as held, and packs that are still in memory from reading.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import trio

from fsdecloud.agent.auditor import Auditor
from fsdecloud.agent.fetch import Fetcher
from fsdecloud.agent.hosts import Hosts
from fsdecloud.agent.locations import LocationMap
from fsdecloud.agent.peers import PeerBook
from fsdecloud.agent.rows import BlobRow, blob_key, decode_blob_row, decode_entry_row, entry_key, shard_places
from fsdecloud.errors import FsdecloudError, RemoteError
from fsdecloud.swarm.repair import health_of
from fsdecloud.types import BlobId, EntryId, PeerId

STEP: Final = 128
"""Entries looked up in one step: some milliseconds."""

AT_ONCE: Final = 16
"""Entries looked up one by one together, where the map cannot be read as a whole; and peers asked for a sign of life."""


class Reach:
    """Answers for one volume."""

    def __init__(
        self, locations: LocationMap, hosts: Hosts, book: PeerBook, auditor: Auditor, fetcher: Fetcher
    ) -> None:
        self._locations = locations
        self._hosts = hosts
        self._book = book
        self._auditor = auditor
        self._fetcher = fetcher

    async def probe(self) -> None:
        """Ask all peers for a sign of life, so that one that died unnoticed counts as away, and one that is back does not."""
        limiter = trio.CapacityLimiter(AT_ONCE)

        async def probe(peer: PeerId) -> None:
            async with limiter:
                await self._book.probe(peer)

        async with trio.open_nursery() as nursery:
            for peer in dict.fromkeys((*self._hosts.map.current, *self._book.everybody())):
                if self._book.peer(peer).address is not None:
                    nursery.start_soon(probe, peer)

    async def unreachable(self, entries: Sequence[EntryId]) -> list[EntryId]:
        """Return those of the entries that a fetch would not get, those among them whose place nobody knows."""
        found: list[EntryId] = []
        for start in range(0, len(entries), STEP):
            part = entries[start : start + STEP]
            try:
                blobs = await self._blobs(part)
            except RemoteError:
                blobs = await self._blobs_one_by_one(part)
            known = {blob: self._is_readable(blob, row) for blob, row in blobs.values()}
            found += [entry for entry in part if entry not in blobs or not known[blobs[entry][0]]]
            await trio.lowlevel.checkpoint()
        return found

    async def _blobs(self, entries: Iterable[EntryId]) -> dict[EntryId, tuple[BlobId, BlobRow]]:
        """Return the blobs that entries lie in, as far as the map knows. Raises RemoteError when it cannot be read."""
        keys = sorted({key for entry in entries for key in (blob_key(BlobId(entry)), entry_key(entry))})
        rows = dict(zip(keys, await self._locations.find(keys), strict=True))
        owners: dict[EntryId, BlobId] = {}
        for entry in entries:
            packed = rows[entry_key(entry)]
            if rows[blob_key(BlobId(entry))] is not None:
                owners[entry] = BlobId(entry)
            elif packed is not None:
                owners[entry] = decode_entry_row(packed).blob
        packs = sorted({blob_key(blob) for blob in owners.values()} - rows.keys())
        rows |= zip(packs, await self._locations.find(packs), strict=True)
        found = {}
        for entry, blob in owners.items():
            row = rows[blob_key(blob)]
            if row is not None:
                found[entry] = blob, decode_blob_row(row)
        return found

    async def _blobs_one_by_one(self, entries: Iterable[EntryId]) -> dict[EntryId, tuple[BlobId, BlobRow]]:
        """Do the same where parts of the map cannot be read: what stands there cannot be fetched either."""
        found: dict[EntryId, tuple[BlobId, BlobRow]] = {}
        limiter = trio.CapacityLimiter(AT_ONCE)

        async def find(entry: EntryId) -> None:
            async with limiter:
                try:
                    found.update(await self._blobs([entry]))
                except FsdecloudError:
                    return

        async with trio.open_nursery() as nursery:
            for entry in entries:
                nursery.start_soon(find, entry)
        return found

    def _is_readable(self, blob: BlobId, row: BlobRow) -> bool:
        if self._fetcher.has_pack(blob):
            return True
        now = trio.current_time()
        places = shard_places(row, self._hosts.ranking(blob, row.epoch))
        health = health_of(
            row.k, row.n, places, lambda index, peer: self._auditor.state(peer, row.shard(blob, index), now)
        )
        return health.is_readable
