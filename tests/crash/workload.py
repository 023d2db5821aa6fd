"""What the crash manifest's writer does, as a plan that its checker can repeat: a pure function of a seed.

A strict plan is an endless list of operations on one directory; each ends with the fsyncs that make it D1, and only then
is its number acknowledged. The checker repeats the acknowledged ones on a `Model`; of the one that was under way when the
mount died, every step may have happened or not. A loose plan never syncs: the names of what it made are there in the order
they were made, each file whole or its first part, and a file that was replaced is the old one or the new one. Imports
nothing of the project.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

MIB: Final = 1 << 20
PAGE: Final = 4096
SIZES: Final = (0, 1, 100, 2048, 2049, 4095, 4096, 4097, 16384, 16385, 70_000, 262_144, 300_000, MIB - 1, MIB, MIB + 1)
FILES_MAX: Final = 24
FILE_MAX: Final = 6 * MIB

Step = tuple[Any, ...]
"""A name of a method of `Model` (and of the writer's twin of it), and its arguments."""


def content(tag: str, size: int) -> bytes:
    """Return bytes that no compressor makes smaller and that no page of another tag contains."""
    return random.Random(tag).randbytes(size)


@dataclass
class Node:
    """A file, directory or symbolic link of the model."""

    kind: str
    data: bytearray = field(default_factory=bytearray)
    mode: int = 0o644
    owner: int = 0
    mtime: int | None = None
    """Nanoseconds, once set by the plan and not changed by anything since."""
    target: str = ""
    xattrs: dict[str, bytes] = field(default_factory=dict)

    def copy(self) -> Node:
        """Return the node as it is now."""
        copied = Node(self.kind, bytearray(self.data), self.mode, self.owner, self.mtime, self.target)
        copied.xattrs = dict(self.xattrs)
        return copied


class Model:
    """A directory tree in memory."""

    def __init__(self) -> None:
        self.names: dict[str, Node] = {}

    def of(self, kind: str) -> list[str]:
        """Return the names of all nodes of a kind, sorted."""
        return sorted(name for name, node in self.names.items() if node.kind == kind)

    def links(self, name: str) -> int:
        """Return how many names a file has."""
        return sum(node is self.names[name] for node in self.names.values())

    def apply(self, step: Step) -> None:
        """Do one step."""
        getattr(self, step[0])(*step[1:])

    # ---- steps -------------------------------------------------------------------------------------------------------
    def create(self, name: str, mode: int) -> None:
        self.names[name] = Node("file", mode=mode)

    def write(self, name: str, offset: int, tag: str, size: int, how: str = "") -> None:
        node = self.names[name]
        if size and len(node.data) < offset:
            node.data.extend(bytes(offset - len(node.data)))
        node.data[offset : offset + size] = content(tag, size)
        node.mtime = None
        if how == "mmap":
            assert offset + size <= len(node.data)

    def truncate(self, name: str, size: int) -> None:
        node = self.names[name]
        del node.data[size:]
        node.data.extend(bytes(size - len(node.data)))
        node.mtime = None

    def rename(self, old: str, new: str) -> None:
        if self.names.get(new) is not self.names[old]:
            self.names[new] = self.names.pop(old)

    def link(self, old: str, new: str) -> None:
        self.names[new] = self.names[old]

    def unlink(self, name: str) -> None:
        del self.names[name]

    def mkdir(self, name: str, mode: int) -> None:
        self.names[name] = Node("dir", mode=mode)

    def rmdir(self, name: str) -> None:
        del self.names[name]

    def symlink(self, target: str, name: str) -> None:
        self.names[name] = Node("link", target=target)

    def chmod(self, name: str, mode: int) -> None:
        self.names[name].mode = mode

    def chown(self, name: str, owner: int) -> None:
        self.names[name].owner = owner

    def utime(self, name: str, when: int) -> None:
        self.names[name].mtime = when

    def setxattr(self, name: str, key: str, tag: str, size: int) -> None:
        self.names[name].xattrs[key] = content(tag, size)

    def removexattr(self, name: str, key: str) -> None:
        del self.names[name].xattrs[key]

    def fsync(self, name: str) -> None:
        pass

    def fsync_dir(self, name: str) -> None:
        pass


def parent(name: str) -> str:
    """Return the directory of a name, "" for the plan's own."""
    return name.rpartition("/")[0]


class StrictPlan:
    """Operations that end with fsync, one after another; `model` is the state before the next one."""

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self.model = Model()
        self.number = 0

    def __iter__(self) -> Iterator[list[Step]]:
        """Yield the steps of each operation; asking for the next one takes the last one as done."""
        while True:
            steps = self._operation(self.number, random.Random(f"{self._seed}/{self.number}"))
            yield steps
            for step in steps:
                self.model.apply(step)
            self.number += 1

    def _operation(self, number: int, chooser: random.Random) -> list[Step]:
        kinds = {
            "create": 5, "append": 4, "overwrite": 5, "truncate": 3, "replace": 4, "move": 2, "link": 2, "unlink": 3,
            "mkdir": 1, "rmdir": 1, "symlink": 1, "attributes": 2, "xattr": 2, "sparse": 1, "mmap": 2, "large": 1,
        }  # fmt: skip
        files = self.model.of("file")
        if len(files) < 3:
            return self._create(number, chooser)
        if len(files) > FILES_MAX:
            return self._unlink(number, chooser)
        name = chooser.choices(list(kinds), list(kinds.values()))[0]
        return getattr(self, f"_{name}")(number, chooser) or self._create(number, chooser)

    def _file(self, chooser: random.Random) -> str:
        return chooser.choice(self.model.of("file"))

    def _name(self, number: int, chooser: random.Random, kind: str = "f") -> str:
        directory = chooser.choice(["", "", *self.model.of("dir")])
        return f"{directory}/{kind}{number}" if directory else f"{kind}{number}"

    def _filled(self, number: int, chooser: random.Random, name: str) -> list[Step]:
        """Create a file and fill it in one to four writes."""
        size = chooser.choice(SIZES)
        cuts = sorted(chooser.randrange(size + 1) for _ in range(chooser.randrange(4)))
        steps: list[Step] = [("create", name, chooser.choice([0o644, 0o600, 0o755, 0o4711]))]
        for start, end in zip([0, *cuts], [*cuts, size], strict=True):
            if end > start:
                steps.append(("write", name, start, f"{self._seed}/{number}/{start}", end - start))
        return [*steps, ("fsync", name)]

    def _create(self, number: int, chooser: random.Random) -> list[Step]:
        name = self._name(number, chooser)
        return [*self._filled(number, chooser, name), ("fsync_dir", parent(name))]

    def _append(self, number: int, chooser: random.Random) -> list[Step]:
        name = self._file(chooser)
        offset = len(self.model.names[name].data)
        if offset > FILE_MAX:
            return []
        steps: list[Step] = []
        for part in range(chooser.randrange(1, 4)):
            size = chooser.choice([1, 100, 4096, 5000, 70_000])
            steps.append(("write", name, offset, f"{self._seed}/{number}/{part}", size))
            offset += size
        return [*steps, ("fsync", name)]

    def _overwrite(self, number: int, chooser: random.Random) -> list[Step]:
        name = self._file(chooser)
        size = len(self.model.names[name].data)
        steps: list[Step] = []
        hows = chooser.choice([["", "", "", "sync", "dsync"], ["sync", "dsync"]])
        for part in range(chooser.randrange(1, 6)):
            start = chooser.randrange(size + 1)
            length = chooser.choice([1, 512, 4096, 4097, 30_000])
            steps.append(("write", name, start, f"{self._seed}/{number}/{part}", length, chooser.choice(hows)))
        if all(step[-1] for step in steps):
            return steps  # O_SYNC and O_DSYNC promise as much
        return [*steps, ("fsync", name)]

    def _truncate(self, number: int, chooser: random.Random) -> list[Step]:
        name = self._file(chooser)
        size = len(self.model.names[name].data)
        new = chooser.choice([0, size // 2, size // 2 // PAGE * PAGE, max(0, size - 1), size + 10, size + 9000])
        steps: list[Step] = [("truncate", name, new)]
        if chooser.randrange(2):
            steps.append(("write", name, new, f"{self._seed}/{number}", chooser.choice([10, 5000])))
        return [*steps, ("fsync", name)]

    def _replace(self, number: int, chooser: random.Random) -> list[Step]:
        """What editors do: a new file beside the old one, renamed over it."""
        name = self._file(chooser)
        temporary = f"{name}.new"
        return [*self._filled(number, chooser, temporary), ("rename", temporary, name), ("fsync_dir", parent(name))]

    def _move(self, number: int, chooser: random.Random) -> list[Step]:
        old, new = self._file(chooser), self._name(number, chooser, "m")
        return [("rename", old, new), ("fsync_dir", parent(new)), ("fsync_dir", parent(old))]

    def _link(self, number: int, chooser: random.Random) -> list[Step]:
        new = self._name(number, chooser, "h")
        return [("link", self._file(chooser), new), ("fsync_dir", parent(new))]

    def _unlink(self, number: int, chooser: random.Random) -> list[Step]:
        name = chooser.choice(self.model.of("file") + self.model.of("link"))
        return [("unlink", name), ("fsync_dir", parent(name))]

    def _mkdir(self, number: int, chooser: random.Random) -> list[Step]:
        if len(self.model.of("dir")) >= 4:
            return []
        return [("mkdir", f"d{number}", chooser.choice([0o755, 0o700])), ("fsync_dir", "")]

    def _rmdir(self, number: int, chooser: random.Random) -> list[Step]:
        used = {parent(name) for name in self.model.names}
        empty = [name for name in self.model.of("dir") if name not in used]
        return [("rmdir", chooser.choice(empty)), ("fsync_dir", "")] if empty else []

    def _symlink(self, number: int, chooser: random.Random) -> list[Step]:
        name = self._name(number, chooser, "s")
        return [("symlink", "t" * chooser.choice([1, 50, 4000]), name), ("fsync_dir", parent(name))]

    def _attributes(self, number: int, chooser: random.Random) -> list[Step]:
        name = self._file(chooser)
        steps: list[Step] = [
            ("chown", name, chooser.choice([0, 1, 65534, 2**31])),
            ("chmod", name, chooser.choice([0o644, 0o400, 0o7777])),
            ("utime", name, chooser.choice([0, 1, 10**9 + 123_456_789, 4 * 10**18 + 7])),
        ]
        return [*steps[chooser.randrange(3) :], ("fsync", name)]

    def _xattr(self, number: int, chooser: random.Random) -> list[Step]:
        name = self._file(chooser)
        had = sorted(self.model.names[name].xattrs)
        if had and chooser.randrange(2):
            return [("removexattr", name, chooser.choice(had)), ("fsync", name)]
        size = chooser.choice([0, 10, 2048, 2049, 20_000])
        return [("setxattr", name, f"user.k{chooser.randrange(4)}", f"{self._seed}/{number}", size), ("fsync", name)]

    def _sparse(self, number: int, chooser: random.Random) -> list[Step]:
        name = self._name(number, chooser, "z")
        steps: list[Step] = [("create", name, 0o644)]
        for part in range(3):
            offset = chooser.randrange(5 * MIB)
            steps.append(("write", name, offset, f"{self._seed}/{number}/{part}", chooser.choice([1, 4096, 20_000])))
        # The kernel grows the file before it writes back what it caches: a kill in between may leave holes, as on ext4.
        steps.append(("fsync", name))
        return [*steps, ("truncate", name, 5 * MIB + 77_777), ("fsync", name), ("fsync_dir", parent(name))]

    def _mmap(self, number: int, chooser: random.Random) -> list[Step]:
        name = self._file(chooser)
        size = len(self.model.names[name].data)
        if not size:
            return []
        start = chooser.randrange(size)
        length = min(size - start, chooser.choice([1, 4096, 10_000]))
        return [("write", name, start, f"{self._seed}/{number}", length, "mmap"), ("fsync", name)]

    def _large(self, number: int, chooser: random.Random) -> list[Step]:
        name = self._name(number, chooser, "l")
        steps: list[Step] = [("create", name, 0o644)]
        for part in range(chooser.choice([2, 3])):
            steps.append(("write", name, part * MIB, f"{self._seed}/{number}/{part}", MIB))
        return [*steps, ("fsync", name), ("fsync_dir", parent(name))]


# ---- what is never synced -----------------------------------------------------------------------------------------------


def loose_size(seed: str, number: int) -> int:
    """Return the size of loose file `number`."""
    return random.Random(f"loose/{seed}/{number}").choice([100, 5000, 70_000, 300_000, MIB + 5, 2 * MIB + 9000])


def current_size(seed: str, number: int) -> int:
    """Return the size of version `number` of the file that is replaced again and again."""
    return random.Random(f"current/{seed}/{number}").choice([70_000, 2 * MIB + 1])


def replaces(number: int) -> bool:
    """Whether `current` gets a new version, whole, before loose file `number`."""
    return number % 3 == 0
