"""One open connection to a peer: its requests, its window, and who waits for which answer.

Deadlines watch progress, not size: a request fails when its connection has carried nothing for REQUEST_TIMEOUT, neither
bytes from the peer nor TCP's word that it took ours. On a slow line a MiB may take minutes and still arrive.

A cancelled request is abandoned: what of it is on its way goes out whole, and its answer is dropped (fault 94).

Not here: opening connections and opening them again (`net.pool`), what is said (`wire.peer`) and when (`wire.session`).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import trio

from fsdecloud.errors import FsdecloudError, PeerUnavailable, RemoteTimeout
from fsdecloud.limits import REQUEST_TIMEOUT
from fsdecloud.net.nursery import open_background
from fsdecloud.net.websocket import Channel
from fsdecloud.wire import peer as wire
from fsdecloud.wire.session import ClientSession

IDLE_TIMEOUT: Final = 900.0
"""A connection without requests is closed after this, unless it is one of those that are kept. Opening another takes three
round trips, which the first read after a pause would wait for; keeping one open takes a ping now and then
(`limits.KEEPALIVE`)."""

QUIET: Final = 1.0
"""Seconds without an answer after which a connection may have died without anybody noticing."""

REQUEST_MAX: Final = 600.0
"""No request takes longer, however well its line does."""


class Link:
    """A connection that is open. `on_idle` is called when it was idle for long, and says whether it is to be closed."""

    def __init__(
        self,
        channel: Channel,
        session: ClientSession,
        name: str,
        on_idle: Callable[[], bool],
        on_welcome: Callable[[], None],
    ) -> None:
        self._channel = channel
        self._session = session
        self._name = name
        self._on_idle = on_idle
        self._on_welcome = on_welcome
        self._window = Window(session.window, wire.REQUESTS_MAX)
        self._outgoing: deque[bytes] = deque()
        self._wake_writer = trio.Event()
        self._wake_watch = trio.Event()
        self._watch_at = 0.0
        """When the watch looks next; whoever waits from now on needs it in REQUEST_TIMEOUT."""
        self._used = trio.current_time()
        self._error: FsdecloudError | None = None
        self.waiting: dict[int, Waiting] = {}

    @property
    def version(self) -> int:
        """The version that is spoken."""
        return self._session.version

    @property
    def is_quiet(self) -> bool:
        """Whether no answer has come for some time."""
        return trio.current_time() >= self._used + QUIET

    async def call(self, build: Callable[[int], wire.Request], size: int) -> wire.Answer:
        """Send a request when the window allows, and return its answer. Raises what ended the connection."""
        self._window.is_wanted += 1
        try:
            await self._window.acquire(size)
        finally:
            self._window.is_wanted -= 1
        self._check()
        number = self._session.next_number()
        now = trio.current_time()
        waiting = self.waiting[number] = Waiting(size, now)
        if self._watch_at > now + REQUEST_TIMEOUT:
            self._wake_watch.set()
        self._outgoing.append(self._session.request(build(number)))
        self._wake_writer.set()
        await waiting.done.wait()
        if waiting.answer is None:
            self._check()
        assert waiting.answer is not None
        return waiting.answer

    def _check(self) -> None:
        if self._error is not None:
            raise type(self._error)(str(self._error))  # an instance of its own for each caller's traceback

    def fail(self, error: FsdecloudError) -> None:
        """Let everybody who waits fail with `error`."""
        self._error = error
        self._window.open()
        for waiting in self.waiting.values():
            waiting.done.set()
        self.waiting.clear()

    async def run(self) -> None:
        """Carry requests; return when the connection was idle for long. Raises what else ends it."""
        async with open_background() as nursery:
            nursery.start_soon(self._write)
            nursery.start_soon(self._read)
            await self._watch()

    async def _read(self) -> None:
        while True:
            answer = self._session.receive(await self._channel.receive())
            assert not isinstance(answer, wire.Challenge)
            if isinstance(answer, wire.Welcome):
                self._on_welcome()
                self._window.grow(answer.window)
                continue
            waiting = self.waiting.pop(answer.request)
            self._window.release(waiting.size)
            self._used = trio.current_time()
            waiting.answer = answer
            waiting.done.set()

    async def _write(self) -> None:
        with suppress(PeerUnavailable):  # the reader meets it as well, and says why
            while True:
                while self._outgoing:
                    await self._channel.send(self._outgoing.popleft())
                self._wake_writer = trio.Event()
                await self._wake_writer.wait()

    async def _watch(self) -> None:
        """Return when nobody has used the connection for long. Raises RemoteTimeout when those who do wait in vain."""
        while True:
            now = trio.current_time()
            if self.waiting:
                first = next(iter(self.waiting.values())).since
                end = min(max(first, self._channel.last_progress()) + REQUEST_TIMEOUT, first + REQUEST_MAX)
                if now >= end:
                    raise RemoteTimeout(f"{self._name} does not answer: no progress for {REQUEST_TIMEOUT:g} s")
            else:
                end = self._used + IDLE_TIMEOUT
                if now >= end and not self._window.is_wanted:
                    if self._on_idle():
                        return
                    end = now + IDLE_TIMEOUT
            self._wake_watch = trio.Event()
            self._watch_at = min(end, now + IDLE_TIMEOUT) if end > now else now + REQUEST_TIMEOUT
            with trio.move_on_at(self._watch_at):
                await self._wake_watch.wait()


class Waiting:
    """A request without an answer."""

    __slots__ = ("answer", "done", "since", "size")

    def __init__(self, size: int, since: float) -> None:
        self.size = size
        self.since = since
        self.done = trio.Event()
        self.answer: wire.Answer | None = None


class Window:
    """How many bytes and requests may be unanswered; first come, first served."""

    def __init__(self, size: int, count: int) -> None:
        self._size = size
        self._count = count
        self._queue: OrderedDict[trio.Event, int] = OrderedDict()
        self._is_open = False
        self.is_wanted = 0
        """Callers within `acquire`."""

    async def acquire(self, size: int) -> None:
        """Wait for room and take it."""
        if not self._queue and self._fits(size):
            await trio.lowlevel.checkpoint_if_cancelled()
            self._take(size)
            return
        turn = trio.Event()
        self._queue[turn] = size
        try:
            await turn.wait()
        except trio.Cancelled:
            if self._queue.pop(turn, None) is None:
                self.release(size)
            raise

    def release(self, size: int) -> None:
        """Give room back, and to whoever waits for it."""
        self._count += 1
        self.grow(size)

    def grow(self, size: int) -> None:
        """Add room for bytes, and give it to whoever waits for it."""
        self._size += size
        while self._queue:
            turn, wanted = next(iter(self._queue.items()))
            if not self._fits(wanted):
                return
            del self._queue[turn]
            self._take(wanted)
            turn.set()

    def open(self) -> None:
        """Let everybody through: the connection has ended."""
        self._is_open = True
        self.release(0)

    def _fits(self, size: int) -> bool:
        return self._is_open or (size <= self._size and self._count > 0)

    def _take(self, size: int) -> None:
        self._size -= size
        self._count -= 1
