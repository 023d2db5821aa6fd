"""rename(2), renameat2(2)."""

from __future__ import annotations

import os
from typing import Any

from tests.posix import common
from tests.posix.calls import AT_FDCWD, EXCHANGE, NOREPLACE, WHITEOUT, Errno
from tests.posix.differences import differs
from tests.posix.suite import ALICE, BOB, KINDS, OK, PLAIN, Place, conformance, group, matrix

SOURCES = (*PLAIN, "twin", "empty", "full")


@matrix
def old_paths(place: Place) -> None:
    common.path_errors(
        place,
        lambda who, path: who.rename(path, place.name("to")),
        follows=False,
        parent=True,
        read_only="EXDEV",
        fault=lambda address: place.root.raw("rename", address, place.name()),
    )


@matrix
def new_paths(place: Place) -> None:
    common.path_errors(
        place,
        lambda who, path: who.rename(place.make(), path),
        "missing",
        parent=True,
        read_only={"EXDEV", "EROFS"},
        fault=lambda address: place.root.raw("rename", place.make(), address),
    )
    with place.case("EROFS"):
        source = place.make()
        there = os.path.join(place.readonly, source)
        place.want("EROFS", place.root, "rename", there, os.path.join(place.readonly, place.name()))
        place.want("EROFS", place.root, "rename", there, os.path.join(place.readonly, place.make()), EXCHANGE)


def outcome(source: str, target: str, flags: int) -> Any:
    """Return what renameat2 must answer for these kinds: OK or an errno."""
    source_dir, target_dir = source in ("empty", "full"), target in ("empty", "full")
    if flags == EXCHANGE:
        return "ENOENT" if target == "missing" else OK
    if target == "missing":
        return OK
    if flags == NOREPLACE:
        return "EEXIST"
    if source_dir and not target_dir:
        return "ENOTDIR"
    if target_dir and not source_dir:
        return "EISDIR"
    return "ENOTEMPTY" if target == "full" else OK


def every_kind_over_every_kind(place: Place, flags: int) -> None:
    """Try all pairs in one directory and between two; look at both names, all link counts and the identity of the files."""
    root = place.root
    sources: tuple[str, ...] = SOURCES if place.thorough else ("file", "symlink", "twin", "empty", "full")
    for source in sources:
        for target in ("missing", *sources):
            for two in (False, True):
                with place.case(
                    f"{source} over {target}, flags {flags}, {'two directories' if two else 'one directory'}"
                ):
                    here = place.directory()
                    there = place.directory() if two else here
                    old, new = here + "/old", there + "/new"
                    place.make(source, path=old)
                    place.make(target, path=new)
                    moved = os.lstat(old)
                    replaced = os.lstat(new) if target != "missing" else None
                    links = {name: os.stat(name).st_nlink for name in (here, there)}
                    want = outcome(source, target, flags)
                    if not place.equal("result", root.rename(old, new, flags), want):
                        continue
                    after = {name: root.lstat(name) for name in (old, new)}
                    if want is not OK:
                        place.equal("old stays", after[old]["ino"], moved.st_ino)
                        if replaced is not None:
                            place.equal("new stays", after[new]["ino"], replaced.st_ino)
                        continue
                    place.equal("moved", (after[new]["ino"], after[new]["mode"]), (moved.st_ino, moved.st_mode))
                    place.equal("links of the moved", after[new]["nlink"], moved.st_nlink)
                    if flags == EXCHANGE:
                        assert replaced is not None
                        place.equal(
                            "the other", (after[old]["ino"], after[old]["nlink"]), (replaced.st_ino, replaced.st_nlink)
                        )
                    else:
                        place.equal("old is gone", after[old], "ENOENT")
                        if target == "twin":
                            place.shape(new + ".twin", nlink=1)
                    source_dir, target_dir = source in ("empty", "full"), target in ("empty", "full")
                    gain = dict.fromkeys((here, there), 0)
                    gain[here] -= source_dir
                    gain[there] += source_dir
                    if flags == EXCHANGE:
                        gain[here] += target_dir
                        gain[there] -= target_dir
                    else:
                        gain[there] -= target_dir
                    for name, change in gain.items():
                        place.shape(name, nlink=links[name] + change)
                    if source_dir:
                        place.equal("..", os.stat(new + "/..").st_ino, os.stat(there).st_ino)
                    if source == "full":
                        place.equal("inside", place.kinds(new + "/inside"), "file")


@matrix
def plain(place: Place) -> None:
    every_kind_over_every_kind(place, 0)


@matrix
def no_replace(place: Place) -> None:
    every_kind_over_every_kind(place, NOREPLACE)


@matrix
def exchange(place: Place) -> None:
    every_kind_over_every_kind(place, EXCHANGE)


@group
def flags(place: Place) -> None:
    for who in (place.root, place.alice):
        for flag in (NOREPLACE | EXCHANGE, 8, 16, 1 << 31, WHITEOUT | EXCHANGE):
            old, new = place.make(), place.make()
            place.want("EINVAL", who, "rename", old, new, flag)
            place.shape(old, kind="file")
        old, new = place.make(), place.name()
        place.want(differs("whiteout"), who, "rename", old, new, WHITEOUT)


@group
def two_names_of_one_file(place: Place) -> None:
    table = place.times()
    for kind in PLAIN:
        for who in (place.root, place.alice):
            directory = place.directory(0o777)
            one, two = directory + "/one", directory + "/two"
            place.make(kind, path=one)
            os.link(one, two, follow_symlinks=False)
            table.case(
                f"a {kind}", lambda who=who, one=one, two=two: who.rename(one, two), {one: "", two: "", directory: ""}
            )
            with place.case(kind):
                place.want("EEXIST", who, "rename", one, two, NOREPLACE)
                place.want(OK, who, "rename", one, one)
                place.shape(one, nlink=2)
    table.run()
    for kind in ("empty", "full"):
        path = place.make(kind)
        place.want(OK, place.root, "rename", path, path)
        place.want(OK, place.root, "rename", path, "./" + path)
        place.want(OK, place.root, "rename", path, path, EXCHANGE)
        place.want("EEXIST", place.root, "rename", path, path, NOREPLACE)
        place.shape(path, kind="dir")


@group
def into_itself(place: Place) -> None:
    root = place.root
    os.makedirs("a/b/c")
    for new in ("a/x", "a/b/x", "a/b/c/x", "a/b", "a/b/c"):
        for who in (root, place.alice):
            want = "EINVAL"
            place.want(want, who, "rename", "a", new)
            if new.endswith("x"):
                place.want(want, who, "rename", "a", new, NOREPLACE)
            else:
                place.want("EEXIST", who, "rename", "a", new, NOREPLACE)
                place.want(want, who, "rename", "a", new, EXCHANGE)
                place.want("EINVAL", who, "rename", new, "a", EXCHANGE)
                place.want("ENOTEMPTY", who, "rename", new, "a")
    place.want("EINVAL", root, "rename", "a/b", "a/b/c/d")
    place.make("file", path="a/b/f")
    place.want("ENOTEMPTY", root, "rename", "a/b/f", "a")
    place.want("ENOTEMPTY", root, "rename", "a/b/f", "a/b")
    place.equal("tree", root.listdir("a/b"), ["c", "f"])


@group
def dots(place: Place) -> None:
    root = place.root
    directory, file = place.make("full"), place.make()
    for dot in (".", "..", directory + "/.", directory + "/..", "./.", "../."):
        for who in (root, place.alice):
            place.want("EBUSY", who, "rename", dot, place.name())
            place.want("EBUSY", who, "rename", directory, dot)
            place.want("EBUSY", who, "rename", file, dot)
            place.want("EEXIST", who, "rename", file, dot, NOREPLACE)
            place.want("EBUSY", who, "rename", dot, file, EXCHANGE)
    place.want({"EBUSY", "EXDEV"}, root, "rename", "/", place.name())


@group
def trailing_slashes(place: Place) -> None:
    root = place.root
    for slash in ("/", "//"):
        for kind in PLAIN:
            old, new = place.make(kind), place.name()
            place.want("ENOTDIR", root, "rename", old + slash, new)
            place.want("ENOTDIR", root, "rename", old, new + slash)
            place.want("ENOTDIR", root, "rename", old, place.make() + slash)
            place.equal("stays", place.kinds(old), kind)
        for old, new in (("", ""), (slash, ""), ("", slash), (slash, slash)):
            path, to = place.make("full"), place.name()
            place.want(OK, root, "rename", path + old, to + new)
            place.equal("moved", place.kinds(to + "/inside"), "file")
        place.want("ENOTDIR", root, "rename", place.make("todir") + slash, place.name())


@matrix
def sticky_source(place: Place) -> None:
    common.sticky_rules(place, lambda who, path: who.rename(path, path + ".moved"), ("file", "dir", *PLAIN[1:]))


@matrix
def sticky_target(place: Place) -> None:
    """Replacing is removing."""

    def replace(who: Any, path: str) -> Any:
        kind = "dir" if place.kinds(path) == "dir" else "file"
        owner = getattr(who, "uid", 0)
        source = place.make(kind, owner=(owner, owner), path=f"{place.base}/{place.name('source')}")
        return who.rename(source, path)

    common.sticky_rules(place, replace, ("file", "dir", *PLAIN[1:]))


@matrix
def sticky_exchange(place: Place) -> None:
    """Both names are removed."""

    def swap(who: Any, path: str) -> Any:
        owner = getattr(who, "uid", 0)
        source = place.make("file", owner=(owner, owner), path=f"{place.base}/{place.name('source')}")
        return who.rename(source, path, EXCHANGE)

    common.sticky_rules(place, swap, ("file", "symlink", "fifo"))


@group
def moving_directories_needs_their_write_permission(place: Place) -> None:
    """.. changes: a directory that moves to another one must be writable by the caller."""
    for mode in (0, 0o111, 0o444, 0o555, 0o200, 0o700, 0o777):
        for owner in (ALICE, BOB):
            for kind in ("empty", "full"):
                with place.case(f"{kind} {mode:#o} of {owner}"):
                    here, there = place.directory(0o777), place.directory(0o777)
                    place.make(kind, mode, (owner, owner), path=here + "/d")
                    bits = mode >> 6 if owner == ALICE else mode
                    writable = bool(bits & 2)
                    place.want(OK, place.alice, "rename", here + "/d", here + "/e")
                    before = os.stat(here).st_ctime_ns
                    place.want(OK if writable else "EACCES", place.alice, "rename", here + "/e", there + "/d")
                    if not writable:
                        place.equal("ctime is kept", os.stat(here).st_ctime_ns, before)
                        place.want("EACCES", place.alice, "rename", here + "/e", there + "/d", NOREPLACE)
                        place.make("dir", 0o777, path=there + "/other")
                        place.want("EACCES", place.alice, "rename", here + "/e", there + "/other", EXCHANGE)
                        place.want(OK, place.root, "rename", here + "/e", there + "/d")


@group
def both_directories_must_be_writable(place: Place) -> None:
    for source_mode in range(8):
        for target_mode in range(8):
            with place.case(f"{source_mode:#o} to {target_mode:#o}"):
                here, there = place.directory(), place.directory()
                place.make(path=here + "/x")
                os.chmod(here, source_mode)
                os.chmod(there, target_mode)
                allowed = source_mode & 3 == 3 and target_mode & 3 == 3
                place.want(OK if allowed else "EACCES", place.bob, "rename", here + "/x", there + "/y")
                place.equal("at the old name", place.kinds(here + "/x"), "missing" if allowed else "file")


@group
def times(place: Place) -> None:
    table = place.times()
    for kind in KINDS:
        for who in (place.root, place.alice):
            for two in (False, True):
                here = place.directory(0o777)
                there = place.directory(0o777) if two else here
                path = place.make(kind, 0o777, (ALICE, ALICE), path=here + "/x")
                want: dict[Any, str] = {(path, there + "/y"): "c", here: "mc", there: "mc"}
                table.case(
                    f"{who.name}, a {kind}", lambda who=who, path=path, to=there + "/y": who.rename(path, to), want
                )
            here = place.directory(0o777)
            path, other = place.make(kind, path=here + "/x"), place.make(kind, path=here + "/y")
            changed: dict[Any, str] = {(path, other): "c", (other, path): "c", here: "mc"}
            table.case(f"{who.name}, two {kind}", lambda who=who, a=path, b=other: who.rename(a, b, EXCHANGE), changed)
            here = place.directory(0o777)
            path, other = place.make(kind, path=here + "/x"), place.make(kind, path=here + "/y")
            changed = {path: "", other: "", here: ""}
            table.case("NOREPLACE", lambda who=who, a=path, b=other: who.rename(a, b, NOREPLACE), changed, "EEXIST")
            if kind != "dir":
                here = place.directory(0o777)
                path, other = place.make(kind, path=here + "/x"), place.make(kind, path=here + "/y")
                os.link(other, here + "/z", follow_symlinks=False)
                changed = {(path, other): "c", here + "/z": "c", here: "mc"}
                table.case("over one of two names", lambda who=who, a=path, b=other: who.rename(a, b), changed)
    full = place.make("full")
    directory = place.make("dir", 0o777)
    for who in (place.root, place.alice):
        table.case(
            "over a full directory", lambda who=who: who.rename(directory, full), {full: "", directory: ""}, "ENOTEMPTY"
        )
        table.case("missing", lambda who=who: who.rename(directory + "/x", directory + "/y"), {directory: ""}, "ENOENT")
    closed = place.make("full")
    table.case(
        "closed",
        lambda: place.alice.rename(closed + "/inside", closed + "/y"),
        {closed: "", closed + "/inside": ""},
        "EACCES",
    )
    table.run()


@group
def open_files(place: Place) -> None:
    root = place.root
    for number in range(10):
        old, new = place.name(), place.name()
        root.fill(old, b"old %d" % number)
        root.fill(new, b"new %d" % number)
        fds = [root.open(name, os.O_RDWR) for name in (old, new)]
        place.want(OK, root, "rename", old, new)
        place.want(b"old %d" % number, root, "content", new)
        place.want(b"new %d" % number, root, "pread", fds[1], 10, 0)
        place.want(b"old %d" % number, root, "pread", fds[0], 10, 0)
        place.want(3, root, "pwrite", fds[0], b"OLD", 0)
        place.want(b"OLD %d" % number, root, "content", new)
        place.equal("links", [os.fstat(fd).st_nlink for fd in fds], [1, 0])
        for fd in fds:
            os.close(fd)
    os.makedirs("tree/a/b")
    root.fill("tree/a/b/f", b"x")
    fd = os.open("tree/a/b/f", os.O_RDWR)
    os.chdir("tree/a/b")
    place.want(OK, root, "rename", place.base + "/tree/a", place.base + "/moved")
    place.want(b"x", root, "content", "f")
    place.equal("getcwd", os.getcwd(), place.base + "/moved/b")
    place.want(b"x", root, "content", "../b/f")
    place.equal("..", os.stat("../..").st_ino, os.stat(place.base).st_ino)
    os.chdir(place.base)
    os.close(fd)


@group
def other_file_systems(place: Place) -> None:
    for kind in KINDS:
        outside = place.make(kind, path=f"{place.elsewhere}/{place.name()}")
        path = place.make(kind)
        place.want("EXDEV", place.root, "rename", path, place.elsewhere + "/x")
        place.want("EXDEV", place.root, "rename", outside, place.name())
        place.want("EXDEV", place.root, "rename", path, outside)
        place.want("EXDEV", place.root, "rename", path, outside, EXCHANGE)
        place.equal("stays", place.kinds(path), kind)


@group
def descriptors(place: Place) -> None:
    root = place.root
    one, two = place.directory(), place.directory()
    place.make(path=one + "/x")
    first, second, file = os.open(one, os.O_RDONLY), os.open(two, os.O_RDONLY), os.open(one + "/x", os.O_RDONLY)
    place.want(OK, root, "renameat", first, "x", second, "y", 0)
    place.want("ENOENT", root, "renameat", first, "x", second, "y", 0)
    place.want(OK, root, "renameat", second, "y", AT_FDCWD, one + "/z", NOREPLACE)
    place.want("ENOTDIR", root, "renameat", file, "x", second, "y", 0)
    place.want("ENOTDIR", root, "renameat", first, "z", file, "y", 0)
    os.rmdir(two)
    place.want("ENOENT", root, "renameat", first, "z", second, "y", 0)
    for fd in (first, second, file):
        os.close(fd)
    place.want("EBADF", root, "renameat", first, "z", AT_FDCWD, "y", 0)
    assert not isinstance(root.lstat(one + "/z"), Errno)


@group
def many(place: Place) -> None:
    """A name that is replaced again and again, a chain of renames, a rotation by exchanges."""
    root = place.root
    for number in range(100):
        root.fill("new", b"%d" % number)
        place.want(OK, root, "rename", "new", "current")
        place.want(b"%d" % number, root, "content", "current")
    name = "current"
    for number in range(100):
        place.want(OK, root, "rename", name, f"step{number}")
        name = f"step{number}"
    place.want(b"99", root, "content", name)
    for number in range(5):
        root.fill(f"r{number}", b"%d" % number)
    for number in range(4):
        place.want(OK, root, "rename", f"r{number}", f"r{number + 1}", EXCHANGE)
    place.equal("rotated", [root.content(f"r{number}") for number in range(5)], [b"1", b"2", b"3", b"4", b"0"])


test_rename = conformance(__name__)
