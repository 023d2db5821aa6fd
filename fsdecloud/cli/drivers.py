"""Which volumes of this home are mounted, and how a command asks their drivers."""

from __future__ import annotations

import os
import time
from typing import Final

from fsdecloud.cli import client, mounts, parts
from fsdecloud.config import Paths
from fsdecloud.errors import FsdecloudError, UsageError
from fsdecloud.wire.agentapi import Empty
from fsdecloud.wire.controlapi import DriverStatus

PREFIX: Final = "driver-"

UNKNOWN_PLACE: Final = "an unknown place"

SETTLE_TIMEOUT: Final = 20.0

STATUS_TIMEOUT: Final = 5.0
"""A driver answers its control socket at once, even while the mount is stuck."""


def mounted_volumes(paths: Paths) -> list[str]:
    """Return the names of the volumes that a driver of this home serves."""
    return [d.removeprefix(PREFIX) for d in parts.running_daemons(paths) if d.startswith(PREFIX)]


def driver_status(paths: Paths, volume: str) -> DriverStatus:
    """Ask the driver of a volume. Raises RemoteError when it does not answer."""
    return client.call(
        paths.socket(PREFIX + volume), "status", Empty(), DriverStatus, timeout=STATUS_TIMEOUT, error=UnansweredDriver
    )


class UnansweredDriver(FsdecloudError):
    """A volume's driver runs or should run, and does not answer."""


def volume_of_path(paths: Paths, path: str | None) -> str:
    """Return the volume that `path` lies in, or the only mounted one without a path. Raises UsageError otherwise.

    A path that names a volume of this home is taken as that volume.
    """
    running = mounted_volumes(paths)
    if path is None:
        if not running:
            raise UsageError("no volume is mounted: decloud up, or decloud mount NAME DIR")
        running = [volume for volume in running if "@" not in volume] or running  # snapshots mounted alone come last
        if len(running) > 1:
            raise UsageError(f"several volumes are mounted ({', '.join(running)}): name a path in one of them")
        return running[0]
    if path in running and not os.path.lexists(path):
        return path
    found = mounts.find_our_mount(path)
    volume = found.volume
    elsewhere = where_mounted(paths, volume) if volume in running else ""
    if elsewhere not in ("", UNKNOWN_PLACE, found.mountpoint):
        raise UsageError(f"{path} is in a volume of another home; this one's {volume} is mounted at {elsewhere}")
    if volume not in running:
        raise UsageError(
            f"{path} is in volume {volume}, whose driver is not running here: decloud mount mounts it again"
        )
    return volume


def place_of(paths: Paths, path: str) -> tuple[str, bytes]:
    """Return the volume that `path` lies in, and its path from the volume's root. The mount is not touched.

    There need be nothing at `path` now. Raises UsageError when it is in no volume that this home serves.
    """
    volume = volume_of_path(paths, path)
    found = mounts.find_our_mount(path)  # also for a path that is called like a volume
    inside = mounts.canonical(path, mounts.read_mounts()).removeprefix(found.mountpoint.rstrip("/"))
    return volume, os.fsencode("/" + inside.strip("/"))


def is_mounted(paths: Paths, volume: str) -> bool:
    """Whether a driver of this home serves the volume; waits for one that is just ending or starting.

    A driver outlives its mount by the time it needs to make the last changes durable, and umount(8) does not wait for it.
    """
    deadline = time.monotonic() + SETTLE_TIMEOUT
    while parts.running_pid(paths, PREFIX + volume) is not None:
        if _serves(paths, volume) or time.monotonic() >= deadline:
            return True
        parts.wait_gone(paths, PREFIX + volume, 0.2)
    return False


def _serves(paths: Paths, volume: str) -> bool:
    try:
        mountpoint = driver_status(paths, volume).mountpoint
    except FsdecloudError:
        return False
    there = mounts.mount_at(mountpoint, mounts.read_mounts())
    return there is not None and there.is_ours and there.volume == volume


def describe_running(paths: Paths, volume: str) -> str:
    """Say why a volume whose driver runs cannot be mounted."""
    place = where_mounted(paths, volume)
    pid = parts.running_pid(paths, PREFIX + volume)
    holder = f" (process {pid})" if pid else ""
    there = mounts.mount_at(place, mounts.read_mounts())
    if place != UNKNOWN_PLACE and (there is None or there.volume != volume):
        return f"volume {volume} is detached from {place}, but programs still have files of it open: close them first"
    return f"volume {volume} is already mounted at {place}{holder}"


def where_mounted(paths: Paths, volume: str) -> str:
    """Return the mount point of a running volume, UNKNOWN_PLACE if its driver does not say."""
    try:
        return driver_status(paths, volume).mountpoint
    except FsdecloudError:
        return UNKNOWN_PLACE
