"""The daemon's one view of the ledger: the stored chain, its tip, the mempool, and every change of them.

All methods run in the trio thread; what takes time (signatures, state, the disk) runs in a worker thread under one lock, so
that blocks are connected one after another. **Invariant:** `tip`, the mempool and the store change together between two
checkpoints, after the store's transaction is durable. Not here: where blocks and transactions come from.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from fsdecloud.errors import InvalidBlock, InvalidTransaction
from fsdecloud.ledger.blocks import Block, block_id, decode_block
from fsdecloud.ledger.chain import CheckedBlock, Point, Switch, build_block, check_block, open_next, plan_switch
from fsdecloud.ledger.finality import choose_tip, claim_of, read_finality
from fsdecloud.ledger.mempool import Mempool
from fsdecloud.ledger.network import network_id
from fsdecloud.ledger.reasons import COMMITTED, ConflictsWithFinal, KnownInvalid, ReorgTooDeep, UnknownParent
from fsdecloud.ledger.staking import Finality, stake_of
from fsdecloud.ledger.state import EMPTY_ROOT, Registration, State, StateNodes
from fsdecloud.ledger.transactions import Vote, check_signatures, decode_tx, encode_evidence, tx_id
from fsdecloud.ledger.votebook import VoteBook
from fsdecloud.store.chain import ChainStore
from fsdecloud.store.snapshot import SnapshotStore
from fsdecloud.tree.node import NodeMissing
from fsdecloud.types import BlockId, PeerId, TxId

log = logging.getLogger(__name__)

PRUNE_EVERY: Final = 128
"""Connected blocks between two sweeps of old state nodes, at least; and a sweep, which reads the whole state once, waits until
there are half as many nodes again as the last one left: its cost for each block stays the same however large the state is."""

PRUNE_MARGIN: Final = 28
"""States kept below the finality depth, for branches that begin just above it."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """What became of a block: `is_new` if it was not stored before, `switch` if the tip moved."""

    point: Point
    is_new: bool
    switch: Switch | None


@dataclass(frozen=True, slots=True)
class Connected:
    """What became of successive blocks: how many of them are stored now, and what is wrong with the one after these."""

    count: int
    error: InvalidBlock | None


class Keeper:
    """Owner of the chain store and the mempool."""

    def __init__(self, store: ChainStore, clock: Callable[[], int], body_limit: int | None = None) -> None:
        """`clock` returns Unix seconds; `body_limit` is how many bytes of bodies to keep, None for all."""
        self.document = store.document
        self.network = network_id(store.document)
        self.tip = store.tip()
        self.alarm = ""
        """Why the best chain that others have is not followed; empty if it is."""
        mark = store.snapshot()
        self.needs_snapshot = mark is not None and not mark.pivot
        """Whether this chain is to begin with a state that others give (`snapshot`): until then nothing is mined."""
        self._store = store
        self._snapshots = SnapshotStore(store)
        self._held = store.held()
        self.claim = self._claim()
        """What others are told of the chain that is followed (`finality.claim_of`)."""
        self._clock = clock
        self._lock = trio.Lock()
        self._body_limit = body_limit
        self._connected = 0
        self._prune_above = 0
        self._tip_changed = trio.Event()
        self._pool_changed = trio.Event()
        self.on_tip: list[Callable[[Switch], None]] = []
        """Called, not to block, after each change of the tip."""
        self.on_tx: list[Callable[[TxId], None]] = []
        """Called, not to block, for each transaction that enters the mempool."""
        self._votes = VoteBook()
        self.pool = Mempool(store.document)
        self.pool.rebase(self.next_state, self.tip.height + 1, clock())

    # ---- looking ---------------------------------------------------------------------------------------------------
    @property
    def store(self) -> ChainStore:
        """The stored chain; others only read it."""
        return self._store

    @property
    def kept_depth(self) -> int:
        """Blocks below the tip whose states, and bodies, are always kept: a reorganisation may need them."""
        return self.document.finality_depth + PRUNE_MARGIN

    def now(self) -> int:
        """Return this machine's time in seconds since 1970."""
        return self._clock()

    def state(self) -> State:
        """Return the state at the tip."""
        return State(StateNodes(self._store.node).get, self.tip.state_root)

    def next_state(self) -> State:
        """Return the state that the next block's transactions are applied to: a checkpoint at the tip is noted in it."""
        return open_next(self.document, self.tip, self._store.node)

    def finality(self) -> Finality:
        """Return the checkpoints at the tip."""
        return read_finality(self.document, self.tip, self._store.node)

    def justified_at(self, point: Point) -> int:
        """Return the height of the justified checkpoint after a stored block; 0 where nobody votes, or where its state is no
        longer here, or never was."""
        if not self.document.checkpoint_interval:
            return 0
        try:
            return read_finality(self.document, point, self._store.node).justified.height
        except NodeMissing:
            return 0

    def registry(self) -> list[tuple[PeerId, Registration]]:
        """Return all registered peers by their place."""
        return sorted(self.state().registry(), key=lambda item: item[1].place)

    def tip_event(self) -> trio.Event:
        """Return the event of the next change of the tip. Take it before looking at the tip, then nothing is missed."""
        return self._tip_changed

    def change_event(self) -> trio.Event:
        """Return the event of the next change of the tip or the mempool; likewise."""
        return self._pool_changed

    # ---- transactions ----------------------------------------------------------------------------------------------
    def submit(self, data: bytes) -> tuple[TxId, int | None]:
        """Put an encoded transaction into the mempool. Returns its id and, if it is in the best chain already, its height.

        Raises an InvalidTransaction leaf.
        """
        tx = decode_tx(data, self.document.transaction_max)
        if isinstance(tx, Vote):
            self._watch(tx, data)
        identity = tx_id(tx)
        found = self._store.find_tx(identity)
        if found is not None:
            return identity, found[1]
        is_new = identity not in self.pool
        self.pool.add(data, self.now())
        if is_new:
            self._notify_pool()
            for callback in self.on_tx:
                callback(identity)
        return identity, None

    # ---- blocks ----------------------------------------------------------------------------------------------------
    async def accept(self, data: bytes) -> Accepted:
        """Check and store an encoded block, and follow it if its chain has the most work.

        Raises an InvalidBlock leaf. A block that is invalid for ever, and cost its work, is remembered as such.
        """
        async with self._lock:
            batch = await trio.to_thread.run_sync(self._connect, (data,), self.pool.verified())
            if batch.switch is not None:
                await self._follow(batch.switch)
            self._watch_all(batch)
        if batch.error is not None:
            raise batch.error
        return Accepted(batch.last, is_new=bool(batch.fresh), switch=batch.switch)

    async def accept_chain(self, blocks: Sequence[bytes]) -> Connected:
        """Check and store encoded blocks, each the parent of the next, and follow the last if its chain has the most work.

        One disk transaction for all of them. What comes before the first invalid one is stored all the same.
        """
        async with self._lock:
            batch = await trio.to_thread.run_sync(self._connect, blocks, self.pool.verified())
            if batch.switch is not None:
                await self._follow(batch.switch)
            self._watch_all(batch)
        return Connected(batch.count, batch.error)

    async def accept_tip(self, identity: BlockId) -> Point:
        """Follow a stored block however deep it reorganises: a person said so. Raises UnknownParent if it is unknown,
        ReorgTooDeep if pruned blocks would have to be undone."""
        async with self._lock:
            point = self._store.point(identity)
            if point is None:
                raise UnknownParent(f"block {identity.hex()} is not stored here")
            switch = plan_switch(self._store.point, self.tip, point, None)
            is_bare = any(self._store.block(left.id) is None for left in (*switch.leave, *switch.enter))
            if is_bare or not self._has_state(point):
                raise ReorgTooDeep(
                    "that would undo blocks whose bodies or states are not here: stop the daemon, run `decloud ledger rebuild "
                    "--discard`, and let it sync from daemons whose chain you trust"
                )
            held = self._final_at(point, self._store.node)
            await trio.to_thread.run_sync(self._store.move_tip, switch, held)
            self._held = held or 0
            self.alarm = ""
            await self._follow(switch)
        return point

    async def begin_at(self, pivot: Point) -> None:
        """Begin the chain at a block whose state is whole, with all headers up to it. Raises StoreError."""
        async with self._lock:
            assert self.needs_snapshot
            switch = Switch(self.tip, (), (pivot,))
            await trio.to_thread.run_sync(self._snapshots.install, pivot)
            self.needs_snapshot = False
            await self._follow(switch)

    async def prune_states(self) -> int:
        """Drop the nodes of old states now; return how many."""
        async with self._lock:
            return await trio.to_thread.run_sync(self._store.prune, self.kept_depth)

    async def build(self, recipient: bytes) -> Block | None:
        """Return the block to mine next, None when there is nothing to record and the network does not mine idly."""
        if self.needs_snapshot:
            return None
        time = max(self.now(), self.tip.median_time + 1)
        chosen = self.pool.select(time)
        if not chosen and not self.document.mine_when_idle:
            return None
        return await trio.to_thread.run_sync(
            build_block, self.document, self.tip, chosen, recipient, time, self._store.node
        )

    # ---- inner -----------------------------------------------------------------------------------------------------
    def _claim(self) -> bytes:
        return claim_of(self.justified_at(self.tip), self.tip.work, self.tip.id)

    def _connect(self, blocks: Sequence[bytes], verified: frozenset[bytes]) -> _Batch:
        """Check blocks one after another and store those before the first invalid one. Worker thread."""
        batch = _Batch(self._store, self.tip)
        for data in blocks:
            try:
                self._check(batch, data, verified)
            except InvalidBlock as exc:
                batch.error = exc
                break
            batch.count += 1
        if batch.fresh:
            try:
                batch.switch = self._choose(batch)
                if batch.switch is not None and len(batch.switch.leave) > self.document.finality_depth:
                    self.alarm = ""  # what was too deep by work alone has a justified checkpoint now
            except (ConflictsWithFinal, ReorgTooDeep) as exc:
                self.raise_alarm(str(exc))
            held = None
            if batch.switch is not None and (final := self._final_at(batch.last, batch.node)) is not None:
                held = max(self._held, final)
            self._store.add_many(tuple(batch.fresh.values()), batch.switch, held)
            self._held = self._held if held is None else held
        return batch

    def _final_at(self, point: Point, read_node: Callable[[bytes], bytes | None]) -> int | None:
        """Return the height of the final checkpoint after a block whose state is here; None where nobody votes."""
        if not self.document.checkpoint_interval:
            return None
        return read_finality(self.document, point, read_node).final.height

    def _choose(self, batch: _Batch) -> Switch | None:
        """Return how to get to the batch's last block if its chain comes first."""

        def read_finality_at(point: Point) -> Finality:
            try:
                return read_finality(self.document, point, batch.node)
            except NodeMissing as exc:
                raise ReorgTooDeep(f"the state after block {point.height} is no longer kept") from exc

        return choose_tip(self.document, batch.point, read_finality_at, self.tip, batch.last, self._held)

    def _check(self, batch: _Batch, data: bytes, verified: frozenset[bytes]) -> None:
        """Check one block and append it to the batch, unless it is stored already."""
        block = decode_block(data, self.document.block_max)
        identity = block_id(block.header)
        known = batch.point(identity)
        if known is not None:
            batch.last = known
            return
        parent = self._known_parent(batch, block, identity)
        try:
            checked = check_block(self.document, parent, block, batch.node, self.now(), verified)
        except COMMITTED as exc:
            self._store.mark_invalid(identity, f"{type(exc).__name__}: {exc}")
            raise
        except NodeMissing as exc:
            raise ReorgTooDeep(f"block {parent.height + 1} follows a block whose state is no longer kept") from exc
        batch.append(checked, data)

    def _known_parent(self, batch: _Batch, block: Block, identity: BlockId) -> Point:
        for candidate in (identity, BlockId(block.header.parent)):
            reason = self._store.invalid_reason(candidate)
            if reason is not None:
                raise KnownInvalid(reason if candidate == identity else f"descends from an invalid block ({reason})")
        parent = batch.point(BlockId(block.header.parent))
        if parent is None:
            raise UnknownParent(f"the parent of block {block.header.height} is not known")
        return parent

    async def _follow(self, switch: Switch) -> None:
        """Take the new tip over; the store has it."""
        returned = [tx for point in reversed(switch.leave) for tx in self._transactions(point)]
        self.tip = switch.enter[-1] if switch.enter else switch.fork
        self.claim = self._claim()
        waited = frozenset(self.pool.ids()) if returned else frozenset()
        dropped = self.pool.rebase(self.next_state, self.tip.height + 1, self.now(), returned)
        if switch.leave:
            log.info("left %d blocks for a better chain, tip %d", len(switch.leave), self.tip.height)
        for waiting, reason in dropped:
            log.debug("transaction %s left the mempool: %s", waiting.id.hex(), reason)
        self._tip_changed.set()
        self._tip_changed = trio.Event()
        self._notify_pool()
        for callback in self.on_tip:
            callback(switch)
        if returned:  # the others' mempools may never have held what the left blocks did
            for identity in self.pool.ids():
                if identity not in waited:
                    for tell in self.on_tx:
                        tell(identity)
        if self._body_limit is not None and switch.enter and self._is_settled():
            await trio.to_thread.run_sync(self._store.prune_bodies, self._body_limit, self.kept_depth)
        self._connected += len(switch.enter)
        if self._connected >= PRUNE_EVERY and self._store.node_count() >= self._prune_above:
            self._connected = 0
            count = await trio.to_thread.run_sync(self._store.prune, self.kept_depth)
            self._prune_above = self._store.node_count() * 3 // 2
            log.debug("dropped %d old state nodes", count)

    def _has_state(self, point: Point) -> bool:
        return point.state_root == EMPTY_ROOT or self._store.node(point.state_root) is not None

    def _is_settled(self) -> bool:
        """Tell whether bodies may go: not while those before a snapshot come, and are executed."""
        mark = self._store.snapshot()
        return mark is None or mark.is_settled

    # ---- votes that contradict each other --------------------------------------------------------------------------
    def _watch_all(self, batch: _Batch) -> None:
        """Look at the votes in new blocks, those of other chains, too: that is where a voter would vote twice."""
        if not self.document.checkpoint_interval:
            return
        for checked, _ in batch.fresh.values():
            for tx, data in zip(checked.transactions, checked.block.transactions, strict=True):
                if isinstance(tx, Vote):
                    self._accuse(tx, data)

    def _watch(self, vote: Vote, data: bytes) -> None:
        """Look at a vote that somebody sent, before it is known whether it is valid here; one of no stake does not matter.

        Raises BadSignature.
        """
        if not self.document.checkpoint_interval:
            return
        stake = stake_of(self.state(), vote.peer)
        if stake is not None and stake.amount:
            check_signatures(self.network, vote)
            self._accuse(vote, data)

    def _accuse(self, vote: Vote, data: bytes) -> None:
        """If it contradicts an earlier one, put evidence into the mempool: the stake burns. The fee comes out of the stake."""
        votes = self._votes.note(vote, data)
        if votes is None:
            return
        try:
            self.submit(encode_evidence(*votes, self.document.minimum_fee))
        except InvalidTransaction as exc:  # it has burned already, or somebody else's evidence waits
            log.debug("evidence is not needed: %s", exc)
        else:
            log.warning("peer %s signed two votes that contradict each other", vote.peer.hex())

    def _transactions(self, point: Point) -> tuple[bytes, ...]:
        data = self._store.block(point.id)
        return decode_block(data).transactions if data is not None else ()

    def _notify_pool(self) -> None:
        self._pool_changed.set()
        self._pool_changed = trio.Event()

    def raise_alarm(self, text: str) -> None:
        """Remember and log, once, that a chain that comes first by work or votes is not followed."""
        if text != self.alarm:
            log.warning("%s: see `decloud ledger accept-tip`", text)
        self.alarm = text


class _Batch:
    """Successive blocks on their way into the store: what is checked so far, over what is stored."""

    def __init__(self, store: ChainStore, last: Point) -> None:
        self._store = store
        self._nodes: dict[bytes, bytes] = {}
        self.fresh: dict[BlockId, tuple[CheckedBlock, bytes]] = {}
        self.last = last
        self.count = 0
        self.switch: Switch | None = None
        self.error: InvalidBlock | None = None

    def point(self, identity: BlockId) -> Point | None:
        """Return a block's point, of the batch or stored."""
        found = self.fresh.get(identity)
        return self._store.point(identity) if found is None else found[0].point

    def node(self, ref: bytes) -> bytes | None:
        """Return an encoded state node, of the batch or stored."""
        data = self._nodes.get(ref)
        return self._store.node(ref) if data is None else data

    def append(self, checked: CheckedBlock, data: bytes) -> None:
        """Take a checked block with its bytes."""
        self.fresh[checked.point.id] = (checked, data)
        self._nodes.update(checked.nodes)
        self.last = checked.point
