"""Sessions between daemons over memory channels: honest ones converge, dishonest ones are dropped and cost nothing lasting."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest
import trio

from fsdecloud import codec
from fsdecloud.crypto import sign
from fsdecloud.ledger.blocks import encode_block, encode_header
from fsdecloud.ledger.network import decode_network
from fsdecloud.ledger.transactions import decode_tx, tx_id
from fsdecloud.wire import gossip

sys.path.insert(0, str(Path(__file__).parent))
from nodes import NOW, Rogue, channel_pair, connected, fill, rogue_test, session_test, until

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "ledger"))
from chainmaker import with_body, with_header

VOLUME = bytes([2]) * 32
ALICE_KEY = sign.public_key(bytes([3]) * 32)


def test_a_newcomer_gets_a_long_chain_and_what_waits(tmp_path):
    async def work(make, a, b):
        await fill(a, make, gossip.HEADERS_MAX + 120)
        anchor = make.anchor(VOLUME, 1)
        a.keeper.submit(anchor)
        async with connected(b, a):
            await until(b, lambda: b.keeper.tip == a.keeper.tip)
            await until(b, lambda: tx_id(decode_tx(anchor)) in b.keeper.pool)
            later = make.anchor(VOLUME, 2)
            b.keeper.submit(later)
            await until(a, lambda: tx_id(decode_tx(later)) in a.keeper.pool)
            await fill(b, make, 1)
            await until(a, lambda: a.keeper.tip == make.tip)
            assert len(a.hub.peers()) == len(b.hub.peers()) == 1
        assert a.hub.peers() == ()

    session_test(tmp_path, work, nodes=2)


def test_100_two_sides_meet_and_the_one_with_more_work_stays(tmp_path):
    async def work(make, a, b):
        genesis = make.tip
        await fill(a, make, 40)
        ours = make.tip
        make.tip = genesis
        await fill(b, make, 41, recipient=ALICE_KEY)
        assert a.keeper.tip == ours
        async with connected(a, b):
            await until(a, lambda: a.keeper.tip == b.keeper.tip)
        assert a.keeper.tip == make.tip

    session_test(tmp_path, work, nodes=2)


def test_101_a_chain_that_leaves_ours_too_deep_is_not_fetched(tmp_path):
    async def work(make, a, b):
        genesis = make.tip
        await fill(a, make, 30)
        ours = make.tip
        make.tip = genesis
        await fill(b, make, 33, recipient=ALICE_KEY)
        async with connected(a, b):
            while not a.keeper.alarm:
                await trio.lowlevel.checkpoint()
        assert a.keeper.tip == ours
        assert a.keeper.store.point(make.tip.id) is None

    session_test(tmp_path, work, nodes=2, finality_depth=5)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\xc1", "not a ledger message"),
        (b"", "not a ledger message"),
        (codec.encode([99, 1]), "not a ledger message"),
        (codec.encode([4, [b"short"]]), "not a ledger message"),
        (codec.encode([4, [bytes(32)] * 65]), "not a ledger message"),
        (codec.encode([6, []]), "not a ledger message"),
        (codec.encode([9, [bytes(32)] * 1001]), "not a ledger message"),
        (gossip.encode_message(gossip.Headers(())), "nobody asked for"),
        (gossip.encode_message(gossip.Blocks((b"x",))), "nobody asked for"),
        (gossip.encode_message(gossip.Txs((b"junk",))), "invalid transaction"),
    ],
)
def test_79_85_nonsense_ends_the_session(tmp_path, data, text):
    async def work(rogue):
        await rogue.hello()
        await rogue.raw(data)
        await rogue.expect_dropped(text)

    rogue_test(tmp_path, work)


@pytest.mark.parametrize(
    ("changes", "text"),
    [({"network": bytes(32)}, "in network"), ({"nonce": bytes([1]) * 32}, "called ourselves")],
)
def test_108_wrong_network_and_oneself(tmp_path, changes, text):
    async def work(rogue):
        await rogue.hello(**changes)
        await rogue.expect_dropped(text)

    rogue_test(tmp_path, work)


def test_questions_before_hello_are_refused_except_for_the_network(tmp_path):
    async def work(rogue):
        await rogue.send(gossip.GetNetwork())
        document = (await rogue.expect(gossip.Network)).document
        assert decode_network(document) == rogue.make.document
        await rogue.send(gossip.GetPeers())
        await rogue.expect_dropped("before Hello")

    rogue_test(tmp_path, work)


def test_96_an_invalid_header_ends_the_session_before_any_block_is_asked_for(tmp_path):
    async def work(rogue):
        good = rogue.make.build()
        lazy = good
        while int.from_bytes(lazy.header.nonce) < 1 << 16:
            lazy = msgspec.structs.replace(
                lazy, header=msgspec.structs.replace(lazy.header, nonce=bytes(5) + b"\1" + bytes(2))
            )
        header = msgspec.structs.replace(lazy.header, target=bytes([255]) * 32)
        await rogue.hello(work=1 << 200)
        await rogue.expect(gossip.GetHeaders)
        await rogue.send(gossip.Headers((encode_header(header),)))
        await rogue.expect_dropped("WrongTarget")

    rogue_test(tmp_path, work)


def test_102_headers_from_nowhere(tmp_path):
    async def work(rogue):
        orphan = with_header(rogue.make.build(), parent=bytes([1]) * 32)
        await rogue.hello(work=1 << 200)
        await rogue.expect(gossip.GetHeaders)
        await rogue.send(gossip.Headers((encode_header(orphan.header),)))
        await rogue.expect_dropped("do not follow")

    rogue_test(tmp_path, work)


def test_98_an_invalid_block_ends_the_session_and_is_not_fetched_again(tmp_path):
    async def work(rogue):
        good = rogue.make.build([rogue.make.anchor(VOLUME, 1)])
        body = [decode_tx(data) for data in good.transactions]
        bad = with_body(good, [*body, body[1]])
        await rogue.hello(work=1 << 200)
        await rogue.expect(gossip.GetHeaders)
        await rogue.send(gossip.Headers((encode_header(bad.header),)))
        assert len((await rogue.expect(gossip.GetBlocks)).ids) == 1
        await rogue.send(gossip.Blocks((encode_block(bad),)))
        await rogue.expect_dropped("DuplicateTransaction")
        # Once more: this time its header is enough.
        node = rogue.node
        one, two = channel_pair()
        again = Rogue(node, rogue.make, two)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: node.run(one, inbound=True))
            await again.hello(work=1 << 200)
            await again.expect(gossip.GetHeaders)
            await again.send(gossip.Headers((encode_header(bad.header),)))
            await again.expect_dropped("is invalid: DuplicateTransaction")

    rogue_test(tmp_path, work)


def test_97_a_chain_with_less_work_is_not_stored(tmp_path):
    async def work(rogue):
        make, node = rogue.make, rogue.node
        genesis = make.tip
        await fill(node, make, 5)
        ours = make.tip
        make.tip = genesis
        weak = [make.add(recipient=ALICE_KEY) for _ in range(4)]
        await rogue.hello(work=1 << 200)
        await rogue.expect(gossip.GetHeaders)
        await rogue.send(gossip.Headers(tuple(encode_header(c.block.header) for c in weak)))
        await rogue.send(gossip.GetPeers())
        await rogue.expect(gossip.Peers)
        assert node.keeper.tip == ours
        assert all(node.keeper.store.point(c.point.id) is None for c in weak)
        # It keeps its word after all: one more block, and it leads.
        weak.extend(make.add(recipient=ALICE_KEY) for _ in range(2))
        await rogue.send(gossip.NewTip(encode_header(weak[-1].block.header), make.tip.work, 0))
        await rogue.expect(gossip.GetHeaders)
        await rogue.send(gossip.Headers(tuple(encode_header(c.block.header) for c in weak)))
        wanted = (await rogue.expect(gossip.GetBlocks)).ids
        assert wanted == tuple(c.point.id for c in weak)
        await rogue.send(gossip.Blocks(tuple(encode_block(c.block) for c in weak[:4])))
        assert (await rogue.expect(gossip.GetBlocks)).ids == wanted[4:]
        await rogue.send(gossip.Blocks(tuple(encode_block(c.block) for c in weak[4:])))
        await until(node, lambda: node.keeper.tip == make.tip)

    rogue_test(tmp_path, work)


def test_103_a_block_of_the_future_is_held_not_banned(tmp_path):
    async def work(rogue):
        make, node = rogue.make, rogue.node
        late = make.build(time=NOW + make.document.future_limit + 5)
        await rogue.hello(work=1 << 200)
        await rogue.expect(gossip.GetHeaders)
        await rogue.send(gossip.Headers((encode_header(late.header),)))
        await rogue.send(gossip.GetPeers())
        await rogue.expect(gossip.Peers)
        assert node.ended is None
        assert node.keeper.tip.height == 0
        soon = make.build(time=NOW + make.document.future_limit)
        await rogue.send(gossip.NewTip(encode_header(soon.header), (1 << 200).to_bytes(32), 0))
        await rogue.expect(gossip.GetBlocks)
        await rogue.send(gossip.Blocks((encode_block(soon),)))
        await until(node, lambda: node.keeper.tip.height == 1)

    rogue_test(tmp_path, work)


def test_answers_are_bounded(tmp_path):
    async def work(rogue):
        make, node = rogue.make, rogue.node
        await fill(node, make, 3)
        await rogue.hello()
        await rogue.send(gossip.GetBlocks((make.tip.id, bytes(32), make.tip.parent)))
        blocks = (await rogue.expect(gossip.Blocks)).blocks
        assert blocks == (node.keeper.store.block(make.tip.id), node.keeper.store.block(make.tip.parent))
        await rogue.send(gossip.GetHeaders((bytes(32), make.tip.parent)))
        assert (await rogue.expect(gossip.Headers)).headers == (node.keeper.store.header(make.tip.id),)
        await rogue.send(gossip.GetTxs((bytes(32),)))
        assert (await rogue.expect(gossip.Txs)).txs == ()

    rogue_test(tmp_path, work)


def test_addresses_that_make_no_sense_are_not_remembered(tmp_path):
    async def work(rogue):
        node = rogue.node
        key = "ab" * 32
        await rogue.hello(url=f"wss://127.0.0.1:1/{key}")
        other = f"wss://127.0.0.1:2/{key}?network={'00' * 32}"
        await rogue.send(gossip.Peers(("junk", "wss://nokey:1/", other, f"wss://127.0.0.1:3/{'01' * 32}")))
        await rogue.send(gossip.GetPeers())
        urls = (await rogue.expect(gossip.Peers)).urls
        assert urls == (f"wss://127.0.0.1:1/{key}",)
        assert node.hub.peers()[0].url == f"wss://127.0.0.1:1/{key}"

    rogue_test(tmp_path, work)
