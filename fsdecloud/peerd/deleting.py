"""How a peer lets go of shards: the grants it takes, the grace period, and the disk space afterwards.

Called only from the trio thread; the store changes in the writer's. A grant is good if the key signed it that the deal
showed with its first shard (`wire.grants`), once, and not too many of them at once. Then the deal's claims are gone;
shards without any are removed after the grace period, and segments that are mostly dead are compacted, a step at a time
with pauses, so that Puts and Gets go on beside it. An idle peer sleeps. What a deal still names is kept all the same, until
it no longer does: the peer has to prove it.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from functools import partial
from typing import Final

import trio

from fsdecloud.errors import MalformedError, SealError, StoreError
from fsdecloud.peerd.writer import ShardWriter
from fsdecloud.store.shardrows import Deletion, Keeps, keeps_nothing
from fsdecloud.store.shards import ShardStore
from fsdecloud.types import PeerId, ShardId
from fsdecloud.wire import peer as wire
from fsdecloud.wire.grants import verify_grant

log = logging.getLogger(__name__)

RATE: Final = 4.0
BURST: Final = 32.0
"""Grants a second that one deal may have examined, and how many at once: each costs a signature's check and a durable
transaction of up to GRANT_SHARDS_MAX rows."""

DEALS_KEPT: Final = 1024
"""Deals whose rate is remembered."""

PAUSE: Final = 0.1
"""Seconds between two steps of compaction (COMPACT_STEP bytes each): at most 40 MiB a second."""

LOOK_AGAIN: Final = 3600.0
"""Longest sleep: the wall clock that grace periods are measured by may be set."""

RETRY: Final = 60.0
"""Seconds until the next try after the store failed."""


class Deleter:
    """All deletions of one peer. `run` in a nursery."""

    def __init__(
        self,
        *,
        store: ShardStore,
        writer: ShardWriter,
        peer: PeerId,
        network: bytes,
        grace: int,
        keeps: Keeps = keeps_nothing,
    ) -> None:
        """`grace` in seconds; nothing that `keeps` names is let go of."""
        self._store = store
        self._writer = writer
        self._peer = peer
        self._network = network
        self._grace = grace
        self._keeps = keeps
        self._rates: OrderedDict[bytes, tuple[float, float]] = OrderedDict()
        self._wake = trio.Event()
        self.dropped_shards = 0
        """Claims dropped, shards removed, grants refused since the start."""
        self.removed_shards = 0
        self.refused_grants = 0

    async def delete(self, request: wire.Delete, deal: bytes) -> wire.DeleteDone | wire.Error:
        """Answer a Delete of a client that has proved the deal's key (b"": none)."""
        if not deal:
            return self._refused(request, "no deal key was shown")
        if not self._may(deal):
            return wire.Error(request.request, "busy", "too many deletions at once")
        now = int(time.time())
        try:
            owner = self._store.owner(deal)
            grant = verify_grant(request.grant, network=self._network, peer=self._peer, deal=deal, owner=owner, now=now)
            shards = [ShardId(shard) for shard in grant.shards]
            deletion = Deletion(deal, grant.nonce, grant.not_before, grant.expires, shards)
            reasons = await self._writer.call(partial(self._store.delete_many, deletion, now=now, keeps=self._keeps))
        except (SealError, MalformedError) as exc:
            return self._refused(request, str(exc))
        except StoreError as exc:
            log.error("cannot delete: %s", exc)
            return wire.Error(request.request, "failed", "this peer's disk failed")
        self.dropped_shards += reasons.count("")
        self._wake.set()
        kept = tuple(wire.Refusal(shard, why) for shard, why in zip(shards, reasons, strict=True) if why)
        return wire.DeleteDone(request.request, kept)

    def _refused(self, request: wire.Delete, why: str) -> wire.Error:
        self.refused_grants += 1
        return wire.Error(request.request, "refused", why[: wire.TEXT_MAX])

    def _may(self, deal: bytes) -> bool:
        """Count a grant against the deal's rate; return whether it may be looked at."""
        now = trio.current_time()
        left, since = self._rates.pop(deal, (BURST, now))
        left = min(BURST, left + (now - since) * RATE)
        self._rates[deal] = (max(left - 1, 0.0), now)
        if len(self._rates) > DEALS_KEPT:
            self._rates.popitem(last=False)
        return left >= 1

    def poke(self) -> None:
        """There is something to give back to the disk."""
        self._wake.set()

    async def run(self) -> None:
        """Remove what is due and give its space back, until cancelled."""
        while True:
            self._wake = trio.Event()
            try:
                await self._remove_due()
                await self._compact()
                pause = self._until_due()
            except StoreError as exc:
                log.warning("cannot free space now: %s", exc)
                pause = RETRY
            with trio.move_on_after(pause):
                await self._wake.wait()

    async def _remove_due(self) -> None:
        now = int(time.time())
        before = now - self._grace + 1
        again = now + max(int(LOOK_AGAIN) - self._grace, 1)  # what is named is not looked at every second
        while (first := self._store.next_doomed()) is not None and first < before:
            reap = partial(self._store.reap, before, keeps=self._keeps, again=again)
            self.removed_shards += await self._writer.call(reap)

    async def _compact(self) -> None:
        before = self._store.used_bytes
        while await self._writer.call(self._store.compact):  # noqa: ASYNC110 - a pause between steps, not a wait
            await trio.sleep(PAUSE)
        if self._store.used_bytes < before:
            log.info("gave %d bytes back to the disk", before - self._store.used_bytes)

    def _until_due(self) -> float:
        first = self._store.next_doomed()
        return LOOK_AGAIN if first is None else min(max(first + self._grace - time.time(), 0.0) + 0.05, LOOK_AGAIN)
