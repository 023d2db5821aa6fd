"""How long answers take, so that one that is late can be told from one that is not: the 95th percentile of its class.

Pure. Called from one thread.

A class is a distance (by the peer's latency) and a size (of what was asked for), each by powers of four. What counts is how
others of the same class did lately, not how this peer did: one that has become slow must not raise the bar for itself.
"""

from __future__ import annotations

from collections import deque
from math import ceil, log2
from typing import Final

KEPT: Final = 128
"""Answers remembered of each class: a few seconds of a busy reader."""

ENOUGH: Final = 20
"""With fewer a 95th percentile says nothing."""

QUANTILE: Final = 0.95

_NEAREST: Final = 0.001
"""Seconds of latency up to which a peer is as near as can be."""

_RECOUNT: Final = 8
"""The percentile is computed again after so many new answers."""


class _Class:
    __slots__ = ("_fresh", "_times", "_value")

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=KEPT)
        self._fresh = 0
        self._value = 0.0

    def add(self, seconds: float) -> None:
        self._times.append(seconds)
        self._fresh += 1

    def percentile(self) -> float | None:
        if len(self._times) < ENOUGH:
            return None
        if self._fresh >= _RECOUNT:
            self._value = sorted(self._times)[ceil(QUANTILE * len(self._times)) - 1]
            self._fresh = 0
        return self._value


class AnswerTimes:
    """The latest answers of all peers, by class."""

    def __init__(self) -> None:
        self._classes: dict[tuple[int, int], _Class] = {}

    def add(self, latency: float, size: int, seconds: float) -> None:
        """Note that a peer of this latency took `seconds` for an answer of `size` bytes."""
        self._classes.setdefault(_key(latency, size), _Class()).add(seconds)

    def percentile(self, latency: float, size: int) -> float | None:
        """Return the 95th percentile of the class, None while too little is known of it."""
        found = self._classes.get(_key(latency, size))
        return found.percentile() if found is not None else None


def _key(latency: float, size: int) -> tuple[int, int]:
    return max(0, ceil(log2(max(latency, _NEAREST) / _NEAREST) / 2)), max(size, 1).bit_length() // 2
