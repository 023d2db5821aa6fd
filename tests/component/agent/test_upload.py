"""How blobs are sent: the oldest first, each once, past slow and full peers, and only what is missing after a restart."""

import os
import sys
from collections import Counter
from pathlib import Path

import pytest
import trio

sys.path.insert(0, str(Path(__file__).parent))

from agentworld import FakeTransport, do_not_wait, open_driver, open_ledger, run, until

from fsdecloud.agent import lane, upload
from fsdecloud.limits import KIB, MIB
from fsdecloud.types import EntryId
from fsdecloud.wire import agentapi
from fsdecloud.wire.agentapi import Bandwidth, Empty, StagedEntry, StoreEntries


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    do_not_wait(monkeypatch)


class Recorder(FakeTransport):
    """Remembers which shards came to which peer, in order, and holds some peers back."""

    def __init__(self, count):
        super().__init__(count)
        self.taken = []
        self.held = set()
        self.free = trio.Event()

    async def put(self, address, shards):
        if address.id in self.held:
            await self.free.wait()
        receipt = await super().put(address, shards)
        self.taken += [(address.id, item.id) for item in receipt.shards]
        return receipt


def small_lanes(monkeypatch):
    """As with a hundred times as much data."""
    monkeypatch.setattr(upload, "UPLOAD_MEMORY", 3 * MIB)
    monkeypatch.setattr(lane, "LANE_MAX", 512 * KIB)
    monkeypatch.setattr(lane, "LANE_MIN", 512 * KIB)


def test_fault_063_a_peer_that_takes_nothing_holds_up_only_its_own_shards(tmp_path, monkeypatch):
    small_lanes(monkeypatch)

    async def work():
        net = Recorder(6)
        slow = net.all()[0]
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net) as driver:
            await driver.wait_hosts(6)
            net.held.add(slow.id)
            entries = [driver.stage(os.urandom(300_000)) for _ in range(60)]
            await driver.store()
            await driver.wait_stored(entries, 4)  # all may be anchored
            assert not slow.shards
            assert (await driver.status()).queued_entries == 60, "and are shown as not complete"
            net.held.clear()
            net.free.set()
            await driver.wait_stored(entries, 6)
            assert len(slow.shards) == 60
            order = [driver.stored[entry][1].shards for entry in entries]
            came = [shard for peer, shard in net.taken if peer == slow.id]
            ages = [next(age for age, shards in enumerate(order) if shard in shards) for shard in came]
            assert all(age <= place + 8 for place, age in enumerate(ages)), "younger ones came before older ones"
            assert max(Counter(net.taken).values()) == 1, "a shard was sent twice"

    run(work)


def test_fault_063_after_a_while_others_take_them_and_the_map_says_so(tmp_path, monkeypatch):
    small_lanes(monkeypatch)
    monkeypatch.setattr(upload, "SLOW_PATIENCE", 0.2)

    async def work():
        net = Recorder(8)
        slow = net.all()[0]
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net, redundancy="2/6") as driver:
            await driver.wait_hosts(8)
            net.held.add(slow.id)
            entries = [driver.stage(os.urandom(300_000)) for _ in range(40)]
            await driver.store()

            async def are_complete():
                # What was under way to the slow peer stays there: it has taken it, for all that is known.
                return sum(driver.stored.get(entry, (0, None))[0] == 6 for entry in entries) >= 36

            await until(are_complete)
            slow.is_down = True
            for entry in entries:
                await driver.fetch(entry)

    run(work)


def test_fault_063_with_little_bandwidth_the_oldest_goes_first_and_the_map_before_all(tmp_path):
    async def work():
        net = Recorder(6)
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net) as driver:
            await driver.wait_hosts(6)
            first = [driver.stage(os.urandom(300_000))]
            await driver.store()
            await driver.wait_stored(first, 6)
            await driver.call("bandwidth", Bandwidth(up=2 * MIB), Empty)
            entries = []
            with trio.move_on_after(2.0):
                while True:  # somebody goes on writing, faster than the line
                    entries.append(driver.stage(os.urandom(300_000)))
                    await driver.store(entries[-1:])
                    await trio.sleep(0.05)
            behind = (await driver.status()).queued_bytes
            assert behind > 10 * 300_000
            with trio.fail_after(4):
                await driver.call("commit_map", Empty(), agentapi.MapCommit)
            assert (await driver.status()).queued_bytes > behind / 3, "the map has waited for what came after it"
            await driver.wait_stored(entries[:3], 6)
            assert sum(entry in driver.stored for entry in entries[3:]) <= 10
            await driver.call("bandwidth", Bandwidth(up=0), Empty)
            await driver.wait_stored(entries, 6)

    run(work, seconds=60)


def test_fault_065_an_entry_that_comes_again_and_again_is_sent_once(tmp_path):
    async def work():
        net = Recorder(6)
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net) as driver:
            await driver.wait_hosts(6)
            for peer in net.all():
                peer.delay = 0.2
            entry = driver.stage(os.urandom(300_000))
            for _ in range(1000):
                await driver.store([entry], flush=False)
            await driver.wait_stored([entry], 6)
            for _ in range(10):
                await driver.store([entry])
            assert len(net.taken) == 6
            assert max(peer.busiest for peer in net.all()) == 1

    run(work)


def test_a_restart_sends_only_what_is_missing(tmp_path):
    async def work():
        net = Recorder(12)
        willing, others = net.all()[:5], net.all()[5:]
        async with open_ledger(tmp_path, net.registry()):
            async with open_driver(tmp_path, net) as driver:
                await driver.wait_hosts(12)
                net.held |= {peer.id for peer in others}
                entries = [driver.stage(os.urandom(300_000)) for _ in range(3)]
                await driver.store()

                async def have_taken():
                    return all(len(peer.shards) == 3 for peer in willing)

                await until(have_taken)
                locations = driver.locations
            before, net.taken = net.taken, []
            net.held.clear()
            async with open_driver(tmp_path, net) as driver:
                driver.locations = locations
                await driver.store()
                await driver.wait_stored(entries, 12)
            assert len(before) == 15
            assert len(net.taken) == 3 * 12 - 15
            assert not set(before) & set(net.taken)

    run(work)


def test_fault_068_a_hundred_thousand_blobs_in_the_queue_do_not_delay_the_start(tmp_path):
    """None of them is read or coded while no peer can take it."""

    async def work():
        net = FakeTransport(6)
        for peer in net.all():
            peer.is_down = True
        many = tuple(StagedEntry(EntryId(i.to_bytes(32)), 1, i, 300_000) for i in range(100_000))
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net) as driver:

            async def feed():
                for start in range(0, len(many), 5000):
                    await driver.call("store", StoreEntries(many[start : start + 5000]), Empty)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(feed)
                for _ in range(20):
                    await driver.status()  # is answered in between
            status = await driver.status()
            assert status.queued_entries == 100_000
            assert status.last_error.find("cannot be stored") < 0, "it looked at the bytes, which do not exist"

    run(work, seconds=90)
