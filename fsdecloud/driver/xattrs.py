"""Extended attributes, and the access control lists that are kept as such. xattr(7), acl(5), as ext4 does it.

The kernel decides who may read and set which attribute, and obeys the lists; here they are kept, inherited and made to
agree with the mode bits (`fs.acl`). Every function is synchronous and follows `core`: first all look-ups, then the change,
then the record.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import Final

from fsdecloud import limits
from fsdecloud.driver.clock import now
from fsdecloud.driver.core import Core
from fsdecloud.driver.inodes import LiveInode
from fsdecloud.driver.recorder import Caller
from fsdecloud.errors import AccessDenied, Exists, InvalidArgument, NoAttribute, NotSupported, OutOfRange
from fsdecloud.fs import acl
from fsdecloud.fs.keys import xattr_key, xattr_prefix
from fsdecloud.fs.records import Operation

XATTR_CREATE: Final = os.XATTR_CREATE
XATTR_REPLACE: Final = os.XATTR_REPLACE

_PART: Final = limits.XATTR_INLINE_MAX
_NAMESPACES: Final = (b"user.", b"trusted.", b"security.")
"""xattr(7); the kernel decides who may use which."""

_LABEL: Final = b"security.selinux"


class Xattrs:
    """The extended attributes of one volume; with `acl`, its access control lists too."""

    def __init__(self, core: Core, *, has_acl: bool = False) -> None:
        self._core = core
        self._has_acl = has_acl

    def get(self, ino: int, name: bytes) -> bytes:
        """Return an attribute's value. Raises NoAttribute; NotSupported for a SELinux label where there is none.

        ls(1) asks for the label of every file, one request each, until it hears that the file system knows of none.
        """
        live = self._core.inodes.get(ino)
        self._check_name(name)
        value = self._value(live, name)
        if value is None:
            raise NotSupported if name == _LABEL else NoAttribute
        return value

    def names(self, ino: int, *, is_root: bool) -> list[bytes]:
        """Return the names of all attributes; those in trusted only to root, lists only where they are obeyed."""
        live = self._core.inodes.get(ino)
        if not live.xattrs:
            return []
        rows = self._core.overlay.scan_prefix(xattr_prefix(ino))
        names = [key[9:-3] for key, _value in rows if key.endswith(b"\0\0\0")]
        return [name for name in names if self._is_listed(name, is_root)]

    def _is_listed(self, name: bytes, is_root: bool) -> bool:
        if name in acl.NAMES:
            return self._has_acl
        return is_root or not name.startswith(b"trusted.")

    def set(self, ino: int, name: bytes, value: bytes, flags: int, caller: Caller, *, in_group: bool = True) -> None:
        """Set an attribute; flags as in setxattr(2). Raises Exists, NoAttribute, OutOfRange.

        A list changes the mode bits with it; a caller outside the file's group (not `in_group`) loses its set-group-ID bit.
        """
        self._core.check_writable()
        live = self._core.inodes.get(ino)
        self._check_name(name)
        if len(value) > limits.XATTR_VALUE_MAX:
            raise OutOfRange
        if name in acl.NAMES:
            self._set_acl(live, name, value, in_group)
        else:
            self._plan(live, name, value, flags)()
        self._note(live)
        self._core.record(Operation.SETXATTR, caller, live, self._core.path_of(live), path2=name, amount=len(value))

    def remove(self, ino: int, name: bytes, caller: Caller) -> None:
        """Remove an attribute. Raises NoAttribute; a list that is not there is no error."""
        self._core.check_writable()
        live = self._core.inodes.get(ino)
        self._check_name(name)
        if name in acl.NAMES:
            if self._value(live, name) is None:
                return
            self._plan(live, name, None)()
        else:
            self._plan(live, name, None, XATTR_REPLACE)()
        self._note(live)
        self._core.record(Operation.REMOVEXATTR, caller, live, self._core.path_of(live), path2=name)

    # ---- access control lists ----------------------------------------------------------------------------------------
    def _set_acl(self, live: LiveInode, name: bytes, value: bytes, in_group: bool) -> None:
        wanted = acl.decode_acl(value)
        if name == acl.DEFAULT:
            if not live.is_dir and wanted:
                raise AccessDenied
            self._plan(live, name, acl.encode_acl(wanted) if wanted else None)()
            return
        if stat.S_ISLNK(live.mode):
            raise NotSupported
        kept = acl.encode_acl(wanted) if wanted and not acl.is_minimal(wanted) else None
        self._plan(live, name, kept)()
        if wanted:
            live.mode = acl.mode_of(wanted, live.mode)
            if not in_group:
                live.mode &= ~stat.S_ISGID

    def inherited(self, directory: LiveInode, mode: int, umask: int) -> tuple[int, list[tuple[bytes, bytes]]]:
        """Return the mode of something made in a directory, and the lists it gets. May raise NodeMissing.

        Without lists on this mount the kernel has applied the umask; with them it is for us, unless there is a default list.
        """
        if not self._has_acl or stat.S_ISLNK(mode):
            return mode, []
        raw = self._value(directory, acl.DEFAULT)
        if raw is None:
            return mode & ~umask, []
        access, mode = acl.inherit(acl.decode_acl(raw), mode)
        lists = [(acl.ACCESS, acl.encode_acl(access))] if access is not None else []
        if stat.S_ISDIR(mode):
            lists.append((acl.DEFAULT, raw))
        return mode, lists

    def give(self, live: LiveInode, lists: list[tuple[bytes, bytes]]) -> None:
        """Give a new inode its inherited lists."""
        for name, value in lists:
            self._put(live, name, value, [])
            live.xattrs += 1

    def mode_change(self, live: LiveInode, mode: int) -> Callable[[], None]:
        """Return what makes an inode's access list agree with a new mode. May raise NodeMissing."""
        raw = self._value(live, acl.ACCESS)
        if raw is None:
            return lambda: None
        return self._plan(live, acl.ACCESS, acl.encode_acl(acl.with_mode(acl.decode_acl(raw), mode)))

    # ---- pieces ------------------------------------------------------------------------------------------------------
    def _check_name(self, name: bytes) -> None:
        """Raise NotSupported for a namespace that ext4 does not have either, and for lists where they are not obeyed."""
        if name in acl.NAMES and self._has_acl:
            return
        if not name.startswith(_NAMESPACES):
            raise NotSupported
        if name in _NAMESPACES:
            raise InvalidArgument
        if not 0 < len(name) <= limits.XATTR_NAME_MAX or b"\0" in name:
            raise OutOfRange

    def _value(self, live: LiveInode, name: bytes) -> bytes | None:
        if not live.xattrs:
            return None
        parts = [value for _key, value in self._core.overlay.scan_prefix(xattr_key(live.ino, name + b"\0"))]
        return b"".join(parts) if parts else None

    def _plan(self, live: LiveInode, name: bytes, value: bytes | None, flags: int = 0) -> Callable[[], None]:
        """Look up all that setting (None: removing) an attribute needs; return what does it. Raises Exists, NoAttribute."""
        prefix = xattr_key(live.ino, name + b"\0")
        old = [key for key, _value in self._core.overlay.scan_prefix(prefix)] if live.xattrs else []
        if old and flags & XATTR_CREATE:
            raise Exists
        if not old and flags & XATTR_REPLACE:
            raise NoAttribute

        def change() -> None:
            self._put(live, name, value, old)
            live.xattrs += (value is not None) - bool(old)

        return change

    def _put(self, live: LiveInode, name: bytes, value: bytes | None, old: list[bytes]) -> None:
        """Write a value's rows: a long one takes several, each small enough for a tree node."""
        starts = range(0, max(1, len(value)), _PART) if value is not None else range(0)
        for key in old[len(starts) :]:
            self._core.overlay.put(key, None)
        prefix = xattr_key(live.ino, name + b"\0")
        for index, start in enumerate(starts):
            assert value is not None
            self._core.overlay.put(prefix + index.to_bytes(2, "big"), value[start : start + _PART])

    def _note(self, live: LiveInode) -> None:
        live.ctime = now()
        self._core.inodes.touch(live)
        self._core.changed()
