"""trio-websocket's connection with fewer turns of the event loop for each message.

A turn costs 50 to 100 microseconds of processor in a process that has little to do at a time, as a peer among many on one
machine: as much as encrypting a shard. trio-websocket spends one for its lock around the stream, which has a lock of its
own here (`tls.TlsStream`), and two for handing a message from the task that reads to the one that waits for it.

Everything here runs in the trio thread; state changes between awaits only.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

import trio
import trio_websocket
from wsproto.connection import ConnectionState
from wsproto.events import BytesMessage, Event

from fsdecloud.limits import KIB
from fsdecloud.net.frames import Framing
from fsdecloud.net.tls import TlsStream

_LARGE: Final = 16 * KIB
"""A message of this size costs less as two TLS records than as a copy: those have at most 16 KiB (RFC 8446, 5.1)."""


class LeanConnection(trio_websocket.WebSocketConnection):
    """A WebSocketConnection over a stream whose `send_all` may be called by several tasks at once."""

    def __init__(self, *arguments: Any, message_queue_size: int, **options: Any) -> None:
        """As WebSocketConnection's; `message_queue_size` messages wait at most to be taken."""
        super().__init__(*arguments, message_queue_size=message_queue_size, **options)
        inbox = Inbox(message_queue_size)
        self._send_channel = inbox  # type: ignore[assignment]  # what of it is used, this has
        self._recv_channel = inbox.reader  # type: ignore[assignment]

    async def _send(self, event: Event) -> None:
        """Send an event; the frames of several tasks go out whole, in the order of these calls."""
        framing = self._wsproto
        assert isinstance(framing, Framing)
        head = b""
        if isinstance(event, BytesMessage) and len(event.data) >= _LARGE and framing.state is ConnectionState.OPEN:
            head, data = framing.send_message(bytes(event.data))
        else:
            data = framing.send(event)
        stream = self._stream
        assert isinstance(stream, TlsStream)
        try:
            await stream.send_all(data, head=head)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await self._abort_web_socket()
            reason = self.closed
            assert reason is not None
            raise trio_websocket.ConnectionClosed(reason) from None


class Inbox:
    """What has arrived and was not taken yet: a memory channel of trio that does not pass through the event loop when it has
    room, or something in it. One task sends, one receives; the other end of it is `reader`."""

    def __init__(self, size: int) -> None:
        """At most `size` messages wait."""
        self._size = size
        self._items: deque[str | bytes] = deque()
        self._changed = trio.Event()
        self._has_ended = False
        self.reader = Reader(self)

    async def send(self, item: str | bytes) -> None:
        """Put a message in, when there is room. Raises ClosedResourceError after `aclose`, BrokenResourceError after the
        reader's."""
        while len(self._items) >= self._size and not self._has_ended and not self.reader.is_closed:
            await self._wait()
        if self._has_ended:
            raise trio.ClosedResourceError
        if self.reader.is_closed:
            raise trio.BrokenResourceError
        self._items.append(item)
        self.change()

    async def take(self) -> str | bytes:
        """For `reader`."""
        while not self._items and not self._has_ended and not self.reader.is_closed:
            await self._wait()
        if self.reader.is_closed:
            raise trio.ClosedResourceError
        if not self._items:
            raise trio.EndOfChannel
        item = self._items.popleft()
        if len(self._items) == self._size - 1:
            self.change()
        return item

    def clear(self) -> None:
        """Forget what was not taken."""
        self._items.clear()

    def change(self) -> None:
        """Have whoever waits look again."""
        self._changed.set()

    async def _wait(self) -> None:
        self._changed = trio.Event()
        await self._changed.wait()

    async def aclose(self) -> None:
        """Nothing comes any more; what is there may be taken."""
        self._has_ended = True
        self.change()
        await trio.lowlevel.checkpoint()

    async def __aenter__(self) -> Inbox:
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        await self.aclose()


class Reader:
    """The end of an Inbox that takes from it."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self.is_closed = False

    async def receive(self) -> str | bytes:
        """Return the next message. Raises EndOfChannel when there will be none, ClosedResourceError after `aclose`."""
        return await self._inbox.take()

    async def aclose(self) -> None:
        """Nothing is taken any more."""
        self.is_closed = True
        self._inbox.clear()
        self._inbox.change()
        await trio.lowlevel.checkpoint()
