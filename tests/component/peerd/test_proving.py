"""A peer proves what it has: real stores, a real worker process, and everything that can be missing or damaged."""

import os
import random
import signal
from contextlib import asynccontextmanager

import pytest
import trio

from fsdecloud.crypto import possession
from fsdecloud.crypto.shardset import EMPTY
from fsdecloud.errors import StoreCorrupt, StoreError
from fsdecloud.peerd import proving
from fsdecloud.peerd.proving import Prover
from fsdecloud.store.shards import ShardStore
from fsdecloud.store.shardsets import ShardSets
from tests.component.peerd.peerworld import run, until
from tests.unit.crypto.shardsets import Holder, random_shards

DEAL = b"d" * 32


class Peer:
    def __init__(self, path, store, sets, prover, suspects):
        self.path = path
        self.store = store
        self.sets = sets
        self.prover = prover
        self.suspects = suspects

    def take(self, shards, number=1, deal=DEAL):
        holder = Holder(shards)
        items = list(holder.data.items())
        assert self.store.put_many(items) == [""] * len(items)
        self.sets.stage(deal, number, {shard: len(data) for shard, data in items})
        return self.sets.accept(deal, number, b"signed")

    def damage(self, shard):
        place = self.store.locate(shard)
        with (self.path / "store" / "shards" / f"shards-{place.segment:08d}.seg").open("r+b") as file:
            file.seek(place.offset)
            byte = file.read(1)[0]
            file.seek(place.offset)
            file.write(bytes([byte ^ 1]))


@asynccontextmanager
async def peer(path, idle=30.0):
    suspects = []
    with (
        ShardStore(path / "store", 1 << 30, reserve=0, map_size=1 << 28) as store,
        ShardSets(path / "sets", map_size=1 << 28) as sets,
    ):
        prover = Prover(sets=sets, store=store, suspect=suspects.append, idle=idle)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(prover.run)
            yield Peer(path, store, sets, prover, suspects)
            nursery.cancel_scope.cancel()


def is_gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_peer_proves_its_deals(tmp_path):
    async def work():
        async with peer(tmp_path) as p:
            revision = p.take(random_shards(1, 40, longest=20_000))
            other = p.take(random_shards(2, 3), deal=b"o" * 32)
            for seed in (b"1", b"2"):
                proof = await p.prover.prove(DEAL, seed, 8)
                assert proof.revision == revision
                assert possession.verify(revision.shard_set.root, seed, 8, proof.data)
                assert not possession.verify(other.shard_set.root, seed, 8, proof.data)
            # Several at once take their turns, with the same process.
            results = {}

            async def one(seed):
                results[seed] = await p.prover.prove(b"o" * 32, seed, 20)

            async with trio.open_nursery() as nursery:
                for seed in (b"a", b"b", b"c", b"d"):
                    nursery.start_soon(one, seed)
            for seed, proof in results.items():
                assert possession.verify(other.shard_set.root, seed, 20, proof.data)
            assert (p.prover.proofs, p.prover.failed, p.prover.slicer.starts) == (6, 0, 1)
            pid = p.prover.slicer.pid
        assert is_gone(pid)

    run(work)


def test_a_deal_without_a_set_has_nothing_to_show(tmp_path):
    async def work():
        async with peer(tmp_path) as p:
            proof = await p.prover.prove(DEAL, b"x", 8)
            assert (proof.data, proof.revision.number) == (bytes(3), 0)
            assert possession.verify(EMPTY.root, b"x", 8, proof.data)
            assert p.prover.slicer.starts == 0
            with pytest.raises(ValueError):
                await p.prover.prove(DEAL, b"x", 0)

    run(work)


def test_a_staged_revision_is_not_what_is_proved(tmp_path):
    async def work():
        async with peer(tmp_path) as p:
            revision = p.take(random_shards(3, 10))
            p.sets.stage(DEAL, 2, dict.fromkeys(shard for shard, _ in p.sets.shards(DEAL)[:9]))
            proof = await p.prover.prove(DEAL, b"x", 8)
            assert proof.revision == revision
            assert possession.verify(revision.shard_set.root, b"x", 8, proof.data)

    run(work)


def test_what_is_missing_or_damaged_cannot_be_proved_and_is_looked_at(tmp_path):
    async def work():
        async with peer(tmp_path) as p:
            shards = random_shards(4, 2)
            p.take(shards)
            damaged, missing = (shard for shard, _ in p.sets.shards(DEAL))
            p.damage(damaged)
            with pytest.raises(StoreCorrupt, match="damaged"):
                await p.prover.prove(DEAL, b"x", 50)
            assert p.suspects == [damaged]
            # Stored again, it can.
            assert p.store.put_many([(s, d) for s, d in Holder(shards).data.items() if s == damaged]) == [""]
            assert (await p.prover.prove(DEAL, b"x", 50)).data
            # A set that names what was never stored here.
            p.sets.stage(DEAL, 2, {b"\xff" * 32: 1000, missing: None})
            p.sets.accept(DEAL, 2, b"")
            with pytest.raises(StoreCorrupt, match="is not here"):
                await p.prover.prove(DEAL, b"x", 50)
            assert (p.prover.proofs, p.prover.failed) == (1, 2)
            # A length that is not the shard's makes no proof either.
            p.sets.stage(DEAL, 3, {b"\xff" * 32: None, damaged: 77})
            p.sets.accept(DEAL, 3, b"")
            with pytest.raises(StoreCorrupt, match="damaged"):
                await p.prover.prove(DEAL, b"x", 5)

    run(work)


def test_the_worker_ends_when_there_is_nothing_to_prove(tmp_path):
    async def work():
        async with peer(tmp_path, idle=0.0) as p:
            revision = p.take(random_shards(5, 1))
            for i in range(2):
                seed = bytes([i])
                proof = await p.prover.prove(DEAL, seed, 3)
                assert possession.verify(revision.shard_set.root, seed, 3, proof.data)
                await until(lambda: not p.prover.slicer.pid)
            assert p.prover.slicer.starts == 2

    run(work)


def test_a_worker_that_is_killed_is_replaced(tmp_path):
    async def work():
        async with peer(tmp_path) as p:
            revision = p.take(random_shards(6, 5))
            await p.prover.prove(DEAL, b"x", 3)
            first = p.prover.slicer.pid
            os.kill(first, signal.SIGKILL)
            proof = await p.prover.prove(DEAL, b"y", 8)
            assert possession.verify(revision.shard_set.root, b"y", 8, proof.data)
            assert p.prover.slicer.starts == 2
            second = p.prover.slicer.pid
        assert is_gone(first)
        assert is_gone(second)

    run(work)


def test_a_worker_that_cannot_be_started_is_an_error_and_not_the_end(tmp_path, monkeypatch):
    async def work():
        async with peer(tmp_path) as p:
            revision = p.take(random_shards(7, 5))
            for program, starts in (("/bin/true", proving.TRIES), (str(tmp_path / "missing"), proving.TRIES)):
                with monkeypatch.context() as patch:
                    patch.setattr(proving.sys, "executable", program)
                    with pytest.raises(StoreError, match="process that hashes"):
                        await p.prover.prove(DEAL, b"y", 8)
                assert p.prover.slicer.starts == starts
            proof = await p.prover.prove(DEAL, b"y", 8)
            assert possession.verify(revision.shard_set.root, b"y", 8, proof.data)

    run(work)


def test_no_shard_is_hashed_where_clients_are_served(tmp_path, monkeypatch):
    async def work():
        async with peer(tmp_path) as p:
            revision = p.take([random.Random(8).randbytes(300_000)])
            monkeypatch.setattr(possession.bao, "hash_tree", None)
            proof = await p.prover.prove(DEAL, b"z", 40)
            assert possession.verify(revision.shard_set.root, b"z", 40, proof.data)

    run(work)
