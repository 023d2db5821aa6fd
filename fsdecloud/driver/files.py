"""File contents: open handles, reads, writes, truncation.

A write lands in the chunk's open layer and is answered; a full chunk goes to the sealer. A read takes the chunk's value
from the tree's map, its plaintext from memory, this machine or the agent, and lays the dirty layers over it. The hot path
(`write_nowait`, `read_nowait`) neither awaits nor touches LMDB. Called only from the event loop.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from functools import partial
from typing import Final

import trio

from fsdecloud import limits
from fsdecloud.crypto.seal import Kind
from fsdecloud.driver.core import Core
from fsdecloud.driver.dirty import DirtyChunk
from fsdecloud.driver.entries import Entries
from fsdecloud.driver.inodes import LiveInode
from fsdecloud.driver.opener import Opener
from fsdecloud.driver.plaincache import Plain, PlainCache
from fsdecloud.driver.recorder import Caller
from fsdecloud.driver.sealer import Sealer
from fsdecloud.errors import (
    FileTooBig,
    FsdecloudError,
    InvalidArgument,
    IsDirectory,
    MalformedError,
    NoSpace,
    NotFound,
    StaleHandle,
)
from fsdecloud.fs.chunks import Inline, Stored, assemble, clip, decode_chunk, encode_chunk, extent
from fsdecloud.fs.extents import Extents
from fsdecloud.fs.keys import chunk_key, chunk_prefix, orphan_key, split_chunk_key, xattr_prefix
from fsdecloud.fs.records import Operation
from fsdecloud.types import Handle, Ref

CHUNK: Final = limits.CHUNK_SIZE

_VALUES_KEPT: Final = 4096
"""Chunk values remembered for one inode: 4 GiB of file."""

_DIRECT_REAP: Final = 64
"""Up to this many chunks, a removed file's keys are deleted by number; above, by what the tree lists."""


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
    )

    def __init__(self, inode: LiveInode, flags: int, caller: Caller, program: bytes, path: bytes) -> None:
        self.inode = inode
        self.flags = flags
        self.caller = caller
        self.program = program
        self.path = path
        self.bytes_read = 0
        self.bytes_written = 0
        self.next_read = 0
        """Where a sequential reader reads next."""
        self.streak = 0
        self.ahead = 0
        """Chunks below this were asked for ahead of the reader."""


class Files:
    """All file data of one mount."""

    def __init__(self, core: Core, entries: Entries, sealer: Sealer, *, kernel_times: bool, stage_size: int) -> None:
        self._core = core
        self._entries = entries
        self._sealer = sealer
        self._kernel_times = kernel_times
        self._stage_size = stage_size
        self._handles: dict[int, OpenFile] = {}
        self._next_handle = 1
        self._plain = PlainCache(limits.READ_CACHE)
        self._opener = Opener()
        self._nursery: trio.Nursery | None = None
        self.last_write = 0.0
        """When a program last wrote, monotonic seconds."""
        self.dirty: OrderedDict[tuple[int, int], DirtyChunk] = OrderedDict()
        """Chunks with an open layer, by the age of their first byte."""
        self._fresh: dict[tuple[int, int], DirtyChunk] = {}
        """Chunks of which the journal lacks something."""
        self._replayed: dict[tuple[int, int], Extents] = {}
        sealer.on_value = self._value_changed

    def start(self, nursery: trio.Nursery) -> None:
        """Give read-ahead a place to run in."""
        self._nursery = nursery
        self._opener.start()

    def stop(self) -> None:
        """End what `start` began."""
        self._opener.stop()

    # ---- handles -------------------------------------------------------------------------------------------------
    def open(self, live: LiveInode, flags: int, caller: Caller) -> Handle:
        """Open a file; truncation is the caller's business."""
        if live.is_dir:
            raise IsDirectory
        if flags & os.O_ACCMODE != os.O_RDONLY:
            self._core.check_writable()
        number = self._next_handle
        self._next_handle += 1
        live.opens += 1
        program = self._core.recorder.program(caller.pid)
        self._handles[number] = OpenFile(live, flags, caller, program, self._core.path_of(live))
        return Handle(number)

    def handle(self, number: int) -> OpenFile:
        """Return an open handle. Raises StaleHandle."""
        try:
            return self._handles[number]
        except KeyError:
            raise StaleHandle from None

    def release(self, number: int) -> LiveInode | None:
        """Close a handle and record what was read and written; return its inode when that was the last one."""
        handle = self._handles.pop(number, None)
        if handle is None:
            return None
        self.record_use(handle, closing=True)
        handle.inode.opens -= 1
        return handle.inode if handle.inode.opens == 0 else None

    def record_use(self, handle: OpenFile, *, closing: bool = False) -> None:
        """Record the bytes that went through a handle since the last time."""
        live = handle.inode
        reader = handle.flags & os.O_ACCMODE != os.O_WRONLY and handle.caller.pid != 0
        for operation, amount in ((Operation.READ, handle.bytes_read), (Operation.WRITE, handle.bytes_written)):
            if amount or (operation is Operation.READ and closing and reader and not handle.bytes_written):
                self._core.recorder.record(
                    operation, handle.caller, live.ino, handle.path, amount=amount, program=handle.program
                )
                self._core.changed()
        handle.bytes_read = handle.bytes_written = 0

    def record_open_handles(self) -> None:
        """Record what long-open handles did so far, before a commit."""
        for handle in self._handles.values():
            if handle.bytes_read or handle.bytes_written:
                self.record_use(handle)

    @property
    def open_handles(self) -> int:
        """How many handles are open."""
        return len(self._handles)

    # ---- writing -------------------------------------------------------------------------------------------------
    async def wait_room(self) -> None:
        """Wait until a write may come in. Raises NoSpace when the staging area or the disk stays full."""
        while self._sealer.dirty_bytes > limits.DIRTY_MAX:
            if self._sealer.error is not None:
                raise NoSpace(str(self._sealer.error))
            self.seal_oldest(self._sealer.dirty_bytes - limits.DIRTY_MAX // 2)
            await self._sealer.wait_progress()
        if self._entries.staged_bytes > self._stage_size:
            raise NoSpace(
                f"{self._entries.staged_bytes} bytes wait for peers; the limit is stage_size={self._stage_size}"
            )

    @property
    def has_room(self) -> bool:
        """Whether a write needs not wait."""
        return self._sealer.dirty_bytes <= limits.DIRTY_MAX and self._entries.staged_bytes <= self._stage_size

    def write_nowait(self, live: LiveInode, offset: int, data: bytes | memoryview) -> None:
        """Take in written bytes. Raises FileTooBig, ReadOnly."""
        self._core.check_writable()
        self.last_write = time.monotonic()
        end = offset + len(data)
        if end > limits.MAX_FILE_SIZE:
            raise FileTooBig
        position = 0
        while position < len(data):
            index, start = divmod(offset + position, CHUNK)
            size = min(CHUNK - start, len(data) - position)
            piece = data if size == len(data) else memoryview(data)[position : position + size]
            self._write_piece(live, index, start, piece)
            position += size
        if end > live.size:
            self._core.count_bytes(end - live.size)
            live.size = end
        if not self._kernel_times:
            live.mtime = live.ctime = time.time_ns()
        self._core.inodes.touch(live)
        self._core.changed()

    def _write_piece(self, live: LiveInode, index: int, start: int, piece: bytes | memoryview) -> None:
        chunk = live.chunks.get(index)
        if chunk is None:
            chunk = DirtyChunk(live.ino, index, time.monotonic())
            live.chunks[index] = chunk
            self._sealer.dirty_chunks += 1
        key = (live.ino, index)
        if len(piece) == CHUNK and isinstance(piece, bytes):
            self._sealer.dirty_bytes += chunk.hold(piece, self._core.overlay.generation)
            self.dirty.pop(key, None)
            self._fresh.pop(key, None)
            self._sealer.submit(chunk)
            return
        self.dirty[key] = self._fresh[key] = chunk
        self._sealer.dirty_bytes += chunk.write(start, piece, self._core.overlay.generation)
        layer = chunk.layers[-1]
        if layer.extents.covers(CHUNK):
            self.seal_chunk(chunk)

    def seal_chunk(self, chunk: DirtyChunk) -> None:
        """Close the chunk's open layer and have it sealed."""
        if chunk.close_layer():
            self._sealer.submit(chunk)
        self.dirty.pop((chunk.ino, chunk.index), None)
        self._fresh.pop((chunk.ino, chunk.index), None)

    def seal_oldest(self, size: int) -> None:
        """Have the oldest dirty chunks sealed, about `size` bytes of them."""
        while size > 0 and self.dirty:
            chunk = next(iter(self.dirty.values()))
            size -= chunk.size
            self.seal_chunk(chunk)

    def seal_all(self) -> None:
        """Close every open layer."""
        for chunk in list(self.dirty.values()):
            self.seal_chunk(chunk)

    async def wait_sealed(self, live: LiveInode) -> None:
        """Wait until no layer of this file is closed and unsealed. Raises what sealing failed with."""
        while any(chunk.layers and chunk.layers[0].closed for chunk in live.chunks.values()):
            if self._sealer.error is not None:
                raise NoSpace(str(self._sealer.error))
            await self._sealer.wait_progress()

    def check_error(self, live: LiveInode) -> None:
        """Raise NoSpace when this file has bytes that cannot be staged: a program may still learn it at close."""
        if self._sealer.error is not None and live.chunks:
            raise NoSpace(str(self._sealer.error))

    async def prepare_fsync(self, live: LiveInode) -> None:
        """Bring a file's data to where the next group commit makes it durable: large parts sealed, small ones as pages."""
        for chunk in list(live.chunks.values()):
            if chunk.fresh_bytes > limits.PACK_ENTRY_MAX:
                self.seal_chunk(chunk)
        await self.wait_sealed(live)

    # ---- truncation ------------------------------------------------------------------------------------------------
    async def truncate(self, live: LiveInode, size: int) -> None:
        """Set a file's size. Raises FileTooBig, InvalidArgument, IsDirectory."""
        self._core.check_writable()
        if live.is_dir:
            raise IsDirectory
        if size < 0:
            raise InvalidArgument
        if size > limits.MAX_FILE_SIZE:
            raise FileTooBig
        while size < live.size:
            await self.wait_sealed(live)
            keys = await self._core.run(self._keys_from, live, size)
            if any(chunk.layers and chunk.layers[0].closed for chunk in live.chunks.values()):
                continue  # written and sealed again while tree nodes came
            self._shrink(live, size, keys)
            break
        self._core.count_bytes(size - live.size)
        live.size = size
        live.mtime = live.ctime = time.time_ns()
        self._core.inodes.touch(live)
        self._core.changed()

    def _keys_from(self, live: LiveInode, size: int) -> list[tuple[bytes, bytes]]:
        """Return the chunk values at or past the new end. May raise NodeMissing."""
        start = chunk_key(live.ino, size // CHUNK)
        stop = chunk_key(live.ino, -(-live.size // CHUNK) + 1)
        return list(self._core.overlay.scan(start, stop))

    def _shrink(self, live: LiveInode, size: int, keys: list[tuple[bytes, bytes]]) -> None:
        border, cut = divmod(size, CHUNK)
        for key, raw in keys:
            number = split_chunk_key(key)[1]
            old = decode_chunk(raw)
            new = clip(old, cut) if number == border and cut else None
            live.allocated += (extent(new) if new is not None else 0) - extent(old)
            self._core.overlay.put(key, encode_chunk(new) if new is not None and extent(new) else None)
        live.values.clear()
        for index, chunk in list(live.chunks.items()):
            if index > border or (index == border and not cut):
                self._drop_chunk(live, chunk)
            elif index == border:
                self._sealer.dirty_bytes -= chunk.truncate(cut)
                chunk.renew()
                if not chunk.size:
                    self._drop_chunk(live, chunk)
        self._core.truncated(live.ino, size)

    def _drop_chunk(self, live: LiveInode, chunk: DirtyChunk) -> None:
        """Forget dirty bytes, but for layers that a commit in progress still needs."""
        self.dirty.pop((chunk.ino, chunk.index), None)
        self._fresh.pop((chunk.ino, chunk.index), None)
        kept = [layer for layer in chunk.layers if layer.closed and layer.generation < self._core.overlay.generation]
        self._sealer.dirty_bytes -= chunk.size - sum(layer.extents.size for layer in kept)
        chunk.layers = kept
        chunk.fresh = []
        if live.chunks.pop(chunk.index, None) is not None:
            self._sealer.dirty_chunks -= 1
        self._sealer.notify()

    # ---- removal -----------------------------------------------------------------------------------------------------
    def reap(self, live: LiveInode) -> None:
        """Delete everything of an inode without names, handles or look-ups. May raise NodeMissing before any change."""
        doomed = [orphan_key(live.ino), b"I" + live.ino.to_bytes(8, "big")]
        count = -(-live.size // CHUNK) if not live.is_dir and not live.target else 0
        if count <= _DIRECT_REAP:
            doomed += [chunk_key(live.ino, index) for index in range(count)]
        else:
            doomed += [key for key, _raw in self._core.overlay.scan_prefix(chunk_prefix(live.ino))]
        if live.xattrs:
            doomed += [key for key, _raw in self._core.overlay.scan_prefix(xattr_prefix(live.ino))]
        doomed += [chunk_key(live.ino, index) for index in live.chunks]
        for key in doomed:
            self._core.overlay.put(key, None)
        for chunk in list(live.chunks.values()):
            self._drop_chunk(live, chunk)
        self._core.count_gone(live)
        self._core.inodes.drop(live)
        self._core.changed()

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
        if raw in self._opener:
            self._collect_opened()
            plain = self._plain.get(raw)
            if plain is not None:
                return plain
        assert isinstance(value, Stored)
        if value.patches or value.ref is None or not self._opener.take_back(raw):
            return None
        plain = self._open_now(value.ref, value.length, self._plain.buffer(), wait=False)
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
        except BaseExceptionGroup as group:
            failures = group.split(FsdecloudError)[0]
            if failures is None:
                raise
            raise _first(failures) from group
        return results.get(-1), [results[number] for number in range(len(value.patches))]

    def _value_changed(self, ino: int, index: int) -> None:
        """The sealer gave a chunk a new value."""
        live = self._core.inodes.peek(ino)
        if live is not None:
            live.values.pop(index, None)
            chunk = live.chunks.get(index)
            if chunk is not None and chunk.fresh:
                self._fresh[ino, index] = chunk

    # ---- the journal's side ----------------------------------------------------------------------------------------------
    def take_fresh_chunks(self) -> list[DirtyChunk]:
        """Return the chunks of which the journal lacks something."""
        fresh, self._fresh = list(self._fresh.values()), {}
        return fresh

    def renew_all(self) -> None:
        """Have the journal take all dirty pages again, after a group commit that failed."""
        for key, chunk in self.dirty.items():
            chunk.journaled = True
            chunk.renew()
            self._fresh[key] = chunk

    def replay_page(self, ino: int, index: int, offset: int, data: bytes) -> None:
        """Take back a dirty page from the journal."""
        if not 0 <= offset <= offset + len(data) <= CHUNK:
            raise MalformedError(f"a journal page of inode {ino} outside its chunk")
        self._replayed.setdefault((ino, index), Extents()).write(offset, data)

    def void_pages(self, key: bytes) -> None:
        """Forget replayed pages of a chunk: its value came after them."""
        self._replayed.pop(split_chunk_key(key), None)

    def cut_pages(self, ino: int, size: int) -> None:
        """Forget replayed pages past a file's cut."""
        for key in [key for key in self._replayed if key[0] == ino]:
            length = size - key[1] * CHUNK
            if length <= 0:
                del self._replayed[key]
            else:
                self._replayed[key].truncate(length)

    async def install_replayed(self) -> None:
        """Lay the replayed pages over their files, those that still exist."""
        replayed, self._replayed = self._replayed, {}
        for (ino, index), extents in replayed.items():
            try:
                live = await self._core.run(self._core.inodes.get, ino)
            except NotFound:
                continue
            for offset, data in extents.ranges():
                self._write_piece(live, index, offset, data)
            chunk = live.chunks.get(index)
            if chunk is not None:
                chunk.fresh = []
                chunk.journaled = True
        self._fresh.clear()

    # ---- read-ahead ----------------------------------------------------------------------------------------------------
    def _note_read(self, handle: OpenFile, offset: int, size: int) -> None:
        """Ask for the next chunks when somebody reads one after another. The kernel's own read-ahead may reorder a little."""
        if abs(offset - handle.next_read) <= 4 * CHUNK:
            handle.streak += 1
        else:
            handle.streak = 0
            handle.ahead = 0
        handle.next_read = max(offset + size, handle.next_read) if handle.streak else offset + size
        if handle.streak < 2 or self._nursery is None:
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
                self._nursery.start_soon(self._prefetch, live, index)

    def _open_ahead(self, raw: bytes) -> bool:
        """Have a chunk opened by the thread if its entry is on this machine; return False if it must be fetched."""
        value = decode_chunk(raw)
        if not isinstance(value, Stored) or value.ref is None or value.patches:
            return True
        if not self._entries.is_local(value.ref.id):
            return False
        out = self._plain.buffer()
        prepare = partial(self._entries.will_need, value.ref.id)
        self._opener.request(raw, prepare, partial(self._open_now, value.ref, value.length, out))
        return True

    async def _prefetch(self, live: LiveInode, index: int) -> None:
        """Bring one chunk to this machine. Failures are the reader's to report."""
        try:
            raw = await self._core.run(self._chunk_value, live, index)
        except FsdecloudError:
            return
        if raw and raw not in self._plain and not self._open_ahead(raw):
            value = decode_chunk(raw)
            assert isinstance(value, Stored)
            assert value.ref is not None
            await self._entries.prefetch(value.ref)


def _first(group: BaseException) -> BaseException:
    """Return some leaf of an exception group."""
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group
