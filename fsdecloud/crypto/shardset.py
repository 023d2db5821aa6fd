"""The set of shards of one deal as a tree of sums: 32 bytes commit to all of it, and each KiB in it has a number.

Pure. A set maps shard ids to lengths. Its leaves are the 1 KiB leaves of all its shards (`crypto.bao`), shard after shard in
the order of their ids, so that a number drawn from [0, leaves) names exactly one KiB of one shard.

**The tree** is the binary trie of the ids' bits (highest first) without nodes that have one child:

    tree(one shard)   = hash "shard" of id:32 length:8
    tree(more)        = hash "node" of tree(L):32 leaves(L):8 tree(R):32 leaves(R):8
    root              = hash "root" of tree:32 leaves:8 shards:8 bytes:8

where L and R are the ids without and with the first bit in which they differ, numbers are big-endian, and each hash is BLAKE3
with a context of its own. It depends on the contents alone: owner and peer come to the same root whatever the order of the
changes. Both count the whole set, and each node names the leaves on both its sides, so nobody can lead a challenge astray with
false sums (`crypto.possession`).

**Pages.** Ids are hashes, therefore the trie is balanced, and cut into pages that a store keeps: `get` returns the page at a
path of nibbles (one byte each, b"" is the first page). Up to PAGE_SHARDS shards below a path are one page; more are a page
of up to 16 children, one for each next nibble. So there are about log16(shards) pages on the way to a shard, and a change of
many shards reads and writes each page once. Pages depend on the contents alone, too; they are no part of what is hashed.

    page of shards    0:1 (id:32 length:4)*                                      ascending
    page of children  1:1 (nibble:1 tree:32 leaves:8 shards:8 height:1)*         ascending

Ids that share many bits can be ground, at a cost that doubles with each level: HEIGHT_MAX bounds what a proof has to carry.
Not here: proofs (`crypto.possession`), where pages lie and which revision is valid (`store.shardsets`).
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Final, NamedTuple, TypeAlias, TypeVar

import msgspec
from blake3 import blake3

from fsdecloud.crypto.bao import leaf_count
from fsdecloud.crypto.keys import CONTEXT_PREFIX
from fsdecloud.errors import MalformedError
from fsdecloud.types import ShardId

HASH_SIZE: Final = 32

LENGTH_MAX: Final = (1 << 32) - 1
"""Longest shard of a set."""

LEAVES_MAX: Final = (1 << 54) - 1
"""Most leaves of a set: its bytes fit in 64 bits."""

HEIGHT_MAX: Final = 48
"""Most nodes above a shard. Random ids hardly ever need more than one node over log2(n) + sqrt(2 log2(n)) - 3/2, a million of
them 25. Source: C. Knessl, W. Szpankowski, Limit laws for the height in PATRICIA tries (Journal of Algorithms, 2002)."""

PAGE_SHARDS: Final = 48
"""Most shards of one page: it then stays under half a page of LMDB, which would spread larger ones over several."""

_NIBBLES: Final = 64
_PAST_BITS: Final = 8 * HASH_SIZE + 1
_PAGE_OF_SHARDS: Final = 0
_PAGE_OF_CHILDREN: Final = 1

# Copying a prepared hasher saves hashing the context again. Invariant: these three are never updated.
_SHARD: Final = blake3(derive_key_context=CONTEXT_PREFIX + "shard set shard")
_NODE: Final = blake3(derive_key_context=CONTEXT_PREFIX + "shard set node")
_ROOT: Final = blake3(derive_key_context=CONTEXT_PREFIX + "shard set root")

_SHARD_ROW: Final = struct.Struct(">32sI")
_SHARD_DATA: Final = struct.Struct(">32sQ").pack
_NODE_DATA: Final = struct.Struct(">32sQ32sQ").pack
_CHILD_ROW: Final = struct.Struct(">B32sQQB")

T = TypeVar("T")

Get: TypeAlias = Callable[[bytes], bytes | None]
"""Return the page at a path, None when there is none."""


class ShardSet(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A set as a whole: what the root commits to, and its height."""

    tree: bytes
    """Hash of the trie, 32 zero bytes for the empty set."""
    leaves: int
    """Leaves of 1 KiB, the last of a shard counted as a whole one."""
    shards: int
    size: int
    """Bytes of all shards."""
    height: int
    """Most nodes above a shard."""

    @property
    def root(self) -> bytes:
        """The 32 bytes that commit to the set."""
        return root_hash(self.tree, self.leaves, self.shards, self.size)


EMPTY: Final = ShardSet(bytes(HASH_SIZE), 0, 0, 0, 0)


class SetDamaged(MalformedError):
    """The pages at hand are not those of the set."""


class Revised(NamedTuple):
    """What a change comes to."""

    shard_set: ShardSet
    pages: dict[bytes, bytes | None]
    """The pages that differ, by path; None for those that are no more."""


class Part(NamedTuple):
    """What is known of a part of the trie from above."""

    tree: bytes
    leaves: int
    shards: int
    height: int


class Node(NamedTuple):
    """A node of the trie: of two children, or of one shard, or a child whose page is not loaded."""

    tree: bytes
    leaves: int
    children: tuple[Node, Node] | None
    shard: ShardId | None
    length: int
    """Of the shard, else 0."""
    path: bytes
    """Of the page with what lies below, for a child of a page."""


def root_hash(tree: bytes, leaves: int, shards: int, size: int) -> bytes:
    """Return the root over a trie's hash and the set's counts of leaves, shards and bytes."""
    return _ROOT.copy().update(tree + struct.pack(">QQQ", leaves, shards, size)).digest()


def shard_hash(shard: bytes, length: int) -> bytes:
    """Return the hash of a trie of one shard."""
    return _SHARD.copy().update(_SHARD_DATA(shard, length)).digest()


def node_hash(left: bytes, left_leaves: int, right: bytes, right_leaves: int) -> bytes:
    """Return the hash of the node over two tries."""
    return _NODE.copy().update(_NODE_DATA(left, left_leaves, right, right_leaves)).digest()


def update(get: Get, shard_set: ShardSet, changes: Mapping[ShardId, int | None]) -> Revised:
    """Return the set after `changes`: the length of a shard that is to be in it, None for one that is not.

    What is in the set already, or not in it, may be given again and changes nothing. Each page on the way to a change is read
    and hashed once. Raises MalformedError for an id that is not 32 bytes, a length that is not 1 to LENGTH_MAX, or a set that
    would be too large or too high; SetDamaged when the pages are not those of the set.
    """
    for shard, length in changes.items():
        if len(shard) != HASH_SIZE or not (length is None or 1 <= length <= LENGTH_MAX):
            raise MalformedError(f"a shard set holds ids of {HASH_SIZE} bytes and lengths of 1 to {LENGTH_MAX}")
    if not changes:
        return Revised(shard_set, {})
    editor = _Editor(get)
    top = editor.update(b"", {bytes(shard): length for shard, length in changes.items()})
    if top is None:
        revised = EMPTY
    else:
        revised = ShardSet(top.tree, top.leaves, top.shards, shard_set.size + editor.grown, top.height)
    if revised.shards != shard_set.shards + editor.added or (top is None and shard_set.size + editor.grown):
        raise SetDamaged("these are not the pages of this set")
    if revised.height > HEIGHT_MAX:
        raise MalformedError(f"shard ids that share so many bits (over {HEIGHT_MAX} nodes) do not come by themselves")
    if revised.leaves > LEAVES_MAX:
        raise MalformedError(f"a shard set has at most {LEAVES_MAX} leaves")
    return Revised(revised, editor.changed())


def length_of(get: Get, shard: ShardId) -> int | None:
    """Return the length of a shard of the set, None if it is not in it. Raises SetDamaged."""
    for depth in range(_NIBBLES + 1):
        path = bytes(_nibble(shard, i) for i in range(depth))
        page = get(path)
        if page is None:
            return None
        if page[:1] == bytes([_PAGE_OF_SHARDS]):
            return _shards_of(page).get(shard)
    return None


def shards_of(get: Get, after: bytes = b"", path: bytes = b"") -> Iterator[tuple[ShardId, int]]:
    """Yield the shards below a path whose ids are higher than `after`, with their lengths, ascending. Raises SetDamaged."""
    page = get(path)
    if page is None:
        return
    if page[:1] == bytes([_PAGE_OF_SHARDS]):
        for shard, length in _shards_of(page).items():
            if shard > after:
                yield ShardId(shard), length
        return
    # Only below the path that leads to `after` there are ids on both sides of it.
    is_on_path = len(path) < 2 * len(after) and all(nibble == _nibble(after, i) for i, nibble in enumerate(path))
    first = _nibble(after, len(path)) if is_on_path else 0
    for nibble in _children_of(page, path):
        if nibble >= first:
            yield from shards_of(get, after, path + bytes([nibble]))


def leaf_shards(page: bytes) -> dict[bytes, int]:
    """Return the shards of a page and their lengths; none for a page of children, or b"". Raises SetDamaged."""
    return _shards_of(page) if page[:1] == bytes([_PAGE_OF_SHARDS]) else {}


def load(get: Get, path: bytes, tree: bytes, leaves: int) -> Node:
    """Return the trie of one page, which the node above names by hash and leaves.

    Raises SetDamaged when the page is missing or another one.
    """
    page = get(path)
    if page is None:
        raise SetDamaged("a page of the shard set is missing")
    if page[:1] == bytes([_PAGE_OF_SHARDS]):
        shards = _shards_of(page)
        keys = [int.from_bytes(shard, "big") for shard in shards]
        nodes = [
            Node(shard_hash(shard, length), leaf_count(length), None, ShardId(shard), length, b"")
            for shard, length in shards.items()
        ]
    else:
        children = _children_of(page, path)
        keys = list(children)
        nodes = [Node(part.tree, part.leaves, None, None, 0, path + bytes([n])) for n, part in children.items()]
    top = _trie(keys, nodes, 0, len(nodes))
    if (top.tree, top.leaves) != (tree, leaves):
        raise SetDamaged("a page of the shard set is not the one that belongs there")
    return top


class _Editor:
    """One update: pages read and made anew so far."""

    def __init__(self, get: Get) -> None:
        self._get = get
        self._old: dict[bytes, bytes | None] = {}
        self._new: dict[bytes, bytes | None] = {}
        self.grown = 0
        """Bytes that the set has more, or fewer."""
        self.added = 0
        """Shards likewise."""

    def changed(self) -> dict[bytes, bytes | None]:
        """Return the pages that differ."""
        return {path: page for path, page in self._new.items() if page != self._old.get(path)}

    def update(self, path: bytes, changes: dict[bytes, int | None]) -> Part | None:
        """Change what lies below `path`; return what it is then, None when nothing is left."""
        page = self._read(path)
        if page is None or page[:1] == bytes([_PAGE_OF_SHARDS]):
            shards = _shards_of(page) if page is not None else {}
            self._apply(shards, changes)
            return self._write(path, shards)
        children = _children_of(page, path)
        for nibble, group in _grouped(changes, len(path)).items():
            child = self.update(path + bytes([nibble]), group)
            if child is None:
                children.pop(nibble, None)
            else:
                children[nibble] = child
        if sum(child.shards for child in children.values()) > PAGE_SHARDS:
            return self._write_children(path, children)
        shards = {}
        for nibble in children:
            self._collect(path + bytes([nibble]), shards)
        return self._write(path, shards)

    def _apply(self, shards: dict[bytes, int], changes: dict[bytes, int | None]) -> None:
        for shard, length in changes.items():
            before = shards.pop(shard, None)
            if length is not None:
                shards[shard] = length
            self.grown += (length or 0) - (before or 0)
            self.added += (length is not None) - (before is not None)

    def _write(self, path: bytes, shards: dict[bytes, int]) -> Part | None:
        """Make the pages of these shards."""
        if not shards:
            self._new[path] = None
            return None
        if len(shards) <= PAGE_SHARDS:
            rows = sorted(shards.items())
            self._new[path] = bytes([_PAGE_OF_SHARDS]) + b"".join([_SHARD_ROW.pack(*row) for row in rows])
            tree, leaves, height = _fold(
                [int.from_bytes(shard, "big") for shard, _ in rows],
                [(shard_hash(shard, length), leaf_count(length), 0) for shard, length in rows],
            )
            return Part(tree, leaves, len(rows), height)
        if len(path) == _NIBBLES:
            raise AssertionError("different ids have different paths")
        children = {}
        for nibble, group in _grouped(shards, len(path)).items():
            child = self._write(path + bytes([nibble]), group)
            assert child is not None, "a group has a member"
            children[nibble] = child
        return self._write_children(path, children)

    def _write_children(self, path: bytes, children: dict[int, Part]) -> Part:
        rows = sorted(children.items())
        self._new[path] = bytes([_PAGE_OF_CHILDREN]) + b"".join(
            [_CHILD_ROW.pack(nibble, *part) for nibble, part in rows]
        )
        tree, leaves, height = _fold(
            [nibble for nibble, _ in rows], [(part.tree, part.leaves, part.height) for _, part in rows]
        )
        return Part(tree, leaves, sum(part.shards for _, part in rows), height)

    def _collect(self, path: bytes, shards: dict[bytes, int]) -> None:
        """Move the shards below `path` to `shards`; their pages go."""
        page = self._read(path)
        if page is None:
            raise SetDamaged("a page of the shard set is missing")
        if page[:1] == bytes([_PAGE_OF_SHARDS]):
            shards.update(_shards_of(page))
        else:
            for nibble in _children_of(page, path):
                self._collect(path + bytes([nibble]), shards)
        self._new[path] = None

    def _read(self, path: bytes) -> bytes | None:
        if path in self._new:
            return self._new[path]
        if path not in self._old:
            self._old[path] = self._get(path)
        return self._old[path]


def _nibble(shard: bytes, place: int) -> int:
    return shard[place >> 1] & 15 if place & 1 else shard[place >> 1] >> 4


def _grouped(shards: Mapping[bytes, T], depth: int) -> dict[int, dict[bytes, T]]:
    """Return the shards by their nibble at `depth`."""
    half, shift = depth >> 1, 0 if depth & 1 else 4
    groups: dict[int, dict[bytes, T]] = {}
    for shard, value in shards.items():
        groups.setdefault(shard[half] >> shift & 15, {})[shard] = value
    return groups


def _shards_of(page: bytes) -> dict[bytes, int]:
    """Return the shards of a page, ascending."""
    if not (len(page) - 1) % _SHARD_ROW.size and 1 < len(page) <= 1 + PAGE_SHARDS * _SHARD_ROW.size:
        rows = list(_SHARD_ROW.iter_unpack(page[1:]))
        if all(row[0] < after[0] for row, after in pairwise(rows)):
            return dict(rows)
    raise SetDamaged("a page of the shard set is damaged")


def _children_of(page: bytes, path: bytes) -> dict[int, Part]:
    """Return the children of a page, ascending."""
    is_whole = len(page) > 1 and not (len(page) - 1) % _CHILD_ROW.size
    if page[:1] == bytes([_PAGE_OF_CHILDREN]) and is_whole and len(path) < _NIBBLES:
        rows = list(_CHILD_ROW.iter_unpack(page[1:]))
        if all(row[0] < after[0] for row, after in pairwise(rows)) and rows[-1][0] < 16:
            return {row[0]: Part(*row[1:]) for row in rows}
    raise SetDamaged("a page of the shard set is damaged")


def _fold(keys: list[int], parts: list[tuple[bytes, int, int]]) -> tuple[bytes, int, int]:
    """Return hash, leaves and height of the trie over parts, each (hash, leaves, height), by their keys, which ascend.

    The trie of sorted keys is a Cartesian tree: of two neighbours, the higher the first bit in which they differ, the higher
    the node between them. So one pass with a stack makes it: a node is done when the next keys differ in a higher bit.
    """
    tree, leaves, height = parts[0]
    pending: list[tuple[int, bytes, int, int]] = []
    """Left parts of nodes that are not done, each with the node's bit (counted from 1), descending."""
    for i in range(1, len(keys) + 1):
        bit = (keys[i - 1] ^ keys[i]).bit_length() if i < len(keys) else _PAST_BITS
        while pending and pending[-1][0] < bit:
            _, left, left_leaves, left_height = pending.pop()
            tree = node_hash(left, left_leaves, tree, leaves)
            leaves += left_leaves
            height = max(height, left_height) + 1
        if i < len(keys):
            pending.append((bit, tree, leaves, height))
            tree, leaves, height = parts[i]
    return tree, leaves, height


def _trie(keys: list[int], nodes: list[Node], begin: int, end: int) -> Node:
    """Return the trie of `nodes` from `begin` to `end` over their keys' bits; keys ascend."""
    if end - begin == 1:
        return nodes[begin]
    bit = (keys[begin] ^ keys[end - 1]).bit_length() - 1
    cut = bisect_left(keys, keys[end - 1] >> bit << bit, begin, end)
    left, right = _trie(keys, nodes, begin, cut), _trie(keys, nodes, cut, end)
    tree = node_hash(left.tree, left.leaves, right.tree, right.leaves)
    return Node(tree, left.leaves + right.leaves, (left, right), None, 0, b"")
