"""A peer that serves reads its own shards again, beside its traffic, and says what is damaged."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from peerworld import run, shard, until, world

from fsdecloud.errors import BlobMissing
from fsdecloud.peerd import scrubbing, server


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(scrubbing, "RATE_MIN", 1 << 30)
    monkeypatch.setattr(scrubbing, "RATE_MAX", 1 << 30)
    monkeypatch.setattr(scrubbing, "SCAN_PAUSE", 0.0)
    monkeypatch.setattr(scrubbing, "FIRST", 0.0)
    monkeypatch.setattr(scrubbing, "BUSY_MAX", 0.01)
    monkeypatch.setattr(scrubbing, "BUSY_LOOK", 0.005)
    monkeypatch.setattr(server, "QUIET", 0.01)


def test_it_finds_what_was_changed_on_the_disk_and_stops_saying_that_it_is_there(tmp_path):
    async def work():
        async with world(tmp_path / "p", scrub_period=0.2) as w, w.client("a") as a:
            items = [shard(i) for i in range(30)]
            await a.put(w.address, items)
            scrubber = w.service.scrubber
            await until(lambda: scrubber.progress.passes >= 1 and scrubber.progress.shards == 30)
            assert w.store.damaged_count() == 0
            for i in (3, 20):
                w.change(items[i][0], 700)
            await until(lambda: w.store.damaged_count() == 2)
            has = await a.has(w.address, [i for i, _ in items])
            assert [n for n, there in enumerate(has) if not there] == [3, 20]
            with pytest.raises(BlobMissing, match="lost"):
                await a.get(w.address, items[3][0])
            for i, data in items[:3] + items[4:20]:
                assert await a.get(w.address, i) == data
            await a.put(w.address, items[:4])
            assert await a.get(w.address, items[3][0]) == items[3][1]
            assert w.store.damaged_count() == 1

    run(work)


def test_what_a_client_could_not_read_is_looked_at_at_once(tmp_path):
    async def work():
        async with world(tmp_path / "p") as w, w.client("a") as a:  # no passes at all
            items = [shard(i) for i in range(3)]
            await a.put(w.address, items)
            os.truncate(w.path / "shards" / "shards-00000001.seg", 2500)
            assert await a.has(w.address, [items[2][0]]) == (True,)
            with pytest.raises(BlobMissing, match="lost"):
                await a.get(w.address, items[2][0])
            await until(lambda: w.store.damaged_count() == 1)
            assert await a.has(w.address, [i for i, _ in items]) == (True, True, False)
            assert w.service.counters.refusals["lost"] == 1

    run(work)


def test_requests_go_first(tmp_path, monkeypatch):
    """As long as something is asked, no more than a step in BUSY_MAX is read."""
    monkeypatch.setattr(scrubbing, "BUSY_MAX", 1000.0)
    monkeypatch.setattr(scrubbing, "BUSY_LOOK", 0.001)

    async def work():
        async with world(tmp_path / "p", scrub_period=0.01) as w, w.client("a") as a:
            with w.service.working():
                items = [shard(i) for i in range(10)]
                await a.put(w.address, items)
                seen = w.service.scrubber.progress
                for _ in range(50):
                    await a.get(w.address, items[0][0])
                assert w.service.scrubber.progress.shards == seen.shards
            await until(lambda: w.service.scrubber.progress.shards == 10)

    run(work)


def test_no_false_alarm_beside_puts_deletions_and_compaction(tmp_path, monkeypatch):
    from fsdecloud.peerd import deleting
    from fsdecloud.store import scrub

    monkeypatch.setattr(deleting, "PAUSE", 0.0)
    monkeypatch.setattr(deleting, "BURST", 1e6)
    monkeypatch.setattr(scrub, "STEP_SHARDS", 2)
    monkeypatch.setattr(scrubbing, "BUSY_MAX", 0.0001)

    async def work():
        async with world(tmp_path / "p", scrub_period=0.001) as w, w.client("a") as a:
            kept = {}
            rounds = 0
            while rounds < 25 or (w.service.scrubber.progress.passes < 3 and rounds < 500):
                rounds += 1
                items = [shard(rounds * 100 + i, 3000) for i in range(10)]
                await a.put(w.address, items)
                await a.delete(w.address, w.grant("a", [i for i, _ in items[2:]]))
                kept.update(items[:2])
            await until(lambda: w.store.counts()[0] == len(kept))
            assert w.service.scrubber.progress.passes >= 3
            assert (w.store.damaged_count(), w.service.scrubber.progress.found) == (0, 0)
            assert w.service.scrubber.errors == 0
            assert all(await a.has(w.address, list(kept)))
            for i, data in list(kept.items())[:20]:
                assert await a.get(w.address, i) == data

    run(work)


def test_a_disk_that_cannot_be_read_now_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(scrubbing, "RETRY", 0.001)
    pread = os.pread
    broken = []

    def failing(fd, length, offset):
        if offset in broken and length == 1000:
            raise OSError(24, "too many open files")
        return pread(fd, length, offset)

    async def work():
        async with world(tmp_path / "p", scrub_period=0.001) as w, w.client("a") as a:
            items = [shard(i) for i in range(5)]
            broken.append(2000)
            await a.put(w.address, items)
            scrubber = w.service.scrubber
            await until(lambda: scrubber.errors >= 2 * scrubbing.TRIES)  # left out, and met again in the next pass
            assert w.store.damaged_count() == 0
            broken.clear()
            before = scrubber.progress.passes
            await until(lambda: scrubber.progress.passes > before + 1)
            assert w.store.damaged_count() == 0

    monkeypatch.setattr(os, "pread", failing)
    run(work)


def test_fault_58_a_peer_that_lost_its_store_does_not_say_that_it_has_it(tmp_path):
    async def work():
        items = [shard(i) for i in range(6)]
        async with world(tmp_path / "p") as w, w.client("a") as a:
            await a.put(w.address, items)
        for file in (tmp_path / "p" / "shards").iterdir():
            file.unlink()
        async with world(tmp_path / "p") as w, w.client("a") as a, w.client() as reader:
            assert await reader.has(w.address, [i for i, _ in items]) == (False,) * 6
            with pytest.raises(BlobMissing, match="lost"):
                await reader.get(w.address, items[0][0])
            await until(lambda: w.store.damaged_count() == 1)  # looked at, because somebody asked
            await a.put(w.address, items[:3])
            assert await reader.has(w.address, [i for i, _ in items]) == (True,) * 3 + (False,) * 3
            assert [await reader.get(w.address, i) for i, _ in items[:3]] == [d for _, d in items[:3]]
            assert w.store.damaged_count() == 0

    run(work)
