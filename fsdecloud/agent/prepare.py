"""How a blob's bytes are read, checked and coded.

Blocking and CPU-bound: worker threads only. The blob belongs to the thread while it works on it.
"""

from __future__ import annotations

from collections.abc import Sequence

from blake3 import blake3

from fsdecloud.agent.blob import Blob
from fsdecloud.agent.erasure import encode_shards, shard_ids
from fsdecloud.agent.journal import NODES, Journal
from fsdecloud.errors import FsdecloudError, MalformedError, StoreError
from fsdecloud.store.segments import Location, SegmentStore
from fsdecloud.types import BlobId, EntryId


class Damaged(FsdecloudError):
    """Staged bytes that cannot be uploaded, and whose they are."""

    def __init__(self, message: str, entries: Sequence[EntryId]) -> None:
        super().__init__(message)
        self.entries = entries


def code_blob(blob: Blob, staged: SegmentStore, journal: Journal) -> list[bytes | memoryview]:
    """Return all shards of a blob; set its id and shard ids the first time.

    Raises Damaged with the entries that cannot be read or are not what their ids say: they are never uploaded as if they
    were good (fault 18).
    """
    if blob.is_local:
        data = journal.get(NODES, blob.id)
        if data is None:
            raise Damaged(f"the journal lost the bytes of {blob.id.hex()}", [])
    else:
        data = _read(blob, staged)
    if not blob.id:
        single = len(blob.entries) == 1
        blob.id = BlobId(blob.entries[0].id if single else blake3(data).digest())
    shards = encode_shards(blob.k, blob.n, data)
    if blob.k > 1 and not blob.shards:
        blob.shards = shard_ids(shards)
    return shards


def _read(blob: Blob, staged: SegmentStore) -> bytes:
    parts, bad, why = [], [], ""
    for entry in blob.entries:
        source = blob.sources[entry.id]
        try:
            part = staged.read(Location(source.segment, source.offset, source.length))
            if blake3(part).digest() != entry.id or len(part) != entry.length:
                raise MalformedError("its bytes are not what its id says")
        except (StoreError, MalformedError) as exc:
            bad.append(entry.id)
            why = str(exc)
        else:
            parts.append(part)
    if bad:
        raise Damaged(f"staged entry {bad[0].hex()} ({len(bad)} in all) cannot be stored: {why}", bad)
    return parts[0] if len(parts) == 1 else b"".join(parts)
