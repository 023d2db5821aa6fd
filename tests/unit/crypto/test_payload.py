"""The anchor's payload: one size, any changed byte is noticed, no nonce serves two messages."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from fsdecloud.crypto import payload
from fsdecloud.crypto.keys import derive
from fsdecloud.errors import FsdecloudError, MalformedError, SealError
from fsdecloud.limits import ANCHOR_PAYLOAD

KEY = bytes(range(32))
NONCE = bytes(12)


@given(
    st.binary(max_size=ANCHOR_PAYLOAD - payload.OVERHEAD), st.binary(min_size=12, max_size=12), st.binary(max_size=9)
)
def test_round_trip_has_one_size(plain, nonce, associated):
    sealed = payload.seal_payload(KEY, nonce, plain, associated=associated)
    assert len(sealed) == ANCHOR_PAYLOAD
    assert payload.open_payload(KEY, sealed, associated=associated) == plain


def test_the_format_never_changes():
    sealed = payload.seal_payload(KEY, NONCE, b"hello", 40, associated=b"volume")
    assert sealed.hex() == FROZEN


def test_it_opens_only_with_its_key_and_what_it_belongs_to():
    sealed = payload.seal_payload(KEY, NONCE, b"hello", associated=b"volume")
    with pytest.raises(SealError):
        payload.open_payload(bytes(32), sealed, associated=b"volume")
    with pytest.raises(SealError):
        payload.open_payload(KEY, sealed)


def test_tampering_with_any_byte_is_noticed():
    sealed = payload.seal_payload(KEY, NONCE, b"hello", 64)
    for i in range(len(sealed)):
        with pytest.raises(SealError):
            payload.open_payload(KEY, sealed[:i] + bytes((sealed[i] ^ 1,)) + sealed[i + 1 :])
        with pytest.raises((SealError, MalformedError)):
            payload.open_payload(KEY, sealed[:i])


@pytest.mark.parametrize("padded", [b"\x00\x05" + b"hell", b"\xff\xff" + bytes(20), b"\x00\x02" + b"hi" + b"\0\1\0"])
def test_wrong_padding_is_malformed(padded):
    sealed = NONCE + AESGCM(derive(KEY, payload._ENCRYPT)).encrypt(NONCE, padded, b"")
    with pytest.raises(MalformedError, match="padding"):
        payload.open_payload(KEY, sealed)


@given(st.binary(max_size=100))
def test_any_bytes_give_one_of_our_errors(data):
    with pytest.raises(FsdecloudError):
        payload.open_payload(KEY, data)


def test_fault_133_a_repeated_random_nonce_still_gives_distinct_nonces():
    # The same random bytes twice, as after restoring a snapshot.
    sealed = [payload.seal_payload(KEY, NONCE, b"%d" % i, associated=a) for i in range(100) for a in (b"", b"a")]
    assert len({data[:12] for data in sealed}) == len(sealed)


def test_what_does_not_fit_is_our_own_mistake():
    for plain, nonce, size in ((bytes(35), NONCE, 64), (bytes(70000), NONCE, 80000), (b"", b"", 64), (b"", NONCE, 29)):
        with pytest.raises(ValueError, match=r"payload|nonce"):
            payload.seal_payload(KEY, nonce, plain, size)


FROZEN = "15f32a8ded4e30fc9d883a560d047b3b9eacdb520327817161218ab0938133ff5bab6d217f5f0a46"
