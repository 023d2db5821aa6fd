"""Which fee gets a transaction into one of the next blocks.

Pure. Blocks take what pays best for its size (`mempool`). So a transaction outbids what would fill the next blocks without
it: what waits, and, as more will come, what the last blocks were full of. Where there is room, the network's least fee does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from fsdecloud.ledger.blocks import Block
from fsdecloud.ledger.mempool import BLOCK_OVERHEAD, price_of
from fsdecloud.ledger.network import NetworkDocument
from fsdecloud.ledger.transactions import Coinbase, Evidence, Vote, decode_tx

BLOCKS_AHEAD: Final = 2
"""Blocks in one of which a transaction with the estimated fee should be."""

BLOCKS_BACK: Final = 6
"""Blocks of the best chain that are looked at."""

TRANSFER_SIZE: Final = 192
"""Bytes of a transfer, at most but for amounts that no one has."""

_FULL: Final = 0.9
"""A block whose transactions fill this part of their room had none for much more."""


def estimate_fee(document: NetworkDocument, size: int, waiting: Iterable[tuple[int, int]], marks: Sequence[int]) -> int:
    """Return the fee, in the smallest unit, for a transaction of `size` bytes.

    `waiting` are (price, bytes) of what the mempool holds, the price for a million bytes; `marks` the `price_mark` of each of
    the last blocks. At least the network's least fee; it is an estimate: more may come at any time.
    """
    price = max(_price_to_outbid(document, size, waiting), sorted(marks)[len(marks) // 2] if marks else 0)
    return max(document.minimum_fee, -(-price * size // 1_000_000))


def _price_to_outbid(document: NetworkDocument, size: int, waiting: Iterable[tuple[int, int]]) -> int:
    """Return one more than what the best paid transaction pays that the next blocks have no room for; 0 if they take all."""
    room = BLOCKS_AHEAD * (document.block_max - BLOCK_OVERHEAD) - size
    for price, taken in sorted(waiting, reverse=True):
        room -= taken
        if room < 0:
            return price + 1
    return 0


def price_mark(document: NetworkDocument, block: Block, size: int) -> int:
    """Return what one had to outbid to be in a block of `size` bytes: one more than the lowest price in it if it was full, else
    0. What comes before all that is paid for does not count."""
    if size < _FULL * (document.block_max - BLOCK_OVERHEAD):
        return 0
    decoded = ((decode_tx(data), len(data)) for data in block.transactions)
    prices = [price_of(tx, length) for tx, length in decoded if not isinstance(tx, Coinbase | Vote | Evidence)]
    return min(prices) + 1 if prices else 0
