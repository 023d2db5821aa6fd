"""No file is longer after a kill than what there is of its bytes (I3), whatever of it was on its way when it came."""

from __future__ import annotations

import os

import pytest
import trio
import trio.testing

from fsdecloud import limits
from fsdecloud.driver.namespace import RENAME_EXCHANGE, Namespace
from fsdecloud.driver.recorder import Caller
from fsdecloud.driver.xattrs import Xattrs
from fsdecloud.errors import StoreError
from fsdecloud.fs.keys import ROOT

MIB = 1 << 20


class Gate:
    """Holds up sealing until it is opened."""

    def __init__(self, driver) -> None:
        self.opened = trio.Event()
        self.waits = trio.Event()
        """Set once a batch is held up."""
        self._stage = driver.entries.stage
        driver.entries.stage = self._stage_later
        self.waits_after = 0
        """How many batches may pass."""

    async def _stage_later(self, items):
        if self.waits_after:
            self.waits_after -= 1
        else:
            self.waits.set()
            await self.opened.wait()
        return await self._stage(items)


async def size_of(driver, ino: int) -> int:
    return (await driver.core.run(driver.core.inodes.get, ino)).size


async def whole(driver, ino: int) -> bytes:
    return await driver.read(ino, 0, 8 * MIB)


def test_fault_001_a_group_commit_between_chunks_that_are_being_sealed(run_driver):
    async def test(driver):
        gate = Gate(driver)
        file, data = driver.new_file(), os.urandom(3 * MIB + 5000)
        driver.files.write_nowait(file, 0, data)  # three whole chunks on their way, and an open layer
        await driver.journal.flush()
        after = await driver.crashed()
        assert await size_of(after, file.ino) == 0
        assert after.core.bytes == 0
        await after.files.truncate(await after.core.run(after.core.inodes.get, file.ino), 4 * MIB)
        assert not any(await whole(after, file.ino)), "what lay past the end does not come back"
        gate.opened.set()
        await driver.fsync(file)
        assert await whole(await driver.crashed(), file.ino) == data

    run_driver(test)


def test_fault_001_later_chunks_sealed_before_earlier_ones(run_driver):
    async def test(driver):
        gate = Gate(driver)
        file, data = driver.new_file(), os.urandom(2 * MIB)
        driver.files.write_nowait(file, 0, data[:MIB])
        await gate.waits.wait()  # the first chunk; the next one passes it
        gate.waits_after = 1
        driver.files.write_nowait(file, MIB, data[MIB:])
        while len(driver.sealer.waiting_chunks()) > 1:
            await driver.sealer.wait_progress()
        await driver.journal.flush()
        after = await driver.crashed()
        live = await after.core.run(after.core.inodes.get, file.ino)
        assert (live.size, live.allocated) == (0, 0)
        await after.files.truncate(live, 2 * MIB)
        await after.fsync(live)
        again = await after.crashed()
        assert await whole(again, file.ino) == bytes(2 * MIB)
        gate.opened.set()

    run_driver(test)


@pytest.mark.parametrize("change", ["overwrite", "append", "gap", "grow"])
def test_fault_001_what_was_synced_keeps_its_size(run_driver, change):
    async def test(driver):
        file, old = driver.new_file(), os.urandom(MIB + 300_000)
        driver.files.write_nowait(file, 0, old)
        await driver.fsync(file)
        gate = Gate(driver)
        new = os.urandom(2 * MIB)
        kept = old
        if change == "overwrite":
            driver.files.write_nowait(file, 0, new)
        elif change == "append":
            driver.files.write_nowait(file, len(old), new)
        elif change == "gap":
            driver.files.write_nowait(file, 4 * MIB, b"x")
            await driver.fsync(file)
            kept = old + bytes(4 * MIB - len(old)) + b"x"
            driver.files.write_nowait(file, MIB + 600_000, new)
        else:
            await driver.files.truncate(file, MIB + 500_000)
            driver.files.write_nowait(file, MIB + 450_000, new)
            kept = old + bytes(200_000)  # zeros that were promised, and of the rest nothing
        driver.files.seal_oldest(1 << 30)
        await driver.journal.flush()
        found = await whole(await driver.crashed(), file.ino)
        assert found[: len(old)] == old
        assert found[len(old) :] in (b"", kept[len(old) :])
        if change == "gap":
            assert found == kept
        gate.opened.set()
        await driver.fsync(file)
        assert await whole(await driver.crashed(), file.ino) == await whole(driver, file.ino)

    run_driver(test)


def test_fault_001_a_commit_under_way_has_the_bytes_first(run_driver):
    async def test(driver):
        file, data = driver.new_file(), os.urandom(2 * MIB)
        gate = Gate(driver)
        driver.files.write_nowait(file, 0, data)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(driver.committer.commit)
            while not driver.core.overlay.is_committing:
                await trio.lowlevel.checkpoint()
            # Frozen, with the size; now group commits of the next generation.
            await driver.journal.flush()
            assert await size_of(await driver.crashed(), file.ino) == 0
            gate.opened.set()
        assert await whole(await driver.crashed(), file.ino) == data
        await driver.journal.flush()
        assert await whole(await driver.crashed(), file.ino) == data

    run_driver(test)


def test_fault_010_writers_wait_when_nothing_is_sealed(run_driver, monkeypatch):
    async def test(driver):
        gate, file, block = Gate(driver), driver.new_file(), bytes(range(256)) * 4096
        monkeypatch.setattr(limits, "DIRTY_MAX", 8 * MIB)
        written = 0

        async def write() -> None:
            nonlocal written
            for _ in range(40):
                await driver.files.write_in_turn(file, written, block)
                written += MIB

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await gate.waits.wait()
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert written == driver.sealer.dirty_bytes == 9 * MIB  # one write passes the bound, none comes after it
            gate.opened.set()
        assert written == 40 * MIB

    run_driver(test)


def _rename(names, caller):
    names.rename(ROOT, b"new", ROOT, b"name", 0, caller)


def _link_and_unlink(names, caller):
    names.link(names.lookup(ROOT, b"new").ino, ROOT, b"name", caller)
    names.unlink(ROOT, b"new", caller)


def _exchange(names, caller):
    names.create(ROOT, b"name", 0o100644, caller)
    names.rename(ROOT, b"new", ROOT, b"name", RENAME_EXCHANGE, caller)


async def _frozen(driver, nursery) -> None:
    """Begin a commit, which closes all open layers; it waits for the sealer."""
    driver.core.recorder.record(1, None, 1, b"/x")
    nursery.start_soon(driver.committer.commit)
    while not driver.core.overlay.is_committing:
        await trio.testing.wait_all_tasks_blocked()


@pytest.mark.parametrize("give", [_rename, _link_and_unlink, _exchange])
@pytest.mark.parametrize("size", [70_000, 2 * MIB + 1])
def test_fault_001_a_commit_between_a_new_name_and_its_group_commit(run_driver, give, size):
    async def test(driver):
        names = Namespace(driver.core, Xattrs(driver.core))
        names.on_named = driver.files.keep_whole
        driver.core.create_root(0, 0)
        caller, data = Caller(0, 0, 0, 0o022), os.urandom(size)
        new = names.create(ROOT, b"new", 0o100644, caller)
        gate = Gate(driver)
        driver.files.write_nowait(new, 0, data)
        give(names, caller)
        async with trio.open_nursery() as nursery:
            await _frozen(driver, nursery)
            await driver.journal.flush()
            after = await driver.crashed()
            assert await whole(after, Namespace(after.core, Xattrs(after.core)).lookup(ROOT, b"name").ino) == data
            gate.opened.set()

    run_driver(test)


@pytest.mark.parametrize("close", ["commit", "sealed", "written anew"])
def test_fault_001_an_end_that_was_extended_and_then_closed(run_driver, close):
    """The zeros after a file's end are promised with the bytes before them, whatever closes these."""

    async def test(driver):
        gate = Gate(driver)
        file, data = driver.new_file(), os.urandom(100)
        driver.files.write_nowait(file, 0, data)
        await driver.files.truncate(file, 2 * MIB)
        async with trio.open_nursery() as nursery:
            if close == "commit":
                await _frozen(driver, nursery)
            elif close == "sealed":
                driver.files.seal_oldest(1 << 30)
            else:
                data = os.urandom(MIB)
                driver.files.write_nowait(file, 0, data)
            await driver.journal.flush()
            after = await driver.crashed()
            assert await whole(after, file.ino) == data.ljust(2 * MIB, b"\0")
            gate.opened.set()
        await driver.fsync(file)
        assert await whole(await driver.crashed(), file.ino) == data.ljust(2 * MIB, b"\0")

    run_driver(test)


def test_fault_013_after_a_group_commit_that_failed_the_size_counts_on_the_bytes_again(run_driver):
    async def test(driver):
        gate = Gate(driver)
        file, data = driver.new_file(), os.urandom(5000)
        driver.files.write_nowait(file, 0, data)
        commit = driver.store.commit

        def fail(*_arguments, **_more):
            raise StoreError("input/output error")

        driver.store.commit = fail
        with pytest.raises(StoreError):
            await driver.journal.commit()
        driver.files.seal_oldest(1 << 30)  # it is closed before the journal has its pages
        driver.store.commit = commit
        await driver.journal.flush()
        assert await whole(await driver.crashed(), file.ino) in (b"", data)
        gate.opened.set()

    run_driver(test)


@pytest.mark.parametrize("give", [_rename, _link_and_unlink, _exchange])
def test_fault_001_a_file_with_a_new_name_is_whole(run_driver, give):
    async def test(driver):
        names = Namespace(driver.core, Xattrs(driver.core))
        names.on_named = driver.files.keep_whole
        driver.core.create_root(0, 0)
        caller, data = Caller(0, 0, 0, 0o022), os.urandom(2 * MIB + 1)
        new = names.create(ROOT, b"new", 0o100644, caller)
        gate = Gate(driver)
        driver.files.write_nowait(new, 0, data)
        give(names, caller)
        await driver.journal.flush()
        after = await driver.crashed()
        assert await whole(after, Namespace(after.core, Xattrs(after.core)).lookup(ROOT, b"name").ino) == data
        gate.opened.set()

    run_driver(test)


def test_fault_001_a_file_that_replaces_another_is_the_old_one_or_the_new_one(run_driver):
    async def test(driver):
        names = Namespace(driver.core, Xattrs(driver.core))
        names.on_named = driver.files.keep_whole
        driver.core.create_root(0, 0)
        root, caller = driver.core.inodes.get(ROOT), Caller(0, 0, 0, 0o022)
        old, new = (names.create(root.ino, name, 0o100644, caller) for name in (b"name", b"new"))
        driver.files.write_nowait(old, 0, b"old")
        data = os.urandom(3 * MIB + 70_000)
        gate = Gate(driver)
        driver.files.write_nowait(new, 0, data)
        await driver.journal.flush()
        after = await driver.crashed()
        assert await whole(after, Namespace(after.core, Xattrs(after.core)).lookup(ROOT, b"name").ino) == b"old"
        names.rename(root.ino, b"new", root.ino, b"name", 0, caller)
        await driver.journal.flush()
        after = await driver.crashed()
        assert await whole(after, Namespace(after.core, Xattrs(after.core)).lookup(ROOT, b"name").ino) == data
        gate.opened.set()
        await driver.fsync(new)
        after = await driver.crashed()
        assert await whole(after, Namespace(after.core, Xattrs(after.core)).lookup(ROOT, b"name").ino) == data

    run_driver(test)
