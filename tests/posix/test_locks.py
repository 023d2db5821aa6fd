"""flock(2), fcntl(2) record locks, open file description locks. All within one mount (fuse.md, 22)."""

from __future__ import annotations

import fcntl
import os
from typing import Any

from tests.posix.suite import OK, Place, conformance, group

SHARED, EXCLUSIVE, UNLOCK = fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN
READ, WRITE, FREE = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
OFD_GET, OFD_SET = 36, 37


@group
def whole_files(place: Place) -> None:
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
        path = place.make(mode=0o666)
        who = (place.root, place.alice, place.bob)
        fds = [caller.open(path, flags) for caller in who]
        for mine in (SHARED, EXCLUSIVE, UNLOCK):
            for theirs in (SHARED, EXCLUSIVE):
                with place.case(f"{mine} then {theirs}"):
                    place.want(OK, who[0], "flock", fds[0], mine)
                    want: Any = OK if mine == UNLOCK or mine == theirs == SHARED else "EAGAIN"
                    place.want(want, who[1], "flock", fds[1], theirs)
                    if want is OK and theirs == EXCLUSIVE:
                        place.want("EAGAIN", who[2], "flock", fds[2], SHARED)
                    for caller, fd in zip(who, fds, strict=True):
                        place.want(OK, caller, "flock", fd, UNLOCK)
        place.want(OK, who[0], "flock", fds[0], SHARED)
        place.want(OK, who[0], "flock", fds[0], EXCLUSIVE)
        place.want(OK, who[0], "flock", fds[0], SHARED)
        place.want(OK, who[1], "flock", fds[1], SHARED)
        place.want("EAGAIN", who[0], "flock", fds[0], EXCLUSIVE)
        double = os.dup(fds[0])
        place.want(OK, who[0], "flock", fds[0], SHARED)
        os.close(fds[0])
        place.want("EAGAIN", who[1], "flock", fds[1], EXCLUSIVE)
        os.close(double)
        place.want(OK, who[1], "flock", fds[1], EXCLUSIVE)
        again = os.open(path, flags)
        place.want("EAGAIN", who[0], "flock", again, SHARED)
        place.want(OK, who[1], "close", fds[1])
        place.want(OK, who[0], "flock", again, EXCLUSIVE)
        place.want("EINVAL", who[0], "flock", again, 64)
        os.close(again)
        place.want(OK, who[2], "close", fds[2])
        place.want("EBADF", who[0], "flock", again, SHARED)
    directory = place.directory(0o777)
    fds = [place.root.open(directory, os.O_RDONLY), place.alice.open(directory, os.O_RDONLY)]
    place.want(OK, place.root, "flock", fds[0], EXCLUSIVE)
    place.want("EAGAIN", place.alice, "flock", fds[1], SHARED)
    os.close(fds[0])
    place.want(OK, place.alice, "flock", fds[1], SHARED)
    place.want(OK, place.alice, "close", fds[1])


@group
def records(place: Place) -> None:
    """Every kind of lock against every other, for ranges that touch, overlap, contain each other or not."""
    path = place.make(mode=0o666)
    for get, put in ((fcntl.F_GETLK, fcntl.F_SETLK), (OFD_GET, OFD_SET)):
        one, two = place.root.open(path, os.O_RDWR), place.alice.open(path, os.O_RDWR)
        for held in (READ, WRITE):
            for asked in (READ, WRITE):
                for start, length, overlaps in (
                    (100, 50, True), (0, 0, True), (0, 100, False), (0, 101, True), (149, 1, True), (150, 10, False),
                    (120, 5, True), (90, 100, True), (149, 0, True), (150, 0, False),
                ):  # fmt: skip
                    with place.case(f"{held} against {asked} at {start}+{length}"):
                        place.want(OK, place.root, "record_lock", one, held, 100, 50, put)
                        conflict = overlaps and WRITE in (held, asked)
                        place.want(
                            "EAGAIN" if conflict else OK, place.alice, "record_lock", two, asked, start, length, put
                        )
                        if not conflict:
                            place.want(OK, place.alice, "record_lock", two, FREE, 0, 0, put)
                        want: Any = (held, 100, 50) if conflict else (FREE, start, length)
                        place.want(want, place.alice, "record_lock", two, asked, start, length, get)
                        place.want(OK, place.root, "record_lock", one, FREE, 0, 0, put)
        place.want(OK, place.root, "close", one)
        place.want(OK, place.alice, "close", two)


@group
def splitting_and_joining(place: Place) -> None:
    path = place.make(mode=0o666)
    one, two = place.root.open(path, os.O_RDWR), place.alice.open(path, os.O_RDWR)

    def probe(start: int, length: int = 1) -> Any:
        return place.alice.record_lock(two, WRITE, start, length, fcntl.F_GETLK)

    place.want(OK, place.root, "record_lock", one, WRITE, 0, 100)
    place.want(OK, place.root, "record_lock", one, FREE, 40, 20)
    for at, want in (
        (0, (WRITE, 0, 40)),
        (39, (WRITE, 0, 40)),
        (40, (FREE, 40, 1)),
        (59, (FREE, 59, 1)),
        (60, (WRITE, 60, 40)),
        (100, (FREE, 100, 1)),
    ):
        place.equal(f"at {at}", probe(at), want)
    place.want(OK, place.root, "record_lock", one, READ, 40, 20)
    place.equal("three parts", probe(0, 100), (WRITE, 0, 40))
    place.want(OK, place.root, "record_lock", one, WRITE, 40, 20)
    place.equal("one again", probe(50), (WRITE, 0, 100))
    place.want(OK, place.root, "record_lock", one, WRITE, 50, 0)
    place.equal("to the end", probe(1 << 50), (WRITE, 0, 0))
    other = place.root.open(path, os.O_RDONLY)
    place.want(OK, place.root, "close", other)
    place.equal("closing any descriptor releases the process' locks", probe(0, 0), (FREE, 0, 0))
    place.want(OK, place.root, "close", one)
    place.want(OK, place.alice, "close", two)


@group
def descriptions(place: Place) -> None:
    """Open file description locks bind descriptors, not processes."""
    path = place.make()
    one, two = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    double = os.dup(one)
    place.want(OK, place.root, "record_lock", one, WRITE, 0, 10, OFD_SET)
    place.want("EAGAIN", place.root, "record_lock", two, READ, 0, 10, OFD_SET)
    place.want("EAGAIN", place.root, "record_lock", two, READ, 0, 10)
    os.close(os.open(path, os.O_RDONLY))
    place.want("EAGAIN", place.root, "record_lock", two, READ, 5, 1, OFD_SET)
    os.close(one)
    place.want("EAGAIN", place.root, "record_lock", two, READ, 5, 1, OFD_SET)
    os.close(double)
    place.want(OK, place.root, "record_lock", two, READ, 5, 1, OFD_SET)
    os.close(two)


@group
def errors(place: Place) -> None:
    for who in (place.root, place.alice):
        path = place.make(mode=0o666)
        reader, writer = who.open(path, os.O_RDONLY), who.open(path, os.O_WRONLY)
        place.want("EBADF", who, "record_lock", reader, WRITE)
        place.want(OK, who, "record_lock", reader, READ)
        place.want("EBADF", who, "record_lock", writer, READ)
        place.want(OK, who, "record_lock", writer, WRITE)
        place.want("EINVAL", who, "record_lock", writer, 77)
        place.want("EINVAL", who, "record_lock", writer, WRITE, -1, 1)
        place.want("EINVAL", who, "record_lock", writer, WRITE, 0, -1)
        place.want({"EOVERFLOW", "EINVAL"}, who, "record_lock", writer, WRITE, (1 << 63) - 1, 10)
        place.want(OK, who, "close", reader)
        place.want(OK, who, "close", writer)
        place.want("EBADF", who, "record_lock", writer, WRITE)


test_locks = conformance(__name__)
