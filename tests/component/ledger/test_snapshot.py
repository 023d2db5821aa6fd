"""A daemon that takes the state at one block from others: what it then has and says is what a full sync gives, whoever lies, goes
away or forgets, and whenever it is killed."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio

from fsdecloud.crypto import sign
from fsdecloud.ledger import snapshot as choosing
from fsdecloud.ledger.blocks import decode_block, encode_block
from fsdecloud.ledger.state import node_ref, reachable_nodes
from fsdecloud.ledger.transactions import decode_tx, tx_id
from fsdecloud.ledgerd import snapshot
from fsdecloud.ledgerd.snapshot import prepare_snapshot
from fsdecloud.store.chain import open_chain
from fsdecloud.tree.node import Leaf, encode_node
from fsdecloud.wire import gossip

sys.path.insert(0, str(Path(__file__).parent))
from nodes import Node, connected, rogue_of, until, until_so

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "ledger"))
from chainmaker import Maker, easy_network

VOLUME = bytes([2]) * 32
VOLUME_KEY = sign.public_key(VOLUME)
DEPTH = 5
HEIGHT = 60
PIVOT = HEIGHT - DEPTH - choosing.PIVOT_MARGIN


@pytest.fixture(scope="module")
def chain():
    """A chain of HEIGHT blocks with an anchor in each, and a state of some dozens of nodes; only looked at."""
    return long_chain(HEIGHT)


def long_chain(height, **changes):
    make = Maker(easy_network(finality_depth=DEPTH, **changes))
    for number in range(1, height + 1):
        more = [make.register(bytes([number, n]) * 16, 1) for n in range(12)]
        make.add([make.anchor(VOLUME, number), *more])
    return make


def extend(make, count):
    """Add blocks with an anchor each."""
    for number in range(make.tip.height + 1, make.tip.height + 1 + count):
        make.add([make.anchor(VOLUME, number)])


@asynccontextmanager
async def node_of(path, make, number, *, wanted=None, **options):
    """Run a daemon over the store at `path`: a new one takes a snapshot if that is `wanted`."""
    with open_chain(path, make.document, map_size=1 << 28) as store:
        prepare_snapshot(store, wanted)
        node = Node(store, number, **options)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.hub.sync.run)
            yield node
            nursery.cancel_scope.cancel()


def run(work):
    async def main():
        with trio.fail_after(40):
            async with AsyncExitStack() as stack:
                await work(stack)

    trio.run(main)


async def full_node(stack, path, make, number, **options):
    """A daemon that has the chain of `make`, all of it verified."""
    node = await stack.enter_async_context(node_of(path, make, number, **options))
    connected_now = await node.keeper.accept_chain([data for _, data in make.chain()])
    assert connected_now.error is None
    return node


def nodes_of(store, root):
    return {ref: store.node(ref) for ref in reachable_nodes(store.node, [root])}


def test_a_snapshot_gives_what_a_full_sync_gives(tmp_path, chain):
    async def work(stack):
        others = [await full_node(stack, tmp_path / str(n), chain, n) for n in (1, 2, 3)]
        node = await stack.enter_async_context(node_of(tmp_path / "new", chain, 4, wanted=True))
        for other in others:
            await stack.enter_async_context(connected(node, other))
        await until(node, lambda: node.keeper.tip == chain.tip)
        ours, theirs = node.keeper.store, others[0].keeper.store
        for height in range(PIVOT, HEIGHT + 1):
            root = theirs.point(theirs.best_at(height)).state_root
            assert nodes_of(ours, root) == nodes_of(theirs, root)
        assert [ours.point(ours.best_at(h)) for h in range(HEIGHT + 1)] == [
            theirs.point(theirs.best_at(h)) for h in range(HEIGHT + 1)
        ]
        assert ours.headers_from(1, 500) == theirs.headers_from(1, 500)
        assert ours.first_body() == node.hub.hello().first == ours.history_first() == PIVOT + 1
        assert ours.blocks_from(PIVOT + 1, 100, 1 << 30) == theirs.blocks_from(PIVOT + 1, 100, 1 << 30)
        assert node.keeper.registry() == others[0].keeper.registry()
        assert node.keeper.state().volume(VOLUME_KEY) == others[0].keeper.state().volume(VOLUME_KEY)
        assert node.hub.sync.snapshot.asked > 1
        block = await node.keeper.build(bytes(32))  # from now on it is one like the others
        assert block is None
        node.keeper.submit(chain.anchor(VOLUME, HEIGHT + 1))
        block = await node.keeper.build(bytes(32))
        assert block.header.parent == chain.tip.id

    run(work)


def test_nothing_is_mined_before_the_state_is_there(tmp_path, chain):
    async def work(stack):
        node = await stack.enter_async_context(node_of(tmp_path / "new", chain, 4, wanted=True))
        node.keeper.submit(chain.anchor(VOLUME, 1))
        assert node.keeper.needs_snapshot
        assert await node.keeper.build(bytes(32)) is None

    run(work)


def test_a_chain_too_short_is_synced_in_full(tmp_path):
    make = long_chain(DEPTH + choosing.PIVOT_MARGIN)

    async def work(stack):
        other = await full_node(stack, tmp_path / "1", make, 1)
        node = await stack.enter_async_context(node_of(tmp_path / "new", make, 4, wanted=True))
        await stack.enter_async_context(connected(node, other))
        await until(node, lambda: node.keeper.tip == make.tip)
        assert not node.keeper.needs_snapshot
        assert node.keeper.store.snapshot() is None
        assert node.keeper.store.first_body() == 1

    run(work)


class Limited:
    """Counts the nodes that a store gives to others, and has none once there were so many."""

    def __init__(self, node, monkeypatch, most=1 << 30):
        self.given = []
        self.most = most
        store = node.keeper.store
        real = store.node

        def read(ref):
            data = real(ref)
            if data is None or len(self.given) >= self.most:
                return None
            self.given.append(ref)
            return data

        monkeypatch.setattr(store, "node", read)


def test_one_that_was_cut_off_goes_on_and_fetches_nothing_twice(tmp_path, chain, monkeypatch):
    monkeypatch.setattr(snapshot, "NODES_AT_ONCE", 4)

    async def work(stack):
        other = await full_node(stack, tmp_path / "1", chain, 1)
        whole = set(nodes_of(other.keeper.store, chain.points[chain.chain()[PIVOT - 1][0]].state_root))
        limited = Limited(other, monkeypatch, most=7)
        async with node_of(tmp_path / "new", chain, 4, wanted=True) as node, connected(node, other):
            await until_so(lambda: len(limited.given) == 7 and not node.hub.sync.is_busy)
            assert node.keeper.tip.height == 0
            stored = node.keeper.store.node_count()
            mark = node.keeper.store.snapshot()
            assert chain.points[mark.header].height == PIVOT
        limited.most = 1 << 30
        assert stored == 7
        async with (
            node_of(tmp_path / "new", chain, 4) as node,
            connected(node, other),
        ):  # remembered: not asked for again
            assert node.keeper.needs_snapshot
            await until(node, lambda: node.keeper.tip == chain.tip)
        assert len(limited.given) == len(set(limited.given))
        assert set(limited.given) == whole

    run(work)
