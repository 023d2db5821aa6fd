"""What the ledger daemon does besides keeping its chain, as a person asks for it: `decloud ledger explorer|mining`, and the
options of `decloud ledger run` and `decloud mine` for it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, Final

import click

from fsdecloud.cli import client, network
from fsdecloud.cli.output import clean, emit, emit_json, table
from fsdecloud.config import Paths, find_paths
from fsdecloud.errors import LedgerUnavailable, UsageError
from fsdecloud.units import parse_percent
from fsdecloud.wire.agentapi import Empty
from fsdecloud.wire.ledgerapi import ServicesInfo

_WISHES: Final = ("mine_workers", "mine_duty", "mine_nice", "work", "explorer", "light", "snapshot")


def take_percent(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Read the value of an option PERCENT: 1 to 100, with the sign or without it (click's callback)."""
    try:
        return None if value is None else parse_percent(value)
    except UsageError as exc:
        raise click.BadParameter(str(exc), ctx, param) from exc


def wish_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that the daemon's services have; `function` gets the daemon's own arguments for them as `wishes`."""

    @wraps(function)
    def collecting(**given: Any) -> Any:
        wishes = wish_arguments({name: given.pop(name) for name in _WISHES})
        return function(wishes=wishes, **given)

    options = (
        click.option("--mine-workers", metavar="N", type=click.IntRange(0, 256), help="Mining processes (1)."),
        click.option(
            "--mine-duty", metavar="PERCENT", callback=take_percent, help="How much of one core each may use (100%)."
        ),
        click.option(
            "--mine-nice", metavar="N", type=click.IntRange(0, 19), help="How much they yield to others (10)."
        ),
        click.option("--work", metavar="[HOST:]PORT", help="Give work to miners elsewhere: see decloud mine."),
        click.option("--explorer", metavar="[HOST:]PORT", help="Show pages about the ledger on this machine."),
        click.option("--light/--no-light", "light", default=None, help="Keep headers only (remembered)."),
        click.option(
            "--snapshot/--no-snapshot",
            "snapshot",
            default=None,
            help="Let a new chain begin with a state from others (remembered).",
        ),
    )
    wrapped: Callable[..., Any] = collecting
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


def wish_arguments(wishes: Mapping[str, object]) -> list[str]:
    """Return the daemon's own arguments for what was given of these options."""
    found = []
    for name, value in wishes.items():
        if isinstance(value, bool):
            found.append(f"--{name}" if value else f"--no-{name}")
        elif value is not None:
            found += [f"--{name.replace('_', '-')}", str(value)]
    return found


def services_info(paths: Paths) -> ServicesInfo:
    """Ask the ledger daemon. Raises LedgerUnavailable when it does not run or answer."""
    network.require_ledger(paths)
    return client.call(paths.socket("ledger"), "services", Empty(), ServicesInfo, error=LedgerUnavailable)


@click.command("explorer")
@click.option("--open", "do_open", is_flag=True, help="Open it in this desktop's browser.")
def explorer_command(do_open: bool) -> None:
    """Print the address of the pages that show the ledger."""
    address = services_info(find_paths()).explorer
    if not address:
        raise UsageError(
            "this home's ledger daemon shows no pages: start it with `decloud ledger run --explorer PORT`, "
            "or write explorer = PORT into ledgerd.toml in its state directory"
        )
    emit(clean(address))
    if do_open:
        import webbrowser

        if not webbrowser.open(address):
            raise UsageError("there is no browser to open it in; the address is above")


@click.command("mining")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def mining_command(as_json: bool) -> None:
    """Show who mines for this home's ledger daemon."""
    paths = find_paths()
    info = services_info(paths)
    status = network.ledger_status(paths)
    if as_json:
        emit_json({
            "mining": status.mining,
            "workers": info.workers,
            "duty": info.duty,
            "hash_rate": info.hash_rate,
            "work": info.work,
            "miners": [
                {"name": m.name, "remote": m.remote, "shares": m.shares, "blocks": m.blocks, "hash_rate": m.hash_rate}
                for m in info.miners
            ],
        })  # fmt: skip
        return
    state = f"mining, {format_rate(info.hash_rate)}" if status.mining else "at rest: there is nothing to mine"
    own = f"{info.workers} processes here, {info.duty}% of a core each" if info.workers else "no process here"
    emit(f"state   {state if info.workers or info.work else 'this daemon does not mine'}")
    emit(f"workers {own}")
    emit(f"work    {clean(info.work) or 'not given to others'}")
    rows = [[m.name, m.remote, str(m.shares), str(m.blocks), format_rate(m.hash_rate)] for m in info.miners]
    for line in table(rows, header=("miner", "address", "shares", "blocks", "rate"), right=(2, 3, 4)) if rows else ():
        emit(line)


def format_rate(rate: float) -> str:
    """Return hashes per second for people."""
    for unit in ("H/s", "kH/s", "MH/s", "GH/s"):
        if rate < 1000 or unit == "GH/s":
            break
        rate /= 1000
    return re.sub(r"\.0 ", " ", f"{rate:.1f} {unit}")
