"""A disk that keeps only what it must: which states of a directory a power cut may leave, given a trace of what was done.

The model is the strictest that POSIX allows, far below what ext4 does:

* of the writes of a file since its last sync, any subset is there, each whole or torn at sectors of 512 or 4096 bytes;
* its size may be any between the synced one and the last one, and what was not written reads as zeros;
* names (made, renamed, removed) since the last fsync of their directory are there or not, independently of each other
  and of the data, but for those that rest on one another; a rename is there whole or not at all;
* a write through O_DSYNC is there when it has returned; a sync counts for what had returned when it began.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.power.trace import DIRECTORY, Begin, Change, Event, Note, Rename, Sync

PAGE = 4096
SECTOR = 512
_ZERO = bytes(PAGE)


class Image:
    """A file's bytes, sparse."""

    def __init__(self) -> None:
        self.size = 0
        self.pages: dict[int, bytes] = {}

    def copy(self) -> Image:
        other = Image()
        other.size, other.pages = self.size, self.pages.copy()
        return other

    def apply(self, change: Change) -> None:
        if change.kind == "write":
            self.write(change.offset, change.data)
        elif change.kind == "size" or change.offset > self.size:
            self.resize(change.offset)

    def write(self, offset: int, data: bytes) -> None:
        self.size = max(self.size, offset + len(data))
        position = 0
        while position < len(data):
            number, start = divmod(offset + position, PAGE)
            piece = data[position : position + PAGE - start]
            if len(piece) < PAGE:
                old = self.pages.get(number, _ZERO)
                piece = old[:start] + piece + old[start + len(piece) :]
            if piece == _ZERO:
                self.pages.pop(number, None)
            else:
                self.pages[number] = piece
            position += PAGE - start

    def resize(self, size: int) -> None:
        if size < self.size:
            last, cut = divmod(size, PAGE)
            for number in [number for number in self.pages if number >= last + bool(cut)]:
                del self.pages[number]
            if cut and last in self.pages:
                self.pages[last] = self.pages[last][:cut] + bytes(PAGE - cut)
        self.size = size

    def store(self, path: Path) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.ftruncate(fd, self.size)
            for number, page in self.pages.items():
                os.pwrite(fd, page[: self.size - number * PAGE], number * PAGE)
        finally:
            os.close(fd)


@dataclass
class _File:
    """What the disk surely has of a file, and the changes since, in order; a durable one may follow one that is not."""

    base: Image = field(default_factory=Image)
    changes: list[_Pending] = field(default_factory=list)

    def settle(self) -> None:
        while self.changes and self.changes[0].is_durable:
            self.base.apply(self.changes.pop(0).change)


@dataclass(eq=False)
class _Pending:
    change: Change
    is_durable: bool = False


State = dict[str, Image | None]
"""Path -> file, None for a directory."""


class Disk:
    """The directory as the events so far left it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._files: dict[int, _File] = {}
        self._names: dict[str, int] = {}
        """What surely stands in the directories."""
        self._renames: list[Rename] = []
        self._begun: dict[int, tuple[dict[int, int], int]] = {}
        """Call under way -> how many changes each file had, and how many names were changed, when it began."""
        self._counts: dict[int, int] = {}
        self._settled: dict[int, int] = {}
        self.version = 0
        """Grows with all that changes the possible states."""

    def apply(self, event: Event) -> None:
        """Take in what a program did next."""
        match event:
            case Begin(call):
                counts = {number: self._counts[number] for number in self._files}
                self._begun[call] = counts, len(self._renames)
            case Note():
                return
            case Change(call, file, _, _, _, is_durable):
                self._begun.pop(call, None)
                found = self._files.setdefault(file, _File())
                found.changes.append(_Pending(event, is_durable))
                self._counts[file] = self._counts.get(file, 0) + 1
                self._settle(file)
            case Rename(call, names):
                self._begun.pop(call, None)
                for _path, number in names:
                    if number:
                        self._files.setdefault(number, _File())
                        self._counts.setdefault(number, 0)
                self._renames.append(event)
            case Sync(call, file, path):
                counts, renames = self._begun.pop(call, (self._counts, len(self._renames)))
                if file == DIRECTORY:
                    self._sync_directory(path, renames)
                else:
                    done = counts.get(file, 0) - self._settled.get(file, 0)
                    for pending in self._files[file].changes[: max(0, done)]:
                        pending.is_durable = True
                    self._settle(file)
        self.version += 1

    def _settle(self, number: int) -> None:
        file = self._files[number]
        before = len(file.changes)
        file.settle()
        self._settled[number] = self._settled.get(number, 0) + before - len(file.changes)

    def _sync_directory(self, path: str, count: int) -> None:
        rest = []
        for position, rename in enumerate(self._renames):
            if position < count and all(os.path.dirname(name) == path for name, _ in rename.names):
                self._names.update({name: number for name, number in rename.names if number is not None})
                for name in [name for name, number in rename.names if number is None]:
                    self._names.pop(name, None)
            else:
                rest.append(rename)
        gone = len(self._renames) - len(rest)
        self._begun = {call: (counts, max(0, renames - gone)) for call, (counts, renames) in self._begun.items()}
        self._renames = rest

    # ---- what may be there after a power cut ---------------------------------------------------------------------------
    @property
    def loose(self) -> int:
        """How many changes and names are not surely on the disk."""
        return len(self._renames) + sum(not p.is_durable for f in self._files.values() for p in f.changes)

    def newest(self) -> State:
        """Return what the program itself sees."""
        return self._state(self._renames, lambda changes: [p.change for p in changes], lambda _base, image: image.size)

    def oldest(self) -> State:
        """Return what is left if nothing was written that need not be."""
        return self._state(
            [], lambda changes: [p.change for p in changes if p.is_durable], lambda _base, image: image.size
        )

    def possible(self, chance: random.Random) -> State:
        """Return one of the possible states."""
        share = chance.choice([0.0, 0.1, 0.5, 0.9, 1.0])
        tearing = chance.choice([0.0, 0.3, 1.0])
        shortening = chance.choice([0.0, 0.5])

        def choose(changes: Sequence[_Pending]) -> Iterable[Change]:
            for pending in changes:
                if pending.is_durable:
                    yield pending.change
                elif chance.random() < share:
                    if pending.change.kind == "write" and chance.random() < tearing:
                        yield from _torn(pending.change, chance)
                    else:
                        yield pending.change

        def size(base: Image, image: Image) -> int:
            if image.size > base.size and chance.random() < shortening:
                shorter = chance.randrange(base.size, image.size)
                return chance.choice([base.size, shorter, max(base.size, shorter - shorter % SECTOR)])
            return image.size

        blocked: set[str] = set()
        kept = []
        names_share = chance.choice([0.0, 0.5, 1.0])
        for rename in self._renames:
            names = {name for name, _ in rename.names}
            if names & blocked or chance.random() >= names_share:
                blocked |= names  # what comes later under these names rests on this one
            else:
                kept.append(rename)
        return self._state(kept, choose, size)

    def _state(self, renames, choose, size) -> State:
        names: dict[str, int] = dict(self._names)
        for rename in renames:
            for name, number in rename.names:
                if number is None:
                    names.pop(name, None)
                else:
                    names[name] = number
        state: State = {}
        root = str(self._root)
        for path, number in sorted(names.items()):
            parent = os.path.dirname(path)
            if parent != root and state.get(parent, self) is not None:
                continue  # its directory is not there
            if number == DIRECTORY:
                state[path] = None
                continue
            file = self._files[number]
            base = file.base.copy()
            for pending in file.changes:
                if pending.is_durable:
                    base.apply(pending.change)
            image = file.base.copy()
            for change in choose(file.changes):
                image.apply(change)
            wanted = size(base, image)
            if wanted != image.size:
                image.resize(wanted)
            state[path] = image
        return state


def _torn(change: Change, chance: random.Random) -> Iterator[Change]:
    """Return what got to the disk of one write, in sectors."""
    unit = chance.choice([SECTOR, PAGE])
    first = change.offset // unit
    last = (change.offset + len(change.data) - 1) // unit
    how = chance.choice(["head", "tail", "some"])
    cut = chance.randint(first, last + 1)
    for number in range(first, last + 1):
        if (
            (how == "some" and chance.random() < 0.5)
            or (how == "head" and number >= cut)
            or (how == "tail" and number < cut)
        ):
            continue
        start = max(number * unit, change.offset)
        stop = min((number + 1) * unit, change.offset + len(change.data))
        yield Change(0, change.file, "write", start, change.data[start - change.offset : stop - change.offset])


def store(state: State, root: Path, target: Path) -> None:
    """Write a state to `target`, made here, with mode 0700."""
    target.mkdir(mode=0o700)
    for path, image in state.items():
        place = target / os.path.relpath(path, root)
        if image is None:
            place.mkdir(mode=0o700)
        else:
            image.store(place)


def differences(state: State, root: Path) -> list[str]:
    """Say where the files below `root` differ from a state; the lock table, which programs share in memory, aside."""
    found = []
    real = {str(path): path for path in root.rglob("*") if path.name != "lock.mdb"}
    known = {path: image for path, image in state.items() if not path.endswith("/lock.mdb")}
    found += [f"only one has {path}" for path in sorted(real.keys() ^ known.keys())]
    for path, image in known.items():
        if image is not None and path in real:
            data = real[path].read_bytes()
            if len(data) != image.size:
                found.append(f"{path} has {len(data)} bytes, the trace {image.size}")
            for number in range(-(-len(data) // PAGE)):
                page = data[number * PAGE : (number + 1) * PAGE]
                if page != image.pages.get(number, _ZERO)[: len(page)]:
                    found.append(f"page {number} of {path} differs")
    return found
