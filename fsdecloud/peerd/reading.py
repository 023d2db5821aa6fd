"""How a peer reads its store for a client: at once what memory has, in a thread what the disk must be waited for.

A hop to a thread and back costs more than reading and sealing a small shard (measured: 150 to 400 microseconds of processor
against 20), so `at_once` answers from the page cache in the trio thread: the bytes by preadv2(2) with RWF_NOWAIT, which never
waits; their place by a look into LMDB's map, which may. Whether it did, the count of major page faults tells: the index is
then left to the threads for INDEX_PAUSE, so that a peer whose index is on a spinning disk and not in memory serves on.

Called only from the trio thread; `_get` and `has_many` run in worker threads.
"""

from __future__ import annotations

import logging
import resource
from typing import Final

import trio

from fsdecloud.errors import MalformedError, StoreError
from fsdecloud.limits import MESSAGE_MAX
from fsdecloud.peerd.scrubbing import Scrubber
from fsdecloud.store.shards import ShardStore
from fsdecloud.types import ShardId
from fsdecloud.wire import peer as wire

log = logging.getLogger(__name__)

READ_THREADS: Final = 4
"""Threads that read shards: enough to keep a disk busy."""

HAS_INLINE: Final = 256
"""Ids that are looked up in the trio thread: under a millisecond."""

INDEX_PAUSE: Final = 5.0
"""Seconds for which the index is read in threads only, after a look into it had to wait for the disk."""


class ShardReader:
    """Reads of one peer. `threads` limits those that wait for the disk."""

    def __init__(self, store: ShardStore, scrubber: Scrubber) -> None:
        self._store = store
        self._scrubber = scrubber
        self._buffer = memoryview(bytearray(MESSAGE_MAX))
        self._index_after = 0.0
        self.threads = trio.CapacityLimiter(READ_THREADS)
        self.hops = 0
        """Requests that needed a thread, since the start."""

    def at_once(self, request: wire.Get | wire.Has) -> wire.Data | wire.HasResult | None:
        """Answer from memory; None when that may take long, or the answer is an error: then `wait` gives it."""
        if trio.current_time() < self._index_after:
            return None
        faults = _major_faults()
        answer = self._from_memory(request)
        if _major_faults() > faults:
            self._index_after = trio.current_time() + INDEX_PAUSE
        return answer

    def _from_memory(self, request: wire.Get | wire.Has) -> wire.Data | wire.HasResult | None:
        try:
            if isinstance(request, wire.Get):
                view = self._store.get_cached(ShardId(request.shard), request.offset, request.length, self._buffer)
                return None if view is None else wire.Data(request.request, bytes(view))
            if len(request.ids) <= HAS_INLINE:
                return wire.HasResult(request.request, self._store.has_many(request.ids))
        except StoreError:
            pass  # the thread meets it again, and says so
        return None

    async def wait(self, request: wire.Get | wire.Has) -> wire.Data | wire.HasResult | wire.Error:
        """Answer in a thread."""
        self.hops += 1
        if isinstance(request, wire.Get):
            return await trio.to_thread.run_sync(self._get, request, limiter=self.threads)
        present = await trio.to_thread.run_sync(self._store.has_many, request.ids, limiter=self.threads)
        return wire.HasResult(request.request, present)

    def _get(self, request: wire.Get) -> wire.Data | wire.Error:
        try:
            data = self._store.get(ShardId(request.shard), request.offset, request.length)
        except KeyError:
            return wire.Error(request.request, "missing", "no such shard here")
        except MalformedError as exc:
            return wire.Error(request.request, "range", str(exc))
        except StoreError as exc:
            if self._store.locate(ShardId(request.shard)) is not None:  # else that is known, and was logged
                log.error("cannot read shard %s: %s", request.shard.hex(), exc)
                trio.from_thread.run_sync(self._scrubber.suspect, ShardId(request.shard))
            return wire.Error(request.request, "lost", "this peer has lost it")
        return wire.Data(request.request, data)


def _major_faults() -> int:
    """Return how often this thread had to wait for a page of a mapped file. Source: getrusage(2)."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_majflt
