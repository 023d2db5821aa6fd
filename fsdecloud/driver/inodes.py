"""Inodes in memory: what the mount works on, loaded from and written back to the tree's map.

Called only from the event loop; nothing here awaits. Not here: rules of names (`namespace`), file data (`files`).
"""

from __future__ import annotations

import stat
from collections import OrderedDict
from typing import Final

from fsdecloud import codec, limits
from fsdecloud.driver.dirty import DirtyChunk
from fsdecloud.errors import NotFound
from fsdecloud.fs.inode import InodeValue, decode_inode
from fsdecloud.fs.keys import inode_key
from fsdecloud.fs.overlay import Overlay
from fsdecloud.types import Inode

INODES_KEPT: Final = 16_000
"""Clean inodes kept in memory, about 2 KiB each: `find` over a million files must not keep them all. More would save little:
the kernel asks again only for what it has forgotten itself."""


class LiveInode:
    """One inode in memory. `dirty` means the tree's map does not have these values yet."""

    __slots__ = (
        "allocated", "atime", "attributes", "btime", "chunks", "ctime", "dirty", "gid", "ino", "mode", "mtime", "name", "nlink",
        "opens", "parent", "rdev", "sealed", "size", "target", "uid", "values", "xattrs",
    )  # fmt: skip

    def __init__(self, ino: Inode, value: InodeValue) -> None:
        self.ino = ino
        self.mode = value.mode
        self.uid = value.uid
        self.gid = value.gid
        self.nlink = value.nlink
        self.size = value.size
        self.atime = value.atime
        self.mtime = value.mtime
        self.ctime = value.ctime
        self.btime = value.btime
        self.rdev = value.rdev
        self.allocated = value.allocated
        self.xattrs = value.xattrs
        self.target = value.target
        self.dirty = False
        self.opens = 0
        """Open handles; the inode stays in memory while there are any."""
        self.chunks: dict[int, DirtyChunk] = {}
        """Chunks with bytes that are not in an entry yet."""
        self.values: dict[int, bytes] = {}
        """Encoded chunk values looked up before (b"" for a hole), so that a read decodes no tree node."""
        self.sealed = 0
        """How often one of its chunks got a new value."""
        self.attributes: object = None
        """The adapter's converted attributes; None when they must be made again."""
        self.parent = Inode(0)
        self.name = b""
        """Where it was last seen: for the paths of operation records."""

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)

    def solid_size(self) -> int:
        """Return the size that the group commit which is collected now has all bytes for."""
        size = self.size
        for index, chunk in self.chunks.items():
            start = index * limits.CHUNK_SIZE
            end = chunk.settle(min(max(self.size - start, 0), limits.CHUNK_SIZE))
            if end is not None:
                size = min(size, start + end)
        return size

    def to_value(self, size: int) -> InodeValue:
        """Return the value the tree holds, with this size."""
        return InodeValue(
            self.mode, self.uid, self.gid, self.nlink, size, self.atime, self.mtime, self.ctime, self.btime, self.rdev,
            self.allocated, self.xattrs, self.target,
        )  # fmt: skip


class InodeTable:
    """All inodes in memory, and the kernel's lookup counts.

    **Invariant:** an inode is in memory while it is dirty, open, has dirty chunks, or an access time that is not written.
    """

    def __init__(self, overlay: Overlay) -> None:
        self._overlay = overlay
        self._live: OrderedDict[int, LiveInode] = OrderedDict()
        self.dirty: dict[int, LiveInode] = {}
        self.lazy: dict[int, LiveInode] = {}
        """Clean inodes whose access time moved: written when there is something else to write, or after a while."""
        self.kept = INODES_KEPT
        self.lookups: dict[int, int] = {}
        """How often the kernel was told of an inode and has not forgotten it."""
        self._places: dict[int, tuple[Inode, bytes]] = {}
        """Parents and names of those that were dropped here and not there: it does not ask for them again."""

    def get(self, ino: int) -> LiveInode:
        """Return the inode. Raises NotFound, or tree.NodeMissing while its tree node is not in memory."""
        live = self._live.get(ino)
        if live is not None:
            self._live.move_to_end(ino)
            return live
        data = self._overlay.get(inode_key(ino))
        if data is None:
            raise NotFound(f"no inode {ino}")
        live = LiveInode(Inode(ino), decode_inode(data))
        live.parent, live.name = self._places.pop(ino, (live.parent, live.name))
        self._live[ino] = live
        return live

    def peek(self, ino: int) -> LiveInode | None:
        """Return the inode if it is in memory."""
        return self._live.get(ino)

    def place(self, ino: int) -> tuple[Inode, bytes] | None:
        """Return the parent and the name where the inode was last seen, None when that is not known."""
        live = self._live.get(ino)
        if live is None:
            return self._places.get(ino)
        return (live.parent, live.name) if live.parent else None

    def add(self, live: LiveInode) -> None:
        """Take in a new inode."""
        self._live[live.ino] = live
        self.touch(live)

    def touch(self, live: LiveInode) -> None:
        """Note that the inode changed."""
        live.attributes = None
        if not live.dirty:
            live.dirty = True
            self.dirty[live.ino] = live
            if self.lazy:
                self.lazy.pop(live.ino, None)

    def touch_lazily(self, live: LiveInode) -> None:
        """Note that the inode's access time moved: no reason by itself to write anything."""
        live.attributes = None
        if not live.dirty:
            self.lazy[live.ino] = live

    def touch_lazy(self) -> None:
        """Have all moved access times written with the next changes."""
        for live in list(self.lazy.values()):
            self.touch(live)

    def drop(self, live: LiveInode) -> None:
        """Forget an inode that no longer exists."""
        live.dirty = False
        self.dirty.pop(live.ino, None)
        self.lazy.pop(live.ino, None)
        self._live.pop(live.ino, None)
        self._places.pop(live.ino, None)

    def write_back(self, *, whole: bool) -> int:
        """Put all dirty inodes into the overlay: with their sizes if `whole`, else, for a group commit, no longer than what
        it has the bytes of. Return by how much they are shorter; those stay dirty until their bytes are there."""
        rows: list[tuple[LiveInode, int, bytes]] = []
        for live in self.dirty.values():
            size = live.size if whole or not live.chunks else live.solid_size()
            rows.append((live, size, codec.encode(live.to_value(size))))
        missing = 0
        for live, size, row in rows:
            self._overlay.put(inode_key(live.ino), row)
            if size == live.size:
                live.dirty = False
                del self.dirty[live.ino]
            missing += live.size - size
        return missing

    def evict(self) -> None:
        """Drop the least used clean inodes past `kept`. Only between requests: nobody may hold one it will change.

        One whose access time moved becomes dirty, and goes the next time.
        """
        if len(self._live) > self.kept:
            self._evict()

    def count_lookup(self, ino: int) -> None:
        """Count one name of this inode given to the kernel."""
        self.lookups[ino] = self.lookups.get(ino, 0) + 1

    def forget(self, ino: int, count: int) -> bool:
        """Take back `count` lookups; return whether none is left.

        The kernel then gives memory back, or the file is gone: an inode that nothing here needs goes as well. As with `evict`,
        no request may hold one across a wait that it will change.
        """
        left = self.lookups.get(ino, 0) - count
        if left > 0:
            self.lookups[ino] = left
            return False
        self.lookups.pop(ino, None)
        self._places.pop(ino, None)
        live = self._live.get(ino)
        if live is not None and not (live.dirty or live.opens or live.chunks or ino in self.lazy):
            del self._live[ino]
        return True

    def __len__(self) -> int:
        return len(self._live)

    def _evict(self) -> None:
        """Drop the oldest clean tenth; inodes in use go to the young end."""
        for _ in range(self.kept // 10):
            ino, live = self._live.popitem(last=False)
            if ino in self.lazy:
                self.touch(live)
            if live.dirty or live.opens or live.chunks:
                self._live[ino] = live
            elif live.parent and ino in self.lookups:
                self._places[ino] = live.parent, live.name
