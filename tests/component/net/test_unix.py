"""Calls over a real unix socket: both directions, errors, cancellation, limits, and who may connect."""

import os
import socket
import stat

import msgspec
import pytest
import trio
from trio.testing import memory_stream_pair

from fsdecloud.cli import client
from fsdecloud.errors import AgentLost, LedgerUnavailable, NotFound, RemoteError, RemoteTimeout, UsageError
from fsdecloud.net import unix
from fsdecloud.net.unix import connect_unix, open_rpc, serve_unix


class Word(msgspec.Struct, frozen=True, array_like=True):
    text: str


async def echo(word):
    return Word(word.text * 2)


async def fail(word):
    raise NotFound(f"no {word.text}")


async def crash(_word):
    raise ZeroDivisionError


async def hang(_word):
    await trio.sleep_forever()


HANDLERS = {name: (Word, globals()[name]) for name in ("echo", "fail", "crash", "hang")}


def run(work, *args):
    async def bounded():
        with trio.fail_after(20):
            await work(*args)

    trio.run(bounded)


def pair():
    a, b = socket.socketpair()
    return unix.stream_from_fd(a.detach()), unix.stream_from_fd(b.detach())


def test_calls_both_ways_and_errors(caplog):
    async def work():
        for ours, theirs in (pair(), memory_stream_pair()):
            async with open_rpc(ours, HANDLERS) as a, open_rpc(theirs, HANDLERS) as b:
                assert await a.call("echo", Word("x"), Word) == Word("xx")
                assert await b.call("echo", Word("y" * 3_000_00), Word) == Word("y" * 6_000_00)
                with pytest.raises(NotFound, match="no cat"):
                    await a.call("fail", Word("cat"), Word)
                with pytest.raises(RemoteError, match=r"internal error \(ZeroDivisionError\)"):
                    await a.call("crash", Word(""), Word)
                with pytest.raises(Exception, match="no method 'other'"):
                    await a.call("other", Word(""), Word)
                with pytest.raises(RemoteTimeout):
                    await a.call("hang", Word(""), Word, timeout=0.01)
                with trio.move_on_after(0.01):
                    await a.call("hang", Word(""), Word)
                assert await a.call("echo", Word("still"), Word) == Word("stillstill")

    run(work)
    assert "crash failed unexpectedly" in caplog.text


def test_many_large_calls_at_once():
    async def work():
        ours, theirs = pair()
        async with open_rpc(ours) as a, open_rpc(theirs, HANDLERS), trio.open_nursery() as nursery:

            async def one(i):
                text = chr(97 + i % 26) * (100_000 + i)
                assert (await a.call("echo", Word(text), Word)).text == text * 2

            for i in range(100):
                nursery.start_soon(one, i)

    run(work)


def test_notices_arrive_in_order_even_when_the_sender_leaves_at_once():
    async def work():
        ours, theirs = pair()
        got = []
        async with open_rpc(theirs, {}, {"n": (Word, lambda word: got.append(word.text))}) as b:
            async with open_rpc(ours) as a:
                for i in range(2000):
                    a.notify_nowait("n", Word(str(i) * 100))
            await b.wait_closed()
        assert got == [str(i) * 100 for i in range(2000)]

    run(work)


def test_a_reader_that_stops_does_not_fill_memory():
    async def work():
        ours, theirs = pair()

        def flood(connection):
            for _ in range(100):
                connection.notify_nowait("n", Word("x" * 1_000_000))

        async with theirs, open_rpc(ours) as a:
            with pytest.raises(RemoteError, match="does not read"):
                flood(a)
            a._outgoing.clear()

    run(work)


def test_calls_fail_when_the_other_side_ends():
    async def work():
        ours, theirs = pair()
        async with open_rpc(ours, lost=AgentLost) as a:

            async def waits():
                with pytest.raises(AgentLost):
                    await a.call("hang", Word(""), Word)

            async with trio.open_nursery() as nursery, open_rpc(theirs, HANDLERS):
                nursery.start_soon(waits)
                await trio.testing.wait_all_tasks_blocked()
            await a.wait_closed()
            with pytest.raises(AgentLost):
                await a.call("echo", Word(""), Word)
            with pytest.raises(AgentLost):
                a.notify_nowait("n", Word(""))

    run(work)


def test_fault_119_a_frame_over_the_limit_ends_only_that_connection(tmp_path, caplog):
    async def work():
        path = tmp_path / "run" / "s.sock"
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_unix, path, lambda _c: (HANDLERS, {}))
            bad = await connect_unix(path)
            await bad.send_all(b"\x7f\xff\xff\xff")
            assert await bad.receive_some() == b""
            async with open_rpc(await connect_unix(path)) as good:
                assert await good.call("echo", Word("x"), Word) == Word("xx")
            await bad.aclose()
            nursery.cancel_scope.cancel()

    run(work)
    assert "dropped a local connection" in caplog.text


def test_fault_168_stale_socket_modes_and_other_users(tmp_path, monkeypatch, caplog):
    path = tmp_path / "run" / "s.sock"
    path.parent.mkdir(mode=0o700)
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()

    async def work():
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_unix, path, lambda _c: (HANDLERS, {}))
            assert stat.S_IMODE(path.stat().st_mode) == 0o600

            def blocking():
                assert client.call(path, "echo", Word("a"), Word) == Word("aa")
                with client.Client(path) as c:
                    assert c.call("echo", Word("b"), Word) == Word("bb")
                    with pytest.raises(NotFound):
                        c.call("fail", Word(""), Word)
                    with pytest.raises(RemoteTimeout):
                        c.call("hang", Word(""), Word, timeout=0.05)

            await trio.to_thread.run_sync(blocking)
            monkeypatch.setattr(unix, "peer_uid", lambda _s: os.geteuid() + 4711)
            async with open_rpc(await connect_unix(path)) as refused:
                with pytest.raises(RemoteError):
                    await refused.call("echo", Word("x"), Word)
            nursery.cancel_scope.cancel()
        assert not path.exists()
        with pytest.raises(LedgerUnavailable, match="nothing answers"):
            await connect_unix(path, error=LedgerUnavailable)
        path.write_text("precious")
        with pytest.raises(UsageError, match="in the way"):
            await serve_unix(path, lambda _c: ({}, {}))

    run(work)
    assert "refused user" in caplog.text
    with pytest.raises(LedgerUnavailable):
        client.call(tmp_path / "none", "echo", Word("a"), Word, error=LedgerUnavailable)
