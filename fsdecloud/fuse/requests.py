"""The requests that wait, their deadline, and who looks after them.

A handler that completes without waiting never comes here. One that waits is entered in a table, and gets a cancel scope
as soon as it has none of its own open (a scope that is entered under another's would be left in the wrong order); scopes of
its own are not longer than the deadline. A watchdog that runs only while requests wait logs those that take long.

Called only from the event loop.
"""

from __future__ import annotations

import errno
import logging
import math
from collections.abc import Collection, Coroutine, Generator
from types import coroutine
from typing import Any, Final, TypeVar, cast

import pyfuse3
import trio

from fsdecloud import limits
from fsdecloud.mountoptions import MountOptions

log = logging.getLogger(__name__)

R = TypeVar("R")

_LOOK: Final = limits.SLOW_REQUEST
"""Seconds between two looks at the waiting requests."""


class Request:
    """One waiting request."""

    __slots__ = ("errno", "handler", "is_slow", "scope", "started")

    def __init__(self, handler: str) -> None:
        self.handler = handler
        self.started = trio.current_time()
        self.scope: trio.CancelScope | None = None
        self.is_slow = False
        self.errno = errno.ETIMEDOUT
        """What it is answered when it is ended before its time."""


class Requests:
    """All requests of one mount that wait for something."""

    def __init__(self, deadline: float = limits.HANDLER_DEADLINE) -> None:
        self._deadline = deadline
        self._outer = math.inf
        self._waiting: set[Request] = set()
        self._wake = trio.Event()
        self.slow = 0
        """Requests that took longer than limits.SLOW_REQUEST."""
        self.timed_out = 0
        """Requests that were ended by the deadline."""

    @classmethod
    def of(cls, options: MountOptions) -> Requests:
        """Return a table with the deadline of a mount: what `-o timeout` grants a fetch must be possible."""
        return cls(max(options.timeout, limits.HANDLER_DEADLINE))

    def __len__(self) -> int:
        return len(self._waiting)

    def start(self) -> None:
        """Note the scopes that all handlers run in; called where they will run."""
        self._outer = trio.current_effective_deadline()

    @coroutine
    def wait(self, handler: str, work: Coroutine[Any, Any, R], message: object) -> Generator[object, Any, R]:
        """Finish `work`, which has begun to wait (`message` is for trio). Raises FUSEError ETIMEDOUT past the deadline."""
        request = Request(handler)
        self._waiting.add(request)
        if len(self._waiting) == 1:
            self._wake.set()
        try:
            while not self._is_bare():
                message = yield from _step(work, message)
            with trio.CancelScope(deadline=request.started + self._deadline) as request.scope:  # noqa: ASYNC100
                while True:
                    message = yield from _step(work, message)
        except _Done as done:
            return cast("R", done.value)
        finally:
            self._waiting.discard(request)
            self._note_slow(request)
        if request.errno == errno.ETIMEDOUT:
            self.timed_out += 1
            log.warning("%s was not done within %g s", handler, self._deadline)
        raise pyfuse3.FUSEError(request.errno)

    def _is_bare(self) -> bool:
        """Whether the handler has no nursery and no scope with a deadline open."""
        return not trio.lowlevel.current_task().child_nurseries and trio.current_effective_deadline() == self._outer

    def interrupt(self, handlers: Collection[str], number: int) -> None:
        """Answer these handlers' waiting requests with an errno, now."""
        for request in self._waiting:
            if request.handler in handlers and request.scope is not None:
                request.errno = number
                request.scope.cancel()

    async def run_watchdog(self) -> None:
        """Log and count requests that take long, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            while self._waiting:
                await trio.sleep(_LOOK)
                for request in self._waiting:
                    self._note_slow(request)

    def _note_slow(self, request: Request) -> None:
        taken = trio.current_time() - request.started
        if taken >= limits.SLOW_REQUEST and not request.is_slow:
            request.is_slow = True
            self.slow += 1
            log.warning("%s has taken %.0f s by now", request.handler, taken)


class _Done(Exception):
    """The handler returned."""

    def __init__(self, value: object) -> None:
        self.value = value


def _step(work: Coroutine[Any, Any, object], message: object) -> Generator[object, Any, object]:
    """Let trio have `message`, and `work` what trio answers; return the next message. Raises _Done at the end."""
    try:
        try:
            answer = yield message
        except BaseException as exc:  # noqa: BLE001 - trio's way to tell, for instance, of cancellation
            return work.throw(exc)
        return work.send(answer)
    except StopIteration as stop:
        raise _Done(stop.value) from None
