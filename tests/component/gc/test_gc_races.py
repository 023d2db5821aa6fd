"""What comes between the steps of a collection: the map is written, anchors are on their way, snapshots are kept."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import trio

sys.path.insert(0, str(Path(__file__).parent))

from gcworld import content, make_world, run, until

from fsdecloud import codec
from fsdecloud.agent.journal import ROWS
from fsdecloud.agent.rows import BlobRow, blob_key
from fsdecloud.agent.sweep import Sweeper
from fsdecloud.driver import anchors
from fsdecloud.driver.marking import Marker
from fsdecloud.errors import RemoteError, StoreFull
from fsdecloud.types import BlobId
from fsdecloud.wire.agentapi import GarbageFinal


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


async def make_garbage(world):
    """Have 9 MB of garbage on the peers, and nothing of it on this machine, where it would be needed."""
    await world.make_garbage("file", content(1, 3_000_000))

    async def has_left():
        await world.volume.uploads.let_go()
        return world.volume.entries.staged_bytes < 1_000_000

    await until(has_left)


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
            assert swept.condemned_blobs == 0
            assert swept.dead_entries == 0
            await check_later(world)
        await check_from_peers(world, files)

    run(work)


def test_the_map_is_written_between_a_scan_and_condemning_a_pack_that_was_packed_anew(world, monkeypatch):
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
            assert (await look(world)).condemned_blobs
            assert folded
            await check_later(world)
        await check_from_peers(world, files)

    run(work)


def test_a_map_that_is_written_all_the_time_is_not_swept(world, monkeypatch):
    async def work():
        async with world.open():
            await make_garbage(world)
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
            assert (await world.collect()).deleted_bytes > 8_000_000

    run(work)


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
                await volume.uploads.let_go()
                return first[:32] not in volume.entries.staged and await world.is_stored()

            await until(has_left)
            await world.agent.commit_map()
            assert (await look(world)).dead_entries == 0
            gate.set()
            await world.anchor()
            assert first in [row.root for row in await volume.snapshots.rows()]
            await check_later(world)
        await check_from_peers(world, {"a": content(1)})

    run(work)


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

    run(work)


def test_a_notice_from_before_is_not_taken_for_the_end_of_what_is_condemned_now(world, monkeypatch):
    async def work():
        async with world.open():
            await make_garbage(world)
            collector, call, seen = world.volume.collector, world.volume.agent.call, []

            async def noting(name, *args, **more):
                if name == "gc_sweep":
                    collector.note_final(GarbageFinal(0, 0))
                if name == "gc_grant":
                    seen.append(collector._final.is_set())
                return await call(name, *args, **more)

            monkeypatch.setattr(world.volume.agent, "call", noting)
            assert (await world.collect()).deleted_bytes > 8_000_000
            assert seen
            assert not any(seen)

    run(work)


def test_what_a_request_deleted_is_not_looked_for_once_more(world):
    async def work():
        async with world.open():
            await make_garbage(world)
            collector = world.volume.collector
            assert (await world.collect()).deleted_bytes > 8_000_000
            assert not collector._is_final
            assert collector._due > trio.current_time() + 1000

    run(work)


def test_a_collection_that_fails_says_so_and_is_still_due(world, monkeypatch):
    async def work():
        async with world.open():
            await make_garbage(world)
            collector = world.volume.collector
            due = collector._due
            collector._file.mkdir(parents=True)
            assert str(collector._file) in (await world.collect()).error
            collector._file.rmdir()

            async def failing(_marker):
                raise ValueError("nobody expected this")

            with monkeypatch.context() as patch:
                patch.setattr(Marker, "run", failing)
                assert "ValueError" in (await world.collect()).error
            assert collector._due == due
            found = await world.collect()
            assert found.error == ""
            assert found.deleted_bytes > 8_000_000

    run(work)


def test_a_node_of_the_map_that_comes_back_while_it_is_sent_is_not_condemned(world):
    async def work():
        async with world.open():
            await world.write("a", content(1))
            await world.anchor()
            await until(world.is_stored)
            agent = world.agent
            key = blob_key(BlobId(b"x" * 32))

            async def fold(length):
                """Write the map with one row of a blob that long."""
                await agent._writer.write([(ROWS, key, codec.encode(BlobRow(1, 1, 1, length, (), ())))])
                await agent.locations._fold()
                return BlobId(agent.locations.root[:32])

            world.transport.delay = lambda: 1000.0
            first = await fold(1)
            second = await fold(2)
            assert agent.garbage.get(first).is_node
            assert await fold(1) == first
            assert agent.uploader.is_on_its_way(first)
            assert agent.garbage.get(first) is None
            assert agent.garbage.get(second).is_node
            assert agent.garbage._owners(first) == []
            world.transport.delay = lambda: 0.0

    run(work)


def test_a_map_that_could_not_be_written_holds_up_no_later_one(world, monkeypatch):
    async def work():
        async with world.open():
            await world.write("a", content(1))
            await world.anchor()
            await until(world.is_stored)
            journal, generation = world.agent._writer.journal, world.agent.garbage.generation
            apply, failed = journal.apply, []

            def full(writes, *, folded=None):
                if folded is not None and not failed:
                    failed.append(True)
                    raise StoreFull("the disk is full", 28)
                apply(writes, folded=folded)

            row = codec.encode(BlobRow(1, 1, 1, 1, (), ()))
            await world.agent._writer.write([(ROWS, blob_key(BlobId(b"x" * 32)), row)])
            monkeypatch.setattr(journal, "apply", full)
            with pytest.raises(StoreFull):
                await world.agent.commit_map()
            assert world.agent.garbage.generation == generation
            assert world.agent.uploader.local_pending() == []
            await world.write("b", content(2))
            await world.anchor()
            await world.check_everything()

    run(work)


def test_a_peer_that_is_away_causes_no_collection_after_each_anchor(world):
    async def work():
        async with world.open():
            await make_garbage(world)
            peer = next(iter(world.transport.peers.values()))
            peer.is_down = True
            assert (await world.collect()).waiting_shards
            collector, notices = world.volume.collector, []
            note = collector.note_final
            world.agent._notify = lambda method, notice: notices.append(notice) if method == "garbage" else None
            world.agent.announce_garbage()
            assert notices == [GarbageFinal(0, 0)]
            note(notices[0])
            assert not collector._is_final
            assert collector._waiting  # so that it is asked again, some day

    run(work)
