"""stat(2), lstat(2), fstat(2), fstatat(2), and what access times do."""

from __future__ import annotations

import os
import stat
from typing import Any

from tests.posix import common
from tests.posix.differences import differs
from tests.posix.suite import ALICE, KINDS, OK, Place, conformance, group, matrix


@matrix
def paths(place: Place) -> None:
    common.path_errors(
        place,
        lambda who, path: who.stat(path),
        changes=False,
        read_only=OK,
        fault=lambda address: place.root.raw("stat", address, 1),
    )
    place.equal("EFAULT: the buffer", place.root.raw("stat", place.make(), 1), "EFAULT")


@matrix
def paths_of_symlinks(place: Place) -> None:
    common.path_errors(
        place, lambda who, path: who.lstat(path), "symlink", follows=False, changes=False, read_only=OK, brief=True
    )


@group
def kinds(place: Place) -> None:
    root = place.root
    types = {
        "file": stat.S_ISREG,
        "dir": stat.S_ISDIR,
        "fifo": stat.S_ISFIFO,
        "symlink": stat.S_ISLNK,
        "socket": stat.S_ISSOCK,
    }
    types |= {"char": stat.S_ISCHR, "block": stat.S_ISBLK}
    device = os.stat(".").st_dev
    seen = set()
    for kind in KINDS:
        path = place.make(kind)
        info = os.lstat(path)
        for other, is_type in types.items():
            place.equal(f"a {kind} is a {other}", is_type(info.st_mode), kind == other)
        place.equal("device", info.st_dev, device)
        place.equal("links", info.st_nlink, 2 if kind == "dir" else 1)
        place.equal("rdev", info.st_rdev, os.makedev(250, 77) if kind in ("char", "block") else 0)
        place.equal("size", info.st_size, {"symlink": 14}.get(kind, info.st_size if kind == "dir" else 0))
        place.equal("blocks", info.st_blocks <= 8, True)
        place.equal("a number of its own", info.st_ino not in seen, True)
        seen.add(info.st_ino)
        for who in (place.alice, place.bob):
            place.want(root.lstat(path), who, "lstat", path)
        place.want("ENOTDIR" if kind != "dir" else OK, root, "lstat", path + "/") if kind != "symlink" else None
        if kind in ("file", "dir", "fifo"):
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            place.want(root.lstat(path), root, "fstat", fd)
            os.close(fd)
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
        place.equal("through O_PATH", os.fstat(fd).st_ino, info.st_ino)
        os.close(fd)
        number = os.lstat(path).st_ino
        os.rename(path, path + ".moved")
        place.equal("the number stays", os.lstat(path + ".moved").st_ino, number)
    place.want("EBADF", root, "fstat", -1)


@group
def symlinks(place: Place) -> None:
    for kind in ("todir", "tofile"):
        path = place.make(kind)
        place.want(place.root.lstat(path + ".target"), place.root, "stat", path)
        place.shape(path, kind="symlink", size=len(path) + 7)
    for who in (place.root, place.alice):
        path = place.make("dangling")
        place.want("ENOENT", who, "stat", path)
        place.want(OK, who, "lstat", path)
        place.want("ENOENT", who, "lstat", path + "/")


@group
def modes_of_the_file_do_not_matter(place: Place) -> None:
    for mode in (0, 0o600, 0o700):
        for kind in KINDS:
            path = place.make(kind, mode)
            for who in (place.alice, place.bob):
                place.want(OK, who, "lstat", path)
    directory = place.directory(0o777)
    place.make(path=directory + "/x")
    for mode in range(8):
        os.chmod(directory, mode)
        place.want(OK if mode & 1 else "EACCES", place.bob, "stat", directory + "/x")
        place.want(OK if mode & 4 else "EACCES", place.bob, "listdir", directory)


@group
def sizes_and_blocks(place: Place) -> None:
    root = place.root
    for size in (0, 1, 511, 512, 513, 4095, 4096, 4097, 65536, 100_000, 1 << 20, (1 << 20) + 1):
        path = place.name()
        root.fill(path, b"\xaa" * size)
        place.shape(path, size=size)
        fd = os.open(path, os.O_RDWR)
        os.fsync(fd)
        os.close(fd)
        info = os.stat(path)
        place.equal(f"{size} bytes have blocks", info.st_blocks * 512 >= size, True)
        place.equal(
            f"{size} bytes have no more blocks than needed",
            info.st_blocks * 512 <= (size + 8191) // 4096 * 4096 + 4096,
            True,
        )
    path = place.name()
    fd = root.open(path, os.O_CREAT | os.O_RDWR)
    os.ftruncate(fd, 1 << 40)
    place.equal("a hole has no blocks", os.fstat(fd).st_blocks, 0)
    os.pwrite(fd, bytes(4096), 1 << 39)
    os.fsync(fd)
    os.close(fd)  # until then FUSE's writeback cache shows the number from before the write (fuse_flush)
    blocks = os.stat(path).st_blocks
    place.equal("data in a hole", blocks in range(8, 65) or blocks, True)
    fd = os.open(path, os.O_RDWR)
    os.ftruncate(fd, 0)
    place.equal("emptied", os.fstat(fd).st_blocks, 0)
    os.close(fd)


@group
def access_times(place: Place) -> None:
    """relatime: a read sets atime if it is not after mtime and ctime, or older than a day."""
    root = place.root
    day = 86_400 * 10**9
    stamp = 1_600_000_000
    table = place.times()
    again = []
    for kind in ("file", "dir"):

        def prepare(atime: int, mtime: int, kind: str = kind) -> str:
            path = place.name()
            if kind == "file":
                root.fill(path, b"content")
            else:
                place.make("full", path=path)
            root.utimensat(path, (atime, 0), (mtime, 0))
            return path

        def read(path: str, kind: str = kind) -> object:
            return root.content(path) if kind == "file" else root.listdir(path)

        for label, atime, mtime, want in (
            ("older than mtime", stamp - 5, stamp, "a"),
            ("equal to mtime", stamp, stamp, "a"),
            ("older than ctime", stamp, stamp - 5, "a"),
        ):
            path = prepare(atime, mtime)
            table.case(f"{kind}: {label}", lambda read=read, path=path: read(path), {path: want})
        again.append((kind, read, path))
        path = prepare(4_000_000_000, stamp)
        table.case(f"{kind}: in the future", lambda read=read, path=path: read(path), {path: ""})
        path = prepare(stamp, stamp)
        fd = os.open(path, os.O_RDONLY | os.O_NOATIME)
        os.read(fd, 5) if kind == "file" else os.listdir(fd)
        kept: Any = True if kind == "file" else differs("O_NOATIME of a directory")
        os.close(fd)
        place.equal(f"{kind}: kept by O_NOATIME", os.stat(path).st_atime_ns == stamp * 10**9, kept)
        path = prepare(stamp, stamp)
        os.stat(path)
        os.listxattr(path)
        place.shape(path, atime=stamp * 10**9)
        os.close(os.open(path, os.O_RDONLY))
        kept: Any = True if kind == "dir" else differs("opened for reading")
        place.equal(f"{kind}: only opened", os.stat(path).st_atime_ns == stamp * 10**9, kept)
    path = prepare(stamp, stamp, "file")
    fd = os.open(path, os.O_RDONLY)
    os.pread(fd, 0, 0)
    place.shape(path, atime=stamp * 10**9)
    os.close(fd)
    table.run()
    for kind, read, path in again:
        place.equal(f"{kind}: set by the first read", os.stat(path).st_atime_ns > stamp * 10**9 + day, True)
        table.case(f"{kind}: the second read", lambda read=read, path=path: read(path), {path: ""})
    table.run()


@group
def numbers_are_not_reused(place: Place) -> None:
    """ext4 gives the number of a removed file to the next one; the mount never does."""
    numbers = set()
    for _ in range(50):
        path = place.make()
        numbers.add(os.stat(path).st_ino)
        os.unlink(path)
    if place.target == "decloud":
        place.equal("different numbers", len(numbers), 50)
    held = place.make()
    fd = os.open(held, os.O_RDONLY)
    number = os.fstat(fd).st_ino
    os.unlink(held)
    place.equal("never while it is open", number in {os.stat(place.make()).st_ino for _ in range(50)}, False)
    os.close(fd)
    place.shape(place.make(owner=(ALICE, 7)), uid=ALICE, gid=7)


test_stat = conformance(__name__)
