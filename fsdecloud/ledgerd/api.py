"""What local programs may ask this daemon (`wire.ledgerapi`, `net.unix`).

Everything here runs in the trio thread. The reason of a refused transaction or block travels in its text: the ledger's own
error classes stay within the ledger.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from fsdecloud import codec
from fsdecloud.errors import BlockPruned, InvalidBlock, InvalidTransaction, LedgerUnavailable, UsageError
from fsdecloud.ledger.contracting import contract_of
from fsdecloud.ledgerd.accounts import AccountAnswers
from fsdecloud.ledgerd.chainapi import ChainApi, check_key, check_keys, check_range
from fsdecloud.ledgerd.finality import answer_finality
from fsdecloud.ledgerd.hub import Hub
from fsdecloud.ledgerd.keeper import Keeper
from fsdecloud.ledgerd.services import Services
from fsdecloud.ledgerd.snapshot import read_progress
from fsdecloud.limits import MIB
from fsdecloud.net.unix import Handler
from fsdecloud.types import BlockId
from fsdecloud.wire import ledgerapi
from fsdecloud.wire.agentapi import Empty, Registry, RegistryPeer


class LocalApi(ChainApi):
    """Answers local callers of a full daemon."""

    def __init__(self, keeper: Keeper, hub: Hub, services: Services) -> None:
        super().__init__(keeper, hub)
        self._keeper = keeper
        self._services = services
        self._accounts = AccountAnswers(keeper, self._require_state)

    def handlers(self) -> Mapping[str, Handler]:
        """Return what a full daemon answers besides."""
        return {
            "submit": (ledgerapi.SubmitTx, self._submit),
            "tx": (ledgerapi.TxQuery, self._tx),
            "account": (ledgerapi.KeyQuery, self._account),
            **self._accounts.handlers(),
            "contracts": (ledgerapi.ContractsQuery, self._contracts),
            "volume": (ledgerapi.KeyQuery, self._volume),
            "anchors": (ledgerapi.AnchorQuery, self._anchors),
            "blocks": (ledgerapi.BlockQuery, self._blocks),
            "registry": (Empty, self._registry),
            "finality": (ledgerapi.FinalityQuery, self._finality),
            "services": (Empty, self._service_info),
            "accept_tip": (ledgerapi.KeyQuery, self._accept_tip),
        }

    def status(self) -> ledgerapi.LedgerStatus:
        """Return the daemon's view of the chain."""
        mining = self._services.mining
        return msgspec.structs.replace(
            super().status(),
            mining=mining is not None and mining.is_busy,
            hash_rate=0.0 if mining is None else mining.hash_rate,
            history=self._keeper.store.history_first(),
            snapshot=read_progress(self._keeper.store, self._hub.sync.snapshot),
        )

    def _require_state(self) -> None:
        """Raise LedgerUnavailable while there is no state to answer from."""
        if self._keeper.needs_snapshot:
            raise LedgerUnavailable(
                "the ledger daemon is fetching its first state from others, and knows nothing before that: "
                "`decloud ledger status` says how far it is"
            )

    def _require_executed(self) -> None:
        """Raise LedgerUnavailable while blocks before a snapshot are not executed: a vote says that its voter verified all."""
        mark = self._keeper.store.snapshot()
        if mark is not None and (mark.fault or mark.verified < mark.pivot):
            raise LedgerUnavailable(
                "nobody votes by this ledger daemon until it has executed the blocks before its snapshot: "
                "`decloud ledger status` says how far it is"
            )

    def _require_history(self, first: int, what: str) -> None:
        """Raise LedgerUnavailable when the blocks from `first` on are not all here yet; `what` may be in those that are not."""
        self._require_state()
        known = self._keeper.store.history_first()
        if first < known:
            raise LedgerUnavailable(
                f"{what}: the blocks before {known} are still being fetched; `decloud ledger status` says how far that is"
            )

    # ---- handlers --------------------------------------------------------------------------------------------------
    async def _submit(self, query: ledgerapi.SubmitTx) -> ledgerapi.TxResult:
        self._require_state()
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
        waiting = self._keeper.pool.get(query.id)
        if waiting is None:
            self._require_history(1, f"transaction {query.id.hex()} is not known yet")
        return ledgerapi.TxFound(waiting or b"", None, 0, 0)

    async def _account(self, query: ledgerapi.KeyQuery) -> ledgerapi.Account:
        check_key(query.key)
        self._require_state()
        balance = self._keeper.state().account(query.key).balance
        return ledgerapi.Account(balance, self._keeper.pool.next_nonce(query.key))

    async def _contracts(self, query: ledgerapi.ContractsQuery) -> ledgerapi.ContractsInfo:
        check_keys(query.ids)
        self._require_state()
        state, tip = self._keeper.state(), self._keeper.tip
        found = tuple(contract_of(state, contract) for contract in query.ids)
        encoded = tuple(b"" if one is None else codec.encode(one.instance) for one in found)
        return ledgerapi.ContractsInfo(tip.height, tip.id, encoded)

    async def _volume(self, query: ledgerapi.KeyQuery) -> ledgerapi.VolumeAnchor:
        check_key(query.key)
        self._require_state()
        head = self._keeper.state().volume(query.key)
        found = None if head is None else self._keeper.store.find_tx(head.tx)
        if head is not None and found is None:
            self._require_history(head.height, f"the volume's latest anchor is in block {head.height}")
        return ledgerapi.VolumeAnchor(b"", -1) if found is None else ledgerapi.VolumeAnchor(found[0], found[1])

    async def _anchors(self, query: ledgerapi.AnchorQuery) -> ledgerapi.AnchorList:
        check_key(query.key)
        check_range(query.first, query.count)
        self._require_state()
        found = self._keeper.store.anchors(query.key, query.first, query.count)
        if not found:
            head = self._keeper.state().volume(query.key)
            if head is not None and query.first <= head.sequence:
                self._require_history(1, f"anchor {max(1, query.first)} of the volume is in an older block")
                raise self._pruned(f"anchor {max(query.first, 1)} of the volume")
        return ledgerapi.AnchorList(tuple(ledgerapi.VolumeAnchor(data, height) for data, height in found))

    async def _blocks(self, query: ledgerapi.BlockQuery) -> ledgerapi.BlockList:
        check_range(query.first, query.count)
        self._require_history(max(1, query.first), f"block {max(1, query.first)} is not here yet")
        blocks = self._keeper.store.blocks_from(query.first, query.count, MIB)
        if not blocks and query.first < min(self._keeper.store.first_body(), self._keeper.tip.height):
            raise self._pruned(f"block {max(query.first, 1)}")
        return ledgerapi.BlockList(blocks)

    def _pruned(self, what: str) -> BlockPruned:
        return BlockPruned(
            f"this ledger daemon has dropped {what}: it keeps the bodies of blocks from {self._keeper.store.first_body()} on"
            " (--prune); a daemon that keeps all, or a light one connected to such a one, can tell"
        )

    async def _registry(self, _: Empty) -> Registry:
        self._require_state()
        operators = self._keeper.state().operators()
        return Registry(
            tuple(
                RegistryPeer(peer, r.url, r.capacity, r.sequence, operators.get(peer, b""), r.price)
                for peer, r in self._keeper.registry()
            )
        )

    async def _finality(self, query: ledgerapi.FinalityQuery) -> ledgerapi.FinalityInfo:
        self._require_state()
        if query.peer:
            check_key(query.peer)
            self._require_executed()
        return answer_finality(self._keeper, query)

    async def _service_info(self, _: Empty) -> ledgerapi.ServicesInfo:
        return self._services.info()

    async def _accept_tip(self, query: ledgerapi.KeyQuery) -> ledgerapi.LedgerStatus:
        check_key(query.key)
        try:
            await self._keeper.accept_tip(BlockId(query.key))
        except InvalidBlock as exc:
            raise UsageError(str(exc)) from exc
        return self.status()
