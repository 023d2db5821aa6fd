"""`decloud budget NAME [AMOUNT/month]`: what storage deals may cost."""

from __future__ import annotations

import re

import click
import msgspec

from fsdecloud.cli import client, drivers, parts, volumes
from fsdecloud.cli.output import emit, emit_json
from fsdecloud.config import Paths, check_name, find_paths
from fsdecloud.errors import UsageError
from fsdecloud.wire.agentapi import Budget, Empty

AMOUNT_MAX = 1 << 60


def parse_budget(text: str) -> int:
    """Return the amount, in the smallest unit, of "AMOUNT/month". Raises UsageError for anything else."""
    found = re.fullmatch("([0-9]{1,19})/month", text.strip(), re.ASCII)
    if found is None or int(found[1]) > AMOUNT_MAX:
        raise UsageError(
            f"{text!r} is no budget: a whole number of the smallest unit, up to {AMOUNT_MAX}, and /month, as 5000/month"
        )
    return int(found[1])


def set_budget(paths: Paths, name: str, amount: int) -> bool:
    """Write it into the volume's document and tell a running driver; return whether there is one.

    Raises UsageError for an unknown volume, and what the driver raises: it holds from the next mount on then.
    """
    document = volumes.load_document(paths, name)
    volumes.save_document(paths, msgspec.structs.replace(document, budget=amount))
    if parts.running_pid(paths, drivers.PREFIX + name) is None:
        return False
    client.call(paths.socket(drivers.PREFIX + name), "budget", Budget(amount), Empty, timeout=20.0)
    return True


@click.command("budget")
@click.argument("name", metavar="NAME")
@click.argument("amount", metavar="[AMOUNT/month]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(name: str, amount: str | None, as_json: bool) -> None:
    """Show what storage deals of the volume NAME may cost a month, or change it.

    Deals that run go on to their ends; 0/month makes no new ones.
    """
    paths = find_paths()
    budget = volumes.load_document(paths, check_name(name)).budget
    if amount is not None:
        budget = parse_budget(amount)
        set_budget(paths, name, budget)
    if as_json:
        emit_json({"volume": name, "budget": budget})
    elif amount is None and not budget:
        emit(f"volume {name} has no budget: it stores with peers that want no money")
    else:
        emit(f"volume {name}: storage deals may cost {budget} a month")
