"""The receipt a peer signs when shards are durable in its store, and when a lease is renewed.

Pure. One receipt covers a batch of shards: it names shard id and length, the deal, the peer, the time, and until when the
peer promises to keep them (the lease). Version 1, of releases without leases, is still read where it was kept; it has no
term.
"""

from __future__ import annotations

from typing import Final

import msgspec

from fsdecloud import codec
from fsdecloud.crypto import sign
from fsdecloud.errors import MalformedError, SealError
from fsdecloud.types import PeerId, ShardId

DOMAIN: Final = b"fsdecloud receipt v1"
"""Of both versions: the version stands in what is signed."""

VERSION: Final = 2

LEASE_TERM: Final = 180 * 24 * 3600
"""Seconds for which a peer keeps a shard that nobody renews, if it is not told otherwise: half a year in which a volume need
not be mounted and no repair key be used."""

TIME_MAX: Final = 1 << 53

CLOCK_SKEW: Final = 24 * 3600
"""Seconds by which a peer's clock may be ahead of ours: a receipt from further in the future is none."""


class ShardItem(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One shard of a receipt."""

    id: ShardId
    length: int


class Receipt(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A peer's signed word that it holds these shards durably. Times in seconds since 1970 by the peer's clock."""

    version: int
    peer: PeerId
    deal: bytes
    """Public key of the deal under which they are stored."""
    time: int
    expires: int
    """Until when they are kept if nobody renews the lease; 0 in version 1: no word on that."""
    shards: tuple[ShardItem, ...]
    signature: bytes

    @property
    def term(self) -> int:
        """Seconds of the lease: what counts where clocks differ; 0 for none."""
        return self.expires - self.time if self.expires else 0


class _Receipt1(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A receipt of version 1."""

    version: int
    peer: PeerId
    deal: bytes
    time: int
    shards: tuple[ShardItem, ...]
    signature: bytes


def sign_receipt(
    seed: bytes, peer: PeerId, deal: bytes, time: int, shards: tuple[ShardItem, ...], term: int = LEASE_TERM
) -> bytes:
    """Return the encoded receipt signed with the peer's Ed25519 seed; `term` in seconds."""
    unsigned = Receipt(VERSION, peer, deal, time, time + term, shards, b"")
    signature = sign.sign(seed, DOMAIN, codec.encode(unsigned))
    return codec.encode(msgspec.structs.replace(unsigned, signature=signature))


def verify_receipt(data: bytes) -> Receipt:
    """Return the receipt if its signature is its peer's. Raises MalformedError or SealError.

    Whose it is, what it is for and whether it still holds (`check_term`) is the caller's to look at.
    """
    try:
        receipt = codec.decode(data, Receipt)
    except MalformedError:
        old = codec.decode(data, _Receipt1)
        if old.version != 1:
            raise SealError(f"unknown receipt version {old.version}") from None
        _verify(old)
        return Receipt(1, old.peer, old.deal, old.time, 0, old.shards, old.signature)
    if receipt.version != VERSION:
        raise SealError(f"unknown receipt version {receipt.version}")
    if not 0 <= receipt.time < receipt.expires <= TIME_MAX:
        raise SealError("a receipt whose lease ends before it begins")
    _verify(receipt)
    return receipt


def _verify(receipt: Receipt | _Receipt1) -> None:
    sign.verify(receipt.peer, DOMAIN, codec.encode(msgspec.structs.replace(receipt, signature=b"")), receipt.signature)


def is_over(data: bytes, now: float) -> bool:
    """Say whether the lease of a receipt that was verified once is over by our clock. Raises MalformedError."""
    try:
        return codec.decode(data, Receipt).expires <= now
    except MalformedError:
        codec.decode(data, _Receipt1)
        return False


def check_term(receipt: Receipt, now: float) -> None:
    """Raise SealError when the receipt's lease is over by our clock, or begins in our future. One without a term holds."""
    if not receipt.expires:
        return
    if receipt.expires <= now:
        raise SealError("the receipt has expired")
    if receipt.time > now + CLOCK_SKEW:
        raise SealError("a receipt of the future")
