"""What one client may take of a peer, so that a greedy or hostile one leaves the others theirs.

A client is a deal. Those of one address that show none (they read) are one client together, with READERS_FACTOR times as
much. Each address has HOST_FACTOR times what a client has, for all that come from there: keys cost nothing. Who is over a
rate is not refused but not read from, and its reads wait: an honest client is slowed down, and what a hostile one may make
this peer keep in memory stays bounded.

Pure but for trio's events; called only from the trio thread.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Final

import trio

from fsdecloud.limits import MIB, WINDOW_BYTES
from fsdecloud.swarm.bucket import TokenBucket

HOST_FACTOR: Final = 4
"""So many clients' worth an address has: a household or a machine with some volumes."""

READERS_FACTOR: Final = 2
"""The half of it is for those who show no deal."""

KEPT: Final = 4096
"""Clients that are remembered after they left, so that coming back does not refill their buckets."""


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """What one client may take. Options of peer.toml."""

    connections: int = 32
    """At once; an agent has two."""
    requests: float = 400.0
    """A second; a peer answers some thousand. A Has counts one more for every 64 ids, a Put one for each shard, and a Forward
    three."""
    rate: float = 256.0 * MIB
    """Bytes a second, both ways together: more than one process moves over TLS."""
    memory: int = 4 * WINDOW_BYTES
    """Bytes of Puts that wait for the disk."""
    reads: int = 2
    """Reads from the disk at once, of the peer's READ_THREADS."""
    forwards: int = 32
    """Requests of it that are being forwarded at once."""
    forward_rate: float = 64.0 * MIB
    """Bytes a second that are forwarded for it, both ways together; 0: nothing is forwarded."""
    forward_memory: int = WINDOW_BYTES
    """Bytes of forwarded requests, and of answers to come or not taken yet."""
    burst: float = 2.0
    """Seconds' worth that may come at once after a silence."""


class _Share:
    """What one deal or one address takes."""

    def __init__(self, limits: ClientLimits, factor: int, now: float) -> None:
        self.connections_max = factor * limits.connections
        self.memory_max = factor * limits.memory
        self.connections = 0
        self.memory = 0
        self.room = trio.Event()
        self.requests = TokenBucket(factor * limits.requests, factor * limits.requests * limits.burst, now)
        self.bytes = TokenBucket(factor * limits.rate, factor * limits.rate * limits.burst, now)
        self.reads = trio.CapacityLimiter(factor * limits.reads)
        self.forwards_max = factor * limits.forwards
        self.forward_memory_max = factor * limits.forward_memory
        self.forwards = 0
        self.forward_memory = 0
        rate = max(factor * limits.forward_rate, 1.0)
        self.forward_bytes = TokenBucket(rate, rate * limits.burst, now)


class Client:
    """One connection's view of what its deal and its address take."""

    def __init__(self, shares: tuple[_Share, _Share], on_delay: Callable[[], None], *, may_forward: bool) -> None:
        self._shares = shares
        self._on_delay = on_delay
        self.may_forward = may_forward

    def charge(self, *, requests: float = 0.0, size: int = 0) -> None:
        """Count requests and bytes, in or out."""
        now = trio.current_time()
        for share in self._shares:
            if requests:
                share.requests.take(requests, now)
            if size:
                share.bytes.take(size, now)

    async def wait_turn(self) -> None:
        """Wait until this client is within its rates: before a request is taken."""
        await self._wait(lambda share, now: max(share.requests.wait(now), share.bytes.wait(now)))

    async def wait_bytes(self) -> None:
        """Wait until it is within its rate of bytes: before another answer is made."""
        await self._wait(lambda share, now: share.bytes.wait(now))

    async def _wait(self, pause_of: Callable[[_Share, float], float]) -> None:
        own, host = self._shares
        is_first = True
        while True:
            now = trio.current_time()
            pause = max(pause_of(own, now), pause_of(host, now))
            if pause <= 0:
                return
            if is_first:
                self._on_delay()
                is_first = False
            await trio.sleep(pause)

    def may_have_bytes(self) -> bool:
        """Whether `wait_bytes` would not wait."""
        now = trio.current_time()
        return all(share.bytes.wait(now) <= 0 for share in self._shares)

    async def wait_memory(self) -> None:
        """Wait while too much of this client waits for the disk."""
        for share in self._shares:
            while share.memory >= share.memory_max:
                await share.room.wait()

    @contextmanager
    def memory(self, size: int) -> Iterator[None]:
        """Count bytes that are kept in memory within the block."""
        for share in self._shares:
            share.memory += size
        try:
            yield
        finally:
            for share in self._shares:
                share.memory -= size
                share.room.set()
                share.room = trio.Event()

    def charge_forward(self, size: int) -> None:
        """Count forwarded bytes."""
        now = trio.current_time()
        for share in self._shares:
            share.forward_bytes.take(size, now)

    async def wait_forward(self) -> None:
        """Wait until it is within its rate of forwarded bytes."""
        await self._wait(lambda share, now: share.forward_bytes.wait(now))

    @contextmanager
    def forwarding(self, size: int) -> Iterator[bool]:
        """Count a forward of so many bytes within the block; False when it has too many."""
        if any(
            share.forwards >= share.forwards_max or share.forward_memory + size > share.forward_memory_max
            for share in self._shares
        ):
            yield False
            return
        for share in self._shares:
            share.forwards += 1
            share.forward_memory += size
        try:
            yield True
        finally:
            for share in self._shares:
                share.forwards -= 1
                share.forward_memory -= size

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """Wait for this client's turn to read from the disk."""
        own, host = self._shares
        async with own.reads, host.reads:
            yield


class Clients:
    """All clients of a peer."""

    def __init__(self, limits: ClientLimits) -> None:
        self._limits = limits
        self._shares: OrderedDict[bytes, _Share] = OrderedDict()
        self.delays = 0
        """How often one had to wait for its rate, since the start."""

    @contextmanager
    def enter(self, deal: bytes, host: str) -> Iterator[Client | None]:
        """Count a connection within the block; None when its client has too many."""
        own = self._share(b"d" + deal, 1) if deal else self._share(b"r" + host.encode(), READERS_FACTOR)
        shares = (own, self._share(b"h" + host.encode(), HOST_FACTOR))
        if any(share.connections >= share.connections_max for share in shares):
            yield None
            return
        for share in shares:
            share.connections += 1
        try:
            yield Client(shares, self._delayed, may_forward=self._limits.forward_rate > 0)
        finally:
            for share in shares:
                share.connections -= 1

    def _delayed(self) -> None:
        self.delays += 1

    def _share(self, key: bytes, factor: int) -> _Share:
        share = self._shares.get(key)
        if share is None:
            share = self._shares[key] = _Share(self._limits, factor, trio.current_time())
            if len(self._shares) > KEPT:
                gone = next((key for key, share in self._shares.items() if not share.connections), None)
                if gone is not None:
                    del self._shares[gone]
        self._shares.move_to_end(key)
        return share
