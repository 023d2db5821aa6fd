"""POSIX access control lists: the form in which the kernel hands them over, and what they have to do with mode bits.

Pure. Source: acl(5), POSIX.1e draft 17, and linux/posix_acl_xattr.h: a 32-bit version 2, then entries of 16-bit tag, 16-bit
permissions and 32-bit id, little-endian, in the order of their tags. Who may do what is the kernel's decision; here is only
what a file system has to keep right: lists and mode bits agree, and what is made in a directory inherits its default list.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from fsdecloud.errors import InvalidArgument

ACCESS: Final = b"system.posix_acl_access"
DEFAULT: Final = b"system.posix_acl_default"
NAMES: Final = frozenset((ACCESS, DEFAULT))
"""The extended attributes that lists are read and set by."""

USER_OBJ: Final = 0x01
USER: Final = 0x02
GROUP_OBJ: Final = 0x04
GROUP: Final = 0x08
MASK: Final = 0x10
OTHER: Final = 0x20

NO_ID: Final = 0xFFFFFFFF
"""The id of an entry that has none: every tag but USER and GROUP."""

_VERSION: Final = 2
_HEADER: Final = struct.Struct("<I")
_ENTRY: Final = struct.Struct("<HHI")
_REQUIRED: Final = (USER_OBJ, GROUP_OBJ, OTHER)


@dataclass(frozen=True, slots=True)
class Entry:
    """What one user, group or class may do: `perm` is the sum of 4 (read), 2 (write), 1 (execute)."""

    tag: int
    perm: int
    id: int = NO_ID


Acl: TypeAlias = tuple[Entry, ...]


def decode_acl(data: bytes) -> Acl:
    """Return a valid list, or an empty one (which stands for none). Raises InvalidArgument for anything else."""
    if len(data) < _HEADER.size or _HEADER.unpack_from(data)[0] != _VERSION or (len(data) - 4) % _ENTRY.size:
        raise InvalidArgument("not an access control list of version 2")
    acl = tuple(Entry(*fields) for fields in _ENTRY.iter_unpack(data[_HEADER.size :]))
    if acl:
        _check(acl)
    return acl


def encode_acl(acl: Acl) -> bytes:
    """Return the form of the kernel."""
    return _HEADER.pack(_VERSION) + b"".join(_ENTRY.pack(entry.tag, entry.perm, entry.id) for entry in acl)


def _check(acl: Acl) -> None:
    tags = [entry.tag for entry in acl]
    if tags != sorted(tags) or any(tags.count(tag) != 1 for tag in _REQUIRED) or tags.count(MASK) > 1:
        raise InvalidArgument("an access control list out of order, or without one of its three classes")
    for entry in acl:
        if entry.tag not in (USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER) or entry.perm & ~7:
            raise InvalidArgument("an entry of an access control list with an unknown tag or permission")
        if entry.tag in (USER, GROUP) and entry.id == NO_ID:
            raise InvalidArgument("an entry of an access control list for nobody")
    if (USER in tags or GROUP in tags) and MASK not in tags:
        raise InvalidArgument("an access control list that names somebody has a mask")


def is_minimal(acl: Acl) -> bool:
    """Tell whether mode bits say all that the list says: no named user or group, no mask."""
    return all(entry.tag in _REQUIRED for entry in acl)


def mode_of(acl: Acl, mode: int) -> int:
    """Return `mode` with the permission bits that go with the list: the group's are the mask, where there is one."""
    perms = {entry.tag: entry.perm for entry in acl if entry.tag not in (USER, GROUP)}
    bits = perms[USER_OBJ] << 6 | perms.get(MASK, perms[GROUP_OBJ]) << 3 | perms[OTHER]
    return mode & ~0o777 | bits


def with_mode(acl: Acl, mode: int) -> Acl:
    """Return the list after chmod(2): the owner's, the others' and the mask's (else the owning group's) entries follow."""
    group = MASK if any(entry.tag == MASK for entry in acl) else GROUP_OBJ
    perms = {USER_OBJ: mode >> 6 & 7, group: mode >> 3 & 7, OTHER: mode & 7}
    return tuple(replace(entry, perm=perms.get(entry.tag, entry.perm)) for entry in acl)


def inherit(default: Acl, mode: int) -> tuple[Acl | None, int]:
    """Return the access list and the mode of what is made with `mode` in a directory with this default list.

    The list is None where the mode says it all. The umask has no part in this.
    """
    group = MASK if any(entry.tag == MASK for entry in default) else GROUP_OBJ
    wanted = {USER_OBJ: mode >> 6 & 7, group: mode >> 3 & 7, OTHER: mode & 7}
    acl = tuple(replace(entry, perm=entry.perm & wanted.get(entry.tag, 7)) for entry in default)
    return None if is_minimal(acl) else acl, mode_of(acl, mode)
