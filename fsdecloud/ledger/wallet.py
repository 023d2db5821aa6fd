"""What a wallet may spend, and which transfer a payment becomes.

Pure. A key's payments are numbered by its nonces. What it has paid and what is not in a block yet is spent already; what comes
to it can be spent once it is in a block (`mempool`). A waiting payment gives way to another one with its nonce and a fee
that is higher by the least fee: raised, redirected, or, paid to oneself, called off. Not here: keys (`crypto.wallet`), fees
(`fees`), signing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fsdecloud.crypto.wallet import address_of
from fsdecloud.errors import UsageError
from fsdecloud.ledger.accounting import Line, Why, line_of
from fsdecloud.ledger.network import AMOUNT_MAX
from fsdecloud.ledger.transactions import Transaction, Transfer, tx_id


@dataclass(frozen=True, slots=True)
class Funds:
    """What one key has; amounts in the smallest unit."""

    key: bytes
    confirmed: int
    """Balance in the best chain."""
    nonce: int
    """Its payments with smaller numbers are in the best chain."""
    next_nonce: int
    """Number of its next payment, after those that wait."""
    outgoing: int
    """What those that wait take, fees among it, also those to the key itself."""
    incoming: int
    """What waits and will come to it."""
    waiting: tuple[Line, ...]

    @property
    def available(self) -> int:
        """What it may spend now."""
        return max(self.confirmed - self.outgoing, 0)

    @property
    def is_used(self) -> bool:
        """Whether the ledger knows the key, or is about to."""
        return bool(self.confirmed or self.nonce or self.waiting)


@dataclass(frozen=True, slots=True)
class PaymentPlan:
    """A transfer to sign."""

    sender: bytes
    recipient: bytes
    amount: int
    fee: int
    nonce: int
    left: int
    """What the sender can spend after it."""


def funds_of(key: bytes, balance: int, nonce: int, next_nonce: int, waiting: Iterable[Transaction]) -> Funds:
    """Return what a key has: its account in the best chain, and what of `waiting` (any transactions) is its own.

    What a key pays to itself is on its way like anything else: the mempool lets nobody spend what is not in a block.
    """
    lines: list[Line] = []
    outgoing = incoming = 0
    for tx in waiting:
        line = line_of(tx, key)
        if line is None:
            continue
        lines.append(line)
        to_itself = tx.amount if line.why == Why.SELF and isinstance(tx, Transfer) else 0
        outgoing += max(-line.change, 0) + to_itself
        incoming += max(line.change, 0) + to_itself
    return Funds(key, balance, nonce, next_nonce, outgoing, incoming, tuple(lines))


def plan_payment(
    funds: Funds, recipient: bytes, amount: int | None, fee: int, minimum_fee: int, *, replaces: Transfer | None = None
) -> PaymentPlan:
    """Return the transfer of `amount` (None: all there is) to `recipient`, in the place of the waiting one that it `replaces`.

    Raises UsageError that says what there is, what is on its way, and what to do.
    """
    available, nonce = funds.available, funds.next_nonce
    if fee < minimum_fee:
        raise UsageError(f"a payment costs at least {minimum_fee} in this network, not {fee}")
    if replaces is not None:
        if replaces.sender != funds.key or replaces.nonce < funds.nonce:
            raise UsageError(f"transaction {tx_id(replaces).hex()} does not wait any more: nothing can take its place")
        least = replaces.fee + max(minimum_fee, 1)
        if fee < least:
            raise UsageError(
                f"to take the place of a payment with the fee {replaces.fee} costs at least {least}: --fee {least}"
            )
        available, nonce = available + replaces.amount + replaces.fee, replaces.nonce
    if amount is None:
        amount = available - fee
    if amount < 1 or amount + fee > available:
        raise UsageError(_lack(funds, available, max(amount, 1), fee))
    if amount > AMOUNT_MAX:
        raise UsageError(f"no payment moves more than {AMOUNT_MAX}")
    return PaymentPlan(funds.key, recipient, amount, fee, nonce, available - amount - fee)


def _lack(funds: Funds, available: int, amount: int, fee: int) -> str:
    """Say what lacks for a payment."""
    parts = [f"{address_of(funds.key)} can spend {available}, and {amount} with the fee {fee} are {amount + fee}"]
    if available != funds.confirmed:
        parts.append(f"it has {funds.confirmed} in the ledger, of which {funds.outgoing} are on their way")
    if funds.incoming:
        parts.append(f"{funds.incoming} are on their way to it: wait until a block has them")
    else:
        parts.append("have somebody pay to it, or pay less")
    return "; ".join(parts)
