"""chmod(2), fchmod(2), fchmodat(2)."""

from __future__ import annotations

import os
from typing import Any

from tests.posix import common
from tests.posix.calls import AT_FDCWD, AT_SYMLINK_NOFOLLOW
from tests.posix.differences import differs
from tests.posix.suite import ALICE, BOB, GUESTS, OK, SOLID, STAFF, Place, conformance, group, matrix


@matrix
def paths(place: Place) -> None:
    common.path_errors(
        place, lambda who, path: who.chmod(path, 0o640), fault=lambda address: place.root.raw("chmod", address, 0o640)
    )
    common.path_errors(place, lambda who, path: who.chmod(path, 0o750), "dir", brief=True)


@matrix
def every_mode(place: Place) -> None:
    for kind in SOLID:
        path = place.make(kind)
        for mode in place.some(range(0o10000), 64 if kind in ("file", "dir") else 20):
            place.equal(f"chmod {mode:#o} of a {kind}", place.root.chmod(path, mode), OK)
            place.shape(path, mode=mode, kind=kind)
    path = place.make(owner=(ALICE, ALICE))
    for mode in place.some(range(0o10000), 64):
        place.equal(f"by its owner {mode:#o}", place.alice.chmod(path, mode), OK)
        place.shape(path, mode=mode)
    for mode, want in ((0o100644, 0o644), (0o170777, 0o777), (0o40755, 0o755), (-1, 0o7777)):
        place.want(OK, place.root, "raw", "chmod", path, mode)
        place.shape(path, mode=want, kind="file")


@matrix
def only_the_owner(place: Place) -> None:
    members = [place.alice, place.user(ALICE, ALICE), place.user(ALICE, BOB)]
    others = [place.bob, place.user(BOB, STAFF), place.user(BOB, ALICE), place.user(BOB, BOB, ALICE, STAFF)]
    for kind in SOLID:
        for mode in place.some((0, 0o644, 0o777, 0o4755, 0o7777), 2):
            for who in members:
                path = place.make(kind, owner=(ALICE, STAFF))
                place.want(OK, who, "chmod", path, mode)
            for who in others:
                path = place.make(kind, 0o777, owner=(ALICE, STAFF))
                before = os.stat(path).st_ctime_ns
                place.want("EPERM", who, "chmod", path, mode)
                place.shape(path, mode=0o777, ctime=before)


@matrix
def set_group_id_of_strangers(place: Place) -> None:
    """An owner who is not in the file's group cannot set S_ISGID: it is dropped silently."""
    for kind in place.some(("file", "fifo", "dir"), 2):
        for mode in (0o2755, 0o2644, 0o6755, 0o7777, 0o2000, 0o3770):
            for group_id, kept in ((ALICE, True), (STAFF, True), (GUESTS, False), (0, False)):
                path = place.make(kind, 0, (ALICE, group_id))
                place.want(OK, place.alice, "chmod", path, mode)
                place.shape(path, mode=mode if kept else mode & ~0o2000)
                place.want(OK, place.root, "chmod", path, mode)
                place.shape(path, mode=mode)


@group
def sticky_files(place: Place) -> None:
    for kind in SOLID:
        path = place.make(kind, 0, (ALICE, ALICE))
        for mode in (0o1644, 0o1777, 0o1000):
            place.want(OK, place.alice, "chmod", path, mode)
            place.shape(path, mode=mode)


@group
def descriptors(place: Place) -> None:
    for kind in ("file", "dir", "fifo"):
        path = place.make(kind, 0o666, (ALICE, ALICE))
        for who, want in ((place.root, OK), (place.alice, OK), (place.bob, "EPERM")):
            fd = place.want(OK, who, "open", path, os.O_RDONLY | os.O_NONBLOCK)
            for mode in (0o777, 0o4755, 0o666):
                place.want(want, who, "fchmod", fd, mode)
                if want is OK:
                    place.shape(path, mode=mode)
            place.want(OK, who, "close", fd)
            place.want("EBADF", who, "fchmod", fd, 0o644)
    directory = place.directory()
    place.make(path=directory + "/x")
    fd = os.open(directory, os.O_RDONLY)
    place.want(OK, place.root, "fchmodat", fd, "x", 0o600)
    place.shape(directory + "/x", mode=0o600)
    place.want("ENOENT", place.root, "fchmodat", fd, "y", 0o600)
    place.want("EINVAL", place.root, "fchmodat", fd, "x", 0o600, 1)
    os.close(fd)
    place.want("EBADF", place.root, "fchmodat", fd, "x", 0o600)


@group
def symlinks(place: Place) -> None:
    for who in (place.root, place.alice):
        path = place.make("tofile")
        os.chown(path + ".target", ALICE, ALICE)
        place.want(OK, who, "chmod", path, 0o604)
        place.shape(path + ".target", mode=0o604)
        place.shape(path, mode=0o777)
        want: Any = "EOPNOTSUPP"
        os.lchown(path, ALICE, ALICE)
        place.want(want, who, "fchmodat", AT_FDCWD, path, 0o600, AT_SYMLINK_NOFOLLOW)
        place.want(
            want, who, "fchmodat", AT_FDCWD, place.make("dangling", owner=(ALICE, ALICE)), 0o600, AT_SYMLINK_NOFOLLOW
        )
        for kind in SOLID:
            other = place.make(kind, owner=(ALICE, ALICE))
            place.want(OK, who, "fchmodat", AT_FDCWD, other, 0o601, AT_SYMLINK_NOFOLLOW)
            place.shape(other, mode=0o601)


@group
def times(place: Place) -> None:
    table = place.times()
    for kind in SOLID:
        for who in (place.root, place.alice):
            directory = place.directory(0o777)
            path = place.make(kind, 0o644, (ALICE, ALICE), directory + "/x")
            table.case(f"a {kind}", lambda who=who, path=path: who.chmod(path, 0o600), {path: "c", directory: ""})
            same = place.make(kind, 0o644, (ALICE, ALICE))
            table.case(f"a {kind}, the same mode", lambda who=who, path=same: who.chmod(path, 0o644), {same: "c"})
        path = place.make(kind, 0o644, (ALICE, ALICE))
        table.case(f"a {kind} of another", lambda path=path: place.bob.chmod(path, 0o777), {path: ""}, "EPERM")
    link = place.make("tofile")
    table.case("through a symlink", lambda: place.root.chmod(link, 0o600), {link + ".target": "c"})
    table.run()


@matrix
def writing_clears_set_ids(place: Place) -> None:
    """A write or truncation by an unprivileged caller takes S_ISUID away, and S_ISGID of a file that its group may execute."""
    actions: dict[str, Any] = {
        "write": lambda who, path: who.overwrite(path, b"x"),
        "append": lambda who, path: who.append(path, b"x"),
        "truncate": lambda who, path: who.truncate(path, 1),
        "extend": lambda who, path: who.truncate(path, 10_000),
        "O_TRUNC": lambda who, path: who.opens(path, os.O_WRONLY | os.O_TRUNC),
    }
    for label, action in actions.items():
        for mode in place.some((0o6777, 0o2777, 0o4777, 0o2767, 0o6766, 0o4666, 0o1777, 0o777), 5):
            for who in (place.root, place.alice, place.bob):
                with place.case(f"{label} of {mode:#o} by {who.name}"):
                    path = place.make(owner=(ALICE, ALICE))
                    place.root.overwrite(path, b"content")
                    os.chmod(path, mode)
                    place.equal("result", action(who, path), OK)
                    want: set[int] = {mode}
                    if who is not place.root:
                        want = {mode & ~0o6000 if mode & 0o010 else mode & ~0o4000}
                        if who is place.bob and not mode & 0o010:
                            want = {mode & ~kept for kept in getattr(differs("S_ISGID of strangers"), place.target)}
                    place.equal("mode", place.root.stat(path)["mode"] & 0o7777, want)


test_chmod = conformance(__name__)
