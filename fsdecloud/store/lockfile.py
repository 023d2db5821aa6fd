"""Which process runs a daemon: a file locked with flock(2) while it lives, holding its pid.

The kernel drops the lock when the process ends, however it ends, so neither a stale file nor a reused pid can mislead.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Final

from fsdecloud.config import make_private_dir
from fsdecloud.errors import StoreLocked
from fsdecloud.store.segments import store_error

_PROBE_WAIT: Final = 0.2
"""`lock_holder` takes the lock for microseconds to see whether it is free; a daemon that starts just then tries again."""


class LockFile:
    """A held lock. Close it (or end the process) to let go."""

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self.path = path

    def close(self) -> None:
        """Let go of the lock."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> LockFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def acquire_lock(path: Path) -> LockFile:
    """Take the lock for this process and write its pid. Raises StoreLocked, naming the holder, when it is taken,
    StoreFull, StoreError when the file cannot be written.

    The descriptor is not inherited by children, so a child cannot keep the lock alive.
    """
    try:
        make_private_dir(path.parent)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as exc:
        raise store_error(exc, f"cannot open {path}") from exc
    deadline = time.monotonic() + _PROBE_WAIT
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as exc:
            if time.monotonic() < deadline:
                time.sleep(0.01)
                continue
            holder = _read_pid(fd)
            os.close(fd)
            raise StoreLocked(f"{path.stem} is already running (pid {holder or 'unknown'})") from exc
    pid = f"{os.getpid()}\n".encode()
    try:
        os.ftruncate(fd, 0)
        offset = 0
        while offset < len(pid):
            offset += os.pwrite(fd, pid[offset:], offset)
    except OSError as exc:
        os.close(fd)
        raise store_error(exc, f"cannot write {path}") from exc
    return LockFile(fd, path)


def lock_holder(path: Path) -> int | None:
    """Return the pid of the process that holds the lock, 0 if its pid cannot be read, None if nobody holds it."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return _read_pid(fd) or 0
        return None
    finally:
        os.close(fd)


def _read_pid(fd: int) -> int | None:
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else None
