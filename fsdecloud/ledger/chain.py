"""Which blocks are valid, and which chain is the best.

Pure: the clock, the store and the tip are arguments. A block is judged from its parent's `Point` alone, which carries
what validity needs of all ancestors. The genesis block is the network document: it has a point, height 0, and no bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import msgspec

from fsdecloud.errors import InvalidTransaction
from fsdecloud.ledger import work
from fsdecloud.ledger.blocks import Block, Header, block_id, bytes_root, encode_block, ids_root
from fsdecloud.ledger.network import NetworkDocument, network_id, storage_subsidy_at, subsidy_at
from fsdecloud.ledger.reasons import (
    BadTransaction,
    BlockTooBig,
    BodyMismatch,
    DuplicateTransaction,
    NoCoinbase,
    NotEnoughWork,
    ReorgTooDeep,
    TimeTooNew,
    TimeTooOld,
    TooManyVotes,
    UnknownParent,
    WrongHeight,
    WrongIdsRoot,
    WrongReward,
    WrongStateRoot,
    WrongTarget,
)
from fsdecloud.ledger.staking import VOTES_MAX
from fsdecloud.ledger.state import (
    EMPTY_ROOT,
    State,
    StateNodes,
    apply_transaction,
    begin_block,
    border_key,
    credit,
    is_coinbase_for,
)
from fsdecloud.ledger.transactions import (
    Coinbase,
    Transaction,
    Vote,
    check_fee,
    check_signatures,
    decode_tx,
    encode_tx,
    fee_of,
    tx_id,
)
from fsdecloud.types import BlockId, TxId


class Point(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A valid header's place in the chain and what its descendants' validity needs to know."""

    id: BlockId
    parent: BlockId
    height: int
    time: int
    recent: tuple[int, ...]
    """The last eleven block times, this one's last."""
    lead: int
    """Active time beyond the schedule (`work`)."""
    work: bytes
    """Cumulative work, 32 bytes, big-endian."""
    state_root: bytes

    @property
    def median_time(self) -> int:
        """The median of the last eleven block times: the next block's time is after it."""
        return work.median_time(self.recent)

    @property
    def rank(self) -> bytes:
        """What is compared of the tips of two chains (`rank_of`)."""
        return rank_of(self.work, self.id)


@dataclass(frozen=True, slots=True)
class Switch:
    """How to get from one tip to another: blocks to leave, newest first, and to enter, oldest first."""

    fork: Point
    leave: tuple[Point, ...]
    enter: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class CheckedBlock:
    """A valid block: its point, its transactions, and the state nodes that it adds."""

    point: Point
    block: Block
    transactions: tuple[Transaction, ...]
    ids: tuple[TxId, ...]
    nodes: dict[bytes, bytes]
    accounts: tuple[tuple[bytes, int], ...]
    """What it does to accounts (`State.account_changes`), by transactions or without one."""


def genesis_point(document: NetworkDocument) -> Point:
    """Return the point that every chain of the network begins with."""
    identity = BlockId(network_id(document))
    time = document.genesis_time
    return Point(identity, BlockId(bytes(32)), 0, time, (time,), 0, bytes(32), EMPTY_ROOT)


def check_header(document: NetworkDocument, parent: Point, header: Header, now: int | None) -> Point:
    """Return the header's point if it is valid after `parent`. `now` is this machine's time, None when the block was
    accepted long ago. Cheap checks come first. Raises an InvalidBlock leaf."""
    identity = block_id(header)
    if header.parent != parent.id:
        raise UnknownParent(f"its parent is {header.parent.hex()}, not {parent.id.hex()}")
    if header.height != parent.height + 1:
        raise WrongHeight(f"its height is {header.height}, its parent's {parent.height}")
    if header.target != work.target_after(document, parent.lead):
        raise WrongTarget(f"its target is not the one that follows from block {parent.height}")
    if identity > header.target:
        raise NotEnoughWork(f"its id {identity.hex()} is above its target {header.target.hex()}")
    if header.time <= parent.median_time:
        raise TimeTooOld(f"its time {header.time} is not after the median {parent.median_time}")
    if now is not None and header.time > now + document.future_limit:
        raise TimeTooNew(f"its time {header.time} is more than {document.future_limit} s ahead of {now}")
    return Point(
        identity,
        parent.id,
        header.height,
        header.time,
        work.next_recent(parent.recent, header.time),
        work.next_lead(document, parent.lead, parent.recent, header.time),
        (int.from_bytes(parent.work) + work.work_of(header.target)).to_bytes(32),
        header.state_root,
    )


def check_block(
    document: NetworkDocument,
    parent: Point,
    block: Block,
    read_node: Callable[[bytes], bytes | None],
    now: int | None,
    known: Collection[bytes] = (),
) -> CheckedBlock:
    """Return the fully checked block. `known` holds encoded transactions whose signatures were verified before.

    Raises an InvalidBlock leaf; after BodyMismatch, TimeTooNew and UnknownParent the header may still be a valid block's,
    after any other the block and all its descendants are invalid for ever. What is wrong with the body is looked for only
    once the body is the one that the header commits to, or else a false body would condemn an honest block. Raises
    NodeMissing when the parent's state is gone.
    """
    point = check_header(document, parent, block.header, now)
    if bytes_root(block.transactions) != block.header.bytes_root:
        raise BodyMismatch("its transactions are not those its header commits to")
    size = len(encode_block(block))
    if size > document.block_max:
        raise BlockTooBig(f"it has {size} bytes; the network allows {document.block_max}")
    transactions, ids = _check_body(document, block, known)
    nodes = StateNodes(read_node)
    state = _apply(document, parent, block.header, transactions, nodes)
    root = state.write(nodes.put, border_key(network_id(document)))
    if root != block.header.state_root:
        raise WrongStateRoot(f"its transactions lead to state {root.hex()}, its header says {point.state_root.hex()}")
    return CheckedBlock(point, block, transactions, ids, nodes.fresh, state.account_changes())


def _check_body(
    document: NetworkDocument, block: Block, known: Collection[bytes]
) -> tuple[tuple[Transaction, ...], tuple[TxId, ...]]:
    network = network_id(document)
    transactions: list[Transaction] = []
    for index, data in enumerate(block.transactions):
        try:
            tx = decode_tx(data, document.transaction_max)
            check_fee(document, tx)
            if data not in known:
                check_signatures(network, tx)
        except InvalidTransaction as exc:
            raise BadTransaction(index, exc) from exc
        transactions.append(tx)
    ids = tuple(tx_id(tx) for tx in transactions)
    if ids_root(ids) != block.header.ids_root:
        raise WrongIdsRoot("the root over its transactions' ids is not the header's")
    if len(set(ids)) != len(ids):
        raise DuplicateTransaction("it holds the same transaction twice")
    votes = sum(isinstance(tx, Vote) for tx in transactions)
    if votes > VOTES_MAX:
        raise TooManyVotes(f"it holds {votes} votes, and may hold {VOTES_MAX}")
    return tuple(transactions), ids


def _apply(
    document: NetworkDocument, parent: Point, header: Header, transactions: Sequence[Transaction], nodes: StateNodes
) -> State:
    """Apply a block's transactions after `parent` and return the state with what they change laid over it."""
    if not transactions or not is_coinbase_for(transactions[0], header.height):
        raise NoCoinbase(f"its first transaction is not a coinbase for height {header.height}")
    coinbase = transactions[0]
    assert isinstance(coinbase, Coinbase)
    state = _next_state(document, parent, nodes)
    for index, tx in enumerate(transactions[1:], 1):
        try:
            apply_transaction(document, state, tx, header.time, header.height)
        except InvalidTransaction as exc:
            raise BadTransaction(index, exc) from exc
    reward = reward_at(document, header.height, transactions)
    if coinbase.amount != reward:
        raise WrongReward(f"its coinbase pays {coinbase.amount}; subsidy and fees are {reward}")
    try:
        credit(state, coinbase.recipient, coinbase.amount)
    except InvalidTransaction as exc:
        raise BadTransaction(0, exc) from exc
    return state


def reward_at(document: NetworkDocument, height: int, transactions: Sequence[Transaction]) -> int:
    """Return what the coinbase of the block at `height` pays: the miner's part of the subsidy, and the fees of its others."""
    subsidy = subsidy_at(document, height) - storage_subsidy_at(document, height)
    return subsidy + sum(fee_of(tx) for tx in transactions)


def open_next(document: NetworkDocument, parent: Point, read_node: Callable[[bytes], bytes | None]) -> State:
    """Return the state that the transactions of the block after `parent` are applied to. Raises NodeMissing."""
    return _next_state(document, parent, StateNodes(read_node))


def _next_state(document: NetworkDocument, parent: Point, nodes: StateNodes) -> State:
    state = State(nodes.get, parent.state_root)
    begin_block(document, state, parent.id, parent.height + 1)
    return state


def build_block(
    document: NetworkDocument,
    parent: Point,
    transactions: Sequence[Transaction],
    recipient: bytes,
    time: int,
    read_node: Callable[[bytes], bytes | None],
) -> Block:
    """Return the block to mine after `parent`: all but the nonce, which is zero. The transactions must be valid there
    (`mempool.Mempool.select`)."""
    height = parent.height + 1
    reward = reward_at(document, height, transactions)
    body = (Coinbase(1, height, recipient, reward), *transactions)
    encoded = tuple(encode_tx(tx) for tx in body)
    header = Header(
        version=1,
        parent=parent.id,
        height=height,
        time=max(time, parent.median_time + 1),
        target=work.target_after(document, parent.lead),
        ids_root=ids_root([tx_id(tx) for tx in body]),
        bytes_root=bytes_root(encoded),
        state_root=EMPTY_ROOT,
        nonce=bytes(8),
    )
    nodes = StateNodes(read_node)
    root = _apply(document, parent, header, body, nodes).write(nodes.put, border_key(network_id(document)))
    return Block(msgspec.structs.replace(header, state_root=root), encoded)


def is_better(candidate: Point, best: Point) -> bool:
    """Tell whether to prefer `candidate` by work and id (`rank_of`). Where stake votes, `finality.choose_tip` decides."""
    return candidate.rank > best.rank


def rank_of(cumulative: bytes, tip: BlockId) -> bytes:
    """Return the rank of a chain, 64 bytes to be compared, the greater the better: its cumulative work, then the id of its last
    block, of which the smaller is better.

    So that all who have the same blocks follow the same chain, whichever came first. Where blocks are mined only when there is
    something to record, the next one that would decide may be a long time coming.
    """
    return cumulative + bytes(255 - byte for byte in tip)


def plan_switch(
    read_point: Callable[[BlockId], Point | None], old: Point, new: Point, finality_depth: int | None
) -> Switch:
    """Return how to get from tip `old` to tip `new`. Raises ReorgTooDeep when more than `finality_depth` blocks would be
    left (None: a person said so), UnknownParent when an ancestor is missing."""
    leave: list[Point] = []
    enter: list[Point] = []
    left, right = old, new
    while left.id != right.id:
        if right.height >= left.height:
            enter.append(right)
            right = _parent(read_point, right)
        else:
            leave.append(left)
            left = _parent(read_point, left)
        if finality_depth is not None and len(leave) > finality_depth:
            raise ReorgTooDeep(
                f"block {new.height} ({new.id.hex()}) has more work, but would replace more than {finality_depth} blocks"
            )
    return Switch(left, tuple(leave), tuple(reversed(enter)))


def _parent(read_point: Callable[[BlockId], Point | None], point: Point) -> Point:
    parent = read_point(point.parent)
    if parent is None:
        raise UnknownParent(f"the parent of block {point.height} is not known")
    return parent


def locator(tip: Point, best_at: Callable[[int], BlockId | None]) -> tuple[BlockId, ...]:
    """Return ids of the best chain, newest first, ever further apart, the genesis last: by these another daemon finds the
    last block that both have."""
    ids: list[BlockId] = []
    height, step = tip.height, 1
    while height > 0:
        identity = best_at(height)
        if identity is not None:
            ids.append(identity)
        if len(ids) >= 10:
            step *= 2
        height -= step
    genesis = best_at(0)
    return (*ids, genesis) if genesis is not None else tuple(ids)
