"""The bandwidth channel, for the two sides of one: its terms, its orders, and what each side sends.

Pure. The document is `documents/bandwidth_channel.contract`. The client's newest order says all that it owes since the
channel began, signed by it alone; the peer brings it whenever it likes. Neither side risks more than one step: the client
never owes for more than it signed, the peer never serves more than one step ahead of the newest order.
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
    agreement_message,
    check_agreement,
    sign_agreement,
)
from fsdecloud.contracts.language import BOUND
from fsdecloud.contracts.library import standard
from fsdecloud.contracts.machine import Instance
from fsdecloud.contracts.reasons import InvalidArguments, OldAgreement, OutOfBounds
from fsdecloud.errors import MalformedError

NAME: Final = "bandwidth_channel"
CHOICE: Final = "order"
ORDER_MAX: Final = 128
"""Bytes of an encoded order, at most."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What both sides of a channel agree on, as its arguments; amounts in the smallest unit, times in blocks."""

    client: bytes
    peer: bytes
    amount: int
    """What the client pays in: all that the peer can earn."""
    funding: int = 120
    lifetime: int = 43_200
    window: int = 120
    redemptions: int = 64


class Order(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The client's word that it owes `total` since the channel began. Of two, the one with the higher number counts."""

    number: Annotated[int, Meta(ge=1, le=SEQUENCE_MAX)]
    total: Annotated[int, Meta(ge=1, le=BOUND)]
    signature: Annotated[bytes, Meta(max_length=64)]


def arguments_of(terms: Terms) -> Arguments:
    """Return the arguments that the standard document is deployed with. Raises InvalidArguments."""
    arguments: Arguments = (
        terms.client, terms.peer, terms.amount, terms.funding, terms.lifetime, terms.window, terms.redemptions,
    )  # fmt: skip
    check_arguments(standard(NAME), arguments)
    return arguments


def terms_of(instance: Instance) -> Terms:
    """Return the terms of a channel on the chain. Raises InvalidArguments if the contract is none."""
    program = standard(NAME)
    if instance.document != program.id:
        raise InvalidArguments("the contract is not a bandwidth channel")
    check_arguments(program, instance.arguments)
    return Terms(*instance.arguments)  # type: ignore[arg-type]


def sign_order(seed: bytes, network: bytes, contract: bytes, number: int, total: int) -> Order:
    """Return an order signed with the client's Ed25519 seed. Raises ValueError for a number that no order has."""
    return Order(number, total, sign_agreement(seed, network, contract, CHOICE, number, (total,)))


def check_order(terms: Terms, network: bytes, contract: bytes, before: Order | None, order: Order) -> None:
    """Check that an order is the client's, newer than the one before (None: the first), and covered by what it paid in.

    Raises BadAgreement, OldAgreement or OutOfBounds.
    """
    number, total = (0, 0) if before is None else (before.number, before.total)
    if order.number <= number:
        raise OldAgreement(f"order {order.number} does not follow order {number}")
    if not total < order.total <= terms.amount:
        raise OutOfBounds(f"an order is over {total + 1} to {terms.amount} now, not {order.total}")
    message = agreement_message(network, contract, CHOICE, order.number, (order.total,), b"")
    check_agreement(terms.client, message, order.signature)


def encode_order(order: Order) -> bytes:
    """Return the order's canonical bytes."""
    return codec.encode(order)


def decode_order(data: bytes) -> Order:
    """Return the order in `data`, its signature not checked. Raises MalformedError."""
    if len(data) > ORDER_MAX:
        raise MalformedError(f"an order has at most {ORDER_MAX} bytes, not {len(data)}")
    return codec.decode(data, Order)


# ---- what the sides send: the acts of one input --------------------------------------------------------------------
def fund(terms: Terms) -> tuple[Act, ...]:
    """Return the client's deposit, with which the channel begins."""
    return (Depositing("client", "client", terms.amount),)


def redeem(order: Order) -> tuple[Act, ...]:
    """Return what pays the peer what an order says, less what was paid before."""
    return (Choosing(CHOICE, order.number, (order.total,), b"", (order.signature,)),)


def stop() -> tuple[Act, ...]:
    """Return the client's wish to end the channel: the peer may bring one more order within the window."""
    return (Choosing("stop", 0, (), b"", ()),)


def release() -> tuple[Act, ...]:
    """Return the peer's consent that the channel ends now: what is left is the client's."""
    return (Choosing("release", 0, (), b"", ()),)


def catch_up() -> tuple[Act, ...]:
    """Return what anybody may send once the channel is over: it pays the client what is left."""
    return ()
