"""What a payment's operation record says of it.

Pure. A record of kind PAYMENT has the amount as its `amount`, and these words as its second path. Not here: how a payment comes
to be recorded (`driver.payments`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fsdecloud.crypto.wallet import address_of


@dataclass(frozen=True, slots=True)
class PaymentWords:
    """The recipient's account address, the fee, and the transaction's id in hexadecimal digits."""

    recipient: str
    fee: int
    tx: str


def payment_words(recipient: bytes, fee: int, tx: bytes) -> bytes:
    """Return the words of a record: `recipient` is a public key, `tx` a transaction id."""
    return f"{address_of(recipient)} fee {fee} transaction {tx.hex()}".encode()


def read_payment_words(words: bytes) -> PaymentWords | None:
    """Return what `payment_words` put in, None for anything else."""
    found = re.fullmatch(rb"([0-9a-z]{1,90}) fee ([0-9]{1,20}) transaction ([0-9a-f]{64})", words)
    return None if found is None else PaymentWords(found[1].decode(), int(found[2]), found[3].decode())
