"""What a node of the tree is, and the one encoding it has.

Pure. A tree is an ordered map from keys (1 to TREE_KEY_MAX bytes) to values (at most TREE_VALUE_MAX bytes). A `Leaf` holds
items; an `Inner` node of level L holds, for each child of level L - 1, the child's first key and its reference. A reference
is whatever `put` returned for the child's encoding (32 or 64 bytes), opaque here. The empty tree has no node and the root
b""; every other tree is named by its root node's reference.

Format: canonical MessagePack, `[0, [key...], [value...]]` for a leaf and `[1, level, [first key...], [ref...]]` for an inner
node. Where nodes end is decided in `update`; `decode_node` checks the part of that rule that one node shows.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import lt
from typing import ClassVar, Final, TypeAlias

import msgspec

from fsdecloud import codec
from fsdecloud.errors import FsdecloudError, MalformedError
from fsdecloud.limits import NODE_DECODE_MAX, NODE_MAX, NODE_MAX_ITEMS, TREE_KEY_MAX, TREE_VALUE_MAX

ITEM_OVERHEAD: Final = 4
"""Bytes an item counts for beyond its key and value: their length prefixes. Part of the format: it decides borders."""

LEVEL_MAX: Final = 63
"""An inner node has at least two children on all but the right edge, so no real tree is ever this tall."""

REF_MAX: Final = 64


class Leaf(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=0, gc=False):
    """The items of one stretch of keys, strictly ascending; never empty."""

    keys: tuple[bytes, ...]
    values: tuple[bytes, ...]

    level: ClassVar[int] = 0


class Inner(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=1, gc=False):
    """The children of one stretch of keys: `keys[i]` is the first key below `refs[i]`. `level` is 1 above the leaves."""

    level: int
    keys: tuple[bytes, ...]
    refs: tuple[bytes, ...]


Node: TypeAlias = Leaf | Inner

Get: TypeAlias = Callable[[bytes], Node]
"""Return the node that a reference names; raises NodeMissing when it is not at hand. Called very often: cache behind it."""

Put: TypeAlias = Callable[[bytes], bytes]
"""Take an encoded node, return its reference (32 or 64 bytes): a function of the bytes alone, so that equal trees have
equal roots. The same node may be put more than once."""


class NodeMissing(FsdecloudError):
    """A node is not at hand: fetch `ref`, then repeat the whole call (every function of this package may be repeated)."""

    def __init__(self, ref: bytes) -> None:
        super().__init__(f"tree node {ref[:8].hex()} is not at hand")
        self.ref = ref


def encode_node(node: Node) -> bytes:
    """Return the node's canonical encoding."""
    return codec.encode(node)


def decode_node(data: bytes) -> Node:
    """Return the node whose canonical encoding is exactly `data`.

    Raises MalformedError for anything that `update` could not have written: unsorted or repeated keys, sizes or counts over
    the limits, a reference of odd length, another encoding of the same node. That a child fits its parent is checked by
    those who have both (`load_child`).
    """
    if len(data) > NODE_DECODE_MAX:
        raise MalformedError(f"a tree node has at most {NODE_DECODE_MAX} bytes, not {len(data)}")
    node: Node = codec.decode(data, Node)  # type: ignore[arg-type]  # a union is a form, not a class, for mypy
    keys = node.keys
    contents = node.values if isinstance(node, Leaf) else node.refs
    count = len(keys)
    if not count or count > NODE_MAX_ITEMS or len(contents) != count:
        raise MalformedError(
            f"a tree node has 1 to {NODE_MAX_ITEMS} items, not {count} keys with {len(contents)} values"
        )
    if not keys[0] or not all(map(lt, keys, keys[1:])):
        raise MalformedError("the keys of a tree node are not ascending")
    key_sizes = list(map(len, keys))
    sizes = list(map(len, contents))
    if max(key_sizes) > TREE_KEY_MAX:
        raise MalformedError(f"a tree key has at most {TREE_KEY_MAX} bytes")
    if isinstance(node, Inner):
        if not 1 <= node.level <= LEVEL_MAX:
            raise MalformedError(f"an inner tree node of level {node.level}")
        if min(sizes) != max(sizes) or not 0 < sizes[0] <= REF_MAX:
            raise MalformedError(f"tree references of one length up to {REF_MAX} expected")
    elif max(sizes) > TREE_VALUE_MAX:
        raise MalformedError(f"a tree value has at most {TREE_VALUE_MAX} bytes")
    before_last = sum(key_sizes) - key_sizes[-1] + sum(sizes) - sizes[-1] + ITEM_OVERHEAD * (count - 1)
    if before_last >= NODE_MAX:
        raise MalformedError("a tree node continues past its forced border")
    return node


def load_child(get: Get, parent: Inner, index: int, upper: bytes | None) -> Node:
    """Return child `index` of `parent`, whose keys must all lie below `upper` (None: no bound).

    Raises MalformedError when the child's level or keys are not those the parent promises, so that no walk can run in
    circles or out of order whatever `get` returns; NodeMissing from `get`.
    """
    child = get(parent.refs[index])
    if (
        child.level != parent.level - 1
        or child.keys[0] != parent.keys[index]
        or (upper is not None and child.keys[-1] >= upper)
    ):
        raise MalformedError("a tree node does not fit its place below its parent")
    return child


def child_upper(parent: Inner, index: int, upper: bytes | None) -> bytes | None:
    """Return the bound below which all keys of child `index` lie, when those of `parent` lie below `upper`."""
    return parent.keys[index + 1] if index + 1 < len(parent.keys) else upper
