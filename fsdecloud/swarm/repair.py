"""When a blob is repaired, where its shards then go, and how possession is sampled.

Pure: the caller passes times and durations in seconds by a monotonic clock, and randomness. Everything that decides how
much a volume spends on staying whole stands in `Policy`. Not here: asking peers and moving bytes (`agent.auditor`,
`agent.repair`).

A shard is HELD as far as is known, AWAY while its peer does not answer (it may come back with everything it had), or LOST:
its peer said that it has it not, sent other bytes, failed audits, or was away for too long. What is LOST is always made
again. What is LEAVING is still there, with a peer that says it will not stay: it is copied elsewhere. What is AWAY is made
again only when few are left (lazy repair: most peers that go come back, and each repair costs k shards of traffic), and
sooner the fewer there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Generic, TypeVar

from fsdecloud.limits import KIB, MIB
from fsdecloud.swarm.policy import anchorable
from fsdecloud.types import PeerId

K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class Policy:
    """What staying whole may cost, and how long to wait before it does."""

    urgent_grace: float = 20.0
    """Seconds away after which a shard is replaced when losing a few more would lose the blob."""
    grace: float = 900.0
    """The same at the threshold: a peer that restarts, or whose machine does, costs nothing."""
    gone_after: float = 4 * 3600.0
    """A peer that was away for this long is not waited for any more, however many others there are."""
    rate: float = 16 * MIB
    """Bytes a second, fetched and stored together, while nobody else uses the network."""
    rate_busy: float = 2 * MIB
    """The same while the user reads or writes: foreground first, but repair never starves."""
    burst: float = 8 * MIB
    blobs_at_once: int = 4
    """Blobs being repaired: each has up to 1 + n/k MiB in memory."""
    detect_share: float = 0.05
    detect_probability: float = 0.99
    audit_period: float = 24 * 3600.0
    """A peer that lost this share of its shards is found out with this probability within this many seconds."""
    retries_absent: tuple[float, ...] = (1.0, 4.0)
    """Seconds between the tries before "I do not have it", or wrong bytes, counts: a store may just be starting."""
    retries_silent: tuple[float, ...] = (10.0, 60.0, 240.0)
    """Before silence counts: a peer, a line or this machine may be busy."""


def repair_threshold(k: int, n: int) -> int:
    """Return how many held shards are so few that those away are replaced: as many as an anchor needs at least."""
    return anchorable(k, n)


def urgent_threshold(k: int, n: int) -> int:
    """Return how many held shards are so few that there is no time to wait: k, and an eighth of what may be lost."""
    return k + math.ceil((n - k) / 8)


class Shard(IntEnum):
    """How one shard does."""

    HELD = 0
    AWAY = 1
    LOST = 2
    LEAVING = 3


@dataclass(frozen=True, slots=True)
class Health:
    """A blob as far as is known: the state of each shard, and since when those are away that are, in seconds ago."""

    k: int
    states: tuple[Shard, ...]
    away: tuple[float, ...]

    @property
    def n(self) -> int:
        """How many shards there should be."""
        return len(self.states)

    @property
    def held(self) -> int:
        """How many there are, those with peers that leave among them."""
        return self.states.count(Shard.HELD) + self.states.count(Shard.LEAVING)

    @property
    def is_whole(self) -> bool:
        """True while nothing is missing."""
        return self.held == self.n

    @property
    def is_in_place(self) -> bool:
        """True while all there should be is with peers that stay."""
        return self.states.count(Shard.HELD) == self.n

    @property
    def is_readable(self) -> bool:
        """True while there are enough for the bytes."""
        return self.held >= self.k

    @property
    def is_endangered(self) -> bool:
        """True when the next few losses would lose it."""
        return not self.is_whole and self.held <= repair_threshold(self.k, self.n)

    @property
    def urgency(self) -> int:
        """How many more shards it can lose; whatever can lose least goes first."""
        return self.held - self.k


def due_shards(health: Health, policy: Policy) -> tuple[int, ...]:
    """Return the indexes that should be made again now, ascending. Empty when the blob cannot be read: nothing can."""
    if not health.is_readable:
        return ()
    held = health.held
    grace = policy.gone_after
    if held <= urgent_threshold(health.k, health.n):
        grace = policy.urgent_grace
    elif held <= repair_threshold(health.k, health.n):
        grace = policy.grace
    return tuple(
        index
        for index, (state, away) in enumerate(zip(health.states, health.away, strict=True))
        if state in (Shard.LOST, Shard.LEAVING) or (state is Shard.AWAY and away >= min(grace, policy.gone_after))
    )


def is_under_replicated(health: Health, policy: Policy) -> bool:
    """Say whether a person should hear of the blob: it cannot be read, or has shards that have to be made again.

    Not while it only waits for peers that went a moment ago: those are shown as down, and most come back.
    """
    return not health.is_readable or bool(due_shards(health, policy))


def next_due(health: Health, policy: Policy) -> float:
    """Return in how many seconds more shards of the blob will be due if nothing changes; inf when none will."""
    if not health.is_readable:
        return math.inf
    limits = [policy.gone_after]
    if health.held <= urgent_threshold(health.k, health.n):
        limits.append(policy.urgent_grace)
    if health.held <= repair_threshold(health.k, health.n):
        limits.append(policy.grace)
    grace = min(limits)
    waits = [
        grace - away
        for state, away in zip(health.states, health.away, strict=True)
        if state is Shard.AWAY and away < grace
    ]
    return min(waits, default=math.inf)


def in_order(blobs: Iterable[tuple[K, Health]]) -> list[K]:
    """Return the blobs, closest to loss first."""
    return [key for key, _ in sorted(blobs, key=lambda item: item[1].urgency)]


def choose_places(
    due: Sequence[int],
    places: Mapping[int, PeerId],
    ranking: Sequence[PeerId],
    n: int,
    is_usable: Callable[[PeerId], bool],
    avoid: Container[PeerId] = (),
    labels: Mapping[PeerId, tuple[bytes, bytes]] | None = None,
) -> dict[int, PeerId]:
    """Return which peer takes which of the `due` shards; those for which there is no peer are left out.

    `places` says who has each shard now, `ranking` is the blob's hosts of today. A shard goes to its host of today if that
    one has no other shard of the blob, back to the peer that lost it if there is no other, and else to the n-th and later
    hosts: the fewest exceptions. No peer gets two shards of a blob. `labels` are group and operator of peers (b"" for none):
    one that shares one of them with a holder of the blob gets a shard only when there is nobody else (fault 76).
    """
    labels = labels or {}
    taken = {peer for index, peer in places.items() if index not in due}
    shared = {mark for peer in taken for mark in _marks(labels, peer)}
    chosen: dict[int, PeerId] = {}

    def take(index: int, peer: PeerId) -> None:
        chosen[index] = peer
        taken.add(peer)
        shared.update(_marks(labels, peer))

    for is_strict in (True, False):

        def is_free(peer: PeerId, *, is_strict: bool = is_strict) -> bool:
            if peer in taken or peer in avoid or not is_usable(peer):
                return False
            return not (is_strict and any(mark in shared for mark in _marks(labels, peer)))

        for index in due:  # back where it was, so that nothing else has to know
            own = places.get(index)
            if index not in chosen and own is not None and own in ranking and is_free(own):
                take(index, own)
        for index in due:
            if index not in chosen and index < len(ranking) and is_free(ranking[index]):
                take(index, ranking[index])
        left = iter([index for index in due if index not in chosen])
        for peer in (*ranking[n:], *ranking[:n]):
            if is_free(peer):
                index_left = next(left, None)
                if index_left is None:
                    return chosen
                take(index_left, peer)
    return chosen


def _marks(labels: Mapping[PeerId, tuple[bytes, bytes]], peer: PeerId) -> list[tuple[int, bytes]]:
    """Return what two peers must not have in common: group and operator, each only if known."""
    return [(kind, label) for kind, label in enumerate(labels.get(peer, ())) if label]


def health_of(
    k: int, n: int, places: Mapping[int, PeerId], state: Callable[[int, PeerId], tuple[Shard, float]]
) -> Health:
    """Return how a blob does whose shards are at `places`; `state` says how shard i at a peer does, and how long it is away.

    A shard without a place is lost.
    """
    found = [state(index, places[index]) if index in places else (Shard.LOST, 0.0) for index in range(n)]
    return Health(k, tuple(one for one, _ in found), tuple(away for _, away in found))


def plan_repair(
    health: Health,
    places: Mapping[int, PeerId],
    ranking: Sequence[PeerId],
    policy: Policy,
    is_usable: Callable[[PeerId], bool],
    is_unfit: Callable[[int, PeerId], bool],
    avoid: Container[PeerId] = (),
    labels: Mapping[PeerId, tuple[bytes, bytes]] | None = None,
    paid: Container[int] | None = None,
    made: Mapping[int, PeerId] | None = None,
) -> dict[int, PeerId]:
    """Return where the shards go that are due: `choose_places`, and none to a peer that claims to have it and gives it not.

    With `paid`, only those: peers that came back while the bytes were waited for do not make it more. `made` are the ones
    that got a new place just now; the rest is planned beside them, not beside those who had them before.
    """
    made = made or {}
    due = [index for index in due_shards(health, policy) if paid is None or index in paid]
    unfit = {peer for index, peer in places.items() if index in due and is_unfit(index, peer)}
    return choose_places(
        [index for index in due if index not in made],
        {**places, **made},
        ranking,
        health.n,
        lambda peer: peer not in unfit and is_usable(peer),
        avoid,
        labels,
    )


# ---- sampling ------------------------------------------------------------------------------------------------------
def samples_needed(probability: float, share: float) -> int:
    """Return how many random samples find at least one of a `share` of bad shards with `probability`.

    n = ln(1-P) / ln(1-f): each sample misses them with probability 1-f.
    """
    if not (0 < probability < 1 and 0 < share <= 1):
        raise ValueError("a probability lies between 0 and 1")
    return 1 if share == 1 else math.ceil(math.log(1 - probability) / math.log(1 - share))


def audit_interval(policy: Policy, hosts: int) -> float:
    """Return the seconds between two samples, of which each goes to the next of `hosts` peers in turn."""
    per_peer = samples_needed(policy.detect_probability, policy.detect_share)
    return policy.audit_period / (per_peer * max(hosts, 1))


CASES_MAX: Final = 1024
"""Shards in containment at once: whoever fails more is found out with these."""


class Containment(Generic[K]):
    """What went wrong once and is tried again before it counts: one case for each key (a shard at a peer)."""

    def __init__(self) -> None:
        self._cases: dict[K, tuple[int, float]] = {}
        """Tries that failed, and when the next one is due."""

    def __len__(self) -> int:
        return len(self._cases)

    def __contains__(self, key: K) -> bool:
        return key in self._cases

    def missed(self, key: K, now: float, retries: Sequence[float]) -> bool:
        """Record a try that failed; returns True when it was the last one: the case is closed, and counts.

        A try before its time (a read that found the same) changes nothing. With too many cases a new one is not opened.
        """
        tries, due = self._cases.get(key, (0, now))
        if now < due:
            return False
        if tries >= len(retries):
            self._cases.pop(key, None)
            return True
        if key in self._cases or len(self._cases) < CASES_MAX:
            self._cases[key] = (tries + 1, now + retries[tries])
        return False

    def passed(self, key: K) -> None:
        """It was all right after all."""
        self._cases.pop(key, None)

    def due(self, now: float) -> list[K]:
        """Return the cases to be tried again now."""
        return [key for key, (_, at) in self._cases.items() if at <= now]

    def next_at(self) -> float:
        """Return when the next case is due, inf if there is none."""
        return min((at for _, at in self._cases.values()), default=math.inf)


_FORGET: Final = 0.9
"""Weight of all earlier audits against the next one: about the last ten count."""

_DISTRUST_BELOW: Final = 0.6
"""Five failures in a row; one failure in ten does it hardly ever."""

_TRUST_ABOVE: Final = 0.8
"""A peer that was distrusted has to pass fifteen or so in a row."""


class AuditScore:
    """How a peer does in audits: the weighted share that it passed (Josang and Ismail's beta reputation, with forgetting)."""

    __slots__ = ("_good", "_total", "failed", "is_distrusted", "passed")

    def __init__(self) -> None:
        self._good = self._total = 1 / (1 - _FORGET)
        self.passed = 0
        self.failed = 0
        """Audits in all, containment included."""
        self.is_distrusted = False

    @property
    def value(self) -> float:
        """Between 0 and 1."""
        return self._good / self._total

    def add(self, *, passed: bool) -> bool:
        """Record an audit; returns whether the peer is distrusted now."""
        self._good = self._good * _FORGET + passed
        self._total = self._total * _FORGET + 1
        self.passed += passed
        self.failed += not passed
        self.is_distrusted = self.value < (_TRUST_ABOVE if self.is_distrusted else _DISTRUST_BELOW)
        return self.is_distrusted


READ_SIZE_MIN: Final = KIB
"""A request counts at least this much against the budget: its messages."""


def repair_cost(k: int, size: int, made: int) -> int:
    """Return the bytes that making `made` shards of `size` bytes again moves: k come, they go."""
    return max(size, READ_SIZE_MIN) * (k + made)
