"""What convinces somebody who has only the headers: of a transaction in a block, of the state after one.

Pure. Headers commit to all of it already. A transaction is proved by its Merkle path to the root over the block's full bytes
(RFC 6962 split, `crypto.merkle`), so that not even its signatures can be others; what a key has in the state, or that it has
nothing, by the tree nodes from the state root to it (`tree.proof`); a volume's latest anchor by the latter alone: the state
names its id. What a proof shows is true if the header's chain is valid: its work, not this proof, says that. Not here: who is
asked (`ledgerd.asking`), and what becomes of who lies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from fsdecloud.crypto import merkle
from fsdecloud.errors import InvalidTransaction, LedgerError, MalformedError
from fsdecloud.ledger.blocks import Block, Header, block_id
from fsdecloud.ledger.network import Bytes32
from fsdecloud.ledger.state import EMPTY_ROOT, State, StateNodes, VolumeHead, node_ref, volume_key
from fsdecloud.ledger.transactions import Anchor, Transaction, check_signatures, decode_tx, tx_id
from fsdecloud.limits import TX_MAX
from fsdecloud.tree.node import NodeMissing
from fsdecloud.tree.proof import check_keys, prove_keys

PATH_MAX: Final = 20
"""Hashes of a Merkle path: a block of 1 MiB holds fewer than 2^15 transactions."""


class FalseProof(LedgerError):
    """Somebody's proof does not show what was asked: no honest daemon sends such a one."""


class NotProven(LedgerError):
    """Somebody has no proof at hand, or one of a block that is not in our best chain: others may do better."""


class Dropped(NotProven):
    """What is asked for is old, and whoever prunes may have it no more: no fault."""


class TxProof(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A transaction and its place in a block."""

    block: Bytes32
    """The block's id."""
    index: Annotated[int, Meta(ge=0, le=(1 << PATH_MAX) - 1)]
    """0 is the block's coinbase."""
    count: Annotated[int, Meta(ge=1, le=1 << PATH_MAX)]
    """Transactions of the block."""
    tx: Annotated[bytes, Meta(max_length=TX_MAX)]
    path: Annotated[tuple[Annotated[bytes, Meta(min_length=32, max_length=32)], ...], Meta(max_length=PATH_MAX)]
    """Sibling hashes from the transaction up."""


def prove_tx(block: Block, index: int) -> TxProof:
    """Return the proof of a block's transaction `index`. Costs one hash of the whole body. Raises IndexError."""
    path = merkle.path(block.transactions, index)
    return TxProof(block_id(block.header), index, len(block.transactions), block.transactions[index], path)


def check_tx(header: Header, proof: TxProof) -> Transaction:
    """Return the transaction that a proof shows to be in the block with this header. Raises FalseProof."""
    if proof.block != block_id(header):
        raise FalseProof(f"a proof for another block than {header.height}")
    if not merkle.verify(header.bytes_root, proof.count, proof.index, proof.tx, proof.path):
        raise FalseProof(f"a transaction that block {header.height} does not hold at place {proof.index}")
    try:
        return decode_tx(proof.tx)
    except InvalidTransaction as exc:
        raise FalseProof(f"block {header.height} holds what is no transaction: {exc}") from exc


def prove_state(read: Callable[[bytes], bytes | None], root: bytes, keys: Sequence[bytes]) -> tuple[bytes, ...]:
    """Return the proof of what `keys` have in the state with this root; empty for the empty state.

    Raises NodeMissing when that state is not at hand.
    """
    return prove_keys(StateNodes(read).get, _tree_root(root), keys)


def check_state(root: bytes, keys: Sequence[bytes], proof: Sequence[bytes]) -> State:
    """Return the state with this root, of which nothing but `keys` may be read. Raises FalseProof.

    **Invariant:** reading one of `keys` does not raise; any other may raise NodeMissing.
    """
    try:
        check_keys(node_ref, _tree_root(root), keys, proof)
    except MalformedError as exc:
        raise FalseProof(str(exc)) from exc
    nodes = {node_ref(data): data for data in proof}
    return State(StateNodes(nodes.get).get, root)


def check_latest_anchor(
    network: bytes, root: bytes, volume: bytes, proof: Sequence[bytes], tx: bytes
) -> tuple[VolumeHead, Anchor] | None:
    """Return a volume's latest anchor, as the state with this root names it, and None if it has none; `tx` is its transaction.

    The state names the id, which excludes signatures: they are verified. Raises FalseProof, and NotProven when there is an
    anchor but `tx` is empty.
    """
    head = read_head(check_state(root, [volume_key(volume)], proof), volume)
    if head is None:
        if tx:
            raise FalseProof("an anchor of a volume that has none")
        return None
    if not tx:
        raise NotProven(f"it does not have transaction {head.tx.hex()} at hand")
    try:
        anchor = decode_tx(tx)
        if not isinstance(anchor, Anchor) or tx_id(anchor) != head.tx:
            raise FalseProof(f"another transaction than {head.tx.hex()}, which the state names as the latest anchor")
        check_signatures(network, anchor)
    except InvalidTransaction as exc:
        raise FalseProof(f"the latest anchor is wrong: {exc}") from exc
    return head, anchor


def read_head(state: State, volume: bytes) -> VolumeHead | None:
    """Return a volume's latest anchor in a proven state. Raises FalseProof when the state holds what no rule put there."""
    try:
        return state.volume(volume)
    except (MalformedError, NodeMissing) as exc:
        raise FalseProof(f"the state holds no volume's anchor at its place: {exc}") from exc


def _tree_root(root: bytes) -> bytes:
    return b"" if root == EMPTY_ROOT else root
