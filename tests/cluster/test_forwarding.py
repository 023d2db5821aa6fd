"""Clients that can open connections to one peer only, and peers that are found where they are."""

import os
import socket
import sys
import time
from contextlib import contextmanager

import pytest
import trio

from fsdecloud.net.address import parse_url
from fsdecloud.net.pool import open_pool
from fsdecloud.wire.announcements import verify_announcement
from tests.cluster.harness import Network, diff_trees

SIZE = 12 << 20


def fill(directory):
    """Make a tree of large and small files."""
    (directory / "small").mkdir(parents=True)
    (directory / "large").write_bytes(os.urandom(SIZE))
    for i in range(40):
        (directory / "small" / f"{i}").write_bytes(os.urandom(100 + 300 * i))
    return directory


@contextmanager
def narrowed(network, port):
    """Mount the volume in a network namespace from which only one port can be reached."""
    log = network.work / "narrow"
    log.write_bytes(b"")
    decloud = ["env", f"FSDECLOUD_HOME={network.home}", "decloud", "mount", network.volume, str(network.mountpoint)]
    process = network.start(sys.executable, "-m", "tests.cluster.narrow", str(port), *decloud, log=log)
    try:
        network.wait_until(lambda: "\nexit " in log.read_text(), 60, "the volume is mounted in the namespace")
        assert log.read_text().endswith("exit 0\n"), log.read_text()
        yield
        network.umount()
    finally:
        process.terminate()
        process.wait(10)


def drop_cache(network):
    network.run("rm", "-rf", "--one-file-system", network.home / "cache")


def local_status(network, name):
    statuses = network.decloud("peer", "status", "--json").json_lines()
    return next(status for status in statuses if status["name"] == name)


def test_a_volume_is_written_and_read_where_one_peer_can_be_reached():
    with Network() as network:
        status = network.up()
        peers = status.local_peers()
        network.wait_status(lambda s: len([p for p in s.peers if p["state"] == "up"]) == 6, 60, "six peers are hosts")
        volume, relay = network.volume, peers[0]
        network.umount()
        port = int(relay["address"].removeprefix("wss://").partition("/")[0].rpartition(":")[2])
        source = fill(network.base / "source")

        with narrowed(network, port):
            network.run("cp", "-r", source, network.mountpoint / "tree", deadline=120)
            network.sync("anchored", deadline=120)
            expected = {peer["id"]: (None if peer["id"] == relay["id"] else relay["id"], "up") for peer in peers}
            shown = network.wait_status(
                lambda s: {peer["id"]: (peer["by_way_of"], peer["state"]) for peer in s.peers} == expected,
                60,
                "all but the relay are reached by way of it",
            )
            assert shown["volume"] == volume
            told = network.decloud("status", network.mountpoint, check=False).out
            assert f"by way of {relay['name']}" in told
        forwarded = local_status(network, relay["name"])["forwarded_bytes"]
        network.wait_until(
            lambda: local_status(network, relay["name"])["tested_peers"] == 5,
            120,
            "the relay knows all others",
            every=1,
        )
        assert forwarded > 3 * SIZE * 5 // 6  # at 2/6 three times the bytes, five sixths of them for the others

        drop_cache(network)
        with narrowed(network, port):
            diff_trees(network, source, network.mountpoint / "tree")
            network.run("rm", "-r", network.mountpoint / "tree" / "small")
            network.sync("anchored")
        assert local_status(network, relay["name"])["forwarded_bytes"] > forwarded

        drop_cache(network)
        network.mount()  # with the whole network in reach
        network.run("cmp", source / "large", network.mountpoint / "tree" / "large")
        assert all(peer["by_way_of"] is None for peer in network.status().peers)


def told_by(address):
    """Return where all peers are by what one peer tells: id -> port."""
    known = parse_url(address)

    async def ask():
        async with open_pool(network=known.network) as pool:
            return await pool.peers(known, 64, b"")

    found = [verify_announcement(data, network=known.network, now=int(time.time())) for data in trio.run(ask)]
    return {announcement.peer.hex(): parse_url(announcement.url).port for announcement in found}


def wait_told(network, address, ports):
    """Wait until the peer at an address tells where all are. It answers a few questions of one address at once, not many."""
    network.wait_until(lambda: told_by(address) == ports, 120, lambda: str(told_by(address)), every=3)


@pytest.mark.long
def test_a_peer_behind_a_changed_address_registers_again_and_is_found():
    """By the mount, through the ledger; and by whoever asks one other peer."""
    with Network(peers=3) as network:
        network.up()
        network.wait_status(lambda s: len([p for p in s.peers if p["state"] == "up"]) == 3, 60, "three peers are hosts")
        source = fill(network.base / "source")
        network.run("cp", "-r", source / "small", network.mountpoint / "small")
        network.sync("stored")
        mover, other, _ = network.status().local_peers()
        ports = {peer["id"]: parse_url(peer["address"]).port for peer in network.status().peers}
        wait_told(network, other["address"], ports)

        network.kill(mover["pid"])
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        config = network.home / "state" / "peers" / mover["name"] / "peer.toml"
        config.write_text(config.read_text().replace(f":{ports[mover['id']]}", f":{port}"))
        network.up()
        moved = network.wait_status(
            lambda s: all(p["state"] == "up" for p in s.peers) and any(f":{port}/" in p["address"] for p in s.peers),
            90,
            "the mount uses the new address",
        )
        assert {peer["id"] for peer in moved.peers} == set(ports)
        ports[mover["id"]] = port
        wait_told(network, other["address"], ports)
        network.drop_cache()
        diff_trees(network, source / "small", network.mountpoint / "small")
