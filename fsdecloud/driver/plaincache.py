"""Opened chunks in memory, least recently used first out, and their buffers, which are used again.

Taking and clearing 1 MiB of memory costs as much as decrypting it, so the buffer of a chunk that leaves is kept for the
next one, unless somebody still holds it. Called only from the event loop.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from typing import Final

from fsdecloud.limits import CHUNK_SIZE

Plain = bytes | bytearray

_FREE_MAX: Final = 16
"""Unused buffers kept."""


def _count_unshared() -> int:
    """Return what sys.getrefcount says of an object that only one local variable holds: it differs between versions."""
    alone = bytearray(1)
    return sys.getrefcount(alone)


_UNSHARED: Final = _count_unshared()


class PlainCache:
    """Plaintexts by encoded chunk value."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._plain: OrderedDict[bytes, Plain] = OrderedDict()
        self._free: list[bytearray] = []
        self.bytes = 0

    def __contains__(self, raw: object) -> bool:
        return raw in self._plain

    def get(self, raw: bytes) -> Plain | None:
        """Return a chunk's plaintext, if it is here. It must not be changed."""
        plain = self._plain.get(raw)
        if plain is not None:
            self._plain.move_to_end(raw)
        return plain

    def buffer(self) -> bytearray:
        """Return a chunk's worth of memory with meaningless contents."""
        return self._free.pop() if self._free else bytearray(CHUNK_SIZE)

    def give_back(self, buffer: bytearray) -> None:
        """Return an unused buffer."""
        if len(self._free) < _FREE_MAX:
            self._free.append(buffer)

    def put(self, raw: bytes, plain: Plain) -> None:
        """Keep a plaintext, dropping the least recently used ones past the limit."""
        if raw in self._plain:
            return
        self._plain[raw] = plain
        self.bytes += len(plain)
        while self.bytes > self._limit:
            _key, dropped = self._plain.popitem(last=False)
            self.bytes -= len(dropped)
            # A view of a bytearray keeps it referenced, so nobody's bytes can change under them.
            if type(dropped) is bytearray and len(dropped) == CHUNK_SIZE and sys.getrefcount(dropped) == _UNSHARED:
                self.give_back(dropped)
