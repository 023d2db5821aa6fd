"""A program that agrees on revisions of a deal's shard set, step by step, noting its progress.

    python -m tests.power.sets_workload DIRECTORY NOTES

"begin N" is noted before a step and "done N" when it is durable; what it does is a function of N.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from fsdecloud.crypto.shardset import shards_of
from fsdecloud.store.shardsets import FIRST, ShardSets
from fsdecloud.types import ShardId
from tests.unit.crypto.shardsets import naive_set

STEPS = 24
DEAL = b"d" * 32
MAP = 1 << 24

Shards = dict[ShardId, int]
Held = tuple[tuple[int, Shards], tuple[int, Shards] | None]
"""Number and shards of the valid revision, and of the staged one."""


def changes(number: int) -> dict[ShardId, int | None]:
    """Return what step `number` stages."""
    chance = random.Random(number)
    old = random.Random(max(number - 6, 0))
    gone: dict[ShardId, int | None] = {ShardId(old.randbytes(32)): None for _ in range(20)}
    return gone | {ShardId(chance.randbytes(32)): number for _ in range(chance.choice((1, 30, 150)))}


def after(held: Held, number: int) -> Held:
    """Return what is held after a step."""
    valid, staged = held
    if number % 12 == 0:
        return (0, {}), None
    if number % 5 == 0:
        return valid, None
    if number % 2 == 0 and staged is not None:
        return staged, None
    shards = valid[1] | changes(number)
    return valid, (number, {shard: length for shard, length in shards.items() if length is not None})


def run(root: Path, notes: Path) -> None:
    """Do all steps."""
    log = os.open(notes, os.O_WRONLY)
    sets = ShardSets(root / "sets", map_size=MAP)
    held: Held = (0, {}), None
    for number in range(1, STEPS + 1):
        os.write(log, b"begin %d\n" % number)
        if number % 12 == 0:
            sets.remove(DEAL)
        elif number % 5 == 0:
            sets.discard(DEAL)
        elif number % 2 == 0 and held[1] is not None:
            sets.accept(DEAL, held[1][0], b"signed")
        else:
            sets.stage(DEAL, number, changes(number))
        held = after(held, number)
        os.write(log, b"done %d\n" % number)
        sets.sweep()
    sets.close()
    os.write(log, b"closed\n")


def check(directory: Path, notes: Sequence[str]) -> None:
    """Open what a power cut left, and compare. Raises AssertionError, or whatever the store raises."""
    done = max((int(line.split()[1]) for line in notes if line.startswith("done")), default=0)
    begun = max((int(line.split()[1]) for line in notes if line.startswith("begin")), default=0)
    held: Held = (0, {}), None
    allowed = [held]
    for number in range(1, begun + 1):
        held = after(held, number)
        allowed.append(held)
    with ShardSets(directory / "sets", map_size=MAP) as sets:
        valid, staged = sets.valid(DEAL), sets.staged(DEAL)
        found: Held = (valid.number, dict(sets.shards(DEAL, limit=10_000))), None
        if staged is not None:
            found = found[0], (staged.number, sets.read(DEAL, lambda _, get: dict(shards_of(get)), staged=True))
        assert found in allowed[done:], f"revision {valid.number}, staged {staged and staged.number}"
        assert valid.shard_set == (naive_set(found[0][1]) if valid.number else FIRST.shard_set)
        while sets.sweep():
            pass
        assert sets.stage(DEAL, STEPS + 1, {ShardId(bytes(32)): 1}).shard_set.shards == len(found[0][1]) + 1


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]))
