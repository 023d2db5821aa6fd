"""What only the driver can sign: that a peer may delete shards.

The agent has the deals' keys, so it can store; the grant keys stay here. It asks for the public ones, which peers learn
with a deal's first shard (`wire.grants`). It gets a signature only during a collection of garbage, for shards of blobs
whose entries are neither marked nor staged since the marking began, and the signature says when that was: what was stored
after it stays, whatever the agent does with the grant.

Which shards belong to which entries is the agent's word, as it is when they are stored.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping

from fsdecloud.crypto import sign
from fsdecloud.crypto.keys import VolumeKeys, deal_seed, grant_seed
from fsdecloud.errors import LocalProtocolError
from fsdecloud.net.unix import Handler
from fsdecloud.types import EntryId, ShardId
from fsdecloud.wire.agentapi import GRANT_LIFE, GrantKey, PeerName, SignedGrant, SignGrant
from fsdecloud.wire.grants import GRANT_SHARDS_MAX, sign_grant


class Grants:
    """Answers the agent's questions about deletions."""

    def __init__(self, keys: VolumeKeys, network: bytes) -> None:
        self._keys = keys
        self._network = network
        self._is_needed: Callable[[EntryId], bool] | None = None
        self._marked_at = 0

    def methods(self) -> Mapping[str, Handler]:
        """Return what the agent may call."""
        return {"grant_key": (PeerName, self._key), "sign_grant": (SignGrant, self._sign)}

    def allow(self, is_needed: Callable[[EntryId], bool], marked_at: int) -> None:
        """Sign from now on, for what is not needed. `marked_at` is when the marking began, seconds since 1970."""
        self._is_needed = is_needed
        self._marked_at = marked_at

    def forbid(self) -> None:
        """Sign nothing any more."""
        self._is_needed = None

    async def _key(self, peer: PeerName) -> GrantKey:
        return GrantKey(sign.public_key(grant_seed(self._keys.grant_secret, peer.id)))

    async def _sign(self, request: SignGrant) -> SignedGrant:
        is_needed = self._is_needed
        if is_needed is None:
            raise LocalProtocolError("nothing is deleted without marking first")
        shards: dict[ShardId, None] = {}
        refused = []
        for blob in request.blobs:
            if any(map(is_needed, blob.entries)) or len(shards) + len(blob.shards) > GRANT_SHARDS_MAX:
                refused.append(blob.blob)
            else:
                shards.update(dict.fromkeys(blob.shards))
        if not shards:
            return SignedGrant(b"", tuple(refused))
        grant = sign_grant(
            grant_seed(self._keys.grant_secret, request.peer),
            network=self._network,
            peer=request.peer,
            deal=sign.public_key(deal_seed(self._keys.deal_secret, request.peer)),
            not_before=self._marked_at,
            expires=int(time.time()) + GRANT_LIFE,
            nonce=os.urandom(32),
            shards=tuple(shards),
        )
        return SignedGrant(grant, tuple(refused))
