"""`decloud certify FILE`: a certificate of what a file is or was, for others to verify (fsdecloud-certificate(5)).

The driver makes the statement and gets it into a block; here the block, the headers and the rest of the way come together.
What is written was verified first.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import click

from fsdecloud import codec
from fsdecloud.cli import client, drivers, network, sync
from fsdecloud.cli.newfile import check_free, new_file
from fsdecloud.cli.output import Progress, clean, emit, emit_json
from fsdecloud.config import find_paths
from fsdecloud.errors import BlockPruned, CertificateError, LedgerUnavailable, UsageError
from fsdecloud.units import format_size, parse_duration
from fsdecloud.wire.agentapi import Empty
from fsdecloud.wire.controlapi import Certified, CertifyRequest
from fsdecloud.wire.ledgerapi import (
    HEADERS_AT_ONCE,
    AnchorList,
    AnchorQuery,
    BlockList,
    BlockQuery,
    HeaderList,
    HeaderQuery,
    NetworkInfo,
)

if TYPE_CHECKING:
    from fsdecloud.ledger.certificate import Certificate, Place
    from fsdecloud.ledger.network import NetworkDocument

WHOLE_CHAIN: Final = 4096
"""Blocks of a chain that goes into a certificate from the first one on: about 800 KiB of headers."""

SHORT_CHAIN: Final = 4096
"""Of a longer one there are the headers from the state's anchor to the statement's, if they are not further apart, and as many
after it."""

SUFFIX: Final = ".certificate"

SNAPSHOTS: Final = b".snapshots"

_LEDGER_TIMEOUT: Final = 60.0
_ANSWER_TIMEOUT: Final = 3600.0
"""Without --timeout: a large file is read, and blocks may be rare."""


@click.command("certify")
@click.argument("file", metavar="FILE")
@click.option("--at", metavar="SNAP", help="As it was then: a time in UTC, or a snapshot's number or name.")
@click.option("--to", "dest", metavar="PATH", help="Where to write it (default: here, called NAME.certificate).")
@click.option("--show-path", is_flag=True, help="Disclose where in the volume FILE is.")
@click.option("--short", is_flag=True, help="Leave old headers out: the verifier then needs them, or a block to trust.")
@click.option("--timeout", metavar="TIME", help="Give up waiting for a block after this (exit code 2 or 3).")
@click.option("--force", is_flag=True, help="Replace what is there.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    file: str,
    at: str | None,
    dest: str | None,
    show_path: bool,
    short: bool,
    timeout: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write a certificate of what FILE is, or was at SNAP, that anybody can verify without a key of the volume.

    It proves that the volume's owner stated the content before a certain block. SNAP is a time such as 2026-11-22T18:30
    (the last snapshot until then), or the number or name of a snapshot.
    """
    from fsdecloud.cli.verifycertificate import verdict_fields
    from fsdecloud.ledger.certificate import decode_certificate, encode_certificate, verify_certificate
    from fsdecloud.ledger.headerfile import ids_of
    from fsdecloud.ledger.network import decode_network

    limit = None if timeout is None else parse_duration(timeout, "--timeout")
    paths = find_paths()
    volume, path = drivers.place_of(paths, file)
    path, at = in_snapshot(path, at)
    target = dest if dest is not None else os.path.basename(os.fsdecode(path)) + SUFFIX
    check_free(target, force=force)
    network.require_ledger(paths)
    if at is None:
        sync.bring(paths, volume, "anchored", limit)
    progress = Progress()
    progress.show(f"{volume}: waiting for the block with the statement")
    try:
        with client.Client(paths.socket(drivers.PREFIX + volume), error=drivers.UnansweredDriver) as driver:
            request = CertifyRequest(path, at or "latest")
            certified = driver.call("certify", request, Certified, timeout=limit or _ANSWER_TIMEOUT)
    finally:
        progress.end()
    with client.Client(paths.socket("ledger"), error=LedgerUnavailable) as ledger:
        info = ledger.call("network", Empty(), NetworkInfo, timeout=_LEDGER_TIMEOUT)
        document = decode_network(info.document)
        certificate = _assemble(ledger, document, certified, show_path=show_path, short=short)
    data = encode_certificate(certificate)
    verdict = verify_certificate(decode_certificate(data), document, ids_of(certificate.headers).get)
    with new_file(target, force=force) as out:
        out.write(data)
    if as_json:
        emit_json({"certificate": target, "bytes": len(data), **verdict_fields(verdict)})
        return
    emit(f"{clean(target)}: {format_size(len(data))}, statement in block {verdict.height}, anchor {verdict.sequence}")
    emit(f"content {verdict.content.hex()}, {verdict.size} bytes, as of anchor {verdict.state_sequence}")
    if verdict.work is None:
        emit("it does not hold the whole chain: who verifies it needs the network's headers, or a block to trust")


def in_snapshot(path: bytes, at: str | None) -> tuple[bytes, str | None]:
    """Return a path from the volume's root and the snapshot that is meant, also for a path below `.snapshots`."""
    top, _slash, rest = path.removeprefix(b"/").partition(b"/")
    directory, _slash, inside = rest.partition(b"/")
    if top != SNAPSHOTS or not inside:
        return path, at
    if at is not None:
        raise UsageError(f"{os.fsdecode(path)} is in a snapshot: leave --at out")
    return b"/" + inside, os.fsdecode(directory)


def _assemble(
    ledger: client.Client, document: NetworkDocument, certified: Certified, *, show_path: bool, short: bool
) -> Certificate:
    """Return the certificate of a statement in a block, with headers of the ledger daemon's best chain."""
    from fsdecloud.fs.statement import PathOpening, Statement
    from fsdecloud.ledger.certificate import assemble_certificate
    from fsdecloud.ledger.network import network_id

    statement = codec.decode(certified.statement, Statement)
    anchor = _place(ledger, certified.volume, certified.sequence)
    try:
        state = _place(ledger, certified.volume, statement.sequence)
    except BlockPruned:  # the statement says what the state was; without its block, not how long before
        state = None
    if anchor is None:
        raise CertificateError("the block with the statement is not in the ledger daemon's chain any more: try again")
    headers = () if short else _headers(ledger, 1, WHOLE_CHAIN + 1)
    if not 0 < len(headers) <= WHOLE_CHAIN:
        if state is not None and anchor.height - state.height > SHORT_CHAIN:
            state = None
        first = anchor.height if state is None else state.height
        headers = _headers(ledger, first, anchor.height - first + SHORT_CHAIN)
    opening = codec.decode(certified.path, PathOpening) if show_path else None
    stored = (certified.manifest, certified.root)
    return assemble_certificate(
        network_id(document), statement, opening, certified.record, stored, anchor, state, headers
    )


def _place(ledger: client.Client, volume: bytes, sequence: int) -> Place | None:
    """Return an anchor and the way to its block's header; None while the ledger daemon does not have them."""
    from fsdecloud.ledger.blocks import decode_block
    from fsdecloud.ledger.certificate import Place, branch_of

    found = ledger.call("anchors", AnchorQuery(volume, sequence, 1), AnchorList, timeout=_LEDGER_TIMEOUT).anchors
    if not found:
        return None
    blocks = ledger.call("blocks", BlockQuery(found[0].height, 1), BlockList, timeout=_LEDGER_TIMEOUT).blocks
    transactions = decode_block(blocks[0]).transactions if blocks else ()
    if found[0].tx not in transactions:
        return None
    return Place(found[0].tx, found[0].height, branch_of(transactions, transactions.index(found[0].tx)))


def _headers(ledger: client.Client, first: int, count: int) -> tuple[bytes, ...]:
    """Return encoded headers of the best chain from height `first` on, at most `count`."""
    found: list[bytes] = []
    while len(found) < count:
        query = HeaderQuery(first + len(found), min(HEADERS_AT_ONCE, count - len(found)))
        page = ledger.call("headers", query, HeaderList, timeout=_LEDGER_TIMEOUT).headers
        found += page
        if len(page) < query.count:
            break
    return tuple(found)
