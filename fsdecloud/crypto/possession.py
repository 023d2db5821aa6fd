"""Proofs that a peer has the shards of a deal: some KiB of them, drawn by a seed that nobody could choose.

Pure. A proof shows for every challenged leaf (`challenge`) its 1 KiB, the way from there to its shard's id (`crypto.bao`),
and from the id to the root of the deal's shard set (`crypto.shardset`). Only who has the bytes of the challenged leaves can
make it, and there is exactly one proof for a root, a seed and a number of samples. What it does not show: that the peer had
the bytes before it was asked, and that it keeps them itself (one that fetches them elsewhere in time proves as well).

**Format** (numbers of variable length: 7 bits in each byte, lowest first, the top bit set on all but the last, none longer than
needed):

    leaves shards bytes        of the whole set: with the trie's hash, the root's content
    trie                       from its top, left before right:
                                 a part without a challenged leaf, below a node: its hash (32 bytes)
                                 a node: the leaves to its left (at least 1), then its left part, then its right part
                                 a shard: 0, then (length - 1) mod 1024 in 2 bytes, big-endian
    slices                     of each challenged shard in that order (`bao.write_slice`)

What paths share is there once, and what follows from something else is not there at all: no id, no index, no path of an
empty set. Of a million shards of 256 KiB, 8 samples take less than 16 KiB, of which 8 KiB are the leaves.

**How many samples.** A peer that lacks the fraction f of a deal's KiB passes one sample with the probability 1 - f, and they
are drawn independently, so `samples_for(P, f)` = ln(1 - P) / ln(1 - f) of them find it out with the probability P.
Source: G. Ateniese et al., Provable Data Possession at Untrusted Stores (CCS 2007).

Not here: what the seed is (`contracts`), when a proof is due, and how a peer reads its shards (`peerd.proving`).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

from blake3 import blake3

from fsdecloud.crypto import bao
from fsdecloud.crypto.keys import CONTEXT_PREFIX
from fsdecloud.crypto.shardset import (
    HASH_SIZE,
    HEIGHT_MAX,
    LEAVES_MAX,
    LENGTH_MAX,
    Get,
    Node,
    ShardSet,
    load,
    node_hash,
    root_hash,
    shard_hash,
)
from fsdecloud.errors import MalformedError
from fsdecloud.types import ShardId

SAMPLES_MAX: Final = 512
"""Most samples of one proof: they find out with a probability of 99 % that 1 % of the data is missing, and the largest proof of
as many shards of 1 MiB stays under what one message carries."""

CHAIN_SAMPLES: Final = 8
"""Samples whose proof takes under CHAIN_PROOF for a million shards of 256 KiB."""

CHAIN_PROOF: Final = 16 * 1024

_CHALLENGE: Final = blake3(derive_key_context=CONTEXT_PREFIX + "possession challenge")
"""Copying a prepared hasher saves hashing the context again. Invariant: it is never updated."""

_DRAW: Final = 8
_TAIL: Final = 2
_NUMBER_MAX: Final = (1 << 64) - 1
_NUMBER_BYTES: Final = 10
_PATH_MAX: Final = (bao.leaf_count(LENGTH_MAX) - 1).bit_length()

_Trie: TypeAlias = "bytes | int | tuple[_Trie, int, _Trie, int]"
"""A part of a trie as it was read: its hash; or which challenged shard it is; or two parts, each with its leaves."""


class Challenged(NamedTuple):
    """A shard of which leaves are challenged."""

    shard: ShardId
    length: int
    leaves: tuple[int, ...]
    """Their indices in the shard, ascending."""


class Plan(NamedTuple):
    """A proof without the shards: `head`, followed by the `slice_of` each challenged shard in order, is the proof."""

    head: bytes
    challenged: tuple[Challenged, ...]


def challenge(seed: bytes, total: int, samples: int) -> list[int]:
    """Return `samples` independent draws from the leaves [0, `total`), in the order drawn; none from an empty set.

    Words of 64 bits, big-endian, from the BLAKE3 output of the seed; one that would favour low numbers is skipped. Raises
    ValueError for a total or a number of samples out of bounds.
    """
    if not 0 <= total <= LEAVES_MAX or not 1 <= samples <= SAMPLES_MAX:
        raise ValueError(
            f"1 to {SAMPLES_MAX} samples of 0 to {LEAVES_MAX} leaves can be drawn, not {samples} of {total}"
        )
    if not total:
        return []
    fair = (1 << 64) - (1 << 64) % total
    output = _CHALLENGE.copy().update(seed)
    drawn: list[int] = []
    at = 0
    while len(drawn) < samples:
        words = output.digest(_DRAW * samples, seek=at)
        at += len(words)
        for begin in range(0, len(words), _DRAW):
            word = int.from_bytes(words[begin : begin + _DRAW], "big")
            if word < fair:
                drawn.append(word % total)
    return drawn[:samples]


def samples_for(probability: float, fraction: float) -> int:
    """Return how many samples find out with `probability` (0 to under 1) that `fraction` (over 0, to 1) of the data is missing.

    At least 1, and not bounded by SAMPLES_MAX: more than one proof holds are for several periods. Raises ValueError.
    """
    if not (0 <= probability < 1 and 0 < fraction <= 1):
        raise ValueError("a probability of 0 to under 1 and a fraction of over 0 to 1 are needed")
    if fraction == 1:
        return 1
    exact = math.log1p(-probability) / math.log1p(-fraction)
    return max(1, math.ceil(exact - 1e-9))


def proof_size_max(samples: int) -> int:
    """Return the most bytes of any proof of `samples` samples, whatever the set is. Most are far smaller."""
    node = _NUMBER_BYTES + HASH_SIZE
    return 3 * _NUMBER_BYTES + samples * (HEIGHT_MAX * node + 1 + _TAIL + bao.LEAF_SIZE + _PATH_MAX * bao.HASH_SIZE)


def plan(get: Get, shard_set: ShardSet, seed: bytes, samples: int) -> Plan:
    """Return what a proof takes. `get` gives the set's pages, about log16(shards) for each sample, and is not needed after.

    Raises ValueError as `challenge` does, SetDamaged when the pages are not those of the set.
    """
    writer = _Writer(get)
    indices = sorted(set(challenge(seed, shard_set.leaves, samples)))
    if indices:
        writer.write(load(get, b"", shard_set.tree, shard_set.leaves), indices)
    head = b"".join(map(_number, (shard_set.leaves, shard_set.shards, shard_set.size)))
    return Plan(b"".join((head, *writer.parts)), tuple(writer.challenged))


def slice_of(challenged: Challenged, data: bytes | memoryview) -> bytes:
    """Return a shard's part of a proof. `data` are its bytes, which are hashed (`bao.hash_tree`: 30 ms for each MiB).

    Raises MalformedError when they are not the shard's: such a proof would not verify.
    """
    tree = bao.hash_tree(data)
    if (tree.id, tree.length) != (challenged.shard, challenged.length):
        raise MalformedError(f"the bytes read are not those of shard {challenged.shard.hex()}")
    return bao.write_slice(tree, data, challenged.leaves)


def prove(get: Get, shard_set: ShardSet, seed: bytes, samples: int, read: Callable[[ShardId], bytes]) -> bytes:
    """Return the proof: `plan`, then a `slice_of` for each challenged shard, which `read` gives: one at a time is in memory.

    Raises as these do; what `read` raises passes through.
    """
    planned = plan(get, shard_set, seed, samples)
    return b"".join((planned.head, *(slice_of(part, read(part.shard)) for part in planned.challenged)))


def verify(root: bytes, seed: bytes, samples: int, proof: bytes) -> bool:
    """Tell whether `proof` shows the challenged leaves of the shard set with this root. Any input gives an answer.

    Work and memory are bounded by `proof_size_max`; a proof of 8 samples takes about 3 ms.
    """
    if not 1 <= samples <= SAMPLES_MAX or len(proof) > proof_size_max(samples):
        return False
    try:
        return _Reader(proof).root(seed, samples) == root
    except MalformedError:
        return False


class _Writer:
    """The trie's part of a proof."""

    def __init__(self, get: Get) -> None:
        self._get = get
        self.parts: list[bytes] = []
        self.challenged: list[Challenged] = []

    def write(self, node: Node, indices: list[int]) -> None:
        """Write what lies below `node`, of whose leaves `indices` (at least one, ascending) are challenged."""
        if node.path:
            node = load(self._get, node.path, node.tree, node.leaves)
        if node.children is None:
            assert node.shard is not None, "a page leads to shards"
            self.parts.append(_number(0) + ((node.length - 1) % bao.LEAF_SIZE).to_bytes(_TAIL, "big"))
            self.challenged.append(Challenged(node.shard, node.length, tuple(indices)))
            return
        left, right = node.children
        cut = bisect_left(indices, left.leaves)
        self.parts.append(_number(left.leaves))
        for child, wanted in ((left, indices[:cut]), (right, [index - left.leaves for index in indices[cut:]])):
            if wanted:
                self.write(child, wanted)
            else:
                self.parts.append(child.tree)


class _Reader:
    """A proof as it is read. Raises MalformedError for what no set gives."""

    def __init__(self, proof: bytes) -> None:
        self._proof = proof
        self._at = 0
        self._challenged: list[tuple[int, list[int]]] = []
        """Length and leaves of each challenged shard."""

    def root(self, seed: bytes, samples: int) -> bytes:
        """Return the root that the proof leads to."""
        leaves, shards, size = (self._number() for _ in range(3))
        if leaves > LEAVES_MAX:
            raise MalformedError("too many leaves")
        indices = sorted(set(challenge(seed, leaves, samples)))
        if not indices:
            if self._at != len(self._proof):
                raise MalformedError("an empty set has nothing to show")
            return root_hash(bytes(HASH_SIZE), leaves, shards, size)
        trie = self._trie(leaves, indices, 0)
        ids = bao.read_slices(self._proof[self._at :], self._challenged)
        return root_hash(self._hash(trie, ids), leaves, shards, size)

    def _trie(self, leaves: int, indices: list[int], height: int) -> _Trie:
        """Read a part of the trie with so many leaves, of which `indices` are challenged."""
        if not indices:
            return self._take(HASH_SIZE)
        left = self._number()
        if not left:
            length = (leaves - 1) * bao.LEAF_SIZE + int.from_bytes(self._take(_TAIL), "big") + 1
            if length > LENGTH_MAX or bao.leaf_count(length) != leaves:
                raise MalformedError("a shard with another number of leaves than is said of it")
            self._challenged.append((length, indices))
            return len(self._challenged) - 1
        if left >= leaves or height >= HEIGHT_MAX:
            raise MalformedError("a node with more leaves than are below it, or below too many others")
        cut = bisect_left(indices, left)
        return (
            self._trie(left, indices[:cut], height + 1),
            left,
            self._trie(leaves - left, [index - left for index in indices[cut:]], height + 1),
            leaves - left,
        )

    def _hash(self, trie: _Trie, ids: list[bytes]) -> bytes:
        """Return the hash of a part of the trie that was read."""
        if isinstance(trie, bytes):
            return trie
        if isinstance(trie, int):
            return shard_hash(ids[trie], self._challenged[trie][0])
        left, left_leaves, right, right_leaves = trie
        return node_hash(self._hash(left, ids), left_leaves, self._hash(right, ids), right_leaves)

    def _number(self) -> int:
        value = 0
        for shift in range(0, 7 * _NUMBER_BYTES, 7):
            byte = self._take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if (not byte and shift) or value > _NUMBER_MAX:
                    break
                return value
        raise MalformedError("a number that is too large, or longer than it takes")

    def _take(self, size: int) -> bytes:
        taken = self._proof[self._at : self._at + size]
        if len(taken) != size:
            raise MalformedError("the proof ends too early")
        self._at += size
        return taken


def _number(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
