"""chdir(2), fchdir(2), getcwd(3)."""

from __future__ import annotations

import os

from tests.posix import common
from tests.posix.calls import Caller
from tests.posix.suite import OK, PLAIN, Place, conformance, group, matrix


@matrix
def paths(place: Place) -> None:
    def go(who: Caller, path: str) -> object:
        got = who.chdir(path)
        if got is None:
            who.chdir(place.base)
        return got

    common.path_errors(
        place, go, "dir", changes=False, read_only=OK, fault=lambda address: place.root.raw("chdir", address)
    )


@group
def kinds(place: Place) -> None:
    for who in (place.root, place.alice):
        for kind in PLAIN:
            place.want("ENOENT" if kind == "symlink" else "ENOTDIR", who, "chdir", place.make(kind))
        place.want("ENOTDIR", who, "chdir", place.make("tofile"))
        for mode in range(8):
            path = place.directory(mode)
            place.want(OK if who is place.root or mode & 1 else "EACCES", who, "chdir", path)
            who.chdir(place.base)
    os.makedirs("a/b/c")
    os.symlink("a/b", "link")
    for path in ("a", "b", "c", "../../b", ".", "..", "..", "link", "c"):
        place.want(OK, place.root, "chdir", path)
    place.want(place.base + "/a/b/c", place.root, "getcwd")
    os.chdir(place.base)


@group
def descriptors(place: Place) -> None:
    root = place.root
    directory, file = place.directory(), place.make()
    for flags in (os.O_RDONLY, os.O_PATH):
        fd = os.open(directory, flags)
        place.want(OK, root, "fchdir", fd)
        place.want(f"{place.base}/{directory}", root, "getcwd")
        os.close(fd)
        os.chdir(place.base)
    fd = os.open(file, os.O_RDONLY)
    place.want("ENOTDIR", root, "fchdir", fd)
    os.close(fd)
    place.want("EBADF", root, "fchdir", fd)
    path = place.directory(0o755)
    number = place.alice.open(path, os.O_RDONLY)
    os.chmod(path, 0o700)
    place.want("EACCES", place.alice, "fchdir", number)
    place.want(OK, place.alice, "close", number)


test_chdir = conformance(__name__)
