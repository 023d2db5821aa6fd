"""Channels over loopback sockets: what arrives, who is refused, and what a silent or hostile other side can do."""

import ssl
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest
import trio
import trio.testing
from wsproto import ConnectionType, WSConnection
from wsproto.events import Request

from fsdecloud.crypto import sign
from fsdecloud.errors import PeerUnavailable, RemoteProtocolError, UsageError
from fsdecloud.limits import MESSAGE_MAX, MIB
from fsdecloud.net import tls, websocket
from fsdecloud.net.address import Address
from fsdecloud.net.tls import TlsStream
from fsdecloud.net.websocket import connect, serve

SUB = "test/1"
SEED = b"s" * 32
KEY = sign.public_key(SEED)


def run(work):
    async def bounded():
        with trio.fail_after(30):
            await work()

    trio.run(bounded)


async def echo(channel):
    while True:
        await channel.send(await channel.receive())


@asynccontextmanager
async def server(handler=echo, **options):
    async with trio.open_nursery() as nursery:
        port = await nursery.start(
            lambda task_status: serve("127.0.0.1", 0, SEED, SUB, handler, task_status=task_status, **options)
        )
        yield Address("127.0.0.1", port, KEY)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def raw(address, source=None):
    """A TLS connection without websocket."""
    socket = await trio.open_tcp_stream(address.host, address.port, local_address=source)
    stream = TlsStream(socket, tls.client_context(), server_side=False)
    try:
        await stream.do_handshake()
        yield stream
    finally:
        await trio.aclose_forcefully(stream)


async def drain(stream):
    data = bytearray()
    try:
        while part := await stream.receive_some():
            data += part
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    return bytes(data)


@asynccontextmanager
async def upgraded(address, source=None):
    """A hostile client: a raw stream after a right handshake."""
    async with raw(address, source) as stream:
        ws = WSConnection(ConnectionType.CLIENT)
        await stream.send_all(ws.send(Request(host="h", target=f"/{KEY.hex()}", subprotocols=[SUB])))
        data = await stream.receive_some()
        assert data.startswith(b"HTTP/1.1 101"), data
        yield stream


def test_messages_of_every_size_arrive_in_order():
    async def work():
        sizes = [0, 1, 125, 126, 65535, 65536, MIB, MESSAGE_MAX]
        async with server() as address, connect(address, subprotocol=SUB) as channel:
            assert channel.server_key == KEY
            assert channel.certificate_hash == tls.certificate_hash(tls.make_certificate(SEED))
            for size in sizes:
                message = bytes(i * 7 & 255 for i in range(min(size, 999))).ljust(size, b"x")
                await channel.send(message)
                assert await channel.receive() == message
            with pytest.raises(ValueError, match="at most"):
                await channel.send(bytes(MESSAGE_MAX + 1))

    run(work)


def test_a_certificate_is_the_same_bytes_every_time():
    assert tls.make_certificate(SEED) == tls.make_certificate(SEED)
    assert tls.certificate_key(tls.make_certificate(SEED)) == KEY
    with pytest.raises(RemoteProtocolError):
        tls.certificate_key(b"not a certificate")


def test_another_key_than_the_pinned_one_is_refused():
    async def work():
        async with server() as address:
            wrong = Address(address.host, address.port, bytes(32))
            with pytest.raises(PeerUnavailable, match=f"is {KEY.hex()}, not 0000"):
                async with connect(wrong, subprotocol=SUB):
                    pass
            with pytest.raises(PeerUnavailable, match=r"400 only test/1"):
                async with connect(address, subprotocol="other/1"):
                    pass

    run(work)


def test_fault_56_whatever_else_answers_is_not_taken_for_a_node():
    async def captive(stream):
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        await stream.aclose()

    async def hangs_up(stream):
        await stream.receive_some()
        await stream.aclose()

    async def work():
        for handler in (captive, hangs_up):
            async with trio.open_nursery() as nursery:
                listeners = await nursery.start(trio.serve_tcp, handler, 0)
                port = listeners[0].socket.getsockname()[1]
                with pytest.raises(PeerUnavailable, match="TLS"):
                    async with connect(Address("localhost", port), subprotocol=SUB):
                        pass
                nursery.cancel_scope.cancel()
        for address in (Address("127.0.0.1", port), Address("no-such-host.invalid", 1)):
            with pytest.raises(PeerUnavailable, match="cannot connect"):
                async with connect(address, subprotocol=SUB):
                    pass

    run(work)


def test_tls_that_speaks_http_is_refused():
    async def work():
        context = tls.server_context(SEED)

        async def portal(stream):
            secure = TlsStream(stream, context, server_side=True)
            await secure.do_handshake()
            await secure.receive_some()
            await secure.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
            await secure.aclose()

        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, portal, 0)
            port = listeners[0].socket.getsockname()[1]
            with pytest.raises(PeerUnavailable, match="HTTP status 200"):
                async with connect(Address("localhost", port), subprotocol=SUB):
                    pass
            nursery.cancel_scope.cancel()

    run(work)


def test_old_tls_is_not_spoken():
    async def work():
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        async with server() as address:
            stream = TlsStream(await trio.open_tcp_stream(address.host, address.port), old, server_side=False)
            with pytest.raises(PeerUnavailable, match="TLS"):
                await stream.do_handshake()
            await trio.aclose_forcefully(stream)

    run(work)


GOOD = [
    "Host: h",
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    "Sec-WebSocket-Version: 13",
    f"Sec-WebSocket-Protocol: {SUB}",
]


@pytest.mark.parametrize(
    ("target", "headers", "status"),
    [
        (f"/{KEY.hex()}", GOOD, 101),
        (f"/{KEY.hex()}", [*GOOD, "Origin: https://evil.example"], 403),
        ("/", GOOD, 404),
        (f"/{KEY.hex()}", GOOD[:-1], 400),
        (f"/{KEY.hex()}", GOOD[1:], 400),
        (f"/{KEY.hex()}", [*GOOD, "X: " + "y" * 40_000], 431),
        (f"/{KEY.hex()}", ["Host: h", "Content-Length: 3", "Content-Length: 4"], 400),
    ],
)
def test_fault_83_and_84_requests_of_browsers_and_smugglers(target, headers, status):
    async def work():
        async with server() as address, raw(address) as stream:
            await stream.send_all("\r\n".join([f"GET {target} HTTP/1.1", *headers, "", ""]).encode())
            answer = await (stream.receive_some() if status == 101 else drain(stream))
            assert answer.startswith(f"HTTP/1.1 {status}".encode()), answer
            if status == 101:
                assert b"xtensions" not in answer  # fault 80: no compression

    run(work)


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (b"\x82\x02hi", 1002),  # not masked
        (b"\xc2\x82abcdhi", 1002),  # a reserved bit
        (b"\x83\x82abcdhi", 1002),  # a reserved opcode
        (b"\x09\x82abcdhi", 1002),  # a fragmented ping
        (b"\x89\xfe\x00\x7eabcd" + bytes(126), 1002),  # a long ping
        (b"\x88\x82abcd" + bytes(a ^ b for a, b in zip(b"\x03\xee", b"abcd", strict=False)), 1002),  # close with 1006
        (b"\x81\x82abcd" + bytes(a ^ b for a, b in zip(b"\xff\xff", b"abcd", strict=False)), 1007),  # not UTF-8
        (b"\x81\x82abcd" + bytes(a ^ b for a, b in zip(b"hi", b"abcd", strict=False)), 1003),  # text
        (b"\x80\x82abcdhi", 1002),  # a continuation of nothing
        (b"\x82\xff" + (MESSAGE_MAX + 1).to_bytes(8, "big") + b"abcd" + bytes(MESSAGE_MAX + 1), 1009),
        (b"\x82\xff" + b"\xff" * 8 + b"abcd", 1002),
        (b"\x82\xfe\x00\x01abcdh", 1002),  # a long form of a short length
    ],
)
def test_fault_81_frames_that_rfc_6455_forbids(frames, code):
    async def work():
        async with server() as address:
            async with upgraded(address) as stream:
                with suppress(trio.BrokenResourceError):
                    await stream.send_all(frames)
                answer = await drain(stream)
                # trio-websocket closes without a word where wsproto's parser fails
                assert (int.from_bytes(answer[2:4], "big") if answer else 1002) in (code, 1002)
                assert answer or code not in (1003, 1009)
            async with connect(address, subprotocol=SUB) as channel:
                await channel.send(b"still served")
                assert await channel.receive() == b"still served"

    run(work)


@pytest.mark.parametrize("frame", [b"\x02\x80abcd", b"\x8a\x80abcd"], ids=["fragments", "pongs"])
def test_fault_81_endless_frames_without_a_message(frame, monkeypatch):
    monkeypatch.setattr(tls, "UNDELIVERED_MAX", 200_000)

    async def work():
        async with server() as address, upgraded(address) as stream:
            await stream.send_all(frame)
            flood = (b"\x00\x80abcd" if frame[0] == 2 else frame) * 5000

            async def pour():
                while True:
                    await stream.send_all(flood)

            with pytest.raises(trio.BrokenResourceError):
                await pour()

    run(work)


def test_fault_82_unfinished_handshakes_block_nobody(monkeypatch):
    monkeypatch.setattr(websocket, "HANDSHAKES_MAX", 8)

    async def work():
        async with server() as address:
            idle = [await trio.open_tcp_stream(address.host, address.port) for _ in range(40)]
            async with connect(address, subprotocol=SUB) as channel:
                await channel.send(b"x")
                assert await channel.receive() == b"x"
            assert await idle[0].receive_some() == b""  # the oldest gave way
            for stream in idle:
                await trio.aclose_forcefully(stream)

    run(work)


def test_fault_82_who_comes_again_and_again_waits_and_others_do_not(monkeypatch):
    monkeypatch.setattr(websocket, "ARRIVALS", 0.02)
    monkeypatch.setattr(websocket, "ARRIVALS_BURST", 2.0)

    async def work():
        async with server() as address:

            async def come(source):
                async with raw(address, source):
                    came.append(source)

            came = []
            for _ in range(3):  # whoever comes when nothing is owed does not wait
                await come("127.0.0.1")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(come, "127.0.0.1")
                await trio.testing.wait_all_tasks_blocked(0.1)
                await come("127.0.0.2")
                assert came == ["127.0.0.1"] * 3 + ["127.0.0.2"]
                nursery.cancel_scope.cancel()

    run(work)


async def greet_and_echo(channel):
    await channel.receive()
    channel.is_greeted = True
    await echo(channel)


def test_a_full_server_says_so():
    async def work():
        async with (
            server(greet_and_echo, connections_max=1) as address,
            connect(address, subprotocol=SUB) as channel,
        ):
            for word in (b"hello", b"x"):
                await channel.send(word)
            assert await channel.receive() == b"x"
            with pytest.raises(PeerUnavailable, match="503 too many"):
                async with connect(address, subprotocol=SUB):
                    pass
            await channel.send(b"y")
            assert await channel.receive() == b"y"

    run(work)


def test_fault_82_who_says_no_hello_gives_way_to_others(monkeypatch):
    monkeypatch.setattr(websocket, "HOST_SHARE", 2.0)  # all of them come from one address

    async def work():
        async with (
            server(greet_and_echo, connections_max=3) as address,
            connect(address, subprotocol=SUB) as greeted,
            connect(address, subprotocol=SUB) as oldest,
            connect(address, subprotocol=SUB) as silent,
        ):
            for word in (b"hello", b"x"):
                await greeted.send(word)
            assert await greeted.receive() == b"x"
            async with connect(address, subprotocol=SUB) as late:
                with pytest.raises(PeerUnavailable):
                    await oldest.receive()
                for channel in (greeted, late, silent):
                    for word in (b"hello", b"y"):
                        await channel.send(word)
                    while await channel.receive() != b"y":
                        pass

    run(work)


def test_fault_82_one_address_leaves_a_quarter_to_the_others():
    async def work():
        async with AsyncExitStack() as stack:
            address = await stack.enter_async_context(server(greet_and_echo, connections_max=8))
            for _ in range(6):
                channel = await stack.enter_async_context(connect(address, subprotocol=SUB))
                for word in (b"hello", b"x"):
                    await channel.send(word)
                assert await channel.receive() == b"x"
            with pytest.raises(PeerUnavailable, match="503 too many connections from your address"):
                async with connect(address, subprotocol=SUB):
                    pass
            for _ in range(2):
                await stack.enter_async_context(upgraded(address, "127.0.0.2"))

    run(work)


@pytest.mark.parametrize("delay", [0, 0.05], ids=["near", "far"])
def test_fault_50_a_silent_line_is_noticed_on_both_sides(monkeypatch, delay):
    """The line's kernel goes on acknowledging. With a delay it does so long after the ping was due: that is no answer."""
    for name in ("KEEPALIVE", "PONG_TIMEOUT"):
        monkeypatch.setattr(websocket, name, 0.1)
    monkeypatch.setattr(websocket, "SILENCE_MAX", 0.3)
    send_all = TlsStream.send_all
    sent = []

    async def send_late(stream, data, **head):
        sent.append(stream)
        await trio.sleep(delay)
        await send_all(stream, data, **head)

    monkeypatch.setattr(TlsStream, "send_all", send_late)

    async def work():
        server_lost = trio.Event()

        async def handler(channel):
            try:
                await echo(channel)
            finally:
                server_lost.set()

        async with server(handler) as address:
            gate = trio.Event()
            gate.set()

            async def hole(near):
                """A line that stops carrying anything, without closing."""
                far = await trio.open_tcp_stream(address.host, address.port)

                async def carry(a, b):
                    with suppress(trio.BrokenResourceError):
                        async for data in a:
                            await gate.wait()
                            await b.send_all(data)

                async with far, trio.open_nursery() as nursery:
                    nursery.start_soon(carry, near, far)
                    nursery.start_soon(carry, far, near)

            async with trio.open_nursery() as nursery:
                listeners = await nursery.start(trio.serve_tcp, hole, 0)
                port = listeners[0].socket.getsockname()[1]
                async with connect(Address("localhost", port, KEY), subprotocol=SUB) as channel:
                    # at once: where the machine pauses before this, an end that gives up early is noticed as well
                    gate = trio.Event()
                    sent.clear()
                    with pytest.raises(PeerUnavailable):
                        await channel.receive()
                    assert sent.count(channel._stream) <= 1  # a ping more would be acknowledged as well, and so on
                await server_lost.wait()
                nursery.cancel_scope.cancel()

    run(work)


def test_fault_50_an_idle_client_is_a_living_one(monkeypatch):
    """Pings alone are progress on the server's side, for as long as the channel is open."""
    monkeypatch.setattr(websocket, "KEEPALIVE", 0.05)

    async def work():
        served = []

        async def handler(channel):
            served.append(channel)
            await echo(channel)

        async with server(handler) as address, connect(address, subprotocol=SUB) as channel:
            await channel.send(b"x")
            assert await channel.receive() == b"x"
            start = trio.current_time()
            while served[0].last_progress() < start + 0.3:  # noqa: ASYNC110 - the kernel's clock is what is waited for
                await trio.sleep(0.05)
            await channel.send(b"y")
            assert await channel.receive() == b"y"

    run(work)


def test_a_cancelled_send_breaks_the_channel_instead_of_the_stream_of_frames():
    async def deaf(_channel):
        await trio.sleep_forever()

    async def work():
        async with server(deaf) as address, connect(address, subprotocol=SUB) as channel:
            with trio.move_on_after(0.2) as scope:
                while True:
                    await channel.send(bytes(MESSAGE_MAX))
            assert scope.cancelled_caught
            with pytest.raises(PeerUnavailable):
                await channel.send(b"x")

    run(work)


def test_errors_of_a_handler_end_its_channel_only(caplog):
    async def handler(channel):
        word = await channel.receive()
        if word == b"crash":
            raise ZeroDivisionError
        if word == b"protocol":
            raise RemoteProtocolError("no such word")

    async def work():
        async with server(handler) as address:
            for word, reason in ((b"protocol", "1002 no such word"), (b"crash", "1000"), (b"bye", "1000")):
                async with connect(address, subprotocol=SUB) as channel:
                    await channel.send(word)
                    with pytest.raises(PeerUnavailable, match=reason):
                        await channel.receive()

    run(work)
    assert "ZeroDivisionError" in caplog.text


def test_fault_95_who_does_not_take_what_it_asked_for_is_dropped(monkeypatch, caplog):
    """It pings, so it is alive; the answers that wait for it would lie in memory for ever."""
    monkeypatch.setattr(websocket, "SILENCE_MAX", 1.0)
    monkeypatch.setattr(websocket, "SEND_MAX", 0.3)
    caplog.set_level("INFO", "fsdecloud.net.websocket")
    ended = trio.Event()

    async def pour(channel):
        try:
            while True:
                await channel.send(bytes(MESSAGE_MAX))
        finally:
            ended.set()

    async def work():
        async with server(pour) as address, upgraded(address) as stream, trio.open_nursery() as nursery:

            async def ping():
                with suppress(trio.BrokenResourceError):
                    while True:
                        await stream.send_all(b"\x89\x80abcd")
                        await trio.sleep(0.05)

            nursery.start_soon(ping)
            await ended.wait()
            nursery.cancel_scope.cancel()

    run(work)
    assert "dropped" in caplog.text


def test_a_port_in_use_is_a_usage_error():
    async def work():
        async with server() as address:
            with pytest.raises(UsageError, match="cannot listen on 127"):
                await serve("127.0.0.1", address.port, SEED, SUB, echo)

    run(work)


def test_the_bodys_exception_leaves_connect_unwrapped():
    async def work():
        async with server() as address:
            with pytest.raises(ZeroDivisionError):
                async with connect(address, subprotocol=SUB):
                    raise ZeroDivisionError

    run(work)
