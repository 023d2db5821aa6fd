"""What lies on the local disk: full, read-only, damaged, taken away, or of another release."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import cleanup
from tests.cluster.harness import Network

MIB = 1 << 20
MOUNT_FAILED = 32


def filler(network: Network, operation: str, name: str, number: int, deadline: float = 240) -> Any:
    """Run an operation of tests.crash.filler on a file in the mount."""
    arguments = ("-m", "tests.crash.filler", operation, network.mountpoint / name, str(number))
    return network.run(sys.executable, *arguments, deadline=deadline).json()


def stop_peers(network: Network) -> None:
    """Kill all peers of this machine: what is staged stays staged."""
    for peer in network.status().local_peers():
        network.kill(peer["pid"])


@pytest.fixture
def small_disk() -> Iterator[tuple[Network, Path]]:
    """A network whose volume's state and cache lie on an ext4 of 400 MiB, its peers elsewhere; and that disk."""
    with Network(peers=1) as network:
        disk = network.mount_ext4("disk", 400 * MIB, "-m", "0")
        try:
            (network.home / "state").mkdir(mode=0o700, parents=True)
            for link, target in (("state/volumes", "volumes"), ("cache", "cache")):
                (disk / target).mkdir(mode=0o700)
                (network.home / link).symlink_to(disk / target)
            network.up()
            yield network, disk
            network.down()
        finally:
            subprocess.run(["umount", "-l", disk], check=True, timeout=60)


def test_fault_013_a_full_disk(small_disk: tuple[Network, Path]) -> None:
    network, _disk = small_disk
    assert filler(network, "fill", "clean", 64) == {"errno": "", "acked": 64, "written": 63}
    network.sync("stored")
    # What is stored becomes the cache's a moment later.
    before = network.wait_status(lambda status: status.bytes("staged") == 0, 30, "everything is in the cache")
    stop_peers(network)
    full = filler(network, "fill", "filler", 2000)
    assert full["errno"] == "ENOSPC", full
    # Clean blobs went first: more fits than what was free beside them.
    after = network.status()
    assert int(before["cache_bytes"]) > 0, "proved nothing: nothing is cached"
    assert int(after["cache_bytes"]) < int(before["cache_bytes"])
    assert filler(network, "check", "filler", full["acked"]) == {"right": full["acked"]}
    network.run("ls", "-l", network.mountpoint)
    # Names go on a little longer: the journal has a reserve.
    script = 'i=0; while [ $i -lt 300 ]; do mkdir "$1/made-$i" && sync "$1/made-$i" || break; i=$((i+1)); done; echo $i'
    made = int(network.run("sh", "-c", script, "sh", network.mountpoint).out)
    assert made == 300
    # Killed just now: it mounts on the full disk, without a manual step, and nothing is lost.
    network.kill(after["driver_pid"])
    network.up()
    assert filler(network, "check", "filler", full["acked"]) == {"right": full["acked"]}
    assert filler(network, "check", "clean", 64) == {"right": 64}, "what is not here comes from the peer"
    assert len(network.run("find", network.mountpoint, "-name", "made-*").out.split()) >= made
    # Space freed: uploaded, or removed; writes succeed without a remount.
    pid = network.status()["driver_pid"]
    network.sync("stored", deadline=240)
    network.run("rm", network.mountpoint / "filler")
    assert filler(network, "fill", "again", 32)["errno"] == ""
    network.sync("stored", deadline=240)
    status = network.status()
    assert status["driver_pid"] == pid
    assert status["handler_errors"] == 0


def test_fault_016_a_read_only_disk(small_disk: tuple[Network, Path]) -> None:
    network, disk = small_disk
    network.worker("write_and_sync", network.mountpoint / "kept", str(MIB), "kept")
    network.umount()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True, timeout=60)
    try:
        result = network.decloud("mount", network.volume, network.mountpoint, check=False)
        assert result.code in (1, 2, MOUNT_FAILED), result.describe()
        assert len(result.err.splitlines()) == 1, result.describe()
        assert re.search(r"read-only", result.err, re.IGNORECASE), result.describe()
        assert cleanup.mounts_below(network.base)[-1].directory == str(disk)
    finally:
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True, timeout=60)
    network.mount()
    assert network.worker("read_at", network.mountpoint / "kept", "0")[0]["size"] == 64 << 10


# ---- damage ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """One peer, and a volume with one file that is stored."""
    with Network(peers=1) as fresh:
        fresh.up()
        filler(fresh, "fill", "stored", 8)
        fresh.sync("stored")
        yield fresh


@pytest.fixture
def mounted(network: Network) -> Network:
    """The network, mounted, whatever the test before did."""
    network.up()
    return network


def state(network: Network) -> Path:
    return network.home / "state" / "volumes" / network.volume


def flip(path: Path) -> None:
    """Change a bit in every 64 KiB of a file."""
    with open(path, "r+b") as file:
        for offset in range(40_000, path.stat().st_size, 64 << 10):
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 4]))


def test_fault_017_bit_flips_in_the_cache(mounted: Network) -> None:
    network = mounted
    network.drop_cache()
    assert filler(network, "check", "stored", 8) == {"right": 8}
    network.umount()
    segments = list((network.home / "cache").rglob("*.seg"))
    assert sum(path.stat().st_size for path in segments) > 4 * MIB, "proved nothing: the cache is empty"
    for path in segments:
        flip(path)
    log = network.home / "state" / "log" / f"driver-{network.volume}.log"
    length = log.stat().st_size
    network.mount()
    assert filler(network, "check", "stored", 8) == {"right": 8}
    assert b"cached entry does not verify" in log.read_bytes()[length:]
    assert network.status()["integrity_errors"] > 0
    assert network.status()["handler_errors"] == 0


def test_fault_018_bit_flips_in_what_only_this_machine_has(mounted: Network) -> None:
    network = mounted
    stop_peers(network)
    filler(network, "fill", "damaged", 4)
    network.umount()
    damaged = sorted((state(network) / "staged").glob("*.seg"))
    assert damaged, "proved nothing: nothing is staged"
    for path in damaged:
        flip(path)
    network.mount()
    seen = network.worker("read_at", network.mountpoint / "damaged", "0", str(2 * MIB))
    assert {answer.get("errno") for answer in seen} <= {"EIO", "ETIMEDOUT"}, seen
    network.up()  # the peer is back
    network.wait_status(lambda status: "damaged on this disk" in str(status.raw), 60, "status tells of the damage")
    assert network.status().bytes("staged") >= 4 * MIB, "nothing damaged counts as stored"
    seen = network.worker("read_at", network.mountpoint / "damaged", "0", str(2 * MIB))
    assert {answer.get("errno") for answer in seen} == {"EIO"}, seen
    assert filler(network, "check", "stored", 8) == {"right": 8}, "the mount lives"
    network.umount()
    for path in damaged:
        flip(path)  # as it was
    network.mount()
    network.sync("stored")
    network.drop_cache()
    assert filler(network, "check", "damaged", 4) == {"right": 4}


# ---- taken away -----------------------------------------------------------------------------------------------------


def test_fault_021_the_cache_is_deleted_while_it_runs(mounted: Network) -> None:
    network = mounted
    network.drop_cache()
    assert filler(network, "check", "stored", 8) == {"right": 8}
    subprocess.run(["rm", "-rf", network.home / "cache"], check=True, timeout=60)
    network.run("sh", "-c", "echo 3 > /proc/sys/vm/drop_caches")
    assert filler(network, "check", "stored", 8) == {"right": 8}
    assert filler(network, "fill", "after the cache", 8)["errno"] == ""
    network.sync("stored")
    assert network.status()["handler_errors"] == 0
    network.umount()
    network.mount()
    assert filler(network, "check", "after the cache", 8) == {"right": 8}


def test_fault_021_the_cache_is_unmounted_while_it_runs(mounted: Network) -> None:
    """Nothing is written into the directory below."""
    network = mounted
    network.umount()
    cache = network.home / "cache"
    subprocess.run(["rm", "-rf", cache], check=True, timeout=60)
    cache.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g,mode=0700", "cache", cache], check=True, timeout=60)
    try:
        network.mount()
        assert filler(network, "check", "stored", 8) == {"right": 8}
    finally:
        subprocess.run(["umount", "-l", cache], check=True, timeout=60)
    assert filler(network, "fill", "below", 100)["errno"] == ""
    network.sync("stored")
    network.run("sh", "-c", "echo 3 > /proc/sys/vm/drop_caches")
    assert filler(network, "check", "below", 100) == {"right": 100}
    assert filler(network, "check", "stored", 8) == {"right": 8}
    assert [path for path in cache.rglob("*") if path.is_file()] == []
    assert network.status()["handler_errors"] == 0
    network.umount()
    assert [path for path in cache.rglob("*") if path.is_file()] == []
    network.mount()
    assert filler(network, "check", "below", 100) == {"right": 100}


def test_fault_021_the_staging_area_is_deleted_while_it_runs(mounted: Network) -> None:
    """Nothing that is lost this way is ever acknowledged, and the reason is told."""
    network = mounted
    network.sync("stored")
    stop_peers(network)
    aside = state(network) / "aside"
    (state(network) / "staged").rename(aside)
    lost = filler(network, "fill", "lost", 8)
    assert (lost["errno"], lost["acked"]) != ("", 8), "what has no place was acknowledged"
    assert re.search("staged|staging", str(network.status()["last_error"])), network.status().raw
    aside.rename(state(network) / "staged")
    network.kill(network.status()["driver_pid"])
    network.up()
    assert filler(network, "check", "stored", 8) == {"right": 8}
    assert filler(network, "fill", "found", 8)["errno"] == ""
    network.sync("stored")


# ---- not ours -------------------------------------------------------------------------------------------------------


def refused(network: Network, says: str) -> None:
    """The volume does not mount, and one line says why."""
    result = network.decloud("mount", network.volume, network.mountpoint, check=False)
    assert result.code in (1, 2, MOUNT_FAILED), result.describe()
    assert len(result.err.splitlines()) == 1, result.describe()
    assert re.search(says, result.err, re.IGNORECASE), result.describe()
    assert cleanup.mounts_below(network.base) == []


def test_fault_027_modes(mounted: Network) -> None:
    network = mounted
    network.umount()
    for path in (state(network), state(network) / "state.lmdb", state(network) / "staged", network.home / "config"):
        before = path.stat().st_mode & 0o7777
        path.chmod(0o777)
        refused(network, rf"chmod 700 {re.escape(str(path))}")
        path.chmod(before)
    os.chown(state(network), 12345, -1)
    refused(network, "belong to you")
    os.chown(state(network), 0, -1)
    network.mount()


def test_fault_031_a_store_of_a_newer_release(mounted: Network) -> None:
    network = mounted
    network.umount()
    mark = state(network) / "state.lmdb" / "format"
    before = mark.read_text()
    mark.write_text("fsdecloud 99\n")
    refused(network, r"99.*\d")
    assert mark.read_text() == "fsdecloud 99\n"
    mark.write_text(before)
    network.mount()
    assert filler(network, "check", "stored", 8) == {"right": 8}
