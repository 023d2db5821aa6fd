"""What stands in the location map, and in the agent's journal about a blob on its way.

Pure. Keys of the map: b"E" + entry id for an entry that lies in a pack, b"B" + blob id for every blob. An entry that is a
blob of its own has no E row: its id is the blob's. b"M" + entry id for each manifest, so that its leases are
renewed; its copies are found by their id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from fsdecloud import codec
from fsdecloud.errors import MalformedError
from fsdecloud.limits import BLOB_MAX, ENTRY_MAX
from fsdecloud.swarm.policy import SHARDS_MAX
from fsdecloud.types import BlobId, EntryId, PeerId, ShardId

ENTRY_PREFIX: Final = b"E"
BLOB_PREFIX: Final = b"B"
MANIFEST_PREFIX: Final = b"M"


class EntryRow(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where a packed entry lies: bytes [offset, offset + length) of a blob."""

    blob: BlobId
    offset: int
    length: int


class BlobRow(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How a blob is coded and where its shards are."""

    k: int
    n: int
    epoch: int
    """Of the host map: shard i is with the blob's i-th host under that table."""
    length: int
    """Bytes of the blob."""
    shards: tuple[ShardId, ...]
    """n ids; empty for k = 1, where every shard is the blob."""
    exceptions: tuple[tuple[int, PeerId], ...]
    """Shards that are with another peer than the table says, by ascending index."""

    def shard(self, blob: BlobId, index: int) -> ShardId:
        """Return the id of shard `index` of this blob."""
        return self.shards[index] if self.shards else ShardId(blob)


class PackedEntry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One entry of a blob."""

    id: EntryId
    offset: int
    length: int


class UploadRecord(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A blob whose receipts the agent still keeps: planned, partly stored, or complete and not long ago."""

    k: int
    n: int
    epoch: int
    length: int
    shards: tuple[ShardId, ...]
    entries: tuple[PackedEntry, ...]
    """Empty for a blob of the agent's own (map node, manifest), whose bytes are in the journal."""
    holders: tuple[tuple[int, PeerId], ...]
    """Who has signed for which shard."""
    receipts: tuple[bytes, ...]


def entry_key(entry: EntryId) -> bytes:
    """Return the map's key for a packed entry."""
    return ENTRY_PREFIX + entry


def blob_key(blob: BlobId) -> bytes:
    """Return the map's key for a blob."""
    return BLOB_PREFIX + blob


def manifest_key(manifest: bytes) -> bytes:
    """Return the map's key for a manifest; its value says nothing."""
    return MANIFEST_PREFIX + manifest


def decode_entry_row(data: bytes) -> EntryRow:
    """Return a validated row. Raises MalformedError."""
    row = codec.decode(data, EntryRow)
    if len(row.blob) != 32 or not (0 < row.length <= ENTRY_MAX and 0 <= row.offset <= BLOB_MAX - row.length):
        raise MalformedError("a location row that names no entry")
    return row


def decode_blob_row(data: bytes) -> BlobRow:
    """Return a validated row. Raises MalformedError."""
    row = codec.decode(data, BlobRow)
    if not (1 <= row.k <= row.n <= SHARDS_MAX and 0 < row.length <= BLOB_MAX and row.epoch >= 0):
        raise MalformedError(f"a location row of a blob coded {row.k}/{row.n} with {row.length} bytes")
    if len(row.shards) != (0 if row.k == 1 else row.n) or any(len(shard) != 32 for shard in row.shards):
        raise MalformedError("a location row whose shard ids are not n ids")
    indexes = [index for index, _ in row.exceptions]
    if indexes != sorted(set(indexes)) or any(
        not 0 <= index < row.n or len(peer) != 32 for index, peer in row.exceptions
    ):
        raise MalformedError("a location row with bad exceptions")
    return row


def shard_places(row: BlobRow, ranking: Sequence[PeerId]) -> dict[int, PeerId]:
    """Return who has each shard; `ranking` is the blob's hosts under the row's epoch.

    A shard whose host is not known is left out.
    """
    return dict(enumerate(ranking[: row.n])) | dict(row.exceptions)


def make_blob_row(record: UploadRecord, ranking: Sequence[PeerId]) -> BlobRow:
    """Return the row for a blob as far as it is stored; `ranking` is its hosts under the record's epoch."""
    exceptions = tuple(
        (index, peer) for index, peer in sorted(record.holders) if index >= len(ranking) or ranking[index] != peer
    )
    return BlobRow(record.k, record.n, record.epoch, record.length, record.shards, exceptions)


def moved_row(row: BlobRow, places: Mapping[int, PeerId], rankings: Mapping[int, Sequence[PeerId]]) -> BlobRow:
    """Return the row of a blob whose shards are at `places` now, under that epoch of `rankings` (epoch to the blob's hosts)
    which needs the fewest exceptions; the first one among equals."""
    rows = []
    for epoch, ranking in rankings.items():
        exceptions = tuple(
            (index, peer) for index, peer in sorted(places.items()) if index >= len(ranking) or ranking[index] != peer
        )
        rows.append(BlobRow(row.k, row.n, epoch, row.length, row.shards, exceptions))
    return min(rows, key=lambda found: len(found.exceptions))


def entry_rows(blob: BlobId, entries: Sequence[PackedEntry]) -> list[tuple[bytes, bytes]]:
    """Return the E rows (key, value) of a blob's entries: none for an entry that is the blob."""
    return [
        (entry_key(entry.id), codec.encode(EntryRow(blob, entry.offset, entry.length)))
        for entry in entries
        if bytes(entry.id) != bytes(blob)
    ]
