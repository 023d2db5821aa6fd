"""The file of a repair key: what stands in it, and nothing else is taken for one."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdecloud.crypto.keys import VolumeKeys
from fsdecloud.crypto.repairkey import KEY_MAX, decode_repair_key, encode_repair_key, make_repair_key
from fsdecloud.errors import MalformedError

KEYS = VolumeKeys.from_root(bytes(range(32)))
KEY = make_repair_key(KEYS, "photos", b"n" * 32, "2/6")
DATA = encode_repair_key(KEY)


def test_it_is_what_the_agent_has_and_no_more():
    assert decode_repair_key(DATA) == KEY
    assert len(DATA) < KEY_MAX
    for secret in (KEYS.seal_secret, KEYS.border_secret, KEYS.ledger_payload_key, KEYS.ledger_seed, KEYS.at_rest_key):
        assert secret.hex().encode() not in DATA
    assert KEYS.grant_secret.hex().encode() not in DATA
    assert KEYS.deal_secret.hex() not in repr(KEY)
    assert KEYS.repair_secret.hex() not in repr(KEY)


def changed(**values):
    return json.dumps(json.loads(DATA) | values).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[" * 3000,
        DATA[:-5],
        changed(version=2),
        changed(name="other"),
        changed(repair_secret="0" * 64),
        changed(repair_secret="0" * 62),
        changed(more=1),
        changed(name="x" * 300),
        DATA + b" " * KEY_MAX + b"{",
    ],
)
def test_what_is_no_repair_key_is_refused_and_not_shown(data):
    with pytest.raises(MalformedError) as caught:
        decode_repair_key(data)
    assert KEYS.deal_secret.hex()[:8] not in str(caught.value)
    assert caught.value.__cause__ is None


@given(st.binary(max_size=200))
def test_any_bytes(data):
    with pytest.raises(MalformedError):
        decode_repair_key(data)
