"""How many bytes may be under way to one peer: more while more brings more, fewer when they only wait.

Pure: the caller passes times in seconds by a monotonic clock. Called from one thread.

A window's worth of answers is a round. After each round that the window held back, two things are known: the rate of the
round, and how much longer its answers took than the quickest lately (they queued somewhere: on a line, before a disk, in a
busy process). A round that brought clearly more than any before it lets the window grow; one that brought no more, and whose
answers waited, lets it shrink, down to what keeps the peer just busy. The idea is that of TCP Vegas (Brakmo, Peterson 1995),
with whole messages for packets.
"""

from __future__ import annotations

from typing import Final

GROWTH: Final = 1.5
SHRINK: Final = 0.8

_BETTER: Final = 1.05
"""A round that brings this much more than the best one is worth a larger window."""

_WAITED: Final = 2.0
"""Answers that take this many times the quickest one's time have waited for each other."""

_FORGET: Final = 0.95
"""Of the best rate, and of the quickest answer, for each round: lines and loads change."""


class Window:
    """The bytes under way to one peer."""

    __slots__ = (
        "_acked",
        "_best_rate",
        "_count",
        "_largest",
        "_quickest",
        "_round_start",
        "_smallest",
        "_sum",
        "_was_full",
        "in_flight",
        "rate",
        "size",
    )

    def __init__(self, start: int, smallest: int, largest: int) -> None:
        """Start with `start` bytes, and stay between the other two."""
        if not 0 < smallest <= start <= largest:
            raise ValueError("a window starts between its smallest and largest size")
        self._smallest = smallest
        self._largest = largest
        self.size = float(start)
        self.in_flight = 0
        self.rate = 0.0
        """Bytes per second of the last round, 0 before."""
        self._best_rate = 0.0
        self._quickest = 0.0
        self._round_start: float | None = None
        self._was_full = False
        self._acked = self._count = 0
        self._sum = 0.0

    def fits(self, size: int) -> bool:
        """Whether `size` bytes more may go; something always may when nothing is under way."""
        if self.in_flight == 0 or self.in_flight + size <= self.size:
            return True
        self._was_full = True
        return False

    def sent(self, size: int, now: float) -> None:
        """Count bytes that go."""
        if self._round_start is None:
            self._round_start = now
        self.in_flight += size

    def answered(self, size: int, seconds: float, now: float) -> None:
        """Count bytes whose answer came, `seconds` after they went."""
        self.in_flight -= size
        self._acked += size
        self._count += 1
        self._sum += seconds
        per_byte = seconds / max(size, 1)
        self._quickest = min(self._quickest or per_byte, per_byte)
        if self._acked >= self.size and self._count >= 2:
            self._end_round(now, self._sum / self._acked)
        if self.in_flight == 0:
            self._forget_round()  # the time until somebody wants more is nobody's delay

    def dropped(self, size: int) -> None:
        """Count bytes whose answer nobody waits for any more."""
        self.in_flight -= size
        if self.in_flight == 0:
            self._forget_round()

    def failed(self, size: int) -> None:
        """Count bytes that failed: whatever was too much, half of it is tried next."""
        self.dropped(size)
        self.size = max(self.size / 2, float(self._smallest))
        self._best_rate = 0.0

    def _end_round(self, now: float, per_byte: float) -> None:
        assert self._round_start is not None
        rate = self._acked / max(now - self._round_start, 1e-6)
        if self._was_full:
            if rate >= self._best_rate * _BETTER:
                self.size = min(self.size * GROWTH, float(self._largest))
            elif per_byte > self._quickest * _WAITED:
                self.size = max(self.size * SHRINK, float(self._smallest))
            self._quickest /= _FORGET
        self._best_rate = max(rate, self._best_rate * _FORGET)
        self.rate = rate
        self._forget_round()
        self._round_start = now

    def _forget_round(self) -> None:
        self._round_start = None
        self._was_full = False
        self._acked = self._count = 0
        self._sum = 0.0
