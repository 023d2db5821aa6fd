"""mknod(2)."""

from __future__ import annotations

import os
import stat

from tests.posix import common
from tests.posix.suite import OK, Place, conformance, group, matrix

TYPES = {
    "file": stat.S_IFREG,
    "fifo": stat.S_IFIFO,
    "socket": stat.S_IFSOCK,
    "char": stat.S_IFCHR,
    "block": stat.S_IFBLK,
}


@matrix
def paths(place: Place) -> None:
    common.path_errors(
        place,
        lambda who, path: who.mknod(path, stat.S_IFIFO | 0o644),
        "missing",
        parent=True,
        fault=lambda address: place.root.raw("mknod", address, stat.S_IFREG | 0o644, 0),
    )


@group
def existing(place: Place) -> None:
    for kind in ("file", "fifo", "socket"):
        common.existing_kinds(place, lambda who, path, kind=kind: who.mknod(path, TYPES[kind] | 0o644))


@matrix
def new_nodes(place: Place) -> None:
    for kind in ("file", "fifo", "socket"):
        common.new_file(
            place, lambda who, path, mode, kind=kind: who.mknod(path, TYPES[kind] | mode), kind, brief=kind != "file"
        )
    for kind in ("char", "block"):
        common.new_file(
            place,
            lambda who, path, mode, kind=kind: who.mknod(path, TYPES[kind] | mode, 0x1234),
            kind,
            owned_by=lambda _place: iter(()),
            brief=True,
        )


@group
def devices(place: Place) -> None:
    numbers = [(0, 0), (1, 3), (255, 255), (256, 256), (4095, 0), (4095, 0xFFFFF), (1, 0xFFFFF), (8, 1), (250, 0x12345)]
    for kind in ("char", "block"):
        for major, minor in numbers:
            rdev = os.makedev(major, minor)
            path = place.name()
            place.want(OK, place.root, "mknod", path, TYPES[kind] | 0o600, rdev)
            place.shape(path, kind=kind, rdev=rdev, size=0, mode=0o600)
            os.rename(path, path + ".moved")
            place.shape(path + ".moved", kind=kind, rdev=rdev)
            if (kind, major, minor) != ("char", 0, 0):
                place.want("EPERM", place.alice, "mknod", place.name(), TYPES[kind] | 0o600, rdev)
    for kind in ("file", "fifo", "socket"):
        path = place.name()
        place.want(OK, place.alice, "mknod", path, TYPES[kind] | 0o600, os.makedev(7, 7))
        place.shape(path, kind=kind, rdev=0)


@group
def other_types(place: Place) -> None:
    for who in (place.root, place.alice):
        place.want("EPERM", who, "mknod", place.name(), stat.S_IFDIR | 0o755)
        place.want("EINVAL", who, "mknod", place.name(), stat.S_IFLNK | 0o755)
        for kind in (0o030000, 0o050000, 0o070000, 0o110000, 0o130000, 0o150000, 0o160000, 0o170000):
            place.want("EINVAL", who, "mknod", place.name(), kind | 0o644)
        path = place.name()
        place.want(OK, who, "mknod", path, 0o640)
        place.shape(path, kind="file", mode=0o640, size=0)


@group
def trailing_slashes(place: Place) -> None:
    for kind, number in TYPES.items():
        place.want("ENOENT", place.root, "mknod", place.name() + "/", number | 0o644)
        place.want("EEXIST", place.root, "mknod", place.make("dir") + "/", number | 0o644)
        place.want("EEXIST", place.root, "mknod", place.make(kind), number | 0o644)


test_mknod = conformance(__name__)
