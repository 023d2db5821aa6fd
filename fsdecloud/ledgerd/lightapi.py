"""What local programs may ask a light daemon: the same as a full one (`wire.ledgerapi`).

What headers do not say comes from `lightanswers`, with a proof; what neither gives (mining, another chain than the one with
the most work) is refused with what to do. Everything here runs in the trio thread.
"""

from __future__ import annotations

import os

from fsdecloud.errors import UsageError
from fsdecloud.ledger.network import encode_network
from fsdecloud.ledgerd.api import Watchers, check_range
from fsdecloud.ledgerd.hub import Hub
from fsdecloud.ledgerd.light import LightKeeper
from fsdecloud.ledgerd.lightanswers import LightAnswers
from fsdecloud.net.unix import Handler, Methods, RpcConnection
from fsdecloud.wire import ledgerapi
from fsdecloud.wire.agentapi import Empty


class LightApi:
    """Answers local callers. `methods_for` is for `net.unix.serve_unix`."""

    def __init__(self, keeper: LightKeeper, hub: Hub, answers: LightAnswers) -> None:
        self._keeper = keeper
        self._hub = hub
        self._answers = answers
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
            "headers": (ledgerapi.HeaderQuery, self._headers),
            "network": (Empty, self._network),
            "services": (Empty, self._service_info),
            "accept_tip": (ledgerapi.KeyQuery, self._accept_tip),
        }
        return handlers | self._answers.handlers(), {}

    def status(self) -> ledgerapi.LedgerStatus:
        """Return the daemon's view of the chain."""
        tip = self._keeper.tip
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
            mining=False,
            hash_rate=0.0,
            peers=self._hub.peers(),
            light=True,
            provers=self._answers.provers,
        )

    async def _headers(self, query: ledgerapi.HeaderQuery) -> ledgerapi.HeaderList:
        check_range(query.first, query.count, ledgerapi.HEADERS_AT_ONCE)
        return ledgerapi.HeaderList(self._keeper.store.headers_from(query.first, query.count))

    async def _network(self, _: Empty) -> ledgerapi.NetworkInfo:
        alarm = self._keeper.alarm or self._hub.clock.warning()
        return ledgerapi.NetworkInfo(encode_network(self._keeper.document), alarm)

    async def _service_info(self, _: Empty) -> ledgerapi.ServicesInfo:
        return ledgerapi.ServicesInfo(explorer="", work="", workers=0, duty=100, hash_rate=0.0, miners=())

    async def _accept_tip(self, _: ledgerapi.KeyQuery) -> ledgerapi.LedgerStatus:
        raise UsageError(
            "a light daemon keeps no blocks of other chains: to follow another one, stop it, remove the directory light in "
            "its state directory, and let it sync from daemons whose chain you trust"
        )
