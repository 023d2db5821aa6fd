"""How a tree changes: a sorted batch of changes gives a new root, and equal contents give equal roots.

Pure. Where a node ends depends on nothing but the items since the border before it, so any history of changes that leads
to some content leads to the same nodes. **The border rule**, of every level (items of an inner node are its children's
first keys and refs): going through the items in order, with `count` and `bytes` (key + value + ITEM_OVERHEAD each) of the
node so far, this item included, the node ends after an item when

    count = NODE_MAX_ITEMS, or bytes >= NODE_MAX                                                    (forced), or
    bytes >= NODE_MIN and H < 2^32 * max(item bytes, LIGHT_ITEM) / NODE_TARGET                      (by hash)

where H is the first 4 bytes, big-endian, of BLAKE3 keyed with the border key over the level's byte and the item's key. The
probability grows with the item's size so that nodes come to NODE_TARGET bytes whatever the items are, and is kept up for
light items so that few borders are forced (a forced border moves with every insertion before it, one by hash stays).
NODE_MIN is more than two items of an inner node, so each level has less than half of the nodes of the one below.
The lowest level that has a single node is the top: that node is the root. No items: the root is b"".

An update works upward level by level: in each it rewrites the nodes that changes fall into, and those after them until an
old border is a border again, then hands the level above the children that went and came.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Generator, Iterable, Sequence
from typing import Final, TypeAlias

from blake3 import blake3

from fsdecloud.limits import NODE_MAX, NODE_MAX_ITEMS, NODE_MIN, NODE_TARGET, TREE_KEY_MAX, TREE_VALUE_MAX
from fsdecloud.tree.node import (
    ITEM_OVERHEAD,
    REF_MAX,
    Get,
    Inner,
    Leaf,
    Node,
    Put,
    child_upper,
    encode_node,
    load_child,
)

LIGHT_ITEM: Final = NODE_TARGET // 64
"""An item counts as at least this heavy when the hash decides: a mean of 64 items is well below the forced 128."""

_SLICE: Final = 512
"""Changes merged between two yields, so that building a large tree lets an event loop breathe."""

Steps: TypeAlias = Generator[None, None, bytes]

assert NODE_MIN > 2 * (TREE_KEY_MAX + REF_MAX + ITEM_OVERHEAD), "an inner node ends after two children at least"
assert NODE_TARGET & (NODE_TARGET - 1) == 0, "the border rule divides 2^32 by it"


def update(get: Get, put: Put, border_key: bytes, root: bytes, changes: Iterable[tuple[bytes, bytes | None]]) -> bytes:
    """Return the root after `changes`: (key, value) sets, (key, None) deletes; sorted by key, the last of equal keys counts.

    `border_key` is 32 bytes, the same for the whole life of a tree. Only nodes that differ are put, children before their
    parents; when nothing differs, `root` itself is returned and nothing put. Costs what changes, not what exists.
    Raises ValueError for unsorted changes, or keys or values over the limits; NodeMissing and MalformedError from reading.
    What was put before a raise is a part of no tree; the call may be repeated.
    """
    steps = update_steps(get, put, border_key, root, changes)
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return bytes(stop.value)


def update_steps(
    get: Get, put: Put, border_key: bytes, root: bytes, changes: Iterable[tuple[bytes, bytes | None]]
) -> Steps:
    """Do as `update`, yielding after each node (0.2 ms) once the changes are checked; the return value is the new root.

    For an event loop: `root = yield from ...`, or a checkpoint each few steps. Neither the tree's nodes nor `changes` may
    change meanwhile; abandoning the generator is harmless.
    """
    keys, values = _check_changes(changes)
    top = get(root) if root else None
    border = blake3(key=border_key)
    level = 0
    while keys:
        old_level = _OldLevel(get, top, level) if top is not None and level <= top.level else None
        new_level = _NewLevel(put, border, level)
        is_whole = yield from _update_level(old_level, new_level, keys, values)
        if is_whole and not new_level.count:
            return b""
        if is_whole and new_level.count == 1:
            only_child = new_level.only_child()
            return new_level.finish() if only_child is None else _top_of(get, only_child)
        new_level.finish()
        parents = new_level.parents
        keys = sorted(parents)
        values = [parents[key] for key in keys]
        level += 1
    return root


def _check_changes(changes: Iterable[tuple[bytes, bytes | None]]) -> tuple[list[bytes], list[bytes | None]]:
    keys: list[bytes] = []
    values: list[bytes | None] = []
    last = b""
    for key, value in changes:
        if key > last:
            keys.append(key)
            values.append(value)
            last = key
        elif key == last and keys:
            values[-1] = value
        else:
            raise ValueError(f"tree changes must be sorted by key, and keys not empty: {key!r} after {last!r}")
        if len(key) > TREE_KEY_MAX or (value is not None and len(value) > TREE_VALUE_MAX):
            raise ValueError(f"a tree key has at most {TREE_KEY_MAX} bytes, a value {TREE_VALUE_MAX}")
    return keys, values


class _OldLevel:
    """The nodes of one level of the tree before the update, visited from left to right by `seek`.

    After a seek: `keys` and `values` are the items of the node whose place the key lies in, `upper` the first key of the node
    after it (None: it is the last), `is_first` whether it is the first.
    """

    __slots__ = ("_get", "_level", "_path", "_top", "is_first", "keys", "upper", "values")

    def __init__(self, get: Get, top: Node, level: int) -> None:
        self._get = get
        self._top = top
        self._level = level
        # From the top down to just above the level: node, bound above all its keys, whether it is the first of its level.
        self._path: list[tuple[Inner, bytes | None, bool]] = []
        self.keys: tuple[bytes, ...] = ()
        self.values: tuple[bytes, ...] = ()
        self.upper: bytes | None = None
        self.is_first = True

    def seek(self, key: bytes) -> None:
        """Go to the node that holds `key` or would: keys of successive calls ascend."""
        path = self._path
        while path and (bound := path[-1][1]) is not None and key >= bound:
            path.pop()
        node: Node
        if path:
            node, upper, is_first = path.pop()
        else:
            node, upper, is_first = self._top, None, True
        while isinstance(node, Inner) and node.level > self._level:
            path.append((node, upper, is_first))
            index = max(bisect_right(node.keys, key) - 1, 0)
            bound = child_upper(node, index, upper)
            node = load_child(self._get, node, index, bound)
            upper = bound
            is_first = is_first and index == 0
        self.keys = node.keys
        self.values = node.refs if isinstance(node, Inner) else node.values
        self.upper = upper
        self.is_first = is_first


class _NewLevel:
    """Cuts the items of one level into nodes by the border rule and puts them.

    `parents` collects the changes for the level above: first keys of the nodes that went (None) and came (their refs).
    The latest node is held back until there is another or `finish` is called: a node that turns out to be the only one of
    its level may not have to exist.
    """

    __slots__ = ("_bytes", "_hasher", "_held", "_keys", "_level", "_put", "_values", "count", "parents")

    def __init__(self, put: Put, border: blake3, level: int) -> None:
        self._put = put
        self._hasher = border.copy()
        self._hasher.update(bytes([level]))
        self._level = level
        self._keys: list[bytes] = []
        self._values: list[bytes] = []
        self._bytes = 0
        self._held: Node | None = None
        self.count = 0
        self.parents: dict[bytes, bytes | None] = {}

    @property
    def is_at_border(self) -> bool:
        """Whether the items so far end with a border (or there are none)."""
        return not self._keys

    def add(self, keys: Sequence[bytes], values: Sequence[bytes]) -> Generator[None, None, None]:
        """Append items; yield after each node that they end."""
        size_so_far = self._bytes
        count = len(self._keys)
        copy_hasher = self._hasher.copy
        begin = 0
        for position, key in enumerate(keys):
            size = len(key) + len(values[position]) + ITEM_OVERHEAD
            size_so_far += size
            count += 1
            if count < NODE_MAX_ITEMS and size_so_far < NODE_MAX:
                if size_so_far < NODE_MIN:
                    continue
                hasher = copy_hasher()
                hasher.update(key)
                weight = size if size > LIGHT_ITEM else LIGHT_ITEM  # noqa: FURB136 - a call for each item of the tree
                if int.from_bytes(hasher.digest(4), "big") >= (weight << 32) // NODE_TARGET:
                    continue
            self._keys += keys[begin : position + 1]
            self._values += values[begin : position + 1]
            self.end_node()
            yield
            begin = position + 1
            size_so_far = count = 0
        self._keys += keys[begin:]
        self._values += values[begin:]
        self._bytes = size_so_far

    def end_node(self) -> None:
        """End the node here; nothing happens at a border."""
        if not self._keys:
            return
        self._release()
        keys, values = tuple(self._keys), tuple(self._values)
        self._held = Inner(self._level, keys, values) if self._level else Leaf(keys, values)
        self.count += 1
        self._keys.clear()
        self._values.clear()
        self._bytes = 0

    def only_child(self) -> bytes | None:
        """Return the ref of the only child of the node held back, None if that is a leaf or has more children."""
        node = self._held
        return node.refs[0] if isinstance(node, Inner) and len(node.refs) == 1 else None

    def finish(self) -> bytes:
        """Put the node held back, if any; return its reference."""
        return self._release()

    def _release(self) -> bytes:
        node = self._held
        if node is None:
            return b""
        self._held = None
        ref = self._put(encode_node(node))
        self.parents[node.keys[0]] = ref
        return ref


def _update_level(
    old: _OldLevel | None, new: _NewLevel, keys: Sequence[bytes], values: Sequence[bytes | None]
) -> Generator[None, None, bool]:
    """Apply changes (at least one) to one level; return whether `new` made all of its nodes (none was left as it was)."""
    at, end = 0, len(keys)
    upper: bytes | None = None
    old_keys: tuple[bytes, ...] = ()
    old_values: tuple[bytes, ...] = ()
    # Invariant: while `is_whole`, every old node visited so far was replaced and none was skipped.
    is_whole = True
    is_first_round = True
    while True:
        if old is not None:
            # In the middle of a new node the next old one continues it; at a border, old nodes without changes stay.
            old.seek(keys[at] if new.is_at_border or upper is None else upper)
            is_whole = is_whole and (old.is_first if is_first_round else old.keys[0] == upper)
            upper, old_keys, old_values = old.upper, old.keys, old.values
        is_first_round = False
        begin = at
        at = end if upper is None else bisect_left(keys, upper, at, end)
        if new.is_at_border and _is_unchanged(old_keys, old_values, keys[begin:at], values[begin:at]):
            is_whole = False
            yield
        else:
            if old_keys:
                new.parents[old_keys[0]] = None
            yield from _merge(new, old_keys, old_values, keys[begin:at], values[begin:at])
        if upper is None:
            new.end_node()
            return is_whole
        if at == end and new.is_at_border:
            return False


def _is_unchanged(
    old_keys: Sequence[bytes], old_values: Sequence[bytes], keys: Sequence[bytes], values: Sequence[bytes | None]
) -> bool:
    for key, value in zip(keys, values, strict=True):
        index = bisect_left(old_keys, key)
        is_present = index < len(old_keys) and old_keys[index] == key
        if (old_values[index] if is_present else None) != value:
            return False
    return True


def _merge(
    new: _NewLevel,
    old_keys: Sequence[bytes],
    old_values: Sequence[bytes],
    keys: Sequence[bytes],
    values: Sequence[bytes | None],
) -> Generator[None, None, None]:
    """Add one old node's items, with the changes that fall into it, to the new level."""
    position = begin = 0
    while begin < len(keys):
        middle = begin + _SLICE
        cut = bisect_left(old_keys, keys[middle]) if middle < len(keys) else len(old_keys)
        items = dict(zip(old_keys[position:cut], old_values[position:cut], strict=True))
        for key, value in zip(keys[begin:middle], values[begin:middle], strict=True):
            if value is None:
                items.pop(key, None)
            else:
                items[key] = value
        merged = sorted(items)
        yield from new.add(merged, [items[key] for key in merged])
        yield
        position, begin = cut, middle
    if position < len(old_keys):
        yield from new.add(old_keys[position:], old_values[position:])


def _top_of(get: Get, ref: bytes) -> bytes:
    """Return the root of the tree whose only node of some level is `ref`: below single children there is nothing else."""
    while isinstance(node := get(ref), Inner) and len(node.refs) == 1:
        ref = node.refs[0]
    return ref
