"""How an inode becomes pyfuse3's EntryAttributes."""

from __future__ import annotations

from typing import Final

import pyfuse3

from fsdecloud.driver.inodes import LiveInode
from fsdecloud.limits import CHUNK_SIZE, LINK_MAX

DIRECTORY_SIZE: Final = 4096
"""What ext4 shows for a small directory; programs read nothing into it. One that was removed and is still open has 0."""


def attributes_of(live: LiveInode, entry_timeout: float, attr_timeout: float) -> pyfuse3.EntryAttributes:
    """Return the inode's attributes, converted once for each change."""
    known = live.attributes
    if known is not None:
        return known  # type: ignore[return-value]
    attributes = pyfuse3.EntryAttributes()
    attributes.st_ino = live.ino
    attributes.generation = 0
    attributes.entry_timeout = entry_timeout
    attributes.attr_timeout = attr_timeout
    attributes.st_mode = live.mode
    attributes.st_nlink = live.nlink if live.nlink <= LINK_MAX or not live.is_dir else 1  # as ext4's dir_nlink
    attributes.st_uid = live.uid
    attributes.st_gid = live.gid
    attributes.st_rdev = live.rdev
    attributes.st_size = live.size if not live.is_dir else DIRECTORY_SIZE if live.nlink else 0
    attributes.st_blksize = CHUNK_SIZE
    held = live.allocated + sum(chunk.size for chunk in live.chunks.values()) if live.chunks else live.allocated
    attributes.st_blocks = -(-min(held, live.size + 4095) // 512) if not live.is_dir else 8
    attributes.st_atime_ns = live.atime
    attributes.st_mtime_ns = live.mtime
    attributes.st_ctime_ns = live.ctime
    live.attributes = attributes
    return attributes


def negative_entry(entry_timeout: float) -> pyfuse3.EntryAttributes:
    """Return the answer "no such name" that the kernel may remember."""
    attributes = pyfuse3.EntryAttributes()
    attributes.st_ino = 0
    attributes.entry_timeout = entry_timeout
    return attributes
