"""mkfifo(3)."""

from __future__ import annotations

import os

from tests.posix import common
from tests.posix.suite import OK, Place, conformance, group, matrix


@matrix
def paths(place: Place) -> None:
    common.path_errors(place, lambda who, path: who.mkfifo(path, 0o644), "missing", parent=True)


@group
def existing(place: Place) -> None:
    common.existing_kinds(place, lambda who, path: who.mkfifo(path, 0o644))


@matrix
def new_fifos(place: Place) -> None:
    common.new_file(place, lambda who, path, mode: who.mkfifo(path, mode), "fifo")


@group
def use(place: Place) -> None:
    root = place.root
    for number in range(5):
        path = place.make("fifo")
        place.want("ENXIO", root, "opens", path, os.O_WRONLY | os.O_NONBLOCK)
        reader = place.want(OK, root, "open", path, os.O_RDONLY | os.O_NONBLOCK)
        place.want(b"", root, "read", reader, 10)
        writer = place.want(OK, root, "open", path, os.O_WRONLY | os.O_NONBLOCK)
        place.want("EAGAIN", root, "read", reader, 10)
        place.want(7, root, "write", writer, b"through")
        if number % 2:
            os.unlink(path)
        place.want(b"through", root, "read", reader, 100)
        place.want("ESPIPE", root, "lseek", reader, 0, os.SEEK_SET)
        place.want("ESPIPE", root, "pread", reader, 1, 0)
        place.want("EINVAL", root, "ftruncate", writer, 0)
        place.want("EINVAL", root, "fsync", writer)
        if not number % 2:
            place.shape(path, size=0, kind="fifo")
        os.close(writer)
        os.close(reader)
    path = place.make("fifo")
    both = place.want(OK, root, "open", path, os.O_RDWR)
    place.want(OK, root, "opens", path, os.O_WRONLY | os.O_NONBLOCK)
    os.rename(path, path + ".moved")
    place.want(3, root, "write", both, b"abc")
    other = place.want(OK, root, "open", path + ".moved", os.O_RDONLY | os.O_NONBLOCK)
    place.want(b"abc", root, "read", other, 10)
    os.close(both)
    os.close(other)
    for who, want in ((place.root, OK), (place.alice, "EACCES")):
        fifo = place.make("fifo", 0o600)
        place.want(want, who, "opens", fifo, os.O_RDONLY | os.O_NONBLOCK)


test_mkfifo = conformance(__name__)
