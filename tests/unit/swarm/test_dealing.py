"""Both sides of a storage deal, on the real contract: what each sends and signs when the other one answers, or does not."""

import random
from dataclasses import dataclass, field, replace

import pytest

from fsdecloud.contracts import deal
from fsdecloud.contracts.deal import SignedRevision, plan_terms
from fsdecloud.contracts.library import standard
from fsdecloud.contracts.machine import deploy, step
from fsdecloud.contracts.reasons import NotBehind
from fsdecloud.crypto import sign
from fsdecloud.limits import GIB
from fsdecloud.swarm import dealing
from fsdecloud.swarm.dealing import Act, NotDue, Phase, view_of

OWNER, PEER = b"o" * 32, b"p" * 32
OWNER_KEY, PEER_KEY = sign.public_key(OWNER), sign.public_key(PEER)
NETWORK, CONTRACT = b"n" * 32, b"c" * 32
PROGRAM = standard(deal.NAME)
PRICE = 30_000


def make_terms(periods=4, most=10 * GIB, collateral=5_000):
    return plan_terms(
        OWNER_KEY,
        PEER_KEY,
        price=PRICE,
        interval=60,
        most=most,
        period=600,
        periods=periods,
        collateral=collateral,
        samples=8,
    )


@dataclass
class Court:
    """A chain with one contract, and its two sides. They look at every `stride`-th block."""

    terms: deal.Terms = field(default_factory=make_terms)
    has_shards: bool = True
    """Whether the peer can prove."""
    network: bytes = NETWORK

    def __post_init__(self):
        self.height = 100
        self.instance = deploy(PROGRAM, deal.arguments_of(self.terms), self.height).instance
        self.paid = {"owner": 0, "peer": 0, "": 0}
        self.deposited = {OWNER_KEY: 0, PEER_KEY: 0}
        self.sent = []
        self.newest = self.signed(dealing.first_revision())

    def signed(self, revision):
        signatures = [deal.sign_revision(seed, NETWORK, CONTRACT, revision) for seed in (OWNER, PEER)]
        return SignedRevision(revision, *signatures)

    def block_ids(self, height):
        return tuple(bytes([i]) * 32 for i in range(3)) if height + 3 <= self.height else None

    def proves(self, root, _seed, _samples, proof):
        assert root == self.newest.revision.root
        return proof == b"proof" and self.has_shards

    def send(self, actor, acts):
        """Put an input into the next block."""
        try:
            outcome = step(PROGRAM, CONTRACT, self.instance, actor, self.height, acts, self)
        except NotBehind:
            return
        self.sent.append((self.height, actor, tuple(type(act).__name__ for act in acts)))
        self.deposited[actor] += outcome.deposited
        for payment in outcome.payments:
            self.paid[payment.party] += payment.amount
        self.instance = outcome.instance

    @property
    def view(self):
        return view_of(CONTRACT, self.instance, self.height)

    def act(self, actor):
        """Let one side do what it has to do now."""
        if self.instance is None:
            return
        owns = actor == OWNER_KEY
        following = (dealing.owner_next if owns else dealing.peer_next)(self.view, self.newest)
        newest = self.newest if following.brings else None
        if following.act is Act.PROVE and not self.has_shards:
            return
        acts = {
            Act.NOTHING: None,
            Act.FUND: deal.fund_owner(self.terms) if owns else deal.fund_peer(self.terms),
            Act.BRING: deal.bring(self.newest),
            Act.PROVE: deal.prove(b"proof", newest),
            Act.CHALLENGE: deal.challenge(newest),
            Act.CATCH_UP: (),
        }[following.act]
        if acts is not None:
            self.send(actor, acts)

    def revise(self, size, removed=0, **options):
        after = dealing.next_revision(
            self.view, self.newest.revision, bytes([size % 251]) * 32, size, removed, **options
        )
        self.newest = self.signed(after)

    def settle(self):
        """What both do off chain at a period's end, if that is now."""
        view = self.view
        if (
            self.instance is None
            or not dealing.is_challengeable(view)
            or self.newest.revision.final
            or self.newest.revision.settled > view.standing.period
            or view.standing.part != "period_end"
            or not self.has_shards
        ):
            return
        is_last = view.standing.period + 1 == self.terms.periods
        revision = self.newest.revision
        after = dealing.next_revision(view, revision, revision.root, revision.bytes, 0, settles=True, final=is_last)
        self.newest = self.signed(after)

    def run(self, until=None, *, owner=lambda _height: True, peer=lambda _height: True, talk=None, stride=7):
        """Go on block by block; each side looks when it is there, and both talk when both are."""
        talk = talk or (lambda height: owner(height) and peer(height))
        while self.instance is not None and (until is None or self.height < until):
            if self.height % stride == 0:
                if talk(self.height):
                    self.settle()
                for actor, there in ((OWNER_KEY, owner), (PEER_KEY, peer)):
                    if self.instance is not None and there(self.height):
                        self.act(actor)
            self.height += 1
            if self.height > 20_000:
                raise AssertionError("the deal never ended")

    def begin(self, size=GIB):
        """Fund it and agree on the first shards."""
        self.act(OWNER_KEY)
        self.height += 1
        self.act(PEER_KEY)
        self.revise(size)

    def end(self, period):
        return deal.period_end(self.terms, 100, period)

    def check_books(self):
        assert self.instance is None
        assert sum(self.paid.values()) == sum(self.deposited.values())

    @property
    def proofs(self):
        return sum("Proving" in names for _height, _actor, names in self.sent)


def price(terms, size=GIB):
    return deal.period_price(terms, size)


def test_a_deal_of_two_that_answer_takes_three_inputs():
    court = Court()
    court.begin()
    court.run()
    assert [names for _height, _actor, names in court.sent] == [("Depositing",), ("Depositing",), ("Choosing",)]
    assert court.paid["peer"] == 4 * price(court.terms) + court.terms.collateral
    assert court.paid["owner"] == court.terms.escrow - 4 * price(court.terms)
    assert not court.paid[""]
    court.check_books()


def test_the_price_is_exact():
    terms = make_terms(periods=72)  # 72 periods of 600 minutes are 30 days
    assert 72 * price(terms) == PRICE - PRICE % 72


def test_a_peer_whose_owner_is_silent_is_paid_for_what_it_proves():
    court = Court()
    court.begin()
    court.run(owner=lambda _height: False)
    assert court.proofs == 4
    assert court.paid["peer"] == 4 * price(court.terms) + court.terms.collateral
    court.check_books()


def test_an_owner_who_comes_back_pays_once():
    court = Court()
    court.begin()
    court.run(owner=lambda height: not court.end(1) - 5 <= height < court.end(2))
    assert court.proofs == 1
    assert court.paid["peer"] == 4 * price(court.terms) + court.terms.collateral
    court.check_books()


def test_a_peer_that_left_is_challenged_not_paid_and_slashed():
    court = Court()
    court.begin()
    court.run(peer=lambda height: height < court.end(1) - 5)
    challenges = [names for _height, actor, names in court.sent if actor == OWNER_KEY and names[-1:] == ("Choosing",)]
    assert len(challenges) == 2
    assert court.paid["peer"] == price(court.terms)
    assert court.paid[""] == court.terms.collateral * court.terms.burned // 1000
    court.check_books()


def test_a_peer_that_is_away_over_one_end_loses_that_period_alone():
    court = Court()
    court.begin()
    gone = range(court.end(1) - 5, court.end(1) + 2 * court.terms.window + 90)
    court.run(peer=lambda height: height not in gone)
    assert court.paid["peer"] == 3 * price(court.terms) + court.terms.collateral
    assert not court.paid[""]
    court.check_books()


def test_a_peer_without_the_shards_is_slashed():
    court = Court(has_shards=False)
    court.begin()
    court.run()
    assert court.paid["peer"] == 0
    assert court.paid["owner"] > court.terms.escrow
    court.check_books()


def test_both_away_at_a_deadline_leaves_that_period_unpaid():
    court = Court()
    court.begin()
    gone = range(court.end(1) - 5, court.end(1) + court.terms.window + 5)
    court.run(owner=lambda height: height not in gone, peer=lambda height: height not in gone)
    assert court.paid["peer"] == 3 * price(court.terms) + court.terms.collateral
    court.check_books()


def test_an_owner_who_vanishes_has_the_rest_back_without_coming_back():
    court = Court()
    court.begin()
    court.run(owner=lambda height: height < court.end(0))
    assert court.paid["owner"] == court.terms.escrow - 4 * price(court.terms)
    court.check_books()


def test_a_peer_that_never_funds_costs_the_owner_nothing():
    court = Court()
    court.run(peer=lambda _height: False)
    assert court.paid == {"owner": court.terms.escrow, "peer": 0, "": 0}


def test_an_early_end_pays_for_the_period_that_has_begun():
    court = Court()
    court.begin()
    court.run(court.end(1) + 300)
    court.revise(0, GIB, final=True)
    court.run()
    assert court.paid["peer"] == 3 * price(court.terms) + court.terms.collateral
    assert court.height < court.end(2)
    court.check_books()


def test_what_is_removed_in_a_period_is_paid_for_to_its_end():
    court = Court()
    court.begin(2 * GIB)
    court.run(court.end(0) + 300)
    court.revise(GIB, GIB)
    court.run()
    assert court.paid["peer"] == price(court.terms, 2 * GIB) + 4 * price(court.terms) + court.terms.collateral
    court.check_books()


def test_a_challenge_with_nothing_stored_is_not_needed_and_harms_nobody():
    court = Court()
    court.act(OWNER_KEY)
    court.height += 1
    court.act(PEER_KEY)
    court.run(owner=lambda _height: False)
    assert court.proofs == 0
    assert court.paid["peer"] == court.terms.collateral
    court.check_books()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda r: replace_revision(r, earned=r.earned - 1), "has earned"),
        (lambda r: replace_revision(r, settled=r.settled + 1), "settled"),
        (lambda r: replace_revision(r, bytes=40 * GIB), "escrow"),
    ],
)
def test_the_peer_signs_nothing_that_is_less_than_due(change, reason):
    court = Court()
    court.begin()
    court.run(court.end(0) + 300)
    good = dealing.next_revision(court.view, court.newest.revision, b"r" * 32, GIB // 2, GIB // 2)
    dealing.check_revision(court.view, court.newest.revision, good, GIB // 2)
    with pytest.raises(NotDue, match=reason):
        dealing.check_revision(court.view, court.newest.revision, change(good), GIB // 2)


def test_a_revision_that_the_peer_refused_is_left_out_and_beaten_by_the_next():
    court = Court()
    court.begin()
    court.run(court.end(0) + 300)
    before = court.newest
    refused = dealing.next_revision(court.view, before.revision, b"r" * 32, 2 * GIB, 0)
    court.revise(GIB // 2, GIB // 2, number=refused.number + 1)
    assert court.newest.revision.number == refused.number + 1
    court.run(court.end(1), owner=lambda _height: False)
    kept, court.newest = court.newest, court.signed(refused)  # the peer signs it after all, and brings it
    court.run(court.end(1) + 80, owner=lambda _height: False)
    assert court.view.phase is Phase.PROVEN
    court.newest = kept
    court.act(OWNER_KEY)
    assert court.view.standing.revision == kept.revision
    court.run()
    court.check_books()


def replace_revision(revision, **changes):
    return deal.Revision(**({name: getattr(revision, name) for name in revision.__struct_fields__} | changes))


def test_what_is_added_leaves_the_price_of_a_period_that_is_not_settled_yet():
    court = Court()
    court.begin(9 * GIB)
    court.run(court.end(0) + 8)
    before = court.newest.revision
    unsettled = replace_revision(before, settled=0, earned=0)
    most = 10 * GIB + 3 * GIB // 9  # what the escrow pays for in three periods, if the first costs nothing
    dealing.next_revision(court.view, before, b"r" * 32, 10 * GIB, 0)
    with pytest.raises(NotDue, match="escrow"):
        dealing.next_revision(court.view, unsettled, b"r" * 32, most, 0)
    dealing.next_revision(court.view, unsettled, b"r" * 32, 10 * GIB, 0)


def test_nothing_is_signed_while_the_chain_waits_for_a_proof():
    court = Court()
    court.begin()
    court.run(court.end(0) + court.terms.window - 10, peer=lambda height: height < court.end(0))
    assert court.view.phase is Phase.ASKED
    with pytest.raises(NotDue, match="waits for a proof"):
        court.revise(2 * GIB)


@pytest.mark.parametrize("challenges", [False, True])
def test_a_final_revision_ends_the_deal_although_its_owner_brings_an_older_one(challenges):
    court = Court()
    court.begin()
    court.run(court.end(0) + 1)
    before = court.newest
    court.height += 6
    court.revise(GIB, settles=True, final=True)
    court.send(OWNER_KEY, deal.challenge(before) if challenges else deal.bring(before))
    assert court.view.standing.part == ("answer" if challenges else "review")
    court.act(PEER_KEY)
    assert court.paid["peer"] == price(court.terms) + court.terms.collateral
    court.check_books()


def test_a_revision_that_the_chain_has_overtaken_is_not_signed():
    court = Court()
    court.begin()
    court.run(court.end(0) + 300, owner=lambda _height: False)
    assert court.view.standing.revision.number == 2
    with pytest.raises(NotDue, match="newer than the one before"):
        dealing.check_revision(court.view, dealing.first_revision(), replace(court).newest.revision, 0)


@pytest.mark.parametrize("seed", range(40))
def test_whoever_is_there_all_the_time_loses_nothing(seed):
    """Random absences of the other side: an honest peer earns each period, an honest owner pays for what was proven."""
    choices = random.Random(seed)
    court = Court(terms=make_terms(periods=choices.randint(1, 6)))
    court.begin()
    spans = [sorted(choices.sample(range(220, 5_000), 2)) for _ in range(choices.randint(1, 4))]

    def away(height):
        return any(first <= height < last for first, last in spans)

    if seed % 2:
        court.run(owner=lambda height: not away(height), stride=choices.choice((1, 7, 20)))
        assert court.paid["peer"] == court.terms.periods * price(court.terms) + court.terms.collateral
    else:
        court.run(peer=lambda height: not away(height), stride=choices.choice((1, 7, 20)))
        earned = court.paid["peer"] - (court.terms.collateral if not court.paid[""] else 0)
        assert earned % price(court.terms) == 0
        assert court.paid["owner"] >= court.terms.escrow - earned
    court.check_books()
