"""Networks for the end-to-end tests: one with the whole test data for the whole session, small ones for a module each.

Everything here is marked `cluster`. Starting a network costs seconds and copying the data more, so tests share them; a test
that breaks something (a killed peer, flipped bytes) mends it, and `Loaded.heal` is called before each module. The tests of
recovery come last: they take the volume over from the machine that made it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import testdata
from tests.cluster.harness import Network, remove_tree
from tests.cluster.testdata import Loaded

_LAST = ("test_secrecy", "test_recover")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this directory, and put those that use up the shared network last."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.cluster)
    items.sort(key=lambda item: _LAST.index(item.path.stem) if item.path.stem in _LAST else -1)


@pytest.fixture(scope="session")
def source() -> Iterator[Path]:
    """Test data on a plain disk: Python's own library, a 256 MiB random file, a few awkward files with the marker."""
    base = Path(tempfile.mkdtemp(prefix="decloud-source-"))
    tree = base / "data"
    testdata.make_source(tree)
    try:
        yield tree
    finally:
        remove_tree(base)


@pytest.fixture(scope="session")
def session_network(source: Path) -> Iterator[Loaded]:
    """Copy the test data into a fresh network and wait until it is anchored."""
    with Network() as network:
        network.up()
        loaded = Loaded(network, source)
        network.run("cp", "-a", source, network.mountpoint, deadline=240)
        network.sync("anchored", deadline=240)
        yield loaded


@pytest.fixture(scope="module")
def loaded(session_network: Loaded) -> Loaded:
    """The shared network, mended."""
    session_network.heal()
    return session_network


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """A fresh network with an empty volume for one module."""
    with Network() as fresh:
        fresh.up()
        yield fresh
