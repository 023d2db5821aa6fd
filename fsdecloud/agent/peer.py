"""One storage peer as this agent sees it, and what is needed of a transport to reach it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol, runtime_checkable

from fsdecloud.agent.flow import Flow
from fsdecloud.contracts.deal import Revision
from fsdecloud.net.address import Address, format_endpoint
from fsdecloud.swarm.score import PeerScore
from fsdecloud.types import PeerId, ShardId
from fsdecloud.wire.agentapi import PeerState
from fsdecloud.wire.deals import DealState
from fsdecloud.wire.receipts import Receipt

EVIDENCE_MAX: Final = 8
"""Wrong answers of one peer that are remembered word by word."""


class PeerInfo(Protocol):
    """What a peer says of itself (`wire.peer.InfoResult`)."""

    @property
    def admitted(self) -> bool:
        """Whether it takes this volume's shards."""

    @property
    def reason(self) -> str:
        """Why not."""

    @property
    def free(self) -> int:
        """Bytes that it would still take."""


class Transport(Protocol):
    """What the book needs of `net.pool.PeerPool`."""

    async def put(self, address: Address, shards: Sequence[tuple[ShardId, bytes | memoryview]]) -> Receipt:
        """Store shards, return the verified receipt."""

    async def get(self, address: Address, shard: ShardId) -> bytes:
        """Return a shard, verified against its id."""

    async def has(self, address: Address, ids: Sequence[ShardId]) -> Sequence[bool]:
        """Say for each shard whether the peer has it."""

    async def renew(self, address: Address, shards: Sequence[ShardId]) -> Receipt | None:
        """Begin leases anew; return the verified receipt for what is kept, None for nothing."""

    async def delete(self, address: Address, grant: bytes) -> dict[ShardId, str]:
        """Hand over a grant; return what is kept all the same, and why."""

    async def info(self, address: Address) -> PeerInfo:
        """Ask how the peer is."""


@runtime_checkable
class Paying(Protocol):
    """A transport over which deals are made (`net.pool`)."""

    async def fund(self, address: Address, contract: bytes, signature: bytes) -> DealState:
        """Ask a peer for its collateral."""

    async def revise(
        self,
        address: Address,
        contract: bytes,
        added: Sequence[tuple[ShardId, int]],
        removed: Sequence[ShardId],
        revision: Revision,
        signature: bytes,
    ) -> DealState:
        """Propose the next revision."""

    async def attest(self, address: Address, contract: bytes, number: int, seed: bytes, samples: int) -> bytes:
        """Ask for a proof of possession."""


@runtime_checkable
class Relaying(Protocol):
    """A transport that has other ways than the direct one (`net.relay`)."""

    def use_relays(self, candidates: Callable[[], Sequence[Address]]) -> None:
        """Say by way of whom others may be asked."""

    def way(self, peer: PeerId) -> PeerId | None:
        """Return the peer by way of which another is reached, None when it is reached directly or not at all."""


@runtime_checkable
class Connecting(Protocol):
    """A transport whose connections take time to open (`net.pool`)."""

    def open_ahead(self, address: Address) -> None:
        """Begin to connect for reading, unless there is a connection."""


class Peer:
    """One peer as this agent sees it."""

    __slots__ = (
        "address",
        "away_since",
        "corrupt",
        "error",
        "evidence",
        "fetched_bytes",
        "flow",
        "free",
        "id",
        "is_distrusted",
        "is_leaving",
        "is_refusing",
        "leaves",
        "refused_size",
        "refused_until",
        "registered",
        "registered_at",
        "score",
        "sequence",
        "stored_bytes",
        "url",
    )

    def __init__(self, peer: PeerId, flow: Flow) -> None:
        self.id = peer
        self.flow = flow
        self.url = ""
        self.address: Address | None = None
        self.registered = ""
        """Its address by the registry, and when it registered that."""
        self.registered_at = 0
        self.sequence = 0
        """When the address in use was registered or announced, by the peer's own word; 0 when that is not known."""
        self.score = PeerScore()
        self.is_leaving = False
        """The registry says that it offers nothing: it leaves, or will be away."""
        self.leaves = False
        """It says that it leaves for good: what it holds is to be moved while it is there."""
        self.away_since: float | None = None
        """When it stopped answering; None while it does."""
        self.is_distrusted = False
        """It fails audits: nothing more is stored there, and what is there does not count."""
        self.is_refusing = False
        self.refused_until = 0.0
        self.refused_size = 0
        """The smallest shard that it did not take since it began to refuse."""
        self.corrupt = 0
        self.evidence: deque[str] = deque(maxlen=EVIDENCE_MAX)
        """What was asked for and what came instead, of the latest wrong answers."""
        self.error = ""
        self.free = 0
        """Bytes that it said it would take when it was probed last, 0 before."""
        self.stored_bytes = 0
        self.fetched_bytes = 0

    @property
    def name(self) -> str:
        """What people are told of it, as in the list of `status`: the start of its id, and where it is."""
        where = "" if self.address is None else f" at {format_endpoint(self.address.host, self.address.port)}"
        return f"peer {self.id.hex()[:8]}{where}"

    @property
    def is_usable(self) -> bool:
        """True while it has an address, answers and accepts, and what it accepts is there when it is looked for."""
        is_accepting = not self.is_refusing and not self.is_leaving and not self.is_distrusted
        return self.is_readable and is_accepting

    @property
    def is_readable(self) -> bool:
        """True while it has an address and answers: one that is full can still be read from."""
        return self.address is not None and not self.score.is_failing

    def state(self, way: PeerId | None) -> PeerState:
        """Return what `status` shows; `way` is the peer by way of which this one is reached."""
        if self.address is None or self.score.is_failing:
            state = "down"
        elif self.corrupt:
            state = "corrupt"
        elif self.is_distrusted:
            state = "distrusted"
        else:
            state = "leaving" if self.is_leaving else "refusing" if self.is_refusing else "up"
        return PeerState(
            self.id,
            self.url,
            state,
            self.score.failures,
            self.corrupt,
            self.stored_bytes,
            self.fetched_bytes,
            tuple(self.evidence),
            way or b"",
        )
