"""What the ledger's state is, and what each transaction does to it.

Pure. The state is a Merkle search tree (`tree`): key -> canonical value. Its root stands in every block header, so one
path proves a balance, a registration or a volume's latest anchor, and a reorganisation is a return to an older root.

    "A" + public key      Account         balance and next nonce; absent while both are 0
    "B", "C", "D", "E", "P"               contracts, and what they see: see `contracting`
    "F", "S", "U"                         checkpoints and stakes: see `staking`
    "N"                   number of registrations ever made
    "O" + peer            Operated        who declares to run the peer; absent when nobody ever did
    "R" + peer            Registration    place (order of first registration), address, capacity, price, sequence
    "V" + volume          VolumeHead      latest anchor: sequence, commitment, device, lease, transaction, height

Not here: signatures, stamps and sizes (`transactions`, `chain`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

import msgspec
from blake3 import blake3

from fsdecloud import codec
from fsdecloud.errors import MalformedError
from fsdecloud.ledger import contracting, staking
from fsdecloud.ledger.network import AMOUNT_MAX, NetworkDocument
from fsdecloud.ledger.reasons import (
    AmountOutOfRange,
    LeaseHeld,
    MisplacedCoinbase,
    NotEnoughMoney,
    NotRegistered,
    OldSequence,
    OneAnchorPerBlock,
    WrongNonce,
    WrongPredecessor,
)
from fsdecloud.ledger.transactions import (
    NO_LINK,
    Anchor,
    Bond,
    Coinbase,
    Deploy,
    Evidence,
    Input,
    Operate,
    Register,
    Transaction,
    Transfer,
    Unbond,
    Vote,
    link,
    tx_id,
)
from fsdecloud.tree.lookup import lookup, scan_prefix
from fsdecloud.tree.node import Inner, Node, NodeMissing, decode_node
from fsdecloud.tree.update import update
from fsdecloud.types import PeerId, TxId

EMPTY_ROOT: Final = bytes(32)
"""What a header says when the state tree is empty; the tree itself says b""."""

_ACCOUNT: Final = b"A"
_COUNT: Final = b"N"
_OPERATOR: Final = b"O"
_PEER: Final = b"R"
_VOLUME: Final = b"V"
_NODE_CONTEXT: Final = "fsdecloud 2026 v1 ledger state node"
_BORDER_CONTEXT: Final = "fsdecloud 2026 v1 ledger state border"


class Account(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A key's money."""

    balance: int
    nonce: int


class Registration(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A storage peer's latest registration."""

    place: int
    url: str
    capacity: int
    price: int
    sequence: int
    height: int


class Operated(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A storage peer's latest declaration of its operator. A row of its own: registrations are as they were before it."""

    operator: bytes
    sequence: int


class VolumeHead(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A volume's latest anchor."""

    sequence: int
    commitment: bytes
    device: bytes
    lease_expiry: int
    tx: TxId
    height: int


_SINGLE_ROWS: Final[Mapping[bytes, type]] = {_COUNT: int, staking.FINALITY_KEY: staking.Finality}
_KEYED_ROWS: Final[Mapping[bytes, type]] = {
    _ACCOUNT: Account,
    _OPERATOR: Operated,
    _PEER: Registration,
    _VOLUME: VolumeHead,
    staking.stake_key(b""): staking.Stake,
}
"""What the rows of the state hold: those with a key of their own, and those whose key is a letter and a public key."""


class StateNodes:
    """The nodes of state trees by reference: stored ones through `read`, new ones kept in `fresh` until stored.

    Each node read is checked against its reference.
    """

    def __init__(self, read: Callable[[bytes], bytes | None]) -> None:
        self._read = read
        self.fresh: dict[bytes, bytes] = {}
        self._decoded: dict[bytes, Node] = {}

    def get(self, ref: bytes) -> Node:
        """Return the node. Raises NodeMissing when it is not there or not what its reference says."""
        node = self._decoded.get(ref)
        if node is None:
            data = self.fresh.get(ref)
            if data is None:
                data = self._read(ref)
                if data is None or node_ref(data) != ref:
                    raise NodeMissing(ref)
            node = self._decoded[ref] = decode_node(data)
        return node

    def put(self, data: bytes) -> bytes:
        """Keep a new node and return its reference."""
        ref = node_ref(data)
        self.fresh[ref] = data
        return ref


class State:
    """The state under one root, with changes laid over it."""

    def __init__(self, get: Callable[[bytes], Node], root: bytes) -> None:
        self._get = get
        self._root = b"" if root == EMPTY_ROOT else root
        self.changes: dict[bytes, bytes | None] = {}
        self.work = 0
        """What contracts have cost in the block so far (`contracting`)."""

    def read(self, key: bytes) -> bytes | None:
        """Return the value of `key` as of now."""
        if key in self.changes:
            return self.changes[key]
        return lookup(self._get, self._root, key) if self._root else None

    def stored_rows(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Return the stored rows whose key begins with `prefix`, ascending; changes laid over are not in it."""
        return scan_prefix(self._get, self._root, prefix) if self._root else iter(())

    def account(self, key: bytes) -> Account:
        """Return the account of a public key; unknown ones are empty."""
        data = self.read(_ACCOUNT + key)
        return Account(0, 0) if data is None else codec.decode(data, Account)

    def set_account(self, key: bytes, account: Account) -> None:
        """Replace an account."""
        self.changes[_ACCOUNT + key] = None if account == Account(0, 0) else codec.encode(account)

    def account_changes(self) -> tuple[tuple[bytes, int], ...]:
        """Return (public key, how its balance changed) of all accounts that were written since the stored state, ascending:
        also of those that have the same balance again."""
        found = []
        for key in sorted(key for key in self.changes if key[:1] == _ACCOUNT):
            stored = lookup(self._get, self._root, key) if self._root else None
            before = 0 if stored is None else codec.decode(stored, Account).balance
            found.append((key[1:], self.account(key[1:]).balance - before))
        return tuple(found)

    def registration(self, peer: bytes) -> Registration | None:
        """Return a peer's registration."""
        data = self.read(_PEER + peer)
        return None if data is None else codec.decode(data, Registration)

    def set_registration(self, peer: bytes, registration: Registration) -> None:
        """Replace a peer's registration; a new one counts."""
        if registration.place == self.registrations():
            self.changes[_COUNT] = codec.encode(registration.place + 1)
        self.changes[_PEER + peer] = codec.encode(registration)

    def registrations(self) -> int:
        """Return how many peers were ever registered: the next place."""
        data = self.read(_COUNT)
        return 0 if data is None else codec.decode(data, int)

    def operated(self, peer: bytes) -> Operated | None:
        """Return who runs a peer by its latest declaration; None when it never made one."""
        data = self.read(_OPERATOR + peer)
        return None if data is None else codec.decode(data, Operated)

    def set_operated(self, peer: bytes, operated: Operated) -> None:
        """Replace a peer's declaration."""
        self.changes[_OPERATOR + peer] = codec.encode(operated)

    def operators(self) -> dict[PeerId, bytes]:
        """Return the operator of each peer that has one; changes laid over are not in it."""
        rows = scan_prefix(self._get, self._root, _OPERATOR) if self._root else ()
        found = {PeerId(key[1:]): codec.decode(value, Operated).operator for key, value in rows}
        return {peer: operator for peer, operator in found.items() if operator}

    def registry(self) -> Iterator[tuple[PeerId, Registration]]:
        """Return all stored registrations in key order; changes laid over are not in it."""
        for key, value in scan_prefix(self._get, self._root, _PEER) if self._root else ():
            yield PeerId(key[1:]), codec.decode(value, Registration)

    def volume(self, volume: bytes) -> VolumeHead | None:
        """Return a volume's latest anchor."""
        data = self.read(_VOLUME + volume)
        return None if data is None else codec.decode(data, VolumeHead)

    def set_volume(self, volume: bytes, head: VolumeHead) -> None:
        """Replace a volume's latest anchor."""
        self.changes[_VOLUME + volume] = codec.encode(head)

    def write(self, put: Callable[[bytes], bytes], border_key: bytes) -> bytes:
        """Write the changes into the tree and return the header's state root."""
        changes = sorted(self.changes.items())
        return update(self._get, put, border_key, self._root, changes) or EMPTY_ROOT


def node_ref(data: bytes) -> bytes:
    """Return the reference of an encoded state node."""
    return blake3(data, derive_key_context=_NODE_CONTEXT).digest()


def border_key(network: bytes) -> bytes:
    """Return the network's public key for the borders of its state trees."""
    return blake3(network, derive_key_context=_BORDER_CONTEXT).digest()


def begin_block(document: NetworkDocument, state: State, parent: bytes, height: int) -> None:
    """Do what comes before the transactions of the block at `height`; `parent` is the id of the block before."""
    staking.begin_block(document, state, parent, height)
    contracting.begin_block(document, state, parent, height)


def apply_transaction(
    document: NetworkDocument, state: State, tx: Transaction, time: int, height: int, *, stacked: bool = False
) -> None:
    """Apply one transaction at its block's own time `time`, or raise an InvalidTransaction leaf and change nothing. The state
    is that of the block before, after `begin_block`.

    `stacked` is for what waits, for several blocks: more than one anchor of a volume, and recipients get nothing yet, so that
    nobody spends what he does not have in a block. The coinbase is applied by `credit`.
    """
    if isinstance(tx, Anchor):
        _apply_anchor(state, tx, time, height, stacked=stacked)
    elif isinstance(tx, Transfer):
        _apply_transfer(state, tx, stacked=stacked)
    elif isinstance(tx, Register):
        _apply_register(state, tx, height)
    elif isinstance(tx, Operate):
        _apply_operate(state, tx)
    elif isinstance(tx, Input):
        contracting.apply_input(document, state, tx, height, stacked=stacked)
    elif isinstance(tx, Deploy):
        contracting.apply_deploy(document, state, tx, height, stacked=stacked)
    elif isinstance(tx, Bond):
        staking.apply_bond(document, state, tx, height, stacked=stacked)
    elif isinstance(tx, Unbond):
        staking.apply_unbond(document, state, tx, height, stacked=stacked)
    elif isinstance(tx, Vote):
        staking.apply_vote(document, state, tx, stacked=stacked)
    elif isinstance(tx, Evidence):
        staking.apply_evidence(document, state, tx, height, stacked=stacked)
    else:
        raise MisplacedCoinbase("a coinbase comes first in a block, and nowhere else")


def credit(state: State, key: bytes, amount: int) -> None:
    """Add money to an account. Raises AmountOutOfRange."""
    account = state.account(key)
    if account.balance + amount > AMOUNT_MAX:
        raise AmountOutOfRange(f"the balance of {key.hex()} would pass {AMOUNT_MAX}")
    state.set_account(key, Account(account.balance + amount, account.nonce))


def _apply_transfer(state: State, tx: Transfer, *, stacked: bool) -> None:
    account = state.account(tx.sender)
    if tx.amount == 0:
        raise AmountOutOfRange("a transfer moves at least 1")
    if tx.nonce != account.nonce:
        raise WrongNonce(f"the sender's next nonce is {account.nonce}, not {tx.nonce}")
    if tx.amount + tx.fee > account.balance:
        raise NotEnoughMoney(f"the sender has {account.balance}; amount and fee are {tx.amount + tx.fee}")
    if tx.recipient != tx.sender and state.account(tx.recipient).balance + tx.amount > AMOUNT_MAX:
        raise AmountOutOfRange(f"the balance of {tx.recipient.hex()} would pass {AMOUNT_MAX}")
    state.set_account(tx.sender, Account(account.balance - tx.amount - tx.fee, account.nonce + 1))
    if not stacked:
        credit(state, tx.recipient, tx.amount)


def _apply_register(state: State, tx: Register, height: int) -> None:
    before = state.registration(tx.peer)
    if before is not None and tx.sequence <= before.sequence:
        raise OldSequence(f"the peer's registration {before.sequence} is not older than this one, {tx.sequence}")
    _check_funds(state, tx.peer, tx.fee)
    place = state.registrations() if before is None else before.place
    state.set_registration(tx.peer, Registration(place, tx.url, tx.capacity, tx.price, tx.sequence, height))
    _pay_fee(state, tx.peer, tx.fee)


def _apply_operate(state: State, tx: Operate) -> None:
    if state.registration(tx.peer) is None:
        raise NotRegistered("a peer is registered before it says who runs it")
    before = state.operated(tx.peer)
    if before is not None and tx.sequence <= before.sequence:
        raise OldSequence(f"the peer's declaration {before.sequence} is not older than this one, {tx.sequence}")
    _check_funds(state, tx.peer, tx.fee)
    state.set_operated(tx.peer, Operated(tx.operator, tx.sequence))
    _pay_fee(state, tx.peer, tx.fee)


def _apply_anchor(state: State, tx: Anchor, time: int, height: int, *, stacked: bool) -> None:
    head = state.volume(tx.volume)
    expected = 1 if head is None else head.sequence + 1
    if tx.sequence != expected:
        raise WrongPredecessor(f"the volume's next anchor has sequence number {expected}, not {tx.sequence}")
    previous = NO_LINK if head is None else link(tx.volume, head.sequence, head.commitment)
    if tx.previous != previous:
        raise WrongPredecessor(f"anchor {tx.sequence} does not name the volume's latest anchor as its predecessor")
    if head is not None and head.height == height and not stacked:
        raise OneAnchorPerBlock("this block holds an anchor of the volume already")
    if head is not None and head.device != tx.device and time < head.lease_expiry and not tx.takeover:
        raise LeaseHeld(f"device {head.device.hex()} holds the lease until {head.lease_expiry}; it is {time}")
    _check_funds(state, tx.volume, tx.fee)
    anchor = VolumeHead(tx.sequence, tx.commitment, tx.device, tx.lease_expiry, tx_id(tx), height)
    state.set_volume(tx.volume, anchor)
    _pay_fee(state, tx.volume, tx.fee)


def _check_funds(state: State, payer: bytes, fee: int) -> None:
    balance = state.account(payer).balance if fee else 0
    if fee > balance:
        raise NotEnoughMoney(f"the payer of the fee has {balance}, the fee is {fee}")


def _pay_fee(state: State, payer: bytes, fee: int) -> None:
    if fee:
        account = state.account(payer)
        state.set_account(payer, Account(account.balance - fee, account.nonce))


def check_row(key: bytes, value: bytes) -> None:
    """Raise MalformedError unless a row of the state has the form that the rules give it. For states that were not computed
    here; whether the row is true is another question."""
    if key in _SINGLE_ROWS:
        codec.decode(value, _SINGLE_ROWS[key])
    elif key[:1] in _KEYED_ROWS and len(key) == 33:
        codec.decode(value, _KEYED_ROWS[key[:1]])
    elif not staking.is_unbonding_row(key, value) and not contracting.is_contract_row(key, value):
        raise MalformedError(f"no rule writes a row with the key {key[:40].hex()} into the state")


def keys_of(owner: bytes) -> tuple[bytes, ...]:
    """Return the state keys that belong to one public key: its account, and what it is as a volume and as a peer.

    **Invariant:** whether a transaction is valid depends on no others than those of the same owner (`mempool.slot_of`), but for
    the money that others bring, and the checkpoints and contracts, which change with the tip alone for what waits. The
    number of registrations decides places, and no validity. The last key is that of no row: what waits notes under it which
    contracts it is about.
    """
    return (
        _ACCOUNT + owner, _VOLUME + owner, _PEER + owner, _OPERATOR + owner, staking.stake_key(owner),
        contracting.waiting_key(owner),
    )  # fmt: skip


def account_key(owner: bytes) -> bytes:
    """Return the state key of a public key's account."""
    return _ACCOUNT + owner


def volume_key(volume: bytes) -> bytes:
    """Return the state key of a volume's latest anchor."""
    return _VOLUME + volume


REGISTRY_PREFIXES: Final = (_OPERATOR, _PEER)
"""What the keys of all declarations, and of all registrations, begin with."""

COUNT_KEY: Final = _COUNT
"""The state key of the number of registrations."""


def is_coinbase_for(tx: Transaction, height: int) -> bool:
    """Tell whether `tx` may stand first in the block of this height."""
    return isinstance(tx, Coinbase) and tx.height == height


def reachable_nodes(read: Callable[[bytes], bytes | None], roots: Iterable[bytes]) -> set[bytes]:
    """Return the references of all nodes of the state trees under `roots`. Raises NodeMissing."""
    found: set[bytes] = set()
    pending = [root for root in roots if root != EMPTY_ROOT]
    while pending:
        ref = pending.pop()
        if ref in found:
            continue
        data = read(ref)
        if data is None or node_ref(data) != ref:
            raise NodeMissing(ref)
        found.add(ref)
        node = decode_node(data)
        if isinstance(node, Inner):
            pending.extend(child for child in node.refs if child not in found)
    return found
