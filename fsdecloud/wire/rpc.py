"""How a call between two local processes becomes bytes.

    frame = length (u32, big-endian) | msgpack [id, kind, method, body]

A REQUEST carries the caller's id, counted from 1 on each side by itself; the REPLY or ERROR with that id answers it, in
any order. A NOTICE has id 0 and no answer. `body` is the encoded parameter or result struct; an ERROR's body is
[code, message, exit code], where code is the name of a class in `fsdecloud.errors`.

Pure. Not here: sockets (`net.unix`, `cli.client`), which methods exist (`wire.agentapi`, `wire.ledgerapi`,
`wire.controlapi`).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import msgspec

from fsdecloud import codec, errors
from fsdecloud.errors import FsdecloudError, FsError, MalformedError, RemoteError, RemoteProtocolError, UsageError
from fsdecloud.limits import RPC_MAX

METHOD_MAX: Final = 64
"""Longest method name."""

ERROR_TEXT_MAX: Final = 4096
"""Characters of an error's text that are sent: enough for any reason, too little to fill a log."""


class FrameKind(IntEnum):
    """What a frame is."""

    REQUEST = 0
    REPLY = 1
    ERROR = 2
    NOTICE = 3


class Frame(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One message on a local socket."""

    id: int
    kind: FrameKind
    method: str
    body: bytes


class _ErrorBody(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    code: str
    message: str
    exit: int


def encode_frame(frame: Frame) -> bytes:
    """Return the frame with its length before it. Raises MalformedError when it is larger than RPC_MAX."""
    data = codec.encode(frame)
    if len(data) > RPC_MAX:
        raise MalformedError(f"{frame.method}: a local message has at most {RPC_MAX} bytes, not {len(data)}")
    return len(data).to_bytes(4, "big") + data


class FrameReader:
    """Cuts a byte stream into frames. Holds at most one incomplete frame and what was fed last."""

    def __init__(self, limit: int = RPC_MAX) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames that `data` completes, in order.

        Raises RemoteProtocolError for a frame over the limit, before its bytes are waited for, or one that does not decode.
        The connection is of no use afterwards.
        """
        buffer = self._buffer
        buffer += data
        frames: list[Frame] = []
        start = 0
        while len(buffer) - start >= 4:
            length = int.from_bytes(buffer[start : start + 4], "big")
            if length > self._limit:
                raise RemoteProtocolError(f"a local message of {length} bytes; the limit is {self._limit}")
            stop = start + 4 + length
            if len(buffer) < stop:
                break
            frames.append(_decode_frame(bytes(buffer[start + 4 : stop])))
            start = stop
        if start:
            del buffer[:start]
        return frames

    @property
    def is_between_frames(self) -> bool:
        """True when the stream may end here without losing anything."""
        return not self._buffer


def _decode_frame(data: bytes) -> Frame:
    try:
        frame = codec.decode_loose(data, Frame)
    except MalformedError as exc:
        raise RemoteProtocolError(f"not a local message: {exc}") from exc
    if len(frame.method) > METHOD_MAX:
        raise RemoteProtocolError(f"a method name of {len(frame.method)} characters")
    return frame


def error_to_body(exc: FsdecloudError) -> bytes:
    """Return the ERROR body for `exc`: its nearest class of `fsdecloud.errors`, its text, and a UsageError's exit code."""
    code = next(kind.__name__ for kind in type(exc).__mro__ if _known(kind.__name__) is kind)
    if isinstance(exc, FsError):
        text = str(exc.strerror)
    else:
        text = str(exc)
    exit_code = exc.exit_code if isinstance(exc, UsageError) else 0
    return codec.encode(_ErrorBody(code, text[:ERROR_TEXT_MAX], exit_code))


def body_to_error(body: bytes) -> FsdecloudError:
    """Return an instance of the class that the body names; RemoteError when it is unknown here."""
    try:
        error = codec.decode_loose(body, _ErrorBody)
    except MalformedError as exc:
        return RemoteProtocolError(f"an error that cannot be read: {exc}")
    kind = _known(error.code)
    if kind is None:
        return RemoteError(f"{error.code[:METHOD_MAX]}: {error.message}")
    if issubclass(kind, UsageError):
        return kind(error.message, error.exit)
    return kind(error.message)


def _known(name: str) -> type[FsdecloudError] | None:
    kind = getattr(errors, name, None)
    return kind if isinstance(kind, type) and issubclass(kind, FsdecloudError) else None
