"""One changed byte in a stored block: `decloud ledger verify` names its height and says what is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsdecloud import config
from fsdecloud.cli.client import Client
from fsdecloud.wire.ledgerapi import BlockList, BlockQuery
from tests.cluster.harness import Network

SLICE = 40


@pytest.fixture(scope="module")
def chain() -> Iterator[tuple[Network, dict[int, bytes]]]:
    """A stopped network whose chain has anchors at several heights, and its encoded blocks by height."""
    with Network(peers=3) as network:
        network.up()
        for turn in range(3):
            network.worker("write_and_sync", network.mountpoint / f"file-{turn}", "50000", f"tamper-{turn}")
            network.sync("anchored")
        paths = config.find_paths({config.HOME_VARIABLE: str(network.home)})
        with Client(paths.socket("ledger")) as client:
            blocks = client.call("blocks", BlockQuery(1, 256), BlockList).blocks
        network.decloud("ledger", "verify", deadline=60)
        network.down()
        yield network, dict(enumerate(blocks, 1))


def places(network: Network, piece: bytes) -> list[tuple[Path, int]]:
    """Return every place in the ledger's store where the bytes stand."""
    found = []
    for path in sorted((network.home / "state" / "ledger").rglob("*")):
        if not path.is_file():
            continue
        data = path.read_bytes()
        position = data.find(piece)
        while position >= 0:
            found.append((path, position))
            position = data.find(piece, position + 1)
    return found


def flip(spots: list[tuple[Path, int]]) -> None:
    """Change the low bit at each place; a second time restores it."""
    for path, offset in spots:
        with open(path, "r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 1]))


def test_untouched_chain_verifies(chain: tuple[Network, dict[int, bytes]]) -> None:
    network, blocks = chain
    assert len(blocks) >= 3, "three anchors lie in three blocks; the genesis block is the network document"
    result = network.decloud("ledger", "verify", deadline=60)
    assert result.code == 0


@pytest.mark.parametrize("where", [0.9, 0.6, 0.1])
def test_f104_one_byte_of_a_block(chain: tuple[Network, dict[int, bytes]], where: float) -> None:
    """Near its end, in its transactions, and in its header."""
    network, blocks = chain
    height = max(blocks, key=lambda number: (len(blocks[number]), -number))
    block = blocks[height]
    start = int((len(block) - SLICE) * where)
    spots = places(network, block[start : start + SLICE])
    assert spots, f"bytes {start} to {start + SLICE} of block {height} were not found in the ledger's files"
    flip([(path, offset + SLICE // 2) for path, offset in spots])
    try:
        result = network.decloud("ledger", "verify", deadline=60, check=False)
    finally:
        flip([(path, offset + SLICE // 2) for path, offset in spots])
    assert result.code != 0, result.describe()
    said = (result.out + result.err).strip()
    assert "Traceback" not in said
    assert re.search(rf"\b{height}\b", said), f"height {height} is not named: {said}"
    reason = re.sub(r"[^a-z ]", "", said.lower()).split()
    assert len(reason) >= 4, f"no reason is given: {said}"
    assert network.decloud("ledger", "verify", deadline=60).code == 0


def test_network_still_starts_afterwards(chain: tuple[Network, dict[int, bytes]]) -> None:
    network, _ = chain
    network.up()
    names = network.run("ls", network.mountpoint).out.split()
    assert names == ["file-0", "file-1", "file-2"]
    network.decloud("log", network.volume, "--verify", deadline=60)
