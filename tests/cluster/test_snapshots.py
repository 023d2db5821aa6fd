"""Snapshots of a real volume: read below .snapshots, mounted alone, compared, restored, kept, forgotten, recovered."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.harness import Network, diff_trees, remove_tree
from tests.cluster.test_recover import find_phrase

MIB = 1 << 20


@dataclass
class Past:
    """A volume with a past: its state at one anchor, and what a plain disk says that it was."""

    network: Network
    copy: Path
    sequence: int

    @property
    def root(self) -> Path:
        """The state, below .snapshots."""
        found = self.network.run("sh", "-c", f"ls -d {self.network.mountpoint}/.snapshots/*-{self.sequence:06}").out
        return Path(found.strip())

    def snapshots(self) -> list[dict]:
        """What `snapshot list` says."""
        return self.network.decloud("snapshot", "list", self.network.volume, "--json").json_lines()

    def snapshot(self, *args: str | Path, check: bool = True):
        """Run `decloud snapshot COMMAND VOLUME ARGS`."""
        command, *rest = args
        return self.network.decloud("snapshot", command, self.network.volume, *rest, check=check)

    def is_as_then(self, place: Path) -> None:
        """Fail unless a directory holds what the volume held: contents, modes, owners, times, links, attributes."""
        diff_trees(self.network, self.copy, place)
        for operation in ("listing", "times"):
            here = self.network.worker(operation, self.copy)
            assert self.network.worker(operation, place) == here, operation


@pytest.fixture(scope="module")
def past() -> Iterator[Past]:
    with Network(peers=3) as network:
        network.up()
        copy = network.work / "copy"
        tree = copy / "tree"
        tree.mkdir(parents=True)
        noise = random.Random(3)
        (tree / "big").write_bytes(noise.randbytes(3 * MIB + 5))
        (tree / "small").write_text("small")
        (tree / "gone").write_text("gone")
        (tree / "deep" / "er").mkdir(parents=True)
        for number in range(40):
            (tree / "deep" / "er" / f"{number}").write_bytes(noise.randbytes(number * 100))
        script = (
            "cd $0 && ln small link && ln -s small symlink && chmod 4711 small && chown 12:34 deep && "
            "setfattr -n user.a -v b small && cp /bin/true program && truncate -s 9M sparse && "
            "touch -hd '2001-02-03 04:05:06.123456789' big small symlink deep"
        )
        network.run("sh", "-c", script, tree)
        network.run("cp", "-a", tree, network.mountpoint)
        network.sync("anchored")
        sequence = network.decloud("snapshot", "list", network.volume, "--json").json_lines()[-1]["sequence"]
        change = (
            "cd $0 && echo changed > small && rm gone && mv deep/er moved && rm moved/7 && echo new > deep/new && "
            "dd if=/dev/zero of=big bs=1 seek=5000 count=10 conv=notrunc status=none && chmod 711 deep"
        )
        network.run("sh", "-c", change, network.mountpoint / "tree")
        network.sync("anchored")
        yield Past(network, copy, sequence)


def fails(network: Network, command: str, *args: Path) -> str:
    """Run a shell command that must fail; return what it said."""
    result = network.run("sh", "-c", command, *args, check=False)
    assert result.code != 0, result.describe()
    return result.err


def test_the_old_state_is_below_snapshots(past: Past) -> None:
    network, root = past.network, past.root
    past.is_as_then(root)
    network.run(root / "tree" / "program")
    network.run("find", root, "-type", "f", "-newermt", "2000-01-01")
    network.run("cp", "-a", root / "tree", network.work / "copied")
    diff_trees(network, past.copy / "tree", network.work / "copied")
    remove_tree(network.work / "copied")
    mapped = "import mmap, sys; f = open(sys.argv[1], 'rb'); print(mmap.mmap(f.fileno(), 0, prot=1)[3145728:].hex())"
    wanted = (past.copy / "tree" / "big").read_bytes()[3 * MIB :].hex()
    assert network.run("python3", "-c", mapped, root / "tree" / "big").out.strip() == wanted
    numbers = network.run("stat", "-c", "%d %i %h", root / "tree" / "small", network.mountpoint / "tree" / "small").out
    (device, old, links), (live_device, live, _) = (line.split() for line in numbers.splitlines())
    assert device == live_device
    assert links == "2"
    assert int(old) == past.sequence << 40 | int(live), "the same file then and now"


def test_snapshots_are_not_listed_but_there_and_read_only(past: Past) -> None:
    network, root, mount = past.network, past.root, past.network.mountpoint
    assert network.run("ls", "-a", mount).out.split() == [".", "..", "tree"]
    for command in ("rm $0/tree/small", "touch $0/x", "mkdir $0/x", "echo > $0/tree/small", "chmod 700 $0/tree",
                    "rmdir $0/../../.snapshots", "mv $0/tree/small $0/tree/x", "setfattr -n user.x -v y $0/tree"):  # fmt: skip
        assert "Read-only" in fails(network, command, root), command
    rename = "import os, sys; os.rename(sys.argv[1], sys.argv[2])"
    link = "import os, sys; os.link(sys.argv[1], sys.argv[2])"
    for script in (rename, link):
        ended = network.run("python3", "-c", script, root / "tree" / "small", mount / "out", check=False)
        assert "Invalid cross-device link" in ended.err
    assert "File exists" in fails(network, "mkdir $0/.snapshots", mount)
    assert "No such file" in fails(network, "ls $0/.snapshots/2001-01-01T00.00.00Z-000001", mount)
    log = network.decloud("log", network.volume, "--json").json_lines()
    assert any(line["operation"] == "read" and line["path"].startswith("/.snapshots/2") for line in log)


def test_differences(past: Past) -> None:
    lines = past.snapshot("diff", str(past.sequence), "--json").json_lines()
    found = {(line["change"], line["path"], line["path2"]) for line in lines}
    if ("changed", "/tree/link", None) in found:  # one of the file's two names
        found = found - {("changed", "/tree/link", None)} | {("changed", "/tree/small", None)}
    assert found == {
        ("changed", "/tree/small", None), ("removed", "/tree/gone", None), ("removed", "/tree/deep/er/7", None),
        ("renamed", "/tree/deep/er", "/tree/moved"), ("added", "/tree/deep/new", None), ("changed", "/tree/big", None),
        ("changed", "/tree/deep", None),
    }  # fmt: skip
    assert past.snapshot("diff", "latest", "latest").out == ""
    assert "- /tree/deep/new" in past.snapshot("diff", "latest", str(past.sequence)).out.splitlines()


def test_a_snapshot_mounted_beside_the_volume(past: Past) -> None:
    network = past.network
    place = network.base / "then"
    place.mkdir()
    network.decloud("mount", network.volume, place, "-o", f"snapshot={past.sequence}")
    try:
        past.is_as_then(place)
        assert "Read-only" in fails(network, "touch $0/x", place)
        network.run("sh", "-c", "echo more > $0/tree/more && rm $0/tree/more", network.mountpoint)
        again = network.decloud("mount", network.volume, place, "-o", f"snapshot={past.sequence}", check=False)
        assert again.code == 32
        status = network.decloud("status", place, "--json").json()
        assert status["volume"] == f"{network.volume}@{past.sequence}"
        assert status["problems"] == []
        assert network.decloud("log", check=False).code == 0, "the volume itself is meant without a name"
    finally:
        network.decloud("umount", place)
    assert not list((network.home / "state" / "volumes").glob("*@*"))
    assert not list((network.home / "cache" / "volumes").glob("*@*"))
    refused = network.decloud("mount", network.volume, place, "-o", "snapshot=no-such", check=False)
    assert refused.code == 1
    assert "no snapshot no-such" in refused.err


def test_everything_is_there_without_the_cache_and_listed_when_asked_for(past: Past) -> None:
    network = past.network
    network.umount()
    remove_tree(network.home / "cache")
    network.decloud("mount", network.volume, network.mountpoint, "-o", "show_snapshots")
    assert network.run("ls", "-a", network.mountpoint).out.split() == [".", "..", ".snapshots", "tree"]
    past.is_as_then(past.root)
    assert network.status()["downloaded_bytes"] > 3 * MIB


def test_restore(past: Past) -> None:
    network, mount = past.network, past.network.mountpoint
    network.run("sh", "-c", "! cat $0/back", mount)  # the kernel remembers that there is none
    sent = network.status()["uploaded_bytes"]
    past.snapshot("restore", str(past.sequence), "tree", "--to", "back")
    diff_trees(network, past.copy / "tree", mount / "back")
    assert network.worker("listing", mount / "back") == network.worker("listing", past.copy / "tree")
    refused = past.snapshot("restore", str(past.sequence), "tree/small", check=False)
    assert refused.code == 1
    assert "--force" in refused.err
    assert network.run("cat", mount / "tree" / "small").out == "changed\n"
    past.snapshot("restore", str(past.sequence), "/tree/small", "--force")
    assert network.run("cat", mount / "tree" / "small").out == "small", "the kernel was told"
    past.snapshot("restore", str(past.sequence), "tree", "--force")
    diff_trees(network, past.copy / "tree", mount / "tree")
    network.sync("stored")
    assert network.status()["uploaded_bytes"] - sent < MIB, "references were copied, not contents"
    assert past.snapshot("diff", str(past.sequence), "--json").json_lines()
    log = network.decloud("log", network.volume, "--json").json_lines()
    restored = [line["path2"] for line in log if line["operation"] == "restore"]
    assert restored == ["/back", "/tree/small", "/tree"]
    assert past.snapshot("restore", str(past.sequence), "tree/no-such", check=False).code == 1


def test_keep_forget_and_policy(past: Past) -> None:
    network = past.network
    past.snapshot("keep", str(past.sequence), "--name", "before")
    link = network.mountpoint / ".snapshots" / "before"
    assert network.run("readlink", link).out.strip() == past.root.name
    diff_trees(network, past.copy / "tree", link / "tree")
    network.sync("anchored")
    victim = next(row for row in past.snapshots() if row["sequence"] > past.sequence)
    path = network.mountpoint / ".snapshots" / victim["directory"]
    network.run("ls", path)
    assert past.snapshot("forget", str(victim["sequence"]), "before", check=False).code == 1
    network.run("ls", path)
    past.snapshot("forget", str(victim["sequence"]))
    assert victim["sequence"] not in [row["sequence"] for row in past.snapshots()]

    def is_gone() -> bool:
        return network.run("ls", path, check=False).code != 0

    network.wait_until(is_gone, 60, "the forgotten snapshot's directory goes")
    assert past.snapshot("policy").out.startswith("all:1d,")
    assert past.snapshot("policy", "nonsense", check=False).code == 1
    assert past.snapshot("policy", "4w:forever", "--json").json()["to_forget"] > 0
    network.run("touch", network.mountpoint / "one more")
    network.sync("anchored")
    network.wait_until(lambda: len(past.snapshots()) <= 5, 60, "the policy is applied with a commit")
    assert past.sequence in [row["sequence"] for row in past.snapshots()]
    past.is_as_then(past.root)
    network.decloud("log", network.volume, "--verify", deadline=120)


def test_an_idle_volume_makes_no_anchors(past: Past) -> None:
    network = past.network
    network.sync("anchored")
    network.run("cat", network.mountpoint / "tree" / "small")
    before = [row["sequence"] for row in past.snapshots()]
    network.sync("stored")
    network.sync("stored")
    assert [row["sequence"] for row in past.snapshots()][-1] - before[-1] <= 1
    status = network.status()
    assert status["handler_errors"] == 0, status["last_error"]


@pytest.mark.long
def test_on_a_recovered_machine(past: Past) -> None:
    first = past.network
    phrase = find_phrase(first.decloud("phrase", first.volume).out)
    url = first.ledger_url()
    first.sync("anchored")
    wanted = past.snapshots()
    first.umount()
    with Network() as other:
        secret = other.work / "words"
        secret.touch(mode=0o600)
        secret.write_text(phrase + "\n")
        other.decloud("recover", first.volume, "--phrase-file", secret, "--bootstrap", url, deadline=120)
        then = other.base / "then"
        then.mkdir()
        other.decloud("mount", f"{first.volume}@before", then, deadline=90)  # before the volume itself ever was here
        diff_trees(other, past.copy, then)
        other.decloud("umount", then)
        other.decloud("mount", first.volume, other.mountpoint, deadline=90)

        def rows() -> list[dict]:
            return other.decloud("snapshot", "list", first.volume, "--json").json_lines()

        other.wait_until(lambda: rows()[: len(wanted)] == wanted, 30, "the last anchors' rows come from the ledger")
        diff_trees(other, past.copy / "tree", other.mountpoint / ".snapshots" / "before" / "tree")
        other.run("touch", other.mountpoint / "here")
        other.sync("anchored")
        assert rows()[: len(wanted)] == wanted
        assert rows()[-1]["sequence"] > wanted[-1]["sequence"]
