"""The blocking side of `wire.rpc`: how a command asks a daemon, without an event loop.

Imports nothing slow: a command's start is most of its time. Calls only; notices that arrive are dropped.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from fsdecloud import codec
from fsdecloud.errors import FsdecloudError, RemoteError, RemoteTimeout
from fsdecloud.wire.rpc import Frame, FrameKind, FrameReader, body_to_error, encode_frame

R = TypeVar("R")


class Client:
    """A connection to one daemon, for one thread."""

    def __init__(self, path: Path, *, error: type[FsdecloudError] = RemoteError, timeout: float = 10.0) -> None:
        """Connect to the daemon at `path`. Raises `error` when none answers; `timeout` holds for connecting."""
        self._path = path
        self._error = error
        self._reader = FrameReader()
        self._last_id = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(os.fspath(path))
        except OSError as exc:
            self._socket.close()
            raise error(f"nothing answers at {path}: {exc.strerror or exc}") from exc

    def call(self, method: str, params: object, result: type[R], *, timeout: float = 10.0) -> R:
        """Call `method` and return its result.

        Raises the error that the daemon raised, RemoteTimeout after `timeout` seconds (the connection is then closed), or the
        client's `error` when the daemon ends.
        """
        deadline = time.monotonic() + timeout
        self._last_id += 1
        try:
            self._socket.settimeout(timeout)
            self._socket.sendall(encode_frame(Frame(self._last_id, FrameKind.REQUEST, method, codec.encode(params))))
            frame = self._receive(self._last_id, deadline)
        except TimeoutError as exc:
            self.close()
            raise RemoteTimeout(f"{method}: no answer within {timeout:g} s from {self._path}") from exc
        except OSError as exc:
            self.close()
            raise self._error(f"{method}: the connection to {self._path} was lost: {exc.strerror or exc}") from exc
        if frame.kind is FrameKind.ERROR:
            raise body_to_error(frame.body)
        return codec.decode_loose(frame.body, result)

    def _receive(self, number: int, deadline: float) -> Frame:
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            data = self._socket.recv(1 << 16)
            if not data:
                raise ConnectionResetError(0, "it was closed")
            for frame in self._reader.feed(data):
                if frame.kind in (FrameKind.REPLY, FrameKind.ERROR) and frame.id == number:
                    return frame

    def close(self) -> None:
        """Close the connection; again is harmless."""
        self._socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def call(
    path: Path,
    method: str,
    params: object,
    result: type[R],
    *,
    timeout: float = 10.0,
    error: type[FsdecloudError] = RemoteError,
) -> R:
    """Make one call to the daemon at `path`; see `Client.call`."""
    with Client(path, error=error, timeout=timeout) as client:
        return client.call(method, params, result, timeout=timeout)
