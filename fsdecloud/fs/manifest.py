"""What names a whole volume: the manifest, and the anchor payload that names the manifest.

Pure. The chain from 24 words to the files: the words give the ledger key, the ledger gives the latest anchor, its
payload names the manifest and three of its holders, the manifest names the tree, the location map and the records.
"""

from __future__ import annotations

from typing import Final

import msgspec

from fsdecloud import codec
from fsdecloud.crypto import merkle
from fsdecloud.errors import MalformedError
from fsdecloud.fs.records import BatchEntry, batches_root
from fsdecloud.types import PeerId, Ref

BATCHES_MAX: Final = 4096
"""Batch entries of one manifest, 16 million records: a commit before that many are pending."""


class Manifest(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Everything a volume needs, as of one anchor."""

    version: int
    sequence: int
    """The anchor's sequence number."""
    time: int
    """Nanoseconds since 1970 by the writer's clock."""
    root: Ref
    """Root node of the metadata tree."""
    map_root: bytes
    """64-byte reference of the location map's root."""
    host_map: bytes
    batches: tuple[BatchEntry, ...]
    """Records since the previous anchor, oldest first."""


class AnchorPayload(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The encrypted part of an anchor: where the manifest is."""

    version: int
    manifest: Ref
    length: int
    """Bytes of the sealed manifest."""
    holders: tuple[PeerId, ...]
    """Up to three peers that hold a whole copy."""
    records: int
    """How many operations this anchor records."""
    files: int
    bytes: int


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the manifest's plaintext."""
    return codec.encode(manifest)


def decode_manifest(data: bytes) -> Manifest:
    """Return a validated manifest. Raises MalformedError."""
    manifest = codec.decode(data, Manifest)
    if manifest.version != 1 or manifest.sequence < 1 or len(manifest.batches) > BATCHES_MAX:
        raise MalformedError(f"a manifest of version {manifest.version} is not readable here")
    if len(manifest.root.id) != 32 or len(manifest.root.key) != 32 or len(manifest.map_root) not in (0, 64):
        raise MalformedError("a manifest with a reference of the wrong size")
    return manifest


def decode_payload(data: bytes) -> AnchorPayload:
    """Return a validated anchor payload. Raises MalformedError."""
    payload = codec.decode(data, AnchorPayload)
    if payload.version != 1 or len(payload.holders) > 3 or len(payload.manifest.id) != 32:
        raise MalformedError("an anchor payload that is not readable here")
    return payload


def commitment(manifest: Ref, root: Ref, batches: tuple[BatchEntry, ...]) -> bytes:
    """Return what an anchor commits to in public: a Merkle root over manifest id, tree root id and batches root.

    Each of the three can be disclosed alone later on, with a path of at most two hashes.
    """
    return merkle.root([manifest.id, root.id, batches_root(batches)])
