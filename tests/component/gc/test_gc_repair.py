"""A shard that was made again elsewhere is no garbage for ever: the peer that comes back with it is told to delete it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import trio

sys.path.insert(0, str(Path(__file__).parent))

from gcworld import World, content, make_world, run, until

from fsdecloud.agent import auditor, peers, repair, stack
from fsdecloud.agent.locations import LocationMap
from fsdecloud.driver import garbage
from fsdecloud.swarm.repair import Policy
from fsdecloud.wire.agentapi import RegistryPeer


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setattr(stack, "POLICY", Policy(urgent_grace=0.2, grace=0.2, gone_after=0.2))
    monkeypatch.setattr(repair, "GATHER", 0.02)
    monkeypatch.setattr(auditor, "PULSE", 0.1)
    monkeypatch.setattr(peers, "PROBE_IDLE", 0.1)
    monkeypatch.setattr(peers, "PROBE_URGENT", 0.05)
    make_world(tmp_path / "unused", monkeypatch)  # for its patience
    return World(tmp_path / "world", monkeypatch, peers=10)


@pytest.mark.parametrize("is_early", [False, True], ids=["after the map", "also before the map is written"])
def test_what_a_peer_brings_back_that_others_have_by_now_is_deleted(world, monkeypatch, is_early):
    """A collection that comes between the repair and the next map looks at rows that still name the old place."""
    may_write = trio.Event()
    may_write.set()
    commit = LocationMap.commit

    async def late_commit(self):
        await may_write.wait()
        return await commit(self)

    monkeypatch.setattr(LocationMap, "commit", late_commit)

    async def work():
        nonlocal may_write
        async with world.open():
            for i in range(4):
                await world.write(f"large-{i}", content(i, 900_000))
            await world.anchor()
            gone = max(world.transport.peers.values(), key=lambda peer: sum(map(len, peer.shards.values())))
            had = {shard for shard, data in gone.shards.items() if len(data) > 100_000}
            assert had
            if is_early:
                may_write = trio.Event()
            gone.is_down = True

            async def repaired():
                found = world.agent.repairer.status()
                return found.repaired_shards >= len(had) and found.degraded == 0

            await until(repaired)
            if is_early:
                assert (await world.collect()).error == ""
                may_write.set()
            await world.anchor()
            gone.is_down = False

            async def deleted():
                found = await world.collect()
                assert found.error == ""
                return not had & set(gone.shards)

            await until(deleted)
            for shard in had:
                assert sum(shard in peer.shards for peer in world.transport.peers.values()) == 1
            await world.check_everything()
            for i in range(4):
                assert await world.read(f"large-{i}") == content(i, 900_000)
        world.drop_cache()
        async with world.open():
            for i in range(4):
                assert await world.read(f"large-{i}") == content(i, 900_000)

    run(work)


def test_a_peer_that_leaves_is_told_to_delete_what_others_have_by_now(world, monkeypatch):
    """Nobody asks for a collection: who leaves waits for it."""
    monkeypatch.setattr(garbage, "AFTER_FINAL", 0.1)

    async def work():
        async with world.open():
            for i in range(4):
                await world.write(f"large-{i}", content(i, 900_000))
            await world.anchor()
            await until(world.is_stored)
            leaving = max(world.transport.peers.values(), key=lambda peer: sum(map(len, peer.shards.values())))
            had = {shard for shard, data in leaving.shards.items() if len(data) > 100_000}
            assert had
            leaving.is_leaving = True
            world.ledger.registry = tuple(
                RegistryPeer(entry.id, entry.url, 0 if entry.id == leaving.id else entry.capacity)
                for entry in world.ledger.registry
            )
            world.ledger.mine()

            async def is_moved():
                return not had & leaving.shards.keys()

            await until(is_moved)
            for shard in had:
                assert sum(shard in peer.shards for peer in world.transport.peers.values()) == 1
            leaving.is_down = True
            await world.check_everything()
        world.drop_cache()
        async with world.open():
            for i in range(4):
                assert await world.read(f"large-{i}") == content(i, 900_000)

    run(work)
