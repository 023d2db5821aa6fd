"""A set of shards in memory for tests: its pages, the shards' bytes, and a set computed without pages from the definition."""

from __future__ import annotations

import random
from collections.abc import Iterable

from blake3 import blake3

from fsdecloud.crypto import possession
from fsdecloud.crypto.shardset import EMPTY, ShardSet, node_hash, shard_hash, update
from fsdecloud.types import ShardId


class Holder:
    """Somebody who keeps a set, and the bytes of its shards."""

    def __init__(self, shards: Iterable[bytes] = ()) -> None:
        self.set = EMPTY
        self.pages: dict[bytes, bytes] = {}
        self.data: dict[ShardId, bytes] = {}
        self.page_reads = 0
        self.shard_reads = 0
        self.add(shards)

    def get(self, path: bytes) -> bytes | None:
        self.page_reads += 1
        return self.pages.get(path)

    def read(self, shard: ShardId) -> bytes:
        self.shard_reads += 1
        return self.data[shard]

    def change(self, changes: dict[ShardId, int | None]) -> dict[bytes, bytes | None]:
        self.set, pages = update(self.get, self.set, changes)
        for path, page in pages.items():
            if page is None:
                del self.pages[path]
            else:
                self.pages[path] = page
        return pages

    def add(self, shards: Iterable[bytes]) -> None:
        new = {ShardId(blake3(shard).digest()): shard for shard in shards}
        self.data.update(new)
        self.change({shard: len(data) for shard, data in new.items()})

    def prove(self, seed: bytes, samples: int) -> bytes:
        return possession.prove(self.get, self.set, seed, samples, self.read)


def random_shards(seed: int, count: int, longest: int = 5000) -> list[bytes]:
    rng = random.Random(seed)
    return [rng.randbytes(rng.choice((1, 1023, 1024, 1025, 2048, rng.randint(1, longest)))) for _ in range(count)]


def naive_set(shards: dict[ShardId, int]) -> ShardSet:
    """Return the set from the definition: bit by bit, nothing kept."""

    def trie(items: list[tuple[ShardId, int]], bit: int) -> tuple[bytes, int, int]:
        if len(items) == 1:
            shard, length = items[0]
            return shard_hash(shard, length), -(-length // 1024), 0
        sides: tuple[list[tuple[ShardId, int]], ...] = ([], [])
        for item in items:
            sides[item[0][bit // 8] >> (7 - bit % 8) & 1].append(item)
        if not all(sides):
            return trie(items, bit + 1)
        (left, left_leaves, a), (right, right_leaves, b) = (trie(side, bit + 1) for side in sides)
        return node_hash(left, left_leaves, right, right_leaves), left_leaves + right_leaves, max(a, b) + 1

    if not shards:
        return EMPTY
    top, leaves, height = trie(list(shards.items()), 0)
    return ShardSet(top, leaves, len(shards), sum(shards.values()), height)
