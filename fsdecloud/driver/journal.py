"""Group commit: what changed since the last one becomes durable in one record of the log, by one writer at a time.

`commit` gathers rows in the event loop, a worker thread syncs the staged segments and writes, and everyone who waited for a
change that was collected is told. A small group that names no new segment bytes is written in the event loop, while the
disk is quick: the thread hop would take longer (`StateStore.is_quick`). `fsync` commits at once, or with the next group if
one is being written; anything else is journaled within GROUP_COMMIT_DELAY. The rows are an exact account: replaying them
over the committed tree gives the state at the last commit, dirty pages included.

    Pairs     keys of the tree's map, last value each
    Cut       a file was cut: earlier page rows past this size are void
    Page      dirty bytes of a chunk that is in no entry yet; a later value of the chunk's key voids earlier ones
    Records   operation records, numbered

Within one transaction: cuts, then pairs, then pages, then records.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import msgspec
import trio

from fsdecloud import codec, limits
from fsdecloud.driver.core import Core, Patience
from fsdecloud.driver.dirty import DirtyChunk
from fsdecloud.driver.entries import Entries
from fsdecloud.driver.files import Files
from fsdecloud.errors import MalformedError, StoreError, as_seen
from fsdecloud.store.segments import Location
from fsdecloud.store.state import StateStore
from fsdecloud.types import EntryId

log = logging.getLogger(__name__)

META: Final = "volume"

_PAIRS_PER_ROW: Final = 512
_RETRY: Final = 1.0

_RETRY_PREPARING: Final = 10.0

_GONE_SIZE: Final = 40
"""About what an entry that left the staging area takes in a record."""


class Pairs(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=0):
    """Keys and their values; None deletes."""

    pairs: tuple[tuple[bytes, bytes | None], ...]


class Cut(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=1):
    """A file was cut to `size` at some time since the transaction before."""

    inode: int
    size: int


class Page(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=2):
    """Dirty bytes at an offset within a chunk."""

    inode: int
    index: int
    offset: int
    data: bytes


class Records(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=3):
    """Encoded operation records; the first has number `first` in the volume's life."""

    first: int
    records: tuple[bytes, ...]


Row = Pairs | Cut | Page | Records


@dataclass(slots=True)
class _Group:
    """What one commit takes, in the form that it can be given back in."""

    ticket: int
    change_sequence: int
    rows: list[bytes]
    pairs: list[tuple[bytes, bytes | None]]
    cuts: dict[int, int]
    records: list[bytes]
    chunks: list[DirtyChunk]
    staged: list[tuple[EntryId, Location]]
    gone: list[EntryId]
    meta: Callable[[], bytes] | None = None
    truncate_before: int | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it is rows only: no segment to sync, no checkpoint to make."""
        return not self.staged and self.meta is None and self.truncate_before is None

    @property
    def size(self) -> int:
        """About how many bytes it writes."""
        return sum(map(len, self.rows)) + _GONE_SIZE * len(self.gone)


def decode_row(data: bytes) -> Row:
    """Return a journal row. Raises MalformedError."""
    row: Row = codec.decode_loose(data, Row)  # type: ignore[arg-type]
    return row


class Journal:
    """The volume's group commit."""

    def __init__(self, core: Core, files: Files, entries: Entries, store: StateStore) -> None:
        self._core = core
        self._files = files
        self._entries = entries
        self._store = store
        self._wake = trio.Event()
        self._urgent = trio.Event()
        self._done = trio.Event()
        self._lock = trio.Lock()
        self._requested = 0
        self._finished = 0
        self._failed = 0
        """Last request that a failed commit was made for."""
        self._prepare_after = -math.inf
        """When the next log file may be prepared (trio's time): a full disk is not asked at each commit."""
        self.durable_sequence = 0
        self.records_journaled = 0
        """Number of the next record to journal."""
        self.error: StoreError | None = None
        """Why it cannot be written; None while it can, or a full disk is waited for."""
        self._patience = Patience()
        self.commits = 0
        self.on_durable: Callable[[list[tuple[EntryId, Location]]], None] = lambda _staged: None
        core.on_change = self._wake.set

    # ---- asking ----------------------------------------------------------------------------------------------------
    async def flush(self) -> None:
        """Make all that changed before this call durable. Raises NoSpace or StoreError if that fails."""
        if not self._lock.locked():
            self._lock.acquire_nowait()
            try:
                with self._telling():
                    await self._commit_group(self._collect())  # without a yield if it is quick
                return
            except StoreError as exc:
                self._wake.set()
                if not self._patience.is_waiting:
                    raise as_seen(exc) from exc
            finally:
                self._lock.release()
        self._requested += 1
        ticket = self._requested
        self._urgent.set()
        self._wake.set()
        while self._finished < ticket:
            if self._failed >= ticket and self.error is not None:  # not one that failed before this was asked for
                raise as_seen(self.error)
            await self._done.wait()

    async def wait_commit(self) -> None:
        """Wait until a group commit was made or failed."""
        await self._done.wait()

    async def freeze(self, freeze: Callable[[], None]) -> int:
        """Call `freeze` between two transactions; return the sequence number of the next one.

        Everything in earlier transactions belongs to the frozen state.
        """
        async with self._lock:
            freeze()
            return self._store.last_sequence + 1

    # ---- committing --------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Commit groups until cancelled."""
        while True:
            await self._wake.wait()
            with trio.move_on_after(limits.GROUP_COMMIT_DELAY):
                await self._urgent.wait()
            self._wake = trio.Event()
            self._core.on_change = self._wake.set
            self._urgent = trio.Event()
            try:
                await self.commit()
                if self._should_prepare():
                    await self._prepare()
            except StoreError as exc:
                if self._core.failure:  # no group was collected, so nobody was told yet
                    self.error, self._failed = exc, self._requested
                    self._tell()
                self._entries.wake_cache_writer()  # a full disk: the cache gives way
                await trio.sleep(_RETRY)
                self._wake.set()

    async def commit(
        self,
        meta: Callable[[], bytes] | None = None,
        truncate_before: int | None = None,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        """Commit one group now; `meta` and the journal's truncation go into the same transaction. Raises StoreError.

        `meta` is called when it is this transaction's turn, so that no older state overwrites a newer one; `prepare` before
        that, when no other transaction can take any more what it changes.
        """
        async with self._lock:
            prepare()
            self._core.inodes.evict()
            with self._telling():
                group = self._collect()
                group.meta, group.truncate_before = meta, truncate_before
                await self._commit_group(group)

    def _collect(self) -> _Group:
        """Take everything that the journal lacks."""
        core = self._core
        core.write_back()
        pairs = core.overlay.take_unjournaled()
        cuts, core.cuts = core.cuts, {}
        records = core.recorder.take_unjournaled()
        chunks = self._files.take_fresh_chunks()
        rows = [codec.encode(Cut(ino, size)) for ino, size in cuts.items()]
        parts = (pairs[start : start + _PAIRS_PER_ROW] for start in range(0, len(pairs), _PAIRS_PER_ROW))
        rows += [codec.encode(Pairs(tuple(part))) for part in parts]
        for chunk in chunks:
            rows += [codec.encode(Page(chunk.ino, chunk.index, offset, data)) for offset, data in chunk.take_fresh()]
        if records:
            rows.append(codec.encode(Records(self.records_journaled, tuple(records))))
        staged, gone = self._entries.take_new(), self._entries.take_gone()
        return _Group(self._requested, core.change_sequence, rows, pairs, cuts, records, chunks, staged, gone)

    def _give_back(self, group: _Group) -> None:
        """Everything collected is still in memory: have the next group take it."""
        self._core.overlay.restore_unjournaled([key for key, _value in group.pairs])
        for ino, size in group.cuts.items():
            self._core.truncated(ino, size)
        self._core.recorder.unjournaled[:0] = group.records
        self._entries.put_back(group.staged, group.gone)
        self._files.give_back(group.chunks)

    async def _commit_group(self, group: _Group) -> None:
        """Write a group, with the lock held: here if that is quick, else in a worker thread. Raises StoreError."""
        try:
            if self._entries.segments.has_failed or self._entries.segments.doubtful:
                group.staged = await self._entries.rescue(group.staged)
            meta = group.meta() if group.meta is not None else None
            if group.is_plain and self._store.is_quick(group.size):
                if group.rows or group.gone:
                    self._write(group, None)
            elif group.rows or group.gone or not group.is_plain:
                await trio.to_thread.run_sync(self._write, group, meta)
        except BaseException:  # cancelled or failed, the group is pending again
            self._give_back(group)
            raise
        self._committed(group)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Tell everybody who asked for a commit before this one when it fails; of a full disk, only when it stays full."""
        ticket = self._requested
        try:
            yield
        except StoreError as exc:
            if not self._patience.is_spent(exc):
                raise
            if self.error is None:
                log.error("the journal cannot be written: %s", exc)
            self.error = exc
            self._failed = max(self._failed, ticket)
            self._tell()
            raise

    def _write(self, group: _Group, meta: bytes | None) -> None:
        """Sync the segments, then commit. Data before metadata."""
        if group.staged:
            self._entries.segments.sync()
        metas = {META: meta} if meta is not None else {}
        self._store.commit(
            group.rows,
            staged=group.staged,
            unstaged=group.gone,
            meta=metas,
            truncate_before=group.truncate_before,
        )

    def _committed(self, group: _Group) -> None:
        """The group is durable: tell everybody who waits for it."""
        self.records_journaled += len(group.records)
        self.commits += 1
        self._finished = max(self._finished, group.ticket)
        self.durable_sequence = max(self.durable_sequence, group.change_sequence)
        self.error = None
        self._patience.renew()
        self._tell()
        if group.staged:
            self.on_durable(group.staged)
        if self._should_prepare():
            self._urgent.set()
            self._wake.set()

    def _should_prepare(self) -> bool:
        return self._store.wants_preparation and trio.current_time() >= self._prepare_after

    async def _prepare(self) -> None:
        """Have the next log file ready before it is needed."""
        try:
            await trio.to_thread.run_sync(self._store.prepare)
        except StoreError as exc:
            self._prepare_after = trio.current_time() + _RETRY_PREPARING
            log.warning("the next journal file is not prepared: %s", exc)

    def _tell(self) -> None:
        event, self._done = self._done, trio.Event()
        event.set()


def replay(core: Core, files: Files, rows: Iterable[tuple[int, list[bytes]]], batched: int) -> int:
    """Apply the journal's rows to a freshly opened volume; records numbered below `batched` are in a batch already.

    Returns the number of the next record. Raises MalformedError on a row that makes no sense.
    """
    following = batched
    for _sequence, group in rows:
        for data in group:
            row = decode_row(data)
            if isinstance(row, Pairs):
                for key, value in row.pairs:
                    core.overlay.put(key, value)
                    if key[:1] == b"C":
                        files.void_pages(key)
            elif isinstance(row, Cut):
                files.cut_pages(row.inode, row.size)
            elif isinstance(row, Page):
                files.replay_page(row.inode, row.index, row.offset, row.data)
            else:
                if row.first > following:
                    raise MalformedError(f"the journal lacks records {following} to {row.first}")
                fresh = list(row.records[following - row.first :])
                core.recorder.replay(fresh)
                following += len(fresh)
    core.overlay.take_unjournaled()
    return following
