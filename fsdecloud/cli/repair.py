"""`decloud repair --key FILE`: check and repair a volume with its repair key, once or for good.

Runs in the foreground, beside this machine's ledger daemon; the volume need not be known here, nor can it be read.
"""

from __future__ import annotations

import gc
import logging
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from fsdecloud.cli import network, parts
from fsdecloud.cli.ledger import ledger_arguments
from fsdecloud.cli.output import clean, emit, emit_json
from fsdecloud.cli.recover import find_anchor
from fsdecloud.cli.run import DEGRADED
from fsdecloud.config import Paths, find_paths, make_private_dir, read_private_file
from fsdecloud.errors import MalformedError, UsageError
from fsdecloud.units import format_size, parse_duration

if TYPE_CHECKING:
    from fsdecloud.agent.peer import Transport
    from fsdecloud.agent.standin import Report
    from fsdecloud.crypto.repairkey import RepairKey
    from fsdecloud.swarm.repair import Policy

IN_STEP: Final = 600.0
"""Seconds in which the ledger daemon has to be in step with the others when it joins them."""


@click.command("repair")
@click.option("--key", "key_file", metavar="FILE", required=True, help="The repair key, a file of mode 0600.")
@click.option("--watch", is_flag=True, help="Go on until stopped: audit, repair and renew leases as a mount does.")
@click.option(
    "--after", metavar="TIME", help="Make shards again of peers that were silent for this long, not for hours."
)
@click.option("--bootstrap", metavar="URL", multiple=True, help="Join the ledger network there first; may be repeated.")
@click.option(
    "--peer", "peers", metavar="ADDRESS", multiple=True, help="A storage peer to ask for others; may be repeated."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each report.")
def command(
    key_file: str, after: str | None, bootstrap: tuple[str, ...], peers: tuple[str, ...], *, watch: bool, as_json: bool
) -> int:
    """Check and repair the volume of a repair key, and renew its leases.

    Looks at every blob, makes missing shards again where there are peers for them, and says what it found. With --watch it
    stays, follows what the owner writes, and reports what changes. Exit code 4 when something lacks shards still.
    """
    from fsdecloud.net.address import parse_bootstrap
    from fsdecloud.swarm.repair import Policy

    paths = find_paths()
    key = read_key(key_file)
    policy = Policy()
    if after is not None:
        seconds = parse_duration(after, "--after")
        policy = replace(policy, urgent_grace=seconds, grace=seconds, gone_after=seconds)
    parse_bootstrap(peers)
    _join(paths, key, bootstrap)
    logging.basicConfig(
        level=os.environ.get("FSDECLOUD_LOG", "info" if watch else "error").upper(),
        format="%(asctime)s repair %(levelname)s %(message)s",
    )
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the key is in memory
    gc.freeze()
    last = _run(paths, key, policy, peers, watch=watch, as_json=as_json)
    return DEGRADED if last is not None and last.status.repair.degraded else 0


def read_key(path: str) -> RepairKey:
    """Read a repair key. Raises UsageError when there is none, or others may read it."""
    from fsdecloud.crypto.repairkey import KEY_MAX, decode_repair_key

    try:
        return decode_repair_key(read_private_file(Path(path), KEY_MAX))
    except MalformedError as exc:
        raise UsageError(f"{path}: {exc}; decloud repair-key makes one") from exc


def _join(paths: Paths, key: RepairKey, bootstrap: tuple[str, ...]) -> None:
    """Have this home's ledger daemon run, in the key's network. Raises UsageError."""
    from fsdecloud.net.address import parse_url

    wanted = {address.network for address in map(parse_url, bootstrap) if address.network is not None}
    if wanted - {key.network}:
        raise UsageError("that address is of another ledger network than the repair key's volume")
    if not network.has_network(paths) and not bootstrap:
        raise UsageError("this machine belongs to no ledger network yet: name an address with --bootstrap")
    if parts.running_pid(paths, "ledger") is None:
        process = parts.ensure_part(paths, parts.ledger_part(ledger_arguments(bootstrap=bootstrap)))
        if process is not None:
            process.returncode = 0  # it lives on
    if bootstrap:
        find_anchor(paths, key.volume_id, IN_STEP)
    if network.require_network(paths) != key.network:
        raise UsageError("this machine belongs to another ledger network than the repair key's volume")


def _run(
    paths: Paths, key: RepairKey, policy: Policy, peers: tuple[str, ...], *, watch: bool, as_json: bool
) -> Report | None:
    """Do the work until it is done or a signal ends it; return the last report."""
    import trio

    from fsdecloud.agent.standin import open_standin

    last: Report | None = None

    def report(found: Report) -> None:
        nonlocal last
        last = found
        if as_json:
            emit_json(report_fields(key, found))
        else:
            for line in report_lines(key, found):
                emit(line)
        sys.stdout.flush()

    async def end_on_signal(scope: trio.CancelScope) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async for number in signals:
                if number != signal.SIGHUP:
                    scope.cancel()

    async def main() -> None:
        directory = make_private_dir(paths.state / "repair") / key.volume_id.hex()[:16]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end_on_signal, nursery.cancel_scope)
            opened = open_standin(key, directory, paths.socket("ledger"), _open_transport(key), policy, peers)
            async with opened as standin:
                await standin.run(report, watch=watch)
            nursery.cancel_scope.cancel()

    with suppress(KeyboardInterrupt):  # before the receiver was there
        trio.run(main, strict_exception_groups=False)
    return last


@asynccontextmanager
async def _open_transport(key: RepairKey) -> AsyncIterator[Transport]:
    from fsdecloud.crypto.keys import deal_seed
    from fsdecloud.net.pool import open_pool

    async with open_pool(network=key.network, deal_seed=lambda peer: deal_seed(key.deal_secret, peer)) as pool:
        yield pool


def report_fields(key: RepairKey, report: Report) -> dict[str, object]:
    """Return one object of `repair --json`; the keys are stable."""
    repair = report.status.repair
    return {
        "volume": key.volume_id.hex(),
        "name": key.name,
        "sequence": report.sequence,
        "blobs": repair.blobs,
        "under_replicated": repair.degraded,
        "endangered": repair.endangered,
        "unreadable": repair.unreadable,
        "waiting": repair.waiting,
        "repaired_blobs": repair.repaired_blobs,
        "repaired_shards": repair.repaired_shards,
        "repaired_bytes": repair.repaired_bytes,
        "audits_passed": repair.audits_passed,
        "audits_failed": repair.audits_failed,
        "renewed_shards": report.renewed_shards,
        "peers_up": sum(peer.state != "down" for peer in report.status.peers),
        "peers_down": sum(peer.state == "down" for peer in report.status.peers),
        "last_error": repair.last_error or None,
    }


def report_lines(key: RepairKey, report: Report) -> list[str]:
    """Return what people read."""
    repair, peers = report.status.repair, report.status.peers
    down = sum(peer.state == "down" for peer in peers)
    lines = [
        f"volume {clean(key.name)} at anchor {report.sequence}: {repair.blobs} blobs",
        f"  {len(peers) - down} peers up, {down} down; renewed {report.renewed_shards} leases",
        f"  made {repair.repaired_shards} shards of {repair.repaired_blobs} blobs again, {format_size(repair.repaired_bytes)}",
    ]
    if not repair.degraded:
        return [*lines, "  every blob has all its shards"]
    lines.append(
        f"  {repair.degraded} blobs lack shards: {repair.endangered} endangered, {repair.unreadable} cannot be read now, "
        f"{repair.waiting} wait for peers"
    )
    return [*lines, *([f"  last error: {clean(repair.last_error)}"] if repair.last_error else [])]
