"""Coding anew what is stored, after the volume's redundancy changed (`swarm.recoding` says when, and who takes what).

Called only from the trio thread; decoding, coding and hashing happen in worker threads. One blob at a time:

    note     which new shards go to whom, in the journal: so that they are found again whatever happens
    store    all n of them; a peer that does not take its one is replaced
    write    the row, the receipts that are kept, what is left behind, and no note: one transaction (`agent.moving`)

Until the last step the old row holds, and the old shards stay where they are; after it they are left behind like those that
repair replaced, and go when an anchor with the new map is final (`agent.garbage`). A reader that has the old row meanwhile
reads them. What was sent for nothing, because of a crash, too few peers, or a redundancy that changed again, is left behind
too: the note says where it is. Trying again makes the very same shards, and takes those out of what is left behind before.

The new row is written only when all n shards are stored: what is stored never becomes weaker on the way.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec
import trio

from fsdecloud import codec
from fsdecloud.agent.auditor import Auditor
from fsdecloud.agent.erasure import encode_shards, shard_ids, shard_size
from fsdecloud.agent.gather import Place
from fsdecloud.agent.journal import META, Write
from fsdecloud.agent.moving import Mover
from fsdecloud.agent.rows import BlobRow, moved_row, shard_places
from fsdecloud.agent.upkeep import Parts, Upkeep
from fsdecloud.errors import FsdecloudError, NotEnoughPeers, ProtocolError, RemoteError
from fsdecloud.swarm.policy import Redundancy
from fsdecloud.swarm.recoding import Plan, Steadiness, coding_of, plan_recoding, should_recode
from fsdecloud.swarm.repair import Shard, repair_cost
from fsdecloud.types import BlobId, PeerId, ShardId

log = logging.getLogger(__name__)

STEADY: Final = 3600.0
"""Seconds for which there must be enough peers before `auto` codes anew what is stored: peers of a test, or of a machine that
is set up, come and go within minutes, and each change of code moves every byte."""

WATCH: Final = 60.0
"""Seconds between two looks at how many peers there are."""

ROUNDS: Final = 3
"""Peers tried for one shard before the blob waits for its next turn."""

_NOTES: Final = b"recoding"
_STEADY: Final = b"steady"
"""Names in the journal's table `meta`."""

Pairs = tuple[tuple[ShardId, PeerId], ...]


class Note(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """New shards of a blob that were sent, or are about to be, and that no row names yet."""

    blob: BlobId
    shard_size: int
    sent: Pairs


class Recoder(Upkeep):
    """Knows which redundancy what is stored should have, and gives it to one blob after the other."""

    def __init__(self, parts: Parts, *, auditor: Auditor, mover: Mover) -> None:
        """Go on with what the journal says. Raises MalformedError."""
        super().__init__(parts)
        self._auditor = auditor
        self._mover = mover
        journal = self._writer.journal
        notes = journal.get(META, _NOTES)
        self._left = codec.decode(notes, tuple[Note, ...]) if notes else ()
        """Of an earlier run."""
        self._notes: dict[BlobId, Note] = {}
        self._steadiness = Steadiness(journal.get(META, _STEADY) or b"")
        self.blobs = 0
        self.bytes = 0
        """Coded anew since the start."""

    # ---- what should be --------------------------------------------------------------------------------------------
    @property
    def target(self) -> Redundancy | None:
        """The redundancy that what is stored should have: what was asked for, or what peers have allowed for long."""
        if self._hosts.wanted is not None:
            return self._hosts.wanted
        step = self._steadiness.step(STEADY)
        return step if step is not None and self._hosts.redundancy()[0].copies >= step.copies else None

    def coding(self, row: BlobRow) -> Redundancy | None:
        """Return the k and n that a blob should be coded with instead of what it has, None if it may stay as it is."""
        target = self.target
        if target is None:
            return None
        coding = coding_of(target, row.length)
        is_asked = self._hosts.wanted is not None
        return coding if should_recode(Redundancy(row.k, row.n), coding, is_asked=is_asked) else None

    async def watch(self, changed: Callable[[], None]) -> None:
        """Watch how many peers there are, until cancelled; `changed` is called when that changes what should be."""
        last = trio.current_time()
        while True:
            await trio.sleep(WATCH)
            now = trio.current_time()
            before, target = self._steadiness.encode(), self.target
            # A longer pause was no watching: the machine slept.
            self._steadiness.watched(*self._hosts.counts(), min(now - last, 2 * WATCH), STEADY)
            last = now
            if (after := self._steadiness.encode()) != before:
                self._writer.write_nowait([(META, _STEADY, after or None)])
            if self.target != target:
                changed()

    # ---- notes -----------------------------------------------------------------------------------------------------
    def _save(self) -> Write:
        notes = (*self._left, *self._notes.values())
        return META, _NOTES, codec.encode(notes) if notes else None

    async def recover(self) -> None:
        """Leave behind what an earlier run sent for nothing. Raises RemoteError when the map cannot be read."""
        while self._left:
            note = self._left[0]
            async with self._garbage.lock:
                writes = await self._leave(note)
                self._left = self._left[1:]
                await self._writer.write([*writes, self._save()])

    async def _leave(self, note: Note) -> list[Write]:
        """Return the writes that leave behind what was sent, but for what the blob's row names. The caller holds the lock."""
        found = await self._mover.find_row(note.blob)
        inside: set[tuple[ShardId, PeerId]] = set()
        if found is not None:
            row = found[1]
            places = shard_places(row, self._hosts.ranking(note.blob, row.epoch))
            inside = {(row.shard(note.blob, index), peer) for index, peer in places.items()}
        return self._garbage.moved(note.blob, [pair for pair in note.sent if pair not in inside], note.shard_size)

    async def _note(self, blob: BlobId, size: int, pairs: Sequence[tuple[ShardId, PeerId]]) -> None:
        before = self._notes.get(blob)
        self._notes[blob] = Note(blob, size, (*(before.sent if before else ()), *pairs))
        await self._writer.write([self._save()])

    async def _give_up(self, blob: BlobId) -> None:
        note = self._notes.get(blob)
        if note is not None:
            async with self._garbage.lock:
                writes = await self._leave(note)
                del self._notes[blob]
                await self._writer.write([*writes, self._save()])

    # ---- one blob --------------------------------------------------------------------------------------------------
    async def recode(self, blob: BlobId) -> bool:
        """Code a blob anew if it should be; returns whether it was. Raises NotEnoughPeers when it waits for peers, RemoteError,
        ProtocolError, Stale."""
        found = await self._mover.find_row(blob)
        if found is None or self._mover.is_left_alone(blob):
            return False
        data, row = found
        coding = self.coding(row)
        if coding is None:
            return False
        self._check_peers(coding)
        old, new = shard_size(row.k, row.length), shard_size(coding.k, row.length)
        await self._mover.pay(repair_cost(row.k, old, 0) + repair_cost(0, new, coding.n))
        content = await self._fetcher.fetch_blob(Place(blob, row, 0, row.length))
        shards, ids = await trio.to_thread.run_sync(_encode, coding, content)
        del content
        try:
            await self._replace(blob, data, row, coding, shards, ids)
        except FsdecloudError:
            await self._give_up(blob)
            raise
        self.blobs += 1
        self.bytes += row.length
        return True

    def _check_peers(self, coding: Redundancy) -> None:
        usable, _ = self._hosts.counts()
        if usable < coding.n and coding.n > 1:
            raise NotEnoughPeers(f"{coding.n} peers are needed for {coding}, {usable} can be used now")

    async def _replace(
        self,
        blob: BlobId,
        before: bytes,
        row: BlobRow,
        coding: Redundancy,
        shards: Sequence[bytes | memoryview],
        ids: Sequence[ShardId],
    ) -> None:
        """Store the new shards, and write the row that names them."""
        old = shard_places(row, self._hosts.ranking(blob, row.epoch))
        places, receipts = await self._store(blob, row, old, shards, ids)
        blank = BlobRow(coding.k, coding.n, row.epoch, row.length, tuple(ids) if coding.k > 1 else (), ())
        epoch = self._hosts.map.epoch
        after = moved_row(blank, places, {epoch: self._hosts.ranking(blob, epoch)})

        def kept() -> list[Write]:
            self._notes.pop(blob, None)
            return [*self._uploader.recoded(blob, after, places, receipts), self._save()]

        note = self._notes.get(blob)
        await self._mover.write(
            blob,
            before,
            (row, old),
            (after, places),
            kept,
            is_wanted=lambda: self.coding(row) == coding,
            left=note.sent if note is not None else (),
        )
        for index, peer in places.items():
            self._auditor.note_held(peer, ids[index])

    async def _store(
        self,
        blob: BlobId,
        row: BlobRow,
        old: Mapping[int, PeerId],
        shards: Sequence[bytes | memoryview],
        ids: Sequence[ShardId],
    ) -> tuple[dict[int, PeerId], dict[int, bytes]]:
        """Have every shard stored; return who has which, and the receipts of those that were sent. Raises RemoteError."""
        held = self._held(blob, row, old)
        avoid: set[PeerId] = set()
        stored: dict[int, PeerId] = {}
        receipts: dict[int, bytes] = {}
        error: FsdecloudError = NotEnoughPeers("too few peers have room")

        async def put(index: int, peer: PeerId) -> None:
            nonlocal error
            try:
                receipts[index] = await self._mover.send(peer, ids[index], shards[index])
            except (RemoteError, ProtocolError) as exc:
                error = exc
                avoid.add(peer)
            else:
                stored[index] = peer

        for _ in range(ROUNDS):
            plan = self._plan(blob, ids, held, avoid, stored)
            if len(stored) + len(plan.kept) + len(plan.sent) < len(ids):
                break
            if not plan.sent:
                return stored | dict(plan.kept), receipts
            await self._note(blob, len(shards[0]), [(ids[index], peer) for index, peer in plan.sent.items()])
            # Before anything of it is sent, so that no deletion of the same shards at these peers can follow.
            await self._garbage.reclaim(blob, set(ids), set(plan.sent.values()))
            async with trio.open_nursery() as nursery:
                for index, peer in plan.sent.items():
                    nursery.start_soon(put, index, peer)
            if len(stored) + len(plan.kept) == len(ids):
                return stored | dict(plan.kept), receipts
        raise NotEnoughPeers(f"only {len(stored)} of {len(ids)} new shards could be stored: {error}")

    def _held(self, blob: BlobId, row: BlobRow, places: Mapping[int, PeerId]) -> dict[ShardId, list[PeerId]]:
        """Return which peers have which shard of the old code for certain."""
        held: defaultdict[ShardId, list[PeerId]] = defaultdict(list)
        now = trio.current_time()
        for index, peer in places.items():
            if self._auditor.state(peer, row.shard(blob, index), now)[0] is Shard.HELD:
                held[row.shard(blob, index)].append(peer)
        return held

    def _plan(
        self,
        blob: BlobId,
        ids: Sequence[ShardId],
        held: Mapping[ShardId, Sequence[PeerId]],
        avoid: set[PeerId],
        stored: Mapping[int, PeerId],
    ) -> Plan:
        distinct = set(ids)

        def is_usable(peer: PeerId) -> bool:
            return self._book.peer(peer).is_usable and not any(
                self._auditor.is_unfit(peer, shard) for shard in distinct
            )

        ranking = self._hosts.ranking(blob, self._hosts.map.epoch)
        return plan_recoding(ids, held, ranking, is_usable, avoid, self._hosts.map.labels(), stored)


def _encode(coding: Redundancy, content: bytes) -> tuple[Sequence[bytes | memoryview], tuple[ShardId, ...]]:
    """Return the shards and their ids. In a worker thread."""
    shards = encode_shards(coding.k, coding.n, content)
    return shards, shard_ids(shards)
