"""Anchor: publish a commit and the operations since the last one in the ledger.

One anchor is in flight at a time. When everything its commit refers to has enough receipts, the agent writes the location
map, the manifest is stored as whole copies, the anchor is signed here (the agent cannot), made durable, and handed to the
agent's outbox; D3 is reached when the agent reports it in a block. Commits in between are coalesced into the next one.

If the ledger shows an anchor that this mount did not make, somebody else wrote the volume: this mount turns read-only and
keeps everything it has.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import msgspec
import trio

from fsdecloud.crypto.keys import RepairKeys, VolumeKeys
from fsdecloud.crypto.seal import Kind, open_ref, seal
from fsdecloud.driver.agentlink import AgentLink
from fsdecloud.driver.committer import Commit, Committer
from fsdecloud.driver.core import Core
from fsdecloud.driver.entries import Entries
from fsdecloud.driver.meta import VolumeMeta
from fsdecloud.errors import FsdecloudError, LedgerError, MalformedError, RemoteError, UsageError
from fsdecloud.fs.history import AnchorRow, Snapshot
from fsdecloud.fs.inode import InodeValue, decode_inode, decode_superblock
from fsdecloud.fs.keys import ROOT, SUPERBLOCK, inode_key
from fsdecloud.fs.manifest import (
    BATCHES_MAX,
    HOLDERS_MAX,
    AnchorPayload,
    Manifest,
    RepairPayload,
    commitment,
    decode_manifest,
    encode_manifest,
    open_owners_part,
    seal_anchor,
)
from fsdecloud.ledger.transactions import NO_LINK, Anchor, decode_tx, link, sign_anchor
from fsdecloud.limits import BLOB_MAX
from fsdecloud.types import Ref
from fsdecloud.units import format_duration
from fsdecloud.wire.agentapi import (
    Anchored,
    Empty,
    FetchedEntry,
    FetchEntry,
    Holders,
    LedgerVolume,
    MapCommit,
    StoreManifest,
    SubmitAnchor,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

LEASE: Final = 3600
"""Seconds for which an anchor keeps other devices from writing; a clean unmount ends it."""

OVERDUE: Final = 3600.0
"""Seconds without an anchor in a block, while there are changes for one, after which `status` says so: some blocks of a network
with the longest interval that anybody waits for."""

READS_INTERVAL: Final = 600.0
"""Reads alone cause an anchor at most this often."""

LEDGER_TIMEOUT: Final = 60.0
"""Seconds a first mount on this machine waits for the ledger daemon to say where the volume stands."""

LEDGER_RETRY: Final = 0.25

PEERS_TIMEOUT: Final = 20.0
"""Seconds for which the first manifest is asked for."""

_RETRY: Final = 2.0
_MANIFEST_LIMIT: Final = BLOB_MAX


class Anchors:
    """The anchor task of one volume."""

    def __init__(
        self,
        core: Core,
        entries: Entries,
        committer: Committer,
        agent: AgentLink,
        *,
        network: bytes,
        device_seed: bytes,
    ) -> None:
        self._core = core
        self._entries = entries
        self._committer = committer
        self._agent = agent
        self._network = network
        self._device_seed = device_seed
        self._wake = trio.Event()
        self._settled = trio.Event()
        self._urgent = False
        self._forced = False
        self._refused = ""
        self._last = trio.current_time()
        self.height = -1
        self.anchored_sequence = 0
        """All changes of this mount up to here are in an anchor that is in a block."""
        self._inflight_changes = 0
        self.anchored_bytes = 0
        self.anchored_count = 0
        self._inflight_mark = (0, 0)
        self._waits_since: float | None = None
        """When the first change came that no anchor in a block has (trio's clock), None while there is none."""
        self.last_error = ""
        self.on_change: Callable[[], None] = lambda: None
        self.on_anchored: Callable[[], None] = lambda: None
        """Called when an anchor is in a block."""

    def poke(self, *, urgent: bool = False) -> None:
        """There may be something to anchor; with `urgent` even if it is only reads."""
        self._urgent = self._urgent or urgent
        self._note_waiting()
        self._wake.set()

    def force(self) -> None:
        """Anchor even if neither files nor records changed: the location map did."""
        self._forced = True
        self._wake.set()

    async def run(self) -> None:
        """Anchor commits until cancelled."""
        self._wake.set()  # a run before this one may have ended in the middle
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            if self._core.read_only:
                continue
            try:
                if self._committer.meta.inflight:
                    await self.check_head()
                    await self._settle()
                if self._is_due():
                    await self._anchor(self._committer.latest)
                self._note_unchanged()
                self.last_error = ""
            except FsdecloudError as exc:
                self.last_error = f"anchor: {exc}"
                log.warning("cannot anchor yet: %s", exc)
                await trio.sleep(_RETRY)
                self._wake.set()

    def _note_waiting(self) -> None:
        meta, commit = self._committer.meta, self._committer.latest
        if not (meta.inflight or commit.changes or commit.root != meta.anchored_root):
            self._waits_since = None
        elif self._waits_since is None:
            self._waits_since = trio.current_time()

    def warning(self) -> str:
        """Return what `status` says when the ledger has taken no anchor for long, "" while it does."""
        batches = self._committer.latest.batches
        if self._waits_since is None or self._core.read_only:
            return ""
        waited = trio.current_time() - self._waits_since
        if waited < OVERDUE and len(batches) < BATCHES_MAX // 4:
            return ""
        records = sum(batch.count for batch in batches)
        return (
            f"the ledger has taken no anchor for {format_duration(waited)}: {records} records in {len(batches)} batches wait"
            " here in order, and what was written since is found by this machine alone"
        )

    def _is_due(self) -> bool:
        meta, commit = self._committer.meta, self._committer.latest
        if not commit.root or (commit.root == meta.anchored_root and not commit.batches and not self._forced):
            return False
        if self._forced:
            return True
        if commit.root != meta.anchored_root or commit.changes or self._urgent:
            return True
        return trio.current_time() - self._last >= READS_INTERVAL

    def _note_unchanged(self) -> None:
        """A commit that changed nothing, neither root nor records, is anchored as soon as the one before is."""
        meta, commit = self._committer.meta, self._committer.latest
        if not meta.inflight and commit.root == meta.anchored_root and not commit.batches:
            self.anchored_sequence = max(self.anchored_sequence, commit.change_sequence)
            self.on_change()

    # ---- making an anchor --------------------------------------------------------------------------------------------
    async def _anchor(self, commit: Commit) -> None:
        urgent, forced = self._urgent, self._forced
        self._urgent = self._forced = False
        self._committer.anchoring = commit.root  # else it is no state that has to stay before it is in flight
        try:
            await self._make(commit)
        except BaseException:  # cancelled or failed, the wish is still to be granted
            self._urgent, self._forced = self._urgent or urgent, self._forced or forced
            raise
        finally:
            self._committer.anchoring = b""
        # With more batches than this anchor may have, the rest of the records comes with the next one.
        is_whole = self._committer.meta.inflight_batches == len(commit.batches)
        self._inflight_changes = commit.change_sequence if is_whole else self.anchored_sequence
        self._inflight_mark = (self._entries.anchorable_count, self._entries.anchorable_bytes)
        self._last = trio.current_time()
        await self._settle()

    async def _make(self, commit: Commit) -> None:
        """Store what the anchor of a commit names, sign it, and make it durable."""
        await self._entries.wait_anchorable(commit.mark)
        locations = await self._agent.call("commit_map", Empty(), MapCommit)
        meta = self._committer.meta
        sequence = meta.sequence + 1
        root = Ref.from_bytes(commit.root)
        batches = self._committer.next_batches(commit, BATCHES_MAX)
        manifest = Manifest(1, sequence, time.time_ns(), root, locations.map_root, locations.host_map, batches)
        keys = self._core.keys
        ref, sealed = seal(keys.seal_secret, Kind.MANIFEST, encode_manifest(manifest))
        holders = await self._agent.call("store_manifest", StoreManifest(sealed), Holders)
        records = sum(batch.count for batch in batches)
        top, files, size = await describe_state(self._core, commit.root)
        payload = AnchorPayload(1, ref, len(sealed), holders.peers[:HOLDERS_MAX], records, files, size)
        repair = RepairPayload(
            1,
            sequence,
            locations.map_root,
            locations.host_map_copy,
            len(locations.host_map),
            locations.holders[:HOLDERS_MAX],
            ref.id,
            len(sealed),
        )
        repair_key = RepairKeys.from_secret(keys.repair_secret).payload_key
        snapshot = Snapshot(1, sequence, manifest.time, commit.root, files, size, records, top)
        committed = commitment(ref, root, batches)
        previous = link(keys.volume_id, meta.sequence, meta.commitment) if meta.sequence else NO_LINK
        tx = await trio.to_thread.run_sync(
            lambda: sign_anchor(
                self._network,
                keys.ledger_seed,
                self._device_seed,
                sequence=sequence,
                commitment=committed,
                previous=previous,
                lease_expiry=int(time.time()) + LEASE,
                payload=seal_anchor(
                    keys.ledger_payload_key, repair_key, (os.urandom(12), os.urandom(12)), payload, repair
                ),
                takeover=meta.takeover,
                start=int.from_bytes(os.urandom(7), "big"),
            )
        )
        await self._committer.save_meta(
            inflight=tx,
            inflight_commitment=committed,
            inflight_root=commit.root,
            inflight_batches=len(batches),
            inflight_map=locations.map_root,
            inflight_hosts=locations.host_map,
            inflight_row=AnchorRow(snapshot, ref),
        )

    async def _settle(self) -> None:
        """Hand the in-flight anchor to the outbox and wait until it is in a block. Raises LedgerError when refused."""
        meta = self._committer.meta
        if not meta.inflight or self._core.read_only:
            return
        self._settled = trio.Event()
        self._refused = ""
        await self._agent.call("submit", SubmitAnchor(meta.inflight, meta.sequence + 1, meta.inflight_map), Empty)
        await self._settled.wait()
        if self._refused:
            raise LedgerError(f"the ledger refuses anchor {meta.sequence + 1}: {self._refused}")

    def resubmit(self) -> None:
        """A new agent: its outbox may lack the in-flight anchor."""
        if self._committer.meta.inflight:
            self._settled.set()  # `_settle` returns and `run` begins again with the in-flight anchor
            self._wake.set()

    def take_anchored(self, notice: Anchored) -> None:
        """Note where an anchor stands. Called in the agent connection's reader: never blocks."""
        meta = self._committer.meta
        if notice.error:
            self._refused = notice.error
            self._settled.set()
            return
        if notice.height is None:
            return  # taken out by a reorganisation; the outbox sends it again
        if notice.sequence == meta.sequence:
            self.height = notice.height
        elif notice.sequence == meta.sequence + 1 and meta.inflight:
            self._finish(meta, notice.height)
        self.on_change()

    def _finish(self, meta: VolumeMeta, height: int) -> None:
        """The in-flight anchor is in a block: it becomes the anchored state."""
        left = meta.batches[meta.inflight_batches :]
        history = meta.history
        if meta.inflight_row is not None:
            history += (msgspec.structs.replace(meta.inflight_row, batches=meta.batches[: meta.inflight_batches]),)
        self._committer.meta = msgspec.structs.replace(
            meta,
            batches=left,
            changes=meta.changes if left else 0,
            sequence=meta.sequence + 1,
            commitment=meta.inflight_commitment,
            anchored_root=meta.inflight_root,
            anchor_time=int(time.time()),
            map_root=meta.inflight_map,
            host_map=meta.inflight_hosts,
            inflight=b"",
            inflight_commitment=b"",
            inflight_root=b"",
            inflight_batches=0,
            inflight_map=b"",
            inflight_hosts=b"",
            takeover=False,
            inflight_row=None,
            history=history,
        )
        self._committer.forget_batches(meta.inflight_batches)
        self._waits_since = None
        self._note_waiting()
        self.height = height
        self.anchored_sequence = max(self.anchored_sequence, self._inflight_changes)
        self.anchored_count, self.anchored_bytes = self._inflight_mark
        self._settled.set()
        self._wake.set()
        self.on_anchored()

    # ---- what the ledger says ------------------------------------------------------------------------------------------
    async def check_head(self) -> None:
        """Compare the ledger's latest anchor with ours; turn read-only when somebody else wrote. Raises RemoteError.

        An older one than ours proves nothing: that daemon may be behind, or a reorganisation took ours out for a while, which
        the outbox sends again. Another one of the same number is a fork, whichever of the two stays in the ledger.
        """
        found = await self._agent.call("ledger_volume", Empty(), LedgerVolume)
        if not found.tx:
            return
        anchor = decode_tx(found.tx)
        if not isinstance(anchor, Anchor):
            raise MalformedError("the ledger daemon answered with something that is no anchor")
        meta = self._committer.meta
        if anchor.sequence == meta.sequence and anchor.commitment == meta.commitment:
            self.height = found.height
        elif anchor.sequence == meta.sequence + 1 and anchor.commitment == meta.inflight_commitment:
            self._finish(meta, found.height)
        elif anchor.sequence >= meta.sequence:
            self._core.read_only = (
                f"another device wrote this volume (anchor {anchor.sequence} in block {found.height}, here {meta.sequence});"
                " everything written here is kept"
            )
            log.error("read-only: %s", self._core.read_only)
        self.on_change()


async def describe_state(core: Core, root: bytes) -> tuple[InodeValue, int, int]:
    """Return the root directory, the number of files and the bytes of a committed state. Raises RemoteError."""
    tree = core.overlay.at(root)
    top = await core.run(tree.get, inode_key(ROOT))
    block = await core.run(tree.get, SUPERBLOCK)
    if top is None or block is None:
        raise MalformedError("a committed tree without a root directory or superblock")
    counters = decode_superblock(block)
    return decode_inode(top), counters.files, counters.bytes


async def ask_ledger(agent: AgentLink, name: str) -> LedgerVolume:
    """Ask for a volume's latest anchor until the ledger daemon answers. Raises UsageError after LEDGER_TIMEOUT."""
    last: FsdecloudError | None = None
    with trio.move_on_after(LEDGER_TIMEOUT):
        while True:
            try:
                return await agent.call("ledger_volume", Empty(), LedgerVolume)
            except (RemoteError, LedgerError) as exc:
                last = exc
            await trio.sleep(LEDGER_RETRY)
    raise UsageError(
        f"cannot learn from the ledger where volume {name} stands: {last}; check `decloud ledger status`", 32
    )


async def patiently(work: Callable[[], Awaitable[T]]) -> T:
    """Return what `work` does, asking again while peers cannot be reached: a new agent does not know them at first.

    Raises RemoteError after PEERS_TIMEOUT.
    """
    deadline = trio.current_time() + PEERS_TIMEOUT
    while True:
        try:
            return await work()
        except RemoteError:
            if trio.current_time() > deadline:
                raise
        await trio.sleep(LEDGER_RETRY)


def open_anchor(keys: VolumeKeys, anchor: Anchor) -> AnchorPayload:
    """Return an anchor's decrypted payload. Raises SealError, MalformedError."""
    return open_owners_part(keys.ledger_payload_key, anchor.payload)


async def fetch_manifest(
    keys: VolumeKeys, anchor: Anchor, agent: AgentLink, read: Callable[[FetchedEntry], bytes]
) -> Manifest:
    """Fetch the manifest an anchor names and check it against the anchor's commitment. Raises RemoteError, SealError."""
    payload = open_anchor(keys, anchor)
    request = FetchEntry(payload.manifest.id, False, payload.holders)
    answer = await agent.call("fetch", request, FetchedEntry, timeout=60.0)
    manifest = decode_manifest(
        open_ref(payload.manifest, Kind.MANIFEST, answer.data or read(answer), limit=_MANIFEST_LIMIT)
    )
    if manifest.sequence != anchor.sequence or anchor.commitment != commitment(
        payload.manifest, manifest.root, manifest.batches
    ):
        raise RemoteError(f"the manifest of anchor {anchor.sequence} is not what the anchor commits to")
    return manifest
