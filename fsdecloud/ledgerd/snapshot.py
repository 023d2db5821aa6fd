"""How a new daemon takes the state at one block from others, instead of executing all blocks before it.

Headers first, and all of them (`sync`); those up to the pivot are stored, then the state's nodes come from all who have them,
and the pivot becomes the tip: from there on everything goes its usual way. What was fetched is on the disk at once, so that
whoever is killed goes on where he was; when nobody gives the pivot's state any more, a later pivot is chosen, and what both
states share is not fetched again. Everything here runs in the trio thread but for the disk. Not here: which nodes are missing
(`ledger.snapshot`), the blocks before the pivot (`history`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Literal

import trio

from fsdecloud.errors import FsdecloudError, MalformedError, PeerUnavailable, RemoteTimeout, StoreError
from fsdecloud.ledger.blocks import block_id, decode_header
from fsdecloud.ledger.chain import Point, check_header
from fsdecloud.ledger.headers import Branch
from fsdecloud.ledger.snapshot import TreeWalk, WrongNode, choose_pivot, match_nodes
from fsdecloud.ledgerd.conduct import FALSE_CLAIM, Misbehaviour
from fsdecloud.ledgerd.keeper import Keeper
from fsdecloud.ledgerd.session import Session
from fsdecloud.net.nursery import open_background
from fsdecloud.store.chain import ChainStore
from fsdecloud.store.snapshot import SnapshotStore
from fsdecloud.types import BlockId
from fsdecloud.wire import gossip
from fsdecloud.wire.ledgerapi import SnapshotProgress

if TYPE_CHECKING:
    from fsdecloud.ledgerd.sync import Syncer

log = logging.getLogger(__name__)

NODES_AT_ONCE: Final = 96
"""Nodes asked for in one question: about as many as fit one answer."""

IN_FLIGHT: Final = 2
"""Questions that one session is asked at once: the next is on its way while the last answer is unpacked."""

ABSENT: Final = 10.0
"""Points for a state that should be at hand and is not: whoever came by a later snapshot has it not either, and once is no
fault."""

LOG_EVERY: Final = 10_000
"""Nodes between two lines in the log."""


def prepare_snapshot(store: ChainStore, wanted: bool | None) -> None:
    """Let a chain that has no blocks yet begin with a state from others, if that is wanted, or with none, if not; None: as it
    was. Nothing changes for a chain that has blocks. Raises StoreError.
    """
    if store.tip().height:
        if wanted and store.snapshot() is None:
            log.info("there is a chain of %d blocks already: no snapshot is needed", store.tip().height)
    elif wanted:
        SnapshotStore(store).start()
    elif wanted is False:
        SnapshotStore(store).drop()


def read_progress(store: ChainStore, snapshot: SnapshotSync | None) -> SnapshotProgress | None:
    """Return how far a chain has come whose state is, or was, fetched from others; None for any other."""
    mark = store.snapshot()
    if mark is None:
        return None
    if not mark.pivot:
        if snapshot is not None and snapshot.walk is not None:
            return SnapshotProgress("state", snapshot.pivot, snapshot.walk.count, 0)
        point = store.point(mark.header)
        return SnapshotProgress("headers", 0, 0 if point is None else point.height, 0)
    if mark.fault:
        return SnapshotProgress("fault", mark.pivot, mark.verified, mark.pivot)
    if not mark.is_complete:
        return SnapshotProgress("history", mark.pivot, mark.pivot + 1 - store.first_body(), mark.pivot)
    stage: Literal["execute", "verified"] = "execute" if mark.verified < mark.pivot else "verified"
    return SnapshotProgress(stage, mark.pivot, mark.verified, mark.pivot)


class SnapshotSync:
    """Takes a state from the sessions of one syncer."""

    def __init__(self, keeper: Keeper, syncer: Syncer) -> None:
        self._keeper = keeper
        self._syncer = syncer
        self._store = SnapshotStore(keeper.store)
        self.pivot = 0
        """Height of the block whose state is being fetched; 0: none yet."""
        self.walk: TreeWalk | None = None
        """The state that is being fetched."""
        self.asked = 0
        """Questions for nodes sent."""
        self._root = b""
        self._lacking: set[Session] = set()
        """Who does not give the state with this root."""

    @property
    def is_wanted(self) -> bool:
        """Whether the state is still to come from others."""
        return self._keeper.needs_snapshot

    def locator(self) -> tuple[BlockId, ...]:
        """Return the ids after which headers are asked for."""
        genesis, mark = self._keeper.tip.id, self._keeper.store.snapshot()
        return (genesis,) if mark is None or mark.header == genesis else (mark.header, genesis)

    async def take(self, session: Session, branch: Branch, claimed: bytes) -> bool:
        """Begin with the state that a checked branch has at its pivot; without one, when the branch is short. Return False when
        nobody gives it, or the branch has less than the claimed work: what is not executed has to be the best there is.

        Raises Misbehaviour when that state cannot be one, InvalidBlock, StoreError, RemoteTimeout or PeerUnavailable.
        """
        assert branch.fork is not None
        assert branch.last is not None
        session.height = max(session.height, branch.last.height)
        if branch.work < claimed and not (branch.is_full or branch.is_held):
            session.misbehave(FALSE_CLAIM, "it claims more work than its headers prove")
            return False
        height = choose_pivot(branch.last.height, self._keeper.document.finality_depth)
        if height is None:
            log.info("a chain of %d blocks needs no snapshot: all of it is fetched", branch.last.height)
            await trio.to_thread.run_sync(self._store.drop)
            self._keeper.needs_snapshot = False
            return True
        pivot = await self._store_headers(session, branch, height)
        if pivot is None or branch.is_full:  # the tip is further on, and nobody keeps states so far below it
            return pivot is not None
        return await self._take_state(pivot)

    async def _take_state(self, pivot: Point) -> bool:
        """Fetch the state at the pivot and begin there."""
        log.info("fetching the state at block %d", pivot.height)
        self.pivot = pivot.height
        walk = self.walk = TreeWalk(pivot.state_root)
        if self._root != pivot.state_root:
            self._root, self._lacking = pivot.state_root, set()
        fetch = NodeFetch(self._syncer, self._store, walk, pivot.height, self._lacking)
        try:
            is_whole = await fetch.run()
        except MalformedError as exc:
            reason = f"the state at block {pivot.height} is none that the rules can make: {exc}"
            await trio.to_thread.run_sync(self._forget, pivot, reason)
            raise Misbehaviour(reason) from exc
        finally:
            self.asked += fetch.asked
            self.walk = None
        if is_whole:
            await self._keeper.begin_at(pivot)
            log.info(
                "the state at block %d is here (%d nodes, %d questions); the blocks before it follow in the background",
                pivot.height,
                walk.count,
                fetch.asked,
            )
        return is_whole

    def _forget(self, pivot: Point, reason: str) -> None:
        """Never follow a chain with this block. Worker thread."""
        self._keeper.store.mark_invalid(pivot.id, reason)
        self._store.drop()
        self._store.start()

    async def _store_headers(self, session: Session, branch: Branch, height: int) -> Point | None:
        """Store the branch's headers up to a height and return the last one's point; None when the session does not give them
        again."""
        assert branch.fork is not None
        point = branch.fork
        while point.height > height:  # more was stored for an earlier pivot
            parent = self._keeper.store.point(point.parent)
            assert parent is not None
            point = parent
        while point.height < height:
            answer = await session.ask(gossip.GetHeaders((point.id,)), gossip.Headers)
            batch = answer.headers[: height - point.height]
            done = point.height - branch.fork.height
            if not batch or any(block_id(decode_header(h)) != branch.id_at(done + i) for i, h in enumerate(batch)):
                return None
            point = await trio.to_thread.run_sync(self._add_headers, point, batch)
        return point

    def _add_headers(self, point: Point, headers: Sequence[bytes]) -> Point:
        """Check headers once more, as their points follow from that, and store them. Worker thread."""
        found: list[tuple[Point, bytes]] = []
        for data in headers:
            point = check_header(self._keeper.document, point, decode_header(data), None)
            found.append((point, data))
        self._store.add_headers(found)
        return point


class NodeFetch:
    """Fetches the nodes of one state tree that are not stored yet. Used once."""

    def __init__(
        self, syncer: Syncer, store: SnapshotStore, walk: TreeWalk, height: int, lacking: set[Session]
    ) -> None:
        """`height` is that of the block whose state it is, `lacking` is who does not give it, and is added to."""
        self._syncer = syncer
        self._store = store
        self._walk = walk
        self._height = height
        self._lacking = lacking
        self._changed = trio.Event()
        self._error: FsdecloudError | None = None
        self._logged = 0
        self.asked = 0
        """Questions sent."""

    async def run(self) -> bool:
        """Fetch and store all that is missing; return False when nobody gives it.

        Raises MalformedError when the tree is none that the rules can make, StoreError.
        """
        async with open_background() as nursery:
            nursery.start_soon(self._hire, nursery)
            while not self._walk.is_done:
                changed = self._changed
                if self._error is not None:
                    raise self._error
                if not any(self._may_have(session) for session in self._syncer.sessions()):
                    log.info("nobody gives the state at block %d", self._height)
                    return False
                await changed.wait()
        return True

    def _may_have(self, session: Session) -> bool:
        return (
            session not in self._lacking
            and session.is_full
            and not session.is_ending
            and session.height >= self._height
        )

    async def _hire(self, nursery: trio.Nursery) -> None:
        """Let every session fetch, those that come later too."""
        known: set[Session] = set()
        while True:
            changed = self._syncer.changed()
            present = {session for session in self._syncer.sessions() if session in known or self._may_have(session)}
            for session in present - known:
                for _ in range(IN_FLIGHT):
                    nursery.start_soon(self._fetch, session)
            known = present
            self._wake()  # somebody has gone
            await changed.wait()

    async def _fetch(self, session: Session) -> None:
        """Fetch batch after batch from one session, until it fails or has no more."""
        while self._may_have(session) and self._error is None:
            left = dict.fromkeys(self._walk.take(NODES_AT_ONCE))
            if not left:
                await self._changed.wait()
                continue
            try:
                await self._put(left, await trio.to_thread.run_sync(self._store.nodes, tuple(left)))
                if left:
                    await self._ask(session, left)
            except (PeerUnavailable, RemoteTimeout, Misbehaviour) as exc:
                session.fail(exc)
                self._lacking.add(session)
            except (MalformedError, StoreError) as exc:
                self._error = exc
            finally:
                self._walk.give_back(left)
                self._wake()

    async def _ask(self, session: Session, left: dict[bytes, None]) -> None:
        """Ask a session for nodes, store those that come and take them out of `left`."""
        self.asked += 1
        answer = await session.ask(gossip.GetNodes(tuple(left)), gossip.Nodes)
        try:
            found = match_nodes(left, answer.nodes)
        except WrongNode as exc:
            raise Misbehaviour(f"it sent {exc}") from exc
        if not found:
            log.info("%s does not give the state at block %d", session.remote, self._height)
            self._lacking.add(session)
            session.misbehave(ABSENT, "it does not give the nodes of a state that it should have")
            return
        await trio.to_thread.run_sync(self._store.add_nodes, found)
        await self._put(left, found)
        if self._walk.count - self._logged >= LOG_EVERY:
            self._logged = self._walk.count
            log.info("%d nodes of the state at block %d are here", self._walk.count, self._height)

    async def _put(self, left: dict[bytes, None], found: dict[bytes, bytes]) -> None:
        """Take nodes that are stored. One that the disk has changed is fetched again."""
        for ref, data in found.items():
            try:
                self._walk.put(ref, data)
            except WrongNode:
                continue
            del left[ref]
            self._wake()
            await trio.lowlevel.checkpoint()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
