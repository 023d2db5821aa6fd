"""What parties send to a contract, and what they sign together off chain.

Pure. An input is a few acts in their order, all of them or none. A choice with a sequence number is an *agreement*: every party
of the choice has signed it for this one contract, whoever brings it, and a contract takes only one that is newer than the last.
So what was agreed a thousand times is one input, with the newest. Not here: which acts a contract waits for (`machine`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta

from fsdecloud import codec
from fsdecloud.contracts.language import BOUND, Integer, Name
from fsdecloud.contracts.reasons import BadAgreement
from fsdecloud.crypto import sign
from fsdecloud.errors import SealError
from fsdecloud.limits import CONTRACT_FIELDS, CONTRACT_PARTIES, PROOF_MAX

DOMAIN: Final = b"fsdecloud agreement v1"
SEQUENCE_MAX: Final = BOUND


class Depositing(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=0):
    """Pay exactly the amount that the contract waits for, out of the sender's money."""

    by: Name
    into: Name
    amount: Annotated[int, Meta(ge=0, le=BOUND - 1)]


class Choosing(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=1):
    """Bring a choice: the sender's own, with sequence 0 and no signatures, or an agreement."""

    choice: Name
    sequence: Annotated[int, Meta(ge=0, le=SEQUENCE_MAX)]
    values: Annotated[tuple[Integer, ...], Meta(max_length=CONTRACT_FIELDS)]
    datum: Annotated[bytes, Meta(max_length=32)]
    """32 bytes, or b"" for a choice without a datum."""
    signatures: Annotated[tuple[Annotated[bytes, Meta(max_length=64)], ...], Meta(max_length=CONTRACT_PARTIES)]
    """One of each party in the choice's order; b"" for the sender's, who signs the input."""


class Notifying(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=2):
    """Say that something holds now."""


class Proving(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=3):
    """Prove that what a root stands for is held."""

    root: Name
    proof: Annotated[bytes, Meta(max_length=PROOF_MAX)]


Act: TypeAlias = Depositing | Choosing | Notifying | Proving


def agreement_message(
    network: bytes, contract: bytes, choice: str, sequence: int, values: tuple[int, ...], datum: bytes
) -> bytes:
    """Return what the parties of an agreement sign under DOMAIN. `network` and `contract` are ids of 32 bytes."""
    return network + contract + codec.encode((choice, sequence, values, datum))


def sign_agreement(
    seed: bytes,
    network: bytes,
    contract: bytes,
    choice: str,
    sequence: int,
    values: tuple[int, ...],
    datum: bytes = b"",
) -> bytes:
    """Return a party's signature (64 bytes) under an agreement, made with its Ed25519 seed. `sequence` is 1 or more."""
    if not 1 <= sequence <= SEQUENCE_MAX:
        raise ValueError(f"an agreement's sequence number is 1 to {SEQUENCE_MAX}, not {sequence}")
    return sign.sign(seed, DOMAIN, agreement_message(network, contract, choice, sequence, values, datum))


def check_agreement(public: bytes, message: bytes, signature: bytes) -> None:
    """Check a party's signature under an agreement. Raises BadAgreement."""
    problem = _problem(public, message, signature)
    if problem:
        raise BadAgreement(problem)


@lru_cache(maxsize=4096)
def _problem(public: bytes, message: bytes, signature: bytes) -> str:
    """Return what is wrong with a signature, or "". A transaction is looked at when it comes, for a block, and in a block: its
    agreements are verified once."""
    try:
        sign.verify(public, DOMAIN, message, signature)
    except SealError as exc:
        return str(exc)
    return ""
