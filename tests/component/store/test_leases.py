"""Claims with a term: renewed or dropped, found without a scan, and those of an older release."""

import struct

import blake3
import pytest

from fsdecloud.store import shardleases
from fsdecloud.store.shardrows import PLACE, STATE, Claim, Deletion, Row
from fsdecloud.store.shards import ShardStore

A, B = (Claim(bytes([i]) * 32, bytes([i + 10]) * 32) for i in (1, 2))


def shard(i, size=1000):
    data = (b"%08d" % i).ljust(size, b"s")
    return blake3.blake3(data).digest(), data


def opened(path):
    path.mkdir(exist_ok=True)
    return ShardStore(path, 1 << 30, reserve=0, map_size=1 << 28)


def put(store, items, claim, end, now=5):
    assert store.put_many(items, [claim] * len(items), now=now, end=end) == [""] * len(items)


def expire(store, before):
    dropped = removed = 0
    while (step := store.leases.expire(before)) != (0, 0):
        dropped, removed = dropped + step[0], removed + step[1]
    return dropped, removed


def grant(claim, shards):
    return Deletion(claim.deal, b"n" * 32, 100, 200, shards)


def test_what_nobody_renews_is_removed_after_its_term(tmp_path):
    with opened(tmp_path / "s") as store:
        items = [shard(i) for i in range(10)]
        ids = [i for i, _ in items]
        put(store, items, A, 100)
        assert store.leases.renew(A.deal, [*ids[:4], bytes(32)], 300) == [1000] * 4 + [0]
        assert store.leases.next_end() == 100
        assert expire(store, 100) == (0, 0)
        assert expire(store, 101) == (6, 6)
        assert store.has_many(ids) == (True,) * 4 + (False,) * 6
        assert store.usage(A.deal) == (4, 4000)
        assert store.counts() == (4, 4000)
        assert expire(store, 1000) == (4, 4)
        assert store.leases.next_end() is None
        assert store.counts() == (0, 0)


def test_a_term_never_gets_shorter(tmp_path):
    with opened(tmp_path / "s") as store:
        items = [shard(1)]
        put(store, items, A, 500)
        put(store, items, A, 100)
        assert store.leases.renew(A.deal, [items[0][0]], 200) == [1000]
        assert expire(store, 500) == (0, 0)
        assert expire(store, 501) == (1, 1)


def test_each_owner_has_a_lease_of_its_own(tmp_path):
    with opened(tmp_path / "s") as store:
        first, second = shard(1), shard(2)
        put(store, [first, second], A, 100)
        put(store, [first], B, 50)
        assert store.leases.renew(B.deal, [second[0]], 900) == [0]  # it is not theirs
        assert expire(store, 60) == (1, 0)
        assert store.usage(B.deal) == (0, 0)
        assert store.leases.renew(B.deal, [first[0]], 900) == [0]
        put(store, [first], B, 200)
        assert expire(store, 101) == (2, 1)
        assert store.has_many([first[0], second[0]]) == (True, False)
        assert expire(store, 201) == (1, 1)


def test_what_somebody_unknown_stored_is_kept(tmp_path):
    with opened(tmp_path / "s") as store:
        item = shard(1)
        put(store, [item], A, 100)
        assert store.put_many([item]) == [""]
        assert expire(store, 1 << 30) == (0, 0)
        assert store.leases.renew(B.deal, [item[0]], 200) == [1000]  # it is there, for good
        assert store.get(item[0]) == item[1]


def test_deleting_ends_a_lease_and_storing_again_begins_one(tmp_path):
    with opened(tmp_path / "s") as store:
        item = shard(1)
        put(store, [item], A, 100)
        assert store.delete_many(grant(A, [item[0]]), now=150) == [""]
        assert store.leases.next_end() is None
        assert store.leases.renew(A.deal, [item[0]], 900) == [0]  # doomed: a new Put alone revives it
        put(store, [item], A, 300)
        assert store.leases.next_end() == 300
        assert store.reap(1 << 30) == 0
        assert expire(store, 301) == (1, 1)


def test_a_damaged_shard_gets_its_lease_back(tmp_path):
    with opened(tmp_path / "s") as store:
        item = shard(1)
        put(store, [item], A, 100)
        place = store.locate(item[0])
        with (tmp_path / "s" / "shards" / f"shards-{place.segment:08d}.seg").open("r+b") as file:
            file.seek(place.offset)
            file.write(b"X")
        assert store.condemn(item[0], place)
        assert store.leases.next_end() is None
        assert store.leases.renew(A.deal, [item[0]], 500) == [0]
        put(store, [item], B, 400)
        assert store.leases.next_end() == 100  # of its first owner, who may not have noticed
        assert expire(store, 101) == (1, 0)
        assert store.leases.next_end() == 400


def test_leases_hold_over_compaction_and_restart(tmp_path):
    with opened(tmp_path / "s") as store:
        items = [shard(i, 50_000) for i in range(40)]
        put(store, items, A, 100)
        store.leases.renew(A.deal, [i for i, _ in items[:5]], 200)
        assert expire(store, 150) == (35, 35)
        while store.compact():
            pass
        assert store.used_bytes == 5 * 50_000
    with opened(tmp_path / "s") as store:
        assert store.leases.count_ends(150, 200, 201) == [0, 0, 5]
        assert all(store.get(i) == data for i, data in items[:5])
        assert expire(store, 201) == (5, 5)


def test_counting_ends(tmp_path, monkeypatch):
    with opened(tmp_path / "s") as store:
        for i in range(30):
            put(store, [shard(i)], A, 100 + i)
        assert store.leases.count_ends(100, 101, 110, 1000) == [0, 1, 10, 30]
        monkeypatch.setattr(shardleases, "ENDS_COUNTED", 7)
        assert store.leases.count_ends(110, 1000) == [7, 7]


@pytest.mark.parametrize("is_interrupted", [False, True])
def test_an_old_store_is_given_terms(tmp_path, monkeypatch, is_interrupted):
    """Rows of two releases: without owners (kept for good), and with claims but no terms."""
    monkeypatch.setattr(shardleases, "TERMS_STEP", 4)
    items = [shard(i) for i in range(15)]
    ids = [i for i, _ in items]
    with opened(tmp_path / "s") as store:
        put(store, items[:10], A, 0)
        store.put_many(items[10:])
        with store._env.write() as txn:
            txn.delete(b"terms", db=store._notes)
            for i in ids[:10]:
                row = Row.decode(txn.get(i, db=store._rows))
                place = PLACE.pack(row.place.segment, row.place.offset, row.place.length)
                old = place + STATE.pack(0, 0) + b"".join(struct.pack(">II", *c) for c in row.claims.items())
                txn.put(i, old, db=store._rows)
            for i in ids[10:]:
                row = Row.decode(txn.get(i, db=store._rows))
                txn.put(i, PLACE.pack(row.place.segment, row.place.offset, row.place.length), db=store._rows)
    store = opened(tmp_path / "s")
    try:
        assert all(store.get(i) == data for i, data in items)
        assert store.usage(A.deal)[0] == 10
        assert store.leases.next_end() is None
        put(store, [items[3]], A, 77)  # has a term of its own by now
        assert store.leases.give_terms(500)
        if is_interrupted:
            store.close()
            store = opened(tmp_path / "s")
        while store.leases.give_terms(600):
            pass
        assert not store.leases.give_terms(900)
        assert expire(store, 78) == (1, 1)
        assert store.leases.count_ends(500, 601)[1] == 9
        assert expire(store, 601) == (9, 9)
        assert store.has_many(ids) == (False,) * 10 + (True,) * 5
    finally:
        store.close()
