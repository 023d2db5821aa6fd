"""How a value becomes bytes: MessagePack of msgspec structs, with exactly one encoding for each value.

Pure. Every struct that is stored, hashed or sent is declared `array_like=True, forbid_unknown_fields=True`, so that the
field order is the format. `decode` re-encodes what it read and compares: trailing bytes, long forms of integers and
unknown fields are rejected, and a hash over the bytes is a hash over the value. Source: the MessagePack specification
(2013 "bin" revision); msgspec always writes the shortest form.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar

import msgspec

from fsdecloud.errors import MalformedError

T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()


@cache
def _decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(kind)


def encode(value: object) -> bytes:
    """Return the canonical encoding of `value` (structs, tuples, lists, ints of at most 64 bits, bytes, str, bool, None).

    Raises MalformedError for a value that has none: a map, a float, an integer out of range.
    """
    try:
        return _encoder.encode(value)
    except (OverflowError, TypeError, ValueError, RecursionError) as exc:
        raise MalformedError(f"cannot encode a {type(value).__name__}: {exc}") from exc


def decode(data: bytes, kind: type[T]) -> T:
    """Return the value of type `kind` whose canonical encoding is exactly `data`. Raises MalformedError otherwise."""
    value = decode_loose(data, kind)
    if _encoder.encode(value) != data:
        raise MalformedError(f"not the canonical encoding of a {_name(kind)}")
    return value


def decode_loose(data: bytes, kind: type[T]) -> T:
    """Decode without the canonicality check, for messages that are never hashed nor stored. Raises MalformedError."""
    try:
        value: T = _decoder(kind).decode(data)  # type: ignore[arg-type]
    except (msgspec.DecodeError, RecursionError, MemoryError, OverflowError, UnicodeDecodeError) as exc:
        raise MalformedError(f"not a {_name(kind)}: {exc}") from exc
    return value


def _name(kind: object) -> str:
    return getattr(kind, "__name__", str(kind))
