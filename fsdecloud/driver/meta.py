"""What a mounted volume keeps in its state store beside the journal: where the tree and the anchors stand.

Pure. One value, replaced as a whole in the transaction that makes it true.
"""

from __future__ import annotations

import msgspec

from fsdecloud import codec
from fsdecloud.fs.history import AnchorRow
from fsdecloud.fs.records import BatchEntry


class VolumeMeta(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The committed and the anchored state."""

    version: int = 1
    root: bytes = b""
    """64-byte reference of the committed tree's root, b"" before the first commit."""
    batches: tuple[BatchEntry, ...] = ()
    """Record batches that are in no anchor of a block yet, oldest first; the in-flight anchor's come first."""
    batched: int = 0
    """How many records were ever put into batches: the journal's records from this number on are pending."""
    changes: int = 0
    """How many of the records in `batches` are more than reads."""
    sequence: int = 0
    """Sequence number of the last anchor known to be in a block."""
    commitment: bytes = b""
    """Its commitment, b"" before the first."""
    anchored_root: bytes = b""
    """The tree root it stands for."""
    anchor_time: int = 0
    """When it was made, seconds since 1970."""
    map_root: bytes = b""
    host_map: bytes = b""
    """Location map and host map of that anchor: what an agent without state of its own starts from."""
    inflight: bytes = b""
    """The signed anchor after it that was handed to the ledger, b"" if there is none."""
    inflight_commitment: bytes = b""
    inflight_root: bytes = b""
    inflight_batches: int = 0
    """How many of `batches` it commits to."""
    inflight_map: bytes = b""
    inflight_hosts: bytes = b""
    takeover: bool = False
    """The next anchor takes the writer's lease over: the volume was recovered from its phrase on this machine."""
    inflight_row: AnchorRow | None = None
    """What the tree will say of the anchor in flight; None if a release that knew no snapshots made it."""
    history: tuple[AnchorRow, ...] = ()
    """Anchors in blocks whose rows are in no committed tree yet, oldest first (`driver.snapshots` bounds them)."""
    inode_bound: int = 0
    """Every inode number given out so far is below; 0 in the state of the first releases."""
    collected_at: int = 0
    """When garbage was last looked for, seconds since 1970."""
    collected_sequence: int = 0
    """The last anchor known then."""
    payments: tuple[bytes, ...] = ()
    """Transactions of the payments that were recorded last (`driver.payments`): their notes may not say so yet."""


def decode_meta(data: bytes) -> VolumeMeta:
    """Return the stored value, also of a release that had fewer fields. Raises MalformedError."""
    return codec.decode_loose(data, VolumeMeta)
