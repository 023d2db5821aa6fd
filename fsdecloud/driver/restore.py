"""Restoring from a snapshot: a file or directory tree comes back as it was, by copying references.

No content is read or sent: the copy's chunks are the snapshot's. It is built without a name, listed as an orphan, so that
whatever ends the driver before it is complete leaves nothing behind (orphans are reaped at the next mount); then one change
gives it its name, in place of what has it. What it replaces becomes an orphan by the same change and goes in the background;
it stays in snapshots. A large copy is committed in pieces, so that memory stays bounded.

Owners, modes, access and modification times, extended attributes and hard links within the tree are those of the snapshot;
the change time is now. Called only from the event loop.
"""

from __future__ import annotations

import stat
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from itertools import islice
from typing import Final

import msgspec
import trio

from fsdecloud import codec
from fsdecloud.driver.clock import now
from fsdecloud.driver.committer import Committer
from fsdecloud.driver.core import Core
from fsdecloud.driver.inodes import LiveInode
from fsdecloud.driver.journal import Journal
from fsdecloud.driver.namespace import Namespace
from fsdecloud.driver.recorder import Caller
from fsdecloud.driver.snapshots import Snapshots
from fsdecloud.driver.views import DIRECTORY, View, Views
from fsdecloud.errors import NotDirectory, NotFound, UsageError
from fsdecloud.fs.history import Snapshot
from fsdecloud.fs.inode import EntryValue, InodeValue, decode_entry, decode_inode
from fsdecloud.fs.keys import (
    ROOT,
    chunk_key,
    chunk_prefix,
    entry_key,
    entry_prefix,
    inode_key,
    orphan_key,
    parent_key,
    prefix_end,
    split_chunk_key,
    split_entry_key,
    xattr_prefix,
)
from fsdecloud.fs.records import Operation
from fsdecloud.types import Inode

BATCH: Final = 256
"""Rows copied between two looks at other work."""

COMMIT_ROWS: Final = 50_000
"""Rows copied before they are committed into the tree: about 25 MiB of memory."""

Invalidate = Callable[[int, bytes, int], Awaitable[None]]
"""Have the kernel forget a name in a directory, and the attributes of what had it (0: nothing)."""


@dataclass(frozen=True, slots=True)
class Restored:
    """What came back."""

    path: bytes
    files: int
    size: int
    """Bytes of all its regular files."""


class Restorer:
    """Restores into one mounted volume."""

    def __init__(
        self,
        core: Core,
        namespace: Namespace,
        journal: Journal,
        committer: Committer,
        snapshots: Snapshots,
        views: Views,
        reap: Callable[[int], None],
    ) -> None:
        """`reap` has an orphan deleted in the background."""
        self._core = core
        self._namespace = namespace
        self._journal = journal
        self._committer = committer
        self._snapshots = snapshots
        self._views = views
        self._reap = reap
        self._pins = 0
        self.invalidate: Invalidate = _ignore

    async def restore(self, row: Snapshot, path: bytes, dest: bytes, *, force: bool, caller: Caller) -> Restored:
        """Bring `path` of a snapshot back as `dest`, both from the volume's root; durable on return.

        Raises UsageError, ReadOnly, RemoteError, NoSpace; nothing is then changed. Raises what a flush of the journal raises;
        the change is then made and not known to be durable, like any other before it.
        """
        self._core.check_writable()
        view = self._views.make(row)
        self._pins += 1
        pin = self._pins
        self._snapshots.pinned[pin] = row.root
        try:
            source = await walk_path(view.core, view.namespace, path, f"snapshot {row.sequence}")
            parent_path, name = split_path(dest)
            parent = await walk_path(self._core, self._namespace, parent_path, "the volume")
            await self._check_place(parent, name, dest, force=force)
            copy = _Copy(self._core, self._committer, view)
            try:
                top = await copy.make(source)
                replaced = await self._core.run(
                    self._namespace.attach, parent.ino, name, top, copy.top_links, replace=force
                )
            except BaseException:  # cancelled or failed, half a copy must not stay
                copy.give_up(self._reap)
                raise
            copy.finish()
            origin = b"/%s/%s%s" % (DIRECTORY, view.name, path if path != b"/" else b"")
            self._core.recorder.record(
                Operation.RESTORE, caller, top.ino, origin, path2=dest, amount=copy.size, program=b"decloud"
            )
            self._core.changed()
            try:
                await self._journal.flush()
            finally:  # the name means something else already
                await self.invalidate(parent.ino, name, replaced.ino if replaced is not None else 0)
                if replaced is not None:
                    self._reap(replaced.ino)
        finally:
            del self._snapshots.pinned[pin]
        return Restored(dest, copy.files, copy.size)

    async def _check_place(self, parent: LiveInode, name: bytes, dest: bytes, *, force: bool) -> None:
        shown = dest.decode(errors="backslashreplace")
        if parent.ino == ROOT and name == DIRECTORY:
            raise UsageError(f"{shown} is where snapshots are: restore to another path")
        try:
            await self._core.run(self._namespace.lookup, parent.ino, name)
        except NotFound:
            return
        if not force:
            raise UsageError(f"{shown} is there: use --force to replace it, or --to another path")


async def _ignore(_parent: int, _name: bytes, _replaced: int) -> None:
    """There is no kernel that could remember a name."""


def split_path(path: bytes) -> tuple[bytes, bytes]:
    """Return the directory and the last component of an absolute path. Raises UsageError for the root and `..`."""
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if not path.startswith(b"/") or not parts or b".." in parts:
        raise UsageError("the volume's root cannot be replaced: restore a path in it, or use --to")
    return b"/" + b"/".join(parts[:-1]), parts[-1]


async def walk_path(core: Core, namespace: Namespace, path: bytes, where: str) -> LiveInode:
    """Return the inode at an absolute path, following no symbolic link. Raises UsageError."""
    live = await core.run(core.inodes.get, ROOT)
    for part in path.split(b"/"):
        if part in (b"", b"."):
            continue
        try:
            live = await core.run(namespace.lookup, live.ino, part)
        except (NotFound, NotDirectory):
            shown = path.decode(errors="backslashreplace")
            raise UsageError(f"there is no {shown} in {where}") from None
    return live


class _Copy:
    """One tree on its way from a view into the live state, nameless until it is complete."""

    def __init__(self, core: Core, committer: Committer, view: View) -> None:
        self._core = core
        self._committer = committer
        self._view = view
        self._secret = core.keys.border_secret
        self._rows = 0
        self._time = now()
        self._links: dict[int, tuple[int, int]] = {}
        """Files with several names, by their old number: the new one, and how many names it has so far."""
        self.top: LiveInode | None = None
        self.top_links = 1
        self.files = 0
        self.size = 0

    async def make(self, source: LiveInode) -> LiveInode:
        """Copy everything. Raises RemoteError, NoSpace."""
        value = source.to_value(source.size)
        self.top_links = value.nlink if source.is_dir else 1
        self.top = top = self._core.new_inode(msgspec.structs.replace(value, nlink=0, ctime=self._time))
        top.opens += 1  # stays in memory, and is not reaped
        self._core.orphans.add(top.ino)
        self._put(orphan_key(top.ino), b"")
        self._count(value)
        await self._copy_rows(source.ino, top.ino, value)
        waiting = deque([(int(source.ino), int(top.ino))] if source.is_dir else [])
        while waiting:
            old, new = waiting.popleft()
            async with aclosing(self._rows_of(entry_prefix(old))) as rows:
                async for key, data in rows:
                    name = split_entry_key(key)[1]
                    child = await self._copy_child(new, name, decode_entry(name, data).inode)
                    if child is not None:
                        waiting.append(child)
        return top

    async def _copy_child(self, parent: int, name: bytes, old: int) -> tuple[int, int] | None:
        """Copy what one name means; return (old, new) of a directory, whose contents are then still to be copied."""
        data = await self._view.core.run(self._view.core.overlay.get, inode_key(old))
        if data is None:
            raise NotFound(f"the snapshot lacks inode {old}")
        value = decode_inode(data)
        # From here to the rows nothing waits: a number that is counted and has no inode would be counted for ever.
        known = self._links.get(old)
        if known is not None:
            new, names = known[0], known[1] + 1
        else:
            new, names = int(self._core.take_number()), 1
        is_dir = stat.S_ISDIR(value.mode)
        if value.nlink > 1 and not is_dir:
            self._links[old] = new, names
        links = value.nlink if is_dir else names
        self._put(inode_key(new), codec.encode(msgspec.structs.replace(value, nlink=links, ctime=self._time)))
        entry = codec.encode(EntryValue(Inode(new), stat.S_IFMT(value.mode)))
        self._put(entry_key(self._secret, parent, name), entry)
        if is_dir:
            self._put(parent_key(new), parent.to_bytes(8, "big"))
        if names == 1:
            self._count(value)
            await self._copy_rows(old, new, value)
        return (old, new) if is_dir else None

    async def _copy_rows(self, old: int, new: int, value: InodeValue) -> None:
        """Copy chunks and extended attributes."""
        if stat.S_ISREG(value.mode) and value.size:
            async with aclosing(self._rows_of(chunk_prefix(old))) as rows:
                async for key, data in rows:
                    self._put(chunk_key(new, split_chunk_key(key)[1]), data)
        if value.xattrs:
            prefix = xattr_prefix(old)
            async with aclosing(self._rows_of(prefix)) as rows:
                async for key, data in rows:
                    self._put(xattr_prefix(new) + key[len(prefix) :], data)

    async def _rows_of(self, prefix: bytes) -> AsyncGenerator[tuple[bytes, bytes], None]:
        """Yield the snapshot's rows whose keys start with `prefix`, with a pause after each batch."""
        after = prefix
        while rows := await self._view.core.run(self._scan, after, prefix_end(prefix)):
            for row in rows:
                yield row
            after = rows[-1][0] + b"\0"
            await self._breathe()

    def _scan(self, start: bytes, stop: bytes) -> list[tuple[bytes, bytes]]:
        return list(islice(self._view.core.overlay.scan(start, stop), BATCH))

    def _count(self, value: InodeValue) -> None:
        self.files += 1
        if stat.S_ISREG(value.mode):
            self.size += value.size
            self._core.count_bytes(value.size)

    def _put(self, key: bytes, value: bytes) -> None:
        self._core.overlay.put(key, value)
        self._rows += 1

    async def _breathe(self) -> None:
        """Let others work, and bound what lies over the tree."""
        self._core.check_writable()
        self._core.changed()
        await trio.lowlevel.checkpoint()
        if self._rows >= COMMIT_ROWS:
            self._rows = 0
            await self._committer.commit()

    def finish(self) -> None:
        """The copy has its name."""
        assert self.top is not None
        self.top.opens -= 1

    def give_up(self, reap: Callable[[int], None]) -> None:
        """Have what was copied deleted."""
        if self.top is not None:
            self.top.opens -= 1
            reap(self.top.ino)
