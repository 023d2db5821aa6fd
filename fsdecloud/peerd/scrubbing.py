"""When a peer reads its own shards again: slowly, beside everything else (what is read, and how: `store.scrub`).

A pass takes at most half the period and the other half is rest, so that each shard is read about once in every period. A
store that is small for its period is read at RATE_MIN. Requests go first: a step waits while there is traffic, though not
for ever. A shard whose read failed for a client is looked at at once.

Called only from the trio thread; the disk is read in a worker thread, damage is decided in the writer's.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

import trio

from fsdecloud.errors import StoreError
from fsdecloud.limits import KIB, MIB
from fsdecloud.peerd.writer import ShardWriter
from fsdecloud.store.scrub import Progress, Scrub
from fsdecloud.store.segments import Location
from fsdecloud.store.shards import ShardStore
from fsdecloud.types import ShardId

log = logging.getLogger(__name__)

RATE_MIN: Final = 256 * KIB
RATE_MAX: Final = 32 * MIB
"""Bytes a second: the least, so that a small store is soon done and sleeps; the most, whatever the period says."""

SEEK: Final = 16 * KIB
"""Bytes that each shard is reckoned at besides its own: what a spinning disk could have read meanwhile, and the hashing."""

SCAN_PAUSE: Final = 0.02
"""Seconds between two looks at the index."""

FIRST: Final = 30.0
"""Seconds after the start before anything is read: whoever comes back has other work first."""

BUSY_LOOK: Final = 0.1
BUSY_MAX: Final = 2.0
"""How often, and for how long, a step waits for the traffic to pause: at most half a MiB a second beside it."""

SAVE_INTERVAL: Final = 60.0
"""The progress is written this often: a restart reads at most that much twice."""

RETRY: Final = 60.0
TRIES: Final = 3
"""Pause after the disk failed, and how often a shard is tried before it is left out of the pass."""

SUSPECTS_MAX: Final = 1024

LOOK_AGAIN: Final = 3600.0
"""Longest sleep: periods are measured by the wall clock, which may be set."""


class Scrubber:
    """Scrubbing of one peer. `run` in a nursery."""

    def __init__(
        self, *, store: ShardStore, writer: ShardWriter, period: float, is_busy: Callable[[], bool] = lambda: False
    ) -> None:
        """`period` in seconds, 0: nothing is read but what a client's read failed for. Raises StoreError."""
        self._store = store
        self._writer = writer
        self._period = period
        self._is_busy = is_busy
        self._scrub = Scrub(store)
        self._suspects: deque[ShardId] = deque(maxlen=SUSPECTS_MAX)
        self._wake = trio.Event()
        self._saved = trio.current_time()
        self._failures = 0
        self.errors = 0
        """Reads that failed without telling whether the shard is damaged, since the start."""
        self.last_error = ""

    @property
    def progress(self) -> Progress:
        """Where scrubbing stands."""
        return self._scrub.progress

    def suspect(self, shard: ShardId) -> None:
        """Look at a shard soon: it could not be read."""
        self._suspects.append(shard)
        self._wake.set()

    async def run(self) -> None:
        """Scrub until cancelled; sleeps between passes."""
        with trio.move_on_after(FIRST):
            await self._wake.wait()
        while True:
            try:
                pause = await self._work()
            except StoreError as exc:
                pause = self._failed(exc)
            self._wake = trio.Event()
            if not self._suspects:
                with trio.move_on_after(pause):
                    await self._wake.wait()

    async def _work(self) -> float:
        """Do one step; return how many seconds to wait for the next."""
        while self._suspects:
            await self._look_at(self._suspects[0])
            self._suspects.popleft()
        now = int(time.time())
        if not self._scrub.progress.started:
            if not self._period:
                return LOOK_AGAIN
            due = self._scrub.progress.finished + self._period / 2
            if self._scrub.progress.finished <= now < due:  # a clock that was set back makes it due
                return min(due - now, LOOK_AGAIN)
            self._scrub.start_pass(now)
        await self._give_way()
        step = await trio.to_thread.run_sync(self._scrub.step)
        self._failures = 0
        for shard, place in step.suspects:
            await self._condemn(shard, place)
        if step.is_end:
            self._scrub.end(max(int(time.time()), 1))
            progress = self._scrub.progress
            log.info("read all %d shards (%d bytes) again", progress.shards, progress.size)
            await self._save()
        elif trio.current_time() >= self._saved + SAVE_INTERVAL:
            await self._save()
        return (step.size + step.shards * SEEK) / self._rate() if step.shards else SCAN_PAUSE

    def _rate(self) -> float:
        shards, size = self._store.counts()
        wanted = 2 * (size + shards * SEEK) / self._period if self._period else 0.0
        return max(RATE_MIN, min(wanted, RATE_MAX))

    async def _give_way(self) -> None:
        with trio.move_on_after(BUSY_MAX):
            while self._is_busy():  # noqa: ASYNC110 - traffic has no end to wait for
                await trio.sleep(BUSY_LOOK)

    async def _look_at(self, shard: ShardId) -> None:
        place = self._store.locate(shard)
        if place is not None:
            await self._condemn(shard, place)

    async def _condemn(self, shard: ShardId, place: Location) -> None:
        if await self._writer.call(partial(self._scrub.condemn, shard, place)):
            log.error("shard %s is damaged on this disk: its owner has to store it again", shard.hex())
            self.last_error = f"shard {shard.hex()} is damaged on this disk"
            await self._save()

    async def _save(self) -> None:
        self._saved = trio.current_time()
        await self._writer.call(self._scrub.save)

    def _failed(self, exc: StoreError) -> float:
        log.warning("cannot scrub now: %s", exc)
        self.errors += 1
        self.last_error = str(exc)
        self._failures += 1
        if self._failures >= TRIES:
            self._failures = 0
            if self._suspects:
                self._suspects.popleft()
            else:
                self._scrub.skip()
        return RETRY
