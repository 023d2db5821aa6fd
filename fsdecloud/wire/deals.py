"""What the two sides of a storage deal say to each other, beside storing (fsdecloud-protocol(7), DEALS).

    owner -> peer   Fund     the contract stands on the chain and has the owner's money: pay the collateral in
    owner -> peer   Revise   the next revision, with what changes in the set of shards and the owner's signature
    owner -> peer   Attest   show that you have the shards of the newest revision
    peer -> owner   DealState (to Fund and Revise): the newest revision that both have signed; Attested; or Error

A revision changes the set that both sides keep (`crypto.shardset`), by name: what the peer signed for with receipts and what
grants took away again, a flush at a time. Both compute the new root; one that is not the other's is not signed. The answer is
always the newest revision with both signatures, so that an owner who lost the last answer, or everything but the phrase, learns
where the deal stands, and a Revise may be sent twice.

Pure. Not here: what a signature covers (`contracts.deal`), what each side agrees to (`swarm.dealing`), the messages' place
in a session (`wire.peer`, `wire.session`).
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta

from fsdecloud.contracts.deal import Revision, SignedRevision
from fsdecloud.crypto.possession import proof_size_max
from fsdecloud.limits import MESSAGE_MAX

CHANGES_MAX: Final = 16_384
"""Shards that one revision adds and removes: 700 KiB at most."""

SAMPLES_MAX: Final = 64
"""Samples of one Attest: of shards of 1 MiB, two seconds of hashing. Who wants to know more asks more often."""

PROOF_MAX: Final = proof_size_max(SAMPLES_MAX)

Bytes32 = Annotated[bytes, Meta(min_length=32, max_length=32)]
Signature = Annotated[bytes, Meta(min_length=64, max_length=64)]
Number = Annotated[int, Meta(ge=0, le=(1 << 53) - 1)]
Length = Annotated[int, Meta(ge=1, le=MESSAGE_MAX)]


class Added(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A shard that a deal has from now on."""

    id: Bytes32
    length: Length


class Fund(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=40):
    """Look at a contract on the chain that names the peer, and pay the collateral in if its terms are the peer's."""

    request: Number
    contract: Bytes32
    signature: Signature
    """The owner's, of the first revision (`swarm.dealing.first_revision`)."""


class Revise(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=41):
    """Sign the next revision. It changes the set of the revision before it."""

    request: Number
    contract: Bytes32
    added: Annotated[tuple[Added, ...], Meta(max_length=CHANGES_MAX)]
    removed: Annotated[tuple[Bytes32, ...], Meta(max_length=CHANGES_MAX)]
    revision: Revision
    signature: Signature
    """By the deal's key."""


class Attest(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=42):
    """Prove possession of the shards of the newest revision of both."""

    request: Number
    contract: Bytes32
    number: Number
    """Of the revision that is meant."""
    seed: Bytes32
    samples: Annotated[int, Meta(ge=1, le=SAMPLES_MAX)]


class DealState(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=50):
    """Answer to Fund and Revise: the newest revision that both have signed."""

    request: Number
    contract: Bytes32
    is_funded: bool
    """Whether the chain has the peer's collateral, as the peer sees it."""
    newest: SignedRevision


class Attested(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=51):
    """Answer to Attest."""

    request: Number
    proof: Annotated[bytes, Meta(max_length=PROOF_MAX)]
    """As `crypto.possession` makes it."""


Dealing: TypeAlias = Fund | Revise | Attest
"""The requests."""
