"""The rules of names: lookup, create, remove, rename, link, list, extended attributes. POSIX.1-2017, as ext4 does it.

The kernel has checked permissions (`default_permissions`) and serialises changes within a directory. Every function is
synchronous and follows `core`: first all look-ups (tree.NodeMissing may come out), then the change, then the record.
Not here: file data (`files`), conversion to FUSE types (`fuse`).
"""

from __future__ import annotations

import os
import stat
import time
from typing import Final

from fsdecloud import codec, limits
from fsdecloud.driver.core import Core
from fsdecloud.driver.inodes import LiveInode
from fsdecloud.driver.recorder import Caller
from fsdecloud.errors import (
    Exists,
    InvalidArgument,
    IsDirectory,
    NameTooLong,
    NoAttribute,
    NotDirectory,
    NotEmpty,
    NotFound,
    NotPermitted,
    NotSupported,
    OutOfRange,
    TooManyLinks,
)
from fsdecloud.fs.inode import EntryValue, InodeValue, decode_entry
from fsdecloud.fs.keys import (
    ROOT,
    entry_key,
    entry_prefix,
    orphan_key,
    prefix_end,
    split_entry_key,
    xattr_key,
    xattr_prefix,
)
from fsdecloud.fs.records import Operation
from fsdecloud.types import Inode

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
"""renameat2(2)."""

XATTR_CREATE: Final = os.XATTR_CREATE
XATTR_REPLACE: Final = os.XATTR_REPLACE

_XATTR_PART: Final = limits.XATTR_INLINE_MAX
_XATTR_NAMESPACES: Final = (b"user.", b"trusted.", b"security.")
"""xattr(7); the kernel decides who may use which."""


class Namespace:
    """The directory tree of one volume."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._secret = core.keys.border_secret

    # ---- look-ups ------------------------------------------------------------------------------------------------
    def lookup(self, parent: int, name: bytes) -> LiveInode:
        """Return the inode with this name. Raises NotFound."""
        directory = self._directory(parent)
        entry = self._entry(parent, name)
        if entry is None:
            raise NotFound
        live = self._core.inodes.get(entry.inode)
        live.parent, live.name = directory.ino, name
        return live

    def lookup_parent(self, ino: int) -> LiveInode:
        """Return the parent of a directory, as far as it was seen; the root's parent is the root."""
        live = self._core.inodes.get(ino)
        return self._core.inodes.get(live.parent or ROOT)

    def listing(self, ino: int, after: int, limit: int) -> list[tuple[int, bytes, LiveInode]]:
        """Return up to `limit` entries with a cookie over `after`, ascending: (cookie, name, inode)."""
        directory = self._directory(ino)
        prefix = entry_prefix(ino)
        found = []
        for key, data in self._core.overlay.scan(prefix + (after + 1).to_bytes(8, "big"), prefix_end(prefix)):
            cookie, name = split_entry_key(key)
            live = self._core.inodes.get(decode_entry(name, data).inode)
            live.parent, live.name = directory.ino, name
            found.append((cookie, name, live))
            if len(found) >= limit:
                break
        return found

    # ---- making ----------------------------------------------------------------------------------------------------
    def create(
        self, parent: int, name: bytes, mode: int, caller: Caller, *, rdev: int = 0, target: bytes = b""
    ) -> LiveInode:
        """Make a file of any type but a directory. Raises Exists."""
        directory = self._new_name(parent, name)
        live = self._make(directory, name, mode, caller, rdev, target)
        kind = stat.S_IFMT(mode)
        operation = {stat.S_IFREG: Operation.CREATE, stat.S_IFLNK: Operation.SYMLINK}.get(kind, Operation.MKNOD)
        self._core.record(operation, caller, live, self._core.child_path(directory, name), path2=target)
        return live

    def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> LiveInode:
        """Make a symbolic link. Raises Exists, NameTooLong."""
        if not target:
            raise NotFound
        if len(target) > limits.SYMLINK_MAX:
            raise NameTooLong
        return self.create(parent, name, stat.S_IFLNK | 0o777, caller, target=target)

    def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> LiveInode:
        """Make a directory. Raises Exists, TooManyLinks."""
        directory = self._new_name(parent, name)
        if directory.nlink >= limits.LINK_MAX:
            raise TooManyLinks
        live = self._make(directory, name, stat.S_IFDIR | stat.S_IMODE(mode), caller, 0, b"")
        directory.nlink += 1
        self._core.record(Operation.MKDIR, caller, live, self._core.child_path(directory, name))
        return live

    def link(self, ino: int, parent: int, name: bytes, caller: Caller) -> LiveInode:
        """Give a file another name. Raises Exists, NotPermitted for a directory, TooManyLinks."""
        live = self._core.inodes.get(ino)
        directory = self._new_name(parent, name)
        if live.is_dir:
            raise NotPermitted
        if live.nlink == 0:
            raise NotFound
        if live.nlink >= limits.LINK_MAX:
            raise TooManyLinks
        old = self._core.path_of(live)
        live.nlink += 1
        live.ctime = time.time_ns()
        self._put_entry(directory, name, live)
        self._touch(live)
        self._core.record(Operation.LINK, caller, live, old, path2=self._core.child_path(directory, name))
        return live

    # ---- removing ----------------------------------------------------------------------------------------------------
    def unlink(self, parent: int, name: bytes, caller: Caller) -> LiveInode:
        """Remove a name that is not a directory's. The caller reaps the inode if it was the last."""
        self._core.check_writable()
        directory = self._directory(parent)
        live = self._existing(parent, name)
        if live.is_dir:
            raise IsDirectory
        path = self._core.child_path(directory, name)
        self._remove_entry(directory, name)
        self._drop_link(live)
        self._core.record(Operation.REMOVE, caller, live, path)
        return live

    def rmdir(self, parent: int, name: bytes, caller: Caller) -> LiveInode:
        """Remove an empty directory."""
        self._core.check_writable()
        directory = self._directory(parent)
        live = self._existing(parent, name)
        if not live.is_dir:
            raise NotDirectory
        self._check_empty(live)
        path = self._core.child_path(directory, name)
        self._remove_entry(directory, name)
        directory.nlink -= 1
        self._drop_link(live)
        self._core.record(Operation.RMDIR, caller, live, path)
        return live

    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, caller: Caller
    ) -> LiveInode | None:
        """Move a name, over anything POSIX allows; return the inode that lost its last name, if any."""
        self._core.check_writable()
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE) or flags == RENAME_NOREPLACE | RENAME_EXCHANGE:
            raise InvalidArgument
        source, dest = self._directory(parent), self._directory(new_parent)
        self._check_name(new_name)
        live = self._existing(parent, name)
        entry = self._entry(new_parent, new_name)
        other = self._core.inodes.get(entry.inode) if entry is not None else None
        old_path, new_path = self._core.child_path(source, name), self._core.child_path(dest, new_name)
        if flags & RENAME_EXCHANGE:
            if other is None:
                raise NotFound
            self._exchange(source, name, live, dest, new_name, other)
            self._core.record(Operation.EXCHANGE, caller, live, old_path, path2=new_path)
            return None
        if other is not None:
            if flags & RENAME_NOREPLACE:
                raise Exists
            if other is live:
                return None  # two names of one file: POSIX says do nothing
            if live.is_dir and not other.is_dir:
                raise NotDirectory
            if other.is_dir and not live.is_dir:
                raise IsDirectory
            if other.is_dir:
                self._check_empty(other)
        elif live.is_dir and source is not dest and dest.nlink >= limits.LINK_MAX:
            raise TooManyLinks
        self._remove_entry(source, name)
        if live.is_dir:
            source.nlink -= 1
            dest.nlink += 1
        if other is not None:
            if other.is_dir:
                dest.nlink -= 1
            self._drop_link(other)
        self._put_entry(dest, new_name, live)
        live.ctime = time.time_ns()
        self._touch(live)
        self._core.record(Operation.RENAME, caller, live, old_path, path2=new_path)
        return other

    # ---- extended attributes -----------------------------------------------------------------------------------------
    def get_xattr(self, ino: int, name: bytes) -> bytes:
        """Return an attribute's value. Raises NoAttribute."""
        live = self._core.inodes.get(ino)
        _check_xattr_name(name)
        if not live.xattrs:
            raise NoAttribute
        parts = [value for _key, value in self._core.overlay.scan_prefix(xattr_key(ino, name + b"\0"))]
        if not parts:
            raise NoAttribute
        return b"".join(parts)

    def list_xattrs(self, ino: int) -> list[bytes]:
        """Return the names of all attributes."""
        live = self._core.inodes.get(ino)
        if not live.xattrs:
            return []
        return [
            key[9:-3] for key, _value in self._core.overlay.scan_prefix(xattr_prefix(ino)) if key.endswith(b"\0\0\0")
        ]

    def set_xattr(self, ino: int, name: bytes, value: bytes, flags: int, caller: Caller) -> None:
        """Set an attribute; flags as in setxattr(2). A long value takes several rows, each small enough for a tree node."""
        self._core.check_writable()
        live = self._core.inodes.get(ino)
        _check_xattr_name(name)
        if len(value) > limits.XATTR_VALUE_MAX:
            raise OutOfRange
        prefix = xattr_key(ino, name + b"\0")
        old = [key for key, _value in self._core.overlay.scan_prefix(prefix)]
        if old and flags & XATTR_CREATE:
            raise Exists
        if not old and flags & XATTR_REPLACE:
            raise NoAttribute
        parts = [value[start : start + _XATTR_PART] for start in range(0, max(1, len(value)), _XATTR_PART)]
        for key in old[len(parts) :]:
            self._core.overlay.put(key, None)
        for index, part in enumerate(parts):
            self._core.overlay.put(prefix + index.to_bytes(2, "big"), part)
        live.xattrs += not old
        live.ctime = time.time_ns()
        self._touch(live)
        self._core.record(Operation.SETXATTR, caller, live, self._core.path_of(live), path2=name, amount=len(value))

    def remove_xattr(self, ino: int, name: bytes, caller: Caller) -> None:
        """Remove an attribute. Raises NoAttribute."""
        self._core.check_writable()
        live = self._core.inodes.get(ino)
        _check_xattr_name(name)
        old = [key for key, _value in self._core.overlay.scan_prefix(xattr_key(ino, name + b"\0"))]
        if not old:
            raise NoAttribute
        for key in old:
            self._core.overlay.put(key, None)
        live.xattrs -= 1
        live.ctime = time.time_ns()
        self._touch(live)
        self._core.record(Operation.REMOVEXATTR, caller, live, self._core.path_of(live), path2=name)

    # ---- pieces ------------------------------------------------------------------------------------------------------
    def _directory(self, ino: int) -> LiveInode:
        live = self._core.inodes.get(ino)
        if not live.is_dir:
            raise NotDirectory
        return live

    def _check_name(self, name: bytes) -> None:
        if len(name) > limits.NAME_MAX:
            raise NameTooLong
        if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
            raise InvalidArgument

    def _entry(self, parent: int, name: bytes) -> EntryValue | None:
        if len(name) > limits.NAME_MAX:
            raise NameTooLong
        data = self._core.overlay.get(entry_key(self._secret, parent, name))
        return decode_entry(name, data) if data is not None else None

    def _existing(self, parent: int, name: bytes) -> LiveInode:
        entry = self._entry(parent, name)
        if entry is None:
            raise NotFound
        return self._core.inodes.get(entry.inode)

    def _new_name(self, parent: int, name: bytes) -> LiveInode:
        """Return the directory in which `name` is free."""
        self._core.check_writable()
        self._check_name(name)
        directory = self._directory(parent)
        if self._entry(parent, name) is not None:
            raise Exists
        if directory.nlink == 0:
            raise NotFound  # a removed directory that is still somebody's cwd
        return directory

    def _make(
        self, directory: LiveInode, name: bytes, mode: int, caller: Caller, rdev: int, target: bytes
    ) -> LiveInode:
        now = time.time_ns()
        gid = caller.gid
        if directory.mode & stat.S_ISGID:  # ext4: the group is inherited, and by directories the bit too
            gid = directory.gid
            if stat.S_ISDIR(mode):
                mode |= stat.S_ISGID
        nlink = 2 if stat.S_ISDIR(mode) else 1
        size = len(target)
        live = self._core.new_inode(
            InodeValue(mode, caller.uid, gid, nlink, size, now, now, now, now, rdev, 0, 0, target)
        )
        self._put_entry(directory, name, live)
        self._touch(live)
        return live

    def _put_entry(self, directory: LiveInode, name: bytes, live: LiveInode) -> None:
        value = codec.encode(EntryValue(Inode(live.ino), stat.S_IFMT(live.mode)))
        self._core.overlay.put(entry_key(self._secret, directory.ino, name), value)
        live.parent, live.name = directory.ino, name
        directory.mtime = directory.ctime = time.time_ns()
        self._touch(directory)

    def _remove_entry(self, directory: LiveInode, name: bytes) -> None:
        self._core.overlay.put(entry_key(self._secret, directory.ino, name), None)
        directory.mtime = directory.ctime = time.time_ns()
        self._touch(directory)

    def _drop_link(self, live: LiveInode) -> None:
        """Take a name away. An inode without names is remembered in the tree until it is reaped."""
        live.nlink = 0 if live.is_dir else live.nlink - 1
        live.ctime = time.time_ns()
        if live.nlink == 0:
            self._core.overlay.put(orphan_key(live.ino), b"")
        self._touch(live)

    def _exchange(
        self, source: LiveInode, name: bytes, live: LiveInode, dest: LiveInode, new_name: bytes, other: LiveInode
    ) -> None:
        self._put_entry(dest, new_name, live)
        self._put_entry(source, name, other)
        if live.is_dir != other.is_dir and source is not dest:
            delta = 1 if live.is_dir else -1
            source.nlink -= delta
            dest.nlink += delta
        live.ctime = other.ctime = time.time_ns()
        self._touch(live)
        self._touch(other)

    def _check_empty(self, live: LiveInode) -> None:
        for _pair in self._core.overlay.scan_prefix(entry_prefix(live.ino)):
            raise NotEmpty

    def _touch(self, live: LiveInode) -> None:
        self._core.inodes.touch(live)
        self._core.changed()


def _check_xattr_name(name: bytes) -> None:
    """Raise NotSupported for a namespace that ext4 does not have either, and for POSIX ACLs, which need the kernel's help."""
    if not name.startswith(_XATTR_NAMESPACES):
        raise NotSupported
    if name in _XATTR_NAMESPACES:
        raise InvalidArgument
    if not 0 < len(name) <= limits.XATTR_NAME_MAX or b"\0" in name:
        raise OutOfRange
