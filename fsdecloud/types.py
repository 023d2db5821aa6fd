"""Which kinds of identifier exist, and the few values that every layer passes around.

Pure. Not here: anything with behaviour; sizes and time-outs (`limits`); errors (`errors`).
"""

from __future__ import annotations

from typing import NewType

import msgspec

Inode = NewType("Inode", int)
"""A file's number within its volume: 64 bits, never reused; 1 is the root directory."""

Handle = NewType("Handle", int)
"""One open file or directory of the mount; never an inode number."""

ChunkIndex = NewType("ChunkIndex", int)
"""Position of a chunk in its file: offset // chunk size."""

EntryId = NewType("EntryId", bytes)
"""BLAKE3 of an entry's sealed bytes: 32 bytes."""

BlobId = NewType("BlobId", bytes)
"""BLAKE3 of a blob's bytes: 32 bytes. A blob of one large entry has that entry's id."""

ShardId = NewType("ShardId", bytes)
"""BLAKE3 of a shard's bytes: 32 bytes."""

PeerId = NewType("PeerId", bytes)
"""A peer's raw Ed25519 public key: 32 bytes."""

VolumeId = NewType("VolumeId", bytes)
"""A volume's ledger key, the raw Ed25519 public key: 32 bytes."""

TxId = NewType("TxId", bytes)
"""Id of a ledger transaction, signatures excluded: 32 bytes."""

BlockId = NewType("BlockId", bytes)
"""Id of a block: BLAKE3 of its header: 32 bytes."""

Height = NewType("Height", int)
"""Number of blocks before this one; the genesis block has height 0."""


class Ref(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Names and opens one entry: its id (32 bytes) and the key that opens it (32 bytes). Nothing else is in a reference."""

    id: EntryId
    key: bytes

    def to_bytes(self) -> bytes:
        """Return the 64-byte form: id, then key."""
        return self.id + self.key

    @classmethod
    def from_bytes(cls, data: bytes) -> Ref:
        """Read the 64-byte form. Raises ValueError on any other length."""
        if len(data) != 64:
            raise ValueError(f"a reference has 64 bytes, not {len(data)}")
        return cls(EntryId(data[:32]), data[32:])
