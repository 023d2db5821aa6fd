"""The bodies of checked headers, from all who have them, connected in their order.

Every session gets batches of FETCH_BATCH blocks, IN_FLIGHT of them at a time, at most WINDOW blocks ahead of the one that is
connected next: a fast line carries more of the chain, a slow one less. Whoever has nothing to do because all wait for one
batch, and that one is late, fetches it himself: a session that stalls costs STALL seconds once and not the sync. Memory is
bounded by the window and by READY_MAX bytes. Everything here runs in the trio thread. Not here: which branch (`sync`), and the
blocks before a snapshot (`history`).
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from fsdecloud.errors import InvalidBlock, PeerUnavailable, RemoteTimeout
from fsdecloud.ledger.blocks import claimed_id
from fsdecloud.ledger.headers import Branch, describe
from fsdecloud.ledger.reasons import BlockTooBig, BodyMismatch, MalformedBlock, ReorgTooDeep, TimeTooNew
from fsdecloud.ledgerd.conduct import Misbehaviour
from fsdecloud.ledgerd.keeper import Keeper
from fsdecloud.ledgerd.session import Session
from fsdecloud.limits import MIB
from fsdecloud.net.nursery import open_background
from fsdecloud.types import BlockId
from fsdecloud.wire import gossip

if TYPE_CHECKING:
    from fsdecloud.ledgerd.sync import Syncer

log = logging.getLogger(__name__)

FETCH_BATCH: Final = 32
"""Blocks asked for at once."""

IN_FLIGHT: Final = 2
"""Batches that one session is asked for at once: the next is on its way while the last is unpacked."""

WINDOW: Final = 1024
"""Blocks asked for ahead of the one that is connected next."""

READY_MAX: Final = 32 * MIB
"""Bytes of bodies that wait for their turn; past it only what is connected next is asked for."""

CONNECT_MAX: Final = 64
CONNECT_BYTES: Final = 4 * MIB
"""Blocks and bytes that are connected in one disk transaction: a sync for each block would cost more than checking it."""

STALL: Final = 5.0
"""Seconds after which a batch that all wait for is fetched by somebody else, too."""

STALLS_MAX: Final = 4
"""Times that a session may let all others wait for its blocks, in one branch, before it ends: a slow line, and no offence."""

BODY_FAULTS: Final = (BodyMismatch, MalformedBlock, BlockTooBig)
"""What is wrong with the bytes that somebody sent and not with the block that the header names: others may have it."""


@dataclass(slots=True)
class _Asked:
    """A batch on its way."""

    stop: int
    session: Session
    since: float


class BlockFetch(ABC):
    """Fetches blocks by id, in an order in which they are then connected. Used once."""

    def __init__(self, syncer: Syncer, count: int) -> None:
        """`count` is how many blocks."""
        self._syncer = syncer
        self._count = count
        self._next = 0
        """Index of the block that is connected next."""
        self._unasked = 0
        self._returned: list[tuple[int, int]] = []
        """Index ranges that were asked for and did not come."""
        self._asked: dict[int, _Asked] = {}
        self._ready: dict[int, tuple[bytes, Session]] = {}
        self._ready_bytes = 0
        self._lacking: set[Session] = set()
        self._stalls: Counter[Session] = Counter()
        self._changed = trio.Event()

    @abstractmethod
    def _id_at(self, index: int) -> BlockId:
        """Return the id of a block."""

    @abstractmethod
    def _height(self, index: int) -> int:
        """Return the height of a block."""

    @abstractmethod
    def _reach(self, session: Session) -> int:
        """Return the index of the first block that comes after those which a session may have."""

    @abstractmethod
    async def _connect(self) -> bool:
        """Connect what is ready; return False when it is not to go on."""

    async def run(self) -> bool:
        """Fetch and connect the blocks; return False when nobody can give them, or they cannot be connected.

        Raises StoreError.
        """
        async with open_background() as nursery:
            nursery.start_soon(self._hire, nursery)
            while self._next < self._count:
                if self._next in self._ready:
                    if not await self._connect():
                        return False
                elif not self._is_coming():
                    log.info("nobody gives block %d", self._height(self._next))
                    return False
                else:
                    await self._changed.wait()
        return True

    # ---- who fetches -----------------------------------------------------------------------------------------------
    async def _hire(self, nursery: trio.Nursery) -> None:
        """Let every session fetch, those that come later too."""
        known: set[Session] = set()
        while True:
            changed = self._syncer.changed()
            present = set(self._syncer.sessions())
            for session in present - known:
                for _ in range(IN_FLIGHT):
                    nursery.start_soon(self._fetch, session)
            known = present
            self._wake()  # somebody has gone, or has more than before
            await changed.wait()

    def _is_coming(self) -> bool:
        """Tell whether somebody may give the block that is connected next."""
        return any(self._has(session, self._next) for session in self._syncer.sessions())

    def _has(self, session: Session, index: int) -> bool:
        return session not in self._lacking and session.first <= self._height(index) <= session.height

    async def _fetch(self, session: Session) -> None:
        """Fetch batch after batch from one session, until it fails or has no more."""
        while session not in self._lacking:
            batch = self._take_batch(session)
            if batch is None:
                changed = self._changed
                with trio.move_on_at(self._late_at(session)):
                    await changed.wait()
                continue
            start, stop = batch
            asked = self._asked[start] = _Asked(stop, session, trio.current_time())
            try:
                ids = tuple(self._id_at(index) for index in range(start, stop))
                answer = await session.ask(gossip.GetBlocks(ids), gossip.Blocks)
                self._put(session, start, stop, answer.blocks)
            except (PeerUnavailable, RemoteTimeout, Misbehaviour) as exc:
                session.fail(exc)
                self._lacking.add(session)
            finally:
                if self._asked.get(start) is asked:
                    del self._asked[start]
                    self._give_back(start, stop)
                self._wake()

    def _take_batch(self, session: Session) -> tuple[int, int] | None:
        """Return the range that a session should be asked for now."""
        for given in sorted(self._returned):
            start, stop = given
            while start < stop and (start < self._next or start in self._ready):  # it came after all
                start += 1
            if start == stop:
                self._returned.remove(given)
            elif self._has(session, start) and self._has_room(start):
                self._returned.remove(given)
                return start, self._clip(session, start, stop)
        start = self._unasked
        limit = min(self._count, self._next + WINDOW)
        if start < limit and self._has(session, start) and self._has_room(start):
            self._unasked = self._clip(session, start, min(start + FETCH_BATCH, limit))
            return start, self._unasked
        return self._take_over(session)

    def _clip(self, session: Session, start: int, stop: int) -> int:
        """Return where a range ends of which the session has only the beginning; the rest is given back."""
        end = min(stop, self._reach(session))
        if start < end < stop and stop <= self._unasked:
            self._returned.append((end, stop))
        return end

    def _has_room(self, start: int) -> bool:
        return self._ready_bytes + len(self._asked) * 2 * MIB < READY_MAX or start <= self._next

    def _take_over(self, session: Session) -> tuple[int, int] | None:
        """Return the batch that all wait for, if it is late and another session's."""
        awaited = self._awaited(session)
        if awaited is None or trio.current_time() < awaited[1].since + STALL:
            return None
        start, asked = awaited
        log.info("%s is slow; block %d is asked elsewhere", asked.session.remote, self._height(start))
        self._stalls[asked.session] += 1
        if self._stalls[asked.session] >= STALLS_MAX:
            asked.session.fail(RemoteTimeout(f"{asked.session.remote} lets all others wait for its blocks"))
        return start, self._clip(session, start, asked.stop)

    def _late_at(self, session: Session) -> float:
        """Return when the session should look whether the batch that all wait for is late."""
        asked = self._awaited(session)
        return float("inf") if asked is None else asked[1].since + STALL

    def _awaited(self, session: Session) -> tuple[int, _Asked] | None:
        """Return the batch that all wait for, if another session was asked for it and this one may have it, too."""
        for start, asked in self._asked.items():
            if start <= self._next < asked.stop and self._next not in self._ready:
                is_other = asked.session is not session and self._has(session, self._next)
                return (start, asked) if is_other else None
        return None

    def _put(self, session: Session, start: int, stop: int, blocks: tuple[bytes, ...]) -> None:
        """Take the blocks of an answer. Raises Misbehaviour for one that was not asked for."""
        wanted = {self._id_at(index): index for index in range(start, stop)}
        for data in blocks:
            try:
                index = wanted.pop(claimed_id(data), None)
            except InvalidBlock as exc:
                raise Misbehaviour(f"it sent an invalid block: {describe(exc)}") from exc
            if index is None:
                raise Misbehaviour("another block than was asked for")
            if index >= self._next and index not in self._ready:
                self._ready[index] = (data, session)
                self._ready_bytes += len(data)
        if not blocks:
            self._lacking.add(session)

    def _give_back(self, start: int, stop: int) -> None:
        """Let what of a range did not come be asked for again."""
        begin: int | None = None
        for index in range(max(start, self._next), stop + 1):
            is_missing = index < stop and index not in self._ready
            if is_missing and begin is None:
                begin = index
            elif not is_missing and begin is not None:
                self._returned.append((begin, index))
                begin = None

    # ---- connecting ------------------------------------------------------------------------------------------------
    def _next_ready(self) -> tuple[list[bytes], list[Session]]:
        """Return the blocks to connect now, and who sent them."""
        blocks: list[bytes] = []
        senders: list[Session] = []
        size = 0
        while len(blocks) < CONNECT_MAX and size < CONNECT_BYTES:
            found = self._ready.get(self._next + len(blocks))
            if found is None:
                break
            blocks.append(found[0])
            senders.append(found[1])
            size += len(found[0])
        return blocks, senders

    def _advance(self, count: int) -> None:
        """Forget the next `count` blocks: they are connected."""
        for index in range(self._next, self._next + count):
            data, _ = self._ready.pop(index)
            self._ready_bytes -= len(data)
        self._next += count
        self._wake()

    def _refuse_body(self) -> None:
        """Let the next block be fetched from others: its body was false."""
        self._ready_bytes -= len(self._ready.pop(self._next)[0])
        self._give_back(self._next, self._next + 1)
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


class Download(BlockFetch):
    """Fetches and connects one branch."""

    def __init__(
        self, keeper: Keeper, syncer: Syncer, branch: Branch, source: Session, first: bytes | None = None
    ) -> None:
        """`source` gave the headers, and the first block if that is at hand."""
        super().__init__(syncer, len(branch))
        self._keeper = keeper
        self._branch = branch
        self._source = source
        assert branch.fork is not None
        assert branch.last is not None
        source.height = max(source.height, branch.last.height)
        self._first_height = branch.fork.height + 1
        if first is not None:
            self._ready[0] = first, source
            self._ready_bytes = len(first)
            self._unasked = 1

    def _id_at(self, index: int) -> BlockId:
        return self._branch.id_at(index)

    def _height(self, index: int) -> int:
        return self._first_height + index

    def _reach(self, session: Session) -> int:
        return session.height - self._first_height + 1

    async def _connect(self) -> bool:
        """Connect what is ready; return False when the branch is not to be followed."""
        blocks, senders = self._next_ready()
        connected = await self._keeper.accept_chain(blocks)
        for sender in senders[: connected.count]:
            sender.last_block = trio.current_time()
        self._advance(connected.count)
        return connected.error is None or self._blame(senders[connected.count], connected.error)

    def _blame(self, sender: Session, error: InvalidBlock) -> bool:
        """Deal with a block that was not accepted; return whether to go on."""
        if isinstance(error, TimeTooNew):  # our clock went back
            return False
        if isinstance(error, ReorgTooDeep):
            self._keeper.raise_alarm(str(error))
            return False
        height = self._height(self._next)
        reason = Misbehaviour(f"it sent an invalid block {height}: {describe(error)}")
        sender.fail(reason)
        self._lacking.add(sender)
        if isinstance(error, BODY_FAULTS):
            self._refuse_body()
            return True
        self._source.fail(reason)
        return False
