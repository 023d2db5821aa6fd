"""Every system call that changes a file system, on one that is mounted read-only.

    python -m tests.fuse.readonly make DIRECTORY        what the calls work on, while it can be written
    python -m tests.fuse.readonly change DIRECTORY      prints call -> errno's name or "OK" as JSON

Imports nothing of the project.
"""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import socket
import stat
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

from tests.posix.calls import EXCHANGE, NOREPLACE, Caller, Child

USER: Final = 12345


def make() -> None:
    """Make one file of each kind, with what the calls change."""
    for name in ("file", "other", "removed", "twin"):
        with open(name, "wb") as file:
            file.write(b"x" * 10_000)
        os.chmod(name, 0o666)
        os.chown(name, USER, USER)
    os.link("twin", "twin2")
    os.setxattr("file", "user.there", b"1")
    for name in ("dir", "empty", "dir/inside"):
        os.mkdir(name)
        os.chmod(name, 0o777)
        os.chown(name, USER, USER)
    os.symlink("file", "symlink")
    os.symlink("nowhere", "dangling")
    os.mkfifo("fifo", 0o666)


def calls() -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yield calls by name (`tests.posix.calls`) with their arguments."""
    write = (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC, os.O_WRONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND)
    for name in ("file", "symlink", "missing", "dangling", "dir", "dir/missing", "missing/missing"):
        for flags in (*write, os.O_WRONLY | os.O_CREAT, os.O_RDONLY | os.O_CREAT, os.O_RDWR | os.O_CREAT | os.O_EXCL):
            yield "opens", (name, flags)
        yield "opens", (name, os.O_RDONLY)
        yield "truncate", (name, 5)
        yield "mkdir", (name,)
        yield "mknod", (name, stat.S_IFREG | 0o600)
        yield "mkfifo", (name,)
        yield "symlink", ("target", name)
        yield "link", ("file", name)
        yield "unlink", (name,)
        yield "rmdir", (name,)
        yield "rename", ("other", name)
        for flag in (NOREPLACE, EXCHANGE):
            yield "rename", ("other", name, flag)
        yield "rename", (name, "other")
        yield "chmod", (name, 0o600)
        yield "chown", (name, 0, 0)
        yield "lchown", (name, 0, 0)
        yield "utimensat", (name, None, None)
        yield "utimensat", (name, (1, 2), (3, 4))
        for flags in (0, os.XATTR_CREATE, os.XATTR_REPLACE):
            yield "setxattr", (name, "user.new", b"1", flags)
        yield "removexattr", (name, "user.there")
        yield "removexattr", (name, "user.missing")
        yield "xattr_of_link", ("set", name, "trusted.x", b"1")
        for mode in range(8):
            yield "access", (name, mode)
    yield "opens", (".", os.O_TMPFILE | os.O_RDWR)
    yield "opens", ("fifo", os.O_RDWR | os.O_NONBLOCK)
    yield "unlink", ("removed",)
    yield "unlink", ("twin",)
    yield "rmdir", ("empty",)
    yield "rename", ("twin", "twin2")
    yield "rename", ("file", "file")
    yield "rename", ("dir", "dir/inside/below")
    yield "mkdir", ("n" * 256,)
    yield "setxattr", ("file", "system.posix_acl_access", _acl())
    yield "setxattr", ("dir", "system.posix_acl_default", _acl())
    yield "removexattr", ("dir", "system.posix_acl_default")


def _acl() -> bytes:
    """Return u::rw-, u:7:r--, g::r--, m::r--, o::r-- as the kernel takes it."""
    rows = ((1, 6, 0xFFFFFFFF), (2, 4, 7), (4, 4, 0xFFFFFFFF), (16, 4, 0xFFFFFFFF), (32, 4, 0xFFFFFFFF))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *row) for row in rows)


def by_descriptor() -> Iterator[tuple[str, Callable[[int], Any]]]:
    """Yield what is done to a file that is open for reading."""
    yield "fchmod", lambda fd: os.fchmod(fd, 0o600)
    yield "fchown", lambda fd: os.fchown(fd, 0, 0)
    yield "futimens", lambda fd: os.utime(fd)
    yield "fsetxattr", lambda fd: os.setxattr(fd, "user.new", b"1")
    yield "fremovexattr", lambda fd: os.removexattr(fd, "user.there")
    yield "ftruncate", lambda fd: os.ftruncate(fd, 1)
    yield "write", lambda fd: os.write(fd, b"x")
    yield "fsync", os.fsync
    yield "fdatasync", os.fdatasync
    yield "flock", lambda fd: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    yield "mmap shared", lambda fd: mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ).close()
    yield "mmap shared writable", lambda fd: mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_WRITE).close()
    yield "mmap private writable", lambda fd: mmap.mmap(fd, 4096, mmap.MAP_PRIVATE, mmap.PROT_WRITE).close()
    yield "read", lambda fd: len(os.read(fd, 100_000))


def change() -> dict[str, Any]:
    """Make all calls as root and as the user that owns the files."""
    said: dict[str, Any] = {}
    user = Child(USER, USER)
    for who in (Caller(), user):
        for name, arguments in calls():
            result = who.make(name, arguments)
            said[f"{who.name} {name}{arguments!r}"] = result if isinstance(result, str) else "OK"
    user.end()
    for path in ("file", "dir"):
        fd = os.open(path, os.O_RDONLY)
        for name, function in by_descriptor():
            if name != "read" or path == "file":
                said[f"{name} {path}"] = _attempt(function, fd)
        said[f"from {path}"] = _attempt(lambda fd: os.link(f"/proc/self/fd/{fd}", "new", follow_symlinks=True), fd)
        os.close(fd)
    with socket.socket(socket.AF_UNIX) as sock:
        said["bind"] = _attempt(sock.bind, "socket")
    said["tree"] = sorted(os.listdir(".")), [[oct(os.lstat(name).st_mode), os.lstat(name).st_size] for name in NAMES]
    return said


NAMES: Final = ("file", "other", "twin", "removed", "symlink", "fifo")


def _attempt(function: Callable[[Any], Any], argument: Any) -> str:
    try:
        function(argument)
    except OSError as exc:
        return errno.errorcode.get(exc.errno or 0, repr(exc))
    return "OK"


def main() -> None:
    """Do what the command line says."""
    what, directory = sys.argv[1:]
    os.chdir(directory)
    os.umask(0)
    if what == "make":
        make()
    else:
        print(json.dumps(change()))


if __name__ == "__main__":
    main()
