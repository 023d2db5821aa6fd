"""Mining for a ledger daemon elsewhere: `decloud mine` (`wire.work`).

The connection is made again, after a growing, jittered delay, for as long as the daemon is wanted; the processes rest
meanwhile. A new job replaces the one before in the step in which it arrives. What a bad daemon can do is bounded: it gets no
more than one message of work.MESSAGE_MAX bytes looked at a time and JOB_RATE jobs a second, and no hash of anything but a
header of a block. Everything here runs in the trio thread. Not here: the search (`ledgerd.crew`).
"""

from __future__ import annotations

import logging
import random
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NoReturn

import trio

from fsdecloud.errors import FsdecloudError, PeerUnavailable, RemoteProtocolError, UsageError
from fsdecloud.ledger.work import hash_header
from fsdecloud.ledgerd.crew import Crew, CrewPlan
from fsdecloud.ledgerd.miner import WorkerJob
from fsdecloud.net.address import Address
from fsdecloud.net.nursery import open_background
from fsdecloud.net.websocket import Channel, connect, printable
from fsdecloud.swarm.bucket import TokenBucket
from fsdecloud.wire import work

log = logging.getLogger(__name__)

DELAY_MIN: Final = 0.5
DELAY_MAX: Final = 60.0
"""Between two calls of the daemon: doubling, half of it random."""

STABLE: Final = 30.0
"""A connection that lasted this long forgives the failures before it."""

SHARES_WAITING: Final = 64
"""Shares that wait to be sent; more are left out, but for one that solves the block."""

JOB_RATE: Final = 20.0
JOB_BURST: Final = 200.0
"""Jobs a second that a daemon may send, and how many at once after a silence. Blocks come much more rarely."""


class RemoteMining:
    """Mines for the daemon at `address`, which must name its id. `token` has 32 bytes, `name` is for its people.

    `notice`, not to block, is told in words what happens.
    """

    def __init__(
        self, address: Address, token: bytes, name: str, plan: CrewPlan, notice: Callable[[str], None]
    ) -> None:
        if address.id is None:
            raise UsageError(f"{address} does not say which daemon answers there: the address ends with its id")
        self._address = address
        self._token = token
        self._name = name[: work.NAME_MAX]
        self._notice = notice
        self._connection: _Connection | None = None
        self.crew = Crew(plan, self._found)
        self.verdicts: Counter[work.Verdict] = Counter()
        """What became of the shares."""

    async def run(self) -> NoReturn:
        """Mine until cancelled. Raises UsageError when the daemon says that it does not want this miner."""
        async with open_background() as nursery:
            nursery.start_soon(self.crew.run)
            failures = 0
            while True:
                begun = trio.current_time()
                try:
                    await self._work_once()
                except UsageError:
                    raise
                except FsdecloudError as exc:
                    log.warning("%s", exc)
                    failures = 1 if trio.current_time() - begun >= STABLE else failures + 1
                delay = min(DELAY_MAX, DELAY_MIN * 2 ** (failures - 1)) * random.uniform(0.5, 1.0)
                self._notice(f"not connected; next try in {delay:.1f} s")
                await trio.sleep(delay)
        raise AssertionError("the loop ends only by an exception")

    async def _work_once(self) -> None:
        async with connect(self._address, subprotocol=work.SUBPROTOCOL) as channel:
            await channel.send(
                work.encode_message(
                    work.Hello(work.VERSION, work.prove_token(self._token, channel.certificate_hash), self._name)
                )
            )
            self._notice(f"connected to {self._address}")
            self._connection = _Connection(channel, self)
            try:
                await self._connection.run()
            finally:
                self._connection = None
                self.crew.set_job(None)

    async def _found(self, number: int, nonce: bytes) -> None:
        """A worker has found a share."""
        if self._connection is not None:
            self._connection.offer(number, nonce)
        await trio.lowlevel.checkpoint()

    def take_answer(self, answer: work.Answer) -> None:
        """Count what became of a share."""
        self.verdicts[answer.verdict] += 1
        if answer.verdict is work.Verdict.BLOCK:
            self._notice(f"found a block; {self.verdicts[work.Verdict.BLOCK]} so far")
        elif answer.verdict is work.Verdict.WRONG:
            log.error("the daemon says that a share is wrong")

    def take_job(self, job: WorkerJob | None) -> None:
        """Hand a job to the workers."""
        self.crew.set_job(job)


class _Connection:
    """One connection to the daemon."""

    def __init__(self, channel: Channel, mining: RemoteMining) -> None:
        self._channel = channel
        self._mining = mining
        self._bucket = TokenBucket(JOB_RATE, JOB_BURST, trio.current_time())
        self._job: WorkerJob | None = None
        self._shares: deque[work.Share] = deque()
        self._wake = trio.Event()

    def offer(self, number: int, nonce: bytes) -> None:
        """Have a share sent, unless its job is over or too many wait."""
        job = self._job
        if job is None or number != job.number:
            return
        if hash_header(job.prefix, nonce) <= job.target:
            self._shares.appendleft(work.Share(number, nonce))
        elif len(self._shares) < SHARES_WAITING:
            self._shares.append(work.Share(number, nonce))
        self._wake.set()

    async def run(self) -> None:
        """Take jobs and send shares until the connection ends. Raises PeerUnavailable, RemoteProtocolError or UsageError."""
        async with open_background() as nursery:
            nursery.start_soon(self._send_shares)
            while True:
                self._take(work.decode_from_daemon(await self._channel.receive()))

    async def _send_shares(self) -> None:
        with suppress(PeerUnavailable):  # the reader ends as well, and says so
            while True:
                self._wake = trio.Event()
                while self._shares:
                    await self._channel.send(work.encode_message(self._shares.popleft()))
                await self._wake.wait()

    def _take(self, message: work.FromDaemon) -> None:
        if isinstance(message, work.Answer):
            self._mining.take_answer(message)
        elif isinstance(message, work.Refused):
            raise UsageError(f"the daemon refuses: {printable(message.reason)}")
        elif self._bucket.take(1, trio.current_time()):
            raise RemoteProtocolError(f"{self._channel.remote} changes its mind more than {JOB_RATE:g} times a second")
        else:
            self._job = None if isinstance(message, work.Rest) else _worker_job(message)
            self._mining.take_job(self._job)


def _worker_job(job: work.Job) -> WorkerJob:
    target = work.read_job(job).target
    return WorkerJob(job.number, job.first, job.last, target, job.share, job.prefix)
