"""Pages for the browsers of this machine: HTTP/1.1 (RFC 9112, h11) without TLS, and websockets that only send (RFC 6455).

Read-only by construction: GET and HEAD, no bodies, one request per connection, and a websocket's first message ends it. What
reaches a loopback port is not only what its owner meant to send there, because any page in a browser can make it connect:

* the Host header must name this machine, so that a name which an attacker lets point here (DNS rebinding) gets nothing;
* a websocket's Origin must be the page's own, because browsers open them across origins;
* what another server's page asks for is refused before it counts, where the browser says so (Fetch Metadata);
* no answer allows another origin to read it, frame it or be sent to it, and scripts come from here alone (CONTENT_POLICY).

What a client costs is bounded in connections, bytes, requests a second and time. Everything here runs in the trio thread. Not
here: what the pages say (`ledgerd.explorer`).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NoReturn
from urllib.parse import parse_qsl, unquote, urlsplit

import h11
import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, Event, Message, Ping, Pong, Request, TextMessage
from wsproto.utilities import ProtocolError as WebsocketError

from fsdecloud.errors import FsdecloudError, UsageError
from fsdecloud.net.address import format_endpoint
from fsdecloud.net.nursery import open_background
from fsdecloud.swarm.bucket import TokenBucket

log = logging.getLogger(__name__)

HEAD_MAX: Final = 16 << 10
"""Bytes of a request's head: a browser's has two thousand, and all cookies of this machine's other servers come with it."""

TARGET_MAX: Final = 2048
CONNECTIONS_MAX: Final = 64
"""Connections at once; more are closed unanswered."""

LIVE_MAX: Final = 16
"""Websockets among them."""

HEAD_TIMEOUT: Final = 10.0
"""A request's head must have come by then."""

SEND_TIMEOUT: Final = 20.0
"""A client must take an answer, or a message, within this time."""

REQUEST_RATE: Final = 50.0
REQUEST_BURST: Final = 200.0
"""Requests a second, of all clients together, and how many at once after a silence; more are told to wait."""

PING_EVERY: Final = 30.0
SILENCE_MAX: Final = 75.0
"""A websocket is asked for a sign of life so often, and dropped after so long without one."""

LINGER: Final = 1.0
LINGER_BYTES: Final = 64 << 10
"""What a refused client still sends is read for so long, so that it gets to see the answer (RFC 9112, 9.6)."""

CONTENT_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_FIXED: Final = (
    (b"Content-Security-Policy", CONTENT_POLICY.encode("ascii")),
    (b"X-Content-Type-Options", b"nosniff"),
    (b"X-Frame-Options", b"DENY"),
    (b"Referrer-Policy", b"no-referrer"),
    (b"Cross-Origin-Resource-Policy", b"same-origin"),
    (b"Cross-Origin-Opener-Policy", b"same-origin"),
    (b"Cache-Control", b"no-store"),
    (b"Connection", b"close"),
)

_PLAIN: Final = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class PageRequest:
    """What a browser asks for: the path, decoded, and the parameters after it."""

    path: str
    query: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Page:
    """An answer."""

    body: bytes
    kind: str = _PLAIN
    """Content-Type."""
    status: int = 200


class Refusal(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, text: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(text)
        self.status = status
        self.headers = headers


class LiveSocket:
    """A browser's websocket. Messages go one way."""

    def __init__(self, stream: trio.SocketStream, websocket: WSConnection) -> None:
        self._stream = stream
        self._websocket = websocket
        self._lock = trio.Lock()

    async def send(self, text: str) -> None:
        """Send a message. Raises trio.BrokenResourceError for a client that has gone, or does not take it in time."""
        await self.send_event(TextMessage(text))

    async def send_event(self, event: Event) -> None:
        """Send what the protocol asks for, likewise."""
        with trio.move_on_after(SEND_TIMEOUT) as scope:
            async with self._lock:
                await self._stream.send_all(self._websocket.send(event))
        if scope.cancelled_caught:
            raise trio.BrokenResourceError("it does not take what it is sent")


Answerer = Callable[[PageRequest], Awaitable[Page]]
Liver = Callable[[LiveSocket], Awaitable[None]]


async def serve_pages(
    host: str,
    port: int,
    answer: Answerer,
    live: Mapping[str, Liver],
    *,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Serve pages at a loopback address until cancelled; `task_status` gets the port (one is picked for 0).

    `answer` returns the page for a request; a Refusal that it raises is answered, anything unexpected is logged and
    answered with 500. `live` has the websockets' paths: what is to run for each browser that opens one. Raises UsageError when
    the address cannot be listened on.
    """
    try:
        listeners = await trio.open_tcp_listeners(port, host=host, backlog=CONNECTIONS_MAX)
    except (OSError, ValueError) as exc:
        raise UsageError(f"cannot listen on {format_endpoint(host, port)}: {exc}") from exc
    if port == 0:
        for extra in listeners[1:]:
            await extra.aclose()
        del listeners[1:]
    server = _Server(answer, live)
    async with open_background() as nursery:
        await nursery.start(partial(trio.serve_listeners, server.take, listeners, handler_nursery=nursery))
        task_status.started(listeners[0].socket.getsockname()[1])
        await trio.sleep_forever()
    raise AssertionError("a server ends only by being cancelled")


class _Server:
    """Accepts connections and counts them."""

    def __init__(self, answer: Answerer, live: Mapping[str, Liver]) -> None:
        self._answer = answer
        self._live = live
        self._connections = 0
        self._sockets = 0
        self._bucket = TokenBucket(REQUEST_RATE, REQUEST_BURST, trio.current_time())

    async def take(self, stream: trio.SocketStream) -> None:
        """Serve one connection; raises nothing but cancellation."""
        if self._connections >= CONNECTIONS_MAX:
            await trio.aclose_forcefully(stream)
            return
        self._connections += 1
        try:
            await self._serve(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            log.debug("a browser has gone: %s", exc)
        except Exception as exc:  # a bug while serving one client must not end the others
            log.error("serving a page failed unexpectedly", exc_info=exc)
        finally:
            self._connections -= 1
            await trio.aclose_forcefully(stream)

    async def _serve(self, stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_MAX)
        request: h11.Request | None = None
        headers: tuple[tuple[bytes, bytes], ...] = ()
        try:
            with trio.move_on_after(HEAD_TIMEOUT) as scope:
                data = await _read_head(stream)
            if scope.cancelled_caught:
                raise Refusal(408, "the request did not come in time")
            if not data:
                return
            request = _parse(connection, data)
            asked = check_request(request)
            if self._bucket.wait(trio.current_time()):
                raise Refusal(429, "too many requests; try again in a moment", (b"Retry-After", b"2"))
            self._bucket.take(1, trio.current_time())
            if _wants_websocket(request):
                liver = self._live.get(asked.path)
                if liver is None:
                    raise Refusal(404, "there is no such live page")
                if self._sockets >= LIVE_MAX:
                    raise Refusal(503, "too many live pages are open", (b"Retry-After", b"10"))
                await self._serve_live(stream, data, request, liver)
                return
            page = await self._page(asked)
        except Refusal as exc:
            page, headers = Page(f"{exc}\n".encode(), status=exc.status), exc.headers
        await _send_page(stream, connection, request, page, headers)
        await _linger(stream)

    async def _page(self, asked: PageRequest) -> Page:
        try:
            return await self._answer(asked)
        except FsdecloudError as exc:
            raise Refusal(500, str(exc)) from exc
        except Refusal:
            raise
        except Exception as exc:  # as in `take`; the browser is told that it was not its fault
            log.error("the page %r failed unexpectedly", asked.path, exc_info=exc)
            raise Refusal(500, "the page failed; the daemon's log says why") from exc

    async def _serve_live(self, stream: trio.SocketStream, data: bytes, request: h11.Request, liver: Liver) -> None:
        headers = dict(request.headers)
        if headers.get(b"origin") != b"http://" + headers[b"host"]:
            raise Refusal(403, "live pages are for the pages of this server")
        websocket = WSConnection(ConnectionType.SERVER)
        try:
            websocket.receive_data(data)
            if not any(isinstance(event, Request) for event in websocket.events()):
                raise Refusal(400, "not a websocket handshake")
        except WebsocketError as exc:
            raise Refusal(400, f"not a websocket handshake: {exc}") from exc
        self._sockets += 1
        try:
            socket = LiveSocket(stream, websocket)
            await socket.send_event(AcceptConnection())
            async with open_background() as nursery:
                nursery.start_soon(_until_done, _ping, socket, nursery.cancel_scope)
                nursery.start_soon(_until_done, liver, socket, nursery.cancel_scope)
                await _read_live(stream, websocket, socket)
        finally:
            self._sockets -= 1


# ---- requests --------------------------------------------------------------------------------------------------------
async def _read_head(stream: trio.SocketStream) -> bytes:
    """Return what has come once it holds a whole head; b"" for a client that left before."""
    data = bytearray()
    while b"\r\n\r\n" not in data:
        more = await stream.receive_some(HEAD_MAX)
        if not more:
            if data:
                raise Refusal(400, "the request ends in the middle")
            return b""
        data += more
        if len(data) > HEAD_MAX:
            raise Refusal(431, f"a request's head has at most {HEAD_MAX} bytes")
    return bytes(data)


def _parse(connection: h11.Connection, data: bytes) -> h11.Request:
    try:
        connection.receive_data(data)
        event = connection.next_event()
    except h11.RemoteProtocolError as exc:
        raise Refusal(exc.error_status_hint, f"not a request: {exc}") from exc
    if not isinstance(event, h11.Request):
        raise Refusal(400, "not a request")
    return event


def check_request(request: h11.Request) -> PageRequest:
    """Return what a request asks for. Raises Refusal for one that is not a plain look at a page of this machine."""
    headers = list(request.headers)
    if request.method not in (b"GET", b"HEAD"):
        raise Refusal(405, "these pages are only looked at: GET and HEAD", (b"Allow", b"GET, HEAD"))
    if request.http_version not in (b"1.0", b"1.1"):
        raise Refusal(505, "HTTP/1.1 is spoken here")
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) != 1 or not names_this_machine(hosts[0].decode("latin-1")):
        raise Refusal(421, "this server is 127.0.0.1, [::1] or localhost, and nothing else")
    fetched = dict(headers)
    if (
        fetched.get(b"sec-fetch-site") in (b"cross-site", b"same-site")
        and fetched.get(b"sec-fetch-mode") != b"navigate"
    ):
        raise Refusal(403, "another server's page asks for this; open the address itself")
    for name, value in headers:
        if name == b"transfer-encoding" or (name == b"content-length" and value != b"0"):
            raise Refusal(400, "these requests have no body")
    target = request.target
    if len(target) > TARGET_MAX:
        raise Refusal(414, f"an address here has at most {TARGET_MAX} characters")
    if not target.startswith(b"/") or target.startswith(b"//"):
        raise Refusal(400, "an address here begins with one /")
    try:
        parts = urlsplit(target.decode("ascii"))
        query = dict(parse_qsl(parts.query, keep_blank_values=True, max_num_fields=16, errors="strict"))
        return PageRequest(unquote(parts.path, errors="strict"), query)
    except ValueError as exc:
        raise Refusal(400, "an address that cannot be understood") from exc


def names_this_machine(host: str) -> bool:
    """Whether a Host header, with a port or without one, can only mean this machine. The port may be any: a forwarded one
    (`ssh -L`) is another, and browsers keep the pages of different ports apart."""
    name, _, port = host.rpartition(":") if not host.endswith("]") and ":" in host else (host, "", "")
    return name.lower() in ("127.0.0.1", "[::1]", "localhost") and (not port or (port.isascii() and port.isdigit()))


def _wants_websocket(request: h11.Request) -> bool:
    return any(name == b"upgrade" and value.lower() == b"websocket" for name, value in request.headers)


# ---- answers ---------------------------------------------------------------------------------------------------------
async def _send_page(
    stream: trio.SocketStream,
    connection: h11.Connection,
    request: h11.Request | None,
    page: Page,
    extra: tuple[tuple[bytes, bytes], ...],
) -> None:
    headers = [
        (b"Content-Type", page.kind.encode("ascii")),
        (b"Content-Length", str(len(page.body)).encode("ascii")),
        *_FIXED,
        *extra,
    ]
    if request is None:  # what came is no request, so h11 is in no state to answer it
        connection = h11.Connection(h11.SERVER)
    parts = [connection.send(h11.Response(status_code=page.status, headers=headers))]
    if request is None or request.method != b"HEAD":
        parts.append(connection.send(h11.Data(data=page.body)))
    with trio.move_on_after(SEND_TIMEOUT):
        await stream.send_all(b"".join(part for part in parts if part))


async def _linger(stream: trio.SocketStream) -> None:
    """Say that this is all, and read what still comes: closing at once would take the answer back."""
    with trio.move_on_after(LINGER):
        await stream.send_eof()
        left = LINGER_BYTES
        while left > 0 and (more := await stream.receive_some(left)):
            left -= len(more)


# ---- websockets ------------------------------------------------------------------------------------------------------
async def _until_done(liver: Liver, socket: LiveSocket, scope: trio.CancelScope) -> None:
    """Run one task of a websocket; whatever ends it ends the others."""
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await liver(socket)
    scope.cancel()


async def _read_live(stream: trio.SocketStream, websocket: WSConnection, socket: LiveSocket) -> None:
    """Answer what the protocol wants answered, until the client goes or sends what it has no business to send."""
    while True:
        with trio.move_on_after(SILENCE_MAX) as scope:
            data = await stream.receive_some(4096)
        if scope.cancelled_caught or not data:
            return
        try:
            websocket.receive_data(data)
            for event in websocket.events():
                if isinstance(event, Ping):
                    await socket.send_event(event.response())
                elif isinstance(event, CloseConnection):
                    await socket.send_event(event.response())
                    return
                elif isinstance(event, Message):
                    await socket.send_event(CloseConnection(code=1008, reason="nothing is asked here"))
                    return
                elif isinstance(event, Pong):
                    continue
        except WebsocketError as exc:
            log.debug("a live page broke the protocol: %s", exc)
            return


async def _ping(socket: LiveSocket) -> None:
    while True:
        await trio.sleep(PING_EVERY)
        await socket.send_event(Ping())
