"""What the ledger says of the deals with one peer, and what is sent to it.

Called only from the trio thread. A look is one tip's: contracts, the account that pays for them, and what of it waits. What
waits is not sent again; what was lost on the way, or with a reorganised block, does not wait any more and is sent anew: so
there is nothing to remember. Amounts are in the smallest unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fsdecloud import codec
from fsdecloud.agent.ledgerlink import LedgerLink
from fsdecloud.contracts.inputs import Act
from fsdecloud.contracts.machine import SEED_BLOCKS, Instance, challenge_seed
from fsdecloud.crypto import sign
from fsdecloud.ledger.blocks import block_id, decode_header
from fsdecloud.ledger.transactions import (
    Deploy,
    Input,
    Transaction,
    Transfer,
    decode_tx,
    fee_of,
    sign_input,
)
from fsdecloud.ledger.wallet import funds_of
from fsdecloud.types import TxId
from fsdecloud.wire.ledgerapi import (
    KEYS_AT_ONCE,
    AccountsInfo,
    AccountsQuery,
    ContractsInfo,
    ContractsQuery,
    FeeEstimate,
    FeeQuery,
    HeaderList,
    HeaderQuery,
    HistoryPage,
    HistoryQuery,
    SubmitTx,
    TxFound,
    TxQuery,
    TxResult,
)

HISTORY: Final = 64
"""Blocks of one page of an account's history."""

HISTORY_PAGES: Final = 16
"""Pages that are looked through for contracts: years of deals with one peer."""

TX_SIZE: Final = 2048
"""Bytes that fees are estimated for: a contract is formed with less, and a proof is the peer's to pay for."""


@dataclass(slots=True)
class Account:
    """A key's money and what it sends next. `nonce` and `available` go on as transactions are sent."""

    key: bytes
    available: int
    incoming: int
    nonce: int
    waiting: tuple[Transaction, ...]


@dataclass(slots=True)
class Look:
    """The deals with one peer after one tip."""

    height: int
    """Of the next block."""
    contracts: dict[bytes, Instance]
    """Those that the chain has."""
    account: Account
    fee: int
    """For a transaction of TX_SIZE bytes."""


class DealLedger:
    """The ledger, as deals need it."""

    def __init__(self, link: LedgerLink, network: bytes) -> None:
        self._link = link
        self._network = network

    async def look(self, key: bytes, contracts: Sequence[bytes]) -> Look:
        """Return how a deal key's account and these contracts are. Raises LedgerError, RemoteError."""
        found: dict[bytes, Instance] = {}
        for start in range(0, len(contracts), KEYS_AT_ONCE):
            some = tuple(contracts[start : start + KEYS_AT_ONCE])
            info = await self._link.call("contracts", ContractsQuery(some), ContractsInfo)
            found |= {
                name: codec.decode(data, Instance) for name, data in zip(some, info.contracts, strict=True) if data
            }
        height, account = await self._account(key)
        estimate = await self._link.call("fee", FeeQuery(TX_SIZE), FeeEstimate)
        return Look(height + 1, found, account, estimate.fee)

    async def account(self, key: bytes) -> Account:
        """Return what a key can spend now. Raises as `look`."""
        return (await self._account(key))[1]

    async def _account(self, key: bytes) -> tuple[int, Account]:
        info = await self._link.call("accounts", AccountsQuery((key,)), AccountsInfo)
        (state,) = info.accounts
        waiting = tuple(map(decode_tx, info.waiting))
        funds = funds_of(key, state.balance, state.nonce, state.next_nonce, waiting)
        own = tuple(tx for tx in waiting if isinstance(tx, Transfer | Deploy | Input) and tx.sender == key)
        return info.height, Account(key, funds.available, funds.incoming, state.next_nonce, own)

    async def submit(self, tx: bytes, account: Account | None = None) -> None:
        """Send a transaction; `account` goes on by it. Raises InvalidTransaction with the reason; as `look`."""
        await self._link.call("submit", SubmitTx(tx), TxResult)
        decoded = decode_tx(tx)
        if account is not None and isinstance(decoded, Transfer | Deploy | Input) and decoded.sender == account.key:
            account.nonce = max(account.nonce, decoded.nonce + 1)
            account.available -= fee_of(decoded) + (decoded.amount if isinstance(decoded, Transfer) else 0)
            account.waiting += (decoded,)

    async def send(self, seed: bytes, contract: bytes, acts: tuple[Act, ...], look: Look) -> bool:
        """Give a contract an input, unless one from this key waits. Return whether it was sent. Raises as `submit`."""
        if any(isinstance(tx, Input) and tx.contract == contract for tx in look.account.waiting):
            return False
        assert sign.public_key(seed) == look.account.key
        await self.submit(sign_input(self._network, seed, contract, acts, look.fee, look.account.nonce), look.account)
        return True

    async def find(self, contract: bytes) -> TxFound:
        """Return the transaction that begins a contract, where it is. Raises as `look`."""
        return await self._link.call("tx", TxQuery(TxId(contract)), TxFound)

    async def seed_of(self, contract: bytes, period: int, height: int) -> bytes | None:
        """Return the challenge of a period that is drawn from the blocks from `height` on, None until they are there."""
        found = await self._link.call("headers", HeaderQuery(height, SEED_BLOCKS), HeaderList)
        if len(found.headers) < SEED_BLOCKS:
            return None
        return challenge_seed(contract, period, tuple(bytes(block_id(decode_header(data))) for data in found.headers))

    async def deployed_by(self, key: bytes) -> list[bytes]:
        """Return the encoded transactions by which a key began contracts, the newest first. Raises as `look`; UsageError from
        a light daemon, which knows no history."""
        found = []
        below = 1 << 52
        for _ in range(HISTORY_PAGES):
            page = await self._link.call("account_history", HistoryQuery(key, below, HISTORY), HistoryPage)
            for block in page.blocks:
                for data in reversed(block.txs):
                    tx = decode_tx(data)
                    if isinstance(tx, Deploy) and tx.sender == key:
                        found.append(data)
            below = page.below
            if not below:
                break
        return found
