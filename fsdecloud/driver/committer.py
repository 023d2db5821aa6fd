"""Commit: write the pending changes into the tree, giving a new root.

A commit freezes the overlay between two group commits, waits until every layer of that generation is sealed, updates the
tree in a worker thread, and makes the new root durable together with the truncation of the journal. Programs go on
meanwhile in the next generation. A crash before the last step leaves the old root and the whole journal; after it, the
new root and the journal from the freeze on.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final

import msgspec
import trio

from fsdecloud import codec, limits
from fsdecloud.crypto.seal import Kind
from fsdecloud.driver.core import INODES_RESERVED, Core
from fsdecloud.driver.dirty import DirtyChunk
from fsdecloud.driver.entries import Entries
from fsdecloud.driver.files import Files
from fsdecloud.driver.journal import Journal
from fsdecloud.driver.meta import VolumeMeta
from fsdecloud.driver.sealer import Sealer
from fsdecloud.driver.supervisor import describe, is_thread_shortage
from fsdecloud.driver.treenodes import TreeNodes
from fsdecloud.errors import FsdecloudError
from fsdecloud.fs.inode import decode_inode
from fsdecloud.fs.keys import inode_key
from fsdecloud.fs.records import BatchEntry, batch_root, split_rows
from fsdecloud.tree.update import update
from fsdecloud.types import Ref

log = logging.getLogger(__name__)

_RETRY: Final = 2.0

_LAZY_TIMES: Final = 600.0
"""Seconds after which moved access times make a change of their own, if reading goes on: as often as reads make an anchor."""


_BATCHES_PLENTY: Final = 1024
"""Batches that wait for an anchor, from which on commits come more rarely: three hours of writing without a pause."""

_INTERVAL_MAX: Final = 300.0


def commit_interval(waiting: int) -> float:
    """Return the seconds between two commits while `waiting` record batches wait for an anchor.

    Each commit adds one, and all are written anew with it. So while the ledger is away for days the batches become larger
    instead of many: after a week of writing without a pause there are 11,000, in 1.7 MB, and not 60,000.
    """
    return min(max(limits.COMMIT_INTERVAL, limits.COMMIT_INTERVAL * waiting / _BATCHES_PLENTY), _INTERVAL_MAX)


async def _nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True, slots=True)
class Commit:
    """One finished commit."""

    root: bytes
    change_sequence: int
    """All changes up to here are in it."""
    mark: int
    """Its entries are those staged up to this order (`Entries.wait_anchorable`)."""
    batches: tuple[BatchEntry, ...]
    """Record batches that no anchor in a block has yet."""
    changes: int
    """How many of their records are more than reads."""


class Committer:
    """The commit task of one volume."""

    def __init__(
        self,
        core: Core,
        files: Files,
        entries: Entries,
        sealer: Sealer,
        journal: Journal,
        nodes: TreeNodes,
        meta: VolumeMeta,
    ) -> None:
        self._core = core
        self._files = files
        self._entries = entries
        self._sealer = sealer
        self._journal = journal
        self._nodes = nodes
        self.meta = meta
        self.latest = Commit(meta.root, 0, 0, meta.batches, meta.changes)
        self.anchoring = b""
        """Root of the commit that an anchor is being made of, b"" while there is none: a later commit may be there already,
        and the meta does not name it yet."""
        self._wake = trio.Event()
        self._done = trio.Event()
        self._lock = trio.Lock()
        self._times_written = trio.current_time()
        self.alone: set[bytes] = set()
        """Roots of the batches that get an anchor with no other batch: whoever is shown the way to one of them from the anchor
        (`ledger.certificate`) sees no hash of another's records."""
        self.on_commit: Callable[[], None] = lambda: None
        self.prepare: Callable[[], Awaitable[None]] = _nothing
        """Called before each freeze, to have at hand what `add_rows` needs. Raises nothing of ours."""
        self.add_rows: Callable[[bool], frozenset[int]] = lambda _changed: frozenset()
        """Called at each freeze, with whether it takes records of more than reads: puts rows of anchors (`VolumeMeta.history`)
        into the overlay and returns their sequence numbers. They leave the meta when this commit is durable."""
        self.last_error = ""

    def poke(self) -> None:
        """Commit soon, without waiting for the interval."""
        self._wake.set()

    async def request(self) -> None:
        """Commit what changed so far and return when it is done. Raises what the commit raises."""
        if self.has_work:
            await self.commit()

    def adopt(self, meta: VolumeMeta) -> None:
        """Start from a state that another machine anchored."""
        self.meta = meta
        self.latest = Commit(meta.root, 0, 0, meta.batches, meta.changes)

    async def run(self) -> None:
        """Commit pending changes every `commit_interval`, or when poked, until cancelled."""
        while True:
            await self._wait_turn()
            self._wake = trio.Event()
            if not self.has_work:
                await self._wait_work()
                continue
            try:
                await self.commit()
                self.last_error = ""
            except FsdecloudError as exc:
                self.last_error = f"commit: {exc}"
                log.warning("cannot commit yet: %s", exc)
                await trio.sleep(_RETRY)
                self._wake.set()

    @property
    def has_work(self) -> bool:
        """Whether anything changed since the last commit."""
        return self._core.change_sequence > self.latest.change_sequence

    async def _wait_turn(self) -> None:
        """Wait for the interval, until poked, or until there is much to commit."""
        end = trio.current_time() + commit_interval(len(self.latest.batches))
        while not self._wake.is_set() and trio.current_time() < end:
            with trio.move_on_after(min(limits.COMMIT_INTERVAL, end - trio.current_time())):
                await self._wake.wait()
            if len(self._core.overlay.current) + len(self._core.recorder.pending) >= limits.PENDING_PLENTY:
                return

    async def _wait_work(self) -> None:
        """Sleep until something changes: an idle volume costs nothing."""
        while not self.has_work and not self._wake.is_set():
            await self._journal.wait_commit()

    async def commit(self) -> Commit:
        """Commit everything that changed before this call. Raises RemoteError, StoreError, NoSpace."""
        async with self._lock:
            frozen = _Frozen()
            await self.prepare()
            barrier = await self._journal.freeze(lambda: self._freeze(frozen))
            try:
                await self._wait_sealed(frozen)
                self._correct_inodes(frozen)
                batches = await self._close_batches(frozen)
                root = await self._update_tree()
                mark = self._entries.order
                bound = self._core.next_inode + INODES_RESERVED

                def committed() -> VolumeMeta:
                    return msgspec.structs.replace(
                        self.meta,
                        root=root,
                        batches=self.meta.batches + batches,
                        batched=self.meta.batched + len(frozen.records),
                        changes=self.meta.changes + frozen.changes,
                        inode_bound=bound,
                        history=tuple(row for row in self.meta.history if row.snapshot.sequence not in frozen.rows),
                    )

                await self._write(lambda: codec.encode(committed()), barrier)
            except BaseException:  # cancelled or failed, the changes are pending again
                self._core.overlay.thaw()
                recorder = self._core.recorder
                recorder.closing = []
                recorder.pending[:0] = frozen.records
                recorder.statements[:0] = frozen.statements
                recorder.pending_changes += frozen.changes
                raise
            try:
                self._core.overlay.commit(root)
                # Not what was encoded: an anchor may have come into a block meanwhile, and its next save says so.
                meta = self.meta = committed()
                self._core.recorder.closing = []
                self._core.inode_bound = bound
                self.latest = Commit(root, frozen.change_sequence, mark, meta.batches, meta.changes)
            except Exception as exc:  # whatever it is, memory no longer agrees with the disk
                self._core.fail_safe(f"a commit is on the disk and not in memory: {describe(exc)}")
                raise
        self.on_commit()
        return self.latest

    async def save_meta(self, **changes: object) -> None:
        """Change fields of the anchor's state, none of the commit's, and make that durable. Raises StoreError."""
        self.meta = msgspec.structs.replace(self.meta, **changes)
        await self._write(lambda: codec.encode(self.meta))

    async def save_payments(self, payments: tuple[bytes, ...], record: Callable[[], None]) -> None:
        """Have `record` record payments, and make durable in one transaction that they are, and which. Raises StoreError."""

        def note() -> None:
            record()
            self.meta = msgspec.structs.replace(self.meta, payments=payments)

        await self._write(lambda: codec.encode(self.meta), prepare=note)

    async def _write(
        self,
        meta: Callable[[], bytes],
        truncate_before: int | None = None,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        """Make the meta durable with the next group. After an unexpected failure nobody knows what the disk has."""
        try:
            await self._journal.commit(meta, truncate_before, prepare)
        except FsdecloudError:
            raise
        except Exception as exc:  # a bug; what is and what is not on the disk is unknown
            if not is_thread_shortage(exc):
                self._core.fail_safe(f"journal: {describe(exc)}")
            raise

    def next_batches(self, commit: Commit, limit: int) -> tuple[BatchEntry, ...]:
        """Return the oldest batches of a commit, as many as its anchor takes: up to `limit`, and one of `alone` by itself."""
        batches = commit.batches[:limit]
        cut = next((i for i, batch in enumerate(batches) if batch.root in self.alone), len(batches))
        return batches[: max(cut, 1)]

    def forget_batches(self, count: int) -> None:
        """The oldest batches are anchored."""
        self.alone -= {batch.root for batch in self.latest.batches[:count]}
        left = self.latest.batches[count:]
        self.latest = replace(self.latest, batches=left, changes=self.latest.changes if left else 0)

    def _freeze(self, frozen: _Frozen) -> None:
        """Begin a new generation. Everything dirty belongs to the frozen one."""
        core = self._core
        self._files.record_open_handles()
        if core.inodes.dirty or core.overlay.has_changes or trio.current_time() - self._times_written > _LAZY_TIMES:
            core.inodes.touch_lazy()
            self._times_written = trio.current_time()
        core.write_back(whole=True)  # the commit waits for the bytes
        self._files.seal_all()
        frozen.chunks = self._sealer.waiting_chunks()
        for chunk in frozen.chunks:
            live = core.inodes.peek(chunk.ino)
            if live is not None:
                core.inodes.touch(live)  # group commits until then must not have the size without them
        frozen.change_sequence = core.change_sequence
        frozen.records, core.recorder.pending = core.recorder.pending, []
        frozen.statements, core.recorder.statements = core.recorder.statements, []
        core.recorder.closing = frozen.parts()
        frozen.changes, core.recorder.pending_changes = core.recorder.pending_changes, 0
        frozen.rows = self.add_rows(frozen.changes > 0)
        frozen.generation = core.overlay.freeze()

    async def _wait_sealed(self, frozen: _Frozen) -> None:
        for chunk in frozen.chunks:
            while chunk.layers and chunk.layers[0].generation <= frozen.generation:
                await self._sealer.wait_progress()

    def _correct_inodes(self, frozen: _Frozen) -> None:
        """Put into the frozen inodes how many bytes their chunks hold, which only sealing told."""
        overlay = self._core.overlay
        for ino in {chunk.ino for chunk in frozen.chunks}:
            live, key = self._core.inodes.peek(ino), inode_key(ino)
            row = overlay.frozen.get(key)
            if live is not None and row is not None:
                value = msgspec.structs.replace(decode_inode(row), allocated=live.allocated)
                overlay.put_at(frozen.generation, key, codec.encode(value))

    async def _close_batches(self, frozen: _Frozen) -> tuple[BatchEntry, ...]:
        """Stage the records as batch entries."""
        parts = frozen.parts()
        refs = await self._entries.stage([(Kind.RECORDS, codec.encode(part)) for part in parts]) if parts else []
        return tuple(BatchEntry(ref, len(part), batch_root(part)) for ref, part in zip(refs, parts, strict=True))

    async def _update_tree(self) -> bytes:
        """Write the frozen layer into the tree and stage the new nodes; return the new root."""
        overlay = self._core.overlay
        if not overlay.frozen:
            return overlay.root
        changes = list(overlay.frozen.items())
        await self._nodes.fetch_paths(overlay.root, [key for key, _value in changes])
        root, sealed = await self._core.run_in_thread(self._update, overlay.root, changes)
        await self._entries.stage_sealed(sealed)
        return root

    def _update(self, root: bytes, changes: list[tuple[bytes, bytes | None]]) -> tuple[bytes, list[tuple[Ref, bytes]]]:
        """Worker thread. Raises NodeMissing when the update needs a neighbour that is not here yet."""
        sealed: list[tuple[Ref, bytes]] = []

        def put(data: bytes) -> bytes:
            ref, entry = self._nodes.seal(data)
            sealed.append((ref, entry))
            return ref.to_bytes()

        return update(self._nodes.get, put, self._core.keys.border_secret, root, changes), sealed


class _Frozen:
    """What one freeze took."""

    def __init__(self) -> None:
        self.generation = 0
        self.change_sequence = 0
        self.chunks: list[DirtyChunk] = []
        self.records: list[bytes] = []
        self.statements: list[bytes] = []
        self.changes = 0
        self.rows: frozenset[int] = frozenset()

    def parts(self) -> list[list[bytes]]:
        """Return the records as they become batch entries, each statement as one of its own."""
        return [*split_rows(self.records), *([row] for row in self.statements)]
