"""Pages over loopback sockets: what is answered, and what no request, however made, gets or costs."""

from __future__ import annotations

import base64
import os
from contextlib import asynccontextmanager, suppress

import pytest
import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import CloseConnection, Ping, Pong, Request, TextMessage

from fsdecloud.errors import UsageError
from fsdecloud.net import http
from fsdecloud.net.http import Page, Refusal, names_this_machine, serve_pages

GET = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def run(work):
    async def bounded():
        with trio.fail_after(20):
            await work()

    trio.run(bounded)


async def echo(request):
    await trio.lowlevel.checkpoint()
    if request.path == "/missing":
        raise Refusal(404, "there is no such page")
    if request.path == "/bug":
        raise RuntimeError("a secret of the inside")
    return Page(repr((request.path, dict(request.query))).encode())


async def wait(socket):
    await socket.send("hello")
    await trio.sleep_forever()


@asynccontextmanager
async def server(answer=echo, live=wait, host="127.0.0.1"):
    async with trio.open_nursery() as nursery:
        port = await nursery.start(
            lambda task_status: serve_pages(host, 0, answer, {"/live": live}, task_status=task_status)
        )
        yield port
        nursery.cancel_scope.cancel()


async def drain(stream):
    data = bytearray()
    try:
        while part := await stream.receive_some():
            data += part
    except trio.BrokenResourceError:
        pass
    return bytes(data)


async def ask(port, data=GET):
    """Send bytes and return status, headers (lower case) and body of the answer; status 0 for none."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        with suppress(trio.BrokenResourceError):
            await stream.send_all(data)
        answer = await drain(stream)
    if not answer:
        return 0, {}, b""
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(first.split()[1]), headers, body


async def ask_until_served(port, data=GET):
    """Ask again and again; the test's own deadline ends it."""
    while (await ask(port, data))[0] != 200:  # noqa: ASYNC110 - nothing else tells
        await trio.sleep(0.01)


def request(target="/", method="GET", host="127.0.0.1", version="1.1", extra=()):
    lines = [f"{method} {target} HTTP/{version}", *([f"Host: {host}"] if host is not None else []), *extra]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def test_a_page_comes_with_what_keeps_it_to_itself():
    async def work():
        async with server() as port:
            status, headers, body = await ask(port, request("/a%20b?q=1%262&r="))
            assert (status, body) == (200, b"('/a b', {'q': '1&2', 'r': ''})")
            assert headers["content-type"] == "text/plain; charset=utf-8"
            policy = headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'; ")
            for word in ("base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"):
                assert word in policy
            assert "unsafe" not in policy
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["x-frame-options"] == "DENY"
            assert headers["cross-origin-resource-policy"] == "same-origin"
            assert headers["cache-control"] == "no-store"
            assert "access-control-allow-origin" not in headers
            status, headers, body = await ask(port, request(method="HEAD"))
            assert (status, headers["content-length"], body) == (200, str(len(repr(("/", {})))), b"")

    run(work)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request(method="POST"), 405),
        (request(method="PUT", extra=["Content-Length: 3"]) + b"abc", 405),
        (request(method="DELETE"), 405),
        (request(method="OPTIONS"), 405),
        (request(method="CONNECT", target="example.org:443"), 405),
        (request(extra=["Content-Length: 5"]) + b"hello", 400),
        (request(extra=["Transfer-Encoding: chunked"]) + b"0\r\n\r\n", 400),
        (request("http://127.0.0.1/"), 400),
        (request("//evil.example/"), 400),
        (request("*"), 400),
        (request("/%ff"), 400),
        (request("/?" + "&".join(f"a{n}=" for n in range(17))), 400),
        (request("/" + "a" * http.TARGET_MAX), 414),
        (request("/missing"), 404),
        (request(extra=["X: " + "a" * http.HEAD_MAX]), 431),
        (b"a" * (http.HEAD_MAX + 1), 431),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\nHost: 127.0.0.1\r\n\r\n", 505),
        (b"\r\n\r\n\r\n\r\n", 400),
        (b"\x00" * 100 + b"\r\n\r\n", 400),
        (request(extra=["Host: 127.0.0.1"]), 400),
        (request(extra=["A b: c"]), 400),
    ],
)
def test_fault_119_what_is_no_plain_look_at_a_page_is_refused(data, status):
    async def work():
        async with server() as port:
            found, headers, body = await ask(port, data)
            assert found == status, body
            assert "default-src 'none'" in headers["content-security-policy"]
            assert (await ask(port))[0] == 200

    run(work)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:80",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "",
        "192.168.1.7",
        "0.0.0.0",
    ],
)
def test_a_name_that_was_led_here_gets_nothing(host):
    """DNS rebinding: the browser believes that this server is the attacker's own."""

    async def work():
        async with server() as port:
            status, _, body = await ask(port, request(host=host))
            assert (status, b"nothing else" in body) == (421, True)

    run(work)


def test_what_another_servers_page_asks_for_is_refused_and_costs_nobody_a_turn(monkeypatch):
    monkeypatch.setattr(http, "REQUEST_BURST", 1.0)
    monkeypatch.setattr(http, "REQUEST_RATE", 0.001)

    async def work():
        async with server() as port:
            for site in ("cross-site", "same-site"):
                for mode in ("no-cors", "cors", "websocket"):
                    data = request(extra=[f"Sec-Fetch-Site: {site}", f"Sec-Fetch-Mode: {mode}"])
                    assert (await ask(port, data))[0] == 403
            for site, mode in (("cross-site", "navigate"), ("same-origin", "cors")):
                data = request(extra=[f"Sec-Fetch-Site: {site}", f"Sec-Fetch-Mode: {mode}"])
                assert (await ask(port, data))[0] == 200, "a link to here may be followed"

    run(work)


def test_which_names_are_this_machine():
    for host in ("127.0.0.1", "localhost", "LOCALHOST:80", "[::1]", "[::1]:8080", "127.0.0.1:65535", "localhost:"):
        assert names_this_machine(host), host
    for host in ("127.0.0.1:x", "::1", "[::1", "127.0.0.2", "127.1", "localhost.", "a@localhost", "localhost:80:80"):
        assert not names_this_machine(host), host


def test_a_bug_is_logged_and_told_without_its_insides(caplog):
    async def work():
        async with server() as port:
            status, _, body = await ask(port, request("/bug"))
            assert (status, b"secret" in body) == (500, False)
            assert (await ask(port))[0] == 200

    run(work)
    assert "a secret of the inside" in caplog.text


def test_fault_82_connections_and_their_time_are_bounded(monkeypatch):
    monkeypatch.setattr(http, "CONNECTIONS_MAX", 4)
    monkeypatch.setattr(http, "HEAD_TIMEOUT", 0.2)

    async def work():
        async with server() as port:
            idle = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(4)]
            for stream in idle:
                await stream.send_all(b"GET / HT")
            answers = [await drain(stream) for stream in idle]
            assert all(answer.startswith(b"HTTP/1.1 408") for answer in answers)
            for stream in idle:
                await stream.aclose()
            await ask_until_served(port)

    run(work)


def test_more_connections_than_are_served_are_closed(monkeypatch):
    monkeypatch.setattr(http, "CONNECTIONS_MAX", 4)

    async def work():
        async with server() as port:
            idle = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(4)]
            assert (await ask(port))[0] == 0
            await idle[0].aclose()
            await ask_until_served(port)
            for stream in idle:
                await stream.aclose()

    run(work)


def test_a_flood_of_requests_is_told_to_wait(monkeypatch):
    monkeypatch.setattr(http, "REQUEST_BURST", 5.0)
    monkeypatch.setattr(http, "REQUEST_RATE", 0.001)

    async def work():
        async with server() as port:
            found = [(await ask(port))[0] for _ in range(10)]
            assert found == [200] * 6 + [429] * 4

    run(work)


def test_a_client_that_takes_nothing_is_dropped(monkeypatch):
    monkeypatch.setattr(http, "SEND_TIMEOUT", 0.1)
    monkeypatch.setattr(http, "CONNECTIONS_MAX", 1)

    async def large(_request):
        await trio.lowlevel.checkpoint()
        return Page(bytes(32 << 20))

    async def work():
        async with server(large) as port:
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(GET)
            await ask_until_served(port, request(method="HEAD"))
            assert len(await drain(stream)) < 32 << 20
            await stream.aclose()

    run(work)


def test_any_loopback_address_and_none_that_is_taken():
    async def work():
        async with server(host="::1"), server(host="localhost"):
            pass
        async with server() as port:
            with pytest.RaisesGroup(pytest.RaisesExc(UsageError, match="cannot listen"), flatten_subgroups=True):
                async with trio.open_nursery() as nursery:
                    await nursery.start(lambda task_status: serve_pages("127.0.0.1", port, echo, {}))

    run(work)


# ---- websockets ------------------------------------------------------------------------------------------------------
class Browser:
    """The other end of a live page."""

    def __init__(self, stream):
        self.stream = stream
        self.websocket = WSConnection(ConnectionType.CLIENT)
        self.events = []

    async def open(self, port, target="/live", origin=None, host=None):
        host = host or f"127.0.0.1:{port}"
        headers = [(b"Origin", (f"http://{host}" if origin is None else origin).encode())] if origin != "" else []
        await self.send(Request(host=host, target=target, extra_headers=headers))
        return self

    async def send(self, event):
        await self.stream.send_all(self.websocket.send(event))

    async def next(self, kind):
        while True:
            while self.events:
                event = self.events.pop(0)
                if isinstance(event, kind):
                    return event
            data = await self.stream.receive_some(4096)
            self.websocket.receive_data(data or None)
            self.events += list(self.websocket.events())


@asynccontextmanager
async def browser(port, **options):
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    try:
        yield await Browser(stream).open(port, **options)
    finally:
        await trio.aclose_forcefully(stream)


def test_a_live_page_gets_messages_and_pongs_and_may_close():
    async def work():
        async with server() as port, browser(port) as page:
            assert (await page.next(TextMessage)).data == "hello"
            await page.send(Ping(b"are you there"))
            assert (await page.next(Pong)).payload == b"are you there"
            await page.send(CloseConnection(1000))
            assert (await page.next(CloseConnection)).code == 1000
            assert await drain(page.stream) == b""

    run(work)


def test_a_live_page_asks_nothing():
    async def work():
        async with server() as port, browser(port) as page:
            await page.next(TextMessage)
            await page.send(TextMessage("give me the key"))
            assert (await page.next(CloseConnection)).code == 1008

    run(work)


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": ""}, 403),
        ({"origin": "https://127.0.0.1"}, 403),
        ({"host": "evil.example", "origin": "http://evil.example"}, 421),
        ({"target": "/other"}, 404),
    ],
)
def test_a_live_page_is_for_the_pages_of_this_server(options, status):
    """A page of another origin may open a websocket to anywhere: only its Origin header tells."""

    async def work():
        async with server() as port, browser(port, **options) as page:
            assert (await drain(page.stream)).startswith(f"HTTP/1.1 {status} ".encode())

    run(work)


@pytest.mark.parametrize(
    "extra",
    [
        [],
        ["Sec-WebSocket-Key: short"],
        ["Sec-WebSocket-Version: 7", "Sec-WebSocket-Key: " + base64.b64encode(os.urandom(16)).decode()],
    ],
)
def test_a_broken_handshake_is_refused(extra):
    async def work():
        async with server() as port:
            head = ["Origin: http://127.0.0.1", "Connection: Upgrade", "Upgrade: websocket", *extra]
            status, _, _ = await ask(port, request("/live", extra=head))
            assert 400 <= status < 500
            assert (await ask(port))[0] == 200

    run(work)


def test_live_pages_are_counted_and_let_go(monkeypatch):
    monkeypatch.setattr(http, "LIVE_MAX", 2)

    async def work():
        async with server() as port, browser(port) as one, browser(port) as two:
            await one.next(TextMessage)
            await two.next(TextMessage)
            async with browser(port) as third:
                assert (await drain(third.stream)).startswith(b"HTTP/1.1 503 ")
            await trio.aclose_forcefully(one.stream)
            for _ in range(1000):
                async with browser(port) as third:
                    if (await third.stream.receive_some(12)).startswith(b"HTTP/1.1 101"):
                        break
                await trio.sleep(0.02)
            else:
                pytest.fail("its place is never free again")

    run(work)


def test_a_slow_live_page_is_dropped(monkeypatch):
    """It takes nothing: what is on its way to it is what the sockets hold, and after a while it is gone."""
    monkeypatch.setattr(http, "SEND_TIMEOUT", 0.1)
    ended = trio.Event()

    async def flood(socket):
        try:
            while True:
                await socket.send("x" * 65536)
        finally:
            ended.set()

    async def work():
        async with server(live=flood) as port, browser(port):
            await ended.wait()
            assert (await ask(port))[0] == 200

    run(work)


def test_a_silent_live_page_is_dropped(monkeypatch):
    monkeypatch.setattr(http, "PING_EVERY", 0.05)
    monkeypatch.setattr(http, "SILENCE_MAX", 0.3)

    async def work():
        async with server() as port, browser(port) as page:
            await page.next(Ping)
            await drain(page.stream)

    run(work)


@pytest.mark.parametrize("data", [b"\xff" * 20, b"\x82\x05hello", b"\x89\xff" + b"\xff" * 12, b"\x83\x80aaaa"])
def test_fault_120_bytes_that_are_no_frame_end_a_live_page_alone(data):
    async def work():
        async with server() as port, browser(port) as other, browser(port) as page:
            await other.next(TextMessage)
            await page.next(TextMessage)
            await page.stream.send_all(data)
            await drain(page.stream)
            await other.send(Ping(b"x"))
            await other.next(Pong)

    run(work)
