"""A peer that the registry says leaves gets nothing new, and is read from as before."""

import os
import sys
from pathlib import Path

import pytest
import trio

sys.path.insert(0, str(Path(__file__).parent))

from agentworld import FakeTransport, open_driver, open_ledger, run, until

from fsdecloud.agent import auditor, hosts, ledgerlink, repair, stack, upload
from fsdecloud.swarm.repair import Policy
from fsdecloud.wire.agentapi import RegistryPeer


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(hosts, "JOIN_WINDOW", 0.05)
    monkeypatch.setattr(hosts, "RECRUIT_FIRST", 0.05)
    monkeypatch.setattr(upload, "PACK_DELAY", 0.05)
    monkeypatch.setattr(ledgerlink, "REGISTRY_INTERVAL", 0.0)


def test_nothing_new_is_placed_with_a_peer_that_leaves(tmp_path):
    async def work():
        net = FakeTransport(8)
        everybody = net.registry()
        leaving, fresh = net.all()[0], net.all()[7]
        # The last one leaves before it ever joined.
        known = (*everybody[:7], RegistryPeer(fresh.id, everybody[7].url, 0))
        async with open_ledger(tmp_path, known) as ledger, open_driver(tmp_path, net, redundancy="2/6") as driver:
            await driver.wait_hosts(7)
            before = [os.urandom(300_000) for _ in range(8)]
            entries = [driver.stage(item) for item in before]
            await driver.store()
            await driver.wait_stored(entries, 6)
            held = dict(leaving.shards)
            assert held
            assert not fresh.shards
            ledger.registry = (RegistryPeer(leaving.id, everybody[0].url, 0), *known[1:])
            ledger.mine()

            async def state_is(wanted):
                states = {state.id: state.state for state in (await driver.status()).peers}
                return states[leaving.id] == wanted

            await until(lambda: state_is("leaving"))
            entries = [driver.stage(os.urandom(300_000)) for _ in range(8)]
            await driver.store()
            await driver.wait_stored(entries, 6)
            assert leaving.shards == held
            for entry in entries:
                assert leaving.id not in {
                    p.id for p in net.all() if set(p.shards) & set(driver.stored[entry][1].shards)
                }
            ledger.registry = known
            ledger.mine()
            await until(lambda: state_is("up"))
            entries = [driver.stage(os.urandom(300_000)) for _ in range(8)]
            await driver.store()
            await driver.wait_stored(entries, 6)
            assert len(leaving.shards) > len(held)

    run(work)


def announce(ledger, net, leaving):
    """Let the registry say that a peer offers nothing."""
    leaving.is_leaving = True
    ledger.registry = tuple(
        RegistryPeer(entry.id, entry.url, 0 if entry.id == leaving.id else entry.capacity) for entry in net.registry()
    )
    ledger.mine()


def hurry(monkeypatch):
    monkeypatch.setattr(stack, "POLICY", Policy(audit_period=1e6))
    monkeypatch.setattr(repair, "GATHER", 0.02)
    monkeypatch.setattr(repair, "RETRY", 0.2)
    monkeypatch.setattr(auditor, "PULSE", 0.1)


async def store_some(driver, net):
    await driver.wait_hosts(len(net.all()))
    entries = [driver.stage(os.urandom(300_000 + i)) for i in range(6)] + [driver.stage(os.urandom(3000))]
    await driver.store()
    await driver.wait_stored(entries, 6)
    return entries


def test_what_a_leaving_peer_holds_is_copied_to_others_before_it_goes(tmp_path, monkeypatch):
    hurry(monkeypatch)

    async def work():
        net = FakeTransport(9)
        leaving = net.all()[2]
        async with (
            open_ledger(tmp_path, net.registry()) as ledger,
            open_driver(tmp_path, net, redundancy="2/6", repair=True) as driver,
        ):
            entries = await store_some(driver, net)
            had = {shard for entry in entries for shard in driver.stored[entry][1].shards} & leaving.shards.keys()
            assert had
            gets = {peer.id: peer.gets for peer in net.all()}
            announce(ledger, net, leaving)

            async def is_moved():
                others = set().union(*(peer.shards for peer in net.all() if peer is not leaving))
                found = (await driver.status()).repair
                return had <= others and not found.moving and not found.degraded

            await until(is_moved)
            found = (await driver.status()).repair
            assert found.repaired_shards >= len(had)
            assert found.unreadable == found.endangered == 0
            # Copied, not made again: the shards came from who leaves, one each.
            assert leaving.gets - gets[leaving.id] <= len(had) + 3
            assert sum(peer.gets - gets[peer.id] for peer in net.all() if peer is not leaving) <= 3
            leaving.is_down = True
            for entry in entries:
                await driver.fetch(entry)

    run(work)


def test_a_peer_that_is_away_for_a_while_keeps_what_it_has(tmp_path, monkeypatch):
    hurry(monkeypatch)

    async def work():
        net = FakeTransport(8)
        resting = net.all()[2]
        async with (
            open_ledger(tmp_path, net.registry()) as ledger,
            open_driver(tmp_path, net, redundancy="2/6", repair=True) as driver,
        ):
            await store_some(driver, net)
            announce(ledger, net, resting)
            resting.is_leaving = False
            resting.is_refusing = True  # "maintenance until ..."

            async def is_known():
                states = {state.id: state.state for state in (await driver.status()).peers}
                return states[resting.id] == "leaving"

            await until(is_known)
            puts = sum(peer.puts for peer in net.all())
            await trio.sleep(0.5)
            assert sum(peer.puts for peer in net.all()) == puts
            assert (await driver.status()).repair.moving == 0

    run(work)


def test_without_anybody_to_take_them_they_stay(tmp_path, monkeypatch):
    hurry(monkeypatch)

    async def work():
        net = FakeTransport(6)
        leaving = net.all()[1]
        async with (
            open_ledger(tmp_path, net.registry()) as ledger,
            open_driver(tmp_path, net, redundancy="2/6", repair=True) as driver,
        ):
            entries = await store_some(driver, net)
            announce(ledger, net, leaving)

            async def is_waiting():
                found = (await driver.status()).repair
                return found.moving and found.waiting

            await until(is_waiting)
            assert (await driver.status()).repair.degraded == 0
            for entry in entries:
                await driver.fetch(entry)

    run(work)
