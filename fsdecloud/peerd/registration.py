"""How a storage peer tells the ledger where it is, and keeps it told.

Runs beside everything else and never holds it up: a peer serves whether there is a ledger daemon or not. It looks itself up
in the registry when it starts, whenever it cannot know what happened meanwhile (the daemon went away), and every RECHECK,
because a reorganisation may have dropped its registration. Called only from the trio thread.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import trio

from fsdecloud.errors import FsdecloudError, InvalidTransaction, LedgerUnavailable, MalformedError
from fsdecloud.ledger import transactions
from fsdecloud.ledger.network import STAMP_BITS, decode_network, network_id
from fsdecloud.net.unix import RpcConnection, connect_unix, open_rpc
from fsdecloud.types import PeerId
from fsdecloud.wire.agentapi import Empty, Registry
from fsdecloud.wire.ledgerapi import LedgerStatus, SubmitTx, TipNotice, TxResult

log = logging.getLogger(__name__)

RETRY: Final = (1.0, 20.0)
"""First and longest wait for a ledger daemon that does not answer, before jitter."""

RECHECK: Final = 600.0
CONFIRM_TIMEOUT: Final = 60.0
"""A registration that no block took up within this is sent again."""

CALL_TIMEOUT: Final = 20.0


class Registrar:
    """Keeps one peer registered."""

    def __init__(
        self, *, socket: Path, network_file: Path, seed: bytes, peer: PeerId, network: bytes, url: str, capacity: int
    ) -> None:
        self._socket = socket
        self._network_file = network_file
        self._seed = seed
        self._peer = peer
        self._network = network
        self._url = url
        self._capacity = capacity
        self._tip = trio.Event()
        self.height = -1
        """The tip's height when the registration was last seen, -1 before."""
        self.error = ""

    async def run(self) -> None:
        """Register, and check from time to time. Returns only when the ledger daemon is one of another network."""
        failures = 0
        while True:
            try:
                stream = await connect_unix(self._socket, error=LedgerUnavailable)
                notices = {"tip": (TipNotice, self._on_tip)}
                async with open_rpc(stream, notices=notices, lost=LedgerUnavailable) as ledger:
                    status = await ledger.call("watch", Empty(), LedgerStatus, timeout=CALL_TIMEOUT)
                    if status.network != self._network:
                        self._failed(
                            f"the ledger daemon at {self._socket} is of network {status.network.hex()}, "
                            f"this peer of {self._network.hex()}"
                        )
                        return
                    failures = 0
                    await self._keep(ledger)
            except FsdecloudError as exc:  # whatever the daemon says or does: it is tried again
                self._failed(str(exc))
            first, longest = RETRY
            await trio.sleep(min(longest, first * 2**failures) * random.uniform(0.5, 1.0))
            failures = min(failures + 1, 10)

    async def _keep(self, ledger: RpcConnection) -> None:
        """Look and register until the connection ends."""
        while not ledger.is_closed:
            if await self._is_registered(ledger):
                with trio.move_on_after(RECHECK):
                    await ledger.wait_closed()
            else:
                await self._register(ledger)
                await self._wait_tip(ledger)
        raise LedgerUnavailable("the ledger daemon went away")

    async def _is_registered(self, ledger: RpcConnection) -> bool:
        registry = await ledger.call("registry", Empty(), Registry, timeout=CALL_TIMEOUT)
        found = any(
            entry.id == self._peer and entry.url == self._url and entry.capacity == self._capacity
            for entry in registry.peers
        )
        if found:
            status = await ledger.call("status", Empty(), LedgerStatus, timeout=CALL_TIMEOUT)
            if self.height < 0:
                log.info("registered as %s", self._url)
            self.height, self.error = status.height, ""
        return found

    async def _register(self, ledger: RpcConnection) -> None:
        """Send a registration; its sequence is the time, which grows also when this machine forgot everything."""
        tx = await trio.to_thread.run_sync(self._signed, int(time.time()))
        try:
            await ledger.call("submit", SubmitTx(tx), TxResult, timeout=CALL_TIMEOUT)
        except InvalidTransaction as exc:
            self._failed(f"the ledger refuses the registration: {exc}")

    def _signed(self, sequence: int) -> bytes:
        return transactions.sign_register(
            self._network, self._seed, self._url, self._capacity, sequence, bits=self._stamp_bits()
        )

    def _stamp_bits(self) -> int:
        """Return what the network's document asks for, if this machine has it."""
        try:
            document = decode_network(self._network_file.read_bytes())
        except (OSError, MalformedError):
            return STAMP_BITS
        return document.stamp_bits if network_id(document) == self._network else STAMP_BITS

    async def _wait_tip(self, ledger: RpcConnection) -> None:
        """Wait for the next block, the connection's end, or CONFIRM_TIMEOUT."""
        self._tip = trio.Event()
        with trio.move_on_after(CONFIRM_TIMEOUT):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_after, ledger.wait_closed, nursery.cancel_scope)
                nursery.start_soon(_cancel_after, self._tip.wait, nursery.cancel_scope)

    def _on_tip(self, _notice: TipNotice) -> None:
        self._tip.set()

    def _failed(self, why: str) -> None:
        if why != self.error:
            log.warning("not registered: %s", why)
        self.error = why


async def _cancel_after(wait: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
    await wait()
    scope.cancel()
