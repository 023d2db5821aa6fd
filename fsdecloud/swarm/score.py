"""How well a peer answers, from what was seen of it: expected time of a request, and when to ask somebody else.

Pure: the caller passes times and durations in seconds by a monotonic clock. Called from one thread.
"""

from __future__ import annotations

from typing import Final

FIRST_LATENCY: Final = 0.002
FIRST_RATE: Final = 500e6
"""Seconds, and bytes per second, assumed of a peer that has not answered yet: the best there is, so that each is tried and
the work spreads over all of them."""

FIRST_DEVIATION: Final = 0.05
"""But no hurry to ask somebody else as long as nothing is known."""

_WEIGHT: Final = 0.125
"""Of a new sample in the moving averages; with `_HEDGE_DEVIATIONS`, TCP's estimator (RFC 6298)."""

_SMALL: Final = 32 << 10
"""An answer up to this tells latency; a longer one tells the rate."""

HEDGE_MIN: Final = 0.05
"""A second request sooner than this would double the load whenever the machine stutters."""

HEDGE_MAX: Final = 2.0
_HEDGE_DEVIATIONS: Final = 4.0

_RETRY_COST: Final = 10.0
"""A peer that fails is left alone for ten times as long as its failure took: a refused connection is nearly free to
try again, a black hole is not."""
_RETRY_STEP: Final = 0.5
_RETRY_CHEAP_MAX: Final = 3.0
_RETRY_MAX: Final = 30.0


class PeerScore:
    """Running estimates for one peer."""

    __slots__ = ("_failed_in_a_row", "deviation", "failures", "latency", "pending", "rate", "retry_at")

    def __init__(self) -> None:
        self.latency = FIRST_LATENCY
        self.deviation = FIRST_DEVIATION
        self.rate = FIRST_RATE
        self.pending = 0
        """Bytes asked of it and not yet answered."""
        self.failures = 0
        """Failed requests in all."""
        self.retry_at = 0.0
        """It failed last, and is to be left alone until then; 0 while it works."""
        self._failed_in_a_row = 0

    @property
    def is_failing(self) -> bool:
        """True from a failure until the next success."""
        return self._failed_in_a_row > 0

    def expected(self, size: int) -> float:
        """Return the seconds that an answer of `size` bytes should take, behind everything pending."""
        return self.latency + (self.pending + size) / self.rate

    def hedge_after(self, size: int) -> float:
        """Return how long to wait for `size` bytes before asking another peer as well: about the 95th percentile."""
        late = self.expected(size) + _HEDGE_DEVIATIONS * self.deviation
        return min(max(2 * late, HEDGE_MIN), HEDGE_MAX)

    def succeeded(self, size: int, seconds: float) -> None:
        """Record an answer; `size` is what was pending when it was asked for, itself included."""
        self.answered()
        if size > _SMALL:
            transfer = max(seconds - self.latency, seconds / 4, 1e-6)
            self.rate += _WEIGHT * (size / transfer - self.rate)
            return
        self.deviation += _WEIGHT * (abs(seconds - self.latency) - self.deviation)
        self.latency += _WEIGHT * (seconds - self.latency)

    def answered(self) -> None:
        """Record an answer that says nothing about its speed."""
        self.retry_at = 0.0
        self._failed_in_a_row = 0

    def failed(self, now: float, seconds: float, jitter: float) -> None:
        """Record a failure after `seconds`; `jitter` in [0, 1) spreads the return of many clients (fault 53)."""
        self.failures += 1
        self._failed_in_a_row += 1
        wait = max(_RETRY_COST * seconds, min(_RETRY_STEP * self._failed_in_a_row, _RETRY_CHEAP_MAX))
        self.retry_at = now + min(wait, _RETRY_MAX) * (0.75 + jitter / 2)

    def may_try(self, now: float) -> bool:
        """True unless it failed a moment ago."""
        return now >= self.retry_at
