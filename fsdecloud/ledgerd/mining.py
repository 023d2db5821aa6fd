"""What to mine: the block that is worked on now, for whoever searches for its nonce.

Those are the processes of this machine (`mine_here`) and miners elsewhere (`ledgerd.workserver`). A job ends in the very step
in which the tip changes; the next one comes as soon as its block is built. A network that mines only when there is
something to record has no job before, and nothing is built while nobody searches: an idle machine is idle.

Everything here runs in the trio thread. Not here: the search itself, and who else is given the work.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import msgspec
import trio

from fsdecloud.errors import InvalidBlock, StoreError
from fsdecloud.ledger.blocks import Block, Header, encode_block, header_prefix
from fsdecloud.ledger.chain import Switch
from fsdecloud.ledgerd.crew import Crew, CrewPlan
from fsdecloud.ledgerd.keeper import Keeper
from fsdecloud.ledgerd.miner import WorkerJob

log = logging.getLogger(__name__)

REFRESH: Final = 15.0
"""A block under work takes in new transactions after this many seconds; before, the search is not disturbed."""

JOBS_KEPT: Final = 4
"""Blocks on the present tip whose nonce is still welcome: one found just when its block was replaced is not lost."""

SLOTS: Final = 1 << 16
"""Parts of the nonces, one for each who searches: 2^48 of them, more than anybody tries in REFRESH seconds."""


@dataclass(frozen=True, slots=True)
class Job:
    """One block to find a nonce for. `header` has a nonce of zeros."""

    number: int
    header: Header

    def for_worker(self, slot: int) -> WorkerJob:
        """Return the job for the processes of this machine: only a nonce that solves the block is of interest."""
        first, last = slot_range(slot)
        return WorkerJob(self.number, first, last, self.header.target, self.header.target, header_prefix(self.header))


def slot_range(slot: int) -> tuple[int, int]:
    """Return the first and the last nonce of a slot."""
    size = (1 << 64) // SLOTS
    return slot * size, (slot + 1) * size - 1


class Mining:
    """Mines for `recipient`. `run` is the only task."""

    def __init__(self, keeper: Keeper, recipient: bytes) -> None:
        self._keeper = keeper
        self._recipient = recipient
        self._blocks: dict[int, Block] = {}
        """By job number: on the present tip, the oldest first."""
        self._last_number = 0
        self._takers: dict[int, Callable[[], float]] = {}
        """By slot: the hash rate of each who searches."""
        self._takers_changed = trio.Event()
        self._job: Job | None = None
        self._job_changed = trio.Event()
        keeper.on_tip.append(self._drop)

    @property
    def job(self) -> Job | None:
        """The block to find now; None: there is nothing to do."""
        return self._job

    def job_event(self) -> trio.Event:
        """Return the event of the next change of `job`. Take it before looking at the job, then nothing is missed."""
        return self._job_changed

    @property
    def is_busy(self) -> bool:
        """True while there is a block to find."""
        return self._job is not None

    @property
    def hash_rate(self) -> float:
        """Hashes per second of all who search, while they last did."""
        return sum(rate() for rate in self._takers.values())

    @contextmanager
    def enlist(self, rate: Callable[[], float]) -> Iterator[int]:
        """Count in somebody who searches, for the length of the body; gives the slot whose nonces are theirs alone. `rate`
        says how many hashes per second they try."""
        slot = random.randrange(SLOTS)
        while slot in self._takers:
            slot = (slot + 1) % SLOTS
        self._takers[slot] = rate
        self._takers_changed.set()
        try:
            yield slot
        finally:
            del self._takers[slot]
            self._takers_changed.set()

    async def run(self) -> None:
        """Keep `job` up to date until cancelled."""
        while True:
            while not self._takers:
                self._set(None)
                self._takers_changed = trio.Event()
                await self._takers_changed.wait()
            changed, tip_changed = self._keeper.change_event(), self._keeper.tip_event()
            block = await self._keeper.build(self._recipient)
            if tip_changed.is_set():
                continue
            self._set(block)
            if block is None:
                # What waits may become valid with time (a lease that ends), which is no event.
                with trio.move_on_after(REFRESH if len(self._keeper.pool) else float("inf")):
                    await changed.wait()
            else:
                with trio.move_on_after(REFRESH):
                    await tip_changed.wait()

    async def solve(self, number: int, nonce: bytes) -> bool:
        """Take a nonce that solves job `number`; return whether the block is now in the chain. A job that is over is no
        error."""
        block = self._blocks.get(number)
        if block is None:
            return False
        found = msgspec.structs.replace(block, header=msgspec.structs.replace(block.header, nonce=nonce))
        try:
            accepted = await self._keeper.accept(encode_block(found))
        except InvalidBlock as exc:  # a bug here, or a clock that went back; mining goes on with the next block
            log.error("a block mined here is not valid: %s: %s", type(exc).__name__, exc)
            return False
        except StoreError as exc:  # a full disk, most often: it may have room again
            log.error("a block mined here cannot be stored: %s", exc)
            return False
        if accepted.switch is None:
            return False
        log.info("mined block %d with %d transactions", accepted.point.height, len(found.transactions) - 1)
        return True

    # ---- inner -----------------------------------------------------------------------------------------------------
    def _drop(self, _switch: Switch) -> None:
        """The tip has changed: what is worked on is worth nothing any more."""
        self._blocks.clear()
        self._set(None)

    def _set(self, block: Block | None) -> None:
        if block is None:
            job = None
        else:
            self._last_number = (self._last_number + 1) & 0xFFFFFFFF
            self._blocks[self._last_number] = block
            while len(self._blocks) > JOBS_KEPT:
                del self._blocks[next(iter(self._blocks))]
            job = Job(self._last_number, block.header)
        if job != self._job:
            self._job = job
            self._job_changed.set()
            self._job_changed = trio.Event()


async def mine_here(mining: Mining, plan: CrewPlan) -> None:
    """Mine with processes of this machine until cancelled."""
    crew = Crew(plan, mining.solve)
    with mining.enlist(lambda: crew.hash_rate) as slot:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(crew.run)
            while True:
                changed = mining.job_event()
                crew.set_job(None if mining.job is None else mining.job.for_worker(slot))
                await changed.wait()
