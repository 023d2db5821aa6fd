"""What peers, disks and restarts do to the agent; named after the faults of the catalogue."""

import os
import sys
from pathlib import Path

import pytest
import trio
from blake3 import blake3

sys.path.insert(0, str(Path(__file__).parent))

from agentworld import FakeTransport, do_not_wait, open_driver, open_ledger, run, until

from fsdecloud.agent import peers
from fsdecloud.errors import BlobMissing, MalformedError, NotEnoughPeers, StoreCorrupt
from fsdecloud.swarm import score
from fsdecloud.types import EntryId
from fsdecloud.wire import agentapi
from fsdecloud.wire.agentapi import Empty, StagedEntry, StoreEntries


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    do_not_wait(monkeypatch)


def test_057_a_peer_that_refuses_is_replaced_by_the_next(tmp_path):
    async def work():
        net = FakeTransport(8)
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net, redundancy="2/6") as driver:
            await driver.wait_hosts(8)
            net.all()[0].is_refusing = True
            net.all()[1].is_down = True
            data = [os.urandom(300_000) for _ in range(20)]
            entries = [driver.stage(item) for item in data]
            await driver.store()
            await driver.wait_stored(entries, 6)
            assert not net.all()[0].shards
            assert not net.all()[1].shards
            states = {state.id: state.state for state in (await driver.status()).peers}
            assert states[net.all()[0].id] == "refusing"
            assert states[net.all()[1].id] == "down"
            for peer in net.all()[2:6]:
                peer.is_down = True
            for entry, item in zip(entries, data, strict=True):
                assert len({p.id for p in net.all() if set(p.shards) & set(driver.stored[entry][1].shards)}) == 6
                await _fetch_if_two_remain(driver, net, entry, item)

    async def _fetch_if_two_remain(driver, net, entry, item):
        shards = set(driver.stored[entry][1].shards)
        if sum(bool(set(p.shards) & shards) for p in net.all()[6:]) == 2:
            assert await driver.fetch(entry) == item

    run(work)


def test_057_a_peer_that_took_some_shards_only_gets_the_others_when_it_has_room_again(tmp_path):
    class Some:
        is_full = True

        def __contains__(self, shard):
            return self.is_full and shard[0] % 2 == 0

    async def work():
        net = FakeTransport(6)
        peer = net.all()[0]
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net, redundancy="2/6") as driver:
            await driver.wait_hosts(6)
            peer.refused = Some()
            entries = [driver.stage(os.urandom(300_000)) for _ in range(20)]
            await driver.store()

            async def parked():
                status = await driver.status()
                return 0 < status.partial_blobs <= 20 and status.queued_entries > 0 and len(driver.stored) == 20

            await until(parked)
            peer.refused.is_full = False
            await driver.wait_stored(entries, 6)

    run(work)


def test_058_d2_waits_for_the_last_peer_and_comes_when_it_returns(tmp_path):
    async def work():
        net = FakeTransport(6)
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net) as driver:
            await driver.wait_hosts(6)
            net.all()[3].is_down = True
            entries = [driver.stage(os.urandom(size)) for size in (1 << 20, 300_000, 5000, 10)]
            await driver.store()
            await driver.wait_stored(entries, 4)
            status = await driver.status()
            assert status.partial_blobs == 3
            assert status.queued_entries == 4
            commit = await driver.call("commit_map", Empty(), agentapi.MapCommit)
            assert commit.map_root
            net.all()[3].is_down = False
            await driver.wait_stored(entries, 6)
            status = await driver.status()
            assert (status.queued_entries, status.queued_bytes) == (0, 0)
            for entry in entries:
                await driver.fetch(entry)

    run(work)


def test_052_everything_twice_is_harmless(tmp_path):
    async def work():
        net = FakeTransport(3)
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net) as driver:
            entries = [driver.stage(os.urandom(5000)) for _ in range(50)] + [driver.stage(os.urandom(1 << 20))]
            for _ in range(3):
                await driver.store()
            await driver.wait_stored(entries, 3)
            bytes_stored = (await driver.status()).uploaded_bytes
            driver.stored.clear()
            await driver.store()
            await driver.wait_stored(entries, 3)
            assert (await driver.status()).uploaded_bytes == bytes_stored
            assert (await driver.status()).queued_entries == 0

    run(work)


def test_049_a_restart_goes_on_with_the_same_shards(tmp_path):
    async def work():
        net = FakeTransport(6)
        net.all()[5].is_silent = True
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net, redundancy="2/6") as driver:
            await driver.wait_hosts(6, joined=5)
            data = [os.urandom(20_000 + i) for i in range(60)] + [os.urandom(1 << 20)]
            entries = [driver.stage(item) for item in data]
            await driver.store()
            net.all()[5].is_silent = False
            await driver.wait_stored(entries, 4)
            before = {driver.stored[entry][1].blob for entry in entries}
            locations = driver.locations
        puts = sum(peer.puts for peer in net.all()[:5])
        async with open_driver(tmp_path, net, redundancy="2/6") as driver:
            driver.locations = locations
            await driver.store()
            await driver.wait_stored(entries, 6)
            assert {driver.stored[entry][1].blob for entry in entries} == before
            assert sum(peer.puts for peer in net.all()[:5]) <= puts + 2
            for entry, item in zip(entries, data, strict=True):
                assert await driver.fetch(entry) == item

    run(work)


def test_066_a_pack_whose_entries_do_not_all_come_back_is_packed_anew(tmp_path):
    async def work():
        net = FakeTransport(6)
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net) as driver:
            await driver.wait_hosts(6)
            for peer in net.all()[:4]:
                peer.is_down = True
            entries = [driver.stage(os.urandom(9000)) for _ in range(30)]
            await driver.store()
            await until(lambda: _has_partial(driver))
            locations = driver.locations
        for peer in net.all():
            peer.is_down = False
        async with open_driver(tmp_path, net) as driver:
            driver.locations = locations
            await driver.store(entries[:10])
            await driver.wait_stored(entries[:10], 6)
            assert (await driver.status()).queued_entries == 0
            for entry in entries[:10]:
                await driver.fetch(entry)

    async def _has_partial(driver):
        return (await driver.status()).partial_blobs == 1

    run(work)


def test_018_a_damaged_staged_entry_is_never_uploaded(tmp_path):
    async def work():
        net = FakeTransport(3)
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net) as driver:
            good = [driver.stage(os.urandom(5000)) for _ in range(5)]
            bad = driver.stage(os.urandom(5000))
            big = driver.stage(os.urandom(1 << 20))
            for entry in (bad, big):
                where = driver.locations[entry]
                path = driver.staged.path(where.segment)
                with path.open("r+b") as file:
                    file.seek(where.offset + 100)
                    file.write(b"XXXX")
            gone = StagedEntry(EntryId(b"g" * 32), 99, 0, 1000)
            await driver.call("store", StoreEntries((gone,)), Empty)
            await driver.store()
            await driver.wait_stored(good, 3)

            async def settled():
                return (await driver.status()).queued_entries == 0

            await until(settled)
            assert not {bad, big, gone.id} & set(driver.stored)
            assert "cannot be stored" in (await driver.status()).last_error
            held = {shard for peer in net.all() for shard in peer.shards}
            assert held
            assert not {bad, big} & held

    run(work)


def test_069_wrong_bytes_cost_a_request_and_are_held_against_the_peer(tmp_path):
    async def work():
        net = FakeTransport(6)
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net) as driver:
            data = [os.urandom(400_000) for _ in range(8)]
            entries = [driver.stage(item) for item in data]
            await driver.store()
            await driver.wait_stored(entries, 6)
            liars = net.all()[:4]
            for peer in liars:
                peer.corrupt = set(peer.shards)
            for entry, item in zip(entries, data, strict=True):
                assert await driver.fetch(entry) == item
            states = {state.id: state for state in (await driver.status()).peers}
            assert any(states[peer.id].state == "corrupt" and states[peer.id].corrupt for peer in liars)
            for peer in net.all():
                peer.corrupt.clear()
            for peer in net.all()[2:]:
                peer.shards.clear()  # fault 58: lost its whole store
            for entry, item in zip(entries, data, strict=True):
                assert await driver.fetch(entry) == item

    run(work)


def test_048_a_silent_peer_is_hedged(tmp_path):
    async def work():
        net = FakeTransport(6)
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net) as driver:
            data = [os.urandom(400_000) for _ in range(6)]
            entries = [driver.stage(item) for item in data]
            await driver.store()
            await driver.wait_stored(entries, 6)
            net.all()[0].is_silent = net.all()[1].is_silent = True
            with trio.fail_after(15):
                for entry, item in zip(entries, data, strict=True):
                    assert await driver.fetch(entry) == item

    run(work)


def test_061_too_few_peers_is_an_error_at_once_and_heals(tmp_path):
    async def work():
        net = FakeTransport(6)
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net) as driver:
            item = os.urandom(400_000)
            entry = driver.stage(item)
            await driver.store()
            await driver.wait_stored([entry], 6)
            for peer in net.all()[:5]:
                peer.is_down = True
            for _ in range(3):
                with trio.fail_after(1), pytest.raises(NotEnoughPeers):
                    await driver.fetch(entry)
            for peer in net.all():
                peer.is_down = False

            async def heals():
                try:
                    return await driver.fetch(entry) == item
                except NotEnoughPeers:
                    return False

            await until(heals)

    run(work)


def test_fault_046_nobody_waits_twice_for_peers_that_vanished(tmp_path, monkeypatch):
    """All packets are lost: one read waits for that. Those after it are told at once and ask nobody, also when the time has
    come to try again: a probe does that, and brings the peers back."""
    monkeypatch.setattr(score, "_RETRY_MAX", 0.1)
    monkeypatch.setattr(score, "CHEAP", 0.05)

    async def work():
        net = FakeTransport(6)
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net) as driver:
            items = [os.urandom(400_000 + i) for i in range(12)]
            entries = [driver.stage(item) for item in items]
            await driver.store()
            await driver.wait_stored(entries, 6)
            for peer in net.all():
                peer.vanishes = 0.2
            with pytest.raises(NotEnoughPeers):
                await driver.fetch(entries[0])
            asked = [peer.asked for peer in net.all()]
            assert min(asked) == 1
            for entry in entries[1:]:
                await trio.sleep(0.06)
                with pytest.raises(NotEnoughPeers):
                    await driver.fetch(entry)
            assert [peer.asked for peer in net.all()] == asked
            for peer in net.all():
                peer.vanishes = 0

            async def heals():
                return {state.state for state in (await driver.status()).peers} == {"up"}

            await until(heals)
            assert [await driver.fetch(entry) for entry in entries] == items

    run(work)


def test_fault_046_who_refuses_connections_is_found_again_by_a_read(tmp_path, monkeypatch):
    """It costs nothing to ask: nobody has to wait for a probe."""
    monkeypatch.setattr(peers, "PROBE_URGENT", 1e6)
    monkeypatch.setattr(peers, "PROBE_IDLE", 1e6)
    monkeypatch.setattr(score, "_RETRY_STEP", 0.05)

    async def work():
        net = FakeTransport(6)
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net) as driver:
            item = os.urandom(400_000)
            entry = driver.stage(item)
            await driver.store()
            await driver.wait_stored([entry], 6)
            for peer in net.all():
                peer.is_down = True
            with pytest.raises(NotEnoughPeers):
                await driver.fetch(entry)
            for peer in net.all():
                peer.is_down = False

            async def heals():
                try:
                    return await driver.fetch(entry) == item
                except NotEnoughPeers:
                    return False

            await until(heals)

    run(work)


def test_068_a_long_queue_does_not_delay_the_hello(tmp_path):
    async def work():
        net = FakeTransport(6)
        for peer in net.all():
            peer.is_down = True
        many = tuple(StagedEntry(EntryId(i.to_bytes(32)), 1, i, 1000) for i in range(20_000))
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net) as driver:
            for start in range(0, len(many), 4000):
                await driver.call("store", StoreEntries(many[start : start + 4000]), Empty)
            for bad in (StagedEntry(EntryId(b"x"), 1, 0, 10), StagedEntry(EntryId(b"x" * 32), 1, 0, 1 << 30)):
                with pytest.raises(MalformedError):
                    await driver.call("store", StoreEntries((bad,)), Empty)
            status = await driver.status()
            assert status.queued_entries == 20_000
            assert status.queued_bytes == 20_000_000

    run(work)


def test_equal_requests_are_one_and_foreground_goes_first(tmp_path):
    async def work():
        net = FakeTransport(6)
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net) as driver:
            data = [os.urandom(300_000) for _ in range(40)]
            entries = [driver.stage(item) for item in data]
            await driver.store()
            await driver.wait_stored(entries, 6)
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(driver.fetch, entries[0])
            assert sum(peer.gets for peer in net.all()) == 2
            async with trio.open_nursery() as nursery:
                for entry in entries[1:]:
                    nursery.start_soon(lambda entry=entry: driver.fetch(entry, ahead=True))
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(driver.fetch, entries[-1])

    run(work)


def test_another_devices_map_is_merged_not_replaced(tmp_path):
    async def work():
        net = FakeTransport(6)
        one, two = tmp_path / "one", tmp_path / "two"
        async with open_ledger(one, net.registry()), open_driver(one, net) as driver:
            common = driver.stage(os.urandom(3000))
            await driver.store()
            await driver.wait_stored([common], 6)
            base = await driver.call("commit_map", Empty(), agentapi.MapCommit)
        based = {"map_root": base.map_root, "host_map": base.host_map, "map_sequence": 1}
        async with open_ledger(two, net.registry()), open_driver(two, net, **based) as driver:
            await driver.wait_hosts(6)
            theirs = driver.stage(os.urandom(3000))
            await driver.store()
            await driver.wait_stored([theirs], 6)
            newer = await driver.call("commit_map", Empty(), agentapi.MapCommit)
            assert newer.map_root != base.map_root
        async with open_driver(one, net) as driver:
            ours = driver.stage(os.urandom(3000))
            await driver.store()
            await driver.wait_stored([ours], 6)
            await driver.call("commit_map", Empty(), agentapi.MapCommit)
            pending = driver.stage(os.urandom(3000))
            await driver.store()
            await driver.wait_stored([pending], 6)
        newest = {"map_root": newer.map_root, "host_map": newer.host_map, "map_sequence": 2}
        for _ in range(2):
            async with open_driver(one, net, **newest) as driver:
                for entry in (common, theirs, ours, pending):
                    await driver.fetch(entry)
        async with open_driver(one, net, **newest) as driver:
            merged = await driver.call("commit_map", Empty(), agentapi.MapCommit)
        three = tmp_path / "three"
        last = {"map_root": merged.map_root, "host_map": merged.host_map, "map_sequence": 3}
        async with open_ledger(three, net.registry()), open_driver(three, net, **last) as driver:
            await driver.wait_hosts(6)
            for entry in (common, theirs, ours, pending):
                await driver.fetch(entry)

    run(work)


def test_hosts_grow_and_old_blobs_stay_readable(tmp_path):
    async def work():
        net = FakeTransport(12)
        async with open_ledger(tmp_path, net.registry()[:3]) as ledger, open_driver(tmp_path, net) as driver:
            first = driver.stage(os.urandom(300_000))
            await driver.store()
            await driver.wait_stored([first], 3)
            assert driver.stored[first][1].n == 3
            ledger.registry = net.registry()
            ledger.mine()
            await driver.wait_hosts(12)

            async def grown():
                return (await driver.status()).n == 12

            await until(grown)
            second = driver.stage(os.urandom(300_000))
            await driver.store()
            await driver.wait_stored([second], 12)
            assert (driver.stored[second][1].k, driver.stored[second][1].n) == (4, 12)
            await driver.fetch(first)
            await driver.fetch(second)

    run(work)


def test_a_journal_of_another_volume_is_refused(tmp_path):
    async def work():
        net = FakeTransport(3)
        async with open_driver(tmp_path, net):
            pass
        with pytest.raises(StoreCorrupt, match="belongs to volume"):
            async with open_driver(tmp_path, net, volume=b"W" * 32):
                pass

    run(work)


def test_a_full_cache_disk_does_not_stop_reading(tmp_path):
    async def work():
        net = FakeTransport(3)
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net) as driver:
            entry = driver.stage(os.urandom(300_000))
            await driver.store()
            await driver.wait_stored([entry], 3)
            cache = tmp_path / "cache"
            for file in cache.iterdir():
                file.unlink()
            cache.rmdir()
            cache.write_bytes(b"in the way")
            found = await driver.call("fetch", agentapi.FetchEntry(entry, False), agentapi.FetchedEntry)
            assert blake3(found.data).digest() == entry
            with pytest.raises(BlobMissing):
                await driver.fetch(EntryId(b"no" * 16))

    run(work)


@pytest.mark.parametrize(("count", "warning"), [(0, "no peer is known yet"), (2, "fewer than 3 peers"), (3, "")])
def test_what_is_said_of_few_peers_and_of_none(tmp_path, count, warning):
    async def work():
        net = FakeTransport(count)
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net) as driver:
            if count:
                await driver.wait_hosts(count)
            said = (await driver.status()).warning
            assert said.startswith(warning)
            assert bool(said) == bool(warning)

    run(work)
