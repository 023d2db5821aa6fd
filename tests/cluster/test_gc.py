"""Garbage collection in a real network: what nothing needs leaves the peers' disks, and everything else is read from there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.harness import N, Network

MIB = 1 << 20


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """A network whose peers keep deleted shards for no time."""
    with Network() as fresh:
        fresh.up()
        fresh.down()
        settings = list(fresh.home.glob("**/peer.toml"))
        assert len(settings) == N
        for file in settings:
            file.write_text(file.read_text().replace("grace = 86400", "grace = 0"))
            assert "grace = 0" in file.read_text()
        fresh.up()
        # What is written while one seems to be down yet, it gets later: how full the disks are would not be what it will be.
        fresh.wait_status(lambda s: all(peer["state"] == "up" for peer in s.peers), 60, "all peers are reached")
        yield fresh


def on_disk(network: Network) -> int:
    """Return the bytes of all shard segments of all peers."""
    return sum(path.stat().st_size for peer in network.status().local_peers() for path in network.shard_files(peer))


def make(network: Network, path: Path, size: int) -> None:
    """Write random bytes to a file of the mount."""
    network.run("sh", "-c", f"head -c {size} /dev/urandom > {path}")


def digests(network: Network, where: Path) -> str:
    """Return the checksums of all files below a directory of the mount."""
    return network.run("sh", "-c", f"cd {where} && find . -type f | sort | xargs sha256sum", deadline=120).out


def collect(network: Network, *options: str) -> dict[str, object]:
    """Run `decloud gc` to its end."""
    found: dict[str, object] = network.decloud("gc", network.volume, "--json", *options, deadline=120).json()
    return found


def test_what_no_state_needs_leaves_the_peers_and_all_else_is_read_from_them(network: Network) -> None:
    mnt = network.mountpoint
    make(network, mnt / "stays", 5 * MIB)
    make(network, mnt / "old", 20 * MIB)
    network.run(
        "sh", "-c", f"mkdir {mnt}/small; for i in $(seq 200); do head -c 9000 /dev/urandom > {mnt}/small/$i; done"
    )
    network.sync("anchored")
    full = on_disk(network)
    network.run("sh", "-c", f"rm {mnt}/old; cd {mnt}/small && ls | grep -v 7 | xargs rm")
    network.sync("anchored")
    kept = digests(network, mnt)

    # Snapshots need it all: nothing goes.
    found = collect(network)
    assert found["deleted_bytes"] < MIB, found
    snapshots = network.decloud("snapshot", "list", network.volume, "--json").json_lines()
    assert len(snapshots) >= 2
    with_old = next(s for s in reversed(snapshots) if s["bytes"] > 25 * MIB)
    snapshot = mnt / ".snapshots" / with_old["directory"]
    before = digests(network, snapshot)
    assert "old" in before

    # A dry run says what would go when they are forgotten, and does nothing.
    others = [str(s["sequence"]) for s in snapshots if s["sequence"] != with_old["sequence"]]
    network.decloud("snapshot", "forget", network.volume, *others[:-1])
    network.sync("anchored")
    collect(network)
    network.drop_cache()
    assert digests(network, snapshot) == before
    assert digests(network, mnt) == kept
    network.decloud("snapshot", "forget", network.volume, str(with_old["sequence"]))
    network.sync("anchored")
    looked = collect(network, "--dry-run")
    assert looked["condemned_bytes"] > 60 * MIB, looked  # 20 MiB at 2/6
    assert on_disk(network) > full - 10 * MIB

    started = time.monotonic()
    found = collect(network)
    assert found["deleted_bytes"] > 60 * MIB, found
    network.wait_until(lambda: on_disk(network) < full - 55 * MIB, 240, "peers give their space back")
    print(f"gc took {time.monotonic() - started:.1f} s: {full} -> {on_disk(network)} bytes; {found}")
    network.drop_cache()
    assert digests(network, mnt) == kept

    # And the same content can be written again, and is read from the peers.
    network.run("sh", "-c", f"cp {mnt}/stays {mnt}/again; rm {mnt}/stays")
    network.sync("anchored")
    network.drop_cache()
    assert digests(network, mnt).count("again") == 1
    status = network.status()
    assert status["gc"]["error"] is None
    assert status["last_error"] is None, status["last_error"]
