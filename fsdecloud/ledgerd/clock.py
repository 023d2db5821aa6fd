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


OTHERS_MIN: Final = 3
"""Others whose clocks are compared with ours; fewer say nothing."""

OFF: Final = 600.0
"""Seconds by which the others' median may differ from our clock before a person is told. Time is never set by others: who
surrounds a daemon would move it at will."""


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


class ClockWatch:
    """Compares this machine's clock with those of the daemons it called (any hashable names them)."""

    def __init__(self) -> None:
        self._offsets: dict[object, int] = {}

    def heard(self, who: object, offset: int) -> None:
        """Note by how many seconds somebody's clock is ahead of ours."""
        self._offsets[who] = offset

    def gone(self, who: object) -> None:
        """Forget somebody."""
        self._offsets.pop(who, None)

    def warning(self) -> str:
        """Return what a person should be told; empty when the clocks agree."""
        offsets = sorted(self._offsets.values())
        middle = offsets[len(offsets) // 2] if len(offsets) >= OTHERS_MIN else 0
        if abs(middle) <= OFF:
            return ""
        way = "ahead of" if middle < 0 else "behind"
        return (
            f"this machine's clock is about {abs(middle)} s {way} those of {len(offsets)} other daemons: set it right"
        )
