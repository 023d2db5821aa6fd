"""How fast a ledger daemon gets a long chain from several others, over real connections on this machine.

    python -m tests.bench.ledgersync DIR [--blocks 10000] [--transactions 5] [--sources 2] [--snapshot]

Makes the chain once in DIR (it is used again by the next run), serves copies of it by that many daemons, starts one that knows
nothing but their addresses, and prints blocks and transactions a second, processor time and memory of the newcomer. All blocks
are verified in full; nothing is known beforehand but the network document. With --snapshot it begins with the state at a block
near the tip: printed are the seconds until it serves, until it has all older blocks, and until it has executed them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

import msgspec

from fsdecloud.config import HOME_VARIABLE, find_paths
from fsdecloud.crypto import sign
from fsdecloud.ledger import work
from fsdecloud.ledger.blocks import encode_block, header_prefix
from fsdecloud.ledger.chain import CheckedBlock, Switch, build_block, check_block
from fsdecloud.ledger.network import NetworkDocument, embedded_network, encode_network, network_id
from fsdecloud.ledger.transactions import NO_LINK, Anchor, decode_tx, link, sign_anchor
from fsdecloud.ledgerd.setup import chain_path, init_ledger
from fsdecloud.store.chain import ChainStore, open_chain
from tests.cluster.ledgernet import Daemon, wait_until

VOLUMES = 200
BATCH = 256
GENESIS_TIME = 1_700_000_000


def fast_network() -> NetworkDocument:
    """A network whose blocks cost a hash or two: what is measured is checking, not finding."""
    easy = bytes([255]) * 32
    document = embedded_network("bench", bytes(32), GENESIS_TIME)
    return msgspec.structs.replace(document, first_target=easy, easiest_target=easy, stamp_bits=0, interval=1)


class Chain:
    """Makes blocks of anchors, `count` to a block, of VOLUMES volumes in turn."""

    def __init__(self, document: NetworkDocument, store: ChainStore) -> None:
        self._document = document
        self._store = store
        self._seeds = [number.to_bytes(32) for number in range(1, VOLUMES + 1)]
        self._sequences = [0] * VOLUMES
        self._turn = 0
        self._nodes: dict[bytes, bytes] = {}

    def extend(self, blocks: int, count: int) -> None:
        """Append blocks."""
        fork = point = self._store.tip()
        pending: list[tuple[CheckedBlock, bytes]] = []
        for number in range(1, blocks + 1):
            encoded = [self._anchor() for _ in range(count)]
            block = build_block(
                self._document, point, [decode_tx(data) for data in encoded], bytes(32), point.time + 1, self._node
            )
            nonce, _ = work.search(header_prefix(block.header), block.header.target, 0, lambda: False, 100)
            block = msgspec.structs.replace(block, header=msgspec.structs.replace(block.header, nonce=nonce))
            checked = check_block(self._document, point, block, self._node, None, frozenset(encoded))
            self._nodes.update(checked.nodes)
            point = checked.point
            pending.append((checked, encode_block(block)))
            if len(pending) == BATCH or number == blocks:
                self._store.add_many(pending, Switch(fork, (), tuple(c.point for c, _ in pending)))
                fork, pending, self._nodes = point, [], {}
                if number % (16 * BATCH) == 0:
                    self._store.prune(self._document.finality_depth)

    def _anchor(self) -> bytes:
        place = self._turn % VOLUMES
        self._turn += 1
        seed = self._seeds[place]
        sequence = self._sequences[place] = self._sequences[place] + 1
        before = link(sign.public_key(seed), sequence - 1, (sequence - 1).to_bytes(32))
        data = sign_anchor(
            network_id(self._document),
            seed,
            bytes([7]) * 32,
            sequence=sequence,
            commitment=sequence.to_bytes(32),
            previous=NO_LINK if sequence == 1 else before,
            lease_expiry=0,
            payload=bytes(1024),
            bits=0,
        )
        assert isinstance(decode_tx(data), Anchor)
        return data

    def _node(self, ref: bytes) -> bytes | None:
        data = self._nodes.get(ref)
        return self._store.node(ref) if data is None else data


def measure(base: Path, blocks: int, count: int, sources: int, *, snapshot: bool = False) -> dict[str, object]:
    """Make the chain if it is not there, and sync it once."""
    more: dict[str, object] = {}
    document = fast_network()
    made = base / f"chain-{blocks}-{count}"
    if not made.exists():
        begun = time.monotonic()
        with open_chain(base / "making", document) as store:
            Chain(document, store).extend(blocks, count)
        (base / "making").rename(made)
        print(f"made {blocks} blocks in {time.monotonic() - begun:.0f} s", flush=True)
    daemons = []
    for number in range(sources):
        home = base / f"source{number}"
        shutil.rmtree(home, ignore_errors=True)
        paths = find_paths({HOME_VARIABLE: str(home)})
        init_ledger(paths, document)
        shutil.copytree(made, chain_path(paths))
        daemons.append(Daemon(home))
    shutil.rmtree(base / "newcomer", ignore_errors=True)
    newcomer = Daemon(base / "newcomer")
    (base / "network").write_bytes(encode_network(document))
    try:
        for daemon in daemons:
            daemon.start("--no-mine")
        begun = time.monotonic()
        bootstrap = [word for daemon in daemons for word in ("--bootstrap", daemon.url)]
        wanted = ["--snapshot"] * snapshot
        newcomer.start("--no-mine", "--network", str(base / "network"), *wanted, *bootstrap)
        wait_until(lambda: newcomer.status().height == blocks, "it has the whole chain", 3600)
        seconds = time.monotonic() - begun
        processor = newcomer.cpu_ticks() / 100
        if snapshot:
            wait_until(lambda: newcomer.status().history == 1, "it has all older blocks", 3600)
            more["history_seconds"] = round(time.monotonic() - begun, 1)
            more["history_cpu_seconds"] = round(newcomer.cpu_ticks() / 100, 1)
            wait_until(lambda: _stage(newcomer) == "verified", "it has executed them", 3600)
            more["verified_seconds"] = round(time.monotonic() - begun, 1)
            more["verified_cpu_seconds"] = round(newcomer.cpu_ticks() / 100, 1)
        assert newcomer.process is not None
        memory = Path(f"/proc/{newcomer.process.pid}/status").read_text()
        anonymous = next(line.split()[1] for line in memory.splitlines() if line.startswith("RssAnon"))
        for daemon in (*daemons, newcomer):
            daemon.stop()
    finally:
        for daemon in (*daemons, newcomer):
            daemon.close()
    return {
        "blocks": blocks,
        "transactions": blocks * count,
        "sources": sources,
        "seconds": round(seconds, 1),
        "blocks_per_second": round(blocks / seconds),
        "transactions_per_second": round(blocks * count / seconds),
        "newcomer_cpu_seconds": round(processor, 1),
        "newcomer_memory_kib": int(anonymous),
        **more,
    }


def _stage(daemon: Daemon) -> str:
    progress = daemon.status().snapshot
    return "" if progress is None else progress.stage


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--blocks", type=int, default=10_000)
    parser.add_argument("--transactions", type=int, default=5)
    parser.add_argument("--sources", type=int, default=2)
    parser.add_argument("--snapshot", action="store_true")
    given = parser.parse_args()
    given.directory.mkdir(parents=True, exist_ok=True)
    found = measure(given.directory, given.blocks, given.transactions, given.sources, snapshot=given.snapshot)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
