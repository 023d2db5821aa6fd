"""The agent's connection to the ledger daemon of this machine: calls, the tip, and coming back when it was lost.

Called only from the trio thread. Without a daemon everything but anchoring goes on: calls raise LedgerUnavailable at once,
and the connection is tried again until one answers. Not here: which anchors are sent (`outbox`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

import trio

from fsdecloud.errors import FsdecloudError, LedgerUnavailable
from fsdecloud.ledger.network import decode_network
from fsdecloud.net.unix import RpcConnection, connect_unix, open_rpc
from fsdecloud.wire.agentapi import Empty, LedgerTip, Registry, RegistryPeer
from fsdecloud.wire.ledgerapi import LedgerStatus, NetworkInfo, TipNotice

log = logging.getLogger(__name__)

R = TypeVar("R")

RETRY_FIRST: Final = 0.5
RETRY_MAX: Final = 10.0
"""Seconds between two tries to connect: a file that is not there costs nothing to look for."""

CALL_TIMEOUT: Final = 20.0

FINALITY_DEFAULT: Final = 100
"""Blocks, while the network's own number is not known."""

REGISTRY_INTERVAL: Final = 2.0
"""The registry is read at most this often, however fast blocks come."""


class LedgerLink:
    """The connection, while there is one."""

    def __init__(
        self,
        path: Path,
        network: bytes,
        *,
        on_tip: Callable[[LedgerTip], None],
        on_registry: Callable[[Sequence[RegistryPeer]], None],
    ) -> None:
        """`on_tip` is called after each connection and each new tip, and with height -1 when the daemon is gone."""
        self._path = path
        self._network = network
        self._on_tip = on_tip
        self._on_registry = on_registry
        self._connection: RpcConnection | None = None
        self._changed = trio.Event()
        self._tried = trio.Event()
        self.height = -1
        self.pid = 0
        self.finality_depth = FINALITY_DEFAULT
        self.is_on_demand = False
        """Whether blocks come only when there is something to record."""
        self.interval = 0
        """Seconds for a block, 0 while the network's parameters are not known."""
        self.last_error = ""

    async def call(self, method: str, params: object, result: type[R]) -> R:
        """Call the daemon. Raises LedgerUnavailable when it does not answer, else what it raises.

        The first call may come before the first connection: a mount that starts at once is no reason to say that there
        is no ledger.
        """
        with trio.move_on_after(CALL_TIMEOUT):
            await self._tried.wait()
        if self._connection is None:
            raise LedgerUnavailable(self.last_error or f"nothing answers at {self._path}")
        return await self._connection.call(method, params, result, timeout=CALL_TIMEOUT)

    async def run(self) -> None:
        """Keep connected until cancelled."""
        wait = RETRY_FIRST
        while True:
            try:
                await self._serve()
                wait = RETRY_FIRST
            except FsdecloudError as exc:
                if str(exc) != self.last_error:
                    log.warning("no ledger: %s", exc)
                self.last_error = str(exc)
            finally:
                self._connection = None
                self._tried.set()
            if self.height >= 0:
                self.height, self.pid = -1, 0
                self._on_tip(LedgerTip(-1, 0))
            await trio.sleep(wait)
            wait = min(2 * wait, RETRY_MAX)

    async def _serve(self) -> None:
        stream = await connect_unix(self._path, error=LedgerUnavailable)
        notices = {"tip": (TipNotice, self._take_tip)}
        async with open_rpc(stream, {}, notices, lost=LedgerUnavailable) as connection:
            status = await connection.call("watch", Empty(), LedgerStatus, timeout=CALL_TIMEOUT)
            if status.network != self._network:
                raise LedgerUnavailable(
                    f"the ledger daemon at {self._path} is on network {status.network.hex()[:16]},"
                    f" this volume on {self._network.hex()[:16]}"
                )
            await self._read_parameters(connection)
            self._connection = connection
            self._tried.set()
            self.pid = status.pid
            self.last_error = ""
            self._tip(status.height, status.tip_time)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._follow)
                await connection.wait_closed()
                nursery.cancel_scope.cancel()
        log.info("the ledger daemon is gone")

    async def _read_parameters(self, connection: RpcConnection) -> None:
        try:
            found = await connection.call("network", Empty(), NetworkInfo, timeout=CALL_TIMEOUT)
            document = decode_network(found.document)
        except FsdecloudError as exc:
            log.warning("the network's parameters are not known: %s", exc)
            return
        self.finality_depth = document.finality_depth
        self.is_on_demand = not document.mine_when_idle
        self.interval = document.interval

    def _take_tip(self, notice: TipNotice) -> None:
        if self._connection is not None:
            self._tip(notice.height, notice.time)

    def _tip(self, height: int, time: int) -> None:
        self.height = height
        self._on_tip(LedgerTip(height, time))
        self._changed.set()

    async def _follow(self) -> None:
        """Read the registry, which may have changed with the tip. What comes meanwhile is read in the next round."""
        while True:
            await self._changed.wait()
            self._changed = trio.Event()
            try:
                registry = await self.call("registry", Empty(), Registry)
                self._on_registry(registry.peers)
            except FsdecloudError as exc:
                log.warning("cannot read the registry: %s", exc)
            await trio.sleep(REGISTRY_INTERVAL)
