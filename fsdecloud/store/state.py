"""What a volume's driver must not forget: its journal, the index of its staged entries, and a few named values.

A commit is one record of a write-ahead log (`store.wal`), durable when `commit` returns; there is no other way to write. The
index and the named values lie in an LMDB environment, which a checkpoint brings up to date in one transaction now and then;
until then they are in memory, and in the log. Written by the driver alone, blocking, thread-safe. Not here: what rows mean
(`driver`), where the staged bytes lie (`store.segments`: sync them before the commit that names them).

    volume    b"volume"  -> volume id, salt, sealed check value     which volume, key and format this is
              b"floor"   -> last sequence number that was truncated
              b"applied" -> last sequence number the tables below hold
              b"wal"     -> number of the log's newest file at that time
    staged    entry id -> Location
    meta      name -> salt, sealed value

Sequence numbers have no gaps; they grow for ever, also over a journal that was emptied. Entry ids and locations stay in the
clear in LMDB: they are hashes of sealed bytes and file offsets, which the staged segments beside them show anyway.

The first format kept the journal's rows in an LMDB table; a store of that format is brought to this one when it is opened.
"""

from __future__ import annotations

import heapq
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import Final

import msgspec

from fsdecloud import codec
from fsdecloud.crypto.rows import SALT_SIZE, open_rows, seal_rows
from fsdecloud.errors import MalformedError, SealError, StoreCorrupt, StoreError
from fsdecloud.limits import KIB, MIB, STATE_MAP_SIZE
from fsdecloud.store.environment import KEY_MAX, Transaction, open_environment
from fsdecloud.store.segments import Disk, Location
from fsdecloud.store.wal import Wal
from fsdecloud.types import EntryId, VolumeId

CHECKPOINT_BYTES: Final = 64 * MIB
"""A log this long is checkpointed, though most of its rows may stay until the next commit of the tree."""

CHECKPOINT_ITEMS: Final = 20_000
"""Index changes held in memory before a checkpoint, about 200 bytes each."""

QUICK: Final = 0.001
"""Seconds: while a commit takes less than this, it is not handed to a thread. The hop costs 0.15 ms on an idle machine and
more on a busy one; a disk that makes everybody wait takes longer than this."""

QUICK_SIZE: Final = 64 * KIB
"""Longest transaction that counts as quick."""

_VOLUME: Final = b"volume"
_FLOOR: Final = b"floor"
_APPLIED: Final = b"applied"
_WAL: Final = b"wal"
_CHECK_1: Final = b"fsdecloud state 1"
_CHECK: Final = b"fsdecloud state 2"
_ID_SIZE: Final = 32
_BATCH: Final = 1024
"""Index rows read within one transaction, so that a slow consumer pins no old pages."""

log = logging.getLogger(__name__)


class _Record(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One commit as the log holds it."""

    rows: tuple[bytes, ...]
    staged: tuple[tuple[EntryId, Location], ...] = ()
    unstaged: tuple[EntryId, ...] = ()
    meta: tuple[tuple[str, bytes], ...] = ()
    floor: int = 0
    """Rows up to this sequence number are void."""


@dataclass(frozen=True, slots=True)
class StateStatistics:
    """Counts since the store was opened, and what it holds."""

    last_sequence: int
    log_bytes: int
    staged_entries: int
    commits: int
    checkpoints: int
    slowest_commit: float
    """Seconds."""
    file_bytes: int


class StateStore:
    """The driver's state of one volume."""

    def __init__(
        self,
        path: Path,
        at_rest_key: bytes,
        volume_id: VolumeId,
        *,
        salt_source: Callable[[int], bytes] = os.urandom,
        map_size: int = STATE_MAP_SIZE,
        disk: Disk = os,
    ) -> None:
        """Open the store in directory `path`, made if missing. `salt_source(32)` returns fresh random bytes.

        Raises StoreCorrupt when it is damaged, of another volume or under another key, and what `open_environment` does.
        """
        self._key = at_rest_key
        self._salt = salt_source
        self._path = path
        self._lock = threading.Lock()
        self._commits = 0
        self._checkpoints = 0
        self._slowest = 0.0
        self._duration = 0.0
        self._checkpointed_floor = 0
        self._items_due, self._size_due = CHECKPOINT_ITEMS, CHECKPOINT_BYTES
        self._staged_changes: dict[EntryId, Location | None] = {}
        """What the log holds and the index not yet; None removes."""
        self._meta_changes: dict[str, bytes] = {}
        self._env = open_environment(path, map_size, 4)
        wal: Wal | None = None
        try:
            self._volume_db = self._env.database(b"volume")
            self._staged_db = self._env.database(b"staged")
            self._meta_db = self._env.database(b"meta")
            is_old = self._bind(volume_id)
            self._floor, self._applied = self._number(_FLOOR), self._number(_APPLIED)
            self._last_sequence = max(self._floor, self._applied)
            if is_old:
                self._remove_log()  # of a migration that did not end
            self._wal = wal = Wal(path, at_rest_key, salt_source=salt_source, disk=disk)
            if is_old:
                self._migrate(volume_id)
            else:
                self._recover()
        except BaseException:  # interrupted or failed, nobody else would close them
            if wal is not None:
                wal.close()
            self._env.close()
            raise

    # ---- writing ---------------------------------------------------------------------------------------------------
    def commit(
        self,
        rows: Sequence[bytes],
        *,
        staged: Iterable[tuple[EntryId, Location]] = (),
        unstaged: Iterable[EntryId] = (),
        meta: Mapping[str, bytes] | None = None,
        truncate_before: int | None = None,
    ) -> int:
        """Write all of this or nothing, durably; returns the commit's sequence number.

        `staged` adds to the index, then `unstaged` removes; rows of commits numbered below `truncate_before` leave the
        journal. Raises StoreFull, StoreError; nothing is then acknowledged, and the same call may be repeated. ValueError
        for a name in `meta` that LMDB would not take as a key (fault 41): the log would have it and no checkpoint could.
        """
        if any(not 0 < len(name.encode()) <= KEY_MAX for name in meta or ()):
            raise ValueError(f"a name in `meta` has 1 to {KEY_MAX} bytes")
        with self._lock:
            sequence = self._last_sequence + 1
            floor = self._floor
            if truncate_before is not None:
                floor = max(floor, min(truncate_before, sequence + 1) - 1)
            record = _Record(tuple(rows), tuple(staged), tuple(unstaged), tuple((meta or {}).items()), floor)
            payload = codec.encode(record)
            started = time.monotonic()
            self._wal.append(sequence, payload)
            taken = time.monotonic() - started
            # A single slow one ends the quick ones for a while; a run of quick ones brings them back.
            self._duration = max(taken, 0.8 * self._duration + 0.2 * taken)
            self._slowest = max(self._slowest, taken)
            self._last_sequence = sequence
            self._commits += 1
            self._note(record)
            if truncate_before is not None or self._is_due():
                try:
                    self._checkpoint()
                except StoreError as exc:  # the commit itself is durable; the log keeps what the tables lack
                    self._items_due = len(self._staged_changes) + CHECKPOINT_ITEMS
                    self._size_due = self._wal.size + CHECKPOINT_BYTES
                    log.warning("the journal is not checkpointed yet: %s", exc)
        return sequence

    def is_quick(self, size: int) -> bool:
        """Tell whether a commit of about `size` bytes will probably take less time than a thread hop."""
        return size < QUICK_SIZE and self._duration < QUICK and self._wal.has_room and not self._is_due()

    @property
    def wants_preparation(self) -> bool:
        """Whether `prepare` should be called in a worker thread."""
        return self._wal.wants_spare

    def prepare(self) -> None:
        """Make room for commits to come, beside those that go on. Raises StoreFull, StoreError."""
        self._wal.prepare()

    def checkpoint(self) -> None:
        """Bring the tables up to date and let go of the log that nothing needs. Raises StoreFull, StoreError."""
        with self._lock:
            self._checkpoint()

    # ---- reading ---------------------------------------------------------------------------------------------------
    @property
    def last_sequence(self) -> int:
        """Number of the last commit, 0 before the first."""
        return self._last_sequence

    def replay(self) -> Iterator[tuple[int, list[bytes]]]:
        """Give (sequence, rows) of every commit in the journal that has rows, ascending.

        Raises StoreCorrupt at a commit that is missing, incomplete or does not open under the key.
        """
        for sequence, record in self._records(self._floor + 1):
            if sequence > self._floor and record.rows:
                yield sequence, list(record.rows)

    def meta(self, name: str) -> bytes | None:
        """Return a named value. Raises StoreCorrupt when it does not open under the key."""
        if name in self._meta_changes:
            return self._meta_changes[name]
        with self._env.read() as txn:
            value = txn.get(name.encode(), db=self._meta_db)
        return None if value is None else self._open(b"meta " + name.encode(), value)

    def staged(self) -> Iterator[tuple[EntryId, Location]]:
        """Give every entry in the index, by id. Raises StoreCorrupt on a row that makes no sense."""
        with self._lock:  # what the index lacks is not written into it for this: a full disk must not be in the way
            changes = sorted(self._staged_changes.items())
        changed = dict(changes)
        merged = heapq.merge(
            (item for item in self._indexed() if item[0] not in changed),
            ((entry, location) for entry, location in changes if location is not None),
            key=itemgetter(0),
        )
        yield from merged

    def _indexed(self) -> Iterator[tuple[EntryId, Location]]:
        start: bytes | None = b""
        while start is not None:
            batch: list[tuple[bytes, bytes]] = []
            with self._env.read() as txn, txn.cursor(self._staged_db) as cursor:
                if cursor.set_range(start):
                    for key, value in cursor:
                        batch.append((key, value))
                        if len(batch) == _BATCH:
                            break
            for key, value in batch:
                try:
                    location = codec.decode(value, Location)
                except MalformedError as exc:
                    raise StoreCorrupt(f"{self._path}: the index of staged entries is damaged: {exc}") from exc
                if len(key) != _ID_SIZE:
                    raise StoreCorrupt(f"{self._path}: the index of staged entries has a key of {len(key)} bytes")
                yield EntryId(key), location
            start = batch[-1][0] + b"\0" if len(batch) == _BATCH else None

    def statistics(self) -> StateStatistics:
        """Return what it holds and did."""
        with self._env.read() as txn:
            staged = txn.stat(self._staged_db)["entries"]
        return StateStatistics(
            self._last_sequence,
            self._wal.size,
            staged,
            self._commits,
            self._checkpoints,
            self._slowest,
            self._env.used_bytes(),
        )

    def close(self) -> None:
        """Close the store; everything committed is durable already. A last checkpoint lets damage be told from a crash."""
        try:
            if self._last_sequence > self._applied:
                self.checkpoint()
        except StoreError as exc:
            log.warning("the journal is not checkpointed: %s", exc)
        finally:
            self._wal.close()
            self._env.close()

    def __enter__(self) -> StateStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- log and tables --------------------------------------------------------------------------------------------
    def _note(self, record: _Record) -> None:
        """Take a record's changes into memory."""
        self._staged_changes.update(record.staged)
        self._staged_changes.update(dict.fromkeys(record.unstaged))
        self._meta_changes.update(record.meta)
        self._floor = max(self._floor, record.floor)

    def _is_due(self) -> bool:
        """Whether a checkpoint would make memory or disk smaller."""
        if len(self._staged_changes) > self._items_due:
            return True
        return self._wal.size > self._size_due and self._floor > self._checkpointed_floor

    def _checkpoint(self) -> None:
        metas = [(name, self._seal(b"meta " + name.encode(), value)) for name, value in self._meta_changes.items()]
        with self._env.write() as txn:
            for entry, location in self._staged_changes.items():
                if location is None:
                    txn.delete(entry, db=self._staged_db)
                else:
                    txn.put(entry, codec.encode(location), db=self._staged_db)
            for name, value in metas:
                txn.put(name.encode(), value, db=self._meta_db)
            self._put_numbers(txn)
        self._applied = self._last_sequence
        self._checkpointed_floor = self._floor
        self._items_due, self._size_due = CHECKPOINT_ITEMS, CHECKPOINT_BYTES
        self._staged_changes.clear()
        self._meta_changes.clear()
        self._checkpoints += 1
        self._wal.drop_before(min(self._floor, self._applied) + 1)

    def _put_numbers(self, txn: Transaction) -> None:
        for name, number in ((_FLOOR, self._floor), (_APPLIED, self._last_sequence), (_WAL, self._wal.last_file)):
            txn.put(name, number.to_bytes(8, "big"), db=self._volume_db)

    def _number(self, name: bytes) -> int:
        with self._env.read() as txn:
            value = txn.get(name, b"", db=self._volume_db)
        if len(value) not in (0, 8):
            raise StoreCorrupt(f"{self._path}: the journal's numbers are damaged")
        return int.from_bytes(value, "big")

    def _recover(self) -> None:
        """Take in what the log holds and the tables do not."""
        if self._wal.last_file < self._number(_WAL):
            raise StoreCorrupt(f"{self._path}: the journal file {self._number(_WAL)} is missing or damaged")
        self._checkpointed_floor = self._floor
        last = 0
        for sequence, record in self._records(min(self._floor, self._applied) + 1):
            last = sequence
            if sequence > self._applied:
                self._note(record)
        if self._applied > self._floor and last < self._applied:
            raise StoreCorrupt(f"{self._path}: journal transaction {self._applied} is missing or damaged")
        self._last_sequence = max(self._last_sequence, last)
        self._wal.begin_file()

    def _records(self, start: int) -> Iterator[tuple[int, _Record]]:
        for sequence, payload in self._wal.read(start):
            try:
                yield sequence, codec.decode(payload, _Record)
            except MalformedError as exc:
                raise StoreCorrupt(f"{self._path}: journal transaction {sequence} makes no sense: {exc}") from exc

    # ---- whose, and of which format ----------------------------------------------------------------------------------
    def _bind(self, volume_id: VolumeId) -> bool:
        """Note whose state this is, or check it; return whether it has the first format."""
        with self._env.read() as txn:
            found = txn.get(_VOLUME, db=self._volume_db)
        if found is None:
            self._remove_log()  # nothing was acknowledged before this row
            with self._env.write() as txn:
                txn.put(_VOLUME, volume_id + self._seal(_VOLUME + volume_id, _CHECK), db=self._volume_db)
            return False
        if found[:_ID_SIZE] != volume_id:
            raise StoreCorrupt(
                f"{self._path} is the state of volume {found[:8].hex()}, not of {volume_id[:8].hex()}: it was copied or"
                " renamed; move it away"
            )
        check = self._open(_VOLUME + volume_id, found[_ID_SIZE:])
        if check not in (_CHECK, _CHECK_1):
            raise StoreCorrupt(f"{self._path} has a format that this release does not know")
        return check == _CHECK_1

    def _migrate(self, volume_id: VolumeId) -> None:
        """Move the rows of the first format into the log. Until its last transaction the table alone counts."""
        journal_db = self._env.database(b"journal")
        last = self._last_sequence
        with self._env.read() as txn, txn.cursor(journal_db) as cursor:
            parts: list[bytes] = []
            is_there = cursor.first()
            while is_there:
                sequence = int.from_bytes(cursor.key()[:8], "big")
                if not parts and last != self._last_sequence and sequence != last + 1:
                    raise StoreCorrupt(f"{self._path}: journal transaction {last + 1} is missing")
                parts.append(cursor.value())
                is_there = cursor.next()
                if not is_there or int.from_bytes(cursor.key()[:8], "big") != sequence:
                    rows = self._open_first_format(sequence, parts)
                    self._wal.append(sequence, codec.encode(_Record(tuple(rows))))
                    last, parts = sequence, []
        self._last_sequence = self._applied = last
        with self._env.write() as txn:
            with txn.cursor(journal_db) as cursor:
                is_there = cursor.first()
                while is_there:
                    is_there = cursor.delete() and bool(cursor.key())
            txn.put(_VOLUME, volume_id + self._seal(_VOLUME + volume_id, _CHECK), db=self._volume_db)
            self._put_numbers(txn)
        self._checkpointed_floor = self._floor
        log.info("%s was brought to the format of this release", self._path)

    def _open_first_format(self, sequence: int, parts: Sequence[bytes]) -> list[bytes]:
        try:
            opened = open_rows(self._key, parts[0][:SALT_SIZE], sequence, [parts[0][SALT_SIZE:], *parts[1:]])
            return codec.decode(b"".join(opened), list[bytes])
        except (SealError, MalformedError) as exc:
            raise StoreCorrupt(f"{self._path}: the journal is damaged: {exc}") from exc

    def _remove_log(self) -> None:
        for path in self._path.glob("*.wal"):
            path.unlink()

    def _seal(self, table: bytes, value: bytes) -> bytes:
        """Seal one value under a salt of its own."""
        salt = self._salt(SALT_SIZE)
        return salt + seal_rows(self._key, salt, 0, [value], table=table)[0]

    def _open(self, table: bytes, value: bytes) -> bytes:
        try:
            return open_rows(self._key, value[:SALT_SIZE], 0, [value[SALT_SIZE:]], table=table)[0]
        except SealError as exc:
            raise StoreCorrupt(
                f"{self._path} does not open with this volume's key: it is damaged, or of a volume with another root secret"
            ) from exc
