"""Segments: what was appended is read back, what failed is never named, what was synced is on the disk."""

from __future__ import annotations

import errno
import gc
import itertools
import os
import sys
import threading
from pathlib import Path

import pytest

from fsdecloud.errors import StoreCorrupt, StoreError, StoreFull
from fsdecloud.store.segments import RECORD_MAX, Location, SegmentStore

sys.path.insert(0, str(Path(__file__).parent))
from faults import FailingDisk


def test_records_come_back_in_any_order(tmp_path):
    with SegmentStore(tmp_path / "s", "staged") as store:
        records = [b"", b"a", bytes(range(256)) * 16, os.urandom(70000), bytearray(b"xyz"), memoryview(b"12345")[1:3]]
        one = [store.append(record) for record in records]
        many = store.append_many(records)
        store.sync()
        for record, location in reversed(list(zip(records * 2, one + many, strict=True))):
            assert store.read(location) == bytes(record)
        assert store.sizes() == {1: 2 * sum(len(r) for r in records)}
        assert oct(store.path(1).stat().st_mode & 0o777) == "0o600"


def test_rolls_past_the_segment_size_and_never_splits_a_record(tmp_path):
    with SegmentStore(tmp_path, "p", segment_size=1000) as store:
        locations = store.append_many([bytes([i]) * 300 for i in range(10)])
        assert [loc.segment for loc in locations] == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4]
        big = store.append(b"b" * 5000)
        assert (big.segment, big.offset) == (5, 0)
        assert store.append(b"c").segment == 6
        assert [store.read(loc)[:1] for loc in locations] == [bytes([i]) for i in range(10)]


def test_more_records_than_one_system_call_takes(tmp_path):
    with SegmentStore(tmp_path, "p") as store:
        records = [b"%d" % i for i in range(5000)]
        locations = store.append_many(records)
        assert [store.read(loc) for loc in locations] == records


def test_opened_again_it_starts_a_new_segment(tmp_path):
    with SegmentStore(tmp_path, "p") as store:
        first = store.append(b"one")
    with SegmentStore(tmp_path, "p") as store:
        second = store.append(b"two")
        assert (first.segment, second.segment) == (1, 2)
        assert store.read(first) == b"one"


def test_prefixes_do_not_mix(tmp_path):
    (tmp_path / "p-zzz.seg").touch()
    (tmp_path / "p-5").touch()
    with SegmentStore(tmp_path, "p") as a, SegmentStore(tmp_path, "p-x") as b:
        a.append(b"1")
        b.append(b"2")
        assert list(a.sizes()) == [1]
        assert list(b.sizes()) == [1]


def test_a_reader_follows_a_writer_of_another_process(tmp_path):
    reader = SegmentStore(tmp_path / "late", "p", create=False)
    assert reader.sizes() == {}
    with pytest.raises(StoreCorrupt, match="missing"):
        reader.read(Location(1, 0, 1))
    writer = SegmentStore(tmp_path / "late", "p")
    location = writer.append(b"hello")
    assert reader.read(location) == b"hello"
    with pytest.raises(StoreError, match="reading only"):
        reader.append(b"no")
    # The number means another file after a removal and a restart: the old descriptor may not answer for it.
    reader.remove(1)
    writer.close()
    writer = SegmentStore(tmp_path / "late", "p")
    assert writer.append(b"world") == location
    assert reader.read(location) == b"world"
    os.unlink(writer.path(1))
    with pytest.raises(StoreCorrupt):
        reader.read(location)


@pytest.mark.parametrize("bad", [(0, 0, 1), (1, -1, 1), (1, 0, -1), (1, 0, RECORD_MAX + 1), (1, 1 << 70, 1), (7, 0, 1)])
def test_20_a_damaged_location_is_refused(tmp_path, bad):
    with SegmentStore(tmp_path, "p") as store:
        store.append(b"x" * 10)
        with pytest.raises(StoreError):
            store.read(Location(*bad))


def test_20_a_cut_segment_is_noticed(tmp_path):
    with SegmentStore(tmp_path, "p") as store:
        location = store.append(b"x" * 10)
        os.truncate(store.path(1), 9)
        with pytest.raises(StoreCorrupt, match="ends before"):
            store.read(location)


def test_a_record_over_the_limit_is_refused(tmp_path):
    with SegmentStore(tmp_path, "p") as store:
        with pytest.raises(ValueError):
            store.append(bytes(RECORD_MAX + 1))
        assert store.append_many([]) == []


def test_adopt_takes_a_segment_over(tmp_path):
    with SegmentStore(tmp_path / "a", "staged") as staged, SegmentStore(tmp_path / "b", "kept") as kept:
        location = staged.append(b"data")
        before = kept.append(b"mine")
        assert staged.roll() == 2
        assert staged.roll() == 2
        number = kept.adopt(staged.path(1))
        assert staged.read(location) == b"data", "readers find it in both until the owner removes its name"
        staged.forget(1)
        staged.remove(1)
        assert number == 2
        assert kept.read(Location(number, location.offset, location.length)) == b"data"
        assert kept.append(b"next").segment == 3
        assert kept.read(before) == b"mine"
        with pytest.raises(StoreCorrupt):
            staged.read(location)
        with pytest.raises(FileNotFoundError):
            kept.adopt(staged.path(1))
        assert staged.append(b"x").segment == 2
        staged.sync()


def test_removing_the_current_segment_rolls(tmp_path):
    with SegmentStore(tmp_path, "p") as store:
        store.append(b"a")
        store.remove(1)
        store.remove(1)
        store.sync()
        assert store.append(b"b").segment == 2


def test_21_a_segment_removed_from_outside_is_an_error_at_sync(tmp_path):
    with SegmentStore(tmp_path, "p") as store:
        store.append(b"a")
        store.sync()
        os.unlink(store.path(1))
        assert store.append(b"b").segment == 2
        os.unlink(store.path(2))
        with pytest.raises(StoreError, match="removed"):
            store.sync()


def test_28_descriptors_are_bounded(tmp_path):
    gc.collect()  # what other tests left in cycles
    before = len(os.listdir("/proc/self/fd"))
    with SegmentStore(tmp_path, "p", segment_size=1) as store:
        locations = store.append_many([b"%d" % i for i in range(100)])
        store.sync()
        assert len(os.listdir("/proc/self/fd")) - before <= 33
        assert [store.read(loc) for loc in locations] == [b"%d" % i for i in range(100)]
        assert len(os.listdir("/proc/self/fd")) - before <= 33
    del store
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_47_who_shares_segments_keeps_no_removed_file_on_the_disk(tmp_path):
    """The driver removes what the agent has read, or fetched: the disk must have the space at once."""

    def open_files():
        names = (Path("/proc/self/fd") / fd for fd in os.listdir("/proc/self/fd"))
        return [name for path in names if path.is_symlink() and (name := os.readlink(path)).startswith(str(tmp_path))]

    with SegmentStore(tmp_path, "p", segment_size=1, is_shared=True) as writer:
        locations = writer.append_many([b"%d" % i for i in range(100)])
        assert open_files() == [str(writer.path(100))]
        with SegmentStore(tmp_path, "p", create=False, is_shared=True) as reader:
            assert [reader.read(loc) for loc in locations] == [b"%d" % i for i in range(100)]
            assert open_files() == [str(writer.path(100))]
            os.unlink(writer.path(50))
            with pytest.raises(StoreCorrupt):
                reader.read(locations[49])
    assert open_files() == []


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_13_14_15_nth_failure(tmp_path, code, persistent, short):
    """Whatever call fails: acknowledged records are there, the error has the right kind, and ENOSPC heals."""
    for n in range(1, 100):
        disk = FailingDisk(n, code, persistent=persistent, short=short)
        directory = tmp_path / str(n)
        store = SegmentStore(directory, "p", disk=disk, segment_size=4000)
        acknowledged = []
        sync_failed = False
        for i in range(6):
            batch = [bytes([i, j]) * 500 for j in range(3)]
            try:
                locations = store.append_many(batch)
            except StoreFull:
                assert code != errno.EIO
            except StoreError:
                assert code == errno.EIO or sync_failed
            else:
                acknowledged += zip(batch, locations, strict=True)
            try:
                store.sync()
            except StoreError:
                sync_failed = True
        hit = disk.was_hit
        disk.healed = True
        if sync_failed:
            with pytest.raises(StoreError, match="durable"):
                store.append(b"more")
            with pytest.raises(StoreError, match="durable"):
                store.sync()
        else:
            acknowledged.append((b"more", store.append(b"more")))
            store.sync()
        for record, location in acknowledged:
            assert store.read(location) == record
        store.close()
        with SegmentStore(directory, "p", segment_size=4000) as again:
            for record, location in acknowledged:
                assert again.read(location) == record
        if not hit:
            return
    raise AssertionError("the fault was still being hit")


def test_threads_append_and_sync_together(tmp_path):
    with SegmentStore(tmp_path, "p", segment_size=20000) as store:
        found: list = []

        def work(number: int) -> None:
            for i in range(200):
                record = b"%d-%d" % (number, i) * 10
                found.append((record, store.append(record)))
                if i % 20 == 0:
                    store.sync()

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 800
        for record, location in found:
            assert store.read(location) == record
        spans = sorted((loc.segment, loc.offset, loc.length) for _, loc in found)
        for (s, o, n), (s2, o2, _) in itertools.pairwise(spans):
            assert s2 > s or o2 >= o + n
