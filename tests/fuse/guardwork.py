"""What the tests of a driver with bugs have done in the mount.

    python -m tests.fuse.guardwork NAME ARGUMENTS       prints its answer as JSON

Imports nothing of the project, so that a child starts fast.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any


def attempt(function: Callable[[], Any]) -> str:
    try:
        function()
    except OSError as exc:
        return errno.errorcode.get(exc.errno or 0, repr(exc))
    return "done"


def prepare() -> dict[str, Callable[[], Any]]:
    """Make what each handler's call needs; return the calls."""
    os.makedirs("dir/old", exist_ok=True)
    for name in ("file", "victim", "source", "empty"):
        with open(name, "wb") as file:
            file.write(b"contents")
    os.symlink("file", "link")
    os.setxattr("file", "user.a", b"value")
    written = os.open("file", os.O_RDWR)
    flushed = os.open("victim", os.O_RDWR)
    direct = os.open("file", os.O_RDONLY | os.O_DIRECT)
    directory = os.open("dir", os.O_RDONLY)
    return {
        "lookup": lambda: os.lstat("file"),
        "mknod": lambda: os.mkfifo("fifo"),
        "mkdir": lambda: os.mkdir("new"),
        "symlink": lambda: os.symlink("x", "newlink"),
        "link": lambda: os.link("file", "hard"),
        "unlink": lambda: os.unlink("victim"),
        "rmdir": lambda: os.rmdir("dir/old"),
        "rename": lambda: os.rename("source", "dest"),
        "readlink": lambda: os.readlink("link"),
        "getattr": lambda: os.fstat(written),
        "setattr": lambda: os.chmod("file", 0o600),
        "statfs": lambda: os.statvfs("."),
        "getxattr": lambda: os.getxattr("file", "user.a"),
        "listxattr": lambda: os.listxattr("file"),
        "setxattr": lambda: os.setxattr("file", "user.b", b"value"),
        "removexattr": lambda: os.removexattr("file", "user.a"),
        "open": lambda: os.open("empty", os.O_RDONLY),
        "create": lambda: os.open("created", os.O_CREAT | os.O_WRONLY),
        "read": lambda: os.preadv(direct, [mmap.mmap(-1, 4096)], 0),
        "write": lambda: os.pwrite(written, b"x", 0),
        "flush": lambda: os.close(flushed),
        "fsync": lambda: os.fsync(written),
        "opendir": lambda: os.open("dir", os.O_RDONLY | os.O_DIRECTORY),
        "readdir": lambda: os.listdir(directory),
        "fsyncdir": lambda: os.fsync(directory),
    }


def handlers(place: str, bugs: str, *names: str) -> dict[str, str]:
    """Fail each handler once; return what the program saw. Afterwards each works."""
    os.makedirs(f"{place}/handlers")
    os.chdir(f"{place}/handlers")
    calls = prepare()
    answers = {}
    for name in names:
        # A look-up that fails when a name is checked again is done once more by the kernel.
        Path(bugs).write_text(f"handler {name} {2 if name == 'lookup' else 1}\n")
        answers[name] = attempt(calls[name])
        if Path(bugs).read_text() != f"handler {name} 0\n":
            answers[name] += " (the handler was not called)"
        Path(bugs).write_text("")
        if name != "flush":
            again = attempt(calls[name])
            if again != "done":
                answers[name] += f", then {again}"
    return answers


def silent(place: str, bugs: str, *names: str) -> dict[str, str]:
    """Fail handlers whose answer nobody sees."""
    os.makedirs(f"{place}/silent")
    os.chdir(f"{place}/silent")
    with open("file", "wb") as file:
        file.write(b"contents")

    def close_directory() -> None:
        os.close(os.open(".", os.O_RDONLY))

    def forget() -> None:
        Path("forgotten").write_bytes(b"")
        os.unlink("forgotten")

    def close_file() -> None:
        os.close(os.open("file", os.O_RDONLY))

    calls = {"forget": forget, "release": close_file, "releasedir": close_directory}
    answers = {}
    for name in names:
        Path(bugs).write_text(f"handler {name} 1\n")
        answers[name] = attempt(calls[name])
        for _ in range(1000):  # the kernel sends these when it likes
            if Path(bugs).read_text() == f"handler {name} 0\n":
                break
            with suppress(OSError):
                calls[name]()
        else:
            answers[name] += " (the handler was not called)"
        Path(bugs).write_text("")
    return answers


def works(place: str) -> str:
    """Do a little of everything."""
    os.chdir(place)
    os.mkdir("works")
    with open("works/file", "wb") as file:
        file.write(b"x" * 100_000)
        file.flush()
        os.fsync(file.fileno())
    os.rename("works/file", "works/other")
    assert Path("works/other").read_bytes() == b"x" * 100_000
    assert os.listdir("works") == ["other"]
    assert os.statvfs(".").f_bsize
    os.unlink("works/other")
    os.rmdir("works")
    return "yes"


def acknowledged(path: str, mode: str) -> str:
    """Write a file and fsync it, again if the fsync says that it did not work, or compare it."""
    data = random.Random(path).randbytes(3_000_000)
    if mode == "check":
        return "same" if Path(path).read_bytes() == data else "different"

    def write() -> None:
        with open(path, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    for _ in range(100):
        if attempt(write) == "done":
            break
        time.sleep(0.1)
    else:
        write()
    Path(path + ".gone").write_bytes(data)
    os.unlink(path + ".gone")
    return "written"


def fill(path: str) -> str:
    """Write and fsync until that fails, or enough is written."""

    def write() -> None:
        with open(path, "wb") as file:
            for _ in range(20):
                file.write(os.urandom(1 << 20))
                file.flush()
                os.fsync(file.fileno())

    return attempt(write)


def refused(place: str) -> dict[str, str]:
    """Try to change what may not be changed."""
    os.chdir(place)
    file = os.open("kept.data", os.O_RDONLY)
    return {
        "create": attempt(lambda: os.open("new", os.O_CREAT | os.O_WRONLY)),
        "write": attempt(lambda: os.open("kept.data", os.O_WRONLY)),
        "fsync": attempt(lambda: os.fsync(file)),
    }


def readers(place: str, count: str, *names: str) -> dict[str, int]:
    """Read what is not on this machine in many threads at once; return how many got which answer."""
    os.chdir(place)
    files = [os.open(name, os.O_RDONLY | os.O_DIRECT) for name in names]
    contents = [random.Random(f"{place}/{name}").randbytes(3_000_000) for name in names]
    answers: list[str] = []

    def read(number: int) -> None:
        buffer = mmap.mmap(-1, 4096)
        which, start = number % len(files), number // len(files) % 2 * (1 << 20)
        answer = attempt(lambda: os.preadv(files[which], [buffer], start))
        if answer == "done":
            answer = "right" if buffer[:] == contents[which][start : start + 4096] else "wrong"
        answers.append(answer)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(int(count))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Counter(answers)


def main() -> None:
    name, *arguments = sys.argv[1:]
    function: Any = globals()[name]
    print(json.dumps(function(*arguments)))


if __name__ == "__main__":
    main()
