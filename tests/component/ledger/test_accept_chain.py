"""Many blocks at once: what comes before the first wrong one is stored, in one transaction, and nothing after it."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import trio

from fsdecloud.crypto import sign
from fsdecloud.ledger import reasons
from fsdecloud.ledger.blocks import decode_block, encode_block
from fsdecloud.ledger.transactions import decode_tx, tx_id
from fsdecloud.ledgerd.keeper import Keeper
from fsdecloud.store.chain import open_chain

sys.path.insert(0, str(Path(__file__).parent))
from replay import contents, replayed

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "ledger"))
from chainmaker import GENESIS_TIME, Maker, easy_network, with_header

VOLUME = bytes([2]) * 32
ALICE_KEY = sign.public_key(bytes([3]) * 32)


def chain_test(tmp_path, work, **changes):
    make = Maker(easy_network(**changes))

    async def run():
        with trio.fail_after(40), open_chain(tmp_path / "c", make.document, map_size=1 << 28) as store:
            writes = []
            whole = store.add_many
            store.add_many = lambda blocks, *rest: (writes.append(len(blocks)), whole(blocks, *rest))
            await work(make, Keeper(store, lambda: GENESIS_TIME + 100_000), writes)

    trio.run(run)


def blocks_of(make):
    return [data for _, data in make.chain()]


def test_all_in_one_transaction_and_like_a_replay(tmp_path):
    async def work(make, keeper, writes):
        for number in range(1, 31):
            make.add([make.anchor(VOLUME, number)])
        moves = []
        keeper.on_tip.append(lambda switch: moves.append(len(switch.enter)))
        result = await keeper.accept_chain(blocks_of(make))
        assert (result.count, result.error) == (30, None)
        assert keeper.tip == keeper.store.tip() == make.tip
        assert (writes, moves) == ([30], [30])
        assert contents(keeper.store) == replayed(keeper.store, tmp_path / "replayed")
        again = await keeper.accept_chain(blocks_of(make))
        assert (again.count, again.error, writes) == (30, None, [30])

    chain_test(tmp_path, work)


def test_what_comes_before_a_wrong_block_is_stored(tmp_path):
    async def work(make, keeper, writes):
        for number in range(1, 7):
            make.add([make.anchor(VOLUME, number)])
        good = blocks_of(make)
        block = decode_block(good[4])
        mutated = encode_block(msgspec.structs.replace(block, transactions=block.transactions[:1]))
        result = await keeper.accept_chain([*good[:4], mutated, good[5]])
        assert result.count == 4
        assert isinstance(result.error, reasons.BodyMismatch)
        assert keeper.tip.height == 4
        bad = encode_block(with_header(block, state_root=bytes(32)))
        result = await keeper.accept_chain([good[0], bad])
        assert result.count == 1
        assert isinstance(result.error, reasons.WrongStateRoot)
        result = await keeper.accept_chain([good[5]])
        assert result.count == 0
        assert isinstance(result.error, reasons.UnknownParent)
        assert (await keeper.accept_chain(good)).count == 6
        assert keeper.tip == make.tip
        assert writes == [4, 2]

    chain_test(tmp_path, work)


def test_a_reorganisation_in_one_batch_offers_again_what_it_throws_out(tmp_path):
    async def work(make, keeper, _writes):
        make.add()
        fork = make.tip
        anchors = [make.anchor(VOLUME, number) for number in (1, 2, 3)]
        for anchor in anchors:
            make.add([anchor])
        await keeper.accept_chain(blocks_of(make))
        make.tip = fork
        for _ in range(4):
            make.add(recipient=ALICE_KEY)
        told = []
        keeper.on_tx.append(told.append)
        result = await keeper.accept_chain(blocks_of(make)[1:])
        assert (result.count, result.error) == (4, None)
        assert keeper.tip == make.tip
        names = [tx_id(decode_tx(anchor)) for anchor in anchors]
        assert told == names
        assert list(keeper.pool.ids()) == names
        assert contents(keeper.store) == replayed(keeper.store, tmp_path / "replayed")

    chain_test(tmp_path, work)


def test_a_branch_that_does_not_lead_is_stored_and_not_followed(tmp_path):
    async def work(make, keeper, _writes):
        for _ in range(5):
            make.add()
        ours = make.tip
        await keeper.accept_chain(blocks_of(make))
        make.tip = make.points[keeper.store.best_at(1)]
        for _ in range(2):
            make.add(recipient=ALICE_KEY)
        assert (await keeper.accept_chain(blocks_of(make)[1:])).count == 2
        assert keeper.tip == ours
        assert keeper.store.point(make.tip.id) == make.tip

    chain_test(tmp_path, work)


def test_fault_101_a_batch_that_reorganises_too_deep_is_stored_and_alarms(tmp_path):
    async def work(make, keeper, _writes):
        genesis = make.tip
        for _ in range(5):
            make.add()
        ours = make.tip
        await keeper.accept_chain(blocks_of(make))
        make.tip = genesis
        for _ in range(7):
            make.add(recipient=ALICE_KEY)
        assert (await keeper.accept_chain(blocks_of(make))).count == 7
        assert keeper.tip == ours
        assert "replace more than 3 blocks" in keeper.alarm

    chain_test(tmp_path, work, finality_depth=3)
