"""Which shards peers really have: random samples, and what reads come across.

Called only from the trio thread. A sample is a read: the very message that fetching an entry sends, for the whole of a
random shard, checked against its id. A peer cannot tell the two apart (fault 74), and needs the bytes to answer. Each peer
of the host map is sampled in turn, as often as finds a stated loss with a stated probability (`swarm.repair`), and at once
when it comes (back).

A miss is contained before it counts: it is tried again a few times (`swarm.repair.Containment`). Peers that do not answer
at all are no matter of audits: they are away. One that answers, and not this, withholds (fault 73). A peer that says of one
shard that it has it not is asked for all of them (`suspects`; `agent.repair` does that), since it may have lost its
store (fault 58).
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Final

import trio

from fsdecloud.agent.erasure import shard_size
from fsdecloud.agent.gather import Place, Source
from fsdecloud.agent.journal import META
from fsdecloud.agent.rows import BLOB_PREFIX, decode_blob_row, shard_places
from fsdecloud.agent.upkeep import Parts, Upkeep
from fsdecloud.errors import BlobMissing, FsdecloudError, PeerUnavailable, ProtocolError, RemoteError
from fsdecloud.fs.keys import prefix_end
from fsdecloud.swarm.evidence import PROBATION, Evidence, Miss, Target, Verdict
from fsdecloud.swarm.repair import Shard, audit_interval
from fsdecloud.types import BlobId, PeerId, ShardId

log = logging.getLogger(__name__)

AUDIT_TIMEOUT: Final = 20.0
"""Seconds for one shard: as long as a read would wait."""

PULSE: Final = 60.0
"""Seconds between two signs of life that are asked of each peer, so that one that is gone is noticed while nobody reads."""

PAGE: Final = 64
"""Rows looked at for a shard of one peer: at 2/6 of 64 hosts, every tenth blob has one."""

RECHECK: Final = 30.0
"""Seconds between two looks at what a peer did not give: it is held again when it gives it after all."""

RETRIES_AT_ONCE: Final = 8

_SUSPECTS: Final = b"suspects"


class Auditor(Upkeep):
    """Audits the peers of one volume, and knows which shards are not where they should be."""

    def __init__(self, parts: Parts, *, randomness: Callable[[int], bytes]) -> None:
        super().__init__(parts)
        self._randomness = randomness
        self._started = trio.current_time()
        self._wake = trio.Event()
        self._returned: dict[PeerId, None] = {}
        self._wake_returned = trio.Event()
        known = self._writer.journal.get(META, _SUSPECTS) or b""
        suspects = [PeerId(known[at : at + 32]) for at in range(0, len(known), 32)]
        self._evidence = Evidence(self._policy, suspects, self._trust)
        self.on_change: Callable[[], None] = lambda: None
        """Called when a shard turned out to be lost, or a peer to be trusted or not."""
        self._book.on_usable.append(self._take_returned)
        self._book.on_back.append(self._take_returned)
        self._wake_pulse = trio.Event()
        self._book.on_offer.append(lambda _peer: self._wake_pulse.set())
        self._book.on_leaving.append(lambda _peer: self.on_change())

    # ---- what is known ---------------------------------------------------------------------------------------------
    def state(self, peer_id: PeerId, shard: ShardId, now: float) -> tuple[Shard, float]:
        """Return how a shard at a peer does, and for how long its peer has been away."""
        peer = self._book.peer(peer_id)
        since = self._started if peer.address is None else peer.away_since
        state, away = self._evidence.state(peer_id, shard, None if since is None else now - since)
        return (Shard.LEAVING, 0.0) if state is Shard.HELD and peer.leaves else (state, away)

    def note_lost(self, peer: PeerId, shard: ShardId) -> None:
        """A peer does not have a shard."""
        self._evidence.note_lost(peer, shard)

    def note_held(self, peer: PeerId, shard: ShardId) -> None:
        """A peer has a shard (again)."""
        self._evidence.note_held(peer, shard)

    def is_unfit(self, peer: PeerId, shard: ShardId) -> bool:
        """Say whether a peer claims a shard that it cannot or will not give: offered again, it would say that it has it."""
        return self._evidence.is_unfit(peer, shard)

    @property
    def suspects(self) -> set[PeerId]:
        """Peers that lost something: they are asked for everything before the next repair. Remembered over a restart."""
        return self._evidence.suspects

    def clear(self, peer: PeerId) -> None:
        """A peer was asked for everything."""
        self.suspects.discard(peer)
        self._save_suspects()

    @property
    def passed(self) -> int:
        """Samples that were answered with the right bytes."""
        return self._evidence.passed

    @property
    def failed(self) -> int:
        """Samples that failed for good."""
        return self._evidence.failed

    @property
    def contained(self) -> int:
        """Misses that are tried again before they count."""
        return self._evidence.contained

    def note_miss(self, place: Place, source: Source, error: FsdecloudError) -> None:
        """A read found that a peer does not have what it should."""
        if self._evidence.is_lost(source.peer, source.shard):
            return
        if not self._uploader.is_on_its_way(place.blob):
            size = shard_size(place.row.k, place.row.length)
            self._missed(source.peer, Target(place.blob, source.index, source.shard, size), error)
        elif isinstance(error, BlobMissing):
            self._uploader.revoke(place.blob, source.index, source.peer)

    # ---- sampling --------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Audit until cancelled."""
        await self._hosts.wait_known()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._sample_in_turn)
            nursery.start_soon(self._sample_returned)
            nursery.start_soon(self._retry)
            nursery.start_soon(self._recheck)
            nursery.start_soon(self._pulse)

    async def _sample_in_turn(self) -> None:
        while True:
            for peer in self._hosts.map.current:
                await trio.sleep(audit_interval(self._policy, len(self._hosts.map.current)))
                await self._sample(peer)

    def _take_returned(self, peer: PeerId) -> None:
        self._returned[peer] = None
        self._wake_returned.set()
        self.on_change()

    async def _sample_returned(self) -> None:
        """Look at peers that come back: with their store, or without."""
        while True:
            await self._wake_returned.wait()
            self._wake_returned = trio.Event()
            peers, self._returned = list(self._returned), {}
            for peer in peers:
                await self._sample(peer)
            self.on_change()

    async def _sample(self, peer: PeerId) -> bool:
        """Audit one random shard of a peer, if it is there; returns whether it gave it."""
        if not self._book.peer(peer).is_readable:
            return False
        try:
            target = await self._choose(peer)
        except FsdecloudError as exc:
            log.info("nothing can be audited now: %s", exc)
            return False
        return target is not None and await self._check(peer, target)

    async def _choose(self, peer: PeerId) -> Target | None:
        """Return a random shard that a peer should have; one of those it failed, if nobody trusts it any more and all others
        are with other peers by now; None if there is none.

        Blob ids are hashes, so that the blobs after a random place in the map are random blobs. Of these a random one: the
        first would be the same again and again where two blobs are far apart, and one close behind another never its turn.
        """
        start, stop = self._randomness(32), prefix_end(BLOB_PREFIX)
        found = dict(await self._locations.rows_after(BLOB_PREFIX + start, stop, PAGE))
        if len(found) < PAGE:
            found |= dict(await self._locations.rows_after(BLOB_PREFIX, stop, PAGE - len(found)))
        rows = list(found.items())
        random.Random(self._randomness(8)).shuffle(rows)
        for key, value in rows:
            blob, row = BlobId(key[1:]), decode_blob_row(value)
            if self._uploader.is_on_its_way(blob):
                continue
            for index, holder in shard_places(row, self._hosts.ranking(blob, row.epoch)).items():
                shard = row.shard(blob, index)
                if holder == peer and not self._evidence.is_lost(peer, shard):
                    return Target(blob, index, shard, shard_size(row.k, row.length))
        return self._evidence.on_probation(peer)

    async def _check(self, peer: PeerId, target: Target) -> bool:
        """Read a shard, and draw the conclusions; returns whether it was given."""
        await self._book.down.take(peer, target.size, is_background=True)
        try:
            with trio.fail_after(AUDIT_TIMEOUT):
                await self._book.get(peer, target.shard, target.size)
        except PeerUnavailable as exc:
            log.debug("no audit of a peer that is away: %s", exc)
            self._evidence.close(peer, target.shard)  # it is found again, when the peer is back
        except (RemoteError, ProtocolError) as exc:
            self._missed(peer, target, exc)
        except trio.TooSlowError:
            if await self._book.probe(peer):  # it is there, and does not give what it should have
                self._missed(peer, target, None)
            else:
                self._evidence.close(peer, target.shard)
        else:
            self._passed(peer, target)
            return True
        return False

    def _passed(self, peer: PeerId, target: Target) -> None:
        if self._evidence.passed_by(peer, target):
            self.on_change()

    def _missed(self, peer: PeerId, target: Target, error: FsdecloudError | None) -> None:
        """Contain a miss. `error` is None for silence."""
        miss = Miss.SILENT
        if isinstance(error, RemoteError):
            miss = Miss.ABSENT if isinstance(error, BlobMissing) else Miss.WRONG
        verdict = self._evidence.missed_by(peer, target, miss, trio.current_time())
        if verdict is Verdict.CONTAINED:
            self._wake.set()
        elif verdict is Verdict.LOST:
            reason = str(error) if error is not None else "no answer, though it is there"
            log.warning("peer %s does not have shard %s: %s", peer.hex()[:16], target.shard.hex()[:16], reason)
            if miss is Miss.ABSENT:
                self._save_suspects()
            self.on_change()

    def _trust(self, peer: PeerId, is_distrusted: bool) -> None:
        self._book.distrust(peer, is_distrusted=is_distrusted)
        self.on_change()

    def _save_suspects(self) -> None:
        self._writer.write_nowait([(META, _SUSPECTS, b"".join(sorted(self.suspects)))])

    # ---- looking again ---------------------------------------------------------------------------------------------
    async def _retry(self) -> None:
        """Try contained misses again when their time comes."""
        limiter = trio.CapacityLimiter(RETRIES_AT_ONCE)

        async def check(peer: PeerId, target: Target) -> None:
            async with limiter:
                await self._check(peer, target)

        while True:
            with trio.move_on_at(self._evidence.next_at()):
                await self._wake.wait()
            self._wake = trio.Event()
            async with trio.open_nursery() as nursery:
                for peer, target in self._evidence.due(trio.current_time()):
                    nursery.start_soon(check, peer, target)

    async def _recheck(self) -> None:
        """Look again and again at what peers did not give, until each has failed once more: a bad disk may be mended, and who
        withheld may have thought better of it."""
        while True:
            await trio.sleep(RECHECK)
            for peer in self._evidence.unfit():
                known = self._book.peer(peer)
                for target in self._evidence.unfit_of(peer):
                    if not known.is_readable or not await self._check(peer, target):
                        break
                for _ in range(2 * PROBATION):  # its good shards count as well
                    if not known.is_distrusted or not known.is_readable or not await self._sample(peer):
                        break
                self._evidence.settle(peer)

    async def _pulse(self) -> None:
        """Notice peers that are gone."""
        while True:
            async with trio.open_nursery() as nursery:
                for peer in self._hosts.map.current:
                    known = self._book.peer(peer)
                    if known.is_usable or known.is_leaving:  # for good, or for a while: it says so itself
                        nursery.start_soon(self._book.probe, peer)
            self._wake_pulse = trio.Event()
            with trio.move_on_after(PULSE):
                await self._wake_pulse.wait()
