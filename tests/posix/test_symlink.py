"""symlink(2), symlinkat(2)."""

from __future__ import annotations

import os

from tests.posix import common
from tests.posix.suite import ALICE, OK, STAFF, Place, conformance, group, matrix


@matrix
def paths(place: Place) -> None:
    common.path_errors(
        place,
        lambda who, path: who.symlink("target", path),
        "missing",
        parent=True,
        fault=lambda address: place.root.raw("symlink", "target", address),
    )
    place.equal("EFAULT: the target", place.root.raw("symlink", 1, place.name()), "EFAULT")


@group
def existing(place: Place) -> None:
    common.existing_kinds(place, lambda who, path: who.symlink("target", path))


@group
def targets(place: Place) -> None:
    root = place.root
    for length in [
        1,
        2,
        3,
        10,
        59,
        60,
        61,
        100,
        127,
        128,
        255,
        256,
        1000,
        1023,
        1024,
        2047,
        2048,
        2049,
        4000,
        4094,
        4095,
    ]:
        path, target = place.name(), "t" * length
        place.want(OK, root, "symlink", target, path)
        place.shape(path, kind="symlink", size=length, mode=0o777, nlink=1)
        place.want(os.fsencode(target), root, "readlink", path)
    for length in (4096, 4097, 10_000):
        for who in (root, place.alice):
            path = place.name()
            place.want("ENAMETOOLONG", who, "symlink", "t" * length, path)
            place.equal("nothing made", place.kinds(path), "missing")
    for who in (root, place.alice):
        place.want("ENOENT", who, "symlink", "", place.name())
    for odd in (b"\xff\xfe", b" ", b"\n", b"a//b/../c/.", b"/", b".", b"..", b"x/" * 2000, bytes(range(1, 256))):
        path = place.name()
        place.want(OK, root, "symlink", odd, path)
        place.want(odd, root, "readlink", path)
        place.shape(path, size=len(odd))


@group
def attributes(place: Place) -> None:
    for umask in common.UMASKS:
        os.umask(umask)
        path = place.name()
        place.root.symlink("t", path)
        place.shape(path, mode=0o777)
    os.umask(0o022)
    for who in (place.alice, place.bob, place.user(ALICE, STAFF)):
        for mode, inherited in ((0o777, False), (0o2777, True)):
            directory = place.directory(mode, (0, 4242))
            path = directory + "/link"
            place.want(OK, who, "symlink", "target", path)
            place.shape(path, uid=who.uid, gid=4242 if inherited else who.gid, mode=0o777, kind="symlink")
            place.shape(directory, nlink=2)


@group
def times(place: Place) -> None:
    table = place.times()
    for who in (place.root, place.alice):
        directory, closed = place.directory(0o777), place.directory(0o555)
        table.case("a new link", lambda who=who, d=directory: who.symlink("t", d + "/l"), {directory: "mc"})
        table.case(
            "too long", lambda who=who, d=directory: who.symlink("t" * 4096, d + "/m"), {closed: ""}, "ENAMETOOLONG"
        )
        if who is place.alice:
            table.case(
                "a closed directory", lambda d=closed: place.alice.symlink("t", d + "/l"), {closed: ""}, "EACCES"
            )
    table.run()
    path = place.name()
    os.symlink("t", path)
    info = os.lstat(path)
    place.equal("one time", len({info.st_atime_ns, info.st_mtime_ns, info.st_ctime_ns}), 1)


@group
def resolution(place: Place) -> None:
    root = place.root
    os.mkdir("a")
    os.mkdir("a/b")
    root.fill("a/b/file", b"found")
    for target, path in (
        ("a/b", "l1"), ("./a/b", "l2"), ("a/../a/b/", "l3"), ("/" + place.base.strip("/") + "/a/b", "l4"), ("l1", "l5"),
        ("a/b/.", "l6"),
        ("../../" + os.path.basename(place.base) + "/a/b", "a/l7"), ("b", "a/l8"),
    ):  # fmt: skip
        place.want(OK, root, "symlink", target, path)
        place.want(b"found", root, "content", path + "/file")
        place.want(OK, root, "fill", path + "/new")
        place.want(OK, root, "unlink", "a/b/new")
    place.want(OK, root, "symlink", "file", "a/b/same")
    place.want(b"found", root, "content", "l5/same")
    place.want(OK, root, "rename", "a/b/same", "a/same")
    place.want("ENOENT", root, "content", "a/same")
    for who in (root, place.alice):
        place.want("ENOTDIR", who, "content", "a/b/file/..")
        os.symlink("a/b/file/", "slash-" + who.name)
        place.want("ENOTDIR", who, "content", "slash-" + who.name)


test_symlink = conformance(__name__)
