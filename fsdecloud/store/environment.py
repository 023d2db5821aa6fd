"""How an LMDB environment is opened, used and refused: every LMDB error becomes one of ours here.

Blocking. An `Environment` may be shared by threads; a write transaction begins, works and ends on one thread within one
`with` block, and LMDB allows one at a time (another waits). Not here: what the databases hold.

LMDB trusts its pages: it maps the file, and a page that the file no longer has ends the process with SIGBUS. So before a
file is handed to it we read the two meta pages and compare their last page with the file's size, and beside the data lies
`format`, written when the environment was first made, so that a data file that vanished or was emptied is noticed and not
quietly replaced by an empty one. Layout of the meta pages: LMDB 0.9, mdb.c, MDB_page and MDB_meta, 64-bit.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeAlias

import lmdb
from lmdb import verify as lmdb_verify

from fsdecloud.config import make_private_dir, sync_directory
from fsdecloud.errors import StoreCorrupt, StoreError, StoreFull, StoreLocked

Database: TypeAlias = Any
"""A handle of one named database (lmdb._Database, which has no public name)."""

Transaction: TypeAlias = "lmdb.Transaction[bytes]"

FORMAT: Final = 1
"""Version of what this release writes; a newer one on disk is refused."""

KEY_MAX: Final = 511
"""Longest key that LMDB takes (fault 41)."""

_MAGIC: Final = 0xBEEFC0DE
_DATA_VERSION: Final = 1
_HEADER: Final = 16
_META: Final = struct.Struct("=II QQ I44x 48x QQ")
"""magic, version, address, map size, page size (in the first database's record), last page, transaction id."""

_REMOTE: Final = {
    0x6969: "NFS",
    0x517B: "SMB",
    0xFE534D42: "SMB2",
    0xFF534D42: "CIFS",
    0x65735546: "FUSE",
    0x01021997: "9P",
    0x5346414F: "AFS",
    0x00C36400: "Ceph",
    0x73757245: "Coda",
    0x0BD00BD0: "Lustre",
}
"""File systems, by statfs(2) f_type (linux/magic.h), on which locks or mapped pages are not coherent. An overlay is let
through: what is made on it lies in its upper layer, and containers have nothing else."""

_READERS: Final = 126
_SPARE_TRANSACTIONS: Final = 8

_NEARLY_FULL: Final = 1 << 20
"""More than one transaction of ours writes at once."""


class Environment:
    """An open LMDB environment. Use `open_environment`."""

    def __init__(self, env: lmdb.Environment, path: Path) -> None:
        self._env = env
        self._pid = os.getpid()
        self._writing = threading.RLock()
        self.path = path

    def database(self, name: bytes) -> Database:
        """Return the handle of a named database, made if missing. Not inside a transaction."""
        self._check_process()
        with mapped_errors(self.path):
            return self._env.open_db(name)

    def read(self) -> _Scope:
        """Begin a read transaction: `with env.read() as txn: txn.get(key, db=db)`. Keep it short: it pins old pages."""
        self._check_process()
        return _Scope(self, write=False)

    def write(self) -> _Scope:
        """Begin a write transaction, committed and durable when the `with` block ends, undone when it raises.

        Raises StoreFull when map or disk is full, StoreCorrupt, StoreError; nothing of it is then visible.
        """
        self._check_process()
        return _Scope(self, write=True)

    def sync(self) -> None:
        """Flush an environment opened with `sync=False` to the disk."""
        self._check_process()
        with mapped_errors(self.path):
            self._env.sync(True)

    def used_bytes(self) -> int:
        """Return the size of the data file: pages once used, free ones among them."""
        with mapped_errors(self.path):
            return int(self._env.info()["last_pgno"] + 1) * int(self._env.stat()["psize"])

    def close(self) -> None:
        """Close it, after the write transaction that another thread may be in; whoever comes later gets StoreError.

        In a forked child only the parent's copy stays valid.
        """
        if self._pid == os.getpid():
            # A thread that is closed under its transaction can neither commit nor abort it, and the library waits for that
            # without end as soon as somebody keeps the exception.
            with self._writing:
                self._env.close()

    def __enter__(self) -> Environment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_process(self) -> None:
        if self._pid != os.getpid():  # fault 39: its locks and its map belong to the process that opened it
            raise StoreError(f"{self.path} was opened by process {self._pid} and cannot be used after a fork")


class _Scope:
    """One transaction as a context manager, cheaper than a generator: reads happen in the event loop."""

    __slots__ = ("_environment", "_is_write", "_txn")

    def __init__(self, environment: Environment, *, write: bool) -> None:
        self._environment = environment
        self._is_write = write
        self._txn: Transaction | None = None

    def __enter__(self) -> Transaction:
        environment = self._environment
        if self._is_write:
            environment._writing.acquire()  # noqa: SLF001 - one module, two classes
        try:
            txn: Transaction = environment._env.begin(write=self._is_write)  # noqa: SLF001 - one module, two classes
        except BaseException as exc:  # whatever it is, the writer's lock must be given back
            self._release()
            if isinstance(exc, lmdb.Error):
                raise map_error(exc, environment.path) from exc
            raise
        self._txn = txn
        return txn

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        txn, self._txn = self._txn, None
        assert txn is not None
        try:
            if value is None and self._is_write:
                txn.commit()
                return
            txn.abort()
        except lmdb.Error as exc:
            raise map_error(exc, self._environment.path) from exc
        finally:
            self._release()
        if isinstance(value, lmdb.Error):
            raise map_error(value, self._environment.path) from value

    def _release(self) -> None:
        if self._is_write:
            self._environment._writing.release()  # noqa: SLF001 - one module, two classes


def open_environment(
    path: Path,
    map_size: int,
    max_dbs: int = 8,
    *,
    sync: bool = True,
    remote_allowed: bool = False,
) -> Environment:
    """Open the environment in directory `path` for this process alone, made with mode 0700 if missing.

    `map_size` is address space, in bytes. With `sync=False` commits survive the end of the process but a system crash may
    damage the file: only for what may be deleted at any time (see `store.cache`).

    Raises UsageError when others may write to the directory, StoreCorrupt when data is missing, cut short, not LMDB's or
    of a newer release, StoreFull, StoreLocked, StoreError otherwise (a remote file system, unless allowed: fault 23).
    """
    try:
        make_private_dir(path)
        if not remote_allowed:
            _check_file_system(path)
        _check_format(path)
        _drop_unfinished(path)
        check_data_file(path)
    except OSError as exc:
        raise _os_error(exc, path) from exc
    with mapped_errors(path):
        env = lmdb.open(
            os.fsencode(path),  # a path need not be UTF-8 (fault 22)
            map_size=map_size,
            max_dbs=max_dbs,
            mode=0o600,
            sync=sync,
            metasync=sync,
            max_readers=_READERS,
            max_spare_txns=_SPARE_TRANSACTIONS,
            # Random access by hash: reading ahead would only fill memory.
            readahead=False,
            # Zeroing fresh pages keeps whatever was on the heap, keys among it, out of the file.
            meminit=True,
        )
        try:
            env.reader_check()  # fault 38
            if not (path / "format").exists():
                env.sync(True)  # LMDB leaves its first pages to the first commit; the mark says that they are there
                _mark_format(path)
        except BaseException:  # interrupted or failed, nobody else would close it
            env.close()
            raise
    return Environment(env, path)


def check_data_file(path: Path) -> None:
    """Raise StoreCorrupt unless `path`'s data file is absent, or LMDB's and as long as its last page asks (fault 20)."""
    data = path / "data.mdb"
    try:
        fd = os.open(data, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        size = os.fstat(fd).st_size
        if size == 0:
            return  # LMDB makes a new one; `_check_format` has refused if there was an old one
        first = _read_meta(fd, 0, data)
        second = _read_meta(fd, first[0], data)
    finally:
        os.close(fd)
    page_size, last_page, _ = max(first, second, key=lambda meta: meta[2])
    if size >= (last_page + 1) * page_size:
        return
    # The end may be missing rightfully: pages taken and freed within one transaction are never written. Look closer.
    try:
        problems: list[str] = lmdb_verify.verify(os.fspath(data), subdir=False)  # type: ignore[no-untyped-call]
    except lmdb_verify.VerifyError as exc:
        problems = [str(exc)]
    if problems:
        raise _corrupt(data, f"it has {size} bytes but should have {(last_page + 1) * page_size} ({problems[0]})")


def map_error(exc: lmdb.Error, path: Path) -> StoreError:
    """Return our error for one of LMDB's."""
    if isinstance(exc, lmdb.MapFullError):
        return StoreFull(f"{path}: the map is full")
    if isinstance(exc, lmdb.ReadersFullError):
        return StoreLocked(f"{path}: too many readers at once")
    if isinstance(
        exc,
        lmdb.CorruptedError
        | lmdb.InvalidError
        | lmdb.PageNotFoundError
        | lmdb.VersionMismatchError
        | lmdb.IncompatibleError,
    ):
        return _corrupt(path / "data.mdb", str(exc))
    if isinstance(exc, lmdb.PanicError):
        # LMDB could not write a meta page before; what the disk holds is known only after opening it again.
        return StoreError(f"{path}: an earlier write failed on the disk; restart to open it anew")
    code = getattr(exc, "code", 0)
    if code in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull(f"{path}: {os.strerror(code)}", code)
    if code == errno.EIO and _is_full(path):
        return StoreFull(f"{path}: {os.strerror(errno.ENOSPC)}")  # LMDB calls a short write that (mdb_page_flush)
    if code == errno.ENOMEM:
        return StoreError(f"{path}: {os.strerror(code)}: {_address_space()}")
    return StoreError(f"{path}: {str(exc).removeprefix(f'{path}: ')}")


def _address_space() -> str:
    """Say why the address space that a map needs may not be there."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return "the system gives no address space for its map (vm.overcommit_memory, or too little memory)"
    return f"the limit of {limit >> 20} MiB on address space is too small for its map: ulimit -v unlimited (LimitAS=)"


def _is_full(path: Path) -> bool:
    """Whether the disk has next to no room left."""
    try:
        status = os.statvfs(path)
    except OSError:
        return False
    return status.f_bavail * status.f_frsize < _NEARLY_FULL


@contextmanager
def mapped_errors(path: Path) -> Iterator[None]:
    """Translate LMDB's and the system's errors about `path` within the block."""
    try:
        yield
    except lmdb.Error as exc:
        raise map_error(exc, path) from exc
    except OSError as exc:
        raise _os_error(exc, path) from exc


def _read_meta(fd: int, offset: int, data: Path) -> tuple[int, int, int]:
    """Return page size, last page number and transaction id of a meta page."""
    found = os.pread(fd, _META.size, offset + _HEADER)
    if len(found) != _META.size:
        raise _corrupt(data, "it is cut off within its first pages")
    magic, version, _, _, page_size, last_page, transaction = _META.unpack(found)
    if magic != _MAGIC:
        raise _corrupt(data, "it is not an LMDB file")
    if version != _DATA_VERSION:
        raise _corrupt(data, f"its LMDB data version is {version}, this release reads {_DATA_VERSION}")
    if page_size < 512 or page_size > 65536 or page_size & (page_size - 1) or last_page < 1:
        raise _corrupt(data, "its first pages are damaged")
    return page_size, last_page, transaction


def _check_format(path: Path) -> None:
    """Refuse a newer format (fault 31), and an environment that was made here but has no data any more."""
    try:
        text = (path / "format").read_bytes()[:64].strip()
    except FileNotFoundError:
        return
    words = text.split()
    if len(words) != 2 or words[0] != b"fsdecloud" or not words[1].isdigit():
        raise _corrupt(path / "format", "it is not this program's")
    if int(words[1]) > FORMAT:
        raise StoreCorrupt(
            f"{path} has format {int(words[1])}, this release knows {FORMAT}: use the release that wrote it"
        )
    data = path / "data.mdb"
    if not data.exists() or data.stat().st_size == 0:
        raise _corrupt(data, "it is missing or empty")


def _drop_unfinished(path: Path) -> None:
    """Delete a data file that a power cut left damaged while it was being made: before the mark nothing was ever committed,
    and LMDB had written its two first pages only."""
    data = path / "data.mdb"
    if (path / "format").exists() or not data.exists() or data.stat().st_size > 2 * os.sysconf("SC_PAGE_SIZE"):
        return
    try:
        check_data_file(path)
    except StoreCorrupt:
        data.unlink()


def _mark_format(path: Path) -> None:
    """Note, durably, that an environment exists here; after LMDB has written its first pages."""
    mark = path / "format"
    temporary = path / "format.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.write(fd, b"fsdecloud %d\n" % FORMAT)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(temporary, mark)
    sync_directory(path)


def _check_file_system(path: Path) -> None:
    name = _REMOTE.get(file_system_type(path))
    if name is not None:
        raise StoreError(f"{path} lies on {name}, where LMDB loses data: put it on a local disk")


def file_system_type(path: Path) -> int:
    """Return statfs(2) f_type of the file system that holds `path`, 0 where it cannot be told."""
    # struct statfs begins with f_type, a long on the 64-bit ABIs that we run on; the whole has 120 bytes there.
    buffer = ctypes.create_string_buffer(512)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.statfs(os.fsencode(path), buffer) != 0:
        return 0
    return int.from_bytes(buffer.raw[:4], "little" if struct.pack("=H", 1)[0] else "big")


def _os_error(exc: OSError, path: Path) -> StoreError:
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull(f"{path}: {exc.strerror}", exc.errno)
    return StoreError(f"{path}: {exc.strerror or exc}")


def _corrupt(file: Path, why: str) -> StoreCorrupt:
    return StoreCorrupt(f"{file} is damaged: {why}; restore {file.parent}, or move it away to start without it")
