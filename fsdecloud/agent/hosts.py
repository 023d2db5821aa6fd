"""Which peers this volume uses: keeps the host map, takes peers of the registry into it, and replaces those that are gone.

Called only from the trio thread. A peer joins the host map when it answers a probe, which includes that it admits this
volume's deal key. One that has been away for DEAD_AFTER of watched time gives its slots to a new one, or to all others when
there is none. Each change is a new epoch, so changes are few: peers that come one by one join together once there are enough,
and weights follow the free space only when they are off by half. Not here: moving the shards themselves (`settling`, repair).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Final

import trio

from fsdecloud.agent.journal import META, JournalWriter
from fsdecloud.agent.peers import PeerBook
from fsdecloud.swarm.groups import HostFacts, network_group
from fsdecloud.swarm.hostmap import (
    HOSTS_MAX,
    TABLES_MAX,
    HostMap,
    decode_host_map,
    encode_host_map,
    retire_tables,
)
from fsdecloud.swarm.membership import Absence, choose_candidates, reweighed, with_hosts, without_gone
from fsdecloud.swarm.placement import rank_hosts
from fsdecloud.swarm.policy import Redundancy, choose_redundancy
from fsdecloud.types import PeerId

log = logging.getLogger(__name__)

SETTLE: Final = 3.0
"""How long a new volume waits for more registrations before it begins with fewer than SETTLE_BELOW peers: a network that
was started a moment ago registers its peers over a block or two, and what is stored before that stays less redundant."""

SETTLE_BELOW: Final = 6

JOIN_WINDOW: Final = 2.0
"""Peers that answer within this after the first one join under one epoch."""

RECRUIT_INTERVAL: Final = 60.0
"""Seconds between two tries to reach registered peers that did not answer."""

RECRUIT_FIRST: Final = 3.0
"""The same while there is no host at all."""

ENOUGH: Final = 30
"""Hosts from which on new ones wait for REST: the widest code of `auto` has what it needs."""

REST: Final = 3600.0
"""Seconds between two changes of the host map that nothing presses for."""

WATCH: Final = 60.0
"""Seconds between two looks at who is away."""

DEAD_AFTER: Final = 24 * 3600.0
"""Seconds away, while the volume was mounted and most other hosts answered, after which a host is replaced. A machine that is
set up anew, or moved, is back within a day; n - k hosts would have to go within one before anything were lost."""

REWEIGH: Final = 24 * 3600.0
"""Seconds between two looks at whether the weights still fit."""


def host_facts(book: PeerBook, host_map: HostMap, peer_id: PeerId) -> HostFacts:
    """Return what is known of a peer now; of a host that has no address, or is in no registry, what was."""
    peer = book.peer(peer_id)
    weight = peer.free or book.capacity(peer_id)
    operator = book.operator(peer_id)
    if peer.address is not None and operator is not None:
        return HostFacts(weight, network_group(peer.address.host, peer.address.port), operator)
    known = host_map.labels().get(peer_id, (b"", b""))
    group = known[0] if peer.address is None else network_group(peer.address.host, peer.address.port)
    return HostFacts(weight, group, known[1] if operator is None else operator)


def candidates(secret: bytes, book: PeerBook, host_map: HostMap, room: int) -> list[PeerId]:
    """Return up to `room` registered peers to ask whether they join."""
    if room <= 0 or len(host_map.tables) >= TABLES_MAX:
        return []
    labels = host_map.labels()
    known = [book.peer(peer) for peer in book.offering() if peer not in labels]
    chosen: list[PeerId] = []
    for is_failing in (False, True):  # many dead ones must not keep the others from being asked
        found = {
            p.id: host_facts(book, host_map, p.id) for p in known if p.address and p.score.is_failing is is_failing
        }
        chosen += choose_candidates(secret, found, labels.values(), room - len(chosen))
    return chosen


def missing_hosts(book: PeerBook, members: Sequence[PeerId]) -> set[PeerId]:
    """Return the hosts that are not there. One that refuses is full, or does not want us: what it has can be read."""
    registered = {entry.id for entry in book.registry} or {*members}  # no registry was ever read: nobody left it
    return {peer for peer in members if peer not in registered or not book.peer(peer).is_readable}


def redundancy_of(book: PeerBook, host_map: HostMap, wanted: Redundancy | None) -> tuple[Redundancy, str]:
    """Return the redundancy for new blobs, and a warning. A peer that is down counts: it is expected back."""
    redundancy, warning = choose_redundancy(wanted, count_usable(book, host_map))
    if not host_map.current:  # nothing is stored before there is one: what would be stored badly is no matter yet
        warning = "no peer is known yet: what is written stays on this machine until there is one"
    return redundancy, warning


def count_usable(book: PeerBook, host_map: HostMap) -> int:
    """Return how many hosts new blobs may have. One that is down counts: it is expected back."""
    known = [book.peer(peer) for peer in host_map.current]
    return sum(not (peer.is_refusing or peer.is_leaving or peer.is_distrusted) for peer in known)


def rest_left(host_map: HostMap, wanted: Redundancy | None, changed_at: float, now: float) -> float:
    """Return the seconds for which new peers have to wait: none as long as they are needed."""
    needed = max(ENOUGH, wanted.n if wanted is not None else 0)
    return max(changed_at + REST - now, 0.0) if len(host_map.current) >= needed else 0.0


class Hosts:
    """The host map of the volume."""

    def __init__(
        self, writer: JournalWriter, book: PeerBook, placement_secret: bytes, wanted: Redundancy | None, encoded: bytes
    ) -> None:
        """Take the encoded host map to begin with. Raises MalformedError."""
        self._writer = writer
        self._book = book
        self._secret = placement_secret
        self._wanted = wanted
        self.map: HostMap = decode_host_map(encoded)
        self._rank = lru_cache(maxsize=4096)(self._rank_uncached)
        self._poke = trio.Event()
        self._known = trio.Event()
        self._absence = Absence(writer.journal.get(META, b"absent") or b"")
        self._changed_at = -REST
        self._calm_since = trio.current_time()
        self._next_probe = -1
        if self.map.epoch:
            self._known.set()
        self.on_change: list[Callable[[], None]] = []
        self.on_wanted: list[Callable[[], None]] = []
        """Called when another redundancy was asked for."""

    @property
    def encoded(self) -> bytes:
        """The host map as the manifest has it."""
        return encode_host_map(self.map)

    def ranking(self, blob: bytes, epoch: int) -> tuple[PeerId, ...]:
        """Return the blob's hosts under an epoch, best first; empty when that table is not kept."""
        return self._rank(blob, epoch, self.map.epoch)

    def _rank_uncached(self, blob: bytes, epoch: int, _current: int) -> tuple[PeerId, ...]:
        return rank_hosts(self._secret, blob, self.map, epoch)

    def redundancy(self) -> tuple[Redundancy, str]:
        """Return the redundancy for new blobs, and a warning. A peer that is down counts: it is expected back."""
        return redundancy_of(self._book, self.map, self._wanted)

    @property
    def wanted(self) -> Redundancy | None:
        """The redundancy that was asked for; None for what the number of peers allows."""
        return self._wanted

    def counts(self) -> tuple[int, int]:
        """Return how many hosts could take something now, and how many with those that are expected back."""
        known = [self._book.peer(peer) for peer in self.map.current]
        return sum(peer.is_usable for peer in known), count_usable(self._book, self.map)

    def set_wanted(self, wanted: Redundancy | None) -> None:
        """Have new blobs stored with another redundancy, and what is stored coded anew (`agent.recoding`)."""
        self._wanted = wanted
        self.poke()
        for call in self.on_wanted:
            call()

    async def wait_known(self) -> None:
        """Return once there is at least one host."""
        await self._known.wait()

    def ranking_of_older(self, older: HostMap, blob: bytes, epoch: int) -> tuple[PeerId, ...]:
        """Return the blob's hosts under a host map that was given up."""
        return rank_hosts(self._secret, blob, older, epoch)

    def replace(self, host_map: HostMap) -> None:
        """Take another host map, of an anchor newer than ours."""
        self._calm_since = trio.current_time()
        self._set(host_map)

    @property
    def calm_for(self) -> float:
        """For how many seconds this agent has seen the host map name the same peers."""
        return trio.current_time() - self._calm_since

    def retire(self, keep: Iterable[int]) -> None:
        """Forget the tables of all other epochs but the latest, and look for new peers: there is room again."""
        self._rank.cache_clear()
        self._set(retire_tables(self.map, keep))
        self.poke()

    def _set(self, host_map: HostMap) -> None:
        self.map = host_map
        self._writer.write_nowait([(META, b"host_map", encode_host_map(host_map))])
        if host_map.epoch:
            self._known.set()
        for call in self.on_change:
            call()

    # ---- recruiting ------------------------------------------------------------------------------------------------
    def poke(self) -> None:
        """Look for new peers now: the registry changed."""
        self._poke.set()

    def _candidates(self, room: int) -> list[PeerId]:
        """Return up to `room` registered peers to ask whether they join."""
        return candidates(self._secret, self._book, self.map, room)

    def _newcomers(self) -> list[PeerId]:
        return self._candidates(2 * (HOSTS_MAX - len(self.map.current)))

    def _facts(self, peer_id: PeerId) -> HostFacts:
        return host_facts(self._book, self.map, peer_id)

    def _with_facts(self, hosts: Iterable[PeerId]) -> HostMap:
        """Return the map with exactly these hosts, weighed as they are known now. Raises ValueError."""
        return with_hosts(self.map, {peer: self._facts(peer) for peer in hosts}, self._wanted)

    def _rest(self) -> float:
        """Return the seconds for which new peers have to wait: none as long as they are needed."""
        return rest_left(self.map, self._wanted, self._changed_at, trio.current_time())

    async def run(self) -> None:
        """Recruit and watch until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._recruit)
            nursery.start_soon(self._watch)

    async def _recruit(self) -> None:
        """Take peers in: when the registry changes, and now and then while a candidate does not answer."""
        while True:
            if self._newcomers():
                with trio.move_on_after(RECRUIT_INTERVAL if self.map.epoch else RECRUIT_FIRST):
                    await self._poke.wait()
            else:
                await self._poke.wait()
            await trio.sleep(self._rest())
            self._poke = trio.Event()
            if not self.map.epoch and self._wanted is None and len(self._book.registry) < SETTLE_BELOW:
                with trio.move_on_after(SETTLE):
                    while len(self._book.registry) < SETTLE_BELOW:
                        await self._poke.wait()
                        self._poke = trio.Event()
            joined = await self._reach(self._newcomers())
            present = self.map.current
            joined = [peer for peer in joined if peer not in present][: HOSTS_MAX - len(present)]
            if joined:
                try:
                    self._change(self._with_facts([*present, *joined]))
                except ValueError as exc:
                    log.warning("cannot use %d more peers: %s", len(joined), exc)
                else:
                    log.info("%d peers joined; the host map has %d", len(joined), len(self.map.current))

    def _change(self, host_map: HostMap) -> None:
        if host_map is not self.map:
            self._changed_at = self._calm_since = trio.current_time()
            self._set(host_map)

    # ---- watching --------------------------------------------------------------------------------------------------
    async def _watch(self) -> None:
        """Replace who is gone, and weigh the others again when they have changed much."""
        last = weighed = trio.current_time()
        while True:
            await trio.sleep(WATCH)
            now = trio.current_time()
            members = self.map.current
            # A longer pause was no watching: the machine slept, or was too busy to see anything.
            self._note_absent(members, min(now - last, 2 * WATCH))
            last = now
            gone = [peer for peer in self._absence.gone(DEAD_AFTER) if peer in members]
            if gone:
                await self._replace(gone)
            await self._replace_leaving()
            if now - weighed >= REWEIGH:
                weighed = now
                self._reweigh()
            if members:
                # One that nothing is asked of is not known to fail; this also tells how much room it has.
                self._next_probe = (self._next_probe + 1) % len(members)
                await self._book.probe(members[self._next_probe])

    def _note_absent(self, members: Sequence[PeerId], seconds: float) -> None:
        away = missing_hosts(self._book, members)
        before = self._absence.encode()
        self._absence.watched(members, away, seconds)
        if (after := self._absence.encode()) != before:
            self._writer.write_nowait([(META, b"absent", after or None)])

    async def _replace(self, gone: Sequence[PeerId]) -> None:
        """Give the slots of hosts that are gone to new peers; when there are too few of those, to all hosts that stay."""
        reached = await self._reach(self._candidates(2 * len(gone)))
        facts = {peer: self._facts(peer) for peer in (*self.map.current, *reached)}
        try:
            after = without_gone(self.map, gone, reached, facts, self._wanted)
        except ValueError as exc:
            log.warning("cannot replace %d peers that are gone: %s", len(gone), exc)
            return
        if after is not self.map:
            came = len(set(after.current) - set(self.map.current))
            self._change(after)
            self.poke()  # there may be room, also for one that comes back
            log.warning("%d peers are gone or leave; %d new ones took their places", len(gone), came)

    async def _replace_leaving(self) -> None:
        """Give the slots of hosts that leave for good to others, if those that stay are enough for the redundancy."""
        leaving = [peer for peer in self.map.current if self._book.peer(peer).leaves]
        if leaving and len(self.map.current) - len(leaving) >= self.redundancy()[0].n:
            await self._replace(leaving)

    def _reweigh(self) -> None:
        """Weigh all hosts again, and note new networks, when that is worth an epoch."""
        facts = {peer: self._facts(peer) for peer in self.map.current}
        try:
            fitting = reweighed(self.map, facts, self._wanted)
        except ValueError as exc:
            log.warning("cannot weigh the hosts again: %s", exc)
            return
        if fitting is not self.map:
            log.info("the hosts are weighed again")
            self._change(fitting)

    async def _reach(self, candidates: list[PeerId]) -> list[PeerId]:
        """Probe the candidates at once; return those that accept, in registry order."""
        reached: set[PeerId] = set()

        async def probe(peer: PeerId, scope: trio.CancelScope) -> None:
            if await self._book.probe(peer):
                reached.add(peer)
                scope.deadline = min(scope.deadline, trio.current_time() + JOIN_WINDOW)

        async with trio.open_nursery() as nursery:
            for peer in candidates:
                nursery.start_soon(probe, peer, nursery.cancel_scope)
        return [peer for peer in candidates if peer in reached]
