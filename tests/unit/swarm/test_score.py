"""What is learnt of a peer's speed, and what follows from it."""

import random

import pytest

from fsdecloud.swarm.hedging import ENOUGH, AnswerTimes
from fsdecloud.swarm.score import LATE_HALF, PeerScore

SHARD = 256 << 10


def seen(seconds, count=40, size=SHARD):
    score = PeerScore()
    for _ in range(count):
        score.succeeded(0, 0.002)
        score.succeeded(size, seconds)
    return score


def test_the_faster_peer_comes_first():
    fast, slow = seen(0.004), seen(0.05)
    assert fast.expected(SHARD) < slow.expected(SHARD)
    assert 0.002 < fast.expected(SHARD) < 0.01
    assert slow.expected(SHARD) == pytest.approx(0.05, rel=0.2)


def test_what_waits_already_counts():
    one, other = seen(0.004), seen(0.004)
    one.pending = 8 * SHARD
    assert one.expected(SHARD) > 3 * other.expected(SHARD)


def test_fault_075_a_peer_that_serves_slowly_is_demoted_within_a_few_answers():
    scores = [seen(0.004 * random.Random(i).uniform(0.8, 1.2)) for i in range(6)]
    for _ in range(3):
        scores[0].succeeded(SHARD, 2.0)
    assert min(scores, key=lambda s: s.cost(SHARD, 0.0)) is not scores[0]
    assert max(scores, key=lambda s: s.cost(SHARD, 0.0)) is scores[0]
    assert scores[0].expected(SHARD) > 5 * scores[1].expected(SHARD)


def test_fault_048_who_is_overtaken_comes_later_and_is_tried_again():
    score, other = seen(0.004), seen(0.02)
    assert score.cost(SHARD, 100.0) < other.cost(SHARD, 100.0)
    score.overtaken(100.0, 0.2)
    assert score.cost(SHARD, 100.0) > 4 * other.cost(SHARD, 100.0)
    score.overtaken(101.0, 0.2)
    assert score.lateness(101.0) < 0.2, "it approaches what was seen, and does not add up"
    assert score.cost(SHARD, 101.0 + 5 * LATE_HALF) < other.cost(SHARD, 101.0 + 5 * LATE_HALF)


def test_the_percentile_is_of_the_class():
    times = AnswerTimes()
    assert times.percentile(0.001, SHARD) is None
    for i in range(ENOUGH * 5):
        times.add(0.001, SHARD, 0.010 + i / 10_000)
        times.add(0.150, SHARD, 0.300)
        times.add(0.001, 4096, 0.001)
    assert times.percentile(0.001, SHARD) == pytest.approx(0.0195, abs=0.001)
    assert times.percentile(0.0009, SHARD + 100) == times.percentile(0.001, SHARD)
    assert times.percentile(0.150, SHARD) == pytest.approx(0.3)
    assert times.percentile(0.001, 4096) == pytest.approx(0.001)
    assert times.percentile(5.0, SHARD) is None


def test_the_percentile_follows_the_load():
    times = AnswerTimes()
    for _ in range(200):
        times.add(0.001, SHARD, 0.01)
    for _ in range(200):
        times.add(0.001, SHARD, 0.1)
    assert times.percentile(0.001, SHARD) == pytest.approx(0.1)
