"""What `decloud deals` and `decloud status` say of a volume's storage deals. Called only from the trio thread."""

from __future__ import annotations

from fsdecloud.agent.dealbook import Deal
from fsdecloud.agent.dealing import Dealer
from fsdecloud.agent.ledgerlink import LedgerLink
from fsdecloud.agent.peers import PeerBook
from fsdecloud.contracts import deal
from fsdecloud.swarm import dealplan
from fsdecloud.swarm.dealing import Phase, View
from fsdecloud.wire.agentapi import DealInfo, DealsStatus

_STATES = {
    Phase.OWNER_PAYS: "forming",
    Phase.PEER_PAYS: "waiting",
    Phase.RUNNING: "running",
    Phase.WINDOW: "running",
    Phase.ASKED: "disputed",
    Phase.PROVEN: "disputed",
    Phase.LAST: "ending",
    Phase.OVER: "over",
}

_RUNNING = ("running", "disputed")


def deals_status(dealer: Dealer, book: PeerBook, link: LedgerLink) -> DealsStatus:
    """Return how all deals are, as they were looked at last."""
    infos: list[DealInfo] = []
    held: list[dealplan.Held] = []
    waiting = 0
    sizes: list[tuple[int, int]] = []
    for peer in dealer.deals.peers():
        deals = dealer.deals.of(peer)
        last = deals[-1] if deals else None
        for one in deals:
            info = _info(dealer, one, link)
            infos.append(info)
            trouble = dealer.trouble(one)
            waiting += trouble.waiting
            if info.state in _RUNNING:
                is_followed = last is not one and last is not None and dealer.runs(last)
                held.append(dealplan.Held(peer, info.size, trouble.waiting, float(info.ends_in), is_followed))
                if not is_followed:
                    sizes.append((info.size, book.price(peer)))
    needed = dealplan.monthly_cost(sizes)
    left = sum(max(info.escrow - info.earned, 0) for info in infos if info.state in _RUNNING)
    at_hand = None if dealer.available < 0 else dealer.available + left
    told = dealplan.warnings(held, budget=dealer.budget, needed=needed, at_hand=at_hand)
    known = {info.peer for info in infos}
    infos += [
        DealInfo(peer, b"", "none", 0, book.price(peer), 0, 0, 0, 0, text)
        for peer, text in dealer.problems.items()
        if peer not in known
    ]
    return DealsStatus(
        budget=dealer.budget,
        deals=tuple(infos),
        monthly=needed,
        earned=sum(info.earned for info in infos),
        locked=sum(info.escrow for info in infos if info.state in ("waiting", "running", "disputed", "ending")),
        waiting=waiting,
        warnings=(*told, *_no_deal(dealer, book)),
    )


def _no_deal(dealer: Dealer, book: PeerBook) -> list[str]:
    """Say why there is no deal where one is needed: new data waits for it."""
    priced = [peer for peer in book.offering() if book.price(peer)]
    if not priced or any(not book.price(peer) for peer in book.offering()):
        return []
    if not dealer.budget:
        return ["all peers of this network ask for money, and there is no budget: decloud budget NAME AMOUNT/month"]
    if not any(dealer.runs(one) for peer in dealer.deals.peers() for one in dealer.deals.of(peer)):
        reason = next(iter(dealer.problems.values()), "it takes a few blocks")
        return [f"no deal runs yet, what is written stays on this machine until one does: {reason}"]
    return []


def _info(dealer: Dealer, one: Deal, link: LedgerLink) -> DealInfo:
    view: View | None = dealer.views.get(one.contract)
    trouble = dealer.trouble(one)
    problem = trouble.problem or dealer.problems.get(one.peer, "")
    newest = dealer.newest.get(one.contract)
    terms = one.terms
    price = terms.rate * deal.UNIT // (terms.unit * terms.period * link.interval) if link.interval else 0
    size, earned = (newest.revision.bytes, newest.revision.earned) if newest is not None else (0, 0)
    if view is None:
        state = "over" if one.row.over_at >= 0 else "forming"
        return DealInfo(one.peer, one.contract, state, size, price, terms.escrow, earned, 0, 0, problem)
    if view.standing is not None:
        earned = max(earned, view.standing.paid)
    ends = dealplan.end_of(terms, view.start)
    left = max(ends - view.height, 0) * link.interval
    state = _STATES[view.phase]
    return DealInfo(one.peer, one.contract, state, size, price, terms.escrow, earned, ends, left, problem)
