"""The keeper: one view of chain and mempool, whatever arrives in whatever order."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest
import trio

from fsdecloud.crypto import sign
from fsdecloud.errors import InvalidTransaction
from fsdecloud.ledger import reasons
from fsdecloud.ledger.blocks import block_id, encode_block
from fsdecloud.ledger.staking import stake_of
from fsdecloud.ledger.transactions import decode_tx, tx_id
from fsdecloud.ledgerd.keeper import Keeper
from fsdecloud.store.chain import open_chain
from fsdecloud.types import BlockId

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "ledger"))
from chainmaker import (
    GENESIS_TIME,
    INTERVAL,
    KEYS,
    TWO,
    VOTERS,
    Maker,
    Voting,
    easy_network,
    mine,
    with_body,
    with_header,
)

VOLUME = bytes([2]) * 32
ALICE_KEY = sign.public_key(bytes([3]) * 32)
NOW = GENESIS_TIME + 1000


def keeper_test(tmp_path, work, **changes):
    make = Maker(easy_network(**changes))

    async def run():
        with trio.fail_after(60), open_chain(tmp_path / "c", make.document, map_size=1 << 28) as store:
            await work(make, Keeper(store, lambda: NOW))

    trio.run(run)


def test_follows_the_most_work_and_gives_transactions_back(tmp_path):
    async def work(make, keeper):
        seen = []
        keeper.on_tip.append(lambda switch: seen.append((len(switch.leave), len(switch.enter))))
        anchor = make.anchor(VOLUME, 1)
        assert keeper.submit(anchor) == (tx_id(decode_tx(anchor)), None)
        genesis = make.tip
        first = make.add([anchor])
        changed = keeper.tip_event()
        accepted = await keeper.accept(encode_block(first.block))
        assert changed.is_set()
        assert (accepted.is_new, accepted.point) == (True, first.point)
        assert len(keeper.pool) == 0
        assert keeper.submit(anchor) == (tx_id(decode_tx(anchor)), 1)
        assert not (await keeper.accept(encode_block(first.block))).is_new
        make.tip = genesis
        one = make.add(recipient=ALICE_KEY)
        while one.point.id < first.point.id:  # with the smaller id it would be the better one
            make.tip = genesis
            one = make.add(recipient=ALICE_KEY, time=one.block.header.time + 1)
        accepted = await keeper.accept(encode_block(one.block))
        assert accepted.switch is None
        assert keeper.tip == first.point
        two = make.add(recipient=ALICE_KEY)
        await keeper.accept(encode_block(two.block))
        assert keeper.tip == two.point
        assert seen == [(0, 1), (1, 2)]
        assert keeper.pool.ids() == (tx_id(decode_tx(anchor)),)
        block = await keeper.build(ALICE_KEY)
        assert len(block.transactions) == 2
        assert (await keeper.accept(encode_block(mine(block)))).point.height == 3
        assert await keeper.build(ALICE_KEY) is None

    keeper_test(tmp_path, work)


def test_98_invalid_for_ever_or_only_mutated(tmp_path):
    async def work(make, keeper):
        good = make.build([make.anchor(VOLUME, 1)])
        mutated = msgspec.structs.replace(good, transactions=good.transactions[:1])
        with pytest.raises(reasons.BodyMismatch):
            await keeper.accept(encode_block(mutated))
        body = [decode_tx(data) for data in good.transactions]
        bad = with_body(good, [*body, body[1]])
        with pytest.raises(reasons.DuplicateTransaction):
            await keeper.accept(encode_block(bad))
        for _ in range(2):
            with pytest.raises(reasons.KnownInvalid, match="DuplicateTransaction"):
                await keeper.accept(encode_block(bad))
        from fsdecloud.ledger.blocks import block_id

        child = with_header(good, parent=block_id(bad.header), height=2)
        with pytest.raises(reasons.KnownInvalid):
            await keeper.accept(encode_block(child))
        with pytest.raises(reasons.UnknownParent):
            await keeper.accept(encode_block(with_header(good, parent=bytes(32))))
        late = make.build(time=NOW + make.document.future_limit + 1)
        with pytest.raises(reasons.TimeTooNew):
            await keeper.accept(encode_block(late))
        with pytest.raises(reasons.MalformedBlock):
            await keeper.accept(b"junk")
        assert (await keeper.accept(encode_block(good))).point == keeper.tip
        assert keeper.tip.height == 1

    keeper_test(tmp_path, work)


def test_101_a_deep_reorganisation_needs_a_word(tmp_path):
    async def work(make, keeper):
        genesis = make.tip
        for _ in range(4):
            await keeper.accept(encode_block(make.add().block))
        ours = keeper.tip
        make.tip = genesis
        for _ in range(6):
            await keeper.accept(encode_block(make.add(recipient=ALICE_KEY).block))
        assert keeper.tip == ours
        assert "replace more than 3 blocks" in keeper.alarm
        with pytest.raises(reasons.UnknownParent):
            await keeper.accept_tip(bytes(32))
        await keeper.accept_tip(make.tip.id)
        assert keeper.tip == make.tip
        assert keeper.alarm == ""
        assert keeper.store.tip() == make.tip

    keeper_test(tmp_path, work, finality_depth=3)


def test_old_states_are_dropped_while_it_runs(tmp_path, monkeypatch):
    from fsdecloud.ledgerd import keeper as module

    monkeypatch.setattr(module, "PRUNE_EVERY", 10)
    monkeypatch.setattr(module, "PRUNE_MARGIN", 1)

    async def work(make, keeper):
        genesis = make.tip
        points = [(await keeper.accept(encode_block(make.add().block))).point for _ in range(20)]
        assert keeper.store.node(points[3].state_root) is None
        assert keeper.store.node(points[17].state_root) is not None
        make.tip = points[3]
        with pytest.raises(reasons.ReorgTooDeep):
            await keeper.accept(encode_block(make.build(recipient=ALICE_KEY)))
        make.tip = genesis

    keeper_test(tmp_path, work, finality_depth=3)


def test_fault_098_only_what_the_work_was_done_for_is_remembered_as_invalid(tmp_path):
    """Or else anybody fills that memory at no cost, and drives out what belongs there."""

    async def work(make, keeper):
        good = make.build([make.anchor(VOLUME, 1)])
        lazy = next(
            block
            for block in (
                msgspec.structs.replace(good, header=msgspec.structs.replace(good.header, nonce=n.to_bytes(8)))
                for n in range(1000)
            )
            if block_id(block.header) > block.header.target
        )
        for block, reason in (
            (lazy, reasons.NotEnoughWork),
            (with_header(good, height=7), reasons.WrongHeight),
            (with_header(good, time=GENESIS_TIME), reasons.TimeTooOld),
            (msgspec.structs.replace(good, transactions=good.transactions[:1]), reasons.BodyMismatch),
        ):
            with pytest.raises(reason):
                await keeper.accept(encode_block(block))
            assert keeper.store.invalid_reason(block_id(block.header)) is None
        bad = with_header(good, state_root=bytes(32))
        with pytest.raises(reasons.WrongStateRoot):
            await keeper.accept(encode_block(bad))
        assert "WrongStateRoot" in keeper.store.invalid_reason(block_id(bad.header))
        assert (await keeper.accept(encode_block(good))).is_new

    keeper_test(tmp_path, work)


def test_the_justified_checkpoint_comes_before_work_and_what_is_final_stays(tmp_path, caplog):
    make = Voting()
    fork, voted, heavier = make.parted()
    blocks, others = ([data for _, data in make.chain(tip)] for tip in (voted, heavier))

    async def run(name, first, second):
        with trio.fail_after(60), open_chain(tmp_path / name, make.document, map_size=1 << 28) as store:
            keeper = Keeper(store, lambda: NOW)
            for data in (*first, *second):
                await keeper.accept(data)
            return keeper.tip, keeper.finality().final.height, keeper.alarm

    assert trio.run(run, "votes first", blocks, others) == (voted, fork.height + INTERVAL, "")
    assert trio.run(run, "work first", others, blocks) == (voted, fork.height + INTERVAL, "")
    assert heavier.work > voted.work


def test_a_vote_waits_for_the_block_after_its_checkpoint(tmp_path):
    make = Voting()
    while make.tip.height % INTERVAL:
        make.add()

    async def run():
        with trio.fail_after(60), open_chain(tmp_path / "c", make.document, map_size=1 << 28) as store:
            keeper = Keeper(store, lambda: NOW)
            for _, data in make.chain():
                await keeper.accept(data)
            for vote in make.votes(*TWO):
                keeper.submit(vote)
            block = await keeper.build(bytes(32))
            await keeper.accept(encode_block(mine(block)))
            assert keeper.finality().justified.height == make.tip.height

    trio.run(run)


@pytest.mark.parametrize("is_sent", [False, True])
def test_whoever_votes_on_two_chains_loses_the_stake_without_anybody_asking(tmp_path, is_sent):
    """A block of the other chain brings the second vote, or somebody relays it."""
    make = Voting()
    while make.tip.height % INTERVAL:
        make.add()
    fork = make.tip
    before, make.tip = make.tip, make.points[fork.parent]
    make.add(recipient=ALICE_KEY)
    (twice,) = make.votes(VOTERS[0])
    make.add([twice])
    other = [data for _, data in make.chain()]
    make.tip = before
    make.add(make.votes(*TWO))
    make.add()

    async def run():
        with trio.fail_after(60), open_chain(tmp_path / "c", make.document, map_size=1 << 28) as store:
            keeper = Keeper(store, lambda: NOW)
            for _, data in make.chain():
                await keeper.accept(data)
            told = []
            keeper.on_tx.append(told.append)
            if is_sent:
                with pytest.raises(InvalidTransaction):
                    keeper.submit(twice)
            else:
                await keeper.accept_chain(other)
            assert keeper.tip == make.tip
            assert keeper.pool.ids() == tuple(told), "others are told"
            assert len(told) == 1
            block = mine(await keeper.build(bytes(32)))
            await keeper.accept(encode_block(block))
            assert stake_of(keeper.state(), KEYS[0]).is_burned
            assert not stake_of(keeper.state(), KEYS[1]).is_burned
            with pytest.raises(InvalidTransaction):
                keeper.submit(twice)
            assert not keeper.pool.ids(), "once is enough"

    trio.run(run)


def test_what_was_final_is_remembered_over_a_restart(tmp_path):
    """By itself: a chain that is followed later may hold the checkpoint, and lack the votes that made it final."""
    make = Voting()
    while make.tip.height % INTERVAL:
        make.add()
    for _ in range(3):
        make.epoch(*TWO)
    final = make.finality().final.height
    assert final > 0

    async def run():
        for _ in range(2):
            with trio.fail_after(60), open_chain(tmp_path / "c", make.document, map_size=1 << 28) as store:
                keeper = Keeper(store, lambda: NOW)
                assert keeper.tip.height in (0, make.tip.height)
                for _, data in make.chain():
                    await keeper.accept(data)
                assert store.held() == final
        with open_chain(tmp_path / "c", make.document, map_size=1 << 28) as store:
            keeper = Keeper(store, lambda: NOW)
            low = make.chain()[0][0]
            await keeper.accept_tip(BlockId(low))
            assert store.held() == 0, "a person's word"

    trio.run(run)
