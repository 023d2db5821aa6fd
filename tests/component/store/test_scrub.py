"""A shard store reads its shards again: what is damaged is found, said, and its space given back; what is not never is."""

import errno
import os
import random
import threading

import blake3
import pytest

from fsdecloud.errors import StoreCorrupt, StoreError
from fsdecloud.store import scrub as module
from fsdecloud.store.scrub import Scrub
from fsdecloud.store.shardrows import Claim, Deletion
from fsdecloud.store.shards import SHARE, ShardStore

MAP = 1 << 28
A, B = Claim(b"a" * 32, b"A" * 32), Claim(b"b" * 32, b"B" * 32)


def shard(i, size=1000):
    data = (b"%08d" % i).ljust(size, b"s")
    return blake3.blake3(data).digest(), data


def open_store(path, **options):
    return ShardStore(path, options.pop("quota", 1 << 30), reserve=0, map_size=MAP, **options)


def put(store, items, claim=A, now=10):
    assert store.put_many(items, [claim] * len(items), now=now) == [""] * len(items)


_nonce = iter(range(1 << 30))


def delete(store, ids, claim=A, now=30):
    return store.delete_many(Deletion(claim.deal, next(_nonce).to_bytes(32, "big"), now, 10**6, list(ids)), now=now)


def compact(store):
    while store.compact():
        pass


def files(path):
    return sorted((path / "shards").glob("*.seg"))


def flip(path, place, at=0):
    """Change one bit on the disk."""
    file = path / "shards" / f"shards-{place.segment:08d}.seg"
    with file.open("r+b") as f:
        f.seek(place.offset + at)
        byte = f.read(1)[0]
        f.seek(-1, os.SEEK_CUR)
        f.write(bytes([byte ^ 1]))


def whole_pass(store, scrub=None):
    """Scrub everything once, as the peer does; return what was condemned."""
    scrub = scrub or Scrub(store)
    scrub.start_pass(100)
    gone = []
    while True:
        step = scrub.step()
        gone += [shard for shard, place in step.suspects if scrub.condemn(shard, place)]
        if step.is_end:
            scrub.end(200)
            scrub.save()
            return gone


def test_a_flipped_bit_is_found_said_and_its_space_given_back(tmp_path):
    items = [shard(i, 1000 + i) for i in range(50)]
    bad = items[17]
    with open_store(tmp_path / "p") as store:
        put(store, items)
        assert whole_pass(store) == []
        flip(tmp_path / "p", store.locate(bad[0]), 500)
        assert store.has_many([bad[0]]) == (True,)  # nobody knows yet
        scrub = Scrub(store)
        assert whole_pass(store, scrub) == [bad[0]]
        assert (scrub.progress.passes, scrub.progress.shards, scrub.progress.found) == (2, 50, 1)
        assert scrub.progress.size == sum(len(d) for _, d in items)
        assert store.has_many([i for i, _ in items]) == tuple(i != bad[0] for i, _ in items)
        with pytest.raises(StoreCorrupt, match="damaged"):
            store.get(bad[0])
        assert store.damaged_count() == 1
        assert store.counts() == (49, sum(len(d) for _, d in items) - len(bad[1]))
        assert store.usage(A.deal) == store.counts()
        delete(store, [i for i, _ in items[:40] if i != bad[0]])
        store.reap(1 << 31)
        compact(store)
        assert sum(f.stat().st_size for f in files(tmp_path / "p")) == sum(len(d) for _, d in items[40:])
    with open_store(tmp_path / "p") as store:
        assert store.damaged_count() == 1
        assert Scrub(store).progress.found == 1
        put(store, [bad], B, now=40)  # back to both: neither can delete what the other's is
        assert (store.damaged_count(), store.usage(A.deal)[0], store.usage(B.deal)[0]) == (0, 11, 1)
        delete(store, [bad[0]], B, now=50)
        assert (store.get(bad[0]), store.doomed_count()) == (bad[1], 0)
        delete(store, [bad[0]], A, now=50)
        assert store.doomed_count() == 1


def test_an_owner_gives_up_what_was_damaged(tmp_path):
    items = [shard(i) for i in range(4)]
    with open_store(tmp_path / "p") as store:
        put(store, items)
        delete(store, [items[3][0]])
        for i in (0, 1, 3):
            flip(tmp_path / "p", store.locate(items[i][0]))
        assert set(whole_pass(store)) == {items[i][0] for i in (0, 1, 3)}
        assert (store.damaged_count(), store.doomed_count()) == (2, 0)  # nobody wanted the last one
        assert delete(store, [items[0][0]]) == [""]
        assert store.damaged_count() == 1
        with pytest.raises(KeyError):
            store.get(items[0][0])
        assert store.reap(1 << 31) == 0


def test_fault_58_a_segment_that_is_gone_holds_nothing(tmp_path):
    old, new = [shard(i) for i in range(10)], [shard(i) for i in range(10, 20)]
    with open_store(tmp_path / "p") as store:
        put(store, new[:5])
        store._segments.roll()
        put(store, old)
    files(tmp_path / "p")[1].unlink()
    with open_store(tmp_path / "p") as store:
        assert store.has_many([i for i, _ in old]) == (False,) * 10
        put(store, new)  # not into a file of the lost one's number
        assert store.has_many([i for i, _ in new]) == (True,) * 10
        assert [store.get(i) for i, _ in new] == [d for _, d in new]
        with pytest.raises(StoreCorrupt):
            store.get(old[0][0])
        assert set(whole_pass(store)) == {i for i, _ in old}
        assert (store.damaged_count(), store.counts()[0]) == (10, 10)
        put(store, old, now=50)
        assert store.has_many([i for i, _ in old]) == (True,) * 10
    with open_store(tmp_path / "p") as store:
        assert [store.get(i) for i, _ in old + new] == [d for _, d in old + new]
        assert whole_pass(store) == []


def test_a_segment_that_was_cut_short(tmp_path):
    items = [shard(i) for i in range(10)]
    with open_store(tmp_path / "p") as store:
        put(store, items)
        os.truncate(files(tmp_path / "p")[0], 7500)
        assert set(whole_pass(store)) == {i for i, _ in items[7:]}
        assert [store.get(i) for i, _ in items[:7]] == [d for _, d in items[:7]]


def test_it_goes_on_where_it_was_when_it_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "STEP_SHARDS", 7)
    monkeypatch.setattr(module, "PLACES_KEPT", 20)
    items = [shard(i, 500) for i in range(100)]
    with open_store(tmp_path / "p") as store:
        for start in range(0, 100, 10):
            put(store, items[start : start + 10])
            store._segments.roll()
    read = []
    for _ in range(100):
        with open_store(tmp_path / "p") as store:
            scrub = Scrub(store)
            scrub.start_pass(5)
            assert scrub.progress.shards == len(read)
            check = store.check
            store.check = lambda s, place, check=check: read.append(s) or check(s, place)
            step = scrub.step()
            while not step.shards and not step.is_end:
                step = scrub.step()
            if step.is_end:
                break
            scrub.save()
    assert len(read) == 100
    assert read == [i for i, _ in items]  # in the order they lie on the disk


def test_what_cannot_be_read_now_is_not_called_damaged(tmp_path, monkeypatch):
    items = [shard(i) for i in range(5)]
    with open_store(tmp_path / "p") as store:
        put(store, items)
        scrub = Scrub(store)
        scrub.start_pass(1)
        while not scrub._places:
            scrub.step()
        pread, broken = os.pread, {items[2][0]: errno.EMFILE}
        places = {store.locate(i).offset: code for i, code in broken.items()}

        def failing(fd, length, offset):
            if offset in places:
                raise OSError(places[offset], "no")
            return pread(fd, length, offset)

        monkeypatch.setattr(os, "pread", failing)
        assert scrub.step().shards == 2
        with pytest.raises(StoreError):
            scrub.step()
        with pytest.raises(StoreError):  # of those that a client's read failed for
            scrub.condemn(items[2][0], store.locate(items[2][0]))
        scrub.skip()
        assert scrub.step().shards == 2
        assert store.damaged_count() == 0
        places[store.locate(items[2][0]).offset] = errno.EIO  # the disk itself gives it up
        assert whole_pass(store, Scrub(store)) == [items[2][0]]
        put(store, [items[2]])
        monkeypatch.undo()
        assert store.get(items[2][0]) == items[2][1]


def test_no_false_alarm_while_shards_come_go_and_move(tmp_path, monkeypatch):
    from fsdecloud.store import shardindex
    from fsdecloud.store import shards as store_module

    monkeypatch.setattr(module, "STEP_SHARDS", 3)
    monkeypatch.setattr(module, "PLACES_KEPT", 11)
    monkeypatch.setattr(store_module, "COMPACT_STEP", 5000)
    monkeypatch.setattr(store_module, "SCAN_STEP", 7)
    monkeypatch.setattr(shardindex, "PLACES_STEP", 7)
    lock = threading.Lock()
    suspects, stop, passes = [], threading.Event(), []
    with open_store(tmp_path / "p") as store:
        store._segments._segment_size = 20_000
        kept = {}

        def read():
            """What the scrubbing thread does; the lock is the writer's queue."""
            scrub = Scrub(store)
            while not stop.is_set():
                scrub.start_pass(1)
                step = scrub.step()
                suspects.extend(step.suspects)
                for s, place in step.suspects:
                    with lock:
                        assert not scrub.condemn(s, place)
                if step.is_end:
                    scrub.end(2)
                    passes.append(scrub.progress.passes)

        thread = threading.Thread(target=read)
        thread.start()
        try:
            chance = random.Random(7)
            n = 0
            while n < 60 or (len(passes) < 3 and n < 2000):
                n += 1
                items = [shard(n * 100 + i, 1500) for i in range(8)]
                with lock:
                    put(store, items, now=n)
                kept.update(items)
                for i in chance.sample(sorted(kept), 7):
                    del kept[i]
                    with lock:
                        delete(store, [i], now=n)
                with lock:
                    store.reap(1 << 31)
                for _ in range(4):
                    with lock:
                        store.compact()
        finally:
            stop.set()
            thread.join()
        assert passes
        assert store.damaged_count() == 0
        assert {i: store.get(i) for i in kept} == kept


def test_one_deal_holds_no_more_than_its_share(tmp_path):
    items = [shard(i) for i in range(10)]
    with open_store(tmp_path / "p") as store:
        store.deal_max = 3500
        assert store.put_many(items[:5], [A] * 5) == ["", "", "", SHARE, SHARE]
        put(store, items[:3])  # again: they count once
        assert store.put_many([items[8], items[8], items[9]], [B, A, B]) == ["", SHARE, ""]
        assert (store.usage(A.deal), store.usage(B.deal)) == ((3, 3000), (2, 2000))
        delete(store, [items[0][0]])
        put(store, [items[8]])  # there already, and counts for both
        assert (store.usage(A.deal), store.usage(B.deal)) == ((3, 3000), (2, 2000))
    with open_store(tmp_path / "p") as store:
        assert store.holders(5) == [(A.deal, 3, 3000), (B.deal, 2, 2000)]
        with store._env.write() as txn:  # as a release left it that did not count
            txn.drop(store._usage, delete=False)
    with open_store(tmp_path / "p") as store:
        assert store.holders(1) == [(A.deal, 3, 3000)]
