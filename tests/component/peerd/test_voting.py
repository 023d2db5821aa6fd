"""A voter beside a real keeper and its API; and beside a daemon that says whatever it likes, killed again and again."""

from __future__ import annotations

import itertools
import random
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from fsdecloud import config
from fsdecloud.config import HOME_VARIABLE, find_paths
from fsdecloud.errors import InvalidTransaction
from fsdecloud.ledger.blocks import decode_block, encode_block
from fsdecloud.ledger.mempool import Mempool
from fsdecloud.ledger.network import encode_network, network_id
from fsdecloud.ledger.staking import is_conflict
from fsdecloud.ledger.transactions import Vote, decode_tx, encode_tx, sign_unbond, tx_id
from fsdecloud.ledgerd.api import LocalApi
from fsdecloud.ledgerd.finality import answer_finality
from fsdecloud.ledgerd.hub import Hub
from fsdecloud.ledgerd.keeper import Keeper
from fsdecloud.ledgerd.services import Services
from fsdecloud.ledgerd.settings import Settings
from fsdecloud.net.unix import serve_unix
from fsdecloud.peerd import voting
from fsdecloud.peerd.votejournal import read_journal
from fsdecloud.peerd.voting import Voter
from fsdecloud.store.chain import open_chain
from fsdecloud.wire import ledgerapi
from fsdecloud.wire.agentapi import Empty

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "ledger"))
from chainmaker import BOND, GENESIS_TIME, KEYS, VOTERS, Voting, easy_network, voting_network

NOW = GENESIS_TIME + 1000
EPOCH = 4


class World:
    """A chain whose three voters are to vote, and the daemon that they ask."""

    def __init__(self, tmp_path, make, keeper):
        self.tmp_path, self.make, self.keeper = tmp_path, make, keeper
        self.socket = tmp_path / "run" / "ledger.sock"

    def voter(self, number):
        return Voter(
            socket=self.socket,
            journal=self.journal(number),
            seed=VOTERS[number],
            peer=KEYS[number],
            network=self.make.network,
        )

    def journal(self, number):
        return self.tmp_path / f"peer-{number}" / "votes"

    def read_journal(self, number):
        return read_journal(self.journal(number), self.make.network, KEYS[number])

    @asynccontextmanager
    async def voting(self, *numbers):
        """These run meanwhile."""
        voters = [self.voter(number) for number in numbers]
        async with trio.open_nursery() as nursery:
            for voter in voters:
                nursery.start_soon(voter.run)
            yield voters
            nursery.cancel_scope.cancel()

    async def add(self, *, with_pool=True):
        """Mine a block: with what waits, or without it, and then nothing waits any more."""
        chosen = self.keeper.pool.select(self.make.tip.time + 1) if with_pool else ()
        if not with_pool:
            self.keeper.pool = Mempool(self.make.document)
        await self.keeper.accept(encode_block(self.make.add([encode_tx(tx) for tx in chosen]).block))

    async def until_waiting(self, count):
        """Wait until so many transactions wait for a block."""
        while len(self.keeper.pool) < count:
            event = self.keeper.change_event()
            if len(self.keeper.pool) < count:
                await event.wait()

    async def to_checkpoint(self, **options):
        """Mine until the tip is a checkpoint, at least one block."""
        await self.add(**options)
        while self.make.tip.height % EPOCH:
            await self.add(**options)

    def waiting(self):
        return [decode_tx(self.keeper.pool.get(identity)) for identity in self.keeper.pool.ids()]

    def votes(self):
        """All in the chain."""
        blocks = [decode_block(data) for _, data in self.make.chain()]
        return [tx for block in blocks for tx in map(decode_tx, block.transactions) if isinstance(tx, Vote)]

    def finality(self, peer=b"", **options):
        return answer_finality(self.keeper, ledgerapi.FinalityQuery(peer, **options))


def voting_test(tmp_path, work):
    make = Voting(checkpoint_interval=EPOCH, finality_depth=8)

    async def run():
        with trio.fail_after(60), open_chain(tmp_path / "c", make.document, map_size=1 << 28) as store:
            keeper = Keeper(store, lambda: NOW)
            await keeper.accept_chain([data for _, data in make.chain()])
            hub = Hub(keeper, bytes(32), bytes(32))
            paths = find_paths({HOME_VARIABLE: str(tmp_path)})
            api = LocalApi(keeper, hub, Services(paths, Settings(mine=False), keeper, hub, bytes(32)))
            world = World(tmp_path, make, keeper)
            async with trio.open_nursery() as nursery:
                await nursery.start(
                    lambda task_status: serve_unix(world.socket, api.methods_for, task_status=task_status)
                )
                await work(world)
                nursery.cancel_scope.cancel()

    trio.run(run)


async def until_so(condition):
    while not condition():  # noqa: ASYNC110 - a file or an attribute has no event
        await trio.sleep(0.01)


async def begin(world, *numbers):
    """Give these voters a journal: they begin above what is newest now, and the next checkpoint is theirs."""
    async with world.voting(*numbers):
        await until_so(lambda: all(world.journal(number).exists() for number in numbers))
    await world.to_checkpoint()


def test_voters_make_blocks_final(tmp_path):
    """With what the ledger says before, meanwhile and after."""

    async def work(world):
        await begin(world, 0, 1, 2)
        found = world.finality(with_voters=True)
        assert (found.final.height, found.justified.height, found.newest.height) == (0, 0, 8)
        assert (found.height, found.interval, found.front, found.rear) == (8, EPOCH, 3 * BOND, 3 * BOND)
        assert sorted(stake.peer for stake in found.voters) == sorted(KEYS)
        assert all(stake.may_vote and stake.weight == BOND and stake.target == 0 for stake in found.voters)
        async with world.voting(0, 1, 2) as voters:
            for final in (0, 8, 12):
                await world.until_waiting(3)
                await world.to_checkpoint()
                assert world.finality().final.height == final
            assert [voter.last_vote for voter in voters] == [16] * 3
            assert [voter.error for voter in voters] == [""] * 3
        votes = world.votes()
        assert len(votes) == 3 * 2  # the third of each link comes too late: two thirds have made it justified
        assert not any(is_conflict(*pair) for pair in itertools.combinations(votes, 2))
        stake = world.finality(votes[-1].peer).stake
        assert stake.target == votes[-1].target_height

    voting_test(tmp_path, work)


def test_a_lost_vote_is_submitted_again_with_the_same_bytes(tmp_path):
    """Whether this process made it, or one that was killed."""

    async def work(world):
        await begin(world, 0)
        async with world.voting(0):
            await world.until_waiting(1)
            [before] = world.waiting()
            await world.add(with_pool=False)
            await world.until_waiting(1)
            assert world.waiting() == [before]
        world.keeper.pool = Mempool(world.make.document)
        await world.add(with_pool=False)
        async with world.voting(0):
            await world.until_waiting(1)
            assert [encode_tx(tx) for tx in world.waiting()] == [encode_tx(before)]
            assert tx_id(world.waiting()[0]) == tx_id(before)
            await world.add()
            await until_so(lambda: world.finality(KEYS[0]).stake.target == before.target_height)

    voting_test(tmp_path, work)


def test_nothing_is_signed_that_is_not_written_down(tmp_path, monkeypatch):
    async def work(world):
        await begin(world, 0)

        def fail(*_args):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(config.os, "fsync", fail)
            async with world.voting(0) as [voter]:
                await until_so(lambda: "do not vote" in voter.error)
        assert len(world.keeper.pool) == 0
        assert world.read_journal(0).link is None
        async with world.voting(0):
            await world.until_waiting(1)

    voting_test(tmp_path, work)


def test_without_a_journal_it_begins_above_what_the_ledger_knows(tmp_path):
    """And above the newest checkpoint, for which its vote may be on its way."""

    async def work(world):
        await begin(world, 0, 1)
        async with world.voting(0, 1):
            await world.until_waiting(2)
            await world.to_checkpoint()
        newest, known = world.finality().newest.height, world.finality(KEYS[0]).stake.target
        assert (newest, known) == (12, 8)
        world.journal(0).unlink()
        async with world.voting(0) as [voter]:
            await until_so(world.journal(0).exists)
            record = world.read_journal(0)
            assert (record.source_height, record.target_height, record.link) == (8, newest, None)
            assert voter.last_vote == 0
            await world.add(with_pool=False)
            await world.to_checkpoint(with_pool=False)
            await world.until_waiting(1)
            assert world.waiting()[0].target_height == 16

    voting_test(tmp_path, work)


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"", lambda data: data[:9] + b"?" + data[10:]])
def test_a_damaged_journal_ends_voting_until_a_person_acts(tmp_path, damage):
    async def work(world):
        await begin(world, 0)
        path = world.journal(0)
        path.write_bytes(damage(path.read_bytes()))
        kept = path.read_bytes()
        voter = world.voter(0)
        await voter.run()  # returns
        assert "move that file away" in voter.error
        assert len(world.keeper.pool) == 0
        assert path.read_bytes() == kept

    voting_test(tmp_path, work)


def test_an_older_copy_of_the_journal_ends_voting(tmp_path):
    async def work(world):
        await begin(world, 0)
        older = world.journal(0).read_bytes()
        async with world.voting(0):
            await world.until_waiting(1)
            await world.to_checkpoint()
        world.journal(0).write_bytes(older)
        voter = world.voter(0)
        await voter.run()  # returns
        assert "older copy" in voter.error
        assert len(world.keeper.pool) == 0

    voting_test(tmp_path, work)


def test_a_stake_that_leaves_votes_for_as_long_as_it_counts(tmp_path):
    async def work(world):
        await begin(world, 0)
        world.keeper.submit(sign_unbond(world.make.network, VOTERS[0], 1, 1))
        await world.add()
        found = world.finality(KEYS[0]).stake
        assert (found.weight, found.may_vote, found.amount) == (0, True, BOND)
        assert found.release == world.make.tip.height + world.make.document.unbond_delay
        async with world.voting(0):
            await world.until_waiting(1)

    voting_test(tmp_path, work)


# ---- a daemon that says whatever it likes --------------------------------------------------------------------------
class Killed(BaseException):
    """The process ends here."""


class Liar:
    """Answers a voter by chance: checkpoints of several chains, back and forth, heights and sources as it likes."""

    def __init__(self, document, seed, answers):
        self.document, self.random, self.left = document, random.Random(seed), answers
        self.offered = []

    def methods_for(self, connection):
        async def watch(_):
            return ledgerapi.LedgerStatus(
                1, network_id(self.document), "x", "", 1, bytes(32), 0, b"", 0, False, 0.0, ()
            )

        async def network(_):
            return ledgerapi.NetworkInfo(encode_network(self.document), "")

        async def finality(query):
            self.left -= 1
            connection.notify_nowait("tip", ledgerapi.TipNotice(1, bytes(32), 0))
            return self.answer(query.peer)

        async def submit(query):
            if self.random.random() < 0.3:
                raise InvalidTransaction("WrongLink: it is another one now")
            return ledgerapi.TxResult(tx_id(decode_tx(query.tx)), None)

        return {
            "watch": (Empty, watch),
            "network": (Empty, network),
            "finality": (ledgerapi.FinalityQuery, finality),
            "submit": (ledgerapi.SubmitTx, submit),
        }, {}

    def answer(self, peer):
        base = 40 - self.left // 20
        source, target = sorted(self.random.sample(range(max(base, 0), base + 6), 2))
        chain = self.random.randrange(3)
        source, target = (ledgerapi.CheckpointInfo(height, bytes([height, chain]) * 16) for height in (source, target))
        self.offered.append((source, target))
        stake = ledgerapi.StakeInfo(peer, BOND, BOND, may_vote=True, target=0, release=0, is_burned=False)
        return ledgerapi.FinalityInfo(99, 1, source, source, target, BOND, BOND, 0, 0, BOND, BOND, stake, (), 0)


@pytest.mark.parametrize("seed", range(4))
def test_killed_anywhere_it_never_signs_two_votes_that_conflict(tmp_path, monkeypatch, seed):
    """Whatever chains the ledger daemon shows it, in whatever order. Nothing it signs conflicts with anything it ever
    signed."""
    document = voting_network()
    liar = Liar(document, seed, 400)
    signed: dict[bytes, Vote] = {}
    kills: list[str] = []

    def kill(place):
        if liar.random.random() < 0.08:
            kills.append(place)
            raise Killed

    def killing(name, module):
        real = getattr(module, name)

        def call(*args):
            kill(f"before {name}")
            result = real(*args)
            if name == "sign_vote":
                signed[result] = decode_tx(result)
            kill(f"after {name}")
            return result

        monkeypatch.setattr(module, name, call)

    killing("replace", config.os)
    killing("sync_directory", config)
    killing("write_journal", voting)
    killing("sign_vote", voting)

    async def run():
        socket = tmp_path / "run" / "ledger.sock"
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                await nursery.start(lambda task_status: serve_unix(socket, liar.methods_for, task_status=task_status))
                while liar.left > 0:
                    voter = Voter(
                        socket=socket,
                        journal=tmp_path / "peer" / "votes",
                        seed=VOTERS[0],
                        peer=KEYS[0],
                        network=network_id(document),
                    )
                    try:
                        async with trio.open_nursery() as life:
                            life.start_soon(voter.run)
                            await until_so(lambda: liar.left <= 0)
                            life.cancel_scope.cancel()
                    except* Killed:
                        pass
                nursery.cancel_scope.cancel()

    trio.run(run)
    votes = list(signed.values())
    assert not any(is_conflict(*pair) for pair in itertools.combinations(votes, 2))
    assert len(votes) > 10
    assert len(set(kills)) >= 4, "it was killed in many places"
    refused = [
        Vote(1, KEYS[0], source.id, source.height, target.id, target.height, b"") for source, target in liar.offered
    ]
    assert any(is_conflict(vote, other) for vote in votes for other in refused), "it was tempted"


def test_a_network_without_checkpoints_needs_no_voter(tmp_path):
    document = easy_network()
    liar = Liar(document, 1, 1)

    async def run():
        socket = tmp_path / "run" / "ledger.sock"
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                await nursery.start(lambda task_status: serve_unix(socket, liar.methods_for, task_status=task_status))
                journal = tmp_path / "peer" / "votes"
                voter = Voter(
                    socket=socket, journal=journal, seed=VOTERS[0], peer=KEYS[0], network=network_id(document)
                )
                await voter.run()  # returns
                assert (voter.error, voter.stake, journal.exists(), liar.left) == ("", None, False, 1)
                nursery.cancel_scope.cancel()

    trio.run(run)
