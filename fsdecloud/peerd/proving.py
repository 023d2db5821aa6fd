"""How a peer proves that it has the shards of a deal: what is challenged (`crypto.possession`), read from its store.

The set's pages are read in a thread, then one challenged shard after the other, and each is hashed in a worker process
(`peerd.slicer`) that is started for the first and ends when there was nothing to prove for a while. One proof is made at a
time: however many are due, one shard is in memory, and one core is busy. Called only from the trio thread. Not here: who asks,
when a proof is due, what the seed is.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

import trio

from fsdecloud.crypto import possession
from fsdecloud.errors import StoreCorrupt, StoreError
from fsdecloud.limits import MESSAGE_MAX
from fsdecloud.peerd.slicer import LENGTH, encode_job
from fsdecloud.store.shards import ShardStore
from fsdecloud.store.shardsets import Revision, ShardSets
from fsdecloud.types import ShardId

log = logging.getLogger(__name__)

IDLE: Final = 30.0
"""Seconds after the last shard for which the worker process stays: starting it takes as long as hashing some MiB."""

SLICE_TIMEOUT: Final = 60.0
"""Seconds for one shard, on the busiest machine: a worker that takes longer is ended."""

TRIES: Final = 2
"""Processes that may end on one shard before that counts as failed."""

_STOP_TIMEOUT: Final = 2.0


class Proof(NamedTuple):
    """A proof, and what it proves."""

    revision: Revision
    """The deal's valid revision when the proof was begun: `possession.verify` takes its root."""
    data: bytes


class Prover:
    """Makes the proofs of one peer. `run` in a nursery; `prove` from anywhere."""

    def __init__(
        self, *, sets: ShardSets, store: ShardStore, suspect: Callable[[ShardId], object], idle: float = IDLE
    ) -> None:
        """`suspect` is told of each shard that could not be read, or is damaged."""
        self._sets = sets
        self._store = store
        self._suspect = suspect
        self.slicer = Slicer(idle)
        self._turn = trio.Lock()
        self.proofs = 0
        """Made since the start."""
        self.failed = 0
        """Not made, since a shard was not there or damaged, or the disk failed."""

    async def run(self) -> None:
        """Keep the worker process until cancelled."""
        await self.slicer.run()

    async def prove(self, deal: bytes, seed: bytes, samples: int) -> Proof:
        """Return the proof of a deal's valid revision. A deal without a set has the empty one.

        Raises ValueError for a number of samples out of bounds; StoreCorrupt when a challenged shard is not here or damaged, or
        the set itself is; StoreError when the disk, or twice the worker, failed.
        """
        async with self._turn:
            try:
                revision, plan = await trio.to_thread.run_sync(self._plan, deal, seed, samples)
                slices = [await self._slice(challenged) for challenged in plan.challenged]
            except StoreError as exc:
                self.failed += 1
                log.error("deal %s cannot be proved: %s", deal.hex(), exc)
                raise
            self.proofs += 1
            return Proof(revision, b"".join((plan.head, *slices)))

    def _plan(self, deal: bytes, seed: bytes, samples: int) -> tuple[Revision, possession.Plan]:
        """Read the pages. Worker thread."""
        return self._sets.read(
            deal, lambda revision, get: (revision, possession.plan(get, revision.shard_set, seed, samples))
        )

    async def _slice(self, challenged: possession.Challenged) -> bytes:
        try:
            data = await trio.to_thread.run_sync(self._store.get, challenged.shard)
        except KeyError as exc:
            raise StoreCorrupt(f"shard {challenged.shard.hex()} is not here") from exc
        except StoreError:
            self._suspect(challenged.shard)
            raise
        done = await self.slicer.slice(challenged, data)
        if not done:
            self._suspect(challenged.shard)
            raise StoreCorrupt(f"shard {challenged.shard.hex()} is damaged on this disk")
        return done


class Slicer:
    """The worker process. `run` is the only task that has to do with it."""

    def __init__(self, idle: float = IDLE) -> None:
        self._idle = idle
        self._send, self._receive = trio.open_memory_channel[_Job](0)
        self.starts = 0
        """Processes started."""
        self.pid = 0
        """Of the process, 0 while there is none."""

    async def slice(self, challenged: possession.Challenged, data: bytes) -> bytes:
        """Return the shard's part of a proof, b"" when these are not its bytes. Raises StoreError when the worker failed."""
        job = _Job(encode_job(challenged, data))
        await self._send.send(job)
        await job.done.wait()
        if job.error is not None:
            raise job.error
        return job.result

    async def run(self) -> None:
        """Start a process when there is something to do, and end it when there is not for a while, until cancelled."""
        job: _Job | None = None
        while True:
            if job is None:
                job = await self._receive.receive()
            try:
                async with self._open_process() as process:
                    while job is not None:
                        job.finish(await _do(process, job.data))
                        job = None
                        with trio.move_on_after(self._idle):
                            job = await self._receive.receive()
            except (
                OSError,
                trio.BrokenResourceError,
                trio.ClosedResourceError,
                trio.TooSlowError,
                _WorkerEnded,
            ) as exc:
                log.warning("the process that hashes shards ended: %s", exc)
                if job is None:
                    continue
                job.failures += 1
                if job.failures >= TRIES:
                    job.fail(StoreError(f"the process that hashes shards ended: {exc}"))
                    job = None

    @asynccontextmanager
    async def _open_process(self) -> AsyncIterator[trio.Process]:
        command = [sys.executable, "-P", "-m", "fsdecloud.peerd.slicer"]
        process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin is not None
        assert process.stdout is not None
        self.starts += 1
        self.pid = process.pid
        try:
            yield process
        finally:
            with trio.CancelScope(shield=True):
                await process.stdin.aclose()
                await process.stdout.aclose()
                with trio.move_on_after(_STOP_TIMEOUT):
                    await process.wait()
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            self.pid = 0


class _Job:
    """One shard on its way through the worker."""

    __slots__ = ("data", "done", "error", "failures", "result")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.done = trio.Event()
        self.error: StoreError | None = None
        self.result = b""
        self.failures = 0

    def finish(self, result: bytes) -> None:
        self.result = result
        self.done.set()

    def fail(self, error: StoreError) -> None:
        self.error = error
        self.done.set()


class _WorkerEnded(Exception):
    """The worker closed its output."""


async def _do(process: trio.Process, job: bytes) -> bytes:
    """Have a process do one job. Raises TooSlowError, _WorkerEnded, and what trio raises for a broken pipe."""
    assert process.stdin is not None
    assert process.stdout is not None
    with trio.fail_after(SLICE_TIMEOUT):
        await process.stdin.send_all(job)
        (length,) = LENGTH.unpack(await _receive_exactly(process.stdout, LENGTH.size))
        if length > 2 * MESSAGE_MAX:
            raise _WorkerEnded("it answers nonsense")
        return await _receive_exactly(process.stdout, length)


async def _receive_exactly(stream: trio.abc.ReceiveStream, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        more = await stream.receive_some(size - len(data))
        if not more:
            raise _WorkerEnded("its output ended")
        data += more
    return bytes(data)
