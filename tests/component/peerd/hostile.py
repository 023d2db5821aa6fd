"""A client of a peer that says whatever it likes: websocket frames by hand, over TLS, over a socket."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio
from wsproto import ConnectionType
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, RejectConnection, Request

from fsdecloud.net import tls
from fsdecloud.net.address import Address
from fsdecloud.net.frames import Framing
from fsdecloud.net.tls import TlsStream
from fsdecloud.wire import peer as wire
from fsdecloud.wire.session import ClientSession


@asynccontextmanager
async def raw(address: Address, source: str | None = None) -> AsyncIterator[TlsStream]:
    """A TLS connection to a peer, from an address of our own if one is named, without a websocket."""
    socket = await trio.open_tcp_stream(address.host, address.port, local_address=source)
    stream = TlsStream(socket, tls.client_context(), server_side=False)
    try:
        await stream.do_handshake()
        yield stream
    finally:
        await trio.aclose_forcefully(stream)


class Hostile:
    """A websocket to a peer. What is sent is kept in `sent`, as bytes under TLS."""

    def __init__(self, stream: TlsStream) -> None:
        self.stream = stream
        self.framing = Framing(ConnectionType.CLIENT)
        self.frames: deque[bytes] = deque()
        self.sent = bytearray()
        self.received = 0
        self.closed: tuple[int, str] | None = None
        """Code and reason with which the peer closed; (1006, "") when the connection just ended."""
        self.rejected = 0
        """HTTP status of a refusal."""
        self.headers: list[tuple[bytes, bytes]] = []

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.sent += data
        await self.stream.send_all(data)

    async def send_frame(self, frame: bytes) -> None:
        """Send one message of the peer protocol."""
        await self.send(self.framing.send(BytesMessage(frame)))

    async def upgrade(self, address: Address, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """Ask for the websocket; a refusal is in `rejected`."""
        assert address.id is not None
        request = Request(
            host="h",
            target="/" + address.id.hex(),
            subprotocols=[wire.SUBPROTOCOL],
            extra_headers=list(headers),
        )
        await self.send(self.framing.send(request))
        while self.framing.connection is None and not self.rejected and self.closed is None:
            await self._read()

    async def receive(self) -> bytes | None:
        """Return the next message, None once the peer has closed."""
        while not self.frames and self.closed is None:
            await self._read()
        return self.frames.popleft() if self.frames else None

    async def wait_closed(self) -> tuple[int, str]:
        """Read until the peer closes; return code and reason."""
        while self.closed is None:
            await self._read()
            self.frames.clear()
        return self.closed

    async def _read(self) -> None:
        try:
            data = await self.stream.receive_some()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            data = b""
        if not data:
            self.closed = self.closed or (1006, "")
            return
        self.received += len(data)
        self.framing.receive_data(bytes(data))
        for event in self.framing.events():
            if isinstance(event, BytesMessage):
                self.frames.append(bytes(event.data))
            elif isinstance(event, CloseConnection):
                self.closed = (event.code, event.reason or "")
            elif isinstance(event, AcceptConnection):
                assert not event.extensions
                self.headers = list(event.extra_headers)
            elif isinstance(event, RejectConnection):
                self.rejected = event.status_code

    async def greet(self, address: Address, network: bytes, deal_seed: bytes | None) -> ClientSession:
        """Do what an honest client does until it is welcome."""
        assert address.id is not None
        session = ClientSession(
            peer=address.id,
            network=network,
            nonce=os.urandom(32),
            certificate_hash=tls.certificate_hash(self.stream.server_certificate()),
        )
        session.receive(await self.receive() or b"")
        await self.send_frame(session.hello(deal_seed))
        session.receive(await self.receive() or b"")
        return session


@asynccontextmanager
async def hostile(
    address: Address, headers: Sequence[tuple[bytes, bytes]] = (), source: str | None = None
) -> AsyncIterator[Hostile]:
    """A websocket to a peer, from an address of our own if one is named, before the first message."""
    async with raw(address, source) as stream:
        client = Hostile(stream)
        await client.upgrade(address, headers)
        yield client
