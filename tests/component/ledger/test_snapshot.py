"""A daemon that takes the state at one block from others: what it then has and says is what a full sync gives, whoever lies,
goes away or forgets, and whenever it is cut off."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio

from fsdecloud import codec
from fsdecloud.crypto import sign
from fsdecloud.errors import LedgerUnavailable
from fsdecloud.ledger import headers
from fsdecloud.ledger import snapshot as choosing
from fsdecloud.ledger.blocks import decode_block, encode_block, encode_header
from fsdecloud.ledger.chain import check_header
from fsdecloud.ledger.reasons import ReorgTooDeep
from fsdecloud.ledger.state import Account, State, StateNodes, border_key, node_ref, reachable_nodes
from fsdecloud.ledger.transactions import decode_tx, tx_id
from fsdecloud.ledger.work import target_after
from fsdecloud.ledgerd import download, history, snapshot
from fsdecloud.ledgerd import keeper as keeping
from fsdecloud.ledgerd.api import LocalApi
from fsdecloud.ledgerd.snapshot import prepare_snapshot, read_progress
from fsdecloud.store.chain import open_chain
from fsdecloud.tree.node import Inner, Leaf, encode_node
from fsdecloud.types import TxId
from fsdecloud.wire import gossip, ledgerapi
from fsdecloud.wire.agentapi import Empty

sys.path.insert(0, str(Path(__file__).parent))
from nodes import Node, connected, rogue_of, until, until_so

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "ledger"))
from chainmaker import MINER_KEY, Maker, easy_network, with_header

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
async def node_of(path, make, number, *, wanted=None, sync=True, history=False, **options):
    """Run a daemon over the store at `path`: a new one takes a snapshot if that is `wanted`."""
    with open_chain(path, make.document, map_size=1 << 28) as store:
        prepare_snapshot(store, wanted)
        node = Node(store, number, **options)
        async with trio.open_nursery() as nursery:
            if sync:
                nursery.start_soon(node.hub.sync.run)
            if history:
                nursery.start_soon(node.hub.history.run)
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
        assert node.keeper.justified_at(ours.point(ours.best_at(PIVOT - 1))) == 0  # no state there: nothing is shown
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


def test_a_chain_longer_than_one_branch_may_be_is_followed_piece_by_piece_to_its_end(tmp_path, chain, monkeypatch):
    monkeypatch.setattr(headers, "BRANCH_MAX", 30)

    async def work(stack):
        other = await full_node(stack, tmp_path / "1", chain, 1)
        node = await stack.enter_async_context(node_of(tmp_path / "new", chain, 4, wanted=True))
        await stack.enter_async_context(connected(node, other))
        await until(node, lambda: node.keeper.tip == chain.tip)
        assert node.keeper.store.first_body() == PIVOT + 1

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


def test_fault_116_one_that_was_cut_off_goes_on_and_fetches_nothing_twice(tmp_path, chain, monkeypatch):
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


# ---- others that lie, refuse, forget -------------------------------------------------------------------------------------
async def serve(rogue, make, nodes):
    """Be an honest daemon with the chain of `make`, but for questions about nodes: those `nodes(refs)` answers, None for
    silence."""
    while (message := await rogue.receive_or_none()) is not None:
        if isinstance(message, gossip.GetHeaders):
            blocks = [decode_block(data) for _, data in make.chain()]
            start = next((make.points[i].height for i in message.locator if i in make.points), 0)
            found = tuple(encode_header(block.header) for block in blocks[start : start + gossip.HEADERS_MAX])
            await rogue.try_send(gossip.Headers(found))
        elif isinstance(message, gossip.GetBlocks):
            await rogue.try_send(gossip.Blocks(tuple(make.blocks[i] for i in message.ids if i in make.blocks)))
        elif isinstance(message, gossip.GetCompact):
            await rogue.try_send(gossip.Compact(b"", b"", b""))
        elif isinstance(message, gossip.GetNodes):
            answer = nodes(message.refs)
            if answer is not None:
                await rogue.try_send(gossip.Nodes(answer))


def honest(make):
    return lambda refs: tuple(make.nodes[ref] for ref in refs if ref in make.nodes)


@asynccontextmanager
async def served(node, make, nodes, *, claim=None, **options):
    """`serve` in the background, as somebody with most work; `claim` changes what it says of its chain."""
    async with rogue_of(node, make, **options) as rogue:
        fields = {"work": int.from_bytes(make.tip.work), "height": make.tip.height, "tip": make.tip.id}
        await rogue.hello(**(fields | (claim or {})))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, rogue, make, nodes)
            yield rogue
            nursery.cancel_scope.cancel()


LIES = {
    "another node": lambda make, refs: (encode_node(Leaf((b"A",), (b"B",))),),
    "a node that was not asked for": lambda make, refs: (make.nodes[make.tip.state_root],),
    "what is no node": lambda make, refs: (b"\x93\x00",),
    "an endless tree": lambda make, refs: tuple(encode_node(Inner(1, (b"A",), (ref,))) for ref in refs),
}


@pytest.mark.parametrize("lie", LIES)
def test_who_sends_a_false_node_is_shut_out_and_nothing_of_it_is_stored(tmp_path, chain, lie):
    async def work(stack):
        node = await stack.enter_async_context(node_of(tmp_path / "new", chain, 4, wanted=True))
        async with served(node, chain, lambda refs: LIES[lie](chain, refs), serve=True):
            await until_so(lambda: node.ended is not None)
        assert "state node" in str(node.ended)
        assert node.hub.bans.is_banned("198.51.100.7:1", node.time)
        assert node.keeper.store.node_count() == 0
        async with served(node, chain, honest(chain)):
            await until(node, lambda: node.keeper.tip == chain.tip)

    run(work)


def test_who_refuses_all_does_not_hold_up_the_others(tmp_path, chain):
    async def work(stack):
        node = await stack.enter_async_context(node_of(tmp_path / "new", chain, 4, wanted=True))
        async with served(node, chain, lambda _: ()), served(node, chain, honest(chain)):
            await until(node, lambda: node.keeper.tip == chain.tip)
        assert node.keeper.store.first_body() == PIVOT + 1

    run(work)


def test_when_all_refuse_nothing_is_believed_and_they_are_asked_once(tmp_path, chain):
    async def work(stack):
        node = await stack.enter_async_context(node_of(tmp_path / "new", chain, 4, wanted=True))
        asked = []

        def refuse(refs):
            asked.append(refs)
            return ()

        async with served(node, chain, refuse), served(node, chain, refuse):
            await until_so(lambda: len(asked) >= 2 and not node.hub.sync.is_busy)
            assert len(asked) <= 2 * snapshot.IN_FLIGHT
            assert node.keeper.tip.height == 0
            assert node.ended is None  # once is no offence
            async with served(node, chain, honest(chain)):
                await until(node, lambda: node.keeper.tip == chain.tip)

    run(work)


def test_one_that_goes_in_the_middle_is_replaced(tmp_path, chain, monkeypatch):
    monkeypatch.setattr(snapshot, "NODES_AT_ONCE", 4)

    async def work(stack):
        node = await stack.enter_async_context(node_of(tmp_path / "new", chain, 4, wanted=True))
        silent = served(node, chain, lambda _: None)
        async with silent as rogue:
            await until_so(lambda: node.hub.sync.is_busy and node.hub.sync.snapshot.asked == 0)
            async with served(node, chain, honest(chain)):
                await until_so(lambda: node.hub.sync.snapshot.walk is not None or node.keeper.tip.height)
                rogue.close()
                await until(node, lambda: node.keeper.tip == chain.tip)

    run(work)


def test_when_nobody_has_the_state_any_more_a_later_one_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot, "NODES_AT_ONCE", 4)
    make = long_chain(HEIGHT)

    async def work(stack):
        other = await full_node(stack, tmp_path / "1", make, 1)
        limited = Limited(other, monkeypatch, most=6)
        node = await stack.enter_async_context(node_of(tmp_path / "new", make, 4, wanted=True))
        await stack.enter_async_context(connected(node, other))
        await until_so(lambda: len(limited.given) == 6 and not node.hub.sync.is_busy)
        limited.most = 1 << 30
        tip = make.tip
        extend(make, 40)
        for _, data in make.chain()[tip.height :]:
            await other.keeper.accept(data)
        await other.keeper.prune_states()
        await until(node, lambda: node.keeper.tip == make.tip)
        assert node.keeper.store.first_body() > PIVOT + 1
        assert len(limited.given) == len(set(limited.given))
        root = make.tip.state_root
        assert nodes_of(node.keeper.store, root) == nodes_of(other.keeper.store, root)

    run(work)


def test_a_tree_that_no_rule_can_make_condemns_the_chain_and_not_the_daemon(tmp_path):
    """The work is there, the state root is that of something else: no full daemon follows such a chain."""
    make = long_chain(30)
    height = choosing.choose_pivot(30, DEPTH)
    for number, data in enumerate(
        (encode_node(Leaf((b"A" + bytes(32),), (b"?",))), encode_node(Leaf((b"?",), (b"",))), b"\x93\x00")
    ):
        false = false_chain(make, height, node_ref(data))

        async def work(stack, false=false, data=data, path=tmp_path / str(number)):
            node = await stack.enter_async_context(node_of(path, make, 4, wanted=True))
            async with served(node, false, lambda _: (data,), serve=True):
                await until_so(lambda: node.ended is not None)
            assert "none that the rules can make" in str(node.ended)
            assert node.keeper.store.invalid_reason(false.pivot)
            assert node.keeper.tip.height == 0
            async with served(node, make, honest(make)):
                await until(node, lambda: node.keeper.tip == make.tip)

        run(work)


def false_chain(make, height, root):
    """The chain of `make` with another state root in the block at `height`, and empty blocks with its work after it."""
    false = Maker(make.document)
    for identity, data in make.chain()[: height - 1]:
        false.points[identity], false.blocks[identity] = make.points[identity], data
        false.tip = make.points[identity]
    last = decode_block(make.chain()[height - 1][1])
    for number in range(height, make.tip.height + 2):
        fields = {"parent": false.tip.id, "height": number, "time": false.tip.time + make.document.interval}
        block = with_header(last, **fields, target=target_after(make.document, false.tip.lead), state_root=root)
        point = check_header(make.document, false.tip, block.header, None)
        false.points[point.id], false.blocks[point.id], false.tip = point, encode_block(block), point
        if number == height + 1:
            false.pivot = point.id
    return false


def test_work_alone_decides_whose_state_is_taken(tmp_path, chain):
    """What is justified is shown by bodies, and none are looked at; a claim that the headers do not prove is not enough."""
    weak = Maker(chain.document)
    for _ in range(HEIGHT - 10):
        weak.add()

    asked = []

    def never(refs):
        asked.append(refs)
        return honest(weak)(refs)

    async def work(stack):
        node = await stack.enter_async_context(node_of(tmp_path / "new", chain, 4, wanted=True, sync=False))
        async with (
            served(node, weak, never, claim={"work": 1 << 100}),
            served(node, weak, never, claim={"justified": 1000}),
            served(node, chain, honest(chain)),
        ):
            await until_so(lambda: len(list(node.hub.sync.sessions())) == 3)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(node.hub.sync.run)
                await until(node, lambda: node.keeper.tip == chain.tip)
                nursery.cancel_scope.cancel()
        assert asked == []
        assert node.keeper.store.first_body() == PIVOT + 1

    run(work)


# ---- the blocks before it ------------------------------------------------------------------------------------------------
def test_the_history_follows_is_indexed_and_then_executed(tmp_path, chain, monkeypatch):
    monkeypatch.setattr(history, "REST", 0.0)
    monkeypatch.setattr(history, "EXECUTE_BATCH", 16)

    async def work(stack):
        other = await full_node(stack, tmp_path / "1", chain, 1)
        node = await stack.enter_async_context(node_of(tmp_path / "new", chain, 4, wanted=True, history=True))
        async with connected(node, other):
            await until_so(lambda: (mark := node.keeper.store.snapshot()) is not None and mark.is_settled)
            await until(node, lambda: node.keeper.tip == chain.tip)
        ours, theirs = node.keeper.store, other.keeper.store
        assert list(ours.stored_blocks()) == list(theirs.stored_blocks())
        assert ours.anchors(VOLUME_KEY, 1, 256) == theirs.anchors(VOLUME_KEY, 1, 256)
        assert len(ours.anchors(VOLUME_KEY, 1, 256)) == HEIGHT
        for _, data in chain.chain():
            for encoded in decode_block(data).transactions:
                identity = tx_id(decode_tx(encoded))
                assert ours.find_tx(identity) == theirs.find_tx(identity) != None  # noqa: E711 - of both
        # What accounts were changed by is known once the blocks were executed.
        assert ours.accounts_first() == 1
        found = ours.account_blocks(MINER_KEY, HEIGHT + 1, 256, 1 << 30)
        assert found == theirs.account_blocks(MINER_KEY, HEIGHT + 1, 256, 1 << 30)
        assert [height for height, *_ in found] == list(range(HEIGHT, 0, -1))
        assert node.hub.hello().first == ours.history_first() == 1
        assert ours.snapshot().verified == PIVOT
        assert node.keeper.alarm == ""

    run(work)


def test_the_history_goes_on_after_a_restart(tmp_path, chain, monkeypatch):
    monkeypatch.setattr(download, "FETCH_BATCH", 4)
    monkeypatch.setattr(download, "CONNECT_MAX", 4)
    monkeypatch.setattr(history, "REST", 0.0)
    monkeypatch.setattr(history, "EXECUTE_BATCH", 8)

    async def work(stack):
        other = await full_node(stack, tmp_path / "1", chain, 1)
        asked = []
        real = other.keeper.store.block
        monkeypatch.setattr(other.keeper.store, "block", lambda i: asked.append(i) or real(i))
        async with node_of(tmp_path / "new", chain, 4, wanted=True, history=True) as node, connected(node, other):
            store = node.keeper.store
            await until_so(lambda: 1 < store.first_body() < PIVOT - 10)
        first = store_first(tmp_path / "new", chain)
        assert first < PIVOT - 10
        kept = {identity for identity, _ in chain.chain()[first - 1 : PIVOT]}
        asked.clear()
        async with node_of(tmp_path / "new", chain, 4, history=True) as node, connected(node, other):
            await until_so(lambda: node.keeper.store.snapshot().verified > 0)
        assert kept.isdisjoint(asked)
        async with node_of(tmp_path / "new", chain, 4, history=True) as node:  # alone: all is there
            await until_so(lambda: node.keeper.store.snapshot().is_settled)
            assert node.keeper.store.snapshot().fault == ""

    run(work)


def api_of(node):
    class NoServices:
        mining = None

    return LocalApi(node.keeper, node.hub, NoServices()).handlers()


async def ask(node, method, question):
    return await api_of(node)[method][1](question)


def test_what_the_local_api_says_before_and_while_the_history_comes(tmp_path, chain, monkeypatch):
    monkeypatch.setattr(history, "REST", 0.0)
    old = chain.chain()[9][1]
    identity = tx_id(decode_tx(decode_block(old).transactions[1]))
    new_identity = tx_id(decode_tx(decode_block(chain.blocks[chain.tip.id]).transactions[1]))
    answers = [
        ("tx", ledgerapi.TxQuery(identity)),
        ("anchors", ledgerapi.AnchorQuery(VOLUME_KEY, 10, 5)),
        ("blocks", ledgerapi.BlockQuery(10, 5)),
    ]
    present = [
        ("account", ledgerapi.KeyQuery(MINER_KEY)),
        ("volume", ledgerapi.KeyQuery(VOLUME_KEY)),
        ("registry", Empty()),
        ("tx", ledgerapi.TxQuery(new_identity)),
        ("anchors", ledgerapi.AnchorQuery(VOLUME_KEY, HEIGHT, 5)),
        ("blocks", ledgerapi.BlockQuery(PIVOT + 1, 2)),
    ]

    async def work(stack):
        other = await full_node(stack, tmp_path / "1", chain, 1)
        node = await stack.enter_async_context(node_of(tmp_path / "new", chain, 4, wanted=True))
        for method, question in (*present, *answers, ("submit", ledgerapi.SubmitTx(chain.anchor(VOLUME, 1)))):
            with pytest.raises(LedgerUnavailable, match="fetching its first state"):
                await ask(node, method, question)
        assert read_progress(node.keeper.store, node.hub.sync.snapshot).stage == "headers"
        await stack.enter_async_context(connected(node, other))
        await until(node, lambda: node.keeper.tip == chain.tip)
        for method, question in present:
            assert await ask(node, method, question) == await ask(other, method, question)
        with pytest.raises(LedgerUnavailable, match="nobody votes"):
            await ask(node, "finality", ledgerapi.FinalityQuery(MINER_KEY))
        for method, question in answers:
            with pytest.raises(LedgerUnavailable, match=f"the blocks before {PIVOT + 1} are still being fetched"):
                await ask(node, method, question)
        progress = read_progress(node.keeper.store, node.hub.sync.snapshot)
        assert progress == ledgerapi.SnapshotProgress("history", PIVOT, 0, PIVOT)
        await node.hub.history.run()
        for method, question in (*present, *answers, ("finality", ledgerapi.FinalityQuery(MINER_KEY))):
            assert await ask(node, method, question) == await ask(other, method, question)
        assert read_progress(node.keeper.store, None) == ledgerapi.SnapshotProgress("verified", PIVOT, PIVOT, PIVOT)
        assert (await ask(node, "tx", ledgerapi.TxQuery(TxId(bytes(32))))).tx == b""
        assert read_progress(other.keeper.store, None) is None

    run(work)


def test_old_bodies_are_pruned_only_when_the_history_was_executed(tmp_path, chain, monkeypatch):
    """Each volume's latest anchor is kept, wherever it is: what comes after the snapshot alone does not tell."""
    monkeypatch.setattr(history, "REST", 0.0)
    monkeypatch.setattr(keeping, "PRUNE_MARGIN", 3)
    make = long_chain(HEIGHT)
    lonely = bytes([77]) * 32

    async def work(stack):
        other = await full_node(stack, tmp_path / "1", make, 1)
        node = await stack.enter_async_context(node_of(tmp_path / "new", make, 4, wanted=True, body_limit=1))
        await stack.enter_async_context(connected(node, other))
        await until(node, lambda: node.keeper.tip == make.tip)
        assert node.keeper.store.first_body() == PIVOT + 1
        await node.hub.history.run()
        assert node.keeper.store.first_body() == 1
        await node.keeper.accept(encode_block(make.add([make.anchor(lonely, 1)]).block))
        assert node.keeper.store.first_body() == HEIGHT + 1 - DEPTH - 3
        assert len(node.keeper.store.anchors(VOLUME_KEY, HEIGHT, 1)) == 1

    run(work)


def test_from_others_that_pruned_it_takes_what_they_have_and_says_so(tmp_path, chain, monkeypatch):
    monkeypatch.setattr(keeping, "PRUNE_MARGIN", choosing.PIVOT_MARGIN)

    async def work(stack):
        other = await full_node(stack, tmp_path / "1", chain, 1, body_limit=1)
        first = other.keeper.store.first_body()
        assert 1 < first <= PIVOT + 1
        node = await stack.enter_async_context(node_of(tmp_path / "new", chain, 4, wanted=True, history=True))
        await stack.enter_async_context(connected(node, other))
        await until(node, lambda: node.keeper.tip == chain.tip)
        await until_so(lambda: node.keeper.store.first_body() == first)
        assert node.hub.hello().first == node.keeper.store.history_first() == first
        assert not node.keeper.store.snapshot().is_complete
        whole = await full_node(stack, tmp_path / "2", chain, 2)
        await stack.enter_async_context(connected(node, whole))
        await until_so(lambda: node.keeper.store.snapshot().is_complete)

    run(work)


def test_no_person_can_go_back_to_where_no_state_is(tmp_path, chain):
    async def work(stack):
        other = await full_node(stack, tmp_path / "1", chain, 1)
        node = await stack.enter_async_context(node_of(tmp_path / "new", chain, 4, wanted=True))
        await stack.enter_async_context(connected(node, other))
        await until(node, lambda: node.keeper.tip == chain.tip)
        await node.hub.history.run()
        with pytest.raises(ReorgTooDeep, match="rebuild"):
            await node.keeper.accept_tip(chain.chain()[10][0])
        assert node.keeper.tip == chain.tip

    run(work)


def test_old_states_are_dropped_and_those_before_the_snapshot_not_looked_for(tmp_path, monkeypatch):
    make = long_chain(HEIGHT)

    async def work(stack):
        other = await full_node(stack, tmp_path / "1", make, 1)
        node = await stack.enter_async_context(node_of(tmp_path / "new", make, 4, wanted=True))
        await stack.enter_async_context(connected(node, other))
        await until(node, lambda: node.keeper.tip == make.tip)
        await node.keeper.prune_states()
        pivot = node.keeper.store.point(node.keeper.store.best_at(PIVOT))
        assert nodes_of(node.keeper.store, pivot.state_root)
        extend(make, 60)
        for _, data in make.chain()[HEIGHT:]:
            await node.keeper.accept(data)
        await node.keeper.prune_states()
        assert node.keeper.store.node(pivot.state_root) is None
        assert nodes_of(node.keeper.store, make.tip.state_root)

    run(work)


def test_a_person_may_change_his_mind_until_the_state_is_there(tmp_path, chain, monkeypatch):
    monkeypatch.setattr(snapshot, "NODES_AT_ONCE", 4)

    async def work(stack):
        other = await full_node(stack, tmp_path / "1", chain, 1)
        limited = Limited(other, monkeypatch, most=7)
        async with node_of(tmp_path / "new", chain, 4, wanted=True) as node, connected(node, other):
            await until_so(lambda: len(limited.given) == 7 and not node.hub.sync.is_busy)
        async with node_of(tmp_path / "new", chain, 4, wanted=False) as node, connected(node, other):
            await until(node, lambda: node.keeper.tip == chain.tip)
            assert node.keeper.store.first_body() == 1
            assert list(node.keeper.store.stored_blocks()) == list(other.keeper.store.stored_blocks())
        async with node_of(tmp_path / "new", chain, 4, wanted=True) as node:  # there is a chain: nothing to be taken
            assert not node.keeper.needs_snapshot

    run(work)


def store_first(path, make):
    with open_chain(path, make.document, map_size=1 << 28) as store:
        return store.first_body()


def test_a_false_body_costs_its_sender_the_connection_and_the_block_comes_from_others(tmp_path, chain):
    async def work(stack):
        node = await stack.enter_async_context(node_of(tmp_path / "new", chain, 4, wanted=True))
        async with served(node, chain, honest(chain)):
            await until(node, lambda: node.keeper.tip == chain.tip)
        liar = Maker(chain.document)
        liar.points, liar.tip = chain.points, chain.tip
        liar.blocks = {i: without_last(data) for i, data in chain.blocks.items()}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.hub.history.run)
            async with served(node, liar, honest(chain), serve=True):
                await until_so(lambda: node.ended is not None and "BodyMismatch" in str(node.ended))
            assert node.keeper.store.first_body() == PIVOT + 1
            async with served(node, chain, honest(chain)):
                await until_so(lambda: node.keeper.store.first_body() == 1)
            nursery.cancel_scope.cancel()

    run(work)


def without_last(data):
    block = decode_block(data)
    return encode_block(msgspec.structs.replace(block, transactions=block.transactions[:-1]))


def test_a_chain_whose_history_breaks_the_rules_is_told_of(tmp_path, monkeypatch):
    """Nobody who executes it follows it: only work can make a newcomer begin with its state, until it has executed it, too."""
    monkeypatch.setattr(history, "REST", 0.0)
    make = long_chain(10)
    forged = make.build()
    real = state_of(make)
    real.changes.update({b"A" + MINER_KEY: codec.encode(Account(1 << 40, 0))})
    root = real.write(put_in(make), border_key(make.network))
    block = with_header(forged, state_root=root)
    point = check_header(make.document, make.tip, block.header, None)
    make.points[point.id], make.blocks[point.id], make.tip = point, encode_block(block), point
    extend_with_nothing(make, 30)

    async def work(stack):
        node = await stack.enter_async_context(node_of(tmp_path / "new", make, 4, wanted=True, history=True))
        async with served(node, make, honest(make)):
            await until_so(lambda: (mark := node.keeper.store.snapshot()) is not None and mark.is_settled)
            assert "WrongStateRoot" in node.keeper.store.snapshot().fault
            assert "in block 11, before its snapshot" in node.keeper.store.snapshot().fault
            await until_so(lambda: "rebuild --discard" in node.keeper.alarm)

    run(work)


def state_of(make):
    return State(StateNodes(make.nodes.get).get, make.tip.state_root)


def put_in(make):
    def put(data):
        make.nodes[node_ref(data)] = data
        return node_ref(data)

    return put


def extend_with_nothing(make, count):
    for _ in range(count):
        make.add()
