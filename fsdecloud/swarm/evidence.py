"""What is known about the shards that peers should have: which are lost, which are withheld, and whom not to trust.

Pure. Called from one thread; times in seconds by a monotonic clock. Not here: asking (`agent.auditor`), repairing (`repair`).

A miss is contained before it counts: it is tried again a few times (`repair.Containment`). What counts makes the shard LOST
and weighs against its peer (`repair.AuditScore`). A peer that says of one shard that it has it not becomes a suspect, to be
asked for all of them, since it may have lost its store (fault 58). One that answers, and gives not this, withholds (fault 73):
the shard is *unfit* there, because offered again it would say that it has it.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from fsdecloud.swarm.repair import AuditScore, Containment, Policy, Shard
from fsdecloud.types import BlobId, PeerId, ShardId

PROBATION: Final = 16
"""Failed samples that are kept of each peer, to see whether it has come to its senses when nothing else is there."""


@dataclass(frozen=True, slots=True)
class Target:
    """One shard that a peer should have."""

    blob: BlobId
    index: int
    shard: ShardId
    size: int


class Miss(IntEnum):
    """How a peer did not give a shard that it should have."""

    ABSENT = 0
    """It says that it has it not."""
    WRONG = 1
    """It answers with other bytes, or that it cannot."""
    SILENT = 2
    """It answers other questions, and not this one."""


class Verdict(IntEnum):
    """What follows from a miss."""

    NOTHING = 0
    """It was known, or came before its time."""
    CONTAINED = 1
    """It is tried again: `Evidence.due`."""
    LOST = 2


class Evidence:
    """What one volume knows of its peers' shards."""

    def __init__(self, policy: Policy, suspects: Iterable[PeerId], on_trust: Callable[[PeerId, bool], None]) -> None:
        """`on_trust` is told of each peer that becomes distrusted (True), or is trusted again."""
        self._policy = policy
        self._on_trust = on_trust
        self._cases: Containment[tuple[PeerId, ShardId]] = Containment()
        self._targets: dict[tuple[PeerId, ShardId], Target] = {}
        self._scores: defaultdict[PeerId, AuditScore] = defaultdict(AuditScore)
        self._probation: defaultdict[PeerId, deque[Target]] = defaultdict(lambda: deque(maxlen=PROBATION))
        self._lost: defaultdict[PeerId, set[ShardId]] = defaultdict(set)
        self._unfit: defaultdict[PeerId, dict[ShardId, Target]] = defaultdict(dict)
        self.suspects: set[PeerId] = set(suspects)
        """Peers that lost something: they are asked for everything before the next repair."""

    # ---- what is known ---------------------------------------------------------------------------------------------
    def state(self, peer: PeerId, shard: ShardId, away: float | None) -> tuple[Shard, float]:
        """Return how a shard at a peer does, and for how long its peer is away: `away` seconds, None while it answers."""
        score = self._scores.get(peer)
        if (score is not None and score.is_distrusted) or shard in self._lost.get(peer, ()):
            return Shard.LOST, 0.0
        return (Shard.HELD, 0.0) if away is None else (Shard.AWAY, away)

    def is_lost(self, peer: PeerId, shard: ShardId) -> bool:
        """Say whether a peer is known not to have a shard."""
        return shard in self._lost.get(peer, ())

    def has_lost(self, peer: PeerId) -> bool:
        """Say whether some shard of a peer is LOST: one that it does not have, or all of them because it is distrusted."""
        return bool(self._lost.get(peer)) or self.is_distrusted(peer)

    def is_unfit(self, peer: PeerId, shard: ShardId) -> bool:
        """Say whether a peer claims a shard that it cannot or will not give: offered again, it would say that it has it."""
        return shard in self._unfit.get(peer, ())

    def is_distrusted(self, peer: PeerId) -> bool:
        """Say whether a peer fails so many audits that nothing with it counts."""
        score = self._scores.get(peer)
        return score is not None and score.is_distrusted

    def unfit(self) -> list[PeerId]:
        """Return the peers of which something has to be looked at again: they withheld something, or are distrusted."""
        distrusted = [peer for peer, score in self._scores.items() if score.is_distrusted]
        return list(dict.fromkeys((*self._unfit, *distrusted)))

    def unfit_of(self, peer: PeerId) -> list[Target]:
        """Return what a peer did not give, though it says that it has it."""
        return list(self._unfit.get(peer, {}).values())

    def settle(self, peer: PeerId) -> None:
        """Look at a peer no more once it gave everything and is trusted."""
        if not self._unfit.get(peer) and not self.is_distrusted(peer):
            self._unfit.pop(peer, None)

    def on_probation(self, peer: PeerId) -> Target | None:
        """Return one that a distrusted peer failed, for when all others are with other peers by now; in turn."""
        kept = self._probation.get(peer)
        if not kept or not self.is_distrusted(peer):
            return None
        kept.rotate()
        return kept[0]

    @property
    def passed(self) -> int:
        """Samples that were answered with the right bytes."""
        return sum(score.passed for score in self._scores.values())

    @property
    def failed(self) -> int:
        """Samples that failed for good."""
        return sum(score.failed for score in self._scores.values())

    @property
    def contained(self) -> int:
        """Misses that are tried again before they count."""
        return len(self._cases)

    # ---- what is learnt --------------------------------------------------------------------------------------------
    def note_lost(self, peer: PeerId, shard: ShardId) -> None:
        """A peer does not have a shard."""
        self._lost[peer].add(shard)
        self.close(peer, shard)

    def note_held(self, peer: PeerId, shard: ShardId) -> None:
        """A peer has a shard (again)."""
        self._lost[peer].discard(shard)
        if peer in self._unfit:
            self._unfit[peer].pop(shard, None)
        self.close(peer, shard)

    def close(self, peer: PeerId, shard: ShardId) -> None:
        """Drop a case: its peer is away, and it is found again when that one is back."""
        self._cases.passed((peer, shard))
        self._targets.pop((peer, shard), None)

    def passed_by(self, peer: PeerId, target: Target) -> bool:
        """A sample gave the right bytes; returns whether the shard had been lost before."""
        was_lost = self.is_lost(peer, target.shard)
        self.note_held(peer, target.shard)
        self._judge(peer, passed=True)
        return was_lost

    def missed_by(self, peer: PeerId, target: Target, miss: Miss, now: float) -> Verdict:
        """A sample, or a read, did not give the shard: contain it, or count it."""
        key = (peer, target.shard)
        if self.is_lost(peer, target.shard):
            if self.is_distrusted(peer):
                self._judge(peer, passed=False)
            return Verdict.NOTHING
        retries = self._policy.retries_silent if miss is Miss.SILENT else self._policy.retries_absent
        if self._cases.missed(key, now, retries):
            self._failed(peer, target, miss)
            return Verdict.LOST
        if key not in self._cases:
            return Verdict.NOTHING
        self._targets[key] = target
        return Verdict.CONTAINED

    def _failed(self, peer: PeerId, target: Target, miss: Miss) -> None:
        self._probation[peer].append(target)
        self.note_lost(peer, target.shard)
        # Who lost its store and says so fails once, not once for each shard that somebody reads meanwhile.
        if not (miss is Miss.ABSENT and peer in self.suspects):
            self._judge(peer, passed=False)
        if miss is Miss.ABSENT:
            self.suspects.add(peer)
        else:
            self._unfit[peer][target.shard] = target

    def _judge(self, peer: PeerId, *, passed: bool) -> None:
        score = self._scores[peer]
        was = score.is_distrusted
        now = score.add(passed=passed)
        if was != now:
            self._on_trust(peer, now)

    # ---- looking again ---------------------------------------------------------------------------------------------
    def next_at(self) -> float:
        """Return when the next contained miss is to be tried again, inf if there is none."""
        return self._cases.next_at()

    def due(self, now: float) -> list[tuple[PeerId, Target]]:
        """Return the contained misses to be tried again now."""
        found = []
        for peer, shard in self._cases.due(now):
            target = self._targets.get((peer, shard))
            if target is None:
                self.close(peer, shard)
            else:
                found.append((peer, target))
        return found
