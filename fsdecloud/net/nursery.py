"""A nursery for background tasks that lets the body's own exception through unwrapped.

A trio nursery wraps whatever leaves it in an exception group. A context manager that runs tasks of its own behind its
body (a connection, a pool) is not something its user should have to know about.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
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
