"""Peers may vanish, lie or both: nothing is lost while k honest ones remain, and what cannot be had is an error in time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsdecloud import limits
from tests.cluster.harness import K, N, Network, diff_trees
from tests.cluster.testdata import BIG_SIZE, MIB, Loaded

DEADLINE = limits.HANDLER_DEADLINE + 15


@pytest.fixture(autouse=True)
def _mended(loaded: Loaded) -> Iterator[None]:
    """Every test leaves all peers running."""
    yield
    loaded.heal()


def kill_peers(network: Network, count: int) -> list[str]:
    """Kill `count` local peers with SIGKILL; return the ids of the others."""
    peers = network.status().local_peers()
    assert len(peers) == N
    for peer in peers[:count]:
        network.kill(peer["pid"])
    return [peer["id"] for peer in peers[count:]]


def named_unreadable(network: Network, directory: Path) -> list[list[object]]:
    """Return what `decloud unreadable` names below a directory of the mount, and the bytes of each."""
    result = network.decloud("unreadable", network.mountpoint, "--json", deadline=180, check=False)
    lines = result.json_lines()
    assert result.code == (4 if lines else 0), result.describe()
    assert all(line["lacks"] == "contents" for line in lines), result.describe()
    for line in lines:
        assert line["more_ranges"] or sum(end - start for start, end in line["ranges"]) == line["bytes"]
    prefix = f"{directory.relative_to(network.mountpoint)}/"
    assert all(line["path"].startswith(prefix) for line in lines), result.describe()
    return sorted([line["path"].removeprefix(prefix), line["bytes"]] for line in lines)


def flip_bytes(path: Path) -> None:
    """Change one byte in every 4 KiB of a file; a second time restores it."""
    with open(path, "r+b") as file:
        for offset in range(2048, os.path.getsize(path), 4096):
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 0x5A]))


def test_f60_any_n_minus_k_peers_killed(loaded: Loaded) -> None:
    loaded.network.drop_cache()
    kill_peers(loaded.network, N - K)
    loaded.check()
    assert loaded.network.status()["downloaded_bytes"] >= BIG_SIZE


def test_flipped_bytes_in_a_live_peer(loaded: Loaded) -> None:
    network = loaded.network
    liar = network.status().local_peers()[-1]
    files = network.shard_files(liar)
    assert sum(path.stat().st_size for path in files) >= BIG_SIZE // K // 2, "the peer's shards were not found"
    network.drop_cache()
    for path in files:
        flip_bytes(path)
    try:
        loaded.check()
        named = {peer["id"]: peer["state"] for peer in network.status().peers}
        assert named.pop(liar["id"]) == "corrupt"
        assert "corrupt" not in named.values()
        shown = network.decloud("status", network.mountpoint, check=False).out
        assert "corrupt" in shown
        assert liar["id"][:8] in shown, "the text for people names the peer as well"
    finally:
        for path in files:
            flip_bytes(path)


def test_f61_more_than_n_minus_k_peers_killed(loaded: Loaded) -> None:
    network = loaded.network
    known = "python/email"
    network.drop_cache()
    network.run("ls", "-lR", loaded.copy, deadline=120)
    diff_trees(network, loaded.source / known, loaded.copy / known)
    kill_peers(network, N - K + 1)

    offsets = [str(BIG_SIZE * i // 17) for i in (4, 8, 12, 16)]
    answers = network.worker("read_at", loaded.copy / "big.bin", *offsets, deadline=DEADLINE + 30)
    assert [answer.get("errno") for answer in answers] == ["EIO"] * len(offsets), answers
    assert max(answer["seconds"] for answer in answers) < DEADLINE

    diff_trees(network, loaded.source / known, loaded.copy / known)
    network.run("ls", "-lR", loaded.copy)
    named = named_unreadable(network, loaded.copy)
    assert ["big.bin", BIG_SIZE] in named
    assert len(named) > 100
    assert not any(str(path).startswith(known) for path, _lost in named)
    assert named == network.worker("unreadable", loaded.copy, deadline=300), "exactly those that fail are named"
    shown = network.decloud("unreadable", network.mountpoint, check=False)
    assert shown.code == 4
    assert "data/big.bin" in shown.out.splitlines()
    assert len(shown.out.splitlines()) == len(named)
    network.wait_until(
        lambda: "decloud unreadable" in network.decloud("status", network.mountpoint, check=False).out,
        60,
        "status says what names the files",
    )
    wrote = network.worker("write_and_sync", network.mountpoint / "written without peers", str(5 * MIB), "lonely")
    assert wrote["same"]
    network.run("mv", network.mountpoint / "written without peers", network.mountpoint / "renamed without peers")
    states = [peer["state"] for peer in network.status().peers]
    assert states.count("up") <= K - 1

    network.up()
    here = network.worker("read_at", loaded.source / "big.bin", *offsets)

    def same() -> bool:
        there = network.worker("read_at", loaded.copy / "big.bin", *offsets, deadline=DEADLINE + 30)
        return [answer.get("sha256") for answer in there] == [answer["sha256"] for answer in here]

    network.wait_until(same, 60, "the file is readable again once the peers are back")
    network.wait_until(lambda: not named_unreadable(network, loaded.copy), 60, "and nothing is named any more")
    network.sync("stored")
    network.run("rm", network.mountpoint / "renamed without peers")
