"""How peers of a network are found, by peers (`peerd.exchange`) and by clients (`agent.discovery`) alike.

At the start a `Seeker` asks its anchors, the bootstrap addresses it was given, and some of those it knows who else there is;
later it asks somebody now and then, oftener while it knows few. What it hears of is tested by a connection, which proves the
peer's key, before it counts. An announcement of a private address counts only when it comes from one: nobody has this machine
look around in its own network. Counts and rates are bounded here, memory in the book (`swarm.addressbook`), which is kept in a
file over a restart.

Called only from the trio thread. An idle network is idle: what answered is asked again once a day.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Protocol

import trio

from fsdecloud.config import read_private_file, write_private_file
from fsdecloud.errors import FsdecloudError, MalformedError, ProtocolError, RemoteError, SealError, UsageError
from fsdecloud.limits import MIB
from fsdecloud.net.address import Address, parse_url
from fsdecloud.swarm.addressbook import AddressBook, Known, decode_book
from fsdecloud.swarm.groups import network_group
from fsdecloud.types import PeerId
from fsdecloud.wire import peer as wire
from fsdecloud.wire.announcements import verify_announcement

log = logging.getLogger(__name__)

ASK_FIRST: Final = 4
"""Peers asked at the start, and in each round while few are known."""

ENOUGH: Final = 16
"""Tested peers from which on only one is asked now and then."""

ASK_SOON: Final = 30.0
ASK_LATER: Final = 3600.0
"""Seconds between two rounds while few are known, at first (it doubles from there), and at most; before jitter."""

TESTS_AT_ONCE: Final = 4
TEST_PAUSE: Final = 1.0
"""Seconds between two batches of tests: at most 4 x 120 of their connections are idle at once."""

TEST_TIMEOUT: Final = 10.0

SAVE_PAUSE: Final = 60.0
"""Seconds between two times that the book is written to the disk; and at the end."""

BOOK_FILE_MAX: Final = 8 * MIB

LAN: Final = b"lan"
"""Who told what a beacon says (`net.lan`): all of them together, because anybody on the link can send as anybody."""

HINTS_MAX: Final = 64
HINT_PAUSE: Final = 60.0
"""Hints of peers known elsewhere that wait for a test, and seconds between two such tests of one peer."""

HINTED_KEPT: Final = 1024


class Connections(Protocol):
    """What is needed of `net.pool.PeerPool`."""

    async def peers(self, address: Address, count: int, own: bytes) -> tuple[bytes, ...]:
        """Ask a peer for announcements of others."""

    async def connect(self, address: Address) -> None:
        """Open a connection, which proves that the peer is there."""

    def is_open(self, address: Address) -> bool:
        """Return whether there is one."""


class Places(Protocol):
    """What whoever seeks knows already, and makes of what is found."""

    async def refresh(self) -> None:
        """Read the registry, if there is one to read."""

    async def is_wanted(self, peer: PeerId) -> bool:
        """Return whether an address of a peer is worth a test; one that is not is forgotten."""

    def known(self, peer: PeerId) -> Address | None:
        """Return where a peer is most likely reached."""

    def others(self) -> list[Address]:
        """Return an address of each peer that is known."""

    def answered(self, address: Address) -> None:
        """A connection to a peer was made there."""

    def failed(self, address: Address) -> None:
        """None was made."""


class Seeker:
    """Asks, hears, tests, and keeps what it found in `book`."""

    def __init__(
        self,
        *,
        pool: Connections,
        places: Places,
        path: Path,
        network: bytes,
        peer: PeerId,
        bootstrap: Sequence[Address] = (),
    ) -> None:
        """`path` is the file of the book, `peer` who we are ourselves (32 zeros for who is no peer)."""
        self._pool = pool
        self._places = places
        self._path = path
        self._network = network
        self._peer = peer
        self._bootstrap = tuple(bootstrap)
        self._wake = trio.Event()
        self._hints: dict[Address, None] = {}
        self._hinted = trio.Event()
        self._hint_tests: OrderedDict[PeerId, float] = OrderedDict()
        self._saved = b""
        self.own = b""
        """Our own announcement, which is shown to whom we ask; b"" for none."""
        self.book = load_book(path, peer)

    # ---- hearing ---------------------------------------------------------------------------------------------------
    def hear(self, announcements: Iterable[bytes], source: str) -> None:
        """Take announcements that `source` (a host) told."""
        now = int(time.time())
        group = network_group(source, 0) if source else b""
        for data in announcements:
            try:
                found = verify_announcement(data, network=self._network, now=now)
                address = parse_url(found.url)
            except (MalformedError, SealError, UsageError) as exc:
                log.debug("a bad announcement of %s: %s", source, exc)
                continue
            if address.id != found.peer or address.network not in (None, self._network):
                continue
            if is_private(network_group(address.host, address.port)) and not is_private(group):
                continue
            self._add(Known(found.peer, address.host, address.port, found.sequence, data, group, now))

    def hint(self, peer: PeerId, host: str, port: int) -> None:
        """Take an address that nobody signed: it is tested like any, and never passed on. Of a peer that is known at another
        address it counts when that one fails."""
        present = self.book.known(peer)
        if present is None:
            self._add(Known(peer, host, port, 0, b"", LAN, int(time.time())))
        elif (present.host, present.port) != (host, port) and len(self._hints) < HINTS_MAX:
            self._hints[Address(host, port, peer, self._network)] = None
            self._hinted.set()

    def _add(self, known: Known) -> None:
        if self.book.add(known):
            self._wake.set()

    # ---- asking ----------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Get to know others until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._ask_rounds)
                nursery.start_soon(self._tests)
                nursery.start_soon(self._test_hints)
                nursery.start_soon(self._save_rounds)
        finally:
            self.save()

    async def _ask_rounds(self) -> None:
        wait = ASK_SOON
        while True:
            await self._places.refresh()
            answers = await self.ask_some(ASK_FIRST if self.book.tried_count < ENOUGH else 1)
            if self.book.tried_count >= ENOUGH:
                wait = ASK_LATER
            await trio.sleep(min(wait, ASK_LATER) * random.uniform(0.75, 1.25))
            wait = min(2 * wait, ASK_LATER) if answers else ASK_SOON

    async def ask_some(self, count: int, *, is_any: bool = False) -> int:
        """Ask until so many have answered; return how many did. The first to be asked are the anchors; with `is_any` it is
        others each time."""
        answers = 0
        whom = self._whom_to_ask()
        if is_any:
            random.shuffle(whom)
        for address in whom:
            if answers >= count:
                break
            answers += await self.ask(address)
        return answers

    def _whom_to_ask(self) -> list[Address]:
        """Return everybody that is known, best first."""
        anchors = [self._places.known(peer) for peer in self.book.anchors]
        others = self._places.others()
        random.shuffle(others)
        # Not only acquaintances: whoever is asked first at a start should not be able to choose all others.
        found = [address for address in anchors[:2] if address is not None]
        found += [*self._bootstrap, *others]
        return [address for address in dict.fromkeys(found) if address.id != self._peer]

    async def ask(self, address: Address) -> bool:
        """Ask one peer for others; return whether it answered."""
        try:
            with trio.fail_after(2 * TEST_TIMEOUT):
                found = await self._pool.peers(address, wire.ANNOUNCEMENTS_MAX, self.own)
        except (RemoteError, ProtocolError, trio.TooSlowError) as exc:
            log.debug("%s tells nothing: %s", address, exc)
            return False
        assert address.id is not None
        self.hear(found, address.host)
        self._places.answered(address)
        return True

    # ---- testing ---------------------------------------------------------------------------------------------------
    async def _tests(self) -> None:
        while True:
            self._wake = trio.Event()
            due = self.book.due(int(time.time()), TESTS_AT_ONCE)
            if due:
                async with trio.open_nursery() as nursery:
                    for known in due:
                        nursery.start_soon(self._test_known, known)
                await trio.sleep(TEST_PAUSE)
            else:
                with trio.move_on_after(ASK_LATER):
                    await self._wake.wait()

    async def _test_known(self, known: Known) -> None:
        peer = PeerId(known.peer)
        if await self._places.is_wanted(peer):
            await self.test(Address(known.host, known.port, peer, self._network))
        else:
            self.book.drop(peer)

    async def _test_hints(self) -> None:
        while True:
            await self._hinted.wait()
            self._hinted = trio.Event()
            hints, self._hints = list(self._hints), {}
            for address in hints:
                assert address.id is not None
                now = trio.current_time()
                if now < self._hint_tests.get(address.id, -HINT_PAUSE) + HINT_PAUSE:
                    continue
                self._hint_tests[address.id] = now
                if len(self._hint_tests) > HINTED_KEPT:
                    self._hint_tests.popitem(last=False)
                if await self._places.is_wanted(address.id):
                    await self._test_hint(address.id, address)
                    await trio.sleep(TEST_PAUSE)

    async def _test_hint(self, peer: PeerId, address: Address) -> None:
        """Find out whether a known peer is also where it was not known to be; if it only is there, that is its place."""
        if not await self.test(address):
            return
        present = self.book.known(peer)
        if present is not None and present.failures:
            self.book.drop(peer)
            self._add(Known(peer, address.host, address.port, 0, b"", LAN, int(time.time())))
            self._places.answered(address)

    async def test(self, address: Address) -> bool:
        """Find out whether a peer is at an address: whoever answers there has to prove its key."""
        try:
            with trio.fail_after(TEST_TIMEOUT):
                if not self._pool.is_open(address):
                    await self._pool.connect(address)
        except (RemoteError, ProtocolError, trio.TooSlowError) as exc:
            log.debug("%s", exc)
            self._places.failed(address)
            return False
        self._places.answered(address)
        return True

    # ---- keeping ---------------------------------------------------------------------------------------------------
    async def _save_rounds(self) -> None:
        while True:
            await trio.sleep(SAVE_PAUSE)
            await trio.to_thread.run_sync(self._write, self.book.encode())

    def save(self) -> None:
        """Write the book, if it has changed. Blocking."""
        self._write(self.book.encode())

    def _write(self, data: bytes) -> None:
        if data == self._saved:
            return
        try:
            write_private_file(self._path, data)
        except OSError as exc:
            log.warning("cannot write %s: %s", self._path, exc)
        else:
            self._saved = data


def load_book(path: Path, peer: PeerId) -> AddressBook:
    """Return the book as it was left; an empty one when there is none or it cannot be read."""
    if path.exists():
        try:
            return decode_book(read_private_file(path, BOOK_FILE_MAX), peer)
        except (FsdecloudError, OSError) as exc:
            log.warning("cannot read %s, it begins anew: %s", path, exc)
    return AddressBook(os.urandom(32), peer)


def is_private(group: bytes) -> bool:
    """Return whether a label of `network_group` is that of an address that only its own network reaches."""
    return group[:1] == b"p"
