"""What `decloud snapshot` asks a running driver; methods of its control socket (`control`).

A comparison runs in a worker thread, a page at a time; it is a session of the driver until its last page. An abandoned one
goes when there are too many.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Final

import trio

from fsdecloud.driver.volume import Volume, own_caller
from fsdecloud.errors import UsageError
from fsdecloud.fs.compare import Change, compare
from fsdecloud.fs.history import Snapshot, directory_name, format_policy, parse_policy
from fsdecloud.net.unix import Handler
from fsdecloud.tree.node import Node, NodeMissing
from fsdecloud.wire.controlapi import (
    DiffLine,
    DiffPage,
    SnapshotDiff,
    SnapshotForget,
    SnapshotInfo,
    SnapshotKeep,
    SnapshotPage,
    SnapshotPolicy,
    SnapshotQuery,
    SnapshotRestore,
    SnapshotRestored,
)

PAGE: Final = 500
"""Rows of one answer."""

PAGE_BYTES: Final = 1 << 20
"""A page of differences ends once its paths are so long together: it must fit into RPC_MAX."""

SESSIONS_MAX: Final = 4


class _Session:
    """One comparison under way."""

    def __init__(self, changes: Iterator[Change]) -> None:
        self.changes = changes
        self.is_busy = False


class SnapshotControl:
    """Answers for one volume."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._snapshots = volume.snapshots
        self._sessions: OrderedDict[int, _Session] = OrderedDict()
        self._last_session = 0

    def methods(self) -> Mapping[str, Handler]:
        """Return the methods by name."""
        return {
            "snapshots": (SnapshotQuery, self._list),
            "snapshot_keep": (SnapshotKeep, self._keep),
            "snapshot_forget": (SnapshotForget, self._forget),
            "snapshot_policy": (SnapshotPolicy, self._policy),
            "snapshot_diff": (SnapshotDiff, self._diff),
            "snapshot_restore": (SnapshotRestore, self._restore),
        }

    async def _list(self, query: SnapshotQuery) -> SnapshotPage:
        rows = await self._volume.core.run(self._snapshots.rows_from, max(1, query.first), PAGE)
        following = rows[-1].sequence + 1 if len(rows) == PAGE else 0
        return SnapshotPage(tuple(map(describe, rows)), following)

    async def _keep(self, request: SnapshotKeep) -> SnapshotInfo:
        row = await self._snapshots.keep(request.snapshot, name=request.name, kept=request.kept)
        await self._volume.journal.flush()
        return describe(row)

    async def _forget(self, request: SnapshotForget) -> SnapshotPage:
        rows = await self._snapshots.forget(request.snapshots)
        await self._volume.journal.flush()
        return SnapshotPage(tuple(map(describe, rows)), 0)

    async def _policy(self, request: SnapshotPolicy) -> SnapshotPolicy:
        to_forget = 0
        if request.policy:
            to_forget = await self._snapshots.set_policy(parse_policy(request.policy))
            await self._volume.journal.flush()
        return SnapshotPolicy(format_policy(await self._snapshots.policy()), to_forget)

    async def _restore(self, request: SnapshotRestore) -> SnapshotRestored:
        row = await self._snapshots.find(request.snapshot)
        done = await self._volume.restorer.restore(
            row, request.path, request.dest, force=request.force, caller=own_caller()
        )
        return SnapshotRestored(done.path, done.files, done.size)

    # ---- comparing -----------------------------------------------------------------------------------------------------
    async def _diff(self, request: SnapshotDiff) -> DiffPage:
        number = request.session or await self._begin(request)
        session = self._sessions.get(number)
        if session is None or session.is_busy:
            raise UsageError("that comparison is over: begin again")
        session.is_busy = True
        try:
            lines, is_last = await trio.to_thread.run_sync(take_page, session.changes)
        except BaseException:  # cancelled or failed, its session is of no more use
            self._end(number)
            raise
        session.is_busy = False
        if is_last:
            self._end(number)
            number = 0
        return DiffPage(tuple(DiffLine(*line) for line in lines), number)

    async def _begin(self, request: SnapshotDiff) -> int:
        old = (await self._snapshots.find(request.old)).root
        new = (await self._snapshots.find(request.new)).root if request.new else await self._present()
        self._last_session += 1
        number = self._last_session
        self._sessions[number] = _Session(compare(self._get, old, new))
        self._snapshots.pinned[-2 * number] = old
        self._snapshots.pinned[-2 * number - 1] = new
        while len(self._sessions) > SESSIONS_MAX:
            self._end(next(iter(self._sessions)))
        return number

    async def _present(self) -> bytes:
        """Return the root of the live state with all that has reached the driver."""
        if not self._volume.core.read_only:
            await self._volume.committer.request()
        return self._volume.core.overlay.root

    def _end(self, number: int) -> None:
        if self._sessions.pop(number, None) is not None:
            del self._snapshots.pinned[-2 * number], self._snapshots.pinned[-2 * number - 1]

    def _get(self, ref: bytes) -> Node:
        """Return a tree node, waiting for it. Worker thread."""
        nodes = self._volume.nodes
        while True:
            try:
                return nodes.get(ref)
            except NodeMissing:
                trio.from_thread.run(nodes.fetch, ref)


def take_page(changes: Iterator[Change]) -> tuple[list[Change], bool]:
    """Return the next differences, and whether they are the last. Worker thread."""
    lines: list[Change] = []
    size = 0
    for change in changes:
        lines.append(change)
        size += len(change.path) + len(change.path2)
        if len(lines) == PAGE or size >= PAGE_BYTES:
            return lines, False
    return lines, True


def describe(row: Snapshot) -> SnapshotInfo:
    """Return what the command line shows of a snapshot."""
    return SnapshotInfo(
        row.sequence,
        row.time,
        directory_name(row),
        row.name,
        row.kept or bool(row.name),
        row.files,
        row.size,
        row.records,
    )
