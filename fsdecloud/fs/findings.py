"""What a check of a volume found, and what would put it right. Pure values; `fs.checkmap` and `driver.fsck*` make them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from fsdecloud.types import EntryId

DAMAGE: Final = "damage"
"""Something of the volume cannot be read: lost unless another copy turns up."""

FAULT: Final = "fault"
"""Everything can be read, and it contradicts itself."""

NOTE: Final = "note"
"""Worth saying; nothing is wrong with the volume."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Set these keys of the volume's map; None deletes."""

    changes: tuple[tuple[bytes, bytes | None], ...]


@dataclass(frozen=True, slots=True)
class Attach:
    """Give an inode without a name one in /lost+found."""

    inode: int
    type: int
    """S_IFMT bits."""


@dataclass(frozen=True, slots=True)
class RaiseBound:
    """Say in the volume's meta that inode numbers up to the highest in use were given out."""

    least: int


@dataclass(frozen=True, slots=True)
class Restage:
    """Stage an entry once more, from another copy of it."""

    entry: EntryId


@dataclass(frozen=True, slots=True)
class DropCached:
    """Forget what the cache holds under this id."""

    entry: EntryId


@dataclass(frozen=True, slots=True)
class EmptyCache:
    """Begin with an empty cache."""


Repair: TypeAlias = Rows | Attach | RaiseBound | Restage | DropCached | EmptyCache


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be."""

    kind: str
    """A short stable word for programs: "links", "name", "staged", ..."""
    text: str
    """What is wrong, for people."""
    severity: str = FAULT
    inode: int = 0
    """The inode it concerns, 0 if none."""
    path: bytes = b""
    """Where that is in the volume, as far as it is known."""
    repair: Repair | None = None
    """None: nothing can be done about it without losing data."""

    def at(self, path: bytes) -> Finding:
        """Return it with the inode's path."""
        return replace(self, path=path)


Steps: TypeAlias = Iterator[Finding | None]
"""A check under way: findings as they are made, and None now and then, so that others get their turn."""

Scan: TypeAlias = Callable[[bytes, bytes], Iterator[tuple[bytes, bytes]]]
"""Yield the pairs of a map with start <= key < stop, ascending."""
