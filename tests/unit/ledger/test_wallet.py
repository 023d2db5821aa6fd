"""What a wallet may spend, what a payment should cost, and how the lines of a history come about."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdecloud.crypto import sign
from fsdecloud.errors import UsageError
from fsdecloud.ledger.accounting import Line, Why, line_of, lines_of_block, newest_first
from fsdecloud.ledger.blocks import Block
from fsdecloud.ledger.fees import TRANSFER_SIZE, estimate_fee, price_mark
from fsdecloud.ledger.mempool import BLOCK_OVERHEAD
from fsdecloud.ledger.network import AMOUNT_MAX
from fsdecloud.ledger.reasons import Conflict
from fsdecloud.ledger.transactions import (
    Bond,
    Coinbase,
    Operate,
    Register,
    Transfer,
    Unbond,
    Vote,
    decode_tx,
    encode_tx,
    sign_transfer,
    tx_id,
)
from fsdecloud.ledger.wallet import funds_of, plan_payment

sys.path.insert(0, str(Path(__file__).parent))
from chainmaker import MINER, MINER_KEY, Maker, easy_network

ME, YOU, THEM = (sign.public_key(bytes([n]) * 32) for n in (1, 2, 3))
DOCUMENT = easy_network()


def transfer(sender: bytes, recipient: bytes, amount: int, fee: int = 1, nonce: int = 0) -> Transfer:
    return Transfer(1, sender, recipient, amount, fee, nonce, b"")


# ---- lines ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("tx", "why", "change"),
    [
        (Coinbase(1, 5, ME, 70), Why.MINED, 70),
        (transfer(ME, YOU, 10, 3), Why.SENT, -13),
        (transfer(YOU, ME, 10, 3), Why.RECEIVED, 10),
        (transfer(ME, ME, 10, 3), Why.SELF, -3),
        (Bond(1, ME, 10, 3, 0, b""), Why.BONDED, -13),
        (Unbond(1, ME, 3, 0, b""), Why.FEE, -3),
        (Register(1, ME, "wss://a", 1, 0, 1, 3, 0, b""), Why.FEE, -3),
        (Operate(1, ME, b"", 1, 3, 0, b"", b""), Why.FEE, -3),
        (Register(1, ME, "wss://a", 1, 0, 1, 0, 9, b""), None, 0),
        (Coinbase(1, 5, YOU, 70), None, 0),
        (transfer(YOU, THEM, 10), None, 0),
        (Vote(1, ME, ME, 0, ME, 2, b""), None, 0),
    ],
)
def test_what_a_transaction_does_to_an_account(tx, why, change):
    line = line_of(tx, ME, 7, 8)
    if why is None:
        assert line is None
    else:
        assert (line.why, line.change, line.tx, line.height, line.time) == (why, change, tx_id(tx), 7, 8)


def test_what_no_transaction_explains_is_its_own_line():
    lines = lines_of_block(ME, 100 - 13, [transfer(ME, YOU, 10, 3), transfer(YOU, THEM, 5)], 7, 8)
    assert [(line.why, line.change) for line in lines] == [(Why.SENT, -13), (Why.OTHER, 100)]
    assert lines_of_block(ME, -13, [transfer(ME, YOU, 10, 3)], 7, 8) == lines[:1]


def test_what_waits_comes_first():
    def at(height: int | None) -> Line:
        return Line(ME, Why.SENT, -1, 0, YOU, tx_id(transfer(ME, YOU, 1)), height, 0)

    assert [line.height for line in newest_first([at(3), at(None), at(9), at(None)])] == [None, None, 9, 3]


# ---- what may be spent ---------------------------------------------------------------------------------------------
def test_what_waits_is_spent_and_what_comes_is_not():
    funds = funds_of(ME, 100, 4, 6, [transfer(ME, YOU, 30, 2, 4), transfer(ME, ME, 9, 1, 5), transfer(YOU, ME, 50)])
    assert (funds.outgoing, funds.incoming, funds.available) == (42, 59, 58)
    plan = plan_payment(funds, YOU, 51, 7, 1)
    assert (plan.amount, plan.fee, plan.nonce, plan.left) == (51, 7, 6, 0)
    assert plan_payment(funds, YOU, None, 7, 1).amount == 51
    with pytest.raises(
        UsageError, match="can spend 58, and 52 with the fee 7 are 59; it has 100 in the ledger, of which 42"
    ):
        plan_payment(funds, YOU, 52, 7, 1)
    with pytest.raises(UsageError, match="59 are on their way to it: wait"):
        plan_payment(funds, YOU, 52, 7, 1)


@pytest.mark.parametrize(
    ("balance", "amount", "fee", "reason"),
    [
        (0, 1, 1, "have somebody pay to it"),
        (0, None, 1, "can spend 0"),
        (5, None, 5, "can spend 5"),
        (100, 10, 0, "costs at least 1"),
        (AMOUNT_MAX, AMOUNT_MAX, 1, "can spend"),
    ],
)
def test_fault_112_what_cannot_be_paid(balance, amount, fee, reason):
    with pytest.raises(UsageError, match=reason):
        plan_payment(funds_of(ME, balance, 0, 0, []), YOU, amount, fee, 1)


@given(st.data())
def test_fault_112_the_ledger_takes_every_plan_and_nothing_more(data):
    """Payments one after another, and in the place of others, as the mempool's rules have it."""
    make = Maker(DOCUMENT)
    make.add()
    pool = make.pool()
    balance = make.document.subsidy
    for _ in range(data.draw(st.integers(1, 6))):
        waiting = [decode_tx(tx) for tx in pool.naming({MINER_KEY})]
        funds = funds_of(MINER_KEY, balance, 0, pool.next_nonce(MINER_KEY), waiting)
        replaces = data.draw(st.sampled_from([None, *waiting]))
        fee = data.draw(st.integers(1, 5)) + (replaces.fee if replaces is not None else 0)
        room = funds.available + (replaces.amount + replaces.fee if replaces is not None else 0)
        if room <= fee:
            continue
        amount = data.draw(st.none() | st.integers(1, room - fee))
        plan = plan_payment(funds, data.draw(st.sampled_from([YOU, MINER_KEY])), amount, fee, 1, replaces=replaces)
        assert plan.left == room - plan.amount - fee >= 0
        pool.add(sign_transfer(make.network, MINER, plan.recipient, plan.amount, plan.fee, plan.nonce), make.tip.time)
    chosen = pool.select(make.tip.time + 2)
    assert len(chosen) == len(pool)
    make.add([encode_tx(tx) for tx in chosen])


def test_a_payment_in_the_place_of_another_costs_more():
    make = Maker(DOCUMENT)
    make.add()
    pool = make.pool()
    first = sign_transfer(make.network, MINER, YOU, 10, 3, 0)
    pool.add(first, make.tip.time)
    waiting = decode_tx(first)
    funds = funds_of(MINER_KEY, make.document.subsidy, 0, 1, [waiting])
    with pytest.raises(UsageError, match="costs at least 4: --fee 4"):
        plan_payment(funds, THEM, 10, 3, 1, replaces=waiting)
    with pytest.raises(Conflict):
        pool.add(sign_transfer(make.network, MINER, THEM, 10, 3, 0), make.tip.time)
    plan = plan_payment(funds, THEM, None, 4, 1, replaces=waiting)
    assert (plan.nonce, plan.amount + plan.fee, plan.left) == (0, make.document.subsidy, 0)
    done = funds_of(MINER_KEY, 5, 1, 1, [])
    with pytest.raises(UsageError, match="does not wait any more"):
        plan_payment(done, THEM, 1, 4, 1, replaces=waiting)
    with pytest.raises(UsageError, match="does not wait any more"):
        plan_payment(funds_of(ME, 50, 0, 0, []), THEM, 1, 4, 1, replaces=waiting)


# ---- fees ----------------------------------------------------------------------------------------------------------
SMALL = msgspec.structs.replace(DOCUMENT, block_max=10_000, minimum_fee=5)


def test_the_least_fee_where_there_is_room():
    assert estimate_fee(SMALL, TRANSFER_SIZE, [], []) == 5
    assert estimate_fee(SMALL, TRANSFER_SIZE, [(10**9, 17_000)], [0, 0, 0]) == 5


@given(st.lists(st.tuples(st.integers(0, 10**7), st.integers(100, 9000)), max_size=20), st.integers(100, 4096))
def test_an_estimate_outbids_what_the_next_blocks_have_no_room_for(waiting, size):
    fee = estimate_fee(SMALL, size, waiting, [])
    assert fee >= 5
    before = sum(taken for price, taken in waiting if price * size > fee * 1_000_000)
    assert before + size <= 2 * (SMALL.block_max - BLOCK_OVERHEAD)


def test_a_transfer_is_no_longer_than_its_fee_is_estimated_for():
    assert len(sign_transfer(bytes(32), MINER, YOU, AMOUNT_MAX, AMOUNT_MAX, (1 << 53) - 1)) <= TRANSFER_SIZE


def test_full_blocks_count_by_what_was_cheapest_in_them():
    txs = tuple(
        encode_tx(tx)
        for tx in (
            Coinbase(1, 1, ME, 1),
            Vote(1, ME, ME, 0, ME, 2, b""),
            transfer(ME, YOU, 1, 90),
            transfer(YOU, ME, 1, 30),
        )
    )
    block = Block(None, txs)
    assert price_mark(SMALL, block, 8_078) == 0
    mark = price_mark(SMALL, block, 8_079)
    assert mark == 30 * 1_000_000 // len(txs[3]) + 1
    assert estimate_fee(SMALL, len(txs[3]), [], [mark] * 4 + [0] * 2) == 31
    assert estimate_fee(SMALL, len(txs[3]), [], [mark] * 2 + [0] * 4) == 5
    assert price_mark(SMALL, Block(None, txs[:2]), 9_000) == 0
