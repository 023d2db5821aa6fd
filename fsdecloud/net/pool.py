"""Connections to storage peers, and requests over them.

Each peer has two lanes, a connection each: one for Puts, one for all that reads, so that a read never waits behind MiBs of
upload. A lane connects when it is first needed, carries many requests at once, and closes after `net.link.IDLE_TIMEOUT`
without one, unless it is for reading and there are few of them (KEPT_MAX).
After a failure it stays closed for a moment that grows (BACKOFF); requests in that time fail at once. A connection that
broke while nobody used it, as all do whose machine slept or moved (fault 55), is no failure: the next request opens another,
and one that was on its way into it is sent again (each may come twice to no harm: fault 52).

A pool that forwards asks by way of another peer while there is no connection to the right one (`net.relay`).

Everything here runs in the trio thread; a `PeerPool` changes state between awaits only. Not here: which peer to ask
(`agent`), a connection's requests and their deadlines (`net.link`).
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, TypeAlias, TypeVar

import blake3
import trio

from fsdecloud.contracts.deal import Revision
from fsdecloud.crypto import sign
from fsdecloud.errors import (
    BlobCorrupt,
    BlobMissing,
    FsdecloudError,
    MalformedError,
    PeerRefused,
    PeerUnavailable,
    ProtocolError,
    RemoteError,
    SealError,
)
from fsdecloud.limits import CONNECT_TIMEOUT
from fsdecloud.net import websocket
from fsdecloud.net.address import Address, format_endpoint
from fsdecloud.net.link import Link
from fsdecloud.net.nursery import open_background
from fsdecloud.net.relay import Relays
from fsdecloud.net.websocket import Channel, printable
from fsdecloud.types import PeerId, ShardId
from fsdecloud.wire import peer as wire
from fsdecloud.wire.deals import Added
from fsdecloud.wire.receipts import VERSION as RECEIPT_VERSION
from fsdecloud.wire.receipts import Receipt, check_term, verify_receipt
from fsdecloud.wire.session import ClientSession

A = TypeVar("A", bound=wire.Answer)

Owner: TypeAlias = Callable[[PeerId], Awaitable[bytes]]
"""Return the public key whose grants may delete at a peer, b"" for none. Raises RemoteError."""

BACKOFF: Final = (0.2, 5.0)
"""First and longest wait between two attempts to connect, before jitter."""

KEPT_MAX: Final = 32
"""Connections for reading that stay open although nobody uses them: in a small network the first byte of any file takes one
round trip, after a quiet night too. A peer that has too many closes those first (`net.websocket`)."""

LANES_MAX: Final = 1024
"""Lanes from which on those are forgotten that nobody is connected over: whoever tells of addresses that lead nowhere fills no
memory with them."""

PUT, READ, CARRY = "put", "read", "carry"
"""Kinds of lanes; what is to be forwarded to other peers' stores goes over one of its own, which shows no deal."""


class PeerPool:
    """All connections of this process to peers. Use `open_pool`."""

    def __init__(
        self,
        nursery: trio.Nursery,
        *,
        network: bytes,
        deal_seed: Callable[[PeerId], bytes] | None,
        owner: Owner,
        nonce: Callable[[], bytes],
        does_forward: bool,
    ) -> None:
        self._nursery = nursery
        self._network = network
        self._deal_seed = deal_seed
        self._owner = owner
        self._nonce = nonce
        self._lanes: dict[tuple[Address, str], _Lane] = {}
        self._relays = Relays(network=network, owner=owner, nonce=nonce, lane=self._lane) if does_forward else None

    async def put(self, address: Address, shards: Sequence[tuple[ShardId, bytes | memoryview]]) -> Receipt:
        """Store shards, at most `wire.PUT_BYTES_MAX` bytes together, and return the peer's verified receipt.

        The receipt may cover only some of them, when the peer refused the others (its quota). Raises PeerRefused, with the
        peer's reason, when it took none; PeerUnavailable; RemoteTimeout; ValueError for too much at once.
        """
        items = tuple(wire.Shard(shard, memoryview(data)) for shard, data in shards)
        size = sum(item.data.nbytes for item in items)
        if not items or size > wire.PUT_BYTES_MAX or len(items) > wire.SHARDS_MAX:
            raise ValueError(f"{len(items)} shards of {size} bytes do not make one request")
        lane = self._lane(address, PUT)
        answer = await self._call(lane, lambda number: wire.Put(number, items), wire.PutDone, size)
        if not answer.receipt:
            reason = answer.refused[0].reason if answer.refused else "no reason given"
            raise _refused(f"{_name(address)} refused to store", reason)
        return _check_receipt(answer.receipt, address, lane.deal, {item.id: item.data.nbytes for item in items})

    async def get(self, address: Address, shard: ShardId) -> bytes:
        """Return a shard. Raises BlobMissing when the peer has it not, BlobCorrupt when it sends other bytes,
        PeerUnavailable, RemoteTimeout, PeerRefused."""
        answer = await self._call(self._lane(address, READ), lambda number: wire.Get(number, shard, 0, 0), wire.Data)
        if (found := blake3.blake3(answer.data)).digest() != shard:
            raise BlobCorrupt(
                f"{_name(address)} sent {len(answer.data)} bytes that are not shard {shard.hex()} but {found.hexdigest()}"
            )
        return answer.data

    async def get_range(self, address: Address, shard: ShardId, offset: int, length: int) -> bytes:
        """Return a part of a shard, which nothing here can verify. Raises as `get` does."""
        answer = await self._call(
            self._lane(address, READ), lambda number: wire.Get(number, shard, offset, length), wire.Data
        )
        if length and len(answer.data) != length:
            raise BlobCorrupt(f"{_name(address)} sent {len(answer.data)} bytes instead of {length}")
        return answer.data

    async def has(self, address: Address, ids: Sequence[ShardId]) -> tuple[bool, ...]:
        """Return for each shard whether the peer says it has it; at most `wire.IDS_MAX`. Raises as `get` does."""
        answer = await self._call(
            self._lane(address, READ), lambda number: wire.Has(number, tuple(ids)), wire.HasResult
        )
        return answer.present

    async def renew(self, address: Address, shards: Sequence[ShardId]) -> Receipt | None:
        """Begin the leases of shards anew; return the receipt for those that the peer keeps, None when that is none.

        At most `wire.IDS_MAX`. Raises PeerRefused when the peer renews nothing of ours; otherwise as `get` does.
        """
        lane = self._lane(address, PUT)
        answer = await self._call(lane, lambda number: wire.Renew(number, tuple(shards)), wire.RenewDone)
        if not answer.receipt:
            return None
        return _check_receipt(answer.receipt, address, lane.deal, dict.fromkeys(shards))

    async def delete(self, address: Address, grant: bytes) -> dict[ShardId, str]:
        """Hand a grant (`wire.grants`) over; return the shards that the peer keeps all the same, and why.

        Raises PeerRefused when it takes none of the grant, RemoteError when it asks to come back later; otherwise as `get`.
        """
        answer = await self._call(self._lane(address, PUT), lambda number: wire.Delete(number, grant), wire.DeleteDone)
        return {ShardId(kept.id): printable(kept.reason) for kept in answer.kept}

    async def fund(self, address: Address, contract: bytes, signature: bytes) -> wire.DealState:
        """Ask a peer to pay its collateral into a contract; `signature` is ours of the first revision. Raises PeerRefused when
        the contract's terms are not the peer's; otherwise as `get` does."""
        lane = self._lane(address, PUT)
        return await self._call(lane, lambda number: wire.Fund(number, contract, signature), wire.DealState)

    async def revise(
        self,
        address: Address,
        contract: bytes,
        added: Sequence[tuple[ShardId, int]],
        removed: Sequence[ShardId],
        revision: Revision,
        signature: bytes,
    ) -> wire.DealState:
        """Propose the next revision, which adds shards (id, length) and removes others, together at most
        `wire.deals.CHANGES_MAX`; return the newest one that the peer has signed. Raises PeerRefused when it signs this one not,
        with its reason; otherwise as `get` does."""
        items = tuple(Added(shard, length) for shard, length in added)
        lane = self._lane(address, PUT)
        return await self._call(
            lane,
            lambda number: wire.Revise(number, contract, items, tuple(removed), revision, signature),
            wire.DealState,
        )

    async def attest(self, address: Address, contract: bytes, number: int, seed: bytes, samples: int) -> bytes:
        """Ask a peer to prove the shards of revision `number` of a deal; return the proof, not checked. Raises as `revise`."""
        lane = self._lane(address, PUT)
        answer = await self._call(
            lane, lambda request: wire.Attest(request, contract, number, seed, samples), wire.Attested
        )
        return answer.proof

    async def info(self, address: Address) -> wire.InfoResult:
        """Return how the peer is, over the lane for Puts, so that its connection and admission are tried.

        Raises PeerRefused when it does not admit our deal; otherwise as `get` does.
        """
        lane = self._lane(address, PUT if self._deal_seed is not None else READ)
        answer = await self._call(lane, wire.Info, wire.InfoResult)
        if self._deal_seed is not None and not answer.admitted:
            raise _refused(f"{_name(address)} does not admit us", answer.reason)
        return answer

    def statistics(self) -> dict[str, int]:
        """Return open connections and unanswered requests."""
        return {
            "connections": sum(lane.is_open for lane in self._lanes.values()),
            "requests": sum(lane.unanswered for lane in self._lanes.values()),
        }

    # ---- forwarding ------------------------------------------------------------------------------------------------
    def use_relays(self, candidates: Callable[[], Sequence[Address]]) -> None:
        """Say who else may be asked to forward, besides peers with an open connection."""
        if self._relays is not None:
            self._relays.candidates = candidates

    def way(self, peer: PeerId) -> PeerId | None:
        """Return the peer by way of which this one was reached last; None when that was directly, or not at all."""
        return self._relays.way(peer) if self._relays is not None else None

    async def connect(self, address: Address) -> None:
        """Open the connection over which `forward` goes. Raises PeerUnavailable, PeerRefused."""
        await self._lane(address, CARRY).connect()

    async def forward(self, address: Address, build: Callable[[int], wire.Forward], size: int) -> wire.Answer:
        """Hand a Forward to a peer; return its answer, an Error too. Raises PeerUnavailable, RemoteTimeout, PeerRefused."""
        return await self._lane(address, CARRY).ask(build, size)

    async def peers(self, address: Address, count: int, own: bytes) -> tuple[bytes, ...]:
        """Ask a peer for announcements of others, and show it our own or b"". Raises as `get` does."""
        answer = await self._lane(address, READ).ask(lambda number: wire.Peers(number, count, own), 0)
        if isinstance(answer, wire.Error):
            raise _error(answer, address)
        assert isinstance(answer, wire.PeersResult)
        return answer.announcements

    def open_ahead(self, address: Address) -> None:
        """Begin to connect for reading, unless there is a connection or that failed a moment ago: who asks soon need not wait
        for five round trips."""
        self._lane(address, READ).try_again()

    def is_open(self, address: Address) -> bool:
        """Return whether there is a connection to a peer now."""
        return any((lane := self._lanes.get((address, kind))) and lane.is_open for kind in (CARRY, READ, PUT))

    async def _call(self, lane: _Lane, build: Callable[[int], wire.Direct], kind: type[A], size: int = 0) -> A:
        """Send a request, if need be by way of another peer, and return its answer."""
        ask = lane.ask if self._relays is None else partial(self._relays.ask, lane)
        answer = await ask(build, size)
        if isinstance(answer, wire.Error):
            raise _error(answer, lane.address)
        assert isinstance(answer, kind)  # ClientSession has checked it, or wire.forwarding
        return answer

    def _lane(self, address: Address, kind: str) -> _Lane:
        if address.id is None:
            raise ValueError(f"{address} names no peer")
        lane = self._lanes.get((address, kind))
        if lane is None:
            if len(self._lanes) >= LANES_MAX:
                self._lanes = {key: known for key, known in self._lanes.items() if not known.is_unused}
            seed = self._deal_seed(address.id) if self._deal_seed is not None and kind == PUT else None
            lane = self._lanes[address, kind] = _Lane(
                address, self._network, seed, self._owner, self._nonce, self._nursery, partial(self._is_kept, kind)
            )
        return lane

    def _is_kept(self, kind: str) -> bool:
        """Whether an open lane stays so while nobody uses it."""
        return kind == READ and sum(lane.is_open for (_, k), lane in self._lanes.items() if k == READ) <= KEPT_MAX


@asynccontextmanager
async def open_pool(
    *,
    network: bytes,
    deal_seed: Callable[[PeerId], bytes] | None = None,
    owner: Owner | None = None,
    nonce: Callable[[], bytes] = lambda: os.urandom(32),
    does_forward: bool = False,
) -> AsyncIterator[PeerPool]:
    """Run a pool for the length of the body.

    `network` is the genesis id that peers must share. `deal_seed` gives the Ed25519 seed of the deal with a peer
    (`crypto.keys.deal_seed`); without it the pool can only read. `owner` gives the public key whose grants may delete what
    is stored under that deal; without it nothing is ever deleted. `nonce` returns 32 fresh random bytes. `does_forward`: ask
    by way of another peer (`net.relay`) when there is no connection to the right one.
    """
    async with open_background() as nursery:
        yield PeerPool(
            nursery,
            network=network,
            deal_seed=deal_seed,
            owner=owner or _nobody,
            nonce=nonce,
            does_forward=does_forward,
        )


async def _nobody(_peer: PeerId) -> bytes:
    return b""


class _Lane:
    """One connection to one peer, opened again as needed."""

    def __init__(
        self,
        address: Address,
        network: bytes,
        deal_seed: bytes | None,
        owner: Owner,
        nonce: Callable[[], bytes],
        nursery: trio.Nursery,
        is_kept: Callable[[], bool],
    ) -> None:
        self.address = address
        self._network = network
        self.deal_seed = deal_seed
        self._owner = owner
        self._nonce = nonce
        self._nursery = nursery
        self._is_kept = is_kept
        self._link: Link | None = None
        self._opening: trio.Event | None = None
        self._retry_at = -1.0
        self._failures = 0
        self._error: FsdecloudError | None = None
        self.deal = sign.public_key(deal_seed) if deal_seed is not None else b""

    @property
    def is_open(self) -> bool:
        return self._link is not None

    @property
    def unanswered(self) -> int:
        return len(self._link.waiting) if self._link is not None else 0

    @property
    def is_unused(self) -> bool:
        """Whether there is neither a connection nor an attempt to make one."""
        return self._link is None and self._opening is None

    @property
    def is_failing(self) -> bool:
        """Whether the last attempt to connect failed, or its connection broke."""
        return self._link is None and self._error is not None

    @property
    def version(self) -> int:
        """The version that is spoken; 0 without a connection."""
        return self._link.version if self._link is not None else 0

    async def ask(self, build: Callable[[int], wire.Request], size: int) -> wire.Answer:
        """Send a request and return its answer, be it an Error."""
        link = await self._connected()
        was_quiet = link.is_quiet
        try:
            return await link.call(build, size)
        except PeerUnavailable:
            if not was_quiet:
                raise
        return await (await self._connected()).call(build, size)

    async def connect(self) -> None:
        """Return with an open connection. Raises why there is none."""
        await self._connected()

    def try_again(self) -> None:
        """Begin to connect, unless that failed a moment ago."""
        if self._link is None and self._opening is None and trio.current_time() >= self._retry_at:
            self._opening = trio.Event()
            self._nursery.start_soon(self._run)

    async def _connected(self) -> Link:
        while self._link is None:
            if self._opening is None:
                if trio.current_time() < self._retry_at:
                    assert self._error is not None
                    raise PeerUnavailable(f"{self._error} (tried a moment ago)")
                self._opening = trio.Event()
                self._nursery.start_soon(self._run)
            opening = self._opening
            await opening.wait()
            if not self.is_open and self._error is not None:
                raise type(self._error)(str(self._error))
        return self._link

    async def _run(self) -> None:
        """Connect and carry requests until the connection ends; the only task that opens and closes this lane."""
        name = _name(self.address)
        error: FsdecloudError | None = PeerUnavailable(f"{name}: the pool is closed")
        link: Link | None = None
        try:
            async with websocket.connect(self.address, subprotocol=wire.SUBPROTOCOL) as channel:
                with trio.fail_after(CONNECT_TIMEOUT):
                    session = await self._greet(channel)
                link = Link(channel, session, name, self._let_go, self._welcomed)
                if session.is_welcome:
                    self._welcomed()
                self._opened(link)
                await link.run()
                error = None  # idle
        except RemoteError as exc:
            error = exc
        except ProtocolError as exc:
            error = PeerUnavailable(f"{name}: {exc}")
        except trio.TooSlowError:
            error = PeerUnavailable(f"{name} did not say hello within {CONNECT_TIMEOUT:g} s")
        finally:
            self._ended(link, error)

    async def _greet(self, channel: Channel) -> ClientSession:
        session = ClientSession(
            peer=channel.server_key,
            network=self._network,
            nonce=self._nonce(),
            certificate_hash=channel.certificate_hash,
        )
        session.receive(await channel.receive())
        owner = await self._owner(channel.server_key) if self.deal_seed is not None else b""
        await channel.send(session.hello(self.deal_seed, owner))
        if self.deal_seed is not None:
            session.receive(await channel.receive())
        return session  # without a deal the Welcome comes to the link: a read does not wait for it

    def _opened(self, link: Link) -> None:
        self._link = link
        self._error = None
        assert self._opening is not None
        self._opening.set()
        self._opening = None

    def _welcomed(self) -> None:
        """Note that the peer serves us: what it refused before does not count any more."""
        self._failures = 0

    def _let_go(self) -> bool:
        """Let go of the link, which is idle, and have it closed; the next request opens another. False: it is kept."""
        if self._is_kept():
            return False
        self._link = None
        return True

    def _ended(self, link: Link | None, error: FsdecloudError | None) -> None:
        """Note that a connection ended, or was not made, and why; None when nobody used it."""
        if error is not None and not (link is not None and link.is_quiet and isinstance(error, PeerUnavailable)):
            first, longest = BACKOFF
            delay = min(longest, first * 2**self._failures)
            self._failures = min(self._failures + 1, 30)
            self._retry_at = trio.current_time() + delay * random.uniform(0.5, 1.0)  # peers that fell together
            self._error = error
        if link is None:
            assert self._opening is not None
            self._opening.set()
            self._opening = None
        else:
            if self._link is link:
                self._link = None
            link.fail(error or PeerUnavailable(f"{_name(self.address)}: the connection was idle"))


def _name(address: Address) -> str:
    assert address.id is not None
    return f"peer {address.id.hex()[:8]} at {format_endpoint(address.host, address.port)}"


def _error(answer: wire.Error, address: Address) -> FsdecloudError:
    text = f"{_name(address)}: {printable(answer.text)}"
    if answer.code in ("missing", "lost"):
        return BlobMissing(text)
    if answer.code in ("failed", "busy"):
        return RemoteError(text)
    return PeerRefused(text)


def _refused(what: str, reason: str) -> PeerRefused:
    error = PeerRefused(f"{what}: {printable(reason)}")
    error.reason = reason
    return error


def _check_receipt(data: bytes, address: Address, deal: bytes, sent: Mapping[bytes, int | None]) -> Receipt:
    """Return the receipt if it is this peer's, holds, and is for this deal and for shards that were sent, or named (their
    lengths are None then) (faults 77 and 78)."""
    try:
        receipt = verify_receipt(data)
        if receipt.version != RECEIPT_VERSION:
            raise SealError("a receipt without a term")
        check_term(receipt, time.time())
    except (MalformedError, SealError) as exc:
        raise PeerUnavailable(f"{_name(address)} sent a receipt that does not hold: {exc}") from exc
    if receipt.peer != address.id or receipt.deal != deal:
        raise PeerUnavailable(f"{_name(address)} sent a receipt of somebody else")
    if not receipt.shards or any(sent.get(item.id, -1) not in (item.length, None) for item in receipt.shards):
        raise PeerUnavailable(f"{_name(address)} sent a receipt for what it was not sent")
    return receipt
