"""Which peers this volume uses: keeps the host map, and takes peers of the registry into it.

Called only from the trio thread. A peer joins the host map when it answers a probe, which includes that it admits this
volume's deal key. Not here: replacing a host that is gone for good (that is repair).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Final

import trio

from fsdecloud.agent.journal import META, JournalWriter
from fsdecloud.agent.peers import PeerBook
from fsdecloud.swarm.hostmap import HOSTS_MAX, TABLES_MAX, HostMap, add_hosts, decode_host_map, encode_host_map
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
        if self.map.epoch:
            self._known.set()
        self.on_change: list[Callable[[], None]] = []

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
        usable = sum(not self._book.peer(peer).is_refusing for peer in self.map.current)
        return choose_redundancy(self._wanted, usable)

    async def wait_known(self) -> None:
        """Return once there is at least one host."""
        await self._known.wait()

    def ranking_of_older(self, older: HostMap, blob: bytes, epoch: int) -> tuple[PeerId, ...]:
        """Return the blob's hosts under a host map that was given up."""
        return rank_hosts(self._secret, blob, older, epoch)

    def replace(self, host_map: HostMap) -> None:
        """Take another host map, of an anchor newer than ours."""
        self._set(host_map)

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

    def _candidates(self) -> list[PeerId]:
        present = set(self.map.current)
        room = HOSTS_MAX - len(present)
        if room <= 0 or len(self.map.tables) >= TABLES_MAX:
            return []
        found = [entry.id for entry in self._book.registry if entry.id not in present]
        return [peer for peer in found if self._book.peer(peer).address is not None][: 2 * room]

    async def run(self) -> None:
        """Recruit until cancelled: when the registry changes, and now and then while a candidate does not answer."""
        while True:
            if self._candidates():
                with trio.move_on_after(RECRUIT_INTERVAL if self.map.epoch else RECRUIT_FIRST):
                    await self._poke.wait()
            else:
                await self._poke.wait()
            self._poke = trio.Event()
            if not self.map.epoch and self._wanted is None and len(self._book.registry) < SETTLE_BELOW:
                with trio.move_on_after(SETTLE):
                    while len(self._book.registry) < SETTLE_BELOW:
                        await self._poke.wait()
                        self._poke = trio.Event()
            joined = await self._reach(self._candidates())
            if joined:
                try:
                    self._set(add_hosts(self.map, joined))
                except ValueError as exc:
                    log.warning("cannot use %d more peers: %s", len(joined), exc)
                else:
                    log.info("%d peers joined; the host map has %d", len(joined), len(self.map.current))

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
