"""Which peers a volume uses: a table of fixed slots, each owned by a peer, under an epoch number.

Pure. A peer's weight is how many slots it has. A change gives a new table under the next epoch and moves as few slots
as it can; earlier tables are kept, because blobs stored under them stay where they are until somebody moves them. With each
table stand the network group and the operator of its peers as they were then: the ranking of a blob follows from the map
alone, also when a peer has moved to another network since. Not here: which slots a blob uses (`placement`).

*Weights.* A blob has at most one shard with a peer, and with a group while there are enough, so a group's load is at most one
of n shards, and the chance that n draws without return hit one with twice the slots is less than twice as large. `slot_counts`
reckons backwards: a group that is to have the share s of all shards gets -ln(1 - n s) in slots (the rate at which a
memoryless clock has rung by the time when n of them have, with probability n s), and its peers divide them by weight.

*Formats.* Version 1 has 256 slots and no groups; it is read, and written again as version 2.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Final

import msgspec

from fsdecloud import codec
from fsdecloud.errors import MalformedError
from fsdecloud.swarm.groups import LABEL_MAX, HostFacts
from fsdecloud.types import PeerId

SLOTS: Final = 512
"""Slots of a new map: shares are even to a few per cent for up to HOSTS_MAX peers, and a table is half a KiB."""

SLOTS_V1: Final = 256
"""Slots of a map that began under version 1. It keeps them: a wider table would move nearly everything."""

HOSTS_MAX: Final = 64
"""Peers in use by one volume: twice what the widest default code needs."""

HOSTS_EVER_MAX: Final = 256
"""Peers in all tables together: an owner is one byte."""

TABLES_MAX: Final = 64
"""Epochs whose tables are kept, 32 KiB in all."""

_LABELS_MAX: Final = 255
"""Groups, and operators, in all tables together; past that a peer counts as having none."""

WEIGHT_SPAN: Final = 2
"""A peer's weight is between the median over this and the median times this: who claims to have a thousand times the space of
the others must not get much more than they, and one that is nearly full is still asked for what it has."""

_CHANCE_MAX: Final = 0.8
"""Largest share of all blobs of which a group gets a shard because of its weight: nearer to 1 the slots go to infinity."""


class Table(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The owners of the slots in one epoch: byte i is the index into `HostMap.hosts` of slot i's owner.

    `groups` and `operators` have one byte for each distinct owner, by ascending index: 0 for none, else one more than the
    index into `HostMap.groups` or `HostMap.operators`. b"" is none for all.
    """

    epoch: int
    owners: bytes
    groups: bytes = b""
    operators: bytes = b""


class HostMap(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """All hosts that any table names, and the tables, latest first. Empty before the first peer is known."""

    version: int = 2
    hosts: tuple[PeerId, ...] = ()
    tables: tuple[Table, ...] = ()
    groups: tuple[bytes, ...] = ()
    operators: tuple[bytes, ...] = ()

    @property
    def epoch(self) -> int:
        """The current epoch; 0 while the map is empty."""
        return self.tables[0].epoch if self.tables else 0

    @property
    def current(self) -> tuple[PeerId, ...]:
        """The peers of the current table, in the order in which they joined."""
        if not self.tables:
            return ()
        return tuple(self.hosts[i] for i in sorted(set(self.tables[0].owners)))

    def table(self, epoch: int) -> Table | None:
        """Return the table of an epoch, None if it is not kept."""
        return next((table for table in self.tables if table.epoch == epoch), None)

    def slots(self) -> dict[PeerId, int]:
        """Return how many slots each peer of the current table has."""
        counts = Counter(self.tables[0].owners) if self.tables else Counter[int]()
        return {self.hosts[index]: counts[index] for index in sorted(counts)}

    def labels(self) -> dict[PeerId, tuple[bytes, bytes]]:
        """Return group and operator (b"" for none) of each peer of the current table."""
        return _labels_of(self, self.tables[0]) if self.tables else {}


class _TableV1(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    epoch: int
    owners: bytes


class _HostMapV1(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    version: int
    hosts: tuple[PeerId, ...]
    tables: tuple[_TableV1, ...]


_V1_FIRST: Final = 0x93
"""First byte of an array of three: version 2 has five."""


# ---- as bytes --------------------------------------------------------------------------------------------------------
def encode_host_map(host_map: HostMap) -> bytes:
    """Return the canonical encoding, b"" for the empty map."""
    return codec.encode(host_map) if host_map.tables else b""


def decode_host_map(data: bytes) -> HostMap:
    """Return a validated host map of version 1 or 2; b"" is the empty one. Raises MalformedError."""
    if not data:
        return HostMap()
    if data[0] == _V1_FIRST:
        old = codec.decode(data, _HostMapV1)
        _check_version(old.version, 1)
        host_map = HostMap(2, old.hosts, tuple(Table(table.epoch, table.owners) for table in old.tables))
    else:
        host_map = codec.decode(data, HostMap)
        _check_version(host_map.version, 2)
    hosts, tables = host_map.hosts, host_map.tables
    if not (1 <= len(hosts) <= HOSTS_EVER_MAX and len(set(hosts)) == len(hosts) and all(len(h) == 32 for h in hosts)):
        raise MalformedError("a host map whose hosts are not distinct peer ids")
    for labels in (host_map.groups, host_map.operators):
        if len(labels) > _LABELS_MAX or len(set(labels)) != len(labels):
            raise MalformedError("a host map whose groups or operators are not distinct")
        if not all(1 <= len(label) <= LABEL_MAX for label in labels):
            raise MalformedError("a host map with a bad group or operator")
    epochs = [table.epoch for table in tables]
    if not 1 <= len(tables) <= TABLES_MAX or epochs[-1] < 1 or any(a <= b for a, b in pairwise(epochs)):
        raise MalformedError("a host map whose epochs do not descend")
    for table in tables:
        if len(table.owners) not in (SLOTS_V1, SLOTS) or max(table.owners) >= len(hosts):
            raise MalformedError("a host map with a slot that no host owns")
        count = len(set(table.owners))
        for marks, labels in ((table.groups, host_map.groups), (table.operators, host_map.operators)):
            if marks and (len(marks) != count or max(marks) > len(labels)):
                raise MalformedError("a host map with a group or operator that it does not name")
    return host_map


def _check_version(version: int, wanted: int) -> None:
    if version != wanted:
        raise MalformedError(f"a host map of version {version} is not readable here")


# ---- changes ---------------------------------------------------------------------------------------------------------
def slot_counts(facts: Mapping[PeerId, HostFacts], n: int, slots: int = SLOTS) -> dict[PeerId, int]:
    """Return how many of `slots` slots each of these peers should have for blobs of `n` shards; at least one each.

    The sum is `slots`. Raises ValueError for no peers or more than HOSTS_MAX.
    """
    if not 0 < len(facts) <= HOSTS_MAX:
        raise ValueError(f"a table has 1 to {HOSTS_MAX} peers, not {len(facts)}")
    known = sorted(fact.weight for fact in facts.values() if fact.weight > 0)
    median = known[len(known) // 2] if known else 1
    weights = {
        peer: min(max(fact.weight or median, median / WEIGHT_SPAN), median * WEIGHT_SPAN)
        for peer, fact in facts.items()
    }
    units = {peer: fact.group or bytes(peer) for peer, fact in facts.items()}
    totals: dict[bytes, float] = {}
    for peer, weight in weights.items():
        totals[units[peer]] = totals.get(units[peer], 0.0) + weight
    rates = {unit: -math.log1p(-chance) for unit, chance in _chances(totals, n).items()}
    wanted = {peer: rates[units[peer]] * weight / totals[units[peer]] for peer, weight in weights.items()}
    return _whole(wanted, slots)


def _chances(totals: Mapping[bytes, float], n: int) -> dict[bytes, float]:
    """Return for each group the chance that it gets a shard of a blob: n times its share, cut at _CHANCE_MAX."""
    chances: dict[bytes, float] = {}
    left, weight = min(float(n), _CHANCE_MAX * len(totals)), sum(totals.values())
    for unit, total in sorted(totals.items(), key=lambda item: (-item[1], item[0])):
        chances[unit] = min(left * total / weight, _CHANCE_MAX)
        left, weight = left - chances[unit], weight - total
    return chances


def _whole(wanted: Mapping[PeerId, float], slots: int) -> dict[PeerId, int]:
    """Return whole numbers, at least 1 each, whose sum is `slots` and that are nearest to the proportions of `wanted`."""
    scale = (slots - len(wanted)) / sum(wanted.values())
    exact = {peer: 1 + value * scale for peer, value in wanted.items()}
    mean = slots / sum(wanted.values())
    if all(value * mean >= 1 for value in wanted.values()):  # nobody needs the one that each is given first
        exact = {peer: value * mean for peer, value in wanted.items()}
    counts = {peer: int(value) for peer, value in exact.items()}
    rest = slots - sum(counts.values())
    for peer in sorted(exact, key=lambda peer: (counts[peer] - exact[peer], peer))[:rest]:
        counts[peer] += 1
    return counts


def set_hosts(host_map: HostMap, facts: Mapping[PeerId, HostFacts], n: int) -> HostMap:
    """Return the map whose current table has exactly these peers, with the slots that `slot_counts` gives them.

    As few slots as possible change their owner. The map itself when nothing changes. Raises ValueError when the map has
    no room: `retire_tables`.
    """
    width = len(host_map.tables[0].owners) if host_map.tables else SLOTS
    targets = slot_counts(facts, n, width)
    labels = {peer: (fact.group, fact.operator) for peer, fact in facts.items()}
    if targets == host_map.slots() and labels == host_map.labels():
        return host_map
    hosts = _with_hosts(host_map.hosts, facts)
    index = {peer: hosts.index(peer) for peer in facts}
    counts = {index[peer]: count for peer, count in targets.items()}
    if host_map.tables:
        owners = _move(host_map.tables[0].owners, counts)
    else:
        owners = _interleave(counts)
    return _next_epoch(host_map, hosts, owners, labels)


def _move(owners: bytes, targets: Mapping[int, int]) -> bytes:
    """Return the owners after the fewest changes that give each its number of slots; the last slots of an owner go first."""
    moved = bytearray(owners)
    excess = Counter(owners)
    excess.subtract(targets)
    needs = _interleave({owner: -count for owner, count in excess.items() if count < 0})
    taken = iter(needs)
    for slot in range(len(moved) - 1, -1, -1):
        if excess[moved[slot]] > 0:
            excess[moved[slot]] -= 1
            moved[slot] = next(taken)
    return bytes(moved)


def _interleave(counts: Mapping[int, int]) -> bytes:
    """Return each owner as often as `counts` says, one after the other as long as they last."""
    rounds = max(counts.values(), default=0)
    return bytes(owner for turn in range(rounds) for owner in sorted(counts) if counts[owner] > turn)


def add_hosts(host_map: HostMap, peers: Sequence[PeerId]) -> HostMap:
    """Return the map with `peers` taking an even share of the slots each, under the next epoch.

    Peers that are in the current table already change nothing, and those past HOSTS_MAX are left out. Only slots that
    go to a new peer change their owner. Nothing is known of the new ones' groups: see `set_hosts`.
    """
    present = host_map.slots()
    room = HOSTS_MAX - len(present)
    new = [peer for peer in dict.fromkeys(peers) if peer not in present][: max(room, 0)]
    if not new:
        return host_map
    hosts = _with_hosts(host_map.hosts, new)
    joined = [hosts.index(peer) for peer in new]
    if not present:
        owners = bytes(joined[slot % len(joined)] for slot in range(SLOTS))
        return _next_epoch(host_map, hosts, owners, {})
    width = len(host_map.tables[0].owners)
    targets = {hosts.index(peer): count for peer, count in present.items()}
    share = width // (len(present) + len(new))
    for _ in range(share * len(new)):
        # Take from whoever has most (the lowest index among equals): deterministic, and even.
        rich = min(targets, key=lambda owner: (-targets[owner], owner))
        targets[rich] -= 1
    owners = _move(host_map.tables[0].owners, targets | dict.fromkeys(joined, share))
    return _next_epoch(host_map, hosts, owners, host_map.labels())


def replace_host(host_map: HostMap, old: PeerId, new: PeerId, facts: HostFacts | None = None) -> HostMap:
    """Return the map in which `new` owns the slots of `old`, so that only the shards of `old` move.

    Raises ValueError unless `old` is in the current table and `new` is not.
    """
    return replace_hosts(host_map, {old: (new, facts or HostFacts())})


def replace_hosts(host_map: HostMap, replacements: Mapping[PeerId, tuple[PeerId, HostFacts]]) -> HostMap:
    """Return the map in which each new peer owns the slots of the old one it stands for, all under one epoch.

    As long as the new one is in no group of another peer, each shard of the old one moves to the new one, and nothing else
    does. Raises ValueError unless all old ones are in the current table and the new ones are distinct and not in it.
    """
    present = host_map.current
    newcomers = [new for new, _ in replacements.values()]
    if (
        not replacements
        or any(old not in present for old in replacements)
        or any(new in present for new in newcomers)
        or len(set(newcomers)) < len(newcomers)
    ):
        raise ValueError("a replacement takes the place of a present host, and is a new one")
    hosts = _with_hosts(host_map.hosts, newcomers)
    after = {hosts.index(old): hosts.index(new) for old, (new, _) in replacements.items()}
    owners = bytes(after.get(owner, owner) for owner in host_map.tables[0].owners)
    labels = host_map.labels() | {new: (facts.group, facts.operator) for new, facts in replacements.values()}
    return _next_epoch(host_map, hosts, owners, labels)


def extends(newer: HostMap, older: HostMap) -> bool:
    """Say whether every table of `older` means the same under `newer`: rows made with it stay right."""
    for table in older.tables:
        same = newer.table(table.epoch)
        if same is None or len(same.owners) != len(table.owners):
            return False
        if any(newer.hosts[a] != older.hosts[b] for a, b in zip(same.owners, table.owners, strict=True)):
            return False
        if _labels_of(newer, same) != _labels_of(older, table):
            return False
    return True


def retire_tables(host_map: HostMap, keep: Iterable[int]) -> HostMap:
    """Return the map without the tables of epochs that are not in `keep`, and without what only they named.

    The current table stays. Whoever calls this has seen to it that no row needs the others.
    """
    wanted = {host_map.epoch, *keep}
    return _rebuilt(host_map, [table for table in host_map.tables if table.epoch in wanted])


def _labels_of(host_map: HostMap, table: Table) -> dict[PeerId, tuple[bytes, bytes]]:
    owners = sorted(set(table.owners))
    groups = [(b"", *host_map.groups)[mark] for mark in table.groups or bytes(len(owners))]
    operators = [(b"", *host_map.operators)[mark] for mark in table.operators or bytes(len(owners))]
    return {
        host_map.hosts[owner]: (group, operator)
        for owner, group, operator in zip(owners, groups, operators, strict=True)
    }


def _with_hosts(hosts: tuple[PeerId, ...], new: Iterable[PeerId]) -> tuple[PeerId, ...]:
    grown = tuple(dict.fromkeys((*hosts, *new)))
    if len(grown) > HOSTS_EVER_MAX:
        raise ValueError(f"a host map names at most {HOSTS_EVER_MAX} peers")
    return grown


def _with_labels(labels: tuple[bytes, ...], wanted: Iterable[bytes]) -> tuple[tuple[bytes, ...], bytes]:
    """Return the labels with those of `wanted` that they lack, and the mark of each one wanted."""
    wanted = list(wanted)
    grown = tuple(dict.fromkeys((*labels, *filter(None, wanted))))[:_LABELS_MAX]
    marks = bytes(grown.index(label) + 1 if label in grown else 0 for label in wanted)
    return grown, marks if any(marks) else b""


def _next_epoch(
    host_map: HostMap, hosts: tuple[PeerId, ...], owners: bytes, labels: Mapping[PeerId, tuple[bytes, bytes]]
) -> HostMap:
    if len(host_map.tables) >= TABLES_MAX:
        raise ValueError(f"a host map keeps at most {TABLES_MAX} tables")
    pairs = [labels.get(hosts[owner], (b"", b"")) for owner in sorted(set(owners))]
    groups, group_marks = _with_labels(host_map.groups, (group for group, _ in pairs))
    operators, operator_marks = _with_labels(host_map.operators, (operator for _, operator in pairs))
    table = Table(host_map.epoch + 1, owners, group_marks, operator_marks)
    return HostMap(2, hosts, (table, *host_map.tables), groups, operators)


def _rebuilt(host_map: HostMap, tables: Sequence[Table]) -> HostMap:
    """Return a map of these tables that names nothing but what they need, in the same order."""
    used = sorted({owner for table in tables for owner in table.owners})
    hosts = tuple(host_map.hosts[owner] for owner in used)
    place = {owner: index for index, owner in enumerate(used)}
    groups: tuple[bytes, ...] = ()
    operators: tuple[bytes, ...] = ()
    rebuilt = []
    for table in tables:
        labels = _labels_of(host_map, table).values()
        groups, group_marks = _with_labels(groups, (group for group, _ in labels))
        operators, operator_marks = _with_labels(operators, (operator for _, operator in labels))
        owners = bytes(place[owner] for owner in table.owners)
        rebuilt.append(Table(table.epoch, owners, group_marks, operator_marks))
    return HostMap(2, hosts, tuple(rebuilt), groups, operators)
