"""How a command submits a signed transaction to this home's ledger daemon, and what it says when that is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from fsdecloud.cli import client, network
from fsdecloud.config import Paths
from fsdecloud.errors import InvalidTransaction, LedgerUnavailable, RemoteTimeout, UsageError
from fsdecloud.wire.agentapi import Empty
from fsdecloud.wire.ledgerapi import FeeEstimate, FeeQuery, LedgerStatus, SubmitTx, TxResult

ADVICE: Final = {
    "NotEnoughMoney": "pay to it first, from a wallet that has something: decloud wallet send {address} AMOUNT",
    "NotRegistered": "run it, and wait until decloud peer status shows it in the ledger; a peer that leaves has no capacity",
    "StakeLocked": "decloud ledger finality shows until when",
    "NotBonded": "decloud ledger bond AMOUNT gives it one",
    "AmountOutOfRange": "decloud ledger show-network shows the bounds",
    "WrongNonce": "something else of this key was submitted in this moment: try again",
    "Conflict": "something else of this key is waiting: try again after the next block, or pay a higher fee in its place",
    "PoolFull": "try again after the next block, or with a higher fee",
}
"""What to do, by the reason for which the ledger refuses."""


class Refused(UsageError):
    """The ledger refuses a transaction; `reason` is its word for why."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@contextmanager
def open_ledger(paths: Paths, network_id: bytes, who: str) -> Iterator[client.Client]:
    """Connect to this home's ledger daemon for the body.

    Raises LedgerUnavailable when none runs or answers in time, UsageError when it is of another network than `who`.
    """
    network.require_ledger(paths)
    try:
        with client.Client(paths.socket("ledger"), error=LedgerUnavailable) as ledger:
            if ledger.call("status", Empty(), LedgerStatus).network != network_id:
                raise UsageError(f"{who} is of another network than the ledger daemon of this home")
            yield ledger
    except RemoteTimeout as exc:
        raise LedgerUnavailable(str(exc)) from exc


def submit(ledger: client.Client, data: bytes, who: str, key: bytes) -> TxResult:
    """Submit an encoded transaction that `key` pays for. Raises Refused with what to do, LedgerUnavailable."""
    try:
        return ledger.call("submit", SubmitTx(data), TxResult)
    except InvalidTransaction as exc:
        from fsdecloud.crypto.wallet import address_of

        reason = str(exc).partition(":")[0]
        advice = f"; {ADVICE[reason].format(address=address_of(key))}" if reason in ADVICE else ""
        raise Refused(f"the ledger refuses it for {who}: {exc}{advice}", reason) from exc


def estimate(ledger: client.Client, size: int) -> FeeEstimate:
    """Return what a transaction of `size` bytes should pay."""
    return ledger.call("fee", FeeQuery(size), FeeEstimate)
