"""The revisions of one deal, as the owner makes them: signed and kept, sent, and accepted when the peer has signed, too.

Called only from the trio thread. Before a revision leaves this machine it is durable, and after a crash the very same one is
sent again: no number is ever signed for two contents. What the peer refuses stays signed, so the next attempt has the
next number, made only after the peer has said which revision it has.

At a period's end the peer is asked for a proof of many samples, off chain; a revision then settles the period. Until that is
done, or the time for it has passed, nothing else changes: what is added would be charged for the period before it came.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import trio

from fsdecloud.agent.dealbook import Deal, DealBook
from fsdecloud.agent.dealledger import DealLedger
from fsdecloud.agent.peer import Paying
from fsdecloud.contracts import deal
from fsdecloud.contracts.deal import Revision, SignedRevision
from fsdecloud.contracts.reasons import BadAgreement
from fsdecloud.crypto import possession
from fsdecloud.crypto.shardset import ShardSet
from fsdecloud.errors import PeerRefused, PeerUnavailable, RemoteTimeout
from fsdecloud.net.address import Address
from fsdecloud.swarm import dealing, dealplan
from fsdecloud.swarm.dealing import Phase, View
from fsdecloud.types import ShardId
from fsdecloud.wire.deals import CHANGES_MAX, DealState

log = logging.getLogger(__name__)

ATTEST_SAMPLES: Final = 90
"""Samples of a proof off chain: a peer that dropped 5 % passes one in a hundred times."""

ATTEST_PATIENCE: Final = 120.0
"""Seconds for a proof: the peer reads and hashes a shard for each sample."""

REVISE_PATIENCE: Final = 60.0

REFUSED_MAX: Final = 8
"""Revisions in a row that the peer refuses, after which another deal is to take this one's place."""


@dataclass(slots=True)
class Trouble:
    """What this run of the agent knows of a deal besides what is durable."""

    refusals: int = 0
    """In a row."""
    refused: int = 0
    """Number of the revision that the peer did not sign, 0 for none."""
    problem: str = ""
    waiting: int = 0
    """Bytes that the escrow does not pay for."""
    failed_period: int = -1
    """The period whose proof, off chain, was wrong or did not come."""


@dataclass(slots=True)
class Side:
    """One deal with what it takes to talk about it."""

    deal: Deal
    seed: bytes
    address: Address | None
    view: View
    trouble: Trouble = field(default_factory=Trouble)


class Reviser:
    """Makes and sends the revisions of all deals."""

    def __init__(self, book: DealBook, ledger: DealLedger, transport: Paying, network: bytes) -> None:
        self._book = book
        self._ledger = ledger
        self._transport = transport
        self._network = network

    # ---- the first one ---------------------------------------------------------------------------------------------
    async def fund(self, side: Side) -> bool:
        """Ask the peer for its collateral, and keep what it has signed; return whether it says that it has paid.

        Raises PeerRefused when it does not want the deal, RemoteError.
        """
        first = await self._first(side)
        found = await self._ask(side, first)
        if side.deal.row.is_blind:
            await self._adopt(side, found.newest)
        else:
            await self._take(side, found.newest)
        return found.is_funded

    async def _first(self, side: Side) -> SignedRevision:
        book, one = self._book, side.deal
        newest = await book.newest(one)
        if newest is None and not one.row.is_blind:
            staged = await book.staged(one)
            if staged is not None:
                return staged
            return await book.stage(one, 1, {}, lambda _set: self._sign(side, dealing.first_revision()))
        return self._sign(side, dealing.first_revision())  # the same bytes each time

    async def _ask(self, side: Side, first: SignedRevision) -> DealState:
        assert side.address is not None
        with _patience(REVISE_PATIENCE, "the peer does not answer"):
            found = await self._transport.fund(side.address, side.deal.contract, first.owner)
        self._check(side, found.newest)
        return found

    async def _adopt(self, side: Side, newest: SignedRevision) -> None:
        """Take the peer's word for the newest revision of a deal that was found in the ledger: both have signed it."""
        known = await self._book.newest(side.deal)
        if known is None or known.revision.number < newest.revision.number:
            await self._book.stage(side.deal, newest.revision.number, {}, lambda _set: newest)
            await self._book.accept(side.deal, newest)

    # ---- those that follow -----------------------------------------------------------------------------------------
    async def advance(self, side: Side, *, changes: bool, final: bool) -> bool:
        """Make the next step of a deal's revisions: return whether there was one. `changes`: those that are noted for this peer
        belong to this deal. `final`: end it. Raises PeerRefused, RemoteError; NotDue and what the ledger raises."""
        book, one, trouble = self._book, side.deal, side.trouble
        newest = await book.newest(one)
        if newest is None or newest.revision.final or side.address is None:
            return False
        if side.view.phase not in (Phase.RUNNING, Phase.WINDOW):
            return False
        staged = await book.staged(one)
        if staged is not None and trouble.refused != staged.revision.number:
            await self._send(side, staged)
            return True
        number = 0
        if staged is not None:
            number = staged.revision.number + 1
            found = await self._ask(side, self._sign(side, dealing.first_revision()))
            if await self._take(side, found.newest):
                return True
        made = await self._next(side, newest.revision, number, changes=changes, final=final)
        if made is None:
            return False
        await self._send(side, made)
        return True

    async def _next(
        self, side: Side, before: Revision, number: int, *, changes: bool, final: bool
    ) -> SignedRevision | None:
        """Sign and keep what follows now; None if nothing does."""
        view, one = side.view, side.deal
        assert view.standing is not None
        if view.phase is Phase.WINDOW and view.standing.part != "period_end":
            return None
        if view.phase is Phase.WINDOW and before.settled <= view.standing.period and before.bytes:
            if not await self._is_proven(side, before):
                return None
            return await self._plain(side, before, number, settles=True)
        if final:
            if view.phase is Phase.RUNNING:
                return await self._plain(side, before, number, final=True)
            return None
        if not changes or one.row.is_blind:
            return None
        wanted, removed = await self._changes(side, before)
        if not wanted:
            return None
        return await self._book.stage(
            one,
            number or before.number + 1,
            wanted,
            lambda after: self._signed_next(side, before, after, removed, number),
        )

    def _signed_next(self, side: Side, before: Revision, after: ShardSet, removed: int, number: int) -> SignedRevision:
        revision = dealing.next_revision(side.view, before, after.root, after.size, removed, number=number)
        return self._sign(side, revision)

    async def _plain(
        self, side: Side, before: Revision, number: int, *, settles: bool = False, final: bool = False
    ) -> SignedRevision:
        """Sign a revision that changes no shards."""
        revision = dealing.next_revision(
            side.view, before, before.root, before.bytes, 0, settles=settles, final=final, number=number
        )
        return await self._book.stage(side.deal, revision.number, {}, lambda _set: self._sign(side, revision))

    async def _changes(self, side: Side, before: Revision) -> tuple[dict[ShardId, int | None], int]:
        """Return the next changes of the set, as far as the escrow pays for them, and the bytes that go. What the set has
        already is forgotten on the way."""
        book, one, view = self._book, side.deal, side.view
        periods = view.terms.periods - max(before.settled, dealing.present_period(view), 0)
        chosen: dict[ShardId, int | None] = {}
        removed = added = waiting = 0
        after = b""
        while len(chosen) < CHANGES_MAX:
            noted = book.noted(one.peer, after, CHANGES_MAX - len(chosen))
            if not noted:
                break
            after = noted[-1][0]
            present = await book.lengths(one, [shard for shard, _ in noted])
            idle = []
            for shard, length in noted:
                if present.get(shard) == length:
                    idle.append((shard, length))
                elif length is None:
                    chosen[shard] = None
                    removed += present[shard]
                else:
                    room = dealplan.room_of(view.terms, _earned(view, before, removed), periods)
                    if before.bytes - removed + added + length <= room:
                        chosen[shard] = length
                        added += length
                    else:
                        waiting += length
            if idle:
                await book.done(one.peer, idle)
        side.trouble.waiting = waiting
        return chosen, removed

    # ---- proofs ----------------------------------------------------------------------------------------------------
    async def _is_proven(self, side: Side, before: Revision) -> bool:
        """Have the peer prove the period that has ended; return whether it did."""
        view, one, trouble = side.view, side.deal, side.trouble
        assert view.standing is not None
        assert side.address is not None
        if not dealing.is_challengeable(view):
            return False
        period = view.standing.period
        seed = await self._ledger.seed_of(one.contract, period, dealing.challenge_height(view))
        if seed is None:
            return False
        trouble.failed_period = period
        with _patience(ATTEST_PATIENCE, "the peer proves nothing in time"):
            proof = await self._transport.attest(side.address, one.contract, before.number, seed, ATTEST_SAMPLES)
        is_proven = await trio.to_thread.run_sync(possession.verify, before.root, seed, ATTEST_SAMPLES, proof)
        if is_proven:
            trouble.failed_period = -1
        else:
            trouble.problem = f"it does not prove that it has what it is paid for (period {period})"
            log.warning("the proof of peer %s for period %d is wrong", one.peer.hex()[:16], period)
        return is_proven

    # ---- sending ---------------------------------------------------------------------------------------------------
    async def _send(self, side: Side, staged: SignedRevision) -> None:
        assert side.address is not None
        one = side.deal
        changes = await self._book.staged_changes(one)
        added = [(shard, length) for shard, length in changes.items() if length is not None]
        removed = [shard for shard, length in changes.items() if length is None]
        try:
            with _patience(REVISE_PATIENCE, "the peer does not answer"):
                found = await self._transport.revise(
                    side.address, one.contract, added, removed, staged.revision, staged.owner
                )
            self._check(side, found.newest)
            if not await self._take(side, found.newest):
                raise PeerRefused("the peer did not sign the revision, without a reason")
        except PeerRefused:
            side.trouble.refused = staged.revision.number
            side.trouble.refusals += 1
            raise
        side.trouble.refusals = 0
        side.trouble.problem = ""

    async def _take(self, side: Side, newest: SignedRevision) -> bool:
        """Accept the staged revision if it is `newest`, which holds; return whether it was, or is accepted already."""
        known = await self._book.newest(side.deal)
        staged = await self._book.staged(side.deal)
        if staged is None or staged.revision != newest.revision:
            return staged is None and known is not None and known.revision == newest.revision
        changes = await self._book.staged_changes(side.deal)
        await self._book.accept(side.deal, newest)
        await self._book.done(side.deal.peer, changes.items())
        side.trouble.refused = 0
        return True

    def _check(self, side: Side, newest: SignedRevision) -> None:
        try:
            deal.check_signed(side.deal.terms, self._network, side.deal.contract, newest)
        except BadAgreement as exc:
            raise PeerUnavailable(f"the peer answers with a revision that does not hold: {exc}") from exc

    def _sign(self, side: Side, revision: Revision) -> SignedRevision:
        signature = deal.sign_revision(side.seed, self._network, side.deal.contract, revision)
        return SignedRevision(revision, signature, b"")


@contextmanager
def _patience(seconds: float, what: str) -> Iterator[None]:
    """Raise RemoteTimeout when the block takes longer."""
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError:
        raise RemoteTimeout(what) from None


def _earned(view: View, before: Revision, removed: int) -> int:
    return dealing.due(view, before, removed, settles=-1)
