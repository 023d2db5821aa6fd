"""The wallet's keys: numbered, found again by the phrase alone; and how they are written and read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdecloud.crypto import sign, wallet
from fsdecloud.crypto.keys import VolumeKeys
from fsdecloud.crypto.phrase import phrase_from_root, root_from_phrase
from fsdecloud.errors import UsageError

ROOT = bytes(range(32))
SECRET = VolumeKeys.from_root(ROOT).wallet_secret
FIRST = wallet.wallet_key(SECRET, wallet.OWN)


def test_the_keys_of_a_wallet_never_change():
    assert [wallet.wallet_seed(SECRET, index).hex() for index in (0, 1, wallet.INDEX_MAX)] == FROZEN_SEEDS
    assert wallet.address_of(FIRST) == FROZEN_ADDRESS


def test_the_phrase_alone_gives_all_keys():
    again = VolumeKeys.from_root(root_from_phrase(phrase_from_root(ROOT))).wallet_secret
    assert [wallet.wallet_key(again, n) for n in range(3)] == [wallet.wallet_key(SECRET, n) for n in range(3)]
    assert len({wallet.wallet_key(SECRET, n) for n in range(50)}) == 50


@pytest.mark.parametrize("index", [-1, wallet.INDEX_MAX + 1])
def test_there_are_no_other_numbers(index):
    with pytest.raises(ValueError, match="numbers from 0"):
        wallet.wallet_seed(SECRET, index)


@pytest.mark.parametrize(
    ("used", "expected"),
    [((), 1), ((0,), 1), ((1,), 2), ((0, 20), 21), ((21,), 1), ((5, 25, 45), 46), ((5, 27), 6), (range(60), 60)],
)
def test_a_search_ends_after_the_gap_limit(used, expected):
    known = frozenset(used)
    asked: list[int] = []

    def is_used(first: int, count: int) -> list[bool]:
        asked.extend(range(first, first + count))
        return [number in known for number in range(first, first + count)]

    assert wallet.used_count(is_used) == expected
    assert asked == list(range(expected + wallet.GAP_LIMIT))


@given(st.binary(min_size=32, max_size=32))
def test_an_address_and_its_key(seed):
    key = sign.public_key(seed)
    address = wallet.address_of(key)
    assert address.startswith("decloud1q")
    assert len(address) == 67
    assert wallet.key_of(address) == wallet.key_of(address.upper()) == wallet.key_of(f" {address}\n") == key
    assert wallet.key_of(key.hex()) == wallet.key_of(key.hex().upper()) == key


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (wallet.address_of(FIRST)[:-1] + "q", "checksum"),
        (wallet.address_of(FIRST)[:-3], "checksum"),
        (FIRST.hex()[:-1], "64 hexadecimal digits, and this 63"),
        (FIRST.hex() + "0", "and this 65"),
        ("bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqzk5jj0", "of something else"),
        ("alice", "copy it again"),
        ("", "begins with decloud1"),
        ("x" * 5000, "at most 90"),
        ("01" + "00" * 31, "nobody can spend"),
        (wallet.bech32.encode_words("decloud", (1, *wallet.bech32.to_words(FIRST))), "version"),
        (wallet.bech32.encode_words("decloud", (0, *wallet.bech32.to_words(FIRST[:20]))), "20 bytes"),
        (wallet.bech32.encode_words("decloud", ()), "version"),
    ],
)
def test_what_is_no_address(text, reason):
    with pytest.raises(UsageError, match=reason) as found:
        wallet.key_of(text)
    assert len(str(found.value)) < 500


def test_swapped_neighbours_are_found():
    address = wallet.address_of(FIRST)
    for place in range(8, len(address) - 1):
        if address[place] != address[place + 1]:
            wrong = address[:place] + address[place + 1] + address[place] + address[place + 2 :]
            with pytest.raises(UsageError, match="checksum"):
                wallet.key_of(wrong)


FROZEN_SEEDS = [
    "173d2dcbb866ab17e7dbc1238b05a3b5fe904169e436339d94eee1cc66037a69",
    "1311cb4b77cc9b8f74b67068e239adbb0e4719adf0b017a4f3b33fa1cc1f5891",
    "510363719b3456956dfe782874d9d11efbe71a592c81a829678dd0de78409065",
]
FROZEN_ADDRESS = "decloud1q6nv0u8tccx26zxul5g9dmy8rtpuggx7u3vtj6y5ps2tlku5w4xgsucgqcx"
