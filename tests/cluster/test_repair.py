"""Peers lose their stores, or give nothing back of what they hold: the volume comes back to full redundancy by itself."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from tests.cluster.harness import K, N, Network, Status, remove_tree

MIB = 1 << 20
BIG, SMALL, SMALL_SIZE = 3, 100, 9000
BIG_SIZE = 2 * MIB
"""Enough for blobs of every kind; each byte is stored three times over, read, and in part stored again."""
PEERS = 8
"""Two more than a blob needs: at 2/6 each has spare ones."""


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """A network whose volume holds a few large and many small files, anchored."""
    with Network(peers=PEERS) as fresh:
        status = fresh.up()
        assert (status["k"], status["n"], len(status.local_peers())) == (K, N, PEERS)
        mnt = fresh.mountpoint
        script = (
            f"for i in $(seq {BIG}); do head -c {BIG_SIZE} /dev/urandom > {mnt}/big$i; done; mkdir {mnt}/small;"
            f"for i in $(seq {SMALL}); do head -c {SMALL_SIZE} /dev/urandom > {mnt}/small/$i; done"
        )
        fresh.run("sh", "-c", script)
        fresh.sync("anchored")
        yield fresh


@pytest.fixture(autouse=True)
def _mended(network: Network) -> Iterator[None]:
    """Every test begins and ends with all peers running and all blobs whole."""
    wait_whole(network)
    yield
    network.up()
    wait_whole(network)


def wait_whole(network: Network) -> Status:
    """Wait until nothing lacks a shard."""

    def is_whole(status: Status) -> bool:
        repair = status["repair"]
        return not any(repair[name] for name in ("under_replicated", "away", "contained", "surveying"))

    return network.wait_status(is_whole, 120, "every blob has all its shards")


def sums(network: Network) -> str:
    """Return the checksums of everything in the mount."""
    command = f"cd {network.mountpoint} && find . -type f | sort | xargs sha256sum"
    return network.run("sh", "-c", command, deadline=120).out


def lose_stores(network: Network, peers: Sequence[Mapping[str, Any]]) -> None:
    """Kill peers, delete what they store, and start them again under the same keys."""
    for peer in peers:
        store = network.peer_store(peer)
        network.kill(peer["pid"])
        remove_tree(store / "shards")
        remove_tree(store / "index")
    network.up()


def test_f058_f060_f064_n_minus_k_peers_lose_their_stores_and_all_redundancy_comes_back(network: Network) -> None:
    before = sums(network)
    peers = network.status().local_peers()
    lose_stores(network, peers[: N - K])
    network.drop_cache()
    assert sums(network) == before, "any k of n suffice"

    def has_begun(status: Status) -> bool:
        return bool(status["repair"]["under_replicated"] or status["repair"]["repaired_blobs"])

    seen = network.wait_status(has_begun, 60, "the missing shards are noticed")
    shown = network.decloud("status", network.mountpoint, check=False)
    if seen["repair"]["under_replicated"] and "under-replicated" in shown.out:
        assert shown.code == 4
    status = wait_whole(network)
    repair = status["repair"]
    assert repair["unreadable"] == 0
    assert repair["repaired_blobs"] > 0
    total = (BIG * BIG_SIZE + SMALL * SMALL_SIZE + MIB) / K * N  # all shards there are
    assert MIB < repair["repaired_bytes"] < total * (N - K) / N * 1.5, "each lost shard was made once"
    network.sync("anchored")
    # The proof: those that never lost anything go, and only what was made again is left.
    for peer in peers[N - K :]:
        network.kill(next(p["pid"] for p in network.status().local_peers() if p["id"] == peer["id"]))
    network.drop_cache()
    assert sums(network) == before


def test_f073_a_peer_that_says_it_has_and_never_gives_is_replaced(network: Network) -> None:
    before = sums(network)
    peer = max(
        network.status().local_peers(), key=lambda peer: sum(os.path.getsize(p) for p in network.shard_files(peer))
    )
    for path in network.shard_files(peer):
        os.truncate(path, 0)  # its index still names every shard
    network.drop_cache()
    made = network.status()["repair"]["repaired_shards"]
    assert sums(network) == before
    network.wait_status(
        lambda status: status["repair"]["repaired_shards"] > made and status["repair"]["audits_failed"] > 0,
        90,
        "what it does not give is made again elsewhere",
    )
    wait_whole(network)
    lose_stores(network, [peer])


@pytest.mark.long
def test_f061_too_few_peers_are_left_and_the_blobs_return_with_them(network: Network) -> None:
    network.drop_cache()
    made = network.status()["repair"]["repaired_shards"]
    for peer in network.status().local_peers()[: PEERS - 1]:
        network.kill(peer["pid"])
    network.run("cat", network.mountpoint / "big1", deadline=120, check=False)
    found = network.wait_status(
        lambda status: status["repair"]["unreadable"] > 0, 120, "blobs that cannot be read are counted"
    )
    assert found["repair"]["repaired_shards"] == made
    shown = network.decloud("status", network.mountpoint, check=False)
    assert shown.code == 4
    assert "too few shards to be read" in shown.out
    network.up()
    status = wait_whole(network)
    assert status["repair"]["unreadable"] == 0
    sums(network)
