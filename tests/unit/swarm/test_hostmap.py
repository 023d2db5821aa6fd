"""Host maps: even shares, few slots move, strict decoding; placement follows them."""

from collections import Counter
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdecloud import codec
from fsdecloud.errors import MalformedError
from fsdecloud.swarm.hostmap import (
    HOSTS_MAX,
    SLOTS,
    HostMap,
    Table,
    add_hosts,
    decode_host_map,
    encode_host_map,
    extends,
    replace_host,
)
from fsdecloud.swarm.placement import rank_hosts

SECRET = bytes(range(32))


def peers(count, start=0):
    return [bytes([i]) * 32 for i in range(start, start + count)]


def moved(before, after):
    return sum(
        before.hosts[a] != after.hosts[b] for a, b in zip(before.tables[0].owners, after.tables[0].owners, strict=True)
    )


def test_shares_are_even_and_only_slots_of_the_new_move():
    host_map = add_hosts(HostMap(), peers(6))
    assert host_map.epoch == 1
    assert host_map.current == tuple(peers(6))
    assert set(Counter(host_map.tables[0].owners).values()) <= {SLOTS // 6, SLOTS // 6 + 1}
    grown = add_hosts(host_map, peers(8))
    assert grown.epoch == 2
    assert grown.current == tuple(peers(8))
    assert set(Counter(grown.tables[0].owners).values()) <= {SLOTS // 8, SLOTS // 8 + 1}
    assert moved(host_map, grown) == 2 * (SLOTS // 8)
    assert grown.table(1) == host_map.tables[0]
    assert extends(grown, host_map)
    assert not extends(host_map, grown)
    assert add_hosts(grown, peers(8)) is grown


def test_a_replacement_inherits_the_slots():
    host_map = add_hosts(HostMap(), peers(6))
    new = b"n" * 32
    after = replace_host(host_map, peers(6)[2], new)
    assert moved(host_map, after) == Counter(host_map.tables[0].owners)[2]
    assert set(after.current) == (set(peers(6)) - {peers(6)[2]}) | {new}
    for blob in (bytes([i]) * 32 for i in range(50)):
        ranked = rank_hosts(SECRET, blob, host_map)
        assert [new if p == peers(6)[2] else p for p in ranked] == list(rank_hosts(SECRET, blob, after))
        assert rank_hosts(SECRET, blob, after, 1) == ranked
    with pytest.raises(ValueError, match="takes the place"):
        replace_host(host_map, new, peers(1)[0])


def test_never_more_than_the_most_hosts():
    host_map = add_hosts(HostMap(), peers(200))
    assert len(host_map.current) == HOSTS_MAX
    assert add_hosts(host_map, peers(200)) is host_map


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_encoding_round_trip(steps):
    host_map, count = HostMap(), 0
    for step in steps:
        count += step
        host_map = add_hosts(host_map, peers(count))
    assert decode_host_map(encode_host_map(host_map)) == host_map
    assert len(set(rank_hosts(SECRET, b"b" * 32, host_map))) == count


def test_empty_map():
    assert encode_host_map(HostMap()) == b""
    assert decode_host_map(b"") == HostMap()
    assert rank_hosts(SECRET, b"b" * 32, HostMap()) == ()


GOOD = add_hosts(HostMap(), peers(3))


@pytest.mark.parametrize(
    "bad",
    [
        msgspec.structs.replace(GOOD, version=3),
        msgspec.structs.replace(GOOD, hosts=(b"short",)),
        msgspec.structs.replace(GOOD, hosts=(peers(1)[0],) * 3),
        msgspec.structs.replace(GOOD, tables=()),
        msgspec.structs.replace(GOOD, tables=(Table(0, bytes(SLOTS)),)),
        msgspec.structs.replace(GOOD, tables=(Table(1, bytes(SLOTS)), Table(2, bytes(SLOTS)))),
        msgspec.structs.replace(GOOD, tables=(Table(1, bytes(SLOTS - 1)),)),
        msgspec.structs.replace(GOOD, tables=(Table(1, b"\x03" * SLOTS),)),
    ],
)
def test_a_bad_map_is_malformed(bad):
    with pytest.raises(MalformedError):
        decode_host_map(codec.encode(bad))


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_malformed(data):
    with suppress(MalformedError):
        decode_host_map(data)


def test_placement_is_spread_and_keyed():
    host_map = add_hosts(HostMap(), peers(12))
    first = Counter()
    for i in range(1200):
        ranked = rank_hosts(SECRET, i.to_bytes(32), host_map)
        assert len(ranked) == len(set(ranked)) == 12
        first[ranked[0]] += 1
    assert min(first.values()) > 50
    assert any(
        rank_hosts(SECRET, bytes([i]) * 32, host_map) != rank_hosts(b"x" * 32, bytes([i]) * 32, host_map)
        for i in range(4)
    )


def test_adding_a_host_moves_few_shards():
    before = add_hosts(HostMap(), peers(12))
    after = add_hosts(before, peers(13))
    changed = sum(
        rank_hosts(SECRET, i.to_bytes(32), before)[0] != rank_hosts(SECRET, i.to_bytes(32), after)[0]
        for i in range(1000)
    )
    assert changed < 160
