"""fsync(2), fdatasync(2), sync_file_range(2), syncfs(2)."""

from __future__ import annotations

import os

from tests.posix.suite import OK, Place, conformance, group


@group
def kinds(place: Place) -> None:
    for who in (place.root, place.alice):
        for call in ("fsync", "fdatasync"):
            for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_SYNC):
                fd = who.open(place.make(mode=0o666), flags)
                place.want(OK, who, call, fd)
                place.want(OK, who, "close", fd)
                place.want("EBADF", who, call, fd)
            fd = who.open(place.directory(0o777), os.O_RDONLY)
            place.want(OK, who, call, fd)
            place.want(OK, who, "close", fd)
            fd = who.open(place.make("fifo", 0o666), os.O_RDWR)
            place.want("EINVAL", who, call, fd)
            place.want(OK, who, "close", fd)
            fd = who.open(place.make(), os.O_PATH)
            place.want("EBADF", who, call, fd)
            place.want(OK, who, "close", fd)
            place.want("EBADF", who, "raw", call, -1)


@group
def after_changes(place: Place) -> None:
    root = place.root
    for size in (0, 1, 4096, 70_000, 1_100_000):
        for call in ("fsync", "fdatasync"):
            path = place.name()
            data = os.urandom(size)
            fd = root.open(path, os.O_CREAT | os.O_RDWR)
            root.write(fd, data)
            before = os.fstat(fd)
            place.want(OK, root, call, fd)
            after = os.fstat(fd)
            place.equal("times stay", (after.st_mtime_ns, after.st_ctime_ns), (before.st_mtime_ns, before.st_ctime_ns))
            place.equal("content", root.content(path, size + 1) == data, True)
            place.want(OK, root, "ftruncate", fd, size // 2)
            place.want(OK, root, call, fd)
            os.unlink(path)
            place.want(OK, root, "pwrite", fd, b"unlinked", 0)
            place.want(OK, root, call, fd)
            place.want(b"unlinked", root, "pread", fd, 8, 0)
            os.close(fd)


@group
def whole_file_systems(place: Place) -> None:
    for who in (place.root, place.alice):
        path = place.make(mode=0o666)
        fd = who.open(path, os.O_RDWR)
        place.want(1, who, "write", fd, b"x")
        place.want(OK, who, "raw", "syncfs", fd)
        place.want(OK, who, "raw", "sync_file_range", fd, 0, 0, 7)
        place.want("EINVAL", who, "raw", "sync_file_range", fd, 0, 0, 8)
        place.want("EINVAL", who, "raw", "sync_file_range", fd, -1, 0, 7)
        place.want(OK, who, "close", fd)
        place.want("EBADF", who, "raw", "syncfs", fd)


test_fsync = conformance(__name__)
