"""A real mount behaves as a plain directory: the same scenarios run in both, and what they return is compared.

The scenarios are in `scenario` and its siblings; here is what needs more than one process: the model that outlives mounts,
caches and commits. All accesses are made by children with a deadline.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.harness import Network, remove_tree
from tests.fuse import scenario

pytestmark = pytest.mark.fuse

DEADLINE = 40.0


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """A small network with an empty volume, mounted."""
    with Network(peers=3) as fresh:
        fresh.up()
        yield fresh


def run_scenario(network: Network, name: str, directory: Path) -> object:
    """Run a scenario in a child in a new directory."""
    network.run("mkdir", directory)
    return network.run(sys.executable, "-m", "tests.fuse.scenario", name, directory, deadline=DEADLINE).json()


@pytest.mark.parametrize("name", [name for name in sorted(scenario.load()) if not name.startswith("acl_")])
def test_as_on_a_plain_disk(network: Network, name: str) -> None:
    """Among them what faults 142, 144, 145, 146 and 150 ask for."""
    outside = run_scenario(network, name, network.work / name)
    remove_tree(network.work / name)
    inside = run_scenario(network, name, network.mountpoint / name)
    assert inside == outside
    network.run("rm", "-rf", network.mountpoint / name)


def test_without_the_write_cache_and_attribute_caches_of_the_kernel(network: Network) -> None:
    """What the kernel answers by itself in the other tests, the driver answers here."""
    names = ["hard_links", "memory_maps", "open_flags", "removed_while_open", "sparse_files", "times"]
    names += ["times_that_attribute_changes_set", "times_that_name_changes_set", "truncate_patched_chunks"]
    differing = []
    with network.mounted_with("nowriteback", "attr_timeout=0", "entry_timeout=0"):
        for name in names:
            inside = run_scenario(network, name, network.mountpoint / f"bare-{name}")
            outside = run_scenario(network, name, network.work / f"bare-{name}")
            if inside != outside:
                differing.append((name, inside, outside))
        network.run("sh", "-c", f"rm -rf {network.mountpoint}/bare-* {network.work}/bare-*")
    assert differing == []


def test_records_of_long_paths(network: Network) -> None:
    """More bytes of records than one entry or one message may hold: they are shown, committed, and shown again."""
    place = network.mountpoint / ("d" * 250) / ("e" * 250) / ("f" * 250)
    script = "import os, sys\nos.makedirs(sys.argv[1])\nfor i in range(3000): open(f'{sys.argv[1]}/{i}', 'w').close()\n"
    network.run(sys.executable, "-c", script, place)

    def created() -> int:
        lines = network.decloud("log", network.volume, "--json", deadline=DEADLINE).json_lines()
        return sum(line["operation"] == "create" and "fff/" in line["path"] for line in lines)

    assert created() == 3000
    network.umount()
    network.mount()
    network.sync("stored")
    assert created() == 3000
    network.run("rm", "-r", network.mountpoint / ("d" * 250))


def test_large_extended_attribute(network: Network) -> None:
    """64 KiB, the kernel's limit; ext4 keeps no more than a block."""
    path = network.mountpoint / "xattr"
    script = (
        "import os, sys, random\n"
        "path, value = sys.argv[1], random.Random(5).randbytes(65536)\n"
        "if sys.argv[2] == 'set':\n"
        "    open(path, 'w').close(); os.setxattr(path, 'user.big', value); os.setxattr(path, 'user.bih', value[:5000])\n"
        "assert os.getxattr(path, 'user.big') == value\n"
        "assert os.getxattr(path, 'user.bih') == value[:5000]\n"
        "assert sorted(os.listxattr(path)) == ['user.big', 'user.bih']\n"
    )
    network.run(sys.executable, "-c", script, path, "set")
    network.sync("stored")
    network.drop_cache()
    network.run(sys.executable, "-c", script, path, "check")


def test_what_is_there_after_a_mount_is_what_was_there_before(network: Network) -> None:
    """Names, types, modes, owners, times, links, attributes and contents, from the tree instead of from memory."""
    place = network.mountpoint / "tree"
    for name in ("hard_links", "special_files", "owners", "times", "extended_attributes", "random_operations_on_names"):
        run_scenario(network, name, network.mountpoint / f"kept-{name}")
    network.run("mkdir", place)
    network.run("sh", "-c", f"mv {network.mountpoint}/kept-* {place}")

    def describe() -> object:
        return network.run(sys.executable, "-m", "tests.fuse.model", "describe", place).json()

    before = describe()
    network.umount()
    network.mount()
    assert describe() == before
    network.sync("stored")
    network.drop_cache()
    assert describe() == before
    network.run("rm", "-rf", place)


def test_several_processes_change_names_at_once(network: Network) -> None:
    """No link count is wrong afterwards, neither in memory nor in the tree."""
    place = network.mountpoint / "churn"
    command = (sys.executable, "-m", "tests.fuse.model")
    network.run("mkdir", place)
    writer = network.start(*command, "churn", place, "3", log=network.work / "churn.log")
    while writer.poll() is None:
        network.sync("stored")
    assert writer.returncode == 0, (network.work / "churn.log").read_text()
    before = network.run(*command, "describe", place).json()
    network.drop_cache()
    network.run(*command, "links", place)
    assert network.run(*command, "describe", place).json() == before
    network.run("rm", "-rf", place)


def test_random_writes_against_a_model(network: Network) -> None:
    """Seeded writes, reads, truncations and fsyncs; in between commits, a remount, and reads from peers alone."""
    path, seed = network.mountpoint / "model", "7"

    def command(first: int, last: int) -> list[str | Path]:
        return [sys.executable, "-m", "tests.fuse.model", "step", path, seed, str(first), str(last)]

    network.run(*command(0, 120), deadline=DEADLINE)
    network.umount()
    network.mount()
    writer = network.start(*command(120, 300), log=network.work / "model.log")
    while writer.poll() is None:
        network.sync("stored")  # commits freeze the file's chunks while they are written
    assert writer.returncode == 0, (network.work / "model.log").read_text()
    network.sync("stored")
    network.drop_cache()
    network.run(*command(300, 400), deadline=DEADLINE)
    network.sync("stored")
    network.drop_cache()
    network.run(*command(400, 400), deadline=DEADLINE)


def test_more_patches_than_a_chunk_may_have(network: Network) -> None:
    """Single overwrites of a stored chunk, each committed by an fsync, until it must be folded."""
    data = bytearray(random.Random(3).randbytes((1 << 20) + 5000))
    plain, path = network.work / "patched", network.mountpoint / "patched"
    plain.write_bytes(data)
    network.run("cp", plain, path)
    network.sync("stored")
    offsets = random.Random(4).sample(range(0, 1 << 20, 4096), 150)
    script = (
        "import os, sys\n"
        "fd = os.open(sys.argv[1], os.O_RDWR)\n"
        "for number, offset in enumerate(eval(sys.argv[3]), int(sys.argv[2])):\n"
        "    os.pwrite(fd, bytes([number]) * 600, offset); number % 25 or os.fsync(fd)\n"
        "os.fsync(fd); os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)\n"
    )
    for first in range(0, 150, 30):  # a commit after each turns what was written into patches of a page each
        for number, offset in enumerate(offsets[first : first + 30], first):
            data[offset : offset + 600] = bytes([number]) * 600
        plain.write_bytes(data)
        network.run(sys.executable, "-c", script, path, str(first), str(offsets[first : first + 30]))
        network.run("cmp", plain, path)
        network.sync("stored")
        network.run(sys.executable, "-c", script, path, "0", "[]")
        network.run("cmp", plain, path)
    network.drop_cache()
    network.run("cmp", plain, path)
    network.run("rm", path)
    plain.unlink()
