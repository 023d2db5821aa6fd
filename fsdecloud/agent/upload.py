"""How staged entries reach the peers: pack, code, place, send, collect receipts, and tell.

Called only from the trio thread; reading, coding and hashing happen in worker threads. All state of a blob changes in
synchronous methods between awaits.

    add ──> packer ──> queue (oldest first) ──> prepare (thread) ──> lanes, one per peer ──> receipts ──> announce
                        ^                                              │
                        └──────────── parked (waits for a peer) <──────┘

* A blob's redundancy and epoch are fixed when it is first prepared and journalled, so that a blob begun before a restart
  goes on with the very same shards.
* Shard i belongs to the blob's i-th host. While that one fails or refuses, a host past the n-th takes it (an exception in
  the location row); without one the blob is *parked*: its bytes leave memory, and it is queued again, by age, when a peer
  becomes usable.
* `announce` writes rows and receipts to the journal, and only then tells the driver: what it may let go of can be found.

**Invariant:** a peer holds at most one shard of a blob, so that receipts count distinct peers (fault 76, 77).
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import trio

from fsdecloud import codec
from fsdecloud.agent.blob import Blob, Level
from fsdecloud.agent.erasure import shard_size
from fsdecloud.agent.garbage import Garbage
from fsdecloud.agent.hosts import Hosts
from fsdecloud.agent.journal import ROWS, UPLOADS, JournalWriter, Write
from fsdecloud.agent.lane import Item, Lane
from fsdecloud.agent.pack import BlobPlan, Packer
from fsdecloud.agent.peers import PeerBook
from fsdecloud.agent.prepare import Damaged, code_blob
from fsdecloud.agent.rows import PackedEntry, UploadRecord, blob_key, entry_rows, make_blob_row
from fsdecloud.errors import FsdecloudError, MalformedError
from fsdecloud.limits import ENTRY_MAX, KIB, MIB
from fsdecloud.store.segments import SegmentStore
from fsdecloud.types import BlobId, EntryId, PeerId, ShardId
from fsdecloud.wire.agentapi import StagedEntry, Stored

log = logging.getLogger(__name__)

UPLOAD_MEMORY: Final = 64 * MIB
"""Shard bytes in memory that no receipt covers yet: a dozen blobs at 2/6, which keeps six peers busy."""

PREPARERS: Final = 3
"""Blobs prepared at once: hashing and reading run beside each other, the erasure code does not."""

PACK_DELAY: Final = 0.3
"""An open pack that nobody flushes is closed when nothing came for this long,"""

PACK_DELAY_MAX: Final = 3.0
"""and after this in any case."""

RESEND_PATIENCE: Final = 10.0
"""After a restart the driver sends all staged entries again; when none came for this long it has done so."""

TINY_BLOB: Final = 4 * KIB
"""A blob up to this is stored as whole copies, as many as survive the same losses: coding would save nothing, and shards of
a few bytes could be equal, so that their receipts would not count."""


class Uploader:
    """All blobs on their way."""

    def __init__(
        self,
        *,
        writer: JournalWriter,
        garbage: Garbage,
        staged: SegmentStore,
        book: PeerBook,
        hosts: Hosts,
        notify: Callable[[Stored], object],
    ) -> None:
        self._writer = writer
        self._garbage = garbage
        self._staged = staged
        self._book = book
        self._hosts = hosts
        self._notify = notify
        self._packer = Packer()
        self._by_entry: dict[EntryId, Blob | None] = {}
        """None while the entry waits in the open pack."""
        self._blobs: dict[BlobId, Blob] = {}
        self._queue: list[tuple[int, Blob]] = []
        self._parked: dict[Blob, None] = {}
        self._waiting: dict[Blob, None] = {}
        """Begun before a restart; some of their entries were not sent again yet."""
        self._dirty: dict[Blob, None] = {}
        self._lanes: dict[PeerId, Lane] = {}
        self._new_lanes: list[Lane] = []
        self._order = 0
        self._memory = 0
        self._preparing = 0
        self._wake_feed = trio.Event()
        self._wake_announce = trio.Event()
        self._wake_pack = trio.Event()
        self._wake_waiting = trio.Event()
        self._last_add = 0.0
        self._queued_bytes = 0
        self._queued_entries = 0
        self.last_error = ""
        self.damaged: set[EntryId] = set()
        """Staged entries that the disk gives back as something else; not tried again before the agent's next start."""
        self.touched: set[EntryId] | None = None
        """Entries that the driver sent since a collection of garbage began; None while there is none."""
        book.on_usable.append(lambda _peer: self._unpark())
        hosts.on_change.append(self._unpark)
        self._load()

    # ---- what others ask -------------------------------------------------------------------------------------------
    def add(self, entries: Iterable[StagedEntry]) -> None:
        """Queue staged entries, oldest first. One that is under way is left alone, one that is stored announced again.

        Raises MalformedError for one that no entry can be; those before it are queued.
        """
        self._last_add = trio.current_time()
        for entry in entries:
            if self.touched is not None:
                self.touched.add(entry.id)
            if len(entry.id) != 32 or not 0 < entry.length <= ENTRY_MAX:
                raise MalformedError(f"a staged entry of {entry.length} bytes")
            if entry.id not in self._by_entry:
                self._count(entry.length)
                self._by_entry[entry.id] = None
                self._plan(self._packer.add(entry))
                continue
            blob = self._by_entry[entry.id]
            if blob is None:
                continue
            if blob.announced and blob.level is blob.announced:
                self._set_dirty(blob)
            if entry.id not in blob.sources and blob.level is not Level.COMPLETE:
                blob.sources[entry.id] = entry
                self._count(entry.length)
                if len(blob.sources) == len(blob.entries):
                    self._waiting.pop(blob, None)
                    self._enqueue(blob)
        if self._packer:
            self._wake_pack.set()
        if self._waiting:
            self._wake_waiting.set()

    def flush(self) -> None:
        """Close the open pack now."""
        self._plan(self._packer.close())

    def add_local(self, blobs: Sequence[tuple[BlobId, int]]) -> list[Write]:
        """Queue blobs of the agent's own (id, length) as whole copies; their bytes are in the journal's table `nodes`.

        Returns the writes that make them survive a restart, for the caller's transaction with the bytes themselves.
        """
        redundancy, _ = self._hosts.redundancy()
        writes: list[Write] = []
        for blob_id, length in blobs:
            blob = self._blobs.get(blob_id)
            if blob is None:
                blob = self._new_blob(is_local=True)
                blob.id, blob.length, blob.k, blob.n = blob_id, length, 1, redundancy.copies
                blob.epoch = self._hosts.map.epoch
                self._blobs[blob_id] = blob
            writes.append((UPLOADS, blob_id, codec.encode(blob.record())))
        return writes

    def take_back_local(self, blobs: Iterable[BlobId]) -> None:
        """Forget blobs that `add_local` took and that were not in the journal by then: their bytes did not come into it."""
        for blob_id in blobs:
            blob = self._blobs.get(blob_id)
            if blob is not None and blob.is_local:
                self._forget(blob)

    def start_local(self, blobs: Iterable[BlobId]) -> None:
        """Begin to store blobs that `add_local` took, now that their bytes are in the journal."""
        for blob_id in blobs:
            blob = self._blobs.get(blob_id)
            if blob is not None and not (blob.holders or blob.sending or blob.is_queued or blob in self._parked):
                self._enqueue(blob)

    def local_pending(self) -> list[BlobId]:
        """Return the agent's own blobs that are not anchorable yet."""
        return [blob.id for blob in self._blobs.values() if blob.is_local and blob.announced is Level.NONE]

    async def wait_anchorable(self, blob_ids: Iterable[BlobId]) -> tuple[Blob, ...]:
        """Return these blobs of the agent's own, those that are still on their way, when each is anchorable."""
        blobs = tuple(blob for blob_id in blob_ids if (blob := self._blobs.get(blob_id)) is not None)
        for blob in blobs:
            if blob.announced is Level.NONE:
                blob.done_event = blob.done_event or trio.Event()
                await blob.done_event.wait()
        return blobs

    def folded(self) -> list[Write]:
        """Note that the location map was written; return the writes that forget receipts nobody will ask for again.

        The driver writes the map only after it took the notices it waits for, so what was complete at the map before
        this one needs no second notice. If it asks nevertheless, the blob is stored again: shards are idempotent.
        """
        gone = []
        for blob in self._blobs.values():
            if blob.announced is Level.COMPLETE:
                blob.folds += 1
                if blob.folds >= 2:
                    gone.append(blob)
        for blob in gone:
            self._forget(blob)
        return [(UPLOADS, blob.id, None) for blob in gone]

    def is_on_its_way(self, blob_id: BlobId) -> bool:
        """Whether a blob is being stored, or will be, or the driver was not told yet that it is."""
        blob = self._blobs.get(blob_id)
        return blob is not None and (blob.announced is not Level.COMPLETE or blob.is_local or blob in self._dirty)

    def forget(self, blob_id: BlobId) -> list[Write]:
        """Forget the receipts of a blob that is not on its way; return the writes for that. Its entries are stored anew when
        they come again."""
        blob = self._blobs.get(blob_id)
        if blob is None:
            return []
        assert not self.is_on_its_way(blob_id)
        self._forget(blob)
        return [(UPLOADS, blob_id, None)]

    @property
    def has_parked(self) -> bool:
        """True while some blob waits for a peer."""
        return bool(self._parked)

    def queued(self) -> tuple[int, int]:
        """Return how many staged entries, and bytes, are not complete."""
        return self._queued_entries, self._queued_bytes

    def partial(self) -> int:
        """Return how many blobs have fewer than n receipts."""
        return sum(blob.level is not Level.COMPLETE for blob in self._blobs.values())

    # ---- planning --------------------------------------------------------------------------------------------------
    def _count(self, length: int) -> None:
        self._queued_entries += 1
        self._queued_bytes += length

    def _new_blob(self, *, is_local: bool) -> Blob:
        self._order += 1
        return Blob(self._order, is_local=is_local)

    def _plan(self, plans: Iterable[BlobPlan]) -> None:
        for plan in plans:
            blob = self._new_blob(is_local=False)
            offset = 0
            entries = []
            for entry in plan.entries:
                entries.append(PackedEntry(entry.id, offset, entry.length))
                offset += entry.length
                blob.sources[entry.id] = entry
                self._by_entry[entry.id] = blob
            blob.entries = tuple(entries)
            blob.length = offset
            self._enqueue(blob)

    def _load(self) -> None:
        """Take up the blobs of an earlier run: our own at once, those of the driver when it sends their entries again."""
        for key, value in self._writer.journal.items(UPLOADS):
            record = codec.decode(value, UploadRecord)
            blob = self._new_blob(is_local=not record.entries)
            blob.id = BlobId(key)
            blob.k, blob.n, blob.epoch, blob.length = record.k, record.n, record.epoch, record.length
            blob.shards, blob.entries = record.shards, record.entries
            blob.holders = dict(record.holders)
            blob.receipts = dict.fromkeys(record.receipts)
            blob.announced = blob.level
            self._blobs[blob.id] = blob
            for entry in blob.entries:
                self._by_entry[entry.id] = blob
            if blob.level is Level.COMPLETE:
                continue
            if blob.is_local:
                self._enqueue(blob)
            else:
                self._waiting[blob] = None

    def _enqueue(self, blob: Blob) -> None:
        if not blob.is_queued:
            blob.is_queued = True
            blob.avoid.clear()
            heapq.heappush(self._queue, (blob.order, blob))
            self._wake_feed.set()

    def _forget(self, blob: Blob) -> None:
        self._blobs.pop(blob.id, None)
        for entry in blob.entries:
            if self._by_entry.get(entry.id) is blob:
                del self._by_entry[entry.id]

    async def _close_packs(self) -> None:
        """Close an open pack that nobody flushes."""
        while True:
            await self._wake_pack.wait()
            with trio.move_on_after(PACK_DELAY_MAX):
                is_growing = True
                while is_growing:
                    self._wake_pack = trio.Event()
                    with trio.move_on_after(PACK_DELAY) as quiet:
                        await self._wake_pack.wait()
                    is_growing = not quiet.cancelled_caught
            self._wake_pack = trio.Event()
            self.flush()

    async def _give_up_waiting(self) -> None:
        """Pack anew what came back of packs that are not complete after a restart: the driver let go of the rest."""
        while True:
            await self._wake_waiting.wait()
            while (quiet_at := self._last_add + RESEND_PATIENCE) > trio.current_time():  # noqa: ASYNC110 - it moves
                await trio.sleep_until(quiet_at)
            self._wake_waiting = trio.Event()
            for blob in list(self._waiting):
                if blob.sources:
                    self._replan(blob, [])

    def _replan(self, blob: Blob, without: Sequence[EntryId]) -> None:
        """Put the entries at hand of a blob into new packs; those in `without` are forgotten until they are sent again."""
        self._waiting.pop(blob, None)
        self._forget(blob)
        if blob.id:
            self._writer.write_nowait([(UPLOADS, blob.id, None)])
        for entry in without:
            lost = blob.sources.pop(entry, None)
            if lost is not None:
                self._queued_entries -= 1
                self._queued_bytes -= lost.length
        for source in blob.sources.values():
            self._by_entry[source.id] = None
            self._plan(self._packer.add(source))
        self.flush()

    # ---- choosing peers --------------------------------------------------------------------------------------------
    def _choose(self, blob: Blob, index: int) -> PeerId | None:
        """Return the peer for a shard: its own host, else the first other one past the n-th; None when none is usable."""
        ranking = self._hosts.ranking(blob.id, blob.epoch)
        taken = {*blob.holders.values(), *blob.sending.values(), *blob.avoid}
        book = self._book
        if index < len(ranking):
            own = ranking[index]
            if own not in taken and book.peer(own).is_usable:
                return own
        spare: Iterable[PeerId] = ranking[blob.n :]
        if blob.epoch != self._hosts.map.epoch:
            spare = (*spare, *(p for p in self._hosts.ranking(blob.id, self._hosts.map.epoch) if p not in ranking))
        return next((peer for peer in spare if peer not in taken and book.peer(peer).is_usable), None)

    def _can_go_on(self, blob: Blob) -> bool:
        return any(self._choose(blob, index) is not None for index in blob.missing())

    def _unpark(self) -> None:
        for blob in list(self._parked):
            if self._can_go_on(blob):
                del self._parked[blob]
                self._enqueue(blob)

    # ---- preparing -------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Upload until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._close_packs)
            nursery.start_soon(self._give_up_waiting)
            nursery.start_soon(self._announce)
            await self._hosts.wait_known()
            while True:
                while not self._queue or self._preparing >= PREPARERS or self._memory >= UPLOAD_MEMORY:
                    self._wake_feed = trio.Event()
                    await self._wake_feed.wait()
                _, blob = heapq.heappop(self._queue)
                blob.is_queued = False
                if blob.id and not self._can_go_on(blob):
                    self._settle(blob)
                    continue
                self._preparing += 1
                nursery.start_soon(self._prepare, blob, nursery)

    async def _prepare(self, blob: Blob, nursery: trio.Nursery) -> None:
        """Read, check and code one blob, and hand its missing shards to the lanes."""
        if not blob.n:
            redundancy, _ = self._hosts.redundancy()
            blob.k, blob.n, blob.epoch = redundancy.k, redundancy.n, self._hosts.map.epoch
            if blob.length <= TINY_BLOB:
                blob.k, blob.n = 1, redundancy.copies
        estimate = shard_size(blob.k, blob.length) * (blob.n if blob.k > 1 else 1)
        self._memory += estimate
        try:
            shards = await trio.to_thread.run_sync(code_blob, blob, self._staged, self._writer.journal)
        except Damaged as exc:
            self.last_error = str(exc)
            self.damaged.update(exc.entries)
            log.error("%s", exc)
            self._replan(blob, exc.entries)
            return
        finally:
            self._memory -= estimate
            self._preparing -= 1
            self._wake_feed.set()
        if blob.id not in self._blobs:
            self._blobs[blob.id] = blob
            self._writer.write_nowait([(UPLOADS, blob.id, codec.encode(blob.record()))])
        # Before anything of it is sent, so that no deletion of the same shards can follow.
        await self._garbage.reclaim(blob.id, blob.shards or (ShardId(blob.id),))
        self._send(blob, dict(enumerate(shards)))
        for lane in self._new_lanes:
            nursery.start_soon(lane.run)
        self._new_lanes.clear()

    # ---- sending ---------------------------------------------------------------------------------------------------
    def _send(self, blob: Blob, shards: Mapping[int, bytes | memoryview]) -> None:
        """Hand the blob's missing shards to the lanes of usable peers."""
        for index in blob.missing():
            peer = self._choose(blob, index)
            if peer is not None:
                blob.sending[index] = peer
                self._memory += len(shards[index])
                self._lane(peer).push(Item(blob.id, index, blob.shard(index), shards[index]))
        self._settle(blob)

    def _lane(self, peer: PeerId) -> Lane:
        lane = self._lanes.get(peer)
        if lane is None:
            lane = self._lanes[peer] = Lane(peer, self._book, self)
            self._new_lanes.append(lane)
        return lane

    def batch_stored(self, peer: PeerId, items: Sequence[Item], covered: frozenset[ShardId], receipt: bytes) -> None:
        """Count a receipt; what it does not cover was refused and goes elsewhere."""
        for item in items:
            blob = self._landed(item)
            if blob is None:
                continue
            if item.shard in covered:
                blob.holders[item.index] = peer
                blob.receipts[receipt] = None
            else:
                blob.avoid.add(peer)
                self._resend(blob, item)
            self._settle(blob)
        self._wake_feed.set()

    def batch_failed(self, peer: PeerId, items: Sequence[Item], error: FsdecloudError) -> None:
        """Send the shards of a failed batch elsewhere, or park their blobs."""
        self.last_error = f"storing with {self._book.peer(peer).url}: {error}"
        for item in items:
            blob = self._landed(item)
            if blob is not None:
                # The book has taken a failing peer out of use; one that answers with an error would be chosen again.
                if self._book.peer(peer).is_usable:
                    blob.avoid.add(peer)
                self._resend(blob, item)
                self._settle(blob)
        self._wake_feed.set()

    def _landed(self, item: Item) -> Blob | None:
        self._memory -= len(item.data)
        blob = self._blobs.get(item.blob)
        if blob is None or blob.shard(item.index) != item.shard:
            return None
        blob.sending.pop(item.index, None)
        return blob

    def _resend(self, blob: Blob, item: Item) -> None:
        peer = self._choose(blob, item.index)
        if peer is not None and item.index not in blob.holders:
            blob.sending[item.index] = peer
            self._memory += len(item.data)
            self._lane(peer).push(item)

    def _settle(self, blob: Blob) -> None:
        """Decide what comes next for a blob whose shards changed."""
        if blob.level > blob.announced:
            self._set_dirty(blob)
        if blob.level is not Level.COMPLETE and not blob.sending and not blob.is_queued:
            if self._can_go_on(blob):
                self._enqueue(blob)
            elif blob not in self._parked:
                self._parked[blob] = None
                self._book.urge()

    # ---- telling ---------------------------------------------------------------------------------------------------
    def _set_dirty(self, blob: Blob) -> None:
        self._dirty[blob] = None
        self._wake_announce.set()

    async def _announce(self) -> None:
        """Journal what blobs have reached, then tell; what comes while the journal syncs goes into the next round."""
        while True:
            await self._wake_announce.wait()
            self._wake_announce = trio.Event()
            blobs, self._dirty = list(self._dirty), {}
            levels = [blob.level for blob in blobs]
            notices = [self._stored(blob) for blob in blobs]
            writes: list[Write] = []
            for blob in blobs:
                writes += self._writes(blob)
            await self._writer.write(writes)
            for blob, level, notice in zip(blobs, levels, notices, strict=True):
                self._told(blob, level)
                if not blob.is_local:
                    self._notify(notice)

    def _writes(self, blob: Blob) -> list[Write]:
        if blob.is_local and blob.level is Level.COMPLETE:
            return [(UPLOADS, blob.id, None)]
        record = blob.record()
        writes: list[Write] = [(UPLOADS, blob.id, codec.encode(record))]
        if not blob.is_local:
            row = make_blob_row(record, self._hosts.ranking(blob.id, blob.epoch)[: blob.n])
            writes.append((ROWS, blob_key(blob.id), codec.encode(row)))
            writes += [(ROWS, key, value) for key, value in entry_rows(blob.id, blob.entries)]
        return writes

    def _told(self, blob: Blob, level: Level) -> None:
        if level is Level.COMPLETE and blob.announced is not Level.COMPLETE:
            for source in blob.sources.values():
                self._queued_entries -= 1
                self._queued_bytes -= source.length
            blob.sources = {}
        blob.announced = max(blob.announced, level)
        if blob.done_event is not None:
            blob.done_event.set()
        if blob.is_local and level is Level.COMPLETE:
            self._forget(blob)

    def _stored(self, blob: Blob) -> Stored:
        shards = blob.shards or (ShardId(blob.id),) * blob.n
        entries = tuple(entry.id for entry in blob.entries)
        return Stored(blob.id, blob.k, blob.n, shards, entries, tuple(blob.receipts))
