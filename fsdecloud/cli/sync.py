"""`decloud sync PATH`: wait until what was written is durable, stored or anchored."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Final

import click

from fsdecloud.cli import client, drivers, mounts
from fsdecloud.cli.output import Progress, emit, emit_json
from fsdecloud.cli.run import PENDING, SYSTEM
from fsdecloud.config import find_paths
from fsdecloud.errors import UsageError
from fsdecloud.units import format_size, parse_duration
from fsdecloud.wire.agentapi import Empty
from fsdecloud.wire.controlapi import DriverStatus, SyncRequest

WRITE_BACK_TIMEOUT: Final = 10.0
"""How long to wait for requests that the kernel has under way; new ones of busy programs are not ours to wait for."""

_LEVELS: Final = ("durable", "stored", "anchored")


def write_back(mount: mounts.Mounted, timeout: float | None) -> None:
    """Make the kernel hand its dirty pages of the mount to the driver.

    syncfs(2) starts them all; a FUSE mount does not make it wait (AS_WRITEBACK_MAY_DEADLOCK), so the requests on their
    way are waited for by the kernel's own count of them.
    """
    try:
        done = subprocess.run(["sync", "-f", mount.mountpoint], timeout=timeout, capture_output=True, check=False)
    except subprocess.TimeoutExpired as exc:
        raise UsageError(f"the kernel still writes to {mount.mountpoint}", PENDING) from exc
    if done.returncode != 0:
        reason = done.stderr.decode(errors="replace").strip().rpartition(": ")[2]
        raise UsageError(f"cannot sync {mount.mountpoint}: {reason}", SYSTEM)
    count = Path("/sys/fs/fuse/connections", mount.device.partition(":")[2], "waiting")
    deadline = time.monotonic() + min(WRITE_BACK_TIMEOUT, timeout or WRITE_BACK_TIMEOUT)
    try:
        while count.read_text().strip() not in ("", "0") and time.monotonic() < deadline:
            time.sleep(0.01)
    except OSError:
        return  # not readable by us; the driver takes requests in order


def reached(status: DriverStatus, level: str) -> int:
    """Return the sequence number up to which everything is at `level`."""
    numbers = {
        "durable": status.durable_sequence,
        "stored": status.stored_sequence,
        "anchored": status.anchored_sequence,
    }
    return numbers[level]


def describe(status: DriverStatus, level: str) -> str:
    """Return one line on what is still on its way."""
    words = [f"dirty {format_size(status.dirty.bytes)}", f"staged {format_size(status.staged.bytes)}"]
    words.append(f"stored {format_size(status.stored.bytes)}")
    if level == "anchored":
        words.append(f"block {status.ledger_height}")
    down = sum(1 for peer in status.peers if peer.state != "up")
    if down:
        words.append(f"{down} of {len(status.peers)} peers not up")
    return f"{status.volume}: waiting until {level}: {', '.join(words)}"


@click.command("sync")
@click.argument("path", metavar="PATH")
@click.option(
    "--wait",
    "level",
    type=click.Choice(_LEVELS),
    default="durable",
    show_default=True,
    help="How far: on this disk (D1), with receipts from all peers (D2), or anchored in the ledger (D3).",
)
@click.option("--timeout", metavar="TIME", help="Give up waiting after this (exit code 3); nothing is undone.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(path: str, level: str, timeout: str | None, as_json: bool) -> int:
    """Wait until everything written so far to the volume of PATH is durable, stored or anchored."""
    limit = None if timeout is None else parse_duration(timeout, "--timeout")
    paths = find_paths()
    volume = drivers.volume_of_path(paths, path)
    started = time.monotonic()
    status = drivers.driver_status(paths, volume)
    mount = mounts.mount_at(status.mountpoint, mounts.read_mounts())
    if mount is not None and mount.is_ours:
        write_back(mount, limit)
    progress = Progress()
    with client.Client(paths.socket(drivers.PREFIX + volume), error=drivers.UnansweredDriver) as link:
        status = link.call("sync", SyncRequest(level), DriverStatus, timeout=limit or 3600.0)
        target = status.written_sequence
        pause = 0.02
        while reached(status, level) < target:
            if limit is not None and time.monotonic() - started >= limit:
                progress.end()
                raise UsageError(
                    f"{volume} is not {level} after {limit:g} s; it goes on by itself{_reason(status)}", PENDING
                )
            progress.show(describe(status, level))
            time.sleep(pause)
            pause = min(1.0, pause * 1.5)
            status = link.call("status", Empty(), DriverStatus)
        progress.end()
    seconds = time.monotonic() - started
    if as_json:
        emit_json({
            "volume": volume,
            "level": level,
            "sequence": target,
            "seconds": round(seconds, 3),
            "anchor_height": status.anchor_height if status.anchor_height >= 0 else None,
        })  # fmt: skip
    else:
        where = f" in block {status.anchor_height}" if level == "anchored" and status.anchor_height >= 0 else ""
        emit(f"{volume}: everything is {level}{where} ({seconds:.1f} s)")
    return 0


def _reason(status: DriverStatus) -> str:
    return f" (last error: {status.last_error})" if status.last_error else ""
