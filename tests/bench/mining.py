"""How much of a core mining takes, and how soon a new tip is mined on.

    python -m tests.bench.mining [--seconds 20] [--waiting 700] [--tips 20]

Duty: a worker process searches without end; its processor time, as the kernel counts it, over the wall clock. New tip: another
daemon's block arrives while WAITING transactions of a kilobyte wait; times from the change of the tip to the next job, and to
the first share of it that a worker reports (one in some 3000 hashes).
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from fsdecloud.ledger.blocks import encode_block
from fsdecloud.ledgerd.crew import Crew, CrewPlan
from fsdecloud.ledgerd.keeper import Keeper
from fsdecloud.ledgerd.miner import WorkerJob
from fsdecloud.ledgerd.mining import Mining
from fsdecloud.store.chain import open_chain

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "ledger"))
from chainmaker import GENESIS_TIME, MINER, MINER_KEY, Maker, easy_network

NEVER = bytes(32)
SHARE = ((1 << 256) // 3000).to_bytes(32)
TICK = os.sysconf("SC_CLK_TCK")


def processor_seconds(pid: int) -> float:
    """Return what a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def children() -> list[int]:
    """Return this process's children."""
    lists = Path("/proc/self/task").glob("*/children")
    return [int(word) for path in lists for word in path.read_text().split()]


async def with_crew(
    plan: CrewPlan, found: Callable[[int, bytes], Awaitable[None]], work: Callable[[Crew], Awaitable[None]]
) -> None:
    """Run a crew for as long as `work` takes."""
    crew = Crew(plan, found)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(crew.run)
        await work(crew)
        nursery.cancel_scope.cancel()


async def ignore(_number: int, _nonce: bytes) -> None:
    """Take a share."""
    await trio.lowlevel.checkpoint()


async def until(condition: Callable[[], bool]) -> None:
    """Look again and again until it is so."""
    while not condition():  # noqa: ASYNC110 - what is looked at has no event
        await trio.sleep(0.001)


async def measure_duty(percent: int, workers: int, seconds: float) -> list[float]:
    """Return the share of one core, in percent, that each of the workers used."""
    shares: list[float] = []

    async def work(crew: Crew) -> None:
        crew.set_job(WorkerJob(1, 0, (1 << 64) - 1, NEVER, NEVER, b"for nothing"))
        await until(lambda: len(children()) == workers and crew.hash_rate > 0)
        await trio.sleep(1)
        pids = children()
        before, begun = [processor_seconds(pid) for pid in pids], time.monotonic()
        await trio.sleep(seconds)
        took = time.monotonic() - begun
        shares.extend(100 * (processor_seconds(pid) - used) / took for pid, used in zip(pids, before, strict=True))

    await with_crew(CrewPlan(workers, percent), ignore, work)
    return shares


async def measure_tips(waiting: int, tips: int, workers: int) -> tuple[list[float], list[float]]:
    """Return seconds from each change of the tip to the next job, and to the first share of that job."""
    make = Maker(easy_network())
    first: dict[int, float] = {}
    to_job: list[float] = []
    to_share: list[float] = []

    async def found(number: int, _nonce: bytes) -> None:
        first.setdefault(number, time.perf_counter())
        await trio.lowlevel.checkpoint()

    with tempfile.TemporaryDirectory() as directory, open_chain(Path(directory) / "c", make.document) as store:
        keeper = Keeper(store, lambda: GENESIS_TIME + 100_000)
        for number in range(1, waiting + 1):
            keeper.submit(make.anchor(number.to_bytes(32), 1))
        mining = Mining(keeper, MINER_KEY)

        async def give_jobs(crew: Crew, slot: int) -> None:
            while True:
                changed = mining.job_event()
                job = None if mining.job is None else mining.job.for_worker(slot)
                crew.set_job(None if job is None else dataclasses.replace(job, target=NEVER, share=SHARE))
                await changed.wait()

        async def work(crew: Crew) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(mining.run)
                with mining.enlist(lambda: 0.0) as slot:
                    nursery.start_soon(give_jobs, crew, slot)
                    for number in range(tips):
                        await until(lambda: mining.job is not None and mining.job.number in first)
                        transfers = [make.transfer(MINER, bytes(32), 1, number - 1)] if number else []
                        block = encode_block(make.add(transfers).block)
                        await keeper.accept(block)
                        moved = time.perf_counter()
                        while mining.job is None:
                            await mining.job_event().wait()
                        to_job.append(time.perf_counter() - moved)
                        job = mining.job
                        await until(lambda job=job: job.number in first)
                        to_share.append(first[job.number] - moved)
                nursery.cancel_scope.cancel()

        await with_crew(CrewPlan(workers), found, work)
    return to_job, to_share


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="mining", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="for each duty")
    parser.add_argument("--waiting", type=int, default=700, help="transactions in the mempool")
    parser.add_argument("--tips", type=int, default=20)
    arguments = parser.parse_args()
    for percent, workers in ((5, 1), (25, 1), (50, 1), (90, 1), (25, 2)):
        shares = trio.run(measure_duty, percent, workers, arguments.seconds)
        print(
            f"duty {percent:3} %, {workers} workers: {', '.join(f'{share:.1f} %' for share in shares)} of a core",
            flush=True,
        )
    for waiting in (1, arguments.waiting):
        to_job, to_share = trio.run(measure_tips, waiting, arguments.tips, 1)
        for what, times in (("the next job", to_job), ("the first share of it", to_share)):
            middle, most = 1000 * statistics.median(times), 1000 * max(times)
            print(f"{waiting} waiting, new tip to {what}: median {middle:.1f} ms, most {most:.1f} ms", flush=True)


if __name__ == "__main__":
    main()
