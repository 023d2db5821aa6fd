"""Which blobs the driver's marks do not reach: a scan of the location map.

Called only from the trio thread; a scan yields after each node. It reads the map and the rows that wait for the next fold
as they were at one moment; a fold that comes before its end makes it begin again, as those rows then are elsewhere. What
the driver sent since the collection began is left alone (`Uploader.touched`).

A blob is condemned when none of its entries is marked. A pack that is mostly dead is not condemned yet: the driver is given its
live entries, to stage them once more; they come into a new pack, and the next scan condemns the old one.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Final

from fsdecloud.agent.erasure import shard_size
from fsdecloud.agent.garbage import CONDEMNED_MAX, Condemned, Garbage
from fsdecloud.agent.hosts import Hosts
from fsdecloud.agent.journal import ROWS, Journal, Write
from fsdecloud.agent.locations import LocationMap
from fsdecloud.agent.rows import BLOB_PREFIX, ENTRY_PREFIX, BlobRow, blob_key, decode_blob_row, decode_entry_row
from fsdecloud.agent.upload import Uploader
from fsdecloud.errors import LocalProtocolError
from fsdecloud.fs.marks import Marks
from fsdecloud.limits import MIB
from fsdecloud.types import BlobId, EntryId, PeerId, ShardId

log = logging.getLogger(__name__)

REPACK_BYTES: Final = 64 * MIB
"""Live bytes that one collection moves out of packs that are mostly dead."""

TOUCHED_MAX: Final = 1_000_000
"""Entries stored again during one collection; with more it is given up, for the next quiet time."""

SCANS_MAX: Final = 4
"""Scans of one look, if the map is written meanwhile."""


@dataclass(slots=True)
class Swept:
    """What a scan found."""

    live_entries: int = 0
    live_bytes: int = 0
    dead_entries: int = 0
    dead_bytes: int = 0
    """Bytes of entries before coding."""
    condemned_blobs: int = 0
    condemned_bytes: int = 0
    """Bytes that the peers will give back, copies and parity included."""
    is_complete: bool = True
    """False when there are more dead blobs than one collection takes."""
    repack: list[EntryId] = field(default_factory=list)
    """Live entries of packs that are mostly dead."""


@dataclass(slots=True)
class _Pack:
    live_bytes: int = 0
    dead_bytes: int = 0
    live: int = 0
    dead: int = 0


@dataclass(frozen=True, slots=True)
class _Scan:
    """The map at one moment."""

    root: bytes
    generation: int
    newer: dict[bytes, bytes]
    """Rows that no fold had taken yet."""

    def is_elsewhere(self, key: bytes, blob: BlobId) -> bool:
        """Whether an entry of the tree is in another blob by now. A blob's own rows are written again as it gets copies."""
        data = self.newer.get(key)
        return data is not None and decode_entry_row(data).blob != blob


class Sweeper:
    """One collection at a time."""

    def __init__(
        self, journal: Journal, locations: LocationMap, uploader: Uploader, hosts: Hosts, garbage: Garbage
    ) -> None:
        self._journal = journal
        self._locations = locations
        self._uploader = uploader
        self._hosts = hosts
        self._garbage = garbage

    def begin(self) -> None:
        """Remember from now on what the driver stores."""
        self._uploader.touched = set()

    def end(self) -> None:
        """Forget it."""
        self._uploader.touched = None

    async def sweep(self, marks: Marks, *, dry_run: bool) -> Swept:
        """Look at all rows; condemn what is not marked, unless it is a dry run. Raises RemoteError when a node of the map
        cannot be had, LocalProtocolError when no collection began, or when too much is stored meanwhile."""
        for _ in range(SCANS_MAX):
            if self._uploader.touched is None:
                raise LocalProtocolError("no collection of garbage has begun")
            found = Swept()
            scan = _Scan(self._locations.root, self._garbage.generation, self._locations.newer_rows())
            packs = await self._look_at_entries(scan, marks, found)
            dead, repack = await self._look_at_blobs(scan.root, marks, packs, found)
            entries = await self._entries_of(scan, set(dead), repack, marks, found)
            if dry_run or await self._condemn(scan, dead, entries, repack, found):
                return found
        raise LocalProtocolError("too much is stored at the moment")

    # ---- looking ---------------------------------------------------------------------------------------------------
    def _is_live(self, entry: bytes, marks: Marks) -> bool:
        touched = self._uploader.touched
        if touched is None:
            raise LocalProtocolError("the collection of garbage has ended")
        return entry in marks or entry in touched

    async def _look_at_entries(self, scan: _Scan, marks: Marks, found: Swept) -> dict[BlobId, _Pack]:
        """Count what of each pack is in use."""
        packs: defaultdict[BlobId, _Pack] = defaultdict(_Pack)
        async for key, value in self._locations.tree_rows(scan.root, ENTRY_PREFIX):
            row = decode_entry_row(value)
            pack = packs[row.blob]
            if not scan.is_elsewhere(key, row.blob) and self._is_live(key[1:], marks):
                pack.live += 1
                pack.live_bytes += row.length
                found.live_entries += 1
                found.live_bytes += row.length
            else:  # not in use, or in another pack by now
                pack.dead += 1
                pack.dead_bytes += row.length
                found.dead_entries += 1
                found.dead_bytes += row.length
        return packs

    async def _look_at_blobs(
        self, root: bytes, marks: Marks, packs: dict[BlobId, _Pack], found: Swept
    ) -> tuple[dict[BlobId, BlobRow], set[BlobId]]:
        """Return the dead blobs, and the packs to be packed anew."""
        dead: dict[BlobId, BlobRow] = {}
        sparse: list[tuple[float, int, BlobId]] = []
        garbage = self._garbage
        condemned = {
            shard async for owner, record in garbage.items() if not garbage.is_moved(owner) for shard, _ in record.left
        }
        moved = await garbage.has_moved()
        room = CONDEMNED_MAX - self._garbage.count()
        async for key, value in self._locations.tree_rows(root, BLOB_PREFIX):
            blob, row = BlobId(key[1:]), decode_blob_row(value)
            pack = packs.get(blob)
            if pack is None:
                is_live = self._is_live(blob, marks)
                found.live_entries += is_live
                found.live_bytes += row.length * is_live
                found.dead_entries += not is_live
                found.dead_bytes += row.length * (not is_live)
            else:
                is_live = pack.live > 0
                if is_live and 2 * pack.live_bytes < row.length:
                    sparse.append((pack.live_bytes / row.length, pack.live_bytes, blob))
            if is_live or self._is_busy(blob):
                # Blobs can share a shard, the same slice of two packs: who is in use keeps it.
                shared = condemned.intersection(row.shards or (ShardId(blob),)) if is_live else ()
                if is_live and not moved.isdisjoint(self._places(blob, row)):
                    shared = {*shared, *await self._still_at(blob, moved)}
                if shared:
                    await self._garbage.spare(shared)
            elif self._garbage.get(blob) is None:
                if len(dead) < room:
                    dead[blob] = row
                    found.condemned_blobs += 1
                    found.condemned_bytes += row.n * shard_size(row.k, row.length)
                else:
                    found.is_complete = False
        repack: set[BlobId] = set()
        total = 0
        for _, size, blob in sorted(sparse):
            if total + size <= REPACK_BYTES and not self._is_busy(blob):
                total += size
                repack.add(blob)
        return dead, repack

    async def _still_at(self, blob: BlobId, moved: set[tuple[ShardId, PeerId]]) -> set[ShardId]:
        """Return the blob's shards that are where `moved` says by its present row, not the one of the map that is looked at:
        that may be older than the repair that moved them."""
        (data,) = await self._locations.find([blob_key(blob)])
        places = self._places(blob, decode_blob_row(data)) if data is not None else ()
        return {shard for shard, peer in places if (shard, peer) in moved}

    def _is_busy(self, blob: BlobId) -> bool:
        return self._uploader.is_on_its_way(blob) or self._journal.has(ROWS, blob_key(blob))

    async def _entries_of(
        self, scan: _Scan, dead: set[BlobId], repack: set[BlobId], marks: Marks, found: Swept
    ) -> dict[BlobId, list[EntryId]]:
        """Return the entries of dead packs, and note the live ones of those to be packed anew."""
        entries: defaultdict[BlobId, list[EntryId]] = defaultdict(list)
        if dead or repack:
            async for key, value in self._locations.tree_rows(scan.root, ENTRY_PREFIX):
                blob, entry = decode_entry_row(value).blob, EntryId(key[1:])
                if blob in dead:
                    entries[blob].append(entry)
                elif blob in repack and entry in marks and not scan.is_elsewhere(key, blob):
                    found.repack.append(entry)
        return entries

    # ---- condemning ------------------------------------------------------------------------------------------------
    async def _condemn(
        self,
        scan: _Scan,
        dead: dict[BlobId, BlobRow],
        entries: dict[BlobId, list[EntryId]],
        repack: set[BlobId],
        found: Swept,
    ) -> bool:
        """Condemn blobs, but for those that came back while they were looked at. Returns False, with nothing condemned, if the
        map was written meanwhile: what the scan took for rows of the journal is in the map, and an entry may be elsewhere."""
        records: dict[BlobId, Condemned] = {}
        writes: list[Write] = []
        async with self._garbage.lock:
            if (scan.root, scan.generation) != (self._locations.root, self._garbage.generation):
                return False
            touched = self._uploader.touched
            if touched is None or len(touched) > TOUCHED_MAX:
                raise LocalProtocolError("too much is stored at the moment")
            for blob, row in dead.items():
                inside = entries.get(blob, [EntryId(blob)])
                size = shard_size(row.k, row.length)
                if self._is_busy(blob) or not touched.isdisjoint(inside):
                    found.condemned_blobs -= 1
                    found.condemned_bytes -= row.n * size
                    continue
                records[blob] = Condemned(tuple(inside), self._places(blob, row), size)
                writes += self._uploader.forget(blob)
            for blob in repack:
                # Else its entries would be taken for stored when the driver sends them again.
                writes += [] if self._uploader.is_on_its_way(blob) else self._uploader.forget(blob)
            await self._garbage.condemn(records, writes)
        return True

    def _places(self, blob: BlobId, row: BlobRow) -> tuple[tuple[ShardId, PeerId], ...]:
        """Return the blob's shards and their peers."""
        peers = dict(enumerate(self._hosts.ranking(blob, row.epoch)[: row.n])) | dict(row.exceptions)
        return tuple((row.shard(blob, index), peer) for index, peer in sorted(peers.items()))
