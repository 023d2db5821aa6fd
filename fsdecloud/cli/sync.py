"""`decloud sync PATH`: wait until what was written is durable, stored or anchored."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import click

from fsdecloud.cli import client, drivers, mounts
from fsdecloud.cli.output import Progress, emit, emit_json
from fsdecloud.cli.run import DEGRADED, PENDING, SYSTEM
from fsdecloud.config import Paths, find_paths
from fsdecloud.errors import RemoteError, UsageError
from fsdecloud.units import format_size, parse_duration
from fsdecloud.wire.agentapi import Empty
from fsdecloud.wire.controlapi import DriverStatus, SyncRequest

WRITE_BACK_TIMEOUT: Final = 10.0
"""How long to wait for requests that the kernel has under way; new ones of busy programs are not ours to wait for."""

QUIET: Final = 0.1
"""Seconds without a change after which nothing is under way any more."""

LOOK_FIRST: Final = 0.02
LOOK_SHARE: Final = 1 / 20
LOOK_MAX: Final = 1.0
"""Seconds between two looks: a twentieth of the time that was waited, between these two. Nobody waits much longer than need be,
and a long wait costs nothing."""

_LEVELS: Final = ("durable", "stored", "anchored")


def write_back(paths: Paths, mount: mounts.Mounted, timeout: float | None) -> None:
    """Make the kernel hand its dirty pages of the mount to the driver, also those of files that programs keep open.

    syncfs(2) sends them off but does not wait for a FUSE mount (the kernel must not depend on us there). What is under
    way is waited for by the kernel's own count where that can be read, else until the driver has seen no change for a
    moment: it takes requests faster than that.
    """
    code, reason = mounts.run_apart(["sync", "-f", mount.mountpoint], timeout)
    if code is None:
        raise UsageError(f"the kernel still writes to {mount.mountpoint}", PENDING)
    if code != 0:
        raise UsageError(f"cannot sync {mount.mountpoint}: {reason}", SYSTEM)
    count = Path("/sys/fs/fuse/connections", mount.device.partition(":")[2], "waiting")
    deadline = time.monotonic() + min(WRITE_BACK_TIMEOUT, timeout or WRITE_BACK_TIMEOUT)
    try:
        while count.read_text().strip() != "0" and time.monotonic() < deadline:
            time.sleep(0.01)
    except OSError:
        _wait_quiet(paths, mount.volume, deadline)


def _wait_quiet(paths: Paths, volume: str, deadline: float) -> None:
    seen, since = -1, time.monotonic()
    while time.monotonic() < deadline:
        now = drivers.driver_status(paths, volume).written_sequence
        if now != seen:
            seen, since = now, time.monotonic()
        elif time.monotonic() - since >= QUIET:
            return
        time.sleep(QUIET / 5)


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
    status, target = bring(paths, volume, level, limit)
    _report(status, volume, level, target, time.monotonic() - started, as_json=as_json)
    return 0


def bring(paths: Paths, volume: str, level: str, limit: float | None) -> tuple[DriverStatus, int]:
    """Bring everything written so far to a level, with progress; return the state then, and the sequence number it reached.

    While what a commit needs cannot be had from the peers, it is tried again: they may come back. Raises UsageError after
    `limit` seconds (None: never), or when the volume is read-only and so will not reach it.
    """
    started = time.monotonic()
    status = drivers.driver_status(paths, volume)
    mount = mounts.mount_at(status.mountpoint, mounts.read_mounts())
    if mount is not None and mount.is_ours:
        if mount.read_only:
            if reached(status, level) < status.written_sequence:
                raise UsageError(
                    f"{volume} is mounted read-only: what it has from before is not {level} until it is mounted read-write",
                    PENDING,
                )
            return status, status.written_sequence
        write_back(paths, mount, limit)
    progress = Progress()
    target, obstacle = None, ""
    with client.Client(paths.socket(drivers.PREFIX + volume), error=drivers.UnansweredDriver) as link:
        try:
            while True:
                if target is None:
                    status, target, obstacle = _begin(paths, volume, link, level, limit or 3600.0)
                else:
                    status = link.call("status", Empty(), DriverStatus)
                if target is not None and reached(status, level) >= target:
                    return status, target
                if limit is not None and time.monotonic() - started >= limit:
                    why = obstacle or _reason(status)
                    raise UsageError(f"{volume} is not {level} after {limit:g} s; it goes on by itself{why}", PENDING)
                if status.read_only:
                    raise UsageError(
                        f"{volume} is read-only ({status.read_only}): it will not become {level}", DEGRADED
                    )
                progress.show(describe(status, level) + obstacle)
                time.sleep(min(max(LOOK_FIRST, (time.monotonic() - started) * LOOK_SHARE), LOOK_MAX))
        finally:
            progress.end()


def _begin(
    paths: Paths, volume: str, link: client.Client, level: str, timeout: float
) -> tuple[DriverStatus, int | None, str]:
    """Have the driver bring everything on its way; return its state and the sequence number to wait for, or else None and
    what of the peers is in the way now."""
    try:
        status = link.call("sync", SyncRequest(level), DriverStatus, timeout=timeout)
    except RemoteError as exc:
        return drivers.driver_status(paths, volume), None, f" ({exc})"
    return status, status.written_sequence, ""


def _report(status: DriverStatus, volume: str, level: str, target: int, seconds: float, *, as_json: bool) -> None:
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


def _reason(status: DriverStatus) -> str:
    return f" (last error: {status.last_error})" if status.last_error else ""
