"""What ledger daemons say to each other (net.websocket, subprotocol SUBPROTOCOL): one message per websocket message.

Pure. Both sides begin with `Hello`; before it a server answers only `GetNetwork`, so that a newcomer that knows nothing
but an address can learn the network (and check its hash against the address). Then, either way:

    GetHeaders -> Headers      headers after the first known id of a locator, at most HEADERS_MAX
    GetBlocks  -> Blocks       those blocks that are at hand, in the order asked, as many as fit one message
    GetCompact -> Compact      a block without the transactions that the other may have (Compact(b"", b"", b""): not at hand)
    GetBlockTxs -> BlockTxs    the transactions of a block at some places; none when it is not at hand
    GetTxs     -> Txs          those of the transactions that were offered and still wait, as many as fit one message
    GetPeers   -> Peers        addresses of other daemons
    GetState   -> StateProof   what some keys have in the state after a block (`ledger.proofs`)
    GetNodes   -> Nodes        nodes of state trees by their references, for whoever reads more of a state
    GetAnchors -> Anchors      a volume's latest anchor after a block, and earlier ones, with their proofs
    GetTxProofs -> TxProofs    transactions of the best chain by id, each with its Merkle path; others are left out
    NewTip                     the sender's best chain has a new tip
    Offer                      ids of transactions the sender can give

Answers come in the order of the questions. Every list is bounded where it is decoded. Not here: what is done about any of
it (`ledgerd.session`).
"""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeAlias, cast

import msgspec
from msgspec import Meta

from fsdecloud import codec
from fsdecloud.errors import MalformedError, RemoteProtocolError
from fsdecloud.ledger.compact import SHORT_ID
from fsdecloud.ledger.proofs import TxProof
from fsdecloud.limits import BLOCK_MAX, MESSAGE_MAX, MIB, NODE_DECODE_MAX, TREE_KEY_MAX, TX_MAX

SUBPROTOCOL: Final = "decloud-ledger/3"
VERSION: Final = 3
LOCATOR_MAX: Final = 64
HEADERS_MAX: Final = 500
"""About 120 KiB: one round trip moves the chain on by a quarter of an hour even at two seconds a block."""

BLOCKS_MAX: Final = 64
TXS_MAX: Final = 256
IDS_MAX: Final = 1000
PEERS_MAX: Final = 100
BATCH_BYTES: Final = MIB
"""Answers with blocks or transactions stop growing past this (one block is always sent)."""

PLACES_MAX: Final = 10_000
"""Transactions of one block that may be asked for by their place, and short ids of a compact block: a block of 1 MiB holds
fewer."""

KEYS_MAX: Final = 16
"""Keys of the state in one question: what a transaction's validity depends on is fewer."""

NODES_MAX: Final = 128
"""Nodes of a state tree in one question or answer, of about 8 KiB each."""

PROOFS_MAX: Final = 16
"""Transactions with their Merkle paths in one question: each may cost the hashing of a whole block."""

NO_BODIES: Final = (1 << 40) - 1
"""The first block that a daemon can give which keeps headers only."""

_HEADER_MAX: Final = 512
_URL_MAX: Final = 512

Id = Annotated[bytes, Meta(min_length=32, max_length=32)]
Url = Annotated[str, Meta(max_length=_URL_MAX)]
HeaderBytes = Annotated[bytes, Meta(max_length=_HEADER_MAX)]
NodeList = Annotated[tuple[Annotated[bytes, Meta(max_length=NODE_DECODE_MAX)], ...], Meta(max_length=NODES_MAX)]
ProofList = Annotated[tuple[TxProof, ...], Meta(max_length=PROOFS_MAX)]


class Hello(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=1):
    """Who speaks, and how far its chain is."""

    version: int
    network: Id
    url: Url
    """Where the sender is reached; empty if nowhere."""
    nonce: Id
    """Random for each process: who receives its own has called itself."""
    height: Annotated[int, Meta(ge=0, le=(1 << 40) - 1)]
    work: Id
    """Cumulative work, big-endian. A claim: what counts are the headers."""
    tip: Id
    justified: Annotated[int, Meta(ge=0, le=(1 << 40) - 1)]
    """Height of the justified checkpoint on that chain: a claim, too. 0 where nobody votes."""
    time: Annotated[int, Meta(ge=0, le=(1 << 40) - 1)]
    """The sender's clock, seconds since 1970: nothing is reckoned with it, but a clock that is far off is noticed."""
    first: Annotated[int, Meta(ge=1, le=(1 << 40) - 1)]
    """Height of the first block that the sender can give: 1 unless it pruned old bodies, NO_BODIES if it keeps none; then it is
    offered nothing, and asked for no proofs."""


class GetNetwork(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=2):
    """Ask for the network document."""


class Network(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=3):
    """The network document's bytes; their BLAKE3 is the network id."""

    document: Annotated[bytes, Meta(max_length=4096)]


class GetHeaders(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=4):
    """Ask for the headers of the other's best chain after the first of these ids that is in it."""

    locator: Annotated[tuple[Id, ...], Meta(max_length=LOCATOR_MAX)]


class Headers(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=5):
    """Encoded headers, ascending, each the parent of the next."""

    headers: Annotated[tuple[HeaderBytes, ...], Meta(max_length=HEADERS_MAX)]


class GetBlocks(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=6):
    """Ask for blocks by id."""

    ids: Annotated[tuple[Id, ...], Meta(min_length=1, max_length=BLOCKS_MAX)]


class Blocks(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=7):
    """Encoded blocks."""

    blocks: Annotated[tuple[Annotated[bytes, Meta(max_length=BLOCK_MAX)], ...], Meta(max_length=BLOCKS_MAX)]


class NewTip(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=8):
    """The sender's best chain ends with this header."""

    header: HeaderBytes
    work: Id
    justified: Annotated[int, Meta(ge=0, le=(1 << 40) - 1)]
    """As in `Hello`."""


class Offer(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=9):
    """Ids of transactions in the sender's mempool."""

    ids: Annotated[tuple[Id, ...], Meta(max_length=IDS_MAX)]


class GetTxs(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=10):
    """Ask for transactions by id."""

    ids: Annotated[tuple[Id, ...], Meta(min_length=1, max_length=TXS_MAX)]


class Txs(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=11):
    """Encoded transactions."""

    txs: Annotated[tuple[Annotated[bytes, Meta(max_length=TX_MAX)], ...], Meta(max_length=TXS_MAX)]


class GetPeers(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=12):
    """Ask for addresses of ledger daemons."""


class Peers(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=13):
    """Addresses of ledger daemons."""

    urls: Annotated[tuple[Url, ...], Meta(max_length=PEERS_MAX)]


class GetCompact(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=14):
    """Ask for a block without what the mempool is likely to hold."""

    id: Id


class Compact(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=15):
    """A block whose transactions, but for the coinbase, are named by SHORT_ID bytes each (`ledger.compact`)."""

    header: HeaderBytes
    coinbase: Annotated[bytes, Meta(max_length=TX_MAX)]
    short_ids: Annotated[bytes, Meta(max_length=PLACES_MAX * SHORT_ID)]


class GetBlockTxs(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=16):
    """Ask for transactions of a block by their places, ascending."""

    id: Id
    places: Annotated[tuple[Annotated[int, Meta(ge=0, le=PLACES_MAX)], ...], Meta(min_length=1, max_length=PLACES_MAX)]


class BlockTxs(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=17):
    """Encoded transactions of the block asked for, all of them in the order of the places, or none."""

    txs: Annotated[tuple[Annotated[bytes, Meta(max_length=TX_MAX)], ...], Meta(max_length=PLACES_MAX)]


class GetState(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=18):
    """Ask what keys have in the state after a block."""

    block: Id
    keys: Annotated[
        tuple[Annotated[bytes, Meta(max_length=TREE_KEY_MAX)], ...], Meta(min_length=1, max_length=KEYS_MAX)
    ]


class StateProof(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=19):
    """The nodes that show it; none when that state is empty or not at hand."""

    nodes: NodeList


class GetNodes(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=20):
    """Ask for nodes of state trees."""

    refs: Annotated[tuple[Id, ...], Meta(min_length=1, max_length=NODES_MAX)]


class Nodes(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=21):
    """Those that are at hand, in the order asked, as many as fit one answer."""

    nodes: NodeList


class GetAnchors(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=22):
    """Ask for a volume's latest anchor after a block, and for `count` of its anchors from sequence number `first` on."""

    block: Id
    volume: Id
    first: Annotated[int, Meta(ge=0, le=(1 << 53) - 1)]
    count: Annotated[int, Meta(ge=0, le=PROOFS_MAX)]


class Anchors(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=23):
    """The nodes that show which is the latest, its transaction, and those of the others that are at hand, ascending."""

    nodes: NodeList
    latest: Annotated[bytes, Meta(max_length=TX_MAX)]
    """Empty when the volume has none, or it is not at hand."""
    proofs: ProofList


class GetTxProofs(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=24):
    """Ask for transactions of the other's best chain by id."""

    ids: Annotated[tuple[Id, ...], Meta(min_length=1, max_length=PROOFS_MAX)]


class TxProofs(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=25):
    """Those that are there, as many as fit one answer."""

    proofs: ProofList


Message: TypeAlias = (
    Hello
    | GetNetwork
    | Network
    | GetHeaders
    | Headers
    | GetBlocks
    | Blocks
    | NewTip
    | Offer
    | GetTxs
    | Txs
    | GetPeers
    | Peers
    | GetCompact
    | Compact
    | GetBlockTxs
    | BlockTxs
    | GetState
    | StateProof
    | GetNodes
    | Nodes
    | GetAnchors
    | Anchors
    | GetTxProofs
    | TxProofs
)


def encode_message(message: Message) -> bytes:
    """Return the bytes of one websocket message."""
    return codec.encode(message)


def decode_message(data: bytes) -> Message:
    """Return the message in `data`. Raises RemoteProtocolError."""
    if len(data) > MESSAGE_MAX:
        raise RemoteProtocolError(f"a message has at most {MESSAGE_MAX} bytes, not {len(data)}")
    try:
        return cast("Message", codec.decode_loose(data, cast("type[Any]", Message)))
    except MalformedError as exc:
        raise RemoteProtocolError(f"not a ledger message: {exc}") from exc
