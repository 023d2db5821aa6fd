"""Repair planning and audit sampling, as pure functions."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdecloud.swarm.repair import (
    CASES_MAX,
    AuditScore,
    Containment,
    Health,
    Policy,
    Shard,
    audit_interval,
    choose_places,
    due_shards,
    in_order,
    is_under_replicated,
    next_due,
    plan_repair,
    repair_threshold,
    samples_needed,
    urgent_threshold,
)

POLICY = Policy()

codes = st.integers(1, 48).flatmap(lambda n: st.tuples(st.integers(1, n), st.just(n)))


@st.composite
def healths(draw):
    k, n = draw(codes)
    states = draw(st.lists(st.sampled_from(Shard), min_size=n, max_size=n))
    away = [draw(st.floats(0, 200_000)) if state is Shard.AWAY else 0.0 for state in states]
    return Health(k, tuple(states), tuple(away))


@given(codes)
def test_thresholds_lie_between_k_and_n(code):
    k, n = code
    assert k <= urgent_threshold(k, n) <= repair_threshold(k, n) <= n


def test_what_a_peer_that_leaves_has_is_there_and_due():
    health = Health(2, (Shard.HELD,) * 4 + (Shard.LEAVING,) * 2, (0.0,) * 6)
    assert (health.held, health.is_whole, health.is_in_place, health.is_endangered) == (6, True, False, False)
    assert due_shards(health, POLICY) == (4, 5)
    few = Health(2, (Shard.LEAVING,) * 2 + (Shard.LOST,) * 4, (0.0,) * 6)
    assert (few.is_readable, few.is_whole) == (True, False)
    assert due_shards(few, POLICY) == (0, 1, 2, 3, 4, 5)


@given(healths())
def test_what_is_lost_is_due_and_what_is_held_never(health):
    due = due_shards(health, POLICY)
    assert list(due) == sorted(set(due))
    if not health.is_readable:
        assert not due
        assert next_due(health, POLICY) == math.inf
        return
    for index, state in enumerate(health.states):
        assert state is not Shard.HELD or index not in due
        assert state not in (Shard.LOST, Shard.LEAVING) or index in due
        if state is Shard.AWAY and health.away[index] >= POLICY.gone_after:
            assert index in due
        if state is Shard.AWAY and health.away[index] < POLICY.urgent_grace:
            assert index not in due


@given(healths(), st.floats(0, 100_000))
def test_waiting_makes_due_what_next_due_said(health, more):
    later = Health(
        health.k,
        health.states,
        tuple(a + more if s is Shard.AWAY else a for s, a in zip(health.states, health.away, strict=True)),
    )
    wait = next_due(health, POLICY)
    if more < wait - 0.01:
        assert due_shards(later, POLICY) == due_shards(health, POLICY)
    elif more > wait + 0.01:
        assert len(due_shards(later, POLICY)) > len(due_shards(health, POLICY))


def test_fewer_left_means_sooner():
    def away(count, seconds):
        states = (Shard.HELD,) * (30 - count) + (Shard.AWAY,) * count
        return Health(10, states, (seconds,) * 30)

    assert not due_shards(away(9, POLICY.grace), POLICY)
    assert len(due_shards(away(10, POLICY.grace), POLICY)) == 10
    assert not due_shards(away(10, POLICY.urgent_grace), POLICY)
    assert len(due_shards(away(18, POLICY.urgent_grace), POLICY)) == 18
    assert len(due_shards(away(1, POLICY.gone_after), POLICY)) == 1


def test_closest_to_loss_first():
    blobs = [
        (held, Health(2, (Shard.HELD,) * held + (Shard.LOST,) * (6 - held), (0.0,) * 6)) for held in (5, 2, 4, 3, 1)
    ]
    assert in_order(blobs) == [1, 2, 3, 4, 5]


@st.composite
def worlds(draw):
    n = draw(st.integers(1, 12))
    hosts = draw(st.integers(0, 20))
    ranking = [bytes([i]) * 32 for i in range(hosts)]
    random.Random(draw(st.integers())).shuffle(ranking)
    others = [bytes([100 + i]) * 32 for i in range(n)]
    holders = draw(st.permutations([*ranking, *others]))
    places = dict(enumerate(holders[:n]))
    due = draw(st.sets(st.integers(0, n - 1)))
    down = draw(st.sets(st.sampled_from([*ranking, *others])))
    return n, ranking, places, sorted(due), down


@given(worlds())
def test_no_peer_gets_two_shards_and_none_is_left_out_while_there_are_peers(world):
    n, ranking, places, due, down = world
    chosen = choose_places(due, places, ranking, n, lambda peer: peer not in down)
    assert set(chosen) <= set(due)
    after = {index: peer for index, peer in places.items() if index not in due} | chosen
    assert len(set(after.values())) == len(after)
    assert not set(chosen.values()) & down
    assert set(chosen.values()) <= set(ranking)
    kept = {peer for index, peer in places.items() if index not in due}
    free = [peer for peer in ranking if peer not in kept and peer not in down]
    assert len(chosen) == min(len(due), len(free))


def test_a_shard_goes_back_to_its_place_or_past_the_nth():
    ranking = [bytes([i]) * 32 for i in range(9)]
    places = dict(enumerate(ranking[:6]))
    assert choose_places([2, 4], places, ranking, 6, lambda _: True) == {2: ranking[2], 4: ranking[4]}
    down = {ranking[2]}
    assert choose_places([2, 4], places, ranking, 6, lambda p: p not in down) == {2: ranking[6], 4: ranking[4]}
    assert choose_places([2], places, ranking, 6, lambda p: p not in down, {ranking[6]}) == {2: ranking[7]}
    assert choose_places([2], places, ranking[:6], 6, lambda p: p not in down) == {}


@given(st.floats(0.01, 0.999), st.floats(0.001, 1))
def test_samples_are_just_enough(probability, share):
    count = samples_needed(probability, share)
    assert 1 - (1 - share) ** count >= probability - 1e-9
    assert count == 1 or 1 - (1 - share) ** (count - 1) < probability + 1e-9


def test_samples_of_the_stated_policy():
    assert samples_needed(0.99, 0.05) == 90
    assert audit_interval(POLICY, 6) == POLICY.audit_period / 540
    assert audit_interval(POLICY, 0) > 0
    with pytest.raises(ValueError, match="probability"):
        samples_needed(1.0, 0.1)


def test_sampling_finds_what_it_says():
    noise = random.Random(5)
    shards = range(2000)
    bad = set(noise.sample(shards, 100))
    found = sum(any(noise.choice(shards) in bad for _ in range(90)) for _ in range(500))
    assert found > 480


def test_f073_a_miss_counts_after_its_retries_only():
    cases = Containment()
    assert not cases.missed("a", 0.0, (1.0, 4.0))
    assert not cases.missed("a", 0.5, (1.0, 4.0)), "before its time"
    assert cases.due(0.5) == []
    assert cases.due(1.0) == ["a"]
    assert not cases.missed("a", 1.0, (1.0, 4.0))
    assert cases.next_at() == 5.0
    assert cases.missed("a", 5.0, (1.0, 4.0))
    assert "a" not in cases
    assert cases.next_at() == math.inf


def test_containment_forgives_and_is_bounded():
    cases = Containment()
    cases.missed("a", 0.0, (1.0,))
    cases.passed("a")
    assert not cases.missed("a", 9.0, (1.0,)), "it begins again"
    for i in range(2 * CASES_MAX):
        cases.missed(i, 0.0, (1.0,))
    assert len(cases) == CASES_MAX


@given(st.lists(st.booleans(), max_size=200))
def test_a_score_stays_a_share(outcomes):
    score = AuditScore()
    for passed in outcomes:
        score.add(passed=passed)
        assert 0 <= score.value <= 1
    assert score.passed + score.failed == len(outcomes)


def test_scores_forgive_a_little_and_trust_comes_back_slowly():
    score = AuditScore()
    assert not any(score.add(passed=False) for _ in range(4))
    assert score.add(passed=False)
    tries = 0
    while score.is_distrusted:
        score.add(passed=True)
        tries += 1
    assert 5 < tries < 20
    flaky = AuditScore()
    assert not any(flaky.add(passed=i % 10 != 0) for i in range(1000))


def test_f058_a_peer_that_went_a_moment_ago_is_no_under_replication():
    def health(*away, lost=0):
        held = 6 - len(away) - lost
        states = (Shard.LOST,) * lost + (Shard.AWAY,) * len(away) + (Shard.HELD,) * held
        return Health(2, states, (0.0,) * lost + away + (0.0,) * held)

    assert not is_under_replicated(health(), POLICY)
    assert not is_under_replicated(health(5.0), POLICY)
    assert not is_under_replicated(health(5.0, 5.0, 5.0, 5.0), POLICY), "contained first"
    assert is_under_replicated(health(*[POLICY.urgent_grace] * 4), POLICY)
    assert is_under_replicated(health(POLICY.gone_after), POLICY)
    assert is_under_replicated(health(lost=1), POLICY)
    assert is_under_replicated(health(5.0, 5.0, 5.0, 5.0, 5.0), POLICY), "it cannot be read now"


def test_fault_076_a_repaired_shard_shares_a_group_only_when_there_is_nobody_else():
    ranking = [bytes([i]) * 32 for i in range(8)]
    places = dict(enumerate(ranking[:6]))
    labels = {peer: (b"4net" + bytes([i]), b"") for i, peer in enumerate(ranking)}
    labels[ranking[6]] = labels[ranking[0]]
    down = {ranking[2]}
    assert choose_places([2], places, ranking, 6, lambda p: p not in down) == {2: ranking[6]}
    assert choose_places([2], places, ranking, 6, lambda p: p not in down, (), labels) == {2: ranking[7]}
    down.add(ranking[7])
    assert choose_places([2], places, ranking, 6, lambda p: p not in down, (), labels) == {2: ranking[6]}
    # Nor do two that are made again share one.
    labels[ranking[7]] = labels[ranking[6]] = (b"", b"operator")
    down = {ranking[2], ranking[3]}
    found = choose_places([2, 3], places, ranking, 6, lambda p: p not in down, (), labels)
    assert set(found.values()) == {ranking[6], ranking[7]}
    found = choose_places([2, 3], places, [*ranking, b"9" * 32], 6, lambda p: p not in down, (), labels)
    assert b"9" * 32 in found.values()


def test_fault_076_what_is_planned_again_goes_beside_what_was_made_and_not_beside_who_had_it():
    ranking = [bytes([i]) * 32 for i in range(9)]
    places = dict(enumerate(ranking[:4]))
    labels = {peer: (b"", bytes([i])) for i, peer in enumerate(ranking)}
    labels[ranking[7]] = labels[ranking[2]]  # who had a shard that is elsewhere now
    health = Health(2, (Shard.HELD,) * 2 + (Shard.LOST,) * 2, (0.0,) * 4)
    gone, made = {*ranking[2:4], ranking[6]}, {2: ranking[5]}

    def plan(made):
        return plan_repair(
            health, places, ranking, POLICY, lambda p: p not in gone, lambda *_: False, (), labels, None, made
        )

    labels[ranking[4]] = labels[ranking[5]]  # who got one just now
    assert plan(made) == {3: ranking[7]}
    assert plan({}) == {2: ranking[4], 3: ranking[7]}


def test_fault_064_no_more_is_made_than_was_paid_for():
    ranking = [bytes([i]) * 32 for i in range(8)]
    health = Health(2, (Shard.LOST,) * 3 + (Shard.HELD,) * 3, (0.0,) * 6)

    def plan(paid):
        places = dict(enumerate(ranking[:6]))
        return plan_repair(health, places, ranking, POLICY, lambda _: True, lambda _i, _p: False, (), None, paid)

    assert set(plan(None)) == {0, 1, 2}
    assert set(plan({1})) == {1}
    assert plan(frozenset()) == {}
