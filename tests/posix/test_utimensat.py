"""utimensat(2), futimens(3)."""

from __future__ import annotations

import os
from typing import Any

from tests.posix import common
from tests.posix.calls import AT_SYMLINK_NOFOLLOW, UTIME_NOW, UTIME_OMIT, now
from tests.posix.suite import ALICE, BOB, KINDS, OK, STAFF, TICK, Place, conformance, group, matrix

NOW, OMIT = (0, UTIME_NOW), (0, UTIME_OMIT)
SOME, OTHER = (1_000_000_000, 123_456_789), (1_500_000_000, 999_999_999)


@matrix
def paths(place: Place) -> None:
    common.path_errors(
        place,
        lambda who, path: who.utimensat(path, SOME, OTHER),
        fault=lambda address: place.root.raw("utimensat", -100, address, 0, 0),
    )
    path = place.make()
    place.equal("EFAULT: the times", place.root.raw("utimensat", -100, path, 1, 0), "EFAULT")


@matrix
def paths_of_symlinks(place: Place) -> None:
    common.path_errors(
        place,
        lambda who, path: who.utimensat(path, SOME, OTHER, AT_SYMLINK_NOFOLLOW),
        "symlink",
        follows=False,
        brief=True,
    )


@matrix
def who_may(place: Place) -> None:
    """Given times are for the owner; the present time also for who may write; nothing at all for everybody."""
    owner, stranger = place.alice, place.bob
    for kind in place.some(("file", "fifo", "dir"), 2):
        for mode in place.some((0o600, 0o660, 0o644, 0, 0o666), 3):
            for atime in (NOW, OMIT, SOME, None):
                for mtime in (NOW, OMIT, OTHER):
                    if atime is None and mtime != NOW:
                        continue
                    for who in (place.root, owner, stranger, place.user(BOB, STAFF)):
                        with place.case(f"{kind} {mode:#o}, {atime} {mtime}"):
                            path = place.make(kind, mode, (ALICE, STAFF))
                            before = os.stat(path)
                            writable = mode & (0o020 if who.name.endswith(f":{STAFF}") else 0o002)
                            want: Any = OK
                            if who not in (place.root, owner) and (atime, mtime) != (OMIT, OMIT):
                                both_now = atime is None or (atime, mtime) == (NOW, NOW)
                                want = "EPERM" if not both_now else OK if writable else "EACCES"
                            place.want(want, who, "utimensat", path, atime, mtime)
                            if want is not OK or (atime, mtime) == (OMIT, OMIT):
                                place.shape(
                                    path, atime=before.st_atime_ns, mtime=before.st_mtime_ns, ctime=before.st_ctime_ns
                                )
                                continue
                            if atime == SOME:
                                place.shape(path, atime=SOME[0] * 10**9 + SOME[1])
                            if atime == OMIT:
                                place.shape(path, atime=before.st_atime_ns)
                            if mtime == OTHER:
                                place.shape(path, mtime=OTHER[0] * 10**9 + OTHER[1])
                            if mtime == OMIT:
                                place.shape(path, mtime=before.st_mtime_ns)


@matrix
def values(place: Place) -> None:
    seconds = (
        0,
        1,
        -1,
        -1_000_000_000,
        1 - (1 << 31),
        (1 << 31) - 1,
        1 << 31,
        (1 << 32) - 1,
        1 << 32,
        10_000_000_000,
        15_032_385_534,
    )
    for kind in place.some(KINDS, 3):
        path = place.make(kind)
        for number, second in enumerate(seconds):
            for nanosecond in (0, 1, 999_999_999, 123_456_789):
                other = seconds[-number - 1]
                place.want(
                    OK, place.root, "utimensat", path, (second, nanosecond), (other, nanosecond), AT_SYMLINK_NOFOLLOW
                )
                place.shape(path, atime=second * 10**9 + nanosecond, mtime=other * 10**9 + nanosecond)
    path = place.make(owner=(ALICE, ALICE))
    for who in (place.root, place.alice):
        before = os.stat(path)
        for nanosecond in (-1, 10**9, 10**9 + 1, UTIME_NOW + 1, UTIME_OMIT - 1, 1 << 40):
            place.want("EINVAL", who, "utimensat", path, (1, nanosecond), SOME)
            place.want("EINVAL", who, "utimensat", path, SOME, (1, nanosecond))
            place.shape(path, atime=before.st_atime_ns, mtime=before.st_mtime_ns, ctime=before.st_ctime_ns)
        place.want("EINVAL", who, "utimensat", path, SOME, SOME, 1)


@group
def present_time(place: Place) -> None:
    for kind in KINDS:
        for who in (place.root, place.alice):
            for times in ((None, None), (NOW, NOW), (SOME, NOW), (NOW, SOME)):
                path = place.make(kind, owner=(ALICE, ALICE))
                place.want(OK, place.root, "utimensat", path, SOME, SOME, AT_SYMLINK_NOFOLLOW)
                start = now()
                place.want(OK, who, "utimensat", path, *times, AT_SYMLINK_NOFOLLOW)
                end = now()
                info = os.lstat(path)
                for value, given in ((info.st_atime_ns, times[0]), (info.st_mtime_ns, times[1])):
                    if given == SOME:
                        place.equal("given", value, SOME[0] * 10**9 + SOME[1])
                    else:
                        place.equal("about now", start - TICK * 10**9 <= value <= end, True)
                place.equal("ctime is about now", start - TICK * 10**9 <= info.st_ctime_ns <= end, True)


@group
def times(place: Place) -> None:
    table = place.times()
    for kind in KINDS:
        for atime, mtime, changed in (
            (SOME, OTHER, "amc"),
            (SOME, OMIT, "ac"),
            (OMIT, OTHER, "mc"),
            (OMIT, OMIT, ""),
            (NOW, NOW, "amc"),
        ):
            directory = place.directory(0o777)
            path = place.make(kind, None, (ALICE, ALICE), directory + "/x")
            for who in (place.alice,):
                table.case(
                    f"a {kind}: {atime} {mtime}",
                    lambda who=who, path=path, a=atime, m=mtime: who.utimensat(path, a, m, AT_SYMLINK_NOFOLLOW),
                    {path: changed, directory: ""},
                )
        path = place.make(kind, None, (ALICE, ALICE))
        table.case(
            f"a {kind} of another",
            lambda path=path: place.bob.utimensat(path, SOME, OTHER, AT_SYMLINK_NOFOLLOW),
            {path: ""},
            "EPERM",
        )
    table.run()


@group
def descriptors(place: Place) -> None:
    for kind in ("file", "dir", "fifo"):
        path = place.make(kind, 0o666, (ALICE, ALICE))
        for who, want in ((place.root, OK), (place.alice, OK), (place.bob, "EPERM")):
            fd = place.want(OK, who, "open", path, os.O_RDONLY | os.O_NONBLOCK)
            place.want(want, who, "utimensat", None, SOME, OTHER, 0, fd)
            place.shape(path, atime=SOME[0] * 10**9 + SOME[1], mtime=OTHER[0] * 10**9 + OTHER[1])
            place.want(OK, who, "utimensat", None, None, None, 0, fd)
            place.want(OK, who, "close", fd)
            place.want(OK, place.root, "utimensat", path, SOME, OTHER)
            place.want("EBADF", who, "utimensat", None, SOME, OTHER, 0, fd)


@group
def written_files_keep_given_times(place: Place) -> None:
    """What cp -p and tar do: write, set the times, close; nothing touches them later."""
    root = place.root
    for size in (0, 1, 5000, 70_000):
        path = place.name()
        fd = root.open(path, os.O_CREAT | os.O_RDWR)
        root.write(fd, bytes(size))
        place.want(OK, root, "utimensat", None, SOME, OTHER, 0, fd)
        place.shape(path, mtime=OTHER[0] * 10**9 + OTHER[1])
        place.want(OK, root, "fsync", fd)
        place.want(OK, root, "close", fd)
        place.shape(path, atime=SOME[0] * 10**9 + SOME[1], mtime=OTHER[0] * 10**9 + OTHER[1], size=size)
        place.want(OK, root, "chmod", path, 0o600)
        place.want(OK, root, "rename", path, path + ".moved")
        place.shape(path + ".moved", atime=SOME[0] * 10**9 + SOME[1], mtime=OTHER[0] * 10**9 + OTHER[1], size=size)
        root.append(path + ".moved", b"x")
        place.equal("a write is new", os.stat(path + ".moved").st_mtime_ns > OTHER[0] * 10**9 + OTHER[1], True)


test_utimensat = conformance(__name__)
