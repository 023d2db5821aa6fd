"""`decloud init NAME`: create a volume."""

from __future__ import annotations

import secrets
import sys

import click
import msgspec

from fsdecloud.cli import network, volumes
from fsdecloud.cli.budget import parse_budget
from fsdecloud.cli.output import emit, emit_json, note
from fsdecloud.cli.phrase import write_phrase_file
from fsdecloud.config import Paths, find_paths
from fsdecloud.errors import UsageError


def create_volume(
    paths: Paths,
    name: str,
    network_id: bytes,
    *,
    redundancy: str = "auto",
    passphrase: str | None = None,
    budget: int = 0,
) -> bytes:
    """Create a volume in this home and let this home's peers admit it; return its root secret. `budget`: what storage deals
    may cost a month, in the smallest unit.

    Raises UsageError when the name is taken or bad.
    """
    volumes.require_new(paths, name)
    root = secrets.token_bytes(32)
    document = volumes.make_document(paths, name, root, network_id, redundancy=redundancy, passphrase=passphrase)
    volumes.save_document(paths, msgspec.structs.replace(document, budget=budget))
    network.admit_volume(paths, root)
    return root


@click.command("init")
@click.argument("name", metavar="NAME")
@click.option(
    "--redundancy", metavar="K/N", default="auto", show_default=True, help="Store n shards, any k of which are enough."
)
@click.option("--budget", metavar="AMOUNT/month", help="What storage deals with peers may cost; none by default.")
@click.option(
    "--passphrase", "ask", is_flag=True, help="Lock it with a passphrase, asked for here, not with the device key."
)
@click.option("--passphrase-file", metavar="FILE", help="The same, from a file of mode 0600; - is standard input.")
@click.option(
    "--phrase-file", metavar="FILE", help="Write the 24 words to a new file of mode 0600 instead of showing them."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object (needs --phrase-file).")
def command(
    name: str,
    redundancy: str,
    budget: str | None,
    ask: bool,
    passphrase_file: str | None,
    phrase_file: str | None,
    as_json: bool,
) -> None:
    """Create the volume NAME.

    Shows its 24 words: with them and the address of one node, an empty machine gets the whole volume back. By default the
    volume opens with this machine's device key, so that it can be mounted unattended.
    """
    from fsdecloud.swarm.policy import parse_redundancy

    if as_json and phrase_file is None:
        raise UsageError("--json needs --phrase-file: the words do not go into a program's output")
    parse_redundancy(redundancy)
    amount = 0 if budget is None else parse_budget(budget)
    paths = find_paths()
    volumes.require_new(paths, name)
    network_id = network.require_network(paths)
    passphrase = None
    if passphrase_file is not None:
        passphrase = volumes.read_passphrase_file(passphrase_file)
    elif ask:
        passphrase = volumes.ask_new_passphrase(name)
    root = create_volume(paths, name, network_id, redundancy=redundancy, passphrase=passphrase, budget=amount)
    if phrase_file is not None:
        write_phrase_file(phrase_file, root)
    if as_json:
        document = volumes.load_document(paths, name)
        emit_json({"volume": name, "id": document.volume_id, "network": document.network, "redundancy": redundancy})
        return
    if phrase_file is not None:
        emit(f"volume {name} is ready; its recovery phrase is in {phrase_file}")
        return
    emit(volumes.show_phrase(name, root))
    _check_written(root)
    emit(f"volume {name} is ready: decloud mount {name} DIR")


def _check_written(root: bytes) -> None:
    """Ask for two of the words at a terminal. A wrong answer undoes nothing: `decloud phrase` shows them again."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return
    from fsdecloud.crypto.phrase import phrase_from_root

    words = phrase_from_root(root).split()
    for place in sorted(secrets.SystemRandom().sample(range(24), 2)):
        answer = input(f"To check your copy, word {place + 1}: ").strip().lower()
        if answer != words[place]:
            note(f"That is not word {place + 1}. Compare your copy with `decloud phrase`.")
            return
