"""The clock, the peers and the network of a simulation. Nothing here decides anything: it does what a scenario says."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import count
from typing import Final

from blake3 import blake3

from fsdecloud.agent.peer import PeerInfo
from fsdecloud.errors import BlobCorrupt, BlobMissing, PeerRefused, PeerUnavailable, RemoteError
from fsdecloud.net.address import Address
from fsdecloud.types import BlobId, PeerId, ShardId
from fsdecloud.wire.agentapi import RegistryPeer

NETWORK: Final = b"s" * 32
HOUR: Final = 3600.0
DAY: Final = 24 * HOUR
GIB: Final = 1 << 30


class World:
    """A virtual clock, what is to happen, one source of randomness, and the trace of what did."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.now = 0.0
        self.trace: list[str] = []
        self._order = count()
        self._events: list[tuple[float, int, Callable[..., object], tuple[object, ...]]] = []

    def at(self, time: float, call: Callable[..., object], *arguments: object) -> None:
        """Have something happen at a time; what is due at the same time happens in the order of these calls."""
        heapq.heappush(self._events, (max(time, self.now), next(self._order), call, arguments))

    def after(self, seconds: float, call: Callable[..., object], *arguments: object) -> None:
        self.at(self.now + seconds, call, *arguments)

    def run(self, until: float) -> None:
        """Let everything happen up to a time."""
        while self._events and self._events[0][0] <= until:
            self.now, _, call, arguments = heapq.heappop(self._events)
            call(*arguments)
        self.now = until

    def note(self, text: str) -> None:
        self.trace.append(f"{self.now:12.3f} {text}")

    def digest(self) -> str:
        """Return a hash of the whole trace."""
        return blake3("\n".join(self.trace).encode()).hexdigest()[:32]


class Conduct(Enum):
    """What a peer does with what it is given."""

    HONEST = "honest"
    DISCARD = "discards"
    """Signs for everything and keeps nothing; says that it has it, until it is asked for it (fault 58)."""
    WITHHOLD = "withholds"
    """Says that it has it, and answers that it cannot give it (fault 73)."""
    CORRUPT = "corrupts"
    """Sends other bytes (fault 69)."""
    SILENT = "is silent"
    """Answers everything but reads."""
    MOODY = "is moody"
    """Serves one request in three. It would serve audits if it could tell them from reads (fault 74)."""


class Silence(Exception):
    """A request that is never answered: the client's time runs out."""


@dataclass(frozen=True, slots=True)
class Item:
    id: ShardId


@dataclass(frozen=True, slots=True)
class SimReceipt:
    shards: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Info:
    admitted: bool
    reason: str
    free: int


class SimPeer:
    """One peer."""

    def __init__(self, name: str, peer_id: PeerId, host: str, group: int, capacity: int) -> None:
        self.name = name
        self.id = peer_id
        self.host = host
        self.group = group
        self.capacity = capacity
        self.used = 0
        self.store: dict[ShardId, int] = {}
        """Shards that it really has, and their sizes."""
        self.claimed: set[ShardId] = set()
        """Shards that it says it has though it has or gives them not."""
        self.conduct = Conduct.HONEST
        self.is_up = True
        self.is_cut = False
        """The client cannot reach it."""
        self.is_dead = False

    @property
    def is_reachable(self) -> bool:
        return self.is_up and not self.is_cut and not self.is_dead

    @property
    def is_good(self) -> bool:
        """Whether what it has will be there when it is back."""
        return not self.is_dead and self.conduct is Conduct.HONEST


class Network:
    """All peers, as the transport of a `PeerBook` sees them, and the truth about every shard."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.peers: dict[PeerId, SimPeer] = {}
        self.leaving: set[PeerId] = set()
        self.on_change: Callable[[PeerId], None] = lambda _peer: None
        self.on_registry: Callable[[], None] = lambda: None
        self.on_shard_failed: Callable[[ShardId], None] = lambda _shard: None
        self.put_bytes = self.got_bytes = self.puts = 0
        self.requests: deque[tuple[str, PeerId, tuple[object, ...]]] = deque(maxlen=256)
        """The last reads as they came, with whatever a peer can see of them."""

    # ---- what scenarios do -----------------------------------------------------------------------------------------
    def add(self, group: int, capacity: int) -> SimPeer:
        number = len(self.peers)
        peer_id = PeerId(blake3(f"peer {self.world.seed} {number}".encode()).digest())
        host = f"{11 + group // 60000}.{group // 240 % 250}.{group % 240}.{1 + number % 250}"
        peer = SimPeer(f"p{number}", peer_id, host, group, capacity)
        self.peers[peer_id] = peer
        return peer

    def registry(self) -> list[RegistryPeer]:
        return [
            RegistryPeer(
                peer.id,
                f"wss://{peer.host}:7000/{peer.id.hex()}?network={NETWORK.hex()}",
                0 if peer.id in self.leaving else peer.capacity,
            )
            for peer in self.peers.values()
        ]

    def set_up(self, peer: SimPeer, *, is_up: bool) -> None:
        if peer.is_dead or peer.is_up == is_up:
            return
        peer.is_up = is_up
        self.world.note(f"{peer.name} {'is back' if is_up else 'goes'}")
        self.on_change(peer.id)

    def cut(self, peers: Sequence[SimPeer], *, is_cut: bool) -> None:
        self.world.note(f"partition of {len(peers)} {'begins' if is_cut else 'ends'}")
        for peer in peers:
            if peer.is_cut != is_cut:
                peer.is_cut = is_cut
                self.on_change(peer.id)

    def kill(self, peer: SimPeer) -> None:
        """A peer is gone for good, with all that it has."""
        if not peer.is_dead:
            self.world.note(f"{peer.name} dies with {len(peer.store)} shards")
            peer.is_dead = True
            self._fail(peer)
            self.on_change(peer.id)

    def turn(self, peer: SimPeer, conduct: Conduct) -> None:
        """A peer conducts itself otherwise from now on."""
        if not peer.is_dead and peer.conduct is not conduct:
            self.world.note(f"{peer.name} {conduct.value} from now on, {len(peer.store)} shards")
            peer.conduct = conduct
            if conduct is not Conduct.HONEST:
                self._fail(peer)
                peer.claimed.update(peer.store)
            if conduct is Conduct.DISCARD:
                peer.store.clear()
                peer.used = 0

    def lose_store(self, peer: SimPeer) -> None:
        """An honest peer loses all that it has, and says so (fault 58)."""
        if not peer.is_dead:
            self.world.note(f"{peer.name} loses its store of {len(peer.store)} shards")
            self._fail(peer)
            peer.store.clear()
            peer.used = 0

    def _fail(self, peer: SimPeer) -> None:
        for shard in peer.store:
            self.on_shard_failed(shard)

    def drop(self, peer_id: PeerId, shard: ShardId) -> None:
        """Its owner has a shard deleted; a peer that is away keeps it."""
        peer = self.peers[peer_id]
        if peer.is_reachable:
            peer.claimed.discard(shard)
            peer.used -= peer.store.pop(shard, 0)

    def truly_has(self, peer_id: PeerId, shard: ShardId) -> bool:
        """Whether a shard is somewhere where it can be had from sooner or later."""
        peer = self.peers[peer_id]
        return peer.is_good and shard in peer.store

    # ---- the transport ---------------------------------------------------------------------------------------------
    def _reach(self, address: Address) -> SimPeer:
        assert address.id is not None
        peer = self.peers[address.id]
        if not peer.is_reachable:
            raise PeerUnavailable("it does not answer")
        return peer

    async def put(self, address: Address, shards: Sequence[tuple[ShardId, bytes | memoryview]]) -> SimReceipt:
        peer = self._reach(address)
        covered = []
        for shard, data in shards:
            size = len(data)
            if shard not in peer.store and peer.used + size > peer.capacity:
                continue
            self.put_bytes += size
            covered.append(Item(shard))
            if shard not in peer.store and peer.conduct is not Conduct.DISCARD:
                peer.store[shard] = size
                peer.used += size
            if peer.conduct is not Conduct.HONEST:
                peer.claimed.add(shard)
                self.on_shard_failed(shard)
        self.puts += 1
        if not covered:
            raise PeerRefused("it is full")
        return SimReceipt(tuple(covered))

    async def get(self, address: Address, shard: ShardId) -> bytes:
        self.requests.append(("get", PeerId(address.id or b""), (shard,)))
        peer = self._reach(address)
        conduct = peer.conduct
        if conduct is Conduct.SILENT:
            raise Silence
        if conduct is Conduct.WITHHOLD or (conduct is Conduct.MOODY and self.world.random.random() < 2 / 3):
            raise RemoteError("it cannot")
        if conduct is Conduct.CORRUPT:
            raise BlobCorrupt("other bytes")
        if shard not in peer.store:
            raise BlobMissing("it has it not")
        self.got_bytes += peer.store[shard]
        return b""

    async def has(self, address: Address, ids: Sequence[ShardId]) -> Sequence[bool]:
        peer = self._reach(address)
        return [shard in peer.store or shard in peer.claimed for shard in ids]

    async def info(self, address: Address) -> PeerInfo:
        peer = self._reach(address)
        return Info(True, "", max(peer.capacity - peer.used, 0))

    async def delete(self, address: Address, grant: bytes) -> dict[ShardId, str]:
        raise NotImplementedError("deletions are `drop`")


class Weight:
    """Stands for the bytes of a shard: it has their length."""

    __slots__ = ("size",)

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size


def blob_id(seed: int, number: int) -> BlobId:
    return BlobId(blake3(f"blob {seed} {number}".encode()).digest())
