"""What the command line asks a running driver over its control socket (framing: `wire.rpc`; the socket's mode is 0600).

status: Empty -> DriverStatus                answers while the mount is stuck
sync: SyncRequest -> DriverStatus            makes everything written so far D1 and starts store, commit and anchor;
                                             returns at once; poll `status` until `wait_level` says so
log: LogQuery -> LogPage                     operation records, decrypted
unmount: Empty -> Empty                      begin a clean unmount (the driver exits when it is done)
"""

from __future__ import annotations

import msgspec

from fsdecloud.wire.agentapi import PeerState


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
    """Requests that were ended by `limits.HANDLER_DEADLINE`."""


class SyncRequest(msgspec.Struct, frozen=True, array_like=True):
    """`wait`: "durable", "stored" or "anchored"."""

    wait: str


class LogQuery(msgspec.Struct, frozen=True, array_like=True):
    """The batch at a cursor: 0 for the first, then what `LogPage.next_batch` says."""

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
