"""Which daemon to call next: addresses that a person gave, and those in the address book (`swarm.addressbook`).

What was given is always called. Of the others the first are the anchors, those that the last run was connected to; the rest
is drawn at random, tried ones as often as new ones, so that nobody who fills one table decides alone; and no two outgoing
connections go to one network group. An address that fails is tried again after a growing, jittered delay. Called only from
the trio thread; nothing here opens a connection (`hub`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from fsdecloud.errors import UsageError
from fsdecloud.net.address import Address, parse_url
from fsdecloud.net.discovery import is_private
from fsdecloud.swarm import groups
from fsdecloud.swarm.addressbook import AddressBook, Known
from fsdecloud.types import PeerId

DELAY_MIN: Final = 0.5
DELAY_MAX: Final = 60.0
"""Between two calls of one address: doubling from the first to the second, half of it random."""

ANCHORS_FIRST: Final = 4
"""Anchors that are called before anybody else: half of the outgoing connections."""

FAILURE_PAUSE: Final = 60
"""Seconds within which several failures of an address count as one in the book: a daemon that restarts is not forgotten."""

RETRIES_KEPT: Final = 4096
"""Addresses whose failures are remembered."""

network_group = lru_cache(maxsize=4096)(groups.network_group)
"""Every choice looks at every address."""

_GIVEN: Final = b"given"
"""Source, in the book, of what a person said and of what the last release remembered."""

Key = tuple[str, int]


@dataclass(slots=True)
class _Retry:
    failures: int = 0
    due: float = 0.0


class Addresses:
    """The addresses of one daemon. `clock` returns Unix seconds; times named `now` are monotonic seconds."""

    def __init__(self, book: AddressBook, network: bytes, node: PeerId, clock: Callable[[], int]) -> None:
        self.book = book
        self._network = network
        self._node = node
        self._clock = clock
        self._given: dict[Key, Address] = {}
        self._retries: dict[Key, _Retry] = {}
        self._anchors = book.anchors[:ANCHORS_FIRST]

    # ---- hearing ---------------------------------------------------------------------------------------------------
    def give(self, url: str) -> None:
        """Take an address that a person gave. Raises UsageError."""
        address = parse_url(url)
        if address.network in (None, self._network) and address.id != self._node:
            self._given[address.host, address.port] = address

    def hear(self, urls: Iterable[str], source: str) -> bool:
        """Take addresses that the daemon at host `source` told ("" for a remembered one); return whether any is new. What
        makes no sense is left out."""
        is_new = False
        group = network_group(source, 0) if source else _GIVEN
        for url in urls:
            try:
                address = parse_url(url)
            except UsageError:
                continue
            if address.id is None or address.id == self._node or address.network not in (None, self._network):
                continue
            if source and is_private(network_group(address.host, address.port)) and not is_private(group):
                continue  # nobody has this machine look around in its own network
            is_new |= self._note(address, group)
        return is_new

    def _note(self, address: Address, group: bytes) -> bool:
        assert address.id is not None
        present = self.book.known(address.id)
        # Nobody moves a daemon by a word while it answers where it is known to be.
        sequence = present.sequence + 1 if present is not None and present.failures else 0
        return self.book.add(Known(address.id, address.host, address.port, sequence, b"", group, self._clock()))

    # ---- what became of a call -------------------------------------------------------------------------------------
    def answered(self, address: Address, peer: PeerId, *, is_lasting: bool) -> None:
        """Note that `peer` proved to be at an address; a lasting connection makes it an anchor."""
        found = Address(address.host, address.port, peer, self._network)
        self._note(found, _GIVEN)
        self.book.answered(peer, address.host, address.port, self._clock(), is_anchor=is_lasting)

    def succeeded(self, address: Address) -> None:
        """Forgive an address its failures: a connection lasted."""
        self._retries.pop((address.host, address.port), None)

    def failed(self, address: Address, peer: PeerId | None, now: float, *, is_reached: bool) -> None:
        """Note that a call ended too soon; without `is_reached` nobody was there."""
        retry = self._retries.setdefault((address.host, address.port), _Retry())
        retry.failures += 1
        delay = min(DELAY_MAX, DELAY_MIN * 2 ** min(retry.failures - 1, 10))
        retry.due = now + delay * random.uniform(0.5, 1.0)
        if len(self._retries) > RETRIES_KEPT:
            del self._retries[next(iter(self._retries))]
        known = None if peer is None else self.book.known(peer)
        if known is not None and not is_reached and self._clock() - known.tested >= FAILURE_PAUSE:
            self.book.failed(PeerId(known.peer), address.host, address.port, self._clock())

    def forget(self, peer: PeerId) -> None:
        """Forget a daemon: it is this one, or one that is shut out. What a person gave is called all the same."""
        self.book.drop(peer)

    def forget_given(self, address: Address) -> None:
        """Forget what a person gave: it is this daemon itself."""
        self._given.pop((address.host, address.port), None)

    def is_given(self, address: Address) -> bool:
        """Whether a person gave it."""
        return (address.host, address.port) in self._given

    # ---- choosing --------------------------------------------------------------------------------------------------
    def given(self, active: Collection[Key], now: float) -> list[Address]:
        """Return the given addresses that are due for a call."""
        return [address for key, address in self._given.items() if key not in active and self._due(key) <= now]

    def choose(
        self, active: Collection[Key], connected: Collection[PeerId], now: float, may_call: Callable[[Address], bool]
    ) -> Address | None:
        """Return one more address to call now: of nobody who is connected, and of no network group that is."""
        taken = {network_group(host, port) for host, port in active}

        def fits(known: Known | None) -> bool:
            return known is not None and self._fits(known, active, connected, taken) and may_call(_address(known))

        while self._anchors:
            known = self.book.known(self._anchors.pop(0))
            if known is not None and fits(known) and self._due((known.host, known.port)) <= now:
                return self._named(known)
        found = [known for known in self.book.everybody() if self._due((known.host, known.port)) <= now and fits(known)]
        tried = [known for known in found if known.answered]
        new = [known for known in found if not known.answered]
        for table in random.sample((tried, new), 2):
            if table:
                return self._named(random.choice(table))
        return None

    def next_due(self, active: Collection[Key], connected: Collection[PeerId], now: float, *, has_room: bool) -> float:
        """Return when the next address is due, later than `now`."""
        waiting = [self._due(key) for key in self._given if key not in active]
        if has_room:
            taken = {network_group(host, port) for host, port in active}
            waiting += [
                self._due((known.host, known.port))
                for known in self.book.everybody()
                if self._fits(known, active, connected, taken)
            ]
        return min((due for due in waiting if due > now), default=float("inf"))

    def to_test(self, connected: Collection[PeerId]) -> Address | None:
        """Return an address whose place in the book depends on a test."""
        for known in self.book.due(self._clock(), 4):
            if PeerId(known.peer) not in connected:
                return self._named(known)
        return None

    def urls(self) -> list[str]:
        """Return the addresses of daemons that answered, to tell to others."""
        found = [known for known in self.book.everybody() if known.answered and not known.failures]
        return [str(self._named(known)) for known in found]

    # ---- inner -----------------------------------------------------------------------------------------------------
    def _fits(
        self, known: Known, active: Collection[Key], connected: Collection[PeerId], taken: Collection[bytes]
    ) -> bool:
        key = (known.host, known.port)
        if key in active or key in self._given or PeerId(known.peer) in connected:
            return False
        return network_group(*key) not in taken

    def _due(self, key: Key) -> float:
        retry = self._retries.get(key)
        return 0.0 if retry is None else retry.due

    def _named(self, known: Known) -> Address:
        return Address(known.host, known.port, PeerId(known.peer), self._network)


def _address(known: Known) -> Address:
    return Address(known.host, known.port, PeerId(known.peer))
