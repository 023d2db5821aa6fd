"""What only the driver can sign: that the wallet pays for deals, within the budget.

The agent makes the deals and has their keys; the wallet's secret stays here. It gets a transfer to the key of the deals with
one peer, and to nobody else, and within a month of transfers no more than LIMIT times the budget: a deal and the one that
follows it are both paid for then. What peers have not earned comes back, and the agent has that recorded, too.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import trio

from fsdecloud.contracts.deal import MONTH
from fsdecloud.crypto import sign
from fsdecloud.crypto.keys import VolumeKeys, deal_seed
from fsdecloud.crypto.wallet import OWN, wallet_key, wallet_seed
from fsdecloud.errors import LocalProtocolError, UsageError
from fsdecloud.ledger.transactions import Transfer, decode_tx, sign_transfer, tx_id
from fsdecloud.net.unix import Handler
from fsdecloud.store.payments import Payment, PaymentStore
from fsdecloud.types import PeerId
from fsdecloud.wire.agentapi import Empty, NotePayment, SignedPayment, SignPayment

LIMIT: Final = 2

FEE_SHARE: Final = 4
"""A fee is at most this part of the budget: an agent that lies about fees burns no more at once."""

PROGRAM: Final = b"deal"
"""Under which these payments stand in the volume's log."""


class Spending:
    """Answers the agent's requests for money."""

    def __init__(self, keys: VolumeKeys, network: bytes, store: PaymentStore, budget: Callable[[], int]) -> None:
        self._keys = keys
        self._network = network
        self._store = store
        self._budget = budget
        self._lock = trio.Lock()
        self.pay: Callable[[Payment], Awaitable[None]] = self._refuse
        """Notes a payment durably (`driver.payments`); set once there is something to record it."""

    def methods(self) -> Mapping[str, Handler]:
        """Return what the agent may call."""
        return {"sign_payment": (SignPayment, self._sign), "note_payment": (NotePayment, self._note)}

    @property
    def key(self) -> bytes:
        """The public key that pays."""
        return wallet_key(self._keys.wallet_secret, OWN)

    async def _sign(self, request: SignPayment) -> SignedPayment:
        budget = self._budget()
        async with self._lock:
            spent = await trio.to_thread.run_sync(self._spent, request)
            cost = request.amount + request.fee
            if spent + cost > LIMIT * budget or request.fee > max(budget // FEE_SHARE, 1):
                raise UsageError(
                    f"a deal needs {cost}, and {spent} went to deals within a month: the budget of {budget} a month allows "
                    f"{LIMIT * budget} while deals are renewed; raise it (decloud budget) or wait"
                )
            tx = sign_transfer(
                self._network,
                wallet_seed(self._keys.wallet_secret, OWN),
                self._deal_key(request.peer),
                request.amount,
                request.fee,
                request.nonce,
            )
            await self.pay(_payment(tx))
        return SignedPayment(tx)

    async def _note(self, request: NotePayment) -> Empty:
        tx = decode_tx(request.tx)
        is_refund = isinstance(tx, Transfer) and tx.recipient == self.key and tx.sender == self._deal_key(request.peer)
        if not is_refund:
            raise LocalProtocolError("that is no transfer from a deal's key to the wallet")
        await self.pay(_payment(request.tx))
        return Empty()

    async def _refuse(self, _payment: Payment) -> None:
        raise LocalProtocolError("nothing is paid before the volume is open")

    def _deal_key(self, peer: PeerId) -> bytes:
        return sign.public_key(deal_seed(self._keys.deal_secret, peer))

    def _spent(self, request: SignPayment) -> int:
        """Return what went to deals within a month, less what came back. Worker thread.

        Of several with one nonce the ledger takes one: the latest counts, and what the new one replaces does not.
        """
        since = time.time_ns() - MONTH * 10**9
        sent: dict[int, int] = {}
        back = 0
        for payment in self._store.all():
            if payment.program != PROGRAM or payment.time < since:
                continue
            tx = decode_tx(payment.tx)
            if not isinstance(tx, Transfer):
                continue
            if tx.sender == self.key:
                sent[tx.nonce] = tx.amount + tx.fee
            else:
                back += tx.amount
        sent.pop(request.nonce, None)
        return max(sum(sent.values()) - back, 0)


def _payment(tx: bytes) -> Payment:
    return Payment(1, time.time_ns(), tx_id(decode_tx(tx)), tx, 0, PROGRAM)
