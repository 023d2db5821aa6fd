"""Requests that wait for peers: how long, how many; and how much may wait in memory for anything."""

from __future__ import annotations

import errno
from contextlib import contextmanager

import pyfuse3
import pytest
import trio
import trio.testing

from fsdecloud import limits
from fsdecloud.crypto.seal import Kind, seal
from fsdecloud.driver import entries as entries_module
from fsdecloud.driver.core import Waiters
from fsdecloud.driver.entries import Entries
from fsdecloud.driver.recorder import Caller
from fsdecloud.errors import NoSpace, RemoteTimeout, StoreError
from fsdecloud.fs.records import Operation
from fsdecloud.fuse.errnos import errno_of
from fsdecloud.fuse.requests import Requests
from fsdecloud.mountoptions import MountOptions
from fsdecloud.store.cache import CacheStore
from fsdecloud.store.segments import SegmentStore
from fsdecloud.wire.agentapi import FetchedEntry

SECRET = bytes(32)


class Agent:
    """Gives entries once `gate` is open, but for the first `refusals` times, when it gives up by its own clock."""

    def __init__(self) -> None:
        self.gate = trio.Event()
        self.refusals = 0
        self.at_once = self.most_at_once = 0
        self.sealed: dict[bytes, bytes] = {}

    def make(self, number: int):
        """Have one more entry; return its reference."""
        ref, sealed = seal(SECRET, Kind.CHUNK, b"%d" % number)
        self.sealed[ref.id] = bytes(sealed)
        return ref

    async def call(self, _method, params, _result, *, timeout):
        if self.refusals:
            self.refusals -= 1
            raise RemoteTimeout("the agent gave up")
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            with trio.move_on_after(timeout):
                await self.gate.wait()
                return FetchedEntry(self.sealed[params.id], 0, 0, len(self.sealed[params.id]))
            raise RemoteTimeout("no answer")
        finally:
            self.at_once -= 1


@contextmanager
def made(tmp_path, timeout: float):
    with SegmentStore(tmp_path / "staged", "staged") as staged, CacheStore(tmp_path / "cache") as cache:
        agent = Agent()
        yield Entries(SECRET, staged, cache, agent, timeout), agent


# ---- how long -------------------------------------------------------------------------------------------------------


def test_a_fetch_may_take_longer_than_the_agent_tries_it(tmp_path, monkeypatch):
    async def main():
        with made(tmp_path, 20) as (entries, agent):
            agent.gate.set()
            agent.refusals = 3
            assert await entries.get(agent.make(5), Kind.CHUNK) == b"5"
            assert agent.refusals == 0

    monkeypatch.setattr(entries_module, "_ASK_AGAIN", 0.01)
    trio.run(main)


@pytest.mark.parametrize("refusals", [0, 1000])
def test_a_fetch_that_takes_too_long_is_a_timeout(tmp_path, refusals):
    async def main():
        with made(tmp_path, 0.2) as (entries, agent):
            agent.refusals = refusals
            with pytest.raises(RemoteTimeout) as caught:
                await entries.get(agent.make(5), Kind.CHUNK)
            assert errno_of(caught.value) == errno.ETIMEDOUT

    trio.run(main)


@pytest.mark.parametrize(("timeout", "deadline"), [(3, 60), (60, 60), (300, 300), (3600, 3600)])
def test_no_request_ends_before_its_fetch_may(timeout, deadline):
    async def main():
        requests = Requests.of(MountOptions(timeout=timeout))
        requests.start()
        work = wait()
        start = trio.current_time()
        with pytest.raises(pyfuse3.FUSEError) as caught:
            await requests.wait("read", work, work.send(None))
        assert caught.value.errno == errno.ETIMEDOUT
        assert trio.current_time() - start == pytest.approx(deadline)

    async def wait():
        await trio.sleep_forever()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


# ---- how many -------------------------------------------------------------------------------------------------------


def test_one_more_than_may_wait_is_refused_at_once():
    waiters = Waiters()
    with contextmanager(many)(waiters, limits.WAITERS_MAX):
        with pytest.raises(RemoteTimeout, match=f"{limits.WAITERS_MAX} requests wait already"), waiters.one():
            pass
        assert waiters.count == limits.WAITERS_MAX
    assert waiters.count == 0
    assert limits.WAITERS_MAX <= limits.FUSE_TASKS // 4


def many(waiters, count: int):
    if count:
        with waiters.one():
            yield from many(waiters, count - 1)
    else:
        yield


def test_waiting_for_nodes_and_for_room_is_counted(run_driver, monkeypatch):
    async def test(driver):
        monkeypatch.setattr(limits, "WAITERS_MAX", 2)
        monkeypatch.setattr(limits, "DIRTY_MAX", -1)
        file = driver.new_file()
        async with trio.open_nursery() as nursery:
            monkeypatch.setattr(driver.sealer, "wait_progress", trio.sleep_forever)
            nursery.start_soon(driver.files.write_in_turn, file, 0, b"a")
            nursery.start_soon(driver.files.write_in_turn, file, 1, b"b")
            await trio.testing.wait_all_tasks_blocked()
            assert driver.core.waiters.count == 2
            with pytest.raises(RemoteTimeout, match="wait already"):
                await driver.files.write_in_turn(file, 2, b"c")
            nursery.cancel_scope.cancel()
        assert driver.core.waiters.count == 0

    run_driver(test)


def test_the_agent_is_asked_for_few_entries_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "NETWORK_WAITERS", 4)
    monkeypatch.setattr(limits, "FETCHED_MAX", 6)

    async def main():
        with made(tmp_path, 20) as (entries, agent):
            refs = [agent.make(number) for number in range(20)]
            found = {}

            async def get(number: int) -> None:
                found[number] = await entries.get(refs[number], Kind.CHUNK)

            async with trio.open_nursery() as nursery:
                for number in range(20):
                    nursery.start_soon(get, number)
                with trio.fail_after(20):
                    while agent.at_once < 4:  # noqa: ASYNC110 - its look on this disk is in threads
                        await trio.sleep(0.01)
                await trio.testing.wait_all_tasks_blocked(0.2)
                agent.gate.set()
            assert agent.most_at_once == 4
            assert found == {number: b"%d" % number for number in range(20)}
            assert len(entries._recent) == 6, "no more wait for the cache's index"

    trio.run(main)


def test_fetched_places_that_wait_for_the_index_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "FETCHED_MAX", 3)

    async def main():
        with (
            made(tmp_path, 20) as (entries, agent),
            SegmentStore(entries.cache.segment_directory, "fetched") as fetched,
        ):

            async def call(_method, params, _result, *, timeout):
                place = fetched.append(agent.sealed[params.id])
                return FetchedEntry(b"", place.segment, place.offset, place.length)

            agent.call = call
            for number in range(8):
                assert await entries.get(agent.make(number), Kind.CHUNK) == b"%d" % number
            assert len(entries._located) == 3

    trio.run(main)


def test_records_that_wait_for_a_journal_are_bounded(run_driver, monkeypatch):
    """Reads go unrecorded then, changes are refused, and both work again when the journal does."""

    async def test(driver):
        file = driver.new_file()
        await driver.fsync(file)
        monkeypatch.setattr(limits, "RECORDS_MAX", 10)
        commit = driver.store.commit

        def broken(*_arguments, **_more):
            raise StoreError("the disk is gone")

        monkeypatch.setattr(driver.store, "commit", broken)
        caller = Caller(0, 0, 0, 0)
        for _ in range(25):
            driver.core.recorder.record(Operation.READ, caller, file.ino, b"/file")
        assert (len(driver.core.recorder.unjournaled), driver.core.recorder.dropped) == (10, 15)
        with pytest.raises(NoSpace, match="wait for the journal"):
            driver.files.write_nowait(file, 0, b"x")
        with pytest.raises(StoreError):
            await driver.journal.flush()
        assert len(driver.core.recorder.unjournaled) == 10, "a commit that failed gives back what it took"
        monkeypatch.setattr(driver.store, "commit", commit)
        await driver.journal.flush()
        driver.files.write_nowait(file, 0, b"x")
        assert not driver.core.recorder.unjournaled

    run_driver(test)
