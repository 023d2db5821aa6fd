"""`decloud recover NAME`: an empty machine gets a volume back from its 24 words and one address.

Writes the volume's document and finds its latest anchor in the ledger; files and metadata are fetched when they are read.
"""

from __future__ import annotations

import time
from typing import Final

import click
import msgspec

from fsdecloud.cli import client, network, parts, volumes
from fsdecloud.cli.ledger import describe_age, ledger_arguments
from fsdecloud.cli.output import Progress, emit, emit_json, note, rfc3339
from fsdecloud.cli.run import SYSTEM
from fsdecloud.config import Paths, find_paths
from fsdecloud.errors import FsdecloudError, LedgerUnavailable, UsageError
from fsdecloud.units import parse_duration
from fsdecloud.wire.agentapi import Empty
from fsdecloud.wire.ledgerapi import KeyQuery, LedgerStatus, VolumeAnchor

SETTLED: Final = 3.0
"""The chain is taken as synced when it has not grown for this long and no connected daemon is ahead."""


def find_anchor(paths: Paths, volume_id: bytes, timeout: float) -> tuple[VolumeAnchor, LedgerStatus]:
    """Wait until the ledger daemon is in step with the others and return the volume's latest anchor.

    Raises UsageError (exit code 2) when there is none after `timeout` seconds, or once the chain is complete.
    """
    progress = Progress()
    deadline = time.monotonic() + timeout
    height, since, connected = -1, time.monotonic(), False
    try:
        with client.Client(paths.socket("ledger"), error=LedgerUnavailable) as link:
            while True:
                status = link.call("status", Empty(), LedgerStatus)
                best = max([peer.height for peer in status.peers], default=0)
                connected = connected or bool(status.peers)
                if status.height != height:
                    height, since = status.height, time.monotonic()
                progress.show(
                    f"ledger at block {status.height} of {max(best, status.height)}, {len(status.peers)} daemons"
                )
                in_step = connected and status.height >= best and time.monotonic() - since >= SETTLED
                if in_step or time.monotonic() >= deadline:
                    anchor = link.call("volume", KeyQuery(volume_id), VolumeAnchor)
                    break
                time.sleep(0.2)
    finally:
        progress.end()
    if not connected:
        raise UsageError(
            f"no daemon of the network answers within {timeout:g} s: check the --bootstrap address", SYSTEM
        )
    if not anchor.tx:
        raise UsageError(
            f"the ledger (block {status.height} of {rfc3339(status.tip_time)}) has no anchor of this volume: "
            "are these the right words, and is it the right network?",
            SYSTEM,
        )
    return anchor, status


@click.command("recover")
@click.argument("name", metavar="NAME")
@click.option("--phrase-file", metavar="FILE", required=True, help="File with the 24 words; - is standard input.")
@click.option(
    "--bootstrap", metavar="URL", required=True, multiple=True, help="Address of a ledger daemon; may be repeated."
)
@click.option(
    "--peer", "peers", metavar="ADDRESS", multiple=True, help="A storage peer to ask for others; may be repeated."
)
@click.option(
    "--passphrase-file", metavar="FILE", help="Lock it here with the passphrase in FILE, not with the device key."
)
@click.option(
    "--timeout",
    metavar="TIME",
    default="10m",
    show_default=True,
    help="Give up when the ledger is not in step by then.",
)
@click.option("--light", is_flag=True, help="Start the ledger daemon with headers only (remembered).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    name: str,
    phrase_file: str,
    bootstrap: tuple[str, ...],
    peers: tuple[str, ...],
    passphrase_file: str | None,
    timeout: str,
    light: bool,
    as_json: bool,
) -> None:
    """Get the volume NAME back: read its 24 words, join the ledger network and find the volume's latest anchor.

    Then `decloud mount NAME DIR` gives back every anchored file, fetched as it is read. The name is this machine's own; it
    need not be the one of before.
    """
    from fsdecloud.crypto.keys import VolumeKeys
    from fsdecloud.ledger.transactions import Anchor, decode_tx
    from fsdecloud.net.address import parse_bootstrap, parse_url

    limit = parse_duration(timeout, "--timeout")
    known = tuple(str(address) for address in parse_bootstrap(peers))
    paths = find_paths()
    volumes.require_new(paths, name)
    wanted = {address.network for address in map(parse_url, bootstrap) if address.network is not None}
    if network.has_network(paths) and wanted - {network.require_network(paths)}:
        raise UsageError("this machine belongs to another ledger network than that address: use another FSDECLOUD_HOME")
    passphrase = volumes.read_passphrase_file(passphrase_file) if passphrase_file is not None else None
    root = volumes.read_phrase(phrase_file)
    volume_id = VolumeKeys.from_root(root).volume_id
    started = parts.running_pid(paths, "ledger") is None
    if started:
        part = parts.ledger_part(ledger_arguments(bootstrap=bootstrap) + ["--light"] * light)
        process = parts.ensure_part(paths, part)
        if process is not None:
            process.returncode = 0  # it lives on, for the mount
    try:
        anchor, status = find_anchor(paths, volume_id, limit)
        tx = decode_tx(anchor.tx)
        if not isinstance(tx, Anchor) or tx.volume != volume_id:
            raise UsageError("the ledger daemon answers with what is no anchor of this volume", SYSTEM)
        document = volumes.make_document(paths, name, root, network.require_network(paths), passphrase=passphrase)
        volumes.save_document(paths, msgspec.structs.replace(document, bootstrap=known))
    except FsdecloudError:
        if started:
            parts.stop_parts(paths, ["ledger"])
        raise
    age = time.time() - status.tip_time
    if as_json:
        emit_json({
            "volume": name,
            "id": volume_id.hex(),
            "network": status.network.hex(),
            "sequence": tx.sequence,
            "height": anchor.height,
            "tip_height": status.height,
            "tip_time": rfc3339(status.tip_time),
        })  # fmt: skip
        return
    emit(f"volume {name}: anchor {tx.sequence} in block {anchor.height}")
    emit(f"the ledger's tip is block {status.height} of {rfc3339(status.tip_time)} ({describe_age(age)})")
    emit(f"decloud mount {name} DIR gives its files back")
    if len(status.peers) < 2:
        note("only one daemon was asked: it could show an older state; another --bootstrap address makes sure")
