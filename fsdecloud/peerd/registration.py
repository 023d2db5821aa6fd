"""How a storage peer tells the ledger where it is, and keeps it told.

Runs beside everything else and never holds it up: a peer serves whether there is a ledger daemon or not. It looks itself up
in the registry when it starts, whenever it cannot know what happened meanwhile (the daemon went away), and every RECHECK,
because a reorganisation may have dropped its registration. Called only from the trio thread.
"""

from __future__ import annotations

import logging
import random
import time
from pathlib import Path
from typing import Final

import trio

from fsdecloud.errors import FsdecloudError, InvalidTransaction, LedgerUnavailable, MalformedError
from fsdecloud.ledger import transactions
from fsdecloud.ledger.network import STAMP_BITS, decode_network, network_id
from fsdecloud.net.nursery import wait_first
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
        self,
        *,
        socket: Path,
        network_file: Path,
        seed: bytes,
        peer: PeerId,
        network: bytes,
        url: str,
        capacity: int,
        price: int = 0,
        declaration: bytes = b"",
    ) -> None:
        """`capacity` 0 says that it takes nothing new; see `announce`. `price`: smallest units for a GiB and 30 days.
        `declaration` is a signed Operate, which is sent as long as the ledger says something else; b"" for none. Raises
        MalformedTransaction."""
        found = transactions.decode_tx(declaration) if declaration else None
        assert found is None or isinstance(found, transactions.Operate)
        self._declaration = declaration
        self._operator = found.operator if found is not None else None
        self._registered_operator: bytes | None = None
        self._is_declared = False
        self._socket = socket
        self._network_file = network_file
        self._seed = seed
        self._peer = peer
        self._network = network
        self._url = url
        self._capacity = capacity
        self._price = price
        self._tip = trio.Event()
        self._changed = trio.Event()
        self.height = -1
        """The tip's height when the registration was last seen, -1 before."""
        self.error = ""
        self.announced = -1
        """The capacity that it was last seen registered with, -1 before."""

    @property
    def operator(self) -> bytes:
        """The operator that is declared, or that the ledger names while nothing is declared from here; b"" for none."""
        return (self._registered_operator or b"") if self._operator is None else self._operator

    @property
    def is_operator_registered(self) -> bool:
        """Whether the ledger was last seen to name that operator."""
        return self._registered_operator == self.operator

    def announce(self, capacity: int) -> None:
        """Register another capacity from now on."""
        if capacity != self._capacity:
            self._capacity = capacity
            self._changed.set()

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
            if not await self._is_registered(ledger):
                await self._register(ledger)
                await self._wait_tip(ledger)
            elif not self._is_declared:
                await self._submit(ledger, self._declaration, "declaration of its operator")
                await self._wait_tip(ledger)
            else:
                await wait_first(RECHECK, ledger.wait_closed, self._changed.wait)
        raise LedgerUnavailable("the ledger daemon went away")

    async def _is_registered(self, ledger: RpcConnection) -> bool:
        self._changed = trio.Event()  # what is announced from here on is looked up again
        capacity = self._capacity
        registry = await ledger.call("registry", Empty(), Registry, timeout=CALL_TIMEOUT)
        own = next((entry for entry in registry.peers if entry.id == self._peer), None)
        self._registered_operator = own.operator if own is not None else None
        found = own is not None and (own.url, own.capacity, own.price) == (self._url, capacity, self._price)
        if own is not None and found:
            self._is_declared = self._operator in (None, own.operator)
            status = await ledger.call("status", Empty(), LedgerStatus, timeout=CALL_TIMEOUT)
            if self.height < 0:
                log.info("registered as %s", self._url)
            self.height, self.announced = status.height, capacity
            if self._is_declared:
                self.error = ""
        return found

    async def _register(self, ledger: RpcConnection) -> None:
        """Send a registration; its sequence is the time, which grows also when this machine forgot everything."""
        tx = await trio.to_thread.run_sync(self._signed, int(time.time()))
        await self._submit(ledger, tx, "registration")

    async def _submit(self, ledger: RpcConnection, tx: bytes, what: str) -> None:
        self._tip = trio.Event()  # a block may take it up before its submission is answered
        try:
            await ledger.call("submit", SubmitTx(tx), TxResult, timeout=CALL_TIMEOUT)
        except InvalidTransaction as exc:
            self._failed(f"the ledger refuses the {what}: {exc}")

    def _signed(self, sequence: int) -> bytes:
        return transactions.sign_register(
            self._network,
            self._seed,
            self._url,
            self._capacity,
            sequence,
            price=self._price,
            bits=stamp_bits(self._network_file, self._network),
        )

    async def _wait_tip(self, ledger: RpcConnection) -> None:
        """Wait for the first block since the last `_submit`, the connection's end, or CONFIRM_TIMEOUT."""
        await wait_first(CONFIRM_TIMEOUT, ledger.wait_closed, self._tip.wait)

    def _on_tip(self, _notice: TipNotice) -> None:
        self._tip.set()

    def _failed(self, why: str) -> None:
        if why != self.error:
            log.warning("not registered: %s", why)
        self.error = why


def stamp_bits(network_file: Path, network: bytes) -> int:
    """Return how many zero bits the network's document asks of a stamp, if this machine has it; what is usual otherwise."""
    try:
        document = decode_network(network_file.read_bytes())
    except (OSError, MalformedError):
        return STAMP_BITS
    return document.stamp_bits if network_id(document) == network else STAMP_BITS
