"""A mounted volume: its parts, how they start, and how they stop.

`open_volume` makes the parts, replays the journal, starts the tasks and yields a Volume; the FUSE adapter and the control
socket call it. Everything runs in one event loop. Leaving stops the tasks after a last group commit: what was written is
at D1, what is not stored yet goes on at the next mount.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio
import trio.lowlevel

from fsdecloud import limits
from fsdecloud.config import Paths, make_private_dir, read_private_file, write_private_file
from fsdecloud.crypto.keys import CONTEXT_PREFIX, VolumeKeys, derive
from fsdecloud.crypto.slots import VolumeDocument
from fsdecloud.driver.accesstimes import AccessTimes
from fsdecloud.driver.agentlink import AgentEvents, AgentLink
from fsdecloud.driver.anchors import Anchors, ask_ledger, fetch_manifest, patiently
from fsdecloud.driver.committer import Committer
from fsdecloud.driver.core import INODES_RESERVED, Core
from fsdecloud.driver.entries import Entries
from fsdecloud.driver.files import Files
from fsdecloud.driver.garbage import Collector
from fsdecloud.driver.grants import Grants
from fsdecloud.driver.history import AnchoredStates
from fsdecloud.driver.journal import META, Journal, replay
from fsdecloud.driver.listing import Lister
from fsdecloud.driver.meta import VolumeMeta, decode_meta
from fsdecloud.driver.namespace import Namespace
from fsdecloud.driver.payments import Payments
from fsdecloud.driver.reader import Reader
from fsdecloud.driver.recorder import Caller
from fsdecloud.driver.restore import Restorer
from fsdecloud.driver.sealer import Sealer
from fsdecloud.driver.snapshots import Snapshots
from fsdecloud.driver.spending import Spending
from fsdecloud.driver.supervisor import Incidents, Supervisor, describe, is_thread_shortage
from fsdecloud.driver.treenodes import TreeNodes
from fsdecloud.driver.uploads import Uploads
from fsdecloud.driver.views import Views
from fsdecloud.driver.xattrs import Xattrs
from fsdecloud.errors import FsdecloudError, MalformedError, NoSpace, StoreError, StoreFull
from fsdecloud.fs.keys import ROOT
from fsdecloud.fs.overlay import Overlay
from fsdecloud.fs.records import Operation
from fsdecloud.ledger.transactions import Anchor, decode_tx
from fsdecloud.mountoptions import MountOptions, served_name
from fsdecloud.store.cache import CacheStore
from fsdecloud.store.payments import PaymentStore
from fsdecloud.store.segments import Location, SegmentStore
from fsdecloud.store.state import StateStore
from fsdecloud.swarm.policy import parse_redundancy
from fsdecloud.types import Inode
from fsdecloud.wire.agentapi import (
    AgentHello,
    AgentStatus,
    Anchored,
    Bandwidth,
    Budget,
    DealsStatus,
    Empty,
    FetchedEntry,
    GarbageFinal,
    LedgerTip,
    Repaired,
    RepairStatus,
    WantedRedundancy,
)
from fsdecloud.wire.controlapi import Count, DriverStatus, IncidentCount

log = logging.getLogger(__name__)

AGENT_PATIENCE: Final = 10.0
"""Seconds that a command waits for an agent that is just being started."""

SEAL_TIMEOUT: Final = 30.0
"""Seconds that making everything durable waits for sealing; what is left then goes into the journal as it is."""

_EMPTIED_AT_ONCE: Final = 256

_MARKS_KEPT: Final = 1024

_ORPHAN_PREFIX: Final = b"O"


@dataclass(frozen=True, slots=True)
class VolumeSetup:
    """What it takes to open a volume."""

    paths: Paths
    document: VolumeDocument
    keys: VolumeKeys
    options: MountOptions
    mountpoint: str

    @property
    def served_name(self) -> str:
        """What the driver's lock, socket and log are called after: NAME, or NAME@SNAPSHOT."""
        return served_name(self.document.name, self.options)

    @property
    def bandwidth(self) -> Bandwidth:
        """The limits of the traffic with peers: what the mount was asked for, else what the volume is set to."""
        options, document = self.options, self.document
        return Bandwidth(
            document.up if options.up is None else options.up,
            document.down if options.down is None else options.down,
        )


class Volume:
    """One open volume. The FUSE adapter calls its parts; everything here is for starting, stopping and showing."""

    def __init__(self, setup: VolumeSetup, store: StateStore, staged: SegmentStore, cache: CacheStore) -> None:
        self.setup = setup
        self.up, self.down = setup.bandwidth.up or 0, setup.bandwidth.down or 0
        """Limits of the traffic with peers, bytes per second, 0 for none; `set_bandwidth` changes them."""
        self.redundancy = setup.document.redundancy
        """What is asked for now; `set_redundancy` changes it while the document is read only at the start."""
        keys, options = setup.keys, setup.options
        self.store = store
        self.cache = cache
        data = store.meta(META)
        self.is_new = data is None
        self.meta = decode_meta(data) if data is not None else VolumeMeta()
        self.nodes = TreeNodes(keys.seal_secret)
        network = bytes.fromhex(setup.document.network)
        self.grants = Grants(keys, network)
        self.budget = setup.document.budget
        """What deals may cost a month; `set_budget` changes it."""
        noted = PaymentStore(setup.paths.volume_state(setup.document.name) / "payments", keys.at_rest_key)
        self.spending = Spending(keys, network, noted, lambda: self.budget)
        self.agent = AgentLink(
            self._hello,
            AgentEvents(self._agent_ready, self._stored, self._anchored, self._tip, self._garbage, self._repaired),
            {**self.grants.methods(), **self.spending.methods()},
        )
        self.entries = Entries(keys.seal_secret, staged, cache, self.agent, options.timeout)
        self.nodes.attach(self.entries)
        self.core = Core(keys, Overlay(self.nodes.get, self.meta.root), self.nodes.fetch)
        if options.read_only:
            self.core.read_only = "mounted with -o ro"
        self.xattrs = Xattrs(self.core, has_acl=options.acl)
        self.namespace = Namespace(self.core, self.xattrs)
        self.lister = Lister(self.core, self.namespace, self.nodes)
        self.access_times = AccessTimes(self.core, options)
        self.reader = Reader(self.core, self.entries)
        self.sealer = Sealer(self.core, self.entries, self.reader.load_plain)
        self.files = Files(
            self.core, self.entries, self.sealer, kernel_times=options.writeback, stage_size=options.stage_size
        )
        self.namespace.on_named = self.files.keep_whole
        self.journal = Journal(self.core, self.files, self.entries, store)
        self.committer = Committer(
            self.core, self.files, self.entries, self.sealer, self.journal, self.nodes, self.meta
        )
        self.anchors = Anchors(
            self.core,
            self.entries,
            self.committer,
            self.agent,
            network=bytes.fromhex(setup.document.network),
            device_seed=device_seed(setup.paths),
        )
        self.uploads = Uploads(self.entries, keys.deal_secret, self.core.changed_quietly, lambda: self.files.last_write)
        self.journal.on_durable = self.uploads.add
        self.committer.on_commit = self._committed
        self.incidents = Incidents()
        self.supervisor = Supervisor(self.incidents, self.core.fail_safe)
        self.slow_requests: Callable[[], tuple[int, int]] = lambda: (0, 0)
        """How many requests were slow, and how many were ended by the deadline; the adapter knows."""
        self.last_error = ""
        self.states = AnchoredStates(setup.paths, keys, self.agent, self.read_fetched)
        self.snapshots = Snapshots(self.core, self.committer, self.states, lambda: self.ledger_time)
        self.views = Views(self.core, self.reader, self.snapshots, has_acl=options.acl)
        self.restorer = Restorer(
            self.core, self.namespace, self.journal, self.committer, self.snapshots, self.views, self.maybe_reap
        )
        self.collector = Collector(
            self.core,
            self.entries,
            self.nodes,
            self.snapshots,
            self.committer,
            self.anchors,
            self.agent,
            self.grants,
            setup.paths.volume_state(setup.document.name) / "gc",
            lambda: self.files.last_write,
            self.uploads.let_go,
        )
        self.payments = Payments(self.core, noted, self.committer)
        self.spending.pay = self.payments.pay
        self.snapshots.on_forget = self._forgotten
        self.anchors.on_anchored = self.snapshots.look_for_gaps
        self.ledger_time = 0
        """Time of the ledger's tip, seconds since 1970; 0 while unknown."""
        self.ledger_height = -1
        self._ledger_came = trio.Event()
        self._agent_status: AgentStatus | None = None
        self._stored_sequence = 0
        self._commit_marks: list[tuple[int, int]] = []
        self._reap_queue: list[Inode] = []
        self._reap_wake = trio.Event()
        self.stop_requested = trio.Event()

    # ---- the agent ---------------------------------------------------------------------------------------------------
    def _hello(self) -> AgentHello:
        setup, meta = self.setup, self.committer.meta
        state = setup.paths.volume_state(setup.document.name)
        return AgentHello(
            volume=setup.keys.volume_id,
            deal_secret=setup.keys.deal_secret,
            repair_secret=setup.keys.repair_secret,
            state_dir=str(state / "agent"),
            staged_dir=str(state / "staged"),
            cache_dir=str(self.cache.segment_directory),
            ledger_socket=str(setup.paths.socket("ledger")),
            network=bytes.fromhex(setup.document.network),
            redundancy=self.redundancy,
            map_root=meta.map_root,
            host_map=meta.host_map,
            map_sequence=meta.sequence,
            repair=not setup.options.read_only,
            up=self.up,
            down=self.down,
            bootstrap=setup.document.bootstrap,
            lan=setup.document.lan,
            wallet=b"" if setup.options.read_only else self.spending.key,
            budget=self.budget,
        )

    def _agent_ready(self) -> None:
        self.uploads.start_over()
        self.anchors.resubmit()

    def _stored(self, notice: object) -> None:
        self.uploads.take_stored(notice)  # type: ignore[arg-type]
        self._advance()

    def _anchored(self, notice: Anchored) -> None:
        self.anchors.take_anchored(notice)

    def _forgotten(self, sequence: int) -> None:
        self.views.forget(sequence)
        self.collector.note_forgotten()

    def _garbage(self, notice: GarbageFinal) -> None:
        self.collector.note_final(notice)

    def _repaired(self, notice: Repaired) -> None:
        """Record it, and anchor the location map, so that other machines find the shards where they are now."""
        if self.core.read_only:
            return
        if notice.blobs:
            text = f"{notice.blobs} blobs that lacked shards have them again"
            if notice.redundancy:
                text = f"{notice.blobs} blobs are stored with redundancy {notice.redundancy} now"
            self.core.recorder.record(
                Operation.REPAIR, own_caller(), ROOT, b"", path2=text.encode(), amount=notice.blobs
            )
            self.core.changed_quietly()
        self.anchors.force()

    def _tip(self, notice: LedgerTip) -> None:
        if self.ledger_height < 0 <= notice.height:
            self._ledger_came.set()
        self.ledger_height, self.ledger_time = notice.height, notice.time

    # ---- commits and their levels ------------------------------------------------------------------------------------
    def _committed(self) -> None:
        commit = self.committer.latest
        self._commit_marks.append((commit.mark, commit.change_sequence))
        if len(self._commit_marks) > _MARKS_KEPT:
            del self._commit_marks[1::2]  # while the peers are away for days, this is known less finely
        self._advance()
        self.anchors.poke()

    def _advance(self) -> None:
        """Note which commits are stored completely by now."""
        while self._commit_marks and self.entries.is_complete(self._commit_marks[0][0]):
            self._stored_sequence = self._commit_marks.pop(0)[1]

    async def flush(self) -> None:
        """Make everything done so far D1. Raises NoSpace, StoreError; an unexpected failure turns the volume failsafe."""
        self.core.check_sound()
        try:
            await self.journal.flush()
        except FsdecloudError:
            raise
        except Exception as exc:  # a bug; what is and what is not on the disk is unknown
            if not is_thread_shortage(exc):
                self.core.fail_safe(f"journal: {describe(exc)}")
            raise

    async def sync(self, wait: str) -> None:
        """Make everything written so far D1; for "stored" and "anchored" also start committing it."""
        await self._make_durable()
        if wait != "durable":
            self.anchors.poke(urgent=True)
            self.committer.poke()
            await self.committer.request()
            await self.flush()
            self.uploads.hurry()
            self.uploads.roll_when_stored()
            self.anchors.poke(urgent=wait == "anchored")

    # ---- removed files ---------------------------------------------------------------------------------------------------
    def maybe_reap(self, ino: int) -> None:
        """Delete a file's contents if it has no name, no handle and no look-up left."""
        if ino not in self.core.orphans or self.core.inodes.lookups.get(ino):
            return  # what was removed before this mount is `reap_orphans`' business
        self._reap_queue.append(Inode(ino))
        self._reap_wake.set()

    async def _run_reaper(self) -> None:
        while True:
            while self._reap_queue:
                await self._reap(self._reap_queue.pop())
            await self._reap_wake.wait()
            self._reap_wake = trio.Event()

    async def _reap(self, ino: int) -> None:
        try:
            live = await self.core.run(self.core.inodes.get, ino)
            if live.nlink == 0 and not live.opens and not self.core.inodes.lookups.get(ino):
                while live.is_dir and (names := await self.core.run(self.namespace.empty, ino, _EMPTIED_AT_ONCE)):
                    for gone in names:
                        self.maybe_reap(gone.ino)
                    await trio.lowlevel.checkpoint()
                await self.files.reap(live)
        except FsdecloudError as exc:
            log.info("inode %d is reaped later: %s", ino, exc)  # it stays listed as an orphan

    async def _reap_orphans_in_time(self) -> None:
        try:
            await self.reap_orphans()
        except FsdecloudError as exc:
            log.info("files removed while open are reaped at a later mount: %s", exc)

    async def reap_orphans(self) -> None:
        """Delete what was removed while it was open, before the last unmount or crash."""
        keys = await self.core.run(lambda: [key for key, _ in self.core.overlay.scan_prefix(_ORPHAN_PREFIX)])
        for key in keys:
            await self._reap(int.from_bytes(key[1:], "big"))

    # ---- starting ------------------------------------------------------------------------------------------------------
    async def start(self, nursery: trio.Nursery) -> None:
        """Bring the volume to the state of its last group commit, and start its tasks.

        Raises UsageError when a first mount cannot learn from the ledger where the volume stands.
        """
        self._load_staged()
        await _check_threads()

        def run(name: str, task: Callable[[], Awaitable[None]], *, vital: bool = False, doubtful: bool = False) -> None:
            nursery.start_soon(partial(self.supervisor.run, name, task, vital=vital, doubtful=doubtful), name=name)

        def run_once(name: str, task: Callable[[], Awaitable[None]]) -> None:
            nursery.start_soon(self.supervisor.once, name, task)

        run("agent link", self.agent.run)
        run("cache writer", partial(self.entries.run_cache_writer, self.setup.options.cache_size))
        run("syncer", self.entries.run_syncer)
        if self.is_new:
            await self._adopt_ledger()
        self.journal.records_journaled = replay(self.core, self.files, self.store.replay(), self.committer.meta.batched)
        await self.files.install_replayed()
        await self.core.run(self.core.load_superblock)
        if not self.core.overlay.root and self.core.overlay.get(b"I" + ROOT.to_bytes(8, "big")) is None:
            self.core.create_root(os.getuid(), os.getgid())
            self.snapshots.note_new_volume()
        else:
            await self.core.run(self.core.inodes.get, ROOT)
        self._reserve_inodes()
        if self.core.overlay.has_changes or self.core.recorder.pending:
            self.core.changed()
        self.reader.start(partial(run_once, "read-ahead"))
        run("sealer", self.sealer.run, vital=True)
        run("journal", self.journal.run, vital=True, doubtful=True)
        run("committer", self.committer.run, vital=True)
        run("anchors", self.anchors.run)
        run("uploads", partial(self.uploads.run, self.agent))
        run("release", self.uploads.run_release)
        run("reaper", self._run_reaper)
        run("head check", self._run_head_check)
        run("snapshots", self.snapshots.run_filler)
        run("garbage", self.collector.run)
        run("payments", self.payments.run)
        if not self.core.read_only:
            run_once("orphans", self._reap_orphans_in_time)
        self.core.recorder.record(Operation.MOUNT, own_caller(), ROOT, self.setup.mountpoint.encode())
        self.core.changed()
        try:
            if not self.core.read_only:
                await self.committer.save_meta(inode_bound=self.core.inode_bound)
            await self.flush()
        except (StoreFull, NoSpace) as exc:  # fault 13: what fills the disk may be what only a mount can store
            log.warning("mounted on a full disk: %s", exc)
            self.core.inode_bound = min(self.core.inode_bound, self.core.next_inode)
            self.entries.wake_cache_writer()
        self.committer.poke()

    def _reserve_inodes(self) -> None:
        """Begin with inode numbers that nobody can have seen: a crash may have forgotten the last ones given out."""
        core, meta = self.core, self.committer.meta
        if self.is_new and meta.root:
            core.next_inode += INODES_RESERVED  # the machine that wrote this volume may have been further
        core.next_inode = max(core.next_inode, meta.inode_bound)
        core.inode_bound = core.next_inode + INODES_RESERVED

    async def _adopt_ledger(self) -> None:
        """Take the volume's latest anchored state from the ledger, on a machine that has none of its own."""
        found = await ask_ledger(self.agent, self.setup.document.name)
        if not found.tx:
            await self.committer.save_meta()
            return
        anchor = decode_tx(found.tx)
        if not isinstance(anchor, Anchor):
            raise MalformedError("the ledger daemon answered with something that is no anchor")
        manifest = await patiently(partial(fetch_manifest, self.setup.keys, anchor, self.agent, self.read_fetched))
        meta = VolumeMeta(
            root=manifest.root.to_bytes(),
            sequence=anchor.sequence,
            commitment=anchor.commitment,
            anchored_root=manifest.root.to_bytes(),
            anchor_time=manifest.time // 10**9,
            map_root=manifest.map_root,
            host_map=manifest.host_map,
            takeover=True,
        )
        self.committer.adopt(meta)
        await self.committer.save_meta()
        self.core.overlay.root = meta.root
        self.anchors.height = found.height
        self.agent.restart()  # so that it starts from this manifest's location map

    def _load_staged(self) -> None:
        """Take back the staged entries. A segment that the index names and the disk lacks was handed to the cache just
        before the last end (it was stored completely); one that the index does not name was never acknowledged."""
        segments = self.entries.segments
        present = segments.sizes()
        for entry, location in self.store.staged():
            if location.segment in present:
                self.entries.add_staged(entry, location, new=False)
            else:
                self.entries.put_back([], [entry])
        used = {location.segment for location in self.entries.staged.values()}
        for number in present.keys() - used:
            segments.remove(number)

    def read_fetched(self, answer: FetchedEntry) -> bytes:
        """Return the sealed bytes of an entry that the agent put into its cache segments."""
        return self.cache.fetched.read(Location(answer.segment, answer.offset, answer.length))

    async def _run_head_check(self) -> None:
        """Compare with the ledger's head whenever its daemon comes (back); anchoring compares by itself."""
        while True:
            await self._ledger_came.wait()
            self._ledger_came = trio.Event()
            try:
                await self.anchors.check_head()
            except FsdecloudError as exc:
                log.info("the ledger's head is not known yet: %s", exc)
            self.anchors.poke()

    async def stop(self) -> None:
        """Record the unmount, let go of what is stored, and make everything D1. In failsafe, leave the disk as it is."""
        if self.core.failure:
            return
        self.core.recorder.record(Operation.UNMOUNT, own_caller(), ROOT, self.setup.mountpoint.encode())
        self.core.inodes.touch_lazy()
        self.core.changed()
        await self._make_durable()  # before anything that may fail
        self.uploads.roll_when_stored()
        try:
            await self.uploads.release()
        except StoreError as exc:
            log.warning("a stored segment stays in the staging area: %s", exc)
        await self.flush()
        if not self.core.read_only:
            await self.committer.save_meta(inode_bound=self.core.next_inode)

    async def _make_durable(self) -> None:
        """Bring every dirty byte to D1: closed layers sealed or, where that cannot be, as pages."""
        with trio.move_on_after(SEAL_TIMEOUT), suppress(NoSpace, StoreError):
            await self.files.make_sealed_or_pages(self.sealer.waiting_chunks())
        self.files.journal_closed(self.sealer.waiting_chunks())
        await self.flush()

    async def set_redundancy(self, redundancy: str) -> None:
        """Store new blobs with this redundancy. Raises UsageError for one that is none, RemoteError without an agent."""
        parse_redundancy(redundancy)
        self.redundancy = redundancy
        await self.agent.call("redundancy", WantedRedundancy(redundancy), Empty, timeout=AGENT_PATIENCE)

    async def set_bandwidth(self, wanted: Bandwidth) -> None:
        """Limit the traffic with peers from now on, but for what the mount's own options say. Raises RemoteError."""
        options = self.setup.options
        if wanted.up is not None and options.up is None:
            self.up = wanted.up
        if wanted.down is not None and options.down is None:
            self.down = wanted.down
        await self.agent.call("bandwidth", Bandwidth(self.up, self.down), Empty, timeout=AGENT_PATIENCE)

    async def set_budget(self, budget: Budget) -> None:
        """Let deals cost so much a month from now on; those that run go on to their ends. Raises RemoteError without an agent:
        it holds all the same, once there is one."""
        self.budget = budget.amount
        await self.agent.call("budget", budget, Empty, timeout=AGENT_PATIENCE)

    # ---- showing -------------------------------------------------------------------------------------------------------
    async def status(self) -> DriverStatus:
        """Return the mount's state. Never waits for the network."""
        if self.agent.connection is not None:
            with trio.move_on_after(1.0):
                try:
                    self._agent_status = await self.agent.call("status", Empty(), AgentStatus)
                except FsdecloudError as exc:
                    log.debug("agent status: %s", exc)
        known = self._agent_status
        dirty_bytes = self.sealer.dirty_bytes
        warnings = [known.warning] if known is not None and known.warning else []
        if known is not None:
            warnings += known.deals.warnings
        warnings += self.supervisor.failing()
        if self.agent.trouble:
            warnings.append(self.agent.trouble)
        if overdue := self.anchors.warning():
            warnings.append(overdue)
        if self.core.recorder.dropped:
            warnings.append(f"{self.core.recorder.dropped} reads could not be recorded")
        slow, timed_out = self.slow_requests()
        errors = [self.anchors.last_error, self.committer.last_error, self.uploads.last_error, self.last_error]
        if known is not None:
            errors.append(known.last_error)
        if self.journal.error is not None:
            errors.insert(0, str(self.journal.error))
        if self.sealer.error is not None:
            errors.insert(0, str(self.sealer.error))
        self._advance()
        return DriverStatus(
            volume=self.setup.document.name,
            mountpoint=self.setup.mountpoint,
            read_only=self.core.read_only,
            driver_pid=os.getpid(),
            agent_pid=self.agent.pid,
            ledger_pid=known.ledger_pid if known is not None else 0,
            dirty=Count(self.sealer.dirty_chunks, dirty_bytes),
            staged=Count(len(self.entries.incomplete), self.entries.incomplete_bytes),
            stored=Count(self.entries.stored_count, self.entries.stored_bytes),
            anchored=Count(self.anchors.anchored_count, self.anchors.anchored_bytes),
            written_sequence=self.core.change_sequence,
            durable_sequence=self.journal.durable_sequence,
            stored_sequence=self._stored_sequence,
            anchored_sequence=self.anchors.anchored_sequence,
            anchor_height=self.anchors.height,
            ledger_height=known.ledger_height if known is not None else self.ledger_height,
            peers=known.peers if known is not None else (),
            k=known.k if known is not None else 0,
            n=known.n if known is not None else 0,
            warnings=tuple(warnings),
            files=self.core.files,
            logical_bytes=self.core.bytes,
            cache_bytes=self.cache.used_bytes,
            uploaded_bytes=known.uploaded_bytes if known is not None else 0,
            downloaded_bytes=known.downloaded_bytes if known is not None else 0,
            handler_errors=self.incidents.count("handler"),
            last_error=next((error for error in errors if error), ""),
            is_failsafe=bool(self.core.failure),
            incidents=tuple(IncidentCount(found.where, found.count, found.last) for found in self.incidents.all()),
            agent_restarts=self.agent.restarts,
            slow_requests=slow,
            timed_out_requests=timed_out,
            gc=self.collector.status,
            live_inodes=len(self.core.inodes),
            kernel_inodes=len(self.core.inodes.lookups),
            integrity_errors=self.entries.integrity_errors,
            repair=known.repair if known is not None else RepairStatus(),
            redundancy=self.redundancy,
            up_limit=self.up,
            down_limit=self.down,
            deals=known.deals if known is not None else DealsStatus(budget=self.budget),
        )


@asynccontextmanager
async def open_volume(setup: VolumeSetup) -> AsyncIterator[Volume]:
    """Open a volume and run its tasks for the length of the body.

    The caller holds the volume's lock. Raises StoreCorrupt, StoreLocked, UsageError, MalformedError.
    """
    name = setup.document.name
    state = make_private_dir(setup.paths.volume_state(name))
    cache_dir = make_private_dir(setup.paths.volume_cache(name))
    with (
        StateStore(state / "state.lmdb", setup.keys.at_rest_key, setup.keys.volume_id) as store,
        SegmentStore(make_private_dir(state / "staged"), "staged") as staged,
        CacheStore(cache_dir, limit=setup.options.cache_size) as cache,
    ):
        volume = Volume(setup, store, staged, cache)
        async with trio.open_nursery() as nursery:
            try:
                await volume.start(nursery)
                try:
                    yield volume
                finally:  # whatever ended the body: what programs wrote is made durable
                    with trio.CancelScope(shield=True), trio.move_on_after(limits.HANDLER_DEADLINE):
                        await volume.supervisor.once("stop", volume.stop)
            finally:
                volume.reader.stop()
                nursery.cancel_scope.cancel()


async def _check_threads() -> None:
    """Raise StoreError when the system gives no thread: everything that touches a disk needs one (fault 29)."""
    try:
        await trio.to_thread.run_sync(os.getpid)
    except RuntimeError as exc:
        raise StoreError(f"cannot start a thread: {exc}; the limit on processes or memory is reached") from exc


def device_seed(paths: Paths) -> bytes:
    """Return this machine's Ed25519 seed for anchors, derived from its device key, which is made on first use."""
    if not paths.device_key.exists():
        write_private_file(paths.device_key, os.urandom(32))
    return derive(read_private_file(paths.device_key)[:32], CONTEXT_PREFIX + "device")


def own_caller() -> Caller:
    """Return this process as the caller of an operation."""
    return Caller(os.getuid(), os.getgid(), os.getpid(), 0o022)
