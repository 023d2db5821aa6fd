"""Syncing from several daemons, some of which lie, stall or are cut off: what is honest arrives, and nothing else is stored."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import trio

from fsdecloud.crypto import sign
from fsdecloud.errors import RemoteTimeout
from fsdecloud.ledger.blocks import decode_block, encode_block, encode_header
from fsdecloud.ledger.compact import shorten
from fsdecloud.ledgerd import download
from fsdecloud.ledgerd import sync as syncing
from fsdecloud.wire import gossip

sys.path.insert(0, str(Path(__file__).parent))
from nodes import connected, fill, rogue_of, session_test, until

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "ledger"))
from chainmaker import Maker, easy_network

ALICE_KEY = sign.public_key(bytes([3]) * 32)


def blocks_of(make):
    return [decode_block(data) for _, data in make.chain()]


async def serve_blocks(rogue, make, *, count=None):
    """Answer questions for blocks honestly; return how many blocks were given, when the session ends or after `count`."""
    given = 0
    while count is None or given < count:
        ids = (await rogue.expect(gossip.GetBlocks)).ids
        await rogue.send(gossip.Blocks(tuple(make.blocks[i] for i in ids)))
        given += len(ids)
    return given


def test_bodies_come_from_all_who_have_them(tmp_path):
    """Three give them in turns: none gets the next question before the others have answered theirs."""

    async def work(make, node):
        for _ in range(300):
            make.add()
        served = []
        async with AsyncExitStack() as stack:
            rogues = [await stack.enter_async_context(rogue_of(node, make)) for _ in range(3)]
            first, *others = rogues
            for rogue in others:
                await rogue.hello(0, height=300)
                await rogue.expect(gossip.GetPeers)
            await first.claim(make.tip)
            await first.give_headers(blocks_of(make))
            questions = [(rogue, (await rogue.expect(gossip.GetBlocks)).ids) for rogue in rogues]
            for rogue, ids in questions:
                served.append(len(ids))
                await rogue.send(gossip.Blocks(tuple(make.blocks[i] for i in ids)))
            assert len({ids for _, ids in questions}) == 3
            async with trio.open_nursery() as nursery:
                for rogue in rogues:
                    nursery.start_soon(serve_blocks, rogue, make)
                await until(node, lambda: node.keeper.tip == make.tip)
                nursery.cancel_scope.cancel()

    session_test(tmp_path, work)


def test_one_that_stalls_does_not_hold_up_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "STALL", 0.05)

    async def work(make, node):
        for _ in range(200):
            make.add()
        async with rogue_of(node, make) as slow, rogue_of(node, make) as fast:
            await fast.hello(0, height=200)
            await slow.claim(make.tip)
            await slow.give_headers(blocks_of(make))
            stalled = (await slow.expect(gossip.GetBlocks)).ids
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve_blocks, fast, make)
                await until(node, lambda: node.keeper.tip == make.tip)
                nursery.cancel_scope.cancel()
            assert make.points[stalled[0]].height <= 200
            await slow.send(gossip.Blocks(tuple(make.blocks[i] for i in stalled)))  # late, and no offence
            await slow.send(gossip.GetPeers())
            await slow.expect(gossip.Peers)
            assert node.ended is None

    session_test(tmp_path, work)


def test_one_that_always_stalls_is_dropped_and_not_shut_out(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "STALL", 0.02)
    monkeypatch.setattr(download, "FETCH_BATCH", 8)
    monkeypatch.setattr(download, "WINDOW", 16)

    async def work(make, node):
        for _ in range(400):
            make.add()
        async with rogue_of(node, make, serve=True) as slow, rogue_of(node, make) as fast:
            await fast.hello(0, height=400)
            await slow.claim(make.tip)
            await slow.give_headers(blocks_of(make))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve_blocks, fast, make)
                for _ in range(1000):
                    message = await slow.receive_or_none()
                    if message is None:
                        break
                    if isinstance(message, gossip.GetBlocks):  # answered when somebody else has given them
                        last = make.points[message.ids[-1]].height
                        await until(node, lambda last=last: node.keeper.tip.height >= last)
                        await slow.try_send(gossip.Blocks(tuple(make.blocks[i] for i in message.ids)))
                await until(node, lambda: node.keeper.tip == make.tip)
                nursery.cancel_scope.cancel()
        assert any(isinstance(ending, RemoteTimeout) for ending in node.endings)
        assert node.hub.bans.entries() == ()

    session_test(tmp_path, work)


def test_one_that_goes_in_the_middle_is_replaced(tmp_path):
    async def work(make, node):
        for _ in range(200):
            make.add()
        async with rogue_of(node, make) as other:
            await other.hello(0, height=200)
            async with rogue_of(node, make) as leaving:
                await leaving.claim(make.tip)
                await leaving.give_headers(blocks_of(make))
                await leaving.expect(gossip.GetBlocks)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve_blocks, other, make)
                await until(node, lambda: node.keeper.tip == make.tip)
                nursery.cancel_scope.cancel()

    session_test(tmp_path, work)


def test_fault_098_a_mutated_body_bans_its_sender_and_not_the_block(tmp_path):
    async def work(make, node):
        good = make.add([make.anchor(bytes([2]) * 32, 1)]).block
        mutated = msgspec.structs.replace(good, transactions=good.transactions[:1])
        async with rogue_of(node, make, serve=True) as liar:
            await liar.claim(make.tip)
            await liar.give_headers([good])
            await liar.expect(gossip.GetBlocks)
            await liar.send(gossip.Blocks((encode_block(mutated),)))
            await liar.expect_dropped("BodyMismatch")
        assert node.keeper.store.invalid_reason(make.tip.id) is None
        assert node.hub.bans.is_banned("198.51.100.7:1", node.time)
        async with rogue_of(node, make, serve=True) as again:
            await again.is_dropped()
        async with rogue_of(node, make) as honest:
            await honest.claim(make.tip)
            await honest.give_headers([good])
            await serve_blocks(honest, make, count=1)
            await until(node, lambda: node.keeper.tip == make.tip)

    session_test(tmp_path, work)


def test_fault_097_false_claims_cost_points_and_nothing_is_stored(tmp_path):
    async def work(make, node):
        genesis = make.tip
        await fill(node, make, 3)
        ours, make.tip = make.tip, genesis
        weak = [make.add(recipient=ALICE_KEY) for _ in range(2)]
        header = encode_header(weak[-1].block.header)
        async with rogue_of(node, make) as rogue:
            await rogue.hello(1 << 200)
            for turn in range(6):
                await rogue.give_headers([checked.block for checked in weak])
                if turn == 5:
                    break
                await rogue.send(gossip.NewTip(header, (1 << 200).to_bytes(32), 0))
            await rogue.expect_dropped("a better chain than its headers prove")
        assert node.keeper.tip == ours
        assert all(node.keeper.store.point(checked.point.id) is None for checked in weak)

    session_test(tmp_path, work)


def test_fault_097_a_chain_below_the_minimum_work_is_not_followed(tmp_path):
    make = Maker(easy_network())
    weak = [make.add().block for _ in range(3)]
    minimum = int.from_bytes(make.tip.work) + 1

    async def work(make, node):
        async with rogue_of(node, make) as rogue:
            await rogue.claim(make.tip)
            await rogue.give_headers(weak)
            await rogue.send(gossip.GetPeers())
            await rogue.expect(gossip.Peers)
            assert node.keeper.tip.height == 0
            assert node.ended is None
            strong = make.add()
            await rogue.send(gossip.NewTip(encode_header(strong.block.header), make.tip.work, 0))
            await rogue.give_headers([*weak, strong.block])
            await serve_blocks(rogue, make, count=4)
            await until(node, lambda: node.keeper.tip == make.tip)

    session_test(tmp_path, work, make=make, options={"minimum_work": minimum})


def test_fault_096_a_flood_of_headers_is_cut_at_the_bound(tmp_path, monkeypatch):
    """A chain longer than one branch may be is followed piece by piece."""
    from fsdecloud.ledger import headers

    monkeypatch.setattr(headers, "BRANCH_MAX", 40)

    async def work(make, a, b):
        await fill(a, make, 100)
        async with connected(b, a):
            await until(b, lambda: b.keeper.tip == make.tip)

    session_test(tmp_path, work, nodes=2)


def test_fault_103_a_chain_from_the_future_is_looked_at_again(tmp_path, monkeypatch):
    """Nobody says a word again: when the clock is set right, the chain is followed."""
    monkeypatch.setattr(syncing, "HELD_RETRY", 0.05)

    async def work(make, node):
        late = make.add(time=node.time + make.document.future_limit + 5)
        async with rogue_of(node, make) as rogue:
            await rogue.claim(make.tip)
            await rogue.give_headers([late.block])
            await rogue.give_headers([late.block])
            assert node.keeper.tip.height == 0
            node.time += 10
            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer_all, rogue, make)
                await until(node, lambda: node.keeper.tip == make.tip)
                nursery.cancel_scope.cancel()
            assert node.ended is None

    session_test(tmp_path, work)


async def answer_all(rogue, make):
    """Be an honest daemon."""
    while True:
        message = await rogue.receive()
        if isinstance(message, gossip.GetHeaders):
            await rogue.send(gossip.Headers(tuple(encode_header(block.header) for block in blocks_of(make))))
        elif isinstance(message, gossip.GetBlocks):
            await rogue.send(gossip.Blocks(tuple(make.blocks[i] for i in message.ids)))
        elif isinstance(message, gossip.GetCompact):
            await rogue.send(gossip.Compact(*shorten(make.blocks[message.id])))
        elif isinstance(message, gossip.GetBlockTxs):
            transactions = decode_block(make.blocks[message.id]).transactions
            await rogue.send(gossip.BlockTxs(tuple(transactions[place] for place in message.places)))


def test_who_gives_no_headers_is_passed_by_for_another(tmp_path, monkeypatch):
    monkeypatch.setattr(syncing, "IMPATIENCE", 0.05)

    async def work(make, node):
        for _ in range(3):
            make.add()
        async with rogue_of(node, make) as silent, rogue_of(node, make) as honest:
            await honest.claim(make.tip)
            await silent.hello(1 << 255)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer_all, honest, make)
                await until(node, lambda: node.keeper.tip == make.tip)
                nursery.cancel_scope.cancel()

    session_test(tmp_path, work)
