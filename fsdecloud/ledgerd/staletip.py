"""When a tip that does not move is a sign that all who are connected keep the network from us.

Pure: every time is given, in monotonic seconds. After Bitcoin Core's rule for stale tips. Whoever holds all outgoing
connections of a daemon need not lie to it: he says nothing. So a daemon whose tip stands still, though there should be blocks,
calls one more than it otherwise would, and gives up the worst connection afterwards (`eviction.choose_surplus`): that costs
little when the network is only slow, and the attacker has to win the draw of an address again and again. Not here: the call
(`hub`).
"""

from __future__ import annotations

from typing import Final

STALE_INTERVALS: Final = 4
"""Block intervals without a new tip: by chance alone that is so once in 55 blocks."""

STALE_MIN: Final = 60.0
"""Seconds at least, in networks with quick blocks."""


class TipWatch:
    """How long the tip has stood still though it should not."""

    def __init__(self, interval: float, now: float, *, mines_always: bool) -> None:
        """`interval` is the network's; without `mines_always` blocks come only when there is something to record."""
        self.patience = max(STALE_INTERVALS * interval, STALE_MIN)
        self._mines_always = mines_always
        self._since = now if mines_always else None

    def moved(self, now: float) -> None:
        """There is a new tip."""
        self._since = now if self._mines_always else None

    def is_stale(self, now: float, *, is_block_due: bool) -> bool:
        """Return whether to look for somebody else. `is_block_due` is whether somebody claims a better chain than ours, or a
        transaction waits for a block: what a network that mines on demand is judged by."""
        if not self._mines_always and not is_block_due:
            self._since = None
        elif self._since is None:
            self._since = now
        return self._since is not None and now - self._since >= self.patience

    def tried(self, now: float) -> None:
        """Somebody else was called: wait as long again."""
        self._since = now
