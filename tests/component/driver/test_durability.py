"""What fsync promised is there after kill -9, whatever commit, truncation or failure came in between."""

from __future__ import annotations

import os
import threading
from functools import partial

import pytest
import trio
import trio.testing

from fsdecloud.crypto.seal import Kind
from fsdecloud.driver.sealer import WORKERS
from fsdecloud.errors import RemoteTimeout, StoreFull
from fsdecloud.fs.inode import decode_inode
from fsdecloud.fs.keys import inode_key
from fsdecloud.tree.lookup import lookup
from fsdecloud.types import EntryId, Ref

MIB = 1 << 20


def test_pages_below_a_cut_are_journaled_again(run_driver):
    async def test(driver):
        file = driver.new_file()
        driver.files.write_nowait(file, 0, b"A" * 500_000)
        await driver.fsync(file)  # a chunk value
        driver.files.write_nowait(file, 0, b"B" * 4096)
        await driver.fsync(file)  # a page
        await driver.files.truncate(file, 400_000)  # a clipped value, which voids the page
        await driver.fsync(file)
        after = await driver.crashed()
        assert await after.read(file.ino, 0, 5000) == b"B" * 4096 + b"A" * 904

    run_driver(test)


class Gate:
    """Holds up a commit of the store in its worker thread until it is opened; the event loop goes on."""

    def __init__(self, driver, is_held=lambda _more: True) -> None:
        self.opened = threading.Event()
        self.reached = trio.Event()
        commit, token = driver.store.commit, trio.lowlevel.current_trio_token()

        def held(rows, **more):
            if is_held(more):
                token.run_sync_soon(self.reached.set)
                assert self.opened.wait(20), "nobody opened the gate"
            return commit(rows, **more)

        driver.store.commit = held
        driver.store.is_quick = lambda _size: False  # in the event loop nothing could come in between


@pytest.mark.parametrize("first", ["commit", "fsync"])
def test_fsync_does_not_return_before_a_layer_that_a_commit_closed_is_durable(run_driver, first):
    async def test(driver):
        file = driver.new_file()
        driver.files.write_nowait(file, 0, b"A" * 300_000)
        await driver.fsync(file)
        gate = Gate(driver)
        driver.core.changed()
        driver.core.recorder.record(1, None, 1, b"/x")
        found = []

        async def fsync() -> None:
            await driver.fsync(file)
            found.append(await driver.crashed())

        both = [driver.committer.commit, fsync]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(driver.journal.flush)
            await gate.reached.wait()
            driver.files.write_nowait(file, 0, b"B" * 4096)
            for task in both if first == "commit" else reversed(both):  # each waits for the group that is being written
                nursery.start_soon(task)
                await trio.testing.wait_all_tasks_blocked()
            assert not found
            gate.opened.set()
        assert await found[0].read(file.ino, 0, 5000) == b"B" * 4096 + b"A" * 904

    run_driver(test)


def test_fsync_waits_for_what_a_commit_closed_while_it_waited_for_the_sealer(run_driver):
    async def test(driver):
        file, data = driver.new_file(), os.urandom(MIB + 70_000)
        stage, gates = driver.entries.stage, [trio.Event(), trio.Event()]
        passed = []

        async def stage_later(items):
            gate = gates[min(len(passed), 1)]
            passed.append(gate)
            await gate.wait()
            return await stage(items)

        driver.entries.stage = stage_later
        driver.files.write_nowait(file, 0, data)  # a whole chunk being sealed, and an open layer
        after = []

        async def fsync() -> None:
            await driver.fsync(file)
            after.append(await driver.crashed())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fsync)
            await trio.testing.wait_all_tasks_blocked()
            driver.core.recorder.record(1, None, 1, b"/x")
            nursery.start_soon(driver.committer.commit)
            while not driver.core.overlay.is_committing:
                await trio.testing.wait_all_tasks_blocked()
            gates[0].set()
            while len(passed) < 2:  # noqa: ASYNC110 - the second layer comes to be sealed
                await trio.sleep(0.01)
            for _ in range(3):  # after the one of fsync, if it were content with that
                await trio.testing.wait_all_tasks_blocked()
                await driver.journal.flush()
            await trio.testing.wait_all_tasks_blocked()
            if after:
                assert await after[0].read(file.ino, 0, 2 * MIB) == data
            gates[1].set()
        assert await after[0].read(file.ino, 0, 2 * MIB) == data

    run_driver(test)


def test_fsync_waits_for_the_chunk_that_replaced_what_was_written(run_driver):
    async def test(driver):
        file, data = driver.new_file(), os.urandom(MIB)
        driver.files.write_nowait(file, 0, b"A" * 4096)
        gate = trio.Event()
        stage = driver.entries.stage

        async def stage_later(items):
            await gate.wait()
            return await stage(items)

        driver.entries.stage = stage_later
        after = []

        async def fsync() -> None:
            await driver.fsync(file)
            after.append(await driver.crashed())

        async with trio.open_nursery() as nursery:
            async with driver.journal._lock:  # a group is being written
                nursery.start_soon(fsync)
                await trio.testing.wait_all_tasks_blocked()
                driver.files.write_nowait(file, 0, data)
            await trio.testing.wait_all_tasks_blocked()
            assert not after
            gate.set()
        assert await after[0].read(file.ino, 0, MIB) == data

    run_driver(test)


def test_a_chunk_value_does_not_void_the_pages_of_a_younger_closed_layer(run_driver):
    async def test(driver):
        file = driver.new_file()
        driver.files.write_nowait(file, 0, b"A" * 300_000)
        await driver.fsync(file)
        gate = trio.Event()
        stage = driver.entries.stage

        async def slow_stage(items):
            await gate.wait()
            return await stage(items)

        driver.entries.stage = slow_stage
        driver.files.write_nowait(file, 0, b"B" * 4096)
        chunk = file.chunks[0]
        driver.files.seal_chunk(chunk)  # the older layer is being sealed
        driver.files.write_nowait(file, 4096, b"C" * 4096)
        await driver.journal.flush()  # pages of the younger one
        driver.files.seal_chunk(chunk)  # and now it is closed too
        gate.set()
        while len(chunk.layers) == 2:
            await driver.sealer.wait_progress()
        gate_again = trio.Event()
        driver.entries.stage = lambda items: gate_again.wait()
        await driver.journal.flush()  # the older layer's value; the younger one's pages must follow it
        after = await driver.crashed()
        assert await after.read(file.ino, 0, 9000) == b"B" * 4096 + b"C" * 4096 + b"A" * 808
        driver.entries.stage = stage

    run_driver(test)


def test_making_everything_durable_waits_for_the_sealer(run_driver):
    async def test(driver):
        file = driver.new_file()
        blocks = [os.urandom(MIB) for _ in range(40)]
        for index, block in enumerate(blocks):
            driver.files.write_nowait(file, index * MIB, block)
        await driver.files.make_sealed_or_pages(driver.sealer.waiting_chunks())
        await driver.journal.flush()
        after = await driver.crashed()
        for index, block in enumerate(blocks):
            assert await after.read(file.ino, index * MIB, MIB) == block

    run_driver(test)


def test_closed_layers_that_cannot_be_sealed_are_kept_as_pages(run_driver):
    async def test(driver):
        async def never(_items):
            await trio.sleep_forever()

        driver.entries.stage = never
        file = driver.new_file()
        for index in range(3):
            driver.files.write_nowait(file, index * MIB, bytes([65 + index]) * MIB)
        driver.files.journal_closed(driver.sealer.waiting_chunks())
        await driver.journal.flush()
        after = await driver.crashed()
        for index in range(3):
            assert await after.read(file.ino, index * MIB, MIB) == bytes([65 + index]) * MIB

    run_driver(test)


def test_all_sealing_workers_work(run_driver):
    async def test(driver):
        running = most = 0
        seal = driver.sealer._seal_batch
        both = trio.Event()

        async def counted(batch):
            nonlocal running, most
            running += 1
            most = max(most, running)
            if most == WORKERS:
                both.set()
            with trio.move_on_after(5):
                await both.wait()  # a worker alone would stay here
            try:
                await seal(batch)
            finally:
                running -= 1

        driver.sealer._seal_batch = counted
        await trio.testing.wait_all_tasks_blocked()  # idle workers
        file = driver.new_file()
        for index in range(40):
            driver.files.write_nowait(file, index * MIB, os.urandom(MIB))
        await driver.files.wait_sealed(file)
        assert most == WORKERS

    run_driver(test)


def test_an_anchor_saved_during_a_commit_neither_loses_nor_undoes_it(run_driver):
    async def test(driver):
        file = driver.new_file()
        driver.files.write_nowait(file, 0, b"A" * 300_000)
        await driver.fsync(file)
        gate = Gate(driver, lambda more: more.get("truncate_before"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(driver.committer.commit)
            await gate.reached.wait()
            nursery.start_soon(partial(driver.committer.save_meta, inflight=b"anchor"))
            await trio.testing.wait_all_tasks_blocked()
            gate.opened.set()
        assert driver.committer.meta.inflight == b"anchor"
        after = await driver.crashed()
        assert after.committer.meta == driver.committer.meta
        assert after.committer.meta.root
        assert await after.read(file.ino, 0, 4) == b"AAAA"

    run_driver(test)


def test_peers_away_fail_a_commit_with_one_error_of_ours_and_undo_nothing(run_driver):
    async def test(driver):
        file = driver.new_file()
        driver.files.write_nowait(file, 0, b"A" * 10)
        await driver.committer.commit()

        async def away(_ref):
            raise RemoteTimeout("peers are away")

        fetch, small = driver.nodes.fetch, driver.entries.small_nowait
        driver.nodes.fetch, driver.entries.small_nowait = away, lambda _entry: None
        driver.nodes._nodes.clear()
        file.mtime = 7
        driver.core.inodes.touch(file)
        driver.core.changed()
        with pytest.raises(RemoteTimeout):
            await driver.committer.commit()
        driver.nodes.fetch, driver.entries.small_nowait = fetch, small
        driver.files.write_nowait(file, 0, b"B" * 10)
        await driver.fsync(file)
        after = await driver.crashed()
        assert await after.read(file.ino, 0, 10) == b"B" * 10
        await driver.committer.commit()
        after = await driver.crashed()
        assert await after.read(file.ino, 0, 10) == b"B" * 10

    run_driver(test)


def test_waiters_of_a_cancelled_fetch_ask_again(run_driver):
    async def test(driver):
        ref = Ref(EntryId(bytes(32)), bytes(32))
        errors = []
        scope = trio.CancelScope()

        async def first() -> None:
            with scope:
                await driver.entries.get(ref, Kind.CHUNK)

        async def other() -> None:
            with pytest.raises(RemoteTimeout):
                await driver.entries.get(ref, Kind.CHUNK)
            errors.append(1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(first)
            await trio.testing.wait_all_tasks_blocked(0.05)
            nursery.start_soon(other)
            nursery.start_soon(other)
            await trio.testing.wait_all_tasks_blocked(0.05)
            scope.cancel()
        assert len(errors) == 2

    run_driver(test)


def test_a_committed_inode_counts_its_chunks(run_driver):
    async def test(driver):
        file = driver.new_file()
        for index in range(3):
            driver.files.write_nowait(file, index * MIB, os.urandom(MIB))
        commit = await driver.committer.commit()
        row = lookup(driver.nodes.get, commit.root, inode_key(file.ino))
        assert decode_inode(row).allocated == 3 * MIB

    run_driver(test)


def test_a_log_file_that_cannot_be_made_ready_is_not_asked_for_again_and_again(run_driver):
    async def test(driver):
        asked = 0

        def prepare():
            nonlocal asked
            asked += 1
            raise StoreFull("no space left on device")

        driver.store.prepare = prepare
        file = driver.new_file()
        for _ in range(3):  # more than half a log file
            driver.files.write_nowait(file, 0, os.urandom(MIB - 1))
            await driver.journal.flush()
        assert driver.store.wants_preparation
        while not asked:  # noqa: ASYNC110 - a thread sets it
            await trio.sleep(0.01)
        commits = driver.journal.commits
        for _ in range(100):
            driver.files.write_nowait(file, 0, b"x")
            await driver.journal.flush()
            await trio.testing.wait_all_tasks_blocked()
        assert asked == 1
        assert driver.journal.commits < commits + 220  # and no group without a need

    run_driver(test)
