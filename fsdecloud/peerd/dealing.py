"""The peer's side of its storage deals: it pays collateral in, signs what owners propose, proves, and is paid.

At each new tip it looks at all of its contracts as the local ledger daemon has them and sends what `swarm.dealing` says, once:
what waits for a block is not sent again, and what no block took up is. So after a restart, a reorganisation or a daemon that
was away it goes on by looking. Without the daemon nothing is signed, because it cannot know how a deal stands.

Called only from the trio thread, but for `Dealer.keeps`. Amounts are in the smallest unit, times in blocks. Not here: what is
durable (`peerd.dealbook`), revisions (`peerd.cosigning`), the ledger (`peerd.dealledger`), making proofs (`peerd.proving`).
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

import trio

from fsdecloud.contracts import deal
from fsdecloud.contracts.deal import SignedRevision
from fsdecloud.contracts.inputs import Act as InputAct
from fsdecloud.contracts.machine import Instance
from fsdecloud.contracts.reasons import BadAgreement, InvalidArguments
from fsdecloud.errors import FsdecloudError, LedgerUnavailable, MalformedError, StoreError
from fsdecloud.ledger.network import NetworkDocument, decode_network, network_id
from fsdecloud.net.nursery import wait_first
from fsdecloud.net.unix import connect_unix, open_rpc
from fsdecloud.peerd.cosigning import Cosigner
from fsdecloud.peerd.dealbook import DEALS_MAX, Deal, DealBook
from fsdecloud.peerd.dealledger import CALL_TIMEOUT, DealLedger, NoMoney
from fsdecloud.peerd.proving import Prover
from fsdecloud.peerd.registration import RETRY
from fsdecloud.store.shards import ShardStore
from fsdecloud.store.shardsets import ShardSets
from fsdecloud.swarm import dealing, offering
from fsdecloud.swarm.dealing import Act, Next, NotDue, Phase, view_of
from fsdecloud.swarm.offering import NotOurs, Offer
from fsdecloud.types import PeerId, ShardId
from fsdecloud.wire import peer as wire
from fsdecloud.wire.agentapi import Empty
from fsdecloud.wire.ledgerapi import LedgerStatus, TipNotice

__all__ = ["Dealer", "DealsState", "Offer"]

log = logging.getLogger(__name__)

RECHECK: Final = 120.0
"""Seconds without a new tip after which everything is looked at again, at the latest."""

PROOFS_MAX: Final = 2
"""Proofs that owners are shown at once."""


@dataclass(frozen=True, slots=True)
class DealsState:
    """What there is to say of a peer's deals."""

    running: int
    ended: int
    """Those that are over, and not forgotten yet."""
    bytes: int
    """Under the newest revisions of those that run."""
    earned: int
    """By the newest revisions of all that are remembered."""
    paid: int
    """Of those that run, as the chain was last seen to have them."""
    collateral: int
    """In the contracts of those that run."""
    next_proof: int
    """Height at which the first period ends that has something to prove, 0 for none."""
    trouble: str
    """What keeps it from doing its part; empty if nothing does."""


class Dealer:
    """The deals of one peer. `run` in a nursery; `close` at the end."""

    def __init__(
        self,
        *,
        seed: bytes,
        peer: PeerId,
        network: bytes,
        offer: Offer,
        sets: ShardSets,
        store: ShardStore,
        prover: Prover,
        path: Path,
        socket: Path,
        network_file: Path,
    ) -> None:
        """`path` is the directory of its own table, `socket` the ledger daemon's, `network_file` the network's document.
        Raises StoreError."""
        self._seed = seed
        self._peer = peer
        self._network = network
        self._offer = offer
        self._sets = sets
        self._store = store
        self._prover = prover
        self._socket = socket
        self._network_file = network_file
        self._book = DealBook(path, sets)
        self._cosigner = Cosigner(seed=seed, network=network, book=self._book, sets=sets, store=store)
        self._ledger: DealLedger | None = None
        self._document: NetworkDocument | None = None
        self._tip = trio.Event()
        self._funding = trio.Lock()
        self._proofs = 0
        self.height = -1
        """Of the tip after which it last did what was to be done, -1 before."""
        self._trouble = "" if not self._book.deals else "the ledger was not looked at yet"

    # ---- what the service asks -------------------------------------------------------------------------------------
    def refusal(self, deal: bytes, size: int) -> str:
        """Return why nothing, or nothing of `size` bytes, is stored for this deal key now, "" if it is."""
        if not deal:
            return "this peer stores for deals only: show a deal's key"
        reason = "there is no deal with this key"
        named = room = 0
        is_unbounded = is_open = False
        for one in self._book.of(deal):
            revision = one.newest.revision
            reason = offering.refusal(one.view, revision) if not one.row.gone else "the deal is over"
            if reason:
                continue
            is_open = True
            paid_for = offering.room(one.view, revision)
            is_unbounded = is_unbounded or paid_for is None
            named += revision.bytes
            room += paid_for or 0
        if not is_open:
            return reason
        if not size:
            return ""
        stored = self._store.usage(deal)[1]
        if stored - named + size > self._offer.credit:
            return "too much is stored that no revision names: agree on one first"
        if not is_unbounded and max(stored, named) + size > room:
            return "the deal's escrow does not pay for more to its end"
        return ""

    def keeps(self, shard: ShardId, deal: bytes = b"") -> bool:
        """Return whether a running deal, of this key alone if one is given, names the shard: neither a grant nor the end of a
        lease takes it away. Any thread; some look-ups in LMDB for each of these deals. Raises StoreCorrupt."""
        return self._book.keeps(shard, deal)

    def status(self) -> DealsState:
        """Return how the deals stand."""
        running = [one for one in self._book.deals.values() if one.is_running]
        present = [one for one in running if one.view.standing is not None]
        ends = [
            deal.period_end(one.view.terms, one.view.start, max(dealing.present_period(one.view), 0))
            for one in running
            if one.is_funded and one.newest.revision.bytes and one.view.phase in (Phase.RUNNING, Phase.WINDOW)
        ]
        standings = [one.view.standing for one in present if one.view.standing is not None]
        return DealsState(
            running=len(running),
            ended=len(self._book.deals) - len(running),
            bytes=sum(one.newest.revision.bytes for one in running),
            earned=sum(one.newest.revision.earned for one in self._book.deals.values()),
            paid=sum(standing.paid for standing in standings),
            collateral=sum(standing.collateral for standing in standings),
            next_proof=min(ends, default=0),
            trouble=self._trouble,
        )

    async def answer(self, request: wire.Dealing, deal: bytes) -> wire.DirectAnswer:
        """Answer a request of the one who has shown this deal key."""
        try:
            if isinstance(request, wire.Fund):
                return await self._fund(request, deal)
            one = self._book.deals.get(request.contract)
            if one is None or one.key != deal:
                return _error(request, "refused", "there is no such deal with this key")
            if isinstance(request, wire.Attest):
                return await self._attest(request, one)
            if self._ledger is None:
                return _error(request, "busy", f"this peer cannot see how the deal stands: {self._trouble}")
            return _state(request, one, await self._cosigner.sign(one, request))
        except (NotDue, NotOurs, NoMoney, BadAgreement, InvalidArguments) as exc:
            return _error(request, "refused", str(exc))
        except StoreError as exc:
            log.error("deal %s: %s", request.contract.hex(), exc)
            return _error(request, "failed", "this peer's disk failed")
        except FsdecloudError as exc:
            return _error(request, "busy", f"this peer's ledger daemon does not do its part: {exc}")

    # ---- requests --------------------------------------------------------------------------------------------------
    async def _fund(self, request: wire.Fund, key: bytes) -> wire.DirectAnswer:
        """Take a deal whose terms are ours, and pay the collateral in."""
        contract = request.contract
        async with self._funding:  # money and room are counted for one deal after the other
            one = self._book.deals.get(contract)
            if one is not None and one.key != key:
                return _error(request, "refused", "there is no such deal with this key")
            ledger, document = self._ledger, self._document
            if one is None:
                if ledger is None or document is None:
                    return _error(request, "busy", f"this peer cannot see the contract: {self._trouble}")
                height, found = await ledger.contracts([contract])
                if contract not in found:
                    return _error(request, "busy", "this peer's ledger daemon does not have the contract yet")
                first = await self._agree(request, key, found[contract], height, document, ledger)
                one = await self._book.add(contract, found[contract], height, first)
                log.info("deal %s: agreed on", contract.hex())
            if ledger is not None and one.view.phase is Phase.PEER_PAYS:
                try:
                    await ledger.send(contract, deal.fund_peer(one.view.terms))
                except FsdecloudError as exc:  # it is agreed on all the same, and tried again at the next tip
                    log.warning("deal %s: the collateral is not paid in yet: %s", contract.hex(), exc)
            return _state(request, one, one.newest)

    async def _agree(
        self,
        request: wire.Fund,
        key: bytes,
        instance: Instance,
        height: int,
        document: NetworkDocument,
        ledger: DealLedger,
    ) -> SignedRevision:
        """Return the first revision with both signatures. Raises NotOurs, BadAgreement, InvalidArguments, NoMoney."""
        view = view_of(request.contract, instance, height + 1)
        terms = view.terms
        if terms.peer != self._peer or terms.owner != key:
            raise NotOurs("the contract is between others")
        if view.phase is Phase.OWNER_PAYS or view.standing is None:
            raise NotOurs("the owner's money is not in the contract")
        offering.check_terms(view, self._offer, document.interval)
        revision = dealing.first_revision()
        if view.standing.revision is not None and view.standing.revision != revision:
            raise NotOurs("this peer does not know the revisions of this deal any more")
        deal.check_revision(key, self._network, request.contract, revision, request.signature)
        if len(self._book.deals) >= DEALS_MAX:
            raise NotOurs(f"this peer has {DEALS_MAX} deals already")
        if offering.capacity(terms) > self._store.free_bytes() - self._promised():
            raise NotOurs("this peer has no room for what the contract pays for")
        if view.phase is Phase.PEER_PAYS:
            unpaid = [one.view.terms.collateral for one in self._book.deals.values() if not one.is_funded]
            if (await ledger.funds()).available < terms.collateral + sum(unpaid):
                raise NoMoney("this peer has no money for the collateral")
        signature = deal.sign_revision(self._seed, self._network, request.contract, revision)
        return SignedRevision(revision, request.signature, signature)

    def _promised(self) -> int:
        """Return how many bytes the deals that run may still store."""
        promised: dict[bytes, int] = {}
        for one in self._book.deals.values():
            if one.is_running:
                promised[one.key] = promised.get(one.key, 0) + offering.capacity(one.view.terms)
        return sum(max(size - self._store.usage(key)[1], 0) for key, size in promised.items())

    async def _attest(self, request: wire.Attest, one: Deal) -> wire.DirectAnswer:
        """Show a proof of the newest revision."""
        if request.number != one.newest.revision.number:
            return _error(request, "refused", f"the newest revision is {one.newest.revision.number}")
        if one.proving or self._proofs >= PROOFS_MAX:
            return _error(request, "busy", "this peer is proving already: ask again later")
        one.proving = True
        self._proofs += 1
        try:
            proof = await self._prover.prove(one.contract, request.seed, request.samples)
        finally:
            one.proving = False
            self._proofs -= 1
        if proof.revision.number != request.number:
            return _error(request, "refused", f"the newest revision is {proof.revision.number}")
        return wire.Attested(request.request, proof.data)

    # ---- following the ledger --------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Follow the ledger, and act at each tip, until cancelled."""
        failures = 0
        while True:
            try:
                self._document = self._read_document()
                stream = await connect_unix(self._socket, error=LedgerUnavailable)
                notices = {"tip": (TipNotice, self._on_tip)}
                async with open_rpc(stream, notices=notices, lost=LedgerUnavailable) as connection:
                    status = await connection.call("watch", Empty(), LedgerStatus, timeout=CALL_TIMEOUT)
                    if status.network != self._network:
                        raise LedgerUnavailable(f"the ledger daemon at {self._socket} is of another network")
                    failures = 0
                    try:
                        ledger = DealLedger(connection, self._network, self._seed)
                        while not connection.is_closed:
                            self._tip = trio.Event()  # a tip that comes while this one is looked at is looked at next
                            height, troubles = await self._look(ledger)
                            self._ledger = ledger  # from here on it is known how the deals stand
                            self.height = height
                            self._failed(troubles)
                            await wait_first(RECHECK, connection.wait_closed, self._tip.wait)
                        raise LedgerUnavailable("the ledger daemon went away")
                    finally:
                        self._ledger = None
            except FsdecloudError as exc:  # whatever the daemon or the disk does: it is tried again
                self._failed([str(exc)])
            first, longest = RETRY
            await trio.sleep(min(longest, first * 2**failures) * random.uniform(0.5, 1.0))
            failures = min(failures + 1, 10)

    def _read_document(self) -> NetworkDocument:
        try:
            document = decode_network(self._network_file.read_bytes())
        except (OSError, MalformedError) as exc:
            raise LedgerUnavailable(
                f"the network's document at {self._network_file} cannot be read ({exc}): start the ledger daemon"
            ) from exc
        if network_id(document) != self._network:
            raise LedgerUnavailable(f"the document at {self._network_file} is of another network")
        return document

    async def _look(self, ledger: DealLedger) -> tuple[int, list[str]]:
        """See how all deals stand, and do what is to be done; return the tip's height and what could not be done. Raises
        LedgerError, RemoteError, StoreError."""
        assert self._document is not None
        deals = list(self._book.deals.values())
        height, found = await ledger.contracts([one.contract for one in deals])
        for one in deals:
            await self._book.see(one, found.get(one.contract), height)
        troubles = []
        for one in deals:
            if one.row.gone:
                if height - one.row.gone >= self._document.finality_depth:
                    log.info("deal %s: over for good", one.contract.hex())
                    await self._book.forget(one)
                continue
            try:
                await self._act(one, ledger)
            except LedgerUnavailable:
                raise
            except FsdecloudError as exc:  # of this deal; the others go on
                if ledger.is_closed:
                    raise
                if not self._tip.is_set():  # or the chain went on meanwhile, and the next look is another one
                    troubles.append(f"deal {one.contract.hex()[:16]}: {exc}")
        while await self._book.sweep():
            pass
        return height, troubles

    async def _act(self, one: Deal, ledger: DealLedger) -> None:
        """Send what this deal needs now, if anything."""
        following = dealing.peer_next(one.view, one.newest)
        if following.act is Act.NOTHING:
            return
        if following.act is Act.PROVE and not _is_final(following, one):
            await self._prove(one, ledger, following)
            return
        acts: dict[Act, tuple[InputAct, ...]] = {
            Act.FUND: deal.fund_peer(one.view.terms),
            Act.BRING: deal.bring(one.newest),
            Act.PROVE: deal.bring(one.newest),  # a final revision ends the deal where it is brought: nothing is proven
            Act.CATCH_UP: deal.catch_up(),
        }
        if await ledger.send(one.contract, acts[following.act]):
            log.info("deal %s: sent %s", one.contract.hex(), following.act.name.lower())

    async def _prove(self, one: Deal, ledger: DealLedger, following: Next) -> None:
        view = one.view
        assert view.standing is not None
        if one.contract in (await ledger.funds()).inputs:
            return  # before the work is done again
        seed = await ledger.seed_of(one.contract, view.standing.period, dealing.challenge_height(view))
        if seed is None:
            return  # the next blocks bring it
        newest = one.newest
        proof = await self._prover.prove(one.contract, seed, view.terms.samples)
        if proof.revision.number != newest.revision.number:
            return  # both signed another one meanwhile; the next look sees what is to be done then
        acts = deal.prove(proof.data, newest if following.brings else None)
        if await ledger.send(one.contract, acts, len(proof.data)):
            log.info("deal %s: sent a proof of period %d", one.contract.hex(), view.standing.period)

    def _on_tip(self, _notice: TipNotice) -> None:
        self._tip.set()

    def _failed(self, troubles: Iterable[str]) -> None:
        why = "; ".join(troubles)
        if why and why != self._trouble:
            log.warning("deals: %s", why)
        self._trouble = why

    def close(self) -> None:
        """Close the table."""
        self._book.close()

    def __enter__(self) -> Dealer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _is_final(following: Next, one: Deal) -> bool:
    return following.brings and one.newest.revision.final


def _state(request: wire.Fund | wire.Revise, one: Deal, newest: SignedRevision) -> wire.DealState:
    return wire.DealState(request.request, one.contract, one.is_funded, newest)


def _error(request: wire.Dealing, code: str, text: str) -> wire.Error:
    return wire.Error(request.request, code, text[: wire.TEXT_MAX])
