"""Pending metadata over the tree: two sorted layers in memory, read as one map.

    current   what changed since the last freeze
    frozen    what is being committed into the tree; empty between commits
    tree      the committed root

Pure: tree nodes come through a callable that raises NodeMissing while a node is not here. Keys that changed since the
last group commit are remembered, so that the journal gets each key once, with its last value.

**Invariant:** a key in `current` hides the same key in `frozen`, and both hide the tree. A value that arrives late for
the frozen generation (a chunk whose sealing began before the freeze) goes to `frozen` and never unhides itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sortedcontainers import SortedDict

from fsdecloud.fs.keys import prefix_end
from fsdecloud.tree.lookup import lookup, scan
from fsdecloud.tree.node import Get


class Overlay:
    """The volume's metadata as one ordered map. Called only from the event loop."""

    def __init__(self, get: Get, root: bytes) -> None:
        self._get = get
        self.root = root
        self.current: SortedDict[bytes, bytes | None] = SortedDict()
        self.frozen: SortedDict[bytes, bytes | None] = SortedDict()
        self.generation = 0
        self.is_committing = False
        self._unjournaled: set[bytes] = set()
        self.puts = 0
        """How often a key was set: tells whether something that failed had begun to change the map."""

    def get(self, key: bytes) -> bytes | None:
        """Return the key's value. Raises tree.NodeMissing while a tree node is not in memory."""
        if key in self.current:
            return self.current[key]  # type: ignore[no-any-return]
        if key in self.frozen:
            return self.frozen[key]  # type: ignore[no-any-return]
        return lookup(self._get, self.root, key) if self.root else None

    def get_at(self, generation: int, key: bytes) -> bytes | None:
        """Return the key's value in the generation that `put_at` would write to. Raises tree.NodeMissing."""
        if generation == self.generation or not self.is_committing:
            return self.get(key)
        if key in self.frozen:
            return self.frozen[key]  # type: ignore[no-any-return]
        return lookup(self._get, self.root, key) if self.root else None

    def at(self, root: bytes) -> Overlay:
        """Return another state of the same tree, without pending changes."""
        return Overlay(self._get, root)

    def put(self, key: bytes, value: bytes | None) -> None:
        """Set a key; None deletes it."""
        self.puts += 1
        self.current[key] = value
        self._unjournaled.add(key)

    def put_at(self, generation: int, key: bytes, value: bytes | None) -> None:
        """Set a key in the generation it belongs to: the frozen one, or the current."""
        if generation == self.generation or not self.is_committing:
            self.put(key, value)
            return
        self.frozen[key] = value
        if key not in self.current:
            self._unjournaled.add(key)

    def scan(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the live pairs with start <= key < stop, ascending. The map must not change meanwhile.

        Lazy: who stops after some pairs has paid for those, however many there are.
        Raises tree.NodeMissing from within the iteration; start again after fetching the node.
        """
        base = scan(self._get, self.root, start, stop) if self.root else iter(())
        for key, value in _merged(base, self.pending(start, stop)):
            if value is not None:
                yield key, value

    def pending(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes | None]]:
        """Yield what is set over the tree with start <= key < stop, ascending; None is deleted. The map must not change."""
        return _merged(_pairs(self.frozen, start, stop), _pairs(self.current, start, stop))

    def scan_prefix(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the live pairs whose key starts with `prefix`."""
        return self.scan(prefix, prefix_end(prefix))

    def take_unjournaled(self) -> list[tuple[bytes, bytes | None]]:
        """Return what changed since the last call, for the journal."""
        keys, self._unjournaled = self._unjournaled, set()
        return [(key, self.current[key] if key in self.current else self.frozen[key]) for key in keys]

    def restore_unjournaled(self, keys: list[bytes]) -> None:
        """Give keys back after a group commit that failed."""
        self._unjournaled.update(key for key in keys if key in self.current or key in self.frozen)

    def freeze(self) -> int:
        """Begin a commit: the current layer becomes the frozen one. Returns the frozen generation's number."""
        assert not self.is_committing, "one commit at a time"
        self.is_committing = True
        self.frozen = self.current
        self.current = SortedDict()
        self.generation += 1
        return self.generation - 1

    def commit(self, root: bytes) -> None:
        """End a commit: the frozen layer is in the tree with this root.

        The transaction that made the root durable has to take along what the journal lacked: an older row of a late value may
        stand behind the place that the journal is cut at, and would hide the tree's when it is read again.
        """
        self._unjournaled -= self.frozen.keys() - self.current.keys()
        self.root = root
        self.frozen = SortedDict()
        self.is_committing = False

    def thaw(self) -> None:
        """Give up a commit: the frozen layer goes back under the current one."""
        self.frozen.update(self.current)
        self.current = self.frozen
        self.frozen = SortedDict()
        self.is_committing = False

    @property
    def has_changes(self) -> bool:
        """Whether anything waits for a commit."""
        return bool(self.current)


def _pairs(layer: SortedDict[bytes, bytes | None], start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes | None]]:
    for key in layer.irange(start, stop, (True, False)):
        yield key, layer[key]


def _merged(
    lower: Iterable[tuple[bytes, bytes | None]], upper: Iterable[tuple[bytes, bytes | None]]
) -> Iterator[tuple[bytes, bytes | None]]:
    """Merge two ascending streams of pairs; of equal keys the upper one's counts."""
    waiting = iter(upper)
    above = next(waiting, None)
    for pair in lower:
        while above is not None and above[0] < pair[0]:
            yield above
            above = next(waiting, None)
        if above is not None and above[0] == pair[0]:
            yield above
            above = next(waiting, None)
        else:
            yield pair
    if above is not None:
        yield above
        yield from waiting
