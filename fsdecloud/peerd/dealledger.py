"""What the ledger daemon says of a peer's deals, and what is sent to it.

Called only from the trio thread. What waits for a block is not sent again; what was lost on the way, or with a reorganised
block, does not wait any more and is sent anew: so there is nothing to remember. Amounts are in the smallest unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import trio

from fsdecloud import codec
from fsdecloud.contracts.inputs import Act, Depositing
from fsdecloud.contracts.machine import SEED_BLOCKS, Instance, challenge_seed
from fsdecloud.crypto import sign
from fsdecloud.errors import LedgerError
from fsdecloud.ledger.blocks import block_id, decode_header
from fsdecloud.ledger.transactions import Bond, Input, Transaction, Transfer, decode_tx, fee_of, sign_input, signers
from fsdecloud.net.unix import RpcConnection
from fsdecloud.wire.agentapi import Empty
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
    LedgerStatus,
    SubmitTx,
    TxResult,
)

CALL_TIMEOUT: Final = 20.0

TX_SIZE: Final = 1024
"""Bytes of an input besides the proof in it: two signatures, a revision and the sender's own."""


class NoMoney(LedgerError):
    """The peer's account does not have what a transaction takes."""


@dataclass(frozen=True, slots=True)
class Funds:
    """What a peer's account has."""

    available: int
    """Without what its transactions that wait take."""
    nonce: int
    """Of its next transaction."""
    inputs: frozenset[bytes]
    """The contracts that inputs of it wait for."""


class DealLedger:
    """The ledger, as the deals of one peer need it, over one connection."""

    def __init__(self, connection: RpcConnection, network: bytes, seed: bytes) -> None:
        self._connection = connection
        self._network = network
        self._seed = seed
        self._key = sign.public_key(seed)
        self._sending = trio.Lock()

    @property
    def is_closed(self) -> bool:
        """Whether the connection has ended."""
        return self._connection.is_closed

    async def contracts(self, ids: Sequence[bytes]) -> tuple[int, dict[bytes, Instance]]:
        """Return the tip's height and those of the contracts that the chain has. What is asked in several steps is of the last
        tip that was seen, or of a newer one. Raises LedgerError, RemoteError, MalformedError, as all here."""
        found: dict[bytes, Instance] = {}
        if not ids:
            status = await self._connection.call("status", Empty(), LedgerStatus, timeout=CALL_TIMEOUT)
            return status.height, found
        height = 0
        for start in range(0, len(ids), KEYS_AT_ONCE):
            some = tuple(ids[start : start + KEYS_AT_ONCE])
            info = await self._connection.call("contracts", ContractsQuery(some), ContractsInfo, timeout=CALL_TIMEOUT)
            height = info.height if not start else min(height, info.height)
            found |= {one: codec.decode(data, Instance) for one, data in zip(some, info.contracts, strict=True) if data}
        return height, found

    async def funds(self) -> Funds:
        """Return what the peer's account has now."""
        info = await self._connection.call("accounts", AccountsQuery((self._key,)), AccountsInfo, timeout=CALL_TIMEOUT)
        (account,) = info.accounts
        waiting = [tx for tx in map(decode_tx, info.waiting) if any(key == self._key for key, _ in signers(tx))]
        inputs = frozenset(tx.contract for tx in waiting if isinstance(tx, Input))
        taken = sum(map(_taken, waiting))
        return Funds(max(account.balance - taken, 0), account.next_nonce, inputs)

    async def fee(self, size: int) -> int:
        """Return what a transaction of so many bytes should pay."""
        estimate = await self._connection.call("fee", FeeQuery(size), FeeEstimate, timeout=CALL_TIMEOUT)
        return estimate.fee

    async def send(self, contract: bytes, acts: tuple[Act, ...], size: int = 0) -> bool:
        """Give a contract an input, unless one of ours waits; return whether it was sent. `size` is that of the proof in it.

        Raises NoMoney, InvalidTransaction with the ledger's reason.
        """
        async with self._sending:  # the nonce is counted on from what waits
            funds = await self.funds()
            if contract in funds.inputs:
                return False
            fee = await self.fee(TX_SIZE + size)
            needed = fee + _deposited(acts)
            if funds.available < needed:
                raise NoMoney(f"{needed} are needed, and the peer's account has {funds.available}: pay something to it")
            tx = sign_input(self._network, self._seed, contract, acts, fee, funds.nonce)
            await self._connection.call("submit", SubmitTx(tx), TxResult, timeout=CALL_TIMEOUT)
            return True

    async def seed_of(self, contract: bytes, period: int, height: int) -> bytes | None:
        """Return the challenge of a period that is drawn from the blocks from `height` on, None until they are there."""
        query = HeaderQuery(height, SEED_BLOCKS)
        found = await self._connection.call("headers", query, HeaderList, timeout=CALL_TIMEOUT)
        if len(found.headers) < SEED_BLOCKS:
            return None
        return challenge_seed(contract, period, tuple(bytes(block_id(decode_header(data))) for data in found.headers))


def _deposited(acts: tuple[Act, ...]) -> int:
    return sum(act.amount for act in acts if isinstance(act, Depositing))


def _taken(tx: Transaction) -> int:
    """Return what a waiting transaction takes from its sender's account, at most."""
    amount = tx.amount if isinstance(tx, Transfer | Bond) else 0
    return fee_of(tx) + amount + (_deposited(tx.acts) if isinstance(tx, Input) else 0)
