"""The clean cache: right bytes or none, a bounded size, and no damage that keeps it from starting."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys

import pytest

from fsdecloud.errors import StoreError, StoreFull
from fsdecloud.limits import KIB, MIB, SMALL_ENTRY
from fsdecloud.store import cache as module
from fsdecloud.store.cache import FETCHED, KEPT, CacheStore
from fsdecloud.store.environment import open_environment
from fsdecloud.store.segments import Location, SegmentStore
from fsdecloud.types import EntryId


def entry(number: int) -> EntryId:
    return EntryId(number.to_bytes(32, "big"))


def body(number: int, size: int) -> bytes:
    return random.Random(number).randbytes(size)


def open_cache(path, boot="boot-1", **options) -> CacheStore:
    return CacheStore(path, boot=lambda: boot, **options)


def fill(path) -> None:
    """A cache with small entry 1, fetched entry 2, kept entries 3 (large) and 4 (small)."""
    with open_cache(path) as cache, SegmentStore(cache.segment_directory, FETCHED) as agent:
        cache.put_small([(entry(1), body(1, 100))])
        cache.put_located([(entry(2), FETCHED, agent.append(body(2, 50000)))])
        staged = SegmentStore(path / "staged", "staged")
        places = [(entry(3), staged.append(body(3, 70000))), (entry(4), staged.append(body(4, 500)))]
        staged.roll()
        cache.adopt(staged.path(1), places)
        staged.forget(1)
        staged.remove(1)


def test_what_was_put_is_found(tmp_path):
    fill(tmp_path)
    assert list((tmp_path / "staged").iterdir()) == []
    with open_cache(tmp_path, boot="boot-2") as cache:  # closed cleanly: another boot is no matter
        assert cache.get_small(entry(1)) == cache.read(entry(1)) == body(1, 100)
        assert cache.get_small(entry(2)) is None
        assert cache.read(entry(2)) == body(2, 50000)
        assert cache.read(entry(3)) == body(3, 70000)
        assert cache.get_small(entry(4)) == body(4, 500)
        assert cache.get_small(entry(5)) is None
        assert cache.read(entry(5)) is None
        assert [cache.has(entry(i)) for i in range(1, 6)] == [True, True, True, True, False]
        assert cache.locate(entry(1)) is None
        assert cache.locate(entry(2)) == (FETCHED, Location(1, 0, 50000))
        assert cache.locate(entry(3)) == (KEPT, Location(1, 0, 70000))
        statistics = cache.statistics()
        assert (statistics.small_entries, statistics.large_entries, statistics.segment_bytes) == (1, 3, 120500)
        assert (statistics.hits, statistics.misses) == (5, 3)


def test_removed_is_gone(tmp_path):
    fill(tmp_path)
    with open_cache(tmp_path) as cache:
        for number in range(1, 7):
            cache.remove(entry(number))
            assert not cache.has(entry(number))
            assert cache.read(entry(number)) is None
        with cache._env.read() as txn:
            assert txn.stat(cache._segment)["entries"] == 0


@pytest.mark.parametrize("how", ["missing", "cut"])
def test_20_a_lost_segment_is_a_miss(tmp_path, how):
    fill(tmp_path)
    with open_cache(tmp_path) as cache:
        path = cache.fetched.path(1)
        if how == "missing":
            path.unlink()
        else:
            os.truncate(path, 10)
        assert cache.read(entry(2)) is None
        assert not cache.has(entry(2))
        assert cache.read(entry(3)) is not None


def test_2_the_directory_may_be_deleted_between_runs(tmp_path):
    fill(tmp_path / "c")
    shutil.rmtree(tmp_path / "c")
    with open_cache(tmp_path / "c") as cache:
        assert cache.read(entry(1)) is None
        cache.put_small([(entry(1), b"x")])
        assert cache.get_small(entry(1)) == b"x"


def test_21_the_directory_may_be_deleted_while_it_is_open(tmp_path):
    fill(tmp_path / "c")
    with open_cache(tmp_path / "c") as cache:
        shutil.rmtree(tmp_path / "c")
        assert cache.read(entry(2)) is None
        cache.put_small([(entry(9), b"x")])
        assert cache.used_bytes > 0
        assert cache.evict(0) >= 0
        with pytest.raises(OSError):
            cache.adopt(tmp_path / "nothing", [])
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("size", [0, 1, 2039, 2040, 2041, 4080, 4096, SMALL_ENTRY])
def test_42_value_sizes(tmp_path, size):
    with open_cache(tmp_path) as cache:
        cache.put_small([(entry(1), bytes(size))])
        assert cache.get_small(entry(1)) == bytes(size)


@pytest.mark.parametrize("damage", ["cut", "zeroed", "random", "pages", "removed", "format"])
def test_20_a_damaged_index_starts_empty(tmp_path, damage):
    fill(tmp_path)
    data = tmp_path / "index" / "data.mdb"
    size = data.stat().st_size
    if damage == "cut":
        os.truncate(data, size // 2)
    elif damage == "zeroed":
        data.write_bytes(bytes(size))
    elif damage == "random":
        data.write_bytes(os.urandom(size))
    elif damage == "pages":
        data.write_bytes(data.read_bytes()[:8192] + os.urandom(size - 8192))
    elif damage == "removed":
        data.unlink()
    else:
        (tmp_path / "index" / "format").write_bytes(b"fsdecloud 99\n")
    with open_cache(tmp_path) as cache:
        assert cache.read(entry(1)) is None
        assert cache.read(entry(3)) is None
        assert cache.kept.sizes() == {}
        cache.put_small([(entry(1), b"new")])
    with open_cache(tmp_path) as cache:
        assert cache.read(entry(1)) == b"new"


def test_a_row_that_makes_no_sense_is_a_miss(tmp_path):
    fill(tmp_path)
    with open_environment(tmp_path / "index", 1 << 30, 12) as env:
        large = env.database(b"large")
        with env.write() as txn:
            txn.put(entry(2), b"\xff", db=large)
    with open_cache(tmp_path) as cache:
        assert cache.read(entry(2)) is None
        cache.put_located([(entry(2), FETCHED, Location(1, 0, 50000))])
        assert cache.read(entry(2)) == body(2, 50000)


def test_11_an_index_of_another_boot_is_thrown_away(tmp_path):
    """The index is not synced: after a crash of the system nobody knows what the disk has of it."""
    cache = open_cache(tmp_path / "a")
    cache.put_small([(entry(1), b"x")])
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    shutil.copytree(tmp_path / "a", tmp_path / "d")
    cache.close()
    with open_cache(tmp_path / "b") as same_boot:
        assert same_boot.get_small(entry(1)) == b"x"
    with open_cache(tmp_path / "c", boot="boot-2") as other_boot:
        assert other_boot.get_small(entry(1)) is None
    with open_cache(tmp_path / "d", boot="") as unknown_boot:
        assert unknown_boot.get_small(entry(1)) is None


def test_the_boot_of_this_system_is_found(tmp_path):
    assert len(module._read_boot()) == 36
    CacheStore(tmp_path).close()


def test_the_oldest_segments_leave_and_hot_entries_stay(tmp_path, monkeypatch):
    with (
        open_cache(tmp_path, segment_size=MIB) as cache,
        SegmentStore(cache.segment_directory, FETCHED, segment_size=MIB) as agent,
    ):
        for number in range(64):  # 8 segments of 8 entries
            cache.put_located([(entry(number), FETCHED, agent.append(body(number, 128 * KIB)))])
        for number, path in enumerate(sorted(cache.segment_directory.iterdir())):
            os.utime(path, (number, number))
        assert len(agent.sizes()) == 8
        cache.read(entry(3))
        cache.read(entry(4))
        cache.read(entry(5))  # a quarter of a segment, two entries, is copied at most
        freed = cache.evict(6 * MIB, keep_segments=[(FETCHED, 2)])
        assert freed >= 2 * MIB
        assert cache.used_bytes <= 6 * MIB
        assert 1 not in agent.sizes()
        assert 2 in agent.sizes()
        assert cache.locate(entry(3))[0] == cache.locate(entry(4))[0] == KEPT
        assert cache.read(entry(3)) == body(3, 128 * KIB)
        assert [cache.has(entry(number)) for number in (0, 5, 16)] == [False] * 3
        assert cache.read(entry(63)) == body(63, 128 * KIB)
        # Whatever the limit, the agent's newest segments stay: it appends to one of them.
        cache.evict(0)
        assert list(agent.sizes()) == [7, 8]
        assert cache.read(entry(63)) == body(63, 128 * KIB)
        assert cache.evict(1 << 30) == 0
        # Nothing is left behind in the index.
        with cache._env.read() as txn:
            assert txn.stat(cache._segment)["entries"] == txn.stat(cache._large)["entries"]
        # A full disk counts like a full cache.
        monkeypatch.setattr(cache, "_free_bytes", lambda: 0)
        cache.kept.append(b"x")
        assert cache.evict(1 << 30) > 0
        assert cache.kept.sizes() == {}


def test_generations_drop_what_nobody_reads(tmp_path):
    with open_cache(tmp_path, limit=2 * MIB) as cache:
        for start in range(0, 2000, 20):
            cache.put_small([(entry(number), body(number, 3000)) for number in range(start, start + 20)])
            assert cache.get_small(entry(7)) == body(7, 3000)  # hot: survives every rotation
        assert not cache.has(entry(30))
        assert cache.has(entry(1999))
        assert cache.statistics().small_bytes <= 1.3 * MIB
        # A smaller limit empties more of them.
        assert cache.evict(MIB // 2) > 0
        assert cache.statistics().small_bytes <= MIB // 4
        assert cache.has(entry(1999))
    # The file cannot shrink while it is open, so the next start begins anew.
    with open_cache(tmp_path, limit=MIB // 2) as cache:
        assert cache.statistics().small_entries == 0
        assert cache.used_bytes < MIB // 2


def test_35_a_full_map_makes_room(tmp_path):
    with open_cache(tmp_path, map_size=2 * MIB, limit=64 * MIB) as cache:
        for start in range(0, 1000, 10):
            cache.put_small([(entry(number), body(number, 4000)) for number in range(start, start + 10)])
        assert cache.get_small(entry(999)) == body(999, 4000)
        with pytest.raises(StoreFull):
            cache.put_small([(entry(number), bytes(16000)) for number in range(1000)])
        assert cache.get_small(entry(998)) in (None, body(998, 4000))
        cache.put_small([(entry(1), b"x")])
        assert cache.get_small(entry(1)) == b"x"


def test_a_second_cache_on_the_directory_is_refused(tmp_path):
    with open_cache(tmp_path), pytest.raises(StoreError):
        open_cache(tmp_path)


def test_43_churn_stays_bounded(tmp_path):
    """Ten times the limit through it: its size stays bounded, and it never answers wrong bytes."""
    limit = 8 * MIB
    chance = random.Random(5)
    blob = random.Random(0).randbytes(2 * MIB)
    sizes: dict[int, int] = {}
    through = number = 0
    peak = 0

    def expected(n: int) -> bytes:
        start = n * 7919 % (len(blob) - 300 * KIB)
        return blob[start : start + sizes[n]]

    with (
        open_cache(tmp_path, limit=limit, segment_size=MIB) as cache,
        SegmentStore(cache.segment_directory, FETCHED, segment_size=MIB) as agent,
    ):
        while through < 10 * limit:
            small, located = [], []
            for _ in range(20):
                number += 1
                sizes[number] = chance.choice([0, 60, 500, 2040, 2041, 4080, 9000, SMALL_ENTRY, 40 * KIB, 260 * KIB])
                data = expected(number)
                through += len(data)
                if len(data) <= SMALL_ENTRY:
                    small.append((entry(number), data))
                else:
                    located.append((entry(number), FETCHED, agent.append(data)))
            cache.put_small(small)
            cache.put_located(located)
            if cache.used_bytes > limit:
                cache.evict(limit)
            peak = max(peak, cache.used_bytes)
            for _ in range(20):
                wanted = chance.randrange(1, number + 1)
                found = cache.read(entry(wanted))
                assert found is None or found == expected(wanted)
        statistics = cache.statistics()
        assert statistics.hits > 100
        assert statistics.index_bytes < limit
        assert peak <= limit + 3 * MIB  # the agent's two newest segments are not dropped


CHILD = """
import os, sys
from pathlib import Path
from fsdecloud.store.cache import CacheStore
cache = CacheStore(Path(sys.argv[1]), limit=1 << 20)
number = int(sys.argv[2])
while True:
    number += 1
    cache.put_small([(number.to_bytes(32, "big"), number.to_bytes(8, "big") * 200)])
    if number % 50 == 0:
        cache.evict(1 << 20)
    os.write(1, b"%d\\n" % number)
"""


def test_1_killed_while_writing(tmp_path):
    """kill -9: what was put just before is there, for the kernel has it."""
    chance = random.Random(11)
    number = 0
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path), str(number)], stdout=subprocess.PIPE
        ) as child:
            for _ in range(chance.randrange(50, 500)):
                number = int(child.stdout.readline())
            os.kill(child.pid, signal.SIGKILL)
            rest = child.stdout.read().split(b"\n")
            number = max([number, *(int(line) for line in rest[:-1])])
        with CacheStore(tmp_path, limit=1 << 20) as cache:
            assert cache.get_small(entry(number)) == number.to_bytes(8, "big") * 200
    assert number > 3
