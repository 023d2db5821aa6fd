"""What a mount takes it gives back: memory, descriptors and threads after many files and after many rounds of everything."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.cluster.harness import Network

pytestmark = pytest.mark.fuse

MIB: Final = 1 << 20
MARGIN: Final = 80 * MIB
"""What caches with a fixed bound may keep: inodes and nodes in memory, the allocator's free lists."""


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network(peers=3) as fresh:
        fresh.up()
        yield fresh


def usage(network: Network) -> tuple[int, int, int]:
    """Return the driver's resident bytes, descriptors and threads."""
    pid = network.status()["driver_pid"]
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return int(lines["VmRSS"].split()[0]) << 10, len(os.listdir(f"/proc/{pid}/fd")), int(lines["Threads"])


def settled(network: Network, before: tuple[int, int, int]) -> bool:
    """Whether the driver is back where it was, but for what its caches may keep."""
    memory, descriptors, threads = usage(network)
    return memory <= before[0] + MARGIN and descriptors <= before[1] + 40 and threads <= before[2] + 8


def drop_caches() -> None:
    """Have the kernel forget inodes, so that it tells the driver."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("2")


def look_at(network: Network, count: int) -> None:
    place = network.mountpoint / f"many-{count}"
    program = (
        "import os, sys\n"
        "for part in range(int(sys.argv[2]) // 1000):\n"
        "    os.makedirs(f'{sys.argv[1]}/{part}')\n"
        "    for number in range(1000): os.mknod(f'{sys.argv[1]}/{part}/{number}')\n"
    )
    network.run(sys.executable, "-c", program, place, str(count), deadline=300)
    network.sync("stored", deadline=300)
    network.umount()
    network.mount()
    before = usage(network)
    for _ in range(2):
        found = network.run("sh", "-c", f"find {place} -type f -size -1 | wc -l", deadline=300)
        assert int(found.out) == count
        drop_caches()
    network.wait_until(lambda: settled(network, before), 60, f"memory returns to {before}: {usage(network)}")


def test_fault_143_many_files(network: Network) -> None:
    look_at(network, 5000)


@pytest.mark.long
def test_fault_143_a_hundred_thousand_files(network: Network) -> None:
    look_at(network, 100_000)


def test_rounds_of_everything(network: Network) -> None:
    rounds = (
        "import os, sys\n"
        "os.makedirs(sys.argv[1], exist_ok=True); os.chdir(sys.argv[1])\n"
        "for number in range(int(sys.argv[2])):\n"
        "    os.mkdir('d'); fd = os.open('d/a', os.O_CREAT | os.O_RDWR)\n"
        "    os.write(fd, b'x' * 5000); os.fsync(fd); os.close(fd)\n"
        "    os.rename('d/a', 'd/b'); os.setxattr('d/b', 'user.x', b'y'); os.listdir('d'); os.unlink('d/b'); os.rmdir('d')\n"
    )
    place = network.mountpoint / "rounds"
    network.run(sys.executable, "-c", rounds, place, "100")
    before = usage(network)
    network.run(sys.executable, "-c", rounds, place, "1000", deadline=120)
    network.wait_until(lambda: settled(network, before), 60, f"the driver returns to {before}: {usage(network)}")


@pytest.mark.long
def test_fifty_mounts(network: Network) -> None:
    """No process, mount, or temporary file is left."""
    files = {path for path in network.home.rglob("*") if "log" not in path.parts}
    processes = len(network.processes())
    for number in range(50):
        network.run("sh", "-c", f"echo {number} > {network.mountpoint}/round")
        network.umount()
        network.mount()
    assert len(network.processes()) == processes
    assert {path.parent for path in network.home.rglob("*")} - {path.parent for path in files} == set()
    assert network.run("cat", network.mountpoint / "round").out == "49\n"
