"""How a client finds peers, and finds again those that moved: by asking peers (`net.discovery`), when the ledger is no help.

The registry says who is a peer, and where it was reached when it registered. A peer's own announcement, signed by it, may be
newer, and comes by way of any other peer; and a client that has no registry, but one address, asks there. What wins:

* of an announcement and a registration, the newer one, once a connection has shown that the peer is there;
* another address that is known, whatever its age, when the peer does not answer where it was: a connection proves its key;
* who is registered, as long as a registry was ever read: ids cost nothing. Without one whoever is found is used, and judged by
  the registry as soon as it comes.

Called only from the trio thread. Reads nothing and asks nobody but peers.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

import trio

from fsdecloud.agent.hosts import Hosts
from fsdecloud.agent.peers import PeerBook
from fsdecloud.errors import UsageError
from fsdecloud.net.address import Address, parse_url
from fsdecloud.net.discovery import TESTS_AT_ONCE, Connections, Seeker
from fsdecloud.net.lan import Lan
from fsdecloud.types import PeerId

log = logging.getLogger(__name__)

KEPT: Final = 64
"""Peers that are known by a connection without being hosts of the volume: enough to ask, and to find new hosts."""

LOOK_SOON: Final = 10.0
LOOK_LATER: Final = 1800.0
"""Seconds between two searches for hosts that are away, at first (it doubles from there), and at most; before jitter."""

LOOK_ASKED: Final = 8
"""Peers asked about hosts that are away: not everybody has heard of who moved. In a small network that is all of them."""

NOBODY: Final = PeerId(bytes(32))


@runtime_checkable
class Finding(Connections, Protocol):
    """A transport over which other peers can be asked for (`net.pool`)."""


class Discovery:
    """Whom one client knows."""

    def __init__(
        self,
        *,
        pool: Connections,
        book: PeerBook,
        hosts: Hosts,
        path: Path,
        network: bytes,
        bootstrap: Sequence[Address],
        lan: bool,
    ) -> None:
        """`path` is the file of the address book; `bootstrap` whom to ask first; `lan` has it listen on its own links."""
        self._peers = book
        self._hosts = hosts
        self._network = network
        self._lan: Lan | None = None
        self._away = trio.Event()
        self.seeker = Seeker(pool=pool, places=self, path=path, network=network, peer=NOBODY, bootstrap=bootstrap)
        if lan:
            self._lan = Lan(network=network, hint=self.seeker.hint)
        book.on_away.append(self._note_away)

    def remember(self) -> None:
        """Use what was known at the last stop."""
        for known in self.seeker.book.everybody():
            if known.answered:
                self._consider(PeerId(known.peer))

    async def run(self) -> None:
        """Look for peers until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.seeker.run)
            nursery.start_soon(self._look_for_hosts)
            if self._lan is not None:
                nursery.start_soon(self._lan.run)

    # ---- what the seeker asks --------------------------------------------------------------------------------------
    async def refresh(self) -> None:
        """Do nothing: the registry comes by itself (`ledgerlink`)."""
        await trio.lowlevel.checkpoint()

    async def is_wanted(self, peer: PeerId) -> bool:
        """Return whether an address of a peer is worth a test: a host's always, some others' too if they are registered."""
        await trio.lowlevel.checkpoint()
        book = self.seeker.book
        is_host = peer in self._hosts.map.current
        return is_host or (self._may_use(peer) and (book.tried(peer) is not None or book.tried_count < KEPT))

    def _may_use(self, peer: PeerId) -> bool:
        """Return whether a peer is registered, or a host already; everybody may be used while no registry was ever read."""
        is_registered = not self._peers.registry or self._peers.operator(peer) is not None
        return is_registered or peer in self._hosts.map.current

    def known(self, peer: PeerId) -> Address | None:
        """Return where a peer is reached."""
        return self._peers.peer(peer).address

    def others(self) -> list[Address]:
        """Return the addresses of all that answer; of all others when nobody does."""
        found = [self._peers.peer(peer) for peer in self._peers.everybody()]
        found = [peer for peer in found if peer.is_readable] or found
        return [peer.address for peer in found if peer.address is not None]

    def answered(self, address: Address) -> None:
        """Note that a peer was reached."""
        assert address.id is not None
        self.seeker.book.answered(address.id, address.host, address.port, int(time.time()))
        self._consider(address.id, address)

    def failed(self, address: Address) -> None:
        """Note that it was not."""
        assert address.id is not None
        self.seeker.book.failed(address.id, address.host, address.port, int(time.time()))

    # ---- using what was found --------------------------------------------------------------------------------------
    def _consider(self, peer_id: PeerId, reached: Address | None = None) -> None:
        """Use a peer where it was reached, unless what we have is as good."""
        known = self.seeker.book.tried(peer_id)
        if known is not None and (reached is None or (known.host, known.port) == (reached.host, reached.port)):
            address, sequence = Address(known.host, known.port, peer_id, self._network), known.sequence
        elif reached is not None:
            address, sequence = Address(reached.host, reached.port, peer_id, self._network), 0
        else:
            return
        peer = self._peers.peer(peer_id)
        is_unknown = peer.address is None
        if is_unknown and not self._may_use(peer_id):
            return
        is_newer = 0 < peer.sequence < sequence
        if is_unknown or peer.score.is_failing or is_newer:
            self._peers.move(address, sequence)
        if is_unknown:
            self._hosts.poke()

    def _registered(self, peer_id: PeerId) -> Address | None:
        try:
            address = parse_url(self._peers.peer(peer_id).registered)
        except UsageError:
            return None
        return Address(address.host, address.port, peer_id, self._network)

    # ---- who moved -------------------------------------------------------------------------------------------------
    def _note_away(self, _peer: PeerId) -> None:
        self._away.set()

    def _lost(self) -> list[PeerId]:
        return [peer for peer in self._hosts.map.current if not self._peers.peer(peer).is_readable]

    async def _look_for_hosts(self) -> None:
        """Look for hosts that do not answer: at the other addresses that are known of them, and by asking others."""
        wait = LOOK_SOON
        while True:
            if not self._lost():
                self._away = trio.Event()
                wait = LOOK_SOON
                await self._away.wait()
            self._away = trio.Event()
            lost = self._lost()
            for start in range(0, len(lost), TESTS_AT_ONCE):
                async with trio.open_nursery() as nursery:
                    for peer in lost[start : start + TESTS_AT_ONCE]:
                        nursery.start_soon(self._try_others, peer)
            if self._lost():
                if self._lan is not None:
                    self._lan.ask()
                await self.seeker.ask_some(LOOK_ASKED, is_any=True)
            with trio.move_on_after(wait * random.uniform(0.75, 1.25)):
                await self._away.wait()
                await trio.sleep(min(wait, LOOK_SOON))  # who falls with it falls now
            wait = min(2 * wait, LOOK_LATER)

    async def _try_others(self, peer_id: PeerId) -> None:
        """Test a peer where it is not looked for at present."""
        book = self.seeker.book
        places = [self._registered(peer_id)]
        places += [
            Address(known.host, known.port, peer_id, self._network)
            for known in (book.tried(peer_id), book.known(peer_id))
            if known is not None
        ]
        for place in dict.fromkeys(places):
            if place is not None and place != self.known(peer_id) and await self.seeker.test(place):
                return
