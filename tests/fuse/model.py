"""A file against a bytearray, in steps that a later process can go on with; and a description of a whole tree.

python -m tests.fuse.model step PATH SEED FIRST LAST      check the file as FIRST steps left it, do the rest up to LAST
python -m tests.fuse.model describe DIRECTORY             print everything that a remount must not change
python -m tests.fuse.model churn DIRECTORY SECONDS        several processes change names at once, then the counts must fit
python -m tests.fuse.model links DIRECTORY                check the counts
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any, Final

MIB: Final = 1 << 20
MAX_SIZE: Final = 3 * MIB + 12345

_EXPECTED: Final = frozenset(
    getattr(errno, name) for name in ("EEXIST", "ENOENT", "EISDIR", "ENOTDIR", "ENOTEMPTY", "EPERM", "EINVAL")
)
"""What a change may fail with because another process was faster."""


class Model:
    """The steps of one seed, done on a bytearray and, if there is one, on a file."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(f"model/{seed}")
        self.data = bytearray()

    def step(self, fd: int | None) -> None:
        """Do the next step. The choices depend on nothing but the seed and the steps before."""
        chooser = self._random
        action = chooser.choices(["write", "read", "truncate", "append", "sync", "drop"], [50, 25, 6, 8, 6, 5])[0]
        offset = chooser.choice(
            [chooser.randrange(MAX_SIZE), chooser.randrange(4) * MIB + chooser.randrange(-9000, 9000)]
        )
        offset = max(0, min(offset, MAX_SIZE - 1))
        size = chooser.choice([1, 10, 600, 4096, 5000, chooser.randrange(1, 70_000), chooser.randrange(1, 1_500_000)])
        if action == "append":
            action, offset, size = "write", len(self.data), min(size, 5000)
        size = max(0, min(size, MAX_SIZE - offset))
        if action == "write":
            piece = chooser.randbytes(size)
            if fd is not None:
                assert os.pwrite(fd, piece, offset) == size
            if size:
                self.data.extend(bytes(max(0, offset - len(self.data))))
                self.data[offset : offset + size] = piece
        elif action == "truncate":
            if fd is not None:
                os.ftruncate(fd, offset)
            self.data = self.data[:offset].ljust(offset, b"\0")
        elif fd is None:
            return
        elif action == "read":
            assert os.pread(fd, size, offset) == self.data[offset : offset + size]
        else:
            os.fsync(fd)
            if action == "drop":
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def step(path: str, seed: str, first: str, last: str) -> None:
    """Check the file and go on. Raises AssertionError at the first difference."""
    model = Model(seed)
    for _ in range(int(first)):
        model.step(None)
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    _compare(fd, model.data, f"before step {first}")
    for number in range(int(first), int(last)):
        model.step(fd)
        assert os.fstat(fd).st_size == len(model.data), f"after step {number}"
    _compare(fd, model.data, f"after step {last}")


def _compare(fd: int, data: bytearray, when: str) -> None:
    assert os.fstat(fd).st_size == len(data), when
    for offset in range(0, len(data), 128 << 10):
        found = os.pread(fd, 128 << 10, offset)
        wanted = data[offset : offset + (128 << 10)]
        if found != wanted:
            at = next(place for place, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b)
            raise AssertionError(f"{when}: byte {offset + at} is {found[at]}, not {wanted[at]}")


def describe(directory: str) -> dict[str, Any]:
    """Return everything of a tree but access times."""
    found: dict[str, Any] = {}
    for path in sorted([Path(directory), *Path(directory).rglob("*")]):
        info = path.lstat()
        entry: list[Any] = [info.st_ino, oct(info.st_mode), info.st_nlink, info.st_uid, info.st_gid, info.st_size]
        entry += [info.st_rdev, info.st_mtime_ns, info.st_ctime_ns, info.st_blocks]
        for name in sorted(os.listxattr(path, follow_symlinks=False)):
            entry.append([ascii(name), os.getxattr(path, name, follow_symlinks=False).hex()])
        if path.is_symlink():
            entry.append(os.readlink(path))
        elif path.is_file():
            entry.append(hashlib.sha256(path.read_bytes()).hexdigest())
        elif path.is_dir():
            entry.append(
                sorted(
                    (ascii(item.name), item.inode(), item.stat(follow_symlinks=False).st_ino)
                    for item in os.scandir(path)
                )
            )
        found[ascii(str(path))] = entry
    return found


def churn(directory: str, seconds: str) -> None:
    """Have three processes make, link, move and remove names in the same directories; then check every link count."""
    os.chdir(directory)
    folders = ["a", "b", "a/c", "b/d"]
    for folder in folders:
        os.mkdir(folder)
    children = []
    for number in range(3):
        pid = os.fork()
        if not pid:
            code = 1
            try:
                _churn(random.Random(number), folders, time.monotonic() + float(seconds))
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
    check_links(".")


def _churn(chooser: random.Random, folders: list[str], end: float) -> None:
    def name() -> str:
        return f"{chooser.choice(folders)}/{chooser.randrange(12)}"

    while time.monotonic() < end:
        one, two = name(), name()
        try:
            match chooser.randrange(8):
                case 0:
                    os.close(os.open(one, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                case 1:
                    Path(one).write_bytes(chooser.randbytes(chooser.choice([0, 10, 5000])))
                case 2:
                    os.mkdir(one)
                case 3 | 4:
                    os.rename(one, two)
                case 5:
                    os.link(one, two)
                case 6:
                    os.unlink(one)
                case _:
                    os.rmdir(one)
        except OSError as exc:
            if exc.errno not in _EXPECTED:
                raise


def check_links(directory: str) -> None:
    """Fail unless every link count is the number of names and every entry can be looked up."""
    names: dict[int, int] = {}
    counts: dict[int, int] = {}
    for path, folders, files in os.walk(directory):
        assert os.stat(path).st_nlink == 2 + len(folders), path
        for name in files:
            info = os.lstat(f"{path}/{name}")
            names[info.st_ino] = names.get(info.st_ino, 0) + 1
            counts[info.st_ino] = info.st_nlink
    assert names == counts


def main() -> int:
    """Run one operation."""
    operation, *args = sys.argv[1:]
    if operation == "step":
        step(*args)
    elif operation == "churn":
        churn(*args)
    elif operation == "links":
        check_links(*args)
    else:
        print(json.dumps(describe(*args)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
