"""A bug in any background task: what was fsynced is there, whatever else becomes of the volume."""

from __future__ import annotations

import random
from functools import partial

import pytest
import trio

from fsdecloud.driver.committer import Committer
from fsdecloud.driver.entries import Entries
from fsdecloud.driver.journal import Journal
from fsdecloud.driver.sealer import Sealer
from fsdecloud.driver.supervisor import Incidents, Supervisor
from fsdecloud.driver.treenodes import TreeNodes
from fsdecloud.driver.volume import Volume
from fsdecloud.errors import FsdecloudError
from fsdecloud.fs.overlay import Overlay
from tests.component.driver.conftest import Driver

RESTARTED = [
    (Sealer, "_plan"),
    (Sealer, "_take_batch"),
    (Entries, "stage"),
    (Committer, "_update_tree"),
    (Committer, "_correct_inodes"),
    (TreeNodes, "seal"),
]
FAILSAFE = [
    (Sealer, "_apply"),
    (Journal, "_write"),
    (Entries, "take_new"),
    (Overlay, "take_unjournaled"),
    (Overlay, "commit"),
]


def break_call(monkeypatch, owner, name, first, count):
    """Have calls `first` to `first + count - 1` of a method raise; return how many did."""
    real = getattr(owner, name)
    calls = [0, 0]

    def broken(*args, **kwargs):
        calls[0] += 1
        if first <= calls[0] < first + count:
            calls[1] += 1
            raise ZeroDivisionError("injected")
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, broken)
    return calls


async def work(driver: Driver, calls: list[int]) -> dict[int, bytes]:
    """Write, fsync and commit until the bug was met, and some more; return what was acknowledged."""
    noise = random.Random(3)
    acknowledged = {}
    flush = partial(Volume.flush, driver)
    step = after = 0
    while after < 8:
        step += 1
        after += calls[1] > 0
        live = driver.new_file()
        live.opens += 1
        data = noise.randbytes(1 << 20 if step % 3 == 0 else 5000)
        try:
            driver.files.write_nowait(live, 0, data)
            await driver.files.fsync(live, flush)
            acknowledged[live.ino] = data
        except (FsdecloudError, ZeroDivisionError):
            await trio.sleep(0.15)  # the task's first pause
        driver.committer.poke()
        await trio.sleep(0.01)
    return acknowledged


def run_with_bug(tmp_path, monkeypatch, owner, name, first, count=1):
    """Run the tasks with a bug, kill the driver, and check what the next mount has."""
    calls: list[int] = []
    found = {}

    async def main() -> None:
        driver = Driver(tmp_path / "volume")
        supervisor = Supervisor(Incidents(), driver.core.fail_safe)
        with trio.fail_after(120):
            async with trio.open_nursery() as nursery:
                for task, work_, options in (
                    ("sealer", driver.sealer.run, {"vital": True}),
                    ("journal", driver.journal.run, {"vital": True, "doubtful": True}),
                    ("committer", driver.committer.run, {"vital": True}),
                ):
                    nursery.start_soon(partial(supervisor.run, task, work_, **options))
                driver.core.create_root(0, 0)
                calls[:] = [break_call(monkeypatch, owner, name, first, count)]
                acknowledged = await work(driver, calls[0])
                monkeypatch.undo()
                for ino, data in acknowledged.items():
                    assert await driver.read(ino, 0, len(data) + 1) == data, "reads go on"
                after = await driver.crashed()
                for ino, data in acknowledged.items():
                    assert await after.read(ino, 0, len(data) + 1) == data, "what was fsynced survives"
                after.close()
                found["failure"] = driver.core.failure
                found["incidents"] = supervisor.incidents.all()
                found["acknowledged"] = len(acknowledged)
                nursery.cancel_scope.cancel()
        driver.close()

    trio.run(main)
    assert calls[0][1] >= 1, "the bug was never met"
    return found


@pytest.mark.parametrize("first", [1, 2, 3])
@pytest.mark.parametrize(("owner", "name"), RESTARTED)
def test_fault_141_a_task_with_a_bug_is_restarted(tmp_path, monkeypatch, owner, name, first):
    found = run_with_bug(tmp_path, monkeypatch, owner, name, first)
    assert found["failure"] == ""
    assert sum(incident.count for incident in found["incidents"]) == 1
    assert found["acknowledged"] >= 6


@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize(("owner", "name"), FAILSAFE)
def test_fault_141_a_bug_that_may_have_damaged_the_state_stops_all_writing(tmp_path, monkeypatch, owner, name, first):
    found = run_with_bug(tmp_path, monkeypatch, owner, name, first)
    assert "internal error" in found["failure"]
    assert "unmount and mount again" in found["failure"]


def test_what_keeps_failing_ends_in_failsafe_and_costs_nothing(autojump_clock):
    failures = []
    calls = 0

    async def broken() -> None:
        nonlocal calls
        calls += 1
        raise ZeroDivisionError

    async def main() -> None:
        supervisor = Supervisor(Incidents(), failures.append)
        with trio.move_on_after(3600):
            await supervisor.run("sealer", broken, vital=True)
        (incident,) = supervisor.incidents.all()
        assert incident.count == calls < 80, "restarted at most once a minute in the end"
        assert supervisor.failing()[0].startswith("task sealer failed")

    trio.run(main, clock=autojump_clock)
    assert failures
    assert "times in a row" in failures[0]


@pytest.fixture
def autojump_clock():
    return trio.testing.MockClock(autojump_threshold=0)


def test_a_task_that_ends_or_is_cancelled_is_not_restarted():
    async def main() -> None:
        supervisor = Supervisor(Incidents(), lambda _why: None)
        await supervisor.run("done", trio.lowlevel.checkpoint)
        with trio.move_on_after(0.01) as scope:
            await supervisor.run("cancelled", trio.sleep_forever)
        assert scope.cancelled_caught
        assert supervisor.incidents.all() == []

    trio.run(main)


def test_what_fails_while_it_is_cancelled_is_counted_and_cancellation_goes_on():
    async def broken() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                raise ZeroDivisionError

    async def main() -> None:
        supervisor = Supervisor(Incidents(), lambda _why: None)
        with trio.move_on_after(0.01) as scope:
            await supervisor.run("cancelled", broken)
        assert scope.cancelled_caught
        assert supervisor.incidents.count("task") == 1

    trio.run(main)


def test_logs_are_limited_and_hold_no_secrets(caplog):
    incidents = Incidents()
    secret = bytes(range(32))
    for _ in range(50):
        try:
            raise KeyError(secret, secret.hex(), "plain words")
        except KeyError as exc:
            incidents.note("handler read", exc)
    shown = "\n".join(record.getMessage() for record in caplog.records)
    assert len(caplog.records) == 3
    assert incidents.count("handler") == 50
    assert "plain words" in shown
    assert "test_logs_are_limited" in shown, "the place is named"
    assert secret.hex() not in shown
    assert repr(secret) not in shown
    assert incidents.all()[0].last == "KeyError: (…, '…', 'plain words')"
