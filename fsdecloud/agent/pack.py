"""Which staged entries become one blob.

Pure. Entries of PACK_ENTRY_MAX bytes and more are blobs of their own; smaller ones are laid one behind the other, in the
order in which they come, so that what was written together is fetched together. An entry is sealed on its own: a pack
has neither header nor table, the location map says where its entries begin.
"""

from __future__ import annotations

from dataclasses import dataclass

from fsdecloud.limits import BLOB_TARGET, PACK_ENTRY_MAX
from fsdecloud.wire.agentapi import StagedEntry


@dataclass(frozen=True, slots=True)
class BlobPlan:
    """The entries of one blob, in order."""

    entries: tuple[StagedEntry, ...]

    @property
    def length(self) -> int:
        """Bytes of the blob."""
        return sum(entry.length for entry in self.entries)


class Packer:
    """Holds the open pack: the small entries that wait for more."""

    def __init__(self) -> None:
        self._open: list[StagedEntry] = []
        self._length = 0

    def __len__(self) -> int:
        return len(self._open)

    def add(self, entry: StagedEntry) -> list[BlobPlan]:
        """Take one entry; return the blobs that are complete with it, oldest first."""
        if entry.length >= PACK_ENTRY_MAX:
            return [BlobPlan((entry,))]
        closed = self.close() if self._length + entry.length > BLOB_TARGET else []
        self._open.append(entry)
        self._length += entry.length
        return closed

    def close(self) -> list[BlobPlan]:
        """Close the open pack: return it, or nothing when it is empty."""
        if not self._open:
            return []
        plan = BlobPlan(tuple(self._open))
        self._open = []
        self._length = 0
        return [plan]
