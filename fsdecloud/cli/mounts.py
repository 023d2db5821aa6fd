"""What is mounted where, and whether a directory can take a mount.

Looks at /proc/self/mountinfo before it touches a path: a stat below a mount whose driver hangs never returns. Source:
proc_pid_mountinfo(5), umount2(2), fusermount3(1).
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import signal
import stat
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fsdecloud.config import check_text
from fsdecloud.errors import UsageError

MOUNT_FAILED: Final = 32
FILE_SYSTEM: Final = "fuse.decloud"
SOURCE_PREFIX: Final = "decloud:"

PROBE_TIMEOUT: Final = 5.0
HUNG: Final = "it does not answer"

_UMOUNT_FORCE: Final = 1
_UMOUNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8


@dataclass(frozen=True, slots=True)
class Mounted:
    """One line of the mount table."""

    device: str
    """Major and minor number, "0:45"."""
    mountpoint: str
    kind: str
    source: str
    read_only: bool = False

    @property
    def volume(self) -> str:
        """The volume's name, if this is a mount of ours."""
        return self.source.removeprefix(SOURCE_PREFIX)

    @property
    def is_ours(self) -> bool:
        """Whether a decloud driver serves it."""
        return self.kind == FILE_SYSTEM


def read_mounts(table: str | None = None) -> list[Mounted]:
    """Return the mount table, oldest first. `table` replaces /proc/self/mountinfo."""
    if table is None:
        table = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape")
    mounts = []
    for line in table.split("\n"):
        left, dash, right = line.partition(" - ")
        fields, tail = left.split(" "), right.split(" ")
        if dash and len(fields) >= 6 and len(tail) >= 2:
            read_only = "ro" in fields[5].split(",")
            mounts.append(Mounted(fields[2], _unescape(fields[4]), tail[0], _unescape(tail[1]), read_only))
    return mounts


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def mount_at(path: str, mounts: Iterable[Mounted]) -> Mounted | None:
    """Return what is mounted exactly at `path`, the topmost if there are several."""
    return next((m for m in reversed(list(mounts)) if m.mountpoint == path), None)


def mount_below(path: str, mounts: Iterable[Mounted]) -> Mounted | None:
    """Return the mount that `path` (absolute) lies in."""
    best = None
    for mount in mounts:
        base = mount.mountpoint.rstrip("/")
        if (path == mount.mountpoint or path.startswith(base + "/")) and (
            best is None or len(mount.mountpoint) >= len(best.mountpoint)
        ):
            best = mount
    return best


def canonical(path: str, mounts: Iterable[Mounted]) -> str:
    """Return `path` absolute and without symbolic links, touching no mount of ours on the way."""
    absolute = os.path.abspath(path)
    found = mount_below(absolute, mounts)
    if found is not None and found.is_ours:
        return absolute
    return os.path.realpath(path)


def find_our_mount(path: str) -> Mounted:
    """Return the decloud mount that `path` lies in. Raises UsageError when it lies in none."""
    mounts = read_mounts()
    found = mount_below(canonical(path, mounts), mounts)
    if found is None or not found.is_ours:
        raise UsageError(f"{path} is not in a mounted volume: decloud mount NAME DIR mounts one")
    return found


def run_apart(command: list[str], timeout: float | None) -> tuple[int | None, str]:
    """Run a program that touches a mount; return its exit code (None: not in time) and the reason it printed.

    A process that hangs in a request cannot be killed, so it is left behind rather than waited for.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "LC_ALL": "C"},
        cwd="/",
    )
    assert process.stderr is not None
    with process.stderr:
        try:
            code = process.wait(timeout)
        except (subprocess.TimeoutExpired, KeyboardInterrupt) as exc:
            process.kill()
            process.returncode = -signal.SIGKILL
            if isinstance(exc, KeyboardInterrupt):
                raise
            return None, HUNG
        return code, process.stderr.read().decode(errors="replace").strip().rpartition(": ")[2]


def probe(mountpoint: str, timeout: float) -> str:
    """Ask the file system at `mountpoint` from another process; return "" if it answers, else the reason.

    statfs(2) always reaches the driver, while a stat may be answered from the kernel's memory.
    """
    code, reason = run_apart(["stat", "--file-system", "--", mountpoint], timeout)
    return "" if code == 0 else reason or "it cannot be examined"


def is_stale(mountpoint: str) -> bool:
    """Whether the mount's driver is gone: the kernel then answers at once, without asking anybody.

    ECONNABORTED comes for a request that was under way, ECONNREFUSED if the driver ended before its first word to the kernel.
    """
    reasons = (errno.ENOTCONN, errno.ECONNABORTED, errno.ECONNREFUSED)
    return probe(mountpoint, PROBE_TIMEOUT) in map(os.strerror, reasons)


def check_mountpoint(directory: str, *, nonempty: bool = False) -> str:
    """Return the canonical mount point. Raises UsageError with one line on what is wrong with it and what to do.

    A dead mount of ours is not an error here: the caller asks `mount_at` first.
    """
    mounts = read_mounts()
    path = canonical(directory, mounts)
    check_text(path)
    there = mount_at(path, mounts)
    if there is not None and there.kind != "autofs":
        what = f"volume {there.volume}" if there.is_ours else f"{there.kind} from {there.source}"
        raise UsageError(f"{path} is already mounted ({what}): unmount it, or choose another directory", MOUNT_FAILED)
    try:
        info = os.stat(path)
    except FileNotFoundError as exc:
        raise UsageError(f"the mount point {path} does not exist: mkdir -p {path}") from exc
    except OSError as exc:
        raise UsageError(f"the mount point {path} cannot be used: {exc.strerror}") from exc
    if not stat.S_ISDIR(info.st_mode):
        raise UsageError(f"the mount point {path} is not a directory")
    if os.geteuid() != 0:  # fusermount3 asks for the same
        if info.st_mode & stat.S_ISVTX and info.st_uid != os.geteuid():
            raise UsageError(f"the mount point {path} is sticky and not yours: choose a directory that you own")
        if not os.access(path, os.W_OK):
            raise UsageError(f"the mount point {path} must be writable by you")
    if there is None and not nonempty:  # a look into an autofs directory would trigger the mount that we are
        try:
            with os.scandir(path) as entries:
                occupied = next(entries, None)
        except OSError as exc:
            raise UsageError(f"the mount point {path} cannot be read: {exc.strerror}") from exc
        if occupied is not None:
            raise UsageError(f"the mount point {path} is not empty: choose an empty directory, or -o nonempty")
    return path


def unmount(mountpoint: str, *, lazy: bool = False, force: bool = False) -> None:
    """Unmount. Raises OSError: EBUSY while somebody uses it, EPERM, EINVAL when nothing is mounted there."""
    libc = ctypes.CDLL(None, use_errno=True)
    flags = _UMOUNT_NOFOLLOW | (_UMOUNT_DETACH if lazy else 0) | (_UMOUNT_FORCE if force else 0)
    if libc.umount2(os.fsencode(mountpoint), flags) == 0:
        return
    code = ctypes.get_errno()
    if code != errno.EPERM or os.geteuid() == 0:
        raise OSError(code, os.strerror(code), mountpoint)
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", mountpoint]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}, check=False)
    if done.returncode != 0:
        busy = "busy" in done.stderr
        text = done.stderr.strip().rpartition(": ")[2] or "fusermount3 failed"
        raise OSError(errno.EBUSY if busy else errno.EPERM, text, mountpoint)


def users_of(mount: Mounted) -> list[str]:
    """Return "PROGRAM (pid)" of the processes that keep a mount busy, as far as we may see them."""
    major, _, minor = mount.device.partition(":")
    device = os.makedev(int(major), int(minor))
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and _uses(f"/proc/{name}", device, mount.mountpoint):
            try:
                program = Path("/proc", name, "comm").read_text("utf-8", "backslashreplace").strip()
            except OSError:
                continue
            found.append(f"{program} ({name})")
    return found


def _uses(process: str, device: int, mountpoint: str) -> bool:
    """Whether the process holds something of the mount, by the names of its links: nothing in the mount is touched."""
    prefix = mountpoint.rstrip("/") + "/"
    links = [f"{process}/cwd", f"{process}/root", f"{process}/exe"]
    try:
        links += [f"{process}/fd/{number}" for number in os.listdir(f"{process}/fd")]
        maps = Path(process, "maps").read_text("utf-8", "surrogateescape")
    except OSError:
        maps = ""
    for link in links:
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target == mountpoint or target.startswith(prefix):
            return True
    wanted = f" {os.major(device):02x}:{os.minor(device):02x} "
    return wanted in maps
