"""How a message becomes a websocket frame: wsproto, with a short way for whole binary messages.

wsproto copies a message six times on its way out and five times on its way in, and masks it with strided slices in
Python: 5 ms of processor for a MiB from client to server, more than all other work on it together. `Framing` is a
WSConnection that builds and takes apart unfragmented binary frames itself, with one copy and a masking function in C (that
of the `websockets` package, 20 times faster); handshake, control frames, fragments and whatever else looks unusual go to
wsproto unchanged, byte for byte and in order.

Sans-IO. Sources: RFC 6455, sections 5.2 (frames) and 5.3 (masking: a fresh unpredictable key for every frame).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from typing import Final

from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import BytesMessage, Event, RejectConnection
from wsproto.frame_protocol import XorMaskerSimple
from wsproto.utilities import RemoteProtocolError

from fsdecloud.limits import KIB, MESSAGE_MAX

try:
    from websockets.speedups import apply_mask
except ImportError:  # a build of `websockets` without its C module: slow, and as right

    def apply_mask(data: bytes | bytearray | memoryview, mask: bytes | bytearray) -> bytes:
        """Return `data` with the 4 bytes of `mask` repeated over it, by exclusive or."""
        return bytes(XorMaskerSimple(bytes(mask)).process(bytearray(data)))


_BINARY: Final = 0x82
"""First byte of a binary frame that is a whole message: FIN, no reserved bit, opcode 2."""

_MASKED: Final = 0x80
_HEAD_MAX: Final = 16 * KIB
"""Largest HTTP head: what h11 allows one that comes in pieces."""

_HELD_MAX: Final = 64 * KIB
"""Bytes that a client may send before its handshake is accepted."""

_ODD_MAX: Final = 256
"""Frames that are no whole message (fragments, control frames) in what is received at once, at most RECEIVE_BUFFER bytes:
each costs 100 times what its bytes cost, and an honest side sends a ping in a while. Fragments of 1 KiB still pass."""


def encode_binary(data: bytes, mask: bytes) -> bytes:
    """Return the frame of one whole binary message; `mask` is 4 random bytes from a client, b"" from a server."""
    return b"".join(_parts(data, mask))


def _parts(data: bytes, mask: bytes) -> tuple[bytes, bytes]:
    """Return its head and its payload apart: joining them would copy the message once more."""
    length = len(data)
    bit = _MASKED if mask else 0
    if length < 126:
        head = bytes((_BINARY, bit | length))
    elif length < 1 << 16:
        head = bytes((_BINARY, bit | 126)) + length.to_bytes(2, "big")
    else:
        head = bytes((_BINARY, bit | 127)) + length.to_bytes(8, "big")
    return head + mask, apply_mask(data, mask) if mask else data


class Framing(WSConnection):
    """One end of a connection, as trio-websocket drives it. It never sends fragments."""

    def __init__(self, connection_type: ConnectionType) -> None:
        super().__init__(connection_type)
        self._head = bytearray()
        self._head_passed = False
        self._ready: deque[BytesMessage | bytes] = deque()
        self._start = bytearray()
        """The beginning of a frame whose header is not complete yet."""
        self._passing = 0
        """Payload bytes of the present frame that still go to wsproto."""
        self._missing = 0
        """Payload bytes of the present whole message that are still to come."""
        self._parts: list[bytes | bytearray | memoryview] = []
        self._mask = b""
        self._in_fragments = False
        self._odd = 0
        """Frames in what is being cut that are no whole message."""

    # ---- out -------------------------------------------------------------------------------------------------------
    def send_message(self, data: bytes) -> tuple[bytes, bytes]:
        """Return the frame of a whole binary message, its head and its payload, while the connection is open."""
        return _parts(data, os.urandom(4) if self.client else b"")

    def send(self, event: Event) -> bytes:
        """Return the bytes of `event`; see WSConnection.send."""
        if isinstance(event, BytesMessage) and event.message_finished and self.state is ConnectionState.OPEN:
            return b"".join(self.send_message(bytes(event.data)))
        was_open = self.connection is not None
        data = super().send(event)
        if self.connection is not None and not was_open:
            held, self._head = bytes(self._head), bytearray()
            self._cut(held)
        return data

    # ---- in --------------------------------------------------------------------------------------------------------
    def receive_data(self, data: bytes | None) -> None:
        """Take bytes from the other side; see WSConnection.receive_data."""
        if data is None:
            super().receive_data(None)
        elif self.connection is None:
            self._receive_head(data)
        else:
            self._cut(data)

    def events(self) -> Iterator[Event]:  # type: ignore[override]  # it says Generator, and is only iterated
        """Yield what arrived, in order; see WSConnection.events."""
        yield from super().events()
        while self._ready:
            item = self._ready.popleft()
            if isinstance(item, BytesMessage):
                if self.state in (ConnectionState.OPEN, ConnectionState.LOCAL_CLOSING):
                    yield item
            elif self.state is not ConnectionState.CLOSED:
                super().receive_data(item)
                yield from super().events()

    def _receive_head(self, data: bytes) -> None:
        """Give the HTTP head to wsproto and keep what follows it, so that no frame begins inside wsproto."""
        if self._head_passed and self.state is ConnectionState.REJECTING:
            super().receive_data(data)  # the body of a refusal
            return
        self._head += data
        if self._head_passed:
            if len(self._head) > _HELD_MAX:
                raise RemoteProtocolError("frames before the handshake is done")
            return
        end = self._head.find(b"\r\n\r\n") + 4
        if max(end, len(self._head) if end < 4 else 0) > _HEAD_MAX:
            hint = None if self.client else RejectConnection(status_code=431)
            raise RemoteProtocolError("an HTTP head that large", event_hint=hint)
        if end < 4:
            return
        self._head_passed = True
        head, self._head = bytes(self._head[:end]), self._head[end:]
        super().receive_data(head)
        rest = bytes(self._head)
        if self.connection is not None:
            self._head = bytearray()
            self._cut(rest)
        elif rest and self.state is ConnectionState.REJECTING:
            self._head = bytearray()
            super().receive_data(rest)

    def _cut(self, data: bytes | bytearray) -> None:
        """Cut `data` into messages and what wsproto shall see. Raises RemoteProtocolError for a flood of odd frames."""
        self._odd = 0
        view = memoryview(self._start + data if self._start else data)
        self._start = bytearray()
        while view:
            if self._passing:
                self._ready.append(bytes(view[: self._passing]))
                view = self._skip_passing(view)
            elif self._missing:
                view = self._take_payload(view)
            else:
                size = self._begin_frame(view)
                if not size:
                    self._start = bytearray(view)
                    return
                view = view[size:]

    def _skip_passing(self, view: memoryview) -> memoryview:
        rest = view[self._passing :]
        self._passing = max(0, self._passing - len(view))
        return rest

    def _begin_frame(self, view: memoryview) -> int:
        """Read a frame's header and return its size, 0 when it is not complete."""
        if len(view) < 2:
            return 0
        first, second = view[0], view[1]
        short = second & 0x7F
        extended = {126: 2, 127: 8}.get(short, 0)
        masked = 4 if second & _MASKED else 0
        size = 2 + extended + masked
        if len(view) < size:
            return 0
        length = int.from_bytes(view[2 : 2 + extended], "big") if extended else short
        is_minimal = length >= (0, 0, 126, 0, 0, 0, 0, 0, 1 << 16)[extended]
        is_plain = first == _BINARY and is_minimal and bool(masked) != self.client and length <= MESSAGE_MAX
        if is_plain and not self._in_fragments:
            self._mask = bytes(view[size - 4 : size]) if masked else b""
            self._missing = length
            if not length:
                self._ready.append(BytesMessage(data=b""))
        else:
            if first & 0x0F < 8:
                self._in_fragments = not first & 0x80
            self._odd += 1
            if self._odd > _ODD_MAX:
                raise RemoteProtocolError("a flood of frames that are no messages")
            self._ready.append(bytes(view[:size]))
            self._passing = length
        return size

    def _take_payload(self, view: memoryview) -> memoryview:
        part = view[: self._missing]
        rest = view[self._missing :]
        self._missing -= len(part)
        if self._mask:
            turn = len(part) % 4
            self._parts.append(apply_mask(part, self._mask))
            self._mask = self._mask[turn:] + self._mask[:turn]
        else:
            self._parts.append(part)
        if not self._missing:
            self._ready.append(BytesMessage(data=b"".join(self._parts)))
            self._parts.clear()
        return rest
