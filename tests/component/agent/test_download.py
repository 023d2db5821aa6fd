"""How shards are fetched: who is asked, what a slow or lying peer costs, and how many round trips the first byte takes."""

import os
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

sys.path.insert(0, str(Path(__file__).parent))

from agentworld import FakeTransport, do_not_wait, open_driver, open_ledger, run

from fsdecloud.agent import flow
from fsdecloud.agent.peers import READY_MAX
from fsdecloud.limits import KIB
from fsdecloud.swarm.score import HEDGE_MAX
from fsdecloud.wire import agentapi
from fsdecloud.wire.agentapi import Empty


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    do_not_wait(monkeypatch)


@asynccontextmanager
async def open_stored(path, net, count, **changes):
    """Run an agent that has stored `count` blobs of their own; yields the driver's side, and their ids."""
    async with open_ledger(path, net.registry()), open_driver(path, net, **changes) as driver:
        await driver.wait_hosts(len(net.peers))
        entries = [driver.stage(os.urandom(300_000)) for _ in range(count)]
        await driver.store()
        await driver.wait_stored(entries, len(net.peers))
        yield driver, entries


def test_fault_048_a_peer_that_stops_answering_is_hedged_demoted_and_tried_again(tmp_path):
    async def work():
        net = FakeTransport(6)
        async with open_stored(tmp_path, net, 60) as (driver, entries):
            for entry in entries[:20]:
                await driver.fetch(entry)
            silent = max(net.all(), key=lambda peer: peer.gets)
            silent.is_withholding = True
            before = silent.gets
            for entry in entries[20:]:
                with trio.fail_after(HEDGE_MAX * 4):  # it would wait for REQUEST_TIMEOUT, and here for ever
                    await driver.fetch(entry)
            assert 1 <= silent.gets - before <= 10, "it was asked again and again"

    run(work)


def test_fault_075_a_slow_peer_is_asked_less_than_its_share(tmp_path):
    async def work():
        net = FakeTransport(6)
        async with open_stored(tmp_path, net, 60) as (driver, entries):
            slow = net.all()[2]
            slow.delay = 0.4
            for entry in entries[:20]:
                await driver.fetch(entry)
            before = {peer.id: peer.gets for peer in net.all()}
            for entry in entries[20:]:
                await driver.fetch(entry)
            asked = {peer.id: peer.gets - before[peer.id] for peer in net.all()}
            assert asked[slow.id] <= sum(asked.values()) / len(asked) / 3, asked

    run(work)


def test_fault_069_a_liar_is_replaced_at_once_and_the_evidence_kept(tmp_path):
    async def work():
        net = FakeTransport(6)
        async with open_stored(tmp_path, net, 30) as (driver, entries):
            for peer in net.all():
                peer.delay = 0.05
            liar = net.all()[0]
            liar.corrupt = set(liar.shards)
            for entry in entries:
                await driver.fetch(entry)
            assert liar.gets <= 4, "it was asked although it lies"
            states = {state.id: state for state in (await driver.status()).peers}
            assert states[liar.id].state == "corrupt"
            assert states[liar.id].evidence == ("wrong bytes",) * states[liar.id].corrupt
            assert not any(states[peer.id].evidence for peer in net.all()[1:])

    run(work)


def test_one_peer_is_asked_for_a_bounded_number_of_bytes_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(flow.Flow.__init__, "__defaults__", ((512 * KIB, 512 * KIB, 512 * KIB),))

    async def work():
        net = FakeTransport(2)
        async with open_stored(tmp_path, net, 40, redundancy="2/2") as (driver, entries):
            for peer in net.all():
                peer.delay = 0.05
                peer.busiest = 0
            async with trio.open_nursery() as nursery:
                for entry in entries:
                    nursery.start_soon(driver.fetch, entry)
            assert max(peer.busiest for peer in net.all()) <= 512 * KIB // 150_000

    run(work)


class CountingTransport(FakeTransport):
    """Counts round trips by cause and effect: a request that waited for an answer of round r is of round r + 1."""

    def __init__(self, count):
        super().__init__(count)
        self.rounds = 0

    async def get(self, address, shard):
        mine = self.rounds + 1
        await trio.sleep(0.01)  # as if all of a round were on their way together
        data = await super().get(address, shard)
        self.rounds = max(self.rounds, mine)
        return data


def test_the_first_byte_of_a_cold_small_file_takes_one_round_trip(tmp_path):
    async def work():
        net = CountingTransport(12)
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net) as driver:
            await driver.wait_hosts(12)
            entries = [driver.stage(os.urandom(4096)) for _ in range(300)]
            await driver.store()
            await driver.wait_stored(entries, 12)
            await driver.fetch(entries[150])
            assert net.rounds == 1

    run(work)


def test_and_on_a_new_machine_under_three_once_it_has_read_the_top_of_the_map(tmp_path):
    """The first agent writes its map; another one, with an empty disk, gets its root and nothing else."""

    async def work():
        net = CountingTransport(12)
        one, two = tmp_path / "one", tmp_path / "two"
        async with open_ledger(one, net.registry()), open_driver(one, net) as driver:
            await driver.wait_hosts(12)
            entries = []
            for _ in range(2):  # two packs
                entries += [driver.stage(os.urandom(4096)) for _ in range(20)]
                await driver.store()
            await driver.wait_stored(entries, 12)
            commit = await driver.call("commit_map", Empty(), agentapi.MapCommit)
        based = {"map_root": commit.map_root, "host_map": commit.host_map, "map_sequence": 1}
        async with open_ledger(two, net.registry()), open_driver(two, net, **based) as driver:
            await driver.wait_hosts(12)
            net.rounds = 0
            await driver.fetch(entries[0])
            assert net.rounds <= 3, "two levels of the map, and the shards"
            net.rounds = 0
            await driver.fetch(entries[-1])
            assert net.rounds < 3, "at most a leaf of the map, and the shards"

    run(work)


class OpeningTransport(FakeTransport):
    """Remembers to whom connections were opened ahead."""

    def __init__(self, count):
        super().__init__(count)
        self.opened = set()

    def open_ahead(self, address):
        self.opened.add(address.id)


@pytest.mark.parametrize(("count", "is_small"), [(12, True), (READY_MAX + 8, False)])
def test_in_a_small_network_there_is_a_connection_to_each_peer_before_the_first_read(tmp_path, count, is_small):
    async def work():
        net = OpeningTransport(count)
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net) as driver:
            await driver.wait_hosts(count)
            assert net.opened == ({peer.id for peer in net.all()} if is_small else set())
            if is_small:
                [peer, *_] = net.all()
                net.opened.clear()
                peer.is_down = True
                entry = driver.stage(os.urandom(1 << 20))
                await driver.store()
                await driver.wait_stored([entry], 11)
                peer.is_down = False
                while peer.id not in net.opened:  # noqa: ASYNC110 - it is probed, and back
                    await trio.sleep(0.01)

    run(work)


def test_connections_to_a_blobs_other_holders_are_opened_while_it_is_fetched(tmp_path):
    async def work():
        net = OpeningTransport(6)
        async with open_stored(tmp_path, net, 1) as (driver, entries):
            before = {peer.id: peer.gets for peer in net.all()}
            net.opened.clear()
            await driver.fetch(entries[0])
            asked = {peer.id for peer in net.all() if peer.gets > before[peer.id]}
            assert len(asked | net.opened) == 6
            assert len(net.opened) >= 4

    run(work)
