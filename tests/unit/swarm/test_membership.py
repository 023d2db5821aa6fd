"""Who is taken in, and who counts as gone."""

import pytest

from fsdecloud.errors import MalformedError
from fsdecloud.swarm.groups import HostFacts
from fsdecloud.swarm.membership import GROUP_HOSTS, Absence, choose_candidates, is_out_of_shape

SECRET = bytes(32)
DAY = 86400


def peers(count, start=0):
    return [(start + i).to_bytes(32) for i in range(count)]


def test_absence_counts_watched_time_only():
    a, b, c = peers(3)
    absence = Absence()
    for _ in range(23):
        absence.watched([a, b, c], {b}, 3600)
    assert absence.gone(DAY) == []
    absence = Absence(absence.encode())  # a restart
    absence.watched([a, b, c], {b}, 3600)
    assert absence.gone(DAY) == [b]
    absence.watched([a, b, c], set(), 60)
    assert absence.gone(0) == []
    assert absence.encode() == b""


def test_a_failing_network_of_our_own_finds_nobody_gone():
    members = peers(4)
    absence = Absence()
    absence.watched(members, set(members[:1]), 3600)
    absence.watched(members, set(members), DAY * 10)
    assert absence.gone(DAY) == []
    absence.watched(members, set(members[:3]), DAY)
    absence.watched(members, set(members[:1]), DAY)
    assert absence.gone(DAY) == members[:1]


def test_who_left_the_map_is_forgotten():
    members = peers(4)
    absence = Absence()
    absence.watched(members, {members[0]}, DAY)
    absence.watched(members[1:], set(), 60)
    assert absence.gone(0) == []
    with pytest.raises(MalformedError):
        Absence(b"\x91\x92\xa1x\x01")


def test_fault_076_a_crowd_from_one_network_does_not_fill_the_map():
    crowd = {peer: HostFacts(0, b"4one") for peer in peers(500)}
    few = {peer: HostFacts(0, b"4" + bytes([i])) for i, peer in enumerate(peers(20, 1000))}
    chosen = choose_candidates(SECRET, crowd | few, [], 64)
    assert set(few) <= set(chosen)
    assert len(chosen) == 20 + GROUP_HOSTS
    assert choose_candidates(SECRET, crowd | few, [], 64) == chosen
    assert choose_candidates(SECRET, crowd, [(b"4one", b"")] * GROUP_HOSTS, 64) == []
    # With no more room than that, the order is nobody's to choose.
    narrow = choose_candidates(SECRET, few, [], 5)
    assert len(narrow) == 5
    assert narrow != choose_candidates(b"x" * 32, few, [], 5)


def test_one_operator_is_one_whatever_its_networks():
    many = {peer: HostFacts(0, b"4" + bytes([i, 1]), b"K" * 32) for i, peer in enumerate(peers(100))}
    assert len(choose_candidates(SECRET, many, [], 64)) == GROUP_HOSTS


def test_peers_without_a_group_are_all_welcome_in_their_order():
    candidates = dict.fromkeys(peers(12), HostFacts())
    assert choose_candidates(SECRET, candidates, [], 64) == peers(12)


def test_shape():
    a, b = peers(2)
    assert not is_out_of_shape({a: 20, b: 20}, {a: 25, b: 15})
    assert is_out_of_shape({a: 20, b: 20}, {a: 32, b: 8})
    assert not is_out_of_shape({a: 1, b: 2}, {a: 2, b: 1})
