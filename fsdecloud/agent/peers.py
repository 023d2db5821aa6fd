"""Which peers there are, how they do, and every request to one of them.

Called only from the trio thread. `PeerBook` keeps one `Peer` for each peer that the registry or the host map names, sends
requests through the pool, and learns from each outcome. A peer that fails is left alone until a probe succeeds, so that a
dead one costs a probe now and then and never a user's request (fault 46). Not here: which peer gets what (`upload`,
`fetch`), connections (`net.pool`).
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, TypeVar

import trio

from fsdecloud.agent.bandwidth import Limiter
from fsdecloud.agent.flow import Flow
from fsdecloud.agent.peer import Connecting, Peer, Relaying, Transport
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
from fsdecloud.net.address import Address, format_endpoint, parse_url
from fsdecloud.swarm.hedging import AnswerTimes
from fsdecloud.swarm.score import HEDGE_MIN, PeerScore
from fsdecloud.types import PeerId, ShardId
from fsdecloud.wire.agentapi import PeerState, RegistryPeer
from fsdecloud.wire.peer import LEAVING
from fsdecloud.wire.receipts import Receipt

log = logging.getLogger(__name__)

T = TypeVar("T")

PROBE_TIMEOUT: Final = 5.0
"""A peer that does not answer a probe within this is down; requests may take longer, a probe asks for nothing."""

PROBE_IDLE: Final = 30.0
"""Seconds between two rounds of probes while nothing waits for a failing peer."""

READY_MAX: Final = 32
"""In a network of no more peers there is a connection to each before something is to be read (`net.pool.KEPT_MAX`)."""

RELAYS_MAX: Final = 64
"""Peers that are offered as relays at once."""

PROBE_URGENT: Final = 2.0
"""While something does."""

REQUEST_COST: Final = 128
"""Bytes that a request without shards counts for against a limit on bandwidth."""


class PeerBook:
    """All peers."""

    def __init__(
        self, transport: Transport, *, network: bytes, clock: Callable[[], float], jitter: Callable[[], float]
    ) -> None:
        self._transport = transport
        self._network = network
        self._clock = clock
        self._jitter = jitter
        self._way: Callable[[PeerId], PeerId | None] = lambda _peer: None
        self._open_ahead: Callable[[Address], None] = lambda _address: None
        self._peers: dict[PeerId, Peer] = {}
        if isinstance(transport, Connecting):
            self._open_ahead = transport.open_ahead
        if isinstance(transport, Relaying):
            transport.use_relays(self.relays)
            self._way = transport.way
        self._wake = trio.Event()
        self._urged = trio.Event()
        self.registry: tuple[RegistryPeer, ...] = ()
        self._capacities: dict[PeerId, int] = {}
        self._operators: dict[PeerId, bytes] = {}
        self.last_error = ""
        self._prices: dict[PeerId, int] = {}
        self.on_stored: list[Callable[[Receipt], None]] = []
        """Called with each receipt for what was stored."""
        self.on_usable: list[Callable[[PeerId], None]] = []
        """Called when a peer becomes usable (again)."""
        self.on_back: list[Callable[[PeerId], None]] = []
        """Called when a peer answers again that takes nothing, because it is full: what it has can be read."""
        self.on_offer: list[Callable[[PeerId], None]] = []
        """Called when the registry says that a peer offers nothing any more, or something again: ask it why."""
        self.on_leaving: list[Callable[[PeerId], None]] = []
        """Called when a peer says that it leaves for good, or stays after all."""
        self.on_away: list[Callable[[PeerId], None]] = []
        """Called when a peer that answered does not any more."""
        self.is_urgent: Callable[[], bool] = lambda: False
        """Says whether something waits for a failing peer."""
        self.up = Limiter(clock)
        self.down = Limiter(clock)
        """The limits on bandwidth. Whoever sends or fetches shards waits there first (`read` does it for its caller)."""
        self._times = AnswerTimes()

    # ---- knowing ---------------------------------------------------------------------------------------------------
    def update(self, registry: Sequence[RegistryPeer]) -> None:
        """Take a new registry: addresses may have changed. A peer with a new address starts afresh."""
        self.registry = tuple(registry)
        self._capacities = {entry.id: entry.capacity for entry in registry}
        self._operators = {entry.id: entry.operator for entry in registry}
        self._prices = {entry.id: entry.price for entry in registry}
        for entry in registry:
            peer = self.peer(entry.id)
            self._set_leaving(peer, is_leaving=entry.capacity == 0)
            if peer.registered == entry.url and entry.sequence <= peer.registered_at:
                continue
            try:
                address = parse_url(entry.url)
            except UsageError as exc:
                log.warning("peer %s has a bad address: %s", entry.id.hex()[:16], exc)
                continue
            if address.network not in (None, self._network) or address.id not in (None, entry.id):
                log.warning("the address of peer %s names another peer or network", entry.id.hex()[:16])
                continue
            peer.registered, peer.registered_at = entry.url, entry.sequence
            if peer.url == entry.url:
                peer.sequence = max(peer.sequence, entry.sequence)
                continue
            if peer.is_readable and 0 < entry.sequence < peer.sequence:
                continue  # it has announced a newer one since, and is there
            self._set_address(peer, Address(address.host, address.port, entry.id, self._network), entry.url)
            peer.sequence = entry.sequence

    def move(self, address: Address, sequence: int) -> None:
        """Use a peer at another address, where it has proved to be; `sequence` as in `Peer`. One that nobody registered is
        known from then on."""
        assert address.id is not None
        peer = self.peer(address.id)
        if peer.address == address:
            peer.sequence = max(peer.sequence, sequence)
        else:
            peer.sequence = sequence
            log.info("%s is used at %s", peer.name, format_endpoint(address.host, address.port))
            self._set_address(peer, address, str(address))

    def _set_address(self, peer: Peer, address: Address, url: str) -> None:
        peer.url = url
        peer.address = address
        peer.score = PeerScore()
        peer.away_since = None
        peer.is_refusing = False
        self._became_usable(peer)

    def everybody(self) -> list[PeerId]:
        """Return all peers that are registered, and those that were found in another way."""
        found = dict.fromkeys(entry.id for entry in self.registry)
        found.update(dict.fromkeys(peer.id for peer in self._peers.values() if peer.address is not None))
        return list(found)

    def offering(self) -> list[PeerId]:
        """Return who offers to store: by the registry; while none was ever read, all that were found without one."""
        if self.registry:
            return [entry.id for entry in self.registry if entry.capacity]  # none: it leaves, or will be away
        return [peer.id for peer in self._peers.values() if peer.address is not None]

    def _set_leaving(self, peer: Peer, *, is_leaving: bool) -> None:
        if peer.is_leaving == is_leaving:
            return
        peer.is_leaving = is_leaving
        for call in self.on_offer:
            call(peer.id)
        if not is_leaving:
            self._set_leaves(peer, leaves=False)
        if is_leaving:
            log.warning("%s takes nothing new: it leaves, or will be away", peer.name)
        else:
            peer.is_refusing = False
            self._became_usable(peer)

    def _set_leaves(self, peer: Peer, *, leaves: bool) -> None:
        if peer.leaves != leaves:
            peer.leaves = leaves
            log.warning("%s %s", peer.name, "leaves for good" if leaves else "stays")
            for call in self.on_leaving:
                call(peer.id)

    def peer(self, peer: PeerId) -> Peer:
        """Return the peer, known or not (it has no address then)."""
        found = self._peers.get(peer)
        if found is None:
            found = self._peers[peer] = Peer(peer, Flow(self._clock))
        return found

    def operator(self, peer: PeerId) -> bytes | None:
        """Return the key of a peer's operator by the registry, b"" for none; None when it is not in there."""
        return self._operators.get(peer)

    def capacity(self, peer: PeerId) -> int:
        """Return how many bytes a peer offers by the registry, 0 if it is not in there."""
        return self._capacities.get(peer, 0)

    def price(self, peer: PeerId) -> int:
        """Return what a peer asks for by the registry, in smallest units for a GiB and a month; 0 for nothing."""
        return self._prices.get(peer, 0)

    def states(self, peers: Iterable[PeerId]) -> tuple[PeerState, ...]:
        """Return what `status` shows of these peers."""
        return tuple(self.peer(peer).state(self._way(peer)) for peer in peers)

    def relays(self) -> list[Address]:
        """Return the peers that may be asked to forward, some at random when there are many."""
        known = [peer.address for peer in self._peers.values() if peer.address is not None]
        return known if len(known) <= RELAYS_MAX else random.sample(known, RELAYS_MAX)

    @property
    def uploaded_bytes(self) -> int:
        """Shard bytes stored since the start."""
        return sum(peer.stored_bytes for peer in self._peers.values())

    @property
    def downloaded_bytes(self) -> int:
        """Shard bytes fetched since the start."""
        return sum(peer.fetched_bytes for peer in self._peers.values())

    def distrust(self, peer_id: PeerId, *, is_distrusted: bool) -> None:
        """Take a peer out of use for storing because it fails audits, or back into it."""
        peer = self.peer(peer_id)
        if peer.is_distrusted == is_distrusted:
            return
        peer.is_distrusted = is_distrusted
        log.warning("%s %s", peer.name, "fails audits" if is_distrusted else "passes audits again")
        self._became_usable(peer)

    # ---- requests --------------------------------------------------------------------------------------------------
    async def put(self, peer_id: PeerId, shards: Sequence[tuple[ShardId, bytes | memoryview]]) -> Receipt:
        """Store shards with a peer; returns its verified receipt, which may cover fewer. Raises RemoteError.

        The limit on sending is the caller's business: it waits there before its own deadline begins.
        """
        peer = self.peer(peer_id)
        size = sum(len(data) for _, data in shards)
        try:
            receipt = await self._request(
                peer, size, lambda address: self._transport.put(address, shards), is_timed=False
            )
        except PeerRefused:
            self._note_refused(peer, shards)
            raise
        for call in self.on_stored:
            call(receipt)
        covered = {item.id for item in receipt.shards}
        if len(covered) < len(shards):
            self._refuses(peer, "it took some shards only")
            self._note_refused(peer, [item for item in shards if item[0] not in covered])
        peer.stored_bytes += sum(len(data) for shard, data in shards if shard in covered)
        return receipt

    async def read(
        self,
        peer_id: PeerId,
        shard: ShardId,
        size: int,
        *,
        is_background: bool,
        asked: Callable[[], None] = lambda: None,
    ) -> bytes:
        """As `get`, when the limit on fetching and the peer's own window allow; `asked` is called then."""
        peer = self.peer(peer_id)
        score = peer.score
        score.waiting += size
        is_waiting = True
        try:
            await self.down.take(peer_id, size, is_background=is_background)
            async with peer.flow.slot(size, is_background=is_background):
                score.waiting -= size
                is_waiting = False
                asked()
                return await self.get(peer_id, shard, size)
        finally:
            if is_waiting:
                score.waiting -= size

    def open_ahead(self, peer_id: PeerId) -> None:
        """Have a connection to a peer, if it answers, before something is to be read there."""
        peer = self._peers.get(peer_id)
        if peer is not None and peer.address is not None and peer.is_readable:
            self._open_ahead(peer.address)

    def hedge_after(self, peer_id: PeerId, size: int) -> float:
        """Return how long to wait for `size` bytes of a peer before another is asked as well: the 95th percentile of what
        peers like it take, by its own past where too little is known of them."""
        score = self.peer(peer_id).score
        usual = self._times.percentile(score.latency, size)
        own = score.hedge_after(size)
        return own if usual is None else min(own, max(usual, HEDGE_MIN))

    def overtaken(self, peer_id: PeerId, seconds: float) -> None:
        """Note that a peer had not answered after `seconds`, when others had: it is asked later than they from now on."""
        self.peer(peer_id).score.overtaken(self._clock(), seconds)

    async def get(self, peer_id: PeerId, shard: ShardId, size: int) -> bytes:
        """Return a shard of `size` bytes, verified against its id. Raises RemoteError; BlobCorrupt is held against the peer."""
        peer = self.peer(peer_id)
        data = await self._request(peer, size, lambda address: self._transport.get(address, shard))
        peer.fetched_bytes += len(data)
        return data

    async def has(self, peer_id: PeerId, ids: Sequence[ShardId]) -> Sequence[bool]:
        """Ask a peer which shards it has, at most `wire.peer.IDS_MAX`. Raises RemoteError."""
        self.up.charge(REQUEST_COST + 32 * len(ids))
        return await self._request(self.peer(peer_id), 0, lambda address: self._transport.has(address, ids))

    async def renew(self, peer_id: PeerId, shards: Sequence[ShardId]) -> Receipt | None:
        """Begin the leases of shards anew, at most `wire.peer.IDS_MAX`; return the verified receipt for those that the peer
        keeps, None when that is none. Raises RemoteError.

        How this goes says nothing about storing and reading: it is not held against the peer.
        """
        peer = self.peer(peer_id)
        if peer.address is None:
            raise PeerUnavailable(f"peer {peer.id.hex()[:16]} is not in the registry")
        return await self._transport.renew(peer.address, shards)

    async def delete(self, peer_id: PeerId, grant: bytes) -> dict[ShardId, str]:
        """Hand a grant to a peer; return the shards it keeps all the same, and why. Raises RemoteError.

        How this goes says nothing about storing and reading: it is not held against the peer.
        """
        peer = self.peer(peer_id)
        if peer.address is None:
            raise PeerUnavailable(f"peer {peer.id.hex()[:16]} is not in the registry")
        self.up.charge(REQUEST_COST + len(grant))
        return await self._transport.delete(peer.address, grant)

    async def probe(self, peer_id: PeerId) -> bool:
        """Ask the peer for a sign of life; returns whether it is usable now."""
        try:
            with trio.fail_after(PROBE_TIMEOUT):
                return await self.ask(peer_id)
        except trio.TooSlowError:
            self._failed(self.peer(peer_id), PeerUnavailable(f"no answer within {PROBE_TIMEOUT:g} s"), PROBE_TIMEOUT)
            return False

    async def ask(self, peer_id: PeerId) -> bool:
        """Do the same without a time limit."""
        peer = self.peer(peer_id)
        try:
            info = await self._request(peer, 0, lambda address: self._transport.info(address))
        except PeerRefused as exc:
            self._set_leaves(peer, leaves=exc.reason == LEAVING)
            return False
        except FsdecloudError:
            return False  # noted by _request
        peer.free = info.free
        self._set_leaves(peer, leaves=not info.admitted and info.reason == LEAVING)
        if not info.admitted:
            self._refuses(peer, info.reason or "it does not admit this volume")
        elif peer.is_refusing and info.free < peer.refused_size:
            # It is full, and a full peer admits everybody: what it refused would go there again and again (fault 57).
            peer.refused_until = self._clock() + PROBE_IDLE
        elif peer.is_refusing:
            peer.is_refusing = False
            peer.refused_size = 0
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
            peer.evidence.append(str(exc))
            self.last_error = f"{peer.name} sent wrong bytes: {exc}"
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
                seconds = self._clock() - start
                self._times.add(score.latency, size, seconds)
                score.succeeded(queued, seconds)
            return result
        finally:
            score.pending -= size

    def _answered(self, peer: Peer) -> None:
        if peer.score.is_failing:
            if not any(known.is_readable for known in self._peers.values()):
                # Nobody answered: it was our own line that failed, and nobody is to be replaced for that (fault 53).
                for known in self._peers.values():
                    known.away_since = None if known.away_since is None else self._clock()
            peer.score.answered()
            peer.away_since = None
            log.info("%s is back", peer.name)
            self._became_usable(peer)
            for call in () if peer.is_usable else self.on_back:
                call(peer.id)

    def _failed(self, peer: Peer, exc: FsdecloudError, seconds: float) -> None:
        was_failing = peer.score.is_failing
        if not was_failing:
            log.warning("%s is down: %s", peer.name, exc)
            peer.away_since = self._clock()
        peer.score.failed(self._clock(), seconds, self._jitter())
        peer.error = str(exc)
        self.last_error = f"{peer.name}: {exc}"
        self._wake.set()
        if not was_failing:
            for call in self.on_away:
                call(peer.id)

    def _note_refused(self, peer: Peer, shards: Sequence[tuple[ShardId, bytes | memoryview]]) -> None:
        sizes = [len(data) for _, data in shards]
        peer.refused_size = min([*sizes, peer.refused_size] if peer.refused_size else sizes, default=0)

    def _refuses(self, peer: Peer, why: str) -> None:
        if not peer.is_refusing:
            log.warning("%s refuses: %s", peer.name, why)
        peer.is_refusing = True
        peer.refused_until = self._clock() + PROBE_IDLE
        peer.error = why
        self.last_error = f"{peer.name} refuses: {why}"
        self._wake.set()

    def _became_usable(self, peer: Peer) -> None:
        if peer.address is not None and peer.is_readable and len(self.everybody()) <= READY_MAX:
            self._open_ahead(peer.address)
        if peer.is_usable:
            for call in self.on_usable:
                call(peer.id)

    # ---- probing ---------------------------------------------------------------------------------------------------
    def failing(self) -> list[PeerId]:
        """Return the peers with an address that fail or refuse; of one that leaves the registry says when it stays."""
        known = [peer for peer in self._peers.values() if peer.address is not None]
        return [peer.id for peer in known if peer.score.is_failing or (peer.is_refusing and not peer.is_leaving)]

    def urge(self) -> None:
        """Probe soon: something waits for a failing peer."""
        self._urged.set()

    async def run(self) -> None:
        """Probe the failing peers now and then, until cancelled; sleeps while there are none."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.up.run)
            nursery.start_soon(self.down.run)
            await self._probe_failing()

    def _pause(self, longest: float) -> float:
        """Return how long to wait for the next round; not longer than until one may be tried that nothing but a probe asks."""
        now = self._clock()
        slow = [peer.score.retry_at - now for peer in self._peers.values() if peer.score.fails_slowly]
        return min([longest * (0.75 + self._jitter() / 2), *(wait for wait in slow if wait > 0)])

    async def _probe_failing(self) -> None:
        pause = PROBE_IDLE
        while True:
            if not self.failing():
                self._wake = trio.Event()
                await self._wake.wait()
                pause = PROBE_IDLE
            if not self.is_urgent():
                self._urged = trio.Event()
                with trio.move_on_after(self._pause(pause)):
                    await self._urged.wait()
            await trio.sleep(PROBE_URGENT * (0.75 + self._jitter() / 2))
            now = self._clock()
            pause = PROBE_IDLE
            async with trio.open_nursery() as nursery:
                for peer_id in self.failing():
                    peer = self.peer(peer_id)
                    at = max(peer.score.retry_at, peer.refused_until)
                    if now >= at:
                        nursery.start_soon(self.probe, peer_id)
                    else:
                        pause = min(pause, at - now)  # or its turn would come only after another whole round
