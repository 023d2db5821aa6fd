"""Old bodies go, headers stay: what is left verifies, reorganises, tells the latest anchors, and says what it cannot give."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import trio

from fsdecloud.config import HOME_VARIABLE, find_paths
from fsdecloud.crypto import sign
from fsdecloud.errors import BlockPruned
from fsdecloud.ledger.blocks import encode_block
from fsdecloud.ledger.reasons import ChainDamaged, ReorgTooDeep
from fsdecloud.ledger.transactions import decode_tx, tx_id
from fsdecloud.ledgerd import keeper as keeping
from fsdecloud.ledgerd.api import LocalApi
from fsdecloud.ledgerd.hub import Hub
from fsdecloud.ledgerd.keeper import Keeper
from fsdecloud.ledgerd.rebuild import rebuild_chain
from fsdecloud.ledgerd.setup import chain_path, init_ledger
from fsdecloud.ledgerd.verify import offline_verify
from fsdecloud.store.chain import open_chain
from fsdecloud.wire import gossip
from fsdecloud.wire.ledgerapi import AnchorQuery, BlockQuery

sys.path.insert(0, str(Path(__file__).parent))
from nodes import NOW, connected, fill, rogue_of, session_test, until, until_so

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "ledger"))
from chainmaker import Maker, easy_network

OLD, BUSY = bytes([2]) * 32, bytes([3]) * 32
OLD_KEY, BUSY_KEY = map(sign.public_key, (OLD, BUSY))
DEPTH = 5
HEIGHT = 60


@pytest.fixture
def small_margin(monkeypatch):
    monkeypatch.setattr(keeping, "PRUNE_MARGIN", 3)


def put_chain(paths, make, *, limit):
    """Keep a chain of HEIGHT blocks with at most `limit` bytes of bodies. One volume has its only anchor in block 2, the other
    one in each."""

    async def run():
        with trio.fail_after(40), open_chain(chain_path(paths), make.document, map_size=1 << 28) as store:
            keeper = Keeper(store, lambda: NOW, limit)
            for number in range(1, HEIGHT + 1):
                anchors = [make.anchor(BUSY, number)]
                if number == 2:
                    anchors.append(make.anchor(OLD, 1))
                await keeper.accept(encode_block(make.add(anchors).block))

    trio.run(run)


@pytest.fixture
def pruned(tmp_path, small_margin):
    make = Maker(easy_network(finality_depth=DEPTH))
    paths = find_paths({HOME_VARIABLE: str(tmp_path / "home")})
    init_ledger(paths, make.document)
    put_chain(paths, make, limit=80_000)
    return paths, make


def test_old_bodies_go_and_what_is_needed_stays(pruned):
    paths, make = pruned
    ids = [identity for identity, _ in make.chain()]
    with open_chain(chain_path(paths), make.document, map_size=1 << 28) as store:
        first = store.first_body()
        assert 20 < first < HEIGHT - DEPTH
        assert store.body_bytes() <= 80_000
        assert [store.block(i) is None for i in ids] == [height < first for height in range(1, HEIGHT + 1)]
        assert all(store.header(i) is not None and store.point(i) is not None for i in ids)
        assert store.headers_after([make.network], 100) == tuple(store.header(i) for i in ids)
        # The latest anchor of a volume that was silent since; of the busy one those of the blocks that are here.
        [(data, height)] = store.anchors(OLD_KEY, 1, 9)
        assert (height, decode_tx(data).sequence) == (2, 1)
        assert store.find_tx(tx_id(decode_tx(data))) == (data, 2, 2)
        assert [h for _, h in store.anchors(BUSY_KEY, first, 99)] == list(range(first, HEIGHT + 1))
        assert store.anchors(BUSY_KEY, first - 1, 99) == ()
        gone = tx_id(decode_tx(make.anchor(BUSY, 3)))
        assert store.find_tx(gone) is None
        assert store.prune_bodies(0, DEPTH) == HEIGHT - DEPTH - first
        assert store.prune_bodies(0, DEPTH) == 0
        assert store.first_body() == HEIGHT - DEPTH


def test_a_pruned_daemon_says_what_it_has_dropped_to_local_programs(pruned):
    """Not as if there were none: a log or a certificate that lacks its beginning would look whole."""
    paths, make = pruned

    async def run():
        with open_chain(chain_path(paths), make.document, map_size=1 << 28) as store:
            keeper = Keeper(store, lambda: NOW)
            handlers = LocalApi(keeper, Hub(keeper, bytes(32), bytes(32)), None).handlers()
            first = store.first_body()

            async def ask(method, params):
                return await handlers[method][1](params)

            for method, params in (
                ("anchors", AnchorQuery(BUSY_KEY, 0, 9)),
                ("anchors", AnchorQuery(BUSY_KEY, first - 1, 9)),
                ("blocks", BlockQuery(0, 9)),
                ("blocks", BlockQuery(first - 1, 9)),
            ):
                with pytest.raises(BlockPruned, match=f"bodies of blocks from {first} on"):
                    await ask(method, params)
            assert len((await ask("anchors", AnchorQuery(BUSY_KEY, first, 99))).anchors) == HEIGHT + 1 - first
            assert (await ask("anchors", AnchorQuery(OLD_KEY, 1, 9))).anchors[0].height == 2
            assert not (await ask("anchors", AnchorQuery(OLD_KEY, 2, 9))).anchors
            assert not (await ask("anchors", AnchorQuery(bytes(32), 1, 9))).anchors
            assert not (await ask("blocks", BlockQuery(HEIGHT + 1, 9))).blocks

    trio.run(run)


def test_an_anchor_that_is_kept_goes_when_it_is_the_latest_no_more(tmp_path, small_margin):
    make = Maker(easy_network(finality_depth=DEPTH))

    async def run():
        with trio.fail_after(40), open_chain(tmp_path / "c", make.document, map_size=1 << 28) as store:
            keeper = Keeper(store, lambda: NOW, 0)
            for number in range(1, 31):
                anchors = [make.anchor(OLD, 1 + number // 15)] if number in (1, 15, 30) else []
                await keeper.accept(encode_block(make.add(anchors).block))
            assert [h for _, h in store.anchors(OLD_KEY, 2, 9)] == [15, 30]
            assert store.anchors(OLD_KEY, 1, 9) == ()
            with store._env.read() as txn:
                assert txn.stat(store._kept)["entries"] == 1

    trio.run(run)


def test_what_is_left_verifies_and_damage_is_named(pruned):
    paths, make = pruned
    verified = offline_verify(paths)
    assert (verified.height, verified.tip) == (HEIGHT, make.tip.id)
    file = chain_path(paths) / "data.mdb"
    data = bytearray(file.read_bytes())
    piece = make.chain()[HEIGHT - 15][1][-40:]  # its body is here, the state before it is not
    position = data.find(piece)
    assert position >= 0
    while position >= 0:
        data[position + 20] ^= 1
        position = data.find(piece, position + 40)
    file.write_bytes(data)
    with pytest.raises(ChainDamaged) as caught:
        offline_verify(paths)
    assert caught.value.height == HEIGHT - 14


def test_a_pruned_chain_cannot_be_rebuilt_from_itself(pruned):
    paths, make = pruned
    found = rebuild_chain(paths)
    assert (found.kept, found.before) == (0, HEIGHT)
    assert "pruned" in found.reason
    with open_chain(chain_path(paths), make.document, map_size=1 << 28) as store:
        assert store.tip().height == 0


def test_fault_100_a_pruned_daemon_reorganises_within_the_final_depth_and_no_deeper(tmp_path, small_margin):
    make = Maker(easy_network(finality_depth=DEPTH))

    async def run():
        with trio.fail_after(40), open_chain(tmp_path / "c", make.document, map_size=1 << 28) as store:
            keeper = Keeper(store, lambda: NOW, 0)
            points = [(await keeper.accept(encode_block(make.add().block))).point for _ in range(30)]
            assert store.first_body() > 15
            make.tip = points[30 - DEPTH - 1]
            for _ in range(DEPTH + 1):
                await keeper.accept(encode_block(make.add(recipient=OLD_KEY).block))
            assert keeper.tip == make.tip
            with pytest.raises(ReorgTooDeep, match="rebuild"):
                await keeper.accept_tip(points[3].id)
            assert keeper.tip == make.tip

    trio.run(run)


def test_a_pruned_daemon_says_what_it_cannot_give(tmp_path, small_margin):
    """A newcomer that knows only it gets nothing and waits; with a second daemon it gets the old blocks there."""

    async def work(make, pruned, full, newcomer):
        pruned.keeper._body_limit = 0
        for number in range(1, 41):
            data = encode_block(make.add([make.anchor(BUSY, number)]).block)
            await pruned.keeper.accept(data)
            await full.keeper.accept(data)
        first = pruned.keeper.store.first_body()
        assert first > 20
        async with rogue_of(pruned, make) as rogue:
            hello = await rogue.expect(gossip.Hello)
            assert (hello.first, hello.height) == (first, 40)
        async with connected(newcomer, pruned):
            await until_so(lambda: newcomer.hub.peers() and not newcomer.hub.sync.is_busy)
            assert newcomer.keeper.tip.height == 0
            async with connected(newcomer, full):
                await until(newcomer, lambda: newcomer.keeper.tip == make.tip)
        await fill(full, make, 1)

    session_test(tmp_path, work, nodes=3, finality_depth=DEPTH)
