"""How a tree is read: one key, a range, and which nodes a read will need.

Pure. Every function takes `get` (see `node.Get`) and a root; the root b"" is the empty tree. NodeMissing from `get` passes
through: fetch its ref and call again. To fetch in few rounds instead of one node at a time, ask `missing` or
`missing_range` first, fetch all they name, and repeat until they name none.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence

from fsdecloud.errors import MalformedError
from fsdecloud.tree.node import Get, Inner, Leaf, Node, NodeMissing, child_upper, load_child


def lookup(get: Get, root: bytes, key: bytes) -> bytes | None:
    """Return the value of `key`, None when it has none. Reads one node of each level. Raises NodeMissing, MalformedError."""
    if not root:
        return None
    node = get(root)
    while isinstance(node, Inner):
        index = bisect_right(node.keys, key) - 1
        if index < 0:
            return None
        level = node.level
        node = get(node.refs[index])
        if node.level != level - 1:
            raise MalformedError("a tree node of the wrong level")
    keys = node.keys
    index = bisect_left(keys, key)
    if index < len(keys) and keys[index] == key:
        return node.values[index]
    return None


def scan(get: Get, root: bytes, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
    r"""Yield the (key, value) pairs with start <= key, and key < stop unless stop is None, ascending, reading nodes as needed.

    After NodeMissing the iterator is finished: start a new one at the last key + b"\0".
    """
    for leaf in scan_leaves(get, root, start, stop):
        keys = leaf.keys
        low = bisect_left(keys, start)
        high = len(keys) if stop is None else bisect_left(keys, stop)
        yield from zip(keys[low:high], leaf.values[low:high], strict=True)


def scan_leaves(get: Get, root: bytes, start: bytes, stop: bytes | None) -> Iterator[Leaf]:
    """Yield, ascending, the leaves that may hold keys of start <= key < stop (None: no end). For those who want them whole."""
    if not root or (stop is not None and stop <= start):
        return
    # Each entry: an inner node, its next child, the bound above all its keys.
    stack: list[tuple[Inner, int, bytes | None]] = []
    node: Node = get(root)
    upper: bytes | None = None
    while True:
        while isinstance(node, Inner):
            index = max(bisect_right(node.keys, start) - 1, 0)
            stack.append((node, index + 1, upper))
            parent, upper_of_parent = node, upper
            upper = child_upper(parent, index, upper_of_parent)
            node = load_child(get, parent, index, upper)
        yield node
        while stack:
            parent, index, upper_of_parent = stack.pop()
            if index < len(parent.keys):
                break
        else:
            return
        if stop is not None and parent.keys[index] >= stop:
            return
        stack.append((parent, index + 1, upper_of_parent))
        upper = child_upper(parent, index, upper_of_parent)
        node = load_child(get, parent, index, upper)


def leaf_at(get: Get, root: bytes, key: bytes) -> tuple[bytes, bytes | None]:
    """Return what is missing on the path to `key`, b"" if nothing is, and the bound above all keys below it, or of the leaf.

    For those who go on behind what cannot be had. The bound is None where there is none. Raises MalformedError.
    """
    ref, upper = root, None
    try:
        node = get(ref) if root else None
        while isinstance(node, Inner):
            index = max(bisect_right(node.keys, key) - 1, 0)
            parent, above = node, upper
            ref, upper = parent.refs[index], child_upper(parent, index, above)
            node = load_child(get, parent, index, upper)
    except NodeMissing:
        return ref, upper
    return b"", upper


def scan_prefix(get: Get, root: bytes, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the (key, value) pairs whose key starts with `prefix`, ascending, as `scan` does."""
    return scan(get, root, prefix, prefix_end(prefix))


def prefix_end(prefix: bytes) -> bytes | None:
    """Return the least key above all keys that start with `prefix`; None when there is none (b"" or all 0xff)."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else None


def missing(get: Get, root: bytes, keys: Sequence[bytes]) -> list[bytes]:
    """Return the refs, each once, that `get` does not have on the paths to `keys` (ascending).

    One call finds the missing nodes nearest the root on each path: fetch them all at once and ask again, at most once for
    each level. Empty: `lookup` of each key will not raise NodeMissing, and `update` of them hardly ever.
    """
    found: dict[bytes, None] = {}
    # Each entry: a node, and the stretch of `keys` whose paths lead through it.
    pending = [(root, 0, len(keys))] if root and keys else []
    while pending:
        ref, low, high = pending.pop()
        try:
            node = get(ref)
        except NodeMissing as exc:
            found[exc.ref] = None
            continue
        if isinstance(node, Leaf):
            continue
        while low < high:
            index = max(bisect_right(node.keys, keys[low]) - 1, 0)
            bound = child_upper(node, index, None)
            cut = high if bound is None else bisect_left(keys, bound, low, high)
            pending.append((node.refs[index], low, cut))
            low = cut
    return list(found)


def missing_range(get: Get, root: bytes, start: bytes, stop: bytes | None) -> list[bytes]:
    """Return the refs, ascending, that `get` does not have below which keys of start <= key < stop may lie: as `missing`."""
    found: dict[bytes, None] = {}
    pending = [root] if root and (stop is None or start < stop) else []
    while pending:
        ref = pending.pop()
        try:
            node = get(ref)
        except NodeMissing as exc:
            found[exc.ref] = None
            continue
        if isinstance(node, Inner):
            low = max(bisect_right(node.keys, start) - 1, 0)
            high = len(node.keys) if stop is None else bisect_left(node.keys, stop)
            # The lowest child lies at the top of the stack, so that refs come out in key order.
            pending.extend(reversed(node.refs[low : max(high, low + 1)]))
    return list(found)
