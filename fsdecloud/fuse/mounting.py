"""The mount of a volume whose access control lists count: made here, because libfuse cannot ask for it.

Only with MS_POSIXACL among its flags does the kernel leave the umask to us (fs/fuse/inode.c), which a default list overrides.
libfuse has no option for that flag, but takes an open /dev/fuse whose mount is made already, under the name /dev/fd/N.
Root alone may mount so. For anybody else libfuse mounts, and the umask counts even where there is a default list.

Called once, before the event loop serves.
"""

from __future__ import annotations

import ctypes
import os
import stat
from typing import Final

from fsdecloud.mountoptions import NOATIME, MountOptions

_MS_POSIXACL: Final = 1 << 16
_MS_NOSUID, _MS_NODEV, _MS_NOATIME = 2, 4, 1024
_FLAGS: Final = {"noexec": 8, "sync": 16, "dirsync": 128}
"""linux/mount.h."""

_DETACH: Final = 2
_libc = ctypes.CDLL(None, use_errno=True)


def mount_with_acl(mountpoint: str, fsname: str, options: MountOptions) -> str:
    """Mount, and return what to give to libfuse as the mount point. Raises OSError."""
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
        raise OSError(number, f"cannot mount: {os.strerror(number)}", mountpoint)
    return f"/dev/fd/{descriptor}"


def unmount_with_acl(mountpoint: str) -> None:
    """Take away what `mount_with_acl` mounted, after a failure: libfuse knows nothing of it."""
    _libc.umount2(os.fsencode(mountpoint), _DETACH)
