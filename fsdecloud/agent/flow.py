"""How many bytes are asked of one peer at once (`swarm.window` decides), and who waits for that.

Called only from the trio thread. Foreground goes before background, each in the order in which it came.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import trio

from fsdecloud.limits import KIB, MIB, WINDOW_BYTES
from fsdecloud.swarm.window import Window

READ_WINDOW: Final = (4 * MIB, 512 * KIB, WINDOW_BYTES)
"""Bytes asked of one peer at first, at least and at most: read-ahead of a whole file spreads over all peers, and one of them
that is slow holds up little of it."""


class Flow:
    """The requests for shards to one peer."""

    def __init__(self, clock: Callable[[], float], sizes: tuple[int, int, int] = READ_WINDOW) -> None:
        self._clock = clock
        self.window = Window(*sizes)
        self._waiting: tuple[OrderedDict[trio.Event, int], OrderedDict[trio.Event, int]] = (
            OrderedDict(),
            OrderedDict(),
        )

    @asynccontextmanager
    async def slot(self, size: int, *, is_background: bool) -> AsyncIterator[None]:
        """Hold `size` bytes of the window within the block, and learn from how it ends."""
        if any(self._waiting) or not self.window.fits(size):
            await self._wait(size, is_background=is_background)
        else:
            self.window.sent(size, self._clock())
        start = self._clock()
        is_answered = False
        try:
            yield
            is_answered = True
        finally:
            if is_answered:
                now = self._clock()
                self.window.answered(size, now - start, now)
            else:
                self.window.dropped(size)
            self._let_go()

    async def _wait(self, size: int, *, is_background: bool) -> None:
        turn = trio.Event()
        queue = self._waiting[is_background]
        queue[turn] = size
        try:
            await turn.wait()
        except trio.Cancelled:
            if queue.pop(turn, None) is None:
                self.window.dropped(size)
            self._let_go()
            raise

    def _let_go(self) -> None:
        for queue in self._waiting:
            while queue:
                turn, size = next(iter(queue.items()))
                if not self.window.fits(size):
                    return
                del queue[turn]
                self.window.sent(size, self._clock())
                turn.set()
