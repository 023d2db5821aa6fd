"""Which storage deals a peer enters, and how much it stores for one.

Pure. A peer that wants money pays collateral into deals whose terms are its own, and keeps what their escrow pays for to their
end, besides a little that no revision names yet (`Offer.credit`). Not here: what is signed later (`swarm.dealing`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fsdecloud.contracts import deal
from fsdecloud.contracts.deal import UNIT, Revision, Terms
from fsdecloud.crypto.possession import CHAIN_SAMPLES
from fsdecloud.errors import FsdecloudError
from fsdecloud.swarm import dealing
from fsdecloud.swarm.dealing import Phase, View

DAY: Final = 86_400

FUNDING_LEFT: Final = 3
"""Blocks that must be left for the collateral to come into one: a deposit after them comes too late, and costs its fee."""

HEIGHT_MAX: Final = 28
"""Most nodes above a shard of a set that is signed. A million shards with ids that nobody chose have some 25; ids that somebody
ground so that they share their beginning would make a proof that is too long for the chain."""


class NotOurs(FsdecloudError):
    """Terms that this peer does not enter a deal on; the text says why, and goes to the owner."""


@dataclass(frozen=True, slots=True)
class Offer:
    """On which terms a peer stores."""

    price: int
    """Smallest units for a GiB and 30 days, at least."""
    collateral: int
    """Percent of the escrow, at most."""
    days: int
    """The longest deal."""
    credit: int
    """Bytes that are stored for a deal and named by no revision, at most."""


def check_terms(view: View, offer: Offer, interval: int) -> None:
    """Check that a contract's terms, and the time that is left for paying in, are those of the offer.

    `interval` is the network's, in seconds for a block. Money and room are the caller's business. Raises NotOurs.
    """
    terms = view.terms
    if terms.unit != UNIT or terms.rate < offer.price * terms.period * interval:
        raise NotOurs(f"the price of this peer is {offer.price} for a GiB and 30 days; the contract pays less")
    if terms.collateral * 100 > offer.collateral * terms.escrow:
        raise NotOurs(f"this peer pays in at most {offer.collateral} % of the escrow, not {terms.collateral}")
    length = terms.period * terms.periods * interval
    if length > offer.days * DAY:
        raise NotOurs(f"this peer makes deals of at most {offer.days} days, not {length / DAY:.1f}")
    if terms.samples > CHAIN_SAMPLES:
        raise NotOurs(f"a proof on the chain has at most {CHAIN_SAMPLES} samples, not {terms.samples}")
    try:
        deal.check_terms(terms)
    except FsdecloudError as exc:
        raise NotOurs(str(exc)) from exc
    if view.phase is Phase.PEER_PAYS and view.timeout - view.height < FUNDING_LEFT:
        raise NotOurs("there is no time left to pay in: begin another contract")


def capacity(terms: Terms) -> int:
    """Return how many bytes the escrow pays for from a deal's first period to its last; 0 when storing costs nothing."""
    return _affordable(terms, terms.escrow, terms.periods) if terms.rate else 0


def room(view: View, newest: Revision) -> int | None:
    """Return how many bytes, all together, what is left of the escrow pays for to the deal's end, None for any number.

    `newest` is the newest revision of both.
    """
    left = view.terms.periods - max(newest.settled, dealing.present_period(view), 0)
    if not view.terms.rate:
        return None
    return _affordable(view.terms, max(view.terms.escrow - newest.earned, 0), left) if left > 0 else 0


def refusal(view: View, newest: Revision) -> str:
    """Return why nothing new is stored for a deal as it stands now, "" if something is."""
    if view.phase in (Phase.OWNER_PAYS, Phase.PEER_PAYS):
        return "the deal is not funded yet"
    if newest.final or view.phase in (Phase.LAST, Phase.OVER):
        return "the deal is over"
    return ""


def _affordable(terms: Terms, money: int, periods: int) -> int:
    """Return the most bytes that `money` pays for in so many periods; each costs bytes * rate // unit."""
    return ((money // periods + 1) * terms.unit - 1) // terms.rate
