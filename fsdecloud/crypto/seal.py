"""How an entry is sealed: one content and one secret give exactly one sealed entry.

Pure and thread-safe; hashing, encrypting and compressing release the GIL, so large inputs belong into a worker thread.

    sealed entry   format (1 byte) | AES-256-GCM ciphertext of the body | tag (16 bytes)
    format         2 x version + 1 if the body is a zstd frame (RFC 8878) of the plaintext
    AAD            kind | version | compression flag | five zero bytes
    key            BLAKE3 keyed with the seal secret over AAD + body; nonce zero; id = BLAKE3 of the sealed entry

The key is a hash of the exact AEAD input, so no key ever encrypts two messages, whatever compressor made the body. The
kind is authenticated but not stored: a peer that holds a pack sees neither what its entries are nor where they begin.
"""

from __future__ import annotations

import enum
import threading
from typing import Final

import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fsdecloud.errors import MalformedError, SealError
from fsdecloud.limits import CHUNK_SIZE, ENTRY_MAX, KIB
from fsdecloud.types import EntryId, Ref

VERSION: Final = 1
OVERHEAD: Final = 1 + 16
"""Bytes by which a sealed entry is longer than its body: format and tag."""
PLAINTEXT_MAX: Final = ENTRY_MAX - OVERHEAD

_KEY_SIZE: Final = 32
_NONCE: Final = bytes(12)

_COMPRESS_MIN: Final = 64
"""Shorter bodies are not worth a zstd frame."""
_SAMPLE_OVER: Final = 64 * KIB
_SAMPLE_PIECES: Final = 8
_SAMPLE_PIECE: Final = 4 * KIB
"""Above 64 KiB, 8 pieces of 4 KiB decide whether compression is tried: random data costs 4 % of a full attempt."""
_ZSTD_LEVEL: Final = 1
_JOIN_MAX: Final = 64 * KIB
"""Up to this, joining header and body costs less than a second call to the hasher."""


class Kind(enum.IntEnum):
    """What an entry's plaintext is. One byte in the associated data; an entry opens only as what it was sealed as."""

    CHUNK = 1
    PATCH = 2
    NODE = 3
    MANIFEST = 4
    RECORDS = 5
    XATTR = 6
    MAP_NODE = 7
    HOST_MAP = 8


# Both are indexed by the compression flag; _AAD by the kind first (a dict would call Enum.__hash__, which is slow).
_AAD: Final = tuple(
    tuple(bytes((kind, VERSION, packed, 0, 0, 0, 0, 0)) for packed in (0, 1)) for kind in range(max(Kind) + 1)
)
_FORMAT: Final = tuple(bytes((2 * VERSION + packed,)) for packed in (0, 1))


class _Zstd(threading.local):
    """Compression contexts cost 2 µs to make and are not thread-safe: one pair for each thread."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=False)
        self.decompressor = zstandard.ZstdDecompressor()


_zstd = _Zstd()


def seal(secret: bytes, kind: Kind, plaintext: bytes | memoryview) -> tuple[Ref, bytes]:
    """Return the entry's reference and its sealed bytes. `secret` has 32 bytes, `plaintext` at most PLAINTEXT_MAX.

    Raises ValueError for a secret or plaintext of the wrong length. The plaintext must not change while this runs.
    """
    body, aad, packed, key = _prepare(secret, kind, plaintext)
    sealed = b"".join((_FORMAT[packed], AESGCM(key).encrypt(_NONCE, body, aad)))
    return Ref(entry_id(sealed), key), sealed


def seal_into(secret: bytes, kind: Kind, plaintext: bytes | memoryview, out: memoryview) -> tuple[Ref, memoryview]:
    """As `seal`, but the sealed bytes lie in `out` (at least ENTRY_MAX long), of which the second result is a part.

    For large entries that are written somewhere at once: it saves taking, clearing and copying memory.
    """
    body, aad, packed, key = _prepare(secret, kind, plaintext)
    out[:1] = _FORMAT[packed]
    sealed = out[: len(body) + OVERHEAD]
    AESGCM(key).encrypt_into(_NONCE, body, aad, sealed[1:])
    return Ref(entry_id(sealed), key), sealed


def _prepare(secret: bytes, kind: Kind, plaintext: bytes | memoryview) -> tuple[bytes | memoryview, bytes, bool, bytes]:
    """Return what is encrypted, its associated data, whether it is compressed, and the key."""
    if len(plaintext) > PLAINTEXT_MAX:
        raise ValueError(f"an entry holds at most {PLAINTEXT_MAX} bytes, not {len(plaintext)}")
    frame = _compressed(plaintext)
    packed = frame is not None
    body = plaintext if frame is None else frame
    aad = _AAD[kind][packed]
    if len(body) <= _JOIN_MAX:
        key = blake3(b"".join((aad, body)), key=secret).digest()
    else:
        key = blake3(aad, key=secret).update(body).digest()
    return body, aad, packed, key


def open_entry(key: bytes, kind: Kind, sealed: bytes | memoryview, *, limit: int = CHUNK_SIZE) -> bytes:
    """Return the plaintext of at most `limit` bytes.

    Raises SealError when key, kind and bytes do not belong together, MalformedError for an unknown format, a key of the
    wrong length, or a plaintext over `limit` (noticed before memory is taken for it).
    """
    if len(key) != _KEY_SIZE:
        raise MalformedError(f"an entry's key has {_KEY_SIZE} bytes, not {len(key)}")
    if not OVERHEAD <= len(sealed) <= max(limit, CHUNK_SIZE) + OVERHEAD:
        raise MalformedError(f"a sealed entry cannot have {len(sealed)} bytes")
    version, packed = divmod(sealed[0], 2)
    if version != VERSION:
        raise MalformedError(f"unknown entry format {sealed[0]}: damaged, or written by a newer version")
    try:
        body = AESGCM(key).decrypt(_NONCE, memoryview(sealed)[1:], _AAD[kind][packed])
    except InvalidTag as exc:
        raise SealError(f"the entry is damaged, or is not the {kind.name.lower()} that this key opens") from exc
    if packed:
        return _decompressed(body, limit)
    if len(body) > limit:
        raise MalformedError(f"the entry holds {len(body)} bytes where at most {limit} are allowed")
    return body


def open_into(key: bytes, kind: Kind, sealed: bytes | memoryview, out: bytearray) -> bool:
    """Open an entry whose plaintext was not compressed and is exactly as long as `out`, into it; False for any other.

    Saves taking and clearing memory for the plaintext, which for 1 MiB is half the time. After SealError (as for
    `open_entry`) the contents of `out` are meaningless.
    """
    if len(sealed) != len(out) + OVERHEAD or sealed[0] != 2 * VERSION or len(key) != _KEY_SIZE:
        return False
    try:
        AESGCM(key).decrypt_into(_NONCE, memoryview(sealed)[1:], _AAD[kind][0], out)
    except InvalidTag as exc:
        raise SealError(f"the entry is damaged, or is not the {kind.name.lower()} that this key opens") from exc
    return True


def entry_id(sealed: bytes | memoryview) -> EntryId:
    """Return the id of a sealed entry: plain BLAKE3, so that `b3sum` can check it."""
    return EntryId(blake3(sealed).digest())


def open_ref(ref: Ref, kind: Kind, sealed: bytes | memoryview, *, limit: int = CHUNK_SIZE) -> bytes:
    """Check that `sealed` has the reference's id, then open it as `open_entry` does. Raises SealError if it has not."""
    if entry_id(sealed) != ref.id:
        raise SealError(f"the bytes are not entry {ref.id.hex()}")
    return open_entry(ref.key, kind, sealed, limit=limit)


def _compressed(plaintext: bytes | memoryview) -> bytes | None:
    """Return a zstd frame that saves at least one eighth, or None. A function of the plaintext alone."""
    size = len(plaintext)
    if size < _COMPRESS_MIN:
        return None
    compressor = _zstd.compressor
    if size > _SAMPLE_OVER:
        step = (size - _SAMPLE_PIECE) // (_SAMPLE_PIECES - 1)
        sample = b"".join([plaintext[i * step : i * step + _SAMPLE_PIECE] for i in range(_SAMPLE_PIECES)])
        # Half the saving is enough here: short pieces compress worse than the whole.
        if len(compressor.compress(sample)) > len(sample) - len(sample) // 16:
            return None
    frame = compressor.compress(plaintext)
    return frame if len(frame) <= size - size // 8 else None


def _decompressed(frame: bytes, limit: int) -> bytes:
    try:
        # zstandard allocates what the frame header claims, whatever max_output_size says: look at it first.
        size = zstandard.frame_content_size(frame)
        if not 0 < size <= limit:
            raise MalformedError(f"the entry claims to hold {size} bytes where 1 to {limit} are allowed")
        return _zstd.decompressor.decompress(frame, max_output_size=limit, allow_extra_data=False)
    except zstandard.ZstdError as exc:
        raise MalformedError(f"the entry does not decompress: {exc}") from exc
