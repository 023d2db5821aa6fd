"""`decloud deals [NAME]`: the storage deals of mounted volumes, and what `status` says of them."""

from __future__ import annotations

from typing import Any

import click

from fsdecloud.cli import client, drivers, parts, volumes
from fsdecloud.cli.output import clean, emit, emit_json, table
from fsdecloud.config import Paths, check_name, find_paths
from fsdecloud.errors import UsageError
from fsdecloud.units import format_duration, format_size
from fsdecloud.wire.agentapi import DealInfo, DealsStatus, Empty
from fsdecloud.wire.controlapi import DriverStatus


@click.command("deals")
@click.argument("name", metavar="[NAME]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(name: str | None, as_json: bool) -> None:
    """Show the storage deals of the volume NAME, which is mounted; by default the only one of this home."""
    paths = find_paths()
    chosen = _choose(paths, name)
    if parts.running_pid(paths, drivers.PREFIX + chosen) is None:
        raise UsageError(f"volume {chosen} is not mounted: its deals are kept while it is (decloud mount {chosen} DIR)")
    status = client.call(
        paths.socket(drivers.PREFIX + chosen), "status", Empty(), DriverStatus, timeout=drivers.STATUS_TIMEOUT
    )
    if as_json:
        emit_json({"volume": chosen, **as_fields(status.deals), "deals": list(map(_fields, status.deals.deals))})
        return
    for line in as_lines(status.deals):
        emit(line)


def _choose(paths: Paths, name: str | None) -> str:
    if name is not None:
        return check_name(name)
    known = volumes.list_volumes(paths)
    if len(known) != 1:
        raise UsageError(
            f"this home has the volumes {', '.join(known)}: name one" if known else "this home has no volume"
        )
    return known[0]


def as_fields(deals: DealsStatus) -> dict[str, Any]:
    """Return the sums as `status --json` and `deals --json` print them; amounts in the smallest unit."""
    return {
        "budget": deals.budget,
        "running": sum(info.state in ("running", "disputed") for info in deals.deals),
        "monthly": deals.monthly,
        "earned": deals.earned,
        "locked": deals.locked,
        "waiting_bytes": deals.waiting,
        "warnings": list(deals.warnings),
    }


def _fields(info: DealInfo) -> dict[str, Any]:
    return {
        "peer": info.peer.hex(),
        "contract": info.contract.hex() or None,
        "state": info.state,
        "bytes": info.size,
        "price": info.price,
        "escrow": info.escrow,
        "earned": info.earned,
        "ends_at": info.ends or None,
        "ends_in": info.ends_in if info.ends else None,
        "problem": info.problem or None,
    }


def summary(deals: DealsStatus) -> str:
    """Return the line of `status`; "" for a volume that has nothing to do with money."""
    if not deals.budget and not deals.deals:
        return ""
    running = sum(info.state in ("running", "disputed") for info in deals.deals)
    forming = sum(info.state in ("forming", "waiting") for info in deals.deals)
    more = f", {forming} being made" if forming else ""
    return (
        f"deals: {running} running{more}; {deals.monthly} a month of a budget of {deals.budget}, "
        f"{deals.earned} earned by peers, {deals.locked} locked"
    )


def as_lines(deals: DealsStatus) -> list[str]:
    """Return what people read."""
    lines = [summary(deals) or "no storage deals: peers are paid nothing, and there is no budget"]
    rows = [
        [
            info.peer.hex()[:8],
            info.state,
            format_size(info.size),
            str(info.price),
            str(info.earned),
            f"in {format_duration(info.ends_in)} ({info.ends})" if info.ends else "-",
            clean(info.problem) or "-",
        ]
        for info in deals.deals
    ]
    if rows:
        header = ("peer", "state", "bytes", "price", "earned", "ends", "problem")
        lines += table(rows, header=header, right=(2, 3, 4), indent="  ")
    return lines + [f"warning: {clean(text)}" for text in deals.warnings]
