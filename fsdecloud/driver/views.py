"""Looking into snapshots: read-only states of the volume's tree beside the live one.

A view is a Core, Namespace and Reader of its own over one root, without pending changes. What costs memory is shared with
the live mount: tree nodes, opened chunks, the cache. Nothing in a view has to survive it, so views are made when somebody
asks and the least used one goes when there are too many; a handle keeps the view it was opened in.

The kernel names an inode of a snapshot by `tag << INODE_BITS | inode`: the tag follows from the anchor's sequence number, so
the number is the same after a remount. Tag 0 is the live state, the highest one the directory `.snapshots` itself. There
are 8 million tags; an anchor takes over the tag of the one so many before it, which is then found by `-o snapshot=` alone.

Called only from the event loop. Not here: which snapshots there are (`snapshots`), FUSE types (`fuse.states`).
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final

from fsdecloud.crypto.keys import VolumeKeys
from fsdecloud.driver.core import Core
from fsdecloud.driver.inodes import LiveInode
from fsdecloud.driver.namespace import Namespace
from fsdecloud.driver.reader import OpenFile, Reader
from fsdecloud.driver.recorder import Caller
from fsdecloud.driver.snapshots import Snapshots
from fsdecloud.driver.xattrs import Xattrs
from fsdecloud.errors import IsDirectory, ReadOnly, StaleHandle
from fsdecloud.fs.history import Snapshot, directory_name
from fsdecloud.fs.keys import INODE_BITS
from fsdecloud.fs.overlay import Overlay

DIRECTORY: Final = b".snapshots"

VIEWS_KEPT: Final = 8
"""Views in memory beside those that open handles hold."""

INODES_KEPT: Final = 4096
"""Clean inodes in memory for each view, about 1 KiB each."""

TAGS: Final = (1 << 23) - 2
"""Tags of snapshots, 1 to this; inode numbers then have 63 bits."""

DIRECTORY_TAG: Final = TAGS + 1
DIRECTORY_INODE: Final = DIRECTORY_TAG << INODE_BITS | 1
INODE_MASK: Final = (1 << INODE_BITS) - 1

_READ_ONLY: Final = "snapshots do not change"


def tag_of(sequence: int) -> int:
    """Return the tag in the inode numbers of an anchor's snapshot."""
    return 1 + (sequence - 1) % TAGS


class View:
    """One state to look at."""

    def __init__(
        self,
        snapshot: Snapshot,
        keys: VolumeKeys,
        tree: Overlay,
        fetch_node: Callable[[bytes], Awaitable[None]],
        reader: Callable[[Core], Reader],
        *,
        base: int,
        has_acl: bool,
        kept: int = INODES_KEPT,
    ) -> None:
        """`base` is added to its inode numbers for the kernel; `reader` makes a reader of a core."""
        self.snapshot = snapshot
        self.base = base
        self.name = directory_name(snapshot).encode()
        self.core = Core(keys, tree, fetch_node)
        self.core.read_only = _READ_ONLY
        self.core.inodes.kept = kept
        self.xattrs = Xattrs(self.core, has_acl=has_acl)
        self.namespace = Namespace(self.core, self.xattrs)
        self.reader = reader(self.core)

    def open(self, live: LiveInode, flags: int, caller: Caller, program: bytes, prefix: bytes) -> OpenFile:
        """Open a file for reading; `prefix` is where the state's root is. Raises ReadOnly, IsDirectory."""
        if live.is_dir:
            raise IsDirectory
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise ReadOnly(_READ_ONLY)
        live.opens += 1
        return OpenFile(live, flags, caller, program, prefix + self.core.path_of(live))

    def close(self, handle: OpenFile) -> None:
        """Take back an open."""
        handle.inode.opens -= 1


class Views:
    """The views of one mounted volume."""

    def __init__(self, core: Core, reader: Reader, snapshots: Snapshots, *, has_acl: bool) -> None:
        self._core = core
        self._reader = reader
        self._snapshots = snapshots
        self._has_acl = has_acl
        self._views: OrderedDict[int, View] = OrderedDict()

    async def get(self, ino: int) -> View:
        """Return the view that an inode number of the kernel belongs to. Raises StaleHandle once it is forgotten."""
        tag = ino >> INODE_BITS
        view = self._views.get(tag)
        if view is not None:
            self._views.move_to_end(tag)
            return view
        row = await self._core.run(self._find, tag)
        if row is None:
            raise StaleHandle("the snapshot was forgotten")
        return self.open(row)

    def open(self, row: Snapshot) -> View:
        """Return the view of a snapshot."""
        tag = tag_of(row.sequence)
        view = self._views.get(tag)
        if view is None or view.snapshot.sequence != row.sequence:
            view = self.make(row)
            self._views[tag] = view
            if len(self._views) > VIEWS_KEPT:
                self._views.popitem(last=False)
        return view

    def make(self, row: Snapshot) -> View:
        """Return a view of its own: for a task that looks at everything."""
        tree = self._core.overlay.at(row.root)
        base = tag_of(row.sequence) << INODE_BITS
        view = View(
            row, self._core.keys, tree, self._core.fetch_node, self._reader.of, base=base, has_acl=self._has_acl
        )
        view.core.waiters = self._core.waiters
        return view

    def forget(self, sequence: int) -> None:
        """A snapshot was forgotten: names in it are stale from now on; open files stay readable for a while."""
        view = self._views.get(tag_of(sequence))
        if view is not None and view.snapshot.sequence == sequence:
            del self._views[tag_of(sequence)]

    def _find(self, tag: int) -> Snapshot | None:
        """Return the latest snapshot with this tag. May raise NodeMissing."""
        latest = self._snapshots.latest_sequence
        sequence = tag + (latest - tag) // TAGS * TAGS
        while sequence > 0:
            row = self._snapshots.row(sequence)
            if row is not None:
                return row
            sequence -= TAGS
        return None
