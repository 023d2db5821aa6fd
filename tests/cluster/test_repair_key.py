"""Another machine keeps a volume whole while its owner is away, and cannot read a byte of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.harness import K, N, Network, Status

MIB = 1 << 20
PEERS = 8
MARK = "a name that nobody else may know"


@pytest.fixture(scope="module")
def owner() -> Iterator[Network]:
    """A volume of a few large and many small files, with a repair key, anchored; two peers more than a blob needs."""
    with Network(peers=PEERS) as network:
        status = network.up()
        assert (status["k"], status["n"], len(status.local_peers())) == (K, N, PEERS)
        mnt = network.mountpoint
        script = (
            f"for i in 1 2; do head -c {4 * MIB} /dev/urandom > {mnt}/big$i; done; mkdir {mnt}/small;"
            f"for i in $(seq 60); do head -c 9000 /dev/urandom > {mnt}/small/$i; done;"
            f"echo {'plain words ' * 50} > '{mnt}/{MARK}'"
        )
        network.run("sh", "-c", script)
        network.sync("anchored")
        yield network


def sums(network: Network) -> str:
    """Return the checksums of everything in the mount."""
    command = f"cd {network.mountpoint} && find . -type f | sort | xargs -d '\\n' sha256sum"
    return network.run("sh", "-c", command, deadline=180).out


def test_a_repair_key_keeps_a_volume_whole_and_cannot_read_it(owner: Network) -> None:
    before = sums(owner)
    key = owner.work / "repair key"
    owner.decloud("repair-key", owner.volume, "--output", key)
    assert key.stat().st_mode & 0o777 == 0o600
    assert owner.decloud("repair-key", owner.volume, "--output", key, check=False).code == 1, "never over another file"
    url = owner.ledger_url()
    peers = owner.status().local_peers()
    owner.drop_cache()
    owner.umount()
    for peer in peers[: PEERS - N]:
        owner.kill(peer["pid"])
    with Network() as other:
        options = ("--key", key, "--after", "3s", "--json")
        found = other.decloud("repair", *options, "--bootstrap", url, deadline=180).json()
        assert (found["under_replicated"], found["unreadable"], found["peers_down"]) == (0, 0, PEERS - N)
        assert found["repaired_shards"] > 0
        assert found["renewed_shards"] > found["blobs"]
        again = other.decloud("repair", *options, deadline=120).json()
        assert (again["repaired_shards"], again["under_replicated"]) == (0, 0), "it remembers, or finds it again"
        _holds_nothing_readable(other.home)
        (Path(other.home) / "bad").write_bytes(key.read_bytes().replace(b'"check": "', b'"check": "0'))
        (Path(other.home) / "bad").chmod(0o600)
        refused = other.decloud("repair", "--key", Path(other.home) / "bad", check=False)
        assert (refused.code, "damaged" in refused.err or "not a repair key" in refused.err) == (1, True)
    # Of those that are left only k may stay: what they have alone is in part what the other machine made, and nobody told.
    for peer in peers[PEERS - N : PEERS - K]:
        owner.kill(peer["pid"])
    owner.mount()
    assert sums(owner) == before
    owner.up()


def _holds_nothing_readable(home: Path) -> None:
    """Neither names nor contents are anywhere in what the other machine kept."""
    for directory, _, names in os.walk(home):
        for name in names:
            path = Path(directory) / name
            if path.is_file():
                data = path.read_bytes()
                assert MARK.encode() not in data, path
                assert b"plain words" not in data, path


@pytest.mark.long
def test_a_peer_that_leaves_hands_over_what_it_holds(owner: Network) -> None:
    """Its shards are with others, and it was told to let go of them, before it is switched off."""

    def is_whole(status: Status) -> bool:
        repair = status["repair"]
        return repair["under_replicated"] == 0 and not repair["surveying"] and repair["blobs"] > 0

    owner.wait_status(is_whole, 120, "every blob has all its shards")
    owner.sync("anchored")
    before = sums(owner)
    peer = max(owner.decloud("peer", "status", "--json").json_lines(), key=lambda found: int(found["shards"]))
    name = peer["name"]
    announced = owner.decloud("peer", "leave", name, "--json", check=False)
    assert (announced.code, announced.json()["reason"]) == (3, "leaving")

    def status_of_peer() -> dict[str, Any]:
        found: dict[str, Any] = owner.decloud("peer", "status", name, "--json").json()
        return found

    def is_handed_over() -> bool:
        """But for copies of what described earlier states."""
        found = status_of_peer()
        return int(found["shards"]) - int(found["doomed_shards"]) <= int(found["departure_shards"]) // 2

    owner.wait_until(is_handed_over, 150, lambda: f"the owner moves its shards: {status_of_peer()}")
    owner.wait_status(lambda status: status["repair"]["moving"] == 0, 60, "nothing is left to be moved")
    assert "owners have moved" in owner.decloud("peer", "status", name).out
    owner.kill(peer["pid"])
    owner.drop_cache()
    assert sums(owner) == before
