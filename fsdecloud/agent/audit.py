"""Looking at what is stored, for `decloud fsck`: what the location map knows, what the peers say that they have, and whether
the receipts that are kept of them bear out who has what.

Called only from the trio thread. Changes nothing. A peer's word is no proof; reading is (`decloud fsck --data`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

import trio

from fsdecloud import codec
from fsdecloud.agent.hosts import Hosts
from fsdecloud.agent.journal import UPLOADS, Journal
from fsdecloud.agent.locations import LocationMap
from fsdecloud.agent.peers import PeerBook
from fsdecloud.agent.rows import (
    BLOB_PREFIX,
    BlobRow,
    UploadRecord,
    blob_key,
    decode_blob_row,
    decode_entry_row,
    entry_key,
)
from fsdecloud.errors import MalformedError, ProtocolError, RemoteError, SealError
from fsdecloud.fs.keys import prefix_end
from fsdecloud.types import BlobId, EntryId, PeerId, ShardId
from fsdecloud.wire.agentapi import BlobShards, ReceiptPage, ShardPage, WrongReceipts
from fsdecloud.wire.peer import IDS_MAX
from fsdecloud.wire.receipts import verify_receipt

BLOBS: Final = 512
"""Blobs looked at in one step: at most one question to each peer in the usual case."""

PATIENCE: Final = 15.0
"""Seconds for a peer to answer; one that does not counts as silent."""


class Audit:
    """Answers about the locations of one volume."""

    def __init__(self, journal: Journal, locations: LocationMap, hosts: Hosts, book: PeerBook) -> None:
        self._journal = journal
        self._locations = locations
        self._hosts = hosts
        self._book = book

    async def unknown(self, entries: Sequence[EntryId]) -> list[EntryId]:
        """Return those of the entries whose place is not known. Raises RemoteError when the map cannot be read."""
        keys = sorted(key for entry in entries for key in (blob_key(BlobId(entry)), entry_key(entry)))
        found = dict(zip(keys, await self._locations.find(keys), strict=True))
        packed: dict[EntryId, BlobId] = {}
        for entry in entries:
            row = found[entry_key(entry)]
            if found[blob_key(BlobId(entry))] is None and row is not None:
                packed[entry] = decode_entry_row(row).blob
        packs = sorted(set(packed.values()))
        present = dict(zip(packs, await self._locations.find([blob_key(blob) for blob in packs]), strict=True))
        return [
            entry
            for entry in entries
            if found[blob_key(BlobId(entry))] is None
            and (entry not in packed or present[packed[entry]] is None)
        ]  # fmt: skip

    async def shards(self, after: bytes) -> ShardPage:
        """Ask the peers for the shards of the blobs after one. Raises RemoteError when the map cannot be read."""
        rows = await self._locations.rows_after(BLOB_PREFIX + after, prefix_end(BLOB_PREFIX), BLOBS)
        blobs = [(BlobId(key[1:]), decode_blob_row(value)) for key, value in rows]
        sent = {blob: self._sent(blob, row) for blob, row in blobs}
        places = {blob: self._places(blob, row, sent[blob]) for blob, row in blobs}
        wanted: defaultdict[PeerId, dict[ShardId, None]] = defaultdict(dict)
        for sources in places.values():
            for shard, peers in sources:
                for peer in peers:
                    wanted[peer][shard] = None
        present: dict[tuple[PeerId, ShardId], bool] = {}
        async with trio.open_nursery() as nursery:
            for peer, ids in wanted.items():
                nursery.start_soon(self._ask, peer, list(ids), present)
        short = []
        for blob, row in blobs:
            have = silent = 0
            for shard, peers in places[blob]:
                answers = [present.get((peer, shard)) for peer in peers]
                have += any(answers)
                silent += not any(answers) and None in answers
            if have < len(sent[blob]):
                short.append(BlobShards(blob, row.k, len(sent[blob]), have, silent))
        under_way = sum(len(sent[blob]) < row.n for blob, row in blobs)
        return ShardPage(len(blobs), under_way, tuple(short), blobs[-1][0] if len(blobs) == BLOBS else b"")

    async def receipts(self, after: bytes) -> ReceiptPage:
        """Check the kept receipts of the blobs after one. Raises RemoteError when the map cannot be read."""
        items = self._journal.items_after(UPLOADS, after, BLOBS)
        rows = await self._locations.find([blob_key(BlobId(key)) for key, _data in items])
        count, wrong = 0, []
        for (key, data), row in zip(items, rows, strict=True):
            blob = BlobId(key)
            try:
                record = codec.decode(data, UploadRecord)
                found = decode_blob_row(row) if row is not None else None
            except MalformedError as exc:
                wrong.append(WrongReceipts(blob, f"what is kept of it cannot be read: {exc}"))
                continue
            count += len(record.receipts)
            ranking = self._hosts.ranking(blob, found.epoch) if found is not None else ()
            reason = await trio.to_thread.run_sync(wrong_receipts, blob, record, found, ranking)
            if reason:
                wrong.append(WrongReceipts(blob, reason))
        return ReceiptPage(count, tuple(wrong), items[-1][0] if len(items) == BLOBS else b"")

    def _sent(self, blob: BlobId, row: BlobRow) -> Sequence[int]:
        """Return the indexes of the shards that peers gave receipts for: all n, unless the upload still goes on."""
        data = self._journal.get(UPLOADS, blob)
        if data is None:
            return range(row.n)
        try:
            return [index for index, _peer in codec.decode(data, UploadRecord).holders]
        except MalformedError:  # `receipts` tells it
            return range(row.n)

    def _places(self, blob: BlobId, row: BlobRow, indexes: Sequence[int]) -> list[tuple[ShardId, tuple[PeerId, ...]]]:
        """Return each of these shards and who may have it: the peer that the row names, and its hosts under newer epochs."""
        exceptions = dict(row.exceptions)
        rankings = [self._hosts.ranking(blob, epoch) for epoch in (row.epoch, self._hosts.map.epoch)]
        found = []
        for index in indexes:
            peers = [exceptions[index]] if index in exceptions else []
            peers += [ranking[index] for ranking in rankings if index < len(ranking)]
            found.append((row.shard(blob, index), tuple(dict.fromkeys(peers))))
        return found

    async def _ask(self, peer: PeerId, ids: list[ShardId], present: dict[tuple[PeerId, ShardId], bool]) -> None:
        for start in range(0, len(ids), IDS_MAX):
            part = ids[start : start + IDS_MAX]
            with trio.move_on_after(PATIENCE):
                try:
                    answers = await self._book.has(peer, part)
                except (RemoteError, ProtocolError):
                    return
                present.update(((peer, shard), answer) for shard, answer in zip(part, answers, strict=True))


def wrong_receipts(blob: BlobId, record: UploadRecord, row: BlobRow | None, ranking: Sequence[PeerId]) -> str:
    """Return what is wrong with the receipts that are kept of a blob, "" if nothing is.

    Each must be signed by its peer, and each shard that counts as stored must stand in one of the peer that has it. A complete
    blob of the driver's must be in the location map (`row`) with the same places; `ranking` is its hosts under the row's epoch.
    """
    covered: set[tuple[PeerId, ShardId]] = set()
    for data in record.receipts:
        try:
            receipt = verify_receipt(data)
        except (MalformedError, SealError) as exc:
            return f"a receipt does not verify: {exc}"
        covered.update((receipt.peer, item.id) for item in receipt.shards)
    exceptions = dict(row.exceptions) if row is not None else {}
    is_mapped = bool(record.entries) and len(record.holders) == record.n
    if is_mapped and row is None:
        return "all its receipts are there, and the location map does not know it"
    for index, peer in record.holders:
        shard = record.shards[index] if record.shards else ShardId(blob)
        if (peer, shard) not in covered:
            return f"no receipt of peer {peer.hex()[:16]} names shard {index}, which it is said to have"
        if row is not None and is_mapped:
            place = exceptions.get(index, ranking[index] if index < len(ranking) else peer)
            if place != peer or row.shard(blob, index) != shard:
                return (
                    f"its receipts say that peer {peer.hex()[:16]} has shard {index}, the location map says otherwise"
                )
    return ""
