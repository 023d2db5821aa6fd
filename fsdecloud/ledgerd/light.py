"""A light daemon's view of the ledger: all headers, verified, no bodies and no state.

The counterpart of `keeper` for a machine that keeps little: headers are checked in full (work, difficulty, times, links), and
the chain with the most work is followed within the finality depth. What a header commits to is asked of full daemons and
believed with a proof only (`lightanswers`). **Invariant:** `tip` and the store change together between two checkpoints, after
the store's transaction is durable. All methods run in the trio thread; checking and the disk in a worker thread, under one
lock. Not here: where headers come from (`sync`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

import trio

from fsdecloud.ledger.blocks import block_id, decode_header
from fsdecloud.ledger.chain import Point, Switch, check_header, is_better, plan_switch
from fsdecloud.ledger.finality import claim_of
from fsdecloud.ledger.headers import Branch
from fsdecloud.ledger.network import network_id
from fsdecloud.ledger.reasons import ReorgTooDeep, UnknownParent
from fsdecloud.ledger.transactions import check_fee, check_signatures, decode_tx, tx_id
from fsdecloud.store.chain import ChainStore
from fsdecloud.types import BlockId, TxId
from fsdecloud.wire import gossip

if TYPE_CHECKING:
    from fsdecloud.ledgerd.session import Session

log = logging.getLogger(__name__)

KEPT_HEADERS: Final = 1000
"""Headers of a branch that are kept while it proves its work; those of a longer one are asked for twice, so that whoever sends
headers that lead nowhere costs no more memory than 32 bytes each."""

OWN_MAX: Final = 256
"""Transactions of this machine that wait: whoever submitted them does so again until they are in a block."""


class OwnTransactions:
    """The transactions of this machine that are offered to full daemons: what stands here for a mempool."""

    def __init__(self) -> None:
        self._waiting: dict[TxId, bytes] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, identity: object) -> bool:
        return identity in self._waiting

    def ids(self) -> Iterator[TxId]:
        """Yield the ids, oldest first."""
        yield from tuple(self._waiting)

    def get(self, identity: TxId) -> bytes | None:
        """Return an encoded transaction."""
        return self._waiting.get(identity)

    def verified(self) -> frozenset[bytes]:
        """Return the encoded transactions."""
        return frozenset(self._waiting.values())

    def add(self, identity: TxId, data: bytes) -> None:
        """Take one; of more than OWN_MAX the oldest is forgotten."""
        self._waiting[identity] = data
        while len(self._waiting) > OWN_MAX:
            del self._waiting[next(iter(self._waiting))]

    def drop(self, identity: TxId) -> None:
        """Forget one: it is in a block, or refused. Unknown ones do not matter."""
        self._waiting.pop(identity, None)


class LightKeeper:
    """Owner of the store of headers, and of what this machine submitted."""

    def __init__(self, store: ChainStore, clock: Callable[[], int]) -> None:
        """`clock` returns Unix seconds."""
        self.document = store.document
        self.network = network_id(store.document)
        self.tip = store.tip()
        self.alarm = ""
        """Why the best chain that others have is not followed; empty if it is."""
        self.claim = claim_of(0, self.tip.work, self.tip.id)
        """What of others' claims has to be greater. Votes are in the bodies: here work decides."""
        self.store = store
        """The stored headers; others only read it."""
        self._clock = clock
        self._lock = trio.Lock()
        self._tip_changed = trio.Event()
        self.on_tip: list[Callable[[Switch], None]] = []
        """Called, not to block, after each change of the tip."""
        self.on_tx: list[Callable[[TxId], None]] = []
        """Called, not to block, for each transaction that is to be offered, also again."""
        self.pool = OwnTransactions()

    def now(self) -> int:
        """Return this machine's time in seconds since 1970."""
        return self._clock()

    def tip_event(self) -> trio.Event:
        """Return the event of the next change of the tip. Take it before looking at the tip, then nothing is missed."""
        return self._tip_changed

    def point_of_best(self, identity: bytes) -> Point | None:
        """Return the point of a block of the best chain, None for any other."""
        point = self.store.point(BlockId(identity))
        return point if point is not None and self.store.best_at(point.height) == identity else None

    # ---- transactions ----------------------------------------------------------------------------------------------
    def submit(self, data: bytes) -> tuple[TxId, int | None]:
        """Offer an encoded transaction to all full daemons. What it is in itself is checked, not what the state says of it.

        Raises MalformedTransaction, BadStamp or BadSignature.
        """
        tx = decode_tx(data, self.document.transaction_max)
        check_fee(self.document, tx)
        check_signatures(self.network, tx)
        identity = tx_id(tx)
        self.pool.add(identity, data)
        for callback in self.on_tx:
            callback(identity)
        return identity, None

    # ---- headers ---------------------------------------------------------------------------------------------------
    async def accept_headers(self, headers: Sequence[bytes]) -> None:
        """Check and store encoded headers, each the parent of the next, and follow the last if its chain has the most work.

        Raises an InvalidBlock leaf, and nothing is stored.
        """
        async with self._lock:
            switch = await trio.to_thread.run_sync(self._connect, headers)
            if switch is not None:
                self._follow(switch)

    def raise_alarm(self, text: str) -> None:
        """Remember and log, once, that a chain with more work is not followed."""
        if text != self.alarm:
            log.warning("%s", text)
        self.alarm = text

    # ---- inner -----------------------------------------------------------------------------------------------------
    def _connect(self, headers: Sequence[bytes]) -> Switch | None:
        """Check and store. Worker thread."""
        fresh: dict[BlockId, tuple[Point, bytes]] = {}

        def read(identity: BlockId) -> Point | None:
            return fresh[identity][0] if identity in fresh else self.store.point(identity)

        last = self.tip
        for data in headers:
            header = decode_header(data)
            known = read(block_id(header))
            if known is None:
                parent = read(BlockId(header.parent))
                if parent is None:
                    raise UnknownParent(f"the parent of block {header.height} is not known")
                known = check_header(self.document, parent, header, self.now())
                fresh[known.id] = known, data
            last = known
        switch = None
        if is_better(last, self.tip):
            try:
                switch = plan_switch(read, self.tip, last, self.document.finality_depth)
            except ReorgTooDeep as exc:
                self.raise_alarm(str(exc))
        if fresh or switch is not None:
            self.store.add_headers(tuple(fresh.values()), switch)
        return switch

    def _follow(self, switch: Switch) -> None:
        """Take the new tip over; the store has it."""
        self.tip = switch.enter[-1]
        self.claim = claim_of(0, self.tip.work, self.tip.id)
        if switch.leave:
            log.info("left %d blocks for a better chain, tip %d", len(switch.leave), self.tip.height)
        self._tip_changed.set()
        self._tip_changed = trio.Event()
        for callback in self.on_tip:
            callback(switch)


async def store_branch(keeper: LightKeeper, session: Session, branch: Branch) -> bool:
    """Store the headers of a branch that proved its work; return False when its sender does not give them again.

    Raises an InvalidBlock leaf, StoreError, RemoteTimeout or PeerUnavailable.
    """
    assert branch.fork is not None
    done = 0
    while done < len(branch):
        batch: Sequence[bytes] = branch.headers[done : done + gossip.HEADERS_MAX]
        if not batch:
            parent = branch.id_at(done - 1) if done else branch.fork.id
            batch = (await session.ask(gossip.GetHeaders((parent,)), gossip.Headers)).headers[: len(branch) - done]
            if not batch or any(block_id(decode_header(h)) != branch.id_at(done + i) for i, h in enumerate(batch)):
                return False
        await keeper.accept_headers(batch)
        session.last_block = trio.current_time()
        done += len(batch)
    return True
