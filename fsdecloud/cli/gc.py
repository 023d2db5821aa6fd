"""`decloud gc NAME`: have the peers delete what no state of the volume needs any more.

The driver of the mounted volume does it, and goes on when this command is interrupted.
"""

from __future__ import annotations

import time
from typing import Final

import click

from fsdecloud.cli import client, drivers, parts, volumes
from fsdecloud.cli.output import Progress, clean, emit, emit_json, rfc3339
from fsdecloud.cli.run import PENDING
from fsdecloud.config import find_paths
from fsdecloud.errors import UsageError
from fsdecloud.units import format_size, parse_duration
from fsdecloud.wire.agentapi import Empty
from fsdecloud.wire.controlapi import GcRequest, GcStatus

POLL: Final = 0.2

_PHASES: Final = {
    "marking": "marking what is in use",
    "sweeping": "looking at what is stored",
    "repacking": "packing anew what is mostly garbage",
    "anchoring": "anchoring",
    "waiting": "waiting for the ledger",
    "deleting": "deleting at the peers",
}


def describe(status: GcStatus) -> str:
    """Return one line on what goes on."""
    words = [f"{status.marked} entries in use"]
    if status.condemned_bytes:
        words.append(f"{format_size(status.condemned_bytes)} garbage")
    if status.deleted_bytes:
        words.append(f"{format_size(status.deleted_bytes)} deleted")
    return f"{_PHASES.get(status.phase, 'done')}: {', '.join(words)}"


def as_json(volume: str, status: GcStatus, *, dry_run: bool) -> dict[str, object]:
    """Return the object of `gc --json`; the keys are stable."""
    return {
        "volume": volume,
        "dry_run": dry_run,
        "live_entries": status.live_entries,
        "live_bytes": status.live_bytes,
        "dead_entries": status.dead_entries,
        "dead_bytes": status.dead_bytes,
        "condemned_blobs": status.condemned_blobs,
        "condemned_bytes": status.condemned_bytes,
        "deleted_shards": status.deleted_shards,
        "deleted_bytes": status.deleted_bytes,
        "waiting_shards": status.waiting_shards,
        "time": rfc3339(status.last_run) if status.last_run else None,
        "error": status.error or None,
    }


def as_lines(volume: str, status: GcStatus, *, dry_run: bool) -> list[str]:
    """Return what people read."""
    in_use = f"{status.live_entries} entries ({format_size(status.live_bytes)}) in use"
    lines = [f"{volume}: {in_use}, {status.dead_entries} ({format_size(status.dead_bytes)}) garbage"]
    if dry_run:
        lines.append(f"would delete {status.condemned_blobs} blobs, {format_size(status.condemned_bytes)} on all peers")
    else:
        lines.append(f"peers deleted {status.deleted_shards} shards, {format_size(status.deleted_bytes)}")
    if status.waiting_shards:
        lines.append(f"{status.waiting_shards} shards wait for peers that do not answer")
    return lines


@click.command("gc")
@click.argument("name", metavar="NAME")
@click.option("--dry-run", is_flag=True, help="Only look, delete nothing.")
@click.option("--timeout", metavar="TIME", help="Give up waiting after this (exit code 3); it goes on by itself.")
@click.option("--json", "json_output", is_flag=True, help="Print one JSON object.")
def command(name: str, timeout: str | None, *, dry_run: bool, json_output: bool) -> int:
    """Have peers delete what no snapshot and no file of the mounted volume NAME needs any more.

    The mount does this by itself now and then, and after snapshots were forgotten. What is deleted was garbage in two looks,
    with a block of the ledger that is final between them; peers keep it for their grace period still.
    """
    limit = None if timeout is None else parse_duration(timeout, "--timeout")
    paths = find_paths()
    volumes.load_document(paths, name)
    if parts.running_pid(paths, drivers.PREFIX + name) is None:
        raise UsageError(f"volume {name} is not mounted: decloud mount {name} DIR first")
    progress = Progress()
    started = time.monotonic()
    with client.Client(paths.socket(drivers.PREFIX + name), error=drivers.UnansweredDriver) as link:
        status = link.call("gc", GcRequest(dry_run), GcStatus)
        number = status.requested
        while status.finished < number:
            if limit is not None and time.monotonic() - started >= limit:
                progress.end()
                raise UsageError(f"collecting garbage takes longer than {limit:g} s; it goes on by itself", PENDING)
            progress.show(f"{name}: {describe(status)}")
            time.sleep(POLL)
            status = link.call("gc_status", Empty(), GcStatus)
    progress.end()
    if json_output:
        emit_json(as_json(name, status, dry_run=dry_run))
    elif not status.error:
        for line in as_lines(name, status, dry_run=dry_run):
            emit(line)
    if status.error:
        raise UsageError(f"garbage is not collected now: {clean(status.error)}", PENDING)
    return 0
