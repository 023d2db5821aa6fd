"""The chain of this machine on disk: blocks, state nodes, the best chain and its indexes, in one LMDB environment.

Blocking. Reads may come from any thread; writes from one thread at a time (LMDB makes others wait). One LMDB transaction
connects a block with everything that follows from it, so after a crash the store is at a block or at the one before.
Nothing is judged here: what comes in was checked by `ledger.chain`. Databases:

    meta      "network" document, "tip" block id, "first" height of the first block whose body is here (1 when absent),
              "snapshot" SnapshotMark of a chain whose state was not computed here (`store.snapshot`; absent for others),
              "accounted" height of the first block that `accounts` knows of, those before a snapshot aside
    points    block id -> Point                              every valid block, on whatever branch
    headers   block id -> encoded header
    bodies    block id -> encoded block                      but for pruned ones (`prune_bodies`)
    kept      height, index -> transaction                   of pruned blocks: each volume's latest anchor
    levels    height + block id -> b""                       all blocks of a height
    best      height -> block id                             the best chain
    txs       transaction id -> height, index                of the best chain
    anchors   volume + sequence -> height, index             of the best chain
    nodes     reference -> state node                        of the last states (`prune`)
    invalid   block id -> reason                             never to be asked for again
    touched, accounts                                        which blocks changed which accounts (`store.accounts`)
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

import msgspec

from fsdecloud import codec
from fsdecloud.errors import InvalidBlock, MalformedError, StoreCorrupt
from fsdecloud.ledger.blocks import Block, decode_block, encode_header
from fsdecloud.ledger.chain import CheckedBlock, Point, Switch, genesis_point
from fsdecloud.ledger.network import NetworkDocument, decode_network, encode_network
from fsdecloud.ledger.state import reachable_nodes
from fsdecloud.ledger.transactions import Anchor, decode_tx, tx_id
from fsdecloud.limits import CHAIN_MAP_SIZE
from fsdecloud.store.accounts import AccountIndex
from fsdecloud.store.environment import Environment, Transaction, open_environment
from fsdecloud.types import BlockId, TxId

_NETWORK: Final = b"network"
TIP: Final = b"tip"
HELD: Final = b"held"
FIRST: Final = b"first"
ACCOUNTED: Final = b"accounted"
SNAPSHOT: Final = b"snapshot"
PLACE: Final = struct.Struct(">QI")
"""Where a transaction of the best chain stands: height, index in the block."""

PRUNE_STEP: Final = 256
"""Bodies dropped in one transaction, at most."""

_INVALID_MAX: Final = 4096
"""Invalid blocks remembered: enough to drop whoever repeats them, too few to fill a disk."""


class SnapshotMark(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How far a chain has come whose state at one block, the pivot, was fetched and not computed."""

    header: BlockId
    """The last header that is stored before the state is here; the genesis block at first."""
    pivot: int = 0
    """Height of the pivot; 0 while its state is being fetched. No state before it was ever here."""
    is_complete: bool = False
    """Whether all blocks before the pivot have been fetched; until then "first" says how far."""
    verified: int = 0
    """Height up to which they have been executed here. That block's state is kept."""
    fault: str = ""
    """Why one of them cannot be: the chain breaks the rules, whatever its work."""

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left to do about the blocks before the pivot."""
        return bool(self.fault) or (self.is_complete and self.verified >= self.pivot)


class ChainStore:
    """An open chain store. Made by `open_chain`."""

    def __init__(self, environment: Environment, document: NetworkDocument) -> None:
        self._env = self.environment = environment
        self.document = document
        self._meta = environment.database(b"meta")
        self._points = environment.database(b"points")
        self._headers = environment.database(b"headers")
        self._bodies = environment.database(b"bodies")
        self._kept = environment.database(b"kept")
        self._levels = environment.database(b"levels")
        self._best = environment.database(b"best")
        self._txs = environment.database(b"txs")
        self._anchors = environment.database(b"anchors")
        self._nodes = environment.database(b"nodes")
        self._invalid = environment.database(b"invalid")
        self._accounts = AccountIndex(environment)
        self._begin()

    # ---- reading ---------------------------------------------------------------------------------------------------
    def tip(self) -> Point:
        """Return the last block of the best chain."""
        with self._env.read() as txn:
            identity = txn.get(TIP, db=self._meta)
            data = None if identity is None else txn.get(identity, db=self._points)
        if data is None:
            raise self._corrupt("its tip is missing")
        return self._point(data)

    def point(self, identity: BlockId) -> Point | None:
        """Return a stored block's point, on whatever branch."""
        with self._env.read() as txn:
            data = txn.get(identity, db=self._points)
        return None if data is None else self._point(data)

    def best_at(self, height: int) -> BlockId | None:
        """Return the id of the best chain's block at a height; the network's id at 0."""
        if not 0 <= height < 1 << 63:
            return None
        with self._env.read() as txn:
            data = txn.get(height.to_bytes(8), db=self._best)
        return None if data is None else BlockId(data)

    def block(self, identity: BlockId) -> bytes | None:
        """Return an encoded block; None for an unknown one and for the genesis block, which has no bytes."""
        with self._env.read() as txn:
            return txn.get(identity, db=self._bodies)

    def snapshot(self) -> SnapshotMark | None:
        """Return how far the chain has come if its state is, or is to be, fetched from others (`store.snapshot`)."""
        with self._env.read() as txn:
            return self._mark(txn)

    def history_first(self) -> int:
        """Return the height from which on blocks, transactions and anchors are known: 1, but for a chain whose blocks before
        the pivot are still being fetched."""
        with self._env.read() as txn:
            mark = self._mark(txn)
            return self._first(txn) if mark is not None and not mark.is_complete else 1

    def first_body(self) -> int:
        """Return the height from which on all blocks of the best chain are here: 1 unless old ones were pruned, or are still
        being fetched."""
        with self._env.read() as txn:
            return self._first(txn)

    def body_bytes(self) -> int:
        """Return how many bytes of the disk the bodies take."""
        with self._env.read() as txn:
            return self._body_bytes(txn)

    def header(self, identity: BlockId) -> bytes | None:
        """Return a stored block's encoded header."""
        with self._env.read() as txn:
            return txn.get(identity, db=self._headers)

    def headers_after(self, identities: Sequence[bytes], count: int) -> tuple[bytes, ...]:
        """Return up to `count` encoded headers of the best chain after the first of these blocks that is in it, ascending;
        none when none of them is."""
        found: list[bytes] = []
        with self._env.read() as txn:
            for identity in identities:
                data = txn.get(identity, db=self._points)
                point = None if data is None else self._point(data)
                if point is not None and txn.get(point.height.to_bytes(8), db=self._best) == identity:
                    break
            else:
                return ()
            for height in range(point.height + 1, point.height + 1 + count):
                best = txn.get(height.to_bytes(8), db=self._best)
                header = None if best is None else txn.get(best, db=self._headers)
                if header is None:
                    break
                found.append(header)
        return tuple(found)

    def blocks_from(self, height: int, count: int, limit: int) -> tuple[bytes, ...]:
        """Return encoded blocks of the best chain from `height` (at least 1) on: at most `count` and, but for the first,
        `limit` bytes."""
        found: list[bytes] = []
        size = 0
        with self._env.read() as txn:
            for number in range(max(1, height), max(1, height) + count):
                identity = txn.get(number.to_bytes(8), db=self._best)
                data = None if identity is None else txn.get(identity, db=self._bodies)
                if data is None or (found and size + len(data) > limit):
                    break
                found.append(data)
                size += len(data)
        return tuple(found)

    def headers_from(self, height: int, count: int) -> tuple[bytes, ...]:
        """Return up to `count` encoded headers of the best chain from `height` (1 or more) on."""
        found: list[bytes] = []
        with self._env.read() as txn:
            for number in range(max(1, height), max(1, height) + count):
                identity = txn.get(number.to_bytes(8), db=self._best)
                data = None if identity is None else txn.get(identity, db=self._headers)
                if data is None:
                    break
                found.append(data)
        return tuple(found)

    def find_tx(self, identity: TxId) -> tuple[bytes, int, int] | None:
        """Return a transaction of the best chain: its bytes, height and index in the block."""
        with self._env.read() as txn:
            return self._at(txn, txn.get(identity, db=self._txs))

    def block_with(self, identity: TxId) -> tuple[bytes, int] | None:
        """Return the best chain's block that holds a transaction, and the transaction's index in it; None when there is none or
        its body was pruned."""
        with self._env.read() as txn:
            return self._block_at(txn, txn.get(identity, db=self._txs))

    def anchor_blocks(self, volume: bytes, first: int, count: int) -> Iterator[tuple[bytes, int]]:
        """Yield the blocks that hold a volume's anchors from sequence number `first` on, as `block_with`, up to the first that
        is not at hand."""
        for sequence in range(max(1, first), max(1, first) + count):
            with self._env.read() as txn:
                found = self._block_at(txn, txn.get(volume + sequence.to_bytes(8), db=self._anchors))
            if found is None:
                return
            yield found

    def anchors(self, volume: bytes, first: int, count: int) -> tuple[tuple[bytes, int], ...]:
        """Return a volume's anchors of the best chain from sequence number `first` on: (bytes, height), ascending."""
        found: list[tuple[bytes, int]] = []
        with self._env.read() as txn:
            for sequence in range(max(1, first), min(max(1, first) + count, 1 << 63)):
                place = self._at(txn, txn.get(volume + sequence.to_bytes(8), db=self._anchors))
                if place is None:
                    break
                found.append(place[:2])
        return tuple(found)

    def account_blocks(
        self, key: bytes, below: int, count: int, limit: int
    ) -> tuple[tuple[int, int, bytes, bytes], ...]:
        """Return (height, change of the balance, encoded header, encoded block) of the best chain's blocks below a height that
        wrote the account of a public key, the newest first: at most `count` and, but for the first, `limit` bytes of blocks."""
        found: list[tuple[int, int, bytes, bytes]] = []
        size = 0
        with self._env.read() as txn:
            for height, change in self._accounts.changes(txn, key, below, count):
                identity = txn.get(height.to_bytes(8), db=self._best)
                header = None if identity is None else txn.get(identity, db=self._headers)
                data = None if identity is None else txn.get(identity, db=self._bodies)
                if header is None or data is None:
                    raise self._corrupt(f"block {height} is missing")
                if found and size + len(data) > limit:
                    break
                size += len(data)
                found.append((height, change, header, data))
        return tuple(found)

    def accounts_first(self) -> int:
        """Return the height from which on `account_blocks` knows all: 1, but for a store that an older release made, for
        pruned blocks, and for those before a snapshot until they are executed."""
        with self._env.read() as txn:
            mark = self._mark(txn)
            pivot = mark.pivot if mark is not None and mark.verified < mark.pivot else 0
            return max(self._accounted(txn), pivot + 1, self._first(txn))

    def node(self, ref: bytes) -> bytes | None:
        """Return an encoded state node."""
        with self._env.read() as txn:
            return txn.get(ref, db=self._nodes)

    def node_count(self) -> int:
        """Return how many state nodes are stored."""
        with self._env.read() as txn:
            return int(txn.stat(self._nodes)["entries"])

    def invalid_reason(self, identity: BlockId) -> str | None:
        """Return why a block was found invalid, None if it was not."""
        with self._env.read() as txn:
            data = txn.get(identity, db=self._invalid)
        return None if data is None else data.decode("utf-8", "replace")

    def stored_blocks(self) -> Iterator[tuple[BlockId | None, bytes]]:
        """Yield (id, bytes) of the best chain from the first body on, as stored; b"" for a block that is missing. Each step
        is a transaction of its own, so that a long verification pins no old pages."""
        height = self.first_body()
        top = self.tip().height
        while height <= top:
            identity = self.best_at(height)
            yield identity, (b"" if identity is None else self.block(identity) or b"")
            height += 1

    def stored_headers(self, last: int) -> Iterator[bytes]:
        """Yield the encoded headers of the best chain from height 1 to `last`; b"" for one that is missing."""
        for height in range(1, last + 1):
            identity = self.best_at(height)
            yield b"" if identity is None else self.header(identity) or b""

    # ---- writing ---------------------------------------------------------------------------------------------------
    def add(self, checked: CheckedBlock, data: bytes, switch: Switch | None) -> None:
        """Store a checked block whose bytes are `data`, and move the tip along `switch` (which ends with it), if given."""
        self.add_many(((checked, data),), switch)

    def held(self) -> int:
        """Return the height of the highest checkpoint that was ever final on a chain that was the best here (0: none)."""
        with self._env.read() as txn:
            return int.from_bytes(txn.get(HELD, b"", db=self._meta))

    def add_many(
        self, blocks: Sequence[tuple[CheckedBlock, bytes]], switch: Switch | None, held: int | None = None
    ) -> None:
        """Store checked blocks with their bytes, parents before children, and move the tip along `switch`, if given; note what
        is `held` then. All in one transaction: after a crash either all of it is there or nothing."""
        with self._env.write() as txn:
            for checked, data in blocks:
                point = checked.point
                for ref, node in checked.nodes.items():
                    txn.put(ref, node, db=self._nodes)
                txn.put(point.id, encode_header(checked.block.header), db=self._headers)
                txn.put(point.id, data, db=self._bodies)
                txn.put(point.id, codec.encode(point), db=self._points)
                txn.put(point.height.to_bytes(8) + point.id, b"", db=self._levels)
                self._accounts.put(txn, point.id, checked.accounts)
            if switch is not None:
                self._move(txn, switch, {checked.point.id: checked for checked, _ in blocks}, held)

    def add_headers(self, headers: Sequence[tuple[Point, bytes]], switch: Switch | None) -> None:
        """Store checked headers, parents before children, without bodies, and move the tip along `switch`, if given. For a
        store that holds nothing but headers."""
        with self._env.write() as txn:
            for point, header in headers:
                txn.put(point.id, header, db=self._headers)
                txn.put(point.id, codec.encode(point), db=self._points)
                txn.put(point.height.to_bytes(8) + point.id, b"", db=self._levels)
            if switch is not None:
                for left in switch.leave:
                    txn.delete(left.height.to_bytes(8), db=self._best)
                for entered in switch.enter:
                    txn.put(entered.height.to_bytes(8), entered.id, db=self._best)
                txn.put(TIP, switch.enter[-1].id, db=self._meta)

    def move_tip(self, switch: Switch, held: int | None = None) -> None:
        """Make a stored branch the best chain; what is `held` from then on may also be less than before."""
        with self._env.write() as txn:
            self._move(txn, switch, held=held)

    def mark_invalid(self, identity: BlockId, reason: str) -> None:
        """Remember that no chain may hold this block. Of more than _INVALID_MAX those are forgotten whose ids are the largest:
        they cost the least work, so that a flood of cheap ones does not drive out what was dear."""
        with self._env.write() as txn:
            txn.put(identity, reason.encode()[:1000], db=self._invalid)
            if txn.stat(self._invalid)["entries"] > _INVALID_MAX:
                with txn.cursor(db=self._invalid) as cursor:
                    if cursor.last():
                        cursor.delete()

    def prune(self, depth: int) -> int:
        """Drop the state nodes that only states more than `depth` blocks below the tip need; return how many. States of
        other branches within that depth are kept: a reorganisation may return to them."""
        lowest = max(0, self.tip().height - depth)
        roots: set[bytes] = set()
        with self._env.write() as txn:
            mark = self._mark(txn)
            if mark is not None:
                lowest = max(lowest, mark.pivot)
                if 0 < mark.verified < mark.pivot:
                    roots.add(self._best_point(txn, mark.verified).state_root)
            with txn.cursor(db=self._levels) as cursor:
                found = cursor.set_range(lowest.to_bytes(8))
                while found:
                    data = txn.get(cursor.key()[8:], db=self._points)
                    if data is not None:
                        roots.add(self._point(data).state_root)
                    found = cursor.next()
            live = reachable_nodes(lambda ref: txn.get(ref, db=self._nodes), roots)
            dropped = 0
            with txn.cursor(db=self._nodes) as cursor:
                found = cursor.first()
                while found:
                    if cursor.key() in live:
                        found = cursor.next()
                    else:
                        found = cursor.delete() and bool(cursor.key())
                        dropped += 1
        return dropped

    def prune_bodies(self, limit: int, keep: int) -> int:
        """Drop the bodies of the oldest blocks, on every branch, until the rest takes at most `limit` bytes or only the last
        `keep` blocks are left; at most PRUNE_STEP heights. Headers stay, and each volume's latest anchor. Return how many
        heights were pruned."""
        with self._env.write() as txn:
            first = start = self._first(txn)
            end = min(self._tip_height(txn) - keep, first + PRUNE_STEP)
            while first < end and self._body_bytes(txn) > limit:
                self._prune_height(txn, first)
                first += 1
            if first > start:
                txn.put(FIRST, first.to_bytes(8), db=self._meta)
        return first - start

    def close(self) -> None:
        """Close the store."""
        self._env.close()

    def __enter__(self) -> ChainStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- inner -----------------------------------------------------------------------------------------------------
    def _begin(self) -> None:
        """Write the genesis point on first use; refuse a store of another network."""
        expected = encode_network(self.document)
        with self._env.read() as txn:
            stored = txn.get(_NETWORK, db=self._meta)
        if stored is None:
            genesis = genesis_point(self.document)
            with self._env.write() as txn:
                txn.put(_NETWORK, expected, db=self._meta)
                txn.put(TIP, genesis.id, db=self._meta)
                txn.put(genesis.id, codec.encode(genesis), db=self._points)
                txn.put(bytes(8) + genesis.id, b"", db=self._levels)
                txn.put(bytes(8), genesis.id, db=self._best)
                txn.put(ACCOUNTED, (1).to_bytes(8), db=self._meta)
        elif stored != expected:
            raise StoreCorrupt(f"{self._env.path} holds the chain of another network: move it away to sync again")
        else:
            self._begin_accounts()

    def _begin_accounts(self) -> None:
        """Note from where on accounts are indexed in a store of a release that did not do it."""
        with self._env.read() as txn:
            is_known = txn.get(ACCOUNTED, db=self._meta) is not None
        if not is_known:
            with self._env.write() as txn:
                txn.put(ACCOUNTED, (self._tip_height(txn) + 1).to_bytes(8), db=self._meta)

    def _accounted(self, txn: Transaction) -> int:
        data = txn.get(ACCOUNTED, db=self._meta)
        return 1 if data is None else int.from_bytes(data)

    def _first(self, txn: Transaction) -> int:
        data = txn.get(FIRST, db=self._meta)
        return 1 if data is None else int.from_bytes(data)

    def _mark(self, txn: Transaction) -> SnapshotMark | None:
        data = txn.get(SNAPSHOT, db=self._meta)
        try:
            return None if data is None else codec.decode(data, SnapshotMark)
        except MalformedError as exc:
            raise self._corrupt(f"its snapshot mark does not decode ({exc})") from exc

    def _best_point(self, txn: Transaction, height: int) -> Point:
        identity = txn.get(height.to_bytes(8), db=self._best)
        data = None if identity is None else txn.get(identity, db=self._points)
        if data is None:
            raise self._corrupt(f"block {height} is missing")
        return self._point(data)

    def _tip_height(self, txn: Transaction) -> int:
        data = txn.get(txn.get(TIP, db=self._meta) or b"-", db=self._points)
        if data is None:
            raise self._corrupt("its tip is missing")
        return self._point(data).height

    def _body_bytes(self, txn: Transaction) -> int:
        stat = txn.stat(self._bodies)
        return int(stat["psize"] * (stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]))

    def _prune_height(self, txn: Transaction, height: int) -> None:
        """Drop all bodies of a height, and what the indexes say of the one in the best chain."""
        best = txn.get(height.to_bytes(8), db=self._best)
        if best is None:
            raise self._corrupt(f"block {height} is missing")
        for index, data in enumerate(self._body(txn, BlockId(best)).transactions):
            tx = decode_tx(data)
            place = PLACE.pack(height, index)
            if isinstance(tx, Anchor):
                self._drop_kept(txn, tx.volume, tx.sequence)
                if txn.get(tx.volume + (tx.sequence + 1).to_bytes(8), db=self._anchors) is None:
                    txn.put(place, data, db=self._kept)  # the volume's latest: who has lost all begins with it
                    continue
                txn.delete(tx.volume + tx.sequence.to_bytes(8), db=self._anchors)
            txn.delete(tx_id(tx), db=self._txs)
        self._accounts.leave(txn, height, best)
        with txn.cursor(db=self._levels) as cursor:
            found = cursor.set_range(height.to_bytes(8))
            while found and cursor.key()[:8] == height.to_bytes(8):
                txn.delete(cursor.key()[8:], db=self._bodies)
                self._accounts.drop(txn, cursor.key()[8:])
                found = cursor.next()

    def _drop_kept(self, txn: Transaction, volume: bytes, below: int) -> None:
        """Drop a volume's anchor that was kept as its latest, with a number below this one: it is not the latest any more."""
        with txn.cursor(db=self._anchors) as cursor:
            if not cursor.set_range(volume) or cursor.key()[:-8] != volume:
                return
            place = cursor.value()
            data = txn.get(place, db=self._kept)
            if data is None or int.from_bytes(cursor.key()[-8:]) >= below:
                return
            cursor.delete()
        txn.delete(place, db=self._kept)
        txn.delete(tx_id(decode_tx(data)), db=self._txs)

    def _move(
        self,
        txn: Transaction,
        switch: Switch,
        fresh: Mapping[BlockId, CheckedBlock] | None = None,
        held: int | None = None,
    ) -> None:
        """Leave and enter the blocks of `switch`; those in `fresh` are at hand decoded."""
        for point in switch.leave:
            for identity, tx, _ in self._contents(txn, point):
                txn.delete(identity, db=self._txs)
                if isinstance(tx, Anchor):
                    txn.delete(tx.volume + tx.sequence.to_bytes(8), db=self._anchors)
            txn.delete(point.height.to_bytes(8), db=self._best)
            self._accounts.leave(txn, point.height, point.id)
        for point in switch.enter:
            for identity, tx, place in self._contents(txn, point, None if fresh is None else fresh.get(point.id)):
                txn.put(identity, place, db=self._txs)
                if isinstance(tx, Anchor):
                    txn.put(tx.volume + tx.sequence.to_bytes(8), place, db=self._anchors)
            txn.put(point.height.to_bytes(8), point.id, db=self._best)
            if not self._accounts.enter(txn, point.height, point.id):  # stored by a release without this index
                txn.put(ACCOUNTED, (point.height + 1).to_bytes(8), db=self._meta)
        tip = switch.enter[-1] if switch.enter else switch.fork
        txn.put(TIP, tip.id, db=self._meta)
        if held is not None:
            txn.put(HELD, held.to_bytes(8), db=self._meta)

    def _contents(
        self, txn: Transaction, point: Point, checked: CheckedBlock | None = None
    ) -> Iterator[tuple[TxId, object, bytes]]:
        """Yield id, transaction and place of everything in a block: the checked one, else as it is stored."""
        if checked is not None:
            for index, (identity, known) in enumerate(zip(checked.ids, checked.transactions, strict=True)):
                yield identity, known, PLACE.pack(point.height, index)
            return
        for index, data in enumerate(self._body(txn, point.id).transactions):
            tx = decode_tx(data)
            yield tx_id(tx), tx, PLACE.pack(point.height, index)

    def _at(self, txn: Transaction, place: bytes | None) -> tuple[bytes, int, int] | None:
        if place is None:
            return None
        height, index = PLACE.unpack(place)
        kept = txn.get(place, db=self._kept)
        if kept is not None:
            return kept, height, index
        identity = txn.get(height.to_bytes(8), db=self._best)
        if identity is None:
            raise self._corrupt(f"block {height} is missing")
        transactions = self._body(txn, BlockId(identity)).transactions
        if index >= len(transactions):
            raise self._corrupt(f"block {height} has no transaction {index}")
        return transactions[index], height, index

    def _block_at(self, txn: Transaction, place: bytes | None) -> tuple[bytes, int] | None:
        if place is None:
            return None
        height, index = PLACE.unpack(place)
        identity = txn.get(height.to_bytes(8), db=self._best)
        data = None if identity is None else txn.get(identity, db=self._bodies)
        return None if data is None else (data, index)

    def _body(self, txn: Transaction, identity: BlockId) -> Block:
        data = txn.get(identity, db=self._bodies)
        if data is None:
            raise self._corrupt(f"block {identity.hex()} is missing")
        try:
            return decode_block(data)
        except InvalidBlock as exc:
            raise self._corrupt(f"block {identity.hex()} does not decode ({exc})") from exc

    def _point(self, data: bytes) -> Point:
        try:
            return codec.decode(data, Point)
        except MalformedError as exc:
            raise self._corrupt(f"an index entry does not decode ({exc})") from exc

    def _corrupt(self, why: str) -> StoreCorrupt:
        return StoreCorrupt(f"{self._env.path} is damaged: {why}; stop the daemon and run `decloud ledger rebuild`")


def open_chain(path: Path, document: NetworkDocument | None = None, *, map_size: int = CHAIN_MAP_SIZE) -> ChainStore:
    """Open the chain store in directory `path`, made if missing when `document` is given.

    Without a document, the stored one is used. Raises StoreCorrupt for a store of another network or without one.
    """
    environment = open_environment(path, map_size, 16)
    try:
        if document is None:
            document = _stored_document(environment)
        return ChainStore(environment, document)
    except BaseException:  # interrupted or failed, nobody else would close it
        environment.close()
        raise


def _stored_document(environment: Environment) -> NetworkDocument:
    meta = environment.database(b"meta")
    with environment.read() as txn:
        data = txn.get(_NETWORK, db=meta)
    if data is None:
        raise StoreCorrupt(f"{environment.path} holds no chain")
    try:
        return decode_network(data)
    except MalformedError as exc:
        raise StoreCorrupt(f"{environment.path} is damaged: its network document does not decode ({exc})") from exc
