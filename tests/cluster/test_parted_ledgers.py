"""Two machines whose ledgers knew nothing of each other: volumes on both sides lose nothing when the ledgers meet."""

from __future__ import annotations

import json

from fsdecloud.cli.client import Client
from fsdecloud.config import HOME_VARIABLE, Paths, find_paths
from fsdecloud.errors import RemoteError
from fsdecloud.ledgerd.setup import init_ledger
from fsdecloud.wire.agentapi import Empty
from fsdecloud.wire.ledgerapi import AnchorList, AnchorQuery, LedgerStatus, VolumeAnchor
from tests.cluster.harness import Network
from tests.cluster.ledgernet import quick_network

PEERS = 3


def paths_of(network: Network) -> Paths:
    return find_paths({HOME_VARIABLE: str(network.home)})


def ledger(network: Network) -> LedgerStatus:
    with Client(paths_of(network).socket("ledger")) as link:
        return link.call("status", Empty(), LedgerStatus)


def anchors(network: Network, of: Network | None = None) -> tuple[VolumeAnchor, ...]:
    """Return what one side's ledger has of the anchors of a volume, its own if none is named."""
    owner = of or network
    document = json.loads((owner.home / "config" / "volumes" / f"{owner.volume}.json").read_bytes())
    with Client(paths_of(network).socket("ledger")) as link:
        return link.call("anchors", AnchorQuery(bytes.fromhex(document["volume_id"]), 1, 100), AnchorList).anchors


def write(network: Network, name: str, count: int) -> None:
    """Write a directory of files, with an anchor for each."""
    directory = network.mountpoint / name
    network.run("mkdir", directory)
    for number in range(count):
        network.run("sh", "-c", 'head -c 100000 /dev/urandom > "$1"', "sh", directory / str(number))
        network.sync("anchored")


def digests(network: Network) -> set[str]:
    """Return the files of the mount, each with its digest."""
    found = network.run("sh", "-c", 'cd "$1" && find . -type f | xargs sha256sum', "sh", network.mountpoint)
    return set(found.out.splitlines())


def test_fault_100_volumes_on_both_sides_of_a_partition_lose_nothing() -> None:
    document = quick_network()
    with Network(peers=PEERS) as left, Network(peers=PEERS) as right:
        for side in (left, right):
            init_ledger(paths_of(side), document)
            side.up()
        write(left, "left", 4)
        write(right, "right", 2)
        contents = {side.base: digests(side) for side in (left, right)}
        alone = {side.base: (ledger(side), anchors(side)) for side in (left, right)}
        assert alone[left.base][0].tip != alone[right.base][0].tip
        assert [len(alone[side.base][1]) >= count for side, count in ((left, 4), (right, 2))] == [True, True]

        right.kill(right.status()["ledger_pid"])
        right.start_decloud("ledger", "run", "--bootstrap", ledger(left).url)

        def is_one() -> bool:
            try:
                one, other = ledger(left), ledger(right)
            except RemoteError:  # it has not begun to serve yet
                return False
            return one.tip == other.tip and not one.mempool and not other.mempool

        right.wait_until(is_one, 120, "one chain")
        for side in (left, right):
            side.sync("anchored")
        right.wait_until(
            lambda: all(
                len(anchors(where, side)) >= len(alone[side.base][1])
                for where in (left, right)
                for side in (left, right)
            ),
            120,
            "all anchors of both volumes are in the one chain",
        )
        moved = 0
        for side in (left, right):
            now = anchors(side)[: len(alone[side.base][1])]
            assert [found.tx for found in now] == [found.tx for found in alone[side.base][1]], (
                "the same, in their order"
            )
            moved += now != alone[side.base][1]
        assert moved == 1, "those of one side are in other blocks"
        for side in (left, right):
            write(side, "after", 1)
            side.drop_cache()
            assert contents[side.base] < digests(side)
            assert not side.status()["read_only"]
