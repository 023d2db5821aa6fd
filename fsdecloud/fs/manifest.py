"""What names a whole volume: the manifest, and the anchor payload that names the manifest.

Pure. The chain from 24 words to the files: the words give the ledger key, the ledger gives the latest anchor, its
payload names the manifest and three of its holders, the manifest names the tree, the location map and the records.
"""

from __future__ import annotations

from typing import Final

import msgspec

from fsdecloud import codec
from fsdecloud.crypto import merkle
from fsdecloud.crypto.payload import open_payload, seal_payload
from fsdecloud.errors import MalformedError, SealError
from fsdecloud.fs.records import BatchEntry, batches_root
from fsdecloud.limits import ANCHOR_PAYLOAD, BLOB_MAX, REPAIR_PAYLOAD
from fsdecloud.types import PeerId, Ref

HOLDERS_MAX: Final = 3
"""Peers that an anchor's payload names."""

BATCHES_MAX: Final = 4096
"""Batch entries that a writer puts into one manifest: half of what a manifest of BLOB_MAX bytes has room for. Readers take as
many as there are: earlier releases wrote more when the ledger was away for a day."""


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


class RepairPayload(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The part of an anchor that a repair key opens: where things are, and nothing of what they are."""

    version: int
    sequence: int
    """The anchor's sequence number."""
    map_root: bytes
    """64-byte reference of the location map's root."""
    host_map: bytes
    """64-byte reference of the host map, sealed like a node of the location map."""
    host_map_length: int
    holders: tuple[PeerId, ...]
    """Up to three peers that hold a copy of the host map."""
    manifest: bytes
    """Id of the manifest, whose key is not in here, and its length: copies of it are kept as well."""
    manifest_length: int


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the manifest's plaintext."""
    return codec.encode(manifest)


def decode_manifest(data: bytes) -> Manifest:
    """Return a validated manifest. Raises MalformedError."""
    manifest = codec.decode(data, Manifest)
    if manifest.version != 1 or manifest.sequence < 1:
        raise MalformedError(f"a manifest of version {manifest.version} is not readable here")
    if len(manifest.root.id) != 32 or len(manifest.root.key) != 32 or len(manifest.map_root) not in (0, 64):
        raise MalformedError("a manifest with a reference of the wrong size")
    return manifest


def decode_payload(data: bytes) -> AnchorPayload:
    """Return a validated anchor payload. Raises MalformedError."""
    payload = codec.decode(data, AnchorPayload)
    if (
        payload.version != 1
        or len(payload.holders) > HOLDERS_MAX
        or any(len(holder) != 32 for holder in payload.holders)
    ):
        raise MalformedError("an anchor payload that is not readable here")
    if len(payload.manifest.id) != 32 or len(payload.manifest.key) != 32 or not 0 < payload.length <= BLOB_MAX:
        raise MalformedError("an anchor payload with a reference of the wrong size")
    if min(payload.records, payload.files, payload.bytes) < 0:
        raise MalformedError("an anchor payload with a count out of range")
    return payload


def decode_repair_payload(data: bytes) -> RepairPayload:
    """Return the validated part for a repair key. Raises MalformedError."""
    payload = codec.decode(data, RepairPayload)
    if payload.version != 1 or len(payload.holders) > HOLDERS_MAX or len(payload.manifest) != 32:
        raise MalformedError("an anchor that this repair key's release does not understand")
    if len(payload.map_root) not in (0, 64) or len(payload.host_map) != 64:
        raise MalformedError("an anchor with a reference of the wrong size")
    return payload


def seal_anchor(
    owner_key: bytes, repair_key: bytes, nonces: tuple[bytes, bytes], owner: AnchorPayload, repair: RepairPayload
) -> bytes:
    """Return an anchor's payload: the owner's part, and the part for a repair key. `nonces`: 12 fresh random bytes each."""
    first = seal_payload(owner_key, nonces[0], codec.encode(owner), ANCHOR_PAYLOAD - REPAIR_PAYLOAD)
    return first + seal_payload(repair_key, nonces[1], codec.encode(repair), REPAIR_PAYLOAD)


def open_owners_part(owner_key: bytes, data: bytes) -> AnchorPayload:
    """Return the owner's part of an anchor's payload, of an older release too. Raises SealError, MalformedError."""
    try:
        plain = open_payload(owner_key, data[: ANCHOR_PAYLOAD - REPAIR_PAYLOAD])
    except SealError:
        plain = open_payload(owner_key, data)  # it was all the owner's
    return decode_payload(plain)


def open_repair_part(repair_key: bytes, data: bytes) -> RepairPayload:
    """Return the part for a repair key. Raises SealError (also when an older release wrote the anchor), MalformedError."""
    return decode_repair_payload(open_payload(repair_key, data[ANCHOR_PAYLOAD - REPAIR_PAYLOAD :]))


def commitment(manifest: Ref, root: Ref, batches: tuple[BatchEntry, ...]) -> bytes:
    """Return what an anchor commits to in public: a Merkle root over manifest id, tree root id and batches root.

    Each of the three can be disclosed alone later on, with a path of at most two hashes.
    """
    return merkle.root([manifest.id, root.id, batches_root(batches)])
