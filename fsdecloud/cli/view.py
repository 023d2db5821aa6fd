"""What `status` and `up` show of a home: one JSON object, or lines for people.

Gathered from the driver, the ledger daemon and the local peers through their sockets; whoever does not answer is shown as
such and delays nothing for long.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fsdecloud.cli import deals, drivers, gc, health, mounts, network, parts, peers, stake, walletview
from fsdecloud.cli.output import clean, table
from fsdecloud.cli.run import DEGRADED, OK, PENDING
from fsdecloud.cli.walletview import Holdings
from fsdecloud.config import Paths
from fsdecloud.errors import FsdecloudError
from fsdecloud.units import format_rate, format_size
from fsdecloud.wire.controlapi import Count, DriverStatus
from fsdecloud.wire.ledgerapi import FinalityInfo, LedgerStatus


@dataclass(frozen=True, slots=True)
class View:
    """One moment of a home."""

    volume: str | None
    driver: DriverStatus | None
    driver_pid: int | None
    ledger: LedgerStatus | None
    ledger_pid: int | None
    peers: list[dict[str, Any]]
    """Hosts of the volume and peers of this home: id, address, pid, name, state, and counters."""
    problems: list[str]
    """Why the exit code says degraded."""
    finality: FinalityInfo | None = None
    """In a network with checkpoints, what is final."""
    wallet: Holdings | None = None
    """What the volume's wallet has; None where it has nothing, and nothing is on its way."""

    @property
    def anchor_height(self) -> int:
        """Return the height of the block with the volume's last anchor, -1 when there is none."""
        return self.driver.anchor_height if self.driver is not None else -1

    @property
    def exit_code(self) -> int:
        """Return the exit code of `status`: 0 all stored, 3 pending, 4 degraded."""
        if self.problems:
            return DEGRADED
        if self.driver is not None and self.driver.stored_sequence < self.driver.written_sequence:
            return PENDING
        return OK


def take_view(paths: Paths, volume: str | None) -> View:
    """Ask everybody once. `volume` is None when none is mounted."""
    problems: list[str] = []
    driver = None
    if volume is not None:
        try:
            driver = drivers.driver_status(paths, volume)
        except FsdecloudError as exc:
            problems.append(f"the driver of {volume} does not answer: {exc}")
    ledger = None
    ledger_pid = parts.running_pid(paths, "ledger")
    if ledger_pid is not None:
        try:
            ledger = network.ledger_status(paths)
        except FsdecloudError as exc:
            problems.append(f"the ledger daemon does not answer: {exc}")
        else:
            if ledger.light and not ledger.provers:
                problems.append("the ledger daemon is light, and no full one is connected that proves what it is asked")
            if ledger.snapshot is not None and ledger.snapshot.stage == "fault":
                problems.append("the chain that the ledger daemon follows breaks the rules: see its log")
    elif volume is not None and network.has_network(paths):
        problems.append("the ledger daemon is not running")
    rows = _peer_rows(paths, driver)
    if driver is not None:
        problems += [
            f"peer {row['name'] or str(row['id'])[:8]} is {row['state']}" for row in rows if row["state"] != "up"
        ]
        problems += list(driver.warnings)
        problems += health.problems(driver.repair)
        there = mounts.mount_at(driver.mountpoint, mounts.read_mounts())
        if driver.read_only and not (there is not None and there.read_only):
            problems.append(f"the volume turned read-only: {driver.read_only}")
        if driver.agent_pid <= 0:
            problems.append("the agent is not running")
    return View(
        volume=volume,
        driver=driver,
        driver_pid=parts.running_pid(paths, drivers.PREFIX + volume) if volume is not None else None,
        ledger=ledger,
        ledger_pid=ledger_pid,
        peers=rows,
        problems=problems,
        finality=stake.look(paths) if ledger is not None and not ledger.light else None,
        wallet=walletview.look(paths, driver.volume, ledger.network)
        if ledger is not None and driver is not None
        else None,
    )


def _peer_rows(paths: Paths, driver: DriverStatus | None) -> list[dict[str, Any]]:
    local = {peer.id: peer for peer in peers.local_peers(paths)}
    rows: list[dict[str, Any]] = []
    for host in driver.peers if driver is not None else ():
        own = local.pop(host.id.hex(), None)
        rows.append({
            "id": host.id.hex(),
            "name": own.name if own else None,
            "address": host.url,
            "pid": own.pid if own else None,
            "state": "down" if own is not None and own.pid is None else host.state,
            "failures": host.failures,
            "corrupt": host.corrupt,
            "stored_bytes": host.stored_bytes,
            "fetched_bytes": host.fetched_bytes,
            "evidence": list(host.evidence),
            "by_way_of": host.way.hex() or None,
        })  # fmt: skip
    rows.extend(
        {
            "id": own.id,
            "name": own.name,
            "address": own.url,
            "pid": own.pid,
            "state": "up" if own.pid else "down",
            "failures": 0,
            "corrupt": 0,
            "stored_bytes": 0,
            "fetched_bytes": 0,
            "evidence": [],
            "by_way_of": None,
        }
        for own in local.values()
    )
    return rows


def _count(count: Count | None) -> dict[str, int]:
    return {"entries": count.entries if count else 0, "bytes": count.bytes if count else 0}


def as_json(view: View) -> dict[str, object]:
    """Return the object of `status --json`. Keys are stable; numbers are raw; what is unknown is null."""
    driver = view.driver
    result: dict[str, object] = {
        "volume": view.volume,
        "mountpoint": driver.mountpoint if driver else None,
        "read_only": (driver.read_only or None) if driver else None,
        "driver_pid": driver.driver_pid if driver else view.driver_pid,
        "agent_pid": (driver.agent_pid or None) if driver else None,
        "ledger_pid": view.ledger_pid,
        "peers": view.peers,
        "dirty": _count(driver.dirty if driver else None),
        "staged": _count(driver.staged if driver else None),
        "stored": _count(driver.stored if driver else None),
        "anchored": _count(driver.anchored if driver else None),
        "written_sequence": driver.written_sequence if driver else None,
        "durable_sequence": driver.durable_sequence if driver else None,
        "stored_sequence": driver.stored_sequence if driver else None,
        "anchored_sequence": driver.anchored_sequence if driver else None,
        "anchor_height": driver.anchor_height if driver and driver.anchor_height >= 0 else None,
        "ledger_height": view.ledger.height if view.ledger else None,
        "network": view.ledger.network.hex() if view.ledger else None,
        "ledger_url": view.ledger.url if view.ledger else None,
        "mempool": view.ledger.mempool if view.ledger else None,
        "light": view.ledger.light if view.ledger else None,
        "provers": view.ledger.provers if view.ledger else None,
        "final_height": view.finality.final.height if view.finality else None,
        "anchor_final": (
            view.anchor_height <= view.finality.final.height if view.finality and view.anchor_height >= 0 else None
        ),
        "k": driver.k if driver else None,
        "n": driver.n if driver else None,
        "redundancy": (driver.redundancy or None) if driver else None,
    }
    result["wallet"] = walletview.money_fields(view.wallet) if view.wallet else None
    result["deals"] = deals.as_fields(driver.deals) if driver and deals.summary(driver.deals) else None
    result["up_limit"] = (driver.up_limit or None) if driver else None
    result["down_limit"] = (driver.down_limit or None) if driver else None
    for name in ("files", "logical_bytes", "cache_bytes", "uploaded_bytes", "downloaded_bytes", "handler_errors"):
        result[name] = getattr(driver, name) if driver else None
    for name in ("agent_restarts", "slow_requests", "timed_out_requests", "live_inodes", "kernel_inodes"):
        result[name] = getattr(driver, name) if driver else None
    result["integrity_errors"] = driver.integrity_errors if driver else None
    result["failsafe"] = driver.is_failsafe if driver else None
    result["incidents"] = [
        {"where": found.where, "count": found.count, "last": found.last}
        for found in (driver.incidents if driver else ())
    ]
    result["gc"] = gc.as_json(driver.volume, driver.gc, dry_run=False) | {"phase": driver.gc.phase} if driver else None
    result["repair"] = health.as_json(driver.repair) if driver else None
    result["last_error"] = (driver.last_error or None) if driver else None
    result["problems"] = view.problems
    return result


def as_lines(view: View) -> list[str]:
    """Return what people read."""
    lines: list[str] = []
    driver = view.driver
    if driver is not None:
        mode = f" (read-only: {clean(driver.read_only)})" if driver.read_only else ""
        lines.append(f"{clean(driver.volume)} at {clean(driver.mountpoint)}{mode}")
        lines.append(f"  {driver.files} files, {format_size(driver.logical_bytes)}; {_promise(driver)}")
        counts = (
            ("dirty", driver.dirty),
            ("staged", driver.staged),
            ("stored", driver.stored),
            ("anchored", driver.anchored),
        )
        lines.append("  " + ", ".join(f"{name} {c.entries} ({format_size(c.bytes)})" for name, c in counts))
        lines.append(
            f"  redundancy {driver.k}/{driver.n}{_asked_for(driver)}, sent {format_size(driver.uploaded_bytes)}, "
            f"fetched {format_size(driver.downloaded_bytes)}, cache {format_size(driver.cache_bytes)}"
        )
        if driver.up_limit or driver.down_limit:
            lines.append(f"  limits: up {format_rate(driver.up_limit)}, down {format_rate(driver.down_limit)}")
        if driver.gc.phase or driver.gc.last_run:
            lines.append(f"  garbage: {gc.describe(driver.gc)}")
        if line := health.describe(driver.repair):
            lines.append(f"  {line}")
        if line := health.describe_recoding(driver.repair.recoding):
            lines.append(f"  {line}")
        if line := deals.summary(driver.deals):
            lines.append(f"  {line}")
        if view.wallet:
            lines.append(f"  wallet: {walletview.money_words(view.wallet)}")
        lines.append(f"  driver pid {driver.driver_pid}, agent pid {driver.agent_pid or '-'}")
        if driver.last_error:
            lines.append(f"  last error: {clean(driver.last_error)}")
        lines += [
            f"  internal error in {clean(found.where)}, {found.count} times: {clean(found.last)}"
            for found in driver.incidents
        ]
    elif view.volume is not None:
        lines.append(f"{view.volume}: driver pid {view.driver_pid or '-'} does not answer")
    lines.append(ledger_line(view))
    if view.finality is not None:
        lines.append(f"  {stake.final_line(view.finality, view.anchor_height)}")
    names = {row["id"]: row["name"] for row in view.peers}
    rows = [
        [
            str(row["name"] or "-"),
            str(row["id"])[:8],
            str(row["state"]),
            str(row["pid"] or "-"),
            format_size(row["stored_bytes"]),
            (str(row["address"]).removeprefix("wss://").partition("/")[0] or "-")
            + (f" by way of {names.get(row['by_way_of']) or row['by_way_of'][:8]}" if row["by_way_of"] else ""),
        ]
        for row in view.peers
    ]
    if rows:
        lines += table(rows, header=("peer", "id", "state", "pid", "sent", "address"), right=(3, 4), indent="  ")
    lines += [f"warning: {clean(problem)}" for problem in view.problems]
    return lines


def _asked_for(driver: DriverStatus) -> str:
    """Return what was asked for where that is not what stands before it."""
    return f" ({clean(driver.redundancy)})" if driver.redundancy not in ("", f"{driver.k}/{driver.n}") else ""


def _promise(driver: DriverStatus) -> str:
    if driver.durable_sequence < driver.written_sequence:
        return "writing"
    if driver.stored_sequence < driver.written_sequence:
        return "everything durable here (D1), going to the peers"
    if driver.anchored_sequence < driver.written_sequence:
        return "everything on all peers (D2), going to the ledger"
    where = f" in block {driver.anchor_height}" if driver.anchor_height >= 0 else ""
    return f"everything anchored{where} (D3)" if driver.written_sequence else "nothing written yet"


def ledger_line(view: View) -> str:
    """Return one line on the ledger daemon."""
    if view.ledger is None:
        return f"ledger pid {view.ledger_pid} does not answer" if view.ledger_pid else "ledger not running"
    ledger = view.ledger
    mining = "mining" if ledger.mining else "idle"
    role = f"light with {ledger.provers} full nodes of" if ledger.light else f"{mining},"
    return (
        f"ledger height {ledger.height}, {ledger.mempool} waiting, {role} {len(ledger.peers)} nodes, pid {ledger.pid}"
    )
