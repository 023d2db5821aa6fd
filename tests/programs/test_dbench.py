"""dbench replays the accesses of office clients to a file server."""

from __future__ import annotations

import re

import pytest

from tests.cluster.harness import Network
from tests.programs.support import Places


def dbench(network: Network, places: Places, clients: int, seconds: int, *more: str) -> float:
    """Run it and return the MB/s that it reports."""
    command = ["dbench", "-D", str(places.inside), "-t", str(seconds), *more, str(clients)]
    result = network.run(*command, deadline=seconds * 4 + 60)
    said = result.out.replace("failed to create barrier semaphore", "")  # a kernel without System V semaphores
    assert not re.search("failed|error", said, re.IGNORECASE), result.describe()
    found = re.search(r"^Throughput ([0-9.]+) MB/sec .*?(\d+) clients", result.out, re.MULTILINE)
    assert found, result.describe()
    assert int(found[2]) == clients, result.describe()
    return float(found[1])


def test_clients_in_parallel(network: Network, places: Places) -> None:
    assert dbench(network, places, 4, 4) > 0


def test_with_attributes_and_synchronous_writes(network: Network, places: Places) -> None:
    """-x exercises extended attributes, -s writes with O_SYNC, -S makes changes of directories synchronous."""
    assert dbench(network, places, 2, 2, "-x", "-s", "-S") > 0


@pytest.mark.long
@pytest.mark.parametrize(("clients", "more"), [(1, ()), (8, ()), (32, ()), (8, ("-x", "-s")), (8, ("-F",))])
def test_long(network: Network, places: Places, clients: int, more: tuple[str, ...]) -> None:
    assert dbench(network, places, clients, 40, *more) > 0
