"""Peers, the ledger and the local state hold no plaintext of the test data and none of its names."""

from __future__ import annotations

import base64
import os
import random
import subprocess
from pathlib import Path

from tests.cluster.testdata import MARKER, Loaded

SAMPLES = 400


def sample_contents(source: Path) -> list[bytes]:
    """Return sequences of 40 bytes out of many files: printable enough for grep's pattern file, and telling."""
    chooser = random.Random(3)
    files = [path for path in sorted(source.rglob("*")) if path.is_file() and not path.is_symlink()]
    needles: list[bytes] = []
    while len(needles) < SAMPLES:
        path = chooser.choice(files)
        size = path.stat().st_size
        if size < 4096:
            continue
        with open(path, "rb") as file:
            file.seek(chooser.randrange(size - 200))
            text = file.read(200)
        runs = [run for run in text.replace(b"\0", b"\n").split(b"\n") if len(run) >= 40 and len(set(run)) > 15]
        if runs:
            needles.append(runs[0][:40])
    return needles


def sample_names(source: Path) -> list[bytes]:
    """Return file names that nothing else would contain by chance."""
    names = {path.name for path in source.rglob("*")}
    return sorted(os.fsencode(name) for name in names if len(name) >= 18 and "\n" not in name)


def marker_forms() -> list[bytes]:
    """Return the marker as it is, in hexadecimal, in UTF-16 and in base64 at each alignment."""
    raw = MARKER.encode()
    encoded = [base64.b64encode(b"x" * shift + raw)[4:-4] for shift in range(3)]
    return [raw, raw.hex().encode(), raw.hex().upper().encode(), *encoded]


def files_with(needles: list[bytes], root: Path, work: Path) -> list[str]:
    """Return the files below `root` that contain any of the byte strings."""
    patterns = work / "patterns"
    patterns.write_bytes(b"\n".join(needles) + b"\n")
    found = subprocess.run(
        ["grep", "-rlaF", "--devices=skip", "-f", patterns, root],
        stdout=subprocess.PIPE,
        env={**os.environ, "LC_ALL": "C"},
        timeout=300,
        check=False,
    )
    assert found.returncode in (0, 1)
    return found.stdout.decode().splitlines()


def test_grep_finds_what_is_there(loaded: Loaded) -> None:
    """The check itself works: every kind of needle is found in the source, and names in a listing of it."""
    work = loaded.network.work
    needles = sample_contents(loaded.source)
    assert len(files_with(needles, loaded.source, work)) > SAMPLES // 4
    assert files_with(marker_forms()[:1], loaded.source, work)
    names = sample_names(loaded.source)
    assert len(names) > 300
    assert any(MARKER.encode() in name for name in names)


def test_nothing_in_the_clear(loaded: Loaded) -> None:
    network = loaded.network
    network.worker("write_and_sync", network.mountpoint / f"{MARKER}-fresh", "200000", MARKER)
    staged_or_stored = [network.home / "state", network.home / "cache", network.home / "config", network.home / "run"]
    assert (network.home / "state" / "peers").is_dir()
    assert (network.home / "state" / "ledger").is_dir()
    assert (network.home / "state" / "volumes").is_dir()
    needles = sample_contents(loaded.source) + sample_names(loaded.source) + marker_forms()
    found = [path for root in staged_or_stored if root.exists() for path in files_with(needles, root, network.work)]
    assert found == []


def test_private_directories(loaded: Loaded) -> None:
    """Modes are checked, never assumed: nobody else can look into configuration, state or runtime."""
    for name in ("config", "state", "run"):
        directory = loaded.network.home / name
        assert directory.stat().st_mode & 0o077 == 0, f"{directory} is open to others"
    for path in (loaded.network.home / "config").rglob("*"):
        if path.is_file():
            assert path.stat().st_mode & 0o077 == 0, f"{path} is open to others"
