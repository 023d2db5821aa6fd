"""The crash manifest's writer: changes files on the mount until the mount dies or a file says stop.

    python -m tests.crash.writer DIRECTORY MANIFEST SEED

MANIFEST is a directory on another file system. Each strict plan appends the number of an operation there, synced, only
after the operation's fsyncs returned. Imports nothing of the project.
"""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import sys
import threading
import time
from pathlib import Path
from typing import IO

from tests.crash.workload import Step, StrictPlan, content, current_size, loose_size, replaces

STRICT = ("a", "b")
DEAD = {errno.ENOTCONN, errno.ECONNABORTED, errno.EIO}
"""What a program sees of a mount whose driver was killed."""


class Real:
    """The steps of `workload.Model`, as system calls; files stay open until the operation ends, as programs keep them."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._open: dict[str, int] = {}

    def apply(self, step: Step) -> None:
        """Do one step."""
        getattr(self, step[0])(*step[1:])

    def end(self) -> None:
        """Close what the operation opened. Raises OSError, with everything closed, when the mount is dead."""
        with contextlib.ExitStack() as stack:
            for fd in self._open.values():
                stack.callback(os.close, fd)
            self._open.clear()

    def _path(self, name: str) -> Path:
        return self._root / name if name else self._root

    def _fd(self, name: str) -> int:
        if name not in self._open:
            self._open[name] = os.open(self._path(name), os.O_RDWR)
        return self._open[name]

    def create(self, name: str, mode: int) -> None:
        fd = self._open[name] = os.open(self._path(name), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.fchmod(fd, mode)

    def write(self, name: str, offset: int, tag: str, size: int, how: str = "") -> None:
        data = content(tag, size)
        if how == "mmap":
            start = offset // mmap.PAGESIZE * mmap.PAGESIZE
            with mmap.mmap(self._fd(name), offset + size - start, offset=start) as mapped:
                mapped[offset - start :] = data
                mapped.flush()
            return
        flags = {"": 0, "sync": os.O_SYNC, "dsync": os.O_DSYNC}[how]
        fd = os.open(self._path(name), os.O_WRONLY | flags) if flags else self._fd(name)
        try:
            view = memoryview(data)
            while view:
                count = os.pwrite(fd, view, offset)
                view, offset = view[count:], offset + count
        finally:
            if flags:
                os.close(fd)

    def truncate(self, name: str, size: int) -> None:
        os.ftruncate(self._fd(name), size)

    def rename(self, old: str, new: str) -> None:
        os.rename(self._path(old), self._path(new))

    def link(self, old: str, new: str) -> None:
        os.link(self._path(old), self._path(new))

    def unlink(self, name: str) -> None:
        os.unlink(self._path(name))

    def mkdir(self, name: str, mode: int) -> None:
        os.mkdir(self._path(name), mode)

    def rmdir(self, name: str) -> None:
        os.rmdir(self._path(name))

    def symlink(self, target: str, name: str) -> None:
        os.symlink(target, self._path(name))

    def chmod(self, name: str, mode: int) -> None:
        os.chmod(self._path(name), mode)

    def chown(self, name: str, owner: int) -> None:
        os.chown(self._path(name), owner, -1)

    def utime(self, name: str, when: int) -> None:
        os.utime(self._path(name), ns=(when, when))

    def setxattr(self, name: str, key: str, tag: str, size: int) -> None:
        os.setxattr(self._path(name), key, content(tag, size))

    def removexattr(self, name: str, key: str) -> None:
        os.removexattr(self._path(name), key)

    def fsync(self, name: str) -> None:
        os.fsync(self._fd(name))

    def fsync_dir(self, name: str) -> None:
        fd = os.open(self._path(name), os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


class Writer:
    """The threads of one round."""

    def __init__(self, directory: Path, manifest: Path, seed: str) -> None:
        self._directory = directory
        self._manifest = manifest
        self._seed = seed
        self._failures: list[str] = []

    def run(self) -> dict[str, object]:
        """Write until the mount dies; return what went wrong otherwise."""
        self._directory.mkdir()
        for name in (*STRICT, "loose"):
            (self._directory / name).mkdir()
        Real(self._directory).fsync_dir("")
        Real(self._directory.parent).fsync_dir("")
        threads = [threading.Thread(target=self._guard, args=(self._strict, name)) for name in STRICT]
        threads.append(threading.Thread(target=self._guard, args=(self._loose, "loose")))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {"failures": self._failures}

    def _stopped(self) -> bool:
        return (self._manifest / "stop").exists()

    def _guard(self, work: object, name: str) -> None:
        try:
            with open(self._manifest / name, "ab", buffering=0) as log:
                work(name, log)  # type: ignore[operator]
        except OSError as exc:
            if exc.errno not in DEAD:
                self._failures.append(f"{name}: {exc!r}")
        except BaseException as exc:  # a thread's error would be lost otherwise
            self._failures.append(f"{name}: {exc!r}")

    def _strict(self, name: str, log: IO[bytes]) -> None:
        plan = StrictPlan(f"{self._seed}/{name}")
        real = Real(self._directory / name)
        for steps in plan:
            if self._stopped():
                return
            try:
                for step in steps:
                    real.apply(step)
            finally:
                try:
                    real.end()
                except OSError as exc:
                    if exc.errno not in DEAD:
                        raise
            log.write(b"%d\n" % plan.number)
            os.fdatasync(log.fileno())

    def _loose(self, name: str, log: IO[bytes]) -> None:
        directory = self._directory / name
        number = 0
        while not self._stopped():
            if replaces(number):
                self._whole(
                    directory / "current.new", f"{self._seed}/current/{number}", current_size(self._seed, number)
                )
                os.rename(directory / "current.new", directory / "current")
            self._whole(directory / f"{number:06}", f"{self._seed}/loose/{number}", loose_size(self._seed, number))
            log.write(b"%d\n" % number)
            number += 1
            time.sleep(0.02)  # leaves the disk to the others

    @staticmethod
    def _whole(path: Path, tag: str, size: int) -> None:
        with open(path, "wb", buffering=0) as file:
            view = memoryview(content(tag, size))
            while view:
                view = view[file.write(view[: 64 << 10]) :]


def main() -> None:
    """Write one round."""
    directory, manifest, seed = sys.argv[1:]
    print(json.dumps(Writer(Path(directory), Path(manifest), seed).run()))


if __name__ == "__main__":
    main()
