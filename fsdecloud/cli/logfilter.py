"""Which records of the log a person wants to see.

No I/O: the present time and the users of this machine come in as arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fsdecloud.errors import UsageError
from fsdecloud.fs.history import parse_span
from fsdecloud.fs.records import Operation, Record
from fsdecloud.units import parse_duration

_SECOND: Final = 10**9

_TWO_PATHS: Final = frozenset(
    (Operation.RENAME, Operation.LINK, Operation.EXCHANGE, Operation.RESTORE, Operation.CERTIFY)
)
"""Operations whose second path is one in the volume, and not a target, a name or a text."""


@dataclass(frozen=True, slots=True)
class LogFilter:
    """What a record must be; None and empty: anything."""

    path: bytes | None = None
    """From the volume's root: this file or directory, and all below it."""
    since: int | None = None
    """First and last nanosecond since 1970."""
    until: int | None = None
    programs: frozenset[bytes] = frozenset()
    users: frozenset[int] = frozenset()
    operations: frozenset[int] = frozenset()

    def matches(self, record: Record) -> bool:
        """Tell whether a record is wanted."""
        return (
            (self.since is None or record.time >= self.since)
            and (self.until is None or record.time <= self.until)
            and (not self.operations or record.operation in self.operations)
            and (not self.programs or record.program in self.programs)
            and (not self.users or record.uid in self.users)
            and (self.path is None or self._touches(record, self.path))
        )

    def _touches(self, record: Record, path: bytes) -> bool:
        return is_within(record.path, path) or (record.operation in _TWO_PATHS and is_within(record.path2, path))


def is_within(path: bytes, top: bytes) -> bool:
    """Tell whether a path is `top` or below it; both begin at the volume's root."""
    top = top.rstrip(b"/")
    return path == top or path.startswith(top + b"/")


def parse_moment(text: str, now: int, *, is_end: bool, what: str) -> int:
    """Return the nanosecond since 1970 that a person names: a time in UTC (its first one, or with `is_end` its last), or how
    long ago before `now` (in nanoseconds). Raises UsageError."""
    span = parse_span(text)
    if span is not None:
        return span[1] * _SECOND + _SECOND - 1 if is_end else span[0] * _SECOND
    try:
        return now - int(parse_duration(text, what) * _SECOND)
    except UsageError as exc:
        raise UsageError(
            f"{what} cannot be {text!r}: write a time in UTC such as 2026-11-22T18:30, or how long ago, such as 90m or 2d"
        ) from exc


def parse_operation(text: str) -> int:
    """Return the operation that a person names as the log does. Raises UsageError with all names."""
    try:
        return Operation[text.upper()]
    except KeyError:
        names = ", ".join(operation.name.lower() for operation in Operation)
        raise UsageError(f"--op {text!r} is no operation: one of {names}") from None


def parse_user(text: str, uid_of: Callable[[str], int | None]) -> int:
    """Return the user id that a person names by number or name. Raises UsageError for a name that this machine lacks."""
    if text.isascii() and text.isdigit() and len(text) <= 10:
        return int(text)
    uid = uid_of(text)
    if uid is None:
        raise UsageError(f"there is no user {text!r} on this machine: give the number")
    return uid
