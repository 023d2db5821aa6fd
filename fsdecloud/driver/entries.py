"""Where the bytes of an entry come from, and where new ones go.

A new entry is sealed and appended to a staged segment; the journal makes that durable; the agent stores it on peers;
when all n receipts are there, its segment can become part of the cache. Reading looks into the staged segments, then into
the cache, then asks the agent. Everything read locally authenticates under the key of its reference; what the agent
brings is checked against the id before it enters the cache.

Runs in the event loop but for the appends and `_open_local`, which run in worker threads and touch only
thread-safe stores and single dictionary look-ups.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, NoReturn

import trio

from fsdecloud import limits
from fsdecloud.crypto.seal import Kind, entry_id, open_entry, open_into, seal, seal_into
from fsdecloud.driver.agentlink import AgentLink
from fsdecloud.driver.plaincache import Plain
from fsdecloud.errors import (
    BlobCorrupt,
    FsdecloudError,
    MalformedError,
    RemoteError,
    RemoteTimeout,
    SealError,
    StoreError,
    StoreFull,
)
from fsdecloud.store.cache import FETCHED, CacheStore
from fsdecloud.store.segments import Location, SegmentStore
from fsdecloud.types import EntryId, Ref
from fsdecloud.wire.agentapi import FetchedEntry, FetchEntry

log = logging.getLogger(__name__)

_ALONE: Final = 64 * limits.KIB
"""From this size on, an entry is sealed in its thread's buffer and written from there."""

_SYNC_BYTES: Final = 16 * limits.MIB
"""Appended bytes after which the disk gets to work, so that a later fsync has little left to wait for."""

_AGAIN: Final = 64
"""Entries copied at a time after a failed sync: at most 64 MiB in memory."""

_BULK: Final = frozenset((Kind.CHUNK, Kind.PATCH))
"""What a full disk refuses first: what describes it may use the reserve."""

_ASK_AGAIN: Final = 1.0
"""Seconds after which the agent is asked again for what it did not get in its time."""

_CACHE_FLUSH: Final = 256
"""Fetched entries that wait for the cache's index before they are written at once."""


class Entries:
    """Local and remote entries of one volume."""

    def __init__(
        self, secret: bytes, staged: SegmentStore, cache: CacheStore, agent: AgentLink, timeout: float
    ) -> None:
        self._secret = secret
        self.segments = staged
        self.cache = cache
        self._agent = agent
        self._timeout = timeout
        self.staged: dict[EntryId, Location] = {}
        """Every entry that peers do not hold completely yet."""
        self.staged_bytes = 0
        self.incomplete_bytes = 0
        self.unanchorable: OrderedDict[EntryId, int] = OrderedDict()
        """Staged entries without enough receipts for an anchor, in staging order."""
        self.incomplete: OrderedDict[EntryId, int] = OrderedDict()
        """Staged entries with fewer than n receipts, in staging order."""
        self.touched: set[EntryId] | None = None
        """Entries staged since a marking began; None while there is none."""
        self.order = 0
        """Grows with each staged entry: the marks of `wait_anchorable` and `wait_complete`."""
        self.stored_count = 0
        self.stored_bytes = 0
        """Entries that got all n receipts since the mount."""
        self.anchorable_count = 0
        self.anchorable_bytes = 0
        """Those that got enough receipts for an anchor."""
        self._left: dict[int, int] = {}
        self._segment_entries: dict[int, list[tuple[EntryId, Location]]] = {}
        self._unsynced = 0
        self._sync_wake = trio.Event()
        self._appending: dict[object, int] = {}
        self._new: list[tuple[EntryId, Location]] = []
        self._gone: list[EntryId] = []
        self._loading: dict[EntryId, _Flight] = {}
        self._slots = trio.CapacityLimiter(limits.NETWORK_WAITERS)
        self._progress = trio.Event()
        self._recent: dict[EntryId, bytes] = {}
        self._located: dict[EntryId, Location] = {}
        """Fetched entries in the agent's cache segments that the cache's index does not have yet."""
        self._cache_wake = trio.Event()
        self.integrity_errors = 0

    # ---- staging -------------------------------------------------------------------------------------------------
    async def stage(self, items: Sequence[tuple[Kind, bytes | memoryview]]) -> list[Ref]:
        """Seal entries and append them to the staged segments. Durable with the next group commit. Raises StoreError."""
        return await self._stage(self._seal_and_append, items)

    async def stage_sealed(self, items: Sequence[tuple[Ref, bytes | memoryview]]) -> list[Ref]:
        """Append entries that are sealed already (tree nodes, whose parents need their references at once)."""
        return await self._stage(self._append, items)

    async def _stage(self, work: Callable[[Any], list[tuple[Ref, Location | None]]], items: object) -> list[Ref]:
        # Until the result is noted here, no segment that the thread may write to can be let go.
        token = object()
        self._appending[token] = self.segments.current
        try:
            results = await trio.to_thread.run_sync(work, items)
            for ref, location in results:
                if location is not None:
                    self.add_staged(ref.id, location)
                elif self.touched is not None:  # staged already, but perhaps stored by the time a marking looks
                    self.touched.add(ref.id)
        finally:
            del self._appending[token]
        return [ref for ref, _location in results]

    def _append(self, items: Sequence[tuple[Ref, bytes | memoryview]]) -> list[tuple[Ref, Location | None]]:
        fresh = {ref.id: sealed for ref, sealed in items if ref.id not in self.staged}
        places = dict(zip(fresh, self.segments.append_many(list(fresh.values())), strict=True)) if fresh else {}
        return [(ref, places.pop(ref.id, None)) for ref, _sealed in items]

    def _seal_and_append(self, items: Sequence[tuple[Kind, bytes | memoryview]]) -> list[tuple[Ref, Location | None]]:
        """Seal entries and append those that are not staged already. Worker thread. Raises StoreFull."""
        if any(kind in _BULK for kind, _data in items):
            self._check_disk(sum(len(data) for _kind, data in items))
        results: list[tuple[Ref, Location | None]] = []
        small: list[tuple[Ref, bytes]] = []
        for kind, data in items:
            if len(data) < _ALONE:
                small.append(seal(self._secret, kind, data))
                continue
            results += self._append(small)
            small = []
            results += self._append([seal_into(self._secret, kind, data, _scratch.buffer)])
        return results + self._append(small)

    def _check_disk(self, size: int) -> None:
        """Raise StoreFull when data of this size would take the room of what must go on; the cache goes first. In a thread."""
        if self._free_bytes() >= size + limits.STAGE_RESERVE:
            return
        with suppress(StoreError):  # the cache writer, which keeps room free, was not fast enough
            self.cache.make_room()
        if self._free_bytes() < size + limits.STAGE_RESERVE:
            raise StoreFull(f"cannot stage data in {self.segments.directory}: {os.strerror(errno.ENOSPC)}")

    def _free_bytes(self) -> float:
        try:
            status = os.statvfs(self.segments.directory)
        except OSError:
            return math.inf  # appending says why
        return status.f_bavail * status.f_frsize

    def add_staged(self, entry: EntryId, location: Location, *, new: bool = True) -> None:
        """Note an appended entry; with `new`, the next group commit will index it."""
        if entry in self.staged:
            return
        if self.touched is not None:
            self.touched.add(entry)
        self.order += 1
        self.staged[entry] = location
        self.staged_bytes += location.length
        self.incomplete_bytes += location.length
        self._unsynced += location.length
        if self._unsynced >= _SYNC_BYTES:
            self._unsynced = 0
            self._sync_wake.set()
            self._cache_wake.set()  # what is staged takes the room of what is cached
        self.unanchorable[entry] = self.order
        self.incomplete[entry] = self.order
        self._left[location.segment] = self._left.get(location.segment, 0) + 1
        self._segment_entries.setdefault(location.segment, []).append((entry, location))
        if new:
            self._new.append((entry, location))

    @property
    def is_full(self) -> bool:
        """Whether as many entries are staged as memory may hold the places of."""
        return len(self.staged) > limits.STAGED_ENTRIES_MAX

    def take_new(self) -> list[tuple[EntryId, Location]]:
        """Return what the next group commit must index."""
        new, self._new = self._new, []
        return new

    def put_back(self, new: list[tuple[EntryId, Location]], gone: list[EntryId]) -> None:
        """Take back what a failed group commit did not index."""
        self._new[:0] = new
        self._gone[:0] = gone

    async def rescue(self, staged: list[tuple[EntryId, Location]]) -> list[tuple[EntryId, Location]]:
        """Append again those of `staged`, none of them indexed yet, that lie in segments of which a sync failed; return all
        with their places.

        The kernel may have dropped what it could not write, so each is read back and must have its id. Raises StoreError
        when the disk still fails or has lost one.
        """
        if self.segments.has_failed:
            self.segments.resume()
        moved = [(entry, place) for entry, place in staged if place.segment in self.segments.doubtful]
        if not moved:
            return staged
        places = await trio.to_thread.run_sync(self._append_again, moved)
        for (entry, old), new in zip(moved, places, strict=True):
            self._move(entry, old, new)
        return [(entry, self.staged[entry]) for entry, _old in staged if entry in self.staged]

    def _append_again(self, staged: Sequence[tuple[EntryId, Location]]) -> list[Location]:
        """Copy entries to the current segment, a group at a time. Worker thread."""
        places: list[Location] = []
        for start in range(0, len(staged), _AGAIN):
            group = [(entry, self.segments.read(place)) for entry, place in staged[start : start + _AGAIN]]
            for entry, sealed in group:
                if entry_id(sealed) != entry:
                    raise StoreError(f"the disk lost staged entry {entry.hex()[:16]} when a sync failed")
            places += self.segments.append_many([sealed for _entry, sealed in group])
        return places

    def _move(self, entry: EntryId, old: Location, new: Location) -> None:
        """Note an entry's new place. A segment that nothing is left in is deleted."""
        self.staged[entry] = new
        self._left[new.segment] = self._left.get(new.segment, 0) + 1
        self._segment_entries.setdefault(new.segment, []).append((entry, new))
        self._segment_entries[old.segment].remove((entry, old))
        self._left[old.segment] -= 1
        if not self._segment_entries[old.segment]:
            del self._segment_entries[old.segment], self._left[old.segment]
            with suppress(StoreError):  # the next mount deletes it
                self.segments.remove(old.segment)

    def take_gone(self) -> list[EntryId]:
        """Return what the next group commit must drop from the index: not what was staged again since it left."""
        gone, self._gone = self._gone, []
        return [entry for entry in gone if entry not in self.staged]

    def mark_anchorable(self, entries: Sequence[EntryId]) -> None:
        """Note that blobs have enough receipts for an anchor."""
        for entry in entries:
            self._note_anchorable(entry)
        self.wake_waiters()

    def _note_anchorable(self, entry: EntryId) -> None:
        if self.unanchorable.pop(entry, None) is not None:
            self.anchorable_count += 1
            self.anchorable_bytes += self.staged[entry].length

    def mark_complete(self, entries: Sequence[EntryId]) -> None:
        """Note that blobs have all n receipts. Their staged bytes are let go when their segment is done."""
        for entry in entries:
            self._note_anchorable(entry)
            if self.incomplete.pop(entry, None) is None:
                continue
            location = self.staged[entry]
            self.stored_count += 1
            self.stored_bytes += location.length
            self.incomplete_bytes -= location.length
            self._left[location.segment] -= 1
        self.wake_waiters()

    def finished_segments(self) -> list[int]:
        """Return the staged segments whose entries are all stored, except the one still written to."""
        open_from = min(self._appending.values(), default=self.segments.current)
        return [number for number, left in self._left.items() if left == 0 and number < open_from]

    def release(self, number: int) -> None:
        """Hand a finished segment over to the cache (or delete it where that is another disk)."""
        entries = self._segment_entries.pop(number)
        del self._left[number]
        for entry, location in entries:
            if self.staged.pop(entry, None) is not None:
                self.staged_bytes -= location.length
                self._gone.append(entry)
        self.wake_waiters()

    def segment_entries(self, number: int) -> list[tuple[EntryId, Location]]:
        """Return what lies in a staged segment."""
        return self._segment_entries[number]

    async def wait_progress(self) -> None:
        """Wait until some entry got receipts or left the staging area."""
        await self._progress.wait()

    async def wait_anchorable(self, mark: int) -> None:
        """Wait until everything staged up to `mark` may be anchored."""
        while self.unanchorable and next(iter(self.unanchorable.values())) <= mark:
            await self._progress.wait()

    def is_complete(self, mark: int) -> bool:
        """Whether everything staged up to `mark` has n receipts."""
        return not self.incomplete or next(iter(self.incomplete.values())) > mark

    def wake_waiters(self) -> None:
        """Have those that wait for progress look again."""
        event, self._progress = self._progress, trio.Event()
        event.set()

    async def restage(self, entry: EntryId) -> None:
        """Stage an entry that peers have once more, sealed as it is. Raises RemoteError, StoreError."""
        if entry in self.staged:
            return
        sealed = await trio.to_thread.run_sync(self.cache.read, entry)
        if sealed is None or entry_id(sealed) != entry:
            answer = await self._agent.call("fetch", FetchEntry(entry, True), FetchedEntry, timeout=self._timeout)
            location = Location(answer.segment, answer.offset, answer.length)
            sealed = answer.data or await trio.to_thread.run_sync(self.cache.fetched.read, location)
            if entry_id(sealed) != entry:
                raise BlobCorrupt(f"the agent sent something else than entry {entry.hex()[:16]}")
        await self.stage_sealed([(Ref(entry, b""), sealed)])

    # ---- reading -------------------------------------------------------------------------------------------------
    def small_nowait(self, entry: EntryId) -> bytes | None:
        """Return a small entry's sealed bytes if they are on this machine: one look-up, one copy, in the event loop."""
        location = self.staged.get(entry)
        if location is not None:
            if location.length > limits.SMALL_ENTRY:
                return None
            try:
                return self.segments.read(location)
            except StoreError as exc:
                log.error("staged entry %s cannot be read: %s", entry.hex()[:16], exc)
        recent = self._recent.get(entry)
        return recent if recent is not None else self.cache.get_small(entry)

    def open_now(self, ref: Ref, kind: Kind, out: bytearray, *, wait: bool) -> Plain | None:
        """Return an entry's plaintext, in `out` if that is its length, if the entry is on this machine.

        Without `wait`, only if its bytes are in the page cache: in the event loop, opening 1 MiB costs less than two
        thread hops, but the disk must not be waited for. None otherwise, and for what does not verify (`get` then
        decides what that means). Event loop or any thread.
        """
        buffer = _scratch.buffer
        location = self.staged.get(ref.id)
        if location is not None:
            sealed = self.segments.read_into(location, buffer, wait=wait)
        else:
            sealed = self.cache.read_into(ref.id, buffer, wait=wait)
        if sealed is None:
            return None
        try:
            return out if open_into(ref.key, kind, sealed, out) else open_entry(ref.key, kind, sealed)
        except (SealError, MalformedError):
            return None

    def will_need(self, entry: EntryId) -> None:
        """Have the disk begin reading an entry's bytes, if they lie in a segment here. Any thread."""
        location = self.staged.get(entry)
        if location is not None:
            self.segments.will_need(location)
        else:
            self.cache.will_need(entry)

    def is_local(self, entry: EntryId) -> bool:
        """Whether reading the entry needs no peer."""
        return entry in self.staged or entry in self._recent or entry in self._located or self.cache.has(entry)

    async def get(self, ref: Ref, kind: Kind, *, ahead: bool = False) -> bytes:
        """Return an entry's plaintext. Equal requests in flight are one request.

        Raises RemoteError when no peer can give it in time.
        """
        while (flight := self._loading.get(ref.id)) is not None:
            await flight.done.wait()
            if flight.data is not None:
                return flight.data
            if flight.error is not None:
                raise flight.error
        flight = _Flight()
        self._loading[ref.id] = flight
        try:
            flight.data = await self._load(ref, kind, ahead)
            return flight.data
        except FsdecloudError as exc:
            flight.error = exc
            raise
        finally:
            del self._loading[ref.id]
            flight.done.set()

    async def _load(self, ref: Ref, kind: Kind, ahead: bool) -> bytes:
        # A thread that a dying disk holds is left behind: the request has a deadline.
        local = await trio.to_thread.run_sync(self._open_local, ref, kind, abandon_on_cancel=True)
        if local is not None:
            return local
        if ahead:
            return await self._fetch(ref, kind, ahead)
        last = ""
        with trio.move_on_after(self._timeout):
            async with self._slots:
                while True:
                    try:
                        return await self._fetch(ref, kind, ahead)
                    except RemoteTimeout as exc:  # the agent gives up by its own clock
                        last = f"; {exc}"
                        await trio.sleep(_ASK_AGAIN)
        raise RemoteTimeout(f"entry {ref.id.hex()[:16]}: no free slot or answer within {self._timeout:g} s{last}")

    def _open_local(self, ref: Ref, kind: Kind) -> bytes | None:
        """Read and open what is on this machine. Worker thread."""
        location = self.staged.get(ref.id)
        damage: FsdecloudError | None = None
        if location is not None:
            try:
                return open_entry(ref.key, kind, self.segments.read(location))
            except (SealError, MalformedError, StoreError) as exc:
                damage = exc  # or its segment was handed to the cache just now
        sealed = self._recent.get(ref.id) or self._read_located(ref.id) or self.cache.read(ref.id)
        if sealed is None:
            if damage is not None:
                self.integrity_errors += 1
                log.error("staged entry %s does not verify; asking the peers: %s", ref.id.hex()[:16], damage)
            return None
        try:
            return open_entry(ref.key, kind, sealed)
        except (SealError, MalformedError):
            self.integrity_errors += 1
            log.warning("a cached entry does not verify; fetching it again")
            self.cache.remove(ref.id)
            return None

    def _read_located(self, entry: EntryId) -> bytes | None:
        """Read a fetched entry that the cache's index does not have yet. Worker thread."""
        location = self._located.get(entry)
        if location is None:
            return None
        try:
            return self.cache.fetched.read(location)
        except StoreError:
            return None

    async def _fetch(self, ref: Ref, kind: Kind, ahead: bool) -> bytes:
        answer = await self._agent.call("fetch", FetchEntry(ref.id, ahead), FetchedEntry, timeout=self._timeout)
        if answer.data:
            if entry_id(answer.data) != ref.id:
                raise BlobCorrupt(f"the agent sent something else than entry {ref.id.hex()[:16]}")
            if len(answer.data) <= limits.SMALL_ENTRY and len(self._recent) < limits.FETCHED_MAX:
                self._recent[ref.id] = answer.data
            self._cache_wake.set()
            return _open(ref, kind, answer.data)
        location = Location(answer.segment, answer.offset, answer.length)
        plaintext = await trio.to_thread.run_sync(self._open_fetched, ref, kind, location, abandon_on_cancel=True)
        if len(self._located) < limits.FETCHED_MAX:
            self._located[ref.id] = location
        self._cache_wake.set()
        return plaintext

    def _open_fetched(self, ref: Ref, kind: Kind, location: Location) -> bytes:
        if location.length > limits.ENTRY_MAX:
            raise BlobCorrupt(f"entry {ref.id.hex()[:16]} cannot have {location.length} bytes")
        fetched = self.cache.fetched
        sealed = fetched.read_into(location, _scratch.buffer, wait=True)
        if sealed is None:
            sealed = memoryview(fetched.read(location))
        try:
            return open_entry(ref.key, kind, sealed)  # which authenticates: the id says only who is to blame
        except (SealError, MalformedError) as exc:
            if entry_id(sealed) != ref.id:
                raise BlobCorrupt(f"the agent's cache segment does not hold entry {ref.id.hex()[:16]}") from exc
            return _open(ref, kind, bytes(sealed))

    async def run_syncer(self) -> None:
        """Write staged segments out while they grow, until cancelled. A failure is the next group commit's to report."""
        while True:
            await self._sync_wake.wait()
            self._sync_wake = trio.Event()
            with suppress(StoreError):
                await trio.to_thread.run_sync(self.segments.sync)

    async def run_cache_writer(self, cache_size: int) -> None:
        """Index fetched entries in the cache, a group at a time, and keep it within its size, until cancelled."""
        while True:
            await self._cache_wake.wait()
            self._cache_wake = trio.Event()
            if len(self._recent) + len(self._located) < _CACHE_FLUSH:
                await trio.sleep(0.2)  # let a burst become one transaction
            small, located = list(self._recent.items()), list(self._located.items())
            try:
                await trio.to_thread.run_sync(self._write_cache, small, located, cache_size)
            except StoreError as exc:
                log.warning("cache: %s", exc)
            finally:  # what cannot be cached is fetched again
                for entry, _data in small:
                    self._recent.pop(entry, None)
                for entry, _location in located:
                    self._located.pop(entry, None)

    def wake_cache_writer(self) -> None:
        """The cache grew: have its size looked at."""
        self._cache_wake.set()

    def _write_cache(
        self, small: list[tuple[EntryId, bytes]], located: list[tuple[EntryId, Location]], cache_size: int
    ) -> None:
        if small:
            self.cache.put_small(small)
        if located:
            self.cache.put_located((entry, FETCHED, location) for entry, location in located)
        self.cache.evict(cache_size)


class _Scratch(threading.local):
    """A worker thread's buffer for one sealed entry."""

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(limits.ENTRY_MAX))


_scratch = _Scratch()


class _Flight:
    """One load in progress."""

    __slots__ = ("data", "done", "error")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.data: bytes | None = None
        self.error: FsdecloudError | None = None


def _open(ref: Ref, kind: Kind, sealed: bytes) -> bytes:
    """Open bytes that have the right id. A failure means that the reference itself is wrong."""
    try:
        return open_entry(ref.key, kind, sealed)
    except (SealError, MalformedError) as exc:
        raise RemoteError(f"entry {ref.id.hex()[:16]} does not open with its reference's key: {exc}") from exc


def raise_first(group: BaseExceptionGroup[BaseException]) -> NoReturn:
    """Raise one of our errors out of a group that holds nothing else, the group itself otherwise."""
    ours, others = group.split(FsdecloudError)
    if ours is None or others is not None:
        raise group
    leaf: BaseException = ours
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    raise leaf from group
