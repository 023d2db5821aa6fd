"""What a full daemon tells local programs about checkpoints, votes and stakes (`wire.ledgerapi`).

Read in the state that the next block is applied to, so that a checkpoint at the tip is the newest at once. Not here: what
votes do (`ledger.staking`), and who votes (`peerd.voting`).
"""

from __future__ import annotations

from fsdecloud.ledger.finality import has_weight
from fsdecloud.ledger.staking import Checkpoint, Stake, finality_of, stake_of, stakes
from fsdecloud.ledger.state import State
from fsdecloud.ledgerd.keeper import Keeper
from fsdecloud.wire import ledgerapi


def answer_finality(keeper: Keeper, query: ledgerapi.FinalityQuery) -> ledgerapi.FinalityInfo:
    """Return the checkpoints as the next block finds them, the named peer's stake, and the voters if they are asked for."""
    state = keeper.next_state()
    found = finality_of(keeper.document, state)
    voters: list[tuple[bytes, Stake]] = []
    if query.with_voters:
        voters = [(peer, stake) for peer, stake in stakes(state) if stake.amount]
        voters.sort(key=lambda item: (-item[1].weight, item[0]))
    own = stake_of(state, query.peer) if query.peer else None
    return ledgerapi.FinalityInfo(
        height=keeper.tip.height,
        interval=keeper.document.checkpoint_interval,
        final=_checkpoint(found.final),
        justified=_checkpoint(found.justified),
        newest=_checkpoint(found.newest),
        front=found.front.stake,
        rear=found.rear.stake,
        front_votes=found.front_votes,
        rear_votes=found.rear_votes,
        bonded=found.bonded,
        least_stake=keeper.document.least_stake,
        stake=None if own is None else _stake(keeper, state, query.peer, own),
        voters=tuple(_stake(keeper, state, peer, stake) for peer, stake in voters[: ledgerapi.VOTERS_SHOWN]),
        voter_count=len(voters),
    )


def _checkpoint(found: Checkpoint) -> ledgerapi.CheckpointInfo:
    return ledgerapi.CheckpointInfo(found.height, found.id)


def _stake(keeper: Keeper, state: State, peer: bytes, stake: Stake) -> ledgerapi.StakeInfo:
    registration = state.registration(peer)
    has_capacity = registration is not None and registration.capacity > 0
    return ledgerapi.StakeInfo(
        peer=peer,
        amount=stake.amount,
        weight=stake.weight,
        may_vote=has_capacity and has_weight(keeper.document, state, peer),
        target=stake.target,
        release=stake.release,
        is_burned=stake.is_burned,
    )
