"""What the command line asks a running driver over its control socket (framing: `wire.rpc`; the socket's mode is 0600).

status: Empty -> DriverStatus                answers while the mount is stuck
sync: SyncRequest -> DriverStatus            makes everything written so far D1 and starts store, commit and anchor;
                                             returns at once; poll `status` until `wait_level` says so
log: LogQuery -> LogPage                     operation records, decrypted
gc: GcRequest -> GcStatus                    begins to collect garbage; poll `gc_status` until `finished` is what
                                             `requested` says here
gc_status: Empty -> GcStatus
redundancy: agentapi.WantedRedundancy -> Empty    new blobs are stored with it from now on; the volume's document is not changed
budget: agentapi.Budget -> Empty             what deals may cost from now on; the volume's document is not changed
unreadable: UnreadableQuery -> UnreadablePage    which files cannot be read now
unmount: Empty -> Empty                      begin a clean unmount (the driver exits when it is done)
snapshots: SnapshotQuery -> SnapshotPage     the volume's snapshots, oldest first
snapshot_keep: SnapshotKeep -> SnapshotInfo
snapshot_forget: SnapshotForget -> SnapshotPage    those that were forgotten
snapshot_policy: SnapshotPolicy -> SnapshotPolicy  set it, if it is not empty; the answer is what holds
snapshot_diff: SnapshotDiff -> DiffPage
snapshot_restore: SnapshotRestore -> SnapshotRestored
versions: VersionQuery -> VersionPage        what a path was in each snapshot, oldest first
wallet: WalletQuery -> WalletKeys            public keys of the volume's wallet
payments: Empty -> PaymentList               payments that were made on this machine, oldest first
record_payments: Empty -> Empty              record those that are noted and not recorded (`store.payments`)
certify: CertifyRequest -> Certified         state what a file was, and wait until the statement is anchored
"""

from __future__ import annotations

from typing import Final

import msgspec

from fsdecloud.wire.agentapi import DealsStatus, PeerState, RepairStatus

WALLET_KEYS_AT_ONCE: Final = 64
"""Keys of one `WalletKeys`."""


class WalletQuery(msgspec.Struct, frozen=True, array_like=True):
    """Ask for the wallet's keys with numbers from `first` on, `count` of them (1 to WALLET_KEYS_AT_ONCE)."""

    first: int
    count: int


class WalletKeys(msgspec.Struct, frozen=True, array_like=True):
    """Public keys by their numbers."""

    keys: tuple[bytes, ...]


class PaymentList(msgspec.Struct, frozen=True, array_like=True):
    """Encoded transfers, oldest first; of more than a thousand the newest."""

    txs: tuple[bytes, ...]


class Count(msgspec.Struct, frozen=True, array_like=True):
    """How many entries and bytes."""

    entries: int
    bytes: int


class IncidentCount(msgspec.Struct, frozen=True, array_like=True):
    """Unexpected exceptions in one place of the driver ("handler read", "task sealer")."""

    where: str
    count: int
    last: str
    """The last one, as one line without names or keys."""


class GcStatus(msgspec.Struct, frozen=True, array_like=True):
    """Collecting garbage: what goes on, and what the last collection of this mount found."""

    phase: str = ""
    """"marking", "sweeping", "repacking", "anchoring", "waiting" (for the ledger), "deleting"; empty while nothing does."""
    requested: int = 0
    """Number of the last request."""
    finished: int = 0
    """Number of the last request that was carried out."""
    nodes: int = 0
    """Tree nodes walked by this one, or the last."""
    marked: int = 0
    """Entries found in use."""
    live_entries: int = 0
    live_bytes: int = 0
    dead_entries: int = 0
    dead_bytes: int = 0
    condemned_blobs: int = 0
    condemned_bytes: int = 0
    """What it will have deleted; bytes on all peers."""
    deleted_shards: int = 0
    deleted_bytes: int = 0
    """Let go of by peers: by this request, or since the mount as far as nobody asked."""
    waiting_shards: int = 0
    """Shards of peers that did not answer."""
    last_run: int = 0
    """When the last one ended, seconds since 1970; 0: none since the mount."""
    error: str = ""


class GcRequest(msgspec.Struct, frozen=True, array_like=True):
    """Collect garbage now; a dry run only looks."""

    dry_run: bool


class DriverStatus(msgspec.Struct, frozen=True, array_like=True):
    """One mount's state; `decloud status --json` prints it as one object."""

    volume: str
    mountpoint: str
    read_only: str
    """Why it is read-only; empty if it is not."""
    driver_pid: int
    agent_pid: int
    ledger_pid: int
    dirty: Count
    """Chunks in memory and not yet at D1."""
    staged: Count
    """At D1, not yet with all n receipts."""
    stored: Count
    """At D2 since the volume was opened."""
    anchored: Count
    """At D3: referenced by an anchor that is in a block."""
    written_sequence: int
    """Grows with every change of the mount."""
    durable_sequence: int
    """All changes up to here are at D1."""
    stored_sequence: int
    """All changes up to here are committed, and all their blobs have n receipts: D2."""
    anchored_sequence: int
    """All changes up to here are in an anchor that is in a block: D3."""
    anchor_height: int
    """Height of the latest anchor's block, -1 before the first."""
    ledger_height: int
    peers: tuple[PeerState, ...]
    k: int
    n: int
    warnings: tuple[str, ...]
    files: int
    logical_bytes: int
    cache_bytes: int
    uploaded_bytes: int
    downloaded_bytes: int
    handler_errors: int
    """Unexpected exceptions in FUSE handlers since the mount."""
    last_error: str
    is_failsafe: bool = False
    """An internal error stopped all writing; `read_only` says which, and what to do."""
    incidents: tuple[IncidentCount, ...] = ()
    """All places of the driver that had unexpected exceptions since the mount."""
    agent_restarts: int = 0
    slow_requests: int = 0
    """Requests that took longer than `limits.SLOW_REQUEST`."""
    timed_out_requests: int = 0
    """Requests that were ended by their deadline (`limits.HANDLER_DEADLINE`, or `-o timeout` where that is longer)."""
    gc: GcStatus = GcStatus()
    live_inodes: int = 0
    """Inodes that the driver holds in memory."""
    kernel_inodes: int = 0
    """Inodes that the kernel was told of and has not forgotten."""
    integrity_errors: int = 0
    """Entries on this machine's disk that did not verify, since the mount; each was asked of the peers."""
    repair: RepairStatus = RepairStatus()
    redundancy: str = ""
    """What was asked for, "auto" or "k/n"; `k` and `n` are what new blobs get. Empty when no new ones are stored."""
    up_limit: int = 0
    down_limit: int = 0
    """Limits of the traffic with peers, bytes per second, 0 for none."""
    deals: DealsStatus = DealsStatus()
    """The storage deals; all zero where nothing is paid."""


class UnreadableQuery(msgspec.Struct, frozen=True, array_like=True):
    """Look for what cannot be read now. `session` is 0 first, then what the last page says."""

    session: int


class Unreadable(msgspec.Struct, frozen=True, array_like=True):
    """One name whose file cannot be read as a whole now; `path` is relative to the mount, b"" for its root."""

    path: bytes
    inode: int
    lacks: str
    """"contents" (of a file), "names" (in a directory), "attributes" (and with them the rest), or "path" (a directory above
    lacks its attributes)."""
    lost: int
    """Bytes of contents that cannot be read, -1 where that is not known."""
    ranges: tuple[tuple[int, int], ...]
    """Where they are: from, to; at most `driver.unreadable.RANGES_MAX`, then more follow."""
    has_more: bool = False
    """Whether there are more ranges."""


class UnreadablePage(msgspec.Struct, frozen=True, array_like=True):
    """Some of them, how many names were looked at so far, and the session to ask for more (0: no more)."""

    found: tuple[Unreadable, ...]
    names: int
    session: int


class SyncRequest(msgspec.Struct, frozen=True, array_like=True):
    """`wait`: "durable", "stored" or "anchored"."""

    wait: str


LOG_CURSORS: Final = 1 << 32
"""The first batch of an anchor has the cursor sequence number x this: more batches than any anchor takes or wait for one."""


class LogQuery(msgspec.Struct, frozen=True, array_like=True):
    """The batch at a cursor: 0 for the first, LOG_CURSORS * N for anchor N's first, then what `LogPage.next_batch` says."""

    batch: int


class LogLine(msgspec.Struct, frozen=True, array_like=True):
    """One operation record with the place where it is recorded."""

    record: bytes
    """Encoded `fs.records.Record`."""
    sequence: int
    """Sequence number of the anchor, 0 while not anchored."""
    height: int
    """Block height of the anchor, -1 while not in a block."""
    tx: bytes


class LogPage(msgspec.Struct, frozen=True, array_like=True):
    """Some records, oldest first, and the batch to ask for next (-1: no more)."""

    lines: tuple[LogLine, ...]
    next_batch: int


class AnchorNumber(msgspec.Struct, frozen=True, array_like=True):
    """An anchor's sequence number, from 1 on."""

    sequence: int


class AnchorContents(msgspec.Struct, frozen=True, array_like=True):
    """What an anchor commits to: manifest id, tree root id, and (count, root) of its record batches. Empty: no such."""

    manifest: bytes
    root: bytes
    batches: tuple[tuple[int, bytes], ...]


class SnapshotInfo(msgspec.Struct, frozen=True, array_like=True):
    """One snapshot."""

    sequence: int
    time: int
    """When its anchor was made, nanoseconds since 1970."""
    directory: str
    """Its name in `.snapshots`."""
    name: str
    kept: bool
    files: int
    bytes: int
    records: int
    """Operations that its anchor records."""


class SnapshotQuery(msgspec.Struct, frozen=True, array_like=True):
    """Snapshots with this sequence number or a higher one."""

    first: int


class SnapshotPage(msgspec.Struct, frozen=True, array_like=True):
    """Some snapshots, oldest first, and the sequence number to ask for next (0: no more)."""

    snapshots: tuple[SnapshotInfo, ...]
    following: int


class SnapshotKeep(msgspec.Struct, frozen=True, array_like=True):
    """Keep a snapshot (number, name, directory, time or "latest"), or leave it to the policy again."""

    snapshot: str
    name: str | None
    """Its new name; None leaves it as it is."""
    kept: bool


class SnapshotForget(msgspec.Struct, frozen=True, array_like=True):
    """Snapshots to forget."""

    snapshots: tuple[str, ...]


class SnapshotPolicy(msgspec.Struct, frozen=True, array_like=True):
    """The retention policy as text, and how many snapshots it lets go of."""

    policy: str
    to_forget: int = 0


class SnapshotDiff(msgspec.Struct, frozen=True, array_like=True):
    """Compare two snapshots, or one with the present (`new` empty). `session` is 0 first, then what the last page says."""

    old: str
    new: str
    session: int


class DiffLine(msgspec.Struct, frozen=True, array_like=True):
    """One difference: "added", "removed", "changed" or "renamed" (to `path2`)."""

    kind: str
    path: bytes
    path2: bytes


class DiffPage(msgspec.Struct, frozen=True, array_like=True):
    """Some differences, and the session to ask for more (0: no more)."""

    lines: tuple[DiffLine, ...]
    session: int


class SnapshotRestore(msgspec.Struct, frozen=True, array_like=True):
    """Bring `path` of a snapshot back as `dest`; both are absolute in the volume."""

    snapshot: str
    path: bytes
    dest: bytes
    force: bool


class SnapshotRestored(msgspec.Struct, frozen=True, array_like=True):
    """What came back."""

    dest: bytes
    files: int
    size: int
    """Bytes of all its regular files."""


class VersionQuery(msgspec.Struct, frozen=True, array_like=True):
    """What `path` (absolute in the volume) was in the snapshots from this sequence number on, and is now."""

    path: bytes
    first: int


class Version(msgspec.Struct, frozen=True, array_like=True):
    """What a path was in one snapshot: nothing of it but what tells versions apart and helps to choose one."""

    sequence: int
    """The snapshot's sequence number; 0: the present."""
    anchored: int
    """When the snapshot's anchor was made, nanoseconds since 1970; 0: it is not anchored yet."""
    inode: int
    """0: there was none."""
    mode: int
    uid: int
    size: int
    modified: int
    """Nanoseconds since 1970."""


class VersionPage(msgspec.Struct, frozen=True, array_like=True):
    """One of each snapshot looked at, ascending, the present last, and the number to ask for next (0: no more)."""

    versions: tuple[Version, ...]
    following: int


class CertifyRequest(msgspec.Struct, frozen=True, array_like=True):
    """State what the file at `path` (absolute in the volume) was in a snapshot (number, name, directory, time or "latest")."""

    path: bytes
    snapshot: str


class Certified(msgspec.Struct, frozen=True, array_like=True):
    """A statement in a block: what a certificate holds besides headers and blocks."""

    statement: bytes
    """Encoded `fs.statement.Statement`."""
    path: bytes
    """Encoded `fs.statement.PathOpening`."""
    record: bytes
    """The encoded record with its commitment, alone in its batch, which is alone in its anchor."""
    volume: bytes
    sequence: int
    """The anchor with the statement."""
    manifest: bytes
    root: bytes
    """Ids of the manifest and the tree root that this anchor commits to as well."""
