"""Local disks that fail on purpose: the n-th call of this process that writes below a directory, for n = 1, 2, 3 ...

SQLite's loop: an operation is tried with its first call failing, then with its second, until it ends without having met
the fault; once with a single failure, once with all later calls failing too. Only calls of Python code are seen here; what
LMDB does in C fails in `test_lmdb_failures`, on a file system that is really full and under strace's fault injection.
"""

from __future__ import annotations

import errno
import functools
import gc
import itertools
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

_BY_FD = (
    "write",
    "pwrite",
    "pwritev",
    "writev",
    "fsync",
    "fdatasync",
    "ftruncate",
    "posix_fallocate",
)
_BY_PATH = ("open", "mkdir", "link", "rename", "replace", "unlink", "truncate", "symlink", "rmdir")
_WRITES = ("write", "pwrite", "pwritev", "writev")
_MAKES = (
    "mkdir",
    "link",
    "rename",
    "replace",
    "symlink",
    "truncate",
    "ftruncate",
    "posix_fallocate",
    "fsync",
    "fdatasync",
)


@dataclass(frozen=True, slots=True)
class Fault:
    """How the n-th call fails."""

    code: int
    is_persistent: bool = False
    is_short: bool = False
    """Before it fails, a write takes half of its bytes."""

    def concerns(self, name: str, flags: int) -> bool:
        """Whether a call can fail like this."""
        if name == "open":
            return self.code in (errno.EIO, errno.EMFILE) or bool(flags & os.O_CREAT)
        if self.code == errno.EMFILE:
            return False
        if name in ("unlink", "rmdir"):
            return self.code == errno.EIO
        return name in _WRITES or name in _MAKES


FAULTS = [
    Fault(code, persistent, short)
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE)
    for persistent in (False, True)
    for short in (False, True)
    if not short or (code in (errno.ENOSPC, errno.EIO) and not persistent)
]


def _name(fault: Fault) -> str:
    return errno.errorcode[fault.code] + "-on" * fault.is_persistent + "-short" * fault.is_short


each_fault = pytest.mark.parametrize("fault", FAULTS, ids=_name)

_COMMON = ("ENOSPC", "ENOSPC-on", "EIO-short")


def _some_in_time(*names: str) -> pytest.MarkDecorator:
    """Return a mark that runs the named faults each time, the others in the long run."""
    chosen = [pytest.param(fault, marks=() if _name(fault) in names else pytest.mark.long) for fault in FAULTS]
    return pytest.mark.parametrize("fault", chosen, ids=_name)


each_cheap_fault = _some_in_time(*_COMMON, "EIO", "EMFILE")
"""For operations of some dozen calls: one of each kind in every run, the others in the long one."""

each_fault_in_time = _some_in_time(*_COMMON)
"""For operations of many calls: the common faults in every run, the others in the long one."""


class FailingDisk:
    """Calls below `root`, counted; the n-th one fails."""

    def __init__(self, root: Path, fault: Fault, n: int) -> None:
        self._root = os.path.realpath(root)
        self._fault = fault
        self._n = n
        self.calls = 0
        self.failed: list[str] = []

    @property
    def was_hit(self) -> bool:
        """Whether anything failed."""
        return bool(self.failed)

    def _is_inside(self, target: object, directory: int | None) -> bool:
        if isinstance(target, int):
            try:
                path = os.readlink(f"/proc/self/fd/{target}")
            except OSError:
                return False
        else:
            path = os.path.abspath(os.fspath(target))
            if directory is not None and not os.path.isabs(os.fspath(target)):
                path = os.path.join(os.readlink(f"/proc/self/fd/{directory}"), os.fspath(target))
        return path.startswith(self._root)

    def _fails(self, name: str, flags: int) -> bool:
        if not self._fault.concerns(name, flags):
            return False
        self.calls += 1
        return self.calls >= self._n if self._fault.is_persistent else self.calls == self._n

    def _call(self, name, real, target, *arguments, **options):
        flags = arguments[0] if name == "open" and arguments else 0
        if not self._is_inside(target, options.get("dir_fd")) or not self._fails(name, flags):
            return real(target, *arguments, **options)
        if self._fault.is_short and name in _WRITES and not self.failed:
            self.failed.append("short " + name)
            data = b"".join(map(bytes, arguments[0])) if name.endswith("v") else bytes(arguments[0])
            half = data[: len(data) // 2]
            if half:
                # The next call says why: it comes right after, so it is the one that fails.
                self._n = self.calls + 1
                return real(target, [half] if name.endswith("v") else half, *arguments[1:])
        self.failed.append(name)
        raise OSError(self._fault.code, os.strerror(self._fault.code))

    @contextmanager
    def installed(self) -> Iterator[FailingDisk]:
        """Have the calls of this process fail for the length of the body."""
        with ExitStack() as stack:
            for name in (*_BY_FD, *_BY_PATH):
                real = getattr(os, name)
                wrapped = functools.wraps(real)(functools.partial(self._call, name, real))
                stack.enter_context(mock.patch.object(os, name, wrapped))
            yield self


def failures(root: Path, fault: Fault, most: int = 400) -> Iterator[FailingDisk]:
    """Give disks whose first, second, ... call fails. Ends after the operation that met no fault."""
    for n in itertools.count(1):
        assert n < most, "the fault was still being met"
        disk = FailingDisk(root, fault, n)
        yield disk
        if not disk.was_hit:
            return


def open_below(root: Path) -> list[str]:
    """Return the files below `root`, removed ones too, of which this process has a descriptor.

    What other tests in this process have open does not count, nor do threads of theirs that have not ended yet.
    """
    gc.collect()
    inside = f"{root.resolve()}/"
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the listing's own descriptor is closed by now
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return [name for name in found if name.startswith(inside)]
