"""The filter of what is in use: it never forgets, rarely errs, and finds every reference of a tree's rows."""

import random

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from fsdecloud import codec
from fsdecloud.errors import MalformedError
from fsdecloud.fs.chunks import Hole, Inline, Patch, Stored, encode_chunk
from fsdecloud.fs.history import Batches
from fsdecloud.fs.keys import batches_key, chunk_key, inode_key, xattr_key
from fsdecloud.fs.marks import FIRST_LAYER, Marks, entries_of
from fsdecloud.fs.records import BatchEntry
from fsdecloud.types import EntryId, Ref

KEY = b"k" * 32


def entry(i):
    return EntryId(blake3(i.to_bytes(8, "big")).digest())


def ref(i):
    return Ref(entry(i), bytes(32))


@given(st.sets(st.integers(0, 10**6), max_size=300), st.binary(min_size=32, max_size=32))
def test_what_was_added_is_found(numbers, key):
    marks = Marks(key)
    marks.update(map(entry, numbers))
    again = Marks.decode(marks.encode())
    for number in numbers:
        assert entry(number) in marks
        assert entry(number) in again
    assert marks.count == again.count <= len(numbers)


def test_it_errs_rarely_grows_by_need_and_errs_differently_with_another_key():
    count = FIRST_LAYER * 2
    one, two = Marks(KEY), Marks(b"j" * 32)
    for i in range(count):
        one.add(entry(i))
        two.add(entry(i))
    assert all(entry(i) in one for i in range(0, count, 7))
    wrong = {i for i in range(count, count + 20_000) if entry(i) in one}
    assert len(wrong) < 400
    assert len({i for i in wrong if entry(i) in two}) < len(wrong) / 5 + 5
    assert one.size < 8 * count
    assert count * 0.98 < one.count <= count
    before = one.size
    one.update(entry(i) for i in range(count))  # what is known takes no room
    assert one.size == before


def test_an_empty_one_has_nothing():
    marks = Marks(KEY)
    assert entry(1) not in marks
    assert entry(1) not in Marks.decode(marks.encode())


def test_what_is_no_filter_is_refused():
    good = Marks(KEY)
    good.add(entry(1))
    data = good.encode()
    for bad in (b"", data[:-1], data + b"x", codec.encode([KEY, 1, [b"short"]]), codec.encode([b"k", 0, []])):
        with pytest.raises(MalformedError):
            Marks.decode(bad)


def test_every_reference_of_a_row_is_found():
    batch = BatchEntry(ref(7), 3, bytes(32))
    pairs = [
        (inode_key(1), b"whatever"),
        (chunk_key(2, 0), encode_chunk(Stored(10, ref(1), (Patch(0, 5, ref(2)), Patch(7, 5, ref(3)))))),
        (chunk_key(2, 1), encode_chunk(Stored(0, None, (Patch(0, 5, ref(4)),)))),
        (chunk_key(2, 2), encode_chunk(Inline(b"x"))),
        (chunk_key(2, 3), encode_chunk(Hole())),
        (xattr_key(2, b"user.x"), b"value"),
        (batches_key(5, 0), codec.encode(Batches(1, ref(6), (batch,)))),
    ]
    random.Random(1).shuffle(pairs)
    assert set(entries_of(pairs)) == {entry(i) for i in (1, 2, 3, 4, 6, 7)}
