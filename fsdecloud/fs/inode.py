"""What a file is: the values that stand in a volume's tree for inodes, names and the volume itself.

Pure. Times are nanoseconds since 1970, sizes are bytes. Everything read from a tree is validated here, whoever wrote it
(faults 88 to 91): no name reaches the kernel unchecked, no size is out of range.
"""

from __future__ import annotations

import stat
from typing import Final

import msgspec

from fsdecloud import codec, limits
from fsdecloud.errors import MalformedError
from fsdecloud.types import Inode

_TYPES: Final = frozenset(
    (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFBLK, stat.S_IFCHR)
)

RELATIME_AGE: Final = 24 * 3600 * 10**9
"""Nanoseconds after which an access time moves although nothing changed."""


class InodeValue(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One inode as the tree holds it."""

    mode: int
    """File type and permission bits, as in st_mode."""
    uid: int
    gid: int
    nlink: int
    size: int
    atime: int
    mtime: int
    ctime: int
    btime: int
    rdev: int
    allocated: int
    """Bytes held in chunks: what st_blocks is computed from."""
    xattrs: int
    """How many extended attributes it has."""
    target: bytes
    """A symlink's target."""


class EntryValue(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One directory entry: the inode it names, and that inode's file type (S_IFMT bits)."""

    inode: Inode
    type: int


class Superblock(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a volume knows of itself."""

    version: int
    chunk_size: int
    next_inode: int
    """Inode numbers from here on were never used."""
    files: int
    """Inodes in use."""
    bytes: int
    """Sum of the sizes of all regular files."""


def decode_inode(data: bytes) -> InodeValue:
    """Return a validated inode. Raises MalformedError."""
    value = codec.decode(data, InodeValue)
    kind = stat.S_IFMT(value.mode & 0o177777)  # stat's functions take no negative number
    if kind not in _TYPES or value.mode & ~0o177777:
        raise MalformedError(f"an inode with mode {value.mode:o}")
    if not 0 <= value.size <= limits.MAX_FILE_SIZE or value.nlink < 0 or value.allocated < 0 or value.xattrs < 0:
        raise MalformedError("an inode with a size or count out of range")
    if len(value.target) > limits.SYMLINK_MAX or b"\0" in value.target or (kind == stat.S_IFLNK) != bool(value.target):
        raise MalformedError("an inode with a wrong symlink target")
    if not (0 <= value.uid < 1 << 32 and 0 <= value.gid < 1 << 32 and 0 <= value.rdev < 1 << 64):
        raise MalformedError("an inode with an owner or device out of range")
    return value


def decode_entry(name: bytes, data: bytes) -> EntryValue:
    """Return a validated directory entry. Raises MalformedError for a bad value or a name no directory may hold."""
    value = codec.decode(data, EntryValue)
    if not is_name(name) or value.type not in _TYPES or not 1 < value.inode < 1 << 63:
        raise MalformedError("a directory entry with a bad name, type or inode number")
    return value


def decode_superblock(data: bytes) -> Superblock:
    """Return a validated superblock. Raises MalformedError, also for a version or chunk size we do not know."""
    value = codec.decode(data, Superblock)
    if value.version != 1 or value.chunk_size != limits.CHUNK_SIZE:
        raise MalformedError(
            f"a volume of version {value.version}, {value.chunk_size}-byte chunks, is not readable here"
        )
    if value.next_inode < 2 or value.files < 0 or value.bytes < 0:
        raise MalformedError("a superblock with a count out of range")
    return value


def moves_atime(now: int, atime: int, mtime: int, ctime: int) -> bool:
    """Tell whether reading moves the access time under relatime: it is older than the last change, or than a day (mount(8))."""
    return atime <= mtime or atime <= ctime or now - atime >= RELATIME_AGE


def is_name(name: bytes) -> bool:
    """Tell whether `name` may stand in a directory."""
    return 0 < len(name) <= limits.NAME_MAX and name not in (b".", b"..") and b"/" not in name and b"\0" not in name
