"""What a block is: header, body, encodings, ids and roots.

Pure. A block's id is the BLAKE3 of its header's canonical bytes, and the proof of work is over the id. The header commits
to two Merkle roots: over the transactions' ids, so that a short proof shows that a transaction is in the chain, and over
their full bytes, so that nobody can make an honest block look invalid by changing its signatures. Not here: whether a
block is valid (`chain`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
from blake3 import blake3
from msgspec import Meta

from fsdecloud import codec
from fsdecloud.crypto import merkle
from fsdecloud.errors import MalformedError
from fsdecloud.ledger.network import Bytes32, Seconds
from fsdecloud.ledger.reasons import BlockTooBig, MalformedBlock
from fsdecloud.limits import BLOCK_MAX
from fsdecloud.types import BlockId

NONCE_SIZE: Final = 8
"""Bytes of a header's nonce: enough for any difficulty together with the time and the coinbase's recipient."""

HEADER_MAX: Final = 512
"""No encoded header is longer."""

TRANSACTION_MIN: Final = 39
"""No transaction is shorter (a coinbase in small numbers): a body of half a million empty strings is not worth its hashing."""

_ID_CONTEXT: Final = "fsdecloud 2026 v1 block"


class Header(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Everything that the proof of work covers. `nonce` is last and of fixed length, so that a miner changes the end."""

    version: Annotated[int, Meta(ge=1, le=1)]
    parent: Bytes32
    height: Annotated[int, Meta(ge=1, le=(1 << 40) - 1)]
    time: Seconds
    target: Bytes32
    """The id, read as a big-endian number, is at most this."""
    ids_root: Bytes32
    bytes_root: Bytes32
    state_root: Bytes32
    """Root of the state tree after this block; zeros for an empty state."""
    nonce: Annotated[bytes, Meta(min_length=NONCE_SIZE, max_length=NONCE_SIZE)]


class Block(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A header and the encoded transactions in their order, the coinbase first."""

    header: Header
    transactions: tuple[Annotated[bytes, Meta(min_length=TRANSACTION_MIN)], ...]


def block_id(header: Header) -> BlockId:
    """Return the block's id: 32 bytes."""
    return BlockId(blake3(codec.encode(header), derive_key_context=_ID_CONTEXT).digest())


def ids_root(ids: Sequence[bytes]) -> bytes:
    """Return the root over the transactions' ids."""
    return merkle.root(ids)


def bytes_root(transactions: Sequence[bytes]) -> bytes:
    """Return the root over the transactions' full bytes."""
    return merkle.root(transactions)


def encode_header(header: Header) -> bytes:
    """Return the header's canonical bytes."""
    return codec.encode(header)


def decode_header(data: bytes) -> Header:
    """Return the header in `data`. Raises MalformedBlock."""
    if len(data) > HEADER_MAX:
        raise MalformedBlock(f"a header has at most {HEADER_MAX} bytes, not {len(data)}")
    try:
        return codec.decode(data, Header)
    except MalformedError as exc:
        raise MalformedBlock(str(exc)) from exc


def encode_block(block: Block) -> bytes:
    """Return the block's canonical bytes."""
    return codec.encode(block)


def decode_block(data: bytes, limit: int = BLOCK_MAX) -> Block:
    """Return the block in `data`, nothing but its form checked. Raises MalformedBlock or BlockTooBig."""
    if len(data) > limit:
        raise BlockTooBig(f"a block has at most {limit} bytes, not {len(data)}")
    try:
        return codec.decode(data, Block)
    except MalformedError as exc:
        raise MalformedBlock(str(exc)) from exc


class _Split(msgspec.Struct, frozen=True, array_like=True):
    """A block of which nothing but the borders is looked at."""

    header: msgspec.Raw
    transactions: msgspec.Raw


def claimed_id(data: bytes) -> BlockId:
    """Return the id of the header in an encoded block, nothing else looked at: whether it is the block that was asked for.

    Raises MalformedBlock.
    """
    try:
        header = bytes(codec.decode_loose(data, _Split).header)
    except MalformedError as exc:
        raise MalformedBlock(str(exc)) from exc
    return BlockId(blake3(header, derive_key_context=_ID_CONTEXT).digest())


def header_prefix(header: Header) -> bytes:
    """Return the header's bytes without the nonce: what a miner hashes before each try."""
    return codec.encode(header)[:-NONCE_SIZE]
