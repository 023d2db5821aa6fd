"""Which deals a peer enters and how much it stores for one: the terms, and the bytes that money pays for."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdecloud.contracts import deal
from fsdecloud.contracts.deal import Revision, plan_terms
from fsdecloud.contracts.library import standard
from fsdecloud.contracts.machine import deploy
from fsdecloud.crypto import sign
from fsdecloud.limits import GIB
from fsdecloud.swarm import dealing, offering
from fsdecloud.swarm.dealing import Phase, view_of
from fsdecloud.swarm.offering import NotOurs, Offer

OWNER, PEER = sign.public_key(b"o" * 32), sign.public_key(b"p" * 32)
CONTRACT = b"c" * 32
OFFER = Offer(price=30_000, collateral=50, days=30, credit=GIB)


def view_with(phase=Phase.PEER_PAYS, **changes):
    fields = {"price": 30_000, "interval": 60, "most": 10 * GIB, "period": 600, "periods": 4, "collateral": 0}
    terms = plan_terms(OWNER, PEER, **(fields | changes))
    instance = deploy(standard(deal.NAME), deal.arguments_of(terms), 100).instance
    return replace(view_of(CONTRACT, instance, 101), phase=phase)


def test_its_own_terms_are_taken():
    view = view_with()
    offering.check_terms(view, OFFER, 60)
    offering.check_terms(view_with(price=30_001), OFFER, 60)
    escrow = view.terms.escrow
    offering.check_terms(view_with(collateral=escrow // 2), OFFER, 60)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"price": 29_999}, "price"),
        ({"interval": 59}, "price"),
        ({"samples": 9}, "samples"),
        ({"periods": 73}, "days"),
        ({"collateral": 10**9}, "of the escrow"),
    ],
)
def test_other_terms_are_not(changes, why):
    with pytest.raises(NotOurs, match=why):
        offering.check_terms(view_with(**changes), OFFER, 60)


def test_a_contract_whose_time_is_almost_over_is_not_taken():
    view = view_with()
    offering.check_terms(replace(view, height=view.timeout - offering.FUNDING_LEFT), OFFER, 60)
    with pytest.raises(NotOurs, match="no time"):
        offering.check_terms(replace(view, height=view.timeout - offering.FUNDING_LEFT + 1), OFFER, 60)


@given(st.integers(0, 1 << 50), st.integers(1, 10**6), st.integers(1, 50))
def test_the_room_is_the_most_that_is_paid_for(most, price, periods):
    """One byte more would cost more than there is; what it says does not."""
    view = view_with(Phase.RUNNING, most=most, price=price, periods=periods)
    terms = view.terms
    room = offering.room(view, dealing.first_revision())
    assert room == offering.capacity(terms) >= most
    assert periods * deal.period_price(terms, room) <= terms.escrow
    assert periods * deal.period_price(terms, room + 1) > terms.escrow


def test_what_was_earned_leaves_less_room_and_fewer_periods_more():
    view = view_with(Phase.RUNNING)
    price = view.terms.escrow // 4
    assert offering.room(view, Revision(2, bytes(32), 0, price, 1, False)) == offering.capacity(view.terms)
    assert offering.room(view, Revision(2, bytes(32), 0, 2 * price, 1, False)) < offering.capacity(view.terms)
    assert offering.room(view, Revision(2, bytes(32), 0, 0, 4, False)) == 0
    assert offering.room(view_with(Phase.RUNNING, price=0), dealing.first_revision()) is None


def test_nothing_is_stored_before_a_deal_and_after_it():
    first = dealing.first_revision()
    assert not offering.refusal(view_with(Phase.RUNNING), first)
    assert not offering.refusal(view_with(Phase.ASKED), first)
    for phase in (Phase.OWNER_PAYS, Phase.PEER_PAYS, Phase.LAST, Phase.OVER):
        assert offering.refusal(view_with(phase), first)
    assert offering.refusal(view_with(Phase.RUNNING), replace_final(first))


def replace_final(revision):
    return Revision(revision.number, revision.root, revision.bytes, revision.earned, revision.settled, True)
