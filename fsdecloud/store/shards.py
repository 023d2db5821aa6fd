"""A peer's shards: segments for the bytes, an LMDB index from id to place and owners.

Blocking; one writer thread, any number of reading threads. `put_many` returns when its shards are durable: bytes first
(fdatasync), then the index in one transaction, so that an index row always names bytes that are there. What a crash leaves
in a segment without a row is nobody's: a segment without any row is removed when the store is opened, and the tail of
another counts against the quota until the segment is compacted.

**Owners.** A row notes under which deals its shard was stored ("claims"), and when. `delete_many` drops one deal's claims;
another's stay, so nobody can delete what somebody else stored as well. A shard without claims is *doomed*: still there and
read, but `reap` removes it when it has been so for the grace period. Storing it again meanwhile revives it. What was stored
without a deal (by a release that did not note them) has an owner nobody knows: no grant ever removes it.

**Leases.** A claim may have a term: see `store.shardleases`.

**Space.** `compact` removes segments without live shards, and copies the live ones out of a segment that is mostly dead:
bytes appended and synced, then the rows, then the file is removed. A crash between two of these leaves nothing but bytes
without a row. Readers go on meanwhile: one that finds its segment gone looks the row up again.

**Damage.** Who finds that a shard's bytes are not what its id says, or gone (`store.scrub`, compaction), has it condemned:
its row goes, so that it is no longer said to be here, and its bytes are dead; what is left is a note of whose it was. Storing
it again gives it back to all of them. Shards whose whole segment is missing are not said to be here from the start.

Index (big-endian): `shards` id -> segment:8 offset:8 length:4 [flags:1 doomed:4 (deal:4 time:4 end:4)*], seconds since 1970;
`segments` number:8 or "total" -> live shards:8 live bytes:8; `deals` deal key -> number:4 owner key; `doomed` time:4 id -> "";
`grants` expiry:4 deal nonce -> ""; `damaged` id -> its last row; `usage` number of the deal:4 -> shards:8 bytes:8, and
"complete" once every row has been counted; `notes` name -> what its writer likes; `leases` first end:4 id -> "".
"""

from __future__ import annotations

import errno
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

import blake3

from fsdecloud.errors import MalformedError, StoreCorrupt, StoreError
from fsdecloud.limits import MESSAGE_MAX, MIB, MIN_FREE, SHARD_MAP_SIZE
from fsdecloud.store.environment import Transaction
from fsdecloud.store.segments import Disk, Location, SegmentStore
from fsdecloud.store.shardindex import TOTAL, ShardIndex
from fsdecloud.store.shardleases import Leases
from fsdecloud.store.shardrows import (
    COUNT,
    NUMBER,
    PLACE,
    UNKNOWN,
    Claim,
    Compaction,
    Deletion,
    Keeps,
    Row,
    Usage,
    keeps_nothing,
)
from fsdecloud.types import ShardId

FULL: Final = "full"
SHARE: Final = "this deal has its share of this peer"
"""Why a shard is not taken: quota or disk, or what one deal may hold."""

NAMED: Final = "its deal still names it"
"""Why a shard is not let go of: it has to be proved (`Keeps`)."""

ROW_COST: Final = 256
"""Bytes of index reckoned for each shard when room is checked."""

CLAIMS_MAX: Final = 64
"""Deals noted for one shard. With more it is kept for good: that favours every owner, and only who pays for the disk."""

COMPACT_STEP: Final = 4 * MIB
"""Bytes copied by one step of compaction: what a Put may have to wait for."""

SCAN_STEP: Final = 20_000
"""Rows looked at in one step."""

VICTIM_SHARDS: Final = 100_000
"""Live shards of the segments that are compacted together: bounds the memory, and shares one scan of the rows."""

REAP_STEP: Final = 1000

Data = bytes | bytearray | memoryview


class ShardStore(ShardIndex):
    """The shards below one directory: their index, and the segments with their bytes."""

    def __init__(
        self, path: Path, quota: int, *, reserve: int = MIN_FREE, disk: Disk = os, map_size: int = SHARD_MAP_SIZE
    ) -> None:
        """Open the store, made if missing. `quota` bounds its bytes on disk, `reserve` is left free on the file system.

        Raises UsageError, StoreCorrupt, StoreError as `open_environment` and `SegmentStore` do.
        """
        super().__init__(path / "index", map_size)
        self._path = path
        self.quota = quota
        self._reserve = reserve
        self.deal_max = 0
        """Most bytes that one deal may hold, 0: as many as there is room for."""
        self._compaction: Compaction | None = None
        self._unreadable: set[int] = set()
        """Segments that could not be compacted: their shards are damaged, and repaired by being stored again."""
        try:
            # Not the number of a segment that is lost, or its shards would seem to lie in the new one.
            self._segments = SegmentStore(path / "shards", "shards", disk=disk, first=self._last_segment() + 1)
            self._remove_orphans()
            self._lost = self._missing_segments()
            self.leases = Leases(
                self._env,
                self._rows,
                self._deals,
                self._notes,
                self._lost,
                count=self._count,
                add_usage=self._add_usage,
            )
            self._on_disk = sum(self._segments.sizes().values())
        except BaseException:  # interrupted or failed, nobody else would close it
            self._env.close()
            raise

    # ---- writing: one thread ---------------------------------------------------------------------------------------
    def put_many(
        self,
        shards: Sequence[tuple[ShardId, Data]],
        claims: Sequence[Claim] | None = None,
        *,
        now: int = 0,
        end: int = 0,
    ) -> list[str]:
        """Store shards; for each return "" when it is durable, else why it was not taken.

        `claims` says for each under which deal (None: all UNKNOWN), `now` when, `end` until when in lease time (0: without a
        term). A shard that is there already gets the claim and is durable at once. Raises StoreFull when the disk is full
        after all, StoreError when it fails; then nothing of this call is promised.
        """
        reasons = [""] * len(shards)
        new: dict[ShardId, Data] = {}
        wanted: defaultdict[ShardId, dict[Claim, None]] = defaultdict(dict)
        room = self.free_bytes()
        shares = _Shares(self)
        for i, (shard, data) in enumerate(shards):
            size = memoryview(data).nbytes
            claim = claims[i] if claims is not None else UNKNOWN
            if shard not in wanted and (size > MESSAGE_MAX or blake3.blake3(data).digest() != shard):
                reasons[i] = "the bytes are not what their id says"
                continue
            if not shares.take(claim.deal, shard, size):
                reasons[i] = SHARE
                continue
            if shard not in wanted and not self._is_intact(shard, data):
                if size + ROW_COST > room:
                    reasons[i] = FULL
                    continue
                room -= size + ROW_COST
                new[shard] = data
            wanted[shard][claim] = None
        if wanted:
            self._write(new, wanted, now, end)
        return reasons

    def _write(
        self, new: Mapping[ShardId, Data], wanted: Mapping[ShardId, Mapping[Claim, None]], now: int, end: int
    ) -> None:
        places = dict(zip(new, self._append(list(new.values())), strict=True)) if new else {}
        usage = Usage()
        with self._env.write() as txn:
            for shard, claims in wanted.items():
                old = txn.get(shard, db=self._rows)
                row = Row.decode(old) if old is not None else None
                counted = row.claims if row is not None else ()
                before_end = row.first_end if row is not None else 0
                place = places.get(shard)
                if row is None and place is not None and (before := txn.pop(shard, db=self._damaged)) is not None:
                    row = Row.decode(before)  # back to all who had it
                    self._count(txn, row.place, 1)
                if place is not None:
                    if row is not None:  # its bytes were damaged: this is the repair
                        self._count(txn, row.place, -1)
                    self._count(txn, place, 1)
                    row = row._replace(place=place) if row is not None else Row(place, False, 0, {})
                assert row is not None
                row = self._claimed(txn, shard, row, claims, now, end)
                self.leases.set_end(txn, shard, before_end, row.first_end)
                usage.add(row, [number for number in row.claims if number not in counted], 1)
                data = row.encode()
                if data != old:
                    txn.put(shard, data, db=self._rows)
            self._add_usage(txn, usage)

    def _append(self, records: Sequence[Data]) -> list[Location]:
        """Append records and make them durable."""
        try:
            places = self._segments.append_many(records)
            self._segments.sync()
        except StoreError:
            self._on_disk = sum(self._segments.sizes().values())
            raise
        self._on_disk += sum(place.length for place in places)
        return places

    def _claimed(
        self, txn: Transaction, shard: ShardId, row: Row, claims: Mapping[Claim, None], now: int, end: int
    ) -> Row:
        """Return the row with these claims, alive again if it was doomed."""
        if row.doomed:
            txn.delete(NUMBER.pack(row.doomed) + shard, db=self._doomed)
        is_kept, found, leases = row.is_kept, dict(row.claims), dict(row.leases)
        for claim in claims:
            if claim.deal:
                number = self._deal_number(txn, claim)
                if end:
                    leases[number] = max(end, leases.get(number, 0))  # what was promised before still holds
                found[number] = now
            else:
                is_kept = True
        if len(found) > CLAIMS_MAX:
            is_kept, found, leases = True, dict(row.claims), dict(row.leases)
        return Row(row.place, is_kept, 0, found, leases)

    def _is_intact(self, shard: ShardId, data: Data) -> bool:
        try:
            return self.get(shard) == data
        except (StoreError, KeyError):  # what the disk cannot read is stored anew
            return False

    # ---- damage: the writer's thread ---------------------------------------------------------------------------------
    def check(self, shard: ShardId, place: Location) -> bool:
        """Read a shard from the disk; return whether it is damaged. Any thread.

        False also when it does not lie there (any more). Raises StoreError when nobody can tell now.
        """
        try:
            return blake3.blake3(self._segments.read(place, cached=False)).digest() != shard
        except StoreError as exc:
            if not isinstance(exc, StoreCorrupt) and getattr(exc.__cause__, "errno", 0) != errno.EIO:
                raise
            return self.locate(shard) == place

    def condemn(self, shard: ShardId, place: Location) -> bool:
        """Let go of a shard at `place` if it is damaged; return whether it was.

        Decided here, where nothing is written or removed meanwhile: its row still names the place, and the bytes are still
        wrong when they are read once more. Raises StoreError when nobody can tell now.
        """
        if self.locate(shard) != place or not self.check(shard, place):
            return False
        usage = Usage()
        with self._env.write() as txn:
            data = txn.pop(shard, db=self._rows)
            assert data is not None, "only this thread changes rows"
            row = Row.decode(data)
            self._count(txn, place, -1)
            usage.add(row, row.claims, -1)
            self._add_usage(txn, usage)
            self.leases.set_end(txn, shard, row.first_end, 0)
            if row.doomed:
                txn.delete(NUMBER.pack(row.doomed) + shard, db=self._doomed)
            else:
                txn.put(shard, row.encode(), db=self._damaged)
        return True

    # ---- deleting: the writer's thread ------------------------------------------------------------------------------
    def delete_many(self, grant: Deletion, *, now: int, keeps: Keeps = keeps_nothing) -> list[str]:
        """Drop the deal's claims; for each shard return "" when it has none (any more), else why it stays.

        Claims on what `keeps` names stay. Durable on return. Raises SealError when this grant was used before.
        """
        reasons: list[str] = []
        usage = Usage()
        with self._env.write() as txn:
            self._use_grant(txn, grant, now)
            known = txn.get(grant.deal, db=self._deals)
            number = NUMBER.unpack_from(known)[0] if known is not None else 0
            for shard in grant.shards:
                data = txn.get(shard, db=self._rows)
                row = Row.decode(data) if data is not None else None
                if row is None:
                    reasons.append(self._drop_damaged(txn, shard, number, grant.time, keeps))
                    continue
                time = row.claims.get(number)
                if time is None:
                    is_old = row.is_kept and not row.claims
                    reasons.append("stored before owners were noted" if is_old else "")
                    continue
                if time > grant.time:
                    reasons.append("stored again since the grant was made")
                    continue
                if keeps(shard):
                    reasons.append(NAMED)
                    continue
                reasons.append("")
                left = row.without((number,))
                doomed = 0 if left.claims or row.is_kept else max(now, 1)
                if doomed:
                    txn.put(NUMBER.pack(doomed) + shard, b"", db=self._doomed)
                self.leases.set_end(txn, shard, row.first_end, left.first_end)
                txn.put(shard, left._replace(doomed=doomed).encode(), db=self._rows)
                usage.add(row, (number,), -1)
            self._add_usage(txn, usage)
        return reasons

    def _drop_damaged(self, txn: Transaction, shard: ShardId, number: int, until: int, keeps: Keeps) -> str:
        """Forget that a deal had a shard that is damaged; return why not, "" if it did not or does not have it any more."""
        data = txn.get(shard, db=self._damaged)
        row = Row.decode(data) if data is not None else None
        if row is None or row.claims.get(number, until + 1) > until:
            return ""
        if keeps(shard):
            return NAMED
        left = row.without((number,))
        if left.claims or row.is_kept:
            txn.put(shard, left.encode(), db=self._damaged)
        else:
            txn.delete(shard, db=self._damaged)
        return ""

    def reap(self, doomed_before: int, *, keeps: Keeps = keeps_nothing, again: int = 0) -> int:
        """Remove some shards that were doomed before a time; return how many.

        What `keeps` names is doomed from `again` on instead, which is not before that time. The bytes of the others go with
        their segment: see `compact`.
        """
        first, removed = self.next_doomed(), 0
        if first is None or first >= doomed_before:
            return 0
        with self._env.write() as txn, txn.cursor(db=self._doomed) as cursor:
            for _ in range(REAP_STEP):
                if not cursor.first():
                    break
                key = cursor.key()
                time, shard = NUMBER.unpack_from(key)[0], ShardId(key[NUMBER.size :])
                if time >= doomed_before:
                    break
                cursor.delete()
                data = txn.get(shard, db=self._rows)
                if data is None:
                    continue
                row = Row.decode(data)
                if keeps(shard):
                    txn.put(NUMBER.pack(again) + shard, b"", db=self._doomed)
                    txn.put(shard, row._replace(doomed=again).encode(), db=self._rows)
                    continue
                removed += 1
                self._count(txn, row.place, -1)
                txn.delete(shard, db=self._rows)
        return removed

    # ---- space: the writer's thread ---------------------------------------------------------------------------------
    def compact(self) -> bool:
        """Do one bounded step of giving dead bytes back to the disk; return whether there is more to do.

        Raises StoreFull when there is no room for the live bytes of a segment, StoreError.
        """
        if self._compaction is None:
            victims = self._choose_victims()
            if not victims:
                return False
            self._compaction = Compaction(victims)
        work = self._compaction
        if not work.is_scanned:
            self._scan(work)
        elif work.shards:
            self._move(work)
        else:
            self._compaction = None
            self._finish(work.victims)
        return True

    def _choose_victims(self) -> set[int]:
        """Return the segments that are mostly dead, as many as one scan is good for; remove those that are dead wholly."""
        with self._env.read() as txn:
            live = {
                segment: COUNT.unpack(txn.get(segment.to_bytes(8, "big"), COUNT.pack(0, 0), db=self._counts))
                for segment in self._segments.sizes()
            }
        victims: set[int] = set()
        total = 0
        for segment, size in self._segments.sizes().items():
            shards, used = live.get(segment, (0, 0))
            if not shards:
                self._remove(segment)
            elif 2 * used < size and segment not in self._unreadable and (not victims or total < VICTIM_SHARDS):
                total += shards
                victims.add(segment)
        if self._segments.current in victims:
            self._segments.roll()
        return victims

    def _scan(self, work: Compaction) -> None:
        """Look for the victims' shards in the next rows. New ones never get there: nothing is appended to a victim."""
        with self._env.read() as txn, txn.cursor(db=self._rows) as cursor:
            more = cursor.set_range(work.last + b"\0") if work.last else cursor.first()
            for _ in range(SCAN_STEP):
                if not more:
                    work.is_scanned = True
                    return
                work.last, data = cursor.item()
                if PLACE.unpack_from(data)[0] in work.victims:
                    work.shards.append(ShardId(work.last))
                more = cursor.next()

    def _move(self, work: Compaction) -> None:
        """Copy some live shards to the current segment and let their rows name the copies."""
        moved: dict[ShardId, Location] = {}
        records: list[bytes] = []
        size = 0
        while work.shards and size < COMPACT_STEP:
            shard = work.shards.pop()
            place = self.locate(shard)
            if place is None or place.segment not in work.victims:
                continue  # removed, or repaired elsewhere
            try:
                data = self._segments.read(place)
                if blake3.blake3(data).digest() != shard:
                    raise StoreCorrupt(f"shard {shard.hex()} is not what its id says")
            except StoreError:
                if not self.condemn(shard, place):
                    self._unreadable.add(place.segment)
                continue
            moved[shard] = place
            records.append(data)
            size += place.length
        if not moved:
            return
        try:
            places = self._append(records)
            with self._env.write() as txn:
                for (shard, old), place in zip(moved.items(), places, strict=True):
                    row = txn.get(shard, db=self._rows)
                    assert row is not None, "only this thread changes rows"
                    txn.put(shard, Row.decode(row)._replace(place=place).encode(), db=self._rows)
                    self._count(txn, old, -1)
                    self._count(txn, place, 1)
        except StoreError:  # they stay where they are, and are tried again
            work.shards += moved
            raise

    def _finish(self, victims: set[int]) -> None:
        """Remove the segments that nothing names any more."""
        with self._env.read() as txn:
            counts = {s: txn.get(s.to_bytes(8, "big"), COUNT.pack(0, 0), db=self._counts) for s in victims}
        for segment, count in counts.items():
            if COUNT.unpack(count)[0] == 0:
                self._remove(segment)
            else:
                self._unreadable.add(segment)

    def _remove(self, segment: int) -> None:
        self._segments.remove(segment)
        with self._env.write() as txn:
            txn.delete(segment.to_bytes(8, "big"), db=self._counts)
        self._on_disk = sum(self._segments.sizes().values())

    # ---- reading: any thread ---------------------------------------------------------------------------------------
    def get(self, shard: ShardId, offset: int = 0, length: int = 0) -> bytes:
        """Return `length` bytes of the shard from `offset`, all for 0.

        Raises KeyError when it is not here, MalformedError when it is shorter, StoreCorrupt when it was and is damaged.
        """
        place = self.locate(shard)
        while True:
            if place is None:
                with self._env.read() as txn:
                    if txn.get(shard, db=self._damaged) is not None:
                        raise StoreCorrupt(f"shard {shard.hex()} was damaged on this disk")
                raise KeyError(shard)
            part = place
            if offset or length:
                if offset + length > place.length:
                    raise MalformedError(f"the shard has {place.length} bytes")
                part = Location(place.segment, place.offset + offset, length or place.length - offset)
            try:
                return self._segments.read(part)
            except StoreError:
                # Its segment may have been compacted since the row was read: then the row says something else now.
                before, place = place, self.locate(shard)
                if place == before:
                    raise

    def get_cached(self, shard: ShardId, offset: int, length: int, buffer: memoryview) -> memoryview | None:
        """As `get`, read into `buffer`, without waiting for the disk to read a segment; None where `get` is to be asked."""
        place = self.locate(shard)
        if place is None or offset + length > place.length:
            return None
        part = Location(place.segment, place.offset + offset, length or place.length - offset)
        return self._segments.read_into(part, buffer, wait=False)

    def has_many(self, shards: Sequence[bytes]) -> tuple[bool, ...]:
        """Say for each shard whether it is here."""
        with self._env.read() as txn:
            rows = [txn.get(shard, db=self._rows) for shard in shards]
        if not self._lost:
            return tuple(row is not None for row in rows)
        return tuple(row is not None and PLACE.unpack_from(row)[0] not in self._lost for row in rows)

    @property
    def used_bytes(self) -> int:
        """Bytes of all segments, tails without a row among them."""
        return self._on_disk

    def free_bytes(self) -> int:
        """Return how many bytes may still be stored: by the quota, and by the disk with its reserve."""
        try:
            disk = os.statvfs(self._path)
        except OSError as exc:
            raise StoreError(f"cannot examine {self._path}: {exc.strerror}") from exc
        return max(0, min(self.quota - self._on_disk, disk.f_bavail * disk.f_frsize - self._reserve))

    # ---- life ------------------------------------------------------------------------------------------------------
    def _remove_orphans(self) -> None:
        """Remove segments that no row names: what a crash left behind."""
        with self._env.read() as txn:
            for segment in self._segments.sizes():
                row = txn.get(segment.to_bytes(8, "big"), db=self._counts)
                if row is None or COUNT.unpack(row)[0] == 0:
                    self._segments.remove(segment)

    def _missing_segments(self) -> frozenset[int]:
        """Return the segments that should hold live shards and are not on the disk (fault 58)."""
        present = self._segments.sizes()
        with self._env.read() as txn, txn.cursor(db=self._counts) as cursor:
            return frozenset(
                number
                for key, count in cursor
                if key != TOTAL and (number := int.from_bytes(key, "big")) not in present and COUNT.unpack(count)[0]
            )

    def close(self) -> None:
        """Close files and index."""
        self._segments.close()
        self._env.close()

    def __enter__(self) -> ShardStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Shares:
    """What the deals of one `put_many` may still take."""

    def __init__(self, store: ShardStore) -> None:
        self._store = store
        self._left: dict[bytes, int] = {}
        self._taken: set[tuple[bytes, ShardId]] = set()

    def take(self, deal: bytes, shard: ShardId, size: int) -> bool:
        """Return whether the deal may hold this shard, which then counts."""
        store = self._store
        if not store.deal_max or not deal or (deal, shard) in self._taken:
            return True
        if deal not in self._left:
            self._left[deal] = store.deal_max - store.usage(deal)[1]
        if not store.has_claim(deal, shard):
            if size > self._left[deal]:
                return False
            self._left[deal] -= size
        self._taken.add((deal, shard))
        return True
