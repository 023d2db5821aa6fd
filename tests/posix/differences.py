"""Where the mount answers otherwise than ext4, what both answer, and why: the only place for such things.

Each is a limit of FUSE in Linux or of pyfuse3 (fuse.md), not of the driver.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Difference:
    """What one case expects of each target."""

    ext4: Any
    decloud: Any
    reason: str


class _Success:
    """Stands for any result but an errno."""

    def __repr__(self) -> str:
        return "success"


OK: Final = _Success()

TABLE: Final[dict[str, Difference]] = {
    "O_TMPFILE": Difference(OK, "EOPNOTSUPP", "pyfuse3 has no tmpfile handler"),
    "S_ISGID of strangers": Difference(
        (0o6000,),
        (0o4000, 0o6000),
        "fuse_setattr clears S_ISGID before a write only if the group may execute; ext4 also for callers outside the group",
    ),
    "truncate to the same size": Difference(
        "mc",
        "",
        "with the writeback cache fuse_do_setattr keeps the times if the size stays (POSIX asks for them only if it changes)",
    ),
    "times of a file only opened for reading": Difference(
        "", {"", "a"}, "reads from the page cache never reach the driver: being opened for reading is what it can see"
    ),
    "opened for reading": Difference(True, {True, False}, "as above"),
    "O_NOATIME of a directory": Difference(True, {True, False}, "pyfuse3's opendir is not told the flags"),
    "large attributes": Difference("ENOSPC", OK, "ext4 keeps all attributes of a file in one block"),
    "unaligned O_DIRECT": Difference(22, True, "the FUSE transport needs no alignment"),
    "fallocate": Difference(OK, "EOPNOTSUPP", "pyfuse3 has no fallocate handler (fuse.md)"),
    "fallocate past the limit": Difference("EFBIG", {"EFBIG", "EOPNOTSUPP"}, "pyfuse3 has no fallocate handler"),
    "SEEK_DATA in a hole": Difference(4 << 20, 0, "pyfuse3 has no lseek handler: the kernel sees no holes (fuse.md)"),
    "SEEK_HOLE in a hole": Difference(0, 8 << 20, "pyfuse3 has no lseek handler"),
    "SEEK_HOLE after data": Difference((4 << 20) + 4096, 8 << 20, "pyfuse3 has no lseek handler"),
    "SEEK_DATA behind all data": Difference("ENXIO", 5 << 20, "pyfuse3 has no lseek handler"),
    "a write behind the largest file": Difference(
        "EFBIG", 1, "FUSE tells the kernel no largest size: its cache takes the write"
    ),
    "fsync after it": Difference(OK, {"EFBIG", "EIO"}, "as above: the driver refuses when the kernel writes back"),
    "whiteout": Difference(OK, "EINVAL", "the driver has no use for overlayfs' whiteouts (fuse.md, 24)"),
}


def differs(name: str) -> Difference:
    """Return an entry of the table."""
    return TABLE[name]
