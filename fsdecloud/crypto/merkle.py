"""Binary Merkle trees over lists of byte strings: operation records of an anchor, transactions of a block.

Pure. The split is RFC 6962's (an odd node moves up unpaired, it is never doubled: CVE-2012-2459). Leaves, inner nodes
and the root are hashed under three BLAKE3 contexts, so that none can pass for another, and the root commits to the
number of leaves. Not here: the search tree (`fsdecloud.tree`), BLAKE3's own tree (`bao`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from blake3 import blake3

from fsdecloud.crypto.keys import CONTEXT_PREFIX

HASH_SIZE: Final = 32
COUNT_MAX: Final = (1 << 64) - 1

# Copying a prepared hasher saves hashing the context again. Invariant: these three are never updated.
_LEAF: Final = blake3(derive_key_context=CONTEXT_PREFIX + "merkle leaf")
_NODE: Final = blake3(derive_key_context=CONTEXT_PREFIX + "merkle node")
_ROOT: Final = blake3(derive_key_context=CONTEXT_PREFIX + "merkle root")


def root(leaves: Sequence[bytes]) -> bytes:
    """Return the 32-byte root over `leaves` in their order; an empty list has a root too."""
    level = [_leaf(leaf) for leaf in leaves]
    while len(level) > 1:
        level = _parents(level)
    return _root(len(leaves), level[0] if level else b"")


def path(leaves: Sequence[bytes], i: int) -> tuple[bytes, ...]:
    """Return the sibling hashes from leaf `i` up. Raises IndexError when there is no such leaf. Costs one `root`."""
    if not 0 <= i < len(leaves):
        raise IndexError(f"leaf {i} of {len(leaves)}")
    siblings: list[bytes] = []
    level = [_leaf(leaf) for leaf in leaves]
    while len(level) > 1:
        if (i ^ 1) < len(level):
            siblings.append(level[i ^ 1])
        level = _parents(level)
        i >>= 1
    return tuple(siblings)


def verify(root: bytes, count: int, i: int, leaf: bytes, path: Sequence[bytes]) -> bool:
    """Tell whether `leaf` is number `i` of the `count` leaves under `root`. Any input gives an answer, none raises."""
    if not 0 <= i < count <= COUNT_MAX:
        return False
    digest = _leaf(leaf)
    siblings = iter(path)
    width = count
    while width > 1:
        if (i ^ 1) < width:
            sibling = next(siblings, b"")
            if len(sibling) != HASH_SIZE:
                return False
            digest = _node(sibling, digest) if i & 1 else _node(digest, sibling)
        i >>= 1
        width = (width + 1) >> 1
    return next(siblings, None) is None and _root(count, digest) == root


def _parents(level: list[bytes]) -> list[bytes]:
    above = [_node(level[j], level[j + 1]) for j in range(0, len(level) - 1, 2)]
    if len(level) & 1:
        above.append(level[-1])
    return above


def _leaf(leaf: bytes) -> bytes:
    return _LEAF.copy().update(leaf).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return _NODE.copy().update(left + right).digest()


def _root(count: int, top: bytes) -> bytes:
    return _ROOT.copy().update(count.to_bytes(8, "big") + top).digest()
