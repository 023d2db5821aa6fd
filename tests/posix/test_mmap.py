"""mmap(2), msync(2), munmap(2)."""

from __future__ import annotations

import mmap
import os
import signal

from tests.posix.calls import attempt
from tests.posix.suite import OK, Place, also_as_user, conformance, group

PAGE = mmap.PAGESIZE
MIB = 1 << 20


def mapped(fd: int, size: int, access: int, kind: int = mmap.MAP_SHARED, offset: int = 0) -> mmap.mmap:
    return mmap.mmap(fd, size, kind, access, offset=offset)


READ, BOTH = mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE


@also_as_user
@group
def permissions(place: Place) -> None:
    path = place.name()
    place.root.fill(path, b"x" * PAGE)
    for flags, kind, access, want in (
        (os.O_RDONLY, mmap.MAP_SHARED, READ, OK),
        (os.O_RDONLY, mmap.MAP_SHARED, BOTH, "EACCES"),
        (os.O_RDONLY, mmap.MAP_PRIVATE, BOTH, OK),
        (os.O_WRONLY, mmap.MAP_SHARED, READ, "EACCES"),
        (os.O_WRONLY, mmap.MAP_SHARED, BOTH, "EACCES"),
        (os.O_WRONLY, mmap.MAP_PRIVATE, READ, "EACCES"),
        (os.O_RDWR, mmap.MAP_SHARED, BOTH, OK),
        (os.O_RDWR, mmap.MAP_SHARED, READ | mmap.PROT_EXEC, OK),
        (os.O_RDWR, mmap.MAP_PRIVATE, BOTH, OK),
        (os.O_WRONLY | os.O_APPEND, mmap.MAP_SHARED, BOTH, "EACCES"),
        (os.O_PATH, mmap.MAP_SHARED, READ, "EBADF"),
    ):
        fd = os.open(path, flags)
        got = attempt(mapped, fd, PAGE, access, kind)
        place.equal(f"flags {flags}, kind {kind}, access {access}", got, want)
        if isinstance(got, mmap.mmap):
            got.close()
        os.close(fd)
    directory = os.open(".", os.O_RDONLY)
    place.want("ENODEV", place.root, "raw", "mmap", 0, PAGE, READ, mmap.MAP_SHARED, directory, 0)
    os.close(directory)
    fd = os.open(path, os.O_RDWR)
    place.want("EINVAL", place.root, "raw", "mmap", 0, 0, READ, mmap.MAP_SHARED, fd, 0)
    place.want("EINVAL", place.root, "raw", "mmap", 0, PAGE, READ, mmap.MAP_SHARED, fd, 1)
    place.want("EINVAL", place.root, "raw", "mmap", 0, PAGE, READ, 0, fd, 0)
    os.close(fd)


@also_as_user
@group
def shared(place: Place) -> None:
    """Maps, read(2) and write(2) see the same bytes, at once."""
    for size in (1, 100, PAGE, PAGE + 1, 3 * PAGE - 1, 300_000, MIB + 1):
        with place.case(size):
            path = place.name()
            data = os.urandom(size)
            place.root.fill(path, data)
            fd = os.open(path, os.O_RDWR)
            one, two = mapped(fd, size, BOTH), mapped(fd, size, READ)
            place.equal("read through the map", one[:] == data, True)
            for at in {0, size // 2, size - 1}:
                one[at : at + 1] = b"M"
                place.equal("another map", two[at : at + 1], b"M")
                place.equal("pread", os.pread(fd, 1, at), b"M")
                os.pwrite(fd, b"W", at)
                place.equal("pwrite", (one[at : at + 1], two[at : at + 1]), (b"W", b"W"))
                one[at : at + 1] = b"m"
                place.equal("another descriptor", place.root.content(path, 2 * MIB)[at : at + 1], b"m")
            one.flush()
            os.fsync(fd)
            place.shape(path, size=size)
            one.close()
            os.close(fd)
            place.equal("after closing the descriptor", two[size - 1 : size], b"m")
            os.unlink(path)
            place.equal("after the unlink", two[0:1], b"m")
            two.close()


@also_as_user
@group
def private(place: Place) -> None:
    path = place.name()
    place.root.fill(path, b"a" * 3 * PAGE)
    fd = os.open(path, os.O_RDWR)
    view = mapped(fd, 3 * PAGE, BOTH, mmap.MAP_PRIVATE)
    view[0:5] = b"local"
    place.equal("seen here", view[0:5], b"local")
    place.want(b"aaaaa", place.root, "pread", fd, 5, 0)
    os.pwrite(fd, b"b", 2 * PAGE)
    place.equal("an untouched page follows the file", view[2 * PAGE : 2 * PAGE + 1], b"b")
    view.flush()
    place.want(b"aaaaa", place.root, "pread", fd, 5, 0)
    view.close()
    os.close(fd)


@also_as_user
@group
def the_last_page(place: Place) -> None:
    """Behind the end the last page is zeros; what is written there never reaches the file."""
    for size in (1, 100, PAGE - 1, PAGE + 7):
        path = place.name()
        place.root.fill(path, b"x" * size)
        fd = os.open(path, os.O_RDWR)
        pages = (size + PAGE - 1) // PAGE * PAGE
        libc_map = mapped(fd, size, BOTH)
        libc_map.close()
        view = mmap.mmap(fd, size, mmap.MAP_SHARED, BOTH)
        place.equal("content", view[:], b"x" * size)
        view.close()
        os.ftruncate(fd, pages)
        view = mapped(fd, pages, BOTH)
        place.equal("zeros", view[size:], bytes(pages - size))
        view[size : size + 1] = b"y" if size < pages else b""
        os.ftruncate(fd, size)
        os.ftruncate(fd, pages)
        place.equal("cut by truncation", view[size:], bytes(pages - size))
        view.close()
        os.close(fd)


@also_as_user
@group
def behind_the_end(place: Place) -> None:
    """A page wholly behind the end is SIGBUS, also after a truncation under the map."""
    path = place.name()
    place.root.fill(path, b"x" * 4 * PAGE)
    for size, page, dies in (
        (4 * PAGE, 3, False),
        (PAGE, 0, False),
        (PAGE, 1, True),
        (PAGE + 1, 1, False),
        (PAGE + 1, 2, True),
        (0, 0, True),
    ):
        fd = os.open(path, os.O_RDWR)
        os.ftruncate(fd, 4 * PAGE)
        view = mapped(fd, 4 * PAGE, BOTH)
        os.ftruncate(fd, size)
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGBUS, signal.SIG_DFL)
            view[page * PAGE]
            os._exit(0)
        status = os.waitpid(pid, 0)[1]
        place.equal(
            f"page {page} of {size} bytes", os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGBUS, dies
        )
        view.close()
        os.close(fd)


@also_as_user
@group
def holes_and_growth(place: Place) -> None:
    path = place.name()
    fd = place.root.open(path, os.O_CREAT | os.O_RDWR)
    os.ftruncate(fd, 3 * MIB)
    view = mapped(fd, 3 * MIB, BOTH)
    place.equal("a hole", view[MIB : MIB + 100], bytes(100))
    for at in (0, PAGE - 1, MIB - 1, MIB, 2 * MIB + 5000, 3 * MIB - 1):
        view[at : at + 1] = b"!"
        place.want(b"!", place.root, "pread", fd, 1, at)
    view.flush()
    view.close()
    os.fsync(fd)
    place.equal("all", place.root.content(path, 4 * MIB).count(b"!"), 6)
    os.ftruncate(fd, 6 * MIB)
    view = mapped(fd, PAGE, BOTH, offset=5 * MIB)
    view[0:3] = b"far"
    view.close()
    place.want(b"far\0", place.root, "pread", fd, 4, 5 * MIB)
    os.close(fd)


@also_as_user
@group
def times(place: Place) -> None:
    """A write through a shared map and msync or munmap sets mtime and ctime; reading and private writing do not."""
    table = place.times()
    views = []

    def view(access: int = BOTH, kind: int = mmap.MAP_SHARED) -> tuple[str, mmap.mmap]:
        path = place.name()
        place.root.fill(path, b"x" * PAGE)
        fd = os.open(path, os.O_RDWR)
        views.append(mapped(fd, PAGE, access, kind))
        os.close(fd)
        return path, views[-1]

    def write(target: mmap.mmap) -> None:
        target[0:1] = b"y"
        if target in views:
            target.flush()

    path, target = view()
    table.case("a write", lambda target=target: write(target), {path: "mc"})
    path, target = view(kind=mmap.MAP_PRIVATE)
    table.case("a private write", lambda target=target: write(target), {path: ""})
    path, target = view()
    table.case("msync of nothing", lambda target=target: target.flush(), {path: ""})
    table.run()
    for target in views:
        target.close()


test_mmap = conformance(__name__)
