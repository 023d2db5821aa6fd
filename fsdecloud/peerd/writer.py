"""One writer for all connections: what arrives while a batch is being made durable is the next batch.

Group commit: a fdatasync and an index commit cost the same for one shard as for fifty. `ShardWriter` runs in the trio
thread; the store is called in a worker thread, one call at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final, Protocol

import trio

from fsdecloud.errors import StoreError, StoreFull
from fsdecloud.limits import MIB
from fsdecloud.types import ShardId

log = logging.getLogger(__name__)

BATCH_MAX: Final = 32 * MIB
"""Bytes of one batch: bounds how long one transaction takes."""

PENDING_MAX: Final = 128 * MIB
"""Bytes that wait to be written, of all connections together; above it they are not read from."""

Shards = Sequence[tuple[ShardId, bytes | memoryview]]


class Store(Protocol):
    """What the writer needs of `store.shards.ShardStore`."""

    def put_many(self, shards: Shards) -> list[str]:
        """Store shards durably; "" or a reason for each."""


class ShardWriter:
    """Batches Puts. `run` in a nursery; `put` from anywhere."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._queue: list[_Job] = []
        self._bytes = 0
        self._wake = trio.Event()
        self._room = trio.Event()
        self.last_error = ""

    async def put(self, shards: Shards) -> list[str]:
        """Return, for each shard, "" once it is durable or why it was not taken; see `wait_room`."""
        size = sum(len(data) for _, data in shards)
        job = _Job(shards, size)
        self._bytes += size
        self._queue.append(job)
        self._wake.set()
        await job.done.wait()
        return job.reasons

    async def wait_room(self) -> None:
        """Wait while too much is pending."""
        while self._bytes > PENDING_MAX:
            await self._room.wait()

    async def run(self) -> None:
        """Write batches until cancelled."""
        while True:
            if not self._queue:
                self._wake = trio.Event()
                await self._wake.wait()
            batch = self._next_batch()
            reasons = await trio.to_thread.run_sync(self._write, [item for job in batch for item in job.shards])
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

    def _write(self, shards: Shards) -> list[str]:
        try:
            return self._store.put_many(shards)
        except StoreFull as exc:
            self.last_error = str(exc)
            log.warning("cannot store: %s", exc)
            return ["full"] * len(shards)
        except StoreError as exc:
            self.last_error = str(exc)
            log.error("cannot store: %s", exc)
            return ["this peer's disk failed"] * len(shards)


class _Job:
    __slots__ = ("done", "reasons", "shards", "size")

    def __init__(self, shards: Shards, size: int) -> None:
        self.shards = shards
        self.size = size
        self.done = trio.Event()
        self.reasons: list[str] = []
