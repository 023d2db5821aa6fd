"""What the agent knows of one blob on its way: its parts, who holds them, and how safe that makes it.

Plain values, changed by `upload` only. Not here: what happens next (`upload`), what is written down (`rows`).
"""

from __future__ import annotations

from enum import IntEnum

import trio

from fsdecloud.agent.rows import PackedEntry, UploadRecord
from fsdecloud.swarm.policy import anchorable
from fsdecloud.types import BlobId, EntryId, PeerId, ShardId
from fsdecloud.wire.agentapi import StagedEntry


class Level(IntEnum):
    """How safe a blob is."""

    NONE = 0
    ANCHORABLE = 1
    COMPLETE = 2


class Blob:
    """One blob on its way (or complete, and its receipts still kept)."""

    __slots__ = (
        "announced",
        "avoid",
        "done_event",
        "entries",
        "epoch",
        "folds",
        "holders",
        "id",
        "is_local",
        "is_queued",
        "k",
        "length",
        "n",
        "order",
        "receipts",
        "sending",
        "shards",
        "slow",
        "sources",
    )

    def __init__(self, order: int, *, is_local: bool) -> None:
        self.order = order
        self.is_local = is_local
        """Its bytes are in the journal (map node, manifest), not in staged segments."""
        self.id = BlobId(b"")
        """Empty until it is prepared for the first time."""
        self.k = self.n = self.epoch = self.length = 0
        self.shards: tuple[ShardId, ...] = ()
        self.entries: tuple[PackedEntry, ...] = ()
        self.sources: dict[EntryId, StagedEntry] = {}
        self.holders: dict[int, PeerId] = {}
        self.sending: dict[int, PeerId] = {}
        self.avoid: set[PeerId] = set()
        """Peers that refused this blob's shards; forgotten when it is queued again."""
        self.slow: set[PeerId] = set()
        """Peers that had no room for this blob's shards for too long: others are preferred."""
        self.receipts: dict[bytes, None] = {}
        self.announced = Level.NONE
        self.is_queued = False
        self.folds = 0
        """How often the location map was written since it was complete."""
        self.done_event: trio.Event | None = None

    @property
    def rank(self) -> tuple[bool, int]:
        """What goes first has the lowest: the oldest, and before all the agent's own (map nodes, manifests). These are few
        and belong to data that is stored already, so whatever was written since would otherwise keep it from its anchor."""
        return not self.is_local, self.order

    @property
    def level(self) -> Level:
        """What its receipts make it."""
        if not self.n or len(self.holders) < anchorable(self.k, self.n):
            return Level.NONE
        return Level.COMPLETE if len(self.holders) == self.n else Level.ANCHORABLE

    def missing(self) -> list[int]:
        """Return the indexes of shards that are neither stored nor under way."""
        return [i for i in range(self.n) if i not in self.holders and i not in self.sending]

    def shard(self, index: int) -> ShardId:
        """Return a shard's id."""
        return self.shards[index] if self.shards else ShardId(self.id)

    def record(self) -> UploadRecord:
        """Return what the journal keeps."""
        holders = tuple(sorted(self.holders.items()))
        return UploadRecord(
            self.k, self.n, self.epoch, self.length, self.shards, self.entries, holders, tuple(self.receipts)
        )
