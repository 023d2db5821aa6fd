"""A network whose peers are paid: deals are made, revised and shown by themselves; programs notice nothing."""

import os
import time

import msgspec
import pytest

from fsdecloud.config import HOME_VARIABLE, find_paths
from fsdecloud.ledger.network import priced_network, target_of
from fsdecloud.ledgerd.setup import init_ledger
from tests.cluster.harness import Network, diff_trees

PEERS = 6


@pytest.fixture
def priced():
    """A network with a block a second, up and mounted."""
    with Network(peers=PEERS) as network:
        easy = target_of(1 << 21)
        document = msgspec.structs.replace(
            priced_network("test", os.urandom(32), int(time.time())),
            interval=1,
            half_life=600,
            first_target=easy,
            easiest_target=target_of(1 << 19),
        )
        init_ledger(find_paths({HOME_VARIABLE: str(network.home)}), document)
        network.decloud("up", network.mountpoint, "--peers", str(PEERS), "--priced", "--detach", deadline=180)
        yield network


def deals(network):
    return network.decloud("deals", "cloud", "--json").json()["deals"]


def test_everything_stored_is_in_deals_that_both_sides_have_signed(priced):
    network = priced
    network.wait_until(
        lambda: sum(one["state"] == "running" for one in deals(network)) == PEERS, 120, "a deal with each peer"
    )
    source = network.work / "source"
    source.mkdir()
    for i in range(40):
        (source / f"file {i}").write_bytes(os.urandom(50_000 + 10_000 * i))
    network.run("cp", "-r", source, network.mountpoint / "copy")
    network.sync("stored")
    network.drop_cache()
    diff_trees(network, source, network.mountpoint / "copy")

    total = sum(path.stat().st_size for path in source.iterdir())
    network.wait_until(lambda: sum(one["bytes"] for one in deals(network)) > total, 60, "revisions over what is stored")

    # Money moved, and can be followed.
    assert all(one["escrow"] > 0 for one in deals(network))
    balance = network.decloud("wallet", "balance", "cloud", "--json").json()
    assert balance["confirmed"] > 0
    kinds = [line.get("operation", line.get("kind")) for line in network.decloud("log", "cloud", "--json").json_lines()]
    assert kinds.count("payment") >= PEERS
    peer = network.decloud("peer", "status", "peer-1", "--json").json()
    assert peer["deals"]["running"] == 1
    assert peer["deals"]["bytes"] > 0
    assert peer["deals"]["collateral"] > 0
    assert "6 running" in network.decloud("status", check=False).out
