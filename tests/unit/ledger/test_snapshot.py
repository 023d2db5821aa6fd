"""Which nodes of a state are missing, where it is taken, and what a block is that nobody executed."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import msgspec
import pytest

from fsdecloud.crypto import sign
from fsdecloud.errors import MalformedError
from fsdecloud.ledger import snapshot
from fsdecloud.ledger.blocks import bytes_root, encode_block
from fsdecloud.ledger.reasons import BadTransaction, BlockTooBig, BodyMismatch, MalformedBlock, WrongIdsRoot
from fsdecloud.ledger.snapshot import (
    PENDING_MAX,
    PIVOT_MARGIN,
    TreeWalk,
    WrongNode,
    check_contents,
    choose_pivot,
    match_nodes,
)
from fsdecloud.ledger.state import EMPTY_ROOT, check_row, node_ref, reachable_nodes
from fsdecloud.ledgerd import keeper
from fsdecloud.limits import NODE_MAX_ITEMS
from fsdecloud.tree.node import LEVEL_MAX, Inner, Leaf, decode_node, encode_node
from fsdecloud.tree.update import update

sys.path.insert(0, str(Path(__file__).parent))
from chainmaker import Maker, easy_network, with_header

ACCOUNT = b"\x92\x01\x00"
"""A balance of 1, nonce 0."""


def tree_of(count, start=0):
    """A state of `count` accounts: root and nodes."""
    nodes = {}

    def put(data):
        nodes[node_ref(data)] = data
        return node_ref(data)

    rows = [(b"A" + n.to_bytes(32), ACCOUNT) for n in range(start, start + count)]
    root = update(lambda ref: decode_node(nodes[ref]), put, bytes(32), b"", rows)
    return root, nodes


def test_the_pivot_is_below_what_may_be_reorganised_and_above_what_others_drop():
    assert choose_pivot(0, 100) is None
    assert choose_pivot(100 + PIVOT_MARGIN, 100) is None
    assert choose_pivot(101 + PIVOT_MARGIN, 100) == 1
    assert choose_pivot(5000, 100) == 4900 - PIVOT_MARGIN
    assert 0 < PIVOT_MARGIN < keeper.PRUNE_MARGIN // 2


@pytest.mark.parametrize("seed", range(5))
def test_a_walk_asks_for_each_node_once_in_whatever_order_they_come(seed):
    generator = random.Random(seed)
    root, nodes = tree_of(3000)
    walk = TreeWalk(root)
    asked = []
    out = []
    while not walk.is_done:
        taken = list(walk.take(generator.randint(1, 20)))
        asked += taken
        out += taken
        assert out, "it waits for nothing"
        generator.shuffle(out)
        back, out = out[: len(out) // 3], out[len(out) // 3 :]
        walk.give_back(back)
        for ref in back:
            asked.remove(ref)
        for ref in out[: len(out) // 2 + 1]:
            walk.put(ref, nodes[ref])
        del out[: len(out) // 2 + 1]
    assert sorted(asked) == sorted(nodes)
    assert walk.count == len(nodes)
    assert not walk.is_waiting


def test_the_empty_state_has_no_nodes():
    assert TreeWalk(EMPTY_ROOT).is_done


def test_leaves_come_before_what_brings_more():
    root, nodes = tree_of(20_000)
    walk = TreeWalk(root)
    depth = decode_node(nodes[root]).level
    assert depth >= 2
    most = 0
    while not walk.is_done:
        for ref in walk.take(1):
            walk.put(ref, nodes[ref])
        most = max(most, len(walk._places))
    assert most <= depth * NODE_MAX_ITEMS


def test_past_the_bound_only_one_inner_node_is_taken_at_a_time(monkeypatch):
    root, nodes = tree_of(20_000)
    monkeypatch.setattr(snapshot, "PENDING_MAX", 1)
    assert PENDING_MAX > NODE_MAX_ITEMS * LEVEL_MAX
    walk = TreeWalk(root)
    while not walk.is_done:
        taken = walk.take(1000)
        inner = [ref for ref in taken if isinstance(decode_node(nodes[ref]), Inner)]
        assert len(inner) <= 1
        for ref in taken:
            walk.put(ref, nodes[ref])


def test_a_false_node_changes_nothing():
    root, nodes = tree_of(3000)
    walk = TreeWalk(root)
    assert walk.take(5) == (root,)
    for data in (b"", b"\xc0", nodes[root][:-1], next(d for r, d in nodes.items() if r != root)):
        with pytest.raises(WrongNode):
            walk.put(root, data)
    walk.put(root, nodes[root])
    assert walk.count == 1


def root_over(node):
    data = encode_node(node)
    return node_ref(data), data


def descend(*path):
    """Walk a tree whose nodes are `path`, the root first; raises what the last one raises."""
    nodes = {node_ref(data): data for data in path}
    walk = TreeWalk(node_ref(path[0]))
    while not walk.is_done:
        for ref in walk.take(10):
            walk.put(ref, nodes[ref])


FIRST, SECOND = b"A" + bytes(32), b"A" + bytes([5]) + bytes(31)
LEAF = Leaf((FIRST,), (ACCOUNT,))


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (Leaf((b"A" + bytes([1]) + bytes(31),), (ACCOUNT,)), "fit its place"),
        (Leaf((FIRST, b"A" + bytes([9]) + bytes(31)), (ACCOUNT, ACCOUNT)), "fit its place"),
        (Inner(1, (FIRST,), (bytes(32),)), "fit its place"),
        (Leaf((FIRST,), (b"?",)), "."),
    ],
)
def test_a_tree_that_no_rule_makes_is_noticed_at_the_node_that_shows_it(bad, text):
    good = encode_node(Leaf((SECOND,), (ACCOUNT,)))
    data = encode_node(bad)
    root = encode_node(Inner(1, (FIRST, SECOND), (node_ref(data), node_ref(good))))
    with pytest.raises(MalformedError, match=text) as caught:
        descend(root, data, good)
    assert not isinstance(caught.value, WrongNode)
    whole = encode_node(LEAF)
    descend(encode_node(Inner(1, (FIRST, SECOND), (node_ref(whole), node_ref(good)))), whole, good)


def test_references_of_another_length_or_twice_are_no_state():
    with pytest.raises(MalformedError, match="another length"):
        descend(encode_node(Inner(1, (FIRST,), (bytes(64),))))
    ref = node_ref(encode_node(LEAF))
    with pytest.raises(MalformedError, match="two places"):
        descend(encode_node(Inner(1, (FIRST, SECOND), (ref, ref))))


def test_an_answer_holds_what_was_asked_for_and_nothing_else():
    _, nodes = tree_of(3000)
    refs = list(nodes)
    assert match_nodes(refs[:3], [nodes[refs[1]], nodes[refs[0]]]) == {r: nodes[r] for r in refs[:2]}
    assert match_nodes(refs, []) == {}
    with pytest.raises(WrongNode):
        match_nodes(refs[:3], [nodes[refs[3]]])


def test_the_rows_that_the_rules_write_are_taken_and_no_others():
    make = Maker(easy_network(checkpoint_interval=2, unbond_delay=40))
    seed = bytes([3]) * 32
    peer = sign.public_key(seed)
    make.add()
    make.add([make.anchor(bytes([2]) * 32, 1), make.register(seed, 1)])
    make.add([make.operate(seed, bytes([4]) * 32, 1)])
    rows = [
        (key, value)
        for data in map(make.nodes.get, reachable_nodes(make.nodes.get, [make.tip.state_root]))
        if isinstance(node := decode_node(data), Leaf)
        for key, value in zip(node.keys, node.values, strict=True)
    ]
    assert {key[:1] for key, _ in rows} >= {b"A", b"F", b"N", b"O", b"R", b"V"}
    for key, value in rows:
        check_row(key, value)
        for bad in ((key, value + b"\x00"), (key, b"\xc1"), (key + b"\x00", value), (b"?" + key[1:], value)):
            with pytest.raises(MalformedError):
                check_row(*bad)
    check_row(b"U" + bytes(8) + peer, b"")
    with pytest.raises(MalformedError):
        check_row(b"U" + bytes(8) + peer, b"x")


def test_a_block_that_nobody_executed_is_what_its_header_says():
    make = Maker()
    block = make.add([make.anchor(bytes([2]) * 32, 1)]).block
    found = check_contents(make.document, encode_block(block))
    assert found.block == block
    assert len(found.transactions) == len(found.ids) == 2
    mutated = msgspec.structs.replace(block, transactions=block.transactions[:1])
    with pytest.raises(BodyMismatch):
        check_contents(make.document, encode_block(mutated))
    with pytest.raises(MalformedBlock):
        check_contents(make.document, encode_block(block)[:-1])
    with pytest.raises(BlockTooBig):
        check_contents(msgspec.structs.replace(make.document, block_max=64), encode_block(block))
    with pytest.raises(WrongIdsRoot):
        check_contents(make.document, encode_block(with_header(block, ids_root=bytes(32))))
    junk = (*block.transactions, bytes(64))
    with pytest.raises(BadTransaction):
        check_contents(
            make.document,
            encode_block(msgspec.structs.replace(with_header(block, bytes_root=bytes_root(junk)), transactions=junk)),
        )
