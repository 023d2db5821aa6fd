"""A chunk's value against the bytes it stands for."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fsdecloud import codec
from fsdecloud.errors import MalformedError
from fsdecloud.fs import chunks
from fsdecloud.fs.chunks import Hole, Inline, Patch, Stored
from fsdecloud.limits import CHUNK_SIZE, INLINE_MAX, MAX_PATCHES
from fsdecloud.types import EntryId, Ref

SPACE = 64


def make_ref(number):
    return Ref(EntryId(number.to_bytes(32, "big")), bytes(32))


class ChunkMachine(RuleBasedStateMachine):
    """One chunk that is written, patched, folded, truncated and grown, with entries in a dictionary."""

    def __init__(self):
        super().__init__()
        self.value = Hole()
        self.entries: dict[Ref, bytes] = {}
        self.data = bytearray(SPACE)

    def store(self, data):
        ref = make_ref(len(self.entries))
        self.entries[ref] = data
        return ref

    def assembled(self, size):
        opened = [self.entries[ref] for ref in chunks.refs(self.value)]
        has_base = isinstance(self.value, Stored) and self.value.ref is not None
        return chunks.assemble(self.value, opened.pop(0) if has_base else None, opened, size)

    @rule(data=st.binary(min_size=1, max_size=SPACE), is_inline=st.booleans())
    def write_whole(self, data, is_inline):
        self.value = Inline(data) if is_inline else Stored(len(data), self.store(data))
        self.data = bytearray(data.ljust(SPACE, b"\0"))

    @precondition(lambda self: chunks.can_patch(self.value))
    @rule(offset=st.integers(0, SPACE - 1), data=st.binary(min_size=1, max_size=20))
    def patch(self, offset, data):
        data = data[: SPACE - offset]
        self.value = chunks.with_patch(self.value, Patch(offset, len(data), self.store(data)))
        self.data[offset : offset + len(data)] = data
        if len(self.value.patches) > 8:
            self.fold()

    @rule()
    def fold(self):
        size = chunks.extent(self.value)
        if size:
            self.write_whole(self.assembled(size), is_inline=False)

    @rule(size=st.integers(0, SPACE))
    def truncate(self, size):
        self.value = chunks.clip(self.value, size)
        self.data[size:] = bytes(SPACE - size)
        assert chunks.extent(self.value) <= size

    @invariant()
    def shows_the_bytes(self):
        for size in (0, 1, chunks.extent(self.value), SPACE):
            assert self.assembled(size) == self.data[:size]
        assert not any(self.data[chunks.extent(self.value) :])

    @invariant()
    def survives_the_tree(self):
        assert chunks.decode_chunk(chunks.encode_chunk(self.value)) == self.value


TestChunks = ChunkMachine.TestCase
TestChunks.settings = settings(max_examples=100, stateful_step_count=25, deadline=None)


def test_what_a_truncation_cut_off_never_shows_again():
    """Truncate, then grow by a patch further on: zeros in between, though the entry still has the old bytes."""
    value = chunks.clip(Stored(10, make_ref(1)), 4)
    value = chunks.with_patch(value, Patch(8, 2, make_ref(2)))
    assert chunks.assemble(value, b"0123456789", [b"xy"], 12) == b"0123\0\0\0\0xy\0\0"


def test_folding():
    value = Stored(1000, make_ref(1))
    assert not chunks.needs_fold(value)
    for number in range(MAX_PATCHES):
        value = chunks.with_patch(value, Patch(number * 2, 1, make_ref(number)))
        assert not chunks.needs_fold(value)
    full = chunks.with_patch(value, Patch(999, 1, make_ref(5)))
    assert chunks.needs_fold(full)
    with pytest.raises(MalformedError):
        chunks.encode_chunk(full)
    half = chunks.with_patch(value, Patch(0, 500, make_ref(5)))
    assert len(half.patches) == 1
    assert not chunks.needs_fold(half)
    assert chunks.needs_fold(chunks.with_patch(value, Patch(0, 501, make_ref(5))))
    assert not chunks.needs_fold(Hole())
    assert not chunks.needs_fold(Inline(b"x"))


def test_patching():
    patch = Patch(0, 10, make_ref(1))
    assert chunks.with_patch(Hole(), patch) == Stored(0, None, (patch,))
    assert chunks.with_patch(Stored(10, make_ref(2)), patch) == Stored(0, None, (patch,))
    assert chunks.with_patch(Stored(11, make_ref(2)), patch) == Stored(11, make_ref(2), (patch,))
    assert not chunks.can_patch(Inline(b"x"))
    with pytest.raises(ValueError, match="inline"):
        chunks.with_patch(Inline(b"x"), patch)


def test_a_full_chunk_value_fits_a_tree_value():
    patches = tuple(Patch(CHUNK_SIZE - 1 - number, 1, make_ref(number)) for number in range(MAX_PATCHES))
    assert len(chunks.encode_chunk(Stored(CHUNK_SIZE, make_ref(1), patches))) < 6 << 10


REF = [bytes(32), bytes(32)]


@pytest.mark.parametrize(
    "fields",
    [
        [1, b""],
        [1, bytes(INLINE_MAX + 1)],
        [2, 0, REF, []],
        [2, CHUNK_SIZE + 1, REF, []],
        [2, -1, REF, []],
        [2, 5, None, []],
        [2, 5, None, [[0, 1, REF]]],
        [2, 0, None, []],
        [2, 0, REF, [[0, 1, REF]]],
        [2, 5, [bytes(31), bytes(32)], []],
        [2, 5, [bytes(32), bytes(33)], []],
        [2, 5, REF, [[-1, 2, REF]]],
        [2, 5, REF, [[0, 0, REF]]],
        [2, 5, REF, [[CHUNK_SIZE, 1, REF]]],
        [2, 5, REF, [[1 << 63, 1, REF]]],
        [2, 5, REF, [[0, 1, [b"", b""]]]],
        [2, 5, REF, [[0, 1, REF]] * (MAX_PATCHES + 1)],
        [2, 5, REF],
        [2, 5, REF, [], 0],
        [3],
        [],
    ],
)
def test_fault_90_values_that_make_no_sense_are_malformed(fields):
    with pytest.raises(MalformedError):
        chunks.decode_chunk(codec.encode(fields))


@given(st.binary(max_size=100))
def test_any_bytes_decode_to_a_value_or_are_malformed(data):
    try:
        value = chunks.decode_chunk(data)
    except MalformedError:
        return
    assert chunks.encode_chunk(value) == data


def test_entries_that_are_not_what_the_value_says_are_malformed():
    value = Stored(5, make_ref(1), (Patch(1, 2, make_ref(2)),))
    for base, patches in (
        (None, [b"xy"]),
        (b"1234", [b"xy"]),
        (b"12345", [b"x"]),
        (b"12345", []),
        (b"12345", [b"xy"] * 2),
    ):
        with pytest.raises(MalformedError):
            chunks.assemble(value, base, patches, 5)
    assert chunks.assemble(value, b"12345", [b"xyz"], 5) == b"1xy45"
