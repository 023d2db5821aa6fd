"""What a peer says of itself for others to pass on: where it is reached.

Pure. Signed by the peer, so that nobody else can move it; the newest one (by `sequence`) counts. That a peer is registered in
the ledger is what keeps many of them from costing nothing: who passes announcements on looks that up (`peerd.exchange`).
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from fsdecloud import codec
from fsdecloud.crypto import sign
from fsdecloud.errors import SealError
from fsdecloud.wire.peer import ANNOUNCEMENT_SIZE_MAX, Bytes32, Number

DOMAIN: Final = b"fsdecloud announcement v1"

URL_MAX: Final = 512
"""Characters, as in the registry (`net.address`)."""

FUTURE_MAX: Final = 3600
"""Seconds that a sequence may be ahead of our clock: one from far ahead could never be replaced."""


class Announcement(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where a peer is reached, in its own word."""

    version: int
    network: Bytes32
    peer: Bytes32
    url: Annotated[str, Meta(max_length=URL_MAX)]
    sequence: Number
    """When it was made, in seconds since 1970: a later one replaces an earlier one."""
    signature: Annotated[bytes, Meta(max_length=64)]


def sign_announcement(seed: bytes, *, network: bytes, url: str, sequence: int) -> bytes:
    """Return the encoded announcement of the peer with this Ed25519 seed."""
    unsigned = Announcement(1, network, sign.public_key(seed), url, sequence, b"")
    signature = sign.sign(seed, DOMAIN, codec.encode(unsigned))
    return codec.encode(msgspec.structs.replace(unsigned, signature=signature))


def verify_announcement(data: bytes, *, network: bytes, now: int) -> Announcement:
    """Return an announcement that is its peer's, of this network. Raises MalformedError, SealError."""
    if len(data) > ANNOUNCEMENT_SIZE_MAX:
        raise SealError(f"an announcement of {len(data)} bytes")
    found = codec.decode(data, Announcement)
    if found.version != 1 or found.network != network:
        raise SealError("an announcement of another version or network")
    if found.sequence > now + FUTURE_MAX:
        raise SealError(f"an announcement of the future: {found.sequence}, and it is {now}")
    sign.verify(found.peer, DOMAIN, codec.encode(msgspec.structs.replace(found, signature=b"")), found.signature)
    return found
