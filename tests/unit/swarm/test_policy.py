"""Redundancy by number of peers, and scores of peers."""

import pytest

from fsdecloud.errors import UsageError
from fsdecloud.swarm.policy import Redundancy, anchorable, choose_redundancy, parse_redundancy
from fsdecloud.swarm.score import HEDGE_MAX, HEDGE_MIN, PeerScore


@pytest.mark.parametrize(
    ("usable", "text"),
    [
        (0, "1/1"),
        (2, "1/1"),
        (3, "1/3"),
        (5, "1/3"),
        (6, "2/6"),
        (11, "2/6"),
        (12, "4/12"),
        (30, "10/30"),
        (99, "10/30"),
    ],
)
def test_default_by_number_of_peers(usable, text):
    redundancy, warning = choose_redundancy(None, usable)
    assert str(redundancy) == text
    assert bool(warning) == (usable < 3)


def test_a_fixed_redundancy_waits_for_peers():
    wanted = parse_redundancy("4/12")
    assert choose_redundancy(wanted, 12) == (Redundancy(4, 12), "")
    assert choose_redundancy(wanted, 10)[1].startswith("2 more peers")
    assert wanted.copies == 9
    assert parse_redundancy("auto") is None


@pytest.mark.parametrize("text", ["", "2", "2/", "/6", "0/3", "4/3", "1/49", "a/b", "-1/3", "²/6", "2/6/8"])
def test_bad_redundancy(text):
    with pytest.raises(UsageError, match="redundancy"):
        parse_redundancy(text)


@pytest.mark.parametrize(
    ("k", "n", "count"), [(1, 1, 1), (1, 3, 2), (2, 6, 4), (4, 12, 8), (10, 30, 20), (2, 3, 3), (3, 3, 3)]
)
def test_anchorable(k, n, count):
    assert anchorable(k, n) == count


def test_a_slow_peer_is_expected_slow():
    fast, slow = PeerScore(), PeerScore()
    for _ in range(40):
        fast.succeeded(1000, 0.001)
        slow.succeeded(1000, 0.3)
        fast.succeeded(1 << 20, 0.005)
        slow.succeeded(1 << 20, 1.0)
    assert fast.expected(1 << 19) < 0.01 < slow.expected(1 << 19)
    assert HEDGE_MIN <= fast.hedge_after(1 << 19) < slow.hedge_after(1 << 19) <= HEDGE_MAX
    fast.pending = 1 << 30
    assert fast.expected(1000) > slow.expected(1000)


def test_fault_046_failures_are_left_alone_for_as_long_as_they_cost():
    refused, hole = PeerScore(), PeerScore()
    refused.failed(100.0, 0.001, 0.5)
    hole.failed(100.0, 10.0, 0.5)
    assert not refused.may_try(100.1)
    assert refused.may_try(101)
    assert not hole.may_try(129)
    assert hole.may_try(131)
    assert hole.is_failing
    assert hole.fails_slowly, "whoever waits for an answer is not sent there"
    assert not refused.fails_slowly
    hole.answered()
    assert not hole.is_failing
    assert not hole.fails_slowly
    assert hole.may_try(0)
    for _ in range(100):
        refused.failed(200.0, 0.001, 0.99)
    assert refused.may_try(204)
    assert refused.failures == 101
