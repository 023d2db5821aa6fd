"""The storage deals of one peer, durably: each contract as the chain was last seen to have it, and the newest revision of both.

Called only from the trio thread, but for `keeps`; the disk is read and written in worker threads, one write at a time. The note
of a set's valid revision is the signed one (`contracts.deal`); a staged one is nothing that this peer has signed, and is given
up after a crash. A deal is remembered once its first revision is durable: a set without a deal is removed at the start.

Database: `deals` contract -> DealRow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Final, TypeVar

import msgspec
import trio
from msgspec import Meta

from fsdecloud import codec
from fsdecloud.contracts import deal
from fsdecloud.contracts.deal import SignedRevision
from fsdecloud.contracts.machine import Instance
from fsdecloud.crypto.shardset import length_of
from fsdecloud.errors import MalformedError, StoreCorrupt
from fsdecloud.limits import MIB
from fsdecloud.store.environment import open_environment
from fsdecloud.store.shardsets import ShardSets
from fsdecloud.swarm.dealing import Phase, View, view_of
from fsdecloud.types import ShardId

MAP_SIZE: Final = 256 * MIB

DEALS_MAX: Final = 4096
"""Deals at a time: a few KiB of memory each, and one question in 64 to the ledger daemon at each tip."""

T = TypeVar("T")


class DealRow(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What is remembered of one contract."""

    instance: Instance
    """As the chain was last seen to have it."""
    height: int
    """Of the tip then, or later with nothing changed."""
    gone: Annotated[int, Meta(ge=0)] = 0
    """Height of the tip that first did not have it, 0 while the chain has it."""


class Deal:
    """One deal. Changed by `DealBook` only."""

    __slots__ = ("contract", "newest", "proving", "row", "turn", "view")

    def __init__(self, contract: bytes, row: DealRow, newest: SignedRevision) -> None:
        self.contract = contract
        self.row = row
        self.newest = newest
        self.view: View = view_of(contract, row.instance, row.height + 1)
        self.turn = trio.Lock()
        """Held while a revision is looked at."""
        self.proving = False
        """Whether its owner is being shown a proof."""

    @property
    def key(self) -> bytes:
        """The owner's: that of the deal."""
        return self.view.terms.owner

    @property
    def is_funded(self) -> bool:
        """Whether the chain has, or had, both deposits."""
        return self.view.phase not in (Phase.OWNER_PAYS, Phase.PEER_PAYS)

    @property
    def is_running(self) -> bool:
        """Whether the peer may still have to prove what it keeps."""
        return not self.row.gone and not self.newest.revision.final and self.view.phase is not Phase.OVER


class DealBook:
    """All deals of one peer."""

    def __init__(self, path: Path, sets: ShardSets) -> None:
        """Open the table in directory `path`. Raises as `open_environment` does, StoreCorrupt."""
        self._sets = sets
        self._env = open_environment(path, MAP_SIZE)
        self._writing = trio.Lock()
        try:
            self._table = self._env.database(b"deals")
            self.deals = self._load()
            """By contract."""
        except BaseException:  # interrupted or failed, nobody else would close it
            self._env.close()
            raise
        self._by_key: dict[bytes, list[Deal]] = {}
        for one in self.deals.values():
            self._by_key.setdefault(one.key, []).append(one)

    def _load(self) -> dict[bytes, Deal]:
        found: dict[bytes, Deal] = {}
        with self._env.read() as txn, txn.cursor(db=self._table) as cursor:
            for name, data in cursor:
                contract = bytes(name)
                try:
                    row = codec.decode(bytes(data), DealRow)
                    newest = deal.decode_revision(self._sets.valid(contract).note)
                except MalformedError as exc:
                    raise StoreCorrupt(f"{self._env.path}: deal {contract.hex()} is damaged: {exc}") from exc
                found[contract] = Deal(contract, row, newest)
        for contract in self._sets.deals():
            if contract not in found:
                self._sets.remove(contract)
            else:
                self._sets.discard(contract)
        return found

    # ---- reading ---------------------------------------------------------------------------------------------------
    def of(self, key: bytes) -> Sequence[Deal]:
        """Return the deals of one deal key."""
        return self._by_key.get(key, ())

    def keeps(self, shard: ShardId, key: bytes = b"") -> bool:
        """Return whether a deal that runs, of this key alone if one is given, names the shard: in its newest revision or in
        the one that is being looked at. Any thread; a look-up of some pages for each of these deals. Raises StoreCorrupt.
        """
        deals = list(self._by_key.get(key, ()) if key else self.deals.values())
        return any(one.is_running and self._names(one.contract, shard) for one in deals)

    def _names(self, contract: bytes, shard: ShardId) -> bool:
        if self._sets.read(contract, lambda _revision, get: length_of(get, shard)) is not None:
            return True
        try:
            return self._sets.read(contract, lambda _revision, get: length_of(get, shard), staged=True) is not None
        except KeyError:  # nothing is staged
            return False

    # ---- writing ---------------------------------------------------------------------------------------------------
    async def add(self, contract: bytes, instance: Instance, height: int, first: SignedRevision) -> Deal:
        """Remember a deal whose first revision both have signed. Durable on return. Raises StoreError."""
        row = DealRow(instance, height)
        note = deal.encode_revision(first)

        def write() -> None:
            self._sets.remove(contract)  # what a crash left of an earlier attempt
            self._sets.stage(contract, first.revision.number, {}, note)
            self._sets.accept(contract, first.revision.number, note)
            self._put(contract, row)

        await self._write(write)
        one = self.deals[contract] = Deal(contract, row, first)
        self._by_key.setdefault(one.key, []).append(one)
        return one

    async def see(self, one: Deal, instance: Instance | None, height: int) -> None:
        """Take what the chain has after the tip at `height`, None for nothing. Durable if it matters. Raises StoreError."""
        await trio.lowlevel.checkpoint()  # others are served between many deals
        before = one.row
        if instance is None:
            row = DealRow(before.instance, before.height, before.gone or height)
        else:
            row = DealRow(instance, height)
        if (row.instance, row.gone) != (before.instance, before.gone):
            await self._write(partial(self._put, one.contract, row))
        one.row = row
        if instance is not None:
            one.view = view_of(one.contract, instance, height + 1)

    async def change(self, work: Callable[[], T]) -> T:
        """Have a worker thread change the sets, alone. Raises what `work` does."""
        return await self._write(work)

    async def forget(self, one: Deal) -> None:
        """Forget a deal that has ended for good, and its set. Durable on return. Raises StoreError."""

        def write() -> None:
            with self._env.write() as txn:
                txn.delete(one.contract, db=self._table)
            self._sets.remove(one.contract)

        await self._write(write)
        self.deals.pop(one.contract, None)
        self._by_key[one.key].remove(one)
        if not self._by_key[one.key]:
            del self._by_key[one.key]

    async def sweep(self) -> bool:
        """Remove some of what forgotten deals left; return whether there may be more. Raises StoreError."""
        return await self._write(self._sets.sweep)

    async def _write(self, work: Callable[[], T]) -> T:
        async with self._writing:
            return await trio.to_thread.run_sync(work)

    def _put(self, contract: bytes, row: DealRow) -> None:
        with self._env.write() as txn:
            txn.put(contract, codec.encode(row), db=self._table)

    def close(self) -> None:
        """Close the table."""
        self._env.close()
