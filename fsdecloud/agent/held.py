"""Blobs with a shard for which a peer's lane has no room yet, and whose shard goes to which peer.

Called only from the trio thread; nothing here waits.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from fsdecloud.agent.blob import Blob
from fsdecloud.agent.erasure import shard_size
from fsdecloud.agent.hosts import Hosts
from fsdecloud.agent.peers import PeerBook
from fsdecloud.swarm.placement import choose_host
from fsdecloud.types import PeerId


class Held:
    """For each peer the blobs that wait for room in its lane, oldest first."""

    def __init__(self, is_wanted: Callable[[Blob], bool]) -> None:
        """`is_wanted` says whether a blob still has shards to send."""
        self._is_wanted = is_wanted
        self._heaps: dict[PeerId, list[tuple[tuple[bool, int], Blob]]] = {}
        self._members: dict[PeerId, set[Blob]] = {}

    def __bool__(self) -> bool:
        return bool(self._heaps)

    def add(self, peer: PeerId, blob: Blob) -> None:
        """Hold a blob back."""
        members = self._members.setdefault(peer, set())
        if blob not in members:
            members.add(blob)
            heapq.heappush(self._heaps.setdefault(peer, []), (blob.rank, blob))

    def is_behind(self, peer: PeerId, blob: Blob) -> bool:
        """Whether an older blob waits for the same lane: it goes first."""
        while (heap := self._heaps.get(peer)) and not self._is_wanted(heap[0][1]):
            self._pop(peer)
        return heap is not None and heap[0][0] < blob.rank

    def take(self, peer: PeerId, room: float) -> list[Blob]:
        """Return the oldest blobs whose shards fit into `room` bytes together, at least one."""
        found: list[Blob] = []
        while peer in self._heaps and (room > 0 or not found):
            blob = self._pop(peer)
            if self._is_wanted(blob):
                room -= shard_size(blob.k, blob.length)
                found.append(blob)
        return found

    def oldest(self, peer: PeerId, count: int) -> list[Blob]:
        """Return about the oldest blobs that wait for a peer."""
        return [blob for _, blob in self._heaps.get(peer, [])[:count] if self._is_wanted(blob)]

    def _pop(self, peer: PeerId) -> Blob:
        blob = heapq.heappop(self._heaps[peer])[1]
        self._members[peer].discard(blob)
        if not self._heaps[peer]:
            del self._heaps[peer], self._members[peer]
        return blob


def choose_peer(blob: Blob, index: int, hosts: Hosts, book: PeerBook) -> PeerId | None:
    """Return the peer for a shard: its own host, else the first other one past the n-th; None when none is usable.

    A host that had no room for too long comes after the others.
    """
    ranking = hosts.ranking(blob.id, blob.epoch)
    newer = () if blob.epoch == hosts.map.epoch else hosts.ranking(blob.id, hosts.map.epoch)
    taken = {*blob.holders.values(), *blob.sending.values(), *blob.avoid}

    def is_free(peer: PeerId) -> bool:
        return peer not in taken and book.peer(peer).is_usable

    found = choose_host(index, blob.n, ranking, newer, lambda peer: peer not in blob.slow and is_free(peer))
    if found is None and index < len(ranking) and is_free(ranking[index]):
        return ranking[index]
    return found
