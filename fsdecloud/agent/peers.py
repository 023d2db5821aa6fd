"""Which peers there are, how they do, and every request to one of them.

Called only from the trio thread. `PeerBook` keeps one `Peer` for each peer that the registry or the host map names, sends
requests through the pool, and learns from each outcome. A peer that fails is left alone until a probe succeeds, so that a
dead one costs a probe now and then and never a user's request (fault 46). Not here: which peer gets what (`upload`,
`fetch`), connections (`net.pool`).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, Protocol, TypeVar

import trio

from fsdecloud.errors import (
    BlobCorrupt,
    BlobMissing,
    FsdecloudError,
    PeerRefused,
    PeerUnavailable,
    ProtocolError,
    RemoteError,
    UsageError,
)
from fsdecloud.net.address import Address, parse_url
from fsdecloud.swarm.score import PeerScore
from fsdecloud.types import PeerId, ShardId
from fsdecloud.wire.agentapi import PeerState, RegistryPeer
from fsdecloud.wire.receipts import Receipt

log = logging.getLogger(__name__)

T = TypeVar("T")

PROBE_TIMEOUT: Final = 5.0
"""A peer that does not answer a probe within this is down; requests may take longer, a probe asks for nothing."""

PROBE_IDLE: Final = 30.0
"""Seconds between two rounds of probes while nothing waits for a failing peer."""

PROBE_URGENT: Final = 2.0
"""While something does."""


class PeerInfo(Protocol):
    """What a peer says of itself (`wire.peer.InfoResult`)."""

    @property
    def admitted(self) -> bool:
        """Whether it takes this volume's shards."""

    @property
    def reason(self) -> str:
        """Why not."""


class Transport(Protocol):
    """What the book needs of `net.pool.PeerPool`."""

    async def put(self, address: Address, shards: Sequence[tuple[ShardId, bytes | memoryview]]) -> Receipt:
        """Store shards, return the verified receipt."""

    async def get(self, address: Address, shard: ShardId) -> bytes:
        """Return a shard, verified against its id."""

    async def has(self, address: Address, ids: Sequence[ShardId]) -> Sequence[bool]:
        """Say for each shard whether the peer has it."""

    async def delete(self, address: Address, grant: bytes) -> dict[ShardId, str]:
        """Hand over a grant; return what is kept all the same, and why."""

    async def info(self, address: Address) -> PeerInfo:
        """Ask how the peer is."""


class Peer:
    """One peer as this agent sees it."""

    __slots__ = (
        "address",
        "corrupt",
        "error",
        "fetched_bytes",
        "id",
        "is_refusing",
        "refused_until",
        "score",
        "stored_bytes",
        "url",
    )

    def __init__(self, peer: PeerId) -> None:
        self.id = peer
        self.url = ""
        self.address: Address | None = None
        self.score = PeerScore()
        self.is_refusing = False
        self.refused_until = 0.0
        self.corrupt = 0
        self.error = ""
        self.stored_bytes = 0
        self.fetched_bytes = 0

    @property
    def is_usable(self) -> bool:
        """True while it has an address, answers and accepts."""
        return self.address is not None and not self.score.is_failing and not self.is_refusing

    @property
    def is_readable(self) -> bool:
        """True while it has an address and answers: one that is full can still be read from."""
        return self.address is not None and not self.score.is_failing

    def state(self) -> PeerState:
        """Return what `status` shows."""
        if self.address is None or self.score.is_failing:
            state = "down"
        elif self.corrupt:
            state = "corrupt"
        else:
            state = "refusing" if self.is_refusing else "up"
        return PeerState(
            self.id, self.url, state, self.score.failures, self.corrupt, self.stored_bytes, self.fetched_bytes
        )


class PeerBook:
    """All peers."""

    def __init__(
        self, transport: Transport, *, network: bytes, clock: Callable[[], float], jitter: Callable[[], float]
    ) -> None:
        self._transport = transport
        self._network = network
        self._clock = clock
        self._jitter = jitter
        self._peers: dict[PeerId, Peer] = {}
        self._wake = trio.Event()
        self._urged = trio.Event()
        self.registry: tuple[RegistryPeer, ...] = ()
        self.last_error = ""
        self.on_usable: list[Callable[[PeerId], None]] = []
        """Called when a peer becomes usable (again)."""
        self.is_urgent: Callable[[], bool] = lambda: False
        """Says whether something waits for a failing peer."""

    # ---- knowing ---------------------------------------------------------------------------------------------------
    def update(self, registry: Sequence[RegistryPeer]) -> None:
        """Take a new registry: addresses may have changed. A peer with a new address starts afresh."""
        self.registry = tuple(registry)
        for entry in registry:
            peer = self.peer(entry.id)
            if peer.url == entry.url:
                continue
            try:
                address = parse_url(entry.url)
            except UsageError as exc:
                log.warning("peer %s has a bad address: %s", entry.id.hex()[:16], exc)
                continue
            if address.network not in (None, self._network) or address.id not in (None, entry.id):
                log.warning("the address of peer %s names another peer or network", entry.id.hex()[:16])
                continue
            peer.url = entry.url
            peer.address = Address(address.host, address.port, entry.id, self._network)
            peer.score = PeerScore()
            peer.is_refusing = False
            self._became_usable(peer)

    def peer(self, peer: PeerId) -> Peer:
        """Return the peer, known or not (it has no address then)."""
        found = self._peers.get(peer)
        if found is None:
            found = self._peers[peer] = Peer(peer)
        return found

    def states(self, peers: Iterable[PeerId]) -> tuple[PeerState, ...]:
        """Return what `status` shows of these peers."""
        return tuple(self.peer(peer).state() for peer in peers)

    @property
    def uploaded_bytes(self) -> int:
        """Shard bytes stored since the start."""
        return sum(peer.stored_bytes for peer in self._peers.values())

    @property
    def downloaded_bytes(self) -> int:
        """Shard bytes fetched since the start."""
        return sum(peer.fetched_bytes for peer in self._peers.values())

    # ---- requests --------------------------------------------------------------------------------------------------
    async def put(self, peer_id: PeerId, shards: Sequence[tuple[ShardId, bytes | memoryview]]) -> Receipt:
        """Store shards with a peer; returns its verified receipt, which may cover fewer. Raises RemoteError."""
        peer = self.peer(peer_id)
        size = sum(len(data) for _, data in shards)
        receipt = await self._request(peer, size, lambda address: self._transport.put(address, shards), is_timed=False)
        covered = {item.id for item in receipt.shards}
        if len(covered) < len(shards):
            self._refuses(peer, "it took some shards only")
        peer.stored_bytes += sum(len(data) for shard, data in shards if shard in covered)
        return receipt

    async def get(self, peer_id: PeerId, shard: ShardId, size: int) -> bytes:
        """Return a shard of `size` bytes, verified against its id. Raises RemoteError; BlobCorrupt is held against the peer."""
        peer = self.peer(peer_id)
        data = await self._request(peer, size, lambda address: self._transport.get(address, shard))
        peer.fetched_bytes += len(data)
        return data

    async def has(self, peer_id: PeerId, ids: Sequence[ShardId]) -> Sequence[bool]:
        """Ask a peer which shards it has, at most `wire.peer.IDS_MAX`. Raises RemoteError."""
        return await self._request(self.peer(peer_id), 0, lambda address: self._transport.has(address, ids))

    async def delete(self, peer_id: PeerId, grant: bytes) -> dict[ShardId, str]:
        """Hand a grant to a peer; return the shards it keeps all the same, and why. Raises RemoteError.

        How this goes says nothing about storing and reading: it is not held against the peer.
        """
        peer = self.peer(peer_id)
        if peer.address is None:
            raise PeerUnavailable(f"peer {peer.id.hex()[:16]} is not in the registry")
        return await self._transport.delete(peer.address, grant)

    async def probe(self, peer_id: PeerId) -> bool:
        """Ask the peer for a sign of life; returns whether it is usable now."""
        peer = self.peer(peer_id)
        try:
            with trio.fail_after(PROBE_TIMEOUT):
                info = await self._request(peer, 0, lambda address: self._transport.info(address))
        except trio.TooSlowError:
            self._failed(peer, PeerUnavailable(f"no answer within {PROBE_TIMEOUT:g} s"), PROBE_TIMEOUT)
            return False
        except FsdecloudError:
            return False  # noted by _request
        if not info.admitted:
            self._refuses(peer, info.reason or "it does not admit this volume")
        elif peer.is_refusing:
            peer.is_refusing = False
            self._became_usable(peer)
        return peer.is_usable

    async def _request(
        self, peer: Peer, size: int, send: Callable[[Address], Awaitable[T]], *, is_timed: bool = True
    ) -> T:
        """Send one request and learn from its outcome. Cancelling it says nothing about the peer.

        The time of a put is not learnt: it is that of the peer's disk, and reads would be hedged by it.
        """
        if peer.address is None:
            raise PeerUnavailable(f"peer {peer.id.hex()[:16]} is not in the registry")
        score = peer.score
        score.pending += size
        queued = score.pending
        start = self._clock()
        try:
            result = await send(peer.address)
        except BlobCorrupt as exc:
            peer.corrupt += 1
            peer.error = str(exc)
            self.last_error = f"peer {peer.url} sent wrong bytes: {exc}"
            log.warning("%s", self.last_error)
            raise
        except PeerRefused as exc:
            self._refuses(peer, str(exc))
            raise
        except BlobMissing:
            self._answered(peer)
            raise
        except (RemoteError, ProtocolError) as exc:
            self._failed(peer, exc, self._clock() - start)
            raise
        else:
            self._answered(peer)
            if is_timed:
                score.succeeded(queued, self._clock() - start)
            return result
        finally:
            score.pending -= size

    def _answered(self, peer: Peer) -> None:
        if peer.score.is_failing:
            peer.score.answered()
            log.info("peer %s is back", peer.url)
            self._became_usable(peer)

    def _failed(self, peer: Peer, exc: FsdecloudError, seconds: float) -> None:
        if not peer.score.is_failing:
            log.warning("peer %s is down: %s", peer.url, exc)
        peer.score.failed(self._clock(), seconds, self._jitter())
        peer.error = str(exc)
        self.last_error = f"peer {peer.url}: {exc}"
        self._wake.set()

    def _refuses(self, peer: Peer, why: str) -> None:
        if not peer.is_refusing:
            log.warning("peer %s refuses: %s", peer.url, why)
        peer.is_refusing = True
        peer.refused_until = self._clock() + PROBE_IDLE
        peer.error = why
        self.last_error = f"peer {peer.url} refuses: {why}"
        self._wake.set()

    def _became_usable(self, peer: Peer) -> None:
        if peer.is_usable:
            for call in self.on_usable:
                call(peer.id)

    # ---- probing ---------------------------------------------------------------------------------------------------
    def failing(self) -> list[PeerId]:
        """Return the peers with an address that fail or refuse."""
        return [peer.id for peer in self._peers.values() if peer.address is not None and not peer.is_usable]

    def urge(self) -> None:
        """Probe soon: something waits for a failing peer."""
        self._urged.set()

    async def run(self) -> None:
        """Probe the failing peers now and then, until cancelled; sleeps while there are none."""
        while True:
            if not self.failing():
                self._wake = trio.Event()
                await self._wake.wait()
            if not self.is_urgent():
                self._urged = trio.Event()
                with trio.move_on_after(PROBE_IDLE * (0.75 + self._jitter() / 2)):
                    await self._urged.wait()
            await trio.sleep(PROBE_URGENT * (0.75 + self._jitter() / 2))
            now = self._clock()
            async with trio.open_nursery() as nursery:
                for peer_id in self.failing():
                    peer = self.peer(peer_id)
                    if peer.score.may_try(now) and now >= peer.refused_until:
                        nursery.start_soon(self.probe, peer_id)
