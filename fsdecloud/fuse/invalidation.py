"""Telling the kernel that something changed without it: names and attributes it remembers.

Only from worker threads and never from a handler: the kernel takes the directory's lock for it, which a request that waits
for us may hold (fuse.md, 6). What the kernel does not know is no error.
"""

from __future__ import annotations

import contextlib

import pyfuse3
import trio


async def invalidate(parent: int, name: bytes, replaced: int) -> None:
    """Have the kernel ask again for a name, its directory's attributes, and those of what had the name (0: nothing)."""
    await trio.to_thread.run_sync(_invalidate, parent, name, replaced)


def _invalidate(parent: int, name: bytes, replaced: int) -> None:
    with contextlib.suppress(OSError):
        pyfuse3.invalidate_entry(parent, name)
    for ino in filter(None, (parent, replaced)):
        with contextlib.suppress(OSError):
            pyfuse3.invalidate_inode(ino, attr_only=True)
