"""What a mount takes it gives back: memory, descriptors and threads after many files and after many rounds of everything."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from fsdecloud.driver.inodes import INODES_KEPT
from tests.cluster.harness import Network

pytestmark = pytest.mark.fuse

MIB: Final = 1 << 20
MARGIN: Final = 80 * MIB
"""What caches with a fixed bound may keep: inodes and nodes in memory, the allocator's free lists."""

ONE_LISTING: Final = 1000
"""More inodes than one request for names loads."""

STILL_DIRTY: Final = 16
"""Inodes that may be changed and not yet written at one moment; a thousand rounds that leave one each leave more."""

WARM_UP: Final = 3
PERIODS: Final = 4
"""Daemons reach their size at their first scrub, their first questions to others: a leak grows in each period."""

DESCRIPTORS: Final = 4
"""Connections and files that are open or not at any moment."""


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
    """Have the kernel forget inodes, so that it tells the driver. One that has pages is kept unless they go as well."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def inodes(network: Network) -> tuple[int, int]:
    """Return how many inodes the driver holds, and how many of them the kernel was told of, after it was asked to forget:
    its word to the driver comes a moment later, and a name that was used lately gets a second chance."""
    drop_caches()
    status = network.status()
    return int(status["live_inodes"]), int(status["kernel_inodes"])


def resting_inodes(network: Network) -> tuple[int, int]:
    """Return the same once it does not change any more."""
    seen = [inodes(network)]

    def rests() -> bool:
        seen.append(inodes(network))
        return len(set(seen[-3:])) == 1 and len(seen) > 3

    network.wait_until(rests, 60, lambda: f"the inodes in memory stay as many: {seen}")
    return seen[-1]


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
    before, (_, told) = usage(network), resting_inodes(network)
    for _ in range(2):
        found = network.run("sh", "-c", f"find {place} -type f -size -1 | wc -l", deadline=300)
        assert int(found.out) == count
        assert network.status()["kernel_inodes"] > count // 2, "the kernel was told of them"
        network.wait_until(
            lambda: inodes(network)[1] == told, 60, lambda: f"the kernel knows {told}: {inodes(network)}"
        )
        assert network.status()["live_inodes"] <= INODES_KEPT + ONE_LISTING
    network.wait_until(lambda: settled(network, before), 60, lambda: f"memory returns to {before}: {usage(network)}")


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
    before, kept = usage(network), resting_inodes(network)
    network.run(sys.executable, "-c", rounds, place, "600", deadline=120)

    def is_back() -> bool:
        """One that is dirty when the kernel forgets it stays as one of the clean ones that are kept."""
        held, told = inodes(network)
        return told == kept[1] and held <= kept[0] + STILL_DIRTY

    network.wait_until(is_back, 60, lambda: f"as many inodes as before, {kept}: {inodes(network)}")
    network.wait_until(
        lambda: settled(network, before), 60, lambda: f"the driver returns to {before}: {usage(network)}"
    )


def resources(pid: int) -> tuple[int, int]:
    """Return a process's own memory in bytes (not what it has mapped of files) and its descriptors."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return int(lines["RssAnon"].split()[0]) << 10, len(os.listdir(f"/proc/{pid}/fd"))


def mount_again_and_again(network: Network, rounds: int, margin: int) -> None:
    """No process, mount, or temporary file is left, and the daemons that stay are as large as before."""

    def one_round(number: int) -> None:
        network.run("sh", "-c", f"echo {number} > {network.mountpoint}/round")
        network.umount()
        network.mount()

    for number in range(WARM_UP):
        one_round(number)
    network.sync("anchored")
    status = network.status()
    stay = [int(status["ledger_pid"]), *(int(peer["pid"]) for peer in status.local_peers())]
    assert len(stay) == 1 + network.peers
    directories = directories_of(network)
    processes = len(network.processes())
    grown: list[dict[int, tuple[int, int]]] = []
    while not (grown and is_as_small(grown[-1], margin)):
        assert len(grown) < PERIODS, f"what stays grows and grows: {grown} bytes and descriptors"
        before = {pid: resources(pid) for pid in stay}
        for number in range(rounds):
            one_round(number)
        network.sync("anchored")
        assert len(network.processes()) == processes
        assert directories_of(network) <= directories
        assert network.run("cat", network.mountpoint / "round").out == f"{rounds - 1}\n"
        grown.append(growth(before, margin))


def directories_of(network: Network) -> set[Path]:
    """Return all directories below the network's home, empty ones too."""
    return {path for path in network.home.rglob("*") if path.is_dir()}


def is_as_small(grown: dict[int, tuple[int, int]], margin: int) -> bool:
    """Whether no process has grown by more than the margin, in bytes and in descriptors."""
    return all(memory <= margin and descriptors <= DESCRIPTORS for memory, descriptors in grown.values())


def growth(before: dict[int, tuple[int, int]], margin: int) -> dict[int, tuple[int, int]]:
    """Return by how much processes have grown, in bytes and in descriptors: connections take a while to end."""
    end = time.monotonic() + 60
    while True:
        now = {pid: resources(pid) for pid in before}
        grown = {pid: (now[pid][0] - before[pid][0], now[pid][1] - before[pid][1]) for pid in before}
        if time.monotonic() > end or is_as_small(grown, margin):
            return grown
        time.sleep(1)


def test_some_mounts(network: Network) -> None:
    mount_again_and_again(network, 4, 3 * MIB)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_a_thousand_mounts(network: Network) -> None:
    mount_again_and_again(network, 1000, 8 * MIB)
