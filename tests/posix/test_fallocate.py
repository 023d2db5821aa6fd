"""fallocate(2), posix_fallocate(3)."""

from __future__ import annotations

import os

from tests.posix.differences import differs
from tests.posix.suite import OK, Place, conformance, group

KEEP, PUNCH, COLLAPSE, ZERO, INSERT = 1, 2, 8, 16, 32
PAGE = 4096


@group
def modes(place: Place) -> None:
    """pyfuse3 has no fallocate: every mode is EOPNOTSUPP there, and the file stays as it is."""
    for who in (place.root, place.alice):
        for mode, offset, length, size in (
            (0, 0, 10_000, 10_000), (KEEP, 0, 10_000, 3 * PAGE), (PUNCH | KEEP, PAGE, PAGE, 3 * PAGE),
            (ZERO, 0, PAGE, 3 * PAGE), (ZERO | KEEP, 0, 9 * PAGE, 3 * PAGE), (COLLAPSE, 0, PAGE, 2 * PAGE),
            (INSERT, 0, PAGE, 4 * PAGE), (0, 1 << 20, 5, (1 << 20) + 5),
        ):  # fmt: skip
            with place.case(f"mode {mode} at {offset}+{length}"):
                path = place.name()
                place.root.fill(path, b"x" * 3 * PAGE)
                os.chmod(path, 0o666)
                fd = who.open(path, os.O_RDWR)
                place.want(differs("fallocate"), who, "fallocate", fd, mode, offset, length)
                kept = max(size, 3 * PAGE) if mode == 0 else size
                place.shape(path, size=kept if place.target == "ext4" else 3 * PAGE)
                place.want(OK, who, "close", fd)


@group
def errors(place: Place) -> None:
    for who in (place.root, place.alice):
        path = place.make(mode=0o666)
        reader, writer = who.open(path, os.O_RDONLY), who.open(path, os.O_RDWR)
        place.want("EBADF", who, "fallocate", reader, 0, 0, 10)
        for offset, length in ((-1, 10), (0, 0), (0, -1)):
            place.want("EINVAL", who, "fallocate", writer, 0, offset, length)
        place.want(differs("fallocate past the limit"), who, "fallocate", writer, 0, 1 << 62, 1 << 62)
        place.want("EOPNOTSUPP", who, "fallocate", writer, 1 << 20, 0, 10)
        place.want("EOPNOTSUPP", who, "fallocate", writer, PUNCH, 0, 10)
        place.want(OK, who, "close", reader)
        place.want(OK, who, "close", writer)
        place.want("EBADF", who, "fallocate", writer, 0, 0, 10)
        fd = who.open(place.make("fifo", 0o666), os.O_RDWR)
        place.want("ESPIPE", who, "fallocate", fd, 0, 0, 10)
        place.want(OK, who, "close", fd)
        fd = who.open(".", os.O_RDONLY)
        place.want("EBADF", who, "fallocate", fd, 0, 0, 10)
        place.want(OK, who, "close", fd)


@group
def posix(place: Place) -> None:
    """glibc writes a byte in each block where the file system cannot: the size grows and content stays."""
    for who in (place.root, place.alice):
        for before in (0, 10, 5000):
            for offset, length in ((0, 1), (0, 5000), (4096, 10_000), (100_000, 1), (3, 4)):
                with place.case(f"{before} bytes, {offset}+{length}"):
                    path = place.name()
                    place.root.fill(path, b"x" * before)
                    os.chmod(path, 0o666)
                    fd = who.open(path, os.O_RDWR)
                    place.want(OK, who, "posix_fallocate", fd, offset, length)
                    size = max(before, offset + length)
                    place.shape(path, size=size)
                    place.equal("content", who.content(path) == b"x" * before + bytes(size - before), True)
                    place.want(OK, who, "close", fd)
    path = place.make()
    fd = os.open(path, os.O_RDONLY)
    place.want("EBADF", place.root, "posix_fallocate", fd, 0, 10)
    os.close(fd)
    fd = os.open(path, os.O_RDWR)
    place.want("EINVAL", place.root, "posix_fallocate", fd, 0, 0)
    place.want("EINVAL", place.root, "posix_fallocate", fd, -1, 5)
    os.close(fd)


test_fallocate = conformance(__name__)
