"""Bech32m against BIP 350's published vectors, and what its checksum promises."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdecloud.crypto import bech32
from fsdecloud.errors import MalformedError

# bitcoin/bips, bip-0350: valid and invalid Bech32m strings, and a segwit address of version 1.
VALID = (
    "A1LQFN3A",
    "a1lqfn3a",
    "an83characterlonghumanreadablepartthatcontainsthetheexcludedcharactersbioandnumber11sg7hg6",
    "abcdef1l7aum6echk45nj3s0wdvt2fg8x9yrzpqzd3ryx",
    "11llllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllludsr8",
    "split1checkupstagehandshakeupstreamerranterredcaperredlc445v",
    "?1v759aa",
)
INVALID = (
    ("\x201xj0phk", "word"),
    ("\x7f1g6xzxy", "word"),
    ("\x801vctc34", "word"),
    ("an84characterslonghumanreadablepartthatcontainsthetheexcludedcharactersbioandnumber11d6pts4", "91 characters"),
    ("qyrz8wqd2c9m", "word"),
    ("1qyrz8wqd2c9m", "word"),
    ("y1b0jsk6g", "'b'"),
    ("lt1igcx5c0", "'i'"),
    ("in1muywd", "cut short"),
    ("mm1crxm3i", "'i'"),
    ("au1s5cgom", "'o'"),
    ("M1VUXWEZ", "checksum"),
    ("16plkw9", "word"),
    ("1p2gdwpf", "word"),
)
SEGWIT = "bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqzk5jj0"
SEGWIT_PROGRAM = "79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"


@pytest.mark.parametrize("text", VALID)
def test_published_vectors(text):
    assert bech32.encode_words(*bech32.decode_words(text)) == text.lower()


@pytest.mark.parametrize(("text", "reason"), INVALID)
def test_published_invalid_vectors(text, reason):
    with pytest.raises(MalformedError, match=reason):
        bech32.decode_words(text)


def test_a_published_address_holds_its_bytes():
    prefix, words = bech32.decode_words(SEGWIT)
    assert (prefix, words[0]) == ("bc", 1)
    assert bech32.from_words(words[1:]).hex() == SEGWIT_PROGRAM
    assert bech32.encode_words("bc", (1, *bech32.to_words(bytes.fromhex(SEGWIT_PROGRAM)))) == SEGWIT


@given(st.binary(max_size=40))
def test_bytes_come_back(data):
    assert bech32.from_words(bech32.to_words(data)) == data


@pytest.mark.parametrize("words", [(0,), (0, 1), (31, 31)])
def test_padding_is_zero_and_short(words):
    with pytest.raises(MalformedError, match="last bits"):
        bech32.from_words(words)


@given(st.data())
def test_up_to_four_wrong_characters_are_found(data):
    text = bech32.encode_words("decloud", bech32.to_words(data.draw(st.binary(min_size=32, max_size=32))))
    places = data.draw(st.sets(st.integers(8, len(text) - 1), min_size=1, max_size=4))
    wrong = list(text)
    for place in places:
        wrong[place] = data.draw(st.sampled_from([c for c in "qpzry9x8gf2tvdw0s3jn54khce6mua7l" if c != text[place]]))
    with pytest.raises(MalformedError, match="checksum"):
        bech32.decode_words("".join(wrong))


@pytest.mark.parametrize(("prefix", "words"), [("", ()), ("Ab", ()), ("a b", ()), ("a", (32,)), ("a", (0,) * 83)])
def test_what_has_no_text(prefix, words):
    with pytest.raises(ValueError, match=r"cannot|five bits|at most"):
        bech32.encode_words(prefix, words)
