"""Which of the daemons that called gives way when one more has called than there is room for; which of those we called.

Pure. After Bitcoin Core's eviction of inbound connections: whoever wants to take all places for himself must be better than
the honest ones in every respect at once. Protected are, one after another, those of a few network groups that he cannot
guess, those that last gave us new blocks and new transactions, and of the rest the older half. Of what is left, the network
group with most connections gives up its youngest one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from blake3 import blake3

PROTECTED: Final = 4
"""Connections protected for each of: their group, their blocks, their transactions."""


@dataclass(frozen=True, slots=True)
class Caller:
    """One inbound connection. Times are monotonic seconds; 0 for never."""

    number: int
    group: bytes
    since: float
    last_block: float
    last_tx: float


def choose_eviction(callers: Sequence[Caller], secret: bytes) -> Caller | None:
    """Return the connection to give up; None while all are protected. `secret` is 32 bytes that nobody else knows."""

    def place(caller: Caller) -> float:
        return -float(int.from_bytes(blake3(caller.group, key=secret).digest(6)))

    def block(caller: Caller) -> float:
        return caller.last_block

    def tx(caller: Caller) -> float:
        return caller.last_tx

    rest = list(callers)
    rest = _without_best(rest, place, PROTECTED)
    rest = _without_best(rest, block, PROTECTED)
    rest = _without_best(rest, tx, PROTECTED)
    rest = _without_best(rest, lambda caller: -caller.since, len(rest) // 2)
    if not rest:
        return None
    counts = Counter(caller.group for caller in rest)
    return max(rest, key=lambda caller: (counts[caller.group], caller.since))


@dataclass(frozen=True, slots=True)
class Callee:
    """One outgoing connection that no person asked for. Times are monotonic seconds; 0 for never."""

    number: int
    since: float
    last_block: float


def choose_surplus(callees: Sequence[Callee]) -> Callee | None:
    """Return the outgoing connection to give up when there is one too many: the one whose last new block is longest ago, of
    those that never gave any the youngest; None when there are none."""
    return min(callees, key=lambda callee: (callee.last_block, -callee.since), default=None)


def _without_best(callers: list[Caller], key: Callable[[Caller], float], count: int) -> list[Caller]:
    """Return all but the `count` with the largest key."""
    return sorted(callers, key=key)[: max(0, len(callers) - count)]
