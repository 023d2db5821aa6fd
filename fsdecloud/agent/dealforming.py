"""How a storage deal begins, and where its money goes and comes from.

Called only from the trio thread. The money for a deal goes from the wallet to the deal key's account, in a transfer that the
driver signs and records; what was left there by an earlier deal is used first. What remains when nothing with a peer goes on is
moved back. Each step is taken by what the ledger says is there, or on its way: so none is taken twice.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from fsdecloud.agent.dealbook import DealBook
from fsdecloud.agent.dealledger import DealLedger, Look
from fsdecloud.agent.ledgerlink import LedgerLink
from fsdecloud.contracts import deal
from fsdecloud.contracts.library import standard
from fsdecloud.crypto import sign
from fsdecloud.errors import FsdecloudError, UsageError
from fsdecloud.ledger.transactions import Deploy, Transfer, decode_tx, sign_deploy, sign_transfer, tx_id
from fsdecloud.swarm import dealplan
from fsdecloud.swarm.dealplan import NoDeal, Offer
from fsdecloud.types import PeerId, ShardId
from fsdecloud.wire.agentapi import NotePayment, SignedPayment, SignPayment

log = logging.getLogger(__name__)

FEES: Final = 16
"""Transactions whose fees go to a deal's account besides the escrow: forming, ending, and a few challenges."""

FOUND_MAX: Final = 64
"""Deals with one peer that are looked for after this machine's state was lost, the newest."""

Pay = Callable[[SignPayment], Awaitable[SignedPayment]]
NoteRefund = Callable[[NotePayment], Awaitable[None]]


class Former:
    """Begins deals."""

    def __init__(
        self,
        *,
        deals: DealBook,
        ledger: DealLedger,
        link: LedgerLink,
        network: bytes,
        wallet: bytes,
        pay: Pay,
        note_refund: NoteRefund,
        stored_at: Callable[[PeerId], Awaitable[Sequence[tuple[ShardId, int]]]],
    ) -> None:
        """`wallet` is the key that pays, which `pay` signs for. `stored_at` returns what the volume has at a peer."""
        self._deals = deals
        self._ledger = ledger
        self._link = link
        self._network = network
        self._wallet = wallet
        self._pay = pay
        self._note_refund = note_refund
        self._stored_at = stored_at
        self._paying = trio.Lock()
        self._searched: set[PeerId] = set()
        self.available = -1
        """What the wallet can spend, as it was looked at last; -1 while that is not known."""

    async def look_at_wallet(self) -> None:
        """Look what the wallet has."""
        try:
            self.available = (await self._ledger.account(self._wallet)).available
        except FsdecloudError as exc:
            log.debug("what the wallet has is not known: %s", exc)

    async def search(self, peer: PeerId, seed: bytes) -> None:
        """Look once whether the ledger has deals of ours with a peer that this machine knows nothing of.

        Raises LedgerError, RemoteError; a light daemon cannot tell, and new deals are made then.
        """
        if peer in self._searched or self._deals.of(peer):
            return
        key = sign.public_key(seed)
        try:
            found = (await self._ledger.deployed_by(key))[:FOUND_MAX]
        except UsageError as exc:
            log.info("cannot look for older deals with peer %s: %s", peer.hex()[:16], exc)
            found = []
        contracts = [bytes(tx_id(decode_tx(data))) for data in found]
        if contracts:
            look = await self._ledger.look(key, contracts)
            for data, contract in zip(found, contracts, strict=True):
                if contract in look.contracts and _is_deal(data):
                    log.warning("found a deal with peer %s in the ledger", peer.hex()[:16])
                    await self._deals.add(peer, data, is_blind=True)
        self._searched.add(peer)

    async def form(self, offer: Offer, escrow: int, seed: bytes, look: Look) -> None:
        """Begin a deal for which there is `escrow`: have the money in the deal key's account, or deploy.

        Raises NoDeal when there is no money for it, LedgerError, RemoteError.
        """
        peer, account, interval = offer.peer, look.account, self._link.interval
        times = dealplan.schedule_for(interval)
        terms = dealplan.plan_terms(
            account.key, peer, price=offer.price, escrow=escrow, free=offer.free, schedule=times, interval=interval
        )
        needed = terms.escrow + FEES * look.fee
        if account.available < needed:
            await self._top_up(peer, needed - account.available - account.incoming, look.fee)
            return
        if any(isinstance(tx, Deploy) for tx in account.waiting):
            return
        arguments = deal.arguments_of(terms)
        tx = sign_deploy(self._network, seed, standard(deal.NAME).id, arguments, look.fee, account.nonce)
        if all(one.row.is_blind or one.row.over_at >= 0 for one in self._deals.of(peer)):
            self._deals.note(peer, await self._stored_at(peer))  # what is there already, and no deal of ours names
        await self._deals.add(peer, tx)
        await self._ledger.submit(tx, account)
        log.info("a deal with peer %s begins: %d for %d periods", peer.hex()[:16], terms.escrow, terms.periods)

    async def _top_up(self, peer: PeerId, amount: int, fee: int) -> None:
        """Move money from the wallet to a deal key's account; what is on its way already is awaited."""
        if amount <= 0:
            return
        async with self._paying:  # one nonce after the other
            wallet = await self._ledger.account(self._wallet)
            if amount + fee > wallet.available:
                raise NoDeal(f"the wallet has {wallet.available}, and {amount} with the fee {fee} are needed")
            signed = await self._pay(SignPayment(peer, amount, fee, wallet.nonce))
            await self._ledger.submit(signed.tx)

    async def refund(self, peer: PeerId, seed: bytes, look: Look) -> None:
        """Move what is left in a deal key's account to the wallet, as nothing with that peer goes on: unless it is hardly worth
        the fee."""
        account = look.account
        amount = account.available - look.fee
        if amount <= FEES * look.fee or account.incoming or any(isinstance(t, Transfer) for t in account.waiting):
            return
        tx = sign_transfer(self._network, seed, self._wallet, amount, look.fee, account.nonce)
        await self._note_refund(NotePayment(peer, tx))
        await self._ledger.submit(tx, account)


def _is_deal(data: bytes) -> bool:
    tx = decode_tx(data)
    return isinstance(tx, Deploy) and tx.document == standard(deal.NAME).id
