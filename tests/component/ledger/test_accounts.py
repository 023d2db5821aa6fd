"""Which blocks changed an account: the index follows the best chain, adds up to the balance, says from where on it knows."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import trio

from fsdecloud.crypto import sign
from fsdecloud.errors import StoreCorrupt, UsageError
from fsdecloud.ledger.accounting import Why, lines_of_block
from fsdecloud.ledger.blocks import encode_block
from fsdecloud.ledger.fees import TRANSFER_SIZE
from fsdecloud.ledger.transactions import decode_tx, sign_unbond
from fsdecloud.ledgerd import accounts as module
from fsdecloud.ledgerd.accounts import AccountAnswers
from fsdecloud.ledgerd.keeper import Keeper
from fsdecloud.store.chain import ACCOUNTED, ChainStore, open_chain
from fsdecloud.wire.ledgerapi import AccountsQuery, FeeQuery, HistoryPage, HistoryQuery

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "ledger"))
from chainmaker import BOND, GENESIS_TIME, MINER, MINER_KEY, VOTERS, Maker, Voting, easy_network

ALICE = bytes([3]) * 32
ALICE_KEY = sign.public_key(ALICE)
NOW = GENESIS_TIME + 100_000
TOP = (1 << 53) - 1


class World:
    def __init__(self, make: Maker, keeper: Keeper) -> None:
        self.make, self.keeper = make, keeper
        self.answers = AccountAnswers(keeper, lambda: None)

    async def add(self, *transactions: bytes, **options: object) -> None:
        await self.keeper.accept(encode_block(self.make.add(list(transactions), **options).block))

    async def ask(self, method: str, query: object) -> object:
        return await self.answers.handlers()[method][1](query)

    async def history(self, key: bytes, below: int = TOP, count: int = 256) -> HistoryPage:
        return await self.ask("account_history", HistoryQuery(key, below, count))

    async def lines(self, key: bytes) -> list[tuple[Why, int, int, int]]:
        """(why, amount, fee, height) of all there is, and check that it adds up to the balance."""
        found = []
        below = TOP
        while below:
            page = await self.history(key, below, 2)
            for block in page.blocks:
                txs = [decode_tx(tx) for tx in block.txs]
                found += lines_of_block(key, block.change, txs, block.height, block.time)
            below = page.below
        assert sum(line.change for line in found) == self.keeper.state().account(key).balance
        return [(line.why, line.amount, line.fee, line.height) for line in found]


def world_test(tmp_path: Path, work, make: Maker | None = None, **options: object) -> None:
    make = make or Maker(easy_network())

    async def run() -> None:
        with trio.fail_after(40), open_chain(tmp_path / "c", make.document, map_size=1 << 28) as store:
            await work(World(make, Keeper(store, lambda: NOW, **options)))

    trio.run(run)


def test_what_came_and_went(tmp_path):
    async def work(world):
        make = world.make
        reward = make.document.subsidy
        await world.add()
        await world.add(make.transfer(MINER, ALICE_KEY, 500, 0), recipient=ALICE_KEY)
        await world.add(
            make.transfer(ALICE, MINER_KEY, 100, 0, fee=3),
            make.transfer(ALICE, ALICE_KEY, 50, 1, fee=2),
            make.register(ALICE, 1, fee=4),
        )
        assert await world.lines(ALICE_KEY) == [
            (Why.SENT, -100, 3, 3), (Why.SELF, 0, 2, 3), (Why.FEE, 0, 4, 3),
            (Why.MINED, reward + 1, 0, 2), (Why.RECEIVED, 500, 0, 2),
        ]  # fmt: skip
        assert [line[0] for line in await world.lines(MINER_KEY)] == [Why.MINED, Why.RECEIVED, Why.SENT, Why.MINED]
        assert await world.lines(bytes(32)) == []
        page = await world.history(ALICE_KEY, count=1)
        assert (page.below, page.first, [block.height for block in page.blocks]) == (3, 1, [3])

    world_test(tmp_path, work)


def test_what_no_transaction_explains_is_a_line_of_its_own(tmp_path):
    """A stake is paid back by a rule, in a block that holds nothing of its owner's."""
    make = Voting()

    async def work(world):
        leaving = sign.public_key(VOTERS[0])
        make.add([sign_unbond(make.network, VOTERS[0], 1, 1)])
        for _ in range(make.document.unbond_delay):
            make.add()
        for _, data in make.chain():
            await world.keeper.accept(data)
        lines = await world.lines(leaving)
        assert [(why, amount, fee) for why, amount, fee, _ in lines] == [
            (Why.OTHER, BOND, 0), (Why.FEE, 0, 1), (Why.BONDED, -BOND, 1), (Why.MINED, make.document.subsidy, 0)
        ]  # fmt: skip

    world_test(tmp_path, work, make)


def test_a_reorganisation_takes_lines_out_and_brings_them_back(tmp_path):
    async def work(world):
        make = world.make
        await world.add()
        fork = make.tip
        payment = make.transfer(MINER, ALICE_KEY, 500, 0)
        await world.add(payment)
        one = make.tip
        before = await world.lines(ALICE_KEY), await world.lines(MINER_KEY)
        make.tip = fork
        await world.add(recipient=ALICE_KEY)
        await world.add(recipient=ALICE_KEY)
        assert world.keeper.tip.id == make.tip.id
        reward = make.document.subsidy
        assert await world.lines(ALICE_KEY) == [(Why.MINED, reward, 0, 3), (Why.MINED, reward, 0, 2)]
        info = await world.ask("accounts", AccountsQuery((ALICE_KEY, MINER_KEY)))
        assert (info.height, info.waiting) == (3, (payment,))
        assert [(a.balance, a.nonce, a.next_nonce) for a in info.accounts] == [(2 * reward, 0, 0), (reward, 0, 1)]
        # The left branch has no block that has to be executed again.
        make.tip = one
        for _ in range(2):
            await world.add(recipient=bytes([8]) * 32)
        assert world.keeper.tip.id == make.tip.id
        assert (await world.lines(ALICE_KEY), await world.lines(MINER_KEY)) == before

    world_test(tmp_path, work)


def test_pruned_blocks_take_their_lines_with_them(tmp_path, monkeypatch):
    from fsdecloud.ledgerd import keeper as keeping

    monkeypatch.setattr(keeping, "PRUNE_MARGIN", 3)
    make = Maker(easy_network(finality_depth=5))

    async def work(world):
        for _ in range(40):
            await world.add()
        store = world.keeper.store
        first = store.first_body()
        assert first > 20
        page = await world.history(MINER_KEY)
        assert (page.first, page.below) == (first, 0)
        assert [block.height for block in page.blocks] == list(range(40, first - 1, -1))

    world_test(tmp_path, work, make, body_limit=1)


def test_a_store_of_an_older_release_says_from_where_on_it_knows(tmp_path):
    make = Maker(easy_network())

    async def fill(world):
        for _ in range(3):
            await world.add()
        store: ChainStore = world.keeper.store
        with store._env.write() as txn:  # as that release left it
            txn.delete(ACCOUNTED, db=store._meta)
            for name in ("_touched", "_accounts"):
                txn.drop(getattr(store._accounts, name), delete=False)

    async def go_on(world):
        assert world.keeper.store.accounts_first() == 4
        await world.add(make.transfer(MINER, ALICE_KEY, 500, 0))
        page = await world.history(ALICE_KEY)
        assert (page.first, [block.change for block in page.blocks]) == (4, [500])

    world_test(tmp_path, fill, make)
    world_test(tmp_path, go_on, make)
    world_test(tmp_path, go_on_again(make), make)


def go_on_again(make):
    async def work(world):
        assert world.keeper.store.accounts_first() == 4
        # A branch that begins below what is known is followed all the same.
        make.tip = make.points[make.chain()[0][0]]
        for _ in range(5):
            await world.add(recipient=ALICE_KEY)
        assert world.keeper.tip.id == make.tip.id
        assert [block.height for block in (await world.history(ALICE_KEY)).blocks] == [6, 5, 4, 3, 2]

    return work


def test_a_damaged_index_says_what_to_do(tmp_path):
    async def work(world):
        await world.add()
        store = world.keeper.store
        with store._env.write() as txn:
            txn.put(MINER_KEY + (1).to_bytes(8), b"\xc1", db=store._accounts._accounts)
        with pytest.raises(StoreCorrupt, match="ledger rebuild"):
            await world.history(MINER_KEY)

    world_test(tmp_path, work)


def test_questions_are_bounded(tmp_path):
    async def work(world):
        for method, query in (
            ("accounts", AccountsQuery(())),
            ("accounts", AccountsQuery((bytes(32),) * 65)),
            ("accounts", AccountsQuery((b"short",))),
            ("account_history", HistoryQuery(b"short", 1, 1)),
            ("account_history", HistoryQuery(bytes(32), 1, 257)),
            ("account_history", HistoryQuery(bytes(32), -1, 1)),
            ("fee", FeeQuery(0)),
            ("fee", FeeQuery(1 << 40)),
        ):
            with pytest.raises(UsageError):
                await world.ask(method, query)

    world_test(tmp_path, work)


def test_a_page_of_large_blocks_is_cut(tmp_path, monkeypatch):
    async def work(world):
        for _ in range(4):
            await world.add()
        monkeypatch.setattr(module, "BLOCKS_READ", 1)
        pages = []
        below = TOP
        while below:
            page = await world.history(MINER_KEY, below)
            pages.append([block.height for block in page.blocks])
            below = page.below
        assert pages == [[4], [3], [2], [1]]

    world_test(tmp_path, work)


def test_the_fee_is_the_least_one_until_more_waits_than_blocks_have_room_for(tmp_path):
    make = Maker(easy_network(block_max=8192, minimum_fee=2))

    async def work(world):
        carol = bytes([5]) * 32
        for recipient in (MINER_KEY, ALICE_KEY, sign.public_key(carol)):
            await world.add(recipient=recipient)
        estimate = await world.ask("fee", FeeQuery(TRANSFER_SIZE))
        assert (estimate.fee, estimate.minimum, estimate.waiting) == (2, 2, 0)
        for seed in (MINER, ALICE):
            for nonce in range(64):
                world.keeper.submit(make.transfer(seed, bytes(32), 1, nonce, fee=50))
        busy = await world.ask("fee", FeeQuery(TRANSFER_SIZE))
        assert busy.waiting == 128
        assert 50 < busy.fee < 100
        dear = make.transfer(carol, bytes(32), 1, 0, fee=busy.fee)
        world.keeper.submit(dear)
        block = await world.keeper.build(MINER_KEY)
        assert dear in block.transactions
        await world.add(*block.transactions[1:])
        await world.ask("fee", FeeQuery(TRANSFER_SIZE))
        marks = list(world.answers._marks.values())
        assert (len(marks), marks[:3]) == (4, [0, 0, 0])
        assert 50 < marks[3] * TRANSFER_SIZE / 1_000_000 < 100

    world_test(tmp_path, work, make)
