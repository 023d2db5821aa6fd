"""What contracts do to the state: they are deployed, take inputs, pay out, and end.

Pure. The language and its machine are in `contracts`; here is the chain around them: whose money a deposit is, where
payments go, what a contract sees of the blocks. Rows of the state:

    "B" + be2(height mod RING)    Recent      id of one of the last RING blocks: challenges are drawn from them
    "C" + contract                Contract    a contract that waits
    "D" + contract                bytes       its document, unless that is a standard one
    "E" + be8(height)             ids         contracts that end at this height by themselves, if nobody ended them before
    "P"                           StoragePool money for proven storage, and what was burned in all
    "W" + sender                  ids         never in a state: the contracts that what waits of a sender is about (`mempool`)

A contract ends when it closes; nobody has to see to it: at the height by which its last timeout has passed whatever
happened, the block itself goes through what is left, a bounded number of contracts and steps in each block.

**Storage.** A part of each subsidy goes into the pool. Of what a contract pays `for storage` a levy burns, and the payee
has up to as much out of the pool. Never more than the levy: who pays himself gets no more than he paid, so there is nothing
to gain by deals with oneself.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

import msgspec

from fsdecloud import codec
from fsdecloud.contracts.inputs import Depositing
from fsdecloud.contracts.library import find_standard
from fsdecloud.contracts.machine import SEED_BLOCKS, Instance, Outcome, Payment, deploy, step
from fsdecloud.contracts.program import Program, load_document
from fsdecloud.contracts.reasons import InputRefused, InvalidArguments, InvalidDocument
from fsdecloud.crypto import possession
from fsdecloud.ledger.network import AMOUNT_MAX, NetworkDocument, has_contracts, network_id, storage_subsidy_at
from fsdecloud.ledger.reasons import (
    BadContract,
    EndsTaken,
    NoContracts,
    NotEnoughMoney,
    RefusedByContract,
    TooMuchWork,
    UnknownContract,
    UnknownDocument,
    WrongNonce,
)
from fsdecloud.ledger.transactions import Deploy, Input, tx_id
from fsdecloud.limits import CONTRACT_ENDINGS, CONTRACT_WORK

if TYPE_CHECKING:
    from fsdecloud.ledger.state import State

RING: Final = 4096
"""Blocks whose ids the state has, almost three days at one a minute: far more than any window for a proof."""

ENDS_AHEAD: Final = 64
"""Heights after its own at which a contract may end by itself, when its own is taken."""

_BLOCK: Final = b"B"
_CONTRACT: Final = b"C"
_DOCUMENT: Final = b"D"
_ENDING: Final = b"E"
_WAITING: Final = b"W"

POOL_KEY: Final = b"P"
"""The state key of the pool for proven storage."""


class Recent(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One of the last blocks."""

    height: int
    id: bytes


class Contract(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A contract that waits."""

    instance: Instance
    ends: int
    """Height at which the ledger ends it, if nobody did before."""


class StoragePool(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Money that is nobody's."""

    balance: int
    """For proven storage."""
    burned: int
    """By contracts, since the first block."""


Ids = tuple[bytes, ...]


# ---- rows --------------------------------------------------------------------------------------------------------
def contract_of(state: State, contract: bytes) -> Contract | None:
    """Return a contract by its id; None if there is none, or no longer."""
    data = state.read(_CONTRACT + contract)
    return None if data is None else codec.decode(data, Contract)


def document_of(state: State, contract: bytes) -> bytes | None:
    """Return the encoded document of a contract whose document is not a standard one."""
    return state.read(_DOCUMENT + contract)


def program_of(state: State, contract: bytes, instance: Instance) -> Program:
    """Return the program of a contract that waits."""
    found = find_standard(instance.document)
    if found is None:
        data = document_of(state, contract)
        assert data is not None, "a contract without a standard document has a row for its own"
        found = _load(data)
    return found


@lru_cache(maxsize=64)
def _load(data: bytes) -> Program:
    """Return the program of an encoded document: many inputs to one contract read it once."""
    return load_document(data)


def pool_of(state: State) -> StoragePool:
    """Return the pool for proven storage."""
    data = state.read(POOL_KEY)
    return StoragePool(0, 0) if data is None else codec.decode(data, StoragePool)


def contract_key(contract: bytes) -> bytes:
    """Return the state key of a contract."""
    return _CONTRACT + contract


def document_key(contract: bytes) -> bytes:
    """Return the state key of a contract's own document."""
    return _DOCUMENT + contract


def block_key(height: int) -> bytes:
    """Return the state key under which the id of the block of a height is, for a while."""
    return _BLOCK + (height % RING).to_bytes(2)


def waiting_key(sender: bytes) -> bytes:
    """Return the key under which a mempool's view notes which contracts a sender's transactions are about."""
    return _WAITING + sender


def is_contract_row(key: bytes, value: bytes) -> bool:
    """Tell whether a row of the state is one of those here. Raises MalformedError if it has their key and not their form."""
    if key == POOL_KEY:
        codec.decode(value, StoragePool)
    elif key[:1] == _BLOCK and len(key) == 3:
        codec.decode(value, Recent)
    elif key[:1] == _CONTRACT and len(key) == 33:
        codec.decode(value, Contract)
    elif key[:1] == _ENDING and len(key) == 9:
        codec.decode(value, Ids)
    elif key[:1] == _DOCUMENT and len(key) == 33:
        try:
            load_document(value)
        except InvalidDocument:
            return False
    else:
        return False
    return True


# ---- what a contract sees ----------------------------------------------------------------------------------------
class ChainView:
    """The chain as a contract in one of its blocks sees it."""

    def __init__(self, network: bytes, state: State) -> None:
        self.network = network
        self._state = state

    def block_ids(self, height: int) -> Ids | None:
        """Return the ids of SEED_BLOCKS blocks from this height on; None unless all are there and remembered."""
        ids = []
        for one in range(height, height + SEED_BLOCKS):
            data = self._state.read(block_key(one)) if one >= 0 else None
            recent = None if data is None else codec.decode(data, Recent)
            if recent is None or recent.height != one:
                return None
            ids.append(recent.id)
        return tuple(ids)

    def proves(self, root: bytes, seed: bytes, samples: int, proof: bytes) -> bool:
        """Tell whether a possession proof verifies."""
        return _proves(root, seed, samples, proof)


@lru_cache(maxsize=256)
def _proves(root: bytes, seed: bytes, samples: int, proof: bytes) -> bool:
    """Tell whether a possession proof verifies; a transaction is looked at when it comes, for a block, and in a block."""
    return possession.verify(root, seed, samples, proof)


# ---- blocks ------------------------------------------------------------------------------------------------------
def begin_block(document: NetworkDocument, state: State, parent: bytes, height: int) -> None:
    """Do what comes before the transactions of the block at `height`: note its parent's id, fill the pool, end what is over."""
    if not has_contracts(document):
        return
    state.changes[block_key(height - 1)] = codec.encode(Recent(height - 1, parent))
    share = storage_subsidy_at(document, height)
    if share:
        pool = pool_of(state)
        _set_pool(state, min(pool.balance + share, AMOUNT_MAX), pool.burned)
    _end_contracts(document, state, height)


def _end_contracts(document: NetworkDocument, state: State, height: int) -> None:
    key = _ENDING + height.to_bytes(8)
    ids = _ids(state, key)
    if not ids:
        return
    state.changes[key] = None
    left: list[bytes] = []
    for contract in ids[: 2 * CONTRACT_ENDINGS]:
        found = contract_of(state, contract)
        assert found is not None, "a contract that has ended ends no more"
        instance = found.instance
        view = ChainView(network_id(document), state)
        try:
            done = step(program_of(state, contract, instance), contract, instance, b"", height, (), view)
        except InputRefused as exc:
            raise AssertionError(f"at its end a contract has a timeout to go through: {exc}") from exc
        _pay_out(document, state, done)
        if done.instance is None:
            _remove(state, contract)
        else:
            state.changes[contract_key(contract)] = codec.encode(Contract(done.instance, height + 1))
            left.append(contract)
    later = ids[2 * CONTRACT_ENDINGS :]
    for contract in later:
        found = contract_of(state, contract)
        assert found is not None, "a contract that has ended ends no more"
        state.changes[contract_key(contract)] = codec.encode(Contract(found.instance, height + 1))
    if left or later:
        after = _ENDING + (height + 1).to_bytes(8)
        state.changes[after] = codec.encode((*left, *later, *_ids(state, after)))


# ---- transactions ------------------------------------------------------------------------------------------------
def apply_deploy(document: NetworkDocument, state: State, tx: Deploy, height: int, *, stacked: bool) -> None:
    """Begin a contract. With `stacked` only the sender's rows change. Raises an InvalidTransaction leaf and changes nothing."""
    _check_contracts(document)
    program = find_standard(tx.document)
    if program is None and not tx.body:
        raise UnknownDocument(f"{tx.document.hex()} is no standard document, and the deployment does not carry it")
    account = state.account(tx.sender)
    if tx.nonce != account.nonce:
        raise WrongNonce(f"the sender's next nonce is {account.nonce}, not {tx.nonce}")
    if tx.fee > account.balance:
        raise NotEnoughMoney(f"the sender has {account.balance}, the fee is {tx.fee}")
    try:
        if program is None:
            program = _load(tx.body)
        done = deploy(program, tx.arguments, height)
    except (InvalidDocument, InvalidArguments) as exc:
        raise BadContract(str(exc)) from exc
    assert done.instance is not None, "what begins waits"
    contract = tx_id(tx)
    if not stacked:
        ends = _free_end(state, done.instance.end, height)
        _spend_work(state, done.work)
        ending = _ENDING + ends.to_bytes(8)
        state.changes[ending] = codec.encode((*_ids(state, ending), contract))
        state.changes[contract_key(contract)] = codec.encode(Contract(done.instance, ends))
        if find_standard(tx.document) is None:
            state.changes[document_key(contract)] = tx.body
    else:
        _note(state, tx.sender, contract)
    state.set_account(
        tx.sender, msgspec.structs.replace(account, balance=account.balance - tx.fee, nonce=account.nonce + 1)
    )


def apply_input(document: NetworkDocument, state: State, tx: Input, height: int, *, stacked: bool) -> None:
    """Let a contract take an input, and pay what it pays. Raises an InvalidTransaction leaf and changes nothing.

    With `stacked` only the sender's rows change: what waits of different senders does not depend on each other. The contract is
    then asked as it is after the tip, and not at all behind a transaction of the sender that is about it, too.
    """
    _check_contracts(document)
    account = state.account(tx.sender)
    if tx.nonce != account.nonce:
        raise WrongNonce(f"the sender's next nonce is {account.nonce}, not {tx.nonce}")
    deposits = sum(act.amount for act in tx.acts if isinstance(act, Depositing))
    if tx.fee + deposits > account.balance:
        raise NotEnoughMoney(f"the sender has {account.balance}; deposits and fee are {tx.fee + deposits}")
    changed = msgspec.structs.replace(account, balance=account.balance - tx.fee - deposits, nonce=account.nonce + 1)
    if stacked and tx.contract in _ids(state, waiting_key(tx.sender)):
        state.set_account(tx.sender, changed)
        return
    found = contract_of(state, tx.contract)
    if found is None:
        raise UnknownContract(f"there is no contract {tx.contract.hex()}, or it has ended")
    instance = found.instance
    view = ChainView(network_id(document), state)
    try:
        done = step(program_of(state, tx.contract, instance), tx.contract, instance, tx.sender, height, tx.acts, view)
    except InputRefused as exc:
        raise RefusedByContract(str(exc)) from exc
    if stacked:
        _note(state, tx.sender, tx.contract)
        state.set_account(tx.sender, changed)
        return
    _spend_work(state, done.work)
    state.set_account(tx.sender, changed)
    _pay_out(document, state, done)
    if done.instance is not None:
        state.changes[contract_key(tx.contract)] = codec.encode(Contract(done.instance, found.ends))
        return
    _remove(state, tx.contract)
    ending = _ENDING + found.ends.to_bytes(8)
    left = tuple(one for one in _ids(state, ending) if one != tx.contract)
    state.changes[ending] = codec.encode(left) if left else None


# ---- inner -------------------------------------------------------------------------------------------------------
def _check_contracts(document: NetworkDocument) -> None:
    if not has_contracts(document):
        raise NoContracts(f"the network's document has version {document.version}; contracts came with version 4")


def _spend_work(state: State, work: int) -> None:
    if state.work + work > CONTRACT_WORK:
        raise TooMuchWork(
            f"contracts may cost {CONTRACT_WORK} in a block, and {state.work} are spent; this costs {work}"
        )
    state.work += work


def _free_end(state: State, end: int, height: int) -> int:
    """Return the first height from `end` on at which not too many contracts end. Raises EndsTaken."""
    first = max(end, height + 1)
    for ends in range(first, first + ENDS_AHEAD):
        if len(_ids(state, _ENDING + ends.to_bytes(8))) < CONTRACT_ENDINGS:
            return ends
    raise EndsTaken(f"too many contracts end at block {first} and after it: let this one last longer or shorter")


def _pay_out(document: NetworkDocument, state: State, done: Outcome) -> None:
    for payment in done.payments:
        _pay(document, state, payment)


def _pay(document: NetworkDocument, state: State, payment: Payment) -> None:
    """Pay what left a contract. What would pass the largest balance is burned: no contract may get stuck by what others
    have."""
    pool = pool_of(state)
    if not payment.party:
        _set_pool(state, pool.balance, pool.burned + payment.amount)
        return
    levy = payment.amount * document.storage_levy // 1000 if payment.storage else 0
    bonus = min(levy, pool.balance)
    account = state.account(payment.key)
    wanted = account.balance + payment.amount - levy + bonus
    balance = min(wanted, AMOUNT_MAX)
    state.set_account(payment.key, msgspec.structs.replace(account, balance=balance))
    if levy or wanted > balance:
        _set_pool(state, pool.balance - bonus, pool.burned + levy + wanted - balance)


def _set_pool(state: State, balance: int, burned: int) -> None:
    # Burned money comes from the subsidies; where those have no end, the count stops and the money is gone all the same.
    state.changes[POOL_KEY] = codec.encode(StoragePool(balance, min(burned, AMOUNT_MAX)))


def _remove(state: State, contract: bytes) -> None:
    state.changes[contract_key(contract)] = None
    if document_of(state, contract) is not None:
        state.changes[document_key(contract)] = None


def _ids(state: State, key: bytes) -> Ids:
    data = state.read(key)
    return () if data is None else codec.decode(data, Ids)


def _note(state: State, sender: bytes, contract: bytes) -> None:
    """Note in a mempool's view that a waiting transaction of the sender is about a contract."""
    key = waiting_key(sender)
    state.changes[key] = codec.encode((*_ids(state, key), contract))
