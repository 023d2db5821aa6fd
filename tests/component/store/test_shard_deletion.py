"""A peer's shard store lets go of what no owner wants any more, gives its space back, and never loses anything else."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import blake3
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fsdecloud.errors import SealError, StoreError, StoreFull
from fsdecloud.store import shards as module
from fsdecloud.store.environment import open_environment
from fsdecloud.store.shardrows import Claim, Deletion
from fsdecloud.store.shards import ShardStore

MAP = 1 << 28
A, B = Claim(b"a" * 32, b"A" * 32), Claim(b"b" * 32, b"B" * 32)
_nonces = itertools.count()


def shard(i, size=1000):
    data = (b"%08d" % i).ljust(size, b"s")
    return blake3.blake3(data).digest(), data


def open_store(path, **options):
    return ShardStore(path, options.pop("quota", 1 << 30), reserve=0, map_size=MAP, **options)


def put(store, items, claim=A, now=10):
    assert store.put_many(items, [claim] * len(items), now=now) == [""] * len(items)


def grant(ids, claim=A, time=20, expires=1000):
    return Deletion(claim.deal, next(_nonces).to_bytes(32, "big"), time, expires, list(ids))


def delete(store, ids, claim=A, now=30, **more):
    return store.delete_many(grant(ids, claim, **more), now=now)


def compact(store):
    while store.compact():
        pass


def files(path):
    return sum(file.stat().st_size for file in (path / "shards").glob("*.seg"))


def test_a_deleted_shard_stays_for_the_grace_period_and_is_gone_after(tmp_path):
    items = [shard(i) for i in range(10)]
    with open_store(tmp_path / "p") as store:
        put(store, items)
        assert store.owner(A.deal) == A.owner
        assert delete(store, [i for i, _ in items[:9]] + [bytes(32)], now=30) == [""] * 10
        assert (store.counts()[0], store.doomed_count(), store.next_doomed()) == (10, 9, 30)
        assert store.get(items[0][0]) == items[0][1]
        assert store.reap(30) == 0
        assert store.reap(31) == 9
        assert (store.counts(), store.doomed_count(), store.next_doomed()) == ((1, 1000), 0, None)
        with pytest.raises(KeyError):
            store.get(items[0][0])
        compact(store)
        assert store.get(items[9][0]) == items[9][1]
        assert files(tmp_path / "p") == store.used_bytes == 1000
    with open_store(tmp_path / "p") as store:
        assert store.get(items[9][0]) == items[9][1]
        assert delete(store, [items[9][0]]) == [""]
        assert store.reap(1 << 31) == 1
        compact(store)
        assert files(tmp_path / "p") == store.used_bytes == 0
        put(store, items)  # and it works as before
        assert store.counts() == (10, 10_000)


def test_nobody_deletes_what_somebody_else_stored_as_well(tmp_path):
    ours, common = shard(1), shard(2)
    with open_store(tmp_path / "p") as store:
        put(store, [ours, common], A)
        put(store, [common], B)
        assert delete(store, [ours[0], common[0]], B) == ["", ""]  # B has no claim on `ours`, and gives up its own
        assert store.doomed_count() == 0
        put(store, [common], B)
        assert delete(store, [common[0]], A) == [""]
        assert store.doomed_count() == 0  # B's is left
        assert delete(store, [common[0]], B) == [""]
        assert store.doomed_count() == 1
        assert store.get(ours[0]) == ours[1]


def test_storing_again_revives_and_a_grant_made_before_cannot_undo_that(tmp_path):
    item = shard(1)
    with open_store(tmp_path / "p") as store:
        put(store, [item], now=10)
        held_back = grant([item[0]], time=20)
        assert delete(store, [item[0]], time=21, now=30) == [""]
        put(store, [item], now=40)
        assert (store.doomed_count(), store.reap(1 << 31)) == (0, 0)
        assert store.delete_many(held_back, now=50) == ["stored again since the grant was made"]
        assert (store.doomed_count(), store.reap(1 << 31)) == (0, 0)
        assert store.get(item[0]) == item[1]


def test_a_grant_is_used_once_also_after_a_restart(tmp_path):
    item = shard(1)
    used = grant([item[0]], time=20, expires=100)
    with open_store(tmp_path / "p") as store:
        put(store, [item])
        assert store.delete_many(used, now=30) == [""]
    with open_store(tmp_path / "p") as store:
        put(store, [item], now=15)  # a clock that was set back
        with pytest.raises(SealError, match="used already"):
            store.delete_many(used, now=31)
        assert store.doomed_count() == 0
        delete(store, [item[0]], now=100)  # expired ones are forgotten: nobody asks the store about them any more
        assert store._env.read().__enter__().stat(store._grants)["entries"] == 1


def test_the_first_owner_of_a_deal_is_bound(tmp_path):
    with open_store(tmp_path / "p") as store:
        assert store.owner(A.deal) == b""
        put(store, [shard(1)], Claim(A.deal, b""))
        assert store.owner(A.deal) == b""
        put(store, [shard(2)], A)
        put(store, [shard(3)], Claim(A.deal, b"other" + bytes(27)))
        assert store.owner(A.deal) == A.owner
    with open_store(tmp_path / "p") as store:
        assert store.owner(A.deal) == A.owner


def test_what_an_older_release_stored_is_read_and_never_deleted(tmp_path):
    old, new = shard(1), shard(2, 3000)
    with open_store(tmp_path / "p") as store:
        put(store, [old, new])
    env = open_environment(tmp_path / "p" / "index", MAP)
    rows = env.database(b"shards")
    with env.write() as txn:
        txn.put(old[0], txn.get(old[0], db=rows)[:20], db=rows)
    env.close()
    with open_store(tmp_path / "p") as store:
        assert store.get(old[0]) == old[1]
        assert delete(store, [old[0], new[0]]) == ["stored before owners were noted", ""]
        put(store, [old], now=40)
        assert delete(store, [old[0]], time=50, now=60) == [""]  # our claim is gone, the unknown owner's is not
        assert store.reap(1 << 31) == 1
        compact(store)
        assert store.get(old[0]) == old[1]
        assert files(tmp_path / "p") == 1000


def test_a_shard_of_very_many_owners_is_kept(tmp_path):
    item = shard(1)
    claims = [Claim(i.to_bytes(32, "big"), b"o" * 32) for i in range(1, module.CLAIMS_MAX + 2)]
    with open_store(tmp_path / "p") as store:
        for claim in claims:
            put(store, [item], claim)
        for claim in claims:
            delete(store, [item[0]], claim)
        assert store.reap(1 << 31) == 0
        assert store.get(item[0]) == item[1]


def test_readers_go_on_while_segments_are_compacted(tmp_path):
    kept = [shard(i, 20_000) for i in range(0, 400, 4)]
    gone = [shard(i, 20_000) for i in range(400) if i % 4]
    with open_store(tmp_path / "p") as store:
        put(store, sorted(kept + gone, key=lambda item: item[1]))
        delete(store, [i for i, _ in gone])
        while store.reap(1 << 31):
            pass
        problems, rounds, stop = [], [], threading.Event()

        def read():
            while not stop.wait(0.0002):  # without a pause two readers can keep the interpreter to themselves
                for i, data in kept:
                    try:
                        if store.get(i) != data or store.get(i, 7, 5) != data[7:12]:
                            problems.append(i)
                    except (StoreError, KeyError) as exc:
                        problems.append(exc)
                rounds.append(1)

        readers = [threading.Thread(target=read) for _ in range(2)]
        for reader in readers:
            reader.start()
        try:
            for _ in range(5):
                compact(store)
                live = files(tmp_path / "p")
                assert live == store.used_bytes == sum(len(d) for _, d in kept)
                # Make the live ones scattered again.
                put(store, gone, now=40)
                store._segments.roll()
                delete(store, [i for i, _ in gone], time=50)
                while store.reap(1 << 31):
                    pass
                while len(rounds) % 2 == 0 and not problems:
                    pass
        finally:
            stop.set()
            for reader in readers:
                reader.join()
        assert not problems
        assert rounds


def test_fault_57_space_that_was_freed_is_taken_again(tmp_path):
    quota = 20 * (1000 + module.ROW_COST)
    with open_store(tmp_path / "p", quota=quota) as store:
        first = [shard(i) for i in range(20)]
        put(store, first)
        second = [shard(i) for i in range(100, 120)]
        assert "full" in store.put_many(second, [A] * 20)
        delete(store, [i for i, _ in first + second])
        while store.reap(1 << 31):
            pass
        compact(store)
        assert store.free_bytes() == quota
        put(store, second, now=40)


def test_fault_13_compaction_goes_on_once_there_is_room_again(tmp_path, monkeypatch):
    items = [shard(i) for i in range(30)]
    with open_store(tmp_path / "p") as store:
        put(store, items)
        delete(store, [i for i, _ in items[:20]])
        store.reap(1 << 31)
        append = store._append
        full = iter([True])

        def append_if_there_is_room(records):
            if next(full, False):
                raise StoreFull("no space left on device")
            return append(records)

        monkeypatch.setattr(store, "_append", append_if_there_is_room)
        with pytest.raises(StoreFull):
            compact(store)
        compact(store)
        assert files(tmp_path / "p") == 10_000
        assert [store.get(i) for i, _ in items[20:]] == [d for _, d in items[20:]]


def test_a_damaged_segment_is_left_alone(tmp_path):
    items = [shard(i) for i in range(10)]
    with open_store(tmp_path / "p") as store:
        put(store, items)
        delete(store, [i for i, _ in items[:8]])
        store.reap(1 << 31)
        (file,) = (tmp_path / "p" / "shards").glob("*.seg")
        os.truncate(file, 9500)  # the last one lies past the end now
        store._segments.forget(1)
        compact(store)
        assert store.get(items[8][0]) == items[8][1]
        with pytest.raises(StoreError):
            store.get(items[9][0])
        assert not store.compact()  # once is enough
        put(store, items[9:], now=40)  # the repair
        assert store.get(items[9][0]) == items[9][1]
    with open_store(tmp_path / "p") as store:
        compact(store)
        assert [store.get(i) for i, _ in items[8:]] == [d for _, d in items[8:]]
        assert files(tmp_path / "p") == 2000


class Crash(Exception):
    """The process ends here."""


class Steps:
    """Counts everything that reaches the disk, and ends the process before the n-th."""

    def __init__(self, crash_at):
        self.left = crash_at

    def __call__(self, function):
        def step(*args, **options):
            self.left -= 1
            if self.left == 0:
                raise Crash
            return function(*args, **options)

        return step

    def __getattr__(self, name):  # as `disk`
        return self(getattr(os, name))


def crashing(path, n):
    steps = Steps(n)
    store = open_store(path, disk=steps)
    store._env.write = steps(store._env.write)
    store._segments.remove = steps(store._segments.remove)
    return store


@pytest.mark.parametrize("kind", ["crash", "committed"])
def test_fault_1_killed_at_any_step_of_deleting_and_compacting(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(module, "COMPACT_STEP", 2500)
    monkeypatch.setattr(module, "SCAN_STEP", 7)
    items = [shard(i) for i in range(24)]
    kept, gone = items[::3], [i for n, (i, _) in enumerate(items) if n % 3]
    origin = tmp_path / "origin"
    with open_store(origin) as store:
        for i in range(0, 24, 2):
            put(store, [items[i]], now=5)
            put(store, [items[i + 1]], now=5)
            if i % 8 == 6:
                store._segments.roll()
    for n in range(1, 100):
        path = tmp_path / f"{n}"
        shutil.copytree(origin, path)
        store = crashing(path, n)
        done = False
        try:
            delete(store, gone)
            store.reap(1 << 31)
            compact(store)
            done = True
        except Crash:
            pass
        finally:
            store.close()
        if kind == "committed":  # and the machine goes down while the next process tidies up
            store = crashing(path, 2)
            try:
                compact(store)
            except Crash:
                pass
            finally:
                store.close()
        with open_store(path) as store:
            for i, data in kept:
                assert store.get(i) == data
            delete(store, gone, time=40)
            store.reap(1 << 31)
            compact(store)
            for i, data in kept:
                assert store.get(i) == data
            assert store.counts() == (8, 8000)
            assert 8000 <= files(path) == store.used_bytes <= 16_000
        if done:
            assert n > 10
            return
    raise AssertionError("never got through")


CHURN = """
import sys, blake3
from pathlib import Path
from fsdecloud.store import shards as module
from fsdecloud.store.shardrows import Claim, Deletion
from fsdecloud.store.shards import ShardStore
module.COMPACT_STEP = 50_000
store = ShardStore(Path(sys.argv[1]), 1 << 30, reserve=0, map_size=1 << 28)
claim, base = Claim(b"a" * 32, b"A" * 32), int(sys.argv[2])
for i in range(base, base + 10**6):
    batch = []
    for j in range(8):
        data = (b"%08d-%d" % (i, j)).ljust(9000, b"k")
        batch.append((blake3.blake3(data).digest(), data))
    assert store.put_many(batch, [claim] * 8, now=i) == [""] * 8
    sys.stdout.write(batch[0][0].hex() + "\\n"); sys.stdout.flush()
    grant = Deletion(claim.deal, i.to_bytes(32, "big"), i, i + 10**6, [s for s, _ in batch[1:]])
    assert store.delete_many(grant, now=i) == [""] * 7
    store.reap(i)
    if i % 5 == 0:
        store._segments.roll()
    store.compact()
"""


def test_fault_1_killed_while_it_deletes_it_keeps_what_nobody_deleted(tmp_path):
    path, kept = tmp_path / "p", []
    for round_ in range(3):
        command = [sys.executable, "-c", CHURN, str(path), str(1000 + 10_000 * round_)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        for _ in range(25 + 15 * round_):
            kept.append(bytes.fromhex(process.stdout.readline()))
        process.send_signal(signal.SIGKILL)
        kept += [bytes.fromhex(line) for line in process.stdout if len(line) == 65]
        process.wait()
        process.stdout.close()
        with open_store(path) as store:
            for i in kept:
                assert blake3.blake3(store.get(i)).digest() == i
    with open_store(path) as store:
        store.reap(1 << 31)
        compact(store)
        assert len(kept) <= store.counts()[0] <= len(kept) + 3 * 8
        assert files(path) <= 2 * store.counts()[1]
        for i in kept:
            assert blake3.blake3(store.get(i)).digest() == i


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.lists(st.integers(0, 15), min_size=1, max_size=6), st.sampled_from("ab")),
        st.tuples(st.just("delete"), st.lists(st.integers(0, 15), min_size=1, max_size=6), st.sampled_from("ab")),
        st.tuples(st.sampled_from(["reap", "compact", "step", "reopen", "roll"])),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS)
def test_any_history_keeps_what_has_an_owner_and_nothing_else(steps):
    deals = {"a": A, "b": B}
    owners, doomed = {}, {}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "p"
        store = open_store(path)
        try:
            for now, step in enumerate(steps, 10):
                if step[0] == "put":
                    put(store, [shard(i) for i in step[1]], deals[step[2]], now=now)
                    for i in step[1]:
                        owners.setdefault(i, set()).add(step[2])
                        doomed.pop(i, None)
                elif step[0] == "delete":
                    delete(store, [shard(i)[0] for i in step[1]], deals[step[2]], time=now, now=now)
                    for i in step[1]:
                        if owners.get(i) == {step[2]}:
                            doomed[i] = now
                        owners.get(i, set()).discard(step[2])
                elif step[0] == "reap":
                    store.reap(now - 3)
                    for i in [i for i, at in doomed.items() if at < now - 3]:
                        del owners[i], doomed[i]
                elif step[0] == "compact":
                    compact(store)
                elif step[0] == "step":
                    store.compact()
                elif step[0] == "roll":
                    store._segments.roll()
                else:
                    store.close()
                    store = open_store(path)
                assert store.counts()[0] == len(owners)
                assert store.doomed_count() == len(doomed)
                for name, claim in deals.items():
                    assert store.usage(claim.deal)[0] == sum(name in who for who in owners.values())
            for i in range(16):
                assert store.locate(shard(i)[0]) is not None if i in owners else True
                if i in owners:
                    assert store.get(shard(i)[0]) == shard(i)[1]
            store.reap(1 << 31)
            compact(store)
            live = [i for i, who in owners.items() if who]
            assert store.counts() == (len(live), 1000 * len(live))
            assert files(path) <= 2 * 1000 * len(live)
        finally:
            store.close()
