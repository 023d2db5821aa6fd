"""How long a peer keeps what nobody asks for any more: its lease clock, renewals, and the end of leases.

A shard is kept for the term that its receipt says, then for a grace period in which it can still be read and renewed, then
it is removed; without the owner's word, since whoever forgot it, or lost the key, gives none (`store.shardleases`). What a deal
names is kept while it does: its leases begin anew when they end.

**Lease time.** No clock of the machine decides about that. Ends of leases are reckoned in seconds for which this peer ran: a
counter in its index that a monotonic clock advances while it serves. So a wall clock that jumps by years, in either
direction, or a machine that was switched off for as long, ends no lease early; time in which nobody could have asked this
peer for a renewal does not count. A crash sets it back by SAVE_INTERVAL at most: things are kept for longer then. What a
receipt says in wall time is therefore the earliest end.

Called only from the trio thread; the store changes in the writer's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import trio

from fsdecloud.errors import StoreError
from fsdecloud.peerd.writer import ShardWriter
from fsdecloud.store.shardrows import Keeps, keeps_nothing
from fsdecloud.store.shards import ShardStore
from fsdecloud.types import ShardId
from fsdecloud.wire.receipts import LEASE_TERM

log = logging.getLogger(__name__)

LEASE_GRACE: Final = 30 * 24 * 3600
"""Seconds after its term for which a shard is kept all the same: an owner who comes back late finds everything."""

TERM_MAX: Final = 10 * 365 * 24 * 3600

SAVE_INTERVAL: Final = 60.0
"""Lease time is written this often: what a crash adds to all leases."""

PAUSE: Final = 0.1
"""Seconds between two steps, of about 20 ms: Puts go on beside it."""

RETRY: Final = 60.0
"""Seconds until the next try after the store failed."""

_CLOCK: Final = b"lease_time"


class LeaseClock:
    """Seconds for which this peer ran, ever."""

    def __init__(self, store: ShardStore, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Go on where the last run saved it. Raises StoreError."""
        self._store = store
        self._monotonic = monotonic
        self._base = int.from_bytes(store.note(_CLOCK), "big") or 1
        self._started = monotonic()

    def now(self) -> int:
        """Return lease time."""
        return self._base + max(int(self._monotonic() - self._started), 0)

    def save(self) -> None:
        """Make it durable. The writer's thread. Raises StoreError."""
        self._store.set_note(_CLOCK, self.now().to_bytes(8, "big"))


class Leaser:
    """All leases of one peer. `run` in a nursery."""

    def __init__(
        self,
        *,
        store: ShardStore,
        writer: ShardWriter,
        term: int = LEASE_TERM,
        grace: int = LEASE_GRACE,
        freed: Callable[[], None] = lambda: None,
        keeps: Keeps = keeps_nothing,
    ) -> None:
        """`freed` is called when shards were removed; leases of what `keeps` names begin anew. Raises StoreError."""
        self._store = store
        self._writer = writer
        self._freed = freed
        self._keeps = keeps
        self.clock = LeaseClock(store)
        self.term = term
        self.grace = grace
        self.renewed_shards = 0
        """Terms begun anew, and shards removed because nobody did so, since the start."""
        self.expired_shards = 0

    def end(self) -> int:
        """Return when a lease that begins now ends, in lease time."""
        return self.clock.now() + self.term

    async def renew(self, deal: bytes, shards: Sequence[ShardId]) -> list[int]:
        """Begin a deal's terms anew; return each shard's length, 0 when it is not here or not the deal's. Raises StoreError."""
        lengths = await self._writer.call(partial(self._store.leases.renew, deal, shards, self.end()))
        self.renewed_shards += sum(length > 0 for length in lengths)
        return lengths

    def counts(self) -> tuple[int, int]:
        """Return how many shards have a lease that ends within an eighth of the term, and how many one that is over. Any
        thread."""
        now = self.clock.now()
        over, soon = self._store.leases.count_ends(now, now + self.term // 8)
        return soon - over, over

    async def run(self) -> None:
        """Keep lease time, and remove what is over, until cancelled."""
        while True:
            try:
                await self._writer.call(self.clock.save)
                while await self._writer.call(partial(self._store.leases.give_terms, self.end())):  # noqa: ASYNC110
                    await trio.sleep(PAUSE)
                await self._expire()
                pause = self._until_next()
            except StoreError as exc:
                log.warning("cannot look after leases now: %s", exc)
                pause = RETRY
            await trio.sleep(pause)

    async def _expire(self) -> None:
        before = self.clock.now() - self.grace
        while True:
            expire = partial(self._store.leases.expire, before, keeps=self._keeps, end=self.end())
            over, removed = await self._writer.call(expire)
            if not over:
                return
            self.expired_shards += removed
            if removed:
                log.info("removed %d shards whose leases nobody renewed", removed)
                self._freed()
            await trio.sleep(PAUSE)

    def _until_next(self) -> float:
        first = self._store.leases.next_end()
        if first is None:
            return SAVE_INTERVAL
        return min(max(first + self.grace + 1 - self.clock.now(), PAUSE), SAVE_INTERVAL)
