"""The blocks before a snapshot, fetched and then executed in the background.

From the pivot down they come from all who have them, are checked against their headers (`ledger.snapshot.check_contents`),
stored and indexed; the daemon serves meanwhile, and says how far down it has come. When all are here they are executed from the
genesis block up, by every rule, up to the state at the pivot: from then on nothing about the chain is believed any more. Both
go on where they were after a restart. Everything here runs in the trio thread but for the disk and the checks.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

import trio

from fsdecloud.errors import InvalidBlock, StoreCorrupt, StoreError
from fsdecloud.ledger.blocks import decode_block
from fsdecloud.ledger.chain import CheckedBlock, check_block, genesis_point
from fsdecloud.ledger.headers import describe
from fsdecloud.ledger.snapshot import Contents, check_contents
from fsdecloud.ledgerd.conduct import Misbehaviour
from fsdecloud.ledgerd.download import BODY_FAULTS, BlockFetch
from fsdecloud.ledgerd.keeper import Keeper
from fsdecloud.ledgerd.session import Session
from fsdecloud.store.chain import ChainStore
from fsdecloud.store.snapshot import SnapshotStore
from fsdecloud.tree.node import NodeMissing
from fsdecloud.types import BlockId

if TYPE_CHECKING:
    from fsdecloud.ledgerd.sync import Syncer

log = logging.getLogger(__name__)

EXECUTE_BATCH: Final = 64
"""Blocks executed, and then noted, at once."""

REST: Final = 3.0
"""Times as long as executing took that the daemon rests after it: a quarter of one core."""

PRUNE_EVERY: Final = 4096
"""Executed blocks after which the states that they led to are dropped."""

STORE_RETRY: Final = 10.0
"""Seconds to wait when the disk takes no block: it may have room again."""

ADVICE: Final = (
    "do not trust its balances; `decloud ledger rebuild --discard` begins anew, with daemons whose chain you trust"
)


class History:
    """Completes a chain that began with a snapshot. `run` is the only task, and ends when nothing is left to do."""

    def __init__(self, keeper: Keeper, syncer: Syncer) -> None:
        self._keeper = keeper
        self._syncer = syncer
        self._store = SnapshotStore(keeper.store)

    async def run(self) -> None:
        """Fetch, then execute. Raises StoreCorrupt."""
        while True:
            changed, moved = self._syncer.changed(), self._keeper.tip_event()
            mark = self._keeper.store.snapshot()
            if mark is None or mark.is_settled:
                if mark is not None and mark.fault:
                    self._keeper.alarm = mark.fault
                    log.error("%s", mark.fault)
                return
            if not mark.pivot:
                await moved.wait()
            elif mark.is_complete:
                await self._execute(mark.verified, mark.pivot)
            elif not await self._fetch():
                await changed.wait()

    async def _fetch(self) -> bool:
        """Fetch what is missing; return False when nobody can give it now."""
        last = self._keeper.store.first_body() - 1
        try:
            is_complete = await HistoryFetch(self._keeper, self._store, self._syncer, last).run()
        except StoreCorrupt:
            raise
        except StoreError as exc:
            log.error("a block cannot be stored: %s", exc)
            await trio.sleep(STORE_RETRY)
            return True
        if not is_complete:
            mark = self._keeper.store.snapshot()
            return mark is not None and bool(mark.fault)
        log.info("all blocks before the snapshot are here; they are executed in the background")
        return True

    async def _execute(self, verified: int, pivot: int) -> None:
        """Execute the next blocks."""
        begun = time.monotonic()
        try:
            done, error = await trio.to_thread.run_sync(self._execute_some, verified, pivot)
            if error is not None:
                await trio.to_thread.run_sync(self._store.set_fault, _condemn(done + 1, error))
                return
            if done // PRUNE_EVERY > verified // PRUNE_EVERY or done == pivot:
                await self._keeper.prune_states()
        except StoreCorrupt:
            raise
        except StoreError as exc:
            log.error("what was verified cannot be stored: %s", exc)
            await trio.sleep(STORE_RETRY)
            return
        if done == pivot:
            log.info("all blocks up to the snapshot at block %d are verified", pivot)
        else:
            await trio.sleep((time.monotonic() - begun) * REST)

    def _execute_some(self, verified: int, pivot: int) -> tuple[int, InvalidBlock | None]:
        """Execute blocks; return the height of the last valid one and what is wrong with the next. Worker thread. Raises
        StoreError."""
        store = self._keeper.store
        error: InvalidBlock | None = None
        nodes: dict[bytes, bytes] = {}
        executed: list[CheckedBlock] = []

        def read(ref: bytes) -> bytes | None:
            return nodes[ref] if ref in nodes else store.node(ref)

        point = store.point(_best(store, verified)) if verified else genesis_point(store.document)
        height = verified
        while height < min(pivot, verified + EXECUTE_BATCH):
            data = store.block(_best(store, height + 1))
            if data is None or point is None:
                raise _damaged(f"block {height + 1} is missing")
            try:
                checked = check_block(store.document, point, decode_block(data, store.document.block_max), read, None)
            except NodeMissing as exc:
                raise _damaged(str(exc)) from exc
            except InvalidBlock as exc:
                error = exc
                break
            nodes.update(checked.nodes)
            executed.append(checked)
            point = checked.point
            height = point.height
        self._store.add_verified(executed, height)
        return height, error


class HistoryFetch(BlockFetch):
    """Fetches and stores the blocks of the best chain from a height down to 1."""

    def __init__(self, keeper: Keeper, store: SnapshotStore, syncer: Syncer, last: int) -> None:
        """`last` is the height of the highest of them."""
        super().__init__(syncer, last)
        self._keeper = keeper
        self._store = store
        self._last = last

    def _id_at(self, index: int) -> BlockId:
        return _best(self._keeper.store, self._height(index))

    def _height(self, index: int) -> int:
        return self._last - index

    def _reach(self, session: Session) -> int:
        return self._last - session.first + 1

    async def _connect(self) -> bool:
        """Store what is ready."""
        blocks, senders = self._next_ready()
        found, error = await trio.to_thread.run_sync(self._add, blocks)
        self._advance(found)
        if error is None:
            return True
        reason = f"it sent an invalid block {self._height(self._next)}: {describe(error)}"
        if isinstance(error, BODY_FAULTS):
            senders[found].fail(Misbehaviour(reason))
            self._lacking.add(senders[found])
            self._refuse_body()
            return True
        await trio.to_thread.run_sync(self._store.set_fault, _condemn(self._height(self._next), error))
        return False

    def _add(self, blocks: list[bytes]) -> tuple[int, InvalidBlock | None]:
        """Check and store blocks; return how many, and what is wrong with the one after these. Worker thread."""
        error: InvalidBlock | None = None
        found: list[tuple[Contents, bytes]] = []
        for data in blocks:
            try:
                found.append((check_contents(self._keeper.document, data), data))
            except InvalidBlock as exc:
                error = exc
                break
        if found:
            self._store.add_history(found, [self._id_at(self._next + index) for index in range(len(found))])
        return len(found), error


def _best(store: ChainStore, height: int) -> BlockId:
    identity = store.best_at(height)
    if identity is None:
        raise _damaged(f"block {height} is missing")
    return identity


def _condemn(height: int, error: InvalidBlock) -> str:
    return f"the chain breaks the rules in block {height}, before its snapshot: {describe(error)}: {ADVICE}"


def _damaged(why: str) -> StoreCorrupt:
    return StoreCorrupt(
        f"the chain store is damaged: {why}; stop the daemon and run `decloud ledger rebuild --discard`"
    )
