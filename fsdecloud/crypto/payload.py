"""The anchor's encrypted payload: always one size, so that its length says nothing.

Pure.

    payload   nonce (12 bytes) | AES-256-GCM ciphertext | tag (16 bytes)
    plaintext length (u16, big-endian) | data | zeros

The nonce is synthetic: the first 12 bytes of a keyed hash over the caller's random nonce, the associated data and the
plaintext. A machine that is restored from a snapshot and draws the same random bytes again thus still never encrypts
two messages under one nonce (fault 133). Not here: what the payload says (`fs`), where it stands (`ledger`).
"""

from __future__ import annotations

from typing import Final

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fsdecloud.crypto.keys import CONTEXT_PREFIX, derive
from fsdecloud.errors import MalformedError, SealError
from fsdecloud.limits import ANCHOR_PAYLOAD

NONCE_SIZE: Final = 12
OVERHEAD: Final = NONCE_SIZE + 16 + 2
"""Bytes of a payload that are not data: nonce, tag, length."""

_LENGTH_SIZE: Final = 2
_ENCRYPT: Final = CONTEXT_PREFIX + "payload encryption"
_NONCE: Final = CONTEXT_PREFIX + "payload nonce"


def seal_payload(
    key: bytes, nonce: bytes, plaintext: bytes, size: int = ANCHOR_PAYLOAD, *, associated: bytes = b""
) -> bytes:
    """Return exactly `size` bytes that only a holder of `key` (32 bytes) can read, padded with zeros inside.

    `nonce` is 12 fresh random bytes. `associated` is what the payload belongs to: it opens only together with the same.
    Raises ValueError when the plaintext does not fit, or for a key or nonce of the wrong length.
    """
    if len(nonce) != NONCE_SIZE:
        raise ValueError(f"a nonce has {NONCE_SIZE} bytes, not {len(nonce)}")
    room = size - OVERHEAD
    if len(plaintext) > min(room, 0xFFFF):
        raise ValueError(f"a payload of {size} bytes holds at most {room} bytes, not {len(plaintext)}")
    padded = len(plaintext).to_bytes(_LENGTH_SIZE, "big") + plaintext.ljust(room, b"\0")
    hashed = b"".join((nonce, len(associated).to_bytes(8, "big"), associated, padded))
    synthetic = blake3(hashed, key=derive(key, _NONCE)).digest(NONCE_SIZE)
    return synthetic + AESGCM(derive(key, _ENCRYPT)).encrypt(synthetic, padded, associated)


def open_payload(key: bytes, data: bytes, *, associated: bytes = b"") -> bytes:
    """Return the plaintext of a payload of any size.

    Raises SealError when key, associated data and payload do not belong together, MalformedError when it is too short
    or wrongly padded.
    """
    if len(data) < OVERHEAD:
        raise MalformedError(f"a payload has at least {OVERHEAD} bytes, not {len(data)}")
    try:
        padded = AESGCM(derive(key, _ENCRYPT)).decrypt(data[:NONCE_SIZE], data[NONCE_SIZE:], associated)
    except InvalidTag as exc:
        raise SealError("the payload is damaged or under another key") from exc
    end = _LENGTH_SIZE + int.from_bytes(padded[:_LENGTH_SIZE], "big")
    if end > len(padded) or padded[end:].strip(b"\0"):
        raise MalformedError("the payload's padding is wrong")
    return padded[_LENGTH_SIZE:end]
