"""What one miner's shares say: how fast it is, and how hard the next ones should be.

Pure: the caller passes times in seconds by a monotonic clock. A share with target T stands for 2^256 / (T + 1) hashes, so the
work that shares prove is the work that was done, whatever a miner claims. Their target follows the miner's speed: about one
share in SHARE_EVERY seconds is enough for a number on a page, and costs nobody anything.
"""

from __future__ import annotations

from typing import Final

from fsdecloud.ledger.work import work_of
from fsdecloud.wire.work import SHARE_WORK_MIN

SHARE_EVERY: Final = 4.0
"""Seconds between two shares that the target aims at."""

FIRST_WORK: Final = 1 << 18
"""Hashes per share at first: some tenths of a second of one core."""

STEP: Final = 8
"""Shares after which a miner that is much faster than thought gets a harder target, without waiting for the next job."""

SPAN: Final = 30.0
"""Seconds after which what was counted weighs half."""


class ShareRate:
    """The shares of one miner."""

    def __init__(self, now: float) -> None:
        self.shares = 0
        """All that counted."""
        self._work = 0.0
        """Hashes proved since `_since`."""
        self._since = now
        self._per_share = FIRST_WORK
        self._recent = 0
        """Shares since the target was last chosen."""

    def count(self, target: bytes) -> bool:
        """Count a share found for this share target; return whether the target should be chosen again at once."""
        self.shares += 1
        self._recent += 1
        self._work += work_of(target)
        return self._recent >= STEP

    def hash_rate(self, now: float) -> float:
        """Return hashes per second, averaged over the last minute or so; 0.0 while no share has come."""
        age = now - self._since
        if age > 2 * SPAN:
            self._work *= SPAN / age
            self._since = now - SPAN
            age = SPAN
        return self._work / max(age, 1.0)

    def choose_target(self, block_target: bytes, now: float) -> bytes:
        """Return the share target for the next job: found every SHARE_EVERY seconds, never harder than the block."""
        if self.shares:
            wanted = int(self.hash_rate(now) * SHARE_EVERY)
            self._per_share = max(SHARE_WORK_MIN, self._per_share // 8, min(self._per_share * 8, wanted))
        self._recent = 0
        easiest = ((1 << 256) // self._per_share - 1).to_bytes(32)
        return max(easiest, block_target)
