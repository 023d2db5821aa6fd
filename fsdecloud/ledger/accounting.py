"""What transactions and blocks do to one account, as the lines of its history.

Pure. A block says by how much a balance changed (`store.accounts`), its transactions say why; what none of the account's own
explains (a stake that is paid back, what a contract pays) is a line of its own, so that the lines always add up to the balance.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from fsdecloud.contracts.inputs import Depositing
from fsdecloud.ledger.mempool import slot_of
from fsdecloud.ledger.transactions import Bond, Coinbase, Evidence, Input, Transaction, Transfer, fee_of, tx_id
from fsdecloud.types import TxId


class Why(StrEnum):
    """Why a balance changed."""

    MINED = "mined"
    SENT = "sent"
    RECEIVED = "received"
    SELF = "self"
    """From a key to itself: the fee alone is gone."""
    BONDED = "bonded"
    DEPOSITED = "deposited"
    """Into a contract."""
    FEE = "fee"
    """Of a transaction that moves no money itself; what a contract takes or pays for it is OTHER."""
    OTHER = "other"
    """Not by a transaction of this key: a stake that is paid back, or a contract that pays."""


@dataclass(frozen=True, slots=True)
class Line:
    """One change of one account."""

    key: bytes
    why: Why
    amount: int
    """What came (above zero) or went, without the fee; smallest unit."""
    fee: int
    """What the key paid for it."""
    other: bytes
    """The other side's key, b"" where there is none."""
    tx: TxId
    """b"" for OTHER."""
    height: int | None
    """None while it waits."""
    time: int
    """Of its block, seconds since 1970; 0 while it waits."""

    @property
    def change(self) -> int:
        """By how much the balance changes."""
        return self.amount - self.fee


def line_of(tx: Transaction, key: bytes, height: int | None = None, time: int = 0) -> Line | None:
    """Return what a transaction does to the account of `key`, None if nothing (or nothing but what a contract's rules say)."""
    fee = fee_of(tx)
    if isinstance(tx, Coinbase):
        if tx.recipient != key:
            return None
        return Line(key, Why.MINED, tx.amount, 0, b"", tx_id(tx), height, time)
    if isinstance(tx, Transfer):
        if tx.sender == key == tx.recipient:
            return Line(key, Why.SELF, 0, fee, key, tx_id(tx), height, time)
        if tx.sender == key:
            return Line(key, Why.SENT, -tx.amount, fee, tx.recipient, tx_id(tx), height, time)
        if tx.recipient == key:
            return Line(key, Why.RECEIVED, tx.amount, 0, tx.sender, tx_id(tx), height, time)
        return None
    if isinstance(tx, Bond):
        return Line(key, Why.BONDED, -tx.amount, fee, b"", tx_id(tx), height, time) if tx.peer == key else None
    if isinstance(tx, Input):
        paid = sum(act.amount for act in tx.acts if isinstance(act, Depositing))
        why = Why.DEPOSITED if paid else Why.FEE
        return Line(key, why, -paid, fee, b"", tx_id(tx), height, time) if tx.sender == key and paid + fee else None
    if fee and not isinstance(tx, Evidence) and slot_of(tx)[1] == key:  # a stake pays for evidence against it
        return Line(key, Why.FEE, 0, fee, b"", tx_id(tx), height, time)
    return None


def lines_of_block(
    key: bytes, change: int, transactions: Iterable[Transaction], height: int, time: int
) -> tuple[Line, ...]:
    """Return the lines of a block that changed the balance of `key` by `change`, in the order of its transactions, of which
    those that do nothing to the key may be left out."""
    lines = [line for tx in transactions if (line := line_of(tx, key, height, time)) is not None]
    rest = change - sum(line.change for line in lines)
    if rest:
        lines.append(Line(key, Why.OTHER, rest, 0, b"", TxId(b""), height, time))
    return tuple(lines)


def newest_first(lines: Sequence[Line]) -> list[Line]:
    """Return lines of several keys as one history: what waits, then by descending height."""
    return sorted(lines, key=lambda line: (line.height is not None, -(line.height or 0)))
