"""ftruncate(2)."""

from __future__ import annotations

import os

from tests.posix.suite import ALICE, BOB, OK, Place, conformance, group, matrix
from tests.posix.test_truncate import resized


@matrix
def sizes(place: Place) -> None:
    resized(place, "ftruncate")


@group
def descriptors(place: Place) -> None:
    for who in (place.root, place.alice):
        path = place.make(mode=0o666)
        for flags, want in (
            (os.O_RDONLY, "EINVAL"),
            (os.O_WRONLY, OK),
            (os.O_RDWR, OK),
            (os.O_PATH, "EBADF"),
            (os.O_WRONLY | os.O_APPEND, OK),
        ):
            fd = place.want(OK, who, "open", path, flags)
            place.want(want, who, "ftruncate", fd, 100)
            place.want("EINVAL", who, "ftruncate", fd, -1) if flags != os.O_PATH else None
            place.want(want, who, "ftruncate", fd, 0)
            place.want(OK, who, "close", fd)
            place.want("EBADF", who, "ftruncate", fd, 0)
        fd = place.want(OK, who, "open", ".", os.O_RDONLY)
        place.want("EINVAL", who, "ftruncate", fd, 0)
        place.want(OK, who, "close", fd)
        fd = place.want(OK, who, "open", place.make("fifo", 0o666), os.O_RDWR)
        place.want("EINVAL", who, "ftruncate", fd, 0)
        place.want(OK, who, "close", fd)
    place.want("EBADF", place.root, "ftruncate", -1, 0)


@group
def a_descriptor_is_enough(place: Place) -> None:
    """Permission was checked when the file was opened."""
    path = place.make(owner=(ALICE, ALICE), mode=0o600)
    fd = place.alice.open(path, os.O_RDWR)
    os.chmod(path, 0)
    os.chown(path, BOB, BOB)
    place.want(OK, place.alice, "ftruncate", fd, 1000)
    place.shape(path, size=1000)
    place.want("EACCES", place.alice, "truncate", path, 0)
    place.want(OK, place.alice, "close", fd)
    fd = place.alice.open(place.name(), os.O_CREAT | os.O_RDWR, 0)
    place.want(OK, place.alice, "ftruncate", fd, 5)
    place.want(bytes(5), place.alice, "pread", fd, 10, 0)
    place.want(OK, place.alice, "close", fd)


@group
def offsets_stay(place: Place) -> None:
    root = place.root
    fd = root.open(place.name(), os.O_CREAT | os.O_RDWR)
    root.write(fd, b"0123456789")
    for size in (5, 0, 100, 10):
        place.want(OK, root, "ftruncate", fd, size)
        place.want(10, root, "lseek", fd, 0, os.SEEK_CUR)
    place.want(1, root, "write", fd, b"x")
    place.want(bytes(10) + b"x", root, "pread", fd, 100, 0)
    place.want(OK, root, "ftruncate", fd, 0)
    place.want(1, root, "write", fd, b"y")
    place.want(bytes(11) + b"y", root, "pread", fd, 100, 0)
    os.close(fd)
    path = place.name()
    fds = [root.open(path, os.O_CREAT | os.O_RDWR) for _ in range(3)]
    root.pwrite(fds[0], b"shared", 0)
    place.want(OK, root, "ftruncate", fds[1], 3)
    place.want(b"sha", root, "pread", fds[2], 10, 0)
    place.want(b"sha", root, "content", path)
    os.unlink(path)
    place.want(OK, root, "ftruncate", fds[1], 1)
    place.want(b"s", root, "pread", fds[2], 10, 0)
    for fd in fds:
        os.close(fd)


@group
def limits(place: Place) -> None:
    for who in (place.root, place.alice):
        fd = place.want(OK, who, "open", place.name(), os.O_CREAT | os.O_RDWR)
        place.want("EFBIG", who, "ftruncate", fd, (1 << 63) - 1)
        place.want(OK, who, "ftruncate", fd, 1 << 42)
        place.want(1 << 42, who, "lseek", fd, 0, os.SEEK_END)
        place.want(4, who, "pwrite", fd, b"last", (1 << 42) - 4)
        place.want(b"last", who, "pread", fd, 100, (1 << 42) - 4)
        place.want(bytes(100), who, "pread", fd, 100, 1 << 41)
        place.want(OK, who, "ftruncate", fd, 0)
        place.want("EFBIG", who, "limited", 10, "ftruncate", fd, 11)
        place.want(OK, who, "close", fd)


@group
def times(place: Place) -> None:
    table = place.times()
    fds = []
    for who in (place.root, place.alice):
        for before, after in ((10, 5), (10, 20), (0, 0), (10, 10), (10, 0)):
            path = place.name()
            place.root.fill(path, bytes(before))
            os.chmod(path, 0o666)
            fd = who.open(path, os.O_RDWR)
            fds.append((who, fd))
            table.case(
                f"{before} to {after}", lambda who=who, fd=fd, after=after: who.ftruncate(fd, after), {path: "mc"}
            )
        path = place.make(mode=0o666)
        fd = who.open(path, os.O_RDONLY)
        fds.append((who, fd))
        table.case("a read-only descriptor", lambda who=who, fd=fd: who.ftruncate(fd, 5), {path: ""}, "EINVAL")
    table.run()
    for who, fd in fds:
        who.close(fd)


test_ftruncate = conformance(__name__)
