"""How a storage peer serves one client (messages and states: `wire.peer`).

Each connection has a reader (this task), one task that answers reads in order, and one that sends. Puts go to the common
writer (`peerd.writer`) and are answered as they become durable. A client that does not take its answers is not read from:
at most a few shards of it lie in memory.

Called only from the trio thread.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import trio

import fsdecloud
from fsdecloud.errors import MalformedError, PeerUnavailable, RemoteProtocolError, StoreError
from fsdecloud.limits import CONNECT_TIMEOUT, WINDOW_BYTES
from fsdecloud.net.nursery import open_background
from fsdecloud.net.websocket import Channel
from fsdecloud.peerd.deleting import Deleter
from fsdecloud.peerd.setup import GRACE_DEFAULT, Policy
from fsdecloud.peerd.writer import ShardWriter
from fsdecloud.store.shards import Claim, ShardStore
from fsdecloud.types import PeerId, ShardId
from fsdecloud.wire import peer as wire

log = logging.getLogger(__name__)

ANSWERS_MAX: Final = 2
"""Answers that wait to be sent on one connection."""

READ_THREADS: Final = 4
"""Threads that read shards: enough to keep a disk busy."""


@dataclass(slots=True)
class Counters:
    """What this peer did since it was started."""

    connections: int = 0
    stored_shards: int = 0
    stored_bytes: int = 0
    served_shards: int = 0
    served_bytes: int = 0
    refused_shards: int = 0


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
    ) -> None:
        self._seed = seed
        self._peer = peer
        self._network = network
        self._store = store
        self._writer = writer
        self._policy = policy
        self._readers = trio.CapacityLimiter(READ_THREADS)
        self.counters = Counters()
        self.deleter = Deleter(store=store, writer=writer, peer=peer, network=network, grace=grace)

    async def serve(self, channel: Channel) -> None:
        """Serve one client until it leaves. Raises ProtocolError when it does what is not allowed."""
        session = wire.ServerSession(
            peer=self._peer,
            network=self._network,
            nonce=os.urandom(32),
            certificate_hash=channel.certificate_hash,
            window=WINDOW_BYTES,
        )
        await channel.send(session.challenge())
        with trio.move_on_after(CONNECT_TIMEOUT) as scope:
            deal = session.receive_hello(await channel.receive())
        if scope.cancelled_caught:
            raise RemoteProtocolError("no hello")
        reason = self._policy.refusal(deal)
        await channel.send(session.welcome(admitted=not reason, free=self._free(), reason=reason))
        self.counters.connections += 1
        try:
            await _Connection(self, channel, session, reason).run()
        finally:
            self.counters.connections -= 1

    async def wait_room(self) -> None:
        """Wait while more than enough is waiting for the disk."""
        await self._writer.wait_room()

    async def put(self, request: wire.Put, claim: Claim) -> wire.PutDone:
        """Store shards and sign for those that are durable."""
        reasons = await self._writer.put([(ShardId(shard.id), shard.data) for shard in request.shards], claim)
        stored = [(s.id, s.data.nbytes) for s, why in zip(request.shards, reasons, strict=True) if not why]
        refused = tuple(wire.Refusal(s.id, why) for s, why in zip(request.shards, reasons, strict=True) if why)
        self.counters.stored_shards += len(stored)
        self.counters.stored_bytes += sum(size for _, size in stored)
        self.counters.refused_shards += len(refused)
        receipt = wire.receipt_for(self._seed, self._peer, claim.deal, int(time.time()), stored)
        return wire.PutDone(request.request, receipt, refused)

    async def read(self, request: wire.Get | wire.Has | wire.Info, refusal: str) -> wire.Answer:
        """Answer a request that stores nothing."""
        if isinstance(request, wire.Get):
            return await trio.to_thread.run_sync(self._get, request, limiter=self._readers)
        if isinstance(request, wire.Has):
            present = await trio.to_thread.run_sync(self._store.has_many, request.ids, limiter=self._readers)
            return wire.HasResult(request.request, present)
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

    def _get(self, request: wire.Get) -> wire.Answer:
        try:
            data = self._store.get(ShardId(request.shard), request.offset, request.length)
        except KeyError:
            return wire.Error(request.request, "missing", "no such shard here")
        except MalformedError as exc:
            return wire.Error(request.request, "range", str(exc))
        except StoreError as exc:
            log.error("cannot read shard %s: %s", request.shard.hex(), exc)
            return wire.Error(request.request, "missing", "this peer has lost it")
        self.counters.served_shards += 1
        self.counters.served_bytes += len(data)
        return wire.Data(request.request, data)

    def _free(self) -> int:
        try:
            return self._store.free_bytes()
        except StoreError as exc:
            log.warning("%s", exc)
            return 0


class _Connection:
    """One client that was welcomed."""

    def __init__(self, service: PeerService, channel: Channel, session: wire.ServerSession, refusal: str) -> None:
        self._service = service
        self._channel = channel
        self._session = session
        self._refusal = refusal
        self._reads: deque[wire.Get | wire.Has | wire.Info] = deque()
        self._wake = trio.Event()
        self._answers, self._to_send = trio.open_memory_channel[wire.Answer](ANSWERS_MAX)

    async def run(self) -> None:
        """Serve until the client leaves."""
        async with open_background() as nursery:
            nursery.start_soon(self._write)
            nursery.start_soon(self._answer_reads)
            while True:
                request = self._session.receive(await self._channel.receive())
                if isinstance(request, wire.Delete):
                    nursery.start_soon(self._delete, request)
                elif not isinstance(request, wire.Put):
                    self._reads.append(request)
                    self._wake.set()
                elif self._refusal:
                    refused = tuple(wire.Refusal(shard.id, self._refusal) for shard in request.shards)
                    nursery.start_soon(self._answers.send, wire.PutDone(request.request, b"", refused))
                else:
                    await self._service.wait_room()
                    nursery.start_soon(self._put, request)

    async def _put(self, request: wire.Put) -> None:
        claim = Claim(self._session.deal, self._session.owner)
        await self._answers.send(await self._service.put(request, claim))

    async def _delete(self, request: wire.Delete) -> None:
        await self._answers.send(await self._service.deleter.delete(request, self._session.deal))

    async def _answer_reads(self) -> None:
        while True:
            while self._reads:
                await self._answers.send(await self._service.read(self._reads.popleft(), self._refusal))
            self._wake = trio.Event()
            await self._wake.wait()

    async def _write(self) -> None:
        with suppress(PeerUnavailable):  # the reader meets it as well, and ends the connection
            async for answer in self._to_send:
                # Only now is the request done: a client that takes no answers soon has too many requests.
                await self._channel.send(self._session.answer(answer))
