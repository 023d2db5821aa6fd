"""The root secret as 24 words that a person can write down (BIP39, English list).

Pure. The words encode the 32 bytes and 8 bits of their SHA-256 as a checksum; BIP39's passphrase and PBKDF2 step are
not used, so that words and secret are the same thing. Source: bitcoin/bips, bip-0039.
"""

from __future__ import annotations

import difflib
import hashlib
import unicodedata
from functools import cache
from typing import Final

from fsdecloud.errors import UsageError

WORDS: Final = 24
_BITS_PER_WORD: Final = 11
_ROOT_SIZE: Final = 32
_SHOWN_MAX: Final = 24
"""Characters of an unknown word that an error shows: the longest word has 8."""


def phrase_from_root(root: bytes) -> str:
    """Return the 24 words of a root secret, separated by single spaces. Raises ValueError unless it has 32 bytes."""
    if len(root) != _ROOT_SIZE:
        raise ValueError(f"a root secret has {_ROOT_SIZE} bytes, not {len(root)}")
    words = _word_list()[0]
    bits = int.from_bytes(root + _checksum(root), "big")
    return " ".join(words[(bits >> _BITS_PER_WORD * (WORDS - 1 - i)) & 0x7FF] for i in range(WORDS))


def root_from_phrase(text: str) -> bytes:
    """Return the root secret that 24 words stand for. Case, extra white space and Unicode form do not matter.

    Raises UsageError that says what is wrong: the number of words, the first unknown word with its place and the word
    most like it, or the checksum. It never repeats a word that is in the list.
    """
    words, index = _word_list()
    given = unicodedata.normalize("NFKD", text).lower().split()
    for place, word in enumerate(given, 1):
        if word not in index:
            nearest = difflib.get_close_matches(word[:_SHOWN_MAX], words, n=1, cutoff=0.6)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise UsageError(
                f"word {place} of the recovery phrase, {word[:_SHOWN_MAX]!r}, is not in the word list{hint}"
            )
    if len(given) != WORDS:
        raise UsageError(f"a recovery phrase has {WORDS} words; this one has {len(given)}")
    bits = 0
    for word in given:
        bits = bits << _BITS_PER_WORD | index[word]
    data = bits.to_bytes(_ROOT_SIZE + 1, "big")
    root = data[:_ROOT_SIZE]
    if data[_ROOT_SIZE:] != _checksum(root):
        raise UsageError(
            "the recovery phrase's checksum does not match: all its words are valid, but at least one is wrong or out of "
            "order"
        )
    return root


def _checksum(root: bytes) -> bytes:
    return hashlib.sha256(root).digest()[:1]


@cache
def _word_list() -> tuple[list[str], dict[str, int]]:
    # Imported here: only commands that show or read a phrase need the list.
    from mnemonic import Mnemonic

    words: list[str] = Mnemonic("english").wordlist
    return words, {word: i for i, word in enumerate(words)}
