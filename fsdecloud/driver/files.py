"""Changing file contents: open handles, writes, truncation, removal.

A write lands in the chunk's open layer and is answered; a full chunk goes to the sealer. `write_nowait` neither awaits nor
touches LMDB. Called only from the event loop. Not here: reading (`reader`), sealing (`sealer`).
"""

from __future__ import annotations

import os
import stat
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from itertools import islice
from typing import Final

import trio

from fsdecloud import limits
from fsdecloud.driver.clock import now
from fsdecloud.driver.core import Core
from fsdecloud.driver.dirty import DirtyChunk
from fsdecloud.driver.entries import Entries
from fsdecloud.driver.inodes import LiveInode
from fsdecloud.driver.reader import OpenFile
from fsdecloud.driver.recorder import Caller
from fsdecloud.driver.sealer import Sealer
from fsdecloud.errors import (
    FileTooBig,
    InvalidArgument,
    IsDirectory,
    MalformedError,
    NoSpace,
    NotFound,
    RemoteTimeout,
    StaleHandle,
)
from fsdecloud.fs.chunks import Chunk, Hole, clip, decode_chunk, encode_chunk, extent, held
from fsdecloud.fs.extents import Extents
from fsdecloud.fs.inode import decode_inode
from fsdecloud.fs.keys import chunk_key, chunk_prefix, inode_key, orphan_key, parent_key, split_chunk_key, xattr_prefix
from fsdecloud.fs.records import Operation
from fsdecloud.types import Handle

CHUNK: Final = limits.CHUNK_SIZE

_VALUES_KEPT: Final = 64
"""Chunk values that a file which nobody has open any more may keep in memory."""

_DIRECT_REAP: Final = 64
"""Up to this many chunks, a removed file's keys are deleted by number; above, by what the tree lists."""

_STEP: Final = 1024
"""Keys looked at before other requests get their turn: under 2 ms."""


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
        self.last_write = 0.0
        """When a program last wrote, monotonic seconds."""
        self.dirty: OrderedDict[tuple[int, int], DirtyChunk] = OrderedDict()
        """Chunks with an open layer, by the age of their first byte."""
        self._fresh: dict[tuple[int, int], DirtyChunk] = {}
        """Chunks of which the journal lacks something."""
        self._replayed: dict[tuple[int, int], Extents] = {}
        self._turn = trio.Lock()
        self._stuck_at: int | None = None
        """How many bytes were staged when a write gave up waiting; None when none did since the last one that went through."""
        """Held by the write that waits for room; the others queue behind it."""
        sealer.on_value = self._value_changed

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
        handle.inode.opens -= 1
        self.record_use(handle, closing=True)
        if handle.inode.opens == 0 and len(handle.inode.values) > _VALUES_KEPT:
            handle.inode.values.clear()
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
    async def write_in_turn(self, live: LiveInode, offset: int, data: bytes | memoryview) -> None:
        """Take in written bytes once there is room, in the order in which the writes came.

        The kernel writes a file's pages back in ascending order, several requests at a time; one that overtook another
        would make a hole, which a crash could leave behind. Raises NoSpace, FileTooBig, ReadOnly.

        Once one has waited in vain, the others get their ENOSPC soon, until something moves: the kernel's pages come back in
        many requests, and a program would wait for all of them in turn (fault 47).
        """
        is_stuck = self._stuck_at is not None and self._entries.staged_bytes >= self._stuck_at
        patience = limits.FULL_WAIT if is_stuck else limits.HANDLER_DEADLINE
        with trio.move_on_after(patience), self._core.waiters.one():
            async with self._turn:  # fair: first come, first served
                await self._wait_space()
                self.write_nowait(live, offset, data)
                return
        self._stuck_at = self._entries.staged_bytes
        raise self._no_room()

    def wake_waiting(self) -> None:
        """Have all that wait for room or for the sealer look again: in failsafe neither comes."""
        self._sealer.notify()
        self._entries.wake_waiters()

    async def _wait_space(self) -> None:
        while self._sealer.dirty_bytes > limits.DIRTY_MAX:
            self._core.check_sound()
            self._sealer.check()
            self.seal_oldest(self._sealer.dirty_bytes - limits.DIRTY_MAX // 2)
            await self._sealer.wait_progress()
        while self._entries.staged_bytes > self._stage_size or self._entries.is_full:
            self._core.check_sound()
            await self._entries.wait_progress()

    def _no_room(self) -> NoSpace:
        """Return what a write fails with that waited for too long."""
        if self._entries.is_full:
            return NoSpace(f"{len(self._entries.staged)} entries wait for peers, as many as memory may hold")
        if self._entries.staged_bytes > self._stage_size:
            return NoSpace(
                f"{self._entries.staged_bytes} bytes wait for peers; the limit is stage_size={self._stage_size}"
            )
        return NoSpace(f"{self._sealer.dirty_bytes} dirty bytes wait for peers that do not answer")

    @property
    def has_room(self) -> bool:
        """Whether a write needs not wait: there is room, and no other waits for it."""
        return (
            self._sealer.dirty_bytes <= limits.DIRTY_MAX
            and self._entries.staged_bytes <= self._stage_size
            and not self._entries.is_full
            and not self._turn.locked()
        )

    def write_nowait(self, live: LiveInode, offset: int, data: bytes | memoryview) -> None:
        """Take in written bytes. Raises FileTooBig, ReadOnly."""
        self._core.check_writable()
        self._stuck_at = None
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
            if offset > live.size:
                self._extend(live, offset)
            self._core.count_bytes(end - live.size)
            live.size = end
        if not self._kernel_times:
            live.mtime = live.ctime = now()
        self._core.inodes.touch(live)
        self._core.changed()

    def _write_piece(self, live: LiveInode, index: int, start: int, piece: bytes | memoryview) -> None:
        chunk = live.chunks.get(index)
        if chunk is None:
            chunk = DirtyChunk(live.ino, index, time.monotonic())
            chunk.solid = chunk.solid_before = min(max(live.size - index * CHUNK, 0), CHUNK)
            live.chunks[index] = chunk
            self._sealer.dirty_chunks += 1
        key = (live.ino, index)
        if len(piece) == CHUNK and isinstance(piece, bytes):
            self._sealer.dirty_bytes += chunk.hold(piece, self._core.overlay.generation)
            self._note_closed(chunk)
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
        self._note_closed(chunk)

    def _note_closed(self, chunk: DirtyChunk) -> None:
        self.dirty.pop((chunk.ino, chunk.index), None)
        if not chunk.journal_closed:
            self._fresh.pop((chunk.ino, chunk.index), None)

    def seal_oldest(self, size: int) -> None:
        """Have the oldest dirty chunks sealed, about `size` bytes of them."""
        while size > 0 and self.dirty:
            chunk = next(iter(self.dirty.values()))
            size -= chunk.size
            self.seal_chunk(chunk)

    def seal_all(self) -> None:
        """Close every open layer, at any time between two group commits.

        The next one takes the bytes that it would have taken of the open layers, unless they are sealed by then: what it
        names or promises may need them.
        """
        for chunk in list(self.dirty.values()):
            chunk.journal_closed = chunk.journal_closed or bool(chunk.fresh)
            self.seal_chunk(chunk)

    async def wait_sealed(self, live: LiveInode) -> None:
        """Wait until no layer of this file is closed and unsealed. Raises what sealing failed with."""
        with trio.move_on_after(limits.HANDLER_DEADLINE) as scope, self._core.waiters.one():
            while _has_closed(live):
                self._core.check_sound()
                self._sealer.check()
                await self._sealer.wait_progress()
        if scope.cancelled_caught:
            raise RemoteTimeout("the file's older contents are on peers that do not answer")

    async def make_sealed_or_pages(self, chunks: list[DirtyChunk]) -> None:
        """Wait until the closed layers of these chunks are sealed. Those that cannot be, because their base is on peers
        that are away, go into the next group commit as pages. Raises NoSpace when the disk is full."""
        layers = [(chunk, layer) for chunk in chunks for layer in chunk.layers if layer.closed]
        for chunk, layer in layers:
            while layer in chunk.layers and not chunk.is_stuck:
                self._core.check_sound()
                self._sealer.check()
                await self._sealer.wait_progress()
            if layer in chunk.layers:
                chunk.journal_closed = True
                self._fresh[chunk.ino, chunk.index] = chunk

    def journal_closed(self, chunks: list[DirtyChunk]) -> None:
        """Have the next group commit take the layers of these chunks as pages, also those that are closed before it."""
        for chunk in chunks:
            if chunk.layers:
                chunk.journal_closed = True
                self._fresh[chunk.ino, chunk.index] = chunk

    def keep_whole(self, live: LiveInode) -> None:
        """Have the next group commit take all of a file that gets another name: programs give files their final name when
        they are whole, so no crash may leave half a file under it."""
        self.journal_closed(list(live.chunks.values()))

    async def fsync(self, live: LiveInode, flush: Callable[[], Awaitable[None]]) -> None:
        """Make everything written to a file so far D1; `flush` is the group commit. Raises NoSpace, StoreError.

        A layer that was open at first may be closed before the group commit is collected, by a commit or because the whole
        chunk is written anew; its bytes then come with the chunk's value, so once more around.
        """
        self._core.check_sound()
        written = [(chunk, layer) for chunk in live.chunks.values() for layer in chunk.layers]
        while True:
            for chunk in list(live.chunks.values()):
                if chunk.fresh_bytes > limits.PACK_ENTRY_MAX:
                    self.seal_chunk(chunk)
            was_open = [layer for _chunk, layer in written if not layer.closed]
            await self.make_sealed_or_pages(list(live.chunks.values()))
            await flush()
            if not any(layer.closed for layer in was_open):
                return

    async def check_error(self, live: LiveInode) -> None:
        """Raise NoSpace when this file has bytes that cannot be staged: a program may still learn it at close.

        Open layers are not staged: on a full disk the journal still takes some.
        """
        while self._sealer.patience.is_waiting and _has_closed(live):
            await self._sealer.wait_progress()
        if self._sealer.error is not None and _has_closed(live):
            self._sealer.check()

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
        live.opens += 1  # stays in memory meanwhile
        try:
            while size < live.size:
                await self.wait_sealed(live)
                sealed = live.sealed
                keys = await self._keys_from(live, size)
                if await self._core.run(self._shrink, live, size, keys, sealed):
                    break  # else written and sealed again while tree nodes came
        finally:
            live.opens -= 1
        if size > live.size:
            self._extend(live, size)
        self._core.count_bytes(size - live.size)
        live.size = size
        live.mtime = live.ctime = now()
        self._core.inodes.touch(live)
        self._core.changed()

    def _extend(self, live: LiveInode, size: int) -> None:
        """The chunk with the file's end gets zeros after it, which are there as soon as its other bytes are."""
        index = live.size // CHUNK
        chunk = live.chunks.get(index)
        if chunk is not None:
            self.journal_closed([chunk])
            chunk.solid = max(chunk.solid, min(size - index * CHUNK, CHUNK))

    async def _keys_from(self, live: LiveInode, size: int) -> list[tuple[bytes, int]]:
        """Return the keys of all chunks past the one with the new end, and how many bytes each holds."""
        start = chunk_key(live.ino, size // CHUNK + 1)
        stop = chunk_key(live.ino, -(-live.size // CHUNK) + 1)
        found: list[tuple[bytes, int]] = []
        while True:
            part = await self._core.run(self._some_values, start, stop)
            found += [(key, held(decode_chunk(raw))) for key, raw in part]
            if len(part) < _STEP:
                return found
            start = part[-1][0] + b"\0"
            await trio.lowlevel.checkpoint()

    def _some_values(self, start: bytes, stop: bytes) -> list[tuple[bytes, bytes]]:
        """Return up to _STEP pairs of the map. May raise NodeMissing."""
        return list(islice(self._core.overlay.scan(start, stop), _STEP))

    def _shrink(self, live: LiveInode, size: int, keys: list[tuple[bytes, int]], sealed: int) -> bool:
        """Cut a file; False if it was sealed again since its keys were listed. May raise NodeMissing before any change."""
        border, cut = divmod(size, CHUNK)
        key = chunk_key(live.ino, border)
        raw = self._core.overlay.get(key)
        if live.sealed != sealed or _has_closed(live):
            return False
        if raw is not None:
            old = decode_chunk(raw)
            new = clip(old, cut)
            live.allocated -= held(old) - held(new)
            self._core.overlay.put(key, encode_chunk(new) if extent(new) else None)
        for key, size_held in keys:
            live.allocated -= size_held
            self._core.overlay.put(key, None)
        live.allocated = max(0, live.allocated)
        live.values.clear()
        for index, chunk in list(live.chunks.items()):
            if index > border or (index == border and not cut):
                self._drop_chunk(live, chunk)
            elif index == border:
                self._sealer.dirty_bytes -= chunk.truncate(cut)
                chunk.renew()
                if chunk.fresh:  # the clipped value voids the journal's earlier pages
                    self._fresh[chunk.ino, chunk.index] = chunk
                if not chunk.size:
                    self._drop_chunk(live, chunk)
        self._core.truncated(live.ino, size)
        return True

    def _drop_chunk(self, live: LiveInode, chunk: DirtyChunk) -> None:
        """Forget dirty bytes, but for layers that a commit in progress still needs."""
        self.dirty.pop((chunk.ino, chunk.index), None)
        self._fresh.pop((chunk.ino, chunk.index), None)
        overlay = self._core.overlay
        in_commit = [layer for layer in chunk.layers if layer.closed and layer.generation < overlay.generation]
        kept = in_commit if overlay.is_committing else []
        chunk.dropped = overlay.generation
        self._sealer.dirty_bytes -= chunk.size - sum(layer.extents.size for layer in kept)
        chunk.layers = kept
        chunk.fresh = []
        if live.chunks.pop(chunk.index, None) is not None:
            self._sealer.dirty_chunks -= 1
        self._sealer.notify()

    # ---- removal -----------------------------------------------------------------------------------------------------
    async def reap(self, live: LiveInode) -> None:
        """Delete everything of an inode without names, handles or look-ups; an end in between leaves it an orphan."""
        live.opens += 1  # stays in memory meanwhile
        try:
            start, stop = chunk_prefix(live.ino), chunk_prefix(live.ino + 1)
            count = -(-live.size // CHUNK) if not live.is_dir and not live.target else 0
            while count > _DIRECT_REAP:
                part = await self._core.run(self._some_values, start, stop)
                for key, _raw in part:
                    self._core.overlay.put(key, None)
                if len(part) < _STEP:
                    count = 0
                    break
                start = part[-1][0] + b"\0"
                self._core.changed()
                await trio.lowlevel.checkpoint()
            await self._core.run(self._reap_rest, live, count)
        finally:
            live.opens -= 1

    def _reap_rest(self, live: LiveInode, count: int) -> None:
        doomed = [orphan_key(live.ino), inode_key(live.ino)]
        if live.is_dir:
            doomed.append(parent_key(live.ino))
        if live.xattrs:
            doomed += [key for key, _raw in self._core.overlay.scan_prefix(xattr_prefix(live.ino))]
        doomed += [chunk_key(live.ino, index) for index in {*range(count), *live.chunks}]
        for key in doomed:
            self._core.overlay.put(key, None)
        for chunk in list(live.chunks.values()):
            self._drop_chunk(live, chunk)
        self._core.count_gone(live)
        self._core.inodes.drop(live)
        self._core.changed()

    def _value_changed(self, ino: int, index: int) -> None:
        """The sealer gave a chunk a new value."""
        live = self._core.inodes.peek(ino)
        if live is not None:
            live.values.pop(index, None)
            live.sealed += 1
            chunk = live.chunks.get(index)
            if chunk is not None and (chunk.fresh or chunk.journal_closed):
                self._fresh[ino, index] = chunk

    # ---- the journal's side ----------------------------------------------------------------------------------------------
    def take_fresh_chunks(self) -> list[DirtyChunk]:
        """Return the chunks of which the journal lacks something."""
        fresh, self._fresh = list(self._fresh.values()), {}
        return fresh

    def give_back(self, chunks: list[DirtyChunk]) -> None:
        """Have the journal take these chunks' pages again, after a group commit that failed."""
        for chunk in chunks:
            chunk.renew()
            chunk.solid = chunk.solid_before
            self._fresh[chunk.ino, chunk.index] = chunk
            live = self._core.inodes.peek(chunk.ino)
            if live is not None:
                self._core.inodes.touch(live)  # its size counts on the pages, which may be closed before the next one

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
        """Lay the replayed pages over their files, those that still exist.

        A file whose last bytes were still being sealed is shorter than what of them the journal has: that is cut off.
        """
        for ino, size in self._replayed_sizes():
            self.cut_pages(ino, size)
            self._cut_values(ino, size)
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
                chunk.layers[-1].journaled = True
        self._fresh.clear()

    def _replayed_sizes(self) -> list[tuple[int, int]]:
        """Return number and size of every file that the journal has a row of."""
        rows = [(key, raw) for key, raw in self._changed(b"I", b"J") if raw is not None]
        values = [(int.from_bytes(key[1:9], "big"), decode_inode(raw)) for key, raw in rows]
        return [(ino, value.size) for ino, value in values if stat.S_ISREG(value.mode)]

    def _cut_values(self, ino: int, size: int) -> None:
        """Take the chunk values past a file's end out of what the journal has; the tree has none."""
        for key, raw in self._changed(chunk_key(ino, size // CHUNK), chunk_prefix(ino + 1)):
            end = size - split_chunk_key(key)[1] * CHUNK
            old: Chunk = decode_chunk(raw) if raw is not None else Hole()
            if extent(old) > max(end, 0):
                new = clip(old, end)
                self._core.overlay.put(key, encode_chunk(new) if extent(new) else None)
                live = self._core.inodes.get(ino)
                live.allocated = max(0, live.allocated + held(new) - held(old))
                self._core.inodes.touch(live)

    def _changed(self, start: bytes, stop: bytes) -> list[tuple[bytes, bytes | None]]:
        """Return what a freshly replayed journal says of the keys from `start` to before `stop`."""
        current = self._core.overlay.current
        return [(key, current[key]) for key in current.irange(start, stop, (True, False))]


def _has_closed(live: LiveInode) -> bool:
    """Whether the file has bytes on their way into entries."""
    return any(chunk.layers and chunk.layers[0].closed for chunk in live.chunks.values())
