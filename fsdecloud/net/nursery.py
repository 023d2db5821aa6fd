"""Nurseries that recur: background tasks whose body fails with its own exception, and the first of several waits.

A trio nursery wraps whatever leaves it in an exception group. A context manager that runs tasks of its own behind its
body (a connection, a pool) is not something its user should have to know about.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def open_background() -> AsyncIterator[trio.Nursery]:
    """Yield a nursery whose tasks are cancelled when the body ends.

    A single exception, of the body or of a task, is raised as itself; several as an exception group.
    """
    single: BaseException
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        rest = [exc for exc in group.exceptions if not isinstance(exc, trio.Cancelled)]
        if len(rest) > 1:
            raise
        single = rest[0] if rest else group.exceptions[0]
    else:
        return
    try:
        raise single
    finally:
        del single  # a frame that holds the exception that holds the frame would live until the next collection


async def wait_first(seconds: float, *waits: Callable[[], Awaitable[object]]) -> None:
    """Return when the first of these has returned, or after so many seconds; the others are cancelled."""

    async def one(wait: Callable[[], Awaitable[object]], scope: trio.CancelScope) -> None:
        await wait()
        scope.cancel()

    with trio.move_on_after(seconds) as scope:
        async with trio.open_nursery() as nursery:
            for wait in waits:
                nursery.start_soon(one, wait, scope)
