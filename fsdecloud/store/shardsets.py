"""The shard sets of deals, as both sides of a deal keep them: the valid revision of each, and the one that is being agreed on.

Blocking; one writer thread, any number of reading threads. What a set is, and how it is cut into pages: `crypto.shardset`. A
revision is valid when both sides have signed it, and there is a time in which one of them does not know yet whether the other
has. So `stage` keeps the next revision beside the valid one, as the pages that differ; `accept` puts them in the place of the
valid ones; `discard` forgets them. Each is one durable transaction: after a crash there is the state before it or after it.

A set of a deal that has ended is forgotten at once by `remove`; its pages go in bounded steps (`sweep`).

Databases: `sets` deal -> SetRow; `pages` number of the set:4 length of the path:1 path -> page; `staged` likewise, b"" for a
page that goes; `removed` number:4 -> b"" (sets whose pages are to go); `counters` "number" -> the last number given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Final, TypeVar

import msgspec

from fsdecloud import codec
from fsdecloud.crypto.shardset import EMPTY, Get, SetDamaged, ShardSet, leaf_shards, length_of, shards_of, update
from fsdecloud.errors import MalformedError, StoreCorrupt
from fsdecloud.limits import SHARD_SETS_MAP_SIZE
from fsdecloud.store.environment import Database, Transaction, open_environment
from fsdecloud.types import ShardId

DEAL_MAX: Final = 64
"""Bytes of a deal's name."""

CHANGES_MAX: Final = 16_384
"""Shards that one revision changes: their pages take at most some 30 MiB of memory, and of one transaction."""

NOTE_MAX: Final = 64 * 1024
"""Bytes that are kept with a revision."""

SWEEP_STEP: Final = 2000
"""Pages removed in one step: a few milliseconds."""

T = TypeVar("T")

_NUMBER: Final = 4
_LAST: Final = b"number"


class Revision(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One state of a deal's set."""

    number: int
    """0 for the empty set that each deal begins with; the next revision has a higher one."""
    shard_set: ShardSet
    note: bytes
    """What its owner keeps with it: the document that both sides have signed."""


FIRST: Final = Revision(0, EMPTY, b"")


class SetRow(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What is known of a deal's set."""

    number: int
    """Names its pages; never given again."""
    valid: Revision
    staged: Revision | None


class ShardSets:
    """The sets below one directory."""

    def __init__(self, path: Path, *, map_size: int = SHARD_SETS_MAP_SIZE) -> None:
        """Open them, made if missing. Raises as `open_environment` does."""
        self._env = open_environment(path, map_size)
        try:
            self._sets = self._env.database(b"sets")
            self._pages = self._env.database(b"pages")
            self._staged = self._env.database(b"staged")
            self._removed = self._env.database(b"removed")
            self._counters = self._env.database(b"counters")
        except BaseException:  # interrupted or failed, nobody else would close it
            self._env.close()
            raise

    # ---- reading: any thread ---------------------------------------------------------------------------------------

    def valid(self, deal: bytes) -> Revision:
        """Return the revision that both sides have signed last, FIRST before there is one. Raises StoreCorrupt."""
        with self._env.read() as txn:
            row = self._row(txn, deal)
        return row.valid if row is not None else FIRST

    def staged(self, deal: bytes) -> Revision | None:
        """Return the revision that is being agreed on, None if there is none. Raises StoreCorrupt."""
        with self._env.read() as txn:
            row = self._row(txn, deal)
        return row.staged if row is not None else None

    def deals(self) -> list[bytes]:
        """Return the deals with a set."""
        with self._env.read() as txn, txn.cursor(db=self._sets) as cursor:
            return [bytes(deal) for deal in cursor.iternext(values=False)]

    def read(self, deal: bytes, work: Callable[[Revision, Get], T], *, staged: bool = False) -> T:
        """Return what `work` makes of the valid (or the staged) revision of a deal and its pages, as they are now.

        It runs within a transaction: it is to be short, and returns nothing that needs the pages. A deal without a set has
        FIRST as its valid revision. Raises KeyError when nothing is staged; StoreCorrupt, also for what `work` finds damaged.
        """
        with self._env.read() as txn, _damage_is_corruption():
            row = self._row(txn, deal)
            revision = (row.staged if staged else row.valid) if row is not None else None
            if row is None or revision is None:
                if staged:
                    raise KeyError(deal)
                return work(FIRST, lambda _path: None)
            return work(revision, self._getter(txn, row, staged=staged))

    def shards(self, deal: bytes, after: bytes = b"", limit: int = 1000) -> list[tuple[ShardId, int]]:
        """Return up to `limit` shards of the valid revision with ids higher than `after`, and their lengths, ascending.

        Nothing for a deal without a set. Raises StoreCorrupt.
        """
        return self.read(deal, lambda _revision, get: list(islice(shards_of(get, after), limit)))

    def lengths(self, deal: bytes, shards: Iterable[ShardId]) -> dict[ShardId, int]:
        """Return those of the shards that the valid revision has, with their lengths. Raises StoreCorrupt."""
        wanted = list(shards)
        found = self.read(deal, lambda _revision, get: [(shard, length_of(get, shard)) for shard in wanted])
        return {shard: length for shard, length in found if length is not None}

    def changes(self, deal: bytes) -> dict[ShardId, int | None]:
        """Return what the staged revision changes in the valid one, as `stage` takes it; nothing if none is staged.

        Read from the pages that differ, at most CHANGES_MAX and those beside them. Raises StoreCorrupt.
        """
        before: dict[bytes, int] = {}
        after: dict[bytes, int] = {}
        with self._env.read() as txn, _damage_is_corruption():
            row = self._row(txn, deal)
            if row is None or row.staged is None:
                return {}
            prefix = row.number.to_bytes(_NUMBER, "big")
            with txn.cursor(db=self._staged) as cursor:
                more = cursor.set_range(prefix)
                while more and cursor.key().startswith(prefix):
                    key, page = cursor.item()
                    before.update(leaf_shards(bytes(txn.get(key, b"", db=self._pages))))
                    after.update(leaf_shards(bytes(page)))
                    more = cursor.next()
        changed: dict[ShardId, int | None] = {ShardId(shard): None for shard in before if shard not in after}
        changed.update((ShardId(shard), size) for shard, size in after.items() if before.get(shard) != size)
        return changed

    # ---- writing: one thread ---------------------------------------------------------------------------------------

    def stage(
        self,
        deal: bytes,
        number: int,
        changes: Mapping[ShardId, int | None],
        note: bytes | Callable[[ShardSet], bytes] = b"",
    ) -> Revision:
        """Keep the valid revision with `changes` (`shardset.update`) as the staged one, in place of what was staged before.

        A `note` that depends on the new set, as a signature of its root does, is made from it; what that raises passes through.
        Durable on return. Raises MalformedError when it cannot be: it does not follow the valid one, or is too large;
        StoreFull, StoreCorrupt, StoreError. Nothing has changed then.
        """
        if not 0 < len(deal) <= DEAL_MAX:
            raise MalformedError(f"a deal's name has 1 to {DEAL_MAX} bytes")
        if len(changes) > CHANGES_MAX:
            raise MalformedError(f"a revision has at most {CHANGES_MAX} changes")
        with self._env.write() as txn, _damage_is_corruption():
            row = self._row(txn, deal)
            if row is None:
                row = SetRow(self._new_number(txn), FIRST, None)
            if number <= row.valid.number:
                raise MalformedError(f"revision {number} does not follow revision {row.valid.number}, which is valid")
            if row.staged is not None:
                self._delete(txn, self._staged, row.number)
            revised = update(self._getter(txn, row, staged=False), row.valid.shard_set, changes)
            made = note(revised.shard_set) if callable(note) else note
            if len(made) > NOTE_MAX:
                raise MalformedError(f"a revision has at most {NOTE_MAX} bytes of note")
            for path, page in revised.pages.items():
                txn.put(_key(row.number, path), page or b"", db=self._staged)
            staged = Revision(number, revised.shard_set, made)
            self._set_row(txn, deal, SetRow(row.number, row.valid, staged))
        return staged

    def accept(self, deal: bytes, number: int, note: bytes) -> Revision:
        """Make the staged revision the valid one, with another note: both sides have signed. Durable on return.

        Asked again, after a crash for instance, it changes nothing. Raises KeyError when that revision is not staged (nor valid
        with this note), MalformedError for a note that is too long, StoreFull, StoreError; nothing has changed then.
        """
        if len(note) > NOTE_MAX:
            raise MalformedError(f"a revision has at most {NOTE_MAX} bytes of note")
        with self._env.write() as txn:
            row = self._row(txn, deal)
            if row is not None and (row.valid.number, row.valid.note) == (number, note):
                return row.valid
            if row is None or row.staged is None or row.staged.number != number:
                raise KeyError(number)
            with txn.cursor(db=self._staged) as cursor:
                prefix = row.number.to_bytes(_NUMBER, "big")
                more = cursor.set_range(prefix)
                while more and cursor.key().startswith(prefix):
                    key, page = cursor.item()
                    if page:
                        txn.put(key, page, db=self._pages)
                    else:
                        txn.delete(key, db=self._pages)
                    more = cursor.delete()
            valid = Revision(number, row.staged.shard_set, note)
            self._set_row(txn, deal, SetRow(row.number, valid, None))
        return valid

    def discard(self, deal: bytes) -> None:
        """Forget the staged revision, if there is one: the other side did not sign. Durable on return."""
        with self._env.write() as txn:
            row = self._row(txn, deal)
            if row is not None and row.staged is not None:
                self._delete(txn, self._staged, row.number)
                self._set_row(txn, deal, SetRow(row.number, row.valid, None))

    def remove(self, deal: bytes) -> None:
        """Forget the set of a deal that has ended, if there is one; `sweep` gives its room back. Durable on return."""
        with self._env.write() as txn:
            row = self._row(txn, deal)
            if row is not None:
                txn.delete(deal, db=self._sets)
                txn.put(row.number.to_bytes(_NUMBER, "big"), b"", db=self._removed)

    def sweep(self) -> bool:
        """Remove some pages of removed sets; return whether there may be more."""
        with self._env.read() as txn, txn.cursor(db=self._removed) as cursor:
            if not cursor.first():
                return False
            number = int.from_bytes(cursor.key(), "big")
        with self._env.write() as txn:
            left = SWEEP_STEP
            for database in (self._staged, self._pages):
                left -= self._delete(txn, database, number, left)
            if left > 0:
                txn.delete(number.to_bytes(_NUMBER, "big"), db=self._removed)
        return True

    # ---- inside ----------------------------------------------------------------------------------------------------

    def _row(self, txn: Transaction, deal: bytes) -> SetRow | None:
        data = txn.get(deal, db=self._sets) if 0 < len(deal) <= DEAL_MAX else None
        if data is None:
            return None
        try:
            return codec.decode(bytes(data), SetRow)
        except MalformedError as exc:
            raise StoreCorrupt(f"{self._env.path}: the set of deal {deal.hex()} is damaged: {exc}") from exc

    def _set_row(self, txn: Transaction, deal: bytes, row: SetRow) -> None:
        txn.put(deal, codec.encode(row), db=self._sets)

    def _new_number(self, txn: Transaction) -> int:
        number = int.from_bytes(txn.get(_LAST, b"", db=self._counters), "big") + 1
        txn.put(_LAST, number.to_bytes(_NUMBER, "big"), db=self._counters)
        return number

    def _getter(self, txn: Transaction, row: SetRow, *, staged: bool) -> Get:
        def get(path: bytes) -> bytes | None:
            key = _key(row.number, path)
            page = txn.get(key, db=self._staged) if staged else None
            if page is None:
                page = txn.get(key, db=self._pages)
            return bytes(page) if page else None

        return get

    def _delete(self, txn: Transaction, database: Database, number: int, limit: int | None = None) -> int:
        """Delete the pages of a set, at most `limit` of them; return how many."""
        prefix, count = number.to_bytes(_NUMBER, "big"), 0
        with txn.cursor(db=database) as cursor:
            more = cursor.set_range(prefix)
            while more and cursor.key().startswith(prefix) and (limit is None or count < limit):
                more = cursor.delete()
                count += 1
        return count

    def close(self) -> None:
        """Close it."""
        self._env.close()

    def __enter__(self) -> ShardSets:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _key(number: int, path: bytes) -> bytes:
    return number.to_bytes(_NUMBER, "big") + bytes([len(path)]) + path


@contextmanager
def _damage_is_corruption() -> Iterator[None]:
    try:
        yield
    except SetDamaged as exc:
        raise StoreCorrupt(f"a shard set on this disk is damaged: {exc}") from exc
