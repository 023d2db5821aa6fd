"""Which errno a program sees for an error of ours, and the guard around every FUSE handler.

pyfuse3 lets only FUSEError through; anything else would end the mount with its callers hanging (fuse.md, 4). So an error of
ours becomes its errno, the network's failures become EIO or ETIMEDOUT, and an unexpected exception is logged, counted and
EIO: a bug costs one request, never the mount. A request that waits for too long is answered ETIMEDOUT (`requests`).
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable, Coroutine, Generator
from types import coroutine
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar

import pyfuse3

from fsdecloud.driver.supervisor import first_leaf
from fsdecloud.errors import FsdecloudError, FsError, RemoteTimeout, StoreFull
from fsdecloud.fuse.requests import Requests

P = ParamSpec("P")
R = TypeVar("R")


class CountsErrors(Protocol):
    """What the guard reports to."""

    requests: Requests

    def count_error(self, where: str, error: Exception, *, unexpected: bool) -> None:
        """Note a failed request."""


S = TypeVar("S", bound=CountsErrors)


def errno_of(error: FsdecloudError) -> int:
    """Return the errno for an error of ours."""
    if isinstance(error, FsError):
        return error.ERRNO
    if isinstance(error, StoreFull):
        return error.errno
    return errno.ETIMEDOUT if isinstance(error, RemoteTimeout) else errno.EIO


_SILENT: Final = frozenset(("forget", "release", "releasedir"))


def _is_listing(result: object) -> bool:
    return isinstance(result, (list, tuple)) and all(type(name) is bytes for name in result)


def _is_created(result: object) -> bool:
    return (
        isinstance(result, tuple)
        and len(result) == 2
        and isinstance(result[0], pyfuse3.FileInfo)
        and isinstance(result[1], pyfuse3.EntryAttributes)
    )


def _is_handle(result: object) -> bool:
    return isinstance(result, int) and 0 <= result < 1 << 63


_Expected = tuple[frozenset[type], Callable[[object], bool] | None]

_NOTHING: Final[_Expected] = (frozenset((type(None),)), None)
_ENTRY: Final[_Expected] = (frozenset((pyfuse3.EntryAttributes,)), None)
_BYTES: Final[_Expected] = (frozenset((bytes,)), None)

_RESULTS: Final[dict[str, _Expected]] = {
    **dict.fromkeys(("lookup", "getattr", "setattr", "mknod", "mkdir", "symlink", "link"), _ENTRY),
    "readlink": _BYTES,
    "getxattr": _BYTES,
    "listxattr": (frozenset((list, tuple)), _is_listing),
    "open": (frozenset((pyfuse3.FileInfo,)), None),
    "create": (frozenset((tuple,)), _is_created),
    "read": (frozenset((bytes, bytearray, memoryview)), None),
    "write": (frozenset((int,)), _is_handle),
    "opendir": (frozenset((int,)), _is_handle),
    "statfs": (frozenset((pyfuse3.StatvfsData,)), None),
    "access": (frozenset((bool,)), None),
    **dict.fromkeys(("forget", "unlink", "rmdir", "rename", "setxattr", "removexattr", "flush", "fsync"), _NOTHING),
    **dict.fromkeys(("release", "readdir", "releasedir", "fsyncdir"), _NOTHING),
    "poll": (frozenset((int, type(None))), None),
}
"""What pyfuse3 takes from each handler; anything else would end the mount in its code. What is not here is a piece of one."""


def guarded(
    handler: Callable[Concatenate[S, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """Wrap a handler so that nothing but FUSEError leaves it, and what it returns is what pyfuse3 takes.

    `forget`, `release` and `releasedir` raise nothing at all: nobody would learn of it. BaseExceptions that are no
    Exception (cancellation, interrupts) go through.
    """
    name = handler.__name__
    expected, check = _RESULTS.get(name, (None, None))
    is_silent = name in _SILENT

    @coroutine
    def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> Generator[object, Any, R | None]:
        try:
            work = handler(self, *args, **kwargs)
            try:
                message = work.send(None)
            except StopIteration as stop:  # without waiting: the usual case
                result = stop.value
            else:
                result = yield from self.requests.wait(name, work, message)
            if expected is not None and (type(result) not in expected or (check is not None and not check(result))):
                raise TypeError(f"{name} returned a {type(result).__name__}")
            return result  # type: ignore[no-any-return]
        except Exception as exc:  # noqa: BLE001 - the guard of design.md: a bug of ours must not end the mount
            number = _judge(self, name, exc)
        if is_silent:
            return None
        raise pyfuse3.FUSEError(number)

    functools.update_wrapper(call, handler)
    return call  # type: ignore[return-value]


def _judge(mount: CountsErrors, name: str, error: Exception) -> int:
    """Return the errno for what left a handler, after counting it. Raises nothing."""
    if isinstance(error, ExceptionGroup) and error.split(FsdecloudError)[1] is None:
        leaf = first_leaf(error)  # several waits of one request failed as they may
        assert isinstance(leaf, Exception)
        error = leaf
    if isinstance(error, pyfuse3.FUSEError):
        # The kernel would believe for the life of the mount that the whole call is not there (fuse.md, 2).
        return int(error.errno) if error.errno != errno.ENOSYS else errno.EIO
    if isinstance(error, FsError):
        return error.ERRNO
    is_expected = isinstance(error, FsdecloudError)
    try:
        mount.count_error(name, error, unexpected=not is_expected)
    except Exception:  # noqa: BLE001 - nothing may escape, least of all while there is no memory
        return errno.EIO
    if is_expected:
        assert isinstance(error, FsdecloudError)
        return errno_of(error)
    return errno.ENOMEM if isinstance(error, MemoryError) else errno.EIO
