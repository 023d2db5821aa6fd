"""What a blob on its way has reached: into the journal first, then to the driver.

Called only from the trio thread. What the driver may let go of can be found after any crash, because its rows and receipts
are on the disk before it is told. Receipts that change nothing for the driver yet are written after a moment, so that a
restart sends only what is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from fsdecloud import codec
from fsdecloud.agent.blob import Blob, Level
from fsdecloud.agent.hosts import Hosts
from fsdecloud.agent.journal import ROWS, UPLOADS, JournalWriter, Write
from fsdecloud.agent.rows import blob_key, entry_rows, make_blob_row
from fsdecloud.types import ShardId
from fsdecloud.wire.agentapi import Stored

NOTE_DELAY: Final = 1.0
"""Receipts wait so long for more of the same blob: one that is complete within a second is written once."""


class Announcer:
    """Writes and tells. `told` is called when that is done for a blob, with the level it had."""

    def __init__(
        self,
        writer: JournalWriter,
        hosts: Hosts,
        notify: Callable[[Stored], object],
        told: Callable[[Blob, Level], None],
        is_known: Callable[[Blob], bool],
    ) -> None:
        """`is_known` says whether a blob is still on its way, and not forgotten meanwhile."""
        self._writer = writer
        self._hosts = hosts
        self._notify = notify
        self._told = told
        self._is_known = is_known
        self._dirty: dict[Blob, None] = {}
        self._noted: dict[Blob, None] = {}
        self._wake = trio.Event()
        self._wake_notes = trio.Event()

    def __contains__(self, blob: Blob) -> bool:
        """Whether the blob is about to be told of."""
        return blob in self._dirty

    def announce(self, blob: Blob) -> None:
        """Tell what the blob has reached."""
        self._dirty[blob] = None
        self._wake.set()

    def note(self, blob: Blob) -> None:
        """Write down who holds shards of the blob."""
        self._noted[blob] = None
        self._wake_notes.set()

    async def run(self) -> None:
        """Work until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write_notes)
            await self._announce()

    async def _announce(self) -> None:
        """What comes while the journal syncs goes into the next round."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            blobs, self._dirty = list(self._dirty), {}
            levels = [blob.level for blob in blobs]
            notices = [_stored(blob) for blob in blobs]
            writes: list[Write] = []
            for blob in blobs:
                self._noted.pop(blob, None)
                writes += self._writes(blob)
            await self._writer.write(writes)
            for blob, level, notice in zip(blobs, levels, notices, strict=True):
                self._told(blob, level)
                if not blob.is_local:
                    self._notify(notice)

    async def _write_notes(self) -> None:
        try:
            while True:
                await self._wake_notes.wait()
                await trio.sleep(NOTE_DELAY)
                self._wake_notes = trio.Event()
                self._flush_notes()
        finally:
            self._flush_notes()  # the writer outlives this task, and writes what it was given

    def _flush_notes(self) -> None:
        blobs, self._noted = list(self._noted), {}
        known = [blob for blob in blobs if self._is_known(blob)]
        self._writer.write_nowait([(UPLOADS, blob.id, codec.encode(blob.record())) for blob in known])

    def _writes(self, blob: Blob) -> list[Write]:
        if blob.is_local and blob.level is Level.COMPLETE:
            return [(UPLOADS, blob.id, None)]
        record = blob.record()
        writes: list[Write] = [(UPLOADS, blob.id, codec.encode(record))]
        if not blob.is_local:
            row = make_blob_row(record, self._hosts.ranking(blob.id, blob.epoch)[: blob.n])
            writes.append((ROWS, blob_key(blob.id), codec.encode(row)))
            writes += [(ROWS, key, value) for key, value in entry_rows(blob.id, blob.entries)]
        return writes


def _stored(blob: Blob) -> Stored:
    shards = blob.shards or (ShardId(blob.id),) * blob.n
    entries = tuple(entry.id for entry in blob.entries)
    return Stored(blob.id, blob.k, blob.n, shards, entries, tuple(blob.receipts))
