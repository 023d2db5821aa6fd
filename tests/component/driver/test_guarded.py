"""The guard around handlers, without a mount: exceptions, results, deadlines, and what waiting costs."""

from __future__ import annotations

import errno

import pyfuse3
import pytest
import trio
import trio.testing

from fsdecloud.errors import NotFound, RemoteError, RemoteTimeout, StoreError
from fsdecloud.fuse.errnos import guarded
from fsdecloud.fuse.operations import Operations
from fsdecloud.fuse.requests import Requests


class Mount:
    """What the guard needs of a mount, and a handler that does what the test wants."""

    def __init__(self, deadline: float = 60.0) -> None:
        self.requests = Requests(deadline)
        self.requests.start()
        self.counted = []

    def count_error(self, where, error, *, unexpected):
        self.counted.append((where, type(error), unexpected))

    @guarded
    async def write(self, work):
        return await work()

    @guarded
    async def release(self, work):
        return await work()


def failing(error):
    async def fail():
        raise error

    return fail


async def outcome_of(handler, work):
    try:
        return await handler(work)
    except pyfuse3.FUSEError as exc:
        return errno.errorcode[exc.errno]


def test_every_handler_is_guarded():
    own = [name for name in vars(Operations) if hasattr(pyfuse3.Operations, name) and not name.startswith("_")]
    handlers = [name for name in own if callable(getattr(Operations, name))]
    assert len(handlers) > 25
    assert [name for name in handlers if not hasattr(getattr(Operations, name), "__wrapped__")] == []


@pytest.mark.parametrize(
    ("error", "answer", "counted"),
    [
        (NotFound(), "ENOENT", []),
        (RemoteError("x"), "EIO", [("write", RemoteError, False)]),
        (RemoteTimeout("x"), "ETIMEDOUT", [("write", RemoteTimeout, False)]),
        (ExceptionGroup("", [RemoteError("x"), StoreError("y")]), "EIO", [("write", RemoteError, False)]),
        (ExceptionGroup("", [RemoteError("x"), ValueError()]), "EIO", [("write", ExceptionGroup, True)]),
        (ZeroDivisionError(), "EIO", [("write", ZeroDivisionError, True)]),
        (RecursionError(), "EIO", [("write", RecursionError, True)]),
        (MemoryError(), "ENOMEM", [("write", MemoryError, True)]),
        (NotImplementedError(), "EIO", [("write", NotImplementedError, True)]),
        (pyfuse3.FUSEError(errno.EPERM), "EPERM", []),
        (pyfuse3.FUSEError(errno.ENOSYS), "EIO", []),
    ],
)
def test_what_a_program_sees(error, answer, counted):
    async def main():
        mount = Mount()
        assert await outcome_of(mount.write, failing(error)) == answer
        assert mount.counted == counted
        assert await outcome_of(mount.release, failing(ZeroDivisionError())) is None

    trio.run(main)


def test_wrong_results_do_not_reach_pyfuse3():
    async def main():
        mount = Mount()
        for wrong in (None, "5", -1, 1.5):

            async def answer(value=wrong):
                return value

            assert await outcome_of(mount.write, answer) == "EIO"

    trio.run(main)


def test_interrupts_go_through():
    async def main():
        with pytest.raises(KeyboardInterrupt):
            await Mount().write(failing(KeyboardInterrupt()))

    trio.run(main)


def test_the_deadline_ends_what_waits_wherever_that_is():
    async def plain():
        await trio.sleep_forever()

    async def in_own_scope():
        with trio.move_on_after(10):
            await trio.sleep_forever()
        await trio.sleep_forever()

    async def in_nursery():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 10)
        await trio.sleep_forever()

    async def main():
        mount = Mount(deadline=60)
        for wait in (plain, in_own_scope, in_nursery):
            start = trio.current_time()
            assert await outcome_of(mount.write, wait) == "ETIMEDOUT"
            assert trio.current_time() - start == pytest.approx(60)
        assert mount.requests.timed_out == 3
        assert mount.requests.slow == 3
        assert len(mount.requests) == 0

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_who_waits_can_be_answered_at_once_and_who_does_not_gets_no_scope():
    async def main():
        mount = Mount()

        async def wait():
            await trio.sleep_forever()

        async def quick():
            assert trio.current_effective_deadline() == float("inf")
            return 3

        answers = []

        async def ask():
            answers.append(await outcome_of(mount.write, wait))

        assert await outcome_of(mount.write, quick) == 3
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            nursery.start_soon(mount.requests.run_watchdog)
            await trio.sleep(7)
            assert mount.requests.slow == 1
            mount.requests.interrupt({"fsync"}, errno.EIO)
            await trio.sleep(1)
            assert answers == []
            mount.requests.interrupt({"write"}, errno.EIO)
            await trio.sleep(1)
            assert answers == ["EIO"]
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
