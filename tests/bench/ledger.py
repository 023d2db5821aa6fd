"""How fast the ledger's rules are: headers, blocks, the mempool; in one process, on one core, without disk or network.

    python -m tests.bench.ledger [--transactions 10000] [--headers 50000] [--json FILE] [--check]

Seconds are those of the processor, so that other programs on the machine count little. Everything is made and signed before
the clock runs, and no cache is warm: a block's transactions have not been in the mempool, each key signs a few times only.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from fsdecloud.crypto import sign
from fsdecloud.ledger import mempool, work
from fsdecloud.ledger import transactions as t
from fsdecloud.ledger.blocks import Header, decode_block, decode_header, encode_block, encode_header
from fsdecloud.ledger.chain import Point, build_block, check_block, check_header, genesis_point
from fsdecloud.ledger.network import NetworkDocument, embedded_network, network_id
from fsdecloud.ledger.state import Account, State, StateNodes, border_key
from fsdecloud.limits import ANCHOR_PAYLOAD

GENESIS_TIME: Final = 1_700_000_000
SENDERS: Final = 1000
ACCOUNTS: Final = 100_000
"""Rows of the state besides: look-ups go through a tree of three levels."""

GOALS: Final = {
    "headers": 50_000,
    "transfers in blocks": 2_000,
    "anchors in blocks": 2_000,
    "mempool admission": 1_000,
}
"""Per second, at least."""

ANCHOR_MAX: Final = 600
"""Bytes of an anchor besides its payload, at most."""


def network() -> NetworkDocument:
    """Return a network without work: what is measured is the checking."""
    easiest = bytes([255]) * 32
    document = embedded_network("bench", bytes(32), GENESIS_TIME)
    return msgspec.structs.replace(document, first_target=easiest, easiest_target=easiest, stamp_bits=1)


class Chain:
    """A chain in memory whose first state has ACCOUNTS rows, and money for the senders."""

    def __init__(self) -> None:
        self.document = network()
        self.network = network_id(self.document)
        self.seeds = [number.to_bytes(32) for number in range(1, SENDERS + 1)]
        self.keys = [sign.public_key(seed) for seed in self.seeds]
        self.nodes = StateNodes(lambda _: None)
        rows = State(self.nodes.get, bytes(32))
        for number in range(ACCOUNTS):
            rows.set_account(number.to_bytes(32, "little"), Account(1, 1))
        for key in self.keys:
            rows.set_account(key, Account(1 << 40, 0))
        root = rows.write(self.nodes.put, border_key(self.network))
        self.tip = msgspec.structs.replace(genesis_point(self.document), state_root=root)

    def state(self) -> State:
        """Return the state at the tip."""
        return State(StateNodes(self.nodes.fresh.get).get, self.tip.state_root)

    def extend(self, transactions: list[bytes]) -> list[tuple[Point, bytes]]:
        """Add full blocks with these transactions; return each one's parent and bytes."""
        found: list[tuple[Point, bytes]] = []
        left = list(reversed(transactions))
        while left:
            chosen, room = [], self.document.block_max - 1024
            while left and (room := room - len(left[-1]) - 5) >= 0:
                chosen.append(t.decode_tx(left.pop()))
            read = self.nodes.fresh.get
            block = build_block(self.document, self.tip, chosen, bytes(32), self.tip.time + 2, read)
            found.append((self.tip, encode_block(block)))
            checked = check_block(self.document, self.tip, block, read, None)
            self.nodes.fresh.update(checked.nodes)
            self.tip = checked.point
        return found

    def transfers(self, count: int) -> list[bytes]:
        """Return signed transfers, each sender's in their order."""
        keys, seeds = self.keys, self.seeds
        return [
            t.sign_transfer(self.network, seeds[n % SENDERS], keys[(n * 7 + 1) % SENDERS], 1, 1 + n % 50, n // SENDERS)
            for n in range(count)
        ]

    def anchors(self, count: int) -> list[bytes]:
        """Return signed anchors of as many volumes."""
        return [
            t.sign_anchor(
                self.network,
                (SENDERS + 1 + n).to_bytes(32),
                self.seeds[n % SENDERS],
                sequence=1,
                commitment=bytes(32),
                previous=t.NO_LINK,
                lease_expiry=GENESIS_TIME,
                payload=bytes(ANCHOR_PAYLOAD),
                bits=1,
            )
            for n in range(count)
        ]


def timed(call: Callable[[], object]) -> float:
    """Return the processor's seconds for one call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def measure_headers(count: int) -> float:
    """Decode and check a chain of headers; return how many a second."""
    document = network()
    point = genesis_point(document)
    encoded = []
    zero = bytes(32)
    for number in range(count):
        target = work.target_after(document, point.lead)
        when = point.time + 2 + number % 2
        point = check_header(
            document, point, Header(1, point.id, number + 1, when, target, zero, zero, zero, bytes(8)), None
        )
        encoded.append(encode_header(Header(1, point.parent, number + 1, when, target, zero, zero, zero, bytes(8))))

    def check() -> None:
        last: Point = genesis_point(document)
        for data in encoded:
            last = check_header(document, last, decode_header(data), GENESIS_TIME + 10 * count)
        assert last == point

    return count / timed(check)


def measure_blocks(chain: Chain, transactions: list[bytes]) -> float:
    """Decode and check full blocks with these transactions; return how many transactions a second."""
    blocks = chain.extend(transactions)

    def check() -> None:
        for parent, data in blocks:
            check_block(chain.document, parent, decode_block(data), chain.nodes.fresh.get, None)

    sign._verifier.cache_clear()
    return len(transactions) / timed(check)


def measure_mempool(chain: Chain, count: int) -> dict[str, float]:
    """Fill a mempool; return the rates of admission and of replacement, and the seconds to choose a block and to follow one."""
    pool = mempool.Mempool(chain.document)
    pool.rebase(chain.state, chain.tip.height + 1, GENESIS_TIME)
    waiting = chain.transfers(count)

    def admit() -> None:
        for data in waiting:
            pool.add(data, GENESIS_TIME)

    sign._verifier.cache_clear()
    found = {"mempool admission": count / timed(admit)}
    assert len(pool) == count
    better = [
        t.sign_transfer(chain.network, chain.seeds[n], chain.keys[n - 1], 1, 1000, (count - 1 - n) // SENDERS)
        for n in range(min(500, count))
    ]

    def replace() -> None:
        for data in better:
            pool.add(data, GENESIS_TIME)

    found["mempool replacement"] = len(better) / timed(replace)
    found["select, seconds"] = timed(lambda: pool.select(GENESIS_TIME))
    found["rebase, seconds"] = timed(lambda: pool.rebase(chain.state, chain.tip.height + 1, GENESIS_TIME))
    return found


def main() -> int:
    """Measure, print, and return the exit code."""
    parser = argparse.ArgumentParser(prog="bench.ledger", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--transactions", type=int, default=10_000)
    parser.add_argument("--headers", type=int, default=50_000)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    parser.add_argument("--check", action="store_true", help="exit 1 when a goal is missed")
    options = parser.parse_args()
    found = {"headers": measure_headers(options.headers)}
    found |= measure_mempool(Chain(), options.transactions)
    chain = Chain()
    found["transfers in blocks"] = measure_blocks(chain, chain.transfers(options.transactions))
    anchors = chain.anchors(options.transactions // 5)
    found["anchors in blocks"] = measure_blocks(chain, anchors)
    found["bytes of an anchor without its payload"] = float(max(map(len, anchors)) - ANCHOR_PAYLOAD)
    missed = [name for name, goal in GOALS.items() if found[name] < goal]
    missed += ["bytes of an anchor"] * (found["bytes of an anchor without its payload"] >= ANCHOR_MAX)
    for name, value in found.items():
        goal = f"  (goal: {GOALS[name]:,} a second)" if name in GOALS else ""
        print(f"{name:40} {value:12,.3f}{goal}" if value < 10 else f"{name:40} {value:12,.0f}{goal}")
    for name in missed:
        print(f"MISSED: {name}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
