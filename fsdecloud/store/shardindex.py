"""The index of a peer's shards: which there are, where they lie, whose they are. `store.shards` says what each database holds.

Blocking; one writer thread, any number of reading threads. Everything here is about rows, nothing touches a shard's bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, TypeAlias

from fsdecloud.errors import SealError
from fsdecloud.store.environment import Transaction, open_environment
from fsdecloud.store.segments import Location
from fsdecloud.store.shardrows import COUNT, NUMBER, PLACE, Claim, Deletion, Row, Usage
from fsdecloud.types import ShardId

TOTAL: Final = b"total"

_COMPLETE: Final = b"complete"

DATABASES: Final = 16
"""Most databases of the index, with room for those to come."""

PLACES_STEP: Final = 2000
"""The same beside requests: a few milliseconds of the interpreter."""

Place: TypeAlias = tuple[int, int, int, ShardId]
"""Segment, offset, length, and which shard lies there."""


class ShardIndex:
    """The rows of one store."""

    def __init__(self, path: Path, map_size: int) -> None:
        """Open the index at `path`, made if missing. Raises as `open_environment` does."""
        self._env = open_environment(path, map_size, DATABASES)
        try:
            self._rows = self._env.database(b"shards")
            self._counts = self._env.database(b"segments")
            self._deals = self._env.database(b"deals")
            self._doomed = self._env.database(b"doomed")
            self._grants = self._env.database(b"grants")
            self._damaged = self._env.database(b"damaged")
            self._usage = self._env.database(b"usage")
            self._notes = self._env.database(b"notes")
            self._complete_usage()
        except BaseException:  # interrupted or failed, nobody else would close it
            self._env.close()
            raise

    # ---- reading: any thread ---------------------------------------------------------------------------------------
    def locate(self, shard: ShardId) -> Location | None:
        """Return where the shard lies, None if it is not here."""
        with self._env.read() as txn:
            row = txn.get(shard, db=self._rows)
        return None if row is None else Location(*PLACE.unpack_from(row))

    def usage(self, deal: bytes) -> tuple[int, int]:
        """Return how many shards a deal holds, and their bytes. What several deals hold counts for each."""
        with self._env.read() as txn:
            known = txn.get(deal, db=self._deals)
            found = txn.get(known[: NUMBER.size], db=self._usage) if known is not None else None
        count, size = COUNT.unpack(found) if found is not None else (0, 0)
        return int(count), int(size)

    def holders(self, limit: int) -> list[tuple[bytes, int, int]]:
        """Return the deals that hold most: key, shards, bytes; at most `limit`."""
        found = []
        with self._env.read() as txn, txn.cursor(db=self._deals) as cursor:
            for deal, known in cursor:
                count, size = COUNT.unpack(txn.get(known[: NUMBER.size], COUNT.pack(0, 0), db=self._usage))
                if count:
                    found.append((bytes(deal), int(count), int(size)))
        return sorted(found, key=lambda item: -item[2])[:limit]

    def has_claim(self, deal: bytes, shard: ShardId) -> bool:
        """Return whether the deal holds a shard that is here."""
        with self._env.read() as txn:
            known, data = txn.get(deal, db=self._deals), txn.get(shard, db=self._rows)
        return known is not None and data is not None and NUMBER.unpack_from(known)[0] in Row.decode(data).claims

    def owner(self, deal: bytes) -> bytes:
        """Return the key whose grants may delete what the deal stored, b"" if there is none. Any thread."""
        with self._env.read() as txn:
            known = txn.get(deal, db=self._deals)
        return b"" if known is None else known[NUMBER.size :]

    def counts(self) -> tuple[int, int]:
        """Return how many shards there are, and their bytes."""
        with self._env.read() as txn:
            count, size = COUNT.unpack(txn.get(TOTAL, COUNT.pack(0, 0), db=self._counts))
        return int(count), int(size)

    def doomed_count(self) -> int:
        """Return how many shards wait for the end of their grace period."""
        with self._env.read() as txn:
            return int(txn.stat(self._doomed)["entries"])

    def damaged_count(self) -> int:
        """Return how many shards somebody stored here are damaged, and were not stored again. Any thread."""
        with self._env.read() as txn:
            return int(txn.stat(self._damaged)["entries"])

    def next_doomed(self) -> int | None:
        """Return since when the longest doomed shard is so (seconds since 1970), None when there is none."""
        with self._env.read() as txn, txn.cursor(db=self._doomed) as cursor:
            return int(NUMBER.unpack_from(cursor.key())[0]) if cursor.first() else None

    def next_places(self, first: tuple[int, int], last: bytes, limit: int, found: list[Place]) -> bytes:
        """Look at the rows after `last` and add those that lie at or behind `first` (segment, offset) to `found`.

        Keeps the `limit` foremost, sorted. Returns the last row looked at, b"" when it was the last of all. Any thread.
        """
        with self._env.read() as txn, txn.cursor(db=self._rows) as cursor:
            more = cursor.set_range(last + b"\0") if last else cursor.first()
            for _ in range(PLACES_STEP):
                if not more:
                    last = b""
                    break
                last, data = cursor.item()
                segment, offset, length = PLACE.unpack_from(data)
                if (segment, offset) >= first:
                    found.append((segment, offset, length, ShardId(last)))
                more = cursor.next()
        if len(found) > 2 * limit or not last:
            found.sort()
            del found[limit:]
        return last

    def note(self, name: bytes) -> bytes:
        """Return what `set_note` was given, b"" if nothing. Any thread."""
        with self._env.read() as txn:
            return bytes(txn.get(name, b"", db=self._notes))

    def _last_segment(self) -> int:
        """Return the highest number of a segment that the index knows, 0 for none."""
        with self._env.read() as txn, txn.cursor(db=self._counts) as cursor:
            found = cursor.set_range(TOTAL)
            more = cursor.prev() if found else cursor.last()
            return int.from_bytes(cursor.key(), "big") if more else 0

    # ---- writing: the writer's thread, in its transactions ---------------------------------------------------------
    def set_note(self, name: bytes, value: bytes) -> None:
        """Keep some bytes durably under a name."""
        with self._env.write() as txn:
            txn.put(name, value, db=self._notes)

    def _deal_number(self, txn: Transaction, claim: Claim) -> int:
        known = txn.get(claim.deal, db=self._deals)
        if known is None:
            number = int(txn.stat(self._deals)["entries"]) + 1
        else:
            number = int(NUMBER.unpack_from(known)[0])
        if known is None or (len(known) == NUMBER.size and claim.owner):
            txn.put(claim.deal, NUMBER.pack(number) + claim.owner, db=self._deals)
        return number

    def _count(self, txn: Transaction, place: Location, shards: int) -> None:
        """Note that `shards` (1 or -1) live shards came to or left a place's segment."""
        for key in (place.segment.to_bytes(8, "big"), TOTAL):
            count, total = COUNT.unpack(txn.get(key, COUNT.pack(0, 0), db=self._counts))
            txn.put(key, COUNT.pack(count + shards, total + shards * place.length), db=self._counts)

    def _add_usage(self, txn: Transaction, usage: Usage) -> None:
        for number, (shards, size) in usage.items():
            key = NUMBER.pack(number)
            count, total = COUNT.unpack(txn.get(key, COUNT.pack(0, 0), db=self._usage))
            txn.put(key, COUNT.pack(count + shards, total + size), db=self._usage)

    def _use_grant(self, txn: Transaction, grant: Deletion, now: int) -> None:
        """Note that a grant is used, and forget those that have expired."""
        with txn.cursor(db=self._grants) as cursor:
            while cursor.first() and NUMBER.unpack_from(cursor.key())[0] <= now:
                cursor.delete()
        if not txn.put(NUMBER.pack(grant.expires) + grant.deal + grant.nonce, b"", db=self._grants, overwrite=False):
            raise SealError("the grant was used already")

    def _complete_usage(self) -> None:
        """Count what each deal holds, once: an older release did not."""
        with self._env.read() as txn:
            if txn.get(_COMPLETE, db=self._usage) is not None:
                return
        usage = Usage()
        with self._env.write() as txn:
            with txn.cursor(db=self._rows) as cursor:
                for data in cursor.iternext(keys=False):
                    row = Row.decode(data)
                    usage.add(row, row.claims, 1)
            self._add_usage(txn, usage)
            txn.put(_COMPLETE, b"", db=self._usage)
