"""The process that does the state machine's operations in one directory: the mount's or the plain disk's.

    python -m tests.differential.actor DIRECTORY        one JSON request per line in, one JSON answer per line out

A request is [operation, arguments...]; the answer is [result, description] with the errno's name as result when it failed.
The description is everything of the tree that must be equal on any file system: no inode numbers (only which names are one
file), no times of day (only which times the operation changed), no directory sizes. `numbers` is what the mount alone must
keep of these over a remount. Imports nothing of the project.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import mmap
import os
import shutil
import socket
import stat
import struct
import sys
import time
from collections.abc import Callable
from typing import Any, Final

USER: Final = 12345
"""Who is not root."""

_AT_FDCWD: Final = -100
_COARSE: Final = 5
"""CLOCK_REALTIME_COARSE (time.h)."""
_FORCE_SYNC, _NOFOLLOW, _BASIC_STATS = 0x2000, 0x100, 0x7FF
"""linux/stat.h, for statx(2)."""
_PAGE: Final = 4096
_libc = ctypes.CDLL(None, use_errno=True)


class Actor:
    """One directory and the files open in it."""

    def __init__(self, directory: str) -> None:
        os.umask(0o022)
        os.chdir(directory)
        self._open: dict[int, int] = {}
        self._times: dict[tuple[int, int], tuple[int, int]] = {}
        self._clock = 0

    def handle(self, request: list[Any]) -> Any:
        """Do one operation and describe the tree after it."""
        name, *arguments = request
        if name == "begin":
            return self._begin(*arguments)
        if name == "leave":
            return self._leave()
        if name == "tree":  # as after a remount: the times of before do not count
            self._times = {}
            return self._describe()
        if name == "numbers":
            return _numbers(*arguments)
        user = arguments.pop()
        operation: Callable[..., Any] = getattr(self, f"do_{name}")
        self._next_tick()
        if user:
            os.setegid(USER)
            os.seteuid(USER)
        try:
            result = operation(*arguments)
        except OSError as exc:
            result = errno.errorcode.get(exc.errno or 0, repr(exc))
        except (ValueError, OverflowError) as exc:
            result = type(exc).__name__
        finally:
            if user:
                os.seteuid(0)
                os.setegid(0)
        return [result, self._describe()]

    def _begin(self, directory: str) -> None:
        self._close_all()
        os.mkdir(directory)
        os.chmod(directory, 0o777)
        os.chdir(directory)
        self._times = {}

    def _leave(self) -> None:
        self._close_all()
        os.chdir("/")

    def _close_all(self) -> None:
        for fd in self._open.values():
            os.close(fd)
        self._open = {}

    def _next_tick(self) -> None:
        """Wait until the coarse clock moved, which file systems take their times from: equal times mean no change."""
        while time.clock_gettime_ns(_COARSE) <= self._clock:
            time.sleep(0.0005)

    # ---- describing ----------------------------------------------------------------------------------------------
    def _describe(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        groups: dict[int, str] = {}
        times: dict[tuple[int, int], tuple[int, int]] = {}
        paths = ["."]
        for path in paths:
            if stat.S_ISDIR(os.lstat(path).st_mode):
                paths += [f"{path}/{name}" for name in os.listdir(path)]
        for path in sorted(paths):  # the order in which names are listed is the file system's own
            found[path] = self._describe_one(path, os.lstat(path), groups, times)
        for slot, fd in self._open.items():
            info = os.fstat(fd)
            if not info.st_nlink:
                shown = [info.st_mode, info.st_uid, info.st_gid, info.st_size]
                if stat.S_ISREG(info.st_mode):
                    with open(f"/proc/self/fd/{fd}", "rb") as file:
                        shown.append(_digest(file.fileno(), info.st_size))
                found[f"open {slot}"] = shown
        self._times = times
        self._clock = time.clock_gettime_ns(_COARSE)
        return found

    def _describe_one(
        self, path: str, info: os.stat_result, groups: dict[int, str], times: dict[tuple[int, int], tuple[int, int]]
    ) -> list[Any]:
        kind = stat.S_IFMT(info.st_mode)
        first = groups.setdefault(info.st_ino, path)
        shown: list[Any] = [oct(info.st_mode), info.st_nlink, info.st_uid, info.st_gid]
        if first != path:
            shown.append(f"= {first}")
        key = (info.st_dev, info.st_ino)
        old = self._times.get(key)
        now = times[key] = (info.st_mtime_ns, info.st_ctime_ns)
        if old is not None:
            shown.append("m" * (now[0] != old[0]) + "c" * (now[1] != old[1]))
            if now[1] < old[1]:
                shown.append("the ctime went back")
        if kind == stat.S_IFREG:
            shown.append(info.st_size)
            fd = os.open(path, os.O_RDONLY | os.O_NOATIME)
            try:
                shown.append(_digest(fd, info.st_size))
            finally:
                os.close(fd)
        elif kind == stat.S_IFLNK:
            shown += [info.st_size, os.readlink(path)]
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            shown.append(info.st_rdev)
        names = sorted(os.listxattr(path, follow_symlinks=False))
        shown.append({name: os.getxattr(path, name, follow_symlinks=False).hex() for name in names})
        return shown

    # ---- operations on names -----------------------------------------------------------------------------------------
    def do_create(self, path: str, mode: int, umask: int) -> Any:
        old = os.umask(umask)
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
        finally:
            os.umask(old)

    def do_mkdir(self, path: str, mode: int, umask: int) -> Any:
        old = os.umask(umask)
        try:
            os.mkdir(path, mode)
        finally:
            os.umask(old)

    def do_mknod(self, path: str, kind: int, mode: int) -> Any:
        if kind == stat.S_IFSOCK:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(path)
            return
        os.mknod(path, kind | mode, os.makedev(7, 300) if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0)

    def do_symlink(self, target: str, path: str) -> Any:
        os.symlink(target, path)

    def do_link(self, old: str, new: str) -> Any:
        os.link(old, new, follow_symlinks=False)

    def do_unlink(self, path: str) -> Any:
        os.unlink(path)

    def do_rmdir(self, path: str) -> Any:
        os.rmdir(path)

    def do_rename(self, old: str, new: str, flags: int) -> Any:
        if _libc.renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags):
            raise OSError(ctypes.get_errno(), "renameat2")

    def do_remove_tree(self, path: str) -> Any:
        shutil.rmtree(path)

    def do_readlink(self, path: str) -> Any:
        return os.readlink(path)

    def do_list(self, path: str) -> Any:
        return sorted(os.listdir(path))

    # ---- attributes --------------------------------------------------------------------------------------------------
    def do_chmod(self, path: str, mode: int) -> Any:
        os.chmod(path, mode)

    def do_chown(self, path: str, uid: int, gid: int, follow: bool) -> Any:
        os.chown(path, uid, gid, follow_symlinks=follow)

    def do_utime(self, path: str, atime: int, mtime: int, follow: bool) -> Any:
        os.utime(path, ns=(atime, mtime), follow_symlinks=follow)
        info = os.stat(path, follow_symlinks=follow)
        return [info.st_atime_ns, info.st_mtime_ns]

    def do_access(self, path: str, mode: int) -> Any:
        return os.access(path, mode, effective_ids=True)

    def do_setxattr(self, path: str, name: str, number: int, size: int, flags: int) -> Any:
        # Never the value that is there: ext4 then leaves the inode's time alone, which the kernel sets for a FUSE inode.
        value = number.to_bytes(4, "big") + _pattern(size, size)[4:]
        os.setxattr(path, name, value, flags, follow_symlinks=False)

    def do_getxattr(self, path: str, name: str) -> Any:
        return os.getxattr(path, name, follow_symlinks=False).hex()

    def do_removexattr(self, path: str, name: str) -> Any:
        os.removexattr(path, name, follow_symlinks=False)

    def do_truncate(self, path: str, size: int) -> Any:
        os.truncate(path, size)

    # ---- open files ----------------------------------------------------------------------------------------------------
    def do_open(self, slot: int, path: str, flags: int, mode: int) -> Any:
        fd = os.open(path, flags | os.O_NONBLOCK, mode)
        old = self._open.pop(slot, None)
        if old is not None:
            os.close(old)
        self._open[slot] = fd

    def do_close(self, slot: int) -> Any:
        os.close(self._take(slot))

    def do_write(self, slot: int, offset: int, size: int, seed: int) -> Any:
        return os.pwrite(self._fd(slot), _pattern(seed, size), offset)

    def do_append(self, slot: int, size: int, seed: int) -> Any:
        os.lseek(self._fd(slot), 0, os.SEEK_END)
        return os.write(self._fd(slot), _pattern(seed, size))

    def do_writev(self, slot: int, offset: int, sizes: list[int], seed: int) -> Any:
        return os.pwritev(self._fd(slot), [_pattern(seed + i, size) for i, size in enumerate(sizes)], offset)

    def do_read(self, slot: int, offset: int, size: int) -> Any:
        return hashlib.blake2b(os.pread(self._fd(slot), size, offset)).hexdigest()[:16]

    def do_ftruncate(self, slot: int, size: int) -> Any:
        os.ftruncate(self._fd(slot), size)

    def do_fsync(self, slot: int, data_only: bool) -> Any:
        (os.fdatasync if data_only else os.fsync)(self._fd(slot))

    def do_fchmod(self, slot: int, mode: int) -> Any:
        os.fchmod(self._fd(slot), mode)

    def do_seek(self, slot: int, offset: int, whence: int) -> Any:
        fd = self._fd(slot)
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            return "a directory's offsets are its file system's own"
        return os.lseek(fd, offset, whence)

    def do_map(self, slot: int, offset: int, size: int, seed: int) -> Any:
        fd = self._fd(slot)
        length = os.fstat(fd).st_size
        if not 0 < length <= 8 << 20:
            return "not mapped"
        with mmap.mmap(fd, length) as area:
            end = min(length, offset + size)
            area[min(offset, end) : end] = _pattern(seed, end - min(offset, end))
            area.flush()
            return hashlib.blake2b(area).hexdigest()[:16]

    def do_copy(self, source: int, target: int, size: int) -> Any:
        return os.copy_file_range(self._fd(source), self._fd(target), size, 0, 0)

    def do_lock(self, slot: int, kind: int) -> Any:
        fcntl.flock(self._fd(slot), kind | fcntl.LOCK_NB)

    def do_direct(self, path: str, page: int, pages: int, seed: int) -> Any:
        """Write whole pages past the kernel's cache, and read them and the next one."""
        fd = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_NONBLOCK)
        try:
            with mmap.mmap(-1, (pages + 1) * _PAGE) as area:  # aligned, as ext4 demands
                area[: pages * _PAGE] = _pattern(seed, pages * _PAGE)
                with memoryview(area) as whole, whole[: pages * _PAGE] as part:
                    written = os.pwritev(fd, [part], page * _PAGE)
                    read = os.preadv(fd, [whole], page * _PAGE)
                return [written, read, hashlib.blake2b(area[:read]).hexdigest()[:16]]
        finally:
            os.close(fd)

    def do_drop(self, slot: int) -> Any:
        fd = self._fd(slot)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def _fd(self, slot: int) -> int:
        if slot not in self._open:
            raise OSError(errno.EBADF, "not open")
        return self._open[slot]

    def _take(self, slot: int) -> int:
        fd = self._fd(slot)
        del self._open[slot]
        return fd


def _numbers(paths: list[str] | None) -> dict[str, dict[str, int]]:
    """Return each path's inode number, blocks, and times in ns; of all paths if none are given. Looking moves no access time of
    a path that is given."""
    if paths is None:
        paths = ["."]
        for path in paths:
            if stat.S_ISDIR(os.lstat(path).st_mode):
                paths += [f"{path}/{name}" for name in os.listdir(path)]
    return {path: _asked(path) for path in paths}


def _asked(path: str) -> dict[str, int]:
    """Return what the file system says, not the kernel's cache."""
    info = ctypes.create_string_buffer(256)
    if _libc.statx(_AT_FDCWD, os.fsencode(path), _FORCE_SYNC | _NOFOLLOW, _BASIC_STATS, info):
        raise OSError(ctypes.get_errno(), "statx")
    inode, blocks = struct.unpack_from("Q8xQ", info, 32)
    found = {"inode": inode, "blocks": blocks}
    for name, at in (("atime", 64), ("mtime", 112), ("ctime", 96)):
        seconds, rest = struct.unpack_from("qI", info, at)
        found[name] = seconds * 10**9 + rest
    return found


def _pattern(seed: int, size: int) -> bytes:
    """Return bytes that are different for each seed, and nowhere zero: zeros come from holes only."""
    piece = bytes(1 + (seed * 31 + i * 7) % 255 for i in range(251))
    return (piece * (size // len(piece) + 1))[:size]


def _digest(fd: int, size: int) -> str:
    """Return a digest of the whole file, holes and all; of very large ones, of both ends and some places between."""
    state = hashlib.blake2b(digest_size=8)
    if size <= 8 << 20:
        places = [(at, 1 << 20) for at in range(0, size, 1 << 20)]
    else:
        places = [(size * i // 7, 8192) for i in range(7)] + [(size - 8192, 8192), (0, 1 << 20)]
    for at, length in places:
        state.update(os.pread(fd, length, at))
    return state.hexdigest()


def main() -> None:
    """Serve until standard input ends."""
    actor = Actor(sys.argv[1])
    for line in sys.stdin:
        print(json.dumps(actor.handle(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
