"""`make bench`: measure the mount, the ceiling and a plain directory in one run, and print medians and ratios.

    python -m tests.bench [--quick] [--runs 3] [--only PART,...] [--steps STEP,...] [--targets NAME,...] [--json FILE]

Parts: `steps` (the table), `network` (store rate and cold reads, with the bare connections), `memory`, `idle`. Targets:
`decloud`, `memfs`, `memfs-through` (without the kernel's writeback cache), `plain`. Turns are interleaved, so that a
noisy machine is noisy to all. Run as root: the kernel's caches can only then be dropped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from tests.bench import report, whole
from tests.bench.steps import TABLE
from tests.bench.targets import READ_AHEAD, Decloud, Memory, Plain, Target, get_read_ahead, run_table
from tests.cluster.harness import Network

PARTS: Final = ("steps", "network", "memory", "idle")
PEERS: Final = 12
"""As many as the goals name: redundancy 4/12."""
TARGETS: Final = ("decloud", "memfs", "memfs-through", "plain")


def parse_arguments() -> argparse.Namespace:
    """Return the choices, checked."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small turn: to see that it works, not to quote")
    parser.add_argument("--runs", type=int, help="turns, the median counts (default 3)")
    parser.add_argument("--only", default=",".join(PARTS), metavar="PARTS", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--steps", default="", metavar="STEPS", help="of " + ", ".join(s.__name__ for s in TABLE))
    parser.add_argument("--targets", default="decloud,memfs,plain", metavar="NAMES", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--size", type=int, metavar="MiB", help="large file (default 256)")
    parser.add_argument("--files", type=int, help="small files (default 2000)")
    parser.add_argument("--seconds", type=float, help="for steps that repeat one thing (default 3)")
    parser.add_argument("--transport", type=int, metavar="MiB", help="moved by the bare connections (default 1024)")
    parser.add_argument("--peers", type=int, default=PEERS, help=f"of the network (default {PEERS})")
    parser.add_argument("--memory", type=int, metavar="MiB", help="copied while memory is watched (default 4096)")
    parser.add_argument("--idle", type=float, metavar="S", help="how long to watch idleness (default 30)")
    parser.add_argument("--rest", type=float, default=10.0, metavar="S", help="rest before that (default 10)")
    parser.add_argument(
        "--pin", action="store_true", help="driver and programs on the first core, all else on the others"
    )
    parser.add_argument(
        "--directory", type=Path, help="where to work, on a real disk (default: the temporary directory)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--check", action="store_true", help="exit 1 when a goal is missed")
    arguments = parser.parse_args()
    defaults = {
        "runs": (3, 1),
        "size": (256, 64),
        "files": (2000, 500),
        "seconds": (3.0, 1.0),
        "transport": (1024, 128),
        "memory": (4096, 512),
        "idle": (30.0, 10.0),
    }
    for name, (full, quick) in defaults.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, quick if arguments.quick else full)
    known_steps = {step.__name__ for step in TABLE}
    for name, known in (("only", set(PARTS)), ("targets", set(TARGETS)), ("steps", known_steps)):
        chosen = [word for word in getattr(arguments, name).split(",") if word]
        unknown = set(chosen) - known
        if unknown:
            parser.error(f"unknown {name}: {', '.join(sorted(unknown))} (known: {', '.join(sorted(known))})")
        setattr(arguments, name, chosen)
    return arguments


def open_targets(network: Network, options: argparse.Namespace) -> tuple[list[Target], Decloud | None]:
    """Start what is to be measured."""
    cores = "0" if options.pin else ""
    ours = None
    if "decloud" in options.targets:
        ours = Decloud(network, pin=options.pin)
    read_ahead = (get_read_ahead(network.mountpoint) if ours else 0) or READ_AHEAD
    targets: list[Target] = [ours] if ours else []
    for name in options.targets:
        if name.startswith("memfs"):
            targets.append(Memory(network, writeback=name == "memfs", read_ahead=read_ahead, cores=cores))
        elif name == "plain":
            targets.append(Plain(network))
    print(f"read-ahead of the FUSE mounts: {read_ahead} KiB", file=sys.stderr)
    return targets, ours


def measure(network: Network, options: argparse.Namespace) -> dict[str, Any]:
    """Run everything that was chosen; return all figures and errors."""
    errors: list[str] = []
    results: dict[str, list[dict[str, float]]] = {}
    cold: list[dict[str, float]] = []
    bare: list[dict[str, float]] = []
    single: dict[str, dict[str, float]] = {"memory": {}, "idle": {}}
    targets, ours = open_targets(network, options)
    try:
        for turn in range(options.runs):
            print(f"turn {turn + 1} of {options.runs}", file=sys.stderr)
            if "steps" in options.only:
                for target in targets:
                    results.setdefault(target.name, []).append(run_table(network, target, options, turn, errors))
            if "network" in options.only:
                bare.append(whole.measure_transport(options))
                print(f"  bare connections {bare[-1]}", file=sys.stderr)
                if ours is not None:
                    try:
                        cold.append(whole.measure_network(ours, options, turn))
                        print(f"  network {cold[-1]}", file=sys.stderr)
                    except AssertionError as exc:
                        errors.append(f"network: {exc}")
        for part in ("memory", "idle"):
            if part in options.only and ours is not None:
                try:
                    figures = (
                        whole.measure_memory(ours, options)
                        if part == "memory"
                        else whole.measure_idle(network, options)
                    )
                    single[part] = figures
                    print(f"  {part} {figures}", file=sys.stderr)
                except AssertionError as exc:
                    errors.append(f"{part}: {exc}")
    finally:
        for target in targets:
            target.close()
    return {"steps": results, "network": cold, "bare": bare, **single, "errors": errors}


def main() -> int:
    """Measure, print, and return the exit code."""
    options = parse_arguments()
    base = Path(tempfile.mkdtemp(prefix="decloud-bench-", dir=options.directory))
    if shutil.disk_usage(base).free < 8 << 30:
        print("less than 8 GiB of disk are free: figures will suffer", file=sys.stderr)
    start = time.time()
    with Network(base=base, peers=options.peers) as network:
        found = measure(network, options)
    machine = f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}"
    print(
        f"\n{machine}; load {os.getloadavg()[0]:.1f}; medians of {options.runs}; {options.size} MiB, {options.files} files\n"
    )
    first = report.steps_table(found["steps"]) if found["steps"] else []
    second = report.network_table(found["network"], found["bare"], found["memory"], found["idle"])
    for lines in (first, second):
        if lines:
            print("\n".join(lines) + "\n")
    for error in found["errors"]:
        print(f"ERROR {error}")
    print(f"{time.time() - start:.0f} s")
    if options.json:
        chosen = {name: str(value) for name, value in vars(options).items()}
        options.json.write_text(json.dumps({"machine": machine, "options": chosen, **found}, indent=1) + "\n")
    if found["errors"]:
        return 2
    return 1 if options.check and report.missed([*first, *second]) else 0


if __name__ == "__main__":
    sys.exit(main())
