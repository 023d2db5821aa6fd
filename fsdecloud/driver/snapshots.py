"""Snapshots: which there are, which are kept or forgotten, and how the rows of anchors come into the tree.

Every anchor in a block is a snapshot. Its rows (`fs.history`) wait in `VolumeMeta.history` and are put into the overlay at
the freeze of a commit that changes something anyway: neither they nor the policy cause a commit or an anchor by themselves,
else an idle volume would anchor for ever. Reading alone counts as no change here either (`PENDING_MAX` bounds what waits).
A user's `keep` or `forget` is a change like any other.

Forgetting deletes a row; what the snapshot alone refers to is garbage from then on (`retained_roots`).

Called only from the event loop. Not here: looking into a snapshot (`views`), comparing (`treediff`), restoring (`restore`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import trio

from fsdecloud import codec
from fsdecloud.driver.anchors import describe_state, open_anchor
from fsdecloud.driver.committer import Committer
from fsdecloud.driver.core import Core
from fsdecloud.driver.history import AnchoredStates
from fsdecloud.driver.meta import VolumeMeta
from fsdecloud.errors import FsdecloudError, RemoteError, UsageError
from fsdecloud.fs.history import (
    ALL_HERE,
    DEFAULT_POLICY,
    AnchorRow,
    Policy,
    Snapshot,
    check_snapshot_name,
    decode_batches,
    decode_policy,
    decode_snapshot,
    directory_name,
    encode_rows,
    find_snapshot,
    format_policy,
    retained,
)
from fsdecloud.fs.keys import POLICY, batches_key, prefix_end, snapshot_key
from fsdecloud.fs.manifest import Manifest
from fsdecloud.fs.records import BatchEntry, Operation
from fsdecloud.ledger.transactions import Anchor
from fsdecloud.tree.node import NodeMissing
from fsdecloud.types import Ref

log = logging.getLogger(__name__)

PENDING_MAX: Final = 64
"""Anchors whose rows wait; with one more, the next commit takes them even if only reads are recorded."""

POLICY_INTERVAL: Final = 3600.0
"""The policy is applied at most this often, with a commit."""

POLICY_PATIENCE: Final = 10.0
"""Seconds a commit waits for tree nodes that the policy needs; without them it is applied another time."""

CLOCK_SLACK: Final = 7200
"""How far, in seconds, this machine's clock may be ahead of the ledger's for the policy to believe it."""

FILL_RETRY: Final = 30.0

_ECHO_MAX: Final = 256
"""Keys that are compared with the tree at a freeze: 10 us each, in the event loop."""

RECENT: Final = 8
"""More anchors than can be in blocks and in no committed tree, when a machine starts from an anchored state."""


class Snapshots:
    """The snapshots of one mounted volume."""

    def __init__(
        self, core: Core, committer: Committer, states: AnchoredStates, ledger_time: Callable[[], int]
    ) -> None:
        """`ledger_time` returns the time of the ledger's tip, in seconds since 1970; 0 while unknown."""
        self.core = core
        self._committer = committer
        self._states = states
        self._ledger_time = ledger_time
        self._wanted = False
        self._expired: set[int] = set()
        """What the next freeze forgets."""
        self._choices = 0
        """How often users kept a snapshot or set the policy."""
        self._policy_due = trio.current_time() + POLICY_INTERVAL / 60
        self._clocks = (time.time(), trio.current_time())
        self._fill = trio.Event()
        self.is_complete = False
        """Whether the rows of all anchors in blocks are in the tree or wait for it: before, nothing is garbage."""
        self.pinned: dict[int, bytes] = {}
        """Roots in use by a task, by a number of its own."""
        self.on_forget: Callable[[int], None] = lambda _sequence: None
        committer.prepare = self._prepare
        committer.add_rows = self._add_rows

    # ---- which there are -----------------------------------------------------------------------------------------------
    def pending(self) -> tuple[AnchorRow, ...]:
        """Return the anchors whose rows are in no committed tree yet, oldest first."""
        return self._committer.meta.history

    @property
    def meta(self) -> VolumeMeta:
        """The committed and the anchored state."""
        return self._committer.meta

    @property
    def latest_sequence(self) -> int:
        """Sequence number of the last anchor known to be in a block."""
        return self._committer.meta.sequence

    def rows_from(self, sequence: int, limit: int) -> list[Snapshot]:
        """Return up to `limit` snapshots with this sequence number or a higher one, ascending. Raises NodeMissing."""
        found: dict[int, Snapshot] = {}
        for key, data in self.core.overlay.scan(snapshot_key(sequence), prefix_end(b"H")):
            row = decode_snapshot(key, data)
            found[row.sequence] = row
            if len(found) >= limit:
                return list(found.values())
        for waiting in self.pending():
            if waiting.snapshot.sequence >= sequence:
                found.setdefault(waiting.snapshot.sequence, waiting.snapshot)
        return [found[number] for number in sorted(found)][:limit]

    def row(self, sequence: int) -> Snapshot | None:
        """Return a snapshot, None if it was forgotten or never was. Raises NodeMissing."""
        for waiting in self.pending():
            if waiting.snapshot.sequence == sequence:
                return waiting.snapshot
        key = snapshot_key(sequence)
        data = self.core.overlay.get(key)
        return decode_snapshot(key, data) if data is not None else None

    async def rows(self) -> list[Snapshot]:
        """Return all snapshots, ascending. Raises RemoteError."""
        found: list[Snapshot] = []
        while part := await self.core.run(self.rows_from, found[-1].sequence + 1 if found else 1, 256):
            found += part
        return found

    async def find(self, text: str) -> Snapshot:
        """Return the snapshot that a person names (`fs.history.find_snapshot`). Raises UsageError."""
        return find_snapshot(await self.rows(), text)

    async def has_anchor(self, sequence: int) -> bool:
        """Whether the rows of an anchor are in the tree or wait for it."""
        if any(row.snapshot.sequence == sequence for row in self.pending()):
            return True
        return await self.core.run(self.core.overlay.get, batches_key(sequence, 0)) is not None

    async def batches_of(self, sequence: int) -> tuple[BatchEntry, ...] | None:
        """Return the record batches of an anchor as the volume itself knows them, None if it does not. Raises RemoteError."""
        for row in self.pending():
            if row.snapshot.sequence == sequence:
                return row.batches
        first, stop = batches_key(sequence, 0), batches_key(sequence + 1, 0)
        overlay = self.core.overlay
        rows = await self.core.run(lambda: [decode_batches(value) for _key, value in overlay.scan(first, stop)])
        return tuple(batch for row in rows for batch in row.batches) if rows else None

    # ---- for the garbage collector -------------------------------------------------------------------------------------
    async def retained_roots(self) -> list[bytes]:
        """Return every root that is needed. Only complete when `is_complete`, and with the overlay's own references."""
        rows = await self.rows()
        return list(dict.fromkeys([row.root for row in rows] + self.current_roots()))

    def current_roots(self) -> list[bytes]:
        """Return the roots that are needed and may be no snapshot's yet: of the committed, the anchored and the in-flight
        state, of one that is about to be in flight, and of whatever is looked into just now."""
        meta = self._committer.meta
        roots = [meta.root, meta.anchored_root, meta.inflight_root, self._committer.anchoring, self.core.overlay.root]
        roots += [row.snapshot.root for row in self.pending()]
        return [root for root in (*roots, *self.pinned.values()) if root]

    def pending_batches(self) -> list[Ref]:
        """Return the entries of record batches and manifests that are in no tree yet."""
        meta = self._committer.meta
        refs = [batch.ref for batch in (*meta.batches, *self._committer.latest.batches)]
        for row in (*meta.history, *((meta.inflight_row,) if meta.inflight_row is not None else ())):
            refs += [row.manifest, *(batch.ref for batch in row.batches)]
        return refs

    # ---- keeping and forgetting ----------------------------------------------------------------------------------------
    async def keep(self, text: str, *, name: str | None, kept: bool) -> Snapshot:
        """Have the policy never forget a snapshot, and name it; with `kept` false leave it to the policy, unnamed.

        Raises UsageError, ReadOnly.
        """
        self.core.check_writable()
        if name:
            check_snapshot_name(name)
        rows = await self._settled_rows()
        row = find_snapshot(rows, text)
        other = next((r for r in rows if name and r.name == name and r.sequence != row.sequence), None)
        if other is not None:
            raise UsageError(f"snapshot {other.sequence} is called {name} already: decloud snapshot keep --undo {name}")
        row = msgspec.structs.replace(row, kept=kept, name=(row.name if name is None else name) if kept else "")
        self._expired.discard(row.sequence)
        self._choices += 1
        self.core.overlay.put(snapshot_key(row.sequence), codec.encode(row))
        self._record(row, f"keep {row.name}".rstrip() if kept else "keep --undo")
        return row

    async def forget(self, texts: Sequence[str]) -> list[Snapshot]:
        """Forget snapshots. Raises UsageError (for one that is kept, too), ReadOnly; nothing is then forgotten."""
        self.core.check_writable()
        rows = await self._settled_rows()
        chosen = {row.sequence: row for row in (find_snapshot(rows, text) for text in texts)}
        for row in chosen.values():
            if row.kept or row.name:
                raise UsageError(f"snapshot {row.sequence} is kept: decloud snapshot keep --undo {row.sequence} first")
        for sequence in chosen:
            self.core.overlay.put(snapshot_key(sequence), None)
            self.on_forget(sequence)
            self._record(chosen[sequence], "forget")
        return list(chosen.values())

    async def policy(self) -> Policy:
        """Return the volume's retention policy. Raises RemoteError."""
        data = await self.core.run(self.core.overlay.get, POLICY)
        return decode_policy(data) if data is not None else DEFAULT_POLICY

    async def set_policy(self, policy: Policy) -> int:
        """Set the retention policy; return how many snapshots it lets go of now. Raises ReadOnly, RemoteError."""
        self.core.check_writable()
        rows = await self.rows()
        self.core.overlay.put(POLICY, codec.encode(policy))
        self._record(None, f"policy {format_policy(policy)}")
        self._expired = set()
        self._choices += 1
        self._policy_due = trio.current_time()
        return len(rows) - len(retained(rows, policy, int(time.time())))

    def _record(self, row: Snapshot | None, what: str) -> None:
        path = b"/.snapshots" + (b"/" + directory_name(row).encode() if row is not None else b"")
        self.core.recorder.record(Operation.SNAPSHOT, None, 0, path, path2=what.encode(), program=b"decloud")
        self.core.changed()

    async def _settled_rows(self) -> list[Snapshot]:
        """Return all snapshots, with all rows in the tree: a waiting one would be put over what is changed now. So it is until
        the caller's next await. Raises what a commit raises, RemoteError."""
        while True:
            while self.pending():  # an anchor may come into a block while the rows of others are committed
                self._wanted = True
                await self._committer.commit()
            rows = await self.rows()
            if not self.pending():
                return rows

    # ---- the committer's side ------------------------------------------------------------------------------------------
    async def _prepare(self) -> None:
        """Choose what the policy forgets with this commit, if it is time for that."""
        if self.core.read_only or trio.current_time() < self._policy_due:
            return
        self._policy_due = trio.current_time() + POLICY_INTERVAL
        now = self._believable_time()
        if now is None:
            return
        choices = self._choices
        with trio.move_on_after(POLICY_PATIENCE):
            try:
                rows = await self.rows()
                stay = retained(rows, await self.policy(), now)
            except FsdecloudError as exc:
                log.info("the retention policy is applied later: %s", exc)
                return
            if choices != self._choices:  # a user said something else meanwhile
                self._policy_due = trio.current_time()
                return
            waiting = {row.snapshot.sequence for row in self.pending()}
            self._expired = {row.sequence for row in rows} - stay - waiting

    def _believable_time(self) -> int | None:
        """Return the present for the policy, None while no clock can be believed: a wrong one must not cost snapshots."""
        now, since = time.time(), trio.current_time() - self._clocks[1]
        if abs(now - self._clocks[0] - since) > CLOCK_SLACK:
            log.warning("the clock was moved: the retention policy waits for the next mount")
            return None
        tip = self._ledger_time()
        return min(int(now), tip + CLOCK_SLACK) if tip else None

    def _add_rows(self, changed: bool) -> frozenset[int]:
        """Put the waiting rows into the overlay, and take out what the policy forgets. Called at each freeze."""
        overlay, history = self.core.overlay, self.pending()
        full = len(history) > PENDING_MAX or sum(len(row.batches) for row in history) > 16 * PENDING_MAX
        if not (changed or self._wanted or full or self._differs()):
            return frozenset()
        self._wanted = False
        for row in history:
            for key, value in encode_rows(row):
                overlay.put(key, value)
        for sequence in self._expired:
            overlay.put(snapshot_key(sequence), None)
            self.on_forget(sequence)
        if self._expired:
            log.info("the retention policy forgets %d snapshots", len(self._expired))
        self._expired = set()
        return frozenset(row.snapshot.sequence for row in history)

    def _differs(self) -> bool:
        """Whether the overlay says anything that the tree does not. Sealing a file's bytes writes its inode once more, after
        the commit that had them: that alone must make no other tree, else there would be two anchors for each change."""
        overlay = self.core.overlay
        if len(overlay.current) > _ECHO_MAX:
            return True
        tree = overlay.at(overlay.root)
        try:
            return any(tree.get(key) != value for key, value in overlay.current.items())
        except NodeMissing:
            return True

    # ---- rows of anchors that another machine, or an earlier release, made -----------------------------------------------
    def note_new_volume(self) -> None:
        """A volume without anchors: no rows can be missing, now or later."""
        self.core.overlay.put(*ALL_HERE)

    def look_for_gaps(self) -> None:
        """An anchor came into a block, or the ledger came back."""
        self._fill.set()

    async def run_filler(self) -> None:
        """Find rows that are missing and get them from the ledger and the manifests, until cancelled."""
        while True:
            self._fill = trio.Event()
            try:
                await self._fill_gaps()
            except FsdecloudError as exc:
                log.info("some snapshots are not listed yet: %s", exc)
                with trio.move_on_after(FILL_RETRY):
                    await self._fill.wait()
                continue
            await self._fill.wait()

    async def _fill_gaps(self) -> None:
        last = self._committer.meta.sequence
        complete = await self.core.run(self.core.overlay.get, ALL_HERE[0]) is not None
        for sequence in range(max(1, last - RECENT) if complete else 1, last + 1):
            if not await self.has_anchor(sequence):
                self.is_complete = False
                row = await self.read_anchor(sequence)
                for key, value in encode_rows(row):
                    self.core.overlay.put(key, value)
        if not complete:
            self.core.overlay.put(*ALL_HERE)
        self.is_complete = True

    async def read_anchor(self, sequence: int) -> AnchorRow:
        """Return the rows of an anchor from its payload and manifest. Raises RemoteError, LedgerUnavailable."""
        found = await self._states.get(sequence)
        if found is None:
            raise RemoteError(f"the ledger does not know anchor {sequence}")
        return await describe_anchor(self.core, found[1], found[2])


async def describe_anchor(core: Core, anchor: Anchor, manifest: Manifest) -> AnchorRow:
    """Return the rows of an anchor. Raises RemoteError when its tree's root cannot be read."""
    root = manifest.root.to_bytes()
    payload = open_anchor(core.keys, anchor)
    top, files, size = await describe_state(core, root)
    snapshot = Snapshot(1, anchor.sequence, manifest.time, root, files, size, payload.records, top)
    return AnchorRow(snapshot, payload.manifest, manifest.batches)
