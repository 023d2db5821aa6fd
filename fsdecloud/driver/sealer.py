"""Turns closed layers of dirty chunks into staged entries, in worker threads, oldest first.

A worker takes a batch of chunks, decides for each in the event loop what its new value will be (`_plan`: inline, a whole
new entry, or patches over the old one), seals and appends in one thread call, and puts the new values into the overlay
generation that each layer belongs to. A chunk's layers are sealed one after another, so each finds its predecessor's
value. While the local disk is full nothing is dropped: the chunks wait, and after a while (`Patience`) `error` says why.

Called only from the event loop; seals in worker threads.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from fsdecloud import limits
from fsdecloud.crypto.seal import Kind
from fsdecloud.driver.core import Core, Patience
from fsdecloud.driver.dirty import DirtyChunk, Layer
from fsdecloud.driver.entries import Entries
from fsdecloud.driver.plaincache import Plain
from fsdecloud.driver.supervisor import describe
from fsdecloud.errors import FsdecloudError, RemoteError, StoreError, as_seen
from fsdecloud.fs.chunks import (
    Chunk,
    Hole,
    Inline,
    Patch,
    Stored,
    can_patch,
    decode_chunk,
    encode_chunk,
    extent,
    held,
    needs_fold,
    with_patch,
)
from fsdecloud.fs.keys import chunk_key
from fsdecloud.types import EntryId, Ref

log = logging.getLogger(__name__)

WORKERS: Final = 2
"""Sealing threads: one for each core of a small machine; AES and BLAKE3 saturate a disk long before that."""

BATCH_BYTES: Final = 4 * limits.CHUNK_SIZE
BATCH_CHUNKS: Final = 64
"""Small chunks share a thread hop."""

_RETRY_STUCK: Final = 10.0

_RETRY: Final = 1.0
"""Seconds until a full or failing disk is tried again."""


_NO_REF: Final = Ref(EntryId(bytes(32)), bytes(32))
"""Stands for a reference while it is only asked whether patches would fit."""


@dataclass(frozen=True, slots=True)
class SealPlan:
    """What one layer becomes: the value without its references, and the plaintexts to seal for them."""

    chunk: DirtyChunk
    layer: Layer
    old: Chunk
    parts: tuple[tuple[Kind, bytes | memoryview], ...]
    finish: Callable[[Sequence[Ref]], Chunk]
    """Makes the new value of the references of `parts`."""


class Sealer:
    """The queue of closed layers and the workers that empty it."""

    def __init__(self, core: Core, entries: Entries, load_plain: Callable[[bytes], Awaitable[Plain]]) -> None:
        self._core = core
        self._entries = entries
        self._load_plain = load_plain
        self._queue: deque[DirtyChunk] = deque()
        self._busy: set[DirtyChunk] = set()
        self._stuck: list[DirtyChunk] = []
        """Chunks whose base is on peers that are away; tried again every few seconds."""
        self._wake = trio.Event()
        self._progress = trio.Event()
        self.dirty_bytes = 0
        self.dirty_chunks = 0
        self.error: FsdecloudError | None = None
        """Why sealing stands still; None while it works, or a full disk is waited for."""
        self.patience = Patience()
        self.on_value: Callable[[int, int], None] = lambda _ino, _index: None

    def submit(self, chunk: DirtyChunk) -> None:
        """Queue a chunk that has a closed layer."""
        if not chunk.queued:
            chunk.queued = True
            self._queue.append(chunk)
            self._wake.set()

    def waiting_chunks(self) -> list[DirtyChunk]:
        """Return all chunks with a closed layer."""
        return [*self._queue, *self._busy, *self._stuck]

    async def wait_progress(self) -> None:
        """Wait until some layer was sealed, or sealing failed."""
        await self._progress.wait()

    def notify(self) -> None:
        """Wake those who wait for progress."""
        event, self._progress = self._progress, trio.Event()
        event.set()

    def check(self) -> None:
        """Raise NoSpace, or StoreError for any other reason, while sealing stands still."""
        if self.error is not None:
            raise as_seen(self.error)

    async def run(self) -> None:
        """Seal until cancelled. After an unexpected exception it can be run again: what was being sealed is queued again."""
        self._queue.extendleft(self._busy)
        self._busy.clear()
        self._wake.set()
        async with trio.open_nursery() as nursery:
            for _ in range(WORKERS):
                nursery.start_soon(self._work)
            nursery.start_soon(self._retry_stuck)

    async def _retry_stuck(self) -> None:
        while True:
            await trio.sleep(_RETRY_STUCK)
            if self._stuck:
                self._queue.extend(self._stuck)
                self._stuck.clear()
                self._wake.set()

    async def _work(self) -> None:
        while True:
            while not self._queue:
                if self._wake.is_set():  # both workers wait on the same event
                    self._wake = trio.Event()
                await self._wake.wait()
            batch = self._take_batch()
            self._busy.update(batch)
            try:
                await self._seal_batch(batch)
                self.error = None
            except (FsdecloudError, OSError) as exc:
                failure = exc if isinstance(exc, FsdecloudError) else StoreError(f"staging: {exc}")
                self._entries.wake_cache_writer()  # a full disk: the cache gives way
                if self.patience.is_spent(failure):
                    if self.error is None:
                        log.error("cannot stage data: %s", failure)
                    self.error = failure
                    self.notify()
                await trio.sleep(_RETRY)
                self._queue.extendleft(reversed(batch))
                self._busy.difference_update(batch)
                continue
            except Exception as exc:  # a bug: whoever waits must know; `driver.supervisor` starts `run` again
                self.error = StoreError(f"internal error while sealing: {describe(exc)}")
                self.notify()
                raise
            self._busy.difference_update(batch)
            self.notify()

    def _take_batch(self) -> list[DirtyChunk]:
        batch: list[DirtyChunk] = []
        size = 0
        while self._queue and len(batch) < BATCH_CHUNKS:
            size += self._queue[0].layers[0].extents.size if self._queue[0].layers else 0
            if batch and size > BATCH_BYTES:
                break
            batch.append(self._queue.popleft())
        return batch

    async def _seal_batch(self, batch: list[DirtyChunk]) -> None:
        plans = []
        for chunk in batch.copy():
            if not self._is_wanted(chunk):
                self._forget(chunk)
            if not chunk.layers:
                continue
            try:
                plans.append(await self._plan(chunk, chunk.layers[0]))
            except RemoteError as exc:  # its base is on peers that are away: let others pass, try again later
                log.warning("chunk %d of inode %d waits: %s", chunk.index, chunk.ino, exc)
                batch.remove(chunk)
                chunk.is_stuck = True
                self._stuck.append(chunk)
                self._busy.discard(chunk)
                self.notify()
        parts = [part for plan in plans for part in plan.parts]
        results = iter(await self._entries.stage(parts) if parts else [])
        if parts:
            self.patience.renew()
        values = [plan.finish([next(results) for _ in plan.parts]) for plan in plans]
        try:
            for plan, value in zip(plans, values, strict=True):
                self._apply(plan, value)
            for chunk in batch:
                self._after(chunk)
        except Exception as exc:  # whatever it is, memory no longer agrees with the disk
            self._core.fail_safe(f"a sealed chunk was half applied: {describe(exc)}")
            raise

    async def _plan(self, chunk: DirtyChunk, layer: Layer) -> SealPlan:
        """Decide what the layer becomes. The layer is closed, so nothing here can change under us but the base value's
        hiding in the current generation, which `put_at` takes care of."""
        key = chunk_key(chunk.ino, chunk.index)
        raw = await self._core.run(self._core.overlay.get_at, layer.generation, key)
        old: Chunk = decode_chunk(raw) if raw else Hole()
        length = max(extent(old), layer.extents.end)
        whole = layer.extents.covers(length)
        can_patch_it = not whole and can_patch(old)
        ranges = layer.extents.ranges() if can_patch_it else []
        # More of them than a chunk may have need not be laid over one another to see that it is to be folded.
        can_patch_it = can_patch_it and len(ranges) <= limits.MAX_PATCHES
        if can_patch_it and not needs_fold(_patched(old, ranges, [_NO_REF] * len(ranges))):
            parts: tuple[tuple[Kind, bytes | memoryview], ...] = tuple((Kind.PATCH, data) for _start, data in ranges)
            return SealPlan(chunk, layer, old, parts, lambda refs: _patched(old, ranges, refs))
        plain: bytes | memoryview | None
        if whole:
            plain = layer.extents.whole(length)  # a closed layer never changes: no copy
            if plain is None:
                plain = layer.extents.read(0, length)
            assert plain is not None
        else:
            base = await self._load_plain(raw) if raw else b""
            buffer = bytearray(length)
            buffer[: len(base)] = base
            layer.extents.overlay(buffer)
            plain = bytes(buffer)
        if length <= limits.INLINE_MAX:
            value = Inline(bytes(plain))
            return SealPlan(chunk, layer, old, (), lambda _refs: value)
        return SealPlan(chunk, layer, old, ((Kind.CHUNK, plain),), lambda refs: Stored(length, refs[0], ()))

    def _apply(self, plan: SealPlan, value: Chunk) -> None:
        """Put a sealed layer's value in its place."""
        chunk, layer = plan.chunk, plan.layer
        if not chunk.layers or chunk.layers[0] is not layer:
            return  # the file was removed meanwhile
        if not self._is_wanted(chunk):
            self._forget(chunk)
            return
        chunk.layers.pop(0)
        chunk.is_stuck = False
        chunk.solid = max(chunk.solid, layer.extents.end)
        self.dirty_bytes -= layer.extents.size
        raw = encode_chunk(value)
        self._core.overlay.put_at(layer.generation, chunk_key(chunk.ino, chunk.index), raw)
        chunk.renew()
        live = self._core.inodes.peek(chunk.ino)
        if live is not None and chunk.dropped is None:
            live.allocated = max(0, live.allocated + held(value) - held(plan.old))
            self._core.inodes.touch(live)
        self.on_value(chunk.ino, chunk.index)
        self._core.changed()

    def _is_wanted(self, chunk: DirtyChunk) -> bool:
        """Tell whether a chunk's layers still belong anywhere. What was cut off or removed during a commit belongs to that
        commit alone: a later generation has its deletion, which a late value would undo."""
        overlay = self._core.overlay
        return chunk.dropped is None or (overlay.is_committing and overlay.generation == chunk.dropped)

    def _forget(self, chunk: DirtyChunk) -> None:
        self.dirty_bytes -= chunk.size
        chunk.layers.clear()

    def _after(self, chunk: DirtyChunk) -> None:
        """Queue the chunk's next closed layer, or let go of a clean chunk."""
        chunk.queued = False
        if chunk.layers and chunk.layers[0].closed:
            self.submit(chunk)
            return
        if not chunk.layers:
            live = self._core.inodes.peek(chunk.ino)
            if live is not None and live.chunks.get(chunk.index) is chunk:
                del live.chunks[chunk.index]
                self.dirty_chunks -= 1


def _patched(old: Chunk, ranges: Sequence[tuple[int, bytes]], refs: Sequence[Ref]) -> Chunk:
    """Return the old value with all ranges as patches on top."""
    value = old
    for (start, data), ref in zip(ranges, refs, strict=True):
        value = with_patch(value, Patch(start, len(data), ref))
    return value
