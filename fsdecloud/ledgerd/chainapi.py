"""What local programs may ask a full and a light daemon alike (`wire.ledgerapi`), and how they hear of new tips.

Everything here runs in the trio thread.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Final

from fsdecloud.errors import FsdecloudError, UsageError
from fsdecloud.ledger.chain import Point
from fsdecloud.ledger.network import encode_network
from fsdecloud.ledgerd.conduct import is_valid
from fsdecloud.ledgerd.hub import Hub
from fsdecloud.ledgerd.keeper import Keeper
from fsdecloud.ledgerd.light import LightKeeper
from fsdecloud.net.unix import Handler, Methods, RpcConnection
from fsdecloud.wire import ledgerapi
from fsdecloud.wire.agentapi import Empty

_COUNT_MAX: Final = 256


class ChainApi(ABC):
    """Answers local callers. `methods_for` is for `net.unix.serve_unix`."""

    def __init__(self, keeper: Keeper | LightKeeper, hub: Hub) -> None:
        self._chain = keeper
        self._hub = hub
        self._watchers: set[RpcConnection] = set()
        keeper.on_tip.append(lambda _switch: self._notify(keeper.tip))

    def status(self) -> ledgerapi.LedgerStatus:
        """Return the daemon's view of the chain; each kind of daemon has more to say."""
        tip = self._chain.tip
        return ledgerapi.LedgerStatus(
            pid=os.getpid(),
            network=self._chain.network,
            name=self._chain.document.name,
            url=self._hub.url,
            height=tip.height,
            tip=tip.id,
            tip_time=tip.time,
            work=tip.work,
            mempool=len(self._chain.pool),
            mining=False,
            hash_rate=0.0,
            peers=self._hub.peers(),
        )

    @abstractmethod
    def handlers(self) -> Mapping[str, Handler]:
        """Return what this kind of daemon answers besides."""

    def methods_for(self, connection: RpcConnection) -> Methods:
        """Return what one connection may call."""

        async def watch(_: Empty) -> ledgerapi.LedgerStatus:
            self._watchers.add(connection)
            return self.status()

        common: dict[str, Handler] = {
            "status": (Empty, self._status),
            "watch": (Empty, watch),
            "headers": (ledgerapi.HeaderQuery, self._headers),
            "network": (Empty, self._network),
            "bans": (Empty, self._bans),
            "unban": (ledgerapi.BannedAddress, self._unban),
        }
        return common | dict(self.handlers()), {}

    async def _status(self, _: Empty) -> ledgerapi.LedgerStatus:
        return self.status()

    async def _headers(self, query: ledgerapi.HeaderQuery) -> ledgerapi.HeaderList:
        check_range(query.first, query.count, ledgerapi.HEADERS_AT_ONCE)
        return ledgerapi.HeaderList(self._chain.store.headers_from(query.first, query.count))

    async def _network(self, _: Empty) -> ledgerapi.NetworkInfo:
        alarm = self._chain.alarm or self._hub.clock.warning()
        return ledgerapi.NetworkInfo(encode_network(self._chain.document), alarm)

    async def _bans(self, _: Empty) -> ledgerapi.BanList:
        now, bans = self._chain.now(), self._hub.bans
        entries = sorted(bans.entries(), key=lambda entry: entry[1])
        return ledgerapi.BanList(tuple(ledgerapi.Ban(*entry) for entry in entries if is_valid(entry[1], now)))

    async def _unban(self, query: ledgerapi.BannedAddress) -> ledgerapi.BanList:
        if not self._hub.unban(query.address) and query.address:
            raise UsageError(f"{query.address} is not shut out: decloud ledger peers --bans lists who is")
        return await self._bans(Empty())

    def _notify(self, tip: Point) -> None:
        """Tell all who watch of a new tip, those that are gone or do not read left out."""
        notice = ledgerapi.TipNotice(tip.height, tip.id, tip.time)
        for connection in list(self._watchers):
            if connection.is_closed:
                self._watchers.discard(connection)
            else:
                try:
                    connection.notify_nowait("tip", notice)
                except FsdecloudError:  # it has ended, or stopped reading: nothing to tell it any more
                    self._watchers.discard(connection)


def check_key(key: bytes) -> None:
    """Raise UsageError unless it can be a key or an id."""
    if len(key) != 32:
        raise UsageError(f"a key or an id has 32 bytes, not {len(key)}")


def check_keys(keys: tuple[bytes, ...]) -> None:
    """Raise UsageError unless these are as many keys as are answered at once."""
    if not 1 <= len(keys) <= ledgerapi.KEYS_AT_ONCE:
        raise UsageError(f"ask for 1 to {ledgerapi.KEYS_AT_ONCE} keys at once, not {len(keys)}")
    for key in keys:
        check_key(key)


def check_range(first: int, count: int, most: int = _COUNT_MAX) -> None:
    """Raise UsageError for a range that is not answered at once."""
    if not 0 <= first < 1 << 53 or not 1 <= count <= most:
        raise UsageError(f"first must be 0 or more and count between 1 and {most}")
