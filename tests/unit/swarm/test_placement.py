"""Placement by weight and network group: few shards move, the load follows the weights, and nothing but the map decides."""

import struct
from collections import Counter

import msgspec
import pytest
from blake3 import blake3
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from fsdecloud import codec
from fsdecloud.errors import MalformedError
from fsdecloud.swarm.groups import HostFacts, network_group
from fsdecloud.swarm.hostmap import (
    HOSTS_MAX,
    SLOTS,
    SLOTS_V1,
    HostMap,
    Table,
    add_hosts,
    decode_host_map,
    encode_host_map,
    extends,
    replace_host,
    replace_hosts,
    retire_tables,
    set_hosts,
    slot_counts,
)
from fsdecloud.swarm.placement import plan_moves, rank_hosts

SECRET = bytes(range(32))
BLOBS = [blake3(i.to_bytes(4)).digest() for i in range(200)]
GIB = 1 << 30


def peer(i):
    return blake3(b"peer" + i.to_bytes(4)).digest()


def facts_of(weights, groups=None, operators=None):
    return {
        peer(i): HostFacts(
            weight * GIB,
            b"4" + groups[i].to_bytes(3) if groups else b"",
            b"o" + operators[i].to_bytes(3) if operators and operators[i] else b"",
        )
        for i, weight in enumerate(weights)
    }


def holders(host_map, n, blobs=BLOBS):
    return [dict(enumerate(rank_hosts(SECRET, blob, host_map)[:n])) for blob in blobs]


def loads(host_map, n, blobs=BLOBS):
    return Counter(host for placed in holders(host_map, n, blobs) for host in placed.values())


def moves(before, after, n):
    """Count the shards that move, and check that afterwards each blob is with n hosts of the new order."""
    count = 0
    for blob, old in zip(BLOBS, holders(before, n), strict=True):
        ranking = rank_hosts(SECRET, blob, after)
        plan = plan_moves(old, ranking, n)
        assert set((old | plan).values()) == set(ranking[:n])
        assert all(old[index] != host for index, host in plan.items())
        count += len(plan)
    return count


def slots_moved(before, after):
    return sum(
        before.hosts[a] != after.hosts[b] for a, b in zip(before.tables[0].owners, after.tables[0].owners, strict=True)
    )


weights_of_many = st.lists(st.sampled_from([100, 150, 200]), min_size=14, max_size=40)
shard_counts = st.sampled_from([3, 6, 12])
few = settings(max_examples=8, deadline=None, derandomize=True, phases=(Phase.explicit, Phase.generate))
SLACK = 12
"""Shards: so few blobs are a sample, and always the same one; larger networks are in tests/simulation."""


# ---- movement --------------------------------------------------------------------------------------------------------
@few
@given(st.integers(14, 40), shard_counts)
def test_a_new_host_moves_what_it_gets_and_little_else(count, n):
    before = set_hosts(HostMap(), facts_of([100] * count), n)
    after = set_hosts(before, facts_of([100] * (count + 1)), n)
    # Whatever the algorithm: the newcomer's shards must move to it.
    least = loads(after, n)[peer(count)]
    assert moves(before, after, n) <= 1.2 * least + SLACK
    assert extends(after, before)


@few
@given(weights_of_many, st.integers(0, 13), shard_counts)
def test_a_removed_host_moves_what_it_had_and_little_else(weights, gone, n):
    weights = sorted(weights)  # so that the median stays, and with it what all others should have
    gone += len(weights) // 2 - 7
    facts = facts_of([*weights, *[150] * 9])
    before = set_hosts(HostMap(), facts, n)
    after = set_hosts(before, {p: f for p, f in facts.items() if p != peer(gone)}, n)
    assert peer(gone) not in after.current
    assert moves(before, after, n) <= 1.2 * loads(before, n)[peer(gone)] + SLACK


@few
@given(weights_of_many, st.integers(0, 13), shard_counts)
def test_a_replaced_host_moves_what_it_had_and_nothing_else(weights, gone, n):
    before = set_hosts(HostMap(), facts_of(weights), n)
    new = peer(999)
    after = replace_host(before, peer(gone), new, HostFacts(7))
    for old, placed in zip(holders(before, n), holders(after, n), strict=True):
        assert placed == {i: new if host == peer(gone) else host for i, host in old.items()}
    assert moves(before, after, n) == loads(before, n)[peer(gone)]


@few
@given(st.integers(30, 40), st.integers(0, 29), shard_counts)
def test_a_new_weight_moves_what_its_slots_carry_and_little_else(count, changed, n):
    before = set_hosts(HostMap(), facts_of([100] * count), n)
    weights = [100] * count
    weights[changed] = 200
    after = set_hosts(before, facts_of(weights), n)
    least = slots_moved(before, after) / SLOTS * n * len(BLOBS)
    assert slots_moved(before, after) == after.slots()[peer(changed)] - before.slots()[peer(changed)]
    assert moves(before, after, n) <= 1.2 * least + SLACK


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.dictionaries(st.integers(0, 80), st.integers(0, 10**6), min_size=1, max_size=HOSTS_MAX),
        min_size=1,
        max_size=5,
    ),
    st.integers(1, 48),
)
def test_slots_always_have_owners_and_the_fewest_move(states, n):
    host_map = HostMap()
    for state in states:
        facts = {peer(i): HostFacts(weight) for i, weight in state.items()}
        after = set_hosts(host_map, facts, n)
        assert set(after.current) == set(facts)
        assert after.slots() == slot_counts(facts, n)
        assert sum(after.slots().values()) == SLOTS
        assert min(after.slots().values()) >= 1
        assert set_hosts(after, facts, n) is after
        if host_map.tables:
            old = host_map.slots()
            least = sum(max(0, count - old.get(p, 0)) for p, count in after.slots().items())
            assert slots_moved(host_map, after) == least
            assert extends(after, host_map)
        host_map = decode_host_map(encode_host_map(after))
        assert host_map == after


# ---- load ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("count", "n"), [(30, 12), (30, 10), (45, 12), (64, 12), (64, 30), (40, 6), (36, 30), (30, 1)])
def test_the_load_follows_the_weights(count, n):
    weights = [100 + 100 * (i % 5) // 4 for i in range(count)]
    host_map = set_hosts(HostMap(), facts_of(weights), n)
    blobs = [blake3(i.to_bytes(4)).digest() for i in range(6000)]
    found = loads(host_map, n, blobs)
    ideal = _ideal(weights, n)
    if n == 1:
        ideal = {p: c / SLOTS for p, c in host_map.slots().items()}
    for i in range(count):
        expected = ideal[i] if n > 1 else ideal[peer(i)]
        assert found[peer(i)] / len(blobs) == pytest.approx(expected, rel=0.15), (i, weights[i])


def _ideal(weights, n):
    """The chance that a host gets a shard, in proportion to its weight, at most 0.8 unless all are as likely."""
    if n >= 0.8 * len(weights):
        return dict.fromkeys(range(len(weights)), n / len(weights))
    chances, rest = {}, set(range(len(weights)))
    while True:
        left = n - 0.8 * (len(weights) - len(rest))
        total = sum(weights[i] for i in rest)
        full = {i for i in rest if left * weights[i] / total > 0.8}
        if not full:
            return chances | {i: left * weights[i] / total for i in rest}
        chances |= dict.fromkeys(full, 0.8)
        rest -= full


def test_who_claims_everything_gets_a_bounded_share():
    facts = facts_of([100] * 39 + [10**9])
    counts = slot_counts(facts, 12)
    assert counts[peer(39)] <= 3 * counts[peer(0)]
    assert slot_counts(facts_of([0] * 4), 3) == dict.fromkeys(map(peer, range(4)), SLOTS // 4)


# ---- groups (fault 76) -----------------------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), min_size=1, max_size=40), shard_counts)
def test_fault_076_no_two_shards_in_one_group_or_of_one_operator_while_there_are_enough(places, n):
    groups, operators = [g for g, _ in places], [o for _, o in places]
    host_map = set_hosts(HostMap(), facts_of([1] * len(places), groups, operators), n)
    labels = host_map.labels()
    for blob in BLOBS[:20]:
        ranking = rank_hosts(SECRET, blob, host_map)
        assert sorted(ranking) == sorted(host_map.current)
        first = ranking[: _distinct(ranking, labels)]
        # Nobody outside of the first round could have been in it.
        for host in ranking[len(first) :]:
            assert any(_are_one(labels[host], labels[other]) for other in first)
    by_group = set_hosts(HostMap(), facts_of([1] * len(places), groups), n)
    group_of = {p: g for p, (g, _) in by_group.labels().items()}
    for blob in BLOBS[:20]:
        ranking = rank_hosts(SECRET, blob, by_group)
        assert len({group_of[host] for host in ranking[:n]}) == min(n, len(set(groups)))


def _are_one(a, b):
    return any(x and x == y for x, y in zip(a, b, strict=True))


def _distinct(ranking, labels):
    for count, host in enumerate(ranking):
        if any(_are_one(labels[host], labels[other]) for other in ranking[:count]):
            return count
    return len(ranking)


def test_fault_076_a_sybil_with_many_ids_holds_one_shard_of_each_blob():
    honest = [HostFacts(100, b"4" + bytes([1, 1, i])) for i in range(16)]
    one_net = [HostFacts(100, b"4" + bytes([9, 9, 9])) for _ in range(24)]
    one_operator = [HostFacts(100, b"4" + bytes([7, 7, i]), b"K" * 32) for i in range(24)]
    facts = {peer(i): fact for i, fact in enumerate([*honest, *one_net, *one_operator])}
    host_map = set_hosts(HostMap(), facts, 12)
    for blob in BLOBS:
        chosen = [facts[host] for host in rank_hosts(SECRET, blob, host_map)[:12]]
        assert sum(fact in one_net for fact in chosen) <= 1
        assert sum(fact.operator == b"K" * 32 for fact in chosen) <= 1


def test_peers_of_one_group_share_what_the_group_gets():
    groups = [0, 0, 0, *range(1, 30)]
    counts = slot_counts(facts_of([100] * 32, groups), 6)
    one = sum(counts[peer(i)] for i in range(3))
    assert one < 4 * counts[peer(20)]
    host_map = set_hosts(HostMap(), facts_of([100] * 32, groups), 6)
    found = loads(host_map, 6)
    assert found[peer(0)] == pytest.approx(found[peer(20)], rel=0.5)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (("203.0.113.7", 1), ("203.0.113.250", 2), True),
        (("203.0.113.7", 1), ("203.0.114.7", 1), False),
        (("2001:db8:1::5", 1), ("2001:0db8:0001:ffff::1", 9), True),
        (("2001:db8:1::5", 1), ("2001:db8:2::5", 1), False),
        (("::ffff:203.0.113.9", 1), ("203.0.113.7", 1), True),
        (("2002:cb00:7109::1", 1), ("203.0.113.7", 1), True),
        (("a.example.org", 1), ("b.x.EXAMPLE.org.", 2), True),
        (("a.example.org", 1), ("a.example.net", 1), False),
        (("127.0.0.1", 1), ("127.0.0.1", 2), False),
        (("127.0.0.1", 1), ("127.0.0.1", 1), True),
        (("::1", 1), ("::1", 2), False),
        (("10.0.0.1", 1), ("10.0.0.2", 1), False),
        (("fd00::1", 1), ("fd00::2", 1), False),
        (("localhost", 1), ("localhost", 2), False),
    ],
)
def test_network_groups(first, second, same):
    labels = network_group(*first), network_group(*second)
    assert (labels[0] == labels[1]) is same
    assert all(1 <= len(label) <= 9 for label in labels)


# ---- the map decides alone -------------------------------------------------------------------------------------------
def test_a_reader_with_the_encoded_map_finds_the_same_hosts():
    host_map = set_hosts(HostMap(), facts_of([3, 2, 1] * 5, [i // 2 for i in range(15)], [i % 4 for i in range(15)]), 6)
    moved = dict(facts_of([1] * 15, [14 - i for i in range(15)]))  # everybody changed networks meanwhile
    later = set_hosts(replace_host(host_map, peer(3), peer(77)), moved, 6)
    read = decode_host_map(encode_host_map(later))
    for blob in BLOBS[:100]:
        for epoch in (1, 2, 3):
            assert rank_hosts(SECRET, blob, read, epoch) == rank_hosts(SECRET, blob, later, epoch)
        assert rank_hosts(SECRET, blob, read, 1) == rank_hosts(SECRET, blob, host_map)


def test_version_1_is_read_and_ranks_as_it_did():
    hosts = tuple(peer(i) for i in range(9))
    owners = bytes(i * 7 % 9 for i in range(SLOTS_V1))
    host_map = decode_host_map(codec.encode((1, hosts, ((4, owners), (2, bytes(SLOTS_V1))))))
    assert (host_map.version, host_map.epoch, host_map.current) == (2, 4, hosts)
    for blob in BLOBS[:50]:
        weights = struct.unpack(f">{SLOTS_V1}I", blake3(blob, key=SECRET).digest(length=4 * SLOTS_V1))
        slots = sorted(range(SLOTS_V1), key=weights.__getitem__, reverse=True)
        assert rank_hosts(SECRET, blob, host_map) == tuple(dict.fromkeys(hosts[owners[slot]] for slot in slots))
        assert rank_hosts(SECRET, blob, host_map, 2) == (hosts[0],)
    grown = set_hosts(host_map, {p: HostFacts() for p in (*hosts, peer(20))}, 3)
    assert len(grown.tables[0].owners) == SLOTS_V1
    assert slots_moved(host_map, grown) <= SLOTS_V1 // 10 + 9
    assert decode_host_map(encode_host_map(grown)) == grown
    with pytest.raises(MalformedError, match="version 3"):
        decode_host_map(codec.encode((3, hosts, ((1, owners),))))


def test_equal_weights_of_slots_are_ordered_by_slot(monkeypatch):
    class Same:
        def __init__(self, *_args, **_kwargs):
            pass

        def digest(self, *, length):
            return (b"\0\0\0\1" * length)[:length]

    monkeypatch.setattr("fsdecloud.swarm.placement.blake3", Same)
    host_map = add_hosts(HostMap(), [peer(i) for i in range(5)])
    assert rank_hosts(SECRET, bytes(32), host_map) == tuple(peer(i) for i in range(5))


def test_plan_moves_with_too_few_hosts_and_missing_holders():
    a, b, c, d = (peer(i) for i in range(4))
    assert plan_moves({0: a, 1: b, 2: c}, (c, d), 3) == {0: d}
    assert plan_moves({1: b}, (a, b, c), 3) == {0: a, 2: c}
    assert plan_moves({0: a, 1: a}, (a, b), 2) == {1: b}


# ---- several at once, and letting go ---------------------------------------------------------------------------------
def test_several_are_replaced_under_one_epoch():
    host_map = set_hosts(HostMap(), facts_of([1] * 6, list(range(6))), 6)
    after = replace_hosts(host_map, {peer(i): (peer(50 + i), HostFacts(0, b"4new")) for i in (1, 2)})
    assert after.epoch == 2
    assert [p for p in after.current if p not in host_map.current] == [peer(51), peer(52)]
    assert after.labels()[peer(51)] == (b"4new", b"")
    for wrong in ({}, {peer(9): (peer(8), HostFacts())}, {peer(i): (peer(50), HostFacts()) for i in (1, 2)}):
        with pytest.raises(ValueError, match="takes the place"):
            replace_hosts(host_map, wrong)


def test_retired_tables_take_with_them_what_only_they_named():
    host_map = set_hosts(HostMap(), facts_of([1] * 6, list(range(6)), [0, 1, 2, 0, 0, 0]), 6)
    host_map = replace_host(host_map, peer(1), peer(61), HostFacts(0, b"4six"))
    host_map = replace_host(host_map, peer(2), peer(62), HostFacts(0, b"4two"))
    kept = retire_tables(host_map, [2])
    assert [table.epoch for table in kept.tables] == [3, 2]
    assert peer(1) not in kept.hosts
    assert len(kept.groups) == 7
    assert decode_host_map(encode_host_map(kept)) == kept
    assert extends(host_map, kept)
    assert not extends(kept, host_map)
    for blob in BLOBS[:50]:
        for epoch in (2, 3):
            assert rank_hosts(SECRET, blob, kept, epoch) == rank_hosts(SECRET, blob, host_map, epoch)
    assert retire_tables(kept, []).current == host_map.current


BASE = set_hosts(HostMap(), facts_of([1] * 4, list(range(4))), 3)


@pytest.mark.parametrize(
    "bad",
    [
        msgspec.structs.replace(BASE, groups=BASE.groups[:2]),
        msgspec.structs.replace(BASE, groups=(b"x" * 40, *BASE.groups[1:])),
        msgspec.structs.replace(BASE, groups=(b"", *BASE.groups[1:])),
        msgspec.structs.replace(BASE, groups=BASE.groups[:1] * 4),
        msgspec.structs.replace(BASE, tables=(Table(1, BASE.tables[0].owners, b"\1\2\3"),)),
        msgspec.structs.replace(BASE, tables=(Table(1, BASE.tables[0].owners, b"", b"\1\1\1\1"),)),
    ],
)
def test_a_map_with_bad_groups_is_malformed(bad):
    with pytest.raises(MalformedError):
        decode_host_map(codec.encode(bad))


def test_a_different_grouping_does_not_extend():
    assume_same = set_hosts(HostMap(), facts_of([1] * 4, list(range(4))), 3)
    assert extends(assume_same, BASE)
    assert not extends(set_hosts(HostMap(), facts_of([1] * 4, [0, 0, 1, 2]), 3), BASE)
