"""Scenarios about access times: which operation moves them, under relatime as disks are mounted."""

from __future__ import annotations

import mmap
import os
import subprocess
import time
from collections.abc import Callable
from typing import Any

from tests.fuse.scenario import read, scenario, write

_DAY = 24 * 3600 * 10**9


def _moved(path: str, action: Callable[[], Any]) -> bool:
    """Tell whether the action moved the access time; the path's times of change stay as they are."""
    before = os.lstat(path)
    time.sleep(0.02)
    action()
    after = os.lstat(path)
    assert after.st_atime_ns >= before.st_atime_ns
    return after.st_atime_ns != before.st_atime_ns


def _open_and_close(path: str, flags: int) -> None:
    os.close(os.open(path, flags))


def _mapped(path: str) -> bytes:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
        return view[:]


@scenario
def access_times_of_files() -> Any:
    """A file fresh from its writer, whose pages the kernel still has."""
    said: list[Any] = []
    for reader in (
        read,
        _mapped,
        lambda path: subprocess.run(["cat", path], check=True, stdout=subprocess.DEVNULL),
        lambda path: subprocess.run(["cp", path, path + ".copy"], check=True),
        lambda path: read(path)[:1],
    ):
        write("f", b"data" * 5000)
        said += [_moved("f", lambda: reader("f")) for _ in range(3)]  # noqa: B023 - called at once
        os.chmod("f", 0o600)  # ctime is newer again
        said += [_moved("f", lambda: reader("f")) for _ in range(2)]  # noqa: B023
    return said


@scenario
def access_times_that_stay() -> Any:
    """What does not read moves nothing."""
    write("f", b"data" * 5000)
    os.mkdir("d")
    os.symlink("f", "l")
    said = [
        _moved("f", lambda: os.stat("f")),
        _moved("f", lambda: os.chmod("f", 0o640)),
        _moved("f", lambda: os.rename("f", "g") or os.rename("g", "f")),
        _moved("f", lambda: os.link("f", "h")),
        _moved("f", lambda: _open_and_close("f", os.O_WRONLY)),
        _moved("f", lambda: _open_and_close("f", os.O_RDWR)),
        _moved("f", lambda: open("f", "ab").close()),
        _moved("f", lambda: os.truncate("f", 100)),
        _moved("f", lambda: os.getxattr("f", "user.a") if os.setxattr("f", "user.a", b"") else None),
        _moved("d", lambda: os.stat("d")),
        _moved("d", lambda: write("d/new")),
        _moved("l", lambda: os.lstat("l")),
    ]
    fd = os.open("f", os.O_RDONLY | os.O_NOATIME)
    said.append(_moved("f", lambda: os.read(fd, 10)))
    os.close(fd)
    return said


@scenario
def access_times_of_directories_and_links() -> Any:
    os.mkdir("d")
    os.symlink("d", "l")
    said = [_moved("d", lambda: os.listdir("d")) for _ in range(3)]
    write("d/new")
    said += [_moved("d", lambda: os.listdir("d")) for _ in range(2)]
    said += [_moved("l", lambda: os.readlink("l")) for _ in range(3)]
    os.lchown("l", 1, 1)
    said += [_moved("l", lambda: os.stat("l/new")) for _ in range(2)]  # followed, not asked for
    return said


@scenario
def access_times_that_were_set_back() -> Any:
    """Setting them is a change, and makes ctime newer. That a day alone moves them is in unit/fs/test_held.py."""
    now = time.time_ns()
    os.mkdir("d")
    write("f", b"data")
    said = []
    for path in "fd":
        for age in (_DAY + 10**10, _DAY - 10**11):
            os.utime(path, ns=(now - age, now - 3 * _DAY))
            os.utime(path, ns=(now - age, now - 3 * _DAY))
            said.append(_moved(path, lambda: read("f") if path == "f" else os.listdir("d")))  # noqa: B023
    return said
