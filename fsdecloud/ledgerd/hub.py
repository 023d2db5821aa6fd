"""The daemon's connections to others: who called, whom to call, and what all of them are told.

Keeps up to OUTBOUND_MAX calls of its own: always those to the addresses a person gave, then others (`addresses`), and one more
for a while when the tip stands still (`staletip`). A *feeler* now and then finds out whether an address that was heard of is
worth its place. When more have called than INBOUND_MAX, one of
them gives way (`eviction`); who misbehaves is shut out (`conduct`). Everything here runs in the trio thread. Not here: what is
said on a connection (`session`), and which chain is fetched from whom (`sync`).
"""

from __future__ import annotations

import logging
import random
import secrets
from collections.abc import Callable, Iterable
from typing import Final

import trio

from fsdecloud.errors import (
    FsdecloudError,
    InvalidTransaction,
    MalformedError,
    PeerUnavailable,
    ProtocolError,
    RemoteError,
    RemoteProtocolError,
    UsageError,
)
from fsdecloud.ledger.chain import Switch, genesis_point
from fsdecloud.ledger.compact import shorten
from fsdecloud.ledger.mempool import slot_of
from fsdecloud.ledger.network import NetworkDocument, decode_network, network_id
from fsdecloud.ledger.reasons import EARLY
from fsdecloud.ledger.transactions import Transaction, decode_tx, tx_id
from fsdecloud.ledgerd.addresses import Addresses, Key
from fsdecloud.ledgerd.clock import ClockWatch
from fsdecloud.ledgerd.conduct import Bans, Misbehaviour
from fsdecloud.ledgerd.eviction import Callee, Caller, choose_eviction, choose_surplus
from fsdecloud.ledgerd.history import History
from fsdecloud.ledgerd.keeper import Keeper
from fsdecloud.ledgerd.light import LightKeeper
from fsdecloud.ledgerd.relay import Orphans, Pacer, Requests
from fsdecloud.ledgerd.session import Session
from fsdecloud.ledgerd.staletip import TipWatch
from fsdecloud.ledgerd.sync import Syncer
from fsdecloud.limits import REQUEST_TIMEOUT
from fsdecloud.net.address import Address, client_group, format_endpoint, parse_url
from fsdecloud.net.websocket import Channel, connect
from fsdecloud.swarm.addressbook import AddressBook
from fsdecloud.types import BlockId, PeerId, TxId
from fsdecloud.wire import gossip
from fsdecloud.wire.ledgerapi import LedgerPeer

log = logging.getLogger(__name__)

OUTBOUND_MAX: Final = 8
INBOUND_MAX: Final = 64
SPARE: Final = 8
"""Connections that are accepted beyond INBOUND_MAX, so that one can be let in before another gives way."""

STABLE: Final = 30.0
"""A connection that lasted this long forgives its address the failures before it."""

OFFER_MEAN_MAX: Final = 2.0
"""Seconds; a network with quick blocks has quicker offers (a twentieth of its interval)."""

EXTRA_TRIAL: Final = 60.0
"""Seconds after which one of the connections gives way to the one that was made because the tip stood still."""

PROVING_MAX: Final = 2
"""Threads that make proofs for others at a time: they never keep a block waiting."""

FEELER_PAUSE: Final = 120.0
"""Seconds between two feelers; half of it random."""


class Hub:
    """All sessions of one daemon, and the calls it makes."""

    def __init__(
        self,
        keeper: Keeper | LightKeeper,
        node: PeerId,
        nonce: bytes,
        *,
        changed: Callable[[], None] = lambda: None,
        book: AddressBook | None = None,
        bans: Bans | None = None,
        minimum_work: int = 0,
    ) -> None:
        self.keeper = keeper
        self.nonce = nonce
        self.url = ""
        """Where others reach this daemon; set once it listens."""
        self.sync = Syncer(keeper, minimum_work)
        self.history = History(keeper, self.sync) if isinstance(keeper, Keeper) else None
        self.bans = Bans() if bans is None else bans
        self.addresses = Addresses(
            AddressBook(secrets.token_bytes(32), node) if book is None else book, keeper.network, node, keeper.now
        )
        self.requests: Requests[Session] = Requests()
        self.orphans = Orphans()
        self.proving = trio.CapacityLimiter(PROVING_MAX)
        self.clock = ClockWatch()
        self.offer_mean = min(OFFER_MEAN_MAX, keeper.document.interval / 20)
        """Mean seconds that an offer waits for its moment on a connection of ours; for those who called it is twice that."""
        self.inbound_pacer = Pacer(2 * self.offer_mean)
        self._requests_changed = trio.Event()
        self._compact: tuple[BlockId, gossip.Compact] | None = None
        self._clock_warning = ""
        self._secret = secrets.token_bytes(32)
        self._changed = changed
        self._sessions: dict[Session, None] = {}
        self._active: set[Key] = set()
        """Addresses being called or connected."""
        self._wake = trio.Event()
        keeper.on_tip.append(self._announce_tip)
        keeper.on_tx.append(self._offer)

    # ---- for sessions ----------------------------------------------------------------------------------------------
    @property
    def is_light(self) -> bool:
        """Whether this daemon keeps headers only."""
        return isinstance(self.keeper, LightKeeper)

    def hello(self) -> gossip.Hello:
        """Return what this daemon says first. A light one claims nothing: nobody can get a chain from it."""
        tip = genesis_point(self.keeper.document) if self.is_light else self.keeper.tip
        justified = 0 if self.is_light else int.from_bytes(self.keeper.claim[:8])
        return gossip.Hello(
            version=gossip.VERSION,
            network=self.keeper.network,
            url=self.url,
            nonce=self.nonce,
            height=tip.height,
            work=tip.work,
            tip=tip.id,
            justified=justified,
            time=self.keeper.now(),
            first=gossip.NO_BODIES if self.is_light else self.keeper.store.first_body(),
        )

    def add(self, session: Session) -> None:
        """Take note of a session that has been greeted."""
        self._sessions[session] = None
        if session.address is not None and session.id is not None:
            self.addresses.answered(session.address, session.id, is_lasting=True)
        self.sync.add(session)
        self._changed()
        log.info("%s %s", "called by" if session.inbound else "connected to", session.url or session.remote)
        if session.inbound:
            self._make_room()

    def remove(self, session: Session) -> None:
        """Forget a session; unknown ones do not matter."""
        if session in self._sessions:
            del self._sessions[session]
            self.clock.gone(session)
            self._ask_others(self.requests.gone(session, trio.current_time()))
            self.sync.remove(session)
            log.info("lost %s", session.url or session.remote)
            self._wake_up()

    def unban(self, address: str) -> bool:
        """Let an address that is shut out in again, every one with ""; return whether there was any. It is remembered."""
        found = bool(self.bans.entries()) if not address else self.bans.lift(address)
        if not address:
            self.bans.lift_all()
        if found:
            self._changed()
        return found

    def is_myself(self, session: Session) -> None:
        """Forget the address that led back to this daemon (fault 108)."""
        if session.address is not None:
            self.addresses.forget_given(session.address)
        if session.id is not None:
            self.addresses.forget(session.id)

    def give(self, urls: Iterable[str]) -> None:
        """Call these addresses, always: a person said so. Raises UsageError."""
        for url in urls:
            self.addresses.give(url)
        self._wake_up()

    def hear(self, urls: Iterable[str], source: str) -> None:
        """Take addresses that the daemon at HOST:PORT `source` told; "" for remembered ones."""
        if self.addresses.hear(urls, client_group(source) if source else ""):
            self._wake_up()

    def compare_clocks(self, session: Session, time: int) -> None:
        """Note what time it is for a daemon that we called; warn a person once when ours is far off."""
        self.clock.heard(session, time - self.keeper.now())
        warning = self.clock.warning()
        if warning and not self._clock_warning:
            log.warning("%s", warning)
        self._clock_warning = warning

    def compact(self, identity: BlockId) -> gossip.Compact:
        """Return a stored block in its short form; an empty one when it is not at hand."""
        if self._compact is None or self._compact[0] != identity:
            data = self.keeper.store.block(identity)
            parts = None if data is None else shorten(data)
            if parts is None:
                return gossip.Compact(b"", b"", b"")
            self._compact = identity, gossip.Compact(*parts)
        return self._compact[1]

    def known_urls(self) -> tuple[str, ...]:
        """Return the addresses of daemons that this one is or was connected to, those connected first."""
        live = [s.url for s in self._sessions if s.url]
        return tuple(dict.fromkeys(live + self.addresses.urls()))

    def peers(self) -> tuple[LedgerPeer, ...]:
        """Return the connected daemons for `status`."""
        return tuple(LedgerPeer(s.url, s.id or b"", s.inbound, max(s.height, s.asked_height)) for s in self._sessions)

    # ---- transactions ----------------------------------------------------------------------------------------------
    def offered(self, session: Session, ids: Iterable[TxId]) -> list[TxId]:
        """Take an offer; return those that the session is to be asked for now. A light daemon wants none."""
        if self.is_light:
            return []
        unknown = [
            identity
            for identity in ids
            if identity not in self.keeper.pool
            and identity not in self.orphans
            and self.keeper.store.find_tx(identity) is None
        ]
        ask = self.requests.offered(session, unknown, trio.current_time())
        if ask:
            self._requests_changed.set()
        return ask

    def take(self, tx: Transaction, data: bytes) -> None:
        """Put a transaction that somebody sent into the mempool. Raises an InvalidTransaction leaf."""
        identity = tx_id(tx)
        self.requests.arrived(identity)
        try:
            self.keeper.submit(data)
        except EARLY:  # what it follows may come by another way, later
            self.orphans.add(identity, slot_of(tx)[1], data)
            raise
        except InvalidTransaction:
            self.requests.refuse(identity)
            raise

    def _retry(self, orphans: Iterable[bytes]) -> None:
        for data in orphans:
            tx = decode_tx(data)
            try:
                self.take(tx, data)
            except InvalidTransaction as exc:
                log.debug("transaction %s waits or is refused: %s", tx_id(tx).hex(), exc)

    async def _ask_again(self) -> None:
        """Ask somebody else for what does not come."""
        while True:
            self._requests_changed = trio.Event()
            with trio.move_on_at(self.requests.next_due()):
                await self._requests_changed.wait()
            self._ask_others(self.requests.overdue(trio.current_time()))

    @staticmethod
    def _ask_others(asks: dict[Session, list[TxId]]) -> None:
        for session, ids in asks.items():
            session.ask_for(ids)

    # ---- tasks -----------------------------------------------------------------------------------------------------
    async def serve(self, channel: Channel) -> None:
        """Run the session of someone who called, unless its address is shut out."""
        if self.bans.is_banned(channel.remote, self.keeper.now()):
            raise PeerUnavailable(f"{channel.remote} is shut out")
        await self._run(Session(self, channel, inbound=True))

    async def run(self) -> None:
        """Call others and sync with them until cancelled. Raises StoreCorrupt."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.sync.run)
            if self.history is not None:
                nursery.start_soon(self.history.run)
            nursery.start_soon(self._feel)
            nursery.start_soon(self._ask_again)
            nursery.start_soon(self._watch_tip, nursery)
            while True:
                self._wake = trio.Event()
                for address in self._next_calls():
                    self._active.add((address.host, address.port))
                    nursery.start_soon(self._call, address)
                with trio.move_on_at(self._next_due()):
                    await self._wake.wait()

    # ---- inner -----------------------------------------------------------------------------------------------------
    def _announce_tip(self, _switch: Switch) -> None:
        for session in self._sessions:
            session.announce_tip()
        self.requests.forgive()
        self._retry(self.orphans.take())

    def _offer(self, identity: TxId) -> None:
        for session in self._sessions:
            session.offer(identity)
        data = self.keeper.pool.get(identity)
        if data is not None and len(self.orphans):
            self._retry(self.orphans.take(slot_of(decode_tx(data))[1]))

    def _wake_up(self) -> None:
        self._wake.set()

    def _connected(self) -> set[PeerId]:
        """Return who need not be called. Somebody who called is believed to be who he says when he called from the address he
        names: else anybody could keep us from calling a daemon by using its name."""
        found = {session.id for session in self._sessions if session.id is not None}
        for session in self._sessions:
            says = _parse(session.url) if session.inbound and session.url else None
            if says is not None and says.id is not None and says.host == session.remote.rpartition(":")[0].strip("[]"):
                found.add(says.id)
        return found

    def _has_room(self) -> bool:
        return len(self._active) < OUTBOUND_MAX

    def _next_calls(self) -> list[Address]:
        """Return the addresses to call now."""
        now = trio.current_time()
        calls = self.addresses.given(self._active, now)
        active = self._active | {(address.host, address.port) for address in calls}
        connected = self._connected()
        while len(active) < OUTBOUND_MAX:
            address = self.addresses.choose(active, connected, now, self._may_call)
            if address is None:
                break
            active.add((address.host, address.port))
            calls.append(address)
        return calls

    def _may_call(self, address: Address) -> bool:
        return not self.bans.is_banned(format_endpoint(address.host, address.port), self.keeper.now())

    def _next_due(self) -> float:
        return self.addresses.next_due(self._active, self._connected(), trio.current_time(), has_room=self._has_room())

    async def _call(self, address: Address) -> None:
        """Call one address and stay for as long as the connection lasts."""
        begun = trio.current_time()
        found = address.id
        is_reached = False
        try:
            async with connect(address, subprotocol=gossip.SUBPROTOCOL) as channel:
                found, is_reached = channel.server_key, True
                begun = trio.current_time()
                await self._run(Session(self, channel, inbound=False, address=address))
        except RemoteProtocolError as exc:
            log.warning("%s: %s", address, exc)
        except FsdecloudError as exc:
            log.info("%s: %s", address, exc)
        finally:
            self._active.discard((address.host, address.port))
        now = trio.current_time()
        if now - begun >= STABLE and is_reached:
            self.addresses.succeeded(address)
        self.addresses.failed(address, found, now, is_reached=is_reached)
        self._wake_up()

    async def _run(self, session: Session) -> None:
        """Run a session; whoever misbehaves in it is shut out."""
        try:
            await session.run()
        except Misbehaviour as exc:
            if self.bans.ban(session.remote, self.keeper.now()):
                log.warning("%s is shut out: %s", session.remote, exc)
                self._changed()
            if session.id is not None:
                self.addresses.forget(session.id)
            raise

    async def _feel(self) -> None:
        """Test one address now and then (a feeler connection): what answers may take a tried one's place, what does not
        goes. While there is room for more connections, ask somebody who else there is."""
        while True:
            await trio.sleep(FEELER_PAUSE * random.uniform(0.5, 1.0))
            if self._sessions and self._has_room():
                random.choice(list(self._sessions)).ask_peers()
            address = self.addresses.to_test(self._connected())
            if address is not None and self._may_call(address):
                await self._test(address)

    async def _watch_tip(self, nursery: trio.Nursery) -> None:
        """Call one more than usual when the tip stands still, and give up the worst of all some time later."""
        document, keeper = self.keeper.document, self.keeper
        watch = TipWatch(document.interval, trio.current_time(), mines_always=document.mine_when_idle)
        keeper.on_tip.append(lambda _switch: watch.moved(trio.current_time()))
        while True:
            await trio.sleep(watch.patience / 8)
            is_block_due = len(keeper.pool) > 0 or any(s.claim > keeper.claim for s in self._sessions)
            now = trio.current_time()
            if not watch.is_stale(now, is_block_due=is_block_due) or self._has_room():
                continue
            address = self.addresses.choose(self._active, self._connected(), now, self._may_call)
            if address is None:
                continue
            log.info("the chain has not grown for long: calling one more daemon, %s", address)
            self._active.add((address.host, address.port))
            nursery.start_soon(self._call, address)
            await trio.sleep(EXTRA_TRIAL)
            self._give_up_one()
            watch.tried(trio.current_time())

    def _give_up_one(self) -> None:
        """End the worst of the connections that we made, if there are too many."""
        if len(self._active) <= OUTBOUND_MAX:
            return
        called = [s for s in self._sessions if s.address is not None and not self.addresses.is_given(s.address)]
        chosen = choose_surplus([Callee(number, s.since, s.last_block) for number, s in enumerate(called)])
        if chosen is not None:
            called[chosen.number].fail(PeerUnavailable(f"{called[chosen.number].remote} gives way to another"))

    async def _test(self, address: Address) -> None:
        try:
            async with connect(address, subprotocol=gossip.SUBPROTOCOL) as channel:
                found = channel.server_key
        except (RemoteError, ProtocolError) as exc:
            log.debug("feeler: %s", exc)
            self.addresses.failed(address, address.id, trio.current_time(), is_reached=False)
        else:
            self.addresses.answered(address, found, is_lasting=False)
        self._changed()

    def _make_room(self) -> None:
        """Let one of those who called give way if they are too many."""
        inbound = [session for session in self._sessions if session.inbound]
        if len(inbound) <= INBOUND_MAX:
            return
        callers = [
            Caller(number, client_group(s.remote).encode(), s.since, s.last_block, s.last_tx)
            for number, s in enumerate(inbound)
        ]
        chosen = choose_eviction(callers, self._secret)
        if chosen is not None:
            inbound[chosen.number].fail(PeerUnavailable(f"{inbound[chosen.number].remote} gives way to another"))


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
