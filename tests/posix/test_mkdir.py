"""mkdir(2), mkdirat(2)."""

from __future__ import annotations

import os

from tests.posix import common
from tests.posix.suite import OK, Place, conformance, group, matrix


@matrix
def paths(place: Place) -> None:
    common.path_errors(
        place,
        lambda who, path: who.mkdir(path, 0o755),
        "missing",
        parent=True,
        undo=os.rmdir,
        fault=lambda address: place.root.raw("mkdir", address, 0o755),
    )


@group
def existing(place: Place) -> None:
    common.existing_kinds(place, lambda who, path: who.mkdir(path, 0o755))


@matrix
def new_directories(place: Place) -> None:
    common.new_file(place, lambda who, path, mode: who.mkdir(path, mode), "dir", kept=0o1777)


@group
def trailing_slashes_and_dots(place: Place) -> None:
    root = place.root
    for slashes in ("/", "//", "///", "/."):
        path = place.name()
        want = "ENOENT" if slashes == "/." else OK
        place.want(want, root, "mkdir", path + slashes, 0o755)
        place.equal("made", place.kinds(path), "missing" if slashes == "/." else "dir")
    for kind in ("file", "dir", "fifo", "todir", "tofile", "dangling"):
        place.want("EEXIST", root, "mkdir", place.make(kind) + "/", 0o755)


@group
def contents(place: Place) -> None:
    root = place.root
    for depth in range(1, 60):
        path = "/".join(["deep"] * depth)
        place.want(OK, root, "mkdir", path, 0o755)
        place.shape(path, nlink=2, kind="dir", mode=0o755)
    place.want([], root, "listdir", path)
    place.want("ENOENT", root, "stat", path + "/.." * 2 + "/missing")
    place.equal("..", root.stat(path + "/..")["ino"], root.stat(os.path.dirname(path))["ino"])
    place.equal(".", root.stat(path + "/.")["ino"], root.stat(path)["ino"])
    size = os.stat(".").st_nlink
    names = [place.name("many") for _ in range(300)]
    for name in names:
        os.mkdir(name)
    place.equal("links", os.stat(".").st_nlink, size + 300)
    place.equal("inodes differ", len({os.stat(name).st_ino for name in names}), 300)


@group
def relative_to_descriptors(place: Place) -> None:
    root = place.root
    directory = place.directory()
    file = place.make()
    fd = os.open(directory, os.O_RDONLY)
    other = os.open(file, os.O_RDONLY)
    place.want(OK, root, "mkdirat", fd, "x", 0o755)
    place.shape(directory + "/x", kind="dir")
    place.want("EEXIST", root, "mkdirat", fd, "x", 0o755)
    place.want("ENOTDIR", root, "mkdirat", other, "x", 0o755)
    place.want(OK, root, "mkdirat", other, os.path.abspath(place.name()), 0o755)
    os.close(fd)
    os.close(other)
    place.want("EBADF", root, "mkdirat", fd, "x", 0o755)
    place.want("EBADF", root, "mkdirat", -1, "x", 0o755)


test_mkdir = conformance(__name__)
