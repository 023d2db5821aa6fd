"""The mining processes of one machine: as many workers (`ledgerd.miner`) as were asked for, each with its part of a job.

They are started with the first job, so that a machine with nothing to mine has none of them; a worker that dies is started
again. Everything here runs in the trio thread. Not here: which job (`ledgerd.mining`, `ledgerd.remote`), the search itself.
"""

from __future__ import annotations

import logging
import math
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final

import trio

from fsdecloud.ledgerd.miner import NICE, RESULT, WorkerJob, encode_job
from fsdecloud.net.nursery import open_background

log = logging.getLogger(__name__)

WORKERS_MAX: Final = 256
"""More processes than any machine has cores for them."""

RESTART_DELAY: Final = 5.0
"""After a worker died unexpectedly."""

RATE_SPAN: Final = 5.0
"""Seconds over which the hash rate is averaged, more or less."""

_STOP_TIMEOUT: Final = 2.0


@dataclass(frozen=True, slots=True)
class CrewPlan:
    """How many workers, and how much of the machine they may take."""

    workers: int = 1
    duty: int = 100
    """Percent of one core that each worker may use."""
    nice: int = NICE
    """Added to the nice level of the process that starts them: 0 to 19."""


class Crew:
    """Searches the job that was set last. `run` is the only task.

    `found` is awaited with the job's number and the nonce for each hash at most the job's share target; the worker waits.
    """

    def __init__(self, plan: CrewPlan, found: Callable[[int, bytes], Awaitable[object]]) -> None:
        self.plan = plan
        self._found = found
        self._job: WorkerJob | None = None
        self._changed = trio.Event()
        self._rates = [0.0] * plan.workers
        self._parts: list[WorkerJob | None] = [None] * plan.workers
        self._tried = [0] * plan.workers
        """What each worker was given, and how many nonces of that it has tried: one that takes over does not begin again."""

    @property
    def hash_rate(self) -> float:
        """Hashes per second while they last searched."""
        return sum(self._rates)

    def set_job(self, job: WorkerJob | None) -> None:
        """Search this from now on, and drop what was before; None: rest."""
        if job != self._job:
            self._job = job
            self._changed.set()
            self._changed = trio.Event()

    async def run(self) -> None:
        """Search until cancelled."""
        async with trio.open_nursery() as nursery:
            for index in range(self.plan.workers):
                nursery.start_soon(self._keep, index)

    # ---- one worker ------------------------------------------------------------------------------------------------
    async def _keep(self, index: int) -> None:
        while True:
            while self._job is None:
                await self._changed.wait()
            try:
                await self._run_worker(index)
            except (OSError, _WorkerEnded) as exc:
                log.warning("a mining process ended (%s); starting another", exc)
            await trio.sleep(RESTART_DELAY)

    async def _run_worker(self, index: int) -> None:
        command = [sys.executable, "-P", "-m", "fsdecloud.ledgerd.miner", str(self.plan.duty), str(self.plan.nice)]
        process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin is not None
        assert process.stdout is not None
        log.info("mining process %d started", process.pid)
        try:
            async with open_background() as nursery:
                nursery.start_soon(self._feed, index, process.stdin)
                await self._read(index, process.stdout)
        finally:
            with trio.CancelScope(shield=True):
                await process.stdin.aclose()
                with trio.move_on_after(_STOP_TIMEOUT):
                    await process.wait()
                if process.returncode is None:
                    process.kill()
                    await process.wait()
                await process.stdout.aclose()

    async def _feed(self, index: int, stdin: trio.abc.SendStream) -> None:
        """Give the worker its part of each job. Jobs that are replaced before it took them are left out."""
        is_new = True
        while True:
            changed = self._changed
            part = None if self._job is None else part_of(self._job, index, self.plan.workers)
            if part != self._parts[index]:
                self._parts[index], self._tried[index] = part, 0
            elif not is_new:
                await changed.wait()
                continue
            is_new = False
            try:
                await stdin.send_all(encode_job(_rest_of(part, self._tried[index])))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return  # its output has ended as well, and says so

    async def _read(self, index: int, stdout: trio.abc.ReceiveStream) -> None:
        data = b""
        while True:
            try:
                more = await stdout.receive_some(RESULT.size - len(data))
            except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
                raise _WorkerEnded(str(exc)) from exc
            if not more:
                raise _WorkerEnded("its output ended")
            data += bytes(more)
            if len(data) == RESULT.size:
                number, tries, microseconds, is_found, nonce = RESULT.unpack(data)
                data = b""
                self._count(index, number, tries, microseconds / 1e6)
                if is_found:
                    await self._found(number, bytes(nonce))

    def _count(self, index: int, number: int, tries: int, seconds: float) -> None:
        """Take note of a worker's progress."""
        part = self._parts[index]
        if part is not None and part.number == number:
            self._tried[index] += tries
        if seconds > 0:
            before = self._rates[index]
            weight = 1 - math.exp(-seconds / RATE_SPAN) if before else 1.0
            self._rates[index] = before + weight * (tries / seconds - before)


class _WorkerEnded(Exception):
    """The worker closed its output."""


def part_of(job: WorkerJob, index: int, count: int) -> WorkerJob | None:
    """Return the part of a job that is for worker `index` of `count`: ranges that are disjoint and leave nothing out. None when
    there are more workers than nonces."""
    size = job.last - job.first + 1
    begin, end = job.first + size * index // count, job.first + size * (index + 1) // count
    return None if begin == end else replace(job, first=begin, last=end - 1)


def _rest_of(part: WorkerJob | None, tried: int) -> WorkerJob | None:
    """Return what of a part is left after the first `tried` nonces."""
    if part is None or part.first + tried > part.last:
        return None
    return replace(part, first=part.first + tried)
