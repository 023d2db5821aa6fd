"""How well a peer answers, from what was seen of it: expected time of a request, and when to ask somebody else.

Two things make a peer come later in the order: what its answers took, and how late it was when somebody else was faster
(`overtaken`: its own answer is not waited for, so its time is never known). The second is forgotten within a minute, so
that a peer that was slow once is tried again.

Pure: the caller passes times and durations in seconds by a monotonic clock. Called from one thread.
"""

from __future__ import annotations

from math import exp2
from typing import Final

FIRST_LATENCY: Final = 0.002
FIRST_RATE: Final = 500e6
"""Seconds, and bytes per second, assumed of a peer that has not answered yet: the best there is, so that each is tried and
the work spreads over all of them."""

FIRST_DEVIATION: Final = 0.05
"""But no hurry to ask somebody else as long as nothing is known."""

_WEIGHT: Final = 0.125
"""Of a new sample in the moving averages; with `_HEDGE_DEVIATIONS`, TCP's estimator (RFC 6298)."""

_RATE_WEIGHT: Final = 0.25
"""Of a new sample in the rate's moving average, a geometric one: rates differ by powers of ten, and an arithmetic mean would
hide a peer that has become a thousand times slower behind its good past."""

_LATE_WEIGHT: Final = 0.5
LATE_HALF: Final = 15.0
"""Seconds after which half of a peer's lateness is forgotten."""

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

CHEAP: Final = 0.25
"""Seconds that a failure may take for somebody who waits to be sent into the next one: who is told at once that nobody listens
has lost nothing by asking. Who vanished in silence costs a time out each time, and only a probe waits for that (fault 46)."""


class PeerScore:
    """Running estimates for one peer."""

    __slots__ = (
        "_failed_in",
        "_failed_in_a_row",
        "_late",
        "_late_at",
        "deviation",
        "failures",
        "latency",
        "pending",
        "rate",
        "retry_at",
        "waiting",
    )

    def __init__(self) -> None:
        self.latency = FIRST_LATENCY
        self.deviation = FIRST_DEVIATION
        self.rate = FIRST_RATE
        self.pending = 0
        """Bytes asked of it and not yet answered."""
        self.waiting = 0
        """Bytes that wait to be asked of it."""
        self.failures = 0
        """Failed requests in all."""
        self.retry_at = 0.0
        """It failed last, and is to be left alone until then; 0 while it works."""
        self._failed_in_a_row = 0
        self._failed_in = 0.0
        """Seconds that the last failure took."""
        self._late = 0.0
        self._late_at = 0.0

    @property
    def fails_slowly(self) -> bool:
        """True while it is failing and that took long: nobody but a probe is to wait for it."""
        return self.is_failing and self._failed_in > CHEAP

    @property
    def is_failing(self) -> bool:
        """True from a failure until the next success."""
        return self._failed_in_a_row > 0

    def expected(self, size: int) -> float:
        """Return the seconds that an answer of `size` bytes should take, behind everything pending and waiting."""
        return self.latency + (self.pending + self.waiting + size) / self.rate

    def cost(self, size: int, now: float) -> float:
        """Return what to order peers by: the expected time, and how late it was lately."""
        return self.expected(size) + self.lateness(now)

    def lateness(self, now: float) -> float:
        """Return by how many seconds others were faster, most recent counting most."""
        return self._late * exp2(-max(0.0, now - self._late_at) / LATE_HALF)

    def overtaken(self, now: float, seconds: float) -> None:
        """Record that it had not answered after `seconds`, when others had."""
        before = self.lateness(now)
        self._late = before + _LATE_WEIGHT * max(seconds - before, 0.0)
        self._late_at = now

    def hedge_after(self, size: int) -> float:
        """Return how long to wait for `size` bytes before asking another peer as well: about the 95th percentile."""
        late = self.expected(size) + _HEDGE_DEVIATIONS * self.deviation
        return min(max(2 * late, HEDGE_MIN), HEDGE_MAX)

    def succeeded(self, size: int, seconds: float) -> None:
        """Record an answer; `size` is what was pending when it was asked for, itself included."""
        self.answered()
        if size > _SMALL:
            transfer = max(seconds - self.latency, seconds / 4, 1e-6)
            self.rate *= (size / transfer / self.rate) ** _RATE_WEIGHT
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
        self._failed_in = seconds
        wait = max(_RETRY_COST * seconds, min(_RETRY_STEP * self._failed_in_a_row, _RETRY_CHEAP_MAX))
        self.retry_at = now + min(wait, _RETRY_MAX) * (0.75 + jitter / 2)

    def may_try(self, now: float) -> bool:
        """True unless it failed a moment ago."""
        return now >= self.retry_at
