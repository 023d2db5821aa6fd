"""SIGKILL at random instants under load: everything that was acknowledged is there (faults 1, 2 and 3)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.harness import ROOT, Network
from tests.crash.checker import acknowledged, check
from tests.crash.rounds import CLEAN, Rounds
from tests.crash.workload import PAGE

SEED = int(os.environ.get("CRASH_SEED", "20240611"))
KILLS = 6
LONG_KILLS = 300


def test_faults_001_and_003_killed_at_random_instants(network: Network) -> None:
    rounds = Rounds(network, SEED)
    for number in range(KILLS):
        rounds.run(number)
    network.sync("stored")  # what was not uploaded goes on uploading
    status = rounds.status()
    assert (status.staged.bytes, status.handler_errors) == (0, 0)
    rounds.check_again(5)


def test_fault_002_killed_and_the_cache_deleted(network: Network) -> None:
    rounds = Rounds(network, SEED + 1)
    for number, kind in enumerate(("driver", "everything")):
        rounds.run(1000 + number, kind)
    network.sync("stored")
    network.kill(rounds.status().driver_pid)
    network.run("umount", "-l", network.mountpoint)
    network.drop_cache_of_unmounted()
    rounds.check_again(2)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_fault_001_several_hundred_kills(network: Network) -> None:
    rounds = Rounds(network, SEED + 2)
    for number in range(LONG_KILLS):
        rounds.run(2000 + number)
        if number % 10 == 9:
            rounds.forget()
    network.sync("stored")


# ---- the harness itself ---------------------------------------------------------------------------------------------


@pytest.fixture
def undisturbed() -> Iterator[tuple[Path, Path, str]]:
    """What the writer leaves on a file system that works, when it is stopped instead of killed."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as base:  # ext4 has no room for the long attributes
        where, manifest, seed = Path(base, "data"), Path(base, "manifest"), str(SEED)
        manifest.mkdir()
        arguments = [sys.executable, "-m", "tests.crash.writer", where, manifest, seed]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, cwd=ROOT) as writer:
            while writer.poll() is None and acknowledged(manifest / "a") < 120:
                time.sleep(0.02)
            (manifest / "stop").touch()
            assert writer.stdout is not None
            assert json.loads(writer.stdout.read()) == {"failures": []}
        yield where, manifest, seed


def test_the_checker_finds_nothing_wrong_with_a_disk_that_works(undisturbed: tuple[Path, Path, str]) -> None:
    where, manifest, seed = undisturbed
    found = check(where, manifest, seed)
    assert CLEAN.items() <= found.items(), found
    assert found["operations"] > 100


def test_the_checker_notices_every_damage(undisturbed: tuple[Path, Path, str]) -> None:
    where, manifest, seed = undisturbed
    files = [path for path in (where / "a").rglob("*") if not path.is_symlink() and path.is_file()]
    big = max(files, key=lambda path: path.stat().st_size)
    loose = max((where / "loose").glob("0*"), key=lambda path: path.stat().st_size)

    def damaged(path: Path, offset: int, data: bytes) -> dict[str, object]:
        with open(path, "r+b") as file:
            file.seek(offset)
            before = file.read(len(data))
            file.seek(offset)
            file.write(data)
            file.flush()
            found = check(where, manifest, seed)
            file.seek(offset)
            file.write(before)
        return found

    page = big.stat().st_size // 2 // PAGE * PAGE
    with open(big, "rb") as file:
        file.seek(page)
        other = bytes(byte ^ 255 for byte in file.read(PAGE))
    found = damaged(big, page, other)
    assert found["lost"] or found["mixed"]  # the last step may have been changing just that file
    assert damaged(loose, 0, bytes(PAGE))["holes"]
    assert damaged(loose, PAGE, other)["mixed"]
    big.rename(big.with_name("elsewhere"))
    assert len(check(where, manifest, seed)["lost"]) >= 2
    big.with_name("elsewhere").rename(big)
    os.chmod(big, 0o123)
    assert check(where, manifest, seed)["lost"]
    oldest = where / "loose" / "000000"
    oldest.unlink()
    assert check(where, manifest, seed)["order"]
