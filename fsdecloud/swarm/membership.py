"""Which peers a volume should use: whom to take in, who is gone for good, and what host map follows.

Pure. Called from one thread; times in seconds by a monotonic clock. Not here: slots and ranking (`hostmap`, `placement`),
asking the peers (`agent.hosts`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Final

from blake3 import blake3

from fsdecloud import codec
from fsdecloud.errors import MalformedError
from fsdecloud.swarm.groups import HostFacts
from fsdecloud.swarm.hostmap import HostMap, replace_hosts, set_hosts
from fsdecloud.swarm.policy import Redundancy, choose_redundancy
from fsdecloud.types import PeerId

GROUP_HOSTS: Final = 8
"""Most hosts of one network group or operator in a map: who registers a thousand peers first must leave room for others."""

_ORDER: Final = b"candidate"


def choose_candidates(
    secret: bytes, candidates: Mapping[PeerId, HostFacts], present: Iterable[tuple[bytes, bytes]], room: int
) -> list[PeerId]:
    """Return up to `room` of the candidates to ask, in the order in which they were given.

    `present` is (group, operator) of each host there is. When there are too many candidates, those come first whose groups
    have the fewest hosts, else an order that only the holder of the secret knows: nobody can register so as to be chosen.
    """
    taken: Counter[bytes] = Counter(label for pair in present for label in pair if label)
    chosen: list[PeerId] = []
    left = sorted(candidates, key=lambda peer: blake3(_ORDER + peer, key=secret).digest())
    limit = 1
    while left and len(chosen) < room and limit <= GROUP_HOSTS:
        later = []
        for peer in left:
            labels = [label for label in (candidates[peer].group, candidates[peer].operator) if label]
            if len(chosen) < room and all(taken[label] < limit for label in labels):
                taken.update(labels)
                chosen.append(peer)
            else:
                later.append(peer)
        left, limit = later, limit + 1
    wanted = set(chosen)
    return [peer for peer in candidates if peer in wanted]


class Absence:
    """For how long each host has been away while the volume was watched.

    Only time that was watched counts, so a machine that slept, or a volume that was not mounted, finds nobody gone at once.
    While most hosts are away it is this machine's network that fails, and nothing counts.
    """

    def __init__(self, encoded: bytes = b"") -> None:
        """Go on from what `encode` gave. Raises MalformedError."""
        rows = codec.decode(encoded, tuple[tuple[PeerId, int], ...]) if encoded else ()
        if any(len(peer) != 32 or seconds < 0 for peer, seconds in rows):
            raise MalformedError("absent hosts that are none")
        self._seconds: dict[PeerId, float] = {peer: float(seconds) for peer, seconds in rows}

    def encode(self) -> bytes:
        """Return what is to be kept over a restart, b"" for nothing."""
        rows = tuple((peer, int(seconds)) for peer, seconds in sorted(self._seconds.items()))
        return codec.encode(rows) if rows else b""

    def watched(self, members: Iterable[PeerId], away: Set[PeerId], seconds: float) -> None:
        """Note that for the last `seconds` the members in `away` were away, and the others were there."""
        members = list(members)
        if 2 * sum(peer in away for peer in members) > len(members):
            return
        self._seconds = {peer: self._seconds.get(peer, 0.0) + seconds for peer in members if peer in away}

    def gone(self, after: float) -> list[PeerId]:
        """Return the hosts that were away for `after` seconds or more, the longest first."""
        found = [peer for peer, seconds in self._seconds.items() if seconds >= after]
        return sorted(found, key=lambda peer: (-self._seconds[peer], peer))


def is_out_of_shape(now: Mapping[PeerId, int], wanted: Mapping[PeerId, int]) -> bool:
    """Say whether some host has so many more or fewer slots than it should that they are worth moving: by half."""
    return any(
        2 * max(count, wanted[peer]) >= 3 * min(count, wanted[peer]) + 2
        for peer, count in now.items()
        if peer in wanted
    )


def with_hosts(host_map: HostMap, facts: Mapping[PeerId, HostFacts], wanted: Redundancy | None) -> HostMap:
    """Return the map with exactly these hosts, weighed for the redundancy that they allow. Raises ValueError: `set_hosts`."""
    redundancy, _ = choose_redundancy(wanted, len(facts))
    return set_hosts(host_map, facts, redundancy.n)


def without_gone(
    host_map: HostMap,
    gone: Sequence[PeerId],
    reached: Sequence[PeerId],
    facts: Mapping[PeerId, HostFacts],
    wanted: Redundancy | None,
) -> HostMap:
    """Return the map after hosts are `gone`: their slots go to peers that were `reached`, to all hosts that stay when there is
    none. The same map when nothing can be done.

    `facts` are those of the hosts and of who was reached. Raises ValueError when the map has no room.
    """
    present = host_map.current
    gone = [peer for peer in gone if peer in present]
    successors = {
        old: (new, facts[new])
        for old, new in zip(gone, (peer for peer in reached if peer not in present), strict=False)
    }
    if successors:
        return replace_hosts(host_map, successors)
    if not gone or len(gone) == len(present):
        return host_map
    return with_hosts(host_map, {peer: facts[peer] for peer in present if peer not in gone}, wanted)


def reweighed(host_map: HostMap, facts: Mapping[PeerId, HostFacts], wanted: Redundancy | None) -> HostMap:
    """Return the map with its hosts weighed again, the same one unless that is worth an epoch: slots are off by half,
    or a host is in another network. Raises ValueError when the map has no room."""
    members = host_map.current
    if not members:
        return host_map
    fitting = with_hosts(host_map, {peer: facts[peer] for peer in members}, wanted)
    if fitting.labels() != host_map.labels() or is_out_of_shape(host_map.slots(), fitting.slots()):
        return fitting
    return host_map
