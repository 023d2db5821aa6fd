"""Which signatures are valid: RFC 8032, the published edge cases, and the domain."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdecloud.crypto import sign
from fsdecloud.errors import SealError

SEED = bytes(range(32))
P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "ed25519.json").read_text())


@pytest.fixture
def bare(monkeypatch):
    """Published vectors have no domain: sign the message itself."""
    monkeypatch.setattr(sign, "_framed", lambda _domain, message: message)


@pytest.mark.parametrize("vector", VECTORS["rfc_8032"])
def test_rfc_8032_vectors(bare, vector):
    seed, public, message, signature = (
        bytes.fromhex(vector[name]) for name in ("seed", "public", "message", "signature")
    )
    assert sign.public_key(seed) == public
    assert sign.sign(seed, b"", message) == signature
    sign.verify(public, b"", message, signature)


@pytest.mark.parametrize("number", range(10))
def test_fault_110_published_edge_cases(bare, number):
    # 0, 1: key of small order. 2, 3: mixed order, valid even without the cofactor. 4, 5: valid only with it.
    # 6, 7: S not reduced. 8, 9: R not canonical.
    vector = VECTORS["speccheck"][number]
    public, message, signature = (bytes.fromhex(vector[name]) for name in ("public", "message", "signature"))
    try:
        sign.verify(public, b"", message, signature)
    except SealError:
        assert not vector["valid"]
    else:
        assert vector["valid"]


def _double(point):
    # Twisted Edwards addition of a point to itself, affine, a = -1 (RFC 8032, 5.1.4).
    x, y = point
    d = -121665 * pow(121666, -1, P) % P
    t = d * x * x * y * y % P
    return 2 * x * y * pow(1 + t, -1, P) % P, (y * y + x * x) * pow(1 - t, -1, P) % P


def _x_of(y):
    d = -121665 * pow(121666, -1, P) % P
    square = (y * y - 1) * pow(d * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    return x if x * x % P == square else x * pow(2, (P - 1) // 4, P) % P


def test_the_small_order_list_is_exactly_the_points_of_order_up_to_8():
    for y in sign._SMALL_ORDER_Y:
        point = (_x_of(y), y)
        for _ in range(3):
            point = _double(point)
        assert point == (0, 1)
    # Eight points: y = 1 and y = -1 have x = 0 and are one point each, the three other values two points each.
    assert len(sign._SMALL_ORDER_Y) == 2 + 3


@pytest.mark.parametrize("sign_bit", [0, 1 << 255])
@pytest.mark.parametrize("y", sorted(sign._SMALL_ORDER_Y | {P, P + 1, P + 18, 2**255 - 1}))
def test_fault_110_small_order_and_non_canonical_keys_are_refused(y, sign_bit):
    key = (y | sign_bit).to_bytes(32, "little")
    with pytest.raises(SealError, match=r"small order|canonical"):
        sign.verify(key, b"d", b"", bytes(64))
    with pytest.raises(SealError):
        sign.check_public_key(key)


def test_fault_110_s_plus_l_is_refused():
    signature = sign.sign(SEED, b"d", b"message")
    s = int.from_bytes(signature[32:], "little") + L
    with pytest.raises(SealError):
        sign.verify(sign.public_key(SEED), b"d", b"message", signature[:32] + s.to_bytes(32, "little"))


def test_a_domain_is_part_of_what_is_signed():
    public = sign.public_key(SEED)
    signature = sign.sign(SEED, b"ab", b"c")
    sign.verify(public, b"ab", b"c", signature)
    for domain, message in ((b"a", b"bc"), (b"abc", b""), (b"ac", b"c")):
        with pytest.raises(SealError):
            sign.verify(public, domain, message, signature)


def test_tampering_with_any_byte_is_noticed():
    public, message = sign.public_key(SEED), b"message"
    signature = sign.sign(SEED, b"d", message)
    for i in range(64):
        with pytest.raises(SealError):
            sign.verify(public, b"d", message, signature[:i] + bytes((signature[i] ^ 1,)) + signature[i + 1 :])
    for i in range(32):
        with pytest.raises(SealError):
            sign.verify(public[:i] + bytes((public[i] ^ 1,)) + public[i + 1 :], b"d", message, signature)


@given(st.binary(max_size=40), st.binary(max_size=70))
def test_any_key_and_signature_give_a_seal_error(public, signature):
    with pytest.raises(SealError):
        sign.verify(public, b"d", b"m", signature)


@pytest.mark.parametrize("domain", [b"", b"x" * 256])
def test_a_bad_domain_is_our_own_mistake(domain):
    with pytest.raises(ValueError, match="domain"):
        sign.sign(SEED, domain, b"")


def test_a_bad_seed_is_our_own_mistake():
    with pytest.raises(ValueError, match="seed"):
        sign.public_key(bytes(31))
