"""`decloud peer init|run|status|leave|maintenance|stay`: store shards for others."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Final

import click

from fsdecloud.cli import network, parts, peers
from fsdecloud.cli.output import clean, emit, emit_json
from fsdecloud.cli.run import SYSTEM
from fsdecloud.config import Paths, check_name, find_paths
from fsdecloud.errors import FsdecloudError, PeerUnavailable, UsageError
from fsdecloud.units import format_duration, format_size, parse_duration, parse_size
from fsdecloud.wire.peerapi import Announce, DealsStatus, Departing, PeerdStatus

if TYPE_CHECKING:
    from fsdecloud.peerd.setup import PeerConfig

NOT_YET: Final = 3
"""Something is still held (decloud(1), EXIT STATUS)."""

SHOWN: Final = 20
"""Deals in what people read; JSON has more."""


@click.group("peer", context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Store shards for others, within a quota."""


@command.command("init")
@click.argument("name", metavar="NAME")
@click.option("--quota", metavar="SIZE", show_default="64G", help="How many bytes of shards it keeps.")
@click.option("--listen", metavar="HOST:PORT", show_default=peers.UP_LISTEN, help="Where it is reached (port 0: any).")
@click.option(
    "--price",
    metavar="N",
    type=int,
    help="Smallest units for a GiB and 30 days; 0, as at first: it stores for nothing.",
)
@click.option(
    "--collateral",
    metavar="PERCENT",
    type=int,
    help="Most that it pays into a deal itself, of what the deal can pay (25).",
)
@click.option("--bootstrap", metavar="ADDRESS", multiple=True, help="A peer to ask for others; may be given again.")
@click.option(
    "--operator", metavar="OPERATOR", help="Declare that it is run together with this operator's other peers."
)
def init_command(
    name: str,
    quota: str | None,
    listen: str | None,
    price: int | None,
    collateral: int | None,
    bootstrap: tuple[str, ...],
    operator: str | None,
) -> None:
    """Set up the storage peer NAME in this machine's ledger network.

    With --price or --collateral, change those of one that is there, and its quota and address where they are given: from its
    next start on.
    """
    from fsdecloud.net.address import parse_endpoint
    from fsdecloud.peerd.setup import init_peer, load_config, parse_bootstrap

    paths = find_paths()
    size = parse_size(quota, "--quota") if quota is not None else peers.UP_QUOTA
    if listen is not None:
        parse_endpoint(listen)
    if check_name(name) in parts.local_peers(paths):
        if (price, collateral) == (None, None) or bootstrap or operator is not None:
            raise UsageError(
                f"there is a peer {name} already: decloud peer run {name} runs it, and --price and --collateral change those"
            )
        present = load_config(paths, name)
        init_peer(
            paths,
            name,
            present.quota if quota is None else size,
            present.listen if listen is None else listen,
            network.require_network(paths),
            price=price,
            collateral=collateral,
        )
        emit(f"peer {name} {_offer_words(load_config(paths, name))}, from its next start on")
        return
    known = " ".join(bootstrap)
    parse_bootstrap(known)
    if operator is not None:
        check_name(operator)
    init_peer(
        paths,
        name,
        size,
        peers.UP_LISTEN if listen is None else listen,
        network.require_network(paths),
        known,
        price=price,
        collateral=collateral,
    )
    if operator is not None:
        from fsdecloud.peerd.operators import declare_operator

        declare_operator(paths, name, operator)
    emit(f"peer {name} is set up; {paths.peer_state(name) / 'policy.toml'} says who may store; decloud peer run {name}")


def _offer_words(config: PeerConfig) -> str:
    """Return what a peer asks and offers."""
    if not config.price:
        return "stores for nothing"
    return f"asks {config.price} for a GiB and 30 days, with a collateral of up to {config.collateral} percent"


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


@command.command("operator")
@click.argument("name", metavar="NAME")
@click.argument("operator", metavar="[OPERATOR]", required=False)
@click.option("--none", "is_none", is_flag=True, help="Take the declaration back.")
def operator_command(name: str, operator: str | None, *, is_none: bool) -> None:
    """Declare that OPERATOR runs the peer NAME, so that no volume relies on his peers to fail one by one.

    Holds from the peer's next start. The key of a new OPERATOR is made.
    """
    from fsdecloud.peerd.operators import declare_operator

    if (operator is None) is not is_none:
        raise UsageError("name the operator, or --none")
    paths = find_paths()
    _require_peer(paths, name)
    key = declare_operator(paths, name, operator)
    said = f"is run by {operator} ({key.hex()})" if operator is not None else "has no operator"
    emit(f"peer {name} declares that it {said}, from its next start on")


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
        balance = _balance(paths, status)
        if as_json:
            emit_json(status_fields(status, balance))
        else:
            for line in status_lines(status, balance):
                emit(line)
    return code


@command.command("leave")
@click.argument("name", metavar="NAME")
@click.option("--status", "only_status", is_flag=True, help="Only show what the peer still holds.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def leave_command(name: str, only_status: bool, as_json: bool) -> int:
    """Announce that the peer NAME leaves for good. It takes nothing new, and serves what it holds until the owners have
    moved it.

    Exit code 3 while it holds shards that somebody wants: do not switch it off yet.
    """
    departing = _announce(name, Announce("" if only_status else "leave"))
    if as_json:
        emit_json(departing_fields(name, departing))
    else:
        for line in departing_lines(name, departing, time.time()):
            emit(line)
    return NOT_YET if departing.shards else 0


@command.command("maintenance")
@click.argument("name", metavar="NAME")
@click.option("--for", "duration", metavar="TIME", required=True, help="How long: 30m, 6h, 2d.")
def maintenance_command(name: str, duration: str) -> None:
    """Announce that the peer NAME will be away for some time. Until then it takes nothing new; nobody moves what it holds."""
    seconds = int(parse_duration(duration, "--for", smallest=1))
    departing = _announce(name, Announce("maintenance", seconds))
    emit(
        f"peer {name} announces {reason_for_people(departing.reason, time.time())}; decloud peer stay {name} takes that back"
    )


@command.command("stay")
@click.argument("name", metavar="NAME")
def stay_command(name: str) -> None:
    """Take back what the peer NAME announced: it takes shards again."""
    _announce(name, Announce("stay"))
    emit(f"peer {name} stays")


def _announce(name: str, announcement: Announce) -> Departing:
    paths = find_paths()
    _require_peer(paths, name)
    return peers.announce(paths, name, announcement)


def departing_fields(name: str, departing: Departing) -> dict[str, object]:
    """Return the object of `peer leave --json`."""
    return {
        "name": name,
        "reason": departing.reason or None,
        "since": departing.since or None,
        "is_registered": departing.is_registered,
        "shards": departing.shards,
        "bytes": departing.size,
        "doomed_shards": departing.doomed_shards,
        "deals": [{"deal": h.deal.hex(), "shards": h.shards, "bytes": h.size} for h in departing.holders],
    }


def departing_lines(name: str, departing: Departing, now: float) -> list[str]:
    """Return what people read."""
    said = "the ledger says so too" if departing.is_registered else "the ledger does not say so yet"
    if departing.reason:
        lines = [f"peer {name} announces {reason_for_people(departing.reason, now)}; {said}"]
    else:
        lines = [f"peer {name} stays"]
    if not departing.shards:
        return [*lines, "  it holds nothing that anybody wants: it may be switched off"]
    lines.append(f"  {departing.shards} shards are wanted by {len(departing.holders)} deals or more:")
    lines += [f"    {h.deal.hex()[:16]}  {h.shards} shards, {format_size(h.size)}" for h in departing.holders[:SHOWN]]
    lines.append("  it has to run until their owners have moved them")
    return lines


def reason_for_people(reason: str, now: float) -> str:
    """Return "leaving", or how long a maintenance still takes."""
    kind, _, until = reason.partition(" until ")
    return f"{kind} for {format_duration(int(until) - now)}" if until.isdigit() else kind


def _balance(paths: Paths, status: PeerdStatus) -> int | None:
    """Return what the ledger says that a peer's key has, None when it cannot be asked."""
    try:
        return network.balance(paths, status.network, status.id)
    except FsdecloudError:
        return None


def status_fields(status: PeerdStatus, balance: int | None) -> dict[str, object]:
    """Return one object of `peer status --json`; `balance` is None when the ledger could not be asked."""
    fields: dict[str, object] = {}
    for field in status.__struct_fields__:
        value = getattr(status, field)
        fields[field] = value.hex() if isinstance(value, bytes) else value
    fields["registered_height"] = status.registered_height if status.registered_height >= 0 else None
    fields["last_error"] = status.last_error or None
    fields["refusals"] = dict(status.refusals)
    fields["departure"] = status.departure or None
    fields["departure_since"] = status.departure_since or None
    fields["departure_shards"] = status.departure_shards or None
    fields["scrub_started"] = status.scrub_started or None
    fields["scrub_finished"] = status.scrub_finished or None
    fields["operator"] = status.operator.hex() or None
    fields["stake_release"] = status.stake_release or None
    fields["last_vote"] = status.last_vote or None
    fields["balance"] = balance
    fields["earnings"] = status.deals.earned if status.deals is not None else None
    fields["deals"] = _deals_fields(status.deals)
    fields["state"] = "up"
    return fields


def status_lines(status: PeerdStatus, balance: int | None) -> list[str]:
    """Return what people read; `balance` is None when the ledger could not be asked."""
    registered = (
        f"in the ledger at block {status.registered_height}"
        if status.registered_height >= 0
        else "not in the ledger yet"
    )
    lines = [
        f"{status.name}: {status.url}",
        f"  space: {status.shards} shards, {format_size(status.used)} of {format_size(status.quota)}",
        f"    {format_size(status.free)} free; {format_size(status.reserve)} of the disk are left for others",
        f"  traffic: {status.requests} requests, {format_size(status.received_bytes)} in, {format_size(status.sent_bytes)} out",
        f"    took {format_size(status.stored_bytes)} of shards, gave {format_size(status.served_bytes)}",
        f"    refused {status.refused_shards} shards, slowed clients down {status.delays} times",
        *(f"    refused: {clean(reason)} ({count} times)" for reason, count in status.refusals),
        f"    forwarded {status.forwarded_requests} requests to other peers, {format_size(status.forwarded_bytes)}",
        f"  knows {status.known_peers} other peers, {status.tested_peers} of them by a connection",
        f"  deleting: {status.doomed_shards} shards wait for their removal, {status.removed_shards} removed since the start",
        f"  leases: {status.expiring_shards} shards expire within {format_duration(status.lease / 8)}",
        f"    {status.expired_shards} have expired, {status.removed_expired} removed since the start",
        *_health_lines(status, time.time()),
        *_earnings_lines(status, balance),
        *_operator_lines(status),
        *_stake_lines(status),
        f"  {registered}, {status.connections} connections, pid {status.pid}",
    ]  # fmt: skip
    if status.departure:
        lines.append(
            f"  announces {reason_for_people(status.departure, time.time())}; decloud peer leave --status {status.name}"
        )
        lines += _handover_lines(status)
    if status.last_error:
        lines.append(f"  last error: {clean(status.last_error)}")
    return lines


def _deals_fields(deals: DealsStatus | None) -> dict[str, object] | None:
    """Return `deals` of `peer status --json`."""
    if deals is None:
        return None
    return {
        "running": deals.running,
        "ended": deals.ended,
        "bytes": deals.size,
        "earned": deals.earned,
        "paid": deals.paid,
        "collateral": deals.collateral,
        "next_proof": deals.next_proof or None,
        "trouble": deals.trouble or None,
    }


def _earnings_lines(status: PeerdStatus, balance: int | None) -> list[str]:
    """Return what the peer's key has, and how its deals stand; of a peer without a price, that it has none."""
    has = "the ledger cannot be reached" if balance is None else f"its key has {balance} in the ledger"
    deals = status.deals
    if deals is None:
        return [f"  earnings: {has}; it makes no deals, the price is zero"]
    proof = f", next proof from block {deals.next_proof} on" if deals.next_proof else ""
    lines = [
        f"  earnings: {deals.earned} by the deals below; those that run have paid out {deals.paid}; {has}",
        f"  deals: {deals.running} running, {deals.ended} ended, {format_size(deals.size)} under deals{proof}",
        f"    price {status.price} for a GiB and 30 days, {deals.collateral} locked as collateral",
    ]
    return [*lines, f"    trouble: {clean(deals.trouble)}"] if deals.trouble else lines


def _operator_lines(status: PeerdStatus) -> list[str]:
    """Return who runs it, nothing for a peer that nobody is known to run."""
    said = "" if status.is_operator_registered else ", which the ledger does not say yet"
    if status.operator:
        return [f"  operator: {status.operator.hex()}{said}"]
    return []


def _stake_lines(status: PeerdStatus) -> list[str]:
    """Return what it has bonded and voted, nothing for a peer that never had a stake."""
    if status.is_stake_burned:
        return ["  stake: burned, because two of its votes contradicted each other; it votes no more"]
    if not status.stake:
        return []
    leaves = f", paid back at block {status.stake_release}" if status.stake_release else ""
    weight = "" if status.stake_weight or leaves else ", suspended for not voting: bond some more"
    vote = f"last vote for block {status.last_vote}" if status.last_vote else "no vote yet"
    return [f"  stake: {status.stake} bonded{leaves}{weight}; {vote}"]


def _handover_lines(status: PeerdStatus) -> list[str]:
    """Return how far the owners are with moving what a peer that leaves for good holds."""
    if status.departure != "leaving" or not status.departure_shards:
        return []
    left = max(status.shards - status.doomed_shards, 0)
    moved = max(status.departure_shards - left, 0)
    return [f"    owners have moved {moved} of {status.departure_shards} shards, {left} are left"]


def _health_lines(status: PeerdStatus, now: float) -> list[str]:
    """Return how the shards on the disk do."""
    damage = f"{status.damaged_shards} shards are damaged" if status.damaged_shards else "no damaged shards"
    lines = [f"  health: {damage}, {status.damaged_found} ever found, {status.scrub_errors} errors"]
    if status.scrub_started:
        part = min(100 * status.scrub_shards // max(status.shards, 1), 100)
        lines.append(f"    reads its shards again: {part} % since {format_duration(now - status.scrub_started)}")
    elif status.scrub_finished:
        ago = format_duration(now - status.scrub_finished)
        lines.append(f"    last read all its shards again {ago} ago ({format_size(status.scrub_bytes)})")
    else:
        lines.append("    has not read its shards again yet")
    return lines
