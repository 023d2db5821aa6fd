"""Proofs for those who have only headers: what is true is shown, and nothing else can be, whichever byte is changed.

tests/vectors/ledger-proofs.json has examples for other implementations; `python -m tests.unit.ledger.test_proofs` writes it
anew.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsdecloud.crypto import sign
from fsdecloud.errors import InvalidTransaction
from fsdecloud.ledger.blocks import decode_block, decode_header, encode_header
from fsdecloud.ledger.proofs import (
    FalseProof,
    NotProven,
    TxProof,
    check_latest_anchor,
    check_state,
    check_tx,
    prove_state,
    prove_tx,
)
from fsdecloud.ledger.state import EMPTY_ROOT, account_key, apply_transaction, keys_of, node_ref, volume_key
from fsdecloud.ledger.transactions import decode_tx, encode_tx, tx_id
from fsdecloud.tree.node import NodeMissing

sys.path.insert(0, str(Path(__file__).parent))
from chainmaker import MINER_KEY, Maker, easy_network

VOLUMES = [bytes([1, n]) * 16 for n in range(120)]
KEYS = [sign.public_key(seed) for seed in VOLUMES]
NOBODY = bytes([77]) * 32
FILE = Path(__file__).parents[2] / "vectors" / "ledger-proofs.json"


def made():
    """A chain whose state has several leaves: 120 volumes, the first of which has three anchors."""
    make = Maker(easy_network(version=1))
    make.add([make.anchor(seed, 1) for seed in VOLUMES])
    make.add([make.anchor(VOLUMES[0], 2), make.register(VOLUMES[5], 1)])
    make.add([make.anchor(VOLUMES[0], 3)])
    return make


@pytest.fixture(scope="module")
def make():
    return made()


def flipped(data, place):
    """`data` with one bit of the byte at `place` turned."""
    changed = bytearray(data)
    changed[place % len(changed)] ^= 1 << (place % 8)
    return bytes(changed)


# ---- transactions ------------------------------------------------------------------------------------------------
def test_every_transaction_of_a_block_is_proved(make):
    for identity, data in make.chain():
        block = decode_block(data)
        for index, encoded in enumerate(block.transactions):
            proof = prove_tx(block, index)
            assert proof.block == identity
            assert encode_tx(check_tx(block.header, proof)) == encoded
        with pytest.raises(IndexError):
            prove_tx(block, len(block.transactions))


@given(index=st.integers(0, 120), place=st.integers(0, 1 << 20), what=st.sampled_from(("block", "tx", "path")))
@settings(max_examples=150)
def test_a_transactions_proof_with_any_byte_changed_fails(make, index, place, what):
    block = decode_block(make.chain()[0][1])
    proof = prove_tx(block, index)
    if what == "path":
        path = list(proof.path)
        path[place % len(path)] = flipped(path[place % len(path)], place)
        wrong = msgspec.structs.replace(proof, path=tuple(path))
    else:
        wrong = msgspec.structs.replace(proof, **{what: flipped(getattr(proof, what), place)})
    with pytest.raises(FalseProof):
        check_tx(block.header, wrong)


def test_a_transactions_proof_is_for_its_place_alone(make):
    blocks = [decode_block(data) for _, data in make.chain()]
    proof = prove_tx(blocks[0], 7)
    changes = [
        {"index": 8},
        {"index": 120},
        {"index": 121},
        {"count": 120},
        {"count": 122},
        {"count": 1, "path": ()},
        {"path": proof.path[:-1]},
        {"path": (*proof.path, bytes(32))},
        {"path": proof.path[::-1]},
        {"block": blocks[1].header.parent[::-1]},
    ]
    for change in changes:
        with pytest.raises(FalseProof):
            check_tx(blocks[0].header, msgspec.structs.replace(proof, **change))
    for other in blocks[1:]:
        with pytest.raises(FalseProof):
            check_tx(other.header, proof)


def test_fault_099_an_inner_hash_is_no_transaction(make):
    """The two hashes below the top, given as a leaf one level higher up."""
    block = decode_block(make.chain()[0][1])
    proof = prove_tx(block, 0)
    forged = TxProof(proof.block, 0, 2, proof.path[-1] + proof.path[-2], ())
    with pytest.raises(FalseProof):
        check_tx(block.header, forged)


def test_a_transaction_with_another_signature_is_not_the_blocks(make):
    """The id excludes signatures, the proof does not."""
    block = decode_block(make.chain()[1][1])
    proof = prove_tx(block, 1)
    tx = decode_tx(proof.tx)
    other = msgspec.structs.replace(tx, volume_signature=bytes(64))
    assert tx_id(other) == tx_id(tx)
    with pytest.raises(FalseProof):
        check_tx(block.header, msgspec.structs.replace(proof, tx=encode_tx(other)))


# ---- the state ---------------------------------------------------------------------------------------------------
def test_presence_and_absence_are_proved(make):
    root = make.tip.state_root
    for key in (*KEYS[:20], NOBODY, bytes(32), b"\xff" * 32):
        keys = keys_of(key)
        state = check_state(root, keys, prove_state(make.nodes.get, root, keys))
        whole = make.state()
        assert state.volume(key) == whole.volume(key)
        assert state.account(key) == whole.account(key)
        assert state.registration(key) == whole.registration(key)
    assert check_state(EMPTY_ROOT, keys, prove_state(make.nodes.get, EMPTY_ROOT, keys)).volume(NOBODY) is None


def test_only_what_was_proved_can_be_read(make):
    root, keys = make.tip.state_root, (volume_key(KEYS[0]),)
    state = check_state(root, keys, prove_state(make.nodes.get, root, keys))
    unread = 0
    for key in KEYS[1:]:
        try:
            assert state.volume(key) == make.state().volume(key)
        except NodeMissing:
            unread += 1
    assert unread > 50


@given(number=st.integers(0, 119), place=st.integers(0, 1 << 20), absent=st.booleans())
@settings(max_examples=150)
def test_a_states_proof_with_any_byte_changed_fails(make, number, place, absent):
    root = make.tip.state_root
    keys = (volume_key(bytes([number]) * 32 if absent else KEYS[number]), account_key(MINER_KEY))
    proof = list(prove_state(make.nodes.get, root, keys))
    proof[place % len(proof)] = flipped(proof[place % len(proof)], place // len(proof))
    with pytest.raises(FalseProof):
        check_state(root, keys, proof)


def test_a_states_proof_is_for_its_root_and_keys_alone(make):
    points = [make.points[identity] for identity, _ in make.chain()]
    keys = (volume_key(KEYS[0]),)
    proofs = [prove_state(make.nodes.get, point.state_root, keys) for point in points]
    for point, own in zip(points, proofs, strict=True):
        for proof in proofs:
            if proof == own:
                continue
            with pytest.raises(FalseProof):  # stale, or from the future
                check_state(point.state_root, keys, proof)
    proof = proofs[-1]
    with pytest.raises(FalseProof):
        check_state(EMPTY_ROOT, keys, proof)
    far = next(k for k in KEYS if prove_state(make.nodes.get, points[-1].state_root, (volume_key(k),)) != proof)
    with pytest.raises(FalseProof):
        check_state(points[-1].state_root, (volume_key(far),), proof)
    with pytest.raises(FalseProof):
        check_state(points[-1].state_root, keys, ())


def test_a_proof_of_a_transactions_keys_is_enough_to_judge_it(make):
    root, network = make.tip.state_root, make.document
    keys = keys_of(KEYS[0])
    proof = prove_state(make.nodes.get, root, keys)
    time, height = make.tip.time + network.interval, make.tip.height + 1
    apply_transaction(
        make.document, check_state(root, keys, proof), decode_tx(make.anchor(VOLUMES[0], 4)), time, height
    )
    for number in (3, 5):
        wrong = decode_tx(make.anchor(VOLUMES[0], number))
        with pytest.raises(InvalidTransaction):
            apply_transaction(network, check_state(root, keys, proof), wrong, time, height)


# ---- the latest anchor -------------------------------------------------------------------------------------------
def latest(make, volume, tx, point=None, nodes=None):
    root = (point or make.tip).state_root
    proof = prove_state(make.nodes.get, root, (volume_key(volume),)) if nodes is None else nodes
    return check_latest_anchor(make.network, root, volume, proof, tx)


def test_the_latest_anchor_is_the_one_that_the_state_names(make):
    third = make.anchor(VOLUMES[0], 3)
    head, anchor = latest(make, KEYS[0], third)
    assert (head.sequence, head.height, encode_tx(anchor)) == (3, 3, third)
    second = make.anchor(VOLUMES[0], 2)
    for wrong in (second, make.anchor(VOLUMES[0], 4), make.anchor(VOLUMES[1], 1), third[:-1], b"\xc0"):
        with pytest.raises(FalseProof):
            latest(make, KEYS[0], wrong)
    with pytest.raises(NotProven):
        latest(make, KEYS[0], b"")
    before = make.points[make.tip.parent]
    assert latest(make, KEYS[0], second, before)[0].sequence == 2
    with pytest.raises(FalseProof):  # a stale answer, honest two blocks ago
        latest(make, KEYS[0], second, nodes=prove_state(make.nodes.get, before.state_root, (volume_key(KEYS[0]),)))


def test_that_a_volume_has_no_anchor_is_proved(make):
    assert latest(make, NOBODY, b"") is None
    with pytest.raises(FalseProof):
        latest(make, NOBODY, make.anchor(VOLUMES[0], 3))
    with pytest.raises(FalseProof):  # said of one that has some
        latest(make, KEYS[0], b"", nodes=())


def test_the_latest_anchor_with_another_signature_is_refused(make):
    tx = decode_tx(make.anchor(VOLUMES[0], 3))
    for change in ({"volume_signature": bytes(64)}, {"device_signature": b""}):
        with pytest.raises(FalseProof):
            latest(make, KEYS[0], encode_tx(msgspec.structs.replace(tx, **change)))


def test_a_tree_node_that_is_no_account_is_a_false_proof(make):
    """Whoever mined it had no business to: nothing is believed of it, and nothing breaks."""
    from fsdecloud.tree.node import Leaf, encode_node

    leaf = encode_node(Leaf((volume_key(KEYS[0]),), (b"\xc0",)))
    with pytest.raises(FalseProof):
        check_latest_anchor(make.network, node_ref(leaf), KEYS[0], (leaf,), make.anchor(VOLUMES[0], 1))


# ---- vectors -----------------------------------------------------------------------------------------------------
def vectors(make):
    """What the file holds: of a block with 3 transactions each one's place, and of the state after it four keys."""
    block = decode_block(make.chain()[1][1])
    keys = (volume_key(KEYS[0]), account_key(MINER_KEY), volume_key(NOBODY), b"N")
    point = make.points[make.tip.parent]
    state = make.state(point)
    return {
        "header": encode_header(block.header).hex(),
        "transactions": [
            {
                "block": proof.block.hex(),
                "index": proof.index,
                "count": proof.count,
                "tx": proof.tx.hex(),
                "path": [digest.hex() for digest in proof.path],
            }
            for proof in (prove_tx(block, index) for index in range(len(block.transactions)))
        ],
        "state": {
            "rows": [[key.hex(), None if (value := state.read(key)) is None else value.hex()] for key in keys],
            "nodes": [node.hex() for node in prove_state(make.nodes.get, point.state_root, keys)],
        },
    }


def test_the_vectors_are_what_the_program_says(make):
    assert json.loads(FILE.read_text()) == vectors(make)


def test_the_vectors_hold_for_whoever_has_the_header():
    found = json.loads(FILE.read_text())
    header = decode_header(bytes.fromhex(found["header"]))
    assert len(found["transactions"]) == 3
    for item in found["transactions"]:
        digests = tuple(map(bytes.fromhex, item["path"]))
        proof = TxProof(bytes.fromhex(item["block"]), item["index"], item["count"], bytes.fromhex(item["tx"]), digests)
        assert encode_tx(check_tx(header, proof)) == proof.tx
    rows = {
        bytes.fromhex(key): None if value is None else bytes.fromhex(value) for key, value in found["state"]["rows"]
    }
    state = check_state(header.state_root, tuple(rows), [bytes.fromhex(node) for node in found["state"]["nodes"]])
    assert {key: state.read(key) for key in rows} == rows
    assert list(rows.values()).count(None) == 1


if __name__ == "__main__":
    FILE.write_text(json.dumps(vectors(made()), indent=1) + "\n")
