"""Why the ledger rejects a transaction or a block: one leaf for each reason.

    InvalidTransaction
    +-- MalformedTransaction   not the encoding of a transaction of a known kind and version
    +-- BadSignature           a signature that is not its key's
    +-- BadStamp               neither the fee nor the work stamp that its kind needs
    +-- WrongNonce             not the account's next nonce
    +-- OldSequence            a registration or declaration that is not newer than the one in the ledger
    +-- NotEnoughMoney         the payer's balance is below amount and fee
    +-- AmountOutOfRange       an amount or a sum outside its bounds
    +-- WrongPredecessor       an anchor that does not follow its volume's latest
    +-- NotRegistered          a declaration who runs a peer that is not registered
    +-- LeaseHeld              another device holds the volume's write lease
    +-- OneAnchorPerBlock      a second anchor of a volume in one block
    +-- MisplacedCoinbase      a coinbase anywhere but first in a block
    +-- NoVoting               stake or votes in a network without checkpoints
    +-- StakeLocked            a stake that is on its way back, was burned, or changed too often
    +-- NotBonded              no stake to take back or to burn
    +-- NotAVoter              a vote without weight, or without capacity
    +-- WrongLink              a vote that does not link the justified checkpoint to the newest
    +-- VotedAlready           a second vote for a checkpoint
    +-- NoConflict             evidence of two votes that go together
    +-- NoContracts            a contract in a network whose document is older than version 4
    +-- UnknownDocument        a contract whose document is not a standard one, and is not carried
    +-- BadContract            a document or arguments that make no contract
    +-- EndsTaken              as many contracts as may end at one height end where this one does, and after it
    +-- UnknownContract        an input to a contract that never was, or has ended
    +-- RefusedByContract      an input that its contract does not wait for
    +-- TooMuchWork            the contracts in the block have cost what they may
    +-- Conflict               something in the mempool takes its place and may not be replaced
    +-- PoolFull               the mempool has no room for it
    InvalidBlock
    +-- MalformedBlock UnknownParent WrongHeight WrongTarget NotEnoughWork TimeTooOld TimeTooNew
    +-- BodyMismatch           not the body its header commits to: says nothing about the header
    +-- BlockTooBig WrongIdsRoot NoCoinbase WrongReward DuplicateTransaction WrongStateRoot TooManyVotes
    +-- BadTransaction         carries the transaction's index and its reason, a leaf above
    +-- KnownInvalid           found invalid before, or a descendant of such a block
    +-- ReorgTooDeep           would replace blocks that are final here
    +-- ConflictsWithFinal     would replace a checkpoint that two thirds of the stake made final
    +-- StoredBlockDiffers     the chain store's copy is not the block that its index names
    +-- ChainDamaged           a stored chain does not verify; carries the height and the leaf above

Pure. Not here: the rules themselves (`transactions`, `state`, `chain`).
"""

from __future__ import annotations

from typing import Final

from fsdecloud.errors import InvalidBlock, InvalidTransaction


class MalformedTransaction(InvalidTransaction):
    """Not the canonical encoding of a transaction of a known kind and version."""


class BadSignature(InvalidTransaction):
    """A signature does not verify under its key."""


class BadStamp(InvalidTransaction):
    """It pays less than the least fee and carries no sufficient work stamp."""


class WrongNonce(InvalidTransaction):
    """Not the account's next nonce."""


class OldSequence(InvalidTransaction):
    """Its sequence number is not above that of the peer's registration, or declaration, in the ledger."""


class NotEnoughMoney(InvalidTransaction):
    """The payer's balance does not cover amount and fee."""


class AmountOutOfRange(InvalidTransaction):
    """An amount, a fee or a balance is outside its bounds."""


class WrongPredecessor(InvalidTransaction):
    """The anchor's sequence number or `previous` does not follow the volume's latest anchor."""


class NotRegistered(InvalidTransaction):
    """It says who runs a peer that the ledger does not know."""


class LeaseHeld(InvalidTransaction):
    """Another device's lease on the volume has not ended, and this is no take-over."""


class OneAnchorPerBlock(InvalidTransaction):
    """The block holds an anchor of this volume already."""


class MisplacedCoinbase(InvalidTransaction):
    """A coinbase that is not the first transaction of a block."""


class NoVoting(InvalidTransaction):
    """The network's document has no checkpoints: there is no stake and nothing to vote about."""


class StakeLocked(InvalidTransaction):
    """The peer's stake is on its way back, was burned, or changed too often since the last final checkpoint."""


class NotBonded(InvalidTransaction):
    """The peer has no stake to take back or to burn."""


class NotAVoter(InvalidTransaction):
    """The peer has no weight among the voters, or offers no storage."""


class WrongLink(InvalidTransaction):
    """The vote's source is not the justified checkpoint, or its target not the newest one."""


class VotedAlready(InvalidTransaction):
    """The peer voted for this checkpoint, or a later one, already."""


class NoConflict(InvalidTransaction):
    """The two votes are such as one voter may sign both."""


class NoContracts(InvalidTransaction):
    """The network's document is of a version that has no contracts."""


class UnknownDocument(InvalidTransaction):
    """It names a contract document that is not a standard one, and does not carry it."""


class BadContract(InvalidTransaction):
    """The document breaks the rules of the language, or the arguments are not those that it asks for."""


class EndsTaken(InvalidTransaction):
    """Too many contracts end at the height at which this one does, and at those after it."""


class UnknownContract(InvalidTransaction):
    """There is no contract with this id, or no longer."""


class RefusedByContract(InvalidTransaction):
    """The contract does not take the input: the message says why."""


class TooMuchWork(InvalidTransaction):
    """What contracts may cost in one block is spent."""


class Conflict(InvalidTransaction):
    """The mempool holds another transaction in its place, and this one does not outrank it."""


class PoolFull(InvalidTransaction):
    """The mempool holds as much as it may, for everybody or for this sender."""


class MalformedBlock(InvalidBlock):
    """Not the canonical encoding of a block of a known version."""


class UnknownParent(InvalidBlock):
    """Its parent is not known here."""


class WrongHeight(InvalidBlock):
    """Not its parent's height plus one."""


class WrongTarget(InvalidBlock):
    """Not the difficulty that follows from its ancestors."""


class NotEnoughWork(InvalidBlock):
    """Its id is above the target."""


class TimeTooOld(InvalidBlock):
    """Its time is not after the median of the eleven blocks before it."""


class TimeTooNew(InvalidBlock):
    """Its time is too far ahead of this machine's clock."""


class BodyMismatch(InvalidBlock):
    """The transactions are not those that the header commits to. The header may still be an honest block's."""


class BlockTooBig(InvalidBlock):
    """More bytes than the network allows."""


class WrongIdsRoot(InvalidBlock):
    """The root over its transactions' ids is not the one in its header."""


class NoCoinbase(InvalidBlock):
    """The first transaction is not a coinbase for this height."""


class WrongReward(InvalidBlock):
    """The coinbase does not pay exactly subsidy and fees."""


class DuplicateTransaction(InvalidBlock):
    """The same transaction twice."""


class BadTransaction(InvalidBlock):
    """One of its transactions is invalid at its place: `index` says which, `reason` why."""

    def __init__(self, index: int, reason: InvalidTransaction) -> None:
        super().__init__(f"transaction {index}: {type(reason).__name__}: {reason}")
        self.index = index
        self.reason = reason


class TooManyVotes(InvalidBlock):
    """More votes than a block may hold."""


class WrongStateRoot(InvalidBlock):
    """Applying its transactions gives another state than the header says."""


class KnownInvalid(InvalidBlock):
    """It, or an ancestor, was found invalid before."""


class ReorgTooDeep(InvalidBlock):
    """It would replace blocks that are final here; only a person may accept that."""


class ConflictsWithFinal(InvalidBlock):
    """It would replace a checkpoint that two thirds of the stake made final; only a person may accept that."""


class StoredBlockDiffers(InvalidBlock):
    """What the chain store holds is not the block that its index names."""


class ChainDamaged(InvalidBlock):
    """A stored chain does not verify: `height` is the first block that differs, `reason` what is wrong with it."""

    def __init__(self, height: int, reason: InvalidBlock) -> None:
        super().__init__(f"block {height}: {type(reason).__name__}: {reason}")
        self.height = height
        self.reason = reason


COMMITTED: Final = (
    BlockTooBig,
    WrongIdsRoot,
    NoCoinbase,
    WrongReward,
    DuplicateTransaction,
    TooManyVotes,
    BadTransaction,
    WrongStateRoot,
)
"""Reasons that are found only behind a header with its full work, in the body that it commits to: they hold for the block's
id for ever, and are worth remembering. All others either say nothing about the id (`BodyMismatch`, `TimeTooNew`,
`UnknownParent`), or cost whoever sends them nothing and are found again as fast as a look-up: a memory of those fills up at a
liar's will."""

EARLY: Final = (WrongNonce, WrongPredecessor, NotRegistered, NotEnoughMoney, UnknownContract, RefusedByContract)
"""Reasons that may hold only until other transactions are in a block, or wait for one: a daemon one block behind finds them in
what is valid everywhere else."""
