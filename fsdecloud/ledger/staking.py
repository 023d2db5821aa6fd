"""What stake and votes do to the state: bonds, checkpoints that become justified and final, and what burns a stake.

Pure. After Casper FFG (Buterin and Griffith, "Casper the Friendly Finality Gadget", 2017). Each `checkpoint_interval`-th block
is a checkpoint. A vote links the justified checkpoint to the newest one; with two thirds of the weight the newest is justified,
and if it is the very next after its source, the source is final. Weight is bonded stake, and the condition to vote is a
registration with capacity. Rows of the state:

    "F"                       Finality    the last checkpoints, who votes, and what is voted
    "S" + peer                Stake       what a peer has bonded, and its weight over time
    "U" + be8(height) + peer  b""         whose stake is paid back at a height

The voters of a link and their weights are those of two checkpoints: the final one and the one that was final before it
(Casper's forward and rear sets), fixed when the source was justified; each has to give two thirds. So two chains whose voters
part have one set in common, and a third of it burns if both become final. They change in one other way: when nothing became
final for `restart_after` blocks, far more than any node takes back by itself, who did not vote is suspended and the others are
the voters.

Not here: which chain is followed, and what a voter may sign (`finality`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import msgspec

from fsdecloud import codec
from fsdecloud.ledger.network import AMOUNT_MAX, NetworkDocument, network_id
from fsdecloud.ledger.reasons import (
    AmountOutOfRange,
    NoConflict,
    NotAVoter,
    NotBonded,
    NotEnoughMoney,
    NotRegistered,
    NoVoting,
    StakeLocked,
    VotedAlready,
    WrongLink,
    WrongNonce,
)
from fsdecloud.ledger.transactions import Bond, Evidence, Unbond, Vote, votes_of

if TYPE_CHECKING:
    from fsdecloud.ledger.state import State

VOTES_MAX: Final = 512
"""Votes in a block: about 100 KiB and 50 ms of signatures."""

CHANGES_MAX: Final = 8
"""Weights of one peer that are remembered: a bond is refused when there are as many, until a checkpoint is final."""

EVIDENCE_SHARE: Final = 16
"""The fee for evidence comes out of the stake that burns, this part of it at most: who burns his own loses the rest."""

RESTARTS: Final = 4
"""A leaving stake is locked for this many times `restart_after`."""

FINALITY_KEY: Final = b"F"
"""The state key of the checkpoints."""

_STAKE: Final = b"S"
_UNBONDING: Final = b"U"


class Checkpoint(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A block whose height is a multiple of the checkpoint interval; the genesis block is one."""

    height: int
    id: bytes
    stake: int
    """All weight after this block."""


class Voters(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Those with weight after the block of a height, and how much it is in all."""

    height: int
    stake: int


class Finality(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What is final, what is justified, and what is being voted about."""

    final: Checkpoint
    justified: Checkpoint
    newest: Checkpoint
    front: Voters
    rear: Voters
    front_votes: int
    """Weight among `front` of the votes for the link from `justified` to `newest`."""
    rear_votes: int
    restarted: int
    """Height at which the voters were last taken anew; 0: never."""
    bonded: int
    """All weight now."""


class Stake(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a peer has bonded."""

    amount: int
    weights: tuple[tuple[int, int], ...]
    """(height, weight from that block on), ascending; those that no voter set is of any more are left out."""
    target: int
    """Height of the checkpoint it voted for last."""
    release: int
    """Height at which the money is paid back; 0: it stays."""
    is_burned: bool

    @property
    def weight(self) -> int:
        """Its weight now."""
        return self.weights[-1][1]

    def weight_at(self, height: int) -> int:
        """Return its weight after the block of a height."""
        return next((weight for since, weight in reversed(self.weights) if since <= height), 0)


def restart_after(document: NetworkDocument) -> int:
    """Return the number of blocks without a final checkpoint after which the voters are taken anew."""
    return document.unbond_delay // RESTARTS


def finality_of(document: NetworkDocument, state: State) -> Finality:
    """Return the row of checkpoints; that of the genesis block when nothing is written yet."""
    data = state.read(FINALITY_KEY)
    if data is not None:
        return codec.decode(data, Finality)
    genesis, nobody = Checkpoint(0, network_id(document), 0), Voters(0, 0)
    return Finality(genesis, genesis, genesis, nobody, nobody, 0, 0, 0, 0)


def stake_of(state: State, peer: bytes) -> Stake | None:
    """Return a peer's stake; None for one that has none."""
    data = state.read(_STAKE + peer)
    return None if data is None else codec.decode(data, Stake)


def stakes(state: State) -> Iterator[tuple[bytes, Stake]]:
    """Return all peers that bonded, with their stakes, in key order."""
    for key, _ in state.stored_rows(_STAKE):
        stake = stake_of(state, key[len(_STAKE) :])
        if stake is not None:
            yield key[len(_STAKE) :], stake


def stake_key(peer: bytes) -> bytes:
    """Return the state key of a peer's stake."""
    return _STAKE + peer


def is_unbonding_row(key: bytes, value: bytes) -> bool:
    """Tell whether a row of the state has the form of one that says whose stake is paid back, and when."""
    return key[:1] == _UNBONDING and len(key) == 1 + 8 + 32 and not value


def begin_block(document: NetworkDocument, state: State, parent: bytes, height: int) -> None:
    """Do what comes before a block's transactions: pay back the stakes that are due, and note a checkpoint before it.

    `parent` is the id of the block before, `height` that of this one.
    """
    interval = document.checkpoint_interval
    if not interval:
        return
    for key, _ in state.stored_rows(_UNBONDING + height.to_bytes(8)):
        _pay_back(state, key)
    if height > 1 and (height - 1) % interval == 0:
        _note_checkpoint(document, state, parent, height - 1)


def apply_bond(document: NetworkDocument, state: State, tx: Bond, height: int, *, stacked: bool) -> None:
    """Lock money of a peer as its stake. Raises an InvalidTransaction leaf and changes nothing."""
    _check_voting(document)
    if not _has_capacity(state, tx.peer):
        raise NotRegistered("only a peer that is registered with capacity may bond a stake")
    if tx.amount == 0:
        raise AmountOutOfRange("a bond locks at least 1")
    finality, stake = finality_of(document, state), stake_of(state, tx.peer)
    if stake is None:
        stake = Stake(0, (), 0, 0, is_burned=False)
    if stake.is_burned:
        raise StakeLocked("the peer's stake was burned: it votes no more, whatever it bonds")
    if stake.release:
        raise StakeLocked(f"the peer's stake is on its way back until block {stake.release}")
    if len(_needed(stake.weights, finality)) >= CHANGES_MAX:
        raise StakeLocked("the peer's stake changed too often since the last final checkpoint")
    account = state.account(tx.peer)
    if tx.nonce != account.nonce:
        raise WrongNonce(f"the peer's next nonce is {account.nonce}, not {tx.nonce}")
    if tx.amount + tx.fee > account.balance:
        raise NotEnoughMoney(f"the peer has {account.balance}; bond and fee are {tx.amount + tx.fee}")
    amount = stake.amount + tx.amount
    if amount < document.least_bond:
        raise AmountOutOfRange(f"a stake is at least {document.least_bond}, not {amount}")
    if finality.bonded + amount > AMOUNT_MAX:
        raise AmountOutOfRange(f"all stake together would pass {AMOUNT_MAX}")
    state.set_account(
        tx.peer, msgspec.structs.replace(account, balance=account.balance - tx.amount - tx.fee, nonce=account.nonce + 1)
    )
    _set_weight(
        state, tx.peer, msgspec.structs.replace(stake, amount=amount), finality, height, amount, stacked=stacked
    )


def apply_unbond(document: NetworkDocument, state: State, tx: Unbond, height: int, *, stacked: bool) -> None:
    """Take a peer's weight away now and pay its stake back after the delay. Raises an InvalidTransaction leaf."""
    _check_voting(document)
    stake = stake_of(state, tx.peer)
    if stake is None or stake.amount == 0:
        raise NotBonded("the peer has no stake")
    if stake.release:
        raise StakeLocked(f"the peer's stake is on its way back already, until block {stake.release}")
    account = state.account(tx.peer)
    if tx.nonce != account.nonce:
        raise WrongNonce(f"the peer's next nonce is {account.nonce}, not {tx.nonce}")
    if tx.fee > account.balance:
        raise NotEnoughMoney(f"the peer has {account.balance}, the fee is {tx.fee}")
    state.set_account(
        tx.peer, msgspec.structs.replace(account, balance=account.balance - tx.fee, nonce=account.nonce + 1)
    )
    release = height + document.unbond_delay
    state.changes[_UNBONDING + release.to_bytes(8) + tx.peer] = b""
    leaving = msgspec.structs.replace(stake, release=release)
    _set_weight(state, tx.peer, leaving, finality_of(document, state), height, 0, stacked=stacked)


def apply_vote(document: NetworkDocument, state: State, tx: Vote, *, stacked: bool) -> None:
    """Count a vote, and make its target justified and its source final if that was what lacked.

    With `stacked` nothing is counted: what waits of different peers does not depend on each other. Raises an
    InvalidTransaction leaf.
    """
    _check_voting(document)
    stake = stake_of(state, tx.peer)
    finality = finality_of(document, state)
    front = 0 if stake is None else stake.weight_at(finality.front.height)
    rear = 0 if stake is None else stake.weight_at(finality.rear.height)
    if stake is None or stake.is_burned or not (front or rear):
        raise NotAVoter("the peer has no stake among the voters of this link")
    if not _has_capacity(state, tx.peer):
        raise NotAVoter("only a peer that is registered with capacity may vote")
    source, target = finality.justified, finality.newest
    if (tx.source_height, tx.source) != (source.height, source.id):
        raise WrongLink(f"the justified checkpoint is block {source.height}, {source.id.hex()}")
    if target.height == source.height or (tx.target_height, tx.target) != (target.height, target.id):
        raise WrongLink(f"the newest checkpoint is block {target.height}, {target.id.hex()}")
    if tx.target_height <= stake.target:
        raise VotedAlready(f"the peer voted for block {stake.target} already")
    state.changes[_STAKE + tx.peer] = codec.encode(msgspec.structs.replace(stake, target=tx.target_height))
    if stacked:
        return
    finality = msgspec.structs.replace(
        finality, front_votes=finality.front_votes + front, rear_votes=finality.rear_votes + rear
    )
    if _is_enough(document, finality):
        finality = _justify(document, finality)
    state.changes[FINALITY_KEY] = codec.encode(finality)


def apply_evidence(document: NetworkDocument, state: State, tx: Evidence, height: int, *, stacked: bool) -> None:
    """Burn the stake of a peer that signed two votes of which each forbids the other. Raises an InvalidTransaction leaf."""
    _check_voting(document)
    first, second = votes_of(tx)
    if not is_conflict(first, second):
        raise NoConflict("the two votes are such as one voter may sign both")
    stake = stake_of(state, first.peer)
    if stake is None or stake.amount == 0:
        raise NotBonded("the peer has no stake that could burn")
    if tx.fee > stake.amount // EVIDENCE_SHARE:
        raise AmountOutOfRange(f"the fee of evidence is at most {stake.amount // EVIDENCE_SHARE} of this stake")
    burned = msgspec.structs.replace(stake, amount=0, is_burned=True)
    _set_weight(state, first.peer, burned, finality_of(document, state), height, 0, stacked=stacked)


def is_conflict(first: Vote, second: Vote) -> bool:
    """Tell whether nobody may sign both: two votes of one peer for one height, or one whose link spans the other's."""
    if first.peer != second.peer or _link(first) == _link(second):
        return False
    if first.target_height == second.target_height:
        return True
    inner, outer = sorted((first, second), key=lambda vote: vote.target_height)
    return outer.source_height < inner.source_height


# ---- inner ---------------------------------------------------------------------------------------------------------
def _link(vote: Vote) -> tuple[int, bytes, int, bytes]:
    return vote.source_height, vote.source, vote.target_height, vote.target


def _check_voting(document: NetworkDocument) -> None:
    if not document.checkpoint_interval:
        raise NoVoting("this network's document has no checkpoints")


def _has_capacity(state: State, peer: bytes) -> bool:
    """Tell whether a peer offers storage. Until contracts prove possession on the chain, that it says so is the proof."""
    registration = state.registration(peer)
    return registration is not None and registration.capacity > 0


def _needed(weights: tuple[tuple[int, int], ...], finality: Finality) -> tuple[tuple[int, int], ...]:
    """Return the weights without those that no voter set is of any more, and without one since the newest checkpoint."""
    first = max((n for n, (since, _) in enumerate(weights) if since <= finality.rear.height), default=0)
    return tuple(one for one in weights[first:] if one[0] <= finality.newest.height)


def _set_weight(
    state: State, peer: bytes, stake: Stake, finality: Finality, height: int, weight: int, *, stacked: bool
) -> None:
    before = stake.weight if stake.weights else 0
    changed = msgspec.structs.replace(stake, weights=(*_needed(stake.weights, finality), (height, weight)))
    state.changes[_STAKE + peer] = codec.encode(changed)
    if not stacked:
        bonded = finality.bonded - before + weight
        state.changes[FINALITY_KEY] = codec.encode(msgspec.structs.replace(finality, bonded=bonded))


def _pay_back(state: State, key: bytes) -> None:
    """Pay a stake back. What would pass the largest balance is lost: a block never fails for what others did before."""
    peer = key[len(_UNBONDING) + 8 :]
    stake = stake_of(state, peer)
    state.changes[key] = None
    if stake is None or stake.is_burned:
        return
    account = state.account(peer)
    balance = min(account.balance + stake.amount, AMOUNT_MAX)
    state.set_account(peer, msgspec.structs.replace(account, balance=balance))
    state.changes[_STAKE + peer] = None


def _is_enough(document: NetworkDocument, finality: Finality) -> bool:
    front, rear = finality.front.stake, finality.rear.stake
    if front < document.least_stake:
        return False
    return 3 * finality.front_votes >= 2 * front and 3 * finality.rear_votes >= 2 * rear


def _justify(document: NetworkDocument, finality: Finality) -> Finality:
    """Return the row once the newest checkpoint has its votes."""
    source, target = finality.justified, finality.newest
    changed = msgspec.structs.replace(finality, justified=target, front_votes=0, rear_votes=0)
    if target.height != source.height + document.checkpoint_interval:
        return changed
    changed = msgspec.structs.replace(changed, final=source)
    if source.height <= finality.front.height:
        return changed
    return msgspec.structs.replace(changed, front=Voters(source.height, source.stake), rear=finality.front)


def _note_checkpoint(document: NetworkDocument, state: State, identity: bytes, height: int) -> None:
    finality = finality_of(document, state)
    is_small = finality.front.stake < document.least_stake
    is_stalled = height - max(finality.final.height, finality.restarted) >= restart_after(document)
    if is_stalled and not is_small:
        finality = _suspend_absent(document, state, finality, height)
    changed = msgspec.structs.replace(
        finality, newest=Checkpoint(height, identity, finality.bonded), front_votes=0, rear_votes=0
    )
    if (is_stalled and not is_small) or (is_small and finality.bonded >= document.least_stake):
        voters = Voters(height, finality.bonded)
        changed = msgspec.structs.replace(changed, front=voters, rear=voters, restarted=height)
    state.changes[FINALITY_KEY] = codec.encode(changed)


def _suspend_absent(document: NetworkDocument, state: State, finality: Finality, height: int) -> Finality:
    """Take the weight of those who could vote and did not for as long as nothing became final. A bond brings it back."""
    bonded = finality.bonded
    for peer, stake in stakes(state):
        if not stake.weight or stake.target > height - restart_after(document):
            continue
        if stake.weight_at(finality.front.height) or stake.weight_at(finality.rear.height):
            bonded -= stake.weight
            weights = (*(one for one in stake.weights if one[0] < height), (height, 0))
            state.changes[_STAKE + peer] = codec.encode(msgspec.structs.replace(stake, weights=weights))
    return msgspec.structs.replace(finality, bonded=bonded)
