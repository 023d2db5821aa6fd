"""What each side of a storage deal does next, and which revisions it signs.

Pure. Owner and peer look at the same contract and at the newest revision that both have signed, and each knows from that alone
what it has to send: nothing, as long as the other one answers. So a side that was away, or was restarted, goes on by looking.

    in a period        revisions, off chain, whenever something was stored or deleted
    at its end         the owner asks the peer for a proof, off chain, and signs what it has earned
    the owner is       the peer brings the newest revision and a proof to the chain, after PATIENCE_PEER of the window
    silent
    the peer is        the owner challenges it on the chain, after PATIENCE_OWNER of the window
    silent
    at the deal's end  a final revision by both, which either side brings; without one the newest counts

**What is due.** A period is paid for by what the newest revision has at its end; what is removed in its course is paid for as
if it had stayed to the end. So nobody stores for nothing by taking everything away a moment before a period ends. Amounts are
exact, and both sides compute them: the peer signs no revision that has less.

**Numbers** may be left out. The owner signs first and sends; what the peer refuses it may still sign later. So another revision
with that number would give the peer a choice of two, between which the chain does not choose: the owner goes on with a higher
one instead, which beats the refused one whatever becomes of that.

While the chain waits for a proof, neither side signs anything new: the peer must keep what it has to prove.

**First of all** the owner signs a revision over nothing (`first_revision`); without it the peer pays nothing in, because it
could be challenged with nothing to prove.

Not here: what the contract does (`contracts`), talking to the other side (`agent.dealing`, `peerd.dealing`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from fsdecloud.contracts import deal
from fsdecloud.contracts.deal import Revision, SignedRevision, Standing, Terms
from fsdecloud.contracts.language import Deposit, When
from fsdecloud.contracts.library import standard
from fsdecloud.contracts.machine import SEED_BLOCKS, Instance, step, timeout_of
from fsdecloud.contracts.reasons import InputRefused, NotBehind
from fsdecloud.crypto.shardset import EMPTY
from fsdecloud.errors import FsdecloudError

PATIENCE_PEER: Final = (1, 3)
PATIENCE_OWNER: Final = (2, 3)
"""Part of the window, as a fraction, that a side lets pass for the other to do its part off chain. The peer's is shorter: its
proof on the chain answers a challenge that is still to come, and costs the honest side one transaction instead of two."""

_ASKED: Final = frozenset(("answer", "answer_newer", "prove_again", "prove_last"))
_WINDOW: Final = frozenset(("period_end", "claim", "review"))
_MAY_BRING: Final = frozenset(("period_end", "review", "answer", "prove_again"))
"""Parts of the document in which the peer may bring a newer revision together with its proof."""


class NotDue(FsdecloudError):
    """A revision that this side does not sign; the text says why, and goes to the other side."""


class Phase(Enum):
    """Where a deal is."""

    OWNER_PAYS = auto()
    PEER_PAYS = auto()
    RUNNING = auto()
    """In the course of a period."""
    WINDOW = auto()
    """A period has ended, and both may bring it to the chain."""
    ASKED = auto()
    """The peer has to prove on the chain."""
    PROVEN = auto()
    """It has; the owner may bring a newer revision."""
    LAST = auto()
    """All periods are over; the peer may bring the newest revision."""
    OVER = auto()
    """Nothing is waited for. With an instance: its money has not been paid out yet."""


class Act(Enum):
    """What to send to the chain (`contracts.deal` makes it)."""

    NOTHING = auto()
    FUND = auto()
    BRING = auto()
    PROVE = auto()
    CHALLENGE = auto()
    CATCH_UP = auto()


@dataclass(frozen=True, slots=True)
class Next:
    """What a side does next."""

    act: Act
    brings: bool = False
    """Together with the newest revision, which the chain does not have."""
    again_at: int = 0
    """With NOTHING: the height at which to look again, 0 for only when something else changes."""


@dataclass(frozen=True, slots=True)
class View:
    """A deal as the chain has it at a height, timeouts that have passed included."""

    contract: bytes
    terms: Terms
    start: int
    """Height of the block it was deployed in."""
    height: int
    phase: Phase
    standing: Standing | None
    """None once it is over."""
    timeout: int
    """Height from which on the present phase is over; 0 once the deal is."""


def view_of(contract: bytes, instance: Instance, height: int) -> View:
    """Return how a deal stands in a chain whose next block has this height. Raises InvalidArguments for another contract."""
    terms = deal.terms_of(instance)
    program = standard(deal.NAME)
    present: Instance | None = instance
    try:
        while present is not None:
            present = step(program, contract, present, b"", height, (), _Blind()).instance
    except NotBehind:
        pass
    if present is None:
        return View(contract, terms, instance.start, height, Phase.OVER, None, 0)
    standing = deal.standing_of(present)
    node = program.nodes[present.running.node]
    assert isinstance(node, When)
    action = node.cases[0].action
    if isinstance(action, Deposit):
        phase = Phase.OWNER_PAYS if action.by == "owner" else Phase.PEER_PAYS
    elif standing.part in _ASKED:
        phase = Phase.ASKED
    elif standing.part in _WINDOW:
        phase = Phase.WINDOW
    elif standing.part == "proven":
        phase = Phase.PROVEN
    else:
        phase = Phase.RUNNING if present.running.loops else Phase.LAST
    return View(contract, terms, instance.start, height, phase, standing, timeout_of(program, present))


class _Blind:
    """What a contract sees of the chain when only time passes: it does not look."""

    network = b""

    def block_ids(self, height: int) -> tuple[bytes, ...] | None:
        raise AssertionError(height)

    def proves(self, root: bytes, seed: bytes, samples: int, proof: bytes) -> bool:
        raise AssertionError(root + seed + proof, samples)


# ---- what to send ------------------------------------------------------------------------------------------------
def peer_next(view: View, newest: SignedRevision | None) -> Next:
    """Return what the peer sends now. FUND is for the caller to decide: whether it wants the deal."""
    phase, standing = view.phase, view.standing
    if phase is Phase.OVER:
        return Next(Act.CATCH_UP)
    assert standing is not None
    is_newer = _is_newer(newest, standing)
    if phase is Phase.PEER_PAYS:
        return Next(Act.FUND)
    if _can_end(view, newest) or _must_end(newest, standing, is_newer=is_newer):
        return Next(Act.BRING)
    if phase is Phase.ASKED:
        brings = is_newer and standing.part in _MAY_BRING
        return Next(Act.PROVE, brings)
    if phase is Phase.WINDOW:
        if _settled(newest, standing) > standing.period or not _bytes(newest, standing):
            return Next(Act.NOTHING, again_at=view.timeout)
        begin = _patient(view, PATIENCE_PEER)
        if view.height < begin:
            return Next(Act.NOTHING, again_at=begin)
        return Next(Act.PROVE, is_newer and standing.part in _MAY_BRING)
    if phase is Phase.LAST and newest is not None and is_newer and newest.revision.earned > standing.paid:
        return Next(Act.BRING)
    return Next(Act.NOTHING, again_at=view.timeout)


def owner_next(view: View, newest: SignedRevision | None) -> Next:
    """Return what the owner sends now."""
    phase, standing = view.phase, view.standing
    if phase is Phase.OVER:
        return Next(Act.CATCH_UP)
    assert standing is not None
    is_newer = _is_newer(newest, standing)
    if phase is Phase.OWNER_PAYS:
        return Next(Act.FUND)
    if _can_end(view, newest):
        return Next(Act.BRING)
    if phase is Phase.PROVEN and is_newer:
        return Next(Act.BRING)
    if phase is Phase.WINDOW and _settled(newest, standing) <= standing.period and _bytes(newest, standing):
        begin = _patient(view, PATIENCE_OWNER)
        if view.height < begin:
            return Next(Act.NOTHING, again_at=begin)
        return Next(Act.CHALLENGE, is_newer and standing.part == "period_end")
    return Next(Act.NOTHING, again_at=view.timeout)


def _can_end(view: View, newest: SignedRevision | None) -> bool:
    """Whether the newest revision is the final one, and the contract takes it now from either side."""
    if newest is None or not newest.revision.final:
        return False
    assert view.standing is not None
    return view.phase is Phase.RUNNING or view.standing.part == "period_end"


def _must_end(newest: SignedRevision | None, standing: Standing, *, is_newer: bool) -> bool:
    """Whether the peer ends the deal with the final revision although its owner brought an older one: what would be proven
    after that is over then."""
    return newest is not None and newest.revision.final and is_newer and standing.part in _MAY_BRING


def challenge_height(view: View) -> int:
    """Return the height of the first block that the present period's challenge is drawn from: that of its end."""
    assert view.standing is not None
    return deal.period_end(view.terms, view.start, view.standing.period)


def is_challengeable(view: View) -> bool:
    """Whether the blocks that the present period's challenge is drawn from are there, and the period may still be proven."""
    return view.phase is Phase.WINDOW and view.height >= challenge_height(view) + SEED_BLOCKS


def _patient(view: View, part: tuple[int, int]) -> int:
    assert view.standing is not None
    end = deal.period_end(view.terms, view.start, view.standing.period)
    return end + max(SEED_BLOCKS, view.terms.window * part[0] // part[1])


def _is_newer(newest: SignedRevision | None, standing: Standing) -> bool:
    known = 0 if standing.revision is None else standing.revision.number
    return newest is not None and newest.revision.number > known


def _settled(newest: SignedRevision | None, standing: Standing) -> int:
    known = 0 if standing.revision is None else standing.revision.settled
    return known if newest is None else max(newest.revision.settled, known)


def _bytes(newest: SignedRevision | None, standing: Standing) -> int:
    if newest is not None:
        return newest.revision.bytes
    return 0 if standing.revision is None else standing.revision.bytes


# ---- what to sign ------------------------------------------------------------------------------------------------
def first_revision() -> Revision:
    """Return the revision that a deal begins with: no shards."""
    return Revision(1, EMPTY.root, 0, 0, 0, False)


def present_period(view: View) -> int:
    """Return the period that a revision of now belongs to: below 0 before the first, `periods` after the last."""
    return min(deal.period_at(view.terms, view.start, view.height), view.terms.periods)


def due(view: View, before: Revision | None, removed: int, *, settles: int, final: bool = False) -> int:
    """Return what the peer has earned with a revision that follows `before`: what it had, or was paid on the chain; the price
    of the period that `settles` says is settled now (-1: none); and in the course of a period its price for what goes:
    `removed` bytes, or everything if it is the `final` one."""
    assert view.standing is not None
    earned = max(0 if before is None else before.earned, view.standing.paid)
    size = 0 if before is None else before.bytes
    if settles >= 0:
        earned += deal.period_price(view.terms, size)
    if view.phase is Phase.RUNNING and present_period(view) >= 0:
        earned += deal.period_price(view.terms, size if final else removed)
    return min(earned, view.terms.escrow)


def next_revision(
    view: View,
    before: Revision | None,
    root: bytes,
    size: int,
    removed: int,
    *,
    settles: bool = False,
    final: bool = False,
    number: int = 0,
) -> Revision:
    """Return the revision that follows `before`, over `size` bytes under `root`, of which `removed` went since then.

    `settles`: the period that has just ended was proven. `final`: the deal ends with it. `number` is higher than that of
    `before` if the owner has signed others since, which the peer did not sign; 0 for the next one. Raises NotDue when the
    contract cannot be revised now, or has no money for so much.
    """
    period = _settling(view) if settles else -1
    settled = max(0 if before is None else before.settled, period + 1)
    earned = due(view, before, removed, settles=period, final=final)
    number = number or (1 if before is None else before.number + 1)
    after = Revision(number, root, size, earned, settled, final)
    check_revision(view, before, after, removed)
    return after


def check_revision(view: View, before: Revision | None, after: Revision, removed: int) -> None:
    """Check that a side may sign `after`, which takes `removed` bytes out of what `before` had. Raises NotDue with why not."""
    if view.phase not in (Phase.RUNNING, Phase.WINDOW):
        raise NotDue(_CLOSED[view.phase])
    assert view.standing is not None
    if view.phase is Phase.WINDOW and view.standing.part != "period_end":
        raise NotDue("one side has brought a period to the chain; until that is settled nothing new is signed")
    known = view.standing.revision
    if known is not None and (before is None or before.number < known.number):
        raise NotDue(f"the chain has revision {known.number}, which is newer than the one before this")
    try:
        deal.check_follows(view.terms, before, after)
    except InputRefused as exc:
        raise NotDue(str(exc)) from exc
    settled = 0 if before is None else before.settled
    period = -1
    if after.settled > settled:
        period = _settling(view)
        if after.settled != period + 1:
            raise NotDue(f"period {period} is settled now, and not all up to {after.settled}")
    needed = due(view, before, removed, settles=period, final=after.final)
    if after.earned < needed:
        raise NotDue(f"the peer has earned {needed} by then, not {after.earned}")
    left = view.terms.periods - max(after.settled, present_period(view), 0)
    cost = 0 if after.final else left * deal.period_price(view.terms, after.bytes)
    if view.phase is Phase.WINDOW and after.settled <= view.standing.period and before is not None:
        cost += deal.period_price(view.terms, before.bytes)  # the period that has ended can still be proven
    if after.bytes > (0 if before is None else before.bytes) and after.earned + cost > view.terms.escrow:
        raise NotDue(
            f"{after.bytes} bytes for {left} more periods cost {cost}; of the escrow {view.terms.escrow - after.earned} is left"
        )


_CLOSED: Final = {
    Phase.OWNER_PAYS: "the owner's money is not in the contract",
    Phase.PEER_PAYS: "the peer's collateral is not in the contract",
    Phase.ASKED: "the chain waits for a proof; until then nothing new is signed",
    Phase.PROVEN: "the chain waits whether a proof is contested; until then nothing new is signed",
    Phase.LAST: "all periods are over",
    Phase.OVER: "the deal is over",
}


def _settling(view: View) -> int:
    """Return the period that can be settled now: the one that has ended, and that the chain does not pay for."""
    assert view.standing is not None
    if view.phase is not Phase.WINDOW:
        raise NotDue("no period has ended that is not settled")
    return view.standing.period
