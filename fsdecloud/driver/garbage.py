"""Collecting garbage: what no state of the volume needs any more is deleted from the peers.

A collection marks what is needed (`driver.marking`), has the agent condemn what is not (`agent.sweep`), and deletes what
earlier collections condemned and the ledger has made final since (`agent.granting`), each deletion signed here against the
marks of this very collection. So every blob passes two markings with fresh filters before it goes:

    mark, condemn  ->  an anchor whose location map does not have it  ->  final in the ledger  ->  mark again, delete

Called only from the event loop. By itself it runs rarely and only when there is something to find: once a day if anything
was anchored since, soon after snapshots were forgotten, and when condemned blobs are final; always in a pause of the writers.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec
import trio

from fsdecloud.driver.agentlink import AgentLink
from fsdecloud.driver.anchors import Anchors
from fsdecloud.driver.committer import Committer
from fsdecloud.driver.core import Core
from fsdecloud.driver.entries import Entries
from fsdecloud.driver.grants import Grants
from fsdecloud.driver.marking import Marker
from fsdecloud.driver.snapshots import Snapshots
from fsdecloud.driver.supervisor import describe
from fsdecloud.driver.treenodes import TreeNodes
from fsdecloud.errors import FsdecloudError, RemoteError, UsageError
from fsdecloud.store.segments import store_error
from fsdecloud.types import EntryId
from fsdecloud.wire.agentapi import Empty, GarbageFinal, GcGranted, GcSweep, GcSwept
from fsdecloud.wire.controlapi import GcStatus

log = logging.getLogger(__name__)

INTERVAL: Final = 24 * 3600.0
"""Seconds between two collections that nobody asked for."""

FIRST: Final = 1800.0
"""Seconds after the mount before the first of them."""

AFTER_FORGETTING: Final = 300.0
"""Seconds after snapshots were forgotten: more may be."""

AFTER_FINAL: Final = 2.0

QUIET: Final = 5.0
"""Seconds without a write before one begins by itself."""

ROUNDS_MAX: Final = 6
"""Collections of one request: condemn, delete, and the same for packs that were packed anew."""

FINAL_PATIENCE: Final = 600.0
"""Seconds for which a request waits for the ledger; what is condemned is deleted later all the same."""

STORE_PATIENCE: Final = 120.0
"""Seconds for which entries packed anew are waited for; what is not stored by then is left for the next collection."""


class Collector:
    """The garbage collector of one mounted volume."""

    def __init__(
        self,
        core: Core,
        entries: Entries,
        nodes: TreeNodes,
        snapshots: Snapshots,
        committer: Committer,
        anchors: Anchors,
        agent: AgentLink,
        grants: Grants,
        directory: Path,
        last_write: Callable[[], float],
        let_go: Callable[[], Awaitable[None]],
    ) -> None:
        """`directory` is for the file with the marks; `last_write` tells when a program last wrote (monotonic seconds);
        `let_go` takes what is stored out of the staging area, where everything counts as needed."""
        self._core = core
        self._entries = entries
        self._nodes = nodes
        self._snapshots = snapshots
        self._committer = committer
        self._anchors = anchors
        self._agent = agent
        self._grants = grants
        self._file = directory / "marks"
        self._last_write = last_write
        self._let_go = let_go
        self._lock = trio.Lock()
        self._wake = trio.Event()
        self._final = trio.Event()
        """Nothing that was condemned last waits for the ledger any more."""
        self._is_final = False
        """Something may be deleted."""
        self._due = trio.current_time() + FIRST
        self._waiting = 0
        """Shards whose peers did not answer when they were last to be deleted."""
        self._requested: bool | None = None
        self._marker: Marker | None = None
        self._status = GcStatus()

    @property
    def status(self) -> GcStatus:
        """What goes on, and what was found last."""
        marker = self._marker
        if marker is None:
            return self._status
        return msgspec.structs.replace(self._status, nodes=marker.nodes, marked=marker.marks.count)

    # ---- when ----------------------------------------------------------------------------------------------------------
    def request(self, *, dry_run: bool) -> None:
        """Collect now, or as soon as what goes on has ended. Raises UsageError when that is not possible."""
        if self._core.read_only:
            raise UsageError(f"the volume is read-only: {self._core.read_only}")
        if self._status.requested > self._status.finished:
            raise UsageError("somebody else has garbage collected already")
        self._requested = dry_run
        self._status = msgspec.structs.replace(self.status, requested=self._status.requested + 1)
        self._wake.set()

    def note_final(self, notice: GarbageFinal) -> None:
        """An anchor is final. Called in the agent connection's reader: never blocks."""
        if not notice.pending:
            self._final.set()
        if notice.blobs:
            self._is_final = True
            self._sooner(AFTER_FINAL)

    def note_forgotten(self) -> None:
        """Snapshots were forgotten: there may be much to find."""
        self._sooner(AFTER_FORGETTING)

    def _sooner(self, seconds: float) -> None:
        due = trio.current_time() + seconds
        if due < self._due:
            self._due = due
            self._wake.set()

    async def run(self) -> None:
        """Collect when it is time, until cancelled."""
        while True:
            with trio.move_on_at(self._due):
                await self._wake.wait()
            self._wake = trio.Event()
            if self._requested is not None:
                await self._run_requested()
            elif trio.current_time() >= self._due:
                await self._run_by_itself()

    async def _run_requested(self) -> None:
        dry_run, self._requested = bool(self._requested), None
        number = self._status.requested
        self._status = msgspec.structs.replace(GcStatus(), requested=number, finished=self._status.finished)
        try:
            await self._guarded(lambda: self._collect_all(dry_run=dry_run))
        finally:
            self._status = msgspec.structs.replace(self._status, finished=number)

    async def _run_by_itself(self) -> None:
        while (pause := self._last_write() + QUIET - time.monotonic()) > 0:  # noqa: ASYNC110 - it moves
            await trio.sleep(pause)
        is_final = self._is_final
        meta = self._committer.meta
        age = time.time() - meta.collected_at
        self._due = trio.current_time() + INTERVAL
        if self._core.read_only or not meta.sequence:
            return
        if not is_final and 0 <= age < AFTER_FORGETTING:
            self._due = trio.current_time() + AFTER_FORGETTING - age
        elif is_final or self._waiting or meta.sequence > meta.collected_sequence:
            await self._guarded(self._collect_once)

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        error = ""
        try:
            await work()
        except FsdecloudError as exc:
            error = str(exc)
            log.info("garbage is not collected now: %s", exc)
        except Exception as exc:  # only to show it; the supervisor logs it
            error = describe(exc)
            raise
        finally:
            self._status = msgspec.structs.replace(self._status, phase="", last_run=int(time.time()), error=error)

    # ---- collecting ----------------------------------------------------------------------------------------------------
    async def _collect_once(self) -> None:
        await self._collect(dry_run=False)

    async def _collect_all(self, *, dry_run: bool) -> None:
        """Collect until there is nothing left to do but to wait for the ledger."""
        if not dry_run:
            await self._committer.request()
        for _ in range(ROUNDS_MAX):
            swept, _granted = await self._collect(dry_run=dry_run)
            if dry_run or not (swept.condemned_blobs or swept.repack):
                return
            self._phase("anchoring")
            sequence = self._committer.meta.sequence
            self._anchors.force()
            with trio.move_on_after(FINAL_PATIENCE) as patience:
                while self._committer.meta.sequence <= sequence:  # noqa: ASYNC110 - seconds, now and then
                    await trio.sleep(0.1)
                if swept.condemned_blobs:
                    self._phase("waiting")
                    await self._final.wait()
            if patience.cancelled_caught:
                return

    async def _collect(self, *, dry_run: bool) -> tuple[GcSwept, GcGranted]:
        """Mark, condemn, delete what is final. Raises RemoteError, LedgerError, StoreError."""
        async with self._lock:
            await self._check()
            await self._let_go()
            sequence = self._committer.meta.sequence
            granted = GcGranted(0, 0, 0)
            due, is_final = self._due, self._is_final
            if not dry_run:
                # This collection answers every reason there was for one; a reason that comes while it runs needs another.
                self._due, self._is_final = trio.current_time() + INTERVAL, False
            self._entries.touched = set()
            try:
                self._phase("marking")
                await self._agent.call("gc_begin", Empty(), Empty)
                marker = self._marker = Marker(self._core, self._entries, self._nodes, self._snapshots, os.urandom(32))
                marks = await marker.run()
                self._phase("sweeping")
                await trio.to_thread.run_sync(self._write_marks, marks.encode())
                swept = await self._agent.call("gc_sweep", GcSweep(str(self._file), dry_run), GcSwept)
                self._final = trio.Event()
                self._note_swept(swept)
                if not dry_run:
                    await self._repack(swept.repack)
                    self._phase("deleting")
                    self._grants.allow(self._is_needed, marker.time)
                    granted = await self._agent.call("gc_grant", Empty(), GcGranted)
                    self._note_granted(granted)
                    await self._committer.save_meta(collected_at=int(time.time()), collected_sequence=sequence)
            except BaseException:  # cancelled or failed, the reasons to collect remain
                self._due, self._is_final = min(self._due, due), self._is_final or is_final
                raise
            finally:
                self._grants.forbid()
                self._status = self.status
                self._marker = None
                self._entries.touched = None
                with trio.CancelScope(shield=True), trio.move_on_after(1.0):
                    await self._end()
            return swept, granted

    async def _check(self) -> None:
        """Return if this mount may collect: it alone writes the volume, and knows all of its history."""
        if self._core.read_only:
            raise UsageError(f"the volume is read-only: {self._core.read_only}")
        await self._anchors.check_head()
        if self._core.read_only:
            raise UsageError(f"the volume is read-only: {self._core.read_only}")
        if not self._snapshots.is_complete:
            raise RemoteError("the list of snapshots is not complete yet")

    def _is_needed(self, entry: EntryId) -> bool:
        touched, marker = self._entries.touched, self._marker
        return (
            marker is None
            or touched is None
            or entry in touched
            or entry in self._entries.staged
            or entry in marker.marks
        )

    async def _repack(self, entries: Sequence[EntryId]) -> None:
        """Stage the live entries of packs that are mostly dead once more, and have them stored."""
        if not entries:
            return
        self._phase("repacking")
        for entry in entries:
            await self._entries.restage(entry)
        self._core.changed_quietly()
        with trio.move_on_after(STORE_PATIENCE):
            while any(entry in self._entries.incomplete for entry in entries):
                await self._entries.wait_progress()

    async def _end(self) -> None:
        if self._agent.connection is not None:
            try:
                await self._agent.call("gc_end", Empty(), Empty)
            except FsdecloudError as exc:
                log.debug("the agent did not end the collection: %s", exc)
        try:
            await trio.to_thread.run_sync(lambda: self._file.unlink(missing_ok=True))
        except OSError as exc:
            log.warning("%s", store_error(exc, f"cannot delete {self._file}"))

    def _write_marks(self, data: bytes) -> None:
        """Worker thread. Raises StoreError."""
        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file.unlink(missing_ok=True)
            fd = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(data)
        except OSError as exc:
            raise store_error(exc, f"cannot write {self._file}") from exc

    # ---- telling -------------------------------------------------------------------------------------------------------
    def _phase(self, phase: str) -> None:
        self._status = msgspec.structs.replace(self.status, phase=phase)

    def _note_swept(self, swept: GcSwept) -> None:
        status = self.status
        self._status = msgspec.structs.replace(
            status,
            live_entries=swept.live_entries,
            live_bytes=swept.live_bytes,
            # A request takes several looks, and the later ones find less.
            dead_entries=max(status.dead_entries, swept.dead_entries),
            dead_bytes=max(status.dead_bytes, swept.dead_bytes),
            condemned_blobs=status.condemned_blobs + swept.condemned_blobs,
            condemned_bytes=status.condemned_bytes + swept.condemned_bytes,
        )
        if swept.condemned_blobs:
            log.info("%d blobs are garbage, %d bytes on the peers", swept.condemned_blobs, swept.condemned_bytes)

    def _note_granted(self, granted: GcGranted) -> None:
        self._waiting = granted.waiting
        self._status = msgspec.structs.replace(
            self.status,
            deleted_shards=self._status.deleted_shards + granted.shards,
            deleted_bytes=self._status.deleted_bytes + granted.bytes,
            waiting_shards=granted.waiting,
        )
        if granted.shards:
            log.info("peers let go of %d shards, %d bytes", granted.shards, granted.bytes)
