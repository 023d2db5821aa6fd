"""Records are cut into entries that can be sealed, whatever the length of their paths."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fsdecloud import codec
from fsdecloud.fs.records import RECORDS_PER_ENTRY, Operation, Record, decode_records, split_rows
from fsdecloud.limits import CHUNK_SIZE


@given(st.lists(st.tuples(st.integers(0, 140_000), st.integers(1, 1500)), max_size=8))
def test_pieces_hold_all_rows_in_order_and_fit_an_entry(runs: list[tuple[int, int]]) -> None:
    rows = [bytes(size) for size, count in runs for _ in range(count if size < 5000 else 1 + count % 9)]
    parts = split_rows(rows)
    assert [row for part in parts for row in part] == rows
    for part in parts:
        assert 0 < len(part) <= RECORDS_PER_ENTRY
        data = codec.encode(part)
        assert len(data) <= CHUNK_SIZE
        assert decode_records(data) == part


def test_pieces_are_as_large_as_they_may_be() -> None:
    assert split_rows([]) == []
    assert [len(part) for part in split_rows([b"x"] * (2 * RECORDS_PER_ENTRY + 1))] == [4096, 4096, 1]
    half = CHUNK_SIZE // 2
    assert [len(part) for part in split_rows([bytes(half)] * 3)] == [1, 1, 1], "two halves and their headers do not fit"
    assert [len(part) for part in split_rows([bytes(half - 8)] * 4)] == [2, 2]


def test_the_longest_record_fits() -> None:
    path = b"/" + b"/".join([b"x" * 255] * 257)
    row = codec.encode(Record(1 << 62, Operation.RENAME, 1 << 62, path, path, 1 << 32, b"x" * 15, 0, 1 << 62))
    assert len(codec.encode(split_rows([row] * 20)[0])) <= CHUNK_SIZE
