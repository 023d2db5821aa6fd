"""What differs between two trees, and which nodes a tree consists of.

Pure. `diff` compares two roots of the same tree at different times (same border key, same references): equal parts have equal
references and are skipped unread, so it costs what changed. NodeMissing from `get` ends an iterator; start a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fsdecloud.errors import MalformedError
from fsdecloud.tree.node import Get, Inner, Node, child_upper, load_child

_ITEM = -1
"""Level of an item, in the sense in which a leaf has level 0."""


def diff(
    get: Get, a: bytes, b: bytes, start: bytes = b"", stop: bytes | None = None
) -> Iterator[tuple[bytes, bytes | None, bytes | None]]:
    """Yield, ascending, (key, value in a, value in b) for each key whose values differ; None stands for no value.

    Only keys with start <= key, and key < stop unless stop is None. Raises NodeMissing, MalformedError.
    """
    left, right = _Stream(get, a, start, stop), _Stream(get, b, start, stop)
    while not (left.is_done and right.is_done):
        if right.is_done or (not left.is_done and left.key < right.key):
            if left.level == _ITEM:
                yield left.key, left.content, None
                left.skip()
            else:
                left.expand()
        elif left.is_done or right.key < left.key:
            if right.level == _ITEM:
                yield right.key, None, right.content
                right.skip()
            else:
                right.expand()
        # The same first key. Only heads of one level can be equal, so the taller one is opened first.
        elif left.level != right.level:
            (left if left.level > right.level else right).expand()
        elif left.content == right.content:
            left.skip()
            right.skip()
        elif left.level == _ITEM:
            yield left.key, left.content, right.content
            left.skip()
            right.skip()
        else:
            left.expand()
            right.expand()


class _Stream:
    """A tree as a sequence of heads from left to right: subtrees (level >= 0, a ref) that `expand` opens, and items.

    `key` is the head's (first) key, `content` its ref or value.
    """

    __slots__ = ("_get", "_stack", "_start", "_stop", "content", "is_done", "key", "level")

    def __init__(self, get: Get, root: bytes, start: bytes, stop: bytes | None) -> None:
        self._get = get
        self._start = start
        self._stop = stop
        # From the top down: a node, the position in it of the head or of the subtree the head lies in, its keys' bound.
        self._stack: list[tuple[Node, int, bytes | None]] = []
        self.is_done = not root
        self.key = b""
        self.content = root
        self.level = _ITEM
        if root:
            node = get(root)
            self.key, self.level = node.keys[0], node.level

    def expand(self) -> None:
        """Replace the head, a subtree, by what lies directly below it."""
        if not self._stack:
            node, upper = self._get(self.content), None
        else:
            parent, index, bound = self._stack[-1]
            if not isinstance(parent, Inner):
                raise MalformedError("an item of a tree cannot be opened")
            upper = child_upper(parent, index, bound)
            node = load_child(self._get, parent, index, upper)
        self._stack.append((node, 0, upper))
        self._show()
        if self._is_before():
            self.skip()

    def skip(self) -> None:
        """Go on to what follows the head."""
        self._next()
        while not self.is_done and self._is_before():
            self._next()

    def _is_before(self) -> bool:
        """Whether all of the head lies before the range."""
        if self.key >= self._start:
            return False
        if self.level == _ITEM:
            return True
        parent, index, bound = self._stack[-1]
        upper = parent.keys[index + 1] if index + 1 < len(parent.keys) else bound
        return upper is not None and upper <= self._start

    def _next(self) -> None:
        while self._stack:
            node, index, upper = self._stack.pop()
            if index + 1 < len(node.keys):
                self._stack.append((node, index + 1, upper))
                self._show()
                return
        self.is_done = True

    def _show(self) -> None:
        node, index, _ = self._stack[-1]
        self.key = node.keys[index]
        self.level = node.level - 1
        self.content = node.refs[index] if isinstance(node, Inner) else node.values[index]
        self.is_done = self._stop is not None and self.key >= self._stop


def walk(get: Get, root: bytes, *, is_known: Callable[[bytes], bool] | None = None) -> Iterator[tuple[bytes, Node]]:
    """Yield (ref, node) for every node of the tree, parents before children, in key order.

    Nodes whose ref `is_known` are left out unread with all below them: pass a set's `__contains__`, and add what comes out,
    to walk several snapshots for the price of what they do not share. Raises NodeMissing, MalformedError.
    """
    if not root or (is_known is not None and is_known(root)):
        return
    node = get(root)
    yield root, node
    # Each entry: an inner node, the position of its next child, its keys' bound.
    stack: list[tuple[Inner, int, bytes | None]] = [(node, 0, None)] if isinstance(node, Inner) else []
    while stack:
        parent, index, bound = stack.pop()
        if index + 1 < len(parent.keys):
            stack.append((parent, index + 1, bound))
        ref = parent.refs[index]
        if is_known is not None and is_known(ref):
            continue
        upper = child_upper(parent, index, bound)
        node = load_child(get, parent, index, upper)
        yield ref, node
        if isinstance(node, Inner):
            stack.append((node, 0, upper))


def replaced(get: Get, old: bytes, new: bytes) -> Iterator[bytes]:
    """Yield the refs of the nodes of the tree `old` that are not in the tree `new`, reading only what differs.

    Level by level, so that memory follows what differs. Raises NodeMissing: start again after fetching the node.
    """
    if not old or old == new:
        return
    theirs = {old}
    ours = {new} if new else set()
    level = get(old).level
    # Bring the taller tree down to the other's height first: nodes of different levels are never the same.
    while ours and get(next(iter(ours))).level > level:
        ours = _children(get, ours)
    bottom = get(next(iter(ours))).level if ours else -1
    while theirs:
        if level <= bottom:
            theirs, ours = theirs - ours, ours - theirs
        yield from theirs
        if level == 0:
            return
        theirs = _children(get, theirs)
        if ours and level <= bottom:
            ours = _children(get, ours)
        level -= 1


def _children(get: Get, refs: set[bytes]) -> set[bytes]:
    return {child for ref in refs for child in _refs(get(ref))}


def _refs(node: Node) -> tuple[bytes, ...]:
    return node.refs if isinstance(node, Inner) else ()
