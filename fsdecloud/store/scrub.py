"""Reading every shard of a store again, and letting go of the damaged ones. Blocking; whoever calls decides how fast.

One pass goes through the segments in their order, so that a spinning disk reads on: `Scrub.step` looks at some rows of the
index for the places that come next, or reads some of these shards from the disk and hashes them. It only reads; what looks
damaged comes back as suspects, and `ShardStore.condemn`, called where nothing else changes the store, decides. How far a
pass has come is kept in the store (`save`), so that a restart goes on there.

Not here: when (`peerd.scrubbing`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

import msgspec

from fsdecloud import codec
from fsdecloud.errors import MalformedError, StoreError
from fsdecloud.limits import MIB
from fsdecloud.store.segments import Location
from fsdecloud.store.shardindex import Place
from fsdecloud.store.shards import ShardStore
from fsdecloud.types import ShardId

NOTE: Final = b"scrub"

PLACES_KEPT: Final = 50_000
"""Places found by one scan of the index: about 10 MiB, and twenty scans for a million shards."""

STEP_BYTES: Final = MIB
STEP_SHARDS: Final = 256
"""Read in one step."""


class Progress(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where scrubbing stands; kept in the store. Times in seconds since 1970, 0 for never."""

    segment: int = 0
    """What lies before this place has been read in this pass."""
    offset: int = 0
    started: int = 0
    """When this pass began; 0 while none is under way."""
    shards: int = 0
    size: int = 0
    """Read in this pass."""
    finished: int = 0
    """When the last whole pass ended."""
    passes: int = 0
    found: int = 0
    """Shards that were found damaged, ever."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did."""

    shards: int
    size: int
    """Read from the disk."""
    suspects: tuple[tuple[ShardId, Location], ...] = ()
    """They looked damaged."""
    is_end: bool = False
    """The pass is over."""


class Scrub:
    """Scrubbing of one store; one step at a time."""

    def __init__(self, store: ShardStore) -> None:
        """Go on where the store says that it was left."""
        self._store = store
        try:
            self.progress = codec.decode(store.note(NOTE), Progress)
        except MalformedError:  # none yet; or a damaged one: then all is read once more
            self.progress = Progress()
        self._places: deque[Place] = deque()
        self._found: list[Place] = []
        self._last = b""

    def start_pass(self, now: int) -> None:
        """Begin a pass, unless one is under way."""
        if not self.progress.started:
            self.progress = msgspec.structs.replace(
                self.progress, segment=0, offset=0, started=max(now, 1), shards=0, size=0
            )

    def step(self) -> Step:
        """Do a bounded part of the pass under way. Raises StoreError when the disk cannot be read now; call again later."""
        if self._places:
            return self._read()
        now = self.progress
        self._last = self._store.next_places((now.segment, now.offset), self._last, PLACES_KEPT, self._found)
        if self._last:
            return Step(0, 0)
        self._places.extend(self._found)
        self._found = []
        return Step(0, 0, is_end=not self._places)

    def _read(self) -> Step:
        shards = size = 0
        suspects = []
        while self._places and shards < STEP_SHARDS and size < STEP_BYTES:
            segment, offset, length, shard = self._places[0]
            place = Location(segment, offset, length)
            if self._store.locate(shard) == place:  # else it was deleted or moved since
                try:
                    if self._store.check(shard, place):
                        suspects.append((shard, place))
                except StoreError:
                    if not shards:
                        raise
                    break  # what was read before counts; the next step meets it first
                shards += 1
                size += length
            self._places.popleft()
            # A shard may be empty: then the next one lies at the same place, and is read again after a restart only.
            self.progress = msgspec.structs.replace(self.progress, segment=segment, offset=offset + min(length, 1))
        self.progress = msgspec.structs.replace(
            self.progress, shards=self.progress.shards + shards, size=self.progress.size + size
        )
        return Step(shards, size, tuple(suspects))

    def skip(self) -> None:
        """Leave out the shard that `step` could not read; the next pass meets it again."""
        if self._places:
            segment, offset, length, _shard = self._places.popleft()
            self.progress = msgspec.structs.replace(self.progress, segment=segment, offset=offset + min(length, 1))

    def end(self, now: int) -> None:
        """Note that the pass is over."""
        self.progress = msgspec.structs.replace(
            self.progress, segment=0, offset=0, started=0, finished=now, passes=self.progress.passes + 1
        )

    def condemn(self, shard: ShardId, place: Location) -> bool:
        """Let go of a shard if it is damaged; return whether it was. The writer's thread. Raises StoreError."""
        if not self._store.condemn(shard, place):
            return False
        self.progress = msgspec.structs.replace(self.progress, found=self.progress.found + 1)
        return True

    def save(self) -> None:
        """Keep the progress. The writer's thread. Raises StoreError."""
        self._store.set_note(NOTE, codec.encode(self.progress))
