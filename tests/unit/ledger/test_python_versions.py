"""Every version of Python that this machine has makes the same states of the same blocks."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import naive
import rulevectors
import stateroots
from fast import Fast
from histories import DOCUMENT, NOW, VOTING, Writer, random_steps, random_voting_steps

from fsdecloud.ledger.network import encode_network

NEEDED = ("blake3", "cryptography", "msgspec", "sortedcontainers", "zstandard")
"""What the rules import."""

OWN = f"{sys.version_info[0]}.{sys.version_info[1]}"

LISTS = ("blocks", "blocks with stake and without checkpoints", "blocks with votes")


def of_vectors() -> list[dict]:
    """Return the golden vectors as histories."""
    vectors = json.loads(rulevectors.FILE.read_text())
    networks = [vectors["network"]] * 2 + [vectors["network with checkpoints"]]
    return [
        {"network": network, "now": vectors["now"], "blocks": [vector["bytes"] for vector in vectors[name]]}
        for name, network in zip(LISTS, networks, strict=True)
    ]


def at_random(count: int) -> list[dict]:
    """Return histories of blocks right and wrong on any branch, with and without votes."""
    found = []
    for seed in range(count):
        rng = random.Random(seed)
        document, steps = (VOTING, random_voting_steps(rng, 40)) if seed % 2 else (DOCUMENT, random_steps(rng, 30))
        ledger = naive.Ledger(document)
        writer, blocks = Writer(ledger), []
        for step in steps:
            data = writer.block(step)
            blocks.append(data.hex())
            try:
                writer.points.append(ledger.add(data, NOW))
            except naive.Refused:
                continue
        found.append({"network": encode_network(Fast(document).document).hex(), "now": NOW, "blocks": blocks})
    return found


def other_pythons() -> dict[str, Path]:
    """Return the interpreters of other versions that this machine has and the program runs on, by version."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found: dict[str, Path] = {}
    for minor in range(11, 30):
        name = f"python3.{minor}"
        there = shutil.which(name)
        places = [*([Path(there)] if there else []), *sorted(root.glob(f"3.{minor}.*/bin/{name}"))]
        for path in places:
            done = subprocess.run(
                [path, "-c", "import platform; print(platform.python_version())"],
                capture_output=True,
                text=True,
                check=False,
            )
            number = done.stdout.strip()
            if done.returncode == 0 and number and number.rpartition(".")[0] != OWN:
                found.setdefault(number, path)
    return found


def replayed_by(python: Path | str, file: Path, seed: str = "1") -> list[str]:
    """Return the lines of `stateroots` under an interpreter, its version first."""
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [python, stateroots.__file__, file], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{python}: {done.stderr[-2000:]}"
    return done.stdout.splitlines()


def test_fault_117_a_replay_elsewhere_gives_the_states_of_the_vectors(tmp_path: Path) -> None:
    histories = of_vectors()
    file = tmp_path / "histories"
    file.write_text(json.dumps(histories))
    head, *found = replayed_by(sys.executable, file)
    assert head.startswith("# 3.")
    assert found == list(stateroots.lines(histories))
    vectors = json.loads(rulevectors.FILE.read_text())
    expected = [" ".join(vector["reasons"]) or vector["id"] for name in LISTS for vector in vectors[name]]
    assert [
        line if line[:1].isupper() else line.split()[0] for line in found if not line.startswith("tip ")
    ] == expected


@pytest.mark.long
def test_fault_117_every_version_of_python_makes_the_same_states(tmp_path: Path) -> None:
    """In an environment of its own for each, with the versions of the libraries that are installed here."""
    others = other_pythons()
    if not others:
        pytest.skip("there is no other version of Python from 3.11 on, neither in PATH nor below ~/.pyenv/versions")
    histories = of_vectors() + at_random(60)
    file = tmp_path / "histories"
    file.write_text(json.dumps(histories))
    expected = list(stateroots.lines(histories))
    assert sum(line.count(" ") == 2 for line in expected) > 500, "most blocks are taken"
    compared = []
    for number, python in others.items():
        home = tmp_path / number
        subprocess.run([python, "-m", "venv", home], check=True, capture_output=True)
        wanted = [f"{name}=={version(name)}" for name in NEEDED]
        installed = subprocess.run(
            [home / "bin" / "python", "-m", "pip", "install", "-q", *wanted],
            capture_output=True,
            text=True,
            check=False,
        )
        if installed.returncode != 0:
            continue  # no network, or none of these for it
        head, *found = replayed_by(home / "bin" / "python", file, seed=str(len(compared)))
        assert head == f"# {number}"
        assert found == expected, number
        compared.append(number)
    if not compared:
        pytest.skip(f"the ledger's libraries cannot be installed for Python {', '.join(others)}")
    print("compared:", ", ".join(compared))
