"""After a power cut at any moment, the driver finds the volume as it was after some operation, none acknowledged lost."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest
import trio

from fsdecloud.errors import FsdecloudError
from tests.power import driver_workload
from tests.power.disk import Disk, differences, store
from tests.power.states import Cut, cuts, without_syncs
from tests.power.trace import Note, record


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    root = tmp_path_factory.mktemp("power") / "state"
    root.mkdir(mode=0o700)
    events = record("tests.power.driver_workload", root)
    notes = [event.text for event in events if isinstance(event, Note)]
    trees = [line.split()[2] for line in notes if line.startswith("tree")]
    contents = pickle.loads(root.with_name("state.notes.contents").read_bytes())
    return root, events, (trees, contents)


def try_cut(cut: Cut, root: Path, known: tuple[list[str], driver_workload.Contents], scratch: Path) -> str:
    """Return what is wrong with what the power cut left, empty if nothing."""
    state, elsewhere = scratch / "state", scratch / "elsewhere"
    store(cut.state, root, state)
    elsewhere.mkdir(mode=0o700)
    wrong = ""
    try:
        trio.run(driver_workload.check, state, elsewhere, cut.notes, *known)
    except* (FsdecloudError, AssertionError) as group:
        wrong = f"{cut.name}, after {cut.notes[-1:]}: {group.exceptions}"
    finally:
        shutil.rmtree(state)
        shutil.rmtree(elsewhere)
    return wrong


def test_the_trace_tells_everything(traced):
    root, events, known = traced
    disk = Disk(root)
    for event in events:
        disk.apply(event)
    assert not differences(disk.newest(), root)
    assert len(set(known[0])) > driver_workload.STEPS // 2


def test_fault_011_power_loss_under_a_driver(traced, scratch):
    root, events, known = traced
    tried = 0
    for cut in cuts(events, root, 70, 3):
        assert not try_cut(cut, root, known, scratch)
        tried += 1
    assert tried > 45


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
def test_fault_011_power_loss_under_a_driver_long(traced, scratch, seed):
    root, events, known = traced
    for cut in cuts(events, root, 1000, 100 + seed):
        assert not try_cut(cut, root, known, scratch)


@pytest.mark.parametrize("what", [r"\.seg$", r"\.wal$"])
def test_a_forgotten_sync_is_found(traced, scratch, what):
    root, events, known = traced
    forgotten = without_syncs(events, what, dsync=True)
    assert any(try_cut(cut, root, known, scratch) for cut in cuts(forgotten, root, 300, 5))
