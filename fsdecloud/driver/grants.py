"""What only the driver can sign: that a peer may delete shards.

The agent has the deals' keys, so it can store; the grant keys stay here. It asks for the public ones, which peers learn
with a deal's first shard (`wire.grants`).
"""

from __future__ import annotations

from collections.abc import Mapping

from fsdecloud.crypto import sign
from fsdecloud.crypto.keys import grant_seed
from fsdecloud.net.unix import Handler
from fsdecloud.wire.agentapi import GrantKey, PeerName


class Grants:
    """Answers the agent's questions about deletions."""

    def __init__(self, grant_secret: bytes) -> None:
        self._secret = grant_secret

    def methods(self) -> Mapping[str, Handler]:
        """Return what the agent may call."""
        return {"grant_key": (PeerName, self._key)}

    async def _key(self, peer: PeerName) -> GrantKey:
        return GrantKey(sign.public_key(grant_seed(self._secret, peer.id)))
