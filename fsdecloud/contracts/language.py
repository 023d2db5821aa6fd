"""What a contract document is: its nodes, values and observations, and their one encoding.

Pure. A total language in the manner of Marlowe (Lamela Seijas, Nemish, Smith and Thompson, "Marlowe: implementing and analysing
financial contracts on blockchain", 2020): no recursion, no loop without a bound, every wait with a timeout. Where it differs:

* time is the height of blocks, and parties are parameters of the document, Ed25519 keys that whoever deploys it fills in;
* `repeat` runs a body a bounded number of times and is unrolled as it runs: a thousand periods are no thousandfold document;
* parts are bodies with a name, written once and gone to from several places. A part goes to parts before it only, so the
  document is a graph without a cycle;
* a choice has several integers, may carry 32 bytes beside them, and may be made by several parties together, off chain;
* `prove` waits for a proof of possession.

Structs are MessagePack arrays with a number first (`codec`): one document, one encoding, one id. Not here: which documents make
sense (`check`), what they do (`machine`), how people write them (`text`).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Final, TypeAlias

import msgspec
from blake3 import blake3
from msgspec import Meta

from fsdecloud import codec
from fsdecloud.contracts.reasons import InvalidDocument
from fsdecloud.errors import MalformedError
from fsdecloud.limits import CONTRACT_FIELDS, CONTRACT_MAX, CONTRACT_NAMES, CONTRACT_PARTIES

BOUND: Final = 1 << 62
"""No value is beyond this on either side: what would be is set to it, and warned of. Sums of two fit into 64 bits."""

NAME_MAX: Final = 32

_ID_CONTEXT: Final = "fsdecloud 2026 v1 contract document"

Name = Annotated[str, Meta(min_length=1, max_length=NAME_MAX, pattern=r"\A[a-z][a-z0-9_]*\Z")]
Integer = Annotated[int, Meta(ge=-BOUND, le=BOUND)]
Bytes32 = Annotated[bytes, Meta(min_length=32, max_length=32)]


# ---- values: integers --------------------------------------------------------------------------------------------
class Constant(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=0):
    """An integer."""

    value: Integer


class Number(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=1):
    """A number that was given as an argument."""

    name: Name


class Use(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=2):
    """What the last `let` of a name gave it; 0 before the first."""

    name: Name


class Available(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=3):
    """The money in a party's account within the contract."""

    party: Name


class Chosen(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=4):
    """A field of the last choice of a name; 0 before the first."""

    choice: Name
    field: Name


class Sequence(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=5):
    """The sequence number of the newest agreement of a name; 0 before the first."""

    choice: Name


class Round(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=6):
    """The number of the innermost repeat's round, from 0."""


class Now(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=7):
    """The height at which the contract came here: that of an input, or of the timeout that passed, not of who noticed."""


class Start(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=8):
    """The height of the block in which the contract was deployed."""


class Negate(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=9):
    """Minus a value."""

    value: Value


class Add(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=10):
    """A sum."""

    left: Value
    right: Value


class Subtract(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=11):
    """A difference."""

    left: Value
    right: Value


class Multiply(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=12):
    """A product."""

    left: Value
    right: Value


class Divide(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=13):
    """A quotient, rounded towards zero; 0 if the divisor is 0."""

    left: Value
    right: Value


class Scale(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=14):
    """`value` times `by`, divided by `over`: the product is exact, the quotient rounded towards zero, 0 if `over` is 0."""

    value: Value
    by: Value
    over: Value


class Least(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=15):
    """The smaller of two."""

    left: Value
    right: Value


class Greatest(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=16):
    """The greater of two."""

    left: Value
    right: Value


class Either(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=17):
    """One of two, by a condition."""

    condition: Observation
    then: Value
    otherwise: Value


# ---- observations: true or false ---------------------------------------------------------------------------------
class Truth(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=0):
    """True or false."""

    value: bool


class Not(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=1):
    """The opposite."""

    condition: Observation


class Both(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=2):
    """And."""

    left: Observation
    right: Observation


class OneOf(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=3):
    """Or."""

    left: Observation
    right: Observation


class Less(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=4):
    """The left one is less."""

    left: Value
    right: Value


class AtMost(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=5):
    """The left one is not greater."""

    left: Value
    right: Value


class Equal(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=6):
    """They are the same."""

    left: Value
    right: Value


class Made(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=7):
    """A choice of this name was made."""

    choice: Name


# ---- actions: what a contract waits for --------------------------------------------------------------------------
class Deposit(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=0):
    """A party pays an amount into an account within the contract, its own or another's. Below 0 there is no such case now."""

    by: Name
    into: Name
    amount: Value


class Field(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One integer of a choice, and what it may be when it is made."""

    name: Name
    least: Value
    most: Value


class Choice(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=1):
    """Parties choose integers, and 32 bytes if it has a datum: one by its own input, or all by their signatures."""

    name: Name
    by: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=CONTRACT_PARTIES)]
    via: Annotated[str, Meta(max_length=NAME_MAX)]
    """The only party whose input may bring it; "" for anybody's."""
    fields: Annotated[tuple[Field, ...], Meta(max_length=CONTRACT_FIELDS)]
    datum: bool


class Notify(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=2):
    """Anybody says that something holds."""

    condition: Observation


class Prove(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=3):
    """Somebody proves that what a root stands for is held, to a challenge drawn from the blocks from `height` on."""

    root: Name
    """A choice with a datum, or a datum that was given as an argument."""
    height: Value
    samples: Value


class Case(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An action, and how the contract goes on after it."""

    action: Action
    then: Contract


# ---- contracts ---------------------------------------------------------------------------------------------------
class Payee(IntEnum):
    """Where paid money goes."""

    PARTY = 0
    """Out of the contract, to the party's key."""
    ACCOUNT = 1
    """Into a party's account within the contract."""
    NOBODY = 2
    """It is burned."""


class Close(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=0):
    """Pay each account's money to its party, and end."""


class Pay(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=1):
    """Pay an amount out of an account, as much as there is; nothing if it is not above 0."""

    source: Name
    kind: Payee
    to: Annotated[str, Meta(max_length=NAME_MAX)]
    """A party; "" for nobody."""
    amount: Value
    storage: bool
    """It pays for storage that was proven, or that the one who pays for it agrees was kept."""
    then: Contract


class If(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=2):
    """Go on in one of two ways."""

    condition: Observation
    then: Contract
    otherwise: Contract


class Let(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=3):
    """Remember what a value is now."""

    name: Name
    value: Value
    then: Contract


class Assert(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=4):
    """Warn unless something holds."""

    condition: Observation
    then: Contract


class When(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=5):
    """Wait for the first action that fits, until the block of a height: from there on the contract goes on without."""

    cases: tuple[Case, ...]
    timeout: Value
    then: Contract


class Repeat(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=6):
    """Run the body so many times, or until it leaves, then go on."""

    rounds: Value
    body: Contract
    then: Contract


class Next(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=7):
    """End the round of the innermost repeat."""


class Leave(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=8):
    """Go on behind the innermost repeat."""


class Go(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=9):
    """Go on with a part."""

    part: Name


Value: TypeAlias = (
    Constant | Number | Use | Available | Chosen | Sequence | Round | Now | Start
    | Negate | Add | Subtract | Multiply | Divide | Scale | Least | Greatest | Either
)  # fmt: skip
Observation: TypeAlias = Truth | Not | Both | OneOf | Less | AtMost | Equal | Made
Action: TypeAlias = Deposit | Choice | Notify | Prove
Contract: TypeAlias = Close | Pay | If | Let | Assert | When | Repeat | Next | Leave | Go


# ---- documents ---------------------------------------------------------------------------------------------------
class PartyParameter(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=0):
    """A party: its public key."""

    name: Name


class NumberParameter(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=1):
    """A number, and what it may be."""

    name: Name
    least: Integer
    most: Integer


class DatumParameter(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=2):
    """32 bytes."""

    name: Name


Parameter: TypeAlias = PartyParameter | NumberParameter | DatumParameter


class Part(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A body with a name."""

    name: Name
    body: Contract


class Document(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A contract with the places for what differs from one use to the next."""

    version: Annotated[int, Meta(ge=1, le=1)]
    name: Name
    parameters: Annotated[tuple[Parameter, ...], Meta(max_length=CONTRACT_NAMES)]
    parts: Annotated[tuple[Part, ...], Meta(max_length=CONTRACT_NAMES)]
    """Each goes to those before it only."""
    body: Contract


def encode_document(document: Document) -> bytes:
    """Return the document's canonical bytes."""
    return codec.encode(document)


def decode_document(data: bytes) -> Document:
    """Return the document in `data`, nothing but its form checked. Raises InvalidDocument."""
    if len(data) > CONTRACT_MAX:
        raise InvalidDocument(f"a contract document has at most {CONTRACT_MAX} bytes, not {len(data)}")
    try:
        return codec.decode(data, Document)
    except (MalformedError, RecursionError) as exc:
        raise InvalidDocument(str(exc)) from exc


def document_id(data: bytes) -> bytes:
    """Return the id of an encoded document, 32 bytes: by it the standard ones are deployed."""
    return blake3(data, derive_key_context=_ID_CONTEXT).digest()
