"""umask(2), and what each call that makes a file does with it."""

from __future__ import annotations

import os
import stat

from tests.posix.suite import OK, Place, conformance, group, matrix

MAKERS = {
    "open": ("opens", (os.O_CREAT | os.O_WRONLY,), 0o7777),
    "mkdir": ("mkdir", (), 0o1777),
    "mkfifo": ("mkfifo", (), 0o7777),
}


@matrix
def every_umask(place: Place) -> None:
    for umask in place.some(range(0o1000), 24):
        for who in (place.root, place.alice):
            for label, (call, before, kept) in MAKERS.items():
                path = place.name()
                with place.case(f"umask {umask:#o} {label}"):
                    mode = 0o777 if umask % 2 else 0o666
                    place.want(OK, who, "masked", umask, call, path, *before, mode)
                    place.shape(path, mode=mode & kept & ~umask)


@group
def nodes(place: Place) -> None:
    for umask in (0, 0o002, 0o022, 0o037, 0o077, 0o777):
        for kind in (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK):
            for who in (place.root, place.alice):
                path = place.name()
                place.want(OK, who, "masked", umask, "mknod", path, kind | 0o777)
                place.shape(path, mode=0o777 & ~umask)
        path = place.name()
        place.want(OK, place.root, "masked", umask, "symlink", "t", path)
        place.shape(path, mode=0o777)


@group
def not_for_others(place: Place) -> None:
    """Only making applies it; bits above 0777 of a umask are ignored."""
    for umask in (0o077, 0o777):
        path = place.make()
        place.want(OK, place.root, "masked", umask, "chmod", path, 0o777)
        place.shape(path, mode=0o777)
        place.want(OK, place.root, "masked", umask, "opens", path, os.O_CREAT | os.O_WRONLY, 0o600)
        place.shape(path, mode=0o777)
        place.want(OK, place.root, "masked", umask, "rename", path, path + ".moved")
        place.shape(path + ".moved", mode=0o777)
    path = place.name()
    place.want(OK, place.root, "masked", 0o7022, "opens", path, os.O_CREAT | os.O_WRONLY, 0o7777)
    place.shape(path, mode=0o7755)
    for who in (place.root, place.alice):
        old = who.umask(0o7123)
        place.want(0o123, who, "umask", old)


test_umask = conformance(__name__)
