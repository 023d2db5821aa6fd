"""The votes that a node has seen, on whatever chain: whoever signs two that contradict each other is found out.

Pure. Bounded: of each voter the votes for the highest checkpoints, and of all voters those that voted last. What contradicts a
vote that was forgotten is not noticed here; another node may still have it, and anybody may bring both votes later.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from fsdecloud.ledger.staking import is_conflict
from fsdecloud.ledger.transactions import Vote

KEPT: Final = 32
"""Votes kept of one voter: as many checkpoints as two chains may part before, many times over."""

VOTERS_MAX: Final = 4096
"""Voters remembered: with KEPT votes of about 200 bytes each, 26 MiB at most."""


class VoteBook:
    """Votes by voter. Their signatures are valid: whoever calls has checked them."""

    def __init__(self) -> None:
        self._votes: OrderedDict[bytes, list[tuple[Vote, bytes]]] = OrderedDict()

    def note(self, vote: Vote, data: bytes) -> tuple[bytes, bytes] | None:
        """Remember a vote and its encoding; return the encodings of an earlier one and it if nobody may sign both."""
        known = self._votes.setdefault(vote.peer, [])
        self._votes.move_to_end(vote.peer)
        if any(data == other for _, other in known):
            return None
        found = next(((other, data) for earlier, other in known if is_conflict(earlier, vote)), None)
        known.append((vote, data))
        if len(known) > KEPT:
            known.remove(min(known, key=lambda item: item[0].target_height))
        if len(self._votes) > VOTERS_MAX:
            self._votes.popitem(last=False)
        return found
