"""Many clients lose one peer at the same moment, and do not come back at the same moment (fault 53). By a virtual clock."""

import random
from collections import defaultdict
from contextlib import asynccontextmanager, suppress
from itertools import pairwise

import pytest
import trio
import trio.testing

from fsdecloud.agent.peers import PROBE_IDLE, PROBE_TIMEOUT, PROBE_URGENT, PeerBook
from fsdecloud.errors import PeerUnavailable
from fsdecloud.net import pool as pool_module
from fsdecloud.net.address import Address
from fsdecloud.net.pool import BACKOFF, open_pool
from fsdecloud.types import PeerId, ShardId
from fsdecloud.wire.agentapi import RegistryPeer

NETWORK, PEER, SHARD = b"N" * 32, PeerId(b"P" * 32), ShardId(b"S" * 32)
CLIENTS = 80


def run(work):
    trio.run(work, clock=trio.testing.MockClock(autojump_threshold=0))


def densest(times, window):
    """Return the largest share of these times that lies within one window."""
    times = sorted(times)
    return max(sum(start <= time <= start + window for time in times) for start in times) / len(times)


class Peer:
    """A transport to one peer that is away for a while; its packets may be lost, or refused at once."""

    def __init__(self, cost):
        self.cost = cost
        self.is_away = False
        self.asked = []

    async def info(self, _address):
        self.asked.append(trio.current_time())
        await self.get()
        return self

    async def get(self, *_):
        await trio.lowlevel.checkpoint()
        if self.is_away:
            await trio.sleep(self.cost)
            raise PeerUnavailable("away")
        return b""

    admitted, reason, free = True, "", 1 << 30


@pytest.mark.parametrize("is_urgent", [False, True])
@pytest.mark.parametrize("cost", [0.0, 10.0], ids=["refused", "vanished"])
def test_fault_053_probes_of_many_clients_spread(cost, is_urgent):
    chance = random.Random(53)

    async def client(peer):
        book = PeerBook(peer, network=NETWORK, clock=trio.current_time, jitter=chance.random)
        book.is_urgent = lambda: is_urgent
        url = str(Address("127.0.0.1", 1, PEER, NETWORK))
        book.update([RegistryPeer(PEER, url, 1 << 30)])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(book.run)
            await trio.sleep(100)
            with suppress(PeerUnavailable):
                await book.get(PEER, SHARD, 100)
            await trio.sleep(400)
            assert book.peer(PEER).is_usable
            nursery.cancel_scope.cancel()

    async def work():
        peers = [Peer(cost) for _ in range(CLIENTS)]
        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(client, peer)
            await trio.sleep(50)
            for peer in peers:
                peer.is_away = True
            await trio.sleep(250)
            back = trio.current_time()
            for peer in peers:
                peer.is_away = False
        pause = PROBE_URGENT if is_urgent and not cost else PROBE_IDLE
        for number in range(5):  # the first ones after the loss: nothing else has mixed them yet
            assert densest([peer.asked[number] for peer in peers], pause / 10) < 0.4, number
        found = [next(time for time in peer.asked if time >= back) - back for peer in peers]
        assert densest(found, pause / 10) < 0.4
        assert max(found) < 2 * PROBE_IDLE, "and all of them come"
        # One that is dead costs a probe now and then.
        assert max(len(peer.asked) for peer in peers) <= 3 + 250 / min(pause, max(PROBE_TIMEOUT, 3)) * 1.5

    run(work)


def test_fault_053_attempts_to_connect_of_many_clients_spread_and_grow_rare(monkeypatch):
    """All ask again and again for a minute."""
    attempts = defaultdict(list)
    monkeypatch.setattr(pool_module.random, "uniform", random.Random(53).uniform)

    @asynccontextmanager
    async def connect(address, *, subprotocol):
        attempts[address.host].append(trio.current_time())
        await trio.lowlevel.checkpoint()
        raise PeerUnavailable("refused")
        yield

    monkeypatch.setattr(pool_module.websocket, "connect", connect)

    async def client(pool, address):
        while True:
            with suppress(PeerUnavailable):
                await pool.get(address, SHARD)
            await trio.sleep(0.01 + trio.current_time() / 100)

    async def work():
        with trio.move_on_after(60):
            async with open_pool(network=NETWORK) as pool, trio.open_nursery() as nursery:
                for number in range(CLIENTS):  # a lane each, as if each were a program of its own
                    nursery.start_soon(client, pool, Address(f"client-{number}", 1, PEER, NETWORK))

    run(work)
    first, longest = BACKOFF
    assert len(attempts) == CLIENTS
    for number in range(1, 12):
        delay = min(first * 2 ** (number - 1), longest)
        assert densest([times[number] for times in attempts.values()], delay / 10) < 0.4, number
    steps = [later - earlier for times in attempts.values() for earlier, later in pairwise(times[8:])]
    assert longest / 2 <= min(steps) <= max(steps) < longest + 1
