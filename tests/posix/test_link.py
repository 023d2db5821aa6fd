"""link(2), linkat(2)."""

from __future__ import annotations

import os
from typing import Any

from tests.posix import common
from tests.posix.calls import AT_EMPTY_PATH, AT_FDCWD, AT_SYMLINK_FOLLOW, libc
from tests.posix.suite import ALICE, BOB, OK, PLAIN, STAFF, Place, conformance, group, long_group, matrix

with open("/proc/sys/fs/protected_hardlinks") as _file:
    PROTECTED = _file.read().strip() == "1"


@matrix
def old_paths(place: Place) -> None:
    common.path_errors(
        place,
        lambda who, path: who.link(path, place.name("to")),
        follows=False,
        read_only="EXDEV",
        fault=lambda address: place.root.raw("link", address, place.name()),
    )


@matrix
def new_paths(place: Place) -> None:
    source = place.make(mode=0o666)
    common.path_errors(
        place,
        lambda who, path: who.link(source, path),
        "missing",
        parent=True,
        fault=lambda address: place.root.raw("link", source, address),
    )
    place.want(
        "EROFS", place.root, "link", os.path.join(place.readonly, source), os.path.join(place.readonly, place.name())
    )


@group
def existing(place: Place) -> None:
    source = place.make(mode=0o666)
    common.existing_kinds(place, lambda who, path: who.link(source, path))
    place.want("EEXIST", place.root, "link", source, source)
    place.shape(source, nlink=1)


@group
def kinds(place: Place) -> None:
    root = place.root
    for kind in PLAIN:
        path = place.make(kind)
        info = os.lstat(path)
        others = [place.name() for _ in range(4)]
        for count, other in enumerate(others):
            place.want(OK, root, "link", path, other)
            for name in (path, other):
                place.shape(name, kind=kind, nlink=2 + count, ino=info.st_ino, rdev=info.st_rdev, size=info.st_size)
        place.want(OK, root, "lchown", others[0], 7, 8)
        if kind != "symlink":
            place.want(OK, root, "chmod", others[1], 0o4751)
        for name in (path, *others):
            place.shape(name, uid=7, gid=8, mode=0o777 if kind == "symlink" else 0o4751)
        place.want(OK, root, "unlink", path)
        place.shape(others[0], nlink=4)
        place.want(OK, root, "rename", others[0], path)
        place.shape(path, nlink=4, ino=info.st_ino)
    for kind in ("dir", "full"):
        for who in (root, place.alice):
            path, other = place.make(kind), place.name()
            place.want("EPERM", who, "link", path, other)
            place.want("EPERM", who, "link", ".", other)
            place.equal("nothing made", place.kinds(other), "missing")
            place.shape(path, nlink=2)
    path = place.make()
    for slash in ("/", "//", "/."):
        place.want("ENOTDIR", root, "link", path + slash, place.name())
        place.want("ENOENT", root, "link", path, place.name() + slash)


@group
def content_is_shared(place: Place) -> None:
    root = place.root
    path, other = place.name(), place.name()
    root.fill(path, b"one")
    os.link(path, other)
    for count, (writer, reader) in enumerate([(path, other), (other, path)] * 10):
        data = b"%d" % count * 1000
        root.fill(writer, data)
        place.equal("read through the other name", root.content(reader), data)
        place.want(OK, root, "setxattr", writer, "user.n", b"%d" % count)
        place.want(b"%d" % count, root, "getxattr", reader, "user.n")
        place.want(OK, root, "truncate", writer, count)
        place.shape(reader, size=count)


@group
def times(place: Place) -> None:
    table = place.times()
    for kind in PLAIN:
        for who in (place.root, place.alice):
            old, new = place.directory(0o777), place.directory(0o777)
            path = place.make(kind, path=old + "/x", owner=(ALICE, ALICE))
            table.case(
                f"{who.name}, a {kind}",
                lambda who=who, path=path, new=new: who.link(path, new + "/y"),
                {path: "c", old: "", new: "mc"},
            )
            path = place.make(kind, path=old + "/z", owner=(ALICE, ALICE))
            taken = place.make(kind, path=new + "/taken")
            changed = {path: "", taken: ""}
            table.case("over a name", lambda who=who, path=path, taken=taken: who.link(path, taken), changed, "EEXIST")
            if who is place.alice:
                closed = place.directory(0o755)
                changed = {path: "", closed: ""}
                table.case(
                    "into a closed directory",
                    lambda path=path, to=closed + "/y": place.alice.link(path, to),
                    changed,
                    "EACCES",
                )
    table.run()


@group
def symlinks(place: Place) -> None:
    root = place.root
    path = place.make("tofile")
    target, link = os.stat(path).st_ino, os.lstat(path).st_ino
    for flags, want in ((0, link), (AT_SYMLINK_FOLLOW, target)):
        other = place.name()
        place.want(OK, root, "linkat", AT_FDCWD, path, AT_FDCWD, other, flags)
        place.shape(other, ino=want)
    place.want(OK, root, "linkat", AT_FDCWD, place.make("dangling"), AT_FDCWD, place.name(), 0)
    place.want("ENOENT", root, "linkat", AT_FDCWD, place.make("dangling"), AT_FDCWD, place.name(), AT_SYMLINK_FOLLOW)
    place.want("EPERM", root, "linkat", AT_FDCWD, place.make("todir"), AT_FDCWD, place.name(), AT_SYMLINK_FOLLOW)
    place.want("EINVAL", root, "linkat", AT_FDCWD, path, AT_FDCWD, place.name(), 1)
    taken = place.make("dangling")
    place.want("EEXIST", root, "link", place.make(), taken)


@group
def descriptors(place: Place) -> None:
    root = place.root
    one, two = place.directory(), place.directory()
    place.make(path=one + "/x")
    first, second = os.open(one, os.O_RDONLY), os.open(two, os.O_RDONLY)
    file = os.open(one + "/x", os.O_RDONLY)
    place.want(OK, root, "linkat", first, "x", second, "y", 0)
    place.want("EEXIST", root, "linkat", first, "x", second, "y", 0)
    place.want(OK, root, "linkat", file, "", second, "z", AT_EMPTY_PATH)
    place.want("ENOENT", root, "linkat", file, "", second, "w", 0)
    place.want(OK, root, "linkat", AT_FDCWD, f"/proc/self/fd/{file}", second, "v", AT_SYMLINK_FOLLOW)
    place.shape(one + "/x", nlink=4)
    place.want("ENOTDIR", root, "linkat", file, "x", second, "u", 0)
    place.want("ENOTDIR", root, "linkat", first, "x", file, "u", 0)
    for name in ("y", "z", "v"):
        os.unlink(f"{two}/{name}")
    os.unlink(one + "/x")
    place.want("ENOENT", root, "linkat", file, "", second, "w", AT_EMPTY_PATH)
    os.rmdir(two)
    place.make(path=one + "/x")
    place.want("ENOENT", root, "linkat", first, "x", second, "y", 0)
    for fd in (first, second, file):
        os.close(fd)
    place.want("EBADF", root, "linkat", first, "x", AT_FDCWD, "y", 0)


@group
def protected_links(place: Place) -> None:
    """fs.protected_hardlinks: strangers link only plain files that they may read and write, without set-ID bits."""
    cases: list[tuple[str, int, tuple[int, int], bool]] = [
        ("file", 0o644, (0, 0), False),
        ("file", 0o666, (0, 0), True),
        ("file", 0o600, (ALICE, ALICE), True),
        ("file", 0, (ALICE, BOB), True),
        ("file", 0o660, (0, STAFF), True),
        ("file", 0o640, (0, STAFF), False),
        ("file", 0o4666, (0, 0), False),
        ("file", 0o2676, (0, 0), False),
        ("file", 0o2666, (0, 0), True),
        ("file", 0o6777, (ALICE, ALICE), True),
        ("fifo", 0o666, (0, 0), False),
        ("fifo", 0o666, (ALICE, 0), True),
        ("socket", 0o666, (0, 0), False),
        ("char", 0o666, (0, 0), False),
        ("symlink", 0o777, (0, 0), False),
        ("symlink", 0o777, (ALICE, 0), True),
    ]
    for kind, mode, owner, allowed in cases:
        with place.case(f"{kind} {mode:#o} of {owner}"):
            want: Any = OK if allowed or not PROTECTED else "EPERM"
            place.want(want, place.alice, "link", place.make(kind, mode, owner), place.name())
            place.want(OK, place.root, "link", place.make(kind, mode, owner), place.name())


@group
def other_file_systems(place: Place) -> None:
    for kind in PLAIN:
        place.want("EXDEV", place.root, "link", place.make(kind), place.elsewhere + "/x")
        outside = place.make(kind, path=f"{place.elsewhere}/{place.name()}")
        place.want("EXDEV", place.root, "link", outside, place.name())
    place.want("EROFS", place.root, "link", place.make(), os.path.join(place.readonly, place.name()))


@long_group
def too_many_links(place: Place) -> None:
    path = os.fsencode(place.make())
    made = sum(libc.link(path, b"%s.%d" % (path, number)) == 0 for number in range(64_999))
    place.equal("made", made, 64_999)
    place.shape(os.fsdecode(path), nlink=65_000)
    for who in (place.root,):
        place.want("EMLINK", who, "link", path, place.name())
    os.unlink(path + b".7")
    place.want(OK, place.root, "link", path, place.name())
    place.want("EMLINK", place.root, "link", path, place.name())


test_link = conformance(__name__)
