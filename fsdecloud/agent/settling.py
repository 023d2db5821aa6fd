"""Moving shards to where the host map of today wants them, and forgetting its old tables.

Called only from the trio thread. When peers join, leave for good or are weighed anew, a blob's first n hosts change; shards of
blobs that are whole move then, as few as can be (`swarm.placement.plan_moves`), each copied from its holder to the new host
before the row names it there. This waits until the map has been the same for a while, comes after repair and re-coding, and
keeps to their budget. A blob that lacks something is left to repair.

A row refers to the table of its epoch. When there are many tables, rows of the oldest ones are written anew under the latest,
with exceptions for what is elsewhere; nothing moves for that. Once neither the map that was written last nor anything newer
refers to these tables, they are forgotten: a map with no room for another table could take no more peers in.
"""

from __future__ import annotations

import logging
from typing import Final

import msgspec
import trio

from fsdecloud import codec
from fsdecloud.agent.auditor import Auditor
from fsdecloud.agent.erasure import shard_size
from fsdecloud.agent.journal import META, ROWS, Write
from fsdecloud.agent.moving import PUT_TIMEOUT, Mover
from fsdecloud.agent.rows import BLOB_PREFIX, BlobRow, blob_key, decode_blob_row, moved_row, shard_places
from fsdecloud.agent.upkeep import Parts, Upkeep
from fsdecloud.errors import FsdecloudError, ProtocolError, RemoteError
from fsdecloud.fs.keys import prefix_end
from fsdecloud.swarm.hostmap import HOSTS_EVER_MAX, TABLES_MAX
from fsdecloud.swarm.placement import plan_moves
from fsdecloud.swarm.repair import Shard, repair_cost
from fsdecloud.types import BlobId, PeerId

log = logging.getLogger(__name__)

CALM: Final = 3600.0
"""Seconds without a change of the host map before shards move because of it: peers come one by one, and moving is traffic."""

TABLES_MANY: Final = TABLES_MAX // 2
"""With more tables than this, or"""

HOSTS_MANY: Final = HOSTS_EVER_MAX // 2
"""more peers in them, the oldest ones are given up,"""

TABLES_KEPT: Final = TABLES_MAX // 4
"""all but so many."""

PAGE: Final = 128
"""Rows written anew in one transaction: their rankings take 30 ms."""

RENEW_MAX: Final = 20_000
"""Rows written anew before the next anchor takes them into the map."""

_SETTLED: Final = b"settled"
"""In the journal's table `meta`: the epoch to which all shards have moved."""


class Settler(Upkeep):
    """Moves the shards of one blob after the other, and old rows to the latest table."""

    def __init__(self, parts: Parts, *, auditor: Auditor, mover: Mover) -> None:
        super().__init__(parts)
        self._auditor = auditor
        self._mover = mover
        self._settled = int(self._writer.journal.get(META, _SETTLED) or b"0")
        self._renewed_to = BLOB_PREFIX
        """Rows up to this key are of no old table."""
        self._renewed_at = -1
        """The generation of the map when a row was written anew last."""
        self.shards = 0
        """Moved since the start."""

    # ---- moving shards ---------------------------------------------------------------------------------------------
    @property
    def is_due(self) -> bool:
        """True when there may be shards to move, and nothing changes any more."""
        return self._settled != self._hosts.map.epoch and self._hosts.calm_for >= CALM

    @property
    def due_in(self) -> float:
        """In how many seconds that will be if nothing changes, 0 if it is or nothing is to move."""
        return max(CALM - self._hosts.calm_for, 0.0) if self._settled != self._hosts.map.epoch else 0.0

    def moves(self, blob: BlobId, row: BlobRow) -> dict[int, PeerId]:
        """Return which shards of a blob should move, and to whom, as far as that is possible now."""
        places = shard_places(row, self._hosts.ranking(blob, row.epoch))
        planned = plan_moves(places, self._hosts.ranking(blob, self._hosts.map.epoch), row.n)
        if not planned:
            return {}
        now = trio.current_time()
        if any(
            index not in places or self._auditor.state(places[index], row.shard(blob, index), now)[0] is not Shard.HELD
            for index in range(row.n)
        ):
            return {}  # repair does what is to be done
        taken = set(places.values())
        return {
            index: peer
            for index, peer in planned.items()
            if peer not in taken
            and self._book.peer(peer).is_usable
            and not self._auditor.is_unfit(peer, row.shard(blob, index))
        }

    async def settle(self, blob: BlobId) -> bool:
        """Move a blob's shards to where they should be; returns whether some did. Raises RemoteError, ProtocolError, Stale."""
        found = await self._mover.find_row(blob)
        if found is None or self._mover.is_left_alone(blob):
            return False
        before, row = found
        moves = self.moves(blob, row)
        size = shard_size(row.k, row.length)
        made: dict[int, PeerId] = {}
        receipts: list[bytes] = []
        error: FsdecloudError | None = None
        places = shard_places(row, self._hosts.ranking(blob, row.epoch))
        for index, peer in moves.items():
            shard = row.shard(blob, index)
            await self._mover.pay(repair_cost(1, size, 1))
            try:
                with trio.move_on_after(PUT_TIMEOUT):
                    data = await self._book.read(places[index], shard, size, is_background=True)
                    # Before it is sent, so that no deletion of the same shard at this peer can follow.
                    await self._garbage.reclaim(blob, {shard}, {peer})
                    receipts.append(await self._mover.send(peer, shard, data))
                    made[index] = peer
            except (RemoteError, ProtocolError) as exc:
                error = exc
        if made:
            after = places | made
            await self._mover.write(
                blob,
                before,
                (row, places),
                (self._mover.row_for(blob, row, after), after),
                lambda: self._uploader.moved(blob, made, receipts),
            )
            self.shards += len(made)
            for index, peer in made.items():
                self._auditor.note_held(peer, row.shard(blob, index))
        if error is not None:
            raise error
        return bool(made)

    def note_settled(self, epoch: int) -> None:
        """All blobs were looked at, and what should be elsewhere by the table of this epoch is there."""
        self._settled = epoch
        self._writer.write_nowait([(META, _SETTLED, str(epoch).encode())])

    # ---- old tables ------------------------------------------------------------------------------------------------
    def old_epochs(self) -> set[int]:
        """Return the epochs whose tables are to be given up; none while there is room for more."""
        host_map = self._hosts.map
        if len(host_map.tables) <= TABLES_MANY and len(host_map.hosts) <= HOSTS_MANY:
            return set()
        return {table.epoch for table in host_map.tables[TABLES_KEPT:]}

    async def retire(self) -> bool:
        """Give up old tables, as far as that is possible now; returns False when there will be more to do soon. Raises
        RemoteError.

        First no row refers to them any more, then no map that a manifest may name: an anchor with the new map has to come.
        """
        old = self.old_epochs()
        if not old:
            return True
        if await self._renew_rows(old):
            self._renewed_at = self._garbage.generation
            self._mover.moved(0, "")
            return False
        if self._garbage.generation == self._renewed_at:
            return False
        used = await self._epochs_in_use()
        if used is None:
            return False
        old -= used
        if old:
            log.info("%d old tables of the host map are given up", len(old))
            self._hosts.retire(table.epoch for table in self._hosts.map.tables if table.epoch not in old)
        return not self.old_epochs() or not self._mover.has_unanchored

    async def _renew_rows(self, old: set[int]) -> int:
        """Write rows of old tables for the latest one, RENEW_MAX at most; return how many."""
        count = 0
        stop = prefix_end(BLOB_PREFIX)
        while count < RENEW_MAX:
            rows = await self._locations.rows_after(self._renewed_to, stop, PAGE)
            blobs = [BlobId(key[1:]) for key, value in rows if decode_blob_row(value).epoch in old]
            if blobs:
                count += await self._renew_page(blobs, old)
            await trio.lowlevel.checkpoint()
            if len(rows) < PAGE:
                self._renewed_to = BLOB_PREFIX
                break
            self._renewed_to = rows[-1][0]
        if count:
            log.info("%d rows of the location map are moved from old tables of the host map", count)
        return count

    async def _renew_page(self, blobs: list[BlobId], old: set[int]) -> int:
        async with self._garbage.lock:
            writes: list[Write] = []
            epoch = self._hosts.map.epoch
            found = await self._locations.find([blob_key(blob) for blob in blobs])
            for blob, data in zip(blobs, found, strict=True):
                row = decode_blob_row(data) if data is not None else None
                if row is None or row.epoch not in old or self._mover.is_left_alone(blob):
                    continue
                places = shard_places(row, self._hosts.ranking(blob, row.epoch))
                blank = msgspec.structs.replace(row, epoch=epoch)
                renewed = moved_row(blank, places, {epoch: self._hosts.ranking(blob, epoch)})
                writes.append((ROWS, blob_key(blob), codec.encode(renewed)))
            if writes:
                await self._mover.write_rows(writes)
            return len(writes)

    async def _epochs_in_use(self) -> set[int] | None:
        """Return the epochs that the map as it was written last refers to, and all that came since; None when it was written
        meanwhile. Raises RemoteError."""
        locations = self._locations
        root = locations.root
        used = self._uploader.epochs()
        for tree in (root, locations.extra_root):
            async for _, value in locations.tree_rows(tree, BLOB_PREFIX):
                used.add(decode_blob_row(value).epoch)
        newer = locations.newer_rows()
        used.update(decode_blob_row(value).epoch for key, value in newer.items() if key.startswith(BLOB_PREFIX))
        used |= self._uploader.epochs()
        return used if locations.root == root else None
