"""A light daemon among full ones: it keeps headers, asks for what they commit to, and passes on what is submitted here."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from fsdecloud.crypto import sign
from fsdecloud.errors import InvalidTransaction, LedgerUnavailable, PeerUnavailable, UsageError
from fsdecloud.ledger.blocks import decode_block, encode_block
from fsdecloud.ledger.transactions import decode_tx, tx_id
from fsdecloud.ledgerd import proving
from fsdecloud.ledgerd import sync as syncing
from fsdecloud.wire import gossip, ledgerapi
from fsdecloud.wire.agentapi import Empty, Registry

sys.path.insert(0, str(Path(__file__).parent))
from lightnodes import KEY, NOBODY, VOLUME, answer, liar_of, light_daemon, light_test
from nodes import NOW, connected, fill, rogue_of, session_test, until, until_so

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "ledger"))
from chainmaker import MINER, MINER_KEY, Maker


# ---- headers -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kept", [1000, 7])
def test_it_keeps_all_headers_and_nothing_else(tmp_path, monkeypatch, kept):
    """Whether the branch is kept while it proves its work, or asked for again."""
    monkeypatch.setattr(syncing, "KEPT_HEADERS", kept)

    async def work(make, light, full):
        await fill(full, make, 20)
        await full.keeper.accept(encode_block(make.add([make.anchor(VOLUME, 1)]).block))
        async with connected(light, full):
            await light.reach(make.tip)
            await fill(full, make, 2)
            await light.reach(make.tip)
        store = light.keeper.store
        assert store.headers_from(1, 100) == full.keeper.store.headers_from(1, 100)
        assert store.point(make.tip.id) == make.tip
        assert not any(store.block(identity) for identity, _ in make.chain())
        assert store.node_count() == 0
        assert store.find_tx(tx_id(decode_tx(make.anchor(VOLUME, 1)))) is None

    light_test(tmp_path, work)


def test_it_goes_on_where_it_stopped(tmp_path):
    async def work(make, full):
        await fill(full, make, 5)
        for _ in range(2):
            async with light_daemon(tmp_path / "again", make) as light, connected(light, full):
                await light.reach(make.tip)
                await fill(full, make, 3)
                await light.reach(make.tip)
        async with light_daemon(tmp_path / "again", make) as light:
            assert light.keeper.tip == make.tip

    session_test(tmp_path, work)


def test_the_chain_with_the_most_work_is_followed(tmp_path):
    async def work(make, light, one, two):
        await fill(one, make, 3)
        other = Maker(make.document)
        await fill(two, other, 6, time=None)
        async with connected(light, one):
            await light.reach(make.tip)
            async with connected(light, two):
                await light.reach(other.tip)
            assert light.keeper.alarm == ""

    light_test(tmp_path, work, 2)


def test_101_a_chain_that_leaves_deeper_than_finality_is_not_followed(tmp_path):
    async def work(make, light, one, two):
        await fill(one, make, 9)
        other = Maker(make.document)
        await fill(two, other, 12, recipient=bytes(32))
        async with connected(light, one):
            await light.reach(make.tip)
        async with connected(light, two):
            await until_so(lambda: light.keeper.alarm)
        assert "leaves ours at block 0" in light.keeper.alarm
        assert light.keeper.tip == make.tip
        assert light.keeper.store.point(other.tip.id) is None

    light_test(tmp_path, work, 2, finality_depth=5)


def test_96_an_invalid_header_ends_the_connection_and_nothing_is_stored(tmp_path):
    async def work(make, light, _full):
        first, second = (make.add().block for _ in range(2))
        false = msgspec.structs.replace(second, header=msgspec.structs.replace(second.header, target=b"\xff" * 32))
        async with liar_of(light, make) as liar:
            await liar.give_headers([first, false])
            await liar.expect_dropped("invalid header")
        assert light.keeper.tip.height == 0
        assert light.keeper.store.point(make.points[make.tip.parent].id) is None

    light_test(tmp_path, work)


def test_97_headers_with_less_work_are_not_stored(tmp_path):
    async def work(make, light, full):
        await fill(full, make, 6)
        other = Maker(make.document)
        for _ in range(4):
            other.add(recipient=bytes(32))
        async with connected(light, full):
            await light.reach(make.tip)
        async with liar_of(light, make, 1 << 200) as liar:
            await liar.give_headers([decode_block(data) for _, data in other.chain()])
            await until_so(lambda: not light.hub.sync.is_busy)
        assert light.keeper.store.point(other.tip.id) is None

    light_test(tmp_path, work)


# ---- what is asked ------------------------------------------------------------------------------------------------
def test_each_question_of_a_program_is_one_to_the_network(tmp_path):
    async def work(make, light, full):
        for number in range(1, 6):
            await full.keeper.accept(encode_block(make.add([make.anchor(VOLUME, number)]).block))
        async with connected(light, full):
            await light.reach(make.tip)
            asked = light.asker.asked
            assert await light.volume() == ledgerapi.VolumeAnchor(make.anchor(VOLUME, 5), 5)
            assert (asked := asked + 1) == light.asker.asked
            assert await light.volume(NOBODY) == ledgerapi.VolumeAnchor(b"", -1)
            assert (asked := asked + 1) == light.asker.asked
            found = await light.ask("anchors", ledgerapi.AnchorQuery(KEY, 2, 256))
            assert found.anchors == tuple(ledgerapi.VolumeAnchor(make.anchor(VOLUME, n), n) for n in (2, 3, 4, 5))
            assert (asked := asked + 1) == light.asker.asked
            assert await light.ask("account", ledgerapi.KeyQuery(MINER_KEY)) == ledgerapi.Account(
                make.state().account(MINER_KEY).balance, 0
            )
            assert (asked := asked + 1) == light.asker.asked
            third = await light.find(make.anchor(VOLUME, 3))
            assert third == ledgerapi.TxFound(make.anchor(VOLUME, 3), 3, 1, 3)
            assert (asked := asked + 1) == light.asker.asked
            assert await light.find(make.anchor(VOLUME, 3)) == third  # its block is where it was: nobody is asked
            assert asked == light.asker.asked

    light_test(tmp_path, work)


def test_many_anchors_come_page_by_page(tmp_path):
    async def work(make, light, full):
        for number in range(1, 40):
            await full.keeper.accept(encode_block(make.add([make.anchor(VOLUME, number)]).block))
        async with connected(light, full):
            await light.reach(make.tip)
            for first, count in ((1, 256), (1, 20), (30, 3), (39, 5), (40, 1), (0, 2)):
                found = await light.ask("anchors", ledgerapi.AnchorQuery(KEY, first, count))
                numbers = list(range(max(1, first), 40))[:count]
                assert [anchor.height for anchor in found.anchors] == numbers
            none = await light.ask("anchors", ledgerapi.AnchorQuery(NOBODY, 1, 10))
            assert none.anchors == ()

    light_test(tmp_path, work)


def test_the_registry_is_read_once_and_then_what_changed_of_it(tmp_path):
    async def work(make, light, full):
        seeds = [bytes([3, n]) * 16 for n in range(100)]
        await full.keeper.accept(encode_block(make.add([make.register(seed, 1) for seed in seeds]).block))
        more = [make.anchor(bytes([4, n]) * 16, 1) for n in range(200)] + [make.operate(seeds[0], MINER, 1)]
        await full.keeper.accept(encode_block(make.add(more).block))
        async with connected(light, full):
            await light.reach(make.tip)
            first = await light.ask("registry", Empty())
            assert [peer.id for peer in first.peers] == [peer for peer, _ in full.keeper.registry()]
            assert [p.operator for p in first.peers if p.operator] == [MINER_KEY]
            kept = set(light.answers._registry_nodes)
            asked = light.asker.asked
            assert await light.ask("registry", Empty()) is first
            assert light.asker.asked == asked
            await full.keeper.accept(encode_block(make.add([make.anchor(VOLUME, 1)]).block))
            await light.reach(make.tip)
            assert await light.ask("registry", Empty()) == first
            assert kept & set(light.answers._registry_nodes)
            await full.keeper.accept(encode_block(make.add([make.register(seeds[0], 2, "wss://127.0.0.1:99")]).block))
            await light.reach(make.tip)
            again = await light.ask("registry", Empty())
            assert again.peers[0].url == "wss://127.0.0.1:99"
            assert again.peers[1:] == first.peers[1:]

    light_test(tmp_path, work)


def test_an_empty_ledger_has_no_registry_and_no_anchors(tmp_path):
    async def work(make, light, full):
        async with connected(light, full):
            await until_so(light.asker.full)
            assert await light.ask("registry", Empty()) == Registry(())
            assert await light.volume() == ledgerapi.VolumeAnchor(b"", -1)

    light_test(tmp_path, work)


def test_blocks_are_fetched_and_compared_with_their_headers(tmp_path):
    async def work(make, light, full):
        await fill(full, make, 5)
        async with connected(light, full):
            await light.reach(make.tip)
            found = await light.ask("blocks", ledgerapi.BlockQuery(2, 100))
            assert found.blocks == tuple(data for _, data in make.chain())[1:]
            assert (await light.ask("blocks", ledgerapi.BlockQuery(6, 1))).blocks == ()
        async with liar_of(light, make) as liar:
            await until_so(light.asker.full)
            body = decode_block(make.chain()[0][1])
            forged = msgspec.structs.replace(body, transactions=(*body.transactions, make.anchor(VOLUME, 1)))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: answer(liar, gossip.GetBlocks, gossip.Blocks((encode_block(forged),))))
                with pytest.raises(LedgerUnavailable, match="false proof"):
                    await light.ask("blocks", ledgerapi.BlockQuery(1, 1))

    light_test(tmp_path, work)


def test_a_pruned_daemon_proves_the_latest_anchor_and_is_not_blamed_for_what_it_dropped(tmp_path):
    busy = bytes([24]) * 32

    async def work(make, light, full):
        await full.keeper.accept(encode_block(make.add([make.anchor(VOLUME, 1), make.anchor(busy, 1)]).block))
        await full.keeper.accept(encode_block(make.add([make.anchor(busy, 2)]).block))
        await fill(full, make, 60)
        first = full.keeper.store.first_body()
        assert first > 2
        async with connected(light, full):
            await light.reach(make.tip)
            assert await light.volume() == ledgerapi.VolumeAnchor(make.anchor(VOLUME, 1), 1)
            assert (await light.ask("anchors", ledgerapi.AnchorQuery(KEY, 1, 5))).anchors == (await light.volume(),)
            found = await light.ask("blocks", ledgerapi.BlockQuery(first, 2))
            assert found.blocks == tuple(data for _, data in make.chain())[first - 1 : first + 1]
            for _ in range(20):
                with pytest.raises(LedgerUnavailable, match="does not have anchor 1 of the volume any more"):
                    await light.ask("anchors", ledgerapi.AnchorQuery(sign.public_key(busy), 1, 5))
                with pytest.raises(LedgerUnavailable, match="does not have the blocks any more"):
                    await light.ask("blocks", ledgerapi.BlockQuery(first - 1, 2))
            assert len(light.asker.full()) == 1
            assert light.asker.lies == 0

    light_test(tmp_path, work, options={"body_limit": 0}, finality_depth=5)


# ---- its own transactions -----------------------------------------------------------------------------------------
def test_an_anchor_goes_to_several_daemons_and_is_followed_to_its_block(tmp_path):
    async def work(make, light, one, two):
        await fill(one, make, 1)
        await two.keeper.accept(make.blocks[make.tip.id])
        anchor = make.anchor(VOLUME, 1)
        async with connected(light, one), connected(light, two):
            await light.reach(make.tip)
            assert (await light.submit(anchor)).height is None
            assert await light.find(anchor) == ledgerapi.TxFound(anchor, None, 0, 0)
            await until(one, lambda: len(one.keeper.pool) == 1)
            await until(two, lambda: len(two.keeper.pool) == 1)
            assert one.keeper.pool.get(tx_id(decode_tx(anchor))) == anchor
            await one.keeper.accept(encode_block(make.add([anchor]).block))
            await light.reach(make.tip)
            assert await light.find(anchor) == ledgerapi.TxFound(anchor, 2, 1, 1)
            assert len(light.keeper.pool) == 0
            assert (await light.submit(anchor)).height == 2
            assert len(light.keeper.pool) == 0
            await fill(one, make, 2)
            await light.reach(make.tip)
            assert (await light.find(anchor)).confirmations == 3

    light_test(tmp_path, work, 2)


def test_what_waits_is_offered_to_those_that_come_later(tmp_path):
    async def work(make, light, one, two):
        async with connected(light, one):
            await until_so(light.asker.full)
            await light.submit(make.anchor(VOLUME, 1))
            await until(one, lambda: len(one.keeper.pool) == 1)
        async with connected(light, two):
            await until(two, lambda: len(two.keeper.pool) == 1)

    light_test(tmp_path, work, 2)


def test_a_transaction_is_judged_by_the_proven_state(tmp_path):
    async def work(make, light, full):
        miner = [make.anchor(VOLUME, 1, lease_expiry=NOW + 50), make.register(VOLUME, 7)]
        await full.keeper.accept(encode_block(make.add(miner).block))
        async with connected(light, full):
            await light.reach(make.tip)
            wrong = {
                "WrongPredecessor: .*number 2, not 3": make.anchor(VOLUME, 3),
                "LeaseHeld": make.anchor(VOLUME, 2, device=bytes([8]) * 32),
                "OldSequence": make.register(VOLUME, 7, "wss://127.0.0.1:1"),
                "NotEnoughMoney": make.transfer(VOLUME, KEY, 1, 0),
                "WrongNonce": make.transfer(MINER, KEY, 1, 5),
                "NotRegistered": make.operate(bytes([66]) * 32, None, 1),
                "BadSignature": make.anchor(VOLUME, 2)[:-1] + b"\0",
                "MalformedTransaction": b"\xc0",
            }
            for reason, data in wrong.items():
                with pytest.raises(InvalidTransaction, match=f"^{reason}"):
                    await light.submit(data)
            assert len(light.keeper.pool) == 0
            assert len(full.keeper.pool) == 0
            for data in (make.transfer(MINER, KEY, 1, 0), make.transfer(MINER, KEY, 1, 1), make.anchor(VOLUME, 2)):
                await light.submit(data)
            account = await light.ask("account", ledgerapi.KeyQuery(MINER_KEY))
            assert account.nonce == 2
            await until(full, lambda: len(full.keeper.pool) == 3)

    light_test(tmp_path, work)


def test_balances_are_proved_and_what_no_header_says_is_refused(tmp_path):
    async def work(make, light, full):
        await full.keeper.accept(encode_block(make.add().block))
        keys = (MINER_KEY, KEY, *(sign.public_key(bytes([n]) * 32) for n in range(100, 118)))
        async with connected(light, full):
            await light.reach(make.tip)
            asked = light.asker.asked
            found = await light.ask("accounts", ledgerapi.AccountsQuery(keys))
            assert light.asker.asked == asked + 2, "sixteen keys at once"
            reward = make.document.subsidy
            assert found.accounts == (ledgerapi.AccountState(reward, 0, 0), *[ledgerapi.AccountState(0, 0, 0)] * 19)
            assert (found.height, found.is_light, found.waiting) == (1, True, ())
            payment = make.transfer(MINER, KEY, 5, 0)
            await light.submit(payment)
            for key, nonces in ((MINER_KEY, (0, 1)), (KEY, (0, 0))):
                found = await light.ask("accounts", ledgerapi.AccountsQuery((key,)))
                assert found.waiting == (payment,)
                assert (found.accounts[0].nonce, found.accounts[0].next_nonce) == nonces
            await full.keeper.accept(encode_block(make.add([payment]).block))
            await light.reach(make.tip)
            for key in (MINER_KEY, KEY):  # it is in a block, though nobody asked for it yet
                assert (await light.ask("accounts", ledgerapi.AccountsQuery((key,)))).waiting == ()
            assert (await light.ask("fee", ledgerapi.FeeQuery(192))).fee == make.document.minimum_fee
            with pytest.raises(UsageError, match="run a full one"):
                await light.ask("account_history", ledgerapi.HistoryQuery(KEY, 5, 5))

    light_test(tmp_path, work)


def test_100_a_place_that_a_reorganisation_takes_is_not_told_again(tmp_path):
    async def work(make, light, one, two):
        await fill(one, make, 2)
        other = Maker(make.document)
        for data in (data for _, data in make.chain()):
            checked = other.check(decode_block(data))
            other.points[checked.point.id], other.tip = checked.point, checked.point
            other.nodes.update(checked.nodes)
            other.blocks[checked.point.id] = data
            await two.keeper.accept(data)
        anchor = make.anchor(VOLUME, 1)
        await one.keeper.accept(encode_block(make.add([anchor]).block))
        async with connected(light, one):
            await light.reach(make.tip)
            assert (await light.find(anchor)).height == 3
            assert (await light.volume()).height == 3
        await fill(two, other, 3, recipient=bytes(32))
        async with connected(light, two):
            await light.reach(other.tip)
            assert (await light.find(anchor)).height is None
            assert await light.volume() == ledgerapi.VolumeAnchor(b"", -1)
            assert (await light.submit(anchor)).height is None  # and goes out again
            await until(two, lambda: len(two.keeper.pool) == 1)
        assert two.keeper.tip == other.tip

    light_test(tmp_path, work, 2)


def test_neither_offers_the_other_what_it_does_not_want(tmp_path):
    async def work(make, light, full):
        full.keeper.submit(make.anchor(VOLUME, 1))
        async with liar_of(light, make) as liar:
            await liar.send(gossip.Offer((bytes(32),)))
            await liar.send(gossip.GetCompact(make.tip.id))
            assert await liar.expect(gossip.Compact) == gossip.Compact(b"", b"", b"")
        async with connected(light, full):
            await until_so(light.asker.full)
            full.keeper.submit(make.anchor(bytes([30]) * 32, 1))
            session = next(iter(full.hub.sync.sessions()))
            assert not session.is_full
            assert not session._offers
        assert len(light.keeper.pool) == 0

    light_test(tmp_path, work)


def test_what_a_full_daemon_does_not_have_is_left_out(tmp_path):
    async def work(make, _light, full):
        await full.keeper.accept(encode_block(make.add([make.anchor(VOLUME, 1)]).block))
        store, unknown = full.keeper.store, bytes([9]) * 32
        assert proving.answer(store, gossip.GetState(unknown, (b"A",))) == gossip.StateProof(())
        assert proving.answer(store, gossip.GetNodes((unknown, make.tip.state_root))).nodes == (
            make.nodes[make.tip.state_root],
        )
        assert proving.answer(store, gossip.GetAnchors(unknown, KEY, 5, 3)) == gossip.Anchors((), b"", ())
        assert proving.answer(store, gossip.GetTxProofs((unknown,))) == gossip.TxProofs(())
        genesis = make.points[make.tip.parent]
        assert proving.answer(store, gossip.GetAnchors(genesis.id, KEY, 1, 1)).nodes == ()

    light_test(tmp_path, work)


class Owing:
    """A bucket that is in debt for ever."""

    def __init__(self):
        self.taken = []

    def take(self, tokens, _now):
        self.taken.append(tokens)
        return float(1 << 30)


def test_questions_for_proofs_have_a_price(tmp_path):
    """A dear one costs what its answer takes, and over the rate the session reads no further until it is paid for."""
    assert proving.cost_of(gossip.GetState(bytes(32), (b"A", b"B"))) == 2
    assert proving.cost_of(gossip.GetTxProofs((bytes(32),) * 16)) == 64
    assert proving.cost_of(gossip.GetAnchors(bytes(32), bytes(32), 1, 16)) == 65
    assert proving.cost_of(gossip.GetNodes((bytes(32),) * 128)) == 33

    async def work(make, _light, full):
        async with rogue_of(full, make) as asker:
            await asker.hello()
            await asker.expect(gossip.GetPeers)
            session = next(iter(full.hub.sync.sessions()))
            session._proof_rate = Owing()
            await asker.send(gossip.GetState(bytes(32), (b"A", b"N")))
            await asker.send(gossip.GetNetwork())
            await until_so(lambda: session._proof_rate.taken)
            await trio.testing.wait_all_tasks_blocked()
            assert session._proof_rate.taken == [2]
            assert not asker._channel._incoming.statistics().current_buffer_used
            session.fail(PeerUnavailable("enough"))

    light_test(tmp_path, work)
