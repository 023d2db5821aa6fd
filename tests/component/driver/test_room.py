"""Room for what is written: clean blobs leave first, then writers wait, in their order, and only then comes ENOSPC."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
import trio.testing

from fsdecloud import limits
from fsdecloud.crypto.seal import Kind, seal
from fsdecloud.errors import NoSpace, StoreError, StoreFull
from fsdecloud.limits import MIB
from fsdecloud.store.cache import KEPT

STAGE = 2 * MIB


def size_of(*directories: Path) -> int:
    return sum(path.stat().st_size for directory in directories for path in directory.glob("*.seg"))


class SmallDisk:
    """Says how much is free on a disk on which nothing but `driver` takes room, and that has `room` bytes for data."""

    def __init__(self, driver, monkeypatch, room: int) -> None:
        self._places = (driver.directory / "staged", driver.cache.segment_directory)
        self.total = limits.STAGE_RESERVE + room + size_of(*self._places)
        monkeypatch.setattr(os, "statvfs", self._statvfs)

    def _statvfs(self, _path):
        return SimpleNamespace(f_bavail=max(0, self.total - size_of(*self._places)), f_frsize=1)


def fill_cache(driver, count: int) -> None:
    """Put chunks into the cache as if they had been stored."""
    for _ in range(count):
        ref, sealed = seal(driver.entries._secret, Kind.CHUNK, os.urandom(MIB))
        driver.cache.put_located([(ref.id, KEPT, driver.cache.kept.append(sealed))])


@contextmanager
def running(nursery, task, *arguments):
    scope = trio.CancelScope()

    async def run():
        with scope:
            await task(*arguments)

    nursery.start_soon(run)
    yield
    scope.cancel()


async def write(driver, file, offset: int, data: bytes) -> None:
    """As the handler does."""
    if driver.files.has_room:
        driver.files.write_nowait(file, offset, data)
    else:
        await driver.files.write_in_turn(file, offset, data)


def release_all(driver) -> None:
    """Let go of everything staged, as after it was stored."""
    driver.entries.mark_complete(list(driver.entries.incomplete))
    for number in list(driver.entries._left):
        driver.entries.release(number)


async def fill_staging(driver) -> None:
    """Stage more than may wait for peers."""
    await driver.entries.stage([(Kind.CHUNK, os.urandom(MIB)) for _ in range(STAGE // MIB)])
    assert not driver.files.has_room


@pytest.fixture
def short(monkeypatch):
    """Room is waited for only as long as a test may take."""
    monkeypatch.setattr(limits, "HANDLER_DEADLINE", 0.3)
    monkeypatch.setattr(limits, "FULL_WAIT", 1.25)


# ---- the staging area -----------------------------------------------------------------------------------------------


def test_a_write_that_waits_for_room_goes_before_one_that_came_after_it(run_driver):
    """The second comes when there is room already, but before the first has noticed."""

    async def test(driver):
        await fill_staging(driver)
        file = driver.new_file()
        done = []

        async def one(name: str, data: bytes) -> None:
            await write(driver, file, 0, data)
            done.append(name)

        async with trio.open_nursery() as nursery:
            for name in "abc":
                nursery.start_soon(one, name, name.encode() * 100)
                await trio.testing.wait_all_tasks_blocked()
            assert done == []
            release_all(driver)
            await one("d", b"d" * 100)
        assert done == ["a", "b", "c", "d"]
        assert await driver.read(file.ino, 0, 200) == b"d" * 100

    run_driver(test, stage_size=STAGE)


@pytest.mark.parametrize("what", ["bytes", "entries"])
def test_a_full_staging_area_is_waited_for_and_then_no_space(run_driver, short, monkeypatch, what):
    async def test(driver):
        if what == "entries":
            monkeypatch.setattr(limits, "STAGED_ENTRIES_MAX", 1)
        await fill_staging(driver)
        file = driver.new_file()
        start = trio.current_time()
        with pytest.raises(NoSpace, match="stage_size=" if what == "bytes" else "as many as memory may hold"):
            await write(driver, file, 0, b"x" * 100)
        assert trio.current_time() - start >= limits.HANDLER_DEADLINE
        assert file.size == 0
        assert driver.core.waiters.count == 0
        monkeypatch.setattr(limits, "HANDLER_DEADLINE", 20)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, driver, file, 0, b"x" * 100)
            await trio.testing.wait_all_tasks_blocked()
            assert file.size == 0
            release_all(driver)
        assert file.size == 100
        assert driver.files.has_room

    run_driver(test, stage_size=STAGE if what == "bytes" else 1 << 30)


def test_fault_047_who_waits_in_vain_waits_once(run_driver, monkeypatch):
    """All requests of a file that finds no room do not wait one after another; what moves makes the next one patient again."""
    monkeypatch.setattr(limits, "HANDLER_DEADLINE", 0.5)
    monkeypatch.setattr(limits, "FULL_WAIT", 0.01)

    async def test(driver):
        await fill_staging(driver)
        file = driver.new_file()
        start = trio.current_time()
        for _ in range(20):
            with pytest.raises(NoSpace):
                await write(driver, file, 0, b"x" * 100)
        assert trio.current_time() - start < 5  # not 20 times 0.5
        monkeypatch.setattr(limits, "HANDLER_DEADLINE", 20)
        release_all(driver)
        await write(driver, file, 0, b"x" * 100)
        await driver.entries.stage([(Kind.CHUNK, os.urandom(MIB)) for _ in range(STAGE // MIB)])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, driver, file, 100, b"x" * 100)
            await trio.sleep(0.1)  # longer than FULL_WAIT
            assert file.size == 100
            release_all(driver)
        assert file.size == 200

    run_driver(test, stage_size=STAGE)


# ---- the disk -------------------------------------------------------------------------------------------------------


def test_fault_013_clean_blobs_leave_before_anybody_sees_a_full_disk(run_driver, monkeypatch):
    async def test(driver):
        fill_cache(driver, 6)
        SmallDisk(driver, monkeypatch, MIB)
        data = os.urandom(4 * MIB)
        file = driver.new_file()
        async with trio.open_nursery() as nursery:
            with running(nursery, driver.entries.run_cache_writer, 1 << 30):
                for offset in range(0, len(data), MIB):
                    await write(driver, file, offset, data[offset : offset + MIB])
                await driver.files.check_error(file)  # close
                await driver.fsync(file)
        assert size_of(driver.cache.segment_directory) == 0
        assert await driver.read(file.ino, 0, len(data) + 1) == data
        assert driver.sealer.error is None

    run_driver(test)


def test_fault_013_clean_blobs_leave_though_the_cache_writer_is_busy(run_driver, monkeypatch):
    async def test(driver):
        fill_cache(driver, 6)
        SmallDisk(driver, monkeypatch, MIB)
        data = os.urandom(4 * MIB)
        file = driver.new_file()
        for offset in range(0, len(data), MIB):
            await write(driver, file, offset, data[offset : offset + MIB])
        await driver.fsync(file)
        assert await driver.read(file.ino, 0, len(data) + 1) == data
        assert driver.sealer.error is None

    run_driver(test)


def test_fault_013_a_full_disk_is_waited_for_and_then_no_space(run_driver, short, monkeypatch):
    async def test(driver):
        disk = SmallDisk(driver, monkeypatch, 0)
        asked = trio.Event()
        monkeypatch.setattr(driver.entries, "wake_cache_writer", asked.set)
        file = driver.new_file()
        data = os.urandom(2 * MIB)
        for offset in range(0, len(data), MIB):
            driver.files.write_nowait(file, offset, data[offset : offset + MIB])
        monkeypatch.setattr(limits, "DIRTY_MAX", MIB)
        monkeypatch.setattr(limits, "HANDLER_DEADLINE", 20)
        raised = []

        async def one(work, *arguments) -> None:
            with pytest.raises(NoSpace):
                await work(*arguments)
            raised.append(trio.current_time())

        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, write, driver, file, len(data), b"more")
            nursery.start_soon(one, driver.fsync, file)
            await asked.wait()
            nursery.start_soon(one, driver.files.check_error, file)
        assert min(raised) - start >= limits.FULL_WAIT
        assert file.size == len(data)
        # Whoever comes now need not wait for what others have waited for.
        await one(write, driver, file, len(data), b"more")
        small = driver.new_file()
        driver.files.write_nowait(small, 0, b"x" * 4000)
        await driver.files.check_error(small)  # the journal has a reserve
        await driver.fsync(small)
        disk.total += 8 * MIB
        await driver.sealer.wait_progress()
        await write(driver, file, len(data), b"more")
        await driver.fsync(file)
        assert driver.sealer.error is None
        after = await driver.crashed()
        assert await after.read(file.ino, 0, 3 * MIB) == data + b"more"
        after.close()

    run_driver(test)


@pytest.mark.parametrize("ends", [True, False])
def test_fault_013_a_journal_without_room_is_waited_for(run_driver, short, monkeypatch, ends):
    async def test(driver):
        file = driver.new_file()
        await driver.fsync(file)
        driver.files.write_nowait(file, 0, b"x" * 100)
        commit, tries = driver.store.commit, []

        def full(*arguments, **more):
            tries.append(1)
            if ends and len(tries) > 1:
                return commit(*arguments, **more)
            raise StoreFull("no space left on device")

        monkeypatch.setattr(driver.store, "commit", full)
        if ends:
            await driver.fsync(file)
        else:
            with pytest.raises(NoSpace):
                await driver.fsync(file)
        assert len(tries) > 1
        monkeypatch.setattr(driver.store, "commit", commit)
        await driver.journal.flush()
        assert driver.journal.error is None
        after = await driver.crashed()
        assert await after.read(file.ino, 0, 200) == b"x" * 100
        after.close()

    run_driver(test)


def test_in_failsafe_nobody_waits_for_room(run_driver):
    """Neither a write that waits for peers, nor a fsync or a truncation that waits for the sealer, waits for its deadline."""

    async def test(driver):
        file = driver.new_file()
        await fill_staging(driver)
        driver.files.write_nowait(file, 0, b"x" * MIB)

        async def never(_items):
            await trio.sleep_forever()

        driver.entries.stage = never
        answers = []

        async def ask(name, work, *arguments):
            with pytest.raises(StoreError, match="an internal error stopped all writing"):
                await work(*arguments)
            answers.append(name)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "write", driver.files.write_in_turn, file, 0, b"y")
            nursery.start_soon(ask, "truncate", driver.files.truncate, file, 5)
            nursery.start_soon(ask, "fsync", driver.fsync, file)
            await trio.testing.wait_all_tasks_blocked()
            assert answers == []
            driver.core.fail_safe("a test")
            driver.files.wake_waiting()
        assert sorted(answers) == ["fsync", "truncate", "write"]

    run_driver(test, stage_size=STAGE)
