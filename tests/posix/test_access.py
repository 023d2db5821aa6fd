"""access(2), faccessat(2)."""

from __future__ import annotations

import os

from tests.posix import common
from tests.posix.calls import AT_EACCESS, AT_FDCWD, AT_SYMLINK_NOFOLLOW
from tests.posix.suite import KINDS, OK, SOLID, Place, conformance, group, matrix


@matrix
def paths(place: Place) -> None:
    common.path_errors(
        place,
        lambda who, path: who.access(path, os.F_OK),
        changes=False,
        read_only=OK,
        fault=lambda address: place.root.raw("access", address, 0),
    )
    for who in (place.root, place.alice):
        path = place.make(mode=0o666)
        place.want("EROFS", who, "access", os.path.join(place.readonly, path), os.W_OK)
        place.want("EROFS", who, "access", os.path.join(place.readonly, place.make("dir", 0o777)), os.W_OK)
        place.want(OK, who, "access", os.path.join(place.readonly, place.make("fifo", 0o666)), os.W_OK)
        place.want(OK, who, "access", os.path.join(place.readonly, path), os.R_OK)


@matrix
def permissions(place: Place) -> None:
    """Every class, every three bits, every question, for all kinds."""
    for kind in SOLID:
        path = place.make(kind, owner=common.OWNED)
        for label, who, shift in common.classes(place):
            for bits in range(8):
                for mode in (
                    common.modes_for(bits, shift) if kind == "file" else place.some(common.modes_for(bits, shift), 1)
                ):
                    os.chmod(path, mode)
                    for asked in range(8):
                        got = who.access(path, asked)
                        want = "EACCES" if asked & ~bits else None
                        place.equal(f"{label} of a {kind} {mode:#o} asks {asked}", got, want)


@group
def root_and_execution(place: Place) -> None:
    """Root may read and write everything, and execute what anybody may execute."""
    for kind in SOLID:
        path = place.make(kind)
        for mode in (0, 0o444, 0o100, 0o010, 0o001, 0o666, 0o777, 0o7000):
            os.chmod(path, mode)
            for asked in range(8):
                allowed = not asked & 1 or kind == "dir" or mode & 0o111
                place.want(OK if allowed else "EACCES", place.root, "access", path, asked)


@group
def arguments(place: Place) -> None:
    for who in (place.root, place.alice):
        for mode in (8, 16, -1, 0o777):
            place.want("EINVAL", who, "access", place.make(), mode)
        place.want("EINVAL", who, "faccessat", AT_FDCWD, place.make(), 0, 1)
        for kind in KINDS:
            place.want(OK if kind != "symlink" else "ENOENT", who, "access", place.make(kind), os.F_OK)
            place.want(OK, who, "faccessat", AT_FDCWD, place.make(kind), os.F_OK, AT_SYMLINK_NOFOLLOW)
            path = place.make(kind, 0)
            want = OK if kind == "symlink" or who is place.root else "EACCES"
            place.want(want, who, "faccessat", AT_FDCWD, path, os.R_OK, AT_SYMLINK_NOFOLLOW | AT_EACCESS)
        place.want("ENOTDIR", who, "access", place.make() + "/", os.F_OK)
    directory = place.directory()
    place.make(path=directory + "/x")
    fd = os.open(directory, os.O_RDONLY)
    place.want(OK, place.root, "faccessat", fd, "x", os.R_OK)
    place.want("ENOENT", place.root, "faccessat", fd, "y", os.R_OK)
    os.close(fd)
    place.want("EBADF", place.root, "faccessat", fd, "x", os.R_OK)


@group
def nothing_changes(place: Place) -> None:
    table = place.times()
    for kind in SOLID:
        for who in (place.root, place.alice):
            path = place.make(kind, 0o755)
            table.case(kind, lambda who=who, path=path: who.access(path, os.R_OK), {path: "", ".": ""})
    table.run()


test_access = conformance(__name__)
