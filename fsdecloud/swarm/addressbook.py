"""Which other peers a peer knows, so that nobody can fill its memory with his own (eclipse resistance; fault 76).

Pure. After Bitcoin Core's addrman (Heilman et al., "Eclipse Attacks on Bitcoin's Peer-to-Peer Network", 2015):

* **new** holds what was heard of, **tried** what a connection has proved; each in buckets of fixed size. Which bucket, and
  which place in it, is a hash keyed with a secret of this peer: of the address's network group (/24, /48: `swarm.groups`)
  and, for new ones, of the group of whoever told. One network group gets into at most TRIED_OF_GROUP buckets of tried ones,
  one teller into at most NEW_OF_SOURCE of new ones, however many ids and addresses he has. Where the place is taken, the
  next free one of the bucket is as good: in a network of a handful, each of them matters, and no two may contend for one.
* In a full bucket, a place in new is given up only when who holds it has failed or is stale. One in tried is **tested
  before it is evicted**: it keeps its place if it still answers.
* **Anchors** are those that we were connected with last. They are kept over a restart and asked first, so that whoever
  waited for a restart finds the old acquaintances still there.

A peer has one place in each table. A newer announcement of one that was tried waits among the new ones; its old address
goes when the new one has answered. Times are seconds since 1970, given by the caller.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final

import msgspec
from blake3 import blake3
from msgspec import Meta

from fsdecloud import codec
from fsdecloud.errors import MalformedError
from fsdecloud.swarm.groups import network_group
from fsdecloud.types import PeerId

NEW_BUCKETS: Final = 64
TRIED_BUCKETS: Final = 32
BUCKET_SIZE: Final = 32
"""At most 3072 addresses, about 600 bytes each: two MiB, and enough to find any network again."""

NEW_OF_SOURCE: Final = 8
"""Buckets of new addresses that one teller's network reaches."""

TRIED_OF_GROUP: Final = 4
"""Buckets of tried addresses that one network reaches: an eighth of them."""

ANCHORS_MAX: Final = 8
FAILURES_MAX: Final = 3
"""Failures in a row after which an address may be replaced."""

STALE: Final = 30 * 24 * 3600
"""Seconds after which what was never reached is forgotten in favour of something newer."""

RETEST: Final = 24 * 3600
"""Seconds between two tests of an address that answered; half an hour times two for each failure otherwise."""

RETRY: Final = 1800

URL_MAX: Final = 512
_CONTEXT: Final = "fsdecloud 2026 v1 address book"

Data = Annotated[bytes, Meta(max_length=1024)]


class Known(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """One peer at one address."""

    peer: Annotated[bytes, Meta(min_length=32, max_length=32)]
    host: Annotated[str, Meta(max_length=URL_MAX)]
    port: Annotated[int, Meta(ge=1, le=65535)]
    sequence: int
    """Of its announcement; 0 when there is none."""
    announcement: Data
    """As it is passed on; b"" when the address was found elsewhere."""
    source: Annotated[bytes, Meta(max_length=64)]
    """Network group of who told."""
    heard: int
    tested: int = 0
    answered: int = 0
    """When it was tested last, and when it answered last; 0 for never."""
    failures: int = 0
    """In a row."""


class _Stored(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """The book as it lies on the disk."""

    version: int
    secret: Annotated[bytes, Meta(min_length=32, max_length=32)]
    new: Annotated[tuple[Known, ...], Meta(max_length=NEW_BUCKETS * BUCKET_SIZE)]
    tried: Annotated[tuple[Known, ...], Meta(max_length=TRIED_BUCKETS * BUCKET_SIZE)]
    anchors: Annotated[tuple[bytes, ...], Meta(max_length=ANCHORS_MAX)]


class AddressBook:
    """The peers that one peer knows. `secret` is 32 random bytes; `own` is never in it."""

    def __init__(self, secret: bytes, own: PeerId) -> None:
        self._secret = secret
        self._own = own
        self._new: dict[PeerId, tuple[int, int]] = {}
        self._tried: dict[PeerId, tuple[int, int]] = {}
        self._new_places: dict[tuple[int, int], Known] = {}
        self._tried_places: dict[tuple[int, int], Known] = {}
        self._challengers: dict[tuple[int, int], PeerId] = {}
        """Who waits for a place in tried until its holder was tested."""
        self.anchors: list[PeerId] = []
        """Whom we were connected with last, the latest first."""

    def __len__(self) -> int:
        return len(self._new.keys() | self._tried.keys())

    @property
    def tried_count(self) -> int:
        """How many peers a connection has proved."""
        return len(self._tried)

    # ---- hearing ---------------------------------------------------------------------------------------------------
    def add(self, known: Known) -> bool:
        """Note an address that was heard of; return whether it is worth a test now."""
        peer = PeerId(known.peer)
        if peer == self._own:
            return False
        tried, new = self.tried(peer), self._find(self._new, self._new_places, peer)
        for present in (tried, new):
            if present is not None and (present.host, present.port) == (known.host, known.port):
                if known.sequence > present.sequence:
                    present.sequence, present.announcement = known.sequence, known.announcement
                present.heard = max(present.heard, known.heard)
                return False
            if present is not None and known.sequence <= present.sequence:
                return False  # older than what we have: somebody moved it, or tells old news
        if new is not None:
            self._drop_new(peer)
        place = _free(self._new_places, self._new_place(known))
        holder = self._new_places.get(place)
        if holder is not None:
            if not _is_poor(holder, known.heard):
                return False
            self._drop_new(PeerId(holder.peer))
        self._new_places[place] = known
        self._new[peer] = place
        return True

    # ---- testing ---------------------------------------------------------------------------------------------------
    def due(self, now: int, count: int) -> list[Known]:
        """Return addresses to test now: those whose place somebody waits for, then new ones, then old ones."""
        contested = [self._tried_places[place] for place in self._challengers if place in self._tried_places]
        fresh = sorted(self._new_places.values(), key=lambda known: (known.failures, -known.heard))
        old = sorted(self._tried_places.values(), key=lambda known: known.tested)
        due = dict.fromkeys(id(known) for known in contested)
        found = contested + [known for known in (*fresh, *old) if id(known) not in due and _is_due(known, now)]
        return found[:count]

    def answered(self, peer: PeerId, host: str, port: int, now: int, *, is_anchor: bool = True) -> None:
        """A connection to a peer at an address was made, and it proved to be that peer; `is_anchor` when it is one to stay."""
        tried = self.tried(peer)
        new = self._find(self._new, self._new_places, peer)
        if tried is not None and (tried.host, tried.port) == (host, port):
            tried.tested = tried.answered = now
            tried.failures = 0
            self._challengers.pop(self._tried[peer], None)  # it keeps its place
            if is_anchor:
                self._note_anchor(peer)
            return
        if new is None or (new.host, new.port) != (host, port):
            return
        new.tested = new.answered = now
        new.failures = 0
        if tried is not None:  # it moved
            self._drop_tried(peer)
        place = _free(self._tried_places, self._tried_place(new))
        holder = self._tried_places.get(place)
        if holder is None or holder.failures >= FAILURES_MAX:
            if holder is not None:
                self._demote(PeerId(holder.peer))
            self._promote(peer, place)
        else:
            self._challengers.setdefault(place, peer)
        if is_anchor:
            self._note_anchor(peer)

    def failed(self, peer: PeerId, host: str, port: int, now: int) -> None:
        """A peer was not reached at an address."""
        for places, table in ((self._tried, self._tried_places), (self._new, self._new_places)):
            known = self._find(places, table, peer)
            if known is None or (known.host, known.port) != (host, port):
                continue
            known.tested = now
            known.failures += 1
            place = places[peer]
            if table is self._tried_places and place in self._challengers:
                challenger = self._challengers[place]
                self._demote(peer)
                waiting = self._find(self._new, self._new_places, challenger)
                if waiting is not None and self._tried_place(waiting) == place:  # still at that address
                    self._promote(challenger, place)
            elif table is self._new_places and known.failures >= FAILURES_MAX and not known.answered:
                self._drop_new(peer)

    # ---- knowing ---------------------------------------------------------------------------------------------------
    def tried(self, peer: PeerId) -> Known | None:
        """Return a peer at the address where it answered; None when it never did."""
        return self._find(self._tried, self._tried_places, peer)

    def known(self, peer: PeerId) -> Known | None:
        """Return a peer at the address that is most likely right: a new one only where the old one fails."""
        tried, new = self.tried(peer), self._find(self._new, self._new_places, peer)
        return new if tried is None or (new is not None and tried.failures) else tried

    def everybody(self) -> list[Known]:
        """Return one address of each peer, those that answered first."""
        peers = dict.fromkeys([*self._tried, *self._new])
        return [known for peer in peers if (known := self.known(peer)) is not None]

    def tellable(self) -> list[Known]:
        """Return those that answered and may be passed on."""
        return [known for known in self._tried_places.values() if known.announcement and not known.failures]

    def drop(self, peer: PeerId) -> None:
        """Forget a peer."""
        if peer in self._new:
            self._drop_new(peer)
        if peer in self._tried:
            self._drop_tried(peer)
        if peer in self.anchors:
            self.anchors.remove(peer)

    # ---- keeping ---------------------------------------------------------------------------------------------------
    def encode(self) -> bytes:
        """Return the book for the disk."""
        new, tried = tuple(self._new_places.values()), tuple(self._tried_places.values())
        return codec.encode(_Stored(1, self._secret, new, tried, tuple(self.anchors)))

    # ---- places ----------------------------------------------------------------------------------------------------
    def _hash(self, *parts: bytes) -> int:
        data = b"".join(len(part).to_bytes(2, "big") + part for part in (self._secret, *parts))
        return int.from_bytes(blake3(data, derive_key_context=_CONTEXT).digest(8), "big")

    def _new_place(self, known: Known) -> tuple[int, int]:
        """Return bucket and place where an address belongs, if it is free."""
        group = network_group(known.host, known.port)
        share = self._hash(b"share", group, known.source) % NEW_OF_SOURCE
        bucket = self._hash(b"new", known.source, bytes([share])) % NEW_BUCKETS
        return bucket, self._hash(b"place", bytes([bucket]), _key(known)) % BUCKET_SIZE

    def _tried_place(self, known: Known) -> tuple[int, int]:
        """As `_new_place`."""
        group = network_group(known.host, known.port)
        share = self._hash(b"own", _key(known)) % TRIED_OF_GROUP
        bucket = self._hash(b"tried", group, bytes([share])) % TRIED_BUCKETS
        return bucket, self._hash(b"at", bytes([bucket]), _key(known)) % BUCKET_SIZE

    @staticmethod
    def _find(places: dict[PeerId, tuple[int, int]], table: dict[tuple[int, int], Known], peer: PeerId) -> Known | None:
        place = places.get(peer)
        return None if place is None else table[place]

    def _drop_new(self, peer: PeerId) -> None:
        del self._new_places[self._new.pop(peer)]

    def _drop_tried(self, peer: PeerId) -> None:
        place = self._tried.pop(peer)
        del self._tried_places[place]
        self._challengers.pop(place, None)

    def _promote(self, peer: PeerId, place: tuple[int, int]) -> None:
        known = self._new_places[self._new[peer]]
        self._drop_new(peer)
        self._tried_places[place] = known
        self._tried[peer] = place

    def _demote(self, peer: PeerId) -> None:
        """Put one that lost its place in tried back among the new ones, where there is room."""
        known = self._tried_places[self._tried[peer]]
        self._drop_tried(peer)
        place = _free(self._new_places, self._new_place(known))
        if peer not in self._new and place not in self._new_places:
            self._new_places[place] = known
            self._new[peer] = place

    def _note_anchor(self, peer: PeerId) -> None:
        self.anchors = [peer, *(other for other in self.anchors if other != peer)][:ANCHORS_MAX]


def decode_book(data: bytes, own: PeerId) -> AddressBook:
    """Return a book from the disk; what does not fit into it is left out. Raises MalformedError."""
    stored = codec.decode(data, _Stored)
    if stored.version != 1:
        raise MalformedError(f"an address book of version {stored.version}")
    book = AddressBook(stored.secret, own)
    for known in _unique(stored.tried, own):
        place = _free(book._tried_places, book._tried_place(known))  # noqa: SLF001 - of this module
        if place not in book._tried_places:  # noqa: SLF001
            book._tried_places[place] = known  # noqa: SLF001
            book._tried[PeerId(known.peer)] = place  # noqa: SLF001
    for known in _unique(stored.new, own):
        book.add(known)
    book.anchors = [PeerId(peer) for peer in stored.anchors if len(peer) == 32]
    return book


def _unique(items: Iterable[Known], own: PeerId) -> list[Known]:
    return list({PeerId(known.peer): known for known in items if known.peer != own}.values())


def _free(table: dict[tuple[int, int], Known], place: tuple[int, int]) -> tuple[int, int]:
    """Return the first free place of the bucket from this one on; this one when all are taken."""
    bucket, first = place
    candidates = ((bucket, (first + step) % BUCKET_SIZE) for step in range(BUCKET_SIZE))
    return next((candidate for candidate in candidates if candidate not in table), place)


def _key(known: Known) -> bytes:
    return known.peer + known.port.to_bytes(2, "big") + known.host.encode()


def _is_poor(known: Known, now: int) -> bool:
    """Return whether a new address may be replaced."""
    return known.failures >= FAILURES_MAX or (not known.answered and now - known.heard > STALE)


def _is_due(known: Known, now: int) -> bool:
    if not known.tested:
        return True
    if not known.failures:
        return now >= known.tested + RETEST
    return now >= known.tested + (RETRY << min(known.failures, 8))
