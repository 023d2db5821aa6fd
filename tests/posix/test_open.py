"""open(2), openat(2), creat(2)."""

from __future__ import annotations

import os
import stat
from typing import Any

from tests.posix import common
from tests.posix.calls import O_TMPFILE, Caller
from tests.posix.differences import differs
from tests.posix.suite import ALICE, BOB, KINDS, OK, STAFF, Place, conformance, group, matrix

CREATE = os.O_CREAT | os.O_WRONLY
ACCESS = {os.O_RDONLY: 4, os.O_WRONLY: 2, os.O_RDWR: 6}


@matrix
def paths_of_existing_files(place: Place) -> None:
    common.path_errors(
        place,
        lambda who, path: who.opens(path, os.O_RDONLY),
        changes=False,
        fault=lambda address: place.root.raw("open", address, 0),
    )


@matrix
def paths_of_new_files(place: Place) -> None:
    common.path_errors(
        place,
        lambda who, path: who.opens(path, CREATE, 0o644),
        "missing",
        parent=True,
        fault=lambda address: place.root.raw("open", address, CREATE),
    )


@matrix
def new_files(place: Place) -> None:
    common.new_file(place, lambda who, path, mode: who.opens(path, CREATE, mode), "file")
    common.new_file(place, lambda who, path, mode: who.opens(path, CREATE | os.O_EXCL, mode), "file", brief=True)


@group
def exclusive(place: Place) -> None:
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
        common.existing_kinds(place, lambda who, path, flags=flags: who.opens(path, flags | os.O_CREAT | os.O_EXCL))


@matrix
def permissions(place: Place) -> None:
    """Every class, every three bits, every access mode, for files, directories and fifos."""
    for kind in ("file", "fifo", "dir"):
        path = place.make(kind, owner=common.OWNED)
        for label, who, shift in common.classes(place):
            for bits in range(8):
                for mode in common.modes_for(bits, shift):
                    os.chmod(path, mode)
                    for flags, needed in ACCESS.items():
                        if (kind == "dir" and flags != os.O_RDONLY) or (kind == "fifo" and flags == os.O_WRONLY):
                            continue
                        with place.case(f"{label} of a {kind} {mode:#o}"):
                            want = OK if bits & needed == needed else "EACCES"
                            place.want(want, who, "opens", path, flags | os.O_NONBLOCK)
        for mode in (0, 0o111, 0o444):
            os.chmod(path, mode)
            for flags in ACCESS:
                if kind == "file":
                    place.want(OK, place.root, "opens", path, flags)


@group
def truncation_needs_write_permission(place: Place) -> None:
    for mode in (0o444, 0o222, 0o666, 0):
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
            path = place.name()
            place.root.fill(path, b"content")
            os.chmod(path, mode)
            before = os.stat(path)
            needed = ACCESS[flags] | 2
            allowed = (mode & 7) & needed == needed
            place.want(OK if allowed else "EACCES", place.alice, "opens", path, flags | os.O_TRUNC)
            place.shape(path, size=0 if allowed else 7)
            if not allowed:
                place.equal("ctime is kept", os.stat(path).st_ctime_ns, before.st_ctime_ns)
    path = place.name()
    place.root.fill(path, b"content")
    place.want("EISDIR", place.root, "opens", ".", os.O_WRONLY | os.O_TRUNC)
    place.want(OK, place.root, "opens", path, os.O_RDONLY | os.O_TRUNC)
    place.shape(path, size=0)


@group
def creation_does_not_bind_the_opener(place: Place) -> None:
    """The mode of a new file is for later opens: a descriptor made with mode 0 reads and writes."""
    for who in (place.root, place.alice):
        for mode in (0, 0o400, 0o200, 0o444):
            path = place.name()
            fd = place.want(OK, who, "open", path, os.O_CREAT | os.O_RDWR, mode)
            place.want(4, who, "write", fd, b"data")
            place.want(b"data", who, "pread", fd, 10, 0)
            place.want(OK, who, "close", fd)
            place.want(OK if who is place.root or mode & 0o400 else "EACCES", who, "opens", path, os.O_RDONLY)
            place.want(OK, who, "chmod", path, 0)
            fd = place.want(OK if who is place.root else "EACCES", who, "open", path, os.O_RDWR)
            if who is place.root:
                os.close(fd)


@group
def directories(place: Place) -> None:
    for who in (place.root, place.alice):
        directory = place.directory(0o777)
        for flags in (
            os.O_WRONLY,
            os.O_RDWR,
            os.O_RDONLY | os.O_CREAT,
            os.O_WRONLY | os.O_CREAT,
            os.O_RDWR | os.O_TRUNC,
            os.O_TRUNC,
        ):
            for path in (directory, ".", "..", "/"):
                if path == "/" and who is place.root:
                    continue
                want = {"EISDIR", "EACCES"} if who is place.alice else "EISDIR"
                place.want(want, who, "opens", path, flags)
        place.want("EEXIST", who, "opens", directory, os.O_CREAT | os.O_EXCL)
        place.want("EINVAL", who, "opens", directory, os.O_CREAT | os.O_DIRECTORY)
        place.want("EINVAL", who, "opens", place.name(), os.O_CREAT | os.O_DIRECTORY)
        place.want("EISDIR", who, "opens", place.name() + "/", os.O_CREAT | os.O_WRONLY)
        place.want(OK, who, "opens", directory + "/", os.O_RDONLY)
    for kind in (*KINDS, "todir", "tofile", "dangling"):
        path = place.make(kind)
        want: Any = OK if kind in ("dir", "todir") else "ENOENT" if kind in ("symlink", "dangling") else "ENOTDIR"
        for who in (place.root, place.alice):
            place.want(want, who, "opens", path, os.O_DIRECTORY | os.O_NONBLOCK)
            place.want(want, who, "opens", path + "/", os.O_NONBLOCK)
            place.want(want, who, "opens", path + "/.", os.O_NONBLOCK)


@group
def symlinks(place: Place) -> None:
    for who in (place.root, place.alice):
        for kind in ("symlink", "todir", "tofile", "dangling"):
            path = place.make(kind)
            place.want("ELOOP", who, "opens", path, os.O_NOFOLLOW)
            place.want("ELOOP", who, "opens", path, os.O_NOFOLLOW | os.O_CREAT | os.O_WRONLY)
            place.want("ENOTDIR", who, "opens", path, os.O_NOFOLLOW | os.O_DIRECTORY)
            place.want(OK, who, "opens", path, os.O_NOFOLLOW | os.O_PATH)
        path = place.make("todir")
        place.make(path=path + "/inside")
        place.want(OK, who, "opens", path + "/inside", os.O_NOFOLLOW)
        link, target = place.name(), place.name("target")
        os.symlink(target, link)
        place.want("ENOENT", who, "opens", link)
        place.want("EEXIST", who, "opens", link, CREATE | os.O_EXCL)
        place.equal("nothing made", place.kinds(target), "missing")
        place.want(OK, who, "opens", link, CREATE)
        place.shape(target, kind="file")
        os.symlink("missing/x", link + "2")
        place.want("ENOENT", who, "opens", link + "2", CREATE)


@group
def special_files(place: Place) -> None:
    for who in (place.root, place.alice):
        for kind in ("char", "block"):
            path = place.make(kind, 0o666)
            place.want("ENXIO", who, "opens", path, os.O_RDONLY)
            place.want("ENXIO", who, "opens", path, os.O_RDWR)
            place.want(OK, who, "opens", path, os.O_PATH)
        path = place.make("socket", 0o666)
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
            place.want("ENXIO", who, "opens", path, flags)
        path = place.make("fifo", 0o666)
        place.want("ENXIO", who, "opens", path, os.O_WRONLY | os.O_NONBLOCK)
        place.want(OK, who, "opens", path, os.O_RDONLY | os.O_NONBLOCK)
        place.want(OK, who, "opens", path, os.O_RDONLY | os.O_NONBLOCK | os.O_TRUNC)
        null = place.name("null")
        os.mknod(null, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.chmod(null, 0o666)
        fd = place.want(OK, who, "open", null, os.O_RDWR | os.O_TRUNC)
        place.want(3, who, "write", fd, b"abc")
        place.want(b"", who, "read", fd, 3)
        place.want(OK, who, "close", fd)


@group
def times(place: Place) -> None:
    root, alice = place.root, place.alice
    table = place.times()
    for who in (root, alice):
        directory = place.directory(0o777)

        def file(data: bytes = b"", mode: int = 0o666, directory: str = directory) -> str:
            path = f"{directory}/{place.name()}"
            root.fill(path, data)
            os.chmod(path, mode)
            return path

        def add(label: str, path: str, flags: int, changed: Any, want: Any = OK, who: Caller = who) -> None:
            table.case(f"{who.name}: {label}", lambda: who.opens(path, flags), {path: changed}, want)

        add("O_RDONLY", file(), os.O_RDONLY, differs("times of a file only opened for reading"))
        add("O_WRONLY", file(), os.O_WRONLY, "")
        add("O_RDWR", file(b"x"), os.O_RDWR, "")
        add("O_CREAT of an existing file", file(b"x"), os.O_CREAT | os.O_WRONLY, "")
        add("O_APPEND", file(b"x"), os.O_APPEND | os.O_WRONLY, "")
        add("O_TRUNC", file(b"x"), os.O_TRUNC | os.O_WRONLY, "mc")
        add("O_TRUNC of an empty file", file(), os.O_TRUNC | os.O_WRONLY, "mc")
        add("O_TRUNC|O_CREAT", file(b"x"), os.O_TRUNC | os.O_CREAT | os.O_RDWR, "mc")
        add("O_EXCL", file(b"x"), os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_WRONLY, "", "EEXIST")
        add("O_PATH", file(b"x"), os.O_PATH, "")
        add("a directory", place.directory(0o777), os.O_RDONLY, "")
        if who is alice:
            add("not writable", file(b"x", 0o444), os.O_WRONLY, "", "EACCES")
            add("not truncatable", file(b"x", 0o444), os.O_WRONLY | os.O_TRUNC, "", "EACCES")
            add("not readable", file(b"x", 0o222), os.O_RDONLY, "", "EACCES")
        other = place.directory(0o777)
        taken = place.make(path=other + "/taken", mode=0o666)
        table.case(
            "O_CREAT over an existing file",
            lambda who=who, taken=taken: who.opens(taken, CREATE),
            {other: "", taken: ""},
        )
        table.case("O_EXCL", lambda who=who, taken=taken: who.opens(taken, CREATE | os.O_EXCL), {other: ""}, "EEXIST")
    table.run()


@group
def no_access_time(place: Place) -> None:
    """O_NOATIME is for the owner."""
    path = place.make(owner=(ALICE, STAFF), mode=0o666)
    place.want(OK, place.root, "opens", path, os.O_NOATIME)
    place.want(OK, place.alice, "opens", path, os.O_NOATIME)
    place.want("EPERM", place.bob, "opens", path, os.O_NOATIME)
    place.want("EPERM", place.user(BOB, STAFF), "opens", path, os.O_NOATIME | os.O_RDWR)
    place.want("EACCES", place.bob, "opens", place.make(owner=(ALICE, STAFF), mode=0), os.O_NOATIME)


@group
def unnamed_files(place: Place) -> None:
    for who in (place.root, place.alice):
        for flags in (os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_EXCL):
            place.want(differs("O_TMPFILE"), who, "opens", ".", O_TMPFILE | flags)
        place.want("EINVAL", who, "opens", ".", O_TMPFILE | os.O_RDONLY)
        place.want("ENOENT", who, "opens", "missing", O_TMPFILE | os.O_RDWR)
        place.want("ENOTDIR", who, "opens", place.make(), O_TMPFILE | os.O_RDWR)


@group
def descriptors(place: Place) -> None:
    root = place.root
    directory = place.directory()
    inside = place.make(path=directory + "/x")
    fd, file, handle = os.open(directory, os.O_RDONLY), os.open(inside, os.O_RDONLY), os.open(directory, os.O_PATH)
    for number in (fd, handle):
        place.want(OK, root, "openat", number, "x")
        place.want(OK, root, "openat", number, "y", CREATE)
        place.want("ENOENT", root, "openat", number, "missing")
        place.want(OK, root, "openat", number, os.path.abspath(inside))
        place.want(OK, root, "openat", number, "../" + inside)
        os.unlink(directory + "/y")
    place.want("ENOTDIR", root, "openat", file, "x")
    place.want(OK, root, "openat", file, os.path.abspath(inside))
    os.rename(directory, directory + ".moved")
    place.want(OK, root, "openat", fd, "x")
    os.unlink(directory + ".moved/x")
    os.rmdir(directory + ".moved")
    place.want("ENOENT", root, "openat", fd, "x", CREATE)
    for number in (fd, file, handle):
        os.close(number)
    place.want("EBADF", root, "openat", fd, "x")
    os.chmod(place.make("dir", path="closed"), 0o700)
    place.want("EACCES", place.alice, "opens", "closed/x", CREATE)


@group
def path_descriptors(place: Place) -> None:
    """O_PATH descriptors name a file and do nothing else."""
    for kind in KINDS:
        path = place.make(kind)
        for who in (place.root, place.alice):
            fd = place.want(OK, who, "open", path, os.O_PATH | os.O_NOFOLLOW)
            place.want(OK, who, "fstat", fd)
            for call, *args in (
                ("read", 1), ("write", b"x"), ("pread", 1, 0), ("fchmod", 0o777), ("fsync",), ("ftruncate", 0),
                ("fchown", 1, 1), ("lseek", 0, 0), ("getxattr", "user.x"),
            ):  # fmt: skip
                place.want("EBADF", who, call, fd, *args)
            place.want(OK, who, "close", fd)


@group
def flags_of_descriptors(place: Place) -> None:
    root = place.root
    path = place.name()
    root.fill(path, b"content")
    for flags, readable, writable in (
        (os.O_RDONLY, True, False),
        (os.O_WRONLY, False, True),
        (os.O_RDWR, True, True),
        (3, False, False),
    ):
        fd = place.want(OK, root, "open", path, flags)
        place.want(b"c" if readable else "EBADF", root, "pread", fd, 1, 0)
        place.want(1 if writable else "EBADF", root, "pwrite", fd, b"c", 0)
        place.want(OK if writable else "EINVAL", root, "ftruncate", fd, 7)
        place.want(OK, root, "fsync", fd)
        place.want(OK, root, "fchmod", fd, 0o644)
        place.want(OK, root, "close", fd)
        place.want("EBADF", root, "close", fd)
    numbers = [root.open(path) for _ in range(100)]
    place.equal("all different", len(set(numbers)), 100)
    for fd in numbers:
        place.want(b"content", root, "read", fd, 100)
        os.close(fd)


@group
def through_a_changed_mode(place: Place) -> None:
    """A descriptor keeps what it was opened for, whatever becomes of the file's mode, owner and directory."""
    directory = place.directory(0o777)
    path = directory + "/x"
    place.root.fill(path, b"content")
    os.chmod(path, 0o666)
    fd = place.alice.open(path, os.O_RDWR)
    os.chmod(path, 0)
    os.chmod(directory, 0)
    os.chown(path, BOB, BOB)
    place.want(b"content", place.alice, "pread", fd, 10, 0)
    place.want(3, place.alice, "pwrite", fd, b"CON", 0)
    place.want(OK, place.alice, "ftruncate", fd, 3)
    place.want("EPERM", place.alice, "fchmod", fd, 0o666)
    place.want("EACCES", place.alice, "opens", path)
    place.want("EACCES", place.alice, "opens", f"/proc/self/fd/{fd}")
    place.want(OK, place.alice, "close", fd)
    place.equal("written", place.root.content(path), b"CON")


test_open = conformance(__name__)
