"""Which keys follow from which secret.

Pure. Every key comes from a 32-byte secret through BLAKE3's `derive_key` mode with one context string per use (BLAKE3
paper, section 2.3: the context is hard-coded, globally unique and never holds data). Not here: where the root secret is
kept (`slots`), how a person writes it down (`phrase`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from blake3 import blake3

from fsdecloud.crypto import sign
from fsdecloud.types import PeerId, VolumeId

SECRET_SIZE: Final = 32
"""Every secret and key: 256 bits."""

CONTEXT_PREFIX: Final = "fsdecloud 2026 v1 "
"""All contexts start with this, as the BLAKE3 paper asks: application, date, version, then the use."""


def derive(secret: bytes, context: str, data: bytes = b"") -> bytes:
    """Return 32 bytes that only a holder of `secret` (32 bytes) can know: BLAKE3 derive_key(context, secret + data).

    `context` is a constant of the program, "fsdecloud 2026 v1 <use>"; what varies goes into `data`. Raises ValueError
    for a secret of another length (secret + data would be ambiguous) or a context without the prefix.
    """
    if len(secret) != SECRET_SIZE:
        raise ValueError(f"a secret has {SECRET_SIZE} bytes, not {len(secret)}")
    if not context.startswith(CONTEXT_PREFIX):
        raise ValueError(f"a context starts with {CONTEXT_PREFIX!r}")
    return blake3(secret + data, derive_key_context=context).digest()


@dataclass(frozen=True, slots=True)
class VolumeKeys:
    """All keys of one volume. Its repr shows the volume id alone, so that no log or traceback holds a secret."""

    volume_id: VolumeId
    """Public half of the ledger key: the volume's name on the ledger."""
    seal_secret: bytes = field(repr=False)
    """Seals entries (`seal`)."""
    border_secret: bytes = field(repr=False)
    """Decides tree borders, and the hash of names that is the readdir cookie."""
    ledger_payload_key: bytes = field(repr=False)
    """Encrypts the anchor's payload (`payload`)."""
    ledger_seed: bytes = field(repr=False)
    """Ed25519 seed that signs anchors."""
    deal_secret: bytes = field(repr=False)
    """Gives the key of each deal (`deal_seed`); the agent has it."""
    repair_secret: bytes = field(repr=False)
    """Gives `RepairKeys`; the agent has it, and whoever repairs while the owner is offline."""
    at_rest_key: bytes = field(repr=False)
    """Seals the local journal (`rows`)."""
    grant_secret: bytes = field(repr=False)
    """Gives the key that signs deletions at each peer (`grant_seed`); the driver alone has it."""
    wallet_secret: bytes = field(repr=False)
    """Gives the keys that have and spend money (`wallet`); the driver alone has it."""

    @classmethod
    def from_root(cls, root: bytes) -> VolumeKeys:
        """Return the keys of the volume whose root secret (32 bytes) this is. Raises ValueError on another length."""
        ledger_seed = derive(root, CONTEXT_PREFIX + "ledger signing")
        return cls(
            volume_id=VolumeId(sign.public_key(ledger_seed)),
            seal_secret=derive(root, CONTEXT_PREFIX + "seal"),
            border_secret=derive(root, CONTEXT_PREFIX + "tree border"),
            ledger_payload_key=derive(root, CONTEXT_PREFIX + "ledger payload"),
            ledger_seed=ledger_seed,
            deal_secret=derive(root, CONTEXT_PREFIX + "deal"),
            repair_secret=derive(root, CONTEXT_PREFIX + "repair"),
            at_rest_key=derive(root, CONTEXT_PREFIX + "at rest"),
            grant_secret=derive(root, CONTEXT_PREFIX + "grant"),
            wallet_secret=derive(root, CONTEXT_PREFIX + "wallet"),
        )


@dataclass(frozen=True, slots=True, repr=False)
class RepairKeys:
    """What checks and repairs a volume without being able to read it."""

    placement_secret: bytes
    """Keys the rendezvous hash that chooses hosts."""
    map_seal_secret: bytes
    """Seals the location map's nodes."""
    map_border_secret: bytes
    """Decides the location map's tree borders."""
    payload_key: bytes
    """Encrypts the part of an anchor's payload that says where the location map is (`payload`)."""

    @classmethod
    def from_secret(cls, repair_secret: bytes) -> RepairKeys:
        """Return the keys under `VolumeKeys.repair_secret`. Raises ValueError unless it has 32 bytes."""
        return cls(
            placement_secret=derive(repair_secret, CONTEXT_PREFIX + "placement"),
            map_seal_secret=derive(repair_secret, CONTEXT_PREFIX + "map seal"),
            map_border_secret=derive(repair_secret, CONTEXT_PREFIX + "map border"),
            payload_key=derive(repair_secret, CONTEXT_PREFIX + "repair payload"),
        )

    def __repr__(self) -> str:
        return "RepairKeys(...)"


def deal_seed(deal_secret: bytes, peer: PeerId) -> bytes:
    """Return the Ed25519 seed of the deal with `peer`: a key for each, so that two peers cannot tell a common owner."""
    return derive(deal_secret, CONTEXT_PREFIX + "deal signing", peer)


def grant_seed(grant_secret: bytes, peer: PeerId) -> bytes:
    """Return the Ed25519 seed that signs deletions at `peer`: a key for each, as for deals."""
    return derive(grant_secret, CONTEXT_PREFIX + "grant signing", peer)
