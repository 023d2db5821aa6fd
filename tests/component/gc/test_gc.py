"""Garbage leaves the peers, and never anything that some state still needs, whatever happens meanwhile."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
import trio

sys.path.insert(0, str(Path(__file__).parent))

from gcworld import Crash, content, make_world, run, until

from fsdecloud.driver import garbage
from fsdecloud.errors import LocalProtocolError
from fsdecloud.types import BlobId, EntryId, ShardId
from fsdecloud.wire.agentapi import GrantBlob, SignGrant


@pytest.fixture
def world(tmp_path, monkeypatch):
    return make_world(tmp_path, monkeypatch)


async def crashing(world, work):
    """Mount, work, and end without a clean unmount."""
    try:
        async with world.open(clean=False):
            await work()
    except BaseExceptionGroup as group:  # the crash that the test made comes in a group
        _, others = group.split(Crash)
        if others is not None:
            raise
    except Crash:
        pass


def test_garbage_goes_and_everything_else_stays(world, monkeypatch):
    monkeypatch.setattr(garbage, "AFTER_FINAL", 1000.0)  # else what is final by then is looked for without being asked

    async def work():
        async with world.open():
            for i in range(30):
                await world.write(f"small-{i}", content(i))
            await world.write("large", content(100, 3_000_000))
            await world.write("stays", content(101, 1_500_000))
            await world.anchor()
            full = world.transport.bytes()
            for i in range(25):
                await world.remove(f"small-{i}")
            await world.remove("large")
            await world.anchor()
            found = await world.collect()
            assert found.error == ""
            assert world.transport.bytes() > full * 0.9  # snapshots hold it all
            await world.forget_all()
            await world.anchor()
            looked = await world.collect(dry_run=True)
            before = world.transport.bytes()
            assert looked.error == ""
            assert looked.condemned_bytes > 8_000_000
            assert world.transport.bytes() == before
            found = await world.collect()
            assert found.error == ""
            assert found.deleted_bytes > 8_000_000
            # What is left: 1.5 MB and a few small ones at 2/6, some copies of nodes.
            assert world.transport.bytes() < 6_500_000
            await world.check_everything()
        world.drop_cache()
        async with world.open():
            assert await world.read("stays") == content(101, 1_500_000)
            for i in range(25, 30):
                assert await world.read(f"small-{i}") == content(i)
            await world.check_everything()

    run(work)


def test_the_same_content_written_again_at_every_stage(world):
    """After it was condemned, after its rows left the map, after it was deleted: it is stored anew and stays."""
    data = content(1, 700_000)

    async def work():
        async with world.open():
            for stage in ("condemned", "dropped", "deleted"):
                await world.make_garbage("file", data)
                if stage == "deleted":
                    assert (await world.collect()).deleted_bytes > 1_000_000
                else:
                    await world.volume.collector._collect(dry_run=False)  # one look
                    if stage == "dropped":
                        world.volume.anchors.force()
                        await world.anchor()
                await world.write("file", data)
                await world.anchor()
                assert (await world.collect()).error == ""
                await world.check_everything()
            await world.forget_all()
            await world.anchor()
            await world.collect()
        world.drop_cache()
        async with world.open():
            assert await world.read("file") == data
            await world.check_everything()

    run(work)


def test_written_again_while_it_is_being_deleted(world):
    """The peers are slow; the upload of the same shards waits for the deletion's end."""
    data = content(1, 700_000)

    async def work():
        async with world.open():
            await world.make_garbage("file", data)
            noise = random.Random(5)
            world.transport.delay = lambda: noise.random() * 0.05
            async with trio.open_nursery() as nursery:
                nursery.start_soon(world.collect)
                for i in range(12):
                    await trio.sleep(0.05)
                    if i % 2:
                        await world.remove("file")
                    else:
                        await world.write("file", data)
                    if i % 3 == 0:
                        await world.anchor()
                await world.write("file", data)
                await world.anchor()
            await world.check_everything()
        world.drop_cache()
        async with world.open():
            assert await world.read("file") == data
            await world.check_everything()

    run(work)


def test_a_peer_that_was_away_deletes_when_it_is_back(world):
    async def work():
        async with world.open():
            await world.write("stays", content(2))
            await world.make_garbage("file", content(1, 2_000_000))
            peers = list(world.transport.peers.values())
            before = sum(map(len, peers[0].shards.values()))
            peers[0].is_down = True
            found = await world.collect()
            assert found.waiting_shards >= 2
            assert sum(map(len, peers[0].shards.values())) == before
        async with world.open():
            peers[0].is_down = False
            await world.collect()
            assert sum(map(len, peers[0].shards.values())) < before - 500_000
            await world.check_everything()

    run(work)


def test_nothing_is_signed_without_marks_or_for_what_is_needed(world):
    async def work():
        async with world.open():
            await world.write("file", content(1, 700_000))
            await world.anchor()
            volume = world.volume
            peer = next(iter(world.transport.peers))
            root = EntryId(volume.committer.meta.root[:32])
            request = SignGrant(
                peer,
                (
                    GrantBlob(BlobId(root), (root,), (ShardId(b"1" * 32),)),
                    GrantBlob(BlobId(b"x" * 32), (EntryId(b"x" * 32),), (ShardId(b"2" * 32),)),
                ),
            )
            with pytest.raises(LocalProtocolError):
                await volume.grants._sign(request)
            volume.grants.allow(lambda entry: entry == root, 5)
            signed = await volume.grants._sign(request)
            assert signed.refused == (root,)
            assert b"2" * 32 in signed.grant
            assert b"1" * 32 not in signed.grant
            volume.grants.forbid()
            with pytest.raises(LocalProtocolError):
                await volume.grants._sign(request)

    run(work)


def test_an_idle_volume_collects_nothing_and_a_changed_one_once_a_day(world, monkeypatch):
    async def work():
        async with world.open():
            await world.write("file", content(1, 700_000))
            await world.anchor()
            volume = world.volume
            collector = volume.collector
            monkeypatch.setattr(garbage, "QUIET", 0.0)
            monkeypatch.setattr(garbage, "AFTER_FORGETTING", 0.0)
            await world.remove("file")
            await world.anchor()
            await collector._run_by_itself()
            assert collector.status.live_entries > 0
            assert volume.committer.meta.collected_sequence == volume.committer.meta.sequence
            sentinel = collector._status = type(collector.status)()
            await collector._run_by_itself()
            assert collector._status is sentinel

    run(work)


async def history(world, seed, steps):
    """A random history with crashes; returns what the files must hold."""
    noise = random.Random(seed)
    files = {}
    world.transport.delay = lambda: noise.random() * 0.004

    async def some(count):
        for _ in range(count):
            action = noise.choice(
                ["write"] * 5
                + [
                    "patch",
                    "remove",
                    "remove",
                    "anchor",
                    "anchor",
                    "forget",
                    "keep",
                    "collect",
                    "collect",
                    "agent",
                    "down",
                ]
            )
            name = f"f{noise.randrange(8)}"
            if action == "write":
                data = content(noise.randrange(12), noise.choice([3000, 9000, 300_000]))
                await world.write(name, data)
                old = files.get(name, b"")
                files[name] = data + old[len(data) :]
            elif action == "patch" and name in files and len(files[name]) > 4000:
                data = content(noise.randrange(3), 1000)
                await world.write(name, data, 2000)
                files[name] = files[name][:2000] + data + files[name][3000:]
            elif action == "remove" and name in files:
                await world.remove(name)
                await world.volume.journal.flush()
                del files[name]
            elif action == "anchor":
                await world.anchor()
            elif action == "forget":
                rows = [row for row in await world.volume.snapshots.rows() if not row.kept]
                chosen = noise.sample(rows, noise.randrange(len(rows) + 1))
                await world.volume.snapshots.forget([str(row.sequence) for row in chosen])
            elif action == "keep":
                rows = await world.volume.snapshots.rows()
                if rows and sum(row.kept for row in rows) < 3:
                    await world.volume.snapshots.keep(str(noise.choice(rows).sequence), name=None, kept=True)
            elif action == "collect":
                if noise.random() < 0.5:
                    await world.collect()
                else:  # and it is interrupted, or others go on beside it
                    with trio.move_on_after(noise.random() * 0.5):
                        await world.collect()
            elif action == "agent" and world.agent_scope is not None:
                world.agent_scope.cancel()
            elif action == "down":
                for peer in world.transport.peers.values():
                    peer.is_down = False
                if noise.random() < 0.5:
                    noise.choice(list(world.transport.peers.values())).is_down = True

    while steps > 0:
        count = noise.randrange(4, 12)
        steps -= count
        await crashing(world, lambda count=count: some(count))
    return files


async def settle(world, files):
    """Everything reads back from peers; then, with nothing retained but the files, only they are left."""
    for peer in world.transport.peers.values():
        peer.is_down = False
    world.transport.delay = lambda: 0.0
    world.drop_cache()
    async with world.open():
        assert await world.names() == set(files)
        for name, data in files.items():
            assert await world.read(name) == data
        await world.check_everything()
        await world.anchor()
    world.drop_cache()
    async with world.open():
        for row in await world.volume.snapshots.rows():
            if row.kept:
                await world.volume.snapshots.keep(str(row.sequence), name=None, kept=False)
        await world.forget_all()
        await world.anchor()
        for _ in range(2):
            await world.forget_all()
            await world.anchor()
            found = await world.collect()
            assert found.error == ""
        await world.check_everything()
    world.drop_cache()
    async with world.open():
        for name, data in files.items():
            assert await world.read(name) == data
        await world.check_everything()
        return found


@pytest.mark.parametrize("seed", range(1))
def test_any_history_keeps_what_is_needed(world, seed):
    async def work():
        files = await history(world, seed, 30)
        await settle(world, files)

    run(work, 120)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 160))
def test_any_long_history_keeps_what_is_needed(world, seed):
    async def work():
        files = await history(world, seed, 120)
        await settle(world, files)

    run(work, 400)


def test_a_row_is_in_the_journal_or_in_the_tree_at_every_moment(world):
    """A fold's transaction takes rows out of the journal in a worker thread; whoever looks before the event loop goes on there
    still finds them, and not the older ones of the tree."""
    looked = []

    async def look(locations, rows):
        found = await locations.find(sorted(rows))
        assert found == [rows[key] for key in sorted(rows)]
        assert dict(await locations.rows_after(b"", b"\xff", 1000)).items() >= rows.items()
        assert locations.newer_rows().items() >= rows.items()
        looked.append(len(rows))

    async def work():
        async with world.open():
            locations = world.agent.locations
            journal = locations._journal
            apply = journal.apply

            def apply_and_look(writes, *, folded=None):
                rows = dict(folded or {})
                apply(writes, folded=folded)
                if rows:
                    trio.from_thread.run(look, locations, rows)

            journal.apply = apply_and_look
            for i in range(3):
                for name in range(10):
                    await world.write(f"small-{name}", content(10 * i + name))
                await world.anchor()
                await until(world.is_stored)
            await world.anchor()
            assert not locations._folding
            await world.check_everything()
        assert sum(looked) > 30

    run(work)
