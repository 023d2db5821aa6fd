"""Bech32m: bytes as text that people copy, with a checksum that catches what they mistype (BIP 350).

Pure. A text is a lower-case human-readable part, "1", the data in characters of five bits each, and six characters of checksum:
up to four wrong characters are always found, more with all but one chance in 2^30. Not here: what the data means (`wallet`).
Source: bitcoin/bips, bip-0173 and bip-0350.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from fsdecloud.errors import MalformedError

TEXT_MAX: Final = 90
"""Characters of a text: the checksum's promise holds up to there."""

_CHARACTERS: Final = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_CHECKSUM: Final = 6
_CONSTANT: Final = 0x2BC830A3
"""What the checksum comes to: that of Bech32 was 1, and let a final q be inserted or dropped before a final p."""

_GENERATOR: Final = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)


def encode_words(prefix: str, words: Sequence[int]) -> str:
    """Return the text of `words` (0 to 31 each) under a human-readable `prefix`. Raises ValueError for what has none."""
    if not _is_prefix(prefix) or prefix != prefix.lower():
        raise ValueError(f"{prefix!r} cannot be a human-readable part")
    if not all(0 <= word < 32 for word in words):
        raise ValueError("a character stands for five bits")
    if len(prefix) + 1 + len(words) + _CHECKSUM > TEXT_MAX:
        raise ValueError(f"a text has at most {TEXT_MAX} characters")
    rest = _remainder((*_expand(prefix), *words, *(0,) * _CHECKSUM)) ^ _CONSTANT
    check = ((rest >> 5 * (_CHECKSUM - 1 - place)) & 31 for place in range(_CHECKSUM))
    return prefix + "1" + "".join(_CHARACTERS[word] for word in (*words, *check))


def decode_words(text: str) -> tuple[str, tuple[int, ...]]:
    """Return the human-readable part, in lower case, and the words of a text. Raises MalformedError with what is wrong."""
    if len(text) > TEXT_MAX:
        raise MalformedError(f"it has {len(text)} characters; there are at most {TEXT_MAX}")
    if text not in (text.lower(), text.upper()):
        raise MalformedError("it has upper- and lower-case letters: only one kind may be used")
    prefix, separator, data = text.lower().rpartition("1")
    if not separator or not _is_prefix(prefix):
        raise MalformedError("it does not begin with a word and the digit 1")
    if len(data) < _CHECKSUM:
        raise MalformedError("it is cut short: the checksum is missing")
    for place, character in enumerate(data, len(prefix) + 2):
        if character not in _CHARACTERS:
            raise MalformedError(
                f"character {place}, {character!r}, is never used: the letters b, i, o and the digit 1 are not"
            )
    words = tuple(_CHARACTERS.index(character) for character in data)
    if _remainder((*_expand(prefix), *words)) != _CONSTANT:
        raise MalformedError("its checksum does not match: a character is wrong, missing or out of order")
    return prefix, words[:-_CHECKSUM]


def to_words(data: bytes) -> tuple[int, ...]:
    """Return bytes as words of five bits, zero bits added at the end."""
    bits = len(data) * 8
    count = -(-bits // 5)
    value = int.from_bytes(data) << (count * 5 - bits)
    return tuple((value >> 5 * (count - 1 - place)) & 31 for place in range(count))


def from_words(words: Iterable[int]) -> bytes:
    """Return the bytes that `to_words` was given. Raises MalformedError unless up to four zero bits fill the last word."""
    value = count = 0
    for word in words:
        value = value << 5 | word
        count += 1
    size, padding = divmod(count * 5, 8)
    if padding > 4 or value & ((1 << padding) - 1):
        raise MalformedError("its last bits are not the zeros that fill it up")
    return (value >> padding).to_bytes(size)


def _is_prefix(text: str) -> bool:
    return bool(text) and all(33 <= ord(character) <= 126 for character in text)


def _expand(prefix: str) -> tuple[int, ...]:
    codes = prefix.encode("ascii")
    return (*(code >> 5 for code in codes), 0, *(code & 31 for code in codes))


def _remainder(words: Iterable[int]) -> int:
    """Return the remainder of the polynomial over GF(32) whose coefficients are `words`, 1 before them."""
    rest = 1
    for word in words:
        top = rest >> 25
        rest = (rest & 0x1FFFFFF) << 5 ^ word
        for place, generator in enumerate(_GENERATOR):
            if top >> place & 1:
                rest ^= generator
    return rest
