"""The clean cache: sealed entries that peers hold as well, kept near for their next reader.

Opened and written by the driver alone; the agent only appends segments of prefix "fetched" beside ours. Blocking, thread-
safe; `get_small` and `has` are cheap enough for the event loop. Everything here may be deleted while no driver has it
open, and every value is verified by whoever reads it, so a stale index costs a fetch and nothing else.

    index/      LMDB: small-0 .. small-7   entry id -> sealed bytes, one database for each generation
                      large                entry id -> store, segment, offset, length
                      segment              store, segment, entry id -> nothing: what leaves with a segment
                      info                 b"generation" -> number of the current one
    segments/   "fetched" (appended by the agent), "kept" (staged segments that were stored, and hot entries)
    running     the boot in which the index was last open without a clean end

Entries up to SMALL_ENTRY are LMDB values. Generations make an approximate LRU without a write for each read: new values
go into the current one; when that is full the oldest is emptied whole, which LMDB does without fragmenting its free
list, and becomes the next, after what was read from it lately has been copied over. Segments are a ring: the oldest is
deleted whole, entries read lately are copied forward first.

The index is not synced: a killed process loses nothing, for the kernel has the pages. A system that crashed may have
written them in any order, so an index that was open in another boot is thrown away, unread.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

import msgspec

from fsdecloud import codec
from fsdecloud.config import make_private_dir, write_private_file
from fsdecloud.errors import MalformedError, StoreCorrupt, StoreError, StoreFull
from fsdecloud.limits import CACHE_MAP_SIZE, CACHE_SIZE, MIN_FREE, SEGMENT_SIZE, SMALL_ENTRY
from fsdecloud.store.environment import Database, Environment, Transaction, open_environment
from fsdecloud.store.segments import Location, SegmentStore
from fsdecloud.types import EntryId

log = logging.getLogger(__name__)

FETCHED: Final = "fetched"
KEPT: Final = "kept"

_GENERATIONS: Final = 8
"""An eighth of the small entries leaves at once; a look-up that misses asks this many databases."""

_SMALL_SHARE: Final = 2
"""Small entries get at most one part in this many of the cache."""

_HOT_SHARE: Final = 4
"""At most one part in this many of what is dropped is copied forward, so that dropping always frees space."""

_HOT_MAX: Final = 16384
"""Ids of lately read entries that are remembered: about 2 MiB."""

_FETCHED_KEPT: Final = 2
"""The agent's newest segments are never dropped: it still appends to one, and its answers in flight name them."""

_GENERATION: Final = b"generation"


class _Row(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where a large entry lies."""

    store: str
    segment: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """What it holds, and counts since it was opened."""

    small_entries: int
    small_bytes: int
    large_entries: int
    segment_bytes: int
    index_bytes: int
    """Size of the LMDB file, free pages included."""
    hits: int
    misses: int
    evicted_bytes: int


class CacheStore:
    """The cache in one directory."""

    def __init__(
        self,
        path: Path,
        *,
        limit: int = CACHE_SIZE,
        boot: Callable[[], str] | None = None,
        map_size: int = CACHE_MAP_SIZE,
        segment_size: int = SEGMENT_SIZE,
    ) -> None:
        """Open the cache in directory `path`, made if missing; a damaged one is emptied.

        `limit` sizes the generations until `evict` names another. `boot` gives the id of the system's boot. Raises
        StoreError when the disk does not let it be made or it is open already.
        """
        self.path = path
        self._limit = limit
        self._lock = threading.Lock()
        self._hot_small: set[EntryId] = set()
        self._hot_large: set[EntryId] = set()
        self._hits = self._misses = self._evicted = 0
        self._is_broken = False
        self._is_outgrown = False
        self._index = path / "index"
        self._running = path / "running"
        self._map_size = map_size
        self.segment_directory = path / "segments"
        """Where the agent appends its segments."""
        try:
            make_private_dir(path)
            boot_id = (boot or _read_boot)()
            if self._was_open_in_another_boot(boot_id):
                log.info("the cache was in use when the system stopped; starting with an empty one")
                self._empty()
            write_private_file(self._running, boot_id.encode())
        except OSError as exc:
            raise StoreError(f"cannot use the cache {path}: {exc.strerror or exc}") from exc
        try:
            self._env = self._open_index()
        except StoreCorrupt as exc:
            log.warning("starting with an empty cache: %s", exc)
            self._empty()
            self._env = self._open_index()
        self.kept = SegmentStore(self.segment_directory, KEPT, segment_size=segment_size)
        self.fetched = SegmentStore(self.segment_directory, FETCHED, create=False)

    # ---- reading ---------------------------------------------------------------------------------------------------

    def get_small(self, entry: EntryId) -> bytes | None:
        """Return the sealed bytes of an entry of at most SMALL_ENTRY bytes, None if it is not here or larger."""
        data = self._read_small(entry)
        if data is None:
            found = self.locate(entry)
            if found is not None and found[1].length <= SMALL_ENTRY:
                data = self._read_large(entry, *found)
        self._count(data is not None)
        return data

    def read(self, entry: EntryId) -> bytes | None:
        """Return an entry's sealed bytes, None if they are not here. What cannot be read leaves the index."""
        data = self._read_small(entry)
        if data is None:
            found = self.locate(entry)
            if found is not None:
                data = self._read_large(entry, *found)
        self._count(data is not None)
        return data

    def read_into(self, entry: EntryId, buffer: memoryview, *, wait: bool) -> memoryview | None:
        """Return a large entry's sealed bytes, read into `buffer`, None if they are not here.

        Without `wait`, only if that needs no disk.
        """
        found = self.locate(entry)
        if found is None:
            return None
        data = (self.fetched if found[0] == FETCHED else self.kept).read_into(found[1], buffer, wait=wait)
        if data is not None and len(self._hot_large) < _HOT_MAX:
            self._hot_large.add(entry)
        return data

    def will_need(self, entry: EntryId) -> None:
        """Have the disk begin reading a large entry, if it is here."""
        found = self.locate(entry)
        if found is not None:
            (self.fetched if found[0] == FETCHED else self.kept).will_need(found[1])

    def locate(self, entry: EntryId) -> tuple[str, Location] | None:
        """Return in which store ("fetched" or "kept") and where the entry lies in a segment, None if in none."""
        if self._is_broken:
            return None
        try:
            with self._env.read() as txn:
                value = txn.get(entry, db=self._large)
        except StoreError as exc:
            self._note(exc)
            return None
        return _decode(value) if value is not None else None

    def has(self, entry: EntryId) -> bool:
        """Say whether the index knows the entry."""
        if self._is_broken:
            return False
        try:
            with self._env.read() as txn:
                if txn.get(entry, db=self._large) is not None:
                    return True
                return any(txn.get(entry, db=database) is not None for database in self._small)
        except StoreError as exc:
            self._note(exc)
            return False

    # ---- writing ---------------------------------------------------------------------------------------------------

    def put_small(self, entries: Sequence[tuple[EntryId, bytes]]) -> None:
        """Keep sealed entries of at most SMALL_ENTRY bytes, as one transaction. Raises StoreFull, StoreError."""

        def write(txn: Transaction) -> None:
            current = self._rotate_if_full(txn)
            for entry, data in entries:
                txn.put(entry, data, db=current)

        self._write(write)

    def put_located(self, entries: Iterable[tuple[EntryId, str, Location]]) -> None:
        """Index entries that lie in segments: id, store ("fetched" or "kept"), place. Raises StoreFull, StoreError."""
        rows = list(entries)

        def write(txn: Transaction) -> None:
            for entry, store, location in rows:
                self._index_large(txn, entry, store, location)

        self._write(write)

    def adopt(self, path: Path, entries: Sequence[tuple[EntryId, Location]]) -> None:
        """Take in a staged segment, as a second name of its file, and index what lies in it.

        Only of `location` are offset and length used. The owner removes its name afterwards. Raises OSError when the file
        cannot be linked (EXDEV: another disk), StoreError when the index cannot be written; the segment is then in the
        cache, unindexed, and leaves with time.
        """
        number = self.kept.adopt(path)
        self.put_located((entry, KEPT, Location(number, place.offset, place.length)) for entry, place in entries)

    def remove(self, entry: EntryId) -> None:
        """Forget an entry, because it did not verify. Never raises: a cache that cannot forget stops answering."""

        def write(txn: Transaction) -> None:
            for database in self._small:
                txn.delete(entry, db=database)
            value = txn.get(entry, db=self._large)
            if value is not None:
                txn.delete(entry, db=self._large)
                found = _decode(value)
                if found is not None:
                    txn.delete(_segment_key(found[0], found[1].segment) + entry, db=self._segment)

        try:
            self._write(write)
        except StoreError as exc:
            log.warning("the cache gives up until the next start: %s", exc)
            self._is_broken = True

    # ---- size ------------------------------------------------------------------------------------------------------

    @property
    def used_bytes(self) -> int:
        """Bytes on disk: the index file and all segments."""
        return self._env.used_bytes() + sum(self.kept.sizes().values()) + sum(self.fetched.sizes().values())

    def evict(self, limit: int, *, keep_segments: Collection[tuple[str, int]] = ()) -> int:
        """Drop the oldest segments, and small entries over their share, until at most `limit` bytes are used and
        MIN_FREE is free on the disk; return the bytes freed or made free for new entries.

        The agent's newest two segments and `keep_segments` (store, number) stay. An index file that alone is over the
        limit cannot shrink while it is open; the next start then begins with an empty cache. Raises StoreError.
        """
        with self._lock:
            self._limit = limit
        return self._make_room(limit, keep_segments)

    def make_room(self) -> int:
        """Do what `evict` does, to the limit that it was given last. Raises StoreError."""
        return self._make_room(self._limit)

    def statistics(self) -> CacheStatistics:
        """Return what it holds and did."""
        with self._env.read() as txn:
            small = sum(txn.stat(database)["entries"] for database in self._small)
            small_bytes = self._small_bytes(txn)
            large = txn.stat(self._large)["entries"]
        segments = sum(self.kept.sizes().values()) + sum(self.fetched.sizes().values())
        return CacheStatistics(
            small, small_bytes, large, segments, self._env.used_bytes(), self._hits, self._misses, self._evicted
        )

    def close(self) -> None:
        """Close it; the next open finds everything, unless the index was damaged or outgrew the limit."""
        try:
            self._env.sync()
            if not self._is_broken and not self._is_outgrown:
                self._running.unlink(missing_ok=True)
            elif self._running.exists():  # else somebody deleted the cache, and it is not made anew here
                write_private_file(self._running, b"damaged")
        except (StoreError, OSError) as exc:
            log.info("the cache is not closed cleanly: %s", exc)
        self._env.close()
        self.kept.close()
        self.fetched.close()

    def __enter__(self) -> CacheStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- inside: opening -------------------------------------------------------------------------------------------

    def _was_open_in_another_boot(self, boot: str) -> bool:
        try:
            found = self._running.read_bytes()[:128]
        except FileNotFoundError:
            return False
        return not boot or found != boot.encode()

    def _empty(self) -> None:
        """Delete index and segments. The index goes first: without it the segments are only space."""
        shutil.rmtree(self._index, ignore_errors=True)
        shutil.rmtree(self.segment_directory, ignore_errors=True)

    def _open_index(self) -> Environment:
        env = open_environment(self._index, self._map_size, _GENERATIONS + 3, sync=False)
        try:
            self._small = [env.database(b"small-%d" % number) for number in range(_GENERATIONS)]
            self._large = env.database(b"large")
            self._segment = env.database(b"segment")
            self._info = env.database(b"info")
            with env.read() as txn:
                self._generation = int.from_bytes(txn.get(_GENERATION, b"", db=self._info)[:8], "big")
        except BaseException:  # interrupted or failed, nobody else would close it
            env.close()
            raise
        return env

    # ---- inside: reading -------------------------------------------------------------------------------------------

    def _read_small(self, entry: EntryId) -> bytes | None:
        if self._is_broken:
            return None
        generation = self._generation
        try:
            with self._env.read() as txn:
                for age in range(_GENERATIONS):
                    data = txn.get(entry, db=self._small[(generation - age) % _GENERATIONS])
                    if data is not None:
                        if age >= _GENERATIONS // 2 and len(self._hot_small) < _HOT_MAX:
                            self._hot_small.add(entry)
                        return data
        except StoreError as exc:
            self._note(exc)
        return None

    def _read_large(self, entry: EntryId, store: str, location: Location) -> bytes | None:
        try:
            data = (self.fetched if store == FETCHED else self.kept).read(location)
        except StoreError as exc:
            log.debug("cached entry lost: %s", exc)
            self.remove(entry)
            return None
        if len(self._hot_large) < _HOT_MAX:
            self._hot_large.add(entry)
        return data

    def _count(self, is_hit: bool) -> None:
        if is_hit:
            self._hits += 1
        else:
            self._misses += 1

    def _note(self, exc: StoreError) -> None:
        """A look-up failed: a damaged index answers nothing until the next start empties it."""
        if isinstance(exc, StoreCorrupt):
            log.warning("the cache gives up until the next start: %s", exc)
            self._is_broken = True

    # ---- inside: writing; the lock is held within ------------------------------------------------------------------

    def _write(self, work: Callable[[Transaction], None]) -> None:
        """Do `work` in one transaction; when the disk or the map is full, once more after making room (fault 35)."""
        try:
            self._write_once(work)
        except StoreFull:
            self._make_room(self.used_bytes // 2)
            # LMDB reuses pages that a transaction freed in the second one after it, so one goes between.
            self._write_once(self._put_generation)
            self._write_once(work)

    def _write_once(self, work: Callable[[Transaction], None]) -> None:
        """Do `work` in one transaction."""
        with self._lock:
            if self._is_broken:
                return
            generation = self._generation
            try:
                with self._env.write() as txn:
                    work(txn)
            except BaseException as exc:  # whatever it is, memory must agree with what was undone
                self._generation = generation  # a rotation within was undone
                if isinstance(exc, StoreError):
                    self._note(exc)
                raise

    def _index_large(self, txn: Transaction, entry: EntryId, store: str, location: Location) -> None:
        old = txn.get(entry, db=self._large)
        if old is not None and (found := _decode(old)) is not None:
            txn.delete(_segment_key(found[0], found[1].segment) + entry, db=self._segment)
        row = _Row(store, location.segment, location.offset, location.length)
        txn.put(entry, codec.encode(row), db=self._large)
        txn.put(_segment_key(store, location.segment) + entry, b"", db=self._segment)

    # ---- inside: generations ---------------------------------------------------------------------------------------

    def _rotate_if_full(self, txn: Transaction) -> Database:
        """Return the database that new small entries go to."""
        current = self._small[self._generation % _GENERATIONS]
        if self._pages(txn, current) >= self._limit // _SMALL_SHARE // _GENERATIONS:
            self._rotate(txn)
        return self._small[self._generation % _GENERATIONS]

    def _rotate(self, txn: Transaction) -> None:
        """Begin the next generation in the database of the oldest, which is emptied but for what is hot."""
        self._generation += 1
        database = self._small[self._generation % _GENERATIONS]
        room = self._pages(txn, database) // _HOT_SHARE
        hot: list[tuple[EntryId, bytes]] = []
        for entry in list(self._hot_small):
            data = txn.get(entry, db=database)
            if data is not None:
                self._hot_small.discard(entry)
                if len(data) <= room:
                    room -= len(data)
                    hot.append((entry, data))
        txn.drop(database, delete=False)
        for entry, data in hot:
            txn.put(entry, data, db=database)
        if len(self._hot_small) >= _HOT_MAX:
            self._hot_small.clear()
        self._put_generation(txn)

    def _put_generation(self, txn: Transaction) -> None:
        txn.put(_GENERATION, self._generation.to_bytes(8, "big"), db=self._info)

    def _small_bytes(self, txn: Transaction) -> int:
        return sum(self._pages(txn, database) for database in self._small)

    @staticmethod
    def _pages(txn: Transaction, database: Database) -> int:
        """Return the bytes of a database's pages."""
        found = txn.stat(database)
        return (found["branch_pages"] + found["leaf_pages"] + found["overflow_pages"]) * found["psize"]

    # ---- inside: room ----------------------------------------------------------------------------------------------

    def _make_room(self, limit: int, keep_segments: Collection[tuple[str, int]] = ()) -> int:
        """Do what `evict` says, but for the size of the generations to come."""
        freed = 0

        def shrink_small(txn: Transaction) -> None:
            nonlocal freed
            for _ in range(_GENERATIONS):
                before = self._small_bytes(txn)
                if before <= limit // _SMALL_SHARE:
                    break
                self._rotate(txn)
                freed += before - self._small_bytes(txn)

        self._write_once(shrink_small)
        with self._lock:
            index = self._env.used_bytes()
            self._is_outgrown = index > self._limit
            segments = self._segments_by_age()
            used = index + sum(size for *_, size in segments)
            excess = max(used - limit, MIN_FREE - self._free_bytes())
            newest = sorted(number for store, number, _ in segments if store == FETCHED)[-_FETCHED_KEPT:]
            for store, number, size in segments:
                if excess <= 0 or self._is_broken:
                    break
                if (store == FETCHED and number in newest) or (store, number) in keep_segments:
                    continue
                gained = size - self._drop_segment(store, number, size)
                freed += gained
                excess -= gained
            self._evicted += freed
        return freed

    # ---- inside: segments ------------------------------------------------------------------------------------------

    def _segments_by_age(self) -> list[tuple[str, int, int]]:
        """Return (store, number, bytes) of every segment, the one written to longest ago first."""
        found: list[tuple[int, str, int, int]] = []
        for name, store in ((FETCHED, self.fetched), (KEPT, self.kept)):
            for number in store.sizes():
                try:
                    status = store.path(number).stat()
                except FileNotFoundError:
                    continue
                found.append((status.st_mtime_ns, name, number, status.st_size))
        return [(name, number, size) for _, name, number, size in sorted(found)]

    def _drop_segment(self, store: str, number: int, size: int) -> int:
        """Delete a segment and its rows; returns the bytes of hot entries that were copied forward."""
        prefix = _segment_key(store, number)
        source = self.fetched if store == FETCHED else self.kept
        rows: list[tuple[EntryId, Location]] = []
        with self._env.read() as txn, txn.cursor(self._segment) as cursor:
            if cursor.set_range(prefix):
                for key in cursor.iternext(keys=True, values=False):
                    if not key.startswith(prefix):
                        break
                    entry = EntryId(key[len(prefix) :])
                    found = _decode(txn.get(entry, b"", db=self._large))
                    if found is not None and found[0] == store and found[1].segment == number:
                        rows.append((entry, found[1]))
                    else:
                        rows.append((entry, Location(0, 0, 0)))  # the entry lies elsewhere by now
        hot, copied = self._copy_hot(source, rows, size // _HOT_SHARE)
        with self._env.write() as txn:
            for entry, location in rows:
                txn.delete(prefix + entry, db=self._segment)
                if location.segment and entry not in hot:
                    txn.delete(entry, db=self._large)
            for entry, place in hot.items():
                self._index_large(txn, entry, KEPT, place)
        source.remove(number)
        return copied

    def _copy_hot(
        self, source: SegmentStore, rows: Sequence[tuple[EntryId, Location]], room: int
    ) -> tuple[dict[EntryId, Location], int]:
        """Append what was read lately to our own segments, at most `room` bytes. A full disk copies nothing."""
        hot: dict[EntryId, Location] = {}
        copied = 0
        for entry, location in rows:
            if entry not in self._hot_large:
                continue
            self._hot_large.discard(entry)
            if location.segment and copied + location.length <= room:
                try:
                    hot[entry] = self.kept.append(source.read(location))
                except StoreError as exc:
                    log.debug("a hot entry is not copied: %s", exc)
                    continue
                copied += location.length
        if len(self._hot_large) >= _HOT_MAX:
            self._hot_large.clear()
        return hot, copied

    def _free_bytes(self) -> int:
        try:
            status = os.statvfs(self.path)
        except OSError:
            return MIN_FREE  # the directory is gone; nothing to make room for
        return status.f_bavail * status.f_frsize


def _segment_key(store: str, number: int) -> bytes:
    return store[:1].encode() + number.to_bytes(8, "big")


def _decode(value: bytes) -> tuple[str, Location] | None:
    """Return a row of the index, None for one that makes no sense: a miss."""
    try:
        row = codec.decode(value, _Row)
    except MalformedError:
        return None
    if row.store not in (FETCHED, KEPT) or not 0 < row.segment < 1 << 63:
        return None
    return row.store, Location(row.segment, row.offset, row.length)


def _read_boot() -> str:
    """Return an id of the running kernel's boot, empty where there is none (random(4))."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
