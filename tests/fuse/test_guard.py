"""Bugs in every handler and every task of a real driver: one request fails, the mount lives, what was fsynced is there.

The bugs come from `injected/sitecustomize.py`, which the test's environment puts before the driver's own code.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import cleanup
from tests.cluster.harness import DECLOUD, ROOT, Network

pytestmark = pytest.mark.fuse

HANDLERS = [
    "lookup", "mknod", "mkdir", "symlink", "link", "unlink", "rmdir", "rename", "readlink", "getattr", "setattr", "statfs",
    "getxattr", "listxattr", "setxattr", "removexattr", "open", "create", "read", "write", "flush", "fsync", "opendir",
    "readdir", "fsyncdir",
]  # fmt: skip
"""Those whose answer a program sees; `access` is never asked (default_permissions)."""

SILENT = ["forget", "release", "releasedir"]


@pytest.fixture(scope="module")
def bugs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bugs") / "bugs"


@pytest.fixture(scope="module")
def network(bugs: Path) -> Iterator[Network]:
    environment = {"PYTHONPATH": f"{ROOT / 'tests/fuse/injected'}:{ROOT}", "DECLOUD_TEST_BUGS": str(bugs)}
    with Network(peers=3, extra_environment=environment, has_bugs=True) as fresh:
        fresh.up()
        yield fresh


@pytest.fixture(autouse=True)
def _disarmed(bugs: Path) -> Iterator[None]:
    """A test that fails before its bug was met leaves none to the next."""
    yield
    bugs.unlink(missing_ok=True)


def program(network: Network, name: str, *args: str | Path) -> Any:
    return network.run(sys.executable, "-m", "tests.fuse.guardwork", name, *args).json()


def incidents(network: Network) -> dict[str, int]:
    return {found["where"]: found["count"] for found in network.status()["incidents"]}


def test_fault_141_a_bug_in_each_handler(network: Network, bugs: Path) -> None:
    network.remount("nowriteback", "attr_timeout=0", "entry_timeout=0")
    before = network.status()["driver_pid"]
    answers = program(network, "handlers", network.mountpoint, bugs, *HANDLERS)
    assert answers == dict.fromkeys(HANDLERS, "EIO")
    assert program(network, "silent", network.mountpoint, bugs, *SILENT) == dict.fromkeys(SILENT, "done")
    status = network.status()
    assert status["driver_pid"] == before
    assert incidents(network) == {f"handler {name}": 1 + (name == "lookup") for name in HANDLERS + SILENT}
    assert status["handler_errors"] == len(HANDLERS) + len(SILENT) + 1
    assert not status["failsafe"]
    text = network.decloud("status", network.mountpoint, check=False).out
    assert "internal error in handler rename, 1 times: ZeroDivisionError: injected" in text
    assert "injected" in network.logs(2000)
    assert program(network, "works", network.mountpoint) == "yes"
    network.remount()


def test_fault_141_a_bug_in_each_task(network: Network, bugs: Path) -> None:
    targets = {
        "fsdecloud.driver.anchors:Anchors._is_due",
        "fsdecloud.driver.committer:Committer._update_tree",
        "fsdecloud.driver.sealer:Sealer._plan",
        "fsdecloud.driver.uploads:Uploads._wait_quiet",
        "fsdecloud.driver.uploads:Uploads.release",
        "fsdecloud.driver.volume:Volume._reap",
    }
    before = network.status()["driver_pid"]
    bugs.write_text("".join(f"{target} 1\n" for target in targets))
    program(network, "acknowledged", network.mountpoint / "tasks.data", "write")

    def synced() -> bool:
        return network.decloud("sync", network.mountpoint, "--wait", "anchored", deadline=60, check=False).code == 0

    network.wait_until(synced, 60, "everything is anchored in spite of the bugs")
    network.wait_until(
        lambda: bugs.read_text().count(" 0\n") == len(targets),
        30,
        lambda: f"every task met its bug: {bugs.read_text()}",
    )
    status = network.status()
    assert status["driver_pid"] == before
    assert not status["failsafe"]
    assert len([where for where in incidents(network) if where.startswith("task ")]) >= 4
    network.remount()
    assert program(network, "acknowledged", network.mountpoint / "tasks.data", "check") == "same"


@pytest.mark.parametrize(
    "target",
    [
        "fsdecloud.driver.journal:Journal._write",
        pytest.param("fsdecloud.driver.sealer:Sealer._apply", marks=pytest.mark.long),
        pytest.param("fsdecloud.fs.overlay:Overlay.commit", marks=pytest.mark.long),
    ],
)
def test_fault_141_a_bug_that_may_have_damaged_the_state(network: Network, bugs: Path, target: str) -> None:
    kept = network.mountpoint / "kept.data"
    program(network, "acknowledged", kept, "write")
    bugs.write_text(f"{target} 1\n")
    program(network, "fill", network.mountpoint / "lost.data")
    status = network.wait_status(lambda now: bool(now["failsafe"]), 30, "the volume turns failsafe")
    assert "unmount and mount again" in status["read_only"]
    assert program(network, "acknowledged", kept, "check") == "same"
    assert program(network, "refused", network.mountpoint) == {"create": "EROFS", "write": "EROFS", "fsync": "EIO"}
    network.run("ls", "-lR", network.mountpoint)
    network.umount()
    status = network.mount()
    assert not status["failsafe"]
    assert program(network, "acknowledged", kept, "check") == "same"
    assert program(network, "works", network.mountpoint) == "yes"
    network.run("rm", "-f", kept, network.mountpoint / "lost.data")


@pytest.mark.long
def test_an_agent_that_dies_at_once_is_shown_and_costs_nothing(network: Network, bugs: Path) -> None:
    bugs.write_text("agent 1000\n")
    network.kill(network.status()["agent_pid"])
    status = network.wait_status(
        lambda now: any("the agent ended" in problem for problem in now["problems"]), 60, "status tells of the agent"
    )
    assert status["agent_restarts"] >= 5
    assert program(network, "works", network.mountpoint) == "yes"
    bugs.write_text("")
    network.wait_status(lambda now: bool(now["agent_pid"]), 60, "an agent runs again")
    network.sync("stored")


READERS = 600


@contextmanager
def hanging_peers(network: Network, *options: str) -> Iterator[list[str]]:
    """Eight files whose contents are not on this machine, and peers that do not answer; mounted with these options."""
    names = [f"cold-{number}" for number in range(8)]
    for name in names:
        program(network, "acknowledged", network.mountpoint / name, "write")
    network.sync("stored")
    network.drop_cache()
    network.remount(*options)
    program(network, "acknowledged", network.mountpoint / "warm", "write")
    network.run("ls", "-lR", network.mountpoint)
    peers = [peer["pid"] for peer in network.status().local_peers()]
    for pid in peers:
        cleanup.send_signal(pid, signal.SIGSTOP)
    try:
        yield names
    finally:
        for pid in peers:
            cleanup.send_signal(pid, signal.SIGCONT)


def test_a_short_timeout(network: Network) -> None:
    """A read is given up well before the driver's own deadline."""
    with hanging_peers(network, "timeout=3") as names:
        arguments = ("-m", "tests.fuse.guardwork", "readers", network.mountpoint, "8", *names)
        answers = network.run(sys.executable, *arguments, deadline=40).json()
        assert answers == {"ETIMEDOUT": 8}, network.status()["last_error"]
    network.remount()


def test_faults_046_157_all_peers_hang(network: Network) -> None:
    """600 readers wait for peers that do not answer; everything that is here is answered at once.

    Of what they read the kernel asks for a few pieces at a time; `component/driver/test_waiting` has as many as may wait.
    """
    with hanging_peers(network) as names:
        arguments = ("-m", "tests.fuse.guardwork", "readers", network.mountpoint, str(READERS), *names)
        readers = network.start(sys.executable, *arguments, log=network.work / "readers")
        network.wait_until(lambda: is_waiting(readers.pid, READERS), 40, "readers wait")
        network.run("ls", "-l", network.mountpoint, deadline=20)
        network.run("df", network.mountpoint, deadline=20)
        assert program(network, "acknowledged", network.mountpoint / "warm", "check") == "same"
        assert program(network, "works", network.mountpoint) == "yes"
    assert network.wait_for_exit(readers, 120, "the readers, whose peers are back") == 0
    answers = json.loads((network.work / "readers").read_bytes())
    assert answers.keys() <= {"right", "EIO", "ETIMEDOUT"}, answers
    # Those whose peers were away for too long got EIO; with the peers everything is back.
    arguments = ("-m", "tests.fuse.guardwork", "readers", network.mountpoint, "200", *names)
    network.wait_until(
        lambda: network.run(sys.executable, *arguments, deadline=90).json() == {"right": 200}, 90, "all bytes are right"
    )


def is_waiting(pid: int, count: int) -> bool:
    """Whether so many threads of a process are in a system call that nothing interrupts."""
    states = [path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return sum(state in "DS" for state in states) > count


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_fault_028_no_descriptors(network: Network) -> None:
    """More connections than there are descriptors: the mount lives, and nothing spins."""
    driver = network.status()["driver_pid"]
    limits = resource.prlimit(driver, resource.RLIMIT_NOFILE)
    address = str(next((network.home / "run").glob("driver-*.sock")))
    resource.prlimit(driver, resource.RLIMIT_NOFILE, (64, limits[1]))
    connections = []
    try:
        for _ in range(100):
            connection = socket.socket(socket.AF_UNIX)
            connection.setblocking(False)
            connections.append(connection)
            with suppress(BlockingIOError):
                connection.connect(address)
        network.wait_until(lambda: len(os.listdir(f"/proc/{driver}/fd")) >= 64, 20, "the driver's descriptors are used")
        start, used = time.monotonic(), processor_seconds(driver)
        network.run("ls", "-l", network.mountpoint)
        network.run("df", network.mountpoint)
        time.sleep(2)  # the interval that is measured
        assert processor_seconds(driver) - used < 0.7 * (time.monotonic() - start), "the driver spins"
    finally:
        for connection in connections:
            connection.close()
        resource.prlimit(driver, resource.RLIMIT_NOFILE, limits)
    assert network.status()["driver_pid"] == driver
    assert program(network, "works", network.mountpoint) == "yes"


def test_fault_029_no_threads(network: Network) -> None:
    """No thread can be started, for its stack does not fit: the mount fails with a reason, at once."""
    volume = network.volume
    network.umount()
    stack = 1 << 46
    command = ("prlimit", f"--stack={stack}:{stack}", DECLOUD, "mount", volume, network.mountpoint)
    result = network.run(*command, check=False, environment={"FSDECLOUD_HOME": str(network.home)}, deadline=40)
    assert result.code != 0
    assert "thread" in result.err, result.describe()
    network.mount()
    assert program(network, "works", network.mountpoint) == "yes"
