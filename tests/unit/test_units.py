"""Sizes and times as people write them (fault 161)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdecloud.errors import UsageError
from fsdecloud.units import (
    SIZE_MAX,
    format_duration,
    format_rate,
    format_size,
    parse_duration,
    parse_percent,
    parse_rate,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1), ("512", 512), ("1k", 1024), ("1K", 1024), ("1KiB", 1024), ("1kb", 1024), ("10M", 10 << 20), ("1G", 1 << 30),
        ("1GiB", 1 << 30), ("1.5g", 3 << 29), ("0.5K", 512), ("2T", 2 << 40), (" 7 M ", 7 << 20), ("5B", 5),
    ],
)  # fmt: skip
def test_161_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "-1",
        "+1",
        "0",
        "1e9",
        "G",
        "1X",
        "1GG",
        "1.2.3",
        "0x10",
        "99999999T",
        "9" * 30,
        "١",
        "1,5G",
        "nan",
        "inf",
    ],
)
def test_161_bad_sizes_say_what_is_accepted(text: str) -> None:
    with pytest.raises(UsageError, match="cannot be") as caught:
        parse_size(text, "mount option cache_size")
    assert "mount option cache_size" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_161_range() -> None:
    with pytest.raises(UsageError, match=r"from 64\.0 MiB to"):
        parse_size("1K", smallest=64 << 20)
    assert parse_size("0", smallest=0) == 0


@pytest.mark.parametrize(("text", "seconds"), [("1", 1), ("1.5", 1.5), ("2m", 120), ("1.5h", 5400), ("1d", 86400)])
def test_161_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "-1", "1e9", "0", "1w", "inf", "99999d"])
def test_161_bad_durations(text: str) -> None:
    with pytest.raises(UsageError):
        parse_duration(text)


@given(st.text(max_size=20))
def test_161_any_text_gives_a_size_or_a_usage_error(text: str) -> None:
    try:
        size = parse_size(text)
    except UsageError:
        return
    assert 1 <= size <= SIZE_MAX


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (10 << 10, "10.0 KiB"), (1 << 20, "1.00 MiB"), (1023 << 10, "1.00 MiB"),
     (150 << 30, "150 GiB"), (1 << 60, "1024 PiB")],
)  # fmt: skip
def test_sizes_for_people(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (5.4, "5 s"), (65, "1 min 5 s"), (3700, "1 h 1 min"), (90000, "1 d 1 h")],
)
def test_times_for_people(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("0", 0),
        ("off", 0),
        ("64K", 65536),
        ("1.5m/s", 3 << 19),
        ("2 MiB/s", 2 << 20),
        ("40000", 40000),
        ("1G", 1 << 30),
    ],
)
def test_161_rates(text: str, rate: int) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "-1", "1", "31K", "fast", "1M/m", "/s"])
def test_161_bad_rates_say_what_is_accepted(text: str) -> None:
    with pytest.raises(UsageError, match="at least 32K, or 0 for no limit"):
        parse_rate(text, "mount option up")
    assert format_rate(0) == "no limit"
    assert format_rate(1536 << 10) == "1.50 MiB/s"


@pytest.mark.parametrize(
    ("text", "percent"), [("25%", 25), ("25", 25), (" 7 % ", 7), ("100%", 100), ("1", 1), ("007", 7)]
)
def test_161_percent(text: str, percent: int) -> None:
    assert parse_percent(text) == percent


@pytest.mark.parametrize("text", ["", "%", "0", "0%", "101", "1000", "-1", "2.5%", "a", "٣", "1e1", "50%%", "1\n2"])
def test_161_bad_percent_says_what_is_accepted(text: str) -> None:
    with pytest.raises(UsageError, match=r"--mine-duty cannot be .*from 1 to 100, such as 25%"):
        parse_percent(text, "--mine-duty")
