"""What the options that limit a mount do: read-only, noexec, nosuid, nodev, sync, dirsync, allow_root, nonempty, cache_size."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fsdecloud.limits import SEGMENT_SIZE
from tests.cluster import cleanup
from tests.cluster.harness import Network

pytestmark = pytest.mark.fuse

MIB = 1 << 20
USER = 1000


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """A small network whose volume is mounted by each test as it likes."""
    with Network(peers=1) as fresh:
        fresh.up()
        fresh.run("chmod", "755", fresh.mountpoint)
        yield fresh


@pytest.fixture(autouse=True)
def mended(network: Network) -> None:
    """Mount it if the test before left no mount, or a dead one."""
    network.up()


def as_user(network: Network, *command: str | Path) -> tuple[int, str, str]:
    """Run a program as somebody who is not root; return its exit code and what it said."""
    account = (f"--reuid={USER}", f"--regid={USER}", "--clear-groups")
    result = network.run("setpriv", *account, *command, check=False)
    return result.code, result.out.strip(), result.err.strip()


# ---- read-only ------------------------------------------------------------------------------------------------------


def test_read_only_errnos_are_those_of_ext4(network: Network) -> None:
    """Every call that changes something, as root and as the owner, by path and by descriptor."""
    plain = network.mount_ext4("plain", 64 * MIB, "-O", "^has_journal")
    said = []
    try:
        for place in (network.mountpoint, plain):
            if place == network.mountpoint:
                network.remount("allow_other", "acl", "suid", "dev")
            network.run("chmod", "755", place)
            network.run("mkdir", "-m", "777", place / "readonly")
            network.run(sys.executable, "-m", "tests.fuse.readonly", "make", place / "readonly")
            if place == plain:
                network.run("mount", "-o", "remount,ro", place)
            else:
                network.remount("ro", "allow_other", "acl", "suid", "dev")
            said.append(network.run(sys.executable, "-m", "tests.fuse.readonly", "change", place / "readonly").json())
    finally:
        network.run("umount", plain)
    mount, ext4 = said
    assert {call: (got, ext4[call]) for call, got in mount.items() if got != ext4[call]} == {}
    assert sum(answer == "EROFS" for answer in ext4.values()) > 100
    network.remount()
    network.run("rm", "-r", network.mountpoint / "readonly")


# ---- nosuid, nodev, noexec --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("acl", ["noacl", "acl"])
def test_fault_092_set_user_id_programs_and_devices_do_nothing_unless_root_says_so(network: Network, acl: str) -> None:
    """By default programs run, but nobody gets root by one, and a device is none; each option turns that round."""
    place = network.mountpoint
    network.remount("allow_other", acl)
    network.run("cp", "/usr/bin/id", place / "id")
    network.run("chmod", "4755", place / "id")
    network.run("mknod", "-m", "666", place / "null", "c", "1", "3")
    root, user = (0, "0", ""), (0, str(USER), "")
    shown = {}
    for options in ("", "suid,dev", "noexec", "noexec,exec", "suid,nosuid,dev,nodev"):
        network.remount("allow_other", acl, *filter(None, [options]))
        ran = as_user(network, place / "id", "-u")
        wrote = as_user(network, "sh", "-c", f"echo x > {place}/null")
        if options == "noexec":
            assert ran[0] != 0
            assert "Permission denied" in ran[2]
            assert network.run("sh", "-c", f"exec {place}/id", check=False).code == 126, "not even root"
        else:
            assert ran == (root if options == "suid,dev" else user), options
        if options == "suid,dev":
            assert wrote == (0, "", "")
        else:
            assert "Permission denied" in wrote[2], options
        shown[options] = flags(network)
    assert shown[""] == {"rw", "nosuid", "nodev", "relatime"} == shown["noexec,exec"] == shown["suid,nosuid,dev,nodev"]
    assert shown["noexec"] == {"rw", "nosuid", "nodev", "noexec", "relatime"}
    assert shown["suid,dev"] == {"rw", "relatime"}
    network.run("rm", "-f", place / "id", place / "null")


FLAGS = {"rw", "ro", "nosuid", "nodev", "noexec", "relatime", "noatime", "sync", "dirsync"}


def flags(network: Network) -> set[str]:
    """Return how the kernel shows the mount."""
    text = network.run("findmnt", "-n", "-o", "OPTIONS", "--mountpoint", network.mountpoint).out
    return set(text.strip().split(",")) & FLAGS


# ---- sync, dirsync ----------------------------------------------------------------------------------------------------

CHANGE_AND_KILL = """
import os, signal, sys
what, driver = sys.argv[1], int(sys.argv[2])
fd = os.open("open", os.O_RDWR)
if what == "write":
    os.pwrite(fd, b"written", 0)
elif what == "create":
    os.open("made", os.O_CREAT | os.O_WRONLY)
elif what == "mkdir":
    os.mkdir("made")
elif what == "mknod":
    os.mknod("made")
elif what == "symlink":
    os.symlink("x", "made")
elif what == "link":
    os.link("open", "made")
elif what == "rename":
    os.rename("old", "made")
elif what == "rmdir":
    os.rmdir("gone")
elif what == "unlink":
    os.unlink("old")
os.kill(driver, signal.SIGKILL)
"""


@pytest.mark.parametrize(
    ("option", "what"),
    [
        ("sync", "write"),
        ("sync,nowriteback", "write"),
        ("sync,acl", "mkdir"),
        ("dirsync", "create"),
        ("dirsync,acl", "rename"),
        ("dirsync", "unlink"),
        *[pytest.param("dirsync", what, marks=pytest.mark.long) for what in ("mknod", "symlink", "link", "rmdir")],
        *[pytest.param("sync", what, marks=pytest.mark.long) for what in ("create", "rename", "unlink")],
    ],
)
def test_synchronous_changes_outlive_a_kill(network: Network, option: str, what: str) -> None:
    place = network.mountpoint / f"{option}-{what}"
    network.run("mkdir", place, place / "gone")
    network.run("touch", place / "open", place / "old")
    network.remount(option)
    assert flags(network) == {"rw", "nosuid", "nodev", "relatime", option.partition(",")[0]}
    driver = network.status()["driver_pid"]
    network.run(sys.executable, "-c", CHANGE_AND_KILL, what, str(driver), cwd=place)
    network.wait_until(lambda: not cleanup.is_alive(driver), 20, "the driver ends")
    network.up()
    gone = {"write": {"made"}, "rename": {"old"}, "unlink": {"made", "old"}, "rmdir": {"made", "gone"}}
    names = {"open", "old", "gone", "made"} - gone.get(what, set())
    assert set(network.run("ls", place).out.split()) == names
    assert network.run("cat", place / "open").out == ("written" if what == "write" else "")
    network.run("rm", "-r", place)


# ---- others -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("acl", ["noacl", "acl"])
def test_allow_root_lets_nobody_else_in(network: Network, acl: str) -> None:
    network.remount("allow_root", acl)
    network.run("touch", network.mountpoint / "file")
    network.run("chmod", "777", network.mountpoint, network.mountpoint / "file")
    for command in (("ls", network.mountpoint), ("cat", network.mountpoint / "file"), ("stat", network.mountpoint)):
        code, out, err = as_user(network, *command)
        assert (code != 0, out) == (True, ""), command
        assert "Permission denied" in err
    network.run("chmod", "755", network.mountpoint)


def test_nonempty_is_needed_where_there_is_something(network: Network) -> None:
    network.umount()
    under = network.mountpoint / "under the mount"
    under.write_text("x")
    refused = network.decloud("mount", network.volume, network.mountpoint, check=False)
    assert refused.code != 0
    assert "not empty" in refused.err, refused.describe()
    assert not network.is_mounted
    network.decloud("mount", network.volume, network.mountpoint, "-o", "nonempty")
    assert under.name not in network.run("ls", network.mountpoint).out
    network.run("touch", network.mountpoint / "on the mount")
    network.umount()
    assert [path.name for path in network.mountpoint.iterdir()] == [under.name]
    under.unlink()


def removed_segments(pid: int) -> list[str]:
    """Return the segments that a process has open although they were removed."""
    found = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(os.readlink(fd))
    return [name for name in found if name.endswith(".seg (deleted)")]


def test_the_cache_stays_as_small_as_it_is_told(network: Network) -> None:
    """But for the two segments that the agent works with. What does not fit is fetched again, and is the same."""
    size, count = 64 * MIB, 4
    bound = size + 2 * SEGMENT_SIZE
    assert count * size > bound
    network.remount("cache_size=64M")
    wanted = []
    for number in range(count):
        assert network.worker("write_and_sync", network.mountpoint / f"large{number}", str(size), f"c{number}")["same"]
        network.sync("stored")
        wanted.append(network.digest(f"large{number}"))
    network.remount("cache_size=64M")
    assert [network.digest(f"large{number}") for number in range(count)] == wanted
    status = network.wait_status(lambda status: status["cache_bytes"] <= bound, 60, "the cache is small")
    assert status["cache_bytes"] > size // 2
    assert status["downloaded_bytes"] >= size
    # A removed file fills the disk for as long as somebody has it open.
    daemons = (status["driver_pid"], status["agent_pid"])
    network.wait_until(
        lambda: not any(map(removed_segments, daemons)), 60, lambda: f"{[*map(removed_segments, daemons)]}"
    )
    network.run("sh", "-c", f"rm {network.mountpoint}/large*")
