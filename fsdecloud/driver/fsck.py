"""Checking a volume that is not mounted, and putting right what can be (`decloud fsck`).

    stores        the state opens, the journal replays, the cache's index opens       `fsckstate`
    staged        every staged entry reads back and has its id
    trees         of the present, of every retained snapshot: nodes, references       `fsckwalk`
    map           inodes, names, links, counters                                      `fs.checkmap`
    receipts      whether those that the agent keeps bear out the location map
    peers         whether they say that they have all shards, if asked for
    repair        and the map once more, until nothing is left that can be repaired    `fsckrepair`

The present is the committed tree under the replayed journal: what the next mount begins with. If any of it cannot be read,
nothing in the map is changed: what is not seen could be taken for missing.

Checks run in worker threads, a moment at a time. Memory: 35 bytes for each inode, 100 for each tree node, 200 for each staged
entry and each change that waits in the journal, and FINDINGS_MAX findings: about 250 MB for a million inodes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
import trio

from fsdecloud import codec
from fsdecloud.crypto.keys import VolumeKeys
from fsdecloud.crypto.seal import entry_id
from fsdecloud.driver.agentlink import AgentLink
from fsdecloud.driver.fsckrepair import Repairer
from fsdecloud.driver.fsckstate import Opened, Places, Source, no_events, open_stores, replay_journal
from fsdecloud.driver.fsckwalk import Walk
from fsdecloud.driver.meta import VolumeMeta
from fsdecloud.driver.volume import VolumeSetup
from fsdecloud.errors import MalformedError, RemoteError, StoreCorrupt, StoreError, UsageError
from fsdecloud.fs.checkmap import MapCheck
from fsdecloud.fs.findings import DAMAGE, FAULT, NOTE, Finding, Restage, Rows, Steps
from fsdecloud.fs.history import decode_snapshot
from fsdecloud.fs.inode import decode_inode
from fsdecloud.fs.keys import inode_key
from fsdecloud.fs.overlay import Overlay
from fsdecloud.store.cache import CacheStore
from fsdecloud.store.segments import Location
from fsdecloud.types import EntryId
from fsdecloud.wire.agentapi import AgentHello, ReceiptPage, ShardPage, ShardQuery

STEP: Final = 0.05
"""Seconds of checking in one step of a worker thread: then Ctrl-C and the progress get their turn."""

FINDINGS_MAX: Final = 20_000
"""Findings of one look that are kept; with repairs, the next look finds more."""

ROUNDS_MAX: Final = 50
"""Looks at the map in one run. One repair uncovers another a few times at most; the rest is for very many findings."""

PATHS_MAX: Final = 200
"""Findings that are given their path: each may read a large directory."""

SHARDS_TIMEOUT: Final = 120.0

_CODES_REPAIRED, _CODES_LEFT = 1, 4


@dataclass(frozen=True, slots=True)
class FsckOptions:
    """What to do."""

    repair: bool = False
    data: bool = False
    """Read everything that is referred to."""
    network: bool = False
    """Ask the peers for all shards."""
    offline: bool = False
    """Ask nobody."""
    quick: bool = False
    """Only open the stores and replay the journal, as at boot."""


@dataclass(slots=True)
class Report:
    """What was found."""

    findings: list[Finding] = field(default_factory=list)
    repaired: set[Finding] = field(default_factory=set)
    inodes: int = 0
    names: int = 0
    bytes: int = 0
    snapshots: int = 0
    nodes: int = 0
    references: int = 0
    unchecked: int = 0
    """References to entries that are not on this machine and were not asked for."""
    read_bytes: int = 0
    staged: int = 0
    receipts: int = -1
    """Receipts that were checked; -1: none were."""
    blobs: int = -1
    """Blobs that peers were asked for; -1: none were."""
    short: int = 0
    """Those of them that lack shards which peers gave receipts for."""
    under_way: int = 0
    """Those of them whose upload goes on."""
    dropped: int = 0
    """Findings other than notes that were not kept."""

    @property
    def left(self) -> list[Finding]:
        """What is wrong now."""
        return [one for one in self.findings if one.severity != NOTE and one not in self.repaired]

    @property
    def exit_code(self) -> int:
        """The code of fsck(8): 0, 1 (everything repaired), 4 (something is left)."""
        if self.left or self.dropped:
            return _CODES_LEFT
        return _CODES_REPAIRED if self.repaired else 0


MakeAgent = Callable[[CacheStore, VolumeMeta], AgentLink]

Tell = Callable[[str], None]
"""Show what goes on."""


class Check:
    """One run over one volume, whose lock the caller holds."""

    def __init__(self, options: FsckOptions, tell: Tell) -> None:
        self._options = options
        self._tell = tell
        self.report = Report()

    async def run(self, setup: VolumeSetup) -> Report:
        """Check the volume of a setup. Raises StoreError, UsageError for what is no fault of the volume."""
        name, paths, keys = setup.document.name, setup.paths, setup.keys
        places = Places(paths.volume_state(name), paths.volume_cache(name), setup.options.cache_size)
        if not (places.state / "state.lmdb").is_dir():
            raise UsageError(f"volume {name} was never mounted on this machine: there is nothing to check")

        def make_agent(cache: CacheStore, meta: VolumeMeta) -> AgentLink:
            return AgentLink(lambda: _hello(setup, cache, meta), no_events(), {})

        return await self.run_at(places, keys, make_agent, setup.options.timeout)

    async def run_at(self, places: Places, keys: VolumeKeys, make_agent: MakeAgent, timeout: float) -> Report:
        """Check the volume at some place. `make_agent` makes what asks the peers; `timeout` is for each of its answers."""
        with open_stores(places, keys, self.report.findings, repair=self._options.repair) as stores:
            if stores is None:
                return self.report
            store, segments, cache, meta = stores
            staged = await trio.to_thread.run_sync(self._load_staged, store.staged(), segments.sizes())
            async with trio.open_nursery() as nursery:
                agent = None
                if not self._options.offline and not self._options.quick:
                    agent = make_agent(cache, meta)
                    nursery.start_soon(agent.run)
                source = Source(staged, segments, cache, agent, timeout)
                await self.check(Opened(keys, store, segments, cache, meta, staged, source))
                nursery.cancel_scope.cancel()
        return self.report

    def _load_staged(
        self, rows: Iterator[tuple[EntryId, Location]], present: dict[int, int]
    ) -> dict[EntryId, Location]:
        """Return the staged entries, but for those whose segment was handed to the cache just before the last end."""
        try:
            return {entry: location for entry, location in rows if location.segment in present}
        except StoreCorrupt as exc:
            self.report.findings.append(Finding("state", str(exc), DAMAGE))
            return {}

    async def check(self, opened: Opened) -> None:
        """Do everything for an open volume."""
        report = self.report
        self._tell("replaying the journal")
        try:
            await replay_journal(opened, report.findings)
        except RemoteError as exc:
            report.findings.append(Finding("unreadable", f"the journal cannot be replayed now: {exc}", DAMAGE))
        core = opened.core
        if core is None or self._options.quick:
            return
        view = Overlay(opened.source.node, opened.meta.root)
        view.current = core.overlay.current
        lost: set[EntryId] = set()
        found: list[Finding] = []
        found += await self._steps(self._check_staged(opened, lost), lambda: f"staged entries: {report.staged}")
        walk = Walk(opened.source, opened.staged.__contains__, lost, data=self._options.data)
        present = await self._steps(_check_present(view, walk), lambda: _progress(walk))
        is_whole = not any(one.kind in ("tree", "unreadable", "unchecked") for one in present)
        past = self._check_past(opened, view, walk, is_whole=is_whole)
        found += [*present, *await self._steps(past, lambda: _progress(walk))]
        report.nodes, report.references = walk.nodes, walk.references
        report.unchecked, report.read_bytes = walk.unchecked, walk.bytes
        found += await self._check_receipts(opened)
        if self._options.network:
            found += await self._check_peers(opened)
        # What the journal changed may stand in the committed tree already.
        found = list(dict.fromkeys([*found, *opened.source.damaged.values()]))
        repairer = Repairer(opened, view)
        if not is_whole:
            text = "inodes, names and counters were not checked, because the tree could not be read as a whole"
            found.append(Finding("unchecked", text, NOTE))
        elif view.root or view.current:
            seen = await self._check_map(opened, view, repairer)
            found = await trio.to_thread.run_sync(_with_paths, seen, found)
        report.findings += found
        if self._options.repair:
            report.repaired.update(await repairer.repair(found))
            report.repaired.update(one for one in report.findings if one.kind == "cache" and one.repair is not None)
        await trio.to_thread.run_sync(opened.cache.evict, 1 << 62)

    # ---- in steps ----------------------------------------------------------------------------------------------------------
    async def _steps(self, steps: Steps, progress: Callable[[], str]) -> list[Finding]:
        """Run a check to its end; return what it found."""
        found: list[Finding] = []
        while await trio.to_thread.run_sync(self._advance, steps, found):
            self._tell(progress())
        return found

    def _advance(self, steps: Steps, found: list[Finding]) -> bool:
        """Go on for a moment; whether there is more. Worker thread."""
        end = time.monotonic() + STEP
        for one in steps:
            if one is not None and len(found) < FINDINGS_MAX:
                found.append(one)
            elif one is not None and one.severity != NOTE:
                self.report.dropped += 1
            if time.monotonic() > end:
                return True
        return False

    # ---- parts -------------------------------------------------------------------------------------------------------------
    def _check_staged(self, opened: Opened, lost: set[EntryId]) -> Steps:
        """Read every staged entry."""
        for entry, location in sorted(opened.staged.items(), key=lambda item: (item[1].segment, item[1].offset)):
            self.report.staged += 1
            reason = ""
            try:
                if entry_id(opened.segments.read(location)) != entry:
                    reason = "its bytes are not what its id says"
            except StoreError as exc:
                reason = str(exc)
            if not reason:
                yield None
                continue
            text = f"staged entry {entry.hex()[:16]} is damaged: {reason}"
            try:
                there = opened.source.cached(entry) or trio.from_thread.run(opened.source.fetch, entry)
            except RemoteError:
                there = None
            if there is None:
                lost.add(entry)
                yield Finding("staged", f"{text}; no other copy can be had", DAMAGE)
            else:
                yield Finding("staged", f"{text}; there is another copy", FAULT, repair=Restage(entry))

    def _check_past(self, opened: Opened, view: Overlay, walk: Walk, *, is_whole: bool) -> Steps:
        """Walk the trees of all other states that are retained."""
        roots = {row.snapshot.root: f" of snapshot {row.snapshot.sequence}" for row in opened.meta.history}
        if is_whole:
            for key, data in view.scan(b"H", b"I"):
                try:
                    row = decode_snapshot(key, data)
                except MalformedError:
                    continue  # `fs.checkmap` says so
                roots[row.root] = f" of snapshot {row.sequence}"
        self.report.snapshots = len(roots)
        for root in (opened.meta.anchored_root, opened.meta.inflight_root):
            roots.setdefault(root, " of the anchored state")
        for root, where in roots.items():
            yield from walk.walk(root, where)

    async def _check_map(self, opened: Opened, view: Overlay, repairer: Repairer) -> MapCheck:
        """Check inodes and names; with `repair`, until no more can be put right. Return the last look."""
        report, shown, first = self.report, set[Finding](), True
        for _round in range(ROUNDS_MAX):
            check = MapCheck(view.scan, opened.keys.border_secret, opened.meta.inode_bound)
            dropped = report.dropped
            now = await self._steps(check.run(), lambda: f"inodes: {check.inodes}, names: {check.names}")  # noqa: B023
            now += await self._steps(_check_pages(opened, view), lambda: "pages of the journal")
            now = await trio.to_thread.run_sync(_with_paths, check, now)
            report.inodes, report.names, report.bytes = check.inodes, check.names, check.bytes
            if first:
                report.findings += now
                shown.update(now)
            if not self._options.repair or not (await repairer.repair(now)):
                break
            report.dropped, first = dropped, False
        if not first:
            before, after = {_what(one) for one in shown}, {_what(one) for one in now}
            report.findings += [one for one in now if _what(one) not in before]
            report.repaired.update(one for one in shown if _what(one) not in after)
        return check

    async def _check_receipts(self, opened: Opened) -> list[Finding]:
        """Let the agent check the receipts that it keeps: those of blobs not yet in two anchored maps."""
        agent, found = opened.source.agent, list[Finding]()
        if agent is None:
            return found
        after, self.report.receipts = b"", 0
        while True:
            try:
                page = await agent.call("receipts", ShardQuery(after), ReceiptPage, timeout=SHARDS_TIMEOUT)
            except RemoteError as exc:
                return [*found, Finding("unreadable", f"the receipts cannot be checked: {exc}", DAMAGE)]
            self.report.receipts += page.receipts
            for one in page.wrong[: FINDINGS_MAX - len(found)]:
                found.append(Finding("receipt", f"blob {one.blob.hex()[:16]}: {one.reason}"))
            self._tell(f"receipts: {self.report.receipts}")
            after = page.following
            if not after:
                return found

    async def _check_peers(self, opened: Opened) -> list[Finding]:
        """Ask the peers for the shards of all blobs."""
        report, agent = self.report, opened.source.agent
        if agent is None:
            return []
        found: list[Finding] = []
        after, report.blobs, report.under_way = b"", 0, 0
        while True:
            try:
                page = await agent.call("shards", ShardQuery(after), ShardPage, timeout=SHARDS_TIMEOUT)
            except RemoteError as exc:
                return [*found, Finding("unreadable", f"the peers cannot be asked: {exc}", DAMAGE)]
            report.blobs += page.blobs
            report.under_way += page.under_way
            report.short += len(page.short)
            for blob in page.short:
                text = f"blob {blob.blob.hex()[:16]}: {blob.present} of {blob.n} shards are there"
                text += f", {blob.silent} with peers that do not answer" if blob.silent else ""
                is_lost = blob.present + blob.silent < blob.k
                text += f"; {blob.k} are needed: it is lost" if is_lost else ""
                if len(found) < FINDINGS_MAX:
                    found.append(Finding("replicas", text, DAMAGE if is_lost else FAULT))
            self._tell(f"asking peers: {report.blobs} blobs, {report.short} not complete")
            after = page.following
            if not after:
                return found


def _check_present(view: Overlay, walk: Walk) -> Steps:
    """Walk the committed tree, and look at what the journal refers to."""
    yield from walk.walk(view.root, "")
    yield from walk.refer([(key, value) for key, value in view.current.items() if value is not None], "")
    yield from walk.finish()


def _check_pages(opened: Opened, view: Overlay) -> Steps:
    """Look whether dirty pages of the journal lie within their files."""
    for ino, end in opened.pages:
        data = view.get(inode_key(ino))
        try:
            value = decode_inode(data) if data is not None else None
        except MalformedError:
            continue
        if value is not None and value.size < end:
            row = (inode_key(ino), codec.encode(msgspec.structs.replace(value, size=end)))
            text = f"has bytes in the journal up to {end}, its size is {value.size}"
            yield Finding("size", text, inode=ino, repair=Rows((row,)))
        yield None


def _what(finding: Finding) -> tuple[str, int, str]:
    """Return what makes a finding the same one at another look: its path may have changed by then."""
    return finding.kind, finding.inode, finding.text


def _with_paths(check: MapCheck, findings: Sequence[Finding]) -> list[Finding]:
    """Worker thread."""
    return [
        one.at(check.path_of(one.inode)) if one.inode and number < PATHS_MAX else one
        for number, one in enumerate(findings)
    ]


def _progress(walk: Walk) -> str:
    read = f", {walk.bytes >> 20} MiB read" if walk.bytes else ""
    return f"tree nodes: {walk.nodes}, references: {walk.references}{read}"


def _hello(setup: VolumeSetup, cache: CacheStore, meta: VolumeMeta) -> AgentHello:
    state = setup.paths.volume_state(setup.document.name)
    return AgentHello(
        volume=setup.keys.volume_id,
        deal_secret=setup.keys.deal_secret,
        repair_secret=setup.keys.repair_secret,
        state_dir=str(state / "agent"),
        staged_dir=str(state / "staged"),
        cache_dir=str(cache.segment_directory),
        ledger_socket=str(setup.paths.socket("ledger")),
        network=bytes.fromhex(setup.document.network),
        redundancy=setup.document.redundancy,
        map_root=meta.map_root,
        host_map=meta.host_map,
        map_sequence=meta.sequence,
        up=setup.bandwidth.up or 0,
        down=setup.bandwidth.down or 0,
        bootstrap=setup.document.bootstrap,
        lan=setup.document.lan,
    )
