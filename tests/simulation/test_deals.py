"""Months of storage deals on a real chain: who earns what, to the last unit (`tests.simulation.deals`)."""

import pytest

from fsdecloud.contracts import deal
from fsdecloud.ledger.contracting import pool_of
from tests.simulation.deals import PERIOD, Owner, Peer, Story, Year, fund


def price(made):
    """What all periods of a deal cost for what it keeps."""
    return made.terms.periods * deal.period_price(made.terms, made.shard_set.size)


def test_deals_of_those_who_answer_leave_nothing_on_the_chain_but_their_beginning_and_end():
    year = Year(periods=3)
    alice = Owner("alice")
    fund(year, alice, 5 * 10**9)
    made = [year.begin(alice, Peer(f"peer {i}"), year.shards()) for i in range(3)]
    year.run(year.maker.tip.height + 5 * PERIOD)
    for one in made:
        assert one.ended_at
        assert one.asked == 3
        assert one.proofs == one.challenged == one.caught == 0
        assert year.earned(one.peer.key) == price(one)


@pytest.mark.parametrize(
    ("days", "periods"), [(90, 3), pytest.param(365, 9, marks=pytest.mark.long)], ids=["a season", "a year"]
)
def test_everybody_gets_what_is_due(days, periods):
    """The books are balanced after each block (`Year.check_books`)."""
    story = Story(days, periods=periods).run()
    year, alice, bob = story.year, story.alice, story.bob
    for peer in story.honest:
        deals = story.deals_of(peer)
        assert len(deals) >= days // (periods * 10)
        assert year.earned(peer.key) == sum(map(price, deals))
        assert sum(made.proofs + made.challenged for made in deals) == 0

    # The owner who vanished: the peer proves on the chain, is paid in full, and the rest goes back without anybody's doing.
    (served,) = story.deals_of(story.served)
    assert served.proofs > 0
    assert year.earned(story.served.key) == price(served)
    assert year.balance(served.terms.owner) >= served.terms.escrow - price(served)

    # The one who left: its last two periods are not paid, the collateral is gone, half of it burned.
    gone = story.deals_of(story.leaver)[-1]
    assert gone.challenged == 2
    assert len(story.deals_of(story.spare)) >= 1
    before = sum(map(price, story.deals_of(story.leaver)[:-1]))
    paid = year.earned(story.leaver.key) + gone.terms.collateral - before
    assert paid % deal.period_price(gone.terms, gone.shard_set.size) == 0
    assert 0 <= paid < price(gone)

    # The one who dropped a part is found out.
    assert any(made.caught for made in story.deals_of(story.dropper))
    assert pool_of(year.maker.state()).burned > 0
    assert year.balance(alice.key) + year.balance(bob.key) > 0
