"""What all have in common that give shards of stored blobs new places: repair, re-coding, settling.

Called only from the trio thread. One budget of bytes a second, a small one while somebody reads or writes (fault 64):
foreground goes first. And one transaction for each blob: its row, the receipts that are kept of it, and what is left
behind at peers; a crash before it leaves the old row, which is right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import trio

from fsdecloud import codec
from fsdecloud.agent.erasure import shard_size
from fsdecloud.agent.journal import META, ROWS, Write
from fsdecloud.agent.rows import BlobRow, blob_key, decode_blob_row, moved_row
from fsdecloud.agent.upkeep import Parts, Upkeep
from fsdecloud.errors import FsdecloudError, PeerRefused, ProtocolError, RemoteError, RemoteTimeout
from fsdecloud.swarm.bucket import TokenBucket
from fsdecloud.types import BlobId, PeerId, ShardId

PUT_TIMEOUT: Final = 60.0

HAS_TIMEOUT: Final = 20.0

_UNANCHORED: Final = b"repaired"
"""In the journal's table `meta` while some rows of blobs that moved are in no map that was anchored."""


class Stale(FsdecloudError):
    """The blob changed while it was worked at, or is to be deleted."""


class Mover(Upkeep):
    """Sends shards of stored blobs, and writes down where they are."""

    def __init__(self, parts: Parts, *, moved: Callable[[int, str], None]) -> None:
        """`moved` is called with how many blobs have new places (0: some before this agent began, or none that a person need
        know of), and with the redundancy that they were given, "" if it is the one they had."""
        super().__init__(parts)
        self._budget = TokenBucket(self._policy.rate, self._policy.burst, trio.current_time())
        self.moved = moved
        self.changes = 0
        """Rows that were written since the start."""

    # ---- what is there ---------------------------------------------------------------------------------------------
    def is_left_alone(self, blob: BlobId) -> bool:
        """Say whether a blob is nobody's business here: it is being stored, or will be deleted."""
        return self._uploader.is_on_its_way(blob) or self._garbage.get(blob) is not None

    async def find_row(self, blob: BlobId) -> tuple[bytes, BlobRow] | None:
        """Return a blob's row, encoded too, None if there is none. Raises RemoteError when the map cannot be read."""
        (data,) = await self._locations.find([blob_key(blob)])
        return None if data is None else (data, decode_blob_row(data))

    async def has(self, peer: PeerId, shards: Sequence[ShardId]) -> list[bool] | None:
        """Ask a peer which shards it has; None when it does not answer."""
        with trio.move_on_after(HAS_TIMEOUT):
            try:
                return list(await self._book.has(peer, shards))
            except (RemoteError, ProtocolError):
                return None
        return None

    @property
    def has_unanchored(self) -> bool:
        """True while the next anchor should have a new location map."""
        return self._writer.journal.has(META, _UNANCHORED)

    def note_committed(self, changes: int) -> None:
        """A map is complete that was written when there were so many `changes`."""
        if changes == self.changes:
            self._writer.write_nowait([(META, _UNANCHORED, None)])

    # ---- moving ----------------------------------------------------------------------------------------------------
    async def pay(self, size: int) -> None:
        """Wait until the budget allows so many bytes."""
        policy, now = self._policy, trio.current_time()
        is_busy = self._fetcher.is_busy or self._uploader.is_busy
        self._budget.change(policy.rate_busy if is_busy else policy.rate, policy.burst, now)
        await trio.sleep(self._budget.take(size, now))

    async def send(self, peer: PeerId, shard: ShardId, data: bytes | memoryview) -> bytes:
        """Store a shard with a peer, behind what the user stores; return the receipt. Raises RemoteError, ProtocolError."""
        await self._book.up.take(peer, len(data), is_background=True)
        try:
            with trio.fail_after(PUT_TIMEOUT):
                receipt = await self._book.put(peer, [(shard, data)])
        except trio.TooSlowError:
            raise RemoteTimeout(f"{self._book.peer(peer).name} does not take a shard in time") from None
        if all(item.id != shard for item in receipt.shards):
            raise PeerRefused(f"{self._book.peer(peer).name} did not take a shard")
        return codec.encode(receipt)

    # ---- writing it down -------------------------------------------------------------------------------------------
    def row_for(self, blob: BlobId, row: BlobRow, places: Mapping[int, PeerId]) -> BlobRow:
        """Return the row of a blob with these places, for the epoch (the latest or its own) that needs fewer exceptions."""
        epochs = (self._hosts.map.epoch, row.epoch)
        return moved_row(row, places, {epoch: self._hosts.ranking(blob, epoch) for epoch in epochs})

    async def write(
        self,
        blob: BlobId,
        before: bytes,
        old: tuple[BlobRow, Mapping[int, PeerId]],
        new: tuple[BlobRow, Mapping[int, PeerId]],
        receipts: Callable[[], Sequence[Write]],
        is_wanted: Callable[[], bool] = lambda: True,
        left: Sequence[tuple[ShardId, PeerId]] = (),
    ) -> None:
        """Make a blob's new row and places durable, in one transaction. Raises Stale when the row is not `before` by now, or
        it is not wanted any more.

        `old` and `new` are the row and who has which shard; `receipts` gives the writes for what is kept with it;
        `left` are shards that are left behind besides those of the old row.
        """
        async with self._garbage.lock:
            found = await self.find_row(blob)
            if found is None or found[0] != before or self.is_left_alone(blob) or not is_wanted():
                raise Stale(f"blob {blob.hex()[:16]} changed while it was worked at")
            # Nobody may think that a peer has to let go of a shard that another index of the blob (k = 1) has there.
            row, places = new
            kept = {(row.shard(blob, index), peer) for index, peer in places.items()}
            gone = [*left, *((old[0].shard(blob, index), peer) for index, peer in old[1].items())]
            writes: list[Write] = [(ROWS, blob_key(blob), codec.encode(row)), *receipts()]
            size = shard_size(old[0].k, old[0].length)
            writes += self._garbage.moved(blob, [item for item in gone if item not in kept], size)
            await self.write_rows(writes)

    async def write_rows(self, writes: Sequence[Write]) -> None:
        """Make new rows durable, with what else changes; the next anchor should have a map with them. The caller holds the lock
        of the garbage."""
        self.changes += 1
        await self._writer.write([*writes, (META, _UNANCHORED, b"1")])
