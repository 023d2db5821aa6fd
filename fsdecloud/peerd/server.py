"""How a storage peer serves one client (messages: `wire.peer`; who may say what when: `wire.session`).

Each connection has a reader (this task), one task that answers reads in order, and one that sends. Puts go to the common
writer (`peerd.writer`) and are answered as they become durable. A client that does not take its answers is not read from:
at most a few shards of it lie in memory.

Called only from the trio thread.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

import trio

import fsdecloud
from fsdecloud.errors import MalformedError, PeerUnavailable, RemoteProtocolError, SealError, StoreError
from fsdecloud.limits import CONNECT_TIMEOUT, KIB, WINDOW_BYTES
from fsdecloud.net.address import client_group
from fsdecloud.net.nursery import open_background
from fsdecloud.net.websocket import Channel
from fsdecloud.peerd.clients import Client, ClientLimits, Clients
from fsdecloud.peerd.deleting import Deleter
from fsdecloud.peerd.departure import Departure
from fsdecloud.peerd.exchange import Exchange
from fsdecloud.peerd.forwarding import Forwarding, Nonces
from fsdecloud.peerd.leases import LEASE_GRACE, Leaser
from fsdecloud.peerd.reading import ShardReader
from fsdecloud.peerd.scrubbing import Scrubber
from fsdecloud.peerd.setup import GRACE_DEFAULT, Policy
from fsdecloud.peerd.writer import ShardWriter
from fsdecloud.store.shardrows import Claim, keeps_nothing
from fsdecloud.store.shards import ShardStore
from fsdecloud.types import PeerId, ShardId
from fsdecloud.wire import peer as wire
from fsdecloud.wire.forwarding import check_forward, make_answer, open_forward
from fsdecloud.wire.receipts import LEASE_TERM
from fsdecloud.wire.session import Greeting, ServerSession

log = logging.getLogger(__name__)

ANSWERS_MAX: Final = 2
"""Answers that wait to be sent on one connection."""

QUIET: Final = 0.5
"""Seconds after the last request for which scrubbing still waits."""

FORWARDED_MAX: Final = 8
"""Requests that came by way of another peer, answered at once on its connection: up to a MiB each."""

HASH_INLINE: Final = 64 * KIB
"""Bytes that are hashed in the trio thread: under 100 microseconds; a worker thread costs as much."""

HAS_IDS: Final = 64
"""Ids of a Has or Renew that count as one request."""

FORWARD_COST: Final = 3.0
"""More requests as which a Forward counts: it is looked at twice, and opens a connection."""


@dataclass(slots=True)
class Counters:
    """What this peer did since it was started."""

    connections: int = 0
    stored_shards: int = 0
    stored_bytes: int = 0
    served_shards: int = 0
    served_bytes: int = 0
    refused_shards: int = 0
    requests: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0
    """Messages, without what TLS and the websocket add."""
    refusals: Counter[str] = field(default_factory=Counter)
    """What was refused, by reason: shards of Puts, connections, requests."""


class Deals(Protocol):
    """What pays for what is stored (`peerd.dealing`)."""

    def refusal(self, deal: bytes, size: int) -> str:
        """Return why nothing, or nothing of `size` bytes, is stored for this deal key now, "" if it is."""

    def keeps(self, shard: ShardId) -> bool:
        """Return whether a running deal names this shard: neither a grant nor the end of a lease takes it away. Any thread."""

    async def answer(self, request: wire.Dealing, deal: bytes) -> wire.DirectAnswer:
        """Answer a request of the one who has shown this deal key."""


class PeerService:
    """Everything that the connections of one peer share. Give `serve` to `net.websocket.serve`."""

    def __init__(
        self,
        *,
        seed: bytes,
        peer: PeerId,
        network: bytes,
        store: ShardStore,
        writer: ShardWriter,
        policy: Policy,
        grace: int = GRACE_DEFAULT,
        limits: ClientLimits = ClientLimits(),  # noqa: B008 - frozen
        departure: Departure | None = None,
        scrub_period: float = 0.0,
        forwarding: Forwarding | None = None,
        exchange: Exchange | None = None,
        lease: int = LEASE_TERM,
        lease_grace: int = LEASE_GRACE,
        deals: Deals | None = None,
    ) -> None:
        """`scrub_period`: see `peerd.scrubbing`; without `forwarding` nothing is forwarded, without `exchange` nobody is told
        of other peers; `lease` and `lease_grace` in seconds: `peerd.leases`; without `deals` it stores for nothing, and makes
        none. Raises StoreError."""
        self._seed = seed
        self._peer = peer
        self._network = network
        self._store = store
        self._writer = writer
        self._policy = policy
        self._departure = departure
        self._deals = deals
        self._nonces = Nonces()
        self._active = 0
        self.forwarding = forwarding
        self.exchange = exchange
        self._last_request = trio.current_time() - QUIET
        self.clients = Clients(limits)
        self.counters = Counters()
        keeps = deals.keeps if deals is not None else keeps_nothing
        self.deleter = Deleter(store=store, writer=writer, peer=peer, network=network, grace=grace, keeps=keeps)
        self.scrubber = Scrubber(store=store, writer=writer, period=scrub_period, is_busy=self._is_busy)
        self.reader = ShardReader(store, self.scrubber)
        self.leaser = Leaser(
            store=store, writer=writer, term=lease, grace=lease_grace, freed=self.deleter.poke, keeps=keeps
        )

    async def serve(self, channel: Channel) -> None:
        """Serve one client until it leaves. Raises ProtocolError when it does what is not allowed."""
        session = ServerSession(
            peer=self._peer,
            network=self._network,
            nonce=os.urandom(32),
            certificate_hash=channel.certificate_hash,
            window=WINDOW_BYTES,
        )
        await channel.send(session.start())
        with trio.move_on_after(CONNECT_TIMEOUT) as scope:
            greeting = session.receive(await channel.receive())
        if scope.cancelled_caught:
            raise RemoteProtocolError("no hello")
        assert isinstance(greeting, Greeting)
        channel.is_greeted = True
        refusal = self._policy.refusal(greeting.deal)
        with self.clients.enter(greeting.deal, client_group(channel.remote)) as client:
            if client is None:
                self.counters.refusals["connections"] += 1
                raise RemoteProtocolError("too many connections of one client")
            reason = self.refusal(refusal, greeting.deal)
            await channel.send(session.welcome(admitted=not reason, free=self._free(), reason=reason))
            self.counters.connections += 1
            try:
                await _Connection(self, channel, session, greeting, refusal, client).run()
            finally:
                self.counters.connections -= 1

    def refusal(self, of_client: str, deal: bytes, size: int = 0) -> str:
        """Return why nothing, or nothing of `size` bytes, is stored for a client now, "" if it is; `of_client` is the policy's
        word."""
        reason = of_client or (self._departure.reason if self._departure is not None else "")
        return reason or (self._deals.refusal(deal, size) if self._deals is not None else "")

    async def deal(self, request: wire.Dealing, deal: bytes, refusal: str) -> wire.DirectAnswer:
        """Answer a request about a deal that is paid for, of the one that the client has shown."""
        if self._deals is None:
            return wire.Error(
                request.request, "refused", "this peer makes no deals: it stores for nothing, or not at all"
            )
        if not deal:
            return wire.Error(request.request, "refused", "no deal key was shown")
        if refusal and isinstance(request, wire.Fund):
            return wire.Error(request.request, "refused", refusal)
        return await self._deals.answer(request, deal)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count a request within the block; scrubbing waits meanwhile."""
        self._active += 1
        try:
            yield
        finally:
            self._active -= 1
            self._last_request = trio.current_time()

    def _is_busy(self) -> bool:
        return self._active > 0 or trio.current_time() < self._last_request + QUIET

    async def wait_room(self) -> None:
        """Wait while more than enough is waiting for the disk."""
        await self._writer.wait_room()

    async def put(self, request: wire.Put, claim: Claim) -> wire.PutDone:
        """Store shards and sign for those that are durable."""
        shards = [(ShardId(shard.id), shard.data) for shard in request.shards]
        reasons = await self._writer.put(shards, claim, self.leaser.end())
        stored = [(s.id, s.data.nbytes) for s, why in zip(request.shards, reasons, strict=True) if not why]
        refused = tuple(wire.Refusal(s.id, why) for s, why in zip(request.shards, reasons, strict=True) if why)
        self.counters.stored_shards += len(stored)
        self.counters.stored_bytes += sum(size for _, size in stored)
        self.refused(refused)
        return wire.PutDone(request.request, self._receipt(claim.deal, stored), refused)

    def _receipt(self, deal: bytes, shards: list[tuple[bytes, int]]) -> bytes:
        return wire.receipt_for(self._seed, self._peer, deal, int(time.time()), shards, self.leaser.term)

    async def renew(self, request: wire.Renew, deal: bytes, refusal: str) -> wire.DirectAnswer:
        """Begin the terms of a deal's shards anew, and sign for those that are kept.

        Who is not admitted any more (`refusal`) gets no new terms: what it has here ends with its leases.
        """
        if refusal:
            return wire.Error(request.request, "refused", refusal)
        try:
            lengths = await self.leaser.renew(deal, [ShardId(shard) for shard in request.ids])
        except StoreError as exc:
            log.error("cannot renew: %s", exc)
            return wire.Error(request.request, "failed", "this peer's disk failed")
        kept = {bytes(shard): length for shard, length in zip(request.ids, lengths, strict=True) if length}
        return wire.RenewDone(request.request, self._receipt(deal, list(kept.items())))

    def is_for_us(self, forward: wire.Forward) -> bool:
        """Return whether this peer is meant."""
        return forward.target == self._peer

    async def answer_forward(self, forward: wire.Forward, client: Client) -> wire.Forwarded:
        """Answer a request that came by way of another peer."""
        answer = await self._forwarded(forward, client)
        make = partial(make_answer, forward, answer, network=self._network, seed=self._seed)
        if isinstance(answer, wire.Data) and len(answer.data) > HASH_INLINE:
            return await trio.to_thread.run_sync(make, limiter=self.reader.threads)
        return make()

    async def _forwarded(self, forward: wire.Forward, client: Client) -> wire.DirectAnswer:
        """Do what a forwarded request asks for, as if its client had come itself."""
        now = int(time.time())
        try:
            request = open_forward(forward)
            check = partial(check_forward, forward, network=self._network, now=now)
            if forward.body.nbytes > HASH_INLINE:
                await trio.to_thread.run_sync(check, limiter=self.reader.threads)
            else:
                check()
        except (SealError, MalformedError) as exc:
            return wire.Error(0, "refused", str(exc)[: wire.TEXT_MAX])
        client.charge(requests=_cost(request))
        if isinstance(request, wire.Put | wire.Delete | wire.Renew | wire.Dealing):
            if not forward.deal:
                return wire.Error(0, "refused", "no deal key was shown")
            if not self._nonces.take(forward.nonce, forward.expires, now):
                return wire.Error(0, "refused", "this request was here before")
        if isinstance(request, wire.Delete):
            return await self.deleter.delete(request, forward.deal)
        refusal = self._policy.refusal(forward.deal)
        if isinstance(request, wire.Renew):
            return await self.renew(request, forward.deal, refusal)
        if isinstance(request, wire.Dealing):
            return await self.deal(request, forward.deal, refusal)
        if not isinstance(request, wire.Put):
            return await self.read(request, refusal, forward.deal, client)
        if reason := self.refusal(refusal, forward.deal, wire.put_size(request)):
            refused = tuple(wire.Refusal(shard.id, reason) for shard in request.shards)
            self.refused(refused)
            return wire.PutDone(0, b"", refused)
        await self.wait_room()
        with self.working():
            return await self.put(request, Claim(forward.deal, forward.owner))

    def refused(self, refused: tuple[wire.Refusal, ...]) -> None:
        """Count shards that were not taken."""
        self.counters.refused_shards += len(refused)
        for refusal in refused:
            self.counters.refusals[refusal.reason] += 1

    async def read(
        self, request: wire.Get | wire.Has | wire.Info, refusal: str, deal: bytes, client: Client
    ) -> wire.DirectAnswer:
        """Answer a request about the store that stores nothing. Whoever has to wait for the disk waits for its turn first."""
        if isinstance(request, wire.Info):
            return self._info(request, self.refusal(refusal, deal))
        answer: wire.Data | wire.HasResult | wire.Error | None = self.read_at_once(request)
        if answer is None:
            async with client.reading():
                with self.working():
                    answer = await self.reader.wait(request)
            self._count_served(answer)
        return answer

    def read_at_once(self, request: wire.Get | wire.Has) -> wire.Data | wire.HasResult | None:
        """Answer from memory; None when the disk has to be waited for, or the answer is an error."""
        answer = self.reader.at_once(request)
        self._last_request = trio.current_time()
        self._count_served(answer)
        return answer

    def _count_served(self, answer: wire.Answer | None) -> None:
        if isinstance(answer, wire.Data):
            self.counters.served_shards += 1
            self.counters.served_bytes += len(answer.data)

    def _info(self, request: wire.Info, refusal: str) -> wire.InfoResult:
        shards, _ = self._store.counts()
        return wire.InfoResult(
            request.request,
            fsdecloud.__version__,
            not refusal,
            refusal,
            self._store.quota,
            self._store.used_bytes,
            self._free(),
            shards,
        )

    def _free(self) -> int:
        try:
            return self._store.free_bytes()
        except StoreError as exc:
            log.warning("%s", exc)
            return 0


def _cost(request: wire.Request) -> float:
    """Return as how many more requests one counts."""
    if isinstance(request, wire.Has | wire.Renew):
        return len(request.ids) / HAS_IDS
    if isinstance(request, wire.Revise):
        return (len(request.added) + len(request.removed)) / HAS_IDS
    if isinstance(request, wire.Attest):
        return float(request.samples)
    if isinstance(request, wire.Forward):
        return FORWARD_COST
    return len(request.shards) if isinstance(request, wire.Put) else 0.0


class _Connection:
    """One client that was welcomed."""

    def __init__(
        self,
        service: PeerService,
        channel: Channel,
        session: ServerSession,
        greeting: Greeting,
        refusal: str,
        client: Client,
    ) -> None:
        self._service = service
        self._channel = channel
        self._session = session
        self._greeting = greeting
        self._refusal = refusal
        self._client = client
        self._reads: deque[wire.Get | wire.Has | wire.Info | wire.Peers] = deque()
        self._forwarded = trio.CapacityLimiter(FORWARDED_MAX)
        self._is_reading = False
        """Whether something is in `_reads`, or just taken from it."""
        self._wake = trio.Event()
        self._answers, self._to_send = trio.open_memory_channel[wire.Answer](ANSWERS_MAX)

    async def run(self) -> None:
        """Serve until the client leaves."""
        async with open_background() as nursery:
            nursery.start_soon(self._write)
            nursery.start_soon(self._answer_reads)
            while True:
                message = await self._channel.receive()
                request = self._session.receive(message)
                assert not isinstance(request, Greeting)
                await self._client.wait_turn()
                self._count(request, len(message))
                if isinstance(request, wire.Delete):
                    nursery.start_soon(self._delete, request)
                elif isinstance(request, wire.Forward):
                    await self._client.wait_memory()
                    nursery.start_soon(self._forward, request)
                elif isinstance(request, wire.Renew):
                    nursery.start_soon(self._renew, request)
                elif isinstance(request, wire.Dealing):
                    nursery.start_soon(self._deal, request)
                elif not isinstance(request, wire.Put):
                    await self._take_read(request)
                elif reason := self._service.refusal(self._refusal, self._greeting.deal, wire.put_size(request)):
                    refused = tuple(wire.Refusal(shard.id, reason) for shard in request.shards)
                    self._service.refused(refused)
                    nursery.start_soon(self._answers.send, wire.PutDone(request.request, b"", refused))
                else:
                    await self._client.wait_memory()
                    await self._service.wait_room()
                    nursery.start_soon(self._put, request)

    def _count(self, request: wire.Request, size: int) -> None:
        counters = self._service.counters
        counters.requests += 1
        counters.received_bytes += size
        self._client.charge(requests=1 + _cost(request), size=size)

    async def _put(self, request: wire.Put) -> None:
        claim = Claim(self._greeting.deal, self._greeting.owner)
        with self._service.working(), self._client.memory(wire.put_size(request)):
            answer = await self._service.put(request, claim)
        await self._answers.send(answer)

    async def _forward(self, request: wire.Forward) -> None:
        with self._client.memory(request.body.nbytes):
            if self._service.is_for_us(request):
                async with self._forwarded:  # until its answer is on its way: who takes none gets no more of them
                    await self._answers.send(await self._service.answer_forward(request, self._client))
            elif self._service.forwarding is not None:
                await self._service.forwarding.relay(request, self._client, self._send)
            else:
                await self._send(wire.Error(request.request, "refused", "this peer does not forward"))

    async def _send(self, answer: wire.Answer) -> None:
        if isinstance(answer, wire.Error):
            self._service.counters.refusals[answer.code] += 1
        await self._answers.send(answer)

    async def _delete(self, request: wire.Delete) -> None:
        await self._answers.send(await self._service.deleter.delete(request, self._greeting.deal))

    async def _renew(self, request: wire.Renew) -> None:
        with self._service.working():
            answer = await self._service.renew(request, self._greeting.deal, self._refusal)
        await self._answers.send(answer)

    async def _deal(self, request: wire.Dealing) -> None:
        with self._service.working():
            await self._send(await self._service.deal(request, self._greeting.deal, self._refusal))

    async def _take_read(self, request: wire.Get | wire.Has | wire.Info | wire.Peers) -> None:
        """Answer from memory if nothing is before it, else leave it to `_answer_reads`: each task more that has to do with a
        request costs as much as encrypting its answer."""
        if not self._is_reading and isinstance(request, wire.Get) and self._client.may_have_bytes():
            answer = self._service.read_at_once(request)
            if answer is not None:
                with suppress(PeerUnavailable):  # the next `receive` says so
                    await self._pass(answer)
                return
        self._reads.append(request)
        self._is_reading = True
        self._wake.set()

    async def _answer_reads(self) -> None:
        while True:
            while self._reads:
                await self._client.wait_bytes()
                await self._send(await self._read(self._reads.popleft()))
            self._is_reading = False
            self._wake = trio.Event()
            await self._wake.wait()

    async def _read(self, request: wire.Get | wire.Has | wire.Info | wire.Peers) -> wire.Answer:
        if isinstance(request, wire.Peers):
            if self._service.exchange is None:
                return wire.PeersResult(request.request, ())
            return self._service.exchange.answer(request, self._channel.remote)
        return await self._service.read(request, self._refusal, self._greeting.deal, self._client)

    async def _write(self) -> None:
        with suppress(PeerUnavailable):  # the reader meets it as well, and ends the connection
            async for answer in self._to_send:
                await self._pass(answer)

    async def _pass(self, answer: wire.Answer) -> None:
        """Send an answer. Only then is the request done: a client that takes no answers soon has too many requests."""
        message = self._session.answer(answer)
        self._service.counters.sent_bytes += len(message)
        self._client.charge(size=len(message))
        await self._channel.send(message)
