"""What the agent must not forget: locations not yet in the map, blobs on their way, map nodes, the outbox, the registry.

One LMDB environment in the agent's state directory. `Journal` is blocking: reads are fit for the event loop (mapped
pages), `apply` syncs and belongs into a worker thread. `JournalWriter` groups what the event loop writes into one
transaction at a time. Losing the journal loses locations that no anchor has yet, so it is state, never cache.

Tables:

    meta        name -> value: volume, host_map, absent, registry, map_root, map_sequence, map_own_roots, map_extra, nodes_live,
                map_generation, final_generation, manifest (id of the latest), suspects (`agent.auditor`), repaired,
                leases (`agent.leases`), host_map_copy (reference, holders), followed (`agent.standin`),
                copies (`agent.copies`), recoding, steady (`agent.recoding`), settled (`agent.settling`)
    rows        map key -> map value: locations since the last `fold`
    uploads     blob id -> UploadRecord
    nodes       entry id -> sealed map node or manifest: our own until it is stored, and a cache of the map after that
    outbox      anchor sequence (8 bytes, big-endian) -> OutboxRecord
    condemned   blob id -> Condemned: what is to be deleted (`agent.garbage`)
    condemning  shard id, blob id -> b"": which condemned blobs have a shard
    deals       contract id -> DealRow: contracts with peers (`agent.dealbook`)
    dealt       peer id, shard id -> length (4 bytes, big-endian; 0: it goes): what the next revisions change
    generations generation (8 bytes, big-endian), 1 for a node of the map or else 0, blob id -> b"": condemned blobs in order
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Final

import trio

from fsdecloud.errors import StoreCorrupt, StoreFull
from fsdecloud.limits import AGENT_MAP_SIZE
from fsdecloud.net.nursery import open_background
from fsdecloud.store.environment import Environment, Transaction, open_environment

log = logging.getLogger(__name__)

FULL_RETRY: Final = 2.0
"""Seconds between two tries while the disk is full; uploads wait meanwhile, fetches go on."""

META: Final = b"meta"
ROWS: Final = b"rows"
UPLOADS: Final = b"uploads"
NODES: Final = b"nodes"
OUTBOX: Final = b"outbox"
CONDEMNED: Final = b"condemned"
CONDEMNED_SHARDS: Final = b"condemning"
GENERATIONS: Final = b"generations"
DEALS: Final = b"deals"
DEALT: Final = b"dealt"

_TABLES: Final = (META, ROWS, UPLOADS, NODES, OUTBOX, CONDEMNED, CONDEMNED_SHARDS, GENERATIONS, DEALS, DEALT)

Write = tuple[bytes, bytes, bytes | None]
"""(table, key, value); None deletes."""


class Journal:
    """The environment of one volume."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._tables = {name: environment.database(name) for name in _TABLES}

    def get(self, table: bytes, key: bytes) -> bytes | None:
        """Return a value, None if there is none."""
        with self._environment.read() as txn:
            value: bytes | None = txn.get(key, db=self._tables[table])
        return value

    def has(self, table: bytes, key: bytes) -> bool:
        """Say whether there is such a key."""
        return self.get(table, key) is not None

    def items(self, table: bytes) -> list[tuple[bytes, bytes]]:
        """Return the whole table by ascending key."""
        with self._environment.read() as txn, txn.cursor(db=self._tables[table]) as cursor:
            return list(cursor)

    def items_after(self, table: bytes, after: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """Return up to `limit` items of a table whose keys come after one, ascending."""
        with self._environment.read() as txn, txn.cursor(db=self._tables[table]) as cursor:
            return list(islice(cursor, limit)) if cursor.set_range(after + b"\0") else []

    def items_between(self, table: bytes, start: bytes, stop: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """Return up to `limit` items with start <= key < stop, ascending."""
        found: list[tuple[bytes, bytes]] = []
        with self._environment.read() as txn, txn.cursor(db=self._tables[table]) as cursor:
            more = cursor.set_range(start)
            while more and len(found) < limit and cursor.key() < stop:
                found.append(cursor.item())
                more = cursor.next()
        return found

    def keys(self, table: bytes) -> list[bytes]:
        """Return all keys of a table, ascending."""
        with self._environment.read() as txn, txn.cursor(db=self._tables[table]) as cursor:
            return list(cursor.iternext(keys=True, values=False))

    def keys_from(self, table: bytes, prefix: bytes) -> list[bytes]:
        """Return the keys that start with `prefix`, ascending."""
        found: list[bytes] = []
        with self._environment.read() as txn, txn.cursor(db=self._tables[table]) as cursor:
            more = cursor.set_range(prefix)
            while more and (key := cursor.key()).startswith(prefix):
                found.append(key)
                more = cursor.next()
        return found

    def keys_between(self, table: bytes, start: bytes, stop: bytes) -> list[bytes]:
        """Return the keys with start <= key < stop, ascending."""
        found: list[bytes] = []
        with self._environment.read() as txn, txn.cursor(db=self._tables[table]) as cursor:
            more = cursor.set_range(start)
            while more and (key := cursor.key()) < stop:
                found.append(key)
                more = cursor.next()
        return found

    def count(self, table: bytes) -> int:
        """Return the number of keys in a table."""
        with self._environment.read() as txn:
            return int(txn.stat(self._tables[table])["entries"])

    def apply(self, writes: Iterable[Write], *, folded: Mapping[bytes, bytes] | None = None) -> None:
        """Do the writes in one durable transaction.

        Rows in `folded` (they are in the map now) are deleted unless they have another value than the one given, which
        then is newer than the map. Raises StoreFull, StoreError; nothing is then written.
        """
        with self._environment.write() as txn:
            for table, key, value in writes:
                self._write(txn, table, key, value)
            rows = self._tables[ROWS]
            for key, value in (folded or {}).items():
                if txn.get(key, db=rows) == value:
                    txn.delete(key, db=rows)

    def _write(self, txn: Transaction, table: bytes, key: bytes, value: bytes | None) -> None:
        if value is None:
            txn.delete(key, db=self._tables[table])
        else:
            txn.put(key, value, db=self._tables[table])

    def close(self) -> None:
        """Close the environment."""
        self._environment.close()


def open_journal(path: Path, volume: bytes) -> Journal:
    """Open the journal of a volume in directory `path`, made if missing.

    Raises StoreCorrupt when it is another volume's or damaged, StoreLocked, StoreError.
    """
    journal = Journal(open_environment(path, AGENT_MAP_SIZE, len(_TABLES)))
    try:
        owner = journal.get(META, b"volume")
        if owner is None:
            journal.apply([(META, b"volume", volume)])
        elif owner != volume:
            raise StoreCorrupt(f"{path} belongs to volume {owner.hex()}, not {volume.hex()}")
    except BaseException:  # interrupted or failed, nobody else would close it
        journal.close()
        raise
    return journal


class JournalWriter:
    """Groups writes of the event loop: what arrives while one transaction syncs goes into the next one."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self._writes: list[Write] = []
        self._done: list[Callable[[], None]] = []
        self._wake = trio.Event()
        self.last_error = ""

    def write_nowait(self, writes: Iterable[Write], done: Callable[[], None] | None = None) -> None:
        """Queue writes; `done` is called in the event loop once they are durable."""
        self._writes.extend(writes)
        if done is not None:
            self._done.append(done)
        self._wake.set()

    async def write(self, writes: Iterable[Write]) -> None:
        """Queue writes and return once they are durable."""
        durable = trio.Event()
        self.write_nowait(writes, durable.set)
        await durable.wait()

    async def run(self) -> None:
        """Write until cancelled. A full disk is waited for; any other failure ends the agent, and the driver says why."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            writes, done = self.take()
            while True:
                try:
                    await trio.to_thread.run_sync(self.journal.apply, writes)
                    break
                except StoreFull as exc:
                    log.error("%s", exc)
                    self.last_error = str(exc)
                    await trio.sleep(FULL_RETRY)
            for call in done:
                call()

    def take(self) -> tuple[list[Write], list[Callable[[], None]]]:
        """Return what is queued, and whom to tell, and forget it."""
        writes, self._writes = self._writes, []
        done, self._done = self._done, []
        return writes, done


@asynccontextmanager
async def open_writer(journal: Journal) -> AsyncIterator[JournalWriter]:
    """Run a writer for the length of the body; what is queued when the body ends is still written."""
    writer = JournalWriter(journal)
    try:
        async with open_background() as nursery:
            nursery.start_soon(writer.run)
            yield writer
    finally:
        # The task has ended, so nothing can overtake; a transaction it had begun in its thread is complete.
        writes, _ = writer.take()
        if writes:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(journal.apply, writes)
