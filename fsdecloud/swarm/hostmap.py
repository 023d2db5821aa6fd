"""Which peers a volume uses: a table of fixed slots, each owned by a peer, under an epoch number.

Pure. A peer's weight is how many slots it has. A change gives a new table under the next epoch and moves as few slots
as it can; earlier tables are kept, because blobs stored under them stay where they are until somebody moves them.
Not here: which slots a blob uses (`placement`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final

import msgspec

from fsdecloud import codec
from fsdecloud.errors import MalformedError
from fsdecloud.types import PeerId

SLOTS: Final = 256
"""Slots of a table: shares are even to a few per cent for up to HOSTS_MAX peers, and a table is 256 bytes."""

HOSTS_MAX: Final = 64
"""Peers in use by one volume: twice what the widest default code needs."""

HOSTS_EVER_MAX: Final = 256
"""Peers in all tables together: an owner is one byte."""

TABLES_MAX: Final = 64
"""Epochs whose tables are kept, 16 KiB in all."""


class Table(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The owners of the slots in one epoch: byte i is the index into `HostMap.hosts` of slot i's owner."""

    epoch: int
    owners: bytes


class HostMap(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """All hosts that any table names, and the tables, latest first. Empty before the first peer is known."""

    version: int = 1
    hosts: tuple[PeerId, ...] = ()
    tables: tuple[Table, ...] = ()

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


def encode_host_map(host_map: HostMap) -> bytes:
    """Return the canonical encoding, b"" for the empty map."""
    return codec.encode(host_map) if host_map.tables else b""


def decode_host_map(data: bytes) -> HostMap:
    """Return a validated host map; b"" is the empty one. Raises MalformedError."""
    if not data:
        return HostMap()
    host_map = codec.decode(data, HostMap)
    hosts, tables = host_map.hosts, host_map.tables
    if host_map.version != 1:
        raise MalformedError(f"a host map of version {host_map.version} is not readable here")
    if not (1 <= len(hosts) <= HOSTS_EVER_MAX and len(set(hosts)) == len(hosts) and all(len(h) == 32 for h in hosts)):
        raise MalformedError("a host map whose hosts are not distinct peer ids")
    epochs = [table.epoch for table in tables]
    if not 1 <= len(tables) <= TABLES_MAX or epochs[-1] < 1 or any(a <= b for a, b in pairwise(epochs)):
        raise MalformedError("a host map whose epochs do not descend")
    if any(len(table.owners) != SLOTS or max(table.owners) >= len(hosts) for table in tables):
        raise MalformedError("a host map with a slot that no host owns")
    return host_map


def add_hosts(host_map: HostMap, peers: Sequence[PeerId]) -> HostMap:
    """Return the map with `peers` taking an even share of the slots each, under the next epoch.

    Peers that are in the current table already change nothing, and those past HOSTS_MAX are left out. Only slots that
    go to a new peer change their owner.
    """
    present = host_map.current
    room = HOSTS_MAX - len(present)
    new = [peer for peer in dict.fromkeys(peers) if peer not in present][: max(room, 0)]
    if not new:
        return host_map
    hosts = _with_hosts(host_map.hosts, new)
    joined = [hosts.index(peer) for peer in new]
    if not present:
        return HostMap(1, hosts, (Table(1, bytes(joined[slot % len(joined)] for slot in range(SLOTS))),))
    owners = bytearray(host_map.tables[0].owners)
    share = SLOTS // (len(present) + len(new))
    counts = Counter(owners)
    for index in joined:
        for _ in range(share):
            # Take from whoever has most (the lowest index among equals), its last slot: deterministic, and even.
            rich = min(counts, key=lambda owner: (-counts[owner], owner))
            slot = owners.rindex(rich)
            owners[slot] = index
            counts[rich] -= 1
        counts[index] = 0  # never taken from in this round
    return _next_epoch(host_map, hosts, bytes(owners))


def extends(newer: HostMap, older: HostMap) -> bool:
    """Say whether every table of `older` means the same under `newer`: rows made with it stay right."""
    for table in older.tables:
        same = newer.table(table.epoch)
        if same is None:
            return False
        if any(newer.hosts[a] != older.hosts[b] for a, b in zip(same.owners, table.owners, strict=True)):
            return False
    return True


def replace_host(host_map: HostMap, old: PeerId, new: PeerId) -> HostMap:
    """Return the map in which `new` owns the slots of `old`, so that only the shards of `old` move.

    Raises ValueError unless `old` is in the current table and `new` is not.
    """
    present = host_map.current
    if old not in present or new in present:
        raise ValueError("a replacement takes the place of a present host, and is a new one")
    hosts = _with_hosts(host_map.hosts, (new,))
    before, after = host_map.hosts.index(old), hosts.index(new)
    owners = bytes(after if owner == before else owner for owner in host_map.tables[0].owners)
    return _next_epoch(host_map, hosts, owners)


def _with_hosts(hosts: tuple[PeerId, ...], new: Iterable[PeerId]) -> tuple[PeerId, ...]:
    grown = tuple(dict.fromkeys((*hosts, *new)))
    if len(grown) > HOSTS_EVER_MAX:
        raise ValueError(f"a host map names at most {HOSTS_EVER_MAX} peers")
    return grown


def _next_epoch(host_map: HostMap, hosts: tuple[PeerId, ...], owners: bytes) -> HostMap:
    if len(host_map.tables) >= TABLES_MAX:
        raise ValueError(f"a host map keeps at most {TABLES_MAX} tables")
    return HostMap(1, hosts, (Table(host_map.epoch + 1, owners), *host_map.tables))
