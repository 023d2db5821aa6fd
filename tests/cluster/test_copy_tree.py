"""A tree copied in is there, is anchored, and comes back from the peers alone."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.cluster.testdata import BIG_SIZE, Loaded


def disk_use(path: Path) -> int:
    """Return the bytes that a directory outside the mount takes on the disk."""
    output = subprocess.run(["du", "-s", "-B1", path], check=True, stdout=subprocess.PIPE, timeout=60).stdout
    return int(output.split()[0])


def test_copy_is_equal_and_anchored(loaded: Loaded) -> None:
    loaded.check()
    network = loaded.network
    here, there = (network.worker("listing", path, deadline=240) for path in (loaded.source, loaded.copy))
    assert there == here
    here, there = (network.worker("times", path, deadline=120) for path in (loaded.source, loaded.copy))
    assert there == here, "cp -a keeps modification times"
    network.sync("stored")  # reading was recorded, and the record is data like any other
    status = network.status()
    assert status.bytes("dirty") == 0
    assert status.bytes("staged") == 0
    assert status.bytes("stored") >= BIG_SIZE
    assert status.bytes("anchored") >= BIG_SIZE
    assert len(status.peers) == network.peers
    assert {peer["state"] for peer in status.peers} == {"up"}


def test_attributes_survive(loaded: Loaded) -> None:
    here, there = (loaded.network.worker("xattrs", path / "marked") for path in (loaded.source, loaded.copy))
    assert there == here
    assert [name for path, name, _ in there] == ["user.note"] * 2, "of a file with two names"


def test_cold_copy_comes_from_peers(loaded: Loaded) -> None:
    network = loaded.network
    network.umount()
    held = disk_use(network.home / "state" / "volumes")
    assert held < BIG_SIZE // 4, f"{held} bytes still lie in the local state: reading them proves nothing about peers"
    status = network.drop_cache_of_unmounted()
    assert status["downloaded_bytes"] < BIG_SIZE // 8, "the agent starts counting at zero"
    loaded.check()
    assert network.status()["downloaded_bytes"] >= BIG_SIZE


def test_mount_of_a_cold_volume_is_quick(loaded: Loaded) -> None:
    """Metadata is fetched lazily: mounting and listing the root needs a few nodes, not the tree."""
    network = loaded.network
    status = network.drop_cache()
    names = network.run("ls", network.mountpoint).out.split()
    assert names == ["data"]
    assert network.status()["downloaded_bytes"] - status["downloaded_bytes"] < 4 << 20
