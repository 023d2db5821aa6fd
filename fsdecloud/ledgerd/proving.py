"""What a daemon that has the whole chain shows to those that have only headers (`ledger.proofs`).

Questions and answers are of `wire.gossip`. All are bounded by their decoder, and by BATCH_BYTES; what is not at hand is left
out. Reads the store and nothing else, so that any thread may call. Not here: how often somebody may ask (`session`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, TypeAlias

from fsdecloud.errors import InvalidBlock
from fsdecloud.ledger.blocks import decode_block
from fsdecloud.ledger.proofs import FalseProof, TxProof, check_state, prove_state, prove_tx, read_head
from fsdecloud.ledger.state import volume_key
from fsdecloud.store.chain import ChainStore
from fsdecloud.tree.node import NodeMissing
from fsdecloud.types import BlockId, TxId
from fsdecloud.wire import gossip

Question: TypeAlias = gossip.GetState | gossip.GetNodes | gossip.GetAnchors | gossip.GetTxProofs
Answer: TypeAlias = gossip.StateProof | gossip.Nodes | gossip.Anchors | gossip.TxProofs

_ROOM: Final = 2 * gossip.BATCH_BYTES - (192 << 10)
"""Bytes of nodes that leave room for a transaction and what is around them in one message."""


def cost_of(question: Question) -> int:
    """Return what an answer costs, in about the work that one path in the state takes."""
    match question:
        case gossip.GetState():
            return len(question.keys)
        case gossip.GetNodes():
            return 1 + len(question.refs) // 4
        case gossip.GetAnchors():
            return 1 + 4 * question.count
        case gossip.GetTxProofs():
            return 4 * len(question.ids)


def answer(store: ChainStore, question: Question) -> Answer:
    """Return the answer to a question."""
    match question:
        case gossip.GetState():
            return gossip.StateProof(_state(store, question.block, question.keys))
        case gossip.GetNodes():
            return gossip.Nodes(_within(store.node(ref) for ref in question.refs))
        case gossip.GetAnchors():
            return _anchors(store, question)
        case gossip.GetTxProofs():
            return gossip.TxProofs(_proofs(store.block_with(TxId(identity)) for identity in question.ids))


def _state(store: ChainStore, block: bytes, keys: tuple[bytes, ...]) -> tuple[bytes, ...]:
    point = store.point(BlockId(block))
    if point is None:
        return ()
    try:
        nodes = prove_state(store.node, point.state_root, keys)
    except NodeMissing:  # an old state, or one that is being dropped
        return ()
    return nodes if len(nodes) <= gossip.NODES_MAX and sum(map(len, nodes)) <= _ROOM else ()


def _anchors(store: ChainStore, question: gossip.GetAnchors) -> gossip.Anchors:
    keys = (volume_key(question.volume),)
    nodes = _state(store, question.block, keys)
    point = store.point(BlockId(question.block))
    latest = b""
    if nodes and point is not None:
        try:
            head = read_head(check_state(point.state_root, keys, nodes), question.volume)
        except FalseProof as exc:
            raise AssertionError("a proof made here is wrong") from exc
        found = None if head is None else store.find_tx(head.tx)
        latest = b"" if found is None else found[0]
    rest = store.anchor_blocks(question.volume, question.first, question.count)
    return gossip.Anchors(nodes, latest, _proofs(rest, _ROOM - sum(map(len, nodes))))


def _proofs(blocks: Iterable[tuple[bytes, int] | None], room: int = gossip.BATCH_BYTES) -> tuple[TxProof, ...]:
    """Return the proofs that fit."""
    found: list[TxProof] = []
    for item in blocks:
        if item is None:
            continue
        try:
            proof = prove_tx(decode_block(item[0]), item[1])
        except (InvalidBlock, IndexError):  # a damaged store: the daemon's other tasks say so
            continue
        room -= len(proof.tx) + 32 * len(proof.path) + 64
        if room < 0:
            break
        found.append(proof)
    return tuple(found)


def _within(nodes: Iterator[bytes | None]) -> tuple[bytes, ...]:
    """Return the leading nodes that fit one answer."""
    found: list[bytes] = []
    room = gossip.BATCH_BYTES
    for data in nodes:
        if data is None:
            continue
        room -= len(data)
        if found and room < 0:
            break
        found.append(data)
    return tuple(found)
