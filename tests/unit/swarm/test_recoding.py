"""When what is stored gets another redundancy, and who takes which shard then."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdecloud.errors import MalformedError
from fsdecloud.swarm.policy import Redundancy, parse_redundancy
from fsdecloud.swarm.recoding import TINY_BLOB, Steadiness, coding_of, plan_recoding, should_recode
from fsdecloud.types import PeerId, ShardId

PEERS = [PeerId(bytes([i]) * 32) for i in range(20)]


def shard(i):
    return ShardId(bytes([100 + i]) * 32)


@pytest.mark.parametrize(
    ("now", "target", "if_asked", "by_itself"),
    [
        ("1/3", "2/6", True, True),
        ("2/6", "1/3", True, False),
        ("2/6", "2/6", False, False),
        ("1/5", "2/6", True, False),
        ("4/12", "10/30", True, True),
        ("1/1", "1/3", True, True),
    ],
)
def test_auto_only_ever_makes_it_stronger(now, target, if_asked, by_itself):
    assert should_recode(parse_redundancy(now), parse_redundancy(target), is_asked=True) is if_asked
    assert should_recode(parse_redundancy(now), parse_redundancy(target), is_asked=False) is by_itself


def test_tiny_blobs_are_copies():
    assert coding_of(Redundancy(4, 12), TINY_BLOB) == Redundancy(1, 9)
    assert coding_of(Redundancy(4, 12), TINY_BLOB + 1) == Redundancy(4, 12)


def test_enough_peers_have_to_be_there_for_long():
    steady = Steadiness()
    assert steady.step(100.0) is None
    for _ in range(9):
        steady.watched(6, 6, 10.0, 100.0)
    assert steady.step(100.0) is None
    for _ in range(50):
        steady.watched(5, 6, 10.0, 100.0)  # one is away: time stands still for 2/6
    assert steady.step(100.0) == Redundancy(1, 3)
    steady.watched(6, 6, 10.0, 100.0)
    assert steady.step(100.0) == Redundancy(2, 6)
    for _ in range(20):
        steady.watched(4, 6, 10.0, 100.0)
    assert steady.step(100.0) == Redundancy(2, 6), "they are expected back"
    steady.watched(4, 5, 10.0, 100.0)
    assert steady.step(100.0) == Redundancy(1, 3), "one is gone for good: it begins again"
    again = Steadiness(steady.encode())
    assert again.step(100.0) == Redundancy(1, 3)
    assert Steadiness(b"").encode() == b""
    with pytest.raises(MalformedError):
        Steadiness(b"\x91\x92\x00\x05")


def test_what_is_there_is_not_sent_again():
    ids = [shard(i) for i in range(8)]
    held = {shard(i): [PEERS[i + 3]] for i in range(6)}
    plan = plan_recoding(ids, held, PEERS, lambda _peer: True)
    assert plan.kept == {i: PEERS[i + 3] for i in range(6)}
    assert sorted(plan.sent) == [6, 7]
    assert not set(plan.sent.values()) & set(plan.kept.values())
    # Copies are all the same: each stays with a peer that has one, with its own host where that has one.
    plan = plan_recoding([shard(0)] * 3, {shard(0): PEERS[1:6]}, PEERS, lambda _peer: True)
    assert plan.kept == {1: PEERS[1], 2: PEERS[2], 0: PEERS[3]}
    assert not plan.sent


@given(
    n=st.integers(1, 12),
    same=st.booleans(),
    down=st.sets(st.sampled_from(PEERS)),
    where=st.lists(st.sampled_from(PEERS), unique=True, max_size=12),
    stored=st.sets(st.integers(0, 11)),
)
def test_no_peer_gets_two(n, same, down, where, stored):
    ids = [shard(0 if same else i) for i in range(n)]
    held = {}
    for i, peer in enumerate(where):
        held.setdefault(shard(0 if same else i), []).append(peer)
    known = {index: PEERS[19 - index] for index in stored if index < n}
    plan = plan_recoding(ids, held, PEERS, lambda peer: peer not in down, stored=known)
    places = [*known.values(), *plan.kept.values(), *plan.sent.values()]
    assert len(places) == len(set(places))
    assert not set(plan.sent.values()) & down
    assert len(places) == len({*known, *plan.kept, *plan.sent})
    assert all(plan.kept[index] in held[ids[index]] for index in plan.kept)
    free = set(PEERS) - down - set(known.values()) - set(plan.kept.values())
    assert len(plan.sent) == min(n - len(known) - len(plan.kept), len(free))
