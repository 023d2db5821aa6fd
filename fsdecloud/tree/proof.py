"""How one who has only the root is convinced of a key's value, or that it has none.

Pure. A proof is the encoded nodes from the root towards the key, as far as they exist. It shows the value if whoever signed
the root built the tree by the rules; which nodes the checker accepts depends on their bytes and the root alone.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence

from fsdecloud.errors import MalformedError
from fsdecloud.tree.node import LEVEL_MAX, Get, Inner, Node, child_upper, decode_node, encode_node, load_child


def prove(get: Get, root: bytes, key: bytes) -> tuple[bytes, ...]:
    """Return the proof of what `key` has in the tree; empty for the empty tree. Raises NodeMissing, MalformedError."""
    if not root:
        return ()
    node = get(root)
    upper: bytes | None = None
    proof = [encode_node(node)]
    while isinstance(node, Inner) and (index := bisect_right(node.keys, key) - 1) >= 0:
        upper = child_upper(node, index, upper)
        node = load_child(get, node, index, upper)
        proof.append(encode_node(node))
    return tuple(proof)


def check_proof(ref_of: Callable[[bytes], bytes], root: bytes, key: bytes, proof: Sequence[bytes]) -> bytes | None:
    """Return the value of `key` in the tree named by `root`, None for no value, as `proof` shows.

    `ref_of` is what `put` would have returned for an encoded node. Raises MalformedError when the proof is not exactly the one
    that `prove` gives: a node not named by its parent, one missing, one too many.
    """
    if len(proof) > LEVEL_MAX + 1:
        raise MalformedError("a tree proof is longer than any tree is tall")
    remaining = iter(proof)

    def get(ref: bytes) -> Node:
        encoded = next(remaining, None)
        if encoded is None:
            raise MalformedError("a tree proof ends too early")
        if ref_of(encoded) != ref:
            raise MalformedError("a tree proof holds a node that its parent does not name")
        return decode_node(encoded)

    value = _follow(get, root, key) if root else None
    if next(remaining, None) is not None:
        raise MalformedError("a tree proof goes on past its end")
    return value


def _follow(get: Get, root: bytes, key: bytes) -> bytes | None:
    node = get(root)
    upper: bytes | None = None
    while isinstance(node, Inner):
        index = bisect_right(node.keys, key) - 1
        if index < 0:
            return None
        upper = child_upper(node, index, upper)
        node = load_child(get, node, index, upper)
    index = bisect_left(node.keys, key)
    return node.values[index] if index < len(node.keys) and node.keys[index] == key else None


def prove_keys(get: Get, root: bytes, keys: Sequence[bytes]) -> tuple[bytes, ...]:
    """Return one proof of what several keys have: the nodes of all their proofs, each once, in the order they are met.

    Raises NodeMissing, MalformedError.
    """
    found = (node for key in keys for node in prove(get, root, key))
    return tuple(dict.fromkeys(found))


def check_keys(
    ref_of: Callable[[bytes], bytes], root: bytes, keys: Sequence[bytes], proof: Sequence[bytes]
) -> tuple[bytes | None, ...]:
    """Return the value of each key in the tree named by `root`, None for no value, as a proof of `prove_keys` shows.

    Raises MalformedError when a node is missing, is there twice or belongs to none of the keys.
    """
    if len(proof) > len(keys) * (LEVEL_MAX + 1):
        raise MalformedError("a tree proof is longer than any tree is tall")
    nodes = {ref_of(encoded): encoded for encoded in proof}
    decoded: dict[bytes, Node] = {}

    def get(ref: bytes) -> Node:
        if ref not in decoded:
            if ref not in nodes:
                raise MalformedError("a tree proof lacks a node that is named in it")
            decoded[ref] = decode_node(nodes[ref])
        return decoded[ref]

    values = tuple(_follow(get, root, key) if root else None for key in keys)
    if len(decoded) != len(proof):
        raise MalformedError("a tree proof holds a node that nothing in it leads to")
    return values
