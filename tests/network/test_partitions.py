"""Lines that lose, delay, cut and return: programs see right bytes or an error in time, and all goes on when the line does."""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsdecloud import limits
from tests.cluster.harness import diff_trees
from tests.network.lab import CLIENT, LEDGER, REGISTRY, Lab

MIB = 1 << 20
LATE = 90.0
"""Seconds for anything to come back after the line did: a probe's interval, twice, on a busy machine."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tree of small files and a few larger ones, on a plain disk."""
    tree = tmp_path_factory.mktemp("source") / "tree"
    (tree / "small").mkdir(parents=True)
    data = random.Random(1)
    for i in range(40):
        (tree / "small" / str(i)).write_bytes(data.randbytes(9000))
    for i in range(2):
        (tree / f"big{i}").write_bytes(data.randbytes(3 * MIB))
    yield tree
    shutil.rmtree(tree)


def copy_of(lab: Lab, source: Path, name: str) -> Path:
    """Copy the tree into the mount and return where."""
    target = lab.mountpoint / name
    lab.run("cp", "-a", source, target, deadline=120)
    return target


def is_there(lab: Lab, source: Path, copy: Path) -> None:
    """Fail unless the copy can be had from the peers as it was."""
    lab.drop_cache()
    diff_trees(lab, source, copy)


def test_fault_051_cp_and_diff_are_clean_over_a_slow_line_that_loses_repeats_and_reorders(
    lab: Lab, source: Path
) -> None:
    lab.everywhere(delay=0.015, jitter=0.01, loss=0.01, repeat=0.01, reorder=0.01)
    copy = copy_of(lab, source, "lossy")
    lab.sync("anchored")
    is_there(lab, source, copy)


@pytest.mark.long
@pytest.mark.parametrize(("loss", "delay"), [(0.05, 0.1), (0.15, 0.03), (0.3, 0.005)])
def test_fault_051_heavy_losses(lab: Lab, source: Path, loss: float, delay: float) -> None:
    lab.everywhere(delay=delay, jitter=delay, loss=loss, repeat=0.02, reorder=0.02)
    copy = lab.mountpoint / f"heavy {loss}"
    lab.run("cp", "-a", source / "small", copy, deadline=240)
    lab.sync("stored", deadline=600)
    lab.drop_cache()
    diff_trees(lab, source / "small", copy, deadline=600)


def test_fault_050_a_black_hole_is_noticed_and_costs_no_error(lab: Lab, source: Path) -> None:
    """Packets vanish in the middle of everything, and nobody says so: n - k peers at once."""
    copy = copy_of(lab, source, "black hole")
    lab.sync("anchored")
    lab.drop_cache()
    lost, rest = lab.peer_names[:4], lab.peer_names[4:]
    lab.run("ls", "-lR", copy)
    with lab.cut([CLIENT, *rest], lost):  # nobody is left by way of whom they might be reached
        diff_trees(lab, source, copy, deadline=limits.HANDLER_DEADLINE)
        lab.wait_states(lost, "down", 2 * (limits.KEEPALIVE + limits.CONNECT_TIMEOUT) + 60)
    lab.wait_states(lost, "up", LATE)


def test_fault_053_client_and_peers_are_parted(lab: Lab, source: Path) -> None:
    """Writing goes on; what was written is stored once the line is back, and in between few connections were tried."""
    known = copy_of(lab, source, "before the cut")
    with lab.cut(CLIENT, lab.peer_names):
        before = lab.opened()
        start = time.monotonic()
        copy = copy_of(lab, source, "while parted")
        diff_trees(lab, source, copy)
        diff_trees(lab, source, known)
        time.sleep(max(0.0, start + 8 - time.monotonic()))
        tried = {name: count - before.get(name, 0) for name, count in lab.opened().items()}
        seconds = time.monotonic() - start
        assert max(tried.get(name, 0) for name in lab.peer_names) <= 10 + 4 * seconds, "no storm of reconnects"
        assert lab.status()["stored_sequence"] < lab.status()["written_sequence"]
    lab.sync("stored", deadline=LATE)
    lab.sync("anchored", deadline=LATE)
    is_there(lab, source, copy)


@pytest.mark.parametrize("side", [CLIENT, pytest.param(REGISTRY, marks=pytest.mark.long)])
def test_fault_053_one_side_and_the_ledger_are_parted(lab: Lab, source: Path, side: str) -> None:
    """Data safety does not need the ledger: all is stored and read; anchors come when the ledger does."""
    others = [CLIENT] if side == CLIENT else [REGISTRY, *lab.peer_names]
    lab.sync("anchored")
    # The daemons pass blocks on to each other: who is parted from one must not hear of it from the third.
    with lab.cut(others, [LEDGER]), lab.cut([CLIENT], [REGISTRY]):
        copy = copy_of(lab, source, f"without the ledger of {side}")
        lab.sync("stored")
        lab.drop_cache()
        diff_trees(lab, source, copy)
        if side == CLIENT:
            status = lab.status()
            assert status["anchored_sequence"] < status["written_sequence"]
    lab.sync("anchored", deadline=LATE + 60)


@pytest.mark.parametrize("is_answer_lost", [True, pytest.param(False, marks=pytest.mark.long)])
def test_fault_053_one_direction_only(lab: Lab, source: Path, is_answer_lost: bool) -> None:
    """What these peers say does not arrive, or what is said to them: worse than parted, because one side sees life."""
    half = lab.peer_names[::2]
    lab.rule(*((half, [CLIENT]) if is_answer_lost else ([CLIENT], half)), cut=True)
    copy = copy_of(lab, source, f"one direction {is_answer_lost}")
    diff_trees(lab, source, copy)
    lab.heal()
    lab.sync("stored", deadline=LATE + limits.REQUEST_TIMEOUT)
    is_there(lab, source, copy)


def flap(lab: Lab, program: subprocess.Popen[bytes], names: list[str], seed: int, longest: float) -> None:
    """Cut and heal half of the lines again and again, each time others, until the program has ended."""
    chance = random.Random(seed)
    end = time.monotonic() + 300
    while program.poll() is None and time.monotonic() < end:
        lab.between(CLIENT, chance.sample(names, len(names) // 2), cut=True)
        time.sleep(chance.uniform(0.5, longest))
        lab.heal()
        time.sleep(chance.uniform(0.2, 1.0))


def test_fault_053_lines_that_flap(lab: Lab, source: Path) -> None:
    copy = lab.mountpoint / "flapping"
    script = 'cp -a "$1" "$2" && sync "$2" && sleep 4 && diff -r "$1" "$2"'
    program = lab.start("sh", "-c", script, "sh", source, copy)
    flap(lab, program, lab.peer_names, 53, 2.0)
    assert lab.wait_for_exit(program, 60, "cp and diff") == 0
    lab.sync("stored", deadline=LATE)
    is_there(lab, source, copy)


@pytest.mark.long
def test_fault_053_lines_flap_for_minutes(lab: Lab, source: Path) -> None:
    script = 'for i in $(seq 8); do cp -a "$1" "$2 $i" && sleep 10 && diff -r "$1" "$2 $i" || exit; done'
    program = lab.start("sh", "-c", script, "sh", source, lab.mountpoint / "flapping for long")
    flap(lab, program, [*lab.peer_names, LEDGER], 153, 10.0)
    assert lab.wait_for_exit(program, 120, "cp and diff") == 0
    lab.sync("anchored", deadline=2 * LATE)
    is_there(lab, source, lab.mountpoint / "flapping for long 8")


def test_fault_054_swizzle_clog(lab: Lab, source: Path) -> None:
    """Peers stop one by one under load, and go on in another order."""
    chance = random.Random(54)
    script = (
        'i=0; while [ ! -e "$3" ]; do i=$((i+1)); cp -a "$1" "$2 $i" && diff -r "$1" "$2 $i" || exit 1; sleep 1; done'
    )
    stop = lab.work / "enough"
    program = lab.start("sh", "-c", script, "sh", source, lab.mountpoint / "clogged", stop)
    for order, is_cut in ((lab.peer_names, True), (chance.sample(lab.peer_names, lab.peers), False)):
        for name in order:
            lab.between(CLIENT, name, cut=is_cut)
            time.sleep(0.4)
    stop.touch()
    assert lab.wait_for_exit(program, 90, "cp and diff") == 0
    lab.sync("stored", deadline=LATE + limits.REQUEST_TIMEOUT)
    is_there(lab, source, lab.mountpoint / "clogged 1")


def errno_of(lab: Lab, path: Path, deadline: float) -> tuple[str, float]:
    """Read a MiB of a file; return the error and how long it took."""
    (answer,) = lab.worker("read_at", path, "0", deadline=deadline)
    return str(answer.get("errno", "")), float(answer["seconds"])


@pytest.mark.parametrize("is_filled", [False, pytest.param(True, marks=pytest.mark.long)])
def test_faults_045_046_047_061_all_peers_are_gone(lab: Lab, source: Path, is_filled: bool) -> None:
    """What is here is read and written, what is not fails in time; a mount needs no peer; later everything drains."""
    # With contents of its own: what is equal is stored, and cached, once.
    far = lab.mountpoint / f"far away {is_filled}"
    script = f'mkdir "$1"; for i in 0 1; do head -c {3 * MIB} /dev/urandom > "$1/big$i"; done; cat "$1"/* | sha256sum'
    content = lab.run("sh", "-c", script, "sh", far).out
    near = copy_of(lab, source, f"near {is_filled}")
    lab.sync("anchored")
    lab.umount()
    shutil.rmtree(lab.home / "cache")
    lab.decloud("mount", lab.volume, lab.mountpoint, "-o", "stage_size=64M")
    diff_trees(lab, source, near)
    lab.run("ls", "-lR", lab.mountpoint)
    lab.kill_daemons(lab.peer_names)

    error, seconds = errno_of(lab, far / "big0", limits.HANDLER_DEADLINE + 15)
    assert error == "EIO"
    assert seconds < limits.HANDLER_DEADLINE + 5
    again = [errno_of(lab, far / "big1", 30) for _ in range(3)]
    assert {error for error, _ in again} == {"EIO"}
    # That nobody is asked is counted in component/agent/test_faults.py; here, that nothing else waits either.
    assert min(seconds for _, seconds in again) < 1, "and from now on at once"
    lab.run("ls", "-lR", lab.mountpoint, deadline=10)
    lab.run("df", lab.mountpoint, deadline=10)
    diff_trees(lab, source, near, deadline=30)

    written = copy_of(lab, source, f"written alone {is_filled}")
    if is_filled:
        script = f"head -c {100 * MIB} /dev/urandom > {lab.mountpoint}/too-much"
        full = lab.run("sh", "-c", script, check=False, deadline=120)
        assert full.code != 0
        assert "No space left on device" in full.err, full.describe()
        lab.run("rm", lab.mountpoint / "too-much")
    diff_trees(lab, source, written)

    lab.umount()
    lab.decloud("mount", lab.volume, lab.mountpoint, "-o", "stage_size=64M", deadline=limits.CONNECT_TIMEOUT + 30)
    diff_trees(lab, source, written)

    lab.start_daemons(lab.peer_names)
    lab.sync("anchored", deadline=2 * LATE)  # asked at once, before any peer is found back
    is_there(lab, source, written)
    assert lab.run("sh", "-c", 'cat "$1"/* | sha256sum', "sh", far).out == content
