"""The limits on what the agent sends and fetches, `up=` and `down=` (`swarm.throttle` decides who goes next).

Called only from the trio thread. Shard bytes wait here before they are asked for or sent; a message that moves none is
charged and waits for nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from fsdecloud.swarm.throttle import Throttle, Turn
from fsdecloud.types import PeerId


class Limiter:
    """One direction. `run` must be running while there is a limit."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._throttle: Throttle[PeerId] = Throttle(0, clock())
        self._waiting: dict[Turn[PeerId], trio.Event] = {}
        self._wake = trio.Event()

    @property
    def rate(self) -> int:
        """Bytes per second, 0 without a limit."""
        return int(self._throttle.rate)

    def set_rate(self, rate: int) -> None:
        """Take another limit, 0 for none."""
        self._throttle.change(rate, self._clock())
        self._wake.set()

    async def take(self, peer: PeerId, size: int, *, is_background: bool = False) -> None:
        """Wait for the turn of `size` bytes to or from a peer."""
        turn = self._throttle.enter(peer, size, self._clock(), is_background=is_background)
        if turn is None:
            return
        event = self._waiting[turn] = trio.Event()
        self._wake.set()
        try:
            await event.wait()
        finally:
            if self._waiting.pop(turn, None) is not None:
                self._throttle.leave(turn)

    def charge(self, size: int) -> None:
        """Count a message that does not wait."""
        self._throttle.charge(size, self._clock())

    async def run(self) -> None:
        """Let them go when their turn comes, until cancelled; sleeps while nobody waits."""
        while True:
            while (turn := self._throttle.due(self._clock())) is not None:
                self._waiting.pop(turn).set()
            self._wake = trio.Event()
            at = self._throttle.due_at(self._clock())
            with trio.CancelScope() as scope:
                if at is not None:
                    scope.deadline = trio.current_time() + max(0.0, at - self._clock())
                await self._wake.wait()
