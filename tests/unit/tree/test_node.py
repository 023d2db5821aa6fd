"""The node's encoding: one for each node, and nothing but nodes is accepted."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdecloud.errors import MalformedError
from fsdecloud.limits import NODE_DECODE_MAX, NODE_MAX, NODE_MAX_ITEMS, TREE_KEY_MAX, TREE_VALUE_MAX
from fsdecloud.tree.lookup import lookup, scan
from fsdecloud.tree.node import LEVEL_MAX, Inner, Leaf, decode_node, encode_node


def test_the_format_is_fixed():
    assert encode_node(Leaf((b"a", b"b"), (b"", b"xy"))) == bytes.fromhex("9300 92c40161c40162 92c400c4027879")
    assert encode_node(Inner(1, (b"a", b"b"), (b"R", b"S"))) == bytes.fromhex("940101 92c40161c40162 92c40152c40153")


@given(st.dictionaries(st.binary(min_size=1, max_size=9), st.binary(max_size=50), min_size=1, max_size=NODE_MAX_ITEMS))
def test_round_trip(items):
    keys, values = zip(*sorted(items.items()), strict=True)
    node = Leaf(keys, values)
    assert decode_node(encode_node(node)) == node
    inner = Inner(7, keys, tuple(bytes(32) for _ in keys))
    assert decode_node(encode_node(inner)) == inner


def many(count):
    return tuple(number.to_bytes(2, "big") for number in range(1, count + 1))


@pytest.mark.parametrize(
    "node",
    [
        Leaf((), ()),
        Leaf((b"a",), ()),
        Leaf((b"a", b"a"), (b"", b"")),
        Leaf((b"b", b"a"), (b"", b"")),
        Leaf((b"", b"a"), (b"", b"")),
        Leaf((bytes(TREE_KEY_MAX + 1),), (b"",)),
        Leaf((b"a",), (bytes(TREE_VALUE_MAX + 1),)),
        Leaf((b"a", b"b"), (bytes(NODE_MAX), b"")),
        Leaf(many(NODE_MAX_ITEMS + 1), (b"",) * (NODE_MAX_ITEMS + 1)),
        Leaf((b"a",), (bytes(NODE_DECODE_MAX),)),
        Inner(0, (b"a",), (bytes(32),)),
        Inner(LEVEL_MAX + 1, (b"a",), (bytes(32),)),
        Inner(-1, (b"a",), (bytes(32),)),
        Inner(1, (b"a", b"b"), (bytes(32), bytes(64))),
        Inner(1, (b"a",), (b"",)),
        Inner(1, (b"a",), (bytes(65),)),
    ],
)
def test_nodes_that_no_update_writes_are_malformed(node):
    with pytest.raises(MalformedError):
        decode_node(encode_node(node))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc0",
        bytes.fromhex("9300 91c40161 91c400 00"),  # trailing byte
        bytes.fromhex("9300 91c5000161 91c400"),  # long form of a length
        bytes.fromhex("93cc00 91c40161 91c400"),  # long form of the tag
        bytes.fromhex("9300 91a161 91c400"),  # text for a key
        bytes.fromhex("9302 91c40161 91c400"),  # unknown tag
        bytes.fromhex("9400 91c40161 91c400 00"),  # unknown field
        bytes.fromhex("9300 ddffffffff"),  # a length that would take memory
    ],
)
def test_other_encodings_are_malformed(data):
    with pytest.raises(MalformedError):
        decode_node(data)


@given(st.binary(max_size=200))
def test_any_bytes_decode_to_a_node_or_are_malformed(data):
    try:
        node = decode_node(data)
    except MalformedError:
        return
    assert encode_node(node) == data


@given(st.integers(0, 59), st.integers(0, 255))
def test_a_changed_byte_never_gives_a_second_encoding(position, value):
    data = bytearray(encode_node(Leaf((b"aaaa", b"bbbb", b"cccc"), (b"x" * 11, b"y" * 12, b"z" * 9))))
    data[position % len(data)] = value
    try:
        node = decode_node(bytes(data))
    except MalformedError:
        return
    assert encode_node(node) == bytes(data)


def test_children_that_do_not_fit_their_place_are_malformed():
    """A get that returns other nodes than asked for leads to an error, never round in circles or out of order."""
    parent = Inner(1, (b"b", b"m"), (b"1" * 32, b"2" * 32))
    for child in (
        parent,
        Leaf((b"c",), (b"",)),
        Leaf((b"b", b"z"), (b"", b"")),
        Inner(2, (b"b",), (b"1" * 32,)),
    ):
        nodes = {b"root": parent, b"1" * 32: child, b"2" * 32: child}
        with pytest.raises(MalformedError):
            list(scan(nodes.__getitem__, b"root", b"", None))
        if isinstance(child, Inner):
            with pytest.raises(MalformedError):
                lookup(nodes.__getitem__, b"root", b"c")


def test_structs_refuse_other_types():
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert([0, ["a"], [1]], Leaf)
