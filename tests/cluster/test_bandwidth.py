"""A volume with little bandwidth, with real processes and a real mount (fault 63)."""

from __future__ import annotations

import time

import pytest

from tests.cluster.harness import Network

MIB = 1 << 20


@pytest.mark.long
def test_fault_063_little_bandwidth_holds_up_nothing_but_the_upload() -> None:
    with Network(peers=3) as network:
        network.up()
        network.run("sh", "-c", f"echo before > {network.mountpoint}/before")
        network.sync("anchored")
        network.decloud("volume", "set", "--up", "256K", network.volume)
        assert network.status()["up_limit"] == 256 << 10
        start = time.monotonic()
        network.run("sh", "-c", f"head -c {24 * MIB} /dev/urandom > {network.mountpoint}/large")
        network.sync("durable")
        digest = network.digest("large")
        sent = network.status()["uploaded_bytes"]
        network.wait_status(lambda status: status["uploaded_bytes"] > sent, 60, "the upload goes on")
        status = network.status()
        seconds = time.monotonic() - start
        # Three copies of three peers; each may have one message of a MiB under way that is not paid for yet.
        assert status["uploaded_bytes"] - sent <= (seconds * 256 + 4096) * 1024
        assert status.bytes("staged") > 12 * MIB
        network.umount()  # within the deadline of any command, and not of the upload
        network.remount("up=0")
        assert network.status()["up_limit"] is None, "what the mount is asked for goes before what the volume is set to"
        network.sync("anchored")
        assert network.digest("large") == digest
        network.remount()
        assert network.status()["up_limit"] == 256 << 10
        network.decloud("volume", "set", "--up", "0", network.volume)
        assert network.status()["up_limit"] is None
