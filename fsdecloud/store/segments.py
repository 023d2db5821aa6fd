"""Where bulk bytes lie on disk: numbered append-only files ("segments"), each record named by segment, offset and length.

Written by one process and one `SegmentStore` for each (directory, prefix); other processes open it with `create=False`
and only read. Blocking, thread-safe. Not here: which record is which (an LMDB environment indexes them), what the bytes
mean, and any check of them (every record is verified by its content id by whoever reads it).

Rules that the index relies on:

* A record's Location is returned only after all its bytes were accepted; a failed or short write leaves a tail that no
  Location names and that the next append overwrites.
* `append` alone promises nothing; after `sync` returns, every record appended before it was called survives power loss.
* After a failed fdatasync nobody knows what the disk holds and the kernel may not report it again ("fsyncgate"), so the
  store then refuses all further appends and syncs until it is opened anew, or until its user calls `resume` and appends
  again what the doubtful segments got since the last sync; reads go on.
* A store opened again starts a new segment: the tail of an old one may hold bytes that were never synced.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol

import msgspec

from fsdecloud.config import make_private_dir
from fsdecloud.errors import StoreCorrupt, StoreError, StoreFull
from fsdecloud.limits import MIB, SEGMENT_SIZE

Data = bytes | bytearray | memoryview

RECORD_MAX: Final = 2 * MIB
"""Largest record: above any entry, blob or shard; a Location beyond it is damaged and is not even tried."""

_OPEN_FILES: Final = 32
"""Descriptors kept for reading, per store: half of the smallest RLIMIT_NOFILE we serve under (fault 28)."""

_IOV_MAX: Final = 1024
"""Buffers per pwritev (limits.h IOV_MAX)."""

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


class Location(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where a record lies: number of the segment, offset and length in bytes."""

    segment: int
    offset: int
    length: int


class Disk(Protocol):
    """The system calls that write: `os` itself, or a test's stand-in that makes the n-th one fail."""

    def pwritev(self, fd: int, buffers: Sequence[Data], offset: int, /) -> int:
        """Write at an offset; returns how many bytes were taken."""

    def fdatasync(self, fd: int, /) -> None:
        """Make a file's bytes and length durable."""

    def fsync(self, fd: int, /) -> None:
        """Make a directory's names durable."""


class _File:
    """An open segment. Closed when the last user lets go of it, so that no descriptor is reused under a reader."""

    __slots__ = ("fd", "is_forgotten", "number")

    def __init__(self, fd: int, number: int) -> None:
        self.fd = fd
        self.number = number
        self.is_forgotten = False

    def __del__(self) -> None:
        os.close(self.fd)

    def is_unlinked(self) -> bool:
        """Say whether somebody removed the file's last name."""
        return os.fstat(self.fd).st_nlink == 0


class SegmentStore:
    """The segments `PREFIX-NUMBER.seg` of one directory."""

    def __init__(
        self,
        directory: Path,
        prefix: str,
        *,
        create: bool = True,
        disk: Disk = os,
        segment_size: int = SEGMENT_SIZE,
        first: int = 1,
        is_shared: bool = False,
    ) -> None:
        """Open the store; with `create=False` for reading only (the directory may then still be missing).

        A new segment's number is at least `first`, and above those that are there. `is_shared`: another process removes
        segments. None but the one that is written is kept open then, as a removed file fills the disk until nobody has it
        open; and none is ever synced.

        Raises UsageError when others may write to the directory, StoreError when it cannot be made.
        """
        self.directory = directory
        self.prefix = prefix
        self._create = create
        self._disk = disk
        self._segment_size = segment_size
        self._is_shared = is_shared
        self._lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self._open: OrderedDict[int, _File] = OrderedDict()
        self._tail: _File | None = None
        self._size = 0
        self._unsynced: dict[int, _File] = {}
        self._names_unsynced = False
        self._failure: StoreError | None = None
        self.doubtful: set[int] = set()
        """Segments that a sync failed for."""
        if create:
            try:
                make_private_dir(directory)
            except OSError as exc:
                raise store_error(exc, f"cannot make {directory}") from exc
        self._current = max(first, max(self.sizes(), default=0) + 1)

    # ---- writing ---------------------------------------------------------------------------------------------------

    @property
    def current(self) -> int:
        """Number of the segment that the next append goes to, unless that rolls; its file may not exist yet."""
        return self._current

    def append(self, data: Data) -> Location:
        """Append one record without syncing. Raises StoreFull when the disk or quota is full, StoreError otherwise."""
        return self.append_many((data,))[0]

    def append_many(self, records: Sequence[Data]) -> list[Location]:
        """Append records in order, as one system call where they fit into one segment; all of them or an error.

        Raises StoreFull, StoreError, and ValueError for a record over RECORD_MAX. After an error nothing of the batch
        is promised, and what was written of it is overwritten or left as a tail that nothing names.
        """
        sizes = [len(record) if isinstance(record, bytes) else memoryview(record).nbytes for record in records]
        if sizes and max(sizes) > RECORD_MAX:
            raise ValueError(f"a record of {max(sizes)} bytes is over the limit of {RECORD_MAX}")
        found: list[Location] = []
        with self._lock:
            self._check_writable()
            start = 0
            while start < len(records):
                tail = self._writable_tail(sizes[start])
                stop, total = start, 0
                while (
                    stop < len(records)
                    and stop - start < _IOV_MAX
                    and (stop == start or self._size + total + sizes[stop] <= self._segment_size)
                ):
                    total += sizes[stop]
                    stop += 1
                self._write(tail, records[start:stop], total)
                for size in sizes[start:stop]:
                    found.append(Location(tail.number, self._size, size))
                    self._size += size
                if not self._is_shared:
                    self._unsynced[tail.number] = tail
                start = stop
        return found

    def sync(self) -> None:
        """Make every record appended before this call durable, and the names of new segments. Raises StoreError.

        A failure is final until `resume` (see the module's rules).
        """
        assert not self._is_shared
        # The sync lock makes a second caller wait for a sync that took its records along; appends go on meanwhile.
        with self._sync_lock:
            with self._lock:
                self._check_failure()
                files = list(self._unsynced.values())
                self._unsynced = {}
                names, self._names_unsynced = self._names_unsynced, False
            try:
                for file in files:
                    if file.is_unlinked() and not file.is_forgotten:
                        raise OSError(errno.ENOENT, "the segment was removed while it was written")  # fault 21
                    self._disk.fdatasync(file.fd)
                if names:
                    self._sync_directory()
            except OSError as exc:
                failure = store_error(exc, f"cannot make {self.directory}/{self.prefix}-* durable (reopen the store)")
                with self._lock:
                    self._failure = failure
                    self.doubtful.update(file.number for file in files)
                    self._names_unsynced = self._names_unsynced or names
                raise failure from exc

    @property
    def has_failed(self) -> bool:
        """Whether a sync failed and `resume` was not called since."""
        return self._failure is not None

    def resume(self) -> None:
        """Go on with a new segment after a failed sync.

        What was appended to the `doubtful` segments since the last good sync is durable only when appended and synced anew.
        """
        with self._lock:
            self.doubtful.update(self._unsynced)
            self._unsynced.clear()
            self._roll()
            self._failure = None

    def roll(self) -> int:
        """Close the current segment for writing; returns the number of the next one. An empty segment is kept."""
        with self._lock:
            self._roll()
            return self._current

    def adopt(self, path: Path) -> int:
        """Take in a segment of another store as a second name of its file; returns its number here.

        The other store must have rolled past it, and may `remove` it once nobody reads there: no reader ever finds it in
        neither. The name is not synced: what it holds is stored elsewhere by now. Raises OSError, with errno EXDEV when
        it lies on another file system.
        """
        with self._lock:
            self._check_writable()
            self._roll()
            number = self._current
            os.link(path, self.path(number))
            self._current = number + 1
        return number

    # ---- reading ---------------------------------------------------------------------------------------------------

    def read(self, location: Location, *, cached: bool = True) -> bytes:
        """Return the record's bytes; with `cached=False` from the disk, leaving nothing in the page cache.

        Raises StoreCorrupt when the segment is missing or ends too early, StoreError when the disk cannot read it."""
        if not (location.segment > 0 and location.offset >= 0 and 0 <= location.length <= RECORD_MAX):
            raise StoreCorrupt(f"{location} cannot name a record")
        file = self._file(location.segment)
        try:
            if not cached:
                _drop_pages(file.fd, location)
            data = os.pread(file.fd, location.length, location.offset)
            if not cached:
                _drop_pages(file.fd, location)
        except (OSError, OverflowError) as exc:
            raise StoreError(f"cannot read {self.path(location.segment)}: {exc}") from exc
        if len(data) != location.length:
            raise StoreCorrupt(
                f"{self.path(location.segment)} ends before offset {location.offset} + {location.length}"
            )
        return data

    def read_into(self, location: Location, buffer: memoryview, *, wait: bool) -> memoryview | None:
        """Return the record's bytes, read into `buffer`, None if they cannot be read (`read` says why).

        Without `wait`, only if the page cache has all of them. Source: preadv2(2), RWF_NOWAIT.
        """
        if not (location.segment > 0 and location.offset >= 0 and 0 <= location.length <= len(buffer)):
            return None
        view = buffer[: location.length]
        try:
            file = self._file(location.segment)
            count = os.preadv(file.fd, [view], location.offset, 0 if wait else os.RWF_NOWAIT)
        except (OSError, StoreError):
            return None
        return view if count == location.length else None

    def will_need(self, location: Location) -> None:
        """Have the disk begin reading a record. A hint: failure does not matter. Source: posix_fadvise(2)."""
        with suppress(OSError, StoreError):
            os.posix_fadvise(self._file(location.segment).fd, location.offset, location.length, os.POSIX_FADV_WILLNEED)

    def path(self, segment: int) -> Path:
        """Return where the segment's file is, or would be."""
        return self.directory / f"{self.prefix}-{segment:08d}.seg"

    def sizes(self) -> dict[int, int]:
        """Return the bytes of every segment on disk by number, oldest first. A directory that is missing has none."""
        found = {}
        start, end = f"{self.prefix}-", ".seg"
        try:
            with os.scandir(self.directory) as entries:
                for entry in entries:
                    name = entry.name
                    number = name[len(start) : -len(end)]
                    if name.startswith(start) and name.endswith(end) and number.isascii() and number.isdigit():
                        try:
                            found[int(number)] = entry.stat(follow_symlinks=False).st_size
                        except FileNotFoundError:
                            continue  # removed since it was listed
        except FileNotFoundError:
            return {}
        except OSError as exc:
            raise StoreError(f"cannot list {self.directory}: {_reason(exc)}") from exc
        return dict(sorted(found.items()))

    # ---- letting go ------------------------------------------------------------------------------------------------

    def remove(self, segment: int) -> None:
        """Delete a segment's file; one that is gone already is fine. Readers that have it open finish their read."""
        self.forget(segment)
        try:
            os.unlink(self.path(segment))
        except FileNotFoundError:
            pass
        except OSError as exc:
            raise StoreError(f"cannot remove {self.path(segment)}: {_reason(exc)}") from exc

    def forget(self, segment: int) -> None:
        """Drop the segment's descriptor, because its file was or will be removed or adopted. Rolls past the current."""
        with self._lock:
            if self._tail is not None and segment == self._current:
                self._roll()
            for file in (self._open.pop(segment, None), self._unsynced.pop(segment, None)):
                if file is not None:
                    file.is_forgotten = True  # a sync under way must not take its removal for a loss

    def close(self) -> None:
        """Drop all descriptors, without syncing. The store may not be used after."""
        with self._lock:
            self._open.clear()
            self._unsynced.clear()
            self._tail = None
            self._failure = self._failure or StoreError(f"{self.directory}/{self.prefix}-* is closed")

    def __enter__(self) -> SegmentStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- inside; the lock is held ----------------------------------------------------------------------------------

    def _check_writable(self) -> None:
        if not self._create:
            raise StoreError(f"{self.directory}/{self.prefix}-* is open for reading only")
        self._check_failure()

    def _check_failure(self) -> None:
        if isinstance(self._failure, StoreFull):
            raise StoreFull(str(self._failure), self._failure.errno)
        if self._failure is not None:
            raise StoreError(str(self._failure))

    def _roll(self) -> None:
        if self._tail is not None:
            self._tail = None
            self._current += 1
            self._size = 0

    def _writable_tail(self, size: int) -> _File:
        """Return the file that takes a record of `size` bytes; makes the next segment when needed."""
        if self._tail is not None and (
            (self._size and self._size + size > self._segment_size) or self._tail.is_unlinked()
        ):
            self._roll()
        if self._tail is None:
            path = self.path(self._current)
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            except OSError as exc:
                raise store_error(exc, f"cannot make {path}") from exc
            self._tail = _File(fd, self._current)
            self._size = 0
            self._names_unsynced = True
            self._remember(self._tail)
        return self._tail

    def _write(self, tail: _File, records: Sequence[Data], total: int) -> None:
        """Write the records at the tail's end, which the caller moves afterwards."""
        offset, rest = self._size, records
        while total:
            try:
                written = self._disk.pwritev(tail.fd, rest, offset)
            except OSError as exc:
                raise store_error(exc, f"cannot write {self.path(tail.number)}") from exc
            if not written and total:
                raise StoreError(f"cannot write {self.path(tail.number)}: the disk takes no bytes and gives no reason")
            total -= written
            if total:
                # A short write: on a full disk the next call says why, else it goes on where this one ended.
                offset += written
                rest = _skip(rest, written)

    def _file(self, segment: int) -> _File:
        """Return the open segment. Raises StoreCorrupt when there is no such file."""
        with self._lock:
            file = self._open.get(segment)
            # Only a file that another process may remove needs the look: its number can mean a new file by then.
            if file is not None and (self._create or not file.is_unlinked()):
                self._open.move_to_end(segment)
                return file
            path = self.path(segment)
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError as exc:
                self._open.pop(segment, None)
                raise StoreCorrupt(f"{path} is missing") from exc
            except OSError as exc:
                raise StoreError(f"cannot open {path}: {_reason(exc)}") from exc
            file = _File(fd, segment)
            self._remember(file)
            return file

    def _remember(self, file: _File) -> None:
        """Keep the descriptor for readers; lets go of the least used, and of removed files, which still fill the disk."""
        if self._is_shared:
            return
        self._open[file.number] = file
        self._open.move_to_end(file.number)
        for number in [n for n, other in self._open.items() if other.is_unlinked()]:
            del self._open[number]
        while len(self._open) > _OPEN_FILES:
            self._open.popitem(last=False)

    def _sync_directory(self) -> None:
        fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._disk.fsync(fd)
        finally:
            os.close(fd)


def _skip(records: Sequence[Data], count: int) -> list[Data]:
    """Return the records without their first `count` bytes."""
    rest: list[Data] = []
    for record in records:
        view = memoryview(record).cast("B")
        if count >= len(view):
            count -= len(view)
        else:
            rest.append(view[count:])
            count = 0
    return rest


def _reason(exc: OSError) -> str:
    return exc.strerror or str(exc)


def _drop_pages(fd: int, location: Location) -> None:
    """Have the page cache forget a record. Source: posix_fadvise(2); part of a page stays, so whole ones are named."""
    start = location.offset - location.offset % _PAGE
    end = -(-(location.offset + location.length) // _PAGE) * _PAGE
    os.posix_fadvise(fd, start, end - start, os.POSIX_FADV_DONTNEED)


def store_error(exc: OSError, what: str) -> StoreError:
    """Translate an error of the operating system."""
    if exc.errno in _FULL:
        return StoreFull(f"{what}: {_reason(exc)}", exc.errno)
    return StoreError(f"{what}: {_reason(exc)}")
