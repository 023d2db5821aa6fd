"""Packing, location rows and the journal."""

import os

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from fsdecloud import codec
from fsdecloud.agent.journal import META, NODES, ROWS, JournalWriter, open_journal, open_writer
from fsdecloud.agent.pack import Packer
from fsdecloud.agent.rows import (
    BlobRow,
    EntryRow,
    PackedEntry,
    UploadRecord,
    decode_blob_row,
    decode_entry_row,
    entry_rows,
    make_blob_row,
)
from fsdecloud.errors import MalformedError, StoreFull
from fsdecloud.limits import BLOB_TARGET, PACK_ENTRY_MAX, TREE_VALUE_MAX
from fsdecloud.swarm.policy import SHARDS_MAX
from fsdecloud.types import EntryId
from fsdecloud.wire.agentapi import StagedEntry

PEER = [bytes([i]) * 32 for i in range(64)]


@given(st.lists(st.integers(1, PACK_ENTRY_MAX + 10), max_size=60))
def test_packs_hold_every_entry_once_in_order(lengths):
    packer = Packer()
    plans = []
    for i, length in enumerate(lengths):
        plans += packer.add(StagedEntry(EntryId(i.to_bytes(32)), 1, 0, length))
    plans += packer.close()
    assert not packer
    assert packer.close() == []
    found = [entry for plan in plans for entry in plan.entries]
    assert sorted(int.from_bytes(entry.id) for entry in found) == list(range(len(lengths)))
    small = [entry.length for entry in found if entry.length < PACK_ENTRY_MAX]
    assert small == [length for length in lengths if length < PACK_ENTRY_MAX]
    for plan in plans:
        assert plan.length <= BLOB_TARGET
        assert len(plan.entries) == 1 or all(entry.length < PACK_ENTRY_MAX for entry in plan.entries)


def test_the_largest_row_fits_into_the_tree():
    row = BlobRow(
        2,
        SHARDS_MAX,
        1 << 32,
        1 << 20,
        tuple(PEER[:SHARDS_MAX]),
        tuple(enumerate(PEER[:SHARDS_MAX])),
    )
    data = codec.encode(row)
    assert len(data) <= TREE_VALUE_MAX
    assert decode_blob_row(data) == row


@pytest.mark.parametrize(
    "row",
    [
        BlobRow(0, 1, 1, 10, (), ()),
        BlobRow(3, 2, 1, 10, tuple(PEER[:2]), ()),
        BlobRow(1, SHARDS_MAX + 1, 1, 10, (), ()),
        BlobRow(2, 3, 1, 10, tuple(PEER[:2]), ()),
        BlobRow(2, 3, 1, 10, (b"x", *PEER[:2]), ()),
        BlobRow(1, 3, 1, 0, (), ()),
        BlobRow(1, 3, 1, 1 << 30, (), ()),
        BlobRow(1, 3, 1, 10, (), ((3, PEER[0]),)),
        BlobRow(1, 3, 1, 10, (), ((1, PEER[0]), (1, PEER[1]))),
        BlobRow(1, 3, 1, 10, (), ((1, b"short"),)),
    ],
)
def test_bad_rows_are_malformed(row):
    with pytest.raises(MalformedError):
        decode_blob_row(codec.encode(row))


@pytest.mark.parametrize(
    "row",
    [EntryRow(b"x", 0, 1), EntryRow(PEER[0], -1, 1), EntryRow(PEER[0], 0, 0), EntryRow(PEER[0], 1 << 40, 1)],
)
def test_bad_entry_rows_are_malformed(row):
    with pytest.raises(MalformedError):
        decode_entry_row(codec.encode(row))


def test_rows_of_a_blob_name_what_is_elsewhere():
    record = UploadRecord(1, 3, 1, 10, (), (), ((0, PEER[0]), (2, PEER[9])), ())
    assert make_blob_row(record, PEER[:3]).exceptions == ((2, PEER[9]),)
    assert make_blob_row(record, PEER[:1]).exceptions == ((2, PEER[9]),)
    entries = (PackedEntry(PEER[0], 0, 4), PackedEntry(PEER[1], 4, 6))
    assert [decode_entry_row(value).offset for _, value in entry_rows(PEER[5], entries)] == [0, 4]
    assert entry_rows(PEER[0], entries[:1]) == []


def test_folded_rows_go_unless_they_changed(tmp_path):
    journal = open_journal(tmp_path / "journal", b"v" * 32)
    journal.apply([(ROWS, b"a", b"1"), (ROWS, b"b", b"2"), (ROWS, b"c", b"3")])
    journal.apply([(META, b"map_root", b"r"), (ROWS, b"b", b"new")], folded={b"a": b"1", b"b": b"2"})
    assert journal.items(ROWS) == [(b"b", b"new"), (b"c", b"3")]
    journal.close()


def test_013_a_full_disk_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("fsdecloud.agent.journal.FULL_RETRY", 0.01)
    journal = open_journal(tmp_path / "journal", b"v" * 32)
    real, failures = journal.apply, []

    def apply(writes, **more):
        if len(failures) < 3:
            failures.append(writes)
            raise StoreFull("no space left")
        real(writes, **more)

    monkeypatch.setattr(journal, "apply", apply)

    async def work():
        with trio.fail_after(10):
            async with open_writer(journal) as writer:
                await writer.write([(NODES, b"k", b"v")])
                assert writer.last_error == "no space left"
                assert journal.get(NODES, b"k") == b"v"

    trio.run(work)
    assert len(failures) == 3
    journal.close()


def test_what_is_queued_at_the_end_is_written_in_order(tmp_path):
    journal = open_journal(tmp_path / "journal", b"v" * 32)

    async def work():
        async with open_writer(journal) as writer:
            assert isinstance(writer, JournalWriter)
            for i in range(100):
                writer.write_nowait([(META, b"last", str(i).encode())])
                if i % 10 == 0:
                    await trio.lowlevel.checkpoint()

    trio.run(work)
    assert journal.get(META, b"last") == b"99"
    journal.close()
    again = open_journal(tmp_path / "journal", b"v" * 32)
    assert again.get(META, b"last") == b"99"
    again.close()


def test_a_batch_is_all_or_nothing(tmp_path):
    journal = open_journal(tmp_path / "journal", b"v" * 32)
    with pytest.raises(Exception, match=r"key|Key|MDB"):
        journal.apply([(META, b"one", b"1"), (META, os.urandom(600), b"2")])
    assert journal.get(META, b"one") is None
    journal.close()
