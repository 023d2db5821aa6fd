"""Rows of a shard store's index (`store.shards` says what they are for). Big-endian."""

from __future__ import annotations

import struct
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

from fsdecloud.store.segments import Location
from fsdecloud.types import ShardId

PLACE: Final = struct.Struct(">QQI")
"""Segment, offset, length: all of a row that was written before owners were noted."""

STATE: Final = struct.Struct(">BI")
"""Flags; since when it is doomed, 0 while it is not."""

KEPT: Final = 1
"""Flag: somebody unknown has stored it as well."""

LEASED: Final = 2
"""Flag: the claims have terms. An older release wrote them without."""

CLAIM: Final = struct.Struct(">III")
"""Number of the deal, time, end of its lease in lease time (`peerd.leases`), 0 for none."""

OLD_CLAIM: Final = struct.Struct(">II")

COUNT: Final = struct.Struct(">QQ")
"""Of one segment, or of all (key b"total"): live shards, live bytes."""

NUMBER: Final = struct.Struct(">I")


Keeps: TypeAlias = Callable[[ShardId], bool]
"""Whether a shard has to stay whatever its claims say. Asked in the writer's thread, once for each shard that would go."""


def keeps_nothing(_shard: ShardId) -> bool:
    """Let every shard go: nothing is promised but what the claims say."""
    return False


class Claim(NamedTuple):
    """Under which deal a shard is stored."""

    deal: bytes
    """The deal's public key, b"" for an owner that nobody knows."""
    owner: bytes
    """The key whose grants may delete, b"" for none. The first one that a deal shows when it stores something is bound."""


UNKNOWN: Final = Claim(b"", b"")


class Deletion(NamedTuple):
    """A grant as far as the store is concerned; whoever calls has verified it."""

    deal: bytes
    nonce: bytes
    time: int
    """Claims made later than this stay."""
    expires: int
    shards: Sequence[ShardId]


class Row(NamedTuple):
    """What the index says of a shard."""

    place: Location
    is_kept: bool
    doomed: int
    claims: Mapping[int, int]
    """By number of the deal: when it stored the shard."""
    leases: Mapping[int, int] = {}
    """By number of the deal: the end of its lease, in lease time. A claim that is missing here has no term."""

    @classmethod
    def decode(cls, data: bytes) -> Row:
        """Return the row that `encode` made, or an older release."""
        place = Location(*PLACE.unpack_from(data))
        if len(data) == PLACE.size:
            return cls(place, True, 0, {})
        flags, doomed = STATE.unpack_from(data, PLACE.size)
        rest = data[PLACE.size + STATE.size :]
        if not flags & LEASED:
            return cls(place, bool(flags & KEPT), doomed, dict(OLD_CLAIM.iter_unpack(rest)))
        claims, leases = {}, {}
        for number, time, end in CLAIM.iter_unpack(rest):
            claims[number] = time
            if end:
                leases[number] = end
        return cls(place, bool(flags & KEPT), doomed, claims, leases)

    def encode(self) -> bytes:
        """Return the row's bytes."""
        place = PLACE.pack(self.place.segment, self.place.offset, self.place.length)
        state = STATE.pack((KEPT if self.is_kept else 0) | LEASED, self.doomed)
        return b"".join((place, state, *(CLAIM.pack(n, t, self.leases.get(n, 0)) for n, t in self.claims.items())))

    @property
    def first_end(self) -> int:
        """When the first of its leases ends, 0 while none does: it is kept for somebody unknown, or nobody has a term."""
        return 0 if self.is_kept else min(self.leases.values(), default=0)

    def without(self, deals: Container[int]) -> Row:
        """Return the row without the claims of some deals."""
        claims = {number: time for number, time in self.claims.items() if number not in deals}
        return self._replace(claims=claims, leases={n: end for n, end in self.leases.items() if n in claims})


class Usage(dict[int, tuple[int, int]]):
    """By number of the deal: how many shards and bytes more, or fewer, it holds."""

    def add(self, row: Row, deals: Iterable[int], sign: int) -> None:
        """Note that these deals hold the row's shard (1), or no longer (-1)."""
        for number in deals:
            count, size = self.get(number, (0, 0))
            self[number] = count + sign, size + sign * row.place.length


class Compaction:
    """Segments that are being emptied, and what is known of their shards."""

    __slots__ = ("is_scanned", "last", "shards", "victims")

    def __init__(self, victims: set[int]) -> None:
        self.victims = victims
        self.last = b""
        """The last row looked at."""
        self.is_scanned = False
        self.shards: list[ShardId] = []
