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


def diff(get: Get, a: bytes, b: bytes) -> Iterator[tuple[bytes, bytes | None, bytes | None]]:
    """Yield, ascending, (key, value in a, value in b) for each key whose values differ; None stands for no value.

    Raises NodeMissing, MalformedError.
    """
    left, right = _Stream(get, a), _Stream(get, b)
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

    __slots__ = ("_get", "_stack", "content", "is_done", "key", "level")

    def __init__(self, get: Get, root: bytes) -> None:
        self._get = get
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

    def skip(self) -> None:
        """Go on to what follows the head."""
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
