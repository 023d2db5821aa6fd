"""Mining: which block is worked on when, and that processes of this machine find it and rest."""

from __future__ import annotations

import itertools
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from fsdecloud.crypto import sign
from fsdecloud.errors import StoreFull
from fsdecloud.ledger.blocks import encode_block, header_prefix
from fsdecloud.ledger.work import search
from fsdecloud.ledgerd import crew as crew_module
from fsdecloud.ledgerd import mining as module
from fsdecloud.ledgerd.crew import Crew, CrewPlan, part_of
from fsdecloud.ledgerd.keeper import Keeper
from fsdecloud.ledgerd.miner import WorkerJob
from fsdecloud.ledgerd.mining import SLOTS, Mining, mine_here, slot_range
from fsdecloud.store.chain import open_chain

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "ledger"))
from chainmaker import GENESIS_TIME, Maker, easy_network

VOLUME = bytes([2]) * 32
RECIPIENT = sign.public_key(bytes([3]) * 32)
NOW = GENESIS_TIME + 100_000
LAST = (1 << 64) - 1


class World:
    """A chain, its keeper, and what is mined on it; `make` has the same chain."""

    def __init__(self, make, keeper, nursery):
        self.make, self.keeper, self.nursery = make, keeper, nursery
        self.mining = Mining(keeper, RECIPIENT)
        nursery.start_soon(self.mining.run)
        self.sequence = 0

    def record(self):
        """Give the chain something to record."""
        self.sequence += 1
        anchor = self.make.anchor(VOLUME, self.sequence)
        self.keeper.submit(anchor)
        return anchor

    async def job(self, wanted=lambda job: job is not None):
        """Wait for a job of this kind."""
        while True:
            changed = self.mining.job_event()
            if wanted(self.mining.job):
                return self.mining.job
            await changed.wait()

    async def until(self, condition):
        while not condition():
            changed = self.keeper.change_event()
            if condition():
                return
            await changed.wait()


def mining_test(tmp_path, work, **changes):
    make = Maker(easy_network(**changes))

    async def run():
        with trio.fail_after(60), open_chain(tmp_path / "c", make.document, map_size=1 << 28) as store:
            async with trio.open_nursery() as nursery:
                await work(World(make, Keeper(store, lambda: NOW), nursery))
                nursery.cancel_scope.cancel()

    trio.run(run)


def solve(job):
    nonce, _ = search(header_prefix(job.header), job.header.target, 0, lambda: False, 1000)
    return nonce


def test_nothing_is_built_while_nobody_searches_or_there_is_nothing_to_record(tmp_path):
    async def work(world):
        built = 0
        build = world.keeper.build

        async def counted(recipient):
            nonlocal built
            built += 1
            return await build(recipient)

        world.keeper.build = counted
        world.record()
        await trio.testing.wait_all_tasks_blocked()
        assert (built, world.mining.job) == (0, None)
        with world.mining.enlist(lambda: 5.0):
            job = await world.job()
            assert built == 1
            assert (job.header.height, world.mining.hash_rate, world.mining.is_busy) == (1, 5.0, True)
            assert await world.mining.solve(job.number, solve(job))
            await world.until(lambda: world.keeper.tip.height == 1)
            await world.job(lambda job: job is None)
        await trio.testing.wait_all_tasks_blocked()
        before = built
        world.record()
        await trio.testing.wait_all_tasks_blocked()
        assert (built, world.mining.job) == (before, None)

    mining_test(tmp_path, work)


def test_a_new_tip_ends_the_job_in_the_same_step_and_gives_the_next_one(tmp_path):
    """Nobody waits for a timer: the stale job is gone when the tip has moved, and the one after it is on the new tip."""

    async def work(world):
        with world.mining.enlist(lambda: 0.0):
            seen = []
            world.keeper.on_tip.append(lambda _switch: seen.append(world.mining.job))
            for height in range(1, 6):
                world.record()
                stale = await world.job()
                assert stale.header.height == height
                other = world.make.add([world.make.anchor(VOLUME, height)])
                world.record()  # for the block after it
                await world.keeper.accept(encode_block(other.block))
                assert seen[-1] is None
                assert not await world.mining.solve(stale.number, solve(stale))
                job = await world.job()
                assert job.header.parent == other.point.id
                assert job.number != stale.number
                # Empty the pool for the next turn: the other chain takes what waits.
                world.sequence -= 1

    mining_test(tmp_path, work)


def test_a_late_nonce_for_the_block_before_a_refresh_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "REFRESH", 0.05)

    async def work(world):
        build = world.keeper.build

        async def thrice(recipient):
            if world.mining.job is not None and world.mining.job.number == 3:
                await trio.sleep_forever()
            return await build(recipient)

        world.keeper.build = thrice
        with world.mining.enlist(lambda: 0.0):
            world.record()
            first = await world.job()
            await world.job(lambda job: job is not None and job.number == 3)
            assert await world.mining.solve(first.number, solve(first))
            assert world.keeper.tip.height == 1
            assert not await world.mining.solve(first.number, solve(first))

    mining_test(tmp_path, work)


def test_a_block_that_cannot_be_stored_does_not_end_mining(tmp_path, caplog):
    async def work(world):
        with world.mining.enlist(lambda: 0.0):
            world.record()
            job = await world.job()
            accept = world.keeper.accept

            async def full(_data):
                raise StoreFull("no room")

            world.keeper.accept = full
            assert not await world.mining.solve(job.number, solve(job))
            assert "cannot be stored: no room" in caplog.text
            assert not await world.mining.solve(job.number, b"\xff" * 8)
            world.keeper.accept = accept
            assert await world.mining.solve(job.number, solve(job))

    mining_test(tmp_path, work)


def test_slots_are_disjoint_and_cover_everything(tmp_path):
    assert slot_range(0)[0] == 0
    assert slot_range(SLOTS - 1)[1] == LAST
    assert slot_range(7)[1] + 1 == slot_range(8)[0]

    async def work(world):
        with world.mining.enlist(lambda: 1.0) as one, world.mining.enlist(lambda: 2.0) as two:
            assert one != two
            assert world.mining.hash_rate == 3.0
        assert world.mining.hash_rate == 0.0

    mining_test(tmp_path, work)


@pytest.mark.parametrize(("first", "last", "count"), [(0, LAST, 3), (10, 12, 3), (10, 11, 5), (5, 5, 1), (0, 99, 7)])
def test_parts_are_disjoint_and_leave_nothing_out(first, last, count):
    job = WorkerJob(1, first, last, bytes(32), bytes(32), b"x")
    parts = [part for index in range(count) if (part := part_of(job, index, count)) is not None]
    assert (parts[0].first, parts[-1].last) == (first, last)
    assert all(a.last + 1 == b.first and a.first <= a.last for a, b in itertools.pairwise(parts))


# ---- with real processes ---------------------------------------------------------------------------------------------
@asynccontextmanager
async def running(task, *arguments):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(task, *arguments)
        yield
        nursery.cancel_scope.cancel()


def test_processes_of_this_machine_mine_and_rest(tmp_path):
    async def work(world):
        async with running(mine_here, world.mining, CrewPlan(workers=2)):
            for height in range(1, 6):
                world.record()
                await world.until(lambda height=height: world.keeper.tip.height == height)
                assert len(world.keeper.pool) == 0
            await world.job(lambda job: job is None)
            assert world.mining.hash_rate > 0
            assert world.keeper.state().account(RECIPIENT).balance == 5 * world.make.document.subsidy

    mining_test(tmp_path, work)


def test_a_worker_that_dies_is_replaced_and_goes_on_where_it_was(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(crew_module, "RESTART_DELAY", 0.0)
    open_process = trio.lowlevel.open_process
    started = []

    async def noted(command, **options):
        started.append(await open_process(command, **options))
        return started[-1]

    monkeypatch.setattr(trio.lowlevel, "open_process", noted)
    share = ((1 << 256) // 2000 - 1).to_bytes(32)
    found = []
    enough = trio.Event()

    async def take(number, nonce):
        found.append(int.from_bytes(nonce))
        if len(found) == 5:
            started[0].kill()
        if len(found) == 40:
            enough.set()

    async def run():
        with trio.fail_after(60):
            crew = Crew(CrewPlan(), take)
            async with running(crew.run):
                await trio.testing.wait_all_tasks_blocked()
                assert started == []
                crew.set_job(WorkerJob(1, 0, LAST, bytes(32), share, b"prefix"))
                await enough.wait()
        assert len(started) == 2
        assert all(process.returncode is not None for process in started)

    trio.run(run)
    assert "starting another" in caplog.text
    assert len(set(found)) == len(found)
    assert found == sorted(found)
