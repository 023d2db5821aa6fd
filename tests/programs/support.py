"""What the tests of real programs share."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

from tests.cluster.harness import COMMAND_DEADLINE, Network


class Places(NamedTuple):
    """Two directories in which the same is done."""

    inside: Path
    """In the mount."""
    outside: Path
    """On a plain disk."""


def same(network: Network, inside: Path, outside: Path, *, times: bool = False) -> None:
    """Fail unless both directories list the same: names, types, modes, owners, sizes, link counts, contents."""
    operations = ["listing", "times"] if times else ["listing"]
    for operation in operations:
        there, here = (network.worker(operation, path, deadline=120) for path in (inside, outside))
        assert there == here


def drop_pages(network: Network) -> None:
    """Make the kernel forget the pages, names and attributes of all clean files."""
    network.run("sync", "-f", network.mountpoint)
    network.run("sh", "-c", "echo 3 > /proc/sys/vm/drop_caches")


def job(network: Network, operation: str, *args: str | Path | int, deadline: float = COMMAND_DEADLINE) -> Any:
    """Run an operation of `tests.programs.jobs` in a child and return its JSON answer."""
    command = (sys.executable, "-m", "tests.programs.jobs", operation, *map(str, args))
    return network.run(*command, deadline=deadline).json()
