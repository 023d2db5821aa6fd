"""`decloud mine URL`: lend this machine's processor to a ledger daemon elsewhere."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fsdecloud.cli.output import clean, note
from fsdecloud.cli.services import take_percent
from fsdecloud.config import find_paths
from fsdecloud.errors import UsageError

if TYPE_CHECKING:
    from fsdecloud.ledgerd.remote import RemoteMining


@click.command("mine")
@click.argument("url", metavar="URL")
@click.option("--token-file", metavar="FILE", help="The daemon's token (this home's own by default).")
@click.option("--workers", metavar="N", type=click.IntRange(1, 256), default=1, show_default=True, help="Processes.")
@click.option(
    "--duty", metavar="PERCENT", callback=take_percent, default="100", help="How much of one core each may use (100%)."
)
@click.option(
    "--nice",
    metavar="N",
    type=click.IntRange(0, 19),
    default=10,
    show_default=True,
    help="How much they yield to others.",
)
@click.option("--name", metavar="NAME", help="What the daemon's people see (this machine's host name by default).")
def command(url: str, token_file: str | None, workers: int, duty: int, nice: int, name: str | None) -> int:
    """Mine for the ledger daemon at URL, which gives out work (`decloud ledger run --work`), until Ctrl-C.

    `decloud ledger mining` shows URL there. What is found belongs to that daemon.
    """
    import trio

    from fsdecloud.ledgerd.crew import CrewPlan
    from fsdecloud.ledgerd.remote import RemoteMining
    from fsdecloud.ledgerd.settings import read_token
    from fsdecloud.ledgerd.settings import token_file as own_token_file
    from fsdecloud.net.address import parse_url

    logging.basicConfig(
        stream=sys.stderr,
        level=os.environ.get("FSDECLOUD_LOG", "warning").upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    address = parse_url(url)
    path = Path(token_file) if token_file is not None else own_token_file(find_paths())
    if token_file is None and not path.exists():
        raise UsageError(f"the token of the daemon is needed: copy its {path.name} here and name it with --token-file")
    plan = CrewPlan(workers, duty, nice)
    mining = RemoteMining(address, read_token(path), name or socket.gethostname(), plan, lambda text: note(clean(text)))
    trio.run(_until_signal, mining)
    note("stopped")
    return 0


async def _until_signal(mining: RemoteMining) -> None:
    import trio

    from fsdecloud.net.nursery import open_background

    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with open_background() as nursery:
            nursery.start_soon(mining.run)
            async for _ in signals:
                return
