"""The host map follows peers that come and go, without hurry: under a clock that the test moves."""

import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

sys.path.insert(0, str(Path(__file__).parent))
from agentworld import NETWORK, FakePeer, FakeTransport

from fsdecloud.agent import hosts as hosts_module
from fsdecloud.agent.hosts import ENOUGH, REST, Hosts
from fsdecloud.agent.journal import META
from fsdecloud.agent.peers import PeerBook
from fsdecloud.swarm.hostmap import SLOTS, decode_host_map, extends
from fsdecloud.swarm.membership import GROUP_HOSTS
from fsdecloud.swarm.policy import Redundancy
from fsdecloud.wire.agentapi import RegistryPeer

SECRET = b"s" * 32
HOUR = 3600.0
WATCH = 300.0
DEAD_AFTER = 5 * HOUR
REWEIGH = 4 * HOUR


@pytest.fixture(autouse=True)
def _short_days(monkeypatch):
    """The clock is virtual, every probe is not."""
    monkeypatch.setattr(hosts_module, "WATCH", WATCH)
    monkeypatch.setattr(hosts_module, "DEAD_AFTER", DEAD_AFTER)
    monkeypatch.setattr(hosts_module, "REWEIGH", REWEIGH)


class Journal:
    """What Hosts needs of the journal and its writer."""

    def __init__(self):
        self.rows = {}
        self.journal = self

    def get(self, table, key):
        return self.rows.get((table, key))

    def write_nowait(self, writes):
        for table, key, value in writes:
            self.rows[table, key] = value


class World:
    """Peers, a registry, and the Hosts of one volume."""

    def __init__(self, count, journal=None):
        self.net = FakeTransport(count)
        self.journal = journal or Journal()
        self.addresses = {peer.id: f"203.{i}.113.7" for i, peer in enumerate(self.net.all())}
        self.operators = {}
        self.registered = self.net.all()
        self.book = PeerBook(self.net, network=NETWORK, clock=trio.current_time, jitter=lambda: 0.5)
        encoded = self.journal.get(META, b"host_map") or b""
        self.hosts = Hosts(self.journal, self.book, SECRET, None, encoded)

    def register(self):
        self.book.update(
            [
                RegistryPeer(
                    p.id,
                    f"wss://{self.addresses[p.id]}:7000/{p.id.hex()}?network={NETWORK.hex()}",
                    1 << 40,
                    operator=self.operators.get(p.id, b""),
                )
                for p in self.registered
            ]
        )
        self.hosts.poke()

    def join(self, count):
        start = len(self.net.peers)
        for i in range(start, start + count):
            peer = FakePeer(bytes([i + 1, 1]) * 16)
            self.net.peers[peer.id] = peer
            self.addresses[peer.id] = f"203.{i}.113.7"
            self.registered.append(peer)
        self.register()

    @property
    def map(self):
        return self.hosts.map

    async def probing(self):
        """Ask everybody now and then, as uploads would."""
        while True:
            await trio.sleep(WATCH / 2)
            for peer in self.map.current:
                if not self.book.peer(peer).score.is_failing:
                    await self.book.probe(peer)


@asynccontextmanager
async def running(count, journal=None):
    world = World(count, journal)
    async with trio.open_nursery() as nursery:
        world.register()
        for task in (world.hosts.run, world.book.run, world.probing):
            nursery.start_soon(task)
        await trio.sleep(30)
        yield world
        nursery.cancel_scope.cancel()


def run(work, *args):
    trio.run(work, *args, clock=trio.testing.MockClock(autojump_threshold=0))


def test_fault_061_a_host_that_is_dead_for_long_is_replaced_in_its_place():
    async def main():
        async with running(12) as world:
            before = world.map
            assert before.epoch == 1
            victim = world.net.all()[3]
            victim.is_down = True
            await trio.sleep(DEAD_AFTER - HOUR)
            assert world.map is before
            world.join(1)
            await trio.sleep(HOUR / 2)
            joined = world.map
            assert joined.epoch == 2  # fewer than ENOUGH: a newcomer is welcome at once
            await trio.sleep(HOUR)
            after = world.map
            assert after.epoch == 3
            assert victim.id not in after.current
            assert len(after.current) == 12
            assert extends(after, before)
            assert sum(after.slots().values()) == SLOTS
            assert decode_host_map(world.journal.get(META, b"host_map")) == after
            # It comes back: one more peer, like any other.
            victim.is_down = False
            await trio.sleep(HOUR)
            assert victim.id in world.map.current

    run(main)


def test_a_successor_inherits_all_slots(monkeypatch):
    monkeypatch.setattr(hosts_module, "HOSTS_MAX", 12)

    async def main():
        async with running(13) as world:
            before = world.map
            assert len(before.current) == 12
            (spare,) = set(world.net.peers) - set(before.current)
            victim = next(p for p in world.net.all() if p.id in before.current)
            victim.is_down = True
            await trio.sleep(DEAD_AFTER + HOUR)
            assert world.map.epoch == 2
            assert world.map.slots()[spare] == before.slots()[victim.id]
            for blob in (bytes([i]) * 32 for i in range(50)):
                moved = [spare if p == victim.id else p for p in world.hosts.ranking(blob, 1)]
                assert moved == list(world.hosts.ranking(blob, 2))

    run(main)


def test_a_host_that_left_the_registry_is_gone_after_a_day_too():
    async def main():
        async with running(6) as world:
            gone = world.registered.pop(2)
            world.register()
            await trio.sleep(DEAD_AFTER - HOUR)
            assert gone.id in world.map.current
            await trio.sleep(2 * HOUR)
            assert gone.id not in world.map.current
            assert world.map.epoch == 2

    run(main)


def test_flapping_hosts_and_a_failing_network_change_nothing():
    async def main():
        async with running(6) as world:
            before = world.map
            for turn in range(12):
                world.net.all()[turn % 6].is_down = True
                await trio.sleep(4 * HOUR)
                world.net.all()[turn % 6].is_down = False
                await trio.sleep(HOUR)
            assert world.map is before
            for peer in world.net.all():
                peer.is_down = True
            await trio.sleep(2 * DEAD_AFTER)
            assert world.map is before

    run(main)


def test_a_restart_does_not_forget_who_is_away():
    journal = Journal()

    async def first():
        async with running(6, journal) as world:
            world.net.all()[0].is_down = True
            await trio.sleep(DEAD_AFTER - HOUR)
            assert world.map.epoch == 1

    async def second():
        async with running(6, journal) as world:
            world.net.all()[0].is_down = True
            await trio.sleep(2 * HOUR)
            assert world.net.all()[0].id not in world.map.current

    run(first)
    run(second)


def test_fault_059_newcomers_join_together_once_there_are_enough():
    async def main():
        async with running(ENOUGH) as world:
            assert len(world.map.current) == ENOUGH
            epoch = world.map.epoch
            for _ in range(5):
                world.join(1)
                await trio.sleep(REST / 8)
            assert world.map.epoch <= epoch + 1
            await trio.sleep(2 * REST)
            assert len(world.map.current) == ENOUGH + 5
            assert world.map.epoch <= epoch + 2

    run(main)


def test_weights_follow_the_free_space_when_it_is_worth_it():
    async def main():
        async with running(40) as world:
            world.hosts.set_wanted(Redundancy(2, 6))
            await trio.sleep(REWEIGH + HOUR)
            epoch = world.map.epoch
            roomy = world.net.all()[0]
            info = world.net.info

            async def with_more(address):
                answer = await info(address)
                answer.free <<= 1 if address.id == roomy.id else 0
                return answer

            world.net.info = with_more
            before = world.map.slots()
            await trio.sleep(REWEIGH + HOUR)
            after = world.map.slots()
            assert world.map.epoch == epoch + 1
            assert after[roomy.id] > 1.5 * before[roomy.id]
            await trio.sleep(2 * REWEIGH)
            assert world.map.epoch == epoch + 1

    run(main)


def test_fault_076_the_map_knows_the_networks_of_its_hosts():
    async def main():
        world = World(9)
        for i, peer in enumerate(world.net.all()):
            world.addresses[peer.id] = f"203.0.{i // 3}.{i}"
        async with trio.open_nursery() as nursery:
            world.register()
            nursery.start_soon(world.hosts.run)
            await trio.sleep(30)
            nursery.cancel_scope.cancel()
        labels = world.map.labels()
        assert len(set(labels.values())) == 3
        for blob in (bytes([i]) * 32 for i in range(50)):
            assert len({labels[host] for host in world.hosts.ranking(blob, 1)[:3]}) == 3

    run(main)


def test_fault_076_the_map_knows_who_declares_to_run_its_hosts():
    """Nine networks, three operators: each blob has its first three shards with three operators. One that leaves its operator
    is alone from the next look at the hosts on."""

    async def main():
        world = World(9)
        for i, peer in enumerate(world.net.all()):
            world.operators[peer.id] = bytes([i // 3 + 1]) * 32
        async with trio.open_nursery() as nursery:
            world.register()
            nursery.start_soon(world.hosts.run)
            await trio.sleep(30)
            operators = {peer: operator for peer, (_, operator) in world.map.labels().items()}
            assert operators == world.operators
            for blob in (bytes([i]) * 32 for i in range(50)):
                assert len({operators[host] for host in world.hosts.ranking(blob, 1)[:3]}) == 3
            leaver = world.net.all()[0].id
            del world.operators[leaver]
            world.register()
            await trio.sleep(REWEIGH + HOUR)
            assert world.map.labels()[leaver][1] == b""
            nursery.cancel_scope.cancel()

    run(main)


def test_fault_076_peers_of_one_operator_leave_room_for_others():
    async def main():
        world = World(14)
        for peer in world.net.all():
            world.operators[peer.id] = b"O" * 32
        async with trio.open_nursery() as nursery:
            world.register()
            nursery.start_soon(world.hosts.run)
            await trio.sleep(30)
            assert len(world.map.current) == GROUP_HOSTS
            nursery.cancel_scope.cancel()

    run(main)


@pytest.mark.parametrize("text", [None, Redundancy(1, 3)])
def test_the_wanted_redundancy_can_be_changed(text):
    async def main():
        async with running(6) as world:
            assert world.hosts.redundancy()[0] == Redundancy(2, 6)
            world.hosts.set_wanted(text)
            assert world.hosts.redundancy()[0] == (text or Redundancy(2, 6))

    run(main)
