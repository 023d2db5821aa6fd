"""chown(2), lchown(2), fchown(2), fchownat(2)."""

from __future__ import annotations

import os
from typing import Any

from tests.posix import common
from tests.posix.calls import AT_EMPTY_PATH, AT_FDCWD, AT_SYMLINK_NOFOLLOW
from tests.posix.suite import ALICE, BOB, GUESTS, KINDS, OK, SOLID, STAFF, Place, conformance, group, matrix

LARGEST = 0xFFFFFFFE


@matrix
def paths(place: Place) -> None:
    common.path_errors(
        place, lambda who, path: who.chown(path, -1, -1), fault=lambda address: place.root.raw("chown", address, 1, 1)
    )


@matrix
def paths_of_symlinks(place: Place) -> None:
    common.path_errors(
        place,
        lambda who, path: who.lchown(path, -1, -1),
        "symlink",
        follows=False,
        brief=True,
        fault=lambda address: place.root.raw("lchown", address, 1, 1),
    )


@matrix
def any_owner_by_root(place: Place) -> None:
    ids = [0, 1, 2, 1000, 65533, 65534, 65535, 65536, 100_000, 0x7FFFFFFF, 0x80000000, LARGEST]
    for kind in place.some(KINDS, 4):
        path = place.make(kind)
        uid = gid = 0
        for number, new in enumerate(ids):
            other = ids[-number - 1]
            for change in ((new, other), (-1, new), (other, -1), (-1, -1)):
                place.want(OK, place.root, "lchown", path, *change)
                uid, gid = (uid if change[0] == -1 else change[0]), (gid if change[1] == -1 else change[1])
                place.shape(path, uid=uid, gid=gid, kind=kind)


@group
def by_others(place: Place) -> None:
    """The owner may give the file to a group of his; nobody but root gives it to another user."""
    cases: list[tuple[Any, tuple[int, int], Any]] = []
    alice, bob = place.alice, place.bob
    cases += [(alice, (-1, group), OK) for group in (ALICE, STAFF, -1)]
    cases += [(alice, (ALICE, group), OK) for group in (ALICE, STAFF, -1)]
    cases += [(alice, (-1, group), "EPERM") for group in (BOB, GUESTS, 0)]
    cases += [(alice, (uid, -1), "EPERM") for uid in (BOB, 0, 1)]
    cases += [(alice, (BOB, ALICE), "EPERM"), (alice, (0, STAFF), "EPERM")]
    cases += [
        (bob, change, "EPERM") for change in ((BOB, -1), (-1, BOB), (-1, GUESTS), (ALICE, -1), (BOB, BOB), (0, 0))
    ]
    cases += [(place.user(BOB, STAFF), (-1, STAFF), "EPERM"), (place.user(ALICE, BOB), (-1, BOB), OK)]
    cases += [(place.user(ALICE, BOB), (-1, ALICE), OK), (place.user(ALICE, BOB), (-1, STAFF), "EPERM")]
    for kind in KINDS:
        for who, (uid, gid), want in cases:
            with place.case(kind):
                path = place.make(kind, owner=(ALICE, ALICE))
                before = os.lstat(path)
                place.want(want, who, "lchown", path, uid, gid)
                new_gid = ALICE if gid == -1 or want is not OK else gid
                place.shape(path, uid=ALICE, gid=new_gid)
                if want is not OK:
                    place.shape(path, ctime=before.st_ctime_ns)


@matrix
def set_ids_are_cleared(place: Place) -> None:
    """A new owner or group clears S_ISUID, and S_ISGID if the group may execute; directories keep both."""
    for kind in place.some(SOLID, 3):
        for mode in (0o4755, 0o2755, 0o6755, 0o6777, 0o2745, 0o6644, 0o2644, 0o1777, 0o7711, 0o755):
            for who, change in (
                (place.root, (BOB, BOB)),
                (place.root, (-1, STAFF)),
                (place.alice, (-1, STAFF)),
                (place.root, (ALICE, ALICE)),
            ):
                with place.case(f"a {kind} {mode:#o} by {who.name} to {change}"):
                    path = place.make(kind, 0, (ALICE, ALICE))
                    os.chmod(path, mode)
                    place.equal("result", who.chown(path, *change), OK)
                    want = mode
                    if kind != "dir":
                        want &= ~0o4000
                        if mode & 0o010:
                            want &= ~0o2000
                    place.shape(path, mode=want)


@group
def symlinks(place: Place) -> None:
    root = place.root
    for kind in ("tofile", "todir"):
        path = place.make(kind)
        place.want(OK, root, "chown", path, 5, 6)
        place.shape(path, uid=0, gid=0)
        place.shape(path + ".target", uid=5, gid=6)
        place.want(OK, root, "lchown", path, 7, 8)
        place.shape(path, uid=7, gid=8)
        place.shape(path + ".target", uid=5, gid=6)
        for flags, changed in ((0, path + ".target"), (AT_SYMLINK_NOFOLLOW, path)):
            place.want(OK, root, "fchownat", AT_FDCWD, path, 9, 10, flags)
            place.shape(changed, uid=9, gid=10)
        place.want("EINVAL", root, "fchownat", AT_FDCWD, path, 9, 10, 1)
    path = place.make("dangling")
    place.want("ENOENT", root, "chown", path, 1, 1)
    place.want(OK, root, "lchown", path, 1, 1)
    place.shape(path, uid=1, gid=1, mode=0o777)


@group
def descriptors(place: Place) -> None:
    root = place.root
    for kind in ("file", "dir", "fifo"):
        path = place.make(kind, 0o666)
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        place.want(OK, root, "fchown", fd, 3, 4)
        place.shape(path, uid=3, gid=4)
        place.want(OK, root, "fchownat", fd, "", 5, 6, AT_EMPTY_PATH)
        place.shape(path, uid=5, gid=6)
        place.want("ENOENT", root, "fchownat", fd, "", 5, 6)
        os.close(fd)
        place.want("EBADF", root, "fchown", fd, 3, 4)
    path = place.make(mode=0o666)
    fd = place.want(OK, place.alice, "open", path)
    place.want("EPERM", place.alice, "fchown", fd, ALICE, -1)
    place.want(OK, place.alice, "close", fd)
    directory = place.directory()
    place.make(path=directory + "/x")
    fd = os.open(directory, os.O_RDONLY)
    place.want(OK, root, "fchownat", fd, "x", 1, 2)
    place.shape(directory + "/x", uid=1, gid=2)
    os.close(fd)


@group
def times(place: Place) -> None:
    table = place.times()
    for kind in KINDS:
        for who, change in (
            (place.root, (BOB, BOB)),
            (place.alice, (-1, STAFF)),
            (place.root, (-1, -1)),
            (place.alice, (ALICE, ALICE)),
        ):
            directory = place.directory(0o777)
            path = place.make(kind, None, (ALICE, ALICE), directory + "/x")
            table.case(
                f"a {kind} to {change}",
                lambda who=who, path=path, to=change: who.lchown(path, *to),
                {path: "c", directory: ""},
            )
        path = place.make(kind, None, (ALICE, ALICE))
        table.case(f"a {kind} of another", lambda path=path: place.bob.lchown(path, BOB, BOB), {path: ""}, "EPERM")
    link = place.make("tofile")
    table.case("through a symlink", lambda: place.root.chown(link, 5, 5), {link + ".target": "c"})
    table.run()


test_chown = conformance(__name__)
