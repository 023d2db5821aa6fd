"""read(2), write(2), pread(2), pwrite(2), readv(2), writev(2), append, O_SYNC, O_DIRECT, copy_file_range(2), sendfile(2)."""

from __future__ import annotations

import mmap
import os
import random

from tests.posix.differences import differs
from tests.posix.suite import OK, Place, also_as_user, conformance, group, matrix

MIB = 1 << 20
SIZES = (0, 1, 2, 511, 512, 2048, 2049, 4095, 4096, 4097, 8192, 65_535, 65_536, 131_073, MIB - 1, MIB, MIB + 1)


@matrix
def sizes_and_offsets(place: Place) -> None:
    root = place.root
    data = random.Random(1).randbytes(2 * MIB)
    for size in place.some(SIZES, 10):
        for offset in place.some((0, 1, 4095, 4096, 5000, MIB - 1, MIB, 3 * MIB + 17), 6):
            with place.case(f"{size} bytes at {offset}"):
                fd = root.open(place.name(), os.O_CREAT | os.O_RDWR)
                place.equal("pwrite", root.pwrite(fd, data[:size], offset), size)
                place.equal("size", os.fstat(fd).st_size, offset + size if size else 0)
                place.equal("data", os.pread(fd, size + 1, offset) == data[:size], True)
                if size:
                    place.equal("hole", os.pread(fd, offset, 0) == bytes(offset), True)
                    place.equal(
                        "around",
                        os.pread(fd, 3, max(0, offset - 1)) == (bytes(offset) + data[:size])[max(0, offset - 1) :][:3],
                        True,
                    )
                place.equal("end", os.pread(fd, 10, offset + size), b"")
                place.equal("far", os.pread(fd, 10, 1 << 50), b"")
                os.close(fd)


@also_as_user
@group
def positions(place: Place) -> None:
    root = place.root
    fd = root.open(place.name(), os.O_CREAT | os.O_RDWR)
    place.want(10, root, "write", fd, b"0123456789")
    place.want(10, root, "lseek", fd, 0, os.SEEK_CUR)
    place.want(b"", root, "read", fd, 5)
    place.want(b"345", root, "pread", fd, 3, 3)
    place.want(10, root, "lseek", fd, 0, os.SEEK_CUR)
    place.want(2, root, "pwrite", fd, b"XY", 5)
    place.want(10, root, "lseek", fd, 0, os.SEEK_CUR)
    place.want(4, root, "lseek", fd, 4, os.SEEK_SET)
    place.want(b"4XY7", root, "read", fd, 4)
    place.want(8, root, "lseek", fd, 0, os.SEEK_CUR)
    place.want(4, root, "write", fd, b"abcd")
    place.want(b"01234XY7abcd", root, "pread", fd, 100, 0)
    other = root.dup(fd)
    place.want(0, root, "lseek", other, 0, os.SEEK_SET)
    place.want(b"0123", root, "read", fd, 4)
    place.want(b"4XY7", root, "read", other, 4)
    place.want(0, root, "write", fd, b"")
    place.want(b"", root, "read", fd, 0)
    place.equal("readv", os.preadv(fd, [bytearray(3), bytearray(5), bytearray(100)], 0), 12)
    place.equal("writev", os.pwritev(fd, [b"one", b"", b"two", b"three"], 20), 11)
    place.want(bytes(8) + b"onetwothree", root, "pread", fd, 100, 12)
    os.close(other)
    os.close(fd)


@also_as_user
@group
def appending(place: Place) -> None:
    root = place.root
    for flags in (os.O_WRONLY, os.O_RDWR):
        path = place.name()
        one = root.open(path, os.O_CREAT | os.O_APPEND | flags)
        two = root.open(path, os.O_APPEND | flags)
        third = root.open(path, os.O_WRONLY)
        want = b""
        for number in range(30):
            for fd in (one, two):
                data = b"%d," % number * (number + 1)
                place.want(len(data), root, "write", fd, data)
                want += data
        place.want(want, root, "content", path)
        place.want(0, root, "lseek", one, 0, os.SEEK_SET)
        place.want(1, root, "write", one, b"e")
        place.want(len(want) + 1, root, "lseek", one, 0, os.SEEK_CUR)
        place.want(1, root, "pwrite", two, b"f", 0)  # Linux: at the end, whatever the offset
        place.want(want + b"ef", root, "content", path)
        place.want(5, root, "pwrite", third, b"far..", len(want) + 100)
        place.want(1, root, "write", one, b"g")
        place.want(want + b"ef" + bytes(98) + b"far..g", root, "content", path)
        place.want(OK, root, "ftruncate", third, 3)
        place.want(1, root, "write", two, b"h")
        place.want(want[:3] + b"h", root, "content", path)
        for fd in (one, two, third):
            os.close(fd)


@group
def errors(place: Place) -> None:
    for who in (place.root, place.alice):
        path = place.name()
        place.root.fill(path, b"content")
        os.chmod(path, 0o666)
        reader, writer = who.open(path, os.O_RDONLY), who.open(path, os.O_WRONLY)
        place.want("EBADF", who, "write", reader, b"x")
        place.want("EBADF", who, "pwrite", reader, b"x", 0)
        place.want("EBADF", who, "read", writer, 1)
        place.want("EBADF", who, "pread", writer, 1, 0)
        for offset in (-1, -(1 << 40)):
            place.want("EINVAL", who, "pread", reader, 1, offset)
            place.want("EINVAL", who, "pwrite", writer, b"x", offset)
        place.want("EFAULT", who, "raw", "read", reader, 1, 5)
        place.want("EFAULT", who, "raw", "write", writer, 1, 5)
        place.want(0, who, "raw", "write", writer, 1, 0)
        place.want(b"content", who, "content", path)
        place.want(OK, who, "close", reader)
        place.want("EBADF", who, "read", reader, 1)
        place.want("EBADF", who, "write", reader, b"x")
        place.want(OK, who, "close", writer)
        directory = who.open(".", os.O_RDONLY)
        place.want("EISDIR", who, "read", directory, 10)
        place.want("EISDIR", who, "pread", directory, 10, 0)
        place.want("EBADF", who, "write", directory, b"x")
        place.want(OK, who, "close", directory)


@group
def behind_the_largest_file(place: Place) -> None:
    """The kernel's cache takes a write that no file system of ours can hold; the next fsync says so."""
    root = place.root
    fd = root.open(place.name(), os.O_CREAT | os.O_RDWR)
    place.want({"EFBIG", "EINVAL"}, root, "pwrite", fd, b"xx", (1 << 63) - 1)
    place.want(differs("a write behind the largest file"), root, "pwrite", fd, b"x", (1 << 63) - 4097)
    place.want(differs("fsync after it"), root, "fsync", fd)
    place.want(OK, root, "ftruncate", fd, 0)
    root.raw("syncfs", fd)  # takes note of the error, which the kernel keeps for the next one who asks
    place.want(OK, root, "raw", "syncfs", fd)
    place.want(1, root, "pwrite", fd, b"x", 0)
    place.want(OK, root, "fsync", fd)
    place.want(b"x", root, "pread", fd, 10, 0)
    os.close(fd)


@group
def size_limits(place: Place) -> None:
    """RLIMIT_FSIZE: what fits is written, what does not fit at all is EFBIG."""
    for who in (place.root, place.alice):
        path = place.make(mode=0o666)
        fd = who.open(path, os.O_RDWR)
        place.want(60, who, "limited", 60, "pwrite", fd, bytes(100), 0)
        place.want(10, who, "limited", 70, "pwrite", fd, bytes(100), 60)
        place.want("EFBIG", who, "limited", 70, "pwrite", fd, b"x", 70)
        place.want("EFBIG", who, "limited", 70, "pwrite", fd, b"x", 1 << 40)
        place.want(5, who, "limited", 70, "pwrite", fd, b"12345", 0)
        place.shape(path, size=70)
        place.want(OK, who, "close", fd)


@also_as_user
@group
def large_offsets(place: Place) -> None:
    root = place.root
    for offset in ((1 << 31) - 2, (1 << 31) + 5, (1 << 32) - 1, 1 << 33, (1 << 40) + 12_345, (1 << 43) + 1):
        fd = root.open(place.name(), os.O_CREAT | os.O_RDWR)
        place.want(5, root, "pwrite", fd, b"there", offset)
        place.want(offset + 5, root, "lseek", fd, 0, os.SEEK_END)
        place.want(b"there", root, "pread", fd, 100, offset)
        place.want(b"\0there", root, "pread", fd, 100, offset - 1)
        place.want(bytes(100), root, "pread", fd, 100, offset // 2)
        place.want(OK, root, "fsync", fd)
        place.want(b"there", root, "pread", fd, 100, offset)
        place.equal("sparse", os.fstat(fd).st_blocks <= 4096, True)
        os.close(fd)


@group
def several_descriptors(place: Place) -> None:
    """What one writes all others read at once: another descriptor, another user, a descriptor opened without O_CREAT."""
    path = place.make(mode=0o666)
    rng = random.Random(2)
    model = bytearray()
    writers = [(who, who.open(path, os.O_RDWR)) for who in (place.root, place.alice, place.bob, place.root)]
    for step in range(150):
        who, fd = rng.choice(writers)
        offset, data = rng.randrange(20_000), rng.randbytes(rng.randrange(1, 5000))
        model.extend(bytes(max(0, offset + len(data) - len(model))))
        model[offset : offset + len(data)] = data
        place.equal(f"step {step}: written", who.pwrite(fd, data, offset), len(data))
        reader, other = rng.choice(writers)
        start = max(0, offset - 50)
        place.equal(
            f"step {step}: read",
            reader.pread(other, len(data) + 100, start) == bytes(model[start : start + len(data) + 100]),
            True,
        )
        if step % 20 == 0:
            size = rng.randrange(len(model) + 1000)
            who.ftruncate(fd, size)
            model = (model + bytes(max(0, size - len(model))))[:size]
            place.equal(f"step {step}: size", reader.fstat(other)["size"], size)
    place.equal("all", place.root.content(path) == bytes(model), True)
    for who, fd in writers:
        who.close(fd)


@also_as_user
@group
def synchronous(place: Place) -> None:
    root = place.root
    for flags in (os.O_SYNC, os.O_DSYNC, os.O_SYNC | os.O_APPEND, os.O_SYNC | os.O_TRUNC, os.O_RSYNC):
        path = place.name()
        fd = place.want(OK, root, "open", path, os.O_CREAT | os.O_RDWR | flags)
        want = b""
        for size in (1, 100, 4096, 70_000):
            data = os.urandom(size)
            place.equal("write", root.write(fd, data), size)
            want += data
            place.equal("size", os.stat(path).st_size, len(want))
            place.equal("content", root.content(path) == want, True)
        place.want(len(want), root, "lseek", fd, 0, os.SEEK_CUR)
        os.close(fd)


@also_as_user
@group
def direct(place: Place) -> None:
    """O_DIRECT: aligned transfers work everywhere; what is written is seen by cached descriptors and the other way round."""
    path = place.name()
    fd = place.want(OK, place.root, "open", path, os.O_CREAT | os.O_RDWR | os.O_DIRECT)
    cached = os.open(path, os.O_RDWR)
    buffer = mmap.mmap(-1, 2 * MIB)
    rng = random.Random(3)
    model = bytearray()
    for step in range(25):
        offset, size = rng.randrange(100) * 4096, rng.randrange(1, 60) * 4096
        data = rng.randbytes(size)
        model.extend(bytes(max(0, offset + size - len(model))))
        model[offset : offset + size] = data
        if step % 3:
            buffer[:size] = data
            with memoryview(buffer)[:size] as view:
                place.equal(f"step {step}: pwrite", os.pwritev(fd, [view], offset), size)
            place.equal(f"step {step}: cached read", os.pread(cached, size, offset) == data, True)
        else:
            place.equal(f"step {step}: cached write", os.pwrite(cached, data, offset), size)
            with memoryview(buffer)[:size] as view:
                place.equal(f"step {step}: pread", os.preadv(fd, [view], offset), size)
                place.equal(f"step {step}: direct read", view == data, True)
    place.equal("size", os.fstat(fd).st_size, len(model))
    place.equal("all", place.root.content(path) == bytes(model[:MIB]), True)
    with memoryview(buffer)[:8192] as view:
        place.equal("past the end", os.preadv(fd, [view], len(model)), 0)
        place.equal("at the end", os.preadv(fd, [view], len(model) - 4096), 4096)
    with memoryview(buffer)[:4096] as view:
        try:
            got: object = os.preadv(fd, [view], 1) == 4096
        except OSError as exc:
            got = exc.errno
        place.equal("unaligned", got, differs("unaligned O_DIRECT"))
    buffer.close()
    os.close(cached)
    os.close(fd)


@also_as_user
@group
def times(place: Place) -> None:
    root = place.root
    table = place.times()
    fds = []

    def file(flags: int = os.O_RDWR, size: int = 100) -> tuple[str, int]:
        path = place.name()
        root.fill(path, bytes(size))
        fds.append(os.open(path, flags))
        return path, fds[-1]

    for label, flags in (
        ("write", os.O_RDWR),
        ("append", os.O_WRONLY | os.O_APPEND),
        ("O_SYNC", os.O_RDWR | os.O_SYNC),
    ):
        path, fd = file(flags)
        table.case(label, lambda fd=fd: root.write(fd, b"x"), {path: "mc"})
        path, fd = file(flags)
        table.case(f"{label}, nothing", lambda fd=fd: root.write(fd, b""), {path: ""})
        path, fd = file(flags, 5000)
        table.case(f"{label}, pwrite", lambda fd=fd: root.pwrite(fd, b"x" * 100, 4090), {path: "mc"})
    path, fd = file(os.O_RDONLY)
    table.case("a read-only descriptor", lambda fd=fd: root.write(fd, b"x"), {path: ""}, "EBADF")
    path, fd = file()
    table.case("EFBIG", lambda fd=fd: root.limited(50, "pwrite", fd, b"x", 60), {path: ""}, "EFBIG")
    directory = place.directory()
    root.fill(directory + "/x", b"x")
    table.case("the directory", lambda: root.append(directory + "/x", b"y"), {directory: "", directory + "/x": "mc"})
    table.run()
    for fd in fds:
        os.close(fd)


@also_as_user
@group
def copies(place: Place) -> None:
    root = place.root
    for size in (0, 1, 4096, 100_000, 2 * MIB + 5):
        source, target = place.name(), place.name()
        data = os.urandom(size)
        root.fill(source, data)
        one, two = os.open(source, os.O_RDONLY), root.open(target, os.O_CREAT | os.O_RDWR)
        copied = 0
        while part := os.copy_file_range(one, two, size + 1 - copied):
            copied += part
        place.equal("copy_file_range", (copied, root.content(target, size + 1) == data), (size, True))
        os.lseek(one, 0, os.SEEK_SET)
        os.ftruncate(two, 0)
        os.lseek(two, 0, os.SEEK_SET)
        copied = 0
        while part := os.sendfile(two, one, None, size + 1):
            copied += part
        place.equal("sendfile", (copied, root.content(target, size + 1) == data), (size, True))
        os.close(one)
        os.close(two)


test_read_write = conformance(__name__)
