"""The FUSE handlers: convert, call the driver, convert back. No rule of the file system lives here.

Called by pyfuse3 in the trio thread, many requests at once; code between two awaits is atomic. Look-ups are counted
here and nowhere else: one for each answered lookup, create, mknod, mkdir, symlink, link and each listed entry that the
kernel took (fuse.md, 8).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from functools import partial
from typing import Concatenate, Final, ParamSpec, cast

import pyfuse3

from fsdecloud import limits
from fsdecloud.driver.inodes import LiveInode
from fsdecloud.driver.namespace import AttributeChange
from fsdecloud.driver.recorder import Caller
from fsdecloud.driver.volume import Volume
from fsdecloud.errors import Exists, FsdecloudError, FsError, InvalidArgument, NotFound
from fsdecloud.fs.acl import ACCESS as ACL_ACCESS
from fsdecloud.fs.keys import ROOT
from fsdecloud.fs.records import Operation
from fsdecloud.fuse.attributes import attributes_of, negative_entry
from fsdecloud.fuse.errnos import guarded
from fsdecloud.fuse.requests import Requests

P = ParamSpec("P")

_LIST_BATCH: Final = 64
"""Entries prepared for the kernel at a time: about what one 4 KiB to 32 KiB reply holds."""

_CHANGING: Final = frozenset(("create", "fsync", "fsyncdir", "open", "setattr", "write"))
"""Handlers that may wait for something to become durable, or for room."""

_BLOCK: Final = 4096
_CAPACITY: Final = 1 << 50
"""What `df` shows: peers have no fixed capacity; others say 1 PiB too."""


class Operations(pyfuse3.Operations):
    """All handlers of one mount."""

    supports_dot_lookup = True

    def __init__(self, volume: Volume) -> None:
        super().__init__()
        self._volume = volume
        self._core = volume.core
        self._namespace = volume.namespace
        self._files = volume.files
        self._reader = volume.reader
        self._inodes = volume.core.inodes
        options = volume.setup.options
        self.enable_writeback_cache = options.writeback and not options.read_only
        self.enable_acl = options.acl
        self._xattrs = volume.xattrs
        self._access_times = volume.access_times
        self._entry_timeout = options.entry_timeout
        self._attr_timeout = options.attr_timeout
        self._is_synchronous = not {"sync", "dirsync"}.isdisjoint(options.kernel)
        self._directories: dict[int, int] = {}
        self._next_directory = 1
        self.requests = Requests.of(options)
        volume.core.on_failure = self._end_changes

    def count_error(self, where: str, error: Exception, *, unexpected: bool) -> None:
        """Note a failed request for `status`."""
        if unexpected:
            self._volume.last_error = f"{where}: {self._volume.incidents.note(f'handler {where}', error).last}"
        else:
            self._volume.last_error = f"{where}: {error}"

    def _end_changes(self) -> None:
        """Nothing becomes durable any more: answer those who wait for it."""
        self.requests.interrupt(_CHANGING, errno.EIO)
        self._files.wake_waiting()

    # ---- names -------------------------------------------------------------------------------------------------------
    @guarded
    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        if name == b".":
            live = await self._core.run(self._inodes.get, parent_inode)
        elif name == b"..":
            live = await self._parent(parent_inode)
        else:
            self._core.evict()
            try:
                live = await self._core.run(self._namespace.lookup, parent_inode, name)
            except NotFound:
                return negative_entry(self._entry_timeout)
        return self._counted(live)

    @guarded
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for ino, count in inode_list:
            if self._inodes.forget(ino, count):
                self._volume.maybe_reap(ino)

    @guarded
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        caller = _caller(ctx)
        return self._counted(
            await self._change(
                Operation.MKNOD, caller, parent_inode, name, self._namespace.create, mode, caller, rdev=rdev
            )
        )

    @guarded
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        caller = _caller(ctx)
        return self._counted(
            await self._change(Operation.MKDIR, caller, parent_inode, name, self._namespace.mkdir, mode, caller)
        )

    @guarded
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        caller = _caller(ctx)
        return self._counted(
            await self._change(Operation.SYMLINK, caller, parent_inode, name, self._namespace.symlink, target, caller)
        )

    @guarded
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        caller = _caller(ctx)
        try:
            live = await self._core.run(self._namespace.link, inode, new_parent_inode, new_name, caller)
        except FsError as exc:
            self._core.record_failure(Operation.LINK, caller, new_parent_inode, new_name, exc)
            raise
        await self._named()
        return self._counted(live)

    @guarded
    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        caller = _caller(ctx)
        live = await self._change(Operation.REMOVE, caller, parent_inode, name, self._namespace.unlink, caller)
        self._volume.maybe_reap(live.ino)

    @guarded
    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        caller = _caller(ctx)
        live = await self._change(Operation.RMDIR, caller, parent_inode, name, self._namespace.rmdir, caller)
        self._volume.maybe_reap(live.ino)

    @guarded
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        caller = _caller(ctx)
        try:
            gone = await self._core.run(
                self._namespace.rename, parent_inode_old, name_old, parent_inode_new, name_new, flags, caller
            )
        except FsError as exc:
            self._core.record_failure(Operation.RENAME, caller, parent_inode_old, name_old, exc)
            raise
        if gone is not None:
            self._volume.maybe_reap(gone.ino)
        await self._named()

    @guarded
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        live = await self._core.run(self._inodes.get, inode)
        if not stat.S_ISLNK(live.mode):
            raise InvalidArgument
        self._access_times.looked(live)
        return live.target

    # ---- attributes --------------------------------------------------------------------------------------------------
    @guarded
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self._attributes(await self._core.run(self._inodes.get, inode))

    @guarded
    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        self._core.check_writable()
        caller = _caller(ctx)
        if fields.update_size:
            live = await self._core.run(self._inodes.get, inode)
            await self._files.truncate(live, attr.st_size)
            self._core.record(Operation.TRUNCATE, caller, live, self._core.path_of(live), amount=attr.st_size)
        # The kernel's own write-back of times comes with a handle and without atime: that is no operation of anybody's.
        by_program = fields.update_mode or fields.update_uid or fields.update_gid or fields.update_atime
        change = AttributeChange(
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            atime=attr.st_atime_ns if fields.update_atime else None,
            mtime=attr.st_mtime_ns if fields.update_mtime else None,
            ctime=attr.st_ctime_ns if fields.update_ctime else None,
            by_program=by_program or (fields.update_mtime and fh is None),
        )
        return self._attributes(await self._core.run(self._namespace.set_attributes, inode, change, caller))

    @guarded
    async def access(self, inode: int, mode: int, ctx: pyfuse3.RequestContext) -> bool:
        return True  # the kernel checks (default_permissions)

    @guarded
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = _BLOCK
        data.f_blocks = _CAPACITY // _BLOCK
        data.f_bfree = data.f_bavail = max(0, _CAPACITY - self._core.bytes) // _BLOCK
        data.f_files = 1 << 40
        data.f_ffree = data.f_favail = (1 << 40) - self._core.files
        data.f_namemax = limits.NAME_MAX
        return data

    # ---- extended attributes -------------------------------------------------------------------------------------------
    @guarded
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        return await self._core.run(self._xattrs.get, inode, name)

    @guarded
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> list[bytes]:
        return await self._core.run(partial(self._xattrs.names, inode, is_root=ctx.uid == 0))

    @guarded
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        # pyfuse3 has checked XATTR_CREATE and XATTR_REPLACE by asking getxattr.
        caller = _caller(ctx)
        in_group = True
        if name == ACL_ACCESS and caller.uid:
            live = await self._core.run(self._inodes.get, inode)
            in_group = live.gid == caller.gid or live.gid in _groups(caller.pid)
        await self._core.run(partial(self._xattrs.set, inode, name, value, 0, caller, in_group=in_group))

    @guarded
    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._core.run(self._xattrs.remove, inode, name, _caller(ctx))

    # ---- files -------------------------------------------------------------------------------------------------------
    @guarded
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        live = await self._core.run(self._inodes.get, inode)
        return await self._open(live, flags, _caller(ctx))

    @guarded
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        caller = _caller(ctx)
        try:
            live = await self._change(
                Operation.CREATE, caller, parent_inode, name, self._namespace.create, stat.S_IFREG | mode, caller
            )
            if self._is_synchronous:  # it may have left memory while it was made durable
                live = await self._core.run(self._inodes.get, live.ino)
            flags &= ~os.O_TRUNC
        except Exists:
            if flags & os.O_EXCL:
                raise
            live = await self._core.run(self._namespace.lookup, parent_inode, name)
        info = await self._open(live, flags, caller)
        return info, self._counted(live)

    async def _open(self, live: LiveInode, flags: int, caller: Caller) -> pyfuse3.FileInfo:
        handle = self._files.open(live, flags, caller)
        if flags & os.O_TRUNC:
            try:
                await self._files.truncate(live, 0)
            except BaseException:  # cancelled or failed, the kernel gets no handle and will not release one
                closed = self._files.release(handle)
                if closed is not None and not closed.nlink:
                    self._volume.maybe_reap(closed.ino)
                raise
            self._namespace.drop_privileges(live, caller)  # for this one truncation the kernel does not ask us to
            self._core.record(Operation.TRUNCATE, caller, live, self._core.path_of(live))
        return pyfuse3.FileInfo(fh=handle, keep_cache=True)

    @guarded
    async def read(self, fh: int, off: int, size: int) -> bytes:
        handle = self._files.handle(fh)
        data = await self._reader.read(handle, off, size)
        self._access_times.read(handle)
        return cast("bytes", data)  # pyfuse3 takes any buffer

    @guarded
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        handle = self._files.handle(fh)
        if self._files.has_room:
            self._files.write_nowait(handle.inode, off, buf)
        else:
            await self._files.write_in_turn(handle.inode, off, buf)
        handle.bytes_written += len(buf)
        if handle.flags & os.O_DIRECT:  # through its cache the kernel does this by itself
            self._namespace.drop_privileges(handle.inode, handle.caller)
        return len(buf)

    @guarded
    async def flush(self, fh: int) -> None:
        handle = self._files.handle(fh)
        self._access_times.closed(handle)
        if handle.flags & os.O_ACCMODE != os.O_RDONLY:
            await self._files.check_error(handle.inode)

    @guarded
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._files.fsync(self._files.handle(fh).inode, self._volume.flush)

    @guarded
    async def release(self, fh: int) -> None:
        live = self._files.release(fh)
        if live is not None and not live.nlink:
            self._volume.maybe_reap(live.ino)

    # ---- directories ---------------------------------------------------------------------------------------------------
    @guarded
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        await self._core.run(self._inodes.get, inode)
        number = self._next_directory
        self._next_directory += 1
        self._directories[number] = inode
        return number

    @guarded
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        ino = self._directories[fh]
        self._core.evict()
        self._access_times.looked(await self._core.run(self._inodes.get, ino))
        for cookie, name in ((1, b"."), (2, b"..")):
            if start_id < cookie:
                live = await (self._core.run(self._inodes.get, ino) if cookie == 1 else self._parent(ino))
                if not pyfuse3.readdir_reply(token, name, self._attributes(live), cookie):
                    return
        after = max(start_id, 2)
        given: list[int] = []
        try:
            while batch := await self._volume.lister.entries(ino, after, _LIST_BATCH):
                for cookie, name, live in batch:
                    if not pyfuse3.readdir_reply(token, name, self._attributes(live), cookie):
                        return
                    self._inodes.count_lookup(live.ino)
                    given.append(live.ino)
                    after = cookie
        except BaseException as exc:  # cancelled or failed, look-ups that were counted must be taken back
            if given and isinstance(exc, FsdecloudError):
                return  # the kernel takes these, asks for the rest, and gets the error then
            for number in given:  # it never sees these
                self._inodes.forget(number, 1)
            raise

    @guarded
    async def releasedir(self, fh: int) -> None:
        self._directories.pop(fh, None)

    @guarded
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._volume.flush()

    # ---- pieces ------------------------------------------------------------------------------------------------------
    async def _change(
        self,
        operation: Operation,
        caller: Caller,
        parent: int,
        name: bytes,
        function: Callable[Concatenate[int, bytes, P], LiveInode],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> LiveInode:
        """Call a change of the namespace; one that is refused is recorded too."""
        try:
            live = await self._core.run(function, parent, name, *args, **kwargs)
        except FsError as exc:
            self._core.record_failure(operation, caller, parent, name, exc)
            raise
        await self._named()
        return live

    async def _named(self) -> None:
        """Names changed: with `-o dirsync` or `-o sync` that is durable before the answer. The kernel sees to it for writes
        alone."""
        if self._is_synchronous:
            await self._volume.flush()

    async def _parent(self, ino: int) -> LiveInode:
        """Return a directory's parent, also in a volume from before parents were kept."""
        live = await self._core.run(self._namespace.lookup_parent, ino)
        after = b"D"
        while live is None and after:
            live, after = await self._core.run(self._namespace.search_parent, ino, after)
        return await self._core.run(self._inodes.get, ROOT) if live is None else live

    def _attributes(self, live: LiveInode) -> pyfuse3.EntryAttributes:
        return attributes_of(live, self._entry_timeout, self._attr_timeout)

    def _counted(self, live: LiveInode) -> pyfuse3.EntryAttributes:
        self._inodes.count_lookup(live.ino)
        return attributes_of(live, self._entry_timeout, self._attr_timeout)


def _groups(pid: int) -> set[int]:
    """Return a process's supplementary groups; none if it is gone."""
    try:
        return pyfuse3.get_sup_groups(pid)
    except (OSError, RuntimeError):
        return set()


def _caller(ctx: pyfuse3.RequestContext) -> Caller:
    return Caller(ctx.uid, ctx.gid, ctx.pid, ctx.umask)


assert ROOT == pyfuse3.ROOT_INODE
