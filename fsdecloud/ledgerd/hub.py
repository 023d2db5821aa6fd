"""The daemon's connections to others: whom to call, who called, and what all of them are told.

Keeps up to OUTBOUND_MAX calls of its own: always those to the bootstrap addresses it was given, then addresses it learned.
An address that fails is tried again after a growing, jittered delay; one that never answered is forgotten after
FAILURES_MAX failures unless it was given. Everything here runs in the trio thread. Not here: what is said on a connection
(`session`).
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import trio

from fsdecloud.errors import FsdecloudError, MalformedError, PeerUnavailable, RemoteProtocolError, UsageError
from fsdecloud.ledger.chain import Switch
from fsdecloud.ledger.network import NetworkDocument, decode_network, network_id
from fsdecloud.ledgerd.keeper import Keeper
from fsdecloud.ledgerd.session import Session
from fsdecloud.limits import REQUEST_TIMEOUT
from fsdecloud.net.address import Address, parse_url
from fsdecloud.net.websocket import Channel, connect
from fsdecloud.types import PeerId, TxId
from fsdecloud.wire import gossip
from fsdecloud.wire.ledgerapi import LedgerPeer

log = logging.getLogger(__name__)

OUTBOUND_MAX: Final = 8
INBOUND_MAX: Final = 64
ADDRESSES_MAX: Final = 1000
FAILURES_MAX: Final = 8
DELAY_MIN: Final = 0.5
DELAY_MAX: Final = 60.0
"""Between two calls of one address: doubling from the first to the second, half of it random."""

STABLE: Final = 30.0
"""A connection that lasted this long forgives its address the failures before it."""


@dataclass(slots=True)
class Target:
    """An address to call."""

    address: Address
    given: bool
    failures: int = 0
    due: float = 0.0
    was_reached: bool = False
    found: PeerId | None = None
    """Who answered there, when the address does not say who must."""
    is_active: bool = False

    @property
    def url(self) -> str:
        """The address with the key of who answers there, as far as it is known."""
        return str(Address(self.address.host, self.address.port, self.address.id or self.found, self.address.network))


class Hub:
    """All sessions of one daemon, and the calls it makes."""

    def __init__(
        self, keeper: Keeper, node: PeerId, nonce: bytes, *, changed: Callable[[], None] = lambda: None
    ) -> None:
        self.keeper = keeper
        self.nonce = nonce
        self.url = ""
        """Where others reach this daemon; set once it listens."""
        self.sync_lock = trio.Lock()
        self._node = node
        self._changed = changed
        self._sessions: set[Session] = set()
        self._targets: dict[tuple[str, int], Target] = {}
        self._wake = trio.Event()
        keeper.on_tip.append(self._announce_tip)
        keeper.on_tx.append(self._offer)

    # ---- for sessions ----------------------------------------------------------------------------------------------
    def hello(self) -> gossip.Hello:
        """Return what this daemon says first."""
        tip = self.keeper.tip
        return gossip.Hello(gossip.VERSION, self.keeper.network, self.url, self.nonce, tip.height, tip.work, tip.id)

    def add(self, session: Session) -> None:
        """Take note of a session that has been greeted."""
        self._sessions.add(session)
        for target in self._targets.values():
            if target.is_active and not session.inbound and target.url == session.url:
                target.was_reached = True
        self._changed()
        log.info("%s %s", "called by" if session.inbound else "connected to", session.url or session.remote)

    def remove(self, session: Session) -> None:
        """Forget a session; unknown ones do not matter."""
        if session in self._sessions:
            self._sessions.discard(session)
            log.info("lost %s", session.url or session.remote)
            self._wake_up()

    def is_myself(self, session: Session) -> None:
        """Forget the address that led back to this daemon (fault 108)."""
        for key, target in list(self._targets.items()):
            if session.url and target.url == session.url:
                del self._targets[key]

    def learn(self, urls: Iterable[str], *, given: bool = False, was_reached: bool = False) -> None:
        """Remember addresses of other daemons. Those that others sent are dropped silently when they make no sense."""
        for url in urls:
            try:
                address = parse_url(url)
            except UsageError:
                if given:
                    raise
                continue
            if address.network not in (None, self.keeper.network) or address.id == self._node:
                continue
            key = (address.host, address.port)
            if key in self._targets:
                self._targets[key].given |= given
            elif given or (address.id is not None and len(self._targets) < ADDRESSES_MAX):
                self._targets[key] = Target(address, given, was_reached=was_reached)
        self._wake_up()

    def known_urls(self) -> tuple[str, ...]:
        """Return the addresses of daemons that this one is or was connected to, those connected first."""
        live = [s.url for s in self._sessions if s.url]
        other = [t.url for t in self._targets.values() if t.was_reached]
        return tuple(dict.fromkeys(live + other))

    def peers(self) -> tuple[LedgerPeer, ...]:
        """Return the connected daemons for `status`."""
        return tuple(LedgerPeer(s.url, s.id or b"", s.inbound, s.height) for s in self._sessions)

    # ---- tasks -----------------------------------------------------------------------------------------------------
    async def serve(self, channel: Channel) -> None:
        """Run the session of someone who called."""
        await Session(self, channel, inbound=True).run()

    async def run(self) -> None:
        """Call others until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                self._wake = trio.Event()
                for target in self._due_targets():
                    target.is_active = True
                    nursery.start_soon(self._call, target)
                with trio.move_on_at(self._next_due()):
                    await self._wake.wait()

    # ---- inner -----------------------------------------------------------------------------------------------------
    def _announce_tip(self, _switch: Switch) -> None:
        for session in self._sessions:
            session.announce_tip()

    def _offer(self, identity: TxId) -> None:
        for session in self._sessions:
            session.offer(identity)

    def _wake_up(self) -> None:
        self._wake.set()

    def _callable(self) -> list[Target]:
        """Return the targets that may be called at some time, given ones first."""
        connected = {parts.id for s in self._sessions if s.url and (parts := _parse(s.url)) is not None}
        idle = [t for t in self._targets.values() if not t.is_active and (t.given or t.address.id not in connected)]
        return sorted(idle, key=lambda t: (not t.given, t.due))

    def _due_targets(self) -> list[Target]:
        now = trio.current_time()
        room = OUTBOUND_MAX - sum(t.is_active for t in self._targets.values())
        due = [t for t in self._callable() if t.due <= now]
        given = [t for t in due if t.given]
        return given + [t for t in due if not t.given][: max(0, room - len(given))]

    def _next_due(self) -> float:
        now = trio.current_time()
        room = OUTBOUND_MAX - sum(t.is_active for t in self._targets.values())
        waiting = [t.due for t in self._callable() if t.given or room > 0]
        return min((due for due in waiting if due > now), default=float("inf"))

    async def _call(self, target: Target) -> None:
        """Call one address and stay for as long as the connection lasts."""
        begun = trio.current_time()
        try:
            async with connect(target.address, subprotocol=gossip.SUBPROTOCOL) as channel:
                target.found = channel.server_key
                session = Session(self, channel, inbound=False, url=target.url)
                begun = trio.current_time()
                await session.run()
        except RemoteProtocolError as exc:
            log.warning("%s: %s", target.address, exc)
        except FsdecloudError as exc:
            log.info("%s: %s", target.address, exc)
        finally:
            target.is_active = False
        lasted = trio.current_time() - begun
        target.failures = 1 if lasted >= STABLE else target.failures + 1
        delay = min(DELAY_MAX, DELAY_MIN * 2 ** (target.failures - 1))
        target.due = trio.current_time() + delay * random.uniform(0.5, 1.0)
        if target.failures > FAILURES_MAX and not target.given and not target.was_reached:
            self._targets = {key: t for key, t in self._targets.items() if t is not target}
        self._wake_up()


async def fetch_network(address: Address) -> NetworkDocument:
    """Ask the daemon at `address` for its network document, checked against the address's network id if it has one.

    Raises PeerUnavailable when nobody answers, RemoteProtocolError when the answer is wrong.
    """
    try:
        with trio.fail_after(2 * REQUEST_TIMEOUT):
            async with connect(address, subprotocol=gossip.SUBPROTOCOL) as channel:
                await channel.send(gossip.encode_message(gossip.GetNetwork()))
                message = gossip.decode_message(await channel.receive())
                while not isinstance(message, gossip.Network):
                    message = gossip.decode_message(await channel.receive())
    except trio.TooSlowError as exc:
        raise PeerUnavailable(f"{address} does not say what network it is in") from exc
    try:
        document = decode_network(message.document)
    except MalformedError as exc:
        raise RemoteProtocolError(f"{address} sent a malformed network document: {exc}") from exc
    if address.network is not None and network_id(document) != address.network:
        raise RemoteProtocolError(
            f"{address} is in network {network_id(document).hex()}, the address says {address.network.hex()}"
        )
    return document


def _parse(url: str) -> Address | None:
    try:
        return parse_url(url)
    except UsageError:
        return None
