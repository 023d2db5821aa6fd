"""Whom a ledger daemon calls, whom it shuts out, and who gives way: nobody takes all its connections for himself."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from fsdecloud.errors import UsageError
from fsdecloud.ledgerd import conduct
from fsdecloud.ledgerd.addresses import Addresses
from fsdecloud.ledgerd.conduct import BAN_TIME, BANS_MAX, Bans, Points
from fsdecloud.ledgerd.eviction import Caller, choose_eviction
from fsdecloud.net.address import Address
from fsdecloud.swarm.addressbook import AddressBook, decode_book
from fsdecloud.swarm.groups import network_group
from fsdecloud.types import PeerId
from fsdecloud.wire import gossip

sys.path.insert(0, str(Path(__file__).parent))
from nodes import rogue_of, session_test

NETWORK = bytes([5]) * 32
NODE = PeerId(bytes([6]) * 32)
NOW = 1_700_000_000


def key(number: int) -> PeerId:
    return PeerId(number.to_bytes(32))


def url(host: str, number: int, port: int = 7713) -> str:
    return str(Address(host, port, key(number), NETWORK))


def addresses(book: AddressBook | None = None) -> Addresses:
    return Addresses(book or AddressBook(bytes(32), NODE), NETWORK, NODE, lambda: NOW)


def choose_all(known: Addresses, count: int = 8) -> list[Address]:
    active: set[tuple[str, int]] = set()
    found = []
    for _ in range(count):
        address = known.choose(active, set(), 0.0, lambda _: True)
        if address is None:
            break
        active.add((address.host, address.port))
        found.append(address)
    return found


def test_fault_106_outgoing_connections_go_to_distinct_network_groups():
    known = addresses()
    known.hear([url(f"203.0.113.{n}", n) for n in range(1, 60)], "198.51.100.1")
    known.hear([url(f"192.0.{n}.1", 100 + n) for n in range(3, 6)], "198.51.100.2")
    found = choose_all(known)
    assert len(found) == 4
    assert len({network_group(a.host, a.port) for a in found}) == 4


@pytest.mark.parametrize("seed", range(3))
def test_fault_106_with_nine_tenths_of_all_addresses_an_attacker_does_not_get_all_calls(seed):
    """He is in 400 networks and tells from 20 of them; thirty honest daemons answered before."""
    random.seed(seed)
    known = addresses()
    honest = {key(n) for n in range(1, 31)}
    for n in range(1, 31):
        address = Address(f"20.{n}.7.1", 7713, key(n), NETWORK)
        known.hear([str(address)], f"20.{n}.7.1")
        known.answered(address, key(n), is_lasting=n <= 8)
    for teller in range(20):
        known.hear([url(f"45.{teller}.{n}.9", 1000 + 20 * teller + n) for n in range(20)], f"45.{teller}.0.1")
    assert len(known.book) > 300
    restarted = addresses(decode_book(known.book.encode(), NODE))
    found = choose_all(restarted)
    assert len(found) == 8
    assert {address.id for address in found[:4]} <= honest, "the anchors come first"
    for _ in range(20):  # and without them he is not alone either
        assert any(address.id in honest for address in choose_all(known, 12))


def test_fault_106_a_working_address_is_not_moved_by_a_word():
    known = addresses()
    true = Address("203.0.113.1", 7713, key(1), NETWORK)
    known.hear([str(true)], "198.51.100.1")
    known.answered(true, key(1), is_lasting=True)
    known.hear([url("192.0.2.66", 1)], "192.0.2.66")
    assert choose_all(known) == [true]
    known.failed(true, key(1), 0.0, is_reached=False)  # tested just now: one restart is no failure
    assert known.book.known(key(1)).host == true.host


def test_fault_107_addresses_of_a_flood_take_bounded_room():
    known = addresses()
    for n in range(5000):
        known.hear([url(f"45.{n % 250}.{n // 250}.1", n + 1)], "45.0.0.1")
    assert len(known.book) <= 8 * 32, "one teller reaches eight buckets of 32"


def test_fault_108_oneself_other_networks_and_nonsense_are_left_out():
    known = addresses()
    other = str(Address("203.0.113.5", 1, key(1), bytes(32)))
    own = str(Address("203.0.113.6", 1, NODE, NETWORK))
    assert not known.hear(["junk", "wss://203.0.113.7:1/", other, own], "198.51.100.1")
    assert not known.hear([url("192.168.1.1", 3)], "198.51.100.1"), "a stranger has nobody look around at home"
    assert known.hear([url("192.168.1.1", 3)], "192.168.1.9")
    with pytest.raises(UsageError):
        known.give("junk")


def test_an_address_that_fails_waits_longer_each_time():
    known = addresses()
    known.give(url("203.0.113.1", 1))
    [address] = known.given(set(), 0.0)
    dues = []
    for _ in range(12):
        known.failed(address, address.id, 0.0, is_reached=False)
        assert known.given(set(), 0.0) == []
        dues.append(known.next_due(set(), set(), 0.0, has_room=True))
    assert dues[0] <= 0.5 < dues[3] < dues[6] <= 60
    assert max(dues) <= 60
    known.succeeded(address)
    assert known.given(set(), 0.0) == [address]


def test_points_are_forgiven_with_time():
    points = Points(0.0)
    assert not any(points.add(20, 0.0) for _ in range(4))
    assert points.add(20, 0.0)
    assert not Points(0.0).add(99, 0.0)
    slow = Points(0.0)
    assert not any(slow.add(20, 200.0 * n) for n in range(1000))


def test_bans_end_and_are_bounded():
    bans = Bans()
    assert bans.ban("203.0.113.5:1234", NOW)
    assert bans.is_banned("203.0.113.5:99", NOW + BAN_TIME - 1)
    assert not bans.is_banned("203.0.113.6:99", NOW)
    assert bans.ban("[2001:db8::1]:7", NOW)
    assert bans.is_banned("[2001:db8::2]:7", NOW), "one line has a /64"
    again = Bans(bans.entries())
    assert again.is_banned("203.0.113.5:1", NOW)
    assert not again.is_banned("203.0.113.5:1", NOW + BAN_TIME)
    assert not again.is_banned("[2001:db8::1]:7", NOW - 1), "a ban of a clock that was ahead is void"
    for number in range(BANS_MAX + 50):
        bans.ban(f"45.{number % 250}.{number // 250}.1:1", NOW + number)
    assert len(bans.entries()) == BANS_MAX
    for remote in ("127.0.0.1:5", "[::1]:5", "[::ffff:127.0.0.1]:5"):
        assert not bans.ban(remote, NOW), "everybody on this machine has that address"
    assert conduct.POINTS_MAX > 0


def test_bans_can_be_lifted():
    bans = Bans()
    for remote in ("203.0.113.5:1234", "203.0.113.6:1", "[2001:db8::1]:7", "[2001:db8:1::1]:7", "[2001:db8:2::1]:7"):
        bans.ban(remote, NOW)
    assert not bans.lift("203.0.113.9")
    assert not bans.lift("")
    assert not bans.lift("nonsense/")
    for address in ("203.0.113.5", "203.0.113.6:99", "2001:db8::77", "[2001:db8:1::9]:1", "2001:db8:2::/64"):
        assert bans.lift(address), address
        assert not bans.lift(address)
    assert bans.entries() == ()


def test_fault_106_all_places_taken_by_one_attacker_leave_room_for_the_others():
    """He calls with 200 connections from two networks; whoever was useful, or was there long, stays."""
    honest = [Caller(n, b"h%d" % n, since=n, last_block=0, last_tx=0) for n in range(8)]
    honest += [Caller(8 + n, b"b%d" % n, since=100 + n, last_block=500, last_tx=0) for n in range(4)]
    callers = list(honest)
    for number in range(200):
        callers.append(Caller(100 + number, b"x%d" % (number % 2), since=200 + number, last_block=0, last_tx=0))
        if len(callers) > 24:
            victim = choose_eviction(callers, bytes(32))
            assert victim is not None
            callers.remove(victim)
    assert set(honest) <= set(callers)
    assert choose_eviction(honest[:4], bytes(32)) is None


def test_fault_106_nobody_is_kept_from_being_called_by_who_uses_his_name(tmp_path):
    """Somebody who called says that he is daemon 1, which is elsewhere: daemon 1 is called all the same."""

    async def work(make, node):
        node.hub.addresses.hear([url("203.0.113.1", 1)], "203.0.113.9")
        async with rogue_of(node, make) as rogue:
            await rogue.hello(url=str(Address("203.0.113.1", 7713, key(1), make.network)))
            await rogue.expect(gossip.GetPeers)
            assert node.hub._connected() == set()
        async with rogue_of(node, make) as rogue:  # its channel comes from 198.51.100.7
            await rogue.hello(url=str(Address("198.51.100.7", 7713, key(2), make.network)))
            await rogue.expect(gossip.GetPeers)
            assert node.hub._connected() == {key(2)}

    session_test(tmp_path, work)
