"""What happens in a simulation, all of it drawn from the seed; and what must hold whatever it is.

The adversary is bounded: at most n - k hosts of the volume are struck (die, lose their store, turn bad) within REPAIR_TIME,
and never so many that there are not enough good peers with room left. A seed in ten goes beyond that (`is_beyond`): then
blobs may be lost, but only those of which more than n - k holders failed in that time.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Final

from fsdecloud.agent.erasure import shard_size
from fsdecloud.swarm import hostmap, placement
from fsdecloud.swarm.policy import Redundancy, choose_redundancy
from fsdecloud.swarm.repair import Policy, repair_cost
from fsdecloud.types import BlobId, PeerId, ShardId
from tests.simulation.client import Volume
from tests.simulation.world import DAY, GIB, HOUR, Conduct, Network, SimPeer, World, blob_id

REPAIR_TIME: Final = 30 * HOUR
"""In which what failed is found and made again: four hours until nobody waits for a peer that is away, a day until samples
have found one that withholds, and the rest to move the bytes."""

SETTLE: Final = 2.5 * DAY
"""After the last event: hosts are replaced after one day of absence, weighed again after another."""

QUIET: Final = 26 * HOUR
"""At the end, in which nothing may move."""

NAMES: Final = 64
"""Blobs that are placed under each host map, beside those that are stored, to see what moves and who carries how much."""

LOAD_NAMES: Final = 500
"""For the load, in every fourth seed."""

BAD: Final = (Conduct.DISCARD, Conduct.WITHHOLD, Conduct.CORRUPT, Conduct.SILENT, Conduct.MOODY)


class Broken(AssertionError):
    """A promise is not kept; the text has the seed and the end of the trace."""


@dataclass(frozen=True, slots=True)
class Profile:
    """How large and how hostile."""

    peers: int
    groups: int
    wanted: Redundancy | None
    blobs: int
    blob_bytes: int
    days: float
    is_beyond: bool
    churn: float
    """Mean hours between two absences of a peer; inf for none."""
    lifetimes: float
    """Mean days between two strikes; inf for none."""
    correlated: float
    """Chance that a strike, or an absence, takes a whole network group."""
    partitions: int
    bad: int
    full: float
    """Share of the peers that soon have no room."""
    joins: int

    @property
    def is_steady(self) -> bool:
        """Whether whoever is away is gone for good."""
        return self.churn == math.inf and not self.partitions


def profile_of(seed: int, world: World, *, is_long: bool = False) -> Profile:
    """Draw a profile: two thirds of the networks are small, one in twelve has a thousand peers."""
    r = world.random
    size = r.choice((8, 14, 20, 26, 34, 40, 60, 120))
    if seed % 12 == 11:
        size = r.randint(500, 1000)
    codes = [Redundancy(k, n) for k, n in ((1, 3), (2, 6), (4, 12), (10, 30)) if n + 2 <= size]
    wanted = r.choice([None, *codes])
    groups = size if r.random() < 0.5 else max(r.randint(size // 2, size), min(size, 8))
    days = r.uniform(16, 36) if is_long else r.uniform(0.8, 2)
    return Profile(
        peers=size,
        groups=groups,
        wanted=wanted,
        blobs=r.randint(20, 60) if is_long else r.randint(6, 16),
        blob_bytes=r.choice((16 << 20, GIB // 4, 2 * GIB)),
        days=days,
        is_beyond=seed % 10 == 9,
        churn=r.choice((math.inf, 48.0, 12.0)),
        lifetimes=r.choice((math.inf, 1.0, 0.5, 0.25)),
        correlated=r.choice((0.0, 0.3, 1.0)),
        partitions=r.choice((0, 0, 1, 4)),
        bad=r.choice((0, 0, 1, 2, 4)),
        full=r.choice((0.0, 0.0, 0.1)),
        joins=r.choice((0, 2, 6)),
    )


class Simulation:
    """One seed, from an empty network to one at rest."""

    def __init__(
        self, seed: int, *, profile: Profile | None = None, is_long: bool = False, rules: Policy | None = None
    ) -> None:
        self.world = World(seed)
        self.is_long = is_long
        self.profile = profile or profile_of(seed, self.world, is_long=is_long)
        self.world.note(f"seed {seed}: {self.profile}")
        self.network = Network(self.world)
        self.rules = rules or Policy()
        self.failures: defaultdict[BlobId, list[float]] = defaultdict(list)
        self.owner: dict[ShardId, BlobId] = {}
        self.lost: set[BlobId] = set()
        self.excused: set[BlobId] = set()
        """Lost, but more holders failed than is promised."""
        self.struck: deque[float] = deque()
        self.moved = self.least = 0
        self._placed: tuple[int, list[tuple[PeerId, ...]]] = (0, [])
        self.map_changes = self.weighed_hosts = 0
        self.network.on_shard_failed = self._shard_failed
        self._populate()
        self.volume = Volume(self.world, self.network, self.profile.wanted, self.rules)
        self.volume.on_map.append(self._map_changed)
        self.volume.on_begin = self._begun
        self.volume.on_made = self._repaired

    # ---- what happens ----------------------------------------------------------------------------------------------
    def _populate(self) -> None:
        profile, r = self.profile, self.world.random
        for number in range(profile.peers):
            group = number if number < profile.groups else r.randrange(profile.groups)
            self.network.add(group, int(r.uniform(100, 200) * GIB))
        for peer in r.sample(list(self.network.peers.values()), int(profile.full * profile.peers)):
            peer.capacity = int(r.uniform(0.5, 4) * profile.blob_bytes)

    def start(self) -> None:
        """Plan everything that will happen."""
        profile, world = self.profile, self.world
        r = world.random
        end = profile.days * DAY
        for number in range(profile.blobs):
            at = r.uniform(60, 600) if number % 2 else r.uniform(60, end / 2)
            length = int(profile.blob_bytes * r.uniform(0.5, 1))
            world.at(at, self.volume.store, blob_id(world.seed, number), length)
        self._plan_absences(end)
        if profile.lifetimes < math.inf:
            at = r.uniform(0.05, 0.3) * DAY
            while at < end:
                world.at(at, self._strike)
                at += r.expovariate(1 / (profile.lifetimes * DAY))
        for _ in range(profile.bad):
            world.at(r.uniform(0, end / 2), self._turn)
        for _ in range(profile.partitions):
            world.at(r.uniform(HOUR, end), self._partition)
        for _ in range(profile.joins):
            world.at(r.uniform(HOUR, end), self._join)
        for _ in range(4):
            world.at(r.uniform(HOUR, end), self._read)
        world.at(end, self._calm)

    def _plan_absences(self, end: float) -> None:
        profile, r = self.profile, self.world.random
        if profile.churn == math.inf:
            return
        peers = list(self.network.peers.values())
        for peer in r.sample(peers, min(len(peers), 120 if self.is_long else 32)):
            at = r.expovariate(1 / (profile.churn * HOUR))
            while at < end:
                away = min(r.expovariate(1 / (0.5 * HOUR)), 3.5 * HOUR) if r.random() < 0.9 else r.uniform(4, 12) * HOUR
                together = [peer]
                if r.random() < profile.correlated / 4:
                    together = [other for other in peers if other.group == peer.group]
                for one in together:
                    self.world.at(at + r.random() * 5, self._set_up, one, False)
                    self.world.at(at + away + r.random() * 60, self._set_up, one, True)
                at += away + r.expovariate(1 / (profile.churn * HOUR))

    def _set_up(self, peer: SimPeer, is_up: bool) -> None:
        self.network.set_up(peer, is_up=is_up)

    def _members(self) -> list[SimPeer]:
        return [self.network.peers[peer] for peer in self.volume.map.current]

    def _spare_strikes(self) -> int:
        """Return how many hosts may be struck now: so that the promise, and enough room, remain."""
        now, code = self.world.now, self.volume.redundancy()
        while self.struck and self.struck[0] < now - REPAIR_TIME - 1:
            self.struck.popleft()
        needed = max([code.n, *(row.n for row in self.volume.rows.values())]) + 2
        roomy = sum(p.is_good and p.capacity - p.used > 20 * GIB for p in self.network.peers.values())
        tolerated = min([code.n - code.k, *self.volume.acked.values()])
        if self.profile.is_beyond:
            tolerated = code.n
        return max(min(tolerated - len(self.struck), roomy - needed), 0)

    def _strike(self) -> None:
        """Kill some hosts at once, or have them lose their stores."""
        r = self.world.random
        room = self._spare_strikes()
        victims = [peer for peer in self._members() if peer.is_good]
        if not victims or not room:
            return
        count = room if r.random() < 0.3 else r.randint(1, room)
        if r.random() < self.profile.correlated:
            group = r.choice(victims).group
            victims = [peer for peer in victims if peer.group == group]
        for peer in r.sample(victims, min(count, len(victims))):
            self.struck.append(self.world.now)
            if r.random() < 0.3:
                self.network.lose_store(peer)
                self.volume.sample_from_now(peer.id)
            else:
                self.network.kill(peer)

    def _turn(self) -> None:
        r = self.world.random
        good = [peer for peer in self._members() if peer.is_good] or list(self.network.peers.values())
        if self._spare_strikes():
            peer = r.choice(good)
            self.struck.append(self.world.now)
            self.network.turn(peer, r.choice(BAD))
            self.volume.sample_from_now(peer.id)

    def _partition(self) -> None:
        r = self.world.random
        peers = list(self.network.peers.values())
        cut = r.sample(peers, max(1, int(len(peers) * r.choice((0.2, 0.5, 1.0)))))
        self.network.cut(cut, is_cut=True)
        self.world.after(r.choice((20.0, HOUR, 8 * HOUR)), self._heal, cut)

    def _heal(self, peers: Sequence[SimPeer]) -> None:
        self.network.cut(peers, is_cut=False)

    def _join(self) -> None:
        r = self.world.random
        peer = self.network.add(self.profile.groups + len(self.network.peers), int(r.uniform(100, 400) * GIB))
        self.world.note(f"{peer.name} joins with {peer.capacity / GIB:.0f} GiB")
        self.network.on_registry()

    def _read(self) -> None:
        for blob in list(self.volume.rows):
            self.volume.read(blob)

    def _calm(self) -> None:
        self.world.note("calm")
        cut = [peer for peer in self.network.peers.values() if peer.is_cut]
        if cut:
            self._heal(cut)
        for peer in self.network.peers.values():
            self.network.set_up(peer, is_up=True)

    # ---- the truth -------------------------------------------------------------------------------------------------
    def _begun(self, blob: BlobId) -> None:
        self.owner.update((self.volume.shard(blob, index), blob) for index in range(self.volume.pending[blob].n))

    def _shard_failed(self, shard: ShardId) -> None:
        blob = self.owner.get(shard)
        if blob is not None:
            self.failures[blob].append(self.world.now)

    def whole(self, blob: BlobId) -> int:
        """Return how many distinct shards of a blob can be had from somewhere sooner or later."""
        volume = self.volume
        return sum(
            self.network.truly_has(peer, volume.shard(blob, index)) for index, peer in volume.places(blob).items()
        )

    def check_bytes(self) -> None:
        """No acknowledged byte is lost while at most n - k holders of a blob fail within REPAIR_TIME."""
        for blob, tolerated in self.volume.acked.items():
            if blob in self.lost or self.whole(blob) >= self._k(blob):
                continue
            self.lost.add(blob)
            times = sorted(self.failures[blob])
            worst = max((sum(at <= other < at + REPAIR_TIME for other in times) for at in times), default=0)
            self.world.note(f"blob {blob.hex()[:8]} is lost; {worst} holders failed within {REPAIR_TIME / HOUR:g} h")
            if worst <= tolerated:
                self.broken(f"blob {blob.hex()[:8]} is lost, though only {worst} of its holders failed")
            self.excused.add(blob)

    def _k(self, blob: BlobId) -> int:
        found = self.volume.pending.get(blob) or self.volume.rows[blob]
        return found.k

    # ---- movement and load -----------------------------------------------------------------------------------------
    def _map_changed(self, before: hostmap.HostMap, after: hostmap.HostMap) -> None:
        if not before.tables:
            return
        n = self.volume.redundancy().n
        had: Counter[PeerId] = Counter()
        has: Counter[PeerId] = Counter()
        for old, new in zip(self._names_under(before), self._names_under(after), strict=True):
            had.update(old[:n])
            has.update(new[:n])
            if len(old[:n]) == len(new[:n]):
                self.moved += len(placement.plan_moves(dict(enumerate(old[:n])), new, n))
        if sum(had.values()) == sum(has.values()):
            # Whatever the algorithm: what a host has more than before must come to it.
            self.least += sum(max(0, number - had[peer]) for peer, number in has.items())
            self.map_changes += 1

    def _names_under(self, host_map: hostmap.HostMap) -> list[tuple[PeerId, ...]]:
        if self._placed[0] != host_map.epoch:
            names = [blob_id(self.world.seed, 10_000 + number) for number in range(NAMES)]
            ranked = [placement.rank_hosts(self.volume.secret, name, host_map) for name in names]
            self._placed = host_map.epoch, ranked
        return self._placed[1]

    def check_movement(self) -> None:
        """A change of hosts moves at most 1.2 times the shards that it must; so few names are a sample of many."""
        allowed = 1.2 * self.least + 4 * math.sqrt(self.least) + 4
        if self.moved > allowed:
            self.broken(f"{self.moved} shards moved on {self.map_changes} changes, at least {self.least} have to")

    def check_groups(self) -> None:
        """No two of the first n hosts share a group while there are enough groups (fault 76)."""
        volume = self.volume
        group_of = {peer: group for peer, (group, _) in volume.map.labels().items()}
        enough = len(set(group_of.values()))
        for ranking in self._names_under(volume.map):
            n = min(volume.redundancy().n, enough)
            if len({group_of[peer] for peer in ranking[:n]}) < n:
                self.broken("two of the first n hosts of a blob share a group, though there are enough")

    def _repaired(self, blob: BlobId, paid: Set[int], made: Mapping[int, PeerId], failed: Set[PeerId]) -> None:
        """The same for what is made again, as far as there are peers that take it just then; never two shards with one peer."""
        volume = self.volume
        places = {i: p for i, p in volume.places(blob).items() if i not in paid} | made
        if len(set(places.values())) < len(places):
            self.broken(f"a peer has two shards of blob {blob.hex()[:8]}")
        # who gives wrong bytes for one of these shards gets none of them
        unfit = failed | {
            p
            for i, p in volume.places(blob).items()
            if i in paid and volume.evidence.is_unfit(p, volume.shard(blob, i))
        }
        groups = Counter(group for peer in places.values() if (group := volume.labels.get(peer, (b"", b""))[0]))
        for index, peer in made.items():
            if groups[volume.labels[peer][0]] < 2:
                continue
            for other in volume.members:
                group = volume.labels[other][0]
                is_free = other not in places.values() and volume.book.peer(other).is_usable and not groups[group]
                if is_free and other not in unfit:
                    self.broken(
                        f"{volume.name(peer)} got shard {index} of blob {blob.hex()[:8]}, though its group has one "
                        f"already and {volume.name(other)} is free"
                    )

    # ---- repair ----------------------------------------------------------------------------------------------------
    def check_traffic(self) -> None:
        """A repair moves at most k + 1 shards for each that is made; all together keep to the rate (fault 64)."""
        ahead = lowest = 0.0  # bytes moved less those that the rate has allowed; the lowest that it was
        for at, blob, made, moved in self.volume.repairs:
            row = self.volume.rows[blob]
            if moved > made * repair_cost(row.k, shard_size(row.k, row.length), 1):
                self.broken(f"{moved} bytes moved to make {made} shards of blob {blob.hex()[:8]}")
            ahead += moved
            excess = ahead - self.rules.rate * at - lowest - self.rules.burst
            if excess > 1:
                self.broken(f"repair used {excess / 1e6:.0f} MB more than the rate allows")
            lowest = min(lowest, ahead - self.rules.rate * at)
        made = sum(made for _, _, made, _ in self.volume.repairs)
        failed = sum(len(times) for times in self.failures.values())
        if self.profile.is_steady and made > failed:
            self.broken(f"{made} shards were made again, though {failed} failed and none was away")

    def check_load(self) -> None:
        """Each host carries what its weight says, to 15 % (and what so few names leave to chance).

        That cannot hold where a host would need more than every fourth in five blobs, where weights are cut (twice or half the
        median), or where hosts share a group, which together get what one gets.
        """
        host_map, facts = self.volume.weighed
        n = choose_redundancy(self.profile.wanted, len(facts))[0].n
        weights = {peer: fact.weight for peer, fact in facts.items()}
        if not weights:
            return
        median = sorted(weights.values())[len(weights) // 2]
        total, groups = sum(weights.values()), {fact.group for fact in facts.values()}
        is_cut = any(not median / 2 <= weight <= 2 * median for weight in weights.values())
        if is_cut or len(groups) < len(weights) or n * max(weights.values()) > 0.8 * total:
            return
        self.weighed_hosts = len(weights)
        names = [blob_id(self.world.seed, 20_000 + number) for number in range(LOAD_NAMES)]
        found = Counter(p for name in names for p in placement.rank_hosts(self.volume.secret, name, host_map)[:n])
        for peer, weight in weights.items():
            chance = n * weight / total
            allowed = 0.15 * chance * LOAD_NAMES + 4.5 * math.sqrt(chance * (1 - chance) * LOAD_NAMES)
            if abs(found[peer] - chance * LOAD_NAMES) > allowed:
                self.broken(
                    f"{self.volume.name(peer)} carries {found[peer]} of {LOAD_NAMES} blobs, {chance * LOAD_NAMES:.0f} expected"
                )

    # ---- the whole -------------------------------------------------------------------------------------------------
    def run(self) -> Simulation:
        """Run all of it, and check all promises."""
        self.start()
        end = self.profile.days * DAY
        step = HOUR * 3
        at = 0.0
        while at < end:
            at = min(at + step, end)
            self.world.run(at)
            self.check_bytes()
        self.world.run(end + SETTLE)
        self.check_bytes()
        self.check_movement()
        self.check_groups()
        self.check_traffic()
        if self.world.seed % 4 == 0:
            self.check_load()
        self.check_rest()
        return self

    def check_rest(self) -> None:
        """After the last event everything that can be whole is whole, and then nothing moves any more."""
        volume = self.volume
        before = volume.actions, volume.map.epoch, len(volume.repairs)
        self.world.run(self.world.now + QUIET)
        after = volume.actions, volume.map.epoch, len(volume.repairs)
        if before != after:
            self.broken(f"nothing happens any more, and yet: {before} to {after} (stored, epoch, repaired)")
        for blob in volume.rows:
            health = volume.health(blob)
            if not health.is_whole and health.is_readable and blob not in self.lost and not self._is_stuck(blob):
                self.broken(
                    f"blob {blob.hex()[:8]} has {health.held} of {health.n} shards, and there are peers for more"
                )

    def _is_stuck(self, blob: BlobId) -> bool:
        """Whether no usable host is left that has no shard of a blob."""
        volume = self.volume
        holders = set(volume.places(blob).values())
        return not any(p not in holders and volume.book.peer(p).is_usable for p in volume.map.current)

    def broken(self, what: str) -> None:
        """Raise with all that is needed to see it again."""
        mode = " long" if self.is_long else ""
        trace = "\n".join(self.world.trace[-60:])
        raise Broken(
            f"{what}\nseed {self.world.seed}, trace {self.world.digest()}; again: "
            f"python -m tests.simulation {self.world.seed}{mode}\n{trace}"
        )
