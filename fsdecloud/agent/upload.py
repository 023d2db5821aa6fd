"""How staged entries reach the peers: pack, code, place, send, collect receipts, and tell.

Called only from the trio thread; reading, coding and hashing happen in worker threads. All state of a blob changes in
synchronous methods between awaits.

    add ──> packer ──> queue (oldest first) ──> prepare (thread) ──> lanes, one per peer ──> receipts ──> announce
                        ^                                              │
                        ├──────────── parked (waits for a peer) <──────┤
                        └──── held back (waits for room in a lane) <───┘

* A blob's redundancy and epoch are fixed when it is first prepared and journalled, so that a blob begun before a restart
  goes on with the very same shards.
* Shard i belongs to the blob's i-th host. While that one fails or refuses, a host past the n-th takes it (an exception in
  the location row); without one the blob is *parked*: its bytes leave memory, and it is queued again, by age, when a peer
  becomes usable.
* A lane takes what its peer can take in a moment. Without room a shard is *held back*: its bytes leave memory, and its blob
  is coded again, by age, when there is room, or for another host when there was none for SLOW_PATIENCE while others had
  (fault 63). Only shards that are missing are sent again.
* `announce` writes rows and receipts to the journal, and only then tells the driver: what it may let go of can be found.

**Invariant:** a peer holds at most one shard of a blob, so that receipts count distinct peers (fault 76, 77).
"""

from __future__ import annotations

import heapq
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import msgspec
import trio

from fsdecloud import codec
from fsdecloud.agent.announce import Announcer
from fsdecloud.agent.blob import Blob, Level
from fsdecloud.agent.erasure import shard_size
from fsdecloud.agent.garbage import Garbage
from fsdecloud.agent.held import Held, choose_peer
from fsdecloud.agent.hosts import Hosts
from fsdecloud.agent.journal import UPLOADS, JournalWriter, Write
from fsdecloud.agent.lane import Item, Lane
from fsdecloud.agent.pack import BlobPlan, Packer
from fsdecloud.agent.peers import PeerBook
from fsdecloud.agent.prepare import Damaged, code_blob
from fsdecloud.agent.rows import BlobRow, PackedEntry, UploadRecord
from fsdecloud.errors import FsdecloudError, MalformedError
from fsdecloud.limits import ENTRY_MAX, MIB
from fsdecloud.store.segments import SegmentStore
from fsdecloud.swarm.policy import Redundancy
from fsdecloud.swarm.recoding import coding_of
from fsdecloud.types import BlobId, EntryId, PeerId, ShardId
from fsdecloud.wire.agentapi import StagedEntry, Stored
from fsdecloud.wire.receipts import is_over, verify_receipt

log = logging.getLogger(__name__)

UPLOAD_MEMORY: Final = 64 * MIB
"""Shard bytes in memory that no receipt covers yet: a dozen blobs at 2/6, which keeps six peers busy."""

SLOW_PATIENCE: Final = 30.0
"""A shard that finds no room in its peer's lane for this long goes to another host, if most peers have room."""

HELD_MOVED: Final = 256
"""Blobs that are given to another host at a time, a few times in SLOW_PATIENCE."""

CROWDED: Final = 0.5
"""While more than half of the lanes are filled beyond this, no further blob is prepared: it would only be held back."""

PREPARERS: Final = 3
"""Blobs prepared at once: hashing and reading run beside each other, the erasure code does not."""

PACK_DELAY: Final = 0.3
"""An open pack that nobody flushes is closed when nothing came for this long,"""

PACK_DELAY_MAX: Final = 3.0
"""and after this in any case."""

RESEND_PATIENCE: Final = 10.0
"""After a restart the driver sends all staged entries again; when none came for this long it has done so."""


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
        self._packer = Packer()
        self._by_entry: dict[EntryId, Blob | None] = {}
        """None while the entry waits in the open pack."""
        self._blobs: dict[BlobId, Blob] = {}
        self._queue: list[tuple[tuple[bool, int], Blob]] = []
        self._parked: dict[Blob, None] = {}
        self._waiting: dict[Blob, None] = {}
        """Begun before a restart; some of their entries were not sent again yet."""
        self._held = Held(lambda blob: self._is_known(blob) and bool(blob.missing()))
        self._announcer = Announcer(writer, hosts, notify, self._told, self._is_known)
        self._lanes: dict[PeerId, Lane] = {}
        self._new_lanes: list[Lane] = []
        self._order = 0
        self._memory = 0
        self._preparing = 0
        self._wake_feed = trio.Event()
        self._wake_held = trio.Event()
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
        book.on_usable.append(self._take_back)
        hosts.on_change.append(self._unpark)
        hosts.on_wanted.append(self._replan_parked)
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
                self._announcer.announce(blob)
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
                if blob.done_event is None:
                    blob.done_event = trio.Event()
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

    def records(self) -> list[tuple[bytes, bytes]]:
        """Return the encoded records of what is on its way, or came there not long ago, by blob id."""
        return self._writer.journal.items(UPLOADS)

    def is_on_its_way(self, blob_id: BlobId) -> bool:
        """Whether a blob is being stored, or will be, or the driver was not told yet that it is."""
        blob = self._blobs.get(blob_id)
        return blob is not None and (blob.announced is not Level.COMPLETE or blob.is_local or blob in self._announcer)

    def forget(self, blob_id: BlobId) -> list[Write]:
        """Forget the receipts of a blob that is not on its way; return the writes for that. Its entries are stored anew when
        they come again."""
        blob = self._blobs.get(blob_id)
        if blob is None:
            return []
        assert not self.is_on_its_way(blob_id)
        self._forget(blob)
        return [(UPLOADS, blob_id, None)]

    def moved(self, blob_id: BlobId, holders: Mapping[int, PeerId], receipts: Iterable[bytes]) -> list[Write]:
        """Note that shards of a blob that is not on its way were made again, elsewhere; return the writes for that."""
        blob = self._blobs.get(blob_id)
        if blob is None:
            return []
        assert not self.is_on_its_way(blob_id)
        blob.holders.update(holders)
        blob.receipts.update(dict.fromkeys(receipts))
        return [(UPLOADS, blob_id, codec.encode(blob.record()))]

    def recoded(
        self, blob_id: BlobId, row: BlobRow, places: Mapping[int, PeerId], receipts: Mapping[int, bytes]
    ) -> list[Write]:
        """Note that a blob that is not on its way has another code now; return the writes for that. `receipts` are those of the
        shards that were sent; the others were there before."""
        blob = self._blobs.get(blob_id)
        if blob is None:
            return []
        assert not self.is_on_its_way(blob_id)
        kept = {(peer, row.shard(blob_id, index)) for index, peer in places.items() if index not in receipts}
        older = [data for data in blob.receipts if kept and kept & _covered(data)]
        blob.k, blob.n, blob.epoch, blob.shards = row.k, row.n, row.epoch, row.shards
        blob.holders = dict(places)
        blob.receipts = dict.fromkeys([*older, *receipts.values()])
        return [(UPLOADS, blob_id, codec.encode(blob.record()))]

    def revoke(self, blob_id: BlobId, index: int, peer: PeerId) -> None:
        """A peer does not have a shard that it signed for: while the blob is on its way, it is sent again."""
        blob = self._blobs.get(blob_id)
        if blob is None or blob.holders.get(index) != peer or blob.level is Level.COMPLETE:
            return
        del blob.holders[index]
        if blob not in self._waiting and not blob.sending:
            self._parked.pop(blob, None)
            self._enqueue(blob)

    def epochs(self) -> set[int]:
        """Return the epochs of the host map that blobs on their way are stored by."""
        return {blob.epoch for blob in self._blobs.values() if blob.level is not Level.COMPLETE}

    @property
    def is_busy(self) -> bool:
        """True while shards are under way."""
        return bool(self._queue or self._memory)

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

    def _is_known(self, blob: Blob) -> bool:
        return self._blobs.get(blob.id) is blob

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
            record = _without_expired(codec.decode(value, UploadRecord), BlobId(key), time.time())
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
            heapq.heappush(self._queue, (blob.rank, blob))
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
        return choose_peer(blob, index, self._hosts, self._book)

    def _can_go_on(self, blob: Blob) -> bool:
        """Whether a missing shard has a peer with room. Without one it is held back by those that have none, or parked."""
        if not blob.id:
            return any(self._book.peer(peer).is_usable for peer in self._hosts.map.current)
        return any(
            (peer := self._choose(blob, index)) is not None and self._has_room(blob, peer) for index in blob.missing()
        )

    def _has_room(self, blob: Blob, peer: PeerId) -> bool:
        """Whether a shard of the blob may go into the peer's lane now. The agent's own are small, and always may."""
        lane = self._lanes.get(peer)
        if lane is None or blob.is_local:
            return True
        return not self._held.is_behind(peer, blob) and lane.has_room(shard_size(blob.k, blob.length))

    def _take_back(self, peer: PeerId) -> None:
        """A peer is usable again: those that it did not take in full may try it once more."""
        for blob in self._blobs.values():
            blob.avoid.discard(peer)
        self._unpark()

    def _replan_parked(self) -> None:
        """Another redundancy was asked for: it may be one that there are peers for."""
        for blob in list(self._parked):
            if self._code_as_wanted(blob):
                self._parked.pop(blob, None)

    def _code_as_wanted(self, blob: Blob) -> bool:
        """Begin a blob that waits for peers anew if it was begun with another redundancy than what is asked for now; returns
        whether that is so. With `auto` it waits: peers that go for a while do not make it weaker."""
        wanted = self._hosts.wanted
        if wanted is None or not blob.id:
            return False
        if blob.is_local:
            if blob.n <= wanted.copies:
                return False
            blob.n = wanted.copies
            blob.holders = dict(enumerate(list(blob.holders.values())[: blob.n]))
            self._announcer.note(blob)
            self._enqueue(blob)
            return True
        if coding_of(wanted, blob.length) == Redundancy(blob.k, blob.n) or len(blob.sources) < len(blob.entries):
            return False
        self._replan(blob, [])
        return True

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
            nursery.start_soon(self._announcer.run)
            nursery.start_soon(self._watch_held)
            await self._hosts.wait_known()
            while True:
                while not self._queue or self._preparing >= PREPARERS or self._is_full():
                    self._wake_feed = trio.Event()
                    await self._wake_feed.wait()
                _, blob = heapq.heappop(self._queue)
                if not self._can_go_on(blob):
                    blob.is_queued = False
                    self._settle(blob)
                    continue
                self._preparing += 1
                nursery.start_soon(self._prepare, blob, nursery)

    def _is_full(self) -> bool:
        """Whether what is next may not be prepared: for want of memory, or because most lanes have enough to do."""
        if self._queue[0][1].is_local:
            return False
        if self._memory >= UPLOAD_MEMORY:
            return True
        return 2 * sum(lane.filling > CROWDED for lane in self._lanes.values()) > len(self._lanes)

    async def _prepare(self, blob: Blob, nursery: trio.Nursery) -> None:
        """Read, check and code one blob, and hand its missing shards to the lanes."""
        if not blob.n:
            redundancy, _ = self._hosts.redundancy()
            coding = coding_of(redundancy, blob.length)
            blob.k, blob.n, blob.epoch = coding.k, coding.n, self._hosts.map.epoch
        estimate = shard_size(blob.k, blob.length) * (blob.n if blob.k > 1 else 1)
        self._memory += estimate
        try:
            shards = await trio.to_thread.run_sync(code_blob, blob, self._staged, self._writer.journal)
        except Damaged as exc:
            self.last_error = str(exc)
            self.damaged.update(exc.entries)
            log.error("%s", exc)
            blob.is_queued = False
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
        blob.is_queued = False
        self._send(blob, dict(enumerate(shards)))
        for lane in self._new_lanes:
            nursery.start_soon(lane.run)
        self._new_lanes.clear()

    # ---- sending ---------------------------------------------------------------------------------------------------
    def _send(self, blob: Blob, shards: Mapping[int, bytes | memoryview]) -> None:
        """Hand the blob's missing shards to the lanes of usable peers."""
        for index in blob.missing():
            peer = self._choose(blob, index)
            if peer is not None and self._has_room(blob, peer):
                blob.sending[index] = peer
                self._memory += len(shards[index])
                self._lane(peer).push(Item(blob.rank, blob.id, index, blob.shard(index), shards[index]))
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
                self._announcer.note(blob)
            else:
                blob.avoid.add(peer)
                self._resend(blob, item)
            self._settle(blob)
        self._wake_feed.set()

    def batch_failed(self, peer: PeerId, items: Sequence[Item], error: FsdecloudError) -> None:
        """Send the shards of a failed batch elsewhere, or park their blobs."""
        self.last_error = f"storing with {self._book.peer(peer).name}: {error}"
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
            self._announcer.announce(blob)
        if blob.level is Level.COMPLETE or blob.is_queued:
            return
        if blob.missing() and self._hold_back(blob):
            return  # some of it may go to somebody else, but that is done together, when there is room
        if not blob.sending:
            if self._can_go_on(blob):
                self._enqueue(blob)
            elif blob not in self._parked and not self._code_as_wanted(blob):
                self._parked[blob] = None
                self._book.urge()

    # ---- held back -------------------------------------------------------------------------------------------------
    def _hold_back(self, blob: Blob) -> bool:
        """Have the blob wait for the lanes that have no room for its missing shards; False when there are none such."""
        if not blob.id:
            return False
        peers = {peer for index in blob.missing() if (peer := self._choose(blob, index)) is not None}
        full = [peer for peer in peers if not self._has_room(blob, peer)]
        for peer in full:
            self._held.add(peer, blob)
            self._wake_held.set()
        return bool(full) and len(full) == len(peers)

    def lane_moved(self, peer: PeerId) -> None:
        """Queue the oldest of the blobs that the peer's lane had no room for, as far as it has room now."""
        self._wake_feed.set()
        lane = self._lanes[peer]
        if lane.filling <= CROWDED:
            for blob in self._held.take(peer, lane.room):
                self._parked.pop(blob, None)
                self._enqueue(blob)

    async def _watch_held(self) -> None:
        """Look for lanes that have had no room for too long, while most others have."""
        while True:
            while not self._held:
                self._wake_held = trio.Event()
                await self._wake_held.wait()
            await trio.sleep(SLOW_PATIENCE / 4)
            for peer in self._slow_lanes():
                for blob in self._held.oldest(peer, HELD_MOVED):
                    blob.slow.add(peer)
                    if self._can_go_on(blob):
                        self._parked.pop(blob, None)
                        self._enqueue(blob)

    def _slow_lanes(self) -> list[PeerId]:
        full = {peer: lane.full_since for peer, lane in self._lanes.items() if lane.full_since is not None}
        if 2 * len(full) > len(self._lanes):
            return []  # the line is slow, or the limit low
        long_ago = trio.current_time() - SLOW_PATIENCE
        return [peer for peer, since in full.items() if since <= long_ago]

    # ---- telling ---------------------------------------------------------------------------------------------------
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


def _covered(data: bytes) -> set[tuple[PeerId, ShardId]]:
    """Return who has which shards by a receipt of ours."""
    receipt = verify_receipt(data)
    return {(receipt.peer, item.id) for item in receipt.shards}


def _without_expired(record: UploadRecord, blob: BlobId, now: float) -> UploadRecord:
    """Return the record without receipts that nobody would believe any more, and without what they alone bear out: it is
    stored again."""
    kept = tuple(receipt for receipt in record.receipts if not is_over(receipt, now))
    if len(kept) == len(record.receipts):
        return record
    covered = {pair for data in kept for pair in _covered(data)}
    holders = tuple(
        (index, peer)
        for index, peer in record.holders
        if (peer, record.shards[index] if record.shards else ShardId(blob)) in covered
    )
    return msgspec.structs.replace(record, receipts=kept, holders=holders)
