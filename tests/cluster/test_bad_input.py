"""Bad input gets one clear line saying what and what to do, a documented exit code, and changes nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mnemonic import Mnemonic

from tests.cluster import cleanup
from tests.cluster.harness import CommandFailed, Network, Result, remove_tree, tree_digest

USAGE, SYSTEM, MOUNT_FAILED = 1, 2, 32
MIB = 1 << 20
QUICK = 25.0
"""Nothing that is refused may take longer."""


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """Three peers, a volume with a file in it, mounted."""
    with Network(peers=3) as fresh:
        fresh.up()
        fresh.run("sh", "-c", 'head -c 9000000 /dev/urandom > "$1"', "sh", fresh.mountpoint / "file")
        fresh.sync("anchored")
        yield fresh


@pytest.fixture
def unmounted(network: Network) -> Iterator[Network]:
    """The network with its volume unmounted for one test."""
    network.umount()
    yield network
    network.up()


@pytest.fixture
def empty_home(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A second home without anything."""
    home = network.base / "other"
    yield home
    if home.exists():
        network.decloud("down", home=home, check=False)
        remove_tree(home)


def refused(network: Network, *args: str | Path, says: str, code: int = USAGE, home: Path | None = None) -> str:
    """Run `decloud ARGS`; fail unless it is refused quickly with that exit code and one line that matches `says`."""
    result = network.decloud(*args, deadline=QUICK, check=False, home=home)
    return refusal(result, says=says, code=code)


def refusal(result: Result, *, says: str, code: int) -> str:
    """Check how a command was refused and return the line."""
    assert result.code == code, result.describe()
    lines = result.err.strip().splitlines()
    assert len(lines) == 1, f"not one line: {result.describe()}"
    assert "Traceback" not in result.out, result.describe()
    assert re.search(says, lines[0], re.IGNORECASE), f"{lines[0]!r} does not say {says!r}"
    return lines[0]


@contextmanager
def nothing_changes(network: Network, *, states: bool = False) -> Iterator[None]:
    """Fail if configuration, processes or mounts (and with `states` the state of an unmounted volume) differ afterwards."""

    def look() -> tuple[object, ...]:
        roots = [network.home / "config", *([network.home / "state" / "volumes"] if states else [])]
        files = {
            path: data
            for path, data in tree_digest(*roots, skip=("log",)).items()
            if not path.endswith(("lock.mdb", ".lock"))
        }
        return files, network.processes(), cleanup.mounts_below(network.base)

    before = look()
    yield
    assert look() == before


def file_length(network: Network) -> int:
    """Read the volume's file through the mount and return how many bytes came."""
    return int(network.run("sh", "-c", 'cat "$1" | wc -c', "sh", network.mountpoint / "file", deadline=90).out)


# ---- phrases and passphrases ----------------------------------------------------------------------------------------


def valid_words() -> list[str]:
    """Return a valid phrase that belongs to no volume."""
    return Mnemonic("english").to_mnemonic(bytes(range(32))).split()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda words: words[:-1], r"24 words.*23|23 .*24"),
        (lambda words: [*words, "abandon"], r"24 words.*25|25 .*24"),
        (lambda words: [], r"24"),
        (lambda words: [*words[:4], "zzyzx", *words[5:]], r"word 5.*zzyzx|zzyzx.*word 5"),
        (lambda words: [words[1], words[0], *words[2:]], r"checksum|mistyped|order"),
    ],
)
def test_wrong_phrase(network: Network, empty_home: Path, change, says: str) -> None:
    file = network.work / "phrase"
    file.write_text(" ".join(change(valid_words())) + "\n")
    file.chmod(0o600)
    url = network.ledger_url()
    refused(network, "recover", "cloud", "--phrase-file", file, "--bootstrap", url, says=says, home=empty_home)
    assert not (empty_home / "config" / "volumes").exists()


def test_phrase_of_no_volume(network: Network, empty_home: Path) -> None:
    file = network.work / "phrase"
    file.write_text(" ".join(valid_words()) + "\n")
    file.chmod(0o600)
    arguments = ("recover", "cloud", "--phrase-file", file, "--bootstrap", network.ledger_url())
    result = network.decloud(*arguments, deadline=60, check=False, home=empty_home)
    assert result.code in (USAGE, SYSTEM), result.describe()
    refusal(result, says=r"no (volume|anchor)|nothing|knows", code=result.code)


@pytest.mark.parametrize(
    ("url", "code", "says"),
    [
        ("http://example.org", USAGE, r"wss://"),
        ("wss://127.0.0.1:99999", USAGE, r"port"),
        ("wss://127.0.0.1:9", SYSTEM, r"127\.0\.0\.1:9"),
    ],
)
def test_wrong_bootstrap_address(network: Network, empty_home: Path, url: str, code: int, says: str) -> None:
    file = network.work / "phrase"
    file.write_text(" ".join(valid_words()) + "\n")
    file.chmod(0o600)
    arguments = ("recover", "cloud", "--phrase-file", file, "--bootstrap", url)
    result = network.decloud(*arguments, deadline=60, check=False, home=empty_home)
    refusal(result, says=says, code=code)
    assert not (empty_home / "config" / "volumes").exists()


def test_phrase_file_missing(network: Network, empty_home: Path) -> None:
    missing = network.work / "no such file"
    arguments = ("recover", "cloud", "--phrase-file", missing, "--bootstrap", "wss://127.0.0.1:9")
    refused(network, *arguments, says=r"no such file", code=SYSTEM, home=empty_home)


def test_passphrases(network: Network) -> None:
    right, wrong, point = network.work / "right", network.work / "wrong", network.work / "locked"
    for file, text in ((right, "correct horse\n"), (wrong, "battery staple\n")):
        file.write_text(text)
        file.chmod(0o600)
    point.mkdir()
    words = network.work / "locked.words"
    network.decloud("init", "locked", "--passphrase-file", right, "--phrase-file", words)
    assert words.stat().st_mode & 0o077 == 0
    with nothing_changes(network):
        refused(network, "mount", "locked", point, "-o", f"passfile={wrong}", says=r"passphrase")
        refused(network, "mount", "locked", point, says=r"passphrase.*(terminal|passfile)")
        refused(network, "mount", "locked", point, "-o", f"passfile={network.work}/none", says=r"none")
        right.chmod(0o644)
        refused(network, "mount", "locked", point, "-o", f"passfile={right}", says=r"chmod 600")
        right.chmod(0o600)
        said = refused(network, "mount", "locked", point, "-o", "password=hunter2", says=r"secret|passfile")
        assert "hunter2" not in said
    network.decloud("mount", "locked", point, "-o", f"passfile={right}")
    network.decloud("umount", point)


# ---- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "../up", "a b", ".hidden", "-x", "n" * 65, "ünï", "a/b", "a\nb"])
def test_wrong_names(network: Network, name: str) -> None:
    with nothing_changes(network):
        refused(network, "init", "--", name, says=r"name|empty")
        refused(network, "mount", "--", name, network.work, says=r"name|empty|volume")


def test_unknown_and_taken_names(network: Network) -> None:
    with nothing_changes(network):
        refused(network, "mount", "nosuchvolume", network.work, says=r"no volume.*nosuchvolume|nosuchvolume")
        refused(network, "phrase", "nosuchvolume", says=r"nosuchvolume")
        refused(network, "log", "nosuchvolume", says=r"nosuchvolume")
        refused(network, "init", network.volume, says=rf"{network.volume} already")


# ---- mount points ---------------------------------------------------------------------------------------------------


def test_wrong_mount_points(unmounted: Network) -> None:
    network, volume = unmounted, unmounted.volume
    file, full = network.work / "a file", network.work / "not empty"
    file.write_text("x")
    full.mkdir(exist_ok=True)
    (full / "something").touch()
    inside = network.home / "state" / "inside"
    with nothing_changes(network, states=True):
        refused(network, "mount", volume, network.work / "missing", says=r"missing.*(not exist|mkdir)")
        refused(network, "mount", volume, file, says=r"not a directory")
        refused(network, "mount", volume, full, says=r"not empty")
        inside.mkdir(mode=0o700)
        refused(network, "mount", volume, inside, says=r"inside|below|within|lies in")
        inside.rmdir()
        refused(network, "umount", network.work, says=r"not (the )?mount|not mounted")
        refused(network, "sync", network.work, says=r"not in a mounted volume|mount")


def test_f24_home_inside_the_mount_point(unmounted: Network) -> None:
    """A mount point that contains the state directory would make the driver wait for itself."""
    with nothing_changes(unmounted, states=True):
        refused(unmounted, "mount", unmounted.volume, unmounted.base, says=r"not empty|contains|holds|below|inside")


def test_f25_second_mount(network: Network) -> None:
    other = network.work / "second"
    other.mkdir()
    with nothing_changes(network):
        where = rf"{re.escape(str(network.mountpoint))} \(process {network.status()['driver_pid']}\)"
        refused(network, "mount", network.volume, other, says=rf"already mounted at {where}", code=MOUNT_FAILED)
        refused(network, "mount", network.volume, network.mountpoint, says=r"already mounted", code=MOUNT_FAILED)
    if not (network.home / "config" / "volumes" / "spare.json").exists():
        network.decloud("init", "spare", "--phrase-file", network.work / "spare.words")
    with nothing_changes(network):
        refused(network, "mount", "spare", network.mountpoint, says=r"already mounted", code=MOUNT_FAILED)
    assert network.run("ls", network.mountpoint).out.split() == ["file"]


def test_stale_mount(network: Network) -> None:
    """A dead mount is never mistaken for an empty directory; another volume is not put over it; its own one is."""
    if not (network.home / "config" / "volumes" / "spare.json").exists():
        network.decloud("init", "spare", "--phrase-file", network.work / "spare.words")
    network.kill(network.status()["driver_pid"])
    listed = network.run("ls", network.mountpoint, check=False)
    assert listed.code != 0
    assert "not connected" in listed.err or "connection abort" in listed.err
    refused(
        network, "mount", "spare", network.mountpoint, says=rf"dead mount.*{network.volume}|stale", code=MOUNT_FAILED
    )
    network.mount()
    assert network.run("ls", network.mountpoint).out.split() == ["file"]
    assert len(cleanup.mounts_below(network.base)) == 1


# ---- options and arguments ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("nosuchoption", r"nosuchoption"),
        ("chache_size=1g", r"chache_size.*cache_size"),
        ("cache_size=banana", r"cache_size|banana"),
        ("cache_size=", r"cache_size"),
        ("timeout=-1", r"timeout"),
        ("max_read=4096", r"max_read"),
        ("io_uring", r"io_uring"),
        ("remount,ro", r"options"),
    ],
)
def test_wrong_mount_options(unmounted: Network, options: str, says: str) -> None:
    with nothing_changes(unmounted, states=True):
        refused(unmounted, "mount", unmounted.volume, unmounted.mountpoint, "-o", options, says=says)


@pytest.mark.parametrize(
    "arguments",
    [
        ("nosuchcommand",),
        ("mount",),
        ("mount", "a", "b", "c"),
        ("up", "--peers", "0"),
        ("up", "--peers", "many"),
        ("sync", ".", "--wait", "forever"),
        ("init", "fresh", "--redundancy", "5/2"),
        ("ledger", "show", "not-a-transaction"),
        ("status", "--nosuch"),
    ],
)
def test_wrong_arguments(network: Network, arguments: tuple[str, ...]) -> None:
    with nothing_changes(network):
        refused(network, *arguments, says=r".")


def test_relative_home(network: Network) -> None:
    result = network.run("decloud", "status", check=False, environment={"FSDECLOUD_HOME": "somewhere/else"})
    refusal(result, says=r"FSDECLOUD_HOME must be an absolute path", code=USAGE)


# ---- damaged files --------------------------------------------------------------------------------------------------


@contextmanager
def damaged(path: Path, data: bytes | None = None, *, mode: int | None = None) -> Iterator[None]:
    """Replace a file's content, or its mode, for a while."""
    before, bits = path.read_bytes(), path.stat().st_mode & 0o7777
    if data is not None:
        path.write_bytes(data)
    if mode is not None:
        path.chmod(mode)
    yield
    path.write_bytes(before)
    path.chmod(bits)


def test_f27_damaged_key_file(unmounted: Network) -> None:
    network = unmounted
    key = network.home / "config" / "device.key"
    mount = ("mount", network.volume, network.mountpoint)
    good = key.read_bytes()
    for data, says in [
        (good[:-1], r"31 bytes"),
        (b"", r"0 bytes"),
        (bytes(32), r"open|key|slot"),
        (good * 9, r"288 bytes"),
    ]:
        with damaged(key, data), nothing_changes(network, states=True):
            refused(network, *mount, says=says)
    with damaged(key, mode=0o644), nothing_changes(network, states=True):
        refused(network, *mount, says=r"chmod 600")
    aside = key.with_name("aside")
    key.rename(aside)
    with nothing_changes(network, states=True):
        refused(network, *mount, says=r"device\.key")
    key.symlink_to(aside)
    refused(network, *mount, says=r"device\.key")
    key.unlink()
    key.mkdir(mode=0o700)
    refused(network, *mount, says=r"device\.key")
    key.rmdir()
    aside.rename(key)


def test_damaged_volume_document(unmounted: Network) -> None:
    network = unmounted
    document = network.home / "config" / "volumes" / f"{network.volume}.json"
    mount = ("mount", network.volume, network.mountpoint)
    good = document.read_bytes()
    hexadecimal = re.search(rb'"volume_id": ?"([0-9a-f]{64})"', good)
    samples = [
        good[: len(good) // 2],
        b"{}",
        b"\xff\xfe garbage",
        b"[" * 5000,
        re.sub(rb'"version": ?1', b'"version": 99', good, count=1),
    ]
    if hexadecimal is not None:
        samples.append(good.replace(hexadecimal[1], b"0" * 64))
    for data in samples:
        with damaged(document, data), nothing_changes(network, states=True):
            refused(network, *mount, says=r"damaged|version|document|open|key|volume")
    with damaged(document, mode=0o666), nothing_changes(network, states=True):
        refused(network, *mount, says=r"chmod 600")


def test_a_volume_of_another_network(unmounted: Network) -> None:
    """Whoever removes the state and keeps the configuration learns it at once, not when a mount times out."""
    network = unmounted
    kept = network.home / "state" / "ledger" / "network"
    other = kept.read_bytes().replace(b"embedded", b"of other")
    with damaged(kept, other):
        for command in (("mount", network.volume, network.mountpoint), ("up", network.mountpoint, "--detach")):
            with nothing_changes(network, states=True):
                refused(
                    network,
                    *command,
                    says=r"made in the network [0-9a-f]{16}, and this home is of the network [0-9a-f]{16}:",
                )
    aside = kept.with_name("aside")
    kept.rename(aside)
    try:
        refused(network, "up", network.mountpoint, "--detach", says=r"is of no network any more: bring .*ledger back")
        assert not kept.exists(), "no other network was made"
    finally:
        aside.rename(kept)


def environments(network: Network) -> list[Path]:
    """Return the LMDB files of the driver's own state (not the agent's, not the cache)."""
    found = sorted((network.home / "state" / "volumes" / network.volume).rglob("data.mdb"))
    return [path for path in found if not any("agent" in part for part in path.parts)]


@pytest.mark.parametrize("kind", ["cut", "a page", "empty", "zeros", "garbage"])
def test_f20_damaged_lmdb(unmounted: Network, kind: str) -> None:
    network = unmounted
    found = environments(network)
    assert found, "the driver's environment was not found"
    for path in found:
        good = path.read_bytes()
        size = len(good)
        bad = {
            "cut": good[: 3 * 4096 + 100],  # at half, only free pages may be lost, and all is well
            "a page": good[:4096],
            "empty": b"",
            "zeros": bytes(size),
            "garbage": os.urandom(8192) + good[8192:],
        }[kind]
        with damaged(path, bad):
            result = network.decloud("mount", network.volume, network.mountpoint, deadline=QUICK, check=False)
            assert result.code in (SYSTEM, MOUNT_FAILED), result.describe()
            here = re.escape(str(path.parent))
            refusal(result, says=rf"{here}.*restore {here}, or move it away to start without it", code=result.code)
            assert path.read_bytes() == bad, "a refused store is left as it was found"
            assert cleanup.mounts_below(network.base) == []
    network.mount()
    assert network.run("ls", network.mountpoint).out.split() == ["file"]
    network.umount()


def test_damaged_cache_is_dropped(unmounted: Network) -> None:
    """The cache may be deleted at any time, so a damaged one is replaced by an empty one and nobody notices."""
    network = unmounted
    for path in (network.home / "cache").rglob("*"):
        if path.is_file() and path.name != "lock.mdb":
            os.truncate(path, path.stat().st_size // 2)
    network.mount()
    assert file_length(network) == 9_000_000
    network.umount()


def test_damaged_chain_store(unmounted: Network) -> None:
    network = unmounted
    network.kill(int(network.decloud("ledger", "status", "--json").json()["pid"]))
    stores = sorted((network.home / "state" / "ledger").rglob("data.mdb"))
    assert stores
    for path in stores:
        with damaged(path, path.read_bytes()[: path.stat().st_size // 2]):
            result = network.decloud("ledger", "verify", deadline=QUICK, check=False)
            assert result.code != 0
            assert "Traceback" not in result.out + result.err
            assert str(path.parent.name) in result.out + result.err
    network.decloud("up", network.mountpoint, "--peers", str(network.peers), "--detach")
    network.decloud("ledger", "verify", deadline=60)
    network.umount()


# ---- a full disk ----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk() -> Iterator[Network]:
    """A network whose whole home lies on a file system of 600 MiB."""
    with Network(peers=1) as small:
        small.home.mkdir(mode=0o700)
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=600m,mode=0700", "small", small.home], check=True, timeout=10
        )
        try:
            small.up()
            yield small
            small.down()
        finally:
            subprocess.run(["umount", "-l", small.home], check=True, timeout=10)


def test_f13_full_disk(small_disk: Network) -> None:
    network = small_disk
    kept = network.worker("write_and_sync", network.mountpoint / "kept", str(3 * MIB), "kept")
    assert kept["same"]
    full = network.worker("fill", network.mountpoint / "filler", str(1200 * MIB), deadline=120)
    assert full["errno"] == "ENOSPC", full
    before = network.status()
    assert before["handler_errors"] == 0
    assert network.worker("read_at", network.mountpoint / "kept", "0")[0]["size"] == 64 << 10
    network.run("ls", "-l", network.mountpoint)
    network.run("rm", network.mountpoint / "filler")

    def writable() -> bool:
        try:
            network.run("sh", "-c", 'echo again > "$1" && sync "$1"', "sh", network.mountpoint / "again")
        except CommandFailed:
            return False
        return True

    network.wait_until(writable, 120, "what was removed gives room")
    assert network.status()["driver_pid"] == before["driver_pid"]


# ---- peers that are none --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["garbage", "silent", "captive", "traitor"])
def test_f56_something_else_answers_for_a_peer(network: Network, mode: str) -> None:
    victim = network.status().local_peers()[0]
    store = network.peer_store(victim)
    network.umount()
    network.kill(victim["pid"])
    port = re.match(r"wss://127\.0\.0\.1:(\d+)", victim["address"])
    assert port is not None, victim["address"]
    log = network.work / f"rogue-{mode}.log"
    keys = [path for path in store.rglob("*") if path.is_file() and path.stat().st_size == 32]
    assert len(keys) == 1, f"the peer's seed is none or several of {keys}"
    rogue = network.start(sys.executable, "-m", "tests.cluster.rogue", port[1], mode, keys[0], log=log)
    network.wait_until(lambda: log.exists() and "listening" in log.read_text(), 20, "the rogue listens")
    try:
        status = network.drop_cache_of_unmounted()
        assert file_length(network) == 9_000_000
        after = network.status()
        assert after["agent_pid"] == status["agent_pid"], "the agent lives on"
        assert after["handler_errors"] == 0
        states = {peer["id"]: peer["state"] for peer in after.peers}
        assert states[victim["id"]] != "up"
    finally:
        rogue.kill()
        rogue.wait()
        network.up()
