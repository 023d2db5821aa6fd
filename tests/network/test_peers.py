"""Peers that restart, move, die and are replaced, on machines of their own."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsdecloud.config import write_private_file
from tests.cluster import cleanup
from tests.cluster.harness import diff_trees
from tests.network.conftest import ONLY_V6
from tests.network.lab import Lab, peer_name

MIB = 1 << 20
LATE = 60.0


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tree of small files and a few larger ones, on a plain disk."""
    tree = tmp_path_factory.mktemp("source") / "tree"
    (tree / "small").mkdir(parents=True)
    data = random.Random(2)
    for i in range(40):
        (tree / "small" / str(i)).write_bytes(data.randbytes(9000))
    (tree / "big").write_bytes(data.randbytes(4 * MIB))
    yield tree
    shutil.rmtree(tree)


def test_fault_062_a_rolling_restart_of_all_peers_under_load_is_seen_by_nobody(lab: Lab, source: Path) -> None:
    """cp and diff run on and on, what they read comes from the peers; each peer in turn is stopped and started."""
    script = (
        'i=0; while [ ! -e "$3" ]; do i=$((i+1)); cp -a "$1" "$2 $i" && diff -r "$1" "$2 $i" || exit 1;'
        ' diff -r "$1" "$4" || exit 2; done'
    )
    lab.run("cp", "-a", source, lab.mountpoint / "old")
    lab.sync("anchored")
    lab.drop_cache()
    stop = lab.work / "restarted"
    log = lab.work / "restarts.log"
    program = lab.start("sh", "-c", script, "sh", source, lab.mountpoint / "new", stop, lab.mountpoint / "old", log=log)
    for name in lab.peer_names:
        lab.stop_daemon(name)
        lab.start_daemon(name)
        assert program.poll() is None, log.read_text()
    stop.touch()
    assert lab.wait_for_exit(program, 120, "cp and diff") == 0, log.read_text()
    lab.sync("stored", deadline=LATE)
    lab.drop_cache()
    diff_trees(lab, source, lab.mountpoint / "new 1")


def test_fault_055_a_machine_that_slept_finds_all_connections_dead_and_makes_new_ones(lab: Lab, source: Path) -> None:
    """Nothing of the client runs for a while, and whoever it was connected to has forgotten it by then."""
    lab.run("cp", "-a", source, lab.mountpoint / "asleep")
    lab.sync("anchored")
    lab.drop_cache()
    status = lab.status()
    client = [status["driver_pid"], status["agent_pid"], lab.daemons["client-ledger"].process]
    pids = [int(one.pid if isinstance(one, subprocess.Popen) else one) for one in client]
    for pid in pids:
        cleanup.send_signal(pid, signal.SIGSTOP)
    try:
        lab.kill_daemons(lab.peer_names)
        lab.start_daemons(lab.peer_names)
    finally:
        for pid in reversed(pids):
            cleanup.send_signal(pid, signal.SIGCONT)
    diff_trees(lab, source, lab.mountpoint / "asleep", deadline=30)
    lab.run("cp", "-a", source, lab.mountpoint / "awake")
    lab.sync("anchored", deadline=LATE)


def announce(lab: Lab, name: str, host: str) -> None:
    """Have a peer be registered under another host name, from its next start on; "" for where it listens."""
    config = lab.paths_of(name).peer_state(name) / "peer.toml"
    lines = [line for line in config.read_text().splitlines() if not line.startswith("announce")]
    write_private_file(config, "\n".join([*lines, *([f'announce = "{host}"'] if host else []), ""]).encode())


def test_fault_056_addresses_that_change_do_not_resolve_or_answer_as_somebody_else(lab: Lab, source: Path) -> None:
    """A peer moves to another network, and a captive portal answers where it was; another one's name does not resolve."""
    copy = lab.mountpoint / "moved"
    lab.run("cp", "-a", source, copy)
    lab.sync("anchored")
    moving, nameless = peer_name(1), peer_name(2)
    portal = lab.add_machine("portal", "10.0.103.1/8")
    old = lab.machines[moving].address
    lab.tell(do="address", name="portal", address=f"{old}/8")  # packets for the old address go there now
    server = lab.start(
        *lab.enter("portal"), "python3", "-m", "http.server", "--bind", old, "7711", "--directory", lab.work
    )
    try:
        lab.stop_daemon(nameless)
        announce(lab, nameless, "there-is-no-such-host.invalid")
        lab.start_daemon(nameless)
        lab.drop_cache()
        diff_trees(lab, source, copy)
        lab.wait_states([moving, nameless], "down", 90)
        assert portal.address != old
        assert lab.opened().get("portal", 0) > 0, "the portal was asked"

        lab.stop_daemon(moving)
        lab.tell(do="address", name=moving, address="10.0.201.1/8")
        daemon = lab.daemons[moving]
        usual = daemon.arguments
        daemon.arguments = (*usual, "--listen", "10.0.201.1:7711")
        lab.start_daemon(moving)
        lab.stop_daemon(nameless)
        announce(lab, nameless, "")
        lab.start_daemon(nameless)
        lab.wait_states([moving, nameless], "up", LATE + 30)
    finally:
        server.terminate()
        server.wait(20)
    lab.drop_cache()
    diff_trees(lab, source, copy)


def test_fault_056_a_peer_without_an_ipv4_address_is_one_like_any_other(lab: Lab) -> None:
    name = peer_name(ONLY_V6)
    before = next(row["stored_bytes"] for row in lab.status().peers if row["id"] == lab.id_of(name))
    for _ in range(20):
        lab.run("sh", "-c", f"head -c {MIB} /dev/urandom > {lab.mountpoint}/v6-$$")
        lab.sync("stored")
        row = next(row for row in lab.status().peers if row["id"] == lab.id_of(name))
        if row["stored_bytes"] > before:
            return
    raise AssertionError(f"nothing was stored with {row}")


@pytest.mark.long
def test_fault_060_n_minus_k_of_n_are_killed_at_once_and_all_redundancy_comes_back(source: Path) -> None:
    """They stay dead: others take their shards, and `status` shows the way there."""
    with Lab(peers=10, redundancy="2/6") as lab:
        lab.up()
        copy = lab.mountpoint / "copy"
        lab.run("cp", "-a", source, copy)
        lab.sync("anchored")
        lab.wait_whole()
        dead = lab.peer_names[:4]
        lab.kill_daemons(dead)
        lab.drop_cache()
        diff_trees(lab, source, copy)
        seen = set()
        end = time.monotonic() + 300
        while time.monotonic() < end:
            repair = lab.status()["repair"]
            seen.add(repair["under_replicated"] + repair["away"])  # at first they may come back
            if repair["repaired_blobs"] and not repair["under_replicated"] and not repair["away"]:
                break
            time.sleep(0.5)
        assert repair["under_replicated"] == repair["away"] == 0, repair
        assert max(seen) > 0, "status showed what was missing"
        # Of those that were there all the time any n - k more may go now.
        lab.kill_daemons(lab.peer_names[4:8])
        lab.drop_cache()
        diff_trees(lab, source, copy)
