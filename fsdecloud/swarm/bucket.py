"""A token bucket: so much a second, and a burst after a silence.

Pure: the caller passes times in seconds by a monotonic clock. Called from one thread.

The bucket may go into debt: whoever comes takes as much as is needed, however much that is, and waits until it is paid off
(or the next one does). So what is larger than a second's worth still goes, and the rate holds over any longer time.
"""

from __future__ import annotations


class TokenBucket:
    """`rate` tokens a second, of which at most `burst` are saved up; it begins full."""

    __slots__ = ("_burst", "_level", "_rate", "_stamp")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        """Raises ValueError for a rate of nothing."""
        if rate <= 0:
            raise ValueError("a rate is more than nothing")
        self._rate = rate
        self._burst = burst
        self._level = burst
        self._stamp = now

    def take(self, tokens: float, now: float) -> float:
        """Take tokens, there or not; return for how many seconds some are owed now."""
        self._fill(now)
        self._level -= tokens
        return max(0.0, -self._level / self._rate)

    def wait(self, now: float) -> float:
        """Return for how many seconds some are owed."""
        return 0.0 if self._level >= 0 else self.take(0, now)

    def change(self, rate: float, burst: float, now: float) -> None:
        """Go on with another rate. What is owed is owed in time, so that a slow past does not block a fast future."""
        self._fill(now)
        if self._level < 0:
            self._level *= rate / self._rate
        self._rate, self._burst = rate, burst
        self._level = min(self._level, burst)

    def _fill(self, now: float) -> None:
        gained = max(0.0, now - self._stamp) * self._rate
        self._stamp = max(now, self._stamp)
        self._level = min(self._level + gained, self._burst)
