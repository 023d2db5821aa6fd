"""Scenarios about names: links, rename, directories, listing."""

from __future__ import annotations

import os
import socket
import stat
from typing import Any

from tests.fuse.scenario import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    attempt,
    changed_times,
    listing,
    read,
    renameat2,
    scenario,
    shape,
    write,
)


@scenario
def hard_links() -> Any:
    write("a", b"one")
    os.link("a", "b")
    os.mkdir("d")
    os.link("a", "d/c")
    assert os.stat("a").st_ino == os.stat("b").st_ino == os.stat("d/c").st_ino
    said: list[Any] = [shape("a"), shape("d/c")]
    with open("b", "ab") as file:
        file.write(b" two")
    said += [read("a"), read("d/c")]
    os.unlink("a")
    said += [shape("b"), read("b"), attempt(os.stat, "a"), attempt(os.link, "b", "d/c"), attempt(os.link, "d", "e")]
    os.rename("b", "d/c")  # two names of one file: nothing happens
    said += [listing(), listing("d"), os.stat("d/c").st_nlink]
    write("other", b"other")
    os.link("other", "other2")
    os.rename("d/c", "other")  # over one of two links
    said += [listing(), read("other"), read("other2"), shape("other"), shape("other2")]
    said += [attempt(os.link, "missing", "x"), attempt(os.link, "other", "missing/x"), attempt(os.link, "other", "d")]
    return said


@scenario
def link_of_open_unlinked_file() -> Any:
    with open("a", "wb") as file:
        os.unlink("a")
        return [attempt(os.link, f"/proc/self/fd/{file.fileno()}", "b", follow_symlinks=True), listing()]


@scenario
def symbolic_links() -> Any:
    os.mkdir("d")
    write("d/file", b"data")
    os.symlink("d/file", "to-file")
    os.symlink("d", "to-dir")
    os.symlink("nowhere", "dangling")
    os.symlink("loop2", "loop1")
    os.symlink("loop1", "loop2")
    os.symlink(b"\xff\xfe odd", b"odd")
    said: list[Any] = [shape(name) for name in ("to-file", "to-dir", "dangling")]
    said += [os.readlink("to-file"), read("to-file"), read("to-dir/file"), os.readlink(b"odd").hex()]
    said += [attempt(os.stat, "dangling"), attempt(open, "loop1"), attempt(os.readlink, "d"), attempt(os.readlink, "x")]
    said += [attempt(os.symlink, "t", "to-dir"), attempt(os.symlink, "", "empty"), attempt(os.symlink, "x" * 4096, "l")]
    os.symlink("x" * 4095, "long")
    said += [len(os.readlink("long")), os.lstat("long").st_size, attempt(os.rmdir, "to-dir")]
    said += [attempt(os.open, "to-file", os.O_RDONLY | os.O_NOFOLLOW)]
    said += [attempt(os.open, "dangling", os.O_WRONLY | os.O_CREAT | os.O_EXCL)]
    write("dangling", b"through")
    said += [read("nowhere"), attempt(os.mkdir, "to-dir"), attempt(os.listdir, "to-file")]
    os.unlink("to-dir")
    os.rename("to-file", "d/moved")
    return [*said, listing(), attempt(open, "d/moved"), os.readlink("d/moved")]


@scenario
def special_files() -> Any:
    os.mkfifo("fifo", 0o640)
    os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod("block", stat.S_IFBLK | 0o600, os.makedev(250, 0x12345))
    os.mknod("plain", stat.S_IFREG | 0o604)
    os.mknod("typeless", 0o600)
    said: list[Any] = [shape(name) for name in ("fifo", "null", "block", "plain", "typeless")]
    said += [os.stat("null").st_rdev, os.stat("block").st_rdev, attempt(os.mkfifo, "fifo")]
    reader = os.open("fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open("fifo", os.O_WRONLY | os.O_NONBLOCK)
    os.write(writer, b"through the pipe")
    said.append(os.read(reader, 100).decode())
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("socket")
        server.listen()
        client.connect("socket")
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"hello")
            said += [client.recv(10).decode(), oct(stat.S_IFMT(os.stat("socket").st_mode))]
    said.append(attempt(os.open, "socket", os.O_RDONLY))
    os.rename("fifo", "plain")
    for name in ("null", "block", "socket"):
        os.unlink(name)
    return [*said, listing(), shape("plain")]


KINDS = ("missing", "file", "link", "full", "empty", "symlink", "fifo")


def _make(kind: str, name: str) -> None:
    if kind == "file":
        write(name, b"file")
    elif kind == "link":
        write(name + ".twin", b"link")
        os.link(name + ".twin", name)
    elif kind in ("full", "empty"):
        os.mkdir(name)
        if kind == "full":
            write(name + "/inside")
    elif kind == "symlink":
        os.symlink("target", name)
    elif kind == "fifo":
        os.mkfifo(name)


def _all_renames(flags: int) -> Any:
    said = {}
    for source in KINDS:
        for target in KINDS:
            for across in (False, True):
                place = f"{source}-{target}-{across}"
                os.makedirs(f"{place}/other")
                old, new = f"{place}/old", f"{place}/other/new" if across else f"{place}/new"
                _make(source, old)
                _make(target, new)
                answer = attempt(renameat2, old, new, flags)
                tree = {
                    path.removeprefix(place): [sorted(names), sorted(files), os.stat(path).st_nlink]
                    for path, names, files in os.walk(place)
                }
                kinds = [oct(os.lstat(name).st_mode) if os.path.lexists(name) else "" for name in (old, new)]
                said[place] = [answer, tree, kinds]
    return said


@scenario
def rename_every_kind_over_every_kind() -> Any:
    return _all_renames(0)


@scenario
def rename_noreplace() -> Any:
    return _all_renames(RENAME_NOREPLACE)


@scenario
def rename_exchange() -> Any:
    return _all_renames(RENAME_EXCHANGE)


@scenario
def rename_refusals() -> Any:
    os.makedirs("a/b/c")
    os.mkdir("d")
    write("f")
    said = [attempt(os.rename, *pair) for pair in [("a", "a/b/x"), ("a/b", "a"), ("a", "a"), ("f", "f"), ("a/.", "x")]]
    said += [
        attempt(os.rename, *pair) for pair in [("f", "missing/x"), ("f", "f/x"), ("f", ""), ("f", "d/"), ("f", "x/")]
    ]
    said += [attempt(renameat2, "a", "a/b/c", RENAME_EXCHANGE), attempt(renameat2, "a/b", "a", RENAME_EXCHANGE)]
    said += [attempt(renameat2, "a", "d", RENAME_EXCHANGE | RENAME_NOREPLACE), attempt(renameat2, "a", "d", 64)]
    said += [attempt(os.rename, "f", "n" * 255), attempt(os.rename, "n" * 255, "n" * 256)]
    return [*said, listing(), listing("a")]


@scenario
def renamed_directory_keeps_its_contents() -> Any:
    os.makedirs("a/b")
    os.mkdir("x")
    write("a/b/file", b"data")
    os.chdir("a/b")
    os.rename("../../a/b", "../../x/moved")
    said: list[Any] = [
        listing(),
        read("file"),
        os.stat("..").st_ino == os.stat("../../x").st_ino,
        os.path.basename(os.getcwd()),
    ]
    os.chdir("../..")
    said += [shape("a"), shape("x"), shape("x/moved"), read("x/moved/file"), attempt(os.rmdir, "x")]
    entries = {entry.name: entry.inode() == os.stat(f"x/{entry.name}").st_ino for entry in os.scandir("x")}
    return [*said, entries]


@scenario
def directories() -> Any:
    os.mkdir("d")
    said: list[Any] = [
        shape("."),
        shape("d"),
        attempt(os.mkdir, "d"),
        attempt(os.mkdir, "d/x/y"),
        attempt(os.mkdir, "."),
    ]
    write("d/file")
    said += [attempt(os.rmdir, "d"), attempt(os.unlink, "d"), attempt(os.rmdir, "d/file"), attempt(os.rmdir, "missing")]
    said += [attempt(os.rmdir, "d/."), attempt(os.rmdir, "d/.."), attempt(open, "d"), attempt(os.unlink, "d/file/")]
    said += [
        attempt(os.open, "d", os.O_WRONLY),
        attempt(os.open, "d/file", os.O_DIRECTORY),
        attempt(os.stat, "d/file/x"),
    ]
    said += [attempt(os.open, "d", os.O_CREAT), attempt(os.truncate, "d", 0), attempt(os.listdir, "d/file")]
    for number in range(5):
        os.mkdir(f"d/{number}")
    said += [shape("d"), listing("d")]
    for number in range(3):
        os.rmdir(f"d/{number}")
    return [*said, shape("d"), listing("d")]


@scenario
def deep_directories_with_long_names() -> Any:
    """Far past PATH_MAX, as chdir allows it."""
    top = os.open(".", os.O_RDONLY)
    for level in range(60):
        name = f"{level:03}" + "x" * 252
        os.mkdir(name)
        write(name + "/f", b"%d" % level)
        os.chdir(name)
    os.symlink("y" * 4095, "s" * 255)
    os.rename("f", "g" * 255)
    os.link("g" * 255, "h")
    os.setxattr("h", "user." + "n" * 250, b"v" * 2000)
    said: list[Any] = [listing(), read("h"), attempt(os.stat, "x" * 256), attempt(os.stat, f"../{'0' * 255}")]
    for _ in range(60):
        os.chdir("..")
        said.append([len(name) for name in listing()])
    os.fchdir(top)
    return [*said, listing()]


@scenario
def removed_working_directory() -> Any:
    os.mkdir("d")
    os.chdir("d")
    fd = os.open(".", os.O_RDONLY)
    os.rmdir("../d")
    said: list[Any] = [attempt(os.listdir, "."), attempt(os.listdir, fd), os.fstat(fd).st_nlink]
    said += [attempt(os.open, "f", os.O_CREAT | os.O_WRONLY), attempt(os.mkdir, "e"), attempt(os.symlink, "t", "s")]
    said += [attempt(os.stat, "x"), oct(os.stat(".").st_mode), attempt(os.getcwd)]
    os.fchmod(fd, 0o700)
    os.utime(fd, ns=(5, 6))
    said += [oct(os.fstat(fd).st_mode), os.fstat(fd).st_mtime_ns, attempt(os.fsync, fd)]
    os.mkdir("../d")  # the same name, another directory
    return [*said, os.fstat(fd).st_nlink, attempt(os.stat, "x")]


@scenario
def names_of_any_length_and_bytes() -> Any:
    said: list[Any] = []
    for size in (1, 254, 255, 256, 1024, 1025, 4000):
        name = b"n" * size
        said.append([attempt(write, name, b"x"), attempt(os.stat, name + b"/"), attempt(os.mkdir, name + b"d")])
        said.append([attempt(os.unlink, name), attempt(os.rmdir, name), attempt(os.lstat, b"l" + name)])
        said.append([attempt(os.rename, name + b"d", b"renamed"), attempt(os.symlink, b"t", b"s" + name)])
        said.append(attempt(os.rmdir, b"renamed"))
    odd = [
        b"\n",
        b"\xff\xfe",
        b" ",
        b"\t-rf *",
        b"\\",
        b"\x01",
        b"...",
        b"\xc3\xa9",
        b"e\xcc\x81",
        "🦀".encode(),
        b"~",
        b"A",
        b"a",
    ]
    for name in odd:
        write(name, name)
    assert sorted(os.listdir(b".")) == sorted([*odd, b"s" + b"n" * 1, b"s" + b"n" * 254])
    said += [os.path.exists(name) and read(name).encode("latin-1") == name for name in odd]
    for name in odd:
        os.rename(name, b"new " + name)
    return [*said, sorted(name.hex() for name in os.listdir(b"."))]


@scenario
def listing_with_changes_in_the_middle() -> Any:
    """3000 names; while a listing goes on, one entry in two is deleted, some are renamed and added."""
    for number in range(3000):
        os.close(os.open(f"file-{number:04}", os.O_CREAT | os.O_WRONLY))
    seen: list[str] = []
    gone: set[str] = set()
    touched: set[str] = set()
    with os.scandir(".") as entries:
        for position, entry in enumerate(entries):
            seen.append(entry.name)
            if position % 2 == 0 and position < 2000 and entry.name.startswith("file"):
                number = (int(entry.name[5:]) * 7 + 11) % 3000
                name = f"file-{number:04}"
                if name in gone or name in touched:
                    continue
                if position % 50 == 0:
                    os.rename(name, f"renamed-{number:04}")
                    touched.update((name, f"renamed-{number:04}"))
                    write(f"added-{number:04}")
                    touched.add(f"added-{number:04}")
                else:
                    os.unlink(name)
                    gone.add(name)
    untouched = {f"file-{number:04}" for number in range(3000)} - gone - touched
    final = set(os.listdir("."))
    assert untouched <= final
    assert not final & gone
    return [len(seen) == len(set(seen)), sorted(untouched - set(seen))]


@scenario
def remove_all_while_listing() -> Any:
    """As `rm -r` does it: the listing is read to its end, though everything that it named is gone."""
    os.mkdir("d")
    for number in range(700):
        write(f"d/{number}")
    with os.scandir("d") as entries:
        for entry in entries:
            os.unlink(entry.path)
    return [listing("d"), attempt(os.rmdir, "d")]


@scenario
def seek_and_tell_in_a_directory() -> Any:
    """Through libc: telldir, seekdir and rewinddir; every position leads to the entry that followed it."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)

    class Dirent(ctypes.Structure):
        _fields_ = (
            ("ino", ctypes.c_uint64),
            ("off", ctypes.c_int64),
            ("reclen", ctypes.c_uint16),
            ("type", ctypes.c_uint8),
            ("name", ctypes.c_char * 256),
        )

    libc.opendir.restype = ctypes.c_void_p
    libc.readdir.restype = ctypes.POINTER(Dirent)
    libc.readdir.argtypes = libc.telldir.argtypes = libc.rewinddir.argtypes = libc.closedir.argtypes = [ctypes.c_void_p]
    libc.telldir.restype = ctypes.c_long
    libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
    for number in range(300):
        write(f"name-{number}")
    stream = libc.opendir(b".")
    places: list[tuple[int, bytes, int]] = []
    while True:
        place = libc.telldir(stream)
        entry = libc.readdir(stream)
        if not entry:
            break
        places.append((place, entry.contents.name, entry.contents.type))
    assert len({place for place, _name, _kind in places}) == len(places) == 302
    wrong = []
    for place, name, _kind in [*places[::-7], *places[5::31]]:
        libc.seekdir(stream, place)
        if libc.readdir(stream).contents.name != name:
            wrong.append(name.decode())
    libc.rewinddir(stream)
    again = libc.readdir(stream).contents.name == places[0][1]
    libc.closedir(stream)
    return [wrong, again, sorted((name.decode(), kind) for _place, name, kind in places)]


@scenario
def times_that_name_changes_set() -> Any:
    for name in ("d", "e"):
        os.mkdir(name)
    write("d/f", b"x")
    write("d/victim", b"x")
    os.link("d/victim", "twin")
    return [
        changed_times([".", "d"], lambda: write("d/new")),
        changed_times([".", "d", "d/f"], lambda: os.link("d/f", "d/g")),
        changed_times(["d", "d/f"], lambda: os.unlink("d/g")),
        changed_times(["d", "e", "d/f", "twin"], lambda: os.rename("d/victim", "e/victim")),
        changed_times(["d", "e", "d/f", "twin"], lambda: os.rename("d/f", "e/victim")),
        changed_times(["d", "e", "e/victim"], lambda: os.mkdir("e/sub")),
        changed_times(["e", "e/sub", "d"], lambda: os.rename("e/sub", "d/sub")),
        changed_times(["d", "d/sub"], lambda: os.rmdir("d/sub")),
        changed_times(["d", "e", "d/new", "e/victim"], lambda: renameat2("d/new", "e/victim", RENAME_EXCHANGE)),
        changed_times(["d"], lambda: os.symlink("t", "d/s")),
        changed_times(["d"], lambda: os.mkfifo("d/fifo")),
        changed_times(["d", "d/s"], lambda: attempt(os.mkdir, "d/s")),
    ]
