"""What a peer answers from memory, and what in a thread."""

import os

import trio

from fsdecloud.peerd import reading
from fsdecloud.wire import peer as wire
from tests.component.peerd.peerworld import run, shard, world


def drop_pages(path):
    for name in os.listdir(path / "shards"):
        fd = os.open(path / "shards" / name, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def test_what_is_in_memory_needs_no_thread_and_what_is_not_waits_in_one(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "INDEX_PAUSE", 0.0)

    async def work():
        async with world(tmp_path / "peer") as w, w.client("a") as pool:
            shards = [shard(i, 100_000) for i in range(8)]
            await pool.put(w.address, shards)
            for _ in range(50):  # other tests of this machine empty the page cache now and then
                hops = w.service.reader.hops
                for name, data in shards:
                    assert await pool.get(w.address, name) == data
                    assert await pool.get_range(w.address, name, 7, 1000) == data[7:1007]
                    assert await pool.get_range(w.address, name, 99_000, 0) == data[99_000:]
                    assert await pool.has(w.address, [name, bytes(32)]) == (True, False)
                if w.service.reader.hops == hops:
                    break
            else:
                raise AssertionError("what is in memory goes through threads")
            served = w.service.counters.served_shards
            drop_pages(w.path)
            for name, data in shards:
                assert await pool.get(w.address, name) == data
            assert w.service.reader.hops > 0, "the disk is never waited for by all"
            assert w.service.counters.served_shards == served + len(shards)
            hops = w.service.reader.hops
            assert await pool.has(w.address, [bytes(32)] * (reading.HAS_INLINE + 1)) == (False,) * 257
            assert w.service.reader.hops == hops + 1

    run(work)


def test_after_the_index_had_to_be_read_from_the_disk_threads_do_it_for_a_while(tmp_path, monkeypatch):
    async def work():
        async with world(tmp_path / "peer") as w, w.client("a") as pool:
            name, data = shard(1)
            await pool.put(w.address, [(name, data)])
            reader = w.service.reader
            faults = iter(range(1000))
            monkeypatch.setattr(reading, "_major_faults", lambda: next(faults))
            assert await pool.get(w.address, name) == data
            assert reader.hops == 0
            monkeypatch.setattr(reading, "_major_faults", lambda: 0)
            assert await pool.get(w.address, name) == data
            assert await pool.has(w.address, [name]) == (True,)
            assert reader.hops == 2
            monkeypatch.setattr(reading, "INDEX_PAUSE", 0.0)
            reader._index_after = trio.current_time()
            assert await pool.get(w.address, name) == data
            assert reader.hops == 2
            assert reader.at_once(wire.Get(1, bytes(32), 0, 0)) is None

    run(work)
