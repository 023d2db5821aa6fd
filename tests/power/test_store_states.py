"""After a power cut at any moment, the stores open and hold what was acknowledged: thousands of states of a modelled disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fsdecloud.errors import StoreError
from tests.power import store_workload
from tests.power.disk import PAGE, Disk, differences, store
from tests.power.states import Cut, cuts, without_syncs
from tests.power.trace import DIRECTORY, Begin, Change, Note, Rename, Sync, record

STATES = 700


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    root = tmp_path_factory.mktemp("power") / "volume"
    root.mkdir(mode=0o700)
    return root, record("tests.power.store_workload", root)


def try_cut(cut: Cut, root: Path, target: Path) -> str:
    """Return what is wrong with what the power cut left, empty if nothing."""
    store(cut.state, root, target)
    try:
        store_workload.check(target, cut.notes)
    except (StoreError, AssertionError) as exc:
        return f"{cut.name}, after {cut.notes[-1:]}: {type(exc).__name__}: {exc}"
    finally:
        shutil.rmtree(target)
    return ""


def try_all(events, root: Path, scratch: Path, count: int, seed: int) -> int:
    tried = 0
    for cut in cuts(events, root, count, seed):
        assert not try_cut(cut, root, scratch / "cut")
        tried += 1
    return tried


def test_the_trace_tells_everything(traced):
    """The files rebuilt from the trace are the real ones, byte for byte."""
    root, events = traced
    disk = Disk(root)
    for event in events:
        disk.apply(event)
    assert not differences(disk.newest(), root)
    assert sum(isinstance(event, Note) for event in events) == 2 * store_workload.STEPS + 1
    assert sum(isinstance(event, Sync) for event in events) > store_workload.STEPS


def test_fault_011_power_loss(traced, scratch):
    root, events = traced
    assert try_all(events, root, scratch, STATES, 11) >= 500


@pytest.mark.long
@pytest.mark.parametrize("seed", range(8))
def test_fault_011_power_loss_long(traced, scratch, seed):
    root, events = traced
    assert try_all(events, root, scratch, 2000, 1000 + seed) >= 600


def test_fault_012_torn_meta_page(traced, scratch):
    """LMDB's two roots: however little of a new one was written, the other one still stands."""
    root, events = traced
    names = {name: number for event in events if isinstance(event, Rename) for name, number in event.names}
    data = names[str(root / "state.lmdb" / "data.mdb")]
    disk, notes, tried = Disk(root), [], 0
    for event in events:
        if isinstance(event, Note):
            notes.append(event.text)
        is_meta = isinstance(event, Change) and event.file == data and event.is_durable and event.offset < 2 * PAGE
        if is_meta and tried < 60:
            before = disk.newest()
            for size in range(0, len(event.data), 8):
                state = dict(before)
                torn = before[str(root / "state.lmdb" / "data.mdb")].copy()
                torn.write(event.offset, event.data[:size])
                state[str(root / "state.lmdb" / "data.mdb")] = torn
                assert not try_cut(Cut(state, tuple(notes), f"meta page torn at {size}"), root, scratch / "cut")
                tried += 1
        disk.apply(event)
    assert tried > 20


@pytest.mark.parametrize(
    ("what", "dsync"),
    [(r"\.seg$", False), (r"data\.mdb$", False), (r"\.wal$", True), ("/state.lmdb$", False), ("/staged$", False),
     ("/volume$", False)],
)  # fmt: skip
def test_a_forgotten_sync_is_found(traced, scratch, what, dsync):
    """The same trace, as a program would leave it that does not sync this kind of file or directory."""
    root, events = traced
    forgotten = without_syncs(events, what, dsync=dsync)
    assert forgotten != events
    assert any(try_cut(cut, root, scratch / "cut") for cut in cuts(forgotten, root, STATES, 5))


def test_a_forgotten_fdatasync_of_the_program_is_found(tmp_path, scratch):
    """The program itself, with a disk whose fdatasync does nothing."""
    root = tmp_path / "volume"
    root.mkdir(mode=0o700)
    events = record("tests.power.store_workload", root, "without-segment-sync")
    assert any(try_cut(cut, root, scratch / "cut") for cut in cuts(events, root, STATES, 5))


def test_syncs_that_overlap_with_writes_count_for_what_was_there_before(tmp_path):
    root = tmp_path / "volume"
    disk = Disk(root)
    path = str(root / "file")
    for event in (
        Rename(1, ((path, 1),)),
        Sync(2, DIRECTORY, str(root)),
        Change(3, 1, "write", 0, b"a"),
        Begin(4),
        Change(5, 1, "write", 1, b"b"),
        Sync(4, 1, path),
    ):
        disk.apply(event)
    assert disk.oldest()[path].pages[0][:2] == b"a\0"
    assert disk.oldest()[path].size == 1
    assert disk.newest()[path].pages[0][:2] == b"ab"
    disk.apply(Sync(6, 1, path))
    assert disk.oldest()[path].pages[0][:2] == b"ab"
    assert disk.loose == 0
