"""rmdir(2)."""

from __future__ import annotations

import os

from tests.posix import common
from tests.posix.suite import KINDS, OK, PLAIN, Place, conformance, group, matrix


@matrix
def paths(place: Place) -> None:
    common.path_errors(
        place,
        lambda who, path: who.rmdir(path),
        "dir",
        follows=False,
        parent=True,
        fault=lambda address: place.root.raw("rmdir", address),
    )


@group
def kinds(place: Place) -> None:
    for who in (place.root, place.alice):
        for kind in (*PLAIN, "dangling", "todir", "tofile"):
            path = place.make(kind)
            place.want("ENOTDIR", who, "rmdir", path)
            place.want(
                {"ENOTDIR", "ENOENT"} if kind in ("symlink", "dangling") else "ENOTDIR", who, "rmdir", path + "/"
            )
            place.equal("still there", place.kinds(path) != "missing", True)
        for slashes in ("", "/", "//"):
            path = place.make("dir")
            place.want(OK, who, "rmdir", path + slashes)
            place.equal("gone", place.kinds(path), "missing")
            place.want("ENOENT", who, "rmdir", path + slashes)


@group
def not_empty(place: Place) -> None:
    table = place.times()
    for kind in (*KINDS, "full", "dangling", "todir"):
        for who in (place.root, place.alice):
            directory = place.make("dir", 0o777)
            inside = place.make(kind, path=directory + "/inside")
            table.case(
                f"{who.name}: a {kind} inside",
                lambda who=who, directory=directory: who.rmdir(directory),
                {directory: "", inside: ""},
                "ENOTEMPTY",
            )
    table.run()
    directory = place.directory()
    for count in range(50):
        place.make(path=f"{directory}/{count}")
    for count in range(50):
        place.want("ENOTEMPTY", place.root, "rmdir", directory)
        os.unlink(f"{directory}/{count}")
    place.want(OK, place.root, "rmdir", directory)


@group
def dots(place: Place) -> None:
    directory = place.directory()
    os.mkdir(directory + "/sub")
    for who in (place.root, place.alice):
        place.want("EINVAL", who, "rmdir", ".")
        place.want("ENOTEMPTY", who, "rmdir", "..")
        place.want("EINVAL", who, "rmdir", directory + "/sub/.")
        place.want("ENOTEMPTY", who, "rmdir", directory + "/sub/..")
        place.want("EINVAL", who, "rmdir", directory + "/sub/./")
    place.want("EBUSY", place.root, "rmdir", "/")


@group
def link_counts_and_times(place: Place) -> None:
    table = place.times()
    for who in (place.root, place.alice):
        directory = place.directory(0o777)
        for count in range(5):
            os.mkdir(f"{directory}/{count}")
        place.shape(directory, nlink=7)
        table.case(
            "an empty directory", lambda who=who, directory=directory: who.rmdir(directory + "/0"), {directory: "mc"}
        )
        table.case(
            "missing",
            lambda who=who, directory=directory: who.rmdir(directory + "/missing/x"),
            {directory + "/1": ""},
            "ENOENT",
        )
    table.run()
    place.shape(directory, nlink=6)
    for count in range(1, 5):
        os.rmdir(f"{directory}/{count}")
        place.shape(directory, nlink=6 - count)
    closed = place.directory(0o755)
    os.mkdir(closed + "/sub")
    table.case(
        "in a closed directory", lambda: place.alice.rmdir(closed + "/sub"), {closed: "", closed + "/sub": ""}, "EACCES"
    )
    table.run()


@matrix
def sticky(place: Place) -> None:
    common.sticky_rules(place, lambda who, path: who.rmdir(path), ("dir",))


@group
def removed_directories(place: Place) -> None:
    root = place.root
    path = place.directory()
    os.chdir(path)
    fd = os.open(".", os.O_RDONLY)
    place.want(OK, root, "rmdir", "../" + path)
    place.want("ENOENT", root, "getcwd")
    place.equal("nlink", os.fstat(fd).st_nlink, 0)
    place.equal("size", os.fstat(fd).st_size, 0)
    place.equal("listing", os.listdir(fd), [])
    for call, *args in (
        ("mkdir", "x"), ("fill", "x"), ("symlink", "t", "x"), ("mkfifo", "x"), ("stat", "x"),
        ("link", place.base + "/other", "x"), ("rename", "x", "y"), ("unlink", "x"),
    ):  # fmt: skip
        place.make(path=place.base + "/other") if call == "link" else None
        place.want("ENOENT", root, call, *args)
    place.want(OK, root, "stat", ".")
    place.want(OK, root, "chmod", ".", 0o700)
    place.want({"EINVAL", "ENOENT"}, root, "rmdir", ".")
    os.chdir("..")
    os.chdir(place.base)
    os.close(fd)


@group
def mount_points(place: Place) -> None:
    path = place.directory()
    undo = common.mount_point(place, path)
    place.want("EBUSY", place.root, "rmdir", path)
    place.want("EBUSY", place.root, "rename", path, place.name())
    place.want("EBUSY", place.root, "rename", place.directory(), path)
    undo()
    place.want(OK, place.root, "rmdir", path)


test_rmdir = conformance(__name__)
