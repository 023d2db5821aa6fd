"""truncate(2)."""

from __future__ import annotations

import os

from tests.posix import common
from tests.posix.differences import differs
from tests.posix.suite import ALICE, OK, Place, conformance, group, matrix

MIB = 1 << 20
SIZES = (0, 1, 511, 4095, 4096, 4097, 2048, 2049, 65_536, MIB - 1, MIB, MIB + 1, 3 * MIB + 7)


@matrix
def paths(place: Place) -> None:
    common.path_errors(
        place, lambda who, path: who.truncate(path, 5), fault=lambda address: place.root.raw("truncate", address, 5)
    )


def resized(place: Place, resize: str) -> None:
    """Try every size after every size: what is cut is gone for good, what is new reads as zeros."""
    root = place.root
    data = os.urandom(max(SIZES))
    for before in place.some(SIZES, 8):
        path = place.name()
        root.fill(path, data[:before])
        for after in place.some(SIZES, 8):
            with place.case(f"{before} to {after}"):
                fd = os.open(path, os.O_RDWR)
                os.pwrite(fd, data[:before], 0)
                os.ftruncate(fd, before)
                target = path if resize == "truncate" else fd
                place.equal("result", root.make(resize, (target, after)), OK)
                place.shape(path, size=after)
                got = os.pread(fd, after + 10, 0)
                place.equal("content", got == data[: min(before, after)] + bytes(max(0, after - before)), True)
                os.close(fd)
        os.unlink(path)


@matrix
def sizes(place: Place) -> None:
    resized(place, "truncate")


@group
def cut_data_does_not_come_back(place: Place) -> None:
    root = place.root
    for cut in (0, 1, 100, 4096, 5000, MIB, MIB + 1):
        for size in (6000, 2 * MIB):
            if cut < size:
                path = place.name()
                root.fill(path, b"\xaa" * size)
                place.want(OK, root, "truncate", path, cut)
                place.want(OK, root, "truncate", path, size)
                place.equal("zeros", root.content(path, size + 1) == b"\xaa" * cut + bytes(size - cut), True)
                place.want(OK, root, "truncate", path, cut)
                place.want(1, root, "overwrite", path, b"x", size)
                place.equal("a hole", root.content(path, size + 1)[cut:size] == bytes(size - cut), True)


@group
def kinds(place: Place) -> None:
    for who in (place.root, place.alice):
        for kind, want in (
            ("dir", "EISDIR"),
            ("full", "EISDIR"),
            ("todir", "EISDIR"),
            ("fifo", "EINVAL"),
            ("socket", "EINVAL"),
        ):
            for length in (0, 10):
                place.want(want, who, "truncate", place.make(kind, 0o666), length)
        for kind in ("char", "block"):
            place.want("EINVAL", who, "truncate", place.make(kind, 0o666), 0)
        for length in (-1, -(1 << 40), -(1 << 63)):
            path = place.make(mode=0o666)
            place.want("EINVAL", who, "truncate", path, length)
            place.shape(path, size=0)
        path = place.make("tofile")
        os.chmod(path + ".target", 0o666)
        place.want(OK, who, "truncate", path, 77)
        place.shape(path + ".target", size=77)
        place.want("ENOTDIR", who, "truncate", place.make() + "/", 0)


@group
def permissions(place: Place) -> None:
    path = place.make(owner=common.OWNED)
    for label, who, shift in common.classes(place):
        for bits in range(8):
            for mode in common.modes_for(bits, shift):
                os.chmod(path, 0o666)
                os.truncate(path, 10)
                os.chmod(path, mode)
                with place.case(f"{label} of {mode:#o}"):
                    place.want(OK if bits & 2 else "EACCES", who, "truncate", path, 5)
                    place.shape(path, size=5 if bits & 2 else 10)
    os.chmod(path, 0)
    place.want(OK, place.root, "truncate", path, 3)


@group
def limits(place: Place) -> None:
    for who in (place.root, place.alice):
        path = place.make(mode=0o666)
        for length in ((1 << 63) - 1, (1 << 62) + 1, (1 << 63) - 4096):
            place.want("EFBIG", who, "truncate", path, length)
            place.shape(path, size=0)
        for length in (1 << 31, (1 << 31) - 1, 1 << 32, 1 << 40, (1 << 43) + 5):
            place.want(OK, who, "truncate", path, length)
            place.shape(path, size=length)
            place.equal("sparse", place.root.stat(path)["blocks"] <= 16, True)
        place.want(OK, who, "truncate", path, 0)
        place.want("EFBIG", who, "limited", 1000, "truncate", path, 1001)
        place.want(OK, who, "limited", 1000, "truncate", path, 1000)
        place.shape(path, size=1000)
        place.want("EFBIG", who, "limited", 500, "truncate", path, 1001)
        place.want(OK, who, "limited", 500, "truncate", path, 800)


@group
def times(place: Place) -> None:
    table = place.times()
    for who in (place.root, place.alice):

        def file(size: int, mode: int = 0o666) -> str:
            path = place.name()
            place.root.fill(path, bytes(size))
            os.chmod(path, mode)
            return path

        for before, after in ((10, 5), (10, 20), (10, 0), (0, 10), (0, 0), (10, 10), (5000, 5000), (MIB, MIB - 1)):
            path = file(before)
            changed = "mc" if before != after else differs("truncate to the same size")
            table.case(
                f"{before} to {after}",
                lambda who=who, path=path, after=after: who.truncate(path, after),
                {path: changed},
            )
        path = file(10)
        table.case("negative", lambda who=who, path=path: who.truncate(path, -1), {path: ""}, "EINVAL")
        path = file(10)
        table.case("too large", lambda who=who, path=path: who.truncate(path, (1 << 63) - 1), {path: ""}, "EFBIG")
        directory = place.directory(0o777)
        table.case("a directory", lambda who=who, path=directory: who.truncate(path, 0), {directory: ""}, "EISDIR")
    path = file(10, 0o444)
    table.case("not writable", lambda path=path: place.alice.truncate(path, 0), {path: ""}, "EACCES")
    table.run()
    place.shape(place.make(owner=(ALICE, ALICE)), size=0)


test_truncate = conformance(__name__)
