"""An in-memory pyfuse3 file system: what a Python driver costs before it does anything.

The ceiling to which `report` compares the mount, so it is as fast as honest code can be: every handler answers inline, an
inode's attributes live in the very object that is sent, a whole chunk is kept as the bytes object the kernel's request
came in and is answered without a copy. It keeps everything it is given and checks what the kernel does not. An fsync costs
what no driver can do without: one durable write, of two blocks, to a log that is there already. Mount options are those
of the driver: default_permissions, long time-outs, and (with `--writeback`) the kernel's writeback cache.

    python -m tests.bench.memfs MOUNTPOINT LOG [--writeback] [--ready-fd N]

Single-threaded: all handlers run in the trio thread and none awaits anything.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import stat
import time
from collections.abc import Sequence
from typing import Final

import pyfuse3
import trio
from pyfuse3 import FUSEError

CHUNK: Final = 1 << 20
TIMEOUT: Final = 3600.0
"""Attribute and name time-outs: nobody else writes here, as under the driver's lease."""
ZEROS: Final = bytes(CHUNK)
RECORD: Final = 8 << 10
LOG_SIZE: Final = 16 << 20


class Node:
    """One inode. `attr` is both its record and the answer to GETATTR."""

    __slots__ = ("attr", "chunks", "entries", "lookups", "opens", "parent", "target", "xattrs")

    def __init__(self, ino: int, mode: int, uid: int, gid: int, rdev: int = 0) -> None:
        attr = pyfuse3.EntryAttributes()
        now = time.time_ns()
        attr.st_ino = ino
        attr.generation = 0
        attr.entry_timeout = attr.attr_timeout = TIMEOUT
        attr.st_mode, attr.st_uid, attr.st_gid, attr.st_rdev = mode, uid, gid, rdev
        attr.st_nlink = 2 if stat.S_ISDIR(mode) else 1
        attr.st_size = attr.st_blocks = 0
        attr.st_blksize = CHUNK
        attr.st_atime_ns = attr.st_mtime_ns = attr.st_ctime_ns = attr.st_birthtime_ns = now
        self.attr = attr
        self.chunks: dict[int, bytes | bytearray] = {}
        self.entries: dict[bytes, int] = {}
        self.xattrs: dict[bytes, bytes] = {}
        self.target = b""
        self.parent = ino
        self.lookups = 0
        self.opens = 0

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset`; holes read as zeros."""
        size = min(size, self.attr.st_size - offset)
        if size <= 0:
            return b""
        index, start = divmod(offset, CHUNK)
        if start + size <= CHUNK:
            chunk = self.chunks.get(index, b"")
            if start == 0 and size == len(chunk) and type(chunk) is bytes:
                return chunk
            part = bytes(memoryview(chunk)[start : start + size])
            return part if len(part) == size else part + ZEROS[: size - len(part)]
        first = self.read(offset, CHUNK - start)
        return first + self.read(offset + len(first), size - len(first))

    def write(self, offset: int, data: bytes) -> None:
        """Put `data` at `offset`."""
        index, start = divmod(offset, CHUNK)
        length = len(data)
        if start + length > CHUNK:
            cut = CHUNK - start
            self.write(offset, data[:cut])
            self.write(offset + cut, data[cut:])
            return
        if length == CHUNK:
            self.chunks[index] = data
        else:
            chunk = self.chunks.get(index, b"")
            if type(chunk) is not bytearray:
                chunk = self.chunks[index] = bytearray(chunk)
            if start > len(chunk):
                chunk += ZEROS[: start - len(chunk)]
            chunk[start : start + length] = data
        self.attr.st_size = max(self.attr.st_size, offset + length)

    def truncate(self, size: int) -> None:
        """Cut or grow to `size`; what is cut reads as zeros after growing again."""
        if size < self.attr.st_size:
            index, rest = divmod(size, CHUNK)
            for i in [i for i in self.chunks if i >= index + bool(rest)]:
                del self.chunks[i]
            if rest and index in self.chunks:
                self.chunks[index] = bytearray(self.chunks[index][:rest])
        self.attr.st_size = size


class MemoryFs(pyfuse3.Operations):
    """All operations that the driver offers, over a dictionary."""

    supports_dot_lookup = True
    enable_acl = False

    def __init__(self, log: str, *, writeback: bool) -> None:
        super().__init__()
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_DSYNC, 0o600)
        os.pwrite(self.log, bytes(LOG_SIZE), 0)
        self.log_position = 0
        self.record = os.urandom(RECORD)
        self.enable_writeback_cache = writeback
        self.nodes: dict[int, Node] = {}
        self.next_ino: int = pyfuse3.ROOT_INODE
        self.listings: dict[int, tuple[int, list[tuple[bytes, int]]]] = {}
        self.next_listing = 1
        self.missing = pyfuse3.EntryAttributes()
        self.missing.st_ino = 0
        self.missing.entry_timeout = TIMEOUT
        self._new(stat.S_IFDIR | 0o755, os.getuid(), os.getgid())

    # ---- nodes --------------------------------------------------------------------------------------------------
    def _new(self, mode: int, uid: int, gid: int, rdev: int = 0) -> Node:
        node = self.nodes[self.next_ino] = Node(self.next_ino, mode, uid, gid, rdev)
        self.next_ino += 1
        return node

    def _drop(self, node: Node) -> None:
        if not node.lookups and not node.opens and not node.attr.st_nlink:
            self.nodes.pop(node.attr.st_ino, None)

    @staticmethod
    def _touch(node: Node) -> None:
        node.attr.st_mtime_ns = node.attr.st_ctime_ns = time.time_ns()

    def _add(self, parent: Node, name: bytes, node: Node) -> None:
        if len(name) > 255:
            raise FUSEError(errno.ENAMETOOLONG)
        parent.entries[name] = node.attr.st_ino
        if stat.S_ISDIR(node.attr.st_mode):
            node.parent = parent.attr.st_ino
            parent.attr.st_nlink += 1
        self._touch(parent)

    def _make(self, parent_ino: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext, rdev: int = 0) -> Node:
        parent = self.nodes[parent_ino]
        if name in parent.entries:
            raise FUSEError(errno.EEXIST)
        gid = ctx.gid
        if parent.attr.st_mode & stat.S_ISGID:
            gid = parent.attr.st_gid
            if stat.S_ISDIR(mode):
                mode |= stat.S_ISGID
        node = self._new(mode & ~ctx.umask, ctx.uid, gid, rdev)
        self._add(parent, name, node)
        node.lookups += 1
        return node

    def _remove(self, parent: Node, name: bytes, node: Node) -> None:
        del parent.entries[name]
        if stat.S_ISDIR(node.attr.st_mode):
            node.attr.st_nlink = 0
            parent.attr.st_nlink -= 1
        else:
            node.attr.st_nlink -= 1
        node.attr.st_ctime_ns = time.time_ns()
        self._touch(parent)
        self._drop(node)

    def _child(self, parent: Node, name: bytes) -> Node:
        try:
            return self.nodes[parent.entries[name]]
        except KeyError:
            raise FUSEError(errno.ENOENT) from None

    # ---- names --------------------------------------------------------------------------------------------------
    async def lookup(self, parent_inode, name, ctx):
        parent = self.nodes[parent_inode]
        if name == b".":
            node = parent
        elif name == b"..":
            node = self.nodes[parent.parent]
        else:
            ino = parent.entries.get(name)
            if ino is None:
                return self.missing
            node = self.nodes[ino]
        node.lookups += 1
        return node.attr

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for ino, count in inode_list:
            node = self.nodes.get(ino)
            if node is not None:
                node.lookups -= count
                self._drop(node)

    async def mkdir(self, parent_inode, name, mode, ctx):
        return self._make(parent_inode, name, stat.S_IFDIR | mode, ctx).attr

    async def mknod(self, parent_inode, name, mode, rdev, ctx):
        return self._make(parent_inode, name, mode, ctx, rdev).attr

    async def symlink(self, parent_inode, name, target, ctx):
        node = self._make(parent_inode, name, stat.S_IFLNK | 0o777, ctx)
        node.attr.st_mode = stat.S_IFLNK | 0o777
        node.target = target
        node.attr.st_size = len(target)
        return node.attr

    async def readlink(self, inode, ctx):
        return self.nodes[inode].target

    async def link(self, inode, new_parent_inode, new_name, ctx):
        node, parent = self.nodes[inode], self.nodes[new_parent_inode]
        if new_name in parent.entries:
            raise FUSEError(errno.EEXIST)
        self._add(parent, new_name, node)
        node.attr.st_nlink += 1
        node.attr.st_ctime_ns = time.time_ns()
        node.lookups += 1
        return node.attr

    async def unlink(self, parent_inode, name, ctx):
        parent = self.nodes[parent_inode]
        self._remove(parent, name, self._child(parent, name))

    async def rmdir(self, parent_inode, name, ctx):
        parent = self.nodes[parent_inode]
        node = self._child(parent, name)
        if node.entries:
            raise FUSEError(errno.ENOTEMPTY)
        self._remove(parent, name, node)

    async def rename(self, parent_inode_old, name_old, parent_inode_new, name_new, flags, ctx):
        if flags & ~(pyfuse3.RENAME_NOREPLACE | pyfuse3.RENAME_EXCHANGE):
            raise FUSEError(errno.EINVAL)
        old, new = self.nodes[parent_inode_old], self.nodes[parent_inode_new]
        node = self._child(old, name_old)
        other = self.nodes[new.entries[name_new]] if name_new in new.entries else None
        if flags & pyfuse3.RENAME_EXCHANGE:
            if other is None:
                raise FUSEError(errno.ENOENT)
            self._take(old, name_old, node)
            self._take(new, name_new, other)
            self._add(new, name_new, node)
            self._add(old, name_old, other)
            return
        if other is not None:
            if flags & pyfuse3.RENAME_NOREPLACE:
                raise FUSEError(errno.EEXIST)
            if other is node:
                return
            if other.entries:
                raise FUSEError(errno.ENOTEMPTY)
            self._remove(new, name_new, other)
        self._take(old, name_old, node)
        self._add(new, name_new, node)
        node.attr.st_ctime_ns = time.time_ns()

    def _take(self, parent: Node, name: bytes, node: Node) -> None:
        del parent.entries[name]
        if stat.S_ISDIR(node.attr.st_mode):
            parent.attr.st_nlink -= 1
        self._touch(parent)

    # ---- attributes ---------------------------------------------------------------------------------------------
    async def getattr(self, inode, ctx):
        return self.nodes[inode].attr

    async def setattr(self, inode, attr, fields, fh, ctx):
        node = self.nodes[inode]
        mine = node.attr
        now = time.time_ns()
        if fields.update_size:
            node.truncate(attr.st_size)
            mine.st_mtime_ns = now
        if fields.update_mode:
            mine.st_mode = stat.S_IFMT(mine.st_mode) | stat.S_IMODE(attr.st_mode)
        if fields.update_uid:
            mine.st_uid = attr.st_uid
        if fields.update_gid:
            mine.st_gid = attr.st_gid
        if fields.update_atime:
            mine.st_atime_ns = attr.st_atime_ns
        if fields.update_mtime:
            mine.st_mtime_ns = attr.st_mtime_ns
        mine.st_ctime_ns = attr.st_ctime_ns if fields.update_ctime else now
        mine.st_blocks = (mine.st_size + 511) >> 9
        return mine

    async def setxattr(self, inode, name, value, ctx):
        if name.startswith(b"system.posix_acl_"):
            raise FUSEError(errno.EOPNOTSUPP)
        self.nodes[inode].xattrs[name] = value

    async def getxattr(self, inode, name, ctx):
        try:
            return self.nodes[inode].xattrs[name]
        except KeyError:
            raise FUSEError(pyfuse3.ENOATTR) from None

    async def listxattr(self, inode, ctx):
        return list(self.nodes[inode].xattrs)

    async def removexattr(self, inode, name, ctx):
        if self.nodes[inode].xattrs.pop(name, None) is None:
            raise FUSEError(pyfuse3.ENOATTR)

    async def statfs(self, ctx):
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = 4096
        data.f_blocks = data.f_bfree = data.f_bavail = 1 << 28
        data.f_files = data.f_ffree = data.f_favail = 1 << 30
        data.f_namemax = 255
        return data

    # ---- files --------------------------------------------------------------------------------------------------
    async def create(self, parent_inode, name, mode, flags, ctx):
        node = self._make(parent_inode, name, stat.S_IFREG | mode, ctx)
        node.opens += 1
        return pyfuse3.FileInfo(fh=node.attr.st_ino, keep_cache=True), node.attr

    async def open(self, inode, flags, ctx):
        node = self.nodes[inode]
        if flags & os.O_TRUNC:
            node.truncate(0)
            self._touch(node)
        node.opens += 1
        return pyfuse3.FileInfo(fh=inode, keep_cache=True)

    async def read(self, fh, off, size):
        return self.nodes[fh].read(off, size)

    async def write(self, fh, off, buf):
        node = self.nodes[fh]
        node.write(off, buf)
        node.attr.st_blocks = (node.attr.st_size + 511) >> 9
        if not self.enable_writeback_cache:
            self._touch(node)
        return len(buf)

    async def flush(self, fh):
        pass

    async def fsync(self, fh, datasync):
        os.pwrite(self.log, self.record, self.log_position)
        self.log_position = (self.log_position + RECORD) % LOG_SIZE

    async def release(self, fh):
        node = self.nodes[fh]
        node.opens -= 1
        self._drop(node)

    # ---- directories --------------------------------------------------------------------------------------------
    async def opendir(self, inode, ctx):
        self.nodes[inode].opens += 1
        handle = self.next_listing
        self.next_listing += 1
        self.listings[handle] = (inode, [])
        return handle

    async def readdir(self, fh, start_id, token):
        inode, entries = self.listings[fh]
        if start_id == 0:
            entries = list(self.nodes[inode].entries.items())
            self.listings[fh] = (inode, entries)
        for position in range(start_id, len(entries)):
            name, ino = entries[position]
            node = self.nodes.get(ino)
            if node is None:
                continue
            if not pyfuse3.readdir_reply(token, name, node.attr, position + 1):
                break
            node.lookups += 1

    async def fsyncdir(self, fh, datasync):
        pass

    async def releasedir(self, fh):
        inode, _ = self.listings.pop(fh)
        node = self.nodes[inode]
        node.opens -= 1
        self._drop(node)


async def serve(ready_fd: int | None) -> None:
    """Answer requests until the file system is unmounted, by SIGTERM or by anybody."""
    async with trio.open_nursery() as nursery:

        async def stop_on_signal() -> None:
            with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                async for _ in signals:
                    pyfuse3.terminate()

        nursery.start_soon(stop_on_signal)
        if ready_fd is not None:
            os.write(ready_fd, b"{}\n")
            os.close(ready_fd)
        await pyfuse3.main()
        nursery.cancel_scope.cancel()


def main() -> None:
    """Mount and serve in the foreground."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mountpoint")
    parser.add_argument("log", help="file for what an fsync makes durable")
    parser.add_argument("--writeback", action="store_true", help="use the kernel's writeback cache")
    parser.add_argument("--ready-fd", type=int)
    arguments = parser.parse_args()
    mountpoint = os.path.abspath(arguments.mountpoint)
    operations = MemoryFs(arguments.log, writeback=arguments.writeback)
    os.chdir("/")
    pyfuse3.init(operations, mountpoint, {*pyfuse3.default_options, "fsname=memfs", "subtype=memfs"})
    try:
        trio.run(serve, arguments.ready_fd)
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    main()
