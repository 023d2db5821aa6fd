"""Keeping what the volume needs: renews its leases with the peers, long before they end, and lets the others end.

Called only from the trio thread. A peer keeps a shard for the term that its receipt says and removes it some time later
(`peerd.leases`). Each peer is asked when an eighth of its term has passed since the last time: for all shards that the
location map, its nodes and what is on its way have there, a few thousand in one message. What it does not name in its
answer it does not have, which is as good as an audit; what is condemned, was moved away, or is in no map any more is not
named by us, and ends by itself.

So a record of what is to be deleted (`agent.garbage`) is worth keeping only as long as its peer may be told: one that was
not seen for longer than its leases take has removed it, or is gone for ever. When the records take too much room, those of
peers that are away go sooner: their leases end as well.

When a peer was seen and renewed last stands in the journal by the wall clock. A clock that was set back makes peers due; one
that jumped ahead makes them due too early, and drops records of absent peers whose leases then end what they were to
delete: neither can lose anything.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import msgspec
import trio

from fsdecloud import codec
from fsdecloud.agent.auditor import Auditor
from fsdecloud.agent.erasure import shard_size
from fsdecloud.agent.garbage import CONDEMNED_MAX
from fsdecloud.agent.journal import META, UPLOADS
from fsdecloud.agent.rows import BLOB_PREFIX, MANIFEST_PREFIX, UploadRecord, decode_blob_row, shard_places
from fsdecloud.agent.upkeep import Parts, Upkeep
from fsdecloud.errors import FsdecloudError, PeerRefused, ProtocolError, RemoteError
from fsdecloud.fs.keys import prefix_end
from fsdecloud.types import BlobId, PeerId, ShardId
from fsdecloud.units import format_duration
from fsdecloud.wire.receipts import LEASE_TERM

log = logging.getLogger(__name__)

SHARE: Final = 8
"""Leases are renewed when this part of their term has passed: a volume that is mounted once in months misses none."""

BATCH: Final = 2048
"""Shards in one message: 70 KiB, and a transaction of some 30 ms at the peer."""

PAGE: Final = 512
"""Rows looked at in one step."""

FIRST: Final = 20.0
LOOK: Final = 600.0
"""Seconds after the start, and between two looks at who is due."""

PATIENCE: Final = 60.0
"""Seconds for one answer."""

BUSY_PAUSE: Final = 0.5
"""Seconds before a message while somebody reads or writes."""

WARN_SHARE: Final = 1 / 4
"""Of a term that is left when `status` begins to warn: a month and a half, with the peer's grace period after it, in which a
peer can come back, or repair put what it has elsewhere."""

CROWDED: Final = CONDEMNED_MAX // 2
"""Records of what is to be deleted, from which on those of peers away for CROWDED_AWAY seconds are dropped."""

CROWDED_AWAY: Final = 24 * 3600

_TABLE: Final = b"leases"


class LeaseRow(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What is remembered of a peer, in seconds since 1970 by our clock."""

    peer: PeerId
    seen: int
    """When it was there last, or first looked for."""
    renewed: int
    """When everything there was renewed last; 0 for never."""
    term: int
    """The term of its last receipt."""


def _left(row: LeaseRow, now: float) -> float:
    """Return the seconds until a peer's leases end, negative when they have. One that was never renewed was given its first
    shard about when it was seen last: a peer that can be seen is renewed at once. A clock that was set back ends nothing."""
    return min(row.renewed or row.seen, now) + row.term - now


class Renewer(Upkeep):
    """All leases of one volume. `run` in a nursery."""

    def __init__(self, parts: Parts, *, auditor: Auditor, is_busy: Callable[[], bool]) -> None:
        """Go on with what the journal says of each peer. Raises MalformedError."""
        super().__init__(parts)
        self._auditor = auditor
        self._is_busy = is_busy
        known = self._writer.journal.get(META, _TABLE)
        rows = codec.decode(known, tuple[LeaseRow, ...]) if known else ()
        self._rows: dict[PeerId, LeaseRow] = {row.peer: row for row in rows}
        self._failed: set[PeerId] = set()
        self._asked: set[PeerId] = set()
        self.renewed_shards = 0
        """Leases renewed since the start."""

    # ---- who is due ------------------------------------------------------------------------------------------------
    def _row(self, peer: PeerId) -> LeaseRow:
        return self._rows.get(peer) or LeaseRow(peer, int(time.time()), 0, LEASE_TERM)

    def _is_due(self, peer: PeerId) -> bool:
        row, now = self._row(peer), time.time()
        return not row.renewed <= now < row.renewed + row.term / SHARE

    def _is_wanted(self, peer: PeerId) -> bool:
        """Say whether a peer is to be asked in this round."""
        return peer not in self._failed and self._is_due(peer) and self._book.peer(peer).is_readable

    def warning(self) -> str:
        """Return what `status` says of hosts whose leases nobody could renew for most of their term, "" if there are none."""
        now = time.time()
        rows = [self._rows[peer] for peer in self._hosts.map.current if peer in self._rows]
        late = {row.peer: left for row in rows if (left := _left(row, now)) < row.term * WARN_SHARE}
        if not late:
            return ""
        first = min(late, key=late.__getitem__)
        peers = f"{len(late)} peer{'s' if len(late) > 1 else ''}"
        if late[first] > 0:
            end = f"the first, at {first.hex()[:8]}, end in {format_duration(late[first])}"
        else:
            end = f"those at {first.hex()[:8]} ended {format_duration(-late[first])} ago, and its grace period runs"
        return f"the leases of what is stored at {peers} have not been renewed for long: {end}"

    def _note_seen(self, now: int) -> None:
        """Note who is there. Remembered are hosts, and peers with leases or records of ours."""
        for peer in {*self._rows, *self._hosts.map.current}:
            row = self._row(peer)
            if peer not in self._rows or self._book.peer(peer).is_readable or row.seen > now:
                self._rows[peer] = msgspec.structs.replace(row, seen=now)

    def _save(self) -> None:
        self._writer.write_nowait([(META, _TABLE, codec.encode(tuple(self._rows.values())))])

    # ---- the loop --------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Renew until cancelled."""
        await self._hosts.wait_known()
        await trio.sleep(FIRST)
        while True:
            await self.look()
            await trio.sleep(LOOK)

    async def look(self) -> None:
        """Renew what is due now, and forget what nobody can be told any more."""
        now = int(time.time())
        self._note_seen(now)
        try:
            await self._drop_gone(now)
            self._failed, self._asked = set(), set()
            if any(map(self._is_wanted, {*self._rows, *self._hosts.map.current})):
                await self._renew_all()
                for peer in {*self._asked, *filter(self._is_wanted, self._hosts.map.current)} - self._failed:
                    self._rows[peer] = msgspec.structs.replace(self._row(peer), renewed=now)
        except FsdecloudError as exc:
            log.info("leases are renewed later: %s", exc)
        self._save()

    async def _drop_gone(self, now: int) -> None:
        crowded = self._garbage.count() >= CROWDED
        targets = await self._garbage.peers()
        for peer in targets - self._rows.keys():
            self._rows[peer] = self._row(peer)
        gone = {
            peer
            for peer in targets
            if not self._book.peer(peer).is_readable
            and now - self._rows[peer].seen > (CROWDED_AWAY if crowded else self._rows[peer].term)
        }
        if gone and (dropped := await self._garbage.drop(gone)):
            log.warning("%d shards at %d peers that are gone are left to the end of their leases", dropped, len(gone))
        kept = {*self._hosts.map.current, *targets}
        for peer in [peer for peer, row in self._rows.items() if peer not in kept and now - row.seen > 2 * row.term]:
            del self._rows[peer]

    # ---- renewing --------------------------------------------------------------------------------------------------
    async def _renew_all(self) -> None:
        """Ask all peers that are due for everything. Raises RemoteError when the map cannot be read."""
        pending: defaultdict[PeerId, dict[ShardId, int]] = defaultdict(dict)
        after, stop = BLOB_PREFIX, prefix_end(BLOB_PREFIX)
        while True:
            rows = await self._locations.rows_after(after, stop, PAGE)
            for key, value in rows:
                blob, row = BlobId(key[1:]), decode_blob_row(value)
                if self._garbage.get(blob) is not None:
                    continue
                size = 0 if self._uploader.is_on_its_way(blob) else shard_size(row.k, row.length)
                for index, peer in shard_places(row, self._hosts.ranking(blob, row.epoch)).items():
                    if self._is_wanted(peer):
                        pending[peer][row.shard(blob, index)] = size
            await self._flush(pending, BATCH)
            if len(rows) < PAGE:
                break
            after = rows[-1][0]
        await self._flush(pending, 1)
        for peer, shards in self._copies().items():
            pending[peer].update(dict.fromkeys(shards, 0))
        names = [ShardId(ref[:32]) for ref in await self._locations.reachable()]
        names += [ShardId(name) for name in self._locations.copies()]
        names += await self._manifests()
        for peer in filter(self._is_wanted, self._hosts.map.current):
            pending[peer].update(dict.fromkeys(names, 0))
        await self._flush(pending, 1)

    async def _manifests(self) -> list[ShardId]:
        """Return the manifests of all anchors: with them the operations of each can be verified."""
        names: list[ShardId] = []
        after, stop = MANIFEST_PREFIX, prefix_end(MANIFEST_PREFIX)
        while True:
            rows = await self._locations.rows_after(after, stop, PAGE)
            names += [ShardId(key[len(MANIFEST_PREFIX) :]) for key, _ in rows]
            if len(rows) < PAGE:
                return names
            after = rows[-1][0]

    def _copies(self) -> Mapping[PeerId, set[ShardId]]:
        """Return what is stored of blobs that are on their way."""
        found: defaultdict[PeerId, set[ShardId]] = defaultdict(set)
        for key, value in self._writer.journal.items(UPLOADS):
            if self._garbage.get(BlobId(key)) is not None:
                continue
            record = codec.decode(value, UploadRecord)
            for index, peer in record.holders:
                if self._is_wanted(peer):
                    found[peer].add(record.shards[index] if record.shards else ShardId(key))
        return found

    async def _flush(self, pending: dict[PeerId, dict[ShardId, int]], least: int) -> None:
        """Send what has gathered for each peer, in messages of BATCH shards, if that is at least `least`."""
        async with trio.open_nursery() as nursery:
            for peer in [peer for peer, shards in pending.items() if len(shards) >= least]:
                nursery.start_soon(self._send, peer, pending.pop(peer))

    async def _send(self, peer: PeerId, shards: dict[ShardId, int]) -> None:
        items = list(shards.items())
        for start in range(0, len(items), BATCH):
            if peer in self._failed:
                return
            if self._is_busy():
                await trio.sleep(BUSY_PAUSE)
            await self._ask(peer, dict(items[start : start + BATCH]))

    async def _ask(self, peer: PeerId, shards: Mapping[ShardId, int]) -> None:
        """Renew some shards of a peer; those with a size are lost if it does not have them."""
        self._asked.add(peer)
        try:
            with trio.fail_after(PATIENCE):
                receipt = await self._book.renew(peer, list(shards))
        except (RemoteError, ProtocolError, trio.TooSlowError) as exc:
            self._failed.add(peer)
            level = logging.WARNING if isinstance(exc, PeerRefused) else logging.INFO
            log.log(level, "peer %s renews no leases now: %s", peer.hex()[:16], exc)
            return
        kept = {item.id: item.length for item in receipt.shards} if receipt is not None else {}
        self.renewed_shards += len(kept)
        if receipt is not None:
            self._rows[peer] = msgspec.structs.replace(self._row(peer), term=receipt.term, seen=int(time.time()))
        self._note_lost(peer, (shard for shard, size in shards.items() if size and kept.get(shard) != size))

    def _note_lost(self, peer: PeerId, shards: Iterable[ShardId]) -> None:
        count = 0
        for count, shard in enumerate(shards, 1):  # noqa: B007 - counted
            self._auditor.note_lost(peer, shard)
        if count:
            log.warning("peer %s does not have %d shards of ours any more", peer.hex()[:16], count)
            self._auditor.on_change()
