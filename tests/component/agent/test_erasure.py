"""Coding: any k shards give the blob, shards hold no library header, bad shards are refused."""

import itertools

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from fsdecloud.agent.erasure import decode_shards, encode_shards, shard_ids, shard_size
from fsdecloud.errors import MalformedError

VECTOR = ["ba0ce651884cb8df", "1ab6d301667769a5", "74b96383f9b640be", "075b63a881a2acc2"]
"""Parity shards of the blob in `test_shard_ids_never_change`, as liberasurecode 1.7 with ISA-L 2.31 makes them."""


@pytest.mark.parametrize(("k", "n"), [(1, 1), (1, 3), (2, 6), (4, 12), (10, 30), (3, 3), (2, 3)])
@pytest.mark.parametrize("length", [1, 2, 9, 10, 11, 100, 4097])
def test_any_k_shards_are_enough(k, n, length):
    blob = bytes(i * 7 % 251 for i in range(length))
    shards = [bytes(shard) for shard in encode_shards(k, n, blob)]
    assert [len(shard) for shard in shards] == [shard_size(k, length)] * n
    assert b"".join(shards[:k])[:length] == blob
    for chosen in itertools.islice(itertools.combinations(range(n - 1, -1, -1), k), 0, 500, 17):
        assert decode_shards(k, n, length, {i: shards[i] for i in chosen}) == blob


def test_shard_ids_never_change():
    blob = b"".join(blake3(bytes([i])).digest() for i in range(100)) + b"end"
    ids = shard_ids(encode_shards(2, 6, blob))
    assert ids[0] == blake3(blob[:1602]).digest()
    assert [i.hex()[:16] for i in ids[2:]] == VECTOR
    assert shard_ids(encode_shards(1, 3, blob)) == (blake3(blob).digest(),) * 3


@given(st.binary(min_size=1, max_size=300), st.integers(0, 14))
def test_round_trip(blob, choice):
    chosen = list(itertools.combinations(range(6), 2))[choice]
    shards = encode_shards(2, 6, blob)
    assert decode_shards(2, 6, len(blob), {i: bytes(shards[i]) for i in chosen}) == blob


def test_what_does_not_decode_is_malformed():
    shards = [bytes(shard) for shard in encode_shards(2, 6, b"x" * 100)]
    with pytest.raises(MalformedError, match="2 shards are needed"):
        decode_shards(2, 6, 100, {0: shards[0]})
    with pytest.raises(MalformedError, match="not one of 6 with 50 bytes"):
        decode_shards(2, 6, 100, {0: shards[0], 1: shards[1][:-1]})
    with pytest.raises(MalformedError):
        decode_shards(2, 6, 100, {0: shards[0], 6: shards[1]})
    with pytest.raises(MalformedError):
        decode_shards(2, 6, 0, {0: b"", 1: b""})
    with pytest.raises(ValueError, match="empty"):
        encode_shards(2, 6, b"")
