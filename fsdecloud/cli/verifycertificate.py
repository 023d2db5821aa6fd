"""`decloud verify-certificate CERTIFICATE FILE`: is the file what the certificate says, and is that in the ledger.

Needs no key, and no daemon: the network document, and headers or the id of one block for a certificate that does not hold the
whole chain. With a ledger daemon in this home, its chain is what is believed.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from fsdecloud.cli import client, parts
from fsdecloud.cli.output import clean, emit, emit_json, rfc3339
from fsdecloud.cli.run import SYSTEM
from fsdecloud.config import Paths, find_paths
from fsdecloud.errors import CertificateError, LedgerUnavailable, MalformedError, UsageError
from fsdecloud.types import BlockId
from fsdecloud.wire.ledgerapi import HEADERS_AT_ONCE, HeaderList, HeaderQuery

if TYPE_CHECKING:
    from fsdecloud.ledger.certificate import Certificate, Verdict
    from fsdecloud.ledger.network import NetworkDocument

PIECE: Final = 1 << 20
"""Bytes of a file in memory at once."""

_LEDGER_TIMEOUT: Final = 60.0

Known = dict[int, BlockId]
"""Blocks that are believed, by height."""


@click.command("verify-certificate")
@click.argument("certificate", metavar="CERTIFICATE")
@click.argument("file", metavar="FILE")
@click.option("--network", "network_file", metavar="DOCUMENT", help="The network's document (default: this home's).")
@click.option("--headers", "header_file", metavar="HEADERS", help="What `decloud ledger headers` wrote.")
@click.option("--checkpoint", "checkpoints", metavar="HEIGHT:ID", multiple=True, help="A block that you trust.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    certificate: str,
    file: str,
    network_file: str | None,
    header_file: str | None,
    checkpoints: tuple[str, ...],
    as_json: bool,
) -> int:
    """Check that FILE is what CERTIFICATE says, byte for byte, and that its owner stated so in the ledger.

    The exit code is 0 if all of it holds, and 2 if anything does not.
    """
    trusted = parse_checkpoints(checkpoints)
    paths = find_paths()
    try:
        verdict = _verify(paths, certificate, file, network_file, header_file, trusted)
    except (CertificateError, MalformedError) as exc:
        if as_json:
            emit_json({"ok": False, "error": str(exc)})
            return SYSTEM
        raise CertificateError(str(exc)) from exc
    if as_json:
        emit_json({"ok": True, **verdict_fields(verdict), "error": None})
        return 0
    for line in describe(verdict, file):
        emit(line)
    return 0


def _verify(
    paths: Paths, path: str, file: str, network_file: str | None, header_file: str | None, trusted: Known
) -> Verdict:
    from fsdecloud.ledger.certificate import CERTIFICATE_MAX, decode_certificate, verify_certificate
    from fsdecloud.ledgerd.setup import load_network, read_network_file

    document = read_network_file(Path(network_file)) if network_file is not None else load_network(paths)
    if document is None:
        raise UsageError("no network is set up here: --network DOCUMENT gives its document")
    with open(path, "rb") as stream:
        found = decode_certificate(stream.read(CERTIFICATE_MAX + 1))
    known: Known | None = trusted or None
    if header_file is not None:
        known = {**read_headers(header_file, document, found), **trusted}
    elif known is None and network_file is None and parts.running_pid(paths, "ledger") is not None:
        known = _ask_ledger(paths, found)
    verdict = verify_certificate(found, document, None if known is None else known.get)
    check_file(file, verdict)
    return verdict


def check_file(path: str, verdict: Verdict) -> None:
    """Compare a file with what was stated, with PIECE bytes of it in memory. Raises CertificateError, OSError."""
    from blake3 import blake3

    hasher = blake3()
    size = 0
    with open(path, "rb") as stream:
        while size <= verdict.size and (piece := stream.read(PIECE)):
            size += len(piece)
            hasher.update(piece)
    if size > verdict.size:
        raise CertificateError(
            f"{clean(path)} is not the file: it is longer than the {verdict.size} bytes that were stated"
        )
    if size < verdict.size:
        raise CertificateError(f"{clean(path)} is not the file: it has {size} bytes, {verdict.size} were stated")
    if hasher.digest() != verdict.content:
        raise CertificateError(
            f"{clean(path)} is not the file: its BLAKE3 is {hasher.hexdigest()}, {verdict.content.hex()} was stated"
        )


def parse_checkpoints(texts: tuple[str, ...]) -> Known:
    """Return the blocks that a person trusts. Raises UsageError."""
    found: Known = {}
    for text in texts:
        height, colon, identity = text.partition(":")
        try:
            block = BlockId(bytes.fromhex(identity))
        except ValueError:
            block = BlockId(b"")
        if not (colon and height.isascii() and height.isdigit() and len(height) < 16 and len(block) == 32):
            raise UsageError(f"--checkpoint {text!r}: write HEIGHT:ID, the id with 64 hexadecimal digits")
        if found.setdefault(int(height), block) != block:
            raise UsageError(f"two blocks of height {int(height)} cannot both be trusted")
    return found


def read_headers(path: str, document: NetworkDocument, certificate: Certificate) -> Known:
    """Return the ids of the blocks that the certificate has headers of, from a file of headers whose rules are checked too."""
    from fsdecloud.ledger.headerfile import ids_of, verify_headers

    wanted = ids_of(certificate.headers)
    with open(path, "rb") as stream:
        points = verify_headers(document, iter(partial(stream.read, PIECE), b""))
        return {point.height: point.id for point in points if point.height in wanted}


def _ask_ledger(paths: Paths, certificate: Certificate) -> Known:
    """Return the ids of the same blocks in the chain of this home's ledger daemon, which verified it."""
    from fsdecloud.ledger.headerfile import ids_of

    heights = sorted(ids_of(certificate.headers))
    found: Known = {}
    with client.Client(paths.socket("ledger"), error=LedgerUnavailable) as ledger:
        for first in range(heights[0], heights[-1] + 1, HEADERS_AT_ONCE):
            query = HeaderQuery(first, min(HEADERS_AT_ONCE, heights[-1] + 1 - first))
            page = ledger.call("headers", query, HeaderList, timeout=_LEDGER_TIMEOUT)
            found.update(ids_of(page.headers))
    return found


def verdict_fields(verdict: Verdict) -> dict[str, object]:
    """Return what a certificate proves as stable JSON fields."""
    return {
        "network": verdict.network.hex(),
        "volume": verdict.volume.hex(),
        "device": verdict.device.hex(),
        "content": verdict.content.hex(),
        "bytes": verdict.size,
        "path": None if verdict.path is None else verdict.path.decode("utf-8", "surrogateescape"),
        "stated": rfc3339(verdict.stated // 10**9),
        "sequence": verdict.sequence,
        "height": verdict.height,
        "block": verdict.block.hex(),
        "time": rfc3339(verdict.time),
        "confirmations": verdict.confirmations,
        "state_sequence": verdict.state_sequence,
        "state_height": verdict.state_height,
        "state_time": None if verdict.state_time is None else rfc3339(verdict.state_time),
        "tied_to": None if verdict.tied_to is None else verdict.tied_to.hex(),
        "work": None if verdict.work is None else str(verdict.work),
    }


def describe(verdict: Verdict, file: str) -> Iterator[str]:
    """Yield what a certificate proves, for people."""
    yield f"{clean(file)} is what was certified: {verdict.size} bytes, BLAKE3 {verdict.content.hex()}"
    yield f"by      the owner of volume {verdict.volume.hex()}"
    if verdict.path is not None:
        yield f"path    {clean(verdict.path)}"
    yield (
        f"before  {rfc3339(verdict.time)}, block {verdict.height} ({verdict.block.hex()}), {verdict.confirmations} "
        f"confirmation{'s' if verdict.confirmations != 1 else ''}"
    )
    where = "" if verdict.state_time is None else f" in block {verdict.state_height} of {rfc3339(verdict.state_time)}"
    yield f"as of   the volume's anchor {verdict.state_sequence}{where}, by its owner's word"
    if verdict.tied_to is not None:
        yield f"chain   leads to block {verdict.tied_to.hex()}, which is known here"
    else:
        yield (
            f"chain   follows the rules from its first block on and took {verdict.work} hashes; whether it is the one that the "
            f"network follows, another's block {verdict.height} tells"
        )
