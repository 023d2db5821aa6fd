"""How redundantly a blob is stored: k of n shards are enough to read it.

Pure. The default follows the number of usable peers (design.md, "Data"): all of its steps store three bytes for one and
survive the loss of two thirds of the holders; more peers mean the same cost and better odds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fsdecloud.errors import UsageError

SHARDS_MAX: Final = 48
"""Largest n: a location row with as many ids and exceptions still fits into a tree value (4 KiB)."""

AUTO: Final = "auto"

STEPS: Final = ((30, 10), (12, 4), (6, 2), (3, 1))
"""(peers needed = n, k), best first."""


@dataclass(frozen=True, slots=True)
class Redundancy:
    """Any `k` of `n` shards rebuild the blob; k = 1 is plain replication."""

    k: int
    n: int

    def __str__(self) -> str:
        return f"{self.k}/{self.n}"

    @property
    def copies(self) -> int:
        """Whole copies that survive as many lost peers as the code does: n - k + 1."""
        return self.n - self.k + 1


def parse_redundancy(text: str) -> Redundancy | None:
    """Return what `text` asks for: None for "auto", else the k/n it names. Raises UsageError."""
    if text == AUTO:
        return None
    first, slash, second = text.partition("/")
    if not (slash and first.isascii() and first.isdigit() and second.isascii() and second.isdigit()):
        raise UsageError(f"redundancy is 'auto' or K/N such as 2/6, not {text!r}")
    redundancy = Redundancy(int(first), int(second))
    if not 1 <= redundancy.k <= redundancy.n <= SHARDS_MAX:
        raise UsageError(f"redundancy K/N needs 1 <= K <= N <= {SHARDS_MAX}, not {text}")
    return redundancy


def choose_redundancy(wanted: Redundancy | None, usable: int) -> tuple[Redundancy, str]:
    """Return the redundancy for new blobs with `usable` peers, and a warning ("" if all is well).

    A volume with a fixed k/n keeps it even when there are too few peers: its blobs wait for more.
    """
    if wanted is not None:
        missing = wanted.n - usable
        return wanted, f"{missing} more peers are needed for redundancy {wanted}" if missing > 0 else ""
    for n, k in STEPS:
        if usable >= n:
            return Redundancy(k, n), ""
    return Redundancy(1, 1), "fewer than 3 peers: every byte is stored once only and is lost with its peer"


def anchorable(k: int, n: int) -> int:
    """Return how many distinct peers must hold a shard before an anchor may name the blob: k + ceil((n-k)/2)."""
    return k + (n - k + 1) // 2
