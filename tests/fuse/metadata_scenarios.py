"""Scenarios about attributes: modes, owners, times, extended attributes, statvfs, locks."""

from __future__ import annotations

import fcntl
import os
import time
from typing import Any

from tests.fuse.scenario import (
    attempt,
    changed_times,
    drop_capabilities,
    in_child,
    listing,
    read,
    scenario,
    shape,
    write,
)


@scenario
def modes() -> Any:
    write("f")
    os.mkdir("d")
    said: list[Any] = []
    for mode in (0, 0o777, 0o4755, 0o2755, 0o1777, 0o7777, 0o400):
        os.chmod("f", mode)
        os.chmod("d", mode)
        said += [shape("f"), shape("d")]
    os.umask(0o027)
    os.close(os.open("g", os.O_CREAT | os.O_WRONLY, 0o6777))
    os.mkdir("e", 0o7777)
    os.umask(0)
    os.close(os.open("h", os.O_CREAT | os.O_WRONLY, 0o666))
    fd = os.open("unreadable", os.O_CREAT | os.O_RDWR, 0)  # the mode binds later opens, not this one
    os.write(fd, b"data")
    said += [shape("g"), shape("e"), shape("h"), os.pread(fd, 10, 0).decode(), shape("unreadable")]
    os.fchmod(fd, 0o755)
    return [*said, shape("unreadable"), attempt(os.chmod, "missing", 0)]


@scenario
def owners() -> Any:
    write("f")
    os.mkdir("d")
    os.symlink("f", "s")
    os.chown("f", 1000, 2000)
    os.chown("f", -1, 2001)
    os.chown("d", 1001, -1)
    os.lchown("s", 0x7FFFFFFF, 0xFFFFFFFE)
    said: list[Any] = [shape(name) for name in "fds"]
    for mode in (0o6755, 0o6711, 0o2745, 0o2755):
        os.chmod("f", mode)
        os.chmod("d", mode)
        os.chown("f", 3, 4)  # takes set-user-ID and set-group-ID away, even for root; not from directories
        os.chown("d", 3, 4)
        said += [shape("f"), shape("d")]
    return said


@scenario
def set_group_id_of_directories_is_inherited() -> Any:
    os.mkdir("d")
    os.chown("d", 0, 4242)
    os.chmod("d", 0o2775)
    write("d/f")
    os.mkdir("d/sub")
    os.mkfifo("d/fifo")
    os.symlink("t", "d/s")
    write("d/sub/g")
    os.mkdir("plain")
    write("plain/f")
    os.rename("plain/f", "d/moved")
    return [shape(name) for name in ("d", "d/f", "d/sub", "d/fifo", "d/s", "d/sub/g", "d/moved")]


@scenario
def permissions_bind_others() -> Any:
    for name, owner, mode in [
        ("mine", 0, 0o600),
        ("theirs", 1000, 0o600),
        ("open", 1000, 0o666),
        ("suid", 1000, 0o6777),
    ]:
        write(name, b"data")
        os.chown(name, owner, owner)
        os.chmod(name, mode)
    for name, mode in [("closed", 0o700), ("sticky", 0o1777), ("sgid", 0o2777)]:
        os.mkdir(name)
        write(f"{name}/f")
        os.chown(f"{name}/f", 1000, 1000)
        os.chown(name, 1000, 1000)
        os.chmod(name, mode)

    def other() -> Any:
        drop_capabilities()
        said: list[Any] = [read("mine"), attempt(read, "theirs"), read("open"), attempt(os.listdir, "closed")]
        said += [attempt(os.chmod, "open", 0o777), attempt(os.chown, "mine", 5, 5), attempt(os.stat, "closed/f")]
        said += [attempt(os.utime, "open", ns=(1, 1)), attempt(os.utime, "open"), attempt(os.utime, "theirs")]
        said += [
            attempt(os.unlink, "sticky/f"),
            attempt(os.rename, "sticky/f", "sticky/g"),
            attempt(os.unlink, "closed/f"),
        ]
        said += [attempt(os.setxattr, "theirs", "user.a", b""), attempt(os.setxattr, "mine", "trusted.a", b"")]
        said += [os.access("theirs", os.R_OK), os.access("open", os.W_OK), attempt(os.truncate, "theirs", 0)]
        said += [attempt(os.mknod, "node", 0o020600, os.makedev(1, 3)), attempt(os.link, "closed/f", "linked")]
        write("suid", b"clears both bits")
        os.close(os.open("sgid/made", os.O_CREAT | os.O_WRONLY, 0o2755))
        os.chmod("sgid/made", 0o2755)  # not a member of the group: the bit is dropped
        write("sticky/own")
        os.unlink("sticky/own")
        return said

    return [in_child(other), shape("suid"), shape("sgid/made"), listing(), listing("sticky")]


@scenario
def times() -> Any:
    write("f")
    os.mkdir("d")
    os.symlink("f", "s")
    said: list[Any] = []
    cases = [
        (0, 0),
        (1, 999_999_999),
        (1_600_000_000_123_456_789, 1_700_000_000_987_654_321),
        (-1_500_000_000, -1),
        (5 * 10**18, 9 * 10**18),
    ]
    for atime, mtime in cases:
        for name in "fds":
            os.utime(name, ns=(atime, mtime), follow_symlinks=False)
            info = os.lstat(name)
            said.append([name, info.st_atime_ns == atime, info.st_mtime_ns == mtime])
    start = time.time_ns()
    os.utime("f")
    info = os.stat("f")
    assert start - 10**8 < info.st_mtime_ns < start + 10**11
    fd = os.open("f", os.O_RDWR)
    os.utime(fd, ns=(7, 8))
    info = os.fstat(fd)
    said.append([info.st_atime_ns, info.st_mtime_ns])
    os.utime("f", ns=(10**18, 10**18))  # times set by hand survive closing and renaming
    os.close(fd)
    os.rename("f", "g")
    said.append([os.stat("g").st_mtime_ns, os.stat("g").st_atime_ns])
    with open("g", "r+b") as file:
        file.write(b"data")
        file.flush()
        os.utime(file.fileno(), ns=(11, 12))  # after the write: what cp -p does
    return [*said, os.stat("g").st_mtime_ns, os.stat("g").st_atime_ns]


@scenario
def times_that_attribute_changes_set() -> Any:
    write("f", b"x" * 100)
    os.mkdir("d")
    fd = os.open("f", os.O_RDWR)

    def write_once(path: str, flags: int, data: bytes = b"") -> None:
        fd = os.open(path, flags)
        if data:
            os.write(fd, data)
        os.close(fd)

    said = [
        changed_times("fd", lambda: [os.chmod(name, 0o700) for name in "fd"]),
        changed_times("fd", lambda: [os.chown(name, 1, 1) for name in "fd"]),
        changed_times("fd", lambda: [os.utime(name, ns=(10**18, os.stat(name).st_mtime_ns)) for name in "fd"]),
        changed_times("fd", lambda: [os.setxattr(name, "user.a", b"1") for name in "fd"]),
        changed_times("fd", lambda: [os.removexattr(name, "user.a") for name in "fd"]),
        changed_times("f", lambda: os.write(fd, b"y")),
        changed_times("f", lambda: write_once("f", os.O_WRONLY | os.O_APPEND, b"z")),
        changed_times("f", lambda: os.truncate("f", 50)),
        changed_times("f", lambda: os.ftruncate(fd, 5000)),
        changed_times("f", lambda: write_once("f", os.O_WRONLY | os.O_TRUNC)),
        changed_times("f", lambda: write_once("f", os.O_WRONLY | os.O_TRUNC)),  # empty already
        changed_times("f", lambda: write_once("f", os.O_RDWR)),
        changed_times("f", lambda: write_once("f", os.O_WRONLY | os.O_CREAT)),
        changed_times("f", lambda: read("f")),
        changed_times("f", lambda: os.fsync(fd)),
    ]
    os.close(fd)
    return said


@scenario
def extended_attributes() -> Any:
    write("f")
    os.mkdir("d")
    os.symlink("f", "s")
    said: list[Any] = []
    for name in "fd":
        os.setxattr(name, "user.one", b"value")
        os.setxattr(name, "user.empty", b"")
        os.setxattr(name, b"user.\xff\n odd", bytes(range(256)))
        os.setxattr(name, "user.one.more", b"its name begins as another's does")
        os.setxattr(name, "trusted.t", b"root's")
        said += [sorted(map(ascii, os.listxattr(name))), os.getxattr(name, "user.one").decode()]
        said += [len(os.getxattr(name, "user.empty")), os.getxattr(name, b"user.\xff\n odd").hex()]
        said += [attempt(os.setxattr, name, "user.one", b"", os.XATTR_CREATE)]
        said += [attempt(os.setxattr, name, "user.new", b"n", os.XATTR_CREATE)]
        said += [attempt(os.setxattr, name, "user.none", b"", os.XATTR_REPLACE)]
        said += [attempt(os.setxattr, name, "user.one", b"replaced", os.XATTR_REPLACE)]
        said += [attempt(os.getxattr, name, "user.missing"), attempt(os.removexattr, name, "user.missing")]
        os.removexattr(name, "user.one")
        said += [attempt(os.getxattr, name, "user.one"), os.getxattr(name, "user.one.more").decode()]
        said += [sorted(map(ascii, os.listxattr(name)))]
        os.setxattr(name, "user.one", b"v" * 3000)
        os.setxattr(name, "user.one", b"short again")
        said += [os.getxattr(name, "user.one").decode()]
        said += [
            attempt(os.getxattr, name, "user." + "n" * 250) and attempt(os.setxattr, name, "user." + "n" * 250, b"x")
        ]
        said += [
            attempt(os.setxattr, name, "user." + "n" * 251, b"x"),
            attempt(os.setxattr, name, "user.big", bytes(65537)),
        ]
        said += [attempt(os.setxattr, name, "nosuch.name", b"x"), attempt(os.getxattr, name, "nosuch.name")]
        said += [attempt(os.setxattr, name, "noprefix", b"x"), attempt(os.setxattr, name, "user.", b"x")]
        said += [sorted(map(ascii, os.listxattr(name)))]
    said += [attempt(os.setxattr, "s", "user.a", b"", follow_symlinks=False), os.listxattr("s", follow_symlinks=False)]
    os.setxattr("s", "trusted.a", b"of the link", follow_symlinks=False)
    said += [os.getxattr("s", "trusted.a", follow_symlinks=False).decode(), attempt(os.getxattr, "s", "trusted.a")]
    os.link("f", "g")
    os.rename("f", "h")
    said += [os.getxattr("g", "user.one").decode(), os.getxattr("h", "user.one").decode()]
    with open("h", "rb") as file:
        os.unlink("g")
        os.unlink("h")
        os.setxattr(file.fileno(), "user.late", b"late")
        said.append(os.getxattr(file.fileno(), "user.late").decode())
    write("f")
    return [*said, os.listxattr("f")]


@scenario
def file_system_figures() -> Any:
    info = os.statvfs(".")
    assert 0 < info.f_bavail <= info.f_bfree <= info.f_blocks
    assert 0 < info.f_favail <= info.f_ffree <= info.f_files
    assert os.pathconf(".", "PC_NAME_MAX") == info.f_namemax
    return [info.f_namemax, info.f_bsize, info.f_frsize]


@scenario
def locks_between_processes() -> Any:
    write("f", b"x" * 100)
    fd = os.open("f", os.O_RDWR)
    said: list[Any] = []

    def other(lock: Any, *args: Any) -> Any:
        def run() -> Any:
            with open("f", "r+b") as mine:
                return attempt(lock, mine, *args)

        return in_child(run)

    kinds = (fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_SH | fcntl.LOCK_NB)
    for lock in (fcntl.flock, fcntl.lockf):
        for mine in (fcntl.LOCK_EX, fcntl.LOCK_SH, fcntl.LOCK_UN):
            lock(fd, mine)
            said += [other(lock, kind) for kind in kinds]
    fcntl.lockf(fd, fcntl.LOCK_EX, 10, 20)
    said.append([other(fcntl.lockf, kinds[0], 10, at) for at in (0, 10, 15, 29, 30)])
    os.close(fd)
    return [*said, other(fcntl.lockf, kinds[0])]
