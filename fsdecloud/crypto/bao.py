"""Proofs that somebody has the bytes behind a plain BLAKE3 hash: one 1 KiB leaf and the chaining values up to the id.

Pure. The tree is BLAKE3's own (BLAKE3 paper, sections 2.1 to 2.4; Bao's slices by the same author), so a shard's id is
also its proof root. The `blake3` package does not give chaining values out, therefore the compression function is here:
each of its 16 state words is one Python integer with a 64-bit lane for every leaf hashed at once, of which 32 bits are in
use, so that an addition carries and a rotation shifts within its lane. One MiB takes about 50 ms and holds
the GIL: use a process or small shards. Not here: which leaf is asked for, and when (`contracts`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
from blake3 import blake3

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
        [
            _whole_chunks(
                view[first * LEAF_SIZE : min(first + _LANES_MAX, whole) * LEAF_SIZE],
                range(first, min(first + _LANES_MAX, whole)),
            )
            for first in range(0, whole, _LANES_MAX)
        ]
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


def write_slice(tree: HashTree, data: bytes | memoryview, indices: Sequence[int]) -> bytes:
    """Return leaves `indices` (ascending, at least one, each once) of `data`, whose tree this is, and what leads up to its id.

    Going down the tree from the root and left first: a wanted leaf as it is, the chaining value of a part without any. What
    is known from the length (which part is where, how long a leaf is) is not written, and what paths share is there once.
    Raises IndexError when there is no such leaf.
    """
    count = leaf_count(tree.length)
    if not indices or indices[0] < 0 or indices[-1] >= count:
        raise IndexError(f"leaves {indices} of {count}")
    parts: list[bytes | memoryview] = []

    def write(first: int, width: int, wanted: Sequence[int]) -> None:
        if not wanted:
            level = (width - 1).bit_length()
            at = (first >> level) * HASH_SIZE
            parts.append(tree.levels[level][at : at + HASH_SIZE])
        elif width == 1:
            parts.append(data[first * LEAF_SIZE : (first + 1) * LEAF_SIZE])
        else:
            half = _left_leaves(width)
            cut = bisect_left(wanted, first + half)
            write(first, half, wanted[:cut])
            write(first + half, width - half, wanted[cut:])

    write(0, count, indices)
    return b"".join(parts)


def read_slices(data: bytes, wanted: Sequence[tuple[int, Sequence[int]]]) -> list[bytes]:
    """Return the ids of several byte strings from their slices, one after the other in `data`, as `write_slice` made them.

    `wanted` has the length (trusted, see `verify`) of each and which leaves are in its slice. All of them are hashed at once:
    a slice of 8 strings costs little more than one. Raises MalformedError unless `data` is as long as that takes.
    """
    reader = _SliceReader(data)
    for length, indices in wanted:
        reader.read(length, indices)
    return reader.finish()


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


class _SliceReader:
    """Slices as they are read: the chaining values that are there, and what is to be hashed, lowest first."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._values: list[bytes] = []
        """Chaining values by number; b"" until it is hashed."""
        self._leaves: list[tuple[int, int]] = []
        """Whole leaves: number of the value, index; their bytes are in `_chunks`."""
        self._chunks: list[bytes] = []
        self._parents: defaultdict[tuple[int, int], list[tuple[int, int, int]]] = defaultdict(list)
        """By level and flag: number of the value, numbers of its two children's."""
        self._tops: list[int] = []

    def read(self, length: int, indices: Sequence[int]) -> None:
        """Take the next slice from the bytes."""
        count = leaf_count(length)
        self._tops.append(self._part(0, count, length, indices, _ROOT))

    def finish(self) -> list[bytes]:
        """Hash everything. Returns the ids in order."""
        if self._at != len(self._data):
            raise MalformedError("a slice with more bytes than its leaves take")
        chunks = memoryview(b"".join(self._chunks))
        for begin in range(0, len(self._leaves), _LANES_MAX):
            some = self._leaves[begin : begin + _LANES_MAX]
            part = chunks[begin * LEAF_SIZE : (begin + len(some)) * LEAF_SIZE]
            self._set([number for number, _ in some], _whole_chunks(part, [index for _, index in some]))
        for (_, flag), parents in sorted(self._parents.items()):
            for begin in range(0, len(parents), _LANES_MAX):
                some_parents = parents[begin : begin + _LANES_MAX]
                blocks = b"".join([self._values[left] + self._values[right] for _, left, right in some_parents])
                self._set([number for number, _, _ in some_parents], _parents(memoryview(blocks), flag))
        return [self._values[top] for top in self._tops]

    def _set(self, numbers: list[int], joined: bytes) -> None:
        for i, number in enumerate(numbers):
            self._values[number] = joined[i * HASH_SIZE : (i + 1) * HASH_SIZE]

    def _part(self, first: int, width: int, length: int, wanted: Sequence[int], flag: int) -> int:
        """Read the part of the tree over `width` leaves from `first` on; return the number of its value."""
        number = len(self._values)
        if not wanted:
            self._values.append(self._take(HASH_SIZE))
        elif width == 1:
            leaf = self._take(min(LEAF_SIZE, length - first * LEAF_SIZE))
            if flag:
                self._values.append(blake3(leaf).digest())
            elif len(leaf) < LEAF_SIZE:
                self._values.append(_chunk(leaf, first, 0))
            else:
                self._values.append(b"")
                self._leaves.append((number, first))
                self._chunks.append(leaf)
        else:
            self._values.append(b"")
            half = _left_leaves(width)
            cut = bisect_left(wanted, first + half)
            left = self._part(first, half, length, wanted[:cut], 0)
            right = self._part(first + half, width - half, length, wanted[cut:], 0)
            self._parents[(width - 1).bit_length(), flag].append((number, left, right))
        return number

    def _take(self, size: int) -> bytes:
        taken = self._data[self._at : self._at + size]
        if len(taken) != size:
            raise MalformedError("a slice with fewer bytes than its leaves take")
        self._at += size
        return taken


def _left_leaves(width: int) -> int:
    """Return how many of `width` leaves (at least 2) lie left: the largest power of two below that."""
    return 1 << (width - 1).bit_length() - 1


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


def _whole_chunks(chunks: memoryview, indices: Sequence[int]) -> bytes:
    """Return the chaining values of whole leaves with these indices, joined."""
    lanes = len(indices)
    ones = _ones(lanes)
    low = b"".join([(index & 0xFFFFFFFF).to_bytes(_LANE, "little") for index in indices])
    high = b"".join([(index >> 32).to_bytes(_LANE, "little") for index in indices])
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
