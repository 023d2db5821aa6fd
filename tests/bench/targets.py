"""The three places that are compared: the mount, the in-memory pyfuse3 file system, a plain directory.

All of them lie below the base directory of one `Network`, so that its guardian removes whatever is left of any of them. The
same programs run in each, in the same way, from the same process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final, Protocol

from tests.bench.steps import TABLE, WRITING
from tests.cluster import cleanup
from tests.cluster.harness import COMMAND_DEADLINE, ROOT, Network

READ_AHEAD: Final = 4096
"""KiB; what design.md asks the driver to set. The in-memory file system gets what the driver's mount has."""

STEP_DEADLINE: Final = 300.0


class Target(Protocol):
    """A directory to measure in."""

    name: str
    directory: Path

    def settle(self) -> None:
        """Wait until nothing of what was written is still on its way anywhere."""

    def close(self) -> None:
        """Take it down."""


class Plain:
    """A directory of the disk that the network's own state lies on."""

    name = "plain"

    def __init__(self, network: Network) -> None:
        self.directory = network.base / "plain"
        self.directory.mkdir()

    def settle(self) -> None:
        """Write everything back."""
        os.sync()

    def close(self) -> None:
        """Leave it to the network's clean-up."""


class Memory:
    """`tests.bench.memfs`, with the writeback cache or without."""

    def __init__(self, network: Network, *, writeback: bool, read_ahead: int, cores: str) -> None:
        self.name = "memfs" if writeback else "memfs-through"
        self.directory = network.base / self.name
        self.directory.mkdir()
        reader, writer = os.pipe()
        log = network.base / f"{self.name}.log"
        command = [sys.executable, "-m", "tests.bench.memfs", str(self.directory), str(log), "--ready-fd", str(writer)]
        pinned = ["taskset", "-c", cores, *command] if cores else command
        self._process = subprocess.Popen(
            pinned + ["--writeback"] * writeback, pass_fds=[writer], cwd=ROOT, env=network.environment
        )
        os.close(writer)
        with open(reader, "rb") as ready:
            if not ready.readline():
                raise RuntimeError("the in-memory file system did not start")
        set_read_ahead(self.directory, read_ahead)

    def settle(self) -> None:
        """Nothing is ever on its way."""

    def close(self) -> None:
        """Unmount."""
        subprocess.run(["umount", self.directory], check=True, timeout=30)
        self._process.wait(30)


class Decloud:
    """The mount of a network started for this."""

    name = "decloud"

    def __init__(self, network: Network, *, pin: bool) -> None:
        self.network = network
        self.directory = network.mountpoint
        self.pin = pin
        network.up()
        self.apply_pins()

    def apply_pins(self) -> None:
        """Put the driver on the first core and everything else on the others, as far as that is wanted."""
        if not self.pin:
            return
        driver = int(self.network.status()["driver_pid"])
        others = set(range(1, os.cpu_count() or 1)) or {0}
        for pid in self.network.processes():
            for thread in os.listdir(f"/proc/{pid}/task"):
                os.sched_setaffinity(int(thread), {0} if pid == driver else others)

    def settle(self) -> None:
        """Wait until all shards are stored."""
        self.network.sync("stored", deadline=STEP_DEADLINE)

    def close(self) -> None:
        """Leave it to the network's clean-up."""


def read_ahead_file(directory: Path) -> Path | None:
    """Return the file that sets a mount's read-ahead, found without touching the mount."""
    for mount in cleanup.mounts_below(directory.parent):
        if mount.directory == str(directory):
            return Path(f"/sys/class/bdi/0:{mount.minor}/read_ahead_kb")
    return None


def set_read_ahead(directory: Path, kib: int) -> None:
    """Set a mount's read-ahead where that is permitted."""
    path = read_ahead_file(directory)
    if path is not None and os.access(path, os.W_OK):
        path.write_text(str(kib))


def get_read_ahead(directory: Path) -> int:
    """Return a mount's read-ahead in KiB, 0 if unknown."""
    path = read_ahead_file(directory)
    return int(path.read_text()) if path is not None and path.exists() else 0


def run_step(
    network: Network,
    step: str,
    directory: Path,
    options: Any,
    *,
    size: int | None = None,
    deadline: float = STEP_DEADLINE,
) -> dict[str, float]:
    """Run one step in a child; return its figures. Raises AssertionError (`Hung`, `CommandFailed`) when it fails."""
    command = [sys.executable, "-m", "tests.bench.steps", step, str(directory), "--size", str(size or options.size)]
    command += ["--files", str(options.files), "--seconds", str(options.seconds)]
    if options.pin:
        command = ["taskset", "-c", "0", *command]
    figures: dict[str, float] = network.run(*command, deadline=deadline).json()
    return figures


def run_table(network: Network, target: Target, options: Any, turn: int, errors: list[str]) -> dict[str, float]:
    """Run the chosen steps once; return all figures, with the seconds each writing step took to settle."""
    directory = target.directory / f"turn-{turn}"
    network.run("mkdir", directory)
    found: dict[str, float] = {}
    for step in (function.__name__ for function in TABLE):
        if options.steps and step not in options.steps:
            continue
        start = time.perf_counter()
        try:
            figures = run_step(network, step, directory, options)
            seconds = time.perf_counter() - start
            if step in WRITING:
                start = time.perf_counter()
                target.settle()
                figures[f"settle_{step}"] = time.perf_counter() - start
        except AssertionError as exc:
            errors.append(f"{target.name}, {step}: {str(exc).splitlines()[0][:300]}")
            print(f"  {target.name:14} {step:18} FAILED: {exc}", file=sys.stderr, flush=True)
            continue
        found.update(figures)
        shown = "  ".join(f"{name} {value:,.6g}" for name, value in figures.items())
        print(f"  {target.name:14} {step:18} {seconds:6.1f} s  {shown}", file=sys.stderr, flush=True)
    network.run("rm", "-rf", directory, deadline=COMMAND_DEADLINE * 2)
    target.settle()
    return found
