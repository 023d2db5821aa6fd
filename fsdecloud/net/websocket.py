"""Messages between nodes: websockets (RFC 6455, trio-websocket) over TLS 1.3 (`net.tls`).

A `Channel` carries whole binary messages of at most MESSAGE_MAX bytes, in order, both ways. The request path is the
server's id in hexadecimal, so that a server answers only those who mean it; a request with an Origin header comes from a
browser and is refused, as is any other subprotocol. No extension is negotiated: permessage-deflate would be a bomb.

Silence: a client pings after KEEPALIVE seconds without a byte and gives up PONG_TIMEOUT later; a server drops a client that
was silent for SILENCE_MAX, or takes nothing for SEND_MAX. Any byte counts as life, and TCP's word that the other side took
ours, so that a large message on a slow line is not silence.

**Invariant:** half a frame never stays on a wire that is used further: a cancelled `send` breaks its channel. Send from a
task that is not cancelled with its request (`net.pool`, `peerd.server`).

Everything here runs in the trio thread.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Final, NoReturn, TypeVar

import trio
import trio_websocket
import wsproto.events
import wsproto.utilities
from wsproto import ConnectionType

from fsdecloud.errors import (
    FsdecloudError,
    MalformedError,
    PeerUnavailable,
    ProtocolError,
    RemoteProtocolError,
    UsageError,
)
from fsdecloud.limits import CONNECT_TIMEOUT, KEEPALIVE, MESSAGE_MAX, PEER_CONNECTIONS_MAX, RECEIVE_BUFFER
from fsdecloud.net.address import Address, client_group, format_endpoint
from fsdecloud.net.frames import Framing
from fsdecloud.net.lean import LeanConnection
from fsdecloud.net.nursery import open_background
from fsdecloud.net.tls import (
    TlsStream,
    certificate_hash,
    certificate_key,
    client_context,
    make_certificate,
    server_context,
)
from fsdecloud.swarm.bucket import TokenBucket
from fsdecloud.types import PeerId

log = logging.getLogger(__name__)

T = TypeVar("T")

QUEUE_SIZE: Final = 2
"""Messages that wait to be taken with `receive`. The reader answers no ping while the queue is full."""

PONG_TIMEOUT: Final = 10.0
"""A ping unanswered for this long is a dead line: noticed within KEEPALIVE + PONG_TIMEOUT = 30 s, and the time that the
ping itself takes to the other kernel where that one still acknowledges."""

SILENCE_MAX: Final = 2.5 * KEEPALIVE
"""A server forgets a client after this much silence; a living one pings well before."""

SEND_MAX: Final = 120.0
"""A server drops a client that does not take 272 KiB (`tls.WRITE_SIZE`) in this time, however alive it is otherwise: what is
on its way to it occupies memory. The slowest line that is served carries 2 KiB a second."""

CLOSE_TIMEOUT: Final = 1.0
"""How long the closing handshake may take before the socket is just closed."""

HANDSHAKES_MAX: Final = 256
"""Connections that may be in their handshake; the oldest of the address that has most gives way to a new one, so that idle
ones block nobody, and many from one place only each other."""

ARRIVALS: Final = 50.0
ARRIVALS_BURST: Final = 100.0
"""Handshakes a second that are begun for one address, and how many at once after a silence: each costs some milliseconds, and
whoever is thrown out may come again. The others of an address wait; those of other addresses do not."""

ARRIVALS_KEPT: Final = 4096
"""Addresses that are remembered."""

HOST_SHARE: Final = 0.75
"""Part of a server's connections that one address may have: the others always find one."""

BACKLOG: Final = 256

REASON_MAX: Final = 200
"""Characters of a closing reason or rejection that are repeated in an error."""

CLOSE_PROTOCOL: Final = 1002
CLOSE_UNSUPPORTED: Final = 1003
"""RFC 6455, 7.4.1."""


class Channel:
    """One connection. Made by `connect` and `serve` only."""

    def __init__(
        self,
        websocket: trio_websocket.WebSocketConnection,
        stream: TlsStream,
        reader: _Reader,
        *,
        server_key: PeerId,
        server_certificate: bytes,
        remote: str,
    ) -> None:
        self._websocket = websocket
        self._stream = stream
        self._reader = reader
        self.server_key = server_key
        """The server's id, proved by TLS; on the server's side its own."""
        self.certificate_hash = certificate_hash(server_certificate)
        """Names the server's certificate; a client signs it, so that nobody in between can pass its words on."""
        self.remote = remote
        """The other end's HOST:PORT as the socket knows it, for logs."""
        self.is_greeted = False
        """For a server's handler to set once its client has said a proper hello. Until then the connection is one of those
        that give way when the server is full, the oldest first: whoever just keeps sockets open blocks nobody."""

    async def send(self, message: bytes) -> None:
        """Send one message. Raises PeerUnavailable when the connection is closed. Cancelled, it breaks the channel."""
        if len(message) > MESSAGE_MAX:
            raise ValueError(f"a message has at most {MESSAGE_MAX} bytes, not {len(message)}")
        try:
            await self._websocket.send_message(message)
        except trio_websocket.ConnectionClosed as exc:
            raise _closed(self.remote, exc) from exc
        except wsproto.utilities.LocalProtocolError as exc:
            raise PeerUnavailable(f"{self.remote}: the connection is closing") from exc
        except trio.Cancelled:
            await trio.aclose_forcefully(self._stream)
            raise

    async def receive(self) -> bytes:
        """Return the next message. Raises PeerUnavailable when the connection is closed, RemoteProtocolError for text."""
        try:
            message = await self._websocket.get_message()
        except trio_websocket.ConnectionClosed as exc:
            raise _closed(self.remote, exc) from exc
        self._stream.delivered()
        if isinstance(message, str):
            await self.aclose(CLOSE_UNSUPPORTED, "binary messages only")
            raise RemoteProtocolError(f"{self.remote} sent a text message")
        return message

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection, telling the other side why; at once when it does not answer."""
        try:
            with trio.move_on_after(CLOSE_TIMEOUT):
                await self._websocket.aclose(code, reason or None)
            await trio.aclose_forcefully(self._stream)
        finally:
            self._reader.scope.cancel()

    @property
    def is_closed(self) -> bool:
        """True once either side has begun to close."""
        return self._websocket.closed is not None

    def last_progress(self) -> float:
        """Return when this connection last carried anything in either direction, on trio's clock."""
        return self._stream.last_progress()

    async def _keep_alive(self) -> None:
        """Ping a silent server; break the channel when it stays silent.

        One ping per silence, because its own acknowledgement is progress: a machine whose process hangs acknowledges every
        ping, and would seem alive for ever if each deadline brought another.
        """
        async with open_background() as nursery:
            while not self.is_closed:
                heard = self._stream.last_heard()
                asked = trio.current_time()
                if asked - heard < KEEPALIVE:
                    await trio.sleep_until(heard + KEEPALIVE)
                    continue
                nursery.start_soon(self._ping)
                if not await self._is_alive(asked):
                    log.info("%s does not answer; dropped", self.remote)
                    await trio.aclose_forcefully(self._stream)
                    return

    async def _ping(self) -> None:
        """Send a ping. It may wait behind a large message; cancelled half sent it would break the channel."""
        # trio-websocket's ping() would also wait for the pong, and keep a word of each that never comes
        with suppress(trio_websocket.ConnectionClosed, wsproto.utilities.LocalProtocolError):
            await self._websocket._send(wsproto.events.Ping())  # noqa: SLF001

    async def _is_alive(self, asked: float) -> bool:
        """Return True once anything has arrived since `asked`, False when PONG_TIMEOUT has passed without progress."""
        while self._stream.last_heard() < asked and not self.is_closed:
            now = trio.current_time()
            end = max(asked, self.last_progress()) + PONG_TIMEOUT
            if now >= end:
                return False
            await trio.sleep_until(min(end, now + KEEPALIVE))  # the next silence begins with the answer
        return True

    async def _watch_silence(self) -> None:
        """Break the channel of a client that has gone without a word, or does not take what it asked for."""
        while True:
            silent = self.last_progress() + SILENCE_MAX
            end = min(silent, self._stream.sending_since + SEND_MAX)
            if end <= trio.current_time():
                break
            await trio.sleep_until(end)
        log.info("%s %s; dropped", self.remote, "is silent" if end == silent else "does not take its answers")
        await trio.aclose_forcefully(self._stream)


class _Reader:
    """Runs a connection's reader task, and keeps what ended it.

    Its parsers let hostile bytes surface as many an exception (UnicodeError for a bad Host, LocalProtocolError for a ping
    after our close); one of them must end this connection and nothing else.
    """

    def __init__(self, websocket: trio_websocket.WebSocketConnection) -> None:
        self._websocket = websocket
        self.scope = trio.CancelScope(shield=True)
        self._ended = trio.Event()
        self._error: Exception | None = None

    async def run(self) -> None:
        """Read until the connection ends or `scope` is cancelled, and not before: closing needs the reader."""
        try:
            with self.scope:
                # what wrap_client_stream and wrap_server_stream start
                await self._websocket._reader_task()  # noqa: SLF001
        except Exception as exc:  # noqa: BLE001 - see the class: whatever it is, it is the other side's doing
            self._error = exc
        finally:
            self._ended.set()

    async def finish(self, step: Callable[[], Awaitable[T]], where: str) -> T:
        """Return `await step()`, or raise PeerUnavailable when the reader ends before that is done."""
        results: list[T] = []
        async with open_background() as nursery:
            nursery.start_soon(self._cancel_at_end, nursery.cancel_scope)
            results.append(await step())
        if not results:
            raise PeerUnavailable(f"{where}: {self._why()}")
        return results[0]

    async def _cancel_at_end(self, scope: trio.CancelScope) -> None:
        await self._ended.wait()
        scope.cancel()

    def _why(self) -> str:
        if isinstance(self._error, trio_websocket.ConnectionRejected):
            text = (self._error.body or b"")[:REASON_MAX].decode("ascii", "replace")
            return f"refused with HTTP status {self._error.status_code} {printable(text)}".rstrip()
        if self._error is not None:
            return f"no websocket there: {printable(str(self._error))}"
        return "the connection was closed during the handshake"


def _websocket(
    stream: TlsStream,
    side: ConnectionType,
    host: str | None = None,
    path: str | None = None,
    subprotocols: list[str] | None = None,
) -> trio_websocket.WebSocketConnection:
    """Return trio-websocket's connection over `stream`, with our framing: its own functions would take wsproto's."""
    return LeanConnection(
        stream,
        Framing(side),
        host=host,
        path=path,
        client_subprotocols=subprotocols,
        message_queue_size=QUEUE_SIZE,
        max_message_size=MESSAGE_MAX,
        receive_buffer_size=RECEIVE_BUFFER,
    )


def printable(text: str) -> str:
    """Return another machine's words so that no terminal acts on them, cut to REASON_MAX characters."""
    return "".join(c if c.isprintable() else "?" for c in text[:REASON_MAX])


def _closed(remote: str, exc: trio_websocket.ConnectionClosed) -> PeerUnavailable:
    reason = exc.reason
    if reason is None:
        return PeerUnavailable(f"{remote}: the connection is closed")
    return PeerUnavailable(
        f"{remote}: the connection was closed ({reason.code} {printable(reason.reason or reason.name)})"
    )


# ---- client ----------------------------------------------------------------------------------------------------------
@asynccontextmanager
async def connect(address: Address, *, subprotocol: str) -> AsyncIterator[Channel]:
    """Connect to `address` for the length of the body; `address.id`, if given, must be the key of who answers.

    A ProtocolError that leaves the body closes the connection with a word to the server. Raises PeerUnavailable when nothing
    fit answers within CONNECT_TIMEOUT.
    """
    async with open_background() as nursery:
        try:
            with trio.fail_after(CONNECT_TIMEOUT):
                channel = await _open(address, subprotocol, nursery)
        except trio.TooSlowError as exc:
            where = format_endpoint(address.host, address.port)
            raise PeerUnavailable(f"{where} did not answer within {CONNECT_TIMEOUT:g} s") from exc
        nursery.start_soon(channel._keep_alive)  # noqa: SLF001 - of this module
        code, reason = 1000, ""
        try:
            yield channel
        except ProtocolError as exc:
            code, reason = CLOSE_PROTOCOL, str(exc)[:100]
            raise
        finally:
            with trio.CancelScope(shield=True):
                await channel.aclose(code, reason)


async def _open(address: Address, subprotocol: str, nursery: trio.Nursery) -> Channel:
    where = format_endpoint(address.host, address.port)
    try:
        transport = await trio.open_tcp_stream(address.host, address.port)
    except (OSError, ValueError) as exc:
        raise PeerUnavailable(f"cannot connect to {where}: {exc}") from exc
    stream = TlsStream(transport, client_context(), server_side=False)
    reader: _Reader | None = None
    try:
        await stream.do_handshake()
        der = stream.server_certificate()
        key = certificate_key(der)
        if address.id is not None and key != address.id:
            raise PeerUnavailable(f"{where} is {key.hex()}, not {address.id.hex()}")
        websocket = _websocket(stream, ConnectionType.CLIENT, where, f"/{key.hex()}", [subprotocol])
        reader = _Reader(websocket)
        nursery.start_soon(reader.run)
        await reader.finish(websocket._open_handshake.wait, where)  # noqa: SLF001 - as wrap_client_stream does
        if websocket.subprotocol != subprotocol:
            raise PeerUnavailable(f"{where} does not speak {subprotocol}")
        return Channel(websocket, stream, reader, server_key=key, server_certificate=der, remote=where)
    except BaseException as exc:  # cancelled or failed, nobody else would close it
        if reader is not None:
            reader.scope.cancel()
        await trio.aclose_forcefully(stream)
        if isinstance(exc, ProtocolError):
            raise PeerUnavailable(f"{where}: {exc}") from exc
        raise


# ---- server ----------------------------------------------------------------------------------------------------------
async def serve(
    host: str,
    port: int,
    seed: bytes,
    subprotocol: str,
    handler: Callable[[Channel], Awaitable[None]],
    *,
    connections_max: int = PEER_CONNECTIONS_MAX,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Serve channels as the node with `seed` until cancelled; `task_status` gets the port (one is picked for 0).

    `handler` runs once per channel, which is closed when it returns. What it raises ends that channel alone: a ProtocolError
    or MalformedError with a word to the other side, PeerUnavailable silently, anything unexpected with a log entry.
    Raises UsageError when the address cannot be listened on.
    """
    server = _Server(seed, subprotocol, handler, connections_max)
    listeners = await _listen(host, port)
    async with open_background() as nursery:
        await nursery.start(partial(trio.serve_listeners, server.take, listeners, handler_nursery=nursery))
        task_status.started(listeners[0].socket.getsockname()[1])
        await trio.sleep_forever()
    raise AssertionError("a server ends only by being cancelled")


async def _listen(host: str, port: int) -> list[trio.SocketListener]:
    try:
        listeners = await trio.open_tcp_listeners(port, host=host, backlog=BACKLOG)
    except (OSError, ValueError) as exc:
        raise UsageError(f"cannot listen on {format_endpoint(host, port)}: {exc}") from exc
    if port == 0:  # each listener got a port of its own; an address has one
        for extra in listeners[1:]:
            await extra.aclose()
        del listeners[1:]
    return listeners


class _Server:
    """Accepts connections and counts them."""

    def __init__(
        self, seed: bytes, subprotocol: str, handler: Callable[[Channel], Awaitable[None]], connections_max: int
    ) -> None:
        self._context = server_context(seed)
        self._certificate = make_certificate(seed)
        self._key = certificate_key(self._certificate)
        self._subprotocol = subprotocol
        self._handler = handler
        self._connections_max = connections_max
        self._open: dict[Channel, trio.CancelScope] = {}
        """Being served, the oldest first."""
        self._hosts: Counter[str] = Counter()
        self._handshakes: dict[int, tuple[str, trio.CancelScope]] = {}
        self._last_handshake = 0
        self._arrivals: OrderedDict[str, tuple[trio.Lock, TokenBucket]] = OrderedDict()

    async def take(self, transport: trio.SocketStream) -> None:
        """Serve one connection; raises nothing but cancellation."""
        remote = _remote_of(transport)
        stream = TlsStream(transport, self._context, server_side=True)
        try:
            async with open_background() as nursery:
                channel = await self._shake_hands(transport, stream, nursery, remote)
                if channel is not None:
                    await self._serve(channel, nursery)
        except FsdecloudError as exc:
            log.debug("%s: %s", remote, exc)
        except Exception as exc:  # a bug while serving one connection must not end the others
            log.error("serving %s failed unexpectedly", remote, exc_info=exc)
        finally:
            await trio.aclose_forcefully(stream)

    async def _shake_hands(
        self, transport: trio.SocketStream, stream: TlsStream, nursery: trio.Nursery, remote: str
    ) -> Channel | None:
        if len(self._handshakes) >= HANDSHAKES_MAX:
            self._give_up_handshake()
        self._last_handshake += 1
        number = self._last_handshake
        with trio.move_on_after(CONNECT_TIMEOUT) as scope:
            self._handshakes[number] = client_group(remote), scope
            try:
                await self._wait_turn(transport, client_group(remote))
                return await self._accept(stream, nursery, remote)
            finally:
                self._handshakes.pop(number, None)
        log.debug("%s: the handshake was not finished", remote)
        return None

    async def _wait_turn(self, transport: trio.SocketStream, host: str) -> None:
        """Wait until a client has said something, and until its address may be listened to."""
        await trio.lowlevel.wait_readable(transport.socket)
        turn = self._arrivals.get(host)
        if turn is None:
            turn = trio.Lock(), TokenBucket(ARRIVALS, ARRIVALS_BURST, trio.current_time())
            self._arrivals[host] = turn
            if len(self._arrivals) > ARRIVALS_KEPT:
                self._arrivals.popitem(last=False)
        self._arrivals.move_to_end(host)
        lock, bucket = turn
        async with lock:  # one of them sleeps, the others wait for it
            await trio.sleep(bucket.wait(trio.current_time()))
            bucket.take(1, trio.current_time())

    def _give_up_handshake(self) -> None:
        """End the oldest handshake of the address that has most of them."""
        counts = Counter(host for host, _scope in self._handshakes.values())
        worst = max(counts, key=counts.__getitem__)
        number = next(number for number, (host, _scope) in self._handshakes.items() if host == worst)
        self._handshakes.pop(number)[1].cancel()

    async def _accept(self, stream: TlsStream, nursery: trio.Nursery, remote: str) -> Channel | None:
        await stream.do_handshake()
        websocket = _websocket(stream, ConnectionType.SERVER)
        reader = _Reader(websocket)
        nursery.start_soon(reader.run)
        channel = None
        try:
            request = await reader.finish(websocket._get_request, remote)  # noqa: SLF001 - as wrap_server_stream does
            if any(name.lower() == b"origin" for name, _ in request.headers):
                await request.reject(403, body=b"not for browsers")
            elif request.path != f"/{self._key.hex()}":
                await request.reject(404, body=b"another node is meant")
            elif self._subprotocol not in request.proposed_subprotocols:
                await request.reject(400, body=f"only {self._subprotocol} is spoken here".encode("ascii"))
            elif self._hosts[client_group(remote)] >= max(1, int(HOST_SHARE * self._connections_max)):
                await request.reject(503, body=b"too many connections from your address")
            elif not self._has_room():  # last: who comes in may cost another one its place
                await request.reject(503, body=b"too many connections")
            else:
                await request.accept(subprotocol=self._subprotocol)
                channel = Channel(
                    websocket,
                    stream,
                    reader,
                    server_key=self._key,
                    server_certificate=self._certificate,
                    remote=remote,
                )
        finally:
            if channel is None:
                reader.scope.cancel()
        return channel

    def _has_room(self) -> bool:
        """Return whether one more can be served, if need be instead of one that has not said hello."""
        if len(self._open) < self._connections_max:
            return True
        silent = next((channel for channel in self._open if not channel.is_greeted), None)
        if silent is None:
            return False
        log.debug("%s: no hello yet, and others are waiting", silent.remote)
        self._open.pop(silent).cancel()
        return True

    async def _serve(self, channel: Channel, nursery: trio.Nursery) -> None:
        scope = self._open[channel] = trio.CancelScope()
        host = client_group(channel.remote)
        self._hosts[host] += 1
        nursery.start_soon(channel._watch_silence)  # noqa: SLF001 - of this module
        code, reason = 1000, ""
        try:
            with scope:
                await self._handler(channel)
        except (ProtocolError, MalformedError) as exc:
            log.info("dropped %s: %s", channel.remote, exc)
            code, reason = CLOSE_PROTOCOL, str(exc)[:100]
        except PeerUnavailable as exc:
            log.debug("%s", exc)
        finally:
            self._open.pop(channel, None)
            self._hosts[host] -= 1
            if not self._hosts[host]:
                del self._hosts[host]
            with trio.CancelScope(shield=True):
                await channel.aclose(code, reason)


def _remote_of(transport: trio.SocketStream) -> str:
    try:
        host, port, *_ = transport.socket.getpeername()
    except OSError:  # it has gone already
        return "a client"
    return format_endpoint(host, port)
