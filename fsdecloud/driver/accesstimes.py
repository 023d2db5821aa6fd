"""When reading moves an access time, as mount(8) says it: relatime, strictatime, noatime, nodiratime.

The kernel leaves the access times of FUSE inodes alone, so the driver moves them: when a read, a listing or a look at a
link comes, and when a handle that was opened for reading alone is closed without any read having come: its reads were
answered by the kernel's page cache. After each of these the kernel asks for the attributes again, so that a program sees
on the next stat(2) what it would see on a disk. A moved time makes no record and no commit of its own: it goes along with
the next change, or is written at the end.

Called only from the event loop; on the path of every read.
"""

from __future__ import annotations

import os
import time
from typing import Final

from fsdecloud.driver.clock import now
from fsdecloud.driver.core import Core
from fsdecloud.driver.inodes import LiveInode
from fsdecloud.driver.reader import OpenFile
from fsdecloud.fs.inode import moves_atime
from fsdecloud.mountoptions import NOATIME, STRICTATIME, MountOptions

_ACCESS: Final = os.O_ACCMODE | os.O_NOATIME
"""What of open(2)'s flags decides whether a handle's reads count."""


class AccessTimes:
    """The rule of one mount."""

    def __init__(self, core: Core, options: MountOptions) -> None:
        self._core = core
        self._is_off = options.atime == NOATIME
        self._is_strict = options.atime == STRICTATIME
        self._spares_directories = options.nodiratime

    def read(self, handle: OpenFile) -> None:
        """A read came through this handle. One through a handle for writing alone is the kernel's own."""
        handle.was_read = True
        access = handle.flags & _ACCESS
        if access in (os.O_RDONLY, os.O_RDWR):
            self._move(handle.inode)

    def closed(self, handle: OpenFile) -> None:
        """A descriptor of this handle was closed."""
        if handle.flags & _ACCESS == os.O_RDONLY and (self._is_strict or not handle.was_read):
            self._move(handle.inode)

    def looked(self, live: LiveInode) -> None:
        """A directory was listed, or a symbolic link read."""
        if not (self._spares_directories and live.is_dir):
            self._move(live)

    def _move(self, live: LiveInode) -> None:
        if self._is_off:
            return
        if self._core.read_only:
            return
        if self._is_strict or moves_atime(time.time_ns(), live.atime, live.mtime, live.ctime):
            live.atime = now()
            self._core.inodes.touch_lazily(live)
