"""Which peers hold a blob: rendezvous hashing over the slots of the host map, keyed with the placement secret.

Pure. Every slot gets a pseudo-random weight for the blob, and the slots in descending order of weight name the hosts;
shard i goes to the i-th distinct host. A host of a network group or of an operator that an earlier host belongs to comes
only after all the others; what is left is ordered in the same way, so that the first n share as little as they can (fault 76).
Only a holder of the placement secret can compute it, so nobody else can tell which peers hold a volume or which two shards
belong together. Source: Thaler and Ravishankar, "A name-based mapping scheme for rendezvous" (1996).

A replaced host is succeeded in the very same place. Any other change puts a host into the order or takes one out, and those
behind it move up: no function of the map alone can avoid that (three sets of n hosts out of n + 1 cannot agree in pairs on
who has which shard). Which of a blob's shards its hosts hold does not matter, though, as long as each holds one: `plan_moves`
leaves every shard where it is whose holder is still among the blob's hosts, and then as few shards move as load has to.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Final

from blake3 import blake3

from fsdecloud.swarm.hostmap import HostMap, Table
from fsdecloud.types import PeerId

_WEIGHT: Final = 4
"""Bytes of a slot's weight, big-endian."""

_IS_LITTLE: Final = array("H", b"\1\0")[0] == 1
"""Whether this machine keeps the lowest byte first: arrays are then turned round."""

_PLANS: Final = 64


class _Plan:
    """What the ranking under one table needs again and again."""

    __slots__ = ("is_shared", "marks", "owners", "pickers")

    def __init__(self, table: Table) -> None:
        self.owners = sorted(set(table.owners))
        slots: dict[int, list[int]] = {owner: [] for owner in self.owners}
        for slot, owner in enumerate(table.owners):
            slots[owner].append(slot)
        # itemgetter gives a tuple for two and more: one slot is named twice.
        self.pickers: list[Callable[[list[int]], tuple[int, ...]]] = [
            itemgetter(*(own if len(own) > 1 else own * 2)) for own in slots.values()
        ]
        groups = table.groups or bytes(len(self.owners))
        operators = table.operators or bytes(len(self.owners))
        self.marks = [
            (group, operator + 256 if operator else 0) for group, operator in zip(groups, operators, strict=True)
        ]
        named = [mark for pair in self.marks for mark in pair if mark]
        self.is_shared = len(set(named)) < len(named)


_plan = lru_cache(maxsize=_PLANS)(_Plan)


def rank_hosts(placement_secret: bytes, blob: bytes, host_map: HostMap, epoch: int | None = None) -> tuple[PeerId, ...]:
    """Return all hosts of the epoch's table (the current one by default) in the blob's order, best first.

    Empty when the map has no such table. One extendable-output hash gives the weights of all slots: as many keyed hashes
    would cost ten times as much. A host's best slot is found without sorting the slots.
    """
    table = host_map.table(host_map.epoch if epoch is None else epoch)
    if table is None:
        return ()
    plan = _plan(table)
    numbers = array("I", blake3(blob, key=placement_secret).digest(length=_WEIGHT * len(table.owners)))
    if _IS_LITTLE:
        numbers.byteswap()
    weights = numbers.tolist()
    best = [max(pick(weights)) for pick in plan.pickers]
    if len(set(best)) < len(best):  # as rare as it is, every reader must find the same order
        best = _without_ties(table.owners, weights, plan.owners)
    order = sorted(range(len(best)), key=best.__getitem__, reverse=True)
    if plan.is_shared:
        order = _spread(order, plan.marks)
    hosts, owners = host_map.hosts, plan.owners
    return tuple([hosts[owners[at]] for at in order])


def _without_ties(owners: bytes, weights: Sequence[int], distinct: Sequence[int]) -> list[int]:
    """Return distinct numbers in the order of the hosts' best slots, the lower slot first among equal weights."""
    slots = sorted(range(len(owners)), key=weights.__getitem__, reverse=True)
    ranked = list(dict.fromkeys(owners[slot] for slot in slots))
    return [-ranked.index(owner) for owner in distinct]


def _spread(order: Sequence[int], marks: Sequence[tuple[int, int]]) -> list[int]:
    """Return the order in rounds: in each round no two of one group or operator, the rest in the next one."""
    spread: list[int] = []
    while order:
        used: set[int] = set()
        later: list[int] = []
        for at in order:
            group, operator = marks[at]
            if (group and group in used) or (operator and operator in used):
                later.append(at)
            else:
                used.update((group, operator))
                spread.append(at)
        order = later
    return spread


def choose_host(
    index: int,
    n: int,
    ranking: Sequence[PeerId],
    newer: Sequence[PeerId],
    is_free: Callable[[PeerId], bool],
) -> PeerId | None:
    """Return who takes shard `index` of a blob that is being stored: its own host, else the first other one past the n-th, else
    one that only the blob's ranking of today (`newer`) has; None when none of them is free, that is, usable and without a
    shard of the blob."""
    if index < len(ranking) and is_free(ranking[index]):
        return ranking[index]
    spare = (*ranking[n:], *(peer for peer in newer if peer not in ranking))
    return next((peer for peer in spare if is_free(peer)), None)


def plan_moves(holders: Mapping[int, PeerId], ranking: Sequence[PeerId], n: int) -> dict[int, PeerId]:
    """Return which shards should move, and to whom, so that a blob's n shards are with the first n hosts of `ranking`.

    `holders` says who has which shard now. A shard whose holder is among the first n stays there; the others go to those of
    them that hold none, best first, the lowest shard first. With fewer than n hosts some shards stay where they are.
    """
    wanted = ranking[:n]
    kept: set[PeerId] = set()
    loose = []
    for index in range(n):
        holder = holders.get(index)
        if holder is not None and holder in wanted and holder not in kept:
            kept.add(holder)
        else:
            loose.append(index)
    return dict(zip(loose, (host for host in wanted if host not in kept), strict=False))
