"""Scenarios about contents: sparse files, truncation, open flags, removed files, mmap, kernel copies."""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import random
from typing import Any

from tests.fuse.scenario import attempt, in_child, listing, read, scenario, shape, write

MIB = 1 << 20


def pattern(size: int, seed: int = 1) -> bytes:
    """Return bytes that no shift by a chunk or page leaves alike."""
    return random.Random(seed).randbytes(size)


def digest(path: str) -> list[Any]:
    """Return a file's length and hash, read through a new descriptor after the kernel's clean pages are gone."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        found = hashlib.sha256()
        size = 0
        while data := os.read(fd, MIB):
            found.update(data)
            size += len(data)
        return [size, os.fstat(fd).st_size, found.hexdigest()]
    finally:
        os.close(fd)


@scenario
def sizes_around_a_chunk() -> Any:
    said = []
    for size in (0, 1, 2048, 2049, 4095, 4096, 4097, MIB - 1, MIB, MIB + 1, 2 * MIB, 2 * MIB + 1):
        data = pattern(size, size)
        write("f", data)
        with open("f", "rb") as file:
            assert file.read() == data
            assert os.pread(file.fileno(), 10, max(0, size - 5)) == data[-5:] if size > 5 else True
            assert os.pread(file.fileno(), 10, size) == os.pread(file.fileno(), 10, size + MIB) == b""
        said.append(digest("f"))
        os.unlink("f")
    return said


@scenario
def sparse_files() -> Any:
    fd = os.open("f", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, b"far away", 1 << 40)
    said: list[Any] = [os.fstat(fd).st_size, os.pread(fd, 100, (1 << 40) - 50).hex()]
    os.pwrite(fd, b"near", 3 * MIB - 2)
    said += [
        os.pread(fd, 20, 3 * MIB - 10).hex(),
        any(os.pread(fd, MIB, 2 * MIB - 10)),
        len(os.pread(fd, MIB, 1 << 39)),
    ]
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    said += [
        os.pread(fd, 20, 3 * MIB - 10).hex(),
        os.pread(fd, 100, (1 << 40) - 50).hex(),
        any(os.pread(fd, MIB, 1 << 30)),
    ]
    said += [os.fstat(fd).st_blocks < 1 << 13, os.lseek(fd, 0, os.SEEK_END)]
    os.ftruncate(fd, 3 * MIB)
    os.ftruncate(fd, (1 << 40) + 8)
    said += [os.pread(fd, 20, 3 * MIB - 10).hex(), os.pread(fd, 100, (1 << 40) - 50).hex()]
    os.ftruncate(fd, 0)
    os.close(fd)
    os.truncate("f", 10 * MIB)
    said += [digest("f"), os.stat("f").st_blocks]
    said += [
        attempt(os.truncate, "f", -1),
        attempt(os.truncate, "f", (1 << 63) - 1),
        attempt(os.truncate, "missing", 1),
    ]
    write("data", pattern(300_000))
    blocks = os.stat("data").st_blocks * 512  # programs take a file without blocks for one without data
    return [*said, shape("f"), 300_000 <= blocks < 310_000]


@scenario
def truncate_down_and_up() -> Any:
    """What was cut off reads as zeros, however the file grows again, in memory and out of the store."""
    said = []
    for settle in (False, True):
        for cut in (0, 1, 100, 4096, 5000, MIB - 1, MIB, MIB + 1, MIB + 4096, 2 * MIB - 3, 2 * MIB):
            for way in ("truncate", "seek"):
                with open("f", "w+b", buffering=0) as file:
                    file.write(pattern(2 * MIB + 777))
                    if settle:
                        os.fsync(file.fileno())
                    file.truncate(cut)
                    if settle:
                        os.fsync(file.fileno())
                    if way == "truncate":
                        file.truncate(2 * MIB + 999)
                    else:
                        os.pwrite(file.fileno(), b"end", 2 * MIB + 996)
                said.append([cut, way, digest("f")])
    return said


@scenario
def truncate_patched_chunks() -> Any:
    """Patches over a stored chunk are cut with it."""
    said = []
    for cut in (600_000, 500_050, 500_000, 400_000, 10, 0):
        write("f", pattern(MIB))
        os.sync() if cut == 600_000 else None
        fd = os.open("f", os.O_RDWR)
        os.fsync(fd)
        os.pwrite(fd, b"P" * 100, 500_000)
        os.fsync(fd)
        os.pwrite(fd, b"Q" * 5000, 599_000)
        os.ftruncate(fd, cut)
        os.pwrite(fd, b"R", 700_000)
        os.close(fd)
        said.append(digest("f"))
    return said


@scenario
def open_flags() -> Any:
    write("f", b"0123456789")
    said: list[Any] = [attempt(os.open, "f", os.O_CREAT | os.O_EXCL), attempt(os.open, "g", os.O_RDWR)]
    fd = os.open("f", os.O_WRONLY | os.O_APPEND)
    other = os.open("f", os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"a")
    os.write(other, b"b")
    os.lseek(fd, 0, os.SEEK_SET)
    os.write(fd, b"c")
    said += [read("f"), os.lseek(fd, 0, os.SEEK_CUR), attempt(os.read, fd, 1)]
    os.close(fd)
    os.close(other)
    fd = os.open("f", os.O_RDONLY)
    said += [attempt(os.write, fd, b"x"), attempt(os.ftruncate, fd, 0)]
    trunc = os.open("f", os.O_WRONLY | os.O_TRUNC)
    said += [os.fstat(fd).st_size, os.read(fd, 10).decode()]
    os.write(trunc, b"new")
    said += [os.pread(fd, 10, 0).decode(), shape("f")]
    os.close(trunc)
    os.close(os.open("f", os.O_RDONLY | os.O_TRUNC))
    said += [os.fstat(fd).st_size, os.pread(fd, 10, 0).decode()]
    os.close(os.open("g", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o400))
    said += [shape("g"), listing()]
    fd = os.open("h", os.O_CREAT | os.O_RDWR | os.O_SYNC)
    os.write(fd, b"sync")
    os.lseek(fd, 2, os.SEEK_SET)
    said += [os.read(fd, 10).decode(), attempt(os.lseek, fd, -1, os.SEEK_SET)]
    said += [attempt(os.pread, fd, 10, 1 << 60), attempt(os.pwrite, fd, b"", 1 << 30), os.fstat(fd).st_size]
    os.writev(fd, [b"one", b"", b"two" * 1000])
    said += [os.fstat(fd).st_size, attempt(os.fsync, fd), attempt(os.fdatasync, fd)]
    return said


@scenario
def appends_of_several_processes() -> Any:
    write("log")

    def append(letter: bytes) -> Any:
        fd = os.open("log", os.O_WRONLY | os.O_APPEND)
        for number in range(50):
            os.write(fd, letter * (number * 37 % 91 + 1) + b"\n")
        return None

    children = []
    for letter in (b"a", b"b", b"c"):
        pid = os.fork()
        if not pid:
            append(letter)
            os._exit(0)
        children.append(pid)
    assert all(os.waitpid(pid, 0)[1] == 0 for pid in children)
    return sorted(read("log").splitlines())


@scenario
def removed_while_open() -> Any:
    fd = os.open("f", os.O_RDWR | os.O_CREAT)
    os.write(fd, pattern(MIB + 10))
    os.fsync(fd)
    os.unlink("f")
    said: list[Any] = [os.fstat(fd).st_nlink, os.fstat(fd).st_size, attempt(os.stat, "f"), listing()]
    os.pwrite(fd, b"still", MIB - 2)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    said += [os.pread(fd, 10, MIB - 4).hex(), os.pread(fd, 10, 100).hex()]
    os.ftruncate(fd, 3 * MIB)
    os.fchmod(fd, 0o600)
    said += [os.fstat(fd).st_size, os.pread(fd, 4, 2 * MIB).hex(), oct(os.fstat(fd).st_mode)]
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    said.append(os.pread(again, 10, MIB - 4).hex())
    write("f", b"another")
    said += [read("f"), os.fstat(fd).st_nlink, os.fstat(fd).st_ino != os.stat("f").st_ino]
    os.close(fd)
    said.append(os.pread(again, 10, MIB - 4).hex())
    os.close(again)
    fd = os.open("f", os.O_RDONLY)
    write("g", b"replacement")
    os.rename("g", "f")
    return [*said, os.read(fd, 100).decode(), os.fstat(fd).st_nlink, read("f")]


@scenario
def memory_maps() -> Any:
    size = 2 * MIB + 5000
    data = pattern(size)
    write("f", data)
    fd = os.open("f", os.O_RDWR)
    said: list[Any] = []
    with mmap.mmap(fd, size) as mapped:
        said.append(mapped[:] == data)
        mapped[10:20] = b"0123456789"
        mapped[MIB - 5 : MIB + 5] = b"boundary!!"
        mapped[size - 3 :] = b"end"
        said += [os.pread(fd, 10, 10).decode(), os.pread(fd, 10, MIB - 5).decode()]
        mapped.flush()
        said += [read("f")[10:20], os.pread(fd, 10, size - 3).decode(), in_child(lambda: read("f")[MIB - 5 : MIB + 5])]
        os.pwrite(fd, b"by write", 5000)
        said.append(mapped[5000:5008].decode())
    with mmap.mmap(fd, 4096, access=mmap.ACCESS_COPY) as private:
        private[0:4] = b"mine"
        said.append(os.pread(fd, 4, 0).hex())
    os.ftruncate(fd, 2 * MIB + 100)
    os.ftruncate(fd, 2 * MIB + 6000)
    with mmap.mmap(fd, 2 * MIB + 6000, prot=mmap.PROT_READ) as mapped:
        said.append(any(mapped[2 * MIB + 100 :]))
    os.close(fd)
    with open("hole", "w+b") as file:
        file.truncate(MIB + 5)
        with mmap.mmap(file.fileno(), MIB + 5) as mapped:
            mapped[MIB : MIB + 5] = b"alive"
    return [*said, digest("f"), digest("hole")]


@scenario
def copies_by_the_kernel() -> Any:
    data = pattern(3 * MIB + 17)
    write("f", data)
    source, target = os.open("f", os.O_RDONLY), os.open("g", os.O_RDWR | os.O_CREAT)
    done = 0
    while done < len(data):
        done += os.copy_file_range(source, target, len(data) - done, done, done)
    said: list[Any] = [digest("g"), os.copy_file_range(source, target, 100, len(data), 0)]
    os.copy_file_range(source, target, 1000, MIB - 500, 2 * MIB - 500)
    said.append(digest("g"))
    sent = os.open("h", os.O_RDWR | os.O_CREAT)
    done = 0
    while done < len(data):
        done += os.sendfile(sent, source, done, len(data) - done)
    said += [digest("h"), attempt(os.copy_file_range, target, source, 10, 0, 0)]
    reader, writer = os.pipe()
    moved = os.splice(source, writer, 5000, offset_src=MIB - 2500)
    while moved:
        moved -= os.splice(reader, sent, moved)
    return [*said, digest("h")]


@scenario
def direct_and_vectored() -> Any:
    fd = os.open("f", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    with mmap.mmap(-1, 3 * MIB) as buffer:
        buffer[:] = pattern(3 * MIB)
        said: list[Any] = [os.pwrite(fd, buffer, 0)]
        said.append(os.pwritev(fd, [memoryview(buffer)[:4096], memoryview(buffer)[8192:12288]], MIB - 4096))
        with mmap.mmap(-1, 8192) as back:
            said += [os.preadv(fd, [back], MIB - 4096), hashlib.sha256(back[:]).hexdigest()]
    os.close(fd)
    return [*said, digest("f")]


@scenario
def syncs_of_files_and_directories() -> Any:
    os.makedirs("a/b")
    write("a/b/f", b"data")
    said = []
    for path in ("a/b/f", "a/b", "a", "."):
        fd = os.open(path, os.O_RDONLY)
        said += [attempt(os.fsync, fd), attempt(os.fdatasync, fd)]
        os.close(fd)
    fd = os.open("a/b", os.O_RDONLY)
    os.rename("a/b/f", "a/g")
    os.rmdir("a/b")
    return [*said, attempt(os.fsync, fd), attempt(os.read, fd, 1), attempt(os.write, fd, b"x")]


@scenario
def random_operations_on_names() -> Any:
    """Two hundred seeded operations on a few names; after each the errno, at the end the whole tree."""
    chooser = random.Random(20260)
    said: list[Any] = []
    names = ["a", "b", "c", "d", "a/x", "b/x", "b/y", "c/x", "a/x/z", "d/x", "d/x/z"]
    for number in range(600):
        one, two = chooser.choice(names), chooser.choice(names)
        action = chooser.choice(
            ["mkdir", "rmdir", "write", "unlink", "rename", "rename", "link", "symlink", "truncate", "append"]
        )
        if action == "mkdir":
            answer = attempt(os.mkdir, one)
        elif action == "rmdir":
            answer = attempt(os.rmdir, one)
        elif action == "write":
            answer = attempt(write, one, b"%d" % number)
        elif action == "unlink":
            answer = attempt(os.unlink, one)
        elif action == "rename":
            answer = attempt(os.rename, one, two)
        elif action == "link":
            answer = attempt(os.link, one, two, follow_symlinks=False)
        elif action == "symlink":
            answer = attempt(os.symlink, two, one)
        elif action == "truncate":
            answer = attempt(os.truncate, one, number)
        else:
            answer = attempt(_append, one, b"+%d" % number)
        said.append([action, one, two, answer])
    tree = {
        path: [
            sorted(folders),
            {name: [shape(f"{path}/{name}"), attempt(read, f"{path}/{name}")] for name in sorted(files)},
        ]
        for path, folders, files in os.walk(".")
    }
    return [said, tree]


def _append(path: str, data: bytes) -> None:
    with open(path, "ab") as file:
        file.write(data)


@scenario
def advice_and_unsupported_calls_do_no_harm() -> Any:
    write("f", pattern(10_000))
    with open("f", "r+b") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
        os.posix_fallocate(file.fileno(), 0, 20_000)  # emulated by libc where the file system cannot
        said: list[Any] = [os.lseek(file.fileno(), 0, os.SEEK_DATA), os.lseek(file.fileno(), 0, os.SEEK_HOLE) >= 10_000]
        said += [
            attempt(os.lseek, file.fileno(), 20_000, os.SEEK_DATA),
            fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE,
        ]
    return [*said, digest("f")]
