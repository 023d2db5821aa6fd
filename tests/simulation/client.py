"""One volume in the simulation: the product's pure code, and in place of its event loops a virtual clock.

Decided by the product's own code, all of it: who is a candidate, the host map, the ranking, where a shard is stored, how a
peer stands (`PeerBook` with every request to it), what is contained, lost, distrusted, when a blob is repaired, where to, how
its row is written, how fast.

Made up here: how long things take. A change of a peer is noticed at a random moment within the interval of the real probes,
which in between would find nothing new. Samples go to peers that have something to hide; those of the others pass and change
nothing. Reading takes shards in order of their index: which of them are the fastest is not simulated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from fsdecloud.agent import hosts as shell
from fsdecloud.agent.auditor import PULSE
from fsdecloud.agent.erasure import shard_size
from fsdecloud.agent.peers import PROBE_IDLE, PeerBook
from fsdecloud.agent.repair import GATHER, ROUNDS
from fsdecloud.agent.rows import BlobRow, moved_row, shard_places
from fsdecloud.errors import BlobMissing, PeerUnavailable, ProtocolError, RemoteError
from fsdecloud.swarm import evidence, hostmap, membership, placement, policy, repair
from fsdecloud.swarm.bucket import TokenBucket
from fsdecloud.swarm.groups import HostFacts
from fsdecloud.swarm.repair import Shard
from fsdecloud.types import BlobId, PeerId, ShardId
from tests.simulation.world import HOUR, NETWORK, Network, Silence, Weight, World

WATCH: Final = 900.0
"""Seconds between two looks at who is away: the product looks more often, and counts the same time in smaller steps."""

RECHECK: Final = 1800.0
"""The product looks sixty times as often at what somebody withheld; that only finds sooner what is given after all."""

FAILED: Final = 900.0
"""Until a repair that failed is tried again; the product is back after a quarter of a minute."""

T = TypeVar("T")


def now(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    raise AssertionError("it waits")


@dataclass
class Pending:
    """A blob that is being stored."""

    id: BlobId
    length: int
    k: int
    n: int
    epoch: int
    shards: tuple[ShardId, ...]
    holders: dict[int, PeerId] = field(default_factory=dict)
    avoid: set[PeerId] = field(default_factory=set)


class Volume:
    """A client with one volume."""

    def __init__(
        self, world: World, network: Network, wanted: policy.Redundancy | None, rules: repair.Policy | None = None
    ) -> None:
        self.world = world
        self.network = network
        self.wanted = wanted
        self.policy = rules or repair.Policy()
        self.secret = world.random.randbytes(32)
        self.book = PeerBook(network, network=NETWORK, clock=lambda: world.now, jitter=world.random.random)
        self.book.on_usable.append(self._on_usable)
        self.book.on_away.append(lambda _peer: self.poke())
        self.map = hostmap.HostMap()
        self.evidence = evidence.Evidence(self.policy, (), self._trust)
        self.absence = membership.Absence()
        self.budget = TokenBucket(self.policy.rate, self.policy.burst, 0.0)
        self.rows: dict[BlobId, BlobRow] = {}
        self.pending: dict[BlobId, Pending] = {}
        self.acked: dict[BlobId, int] = {}
        """Blobs whose bytes the driver may let go of, and how many holders may then fail."""
        self.on_map: list[Callable[[hostmap.HostMap, hostmap.HostMap], None]] = []
        self.on_made: Callable[[BlobId, Set[int], Mapping[int, PeerId], Set[PeerId]], None] = lambda *_: None
        """What a repair was to make, where it put what, and who did not take it."""
        self.on_begin: Callable[[BlobId], None] = lambda _blob: None
        self.repairs: list[tuple[float, BlobId, int, int]] = []
        """Time, blob, shards made and bytes moved of each repair."""
        self.lost_shards = 0
        self.actions = 0
        """What a network at rest does not see: shards stored, changes of the host map, repairs."""
        self.unplaced: set[BlobId] = set()
        self.weighed: tuple[hostmap.HostMap, dict[PeerId, HostFacts]] = self.map, {}
        """The last map that was made for the weights of all its hosts, and these."""
        self.members: tuple[PeerId, ...] = ()
        self.labels: dict[PeerId, tuple[bytes, bytes]] = {}
        self._rankings: dict[tuple[BlobId, int], tuple[PeerId, ...]] = {}
        self._places: dict[BlobId, dict[int, PeerId]] = {}
        self._targets_of: dict[PeerId, list[evidence.Target]] = {}
        """What each peer should have; empty when it is to be found out anew."""
        self._changed_at = -shell.REST
        self._is_watching = self._is_recruiting = self._is_poked = self._is_repairing = self._is_retrying = False
        self._is_rechecking = self._is_unparking = False
        self._survey_at = math.inf
        self._sampled: set[PeerId] = set()
        network.on_change = self._on_change
        network.on_registry = self._on_registry
        world.at(0.0, self._on_registry)
        world.after(shell.REWEIGH, self._reweigh)

    # ---- hosts -----------------------------------------------------------------------------------------------------
    def ranking(self, blob: BlobId, epoch: int) -> tuple[PeerId, ...]:
        found = self._rankings.get((blob, epoch))
        if found is None:
            found = self._rankings[blob, epoch] = placement.rank_hosts(self.secret, blob, self.map, epoch)
        return found

    def redundancy(self) -> policy.Redundancy:
        return shell.redundancy_of(self.book, self.map, self.wanted)[0]

    def _on_registry(self) -> None:
        self.book.update(self.network.registry())
        self._recruit_soon()

    def _recruit_soon(self) -> None:
        if not self._is_recruiting:
            self._is_recruiting = True
            wait = shell.rest_left(self.map, self.wanted, self._changed_at, self.world.now)
            self.world.after(wait + shell.JOIN_WINDOW, self._recruit)

    def _recruit(self) -> None:
        self._is_recruiting = False
        present = self.map.current
        room = hostmap.HOSTS_MAX - len(present)
        asked = shell.candidates(self.secret, self.book, self.map, 2 * room)
        joined = [peer for peer in asked if now(self.book.ask(peer)) and peer not in present][:room]
        if joined:
            facts = {peer: shell.host_facts(self.book, self.map, peer) for peer in (*present, *joined)}
            self._change(lambda: membership.with_hosts(self.map, facts, self.wanted), "join")
            self.weighed = self.map, facts

    def _change(self, change: Callable[[], hostmap.HostMap], why: str) -> None:
        try:
            after = change()
        except ValueError as exc:
            self.world.note(f"no room in the map to {why}: {exc}")
            return
        if after is self.map:
            return
        before, self.map = self.map, after
        self.members = after.current
        self.labels = after.labels()
        self._changed_at = self.world.now
        self.actions += 1
        self.world.note(f"epoch {after.epoch} ({why}): {len(after.current)} hosts")
        for call in self.on_map:
            call(before, after)
        self._unpark()
        self.poke()

    def _watch(self) -> None:
        members = self.members
        away = shell.missing_hosts(self.book, members)
        self.absence.watched(members, away, WATCH)
        gone = [peer for peer in self.absence.gone(shell.DEAD_AFTER) if peer in members]
        if gone:
            asked = shell.candidates(self.secret, self.book, self.map, 2 * len(gone))
            reached = [peer for peer in asked if now(self.book.ask(peer))]
            facts = {peer: shell.host_facts(self.book, self.map, peer) for peer in (*self.map.current, *reached)}
            self._change(lambda: membership.without_gone(self.map, gone, reached, facts, self.wanted), "replace")
            self._recruit_soon()
        self._is_watching = bool(away or self.absence.encode())
        if self._is_watching:
            self.world.after(WATCH, self._watch)

    def _watch_soon(self) -> None:
        if not self._is_watching:
            self._is_watching = True
            self.world.after(WATCH, self._watch)

    def _reweigh(self) -> None:
        for peer in self.map.current:
            if self.book.peer(peer).is_readable:
                now(self.book.ask(peer))
        facts = {peer: shell.host_facts(self.book, self.map, peer) for peer in self.map.current}
        self._change(lambda: membership.reweighed(self.map, facts, self.wanted), "reweigh")
        self.world.after(shell.REWEIGH, self._reweigh)

    # ---- how peers stand -------------------------------------------------------------------------------------------
    def _on_change(self, peer: PeerId) -> None:
        """Something happened to a peer: the next probe will tell."""
        within = PROBE_IDLE if self.book.peer(peer).score.is_failing else PULSE
        self.world.after(self.world.random.uniform(0, within), self._probe, peer)

    def _probe(self, peer: PeerId) -> None:
        known = self.book.peer(peer)
        if not known.score.may_try(self.world.now):
            self.world.at(known.score.retry_at, self._probe, peer)
        elif peer in self.members:
            now(self.book.ask(peer))
            self._watch_soon()
        else:
            self._recruit_soon()

    def _on_usable(self, peer: PeerId) -> None:
        self.world.after(0.0, self._sample_returned, peer)
        self._unpark()
        self.poke()

    def _trust(self, peer: PeerId, is_distrusted: bool) -> None:
        self.world.note(f"{self.name(peer)} is {'distrusted' if is_distrusted else 'trusted again'}")
        self.book.distrust(peer, is_distrusted=is_distrusted)
        if is_distrusted:
            self._recheck_soon()
            self._watch_soon()
        self.poke()

    def name(self, peer: PeerId) -> str:
        return self.network.peers[peer].name

    # ---- storing ---------------------------------------------------------------------------------------------------
    def store(self, blob: BlobId, length: int) -> None:
        """Begin to store a blob."""
        if not self.map.epoch:
            self.world.after(60.0, self.store, blob, length)
            return
        code = self.redundancy()
        shards = tuple(ShardId(_flip(blob, index)) for index in range(code.n)) if code.k > 1 else ()
        self.pending[blob] = Pending(blob, length, code.k, code.n, self.map.epoch, shards)
        self.on_begin(blob)
        self._send(self.pending[blob])

    def _send(self, blob: Pending) -> None:
        """Offer each missing shard to the peers that should have it, until one takes it or there is none."""
        size = shard_size(blob.k, blob.length)
        current = self.map.epoch
        for index in range(blob.n):
            while index not in blob.holders:
                taken = {*blob.holders.values(), *blob.avoid}
                peer = placement.choose_host(
                    index,
                    blob.n,
                    self.ranking(blob.id, blob.epoch),
                    () if blob.epoch == current else self.ranking(blob.id, current),
                    lambda peer, taken=taken: peer not in taken and self.book.peer(peer).is_usable,
                )
                if peer is None:
                    break
                if self._put(peer, blob.shards[index] if blob.shards else ShardId(blob.id), size):
                    blob.holders[index] = peer
                else:
                    blob.avoid.add(peer)
        blob.avoid.clear()
        if blob.id not in self.acked and len(blob.holders) >= policy.anchorable(blob.k, blob.n):
            self.acked[blob.id] = len(blob.holders) - blob.k
            self.world.note(f"blob {blob.id.hex()[:8]} {blob.k}/{blob.n} is safe with {len(blob.holders)}")
        if len(blob.holders) == blob.n:
            ranking = self.ranking(blob.id, blob.epoch)
            exceptions = tuple((i, p) for i, p in sorted(blob.holders.items()) if i >= len(ranking) or ranking[i] != p)
            self.acked[blob.id] = blob.n - blob.k
            del self.pending[blob.id]
            self._set_row(blob.id, BlobRow(blob.k, blob.n, blob.epoch, blob.length, blob.shards, exceptions))

    def _put(self, peer: PeerId, shard: ShardId, size: int) -> bool:
        self.actions += 1
        try:
            receipt = now(self.book.put(peer, [(shard, Weight(size))]))  # type: ignore[list-item]
        except (RemoteError, ProtocolError):
            self._watch_soon()
            self._look_again_at(peer)
            return False
        self._sample_if_bad(peer)
        return any(item.id == shard for item in receipt.shards)

    def _look_again_at(self, peer: PeerId) -> None:
        """The book asks peers that refuse now and then whether they still do."""
        if self.book.peer(peer).is_refusing:
            self.world.after(PROBE_IDLE * (1.0 + self.world.random.random()), self._ask_refusing, peer)

    def _ask_refusing(self, peer: PeerId) -> None:
        if self.book.peer(peer).is_refusing and not now(self.book.ask(peer)) and self.book.peer(peer).is_readable:
            self.world.after(HOUR, self._ask_refusing, peer)

    def _unpark(self) -> None:
        if self.pending and not self._is_unparking:
            self._is_unparking = True
            self.world.after(1.0, self._send_parked)

    def _send_parked(self) -> None:
        self._is_unparking = False
        for blob in list(self.pending.values()):
            self._send(blob)

    # ---- places ----------------------------------------------------------------------------------------------------
    def places(self, blob: BlobId) -> dict[int, PeerId]:
        """Return who should have each shard of a blob that is stored."""
        if blob in self.pending:
            return dict(self.pending[blob].holders)
        found = self._places.get(blob)
        if found is None:
            row = self.rows[blob]
            found = self._places[blob] = shard_places(row, self.ranking(blob, row.epoch))
        return found

    def _set_row(self, blob: BlobId, row: BlobRow) -> None:
        self.rows[blob] = row
        self._places.pop(blob, None)
        self._targets_of.clear()

    def shard(self, blob: BlobId, index: int) -> ShardId:
        shards = (self.pending.get(blob) or self.rows[blob]).shards
        return shards[index] if shards else ShardId(blob)

    def health(self, blob: BlobId) -> repair.Health:
        row = self.rows[blob]

        def state(index: int, peer: PeerId) -> tuple[Shard, float]:
            since = self.book.peer(peer).away_since
            return self.evidence.state(peer, row.shard(blob, index), None if since is None else self.world.now - since)

        return repair.health_of(row.k, row.n, self.places(blob), state)

    # ---- audits ----------------------------------------------------------------------------------------------------
    def _sample_if_bad(self, peer: PeerId) -> None:
        """Sample a peer from now on, unless all samples of it would pass and change nothing."""
        truth = self.network.peers[peer]
        if peer not in self._sampled and (truth.claimed or truth.is_dead):
            self.sample_from_now(peer)

    def sample_from_now(self, peer: PeerId) -> None:
        """Sample a peer as often as the policy says."""
        if peer not in self._sampled:
            self._sampled.add(peer)
            self.world.after(
                self.world.random.random() * repair.audit_interval(self.policy, 1), self._sample_in_turn, peer
            )

    def _sample_in_turn(self, peer: PeerId) -> None:
        if self.network.peers[peer].is_dead:
            self._sampled.discard(peer)
            return
        if peer in self.members:
            self._sample(peer)
        self.world.after(repair.audit_interval(self.policy, 1), self._sample_in_turn, peer)

    def _sample_returned(self, peer: PeerId) -> None:
        self._sample(peer)
        self.poke()

    def _sample(self, peer: PeerId) -> bool:
        if not self.book.peer(peer).is_readable:
            return False
        target = self._target(peer)
        return target is not None and self._check(peer, target)

    def _target(self, peer: PeerId) -> evidence.Target | None:
        self._index()
        found = self._targets_of.get(peer, ())
        start = int(self.world.random.random() * len(found))
        for at in range(len(found)):
            target = found[(start + at) % len(found)]
            if not self.evidence.is_lost(peer, target.shard):
                return target
        return self.evidence.on_probation(peer)

    def _index(self) -> None:
        if not self._targets_of:
            for blob, row in self.rows.items():
                size = shard_size(row.k, row.length)
                for index, holder in self.places(blob).items():
                    target = evidence.Target(blob, index, row.shard(blob, index), size)
                    self._targets_of.setdefault(holder, []).append(target)

    def _weak(self) -> dict[BlobId, repair.Health]:
        """Return all blobs that are not whole; only those are looked at that have a shard with a peer in trouble."""
        self._index()
        troubled = {
            target.blob
            for peer, targets in self._targets_of.items()
            if self.book.peer(peer).away_since is not None or self.evidence.has_lost(peer)
            for target in targets
        }
        short = {blob for blob, row in self.rows.items() if len(self.places(blob)) < row.n}
        return {
            blob: health
            for blob in self.rows
            if (blob in troubled or blob in short) and not (health := self.health(blob)).is_whole
        }

    def _check(self, peer: PeerId, target: evidence.Target) -> bool:
        """Read a shard, and draw the conclusions, as the auditor does."""
        answer = self._get(peer, target.shard, target.size)
        if answer is True:
            if self.evidence.passed_by(peer, target):
                self.poke()
            return True
        if answer is False or (answer is evidence.Miss.SILENT and not now(self.book.ask(peer))):
            self.evidence.close(peer, target.shard)
        else:
            self._missed(peer, target, answer)
        return False

    def _get(self, peer: PeerId, shard: ShardId, size: int) -> evidence.Miss | bool:
        """Return whether a peer gave a shard: False when it is away."""
        try:
            now(self.book.get(peer, shard, size))
        except Silence:
            return evidence.Miss.SILENT
        except BlobMissing:
            return evidence.Miss.ABSENT
        except PeerUnavailable:
            self._watch_soon()
            return False
        except (RemoteError, ProtocolError):
            if self.book.peer(peer).score.is_failing:
                self._on_change(peer)
            return evidence.Miss.WRONG
        return True

    def _missed(self, peer: PeerId, target: evidence.Target, miss: evidence.Miss) -> None:
        verdict = self.evidence.missed_by(peer, target, miss, self.world.now)
        if verdict is evidence.Verdict.LOST:
            self.world.note(f"{self.name(peer)} lost shard {target.index} of {target.blob.hex()[:8]} ({miss.name})")
            self.lost_shards += 1
            self._recheck_soon()
            self.sample_from_now(peer)
            self.poke()
        elif verdict is evidence.Verdict.CONTAINED and not self._is_retrying:
            self._is_retrying = True
            self.world.at(self.evidence.next_at(), self._retry)

    def _retry(self) -> None:
        self._is_retrying = False
        for peer, target in self.evidence.due(self.world.now):
            self._check(peer, target)
        if (at := self.evidence.next_at()) < math.inf and not self._is_retrying:
            self._is_retrying = True
            self.world.at(at, self._retry)

    def _recheck_soon(self) -> None:
        if not self._is_rechecking:
            self._is_rechecking = True
            self.world.after(RECHECK, self._recheck)

    def _recheck(self) -> None:
        self._is_rechecking = False
        for peer in self.evidence.unfit():
            for target in self.evidence.unfit_of(peer):
                if not self.book.peer(peer).is_readable or not self._check(peer, target):
                    break
            for _ in range(2 * evidence.PROBATION):
                if not self.evidence.is_distrusted(peer) or not self._sample(peer):
                    break
            self.evidence.settle(peer)
        if self.evidence.unfit():
            self._recheck_soon()

    # ---- repair ----------------------------------------------------------------------------------------------------
    def poke(self) -> None:
        """Something changed: look at everything soon."""
        self._is_poked = True
        self._survey_in(GATHER)

    def _survey_in(self, seconds: float) -> None:
        at = self.world.now + seconds
        if at < self._survey_at:
            self._survey_at = at
            self.world.at(at, self._survey, at)

    def _survey(self, at: float) -> None:
        """Look at all blobs and begin to repair what is due, closest to loss first."""
        if at != self._survey_at:
            return  # an earlier one came instead
        self._survey_at = math.inf
        if self._is_repairing:
            return  # it looks again when it is done with this one
        self._is_poked = False
        self._ask_suspects()
        weak = self._weak()
        todo = [blob for blob in repair.in_order(weak.items()) if repair.due_shards(weak[blob], self.policy)]
        self.unplaced.clear()
        self._work(todo, has_failed=False)

    def _ask_suspects(self) -> None:
        for peer in sorted(self.evidence.suspects):
            mine = [
                self.rows[blob].shard(blob, index)
                for blob in self.rows
                for index, holder in self.places(blob).items()
                if holder == peer
            ]
            try:
                answers = now(self.book.has(peer, mine))
            except (RemoteError, ProtocolError):
                continue
            for shard, present in zip(mine, answers, strict=True):
                if not present:
                    self.lost_shards += not self.evidence.is_lost(peer, shard)
                    self.evidence.note_lost(peer, shard)
            self.evidence.suspects.discard(peer)

    def _work(self, todo: Sequence[BlobId], *, has_failed: bool) -> None:
        """Repair the next blob that there are peers for, or rest until something is due."""
        if self._is_poked:
            self._survey_in(GATHER)
            return
        for at, blob in enumerate(todo):
            health = self.health(blob)
            targets = self._targets(blob, health)
            if not targets:
                if repair.due_shards(health, self.policy):
                    self.unplaced.add(blob)
                continue
            row = self.rows[blob]
            cost = repair.repair_cost(row.k, shard_size(row.k, row.length), len(targets))
            wait = self.budget.take(cost, self.world.now)
            self._is_repairing = True
            self.world.after(max(wait, 0.001), self._repair, blob, health, targets.keys(), todo[at + 1 :])
            return
        due = min((repair.next_due(health, self.policy) for health in self._weak().values()), default=math.inf)
        if has_failed:
            due = min(due, FAILED)
        if due < math.inf:
            self._survey_in(max(due, GATHER))

    def _targets(
        self,
        blob: BlobId,
        health: repair.Health,
        avoid: Set[PeerId] = frozenset(),
        paid: Set[int] | None = None,
        made: Mapping[int, PeerId] | None = None,
    ) -> dict[int, PeerId]:
        row = self.rows[blob]
        return repair.plan_repair(
            health,
            self.places(blob),
            self.ranking(blob, self.map.epoch),
            self.policy,
            lambda peer: self.book.peer(peer).is_usable,
            lambda index, peer: self.evidence.is_unfit(peer, row.shard(blob, index)),
            avoid,
            self.labels,
            paid,
            made,
        )

    def _repair(self, blob: BlobId, health: repair.Health, paid: Set[int], todo: Sequence[BlobId]) -> None:
        """Fetch, code and store one blob, after its bytes were waited for."""
        self._is_repairing = False
        row = self.rows[blob]
        size = shard_size(row.k, row.length)
        has_failed = False
        if self.read(blob):
            made: dict[int, PeerId] = {}
            avoid: set[PeerId] = set()
            for _ in range(ROUNDS):
                targets = self._targets(blob, health, avoid, paid, made)
                if not targets:
                    break
                for index, peer in targets.items():
                    if self._put(peer, row.shard(blob, index), size):
                        made[index] = peer
                    else:
                        avoid.add(peer)
            if made:
                self.on_made(blob, paid, made, avoid)
                self._write(blob, made)
                self.repairs.append((self.world.now, blob, len(made), size * (row.k + len(made))))
                self.world.note(
                    f"repaired {blob.hex()[:8]}: "
                    + " ".join(f"{index}@{self.name(peer)}" for index, peer in made.items())
                    + f" of {health.held} held"
                )
            else:
                has_failed = True
        else:
            has_failed = True
        self._work(todo, has_failed=has_failed)

    def _write(self, blob: BlobId, made: Mapping[int, PeerId]) -> None:
        row, old = self.rows[blob], self.places(blob)
        places = old | made
        epochs = (self.map.epoch, row.epoch)
        self._set_row(blob, moved_row(row, places, {epoch: self.ranking(blob, epoch) for epoch in epochs}))
        kept = {(row.shard(blob, index), peer) for index, peer in places.items()}
        for index in made:
            if index in old and old[index] != made[index] and (row.shard(blob, index), old[index]) not in kept:
                self.network.drop(old[index], row.shard(blob, index))
        for index, peer in made.items():
            self.evidence.note_held(peer, row.shard(blob, index))

    def read(self, blob: BlobId) -> bool:
        """Read a blob as a user or a repair does; what is not where it should be is noted."""
        row = self.rows[blob]
        size, found = shard_size(row.k, row.length), 0
        for index, peer in self.places(blob).items():
            if found == row.k:
                break
            if not self.book.peer(peer).is_readable:
                continue
            answer = self._get(peer, row.shard(blob, index), size)
            if answer is True:
                found += 1
            elif answer is not False and answer is not evidence.Miss.SILENT:
                self._missed(peer, evidence.Target(blob, index, row.shard(blob, index), size), answer)
        return found == row.k


def _flip(blob: BlobId, index: int) -> bytes:
    """Return the id of a shard, different for each index: hashing contents that do not exist would prove nothing."""
    return bytes(((blob[0] + index) & 255, index)) + blob[2:]
