"""The receipt a peer signs when shards are durable in its store.

Pure. One receipt covers a batch of shards: it names shard id and length, the deal, the peer and the time.
"""

from __future__ import annotations

from typing import Final

import msgspec

from fsdecloud import codec
from fsdecloud.crypto import sign
from fsdecloud.errors import SealError
from fsdecloud.types import PeerId, ShardId

DOMAIN: Final = b"fsdecloud receipt v1"


class ShardItem(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One shard of a receipt."""

    id: ShardId
    length: int


class Receipt(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A peer's signed word that it holds these shards durably. `time` in seconds since 1970 by the peer's clock."""

    version: int
    peer: PeerId
    deal: bytes
    """Public key of the deal under which they were stored."""
    time: int
    shards: tuple[ShardItem, ...]
    signature: bytes


def sign_receipt(seed: bytes, peer: PeerId, deal: bytes, time: int, shards: tuple[ShardItem, ...]) -> bytes:
    """Return the encoded receipt signed with the peer's Ed25519 seed."""
    unsigned = Receipt(1, peer, deal, time, shards, b"")
    signature = sign.sign(seed, DOMAIN, codec.encode(unsigned))
    return codec.encode(msgspec.structs.replace(unsigned, signature=signature))


def verify_receipt(data: bytes) -> Receipt:
    """Return the receipt if its signature is its peer's. Raises MalformedError or SealError."""
    receipt = codec.decode(data, Receipt)
    if receipt.version != 1:
        raise SealError(f"unknown receipt version {receipt.version}")
    sign.verify(receipt.peer, DOMAIN, codec.encode(msgspec.structs.replace(receipt, signature=b"")), receipt.signature)
    return receipt
