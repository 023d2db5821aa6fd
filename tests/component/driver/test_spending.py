"""What the driver signs for its agent: transfers to deals, within the budget, each of them recorded."""

from __future__ import annotations

import time

import pytest
import trio

from fsdecloud.contracts.deal import MONTH
from fsdecloud.crypto import sign
from fsdecloud.crypto.keys import VolumeKeys, deal_seed
from fsdecloud.crypto.wallet import OWN, wallet_seed
from fsdecloud.driver import spending as module
from fsdecloud.driver.spending import Spending
from fsdecloud.errors import LocalProtocolError, UsageError
from fsdecloud.ledger.transactions import check_signatures, decode_tx, sign_transfer
from fsdecloud.store.payments import PaymentStore
from fsdecloud.types import PeerId
from fsdecloud.wire.agentapi import NotePayment, SignPayment

KEYS = VolumeKeys.from_root(b"s" * 32)
NETWORK = b"n" * 32
PEER, OTHER = (PeerId(sign.public_key(bytes([n]) * 32)) for n in (1, 2))


class Purse:
    """A budget, what was noted of it, and the two calls of an agent."""

    def __init__(self, path, budget=1000):
        self.budget = budget
        self.store = PaymentStore(path / "payments", KEYS.at_rest_key)
        self.spending = Spending(KEYS, NETWORK, self.store, lambda: self.budget)
        self.spending.pay = self._note

    async def _note(self, payment):
        self.store.add(payment)

    def call(self, method, request):
        return trio.run(self.spending.methods()[method][1], request)

    def sign(self, amount, nonce, *, peer=PEER, fee=1):
        return decode_tx(self.call("sign_payment", SignPayment(peer, amount, fee, nonce)).tx)

    def back(self, amount, *, peer=PEER, recipient=None):
        seed = deal_seed(KEYS.deal_secret, peer)
        tx = sign_transfer(NETWORK, seed, recipient or self.spending.key, amount, 1, 0)
        return self.call("note_payment", NotePayment(peer, tx))


@pytest.fixture
def purse(tmp_path):
    return Purse(tmp_path)


def test_a_transfer_goes_from_the_wallet_to_the_deals_key_and_is_noted_first(purse):
    tx = purse.sign(500, 3)
    check_signatures(NETWORK, tx)
    assert (tx.amount, tx.fee, tx.nonce) == (500, 1, 3)
    assert tx.sender == sign.public_key(wallet_seed(KEYS.wallet_secret, OWN))
    assert tx.recipient == sign.public_key(deal_seed(KEYS.deal_secret, PEER))
    (noted,) = purse.store.unrecorded()
    assert decode_tx(noted.tx) == tx
    assert purse.sign(500, 3) == tx
    assert len(purse.store.unrecorded()) == 1


def test_within_a_month_no_more_leaves_than_twice_the_budget(purse):
    purse.sign(999, 0)
    purse.sign(990, 1, peer=OTHER)
    with pytest.raises(UsageError, match="1991 went to deals"):
        purse.sign(9, 2)
    purse.sign(900, 1)  # in the place of the other one
    purse.sign(98, 2)
    purse.budget = 2000
    purse.sign(1500, 3)
    purse.budget = 0
    with pytest.raises(UsageError, match="raise it"):
        purse.sign(1, 4)


def test_what_came_back_may_be_spent_again_and_is_noted(purse):
    purse.sign(1000, 0)
    purse.sign(900, 1)
    purse.back(700)
    purse.sign(700, 2)
    with pytest.raises(UsageError):
        purse.sign(200, 3)
    assert len(purse.store.unrecorded()) == 4


def test_after_a_month_there_is_the_budget_again(purse, monkeypatch):
    purse.sign(1998, 0)
    with pytest.raises(UsageError):
        purse.sign(10, 1)
    now = time.time_ns()
    monkeypatch.setattr(module.time, "time_ns", lambda: now + (MONTH + 1) * 10**9)
    purse.sign(10, 1)


def test_an_agent_that_lies_about_fees_burns_little(purse):
    with pytest.raises(UsageError):
        purse.sign(1, 0, fee=251)
    purse.sign(1, 0, fee=250)


def test_only_a_refund_of_that_deal_is_noted(purse):
    with pytest.raises(LocalProtocolError, match="no transfer from a deal"):
        purse.back(5, recipient=OTHER)
    stolen = sign_transfer(NETWORK, b"x" * 32, purse.spending.key, 5, 1, 0)
    with pytest.raises(LocalProtocolError):
        purse.call("note_payment", NotePayment(PEER, stolen))
    assert purse.store.unrecorded() == []


def test_nothing_is_signed_that_cannot_be_noted(tmp_path):
    unopened = Spending(KEYS, NETWORK, PaymentStore(tmp_path, KEYS.at_rest_key), lambda: 1000)
    with pytest.raises(LocalProtocolError, match="before the volume is open"):
        trio.run(unopened.methods()["sign_payment"][1], SignPayment(PEER, 5, 1, 0))
