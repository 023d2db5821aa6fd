"""The agent's records of what is to be deleted: storing goes first, another device's word voids them."""

import time

import trio
import trio.testing

from fsdecloud.agent.garbage import CONDEMNED_MAX, STEP, TRIES_MAX, Condemned, Garbage
from fsdecloud.agent.journal import GENERATIONS, ROWS, open_journal, open_writer
from fsdecloud.agent.rows import PackedEntry, blob_key, entry_rows
from fsdecloud.types import BlobId, EntryId, PeerId, ShardId

BLOB, OTHER = BlobId(b"b" * 32), BlobId(b"o" * 32)
PEER, AWAY = PeerId(b"p" * 32), PeerId(b"a" * 32)
ONE, TWO = ShardId(b"1" * 32), ShardId(b"2" * 32)


def run(path, work):
    async def main():
        journal = open_journal(path, b"V" * 32)
        try:
            with trio.fail_after(20):
                async with open_writer(journal) as writer:
                    await work(Garbage(writer), writer)
        finally:
            journal.close()

    trio.run(main)


def record(*shards, **more):
    return Condemned((EntryId(b"e" * 32),), tuple((shard, PEER) for shard in shards), 100, **more)


async def condemn(garbage, **blobs):
    async with garbage.lock:
        await garbage.condemn({BlobId(name.encode() * 32): value for name, value in blobs.items()})


def test_storing_a_shard_again_takes_it_out_of_every_record(tmp_path):
    async def work(garbage, _writer):
        await condemn(garbage, b=record(ONE, TWO, generation=1), o=record(TWO, generation=1))
        await garbage.reclaim(BlobId(b"n" * 32), [TWO])
        assert garbage.get(BLOB).left == ((ONE, PEER),)
        assert garbage.get(OTHER) is None
        await garbage.reclaim(BLOB, [ONE])
        assert garbage.count() == 0
        assert garbage._owners(ONE) == garbage._owners(TWO) == []

    run(tmp_path / "j", work)


def test_storing_waits_for_a_deletion_that_may_be_on_its_way_also_after_a_restart(tmp_path):
    async def sign(garbage, _writer):
        await condemn(garbage, b=record(ONE, generation=1))
        async with garbage.lock:
            await garbage.signing([BLOB], int(time.time()) + 1000)

    async def work(garbage, _writer):
        done = []

        async def reclaim():
            await garbage.reclaim(BLOB, [ONE])
            done.append(garbage.get(BLOB))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(reclaim)
            await trio.testing.wait_all_tasks_blocked()
            await trio.sleep(0.05)
            assert not done
            assert garbage.get(BLOB) is not None
            await garbage.settled([BLOB], tried=False)
        assert done == [None]

    run(tmp_path / "j", sign)
    run(tmp_path / "j", work)


def test_an_expired_deletion_is_not_waited_for(tmp_path):
    async def work(garbage, _writer):
        await condemn(garbage, b=record(ONE, generation=1, signed_until=int(time.time()) - 1))
        await garbage.reclaim(BLOB, [ONE])
        assert garbage.count() == 0

    run(tmp_path / "j", work)


def test_a_fold_drops_the_rows_but_for_those_that_are_newer(tmp_path):
    async def work(garbage, writer):
        inside = [PackedEntry(EntryId(bytes([i]) * 32), 0, 5) for i in range(3)]
        await condemn(garbage, b=Condemned(tuple(entry.id for entry in inside), ((ONE, PEER),), 100))
        again = entry_rows(OTHER, inside[:1])
        await writer.write([(ROWS, key, value) for key, value in again])
        keys, records = await garbage.dropping()
        assert [blob for blob, _ in records] == [BLOB]
        assert set(keys) == {(blob_key(BLOB), None), *((b"E" + entry.id, None) for entry in inside[1:])}
        await writer.write(garbage.dropped(records, [b"n" * 32], [PEER, AWAY], 16))
        garbage.generation += 1
        assert garbage.get(BLOB).generation == 1
        assert garbage.get(BlobId(b"n" * 32)).is_node
        assert await garbage.dropping() == ([], [])
        assert await garbage.finals() == []
        await garbage.finalize(1)
        assert len(await garbage.finals()) == 2

    async def later(garbage, _writer):
        assert (garbage.generation, garbage.final_generation, len(await garbage.finals())) == (1, 1, 2)

    run(tmp_path / "j", work)
    run(tmp_path / "j", later)


def test_another_devices_map_voids_everything(tmp_path):
    async def work(garbage, _writer):
        await condemn(garbage, b=record(ONE, generation=1), o=record(TWO))
        await garbage.forget_all()
        assert garbage.count() == 0
        assert garbage._owners(ONE) == []

    run(tmp_path / "j", work)


def test_a_peer_that_never_deletes_is_left_alone_at_last(tmp_path):
    async def work(garbage, _writer):
        await condemn(garbage, b=record(ONE, TWO, generation=1))
        await garbage.gone(PEER, {BLOB: [ONE]})
        assert garbage.get(BLOB).left == ((TWO, PEER),)
        assert (garbage.freed_shards, garbage.freed_bytes) == (1, 100)
        for _ in range(TRIES_MAX):
            assert garbage.count() == 1
            await garbage.settled([BLOB], tried=True)
        assert garbage.count() == 0

    run(tmp_path / "j", work)


def test_what_a_peer_that_is_gone_should_delete_is_forgotten(tmp_path):
    async def work(garbage, _writer):
        both = Condemned((), ((ONE, PEER), (ONE, AWAY)), 100, 1)
        await condemn(garbage, b=both, o=Condemned((), ((TWO, AWAY),), 100, 1), c=Condemned((), ((TWO, AWAY),), 100))
        assert await garbage.peers() == {PEER, AWAY}
        assert await garbage.drop({AWAY}) == 3
        assert garbage.get(BLOB).left == ((ONE, PEER),)
        assert garbage.get(OTHER) is None
        assert garbage.freed_shards == 0
        assert [blob for blob, _ in (await garbage.dropping())[1]] == [b"c" * 32]  # its rows must go all the same
        assert garbage._owners(TWO) == []
        assert await garbage.drop({AWAY}) == 0

    run(tmp_path / "j", work)


def test_a_full_table_keeps_nobody_waiting(tmp_path):
    """The event loop goes on while twenty thousand records are looked at, and those of one generation cost what they are."""

    async def work(garbage, writer):
        records = {BlobId(i.to_bytes(32, "big")): record(ONE, generation=1 + i % 50) for i in range(CONDEMNED_MAX)}
        for start in range(0, CONDEMNED_MAX, 5000):
            part = dict(list(records.items())[start : start + 5000])
            async with garbage.lock:
                await garbage.condemn(part)
        garbage.final_generation = 3
        turns = 0

        async def others():
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(others)
            assert await garbage.peers() == {PEER}
            assert turns >= CONDEMNED_MAX // STEP - 5
            turns = 0
            assert len(await garbage.finals()) == 3 * CONDEMNED_MAX // 50
            assert 3 * CONDEMNED_MAX // 50 // STEP - 5 <= turns < CONDEMNED_MAX // STEP
            nursery.cancel_scope.cancel()
        assert len(garbage.generations()) == CONDEMNED_MAX

    run(tmp_path / "j", work)


def test_records_of_an_older_release_are_in_order_too(tmp_path):
    async def before(garbage, writer):
        await condemn(garbage, b=record(ONE, generation=1), o=record(TWO))
        await writer.write([(GENERATIONS, key, None) for key in writer.journal.keys(GENERATIONS)])

    async def work(garbage, _writer):
        assert garbage.generations() == [0, 1]
        assert [blob for blob, _ in (await garbage.dropping())[1]] == [OTHER]
        garbage.final_generation = 1
        assert [blob for blob, _ in await garbage.finals()] == [BLOB]

    run(tmp_path / "j", before)
    run(tmp_path / "j", work)
