"""Whatever a contract says: it ends, its money is conserved, and two implementations agree about it."""

import contextlib
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fsdecloud import codec
from fsdecloud.contracts import language as lang
from fsdecloud.contracts.bounds import last_height
from fsdecloud.contracts.inputs import DOMAIN
from fsdecloud.contracts.language import encode_document
from fsdecloud.contracts.machine import _Run, challenge_seed, deploy, step, timeout_of
from fsdecloud.contracts.parsing import parse_document
from fsdecloud.contracts.printing import print_document
from fsdecloud.contracts.program import compile_document
from fsdecloud.contracts.reasons import InputRefused, InvalidArguments
from fsdecloud.limits import CONTRACT_NODES, CONTRACT_STEP

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "ledger"))
import naive
import plain
import randomly

LENIENT = {"deadline": None, "suppress_health_check": list(HealthCheck)}


class PlainEnv:
    """What `randomly.Env` is, for the second implementation."""

    def __init__(self, env):
        self.ids = env.block_ids

    def is_held(self, root, drawn_from, samples, proof):
        seed = naive.H("storage challenge", drawn_from)
        assert seed == challenge_seed(drawn_from[:32], int.from_bytes(drawn_from[32:40]), (drawn_from[40:],))
        return proof == b"held"

    def is_signed(self, key, prefix, fields, signature):
        return naive.is_signed(key, prefix + naive.pack(fields), signature, DOMAIN)


def payments(outcome):
    return [(payment.key, payment.amount, payment.storage) for payment in outcome.payments]


def run_both(seed, seen=None):
    """Run a random contract to its end in both implementations, and check after each step what always holds."""
    rng = randomly.rng_of(seed)
    document = randomly.Maker(rng).document()
    program, raw = compile_document(document), naive.unpack(encode_document(document))
    arguments = randomly.arguments(rng)
    start = height = rng.randrange(1, 50)
    slow = plain.Plain(raw, arguments, start, randomly.NETWORK, randomly.CONTRACT)
    slow.reduce(start)
    end, rounds = plain.last_height(raw, arguments, start)
    try:
        outcome = deploy(program, arguments, start)
    except InvalidArguments:
        assert slow.where is None or rounds > 1 << 16 or end > start + (1 << 24)
        return None
    assert outcome.instance.end == end == last_height(program, arguments, start)
    instance, put, got = outcome.instance, 0, 0
    for _ in range(rng.randrange(1, 40)):
        assert codec.decode(codec.encode(instance), type(instance)) == instance
        assert naive.unpack(codec.encode(instance)) == slow.row(program.id, arguments, end)
        assert sum(instance.running.balances) == put - got
        assert min(instance.running.balances) >= 0
        height += rng.choice([0, 0, 1, 2, 5, 30])
        acts, actor = choose(rng, program, instance, height)
        env = randomly.Env(height)
        before = naive.unpack(codec.encode(instance))
        try:
            outcome = step(program, randomly.CONTRACT, instance, actor, height, acts, env)
            why = ""
        except InputRefused as exc:
            why = type(exc).__name__
        # The second one has no way back: it does it on a copy.
        copy = slow.copy()
        try:
            copy.step(actor, height, [naive.unpack(codec.encode(act)) for act in acts], PlainEnv(env))
            why_not = ""
        except plain.Refused as exc:
            why_not = str(exc)
        assert why == why_not
        if seen is not None:
            seen[why] += 1
        if why:
            assert naive.unpack(codec.encode(instance)) == before
            continue
        slow = copy
        assert payments(outcome) == slow.paid
        assert (outcome.deposited, outcome.work) == (slow.deposited, slow.work + slow.extra)
        put, got = put + outcome.deposited, got + sum(amount for _, amount, _ in slow.paid)
        plain_work = outcome.work - slow.extra
        assert plain_work <= CONTRACT_STEP + (2 + 2 * len(acts)) * CONTRACT_NODES
        instance = outcome.instance
        if instance is None:
            break
    # By its last timeout it is over, in however many steps, with nothing kept.
    while instance is not None:
        outcome = step(program, randomly.CONTRACT, instance, b"", max(end, height), (), randomly.Env())
        instance, got = outcome.instance, got + sum(payment.amount for payment in outcome.payments)
    assert put == got
    return put


def choose(rng, program, instance, height):
    """Return acts that may fit where the contract is, and who sends them."""
    acts, actor = [], rng.choice(randomly.KEYS)
    for _ in range(rng.choice([0, 1, 1, 1, 1, 2])):
        run = _Run(program, instance.arguments, instance.start, instance.running)
        node = program.nodes[instance.running.node]
        if not node.cases:
            break
        action = rng.choice(node.cases).action
        act, seed = randomly.act_for(rng, action, run.value, run.sequence(getattr(action, "name", "")))
        acts.append(act)
        actor = randomly.KEYS[randomly.SEEDS.index(seed)]
    return tuple(acts), actor


@settings(max_examples=120, **LENIENT)
@given(st.integers(0, 1 << 64))
def test_a_random_contract_ends_conserves_its_money_and_is_the_same_in_both(seed):
    run_both(seed)


@pytest.mark.long
@settings(max_examples=20_000, **LENIENT)
@given(st.integers(0, 1 << 64))
def test_long_random_contracts(seed):
    run_both(seed)


def test_the_random_contracts_are_worth_it():
    """Many run, money moves in them, and each reason for which an input is refused comes up."""
    seen, moved = Counter(), 0
    for seed in range(300):
        moved += bool(run_both(seed, seen))
    assert moved > 40
    assert seen[""] > 300
    assert set(seen) >= {
        *("NoSuchCase", "WrongAmount", "WrongActor", "OutOfBounds", "OldAgreement", "BadAgreement", "NotHeld"),
        *("NotBehind", "ContractOver"),
    }


@settings(max_examples=50, **LENIENT)
@given(st.integers(0, 1 << 64))
def test_a_random_document_is_the_same_after_printing(seed):
    document = randomly.Maker(randomly.rng_of(seed)).document()
    assert parse_document(print_document(document)) == document


@settings(max_examples=60, **LENIENT)
@given(st.integers(0, 1 << 64))
def test_it_does_not_matter_when_somebody_looks(seed):
    """A contract that is looked at in every block is at the end where one is that was looked at once."""
    rng = randomly.rng_of(seed)
    program = compile_document(randomly.Maker(rng).document())
    arguments, start = randomly.arguments(rng), 10
    try:
        instance = deploy(program, arguments, start).instance
    except InvalidArguments:
        return
    acts, actor = choose(rng, program, instance, start)
    with contextlib.suppress(InputRefused):
        instance = step(program, randomly.CONTRACT, instance, actor, start, acts, randomly.Env(start)).instance
    late, early, paid = instance, instance, ([], [])
    while early is not None:
        height = timeout_of(program, early)
        outcome = step(program, randomly.CONTRACT, early, b"", height, (), randomly.Env())
        paid[0].extend(outcome.payments)
        early = outcome.instance
    while late is not None:
        outcome = step(program, randomly.CONTRACT, late, b"", late.end, (), randomly.Env())
        paid[1].extend(outcome.payments)
        late = outcome.instance
    assert paid[0] == paid[1]


def test_fault_112_values_stay_within_their_bound():
    """What would pass 2^62, also 2^63 and 2^64, is the bound, in both implementations."""
    big = lang.Constant(lang.BOUND)
    for value, found in [
        (lang.Add(big, big), lang.BOUND),
        (lang.Multiply(big, lang.Constant(4)), lang.BOUND),
        (lang.Multiply(big, lang.Constant(-2)), -lang.BOUND),
        (lang.Subtract(lang.Negate(big), big), -lang.BOUND),
        (lang.Scale(big, big, big), lang.BOUND),
        (lang.Scale(big, big, lang.Constant(1)), lang.BOUND),
        (lang.Divide(lang.Constant(-7), lang.Constant(2)), -3),
        (lang.Divide(big, lang.Constant(0)), 0),
    ]:
        body = lang.Let("x", value, lang.When((), lang.Add(lang.Start(), lang.Constant(1)), lang.Close()))
        document = lang.Document(1, "bounds", (lang.PartyParameter("ann"),), (), body)
        program, raw = compile_document(document), naive.unpack(encode_document(document))
        assert dict(deploy(program, (randomly.KEYS[0],), 5).instance.running.variables) == {"x": found}
        slow = plain.Plain(raw, (randomly.KEYS[0],), 5)
        slow.reduce(5)
        assert slow.variables == {"x": found}
