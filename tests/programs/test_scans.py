"""What walks over everything fetches nothing, and what sync(1) promises."""

from __future__ import annotations

from tests.cluster.harness import Network
from tests.programs.support import Places, job

DATA = 12 << 20


def test_fault_156_scans_fetch_no_data(network: Network, places: Places) -> None:
    """find, ls, du and stat of a whole volume whose cache is gone fetch metadata only; reading then fetches the data."""
    count = DATA // 100_000
    job(network, "write_many", places.inside, count, 100_000)
    network.sync("stored")
    before = network.drop_cache()["downloaded_bytes"]
    script = (
        "find . -xdev -printf '%p %s %m %U %G %T@ %l\\n' | sort > /dev/null; ls -lRa > /dev/null; du -s . > /dev/null"
    )
    network.run("sh", "-c", script, cwd=network.mountpoint, deadline=120)
    listed = network.run("sh", "-c", "find . -type f -size +90k | wc -l; getfattr -d * 2>&1 | wc -c", cwd=places.inside)
    assert listed.out.split() == [str(count), "0"]
    after = network.status()["downloaded_bytes"]
    assert after - before < DATA // 4, "metadata of everything in this volume is small"
    assert job(network, "check_many", places.inside, count, 100_000) == []
    assert network.status()["downloaded_bytes"] - after >= DATA // 2, "the count counts"


def test_fault_158_sync(network: Network, places: Places) -> None:
    """sync(2) and syncfs(2) end, and soon after what was written survives the driver's death without any fsync.

    The kernel does not tell a FUSE file system of either; it only writes its pages out.
    """
    job(network, "write_unsynced", places.inside, 40)
    network.wait_status(
        lambda status: not status.bytes("dirty") and status["durable_sequence"] >= status["written_sequence"],
        30,
        "what was written is durable",
    )
    network.kill_driver()
    network.up()
    assert job(network, "check_many", places.inside, 40, 50_000) == []
