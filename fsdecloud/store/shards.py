"""A peer's shards: segments for the bytes, an LMDB index from id to place and owners.

Blocking; one writer thread, any number of reading threads. `put_many` returns when its shards are durable: bytes first
(fdatasync), then the index in one transaction, so that an index row always names bytes that are there. What a crash leaves
in a segment without a row is nobody's: a segment without any row is removed when the store is opened, and the tail of
another counts against the quota until the segment is compacted.

**Owners.** A row notes under which deals its shard was stored ("claims"), and when. `delete_many` drops one deal's claims;
another's stay, so nobody can delete what somebody else stored as well. A shard without claims is *doomed*: still there and
read, but `reap` removes it when it has been so for the grace period. Storing it again meanwhile revives it. What was stored
without a deal (by a release that did not note them) has an owner nobody knows: no grant ever removes it.

**Space.** `compact` removes segments without live shards, and copies the live ones out of a segment that is mostly dead:
bytes appended and synced, then the rows, then the file is removed. A crash between two of these leaves nothing but bytes
without a row. Readers go on meanwhile: one that finds its segment gone looks the row up again.

Index (big-endian): `shards` id -> segment:8 offset:8 length:4 [kept:1 doomed:4 (deal:4 time:4)*], times in seconds since 1970;
`segments` number:8 or "total" -> live shards:8 live bytes:8; `deals` deal key -> number:4 owner key; `doomed` time:4 id -> "";
`grants` expiry:4 deal nonce -> "".
"""

from __future__ import annotations

import os
import struct
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple

import blake3

from fsdecloud.errors import MalformedError, SealError, StoreCorrupt, StoreError
from fsdecloud.limits import MESSAGE_MAX, MIB, MIN_FREE, SHARD_MAP_SIZE
from fsdecloud.store.environment import Transaction, open_environment
from fsdecloud.store.segments import Disk, Location, SegmentStore
from fsdecloud.types import ShardId

_PLACE: Final = struct.Struct(">QQI")
"""Segment, offset, length: all of a row that was written before owners were noted."""

_STATE: Final = struct.Struct(">BI")
"""Whether somebody unknown has stored it as well; since when it is doomed, 0 while it is not."""

_CLAIM: Final = struct.Struct(">II")
"""Number of the deal, time."""

_COUNT: Final = struct.Struct(">QQ")
"""Of one segment, or of all (key b"total"): live shards, live bytes."""

_NUMBER: Final = struct.Struct(">I")

_TOTAL: Final = b"total"

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


class Claim(NamedTuple):
    """Under which deal a shard is stored."""

    deal: bytes
    """The deal's public key, b"" for an owner that nobody knows."""
    owner: bytes
    """The key whose grants may delete, b"" for none. The first one that a deal shows when it stores something is bound."""


UNKNOWN: Final = Claim(b"", b"")


class Deletion(NamedTuple):
    """A grant as far as the store is concerned; whoever calls has verified it."""

    deal: bytes
    nonce: bytes
    time: int
    """Claims made later than this stay."""
    expires: int
    shards: Sequence[ShardId]


class _Row(NamedTuple):
    place: Location
    is_kept: bool
    doomed: int
    claims: Mapping[int, int]

    @classmethod
    def decode(cls, data: bytes) -> _Row:
        place = Location(*_PLACE.unpack_from(data))
        if len(data) == _PLACE.size:
            return cls(place, True, 0, {})
        kept, doomed = _STATE.unpack_from(data, _PLACE.size)
        return cls(place, bool(kept), doomed, dict(_CLAIM.iter_unpack(data[_PLACE.size + _STATE.size :])))

    def encode(self) -> bytes:
        place = _PLACE.pack(self.place.segment, self.place.offset, self.place.length)
        state = _STATE.pack(self.is_kept, self.doomed)
        return b"".join((place, state, *(_CLAIM.pack(*claim) for claim in self.claims.items())))


class ShardStore:
    """The shards below one directory."""

    def __init__(
        self, path: Path, quota: int, *, reserve: int = MIN_FREE, disk: Disk = os, map_size: int = SHARD_MAP_SIZE
    ) -> None:
        """Open the store, made if missing. `quota` bounds its bytes on disk, `reserve` is left free on the file system.

        Raises UsageError, StoreCorrupt, StoreError as `open_environment` and `SegmentStore` do.
        """
        self._path = path
        self.quota = quota
        self._reserve = reserve
        self._segments = SegmentStore(path / "shards", "shards", disk=disk)
        self._env = open_environment(path / "index", map_size)
        self._compaction: _Compaction | None = None
        self._unreadable: set[int] = set()
        """Segments that could not be compacted: their shards are damaged, and repaired by being stored again."""
        try:
            self._rows = self._env.database(b"shards")
            self._counts = self._env.database(b"segments")
            self._deals = self._env.database(b"deals")
            self._doomed = self._env.database(b"doomed")
            self._grants = self._env.database(b"grants")
            self._remove_orphans()
            self._on_disk = sum(self._segments.sizes().values())
        except BaseException:
            self.close()
            raise

    # ---- writing: one thread ---------------------------------------------------------------------------------------
    def put_many(
        self, shards: Sequence[tuple[ShardId, Data]], claims: Sequence[Claim] | None = None, *, now: int = 0
    ) -> list[str]:
        """Store shards; for each return "" when it is durable, else why it was not taken.

        `claims` says for each under which deal (None: all UNKNOWN), `now` when. A shard that is there already gets the claim
        and is durable at once. Raises StoreFull when the disk is full after all, StoreError when it fails; then nothing of
        this call is promised.
        """
        reasons = [""] * len(shards)
        new: dict[ShardId, Data] = {}
        wanted: defaultdict[ShardId, dict[Claim, None]] = defaultdict(dict)
        room = self.free_bytes()
        for i, (shard, data) in enumerate(shards):
            size = memoryview(data).nbytes
            claim = claims[i] if claims is not None else UNKNOWN
            if shard not in wanted:
                if size > MESSAGE_MAX or blake3.blake3(data).digest() != shard:
                    reasons[i] = "the bytes are not what their id says"
                    continue
                if not self._is_intact(shard, data):
                    if size + ROW_COST > room:
                        reasons[i] = "full"
                        continue
                    room -= size + ROW_COST
                    new[shard] = data
            wanted[shard][claim] = None
        if wanted:
            self._write(new, wanted, now)
        return reasons

    def _write(self, new: Mapping[ShardId, Data], wanted: Mapping[ShardId, Mapping[Claim, None]], now: int) -> None:
        places = dict(zip(new, self._append(list(new.values())), strict=True)) if new else {}
        with self._env.write() as txn:
            for shard, claims in wanted.items():
                old = txn.get(shard, db=self._rows)
                row = _Row.decode(old) if old is not None else None
                place = places.get(shard)
                if place is not None:
                    if row is not None:  # its bytes were damaged: this is the repair
                        self._count(txn, row.place, -1)
                    self._count(txn, place, 1)
                    row = row._replace(place=place) if row is not None else _Row(place, False, 0, {})
                assert row is not None
                row = self._claimed(txn, shard, row, claims, now)
                data = row.encode()
                if data != old:
                    txn.put(shard, data, db=self._rows)

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

    def _claimed(self, txn: Transaction, shard: ShardId, row: _Row, claims: Mapping[Claim, None], now: int) -> _Row:
        """Return the row with these claims, alive again if it was doomed."""
        if row.doomed:
            txn.delete(_NUMBER.pack(row.doomed) + shard, db=self._doomed)
        is_kept, found = row.is_kept, dict(row.claims)
        for claim in claims:
            if claim.deal:
                found[self._deal_number(txn, claim)] = now
            else:
                is_kept = True
        if len(found) > CLAIMS_MAX:
            is_kept, found = True, dict(row.claims)
        return _Row(row.place, is_kept, 0, found)

    def _deal_number(self, txn: Transaction, claim: Claim) -> int:
        known = txn.get(claim.deal, db=self._deals)
        if known is None:
            number = int(txn.stat(self._deals)["entries"]) + 1
        else:
            number = int(_NUMBER.unpack_from(known)[0])
        if known is None or (len(known) == _NUMBER.size and claim.owner):
            txn.put(claim.deal, _NUMBER.pack(number) + claim.owner, db=self._deals)
        return number

    def _count(self, txn: Transaction, place: Location, shards: int) -> None:
        """Note that `shards` (1 or -1) live shards came to or left a place's segment."""
        for key in (place.segment.to_bytes(8, "big"), _TOTAL):
            count, total = _COUNT.unpack(txn.get(key, _COUNT.pack(0, 0), db=self._counts))
            txn.put(key, _COUNT.pack(count + shards, total + shards * place.length), db=self._counts)

    def _is_intact(self, shard: ShardId, data: Data) -> bool:
        try:
            return self.get(shard) == data
        except (StoreCorrupt, KeyError):
            return False

    # ---- deleting: the writer's thread ------------------------------------------------------------------------------
    def owner(self, deal: bytes) -> bytes:
        """Return the key whose grants may delete what the deal stored, b"" if there is none. Any thread."""
        with self._env.read() as txn:
            known = txn.get(deal, db=self._deals)
        return b"" if known is None else known[_NUMBER.size :]

    def delete_many(self, grant: Deletion, *, now: int) -> list[str]:
        """Drop the deal's claims; for each shard return "" when it has none (any more), else why it stays.

        Durable on return. Raises SealError when this grant was used before.
        """
        reasons: list[str] = []
        with self._env.write() as txn:
            self._use_grant(txn, grant, now)
            known = txn.get(grant.deal, db=self._deals)
            number = _NUMBER.unpack_from(known)[0] if known is not None else 0
            for shard in grant.shards:
                data = txn.get(shard, db=self._rows)
                row = _Row.decode(data) if data is not None else None
                time = row.claims.get(number) if row is not None else None
                if row is None or time is None:
                    is_old = row is not None and row.is_kept and not row.claims
                    reasons.append("stored before owners were noted" if is_old else "")
                    continue
                if time > grant.time:
                    reasons.append("stored again since the grant was made")
                    continue
                reasons.append("")
                claims = {deal: at for deal, at in row.claims.items() if deal != number}
                doomed = 0 if claims or row.is_kept else max(now, 1)
                if doomed:
                    txn.put(_NUMBER.pack(doomed) + shard, b"", db=self._doomed)
                txn.put(shard, _Row(row.place, row.is_kept, doomed, claims).encode(), db=self._rows)
        return reasons

    def _use_grant(self, txn: Transaction, grant: Deletion, now: int) -> None:
        """Note that a grant is used, and forget those that have expired."""
        with txn.cursor(db=self._grants) as cursor:
            while cursor.first() and _NUMBER.unpack_from(cursor.key())[0] <= now:
                cursor.delete()
        if not txn.put(_NUMBER.pack(grant.expires) + grant.deal + grant.nonce, b"", db=self._grants, overwrite=False):
            raise SealError("the grant was used already")

    def next_doomed(self) -> int | None:
        """Return since when the longest doomed shard is so (seconds since 1970), None when there is none."""
        with self._env.read() as txn, txn.cursor(db=self._doomed) as cursor:
            return int(_NUMBER.unpack_from(cursor.key())[0]) if cursor.first() else None

    def reap(self, doomed_before: int) -> int:
        """Remove some shards that were doomed before a time; return how many, 0 when there is none left.

        Their bytes go with their segment: see `compact`.
        """
        first, count = self.next_doomed(), 0
        if first is None or first >= doomed_before:
            return 0
        with self._env.write() as txn, txn.cursor(db=self._doomed) as cursor:
            while count < REAP_STEP and cursor.first():
                key = cursor.key()
                time, shard = _NUMBER.unpack_from(key)[0], key[_NUMBER.size :]
                if time >= doomed_before:
                    break
                cursor.delete()
                count += 1
                data = txn.get(shard, db=self._rows)
                if data is not None:
                    self._count(txn, _Row.decode(data).place, -1)
                    txn.delete(shard, db=self._rows)
        return count

    # ---- space: the writer's thread ---------------------------------------------------------------------------------
    def compact(self) -> bool:
        """Do one bounded step of giving dead bytes back to the disk; return whether there is more to do.

        Raises StoreFull when there is no room for the live bytes of a segment, StoreError.
        """
        if self._compaction is None:
            victims = self._choose_victims()
            if not victims:
                return False
            self._compaction = _Compaction(victims)
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
                segment: _COUNT.unpack(txn.get(segment.to_bytes(8, "big"), _COUNT.pack(0, 0), db=self._counts))
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

    def _scan(self, work: _Compaction) -> None:
        """Look for the victims' shards in the next rows. New ones never get there: nothing is appended to a victim."""
        with self._env.read() as txn, txn.cursor(db=self._rows) as cursor:
            more = cursor.set_range(work.last + b"\0") if work.last else cursor.first()
            for _ in range(SCAN_STEP):
                if not more:
                    work.is_scanned = True
                    return
                work.last, data = cursor.item()
                if _PLACE.unpack_from(data)[0] in work.victims:
                    work.shards.append(ShardId(work.last))
                more = cursor.next()

    def _move(self, work: _Compaction) -> None:
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
            except StoreError:
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
                    txn.put(shard, _Row.decode(row)._replace(place=place).encode(), db=self._rows)
                    self._count(txn, old, -1)
                    self._count(txn, place, 1)
        except StoreError:  # they stay where they are, and are tried again
            work.shards += moved
            raise

    def _finish(self, victims: set[int]) -> None:
        """Remove the segments that nothing names any more."""
        with self._env.read() as txn:
            counts = {s: txn.get(s.to_bytes(8, "big"), _COUNT.pack(0, 0), db=self._counts) for s in victims}
        for segment, count in counts.items():
            if _COUNT.unpack(count)[0] == 0:
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

        Raises KeyError when it is not here, MalformedError when it is shorter, StoreCorrupt when its segment is damaged.
        """
        place = self.locate(shard)
        while True:
            if place is None:
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

    def locate(self, shard: ShardId) -> Location | None:
        """Return where the shard lies, None if it is not here."""
        with self._env.read() as txn:
            row = txn.get(shard, db=self._rows)
        return None if row is None else Location(*_PLACE.unpack_from(row))

    def has_many(self, shards: Sequence[bytes]) -> tuple[bool, ...]:
        """Say for each shard whether it is here."""
        with self._env.read() as txn:
            return tuple(txn.get(shard, db=self._rows) is not None for shard in shards)

    def counts(self) -> tuple[int, int]:
        """Return how many shards there are, and their bytes."""
        with self._env.read() as txn:
            count, size = _COUNT.unpack(txn.get(_TOTAL, _COUNT.pack(0, 0), db=self._counts))
        return int(count), int(size)

    def doomed_count(self) -> int:
        """Return how many shards wait for the end of their grace period."""
        with self._env.read() as txn:
            return int(txn.stat(self._doomed)["entries"])

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
                if row is None or _COUNT.unpack(row)[0] == 0:
                    self._segments.remove(segment)

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


class _Compaction:
    """Segments that are being emptied, and what is known of their shards."""

    __slots__ = ("is_scanned", "last", "shards", "victims")

    def __init__(self, victims: set[int]) -> None:
        self.victims = victims
        self.last = b""
        """The last row looked at."""
        self.is_scanned = False
        self.shards: list[ShardId] = []
