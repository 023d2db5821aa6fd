"""`decloud ledger run|status|blocks|show|verify|rebuild|...`: the chain node of this machine."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from fsdecloud.cli import client, ledgerpeers, network, networkdocument, parts, services, stake
from fsdecloud.cli.output import Progress, clean, emit, emit_json, rfc3339, table
from fsdecloud.cli.run import SYSTEM
from fsdecloud.cli.saveheaders import headers_command
from fsdecloud.config import Paths, find_paths
from fsdecloud.errors import LedgerUnavailable, UsageError
from fsdecloud.units import format_duration
from fsdecloud.wire.ledgerapi import BlockList, BlockQuery, LedgerStatus, SnapshotProgress, TxFound, TxQuery

if TYPE_CHECKING:
    from fsdecloud.ledger.blocks import Block

PAGE: Final = 256


@click.group("ledger", context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Run and question the chain node of this machine."""


command.add_command(networkdocument.new_network_command)
command.add_command(networkdocument.show_network_command)


@command.command("run")
@services.wish_options
@click.option("--listen", metavar="HOST:PORT", help="Where other daemons reach this one (port 0: any; remembered).")
@click.option("--advertise", metavar="HOST", help="The host name under which others reach this machine.")
@click.option("--bootstrap", metavar="URL", multiple=True, help="A daemon of the network to join; may be repeated.")
@click.option("--network", "network_file", metavar="FILE", help="The network's document, instead of --bootstrap.")
@click.option(
    "--mine/--no-mine", "mine", default=None, help="Whether to mine (the network's parameters decide otherwise)."
)
@click.option("--minimum-work", metavar="N", type=click.IntRange(0), help="Follow no chain with less work (hashes).")
@click.option(
    "--prune",
    metavar="MIB",
    type=click.IntRange(16),
    help="Keep only the last MIB mebibytes of block bodies, and all headers.",
)
def run_command(
    wishes: list[str],
    listen: str | None,
    advertise: str | None,
    bootstrap: tuple[str, ...],
    network_file: str | None,
    mine: bool | None,
    minimum_work: int | None,
    prune: int | None,
) -> None:
    """Run the ledger daemon in the foreground until SIGTERM or Ctrl-C.

    Without a network of its own yet it needs --bootstrap or --network; `decloud up` makes an embedded one.
    """
    paths = find_paths()
    parts.require_stopped(paths, "ledger")
    arguments = ledger_arguments(listen, bootstrap, network_file, advertise=advertise, mine=mine)
    if minimum_work is not None:
        arguments += ["--minimum-work", str(minimum_work)]
    if prune is not None:
        arguments += ["--prune", str(prune)]
    part = parts.ledger_part(arguments)
    sys.stdout.flush()
    os.execv(sys.executable, [*part.command(), *wishes])


def ledger_arguments(
    listen: str | None = None,
    bootstrap: tuple[str, ...] = (),
    network_file: str | None = None,
    *,
    advertise: str | None = None,
    mine: bool | None = None,
) -> list[str]:
    """Return the daemon's own arguments."""
    arguments = []
    if listen is not None:
        arguments += ["--listen", listen]
    if advertise is not None:
        arguments += ["--advertise", advertise]
    for url in bootstrap:
        arguments += ["--bootstrap", url]
    if network_file is not None:
        arguments += ["--network", os.path.abspath(network_file)]
    if mine is not None:
        arguments.append("--mine" if mine else "--no-mine")
    return arguments


command.add_command(ledgerpeers.peers_command)
command.add_command(services.explorer_command)
command.add_command(services.mining_command)


@command.command("status")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status_command(as_json: bool) -> None:
    """Show the chain's tip, the mempool and the connected daemons."""
    status = network.ledger_status(find_paths())
    if as_json:
        emit_json(status_fields(status))
        return
    emit(f"network {clean(status.name)} {status.network.hex()}")
    emit(f"address {clean(status.url) or '-'}")
    if status.light:
        emit(f"light   headers only; full daemons that prove the rest: {status.provers}")
    emit(f"height  {status.height}, tip {status.tip.hex()[:16]} of {rfc3339(status.tip_time)}")
    if status.snapshot is not None:
        emit(f"history {history_line(status, status.snapshot)}")
    emit(f"mempool {status.mempool} transactions; {'mining' if status.mining else 'not mining'}, pid {status.pid}")
    for line in ledgerpeers.connected(status.peers):
        emit(line)


def history_line(status: LedgerStatus, progress: SnapshotProgress) -> str:
    """Say how far a chain has come whose state at one block came from others."""
    match progress.stage:
        case "headers":
            return f"headers are being fetched, {progress.done} are here; then the state of a block near their end"
        case "state":
            return f"the state at block {progress.pivot} is being fetched, {progress.done} nodes are here"
        case "history":
            return f"from block {status.history} on; {progress.done} of {progress.total} blocks before the snapshot are here"
        case "execute":
            return f"from block 1 on; {progress.done} of {progress.total} blocks before the snapshot are verified"
        case "verified":
            return f"from block 1 on, all of it verified; it began with the state at block {progress.pivot}"
        case "fault":
            return f"the blocks before the snapshot at block {progress.pivot} break the rules: see the daemon's log"


def status_fields(status: LedgerStatus) -> dict[str, object]:
    """Return the object of `ledger status --json`."""
    return {
        "pid": status.pid,
        "network": status.network.hex(),
        "name": status.name,
        "url": status.url,
        "height": status.height,
        "tip": status.tip.hex(),
        "tip_time": rfc3339(status.tip_time),
        "work": str(int.from_bytes(status.work, "big")),
        "mempool": status.mempool,
        "mining": status.mining,
        "hash_rate": status.hash_rate,
        "light": status.light,
        "provers": status.provers,
        "history": status.history,
        "snapshot": None
        if status.snapshot is None
        else {
            "stage": status.snapshot.stage,
            "pivot": status.snapshot.pivot,
            "done": status.snapshot.done,
            "total": status.snapshot.total,
        },
        "peers": ledgerpeers.peer_fields(status.peers),
    }  # fmt: skip


@command.command("blocks")
@click.option(
    "--first", metavar="HEIGHT", type=click.IntRange(0), help="Where to begin (default: --count before the tip)."
)
@click.option(
    "--count", metavar="N", type=click.IntRange(1, 1_000_000), default=20, show_default=True, help="How many."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def blocks_command(first: int | None, count: int, as_json: bool) -> None:
    """List blocks of the best chain, lowest first."""
    from fsdecloud.ledger.blocks import decode_block

    paths = find_paths()
    network.require_ledger(paths)
    with client.Client(paths.socket("ledger"), error=LedgerUnavailable) as link:
        if first is None:
            first = max(1, network.ledger_status(paths).height - count + 1)
        height, left = max(1, first), count
        while left > 0:
            page = link.call("blocks", BlockQuery(height, min(left, PAGE)), BlockList)
            if not page.blocks:
                return
            for data in page.blocks[:left]:
                fields = block_fields(decode_block(data))
                if as_json:
                    emit_json(fields)
                else:
                    emit(
                        f"{fields['height']:>8}  {fields['time']}  {fields['id']}  {len(_list(fields['transactions']))} tx"
                    )
            height += len(page.blocks)
            left -= len(page.blocks)


def _list(value: object) -> list[object]:
    assert isinstance(value, list)
    return value


def block_fields(block: Block) -> dict[str, object]:
    """Return one block as JSON fields."""
    from fsdecloud.ledger.blocks import block_id
    from fsdecloud.ledger.transactions import decode_tx, tx_id

    header = block.header
    return {
        "height": header.height,
        "id": block_id(header).hex(),
        "parent": header.parent.hex(),
        "time": rfc3339(header.time),
        "target": header.target.hex(),
        "state_root": header.state_root.hex(),
        "transactions": [tx_id(decode_tx(data)).hex() for data in block.transactions],
    }


@command.command("show")
@click.argument("tx", metavar="TX")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show_command(tx: str, as_json: bool) -> None:
    """Show the transaction with the id TX (64 hexadecimal digits)."""
    from fsdecloud.ledger.transactions import decode_tx
    from fsdecloud.types import TxId

    try:
        identity = TxId(bytes.fromhex(tx))
    except ValueError:
        identity = TxId(b"")
    if len(identity) != 32:
        raise UsageError(
            f"{tx!r} is not a transaction id: 64 hexadecimal digits, as `decloud ledger blocks --json` shows them"
        )
    paths = find_paths()
    network.require_ledger(paths)
    found = client.call(paths.socket("ledger"), "tx", TxQuery(identity), TxFound, error=LedgerUnavailable)
    if not found.tx:
        raise UsageError(f"the ledger knows no transaction {tx}")
    fields: dict[str, object] = {
        "id": tx.lower(),
        **transaction_fields(decode_tx(found.tx)),
        "bytes": len(found.tx),
        "height": found.height,
        "index": found.index if found.height is not None else None,
        "confirmations": found.confirmations,
    }
    if as_json:
        emit_json(fields)
        return
    for line in table([[name, "-" if value is None else str(value)] for name, value in fields.items()]):
        emit(line)


def transaction_fields(tx: Any) -> dict[str, object]:
    """Return a transaction's own fields: bytes in hexadecimal, times as RFC 3339."""
    fields: dict[str, object] = {"kind": type(tx).__name__.lower()}
    for name in tx.__struct_fields__:
        value = getattr(tx, name)
        if isinstance(value, bytes):
            value = value.hex()
        elif name == "lease_expiry":
            value = rfc3339(value)
        fields[name] = value
    return fields


command.add_command(headers_command)
command.add_command(stake.bond_command)
command.add_command(stake.unbond_command)
command.add_command(stake.finality_command)


@command.command("accept-tip")
@click.argument("block")
def accept_tip_command(block: str) -> None:
    """Follow the chain that ends in BLOCK, although it reorganises blocks deeper than the finality depth.

    Only after comparing with others whom you trust: the daemon's log names the block and what it would undo.
    """
    from fsdecloud.wire.ledgerapi import KeyQuery

    try:
        identity = bytes.fromhex(block)
    except ValueError:
        identity = b""
    if len(identity) != 32:
        raise UsageError(f"{block!r} is not a block id: 64 hexadecimal digits, as the ledger daemon's log shows it")
    status = client.call(
        find_paths().socket("ledger"), "accept_tip", KeyQuery(identity), LedgerStatus, error=LedgerUnavailable
    )
    emit(f"the chain now ends at height {status.height}, block {status.tip.hex()}")


@command.command("verify")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify_command(as_json: bool) -> int:
    """Check every stored block against every rule, from the first on; name the height and reason of the first difference.

    Exit code 0: all is well; 2: something differs.
    """
    paths = find_paths()
    network.require_network(paths)
    return _verify(paths, as_json=as_json)


def _verify(paths: Paths, *, as_json: bool) -> int:
    from fsdecloud.errors import LedgerError, StoreError
    from fsdecloud.ledgerd.verify import offline_verify

    progress = Progress()
    try:
        found = offline_verify(paths, lambda done, total: progress.show(f"verified {done} of {total} blocks"))
    except (LedgerError, StoreError) as exc:
        progress.end()
        if as_json:
            emit_json({"ok": False, "height": getattr(exc, "height", None), "error": str(exc)})
            return SYSTEM
        raise UsageError(f"the stored chain is damaged: {exc}", SYSTEM) from exc
    progress.end()
    if as_json:
        emit_json({
            "ok": True,
            "network": found.network.hex(),
            "height": found.height,
            "tip": found.tip.hex(),
            "state_root": found.state_root.hex(),
            "error": None,
        })  # fmt: skip
    else:
        emit(f"all {found.height} blocks follow the rules; tip {found.tip.hex()}")
    return 0


@command.command("rebuild")
@click.option("--discard", is_flag=True, help="Take nothing from the stored chain; all of it comes from other daemons.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def rebuild_command(discard: bool, as_json: bool) -> None:
    """Make the stored chain anew: what is whole of it is verified and kept, the rest comes from other daemons.

    For a chain that is damaged. The ledger daemon must be stopped; when it runs again it fetches what is missing.
    """
    from fsdecloud.ledgerd.rebuild import rebuild_chain

    paths = find_paths()
    network.require_network(paths)
    parts.require_stopped(paths, "ledger")
    progress = Progress()
    try:
        found = rebuild_chain(
            paths, discard=discard, progress=lambda done, total: progress.show(f"kept {done} of {total} blocks")
        )
    finally:
        progress.end()
    if as_json:
        emit_json({"kept": found.kept, "before": found.before, "reason": found.reason or None})
        return
    emit(f"{found.kept} blocks are kept" + (f" of {found.before}" if found.before is not None else ""))
    if found.reason:
        emit(f"not more, because: {clean(found.reason)}")
        emit("the rest comes from other daemons when the ledger daemon runs again")


def describe_age(seconds: float) -> str:
    """Say how old something is."""
    return f"{format_duration(seconds)} old" if seconds >= 0 else "from the future by this clock"
