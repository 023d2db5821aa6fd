"""FUSE handlers of what does not change: a snapshot mounted alone, or all of them below `.snapshots`.

Look-ups are not counted here: an inode of a snapshot is found again from its number alone, whatever was forgotten. Every
change is refused: EROFS. Not here: which of two sets of handlers a request goes to (`fuse.routing`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NoReturn, cast

import pyfuse3

from fsdecloud.driver.inodes import LiveInode
from fsdecloud.driver.reader import OpenFile
from fsdecloud.driver.recorder import Caller
from fsdecloud.driver.snapshots import Snapshots
from fsdecloud.driver.statemount import StateMount
from fsdecloud.driver.views import DIRECTORY, DIRECTORY_INODE, DIRECTORY_TAG, INODE_MASK, View, Views, tag_of
from fsdecloud.errors import InvalidArgument, NoAttribute, NotDirectory, NotFound, ReadOnly, StaleHandle
from fsdecloud.fs.history import Snapshot, directory_name, is_snapshot_name, sequence_of_directory
from fsdecloud.fs.inode import InodeValue
from fsdecloud.fs.keys import INODE_BITS, ROOT
from fsdecloud.fuse.attributes import attributes_of, negative_entry
from fsdecloud.fuse.errnos import guarded
from fsdecloud.fuse.requests import Requests
from fsdecloud.types import Inode

HANDLE_BIT: Final = 1 << 62
"""Set in the handles of snapshots, so that none is taken for a live one."""

NAMES_TIMEOUT: Final = 1.0
"""Seconds the kernel keeps the names in `.snapshots`: they come and go without its knowledge."""

_LIST_BATCH: Final = 64

CountError = Callable[[str, Exception, bool], None]
Record = Callable[[OpenFile, View], None]


@guarded
async def _refused(_self: Any, *_arguments: object) -> NoReturn:
    """Answer any change."""
    raise ReadOnly


_refuse: Any = _refused


class StateOperations(pyfuse3.Operations):
    """Handlers of one state; `SnapshotOperations` has many."""

    supports_dot_lookup = True

    def __init__(
        self,
        view: View | None,
        *,
        timeouts: tuple[float, float],
        count_error: CountError,
        requests: Requests,
        program: Callable[[int], bytes],
        on_close: Record,
        prefix: bytes = b"",
    ) -> None:
        """`timeouts` are those of names and attributes; `program` names a pid's program; `on_close` is told of closed files."""
        super().__init__()
        self._only = view
        self._timeouts = timeouts
        self._count_error = count_error
        self.requests = requests
        self._program = program
        self._on_close = on_close
        self._prefix = prefix
        self._files: dict[int, tuple[OpenFile, View]] = {}
        self._directories: dict[int, int] = {}
        self._next_handle = HANDLE_BIT

    def count_error(self, where: str, error: Exception, *, unexpected: bool) -> None:
        """Note a failed request for `status`."""
        self._count_error(where, error, unexpected)

    # ---- what a number means -----------------------------------------------------------------------------------------
    async def _view(self, ino: int) -> View:
        assert self._only is not None
        return self._only

    async def _live(self, ino: int) -> tuple[View, LiveInode]:
        view = await self._view(ino)
        return view, await view.core.run(view.core.inodes.get, ino & INODE_MASK)

    def _attributes(self, view: View, live: LiveInode) -> pyfuse3.EntryAttributes:
        attributes = attributes_of(live, *self._timeouts)
        attributes.st_ino = view.base | live.ino
        return attributes

    async def _parent(self, ino: int) -> pyfuse3.EntryAttributes:
        view, live = await self._live(ino)
        parent = await view.core.run(view.namespace.lookup_parent, live.ino)
        if parent is None:  # a volume from before parents were kept
            parent = await view.core.run(view.core.inodes.get, ROOT)
        return self._attributes(view, parent)

    # ---- looking -----------------------------------------------------------------------------------------------------
    @guarded
    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        if name == b".":
            return await self.attributes(parent_inode)
        if name == b"..":
            return await self._parent(parent_inode)
        view = await self._view(parent_inode)
        view.core.inodes.evict()
        try:
            live = await view.core.run(view.namespace.lookup, parent_inode & INODE_MASK, name)
        except NotFound:
            return negative_entry(self._timeouts[0])
        return self._attributes(view, live)

    async def attributes(self, ino: int) -> pyfuse3.EntryAttributes:
        """Return an inode's attributes. Raises StaleHandle, RemoteError."""
        return self._attributes(*await self._live(ino))

    @guarded
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Nothing was counted."""

    @guarded
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return await self.attributes(inode)

    @guarded
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        return await self._target(inode)

    async def _target(self, ino: int) -> bytes:
        _view, live = await self._live(ino)
        if not stat.S_ISLNK(live.mode):
            raise InvalidArgument
        return live.target

    @guarded
    async def access(self, inode: int, mode: int, ctx: pyfuse3.RequestContext) -> bool:
        return True  # the kernel checks (default_permissions)

    @guarded
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        view = await self._view(ROOT)
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = 4096
        data.f_blocks = -(-view.snapshot.size // 4096)
        data.f_files = view.snapshot.files
        data.f_bfree = data.f_bavail = data.f_ffree = data.f_favail = 0
        data.f_namemax = 255
        return data

    @guarded
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        return await self._xattr(inode, name)

    async def _xattr(self, ino: int, name: bytes) -> bytes:
        view = await self._view(ino)
        return await view.core.run(view.xattrs.get, ino & INODE_MASK, name)

    @guarded
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> list[bytes]:
        return await self._xattr_names(inode, is_root=ctx.uid == 0)

    async def _xattr_names(self, ino: int, *, is_root: bool) -> list[bytes]:
        view = await self._view(ino)
        return await view.core.run(partial(view.xattrs.names, ino & INODE_MASK, is_root=is_root))

    # ---- files -------------------------------------------------------------------------------------------------------
    @guarded
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        view, live = await self._live(inode)
        caller = Caller(ctx.uid, ctx.gid, ctx.pid, ctx.umask)
        handle = view.open(live, flags, caller, self._program(ctx.pid), self._prefix_of(view))
        self._next_handle += 1
        self._files[self._next_handle] = handle, view
        return pyfuse3.FileInfo(fh=self._next_handle, keep_cache=True)

    def _prefix_of(self, view: View) -> bytes:
        return self._prefix

    @guarded
    async def read(self, fh: int, off: int, size: int) -> bytes:
        handle, view = self._handle(fh)
        return cast("bytes", await view.reader.read(handle, off, size))

    def _handle(self, fh: int) -> tuple[OpenFile, View]:
        try:
            return self._files[fh]
        except KeyError:
            raise StaleHandle from None

    @guarded
    async def flush(self, fh: int) -> None:
        self._handle(fh)

    @guarded
    async def fsync(self, fh: int, datasync: bool) -> None:
        self._handle(fh)

    @guarded
    async def release(self, fh: int) -> None:
        found = self._files.pop(fh, None)
        if found is not None:
            found[1].close(found[0])
            self._on_close(*found)

    # ---- directories -------------------------------------------------------------------------------------------------
    @guarded
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        await self.attributes(inode)
        self._next_handle += 1
        self._directories[self._next_handle] = inode
        return self._next_handle

    @guarded
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        await self._list(self._directories[fh], start_id, token)

    async def _list(self, ino: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        if not await self._list_dots(ino, start_id, token):
            return
        view = await self._view(ino)
        after = max(start_id, 2)
        view.core.inodes.evict()
        while batch := await view.core.run(view.namespace.listing, ino & INODE_MASK, after, _LIST_BATCH):
            for cookie, name, live in batch:
                if not pyfuse3.readdir_reply(token, name, self._attributes(view, live), cookie):
                    return
                after = cookie

    async def _list_dots(self, ino: int, start_id: int, token: pyfuse3.ReaddirToken) -> bool:
        """List a directory itself and its parent; return whether there is room for more."""
        for cookie, name in ((1, b"."), (2, b"..")):
            if start_id < cookie:
                attributes = await (self.attributes(ino) if cookie == 1 else self._parent(ino))
                if not pyfuse3.readdir_reply(token, name, attributes, cookie):
                    return False
        return True

    @guarded
    async def releasedir(self, fh: int) -> None:
        self._directories.pop(fh, None)

    @guarded
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Nothing here is dirty."""

    # ---- changes -----------------------------------------------------------------------------------------------------
    setattr = setxattr = removexattr = mknod = mkdir = symlink = link = unlink = rmdir = rename = create = write = (
        _refuse
    )


def operations_of(state: StateMount) -> StateOperations:
    """Return the handlers of a snapshot that is mounted alone. What is read there is not recorded."""
    options = state.setup.options

    def count_error(where: str, error: Exception, unexpected: bool) -> None:
        shown = state.incidents.note(f"handler {where}", error).last if unexpected else str(error)
        state.last_error = f"{where}: {shown}"

    operations = StateOperations(
        state.view,
        timeouts=(options.entry_timeout, options.attr_timeout),
        count_error=count_error,
        requests=Requests.of(options),
        program=lambda _pid: b"",
        on_close=lambda _handle, _view: None,
    )
    operations.enable_acl = options.acl
    return operations


class SnapshotOperations(StateOperations):
    """Handlers of `.snapshots` and of everything below it."""

    def __init__(
        self,
        views: Views,
        snapshots: Snapshots,
        top: LiveInode,
        *,
        timeouts: tuple[float, float],
        count_error: CountError,
        requests: Requests,
        program: Callable[[int], bytes],
        on_close: Record,
    ) -> None:
        """`top` is the live root directory: `.snapshots` has its owner and its permissions, but for writing."""
        super().__init__(
            None,
            timeouts=timeouts,
            count_error=count_error,
            requests=requests,
            program=program,
            on_close=on_close,
        )
        self._views = views
        self._snapshots = snapshots
        self._top = top

    async def _view(self, ino: int) -> View:
        if ino >> INODE_BITS == DIRECTORY_TAG:
            raise NotDirectory
        return await self._views.get(ino)

    def _prefix_of(self, view: View) -> bytes:
        return b"/%s/%s" % (DIRECTORY, view.name)

    async def attributes(self, ino: int) -> pyfuse3.EntryAttributes:
        """Return an inode's attributes. Raises StaleHandle, RemoteError."""
        if ino == DIRECTORY_INODE:
            return await self.directory_attributes()
        if ino >> INODE_BITS == DIRECTORY_TAG:
            return self._alias_attributes(await self._alias(ino))
        return await super().attributes(ino)

    async def directory_attributes(self) -> pyfuse3.EntryAttributes:
        """Return the attributes of `.snapshots`; its times are those of the last snapshot."""
        last = await self._snapshots.core.run(self._snapshots.row, self._snapshots.latest_sequence)
        top = self._top
        time = last.time if last is not None else top.mtime
        value = InodeValue(top.mode & ~0o7222, top.uid, top.gid, 2, 0, time, time, time, time, 0, 0, 0, b"")
        return self._virtual(DIRECTORY_INODE, value)

    def _virtual(self, ino: int, value: InodeValue) -> pyfuse3.EntryAttributes:
        attributes = attributes_of(LiveInode(Inode(ROOT), value), NAMES_TIMEOUT, NAMES_TIMEOUT)
        attributes.st_ino = ino
        return attributes

    def _top_attributes(self, row: Snapshot) -> pyfuse3.EntryAttributes:
        """Return the attributes of a snapshot's root directory, without reading its tree."""
        return self._virtual(tag_of(row.sequence) << INODE_BITS | ROOT, row.top)

    def _alias_attributes(self, row: Snapshot) -> pyfuse3.EntryAttributes:
        target = directory_name(row).encode()
        top, time = row.top, row.time
        value = InodeValue(
            stat.S_IFLNK | 0o777, top.uid, top.gid, 1, len(target), time, time, time, time, 0, 0, 0, target
        )
        return self._virtual(DIRECTORY_INODE + row.sequence, value)

    async def _alias(self, ino: int) -> Snapshot:
        """Return the named snapshot whose symbolic link this is. Raises StaleHandle."""
        row = await self._snapshots.core.run(self._snapshots.row, ino - DIRECTORY_INODE)
        if row is None or not row.name:
            raise StaleHandle
        return row

    async def _target(self, ino: int) -> bytes:
        if ino >> INODE_BITS == DIRECTORY_TAG:
            return directory_name(await self._alias(ino)).encode()
        return await super()._target(ino)

    async def _parent(self, ino: int) -> pyfuse3.EntryAttributes:
        if ino == DIRECTORY_INODE:
            return attributes_of(self._top, *self._timeouts)
        if ino & INODE_MASK == ROOT:
            return await self.directory_attributes()
        return await super()._parent(ino)

    async def _xattr(self, ino: int, name: bytes) -> bytes:
        if ino >> INODE_BITS == DIRECTORY_TAG:
            raise NoAttribute
        return await super()._xattr(ino, name)

    async def _xattr_names(self, ino: int, *, is_root: bool) -> list[bytes]:
        return [] if ino >> INODE_BITS == DIRECTORY_TAG else await super()._xattr_names(ino, is_root=is_root)

    @guarded
    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        if parent_inode != DIRECTORY_INODE or name in (b".", b".."):
            return await super().lookup(parent_inode, name, ctx)
        text = os.fsdecode(name)
        sequence = sequence_of_directory(text)
        if sequence is not None:
            row = await self._snapshots.core.run(self._snapshots.row, sequence) if sequence >> 63 == 0 else None
            if row is not None and directory_name(row) == text:
                return self._top_attributes(row)
        elif is_snapshot_name(text):
            row = next((row for row in await self._snapshots.rows() if row.name == text), None)
            if row is not None:
                return self._alias_attributes(row)
        return negative_entry(0)

    async def _list(self, ino: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        if ino != DIRECTORY_INODE:
            await super()._list(ino, start_id, token)
            return
        if not await self._list_dots(ino, start_id, token):
            return
        # The cookie of snapshot n is 2n + 1, that of its name 2n + 2.
        after = max(start_id, 2)
        while rows := await self._snapshots.core.run(self._snapshots.rows_from, after // 2, _LIST_BATCH):
            for row in rows:
                entries = [(2 * row.sequence + 1, directory_name(row), self._top_attributes(row))]
                if row.name:
                    entries.append((2 * row.sequence + 2, row.name, self._alias_attributes(row)))
                for cookie, name, attributes in entries:
                    if cookie > after and not pyfuse3.readdir_reply(token, name.encode(), attributes, cookie):
                        return
                after = max(after, 2 * row.sequence + 2)
