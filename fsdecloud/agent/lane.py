"""The way to one peer: what waits to be stored there, sent in batches.

Called only from the trio thread. Shards that wait together travel as one message under one receipt. While
BATCHES_MAX are under way more of them gather: batches grow with the load and cost no latency without it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from fsdecloud import codec
from fsdecloud.agent.peers import PeerBook
from fsdecloud.errors import FsdecloudError, ProtocolError, RemoteError
from fsdecloud.limits import BLOB_MAX, MIB
from fsdecloud.types import BlobId, PeerId, ShardId
from fsdecloud.wire.peer import PUT_BYTES_MAX

BATCH_BYTES: Final = 3 * MIB // 2
"""A batch is closed when the next shard would pass this: three shards of a MiB at 2/6, and well within one message."""

BATCH_SHARDS: Final = 64
"""Shards under one receipt: keeps it under 3 KiB."""

BATCHES_MAX: Final = 3
"""Batches under way to one peer: one that arrives, one that its disk syncs, one whose answer is on its way."""

assert BLOB_MAX <= BATCH_BYTES <= PUT_BYTES_MAX, "any shard fits into a batch, any batch into a message"


@dataclass(frozen=True, slots=True)
class Item:
    """One shard to store."""

    blob: BlobId
    index: int
    shard: ShardId
    data: bytes | memoryview


class Outcome(Protocol):
    """Who is told how a batch ended. Both are synchronous; `covered` are the shards that the receipt names."""

    def batch_stored(self, peer: PeerId, items: Sequence[Item], covered: frozenset[ShardId], receipt: bytes) -> None:
        """The peer signed for `covered`."""

    def batch_failed(self, peer: PeerId, items: Sequence[Item], error: FsdecloudError) -> None:
        """Nothing of the batch is stored, as far as is known."""


class Lane:
    """The queue of one peer. `run` serves it."""

    def __init__(self, peer: PeerId, book: PeerBook, outcome: Outcome) -> None:
        self._peer = peer
        self._book = book
        self._outcome = outcome
        self._queue: deque[Item] = deque()
        self._under_way = 0
        self._wake = trio.Event()

    def push(self, item: Item) -> None:
        """Queue a shard."""
        self._queue.append(item)
        self._wake.set()

    async def run(self) -> None:
        """Send until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                while not self._queue or self._under_way >= BATCHES_MAX:
                    self._wake = trio.Event()
                    await self._wake.wait()
                self._under_way += 1
                nursery.start_soon(self._send, self._take())
                # Whatever else is ready to be queued may join the next batch.
                await trio.lowlevel.checkpoint()

    def _take(self) -> list[Item]:
        """Take the next batch off the queue."""
        batch = [self._queue.popleft()]
        size = len(batch[0].data)
        while self._queue and len(batch) < BATCH_SHARDS and size + len(self._queue[0].data) <= BATCH_BYTES:
            size += len(self._queue[0].data)
            batch.append(self._queue.popleft())
        return batch

    async def _send(self, batch: list[Item]) -> None:
        shards = list({item.shard: item.data for item in batch}.items())
        try:
            receipt = await self._book.put(self._peer, shards)
        except (RemoteError, ProtocolError) as exc:
            self._outcome.batch_failed(self._peer, batch, exc)
        else:
            covered = frozenset(item.id for item in receipt.shards)
            self._outcome.batch_stored(self._peer, batch, covered, codec.encode(receipt))
        finally:
            self._under_way -= 1
            self._wake.set()
