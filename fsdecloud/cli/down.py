"""`decloud down`: unmount and stop everything of this home."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Final

import click

from fsdecloud.cli import drivers, mounts, parts, settings
from fsdecloud.cli.output import emit, note
from fsdecloud.cli.run import MOUNT_FAILED
from fsdecloud.config import Paths, find_paths
from fsdecloud.errors import FsdecloudError, UsageError
from fsdecloud.units import format_size
from fsdecloud.wire.controlapi import DriverStatus

SUPERVISOR: Final = "up"
"""Lock of a `decloud up` that watches its parts in the foreground."""

UNMOUNT_TIMEOUT: Final = 60.0
SUPERVISOR_TIMEOUT: Final = 180.0


def stop_volume(paths: Paths, volume: str, say: Callable[[str], None]) -> None:
    """Unmount a volume and wait for its driver to end; nothing that was written is lost.

    The driver detaches a mount in use: programs that still hold it get errors in the end, not wrong data.
    """
    daemon = drivers.PREFIX + volume
    try:
        status = drivers.driver_status(paths, volume)
    except FsdecloudError:
        status = None
    with parts.family_of(paths, [daemon]) as family:
        if status is not None:
            _unmount(paths, status, say)
            if status.staged.bytes:
                say(f"volume {volume}: {format_size(status.staged.bytes)} are safe here and go to the peers next time")
        if status is None or not family.wait(UNMOUNT_TIMEOUT):
            for name in parts.stop_parts(paths, [daemon]):
                say(f"{name} did not end and was killed")
    where = status.mountpoint if status is not None else settings.load_settings(paths).directory
    _clear_stale(volume, where)


def _unmount(paths: Paths, status: DriverStatus, say: Callable[[str], None]) -> None:
    there = mounts.mount_at(status.mountpoint, mounts.read_mounts())
    if there is None or not there.is_ours:
        parts.signal_part(paths, drivers.PREFIX + status.volume)
        return
    try:
        mounts.unmount(status.mountpoint)
        return
    except OSError as exc:
        if exc.errno != errno.EBUSY:
            say(f"{status.mountpoint} cannot be unmounted: {exc.strerror}")
            parts.signal_part(paths, drivers.PREFIX + status.volume)
            return
    users = mounts.users_of(there)
    say(f"{status.mountpoint} is in use by {', '.join(users) or 'somebody'}; it is detached and ends in a few seconds")
    parts.signal_part(paths, drivers.PREFIX + status.volume)


def _clear_stale(volume: str, where: str) -> None:
    """Take the dead mount of a volume away, once its driver has ended on our word."""
    there = mounts.mount_at(where, mounts.read_mounts())
    if there is not None and there.is_ours and there.volume == volume and mounts.is_stale(where):
        mounts.unmount(where, lazy=True)


def stop_everything(paths: Paths, say: Callable[[str], None]) -> int:
    """Stop all volumes, then all peers and the ledger daemon; return how many parts there were."""
    volumes = drivers.mounted_volumes(paths)
    for volume in volumes:
        stop_volume(paths, volume, say)
    if settings.VOLUME not in volumes and settings.settings_file(paths).exists():
        _clear_stale(settings.VOLUME, settings.load_settings(paths).directory)
    daemons = [d for d in parts.running_daemons(paths) if d != SUPERVISOR]
    for name in parts.stop_parts(paths, daemons):
        say(f"{name} did not end and was killed")
    return len(volumes) + len(daemons)


def stop_supervisor(paths: Paths) -> bool:
    """Ask a `decloud up` in another shell to end, and wait for it; return whether there was one. Raises UsageError."""
    if not parts.signal_part(paths, SUPERVISOR):
        return False
    if not parts.wait_gone(paths, SUPERVISOR, SUPERVISOR_TIMEOUT):
        pid = parts.running_pid(paths, SUPERVISOR)
        raise UsageError(f"`decloud up` (pid {pid}) does not end: look at its terminal", MOUNT_FAILED)
    return True


@click.command("down")
def command() -> None:
    """Unmount every volume of this home and stop its peers and its ledger daemon.

    Everything written is safe on this disk; `decloud up` goes on where it was.
    """
    paths = find_paths()
    started = time.monotonic()
    watched = stop_supervisor(paths)
    count = stop_everything(paths, note)
    if not watched and count == 0:
        emit("nothing was running")
    else:
        emit(f"everything is stopped ({time.monotonic() - started:.1f} s)")
