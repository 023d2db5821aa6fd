"""Dirty ranges against a byte array and a mask."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fsdecloud.fs.extents import Extents
from fsdecloud.limits import CHUNK_SIZE, KIB

SPACE = 200
offsets = st.integers(0, SPACE - 1)


class ExtentsMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.extents = Extents()
        self.data = bytearray(SPACE)
        self.mask = bytearray(SPACE)
        self.counter = 0

    @rule(offset=offsets, size=st.integers(0, 60), as_view=st.booleans())
    def write(self, offset, size, as_view):
        size = min(size, SPACE - offset)
        data = bytes((self.counter + position) % 255 + 1 for position in range(size))
        self.counter += 7
        self.extents.write(offset, memoryview(b"<" + data + b">")[1:-1] if as_view else data)
        self.data[offset : offset + size] = data
        self.mask[offset : offset + size] = b"\1" * size

    @rule(start=offsets, count=st.integers(1, 200), is_descending=st.booleans())
    def write_bytes_in_order(self, start, count, is_descending):
        positions = range(start, min(start + count, SPACE))
        for position in reversed(positions) if is_descending else positions:
            self.write(position, 1, as_view=False)

    @rule(count=st.integers(1, 100), seed=st.integers(0, 9))
    def write_scattered_bytes(self, count, seed):
        for position in random.Random(seed).choices(range(SPACE), k=count):
            self.write(position, 1, as_view=False)

    @rule(length=st.integers(0, SPACE))
    def truncate(self, length):
        self.extents.truncate(length)
        self.data[length:] = bytes(SPACE - length)
        self.mask[length:] = bytes(SPACE - length)

    @rule()
    def clear(self):
        self.extents.clear()
        self.data = bytearray(SPACE)
        self.mask = bytearray(SPACE)

    @rule(offset=offsets, size=st.integers(0, SPACE))
    def read(self, offset, size):
        stop = offset + size
        is_held = stop <= SPACE and all(self.mask[offset:stop])
        expected = bytes(self.data[offset:stop]) if is_held else None
        assert self.extents.read(offset, size) == expected

    @rule(offset=offsets, size=st.integers(0, SPACE))
    def overlay(self, offset, size):
        buffer = bytearray(size)
        self.extents.overlay(buffer, offset)
        assert buffer == self.data[offset : offset + size].ljust(size, b"\0")

    @rule(length=st.integers(0, SPACE + 1))
    def covers(self, length):
        is_held = length <= SPACE and all(self.mask[:length])
        assert self.extents.covers(length) == is_held
        view = self.extents.whole(length)
        assert view is None or (view == self.data[:length] and (is_held or not length))

    @rule()
    def ranges(self):
        expected, position = [], 0
        while (start := self.mask.find(1, position)) >= 0:
            position = self.mask.find(0, start)
            position = SPACE if position < 0 else position
            expected.append((start, bytes(self.data[start:position])))
        assert self.extents.ranges() == expected
        assert self.extents.pieces == len(expected)

    @invariant()
    def is_consistent(self):
        assert self.extents.size == sum(self.mask)
        assert bool(self.extents) == any(self.mask)
        assert self.extents.end == self.mask.rfind(1) + 1
        position = 0
        for start, piece in zip(self.extents._starts, self.extents._buffers, strict=True):
            assert piece
            assert start >= position
            position = start + len(piece)


TestExtents = ExtentsMachine.TestCase
TestExtents.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


def test_a_sequential_fill_is_one_piece_and_is_read_without_a_copy():
    extents = Extents()
    block = bytes(range(256)) * 16
    for offset in range(0, CHUNK_SIZE, len(block)):
        extents.write(offset, block)
    assert extents.pieces == 1
    assert extents.covers(CHUNK_SIZE)
    view = extents.whole(CHUNK_SIZE)
    assert view is not None
    assert view == block * (CHUNK_SIZE // len(block))
    with pytest.raises(BufferError):
        extents.write(CHUNK_SIZE, b"x")
    view.release()
    extents.write(CHUNK_SIZE, b"x")


def test_any_order_of_filling_ends_with_few_pieces():
    size = 4 * KIB
    for order in (range(255, -1, -1), random.Random(1).sample(range(256), 256)):
        extents = Extents()
        for number in order:
            extents.write(number * size, bytes([number]) * size)
        assert extents.pieces <= 256
        assert extents.covers(CHUNK_SIZE)
        assert extents.read(0, CHUNK_SIZE) == b"".join(bytes([number]) * size for number in range(256))
        assert [offset for offset, _ in extents.ranges()] == [0]


def test_a_negative_offset_is_refused():
    with pytest.raises(ValueError, match="negative"):
        Extents().write(-1, b"x")
