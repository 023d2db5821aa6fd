"""Sets of shards: one root for one content, sums that hold, pages of bounded size, changes that cost what changes."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsdecloud.crypto import shardset
from fsdecloud.crypto.shardset import (
    EMPTY,
    HEIGHT_MAX,
    LENGTH_MAX,
    PAGE_SHARDS,
    SetDamaged,
    length_of,
    shards_of,
    update,
)
from fsdecloud.errors import MalformedError
from fsdecloud.types import ShardId
from tests.unit.crypto.shardsets import Holder, naive_set


def ids(seed, count, prefix=b""):
    rng = random.Random(seed)
    return [ShardId(prefix + rng.randbytes(32 - len(prefix))) for _ in range(count)]


# Few different first bytes, so that small sets have deep and crowded places.
ID = st.tuples(st.sampled_from([b"", b"\x00", b"\xab\xcd", b"\xab\xce\x12\x34\x56"]), st.integers(0, 250)).map(
    lambda t: ids(t[1], 1, t[0])[0]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(ID, st.none() | st.integers(1, 5000), max_size=120), max_size=6), st.randoms())
def test_the_root_is_the_contents_whatever_the_history(batches, rng):
    holder, contents = Holder(), {}
    for batch in batches:
        holder.change(batch)
        contents |= batch
        contents = {shard: length for shard, length in contents.items() if length is not None}
        assert holder.set == naive_set(contents)
        assert list(shards_of(holder.get)) == sorted(contents.items())
    other, order = Holder(), list(contents.items())
    rng.shuffle(order)
    while order:
        other.change(dict(order[:37]))
        del order[:37]
    assert other.set == holder.set
    assert other.pages == holder.pages
    ordered = sorted(contents.items())
    for at, (shard, length) in enumerate(ordered):
        assert length_of(holder.get, shard) == length
        assert list(shards_of(holder.get, shard)) == ordered[at + 1 :]
    for between in (b"\x80", b"\xab", b"\xab\xcd", b"\xff" * 32):
        assert list(shards_of(holder.get, between)) == [item for item in ordered if item[0] > between]
    holder.change(dict.fromkeys(contents))
    assert (holder.set, holder.pages) == (EMPTY, {})


def test_the_root_commits_to_counts_and_bytes():
    one, two = ids(1, 2)
    roots = {
        naive_set(shards).root
        for shards in ({}, {one: 5}, {one: 6}, {one: 1025}, {two: 5}, {one: 5, two: 5}, {one: 4, two: 6})
    }
    assert len(roots) == 7
    assert shardset.root_hash(bytes(32), 0, 0, 0) == EMPTY.root
    whole = naive_set({one: 5, two: 1025})
    assert (whole.leaves, whole.shards, whole.size) == (3, 2, 1030)
    for wrong in ((2, 2, 1030), (3, 3, 1030), (3, 2, 1031)):
        assert shardset.root_hash(whole.tree, *wrong) != whole.root


def test_the_root_of_a_known_set():
    # A format: whoever changes it makes a new one. Computed bit by bit.
    shards = {ShardId(bytes([i]) * 32): 1000 * i + 1 for i in (0, 1, 127, 128, 255)}
    assert naive_set(shards).root.hex() == "cc2dfc62f7c973f8525297bdf5cd6dd2878092fdbd7f0854953e60a8d3dd1574"
    assert EMPTY.root.hex() == "3ebc5598a733e3c50de39649c6e18ae686b3cc7b87c28855162b56e9ced89cb2"


def test_a_change_costs_the_pages_on_its_way():
    holder = Holder()
    shards = ids(2, 20_000)
    pages = holder.change(dict.fromkeys(shards, 100))
    assert len(pages) == len(holder.pages) < 20_000 / 4
    assert all(len(page) <= 1 + PAGE_SHARDS * 36 for page in holder.pages.values())
    for change in ({shards[0]: None}, {ids(3, 1)[0]: 7}, {shards[1]: 5}):
        holder.page_reads = 0
        assert len(holder.change(change)) <= 5
        assert holder.page_reads <= 5
    # A batch reads each page at most once, whatever falls into it.
    holder.page_reads = 0
    holder.change(dict.fromkeys(ids(4, 10_000), 100))
    assert holder.page_reads <= 20_000 / 4


def test_what_changes_nothing_writes_nothing():
    holder = Holder()
    shards = ids(5, 100)
    holder.change(dict.fromkeys(shards, 9))
    before = holder.set
    assert holder.change({}) == {}
    assert holder.change({shards[0]: 9, ids(6, 1)[0]: None}) == {}
    assert holder.set == before


@pytest.mark.parametrize(
    "change", [(b"short", 5), (bytes(33), 5), (bytes(32), 0), (bytes(32), -1), (bytes(32), LENGTH_MAX + 1)]
)
def test_what_no_shard_is_is_refused_and_nothing_changes(change):
    holder = Holder([b"abc"])
    before = (holder.set, dict(holder.pages))
    with pytest.raises(MalformedError):
        holder.change({ids(7, 1)[0]: 5, change[0]: change[1]})
    assert (holder.set, holder.pages) == before


def test_ground_ids_make_no_tree_higher_than_a_proof_may_carry():
    comb = [ShardId((1 << 255 - i).to_bytes(32, "big")) for i in range(HEIGHT_MAX + 2)]
    holder = Holder()
    holder.change(dict.fromkeys(comb[: HEIGHT_MAX + 1], 1))
    assert holder.set.height == HEIGHT_MAX
    before = dict(holder.pages)
    with pytest.raises(MalformedError, match="share so many bits"):
        holder.change({comb[-1]: 1})
    assert holder.pages == before
    # A prefix that all of them share is no level.
    close = Holder()
    close.change({ShardId(bytes(31) + bytes([i])): 1 for i in range(100)})
    assert close.set.height == 7


def test_a_set_with_more_leaves_than_can_be_counted_is_refused(monkeypatch):
    monkeypatch.setattr(shardset, "LEAVES_MAX", 10)
    holder = Holder()
    holder.change({ids(8, 1)[0]: 10 * 1024})
    with pytest.raises(MalformedError, match="at most 10 leaves"):
        holder.change({ids(9, 1)[0]: 1})


def test_damaged_pages_are_noticed():
    holder = Holder()
    holder.change(dict.fromkeys(ids(10, 60), 100))
    for path, page in holder.pages.items():
        row = 50 if page[0] else 36
        swapped = page[:1] + page[1 + row : 1 + 2 * row] + page[1 : 1 + row] + page[1 + 2 * row :]
        for wrong in (b"", page[:1], page[:-1], page + b"\0", b"\2" + page[1:], swapped):
            if wrong == page:
                continue
            pages = holder.pages | {path: wrong}
            with pytest.raises(SetDamaged):
                list(shards_of(pages.get))
        with pytest.raises(SetDamaged):
            shardset.load({}.get, path, bytes(32), 1)
    top = shardset.load(holder.get, b"", holder.set.tree, holder.set.leaves)
    assert (top.tree, top.leaves) == (holder.set.tree, holder.set.leaves)
    for other in ((bytes(32), top.leaves), (top.tree, top.leaves + 1)):
        with pytest.raises(SetDamaged, match="not the one"):
            shardset.load(holder.get, b"", *other)


def test_a_set_with_the_pages_of_another_is_refused():
    one, other = Holder(), Holder()
    one.change(dict.fromkeys(ids(11, 10), 100))
    with pytest.raises(SetDamaged, match="not the pages"):
        update(other.get, one.set, {ids(12, 1)[0]: 1})
