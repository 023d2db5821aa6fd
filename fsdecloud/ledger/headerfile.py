"""A file with all headers of a chain: what a verifier of certificates keeps instead of a ledger.

    MAGIC | for each block from 1 on: length (u16, big-endian), encoded header

About 200 bytes for each block. Pure: pieces of the file come in as an iterable. Not here: who writes it (`cli.saveheaders`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from fsdecloud.errors import InvalidBlock, MalformedError
from fsdecloud.ledger.blocks import HEADER_MAX, block_id, decode_header
from fsdecloud.ledger.chain import Point, check_header, genesis_point
from fsdecloud.ledger.network import NetworkDocument
from fsdecloud.types import BlockId

MAGIC: Final = b"fsdecloud headers 1\n"
_LENGTH: Final = 2


def encode_row(header: bytes) -> bytes:
    """Return an encoded header as it stands in the file."""
    return len(header).to_bytes(_LENGTH, "big") + header


def split_rows(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the encoded headers of a file that comes in pieces of any size. Holds one piece and one header in memory.

    Raises MalformedError for a file of another kind, a length that no header has, or one that ends in the middle.
    """
    buffer = b""
    is_begun = False
    for piece in pieces:
        buffer += piece
        at = 0
        if not is_begun:
            if len(buffer) < len(MAGIC):
                continue
            if not buffer.startswith(MAGIC):
                raise MalformedError("this is no file of headers: decloud ledger headers FILE writes one")
            is_begun, at = True, len(MAGIC)
        while len(buffer) - at >= _LENGTH:
            size = int.from_bytes(buffer[at : at + _LENGTH], "big")
            if not 0 < size <= HEADER_MAX:
                raise MalformedError(f"a header of {size} bytes in the file of headers")
            end = at + _LENGTH + size
            if end > len(buffer):
                break
            yield buffer[at + _LENGTH : end]
            at = end
        buffer = buffer[at:]
    if buffer or not is_begun:
        raise MalformedError("the file of headers ends in the middle")


def ids_of(headers: Iterable[bytes]) -> dict[int, BlockId]:
    """Return the ids of encoded headers by their heights. Raises MalformedError."""
    try:
        return {header.height: block_id(header) for header in map(decode_header, headers)}
    except InvalidBlock as exc:
        raise MalformedError(f"a header is malformed: {exc}") from exc


def verify_headers(document: NetworkDocument, pieces: Iterable[bytes]) -> Iterator[Point]:
    """Yield the point of each header in a file, all rules checked but those about bodies. Raises MalformedError."""
    point = genesis_point(document)
    for data in split_rows(pieces):
        try:
            point = check_header(document, point, decode_header(data), None)
        except InvalidBlock as exc:
            raise MalformedError(f"header {point.height + 1} in the file breaks the network's rules: {exc}") from exc
        yield point
