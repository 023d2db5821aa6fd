"""What a full daemon answers about accounts: what keys have, how their balances came to be, what a payment should cost.

Everything here runs in the trio thread but for reading blocks. Each answer is of one tip: it and the mempool change together
(`keeper`). Not here: what a light daemon answers (`lightanswers`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import trio

from fsdecloud.errors import UsageError
from fsdecloud.ledger.accounting import line_of
from fsdecloud.ledger.blocks import decode_block, decode_header
from fsdecloud.ledger.fees import BLOCKS_BACK, estimate_fee, price_mark
from fsdecloud.ledger.transactions import decode_tx
from fsdecloud.ledgerd.chainapi import check_key, check_keys, check_range
from fsdecloud.ledgerd.keeper import Keeper
from fsdecloud.limits import MIB, TX_MAX
from fsdecloud.net.unix import Handler
from fsdecloud.types import BlockId
from fsdecloud.wire import ledgerapi

BLOCKS_READ: Final = 4 * MIB
"""Bytes of blocks that are read for one page of a history."""


class AccountAnswers:
    """Answers for `api`; `require_state` raises LedgerUnavailable while there is no state to answer from."""

    def __init__(self, keeper: Keeper, require_state: Callable[[], None]) -> None:
        self._keeper = keeper
        self._require_state = require_state
        self._marks: OrderedDict[BlockId, int] = OrderedDict()
        """What one had to pay in the last blocks: each is read once."""
        self._threads = trio.CapacityLimiter(1)
        """One reader of blocks at a time, as for the pages."""

    def handlers(self) -> dict[str, Handler]:
        """Return what is answered here."""
        return {
            "accounts": (ledgerapi.AccountsQuery, self._accounts),
            "account_history": (ledgerapi.HistoryQuery, self._history),
            "fee": (ledgerapi.FeeQuery, self._fee),
        }

    async def _accounts(self, query: ledgerapi.AccountsQuery) -> ledgerapi.AccountsInfo:
        check_keys(query.keys)
        self._require_state()
        state, pool, tip = self._keeper.state(), self._keeper.pool, self._keeper.tip
        found: list[ledgerapi.AccountState] = []
        for key in query.keys:
            account = state.account(key)
            found.append(ledgerapi.AccountState(account.balance, account.nonce, pool.next_nonce(key)))
        waiting = pool.naming(frozenset(query.keys))
        return ledgerapi.AccountsInfo(tip.height, tip.id, tip.time, tuple(found), waiting, is_light=False)

    async def _history(self, query: ledgerapi.HistoryQuery) -> ledgerapi.HistoryPage:
        check_key(query.key)
        check_range(query.below, query.count)
        self._require_state()
        return await trio.to_thread.run_sync(self._read_history, query, limiter=self._threads)

    def _read_history(self, query: ledgerapi.HistoryQuery) -> ledgerapi.HistoryPage:
        """Read one page. Worker thread."""
        store = self._keeper.store
        found = store.account_blocks(query.key, query.below, query.count, BLOCKS_READ)
        blocks: list[ledgerapi.AccountBlock] = []
        size = 0
        for height, change, header, data in found:
            txs = tuple(tx for tx in decode_block(data).transactions if _is_of(tx, query.key))
            size += sum(map(len, txs))
            if blocks and size > MIB:
                break
            blocks.append(ledgerapi.AccountBlock(height, decode_header(header).time, change, txs))
        first = store.accounts_first()
        below = blocks[-1].height if blocks else 0
        return ledgerapi.HistoryPage(tuple(blocks), below if below > first else 0, first)

    async def _fee(self, query: ledgerapi.FeeQuery) -> ledgerapi.FeeEstimate:
        if not 1 <= query.size <= TX_MAX:
            raise UsageError(f"a transaction has 1 to {TX_MAX} bytes, not {query.size}")
        marks = await trio.to_thread.run_sync(self._read_marks, self._keeper.tip.height, limiter=self._threads)
        keeper = self._keeper
        prices = keeper.pool.prices()
        fee = estimate_fee(keeper.document, query.size, prices, marks)
        return ledgerapi.FeeEstimate(fee, keeper.document.minimum_fee, len(prices))

    def _read_marks(self, height: int) -> list[int]:
        """Return what one had to pay in each of the last blocks. Worker thread, one at a time."""
        store = self._keeper.store
        found: list[int] = []
        for number in range(max(1, height - BLOCKS_BACK + 1), height + 1):
            identity = store.best_at(number)
            if identity is None:
                continue
            if identity not in self._marks:
                data = store.block(identity)
                if data is None:
                    continue
                self._marks[identity] = price_mark(store.document, decode_block(data), len(data))
            found.append(self._marks[identity])
        while len(self._marks) > 2 * BLOCKS_BACK:
            self._marks.popitem(last=False)
        return found


def _is_of(data: bytes, key: bytes) -> bool:
    """Tell whether an encoded transaction does something to the account of `key`; most are known by not naming it."""
    return key in data and line_of(decode_tx(data), key) is not None
