"""Mounting: through libfuse, and by ourselves when access control lists are to count.

libfuse and fusermount3 write why they could not mount to standard error, and pyfuse3 says only that they could not; so what is
written there while they work is looked at.

Only with MS_POSIXACL among its flags does the kernel leave the umask to us (fs/fuse/inode.c), which a default list overrides.
libfuse has no option for that flag, but takes an open /dev/fuse whose mount is made already, under the name /dev/fd/N.
Root alone may mount so. For anybody else libfuse mounts, and the umask counts even where there is a default list.

Called once, before the event loop serves.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import stat
from typing import Final

import pyfuse3

from fsdecloud.errors import UsageError
from fsdecloud.mountoptions import NOATIME, MountOptions

_MS_POSIXACL: Final = 1 << 16
_MS_NOSUID, _MS_NODEV, _MS_NOATIME = 2, 4, 1024
_FLAGS: Final = {"noexec": 8, "sync": 16, "dirsync": 128}
"""linux/mount.h."""

_DETACH: Final = 2
_MOUNT_FAILED: Final = 32
_STDERR: Final = 2
_libc = ctypes.CDLL(None, use_errno=True)


def mount(operations: pyfuse3.Operations, place: str, options: set[str]) -> None:
    """Mount through libfuse at `place`. Raises UsageError with the reason that libfuse or fusermount3 gave."""
    said = os.memfd_create("stderr")
    try:
        kept = os.dup(_STDERR)
        os.dup2(said, _STDERR)
        try:
            pyfuse3.init(operations, place, options)
        finally:
            os.dup2(kept, _STDERR)
            os.close(kept)
            text = os.pread(said, 1 << 16, 0)
            with contextlib.suppress(OSError):
                os.write(_STDERR, text)
    except RuntimeError as exc:
        raise UsageError(_reason(text) or str(exc), _MOUNT_FAILED) from exc
    finally:
        os.close(said)


def _reason(text: bytes) -> str:
    """Return the last line that the programs wrote about mounting, without their names."""
    lines = re.findall(r"^(?:fuse|fusermount3?): *(.+)$", text.decode(errors="replace"), re.MULTILINE)
    return f"cannot mount: {lines[-1]}" if lines else ""


def mount_with_acl(mountpoint: str, fsname: str, options: MountOptions) -> str:
    """Mount, and return what to give to libfuse as the mount point. Raises UsageError with the reason."""
    descriptor = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    flags = _MS_POSIXACL | options.read_only | sum(_FLAGS.get(flag, 0) for flag in options.kernel)
    flags |= 0 if "suid" in options.kernel else _MS_NOSUID
    flags |= 0 if "dev" in options.kernel else _MS_NODEV
    flags |= _MS_NOATIME if options.atime == NOATIME else 0
    data = f"fd={descriptor},rootmode={stat.S_IFMT(os.stat(mountpoint).st_mode):o},user_id=0,group_id=0,default_permissions"
    if options.allow_other or "allow_root" in options.kernel:
        data += ",allow_other"
    target = os.fsencode(mountpoint)
    if _libc.mount(os.fsencode(fsname), target, b"fuse.decloud", ctypes.c_ulong(flags), data.encode()):
        os.close(descriptor)
        number = ctypes.get_errno()
        raise UsageError(f"cannot mount at {mountpoint}: {os.strerror(number)}", _MOUNT_FAILED)
    return f"/dev/fd/{descriptor}"


def unmount_with_acl(mountpoint: str) -> None:
    """Take away what `mount_with_acl` mounted, after a failure: libfuse knows nothing of it."""
    _libc.umount2(os.fsencode(mountpoint), _DETACH)
