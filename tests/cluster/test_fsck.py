"""`decloud fsck` of a real volume: nothing is wrong after kills, and what peers have lost is said."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster import cleanup
from tests.cluster.harness import Network, Result, remove_tree

PEERS = 3


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """A network with some files, all of them anchored."""
    with Network(peers=PEERS) as fresh:
        fresh.up()
        mnt = fresh.mountpoint
        fresh.run(
            "sh", "-c", f"mkdir -p {mnt}/a/b; for i in $(seq 40); do head -c 9000 /dev/urandom > {mnt}/a/b/$i; done"
        )
        fresh.run("sh", "-c", f"head -c 5000000 /dev/urandom > {mnt}/big; ln {mnt}/big {mnt}/a/same")
        fresh.sync("anchored")
        yield fresh


@pytest.fixture
def mounted(network: Network) -> Network:
    """The network, mounted, whatever the test before did; everything is anchored."""
    network.up()
    network.sync("anchored")
    return network


def fsck(network: Network, *options: str, code: int = 0) -> Any:
    """Run `decloud fsck` and return its JSON object."""
    result = network.decloud("fsck", network.volume, "--json", *options, check=False)
    assert result.code == code, result.describe() + network.logs()
    found = result.json()
    assert found["exit"] == code
    return found


def plain(network: Network, *arguments: str) -> Result:
    return network.run("fsck.decloud", *arguments, check=False, environment={"FSDECLOUD_HOME": str(network.home)})


def kill_driver(network: Network) -> None:
    """Kill the driver while a program writes; take the dead mount away."""
    mnt, status = network.mountpoint, network.status()
    writer = network.start("sh", "-c", f"i=0; while head -c 70000 /dev/urandom > {mnt}/a/w$i; do i=$((i+1)); done")
    network.wait_status(lambda now: now["files"] > status["files"] + 20, 30, "the writer writes")
    network.sync("durable")
    network.wait_status(lambda now: now["dirty"]["bytes"] > 0, 30, "something is dirty")
    network.kill(int(status["driver_pid"]))
    agent = int(status["agent_pid"])
    network.wait_until(lambda: not cleanup.is_alive(agent), 20, "the agent ends")
    network.wait_for_exit(writer, 30, "the writer")
    network.run("umount", "-l", mnt)


def test_exit_codes(mounted: Network) -> None:
    network, volume = mounted, mounted.volume
    mounted = network.decloud("fsck", volume, check=False)
    assert mounted.code == 8
    assert f"volume {volume} is mounted at {network.mountpoint}" in mounted.err
    assert plain(network, "nothing").code == 8
    assert plain(network, "--nothing", volume).code == 16
    assert plain(network, "-n", "-y", volume).code == 16
    assert plain(network, "--offline", "--network", volume).code == 16


def test_nothing_is_wrong_after_a_kill(mounted: Network) -> None:
    network = mounted
    kill_driver(network)
    found = fsck(network, "--offline")
    assert found["findings"] == []
    assert found["inodes"] > 60
    found = fsck(network, "--data", "--network")
    assert found["findings"] == []
    assert found["references"] > 40
    assert found["snapshots"] > 0
    assert found["read_bytes"] > 5_000_000
    assert found["blobs"] > 0
    assert found["receipts"] is not None
    assert plain(network, "-a", f"decloud:{network.volume}").code == 0
    assert fsck(network, "-y")["findings"] == []


def test_a_new_machine_has_all_of_it(mounted: Network) -> None:
    network = mounted
    network.umount()
    remove_tree(network.home / "cache")
    found = fsck(network, "--offline")
    assert {one["severity"] for one in found["findings"]} <= {"note"}
    found = fsck(network, "--data")
    assert found["findings"] == []
    assert found["unchecked_references"] == 0
    assert found["read_bytes"] > 5_000_000


def test_fault_058_a_peer_that_lost_its_store_is_noticed(mounted: Network) -> None:
    network = mounted
    peer = network.status().local_peers()[0]
    store = network.peer_store(peer)
    network.umount()
    network.kill(peer["pid"])
    silent = fsck(network, "--network", code=4)
    assert {one["kind"] for one in silent["findings"]} == {"replicas"}
    assert all("1 with peers that do not answer" in one["text"] for one in silent["findings"])
    assert silent["incomplete_blobs"] == silent["blobs"]
    for directory in [path for path in store.rglob("*") if path.name in ("shards", "index")]:
        remove_tree(directory)
    network.up()
    network.umount()
    found = fsck(network, "--network", code=4)
    assert found["incomplete_blobs"] > 0
    assert all("2 of 3 shards are there" in one["text"] for one in found["findings"])
