"""The way to one peer: what waits to be stored there, sent in batches.

Called only from the trio thread. Shards that wait together travel as one message under one receipt, the oldest blob's first.
While BATCHES_MAX are under way more of them gather: batches grow with the load and cost no latency without it. How many bytes
are under way follows from what the peer takes (`swarm.window`); how many may wait here, from how fast that is: one slow peer
holds up a few of its own shards, and never the memory that all others need.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from fsdecloud import codec
from fsdecloud.agent.peers import PeerBook
from fsdecloud.errors import FsdecloudError, ProtocolError, RemoteError
from fsdecloud.limits import BLOB_MAX, KIB, MIB, WINDOW_BYTES
from fsdecloud.swarm.window import Window
from fsdecloud.types import BlobId, PeerId, ShardId
from fsdecloud.wire.peer import PUT_BYTES_MAX

BATCH_BYTES: Final = 3 * MIB // 2
"""A batch is closed when the next shard would pass this: three shards of a MiB at 2/6, and well within one message."""

BATCH_SHARDS: Final = 64
"""Shards under one receipt: keeps it under 3 KiB."""

BATCHES_MAX: Final = 1
"""Batches under way to one peer: one that its disk syncs, and one that arrives meanwhile. More only when they are full, and
the window has grown. With three the batches are smaller: 15 to 20 % more messages, receipts and syncs for the same shards."""

WINDOW: Final = (3 * BATCH_BYTES, 256 * KIB, WINDOW_BYTES)
"""Bytes under way to one peer at first, at least and at most."""

LANE_MIN: Final = 2 * BATCH_BYTES
LANE_MAX: Final = 16 * MIB
LANE_SECONDS: Final = 2.0
"""Bytes that may wait for one peer or be under way to it: what it takes in LANE_SECONDS, between these two."""

LIMITED_SECONDS: Final = 0.25
"""With a limit on sending a batch is no more than what may be sent in this time, so that the line is used evenly."""

EASY: Final = 0.25
"""A lane that was full and is filled less than this is not slow."""

assert BLOB_MAX <= BATCH_BYTES <= PUT_BYTES_MAX, "any shard fits into a batch, any batch into a message"


@dataclass(frozen=True, slots=True)
class Item:
    """One shard to store."""

    rank: tuple[bool, int]
    """Of its blob (`Blob.rank`): the lowest goes first."""
    blob: BlobId
    index: int
    shard: ShardId
    data: bytes | memoryview


class Outcome(Protocol):
    """Who is told how a batch ended. All are synchronous; `covered` are the shards that the receipt names."""

    def batch_stored(self, peer: PeerId, items: Sequence[Item], covered: frozenset[ShardId], receipt: bytes) -> None:
        """The peer signed for `covered`."""

    def batch_failed(self, peer: PeerId, items: Sequence[Item], error: FsdecloudError) -> None:
        """Nothing of the batch is stored, as far as is known."""

    def lane_moved(self, peer: PeerId) -> None:
        """There may be room in the peer's lane."""


class Lane:
    """The queue of one peer. `run` serves it."""

    def __init__(self, peer: PeerId, book: PeerBook, outcome: Outcome) -> None:
        self._peer = peer
        self._book = book
        self._outcome = outcome
        self._queue: list[tuple[tuple[bool, int], int, Item]] = []
        self._pushed = 0
        self._size = 0
        self._under_way = 0
        self._window = Window(*WINDOW)
        self._wake = trio.Event()
        self.full_since: float | None = None
        """Since when something had no room here; None again when there is room for a while."""

    @property
    def filling(self) -> float:
        """How full it is: 1 is full."""
        return self._size / self._capacity

    @property
    def room(self) -> float:
        """Bytes that may be pushed."""
        return self._capacity - self._size

    @property
    def _capacity(self) -> float:
        rate = self._window.rate
        return min(max(rate * LANE_SECONDS, LANE_MIN), LANE_MAX) if rate else LANE_MAX

    def has_room(self, size: int) -> bool:
        """Whether a shard of `size` bytes may be pushed; one may always be when nothing else is there."""
        if self._size == 0 or self._size + size <= self._capacity:
            return True
        if self.full_since is None:
            self.full_since = trio.current_time()
        return False

    def push(self, item: Item) -> None:
        """Queue a shard."""
        self._pushed += 1
        self._size += len(item.data)
        heapq.heappush(self._queue, (item.rank, self._pushed, item))
        self._wake.set()

    async def run(self) -> None:
        """Send until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                while not self._may_send():
                    self._wake = trio.Event()
                    await self._wake.wait()
                paid = 0
                if self._book.up.rate:
                    # What is oldest is decided when it may go: it may wait long for that.
                    paid = self._next_size()
                    await self._book.up.take(self._peer, paid)
                self._under_way += 1
                batch = self._take()
                self._book.up.charge(sum(len(item.data) for item in batch) - paid)  # more may have come meanwhile
                nursery.start_soon(self._send, batch)
                # Whatever else is ready to be queued may join the next batch.
                await trio.lowlevel.checkpoint()

    def _may_send(self) -> bool:
        if not self._queue:
            return False
        waiting = self._size - self._window.in_flight
        if self._under_way >= BATCHES_MAX and waiting < BATCH_BYTES:
            return False
        return self._window.fits(min(waiting, int(self._most())))

    def _most(self) -> float:
        """Return the bytes of a batch; it is larger when its first shard is."""
        limited = self._book.up.rate * LIMITED_SECONDS or BATCH_BYTES
        return min(BATCH_BYTES, self._window.size / 2, limited)

    def _next_size(self) -> int:
        """Return about how large the next batch will be."""
        waiting = self._size - self._window.in_flight
        return max(len(self._queue[0][2].data), min(waiting, int(self._most())))

    def _take(self) -> list[Item]:
        """Take the next batch off the queue, and its bytes from the window."""
        most = self._most()
        batch = [heapq.heappop(self._queue)[2]]
        size = len(batch[0].data)
        while self._queue and len(batch) < BATCH_SHARDS and size + len(self._queue[0][2].data) <= most:
            batch.append(heapq.heappop(self._queue)[2])
            size += len(batch[-1].data)
        self._window.sent(size, trio.current_time())
        return batch

    async def _send(self, batch: list[Item]) -> None:
        shards = list({item.shard: item.data for item in batch}.items())
        size = sum(len(item.data) for item in batch)
        failure: FsdecloudError | None = None
        covered: frozenset[ShardId] = frozenset()
        signed = b""
        try:
            start = trio.current_time()
            receipt = await self._book.put(self._peer, shards)
        except (RemoteError, ProtocolError) as exc:
            failure = exc
            self._window.failed(size)
        except trio.Cancelled:
            self._window.dropped(size)
            raise
        else:
            now = trio.current_time()
            self._window.answered(size, now - start, now)
            covered, signed = frozenset(item.id for item in receipt.shards), codec.encode(receipt)
        finally:
            self._under_way -= 1
            self._size -= size
            if self.filling < EASY:
                self.full_since = None
            self._wake.set()
        if failure is not None:
            self._outcome.batch_failed(self._peer, batch, failure)
        else:
            self._outcome.batch_stored(self._peer, batch, covered, signed)
        self._outcome.lane_moved(self._peer)
