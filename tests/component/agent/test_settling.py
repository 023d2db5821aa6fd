"""Peers join and leave: shards of whole blobs move to where the host map wants them, and its old tables are given up."""

import os
import sys
from pathlib import Path

import pytest
import trio

sys.path.insert(0, str(Path(__file__).parent))

from agentworld import FakeTransport, open_driver, open_ledger, run, until

from fsdecloud.agent import arranging, auditor, hosts, ledgerlink, peers, repair, settling, stack, upload
from fsdecloud.swarm.hostmap import TABLES_MAX, decode_host_map
from fsdecloud.swarm.repair import Policy
from fsdecloud.wire import agentapi


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch):
    monkeypatch.setattr(stack, "POLICY", Policy(audit_period=1e6))
    monkeypatch.setattr(repair, "GATHER", 0.02)
    monkeypatch.setattr(repair, "RETRY", 0.2)
    monkeypatch.setattr(auditor, "PULSE", 0.1)
    monkeypatch.setattr(peers, "PROBE_URGENT", 0.05)
    monkeypatch.setattr(peers, "PROBE_IDLE", 0.1)
    monkeypatch.setattr(hosts, "SETTLE", 0.1)
    monkeypatch.setattr(hosts, "JOIN_WINDOW", 0.01)
    monkeypatch.setattr(hosts, "RECRUIT_FIRST", 0.05)
    monkeypatch.setattr(hosts, "RECRUIT_INTERVAL", 0.2)
    monkeypatch.setattr(ledgerlink, "REGISTRY_INTERVAL", 0.0)
    monkeypatch.setattr(upload, "PACK_DELAY", 0.05)
    monkeypatch.setattr(arranging, "GATHER", 0.02)
    monkeypatch.setattr(arranging, "RETRY", 0.05)
    monkeypatch.setattr(arranging, "REPAIR_PAUSE", 0.01)


class World:
    """A volume's agent, whose driver anchors a new map whenever it should."""

    def __init__(self, net, ledger, driver):
        self.net, self.ledger, self.driver = net, ledger, driver
        self.stored = {}
        self.commit = None
        self.lock = trio.Lock()

    async def anchoring(self):
        while True:
            await self.driver.wait(lambda: self.driver.repaired)
            self.driver.repaired.clear()
            await self.anchor()

    async def anchor(self):
        async with self.lock:  # the driver writes one anchor after the other
            self.commit = await self.driver.call("commit_map", agentapi.Empty(), agentapi.MapCommit)
        return decode_host_map(self.commit.host_map)

    async def store(self, n, count=6):
        data = [os.urandom(300_000 + i) for i in range(count)] + [os.urandom(3000)]
        entries = [self.driver.stage(item) for item in data]
        await self.driver.store(entries)
        await self.driver.wait_stored(entries, n)
        self.stored |= dict(zip(entries, data, strict=True))

    def register(self, members):
        wanted = {peer.id for peer in members}
        self.ledger.registry = tuple(entry for entry in self.net.registry() if entry.id in wanted)
        self.ledger.mine()

    async def check(self, driver=None):
        for entry, item in self.stored.items():
            assert await (driver or self.driver).fetch(entry) == item


def test_two_hundred_changes_of_the_host_map_and_peers_still_join(tmp_path, monkeypatch):
    monkeypatch.setattr(hosts, "WATCH", 0.02)
    monkeypatch.setattr(hosts, "DEAD_AFTER", 0.0)
    net = FakeTransport(4 + 120)
    stable, others = net.all()[:4], net.all()[4:]

    async def work():
        there = tmp_path / "there"
        async with open_ledger(tmp_path, net.registry()[:4]) as ledger:
            async with (
                open_driver(tmp_path, net, repair=True, redundancy="2/4") as driver,
                trio.open_nursery() as nursery,
            ):
                world = World(net, ledger, driver)
                nursery.start_soon(world.anchoring)
                await driver.wait_hosts(4)
                await world.store(4)
                host_map = await world.anchor()
                for number, peer in enumerate(others):
                    world.register([*stable, peer])

                    async def has_joined(peer=peer):
                        nonlocal host_map
                        host_map = await world.anchor()
                        return peer.id in host_map.current and len(host_map.current) == 5

                    await until(has_joined)
                    assert len(host_map.tables) <= TABLES_MAX
                    if number == 60:
                        await world.check()
                        await world.store(4, count=2)
                    if host_map.epoch > 200:
                        break
                assert host_map.epoch > 200
                await world.check()
                await world.store(4, count=1)
                await world.anchor()
                nursery.cancel_scope.cancel()
            # A machine that has nothing but the latest manifest reads everything.
            based = {"map_root": world.commit.map_root, "host_map": world.commit.host_map, "map_sequence": 1}
            async with open_ledger(there, ledger.registry), open_driver(there, net, **based) as driver:
                await driver.wait_hosts(5)
                driver.locations = world.driver.locations
                await world.check(driver)
            # And so does this one, after a restart.
            async with open_driver(tmp_path, net, repair=True, redundancy="2/4") as driver:
                await world.check(driver)

    run(work, seconds=60)


def test_shards_move_to_peers_that_join_as_few_as_can_be(tmp_path, monkeypatch):
    monkeypatch.setattr(settling, "CALM", 0.3)
    net = FakeTransport(9)

    async def work():
        settled = trio.Event()

        def note(self, epoch):
            if len(self._hosts.map.current) == 9:
                settled.set()
            noted(self, epoch)

        noted = settling.Settler.note_settled
        monkeypatch.setattr(settling.Settler, "note_settled", note)
        async with (
            open_ledger(tmp_path, net.registry()[:6]) as ledger,
            open_driver(tmp_path, net, repair=True, redundancy="2/4") as driver,
            trio.open_nursery() as nursery,
        ):
            world = World(net, ledger, driver)
            nursery.start_soon(world.anchoring)
            await driver.wait_hosts(6)
            await world.store(4, count=30)
            await world.anchor()
            shards = {
                shard
                for notice in {notice.blob: notice for _, notice in driver.stored.values()}.values()
                for shard in (notice.shards if notice.k > 1 else ())
            }
            puts = sum(peer.puts for peer in net.all())
            world.register(net.all())
            await driver.wait_hosts(9)
            newcomers = net.all()[6:]
            assert not any(shards & peer.shards.keys() for peer in newcomers), "nothing moves in a hurry"

            await settled.wait()
            moved = sum(len(shards & peer.shards.keys()) for peer in newcomers)
            share = len(shards) * 3 / 9
            assert 0.5 * share < moved < 1.5 * share, "about a third of all"
            sent = sum(peer.puts for peer in net.all()) - puts
            assert sent < moved + 40, "what has a place keeps it; some puts are nodes of the map"
            await world.check()
            for peer in net.all()[:2]:
                peer.is_down = True
            await world.check()
            nursery.cancel_scope.cancel()

    run(work, seconds=60)
