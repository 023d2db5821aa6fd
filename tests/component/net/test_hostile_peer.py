"""Peers that say whatever they like to a client: it says what was wrong, once and harmlessly, and goes on with the others."""

import json
import os
import tracemalloc
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio
from wsproto import ConnectionType
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Request

from fsdecloud.crypto import sign
from fsdecloud.errors import FsdecloudError, PeerRefused, PeerUnavailable, RemoteError, RemoteTimeout
from fsdecloud.limits import MESSAGE_MAX, MIB, WINDOW_BYTES
from fsdecloud.net import pool as pool_module
from fsdecloud.net import tls
from fsdecloud.net.address import Address
from fsdecloud.net.frames import Framing
from fsdecloud.net.pool import open_pool
from fsdecloud.net.tls import TlsStream
from fsdecloud.net.websocket import serve
from fsdecloud.wire import peer as wire
from fsdecloud.wire.session import ServerSession

SEED, DEAL_SEED, NETWORK = b"s" * 32, b"d" * 32, b"n" * 32
PEER = sign.public_key(SEED)
VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "peer.json").read_text())
EVIL = "\x1b[31mred\x07\r\nFORGED \u202e" + "x" * 400
TEXT_MAX = 400
"""Characters of an error that a person sees: what the peer says of it is cut."""


def run(work):
    async def bounded():
        with trio.fail_after(60):
            await work()

    trio.run(bounded)


@asynccontextmanager
async def serving(handler):
    async with trio.open_nursery() as nursery:
        port = await nursery.start(
            lambda task_status: serve("127.0.0.1", 0, SEED, wire.SUBPROTOCOL, handler, task_status=task_status)
        )
        yield Address("127.0.0.1", port, PEER, NETWORK)
        nursery.cancel_scope.cancel()


def pool():
    return open_pool(network=NETWORK, deal_seed=lambda _peer: DEAL_SEED)


def session_for(channel):
    return ServerSession(
        peer=PEER,
        network=NETWORK,
        nonce=os.urandom(32),
        certificate_hash=channel.certificate_hash,
        window=WINDOW_BYTES,
    )


def saying(message, state, heard):
    """A peer that says `message` instead of what comes in that state, and notes in `heard` how the client took it."""

    async def handler(channel):
        session = session_for(channel)
        try:
            if state != "challenge":
                await channel.send(session.start())
                session.receive(await channel.receive())
            if state == "answer":
                await channel.send(session.welcome(admitted=True, free=1, reason=""))
                session.receive(await channel.receive())
            await channel.send(message)
            while True:
                await channel.receive()
        except PeerUnavailable as exc:
            heard.append(str(exc))

    return handler


def messages():
    for error in VECTORS["errors"]:
        if error["instead_of"] in ("challenge", "welcome", "answer"):
            yield error["instead_of"], bytes.fromhex(error["bytes"])
    for state in ("challenge", "welcome", "answer"):
        for data in (
            b"",
            b"\xc1",
            b"\x91" * 100_000,
            b"\xdd\xff\xff\xff\xff",
            b"\xdf\xff\xff\xff\xff",
            b"\xc6\xff\xff\xff\xff",
            b"\x01" * MESSAGE_MAX,
            b"\xdd" + (MESSAGE_MAX - 5).to_bytes(4, "big") + b"\x90" * (MESSAGE_MAX - 5),
            msgspec.msgpack.encode([30, 0, "failed", "x" * MIB]),
            msgspec.msgpack.encode([22, 0, [True] * MIB]),
            msgspec.msgpack.encode([20, 0, bytes(MIB), []]),
            msgspec.msgpack.encode([EVIL, 0]),
        ):
            yield state, data


def check_words(error):
    text = str(error)
    assert text.isprintable(), text
    assert len(text) <= TEXT_MAX


def test_faults_079_and_085_every_malformed_message_of_a_peer(monkeypatch):
    monkeypatch.setattr(pool_module, "BACKOFF", (0.001, 0.002))

    async def work():
        for state, message in messages():
            heard = []
            async with serving(saying(message, state, heard)) as address, pool() as p:
                with pytest.raises(PeerUnavailable) as caught:
                    await p.has(address, [bytes(32)])
                check_words(caught.value)
                assert p.statistics()["requests"] == 0
                while not heard:  # noqa: ASYNC110
                    await trio.sleep(0.001)
            assert "(1002 " in heard[0], (state, message[:40], heard)

    tracemalloc.start()
    try:
        run(work)
        assert tracemalloc.get_traced_memory()[1] < 64 * MIB
    finally:
        tracemalloc.stop()


def answering(answer):
    async def handler(channel):
        session = session_for(channel)
        await channel.send(session.start())
        session.receive(await channel.receive())
        await channel.send(session.welcome(admitted=False, free=1, reason=EVIL[:500]))
        while True:
            await channel.send(session.answer(answer(session.receive(await channel.receive()))))

    return handler


@pytest.mark.parametrize("code", ["missing", "range", "refused", "busy", "failed", "\x1b[2J", ""])
def test_fault_087_texts_of_a_peer_are_made_harmless(code):
    async def work():
        async with serving(answering(lambda r: wire.Error(r.request, code, EVIL))) as address, pool() as p:
            with pytest.raises(RemoteError) as caught:
                await p.get(address, bytes(32))
            check_words(caught.value)
            with pytest.raises(RemoteError) as caught:
                await p.put(address, [(bytes(32), b"x")])
            check_words(caught.value)
            with pytest.raises(RemoteError) as caught:
                await p.delete(address, b"grant")
            check_words(caught.value)

    run(work)


def test_fault_087_reasons_of_a_peer_are_made_harmless():
    def answer(request):
        if isinstance(request, wire.Put):
            return wire.PutDone(request.request, b"", (wire.Refusal(request.shards[0].id, EVIL),))
        if isinstance(request, wire.Delete):
            return wire.DeleteDone(request.request, (wire.Refusal(bytes(32), EVIL),))
        return wire.InfoResult(request.request, EVIL, False, EVIL, 0, 0, 0, 0)

    async def work():
        async with serving(answering(answer)) as address, pool() as p:
            for call in (p.put(address, [(bytes(32), b"x")]), p.info(address)):
                with pytest.raises(PeerRefused) as caught:
                    await call
                check_words(caught.value)
            (reason,) = (await p.delete(address, b"grant")).values()
            check_words(reason)

    run(work)


@asynccontextmanager
async def raw_peer(react):
    """A peer that ends TLS properly and then is whatever `react(stream, framing)` makes of it."""

    async def one(transport):
        stream = TlsStream(transport, tls.server_context(SEED), server_side=True)
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError, FsdecloudError):
            await stream.do_handshake()
            await react(stream, Framing(ConnectionType.SERVER))
        await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, one, 0, host="127.0.0.1"))
        yield Address("127.0.0.1", listeners[0].socket.getsockname()[1], PEER, NETWORK)
        nursery.cancel_scope.cancel()


async def accept(stream, framing):
    while True:
        framing.receive_data(bytes(await stream.receive_some()))
        for event in framing.events():
            if isinstance(event, Request):
                await stream.send_all(framing.send(AcceptConnection(subprotocol=wire.SUBPROTOCOL)))
                return


def frames_of_a_peer():
    """Yield (name, bytes) that no server may send after its 101."""
    yield "masked", b"\x82\x82abcdhi"
    yield "a reserved bit", b"\xc2\x02hi"
    yield "a reserved opcode", b"\x83\x02hi"
    yield "a fragmented ping", b"\x09\x02hi"
    yield "a continuation of nothing", b"\x80\x02hi"
    yield "text", b"\x81\x02hi"
    yield "not UTF-8", b"\x81\x02\xff\xff"
    yield "a close of one byte", b"\x88\x01x"
    yield "a close with a forbidden code", b"\x88\x02\x03\xee"
    yield "a length of 2^63", b"\x82\x7f" + b"\xff" * 8
    yield "4 GiB", b"\x82\x7f" + (1 << 32).to_bytes(8, "big") + bytes(3 * MIB)
    yield "a flood of pings", b"\x89\x00" * 5000
    yield "a flood of fragments", b"\x02\x00" + b"\x00\x00" * 5000


@pytest.mark.parametrize("frames", [pytest.param(f, id=n) for n, f in frames_of_a_peer()])
def test_fault_081_frames_that_no_server_may_send(frames):
    async def react(stream, framing):
        await accept(stream, framing)
        await stream.send_all(frames)
        while await stream.receive_some():
            pass

    async def work():
        async with raw_peer(react) as address, pool() as p:
            with pytest.raises(PeerUnavailable) as caught:
                await p.has(address, [bytes(32)])
            check_words(caught.value)

    run(work)


def test_fault_087_closing_words_and_http_bodies_are_made_harmless():
    async def closes(stream, framing):
        await accept(stream, framing)
        await stream.send_all(framing.send(CloseConnection(4000, EVIL[:100])))
        await stream.receive_some()

    async def refuses(stream, _framing):
        await stream.receive_some()
        body = EVIL.encode()
        await stream.send_all(b"HTTP/1.1 400 \x1b[31mno\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await stream.receive_some()

    async def refuses_well(stream, _framing):
        await stream.receive_some()
        body = EVIL.encode()
        await stream.send_all(b"HTTP/1.1 400 no\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await stream.receive_some()

    async def work():
        for react in (closes, refuses, refuses_well):
            async with raw_peer(react) as address, pool() as p:
                with pytest.raises(PeerUnavailable) as caught:
                    await p.has(address, [bytes(32)])
                check_words(caught.value)

    run(work)


def test_fault_094_an_answer_after_the_request_was_cancelled_is_dropped():
    """A peer answers when it likes; a second answer to the same request ends the connection."""
    asked, answers = trio.Event(), trio.Event()

    async def handler(channel):
        session = session_for(channel)
        await channel.send(session.start())
        session.receive(await channel.receive())
        await channel.send(session.welcome(admitted=True, free=1, reason=""))
        late = session.receive(await channel.receive())
        asked.set()
        second = session.receive(await channel.receive())
        await answers.wait()
        frame = session.answer(wire.HasResult(late.request, (False,)))
        await channel.send(frame)
        await channel.send(session.answer(wire.HasResult(second.request, (True,))))
        session.receive(await channel.receive())
        await channel.send(frame)
        await channel.receive()

    async def work():
        async with serving(handler) as address, pool() as p, trio.open_nursery() as nursery:
            scope = trio.CancelScope()

            async def first():
                with scope:
                    await p.has(address, [bytes(32)])

            nursery.start_soon(first)
            await asked.wait()
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert p.statistics() == {"connections": 1, "requests": 1}  # it counts until its answer comes

            async def second():
                assert await p.has(address, [bytes(32)]) == (True,)

            nursery.start_soon(second)
            await trio.testing.wait_all_tasks_blocked()
            answers.set()
            await trio.testing.wait_all_tasks_blocked()
            while p.statistics()["requests"]:  # noqa: ASYNC110
                await trio.sleep(0.001)
            with pytest.raises(PeerUnavailable, match="not asked for"):
                await p.has(address, [bytes(32)])

    run(work)


def test_a_peer_that_drips_is_left(monkeypatch):
    """One byte now and then is no challenge."""
    monkeypatch.setattr(pool_module, "CONNECT_TIMEOUT", 0.3)

    async def react(stream, framing):
        await accept(stream, framing)
        for byte in framing.send(BytesMessage(bytes(200))):
            await stream.send_all(bytes((byte,)))
            await trio.sleep(0.02)

    async def work():
        async with raw_peer(react) as address, pool() as p:
            with pytest.raises((PeerUnavailable, RemoteTimeout), match="did not say hello"):
                await p.has(address, [bytes(32)])

    run(work)
