"""statvfs(3), statfs(2), pathconf(3)."""

from __future__ import annotations

import os

from tests.posix import common
from tests.posix.suite import KINDS, OK, Place, conformance, group, matrix


@matrix
def paths(place: Place) -> None:
    common.path_errors(
        place,
        lambda who, path: who.statvfs(path),
        changes=False,
        read_only=OK,
        brief=True,
        fault=lambda address: place.root.raw("statvfs", address, 1),
    )


@group
def values(place: Place) -> None:
    first = os.statvfs(".")
    place.equal("names", first.f_namemax, 255)
    place.equal("block sizes", (first.f_bsize, first.f_frsize), (4096, 4096))
    place.equal("order of blocks", 0 < first.f_bavail <= first.f_bfree <= first.f_blocks, True)
    place.equal("order of files", 0 < first.f_favail <= first.f_ffree < first.f_files, True)
    place.equal("writable", first.f_flag & os.ST_RDONLY, 0)
    place.equal("a read-only mount says so", os.statvfs(place.readonly).f_flag & os.ST_RDONLY, os.ST_RDONLY)
    for kind in KINDS:
        path = place.make(kind)
        if kind != "symlink":
            info = os.statvfs(path)
            place.equal(
                f"through a {kind}", (info.f_blocks, info.f_files, info.f_namemax), (first.f_blocks, first.f_files, 255)
            )
    fd = os.open(".", os.O_RDONLY)
    place.equal("fstatvfs", os.fstatvfs(fd).f_blocks, first.f_blocks)
    os.close(fd)
    for _ in range(20):
        place.make()
    place.equal("files count", os.statvfs(".").f_ffree <= first.f_ffree - 20, True)
    for who in (place.alice, place.bob):
        place.want(255, who, "statvfs", ".")


@group
def configuration(place: Place) -> None:
    directory, file = place.directory(), place.make()
    for path in (directory, file):
        place.equal("PC_NAME_MAX", os.pathconf(path, "PC_NAME_MAX"), 255)
        place.equal("PC_PATH_MAX", os.pathconf(path, "PC_PATH_MAX"), 4096)
        place.equal("PC_NO_TRUNC", os.pathconf(path, "PC_NO_TRUNC"), 1)
        place.equal("PC_CHOWN_RESTRICTED", os.pathconf(path, "PC_CHOWN_RESTRICTED"), 1)
        place.equal("PC_PIPE_BUF", os.pathconf(path, "PC_PIPE_BUF"), 4096)


test_statvfs = conformance(__name__)
