"""The grant with which a volume's owner has a peer delete shards.

Pure. Whoever has a deal's key may store under it; only the owner may delete what it stored, with the grant key that the
peer learnt with the deal's first shard. A grant names everything it is good for: network, peer, deal, shards, the time
from which and until which it holds, and a nonce. A peer takes each grant once, never before or after its time, and drops
only claims that are older than the grant: what was stored again since is wanted again.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from fsdecloud import codec
from fsdecloud.crypto import sign
from fsdecloud.errors import MalformedError, SealError
from fsdecloud.types import PeerId, ShardId

DOMAIN: Final = b"fsdecloud grant v1"

GRANT_SHARDS_MAX: Final = 4096
"""Shards of one grant: 136 KiB."""

GRANT_LIFE_MAX: Final = 24 * 3600
"""Seconds for which a grant may hold: a peer remembers it for as long, so that it is not taken twice."""

GRANT_SIZE_MAX: Final = GRANT_SHARDS_MAX * 34 + 512
"""Bytes of an encoded grant."""

VERSION: Final = 1

Bytes32 = Annotated[bytes, Meta(min_length=32, max_length=32)]
Time = Annotated[int, Meta(ge=0, le=(1 << 32) - 1)]


class Grant(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The owner's word that a peer may let go of these shards. Times in seconds since 1970."""

    version: int
    network: Bytes32
    peer: Bytes32
    deal: Bytes32
    """Public key of the deal under which they were stored."""
    not_before: Time
    """Shards that were stored under the deal later than this stay."""
    expires: Time
    nonce: Bytes32
    shards: Annotated[tuple[Bytes32, ...], Meta(min_length=1, max_length=GRANT_SHARDS_MAX)]
    signature: Annotated[bytes, Meta(max_length=64)]


def sign_grant(
    seed: bytes,
    *,
    network: bytes,
    peer: PeerId,
    deal: bytes,
    not_before: int,
    expires: int,
    nonce: bytes,
    shards: tuple[ShardId, ...],
) -> bytes:
    """Return the encoded grant, signed with the owner's grant seed for this peer (`crypto.keys.grant_seed`)."""
    unsigned = Grant(VERSION, network, peer, deal, not_before, expires, nonce, shards, b"")
    return codec.encode(msgspec.structs.replace(unsigned, signature=sign.sign(seed, DOMAIN, codec.encode(unsigned))))


def verify_grant(data: bytes, *, network: bytes, peer: PeerId, deal: bytes, owner: bytes, now: int) -> Grant:
    """Return the grant if `owner` signed it for this network, peer and deal, and it holds `now`.

    Raises MalformedError when it is no grant, SealError with the reason for any other.
    """
    if len(data) > GRANT_SIZE_MAX:
        raise MalformedError(f"a grant has at most {GRANT_SIZE_MAX} bytes, not {len(data)}")
    grant = codec.decode(data, Grant)
    if grant.version != VERSION:
        raise SealError(f"unknown grant version {grant.version}")
    if grant.network != network:
        raise SealError("a grant of another network")
    if grant.peer != peer:
        raise SealError("a grant for another peer")
    if grant.deal != deal:
        raise SealError("a grant for another deal")
    if not owner:
        raise SealError("this deal has shown no key that may delete")
    sign.verify(owner, DOMAIN, codec.encode(msgspec.structs.replace(grant, signature=b"")), grant.signature)
    if now < grant.not_before:
        raise SealError("the grant does not hold yet")
    if now >= grant.expires:
        raise SealError("the grant has expired")
    if grant.expires - grant.not_before > GRANT_LIFE_MAX:
        raise SealError(f"a grant holds for at most {GRANT_LIFE_MAX} s")
    return grant
