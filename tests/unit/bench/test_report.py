"""The benchmark's table: ratios point the right way, medians are medians, a missed goal is said to be missed."""

from __future__ import annotations

import pytest

from tests.bench import report


def test_ratio_is_above_one_when_better() -> None:
    assert report.ratio("write_fsync", 200.0, 100.0) == 2.0
    assert report.ratio("untar", 1.0, 2.0) == 2.0, "fewer seconds are better"
    assert report.ratio("untar", 0.0, 2.0) == 0.0


def test_medians_take_what_runs_have() -> None:
    assert report.medians([{"a": 1.0, "b": 5.0}, {"a": 9.0}, {"a": 2.0}]) == {"a": 2.0, "b": 5.0}


@pytest.mark.parametrize(("ours", "verdict"), [(50.0, "met"), (49.0, "MISSED")])
def test_goal_is_judged_against_the_ceiling(ours: float, verdict: str) -> None:
    lines = report.steps_table(
        {"decloud": [{"create": ours}], "memfs": [{"create": 100.0}], "plain": [{"create": 900.0}]}
    )
    row = next(line for line in lines if line.startswith("| create"))
    assert row.endswith(f"≥ 0.5 × memfs: {verdict} |")
    assert report.missed(lines) == (verdict == "MISSED")


def test_table_without_the_mount_has_no_ratios() -> None:
    lines = report.steps_table({"memfs": [{"create": 100.0}]})
    assert "decloud" not in "".join(lines)
    assert report.missed(lines) == 0


def test_network_table() -> None:
    lines = report.network_table(
        [{"store": 90.0, "cold_read": 180.0, "cold_read_cpu": 19.0, "drain": 4.0, "small_store": 4.2}],
        [{"bare_store": 170.0, "bare_fetch": 250.0, "channel_store": 210.0, "bare_fetch_cpu": 13.0}],
        {"driver_peak": 299.0, "agent_peak": 80.0},
        {"idle": 2.5},
    )
    text = "\n".join(lines)
    assert "| store to the peers, shard MB/s | 90.0 | 170 | 210 | 0.53 | ≥ 0.8: MISSED |" in text
    assert "| cold read from the peers, MB/s | 180 | 250 | - | 0.72 | ≥ 0.7: met |" in text
    assert "| its processor time, all processes, ms/MiB | 19.0 | 13.0 | - |  |  |" in text
    assert "written and stored, s | 4.20 |  |  |  | < 5 s: met |" in text
    assert "< 300 MiB: met" in text
    assert report.missed(lines) == 2, "the store rate and the idle processor use"


def test_nothing_measured_is_no_table() -> None:
    assert report.network_table([], [], {}, {}) == []
