"""An empty machine with the 24 words and one address gets the whole volume back (design.md, Keys)."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from mnemonic import Mnemonic

from tests.cluster import cleanup
from tests.cluster.harness import Network, diff_trees
from tests.cluster.testdata import BIG_SIZE, Loaded


def find_phrase(text: str) -> str:
    """Return the 24 words in a command's output, whatever stands around them."""
    words = re.findall(r"[a-z]+", text)
    language = Mnemonic("english")
    known = set(language.wordlist)
    for start in range(len(words) - 23):
        candidate = words[start : start + 24]
        if known.issuperset(candidate) and language.check(" ".join(candidate)):
            return " ".join(candidate)
    raise AssertionError(f"no 24 words in {len(words)} words of output")


@pytest.fixture(scope="module")
def other_machine(loaded: Loaded) -> Iterator[Network]:
    """A second home with a volume recovered there, while the first machine's mount is gone but its network runs."""
    first = loaded.network
    phrase = find_phrase(first.decloud("phrase", first.volume).out)
    url = first.ledger_url()
    first.sync("anchored")
    first.umount()
    with Network() as other:
        secret = other.work / "words"
        secret.touch(mode=0o600)
        secret.write_text(phrase + "\n")
        other.decloud("recover", first.volume, "--phrase-file", secret, "--bootstrap", url, deadline=120)
        secret.unlink()
        other.decloud("mount", first.volume, other.mountpoint, deadline=90)
        yield other


def test_everything_is_back(loaded: Loaded, other_machine: Network) -> None:
    status = other_machine.status()
    assert status["volume"] == loaded.network.volume
    assert status["downloaded_bytes"] < BIG_SIZE // 8, "metadata is fetched lazily"
    diff_trees(other_machine, loaded.source, other_machine.mountpoint / "data", deadline=240)
    assert other_machine.status()["downloaded_bytes"] >= BIG_SIZE
    here = other_machine.worker("listing", loaded.source, deadline=240)
    assert other_machine.worker("listing", other_machine.mountpoint / "data", deadline=240) == here


def test_it_has_a_ledger_daemon_of_its_own(loaded: Loaded, other_machine: Network) -> None:
    there = other_machine.decloud("ledger", "status", "--json").json()
    here = loaded.network.decloud("ledger", "status", "--json").json()
    assert there["pid"] != here["pid"]
    assert there["network"] == here["network"]
    assert there["height"] >= here["height"] - 1
    other_machine.decloud("ledger", "verify", deadline=60)


def test_it_goes_on_from_there(other_machine: Network) -> None:
    wrote = other_machine.worker(
        "write_and_sync", other_machine.mountpoint / "on the other machine", "3000000", "other"
    )
    assert wrote["same"]
    other_machine.sync("anchored")
    other_machine.decloud("log", other_machine.volume, "--verify", deadline=120)


def test_fault_026_the_first_machine_becomes_read_only(loaded: Loaded, other_machine: Network) -> None:
    """Mounted again, it learns from the ledger that another one wrote: it keeps all it has, also what it took before."""
    first = loaded.network
    ledger = first.decloud("ledger", "status", "--json").json()
    height = other_machine.status()["anchor_height"]
    assert ledger["height"] >= height, "it was told of the other machine's anchor"
    cleanup.send_signal(ledger["pid"], signal.SIGSTOP)
    try:
        first.decloud("mount", first.volume, first.mountpoint)
        assert first.worker("write_and_sync", first.mountpoint / "before it knew", "3000000", "first")["same"]
        taken = first.digest("before it knew")
    finally:
        cleanup.send_signal(ledger["pid"], signal.SIGCONT)
    for _ in range(2):
        status = first.wait_status(lambda status: bool(status["read_only"]), 60, "the first machine turns read-only")
        assert "another device wrote this volume" in status["read_only"]
        assert "is kept" in status["read_only"]
        assert any("read-only" in problem for problem in status["problems"]), status["problems"]
        shown = first.decloud("status", first.mountpoint, check=False)
        assert (shown.code, "read-only" in shown.out) == (4, True), shown.describe()
        refused = first.run("touch", first.mountpoint / "data", first.mountpoint / "new", check=False)
        assert refused.err.count("Read-only file system") == 2, refused.describe()
        assert first.decloud("sync", first.mountpoint, "--wait", "anchored", check=False).code == 4
        assert first.digest("before it knew") == taken
        diff_trees(first, loaded.source / "marked", first.mountpoint / "data" / "marked")
        first.umount()
        first.decloud("mount", first.volume, first.mountpoint)
    names = other_machine.run("ls", other_machine.mountpoint).out.splitlines()
    assert "on the other machine" in names
    assert "before it knew" not in names
    assert not other_machine.status()["read_only"]
    first.umount()


def test_no_secret_was_left_in_the_open(other_machine: Network) -> None:
    """Not in a log, not in argv, not in an environment."""
    phrase = find_phrase(other_machine.decloud("phrase", other_machine.volume).out)
    words = phrase.split()
    for path in sorted(Path(other_machine.home).rglob("*")):
        if path.is_file() and path.suffix in (".log", ".json", ".toml"):
            text = path.read_text(errors="replace")
            assert " ".join(words[:3]) not in text, path
    for pid in other_machine.processes():
        for name in ("cmdline", "environ"):
            assert words[0].encode() + b" " + words[1].encode() not in Path(f"/proc/{pid}/{name}").read_bytes()
    assert cleanup.mounts_below(other_machine.base)
