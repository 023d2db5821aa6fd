"""Proofs that somebody has the bytes behind a plain BLAKE3 hash: one 1 KiB leaf and the chaining values up to the id.

Pure. The tree is BLAKE3's own (BLAKE3 paper, sections 2.1 to 2.4; Bao's slices by the same author), so a shard's id is
also its proof root. The `blake3` package does not give chaining values out, therefore the compression function is here:
each of its 16 state words is one Python integer with a 64-bit lane for every leaf hashed at once, of which 32 bits are in
use, so that an addition carries and a rotation shifts within its lane. One MiB takes about 50 ms and holds
the GIL: use a process or small shards. Not here: which leaf is asked for, and when (`contracts`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from fsdecloud import codec
from fsdecloud.errors import MalformedError

LEAF_SIZE: Final = 1024
HASH_SIZE: Final = 32
LENGTH_MAX: Final = (1 << 64) - 1

_IV: Final = (
    0x6A09E667,
    0xBB67AE85,
    0x3C6EF372,
    0xA54FF53A,
    0x510E527F,
    0x9B05688C,
    0x1F83D9AB,
    0x5BE0CD19,
)
_PERMUTATION: Final = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
_ROUNDS: Final = 7
_BLOCK: Final = 64
_BLOCKS: Final = LEAF_SIZE // _BLOCK
_WORD: Final = 4
_LANE: Final = 8
_LANES_MAX: Final = 256
"""Leaves hashed at once: the 16 state integers (2 KiB each) stay in the processor's first-level cache."""

_CHUNK_START: Final = 1
_CHUNK_END: Final = 2
_PARENT: Final = 4
_ROOT: Final = 8


class Proof(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A leaf and the chaining values of its siblings, lowest first."""

    index: int
    leaf: bytes
    path: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class HashTree:
    """All chaining values over some bytes: 64 bytes for each leaf. Made once, it proves any leaf."""

    length: int
    id: bytes
    """BLAKE3 of the bytes."""
    levels: tuple[bytes, ...]
    """Chaining values level by level, joined, the leaves' first; the last level has two. Empty for a single leaf."""


def leaf_count(length: int) -> int:
    """Return the number of leaves of `length` bytes; no bytes are one empty leaf."""
    return max(1, -(-length // LEAF_SIZE))


def hash_tree(data: bytes | memoryview) -> HashTree:
    """Hash `data` and keep the chaining values. Costs about 50 ms for each MiB."""
    view = memoryview(data)
    count = leaf_count(len(view))
    if count == 1:
        return HashTree(len(view), _chunk(bytes(view), 0, _ROOT), ())
    whole = len(view) // LEAF_SIZE
    level = b"".join(
        [_whole_chunks(view, first, min(_LANES_MAX, whole - first)) for first in range(0, whole, _LANES_MAX)]
    )
    if whole < count:
        level += _chunk(bytes(view[whole * LEAF_SIZE :]), whole, 0)
    levels = [level]
    while len(level) > 2 * HASH_SIZE:
        pairs = len(level) // _BLOCK
        odd = level[pairs * _BLOCK :]
        blocks = memoryview(level)[: pairs * _BLOCK]
        step = _LANES_MAX * _BLOCK
        level = b"".join([_parents(blocks[at : at + step], 0) for at in range(0, len(blocks), step)]) + odd
        levels.append(level)
    return HashTree(len(view), _parents(memoryview(level), _ROOT), tuple(levels))


def prove(tree: HashTree, data: bytes | memoryview, index: int) -> Proof:
    """Return the proof of leaf `index` of `data`, whose tree this is. Raises IndexError when there is no such leaf."""
    if not 0 <= index < leaf_count(tree.length):
        raise IndexError(f"leaf {index} of {leaf_count(tree.length)}")
    path: list[bytes] = []
    place = index
    for level in tree.levels:
        sibling = (place ^ 1) * HASH_SIZE
        if sibling < len(level):
            path.append(level[sibling : sibling + HASH_SIZE])
        place >>= 1
    return Proof(index, bytes(data[index * LEAF_SIZE : (index + 1) * LEAF_SIZE]), tuple(path))


def verify(id: bytes, length: int, proof: Proof) -> bool:  # noqa: A002 - it is an id
    """Tell whether `proof` shows its leaf of the `length` bytes whose BLAKE3 is `id`. Any input gives an answer.

    `length` must come from somebody trusted (a receipt): a path alone does not prove where the bytes end.
    """
    if not 0 <= length <= LENGTH_MAX:
        return False
    width, place = leaf_count(length), proof.index
    if not 0 <= place < width or len(proof.leaf) != min(LEAF_SIZE, length - place * LEAF_SIZE):
        return False
    if any(len(sibling) != HASH_SIZE for sibling in proof.path):
        return False
    digest = _chunk(proof.leaf, place, _ROOT if width == 1 else 0)
    siblings = iter(proof.path)
    while width > 1:
        if (place ^ 1) < width:
            sibling = next(siblings, b"")
            if not sibling:
                return False
            block = sibling + digest if place & 1 else digest + sibling
            digest = _parents(memoryview(block), _ROOT if width == 2 else 0)
        place >>= 1
        width = (width + 1) >> 1
    return next(siblings, None) is None and digest == id


def encode_proof(proof: Proof) -> bytes:
    """Return the canonical encoding: about 1 KiB and 34 bytes for each level."""
    return codec.encode(proof)


def decode_proof(data: bytes) -> Proof:
    """Return the proof. Raises MalformedError unless `data` is the canonical encoding of one of possible size."""
    proof = codec.decode(data, Proof)
    if not (0 <= proof.index <= LENGTH_MAX // LEAF_SIZE and len(proof.leaf) <= LEAF_SIZE and len(proof.path) <= 54):
        raise MalformedError("a proof has one leaf of at most 1 KiB and a path of at most 54 values")
    if any(len(sibling) != HASH_SIZE for sibling in proof.path):
        raise MalformedError(f"each value of a proof's path has {HASH_SIZE} bytes")
    return proof


def _chunk(leaf: bytes, counter: int, last_flag: int) -> bytes:
    """Return the chaining value of one leaf of 0 to 1024 bytes; `last_flag` is _ROOT when it is the only one."""
    cv = list(_IV)
    start = _CHUNK_START
    for at in range(0, max(len(leaf), 1), _BLOCK):
        block = leaf[at : at + _BLOCK]
        end = _CHUNK_END | last_flag if at + _BLOCK >= len(leaf) else 0
        words = _lanes(memoryview(block.ljust(_BLOCK, b"\0")), 0, 1, _BLOCK)
        cv = _compress(cv, words, (counter & 0xFFFFFFFF, counter >> 32), len(block), start | end, 1)
        start = 0
    return _join(cv, 1)


def _whole_chunks(view: memoryview, first: int, lanes: int) -> bytes:
    """Return the chaining values of `lanes` whole leaves from leaf `first` on, joined."""
    chunks = view[first * LEAF_SIZE : (first + lanes) * LEAF_SIZE]
    ones = _ones(lanes)
    low = b"".join([((first + i) & 0xFFFFFFFF).to_bytes(_LANE, "little") for i in range(lanes)])
    high = b"".join([((first + i) >> 32).to_bytes(_LANE, "little") for i in range(lanes)])
    counter = (int.from_bytes(low, "little"), int.from_bytes(high, "little"))
    cv = [word * ones for word in _IV]
    for block in range(_BLOCKS):
        flags = (_CHUNK_START if block == 0 else 0) | (_CHUNK_END if block == _BLOCKS - 1 else 0)
        cv = _compress(cv, _lanes(chunks, block * _BLOCK, lanes, LEAF_SIZE), counter, _BLOCK, flags, ones)
    return _join(cv, lanes)


def _parents(blocks: memoryview, flag: int) -> bytes:
    """Return the chaining values of the parents of pairs of chaining values, joined; `flag` is _ROOT for the top one."""
    lanes = len(blocks) // _BLOCK
    ones = _ones(lanes)
    cv = [word * ones for word in _IV]
    return _join(_compress(cv, _lanes(blocks, 0, lanes, _BLOCK), (0, 0), _BLOCK, _PARENT | flag, ones), lanes)


def _ones(lanes: int) -> int:
    return int.from_bytes(b"\1\0\0\0\0\0\0\0" * lanes, "little")


def _lanes(data: memoryview, offset: int, lanes: int, stride: int) -> list[int]:
    """Return the 16 words of one block for each lane; lane i's block begins at offset + i * stride.

    Words are moved as they are and read as little-endian only at the end, so the machine's byte order does not matter.
    """
    words = data.cast("B").cast("I")
    result: list[int] = []
    for word in range(offset // _WORD, (offset + _BLOCK) // _WORD):
        spread = bytearray(lanes * _LANE)
        memoryview(spread).cast("I")[::2] = words[word :: stride // _WORD]
        result.append(int.from_bytes(spread, "little"))
    return result


def _join(cv: list[int], lanes: int) -> bytes:
    """Return the lanes' chaining values one after the other: the reverse of `_lanes`."""
    joined = bytearray(lanes * HASH_SIZE)
    words = memoryview(joined).cast("I")
    for i, value in enumerate(cv):
        words[i :: HASH_SIZE // _WORD] = memoryview(value.to_bytes(lanes * _LANE, "little")).cast("I")[::2]
    return bytes(joined)


def _compress(cv: list[int], m: list[int], counter: tuple[int, int], length: int, flags: int, ones: int) -> list[int]:
    """Return the new chaining value of every lane (BLAKE3 paper, section 2.2); `ones` has a 1 in each lane."""
    mask = ones * 0xFFFFFFFF
    a, b, c, d, e, f, g, h = cv
    i, j, k, l = (word * ones for word in _IV[:4])  # noqa: E741 - the state is v0 to v15
    n, o = counter
    p, q = length * ones, flags * ones
    for number in range(_ROUNDS):
        if number:
            m = [m[source] for source in _PERMUTATION]
        a, e, i, n = _mix(a, e, i, n, m[0], m[1], mask)
        b, f, j, o = _mix(b, f, j, o, m[2], m[3], mask)
        c, g, k, p = _mix(c, g, k, p, m[4], m[5], mask)
        d, h, l, q = _mix(d, h, l, q, m[6], m[7], mask)  # noqa: E741
        a, f, k, q = _mix(a, f, k, q, m[8], m[9], mask)
        b, g, l, n = _mix(b, g, l, n, m[10], m[11], mask)  # noqa: E741
        c, h, i, o = _mix(c, h, i, o, m[12], m[13], mask)
        d, e, j, p = _mix(d, e, j, p, m[14], m[15], mask)
    return [a ^ i, b ^ j, c ^ k, d ^ l, e ^ n, f ^ o, g ^ p, h ^ q]


def _mix(a: int, b: int, c: int, d: int, x: int, y: int, mask: int) -> tuple[int, int, int, int]:
    """Mix two message words into a column or diagonal. What a shift moves into a lane's upper half is masked off."""
    a = (a + b + x) & mask
    d ^= a
    d = (d >> 16 | d << 16) & mask
    c = (c + d) & mask
    b ^= c
    b = (b >> 12 | b << 20) & mask
    a = (a + b + y) & mask
    d ^= a
    d = (d >> 8 | d << 24) & mask
    c = (c + d) & mask
    b ^= c
    b = (b >> 7 | b << 25) & mask
    return a, b, c, d
