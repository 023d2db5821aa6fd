"""A snapshot mounted alone, `-o snapshot=…`: read-only, beside a mount of the same volume or on another machine.

It has no journal, no committer and no anchors, and touches nothing that the volume's writer has: its agent begins, as on a
new machine, with the latest anchored manifest (the location map in it knows all older states too), and its state and cache
are directories of its own, deleted at the end. Which snapshots there are is read from the latest anchored tree, and for the
last few anchors, whose rows are in no tree yet, from their manifests.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Final

import trio

from fsdecloud.config import make_private_dir
from fsdecloud.driver.agentlink import AgentEvents, AgentLink
from fsdecloud.driver.anchors import ask_ledger, fetch_manifest, patiently
from fsdecloud.driver.core import Core
from fsdecloud.driver.entries import Entries
from fsdecloud.driver.history import AnchoredStates
from fsdecloud.driver.inodes import INODES_KEPT
from fsdecloud.driver.reader import Reader
from fsdecloud.driver.snapshots import RECENT, describe_anchor
from fsdecloud.driver.supervisor import Incidents, Supervisor
from fsdecloud.driver.treenodes import TreeNodes
from fsdecloud.driver.unreadable import Search
from fsdecloud.driver.views import View
from fsdecloud.driver.volume import VolumeSetup
from fsdecloud.errors import BlockPruned, FsdecloudError, MalformedError, UsageError
from fsdecloud.fs.history import ALL_HERE, Snapshot, decode_snapshot, directory_name, find_snapshot
from fsdecloud.fs.keys import ROOT, batches_key
from fsdecloud.fs.manifest import Manifest
from fsdecloud.fs.overlay import Overlay
from fsdecloud.ledger.transactions import Anchor, decode_tx
from fsdecloud.store.cache import CacheStore
from fsdecloud.store.segments import Location, SegmentStore
from fsdecloud.wire.agentapi import AgentHello, AgentStatus, Empty, FetchedEntry
from fsdecloud.wire.controlapi import Count, DriverStatus, IncidentCount

log = logging.getLogger(__name__)

MOUNT_FAILED: Final = 32


class StateMount:
    """One mounted snapshot."""

    def __init__(self, setup: VolumeSetup, state: Path, staged: SegmentStore, cache: CacheStore) -> None:
        self.setup = setup
        self.cache = cache
        self._state = state
        keys = setup.keys
        self._nodes = TreeNodes(keys.seal_secret)
        self._map = (b"", b"", 0)
        nothing = AgentEvents(lambda: None, *[lambda _notice: None] * (len(fields(AgentEvents)) - 1))
        self._agent = AgentLink(self._hello, nothing, {})
        self._entries = Entries(keys.seal_secret, staged, cache, self._agent, setup.options.timeout)
        self._nodes.attach(self._entries)
        self.core = Core(keys, Overlay(self._nodes.get, b""), self._nodes.fetch)
        self._reader = Reader(self.core, self._entries)
        self._states = AnchoredStates(setup.paths, keys, self._agent, self._read_fetched)
        self.incidents = Incidents()
        self.supervisor = Supervisor(self.incidents, self.core.fail_safe)
        self.slow_requests: Callable[[], tuple[int, int]] = lambda: (0, 0)
        self.stop_requested = trio.Event()
        self.last_error = ""
        self._height = -1
        self._agent_status: AgentStatus | None = None
        self.view: View

    def _hello(self) -> AgentHello:
        setup = self.setup
        map_root, host_map, sequence = self._map
        return AgentHello(
            volume=setup.keys.volume_id,
            deal_secret=setup.keys.deal_secret,
            repair_secret=setup.keys.repair_secret,
            state_dir=str(self._state / "agent"),
            staged_dir=str(self._state / "staged"),
            cache_dir=str(self.cache.segment_directory),
            ledger_socket=str(setup.paths.socket("ledger")),
            network=bytes.fromhex(setup.document.network),
            redundancy=setup.document.redundancy,
            map_root=map_root,
            host_map=host_map,
            map_sequence=sequence,
            up=setup.bandwidth.up or 0,
            down=setup.bandwidth.down or 0,
            bootstrap=setup.document.bootstrap,
            lan=setup.document.lan,
        )

    def _read_fetched(self, answer: FetchedEntry) -> bytes:
        return self.cache.fetched.read(Location(answer.segment, answer.offset, answer.length))

    async def start(self, nursery: trio.Nursery) -> None:
        """Find the snapshot. Raises UsageError when there is none such, RemoteError when it cannot be read."""
        options = self.setup.options
        for name, task in (
            ("agent", self._agent.run),
            ("cache writer", partial(self._entries.run_cache_writer, options.cache_size)),
        ):
            nursery.start_soon(self.supervisor.run, name, task)
        found = await ask_ledger(self._agent, self.setup.document.name)
        if not found.tx:
            raise UsageError(
                f"volume {self.setup.document.name} has no snapshot: nothing was ever anchored", MOUNT_FAILED
            )
        anchor = decode_tx(found.tx)
        if not isinstance(anchor, Anchor):
            raise MalformedError("the ledger daemon answered with something that is no anchor")
        manifest = await patiently(partial(fetch_manifest, self.setup.keys, anchor, self._agent, self._read_fetched))
        self._height = found.height
        self._map = (manifest.map_root, manifest.host_map, anchor.sequence)
        self._agent.restart()  # so that it starts from this manifest's location map
        self.core.overlay.root = manifest.root.to_bytes()
        self._reader.start(lambda task: nursery.start_soon(self.supervisor.once, "read-ahead", task))
        row = find_snapshot(await self._rows(anchor, manifest), options.snapshot)
        self.view = View(
            row,
            self.setup.keys,
            self.core.overlay.at(row.root),
            self._nodes.fetch,
            self._reader.of,
            base=0,
            has_acl=options.acl,
            kept=INODES_KEPT,
        )
        self.view.core.read_only = f"snapshot {row.sequence}, {directory_name(row)}"
        await self.view.core.run(self.view.core.inodes.get, ROOT)

    async def _rows(self, anchor: Anchor, manifest: Manifest) -> list[Snapshot]:
        """Return all snapshots, ascending."""
        overlay, last = self.core.overlay, anchor.sequence
        rows = await self.core.run(lambda: [decode_snapshot(key, data) for key, data in overlay.scan_prefix(b"H")])
        complete = await self.core.run(overlay.get, ALL_HERE[0]) is not None
        for sequence in range(max(1, last - RECENT) if complete else 1, last + 1):
            if await self.core.run(overlay.get, batches_key(sequence, 0)) is not None:
                continue  # in the tree, or forgotten
            try:
                found = (None, anchor, manifest) if sequence == last else await self._states.get(sequence)
            except BlockPruned as exc:
                log.warning("snapshot %d is not listed: %s", sequence, exc)
                continue
            if found is not None:
                rows.append((await describe_anchor(self.core, found[1], found[2])).snapshot)
        return sorted(rows, key=lambda row: row.sequence)

    def stop(self) -> None:
        """End what `start` began outside the nursery."""
        self._reader.stop()

    def search(self) -> Search:
        """Return a walk that looks for what cannot be read now."""
        return Search(self.view.core, self._entries, self._nodes, self._agent)

    async def status(self) -> DriverStatus:
        """Return the mount's state. Never waits for the network."""
        if self._agent.connection is not None:
            with trio.move_on_after(1.0):
                try:
                    self._agent_status = await self._agent.call("status", Empty(), AgentStatus)
                except FsdecloudError as exc:
                    log.debug("agent status: %s", exc)
        known = self._agent_status
        nothing = Count(0, 0)
        warnings = [*self.supervisor.failing(), *filter(None, [self._agent.trouble])]
        slow, timed_out = self.slow_requests()
        return DriverStatus(
            volume=self.setup.served_name,
            mountpoint=self.setup.mountpoint,
            read_only=self.view.core.read_only,
            driver_pid=os.getpid(),
            agent_pid=self._agent.pid,
            ledger_pid=known.ledger_pid if known is not None else 0,
            dirty=nothing,
            staged=nothing,
            stored=nothing,
            anchored=nothing,
            written_sequence=0,
            durable_sequence=0,
            stored_sequence=0,
            anchored_sequence=0,
            anchor_height=self._height,
            ledger_height=known.ledger_height if known is not None else -1,
            peers=known.peers if known is not None else (),
            k=known.k if known is not None else 0,
            n=known.n if known is not None else 0,
            warnings=tuple(warnings),
            files=self.view.snapshot.files,
            logical_bytes=self.view.snapshot.size,
            cache_bytes=self.cache.used_bytes,
            uploaded_bytes=known.uploaded_bytes if known is not None else 0,
            downloaded_bytes=known.downloaded_bytes if known is not None else 0,
            up_limit=self.setup.bandwidth.up or 0,
            down_limit=self.setup.bandwidth.down or 0,
            handler_errors=self.incidents.count("handler"),
            last_error=self.last_error or (known.last_error if known is not None else ""),
            incidents=tuple(IncidentCount(found.where, found.count, found.last) for found in self.incidents.all()),
            agent_restarts=self._agent.restarts,
            slow_requests=slow,
            timed_out_requests=timed_out,
            integrity_errors=self._entries.integrity_errors,
        )


@asynccontextmanager
async def open_state(setup: VolumeSetup) -> AsyncIterator[StateMount]:
    """Open a snapshot and run its tasks for the length of the body.

    The caller holds the lock of `setup.served_name`. Raises UsageError, RemoteError, StoreError.
    """
    name = setup.document.name
    state = setup.paths.volume_state(name).with_name(setup.served_name)
    cache_dir = setup.paths.volume_cache(name).with_name(setup.served_name)
    for directory in (state, cache_dir):  # what a killed driver left
        shutil.rmtree(directory, ignore_errors=True)
        make_private_dir(directory)
    try:
        with (
            SegmentStore(make_private_dir(state / "staged"), "staged") as staged,
            CacheStore(cache_dir, limit=setup.options.cache_size) as cache,
        ):
            mount = StateMount(setup, state, staged, cache)
            async with trio.open_nursery() as nursery:
                try:
                    await mount.start(nursery)
                    yield mount
                finally:
                    mount.stop()
                    nursery.cancel_scope.cancel()
    finally:
        for directory in (state, cache_dir):
            with suppress(OSError):
                shutil.rmtree(directory)
