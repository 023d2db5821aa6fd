"""kill -9 of any process: what was fsynced is there, nothing hangs, and the operation log still proves itself."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest

from tests.cluster import cleanup
from tests.cluster.harness import Network, Status, diff_trees

MIB = 1 << 20


@pytest.fixture(scope="module")
def payload(network: Network) -> Path:
    """A tree on a plain disk: 64 MiB that no compressor makes smaller, and some hundred small files."""
    tree = network.work / "payload"
    tree.mkdir()
    noise = random.Random(11)
    (tree / "large").write_bytes(noise.randbytes(64 * MIB))
    for i in range(300):
        (tree / f"small-{i:03}").write_bytes(noise.randbytes(noise.randrange(20_000)))
    return tree


def start_load(network: Network, name: str) -> tuple[object, Path, Path]:
    """Start the manifest-writing load in `name`; return its process, the manifest and where its answer goes."""
    manifest, answer = network.work / f"{name}.manifest", network.work / f"{name}.answer"
    manifest.touch()
    arguments = ("load", network.mountpoint / name, manifest, name)
    process = network.start(sys.executable, "-m", "tests.cluster.worker", *arguments, log=answer)
    return process, manifest, answer


def lines(path: Path) -> int:
    """Return how many complete lines a file has."""
    return path.read_bytes().count(b"\n")


@pytest.mark.parametrize("turn", [1, 2, 3])
def test_f1_driver_killed_under_load(network: Network, turn: int) -> None:
    name = f"load-{turn}"
    process, manifest, answer = start_load(network, name)
    enough = random.Random(turn).randrange(10, 60)
    network.wait_until(lambda: lines(manifest) >= enough, 60, f"{enough} writes are acknowledged")
    before = network.status()
    assert process.poll() is None, answer.read_text()
    network.kill(before["driver_pid"])
    network.wait_for_exit(process, 30, "the load, whose mount is gone,")
    ended = json.loads(answer.read_text())
    assert ended["errno"] in ("ENOTCONN", "ECONNABORTED", "EIO"), ended
    assert ended["acked"] >= enough

    after = network.up()
    assert after["driver_pid"] != before["driver_pid"]
    assert after["volume"] == before["volume"]
    found = network.worker("check", network.mountpoint / name, manifest, name, deadline=120)
    assert found == {"acked": lines(manifest), "missing": [], "wrong": [], "mixed": [], "errors": []}


def test_log_verifies_after_the_kills(network: Network) -> None:
    network.sync("anchored")
    network.decloud("log", network.volume, "--verify", deadline=120)
    records = network.decloud("log", network.volume, "--json", deadline=120).json_lines()
    text = network.decloud("log", network.volume, "--json", deadline=120).out
    assert len(records) > 100
    assert "synced-000000" in text, "the log names the files"
    assert "current" in text


def test_agent_killed_while_storing(network: Network, payload: Path) -> None:
    copy = network.start("cp", "-a", payload, network.mountpoint / "agent-killed")
    agents = []
    for _ in range(2):
        status = network.wait_status(lambda s: s["agent_pid"] not in (None, *agents), 30, "a new agent runs")
        agents.append(status["agent_pid"])
        network.kill(status["agent_pid"])
    assert network.wait_for_exit(copy, 120, "the copy during which the agent was killed") == 0
    network.sync("anchored")
    assert network.status()["agent_pid"] not in agents
    network.drop_cache()
    diff_trees(network, payload, network.mountpoint / "agent-killed")


def test_peer_killed_while_storing(network: Network, payload: Path) -> None:
    victim = network.status().local_peers()[0]
    target = network.mountpoint / "peer-killed"
    copy = network.start("cp", "-a", payload / "large", target)
    # Not what `status` shows: on a busy machine everything may be stored before it is asked again.
    network.wait_until(lambda: network.run("test", "-e", target, check=False).code == 0, 30, "the copy has begun")
    network.kill(victim["pid"])
    assert network.wait_for_exit(copy, 120, "the copy during which a peer was killed") == 0
    network.run("sh", "-c", 'head -c 1000000 /dev/urandom > "$1"', "sh", network.mountpoint / "while-peer-is-dead")
    network.sync("anchored")  # enough receipts without that peer

    def back(status: Status) -> bool:
        found = [peer for peer in status.peers if peer["id"] == victim["id"]]
        return len(found) == 1 and found[0]["state"] == "up" and found[0]["pid"] not in (None, victim["pid"])

    network.up()
    network.wait_status(back, 60, "the killed peer is up again under its old identity")
    network.sync("stored")
    network.run("cmp", payload / "large", network.mountpoint / "peer-killed")


def test_ledger_daemon_killed(network: Network, payload: Path) -> None:
    before = network.status()
    height = network.decloud("ledger", "status", "--json").json()["height"]
    network.kill(before["ledger_pid"])
    network.run("cp", "-a", payload / "small-000", network.mountpoint / "ledger-killed")
    assert network.worker("write_and_sync", network.mountpoint / "no-ledger", str(MIB), "ledger")["same"]
    network.sync("stored")  # data safety never depends on the ledger
    after = network.up()
    assert after["ledger_pid"] not in (0, None, before["ledger_pid"])
    network.sync("anchored")
    assert network.decloud("ledger", "status", "--json").json()["height"] > height
    network.decloud("log", network.volume, "--verify", deadline=120)


def test_everything_killed_at_once(network: Network) -> None:
    """As if the machine had lost power, but for the disk's own cache."""
    process, manifest, _ = start_load(network, "everything")
    network.wait_until(lambda: lines(manifest) >= 10, 60, "writes are acknowledged")
    for pid in network.processes():
        if pid != process.pid:
            cleanup.send_signal(pid, 9)
    network.wait_for_exit(process, 30, "the load, whose mount is gone,")
    network.wait_until(lambda: not network.processes(), 20, "all processes end")
    network.up()
    found = network.worker("check", network.mountpoint / "everything", manifest, "everything", deadline=120)
    assert found == {"acked": lines(manifest), "missing": [], "wrong": [], "mixed": [], "errors": []}
    network.sync("anchored")
    network.decloud("log", network.volume, "--verify", deadline=120)
    network.decloud("ledger", "verify", deadline=60)
    assert network.status()["handler_errors"] == 0


def test_down_and_up_resume_the_volume(network: Network) -> None:
    before = network.status()
    network.down()
    assert network.processes() == []
    assert cleanup.mounts_below(network.base) == []
    after = network.up()
    assert after["volume"] == before["volume"]
    assert {peer["id"] for peer in after.peers} == {peer["id"] for peer in before.peers}
    assert "current" in network.run("ls", network.mountpoint / "load-1").out.split()


def test_detached_up_lets_go_of_its_output(network: Network) -> None:
    """`$(decloud up --detach)` must end when the command does: no daemon keeps the pipe."""
    command = 'FSDECLOUD_HOME="$1" decloud up "$2" --peers "$3" --detach | cat'
    network.run("sh", "-c", command, "sh", network.home, network.mountpoint, str(network.peers), deadline=60)
    network.down()
    network.run("sh", "-c", command, "sh", network.home, network.mountpoint, str(network.peers), deadline=60)
    assert network.status()["volume"]
