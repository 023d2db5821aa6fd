"""The token bucket, and who goes next."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdecloud.swarm.throttle import BURST, Throttle


def drain(throttle, now, until, *, again=lambda turn: None):
    """Let turns go as they become due; return (time, turn) of each."""
    gone = []
    while True:
        at = throttle.due_at(now)
        if at is None or at > until:
            return gone
        now = max(now, at)
        turn = throttle.due(now)
        if turn is None:  # rounding of floats
            now += 1e-9
            continue
        gone.append((now, turn))
        again(turn)


@given(st.floats(1e3, 1e9), st.lists(st.integers(1, 1 << 20), min_size=1, max_size=60))
def test_the_rate_holds_over_any_longer_time(rate, sizes):
    throttle = Throttle(rate, 0.0)
    first = [size for size in sizes if throttle.enter("p", size, 0.0) is None]
    assert len(first) >= 1
    gone = drain(throttle, 0.0, float("inf"))
    assert len(gone) + len(first) == len(sizes)
    end = gone[-1][0] if gone else 0.0
    before_last = sum(sizes) - (gone[-1][1].size if gone else first[-1])
    assert before_last <= rate * (end + BURST) * (1 + 1e-6) + 1


def test_peers_get_the_same_bytes_whatever_they_queue():
    throttle = Throttle(1000.0, 0.0)
    throttle.enter("a", 1000, 0.0)
    for _ in range(100):
        throttle.enter("a", 1000, 0.0)
    for _ in range(100):
        throttle.enter("b", 100, 0.0)
    for _ in range(20):
        throttle.enter("c", 500, 0.0)
    given_to = {"a": 0, "b": 0, "c": 0}
    for _, turn in drain(throttle, 0.0, 21.0):
        given_to[turn.key] += turn.size
    assert max(given_to.values()) - min(given_to.values()) <= 1000, given_to


def test_who_was_idle_has_saved_nothing_and_owes_nothing():
    throttle = Throttle(1000.0, 0.0)
    for _ in range(60):
        throttle.enter("a", 1000, 0.0)
    drain(throttle, 0.0, 30.0)
    for _ in range(60):
        throttle.enter("b", 1000, 30.0)
    later = [turn.key for _, turn in drain(throttle, 30.0, 50.0)]
    assert abs(later.count("a") - later.count("b")) <= 1


def test_background_gets_a_ninth_and_never_nothing():
    throttle = Throttle(1000.0, 0.0)
    for _ in range(200):
        throttle.enter("a", 1000, 0.0)
        throttle.enter("a", 1000, 0.0, is_background=True)
    gone = [turn.is_background for _, turn in drain(throttle, 0.0, 90.0)]
    assert 8 <= sum(gone) <= 12
    assert 1 <= sum(gone[:20]) <= 3


def test_control_messages_wait_for_nobody_and_are_paid_for():
    throttle = Throttle(1000.0, 0.0)
    for _ in range(10):
        throttle.enter("a", 1000, 0.0)
    before = throttle.due_at(0.0)
    throttle.charge(500, 0.0)
    assert throttle.due_at(0.0) == pytest.approx(before + 0.5)


def test_leaving_the_queue_and_changing_the_limit():
    throttle = Throttle(1000.0, 0.0)
    assert throttle.enter("a", 5000, 0.0) is None
    first, second = throttle.enter("a", 10, 0.0), throttle.enter("b", 10, 0.0)
    assert throttle.leave(first)
    assert not throttle.leave(first)
    assert throttle.due(0.0) is None
    throttle.change(0, 0.0)
    assert throttle.due(0.0) is second
    assert throttle.due(0.0) is None
    assert throttle.due_at(0.0) is None
    assert throttle.enter("a", 1 << 40, 0.0) is None
    throttle.charge(1 << 40, 0.0)
