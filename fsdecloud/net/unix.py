"""Calls and notices between processes of this machine, over unix sockets (framing: `wire.rpc`).

Both sides of a connection may call. One task writes, one reads; each request runs in a task of its own, so that answers
come in any order. A call that is cancelled is abandoned: the other side finishes it and its answer is dropped.

Everything here runs in the trio thread. Not here: the blocking client of the command line (`cli.client`).
"""

from __future__ import annotations

import logging
import os
import socket
import stat
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import trio

from fsdecloud import codec
from fsdecloud.config import make_private_dir
from fsdecloud.errors import (
    FsdecloudError,
    LocalProtocolError,
    MalformedError,
    ProtocolError,
    RemoteError,
    RemoteTimeout,
    UsageError,
)
from fsdecloud.limits import KIB, MIB
from fsdecloud.net.nursery import open_background
from fsdecloud.wire.rpc import Frame, FrameKind, FrameReader, body_to_error, encode_frame, error_to_body

log = logging.getLogger(__name__)

R = TypeVar("R")

Handler = tuple[Any, Callable[[Any], Awaitable[object]]]
"""A method: the parameters' type, and what answers them with a struct."""

NoticeHandler = tuple[Any, Callable[[Any], None]]
"""A notice: the parameters' type, and what takes them, called in the reader and so never to block."""

Methods = tuple[Mapping[str, Handler], Mapping[str, NoticeHandler]]

RECEIVE_SIZE: Final = 64 * KIB
"""Read at once: a burst of small calls is one system call."""

OUTGOING_MAX: Final = 2 * MIB
"""Unsent bytes past which callers and answers wait."""

NOTICES_MAX: Final = 16 * MIB
"""Unsent bytes past which `notify_nowait` gives up: the other side has stopped reading."""

REQUESTS_MAX: Final = 1024
"""Requests that one connection may have running; more are answered with an error, so that memory stays bounded."""

CONNECTIONS_MAX: Final = 128
"""Connections one server socket holds; more are closed at once."""

DRAIN_TIMEOUT: Final = 1.0
"""How long leaving `open_rpc` waits for what is still unsent."""


class RpcConnection:
    """One connection. Made by `open_rpc` or `serve_unix` only."""

    def __init__(self, stream: trio.abc.Stream, lost: type[FsdecloudError]) -> None:
        self._stream = stream
        self._lost = lost
        self._reader = FrameReader()
        self._waiting: dict[int, _Call] = {}
        self._last_id = 0
        self._running = 0
        self._outgoing = bytearray()
        self._sending = False
        self._fd = stream.socket.fileno() if isinstance(stream, trio.SocketStream) else -1
        self._wake_writer = trio.Event()
        self._drained = trio.Event()
        self._closed = trio.Event()
        self._why = ""

    async def call(self, method: str, params: object, result: type[R], *, timeout: float | None = None) -> R:
        """Call the other side's `method` and return its result.

        Raises the error that the other side raised; RemoteTimeout after `timeout` seconds; the connection's `lost` error
        when it ends first; MalformedError when the answer is not a `result`.
        """
        body = codec.encode(params)
        self._last_id += 1
        number = self._last_id
        data = encode_frame(Frame(number, FrameKind.REQUEST, method, body))
        waiting = _Call()
        with trio.CancelScope() if timeout is None else trio.move_on_after(timeout) as scope:
            await self._send(data)
            self._waiting[number] = waiting
            try:
                await waiting.wait()
            finally:
                self._waiting.pop(number, None)
        if scope.cancelled_caught:
            raise RemoteTimeout(f"{method}: no answer within {timeout:g} s")
        if waiting.frame is None:
            raise self._lost_error()
        if waiting.frame.kind is FrameKind.ERROR:
            raise body_to_error(waiting.frame.body)
        return codec.decode_loose(waiting.frame.body, result)

    def notify_nowait(self, method: str, params: object) -> None:
        """Queue a notice. Raises the connection's `lost` error when it has ended, or the other side stopped reading."""
        if self._closed.is_set():
            raise self._lost_error()
        if len(self._outgoing) > NOTICES_MAX:
            raise RemoteError(f"{method}: the other side does not read; {len(self._outgoing)} bytes are unsent")
        self._queue(encode_frame(Frame(0, FrameKind.NOTICE, method, codec.encode(params))))

    async def wait_closed(self) -> None:
        """Return when the connection has ended, whoever ended it."""
        await self._closed.wait()

    @property
    def is_closed(self) -> bool:
        """True once the connection has ended."""
        return self._closed.is_set()

    # ---- sending ---------------------------------------------------------------------------------------------------
    def _queue(self, data: bytes) -> None:
        """Send what the kernel takes at once, leave the rest to the writer: waking a task costs as much as the call."""
        if self._fd >= 0 and not self._outgoing and not self._sending:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:
                pass
            except OSError:
                pass  # the writer meets it again, and ends the connection
            if not data:
                return
        self._outgoing += data
        self._wake_writer.set()

    async def _send(self, data: bytes) -> None:
        while len(self._outgoing) > OUTGOING_MAX and not self._closed.is_set():
            await self._drained.wait()
        if self._closed.is_set():
            raise self._lost_error()
        self._queue(data)

    async def _write(self) -> None:
        while True:
            await self._wake_writer.wait()
            self._wake_writer = trio.Event()
            self._sending = True
            while self._outgoing:
                data, self._outgoing = self._outgoing, bytearray()
                await self._stream.send_all(data)
            self._sending = False
            self._drained.set()
            self._drained = trio.Event()

    # ---- receiving -------------------------------------------------------------------------------------------------
    async def _read(self, nursery: trio.Nursery, methods: Methods) -> None:
        while data := await self._stream.receive_some(RECEIVE_SIZE):
            for frame in self._reader.feed(bytes(data)):
                if frame.kind is FrameKind.REQUEST:
                    self._take_request(frame, nursery, methods[0])
                elif frame.kind is FrameKind.NOTICE:
                    self._take_notice(frame, methods[1])
                elif (waiting := self._waiting.pop(frame.id, None)) is not None:
                    waiting.answer(frame)
        if not self._reader.is_between_frames:
            self._why = "it ended within a message"

    def _take_request(self, frame: Frame, nursery: trio.Nursery, handlers: Mapping[str, Handler]) -> None:
        handler = handlers.get(frame.method)
        if handler is None:
            self._answer_error(frame, LocalProtocolError(f"no method {frame.method!r}"))
        elif self._running >= REQUESTS_MAX or len(self._outgoing) > NOTICES_MAX:
            self._answer_error(frame, RemoteError(f"{frame.method}: too many requests at once"))
        else:
            self._running += 1
            nursery.start_soon(self._serve, frame, handler, name=frame.method)

    def _take_notice(self, frame: Frame, notices: Mapping[str, NoticeHandler]) -> None:
        handler = notices.get(frame.method)
        if handler is None:
            log.debug("ignored notice %s", frame.method)
            return
        handler[1](codec.decode_loose(frame.body, handler[0]))

    async def _serve(self, frame: Frame, handler: Handler) -> None:
        try:
            result = await handler[1](codec.decode_loose(frame.body, handler[0]))
            data = encode_frame(Frame(frame.id, FrameKind.REPLY, "", codec.encode(result)))
        except FsdecloudError as exc:
            self._answer_error(frame, exc)
        except Exception as exc:  # a bug in one handler must not end the others; it is logged in full
            log.error("%s failed unexpectedly", frame.method, exc_info=exc)
            self._answer_error(
                frame, RemoteError(f"{frame.method}: internal error ({type(exc).__name__}), see the log")
            )
        else:
            if not self._closed.is_set():
                self._queue(data)
        finally:
            self._running -= 1

    def _answer_error(self, frame: Frame, exc: FsdecloudError) -> None:
        if not self._closed.is_set():
            self._queue(encode_frame(Frame(frame.id, FrameKind.ERROR, "", error_to_body(exc))))

    # ---- ending ----------------------------------------------------------------------------------------------------
    async def _run(self, nursery: trio.Nursery, methods: Methods) -> None:
        """Serve the connection until it ends; runs behind the body of `open_rpc`."""
        try:
            async with trio.open_nursery() as tasks:
                tasks.start_soon(_until_ended, self._write, self, tasks.cancel_scope)
                tasks.start_soon(_until_ended, partial(self._read, nursery, methods), self, tasks.cancel_scope)
        finally:
            self._end()
            await trio.aclose_forcefully(self._stream)

    def _end(self) -> None:
        if self._closed.is_set():
            return
        self._closed.set()
        self._fd = -1
        self._drained.set()
        for waiting in self._waiting.values():
            waiting.end()
        self._waiting.clear()

    async def _drain(self) -> None:
        with trio.move_on_after(DRAIN_TIMEOUT):
            while (self._outgoing or self._sending) and not self._closed.is_set():
                await self._drained.wait()

    def _lost_error(self) -> FsdecloudError:
        return self._lost(f"the connection was closed{': ' if self._why else ''}{self._why}")


class _Call:
    """One unanswered call: a task that waits for its frame, without an Event's cost."""

    __slots__ = ("_task", "done", "frame")

    def __init__(self) -> None:
        self.frame: Frame | None = None
        self.done = False
        self._task: trio.lowlevel.Task | None = None

    async def wait(self) -> None:
        """Return when `answer` or `end` was called; cancellable."""
        if self.done:
            await trio.lowlevel.checkpoint()
            return
        self._task = trio.lowlevel.current_task()

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            self._task = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def answer(self, frame: Frame) -> None:
        self.frame = frame
        self.end()

    def end(self) -> None:
        self.done = True
        if self._task is not None:
            task, self._task = self._task, None
            trio.lowlevel.reschedule(task)


async def _until_ended(work: Callable[[], Awaitable[None]], connection: RpcConnection, scope: trio.CancelScope) -> None:
    """Run one direction; whatever ends it ends the other one as well, and its reason is kept."""
    try:
        await work()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # the other process is gone: what `wait_closed` is for
    except (ProtocolError, MalformedError) as exc:
        connection._why = str(exc)  # noqa: SLF001 - of this module
        log.warning("dropped a local connection: %s", exc)
    scope.cancel()


@asynccontextmanager
async def open_rpc(
    stream: trio.abc.Stream,
    handlers: Mapping[str, Handler] | None = None,
    notices: Mapping[str, NoticeHandler] | None = None,
    *,
    lost: type[FsdecloudError] = RemoteError,
) -> AsyncIterator[RpcConnection]:
    """Run a connection over `stream`, answering `handlers` and taking `notices`, for the length of the body.

    Leaving the body sends what is queued (for at most a second), cancels running handlers and closes the stream. `lost` is
    what calls raise when the connection ends under them. The body goes on when the other side ends it: `wait_closed`.
    """
    connection = RpcConnection(stream, lost)
    async with open_background() as nursery:
        nursery.start_soon(connection._run, nursery, (handlers or {}, notices or {}))  # noqa: SLF001 - of this module
        try:
            yield connection
            await connection._drain()  # noqa: SLF001
        finally:
            connection._end()  # noqa: SLF001


async def connect_unix(path: Path, *, error: type[FsdecloudError] = RemoteError) -> trio.SocketStream:
    """Connect to the daemon that listens at `path`. Raises `error` when none does."""
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        await sock.connect(os.fspath(path))
    except OSError as exc:
        sock.close()
        raise error(f"nothing answers at {path}: {exc.strerror or exc}") from exc
    except BaseException:  # cancelled or failed, nobody else would close it
        sock.close()
        raise
    return trio.SocketStream(sock)


async def serve_unix(
    path: Path,
    methods_for: Callable[[RpcConnection], Methods],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Serve connections at `path` until cancelled; `methods_for` says once per connection what it may call.

    The socket has mode 0600 in a directory of mode 0700, and a caller must be our own user or root (SO_PEERCRED). A socket
    file left by an earlier process is replaced: the caller holds the daemon's lock. Raises UsageError when `path` is
    something else or its directory is not private.
    """
    make_private_dir(path.parent)
    listener = _listen(path)
    count = 0

    async def handle(stream: trio.SocketStream) -> None:
        nonlocal count
        uid = peer_uid(stream.socket)
        if uid not in (0, os.geteuid()):
            log.warning("refused user %d at %s", uid, path)
            await trio.aclose_forcefully(stream)
            return
        if count >= CONNECTIONS_MAX:
            log.warning("refused a connection at %s: %d are open", path, count)
            await trio.aclose_forcefully(stream)
            return
        count += 1
        try:
            await _serve_stream(stream, methods_for)
        finally:
            count -= 1

    identity = os.lstat(path)
    try:
        async with open_background() as nursery:
            await nursery.start(partial(trio.serve_listeners, handle, [listener], handler_nursery=nursery))
            task_status.started()
            await trio.sleep_forever()
    finally:
        with suppress(FileNotFoundError):
            if os.path.samestat(os.lstat(path), identity):
                os.unlink(path)
    raise AssertionError("a server ends only by being cancelled")


async def _serve_stream(stream: trio.SocketStream, methods_for: Callable[[RpcConnection], Methods]) -> None:
    connection = RpcConnection(stream, RemoteError)
    async with open_background() as nursery:
        await connection._run(nursery, methods_for(connection))  # noqa: SLF001 - of this module


def _listen(path: Path) -> trio.SocketListener:
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise UsageError(f"{path} is in the way: it is not a socket")
        os.unlink(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(os.fspath(path))
        os.chmod(path, 0o600)
        sock.listen(CONNECTIONS_MAX)
    except OSError as exc:
        sock.close()
        raise UsageError(f"cannot listen at {path}: {exc.strerror or exc}") from exc
    sock.setblocking(False)
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


def peer_uid(sock: trio.socket.SocketType) -> int:
    """Return the user that opened the other end of a unix socket (unix(7), SO_PEERCRED)."""
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _pid, uid, _gid = struct.unpack("3i", data)
    return int(uid)


def stream_from_fd(fd: int) -> trio.SocketStream:
    """Return a stream over an inherited socket descriptor, which it then owns."""
    sock = socket.socket(fileno=fd)
    sock.setblocking(False)
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))
