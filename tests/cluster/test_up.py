"""`decloud up` in the foreground: it keeps its parts running, and takes everything with it when it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import cleanup
from tests.cluster.harness import Network, Status

MOUNT_FAILED, SYSTEM = 32, 2


@pytest.fixture
def network() -> Iterator[Network]:
    """A home with nothing in it yet."""
    with Network(peers=3) as fresh:
        yield fresh


def start_up(network: Network, log: Path) -> subprocess.Popen[bytes]:
    """Start `decloud up` in the foreground, without a terminal, and wait until it serves."""
    process = network.start_decloud("up", network.mountpoint, "--peers", str(network.peers), log=log)
    network.wait_until(lambda: "is mounted at" in read(log), 60, "up serves")
    return process


def read(log: Path) -> str:
    return log.read_text(errors="replace") if log.exists() else ""


def status(network: Network) -> Status | None:
    """Return the status, None while nothing is mounted."""
    result = network.decloud("status", "--json", check=False)
    return Status(result.json()) if result.code in (0, 3, 4) and result.json()["driver_pid"] else None


def test_what_dies_is_started_again_and_ctrl_c_ends_everything(network: Network) -> None:
    log = network.work / "up.log"
    process = start_up(network, log)
    assert len([line for line in read(log).splitlines() if line.startswith("    ")]) == 4, "the 24 words, once"
    before = status(network)
    assert before is not None
    network.worker("write_and_sync", network.mountpoint / "file", "300000", "up")
    victims = {"ledger_pid": before["ledger_pid"], "driver_pid": before["driver_pid"]}
    peer = before.local_peers()[0]
    for pid in (*victims.values(), peer["pid"]):
        network.kill(pid)

    def whole() -> bool:
        now = status(network)
        if now is None or len(now.local_peers()) != network.peers:
            return False
        return all(now[key] not in (None, pid) for key, pid in victims.items())

    network.wait_until(whole, 60, "every part runs again")
    assert network.run("ls", network.mountpoint).out.split() == ["file"]
    process.send_signal(signal.SIGINT)
    assert network.wait_for_exit(process, 60, "up after Ctrl-C") == 0
    assert network.processes() == []
    assert cleanup.mounts_below(network.base) == []
    assert "everything is stopped" in read(log)
    assert "\x1b" not in read(log), "no control codes without a terminal"

    again = start_up(network, network.work / "again.log")
    assert "recovery phrase" not in read(network.work / "again.log")
    assert network.run("ls", network.mountpoint).out.split() == ["file"]
    again.send_signal(signal.SIGTERM)
    assert network.wait_for_exit(again, 60, "up after SIGTERM") == 0
    assert network.processes() == []


def test_two_shells(network: Network) -> None:
    process = start_up(network, network.work / "up.log")
    second = network.decloud("up", network.mountpoint, check=False)
    assert second.code == SYSTEM, second.describe()
    assert second.err.count("\n") == 1
    assert process.poll() is None
    network.decloud("up", "--detach")
    other = network.work / "elsewhere"
    moved = network.decloud("up", other, "--detach", check=False)
    assert moved.code == MOUNT_FAILED, moved.describe()
    assert str(network.mountpoint) in moved.err
    assert not other.exists()
    network.down()
    assert network.wait_for_exit(process, 30, "up after down") == 0
    assert network.processes() == []
    assert network.decloud("down").out == "nothing was running\n"


def test_f138_a_mount_in_use(network: Network) -> None:
    network.up()
    holder = network.start("sleep", "600", cwd=network.mountpoint)
    network.wait_until(lambda: Path(f"/proc/{holder.pid}/comm").read_text() == "sleep\n", 10, "the holder runs")
    refused = network.decloud("umount", network.mountpoint, check=False)
    assert refused.code == MOUNT_FAILED, refused.describe()
    assert f"sleep ({holder.pid})" in refused.err
    assert refused.err.count("\n") == 1
    network.worker("write_and_sync", network.mountpoint / "still works", "1000", "busy")
    down = network.down()
    assert f"sleep ({holder.pid})" in down.err
    assert cleanup.mounts_below(network.base) == []
    assert [pid for pid in network.processes() if pid != holder.pid] == []
    holder.kill()
    network.up()
    assert network.run("ls", network.mountpoint).out == "still works\n"


def test_more_peers_later_and_never_fewer(network: Network) -> None:
    network.up()
    network.decloud("up", "--peers", "5", "--detach")
    names = [line["name"] for line in network.decloud("peer", "status", "--json").json_lines()]
    assert names == [f"peer-{i}" for i in range(1, 6)]
    network.down()
    again = network.decloud("up", "--peers", "2", "--detach")
    assert "5 peers hold data" in again.err
    assert len(network.decloud("peer", "status", "--json").json_lines()) == 5


def test_sync_waits_for_what_programs_keep_open(network: Network) -> None:
    """syncfs(2) only sends a FUSE mount's dirty pages off; nothing may come after `sync` says that all is durable."""
    network.up()
    script = (
        "import os, subprocess, sys\n"
        "with open(sys.argv[1], 'wb', 0) as file:\n"
        "    for _ in range(40):\n"
        "        file.write(os.urandom(1 << 20))\n"
        "    print(subprocess.run(['decloud', 'sync', '--json', sys.argv[2]], capture_output=True, text=True).stdout)\n"
        "    subprocess.run(['sleep', '1'])\n"
        "    print(subprocess.run(['decloud', 'status', '--json', sys.argv[2]], capture_output=True, text=True).stdout)\n"
    )
    arguments = (sys.executable, "-c", script, network.mountpoint / "open", network.mountpoint)
    lines = network.run(*arguments, environment={"FSDECLOUD_HOME": str(network.home)}).json_lines()
    assert lines[0]["sequence"] == lines[1]["written_sequence"] <= lines[1]["durable_sequence"]
