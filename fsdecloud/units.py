"""How a person writes a size or a time, and how we write one back.

Pure. One parser for every option, so that all of them accept the same forms.
"""

from __future__ import annotations

import re
from typing import Final

from fsdecloud.errors import UsageError

SIZE_FORMS: Final = "a number of bytes, or one with K, M, G or T (also KiB, MB, 1.5G; powers of 1024)"
RATE_FORMS: Final = "bytes per second with K, M or G (512K, 1.5M; powers of 1024), at least 32K, or 0 for no limit"
DURATION_FORMS: Final = "a number of seconds, or one with s, m, h or d (also 1.5h)"

_SIZE: Final = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,9})?) ?([kmgtKMGT]?)(?:i?[bB])?", re.ASCII)
_DURATION: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?) ?([smhd]?)", re.ASCII)
_POWERS: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}

SIZE_MAX: Final = 1 << 60
RATE_MIN: Final = 32 << 10
"""A chunk of 1 MiB takes half a minute then; with less its reader would give up before, and begin again."""
DURATION_MAX: Final = 10 * 365 * 86400.0


def parse_size(text: str, what: str = "a size", *, smallest: int = 1, largest: int = SIZE_MAX) -> int:
    """Return the bytes that `text` names. Raises UsageError, saying which forms are accepted, also out of range."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{what} cannot be {text!r}: write {SIZE_FORMS}")
    number, unit = match.groups()
    factor = 1024 ** _POWERS[unit.lower()]
    size = int(number) * factor if number.isdigit() else int(float(number) * factor)
    if not smallest <= size <= largest:
        raise UsageError(f"{what} cannot be {text!r}: from {format_size(smallest)} to {format_size(largest)}")
    return size


def parse_rate(text: str, what: str = "a rate") -> int:
    """Return the bytes per second that `text` names, 0 for no limit. Raises UsageError, saying which forms are accepted."""
    number = text.strip().lower().removesuffix("/s")
    if number in ("0", "off", "none"):
        return 0
    try:
        return parse_size(number, what, smallest=RATE_MIN)
    except UsageError as exc:
        raise UsageError(f"{what} cannot be {text!r}: write {RATE_FORMS}") from exc


def parse_duration(text: str, what: str = "a time", *, smallest: float = 0.001, largest: float = DURATION_MAX) -> float:
    """Return the seconds that `text` names. Raises UsageError, saying which forms are accepted, also out of range."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{what} cannot be {text!r}: write {DURATION_FORMS}")
    number, unit = match.groups()
    seconds = float(number) * _SECONDS[unit]
    if not smallest <= seconds <= largest:
        raise UsageError(f"{what} cannot be {text!r}: from {smallest:g} to {largest:g} seconds")
    return seconds


def parse_percent(text: str, what: str = "a share") -> int:
    """Return the whole percent, 1 to 100, that `text` names. Raises UsageError, saying which forms are accepted."""
    match = re.fullmatch(r"([0-9]{1,3}) ?%?", text.strip(), re.ASCII)
    if match is None or not 1 <= int(match[1]) <= 100:
        raise UsageError(f"{what} cannot be {text!r}: write a whole number of percent from 1 to 100, such as 25%")
    return int(match[1])


def format_size(size: int) -> str:
    """Return `size` bytes for people: three digits and a binary unit."""
    if size < 1024:
        return f"{size} B"
    value = float(size)
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        value /= 1024
        if value < 999.5 or unit == "PiB":
            break
    return f"{value:.2f} {unit}" if value < 9.995 else f"{value:.1f} {unit}" if value < 99.95 else f"{value:.0f} {unit}"


def format_rate(rate: int) -> str:
    """Return bytes per second for people; 0 is no limit."""
    return f"{format_size(rate)}/s" if rate else "no limit"


def format_duration(seconds: float) -> str:
    """Return a time span for people: its two largest units."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
