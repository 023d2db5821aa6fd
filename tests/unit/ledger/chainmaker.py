"""Builds small valid chains, and blocks that are wrong in one chosen way."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from fsdecloud.crypto import sign
from fsdecloud.ledger import finality, work
from fsdecloud.ledger.blocks import Block, bytes_root, encode_block, header_prefix, ids_root
from fsdecloud.ledger.chain import CheckedBlock, Point, build_block, check_block, genesis_point
from fsdecloud.ledger.mempool import Mempool
from fsdecloud.ledger.network import NetworkDocument, embedded_network, network_id
from fsdecloud.ledger.state import State, StateNodes
from fsdecloud.ledger.transactions import (
    NO_LINK,
    Transaction,
    decode_tx,
    encode_tx,
    link,
    sign_anchor,
    sign_bond,
    sign_operate,
    sign_register,
    sign_transfer,
    sign_vote,
    tx_id,
)

GENESIS_TIME = 1_700_000_000
MINER = bytes([9]) * 32
MINER_KEY = sign.public_key(MINER)


def easy_network(salt: bytes = bytes(32), **changes: object) -> NetworkDocument:
    """The embedded network with blocks that cost sixteen hashes and stamps of four bits."""
    easy = ((1 << 256) // 16 - 1).to_bytes(32)
    document = embedded_network("test", salt, GENESIS_TIME)
    fields = {"first_target": easy, "easiest_target": easy, "stamp_bits": 4} | changes
    return msgspec.structs.replace(document, **fields)


def mine(block: Block) -> Block:
    """Find the nonce."""
    nonce, _ = work.search(header_prefix(block.header), block.header.target, 0, lambda: False, 1000)
    assert nonce is not None
    return msgspec.structs.replace(block, header=msgspec.structs.replace(block.header, nonce=nonce))


def with_header(block: Block, **changes: object) -> Block:
    """Change header fields and mine again."""
    return mine(msgspec.structs.replace(block, header=msgspec.structs.replace(block.header, **changes)))


def with_body(block: Block, transactions: Sequence[Transaction]) -> Block:
    """Replace the transactions, fix both roots (not the state root) and mine again."""
    encoded = tuple(encode_tx(tx) for tx in transactions)
    changed = msgspec.structs.replace(block, transactions=encoded)
    return with_header(changed, ids_root=ids_root([tx_id(tx) for tx in transactions]), bytes_root=bytes_root(encoded))


class Maker:
    """A chain held in memory; every block is checked as it is added."""

    def __init__(self, document: NetworkDocument | None = None) -> None:
        self.document = document or easy_network()
        self.network = network_id(self.document)
        self.points: dict[bytes, Point] = {}
        self.nodes: dict[bytes, bytes] = {}
        self.blocks: dict[bytes, bytes] = {}
        self.tip = genesis_point(self.document)
        self.points[self.tip.id] = self.tip

    def build(
        self,
        transactions: Sequence[bytes] = (),
        *,
        parent: Point | None = None,
        time: int | None = None,
        recipient: bytes = MINER_KEY,
    ) -> Block:
        parent = parent or self.tip
        decoded = [decode_tx(data) for data in transactions]
        when = parent.time + self.document.interval if time is None else time
        return mine(build_block(self.document, parent, decoded, recipient, when, self.nodes.get))

    def check(self, block: Block, now: int | None = None) -> CheckedBlock:
        return check_block(self.document, self.points[block.header.parent], block, self.nodes.get, now)

    def add(self, transactions: Sequence[bytes] = (), **options: object) -> CheckedBlock:
        checked = self.check(self.build(transactions, **options))
        self.points[checked.point.id] = checked.point
        self.nodes.update(checked.nodes)
        self.blocks[checked.point.id] = encode_block(checked.block)
        self.tip = checked.point
        return checked

    def chain(self, tip: Point | None = None) -> list[tuple[bytes, bytes]]:
        """(id, bytes) of the blocks up to `tip`, ascending."""
        found = []
        point = tip or self.tip
        while point.height:
            found.append((point.id, self.blocks[point.id]))
            point = self.points[point.parent]
        return found[::-1]

    def state(self, point: Point | None = None) -> State:
        return State(StateNodes(self.nodes.get).get, (point or self.tip).state_root)

    def pool(self) -> Mempool:
        pool = Mempool(self.document)
        pool.rebase(self.state, self.tip.height + 1, self.tip.time)
        return pool

    # ---- transactions ----------------------------------------------------------------------------------------------
    def transfer(self, seed: bytes, recipient: bytes, amount: int, nonce: int, fee: int = 1) -> bytes:
        return sign_transfer(self.network, seed, recipient, amount, fee, nonce)

    def operate(self, seed: bytes, operator: bytes | None, sequence: int, **options: object) -> bytes:
        """Declare who runs the peer with this seed."""
        return sign_operate(self.network, seed, operator, sequence, bits=4, **options)

    def register(self, seed: bytes, sequence: int, url: str = "wss://127.0.0.1:7711", **options: object) -> bytes:
        return sign_register(self.network, seed, url, 1 << 30, sequence, bits=4, **options)

    def anchor(
        self,
        volume: bytes,
        sequence: int,
        *,
        device: bytes = bytes([7]) * 32,
        commitment: bytes | None = None,
        previous: bytes | None = None,
        lease_expiry: int = 0,
        **options: object,
    ) -> bytes:
        if previous is None:
            key = sign.public_key(volume)
            previous = NO_LINK if sequence == 1 else link(key, sequence - 1, commitment_of(sequence - 1))
        return sign_anchor(
            self.network,
            volume,
            device,
            sequence=sequence,
            commitment=commitment_of(sequence) if commitment is None else commitment,
            previous=previous,
            lease_expiry=lease_expiry,
            payload=b"".join((sequence * 1000 + n).to_bytes(4) for n in range(256)),
            bits=4,
            **options,
        )


def commitment_of(sequence: int) -> bytes:
    """What the anchors made here commit to."""
    return sequence.to_bytes(32)


INTERVAL, DEPTH, DELAY, BOND = 2, 6, 64, 1000
VOTERS = [bytes([40 + n]) * 32 for n in range(3)]
KEYS = [sign.public_key(seed) for seed in VOTERS]
TWO = VOTERS[:2]
"""Two thirds: a third vote comes too late, its link is done."""


def voting_network(**changes):
    parameters = {"checkpoint_interval": INTERVAL, "finality_depth": DEPTH, "unbond_delay": DELAY, "least_bond": BOND}
    return easy_network(version=3, **({"least_stake": 3 * BOND} | parameters | changes))


class Voting(Maker):
    """A chain with three voters of the same stake."""

    def __init__(self, **changes):
        super().__init__(voting_network(**changes))
        for seed, key in zip(VOTERS, KEYS, strict=True):
            self.add([self.register(seed, 1)], recipient=key)
        self.add([sign_bond(self.network, seed, BOND, 1, 0) for seed in VOTERS])
        self.add()

    def finality(self, point=None):
        return finality.read_finality(self.document, point or self.tip, self.nodes.get)

    def votes(self, *seeds, parent=None):
        row = finality.next_finality(self.document, parent or self.tip, self.nodes.get)
        link = row.justified.id, row.justified.height, row.newest.id, row.newest.height
        return [sign_vote(self.network, seed, *link) for seed in seeds]

    def epoch(self, *seeds, parent=None):
        """Add the rest of an epoch, with these votes in its first block."""
        if parent is not None:
            self.tip = parent
        self.add(self.votes(*seeds))
        while self.tip.height % INTERVAL:
            self.add()
        return self.tip

    def parted(self):
        """Make two chains from a checkpoint on; return that, the tip with votes, and the tip with none and more work."""
        while self.tip.height % INTERVAL:
            self.add()
        fork = self.tip
        for _ in range(3):
            voted = self.epoch(*TWO)
        self.tip = fork
        while self.tip.work <= voted.work:
            self.add()
        return fork, voted, self.tip

    def choose(self, tip, candidate):
        return finality.choose_tip(self.document, self.points.get, self.finality, tip, candidate)
