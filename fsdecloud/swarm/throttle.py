"""A limit on bytes per second, shared fairly: who goes next when the bucket has room (`swarm.bucket`).

Pure: the caller passes times in seconds by a monotonic clock. Called from one thread.

Whoever is next goes as soon as nothing is owed, however large its message. Small control messages wait for nobody: they are
charged, and others wait a little longer for it.

Who goes next: foreground has eight times the weight of background, so that neither stops; within each, the peer that was
given the fewest bytes (start-time fair queueing), so that one with a long queue takes nothing from the others; for one peer,
the order in which they came.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

from fsdecloud.swarm.bucket import TokenBucket

K = TypeVar("K", bound=Hashable)

BURST: Final = 0.1
"""Seconds of the rate that may be saved up while nobody sends: enough to not lose time between two messages."""

BACKGROUND_SHARE: Final = 8
"""Foreground gets this many bytes for each of the background's while both wait."""


class Turn(Generic[K]):
    """A place in the queue."""

    __slots__ = ("is_background", "key", "size")

    def __init__(self, key: K, size: int, *, is_background: bool) -> None:
        self.key = key
        self.size = size
        self.is_background = is_background


class _Class(Generic[K]):
    """The waiting turns of foreground or background, by key."""

    __slots__ = ("_start", "served", "waiting")

    def __init__(self) -> None:
        self.waiting: dict[K, deque[Turn[K]]] = {}
        self.served: dict[K, int] = {}
        """Bytes given to each key that waits, on a scale that begins with the latest to be served."""
        self._start = 0

    def push(self, turn: Turn[K]) -> None:
        queue = self.waiting.get(turn.key)
        if queue is None:
            queue = self.waiting[turn.key] = deque()
            self.served[turn.key] = max(self.served.get(turn.key, 0), self._start)
        queue.append(turn)

    def pop(self) -> Turn[K]:
        key = min(self.waiting, key=lambda key: self.served[key])
        turn = self.waiting[key].popleft()
        self._start = self.served[key]
        self.served[key] += turn.size
        self._tidy(key)
        return turn

    def remove(self, turn: Turn[K]) -> bool:
        queue = self.waiting.get(turn.key)
        if queue is None or turn not in queue:
            return False
        queue.remove(turn)
        self._tidy(turn.key)
        return True

    def _tidy(self, key: K) -> None:
        if not self.waiting[key]:
            del self.waiting[key]
        # Who is behind the start of the round has no debt to remember: this bounds the table.
        self.served = {k: v for k, v in self.served.items() if k in self.waiting or v > self._start}


class Throttle(Generic[K]):
    """A queue before a token bucket. `rate` 0: no limit, and no queue."""

    def __init__(self, rate: float, now: float) -> None:
        self._bucket = TokenBucket(rate, rate * BURST, now) if rate else None
        self._rate = rate
        self._classes: tuple[_Class[K], _Class[K]] = (_Class(), _Class())
        self._shares = [0.0, 0.0]
        """Bytes given to foreground and background, by weight, while both waited."""

    @property
    def rate(self) -> float:
        """Bytes per second, 0 without a limit."""
        return self._rate

    def change(self, rate: float, now: float) -> None:
        """Take another rate; with 0 whoever waits is due at once."""
        if rate and self._bucket is not None:
            self._bucket.change(rate, rate * BURST, now)
        else:
            self._bucket = TokenBucket(rate, rate * BURST, now) if rate else None
        self._rate = rate

    def enter(self, key: K, size: int, now: float, *, is_background: bool = False) -> Turn[K] | None:
        """Take `size` bytes at once and return None, or return a place in the queue."""
        if self._bucket is None:
            return None
        if not self._is_waited_for and self._bucket.wait(now) <= 0:
            self._bucket.take(size, now)
            return None
        turn = Turn(key, size, is_background=is_background)
        self._classes[is_background].push(turn)
        return turn

    def leave(self, turn: Turn[K]) -> bool:
        """Give up a place; False when its turn had come already (its bytes are spent)."""
        return self._classes[turn.is_background].remove(turn)

    def charge(self, size: int, now: float) -> None:
        """Count bytes that did not wait."""
        if self._bucket is not None:
            self._bucket.take(size, now)

    def due(self, now: float) -> Turn[K] | None:
        """Take the next turn off the queue if it may go now."""
        if not self._is_waited_for or (self._bucket is not None and self._bucket.wait(now) > 0):
            return None
        both = all(turns.waiting for turns in self._classes)
        if both:
            chosen = int(self._shares[1] < self._shares[0])
        else:
            chosen = int(not self._classes[0].waiting)
            self._shares = [0.0, 0.0]
        turn = self._classes[chosen].pop()
        if both:
            self._shares[chosen] += turn.size * (BACKGROUND_SHARE if chosen else 1)
        if self._bucket is not None:
            self._bucket.take(turn.size, now)
        return turn

    def due_at(self, now: float) -> float | None:
        """Return when `due` will give a turn, None while nobody waits."""
        if not self._is_waited_for:
            return None
        return now + self._bucket.wait(now) if self._bucket is not None else now

    @property
    def _is_waited_for(self) -> bool:
        return any(turns.waiting for turns in self._classes)
