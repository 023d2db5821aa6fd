"""Which errno a program sees for an error of ours, and the guard around every FUSE handler.

pyfuse3 lets only FUSEError through; anything else would end the mount with its callers hanging (fuse.md, 4). So an error of
ours becomes its errno, the network's failures become EIO, and an unexpected exception is logged, counted and EIO: a bug
costs one request, never the mount.
"""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import pyfuse3

from fsdecloud.errors import FsdecloudError, FsError, StoreFull

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


class CountsErrors(Protocol):
    """What the guard reports to."""

    def count_error(self, where: str, error: BaseException, *, unexpected: bool) -> None:
        """Note a failed request."""


S = TypeVar("S", bound=CountsErrors)


def errno_of(error: FsdecloudError) -> int:
    """Return the errno for an error of ours."""
    if isinstance(error, FsError):
        return error.ERRNO
    if isinstance(error, StoreFull):
        return errno.ENOSPC
    return errno.EIO


def guarded(
    handler: Callable[Concatenate[S, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """Wrap a handler so that nothing but FUSEError leaves it."""
    name = handler.__name__

    async def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await handler(self, *args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except FsError as exc:
            raise pyfuse3.FUSEError(exc.ERRNO) from exc
        except FsdecloudError as exc:
            self.count_error(name, exc, unexpected=False)
            raise pyfuse3.FUSEError(errno_of(exc)) from exc
        except Exception as exc:  # the guard of design.md: a bug of ours must not end the mount
            log.exception("unexpected error in %s", name)
            self.count_error(name, exc, unexpected=True)
            raise pyfuse3.FUSEError(errno.EIO) from exc

    functools.update_wrapper(call, handler)
    return call
