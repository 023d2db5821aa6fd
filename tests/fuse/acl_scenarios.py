"""Scenarios about POSIX access control lists, for mounts that keep them. Their names begin with `acl_`."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from collections.abc import Callable
from typing import Any, Final

from tests.fuse.scenario import attempt, changed_times, in_child, listing, read, scenario, shape, write

ACCESS: Final = "system.posix_acl_access"
DEFAULT: Final = "system.posix_acl_default"


def getfacl(*paths: str) -> list[str]:
    """Return the lists of files, with numeric ids."""
    command = ["getfacl", "--numeric", "--absolute-names", "--physical", *paths]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def setfacl(*arguments: str) -> int:
    """Change lists; return the tool's exit status."""
    return subprocess.run(["setfacl", *arguments], check=False, capture_output=True).returncode


def encoded(*entries: tuple[int, int, int]) -> bytes:
    """Return a list of (tag, permissions, id) as setxattr(2) takes it."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def as_user(uid: int, gid: int, groups: list[int], action: Callable[[], Any]) -> Any:
    """Return what the action returns to another user."""

    def act() -> Any:
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        return action()

    return in_child(act)


@scenario
def acl_inheritance() -> Any:
    said: list[Any] = []
    defaults = {
        "plain": [],
        "minimal": ["-d", "-m", "u::rwx,g::rx,o::r"],
        "strict": ["-d", "-m", "u::rw,g::-,o::-"],
        "named": ["-d", "-m", "u:1000:rwx,g:100:rx"],
        "masked": ["-d", "-m", "u::rwx,u:1000:rwx,g::rwx,m::rx,o::rwx"],
    }
    for umask in (0, 0o022, 0o077):
        os.umask(umask)
        for name, arguments in defaults.items():
            place = f"{name}-{umask:o}"
            os.mkdir(place)
            if arguments:
                assert setfacl(*arguments, place) == 0
            for mode in (0o666, 0o600, 0o4777, 0o1070):
                os.close(os.open(f"{place}/f{mode:o}", os.O_CREAT | os.O_WRONLY, mode))
                os.mkdir(f"{place}/d{mode:o}", mode)
                os.mkdir(f"{place}/d{mode:o}/below", mode)
            os.mkfifo(f"{place}/fifo", 0o666)
            os.mknod(f"{place}/node", 0o020666, os.makedev(1, 3))
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(f"{place}/socket")
            os.symlink("f666", f"{place}/link")
            os.link(f"{place}/f666", f"{place}/other")
            paths = [f"{place}/{entry}" for entry in listing(place) if entry != "link"]
            said += [getfacl(place, *paths), [shape(path) for path in [*paths, f"{place}/link"]]]
    return said


@scenario
def acl_and_mode_follow_each_other() -> Any:
    write("f", b"data")
    os.mkdir("d")
    said: list[Any] = []
    for step in (
        ["-m", "u:1000:rw,g:100:rx"], ["-m", "m::r"], ["-m", "u::rwx,g::rwx,o::rwx"], ["-x", "u:1000"], ["-x", "g:100"],
        ["-b"], ["-m", "u:5:-"], ["--set", "u::r,g::-,o::-"], ["-m", "u:7:rwx,m::rwx"],
    ):  # fmt: skip
        for name in "fd":
            status = setfacl(*step, name)
            said += [status, shape(name), getfacl(name), sorted(os.listxattr(name))]
        os.chmod("f", 0o640)
        os.chmod("d", 0o2751)
        said += [getfacl("f", "d"), shape("f"), shape("d")]
    setfacl("-d", "-m", "u:9:rwx", "d")
    said += [sorted(os.listxattr("d")), attempt(os.removexattr, "d", DEFAULT), attempt(os.removexattr, "d", DEFAULT)]
    said += [sorted(os.listxattr("d")), attempt(os.getxattr, "d", DEFAULT), attempt(os.removexattr, "f", ACCESS)]
    said += [attempt(os.getxattr, "f", ACCESS), shape("f"), setfacl("-m", "u:3:rw", "f")]
    os.chown("f", 10, 20)
    os.rename("f", "g")
    said += [getfacl("g"), os.getxattr("g", ACCESS).hex()]
    os.utime("g", ns=(1, 1))
    said.append(changed_times("g", lambda: setfacl("-m", "u:4:r", "g")))
    return said


@scenario
def acl_refusals() -> Any:
    write("f")
    os.mkdir("d")
    os.symlink("f", "l")
    minimal = encoded((1, 6, 0xFFFFFFFF), (4, 4, 0xFFFFFFFF), (0x20, 0, 0xFFFFFFFF))
    full = encoded((1, 7, 0xFFFFFFFF), (2, 6, 1000), (4, 4, 0xFFFFFFFF), (0x10, 6, 0xFFFFFFFF), (0x20, 0, 0xFFFFFFFF))
    said: list[Any] = []
    for name in ("f", "d"):
        for attribute in (ACCESS, DEFAULT):
            for value in (full, minimal, full[:-1], b"", encoded(), b"\1" + full[1:], encoded((1, 7, 0xFFFFFFFF))):
                said += [attempt(os.setxattr, name, attribute, value), sorted(os.listxattr(name)), shape(name)]
    said += [attempt(os.setxattr, "l", ACCESS, full, follow_symlinks=False)]
    said += [attempt(os.getxattr, "l", ACCESS, follow_symlinks=False), os.listxattr("l", follow_symlinks=False)]
    os.chmod("f", 0o644)

    def other() -> Any:
        return [attempt(os.setxattr, "f", ACCESS, full), attempt(os.removexattr, "f", ACCESS), len(getfacl("f"))]

    return [*said, as_user(1000, 1000, [], other), shape("f")]


@scenario
def acl_binds_others() -> Any:
    os.chmod(".", 0o777)
    for number, arguments in enumerate(
        (["u:1000:rw"], ["u:1000:-"], ["g:2000:rw"], ["g:2000:r,m::-"], ["u:1000:r,g:2000:rw"], ["o::rw"], [])
    ):
        write(f"f{number}", b"data")
        os.mkdir(f"d{number}")
        write(f"d{number}/inside", b"data")
        os.chmod(f"f{number}", 0o660)
        os.chmod(f"d{number}", 0o770)
        for name in "fd":
            if arguments:
                setfacl("-m", *[text.replace("rw", "rwx") for text in arguments], f"{name}{number}")

    def try_all() -> Any:
        said: list[Any] = []
        for number in range(7):
            path, place = f"f{number}", f"d{number}"
            said += [attempt(read, path), attempt(write, path, b"data"), os.access(path, os.R_OK | os.X_OK)]
            said += [attempt(os.listdir, place), attempt(read, f"{place}/inside"), attempt(os.mkdir, f"{place}/new")]
            said += [attempt(os.rmdir, f"{place}/new")]
        return said

    users = [(1000, 1000, []), (1001, 2000, []), (1001, 1001, [2000]), (1000, 2000, []), (5, 5, [])]
    return [as_user(*user, try_all) for user in users]


@scenario
def acl_and_set_group_id() -> Any:
    """Who is not in the file's group loses the bit by setting a list."""
    os.chmod(".", 0o777)
    said: list[Any] = []
    for name in ("f", "g", "h"):
        write(name)
        os.chown(name, 1000, 3000)
        os.chmod(name, 0o2775)
    said.append(as_user(1000, 1000, [], lambda: setfacl("-m", "u:5:rx", "f")))
    said.append(as_user(1000, 1000, [3000], lambda: setfacl("-m", "u:5:rx", "g")))
    said.append(setfacl("-m", "u:5:rx", "h"))
    os.mkdir("d")
    os.chown("d", 0, 4000)
    os.chmod("d", 0o2777)
    setfacl("-d", "-m", "g:5:rwx", "d")
    os.umask(0o077)
    write("d/f")
    os.mkdir("d/d")
    return [*said, *[shape(name) for name in ("f", "g", "h", "d", "d/f", "d/d")], getfacl("d/f", "d/d")]
