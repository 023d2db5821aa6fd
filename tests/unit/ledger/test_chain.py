"""Blocks: every rule has a block that breaks just that rule; any order of forks ends at the same tip and state."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import msgspec
import pytest

from fsdecloud.crypto import sign
from fsdecloud.errors import InvalidBlock
from fsdecloud.ledger import chain, network, reasons, verify
from fsdecloud.ledger.blocks import (
    TRANSACTION_MIN,
    Block,
    block_id,
    decode_block,
    decode_header,
    encode_block,
    encode_header,
)
from fsdecloud.ledger.network import AMOUNT_MAX, network_id
from fsdecloud.ledger.state import Account, State, apply_transaction, credit
from fsdecloud.ledger.transactions import Coinbase, decode_tx, encode_tx, grind_stamp

sys.path.insert(0, str(Path(__file__).parent))
from chainmaker import GENESIS_TIME, MINER, MINER_KEY, Maker, easy_network, mine, with_body, with_header

VOLUME = bytes([2]) * 32
ALICE = bytes([3]) * 32
ALICE_KEY = sign.public_key(ALICE)


def test_a_chain_of_everything():
    make = Maker()
    make.add()
    make.add([make.transfer(MINER, ALICE_KEY, 1000, 0, fee=10), make.register(ALICE, 5), make.anchor(VOLUME, 1)])
    make.add([make.anchor(VOLUME, 2), make.transfer(ALICE, MINER_KEY, 100, 0), make.register(ALICE, 6, fee=1)])
    state = make.state()
    subsidy = make.document.subsidy
    assert state.account(ALICE_KEY).balance == 1000 - 101 - 1
    assert state.account(ALICE_KEY).nonce == 1
    assert state.account(MINER_KEY).balance == 3 * subsidy - 1000 + 100 + 2
    head = state.volume(sign.public_key(VOLUME))
    assert head is not None
    assert (head.sequence, head.height) == (2, 3)
    [(peer, registration)] = list(state.registry())
    assert (peer, registration.place, registration.sequence) == (ALICE_KEY, 0, 6)
    points = list(verify.verify_chain(make.document, make.chain()))
    assert points[-1] == make.tip
    assert [p.height for p in points] == [1, 2, 3]


def test_registry_places_follow_the_first_registration():
    make = Maker()
    seeds = [bytes([n]) * 32 for n in (40, 30, 20)]
    make.add([make.register(seeds[0], 1)])
    make.add(
        [make.register(seeds[1], 1), make.register(seeds[0], 2, url="wss://127.0.0.2:1"), make.register(seeds[2], 1)]
    )
    places = {peer: (r.place, r.url) for peer, r in make.state().registry()}
    assert [places[sign.public_key(seed)][0] for seed in seeds] == [0, 1, 2]
    assert places[sign.public_key(seeds[0])][1] == "wss://127.0.0.2:1"


def rejects(
    make: Maker, block: Block, reason: type[InvalidBlock], text: str | None = None, now: int | None = None
) -> None:
    with pytest.raises(reason, match=text) as caught:
        make.check(block, now)
    assert type(caught.value) is reason


def test_98_header_rules():
    make = Maker()
    make.add()
    good = make.build([make.anchor(VOLUME, 1)])
    make.check(good)
    rejects(make, with_header(good, height=3), reasons.WrongHeight)
    rejects(make, with_header(good, target=bytes([255]) * 32), reasons.WrongTarget)
    rejects(make, with_header(good, target=bytes(2) + bytes([255]) * 30), reasons.WrongTarget)
    rejects(make, with_header(good, time=make.tip.time), reasons.TimeTooOld)
    rejects(make, good, reasons.TimeTooNew, now=good.header.time - make.document.future_limit - 1)
    make.check(good, now=good.header.time - make.document.future_limit)
    rejects(make, with_header(good, state_root=bytes(32)), reasons.WrongStateRoot)
    with pytest.raises(reasons.UnknownParent):
        chain.check_header(make.document, make.tip, with_header(good, parent=bytes(32)).header, None)
    for nonce in range(64):
        lazy = msgspec.structs.replace(good, header=msgspec.structs.replace(good.header, nonce=nonce.to_bytes(8)))
        if block_id(lazy.header) > lazy.header.target:
            rejects(make, lazy, reasons.NotEnoughWork)
            break
    else:
        raise AssertionError("no nonce fails")


def test_98_body_rules():
    make = Maker()
    make.add()
    tx, other = make.transfer(MINER, ALICE_KEY, 5, 0), make.anchor(VOLUME, 1)
    good = make.build([tx, other])
    body = [decode_tx(data) for data in good.transactions]
    coinbase = body[0]
    assert isinstance(coinbase, Coinbase)
    rejects(make, msgspec.structs.replace(good, transactions=good.transactions[:-1]), reasons.BodyMismatch)
    rejects(make, with_body(good, body[1:]), reasons.NoCoinbase)
    rejects(make, with_body(good, []), reasons.NoCoinbase)
    rejects(make, with_body(good, [Coinbase(1, 9, MINER_KEY, coinbase.amount), *body[1:]]), reasons.NoCoinbase)
    for amount in (coinbase.amount + 1, coinbase.amount - 1, 0):
        rejects(make, with_body(good, [Coinbase(1, 2, MINER_KEY, amount), *body[1:]]), reasons.WrongReward)
    rejects(make, with_body(good, [*body, body[1]]), reasons.DuplicateTransaction)
    rejects(make, with_body(good, [*body, Coinbase(1, 2, ALICE_KEY, 0)]), reasons.BadTransaction, "MisplacedCoinbase")
    forged = msgspec.structs.replace(body[1], signature=bytes(64))
    rejects(make, with_body(good, [body[0], forged]), reasons.BadTransaction, "BadSignature")
    rejects(make, with_body(good, list(reversed(body))), reasons.NoCoinbase)
    rejects(make, with_header(with_body(good, body), ids_root=bytes(32)), reasons.WrongIdsRoot, "ids")
    garbage = msgspec.structs.replace(good, transactions=(good.transactions[0], b"\0garbage"))
    rejects(make, garbage, reasons.BodyMismatch)
    make.check(good)


def test_fault_098_a_false_body_says_nothing_about_the_header():
    """Whatever is wrong with a body that is not the header's, what is found is just that: nothing to remember of the block."""
    make = Maker(easy_network(block_max=8192, transaction_max=4096))
    make.add()
    good = make.build([make.transfer(MINER, ALICE_KEY, 5, 0)])
    tx = good.transactions[1]
    false = (
        (),
        good.transactions[::-1],
        (*good.transactions, tx),
        (*good.transactions, bytes(39)),
        (good.transactions[0], tx[:-1] + bytes([tx[-1] ^ 1])),
        good.transactions * 100,  # too big
    )
    for body in false:
        rejects(make, msgspec.structs.replace(good, transactions=body), reasons.BodyMismatch)
    make.check(good)
    big = with_body(good, [decode_tx(data) for data in good.transactions * 100])
    rejects(make, big, reasons.BlockTooBig)
    assert reasons.BlockTooBig in reasons.COMMITTED
    assert not set(reasons.COMMITTED) & {reasons.BodyMismatch, reasons.TimeTooNew, reasons.UnknownParent}


def test_fault_098_a_body_of_nothing_is_not_worth_its_hashing():
    make = Maker()
    good = make.build()
    assert min(map(len, good.transactions)) >= 39
    smallest = encode_tx(Coinbase(1, 1, MINER_KEY, 1))
    assert len(smallest) == TRANSACTION_MIN
    with pytest.raises(reasons.MalformedBlock):
        decode_block(encode_block(msgspec.structs.replace(good, transactions=(*good.transactions, b""))))
    with pytest.raises(reasons.MalformedBlock):
        decode_block(encode_block(msgspec.structs.replace(good, transactions=(bytes(38),))))


def test_the_subsidy_halves():
    make = Maker(easy_network(version=2, halving=3, subsidy=5))
    rewards = [make.add().transactions[0].amount for _ in range(12)]
    assert rewards == [5, 5, 5, 2, 2, 2, 1, 1, 1, 0, 0, 0]
    assert network.subsidy_at(make.document, 1 << 40) == 0
    make.tip = make.points[make.chain()[2][0]]
    late = make.build()
    [coinbase] = [decode_tx(data) for data in late.transactions]
    rejects(make, with_body(late, [msgspec.structs.replace(coinbase, amount=5)]), reasons.WrongReward)


def test_98_transactions_that_no_state_allows():
    make = Maker()
    make.add()
    base = make.build()
    coinbase = decode_tx(base.transactions[0])

    def tx_rejected(data: bytes, reason: type[Exception]) -> None:
        rejects(make, with_body(base, [coinbase, decode_tx(data)]), reasons.BadTransaction, reason.__name__)

    tx_rejected(make.transfer(MINER, ALICE_KEY, 5, 1), reasons.WrongNonce)
    tx_rejected(make.transfer(ALICE, MINER_KEY, 5, 0), reasons.NotEnoughMoney)
    tx_rejected(make.transfer(MINER, ALICE_KEY, make.document.subsidy, 0), reasons.NotEnoughMoney)
    tx_rejected(make.transfer(MINER, ALICE_KEY, 0, 0), reasons.AmountOutOfRange)
    tx_rejected(make.transfer(MINER, ALICE_KEY, 1, 0, fee=0), reasons.BadStamp)
    tx_rejected(make.anchor(VOLUME, 2), reasons.WrongPredecessor)
    tx_rejected(make.anchor(VOLUME, 1, previous=bytes([1]) * 32), reasons.WrongPredecessor)
    tx_rejected(make.anchor(VOLUME, 1, fee=5), reasons.NotEnoughMoney)
    tx_rejected(make.register(ALICE, 1, fee=5), reasons.NotEnoughMoney)
    make.add([make.anchor(VOLUME, 1), make.register(ALICE, 3)])
    base = make.build()
    coinbase = decode_tx(base.transactions[0])
    tx_rejected(make.anchor(VOLUME, 1), reasons.WrongPredecessor)
    tx_rejected(make.anchor(VOLUME, 2, previous=bytes(32)), reasons.WrongPredecessor)
    tx_rejected(make.register(ALICE, 3), reasons.OldSequence)
    tx_rejected(make.operate(VOLUME, MINER, 3), reasons.NotRegistered)  # which is no peer
    tx_rejected(make.operate(ALICE, MINER, 3, fee=5), reasons.NotEnoughMoney)
    tx_rejected(with_another_operator(make.operate(ALICE, MINER, 3)), reasons.BadSignature)
    two = [decode_tx(make.anchor(VOLUME, 2)), decode_tx(make.anchor(VOLUME, 3))]
    rejects(make, with_body(base, [coinbase, *two]), reasons.BadTransaction, "OneAnchorPerBlock")


def with_another_operator(data: bytes) -> bytes:
    """Return a declaration that names another operator than the one who signed."""
    other = msgspec.structs.replace(decode_tx(data), operator=sign.public_key(VOLUME))
    return encode_tx(msgspec.structs.replace(other, stamp=grind_stamp(other, 4)))


def test_fault_076_operators_are_declared_changed_and_taken_back():
    make = Maker()
    make.add([make.register(ALICE, 3), make.operate(ALICE, MINER, 3)])
    registered = list(make.state().registry())
    assert make.state().operators() == {ALICE_KEY: MINER_KEY}
    make.add([make.register(ALICE, 4, url="wss://127.0.0.1:9")])
    assert make.state().operators() == {ALICE_KEY: MINER_KEY}  # one who moved is still the same operator's
    with pytest.raises(reasons.BadTransaction, match="OldSequence"):
        make.add([make.operate(ALICE, VOLUME, 3)])
    make.add([make.operate(ALICE, VOLUME, 4)])
    assert make.state().operators() == {ALICE_KEY: sign.public_key(VOLUME)}
    make.add([make.operate(ALICE, None, 5)])
    assert make.state().operators() == {}
    assert make.state().registration(ALICE_KEY).place == registered[0][1].place


def test_the_lease():
    make = Maker()
    other = bytes([8]) * 32
    make.add([make.anchor(VOLUME, 1, lease_expiry=GENESIS_TIME + 100)], time=GENESIS_TIME + 10)
    for time in (GENESIS_TIME + 20, GENESIS_TIME + 99):
        with pytest.raises(reasons.BadTransaction, match="LeaseHeld"):
            make.add([make.anchor(VOLUME, 2, device=other)], time=time)
    before = make.tip
    make.add([make.anchor(VOLUME, 2, device=other)], time=GENESIS_TIME + 100)
    make.tip = before
    make.add([make.anchor(VOLUME, 2)], time=GENESIS_TIME + 20)
    make.tip = before
    make.add(
        [make.anchor(VOLUME, 2, device=other, takeover=True, lease_expiry=GENESIS_TIME + 200)], time=GENESIS_TIME + 20
    )
    with pytest.raises(reasons.BadTransaction, match="LeaseHeld"):
        make.add([make.anchor(VOLUME, 3)], time=GENESIS_TIME + 150)


def test_a_lease_that_ended_in_a_quiet_time_holds_nobody_up():
    """A network that mines on demand, whose only writer is gone for a week: the next block is another device's anchor. By the
    median of block times it would be held until six blocks had come."""
    make = Maker(easy_network(mine_when_idle=False))
    for number in range(1, 12):
        make.add([make.anchor(VOLUME, number, lease_expiry=GENESIS_TIME + 3600)], time=GENESIS_TIME + 10 * number)
    make.add([make.anchor(VOLUME, 12, device=bytes([8]) * 32)], time=GENESIS_TIME + 7 * 86400)
    assert make.tip.median_time < GENESIS_TIME + 3600


def test_100_any_delivery_order_gives_the_same_tip_and_state():
    """A random tree of forks in random orders: the most work wins, then the smaller id; the state equals a fresh replay."""
    make = Maker()
    rng = random.Random(5)
    genesis = make.tip
    heads = [genesis]
    for number in range(24):
        parent = rng.choice(heads[-4:])
        make.tip = parent
        make.add(recipient=sign.public_key(bytes([number + 1]) * 32), time=parent.time + rng.randint(1, 5))
        heads.append(make.tip)
    first = max(heads, key=lambda p: p.work)
    for number in range(3):  # as much work as the best
        make.tip = make.points[first.parent]
        heads.append(make.add(recipient=sign.public_key(bytes([number + 101]) * 32)).point)
    most = max(int.from_bytes(p.work) for p in heads)
    winner = min(p.id for p in heads if int.from_bytes(p.work) == most)
    assert sum(int.from_bytes(p.work) == most for p in heads) == 4
    for seed in range(10):
        order = heads[1:]
        random.Random(seed).shuffle(order)
        known, tip, waiting = {genesis.id: genesis}, genesis, order
        while waiting:
            later = []
            for point in waiting:
                if point.parent not in known:
                    later.append(point)
                    continue
                known[point.id] = point
                if chain.is_better(point, tip):
                    switch = chain.plan_switch(known.get, tip, point, None)
                    assert (switch.enter[-1], switch.enter[0].parent) == (point, switch.fork.id)
                    if switch.leave:
                        assert switch.leave[0] == tip
                        assert switch.leave[-1].parent == switch.fork.id
                    tip = point
            waiting = later
        assert tip.id == winner
        replayed = list(verify.verify_chain(make.document, make.chain(tip)))
        assert replayed[-1].state_root == tip.state_root


def test_101_a_reorganisation_below_the_final_depth_is_refused():
    make = Maker()
    fork = make.tip
    for _ in range(4):
        make.add()
    old = make.tip
    make.tip = fork
    for _ in range(5):
        make.add(recipient=ALICE_KEY)
    assert chain.is_better(make.tip, old)
    with pytest.raises(reasons.ReorgTooDeep):
        chain.plan_switch(make.points.get, old, make.tip, 3)
    switch = chain.plan_switch(make.points.get, old, make.tip, 4)
    assert (len(switch.leave), len(switch.enter), switch.fork) == (4, 5, fork)
    assert chain.plan_switch(make.points.get, old, make.tip, None) == switch


def test_of_two_chains_with_equal_work_the_one_with_the_smaller_id_is_better():
    """Whichever came first: so nodes with the same blocks agree (fault 105: half of all ties, for whoever withholds)."""
    make = Maker()
    genesis = make.tip
    first = make.add().point
    make.tip = genesis
    second = make.add(recipient=ALICE_KEY).point
    assert first.work == second.work
    better, worse = sorted((first, second), key=lambda point: point.id)
    assert chain.is_better(better, worse)
    assert not chain.is_better(worse, better)
    assert not chain.is_better(better, better)
    make.tip = worse
    assert chain.is_better(make.add().point, better), "more work counts first"


def test_verify_names_the_height_and_the_reason():
    make = Maker()
    for number in range(1, 7):
        make.add([make.anchor(VOLUME, number)])
    stored = make.chain()
    rng = random.Random(1)
    for _ in range(150):
        index = rng.randrange(len(stored))
        data = bytearray(stored[index][1])
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        bad = [*stored[:index], (stored[index][0], bytes(data)), *stored[index + 1 :]]
        with pytest.raises(reasons.ChainDamaged) as caught:
            list(verify.verify_chain(make.document, bad))
        assert caught.value.height == index + 1
        assert f"block {index + 1}: " in str(caught.value)
    swapped = [stored[1], stored[0], *stored[2:]]
    with pytest.raises(reasons.ChainDamaged, match="block 1: UnknownParent"):
        list(verify.verify_chain(make.document, swapped))
    wrong_name = [(bytes(32), stored[0][1])]
    with pytest.raises(reasons.ChainDamaged, match="StoredBlockDiffers"):
        list(verify.verify_chain(make.document, wrong_name))


def test_encodings_are_strict():
    make = Maker()
    block = make.add([make.anchor(VOLUME, 1)]).block
    data = encode_block(block)
    assert decode_block(data) == block
    assert decode_header(encode_header(block.header)) == block.header
    for bad in (data[:-1], data + b"\0", b"", b"\x92"):
        with pytest.raises(reasons.MalformedBlock):
            decode_block(bad)
    with pytest.raises(reasons.BlockTooBig):
        decode_block(data, limit=len(data) - 1)
    with pytest.raises(reasons.MalformedBlock):
        decode_header(bytes(1000))
    assert mine(block).header.parent == network_id(make.document)


def test_a_full_block_is_within_the_limit_and_one_more_byte_is_not():
    document = easy_network(block_max=8192, transaction_max=4096)
    make = Maker(document)
    pool = make.pool()
    for number in range(12):
        pool.add(make.anchor(bytes([number + 1]) * 32, 1), make.tip.time)
    chosen = pool.select(make.tip.time + 2)
    assert 4 <= len(chosen) < 12
    block = mine(chain.build_block(document, make.tip, chosen, MINER_KEY, make.tip.time + 2, make.nodes.get))
    assert len(encode_block(block)) <= 8192
    make.check(block)
    with pytest.raises(reasons.BlockTooBig):
        make.check(make.build([make.anchor(bytes([n + 1]) * 32, 1) for n in range(12)]))


def test_locator_reaches_back_to_genesis():
    make = Maker()
    ids = [make.tip.id]
    for _ in range(40):
        ids.append(make.add().point.id)
    found = chain.locator(make.tip, lambda height: ids[height])
    assert found[0] == make.tip.id
    assert found[-1] == ids[0]
    assert len(found) < 20


def test_fault_111_nothing_that_is_in_the_chain_is_valid_in_it_again():
    make = Maker()
    make.add()
    make.add([make.transfer(MINER, ALICE_KEY, 10, 0)])
    once = [
        make.transfer(ALICE, MINER_KEY, 9, 0),  # all that Alice has
        make.register(ALICE, 0),
        make.operate(ALICE, VOLUME, 0),
        make.anchor(VOLUME, 1),
    ]
    make.add(once)
    assert make.state().account(ALICE_KEY) == Account(0, 1)
    for data, reason in zip(once, ("WrongNonce", "OldSequence", "OldSequence", "WrongPredecessor"), strict=True):
        with pytest.raises(reasons.BadTransaction, match=reason) as caught:
            make.add([make.transfer(MINER, ALICE_KEY, 10, 1), data])
        assert caught.value.index == 2
        with pytest.raises(getattr(reasons, reason)):
            make.pool().add(data, make.tip.time)
    other = Maker(easy_network(salt=bytes([1]) * 32))
    other.add()
    for data in once[1:]:
        with pytest.raises(reasons.BadTransaction, match="BadSignature"):
            other.check(with_body(other.build(), [decode_tx(other.build().transactions[0]), decode_tx(data)]))


def test_fault_112_money_is_exact_at_its_bounds():
    """What would pass a bound changes nothing at all; what just reaches it is right."""
    make = Maker()
    bob_key = sign.public_key(VOLUME)
    for has, others, amount, fee, reason in (
        (AMOUNT_MAX, 0, AMOUNT_MAX, 0, None),
        (AMOUNT_MAX, 0, AMOUNT_MAX, 1, reasons.NotEnoughMoney),
        (AMOUNT_MAX, 0, AMOUNT_MAX, AMOUNT_MAX, reasons.NotEnoughMoney),
        (AMOUNT_MAX, AMOUNT_MAX, 1, 0, reasons.AmountOutOfRange),
        (AMOUNT_MAX, AMOUNT_MAX - 1, 1, 0, None),
        (5, 0, 0, 5, reasons.AmountOutOfRange),
        (5, 0, 5, 1, reasons.NotEnoughMoney),
        (5, 0, 4, 1, None),
        (0, 0, 1, 0, reasons.NotEnoughMoney),
    ):
        state = State(lambda _: None, bytes(32))
        state.set_account(ALICE_KEY, Account(has, 0))
        state.set_account(bob_key, Account(others, 0))
        before = dict(state.changes)
        tx = decode_tx(make.transfer(ALICE, bob_key, amount, 0, fee=fee))
        if reason is None:
            apply_transaction(make.document, state, tx, 0, 1)
            assert state.account(ALICE_KEY) == Account(has - amount - fee, 1)
            assert state.account(bob_key) == Account(others + amount, 0)
        else:
            with pytest.raises(reason):
                apply_transaction(make.document, state, tx, 0, 1)
            assert state.changes == before
    state = State(lambda _: None, bytes(32))
    state.set_account(ALICE_KEY, Account(AMOUNT_MAX, 0))
    apply_transaction(make.document, state, decode_tx(make.transfer(ALICE, ALICE_KEY, AMOUNT_MAX, 0, fee=0)), 0, 1)
    assert state.account(ALICE_KEY) == Account(AMOUNT_MAX, 1)
    with pytest.raises(reasons.AmountOutOfRange):
        credit(state, ALICE_KEY, 1)
