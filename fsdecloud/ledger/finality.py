"""Which chain is followed where stake votes, and which votes a voter may sign.

Pure. The chain with the higher justified checkpoint comes first, then most work, then the smaller id of the tip. A chain that
does not hold our final checkpoint is never followed, however much work it has, and neither is one that leaves more blocks than
the finality depth, unless two thirds of the stake vouch for a checkpoint on it. What a chain justified with voters that it took
anew after it parted from ours does not count: whoever mines alone for long enough can be his own voters. In a network without
checkpoints only work, id and the depth count.

A voter votes for the newest checkpoint of the chain it follows, at most once for a height, and never from a source below the
one of a vote before. So no two of its votes conflict, whatever chains it followed in between. Not here: what votes do to the
state (`staking`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from fsdecloud.ledger.chain import Point, Switch, is_better, open_next, plan_switch, rank_of
from fsdecloud.ledger.network import NetworkDocument
from fsdecloud.ledger.reasons import ConflictsWithFinal, ReorgTooDeep
from fsdecloud.ledger.staking import Checkpoint, Finality, finality_of, stake_of
from fsdecloud.ledger.state import State, StateNodes
from fsdecloud.types import BlockId

NO_CLAIM: Final = bytes(8 + 64)
"""Below every claim."""


@dataclass(frozen=True, slots=True)
class Voted:
    """The highest source and target that a voter signed: what it may sign next follows from these alone."""

    source_height: int = 0
    target_height: int = 0


def claim_of(justified: int, work: bytes, tip: BlockId) -> bytes:
    """Return what a node says of its chain, 72 bytes to be compared, the greater the better: the height of the justified
    checkpoint (0 where nobody votes), cumulative work, and the id of the tip, of which the smaller is better."""
    return justified.to_bytes(8) + rank_of(work, tip)


def work_of_claim(claim: bytes) -> bytes:
    """Return the cumulative work of a claim."""
    return claim[8:40]


def read_finality(document: NetworkDocument, point: Point, read_node: Callable[[bytes], bytes | None]) -> Finality:
    """Return the checkpoints after a block as its state has them. Raises NodeMissing."""
    return finality_of(document, State(StateNodes(read_node).get, point.state_root))


def choose_tip(
    document: NetworkDocument,
    read_point: Callable[[BlockId], Point | None],
    read_finality_at: Callable[[Point], Finality],
    tip: Point,
    candidate: Point,
    held: int = 0,
) -> Switch | None:
    """Return how to get from `tip` to `candidate` if that one is to be followed, None if not.

    `held` is the height of the highest checkpoint that was ever final on a chain followed here: a chain that holds it may lack
    the votes that made it so. Raises ConflictsWithFinal or ReorgTooDeep if it would come first but only a person may say so,
    UnknownParent when an ancestor is missing. Called for successive candidates, a node never goes back below a checkpoint that
    was final for it.
    """
    depth = document.finality_depth
    if not document.checkpoint_interval:
        return plan_switch(read_point, tip, candidate, depth) if is_better(candidate, tip) else None
    if candidate.parent == tip.id:
        return Switch(tip, (), (candidate,))
    ours, theirs = read_finality_at(tip), read_finality_at(candidate)
    held = max(held, ours.final.height)
    is_first = (theirs.justified.height, candidate.rank) > (ours.justified.height, tip.rank)
    try:
        switch = plan_switch(read_point, tip, candidate, max(depth, tip.height - held))
    except ReorgTooDeep as exc:
        if is_first:
            raise ConflictsWithFinal(_say(candidate, f"final checkpoint {held}")) from exc
        return None
    fork = switch.fork.height
    own = _vouched(read_finality_at, switch.fork, switch.leave[::-1])
    other = _vouched(read_finality_at, switch.fork, switch.enter)
    if (other, candidate.rank) <= (own, tip.rank):
        return None
    if fork < held:
        raise ConflictsWithFinal(_say(candidate, f"final checkpoint {held}"))
    if len(switch.leave) > depth and other <= fork:
        raise ReorgTooDeep(_say(candidate, f"more than {depth} blocks"))
    return switch


def plan_vote(finality: Finality, voted: Voted) -> tuple[Checkpoint, Checkpoint] | None:
    """Return the (source, target) to sign on a chain with these checkpoints after all that was `voted`; None: nothing now.

    What is returned is written down durably before it is signed.
    """
    source, target = finality.justified, finality.newest
    if target.height <= max(source.height, voted.target_height) or source.height < voted.source_height:
        return None
    return source, target


def has_weight(document: NetworkDocument, state: State, peer: bytes) -> bool:
    """Tell whether a vote of this peer would count in a state that `open_next` returned."""
    finality, stake = finality_of(document, state), stake_of(state, peer)
    if stake is None or stake.is_burned:
        return False
    return stake.weight_at(finality.front.height) > 0 or stake.weight_at(finality.rear.height) > 0


def next_finality(document: NetworkDocument, tip: Point, read_node: Callable[[bytes], bytes | None]) -> Finality:
    """Return the checkpoints as the block after `tip` finds them: `tip` is the newest if it is one."""
    return finality_of(document, open_next(document, tip, read_node))


# ---- inner ---------------------------------------------------------------------------------------------------------
def _vouched(read_finality_at: Callable[[Point], Finality], fork: Point, branch: Sequence[Point]) -> int:
    """Return the height of the highest checkpoint on a branch, oldest block first, that those justified who were its voters
    when it parted: what voters did who were taken anew after that does not count."""
    points = (fork, *branch)
    last = bisect_left(points, x=True, key=lambda point: read_finality_at(point).restarted > fork.height) - 1
    return read_finality_at(points[last]).justified.height


def _say(candidate: Point, what: str) -> str:
    return f"block {candidate.height} ({candidate.id.hex()}) comes first by votes and work, but would replace {what}"
