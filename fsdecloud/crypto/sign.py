"""Ed25519 signatures with a domain, under one strict rule of what is valid.

Pure. RFC 8032, one verifier (OpenSSL: cofactorless, S < L, R compared byte by byte with its canonical encoding), and on
top of it no public key that is of small order or not canonically encoded: such keys verify messages that nobody signed,
and implementations disagree about them (Chalkias et al., "Taming the many EdDSAs", 2020).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fsdecloud.errors import SealError

SEED_SIZE: Final = 32
KEY_SIZE: Final = 32
SIGNATURE_SIZE: Final = 64

_P: Final = 2**255 - 19
_Y_ORDER_8: Final = 2707385501144840649318225287225658788936804267575313519463743609750303402022
_SMALL_ORDER_Y: Final = frozenset({0, 1, _P - 1, _Y_ORDER_8, _P - _Y_ORDER_8})
"""y of the eight points whose order divides 8; the sign of x does not matter."""


def public_key(seed: bytes) -> bytes:
    """Return the raw public key (32 bytes) of a 32-byte seed. Raises ValueError on another length."""
    return _signer(bytes(seed))[1]


def sign(seed: bytes, domain: bytes, message: bytes) -> bytes:
    """Return the 64-byte signature of `message` under `domain`, which is 1 to 255 bytes and names the use.

    What is signed is one byte with the domain's length, the domain, the message: a signature made for one use is never
    valid for another. Raises ValueError for a bad seed or domain.
    """
    return _signer(bytes(seed))[0].sign(_framed(domain, message))


def verify(public: bytes, domain: bytes, message: bytes, signature: bytes) -> None:
    """Return if `signature` is that of `message` under `domain` by `public`. Raises SealError otherwise."""
    if len(signature) != SIGNATURE_SIZE:
        raise SealError(f"a signature has {SIGNATURE_SIZE} bytes, not {len(signature)}")
    key = _verifier(bytes(public))
    try:
        key.verify(signature, _framed(domain, message))
    except InvalidSignature as exc:
        raise SealError(
            f"the signature is not by {public.hex()} over this {domain.decode('ascii', 'replace')}"
        ) from exc


def check_public_key(public: bytes) -> None:
    """Return if `public` may be used as a key. Raises SealError if its length, encoding or order is wrong."""
    _verifier(bytes(public))


def _framed(domain: bytes, message: bytes) -> bytes:
    if not 1 <= len(domain) <= 255:
        raise ValueError(f"a signature domain has 1 to 255 bytes, not {len(domain)}")
    return b"".join((bytes((len(domain),)), domain, message))


@lru_cache(maxsize=256)
def _signer(seed: bytes) -> tuple[Ed25519PrivateKey, bytes]:
    if len(seed) != SEED_SIZE:
        raise ValueError(f"a seed has {SEED_SIZE} bytes, not {len(seed)}")
    private = Ed25519PrivateKey.from_private_bytes(seed)
    return private, private.public_key().public_bytes_raw()


@lru_cache(maxsize=4096)
def _verifier(public: bytes) -> Ed25519PublicKey:
    if len(public) != KEY_SIZE:
        raise SealError(f"a public key has {KEY_SIZE} bytes, not {len(public)}")
    y = int.from_bytes(public, "little") & ((1 << 255) - 1)
    if y >= _P:
        raise SealError(f"public key {public.hex()} is not canonically encoded")
    if y in _SMALL_ORDER_Y:
        raise SealError(f"public key {public.hex()} is of small order")
    return Ed25519PublicKey.from_public_bytes(public)
