"""Which entries the volume needs: everything reachable from any state that it may have to show again.

Marked are: the trees of all retained snapshots, of the committed, the anchored and the in-flight state, and of the commit
that an anchor is being made of; what waits in the overlay; every staged entry; every record batch and manifest of the whole
history. What is staged after a marking began is noted by `Entries.touched`. Nothing else can become needed: a reference
comes into the volume with a staged entry, or from a tree that is marked.

Walking is done in worker threads, some nodes at a time with pauses between; nodes that are not on this machine are fetched
as read-ahead, behind everybody else, and are kept in no memory but the walk's own.
"""

from __future__ import annotations

import time
from typing import Final

import trio

from fsdecloud.crypto.seal import Kind
from fsdecloud.driver.core import Core
from fsdecloud.driver.entries import Entries, raise_first
from fsdecloud.driver.snapshots import Snapshots
from fsdecloud.driver.treenodes import TreeNodes
from fsdecloud.fs.marks import Marks, entries_of
from fsdecloud.tree.node import Inner, Node, NodeMissing, decode_node
from fsdecloud.types import EntryId, Ref

STEP: Final = 0.02
"""Seconds of work in one step: a thread that computes costs every other one a share of the interpreter."""

REST: Final = 1.0
"""Rest after each step, in its length."""

FETCHES: Final = 16
"""Nodes fetched at once."""

KNOWN_MAX: Final = 500_000
"""Leaves remembered as seen, 40 MB; with more they are forgotten and some are read again."""


class Marker:
    """One marking."""

    def __init__(self, core: Core, entries: Entries, nodes: TreeNodes, snapshots: Snapshots, key: bytes) -> None:
        """`key` is 32 fresh random bytes."""
        self._core = core
        self._entries = entries
        self._nodes = nodes
        self._snapshots = snapshots
        self.marks = Marks(key)
        self.time = 0
        """When it began, seconds since 1970."""
        self.nodes = 0
        """Tree nodes walked so far."""
        self._seen: set[bytes] = set()
        self._seen_leaves: set[bytes] = set()
        self._fetched: dict[bytes, Node] = {}
        """Nodes that were fetched and not walked yet."""

    async def run(self) -> Marks:
        """Mark everything. `Entries.touched` must be set before. Raises RemoteError when a node cannot be had."""
        roots = await self._snapshots.retained_roots()
        # From here to the next await nothing changes: what comes later is staged later, or comes from one of the roots.
        self.time = int(time.time())
        overlay = self._core.overlay
        roots += self._snapshots.current_roots()
        staged = list(self._entries.staged)
        pending = [*overlay.frozen.items(), *overlay.current.items()]
        batches = self._snapshots.pending_batches()
        await trio.to_thread.run_sync(self._mark, staged, pending, [ref.id for ref in batches])
        for root in dict.fromkeys(root for root in roots if root):
            await self._walk(root)
        await trio.to_thread.run_sync(self._mark, list(self._entries.staged), [], [])
        return self.marks

    def _mark(self, staged: list[EntryId], pending: list[tuple[bytes, bytes | None]], batches: list[EntryId]) -> None:
        self.marks.update(staged)
        self.marks.update(batches)
        self.marks.update(entries_of((key, value) for key, value in pending if value is not None))

    async def _walk(self, root: bytes) -> None:
        stack = [root]
        while stack:
            started = trio.current_time()
            absent = await trio.to_thread.run_sync(self._walk_some, stack)
            await trio.sleep((trio.current_time() - started) * REST)
            if absent:
                stack += absent
                await self._fetch(absent)

    def _walk_some(self, stack: list[bytes]) -> list[bytes]:
        """Walk nodes off the stack for a while; return those that are not on this machine. Worker thread."""
        absent: list[bytes] = []
        end = time.monotonic() + STEP
        while stack and len(absent) < FETCHES and time.monotonic() < end:
            ref = stack.pop()
            if ref[:16] in self._seen or ref[:16] in self._seen_leaves:
                continue
            try:
                node = self._fetched.pop(ref, None) or self._nodes.read(ref)
            except NodeMissing:
                absent.append(ref)
                continue
            self._visit(ref, node, stack)
        return absent

    def _visit(self, ref: bytes, node: Node, stack: list[bytes]) -> None:
        self.nodes += 1
        self.marks.add(ref[:32])
        if isinstance(node, Inner):
            self._seen.add(ref[:16])
            stack.extend(reversed(node.refs))
            return
        self.marks.update(entries_of(zip(node.keys, node.values, strict=True)))
        if len(self._seen_leaves) >= KNOWN_MAX:
            self._seen_leaves.clear()
        self._seen_leaves.add(ref[:16])

    async def _fetch(self, refs: list[bytes]) -> None:
        async def fetch(ref: bytes) -> None:
            data = await self._entries.get(Ref.from_bytes(ref), Kind.NODE, ahead=True)
            self._fetched[ref] = decode_node(data)

        try:
            async with trio.open_nursery() as nursery:
                for ref in refs:
                    nursery.start_soon(fetch, ref)
        except BaseExceptionGroup as group:  # the workers' group; the caller wants the error itself
            raise_first(group)
