"""Reading file contents: chunk values, plaintexts, the dirty layers over them, and reading ahead.

A read takes the chunk's value from the tree's map, its plaintext from memory, the page cache, this machine's disk or the
agent, in this order, and lays the dirty layers over it. Only the last two wait. Called only from the event loop.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from copy import copy
from functools import partial
from typing import Final

import trio

from fsdecloud import limits
from fsdecloud.crypto.seal import Kind
from fsdecloud.driver.core import Core
from fsdecloud.driver.entries import Entries, raise_first
from fsdecloud.driver.inodes import LiveInode
from fsdecloud.driver.opener import Opener
from fsdecloud.driver.plaincache import Plain, PlainCache
from fsdecloud.driver.recorder import Caller
from fsdecloud.errors import FsdecloudError
from fsdecloud.fs.chunks import Inline, Stored, assemble, decode_chunk, extent
from fsdecloud.fs.keys import chunk_key
from fsdecloud.types import Ref

log = logging.getLogger(__name__)

CHUNK: Final = limits.CHUNK_SIZE

_VALUES_KEPT: Final = 4096
"""Chunk values remembered for one inode: 4 GiB of file."""


class OpenFile:
    """One open handle."""

    __slots__ = (
        "ahead",
        "bytes_read",
        "bytes_written",
        "caller",
        "flags",
        "inode",
        "next_read",
        "path",
        "program",
        "streak",
        "was_read",
    )

    def __init__(self, inode: LiveInode, flags: int, caller: Caller, program: bytes, path: bytes) -> None:
        self.inode = inode
        self.flags = flags
        self.caller = caller
        self.program = program
        self.path = path
        self.bytes_read = 0
        self.bytes_written = 0
        self.was_read = False
        """Whether a read ever came."""
        self.next_read = 0
        """Where a sequential reader reads next."""
        self.streak = 0
        self.ahead = 0
        """Chunks below this were asked for ahead of the reader."""


class Reader:
    """Everything that reads file data of one mount."""

    def __init__(self, core: Core, entries: Entries) -> None:
        self._core = core
        self._entries = entries
        self._plain = PlainCache(limits.READ_CACHE)
        self._opener = Opener()
        self._spawn: Callable[[Callable[[], Awaitable[None]]], None] | None = None
        self._fetching = 0
        """Chunks that are being brought here ahead of their readers."""

    def start(self, spawn: Callable[[Callable[[], Awaitable[None]]], None]) -> None:
        """Let read-ahead begin; `spawn` runs a task that may fail. Raises StoreError when the system gives no thread."""
        self._spawn = spawn
        self._opener.start()

    def stop(self) -> None:
        """End what `start` began."""
        self._opener.stop()

    def of(self, core: Core) -> Reader:
        """Return a reader of another state, with the same memory, thread and place for reading ahead."""
        other = copy(self)
        other._core = core  # noqa: SLF001 - our own copy
        return other

    # ---- reading -----------------------------------------------------------------------------------------------------
    async def read(self, handle: OpenFile, offset: int, size: int) -> Plain:
        """Return up to `size` bytes; fewer only at the end of the file. Raises RemoteError when peers cannot give them."""
        live = handle.inode
        self._note_read(handle, offset, size)
        while True:
            end = min(offset + size, live.size)
            if end <= offset:
                return b""
            index, start = divmod(offset, CHUNK)
            if (end - 1) // CHUNK == index:
                piece = await self._core.run(self._piece_nowait, live, index, start, end - index * CHUNK)
                if piece is not None:
                    handle.bytes_read += len(piece)
                    return piece
                await self._load_chunk(live, index)
                continue
            data = await self._read_across(live, offset, end)
            handle.bytes_read += len(data)
            return data

    async def _read_across(self, live: LiveInode, offset: int, end: int) -> bytes:
        pieces: list[Plain] = []
        while offset < end:
            index, start = divmod(offset, CHUNK)
            stop = min(end - index * CHUNK, CHUNK)
            piece = await self._core.run(self._piece_nowait, live, index, start, stop)
            if piece is None:
                await self._load_chunk(live, index)
                continue
            pieces.append(piece)
            offset += stop - start
        return b"".join(pieces)

    def _piece_nowait(self, live: LiveInode, index: int, start: int, stop: int) -> Plain | None:
        """Return bytes of one chunk from memory, None when its plaintext must be loaded first. May raise NodeMissing."""
        chunk = live.chunks.get(index)
        if chunk is not None and len(chunk.layers) == 1:
            data = chunk.layers[0].extents.read(start, stop - start)
            if data is not None:
                return bytes(data)
        raw = self._chunk_value(live, index)
        plain = self._plain_nowait(raw)
        if plain is None:
            return None
        if stop <= len(plain):
            piece = plain if start == 0 and stop == len(plain) else plain[start:stop]
        else:
            piece = plain[start:].ljust(stop - start, b"\0")
        if chunk is None or not chunk.layers:
            return piece
        buffer = bytearray(piece)
        for layer in chunk.layers:
            layer.extents.overlay(buffer, start)
        return bytes(buffer)

    def _chunk_value(self, live: LiveInode, index: int) -> bytes:
        raw = live.values.get(index)
        if raw is None:
            raw = self._core.overlay.get(chunk_key(live.ino, index)) or b""
            if len(live.values) >= _VALUES_KEPT:
                live.values.clear()
            live.values[index] = raw
        return raw

    def _plain_nowait(self, raw: bytes) -> Plain | None:
        """Return a chunk's plaintext if no disk, peer or thread is needed for it."""
        if not raw:
            return b""
        plain = self._plain.get(raw)
        if plain is not None:
            return plain
        value = decode_chunk(raw)
        if isinstance(value, Inline):
            return value.data
        assert isinstance(value, Stored)
        out: bytearray | None = None
        if raw in self._opener:
            self._collect_opened()
            plain = self._plain.get(raw)
            if plain is not None:
                return plain
            if raw in self._opener:
                out = self._opener.take_back(raw)
                if out is None:
                    return None  # the thread is at it
        if value.patches or value.ref is None:
            return None
        out = out or self._plain.buffer()
        plain = self._open_now(value.ref, value.length, out, wait=False)
        if plain is not out:
            self._plain.give_back(out)
        if plain is not None:
            self._plain.put(raw, plain)
        return plain

    def _open_now(self, ref: Ref, length: int, out: bytearray, *, wait: bool = True) -> Plain | None:
        """Open a chunk whose entry is here, without `wait` only from the page cache. Event loop or opener thread."""
        plain = self._entries.open_now(ref, Kind.CHUNK, out, wait=wait)
        if plain is None or len(plain) == length:
            return plain
        return assemble(Stored(length, ref, ()), bytes(plain), (), length)

    def _collect_opened(self) -> None:
        for raw, plain in self._opener.collect():
            if plain is not None:
                self._plain.put(raw, plain)

    async def _load_chunk(self, live: LiveInode, index: int) -> None:
        raw = await self._core.run(self._chunk_value, live, index)
        await self.load_plain(raw)

    async def load_plain(self, raw: bytes) -> Plain:
        """Return a chunk value's plaintext, from memory or wherever it is; it stays in memory for a while."""
        if raw in self._opener:
            await self._opener.wait(raw)
        plain = self._plain_nowait(raw)
        if plain is not None:
            return plain
        value = decode_chunk(raw)
        assert isinstance(value, Stored)
        with self._core.waiters.one():
            if value.patches or value.ref is None:
                base, patches = await self._load_parts(value)
                plain = assemble(value, base, patches, extent(value))
            else:
                plain = await self._entries.get(value.ref, Kind.CHUNK)
                if len(plain) != value.length:
                    plain = assemble(value, plain, (), value.length)
        self._plain.put(raw, plain)
        return plain

    async def _load_parts(self, value: Stored) -> tuple[bytes | None, list[bytes]]:
        """Load a chunk's base and patches, all at once."""
        results: dict[int, bytes] = {}

        async def load(number: int, ref: Ref, kind: Kind) -> None:
            results[number] = await self._entries.get(ref, kind)

        try:
            async with trio.open_nursery() as nursery:
                if value.ref is not None:
                    nursery.start_soon(load, -1, value.ref, Kind.CHUNK)
                for number, patch in enumerate(value.patches):
                    nursery.start_soon(load, number, patch.ref, Kind.PATCH)
        except BaseExceptionGroup as group:  # the workers' group; the caller wants the error itself
            raise_first(group)
        return results.get(-1), [results[number] for number in range(len(value.patches))]

    # ---- read-ahead ----------------------------------------------------------------------------------------------------
    def _note_read(self, handle: OpenFile, offset: int, size: int) -> None:
        """Ask for the next chunks when somebody reads one after another. The kernel's own read-ahead may reorder a little."""
        if abs(offset - handle.next_read) <= 4 * CHUNK:
            handle.streak += 1
        else:
            handle.streak = 0
            handle.ahead = 0
        handle.next_read = max(offset + size, handle.next_read) if handle.streak else offset + size
        if handle.streak < 2 or self._spawn is None:
            return
        live = handle.inode
        first = max(handle.ahead, (offset + size) // CHUNK)
        last = min((offset + size) // CHUNK + limits.READ_AHEAD_CHUNKS, -(-live.size // CHUNK))
        for index in range(first, last):
            handle.ahead = index + 1
            raw = live.values.get(index)
            if index in live.chunks or raw == b"" or (raw is not None and raw in self._plain):
                continue
            if raw is None or not self._open_ahead(raw):
                if self._fetching >= limits.READ_AHEAD_MAX:
                    return
                self._fetching += 1
                self._spawn(partial(self._prefetch, live, index))

    def _open_ahead(self, raw: bytes) -> bool:
        """Have a chunk opened by the thread if its entry is on this machine; return False if it must be fetched."""
        value = decode_chunk(raw)
        if not isinstance(value, Stored) or value.ref is None or value.patches:
            return True
        if not self._entries.is_local(value.ref.id):
            return False
        if len(self._opener) >= limits.READ_AHEAD_MAX:
            self._collect_opened()  # of readers that never came back for them
            if len(self._opener) >= limits.READ_AHEAD_MAX:
                return True
        self._opener.request(
            raw,
            partial(self._entries.will_need, value.ref.id),
            partial(self._open_now, value.ref, value.length),
            self._plain.buffer(),
        )
        return True

    async def _prefetch(self, live: LiveInode, index: int) -> None:
        """Bring one chunk to this machine. Failures are the reader's to report."""
        try:
            raw = await self._core.run(self._chunk_value, live, index)
            if not raw or raw in self._plain or self._open_ahead(raw):
                return
            value = decode_chunk(raw)
            assert isinstance(value, Stored)
            assert value.ref is not None
            plain = await self._entries.get(value.ref, Kind.CHUNK, ahead=True)
            self._plain.put(raw, plain if len(plain) == value.length else assemble(value, plain, (), value.length))
        except FsdecloudError as exc:
            log.debug("read-ahead: %s", exc)
        finally:
            self._fetching -= 1
