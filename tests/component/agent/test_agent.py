"""The whole agent over a socket pair, with peers in memory."""

import os
import sys
from pathlib import Path

import pytest
import trio
from blake3 import blake3

sys.path.insert(0, str(Path(__file__).parent))

from agentworld import FakeTransport, open_driver, open_ledger, run

from fsdecloud.errors import BlobMissing, NotEnoughPeers, UsageError
from fsdecloud.types import EntryId
from fsdecloud.wire import agentapi
from fsdecloud.wire.agentapi import Empty


def test_store_and_fetch(tmp_path):
    async def work():
        net = FakeTransport(6)
        big = [os.urandom(1 << 20) for _ in range(5)]
        small = [os.urandom(100 + 37 * i) for i in range(300)]
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net) as driver:
            entries = [driver.stage(data) for data in big + small]
            await driver.store()
            await driver.wait_stored(entries, 6)
            packed = driver.stored[entries[-1]][1]
            assert packed.blob != entries[-1]
            assert len(packed.entries) > 50
            assert (packed.k, packed.n) == (2, 6)
            status = await driver.status()
            assert (status.queued_entries, status.queued_bytes, status.partial_blobs) == (0, 0, 0)
            assert status.uploaded_bytes >= 3 * (5 << 20)
            for entry, data in zip(entries, big + small, strict=True):
                assert await driver.fetch(entry) == data
            gets = sum(peer.gets for peer in net.all())
            assert gets <= 2 * (5 + 5) + 4  # five blobs, at most five packs
            assert {state.state for state in (await driver.status()).peers} == {"up"}
        # Another run knows all of it from the journal, without a ledger.
        async with open_driver(tmp_path, net) as driver:
            assert await driver.fetch(entries[0]) == big[0]
            assert await driver.fetch(entries[100]) == small[95]
            with pytest.raises(BlobMissing):
                await driver.fetch(EntryId(b"?" * 32))

    run(work)


def test_map_survives_on_the_peers(tmp_path):
    async def work():
        net = FakeTransport(6)
        data = [os.urandom(500) for _ in range(2000)]
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net) as driver:
            entries = [driver.stage(item) for item in data]
            await driver.store()
            await driver.wait_stored(entries, 6)
            commit = await driver.call("commit_map", Empty(), agentapi.MapCommit)
            assert len(commit.map_root) == 64
            again = await driver.call("commit_map", Empty(), agentapi.MapCommit)
            assert again == commit
            manifest = os.urandom(1000)
            holders = await driver.call("store_manifest", agentapi.StoreManifest(manifest), agentapi.Holders)
            assert len(set(holders.peers)) >= 3
        # A new machine: its agent gets the manifest from the holders, then the map from its root.
        other = tmp_path / "other"
        async with open_ledger(other, net.registry()), open_driver(other, net) as driver:
            await driver.wait_hosts(6)
            name = EntryId(blake3(manifest).digest())
            assert await driver.fetch(name, holders=holders.peers[:1]) == manifest
        changes = {"map_root": commit.map_root, "host_map": commit.host_map, "map_sequence": 1}
        for peer in net.all()[:4]:
            peer.is_down = True
        async with open_driver(other, net, **changes) as driver:
            for i in (0, 77, 1999):
                assert await driver.fetch(entries[i]) == data[i]
            net.all()[4].is_down = True
            net.all()[5].is_down = True
            fresh = EntryId(os.urandom(32))
            with pytest.raises((NotEnoughPeers, BlobMissing)):
                await driver.fetch(fresh)

    run(work)


def test_two_may_wait_for_the_same_nodes_of_the_map(tmp_path):
    """One waits for the map when another one begins to."""

    async def work():
        net = FakeTransport(6)
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net) as driver:
            await driver.wait_hosts(6)
            entry = driver.stage(os.urandom(1000))
            await driver.store()
            await driver.wait_stored([entry], 5)
            for peer in net.all():
                peer.delay = 0.1
            commits = []

            async def commit():
                commits.append(await driver.call("commit_map", Empty(), agentapi.MapCommit))

            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(commit)
            assert commits[0] == commits[1] == commits[2]

    run(work)


def test_new_blobs_get_the_redundancy_that_was_set_last(tmp_path):
    async def main():
        net = FakeTransport(6)
        async with open_ledger(tmp_path, net.registry()), open_driver(tmp_path, net) as driver:
            await driver.wait_hosts(6)
            old = driver.stage(os.urandom(300_000))
            await driver.store([old])
            await driver.wait_stored([old], 6)
            assert (driver.stored[old][1].k, driver.stored[old][1].n) == (2, 6)
            await driver.call("redundancy", agentapi.WantedRedundancy("3/5"), Empty)
            new = driver.stage(os.urandom(300_000))
            await driver.store([new])
            await driver.wait_stored([new], 5)
            assert (driver.stored[new][1].k, driver.stored[new][1].n) == (3, 5)
            status = await driver.status()
            assert (status.k, status.n, status.warning) == (3, 5, "")
            with pytest.raises(UsageError):
                await driver.call("redundancy", agentapi.WantedRedundancy("5/3"), Empty)
            for entry in (old, new):
                await driver.fetch(entry)

    run(main)
