"""`decloud ledger headers FILE`: all headers of the best chain, for whoever verifies certificates without a ledger."""

from __future__ import annotations

import os

import click

from fsdecloud.cli import client, network
from fsdecloud.cli.newfile import new_file
from fsdecloud.cli.output import clean, emit, emit_json
from fsdecloud.config import find_paths
from fsdecloud.errors import LedgerUnavailable
from fsdecloud.wire.ledgerapi import HEADERS_AT_ONCE, HeaderList, HeaderQuery


@click.command("headers")
@click.argument("file", metavar="FILE")
@click.option("--force", is_flag=True, help="Replace FILE.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def headers_command(file: str, force: bool, as_json: bool) -> None:
    """Write all headers of the best chain to FILE, about 200 bytes for each block.

    `decloud verify-certificate --headers FILE` believes them where there is no ledger.
    """
    from fsdecloud.ledger.headerfile import MAGIC, encode_row

    paths = find_paths()
    network.require_ledger(paths)
    height = 0
    with client.Client(paths.socket("ledger"), error=LedgerUnavailable) as ledger, new_file(file, force=force) as out:
        out.write(MAGIC)
        count = HEADERS_AT_ONCE
        while count == HEADERS_AT_ONCE:
            query = HeaderQuery(height + 1, HEADERS_AT_ONCE)
            page = ledger.call("headers", query, HeaderList, timeout=60.0).headers
            out.write(b"".join(map(encode_row, page)))
            count = len(page)
            height += count
    size = os.stat(file).st_size
    if as_json:
        emit_json({"file": file, "height": height, "bytes": size})
    else:
        emit(f"{clean(file)}: {height} headers")
