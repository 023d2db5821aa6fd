"""What is stored as whole copies and stands in no row of the location map: its nodes, manifests, the host map.

Called only from the trio thread. Peers are asked who has a copy; where there are too few, what is missing is stored again with
its hosts. Repair does it for what the latest anchor needs. Older manifests, of which there is one for each anchor, have their
turn when the redundancy becomes a stronger one: they have the copies of their time else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import trio

from fsdecloud.agent.journal import META, NODES, Write
from fsdecloud.agent.locations import NODE_SIZE
from fsdecloud.agent.moving import Mover
from fsdecloud.agent.rows import MANIFEST_PREFIX
from fsdecloud.agent.upkeep import Parts, Upkeep
from fsdecloud.fs.keys import prefix_end
from fsdecloud.swarm.repair import repair_cost
from fsdecloud.types import BlobId, EntryId, PeerId, ShardId
from fsdecloud.wire.peer import IDS_MAX

_COPIES: Final = b"copies"
"""In the journal's table `meta`: how many copies all manifests have at least."""


class Copies(Upkeep):
    """Keeps enough whole copies."""

    def __init__(self, parts: Parts, *, mover: Mover) -> None:
        super().__init__(parts)
        self._mover = mover

    async def repair(self) -> float:
        """Store again what the latest anchor needs and of which there are too few copies; have hosts that leave for good let go
        of theirs. Returns the seconds that it took to look at the map. Raises RemoteError."""
        started = trio.current_time()
        names = [BlobId(ref[:32]) for ref in await self._locations.reachable()]
        seconds = trio.current_time() - started
        names += self._locations.copies()
        for start in range(0, len(names), IDS_MAX):
            enough = await self._bring(names[start : start + IDS_MAX])
            await self._release(enough)
        return seconds

    async def bring_manifests(self, copies: int) -> None:
        """See to it that all manifests have so many copies, unless they had once. Raises RemoteError."""
        known = int(self._writer.journal.get(META, _COPIES) or b"0")
        if known >= copies or len(self._usable()) < copies:
            return
        after, stop = MANIFEST_PREFIX, prefix_end(MANIFEST_PREFIX)
        while True:
            rows = await self._locations.rows_after(after, stop, IDS_MAX)
            await self._bring([BlobId(key[len(MANIFEST_PREFIX) :]) for key, _ in rows])
            if len(rows) < IDS_MAX:
                break
            after = rows[-1][0]
        await self._writer.write([(META, _COPIES, str(copies).encode())])

    def _usable(self) -> list[PeerId]:
        return [peer for peer in self._hosts.map.current if self._book.peer(peer).is_usable]

    async def _bring(self, names: Sequence[BlobId]) -> list[BlobId]:
        """Store again those of which there are too few; return the others. Raises RemoteError."""
        names = [name for name in names if not self._uploader.is_on_its_way(name)]
        copies = dict.fromkeys(names, 0)
        hosts = self._usable()
        wanted = min(self._hosts.redundancy()[0].copies, len(hosts))
        for peer in hosts if names else ():
            answers = await self._mover.has(peer, [ShardId(name) for name in names])
            for name, present in zip(names, answers or [False] * len(names), strict=True):
                copies[name] += present
        for name, count in copies.items():
            if count < wanted:
                await self._copy(name)
        return [name for name, count in copies.items() if count >= wanted]

    async def _release(self, names: Sequence[BlobId]) -> None:
        """Have hosts that leave for good let go of copies of which there are enough elsewhere."""
        for peer in self._hosts.map.current:
            known = self._book.peer(peer)
            if not names or not known.leaves or not known.is_readable:
                continue
            answers = await self._mover.has(peer, [ShardId(name) for name in names]) or [False] * len(names)
            async with self._garbage.lock:
                writes: list[Write] = []
                for name, present in zip(names, answers, strict=True):
                    if present and not self._uploader.is_on_its_way(name):
                        writes += self._garbage.moved(name, [(ShardId(name), peer)], NODE_SIZE, is_copy=True)
                await self._writer.write(writes)

    async def _copy(self, name: BlobId) -> None:
        """Store one whole copy again with each of its hosts; those that have it answer at once. Raises RemoteError."""
        data = self._writer.journal.get(NODES, name)
        if data is None:
            data = await self._fetcher.fetch_copy(EntryId(name), NODE_SIZE)
        await self._mover.pay(repair_cost(0, len(data), self._hosts.redundancy()[0].copies))
        if not self._uploader.is_on_its_way(name):
            await self._writer.write([(NODES, name, data), *self._uploader.add_local([(name, len(data))])])
            self._uploader.start_local([name])
