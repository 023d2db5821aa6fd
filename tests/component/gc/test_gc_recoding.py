"""What is coded anew leaves its old shards behind: they go, and nothing else does."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from gcworld import World, content, make_world, run, until

from fsdecloud.agent import arranging, repair, stack
from fsdecloud.agent.garbage import Garbage
from fsdecloud.driver import garbage
from fsdecloud.swarm.repair import Policy


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setattr(stack, "POLICY", Policy(audit_period=1e6))
    monkeypatch.setattr(repair, "GATHER", 0.02)
    monkeypatch.setattr(arranging, "GATHER", 0.02)
    monkeypatch.setattr(arranging, "RETRY", 0.2)
    monkeypatch.setattr(arranging, "REPAIR_PAUSE", 0.01)
    monkeypatch.setattr(arranging, "ROOM_PAUSE", 0.1)
    monkeypatch.setattr(garbage, "AFTER_FINAL", 0.1)
    monkeypatch.setattr(garbage, "QUIET", 0.2)
    make_world(tmp_path / "unused", monkeypatch)  # for its patience
    return World(tmp_path / "world", monkeypatch, peers=8)


async def is_recoded(world, k, n):
    found = world.agent.arranger.status()
    return found.is_counted and (found.k, found.n, found.blobs) == (k, n, 0)


def large_shards(world):
    return {
        shard for peer in world.transport.peers.values() for shard, data in peer.shards.items() if len(data) > 100_000
    }


def test_the_old_shards_go_by_themselves_and_a_snapshot_keeps_all_it_has(world):
    async def work():
        async with world.open():
            await world.volume.set_redundancy("1/3")
            for i in range(4):
                await world.write(f"large-{i}", content(i, 900_000))
            await world.write("removed", content(9, 900_000))
            await world.anchor()
            await until(world.is_stored)
            await world.remove("removed")  # a snapshot has it still
            await world.anchor()
            old = large_shards(world)
            assert len(old) == 5
            await world.volume.set_redundancy("3/7")
            await until(lambda: is_recoded(world, 3, 7))

            async def is_gone():
                await world.anchor()
                return not old & large_shards(world)

            await until(is_gone)
            assert len(large_shards(world)) == 5 * 7
            for i in range(4):
                assert await world.read(f"large-{i}") == content(i, 900_000)
            await world.check_everything()
        world.drop_cache()
        async with world.open():
            for peer in list(world.transport.peers.values())[:4]:
                peer.is_down = True
            for i in range(4):
                assert await world.read(f"large-{i}") == content(i, 900_000)
            await world.check_everything()

    run(work)


def test_there_is_no_room_to_leave_more_behind(world, monkeypatch):
    """Coding anew waits until what it left behind was deleted, and goes on."""
    monkeypatch.setattr("fsdecloud.agent.garbage.MOVED_MAX", 64)
    asked = set()
    has_room = Garbage.has_room
    monkeypatch.setattr(Garbage, "has_room", lambda self: asked.add(found := has_room(self)) or found)

    async def work():
        async with world.open():
            await world.volume.set_redundancy("1/3")
            for i in range(64):
                await world.write(f"large-{i}", content(i, 300_000))
            await world.anchor()
            await until(world.is_stored)
            old = large_shards(world)
            await world.volume.set_redundancy("2/5")

            async def is_done():
                await world.anchor()
                return await is_recoded(world, 2, 5) and not old & large_shards(world)

            await until(is_done)
            assert asked == {True, False}
            await world.check_everything()

    run(work)
