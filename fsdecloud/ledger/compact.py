"""A block for those who have most of its transactions already: the header, the coinbase, and a short id for each of the rest.

Pure. After BIP 152. A short id is the first 8 bytes of the BLAKE3 of the transaction's full bytes, keyed with the block's id:
nobody can make two transactions collide before the block is mined, and two that collide by chance cost one more question. It
covers the signatures, as the header does. What is put together is compared with the header's root over the full bytes, so a
wrong guess is noticed here and is nobody's fault.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from blake3 import blake3

from fsdecloud.errors import InvalidBlock
from fsdecloud.ledger.blocks import Block, Header, block_id, bytes_root, decode_block, encode_block, encode_header
from fsdecloud.types import BlockId

SHORT_ID: Final = 8
"""Bytes of a short id: of 10,000 waiting transactions and 1,000 in a block two collide once in 10^12 blocks."""


def short_id(block: BlockId, transaction: bytes) -> bytes:
    """Return the short id of an encoded transaction in a block."""
    return blake3(transaction, key=block).digest(length=SHORT_ID)


def shorten(data: bytes) -> tuple[bytes, bytes, bytes] | None:
    """Return header, coinbase and joined short ids of an encoded block; None for one without a coinbase."""
    try:
        block = decode_block(data)
    except InvalidBlock:
        return None
    if not block.transactions:
        return None
    identity = block_id(block.header)
    shorts = b"".join(short_id(identity, tx) for tx in block.transactions[1:])
    return encode_header(block.header), block.transactions[0], shorts


def match(block: BlockId, coinbase: bytes, short_ids: bytes, waiting: Iterable[bytes]) -> list[bytes | None]:
    """Return the block's transactions as far as they are among `waiting` (encoded), None for those that are not, or of which
    two have the same short id. `short_ids` has a multiple of SHORT_ID bytes."""
    wanted = [short_ids[start : start + SHORT_ID] for start in range(0, len(short_ids), SHORT_ID)]
    asked = frozenset(wanted)
    found: dict[bytes, bytes | None] = {}
    for data in waiting:
        short = short_id(block, data)
        if short in asked:
            found[short] = data if short not in found else None
    return [coinbase, *(found.get(short) for short in wanted)]


def assemble(header: Header, transactions: Sequence[bytes]) -> bytes | None:
    """Return the encoded block of these transactions; None when they are not those that the header commits to."""
    if bytes_root(transactions) != header.bytes_root:
        return None
    return encode_block(Block(header, tuple(transactions)))
