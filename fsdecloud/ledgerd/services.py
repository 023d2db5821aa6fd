"""What a ledger daemon does besides keeping its chain, as its settings say: mine, give out work, show pages.

Everything here runs in the trio thread. Not here: any of what these do (`mining`, `workserver`, `explorer`).
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Final

import trio

from fsdecloud.config import Paths
from fsdecloud.crypto import sign
from fsdecloud.ledgerd.explorer import Explorer
from fsdecloud.ledgerd.hub import Hub
from fsdecloud.ledgerd.keeper import Keeper
from fsdecloud.ledgerd.mining import Mining, mine_here
from fsdecloud.ledgerd.settings import Settings, ensure_token
from fsdecloud.ledgerd.workserver import MINERS_MAX, WorkServer
from fsdecloud.net.address import Address, format_endpoint, parse_endpoint
from fsdecloud.net.http import serve_pages
from fsdecloud.net.websocket import serve
from fsdecloud.types import PeerId
from fsdecloud.wire import ledgerapi, work

log = logging.getLogger(__name__)

_WILDCARDS: Final = ("0.0.0.0", "::")  # noqa: S104 - recognised here, not bound


class Services:
    """The daemon's services. `seed` is its Ed25519 seed: what is mined is paid to its key."""

    def __init__(self, paths: Paths, settings: Settings, keeper: Keeper, hub: Hub, seed: bytes) -> None:
        self._settings = settings
        self._seed = seed
        self._node = PeerId(sign.public_key(seed))
        mine = settings.mine if settings.mine is not None else not keeper.document.mine_when_idle
        self._mines_here = mine and settings.crew.workers > 0
        self.mining = Mining(keeper, self._node) if self._mines_here or settings.work else None
        """None when nobody mines with this daemon."""
        self._work = WorkServer(self.mining, ensure_token(paths)) if self.mining is not None and settings.work else None
        self._explorer = Explorer(keeper, hub, self.mining) if settings.explorer else None
        self._work_url = ""
        self._explorer_url = ""

    async def start(self, nursery: trio.Nursery, advertise: str) -> None:
        """Start what was asked for in `nursery`; `advertise` is the host name of this machine for others.

        Raises UsageError for an address that cannot be listened on.
        """
        if self.mining is not None:
            nursery.start_soon(self.mining.run)
            if self._mines_here:
                nursery.start_soon(mine_here, self.mining, self._settings.crew)
        if self._work is not None:
            host, port = parse_endpoint(self._settings.work)
            server = partial(
                serve, host, port, self._seed, work.SUBPROTOCOL, self._work.serve, connections_max=MINERS_MAX
            )
            taken: int = await nursery.start(server)
            self._work_url = str(Address(advertise if host in _WILDCARDS else host, taken, self._node))
            log.info("work for miners at %s", self._work_url)
        if self._explorer is not None:
            host, port = parse_endpoint(self._settings.explorer)
            pages = partial(serve_pages, host, port, self._explorer.answer, {"/live": self._explorer.live})
            taken = await nursery.start(pages)
            self._explorer_url = f"http://{format_endpoint(host, taken)}/"
            log.info("pages at %s", self._explorer_url)

    def info(self) -> ledgerapi.ServicesInfo:
        """Return what runs."""
        crew = self._settings.crew
        miners = () if self._work is None else self._work.miners()
        return ledgerapi.ServicesInfo(
            explorer=self._explorer_url,
            work=self._work_url,
            workers=crew.workers if self._mines_here else 0,
            duty=crew.duty,
            hash_rate=0.0 if self.mining is None else self.mining.hash_rate,
            miners=tuple(ledgerapi.Miner(m.name, m.remote, m.shares, m.blocks, m.hash_rate) for m in miners),
        )
