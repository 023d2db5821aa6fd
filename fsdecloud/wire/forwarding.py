"""Requests that travel through other peers: what is signed, so that nobody on the way can forge or change anything.

    client --Forward--> relay --Forward--> ... --Forward--> target
    client <-Forwarded- relay <-Forwarded- ... <-Forwarded- target

The client names the peer that it means by its id alone; a relay finds the address in the ledger's registry or in what peers
announced, and so connects to nobody but registered peers. A Put or Delete in it, and an Info that asks about admission, is
signed by the deal's key for this target, nonce and time; the target signs each answer for the request's nonce. So the words
of the target are authentic also where they are a "no", a relay can only lose them, and a relay that changes something is
found out by whoever it sends that to.

Only the target answers, even where a relay has the same shard or has passed it on before: an audit is a read that nobody can
tell from another one, and what is near would vouch for what is gone. Who wants a relay's own copy asks for that.

What this shows: a relay sees who asks which peer for which shard id, and the deal's key, which is another one for each peer
and volume; so it learns of a volume what passes through it. The target sees the relay instead of the client. Nobody sees
contents. Hiding the target from the relay takes onion cells, which this is not.

Pure. Not here: the way (`peerd.forwarding`), when a client takes it (`net.relay`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
from blake3 import blake3

from fsdecloud import codec
from fsdecloud.crypto import sign
from fsdecloud.errors import MalformedError, SealError
from fsdecloud.types import PeerId
from fsdecloud.wire import peer as wire

REQUEST_DOMAIN: Final = b"fsdecloud forward v1"
ANSWER_DOMAIN: Final = b"fsdecloud forwarded v1"

LIFE: Final = 300
"""Seconds for which a client's signature holds: longer than any request takes, with some for a clock that is off."""

LIFE_MAX: Final = 900
"""A target takes none that holds for longer: so long it has to remember nonces."""


class RequestTerms(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a deal's key signs."""

    network: wire.Bytes32
    target: wire.Bytes32
    nonce: wire.Bytes32
    deal: wire.Bytes32
    owner: bytes
    expires: int
    body: wire.Bytes32
    """BLAKE3 of the body."""


class AnswerTerms(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What the target signs. `request` and `answer` are the BLAKE3 of both bodies."""

    network: wire.Bytes32
    nonce: wire.Bytes32
    target: wire.Bytes32
    request: wire.Bytes32
    answer: wire.Bytes32


def make_forward(
    request: wire.Direct,
    *,
    network: bytes,
    target: PeerId,
    nonce: bytes,
    hops: int,
    patience: int,
    deal_seed: bytes | None,
    owner: bytes,
    now: int,
) -> Callable[[int], wire.Forward]:
    """Return a function that makes the Forward of a request (numbered 0) with the number it is given.

    `deal_seed` is that of the deal with the target, None to read only; `now` in seconds since 1970.
    """
    body = codec.encode(request)
    deal, expires, signature = b"", 0, b""
    if deal_seed is None:
        owner = b""
    else:
        deal, expires = sign.public_key(deal_seed), now + LIFE
        terms = RequestTerms(network, target, nonce, deal, owner, expires, blake3(body).digest())
        signature = sign.sign(deal_seed, REQUEST_DOMAIN, codec.encode(terms))
    view = memoryview(body)
    return lambda number: wire.Forward(number, target, nonce, hops, patience, deal, owner, expires, signature, view)


def check_forward(forward: wire.Forward, *, network: bytes, now: int) -> None:
    """Check the deal of a Forward that has one, at its target. Raises SealError, saying what does not hold."""
    if not forward.deal:
        if forward.signature or forward.owner or forward.expires:
            raise SealError("a forward without a deal has no signature, owner or time")
        return
    if not now < forward.expires <= now + LIFE_MAX:
        raise SealError(f"the forward holds until {forward.expires}, and it is {now}")
    terms = RequestTerms(
        network,
        forward.target,
        forward.nonce,
        forward.deal,
        forward.owner,
        forward.expires,
        blake3(forward.body).digest(),
    )
    sign.verify(forward.deal, REQUEST_DOMAIN, codec.encode(terms), forward.signature)
    if forward.owner:
        sign.check_public_key(forward.owner)


def open_forward(forward: wire.Forward) -> wire.Direct:
    """Return the request in a Forward. Raises MalformedError."""
    request: wire.Direct = codec.decode_loose(forward.body, wire.Direct)  # type: ignore[arg-type]
    if request.request != 0:
        raise MalformedError("a forwarded request has the number 0")
    if isinstance(request, wire.Put) and wire.put_size(request) > wire.PUT_BYTES_MAX:
        raise MalformedError(f"a Put of more than {wire.PUT_BYTES_MAX} bytes")
    return request


def _answer_terms(forward: wire.Forward, network: bytes, body: bytes | memoryview) -> bytes:
    return codec.encode(
        AnswerTerms(network, forward.nonce, forward.target, blake3(forward.body).digest(), blake3(body).digest())
    )


def make_answer(forward: wire.Forward, answer: wire.DirectAnswer, *, network: bytes, seed: bytes) -> wire.Forwarded:
    """Return the signed answer to a Forward, of the peer with this Ed25519 seed."""
    body = codec.encode(answer)
    signature = sign.sign(seed, ANSWER_DOMAIN, _answer_terms(forward, network, body))
    return wire.Forwarded(forward.request, signature, memoryview(body))


def check_answer(forward: wire.Forward, answer: wire.Forwarded, *, network: bytes) -> wire.DirectAnswer:
    """Return what the target answered. Raises SealError when it is not its word, MalformedError when that makes no sense."""
    sign.verify(forward.target, ANSWER_DOMAIN, _answer_terms(forward, network, answer.body), answer.signature)
    found: wire.DirectAnswer = codec.decode_loose(answer.body, wire.DirectAnswer)  # type: ignore[arg-type]
    request = open_forward(forward)
    if found.request != 0 or not isinstance(found, (wire.ANSWERS[type(request)], wire.Error)):
        raise MalformedError("a forwarded answer to something else")
    if wrong := wire.wrong_count(found, wire.answer_count(request)):
        raise MalformedError(wrong)
    return found
