"""What a volume's driver must not forget: its journal, the index of its staged entries, and a few named values.

One LMDB environment, written by the driver alone, blocking, thread-safe; `commit` is one durable transaction and there is
no other way to write. Not here: what rows mean (`driver`), where the staged bytes lie (`store.segments`: sync them before
the commit that names them), how rows are sealed (`crypto.rows`).

    volume    b"volume" -> volume id, salt, sealed check value     which volume and key this is
              b"floor"  -> last sequence number that was truncated
    journal   sequence (8 bytes, big-endian), part (4)  ->  part 0: salt, sealed part; others: sealed part
    staged    entry id -> Location
    meta      name -> salt, sealed value

The rows of one transaction are encoded as one list, cut into parts of at most PART_SIZE (large values would fragment
LMDB's free list) and sealed under a key of that transaction: none can be changed, moved, dropped or repeated unnoticed.
Sequence numbers have no gaps; they grow for ever, also over a journal that was emptied. Entry ids and locations stay in
the clear: they are hashes of sealed bytes and file offsets, which the staged segments beside them show anyway.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

from fsdecloud import codec
from fsdecloud.crypto.rows import OVERHEAD, SALT_SIZE, open_rows, seal_rows
from fsdecloud.errors import MalformedError, SealError, StoreCorrupt
from fsdecloud.limits import KIB, STATE_MAP_SIZE
from fsdecloud.store.environment import Transaction, open_environment
from fsdecloud.store.segments import Location
from fsdecloud.types import EntryId, VolumeId

PART_SIZE: Final = 256 * KIB
"""Longest journal value."""

_VOLUME: Final = b"volume"
_FLOOR: Final = b"floor"
_CHECK: Final = b"fsdecloud state 1"
_ID_SIZE: Final = 32
_BATCH: Final = 1024
"""Index rows read within one transaction, so that a slow consumer pins no old pages."""


@dataclass(frozen=True, slots=True)
class StateStatistics:
    """Counts since the store was opened, and what it holds."""

    last_sequence: int
    journal_values: int
    staged_entries: int
    commits: int
    slowest_commit: float
    """Seconds."""
    file_bytes: int


class StateStore:
    """The driver's state environment of one volume."""

    def __init__(
        self,
        path: Path,
        at_rest_key: bytes,
        volume_id: VolumeId,
        *,
        salt_source: Callable[[int], bytes] = os.urandom,
        map_size: int = STATE_MAP_SIZE,
    ) -> None:
        """Open the environment in directory `path`, made if missing. `salt_source(32)` returns fresh random bytes.

        Raises StoreCorrupt when it is damaged, of another volume or under another key, and what `open_environment` does.
        """
        self._key = at_rest_key
        self._salt = salt_source
        self._path = path
        self._lock = threading.Lock()
        self._commits = 0
        self._slowest = 0.0
        self._env = open_environment(path, map_size, 4)
        try:
            self._volume_db = self._env.database(b"volume")
            self._journal_db = self._env.database(b"journal")
            self._staged_db = self._env.database(b"staged")
            self._meta_db = self._env.database(b"meta")
            self._bind(volume_id)
            self._last_sequence = self._read_last_sequence()
        except BaseException:
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
        """Write all of this or nothing, durably; returns the sequence number of the rows.

        A commit without rows takes no number and returns the last one. `staged` adds to the index, then `unstaged` removes;
        transactions numbered below `truncate_before` leave the journal. Raises StoreFull, StoreError; nothing is then
        written, and the same call may be repeated.
        """
        parts = _split(codec.encode(list(rows))) if rows else []
        metas = [(name, self._seal(b"meta " + name.encode(), value)) for name, value in (meta or {}).items()]
        with self._lock:
            sequence = self._last_sequence + 1 if parts else self._last_sequence
            salt = self._salt(SALT_SIZE)
            sealed = seal_rows(self._key, salt, sequence, parts)
            started = time.monotonic()
            with self._env.write() as txn:
                for number, part in enumerate(sealed):
                    value = part if number else salt + part
                    if not txn.put(_journal_key(sequence, number), value, db=self._journal_db, append=True):
                        raise StoreCorrupt(f"{self._path}: the journal has a transaction after {sequence}")
                for entry, location in staged:
                    txn.put(entry, codec.encode(location), db=self._staged_db)
                for entry in unstaged:
                    txn.delete(entry, db=self._staged_db)
                for name, value in metas:
                    txn.put(name.encode(), value, db=self._meta_db)
                if truncate_before is not None:
                    self._truncate(txn, max(0, min(truncate_before, sequence + 1)))
            self._last_sequence = sequence
            self._commits += 1
            self._slowest = max(self._slowest, time.monotonic() - started)
        return sequence

    # ---- reading ---------------------------------------------------------------------------------------------------

    @property
    def last_sequence(self) -> int:
        """Number of the last transaction with rows, 0 before the first."""
        return self._last_sequence

    def replay(self) -> Iterator[tuple[int, list[bytes]]]:
        """Give (sequence, rows) of every transaction in the journal, ascending.

        Raises StoreCorrupt at a transaction that is missing, incomplete or does not open under the key.
        """
        expected: int | None = None
        following = 0
        while (found := self._next_transaction(following)) is not None:
            sequence, parts = found
            if expected is not None and sequence != expected:
                raise StoreCorrupt(f"{self._path}: journal transaction {expected} is missing")
            try:
                salt, first = parts[0][:SALT_SIZE], parts[0][SALT_SIZE:]
                opened = open_rows(self._key, salt, sequence, [first, *parts[1:]])
                rows = codec.decode(b"".join(opened), list[bytes])
            except (SealError, MalformedError) as exc:
                raise StoreCorrupt(f"{self._path}: the journal is damaged: {exc}") from exc
            yield sequence, rows
            expected = following = sequence + 1

    def meta(self, name: str) -> bytes | None:
        """Return a named value. Raises StoreCorrupt when it does not open under the key."""
        with self._env.read() as txn:
            value = txn.get(name.encode(), db=self._meta_db)
        return None if value is None else self._open(b"meta " + name.encode(), value)

    def staged(self) -> Iterator[tuple[EntryId, Location]]:
        """Give every entry in the index, by id. Raises StoreCorrupt on a row that makes no sense."""
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
            journal = txn.stat(self._journal_db)["entries"]
            staged = txn.stat(self._staged_db)["entries"]
        return StateStatistics(
            self._last_sequence, journal, staged, self._commits, self._slowest, self._env.used_bytes()
        )

    def close(self) -> None:
        """Close the environment; everything committed is durable already."""
        self._env.close()

    def __enter__(self) -> StateStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- inside ----------------------------------------------------------------------------------------------------

    def _bind(self, volume_id: VolumeId) -> None:
        """Note whose state this is, or check it."""
        with self._env.read() as txn:
            found = txn.get(_VOLUME, db=self._volume_db)
        if found is None:
            with self._env.write() as txn:
                txn.put(_VOLUME, volume_id + self._seal(_VOLUME + volume_id, _CHECK), db=self._volume_db)
            return
        if found[:_ID_SIZE] != volume_id:
            raise StoreCorrupt(
                f"{self._path} is the state of volume {found[:8].hex()}, not of {volume_id[:8].hex()}: it was copied or"
                " renamed; move it away"
            )
        if self._open(_VOLUME + volume_id, found[_ID_SIZE:]) != _CHECK:
            raise StoreCorrupt(f"{self._path} has a format that this release does not know")

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

    def _read_last_sequence(self) -> int:
        with self._env.read() as txn:
            floor = txn.get(_FLOOR, b"", db=self._volume_db)
            with txn.cursor(self._journal_db) as cursor:
                last = cursor.key() if cursor.last() else b""
        if len(floor) not in (0, 8) or len(last) not in (0, 12):
            raise StoreCorrupt(f"{self._path}: the journal's numbers are damaged")
        return max(int.from_bytes(floor, "big"), int.from_bytes(last[:8], "big"))

    def _next_transaction(self, start: int) -> tuple[int, list[bytes]] | None:
        """Return the first transaction numbered `start` or more, with its parts in order."""
        with self._env.read() as txn, txn.cursor(self._journal_db) as cursor:
            if not cursor.set_range(_journal_key(start, 0)):
                return None
            sequence = int.from_bytes(cursor.key()[:8], "big")
            parts: list[bytes] = []
            for key, value in cursor:
                if key[:8] != sequence.to_bytes(8, "big"):
                    break
                if key != _journal_key(sequence, len(parts)):
                    raise StoreCorrupt(f"{self._path}: part {len(parts)} of journal transaction {sequence} is missing")
                parts.append(value)
            return sequence, parts

    def _truncate(self, txn: Transaction, before: int) -> None:
        """Drop the transactions below `before` and remember the number, so that none is used twice."""
        limit = _journal_key(before, 0)
        with txn.cursor(self._journal_db) as cursor:
            is_there = cursor.first()
            while is_there and cursor.key() < limit:
                is_there = cursor.delete() and bool(cursor.key())
        floor = int.from_bytes(txn.get(_FLOOR, b"", db=self._volume_db), "big")
        if before - 1 > floor:
            txn.put(_FLOOR, (before - 1).to_bytes(8, "big"), db=self._volume_db)


def _journal_key(sequence: int, part: int) -> bytes:
    return sequence.to_bytes(8, "big") + part.to_bytes(4, "big")


def _split(payload: bytes) -> list[bytes]:
    """Cut a transaction so that each sealed part, with the salt, stays within PART_SIZE."""
    step = PART_SIZE - SALT_SIZE - OVERHEAD
    if len(payload) <= step:
        return [payload]
    return [payload[start : start + step] for start in range(0, len(payload), step)]
