"""The address book: bounded, and not to be filled by one party (faults 59 and 76)."""

import random

import pytest

from fsdecloud.errors import MalformedError
from fsdecloud.swarm import addressbook as module
from fsdecloud.swarm.addressbook import AddressBook, Known, decode_book
from fsdecloud.swarm.groups import network_group
from fsdecloud.types import PeerId

OWN = PeerId(b"o" * 32)
NOW = 1_800_000_000


def peer(i):
    return PeerId(i.to_bytes(32, "big"))


def known(i, host=None, port=7711, *, sequence=1, source=b"s", heard=NOW):
    return Known(peer(i), host or f"9.{i >> 8}.{i & 255}.7", port, sequence, b"a%d" % i, source, heard)


def book():
    return AddressBook(b"k" * 32, OWN)


def tried(the_book, *items):
    for item in items:
        the_book.add(item)
        the_book.answered(PeerId(item.peer), item.host, item.port, NOW)


def test_what_answered_is_told_and_what_did_not_is_not():
    b = book()
    tried(b, known(1))
    b.add(known(2))
    assert len(b) == 2
    assert b.tried_count == 1
    assert [k.announcement for k in b.tellable()] == [b"a1"]
    b.failed(peer(1), "9.0.1.7", 7711, NOW)
    assert b.tellable() == []
    assert b.known(peer(2)).host == "9.0.2.7"
    assert [k.peer for k in b.everybody()] == [peer(1), peer(2)]
    b.drop(peer(1))
    assert [k.peer for k in b.everybody()] == [peer(2)]
    assert b.anchors == []


def test_we_are_not_in_our_own_book():
    b = book()
    assert not b.add(Known(OWN, "9.9.9.9", 1, 1, b"", b"", NOW))
    assert len(b) == 0


def test_fault_076_one_teller_fills_a_part_of_the_new_ones_only():
    b = book()
    tried(b, *(known(i, f"{20 + i}.1.1.1") for i in range(20)))
    for i in range(100, 20_000):
        b.add(known(i, f"{30 + i % 200}.{i >> 8 & 255}.{i & 255}.9", source=b"evil"))
    buckets = {place[0] for place in b._new.values()}
    assert len(buckets) <= module.NEW_OF_SOURCE
    assert len(b._new) <= module.NEW_OF_SOURCE * module.BUCKET_SIZE
    assert b.tried_count == 20
    for i in range(20_000, 20_200):  # others are still heard
        b.add(known(i, f"{30 + i % 200}.7.7.7", source=b"honest %d" % (i % 50)))
    assert sum(1 for k in b._new_places.values() if k.source != b"evil") > 130


def test_fault_076_one_network_fills_a_part_of_the_tried_ones_only():
    """Even one that answers: with 10,000 ids in a /24, and in a /48."""
    b = book()
    honest = [known(i, f"{20 + i}.1.1.1") for i in range(100)]
    tried(b, *honest)
    before = b.tried_count
    assert before == 100
    for i in range(1000, 11_000):
        host = f"66.6.6.{i & 255}" if i % 2 else f"2001:db8:6:{i:x}::1"
        tried(b, known(i, host, 1000 + i % 60_000, source=b"%d" % i))
    groups = [network_group(k.host, k.port) for k in b._tried_places.values()]
    for evil in (network_group("66.6.6.6", 1), network_group("2001:db8:6::1", 1)):
        assert groups.count(evil) <= module.TRIED_OF_GROUP * module.BUCKET_SIZE
    still = sum(b.tried(PeerId(k.peer)) is not None for k in honest)
    assert still == before  # they were there first, and nobody tested them in vain


def test_no_two_of_a_handful_contend():
    """Places are random, and a bucket has room: nobody is left untold because of an unlucky hash (fault 59)."""
    for n in range(300):
        b = AddressBook(b"%032d" % n, OWN)
        items = [known(i, "127.0.0.1", 30_000 + 17 * i + n) for i in range(12)]
        tried(b, *items)
        assert {k.peer for k in b.tellable()} == {k.peer for k in items}


def collide(b):
    """Fill a bucket of tried; return two addresses that want the same place in it, of which the first has it."""
    full, holders = None, {}
    for i in range(200_000):
        item = known(i, f"{i % 200 + 20}.{i // 200 % 250}.{i // 50_000}.1")
        bucket, place = b._tried_place(item)
        if full is None:
            full = bucket
        if bucket != full:
            continue
        if len(holders) == module.BUCKET_SIZE:
            return holders[place], item
        if place not in holders:
            holders[place] = item
            tried(b, item)
    raise AssertionError


def test_fault_076_who_holds_a_place_is_tested_before_it_is_evicted():
    b = book()
    old, new = collide(b)
    tried(b, new)
    assert b.tried(PeerId(new.peer)) is None
    assert b.due(NOW, 1) == [old]
    b.answered(PeerId(old.peer), old.host, old.port, NOW + 1)
    assert b.due(NOW + 1, 1) == []
    assert b.tried(PeerId(old.peer)) is not None

    b.answered(PeerId(new.peer), new.host, new.port, NOW + 2)
    assert b.due(NOW + 2, 1) == [old]
    b.failed(PeerId(old.peer), old.host, old.port, NOW + 3)
    assert b.tried(PeerId(new.peer)) is not None
    assert b.tried(PeerId(old.peer)) is None
    assert b.known(PeerId(old.peer)) is not None  # not forgotten


def test_a_peer_that_moved_is_followed_when_it_answered_there():
    b = book()
    tried(b, known(1, "9.1.1.1", sequence=5))
    assert not b.add(known(1, "9.2.2.2", sequence=5))
    assert not b.add(known(1, "9.2.2.2", sequence=4))  # old news
    assert b.add(known(1, "9.2.2.2", sequence=6))
    assert b.known(peer(1)).host == "9.1.1.1"  # until it fails or the new one answers
    b.failed(peer(1), "9.1.1.1", 7711, NOW)
    assert b.known(peer(1)).host == "9.2.2.2"
    b.answered(peer(1), "9.2.2.2", 7711, NOW + 1)
    assert b.tried(peer(1)).host == "9.2.2.2"
    assert len(b) == 1


def test_somebody_who_announces_a_false_address_does_not_move_a_peer():
    """Only the peer signs; but its own mistake does not cut it off either."""
    b = book()
    tried(b, known(1, "9.1.1.1", sequence=5))
    b.add(known(1, "9.2.2.2", sequence=6))
    for _ in range(module.FAILURES_MAX):
        b.failed(peer(1), "9.2.2.2", 7711, NOW)
    assert b.known(peer(1)).host == "9.1.1.1"
    b.answered(peer(1), "9.3.3.3", 7711, NOW)  # nobody asked there
    assert b.tried(peer(1)).host == "9.1.1.1"


def test_what_never_answers_is_forgotten_and_tests_become_rare():
    b = book()
    b.add(known(1))
    assert b.due(NOW, 5) != []
    b.failed(peer(1), "9.0.1.7", 7711, NOW)
    assert b.due(NOW + 60, 5) == []
    assert b.due(NOW + 3600, 5) != []
    for _ in range(2):
        b.failed(peer(1), "9.0.1.7", 7711, NOW)
    assert len(b) == 0
    tried(b, known(2))
    assert b.due(NOW + 3600, 5) == []
    assert b.due(NOW + module.RETEST, 5) != []


def test_fault_059_the_book_and_its_anchors_survive_a_restart():
    b = book()
    tried(b, *(known(i) for i in range(20)))
    for i in range(100, 150):
        b.add(known(i, source=b"%d" % i))
    again = decode_book(b.encode(), OWN)
    assert again.encode() == b.encode()
    assert again.anchors == [peer(i) for i in range(19, 19 - module.ANCHORS_MAX, -1)]
    assert [k.peer for k in again.everybody()] == [k.peer for k in b.everybody()]
    for bad in (b"", b.encode()[:-1], b.encode() + b"x", b"\x95\x02" + b.encode()[2:]):
        with pytest.raises(MalformedError):
            decode_book(bad, OWN)


def test_a_book_that_somebody_crafted_stays_within_its_bounds():
    stored = module._Stored(
        1, b"k" * 32, (known(1),) * 5, tuple(known(i, "66.6.6.6", 1 + i) for i in range(900)) + (known(2),) * 3, ()
    )
    again = decode_book(module.codec.encode(stored), OWN)
    assert again.tried_count <= module.TRIED_OF_GROUP * module.BUCKET_SIZE + 1


def test_two_peers_put_the_same_addresses_into_different_places():
    one, other = AddressBook(b"1" * 32, OWN), AddressBook(b"2" * 32, OWN)
    items = [known(i, f"{20 + i}.1.1.1") for i in range(50)]
    assert sum(one._tried_place(k) == other._tried_place(k) for k in items) < 5


def test_random_lives_keep_the_tables_in_step():
    rng = random.Random(5)
    b = book()
    for step in range(5000):
        i = rng.randrange(300)
        host = f"{20 + i % 60}.1.{rng.randrange(3)}.1"
        match rng.randrange(4):
            case 0 | 1:
                b.add(known(i, host, sequence=rng.randrange(5), source=b"%d" % rng.randrange(9), heard=NOW + step))
            case 2:
                b.answered(peer(i), host, 7711, NOW + step)
            case 3:
                b.failed(peer(i), host, 7711, NOW + step)
        for places, table in ((b._new, b._new_places), (b._tried, b._tried_places)):
            assert {p: PeerId(table[place].peer) for p, place in places.items()} == {p: p for p in places}
            assert len(places) == len(table)
        for place, challenger in b._challengers.items():
            assert place in b._tried_places, (place, challenger)
