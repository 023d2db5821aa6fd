"""The mempool: what waits is valid, in order and bounded; what a block takes is valid in that block."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from fsdecloud.crypto import sign
from fsdecloud.errors import InvalidTransaction
from fsdecloud.ledger import mempool, reasons
from fsdecloud.ledger.transactions import Coinbase, decode_tx, encode_tx, tx_id

sys.path.insert(0, str(Path(__file__).parent))
from chainmaker import GENESIS_TIME, MINER, MINER_KEY, Maker, commitment_of, easy_network

VOLUME = bytes([2]) * 32
ALICE = bytes([3]) * 32
ALICE_KEY = sign.public_key(ALICE)
NOW = GENESIS_TIME + 10


def ids_of(*data: bytes) -> list[bytes]:
    return [tx_id(decode_tx(item)) for item in data]


def test_queues_anchors_and_gives_one_per_block():
    make = Maker()
    pool = make.pool()
    anchors = [make.anchor(VOLUME, n) for n in (1, 2, 3)]
    assert [pool.add(a, NOW) for a in anchors] == ids_of(*anchors)
    assert pool.add(anchors[1], NOW) == ids_of(anchors[1])[0]
    assert len(pool) == 3
    for anchor in anchors:
        chosen = pool.select(NOW)
        assert [encode_tx(tx) for tx in chosen] == [anchor]
        make.add([anchor])
        dropped = pool.rebase(make.state, make.tip.height + 1, NOW)
        assert [encode_tx(d.tx) for d, _ in dropped] == [anchor]
    assert len(pool) == 0
    assert pool.size == 0


def test_refuses_with_the_reason_and_changes_nothing():
    make = Maker()
    make.add()
    pool = make.pool()
    pool.add(make.transfer(MINER, ALICE_KEY, 100, 0), NOW)
    before = pool.ids()
    for data, reason in (
        (make.transfer(MINER, ALICE_KEY, 100, 2), reasons.WrongNonce),
        (make.transfer(MINER, ALICE_KEY, 101, 0), reasons.Conflict),
        (make.transfer(ALICE, MINER_KEY, 100, 0), reasons.NotEnoughMoney),
        (make.transfer(MINER, ALICE_KEY, 1, 1, fee=0), reasons.BadStamp),
        (make.anchor(VOLUME, 2), reasons.WrongPredecessor),
        (b"junk", reasons.MalformedTransaction),
        (encode_tx(Coinbase(1, 2, MINER_KEY, 5)), reasons.MisplacedCoinbase),
    ):
        with pytest.raises(reason):
            pool.add(data, NOW)
        assert pool.ids() == before
    forged = bytearray(make.anchor(VOLUME, 1))
    forged[-1] ^= 1
    with pytest.raises(reasons.BadSignature):
        pool.add(bytes(forged), NOW)


def test_an_anchor_signed_again_takes_the_place_of_the_one_that_waits():
    make = Maker()
    pool = make.pool()
    old = make.anchor(VOLUME, 1, lease_expiry=NOW + 10)
    follower = make.anchor(VOLUME, 2, lease_expiry=NOW + 20)
    new = make.anchor(VOLUME, 1, commitment=bytes([5]) * 32, lease_expiry=NOW + 30)
    pool.add(old, NOW)
    pool.add(follower, NOW)
    pool.add(new, NOW)
    assert list(pool.ids()) == ids_of(new)
    with pytest.raises(reasons.Conflict):
        pool.add(old, NOW)
    paid = make.anchor(VOLUME, 1, commitment=bytes([6]) * 32, lease_expiry=NOW + 40, fee=5)
    with pytest.raises(reasons.NotEnoughMoney):
        pool.add(paid, NOW)
    assert list(pool.ids()) == ids_of(new)


def test_a_register_is_replaced_by_a_newer_one():
    make = Maker()
    pool = make.pool()
    pool.add(make.register(ALICE, 5), NOW)
    pool.add(make.register(ALICE, 6, url="wss://127.0.0.1:9"), NOW)
    with pytest.raises(reasons.Conflict):
        pool.add(make.register(ALICE, 4), NOW)
    assert len(pool) == 1
    make.add([encode_tx(tx) for tx in pool.select(NOW)])
    assert [r.url for _, r in make.state().registry()] == ["wss://127.0.0.1:9"]


def test_a_declaration_waits_for_its_registration():
    make = Maker()
    pool = make.pool()
    with pytest.raises(reasons.NotRegistered):
        pool.add(make.operate(ALICE, VOLUME, 5), NOW)
    pool.add(make.register(ALICE, 5), NOW)
    pool.add(make.operate(ALICE, VOLUME, 5), NOW)
    pool.add(make.operate(ALICE, None, 6), NOW)
    with pytest.raises(reasons.Conflict):
        pool.add(make.operate(ALICE, VOLUME, 4), NOW)
    assert len(pool) == 2
    make.add([encode_tx(tx) for tx in pool.select(NOW)])
    assert make.state().operators() == {}
    assert make.state().operated(sign.public_key(ALICE)).sequence == 6


def test_the_best_paid_come_first_but_never_before_what_they_need():
    make = Maker()
    make.add()
    make.add([make.transfer(MINER, ALICE_KEY, 1000, 0)])
    pool = make.pool()
    cheap = make.transfer(MINER, ALICE_KEY, 1, 1, fee=1)
    rich = make.transfer(MINER, ALICE_KEY, 1, 2, fee=900)
    middle = make.transfer(ALICE, MINER_KEY, 1, 0, fee=500)
    free = make.anchor(VOLUME, 1)
    for data in (free, cheap, rich, middle):
        pool.add(data, NOW)
    assert [encode_tx(tx) for tx in pool.select(NOW)] == [middle, cheap, rich, free]
    make.add([encode_tx(tx) for tx in pool.select(NOW)])


def test_transactions_of_a_left_branch_come_back():
    make = Maker()
    fork = make.tip
    pool = make.pool()
    anchor = make.anchor(VOLUME, 1)
    pool.add(anchor, NOW)
    block = make.add([anchor]).block
    pool.rebase(make.state, 2, NOW)
    assert len(pool) == 0
    later = make.anchor(VOLUME, 2)
    pool.add(later, NOW)
    make.tip = fork
    make.add(recipient=ALICE_KEY)
    make.add(recipient=ALICE_KEY)
    pool.rebase(make.state, 3, NOW, returned=block.transactions)
    assert list(pool.ids()) == ids_of(anchor, later)


def test_112_limits_per_sender_and_in_all():
    make = Maker()
    pool = make.pool()
    for number in range(1, mempool.SENDER_MAX + 1):
        pool.add(make.anchor(VOLUME, number), NOW)
    with pytest.raises(reasons.PoolFull):
        pool.add(make.anchor(VOLUME, mempool.SENDER_MAX + 1), NOW)
    make.add()
    small = mempool.Mempool(make.document, limit=4000)
    small.rebase(make.state, 2, NOW)
    for number in range(3):
        small.add(make.anchor(bytes([100 + number]) * 32, 1), NOW)
    with pytest.raises(reasons.PoolFull):
        small.add(make.anchor(bytes([110]) * 32, 1), NOW)
    small.add(make.transfer(MINER, ALICE_KEY, 1, 0, fee=10), NOW)
    assert small.size <= 4000
    assert len(small) == 3


def test_random_traffic_always_gives_valid_blocks():
    make = Maker(easy_network(minimum_fee=0))
    rng = random.Random(7)
    seeds = [bytes([n]) * 32 for n in range(1, 6)]
    for seed in seeds:
        make.add(recipient=sign.public_key(seed))
    pool = make.pool()
    heads: dict[bytes, int] = {}
    nonces: dict[bytes, int] = {}
    for _ in range(150):
        seed = rng.choice(seeds)
        key = sign.public_key(seed)
        choice = rng.random()
        if choice < 0.4:
            sequence = heads.get(seed, 0) + rng.choice([0, 1, 1, 1, 2])
            data = make.anchor(seed, max(1, sequence), lease_expiry=NOW + rng.randrange(100))
        elif choice < 0.8:
            nonce = nonces.get(key, 0) + rng.choice([0, 0, 0, 1])
            data = make.transfer(
                seed, sign.public_key(rng.choice(seeds)), rng.randrange(1, 10**9), nonce, rng.randrange(9)
            )
        else:
            data = make.register(seed, rng.randrange(20))
            if rng.random() < 0.3:
                data = make.operate(seed, rng.choice([None, *seeds]), rng.randrange(20))
        try:
            pool.add(data, NOW)
        except InvalidTransaction:
            continue
        tx = decode_tx(data)
        if choice < 0.4:
            heads[seed] = tx.sequence
        elif choice < 0.8:
            nonces[key] = tx.nonce + 1
        if rng.random() < 0.2:
            make.add([encode_tx(tx) for tx in pool.select(NOW)])
            pool.rebase(make.state, make.tip.height + 1, NOW)
    total = sum(make.state().account(sign.public_key(seed)).balance for seed in seeds)
    total += make.state().account(MINER_KEY).balance
    assert total == make.tip.height * make.document.subsidy
    assert commitment_of(1) == (1).to_bytes(32)


def test_fault_112_who_cannot_pay_drives_nobody_out_of_a_full_pool():
    make = Maker()
    make.add()
    pool = mempool.Mempool(make.document, limit=4000)
    pool.rebase(make.state, 2, NOW)
    for number in range(3):
        pool.add(make.anchor(bytes([100 + number]) * 32, 1), NOW)
    before = pool.ids(), pool.size, pool.next_nonce(MINER_KEY)
    for data, reason in (
        (make.transfer(ALICE, MINER_KEY, 1, 0, fee=1 << 40), reasons.NotEnoughMoney),
        (make.transfer(MINER, ALICE_KEY, 1, 5, fee=1 << 20), reasons.WrongNonce),
        (make.anchor(VOLUME, 2, fee=1 << 40), reasons.WrongPredecessor),
    ):
        with pytest.raises(reason):
            pool.add(data, NOW)
        assert (pool.ids(), pool.size, pool.next_nonce(MINER_KEY)) == before


def test_fault_112_the_number_is_bounded_and_what_a_reorganisation_returns_too():
    make = Maker()
    make.add()
    pool = mempool.Mempool(make.document, count_limit=4)
    pool.rebase(make.state, 2, NOW)
    anchors = [make.anchor(bytes([100 + number]) * 32, 1) for number in range(6)]
    for data in anchors[:4]:
        pool.add(data, NOW)
    with pytest.raises(reasons.PoolFull):
        pool.add(anchors[4], NOW)
    paid = make.transfer(MINER, ALICE_KEY, 1, 0, fee=10)
    pool.add(paid, NOW)
    assert list(pool.ids()) == ids_of(*anchors[:3], paid)  # of equal ones the latest goes
    dropped = pool.rebase(make.state, 2, NOW, returned=anchors[4:])
    assert {type(reason) for _, reason in dropped} == {reasons.PoolFull}
    assert len(pool) == 4
    assert ids_of(paid)[0] in pool


def test_a_higher_fee_replaces_only_by_the_least_fee_or_more():
    make = Maker(easy_network(minimum_fee=10))
    make.add()
    pool = make.pool()
    pool.add(make.transfer(MINER, ALICE_KEY, 5, 0, fee=10), NOW)
    follower = make.transfer(MINER, ALICE_KEY, 5, 1, fee=10)
    pool.add(follower, NOW)
    for fee in (10, 11, 19):
        with pytest.raises(reasons.Conflict):
            pool.add(make.transfer(MINER, ALICE_KEY, 100, 0, fee=fee), NOW)
    better = make.transfer(MINER, ALICE_KEY, 100, 0, fee=20)
    pool.add(better, NOW)
    assert list(pool.ids()) == ids_of(better, follower)
    too_much = make.transfer(MINER, ALICE_KEY, make.document.subsidy, 0, fee=30)
    with pytest.raises(reasons.NotEnoughMoney):
        pool.add(too_much, NOW)
    assert list(pool.ids()) == ids_of(better, follower)
    everything = make.transfer(MINER, ALICE_KEY, make.document.subsidy - 30, 0, fee=30)
    pool.add(everything, NOW)  # and now what followed cannot be paid any more
    assert list(pool.ids()) == ids_of(everything)


def test_what_is_not_in_a_block_yet_is_not_spent_and_what_was_in_one_is():
    make = Maker()
    make.add()
    fork = make.tip
    pool = make.pool()
    funding, spending = make.transfer(MINER, ALICE_KEY, 50, 0, fee=1), make.transfer(ALICE, MINER_KEY, 20, 0, fee=9)
    pool.add(funding, NOW)
    with pytest.raises(reasons.NotEnoughMoney):
        pool.add(spending, NOW)
    left = [make.add([funding]).block, make.add([spending]).block]
    pool.rebase(make.state, 4, NOW)
    assert len(pool) == 0
    make.tip = fork
    for _ in range(3):
        make.add(recipient=ALICE_KEY)
    make.tip = fork  # where Alice has nothing of her own
    pool.rebase(make.state, 2, NOW, returned=[data for block in left for data in block.transactions])
    assert list(pool.ids()) == ids_of(funding, spending)
    assert [encode_tx(tx) for tx in pool.select(NOW)] == [funding, spending]  # although the second one pays better
    pool.rebase(make.state, 2, NOW)
    assert list(pool.ids()) == ids_of(funding, spending)
    with pytest.raises(reasons.NotEnoughMoney):
        pool.add(make.transfer(ALICE, MINER_KEY, 50, 0, fee=10), NOW)
    assert pool.next_nonce(ALICE_KEY) == 1
    better = make.transfer(ALICE, MINER_KEY, 20, 0, fee=10)
    pool.add(better, NOW)
    assert list(pool.ids()) == ids_of(funding, better)


def test_a_replacement_looks_at_nothing_that_it_is_not_connected_with(monkeypatch):
    make = Maker()
    pool = make.pool()
    for number in range(50):
        pool.add(make.anchor(bytes([100 + number]) * 32, 1), NOW)
    calls = []
    apply = mempool.apply_transaction
    monkeypatch.setattr(mempool, "apply_transaction", lambda *a, **k: (calls.append(a), apply(*a, **k)))
    pool.add(make.anchor(bytes([100]) * 32, 1, lease_expiry=NOW + 9), NOW)
    assert len(calls) == 1
    calls.clear()
    assert len(pool.select(NOW)) == 50
    assert len(calls) == 50


def test_chains_that_pay_better_at_their_ends_are_not_tried_again_and_again(monkeypatch):
    seeds = [bytes([n]) * 32 for n in range(1, 9)]
    make = Maker()
    for seed in seeds:
        make.add(recipient=sign.public_key(seed))
    pool = make.pool()
    for nonce in range(20):
        for seed in seeds:
            pool.add(make.transfer(seed, MINER_KEY, 1, nonce, fee=1 + nonce), NOW)
    calls = []
    apply = mempool.apply_transaction
    monkeypatch.setattr(mempool, "apply_transaction", lambda *a, **k: (calls.append(a), apply(*a, **k)))
    assert len(pool.select(NOW)) == len(calls) == 160


def test_what_waits_is_at_any_time_what_applying_it_in_order_gives():
    """Replacements and evictions apply only a part again; the pool and its view are those of applying all of it."""
    rng = random.Random(11)
    make = Maker(easy_network(minimum_fee=0))
    seeds = [bytes([n]) * 32 for n in range(1, 5)]
    for seed in seeds:
        make.add(recipient=sign.public_key(seed))
    pool = mempool.Mempool(make.document, limit=9000, count_limit=14)
    pool.rebase(make.state, make.tip.height + 1, NOW)
    outcomes = set()
    for _ in range(250):
        seed, choice = rng.choice(seeds), rng.random()
        key = sign.public_key(seed)
        if choice < 0.5:
            nonce = max(0, pool.next_nonce(key) - rng.choice([0, 0, 0, 1, 2]))
            amount = rng.choice([1, 10**8, 9 * 10**8])
            data = make.transfer(seed, sign.public_key(rng.choice(seeds)), amount, nonce, rng.randrange(2000))
        elif choice < 0.8:
            fee = rng.choice([0, 0, rng.randrange(9000)])
            data = make.anchor(seed, rng.randrange(1, 4), lease_expiry=NOW + rng.randrange(99), fee=fee)
        elif choice < 0.9:
            data = make.register(seed, rng.randrange(9), fee=rng.randrange(2000))
        else:
            data = make.operate(seed, rng.choice([None, *seeds]), rng.randrange(9), fee=rng.randrange(2000))
        before = pool.ids()
        try:
            pool.add(data, NOW)
            outcomes.add("in" if set(before) <= set(pool.ids()) else "replaced or driven out")
        except InvalidTransaction as exc:
            assert pool.ids() == before
            outcomes.add(type(exc))
        waiting = [pool.get(identity) for identity in pool.ids()]
        assert pool.size == sum(map(len, waiting)) <= 9000
        assert len(pool) <= 14
        state = make.state()
        for item in waiting:
            mempool.apply_transaction(make.document, state, decode_tx(item), NOW, make.tip.height + 1, stacked=True)
        assert [state.account(sign.public_key(s)) for s in seeds] == [
            pool._need_view().account(sign.public_key(s)) for s in seeds
        ]
        assert pool.verified() == frozenset(waiting)
        make.check(make.build([encode_tx(tx) for tx in pool.select(make.tip.time + 2)]))
        assert set().union(*pool._of_sender.values()) == set(pool.ids())
        assert not pool._brought
        assert [identity for _, _, identity in pool._by_price] == sorted(
            pool.ids(), key=lambda identity: (pool._waiting[identity].price, -pool._waiting[identity].place)
        )
        assert set(pool._slots.values()) == set(pool.ids())
    assert {reasons.PoolFull, reasons.Conflict, reasons.NotEnoughMoney, "in", "replaced or driven out"} <= outcomes
