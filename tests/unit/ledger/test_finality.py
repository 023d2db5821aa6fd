"""Votes make checkpoints final: fork choice, what a voter signs, what burns, and who is suspended."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fsdecloud.ledger import finality, reasons, staking
from fsdecloud.ledger.chain import open_next
from fsdecloud.ledger.finality import Voted
from fsdecloud.ledger.mempool import Mempool
from fsdecloud.ledger.transactions import decode_tx, encode_evidence, sign_bond, sign_unbond, sign_vote

sys.path.insert(0, str(Path(__file__).parent))
from chainmaker import BOND, DELAY, DEPTH, INTERVAL, KEYS, TWO, VOTERS, Voting


@pytest.fixture
def make():
    made = Voting()
    while made.tip.height % INTERVAL:
        made.add()
    return made


def test_two_thirds_of_the_stake_make_a_checkpoint_final(make):
    make.epoch(*VOTERS[:1])
    assert make.finality().justified.height == 0
    first = make.tip.height
    make.epoch(*VOTERS[:2])
    assert make.finality().justified.height == first
    make.epoch(*VOTERS[1:])
    assert (make.finality().final.height, make.finality().justified.height) == (first, first + INTERVAL)


def final_chain(make):
    """Return a tip above a final checkpoint, and the block before that checkpoint."""
    before = make.points[make.tip.parent]
    for _ in range(3):
        make.epoch(*TWO)
    assert make.finality().final.height > before.height
    return make.tip, before


def test_no_work_takes_back_what_is_final(make):
    tip, before = final_chain(make)
    make.tip = before
    for n in range(DEPTH + 3):
        make.add(time=before.time + 3 + n)
    assert make.tip.work > tip.work
    assert make.choose(make.tip, tip) is not None
    while make.tip.height % INTERVAL:
        make.add()
    for _ in range(4):
        make.epoch(*TWO)  # they sign what they may not: even so
    with pytest.raises(reasons.ConflictsWithFinal, match="would replace final checkpoint"):
        make.choose(tip, make.tip)


def test_the_justified_checkpoint_comes_before_work(make):
    make.epoch(*TWO)
    make.epoch(*TWO)
    fork = make.tip
    voted = make.epoch(*TWO)
    make.tip = fork
    for _ in range(DEPTH):
        make.add()
    assert make.tip.work > voted.work
    assert make.choose(voted, make.tip) is None
    assert make.choose(make.tip, voted).fork == fork


def test_voters_taken_anew_on_one_branch_do_not_count_against_another():
    make = Voting(least_stake=BOND)
    make.add()
    fork = make.tip
    for _ in range(DELAY // staking.RESTARTS // INTERVAL + 2):
        make.epoch(VOTERS[0])
    make.epoch(VOTERS[0])
    alone = make.epoch(VOTERS[0])
    assert make.finality().final.height > fork.height
    make.tip = fork
    while make.tip.work <= alone.work:
        make.add()
    assert make.finality().justified.height < make.finality(alone).justified.height
    assert make.choose(make.tip, alone) is None


def test_the_absent_are_suspended_and_come_back_with_a_bond(make):
    for _ in range(DELAY // staking.RESTARTS // INTERVAL + 2):
        make.epoch(VOTERS[0])
    row = make.finality()
    assert row.restarted > 0
    assert (row.front.stake, row.bonded) == (BOND, BOND)
    make.add([sign_bond(make.network, seed, 1, 1, 1) for seed in VOTERS[1:]])
    while make.tip.height % INTERVAL:
        make.add()
    make.add()
    assert make.finality().front.stake == 3 * BOND + 2


def test_equivocation_burns_the_stake_and_it_votes_no_more(make):
    honest = make.votes(VOTERS[0])[0]
    vote = decode_tx(honest)
    other = sign_vote(make.network, VOTERS[0], vote.source, vote.source_height, bytes(32), vote.target_height)
    before = make.state().account(KEYS[0]).balance
    make.add([encode_evidence(honest, other, 5)])
    stake = staking.stake_of(make.state(), KEYS[0])
    assert (stake.amount, stake.is_burned, stake.weight) == (0, True, 0)
    assert make.state().account(KEYS[0]).balance == before
    with pytest.raises(reasons.BadTransaction, match="NotAVoter"):
        make.add(make.votes(VOTERS[0]))
    with pytest.raises(reasons.BadTransaction, match="StakeLocked"):
        make.add([sign_bond(make.network, VOTERS[0], BOND, 1, 1)])


def test_a_stake_can_burn_while_it_leaves_and_is_back_after_the_delay(make):
    vote = decode_tx(make.votes(VOTERS[0])[0])
    make.add([sign_unbond(make.network, seed, 1, 1) for seed in VOTERS[:2]])
    release = staking.stake_of(make.state(), KEYS[1]).release
    assert release == make.tip.height + DELAY
    two = [
        sign_vote(make.network, VOTERS[0], vote.source, vote.source_height, bytes([n]) * 32, vote.target_height)
        for n in (1, 2)
    ]
    make.add([encode_evidence(*two, 1)])
    before = [make.state().account(key).balance for key in KEYS[:2]]
    while make.tip.height < release - 1:
        make.add()
    assert [make.state().account(key).balance for key in KEYS[:2]] == before
    make.add()
    assert [make.state().account(key).balance for key in KEYS[:2]] == [before[0], before[1] + BOND]
    assert staking.stake_of(make.state(), KEYS[1]) is None


def test_changes_of_one_stake_are_bounded():
    make = Voting(unbond_delay=400)
    while len(staking.stake_of(make.state(), KEYS[0]).weights) < staking.CHANGES_MAX:
        nonce = make.state().account(KEYS[0]).nonce
        make.add([sign_bond(make.network, VOTERS[0], 1, 1, nonce)])
    while make.tip.height % INTERVAL:
        make.add()
    make.add()
    late = sign_bond(make.network, VOTERS[0], 1, 1, nonce + 1)
    with pytest.raises(reasons.BadTransaction, match="StakeLocked"):
        make.add([late])
    assert len(staking.stake_of(make.state(), KEYS[0]).weights) == staking.CHANGES_MAX
    make.add([sign_unbond(make.network, VOTERS[0], 1, make.state().account(KEYS[0]).nonce)])


def test_what_a_voter_signs_never_conflicts(make):
    make.epoch(*TWO)
    fork = make.tip
    tips = [make.epoch(*VOTERS[:count], parent=fork) for count in (0, 2)]
    for tip in tuple(tips):
        tips += [make.epoch(*VOTERS[:count], parent=tip) for count in (0, 2)]
    for order in (tips, tips[::-1], tips[::2] + tips[1::2]):
        voted, signed = Voted(), []
        for tip in order:
            plan = finality.plan_vote(finality.next_finality(make.document, tip, make.nodes.get), voted)
            if plan is not None:
                source, target = plan
                voted = Voted(source.height, target.height)
                link = source.id, source.height, target.id, target.height
                signed.append(decode_tx(sign_vote(make.network, VOTERS[0], *link)))
        assert signed
        assert not any(staking.is_conflict(a, b) for a in signed for b in signed)


def test_votes_come_before_what_pays(make):
    pool = Mempool(make.document)
    pool.rebase(lambda: open_next(make.document, make.tip, make.nodes.get), make.tip.height + 1, make.tip.time)
    transfer = make.transfer(VOTERS[0], KEYS[1], 1, 1, fee=10_000)
    bond = sign_bond(make.network, VOTERS[0], 5, 1, 2)
    for data in (transfer, bond, *make.votes(*VOTERS)):
        pool.add(data, make.tip.time)
    kinds = [type(tx).__name__ for tx in pool.select(make.tip.time + 2)]
    assert kinds == ["Vote", "Vote", "Transfer", "Bond"]  # two thirds are enough: the third vote is of no use any more
    make.add([pool.get(identity) for identity in pool.ids()[:2]])


def test_what_was_final_once_stays_also_on_a_chain_that_lacks_the_votes_for_it():
    make = Voting()
    fork = make.tip
    tip = [make.add().point for _ in range(DEPTH - 1)][-1]
    held = next(height for height in range(fork.height + 1, tip.height) if height % INTERVAL == 0)
    make.tip = fork
    while make.tip.work <= tip.work:
        make.add(recipient=KEYS[0])
    assert make.finality(tip).final.height < held
    assert make.choose(tip, make.tip) is not None
    with pytest.raises(reasons.ConflictsWithFinal):
        finality.choose_tip(make.document, make.points.get, make.finality, tip, make.tip, held)


def test_what_new_voters_did_does_not_count_and_what_those_before_did_counts_however_often_they_were_replaced():
    """Whoever mines alone for long enough, and has the voters taken anew twice, is not believed for it."""
    make = Voting(least_stake=BOND)
    while make.tip.height % INTERVAL:
        make.add()
    make.epoch(*TWO)
    fork = make.tip
    make.epoch(*TWO)
    ours = make.tip
    assert make.finality().justified.height > fork.height - INTERVAL
    make.tip = fork

    def mine_until(done, *seeds):
        while not done(make.finality()):
            make.add(make.votes(*seeds) if make.tip.height % INTERVAL == 0 else [])
            assert make.tip.height < 20 * DELAY

    mine_until(lambda row: row.justified.height > make.finality(ours).justified.height, VOTERS[0])
    first = make.finality().restarted
    assert first > fork.height
    mine_until(lambda row: row.restarted > first)
    alone = make.finality()
    assert make.finality(ours).justified.height < alone.justified.height < alone.restarted
    tip, make.tip = make.tip, ours
    deep = [make.add().point for _ in range(DEPTH + 1)][-1]
    assert tip.work > deep.work
    assert make.choose(deep, tip) is None
    assert make.choose(ours, tip) is None
