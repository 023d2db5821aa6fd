"""unlink(2), unlinkat(2)."""

from __future__ import annotations

import os

from tests.posix import common
from tests.posix.calls import AT_REMOVEDIR
from tests.posix.suite import OK, PLAIN, Place, conformance, group, matrix


@matrix
def paths(place: Place) -> None:
    for kind in place.some(PLAIN, 2):
        common.path_errors(
            place,
            lambda who, path: who.unlink(path),
            kind,
            follows=False,
            parent=True,
            fault=lambda address: place.root.raw("unlink", address),
            brief=kind != "file" and not place.thorough,
        )


@group
def kinds(place: Place) -> None:
    root, alice = place.root, place.alice
    for kind in (*PLAIN, "dangling", "todir", "tofile", "twin"):
        for who in (root, alice):
            path = place.make(kind)
            place.want(OK, who, "unlink", path)
            place.equal("gone", place.kinds(path), "missing")
            place.want("ENOENT", who, "unlink", path)
            if kind in ("todir", "tofile"):
                place.equal("the target stays", place.kinds(path + ".target") != "missing", True)
    for kind in ("dir", "full"):
        for who in (root, alice):
            path = place.make(kind)
            for spelled in (path, path + "/", path + "//", path + "/."):
                want = {"EISDIR", "EINVAL"} if spelled.endswith(".") else "EISDIR"
                place.want(want, who, "unlink", spelled)
            place.shape(path, kind="dir")
    for path in (".", "..", "/"):
        place.want({"EISDIR", "EINVAL"}, root, "unlink", path)
    for kind in (*PLAIN, "tofile", "todir"):
        want = "EISDIR" if kind == "dir" else {"ENOTDIR", "ENOENT"} if kind == "symlink" else "ENOTDIR"
        path = place.make(kind)
        place.want(want, root, "unlink", path + "/")
        place.equal("still there", place.kinds(path) != "missing", True)


@group
def link_counts(place: Place) -> None:
    root = place.root
    for kind in PLAIN:
        with place.case(kind):
            path = place.make(kind)
            names = [place.name() for _ in range(5)]
            for name in names:
                place.want(OK, root, "link", path, name)
            for count, name in enumerate(names):
                place.shape(path, nlink=6 - count)
                place.want(OK, root, "unlink", name)
            place.shape(path, nlink=1)


@group
def times(place: Place) -> None:
    table = place.times()
    for kind in PLAIN:
        for who in (place.root, place.alice):
            directory = place.directory(0o777)
            path = place.make(kind, path=directory + "/x")
            os.link(path, directory + "/y", follow_symlinks=False)
            table.case(
                f"a {kind} with another name",
                lambda who=who, path=path: who.unlink(path),
                {directory: "mc", directory + "/y": "c"},
            )
            closed = place.directory(0o755)
            path = place.make(kind, path=closed + "/x")
            if who is place.alice:
                table.case(
                    f"a {kind} in a closed directory",
                    lambda path=path: place.alice.unlink(path),
                    {closed: "", path: ""},
                    "EACCES",
                )
    full = place.make("full")
    table.case("a directory", lambda: place.root.unlink(full), {full: ""}, "EISDIR")
    table.case("a missing name", lambda: place.root.unlink(full + "/missing"), {full: ""}, "ENOENT")
    table.run()


@matrix
def sticky(place: Place) -> None:
    common.sticky_rules(place, lambda who, path: who.unlink(path), PLAIN)


@group
def open_files(place: Place) -> None:
    root = place.root
    for size in (0, 1, 100, 4096, 70_000, 1_500_000):
        with place.case(size):
            path = place.name()
            data = os.urandom(size)
            root.fill(path, data)
            fd = root.open(path, os.O_RDWR)
            inode = os.fstat(fd).st_ino
            place.want(OK, root, "unlink", path)
            info = os.fstat(fd)
            place.equal("nlink, ino, size", (info.st_nlink, info.st_ino, info.st_size), (0, inode, size))
            place.equal("content", os.pread(fd, size + 10, 0), data)
            place.want(5, root, "pwrite", fd, b"later", size)
            place.equal("appended", os.pread(fd, 10, size), b"later")
            place.want(OK, root, "ftruncate", fd, 3)
            place.equal("truncated", os.pread(fd, 10, 0), (data + b"later")[:3])
            place.want(OK, root, "fchmod", fd, 0o600)
            place.want(OK, root, "fchown", fd, 1, 2)
            place.want(OK, root, "fsync", fd)
            place.want(OK, root, "setxattr", fd, "user.late", b"x")
            place.want(b"x", root, "getxattr", fd, "user.late")
            place.equal("mode", os.fstat(fd).st_mode & 0o777, 0o600)
            place.want("ENOENT", root, "stat", path)
            root.fill(path, b"another")
            place.equal("another inode", os.stat(path).st_ino != inode, True)
            place.want("ENOENT", root, "linkat", -100, f"/proc/self/fd/{fd}", -100, place.name(), 0x400)
            place.equal("kept apart", os.pread(fd, 10, 0), (data + b"later")[:3])
            place.want(OK, root, "close", fd)
    with place.case("two descriptors"):
        path = place.name()
        root.fill(path, b"shared")
        one, two = root.open(path, os.O_RDWR), root.open(path, os.O_RDWR)
        os.unlink(path)
        os.pwrite(one, b"S", 0)
        os.close(one)
        place.equal("seen by the other", os.pread(two, 10, 0), b"Shared")
        again = place.want(OK, root, "open", f"/proc/self/fd/{two}", os.O_RDONLY)
        place.equal("opened again", os.read(again, 10), b"Shared")
        os.close(again)
        os.close(two)


@group
def relative_to_descriptors(place: Place) -> None:
    root = place.root
    directory = place.directory()
    fd = os.open(directory, os.O_RDONLY)
    for kind in PLAIN:
        place.make(kind, path=directory + "/" + kind)
        place.want("ENOTDIR", root, "unlinkat", fd, kind, AT_REMOVEDIR)
        place.want(OK, root, "unlinkat", fd, kind, 0)
    place.make("dir", path=directory + "/d")
    place.want("EISDIR", root, "unlinkat", fd, "d", 0)
    place.want("EINVAL", root, "unlinkat", fd, "d", 1)
    place.want(OK, root, "unlinkat", fd, "d", AT_REMOVEDIR)
    file = os.open(place.make(), os.O_RDONLY)
    place.want("ENOTDIR", root, "unlinkat", file, "x", 0)
    os.close(file)
    os.close(fd)
    place.want("EBADF", root, "unlinkat", fd, "x", 0)


@group
def mount_points(place: Place) -> None:
    path = place.make()
    undo = common.mount_point(place, path)
    place.want("EBUSY", place.root, "unlink", path)
    undo()
    place.want(OK, place.root, "unlink", path)


test_unlink = conformance(__name__)
