"""Slices of BLAKE3's own tree: the published vectors, every leaf's proof, and nothing else verifies."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from fsdecloud.crypto import bao
from fsdecloud.errors import MalformedError

# https://github.com/BLAKE3-team/BLAKE3 test_vectors.json, "hash", first 32 bytes; the input repeats 0, 1, ..., 250.
VECTORS = {
    0: "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
    1: "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213",
    1023: "10108970eeda3eb932baac1428c7a2163b0e924c9a9e25b35bba72b28f70bd11",
    1024: "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7",
    1025: "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444",
    2048: "e776b6028c7cd22a4d0ba182a8bf62205d2ef576467e838ed6f2529b85fba24a",
    2049: "5f4d72f40d7a5f82b15ca2b2e44b1de3c2ef86c426c95c1af0b6879522563030",
    3072: "b98cb0ff3623be03326b373de6b9095218513e64f1ee2edd2525c7ad1e5cffd2",
    3073: "7124b49501012f81cc7f11ca069ec9226cecb8a2c850cfe644e327d22d3e1cd3",
    4096: "015094013f57a5277b59d8475c0501042c0b642e531b0a1c8f58d2163229e969",
    4097: "9b4052b38f1c5fc8b1f9ff7ac7b27cd242487b3d890d15c96a1c25b8aa0fb995",
    5120: "9cadc15fed8b5d854562b26a9536d9707cadeda9b143978f319ab34230535833",
    5121: "628bd2cb2004694adaab7bbd778a25df25c47b9d4155a55f8fbd79f2fe154cff",
    6144: "3e2e5b74e048f3add6d21faab3f83aa44d3b2278afb83b80b3c35164ebeca205",
    6145: "f1323a8631446cc50536a9f705ee5cb619424d46887f3c376c695b70e0f0507f",
    7168: "61da957ec2499a95d6b8023e2b0e604ec7f6b50e80a9678b89d2628e99ada77a",
    7169: "a003fc7a51754a9b3c7fae0367ab3d782dccf28855a03d435f8cfe74605e7817",
    8192: "aae792484c8efe4f19e2ca7d371d8c467ffb10748d8a5a1ae579948f718a2a63",
    8193: "bab6c09cb8ce8cf459261398d2e7aef35700bf488116ceb94a36d0f5f1b7bc3b",
    16384: "f875d6646de28985646f34ee13be9a576fd515f76b5b0a26bb324735041ddde4",
    31744: "62b6960e1a44bcc1eb1a611a8d6235b6b4b78f32e7abc4fb4c6cdcce94895c47",
    102400: "bc3e3d41a1146b069abffad3c0d44860cf664390afce4d9661f7902e7943e085",
}


def _input(length: int) -> bytes:
    return (bytes(range(251)) * (length // 251 + 1))[:length]


@pytest.mark.parametrize(("length", "digest"), VECTORS.items())
def test_published_vectors(length, digest):
    tree = bao.hash_tree(_input(length))
    assert (tree.id.hex(), tree.length) == (digest, length)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 40_000), st.integers(0, 2**32))
def test_the_id_is_plain_blake3(length, seed):
    data = random.Random(seed).randbytes(length)
    assert bao.hash_tree(memoryview(data)).id == blake3(data).digest()


@pytest.mark.parametrize("leaves", [bao._LANES_MAX, bao._LANES_MAX + 1, 2 * bao._LANES_MAX + 3])
def test_more_leaves_than_are_hashed_at_once(leaves):
    data = random.Random(leaves).randbytes(leaves * bao.LEAF_SIZE - 5)
    tree = bao.hash_tree(data)
    assert tree.id == blake3(data).digest()
    for index in (0, bao._LANES_MAX - 1, leaves - 1):
        assert bao.verify(tree.id, len(data), bao.prove(tree, data, index))


@pytest.mark.parametrize("length", [0, 1, 1024, 1025, 2048, 3000, 4096, 4097, 6500, 7168])
def test_every_leaf_is_proved_at_its_place_and_length_only(length):
    data = _input(length)
    tree = bao.hash_tree(data)
    for index in range(bao.leaf_count(length)):
        proof = bao.prove(tree, data, index)
        assert bao.verify(tree.id, length, proof)
        assert bao.decode_proof(bao.encode_proof(proof)) == proof
        for other in range(-1, bao.leaf_count(length) + 2):
            if other != index:
                assert not bao.verify(tree.id, length, bao.Proof(other, proof.leaf, proof.path))
        assert not bao.verify(tree.id, length, bao.Proof(index, proof.leaf + b"\0", proof.path))
        assert not bao.verify(tree.id, length, bao.Proof(index, proof.leaf, (*proof.path, bytes(32))))
        for k in range(len(proof.path)):
            for wrong in ((), (bytes(32),), (proof.path[k][:31],), (b"",)):
                path = (*proof.path[:k], *wrong, *proof.path[k + 1 :])
                assert not bao.verify(tree.id, length, bao.Proof(index, proof.leaf, path))


def test_tampering_with_any_byte_is_noticed():
    data = _input(3 * bao.LEAF_SIZE)
    tree = bao.hash_tree(data)
    proof = bao.prove(tree, data, 1)
    for i in range(0, bao.LEAF_SIZE, 31):
        leaf = proof.leaf[:i] + bytes((proof.leaf[i] ^ 1,)) + proof.leaf[i + 1 :]
        assert not bao.verify(tree.id, len(data), bao.Proof(1, leaf, proof.path))
    for i in range(bao.HASH_SIZE):
        wrong = tree.id[:i] + bytes((tree.id[i] ^ 1,)) + tree.id[i + 1 :]
        assert not bao.verify(wrong, len(data), proof)


def test_fault_99_an_inner_node_is_no_leaf():
    # The 64 bytes below the root of a two-leaf tree are not accepted as the bytes themselves.
    data = _input(2 * bao.LEAF_SIZE)
    tree = bao.hash_tree(data)
    assert not bao.verify(tree.id, 64, bao.Proof(0, tree.levels[-1], ()))


@settings(deadline=None)
@given(
    st.binary(max_size=33),
    st.integers(-(2**70), 2**70),
    st.builds(
        bao.Proof,
        st.integers(-(2**70), 2**70),
        st.binary(max_size=1030),
        st.lists(st.binary(min_size=31, max_size=32), max_size=60).map(tuple),
    ),
)
def test_verify_answers_whatever_it_is_given(id_, length, proof):
    assert bao.verify(id_, length, proof) is False


@pytest.mark.parametrize(
    "proof",
    [
        bao.Proof(-1, b"", ()),
        bao.Proof(1 << 60, b"", ()),
        bao.Proof(0, bytes(1025), ()),
        bao.Proof(0, b"", (bytes(31),)),
        bao.Proof(0, b"", (bytes(32),) * 55),
    ],
)
def test_an_impossible_proof_does_not_decode(proof):
    with pytest.raises(MalformedError):
        bao.decode_proof(bao.encode_proof(proof))


def test_no_proof_of_a_leaf_that_is_not_there():
    tree = bao.hash_tree(b"x")
    for index in (-1, 1):
        with pytest.raises(IndexError):
            bao.prove(tree, b"x", index)


# ---- Bao's own vectors ---------------------------------------------------------------------------------------------

BAO = json.loads((Path(__file__).parents[2] / "vectors" / "bao.json").read_bytes())


def _counting(length: int) -> bytes:
    return b"".join(i.to_bytes(4, "little") for i in range(1, length // 4 + 2))[:length]


def _bao_encoding(tree: bao.HashTree, data: bytes, wanted: set[int], *, has_leaves: bool = True) -> bytes:
    """Return Bao's encoding of the part with these leaves: the length, then the tree in pre-order."""
    parts = [len(data).to_bytes(8, "little")]

    def value(first: int, width: int) -> bytes:
        level = (width - 1).bit_length()
        return tree.levels[level][(first >> level) * 32 :][:32]

    def write(first: int, width: int) -> None:
        if not wanted.intersection(range(first, first + width)):
            return
        if width == 1:
            parts.append(data[first * 1024 : (first + 1) * 1024] if has_leaves else b"")
            return
        half = 1
        while half * 2 < width:
            half *= 2
        parts.append(value(first, half) + value(first + half, width - half))
        write(first, half)
        write(first + half, width - half)

    write(0, bao.leaf_count(len(data)))
    return b"".join(parts)


@pytest.mark.parametrize("case", BAO["encode"], ids=lambda case: case["input_len"])
def test_published_encodings_of_whole_trees(case):
    data = _counting(case["input_len"])
    tree = bao.hash_tree(data)
    assert tree.id.hex() == case["bao_hash"]
    whole = set(range(bao.leaf_count(len(data))))
    encoded = _bao_encoding(tree, data, whole)
    assert blake3(encoded).hexdigest() == case["encoded_blake3"]
    outboard = _bao_encoding(tree, data, whole, has_leaves=False)
    assert blake3(outboard).hexdigest() == case["outboard_blake3"]


@pytest.mark.parametrize("case", BAO["slice"], ids=lambda case: f"{case['input_len']}-{case['start']}-{case['len']}")
def test_published_slices(case):
    data = _counting(case["input_len"])
    tree = bao.hash_tree(data)
    last = bao.leaf_count(len(data)) - 1
    first_leaf = min(case["start"] // 1024, last)
    last_leaf = min((case["start"] + max(case["len"], 1) - 1) // 1024, last)
    wanted = range(first_leaf, last_leaf + 1)
    encoded = _bao_encoding(tree, data, set(wanted))
    assert (len(encoded), blake3(encoded).hexdigest()) == (case["output_len"], case["output_blake3"])
    # Ours is that without what the reader computes itself: half as many chaining values, and no length.
    assert bao.write_slice(tree, data, wanted) == _without_known(encoded[8:], last + 1, wanted)
    assert bao.read_slices(bao.write_slice(tree, data, wanted), [(len(data), wanted)]) == [tree.id]


def _without_known(encoded: bytes, count: int, wanted: range) -> bytes:
    at, parts = 0, []

    def read(first: int, width: int) -> None:
        nonlocal at
        if width == 1:
            parts.append(encoded[at : at + 1024])
            at += 1024
            return
        half = 1
        while half * 2 < width:
            half *= 2
        values = encoded[at : at + 32], encoded[at + 32 : at + 64]
        at += 64
        for begin, size, value in ((first, half, values[0]), (first + half, width - half, values[1])):
            if any(begin <= leaf < begin + size for leaf in wanted):
                read(begin, size)
            else:
                parts.append(value)

    read(0, count)
    return b"".join(parts)


# ---- slices --------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40_000), st.sets(st.integers(0, 39))), min_size=0, max_size=6), st.integers(0, 99)
)
def test_slices_of_many_are_read_at_once(wanted, seed):
    rng = random.Random(seed)
    slices, parts, ids = [], [], []
    for length, leaves in wanted:
        data = rng.randbytes(length)
        tree = bao.hash_tree(data)
        indices = sorted({leaf % bao.leaf_count(length) for leaf in leaves} or {0})
        parts.append((length, indices))
        slices.append(bao.write_slice(tree, data, indices))
        ids.append(blake3(data).digest())
    joined = b"".join(slices)
    assert bao.read_slices(joined, parts) == ids
    for wrong in (joined + b"\0", joined[:-1]):
        if wrong != joined:
            with pytest.raises(MalformedError):
                bao.read_slices(wrong, parts)


def test_a_slice_has_each_part_once():
    data = _input(8 * 1024)
    tree = bao.hash_tree(data)
    assert bao.write_slice(tree, data, range(8)) == data
    assert bao.write_slice(tree, data, [5]) == b"".join(
        (tree.levels[2][:32], tree.levels[0][4 * 32 : 5 * 32], data[5 * 1024 : 6 * 1024], tree.levels[1][3 * 32 :])
    )
    for wrong in ([], [8], [-1], [0, 8]):
        with pytest.raises(IndexError):
            bao.write_slice(tree, data, wrong)


def test_a_slice_with_a_changed_byte_has_another_id():
    data = _input(5 * 1024 + 7)
    tree = bao.hash_tree(data)
    piece = bao.write_slice(tree, data, [1, 5])
    for at in range(0, len(piece), 13):
        wrong = piece[:at] + bytes([piece[at] ^ 1]) + piece[at + 1 :]
        assert bao.read_slices(wrong, [(len(data), [1, 5])]) != [tree.id]


def test_more_slices_than_are_hashed_at_once():
    data = _input(2 * 1024)
    piece = bao.write_slice(bao.hash_tree(data), data, [0, 1])
    count = bao._LANES_MAX // 2 + 3
    assert bao.read_slices(piece * count, [(len(data), [0, 1])] * count) == [blake3(data).digest()] * count
