"""What a volume remembers of its past: a snapshot for each anchor, the record batches of all anchors, and the policy.

    H sequence          Snapshot    one for each retained snapshot: forgetting it deletes the row
    B sequence part     Batches     one or more for each anchor, never deleted: the history of operations is permanent
    B 0 0               Batches     says that the rows of all anchors are here (volumes of the first release lack them)
    R                   Policy

An anchor's rows cannot be in its own tree; they are in that of a later one. Pure: the present comes in as an argument.
Times are nanoseconds since 1970 unless the name says otherwise.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from fsdecloud import codec
from fsdecloud.errors import MalformedError, UsageError
from fsdecloud.fs.inode import InodeValue
from fsdecloud.fs.keys import batches_key, snapshot_key
from fsdecloud.fs.records import BatchEntry
from fsdecloud.types import EntryId, Ref
from fsdecloud.units import parse_duration

BATCHES_PER_ROW: Final = 64
"""Batch entries of one row, 8 KiB of them: a tree node stays small."""

NAME_MAX: Final = 64
LATEST: Final = "latest"

_SECOND: Final = 10**9
_NAME_CHARACTERS: Final = frozenset(string.ascii_letters + string.digits + "._-")
_TIERS_MAX: Final = 16


class Snapshot(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The state of a volume at one anchor."""

    version: int
    sequence: int
    """The anchor's sequence number, from 1 on."""
    time: int
    """When the anchor was made, by the writer's clock."""
    root: bytes
    """64-byte reference of the tree's root."""
    files: int
    size: int
    """Sum of the sizes of its regular files, in bytes."""
    records: int
    """How many operations its anchor records."""
    top: InodeValue
    """The root directory, so that listing snapshots reads none of their trees."""
    kept: bool = False
    """The policy never forgets it."""
    name: str = ""
    """A name given by its owner."""


class Batches(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One part of what an anchor's manifest says of its records, and the manifest."""

    version: int
    manifest: Ref
    batches: tuple[BatchEntry, ...]


class AnchorRow(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """All that the tree will say of one anchor."""

    snapshot: Snapshot
    manifest: Ref
    batches: tuple[BatchEntry, ...] = ()


class Tier(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How densely snapshots are retained up to some age. Seconds."""

    every: int
    """One in so many seconds, the first of each such span since 1970; 0: all."""
    until: int
    """Up to this age; 0: for ever."""


class Policy(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Which snapshots are retained: the tiers by age; what is older than the last one is forgotten."""

    version: int
    tiers: tuple[Tier, ...]


# ---- rows --------------------------------------------------------------------------------------------------------------
ALL_HERE: Final = (batches_key(0, 0), codec.encode(Batches(1, Ref(EntryId(bytes(32)), bytes(32)), ())))
"""The row which says that no anchor's rows are missing but those of the last few anchors."""


def encode_rows(row: AnchorRow) -> list[tuple[bytes, bytes]]:
    """Return the keys and values of an anchor, ascending by key."""
    sequence, batches = row.snapshot.sequence, row.batches
    parts = [batches[start : start + BATCHES_PER_ROW] for start in range(0, max(1, len(batches)), BATCHES_PER_ROW)]
    found = [
        (batches_key(sequence, number), codec.encode(Batches(1, row.manifest, part)))
        for number, part in enumerate(parts)
    ]
    return [*found, (snapshot_key(sequence), codec.encode(row.snapshot))]


def decode_snapshot(key: bytes, data: bytes) -> Snapshot:
    """Return a validated snapshot row. Raises MalformedError."""
    row = codec.decode(data, Snapshot)
    if row.version != 1 or row.sequence < 1 or key != snapshot_key(row.sequence) or len(row.root) != 64:
        raise MalformedError("a snapshot row that is not readable here")
    if row.name and not is_snapshot_name(row.name):
        raise MalformedError("a snapshot row with a bad name")
    return row


def decode_batches(data: bytes) -> Batches:
    """Return a validated row of record batches. Raises MalformedError."""
    row = codec.decode(data, Batches)
    if row.version != 1 or len(row.manifest.id) != 32 or len(row.batches) > BATCHES_PER_ROW:
        raise MalformedError("a row of record batches that is not readable here")
    return row


# ---- names -------------------------------------------------------------------------------------------------------------
def is_snapshot_name(name: str) -> bool:
    """Tell whether a snapshot may have this name: it starts with a letter, so that it is no number and no time."""
    return 0 < len(name) <= NAME_MAX and name[0] in string.ascii_letters and _NAME_CHARACTERS.issuperset(name)


def check_snapshot_name(name: str) -> str:
    """Return the name. Raises UsageError for one that no snapshot may have."""
    if not is_snapshot_name(name) or name == LATEST:
        raise UsageError(
            f"{name!r} cannot be a snapshot's name: use 1 to {NAME_MAX} letters, digits, '.', '_' or '-', a letter first, "
            f"and not {LATEST!r}"
        )
    return name


def directory_name(row: Snapshot) -> str:
    """Return the name of a snapshot's directory: time in UTC, and sequence number."""
    return f"{format_time(row.time // _SECOND)}-{row.sequence:06}"


def sequence_of_directory(name: str) -> int | None:
    """Return the sequence number in a snapshot directory's name, None if it is no such name."""
    time, dash, number = name.rpartition("-")
    if not dash or len(time) != 20 or not (number.isascii() and number.isdigit()) or len(number) > 19:
        return None
    return int(number) if parse_time(time) is not None else None  # a snapshot's own name may look nearly the same


def format_time(seconds: int) -> str:
    """Return a time in UTC as `2026-11-22T18.30.05Z`."""
    days, rest = divmod(seconds, 86400)
    year, month, day = _date(days)
    return f"{year:04}-{month:02}-{day:02}T{rest // 3600:02}.{rest // 60 % 60:02}.{rest % 60:02}Z"


def _date(days: int) -> tuple[int, int, int]:
    """Return the day that lies so many days after 1970-01-01 (days from civil; H. Hinnant, 2013)."""
    era, day_of_era = divmod(days + 719468, 146097)
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36524 - day_of_era // 146096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted = (5 * day_of_year + 2) // 153
    month = shifted + 3 if shifted < 10 else shifted - 9
    return year_of_era + era * 400 + (month <= 2), month, day_of_year - (153 * shifted + 2) // 5 + 1


def _days(year: int, month: int, day: int) -> int:
    """Return the days from 1970-01-01 to a date."""
    year -= month <= 2
    era, year_of_era = divmod(year, 400)
    day_of_year = (153 * (month - 3 if month > 2 else month + 9) + 2) // 5 + day - 1
    return era * 146097 + year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year - 719468


def parse_time(text: str) -> int | None:
    """Return the last second of what `parse_span` reads."""
    span = parse_span(text)
    return None if span is None else span[1]


def parse_span(text: str) -> tuple[int, int] | None:
    """Return the first and the last second, since 1970, of a time in UTC: `2026-11-22`, with `T18`, `T18:30` or `T18:30:05`
    and a `Z`.

    None for anything else. Dots do for colons.
    """
    date, _t, clock = text.removesuffix("Z").replace(".", ":").partition("T")
    numbers = date.split("-") + (clock.split(":") if clock else [])
    if len(date) != 10 or not 3 <= len(numbers) <= 6 or not all(n.isascii() and n.isdigit() for n in numbers):
        return None
    if any(len(number) != 2 for number in numbers[1:]):
        return None
    year, month, day, *rest = map(int, numbers)
    if not (year >= 1970 and 1 <= month <= 12) or _date(_days(year, month, day)) != (year, month, day):
        return None
    least, most = [*rest, 0, 0, 0][:3], [*rest, *(23, 59, 59)[len(rest) :]]
    if least[0] > 23 or least[1] > 59 or least[2] > 59:
        return None
    start = _days(year, month, day) * 86400
    return start + least[0] * 3600 + least[1] * 60 + least[2], start + most[0] * 3600 + most[1] * 60 + most[2]


def find_snapshot(rows: Sequence[Snapshot], text: str) -> Snapshot:
    """Return the snapshot that a person names: by sequence number, name, directory, time (the last one until then), or as
    `latest`. `rows` are ascending. Raises UsageError."""
    found: Snapshot | None
    wanted = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else sequence_of_directory(text)
    if wanted is not None:
        found = next((row for row in rows if row.sequence == wanted), None)
    elif text == LATEST:
        found = rows[-1] if rows else None
    elif is_snapshot_name(text):
        found = next((row for row in rows if row.name == text), None)
    else:
        limit = parse_time(text)
        if limit is None:
            raise UsageError(
                f"{text!r} names no snapshot: use a sequence number, a name, 'latest', or a time such as 2026-11-22T18:30"
            )
        found = max((row for row in rows if row.time // _SECOND <= limit), key=lambda row: row.sequence, default=None)
    if found is None:
        raise UsageError(f"there is no snapshot {text}: decloud snapshot list shows all")
    return found


# ---- the policy --------------------------------------------------------------------------------------------------------
_UNITS: Final = {"w": 7 * 86400, "y": 365 * 86400}


def parse_policy(text: str) -> Policy:
    """Return the policy that a person writes: `EVERY:AGE` for each tier, separated by commas, ages ascending.

    EVERY is `all` or a time, AGE a time or `forever`; a time is a number with m, h, d, w or y. Raises UsageError.
    """
    tiers: list[Tier] = []
    for word in text.split(","):
        every, colon, age = word.strip().partition(":")
        if not colon:
            raise UsageError(f"{word!r} is no part of a policy: write EVERY:AGE, such as all:24h,1h:7d,1d:forever")
        tier = Tier(0 if every == "all" else _seconds(every), 0 if age == "forever" else _seconds(age))
        if tiers and (tiers[-1].until == 0 or 0 < tier.until <= tiers[-1].until):
            raise UsageError("the ages of a policy must grow from part to part, and nothing comes after forever")
        tiers.append(tier)
    if len(tiers) > _TIERS_MAX:
        raise UsageError(f"a policy has at most {_TIERS_MAX} parts")
    return Policy(1, tuple(tiers))


def _seconds(text: str) -> int:
    if text[-1:] in _UNITS and text[:-1].isascii() and text[:-1].isdigit() and len(text) < 6:
        seconds = int(text[:-1]) * _UNITS[text[-1]]
    else:
        seconds = int(parse_duration(text, "a time of a policy", smallest=60))
    if seconds < 60:
        raise UsageError(f"{text!r} is too short for a policy: from a minute on")
    return seconds


def format_policy(policy: Policy) -> str:
    """Return the text that `parse_policy` reads as `policy`."""
    return ",".join(
        f"{_span(tier.every) if tier.every else 'all'}:{_span(tier.until) if tier.until else 'forever'}"
        for tier in policy.tiers
    )


def _span(seconds: int) -> str:
    for unit, size in (("y", 365 * 86400), ("w", 7 * 86400), ("d", 86400), ("h", 3600), ("m", 60)):
        if seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


DEFAULT_POLICY: Final = parse_policy("all:1d,1h:1w,1d:13w,1w:2y,4w:forever")
"""Everything of a day, then hourly for a week, daily for a quarter, weekly for two years, every fourth week after. Each span
is a multiple of the one before, so that thinning twice is thinning once."""


def decode_policy(data: bytes) -> Policy:
    """Return a validated policy. Raises MalformedError."""
    policy = codec.decode(data, Policy)
    if policy.version != 1 or not 0 < len(policy.tiers) <= _TIERS_MAX:
        raise MalformedError("a retention policy that is not readable here")
    if any(tier.every < 0 or tier.until < 0 for tier in policy.tiers):
        raise MalformedError("a retention policy with a negative time")
    return policy


def retained(rows: Iterable[Snapshot], policy: Policy, now: int) -> frozenset[int]:
    """Return the sequence numbers that the policy retains of `rows` (ascending); `now` is in seconds since 1970.

    The newest, and those kept or named by hand, are always among them. Of each span of a tier the first one stays, so that
    what stays today also stays tomorrow as long as its tier holds.
    """
    found: set[int] = set()
    taken: set[tuple[int, int]] = set()
    last = None
    for row in rows:
        last = row.sequence
        seconds = row.time // _SECOND
        age = max(0, now - seconds)
        place = next((i for i, tier in enumerate(policy.tiers) if not tier.until or age < tier.until), None)
        if row.kept or row.name:
            found.add(row.sequence)
        if place is None:
            continue
        every = policy.tiers[place].every
        span = (place, seconds // every) if every else (place, -row.sequence)
        if span not in taken:
            taken.add(span)
            found.add(row.sequence)
    if last is not None:
        found.add(last)
    return frozenset(found)
