"""Where other peers are: by the ledger's registry, read from the ledger daemon of this machine when it is needed, and by the
address book (`swarm.addressbook`), which also knows those that announced a new address.

Called only from the trio thread. A registry that was read is used for FRESH; somebody who is not in it has it read again,
at most every PAUSE. Without a daemon the last one read holds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import trio

from fsdecloud.errors import FsdecloudError, LedgerUnavailable, UsageError
from fsdecloud.net.address import Address, parse_url
from fsdecloud.net.unix import connect_unix, open_rpc
from fsdecloud.swarm.addressbook import AddressBook
from fsdecloud.types import PeerId
from fsdecloud.wire.agentapi import Empty, Registry, RegistryPeer
from fsdecloud.wire.ledgerapi import LedgerStatus

log = logging.getLogger(__name__)

FRESH: Final = 60.0
PAUSE: Final = 5.0
CALL_TIMEOUT: Final = 5.0


class Directory:
    """The addresses of the peers of one network."""

    def __init__(self, *, socket: Path, network: bytes, peer: PeerId) -> None:
        """`peer` is our own, which is never among the others."""
        self._socket = socket
        self._network = network
        self._peer = peer
        self._registry: dict[PeerId, Address] = {}
        self._since: dict[PeerId, float] = {}
        """Since when the registry names that address, as far as we saw; seconds since 1970."""
        self._read_at = -FRESH
        self._reading = trio.Lock()
        self.book: AddressBook | None = None

    # ---- looking up ------------------------------------------------------------------------------------------------
    async def find(self, peer: PeerId) -> Address | None:
        """Return a peer's address, None when nobody knows it."""
        await self.look_up(peer)
        return self.known(peer)

    async def look_up(self, peer: PeerId) -> bool | None:
        """Return whether a peer is registered, after reading the registry again if need be; None without a registry."""
        age = trio.current_time() - self._read_at
        if age >= FRESH or (peer not in self._registry and age >= PAUSE):
            await self.refresh()
        return peer in self._registry if self._registry else None

    async def is_wanted(self, peer: PeerId) -> bool:
        """Return whether an address of a peer is worth a test: not when there is a registry that it is not in."""
        return await self.look_up(peer) is not False

    def is_registered(self, peer: PeerId) -> bool:
        """Return whether the registry as it was read last has a peer."""
        return peer in self._registry

    def known(self, peer: PeerId) -> Address | None:
        """Return where a peer is most likely reached: where it answered since the registry changed, else what that says."""
        registered = self._registry.get(peer)
        known = self.book.known(peer) if self.book is not None else None
        if known is None:
            return registered
        if registered is not None and (known.failures or known.answered < self._since[peer]):
            return registered
        return Address(known.host, known.port, peer, self._network)

    def others(self) -> list[Address]:
        """Return an address of each peer that is known."""
        peers = dict.fromkeys(self._registry)
        if self.book is not None:
            peers.update(dict.fromkeys(PeerId(known.peer) for known in self.book.everybody()))
        return [address for peer in peers if (address := self.known(peer)) is not None]

    # ---- learning --------------------------------------------------------------------------------------------------
    def answered(self, address: Address) -> None:
        """A connection to a peer was made there."""
        if self.book is not None and address.id is not None:
            self.book.answered(address.id, address.host, address.port, int(time.time()))

    def failed(self, address: Address) -> None:
        """None was made."""
        if self.book is not None and address.id is not None:
            self.book.failed(address.id, address.host, address.port, int(time.time()))

    async def refresh(self) -> None:
        """Read the registry, unless somebody does."""
        started = trio.current_time()
        async with self._reading:
            if self._read_at >= started:
                return
            self._read_at = trio.current_time()
            try:
                self.use((await self._read()).peers)
            except FsdecloudError as exc:
                log.debug("cannot read the registry: %s", exc)

    async def _read(self) -> Registry:
        stream = await connect_unix(self._socket, error=LedgerUnavailable)
        async with open_rpc(stream, lost=LedgerUnavailable) as ledger:
            status = await ledger.call("status", Empty(), LedgerStatus, timeout=CALL_TIMEOUT)
            if status.network != self._network:
                raise LedgerUnavailable(f"the ledger daemon at {self._socket} is of another network")
            return await ledger.call("registry", Empty(), Registry, timeout=CALL_TIMEOUT)

    def use(self, peers: Sequence[RegistryPeer]) -> None:
        """Take a registry."""
        found: dict[PeerId, Address] = {}
        for entry in peers:
            try:
                address = parse_url(entry.url)
            except UsageError:
                continue
            is_other = address.network not in (None, self._network) or address.id not in (None, entry.id)
            if entry.id != self._peer and not is_other:
                found[entry.id] = Address(address.host, address.port, entry.id, self._network)
        now = 0.0 if not self._registry else time.time()  # how old the first one is nobody knows
        self._since = {
            peer: self._since[peer] if self._registry.get(peer) == address else now for peer, address in found.items()
        }
        self._registry = found
