"""Until when a peer keeps shards: the terms of the claims in a shard store's index (`store.shards`).

Blocking; what changes something is called in the store's writer thread. A claim may have a term: when `expire` finds it over,
it is dropped, and a shard without claims is removed at once. `renew` begins a term anew.

Ends of leases are in *lease time*, which the caller keeps (`peerd.leases`): it never runs ahead of the time for which this
peer was there to be asked. Each row is in the index `leases` (first end:4 id -> "") by the first end of its leases, so that
finding those that are over costs no scan. What an older release stored is given a term (`give_terms`), a step at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Final

from fsdecloud.store.environment import Database, Environment, Transaction
from fsdecloud.store.segments import Location
from fsdecloud.store.shardrows import NUMBER, Keeps, Row, Usage, keeps_nothing
from fsdecloud.types import ShardId

EXPIRE_STEP: Final = 1000
TERMS_STEP: Final = 2000
"""Rows that change in one transaction."""

ENDS_COUNTED: Final = 100_000
"""Leases counted for `status` at most: a tenth of a second."""

_TERMS: Final = b"terms"
"""Note: the last row that was given a term, DONE once all have one."""

_DONE: Final = b"done"


class Leases:
    """The leases of one store, which makes it."""

    def __init__(
        self,
        env: Environment,
        rows: Database,
        deals: Database,
        notes: Database,
        lost: Collection[int],
        *,
        count: Callable[[Transaction, Location, int], None],
        add_usage: Callable[[Transaction, Usage], None],
    ) -> None:
        """Take the store's environment and databases, the segments that are lost, and how it counts."""
        self._env = env
        self._rows = rows
        self._deals = deals
        self._notes = notes
        self._lost = lost
        self._count = count
        self._add_usage = add_usage
        self._leases = env.database(b"leases")

    def set_end(self, txn: Transaction, shard: ShardId, before: int, after: int) -> None:
        """Keep the index: a row's first end was `before`, and is `after` from now on (0: none)."""
        if before == after:
            return
        if before:
            txn.delete(NUMBER.pack(before) + shard, db=self._leases)
        if after:
            txn.put(NUMBER.pack(after) + shard, b"", db=self._leases)

    def renew(self, deal: bytes, shards: Sequence[ShardId], end: int) -> list[int]:
        """Begin the terms of a deal's claims anew, until `end`; for each shard return its length, 0 when it is not here or
        not the deal's. Durable on return. Raises StoreError."""
        lengths = [0] * len(shards)
        with self._env.write() as txn:
            known = txn.get(deal, db=self._deals)
            number = NUMBER.unpack_from(known)[0] if known is not None else 0
            for i, shard in enumerate(shards):
                data = txn.get(shard, db=self._rows)
                row = Row.decode(data) if data is not None else None
                if row is None or row.place.segment in self._lost or not (number in row.claims or row.is_kept):
                    continue
                lengths[i] = row.place.length
                if number in row.claims and row.leases.get(number, 0) < end:
                    renewed = row._replace(leases={**row.leases, number: end})
                    self.set_end(txn, shard, row.first_end, renewed.first_end)
                    txn.put(shard, renewed.encode(), db=self._rows)
        return lengths

    def expire(self, before: int, *, keeps: Keeps = keeps_nothing, end: int = 0) -> tuple[int, int]:
        """Drop some claims whose leases ended before a lease time, and remove shards that nobody else has a claim on.

        The leases of what `keeps` names begin anew, until `end`, which is not before that time. Returns how many claims were
        over and shards removed; (0, 0) when there is none left. Raises StoreError.
        """
        first = self.next_end()
        if first is None or first >= before:
            return 0, 0
        over_claims = removed = 0
        usage = Usage()
        with self._env.write() as txn, txn.cursor(db=self._leases) as cursor:
            for _ in range(EXPIRE_STEP):
                if not cursor.first():
                    break
                key = cursor.key()
                ended, shard = NUMBER.unpack_from(key)[0], ShardId(key[NUMBER.size :])
                if ended >= before:
                    break
                data = txn.get(shard, db=self._rows)
                assert data is not None, "a row leaves the index of leases with the store"
                row = Row.decode(data)
                over = {number for number, at in row.leases.items() if at < before}
                over_claims += len(over)
                if keeps(shard):
                    left = row._replace(leases={**row.leases, **dict.fromkeys(over, end)})
                else:
                    left = row.without(over)
                    usage.add(row, over, -1)
                self.set_end(txn, shard, ended, left.first_end)
                if left.claims:
                    txn.put(shard, left.encode(), db=self._rows)
                else:
                    removed += 1
                    self._count(txn, row.place, -1)
                    txn.delete(shard, db=self._rows)
            self._add_usage(txn, usage)
        return over_claims, removed

    def give_terms(self, end: int) -> bool:
        """Give some claims of an older release a term; return whether there may be more. Raises StoreError."""
        with self._env.read() as txn:
            last = bytes(txn.get(_TERMS, b"", db=self._notes))
        if last == _DONE:
            return False
        with self._env.write() as txn:
            rows: list[tuple[ShardId, Row]] = []
            with txn.cursor(db=self._rows) as cursor:
                more = cursor.set_range(last + b"\0") if last else cursor.first()
                for _ in range(TERMS_STEP):
                    if not more:
                        break
                    key, data = cursor.item()
                    last = bytes(key)
                    rows.append((ShardId(last), Row.decode(data)))
                    more = cursor.next()
            for shard, row in rows:
                if len(row.leases) < len(row.claims):
                    leased = row._replace(leases=dict.fromkeys(row.claims, end) | dict(row.leases))
                    self.set_end(txn, shard, row.first_end, leased.first_end)
                    txn.put(shard, leased.encode(), db=self._rows)
            txn.put(_TERMS, last if more else _DONE, db=self._notes)
        return bool(more)

    def next_end(self) -> int | None:
        """Return the first end of a lease (lease time), None when there is none. Any thread."""
        with self._env.read() as txn, txn.cursor(db=self._leases) as cursor:
            return int(NUMBER.unpack_from(cursor.key())[0]) if cursor.first() else None

    def count_ends(self, *before: int) -> list[int]:
        """Return how many shards have a lease that ends before each of some lease times (ascending), up to ENDS_COUNTED in
        all. Any thread."""
        counts = [0] * len(before)
        with self._env.read() as txn, txn.cursor(db=self._leases) as cursor:
            more, seen, place = cursor.first(), 0, 0
            while more and seen < ENDS_COUNTED:
                end = NUMBER.unpack_from(cursor.key())[0]
                while place < len(before) and end >= before[place]:
                    place += 1
                if place == len(before):
                    break
                counts[place] += 1
                seen += 1
                more = cursor.next()
        return [sum(counts[: place + 1]) for place in range(len(before))]
