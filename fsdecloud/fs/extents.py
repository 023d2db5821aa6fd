"""Which bytes of one chunk are dirty: written by programs, not yet staged.

Pure; not thread-safe: one owner at a time (the event loop, or the worker that took the object over to seal it). Offsets count
from the start of the chunk. Writing in order, which is what nearly all programs do, costs an append to one buffer.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Final, cast

_COMPACT_OVER: Final = 64
"""Pieces before those that touch are joined: keeps insertion cheap under writes in descending order."""


class Extents:
    """Disjoint dirty byte ranges with their contents; a later write replaces what it overlaps."""

    __slots__ = ("_buffers", "_compact_over", "_size", "_starts")

    def __init__(self) -> None:
        # Invariant: sorted, not empty, not overlapping; neighbours may touch (joining them at once would copy over and over).
        self._starts: list[int] = []
        self._buffers: list[bytearray] = []
        self._size = 0
        self._compact_over = _COMPACT_OVER

    def __bool__(self) -> bool:
        return bool(self._starts)

    @property
    def size(self) -> int:
        """Bytes held."""
        return self._size

    @property
    def end(self) -> int:
        """Offset after the last byte held; 0 when there is none."""
        return self._starts[-1] + len(self._buffers[-1]) if self._starts else 0

    @property
    def pieces(self) -> int:
        """Number of separate buffers. Each costs about 150 bytes beyond its contents: stage a chunk that has thousands."""
        return len(self._starts)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Put a copy of `data` (a view must be of single bytes) at `offset`, which must not be negative."""
        if offset < 0:
            raise ValueError("a negative offset")
        length = len(data)
        if not length:
            return
        end = offset + length
        index = bisect_right(self._starts, offset)
        if index:
            buffer = self._buffers[index - 1]
            start = self._starts[index - 1]
            overlap = start + len(buffer) - offset
            if overlap >= length:
                buffer[offset - start : end - start] = data
                return
            if overlap >= 0:
                if overlap:
                    del buffer[-overlap:]
                buffer += data
                self._size += length - overlap
                self._drop_below(index, end)
                return
        self._starts.insert(index, offset)
        self._buffers.insert(index, bytearray(data))
        self._size += length
        self._drop_below(index + 1, end)
        if len(self._starts) > self._compact_over:
            self._compact()

    def hold(self, data: bytes) -> None:
        """Become `data`, from offset 0 on, without a copy. Nothing may be written or truncated afterwards."""
        self._starts, self._buffers, self._size = [0], [cast("bytearray", data)], len(data)

    def _drop_below(self, index: int, end: int) -> None:
        """Remove from piece `index` on whatever lies below `end`."""
        starts, buffers = self._starts, self._buffers
        if index == len(starts) or starts[index] >= end:
            return
        last = bisect_left(starts, end, index)
        # Piece `last - 1` starts below `end`; those before it end below it too.
        cut = end - starts[last - 1]
        if cut < len(buffers[last - 1]):
            last -= 1
            # CPython moves only the buffer's beginning here.
            del buffers[last][:cut]
            starts[last] = end
            self._size -= cut
        self._size -= sum(map(len, buffers[index:last]))
        del starts[index:last]
        del buffers[index:last]

    def _compact(self) -> None:
        starts: list[int] = []
        buffers: list[bytearray] = []
        end = -1
        for start, buffer in zip(self._starts, self._buffers, strict=True):
            if start == end:
                buffers[-1] += buffer
            else:
                starts.append(start)
                buffers.append(buffer)
            end = start + len(buffer)
        self._starts, self._buffers = starts, buffers
        self._compact_over = max(_COMPACT_OVER, 2 * len(starts))

    def truncate(self, length: int) -> None:
        """Forget every byte at or past `length`."""
        starts, buffers = self._starts, self._buffers
        index = bisect_left(starts, length)
        self._size -= sum(map(len, buffers[index:]))
        del starts[index:]
        del buffers[index:]
        if index and (excess := self.end - length) > 0:
            del buffers[-1][-excess:]
            self._size -= excess

    def clear(self) -> None:
        """Forget everything."""
        self.truncate(0)

    def overlay(self, buffer: bytearray | memoryview, base_offset: int = 0) -> None:
        """Copy the bytes held over `buffer`, which shows the chunk from `base_offset` on; what lies outside it is left out."""
        stop = base_offset + len(buffer)
        for index in range(max(bisect_right(self._starts, base_offset) - 1, 0), len(self._starts)):
            start, piece = self._starts[index], self._buffers[index]
            if start >= stop:
                return
            low = max(start, base_offset)
            high = min(start + len(piece), stop)
            if low < high:
                with memoryview(piece) as view:
                    buffer[low - base_offset : high - base_offset] = view[low - start : high - start]

    def read(self, offset: int, size: int) -> bytes | None:
        """Return `size` bytes from `offset` on if all of them are held, else None."""
        index = bisect_right(self._starts, offset) - 1
        if size <= 0:
            return b""
        if index < 0:
            return None
        stop = offset + size
        start, piece = self._starts[index], self._buffers[index]
        if stop <= start + len(piece):
            with memoryview(piece) as view:
                return bytes(view[offset - start : stop - start])
        parts: list[bytearray] = []
        position = offset
        while position < stop:
            if index == len(self._starts):
                return None
            start, piece = self._starts[index], self._buffers[index]
            if not start <= position < start + len(piece):
                return None
            parts.append(piece[position - start : stop - start])
            position = start + len(piece)
            index += 1
        return b"".join(parts)

    def covers(self, length: int) -> bool:
        """Return whether every byte from 0 to `length` is held."""
        if self._size < length:
            return False
        position = 0
        for start, piece in zip(self._starts, self._buffers, strict=True):
            if position >= length or start != position:
                break
            position = start + len(piece)
        return position >= length

    def whole(self, length: int) -> memoryview | None:
        """Return a view of the bytes from 0 to `length` without copying, if they are held in one piece, else None.

        The object must not be written to or truncated (BufferError) until the view is released.
        """
        if not self._starts or self._starts[0] != 0 or len(self._buffers[0]) < length:
            return None
        return memoryview(self._buffers[0])[:length]

    def ranges(self) -> list[tuple[int, bytes]]:
        """Return (offset, contents) of each range, ascending, touching ones joined."""
        self._compact()
        return [(start, bytes(piece)) for start, piece in zip(self._starts, self._buffers, strict=True)]
