"""What comes between the steps of a collection: the map is written, anchors are on their way, snapshots are kept."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import trio

sys.path.insert(0, str(Path(__file__).parent))

from gcworld import content, make_world, run, until

from fsdecloud.agent.sweep import Sweeper
from fsdecloud.driver import anchors
from fsdecloud.errors import RemoteError


@pytest.fixture
def world(tmp_path, monkeypatch):
    return make_world(tmp_path, monkeypatch)


def fold_after(world, monkeypatch, name, times=1):
    """Have the location map written after a step of the next scans, as an anchor may; returns which were."""
    step = getattr(Sweeper, name)
    folded = []

    async def and_fold(self, *args):
        found = await step(self, *args)
        if len(folded) < times:
            folded.append(name)
            await world.agent.commit_map()
        return found

    monkeypatch.setattr(Sweeper, name, and_fold)
    return folded


def hold(world, monkeypatch, method):
    """Have the driver's next calls of a method of the agent wait; returns the events of one that does, and of their end."""
    agent = world.volume.agent
    call, reached, gate = agent.call, trio.Event(), trio.Event()

    async def held(name, *args, **more):
        if name == method:
            reached.set()
            await gate.wait()
        return await call(name, *args, **more)

    monkeypatch.setattr(agent, "call", held)
    return reached, gate


async def look(world):
    swept, _ = await world.volume.collector._collect(dry_run=False)
    return swept


async def check_later(world):
    """Have the map written twice and its old states deleted; then everything is read with nothing on this machine."""
    for _ in range(2):
        world.volume.anchors.force()
        await world.anchor()
        await look(world)
    await world.check_everything()
    await world.anchor()


async def check_from_peers(world, files):
    world.drop_cache()
    async with world.open():
        for name, data in files.items():
            assert await world.read(name) == data
        await world.check_everything()


def test_a_pack_whose_last_copies_came_after_it_was_in_the_map_stays(world, monkeypatch):
    """Its rows wait in the journal once more; the map is written while the scan runs, and they no longer do."""
    files = {f"f{i}": content(i) for i in range(10)}

    async def work():
        async with world.open():
            peer = next(iter(world.transport.peers.values()))
            peer.is_down = True
            for name, data in files.items():
                await world.write(name, data)
            await world.anchor()
            peer.is_down = False
            await until(world.is_stored)
            folded = fold_after(world, monkeypatch, "_look_at_entries")
            swept = await look(world)
            assert folded
            assert swept.doomed_blobs == 0
            assert swept.dead_entries == 0
            await check_later(world)
        await check_from_peers(world, files)

    run(work, 15)


def test_the_map_is_written_between_a_scan_and_dooming_a_pack_that_was_packed_anew(world, monkeypatch):
    files = {f"f{i}": content(i) for i in range(2)}

    async def work():
        async with world.open():
            for name, data in files.items():
                await world.write(name, data)
            for i in range(10):
                await world.write(f"gone{i}", content(100 + i))
            await world.anchor()
            await until(world.is_stored)
            for i in range(10):
                await world.remove(f"gone{i}")
            await world.anchor()
            await world.forget_all()
            await world.anchor()
            assert (await look(world)).repack
            await until(world.is_stored)
            folded = fold_after(world, monkeypatch, "_entries_of")
            assert (await look(world)).doomed_blobs
            assert folded
            await check_later(world)
        await check_from_peers(world, files)

    run(work, 15)


def test_a_map_that_is_written_all_the_time_is_not_swept(world, monkeypatch):
    async def work():
        async with world.open():
            await world.make_garbage("file", content(1, 700_000))
            generation = world.agent.garbage.generation
            step = Sweeper._entries_of

            async def and_fold(self, *args):
                found = await step(self, *args)
                world.agent.garbage.generation += 1
                return found

            monkeypatch.setattr(Sweeper, "_entries_of", and_fold)
            found = await world.collect()
            assert "too much is stored" in found.error
            assert found.condemned_blobs == 0
            assert world.agent.garbage.generation > generation + 1
            monkeypatch.setattr(Sweeper, "_entries_of", step)
            assert (await world.collect()).deleted_bytes > 1_000_000

    run(work, 15)


def test_a_commit_stays_whose_anchor_is_being_made_while_the_next_one_comes(world, monkeypatch):
    data = content(2, 9000)

    async def work():
        async with world.open():
            volume = world.volume
            await world.write("a", content(1))
            await world.anchor()
            reached, gate = hold(world, monkeypatch, "store_manifest")
            await world.write("b", data)
            await volume.committer.request()
            volume.anchors.poke(urgent=True)
            await reached.wait()
            first = volume.committer.latest.root
            await world.remove("b")
            await volume.committer.request()
            assert volume.committer.latest.root != first

            async def has_left():
                return first[:32] not in volume.entries.staged and await world.is_stored()

            await until(has_left)
            await world.agent.commit_map()
            assert (await look(world)).dead_entries == 0
            gate.set()
            await world.anchor()
            assert first in [row.root for row in await volume.snapshots.rows()]
            await check_later(world)
        await check_from_peers(world, {"a": content(1)})

    run(work, 15)


def test_an_anchor_that_was_asked_for_is_made_after_a_failure(world, monkeypatch):
    """Nothing but the location map changed: nothing else would make it."""
    monkeypatch.setattr(anchors, "_RETRY", 0.05)

    async def work():
        async with world.open():
            volume = world.volume
            await world.write("a", content(1))
            await world.anchor()
            sequence, call, failed = volume.committer.meta.sequence, volume.agent.call, []

            async def failing(name, *args, **more):
                if name == "commit_map" and not failed:
                    failed.append(name)
                    raise RemoteError("no peer answers")
                return await call(name, *args, **more)

            monkeypatch.setattr(volume.agent, "call", failing)
            volume.anchors.force()

            async def is_anchored():
                return volume.committer.meta.sequence > sequence

            await until(is_anchored)
            assert failed

    run(work, 20)
