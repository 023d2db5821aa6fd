"""What mount options change of a file system's behaviour, compared with ext4 where ext4 has the same."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.cluster.harness import Network, remove_tree
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


MAKE_ACL_TREE = """
mkdir -p tree/shared/deep/deeper tree/plain && cd tree
setfacl -m u:1000:rwx,g:2000:r-x,d:u:1000:rw-,d:g:2000:---,d:m:rwx shared
mkdir shared/inherits && touch shared/inherits/file shared/file plain/file shared/deep/deeper/none
setfacl -m u:7:r--,g:8:rw-,m::r-- plain/file
setfacl -m u::---,g::---,o::---,u:1000:rwx shared/deep/deeper
setfacl -d -m u:3:r-x shared/deep
chmod 2750 shared/deep && ln plain/file plain/twin && ln -s ../plain/file shared/link && setfattr -n user.x -v y plain/file
for number in $(seq 1 60); do setfacl -m u:$((3000 + number)):r-- plain; done
"""
DESCRIBE = (
    "find . -printf '%p %M %n %U %G\\n' | sort; find . ! -type l | sort > ../names;"
    "xargs getfacl -n < ../names; xargs getfattr -d -m user -e hex < ../names"
)
WAYS = {
    "rsync": 'rsync -aAHX "$1/" "$2"',
    "tar": 'mkdir "$2" && tar -C "$1" --acls --xattrs -cf - . | tar -C "$2" --acls --xattrs -xpf -',
    "cp": 'cp -a "$1" "$2"',
}


def test_access_control_lists_are_copied(network: Network) -> None:
    """Into the mount, within it, and out of it, by what people copy with; and they are the same from the peers alone."""
    network.remount("acl", "allow_other")
    network.run("sh", "-ec", MAKE_ACL_TREE, cwd=network.work)
    original = network.work / "tree"
    wanted = network.run("sh", "-c", DESCRIBE, cwd=original).out
    assert wanted.count("user:") > 70, wanted
    network.run("mkdir", network.mountpoint / "copies", network.work / "copies")
    for way, script in WAYS.items():
        inside, within = network.mountpoint / "copies" / way, network.mountpoint / "copies" / f"{way} within"
        outside = network.work / "copies" / way
        for source, target in ((original, inside), (inside, within), (within, outside)):
            network.run("sh", "-ec", script, "sh", source, target)
            assert network.run("sh", "-c", DESCRIBE, cwd=target).out == wanted, (way, target)
    network.sync("stored")
    network.umount()
    remove_tree(network.home / "cache")
    network.remount("acl", "allow_other")
    for way in WAYS:
        assert network.run("sh", "-c", DESCRIBE, cwd=network.mountpoint / "copies" / way).out == wanted, way
    again = network.run("rsync", "-aAHX", "--itemize-changes", f"{original}/", network.mountpoint / "copies" / "rsync")
    assert again.out == ""
    network.run("rm", "-r", network.mountpoint / "copies")


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
