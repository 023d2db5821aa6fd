"""The storage deals of one volume, durably: contracts, the sets of shards both sides signed, and what is to change in them.

Called only from the trio thread; sets are read and written in worker threads, one write at a time. What was stored with a peer
waits in the journal until a revision has it, written down before the receipt itself is; what a grant is to take away likewise.
So whatever a crash interrupts is seen again: a change that a set has already is none.

The note of a set's revision is the signed one (`contracts.deal`); while it is staged the owner alone has signed it. A staged
revision is given up only for one with a higher number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import trio

from fsdecloud import codec
from fsdecloud.agent.journal import DEALS, DEALT, JournalWriter
from fsdecloud.contracts import deal
from fsdecloud.contracts.deal import SignedRevision, Terms
from fsdecloud.crypto.shardset import ShardSet
from fsdecloud.errors import MalformedError
from fsdecloud.ledger.transactions import Deploy, decode_tx, tx_id
from fsdecloud.store.shardsets import ShardSets
from fsdecloud.types import PeerId, ShardId

T = TypeVar("T")

DEALS_MAX: Final = 1024
"""Contracts that are remembered."""

_LENGTH: Final = 4
_GOES: Final = bytes(_LENGTH)


class DealRow(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One contract."""

    number: int
    """Later ones with the same peer have higher ones."""
    peer: PeerId
    deploy: bytes
    """The encoded transaction that begins it."""
    is_blind: bool = False
    """Its shards are not known: it was found in the ledger after this machine's state was lost. It is settled and ended, and
    never changed."""
    is_copied: bool = False
    """Everything in its set was noted for the deal that follows it."""
    over_at: int = -1
    """Height at which it was seen to be over, -1 while it is not."""


class Deal:
    """A contract, decoded."""

    __slots__ = ("contract", "row", "terms")

    def __init__(self, row: DealRow) -> None:
        tx = decode_tx(row.deploy)
        if not isinstance(tx, Deploy):
            raise MalformedError("a deal begins with a deployment")
        self.row = row
        self.contract = bytes(tx_id(tx))
        self.terms = Terms(*tx.arguments)  # type: ignore[arg-type]

    @property
    def peer(self) -> PeerId:
        """The other side."""
        return self.row.peer


class DealBook:
    """All deals of one volume."""

    def __init__(self, writer: JournalWriter, path: Path) -> None:
        """`path` is the directory of the sets, made with the first deal. Raises MalformedError, StoreError."""
        self._writer = writer
        self._path = path
        self._sets: ShardSets | None = None
        self._lock = trio.Lock()
        self._deals: dict[bytes, Deal] = {}
        self._peers: dict[PeerId, None] = {}
        self._queued: dict[bytes, bytes] = {}
        """What was noted and is not durable yet."""
        for key, value in writer.journal.items(DEALS):
            found = Deal(codec.decode(value, DealRow))
            if found.contract != key:
                raise MalformedError("a deal under another contract's id")
            self._deals[key] = found
            self._peers[found.peer] = None

    def close(self) -> None:
        """Close the sets."""
        if self._sets is not None:
            self._sets.close()
            self._sets = None

    # ---- contracts -------------------------------------------------------------------------------------------------
    def peers(self) -> list[PeerId]:
        """Return the peers with deals."""
        return list(self._peers)

    def of(self, peer: PeerId) -> list[Deal]:
        """Return the deals with a peer, oldest first."""
        return sorted((one for one in self._deals.values() if one.peer == peer), key=lambda one: one.row.number)

    async def add(self, peer: PeerId, deploy: bytes, *, is_blind: bool = False) -> Deal:
        """Note a contract before it is deployed; durable on return. Raises MalformedError when there are too many."""
        if len(self._deals) >= DEALS_MAX:
            raise MalformedError(f"a volume has at most {DEALS_MAX} deals at once")
        number = max((one.row.number for one in self._deals.values()), default=0) + 1
        return await self.update(DealRow(number, peer, deploy, is_blind))

    async def update(self, row: DealRow) -> Deal:
        """Take another row for a contract; durable on return."""
        found = Deal(row)
        self._deals[found.contract] = found
        self._peers[found.peer] = None
        await self._writer.write([(DEALS, found.contract, codec.encode(row))])
        return found

    async def forget(self, found: Deal) -> None:
        """Forget a contract that is over for good, and its set."""
        await self._write(lambda sets: sets.remove(found.contract))
        self._deals.pop(found.contract, None)
        if not self.of(found.peer):
            self._peers.pop(found.peer, None)
        await self._writer.write([(DEALS, found.contract, None)])
        while await self._write(lambda sets: sets.sweep()):
            pass

    # ---- revisions -------------------------------------------------------------------------------------------------
    async def newest(self, found: Deal) -> SignedRevision | None:
        """Return the newest revision that both have signed, None before there is one. Raises StoreCorrupt."""
        note = (await self._read(lambda sets: sets.valid(found.contract))).note
        return deal.decode_revision(note) if note else None

    async def staged(self, found: Deal) -> SignedRevision | None:
        """Return the revision that the owner alone has signed, None if there is none. Raises StoreCorrupt."""
        staged = await self._read(lambda sets: sets.staged(found.contract))
        return None if staged is None else deal.decode_revision(staged.note)

    async def staged_changes(self, found: Deal) -> dict[ShardId, int | None]:
        """Return what the staged revision changes."""
        return await self._read(lambda sets: sets.changes(found.contract))

    async def stage(
        self,
        found: Deal,
        number: int,
        changes: Mapping[ShardId, int | None],
        make: Callable[[ShardSet], SignedRevision],
    ) -> SignedRevision:
        """Keep the revision that `make` signs for the changed set; durable on return. What `make` raises passes through."""

        def work(sets: ShardSets) -> bytes:
            return sets.stage(found.contract, number, changes, lambda after: deal.encode_revision(make(after))).note

        return deal.decode_revision(await self._write(work))

    async def accept(self, found: Deal, signed: SignedRevision) -> None:
        """Make the staged revision the newest one: `signed` is the same with both signatures. Durable on return."""
        note = deal.encode_revision(signed)
        await self._write(lambda sets: sets.accept(found.contract, signed.revision.number, note))

    async def lengths(self, found: Deal, shards: Iterable[ShardId]) -> dict[ShardId, int]:
        """Return those of some shards that the newest revision has, and their lengths."""
        return await self._read(lambda sets: sets.lengths(found.contract, shards))

    async def shards(self, found: Deal, after: bytes, limit: int) -> list[tuple[ShardId, int]]:
        """Return some shards of the newest revision, ascending."""
        return await self._read(lambda sets: sets.shards(found.contract, after, limit))

    # ---- what is to change -----------------------------------------------------------------------------------------
    def note(self, peer: PeerId, changes: Iterable[tuple[ShardId, int | None]]) -> None:
        """Note what a peer has of us from now on (its length), or is to let go of (None). Durable with what is written next."""
        queued = {peer + shard: _value(length) for shard, length in changes}
        self._queued.update(queued)

        def durable() -> None:
            for key, value in queued.items():
                if self._queued.get(key) == value:
                    del self._queued[key]

        self._writer.write_nowait([(DEALT, key, value) for key, value in queued.items()], durable)

    async def settle(self) -> None:
        """Return once everything noted is durable."""
        await self._writer.write([])

    def noted(self, peer: PeerId, after: bytes, limit: int) -> list[tuple[ShardId, int | None]]:
        """Return up to `limit` of what is noted for a peer, with shard ids higher than `after`."""
        found = self._writer.journal.items_between(DEALT, peer + after + b"\0" * bool(after), _end(peer), limit)
        return [(ShardId(key[32:]), int.from_bytes(value) or None) for key, value in found]

    def going(self, peer: PeerId, shards: Iterable[ShardId]) -> set[ShardId]:
        """Return those of some shards that the peer is to let go of."""
        present = self._writer.journal.get
        keys = {shard: peer + shard for shard in shards}
        return {shard for shard, key in keys.items() if self._queued.get(key, present(DEALT, key)) == _GOES}

    async def done(self, peer: PeerId, changes: Iterable[tuple[ShardId, int | None]]) -> None:
        """Forget what a revision has; what was noted anew since then stays. Durable on return."""
        await self.settle()
        present = self._writer.journal.get
        values = {peer + shard: _value(length) for shard, length in changes}
        same = [key for key, value in values.items() if self._queued.get(key, present(DEALT, key)) == value]
        await self._writer.write([(DEALT, key, None) for key in same])

    # ---- inner -----------------------------------------------------------------------------------------------------
    def _open(self) -> ShardSets:
        if self._sets is None:
            self._sets = ShardSets(self._path)
        return self._sets

    async def _read(self, work: Callable[[ShardSets], T]) -> T:
        return await trio.to_thread.run_sync(work, self._open())

    async def _write(self, work: Callable[[ShardSets], T]) -> T:
        async with self._lock:
            return await trio.to_thread.run_sync(work, self._open())


def _value(length: int | None) -> bytes:
    return _GOES if length is None else length.to_bytes(_LENGTH)


def _end(peer: PeerId) -> bytes:
    return (int.from_bytes(peer) + 1).to_bytes(33)[-32:] if peer != b"\xff" * 32 else peer + b"\xff" * 33
