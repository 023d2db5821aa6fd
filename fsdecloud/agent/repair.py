"""Keeping blobs whole: finds those that lack shards, and makes these again where there are peers for them.

Called only from the trio thread; decoding, coding and hashing happen in worker threads.

    survey    look at every row of the location map: which shards are held, away, lost (`agent.auditor`, `swarm.repair`)
    find      ask all peers for what is missing: whoever has a repair key (`agent.standin`) may have stored it elsewhere
    repair    closest to loss first: fetch k shards, decode, verify, code, store what is due with other peers, write the row

A survey is cheap (rows are local, peers are asked only when they lost something) and follows whatever changed. A blob is
looked at again right before it is repaired. Its row, the receipts that are kept of it, and what is left behind at other
peers are written in one transaction after the shards are stored: a crash before that leaves the old row, which is right,
and the same shards with the same peers next time. Nodes of the map and the manifest are whole copies and are simply stored
again.

Foreground goes first: repair waits behind read-ahead for its turn to fetch, and has a budget of bytes a second, a small one
while somebody reads or writes (fault 64).
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Final, TypeAlias

import trio

from fsdecloud import codec
from fsdecloud.agent.auditor import Auditor
from fsdecloud.agent.copies import Copies
from fsdecloud.agent.erasure import encode_shards, shard_ids, shard_size
from fsdecloud.agent.gather import Place
from fsdecloud.agent.moving import HAS_TIMEOUT, PUT_TIMEOUT, Mover, Stale
from fsdecloud.agent.rows import BLOB_PREFIX, BlobRow, blob_key, decode_blob_row, shard_places
from fsdecloud.agent.upkeep import Parts, Upkeep
from fsdecloud.errors import BlobCorrupt, FsdecloudError, ProtocolError, RemoteError
from fsdecloud.fs.keys import prefix_end
from fsdecloud.swarm.repair import (
    Health,
    Shard,
    due_shards,
    health_of,
    in_order,
    is_under_replicated,
    next_due,
    plan_repair,
    repair_cost,
)
from fsdecloud.types import BlobId, PeerId, ShardId
from fsdecloud.wire.agentapi import RepairStatus
from fsdecloud.wire.peer import IDS_MAX

log = logging.getLogger(__name__)

PAGE: Final = 512
"""Rows looked at in one step."""

WEAK_MAX: Final = 100_000
"""Blobs that lack shards that are known by name, 300 bytes each; the rest are found by the next survey."""

GATHER: Final = 0.25
"""Seconds after a change in which others may come: peers go and return in groups."""

SURVEY_SHARE: Final = 10
"""A survey is not repeated before ten times its own length has passed."""

RETRY: Final = 15.0
"""Seconds until what failed is tried again."""

SURVEY_INTERVAL: Final = 3600.0
"""Seconds between two surveys if nothing changes."""

FIND_STEP: Final = 256
"""Blobs whose shards are looked for at once, and shards in one renewal: its receipt may be kept with each of their blobs."""

FIND_AGAIN: Final = 3600.0
"""Seconds after which a shard that nobody had is looked for once more."""

FIND_PATIENCE: Final = 5.0
"""Seconds for which a read waits for that, and after which the next one asks again."""

ROUNDS: Final = 3
"""Peers tried for one shard before the blob waits for its next turn."""

REPORT_INTERVAL: Final = 60.0
"""Seconds after which the driver is told of what was repaired while there is more to do."""

Shards: TypeAlias = Mapping[int, bytes | memoryview]
"""Shards of a blob by their index."""


@dataclass(frozen=True, slots=True)
class _Made:
    """A shard that was made again."""

    index: int
    peer: PeerId
    receipt: bytes


class Repairer(Upkeep):
    """Repairs the blobs of one volume."""

    def __init__(self, parts: Parts, *, auditor: Auditor, mover: Mover, copies: Copies) -> None:
        super().__init__(parts)
        self._auditor = auditor
        self._mover = mover
        self._copies = copies
        self._wake = trio.Event()
        self._weak: dict[BlobId, Health] = {}
        self._hidden = self._hidden_away = 0
        self._next_survey = -math.inf
        self._surveying = False
        self._surveyed = 0
        self._blobs = 0
        self._bytes = 0
        self._shards = 0
        self._waiting: set[BlobId] = set()
        self._sought: dict[BlobId, float] = {}
        self._found = 0
        self._is_working = False
        self._has_surveyed = False
        self._has_failed = False
        self._last_error = ""
        auditor.on_change = self.poke
        self._book.on_away.append(lambda _peer: self.poke())
        self._hosts.on_change.append(self.poke)

    def poke(self) -> None:
        """Something changed: look at everything soon."""
        self._wake.set()

    def status(self) -> RepairStatus:
        """Return what `status` shows."""
        weak = self._weak.values()
        lacking = [health for health in weak if not health.is_whole]
        short = [health for health in lacking if is_under_replicated(health, self._policy)]
        return RepairStatus(
            blobs=self._surveyed,
            degraded=len(short) + self._hidden,
            away=len(lacking) - len(short) + self._hidden_away,
            endangered=sum(health.is_endangered for health in short),
            unreadable=sum(not health.is_readable for health in weak),
            waiting=len(self._waiting),
            moving=sum(health.is_whole for health in weak),
            repaired_blobs=self._blobs,
            repaired_shards=self._shards,
            repaired_bytes=self._bytes,
            audits_passed=self._auditor.passed,
            audits_failed=self._auditor.failed,
            contained=self._auditor.contained,
            is_surveying=self._surveying,
            last_error=self._last_error,
        )

    # ---- the loop --------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Keep everything whole until cancelled."""
        await self._hosts.wait_known()
        if self._mover.has_unanchored:
            self._mover.moved(0, "")
        while True:
            with trio.move_on_after(self._pause()):
                await self._wake.wait()
            await trio.sleep(GATHER)
            await trio.sleep_until(self._next_survey)
            self._wake = trio.Event()
            self._has_failed = False
            self._is_working = True
            try:
                await self._survey()
                await self._find_all()
                await self._repair_all()
                self._next_survey += SURVEY_SHARE * await self._copies.repair()
                self._has_surveyed = True
            except FsdecloudError as exc:
                self._note_error(exc)
            finally:
                self._is_working = False

    @property
    def is_working(self) -> bool:
        """True while it looks at blobs, or repairs some."""
        return self._is_working

    def note_whole(self, blob: BlobId) -> None:
        """All shards of a blob were stored anew: it lacks nothing any more."""
        self._weak.pop(blob, None)
        self._waiting.discard(blob)

    def is_settled(self, within: float) -> bool:
        """Say whether everything was looked at, and nothing will be due within so many seconds unless something changes."""
        if not self._has_surveyed or self._is_working or self._wake.is_set():
            return False
        return all(next_due(health, self._policy) > within for health in self._weak.values())

    def _pause(self) -> float:
        """Return the seconds until something is due that nobody tells of."""
        due = min((next_due(health, self._policy) for health in self._weak.values()), default=math.inf)
        return max(min(due, RETRY if self._has_failed else SURVEY_INTERVAL), GATHER)

    def _note_error(self, error: FsdecloudError) -> None:
        self._has_failed = True
        self._last_error = str(error)
        log.info("repair waits: %s", error)

    # ---- looking ---------------------------------------------------------------------------------------------------
    def _health(self, blob: BlobId, row: BlobRow) -> Health:
        places = shard_places(row, self._hosts.ranking(blob, row.epoch))
        now = trio.current_time()
        return health_of(
            row.k, row.n, places, lambda index, peer: self._auditor.state(peer, row.shard(blob, index), now)
        )

    async def _survey(self) -> None:
        """Look at all blobs. Raises RemoteError when the map cannot be read."""
        started = trio.current_time()
        weak: dict[BlobId, Health] = {}
        hidden = hidden_away = count = 0
        suspects = set(self._auditor.suspects)
        silent: set[PeerId] = set()
        after, stop = BLOB_PREFIX, prefix_end(BLOB_PREFIX)
        self._surveying = True
        try:
            while True:
                rows = await self._locations.rows_after(after, stop, PAGE)
                blobs = [(BlobId(key[1:]), decode_blob_row(value)) for key, value in rows]
                silent |= await self._ask(suspects, blobs)
                for blob, row in blobs:
                    if self._mover.is_left_alone(blob):
                        continue
                    count += 1
                    health = self._health(blob, row)
                    if not health.is_in_place:
                        if len(weak) < WEAK_MAX:
                            weak[blob] = health
                        elif is_under_replicated(health, self._policy):
                            hidden += 1
                        else:
                            hidden_away += 1
                await trio.lowlevel.checkpoint()
                if len(rows) < PAGE:
                    break
                after = rows[-1][0]
        finally:
            self._surveying = False
            self._next_survey = trio.current_time() + SURVEY_SHARE * (trio.current_time() - started)
        for peer in suspects - silent:
            self._auditor.clear(peer)
        self._weak, self._hidden, self._hidden_away, self._surveyed = weak, hidden, hidden_away, count
        self._waiting &= weak.keys()

    async def _ask(self, suspects: set[PeerId], blobs: list[tuple[BlobId, BlobRow]]) -> set[PeerId]:
        """Ask peers that lost something for all that they should have of these blobs; return those that did not answer."""
        wanted: defaultdict[PeerId, list[ShardId]] = defaultdict(list)
        silent: set[PeerId] = set()
        if suspects:
            for blob, row in blobs:
                for index, peer in shard_places(row, self._hosts.ranking(blob, row.epoch)).items():
                    if peer in suspects and not self._mover.is_left_alone(blob):
                        wanted[peer].append(row.shard(blob, index))

        async def ask(peer: PeerId, shards: list[ShardId]) -> None:
            for start in range(0, len(shards), IDS_MAX):
                part = shards[start : start + IDS_MAX]
                answers = await self._mover.has(peer, part)
                if answers is None:
                    silent.add(peer)
                    return
                for shard, present in zip(part, answers, strict=True):
                    if not present:  # its word is no proof that it has one, but that it has not it is
                        self._auditor.note_lost(peer, shard)

        async with trio.open_nursery() as nursery:
            for peer, shards in wanted.items():
                nursery.start_soon(ask, peer, shards)
        return silent

    # ---- finding ---------------------------------------------------------------------------------------------------
    async def _find_all(self) -> None:
        """Look elsewhere for the shards that are missing of blobs that are due, or that cannot be read."""
        now = trio.current_time()
        self._sought = {blob: at for blob, at in self._sought.items() if blob in self._weak and now < at + FIND_AGAIN}
        todo = [
            blob
            for blob in in_order(self._weak.items())
            if blob not in self._sought and self._missing(self._weak[blob])
        ]
        before = self._found
        for start in range(0, len(todo), FIND_STEP):
            part = todo[start : start + FIND_STEP]
            await self._find(part)
            self._sought.update(dict.fromkeys(part, now))
        if self._found > before:
            log.info("%d shards were found elsewhere", self._found - before)
            self._mover.moved(0, "")

    def _missing(self, health: Health) -> tuple[int, ...]:
        """Return what is looked for elsewhere."""
        if health.is_readable:
            due = due_shards(health, self._policy)
            return tuple(index for index in due if health.states[index] is not Shard.LEAVING)
        return tuple(index for index, state in enumerate(health.states) if state is not Shard.HELD)

    async def find(self, blob: BlobId) -> BlobRow | None:
        """Look elsewhere for a blob that cannot be read; return its row if that helped. Raises RemoteError."""
        now = trio.current_time()
        if now < self._sought.get(blob, -math.inf) + FIND_PATIENCE:
            return None
        self._sought[blob] = now
        before = self._found
        with trio.move_on_after(FIND_PATIENCE):
            await self._find([blob])
        return await self._row(blob) if self._found > before else None

    async def _find(self, blobs: list[BlobId]) -> None:
        """Ask all peers for what is missing of blobs, and let the rows name those that sign for it."""
        datas = await self._locations.find(sorted(blob_key(blob) for blob in blobs))
        rows = {
            blob: (data, decode_blob_row(data))
            for blob, data in zip(sorted(blobs), datas, strict=True)
            if data is not None and not self._mover.is_left_alone(blob)
        }
        wanted: defaultdict[ShardId, list[BlobId]] = defaultdict(list)
        for blob, (_, row) in rows.items():
            for index in self._missing(self._health(blob, row)):
                wanted[row.shard(blob, index)].append(blob)
        claims = await self._who_has(list(wanted))
        # What is found may be what another record wants deleted: that record lets go of it first. Then its holder signs.
        for blob in {blob for shards in claims.values() for shard in shards for blob in wanted[shard]}:
            peers = {peer for peer, shards in claims.items() if any(blob in wanted[shard] for shard in shards)}
            await self._garbage.reclaim(blob, {shard for shard in wanted if blob in wanted[shard]}, peers)
        receipts: dict[tuple[PeerId, ShardId], bytes] = {}

        async def renew(peer: PeerId, shards: list[ShardId]) -> None:
            for start in range(0, len(shards), FIND_STEP):
                with trio.move_on_after(HAS_TIMEOUT):
                    try:
                        receipt = await self._book.renew(peer, shards[start : start + FIND_STEP])
                    except (RemoteError, ProtocolError):
                        return
                    if receipt is not None:
                        encoded = codec.encode(receipt)
                        receipts.update({(peer, item.id): encoded for item in receipt.shards})

        async with trio.open_nursery() as nursery:
            for peer, shards in claims.items():
                nursery.start_soon(renew, peer, shards)
        for blob, (data, row) in rows.items():
            made = self._made_elsewhere(blob, row, receipts)
            if made:
                try:
                    await self._write(blob, data, row, made)
                except Stale as exc:
                    self._note_error(exc)
                    continue
                self._found += len(made)
                if blob in self._weak:
                    self._note_health(blob, self._health(blob, await self._row(blob)))

    async def _who_has(self, shards: list[ShardId]) -> dict[PeerId, list[ShardId]]:
        """Ask all peers that can be trusted which of these they have."""
        claims: dict[PeerId, list[ShardId]] = {}

        async def ask(peer: PeerId) -> None:
            for start in range(0, len(shards), IDS_MAX):
                part = shards[start : start + IDS_MAX]
                answers = await self._mover.has(peer, part) or [False] * len(part)
                found = [shard for shard, present in zip(part, answers, strict=True) if present]
                if found:
                    claims.setdefault(peer, []).extend(found)

        peers = dict.fromkeys((*self._hosts.map.current, *self._book.everybody()))
        async with trio.open_nursery() as nursery:
            for peer in peers if shards else ():
                known = self._book.peer(peer)
                if known.is_readable and not known.is_distrusted:
                    nursery.start_soon(ask, peer)
        return claims

    def _made_elsewhere(self, blob: BlobId, row: BlobRow, receipts: dict[tuple[PeerId, ShardId], bytes]) -> list[_Made]:
        """Return which missing shards have a new place: one for each peer that signed, and has no other one of the blob."""
        places = shard_places(row, self._hosts.ranking(blob, row.epoch))
        missing = self._missing(self._health(blob, row))
        taken = {peer for index, peer in places.items() if index not in missing}
        made: list[_Made] = []
        for index in missing:
            shard = row.shard(blob, index)
            for (peer, found), receipt in receipts.items():
                if found == shard and peer not in taken and not self._auditor.is_unfit(peer, shard):
                    taken.add(peer)
                    made.append(_Made(index, peer, receipt))
                    break
        return made

    # ---- repairing -------------------------------------------------------------------------------------------------
    async def _repair_all(self) -> None:
        """Repair what is due, closest to loss first; stops when another survey is wanted and possible."""
        todo = [blob for blob in in_order(self._weak.items()) if due_shards(self._weak[blob], self._policy)]
        if todo:
            log.info("%d blobs lack shards, %d of them are repaired now", len(self._weak) + self._hidden, len(todo))
        todo.reverse()
        told, told_at = self._blobs, trio.current_time()

        def tell() -> None:
            nonlocal told, told_at
            if self._blobs > told:
                self._mover.moved(self._blobs - told, "")
            told, told_at = self._blobs, trio.current_time()

        async def work() -> None:
            while todo and not (self._wake.is_set() and trio.current_time() >= self._next_survey):
                blob = todo.pop()
                try:
                    await self._repair_row(blob)
                except (RemoteError, ProtocolError, Stale) as exc:
                    self._note_error(exc)
                if trio.current_time() >= told_at + REPORT_INTERVAL:
                    tell()

        try:
            async with trio.open_nursery() as nursery:
                for _ in range(self._policy.blobs_at_once):
                    nursery.start_soon(work)
        finally:
            tell()

    async def _repair_row(self, blob: BlobId) -> None:
        """Repair one blob, if it still needs it. Raises RemoteError, Stale."""
        (data,) = await self._locations.find([blob_key(blob)])
        if data is None or self._mover.is_left_alone(blob):
            self._weak.pop(blob, None)
            return
        row = decode_blob_row(data)
        health = self._health(blob, row)
        targets = self._targets(blob, row, health)
        if not targets:
            self._note_health(blob, health)
            if due_shards(health, self._policy):
                self._waiting.add(blob)
            return
        size = shard_size(row.k, row.length)
        shards = await self._fetch_leaving(blob, row, health, size)
        paid: Set[int] = shards.keys()
        if not shards:
            paid = targets.keys()
            await self._mover.pay(repair_cost(row.k, size, len(targets)))
            content = await self._fetcher.fetch_blob(Place(blob, row, 0, row.length))
            shards = dict(enumerate(await trio.to_thread.run_sync(encode_shards, row.k, row.n, content)))
        made = await self._store(blob, row, health, shards, paid)
        if made:
            await self._write(blob, data, row, made)
            self._blobs += 1
            self._shards += len(made)
            self._bytes += size * len(made)
        self._note_health(blob, self._health(blob, await self._row(blob)))

    async def _fetch_leaving(self, blob: BlobId, row: BlobRow, health: Health, size: int) -> Shards:
        """Return the shards that are due, if peers that leave have all of them: a copy costs less than making them again."""
        places = shard_places(row, self._hosts.ranking(blob, row.epoch))
        due = due_shards(health, self._policy)
        if any(health.states[index] is not Shard.LEAVING for index in due):
            return {}
        found: dict[int, bytes | memoryview] = {}
        for index in due:
            await self._mover.pay(repair_cost(1, size, 1))
            try:
                with trio.fail_after(PUT_TIMEOUT):
                    found[index] = await self._book.get(places[index], row.shard(blob, index), size)
            except (RemoteError, ProtocolError, trio.TooSlowError):
                return {}
        return found

    def _note_health(self, blob: BlobId, health: Health) -> None:
        self._waiting.discard(blob)
        if health.is_in_place:
            self._weak.pop(blob, None)
        else:
            self._weak[blob] = health

    async def _row(self, blob: BlobId) -> BlobRow:
        found = await self._mover.find_row(blob)
        if found is None:
            raise Stale(f"blob {blob.hex()[:16]} is gone")
        return found[1]

    def _targets(
        self,
        blob: BlobId,
        row: BlobRow,
        health: Health,
        avoid: Set[PeerId] = frozenset(),
        paid: Set[int] | None = None,
        made: Mapping[int, PeerId] | None = None,
    ) -> dict[int, PeerId]:
        """Return where the shards go that are due."""
        return plan_repair(
            health,
            shard_places(row, self._hosts.ranking(blob, row.epoch)),
            self._hosts.ranking(blob, self._hosts.map.epoch),
            self._policy,
            lambda peer: self._book.peer(peer).is_usable,
            lambda index, peer: self._auditor.is_unfit(peer, row.shard(blob, index)),
            avoid,
            self._hosts.map.labels(),
            paid,
            made,
        )

    async def _store(self, blob: BlobId, row: BlobRow, health: Health, shards: Shards, paid: Set[int]) -> list[_Made]:
        """Store the shards that are due and `paid` for, with others where a peer does not take its one."""
        made: dict[int, _Made] = {}
        avoid: set[PeerId] = set()
        error: FsdecloudError | None = None

        async def put(index: int, peer: PeerId) -> None:
            nonlocal error
            try:
                receipt = await self._mover.send(peer, row.shard(blob, index), shards[index])
            except (RemoteError, ProtocolError) as exc:
                error = exc
                avoid.add(peer)
            else:
                made[index] = _Made(index, peer, receipt)

        for _ in range(ROUNDS):
            targets = self._targets(blob, row, health, avoid, paid, {index: one.peer for index, one in made.items()})
            if not targets:
                break
            ids = {row.shard(blob, index) for index in targets}
            await trio.to_thread.run_sync(_check_shards, row, blob, shards, list(targets))
            # Before anything of it is sent, so that no deletion of the same shards at these peers can follow.
            await self._garbage.reclaim(blob, ids, set(targets.values()))
            async with trio.open_nursery() as nursery:
                for index, peer in targets.items():
                    nursery.start_soon(put, index, peer)
        if error is not None and not made:
            raise error
        return list(made.values())

    async def _write(self, blob: BlobId, before: bytes, row: BlobRow, made: list[_Made]) -> None:
        """Make the new places durable, in one transaction. Raises Stale when the row is another one by now."""
        holders = {one.index: one.peer for one in made}
        old = shard_places(row, self._hosts.ranking(blob, row.epoch))
        places = old | holders
        await self._mover.write(
            blob,
            before,
            (row, old),
            (self._mover.row_for(blob, row, places), places),
            lambda: self._uploader.moved(blob, holders, (one.receipt for one in made)),
        )
        for one in made:
            self._auditor.note_held(one.peer, row.shard(blob, one.index))


def _check_shards(row: BlobRow, blob: BlobId, shards: Shards, indexes: list[int]) -> None:
    """Raise BlobCorrupt unless these are the shards that the row names. In a worker thread."""
    for index, found in zip(indexes, shard_ids([shards[index] for index in indexes]), strict=True):
        if found != row.shard(blob, index):
            raise BlobCorrupt(f"shard {index} of blob {blob.hex()[:16]} is not what the location map says")
