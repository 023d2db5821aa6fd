"""What all parts of a mounted volume share: keys, the map of pending metadata, inodes, counters.

Called only from the event loop. Functions here do not wait; one that needs a tree node which is not in memory raises
tree.NodeMissing before it has changed anything, and `Core.run` fetches the node and calls it again. **Invariant:** a
function given to `run` looks up all it needs before its first change.
"""

from __future__ import annotations

import errno
import stat
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import ParamSpec, TypeVar

import trio

from fsdecloud import codec, limits
from fsdecloud.crypto.keys import VolumeKeys
from fsdecloud.driver.inodes import InodeTable, LiveInode
from fsdecloud.driver.recorder import Caller, Recorder
from fsdecloud.errors import ReadOnly
from fsdecloud.fs.inode import InodeValue, Superblock, decode_superblock
from fsdecloud.fs.keys import ROOT, SUPERBLOCK
from fsdecloud.fs.overlay import Overlay
from fsdecloud.fs.records import Operation
from fsdecloud.tree.node import NodeMissing
from fsdecloud.types import Inode

P = ParamSpec("P")
R = TypeVar("R")


class Core:
    """Shared state of one mounted volume."""

    def __init__(self, keys: VolumeKeys, overlay: Overlay, fetch_node: Callable[[bytes], Awaitable[None]]) -> None:
        self.keys = keys
        self.overlay = overlay
        self.inodes = InodeTable(overlay)
        self.recorder = Recorder()
        self.read_only = ""
        """Why nothing may be written; empty while it may."""
        self.next_inode = 2
        self.files = 1
        self.bytes = 0
        self.change_sequence = 0
        """Grows with every change; what `status` calls the written sequence."""
        self.on_change: Callable[[], None] = lambda: None
        """Called at each change, so that the journal wakes up."""
        self._fetch_node = fetch_node
        self.cuts: dict[int, int] = {}
        """Files that were cut since the last group commit, and the least size they had: the journal's page rows past it
        are void."""
        self._superblock_dirty = False

    # ---- starting ------------------------------------------------------------------------------------------------
    def load_superblock(self) -> None:
        """Take the counters from the map. Raises NodeMissing; does nothing in a volume without a superblock."""
        data = self.overlay.get(SUPERBLOCK)
        if data is None:
            return
        block = decode_superblock(data)
        self.next_inode, self.files, self.bytes = block.next_inode, block.files, block.bytes

    def create_root(self, uid: int, gid: int) -> None:
        """Make the root directory of a new volume."""
        now = time.time_ns()
        value = InodeValue(0o040755, uid, gid, 2, 0, now, now, now, now, 0, 0, 0, b"")
        self.inodes.add(LiveInode(ROOT, value))
        self._superblock_dirty = True
        self.changed()

    # ---- waiting for tree nodes ------------------------------------------------------------------------------------
    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function that may raise NodeMissing, fetching nodes until it goes through."""
        while True:
            try:
                return function(*args, **kwargs)
            except NodeMissing as missing:
                await self._fetch_node(missing.ref)

    async def run_in_thread(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """As `run`, in a worker thread: for work that would hold up the event loop."""
        call = partial(function, *args, **kwargs)
        while True:
            try:
                return await trio.to_thread.run_sync(call)
            except NodeMissing as missing:
                await self._fetch_node(missing.ref)

    # ---- changes -----------------------------------------------------------------------------------------------------
    def check_writable(self) -> None:
        """Raise ReadOnly if nothing may be written."""
        if self.read_only:
            raise ReadOnly(self.read_only)

    def changed(self) -> None:
        """Note a change of anything the journal keeps."""
        self.change_sequence += 1
        self.on_change()

    def changed_quietly(self) -> None:
        """Wake the journal for something that is no change of the volume: an entry that left the staging area."""
        self.on_change()

    def truncated(self, ino: int, size: int) -> None:
        """Note that a file was cut."""
        self.cuts[ino] = min(size, self.cuts.get(ino, size))

    def new_inode(self, value: InodeValue) -> LiveInode:
        """Make an inode with a number never used before."""
        live = LiveInode(Inode(self.next_inode), value)
        self.next_inode += 1
        self.files += 1
        self._superblock_dirty = True
        self.inodes.add(live)
        return live

    def count_gone(self, live: LiveInode) -> None:
        """Note that an inode is gone."""
        self.files -= 1
        self._superblock_dirty = True
        if stat.S_ISREG(live.mode):
            self.bytes -= live.size

    def count_bytes(self, delta: int) -> None:
        """Note that files grew or shrank."""
        self.bytes += delta
        self._superblock_dirty = True

    def write_back(self) -> None:
        """Put all that lives outside the map into it: dirty inodes and the counters."""
        self.inodes.write_back()
        if self._superblock_dirty:
            self._superblock_dirty = False
            block = Superblock(1, limits.CHUNK_SIZE, self.next_inode, self.files, self.bytes)
            self.overlay.put(SUPERBLOCK, codec.encode(block))

    # ---- records -----------------------------------------------------------------------------------------------------
    def path_of(self, live: LiveInode) -> bytes:
        """Return where the inode was last seen, from the root; unknown parents are shown by their number."""
        parts: list[bytes] = []
        while live.ino != ROOT:
            parts.append(live.name)
            parent = self.inodes.peek(live.parent)
            if parent is None or len(parts) > limits.NAME_MAX:
                parts.append(b"#%d" % live.parent)
                break
            live = parent
        return b"/" + b"/".join(reversed(parts))

    def child_path(self, parent: LiveInode, name: bytes) -> bytes:
        """Return the path of a name in a directory."""
        path = self.path_of(parent)
        return path + name if path == b"/" else path + b"/" + name

    def record(self, operation: Operation, caller: Caller | None, live: LiveInode, path: bytes, **more: object) -> None:
        """Record an operation that was done."""
        self.recorder.record(operation, caller, live.ino, path, **more)  # type: ignore[arg-type]

    def record_failure(self, operation: Operation, caller: Caller, parent: int, name: bytes, error: OSError) -> None:
        """Record an operation that was refused."""
        live = self.inodes.peek(parent)
        path = self.child_path(live, name) if live is not None else b"#%d/%s" % (parent, name)
        self.recorder.record(operation, caller, 0, path, result=error.errno or errno.EIO)
