"""What peers and clients say to everybody on a link, to find each other there (`net.lan`): 66 bytes in a datagram.

    magic      16  `fsdecloud link 1`
    network    16  a hash of the ledger network's id
    peer       32  who is there; zeros in a question
    port        2  where it listens, big-endian, at the address that the datagram comes from; 0 in a question

Pure. Nothing of an owner is in it, and nothing in it is to be believed: a connection proves the peer's key. A question is as
long as its answers, so that nobody has them send more elsewhere than he sends himself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from blake3 import blake3

from fsdecloud.errors import MalformedError
from fsdecloud.types import PeerId

MAGIC: Final = b"fsdecloud link 1"
SIZE: Final = 66
_CONTEXT: Final = "fsdecloud 2026 v1 link beacon network"
_NOBODY: Final = bytes(32)


@dataclass(frozen=True, slots=True)
class Beacon:
    """Somebody is there, or asks who is."""

    network: bytes
    """`network_hash` of the network."""
    peer: PeerId | None
    """None for a question."""
    port: int


def network_hash(network: bytes) -> bytes:
    """Return what a beacon says of the network with this id."""
    return blake3(network, derive_key_context=_CONTEXT).digest(16)


def encode_beacon(beacon: Beacon) -> bytes:
    """Return the datagram."""
    return MAGIC + beacon.network + (beacon.peer or _NOBODY) + beacon.port.to_bytes(2, "big")


def decode_beacon(data: bytes) -> Beacon:
    """Return what a datagram says. Raises MalformedError for one that is no beacon of this version."""
    if len(data) != SIZE or not data.startswith(MAGIC):
        raise MalformedError(f"no beacon: {len(data)} bytes")
    peer, port = data[32:64], int.from_bytes(data[64:], "big")
    if (peer == _NOBODY) != (port == 0):
        raise MalformedError("a beacon of a peer has a port, a question has neither")
    return Beacon(data[16:32], PeerId(peer) if port else None, port)
