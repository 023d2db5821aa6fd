"""What a ledger daemon and the miners that work for it say to each other (net.websocket, subprotocol SUBPROTOCOL): one
message per websocket message.

Pure. The miner begins with `Hello`. Then the daemon sends a `Job` whenever there is another one, each of which ends the one
before, or `Rest` when there is nothing to do; the miner sends a `Share` for each hash it finds that is at most the job's
share target, and the daemon an `Answer` to each. A share that is at most the header's own target is a block. A daemon that
does not want a miner says why with `Refused`.

The token, 32 bytes that both know, never crosses the wire: the miner proves it with a hash over the certificate of the
daemon that it is connected to, which nobody in between can pass on. Not here: what is done about any of it
(`ledgerd.workserver`, `ledgerd.remote`).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Any, Final, TypeAlias, cast

import msgspec
from blake3 import blake3
from msgspec import Meta

from fsdecloud import codec
from fsdecloud.errors import InvalidBlock, MalformedError, RemoteProtocolError
from fsdecloud.ledger.blocks import HEADER_MAX, NONCE_SIZE, Header, decode_header

SUBPROTOCOL: Final = "decloud-work/1"
VERSION: Final = 1
MESSAGE_MAX: Final = 1024
"""Bytes of any message: a header and some numbers."""

NAME_MAX: Final = 64
REASON_MAX: Final = 200
TOKEN_SIZE: Final = 32
SHARE_WORK_MIN: Final = 1 << 12
"""Hashes that a share stands for at least, unless the block itself is easier: a miner drowns in what is easier to find."""

_SHARE_MAX: Final = ((1 << 256) // SHARE_WORK_MIN - 1).to_bytes(32)

_PROOF_CONTEXT: Final = b"fsdecloud 2026 v1 work token"

Bytes32 = Annotated[bytes, Meta(min_length=32, max_length=32)]
Nonce = Annotated[bytes, Meta(min_length=NONCE_SIZE, max_length=NONCE_SIZE)]
JobNumber = Annotated[int, Meta(ge=0, le=(1 << 32) - 1)]
NonceNumber = Annotated[int, Meta(ge=0)]
"""A nonce as a number; 64 bits is all that MessagePack has."""


class Verdict(IntEnum):
    """What became of a share."""

    SHARE = 0
    """It counts."""
    BLOCK = 1
    """It solved the block, which is in the chain now."""
    STALE = 2
    """Its job was over."""
    WRONG = 3
    """Its hash is above the share target, it was sent before, or it is outside the job's range."""


class Hello(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=1):
    """Who wants to work."""

    version: int
    proof: Bytes32
    """`prove_token`."""
    name: Annotated[str, Meta(max_length=NAME_MAX)]
    """How the daemon's people know the machine."""


class Job(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=2):
    """Search this from now on."""

    number: JobNumber
    prefix: Annotated[bytes, Meta(min_length=1, max_length=HEADER_MAX - NONCE_SIZE)]
    """The header's bytes without its nonce; its target is in it."""
    share: Bytes32
    """Report every hash that, read as a big-endian number, is at most this."""
    first: NonceNumber
    last: NonceNumber
    """The nonces to try, both included."""


class Rest(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=3):
    """There is nothing to do."""


class Share(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=4):
    """A nonce that was found."""

    number: JobNumber
    nonce: Nonce


class Answer(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=5):
    """What became of a share."""

    number: JobNumber
    nonce: Nonce
    verdict: Verdict


class Refused(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=6):
    """The daemon does not want this miner; the connection ends."""

    reason: Annotated[str, Meta(max_length=REASON_MAX)]


FromMiner: TypeAlias = Hello | Share
FromDaemon: TypeAlias = Job | Rest | Answer | Refused


def prove_token(token: bytes, certificate_hash: bytes) -> bytes:
    """Return the proof that a miner has `token` (32 bytes), for the daemon with this certificate alone: 32 bytes."""
    return blake3(_PROOF_CONTEXT + certificate_hash, key=token).digest()


def encode_message(message: FromMiner | FromDaemon) -> bytes:
    """Return the bytes of one websocket message."""
    return codec.encode(message)


def decode_from_miner(data: bytes) -> FromMiner:
    """Return a miner's message. Raises RemoteProtocolError."""
    return cast("FromMiner", _decode(data, FromMiner))


def decode_from_daemon(data: bytes) -> FromDaemon:
    """Return a daemon's message. Raises RemoteProtocolError."""
    return cast("FromDaemon", _decode(data, FromDaemon))


def _decode(data: bytes, kinds: object) -> object:
    if len(data) > MESSAGE_MAX:
        raise RemoteProtocolError(f"a work message has at most {MESSAGE_MAX} bytes, not {len(data)}")
    try:
        return codec.decode_loose(data, cast("type[Any]", kinds))
    except MalformedError as exc:
        raise RemoteProtocolError(f"not a work message: {exc}") from exc


def read_job(job: Job) -> Header:
    """Return the header that a job is about, its nonce zeros. Raises RemoteProtocolError for a job that cannot be meant."""
    try:
        header = decode_header(job.prefix + bytes(NONCE_SIZE))
    except InvalidBlock as exc:
        raise RemoteProtocolError(f"a job for something that is no header: {exc}") from exc
    if job.share < header.target:
        raise RemoteProtocolError("a job whose shares are harder to find than its block")
    if job.share > max(header.target, _SHARE_MAX):
        raise RemoteProtocolError(f"a job whose shares stand for less than {SHARE_WORK_MIN} hashes")
    if job.first > job.last:
        raise RemoteProtocolError("a job without a nonce to try")
    return header
