"""How final garbage is deleted: the driver signs, the peers answer, and what they let go of is forgotten.

Called only from the trio thread. A deletion is signed right before it is sent and holds for a short time, so that nothing
signed lies about; what is to be deleted waits in the journal (`agent.garbage`) for the next time, as long as its peer does
not answer, and is forgotten when the peer has left the network.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from fsdecloud.agent.garbage import Condemned, Garbage
from fsdecloud.agent.hosts import Hosts
from fsdecloud.agent.peers import PeerBook
from fsdecloud.agent.upload import Uploader
from fsdecloud.errors import FsdecloudError, PeerRefused
from fsdecloud.types import BlobId, PeerId, ShardId
from fsdecloud.wire.agentapi import GRANT_LIFE, GrantBlob, SignedGrant, SignGrant

log = logging.getLogger(__name__)

BATCH: Final = 1024
"""Shards of one grant."""

PEERS_AT_ONCE: Final = 4

PATIENCE: Final = 30.0
"""Seconds for one peer's answer."""

MARGIN: Final = 60
"""Seconds after its end for which a grant is still reckoned with: the peer's clock."""

Sign = Callable[[SignGrant], Awaitable[SignedGrant]]
Release = Callable[[PeerId, Sequence[ShardId]], Awaitable[None]]


class Granter:
    """Deletes what is final. One call at a time."""

    def __init__(
        self,
        garbage: Garbage,
        uploader: Uploader,
        book: PeerBook,
        hosts: Hosts,
        sign: Sign,
        release: Release | None = None,
    ) -> None:
        """`release` returns once no deal with the peer names some shards: it would have to prove what it deleted."""
        self._garbage = garbage
        self._uploader = uploader
        self._book = book
        self._hosts = hosts
        self._sign = sign
        self._release = release
        self._unanswered: set[BlobId] = set()
        self._kept: set[BlobId] = set()

    async def run(self) -> int:
        """Have the peers delete what is final; return how many shards wait for peers that did not answer."""
        wanted: defaultdict[PeerId, list[tuple[BlobId, ShardId]]] = defaultdict(list)
        blobs: dict[BlobId, Condemned] = dict(await self._garbage.finals())
        for blob, record in blobs.items():
            if not record.left:
                await self._garbage.forget(blob)
            for shard, peer in record.left:
                wanted[peer].append((blob, shard))
        self._unanswered, self._kept = set(), set()
        limiter = trio.CapacityLimiter(PEERS_AT_ONCE)
        async with trio.open_nursery() as nursery:
            for peer, items in wanted.items():
                nursery.start_soon(self._delete_from, peer, items, limiter)
        await self._garbage.settled(blobs.keys() - self._unanswered - self._kept, tried=False)
        await self._garbage.settled(self._kept - self._unanswered, tried=True)
        return sum(len(record.left) for _, record in await self._garbage.finals())

    async def _delete_from(
        self, peer: PeerId, items: Sequence[tuple[BlobId, ShardId]], limiter: trio.CapacityLimiter
    ) -> None:
        async with limiter:
            has_left = self._book.registry and peer not in self._hosts.map.current
            if has_left and self._book.peer(peer).address is None:
                log.info("peer %s has left: nothing more is deleted there", peer.hex()[:16])
                await self._garbage.gone(peer, _by_blob(items))
                return
            for start in range(0, len(items), BATCH):
                try:
                    with trio.fail_after(PATIENCE):
                        await self._delete_batch(peer, items[start : start + BATCH])
                except (FsdecloudError, trio.TooSlowError) as exc:
                    log.info("peer %s does not delete now: %s", peer.hex()[:16], exc)
                    self._unanswered.update(blob for blob, _ in items[start : start + BATCH])
                    return

    async def _delete_batch(self, peer: PeerId, items: Sequence[tuple[BlobId, ShardId]]) -> None:
        garbage = self._garbage
        async with garbage.lock:
            records: dict[BlobId, Condemned] = {}
            for blob in {blob for blob, _ in items}:
                record = garbage.get(blob)
                if record is not None and not self._uploader.is_on_its_way(blob):
                    records[blob] = record
            present = [(b, shard) for b, shard in items if b in records and (shard, peer) in records[b].left]
            await garbage.signing(records, int(time.time()) + GRANT_LIFE + MARGIN)
        if not present:
            return
        if self._release is not None:
            await self._release(peer, [shard for _, shard in present])
        asked = tuple(GrantBlob(b, records[b].entries, tuple(shards)) for b, shards in _by_blob(present).items())
        signed = await self._sign(SignGrant(peer, asked))
        refused = set(signed.refused)
        if refused:
            log.warning("the driver does not let %d blobs be deleted: they are in use", len(refused))
        if not signed.grant:
            return
        try:
            kept = await self._book.delete(peer, signed.grant)
        except PeerRefused as exc:
            log.warning("peer %s refuses to delete: %s", peer.hex()[:16], exc)
            self._kept.update(records)
            return
        self._kept.update(blob for blob, shard in present if shard in kept)
        await garbage.gone(peer, _by_blob([(b, s) for b, s in present if b not in refused and s not in kept]))


def _by_blob(items: Sequence[tuple[BlobId, ShardId]]) -> dict[BlobId, list[ShardId]]:
    found: dict[BlobId, list[ShardId]] = {}
    for blob, shard in items:
        found.setdefault(blob, []).append(shard)
    return found
