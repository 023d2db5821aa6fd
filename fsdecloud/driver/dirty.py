"""Bytes that programs wrote and that no entry holds yet: one object for each such chunk.

A chunk's dirty bytes lie in layers. Writes go to the newest, open layer. Sealing closes a layer (it never changes again)
and turns the oldest closed one into entries in a worker thread, one layer at a time, while writes go on above it. Reads
apply all layers, oldest first, over the chunk's value in the tree's map.

`fresh` are the ranges of the open layer that the journal does not have yet. A closed layer's entries are on the way, so the
journal needs none of it, unless something else relies on its bytes being there with the next group commit:
`journal_closed`. Called only from the event loop.
"""

from __future__ import annotations

from fsdecloud.fs.extents import Extents

_FRESH_RANGES_MAX = 64
"""More separate unjournaled ranges than this are journaled as one whole layer."""


class Layer:
    """Some dirty bytes of one chunk, and the overlay generation they belong to."""

    __slots__ = ("closed", "extents", "generation", "journaled")

    def __init__(self, generation: int) -> None:
        self.extents = Extents()
        self.generation = generation
        self.closed = False
        self.journaled = False
        """Whether the journal holds bytes of this layer as pages."""


class DirtyChunk:
    """The dirty layers of one chunk, oldest first; never without one."""

    __slots__ = (
        "dropped",
        "fresh",
        "index",
        "ino",
        "is_stuck",
        "journal_closed",
        "layers",
        "queued",
        "since",
        "solid",
        "solid_before",
    )

    def __init__(self, ino: int, index: int, since: float) -> None:
        self.ino = ino
        self.index = index
        self.layers: list[Layer] = []
        self.fresh: list[list[int]] = []
        self.queued = False
        """Whether the sealer has it or will."""
        self.is_stuck = False
        """Whether sealing waits for a base that peers do not give now."""
        self.journal_closed = False
        """Whether the next group commit must take the closed layers as pages: it promises their bytes, and sealing them may
        take longer. Also for an open layer that may be closed before."""
        self.dropped: int | None = None
        """The overlay's generation when the chunk was cut off or its file removed: what is left is for the commit that was
        in progress then, and for nothing after it."""
        self.since = since
        """When the first dirty byte came (monotonic seconds)."""
        self.solid = 0
        """Up to here the next group commit leaves no byte of the chunk missing: no file is longer on disk than its bytes.
        **Invariant:** never less than what group commits before made of the file's size within this chunk."""
        self.solid_before = 0
        """What `solid` was before the last group commit was collected."""

    def write(self, offset: int, data: bytes | memoryview, generation: int) -> int:
        """Take in bytes at an offset within the chunk; return by how much the held bytes grew."""
        layers = self.layers
        if not layers or layers[-1].closed:
            layers.append(Layer(generation))
            self.fresh = []
        extents = layers[-1].extents
        before = extents.size
        extents.write(offset, data)
        end = offset + len(data)
        fresh = self.fresh
        if fresh and fresh[-1][1] == offset:
            fresh[-1][1] = end
        else:
            fresh.append([offset, end])
        return extents.size - before

    def hold(self, data: bytes, generation: int) -> int:
        """Take in the whole chunk as one closed layer, without a copy; return by how much the held bytes grew."""
        before = self.size
        layer = Layer(generation)
        layer.extents.hold(data)
        layer.closed = True
        # Whatever the open layer had is overwritten; closed ones are on their way and stay below.
        overwritten = self.open_layer
        self.layers = [below for below in self.layers if below.closed]
        if overwritten is not None:
            overwritten.closed = True  # an fsync that waits for it must look again
        self.layers.append(layer)
        self.fresh = []
        return self.size - before

    def settle(self, length: int) -> int | None:
        """Return up to where the chunk has its bytes after the group commit that is collected now, None if that is all of
        it; `length` is the file's size within it. What is missing are closed layers on their way into entries."""
        self.solid_before = self.solid
        if not self.journal_closed and any(layer.closed and layer.extents.end > self.solid for layer in self.layers):
            return self.solid
        self.solid = max(self.solid, length)
        return None

    @property
    def open_layer(self) -> Layer | None:
        """The layer that takes writes, if there is one."""
        return self.layers[-1] if self.layers and not self.layers[-1].closed else None

    @property
    def fresh_bytes(self) -> int:
        """About how many bytes of the open layer the journal lacks."""
        return sum(end - start for start, end in self.fresh)

    @property
    def size(self) -> int:
        """Bytes held in memory."""
        return sum(layer.extents.size for layer in self.layers)

    def close_layer(self) -> bool:
        """Close the open layer; return whether there was one."""
        layer = self.open_layer
        if layer is None:
            return False
        layer.closed = True
        self.fresh = []
        return True

    def take_fresh(self) -> list[tuple[int, bytes]]:
        """Return what the journal lacks, oldest first, and note that it has it now."""
        rows: list[tuple[int, bytes]] = []
        if self.journal_closed:
            self.journal_closed = False
            for layer in self.layers:
                if layer.closed:
                    rows += layer.extents.ranges()
                    layer.journaled = True
            if rows:
                self._renew_open()  # what lies above must come after
        top = self.open_layer
        if top is None or not self.fresh:
            return rows
        pieces: list[tuple[int, bytes | None]] = [(0, None)]
        if len(self.fresh) <= _FRESH_RANGES_MAX:
            pieces = [(start, top.extents.read(start, end - start)) for start, end in self.fresh]
        if any(data is None for _start, data in pieces):  # a truncation cut a range, or there are too many
            rows += top.extents.ranges()
        else:
            rows += [(start, data) for start, data in pieces if data is not None]
        self.fresh = []
        top.journaled = True
        return rows

    def renew(self) -> None:
        """Note that the journal's pages of this chunk are void: a value of the chunk comes after them."""
        self._renew_open()
        if any(layer.closed and layer.journaled for layer in self.layers):
            self.journal_closed = True

    def _renew_open(self) -> None:
        layer = self.open_layer
        if layer is not None and layer.journaled:
            self.fresh = [[start, start + len(data)] for start, data in layer.extents.ranges()]
            layer.journaled = False

    def truncate(self, length: int) -> int:
        """Cut the open layer to `length` bytes; return by how much the held bytes shrank. No layer may be closed."""
        assert not any(layer.closed for layer in self.layers), "wait for the sealer before truncating"
        before = self.size
        for layer in self.layers:
            layer.extents.truncate(length)
        self.fresh = [[start, min(end, length)] for start, end in self.fresh if start < length]
        self.solid, self.solid_before = min(self.solid, length), min(self.solid_before, length)
        return before - self.size
