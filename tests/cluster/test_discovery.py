"""A new machine that was told one peer and one ledger daemon finds everybody, and reaches who moved while there is no ledger:
by way of peers that heard of it, until the announcement has come round (component/agent/test_discovery.py)."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.cluster.harness import Network, diff_trees
from tests.cluster.test_recover import find_phrase


@pytest.fixture
def first() -> Iterator[Network]:
    """The machine that has the peers, with a volume that is anchored and not mounted any more."""
    with Network() as network:
        network.up()
        network.wait_status(lambda s: len([p for p in s.peers if p["state"] == "up"]) == 6, 60, "six peers are hosts")
        source = network.base / "source"
        source.mkdir()
        for i in range(30):
            (source / str(i)).write_bytes(os.urandom(1000 + 30_000 * i))
        network.run("cp", "-r", source, network.mountpoint / "tree")
        network.sync("stored")
        network.sync("anchored")
        network.umount()
        yield network


def local(network: Network) -> dict[str, Mapping[str, Any]]:
    return {peer["name"]: peer for peer in network.decloud("peer", "status", "--json").json_lines()}


def test_faults_056_059_one_address_is_enough_and_who_moves_is_reached(first: Network) -> None:
    peers = local(first)
    name, moving = max(peers.items(), key=lambda item: int(item[1]["tested_peers"]))
    told = next(peer["url"] for other, peer in peers.items() if other != name)
    with Network() as other:
        secret = other.work / "words"
        secret.touch(mode=0o600)
        secret.write_text(find_phrase(first.decloud("phrase", first.volume).out) + "\n")
        url = first.ledger_url()
        other.decloud("recover", "found", "--phrase-file", secret, "--bootstrap", url, "--peer", told, deadline=120)
        other.decloud("mount", "found", other.mountpoint, deadline=90)
        diff_trees(other, first.base / "source", other.mountpoint / "tree")
        other.wait_status(
            lambda s: {p["id"] for p in s.peers if p["state"] == "up"} == {p["id"] for p in peers.values()},
            60,
            "all peers are found",
        )

        # Peers tell of those only whom they have tested, and know from the registry that is about to go.
        first.wait_until(
            lambda: all(peer["tested_peers"] == len(peers) - 1 for peer in local(first).values()),
            120,
            "all peers know each other",
            every=1,
        )
        for network in (other, first):
            network.kill(int(network.decloud("ledger", "status", "--json").json()["pid"]), signal.SIGTERM)
        first.kill(int(moving["pid"]), signal.SIGTERM)
        first.start_decloud("peer", "run", name, "--listen", "127.0.0.1:0")
        first.wait_until(lambda: local_url(first, name) not in ("", moving["url"]), 30, "the peer is at another port")
        moved = local_url(first, name)

        assert other.worker("write_and_sync", other.mountpoint / "new", "2000000", "new")["same"]
        other.sync("stored", deadline=90)  # all n shards, one of them there
        shown = next(peer for peer in other.status().peers if peer["id"] == moving["id"])
        assert shown["state"] == "up"
        assert shown["address"] == moved or shown["by_way_of"] in {peer["id"] for peer in peers.values()}
        assert other.decloud("ledger", "status", check=False).code != 0, "there is no ledger that could have said so"


def local_url(network: Network, name: str) -> str:
    """Return where a peer says that it is, "" while it does not run."""
    found = network.decloud("peer", "status", "--json", name, check=False)
    return str(found.json().get("url", "")) if found.out else ""
