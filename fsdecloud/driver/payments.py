"""Every payment of the volume's wallet becomes an operation record of the volume.

Payments are noted by whoever makes them (`store.payments`), mounted or not. `run` records what it finds: at the start, when
told to look, and now and then. In one transaction a record becomes durable and the volume remembers whose it is; then the note
is moved away: a crash at any moment loses no payment and records none twice. Called only
from the event loop; files are read and moved in worker threads.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

import trio

from fsdecloud.crypto.wallet import wallet_key
from fsdecloud.driver.committer import Committer
from fsdecloud.driver.core import Core
from fsdecloud.driver.recorder import Caller
from fsdecloud.errors import FsdecloudError, InvalidTransaction, StoreError, StoreLocked, UsageError
from fsdecloud.fs.keys import ROOT
from fsdecloud.fs.payment import payment_words
from fsdecloud.fs.records import Operation
from fsdecloud.ledger.transactions import Transfer, decode_tx
from fsdecloud.store.payments import Payment, PaymentStore
from fsdecloud.wire.agentapi import Empty
from fsdecloud.wire.controlapi import WALLET_KEYS_AT_ONCE, PaymentList, WalletKeys, WalletQuery

log = logging.getLogger(__name__)

LOOK_EVERY: Final = 60.0
"""Seconds between two looks for payments that nobody told us of: who made them was killed."""

BUSY_PAUSE: Final = 1.0
"""Seconds until the next look while somebody is just paying."""

AT_ONCE: Final = 256
"""Payments recorded in one transaction: their ids stand in the volume's meta."""

LISTED_MAX: Final = 1024
"""Payments of one `PaymentList`, the newest."""


class Payments:
    """Records the payments of one volume."""

    def __init__(self, core: Core, store: PaymentStore, committer: Committer) -> None:
        self._core = core
        self._store = store
        self._committer = committer
        self._wake = trio.Event()
        self._lock = trio.Lock()

    async def pay(self, payment: Payment) -> None:
        """Note a payment durably and have it recorded; the caller submits it to the ledger afterwards.

        For what pays within the driver. Raises StoreError: nothing may be submitted then.
        """
        await trio.to_thread.run_sync(self._store.add, payment)
        self._wake.set()

    async def run(self) -> None:
        """Record what is noted until cancelled."""
        while True:
            self._wake = trio.Event()
            pause = LOOK_EVERY
            try:
                if await self.record_noted() == AT_ONCE:
                    continue
            except StoreLocked:
                pause = BUSY_PAUSE
            except FsdecloudError as exc:
                log.warning("payments are recorded later: %s", exc)
            with trio.move_on_after(pause):
                await self._wake.wait()

    async def record_noted(self) -> int:
        """Record the payments that are noted and not recorded, durably; return how many.

        Raises StoreLocked while somebody is just paying, StoreError, NoSpace.
        """
        if self._core.read_only:
            return 0
        async with self._lock:
            found = (await trio.to_thread.run_sync(self._unrecorded))[:AT_ONCE]
            if not found:
                return 0
            # A crash may have come between the records and their notes.
            known = self._committer.meta.payments
            fresh = [(payment, tx) for payment, tx in found if payment.id not in known]
            identities = tuple(payment.id for payment, _ in found)
            await self._committer.save_payments(identities, lambda: self._record(fresh))
            for identity in identities:
                await trio.to_thread.run_sync(self._store.mark_recorded, identity)
            return len(found)

    # ---- the control socket ----------------------------------------------------------------------------------------
    async def answer_record(self, _: Empty) -> Empty:
        """Record at once what a command has noted, or soon if another one is just paying."""
        try:
            await self.record_noted()
        except StoreLocked:
            self._wake.set()
        return Empty()

    async def answer_list(self, _: Empty) -> PaymentList:
        """Return the payments that were made on this machine."""
        found = await trio.to_thread.run_sync(self._store.all)
        return PaymentList(tuple(payment.tx for payment in found[-LISTED_MAX:]))

    async def answer_keys(self, query: WalletQuery) -> WalletKeys:
        """Return public keys of the wallet."""
        if not 0 <= query.first < 1 << 31 or not 1 <= query.count <= WALLET_KEYS_AT_ONCE:
            raise UsageError(f"ask for 1 to {WALLET_KEYS_AT_ONCE} keys at once")
        secret = self._core.keys.wallet_secret
        return WalletKeys(tuple(wallet_key(secret, query.first + place) for place in range(query.count)))

    # ---- inner -----------------------------------------------------------------------------------------------------
    def _unrecorded(self) -> list[tuple[Payment, Transfer]]:
        """Worker thread."""
        found = []
        if not self._store.unrecorded():
            return []  # without taking the lock: nothing is the rule
        with self._store.lock():
            for payment in self._store.unrecorded():
                try:
                    tx = decode_tx(payment.tx)
                except InvalidTransaction as exc:
                    raise StoreError(f"a noted payment does not decode: {exc}") from exc
                if isinstance(tx, Transfer):
                    found.append((payment, tx))
        return found

    def _record(self, payments: Sequence[tuple[Payment, Transfer]]) -> None:
        recorder = self._core.recorder
        for payment, tx in payments:
            caller = Caller(payment.uid, 0, 0, 0)
            words = payment_words(tx.recipient, tx.fee, payment.id)
            recorder.record(
                Operation.PAYMENT, caller, ROOT, b"", path2=words, amount=tx.amount, program=payment.program
            )
        self._core.changed()
