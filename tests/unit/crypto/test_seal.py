"""Sealed entries: one content gives one entry, any changed byte is noticed, no output passes its limit."""

from __future__ import annotations

import random
import sys
import threading

import pytest
import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from fsdecloud.crypto import seal
from fsdecloud.crypto.seal import Kind
from fsdecloud.errors import FsdecloudError, MalformedError, SealError
from fsdecloud.limits import CHUNK_SIZE
from fsdecloud.types import EntryId, Ref

SECRET = bytes(range(32))
OTHER = bytes(32)
RANDOM = random.Random(1).randbytes(CHUNK_SIZE)
TEXT = (b"The quick brown fox jumps over the lazy dog. " * 30000)[:CHUNK_SIZE]


def test_aes_gcm_published_vector():
    # McGrew and Viega, "The Galois/Counter Mode of Operation", test case 16 (AES-256 with associated data).
    key = bytes.fromhex("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308")
    plain = bytes.fromhex(
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba"
        "637b39"
    )
    aad = bytes.fromhex("feedfacedeadbeeffeedfacedeadbeefabaddad2")
    sealed = AESGCM(key).encrypt(bytes.fromhex("cafebabefacedbaddecaf888"), plain, aad)
    assert sealed.hex() == (
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abc"
        "c9f66276fc6ece0f4e1768cddf8853bb2d551b"
    )


def test_the_format_never_changes():
    # An entry written today is found and opened by these bytes for ever.
    ref, sealed = seal.seal(SECRET, Kind.CHUNK, b"hello")
    aad = bytes((1, 1, 0, 0, 0, 0, 0, 0))
    assert ref.key == blake3(aad + b"hello", key=SECRET).digest()
    assert sealed == b"\x02" + AESGCM(ref.key).encrypt(bytes(12), b"hello", aad)
    assert ref.id == blake3(sealed).digest()
    assert ref.to_bytes().hex() == FROZEN_REF


@pytest.mark.parametrize("plain", [b"", b"x", RANDOM[:100], RANDOM[: 64 << 10], RANDOM[: (64 << 10) + 1], RANDOM, TEXT])
@pytest.mark.parametrize("view", [bytes, memoryview])
def test_round_trip(plain, view):
    ref, sealed = seal.seal(SECRET, Kind.CHUNK, view(plain))
    assert type(sealed) is bytes
    assert seal.open_ref(ref, Kind.CHUNK, view(sealed)) == plain
    assert (ref, sealed) == seal.seal(SECRET, Kind.CHUNK, plain)


@pytest.mark.parametrize("size", [100, 4096, 64 << 10, (64 << 10) + 1, CHUNK_SIZE])
def test_compression_only_where_it_saves_an_eighth(size):
    assert len(seal.seal(SECRET, Kind.CHUNK, RANDOM[:size])[1]) == size + seal.OVERHEAD
    assert len(seal.seal(SECRET, Kind.CHUNK, TEXT[:size])[1]) <= size - size // 8 + seal.OVERHEAD
    # 15/16 of it cannot be compressed: not worth it.
    mixed = RANDOM[: size - size // 16] + bytes(size // 16)
    assert len(seal.seal(SECRET, Kind.CHUNK, mixed)[1]) == size + seal.OVERHEAD


def test_a_large_half_random_input_is_compressed():
    half = CHUNK_SIZE // 2
    for plain in (RANDOM[:half] + bytes(half), bytes(half) + RANDOM[:half]):
        ref, sealed = seal.seal(SECRET, Kind.CHUNK, plain)
        assert len(sealed) < half + half // 8
        assert seal.open_ref(ref, Kind.CHUNK, sealed) == plain


def test_equal_content_is_one_entry_only_within_one_volume():
    refs = {seal.seal(secret, kind, b"content")[0] for secret in (SECRET, OTHER) for kind in Kind}
    assert len({ref.id for ref in refs}) == len({ref.key for ref in refs}) == 2 * len(Kind)


def test_fault_070_an_entry_opens_only_as_its_kind():
    ref, sealed = seal.seal(SECRET, Kind.NODE, b"content")
    for kind in Kind:
        if kind is not Kind.NODE:
            with pytest.raises(SealError, match=kind.name.lower()):
                seal.open_ref(ref, kind, sealed)


@pytest.mark.parametrize("plain", [b"some content", TEXT[:300]])
def test_tampering_with_any_byte_is_noticed(plain):
    ref, sealed = seal.seal(SECRET, Kind.CHUNK, plain)
    for i in range(len(sealed)):
        for flip in (1, 128):
            changed = sealed[:i] + bytes((sealed[i] ^ flip,)) + sealed[i + 1 :]
            with pytest.raises(SealError):
                seal.open_ref(ref, Kind.CHUNK, changed)
            with pytest.raises((SealError, MalformedError)):
                seal.open_entry(ref.key, Kind.CHUNK, changed)
    for size in range(len(sealed)):
        with pytest.raises((SealError, MalformedError)):
            seal.open_entry(ref.key, Kind.CHUNK, sealed[:size])
    with pytest.raises(SealError):
        seal.open_entry(ref.key, Kind.CHUNK, sealed + b"\0")
    with pytest.raises(SealError):
        seal.open_entry(OTHER, Kind.CHUNK, sealed)


@given(st.binary(max_size=64), st.binary(max_size=100))
def test_any_bytes_give_one_of_our_errors(key, sealed):
    with pytest.raises(FsdecloudError):
        seal.open_entry(key, Kind.CHUNK, sealed)
    with pytest.raises(SealError):
        seal.open_ref(Ref(EntryId(key), key), Kind.CHUNK, sealed)


def _sealed_body(body: bytes, packed: bool) -> tuple[bytes, bytes]:
    """Seal `body` as it is: what a broken writer that holds the secret could make."""
    aad = bytes((1, 1, packed, 0, 0, 0, 0, 0))
    key = blake3(aad + body, key=SECRET).digest()
    return key, bytes((2 + packed,)) + AESGCM(key).encrypt(bytes(12), body, aad)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(zstandard.compress(bytes(CHUNK_SIZE + 1)), id="one byte over"),
        pytest.param(zstandard.compress(bytes(64 << 20)), id="bomb"),
        pytest.param(zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1000)), id="no size"),
        pytest.param(b"\x28\xb5\x2f\xfd\xe0" + (1 << 60).to_bytes(8, "little"), id="claims an exbibyte"),
        pytest.param(zstandard.compress(b"x" * 1000)[:-1], id="cut off"),
        pytest.param(zstandard.compress(b"x" * 1000) + b"\0", id="trailing byte"),
        pytest.param(zstandard.compress(b"x" * 1000) * 2, id="two frames"),
        pytest.param(zstandard.compress(b""), id="empty"),
        pytest.param(b"not zstd at all", id="garbage"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_fault_79_a_frame_that_lies_is_malformed(body):
    key, sealed = _sealed_body(body, True)
    with pytest.raises(MalformedError):
        seal.open_entry(key, Kind.CHUNK, sealed)


def test_the_limit_holds_for_both_forms():
    for plain in (RANDOM[:2000], TEXT[:2000]):
        ref, sealed = seal.seal(SECRET, Kind.NODE, plain)
        assert seal.open_ref(ref, Kind.NODE, sealed, limit=2000) == plain
        with pytest.raises(MalformedError):
            seal.open_ref(ref, Kind.NODE, sealed, limit=1999)


def test_an_oversized_plaintext_is_our_own_mistake():
    ref, sealed = seal.seal(SECRET, Kind.MANIFEST, bytes(seal.PLAINTEXT_MAX))
    assert seal.open_ref(ref, Kind.MANIFEST, sealed, limit=seal.PLAINTEXT_MAX) == bytes(seal.PLAINTEXT_MAX)
    with pytest.raises(ValueError, match="at most"):
        seal.seal(SECRET, Kind.MANIFEST, bytes(seal.PLAINTEXT_MAX + 1))


@settings(max_examples=200)
@given(st.lists(st.tuples(st.sampled_from(Kind), st.binary(max_size=200)), max_size=30))
def test_fault_133_no_key_ever_seals_two_messages(contents):
    inputs: dict[bytes, tuple[Kind, bytes]] = {}
    for kind, plain in contents:
        ref, _sealed = seal.seal(SECRET, kind, plain)
        assert inputs.setdefault(ref.key, (kind, plain)) == (kind, plain)


def test_threads_do_not_disturb_each_other():
    plains = [TEXT[i : i + 20000] + RANDOM[i : i + 20000] for i in range(0, 400, 7)]
    expected = [seal.seal(SECRET, Kind.CHUNK, plain) for plain in plains]
    failures: list[object] = []

    def work() -> None:
        for plain, (ref, sealed) in zip(plains, expected, strict=True):
            if seal.seal(SECRET, Kind.CHUNK, plain) != (ref, sealed):
                failures.append("seal")
            if seal.open_ref(ref, Kind.CHUNK, sealed) != plain:
                failures.append("open")

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert failures == []


FROZEN_REF = (
    "287f7dc5f57f52fdb8f66d7472aea1258f496688503c1dc5ab0e2297f33c3afc"
    "4b529e9a9e3daa39774ed370adc30429b9fcacb0b721c4cb34f0bc9ed86c0604"
)
