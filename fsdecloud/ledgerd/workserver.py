"""Work for miners elsewhere: each gets the present job with nonces of its own, and its shares are judged (`wire.work`).

What a miner costs is bounded: one job waits to be sent to it, the latest; its next share is read when the answer to the last
one is on its way, and no faster than SHARE_RATE; the shares of its present jobs are remembered, which is as many as that rate
allows. A miner that sends what is wrong is dropped after WRONG_MAX times. Everything here runs in the trio thread. Not here:
connections (`net.websocket`), the jobs (`ledgerd.mining`).
"""

from __future__ import annotations

import hmac
import logging
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import trio

from fsdecloud.errors import PeerUnavailable, RemoteProtocolError, RemoteTimeout
from fsdecloud.ledger.blocks import header_prefix
from fsdecloud.ledger.work import hash_header
from fsdecloud.ledgerd.mining import Job, Mining, slot_range
from fsdecloud.ledgerd.shares import ShareRate
from fsdecloud.limits import CONNECT_TIMEOUT
from fsdecloud.net.nursery import open_background
from fsdecloud.net.websocket import Channel, printable
from fsdecloud.swarm.bucket import TokenBucket
from fsdecloud.wire import work

log = logging.getLogger(__name__)

MINERS_MAX: Final = 64
"""Miners at once."""

SHARE_RATE: Final = 10.0
SHARE_BURST: Final = 100.0
"""Shares a second of one miner that are read, and how many at once after a silence; it is asked for far fewer."""

WRONG_MAX: Final = 10
"""Wrong shares after which a miner is dropped: its program is broken, or it tries something."""

SEND_TIMEOUT: Final = 20.0
"""A miner must take a message within this time."""

JOBS_KEPT: Final = 4
"""Jobs of one miner whose shares are still judged."""

PARTS: Final = 256
"""Parts that a miner's nonces are given out in: 2^40 each, twenty minutes of a thousand million hashes a second."""


@dataclass(frozen=True, slots=True)
class MinerFacts:
    """A connected miner."""

    name: str
    remote: str
    shares: int
    blocks: int
    hash_rate: float
    """Hashes per second, as its shares prove."""


class WorkServer:
    """Gives out the jobs of `mining`. `serve` is for `net.websocket.serve`; `token` has 32 bytes."""

    def __init__(self, mining: Mining, token: bytes) -> None:
        self.mining = mining
        self.token = token
        self._miners: set[_Miner] = set()

    def miners(self) -> tuple[MinerFacts, ...]:
        """Return who works now, by name."""
        return tuple(sorted((miner.facts() for miner in self._miners), key=lambda facts: (facts.name, facts.remote)))

    async def serve(self, channel: Channel) -> None:
        """Serve one miner until it goes. Raises RemoteProtocolError, RemoteTimeout or PeerUnavailable."""
        miner = await _Miner.greet(channel, self)
        if miner is None:
            return
        self._miners.add(miner)
        log.info("miner %s at %s has come", miner.name, channel.remote)
        try:
            await miner.run()
        finally:
            self._miners.discard(miner)
            log.info("miner %s at %s has gone", miner.name, channel.remote)


@dataclass(slots=True)
class _Given:
    """A job as one miner has it."""

    job: Job
    prefix: bytes
    share: bytes
    """The easiest share target that it was sent with."""
    seen: set[bytes]


class _Miner:
    """One connected miner."""

    def __init__(self, channel: Channel, server: WorkServer, name: str) -> None:
        self.name = name
        self.blocks = 0
        self._channel = channel
        self._mining = server.mining
        self._rate = ShareRate(trio.current_time())
        self._bucket = TokenBucket(SHARE_RATE, SHARE_BURST, trio.current_time())
        self._given: OrderedDict[int, _Given] = OrderedDict()
        self._wrong = 0
        self._range = (0, 0)
        self._part = 0
        self._answer: work.Answer | None = None
        self._wake = trio.Event()
        self._answered = trio.Event()
        self._is_renewing = False

    @classmethod
    async def greet(cls, channel: Channel, server: WorkServer) -> _Miner | None:
        """Return the miner behind a channel once it has said who it is; None for one that is not wanted, and knows why."""
        with trio.move_on_after(CONNECT_TIMEOUT) as scope:
            hello = work.decode_from_miner(await channel.receive())
        if scope.cancelled_caught:
            raise RemoteTimeout(f"{channel.remote} does not say hello")
        if not isinstance(hello, work.Hello):
            raise RemoteProtocolError("a miner says hello first")
        refusal = ""
        if hello.version != work.VERSION:
            refusal = f"this daemon speaks version {work.VERSION} of the work protocol, not {hello.version}"
        elif not hmac.compare_digest(hello.proof, work.prove_token(server.token, channel.certificate_hash)):
            refusal = "the token is not this daemon's"
        if refusal:
            log.warning("refused a miner at %s: %s", channel.remote, refusal)
            await cls._send(channel, work.Refused(refusal))
            return None
        channel.is_greeted = True
        return cls(channel, server, printable(hello.name) or "-")

    def facts(self) -> MinerFacts:
        """Return what is known of it."""
        rate = self._rate.hash_rate(trio.current_time())
        return MinerFacts(self.name, self._channel.remote, self._rate.shares, self.blocks, rate)

    async def run(self) -> None:
        """Send jobs and take shares until the connection ends."""
        with self._mining.enlist(lambda: self._rate.hash_rate(trio.current_time())) as slot:
            self._range = slot_range(slot)
            async with open_background() as nursery:
                nursery.start_soon(self._write)
                nursery.start_soon(self._watch_jobs)
                await self._read()

    # ---- sending ---------------------------------------------------------------------------------------------------
    @staticmethod
    async def _send(channel: Channel, message: work.FromDaemon) -> None:
        """Send, or break the channel in the attempt: the reader then ends, and says that the connection has."""
        with trio.move_on_after(SEND_TIMEOUT) as scope, suppress(PeerUnavailable):
            await channel.send(work.encode_message(message))
        if scope.cancelled_caught:
            log.info("miner at %s does not read what it is sent; dropped", channel.remote)

    async def _watch_jobs(self) -> None:
        while True:
            changed = self._mining.job_event()
            self._wake.set()
            await changed.wait()

    async def _write(self) -> None:
        sent: Job | None = None
        is_first = True
        while True:
            self._wake = trio.Event()
            job = self._mining.job
            if job != sent or is_first or self._is_renewing:
                sent, is_first, self._is_renewing = job, False, False
                await self._send(self._channel, work.Rest() if job is None else self._give(job))
            elif self._answer is not None:
                answer, self._answer = self._answer, None
                await self._send(self._channel, answer)
                self._answered.set()
            else:
                await self._wake.wait()

    def _give(self, job: Job) -> work.Job:
        """Return what is sent for a job; its shares are judged from now on."""
        share = self._rate.choose_target(job.header.target, trio.current_time())
        given = self._given.get(job.number)
        if given is None:
            given = self._given[job.number] = _Given(job, header_prefix(job.header), share, set())
            while len(self._given) > JOBS_KEPT:
                self._given.popitem(last=False)
        given.share = max(given.share, share)
        # Another part of the range each time: a job that is sent again with another share target begins no search again.
        size = (self._range[1] - self._range[0] + 1) // PARTS
        first = self._range[0] + self._part * size
        self._part = (self._part + 1) % PARTS
        return work.Job(job.number, given.prefix, share, first, first + size - 1)

    # ---- receiving -------------------------------------------------------------------------------------------------
    async def _read(self) -> None:
        while True:
            message = work.decode_from_miner(await self._channel.receive())
            if not isinstance(message, work.Share):
                raise RemoteProtocolError("a miner says hello once")
            self._bucket.take(1, trio.current_time())
            verdict = await self._judge(message)
            while self._answer is not None:
                self._answered = trio.Event()
                await self._answered.wait()
            self._answer = work.Answer(message.number, message.nonce, verdict)
            self._wake.set()
            await trio.sleep(self._bucket.wait(trio.current_time()))

    async def _judge(self, share: work.Share) -> work.Verdict:
        given = self._given.get(share.number)
        if given is None:
            return work.Verdict.STALE
        found = hash_header(given.prefix, share.nonce)
        first, last = self._range
        if found > given.share or share.nonce in given.seen or not first <= int.from_bytes(share.nonce) <= last:
            self._wrong += 1
            if self._wrong >= WRONG_MAX:
                raise RemoteProtocolError(f"{self._wrong} wrong shares: the miner's program is broken")
            return work.Verdict.WRONG
        given.seen.add(share.nonce)
        if self._rate.count(given.share):
            self._is_renewing = self._mining.job is not None
            self._wake.set()
        if found <= given.job.header.target and await self._mining.solve(share.number, share.nonce):
            self.blocks += 1
            return work.Verdict.BLOCK
        is_current = self._mining.job is not None and self._mining.job.number == share.number
        return work.Verdict.SHARE if is_current else work.Verdict.STALE
