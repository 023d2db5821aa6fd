"""What has arrived and waits to be taken: in order, bounded, and ended from either side."""

import pytest
import trio
import trio.testing

from fsdecloud.net.lean import Inbox


def run(work):
    trio.run(work, clock=trio.testing.MockClock(autojump_threshold=0))


async def send_all(inbox, items, done):
    for item in items:
        await inbox.send(item)
        done.append(item)


def test_messages_come_in_order_and_so_many_wait():
    async def work():
        inbox, done = Inbox(2), []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all, inbox, [b"%d" % number for number in range(9)], done)
            await trio.testing.wait_all_tasks_blocked()
            assert len(done) == 2, "the third waits for room"
            for number in range(9):
                assert await inbox.reader.receive() == b"%d" % number
                await trio.testing.wait_all_tasks_blocked()
                assert len(done) == min(number + 3, 9)

    run(work)


def test_what_is_there_takes_no_turn_of_the_event_loop_and_what_is_not_is_waited_for():
    async def work():
        inbox = Inbox(2)
        with trio.CancelScope() as scope:
            scope.cancel()
            await inbox.send(b"a")
            assert await inbox.reader.receive() == b"a"
            await inbox.reader.receive()
            raise AssertionError("there was nothing")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all, inbox, [b"b"], [])
            assert await inbox.reader.receive() == b"b"

    run(work)


def test_after_the_end_the_rest_may_be_taken():
    async def work():
        inbox = Inbox(2)
        async with inbox:
            await inbox.send(b"a")
        assert await inbox.reader.receive() == b"a"
        with pytest.raises(trio.EndOfChannel):
            await inbox.reader.receive()
        with pytest.raises(trio.ClosedResourceError):
            await inbox.send(b"b")

    run(work)


@pytest.mark.parametrize("who", ["sender", "reader"])
def test_whoever_waits_learns_of_the_end(who):
    async def work():
        inbox = Inbox(1)
        if who == "sender":
            await inbox.send(b"a")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(waits, inbox)
            await trio.testing.wait_all_tasks_blocked()
            await (inbox.reader if who == "sender" else inbox).aclose()

    async def waits(inbox):
        if who == "sender":
            with pytest.raises(trio.BrokenResourceError):
                await inbox.send(b"b")
        else:
            with pytest.raises(trio.EndOfChannel):
                await inbox.reader.receive()

    run(work)


def test_a_closed_reader_takes_nothing():
    async def work():
        inbox = Inbox(2)
        await inbox.send(b"a")
        await inbox.reader.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await inbox.reader.receive()
        with pytest.raises(trio.BrokenResourceError):
            await inbox.send(b"b")

    run(work)
