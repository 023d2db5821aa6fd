"""Which entries are in use: what a tree node refers to, and a filter that remembers what was met.

Pure. `Marks` is a Bloom filter that grows by layers, each four times as large as the one before: an id that was added is
always found; one that was not is found in about one of a hundred cases, so that garbage may be kept but nothing in use is
ever taken for garbage. The key is fresh randomness for each filter: whatever was kept by chance once is found out by the
next one, and nobody can prepare ids that collide. Source: Almeida et al., "Scalable Bloom Filters" (2007).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec
from blake3 import blake3

from fsdecloud import codec
from fsdecloud.errors import MalformedError
from fsdecloud.fs.chunks import Stored, decode_chunk
from fsdecloud.fs.history import decode_batches
from fsdecloud.types import EntryId

FIRST_LAYER: Final = 1 << 14
"""Ids of the first layer: 24 KiB."""

LAYERS_MAX: Final = 12
"""2^38 ids."""

BITS_PER_ID: Final = 12
PROBES: Final = 8
"""Together 0.3 % of false positives in a full layer; of several layers only the last two matter."""

_CHUNK: Final = b"C"[0]
_BATCHES: Final = b"B"[0]


def entries_of(pairs: Iterable[tuple[bytes, bytes]]) -> Iterator[EntryId]:
    """Yield the ids of all entries that rows of the volume's tree refer to. Raises MalformedError."""
    for key, value in pairs:
        if key[0] == _CHUNK:
            chunk = decode_chunk(value)
            if isinstance(chunk, Stored):
                if chunk.ref is not None:
                    yield chunk.ref.id
                for patch in chunk.patches:
                    yield patch.ref.id
        elif key[0] == _BATCHES:
            row = decode_batches(value)
            yield row.manifest.id
            for batch in row.batches:
                yield batch.ref.id


class _Stored(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    key: bytes
    count: int
    layers: tuple[bytes, ...]


class Marks:
    """A set of ids that says "no" for certain and "yes" almost so. Not thread-safe while it is added to."""

    def __init__(self, key: bytes) -> None:
        """`key` is 32 fresh random bytes."""
        self._key = key
        self._layers: list[bytearray | bytes] = []
        self._room = 0
        self.count = 0
        """Ids added that were not found before."""

    def add(self, entry: bytes) -> None:
        """Note an id (32 bytes)."""
        first, step = self._hashes(entry)
        if any(_has(layer, first, step) for layer in self._layers):
            return
        if not self._room:
            self._grow()
        layer = self._layers[-1]
        assert isinstance(layer, bytearray)
        size = len(layer) * 8
        for probe in range(PROBES):
            bit = (first + probe * step) % size
            layer[bit >> 3] |= 1 << (bit & 7)
        self._room -= 1
        self.count += 1

    def update(self, entries: Iterable[bytes]) -> None:
        """Note several ids."""
        for entry in entries:
            self.add(entry)

    def __contains__(self, entry: bytes) -> bool:
        first, step = self._hashes(entry)
        return any(_has(layer, first, step) for layer in reversed(self._layers))

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        return sum(map(len, self._layers))

    def encode(self) -> bytes:
        """Return it as bytes."""
        return codec.encode(_Stored(self._key, self.count, tuple(bytes(layer) for layer in self._layers)))

    @classmethod
    def decode(cls, data: bytes) -> Marks:
        """Return a filter to ask, not to add to. Raises MalformedError."""
        stored = codec.decode(data, _Stored)
        sizes = [_layer_size(index) for index in range(len(stored.layers))]
        if len(stored.key) != 32 or len(sizes) > LAYERS_MAX or [len(layer) for layer in stored.layers] != sizes:
            raise MalformedError("not a filter of marks")
        marks = cls(stored.key)
        marks._layers = list(stored.layers)
        marks.count = stored.count
        return marks

    def _grow(self) -> None:
        index = len(self._layers)
        if index == LAYERS_MAX:
            raise MalformedError("more entries than a volume can have")
        self._layers.append(bytearray(_layer_size(index)))
        self._room = FIRST_LAYER << (2 * index)

    def _hashes(self, entry: bytes) -> tuple[int, int]:
        digest = blake3(entry, key=self._key).digest(16)
        return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little") | 1


def _layer_size(index: int) -> int:
    return (FIRST_LAYER << (2 * index)) * BITS_PER_ID // 8


def _has(layer: bytes | bytearray, first: int, step: int) -> bool:
    size = len(layer) * 8
    for probe in range(PROBES):
        bit = (first + probe * step) % size
        if not layer[bit >> 3] & (1 << (bit & 7)):
            return False
    return True
