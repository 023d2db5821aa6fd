"""Networks for the crash tests; everything here is marked `cluster`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.harness import Network


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this directory."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """One peer, so that the machine is busy with the driver's work and not the peers', and an empty volume."""
    with Network(peers=1) as fresh:
        fresh.up()
        yield fresh
