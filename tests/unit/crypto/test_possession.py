"""Possession proofs: what is there is proved, what is not cannot be, and nothing else verifies."""

from __future__ import annotations

import math
import random

import pytest
from blake3 import blake3
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fsdecloud.crypto import bao, possession
from fsdecloud.crypto.possession import (
    CHAIN_PROOF,
    CHAIN_SAMPLES,
    SAMPLES_MAX,
    challenge,
    proof_size_max,
    samples_for,
    verify,
)
from fsdecloud.crypto.shardset import EMPTY, LEAVES_MAX, ShardSet, node_hash, root_hash, shard_hash
from fsdecloud.errors import MalformedError
from fsdecloud.types import ShardId
from tests.unit.crypto.shardsets import Holder, naive_set, random_shards

SEED = b"period 7"


# ---- challenges ----------------------------------------------------------------------------------------------------


def test_a_challenge_is_the_output_of_blake3():
    words = blake3(b"seed", derive_key_context="fsdecloud 2026 v1 possession challenge").digest(length=80)
    drawn = [int.from_bytes(words[i : i + 8], "big") % 1000 for i in range(0, 80, 8)]
    assert challenge(b"seed", 1000, 10) == drawn
    assert challenge(b"seed", 1000, 4) == drawn[:4]
    assert challenge(b"seed", 0, 10) == []
    assert challenge(b"seed", 1, 3) == [0, 0, 0]


def test_words_that_favour_low_numbers_are_skipped(monkeypatch):
    # With this total, half of the words would be.
    monkeypatch.setattr(possession, "LEAVES_MAX", 1 << 64)
    total = fair = (1 << 63) + 1
    skipped = 0
    for i in range(5):
        seed = i.to_bytes(4, "big")
        output = blake3(seed, derive_key_context="fsdecloud 2026 v1 possession challenge").digest(length=8 * 1500)
        words = [int.from_bytes(output[at : at + 8], "big") for at in range(0, len(output), 8)]
        good = [word % total for word in words if word < fair]
        assert challenge(seed, total, 512) == good[:512]
        skipped += len(words) - len(good)
    assert skipped


def test_every_leaf_is_drawn_as_often():
    counts = [0] * 7
    for i in range(200):
        for index in challenge(i.to_bytes(4, "big"), 7, 500):
            counts[index] += 1
    expected = sum(counts) / 7
    chi = sum((count - expected) ** 2 / expected for count in counts)
    assert chi < 22.5, counts  # 6 degrees of freedom: 22.5 is passed once in 1000 seeds; these are fixed


@pytest.mark.parametrize(("total", "samples"), [(-1, 1), (LEAVES_MAX + 1, 1), (5, 0), (5, -1), (5, SAMPLES_MAX + 1)])
def test_a_challenge_out_of_bounds_is_a_mistake(total, samples):
    with pytest.raises(ValueError):
        challenge(b"", total, samples)


@pytest.mark.parametrize(
    ("probability", "fraction", "samples"),
    [
        (0.99, 0.01, 459),
        (0.95, 0.05, 59),
        (0.95, 0.01, 299),
        (0.95, 0.001, 2995),
        (0.99, 0.05, 90),
        (0.5, 0.5, 1),
        (0.75, 0.5, 2),
        (0, 0.3, 1),
        (0.99, 1, 1),
    ],
)
def test_the_number_of_samples_for_a_probability(probability, fraction, samples):
    assert samples_for(probability, fraction) == samples


@given(st.floats(0, 0.999999), st.floats(1e-6, 0.999))
def test_samples_are_enough_and_not_too_many(probability, fraction):
    samples = samples_for(probability, fraction)
    assert (1 - fraction) ** samples <= (1 - probability) * (1 + 1e-6)
    assert samples == 1 or (1 - fraction) ** (samples - 1) >= (1 - probability) * (1 - 1e-6)


@pytest.mark.parametrize(("probability", "fraction"), [(1, 0.5), (-0.1, 0.5), (0.5, 0), (0.5, 1.1), (math.nan, 0.5)])
def test_no_number_of_samples_is_enough(probability, fraction):
    with pytest.raises(ValueError):
        samples_for(probability, fraction)


# ---- proofs --------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 130), st.integers(1, 40), st.binary(max_size=40))
@example(0, 0, 5, b"")
@example(1, 1, 1, b"")
@example(1, 1, SAMPLES_MAX, b"")
def test_who_has_the_shards_proves_it(seed, count, samples, drawn_by):
    holder = Holder(random_shards(seed, count))
    proof = holder.prove(drawn_by, samples)
    assert verify(holder.set.root, drawn_by, samples, proof)
    assert len(proof) <= proof_size_max(samples)
    assert holder.shard_reads <= min(count, samples)
    assert not verify(holder.set.root, drawn_by, samples, proof + b"\0")
    other = drawn_by + b"x"
    leaves = holder.set.leaves
    is_same = set(challenge(drawn_by, leaves, samples)) == set(challenge(other, leaves, samples))
    assert verify(holder.set.root, other, samples, proof) is is_same


def test_a_replayed_proof_is_refused():
    holder = Holder(random_shards(3, 100))
    before = holder.prove(b"period 1", 8)
    assert verify(holder.set.root, b"period 1", 8, before)
    assert not verify(holder.set.root, b"period 2", 8, before)
    assert not verify(holder.set.root, b"period 1", 7, before)
    assert not verify(holder.set.root, b"period 1", 9, before)
    root = holder.set.root
    holder.add([b"one more"])
    assert not verify(holder.set.root, b"period 1", 8, before)
    assert not verify(root, b"period 1", 8, holder.prove(b"period 1", 8))


def test_any_changed_byte_refuses():
    holder = Holder(random_shards(4, 40, longest=9000))
    proof = holder.prove(SEED, 3)
    rng = random.Random(4)
    places = {*range(60), *range(len(proof) - 40, len(proof)), *rng.sample(range(len(proof)), 150)}
    for at in places:
        for bit in (1, 0x80):
            wrong = proof[:at] + bytes([proof[at] ^ bit]) + proof[at + 1 :]
            assert not verify(holder.set.root, SEED, 3, wrong)
    for at in places:
        assert not verify(holder.set.root, SEED, 3, proof[:at])
        assert not verify(holder.set.root, SEED, 3, proof[:at] + proof[at + 1 :])
    for at in range(32):
        root = holder.set.root
        assert not verify(root[:at] + bytes([root[at] ^ 1]) + root[at + 1 :], SEED, 3, proof)
    assert not verify(b"", SEED, 3, proof)


def test_a_number_has_one_form():
    holder = Holder([b"x" * 100])
    proof = holder.prove(SEED, 1)
    assert proof[:3] == bytes([1, 1, 100])
    for longer in (b"\x81\x00\x01\x64", b"\x01\x81\x00\x64", b"\x01\x01\xe4\x00", b"\x01\x01\xe4\x80\x00"):
        assert not verify(holder.set.root, SEED, 1, longer + proof[3:])
    for huge in (b"\xff" * 9 + b"\x01", b"\xff" * 9 + b"\x02", b"\xff" * 11):
        assert not verify(holder.set.root, SEED, 1, huge + proof[1:])


@settings(max_examples=300, deadline=None)
@given(
    st.binary(min_size=32, max_size=32),
    st.binary(max_size=8),
    st.integers(-3, SAMPLES_MAX + 3),
    st.binary(max_size=300),
)
def test_verify_answers_whatever_it_is_given(root, seed, samples, proof):
    assert verify(root, seed, samples, proof) is False


def test_a_proof_longer_than_any_is_not_read():
    class Unread(bytes):
        def __getitem__(self, key):
            raise AssertionError("it was read")

    assert not verify(bytes(32), SEED, 1, Unread(proof_size_max(1) + 1))
    assert not verify(bytes(32), SEED, SAMPLES_MAX + 1, Unread(10))


def test_without_a_challenged_shard_there_is_no_proof():
    holder = Holder(random_shards(5, 20))
    wanted = possession.challenge(SEED, holder.set.leaves, 4)
    lost = _shard_of(holder, wanted[0])
    del holder.data[lost]
    with pytest.raises(KeyError):
        holder.prove(SEED, 4)
    # What is not the shard makes no proof, and is not sent as one.
    for wrong in (b"", b"something else", bytes(5000)):
        holder.data[lost] = wrong
        with pytest.raises(MalformedError, match="not those of shard"):
            holder.prove(SEED, 4)


def test_damaged_pages_make_no_proof():
    holder = Holder(random_shards(6, 200, longest=100))
    for path, page in list(holder.pages.items()):
        if len(path):
            holder.pages[path] = page[:-1] + bytes([page[-1] ^ 1])
    with pytest.raises(MalformedError, match="page of the shard set"):
        holder.prove(SEED, 4)


def test_who_dropped_five_percent_is_found_out_as_often_as_computed():
    holder = Holder(random_shards(7, 400, longest=600))
    holder.change(dict.fromkeys(list(holder.data)[360:]))
    rng = random.Random(7)
    lengths = {shard: len(holder.data[shard]) for shard in list(holder.data)[:360]}
    dropped = set(rng.sample(sorted(lengths), 18))
    fraction = sum(bao.leaf_count(lengths[shard]) for shard in dropped) / holder.set.leaves
    owners = [shard for shard in sorted(lengths) for _ in range(bao.leaf_count(lengths[shard]))]
    samples, periods, caught = 8, 4000, 0
    for period in range(periods):
        drawn = challenge(b"period %d" % period, len(owners), samples)
        caught += any(owners[index] in dropped for index in drawn)
    expected = 1 - (1 - fraction) ** samples
    deviation = math.sqrt(expected * (1 - expected) / periods)
    assert abs(caught / periods - expected) < 3.3 * deviation  # fixed seeds: this holds or it does not
    # And it is really those that cannot be proved.
    for shard in dropped:
        del holder.data[shard]
    for period in range(60):
        seed = b"period %d" % period
        if any(owners[index] in dropped for index in challenge(seed, len(owners), samples)):
            with pytest.raises(KeyError):
                holder.prove(seed, samples)
        else:
            assert verify(holder.set.root, seed, samples, holder.prove(seed, samples))


# ---- sums ----------------------------------------------------------------------------------------------------------


def _shard_of(holder: Holder, index: int) -> ShardId:
    for shard, length in _in_order(holder):
        if index < bao.leaf_count(length):
            return shard
        index -= bao.leaf_count(length)
    raise IndexError(index)


def _in_order(holder: Holder) -> list[tuple[ShardId, int]]:
    return sorted((shard, len(data)) for shard, data in holder.data.items())


def _forged(parts: list[bytes], leaf: bytes, *, leaves: int, shards: int, size: int) -> bytes:
    head = b"".join(map(possession._number, (leaves, shards, size)))
    return b"".join((head, *parts, leaf))


def test_false_sums_cannot_lead_a_challenge_to_another_shard():
    # A peer has the first of two shards and says that all leaves are the first one's.
    kept, lost = sorted((b"kept" * 200, b"lost" * 200), key=lambda data: blake3(data).digest())
    holder = Holder([kept, lost])
    assert holder.set.leaves == 2
    seeds = [seed for seed in (bytes([i]) for i in range(30)) if challenge(seed, 2, 1) == [1]]
    a, b = (shard_hash(blake3(data).digest(), len(data)) for data in (kept, lost))
    tail = (len(kept) - 1).to_bytes(2, "big")
    for seed in seeds:
        honest = holder.prove(seed, 1)
        assert verify(holder.set.root, seed, 1, honest)
        for left in (1, 2, 3):
            # Both leaves to the left; or the lost one's hash where the first one's is.
            number = possession._number(left)
            for parts in (
                [number, b"\0" + tail, b],
                [number, b, b"\0" + tail],
                [number, a, b"\0" + tail],
                [b"\0" + tail],
            ):
                proof = _forged(parts, kept, leaves=2, shards=2, size=1600)
                assert not verify(holder.set.root, seed, 1, proof)
                assert not verify(holder.set.root, seed, 1, _forged(parts, kept, leaves=1, shards=1, size=800))


@pytest.mark.parametrize(("claimed", "length"), [(1, 1025), (2, 1024), (2, 2049), (3, 5), (1 << 53, 7)])
def test_a_set_with_a_false_number_of_leaves_proves_nothing(claimed, length):
    # Somebody signed a set whose sums are false: its own maker cannot prove it.
    data = bytes(length)
    top = shard_hash(blake3(data).digest(), length)
    root = root_hash(top, claimed, 1, length)
    tree = bao.hash_tree(data)
    tail = b"\0" + ((length - 1) % 1024).to_bytes(2, "big")
    for i in range(20):
        seed = bytes([i])
        for index in range(bao.leaf_count(length)):
            leaf = bao.write_slice(tree, data, [index])
            assert not verify(root, seed, 1, _forged([tail], leaf, leaves=claimed, shards=1, size=length))


@pytest.mark.parametrize(("left", "right"), [(2, 1), (1, 2), (2, 3), (3, 2), (1, 3), (4, 0), (0, 4), (1 << 53, 2)])
def test_what_a_false_sum_promises_cannot_be_proved(left, right):
    # A set of two shards with two leaves each that says something else of one of them: no bytes answer for that one.
    one, two = sorted((b"a" * 2000, b"b" * 2000), key=lambda data: blake3(data).digest())
    a, b = (shard_hash(blake3(data).digest(), 2000) for data in (one, two))
    total = left + right
    root = root_hash(node_hash(a, left, b, right), total, 2, 4000)
    shard = b"\0" + (2000 - 1024 - 1).to_bytes(2, "big")
    slices = [bao.write_slice(bao.hash_tree(data), data, [leaf]) for data in (one, two) for leaf in (0, 1)]
    for i in range(6):
        seed = bytes([i])
        index = challenge(seed, total, 1)[0]
        is_true = (index < left == 2) or (index >= left and right == 2)
        answers = []
        for number in {left, 1, 2}:
            for parts in ([possession._number(number), shard, b], [possession._number(number), a, shard], [shard]):
                for shown in slices:
                    proof = _forged(parts, shown, leaves=total, shards=2, size=4000)
                    answers.append(verify(root, seed, 1, proof))
        assert sum(answers) == (1 if is_true else 0)


def test_a_set_too_high_proves_nothing():
    comb = {ShardId((1 << 255 - i).to_bytes(32, "big")): 1 for i in range(60)}
    high = naive_set(comb)
    assert high.height > 48
    # By hand: all the way down to the deepest two, whose bytes nobody has anyway.
    proof = b"".join(map(possession._number, (60, 60, 60)))
    assert not verify(high.root, SEED, 1, proof + b"\x01" * 400)


def test_an_empty_set_proves_itself():
    proof = Holder().prove(SEED, 8)
    assert proof == bytes(3)
    assert verify(EMPTY.root, SEED, 8, proof)
    assert not verify(EMPTY.root, SEED, 8, b"")
    assert not verify(Holder([b"x"]).set.root, SEED, 8, proof)
    assert not verify(EMPTY.root, SEED, 8, b"\0\1\0")


def test_several_samples_of_one_shard_share_its_path():
    data = random.Random(8).randbytes(64 * 1024)
    holder = Holder([data])
    proof = holder.prove(SEED, SAMPLES_MAX)  # nearly all leaves are drawn
    assert verify(holder.set.root, SEED, SAMPLES_MAX, proof)
    assert len(proof) < len(data) + 40
    assert holder.shard_reads == 1


@pytest.mark.parametrize("longest", [1, 1023, 1024, 1025, 40_000])
def test_every_leaf_can_be_proved(longest):
    holder = Holder(random_shards(longest, 9, longest))
    needed = set(range(holder.set.leaves))
    for i in range(100):
        seed = i.to_bytes(2, "big")
        assert verify(holder.set.root, seed, 20, holder.prove(seed, 20))
        needed -= set(challenge(seed, holder.set.leaves, 20))
        if not needed:
            break
    assert not needed


def test_the_size_of_a_proof_on_the_chain():
    assert proof_size_max(CHAIN_SAMPLES) < 64 * 1024
    assert CHAIN_PROOF == 16 * 1024
    assert isinstance(Holder().set, ShardSet)


# ---- a million shards ----------------------------------------------------------------------------------------------


def _large_set(count: int) -> Holder:
    rng = random.Random(count)
    holder = Holder()
    holder.change({ShardId(rng.randbytes(32)): 256 * 1024 for _ in range(count)})
    return holder


def _check_large_set(holder: Holder, monkeypatch, *, pages: int, size: int) -> None:
    """Prove with shards that nobody has: all but their bytes is real, and these take what 256 KiB take."""
    data = random.Random(0).randbytes(256 * 1024)
    tree = bao.hash_tree(data)
    for i in range(20):
        seed = bytes([i])
        holder.page_reads = 0
        planned = possession.plan(holder.get, holder.set, seed, CHAIN_SAMPLES)
        assert holder.page_reads <= pages
        parts = [bao.write_slice(tree, data, part.leaves) for part in planned.challenged]
        proof = b"".join((planned.head, *parts))
        assert len(proof) <= size <= CHAIN_PROOF
        with monkeypatch.context() as patch:
            ids = [part.shard for part in planned.challenged]
            patch.setattr(possession.bao, "read_slices", lambda *_, ids=ids: ids)
            assert verify(holder.set.root, seed, CHAIN_SAMPLES, proof)


def test_a_proof_of_many_shards_is_small_and_reads_little(monkeypatch):
    _check_large_set(_large_set(10_000), monkeypatch, pages=1 + 16 + 8 * 2, size=13_500)


@pytest.mark.long
def test_a_proof_of_a_million_shards_fits_on_the_chain(monkeypatch):
    holder = _large_set(1_000_000)
    assert holder.set.height <= 30
    _check_large_set(holder, monkeypatch, pages=1 + 8 * 5, size=CHAIN_PROOF)
    holder.page_reads = 0
    holder.change({ShardId(bytes(32)): 1})
    assert holder.page_reads <= 6
