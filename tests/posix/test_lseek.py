"""lseek(2)."""

from __future__ import annotations

import os

from tests.posix.differences import differs
from tests.posix.suite import OK, Place, conformance, group

FARTHEST = 1 << 43
"""A position that both file systems allow; ext4 ends at 16 TiB with 4 KiB blocks."""


@group
def positions(place: Place) -> None:
    for who in (place.root, place.alice):
        for size in (0, 1, 10, 5000):
            path = place.name()
            place.root.fill(path, bytes(size))
            os.chmod(path, 0o666)
            fd = who.open(path, os.O_RDWR)
            for base, start in ((os.SEEK_SET, 0), (os.SEEK_CUR, 7), (os.SEEK_END, size)):
                for offset in (0, 1, -1, 5, -5, 100, -100, 4096, 1 << 31, 1 << 32, 1 << 42, FARTHEST - 8000):
                    who.lseek(fd, 7, os.SEEK_SET)
                    want = start + offset
                    place.want(want if want >= 0 else "EINVAL", who, "lseek", fd, offset, base)
                    place.want(want if want >= 0 else 7, who, "lseek", fd, 0, os.SEEK_CUR)
            place.shape(path, size=size)
            place.want("EINVAL", who, "lseek", fd, 0, 5)
            place.want("EINVAL", who, "lseek", fd, 0, -1)
            place.want({"EOVERFLOW", "EINVAL"}, who, "lseek", fd, (1 << 63) - 1, os.SEEK_END) if size else None
            place.want(OK, who, "close", fd)
            place.want("EBADF", who, "lseek", fd, 0, os.SEEK_SET)


@group
def behind_the_end(place: Place) -> None:
    root = place.root
    for gap in (1, 100, 4096, 5000, 1 << 20, 1 << 33):
        path = place.name()
        fd = root.open(path, os.O_CREAT | os.O_RDWR)
        root.write(fd, b"start")
        place.want(5 + gap, root, "lseek", fd, gap, os.SEEK_END)
        place.shape(path, size=5)
        place.want(b"", root, "read", fd, 10)
        place.want(3, root, "write", fd, b"end")
        place.shape(path, size=8 + gap)
        place.want(bytes(min(gap, 50)), root, "pread", fd, min(gap, 50), 5)
        place.want(b"end", root, "pread", fd, 50, 5 + gap)
        os.close(fd)


@group
def shared_offsets(place: Place) -> None:
    root = place.root
    path = place.name()
    root.fill(path, b"0123456789")
    fd, apart = root.open(path), root.open(path)
    double = root.dup(fd)
    place.want(4, root, "lseek", fd, 4, os.SEEK_SET)
    place.want(4, root, "lseek", double, 0, os.SEEK_CUR)
    place.want(0, root, "lseek", apart, 0, os.SEEK_CUR)
    place.want(b"45", root, "read", double, 2)
    place.want(6, root, "lseek", fd, 0, os.SEEK_CUR)
    pid = os.fork()
    if not pid:
        os.lseek(fd, 9, os.SEEK_SET)
        os._exit(0)
    os.waitpid(pid, 0)
    place.want(b"9", root, "read", fd, 5)
    for number in (fd, apart, double):
        os.close(number)


@group
def other_kinds(place: Place) -> None:
    for who in (place.root, place.alice):
        fd = who.open(place.make("fifo", 0o666), os.O_RDWR)
        for whence in (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END):
            place.want("ESPIPE", who, "lseek", fd, 0, whence)
        place.want(OK, who, "close", fd)
        fd = who.open(place.directory(0o755), os.O_RDONLY)
        place.want(0, who, "lseek", fd, 0, os.SEEK_SET)
        place.want(0, who, "lseek", fd, 0, os.SEEK_CUR)
        place.want("EINVAL", who, "lseek", fd, -1, os.SEEK_SET)
        place.want(OK, who, "close", fd)


@group
def holes(place: Place) -> None:
    root = place.root
    mib = 1 << 20
    for size in (1, 4096, 10_000, mib):
        fd = root.open(place.name(), os.O_CREAT | os.O_RDWR)
        root.write(fd, bytes(size))
        for offset in (0, size // 2, size - 1):
            place.want(offset, root, "lseek", fd, offset, os.SEEK_DATA)
            place.want(size, root, "lseek", fd, offset, os.SEEK_HOLE)
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            place.want("ENXIO", root, "lseek", fd, size, whence)
            place.want("ENXIO", root, "lseek", fd, size + 100, whence)
            place.want("ENXIO", root, "lseek", fd, -1, whence)
        os.close(fd)
    fd = root.open(place.name(), os.O_CREAT | os.O_RDWR)
    os.pwrite(fd, b"x" * 4096, 4 * mib)
    os.ftruncate(fd, 8 * mib)
    place.want(differs("SEEK_DATA in a hole"), root, "lseek", fd, 0, os.SEEK_DATA)
    place.want(differs("SEEK_HOLE in a hole"), root, "lseek", fd, 0, os.SEEK_HOLE)
    place.want(4 * mib, root, "lseek", fd, 4 * mib, os.SEEK_DATA)
    place.want(differs("SEEK_HOLE after data"), root, "lseek", fd, 4 * mib, os.SEEK_HOLE)
    place.want(differs("SEEK_DATA behind all data"), root, "lseek", fd, 5 * mib, os.SEEK_DATA)
    os.close(fd)


test_lseek = conformance(__name__)
