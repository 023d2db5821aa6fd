"""How blocks and transactions are passed on: little is sent twice, nothing without end, and nobody sees where one began."""

from __future__ import annotations

import random
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import trio
import trio.testing

from fsdecloud.crypto import sign
from fsdecloud.ledger.blocks import block_id, encode_block, encode_header
from fsdecloud.ledger.compact import SHORT_ID, assemble, match, short_id, shorten
from fsdecloud.ledger.transactions import decode_tx, tx_id
from fsdecloud.ledgerd import relay
from fsdecloud.ledgerd.clock import ClockWatch
from fsdecloud.ledgerd.relay import ASK_AGAIN, OFFERED_MAX, OFFERERS_MAX, ORPHANS_MAX, Orphans, Pacer, Requests
from fsdecloud.wire import gossip

sys.path.insert(0, str(Path(__file__).parent))
from nodes import rogue_of, session_test, until, until_so

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "ledger"))
from chainmaker import MINER, Maker

VOLUMES = [bytes([n]) * 32 for n in range(2, 12)]


def ids(*numbers):
    return [number.to_bytes(32) for number in numbers]


# ---- what is asked of whom -------------------------------------------------------------------------------------------
def test_each_is_asked_once_and_then_of_the_next():
    requests = Requests()
    assert requests.offered("a", ids(1, 2), 0.0) == ids(1, 2)
    assert requests.offered("b", ids(1, 2, 3), 1.0) == ids(3)
    assert requests.offered("a", ids(1), 1.0) == []
    requests.arrived(ids(2)[0])
    assert requests.overdue(ASK_AGAIN - 0.1) == {}
    assert requests.next_due() == ASK_AGAIN
    assert requests.overdue(ASK_AGAIN) == {"b": ids(1)}
    assert requests.gone("b", ASK_AGAIN + 1) == {}, "nobody else offers them"
    assert len(requests) == 0
    assert requests.next_due() == float("inf")
    assert requests.offered("a", ids(1), 20.0) == ids(1)


def test_who_goes_is_replaced_at_once():
    requests = Requests()
    requests.offered("a", ids(1, 2), 0.0)
    requests.offered("b", ids(1), 0.0)
    requests.offered("c", ids(2), 0.0)
    assert requests.gone("a", 1.0) == {"b": ids(1), "c": ids(2)}


def test_what_was_refused_is_not_asked_for_before_the_tip_changes(monkeypatch):
    requests = Requests()
    requests.refuse(ids(1)[0])
    assert requests.offered("a", ids(1), 0.0) == []
    requests.forgive()
    assert requests.offered("a", ids(1), 0.0) == ids(1)
    monkeypatch.setattr(relay, "REFUSED_MAX", 5)
    for number in range(10):
        requests.refuse(ids(number)[0])
    assert len(requests._refused) == 5


def test_fault_102_offers_and_orphans_are_bounded():
    requests = Requests()
    assert len(requests.offered("a", ids(*range(OFFERED_MAX + 100)), 0.0)) == OFFERED_MAX
    for number in range(OFFERERS_MAX + 5):
        requests.offered(f"s{number}", ids(1), 0.0)
    assert len(requests._wanted[ids(1)[0]].offerers) == OFFERERS_MAX
    requests.gone("a", 0.0)
    assert len(requests) == 1
    orphans = Orphans()
    for number in range(10_000):
        orphans.add(ids(number)[0], b"sender %d" % (number % 7), bytes(100))
    assert len(orphans) == ORPHANS_MAX
    assert ids(9_999)[0] in orphans
    assert ids(0)[0] not in orphans
    assert len(list(orphans.take(b"sender 3"))) in (14, 15)
    for number in range(50):
        orphans.add(ids(number)[0], b"s", bytes(60_000))
    assert orphans._bytes <= relay.ORPHAN_BYTES
    list(orphans.take())
    assert (len(orphans), orphans._bytes) == (0, 0)


def test_moments_are_random_and_shared():
    random.seed(1)
    pacer = Pacer(0.5)
    first = pacer.next_after(0.0)
    assert pacer.next_after(0.0) == first, "a second connection learns no other moment"
    moments = [first]
    for _ in range(2000):
        moments.append(pacer.next_after(moments[-1]))
    gaps = [after - before for before, after in pairwise(moments)]
    assert all(gap > 0 for gap in gaps)
    assert 0.45 < sum(gaps) / len(gaps) < 0.55


def test_fault_103_a_clock_that_is_far_off_is_told():
    watch = ClockWatch()
    for who, offset in (("a", 7200), ("b", 7210)):
        watch.heard(who, offset)
    assert watch.warning() == "", "two say nothing"
    watch.heard("c", 7190)
    assert "7200 s behind those of 3" in watch.warning()
    watch.heard("d", 1)
    watch.heard("e", 2)
    watch.heard("f", 3)
    watch.gone("a")
    assert watch.warning() == ""
    for who in "bcdef":
        watch.heard(who, -90_000)
    assert "ahead of" in watch.warning()


# ---- compact blocks --------------------------------------------------------------------------------------------------
def big_block():
    make = Maker()
    transactions = [make.anchor(volume, 1) for volume in VOLUMES]
    return make, transactions, make.add(transactions).block


def test_a_block_is_put_together_from_what_waits():
    _, transactions, block = big_block()
    data = encode_block(block)
    header, coinbase, shorts = shorten(data)
    assert (header, coinbase) == (encode_header(block.header), block.transactions[0])
    assert len(shorts) == SHORT_ID * len(transactions)
    assert len(header) + len(coinbase) + len(shorts) < len(data) / 20
    identity = block_id(block.header)
    assert assemble(block.header, match(identity, coinbase, shorts, reversed(transactions))) == data
    partly = match(identity, coinbase, shorts, transactions[3:])
    assert [place for place, tx in enumerate(partly) if tx is None] == [1, 2, 3]
    wrong = [coinbase, *reversed(transactions)]
    assert assemble(block.header, wrong) is None
    assert shorten(b"junk") is None
    # Two that collide: neither is taken.
    collision = match(identity, coinbase, short_id(identity, transactions[0]), [transactions[0], transactions[0]])
    assert collision == [coinbase, None]


@pytest.mark.parametrize("present", [10, 7, 2, 0])
def test_a_new_block_travels_short(tmp_path, present):
    """Whatever the mempool holds: all, most, or too little, when the whole block is asked for."""

    async def work(make, node):
        transactions = [make.anchor(volume, 1) for volume in VOLUMES]
        for tx in transactions[:present]:
            node.keeper.submit(tx)
        block = make.add(transactions).block
        async with rogue_of(node, make) as rogue:
            await rogue.hello()
            await rogue.send(gossip.NewTip(encode_header(block.header), make.tip.work, 0))
            while not isinstance(message := await rogue.receive(), gossip.GetCompact):
                pass
            assert message.id == make.tip.id
            await rogue.send(gossip.Compact(*shorten(encode_block(block))))
            if present == 7:
                places = (await rogue.expect(gossip.GetBlockTxs)).places
                assert places == (8, 9, 10)
                await rogue.send(gossip.BlockTxs(tuple(block.transactions[place] for place in places)))
            elif present < 5:
                assert (await rogue.expect(gossip.GetBlocks)).ids == (make.tip.id,)
                await rogue.send(gossip.Blocks((encode_block(block),)))
            await until(node, lambda: node.keeper.tip == make.tip)
            # It can give what it got, short and by place.
            await rogue.send(gossip.GetCompact(make.tip.id))
            await rogue.send(gossip.GetBlockTxs(make.tip.id, (0, 3)))
            await rogue.send(gossip.GetBlockTxs(make.tip.id, (0, 11)))
            await rogue.send(gossip.GetCompact(bytes(32)))
            assert await rogue.expect(gossip.Compact) == gossip.Compact(*shorten(encode_block(block)))
            assert (await rogue.expect(gossip.BlockTxs)).txs == (block.transactions[0], block.transactions[3])
            assert (await rogue.expect(gossip.BlockTxs)).txs == ()
            assert (await rogue.expect(gossip.Compact)).header == b""

    session_test(tmp_path, work)


def test_wrong_transactions_for_a_compact_block_only_cost_time(tmp_path):
    """What is put together does not match: the whole block is asked for, and the header is not invalid."""

    async def work(make, node):
        transactions = [make.anchor(volume, 1) for volume in VOLUMES]
        for tx in transactions[:8]:
            node.keeper.submit(tx)
        block = make.add(transactions).block
        async with rogue_of(node, make) as rogue:
            await rogue.hello()
            await rogue.send(gossip.NewTip(encode_header(block.header), make.tip.work, 0))
            while not isinstance(await rogue.receive(), gossip.GetCompact):
                pass
            await rogue.send(gossip.Compact(*shorten(encode_block(block))))
            places = (await rogue.expect(gossip.GetBlockTxs)).places
            await rogue.send(gossip.BlockTxs((b"junk",) * len(places)))
            await rogue.expect(gossip.GetBlocks)
            await rogue.send(gossip.Blocks((encode_block(block),)))
            await until(node, lambda: node.keeper.tip == make.tip)

    session_test(tmp_path, work)


# ---- transactions ----------------------------------------------------------------------------------------------------
def test_a_transaction_offered_by_many_is_asked_of_one(tmp_path):
    async def work(make, node):
        tx = make.anchor(VOLUMES[0], 1)
        identity = tx_id(decode_tx(tx))
        async with rogue_of(node, make) as one, rogue_of(node, make) as two:
            for rogue in (one, two):
                await rogue.hello()
                await rogue.expect(gossip.GetPeers)
            await one.send(gossip.Offer((identity,)))
            assert (await one.expect(gossip.GetTxs)).ids == (identity,)
            await two.send(gossip.Offer((identity,)))
            await two.send(gossip.GetHeaders((bytes(32),)))
            while not isinstance(message := await two.receive(), gossip.Headers):
                assert not isinstance(message, gossip.GetTxs)
            await one.send(gossip.Txs((tx,)))
            await until(node, lambda: identity in node.keeper.pool)

    session_test(tmp_path, work)


def test_the_second_is_asked_when_the_first_goes(tmp_path):
    async def work(make, node):
        tx = make.anchor(VOLUMES[0], 1)
        identity = tx_id(decode_tx(tx))
        async with rogue_of(node, make) as two:
            await two.hello()
            async with rogue_of(node, make) as one:
                await one.hello()
                await one.send(gossip.Offer((identity,)))
                await one.expect(gossip.GetTxs)
                await two.send(gossip.Offer((identity,)))
                await two.send(gossip.GetHeaders((bytes(32),)))
                await two.expect(gossip.Headers)
            assert (await two.expect(gossip.GetTxs)).ids == (identity,)
            await two.send(gossip.Txs((tx,)))
            await until(node, lambda: identity in node.keeper.pool)

    session_test(tmp_path, work)


def test_what_comes_before_its_predecessor_waits_for_it(tmp_path):
    async def work(make, node):
        txs = [make.anchor(VOLUMES[0], sequence) for sequence in (1, 2, 3)]
        names = tuple(tx_id(decode_tx(tx)) for tx in txs)
        async with rogue_of(node, make) as rogue:
            await rogue.hello()
            await rogue.send(gossip.Offer(names))
            await rogue.expect(gossip.GetTxs)
            await rogue.send(gossip.Txs(tuple(reversed(txs))))
            await until(node, lambda: node.keeper.pool.ids() == names)
            assert len(node.hub.orphans) == 0

    session_test(tmp_path, work)


def test_what_is_valid_one_block_later_waits_for_it(tmp_path):
    """A daemon that is behind finds no money and no registration in what everybody else takes."""

    async def work(make, node):
        peer = bytes([6]) * 32
        declared, registered = make.operate(peer, VOLUMES[0], 1), make.register(peer, 1)
        block = make.add().block
        spent = make.transfer(MINER, sign.public_key(peer), 5, 0)
        names = tuple(tx_id(decode_tx(tx)) for tx in (declared, registered, spent))
        async with rogue_of(node, make) as rogue:
            await rogue.hello()
            await rogue.send(gossip.Offer(names))
            await rogue.expect(gossip.GetTxs)
            await rogue.send(gossip.Txs((declared, spent)))
            await until_so(lambda: len(node.hub.orphans) == 2)
            await rogue.send(gossip.Txs((registered,)))
            await until(node, lambda: set(node.keeper.pool.ids()) == set(names[:2]))
            await rogue.send(gossip.NewTip(encode_header(block.header), make.tip.work, 0))
            while not isinstance(await rogue.receive(), gossip.GetCompact):
                pass
            await rogue.send(gossip.Compact(*shorten(encode_block(block))))
            await until(node, lambda: set(node.keeper.pool.ids()) == set(names))
            assert len(node.hub.orphans) == 0

    session_test(tmp_path, work)


def test_transactions_that_nobody_asked_for_cost_points(tmp_path):
    async def work(make, node):
        txs = [make.anchor(volume, 1) for volume in VOLUMES]
        async with rogue_of(node, make) as rogue:
            await rogue.hello()
            await rogue.send(gossip.Txs((*txs, *txs)))
            await rogue.expect_dropped("nobody asked for")
        assert len(node.keeper.pool) == 0

    session_test(tmp_path, work)


def test_a_transaction_that_comes_late_is_no_offence(tmp_path):
    """It was asked of another meanwhile, and is here; then nobody blames the slow one."""

    async def work(make, node):
        txs = [make.anchor(volume, 1) for volume in VOLUMES]
        names = tuple(tx_id(decode_tx(tx)) for tx in txs)
        async with rogue_of(node, make) as slow:
            await slow.hello()
            await slow.send(gossip.Offer(names))
            await slow.expect(gossip.GetTxs)
            for tx in txs:
                node.hub.take(decode_tx(tx), tx)
            for _ in range(2):
                await slow.send(gossip.Txs(tuple(txs[:5])))
                await slow.send(gossip.GetPeers())
                await slow.expect(gossip.Peers)
            assert node.ended is None
            await slow.send(gossip.Txs(tuple(txs[:5] * 2)))  # once is late, again and again is spam
            await slow.expect_dropped("nobody asked for")

    session_test(tmp_path, work)


def test_offers_without_end_cost_points(tmp_path, monkeypatch):
    from fsdecloud.ledgerd import session

    monkeypatch.setattr(session, "OFFER_RATE", 1.0)
    monkeypatch.setattr(session, "OFFER_BURST", 1.0)

    async def work(make, node):
        async with rogue_of(node, make) as rogue:
            await rogue.hello()
            with trio.move_on_after(20):
                for turn in range(10):
                    if node.ended is not None:
                        break
                    await rogue.send(gossip.Offer(tuple(ids(*range(turn * 100, turn * 100 + 100)))))
                    await trio.testing.wait_all_tasks_blocked(0.001)
            await rogue.expect_dropped("offers transactions without end")

    session_test(tmp_path, work)


def test_only_what_was_offered_is_shown(tmp_path):
    """Who may ask for any transaction learns by its absence what this daemon has, and since when."""

    async def work(make, node):
        async with rogue_of(node, make) as rogue:
            await rogue.hello()
            await rogue.expect(gossip.GetPeers)
            tx = make.anchor(VOLUMES[0], 1)
            node.hub.inbound_pacer._next = trio.current_time() + 1000
            identity, _ = node.keeper.submit(tx)
            await rogue.send(gossip.GetTxs((identity,)))
            assert (await rogue.expect(gossip.Txs)).txs == ()

    session_test(tmp_path, work)


def test_addresses_are_not_told_again_and_again(tmp_path):
    async def work(make, node):
        async with rogue_of(node, make) as rogue:
            await rogue.hello(url=f"wss://127.0.0.1:1/{'ab' * 32}")
            told = []
            for _ in range(6):
                await rogue.send(gossip.GetPeers())
                told.append(len((await rogue.expect(gossip.Peers)).urls))
            assert told == [1, 1, 1, 1, 0, 0]

    session_test(tmp_path, work)
