"""Which peers a volume makes deals with, on which terms, when a deal is renewed, and what its owner is told.

Pure. The budget is what the deals of a month may cost: each deal's escrow is an equal share of it, and what a peer did not earn
comes back at the deal's end. While one deal follows another both are locked up, twice the budget at most. The money pays for

    budget * GiB / price        bytes for a month, shards counted

and a deal takes no more bytes than its own escrow pays for to its end: what is stored always stays paid for as long as its deal
runs, whatever happens to the money meanwhile.

Not here: what the two sides sign (`swarm.dealing`), making deals (`agent.dealing`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from fsdecloud.contracts import deal
from fsdecloud.contracts.deal import MONTH, UNIT, Terms
from fsdecloud.contracts.reasons import InvalidArguments
from fsdecloud.errors import FsdecloudError
from fsdecloud.types import PeerId

DAY: Final = 86_400

PERIOD: Final = DAY
DEAL_LENGTH: Final = 30 * DAY
"""Seconds of a period, and of a deal, where blocks come fast enough for the windows in it."""

PERIOD_MIN: Final = 4 * deal.WINDOW + deal.CONTEST + 60
"""Blocks of the shortest period with the usual windows: there is an hour of it left at one block a minute."""

LATENCY_SCALE: Final = 0.1
"""Seconds of latency that count as much as double the price."""

COLLATERAL: Final = 25
"""Percent of the escrow that a peer puts up: what one with the usual settings is ready to."""

RENEW_SHARE: Final = 8
"""A deal is renewed when this part of it is left, at least two periods: four days of a month, for a peer that is away, or to
store with another one."""

WARN_DAYS: Final = 7
"""Days before a deal ends that nothing follows, in which the owner is warned."""


class NoDeal(FsdecloudError):
    """A deal that cannot be had on these terms; the text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """The times of a deal, in blocks (`contracts.deal.Terms`)."""

    funding: int
    period: int
    periods: int
    window: int
    contest: int

    @property
    def length(self) -> int:
        """Blocks from the end of the funding to that of the last period."""
        return self.period * self.periods


@dataclass(frozen=True, slots=True)
class Offer:
    """A peer that stores for money, as far as it is known."""

    peer: PeerId
    price: int
    """Smallest units for a GiB and a month."""
    free: int
    """Bytes that it takes."""
    latency: float
    """Seconds until it answers."""
    reliability: float
    """Part of the time in which it did what it promised, from 0 to 1."""


def schedule_for(interval: int) -> Schedule:
    """Return the times of deals in a network with a block each `interval` seconds."""
    period = max(PERIOD // interval, PERIOD_MIN)
    return Schedule(deal.FUNDING, period, max(1, DEAL_LENGTH // (interval * period)), deal.WINDOW, deal.CONTEST)


def choose_offers(offers: Iterable[Offer], count: int) -> list[Offer]:
    """Return up to `count` of the offers, the best first: by price x reliability x latency.

    A byte at a peer that keeps its promises half of the time costs double: it has to be stored twice. Latency counts as money
    does, LATENCY_SCALE for double the price. Those that keep none, or have no room, are left out; equal ones go by their ids.
    """
    usable = [offer for offer in offers if offer.reliability > 0 and offer.free > 0]
    return sorted(usable, key=lambda offer: (_cost(offer), offer.peer))[:count]


def _cost(offer: Offer) -> float:
    return offer.price / offer.reliability * (1 + max(offer.latency, 0.0) / LATENCY_SCALE)


def escrow_share(budget: int, deals: int, schedule: Schedule, interval: int) -> int:
    """Return what each of `deals` deals has as its escrow, so that all together keep the budget (smallest units a month)."""
    return budget * schedule.length * interval // (MONTH * deals) if deals else 0


def plan_terms(
    owner: bytes, peer: PeerId, *, price: int, escrow: int, free: int, schedule: Schedule, interval: int
) -> Terms:
    """Return the terms of a deal for which there is `escrow`, at most for the `free` bytes that the peer has room for.

    The terms' escrow is what the bytes cost, to the last unit, and so at most `escrow`. Raises NoDeal when it pays for nothing.
    """
    rate = price * schedule.period * interval
    most = min(escrow // schedule.periods * UNIT // rate, free, deal.BYTES_MAX) if rate else 0
    try:
        terms = _terms(owner, peer, price, most, schedule, interval)
        terms = _terms(owner, peer, price, most, schedule, interval, terms.escrow * COLLATERAL // 100)
    except InvalidArguments as exc:
        raise NoDeal(f"no deal at the price {price} for a GiB and month: {exc}") from exc
    if not terms.escrow:
        raise NoDeal(f"{escrow} pay for no deal at the price {price} for a GiB and month: raise the budget")
    return terms


def _terms(owner: bytes, peer: PeerId, price: int, most: int, times: Schedule, interval: int, put_up: int = 0) -> Terms:
    return deal.plan_terms(
        owner,
        peer,
        price=price,
        interval=interval,
        most=most,
        period=times.period,
        periods=times.periods,
        collateral=put_up,
        funding=times.funding,
        window=times.window,
        contest=times.contest,
    )


# ---- a deal that runs --------------------------------------------------------------------------------------------
def end_of(terms: Terms, start: int) -> int:
    """Return the height at which the last period of a deal ends that was deployed at `start`."""
    return deal.period_end(terms, start, terms.periods - 1)


def room_of(terms: Terms, earned: int, periods_left: int) -> int:
    """Return how many bytes the rest of an escrow pays for, for `periods_left` periods (0: as many as there are)."""
    if not periods_left or not terms.rate:
        return deal.BYTES_MAX
    each = max(terms.escrow - earned, 0) // periods_left
    return min(((each + 1) * terms.unit - 1) // terms.rate, deal.BYTES_MAX)


def renew_from(terms: Terms, start: int) -> int:
    """Return the height from which on a deal is renewed: while there is time for what may go wrong."""
    length = terms.period * terms.periods
    ahead = min(max(length // RENEW_SHARE, 2 * terms.period + terms.funding), max(length // 2, terms.period))
    return end_of(terms, start) - ahead


# ---- what the owner is told --------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Held:
    """A deal as the warnings see it."""

    peer: PeerId
    bytes: int
    waiting: int
    """Bytes that it has no money for."""
    ends_in: float
    """Seconds."""
    is_followed: bool
    """Whether the next one runs already."""


def warnings(held: Sequence[Held], *, budget: int, needed: int, at_hand: int | None) -> list[str]:
    """Return what `status` says, the most urgent first.

    `needed` is what the stored bytes cost a month at the prices of now; `at_hand` the money that is left for them: what the
    wallet can spend and what peers have not earned yet; None while that is not known. Owners hear a month before it is gone.
    """
    found = []
    ending = [one for one in held if one.bytes and not one.is_followed and one.ends_in < WARN_DAYS * DAY]
    if ending:
        first = min(ending, key=lambda one: one.ends_in)
        found.append(f"{_deals(len(ending))} and {_is(len(ending))} not renewed: the first in {_days(first.ends_in)}")
    if at_hand is not None and at_hand < needed:
        left = at_hand * MONTH // needed
        found.append(f"the money for deals runs out in {_days(left)}: have somebody pay to decloud wallet address")
    waiting = sum(one.waiting for one in held)
    if waiting:
        found.append(
            f"{waiting} bytes are stored beyond what the deals pay for: they are covered once the budget is higher"
        )
    if needed > budget:
        found.append(
            f"what is stored costs {needed} a month, more than the budget of {budget}: raise it (decloud budget)"
        )
    return found


def _deals(count: int) -> str:
    return "1 deal ends" if count == 1 else f"{count} deals end"


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def _days(seconds: float) -> str:
    if seconds < DAY:
        return "less than a day"
    days = int(seconds // DAY)
    return f"{days} day{'s' if days > 1 else ''}"


def monthly_cost(sizes: Iterable[tuple[int, int]]) -> int:
    """Return what it costs to keep (bytes, price) each for a month, rounded up."""
    return sum(-(-size * price * MONTH // UNIT) for size, price in sizes)
