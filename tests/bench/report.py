"""The table: medians, ratios, and which of the goals are met. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tests.bench.steps import FIGURES

Runs = Sequence[Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Goal:
    """What is promised for one figure: at least `ratio` times what `against` reaches."""

    figure: str
    against: str
    ratio: float


GOALS: Final = (
    Goal("write_fsync", "memfs", 0.5),
    Goal("read_1m", "memfs", 0.5),
    Goal("create", "memfs", 0.5),
    Goal("stat", "memfs", 0.5),
    Goal("unlink", "memfs", 0.5),
    Goal("fsync_4k", "plain", 0.5),
    Goal("sqlite_txn", "plain", 0.3),
)
LS_MAX: Final = 1.0
"""Seconds for a warm listing of 10,000 files."""
STORE_RATIO: Final = 0.8
COLD_RATIO: Final = 0.7
SMALL_MAX: Final = 5.0
"""Seconds from the first of 2,000 small files to the receipts of all."""
MEMORY_MAX: Final = 300.0
"""MiB of the driver while copying."""
IDLE_MAX: Final = 2.0
"""Percent of one core, the whole network."""


def medians(runs: Runs) -> dict[str, float]:
    """Return the median of each figure over the runs that have it."""
    names = dict.fromkeys(name for run in runs for name in run)
    return {name: statistics.median(run[name] for run in runs if name in run) for name in names}


def ratio(name: str, one: float, other: float) -> float:
    """Return how many times better `one` is than `other`: above 1 is better, for seconds as well."""
    if one <= 0 or other <= 0:
        return 0.0
    return one / other if FIGURES[name].higher_is_better else other / one


def show(value: float) -> str:
    """Return a number with three telling digits."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def steps_table(results: Mapping[str, Runs]) -> list[str]:
    """Return the table of the steps as Markdown: a column for each target, then the ratios to the mount."""
    middle = {target: medians(runs) for target, runs in results.items()}
    others = [target for target in middle if target != "decloud"] if "decloud" in middle else []
    head = ["figure", "unit", *middle, *(f"decloud / {other}" for other in others), "goal"]
    lines = [_row(head), _row(["---", "---", *["--:"] * (len(head) - 3), "---"])]
    goals = {goal.figure: goal for goal in GOALS}
    for name, figure in FIGURES.items():
        if not any(name in found for found in middle.values()):
            continue
        cells = [figure.text, figure.unit]
        cells += [show(found[name]) if name in found else "-" for found in middle.values()]
        ours = middle.get("decloud", {}).get(name)
        for other in others:
            theirs = middle[other].get(name)
            cells.append(f"{ratio(name, ours, theirs):.2f}" if ours is not None and theirs is not None else "-")
        goal = goals.get(name)
        theirs = middle.get(goal.against, {}).get(name) if goal else None
        met = ""
        if goal is not None and ours is not None and theirs is not None:
            met = _verdict(ratio(name, ours, theirs) >= goal.ratio, f"≥ {goal.ratio} × {goal.against}")
        if name == "ls_warm" and ours is not None:
            met = _verdict(ours < LS_MAX, f"< {LS_MAX:g} s")
        lines.append(_row([*cells, met]))
    return lines


def network_table(cold: Runs, bare: Runs, memory: Mapping[str, float], idle: Mapping[str, float]) -> list[str]:
    """Return the table of what only the whole network has."""
    found, base = medians(cold), medians(bare)
    lines = [
        _row(["figure", "decloud", "bare connections", "our own, bare", "ratio", "goal"]),
        _row(["---", "--:", "--:", "--:", "--:", "---"]),
    ]
    pairs = (
        ("store", "store", "store to the peers, shard MB/s", STORE_RATIO),
        ("cold_read", "fetch", "cold read from the peers, MB/s", COLD_RATIO),
    )
    for name, bound, text, goal in pairs:
        ours, theirs, channel = found.get(name), base.get(f"bare_{bound}"), base.get(f"channel_{bound}")
        if ours is None and theirs is None:
            continue
        quotient = ours / theirs if ours is not None and theirs else None
        lines.append(
            _row([
                text,
                show(ours) if ours is not None else "-",
                show(theirs) if theirs is not None else "-",
                show(channel) if channel is not None else "-",
                f"{quotient:.2f}" if quotient is not None else "-",
                _verdict(quotient >= goal, f"≥ {goal}") if quotient is not None else "",
            ])
        )  # fmt: skip
        costs = (found.get(f"{name}_cpu"), base.get(f"bare_{bound}_cpu"), base.get(f"channel_{bound}_cpu"))
        if any(costs):
            shown = [show(cost) if cost is not None else "-" for cost in costs]
            lines.append(_row(["its processor time, all processes, ms/MiB", *shown, "", ""]))
    plain = (("drain", "until all shards are stored, s"), ("cold_tree", "cold read of the library, s"))
    lines += [_row([text, show(found[name]), "", "", "", ""]) for name, text in plain if name in found]
    if "small_store" in found:
        met = _verdict(found["small_store"] < SMALL_MAX, f"< {SMALL_MAX:g} s")
        lines.append(_row(["2,000 files of 4 KiB written and stored, s", show(found["small_store"]), "", "", "", met]))
    if "driver_peak" in memory:
        met = _verdict(memory["driver_peak"] < MEMORY_MAX, f"< {MEMORY_MAX:g} MiB")
        lines.append(_row(["driver memory while copying, MiB", show(memory["driver_peak"]), "", "", "", met]))
        lines.append(_row(["agent memory while copying, MiB", show(memory["agent_peak"]), "", "", "", ""]))
    if "idle" in idle:
        met = _verdict(idle["idle"] < IDLE_MAX, f"< {IDLE_MAX:g} %")
        lines.append(_row(["idle processor use of everything, % of a core", show(idle["idle"]), "", "", "", met]))
    return lines if len(lines) > 2 else []


def missed(lines: Sequence[str]) -> int:
    """Return how many goals the tables say are missed."""
    return sum("MISSED" in line for line in lines)


def _verdict(met: bool, goal: str) -> str:
    return f"{goal}: {'met' if met else 'MISSED'}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
