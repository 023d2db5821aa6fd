"""What the agent will have deleted: blobs that nothing refers to any more, and how sure that is by now.

Called only from the trio thread. A *condemned* blob has a record in the journal, from the moment the driver's marks do not
find any of its entries until the last of its shards is gone:

    condemned     its rows are still in the location map; the next fold takes them out
    dropped       the map of generation G is the first one without it (`generation`)
    final         an anchor with a map of generation G or later is final in the ledger: no state that could come back needs it
    granted       the driver has signed deletions (`signed_until`), after marking once more

Nodes of the map that a fold replaces are condemned by the fold itself, so they are dropped at once.

**Nothing stands in the way of storing.** Whoever stores a shard that a record names calls `reclaim` before it is sent: the
record lets go of that shard first, durably. If a deletion of it is signed and may be on its way, `reclaim` waits until it is
answered or has expired: it could arrive after the new shard. So what is stored again is safe at every moment. Of
blobs on their way to the peers only nodes of the map can be condemned, by a fold that comes soon after the one that made them;
no deletion is signed before they are there, and a fold that makes the same node once more voids the record.

When another device has written the volume, all records are void: it may have stored any of them again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Collection, Container, Iterable, Mapping, Sequence
from typing import Final

import msgspec
import trio

from fsdecloud import codec
from fsdecloud.agent.journal import (
    CONDEMNED,
    CONDEMNED_SHARDS,
    GENERATIONS,
    META,
    ROWS,
    Journal,
    JournalWriter,
    Write,
)
from fsdecloud.agent.rows import blob_key, entry_key
from fsdecloud.fs.keys import prefix_end
from fsdecloud.types import BlobId, EntryId, PeerId, ShardId

log = logging.getLogger(__name__)

CONDEMNED_MAX: Final = 20_000
"""Blobs condemned at once, about 20 GB of large ones: bounds journal and memory; the next collection goes on."""

TRIES_MAX: Final = 8
"""How often a peer is asked to delete a shard before it is left with it: it was stored before there were owners, or its
clock is wrong."""


MOVED_MAX: Final = CONDEMNED_MAX // 2
"""Blobs of which shards that were made again elsewhere are remembered: a peer that never returns must not fill the table."""

_MOVED: Final = b"moved"
"""Before a blob's id in the key of such a record: the blob itself is in use."""


STEP: Final = 64
"""Records decoded between two checkpoints: half a millisecond."""


class Condemned(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One blob that is to go."""

    entries: tuple[EntryId, ...]
    """What lay in it, as far as the map said so; empty for a node of the map."""
    left: tuple[tuple[ShardId, PeerId], ...]
    """Shards that are still to be deleted, and where they are."""
    shard_size: int
    generation: int = 0
    """Of the first map without it, 0 while there is none."""
    signed_until: int = 0
    """Until when (seconds since 1970) a signed deletion of some of `left` may take effect; 0: there is none."""
    tries: int = 0
    is_node: bool = False
    """A node of the map, of which there are some after each anchor."""


class Garbage:
    """All condemned blobs of the volume."""

    def __init__(self, writer: JournalWriter) -> None:
        self._writer = writer
        self._journal: Journal = writer.journal
        self.lock = trio.Lock()
        """Held while records are made, dropped or reclaimed, and while the map is folded."""
        self._answered = trio.Event()
        self.generation = int(self._journal.get(META, b"map_generation") or b"0")
        self.final_generation = int(self._journal.get(META, b"final_generation") or b"0")
        self.tried_generation = 0
        """Records final up to here were asked for by this agent: what is left of them waits for its peers."""
        self.freed_shards = 0
        self.freed_bytes = 0
        self.keeps_moved = True
        """Whether what shards leave behind is noted: not by who may not delete."""
        self._index()

    def _index(self) -> None:
        """Make the table of generations, which an older release did not keep."""
        journal = self._journal
        if journal.count(CONDEMNED) and not journal.count(GENERATIONS):
            records = ((BlobId(key), codec.decode(value, Condemned)) for key, value in journal.items(CONDEMNED))
            journal.apply([(GENERATIONS, _by_generation(blob, record), b"") for blob, record in records])

    # ---- reading ---------------------------------------------------------------------------------------------------
    def get(self, blob: BlobId) -> Condemned | None:
        """Return a blob's record, None if it is not condemned."""
        data = self._journal.get(CONDEMNED, blob)
        return codec.decode(data, Condemned) if data is not None else None

    async def items(self, prefix: bytes = b"") -> AsyncIterator[tuple[BlobId, Condemned]]:
        """Yield all records whose blob's id starts with `prefix`; others have their turn meanwhile."""
        after, stop = prefix, prefix_end(prefix) if prefix else None
        while True:
            page = self._journal.items_after(CONDEMNED, after, STEP)
            for key, value in page:
                if stop is not None and key >= stop:
                    return
                yield BlobId(key), codec.decode(value, Condemned)
            if len(page) < STEP:
                return
            after = page[-1][0]
            await trio.lowlevel.checkpoint()

    def count(self) -> int:
        """Return how many blobs are condemned."""
        return self._journal.count(CONDEMNED)

    async def _of_generations(self, first: int, last: int) -> list[tuple[BlobId, Condemned]]:
        found = []
        keys = self._journal.keys_between(GENERATIONS, first.to_bytes(8, "big"), (last + 1).to_bytes(8, "big"))
        for number, key in enumerate(keys, 1):
            blob = BlobId(key[9:])
            record = self.get(blob)
            if record is not None:  # it may have gone meanwhile
                found.append((blob, record))
            if number % STEP == 0:
                await trio.lowlevel.checkpoint()
        return found

    async def finals(self) -> list[tuple[BlobId, Condemned]]:
        """Return the records whose deletion may be asked for."""
        return await self._of_generations(1, self.final_generation)

    def generations(self, *, with_moved: bool = False) -> list[int]:
        """Return the generation of each condemned blob but nodes of the map, and but moved shards if not asked, ascending."""
        keys = self._journal.keys_between(GENERATIONS, b"", b"\xff")
        return [
            int.from_bytes(key[:8], "big") for key in keys if not key[8] or (with_moved and key.startswith(_MOVED, 9))
        ]

    async def peers(self) -> set[PeerId]:
        """Return who is to delete something."""
        return {peer async for _, record in self.items() for _, peer in record.left}

    async def drop(self, gone: Collection[PeerId]) -> int:
        """Forget what some peers are to delete: they are not there, and leases end it. Returns how many shards that were."""
        count = 0
        async with self.lock:
            writes: list[Write] = []
            async for blob, record in self.items():
                left = tuple(item for item in record.left if item[1] not in gone)
                if len(left) < len(record.left):
                    count += len(record.left) - len(left)
                    writes += self._delete(blob, record)
                    if left or not record.generation:
                        writes += self._put(blob, msgspec.structs.replace(record, left=left))
            await self._writer.write(writes)
        return count

    # ---- condemning ------------------------------------------------------------------------------------------------
    async def condemn(self, records: Mapping[BlobId, Condemned], more: Sequence[Write] = ()) -> None:
        """Note blobs that nothing refers to; durable on return. The caller holds the lock."""
        writes: list[Write] = [*more]
        for blob, record in records.items():
            writes += self._put(blob, record)
        await self._writer.write(writes)

    async def dropping(self) -> tuple[list[tuple[bytes, None]], list[tuple[BlobId, Condemned]]]:
        """Return the map's keys that a fold must delete, and the records they belong to. The caller holds the lock.

        A key with a newer row in the journal is no part of it: that was stored again, elsewhere.
        """
        keys: list[tuple[bytes, None]] = []
        records = await self._of_generations(0, 0)
        for blob, record in records:
            inside = (entry_key(entry) for entry in record.entries if bytes(entry) != bytes(blob))
            keys += [(key, None) for key in (blob_key(blob), *inside) if not self._journal.has(ROWS, key)]
        return keys, records

    def dropped(
        self, records: Iterable[tuple[BlobId, Condemned]], nodes: Iterable[bytes], peers: Sequence[PeerId], size: int
    ) -> list[Write]:
        """Return the writes of a fold's transaction for a new generation of the map, which begins when they are done.

        `nodes` are the ids of nodes that this fold replaced: whole copies of about `size` bytes with some of `peers`.
        """
        generation = self.generation + 1
        writes: list[Write] = [(META, b"map_generation", str(generation).encode())]
        for blob, record in records:
            writes += self._delete(blob, record)
            writes += self._put(blob, msgspec.structs.replace(record, generation=generation))
        room = CONDEMNED_MAX - self.count()
        for node in nodes:
            blob = BlobId(node)
            if room > 0 and self.get(blob) is None:
                room -= 1
                left = tuple((ShardId(node), peer) for peer in peers)
                writes += self._put(blob, Condemned((), left, size, generation, is_node=True))
        return writes

    def spared(self, nodes: Iterable[BlobId]) -> list[Write]:
        """Return the writes of a fold's transaction for nodes that the map has again and that are on their way still: nobody
        will `reclaim` them. No deletion of them is signed as long as they are."""
        writes: list[Write] = []
        for node in nodes:
            record = self.get(node)
            if record is not None:
                writes += self._delete(node, record)
        return writes

    async def finalize(self, generation: int) -> None:
        """An anchor with the map of this generation is final."""
        if generation > self.final_generation:
            self.final_generation = generation
            await self._writer.write([(META, b"final_generation", str(generation).encode())])

    async def forget_all(self) -> None:
        """Another device has written the volume: nothing is condemned any more."""
        async with self.lock:
            writes: list[Write] = []
            async for blob, record in self.items():
                writes += self._delete(blob, record)
            await self._writer.write(writes)
        if writes:
            log.info("another device has written the volume: what was to be deleted stays")

    # ---- moved shards ----------------------------------------------------------------------------------------------
    def moved(
        self, blob: BlobId, left: Iterable[tuple[ShardId, PeerId]], size: int, *, is_copy: bool = False
    ) -> list[Write]:
        """Return the writes that note shards (and peers) that a blob has elsewhere from the next map on. The caller holds the
        lock, and writes the blob's new row with them.

        They go like nodes of the map, once an anchor with that map is final. A whole copy (`is_copy`) stands in no map: it
        goes with the present one.
        """
        if not self.keeps_moved:
            return []
        owner = BlobId(_MOVED + blob)
        before = self.get(owner)
        if before is None and self._journal.count(CONDEMNED) >= MOVED_MAX:
            log.warning("too much is to be deleted: %s leaves shards behind", blob.hex()[:16])
            return []
        record = before or Condemned((), (), size, is_node=True)
        gone = tuple(dict.fromkeys((*record.left, *left)))
        if not gone:
            return []
        writes = self._delete(owner, record) if before is not None else []
        generation = max(self.generation, 1) if is_copy else self.generation + 1
        # A deletion that is signed already stays so: whoever stores there again waits for it.
        return writes + self._put(owner, msgspec.structs.replace(record, left=gone, generation=generation))

    def has_room(self) -> bool:
        """Say whether shards of more blobs may be left behind by what can wait: repair has some room of its own."""
        return self._journal.count(CONDEMNED) < MOVED_MAX * 3 // 4

    async def has_moved(self) -> set[tuple[ShardId, PeerId]]:
        """Return what is noted by `moved`: the shards are in use, but not at these peers."""
        return {item async for _, record in self.items(_MOVED) for item in record.left}

    def is_moved(self, owner: BlobId) -> bool:
        """Say whether a record is of moved shards."""
        return owner.startswith(_MOVED)

    # ---- storing goes first ----------------------------------------------------------------------------------------
    async def reclaim(self, blob: BlobId, shards: Iterable[ShardId], peers: Container[PeerId] | None = None) -> None:
        """Have no record name this blob or any of these shards, which are about to be stored; durable on return.

        With `peers` they go only there: what was moved away from others still goes.
        """
        wanted = set(shards)

        def is_wanted(owner: BlobId, shard: ShardId, peer: PeerId) -> bool:
            return shard in wanted and (peers is None or peer in peers or not self.is_moved(owner))

        while True:
            async with self.lock:
                owners = {blob} if self._journal.has(CONDEMNED, blob) else set()
                for shard in wanted:
                    owners.update(self._owners(shard))
                records = {owner: record for owner in owners if (record := self.get(owner)) is not None}
                now = time.time()
                if not any(record.signed_until > now for record in records.values()):
                    writes: list[Write] = []
                    for owner, record in records.items():
                        left = () if owner == blob else tuple(i for i in record.left if not is_wanted(owner, *i))
                        writes += self._delete(owner, record)
                        if left or (owner != blob and not record.generation):
                            writes += self._put(owner, msgspec.structs.replace(record, left=left))
                    if writes:
                        await self._writer.write(writes)
                    return
                answered = self._answered
            log.info("blob %s is stored again: waiting for the end of its deletion", blob.hex()[:16])
            with trio.move_on_after(1.0):
                await answered.wait()

    async def spare(self, shards: Iterable[ShardId]) -> None:
        """Have no final record name these shards: blobs that are in use have them as well."""
        for shard in shards:
            for owner in self._owners(shard):
                async with self.lock:
                    record = self.get(owner)
                    if record is not None:
                        left = tuple(item for item in record.left if item[0] != shard)
                        writes = self._delete(owner, record)
                        if left:
                            writes += self._put(owner, msgspec.structs.replace(record, left=left))
                        await self._writer.write(writes)

    # ---- deleting --------------------------------------------------------------------------------------------------
    async def signing(self, blobs: Iterable[BlobId], until: int) -> None:
        """Note, before anything is signed, that deletions of these blobs may take effect until then.

        The caller holds the lock.
        """
        writes: list[Write] = []
        for blob in blobs:
            record = self.get(blob)
            if record is not None:
                changed = msgspec.structs.replace(record, signed_until=max(until, record.signed_until))
                writes.append((CONDEMNED, blob, codec.encode(changed)))
        await self._writer.write(writes)

    async def gone(self, peer: PeerId, shards: Mapping[BlobId, Sequence[ShardId]]) -> None:
        """A peer has let go of shards."""
        async with self.lock:
            writes: list[Write] = []
            for blob, ids in shards.items():
                record = self.get(blob)
                if record is None:
                    continue
                left = tuple(item for item in record.left if item[1] != peer or item[0] not in ids)
                self.freed_shards += len(record.left) - len(left)
                self.freed_bytes += (len(record.left) - len(left)) * record.shard_size
                writes += self._delete(blob, record)
                if left:
                    writes += self._put(blob, msgspec.structs.replace(record, left=left))
            await self._writer.write(writes)

    async def forget(self, blob: BlobId) -> None:
        """Drop a record of which nothing is left to delete."""
        async with self.lock:
            record = self.get(blob)
            if record is not None and not record.left:
                await self._writer.write(self._delete(blob, record))

    async def settled(self, blobs: Iterable[BlobId], *, tried: bool) -> None:
        """No deletion of these blobs is on its way any more: each was answered. Give up those tried too often."""
        async with self.lock:
            writes: list[Write] = []
            for blob in blobs:
                record = self.get(blob)
                if record is None:
                    continue
                tries = record.tries + tried
                if tries >= TRIES_MAX:
                    log.warning("%d shards stay with peers that do not delete them", len(record.left))
                    writes += self._delete(blob, record)
                else:
                    changed = msgspec.structs.replace(record, signed_until=0, tries=tries)
                    writes.append((CONDEMNED, blob, codec.encode(changed)))
            await self._writer.write(writes)
        event, self._answered = self._answered, trio.Event()
        event.set()

    # ---- inside ----------------------------------------------------------------------------------------------------
    def _owners(self, shard: ShardId) -> list[BlobId]:
        return [BlobId(key[32:]) for key in self._journal.keys_from(CONDEMNED_SHARDS, shard)]

    def _put(self, blob: BlobId, record: Condemned) -> list[Write]:
        writes: list[Write] = [
            (CONDEMNED, blob, codec.encode(record)),
            (GENERATIONS, _by_generation(blob, record), b""),
        ]
        return writes + [(CONDEMNED_SHARDS, shard + blob, b"") for shard in {shard for shard, _ in record.left}]

    def _delete(self, blob: BlobId, record: Condemned) -> list[Write]:
        writes: list[Write] = [(CONDEMNED, blob, None), (GENERATIONS, _by_generation(blob, record), None)]
        return writes + [(CONDEMNED_SHARDS, shard + blob, None) for shard in {shard for shard, _ in record.left}]


def _by_generation(blob: BlobId, record: Condemned) -> bytes:
    return record.generation.to_bytes(8, "big") + bytes([record.is_node]) + blob
