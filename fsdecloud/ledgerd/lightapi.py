"""What local programs may ask a light daemon: the same as a full one (`wire.ledgerapi`).

What headers do not say comes from `lightanswers`, with a proof; what neither gives (mining, another chain than the one with
the most work) is refused with what to do. Everything here runs in the trio thread.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from fsdecloud.errors import UsageError
from fsdecloud.ledgerd.chainapi import ChainApi
from fsdecloud.ledgerd.hub import Hub
from fsdecloud.ledgerd.light import LightKeeper
from fsdecloud.ledgerd.lightanswers import LightAnswers
from fsdecloud.net.unix import Handler
from fsdecloud.wire import ledgerapi
from fsdecloud.wire.agentapi import Empty


class LightApi(ChainApi):
    """Answers local callers of a light daemon."""

    def __init__(self, keeper: LightKeeper, hub: Hub, answers: LightAnswers) -> None:
        super().__init__(keeper, hub)
        self._keeper = keeper
        self._answers = answers

    def handlers(self) -> Mapping[str, Handler]:
        """Return what a light daemon answers besides."""
        return {
            "services": (Empty, self._service_info),
            "accept_tip": (ledgerapi.KeyQuery, self._accept_tip),
            "finality": (ledgerapi.FinalityQuery, self._finality),
            **self._answers.handlers(),
        }

    def status(self) -> ledgerapi.LedgerStatus:
        """Return the daemon's view of the chain."""
        return msgspec.structs.replace(super().status(), light=True, provers=self._answers.provers)

    async def _service_info(self, _: Empty) -> ledgerapi.ServicesInfo:
        return ledgerapi.ServicesInfo(explorer="", work="", workers=0, duty=100, hash_rate=0.0, miners=())

    async def _accept_tip(self, _: ledgerapi.KeyQuery) -> ledgerapi.LedgerStatus:
        raise UsageError(
            "a light daemon keeps no blocks of other chains: to follow another one, stop it, remove the directory light in "
            "its state directory, and let it sync from daemons whose chain you trust"
        )

    async def _finality(self, _: ledgerapi.FinalityQuery) -> ledgerapi.FinalityInfo:
        raise UsageError("a light daemon does not follow checkpoints and votes: run a full one")
