"""How a blob becomes n shards, and any k of them the blob again.

Blocking and CPU-bound, pure otherwise: worker threads only. The code is a systematic Cauchy Reed-Solomon code over GF(2^8)
(pyeclib, `isa_l_rs_cauchy`): shards 0 to k-1 are the blob itself in slices, padded with zeros. pyeclib puts a header of
80 bytes before each shard that names library versions; it is cut off, so that a shard made again in ten years has the
id it always had, and rebuilt to decode (liberasurecode, erasurecode.h, struct fragment_header_s).
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Final

from blake3 import blake3
from pyeclib.ec_iface import ECDriver, ECDriverError

from fsdecloud.errors import MalformedError
from fsdecloud.types import ShardId

_HEADER: Final = 80
_META: Final = 59
"""Bytes of the header's first part, whose CRC-32 follows at offset 67."""
_CHECKSUM_AT: Final = 67

_lock: Final = threading.Lock()
"""liberasurecode keeps its instances in a global list; pyeclib does not release the GIL, so this costs nothing."""


def shard_size(k: int, length: int) -> int:
    """Return the bytes of each shard of a blob of `length` bytes."""
    return -(-length // k)


def encode_shards(k: int, n: int, blob: bytes) -> list[bytes | memoryview]:
    """Return the n shards of a blob of at least one byte. With k = 1 all of them are the blob, the same object."""
    if not blob:
        raise ValueError("an empty blob has no shards")
    if k == 1:
        return [blob] * n
    if k == n:
        # Slices without parity: the library needs at least one parity shard.
        size = shard_size(k, len(blob))
        padded = blob.ljust(k * size, b"\0")
        return [memoryview(padded)[i * size : (i + 1) * size] for i in range(k)]
    with _lock:
        fragments = _driver(k, n).encode(blob)
    return [memoryview(fragment)[_HEADER:] for fragment in fragments]


def decode_shards(k: int, n: int, length: int, shards: Mapping[int, bytes]) -> bytes:
    """Return the blob of `length` bytes from any k of its shards, by index. The caller checks the blob's id.

    Raises MalformedError when there are fewer than k, or one has the wrong index or size.
    """
    size = shard_size(k, length)
    if len(shards) < k or length < 1:
        raise MalformedError(f"{k} shards are needed, not {len(shards)}")
    if any(not 0 <= i < n or len(shard) != size for i, shard in shards.items()):
        raise MalformedError(f"a shard is not one of {n} with {size} bytes")
    if k == 1:
        return next(iter(shards.values()))
    if all(i in shards for i in range(k)):
        last = shards[k - 1][: length - (k - 1) * size] if length > (k - 1) * size else b""
        blob = b"".join([*(shards[i] for i in range(k - 1)), last])
        return blob if len(blob) == length else blob[:length]
    chosen = sorted(shards)[:k]
    fragments = [_header(k, n, i, size, length) + shards[i] for i in chosen]
    try:
        with _lock:
            blob = _driver(k, n).decode(fragments)
    except ECDriverError as exc:
        raise MalformedError(f"the shards {chosen} of {k}/{n} do not decode: {exc}") from exc
    return bytes(blob)


def shard_ids(shards: Sequence[bytes | memoryview]) -> tuple[ShardId, ...]:
    """Return the ids of the shards, BLAKE3 of each; equal objects are hashed once."""
    known: dict[int, ShardId] = {}
    for shard in shards:
        if id(shard) not in known:
            known[id(shard)] = ShardId(blake3(shard).digest())
    return tuple(known[id(shard)] for shard in shards)


@cache
def _driver(k: int, n: int) -> ECDriver:
    return ECDriver(k=k, m=n - k, ec_type="isa_l_rs_cauchy")


@cache
def _template(k: int, n: int) -> bytes:
    """Return a header of this library build for these parameters, from a shard made now."""
    with _lock:
        header: bytes = _driver(k, n).encode(bytes(k))[0][:_HEADER]
    if struct.unpack_from("<I", header, _CHECKSUM_AT)[0] != zlib.crc32(header[:_META]):
        raise RuntimeError("this pyeclib has an unknown fragment header; use the version that fsdecloud was built with")
    return header


def _header(k: int, n: int, index: int, size: int, length: int) -> bytes:
    """Return the header that the library would have written: index, sizes, and their checksum."""
    header = bytearray(_template(k, n))
    struct.pack_into("<II", header, 0, index, size)
    struct.pack_into("<Q", header, 12, length)
    struct.pack_into("<I", header, _CHECKSUM_AT, zlib.crc32(header[:_META]))
    return bytes(header)
