"""Which handlers a request goes to: those of the live tree, or those of snapshots.

An inode number or handle tells by itself (`driver.views`), so a request to the live tree costs one shift more. These are
plain functions that return the chosen handler's coroutine: nothing is awaited twice.

A volume's own entry `.snapshots` at the root, from before there were snapshots, hides ours until it is renamed or removed;
none can be made any more: EEXIST.
"""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any, Final, cast

import pyfuse3

from fsdecloud.driver.reader import OpenFile
from fsdecloud.driver.views import DIRECTORY, View
from fsdecloud.driver.volume import Volume
from fsdecloud.errors import CrossDevice, Exists, NotFound, ReadOnly
from fsdecloud.fs.keys import INODE_BITS, ROOT
from fsdecloud.fs.records import Operation
from fsdecloud.fuse.errnos import guarded
from fsdecloud.fuse.operations import Operations
from fsdecloud.fuse.states import SnapshotOperations

Answer = Coroutine[Any, Any, Any]

_DIRECTORY_COOKIE: Final = 3
"""Of `.snapshots` in a listing of the root: after `.` and `..`, before all names."""


class MountOperations(Operations):
    """All handlers of a mount: the live tree, with `.snapshots` in it."""

    def __init__(self, volume: Volume) -> None:
        super().__init__(volume)
        options = volume.setup.options
        self._shows_snapshots = options.show_snapshots
        top = volume.core.inodes.peek(ROOT)
        assert top is not None, "the root stays in memory"
        self._snapshots = SnapshotOperations(
            volume.views,
            volume.snapshots,
            top,
            timeouts=(options.entry_timeout, options.attr_timeout),
            count_error=self._count_error,
            requests=self.requests,
            program=volume.core.recorder.program,
            on_close=self._record_read,
        )

    def _count_error(self, where: str, error: Exception, unexpected: bool) -> None:
        self.count_error(where, error, unexpected=unexpected)

    def _record_read(self, handle: OpenFile, view: View) -> None:
        core = self._volume.core
        core.recorder.record(
            Operation.READ,
            handle.caller,
            view.base | handle.inode.ino,
            handle.path,
            amount=handle.bytes_read,
            program=handle.program,
        )
        core.changed()

    def _of(self, ino: int) -> pyfuse3.Operations:
        """Return who handles an inode."""
        return self._snapshots if ino >> INODE_BITS else cast("pyfuse3.Operations", super())

    # ---- names -------------------------------------------------------------------------------------------------------
    def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> Answer:
        if parent_inode >> INODE_BITS:
            return self._snapshots.lookup(parent_inode, name, ctx)
        if name == DIRECTORY and parent_inode == ROOT:
            return self._lookup_directory(ctx)
        return super().lookup(parent_inode, name, ctx)

    @guarded
    async def _lookup_directory(self, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        if await self._has_own_directory():
            return await super().lookup(ROOT, DIRECTORY, ctx)
        return await self._snapshots.directory_attributes()

    async def _has_own_directory(self) -> bool:
        try:
            await self._core.run(self._namespace.lookup, ROOT, DIRECTORY)
        except NotFound:
            return False
        return True

    @guarded
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        await super().forget([pair for pair in inode_list if not pair[0] >> INODE_BITS])

    def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext) -> Answer:
        if parent_inode >> INODE_BITS or name == DIRECTORY:
            return self._refuse_new(parent_inode, super().mknod, parent_inode, name, mode, rdev, ctx)
        return super().mknod(parent_inode, name, mode, rdev, ctx)

    def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext) -> Answer:
        if parent_inode >> INODE_BITS or name == DIRECTORY:
            return self._refuse_new(parent_inode, super().mkdir, parent_inode, name, mode, ctx)
        return super().mkdir(parent_inode, name, mode, ctx)

    def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext) -> Answer:
        if parent_inode >> INODE_BITS or name == DIRECTORY:
            return self._refuse_new(parent_inode, super().symlink, parent_inode, name, target, ctx)
        return super().symlink(parent_inode, name, target, ctx)

    def create(self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext) -> Answer:
        if parent_inode >> INODE_BITS or name == DIRECTORY:
            return self._refuse_new(parent_inode, super().create, parent_inode, name, mode, flags, ctx)
        return super().create(parent_inode, name, mode, flags, ctx)

    def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext) -> Answer:
        if (inode | new_parent_inode) >> INODE_BITS:
            return self._refuse_pair(inode, new_parent_inode)
        if new_name == DIRECTORY:
            return self._refuse_new(new_parent_inode, super().link, inode, new_parent_inode, new_name, ctx)
        return super().link(inode, new_parent_inode, new_name, ctx)

    def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> Answer:
        return self._of(parent_inode).unlink(parent_inode, name, ctx)

    def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> Answer:
        if parent_inode == ROOT and name == DIRECTORY:
            return self._change_own(super().rmdir, parent_inode, name, ctx)
        return self._of(parent_inode).rmdir(parent_inode, name, ctx)

    def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> Answer:
        arguments = (parent_inode_old, name_old, parent_inode_new, name_new, flags, ctx)
        if (parent_inode_old | parent_inode_new) >> INODE_BITS:
            return self._refuse_pair(parent_inode_old, parent_inode_new)
        if DIRECTORY in (name_old, name_new) and ROOT in (parent_inode_old, parent_inode_new):
            touched = (parent_inode_old, name_old), (parent_inode_new, name_new)
            if (ROOT, DIRECTORY) in touched:
                return self._change_own(super().rename, *arguments)
        return super().rename(*arguments)

    @guarded
    async def _refuse_new(self, parent: int, handler: Any, *arguments: object) -> Any:
        """Answer a new name in a snapshot, or one that might be `.snapshots` of the root."""
        if parent >> INODE_BITS:
            raise ReadOnly
        if parent == ROOT and not await self._has_own_directory():
            raise Exists
        return await handler(*arguments)

    @guarded
    async def _change_own(self, handler: Any, *arguments: object) -> Any:
        """Pass on a change of the name `.snapshots` of the root, if that is the volume's own."""
        if not await self._has_own_directory():
            raise ReadOnly
        return await handler(*arguments)

    @guarded
    async def _refuse_pair(self, one: int, other: int) -> None:
        if one >> INODE_BITS and other >> INODE_BITS:
            raise ReadOnly
        raise CrossDevice

    # ---- inodes ------------------------------------------------------------------------------------------------------
    def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> Answer:
        return self._of(inode).readlink(inode, ctx)

    def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Answer:
        return self._snapshots.getattr(inode, ctx) if inode >> INODE_BITS else super().getattr(inode, ctx)

    def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> Answer:
        return self._of(inode).setattr(inode, attr, fields, fh, ctx)

    def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> Answer:
        return self._of(inode).getxattr(inode, name, ctx)

    def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Answer:
        return self._of(inode).listxattr(inode, ctx)

    def setxattr(self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> Answer:
        return self._of(inode).setxattr(inode, name, value, ctx)

    def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> Answer:
        return self._of(inode).removexattr(inode, name, ctx)

    def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> Answer:
        return self._of(inode).open(inode, flags, ctx)

    def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> Answer:
        return self._of(inode).opendir(inode, ctx)

    # ---- handles -----------------------------------------------------------------------------------------------------
    def read(self, fh: int, off: int, size: int) -> Answer:
        return self._snapshots.read(fh, off, size) if fh >> 62 else super().read(fh, off, size)

    def flush(self, fh: int) -> Answer:
        return self._of_handle(fh).flush(fh)

    def fsync(self, fh: int, datasync: bool) -> Answer:
        return self._of_handle(fh).fsync(fh, datasync)

    def release(self, fh: int) -> Answer:
        return self._of_handle(fh).release(fh)

    def releasedir(self, fh: int) -> Answer:
        return self._of_handle(fh).releasedir(fh)

    def fsyncdir(self, fh: int, datasync: bool) -> Answer:
        return self._of_handle(fh).fsyncdir(fh, datasync)

    def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> Answer:
        if fh >> 62:
            return self._snapshots.readdir(fh, start_id, token)
        if self._shows_snapshots and start_id < _DIRECTORY_COOKIE and self._directories.get(fh) == ROOT:
            return self._list_root(fh, start_id, token)
        return super().readdir(fh, start_id, token)

    @guarded
    async def _list_root(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """List the root with `.snapshots` as its first name."""
        live = await self._core.run(self._inodes.get, ROOT)
        for cookie, name in ((1, b"."), (2, b"..")):
            if start_id < cookie and not pyfuse3.readdir_reply(token, name, self._attributes(live), cookie):
                return
        if not await self._has_own_directory():
            attributes = await self._snapshots.directory_attributes()
            if not pyfuse3.readdir_reply(token, DIRECTORY, attributes, _DIRECTORY_COOKIE):
                return
        await super().readdir(fh, _DIRECTORY_COOKIE, token)

    def _of_handle(self, fh: int) -> pyfuse3.Operations:
        return self._snapshots if fh >> 62 else cast("pyfuse3.Operations", super())
