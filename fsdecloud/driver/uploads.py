"""Staged entries on their way to the peers: hand them to the agent, believe its receipts, let go of what is safe.

The driver trusts the agent with nothing it can check: a blob counts as stored when receipts signed by n distinct peers,
under the deals of this volume, cover its shards. Only then does a staged segment become part of the cache.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import trio

from fsdecloud.crypto import sign
from fsdecloud.crypto.keys import deal_seed
from fsdecloud.driver.agentlink import AgentLink
from fsdecloud.driver.entries import Entries
from fsdecloud.errors import FsdecloudError, MalformedError, SealError, StoreError
from fsdecloud.limits import MIB
from fsdecloud.store.segments import Location
from fsdecloud.swarm.policy import anchorable
from fsdecloud.types import EntryId, PeerId, ShardId
from fsdecloud.wire.agentapi import Empty, StagedEntry, Stored, StoreEntries
from fsdecloud.wire.receipts import Receipt, check_term, verify_receipt

log = logging.getLogger(__name__)

BATCH: Final = 512
"""Entries of one `store` call: about 50 KiB."""

_RECEIPTS_KEPT: Final = 1024
"""Verified receipts remembered: one covers shards of many blobs."""

_DEALS_KEPT: Final = 4096
"""Deal keys remembered: the agent says which peers there are."""

QUIET: Final = 0.3
"""Seconds without a write after which staged entries go to the agent: coding and sending them takes the cores that a
running copy needs."""

QUIET_MAX: Final = 3.0
"""Seconds after which they go however busy the writers are."""

_RELEASE_DELAY: Final = 0.2
_SEGMENT_WORTH: Final = 4 * MIB
"""Staged bytes that make a cache segment of their own: fewer wait for more, so that a trickle does not make many files."""

_RETRY: Final = 1.0


class Uploads:
    """The queue to the agent and the judge of receipts."""

    def __init__(
        self, entries: Entries, deal_secret: bytes, changed: Callable[[], None], last_write: Callable[[], float]
    ) -> None:
        """`last_write` tells when a program last wrote (monotonic seconds)."""
        self._entries = entries
        self._deal_secret = deal_secret
        self._changed = changed
        self._queue: list[tuple[EntryId, Location]] = []
        self._wake = trio.Event()
        self._last_write = last_write
        self._oldest = 0.0
        self._hurry_mark = 0
        self._hurried = trio.Event()
        self._release = trio.Event()
        self._roll = False
        self._releasing = trio.Lock()
        self._receipts: OrderedDict[bytes, Receipt] = OrderedDict()
        self._deals: dict[PeerId, bytes] = {}
        self.k = 0
        self.n = 0
        """Redundancy of the last blob reported."""
        self.last_error = ""

    def add(self, staged: list[tuple[EntryId, Location]]) -> None:
        """Queue entries that became durable."""
        if not self._queue:
            self._oldest = time.monotonic()
        self._queue += staged
        self._wake.set()

    def hurry(self) -> None:
        """Somebody waits for the peers: send what is staged by now without waiting for writers to pause."""
        self._hurry_mark = self._entries.order
        self._hurried.set()

    def start_over(self) -> None:
        """A new agent: it gets everything that is not stored yet."""
        self._queue = list(self._entries.staged.items())
        self._wake.set()

    async def run(self, agent: AgentLink) -> None:
        """Feed the agent until cancelled."""
        while True:
            while not self._queue:
                self._wake = trio.Event()
                await self._wake.wait()
            hurried = await self._wait_quiet()
            batch = self._queue[:BATCH]
            message = StoreEntries(tuple(StagedEntry(entry, *_place(location)) for entry, location in batch))
            queue = self._queue
            try:
                await agent.call("store", message, Empty)
            except FsdecloudError as exc:
                self.last_error = str(exc)
                await trio.sleep(_RETRY)
                continue
            if self._queue is queue:  # else a new agent gets everything again
                del queue[: len(batch)]
            if hurried and not self._queue:
                await self._flush(agent)

    async def _flush(self, agent: AgentLink) -> None:
        """Have the agent close its open pack: nobody who waits waits for more small entries."""
        try:
            await agent.call("flush", Empty(), Empty)
        except FsdecloudError as exc:
            self.last_error = str(exc)

    async def _wait_quiet(self) -> bool:
        """Let programs that write go first, for a bounded time; return whether somebody waits for the peers."""
        while True:
            if self._entries.incomplete.get(self._queue[0][0], 0) <= self._hurry_mark:
                return True
            pause = min(self._last_write() + QUIET, self._oldest + QUIET_MAX) - time.monotonic()
            if pause <= 0:
                return False
            self._hurried = trio.Event()
            with trio.move_on_after(pause):
                await self._hurried.wait()

    # ---- receipts ------------------------------------------------------------------------------------------------
    def take_stored(self, notice: Stored) -> None:
        """Judge a notice of the agent. Called in its reader: never blocks, never raises."""
        try:
            level = self._level(notice)
        except (MalformedError, SealError) as exc:
            self.last_error = f"a receipt does not verify: {exc}"
            log.error("%s", self.last_error)
            return
        self.k, self.n = notice.k, notice.n
        if level >= notice.n:
            self._entries.mark_complete(notice.entries)
            self._release.set()
        elif level >= anchorable(notice.k, notice.n):
            self._entries.mark_anchorable(notice.entries)
        self._changed()

    def _level(self, notice: Stored) -> int:
        """Return how many distinct peers hold distinct shards of the blob, by valid receipts."""
        if not 1 <= notice.k <= notice.n <= 255 or len(notice.shards) != notice.n:
            raise MalformedError(f"a blob of {len(notice.shards)} shards, {notice.k} of {notice.n}")
        wanted = set(notice.shards)
        holders: dict[PeerId, set[ShardId]] = {}
        for data in notice.receipts:
            receipt = self._verified(data)
            held = wanted.intersection(item.id for item in receipt.shards)
            if held:
                holders.setdefault(receipt.peer, set()).update(held)
        if notice.k == 1:
            return len(holders)
        covered = set().union(*holders.values()) if holders else set()
        return min(len(holders), len(covered))

    def _verified(self, data: bytes) -> Receipt:
        receipt = self._receipts.get(data)
        if receipt is not None:
            return receipt
        receipt = verify_receipt(data)
        deal = self._deals.get(receipt.peer)
        if deal is None:
            if len(self._deals) >= _DEALS_KEPT:
                self._deals.clear()
            deal = self._deals[receipt.peer] = sign.public_key(deal_seed(self._deal_secret, receipt.peer))
        if receipt.deal != deal:
            raise SealError("a receipt for another deal")
        check_term(receipt, time.time())
        self._receipts[data] = receipt
        if len(self._receipts) > _RECEIPTS_KEPT:
            self._receipts.popitem(last=False)
        return receipt

    # ---- letting go ------------------------------------------------------------------------------------------------
    def roll_when_stored(self) -> None:
        """Let the current staged segment leave the staging area too, as soon as all in it is stored."""
        self._roll = True
        self._release.set()

    async def let_go(self) -> None:
        """Hand all that is stored to the cache now, of the current segment as soon as all in it is stored."""
        self._roll = True
        await self.release()

    async def run_release(self) -> None:
        """Hand finished segments to the cache until cancelled."""
        self._release.set()  # a run before this one may have ended in the middle
        while True:
            await self._release.wait()
            await trio.sleep(_RELEASE_DELAY)
            self._release = trio.Event()
            try:
                await self.release()
            except StoreError as exc:
                self.last_error = str(exc)
                log.warning("a stored segment stays in the staging area: %s", exc)

    async def release(self) -> None:
        """Hand finished segments to the cache. The current one is ended first if it is wanted out, or worth a file."""
        async with self._releasing:  # the task that does this now and then, and the end of the mount
            await self._release_finished()

    async def _release_finished(self) -> None:
        entries = self._entries
        if not entries.incomplete and entries.staged and (self._roll or entries.staged_bytes >= _SEGMENT_WORTH):
            entries.segments.roll()
            self._roll = False
        for number in entries.finished_segments():
            await trio.to_thread.run_sync(self._adopt, number)
            # The cache has the entries now; only then may readers stop finding them in the staging area.
            entries.release(number)
            entries.segments.forget(number)
            entries.segments.remove(number)
            entries.wake_cache_writer()
            self._changed()

    def _adopt(self, number: int) -> None:
        """Give the cache a staged segment. Worker thread.

        Where the cache is another disk, or the file is gone, the entries just leave the staging area: peers have them.
        """
        entries = self._entries
        path = entries.segments.path(number)
        try:
            entries.cache.adopt(path, entries.segment_entries(number))
        except (OSError, StoreError) as exc:
            log.info("segment %s is dropped, not cached: %s", path.name, exc)


def _place(location: Location) -> tuple[int, int, int]:
    return location.segment, location.offset, location.length
