"""Choosing peers by what they cost and how they do, terms that keep a budget, and what the owner is told, and when."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdecloud.contracts import deal
from fsdecloud.crypto import sign
from fsdecloud.limits import GIB
from fsdecloud.swarm import dealplan
from fsdecloud.swarm.dealplan import Held, NoDeal, Offer, Schedule
from fsdecloud.types import PeerId

OWNER = sign.public_key(b"o" * 32)
PEER = PeerId(sign.public_key(b"p" * 32))


def offer(number, price=1000, free=GIB, latency=0.01, reliability=1.0):
    return Offer(PeerId(bytes([number]) * 32), price, free, latency, reliability)


def chosen(*offers, count=10):
    return [found.peer[0] for found in dealplan.choose_offers(offers, count)]


def test_the_cheaper_the_faster_and_the_more_reliable_peer_is_chosen():
    assert chosen(offer(1, price=1200), offer(2)) == [2, 1]
    assert chosen(offer(1, latency=0.5), offer(2)) == [2, 1]
    assert chosen(offer(1, reliability=0.6), offer(2)) == [2, 1]
    assert chosen(offer(1, price=1500), offer(2, reliability=0.5)) == [1, 2]
    assert chosen(offer(3), offer(1), offer(2), count=2) == [1, 2]
    assert chosen(offer(1, free=0), offer(2, reliability=0.0)) == []


offers = st.lists(
    st.builds(
        offer,
        number=st.integers(0, 255),
        price=st.integers(1, 10**6),
        latency=st.floats(0, 10),
        reliability=st.floats(0.01, 1),
    ),
    max_size=12,
    unique_by=lambda found: found.peer,
)


@given(offers, st.integers(0, 12), st.data())
def test_the_choice_does_not_depend_on_the_order_and_who_is_better_is_not_left_out(found, count, data):
    best = dealplan.choose_offers(found, count)
    assert len(best) == min(count, len(found))
    assert dealplan.choose_offers(data.draw(st.permutations(found)), count) == best
    if best:
        one = data.draw(st.sampled_from(best))
        better = replace(one, price=max(1, one.price // 2), latency=one.latency / 2)
        again = dealplan.choose_offers([better if x is one else x for x in found], count)
        assert better in again


@pytest.mark.parametrize("interval", [1, 10, 60, 600, 3600])
def test_in_any_network_a_round_of_a_deal_does_not_run_into_the_next(interval):
    times = dealplan.schedule_for(interval)
    terms = dealplan.plan_terms(OWNER, PEER, price=10**6, escrow=10**9, free=1 << 50, schedule=times, interval=interval)
    deal.check_terms(terms)
    assert times.length * interval >= 25 * dealplan.DAY


@given(
    budget=st.integers(0, 10**12),
    deals=st.integers(1, 60),
    price=st.integers(1, 10**9),
    free=st.integers(0, 1 << 45),
    interval=st.integers(1, 600),
)
def test_all_deals_together_keep_the_budget(budget, deals, price, free, interval):
    times = dealplan.schedule_for(interval)
    share = dealplan.escrow_share(budget, deals, times, interval)
    try:
        terms = dealplan.plan_terms(
            OWNER, PEER, price=price, escrow=share, free=free, schedule=times, interval=interval
        )
    except NoDeal:
        return
    assert 0 < terms.escrow <= share
    assert deals * terms.escrow * deal.MONTH <= budget * times.length * interval
    room = dealplan.room_of(terms, 0, terms.periods)
    assert deal.period_price(terms, room) * terms.periods <= terms.escrow
    assert room == deal.BYTES_MAX or deal.period_price(terms, room + 1) * terms.periods > terms.escrow
    start = 1000
    renew, end = dealplan.renew_from(terms, start), dealplan.end_of(terms, start)
    assert start + terms.funding <= renew < end


def test_without_money_there_is_no_deal_and_it_says_what_to_do():
    with pytest.raises(NoDeal, match="raise the budget"):
        dealplan.plan_terms(
            OWNER, PEER, price=1000, escrow=3, free=GIB, schedule=dealplan.schedule_for(60), interval=60
        )


def test_no_more_is_planned_than_the_peer_has_room_for():
    times = Schedule(20, 100, 10, 10, 5)
    terms = dealplan.plan_terms(OWNER, PEER, price=10**9, escrow=10**12, free=GIB, schedule=times, interval=60)
    assert terms.escrow == 10 * deal.period_price(terms, GIB)
    assert terms.collateral == terms.escrow * dealplan.COLLATERAL // 100


def held(number=1, size=GIB, waiting=0, days=20.0, is_followed=False):
    return Held(PeerId(bytes([number]) * 32), size, waiting, days * dealplan.DAY, is_followed)


def test_fault_113_the_owner_is_warned_long_before_a_deal_or_the_money_ends():
    def told(*deals, budget=100, needed=0, at_hand=None):
        return dealplan.warnings(deals, budget=budget, needed=needed, at_hand=at_hand)

    assert told(held()) == []
    assert told(held(days=5, is_followed=True)) == []
    assert told(held(days=5, size=0)) == []
    assert told(held(days=5.5), held(2)) == ["1 deal ends and is not renewed: the first in 5 days"]
    assert "2 deals end and are not renewed: the first in less than a day" in told(held(days=5), held(2, days=0.5))
    assert told(held(), needed=60, at_hand=60) == []
    assert "runs out in 29 days" in told(held(), needed=60, at_hand=59)[0]
    assert "runs out in less than a day" in told(held(), needed=60, at_hand=0)[0]
    assert "4096 bytes" in told(held(waiting=4096))[0]
    assert "costs 101 a month" in told(held(), needed=101)[0]


def test_what_is_stored_costs_what_it_costs():
    assert dealplan.monthly_cost([(GIB, 1000), (GIB // 2, 500), (1, 1)]) == 1000 + 250 + 1
