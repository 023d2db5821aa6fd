"""Rows of snapshots, their names and times, and the retention policy."""

from __future__ import annotations

import calendar
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdecloud import codec
from fsdecloud.errors import MalformedError, UsageError
from fsdecloud.fs.history import (
    BATCHES_PER_ROW,
    DEFAULT_POLICY,
    AnchorRow,
    Snapshot,
    check_snapshot_name,
    decode_batches,
    decode_policy,
    decode_snapshot,
    directory_name,
    encode_rows,
    find_snapshot,
    format_policy,
    format_time,
    parse_policy,
    parse_time,
    retained,
    sequence_of_directory,
)
from fsdecloud.fs.inode import InodeValue
from fsdecloud.fs.keys import batches_key, snapshot_key
from fsdecloud.fs.records import BatchEntry
from fsdecloud.limits import NODE_MAX
from fsdecloud.types import EntryId, Ref

TOP = InodeValue(0o40755, 0, 0, 2, 0, 1, 1, 1, 1, 0, 0, 0, b"")
REF = Ref(EntryId(b"i" * 32), b"k" * 32)
DAY = 86400


def snapshot(sequence: int, seconds: int = 0, *, kept: bool = False, name: str = "") -> Snapshot:
    return Snapshot(1, sequence, seconds * 10**9, b"r" * 64, 3, 1000, 5, TOP, kept, name)


# ---- rows --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("count", [0, 1, BATCHES_PER_ROW, BATCHES_PER_ROW + 1, 1000])
def test_rows_of_an_anchor_hold_all_its_batches_in_small_values(count: int) -> None:
    batches = tuple(BatchEntry(REF, number, b"m" * 32) for number in range(count))
    rows = encode_rows(AnchorRow(snapshot(7), REF, batches))
    assert rows == sorted(rows)
    assert all(len(value) <= NODE_MAX for _key, value in rows)
    *parts, (key, value) = rows
    assert decode_snapshot(key, value) == snapshot(7)
    assert [key for key, _ in parts] == [batches_key(7, number) for number in range(len(parts))]
    found = [decode_batches(value) for _key, value in parts]
    assert sum((part.batches for part in found), ()) == batches
    assert all(part.manifest == REF for part in found)


def test_bad_rows_are_refused() -> None:
    for bad in (
        codec.encode(Snapshot(2, 7, 0, b"r" * 64, 0, 0, 0, TOP)),
        codec.encode(Snapshot(1, 8, 0, b"r" * 64, 0, 0, 0, TOP)),
        codec.encode(Snapshot(1, 7, 0, b"r" * 63, 0, 0, 0, TOP)),
        codec.encode(Snapshot(1, 7, 0, b"r" * 64, 0, 0, 0, TOP, False, "../up")),
        b"",
    ):
        with pytest.raises(MalformedError):
            decode_snapshot(snapshot_key(7), bad)
    with pytest.raises(MalformedError):
        decode_batches(b"\x90")
    with pytest.raises(MalformedError):
        decode_policy(b"\x92\x01\x90")


# ---- names and times -------------------------------------------------------------------------------------------------
@given(st.integers(0, 250_000_000_000))
def test_times_are_those_of_the_c_library(seconds: int) -> None:
    text = format_time(seconds)
    assert text == time.strftime("%Y-%m-%dT%H.%M.%SZ", time.gmtime(seconds))
    assert parse_time(text) == seconds
    assert parse_time(text.replace(".", ":").removesuffix("Z")) == seconds


def test_a_part_of_a_time_means_its_end() -> None:
    assert parse_time("2024-02-29") == calendar.timegm((2024, 2, 29, 23, 59, 59))
    assert parse_time("2024-02-29T07") == calendar.timegm((2024, 2, 29, 7, 59, 59))
    assert parse_time("2024-02-29T07:05Z") == calendar.timegm((2024, 2, 29, 7, 5, 59))
    for bad in ("2023-02-29", "2024-13-01", "2024-1-1", "2024-01-01T24", "2024-01-01T7", "2024-01-01Tx", "x", "", "T"):
        assert parse_time(bad) is None, bad


@given(st.integers(1, 1 << 60), st.integers(0, 10**10))
def test_directory_names_lead_back(sequence: int, seconds: int) -> None:
    name = directory_name(snapshot(sequence, seconds))
    assert sequence_of_directory(name) == sequence
    assert find_snapshot([snapshot(sequence, seconds)], name).sequence == sequence


def test_a_name_as_long_as_a_time_is_a_name() -> None:
    rows = [snapshot(1), snapshot(9, name="before-big-migration-1")]
    assert sequence_of_directory("before-big-migration-1") is None
    assert find_snapshot(rows, "before-big-migration-1").sequence == 9
    with pytest.raises(UsageError):
        find_snapshot(rows, "before-big-migration-9")


def test_snapshots_are_found_by_what_a_person_says() -> None:
    rows = [snapshot(1, 100), snapshot(2, 200, name="before"), snapshot(5, 2 * DAY)]
    assert find_snapshot(rows, "1").sequence == 1
    assert find_snapshot(rows, "before").sequence == 2
    assert find_snapshot(rows, "latest").sequence == 5
    assert find_snapshot(rows, "1970-01-01").sequence == 2
    assert find_snapshot(rows, "1970-01-01T00:01").sequence == 1
    for text in ("3", "after", "1969-01-01", "1970-01-01T00:00", "1970-01-01T00.01.40Z-000009"):
        with pytest.raises(UsageError):
            find_snapshot(rows, text)


@pytest.mark.parametrize("name", ["", "latest", "1st", "a/b", ".hidden", "-x", "ä", "a" * 65, "a b", "a\n"])
def test_names_that_no_snapshot_may_have(name: str) -> None:
    with pytest.raises(UsageError):
        check_snapshot_name(name)


# ---- the policy --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "text", ["all:1d,1h:1w,1d:forever", "all:forever", "1h:2h", "all:1d,1h:1w,1d:13w,1w:2y,4w:forever"]
)
def test_policies_are_written_as_they_are_read(text: str) -> None:
    policy = parse_policy(text)
    assert format_policy(policy) == text
    assert decode_policy(codec.encode(policy)) == policy


@pytest.mark.parametrize(
    "text",
    ["", "all", "1h:7d,all:1d", "1h:1d,1h:1d", "all:forever,1h:1d", "0:1d", "x:1d", "1s:1d", "-1h:1d", "1h:1e9d"],
)
def test_policies_that_make_no_sense(text: str) -> None:
    with pytest.raises(UsageError):
        parse_policy(text)


rows_strategy = st.lists(st.tuples(st.integers(0, 3 * 365 * DAY), st.booleans()), max_size=60).map(
    lambda found: [snapshot(i + 1, seconds, kept=kept) for i, (seconds, kept) in enumerate(sorted(found))]
)


@given(rows_strategy, st.integers(0, 4 * 365 * DAY))
def test_the_newest_and_the_kept_stay_and_a_day_is_whole(rows: list[Snapshot], now: int) -> None:
    stay = retained(rows, DEFAULT_POLICY, now)
    assert stay <= {row.sequence for row in rows}
    assert not rows or rows[-1].sequence in stay
    for row in rows:
        if row.kept or now - row.time // 10**9 < DAY:
            assert row.sequence in stay


@given(rows_strategy, st.integers(0, 4 * 365 * DAY), st.integers(0, 365 * DAY))
def test_thinning_twice_is_thinning_once(rows: list[Snapshot], now: int, later: int) -> None:
    """Whenever the policy is applied in between: no snapshot is missed in the end."""
    rows = [*rows, snapshot(10_000, 4 * 365 * DAY)]  # the newest is always there
    once = retained(rows, DEFAULT_POLICY, now + later)
    first = retained(rows, DEFAULT_POLICY, now)
    twice = retained([row for row in rows if row.sequence in first], DEFAULT_POLICY, now + later)
    assert twice == once


@given(rows_strategy)
def test_every_span_that_had_a_snapshot_has_one(rows: list[Snapshot]) -> None:
    now = 3 * 365 * DAY
    stay = retained(rows, parse_policy("1d:forever"), now)
    days = {row.time // 10**9 // DAY for row in rows}
    assert {row.time // 10**9 // DAY for row in rows if row.sequence in stay} == days
    assert len([row for row in rows if row.sequence in stay and not row.kept]) <= len(days) + 1


def test_what_is_older_than_the_policy_goes() -> None:
    rows = [snapshot(1, 0), snapshot(2, 50 * DAY), snapshot(3, 99 * DAY), snapshot(4, 0, name="n")]
    assert retained(rows, parse_policy("all:60d"), 100 * DAY) == {2, 3, 4}
