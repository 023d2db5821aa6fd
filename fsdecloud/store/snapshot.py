"""What a chain store takes that was not computed here: headers, the state at one block, and the blocks before it.

Blocking; the databases and their rules are `store.chain`'s. Until `install` the tip is the genesis block, and the headers that
are stored are those up to the pivot, or to where it was expected before. Each method is one transaction: after a crash all of
it is there or nothing. Nothing is judged here: what comes in was checked by `ledger.snapshot` and `ledger.chain`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from fsdecloud import codec
from fsdecloud.errors import StoreCorrupt
from fsdecloud.ledger.chain import CheckedBlock, Point, genesis_point
from fsdecloud.ledger.snapshot import Contents
from fsdecloud.ledger.transactions import Anchor
from fsdecloud.store.accounts import AccountIndex
from fsdecloud.store.chain import FIRST, PLACE, SNAPSHOT, TIP, ChainStore, SnapshotMark
from fsdecloud.store.environment import Transaction
from fsdecloud.types import BlockId


class SnapshotStore:
    """Writes a snapshot into an open chain store."""

    def __init__(self, store: ChainStore) -> None:
        environment = store.environment
        self._store = store
        self._env = environment
        self._genesis = genesis_point(store.document)
        self._meta = environment.database(b"meta")
        self._points = environment.database(b"points")
        self._headers = environment.database(b"headers")
        self._bodies = environment.database(b"bodies")
        self._levels = environment.database(b"levels")
        self._best = environment.database(b"best")
        self._txs = environment.database(b"txs")
        self._anchors = environment.database(b"anchors")
        self._nodes = environment.database(b"nodes")
        self._accounts = AccountIndex(environment)

    # ---- before the state is here ----------------------------------------------------------------------------------
    def start(self) -> None:
        """Remember that the state is to be fetched, unless that is known. The tip must be the genesis block."""
        with self._env.write() as txn:
            if txn.get(TIP, db=self._meta) != self._genesis.id:
                raise AssertionError("a chain that has blocks needs no snapshot")
            if txn.get(SNAPSHOT, db=self._meta) is None:
                self._put_mark(txn, SnapshotMark(self._genesis.id))

    def drop(self) -> None:
        """Forget all headers that came for a state that is not here: the chain begins anew. Nodes go when old states do."""
        with self._env.write() as txn:
            if txn.get(TIP, db=self._meta) != self._genesis.id:
                raise AssertionError("a state that is in use is not dropped")
            self._drop_levels(txn, 1)
            txn.delete(SNAPSHOT, db=self._meta)

    def add_headers(self, headers: Sequence[tuple[Point, bytes]]) -> None:
        """Store checked headers, parents before children."""
        with self._env.write() as txn:
            for point, header in headers:
                txn.put(point.id, header, db=self._headers)
                txn.put(point.id, codec.encode(point), db=self._points)
                txn.put(point.height.to_bytes(8) + point.id, b"", db=self._levels)
            if headers:
                self._put_mark(txn, SnapshotMark(headers[-1][0].id))

    def nodes(self, refs: Iterable[bytes]) -> dict[bytes, bytes]:
        """Return those of these state nodes that are stored."""
        with self._env.read() as txn:
            found = ((ref, txn.get(ref, db=self._nodes)) for ref in refs)
            return {ref: data for ref, data in found if data is not None}

    def add_nodes(self, nodes: Mapping[bytes, bytes]) -> None:
        """Store state nodes by their references."""
        with self._env.write() as txn:
            for ref, data in nodes.items():
                txn.put(ref, data, db=self._nodes)

    def install(self, pivot: Point) -> None:
        """Make a block the tip whose header is stored, with those of all blocks before it, and whose state is whole."""
        with self._env.write() as txn:
            self._drop_levels(txn, pivot.height, keep=pivot.id)
            point = pivot
            while point.height > 0:
                txn.put(point.height.to_bytes(8), point.id, db=self._best)
                data = txn.get(point.parent, db=self._points)
                if data is None:
                    raise StoreCorrupt(
                        f"{self._env.path} is damaged: header {point.height - 1} is missing; "
                        "stop the daemon and run `decloud ledger rebuild --discard`"
                    )
                point = codec.decode(data, Point)
            txn.put(TIP, pivot.id, db=self._meta)
            txn.put(FIRST, (pivot.height + 1).to_bytes(8), db=self._meta)
            self._put_mark(txn, SnapshotMark(pivot.id, pivot.height))

    # ---- the blocks before it --------------------------------------------------------------------------------------
    def add_history(self, blocks: Sequence[tuple[Contents, bytes]], identities: Sequence[BlockId]) -> None:
        """Store the blocks with these ids that come just before the first that is here, the highest first, and what the indexes
        say of them."""
        with self._env.write() as txn:
            height = int.from_bytes(txn.get(FIRST, db=self._meta) or bytes(1))
            for (contents, data), identity in zip(blocks, identities, strict=True):
                height -= 1
                assert contents.block.header.height == height
                txn.put(identity, data, db=self._bodies)
                for index, (tx, known) in enumerate(zip(contents.transactions, contents.ids, strict=True)):
                    place = PLACE.pack(height, index)
                    txn.put(known, place, db=self._txs)
                    if isinstance(tx, Anchor):
                        txn.put(tx.volume + tx.sequence.to_bytes(8), place, db=self._anchors)
            txn.put(FIRST, height.to_bytes(8), db=self._meta)
            if height == 1:
                self._change_mark(txn, is_complete=True)

    def add_verified(self, blocks: Sequence[CheckedBlock], height: int) -> None:
        """Note that the blocks up to a height have been executed; `blocks` are those of them that were not noted before."""
        with self._env.write() as txn:
            for checked in blocks:
                for ref, data in checked.nodes.items():
                    txn.put(ref, data, db=self._nodes)
                self._accounts.put(txn, checked.point.id, checked.accounts)
                self._accounts.enter(txn, checked.point.height, checked.point.id)
            self._change_mark(txn, verified=height)

    def set_fault(self, fault: str) -> None:
        """Note that a block before the pivot breaks the rules."""
        with self._env.write() as txn:
            self._change_mark(txn, fault=fault[:1000])

    # ---- inner -----------------------------------------------------------------------------------------------------
    def _drop_levels(self, txn: Transaction, lowest: int, keep: bytes = b"") -> None:
        """Drop the headers from a height on, all but one. None of them has a body."""
        with txn.cursor(db=self._levels) as cursor:
            found = cursor.set_range(lowest.to_bytes(8))
            while found:
                identity = cursor.key()[8:]
                if identity == keep:
                    found = cursor.next()
                    continue
                txn.delete(identity, db=self._points)
                txn.delete(identity, db=self._headers)
                found = cursor.delete() and bool(cursor.key())

    def _change_mark(self, txn: Transaction, **changes: object) -> None:
        data = txn.get(SNAPSHOT, db=self._meta)
        assert data is not None
        self._put_mark(txn, msgspec.structs.replace(codec.decode(data, SnapshotMark), **changes))

    def _put_mark(self, txn: Transaction, mark: SnapshotMark) -> None:
        txn.put(SNAPSHOT, codec.encode(mark), db=self._meta)
