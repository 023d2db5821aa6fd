"""The rules of names: lookup, create, remove, rename, link, list, attributes. POSIX.1-2017, as ext4 does it.

The kernel has checked permissions (`default_permissions`) and serialises changes within a directory. Every function is
synchronous and follows `core`: first all look-ups (tree.NodeMissing may come out), then the change, then the record.
Not here: file data (`files`), extended attributes (`xattrs`), conversion to FUSE types (`fuse`).
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Final

from fsdecloud import codec, limits
from fsdecloud.driver.clock import now
from fsdecloud.driver.core import Core
from fsdecloud.driver.inodes import LiveInode
from fsdecloud.driver.recorder import Caller
from fsdecloud.driver.xattrs import Xattrs
from fsdecloud.errors import (
    Exists,
    InvalidArgument,
    IsDirectory,
    NameTooLong,
    NotDirectory,
    NotEmpty,
    NotFound,
    NotPermitted,
    TooManyLinks,
)
from fsdecloud.fs.inode import EntryValue, InodeValue, decode_entry
from fsdecloud.fs.keys import (
    ROOT,
    entry_key,
    entry_prefix,
    orphan_key,
    parent_key,
    prefix_end,
    split_entry_key,
)
from fsdecloud.fs.records import Operation
from fsdecloud.types import Inode

_SEARCH_STEP: Final = 1000
"""Entries looked at before others get their turn."""

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
"""renameat2(2)."""


@dataclass(frozen=True, slots=True)
class AttributeChange:
    """What setattr changes; None stays. Times in nanoseconds since 1970."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime: int | None = None
    mtime: int | None = None
    ctime: int | None = None
    """None: now."""
    by_program: bool = True
    """Whether a program asked for it, and not the kernel, which writes back times of its own."""


class Namespace:
    """The directory tree of one volume."""

    def __init__(self, core: Core, xattrs: Xattrs) -> None:
        self._core = core
        self._xattrs = xattrs
        self._secret = core.keys.border_secret
        self.on_named: Callable[[LiveInode], None] = lambda _live: None
        """Called with a file that gets another name, before it has it."""

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

    def lookup_parent(self, ino: int) -> LiveInode | None:
        """Return the parent of a directory; the root's is the root. None: the volume is from a time when it was not kept."""
        if ino == ROOT:
            return self._core.inodes.get(ROOT)
        live = self._core.inodes.get(ino)
        if live.parent:
            return self._core.inodes.get(live.parent)
        data = self._core.overlay.get(parent_key(ino))
        return self._core.inodes.get(int.from_bytes(data, "big")) if data is not None else None

    def search_parent(self, ino: int, after: bytes) -> tuple[LiveInode | None, bytes]:
        """Look through some directory entries past the key `after` for the one that names a directory.

        Returns its parent or None, and the key to go on after, b"" at the end.
        """
        found = after
        for number, (key, data) in enumerate(self._core.overlay.scan(after + b"\0", b"E")):
            if number == _SEARCH_STEP:
                return None, found
            found = key
            if decode_entry(split_entry_key(key)[1], data).inode == ino:
                return self._core.inodes.get(int.from_bytes(key[1:9], "big")), b""
        return None, b""

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

    def upcoming(self, ino: int, after: int, limit: int) -> list[int]:
        """Return the inode numbers of up to `limit` entries with a cookie over `after`."""
        prefix = entry_prefix(ino)
        rows = self._core.overlay.scan(prefix + (after + 1).to_bytes(8, "big"), prefix_end(prefix))
        return [decode_entry(split_entry_key(key)[1], data).inode for key, data in islice(rows, limit)]

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
        """Make a directory. Raises Exists. As many as one likes: past LINK_MAX, ext4 stops counting them, we stop showing."""
        directory = self._new_name(parent, name)
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
        self.on_named(live)
        live.nlink += 1
        moment = live.ctime = now()
        self._put_entry(directory, name, live, moment)
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
        moment = now()
        self._remove_entry(directory, name, moment)
        self._drop_link(live, moment)
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
        moment = now()
        self._remove_entry(directory, name, moment)
        directory.nlink -= 1
        self._drop_link(live, moment)
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
        moment = now()
        self._remove_entry(source, name, moment)
        if live.is_dir:
            source.nlink -= 1
            dest.nlink += 1
        if other is not None:
            if other.is_dir:
                dest.nlink -= 1
            self._drop_link(other, moment)
        self.on_named(live)
        self._put_entry(dest, new_name, live, moment)
        live.ctime = moment
        self._touch(live)
        self._core.record(Operation.RENAME, caller, live, old_path, path2=new_path)
        return other

    # ---- attributes --------------------------------------------------------------------------------------------------
    def set_attributes(self, ino: int, change: AttributeChange, caller: Caller) -> LiveInode:
        """Set what `change` names: chmod(2), chown(2), utimensat(2). An access control list follows the mode."""
        self._core.check_writable()
        live = self._core.inodes.get(ino)
        follow = self._xattrs.mode_change(live, change.mode) if change.mode is not None else None
        if change.mode is not None:
            live.mode = stat.S_IFMT(live.mode) | stat.S_IMODE(change.mode)
        if follow is not None:
            follow()
        if change.uid is not None:
            live.uid = change.uid
        if change.gid is not None:
            live.gid = change.gid
        if change.atime is not None:
            live.atime = _clamped(change.atime)
        if change.mtime is not None:
            live.mtime = _clamped(change.mtime)
        live.ctime = _clamped(change.ctime) if change.ctime is not None else now()
        if change.by_program:
            self._core.record(Operation.ATTRIBUTES, caller, live, self._core.path_of(live))
        self._touch(live)
        return live

    def drop_privileges(self, live: LiveInode, caller: Caller) -> None:
        """Take the set-user-ID bit and, from a program, the set-group-ID bit away: who wrote is not root."""
        if caller.uid and live.mode & (stat.S_ISUID | stat.S_ISGID) and stat.S_ISREG(live.mode):
            live.mode &= ~stat.S_ISUID
            if live.mode & stat.S_IXGRP:
                live.mode &= ~stat.S_ISGID
            self._touch(live)

    # ---- whole trees ---------------------------------------------------------------------------------------------------
    def attach(self, parent: int, name: bytes, live: LiveInode, nlink: int, *, replace: bool) -> LiveInode | None:
        """Give an inode without a name (an orphan) its first one; return what lost that name, if `replace` allows it.

        A directory that loses its name here may have contents: `empty` takes them away when it is reaped. Raises Exists.
        """
        self._core.check_writable()
        self._check_name(name)
        directory = self._directory(parent)
        entry = self._entry(parent, name)
        other = self._core.inodes.get(entry.inode) if entry is not None else None
        if other is not None and not replace:
            raise Exists
        if directory.nlink == 0:
            raise NotFound
        moment = now()
        if other is not None:
            directory.nlink -= other.is_dir
            self._drop_link(other, moment)
        directory.nlink += live.is_dir
        live.nlink = nlink
        self._core.orphans.discard(live.ino)
        self._core.overlay.put(orphan_key(live.ino), None)
        self._put_entry(directory, name, live, moment)
        self._touch(live)
        return other

    def empty(self, ino: int, limit: int) -> list[LiveInode]:
        """Take names out of a directory that has none itself, up to `limit`; return what they named, empty when it is.

        Directories among them become nameless with all they hold.
        """
        directory = self._directory(ino)
        rows = list(islice(self._core.overlay.scan_prefix(entry_prefix(ino)), limit))
        names = [split_entry_key(key)[1] for key, _data in rows]
        found = [self._core.inodes.get(decode_entry(n, data).inode) for n, (_, data) in zip(names, rows, strict=True)]
        moment = now()
        for name, live in zip(names, found, strict=True):
            self._remove_entry(directory, name, moment)
            self._drop_link(live, moment)
        return found

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
        mode, lists = self._xattrs.inherited(directory, mode, caller.umask)
        moment = now()
        gid = caller.gid
        if directory.mode & stat.S_ISGID:  # ext4: the group is inherited, and by directories the bit too
            gid = directory.gid
            if stat.S_ISDIR(mode):
                mode |= stat.S_ISGID
        nlink = 2 if stat.S_ISDIR(mode) else 1
        size = len(target)
        live = self._core.new_inode(
            InodeValue(mode, caller.uid, gid, nlink, size, moment, moment, moment, moment, rdev, 0, 0, target)
        )
        self._xattrs.give(live, lists)
        self._put_entry(directory, name, live, moment)
        self._touch(live)
        return live

    def _put_entry(self, directory: LiveInode, name: bytes, live: LiveInode, moment: int) -> None:
        value = codec.encode(EntryValue(Inode(live.ino), stat.S_IFMT(live.mode)))
        self._core.overlay.put(entry_key(self._secret, directory.ino, name), value)
        if live.is_dir and live.parent != directory.ino:
            self._core.overlay.put(parent_key(live.ino), directory.ino.to_bytes(8, "big"))
        live.parent, live.name = directory.ino, name
        directory.mtime = directory.ctime = moment
        self._touch(directory)

    def _remove_entry(self, directory: LiveInode, name: bytes, moment: int) -> None:
        self._core.overlay.put(entry_key(self._secret, directory.ino, name), None)
        directory.mtime = directory.ctime = moment
        self._touch(directory)

    def _drop_link(self, live: LiveInode, moment: int) -> None:
        """Take a name away. An inode without names is remembered in the tree until it is reaped."""
        live.nlink = 0 if live.is_dir else live.nlink - 1
        live.ctime = moment
        if live.nlink == 0:
            self._core.orphans.add(live.ino)
            self._core.overlay.put(orphan_key(live.ino), b"")
        self._touch(live)

    def _exchange(
        self, source: LiveInode, name: bytes, live: LiveInode, dest: LiveInode, new_name: bytes, other: LiveInode
    ) -> None:
        moment = now()
        for moved in (live, other):
            self.on_named(moved)
        self._put_entry(dest, new_name, live, moment)
        self._put_entry(source, name, other, moment)
        if live.is_dir != other.is_dir and source is not dest:
            delta = 1 if live.is_dir else -1
            source.nlink -= delta
            dest.nlink += delta
        live.ctime = other.ctime = moment
        self._touch(live)
        self._touch(other)

    def _check_empty(self, live: LiveInode) -> None:
        for _pair in self._core.overlay.scan_prefix(entry_prefix(live.ino)):
            raise NotEmpty

    def _touch(self, live: LiveInode) -> None:
        self._core.inodes.touch(live)
        self._core.changed()


def _clamped(nanoseconds: int) -> int:
    """Return a time that a stored inode can hold (the years 1678 to 2554), as ext4 clamps to what it can hold (to 2446)."""
    return min(max(nanoseconds, -(1 << 63)), (1 << 64) - 1)
