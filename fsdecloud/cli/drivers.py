"""Which volumes of this home are mounted, and how a command asks their drivers."""

from __future__ import annotations

import os
from typing import Final

from fsdecloud.cli import client, mounts, parts
from fsdecloud.config import Paths
from fsdecloud.errors import FsdecloudError, UsageError
from fsdecloud.wire.agentapi import Empty
from fsdecloud.wire.controlapi import DriverStatus

PREFIX: Final = "driver-"

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
        if len(running) > 1:
            raise UsageError(f"several volumes are mounted ({', '.join(running)}): name a path in one of them")
        return running[0]
    if path in running and not os.path.lexists(path):
        return path
    volume = mounts.find_our_mount(path).volume
    if volume not in running:
        raise UsageError(
            f"{path} is in volume {volume}, whose driver is not running here: decloud mount mounts it again"
        )
    return volume


def where_mounted(paths: Paths, volume: str) -> str:
    """Return the mount point of a running volume, "an unknown place" if its driver does not say."""
    try:
        return driver_status(paths, volume).mountpoint
    except FsdecloudError:
        return next(
            (m.mountpoint for m in mounts.read_mounts() if m.is_ours and m.volume == volume), "an unknown place"
        )
