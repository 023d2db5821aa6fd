"""A peer's shards: segments for the bytes, an LMDB index from id to place.

Blocking; one writer thread, any number of reading threads. `put_many` returns when its shards are durable: bytes first
(fdatasync), then the index in one transaction, so that an index row always names bytes that are there. What a crash leaves
in a segment without a row is nobody's: a segment without any row is removed when the store is opened, and the tail of
another counts against the quota. Shards are never changed; nothing is deleted without a grant of the owner, which later
releases bring.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

import blake3

from fsdecloud.errors import MalformedError, StoreCorrupt, StoreError
from fsdecloud.limits import MESSAGE_MAX, MIN_FREE, SHARD_MAP_SIZE
from fsdecloud.store.environment import Transaction, open_environment
from fsdecloud.store.segments import Disk, Location, SegmentStore
from fsdecloud.types import ShardId

_ROW: Final = struct.Struct(">QQI")
"""Segment, offset, length."""

_COUNT: Final = struct.Struct(">QQ")
"""Of one segment, or of all (key b"total"): live shards, live bytes."""

_TOTAL: Final = b"total"

ROW_COST: Final = 256
"""Bytes of index reckoned for each shard when room is checked."""

Data = bytes | bytearray | memoryview


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
        try:
            self._rows = self._env.database(b"shards")
            self._counts = self._env.database(b"segments")
            self._remove_orphans()
            self._on_disk = sum(self._segments.sizes().values())
        except BaseException:
            self.close()
            raise

    # ---- writing: one thread ---------------------------------------------------------------------------------------
    def put_many(self, shards: Sequence[tuple[ShardId, Data]]) -> list[str]:
        """Store shards; for each return "" when it is durable, else why it was not taken.

        A shard that is there already is durable at once. Raises StoreFull when the disk is full after all, StoreError when it
        fails; then nothing of this call is promised.
        """
        reasons = [""] * len(shards)
        new: dict[ShardId, Data] = {}
        room = self.free_bytes()
        for i, (shard, data) in enumerate(shards):
            size = memoryview(data).nbytes
            if shard in new:
                continue
            if size > MESSAGE_MAX or blake3.blake3(data).digest() != shard:
                reasons[i] = "the bytes are not what their id says"
            elif not self._is_intact(shard, data):
                if size + ROW_COST > room:
                    reasons[i] = "full"
                else:
                    room -= size + ROW_COST
                    new[shard] = data
        if new:
            self._write(new)
        return reasons

    def _write(self, new: dict[ShardId, Data]) -> None:
        try:
            places = self._segments.append_many(list(new.values()))
            self._segments.sync()
        except StoreError:
            self._on_disk = sum(self._segments.sizes().values())
            raise
        self._on_disk += sum(place.length for place in places)
        with self._env.write() as txn:
            for shard, place in zip(new, places, strict=True):
                old = txn.get(shard, db=self._rows)
                if old is not None:  # its bytes were damaged: this is the repair
                    segment, _, length = _ROW.unpack(old)
                    self._count(txn, segment, -1, -length)
                txn.put(shard, _ROW.pack(place.segment, place.offset, place.length), db=self._rows)
                self._count(txn, place.segment, 1, place.length)

    def _count(self, txn: Transaction, segment: int, shards: int, size: int) -> None:
        for key in (segment.to_bytes(8, "big"), _TOTAL):
            count, total = _COUNT.unpack(txn.get(key, _COUNT.pack(0, 0), db=self._counts))
            txn.put(key, _COUNT.pack(count + shards, total + size), db=self._counts)

    def _is_intact(self, shard: ShardId, data: Data) -> bool:
        try:
            return self.get(shard) == data
        except (StoreCorrupt, KeyError):
            return False

    # ---- reading: any thread ---------------------------------------------------------------------------------------
    def get(self, shard: ShardId, offset: int = 0, length: int = 0) -> bytes:
        """Return `length` bytes of the shard from `offset`, all for 0.

        Raises KeyError when it is not here, MalformedError when it is shorter, StoreCorrupt when its segment is damaged.
        """
        place = self.locate(shard)
        if place is None:
            raise KeyError(shard)
        if offset or length:
            if offset + length > place.length:
                raise MalformedError(f"the shard has {place.length} bytes")
            place = Location(place.segment, place.offset + offset, length or place.length - offset)
        return self._segments.read(place)

    def locate(self, shard: ShardId) -> Location | None:
        """Return where the shard lies, None if it is not here."""
        with self._env.read() as txn:
            row = txn.get(shard, db=self._rows)
        return None if row is None else Location(*_ROW.unpack(row))

    def has_many(self, shards: Sequence[bytes]) -> tuple[bool, ...]:
        """Say for each shard whether it is here."""
        with self._env.read() as txn:
            return tuple(txn.get(shard, db=self._rows) is not None for shard in shards)

    def counts(self) -> tuple[int, int]:
        """Return how many shards there are, and their bytes."""
        with self._env.read() as txn:
            count, size = _COUNT.unpack(txn.get(_TOTAL, _COUNT.pack(0, 0), db=self._counts))
        return int(count), int(size)

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
