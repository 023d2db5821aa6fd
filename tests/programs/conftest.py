"""One network for all tests of real programs, and a pair of directories for each: one in the mount, its twin on a plain disk.

Each test begins with the volume mounted with the default options, whatever became of the one before.
"""

from __future__ import annotations

import itertools
import re
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.harness import Network, remove_tree
from tests.programs.support import Places

_numbers = itertools.count()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this directory."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def network() -> Iterator[Network]:
    """The network that all tests of this directory share."""
    with Network() as fresh:
        fresh.up()
        yield fresh


@pytest.fixture(scope="session")
def library(network: Network) -> Path:
    """Python's own library without its tests, on a plain disk: some hundred real files."""
    tree = network.base / "library"
    leave_out = ("site-packages", "dist-packages", "__pycache__", "config-*", "*.a", "*.so", "test", "tests", "idlelib")
    shutil.copytree(
        sysconfig.get_path("stdlib"), tree, symlinks=True, ignore=shutil.ignore_patterns(*leave_out), dirs_exist_ok=True
    )
    return tree


@pytest.fixture
def places(network: Network, request: pytest.FixtureRequest) -> Iterator[Places]:
    """An empty directory in the mount and its twin on a plain disk."""
    name = f"{re.sub('[^a-z0-9_-]', '-', request.node.name)[:60]}.{next(_numbers)}"
    found = Places(network.mountpoint / name, network.work / name)
    network.up()
    network.run("mkdir", *found)
    yield found
    network.run("rm", "-rf", found.inside, deadline=120)
    remove_tree(found.outside)
