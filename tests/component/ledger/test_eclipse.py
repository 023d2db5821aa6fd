"""A daemon that an attacker tries to surround: whom it calls after a restart, and what it does when nobody tells it anything.

The daemons are real but for their sockets: whoever calls an address of this internet gets a session with whoever is there.
"""

from __future__ import annotations

import random
import sys
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio

from fsdecloud.errors import PeerUnavailable
from fsdecloud.ledgerd import hub as hubs
from fsdecloud.ledgerd import staletip
from fsdecloud.ledgerd.eviction import Callee, choose_surplus
from fsdecloud.ledgerd.staletip import STALE_INTERVALS, STALE_MIN, TipWatch
from fsdecloud.net.address import Address
from fsdecloud.store.chain import open_chain
from fsdecloud.swarm.addressbook import AddressBook, decode_book
from fsdecloud.types import PeerId

sys.path.insert(0, str(Path(__file__).parent))
from nodes import Node, channel_pair, until, until_so

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "ledger"))
from chainmaker import Maker, easy_network

from fsdecloud.ledger.blocks import encode_block

VICTIM = PeerId(bytes([200]) * 32)
HIDDEN = 6
"""Blocks of the honest chain that the attacker knows and tells; the honest daemons have twice as many."""


class Internet:
    """Who is at which address. `calls` are those of the victim, in order."""

    def __init__(self, tmp_path: Path, stack: ExitStack, make: Maker) -> None:
        self._path, self._stack, self.make = tmp_path, stack, make
        self._at: dict[tuple[str, int], Node] = {}
        self.nursery: trio.Nursery | None = None
        self.calls: list[str] = []

    def node(self, number: int, book: AddressBook | None = None) -> Node:
        """Start a daemon, with the chain it had before."""
        chain = open_chain(self._path / str(number), self.make.document, map_size=1 << 28)
        return Node(self._stack.enter_context(chain), number, book=book)

    def place(self, node: Node, host: str, port: int = 7713) -> str:
        """Let a daemon answer at an address; return its URL. One daemon may answer at many, by another name at each."""
        self._at[host, port] = node
        return str(Address(host, port, self.key(host, port), self.make.network))

    def vanish(self, host: str, port: int = 7713) -> None:
        del self._at[host, port]

    @staticmethod
    def key(host: str, port: int) -> PeerId:
        return PeerId(f"{host} {port}".encode().ljust(32, b"."))

    @asynccontextmanager
    async def connect(self, address: Address, *, subprotocol: str):
        self.calls.append(address.host)
        node = self._at.get((address.host, address.port))
        if node is None:
            raise PeerUnavailable(f"nobody answers at {address}")
        ours, theirs = channel_pair()
        ours.server_key, ours.remote = self.key(address.host, address.port), f"{address.host}:{address.port}"
        assert self.nursery is not None
        self.nursery.start_soon(node.serve, theirs)
        try:
            yield ours
        finally:
            ours.close()
            theirs.close()


@pytest.fixture
def eclipse(tmp_path, monkeypatch):
    """Run `work(internet, honest, attacker)`: two daemons, the second of which knows a part of the chain."""
    random.seed(6)

    def run(work, **changes) -> None:
        async def main() -> None:
            with trio.fail_after(30), ExitStack() as stack:
                make = Maker(easy_network(**changes))
                internet = Internet(tmp_path, stack, make)
                monkeypatch.setattr(hubs, "connect", internet.connect)
                honest, attacker = internet.node(1), internet.node(2)
                for height in range(1, 2 * HIDDEN + 1):
                    data = encode_block(make.add().block)
                    for node in (honest, attacker) if height <= HIDDEN else (honest,):
                        await node.keeper.accept(data)
                async with trio.open_nursery() as nursery:
                    internet.nursery = nursery
                    for node in (honest, attacker):
                        nursery.start_soon(node.hub.sync.run)
                    await work(internet, honest, attacker)
                    nursery.cancel_scope.cancel()

        trio.run(main)

    return run


@asynccontextmanager
async def running(node: Node):
    """A daemon that calls others."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.hub.run)
        yield
        nursery.cancel_scope.cancel()


def called(node: Node) -> list[str]:
    """Hosts that a daemon has called and is connected to."""
    return [session.address.host for session in node.hub._sessions if session.address is not None]


def flood(internet: Internet, victim: Node, attacker: Node) -> None:
    """Thousands of names in one network group, told from there and, by daemons that he runs elsewhere, from ten others."""
    for n in range(3000):
        url = internet.place(attacker, f"45.1.1.{n % 250}", 2000 + n)
        victim.hub.hear([url], f"45.{1 + n % 11}.1.9:1")


@pytest.mark.parametrize("are_anchors_there", [True, False])
def test_fault_106_a_flood_from_one_network_group_does_not_surround_a_daemon_that_restarts(eclipse, are_anchors_there):
    async def work(internet, honest, attacker) -> None:
        victim = internet.node(200)
        first = [f"20.{n}.1.1" for n in range(4)]
        victim.hub.hear([internet.place(honest, host) for host in first], "20.9.1.1:1")
        async with running(victim):
            await until_so(lambda: sorted(called(victim)) == first)
            # These are known, and were never called: there is no honest daemon where the anchors were.
            victim.hub.hear([f"{internet.place(honest, f'21.{n}.1.1')}" for n in range(4)], "20.0.1.1:1")
            flood(internet, victim, attacker)
        book = victim.hub.addresses.book.encode()
        if not are_anchors_there:
            for host in first:
                internet.vanish(host)
        internet.calls.clear()
        again = internet.node(201, decode_book(book, VICTIM))
        assert sum(known.host.startswith("45.") for known in again.hub.addresses.book.everybody()) > 100
        async with running(again):
            await until(again, lambda: again.keeper.tip.height == 2 * HIDDEN)
            await until_so(lambda: any(host.startswith("21.") for host in called(again)))
            assert sum(host.startswith("45.") for host in called(again)) <= 1, "one call for each network group"
        assert set(first) <= set(internet.calls[: hubs.OUTBOUND_MAX]), "the anchors are among the first calls"

    eclipse(work)


@pytest.mark.parametrize("mines_always", [True, False])
def test_fault_106_who_holds_all_connections_and_is_silent_is_left(eclipse, monkeypatch, mines_always):
    """The attacker got all eight places when nobody else was known, and answers honestly with what he wants to be known."""
    monkeypatch.setattr(staletip, "STALE_MIN", 0.2)
    monkeypatch.setattr(staletip, "STALE_INTERVALS", 0)
    monkeypatch.setattr(hubs, "EXTRA_TRIAL", 0.2)

    async def work(internet, honest, attacker) -> None:
        victim = internet.node(200)
        victim.hub.hear([internet.place(attacker, f"45.{n}.1.1") for n in range(hubs.OUTBOUND_MAX)], "45.9.1.1:1")
        async with running(victim):
            await until_so(lambda: len(called(victim)) == hubs.OUTBOUND_MAX)
            await until(victim, lambda: victim.keeper.tip.height == HIDDEN)
            victim.hub.hear([internet.place(honest, "20.1.1.1")], "20.9.1.1:1")
            if not mines_always:
                await trio.sleep(0.5)
                assert "20.1.1.1" not in called(victim), "nothing to record, nothing to look for"
                victim.keeper.submit(internet.make.anchor(bytes([2]) * 32, 1))
            await until(victim, lambda: victim.keeper.tip.height == 2 * HIDDEN)
            await until_so(lambda: len(called(victim)) == hubs.OUTBOUND_MAX)
            assert "20.1.1.1" in called(victim), "the one that told something new stays"

    eclipse(work, mine_when_idle=mines_always)


def test_fault_106_when_a_tip_is_stale() -> None:
    assert TipWatch(1, 0.0, mines_always=True).patience == STALE_MIN
    watch = TipWatch(600, 100.0, mines_always=True)
    assert watch.patience == STALE_INTERVALS * 600
    assert not watch.is_stale(100.0 + watch.patience - 1, is_block_due=True)
    assert watch.is_stale(100.0 + watch.patience, is_block_due=False)
    watch.tried(5000.0)
    assert not watch.is_stale(5001.0, is_block_due=True)
    assert watch.is_stale(5000.0 + watch.patience, is_block_due=True)
    watch.moved(9000.0)
    assert not watch.is_stale(9001.0, is_block_due=True)


def test_fault_106_a_network_that_mines_on_demand_is_idle_and_not_stale() -> None:
    watch = TipWatch(2, 0.0, mines_always=False)
    assert not watch.is_stale(1e9, is_block_due=False)
    assert not watch.is_stale(1e9, is_block_due=True), "since now"
    assert watch.is_stale(1e9 + watch.patience, is_block_due=True)
    assert not watch.is_stale(1e9 + watch.patience, is_block_due=False)
    assert not watch.is_stale(1e9 + watch.patience, is_block_due=True), "since now, again"
    watch.moved(2e9)
    assert not watch.is_stale(2e9 + watch.patience, is_block_due=True)


def test_fault_106_the_worst_of_too_many_goes() -> None:
    useful, old, young = Callee(1, 10.0, 500.0), Callee(2, 20.0, 0.0), Callee(3, 90.0, 0.0)
    assert choose_surplus([useful, old, young]) == young
    assert choose_surplus([useful, old]) == old
    assert choose_surplus([useful, Callee(4, 1.0, 400.0)]) == Callee(4, 1.0, 400.0)
    assert choose_surplus([]) is None
