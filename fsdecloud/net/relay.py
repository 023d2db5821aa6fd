"""Asking by way of another peer, while there is no connection to the right one (what is sent: `wire.forwarding`).

A direct connection comes first: it gets HEAD_START, and goes on being tried while requests travel the other way, each time
that its lane's backoff allows; once it stands, it is used. A relay is any peer that we reach: the one that worked for this
target before, else one with an open connection, else one of those that are known, tried some at a time. A relay says
for itself that it cannot; what the target says is signed by the target, so that a relay which forges something is left out
for LIAR_REST and nothing of it is held against the target.

Called only from the trio thread. Not here: connections (`net.pool`), what a relay does (`peerd.forwarding`).
"""

from __future__ import annotations

import logging
import random
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

import trio

from fsdecloud.errors import MalformedError, ProtocolError, RemoteError, SealError
from fsdecloud.limits import REQUEST_TIMEOUT
from fsdecloud.net.address import Address, format_endpoint
from fsdecloud.types import PeerId
from fsdecloud.wire import peer as wire
from fsdecloud.wire.forwarding import check_answer, make_forward

log = logging.getLogger(__name__)

HEAD_START: Final = 1.0
"""Seconds that a direct connection has before another way is looked for: some round trips around the world, and well within
the deadline of a probe."""

PATIENCE: Final = 0.75 * REQUEST_TIMEOUT
"""What a relay is given: it must answer before its connection counts as dead."""

HOPS: Final = 1
"""Relays after the first one: we reach one side of a partition, the target the other. Only the first relay that is asked may
use them, so that a target that is down costs little."""

TRIES: Final = 3
"""Relays that one request is handed to, one after the other."""

OPEN_AT_ONCE: Final = 8
OPEN_PATIENCE: Final = 4.0
"""Known peers that are tried at once when none is connected, and the seconds until one of them must be."""

UNANSWERED_MAX: Final = 24
"""Forwards at one relay at once: it serves others too, and refuses more than its share."""

AGAIN: Final = (2.0, 32.0)
"""Seconds for which nobody is asked about a target that no relay reached: at first, and at most; it doubles."""

IN_VAIN: Final = 3.0
"""Seconds after which a request that is cancelled counts as one that no relay could bring there."""

REST: Final = 60.0
"""Seconds for which a peer that does not forward is not asked to."""

LIAR_REST: Final = 3600.0
"""The same for one that passed on what its target did not say."""

BUSY_PAUSE: Final = 0.3
"""Seconds before a relay that has too much to do is asked again, before jitter."""

READ_LANE, CARRY_LANE = "read", "carry"


class Lane(Protocol):
    """What is needed of a lane of `net.pool`."""

    address: Address
    deal_seed: bytes | None

    @property
    def is_open(self) -> bool:
        """Whether there is a connection."""

    @property
    def is_failing(self) -> bool:
        """Whether there is none because the last one failed."""

    @property
    def version(self) -> int:
        """The version that is spoken there."""

    async def ask(self, build: Callable[[int], wire.Request], size: int) -> wire.Answer:
        """Send a request and return its answer."""

    async def connect(self) -> None:
        """Return with an open connection."""

    def try_again(self) -> None:
        """Begin to connect in the background."""


class Relays:
    """The other ways to the peers of one pool."""

    def __init__(
        self,
        *,
        network: bytes,
        owner: Callable[[PeerId], Awaitable[bytes]],
        nonce: Callable[[], bytes],
        lane: Callable[[Address, str], Lane],
    ) -> None:
        self._network = network
        self._owner = owner
        self._nonce = nonce
        self._lane = lane
        self._ways: dict[PeerId, Address] = {}
        """The relay that worked last."""
        self._hopeless: dict[PeerId, tuple[float, float]] = {}
        """Until when, and for how long, nobody is asked."""
        self._alone_until = 0.0
        self._resting: dict[Address, float] = {}
        self._turns: defaultdict[Address, trio.CapacityLimiter] = defaultdict(
            lambda: trio.CapacityLimiter(UNANSWERED_MAX)
        )
        self.candidates: Callable[[], Sequence[Address]] = tuple
        """All peers that may be asked, best first."""

    def way(self, peer: PeerId) -> PeerId | None:
        """Return the relay by way of which a peer was reached last, None when it was not so."""
        relay = self._ways.get(peer)
        return relay.id if relay is not None else None

    async def ask(self, lane: Lane, build: Callable[[int], wire.Direct], size: int) -> wire.Answer:
        """Send a request to the peer of `lane`, directly or by way of another. Raises why it is not reached directly."""
        target = lane.address.id
        assert target is not None
        if lane.is_failing and target in self._ways:
            lane.try_again()
        elif not lane.is_open:
            with trio.move_on_after(HEAD_START):
                try:
                    await lane.connect()
                except (RemoteError, ProtocolError) as exc:
                    log.debug("%s", exc)
        if not lane.is_open:
            started = trio.current_time()
            try:
                answer = await self._forward(lane, target, build)
            except trio.Cancelled:
                if target not in self._ways and trio.current_time() >= started + IN_VAIN:
                    self._give_up(target)  # a probe has lost patience, and the next one would
                raise
            if answer is not None:
                return answer
        answer = await lane.ask(build, size)
        self._ways.pop(target, None)
        return answer

    async def _forward(self, lane: Lane, target: PeerId, build: Callable[[int], wire.Direct]) -> wire.Answer | None:
        """Return the target's answer, None when no relay reaches it."""
        if trio.current_time() < self._hopeless.get(target, (0.0, 0.0))[0]:
            return None
        request = build(0)
        owner = await self._owner(target) if lane.deal_seed is not None else b""
        kind = CARRY_LANE if isinstance(request, wire.Put | wire.Delete | wire.Renew | wire.Dealing) else READ_LANE
        end = trio.current_time() + PATIENCE
        tried: set[Address] = set()
        while len(tried) < TRIES and trio.current_time() < end:
            relay = await self._choose(target, tried)
            if relay is None:
                break
            hops = 0 if tried else HOPS
            tried.add(relay)
            answer = await self._by_way_of(relay, hops, kind, lane.deal_seed, owner, target, request, end)
            if answer is not None:
                if self._ways.get(target) != relay:
                    log.info("peer %s is reached by way of %s", _name(lane.address), _name(relay))
                self._ways[target] = relay
                self._hopeless.pop(target, None)
                return answer
        self._ways.pop(target, None)
        self._give_up(target)
        return None

    def _give_up(self, target: PeerId) -> None:
        """Ask nobody about a target for some time."""
        now, (first, longest) = trio.current_time(), AGAIN
        until, pause = self._hopeless.get(target, (0.0, 0.0))
        if now >= until:  # not once more for each of those who asked together
            pause = min(2 * pause, longest) if pause else first
            self._hopeless[target] = now + pause, pause

    async def _by_way_of(
        self,
        relay: Address,
        hops: int,
        kind: str,
        deal_seed: bytes | None,
        owner: bytes,
        target: PeerId,
        request: wire.Direct,
        end: float,
    ) -> wire.Answer | None:
        """Return the target's answer, None when it does not come this way."""
        through = self._lane(relay, kind)
        async with self._turns[relay]:
            while (left := end - trio.current_time()) > 0:
                make = make_forward(
                    request,
                    network=self._network,
                    target=target,
                    nonce=self._nonce(),
                    hops=hops,
                    patience=max(1, int(1000 * left)),
                    deal_seed=deal_seed,
                    owner=owner,
                    now=int(time.time()),
                )
                forward = make(0)
                try:
                    await through.connect()
                    answer = await through.ask(make, forward.body.nbytes)
                except (RemoteError, ProtocolError) as exc:
                    log.debug("%s", exc)
                    return None
                if isinstance(answer, wire.Forwarded):
                    return self._open(relay, forward, answer)
                assert isinstance(answer, wire.Error)
                if answer.code != "busy":
                    if answer.code not in ("unreachable", "late", "loop"):
                        self._rest(relay, REST, f"does not forward: {answer.text!a}")
                    return None
                await trio.sleep(BUSY_PAUSE * random.uniform(0.5, 1.5))
        return None

    def _open(self, relay: Address, forward: wire.Forward, answer: wire.Forwarded) -> wire.Answer | None:
        try:
            return check_answer(forward, answer, network=self._network)
        except SealError as exc:
            self._rest(relay, LIAR_REST, f"passed on what its target did not say: {exc}")
        except MalformedError as exc:
            log.warning("peer %s, by way of %s: %s", forward.target.hex()[:16], _name(relay), exc)
        return None

    def _rest(self, relay: Address, seconds: float, why: str) -> None:
        log.warning("peer %s %s", _name(relay), why)
        self._resting[relay] = trio.current_time() + seconds

    async def _choose(self, target: PeerId, tried: set[Address]) -> Address | None:
        """Return a peer to ask next, with a connection; None when there is none."""
        now = trio.current_time()
        known = self._ways.get(target)
        usable = [
            relay
            for relay in dict.fromkeys([*([known] if known else []), *self.candidates()])
            if relay.id != target and relay not in tried and now >= self._resting.get(relay, 0.0)
        ]
        if known in usable and not self._lane(known, READ_LANE).is_failing:
            return known
        connected = [relay for relay in usable if self._lane(relay, READ_LANE).is_open]
        if connected:
            return random.choice(connected)
        if now < self._alone_until:
            return None
        random.shuffle(usable)
        usable.sort(key=lambda relay: self._lane(relay, READ_LANE).is_failing)
        found = await self._open_one(usable[:OPEN_AT_ONCE])
        if found is None:
            self._alone_until = trio.current_time() + AGAIN[0]
        return found

    async def _open_one(self, relays: Sequence[Address]) -> Address | None:
        """Return the first of these peers to which a connection stands; None when that takes too long."""
        found: list[Address] = []

        async def connect(relay: Address) -> None:
            try:
                await self._lane(relay, READ_LANE).connect()
            except (RemoteError, ProtocolError) as exc:
                log.debug("%s", exc)
            else:
                found.append(relay)
                nursery.cancel_scope.cancel()

        with trio.move_on_after(OPEN_PATIENCE):
            async with trio.open_nursery() as nursery:
                for relay in relays:
                    nursery.start_soon(connect, relay)
        return found[0] if found else None


def _name(address: Address) -> str:
    assert address.id is not None
    return f"{address.id.hex()[:8]} at {format_endpoint(address.host, address.port)}"
