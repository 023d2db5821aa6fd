"""A light daemon among full ones that lie, are stale, silent, pruned or a block behind: it believes what is proved."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
import trio

from fsdecloud.errors import LedgerUnavailable, PeerUnavailable
from fsdecloud.ledger.blocks import decode_block, encode_block
from fsdecloud.ledger.proofs import prove_state
from fsdecloud.ledger.state import volume_key
from fsdecloud.ledgerd import asking, conduct, proving
from fsdecloud.wire import gossip, ledgerapi
from fsdecloud.wire.agentapi import Empty

sys.path.insert(0, str(Path(__file__).parent))
from lightnodes import KEY, VOLUME, answer, ask_last_first, liar_of, light_daemon, light_test
from nodes import connected, fill, until_so

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "ledger"))
from chainmaker import Maker


def stale(make, back=2):
    """An answer that was right some blocks ago."""
    point = make.tip
    for _ in range(back):
        point = make.points[point.parent]

    def give(question):
        nodes = prove_state(make.nodes.get, point.state_root, (volume_key(question.volume),))
        return gossip.Anchors(nodes, make.anchor(VOLUME, point.height), ())

    return give


def forged(make):
    """An answer with one byte of a node changed."""

    def give(question):
        nodes = prove_state(make.nodes.get, make.tip.state_root, (volume_key(question.volume),))
        return gossip.Anchors((nodes[0][:-1] + bytes([nodes[0][-1] ^ 1]), *nodes[1:]), make.anchor(VOLUME, 5), ())

    return give


def another(make):
    """A true proof, with another transaction than it names."""

    def give(question):
        nodes = prove_state(make.nodes.get, make.tip.state_root, (volume_key(question.volume),))
        return gossip.Anchors(nodes, make.anchor(VOLUME, 4), ())

    return give


def denying(make):
    """A true proof of another volume that has no anchor, for one that has."""

    def give(_question):
        return gossip.Anchors(prove_state(make.nodes.get, make.tip.state_root, (b"\xff" * 33,)) * 2, b"", ())

    return give


@pytest.mark.parametrize("lie", [stale, forged, another, denying])
def test_a_false_proof_is_refused_its_sender_shut_out_and_another_asked(tmp_path, lie):
    async def work(make, light, full):
        for number in range(1, 6):
            await full.keeper.accept(encode_block(make.add([make.anchor(VOLUME, number)]).block))
        async with connected(light, full):
            await light.reach(make.tip)
            async with liar_of(light, make) as liar:
                await until_so(lambda: len(light.asker.full()) == 2)
                ask_last_first(light)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(answer, liar, gossip.GetAnchors, lie(make))
                    assert await light.volume() == ledgerapi.VolumeAnchor(make.anchor(VOLUME, 5), 5)
                await liar.is_dropped()
                assert light.asker.lies == 1
                assert len(light.asker.full()) == 1
            assert isinstance(light.ended, conduct.Misbehaviour)

    light_test(tmp_path, work)


@pytest.mark.parametrize("kind", [gossip.GetState, gossip.GetTxProofs, gossip.GetNodes])
def test_other_false_proofs_are_refused_too(tmp_path, kind):
    """An account with a byte changed; a transaction at a place where it is not; a node that was not asked for."""
    second = bytes([23]) * 32

    async def work(make, light, full):
        await full.keeper.accept(encode_block(make.add([make.anchor(VOLUME, 1), make.anchor(second, 1)]).block))
        block = decode_block(make.chain()[0][1])
        moved = msgspec.structs.replace(proving.prove_tx(block, 2), index=1)
        questions = {
            gossip.GetState: (lambda: light.ask("account", ledgerapi.KeyQuery(KEY)), gossip.StateProof((b"\x00",))),
            gossip.GetTxProofs: (lambda: light.find(make.anchor(VOLUME, 1)), gossip.TxProofs((moved,))),
            gossip.GetNodes: (lambda: light.ask("registry", Empty()), gossip.Nodes((b"\x00",))),
        }
        ask, lie = questions[kind]
        async with connected(light, full):
            await light.reach(make.tip)
            true = await ask()
            light.answers._places.clear()
            light.answers._registry_root, light.answers._registry_nodes = b"", {}
            async with liar_of(light, make) as liar:
                await until_so(lambda: len(light.asker.full()) == 2)
                ask_last_first(light)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(answer, liar, kind, lie)
                    assert await ask() == true
                await liar.is_dropped()
            assert isinstance(light.ended, conduct.Misbehaviour)
            assert light.asker.lies == 1

    light_test(tmp_path, work)


def test_one_that_has_no_proofs_or_is_silent_is_asked_last(tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "PATIENCE", 0.05)

    async def work(make, light, full):
        await full.keeper.accept(encode_block(make.add([make.anchor(VOLUME, 1)]).block))
        async with connected(light, full):
            await light.reach(make.tip)
            right = await light.volume()
            for message in (gossip.Anchors((), b"", ()), None):
                async with liar_of(light, make) as liar:
                    await until_so(lambda: len(light.asker.full()) == 2)
                    ask_last_first(light)
                    asked = light.asker.asked
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(answer, liar, gossip.GetAnchors, *filter(None, (message,)))
                        assert await light.volume() == right
                    assert light.asker.asked == asked + 2
                    assert await light.volume() == right  # the honest one first
                    assert light.asker.asked == asked + 3
                await until_so(lambda: len(light.asker.full()) == 1)
            assert light.asker.lies == 0

    light_test(tmp_path, work)


def test_one_that_never_has_what_it_should_is_dropped(tmp_path):
    async def work(make, light, _full):
        make.add([make.anchor(VOLUME, 1)])
        async with liar_of(light, make) as liar:
            await liar.give_headers([decode_block(data) for _, data in make.chain()])
            await light.reach(make.tip)

            async def refuse():
                with suppress(PeerUnavailable):
                    while True:
                        await answer(liar, gossip.GetAnchors, gossip.Anchors((), b"", ()))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(refuse)
                while light.asker.full():
                    with pytest.raises(LedgerUnavailable, match="does not have the state after block 1"):
                        await light.volume()
                nursery.cancel_scope.cancel()
            await liar.expect_dropped("misbehaves too often")

    light_test(tmp_path, work)


def test_whoever_is_a_block_ahead_or_behind_is_no_liar(tmp_path):
    """Answers made on a longer chain show what is asked of ours; who claims less than our tip may not have it yet."""

    async def work(make, light, full):
        for number in (1, 2):
            await full.keeper.accept(encode_block(make.add([make.anchor(VOLUME, number)]).block))
        blocks, tip = [decode_block(data) for _, data in make.chain()], make.tip
        async with liar_of(light, make) as ahead:
            await ahead.give_headers(blocks)
            await light.reach(tip)
            await full.keeper.accept(encode_block(make.add([make.anchor(VOLUME, 3)]).block))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer, ahead, gossip.GetAnchors, lambda q: proving.answer(full.keeper.store, q))
                found = await light.ask("anchors", ledgerapi.AnchorQuery(KEY, 1, 5))
                assert [anchor.height for anchor in found.anchors] == [1, 2]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer, ahead, gossip.GetTxProofs, lambda q: proving.answer(full.keeper.store, q))
                assert (await light.find(make.anchor(VOLUME, 3))).height is None  # not in our chain yet
        async with liar_of(light, make, 0) as behind:
            for _ in range(20):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(answer, behind, gossip.GetAnchors, gossip.Anchors((), b"", ()))
                    with pytest.raises(LedgerUnavailable, match="does not have the state"):
                        await light.volume()
            assert len(light.asker.full()) == 1
        assert light.asker.lies == 0

    light_test(tmp_path, work)


def test_silence_is_not_taken_for_absence(tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "PATIENCE", 0.05)

    async def work(make, light, _full):
        anchor = make.anchor(VOLUME, 1)
        async with liar_of(light, make):
            with pytest.raises(LedgerUnavailable, match="did not answer GetTxProofs"):
                await light.find(anchor)

    light_test(tmp_path, work)


def test_it_claims_no_chain_of_its_own(tmp_path):
    async def work(make, light, full):
        await fill(full, make, 3)
        async with connected(light, full):
            await light.reach(make.tip)
            assert (light.hub.hello().work, light.hub.hello().height) == (bytes(32), 0)
            session = next(iter(full.hub.sync.sessions()))
            await fill(full, make, 1)
            await light.reach(make.tip)
            assert (session.claim[8:40], session.claims) == (bytes(32), 1)

    light_test(tmp_path, work)


def test_without_full_daemons_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "FIRST_WAIT", 0.0)

    async def work(make, light, _full):
        other = Maker(make.document)
        with pytest.raises(LedgerUnavailable, match="no full daemon is connected"):
            await light.volume()
        async with light_daemon(tmp_path / "other", other, number=51) as second, connected(light, second):
            await until_so(lambda: light.hub.peers())
            assert light.asker.full() == second.asker.full() == []
            with pytest.raises(LedgerUnavailable, match="no full daemon is connected"):
                await light.volume()

    light_test(tmp_path, work)


def test_a_question_waits_for_the_first_connection(tmp_path):
    async def work(make, light, full):
        await full.keeper.accept(encode_block(make.add([make.anchor(VOLUME, 1)]).block))
        async with connected(light, full):
            await light.reach(make.tip)
        await until_so(lambda: not light.asker.full())
        found = []

        async def ask():
            found.append(await light.volume())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            async with connected(light, full):
                await until_so(lambda: found)
        assert found[0].height == 1

    light_test(tmp_path, work)
