"""When what is stored gets another redundancy, and who takes which shard then.

Pure. What the owner asks for (k/n) holds for everything, old and new, stronger or weaker. With `auto` what is stored only ever
becomes stronger: peers that go for a while, or for good, weaken nothing that they leave whole. And it becomes so only when
enough peers have been there for long (`Steadiness`): re-coding moves every byte, and peers that come together may go so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fsdecloud import codec
from fsdecloud.errors import MalformedError
from fsdecloud.limits import KIB
from fsdecloud.swarm.policy import STEPS, Redundancy
from fsdecloud.swarm.repair import choose_places
from fsdecloud.types import PeerId, ShardId

TINY_BLOB: Final = 4 * KIB
"""A blob up to this is stored as whole copies, as many as survive the same losses: coding would save nothing, and shards of
a few bytes could be equal, so that their receipts would not count."""


def coding_of(redundancy: Redundancy, length: int) -> Redundancy:
    """Return the k and n of a blob of `length` bytes in a volume with this redundancy."""
    return Redundancy(1, redundancy.copies) if length <= TINY_BLOB else redundancy


def should_recode(now: Redundancy, target: Redundancy, *, is_asked: bool) -> bool:
    """Say whether a blob coded as `now` is to be coded as `target`: always if it is asked for, else to survive more losses."""
    return now != target and (is_asked or target.copies > now.copies)


class Steadiness:
    """For how long there have been enough peers for each step of `auto`.

    Only time that was watched counts. While a step's peers are there its time grows; while some of them are away, but
    expected back, it stands still; it begins again when there are fewer than the step needs even so.
    """

    def __init__(self, encoded: bytes = b"") -> None:
        """Go on from what `encode` gave. Raises MalformedError."""
        rows = codec.decode(encoded, tuple[tuple[int, int], ...]) if encoded else ()
        if any(n < 1 or seconds < 0 for n, seconds in rows):
            raise MalformedError("steps of redundancy that are none")
        self._seconds: dict[int, float] = {n: float(seconds) for n, seconds in rows}

    def encode(self) -> bytes:
        """Return what is to be kept over a restart, b"" for nothing."""
        rows = tuple((n, int(seconds)) for n, seconds in sorted(self._seconds.items()) if seconds)
        return codec.encode(rows) if rows else b""

    def watched(self, present: int, expected: int, seconds: float, enough: float) -> None:
        """Note that for the last `seconds` so many peers were there, and so many with those that are expected back.

        More than `enough` seconds are not counted.
        """
        for n, _ in STEPS:
            if present >= n:
                self._seconds[n] = min(self._seconds.get(n, 0.0) + seconds, enough)
            elif expected < n:
                self._seconds.pop(n, None)

    def step(self, enough: float) -> Redundancy | None:
        """Return the best step whose peers were there for `enough` seconds, None if there is none."""
        return next((Redundancy(k, n) for n, k in STEPS if self._seconds.get(n, -1.0) >= enough), None)


@dataclass(frozen=True, slots=True)
class Plan:
    """Where the shards of a blob's new code go: `kept` are there already, as shards of the old one."""

    kept: Mapping[int, PeerId]
    sent: Mapping[int, PeerId]


def plan_recoding(
    shards: Sequence[ShardId],
    held: Mapping[ShardId, Collection[PeerId]],
    ranking: Sequence[PeerId],
    is_usable: Callable[[PeerId], bool],
    avoid: Container[PeerId] = (),
    labels: Mapping[PeerId, tuple[bytes, bytes]] | None = None,
    stored: Mapping[int, PeerId] | None = None,
) -> Plan:
    """Return who has, and who gets, which of a blob's new `shards`; some are left out when there are too few peers.

    `held` says who has which shard of the old code: codes with the same k begin with the same shards, and copies are all the
    same, so these need not be sent again. `stored` was sent already. Each peer has one shard at most.
    """
    known = dict(stored or {})
    taken = set(known.values())
    kept: dict[int, PeerId] = {}
    for is_own in (True, False):  # each copy with the host that the ranking names for it, if that one has one
        for index, shard in enumerate(shards):
            if index in known or index in kept:
                continue
            own = ranking[index] if index < len(ranking) else None
            for peer in [own] if is_own else held.get(shard, ()):
                if peer is not None and peer in held.get(shard, ()) and peer not in taken:
                    kept[index] = peer
                    taken.add(peer)
                    break
    due = [index for index in range(len(shards)) if index not in known and index not in kept]
    return Plan(kept, choose_places(due, known | kept, ranking, len(shards), is_usable, avoid, labels))
