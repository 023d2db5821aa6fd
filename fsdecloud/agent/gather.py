"""How k of a blob's shards are brought from the peers, the fastest first, each checked by its id.

Called only from the trio thread. A slow shard is hedged: after the time that 95 of 100 answers of such peers take, another one
is asked for as well, whoever is first wins, and who was late is asked later from then on (faults 48 and 75). A wrong or missing
shard costs another request, never a wrong byte (fault 69).
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from fsdecloud.agent.erasure import shard_size
from fsdecloud.agent.hosts import Hosts
from fsdecloud.agent.peers import PeerBook
from fsdecloud.agent.rows import BlobRow
from fsdecloud.errors import BlobCorrupt, BlobMissing, FsdecloudError, NotEnoughPeers, ProtocolError, RemoteError
from fsdecloud.limits import HANDLER_DEADLINE
from fsdecloud.swarm.score import HEDGE_MAX, HEDGE_MIN
from fsdecloud.types import BlobId, EntryId, PeerId, ShardId

FETCH_DEADLINE: Final = HANDLER_DEADLINE * 3 / 4
"""A fetch gives up after this: before the driver's handler does, so that the error says what was missing."""

OPEN_AHEAD: Final = 12
"""Further holders of a blob to which connections are opened while it is fetched: a hedge then takes one round trip and not
five, and so do the next files, which lie on others. They close when nobody needs them (`net.link.IDLE_TIMEOUT`)."""

HEDGE_SHARE: Final = 1 / 16
HEDGE_BURST: Final = 8.0
"""Hedges earned by each shard asked for, and how many may be saved up. One slow peer is few shards; when everything is
late it is this machine that is busy, and asking for more would only make it later (measured: 40 % more bytes)."""

_DECODE_COST: Final = 0.03
_DECODE_FACTOR: Final = 2.0
"""A parity shard is asked for before one of the blob's own slices only when it should be this much faster: seconds, and by
ratio. Slices need no decoding, which costs as much as TLS does, and placement spreads them over all peers as it is."""

_CORRUPT_COST: Final = 1.0
"""The same for a shard from a peer that has sent wrong bytes."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an entry lies: bytes [offset, offset + length) of a blob."""

    blob: BlobId
    row: BlobRow
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Source:
    """One shard at one peer."""

    index: int
    peer: PeerId
    shard: ShardId


@dataclass(slots=True)
class _Request:
    """A shard that is asked for."""

    since: float = math.inf
    """When it was sent; it may have to wait for its turn."""
    late_at: float = math.inf
    is_hedged: bool = False


async def _find_nowhere(_blob: BlobId) -> BlobRow | None:
    return None


class Gatherer:
    """Gathers the shards of blobs."""

    def __init__(self, book: PeerBook, hosts: Hosts, locate: Callable[[EntryId], Awaitable[Place | None]]) -> None:
        self._book = book
        self._hosts = hosts
        self._locate = locate
        self._hedges = HEDGE_BURST
        self.on_miss: Callable[[Place, Source, FsdecloudError], None] = lambda _place, _source, _error: None
        """Called when a peer does not have a shard that it should have, or sends other bytes."""
        self.find: Callable[[BlobId], Awaitable[BlobRow | None]] = _find_nowhere
        """Looks for a blob's shards elsewhere; returns its row if that helped."""

    def may_ask(self, peer: PeerId, now: float) -> bool:
        """Whether a request may go to a peer: not to one that failed a moment ago, nor to one whose failing takes long, which
        everybody would wait for in vain again and again until a probe finds it back (fault 46)."""
        known = self._book.peer(peer)
        may_try = known.score.may_try(now) and not known.score.fails_slowly
        return known.address is not None and (known.is_readable or may_try)

    def _own_sources(self, place: Place, now: float) -> list[Source]:
        """Return each shard at the peer that the row names, best first; peers that just failed are left out."""
        row = place.row
        size = shard_size(row.k, row.length)
        found: list[tuple[float, Source]] = []
        for index, own in enumerate(self._named(place)):
            if own is not None and self.may_ask(own, now):
                peer = self._book.peer(own)
                cost = peer.score.cost(size, now)
                if index >= row.k:
                    cost = cost * _DECODE_FACTOR + _DECODE_COST
                cost += (_CORRUPT_COST * peer.corrupt) + (FETCH_DEADLINE if not peer.is_readable else 0.0)
                found.append((cost, Source(index, own, row.shard(place.blob, index))))
        found.sort(key=lambda item: item[0])
        return [source for _, source in found]

    def _other_sources(self, place: Place) -> list[Source]:
        """Return where shards that moved may be: at their hosts under other epochs."""
        row, now = place.row, trio.current_time()
        found: dict[Source, None] = {}
        for index, own in enumerate(self._named(place)):
            for epoch in {self._hosts.map.epoch, row.epoch, row.epoch - 1}:
                other = self._hosts.ranking(place.blob, epoch)
                if index < len(other) and other[index] != own and self.may_ask(other[index], now):
                    found[Source(index, other[index], row.shard(place.blob, index))] = None
        return list(found)

    def _named(self, place: Place) -> list[PeerId | None]:
        """Return the peers that the row names, by index; None for one whose epoch's table is not kept."""
        exceptions = dict(place.row.exceptions)
        table = self._hosts.ranking(place.blob, place.row.epoch)
        return [exceptions.get(i) or (table[i] if i < len(table) else None) for i in range(place.row.n)]

    def _may_hedge(self, waited: float) -> bool:
        """Spend one of the hedges that fetching has earned; past HEDGE_MAX seconds it needs none."""
        if waited >= HEDGE_MAX:
            return True
        if self._hedges < 1:
            return False
        self._hedges -= 1
        return True

    async def gather(self, place: Place, *, is_background: bool) -> dict[int, bytes]:
        """Return k shards of a blob; where too few can be had at the places that are known, others are looked for."""
        try:
            return await self._gather_place(place, is_background=is_background)
        except (BlobMissing, NotEnoughPeers):
            known = await self._locate(EntryId(place.blob))
            is_newer = known is not None and known.row != place.row  # it was coded anew, or moved, meanwhile
            row = known.row if known is not None and is_newer else await self.find(place.blob)
            if row is None:
                raise
        found = Place(place.blob, row, place.offset, place.length)
        return await self._gather_place(found, is_background=is_background)

    async def _gather_place(self, place: Place, *, is_background: bool) -> dict[int, bytes]:
        sources = self._own_sources(place, trio.current_time())
        others = partial(self._other_sources, place)
        for source in sources[place.row.k :][:OPEN_AHEAD]:
            self._book.open_ahead(source.peer)
        size = shard_size(place.row.k, place.row.length)
        missed = partial(self._missed, place)
        return await self.gather_from(
            sources, place.row.k, size, place.row.n, missed, others, is_background=is_background
        )

    def _missed(self, place: Place, source: Source, error: FsdecloudError) -> None:
        """Tell of a shard that its own peer does not have; hosts under other epochs need not have it."""
        if self._named(place)[source.index] == source.peer:
            self.on_miss(place, source, error)

    async def gather_from(
        self,
        sources: Sequence[Source],
        k: int,
        size: int,
        expected: int,
        missed: Callable[[Source, FsdecloudError], None] = lambda _source, _error: None,
        others: Callable[[], list[Source]] = list,
        *,
        is_background: bool = False,
    ) -> dict[int, bytes]:
        """Return k shards by index: ask for k at once, for another one whenever one fails or is late, `others` last.

        Raises BlobMissing when `expected` peers answered that they do not have it, else NotEnoughPeers.
        """
        rest = list(reversed(sources))
        if len({source.index for source in rest}) < k:
            rest[:0], others = reversed(others()), list
        if len({source.index for source in rest}) < k:
            self._book.urge()
            raise NotEnoughPeers(f"{k} shards are needed, {len(rest)} can be reached now: {self._book.last_error}")
        found: dict[int, bytes] = {}
        running: dict[Source, _Request] = {}
        missing = 0
        send, receive = trio.open_memory_channel[tuple[Source, bytes | FsdecloudError]](math.inf)
        patience = trio.CancelScope()

        async def get(source: Source) -> None:
            def asked() -> None:
                """It is on its way, perhaps after it waited for its turn: only now can it be late."""
                now = trio.current_time()
                late_at = now + self._book.hedge_after(source.peer, size)
                running[source] = _Request(now, late_at)
                patience.deadline = min(patience.deadline, late_at)

            try:
                data: bytes | FsdecloudError = await self._book.read(
                    source.peer, source.shard, size, is_background=is_background, asked=asked
                )
            except (RemoteError, ProtocolError) as exc:
                data = exc
            send.send_nowait((source, data))

        def has_rest() -> bool:
            """Whether another source may be asked; the others are looked up only when they are needed."""
            nonlocal others
            if not rest:
                rest[:], others = reversed(others()), list
            return bool(rest)

        def ask(nursery: trio.Nursery) -> bool:
            """Ask the next source; returns whether there is one."""
            while has_rest():
                source = rest.pop()
                if source.index not in found:
                    running[source] = _Request()
                    nursery.start_soon(get, source)
                    return True
            return False

        def hedge(nursery: trio.Nursery, now: float) -> None:
            """Ask another source for the request that is late longest; without a hedge to spend, look again soon."""
            late = min(running.values(), key=lambda request: request.late_at)
            if not has_rest():
                late.late_at = math.inf
            elif self._may_hedge(now - started) and ask(nursery):
                late.late_at, late.is_hedged = math.inf, True
            else:
                late.late_at = now + HEDGE_MIN

        async def take(nursery: trio.Nursery) -> None:
            """Take answers until there are enough, or one is late."""
            nonlocal missing
            while len(found) < k and running:
                source, data = await receive.receive()
                del running[source]
                if isinstance(data, bytes):
                    found[source.index] = data
                    continue
                if isinstance(data, BlobMissing | BlobCorrupt):
                    missing += 1
                    missed(source, data)
                elif type(data) is RemoteError:  # it answered that it cannot
                    missed(source, data)
                ask(nursery)

        started = trio.current_time()
        self._hedges = min(self._hedges + k * HEDGE_SHARE, HEDGE_BURST)
        async with trio.open_nursery() as nursery:
            for _ in range(k):
                ask(nursery)
            while len(found) < k and running:
                now = trio.current_time()
                if min(request.late_at for request in running.values()) <= now:
                    hedge(nursery, now)
                    continue
                # Requests that are answered leave its deadline too early: looking once in vain costs less than each change.
                patience = trio.CancelScope(deadline=min(request.late_at for request in running.values()))
                with patience:
                    await take(nursery)
            nursery.cancel_scope.cancel()
        if len(found) == k:
            now = trio.current_time()
            for source, request in running.items():
                if request.is_hedged:
                    self._book.overtaken(source.peer, now - request.since)
        if len(found) == k:
            return found
        if missing >= expected:
            raise BlobMissing(f"none of the {missing} peers that should have it has the right bytes")
        self._book.urge()
        raise NotEnoughPeers(f"{k} shards are needed, {len(found)} could be fetched: {self._book.last_error}")
