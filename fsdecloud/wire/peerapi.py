"""What a local program asks a running storage peer over its control socket `peer-NAME` (framing: `wire.rpc`).

status: Empty -> PeerdStatus
"""

from __future__ import annotations

import msgspec

from fsdecloud.types import PeerId


class PeerdStatus(msgspec.Struct, frozen=True, array_like=True):
    """One storage peer of this machine."""

    pid: int
    name: str
    id: PeerId
    url: str
    """Where others reach it."""
    network: bytes
    quota: int
    used: int
    """Bytes on disk in its shard segments."""
    free: int
    """Bytes it would still take: by quota and by the disk's free space."""
    shards: int
    connections: int
    registered_height: int
    """Height of the ledger's tip when its registration was last seen there, -1 before."""
    stored_shards: int
    stored_bytes: int
    served_shards: int
    served_bytes: int
    refused_shards: int
    """Since it was started."""
    doomed_shards: int
    """Shards that no owner wants any more, within their grace period."""
    dropped_shards: int
    """Shards that an owner gave up, removed from the disk, and grants refused: since it was started."""
    removed_shards: int
    refused_grants: int
    last_error: str
