"""The driver's control socket: what `decloud status`, `sync`, `log` and `umount` ask a running driver.

It answers while the mount is stuck: nothing here goes through the kernel's side of the mount.
"""

from __future__ import annotations

import trio

from fsdecloud.config import Paths
from fsdecloud.driver.certifier import Certifier
from fsdecloud.driver.history import History
from fsdecloud.driver.snapshotcontrol import SnapshotControl
from fsdecloud.driver.statemount import StateMount
from fsdecloud.driver.unreadable import Search, UnreadableControl
from fsdecloud.driver.versions import Versions
from fsdecloud.driver.volume import Volume, own_caller
from fsdecloud.errors import UsageError
from fsdecloud.net.unix import Methods, RpcConnection, serve_unix
from fsdecloud.wire.agentapi import Bandwidth, Budget, Empty, WantedRedundancy
from fsdecloud.wire.controlapi import (
    AnchorNumber,
    Certified,
    CertifyRequest,
    DriverStatus,
    GcRequest,
    GcStatus,
    LogQuery,
    SyncRequest,
    VersionQuery,
    WalletQuery,
)

WAITS = ("durable", "stored", "anchored")


async def serve_control(
    volume: Volume, paths: Paths, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve the control socket of a volume until cancelled."""
    history = History(volume)
    snapshots = SnapshotControl(volume)
    unreadable = UnreadableControl(lambda: Search(volume.core, volume.entries, volume.nodes, volume.agent))
    versions = Versions(volume.core, volume.namespace, volume.snapshots)
    certifier = Certifier(volume.core, volume.committer, volume.anchors, volume.snapshots, volume.views, volume.states)

    async def status(_params: Empty) -> DriverStatus:
        return await volume.status()

    async def sync(params: SyncRequest) -> DriverStatus:
        if params.wait not in WAITS:
            raise UsageError(f"cannot wait for {params.wait!r}: use one of {', '.join(WAITS)}")
        await volume.sync(params.wait)
        return await volume.status()

    async def collect(params: GcRequest) -> GcStatus:
        volume.collector.request(dry_run=params.dry_run)
        return volume.collector.status

    async def collecting(_params: Empty) -> GcStatus:
        return volume.collector.status

    async def redundancy(params: WantedRedundancy) -> Empty:
        await volume.set_redundancy(params.redundancy)
        return Empty()

    async def bandwidth(params: Bandwidth) -> Empty:
        await volume.set_bandwidth(params)
        return Empty()

    async def budget(params: Budget) -> Empty:
        await volume.set_budget(params)
        return Empty()

    async def certify(params: CertifyRequest) -> Certified:
        return await certifier.certify(params, own_caller())

    async def unmount(_params: Empty) -> Empty:
        volume.stop_requested.set()
        return Empty()

    def methods(_connection: RpcConnection) -> Methods:
        return {
            "status": (Empty, status),
            "sync": (SyncRequest, sync),
            "log": (LogQuery, history.page),
            "contents": (AnchorNumber, history.contents),
            "versions": (VersionQuery, versions.page),
            "certify": (CertifyRequest, certify),
            "wallet": (WalletQuery, volume.payments.answer_keys),
            "payments": (Empty, volume.payments.answer_list),
            "record_payments": (Empty, volume.payments.answer_record),
            "gc": (GcRequest, collect),
            "gc_status": (Empty, collecting),
            "redundancy": (WantedRedundancy, redundancy),
            "bandwidth": (Bandwidth, bandwidth),
            "budget": (Budget, budget),
            "unmount": (Empty, unmount),
            **snapshots.methods(),
            **unreadable.methods(),
        }, {}

    await serve_unix(paths.socket(f"driver-{volume.setup.document.name}"), methods, task_status=task_status)


async def serve_state_control(
    state: StateMount, paths: Paths, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve the control socket of a snapshot that is mounted alone, until cancelled."""
    unreadable = UnreadableControl(state.search)

    async def status(_params: Empty) -> DriverStatus:
        return await state.status()

    async def sync(_params: SyncRequest) -> DriverStatus:
        return await state.status()  # nothing here is ever on its way

    async def unmount(_params: Empty) -> Empty:
        state.stop_requested.set()
        return Empty()

    def methods(_connection: RpcConnection) -> Methods:
        return {
            "status": (Empty, status),
            "sync": (SyncRequest, sync),
            "unmount": (Empty, unmount),
            **unreadable.methods(),
        }, {}

    await serve_unix(paths.socket(f"driver-{state.setup.served_name}"), methods, task_status=task_status)
