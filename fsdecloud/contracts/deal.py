"""The storage deal, for the two sides of one: its terms, its revisions, and what each side sends.

Pure. The document is `documents/storage_deal.contract`, and says what happens in each case; here are the numbers that go
into it. A deal begins with both deposits, or ends at `funding`. Its periods follow each other from there on; after each the
peer may prove that it keeps the newest revision's shards, and the owner may ask for that proof.

    start + funding + period * (n + 1)             end of period n; its challenge is drawn from the blocks from there on
    ... + window                                   until then the peer may prove by itself, and the owner may challenge

A period costs bytes * price * period * interval / (GiB * 30 days), with the exact product, rounded down: who earns what is
the same on both sides to the last unit. A revision's `earned` counts from the beginning of the deal.

Why a part of a slashed collateral burns: if its owner had all of it, keeping a peer from answering twice would pay; if all
burned, nobody would make up for the loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from fsdecloud import codec
from fsdecloud.contracts.bounds import Arguments, check_arguments
from fsdecloud.contracts.inputs import (
    SEQUENCE_MAX,
    Act,
    Choosing,
    Depositing,
    Proving,
    agreement_message,
    check_agreement,
    sign_agreement,
)
from fsdecloud.contracts.language import BOUND, Bytes32
from fsdecloud.contracts.library import standard
from fsdecloud.contracts.machine import Instance
from fsdecloud.contracts.program import part_of
from fsdecloud.contracts.reasons import BadAgreement, InvalidArguments, OldAgreement, OutOfBounds
from fsdecloud.errors import MalformedError
from fsdecloud.limits import GIB

NAME: Final = "storage_deal"
CHOICE: Final = "revision"
MONTH: Final = 30 * 86400
"""Seconds of the month that prices are for."""
UNIT: Final = GIB * MONTH
BYTES_MAX: Final = (1 << 53) - 1
REVISION_MAX: Final = 300
"""Bytes of an encoded signed revision, at most."""

FUNDING: Final = 120
WINDOW: Final = 120
CONTEST: Final = 60
SAMPLES: Final = 8
"""A proof on the chain takes less than 16 KiB. Who dropped 5 % is caught by each with 34 %, by six in a row with 91 %:
1 - (1 - 0.05)^48."""
BURNED: Final = 500


@dataclass(frozen=True, slots=True)
class Terms:
    """What both sides of a deal agree on, as its arguments; amounts in the smallest unit, times in blocks."""

    owner: bytes
    peer: bytes
    escrow: int
    """What the owner pays in: all that the peer can earn."""
    collateral: int
    rate: int
    """A period costs bytes * rate // unit."""
    unit: int
    funding: int
    period: int
    periods: int
    samples: int
    window: int
    contest: int
    burned: int
    """Thousandths of a slashed collateral."""


class Revision(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The state of a deal that both sides agree on."""

    number: Annotated[int, Meta(ge=1, le=SEQUENCE_MAX)]
    root: Bytes32
    """Of the tree over the shards that the peer keeps."""
    bytes: Annotated[int, Meta(ge=0, le=BYTES_MAX)]
    earned: Annotated[int, Meta(ge=0, le=BOUND)]
    """What the peer has earned since the deal began, paid or not."""
    settled: Annotated[int, Meta(ge=0, le=1 << 16)]
    """`earned` covers the periods before this one."""
    final: bool
    """The deal ends with it."""


class SignedRevision(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A revision and its signatures; b"" for one that is still missing."""

    revision: Revision
    owner: Annotated[bytes, Meta(max_length=64)]
    peer: Annotated[bytes, Meta(max_length=64)]


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a deal stands on the chain."""

    period: int
    """The round that it is in, from 0."""
    part: str
    """Part of the document that it waits in; "" before the deposits, in the course of a period, and after the last."""
    paid: int
    missed: bool
    """The peer missed the last challenge."""
    revision: Revision | None
    """The newest one on the chain."""
    escrow: int
    """What is left of it."""
    collateral: int


def plan_terms(
    owner: bytes,
    peer: bytes,
    *,
    price: int,
    interval: int,
    most: int,
    period: int,
    periods: int,
    collateral: int,
    samples: int = SAMPLES,
    funding: int = FUNDING,
    window: int = WINDOW,
    contest: int = CONTEST,
    burned: int = BURNED,
) -> Terms:
    """Return the terms of a deal over `most` bytes at `price`, in the smallest unit for a GiB and 30 days.

    `interval` is the network's, in seconds for a block; all other times are in blocks. Raises InvalidArguments.
    """
    if not (0 <= most <= BYTES_MAX and price >= 0 and interval >= 1):
        raise InvalidArguments(f"a deal is over 0 to {BYTES_MAX} bytes at a price that is not below 0")
    rate = price * period * interval
    escrow = periods * (most * rate // UNIT)
    terms = Terms(
        owner, peer, escrow, collateral, rate, UNIT, funding, period, periods, samples, window, contest, burned
    )
    check_terms(terms)
    return terms


def check_terms(terms: Terms) -> None:
    """Check that terms make a deal in which no round runs into the next. Raises InvalidArguments."""
    check_arguments(standard(NAME), arguments_of(terms))
    if terms.escrow + terms.collateral >= BOUND:
        raise InvalidArguments(f"escrow and collateral together are below {BOUND}")
    needed = 4 * terms.window + terms.contest
    if terms.period <= needed:
        raise InvalidArguments(
            f"a period is longer than four windows and a contest, {needed} blocks, not {terms.period}"
        )


def arguments_of(terms: Terms) -> Arguments:
    """Return the arguments that the standard document is deployed with."""
    return (
        terms.owner,
        terms.peer,
        terms.escrow,
        terms.collateral,
        terms.rate,
        terms.unit,
        terms.funding,
        terms.period,
        terms.periods,
        terms.samples,
        terms.window,
        terms.contest,
        terms.burned,
    )


def terms_of(instance: Instance) -> Terms:
    """Return the terms of a deal on the chain. Raises InvalidArguments if the contract is none."""
    program = standard(NAME)
    if instance.document != program.id:
        raise InvalidArguments("the contract is not a storage deal")
    check_arguments(program, instance.arguments)
    return Terms(*instance.arguments)  # type: ignore[arg-type]


def standing_of(instance: Instance) -> Standing:
    """Return where a deal on the chain stands. Raises InvalidArguments if the contract is none."""
    program = standard(NAME)
    if instance.document != program.id:
        raise InvalidArguments("the contract is not a storage deal")
    running = instance.running
    variables = dict(running.variables)
    found = next((one for one in running.decisions if one.choice == CHOICE), None)
    revision = None
    if found is not None:
        size, earned, settled, final = found.values
        revision = Revision(found.sequence, found.datum, size, earned, settled, bool(final))
    return Standing(
        running.loops[-1].round if running.loops else 0,
        part_of(program, running.node),
        variables.get("paid", 0),
        bool(variables.get("missed", 0)),
        revision,
        running.balances[0],
        running.balances[1],
    )


def period_price(terms: Terms, size: int) -> int:
    """Return what the peer earns for keeping `size` bytes for one period."""
    return size * terms.rate // terms.unit


def period_end(terms: Terms, start: int, period: int) -> int:
    """Return the height at which a period (from 0) ends, in a deal deployed in the block at `start`."""
    return start + terms.funding + terms.period * (period + 1)


def period_at(terms: Terms, start: int, height: int) -> int:
    """Return the period (from 0) that a height is in: below 0 before the first, `periods` or more after the last."""
    return (height - start - terms.funding) // terms.period


# ---- revisions ---------------------------------------------------------------------------------------------------
def encode_revision(signed: SignedRevision) -> bytes:
    """Return the canonical bytes of a signed revision."""
    return codec.encode(signed)


def decode_revision(data: bytes) -> SignedRevision:
    """Return the signed revision in `data`, signatures not checked. Raises MalformedError."""
    if len(data) > REVISION_MAX:
        raise MalformedError(f"a revision has at most {REVISION_MAX} bytes, not {len(data)}")
    return codec.decode(data, SignedRevision)


def sign_revision(seed: bytes, network: bytes, contract: bytes, revision: Revision) -> bytes:
    """Return one side's signature (64 bytes) of a revision of the deal with this contract id, by its Ed25519 seed."""
    return sign_agreement(seed, network, contract, CHOICE, revision.number, _values(revision), revision.root)


def check_revision(public: bytes, network: bytes, contract: bytes, revision: Revision, signature: bytes) -> None:
    """Check one side's signature of a revision. Raises BadAgreement."""
    message = agreement_message(network, contract, CHOICE, revision.number, _values(revision), revision.root)
    check_agreement(public, message, signature)


def check_signed(terms: Terms, network: bytes, contract: bytes, signed: SignedRevision) -> None:
    """Check both signatures of a revision. Raises BadAgreement."""
    check_revision(terms.owner, network, contract, signed.revision, signed.owner)
    check_revision(terms.peer, network, contract, signed.revision, signed.peer)


def check_follows(terms: Terms, before: Revision | None, after: Revision) -> None:
    """Check that a revision may follow another, None for the first. Whoever signs one checks this first: the contract takes any
    newer one that both signed. Raises OldAgreement, OutOfBounds, or BadAgreement for one after the final one."""
    if before is not None and before.final:
        raise BadAgreement(f"the deal ends with revision {before.number}: nothing follows it")
    if before is not None and after.number <= before.number:
        raise OldAgreement(f"revision {after.number} does not follow revision {before.number}")
    earned, settled = (0, 0) if before is None else (before.earned, before.settled)
    if not earned <= after.earned <= terms.escrow:
        raise OutOfBounds(f"the peer has earned {earned} to {terms.escrow} now, not {after.earned}")
    if not settled <= after.settled <= terms.periods:
        raise OutOfBounds(f"periods are settled up to {settled} to {terms.periods} now, not {after.settled}")


def _values(revision: Revision) -> tuple[int, ...]:
    return revision.bytes, revision.earned, revision.settled, int(revision.final)


# ---- what the sides send: the acts of one input --------------------------------------------------------------------
def fund_owner(terms: Terms) -> tuple[Act, ...]:
    """Return the owner's deposit: first of all, before `funding` is over."""
    return (Depositing("owner", "owner", terms.escrow),)


def fund_peer(terms: Terms) -> tuple[Act, ...]:
    """Return the peer's deposit: after the owner's, before `funding` is over. The deal begins with it."""
    return (Depositing("peer", "peer", terms.collateral),)


def bring(signed: SignedRevision) -> tuple[Act, ...]:
    """Return what brings a revision: to end a deal (a final one, at any time), to contest what was proven by an older one,
    to be paid after the last period."""
    revision = signed.revision
    signatures = (signed.owner, signed.peer)
    return (Choosing(CHOICE, revision.number, _values(revision), revision.root, signatures),)


def challenge(newest: SignedRevision | None = None) -> tuple[Act, ...]:
    """Return what makes the peer prove the period that has ended, by the newest revision: None if the chain has it. There is
    nothing to challenge before the first revision, nor in one over 0 bytes."""
    ask = Choosing("challenge", 0, (1,), b"", ())
    return (ask,) if newest is None else (*bring(newest), ask)


def prove(proof: bytes, newest: SignedRevision | None = None) -> tuple[Act, ...]:
    """Return the proof of the period that has ended, by the newest revision: None if the chain has it."""
    shown = Proving(CHOICE, proof)
    return (shown,) if newest is None else (*bring(newest), shown)


def catch_up() -> tuple[Act, ...]:
    """Return what anybody may send once a timeout has passed: it is how a deal that is over pays everybody out."""
    return ()
