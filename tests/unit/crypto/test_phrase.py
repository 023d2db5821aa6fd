"""The recovery phrase: published vectors, and the precise reason when it is wrong (fault 130)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdecloud.crypto import phrase
from fsdecloud.errors import UsageError

# https://github.com/trezor/python-mnemonic vectors.json, those of 256 bits.
VECTORS = [
    ("00" * 32, "abandon " * 23 + "art"),
    (
        "7f" * 32,
        "legal winner thank year wave sausage worth useful " * 2 + "legal winner thank year wave sausage worth title",
    ),
    (
        "80" * 32,
        "letter advice cage absurd amount doctor acoustic avoid " * 2
        + "letter advice cage absurd amount doctor acoustic bless",
    ),
    ("ff" * 32, "zoo " * 23 + "vote"),
    (
        "68a79eaca2324873eacc50cb9c6eca8cc68ea5d936f98787c60c7ebc74e6ce7c",
        (
            "hamster diagram private dutch cause delay private meat slide toddler razor book happy fancy gospel tennis "
            "maple dilemma loan word shrug inflict delay length"
        ),
    ),
]
GOOD = VECTORS[4][1]


@pytest.mark.parametrize(("root", "words"), VECTORS)
def test_published_vectors(root, words):
    assert phrase.phrase_from_root(bytes.fromhex(root)) == words
    assert phrase.root_from_phrase(words).hex() == root


@given(st.binary(min_size=32, max_size=32))
def test_round_trip(root):
    text = phrase.phrase_from_root(root)
    assert phrase.root_from_phrase(text) == root


@pytest.mark.parametrize(
    "text",
    [
        GOOD.upper(),
        "  " + GOOD.replace(" ", "\n\t  ") + "\r\n",
        GOOD.replace(" ", "\u3000"),
        "".join(chr(ord(c) + 0xFEE0) if c != " " else c for c in GOOD),
    ],
    ids=["upper case", "white space", "ideographic spaces", "full-width letters"],
)
def test_fault_130_form_does_not_matter(text):
    assert phrase.root_from_phrase(text) == phrase.root_from_phrase(GOOD)


def _changed(place: int, word: str) -> str:
    words = GOOD.split()
    words[place - 1] = word
    return " ".join(words)


def _swapped() -> str:
    words = GOOD.split()
    words[0], words[1] = words[1], words[0]
    return " ".join(words)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "24 words; this one has 0"),
        (GOOD.rsplit(" ", 1)[0], "24 words; this one has 23"),
        (GOOD + " zoo", "24 words; this one has 25"),
        (_changed(2, "diagramm"), "word 2 of the recovery phrase, 'diagramm', .* did you mean 'diagram'"),
        (_changed(24, "lenght"), "word 24 .* did you mean 'length'"),
        (_changed(7, "0123456789"), "word 7 .*'0123456789', is not in the word list$"),
        (_changed(7, "x" * 1000), "word 7 .*'x{24}', is not"),
        (_swapped(), "checksum"),
        (_changed(1, "zoo"), "checksum"),
    ],
)
def test_fault_130_the_reason_is_precise(text, reason):
    with pytest.raises(UsageError, match=reason) as caught:
        phrase.root_from_phrase(text)
    # Fault 129: a word that is part of the secret is never repeated.
    assert "hamster" not in str(caught.value)


@given(st.text(max_size=200))
def test_any_text_is_a_usage_error(text):
    with pytest.raises(UsageError):
        phrase.root_from_phrase(text)


def test_a_bad_root_is_our_own_mistake():
    with pytest.raises(ValueError, match="32 bytes"):
        phrase.phrase_from_root(bytes(16))
