"""Daemons that have seen the same blocks follow the same chain, whatever came first and from whom."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
import trio

from fsdecloud.crypto import sign
from fsdecloud.ledger.blocks import encode_block, encode_header
from fsdecloud.ledger.reasons import UnknownParent
from fsdecloud.ledgerd.keeper import Keeper
from fsdecloud.store.chain import open_chain
from fsdecloud.wire import gossip

sys.path.insert(0, str(Path(__file__).parent))
from nodes import NOW, connected, fill, rogue_of, session_test, until, until_so

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "ledger"))
from chainmaker import Maker, Voting

ALICE_KEY = sign.public_key(bytes([3]) * 32)


def two_tips(make):
    """Make two blocks of one height; return the worse one and the better one."""
    genesis = make.tip
    one = make.add()
    make.tip = genesis
    other = make.add(recipient=ALICE_KEY)
    assert one.point.work == other.point.work
    return sorted((one, other), key=lambda checked: checked.point.id, reverse=True)


@pytest.mark.parametrize("seed", range(6))
def test_a_tree_of_forks_in_any_order_gives_the_same_tip(tmp_path, seed):
    make = Maker()
    rng = random.Random(seed)
    points = [make.tip]
    for number in range(14):
        make.tip = rng.choice(points[-5:])
        points.append(make.add(recipient=sign.public_key(bytes([number + 1]) * 32)).point)
    best = max(points, key=lambda point: point.rank)

    async def deliver(name, order):
        with trio.fail_after(60), open_chain(tmp_path / name, make.document, map_size=1 << 28) as store:
            keeper = Keeper(store, lambda: NOW)
            while order:
                later = []
                for point in order:
                    try:
                        await keeper.accept(make.blocks[point.id])
                    except UnknownParent:
                        later.append(point)
                order = later
            return keeper.tip

    for turn in range(3):
        order = points[1:]
        random.Random(turn).shuffle(order)
        assert trio.run(deliver, f"{turn}", order) == best


@pytest.mark.parametrize("is_late", [False, True])
def test_two_daemons_with_as_much_work_agree_without_another_block(tmp_path, is_late):
    """In a network that mines only when there is something to record, the next block may be a long time coming."""

    async def work(make, a, b):
        worse, better = two_tips(make)
        await a.keeper.accept(encode_block(worse.block))
        if not is_late:
            await b.keeper.accept(encode_block(better.block))
        async with connected(b, a):
            if is_late:
                await until(b, lambda: b.keeper.tip == worse.point)
                await b.keeper.accept(encode_block(better.block))
            await until(a, lambda: a.keeper.tip == better.point)
        assert b.keeper.tip == better.point

    session_test(tmp_path, work, 2)


def test_the_votes_on_a_chain_with_less_work_are_learnt_from_others(tmp_path):
    make = Voting()
    _, voted, heavier = make.parted()
    blocks, others = ([data for _, data in make.chain(tip)] for tip in (voted, heavier))

    async def work(_make, a, b):
        for data in blocks:
            await a.keeper.accept(data)
        for data in others:
            await b.keeper.accept(data)
        assert (a.keeper.tip, b.keeper.tip) == (voted, heavier)
        async with connected(b, a):
            await until(b, lambda: b.keeper.tip == voted)
        assert a.keeper.tip == voted
        assert b.keeper.finality().final.height > 0

    session_test(tmp_path, work, 2, make=make)


def test_whoever_claims_votes_that_are_not_there_is_dropped(tmp_path):
    """His chain is fetched once for each claim, costs him points, and is not followed."""
    make = Voting()

    async def work(_make, node):
        start = make.tip
        for _, data in make.chain():
            await node.keeper.accept(data)
        await fill(node, make, 4)
        ours, make.tip = make.tip, start
        weaker = [make.add(recipient=ALICE_KEY) for _ in range(2)]
        header = encode_header(weaker[-1].block.header)
        work_of_it = weaker[-1].point.work
        async with rogue_of(node, make) as rogue:
            await rogue.hello(
                int.from_bytes(work_of_it), height=ours.height, tip=weaker[-1].point.id, justified=1 << 20
            )
            await rogue.give_headers([checked.block for checked in weaker])
            assert (await rogue.expect(gossip.GetBlocks)).ids == tuple(checked.point.id for checked in weaker)
            await rogue.send(gossip.Blocks(tuple(make.blocks[checked.point.id] for checked in weaker)))
            (session,) = node.hub.sync.sessions()
            for turn in range(1, 6):  # what is known by now is not asked for again, and is no proof of the claim either
                await until_so(lambda n=turn: session.claims == n and session.claim <= node.keeper.claim)
                await rogue.send(gossip.NewTip(header, work_of_it, 1 << 20))
            await rogue.expect_dropped("a better chain than its headers prove")
        assert node.keeper.tip == ours

    session_test(tmp_path, work, make=make)
