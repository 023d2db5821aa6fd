"""`decloud ledger peers`: the daemons that this home's ledger daemon is connected to, and those that it shuts out."""

from __future__ import annotations

import click

from fsdecloud.cli import client, network
from fsdecloud.cli.output import clean, emit, emit_json, rfc3339, table
from fsdecloud.config import find_paths
from fsdecloud.errors import LedgerUnavailable, UsageError
from fsdecloud.wire.agentapi import Empty
from fsdecloud.wire.ledgerapi import BanList, BannedAddress, LedgerPeer


@click.command("peers")
@click.option("--bans", "show_bans", is_flag=True, help="List the addresses whose calls are not taken, and until when.")
@click.option("--unban", metavar="ADDRESS", help="Take calls from ADDRESS again (all: from everybody).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def peers_command(show_bans: bool, unban: str | None, as_json: bool) -> None:
    """List the connected ledger daemons, or those that misbehaved and are shut out for a day."""
    paths = find_paths()
    if not show_bans and unban is None:
        _show_connected(network.ledger_status(paths).peers, as_json=as_json)
        return
    if unban is not None and not unban.strip():
        raise UsageError("--unban takes an address as --bans lists it, or all")
    with client.Client(paths.socket("ledger"), error=LedgerUnavailable) as ledger:
        if unban is None:
            found = ledger.call("bans", Empty(), BanList)
        else:
            found = ledger.call("unban", BannedAddress("" if unban == "all" else unban.strip()), BanList)
    if as_json:
        emit_json({"bans": [{"address": ban.address, "until": rfc3339(ban.until)} for ban in found.bans]})
        return
    rows = [[clean(ban.address), rfc3339(ban.until)] for ban in found.bans]
    for line in table(rows, header=("shut out", "until")) if rows else ["nobody is shut out"]:
        emit(line)


def _show_connected(peers: tuple[LedgerPeer, ...], *, as_json: bool) -> None:
    if as_json:
        emit_json({"peers": peer_fields(peers)})
        return
    for line in connected(peers):
        emit(line)


def peer_fields(peers: tuple[LedgerPeer, ...]) -> list[dict[str, object]]:
    """Return connected daemons as stable JSON fields."""
    return [{"url": peer.url, "id": peer.id.hex(), "inbound": peer.inbound, "height": peer.height} for peer in peers]


def connected(peers: tuple[LedgerPeer, ...]) -> list[str]:
    """Return the lines on connected daemons that people read."""
    rows = [[p.url or "-", "in" if p.inbound else "out", str(p.height), p.id.hex()[:16]] for p in peers]
    if not rows:
        return ["no other daemon is connected"]
    return list(table(rows, header=("daemon", "way", "height", "id"), right=(2,)))
