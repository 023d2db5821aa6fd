"""The owner's deals with peers that want money, over a real chain."""

from __future__ import annotations

import os

import pytest

from fsdecloud.agent import dealforming
from fsdecloud.contracts import deal
from fsdecloud.ledger.transactions import Deploy, Input, Transfer
from fsdecloud.wire.agentapi import Budget, Empty
from tests.component.agent.agentworld import do_not_wait
from tests.component.agent.dealworld import FEE, SCHEDULE, Hole, deal_test


@pytest.fixture(autouse=True)
def _do_not_wait(monkeypatch):
    do_not_wait(monkeypatch)


def test_a_deal_is_formed_revised_and_settled_without_the_chain(tmp_path, monkeypatch):
    async def work(world):
        peers = world.transport.all()
        async with world.agent():
            await world.form(3)
            await world.store_data(*(os.urandom(5000) for _ in range(8)))
            await world.wait_covered(*peers)
            numbers = [world.newest(peer)[0].number for peer in peers]
            assert max(numbers) <= 10
            await world.mine(SCHEDULE.funding + 2 * SCHEDULE.period)
            for peer in peers:
                (newest,) = world.newest(peer)
                assert newest.settled == 2
                view = peer.view(world, next(iter(peer.contracts)))
                assert newest.earned == 2 * deal.period_price(view.terms, newest.bytes)
                assert view.standing.paid == 0
            deploys = world.txs(Deploy)
            assert len(deploys) == 3

    deal_test(tmp_path, monkeypatch, work)


def test_fault_113_a_deal_is_renewed_before_it_ends_and_nothing_is_stored_again(tmp_path, monkeypatch):
    async def work(world):
        (peer,) = world.transport.all()
        async with world.agent():
            await world.form(1)
            await world.store_data(*(os.urandom(5000) for _ in range(4)))
            await world.wait_covered(peer)
            puts, shards, size = peer.puts, set(peer.shards), world.newest(peer)[0].bytes
            await world.mine(SCHEDULE.funding + SCHEDULE.length, until=lambda: len(world.txs(Deploy)) == 2)
            await world.mine(8, until=lambda: len(peer.contracts) == 2)
            old, new = peer.contracts
            await world.mine(8, until=lambda: list(peer.running(world)) == [new])
            assert (peer.puts, world.covered(peer), world.newest(peer)[0].bytes) == (puts, shards, size)
            old, new = peer.contracts.values()
            assert old.newest.revision.final
            assert not new.newest.revision.final
            await world.mine(SCHEDULE.period + SCHEDULE.funding)
            assert world.newest(peer)[0].settled >= 1
            earned = old.newest.revision.earned
            terms = peer.view(world, next(iter(peer.running(world)))).terms
            collateral = world.txs(Deploy)[0].arguments[3]
            assert earned % deal.period_price(terms, size) == 0
            spent = sum(tx.fee for tx in [*world.txs(Input), *world.txs(Deploy)] if tx.sender != peer.id)
            paid = sum(tx.amount for tx in world.txs(Transfer))
            left = world.balance(world.deal_key(peer))
            assert paid == left + spent + earned + terms.escrow
            assert collateral == terms.collateral > 0

    deal_test(tmp_path, monkeypatch, work, peers=1)


def test_fault_077_a_peer_that_dropped_shards_is_challenged_on_the_chain_and_slashed(tmp_path, monkeypatch):
    async def work(world):
        async with world.agent() as driver:
            await world.form(2)
            await world.store_data(*(os.urandom(5000) for _ in range(4)))
            await world.wait_covered(*world.transport.all())
            peer = max(world.transport.all(), key=lambda one: len(one.shards))
            peer.shards = Hole()
            wallet = world.balance(world.deal_key(peer))
            (contract,) = peer.running(world)
            terms = peer.view(world, contract).terms
            await world.mine(SCHEDULE.funding + 3 * SCHEDULE.period, until=lambda: not world.has(contract))
            assert peer.attests >= 2
            back = world.balance(world.deal_key(peer)) - wallet
            sent = [tx.acts for tx in world.txs(Input) if tx.sender == world.deal_key(peer)]
            assert len(sent) in (3, 4)  # the deposit, two challenges, and perhaps what pays out
            assert (
                back
                == terms.escrow + terms.collateral - terms.collateral * terms.burned // 1000 - (len(sent) - 1) * FEE
            )
            states = {state.id: state.state for state in (await driver.status()).peers}
            assert states[peer.id] == "distrusted"
            assert len(world.running()) == 1

    deal_test(tmp_path, monkeypatch, work, peers=2)


def test_a_silent_peer_that_proves_on_the_chain_is_paid(tmp_path, monkeypatch):
    async def work(world):
        (peer,) = world.transport.all()
        async with world.agent():
            await world.form(1)
            await world.store_data(os.urandom(5000))
            await world.wait_covered(peer)
            peer.attests_nothing = True
            (contract,) = peer.running(world)
            view = peer.view(world, contract)
            price = deal.period_price(view.terms, world.newest(peer)[0].bytes)
            await world.mine(70, until=lambda: peer.view(world, contract).standing.paid == price)
            peer.attests_nothing = False
            await world.mine(SCHEDULE.period)
            assert peer.contracts[contract].newest.revision.earned == 2 * price

    deal_test(tmp_path, monkeypatch, work, peers=1)


def test_a_peer_that_refuses_the_deal_is_left_and_the_money_comes_back(tmp_path, monkeypatch):
    async def work(world):
        refusing, other = world.transport.all()
        refusing.refuses_deals = True
        async with world.agent() as driver:
            await world.form(1)
            assert world.running() == [other]
            assert "no deals today" in str((await driver.status()).deals)
            key = world.deal_key(refusing)

            def is_back():
                return any(tx.sender == key for tx in world.txs(Transfer))

            await world.mine(SCHEDULE.funding + 8, until=is_back)
            (refund,) = [tx for tx in world.txs(Transfer) if tx.sender == key]
            assert refund.recipient == world.spending.key
            assert world.balance(key) == 0
            assert refund in world.payments()
            await world.mine(3)
            assert len(world.txs(Deploy)) == 2

    deal_test(tmp_path, monkeypatch, work, peers=2)


def test_lost_answers_and_refusals_never_make_two_revisions_of_one_number(tmp_path, monkeypatch):
    async def work(world):
        (peer,) = world.transport.all()
        async with world.agent():
            await world.form(1)
            peer.loses_answers = 2
            await world.store_data(os.urandom(5000))
            await world.wait_covered(peer)
            peer.refuses_revisions = 2
            await world.store_data(os.urandom(5000))
            await world.mine(4)
            await world.wait_covered(peer)
            (newest,) = world.newest(peer)
            assert newest.number > len({number for _, number in peer.signed}) - 3
            assert peer.revisions == sorted(peer.revisions)

    deal_test(tmp_path, monkeypatch, work, peers=1)


def test_fault_113_without_money_data_waits_and_says_so_and_goes_on_with_a_budget(tmp_path, monkeypatch):
    async def work(world):
        world.budget = 0
        peers = world.transport.all()
        async with world.agent() as driver:
            entry = driver.stage(os.urandom(5000))
            await driver.store([entry])
            await world.mine(2)
            status = await driver.status()
            assert status.deals.deals == ()
            assert any("there is no budget" in text for text in status.deals.warnings)
            assert world.txs(Deploy) == []
            world.budget = 10**9
            await driver.call("budget", Budget(world.budget), Empty)
            await world.form(3)
            await driver.wait_stored([entry], 1)
            await world.wait_covered(*peers)
            status = await driver.status()
            assert len(status.deals.deals) == 3
            assert {info.state for info in status.deals.deals} == {"running"}
            assert sum(tx.amount for tx in world.payments()) <= world.budget

    deal_test(tmp_path, monkeypatch, work)


def test_fault_113_an_empty_wallet_is_said(tmp_path, monkeypatch):
    async def work(world):
        async with world.agent() as driver:
            await world.mine(2)
            (warning,) = (await driver.status()).deals.warnings
            assert "the wallet has 0" in warning
            assert world.payments() == []

    deal_test(tmp_path, monkeypatch, work, peers=1, money=False)


def test_peers_may_delete_once_no_deal_names_what_goes(tmp_path, monkeypatch):
    async def work(world):
        (peer,) = world.transport.all()
        async with world.agent():
            await world.form(1)
            await world.store_data(*(os.urandom(300_000) for _ in range(3)))
            await world.wait_covered(peer)
            shards = sorted(peer.shards)
            before = world.newest(peer)[0]
            await world.dealer.release(peer.id, shards[:1])
            assert world.covered(peer) == set(shards[1:])
            (after,) = world.newest(peer)
            gone = before.bytes - after.bytes
            assert gone == len(peer.shards[shards[0]])
            await world.mine(SCHEDULE.funding)
            await world.dealer.release(peer.id, shards[1:2])
            view = peer.view(world, next(iter(peer.contracts)))
            assert world.newest(peer)[0].earned == deal.period_price(view.terms, len(peer.shards[shards[1]]))

    deal_test(tmp_path, monkeypatch, work, peers=1)


def test_an_agent_that_lost_its_state_finds_its_deals_and_ends_them_for_new_ones(tmp_path, monkeypatch):
    async def work(world):
        (peer,) = world.transport.all()
        async with world.agent():
            await world.form(1)
            await world.store_data(os.urandom(5000))
            await world.wait_covered(peer)
        (old,) = peer.contracts
        async with world.agent(tmp_path / "new"):
            await world.mine(12, until=lambda: len(peer.contracts) == 2)
            await world.mine(6, until=lambda: old not in peer.running(world))
            assert peer.contracts[old].newest.revision.final
            assert len(list(peer.running(world))) == 1

    deal_test(tmp_path, monkeypatch, work, peers=1)


def test_a_reorganisation_across_the_deposit_and_across_a_payout_changes_nothing_in_the_end(tmp_path, monkeypatch):
    async def work(world):
        (peer,) = world.transport.all()
        fork = world.make.tip
        async with world.agent():
            await world.form(1)
            await world.reorganise(fork)
            await world.mine(12, until=lambda: len(world.running()) == 1)
            await world.store_data(os.urandom(5000))
            await world.wait_covered(peer)
            (contract,) = peer.running(world)
            peer.attests_nothing = True
            fork = world.make.tip
            await world.mine(80, until=lambda: peer.view(world, contract).standing.paid > 0)
            paid = peer.view(world, contract).standing.paid
            await world.reorganise(fork)
            await world.mine(80, until=lambda: peer.view(world, contract).standing.paid > 0)
            assert peer.view(world, contract).standing.paid == paid

    deal_test(tmp_path, monkeypatch, work, peers=1)


def test_fault_001_an_agent_that_dies_in_any_step_goes_on_and_pays_and_signs_nothing_twice(tmp_path, monkeypatch):
    async def work(world):
        (peer,) = world.transport.all()
        data = [os.urandom(5000) for _ in range(2)]

        async def live():
            await world.form(1)
            for one in data:
                await world.store_data(one)
                await world.wait_covered(peer)
            (contract,) = peer.running(world)
            await world.mine(70, until=lambda: peer.contracts[contract].newest.revision.settled > 0)

        died = await world.outlive(live)
        assert died > 6
        assert len(world.txs(Deploy)) == 1
        (contract,) = peer.running(world)
        terms = peer.view(world, contract).terms
        assert sum(tx.amount for tx in world.txs(Transfer)) == terms.escrow + dealforming.FEES * FEE
        newest = peer.contracts[contract].newest.revision
        assert newest.earned == deal.period_price(terms, newest.bytes)

    deal_test(tmp_path, monkeypatch, work, peers=1)
