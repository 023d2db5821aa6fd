"""How a storage peer tells others of those it knows (what is said: `wire.announcements`; what is kept: `swarm.addressbook`;
how it gets to know them itself: `net.discovery`).

One address is enough to find the network, and a peer that moved is known under its new address by all whom it knew. Only what
was registered in the ledger is tested, and only what was tested and is registered is told to others. Counts and rates are
bounded. Called only from the trio thread.
"""

from __future__ import annotations

import random
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import trio

from fsdecloud.net.address import Address, client_group
from fsdecloud.net.discovery import Connections, Seeker
from fsdecloud.peerd.directory import Directory
from fsdecloud.swarm.bucket import TokenBucket
from fsdecloud.types import PeerId
from fsdecloud.wire import peer as wire
from fsdecloud.wire.announcements import sign_announcement

RATE: Final = 0.2
BURST: Final = 64.0
"""Questions a second that one address (of IPv6 a /64) may ask, and how many at once after a silence."""

ASKERS_KEPT: Final = 4096


class Exchange:
    """The acquaintances of one peer."""

    def __init__(
        self,
        *,
        pool: Connections,
        directory: Directory,
        path: Path,
        network: bytes,
        peer: PeerId,
        bootstrap: Sequence[Address] = (),
    ) -> None:
        """`path` is the file of the book."""
        self.seeker = Seeker(pool=pool, places=directory, path=path, network=network, peer=peer, bootstrap=bootstrap)
        self._directory = directory
        self._network = network
        self._askers: OrderedDict[str, TokenBucket] = OrderedDict()
        self.book = directory.book = self.seeker.book
        self.answered_questions = 0

    def announce(self, seed: bytes, url: str) -> None:
        """Be found at `url` from now on."""
        self.seeker.own = sign_announcement(seed, network=self._network, url=url, sequence=int(time.time()))

    async def run(self) -> None:
        """Get to know others until cancelled."""
        await self.seeker.run()

    def answer(self, request: wire.Peers, remote: str) -> wire.Answer:
        """Tell a client (HOST:PORT) of other peers."""
        asker = client_group(remote)
        bucket = self._askers.get(asker)
        if bucket is None:
            bucket = self._askers[asker] = TokenBucket(RATE, BURST, trio.current_time())
            if len(self._askers) > ASKERS_KEPT:
                self._askers.popitem(last=False)
        self._askers.move_to_end(asker)
        if bucket.wait(trio.current_time()) > 0:
            return wire.Error(request.request, "busy", "you asked for peers a moment ago")
        bucket.take(1, trio.current_time())
        self.answered_questions += 1
        if request.own:
            self.seeker.hear([request.own], remote.rpartition(":")[0].strip("[]"))
        own = self.seeker.own
        told = [own] if own and request.count else []
        good = [known for known in self.book.tellable() if self._directory.is_registered(PeerId(known.peer))]
        chosen = random.sample(good, min(request.count - len(told), len(good)))
        told.extend(known.announcement for known in chosen)
        return wire.PeersResult(request.request, tuple(told))
