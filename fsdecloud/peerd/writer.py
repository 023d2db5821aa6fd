"""One writer for all connections: what arrives while a batch is being made durable is the next batch.

Group commit: a fdatasync and an index commit cost the same for one shard as for fifty. `ShardWriter` runs in the trio
thread; the store is called in a worker thread, one call at a time: batches of Puts, and in turn with them what else
changes the store (deletions, compaction).
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Generic, Protocol, TypeVar

import trio

from fsdecloud.errors import StoreError, StoreFull
from fsdecloud.limits import MIB
from fsdecloud.store.shardrows import UNKNOWN, Claim
from fsdecloud.store.shards import FULL
from fsdecloud.types import ShardId

log = logging.getLogger(__name__)

R = TypeVar("R")

BATCH_MAX: Final = 32 * MIB
"""Bytes of one batch: bounds how long one transaction takes."""

PENDING_MAX: Final = 128 * MIB
"""Bytes that wait to be written, of all connections together; above it they are not read from."""

Shards = Sequence[tuple[ShardId, bytes | memoryview]]


class Store(Protocol):
    """What the writer needs of `store.shards.ShardStore`."""

    def put_many(self, shards: Shards, claims: Sequence[Claim], *, now: int, end: int) -> list[str]:
        """Store shards durably; "" or a reason for each."""


class ShardWriter:
    """Batches Puts. `run` in a nursery; `put` and `call` from anywhere."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._queue: list[_Job] = []
        self._calls: deque[_Call[object]] = deque()
        self._bytes = 0
        self._wake = trio.Event()
        self._room = trio.Event()
        self.last_error = ""

    async def put(self, shards: Shards, claim: Claim = UNKNOWN, end: int = 0) -> list[str]:
        """Return, for each shard, "" once it is durable or why it was not taken; see `wait_room`. `end` is the lease's."""
        size = sum(len(data) for _, data in shards)
        job = _Job(shards, claim, size, end)
        self._bytes += size
        self._queue.append(job)
        self._wake.set()
        await job.done.wait()
        return job.reasons

    async def call(self, function: Callable[[], R]) -> R:
        """Have the writer's thread do something else with the store. Raises what `function` does."""
        call = _Call(function)
        self._calls.append(call)  # type: ignore[arg-type]  # its result goes to nobody but the caller
        self._wake.set()
        await call.done.wait()
        if call.error is not None:
            raise call.error
        return call.result  # type: ignore[return-value]  # None only where R allows it

    async def wait_room(self) -> None:
        """Wait while too much is pending."""
        while self._bytes > PENDING_MAX:
            await self._room.wait()

    async def run(self) -> None:
        """Write batches until cancelled."""
        while True:
            if not self._queue and not self._calls:
                self._wake = trio.Event()
                await self._wake.wait()
            if self._queue:
                await self._write_batch()
            if self._calls:
                call = self._calls.popleft()
                await trio.to_thread.run_sync(call.run)
                call.done.set()

    async def _write_batch(self) -> None:
        batch = self._next_batch()
        shards = [item for job in batch for item in job.shards]
        claims = [job.claim for job in batch for _ in job.shards]
        end = max(job.end for job in batch)  # of those who came later: a little more than is promised
        reasons = await trio.to_thread.run_sync(self._write, shards, claims, end)
        start = 0
        for job in batch:
            job.reasons = reasons[start : start + len(job.shards)]
            start += len(job.shards)
            self._bytes -= job.size
            job.done.set()
        self._room.set()
        self._room = trio.Event()

    def _next_batch(self) -> list[_Job]:
        total = 0
        for count, job in enumerate(self._queue):
            total += job.size
            if count and total > BATCH_MAX:
                break
        else:
            count = len(self._queue)
        batch, self._queue = self._queue[:count], self._queue[count:]
        return batch

    def _write(self, shards: Shards, claims: Sequence[Claim], end: int) -> list[str]:
        try:
            return self._store.put_many(shards, claims, now=int(time.time()), end=end)
        except StoreFull as exc:
            self.last_error = str(exc)
            log.warning("cannot store: %s", exc)
            return [FULL] * len(shards)
        except StoreError as exc:
            self.last_error = str(exc)
            log.error("cannot store: %s", exc)
            return ["this peer's disk failed"] * len(shards)


class _Job:
    __slots__ = ("claim", "done", "end", "reasons", "shards", "size")

    def __init__(self, shards: Shards, claim: Claim, size: int, end: int) -> None:
        self.shards = shards
        self.claim = claim
        self.size = size
        self.end = end
        self.done = trio.Event()
        self.reasons: list[str] = []


class _Call(Generic[R]):
    __slots__ = ("done", "error", "function", "result")

    def __init__(self, function: Callable[[], R]) -> None:
        self.function = function
        self.done = trio.Event()
        self.result: R | None = None
        self.error: Exception | None = None

    def run(self) -> None:
        """Call it. Worker thread."""
        try:
            self.result = self.function()
        except Exception as exc:  # noqa: BLE001 - raised to the caller, in its task
            self.error = exc
