"""What mount options change of a file system's behaviour, compared with ext4 where ext4 has the same."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.cluster.harness import Network
from tests.fuse import scenario

pytestmark = pytest.mark.fuse


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """A small network whose volume is mounted by each test as it likes."""
    with Network(peers=1) as fresh:
        fresh.up()
        fresh.umount()
        yield fresh


def in_both(network: Network, name: str) -> tuple[object, object]:
    """Return what a scenario says on the mount and on the disk."""
    said = []
    for place in (network.mountpoint / name, network.work / name):
        network.run("mkdir", place)
        said.append(network.run(sys.executable, "-m", "tests.fuse.scenario", name, place).json())
        network.run("rm", "-rf", place)
    return said[0], said[1]


def test_access_control_lists(network: Network) -> None:
    network.remount("acl,allow_other,dev,suid")
    names = [name for name in sorted(scenario.load()) if name.startswith("acl_")]
    for name in [*names, "modes", "owners", "set_group_id_of_directories_is_inherited", "extended_attributes"]:
        inside, outside = in_both(network, name)
        assert inside == outside, name


def test_lists_survive_a_mount_without_them(network: Network) -> None:
    mount = network.mountpoint
    network.remount("acl")
    network.run("mkdir", mount / "kept")
    network.run("setfacl", "-m", "u:1000:rwx,d:u:1000:rwx", mount / "kept")
    before = network.run("getfacl", "-n", "kept", cwd=mount).out
    network.remount("noacl")
    assert "Operation not supported" in network.run("setfacl", "-m", "u:1:r", mount / "kept", check=False).err
    assert "posix_acl" not in network.run("getfattr", "-m", "-", mount / "kept").out
    network.run("touch", mount / "kept/not-inherited")
    network.remount("acl")
    assert network.run("getfacl", "-n", "kept", cwd=mount).out == before
    assert "1000" not in network.run("getfacl", "-n", mount / "kept/not-inherited").out
    network.run("rm", "-r", mount / "kept")


ATIME = """
import os, sys, time
path, kind = sys.argv[1:]
def atime():
    return os.lstat(path).st_atime_ns
def use():
    time.sleep(0.02)
    if kind == "directory":
        os.listdir(path)
    else:
        with open(path, "rb") as file:
            file.read()
if kind == "directory":
    os.mkdir(path)
else:
    with open(path, "wb") as file:
        file.write(b"data")
said = [atime()]
for _ in range(2):
    use()
    said.append(atime())
print("".join("=<"[b > a] for a, b in zip(said, said[1:])))
"""


@pytest.mark.parametrize(
    ("options", "file", "directory"),
    [
        ("rw", "<=", "<="),
        ("noatime", "==", "=="),
        ("strictatime", "<<", "<<"),
        ("nodiratime", "<=", "=="),
        ("strictatime,nodiratime", "<<", "=="),
    ],
)
def test_access_times(network: Network, options: str, file: str, directory: str) -> None:
    mount = network.mountpoint
    network.remount(options)
    for kind, expected in (("file", file), ("directory", directory)):
        said = network.run(sys.executable, "-c", ATIME, mount / kind, kind).out.strip()
        assert said == expected, (options, kind)
    network.run("rm", "-r", mount / "file", mount / "directory")


def test_access_times_outlive_the_mount_and_make_no_commit(network: Network) -> None:
    mount = network.mountpoint
    network.remount("rw")
    network.run("sh", "-c", f"mkdir {mount}/d; echo data > {mount}/f; ln -s f {mount}/l")
    network.sync("stored")
    before = network.status()["written_sequence"]
    script = "import os, sys\nos.chdir(sys.argv[1])\nos.listdir('d'); os.readlink('l')\n"
    script += "print([os.lstat(name).st_atime_ns for name in 'dl'])\n"
    moved = network.run(sys.executable, "-c", script, mount).out
    assert network.status()["written_sequence"] == before, "reading alone makes nothing to write"
    network.remount("noatime")
    assert network.run(sys.executable, "-c", script, mount).out == moved
    network.run("sh", "-c", f"rm -r {mount}/d {mount}/f {mount}/l")
