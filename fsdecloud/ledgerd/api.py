"""What local programs may ask this daemon (`wire.ledgerapi`, `net.unix`).

Everything here runs in the trio thread. The reason of a refused transaction or block travels in its text: the ledger's own
error classes stay within the ledger.
"""

from __future__ import annotations

import os
from typing import Final

from fsdecloud.errors import FsdecloudError, InvalidBlock, InvalidTransaction, UsageError
from fsdecloud.ledger.chain import Point
from fsdecloud.ledger.network import encode_network
from fsdecloud.ledgerd.hub import Hub
from fsdecloud.ledgerd.keeper import Keeper
from fsdecloud.ledgerd.services import Services
from fsdecloud.limits import MIB
from fsdecloud.net.unix import Handler, Methods, RpcConnection
from fsdecloud.types import BlockId
from fsdecloud.wire import ledgerapi
from fsdecloud.wire.agentapi import Empty, Registry, RegistryPeer

_COUNT_MAX: Final = 256


class LocalApi:
    """Answers local callers. `methods_for` is for `net.unix.serve_unix`."""

    def __init__(self, keeper: Keeper, hub: Hub, services: Services) -> None:
        self._keeper = keeper
        self._hub = hub
        self._services = services
        self._watchers = Watchers()
        keeper.on_tip.append(lambda _switch: self._watchers.notify(keeper.tip))

    def methods_for(self, connection: RpcConnection) -> Methods:
        """Return what one connection may call."""

        async def watch(_: Empty) -> ledgerapi.LedgerStatus:
            self._watchers.add(connection)
            return self.status()

        async def status(_: Empty) -> ledgerapi.LedgerStatus:
            return self.status()

        handlers: dict[str, Handler] = {
            "status": (Empty, status),
            "watch": (Empty, watch),
            "submit": (ledgerapi.SubmitTx, self._submit),
            "tx": (ledgerapi.TxQuery, self._tx),
            "account": (ledgerapi.KeyQuery, self._account),
            "volume": (ledgerapi.KeyQuery, self._volume),
            "anchors": (ledgerapi.AnchorQuery, self._anchors),
            "blocks": (ledgerapi.BlockQuery, self._blocks),
            "headers": (ledgerapi.HeaderQuery, self._headers),
            "registry": (Empty, self._registry),
            "network": (Empty, self._network),
            "services": (Empty, self._service_info),
            "accept_tip": (ledgerapi.KeyQuery, self._accept_tip),
        }
        return handlers, {}

    def status(self) -> ledgerapi.LedgerStatus:
        """Return the daemon's view of the chain."""
        tip, mining = self._keeper.tip, self._services.mining
        return ledgerapi.LedgerStatus(
            pid=os.getpid(),
            network=self._keeper.network,
            name=self._keeper.document.name,
            url=self._hub.url,
            height=tip.height,
            tip=tip.id,
            tip_time=tip.time,
            work=tip.work,
            mempool=len(self._keeper.pool),
            mining=mining is not None and mining.is_busy,
            hash_rate=0.0 if mining is None else mining.hash_rate,
            peers=self._hub.peers(),
        )

    # ---- handlers --------------------------------------------------------------------------------------------------
    async def _submit(self, query: ledgerapi.SubmitTx) -> ledgerapi.TxResult:
        try:
            identity, height = self._keeper.submit(query.tx)
        except InvalidTransaction as exc:
            raise InvalidTransaction(f"{type(exc).__name__}: {exc}") from exc
        return ledgerapi.TxResult(identity, height)

    async def _tx(self, query: ledgerapi.TxQuery) -> ledgerapi.TxFound:
        found = self._keeper.store.find_tx(query.id)
        if found is not None:
            data, height, index = found
            return ledgerapi.TxFound(data, height, index, self._keeper.tip.height - height + 1)
        return ledgerapi.TxFound(self._keeper.pool.get(query.id) or b"", None, 0, 0)

    async def _account(self, query: ledgerapi.KeyQuery) -> ledgerapi.Account:
        check_key(query.key)
        balance = self._keeper.state().account(query.key).balance
        return ledgerapi.Account(balance, self._keeper.pool.next_nonce(query.key))

    async def _volume(self, query: ledgerapi.KeyQuery) -> ledgerapi.VolumeAnchor:
        check_key(query.key)
        head = self._keeper.state().volume(query.key)
        found = None if head is None else self._keeper.store.find_tx(head.tx)
        return ledgerapi.VolumeAnchor(b"", -1) if found is None else ledgerapi.VolumeAnchor(found[0], found[1])

    async def _anchors(self, query: ledgerapi.AnchorQuery) -> ledgerapi.AnchorList:
        check_key(query.key)
        check_range(query.first, query.count)
        found = self._keeper.store.anchors(query.key, query.first, query.count)
        return ledgerapi.AnchorList(tuple(ledgerapi.VolumeAnchor(data, height) for data, height in found))

    async def _blocks(self, query: ledgerapi.BlockQuery) -> ledgerapi.BlockList:
        check_range(query.first, query.count)
        return ledgerapi.BlockList(self._keeper.store.blocks_from(query.first, query.count, MIB))

    async def _headers(self, query: ledgerapi.HeaderQuery) -> ledgerapi.HeaderList:
        check_range(query.first, query.count, ledgerapi.HEADERS_AT_ONCE)
        return ledgerapi.HeaderList(self._keeper.store.headers_from(query.first, query.count))

    async def _registry(self, _: Empty) -> Registry:
        operators = self._keeper.state().operators()
        return Registry(
            tuple(
                RegistryPeer(peer, r.url, r.capacity, r.sequence, operators.get(peer, b""))
                for peer, r in self._keeper.registry()
            )
        )

    async def _network(self, _: Empty) -> ledgerapi.NetworkInfo:
        alarm = self._keeper.alarm or self._hub.clock.warning()
        return ledgerapi.NetworkInfo(encode_network(self._keeper.document), alarm)

    async def _service_info(self, _: Empty) -> ledgerapi.ServicesInfo:
        return self._services.info()

    async def _accept_tip(self, query: ledgerapi.KeyQuery) -> ledgerapi.LedgerStatus:
        check_key(query.key)
        try:
            await self._keeper.accept_tip(BlockId(query.key))
        except InvalidBlock as exc:
            raise UsageError(str(exc)) from exc
        return self.status()


class Watchers:
    """The connections that want to hear of new tips."""

    def __init__(self) -> None:
        self._connections: set[RpcConnection] = set()

    def add(self, connection: RpcConnection) -> None:
        """Tell this one from now on."""
        self._connections.add(connection)

    def notify(self, tip: Point) -> None:
        """Tell all of a new tip, those that are gone or do not read left out."""
        notice = ledgerapi.TipNotice(tip.height, tip.id, tip.time)
        for connection in list(self._connections):
            if connection.is_closed:
                self._connections.discard(connection)
            else:
                try:
                    connection.notify_nowait("tip", notice)
                except FsdecloudError:  # it has ended, or stopped reading: nothing to tell it any more
                    self._connections.discard(connection)


def check_key(key: bytes) -> None:
    """Raise UsageError unless it can be a key or an id."""
    if len(key) != 32:
        raise UsageError(f"a key or an id has 32 bytes, not {len(key)}")


def check_range(first: int, count: int, most: int = _COUNT_MAX) -> None:
    """Raise UsageError for a range that is not answered at once."""
    if not 0 <= first < 1 << 53 or not 1 <= count <= most:
        raise UsageError(f"first must be 0 or more and count between 1 and {most}")
