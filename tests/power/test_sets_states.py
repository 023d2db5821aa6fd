"""After a power cut at any moment, the sets of a deal are those before or after the step that was under way."""

from __future__ import annotations

import shutil

import pytest

from fsdecloud.errors import StoreError
from tests.power import sets_workload
from tests.power.disk import store
from tests.power.states import cuts, without_syncs
from tests.power.trace import record


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    root = tmp_path_factory.mktemp("power") / "peer"
    root.mkdir(mode=0o700)
    return root, record("tests.power.sets_workload", root)


def problems(events, root, scratch, count, seed):
    """Yield "" or what is wrong for each state."""
    for cut in cuts(events, root, count, seed):
        store(cut.state, root, scratch / "cut")
        try:
            sets_workload.check(scratch / "cut", cut.notes)
            yield ""
        except (StoreError, AssertionError) as exc:
            yield f"{cut.name}, after {cut.notes[-1:]}: {type(exc).__name__}: {exc}"
        finally:
            shutil.rmtree(scratch / "cut")


def test_fault_011_power_loss_while_a_revision_is_agreed_on(traced, scratch):
    root, events = traced
    found = list(problems(events, root, scratch, 1500, 11))
    assert len(found) >= 150
    assert not any(found), next(filter(None, found))


def test_a_forgotten_sync_of_the_sets_is_found(traced, scratch):
    root, events = traced
    forgotten = without_syncs(events, r"data\.mdb$", dsync=False)
    assert forgotten != events
    assert any(problems(forgotten, root, scratch, 300, 5))
