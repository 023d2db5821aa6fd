"""What differs between two states of a volume, in paths: added, removed, changed, renamed.

Pure. The differences themselves cost what changed (`tree.diff`). A tree has no way from an inode to its names, so the paths
of what changed are looked for in the directories, from the root down, until all are found: for each `window` of differences
once, so that memory stays bounded whatever was done in between.

A difference of times alone counts for no directory, and one of the access time for nothing.
"""

from __future__ import annotations

import heapq
import stat
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from typing import Final, NamedTuple, TypeVar

from fsdecloud.errors import MalformedError
from fsdecloud.fs.inode import InodeValue, decode_entry, decode_inode
from fsdecloud.fs.keys import ROOT, entry_prefix, inode_key, prefix_end, split_entry_key
from fsdecloud.tree.diff import diff
from fsdecloud.tree.lookup import lookup, scan
from fsdecloud.tree.node import Get

T = TypeVar("T")

ADDED: Final = "added"
REMOVED: Final = "removed"
CHANGED: Final = "changed"
RENAMED: Final = "renamed"

WINDOW: Final = 20_000
"""Differences whose paths are looked for at once."""

MOVES_MAX: Final = 100_000
"""Names of moved files held to pair old and new ones; past it, a move is shown as removed and added."""


class Change(NamedTuple):
    """One difference. `path` is absolute; `path2` is where it was renamed to."""

    kind: str
    path: bytes
    path2: bytes = b""


class _Name(NamedTuple):
    """A directory entry in one of the two states."""

    parent: int
    name: bytes


class _Place(NamedTuple):
    """Where something is: its name in a directory. Paths share what they have in common, however deep they lead."""

    above: _Place | None
    name: bytes


class _Found(NamedTuple):
    """A difference whose paths are not known yet: `before` in the old state, `after` in the new one."""

    kind: str
    before: _Name | None
    after: _Name | None


def compare(get: Get, old: bytes, new: bytes, *, window: int = WINDOW) -> Iterator[Change]:
    """Yield the differences from the state with the root `old` to that with `new`. Raises NodeMissing, MalformedError."""
    names = _names(get, old, new)
    while part := _take(names, window):
        before = find_paths(get, old, {found.before.parent for found in part if found.before is not None})
        after = find_paths(get, new, {found.after.parent for found in part if found.after is not None})
        for found in part:
            paths = [
                path_of(_Place(known[name.parent], name.name)) if name.parent in known else b"?/" + name.name
                for known, name in ((before, found.before), (after, found.after))
                if name is not None
            ]
            yield Change(found.kind, *paths)
    changed = _changed(get, old, new)
    while inodes := _take(changed, window):
        paths_of = find_paths(get, new, set(inodes))
        for ino in inodes:
            if ino in paths_of:
                yield Change(CHANGED, path_of(paths_of[ino]))


def _take(source: Iterator[T], count: int) -> list[T]:
    return list(islice(source, count))


# ---- names ---------------------------------------------------------------------------------------------------------------
def _names(get: Get, old: bytes, new: bytes) -> Iterator[_Found]:
    """Yield what became of names: added, removed, renamed, or given to another file (changed)."""
    out: dict[int, list[_Name]] = {}
    into: dict[int, list[_Name]] = {}
    taken: set[_Name] = set()
    moves = 0
    for key, left, right in diff(get, old, new, b"D", b"E"):
        name = _Name(int.from_bytes(key[1:9], "big"), split_entry_key(key)[1])
        was = decode_entry(name.name, left) if left is not None else None
        now = decode_entry(name.name, right) if right is not None else None
        room = moves < MOVES_MAX
        came = now is not None and room and _exists(get, old, now.inode)
        left_over = was is not None and room and _exists(get, new, was.inode)
        if now is not None and came:
            into.setdefault(now.inode, []).append(name)
        if was is not None and left_over:
            out.setdefault(was.inode, []).append(name)
        moves += came + left_over
        if was is not None and now is not None and (came or was.type == now.type):
            if left_over:
                taken.add(name)  # somebody's name before and after: never shown as removed
            if not came:
                yield _Found(CHANGED, None, name)
            continue
        if was is not None and not left_over:
            yield _Found(REMOVED, name, None)
        if now is not None and not came:
            yield _Found(ADDED, None, name)
    for ino, there in into.items():
        here = sorted(out.pop(ino, []), key=taken.__contains__)
        for number, name in enumerate(there):
            yield _Found(RENAMED, here[number], name) if number < len(here) else _Found(ADDED, None, name)
        yield from _gone(here[len(there) :], taken)
    for here in out.values():
        yield from _gone(here, taken)


def _gone(names: list[_Name], taken: set[_Name]) -> Iterator[_Found]:
    for name in names:
        if name not in taken:
            yield _Found(REMOVED, name, None)


def _exists(get: Get, root: bytes, ino: int) -> bool:
    data = lookup(get, root, inode_key(ino))
    return data is not None and decode_inode(data).nlink > 0


# ---- contents and attributes ---------------------------------------------------------------------------------------------
def _changed(get: Get, old: bytes, new: bytes) -> Iterator[int]:
    """Yield, ascending, the inodes of both states whose contents, attributes or extended attributes differ."""
    streams = [_touched(get, old, new, kind) for kind in (b"C", b"I", b"X")]
    for ino, kinds in groupby(heapq.merge(*streams), key=lambda pair: pair[0]):
        found = {kind for _ino, kind in kinds}
        left, right = lookup(get, old, inode_key(ino)), lookup(get, new, inode_key(ino))
        if left is None or right is None:
            continue
        was, now = decode_inode(left), decode_inode(right)
        if now.nlink and (found - {b"I"} or _described(was) != _described(now)):
            yield ino


def _touched(get: Get, old: bytes, new: bytes, kind: bytes) -> Iterator[tuple[int, bytes]]:
    last = 0
    for key, _left, _right in diff(get, old, new, kind, bytes((kind[0] + 1,))):
        ino = int.from_bytes(key[1:9], "big")
        if ino != last:
            yield ino, kind
        last = ino


def _described(value: InodeValue) -> tuple[object, ...]:
    """Return what makes a difference to somebody."""
    described = (value.mode, value.uid, value.gid, value.rdev, value.xattrs, value.target)
    return described if stat.S_ISDIR(value.mode) else (*described, value.size, value.mtime)


# ---- paths ---------------------------------------------------------------------------------------------------------------
def path_of(place: _Place | None) -> bytes:
    """Return the absolute path of a place; None is the root's."""
    names = []
    while place is not None:
        names.append(place.name)
        place = place.above
    return b"/" + b"/".join(reversed(names))


def find_paths(get: Get, root: bytes, wanted: Iterable[int]) -> dict[int, _Place | None]:
    """Return a place of each wanted inode that has one, by walking down from the root until all are found.

    Directories may be nested deeper than any path is long. Raises MalformedError for one that is in itself.
    """
    missing = set(wanted)
    found: dict[int, _Place | None] = {}
    if ROOT in missing:
        missing.discard(ROOT)
        found[ROOT] = None
    stack: list[tuple[int, _Place | None, Iterator[tuple[bytes, int, bool]]]] = []
    above = set[int]()
    if missing:
        stack.append((ROOT, None, _entries(get, root, ROOT)))
        above.add(ROOT)
    while stack and missing:
        directory, place, entries = stack[-1]
        for name, ino, is_dir in entries:
            if ino in missing:
                missing.discard(ino)
                found[ino] = _Place(place, name)
            if is_dir:
                if ino in above:
                    raise MalformedError("a directory is in itself")
                stack.append((ino, _Place(place, name), _entries(get, root, ino)))
                above.add(ino)
                break
        else:
            stack.pop()
            above.discard(directory)
    return found


def _entries(get: Get, root: bytes, ino: int) -> Iterator[tuple[bytes, int, bool]]:
    prefix = entry_prefix(ino)
    for key, data in scan(get, root, prefix, prefix_end(prefix)):
        name = split_entry_key(key)[1]
        entry = decode_entry(name, data)
        yield name, entry.inode, stat.S_ISDIR(entry.type)
