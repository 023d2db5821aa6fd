"""Binary Merkle trees: against a recursive definition, every proof, and no confusion of leaf, node and root."""

from __future__ import annotations

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from fsdecloud.crypto import merkle


def _hash(use: str, data: bytes) -> bytes:
    return blake3(data, derive_key_context=f"fsdecloud 2026 v1 merkle {use}").digest()


def _subtree(leaves: list[bytes]) -> bytes:
    """RFC 6962, 2.1: split at the largest power of two below the number of leaves."""
    if len(leaves) == 1:
        return _hash("leaf", leaves[0])
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return _hash("node", _subtree(leaves[:split]) + _subtree(leaves[split:]))


def _leaves(count: int) -> list[bytes]:
    return [b"leaf %d" % i for i in range(count)]


@pytest.mark.parametrize("count", range(18))
def test_the_root_is_that_of_the_recursive_definition(count):
    leaves = _leaves(count)
    top = _subtree(leaves) if leaves else b""
    assert merkle.root(leaves) == _hash("root", count.to_bytes(8, "big") + top)


def test_the_format_never_changes():
    assert merkle.root([]).hex() == FROZEN[0]
    assert merkle.root([b"", b"a", b"bc"]).hex() == FROZEN[1]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 33])
def test_every_path_verifies_and_only_at_its_place(count):
    leaves = _leaves(count)
    root = merkle.root(leaves)
    for i, leaf in enumerate(leaves):
        path = merkle.path(leaves, i)
        assert len(path) <= count.bit_length()
        assert merkle.verify(root, count, i, leaf, path)
        for j in range(-1, count + 1):
            assert merkle.verify(root, count, j, leaf, path) == (j == i)
        for other in (count - 1, count + 1, 2 * count, 0):
            assert not merkle.verify(root, other, i, leaf, path)
        assert not merkle.verify(root, count, i, leaf + b"x", path)
        assert not merkle.verify(root, count, i, leaf, (*path, bytes(32)))
        for k in range(len(path)):
            assert not merkle.verify(root, count, i, leaf, path[:k] + path[k + 1 :])
            assert not merkle.verify(root, count, i, leaf, (*path[:k], path[k][:31], *path[k + 1 :]))
            assert not merkle.verify(root, count, i, leaf, (*path[:k], bytes(32), *path[k + 1 :]))


def test_fault_99_an_inner_node_is_no_leaf():
    leaves = _leaves(4)
    root = merkle.root(leaves)
    left = _hash("node", _hash("leaf", leaves[0]) + _hash("leaf", leaves[1]))
    right = _hash("node", _hash("leaf", leaves[2]) + _hash("leaf", leaves[3]))
    crafted = _hash("leaf", leaves[0]) + _hash("leaf", leaves[1])
    assert len(crafted) == 64
    assert not merkle.verify(root, 2, 0, crafted, (right,))
    assert not merkle.verify(root, 4, 0, crafted, (right,))
    assert merkle.root([left, right]) != root
    assert merkle.root([crafted, _hash("leaf", leaves[2]) + _hash("leaf", leaves[3])]) != root


@pytest.mark.parametrize("count", [1, 3, 5, 6, 7])
def test_fault_99_doubling_the_last_leaves_changes_the_root(count):
    # CVE-2012-2459: where odd nodes are doubled, two lists have one root.
    leaves = _leaves(count)
    assert merkle.root(leaves) != merkle.root([*leaves, leaves[-1]])
    assert merkle.root(leaves) != merkle.root([*leaves, *leaves[-2:]])


@given(st.lists(st.binary(max_size=8), max_size=20), st.lists(st.binary(max_size=8), max_size=20))
def test_different_lists_have_different_roots(a, b):
    assert (merkle.root(a) == merkle.root(b)) == (a == b)


@given(
    st.binary(max_size=33),
    st.integers(-(2**70), 2**70),
    st.integers(-(2**70), 2**70),
    st.binary(max_size=3),
    st.lists(st.one_of(st.binary(max_size=33), st.binary(min_size=32, max_size=32)), max_size=70),
)
def test_verify_answers_whatever_it_is_given(root, count, i, leaf, path):
    assert merkle.verify(root, count, i, leaf, path) is False


def test_no_path_to_a_leaf_that_is_not_there():
    for i in (-1, 3):
        with pytest.raises(IndexError):
            merkle.path(_leaves(3), i)


FROZEN = (
    "45fe3b96419b0d00c1d6220ef183ff43a56e0b0ab6daa44a6c1ad2bd73205b47",
    "cb7c59d6d945995a180243c41add7d59d623e873929b6ba19cfd1bb44f0869bf",
)
