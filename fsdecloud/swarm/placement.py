"""Which peers hold a blob: rendezvous hashing over the slots of the host map, keyed with the placement secret.

Pure. Every slot gets a pseudo-random weight for the blob, and the slots in descending order of weight name the hosts;
shard i goes to the i-th distinct host. Only a holder of the placement secret can compute it, so nobody else can tell
which peers hold a volume or which two shards belong together. A slot that changes its owner changes nothing else.
Source: Thaler and Ravishankar, "A name-based mapping scheme for rendezvous" (1996).
"""

from __future__ import annotations

import struct
from typing import Final

from blake3 import blake3

from fsdecloud.swarm.hostmap import SLOTS, HostMap
from fsdecloud.types import PeerId

_WEIGHTS: Final = struct.Struct(f">{SLOTS}I")


def rank_hosts(placement_secret: bytes, blob: bytes, host_map: HostMap, epoch: int | None = None) -> tuple[PeerId, ...]:
    """Return all hosts of the epoch's table (the current one by default) in the blob's order, best first.

    Empty when the map has no such table. One extendable-output hash gives the weights of all slots: 256 keyed hashes
    would cost ten times as much.
    """
    table = host_map.table(host_map.epoch if epoch is None else epoch)
    if table is None:
        return ()
    weights = _WEIGHTS.unpack(blake3(blob, key=placement_secret).digest(length=_WEIGHTS.size))
    owners = table.owners
    ranked = dict.fromkeys([owners[slot] for slot in sorted(range(SLOTS), key=weights.__getitem__, reverse=True)])
    hosts = host_map.hosts
    return tuple([hosts[owner] for owner in ranked])
