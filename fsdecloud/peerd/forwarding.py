"""How a storage peer passes requests on to other peers, for clients that do not reach those (what is sent:
`wire.forwarding`).

It goes to the target itself where that can be reached; else, if the request has hops left, to one or two other peers that may
reach it. Addresses come from the ledger's registry and from what peers announced (`peerd.directory`), never from a client, so
that nobody can make this peer talk to whom it would not talk to anyway. A nonce that is here already is a loop and goes no
further. What all of it may take of this peer is bounded: open forwards and bytes in memory, of each client and in all,
bytes a second of each client, connections in all; past that a client is told to come back ("busy"). The deadline shrinks at
each hop, so that whoever asked hears why from the last one that still knows.

An answer is passed on only if it is the target's word. Called only from the trio thread.
"""

from __future__ import annotations

import logging
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

import msgspec
import trio

from fsdecloud.errors import MalformedError, ProtocolError, RemoteError, SealError
from fsdecloud.limits import BLOB_MAX, KIB, MIB
from fsdecloud.net.address import Address
from fsdecloud.net.pool import PeerPool
from fsdecloud.peerd.clients import Client
from fsdecloud.peerd.directory import Directory
from fsdecloud.types import PeerId
from fsdecloud.wire import peer as wire
from fsdecloud.wire.forwarding import check_answer, open_forward

log = logging.getLogger(__name__)

FORWARDS_MAX: Final = 256
"""Open at once, of all clients."""

MEMORY_MAX: Final = 64 * MIB
"""Bytes of requests and of answers to come, of all of them."""

CONNECTIONS_MAX: Final = 128
"""Connections to other peers; they close after some idle time."""

NEIGHBOURS: Final = 2
"""Other peers that are asked when the target is not reached from here."""

CONNECT_MAX: Final = 5.0
"""Seconds for a connection, and at most half of the time that is left: the rest is for another way."""

MARGIN: Final = 0.25
"""Seconds less at each hop, for the answer to travel back in."""

SMALL_ANSWER: Final = 16 * KIB
"""Of anything but a Get."""

REST: Final = 600.0
"""Seconds for which a neighbour is left out that passed on what was not the target's word."""

NONCES_MAX: Final = 1 << 16
"""Nonces of signed requests that are remembered, 10 MiB; past them the oldest could be stored a second time, to no harm."""


class Forwarding:
    """What one peer forwards."""

    def __init__(self, *, peer: PeerId, network: bytes, pool: PeerPool, directory: Directory) -> None:
        self._peer = peer
        self._network = network
        self._pool = pool
        self._directory = directory
        self._open: set[bytes] = set()
        self._memory = 0
        self._resting: dict[Address, float] = {}
        self.forwarded_requests = 0
        self.forwarded_bytes = 0
        """Of requests that were answered, and what went both ways; since the start."""

    @property
    def open_forwards(self) -> int:
        """How many wait for their answer."""
        return len(self._open)

    async def relay(
        self, forward: wire.Forward, client: Client, send: Callable[[wire.Answer], Awaitable[None]]
    ) -> None:
        """Pass a request on, and `send` its answer, or why there is none; an answer that is not taken keeps its place."""
        refusal = self._refusal(forward, client)
        if refusal is None:
            with self._place(forward, client) as has_place:
                if has_place:
                    await send(await self._answer(forward, client))
                    return
            refusal = wire.Error(forward.request, "busy", "this peer forwards as much as it can")
        await send(refusal)

    def _refusal(self, forward: wire.Forward, client: Client) -> wire.Error | None:
        if not client.may_forward:
            return wire.Error(forward.request, "refused", "this peer does not forward")
        if forward.nonce in self._open:
            return wire.Error(forward.request, "loop", "this request is here already")
        try:
            open_forward(forward)
        except MalformedError as exc:
            return wire.Error(forward.request, "refused", str(exc)[: wire.TEXT_MAX])
        return None

    async def _answer(self, forward: wire.Forward, client: Client) -> wire.Answer:
        with trio.move_on_after(forward.patience / 1000) as scope:
            await client.wait_forward()
            answer = await self._send(forward, scope.deadline)
        if scope.cancelled_caught:
            return wire.Error(forward.request, "late", "no answer in time")
        if isinstance(answer, wire.Forwarded):
            size = forward.body.nbytes + answer.body.nbytes
            client.charge_forward(size)
            self.forwarded_requests += 1
            self.forwarded_bytes += size
        return answer

    @contextmanager
    def _place(self, forward: wire.Forward, client: Client) -> Iterator[bool]:
        """Count a forward within the block, if there is room for it."""
        request = open_forward(forward)
        size = forward.body.nbytes + (request.length or BLOB_MAX if isinstance(request, wire.Get) else SMALL_ANSWER)
        if len(self._open) >= FORWARDS_MAX or self._memory + size > MEMORY_MAX:
            yield False
            return
        with client.forwarding(size) as has_place:
            if not has_place:
                yield False
                return
            self._open.add(forward.nonce)
            self._memory += size
            try:
                yield True
            finally:
                self._open.discard(forward.nonce)
                self._memory -= size

    async def _send(self, forward: wire.Forward, end: float) -> wire.Answer:
        """Send it where it may be answered; returns that answer or an Error."""
        target = PeerId(forward.target)
        address = await self._directory.find(target)
        is_busy = False
        if address is not None:
            answer = await self._try(address, forward, 0, end)
            if isinstance(answer, wire.Forwarded):
                return answer
            is_busy = answer == "busy"
        if forward.hops:
            for neighbour in self._neighbours(target):
                answer = await self._try(neighbour, forward, forward.hops - 1, end)
                if isinstance(answer, wire.Forwarded):
                    return answer
                is_busy = is_busy or answer == "busy"
        if is_busy:
            return wire.Error(forward.request, "busy", "the peers on the way are busy")
        why = "cannot be reached from here" if address is not None else "is not known here"
        return wire.Error(forward.request, "unreachable", f"peer {target.hex()[:16]} {why}")

    def _neighbours(self, target: PeerId) -> list[Address]:
        """Return some peers to ask, those with a connection first."""
        now = trio.current_time()
        others = [
            address
            for address in self._directory.others()
            if address.id not in (target, self._peer) and now >= self._resting.get(address, 0.0)
        ]
        connected = [address for address in others if self._pool.is_open(address)]
        if len(connected) >= NEIGHBOURS:
            others = connected
        random.shuffle(others)
        others.sort(key=lambda address: not self._pool.is_open(address))
        return others[:NEIGHBOURS]

    async def _try(self, address: Address, forward: wire.Forward, hops: int, end: float) -> wire.Forwarded | str:
        """Hand it to one peer; return its answer if that is authentic, else why there is none."""
        if not self._pool.is_open(address) and self._pool.statistics()["connections"] >= CONNECTIONS_MAX:
            return "busy"
        try:
            with trio.move_on_after(min(CONNECT_MAX, (end - trio.current_time()) / 2)) as slow:
                await self._pool.connect(address)
            left = int(1000 * (end - trio.current_time() - MARGIN))
            if slow.cancelled_caught:
                self._directory.failed(address)
            if slow.cancelled_caught or left <= 0:
                return "late"

            def build(number: int) -> wire.Forward:
                return msgspec.structs.replace(forward, request=number, hops=hops, patience=left)

            answer = await self._pool.forward(address, build, forward.body.nbytes)
            if isinstance(answer, wire.Forwarded):
                check_answer(forward, answer, network=self._network)
                return msgspec.structs.replace(answer, request=forward.request)
        except (RemoteError, ProtocolError) as exc:
            log.debug("cannot forward: %s", exc)
            if not self._pool.is_open(address):
                self._directory.failed(address)
            return "unreachable"
        except (SealError, MalformedError) as exc:
            log.warning("%s answers what is not the word of %s: %s", address, forward.target.hex()[:16], exc)
            self._resting[address] = trio.current_time() + REST
            return "unreachable"
        assert isinstance(answer, wire.Error)
        return answer.code


class Nonces:
    """Those of signed requests that were taken here, until they expire."""

    def __init__(self) -> None:
        self._until: OrderedDict[bytes, int] = OrderedDict()

    def take(self, nonce: bytes, expires: int, now: int) -> bool:
        """Note a nonce until it expires (seconds since 1970); return whether it is new."""
        while self._until and (next(iter(self._until.values())) <= now or len(self._until) >= NONCES_MAX):
            self._until.popitem(last=False)
        if self._until.get(nonce, 0) > now:
            return False
        self._until[nonce] = expires
        return True
