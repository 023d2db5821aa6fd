"""The driver's process at its weak moments: starting, ending, stopped, signalled, out of memory, out of its usual place."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster import cleanup
from tests.cluster.harness import DECLOUD, ROOT, Network

MIB = 1 << 20
SEED = int(os.environ.get("CRASH_SEED", "20240611"))
EMPTY_TMP = "mount -t tmpfs -o ro none /tmp"
MOUNT_FAILED = 32


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """One peer, and a volume with one synced file."""
    with Network(peers=1) as fresh:
        fresh.up()
        fresh.worker("write_and_sync", fresh.mountpoint / "kept", str(MIB), "kept")
        yield fresh


@pytest.fixture
def mounted(network: Network) -> Network:
    """The network, mounted, whatever the test before did."""
    network.up()
    return network


@pytest.fixture
def unmounted(network: Network) -> Network:
    """The network, not mounted."""
    network.up()
    network.umount()
    return network


def is_whole(network: Network) -> bool:
    """Whether the synced file is there and nothing hangs."""
    return bool(network.worker("read_at", network.mountpoint / "kept", "0")[0].get("size") == 64 << 10)


def foreground(network: Network, *, log: Path) -> subprocess.Popen[bytes]:
    """Mount in the foreground; return the command's process once the mount serves."""
    process = network.start_decloud("mount", "--foreground", network.volume, network.mountpoint, log=log)
    network.wait_until(lambda: "is mounted at" in log.read_text(), 60, "the mount serves")
    return process


def write_unsynced(network: Network, name: str) -> str:
    """Write 3 MiB without any sync; return their digest."""
    script = 'head -c 3000000 /dev/urandom > "$1"; sha256sum < "$1"'
    return network.run("sh", "-c", script, "sh", network.mountpoint / name).out


# ---- starting -------------------------------------------------------------------------------------------------------


def test_fault_004_killed_while_it_starts(unmounted: Network) -> None:
    """At any instant from its first to its last before it serves: the command fails, and the next one mounts."""
    network = unmounted
    chooser = random.Random(SEED)
    killed = 0
    for turn in range(6):
        log = network.work / f"start-{turn}"
        command = network.start_decloud("mount", network.volume, network.mountpoint, log=log)
        network.wait_until(lambda: network.drivers(), 30, "the driver is started")
        if turn < 4:
            time.sleep(chooser.uniform(0.0, 0.8))
        else:  # in the narrow space between the kernel's mount and the first answer
            end = time.monotonic() + 30
            while not cleanup.mounts_below(network.base) and time.monotonic() < end:
                pass
        for pid in network.drivers():
            cleanup.send_signal(pid, signal.SIGKILL)
        code = network.wait_for_exit(command, 30, f"the command whose driver was killed (seed {SEED}, turn {turn})")
        said = log.read_text()
        assert "Traceback" not in said
        if code:
            killed += 1
            assert code in (2, MOUNT_FAILED), said
            assert len(said.splitlines()) == 1, said
            assert cleanup.mounts_below(network.base) == [], "nothing dead is left behind"
    assert killed, "proved nothing: each kill came after the mount served"
    network.mount()
    assert is_whole(network)


def test_fault_004_the_command_is_killed_while_the_driver_starts(unmounted: Network) -> None:
    network = unmounted
    command = network.start_decloud("mount", network.volume, network.mountpoint)
    network.wait_until(lambda: network.drivers(), 30, "the driver is started")
    command.kill()
    command.wait()
    # The driver serves, or will in a moment: a second command then says so.
    again = network.decloud("mount", network.volume, network.mountpoint, check=False)
    assert again.code in (0, MOUNT_FAILED), again.describe()
    network.wait_until(lambda: cleanup.mounts_below(network.base), 30, "one of them serves")
    assert is_whole(network)
    assert len(network.drivers()) == 1


# ---- ending ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", [False, True], ids=["umount has begun", "the mount is gone"])
def test_fault_005_killed_while_it_unmounts(unmounted: Network, gone: bool) -> None:
    network = unmounted
    name = f"unmounting-{gone}"
    for turn in range(8):
        log = network.work / f"{name}-{turn}"
        driver = foreground(network, log=log)
        network.worker("write_and_sync", network.mountpoint / name, str(3 * MIB), name)
        wanted = network.digest(name)
        write_unsynced(network, "unsynced")
        status = network.status()
        assert status.bytes("dirty") + status.bytes("staged") > 0, "proved nothing"
        (pid,) = network.drivers()
        command = network.start("umount", "-i", network.mountpoint)
        end = time.monotonic() + (30 if gone else 0.02)
        while time.monotonic() < end and network.is_mounted:
            pass
        cleanup.send_signal(pid, signal.SIGKILL)
        network.wait_for_exit(command, 30, "umount")
        if network.wait_for_exit(driver, 30, "the driver") != 0:
            break
    else:
        pytest.fail("proved nothing: the driver was quicker each time")
    network.up()
    assert network.digest(name) == wanted
    network.sync("stored")
    assert network.status().bytes("staged") == 0


def test_fault_006_sigterm_with_dirty_data(unmounted: Network) -> None:
    network = unmounted
    process = foreground(network, log=network.work / "sigterm")
    wanted = write_unsynced(network, "terminated")
    status = network.status()
    assert status.bytes("dirty") + status.bytes("staged") > 0, "proved nothing"
    process.send_signal(signal.SIGTERM)
    assert network.wait_for_exit(process, 30, "the driver after SIGTERM") == 0
    assert network.drivers() == []
    assert cleanup.mounts_below(network.base) == []
    network.mount()
    assert network.digest("terminated") == wanted


def test_fault_007_sigint_and_again(unmounted: Network) -> None:
    network = unmounted
    process = foreground(network, log=network.work / "sigint")
    wanted = write_unsynced(network, "interrupted")
    process.send_signal(signal.SIGINT)
    assert network.wait_for_exit(process, 30, "the driver after SIGINT") == 0
    log = network.work / "sigint-again"
    process = foreground(network, log=log)
    assert network.digest("interrupted") == wanted
    # Somebody keeps it from unmounting: the second signal does not wait for that.
    holder = network.start("sleep", "600", cwd=network.mountpoint)
    network.wait_until(lambda: Path(f"/proc/{holder.pid}/comm").read_text() == "sleep\n", 30, "the holder runs")
    network.worker("write_and_sync", network.mountpoint / "synced", str(MIB), "synced")
    synced = network.digest("synced")
    write_unsynced(network, "lost or not")
    process.send_signal(signal.SIGINT)
    network.wait_until(lambda: "unmounting" in log.read_text(), 30, "it is ending")
    process.send_signal(signal.SIGINT)
    assert network.wait_for_exit(process, 30, "the driver after a second SIGINT") != 0
    assert network.drivers() == []
    assert cleanup.mounts_below(network.base) == []
    holder.kill()
    network.mount()
    assert network.digest("synced") == synced
    assert is_whole(network)


# ---- signals --------------------------------------------------------------------------------------------------------


def stopped_for(network: Network, seconds: float) -> None:
    status = network.status()
    pids = [status["driver_pid"], status["agent_pid"]]
    for pid in pids:
        cleanup.send_signal(pid, signal.SIGSTOP)
    writer = network.start(
        sys.executable, "-m", "tests.cluster.worker", "write_and_sync", network.mountpoint / "stopped", "3000000", "s"
    )
    time.sleep(seconds)  # the fault itself
    assert writer.poll() is None
    for pid in pids:
        cleanup.send_signal(pid, signal.SIGCONT)
    assert network.wait_for_exit(writer, 60, "the writer that was held up") == 0
    network.sync("stored")
    after = network.status()
    assert [after["driver_pid"], after["agent_pid"]] == pids
    assert after["handler_errors"] == 0
    assert network.run("sh", "-c", 'wc -c < "$1"', "sh", network.mountpoint / "stopped").out == "3000000\n"
    assert is_whole(network)


def test_fault_008_stopped_and_continued(mounted: Network) -> None:
    stopped_for(mounted, 20)


@pytest.mark.long
def test_fault_008_stopped_for_two_minutes(mounted: Network) -> None:
    stopped_for(mounted, 120)


def test_fault_009_sighup_ends_nothing(mounted: Network) -> None:
    """There is nothing to read again: options belong to a mount, policies are read when they are used."""
    network = mounted
    before = network.status()
    log = network.home / "state" / "log" / f"driver-{network.volume}.log"
    for pid in network.processes():
        cleanup.send_signal(pid, signal.SIGHUP)
    network.wait_until(lambda: "SIGHUP" in log.read_text(), 30, "the driver says what it does about it")
    write_unsynced(network, "hung up")
    network.sync("stored")
    after = network.status()
    assert sorted(after.pids()) == sorted(before.pids())
    assert is_whole(network)


# ---- memory ---------------------------------------------------------------------------------------------------------

MEMORY = Path("/sys/fs/cgroup/memory")


@contextlib.contextmanager
def memory_group(network: Network, limit: int) -> Iterator[Path]:
    """A memory control group (version 1 or 2) of the driver and the agent."""
    first = MEMORY.is_dir()
    root = MEMORY if first else Path("/sys/fs/cgroup")
    group = root / f"decloud-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(limit))
        status = network.status()
        for pid in (status["driver_pid"], status["agent_pid"]):
            (group / "cgroup.procs").write_text(str(pid))
        yield group
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            (root / "cgroup.procs").write_text(pid)
        group.rmdir()


def copied_within(network: Network, limit: int, size: int) -> None:
    before = network.status()
    with memory_group(network, limit) as group:
        script = 'head -c "$2" /dev/urandom | tee "$1" | sha256sum; sha256sum < "$1"'
        result = network.run("sh", "-c", script, "sh", network.mountpoint / "large", str(size), deadline=600)
        first, second = result.out.splitlines()
        assert first == second
        events = group / ("memory.oom_control" if MEMORY.is_dir() else "memory.events")
        assert re.search(r"oom_kill 0$", events.read_text(), re.MULTILINE), events.read_text()
    after = network.status()
    assert (after["driver_pid"], after["agent_pid"]) == (before["driver_pid"], before["agent_pid"])
    network.run("rm", network.mountpoint / "large")


def test_fault_010_memory_stays_below_its_bound(mounted: Network) -> None:
    copied_within(mounted, 320 * MIB, 192 * MIB)


@pytest.mark.long
def test_fault_010_memory_stays_below_its_bound_for_four_gigabytes(mounted: Network) -> None:
    copied_within(mounted, 512 * MIB, 4096 * MIB)


# ---- places ---------------------------------------------------------------------------------------------------------


def test_fault_022_odd_paths() -> None:
    """Spaces, quotes, letters of other languages, a line's end, and a symbolic link on the way."""
    with Network(peers=1) as network:
        real = network.base / "a b'\"\\ \n\xe4"
        real.mkdir()
        (network.base / "link").symlink_to(real)
        network.home = network.base / "link" / "ho me"
        network.mountpoint = real / "m nt"
        network.mountpoint.mkdir()
        network.up()
        network.worker("write_and_sync", network.mountpoint / "kept", str(MIB), "kept")
        network.sync("stored")
        network.drop_cache()
        assert is_whole(network)
        network.kill(network.status()["driver_pid"])
        network.mount()
        assert is_whole(network)
        assert network.status()["mountpoint"] == str(network.mountpoint)
        # What is no text is refused in one line, whether it is the home or the mount point.
        bytes_only = os.fsdecode(b"\xff")
        result = network.decloud("status", home=network.base / bytes_only, check=False)
        assert (result.code, result.err.count("\n")) == (1, 1), result.describe()
        network.umount()
        (network.base / bytes_only).mkdir()
        result = network.decloud("mount", network.volume, network.base / bytes_only, check=False)
        assert (result.code, result.err.count("\n")) == (1, 1), result.describe()


def test_fault_034_nothing_around_it() -> None:
    """As systemd starts a mount unit: no HOME, no PATH, no TMPDIR; the root file system read-only and no /tmp."""
    with Network(peers=1, base=Path(tempfile.mkdtemp(prefix="decloud-test-", dir="/var/tmp"))) as network:
        network.up()
        network.worker("write_and_sync", network.mountpoint / "kept", str(MIB), "kept")
        name = network.volume
        network.umount()
        bare = [
            "env",
            "-i",
            f"{cleanup.TAG}={network.base}",
            f"FSDECLOUD_HOME={network.home}",
            f"PYTHONPATH={ROOT}",
            str(DECLOUD.resolve()),
        ]
        network.run(*bare, "mount", name, network.mountpoint)
        assert is_whole(network)
        network.run(*bare, "umount", network.mountpoint)
        # A checkout below /tmp must stay visible.
        hide = "mount --bind /tmp /tmp; mount -o remount,bind,ro /tmp" if ROOT.is_relative_to("/tmp") else EMPTY_TMP
        script = (
            "set -e; base=$1; name=$2; shift 2; mount --make-rprivate /; mount --bind $base $base;"
            f" mount -o remount,bind,ro /; {hide}; cd $base;"
            ' ! touch /file 2>/dev/null; ! touch /tmp/file 2>/dev/null; "$@" mount $name $base/mnt;'
            ' wc -c < $base/mnt/kept; echo more > $base/mnt/more; sync $base/mnt/more; "$@" umount $base/mnt'
        )
        result = network.run("unshare", "--mount", "sh", "-c", script, "sh", network.base, name, *bare)
        assert str(MIB) in result.out.split()
        network.mount()
        assert network.run("cat", network.mountpoint / "more").out == "more\n"


# ---- the clock ------------------------------------------------------------------------------------------------------


@pytest.fixture
def jumping() -> Iterator[tuple[Network, Callable[[int], None]]]:
    """A network whose programs see a wall clock that the test can move by any number of seconds."""
    with Network(peers=1) as network:
        library, file = network.work / "clock.so", network.work / "offset"
        source = Path(__file__).with_name("clock.c")
        network.run("cc", "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", library, source)

        def jump(seconds: int) -> None:
            with open(file, "r+b" if file.exists() else "wb") as offset:
                offset.write(seconds.to_bytes(8, sys.byteorder, signed=True))

        jump(0)
        network.environment.update({"LD_PRELOAD": str(library), "CLOCK_OFFSET_FILE": str(file)})
        network.up()
        yield network, jump
        network.down()
        del network.environment["LD_PRELOAD"]


def test_fault_030_the_clock_jumps(jumping: tuple[Network, Callable[[int], None]]) -> None:
    """A day on, a day back, to 1970, to 2100: what waits, waits by the other clock, and nothing is late or early."""
    network, jump = jumping
    before = network.status()
    now, day = int(time.time()), 86400
    for offset in (day, -day, 1000 - now, 4_102_444_800 - now, 0):
        jump(offset)
        seen = int(network.run(sys.executable, "-c", "import time; print(int(time.time()))").out)
        assert abs(seen - now - offset) < 600, "the clock did not jump"
        name = f"jump{offset:+}"
        assert network.worker("write_and_sync", network.mountpoint / name, str(MIB), name)["same"]
        network.sync("stored")
    after = network.status()
    assert sorted(after.pids()) == sorted(before.pids())
    assert after["handler_errors"] == 0
    network.sync("anchored")
    network.drop_cache()
    assert len(network.run("ls", network.mountpoint).out.split()) == 5
