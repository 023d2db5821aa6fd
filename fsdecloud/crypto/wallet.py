"""The keys of a volume's wallet, and how a key that is paid to is written as text.

Pure. A wallet's keys are numbered and follow from the root secret alone, so the 24 words bring all of them back, with what they
have in the ledger: number 0 is the wallet's own, each deal has a later one, so that no one sees from the ledger alone that two
deals have one owner. They come from a secret of their own, which the agent never has: what talks to the network cannot spend.

An *account address* is a key as text: Bech32m under "decloud", a version (0), the 32 bytes of the key. It is the same in every
network, as keys are. Not here: what a wallet does with its keys (`ledger.wallet`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from fsdecloud.crypto import bech32, sign
from fsdecloud.crypto.keys import CONTEXT_PREFIX, derive
from fsdecloud.errors import MalformedError, SealError, UsageError

PREFIX: Final = "decloud"
VERSION: Final = 0

OWN: Final = 0
"""Number of the key that a wallet receives and pays with; deals have those after it."""

GAP_LIMIT: Final = 20
"""A search for keys ends after so many successive ones that the ledger does not know, as BIP 44 has it. So a deal's key is the
first unused one, and at most so many are given out before one of them is in the ledger."""

INDEX_MAX: Final = (1 << 31) - 1

_SHOWN_MAX: Final = 100
"""Characters of a wrong address that an error shows."""


def wallet_seed(wallet_secret: bytes, index: int) -> bytes:
    """Return the Ed25519 seed of the wallet's key number `index` (0 to INDEX_MAX; 0 is its own, each deal has another).

    Raises ValueError for another number, or unless the secret (`keys.VolumeKeys.wallet_secret`) has 32 bytes.
    """
    if not 0 <= index <= INDEX_MAX:
        raise ValueError(f"a wallet's keys have numbers from 0 to {INDEX_MAX}, not {index}")
    return derive(wallet_secret, CONTEXT_PREFIX + "wallet signing", index.to_bytes(4))


def wallet_key(wallet_secret: bytes, index: int) -> bytes:
    """Return the public key, 32 bytes, of the wallet's key number `index`; raises as `wallet_seed`."""
    return sign.public_key(wallet_seed(wallet_secret, index))


def used_count(is_used: Callable[[int, int], list[bool]], gap_limit: int = GAP_LIMIT) -> int:
    """Return how many keys to count a wallet's: all up to the last used one, or 1 when none is. The result is the number of the
    first unused key after them, which is the next deal's.

    `is_used(first, count)` tells of `count` successive numbers whether the ledger knows the key. It is asked until `gap_limit`
    in a row are unknown.
    """
    count = 1
    asked = 0
    while asked < count + gap_limit and asked <= INDEX_MAX:
        first, number = asked, count + gap_limit - asked
        for place, known in enumerate(is_used(first, number), first):
            if known:
                count = max(count, place + 1)
        asked = first + number
    return count


def address_of(key: bytes) -> str:
    """Return the account address of a public key (32 bytes), 67 characters. Raises ValueError for another length."""
    if len(key) != sign.KEY_SIZE:
        raise ValueError(f"a key has {sign.KEY_SIZE} bytes, not {len(key)}")
    return bech32.encode_words(PREFIX, (VERSION, *bech32.to_words(key)))


def key_of(text: str) -> bytes:
    """Return the public key that an account address, or 64 hexadecimal digits, stand for.

    Raises UsageError that says what is wrong: an address that was mistyped is never taken for another one. Hexadecimal digits
    have no checksum; either way a key that nobody can sign with is refused.
    """
    text = text.strip()
    shown = text[:_SHOWN_MAX]
    if re.fullmatch("[0-9a-fA-F]{64}", text, re.ASCII):
        key = bytes.fromhex(text)
    elif re.fullmatch("[0-9a-fA-F]{32,}", text, re.ASCII):
        raise UsageError(f"{shown!r} is no key: that has 64 hexadecimal digits, and this {len(text)}")
    else:
        key = _decode_address(text, shown)
    try:
        sign.check_public_key(key)
    except SealError as exc:
        raise UsageError(f"nobody can spend what is paid to {shown!r}: {exc}") from exc
    return key


def _decode_address(text: str, shown: str) -> bytes:
    try:
        prefix, words = bech32.decode_words(text)
        if prefix != PREFIX:
            raise MalformedError(f"it begins with {prefix!r} and not with {PREFIX!r}: it is of something else")
        if not words or words[0] != VERSION:
            raise MalformedError("it is of a version that is not known here: a later release may know it")
        key = bech32.from_words(words[1:])
        if len(key) != sign.KEY_SIZE:
            raise MalformedError(f"it holds {len(key)} bytes, and a key has {sign.KEY_SIZE}")
    except MalformedError as exc:
        raise UsageError(
            f"{shown!r} is no address: {exc}; an address begins with {PREFIX}1 (or is a key of 64 hexadecimal digits): copy it "
            "again from whoever gave it"
        ) from exc
    return key
