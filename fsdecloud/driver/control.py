"""The driver's control socket: what `decloud status`, `sync`, `log` and `umount` ask a running driver.

It answers while the mount is stuck: nothing here goes through the kernel's side of the mount.
"""

from __future__ import annotations

import trio

from fsdecloud.config import Paths
from fsdecloud.driver.history import History
from fsdecloud.driver.snapshotcontrol import SnapshotControl
from fsdecloud.driver.volume import Volume
from fsdecloud.errors import UsageError
from fsdecloud.net.unix import Methods, RpcConnection, serve_unix
from fsdecloud.wire.agentapi import Empty
from fsdecloud.wire.controlapi import AnchorNumber, DriverStatus, LogQuery, SyncRequest

WAITS = ("durable", "stored", "anchored")


async def serve_control(
    volume: Volume, paths: Paths, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve the control socket of a volume until cancelled."""
    history = History(volume)
    snapshots = SnapshotControl(volume)

    async def status(_params: Empty) -> DriverStatus:
        return await volume.status()

    async def sync(params: SyncRequest) -> DriverStatus:
        if params.wait not in WAITS:
            raise UsageError(f"cannot wait for {params.wait!r}: use one of {', '.join(WAITS)}")
        await volume.sync(params.wait)
        return await volume.status()

    async def unmount(_params: Empty) -> Empty:
        volume.stop_requested.set()
        return Empty()

    def methods(_connection: RpcConnection) -> Methods:
        return {
            "status": (Empty, status),
            "sync": (SyncRequest, sync),
            "log": (LogQuery, history.page),
            "contents": (AnchorNumber, history.contents),
            "unmount": (Empty, unmount),
            **snapshots.methods(),
        }, {}

    await serve_unix(paths.socket(f"driver-{volume.setup.document.name}"), methods, task_status=task_status)
