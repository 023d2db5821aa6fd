"""readlink(2), readlinkat(2)."""

from __future__ import annotations

import os

from tests.posix import common
from tests.posix.suite import OK, SOLID, Place, conformance, group, matrix


@matrix
def paths(place: Place) -> None:
    common.path_errors(
        place,
        lambda who, path: who.readlink(path),
        "symlink",
        follows=False,
        changes=False,
        read_only=OK,
        fault=lambda address: place.root.raw("readlink", address, 1, 10),
    )
    place.equal("EFAULT: the buffer", place.root.raw("readlink", place.make("symlink"), 1, 10), "EFAULT")


@group
def kinds(place: Place) -> None:
    for who in (place.root, place.alice):
        for kind in SOLID:
            place.want("EINVAL", who, "readlink", place.make(kind))
        for path in (".", "..", "/"):
            place.want("EINVAL", who, "readlink", path)
        for kind in ("todir", "tofile"):
            path = place.make(kind)
            place.want(os.fsencode(path + ".target"), who, "readlink", path)
        place.want("EINVAL", who, "readlink", place.make("todir") + "/")
        place.want("ENOTDIR", who, "readlink", place.make("tofile") + "/")
        place.want("ENOENT", who, "readlink", place.make("dangling") + "/")


@group
def sizes(place: Place) -> None:
    for length in (1, 5, 60, 100, 2048, 4095):
        path = place.name()
        target = b"%d" % length * length
        target = target[:length]
        os.symlink(target, path)
        for size in {1, 2, length - 1, length, length + 1, 4096, 10_000} - {0}:
            place.want(target[:size], place.root, "readlink_size", path, size)
        place.want("EINVAL", place.root, "readlink_size", path, 0)
        place.want("EINVAL", place.root, "readlink_size", path, -1)


@group
def owners_do_not_matter(place: Place) -> None:
    """A symlink's mode and owner are not asked, only the search permission on the way."""
    for owner in ((0, 0), (10001, 10001), (10002, 5)):
        path = place.make("symlink", owner=owner)
        for who in (place.root, place.alice, place.bob):
            place.want(b"no-such-target", who, "readlink", path)
    directory = place.directory(0o700)
    os.symlink("t", directory + "/l")
    place.want("EACCES", place.alice, "readlink", directory + "/l")
    os.chmod(directory, 0o711)
    place.want(b"t", place.alice, "readlink", directory + "/l")


test_readlink = conformance(__name__)
