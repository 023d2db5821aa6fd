"""Stand-ins that make local disks fail on purpose."""

from __future__ import annotations

import errno
import os


class FailingDisk:
    """`os` for a SegmentStore, whose n-th call fails: once, or from then on. `short` lets it take half first."""

    def __init__(self, fail_at: int, code: int = errno.ENOSPC, *, persistent: bool = False, short: bool = False):
        self.fail_at = fail_at
        self.code = code
        self.persistent = persistent
        self.short = short
        self.calls = 0
        self.healed = False
        self.was_short = False

    @property
    def was_hit(self) -> bool:
        return self.calls >= self.fail_at

    def _fails(self) -> bool:
        self.calls += 1
        if self.healed:
            return False
        return self.calls >= self.fail_at if self.persistent else self.calls == self.fail_at

    def pwritev(self, fd, buffers, offset):
        if self._fails():
            if self.short and not self.was_short:
                self.was_short = True
                data = b"".join(bytes(b) for b in buffers)
                return os.pwrite(fd, data[: len(data) // 2], offset)
            raise OSError(self.code, os.strerror(self.code))
        return os.pwritev(fd, buffers, offset)

    def fdatasync(self, fd):
        if self._fails():
            raise OSError(self.code, os.strerror(self.code))
        os.fdatasync(fd)

    def fsync(self, fd):
        if self._fails():
            raise OSError(self.code, os.strerror(self.code))
        os.fsync(fd)
