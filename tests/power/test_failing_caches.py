"""A cache is a convenience: whatever call of it fails, nothing wrong is ever returned, and it comes back."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from unittest import mock

import pytest
from blake3 import blake3

from fsdecloud.agent import fetch
from fsdecloud.agent.fetch import Fetcher
from fsdecloud.errors import StoreError
from fsdecloud.limits import SMALL_ENTRY
from fsdecloud.store.cache import FETCHED, CacheStore
from fsdecloud.store.segments import Location, SegmentStore
from fsdecloud.types import EntryId
from tests.power.failing import each_fault, each_fault_in_time, failures, open_below

KIB = 1 << 10


def sealed(number: int, size: int) -> tuple[EntryId, bytes]:
    data = number.to_bytes(4, "big") * (size // 4)
    return EntryId(blake3(data).digest()), data


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level(logging.CRITICAL)


@each_fault
def test_fault_013_014_015_fetched_segments(scratch, fault):
    """The agent's answer holds the entry itself when it cannot be appended; what it says lies in a segment, lies there."""
    for disk in failures(scratch, fault):
        path = scratch / str(disk._n)
        with SegmentStore(path, FETCHED, segment_size=50 * KIB) as segments:
            fetcher = Fetcher(book=mock.Mock(), hosts=mock.Mock(), cache=segments, locate=mock.Mock())
            given = []
            # Only the faults of the disk itself count here, not how full the machine's is.
            with mock.patch.object(fetch, "STAGE_RESERVE", 0):
                with disk.installed():
                    for number in range(8):
                        _entry, data = sealed(number, SMALL_ENTRY + 4 * KIB)
                        given.append((data, fetcher._append(data)))
                _entry, data = sealed(99, SMALL_ENTRY + 4 * KIB)
                given.append((data, fetcher._append(data)))
            assert not given[-1][1].data, "the disk works again, and so does the cache"
            assert sum(bool(answer.data) for _data, answer in given) <= max(1, len(disk.failed)), disk.failed
        # The driver reads them with a store of its own.
        with SegmentStore(path, FETCHED, create=False) as reader:
            for data, answer in given:
                place = Location(answer.segment, answer.offset, answer.length)
                assert (answer.data or reader.read(place)) == data, disk.failed
        assert not open_below(scratch), disk.failed


@each_fault_in_time
def test_fault_013_014_015_putting_adopting_and_evicting(scratch, fault):
    """Each step may fail with a StoreError (adopting with an OSError); what the cache then answers is right or nothing."""
    small = [sealed(number, 2 * KIB) for number in range(8)]
    large = [sealed(number, 40 * KIB) for number in range(100, 108)]
    for disk in failures(scratch, fault, most=1000):
        path = scratch / str(disk._n)
        staged = SegmentStore(path / "staged", "staged", segment_size=100 * KIB)
        places = [(entry, staged.append(data)) for entry, data in large]
        staged.sync()
        with disk.installed():
            for _ in range(2):  # made, and opened again
                with (
                    suppress(StoreError),
                    CacheStore(path / "cache", boot=lambda: "b", segment_size=100 * KIB) as cache,
                ):
                    use(cache, staged, small, places)
                    check(cache, small + large)
        with CacheStore(path / "cache", boot=lambda: "b", segment_size=100 * KIB) as cache:
            check(cache, small + large)
            cache.put_small(small[:3])
            assert [cache.get_small(entry) for entry, _data in small[:3]] == [data for _entry, data in small[:3]]
            cache.evict(0)
        assert [staged.read(place) for _entry, place in places] == [data for _entry, data in large], "not the cache's"
        staged.close()
        del cache, staged
        assert not open_below(scratch), disk.failed


def use(cache: CacheStore, staged: SegmentStore, small: list, places: list) -> None:
    """Do everything that writes; what fails is left out."""
    with suppress(StoreError):
        cache.put_small(small)
    for number in sorted({place.segment for _entry, place in places}):
        inside = [(entry, place) for entry, place in places if place.segment == number]
        with suppress(StoreError, OSError):
            cache.adopt(staged.path(number), inside)
    for entry, _place in places[::3]:
        cache.read(entry)  # hot: copied forward
    cache.remove(places[0][0])
    with suppress(StoreError):
        cache.evict(cache.used_bytes - 150 * KIB)
    with suppress(StoreError):
        cache.put_small(small[::-1])


def check(cache: CacheStore, entries: list) -> None:
    """Nothing wrong is answered."""
    for entry, data in entries:
        assert cache.read(entry) in (None, data)
        assert cache.get_small(entry) in (None, data)
    assert os.path.isdir(cache.segment_directory)
