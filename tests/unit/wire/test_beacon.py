"""Beacons: one form, and nothing else passes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdecloud.errors import MalformedError
from fsdecloud.types import PeerId
from fsdecloud.wire.beacon import SIZE, Beacon, decode_beacon, encode_beacon, network_hash

NETWORK = network_hash(b"n" * 32)


def test_golden_bytes():
    """A format that others speak does not change."""
    beacon = Beacon(NETWORK, PeerId(b"p" * 32), 7711)
    data = encode_beacon(beacon)
    assert data == b"fsdecloud link 1" + NETWORK + b"p" * 32 + b"\x1e\x1f"
    assert NETWORK.hex() == "d5f26f183553d746156bc0e641b264fa"
    assert decode_beacon(data) == beacon
    question = Beacon(NETWORK, None, 0)
    assert decode_beacon(encode_beacon(question)) == question
    assert len(encode_beacon(question)) == len(data) == SIZE


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"fsdecloud link 2" + bytes(50),
        b"fsdecloud link 1" + bytes(49),
        b"fsdecloud link 1" + bytes(51),
        b"fsdecloud link 1" + NETWORK + bytes(32) + b"\x00\x01",
        b"fsdecloud link 1" + NETWORK + b"p" * 32 + b"\x00\x00",
    ],
)
def test_fault_079_anything_else_is_refused(data):
    with pytest.raises(MalformedError):
        decode_beacon(data)


@given(st.binary(max_size=100) | st.binary(min_size=50, max_size=50).map(lambda rest: b"fsdecloud link 1" + rest))
def test_what_is_understood_is_what_was_said(data):
    try:
        beacon = decode_beacon(data)
    except MalformedError:
        return
    assert encode_beacon(beacon) == data
