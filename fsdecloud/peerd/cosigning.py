"""How a peer looks at the revisions that owners propose, and signs them (`swarm.dealing` says which).

Called only from the trio thread; sets and store are read in worker threads, for one revision at a time. What is added must be
here under the deal's key. It is looked for after the new set was staged: from there on nothing takes it away any more
(`DealBook.keeps`). What this peer signs it has made durable, so a crash leaves the revision before it or this one.
"""

from __future__ import annotations

from typing import Final

from fsdecloud.contracts import deal
from fsdecloud.contracts.deal import SignedRevision
from fsdecloud.contracts.reasons import BadAgreement
from fsdecloud.crypto.shardset import length_of
from fsdecloud.errors import MalformedError
from fsdecloud.peerd.dealbook import Deal, DealBook
from fsdecloud.store.shards import ShardStore
from fsdecloud.store.shardsets import ShardSets
from fsdecloud.swarm import dealing
from fsdecloud.swarm.dealing import NotDue, View
from fsdecloud.swarm.offering import HEIGHT_MAX
from fsdecloud.types import ShardId
from fsdecloud.wire.deals import CHANGES_MAX, Revise

_SHOWN: Final = 16
"""Hexadecimal digits of a shard's id in a reason."""


class Cosigner:
    """Signs revisions with one peer's key."""

    def __init__(self, *, seed: bytes, network: bytes, book: DealBook, sets: ShardSets, store: ShardStore) -> None:
        self._seed = seed
        self._network = network
        self._book = book
        self._sets = sets
        self._store = store

    async def sign(self, one: Deal, request: Revise) -> SignedRevision:
        """Return the revision with both signatures, durable. The newest one may be proposed again.

        Raises NotDue with why this peer does not sign it, StoreError; nothing has changed then.
        """
        async with one.turn:
            newest, asked = one.newest, request.revision
            if asked.number <= newest.revision.number:
                if asked == newest.revision and request.signature == newest.owner:
                    return newest
                raise NotDue(f"both have signed revision {newest.revision.number}; {asked.number} does not follow it")
            view = one.view
            note = await self._book.change(lambda: self._sign(one.contract, view, newest, request))
            one.newest = deal.decode_revision(note)
            return one.newest

    # ---- worker thread ---------------------------------------------------------------------------------------------
    def _sign(self, contract: bytes, view: View, newest: SignedRevision, request: Revise) -> bytes:
        """Stage, check and accept; return the signed revision's bytes."""
        after = request.revision
        try:
            deal.check_revision(view.terms.owner, self._network, contract, after, request.signature)
        except BadAgreement as exc:
            raise NotDue(f"the owner's signature does not hold: {exc}") from exc
        changes = self._changes(request)
        removed = self._removed(contract, request)
        dealing.check_revision(view, newest.revision, after, removed)
        try:
            staged = self._sets.stage(contract, after.number, changes)
        except MalformedError as exc:
            raise NotDue(str(exc)) from exc
        try:
            if staged.shard_set.root != after.root or staged.shard_set.size != after.bytes:
                raise NotDue("these changes do not make the set that the revision is over")
            if staged.shard_set.height > HEIGHT_MAX:
                raise NotDue("the shards' ids share too many bits: a proof would be too long for the chain")
            self._check_here(view.terms.owner, request)
            signature = deal.sign_revision(self._seed, self._network, contract, after)
            note = deal.encode_revision(SignedRevision(after, request.signature, signature))
            self._sets.accept(contract, after.number, note)
        except NotDue:
            self._sets.discard(contract)
            raise
        return note

    def _changes(self, request: Revise) -> dict[ShardId, int | None]:
        changes: dict[ShardId, int | None] = {ShardId(shard): None for shard in request.removed}
        changes |= {ShardId(added.id): added.length for added in request.added}
        if len(changes) < len(request.removed) + len(request.added):
            raise NotDue("a shard is named twice in one revision")
        if len(changes) > CHANGES_MAX:
            raise NotDue(f"one revision changes at most {CHANGES_MAX} shards")
        return changes

    def _removed(self, contract: bytes, request: Revise) -> int:
        """Return how many bytes go. Raises NotDue when one of them is not in the set, or one that comes is."""
        removed, added = self._sets.read(
            contract,
            lambda _revision, get: (
                [length_of(get, ShardId(shard)) for shard in request.removed],
                [length_of(get, ShardId(shard.id)) for shard in request.added],
            ),
        )
        for shard, length in zip(request.removed, removed, strict=True):
            if length is None:
                raise NotDue(f"shard {shard.hex()[:_SHOWN]} is not in the set")
        for comes, length in zip(request.added, added, strict=True):
            if length is not None:
                raise NotDue(f"shard {comes.id.hex()[:_SHOWN]} is in the set already")
        return sum(length or 0 for length in removed)

    def _check_here(self, key: bytes, request: Revise) -> None:
        for added in request.added:
            shard = ShardId(added.id)
            place = self._store.locate(shard)
            if place is None or not self._store.has_claim(key, shard):
                raise NotDue(f"shard {shard.hex()[:_SHOWN]} is not here under this deal's key: store it first")
            if place.length != added.length:
                raise NotDue(f"shard {shard.hex()[:_SHOWN]} has {place.length} bytes, not {added.length}")
