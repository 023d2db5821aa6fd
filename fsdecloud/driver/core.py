"""What all parts of a mounted volume share: keys, the map of pending metadata, inodes, counters.

Called only from the event loop. Functions here do not wait; one that needs a tree node which is not in memory raises
tree.NodeMissing before it has changed anything, and `Core.run` fetches the node and calls it again. **Invariant:** a
function given to `run` looks up all it needs before its first change.
"""

from __future__ import annotations

import errno
import logging
import math
import stat
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final, ParamSpec, TypeVar

import trio

from fsdecloud import codec, limits
from fsdecloud.crypto.keys import VolumeKeys
from fsdecloud.driver.clock import now
from fsdecloud.driver.inodes import INODES_KEPT, InodeTable, LiveInode
from fsdecloud.driver.recorder import Caller, Recorder
from fsdecloud.driver.supervisor import describe
from fsdecloud.errors import NoSpace, ReadOnly, RemoteTimeout, StoreError, StoreFull
from fsdecloud.fs.inode import InodeValue, Superblock, decode_superblock
from fsdecloud.fs.keys import INODE_BITS, ROOT, SUPERBLOCK
from fsdecloud.fs.overlay import Overlay
from fsdecloud.fs.records import Operation
from fsdecloud.tree.node import NodeMissing
from fsdecloud.types import Inode

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

INODES_RESERVED: Final = 1 << 20
"""Inode numbers set aside at a mount and at each commit: more than can be made in between."""


class Waiters:
    """Requests of one mount that wait for the network or for room; snapshots and the live tree count together."""

    def __init__(self) -> None:
        self.count = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count one for the length of the body. Raises RemoteTimeout when as many wait as may (design.md)."""
        if self.count >= limits.WAITERS_MAX:
            raise RemoteTimeout(f"{self.count} requests wait already")
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1


class Patience:
    """How long a full disk is waited for before that is an error: the cache gives way meanwhile, and peers take data."""

    def __init__(self) -> None:
        self._since = self._last = -math.inf

    def is_spent(self, error: Exception) -> bool:
        """Note a failure; return whether it is to be told now: any but a full disk is, that one after `limits.FULL_WAIT`."""
        if not isinstance(error, StoreFull):
            return True
        now = trio.current_time()
        if now - self._last > max(2 * limits.FULL_WAIT, limits.HANDLER_DEADLINE):  # another time, not a slow attempt
            self._since = now
        self._last = now
        return not self.is_waiting

    @property
    def is_waiting(self) -> bool:
        """Whether the disk is full, and not for too long yet."""
        return trio.current_time() - self._since < limits.FULL_WAIT

    def renew(self) -> None:
        """Note that there was room."""
        self._since = self._last = -math.inf


class Core:
    """Shared state of one mounted volume."""

    def __init__(self, keys: VolumeKeys, overlay: Overlay, fetch_node: Callable[[bytes], Awaitable[None]]) -> None:
        self.keys = keys
        self.overlay = overlay
        self.inodes = InodeTable(overlay)
        self.recorder = Recorder()
        self.read_only = ""
        """Why nothing may be written; empty while it may."""
        self.failure = ""
        """Why nothing goes to the disk any more (failsafe); empty while all is well."""
        self.on_failure: Callable[[], None] = lambda: None
        """Called once, when the volume turns failsafe."""
        self.waiters = Waiters()
        self.next_inode = 2
        self.inode_bound = 1 << 63
        """Numbers from here on may not be given out: what is durable promises only those below to be new after a crash."""
        self.orphans: set[int] = set()
        """Inodes that lost their last name while this mount runs, and still exist."""
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
        moment = now()
        value = InodeValue(0o040755, uid, gid, 2, 0, moment, moment, moment, moment, 0, 0, 0, b"")
        self.inodes.add(LiveInode(ROOT, value))
        self._superblock_dirty = True
        self.changed()

    # ---- waiting for tree nodes ------------------------------------------------------------------------------------
    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function that may raise NodeMissing, fetching nodes until it goes through."""
        while True:
            before = self.overlay.puts
            try:
                return function(*args, **kwargs)
            except NodeMissing as missing:
                if self.overlay.puts != before:
                    self.fail_safe("a tree node was missing in the middle of a change")
                    raise
                with self.waiters.one():
                    await self._fetch_node(missing.ref)
            except Exception as exc:  # whatever it is, half a change may have been made
                if self.overlay.puts != before:
                    self.fail_safe(f"a change ended in the middle: {describe(exc)}")
                raise

    async def fetch_node(self, ref: bytes) -> None:
        """Bring a tree node into memory, for another state of the tree, whose core counts its waiters. Raises RemoteError."""
        await self._fetch_node(ref)

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
        """Raise ReadOnly if nothing may be written, NoSpace while too much waits for a journal that cannot be written."""
        if self.read_only:
            raise ReadOnly(self.read_only)
        if self.recorder.is_full:
            raise NoSpace("too many changes wait for the journal, which cannot be written")

    def check_sound(self) -> None:
        """Raise StoreError if nothing can become durable any more."""
        if self.failure:
            raise StoreError(self.failure)

    def fail_safe(self, why: str) -> None:
        """Stop everything that goes to the disk, because what is in memory may be damaged or can no longer be saved.

        Reads go on. The disk keeps the last group commit, which the next mount starts from.
        """
        if self.failure:
            return
        self.failure = self.read_only = (
            f"an internal error stopped all writing to protect what is on the disk ({why}); reading goes on: unmount and"
            " mount again to go on from the last state that was made durable, and keep the log"
        )
        self.recorder.stop()
        log.critical("%s", self.failure)
        self.on_failure()

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
        """Make an inode with a number never used before. Raises NoSpace when no more may be given out until a commit."""
        live = LiveInode(self.take_number(), value)
        self.inodes.add(live)
        return live

    def take_number(self) -> Inode:
        """Return the number of one more inode; `count_gone` takes it out of the count. Raises NoSpace."""
        if self.next_inode >= min(self.inode_bound, 1 << INODE_BITS):
            raise NoSpace("too many files were made since the last commit")
        self.next_inode += 1
        self.files += 1
        self._superblock_dirty = True
        return Inode(self.next_inode - 1)

    def count_gone(self, live: LiveInode) -> None:
        """Note that an inode is gone."""
        self.orphans.discard(live.ino)
        self.files -= 1
        self._superblock_dirty = True
        if stat.S_ISREG(live.mode):
            self.bytes -= live.size

    def count_bytes(self, delta: int) -> None:
        """Note that files grew or shrank."""
        self.bytes += delta
        self._superblock_dirty = True

    def evict(self) -> None:
        """Bound the inodes in memory: for reads, which make no group commit that would."""
        self.inodes.evict()
        if len(self.inodes.dirty) > INODES_KEPT // 2:
            self.changed()

    def write_back(self, *, whole: bool = False) -> None:
        """Put all that lives outside the map into it: dirty inodes and the counters; see InodeTable.write_back.

        Every group commit begins with this. Raises StoreError in failsafe, so that none is made.
        """
        self.check_sound()
        missing = self.inodes.write_back(whole=whole)
        if self._superblock_dirty:
            self._superblock_dirty = missing > 0
            block = Superblock(1, limits.CHUNK_SIZE, self.next_inode, self.files, self.bytes - missing)
            self.overlay.put(SUPERBLOCK, codec.encode(block))

    # ---- records -----------------------------------------------------------------------------------------------------
    def path_of(self, live: LiveInode) -> bytes:
        """Return where the inode was last seen, from the root; unknown parents are shown by their number."""
        parts: list[bytes] = []
        ino, place = live.ino, (live.parent, live.name) if live.parent else None
        while ino != ROOT:
            if place is None or len(parts) > limits.NAME_MAX:
                parts.append(b"#%d" % ino)
                break
            ino, name = place
            parts.append(name)
            place = self.inodes.place(ino)
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
