"""readdir(3), getdents64(2), telldir, seekdir, rewinddir, and listing a directory that changes meanwhile."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator

from tests.posix import common
from tests.posix.calls import checked, libc
from tests.posix.suite import KINDS, OK, PLAIN, Place, also_as_user, conformance, group, long_group, matrix

_GETDENTS64 = 217
_libc = ctypes.CDLL(None, use_errno=True)
_libc.opendir.restype = _libc.readdir64.restype = ctypes.c_void_p
_libc.opendir.argtypes = [ctypes.c_char_p]
_libc.telldir.restype = ctypes.c_long
for _name in ("readdir64", "closedir", "rewinddir", "telldir", "dirfd"):
    getattr(_libc, _name).argtypes = [ctypes.c_void_p]
_libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
TYPES = {4: "dir", 8: "file", 10: "symlink", 1: "fifo", 12: "socket", 2: "char", 6: "block"}


def entries(fd: int, size: int = 32768) -> list[tuple[str, int, int, int]]:
    """Return what one getdents64 gives: (name, inode, cookie, type)."""
    buffer = ctypes.create_string_buffer(size)
    length = checked(libc.syscall(ctypes.c_long(_GETDENTS64), fd, buffer, size))
    found = []
    at = 0
    while at < length:
        inode, cookie, record, kind = struct.unpack_from("QqHB", buffer, at)
        name = buffer.raw[at + 19 : at + record].split(b"\0")[0]
        found.append((os.fsdecode(name), inode, cookie, kind))
        at += record
    return found


def everything(fd: int, size: int = 32768) -> Iterator[tuple[str, int, int, int]]:
    """Yield all entries from the descriptor's position."""
    while batch := entries(fd, size):
        yield from batch


class Stream:
    """opendir(3) and its relatives."""

    def __init__(self, path: str) -> None:
        self.pointer = _libc.opendir(os.fsencode(path))
        assert self.pointer

    def next(self) -> str | None:
        entry = _libc.readdir64(self.pointer)
        return os.fsdecode(ctypes.string_at(entry + 19)) if entry else None

    def rest(self) -> list[str]:
        found = []
        while (name := self.next()) is not None:
            found.append(name)
        return found

    def tell(self) -> int:
        return int(_libc.telldir(self.pointer))

    def seek(self, position: int) -> None:
        _libc.seekdir(self.pointer, position)

    def rewind(self) -> None:
        _libc.rewinddir(self.pointer)

    def close(self) -> None:
        _libc.closedir(self.pointer)


def filled(place: Place, count: int) -> tuple[str, set[str]]:
    """Make a directory with files."""
    directory = place.directory(0o777)
    names = {f"entry-{number:05}" for number in range(count)}
    for name in names:
        place.make(path=f"{directory}/{name}")
    return directory, names


@matrix
def paths(place: Place) -> None:
    common.path_errors(place, lambda who, path: who.listdir(path), "dir", changes=False, read_only=OK, brief=True)
    for who in (place.root, place.alice):
        for kind in PLAIN:
            place.want("ENOENT" if kind == "symlink" else "ENOTDIR", who, "listdir", place.make(kind))


@group
def kinds_and_numbers(place: Place) -> None:
    directory = place.directory()
    for kind in KINDS:
        place.make(kind, path=f"{directory}/{kind}")
    for who in (place.root, place.alice):
        place.want(sorted(KINDS), who, "listdir", directory)
    fd = os.open(directory, os.O_RDONLY)
    found = {name: (inode, kind) for name, inode, _cookie, kind in everything(fd)}
    place.equal("names", set(found), {*KINDS, ".", ".."})
    for kind in KINDS:
        place.equal(f"type of a {kind}", TYPES[found[kind][1]], kind)
        place.equal(f"number of a {kind}", found[kind][0], os.lstat(f"{directory}/{kind}").st_ino)
    place.equal(".", found["."], (os.stat(directory).st_ino, 4))
    place.equal("..", found[".."], (os.stat(".").st_ino, 4))
    place.equal("at the end", entries(fd), [])
    place.equal("still at the end", entries(fd), [])
    for dirent in os.scandir(directory):
        place.equal(f"scandir {dirent.name}", dirent.inode(), os.lstat(dirent.path).st_ino)
    os.close(fd)
    os.mkdir(directory + "/sub")
    os.rename(directory + "/sub", "elsewhere")
    fd = os.open("elsewhere", os.O_RDONLY)
    found = {name: (inode, kind) for name, inode, _cookie, kind in everything(fd)}
    place.equal(".. after a move", found[".."][0], os.stat(".").st_ino)
    os.close(fd)


@group
def names(place: Place) -> None:
    directory = place.directory()
    odd = [
        b"a",
        b" ",
        b"\n",
        b"\xff",
        b"\xff" * 255,
        b"x" * 255,
        b"...",
        b"..a",
        b".hidden",
        b"-",
        b"*",
        b"\\",
        b"\x01",
        "ü".encode(),
        b"a b",
    ]
    odd += [bytes([number]) for number in range(2, 256) if number not in (0x2E, 0x2F)]
    for name in set(odd):
        place.root.fill(os.path.join(os.fsencode(directory), name))
        place.want(OK, place.root, "stat", os.path.join(os.fsencode(directory), name))
    place.equal("all of them", sorted(os.listdir(os.fsencode(directory))), sorted(set(odd)))
    for name in set(odd):
        place.want(OK, place.root, "unlink", os.path.join(os.fsencode(directory), name))
    place.equal("none of them", os.listdir(directory), [])


@also_as_user
@group
def buffers(place: Place) -> None:
    directory, names = filled(place, 300)
    for size in (300, 512, 1000, 4096, 32768, 1 << 20):
        fd = os.open(directory, os.O_RDONLY)
        found = [name for name, *_ in everything(fd, size)]
        place.equal(f"{size} bytes", sorted(found), sorted({*names, ".", ".."}))
        os.close(fd)
    fd = os.open(directory, os.O_RDONLY)
    for size in (1, 10, 20):
        try:
            place.equal("too small", entries(fd, size), "EINVAL")
        except OSError as exc:
            place.equal("too small", exc.errno, 22)
    place.equal("EFAULT", place.root.raw("syscall", _GETDENTS64, fd, 1, 4096), "EFAULT")
    place.equal("read(2)", place.root.read(fd, 10), "EISDIR")
    place.equal("write(2)", place.root.write(fd, b"x"), "EBADF")
    os.close(fd)
    fd = os.open(place.make(), os.O_RDONLY)
    place.equal("a file", place.root.raw("syscall", _GETDENTS64, fd, 4096, 4096), "ENOTDIR")
    os.close(fd)
    place.equal("EBADF", place.root.raw("syscall", _GETDENTS64, fd, 4096, 4096), "EBADF")


@also_as_user
@group
def positions(place: Place) -> None:
    """Every position that telldir named leads back to what followed it."""
    for count in (0, 1, 5, 200):
        directory, _names = filled(place, count)
        stream = Stream(directory)
        seen: list[tuple[int, str]] = []
        while True:
            position = stream.tell()
            name = stream.next()
            if name is None:
                break
            seen.append((position, name))
        end = stream.tell()
        order = [name for _position, name in seen]
        place.equal("different positions", len({position for position, _name in seen}), len(seen))
        step = max(1, len(seen) // 25)
        for index in [*range(0, len(seen), step), *reversed(range(0, len(seen), step))]:
            stream.seek(seen[index][0])
            place.equal(f"{count} entries, position {index}", stream.next(), order[index])
            place.equal("and on", stream.rest(), order[index + 1 :])
        stream.seek(end)
        place.equal("the end", stream.next(), None)
        for _ in range(3):
            stream.rewind()
            place.equal("from the start", stream.rest(), order)
        other = Stream(directory)
        other.seek(seen[len(seen) // 2][0])
        place.equal("in another stream", other.rest(), order[len(seen) // 2 :])
        other.close()
        stream.close()


@also_as_user
@group
def positions_under_change(place: Place) -> None:
    """A position stays good while entries around it come and go."""
    directory, _names = filled(place, 120)
    stream = Stream(directory)
    seen = []
    while (position := stream.tell(), name := stream.next()) and name is not None:
        seen.append((position, name))
    order = [name for _position, name in seen]
    for index in range(10, 110, 10):
        for victim in (order[index - 3], order[index + 4]):
            if not victim.startswith(".") and os.path.exists(f"{directory}/{victim}"):
                os.unlink(f"{directory}/{victim}")
        stream.seek(seen[index][0])
        rest = stream.rest()
        alive = [name for name in order[index:] if os.path.exists(f"{directory}/{name}")]
        place.equal(f"after removals around {index}", [name for name in rest if name in order], alive)
    for number in range(50):
        place.make(path=f"{directory}/new-{number}")
    for index in (20, 50, 80):
        stream.seek(seen[index][0])
        alive = [name for name in order[index:] if os.path.exists(f"{directory}/{name}")]
        place.equal(f"after additions, {index}", [name for name in stream.rest() if name in order], alive)
    stream.close()


@also_as_user
@matrix
def changes_while_listing(place: Place) -> None:
    """What is there all the time is listed exactly once, what is removed or added meanwhile at most once."""
    for count, every in ((50, 1), (300, 7), (1000, 50)) if place.thorough else ((50, 1), (200, 5)):
        directory, names = filled(place, count)
        fd = os.open(directory, os.O_RDONLY)
        found: list[str] = []
        removed, added = set(), set()
        ordered = sorted(names)
        step = 0
        while batch := entries(fd, 600):
            found += [name for name, *_ in batch]
            step += 1
            if step % every == 0 and ordered:
                for victim in (ordered.pop(0), ordered.pop() if ordered else None):
                    if victim:
                        os.unlink(f"{directory}/{victim}")
                        removed.add(victim)
                place.make(path=f"{directory}/added-{step}")
                added.add(f"added-{step}")
                os.rename(f"{directory}/added-{step}", f"{directory}/renamed-{step}")
                added.add(f"renamed-{step}")
        os.close(fd)
        stayed = names - removed
        place.equal(f"{count}: no name twice", len(found), len(set(found)))
        place.equal(f"{count}: all that stayed", stayed - set(found), set())
        place.equal(f"{count}: nothing else", set(found) - names - added, {".", ".."})


@also_as_user
@matrix
def removal_while_listing(place: Place) -> None:
    """What rm -r does: removing each entry as it is read leaves an empty directory."""
    for count in (10, 150, 1200) if place.thorough else (10, 150):
        for size in (400, 32768):
            directory, names = filled(place, count)
            fd = os.open(directory, os.O_RDONLY)
            found = set()
            for name, *_ in everything(fd, size):
                if not name.startswith("."):
                    os.unlink(f"{directory}/{name}")
                    found.add(name)
            os.close(fd)
            place.equal(f"{count} entries, buffer {size}", names - found, set())
            place.want(OK, place.root, "rmdir", directory)


@group
def descriptors(place: Place) -> None:
    directory, names = filled(place, 20)
    fd = os.open(directory, os.O_RDONLY)
    first = sorted(os.listdir(fd))
    place.equal("once more", sorted(os.listdir(fd)), first)
    place.want(0, place.root, "lseek", fd, 0, os.SEEK_SET)
    place.equal("after lseek 0", len(entries(fd)), len(names) + 2)
    place.want(0, place.root, "lseek", fd, 0, os.SEEK_SET)
    shared = os.dup(fd)
    some = entries(fd, 200)
    rest = list(everything(shared, 200))
    place.equal("a duplicate goes on", len(some) + len(rest), len(names) + 2)
    os.close(shared)
    os.chmod(directory, 0)
    os.lseek(fd, 0, os.SEEK_SET)
    place.equal("permission was checked before", len(entries(fd)), len(names) + 2)
    os.close(fd)
    fd = place.alice.open(place.directory(0o755), os.O_RDONLY)
    place.want([], place.alice, "listdir", fd)
    place.want(OK, place.alice, "close", fd)
    os.chmod(directory, 0o777)
    fd = os.open(directory, os.O_RDONLY)
    for name in names:
        os.unlink(f"{directory}/{name}")
    os.rmdir(directory)
    place.equal("removed", [name for name in place.root.listdir(fd) if name not in (".", "..")], [])
    os.close(fd)


@group
def sizes(place: Place) -> None:
    directory, names = filled(place, 700)
    place.equal("all", set(os.listdir(directory)), names)
    place.shape(directory, nlink=2)
    for name in sorted(names)[::2]:
        os.unlink(f"{directory}/{name}")
    place.equal("half", set(os.listdir(directory)), set(sorted(names)[1::2]))


@long_group
def large(place: Place) -> None:
    directory, names = filled(place, 10_000)
    place.equal("all", set(os.listdir(directory)), names)
    fd = os.open(directory, os.O_RDONLY)
    place.equal("once each", sorted(name for name, *_ in everything(fd, 4096)), sorted({*names, ".", ".."}))
    os.close(fd)


test_readdir = conformance(__name__)
