"""The owner's side of the storage deals of one volume: made, paid for, revised, settled, renewed and ended by itself.

Called only from the trio thread. There is a task for each peer with a deal, and for those that are to have one. It looks at
the chain and at what both have signed (`swarm.dealing`), does what is to be done, and looks again at the next tip, or when
something was stored: so it goes on after any crash, and after a reorganisation. Nothing here is in the way of storing: what a
receipt covers is noted (`dealbook`), and revised in the background.

    wallet -> the deal key's account      signed by the driver, within the budget
    deploy, deposit                       by the deal key; the peer pays its collateral, and the deal runs
    revise, settle                        off chain (`dealrevising`)
    renew                                 another contract with the same key over the same shards; the old one ends
    the deal key's account -> wallet      when no deal with that peer is left

A peer without a price has no deal, and a network without one no task here.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec
import trio

from fsdecloud.agent.dealbook import Deal, DealBook, DealRow
from fsdecloud.agent.dealforming import Former, NoteRefund, Pay
from fsdecloud.agent.dealledger import DealLedger, Look
from fsdecloud.agent.dealrevising import REFUSED_MAX, Reviser, Side, Trouble
from fsdecloud.agent.hosts import ENOUGH, Hosts
from fsdecloud.agent.ledgerlink import LedgerLink
from fsdecloud.agent.peer import Paying
from fsdecloud.agent.peers import PeerBook
from fsdecloud.contracts import deal
from fsdecloud.contracts.deal import SignedRevision
from fsdecloud.contracts.inputs import Act as Doing
from fsdecloud.crypto import sign
from fsdecloud.crypto.keys import deal_seed
from fsdecloud.errors import FsdecloudError, InvalidTransaction, PeerRefused
from fsdecloud.swarm import dealing, dealplan
from fsdecloud.swarm.dealing import Act, NotDue, Phase, View
from fsdecloud.swarm.dealplan import Offer
from fsdecloud.types import PeerId, ShardId
from fsdecloud.wire.receipts import Receipt

log = logging.getLogger(__name__)

GROWTH: Final = 4
"""A deal whose money does not last for what is stored is followed by another one early if there is more by this part of it."""

LOOK: Final = 30.0
"""Seconds between two looks at a deal when nothing happens."""

FLUSH: Final = 1.0
"""Seconds that receipts are gathered for, before a revision has them."""

FAILED_PAUSE: Final = 600.0
"""Seconds until a peer is asked again for a deal that it did not want, or that never began."""

COPIED_AT_ONCE: Final = 4096
"""Shards of an old deal that are noted for the new one in one step."""


class Dealer:
    """All deals of one volume."""

    def __init__(
        self,
        *,
        deals: DealBook,
        link: LedgerLink,
        transport: Paying,
        book: PeerBook,
        hosts: Hosts,
        network: bytes,
        deal_secret: bytes,
        wallet: bytes,
        budget: int,
        pay: Pay,
        note_refund: NoteRefund,
        stored_at: Callable[[PeerId], Awaitable[Sequence[tuple[ShardId, int]]]],
    ) -> None:
        """`wallet` is the key that pays, which `pay` signs for. `stored_at` returns what the volume has at a peer."""
        self.deals = deals
        self.budget = budget
        self._link = link
        self._ledger = DealLedger(link, network)
        self._reviser = Reviser(deals, self._ledger, transport, network)
        self._book = book
        self._hosts = hosts
        self._network = network
        self._deal_secret = deal_secret
        self._former = Former(
            deals=deals,
            ledger=self._ledger,
            link=link,
            network=network,
            wallet=wallet,
            pay=pay,
            note_refund=note_refund,
            stored_at=stored_at,
        )
        self._wake = trio.Event()
        self._wakes: dict[PeerId, trio.Event] = {}
        self._troubles: dict[bytes, Trouble] = {}
        self._failed_until: dict[PeerId, float] = {}
        self._changed = trio.Event()
        self.problems: dict[PeerId, str] = {}
        """Why a peer has no deal, or what is wrong with it."""
        self.views: dict[bytes, View] = {}
        """How each contract stood when it was looked at last."""
        self.newest: dict[bytes, SignedRevision] = {}
        """The newest revision of each, likewise."""
        book.on_stored.append(self._note_stored)
        hosts.on_change.append(self.poke)

    # ---- what others tell ------------------------------------------------------------------------------------------
    def poke(self) -> None:
        """Look again at everything: there is a new tip, or another registry."""
        self._wake.set()
        for event in self._wakes.values():
            event.set()

    def set_budget(self, budget: int) -> None:
        """Take another budget; deals that run go on to their ends."""
        self.budget = budget
        self._failed_until.clear()
        self.poke()

    def _note_stored(self, receipt: Receipt) -> None:
        if self._has_deals(receipt.peer):
            self.deals.note(receipt.peer, [(ShardId(item.id), item.length) for item in receipt.shards])
            self._wake_peer(receipt.peer)

    def _wake_peer(self, peer: PeerId) -> None:
        if peer in self._wakes:
            self._wakes[peer].set()

    def _has_deals(self, peer: PeerId) -> bool:
        return peer in self._wakes or bool(self.deals.of(peer))

    async def release(self, peer: PeerId, shards: Sequence[ShardId]) -> None:
        """Return once no deal names these shards any more, so that the peer may delete them. Cancelled, they go later."""
        running = self.deals.of(peer)
        if not running:
            return
        self.deals.note(peer, [(shard, None) for shard in shards])
        self._wake_peer(peer)
        while True:
            changed = self._changed
            if not [one for one in self.deals.of(peer) if await self._holds(one, shards)]:
                return
            await changed.wait()

    async def _holds(self, one: Deal, shards: Sequence[ShardId]) -> bool:
        newest = await self.deals.newest(one)
        if one.row.over_at >= 0 or newest is None or newest.revision.final:
            return False
        return one.row.is_blind or bool(await self.deals.lengths(one, shards))

    # ---- the tasks -------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Keep all deals until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                self._wake = trio.Event()
                for peer in dict.fromkeys([*self.deals.peers(), *self.wanted()]):
                    if peer not in self._wakes:
                        self._wakes[peer] = trio.Event()
                        nursery.start_soon(self._keep, peer)
                if self._wakes:
                    await self._former.look_at_wallet()
                await self._wake.wait()

    @property
    def available(self) -> int:
        """What the wallet can spend, as it was looked at last; -1 while that is not known."""
        return self._former.available

    def wanted(self) -> list[PeerId]:
        """Return the peers that are to have a deal: hosts with a price, those that have one, and the best offers besides."""
        if not self.budget:
            return []
        hosts = self._hosts.map.current
        members = [peer for peer in hosts if self._book.price(peer)]
        offers = {
            peer: offer
            for peer in self._book.offering()
            if peer not in hosts and (offer := self._offer(peer)) is not None
        }
        kept = [peer for peer in offers if any(one.row.over_at < 0 for one in self.deals.of(peer))]
        others = [offer for peer, offer in offers.items() if peer not in kept]
        room = max(ENOUGH - len(hosts) - len(kept), 0)
        return [*members, *kept, *(offer.peer for offer in dealplan.choose_offers(others, room))]

    def _offer(self, peer: PeerId) -> Offer | None:
        known = self._book.peer(peer)
        price = self._book.price(peer)
        is_off = known.is_distrusted or known.is_leaving or known.address is None
        if not price or is_off or self._failed_until.get(peer, 0.0) > trio.current_time():
            return None
        reliability = 1 / (1 + known.score.failures + 4 * known.corrupt)
        return Offer(peer, price, known.free or self._book.capacity(peer), known.score.latency, reliability)

    async def _keep(self, peer: PeerId) -> None:
        """Keep the deals with one peer, as long as there is something to do with it."""
        try:
            while peer in self.wanted() or self.deals.of(peer):
                event = self._wakes[peer] = trio.Event()
                try:
                    is_more = await self._tend(peer)
                    if not is_more and self._failed_until.get(peer, 0.0) <= trio.current_time():
                        self.problems.pop(peer, None)
                except (FsdecloudError, trio.TooSlowError) as exc:
                    is_more = False
                    self._note_problem(peer, str(exc) or "it does not answer")
                if not is_more:
                    with trio.move_on_after(LOOK):
                        await event.wait()
                    await trio.sleep(FLUSH)
        finally:
            self._wakes.pop(peer, None)

    def _note_problem(self, peer: PeerId, text: str) -> None:
        if self.problems.get(peer) != text:
            log.warning("the deal with peer %s: %s", peer.hex()[:16], text)
        self.problems[peer] = text

    def _seed(self, peer: PeerId) -> bytes:
        return deal_seed(self._deal_secret, peer)

    # ---- one look --------------------------------------------------------------------------------------------------
    async def _tend(self, peer: PeerId) -> bool:
        """Do what is to be done with one peer now; return whether to look again at once."""
        await self._former.search(peer, self._seed(peer))
        deals = self.deals.of(peer)
        look = await self._ledger.look(sign.public_key(self._seed(peer)), [one.contract for one in deals])
        is_more = False
        running: list[Deal] = []
        for one in deals:
            instance = look.contracts.get(one.contract)
            if instance is None:
                await self._tend_missing(one, look)
                continue
            if one.row.over_at >= 0:
                one = await self._reset(one)
            self.views[one.contract] = dealing.view_of(one.contract, instance, look.height)
            running.append(one)
        for one in running:
            later = [other for other in running if other.row.number > one.row.number and self.runs(other)]
            is_more |= await self._tend_deal(one, look, followed_by=later[0] if later else None)
        deals = self.deals.of(peer)
        open_deals = [one for one in deals if one.row.over_at < 0]
        if peer in self.wanted() and not any(self._serves(one, look) for one in open_deals):
            offer = self._offer(peer)
            if offer is not None and self._link.interval:
                await self._former.form(offer, self._share(), self._seed(peer), look)
        elif not open_deals:
            await self._former.refund(peer, self._seed(peer), look)
        return is_more

    def runs(self, one: Deal) -> bool:
        """Tell whether both have paid, and its periods are not over."""
        view = self.views.get(one.contract)
        return view is not None and view.phase not in (Phase.OWNER_PAYS, Phase.PEER_PAYS, Phase.LAST, Phase.OVER)

    def _serves(self, one: Deal, look: Look) -> bool:
        """Tell whether a deal needs no other one after it yet."""
        view = self.views.get(one.contract)
        if view is None:
            return True  # on its way to the chain
        trouble = self.trouble(one)
        if trouble.refusals >= REFUSED_MAX or one.row.is_blind:
            return False
        if view.phase in (Phase.LAST, Phase.OVER):
            return False
        if trouble.waiting and self._share() > one.terms.escrow + one.terms.escrow // GROWTH:
            return False
        return look.height < dealplan.renew_from(view.terms, view.start)

    def _share(self) -> int:
        """Return what there is for one deal, by the budget."""
        times = dealplan.schedule_for(self._link.interval)
        return dealplan.escrow_share(self.budget, max(len(self.wanted()), 1), times, self._link.interval)

    def trouble(self, one: Deal) -> Trouble:
        """Return what is known of a deal besides what is durable."""
        return self._troubles.setdefault(one.contract, Trouble())

    async def _tend_missing(self, one: Deal, look: Look) -> None:
        """A contract that the chain does not have: not yet, or not any more."""
        view = self.views.pop(one.contract, None)
        found = await self._ledger.find(one.contract)
        if found.height is not None:
            if one.row.over_at < 0:
                log.info("the deal with peer %s is over", one.peer.hex()[:16])
                await self.deals.update(_changed(one, over_at=look.height))
                self._tell()
                newest = await self.deals.newest(one)
                is_ended = newest is not None and newest.revision.final
                if view is not None and not is_ended and look.height < deal.period_end(one.terms, view.start, 0):
                    self._fail(one.peer, "the deal never began: the peer paid no collateral in time")
            elif look.height >= one.row.over_at + self._link.finality_depth:
                await self.deals.forget(one)
                self._troubles.pop(one.contract, None)
                self.newest.pop(one.contract, None)
        elif not found.tx:
            try:
                await self._ledger.submit(one.row.deploy, look.account)
            except InvalidTransaction as exc:
                # Its nonce is taken, or the money is not there: what follows decides anew.
                log.info("a deal with peer %s does not begin: %s", one.peer.hex()[:16], exc)
                await self.deals.forget(one)

    async def _reset(self, one: Deal) -> Deal:
        """A reorganisation brought a contract back."""
        return await self.deals.update(_changed(one, over_at=-1))

    async def _tend_deal(self, one: Deal, look: Look, *, followed_by: Deal | None) -> bool:
        view, trouble = self.views[one.contract], self.trouble(one)
        seed = self._seed(one.peer)
        side = Side(one, seed, self._book.peer(one.peer).address, view, trouble)
        newest = await self.deals.newest(one)
        if newest is not None:
            self.newest[one.contract] = newest
        following = dealing.owner_next(view, newest)
        if view.phase is Phase.PEER_PAYS:
            await self._ask_for_collateral(side)
            return False
        acts: tuple[Doing, ...] | None = None
        if following.act is Act.FUND:
            if look.account.available < one.terms.escrow + look.fee:
                return False  # it was spent, or a block took it back; without it the contract ends by itself
            acts = deal.fund_owner(one.terms)
        elif following.act is Act.BRING and newest is not None:
            acts = deal.bring(newest)
        elif following.act is Act.CHALLENGE:
            acts = deal.challenge(newest if following.brings else None)
        elif following.act is Act.CATCH_UP:
            acts = deal.catch_up()
        if acts is not None and await self._ledger.send(seed, one.contract, acts, look):
            log.info("deal with peer %s: %s", one.peer.hex()[:16], following.act.name.lower())
        if view.standing is not None and view.standing.missed:
            self._book.distrust(one.peer, is_distrusted=True)
        if newest is None and self.runs(one):
            # This machine lost its state after the first revision was signed, or the peer's answer was lost.
            await self._reviser.fund(side)
            return True
        is_final = False
        if followed_by is not None:
            is_final = await self._hand_over(one, followed_by)
        elif newest is not None and not newest.revision.bytes and one.peer not in self.wanted():
            is_final = not self.deals.noted(one.peer, b"", 1)  # nothing is there, and nothing will be
        try:
            is_more = await self._reviser.advance(side, changes=followed_by is None, final=is_final)
        except (PeerRefused, NotDue) as exc:
            trouble.problem = str(exc)
            raise
        if is_more:
            self._tell()
        return is_more

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _ask_for_collateral(self, side: Side) -> None:
        if side.address is None:
            return
        try:
            await self._reviser.fund(side)
        except PeerRefused as exc:
            self._fail(side.deal.peer, f"it does not want the deal: {exc}")
            return
        self._hosts.poke()  # it may join now, or soon

    def _fail(self, peer: PeerId, text: str) -> None:
        self._failed_until[peer] = trio.current_time() + FAILED_PAUSE
        self._note_problem(peer, text)
        self._wake.set()  # somebody else is chosen

    async def _hand_over(self, one: Deal, following: Deal) -> bool:
        """Note what a deal has for the one that follows; return whether that has it all, so that this one may end."""
        if not one.row.is_copied:
            after = b""
            while shards := await self.deals.shards(one, after, COPIED_AT_ONCE):
                going = self.deals.going(one.peer, [shard for shard, _ in shards])
                self.deals.note(one.peer, [item for item in shards if item[0] not in going])
                after = shards[-1][0]
            await self.deals.settle()
            await self.deals.update(_changed(one, is_copied=True))
            self._wake_peer(one.peer)
            return False
        return not self.deals.noted(following.peer, b"", 1)


def _changed(one: Deal, **changes: object) -> DealRow:
    return msgspec.structs.replace(one.row, **changes)
