"""The time that blocks get: the wall clock without its jumps.

One block that carries the time of a clock that was a day ahead for a moment keeps a small network from making another one for
that day. So a jump is believed only once it has lasted for BELIEVED_AFTER. Slow corrections are followed at once, and so is
what a suspended machine slept.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

JUMP: Final = 120.0
"""Seconds by which the wall clock differs at once from how long it was running; time daemons correct smaller errors slowly."""

BELIEVED_AFTER: Final = 600.0
"""Seconds. A machine that started with a wrong clock has it set right sooner; the daemon then follows this much later."""


def _boot_time() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class SteadyClock:
    """Called, it returns the time in Unix seconds. Both clocks can be given, for tests."""

    def __init__(self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = _boot_time) -> None:
        self._wall = wall
        self._steady = steady
        self._offset = wall() - steady()
        self._jumped_to = self._offset
        self._jumped_at = 0.0

    def __call__(self) -> int:
        """Return the time in Unix seconds."""
        now = self._steady()
        offset = self._wall() - now
        if abs(offset - self._offset) > JUMP:
            if abs(offset - self._jumped_to) > JUMP:
                self._jumped_at = now
            self._jumped_to = offset
            if now - self._jumped_at < BELIEVED_AFTER:
                return int(now + self._offset)
        self._offset = self._jumped_to = offset
        return int(now + offset)
