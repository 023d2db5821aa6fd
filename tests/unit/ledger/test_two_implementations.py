"""The program and a second implementation made from fsdecloud-ledger(7) agree about every block, whatever is in it."""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fsdecloud.ledger import contracting, reasons, state, work
from fsdecloud.ledger.network import decode_network, encode_network
from fsdecloud.tree.lookup import scan
from fsdecloud.tree.update import update

sys.path.insert(0, str(Path(__file__).parent))
import naive
from fast import Fast, outcome
from histories import (
    CONTRACTS,
    DOCUMENT,
    NOW,
    ROOMY,
    STEPS,
    TOO_MANY_VOTES,
    VOTING,
    Writer,
    contract_breaking,
    no_voting,
    plain,
    random_contract_steps,
    random_steps,
    random_voting_steps,
    rule_breaking,
    vote_breaking,
    without_contracts,
)

LENIENT = {"deadline": None, "suppress_health_check": list(HealthCheck)}


def play(steps, seen=None, document=DOCUMENT):
    """Give one history to both; return both and the blocks that they took."""
    fast, slow = Fast(document), naive.Ledger(document)
    writer, taken = Writer(slow), []
    for step in steps:
        data = writer.block(step)
        point, why = outcome(fast, data, NOW)
        entry, why_not = outcome(slow, data, NOW)
        assert why == why_not
        if seen is not None:
            seen[" ".join(why)] += 1
        if point is None:
            continue
        assert (point.id, point.height, point.lead) == (entry.id, entry.height, entry.lead)
        assert int.from_bytes(point.work) == entry.work
        assert int.from_bytes(work.target_after(fast.document, point.lead)) == slow.target_after(entry.lead)
        rows = entry.state.rows()
        assert fast.rows(point) == rows
        assert point.state_root == naive.state_root(slow.network, rows)
        assert fast.tip.id == slow.tip.id
        writer.points.append(entry)
        taken.append(data)
    return fast, slow, taken


def check_any_order(fast, taken, rng):
    """Deliver the blocks in another order, each again when its parent is there: the most work wins, with the same state."""
    other, waiting = Fast(encode_network(fast.document)), list(taken)
    while waiting:
        rng.shuffle(waiting)
        later = [data for data in waiting if outcome(other, data, NOW)[1] == ("UnknownParent",)]
        assert len(later) < len(waiting)
        waiting = later
    assert other.points == fast.points
    assert other.nodes == fast.nodes
    assert other.tip.work == fast.tip.work
    if sum(point.work == fast.tip.work for point in fast.points.values()) == 1:
        assert other.tip == fast.tip


def play_at_random(seed, length, seen=None, *, steps=random_steps, document=DOCUMENT):
    rng = random.Random(seed)
    fast, slow, taken = play(steps(rng, length), seen, document)
    check_any_order(fast, taken, rng)
    return fast, slow, taken


@settings(max_examples=80, **LENIENT)
@given(st.integers(0, 1 << 64), st.integers(1, 30))
def test_fault_118_both_agree_about_long_histories_delivered_in_any_order(seed, length):
    play_at_random(seed, length)


@settings(max_examples=25, **LENIENT)
@given(st.integers(0, 1 << 64), st.integers(1, 40))
def test_both_agree_about_histories_with_voters(seed, length):
    play_at_random(seed, length, steps=random_voting_steps, document=VOTING)


@settings(max_examples=25, **LENIENT)
@given(st.integers(0, 1 << 64), st.integers(1, 40))
def test_both_agree_about_histories_with_contracts(seed, length):
    play_at_random(seed, length, steps=random_contract_steps, document=CONTRACTS)


@settings(max_examples=40, **LENIENT)
@given(STEPS, st.sampled_from([DOCUMENT, VOTING]))
def test_both_agree_about_odd_histories(steps, document):
    play(steps, document=document)


@pytest.mark.long
@settings(max_examples=1500, **LENIENT)
@given(st.integers(0, 1 << 64), st.integers(1, 40))
def test_long_both_agree_about_long_histories(seed, length):
    play_at_random(seed, length)


@pytest.mark.long
@settings(max_examples=1000, **LENIENT)
@given(st.integers(0, 1 << 64), st.integers(1, 120))
def test_long_both_agree_about_histories_with_voters(seed, length):
    play_at_random(seed, length, steps=random_voting_steps, document=VOTING)


@pytest.mark.long
@settings(max_examples=600, **LENIENT)
@given(st.integers(0, 1 << 64), st.integers(1, 120))
def test_long_both_agree_about_histories_with_contracts(seed, length):
    play_at_random(seed, length, steps=random_contract_steps, document=CONTRACTS)


@pytest.mark.long
@settings(max_examples=1500, **LENIENT)
@given(STEPS, st.sampled_from([DOCUMENT, VOTING]))
def test_long_both_agree_about_odd_histories(steps, document):
    play(steps, document=document)


def test_the_random_histories_are_worth_it():
    """Most blocks are taken, with transactions of every kind, and branches part and join."""
    seen = Counter()
    play_at_random(1, 60, seen)
    assert seen[""] >= 30
    assert len(seen) >= 5
    fast, slow, taken = play(random_steps(random.Random(1), 60))
    assert fast.tip.height < len(taken)
    voted, _, more = play(random_voting_steps(random.Random(3), 160), document=VOTING)
    assert voted.finality(voted.tip).final.height > 20
    dealt, naively, still_more = play(random_contract_steps(random.Random(1), 120), document=CONTRACTS)
    assert contracting.pool_of(dealt.state(dealt.tip)).burned > 0
    assert naively.tip.state.contracts.running
    taken += more + still_more
    assert {naive.Transaction(slow.network, body).kind for data in taken for body in naive.unpack(data)[1]} == {
        kind for kind, _ in naive.KINDS.values()
    }


def test_the_histories_break_every_rule():
    seen = Counter()
    for steps in (*rule_breaking(), *no_voting(), *without_contracts()):
        play(steps, seen)
    for steps in contract_breaking():
        play(steps, seen, CONTRACTS)
    for steps in vote_breaking():
        play(steps, seen, VOTING)
    play(TOO_MANY_VOTES, seen, ROOMY)
    found = {name for names in seen for name in names.split()}
    everything = {
        name for name, kind in vars(reasons).items() if isinstance(kind, type) and kind.__module__ == reasons.__name__
    }
    # Two thousand contracts that end together have a test of their own. The others are no rules of a block: of the mempool, of
    # fork choice, of what is stored.
    assert everything - found == {
        *(
            "EndsTaken",
            "Conflict",
            "PoolFull",
            "KnownInvalid",
            "ReorgTooDeep",
            "ConflictsWithFinal",
            "StoredBlockDiffers",
        ),
        "ChainDamaged",
    }


@pytest.mark.parametrize("sizes", [(4, 90, 400), (27,), (91,)], ids=["mixed", "16 in 1024 bytes", "128 in 16384 bytes"])
@pytest.mark.parametrize("count", [1, 60, 1500])
def test_both_build_the_same_tree_of_many_rows(count, sizes):
    rng = random.Random(count)
    rows = {rng.choice([b"A", b"V", b"R"]) + rng.randbytes(32): rng.randbytes(rng.choice(sizes)) for _ in range(count)}
    network = naive.Network(DOCUMENT)
    nodes, root, items = state.StateNodes(lambda _: None), b"", list(rows.items())
    for start in range(0, count, 97):  # in batches, as blocks do
        batch = sorted(items[start : start + 97])
        root = update(nodes.get, nodes.put, state.border_key(network.id), root, batch)
    assert dict(scan(nodes.get, root, b"", None)) == rows
    assert naive.state_root(network, rows) == root


def test_both_know_the_same_targets():
    fast, slow = decode_network(DOCUMENT), naive.Ledger(DOCUMENT)
    for lead in range(-251 * fast.half_life, 8 * fast.half_life, 7):
        assert int.from_bytes(work.target_after(fast, lead)) == slow.target_after(lead)


def test_faults_117_and_118_the_state_is_the_same_under_any_hash_seed():
    script = (
        "import sys, json; sys.path.insert(0, sys.argv[1])\n"
        "from test_two_implementations import play\n"
        "fast, slow, taken = play(json.loads(sys.argv[2]))\n"
        "print([(p.id.hex(), p.state_root.hex()) for p in fast.points.values()])\n"
        "print([key.hex() for key in fast.nodes], list(fast.rows(fast.tip).items()))\n"
    )
    specs = [plain("anchor", n, 1, 9, False, 0, 0, True) for n in range(3)]
    specs += [plain("register", n, "wss://a", 0, 0) for n in range(4)] + [plain("operate", 1, 2, 0, 0)]
    steps = [(0, 2, [], False, None, n) for n in range(3)] + [(n, 3, specs, False, None, n) for n in range(3)]
    found = set()
    for seed, locale, zone in (
        ("0", "C", "UTC"),
        ("1", "C.UTF-8", "Asia/Tokyo"),
        ("4711", "tr_TR.UTF-8", "America/Lima"),
    ):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "LC_ALL": locale, "TZ": zone}
        arguments = [sys.executable, "-c", script, str(Path(__file__).parent), json.dumps(steps)]
        done = subprocess.run(
            arguments, env=environment, capture_output=True, check=True, cwd=Path(__file__).parents[3]
        )
        found.add(done.stdout)
    assert len(found) == 1
    assert found.pop().count(b"'") >= 14
