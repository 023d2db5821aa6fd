"""`decloud peer init|run|status`: store shards for others."""

from __future__ import annotations

import os
import sys

import click

from fsdecloud.cli import network, parts, peers
from fsdecloud.cli.output import clean, emit, emit_json
from fsdecloud.cli.run import SYSTEM
from fsdecloud.config import Paths, check_name, find_paths
from fsdecloud.errors import PeerUnavailable, UsageError
from fsdecloud.units import format_size, parse_size
from fsdecloud.wire.peerapi import PeerdStatus


@click.group("peer", context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Store shards for others, within a quota."""


@command.command("init")
@click.argument("name", metavar="NAME")
@click.option("--quota", metavar="SIZE", default="64G", show_default=True, help="How many bytes of shards it keeps.")
@click.option(
    "--listen",
    metavar="HOST:PORT",
    default=peers.UP_LISTEN,
    show_default=True,
    help="Where it is reached (port 0: any).",
)
def init_command(name: str, quota: str, listen: str) -> None:
    """Set up the storage peer NAME in this machine's ledger network."""
    from fsdecloud.net.address import parse_endpoint
    from fsdecloud.peerd.setup import init_peer

    paths = find_paths()
    size = parse_size(quota, "--quota")
    parse_endpoint(listen)
    if check_name(name) in parts.local_peers(paths):
        raise UsageError(f"there is a peer {name} already: decloud peer run {name}")
    init_peer(paths, name, size, listen, network.require_network(paths))
    emit(f"peer {name} is set up; {paths.peer_state(name) / 'policy.toml'} says who may store; decloud peer run {name}")


@command.command("run")
@click.argument("name", metavar="NAME")
@click.option("--listen", metavar="HOST:PORT", help="Where it is reached, from now on.")
def run_command(name: str, listen: str | None) -> None:
    """Run the peer NAME in the foreground until SIGTERM or Ctrl-C."""
    paths = find_paths()
    _require_peer(paths, name)
    parts.require_stopped(paths, f"peer-{name}")
    part = parts.peer_part(name, () if listen is None else ("--listen", listen))
    sys.stdout.flush()
    os.execv(sys.executable, part.command())


def _require_peer(paths: Paths, name: str) -> None:
    known = parts.local_peers(paths)
    if check_name(name) not in known:
        there = f"this machine has {', '.join(known)}" if known else "this machine has none"
        raise UsageError(f"there is no peer {name} ({there}): decloud peer init {name}")


@command.command("status")
@click.argument("name", metavar="[NAME]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def status_command(name: str | None, as_json: bool) -> int:
    """Show the peer NAME, or all peers of this home. Exit code 2 when one does not run."""
    paths = find_paths()
    if name is not None:
        _require_peer(paths, name)
    names = [name] if name is not None else parts.local_peers(paths)
    if not names:
        raise UsageError("this machine has no peer: decloud peer init NAME")
    code = 0
    for each in names:
        try:
            status = peers.peer_status(paths, each)
        except PeerUnavailable as exc:
            code = SYSTEM
            if as_json:
                emit_json({"name": each, "id": peers.peer_id(paths, each).hex(), "pid": None, "state": "down"})
            else:
                emit(f"{each}: {clean(str(exc))}")
            continue
        if as_json:
            emit_json(status_fields(status))
        else:
            for line in status_lines(status):
                emit(line)
    return code


def status_fields(status: PeerdStatus) -> dict[str, object]:
    """Return one object of `peer status --json`."""
    fields: dict[str, object] = {}
    for field in status.__struct_fields__:
        value = getattr(status, field)
        fields[field] = value.hex() if isinstance(value, bytes) else value
    fields["registered_height"] = status.registered_height if status.registered_height >= 0 else None
    fields["last_error"] = status.last_error or None
    fields["state"] = "up"
    return fields


def status_lines(status: PeerdStatus) -> list[str]:
    """Return what people read."""
    registered = (
        f"in the ledger at block {status.registered_height}"
        if status.registered_height >= 0
        else "not in the ledger yet"
    )
    lines = [
        f"{status.name}: {status.url}",
        f"  {status.shards} shards, {format_size(status.used)} of {format_size(status.quota)}, {format_size(status.free)} free",
        f"  took {format_size(status.stored_bytes)}, gave {format_size(status.served_bytes)}, refused {status.refused_shards}",
        f"  {status.doomed_shards} shards wait for their removal, {status.removed_shards} removed since the start",
        f"  {registered}, {status.connections} connections, pid {status.pid}",
    ]  # fmt: skip
    if status.last_error:
        lines.append(f"  last error: {clean(status.last_error)}")
    return lines
