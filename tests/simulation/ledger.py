"""A hundred ledger nodes under a virtual clock: who mines, votes and attacks is made up, every decision is the product's own.

Blocks are built, mined and checked by `fsdecloud.ledger`; a node follows what `finality.choose_tip` says and signs what
`finality.plan_vote` allows. What is the same for all nodes (whether a block is valid, its state) is worked out once. Each seed
gives the same run in any process.

    python -m tests.simulation.ledger            print the table of fsdecloud-ledger(7)
"""

from __future__ import annotations

import heapq
import random
import statistics
import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import cache, partial

import msgspec

from fsdecloud.crypto import sign
from fsdecloud.errors import InvalidTransaction
from fsdecloud.ledger import finality, staking, work
from fsdecloud.ledger.blocks import Block, header_prefix
from fsdecloud.ledger.chain import Point, build_block, check_block, genesis_point, open_next
from fsdecloud.ledger.finality import Voted
from fsdecloud.ledger.network import NetworkDocument, network_id, public_network, target_of
from fsdecloud.ledger.reasons import ConflictsWithFinal, ReorgTooDeep
from fsdecloud.ledger.staking import Finality
from fsdecloud.ledger.state import apply_transaction
from fsdecloud.ledger.transactions import (
    Transaction,
    decode_tx,
    encode_evidence,
    sign_bond,
    sign_register,
    sign_vote,
)

NODES = 100
VOTERS = 9
SEEDS = [bytes([n + 1]) * 32 for n in range(VOTERS)]
KEYS = [sign.public_key(seed) for seed in SEEDS]
BEGIN = 1_700_000_000
INTERVAL = 60
EVIL = sign.public_key(bytes([99]) * 32)
HONEST = sign.public_key(bytes([98]) * 32)
START_WORK = 64
RATE = START_WORK / INTERVAL
"""Hashes a second of all honest nodes: the difficulty of the first block is right for it."""


class Broken(AssertionError):
    """A promise that the simulation saw broken: the seed is in it."""


@cache
def network() -> NetworkDocument:
    """The parameters of a public network in small: a checkpoint each 4 blocks, voters taken anew after 24."""
    return msgspec.structs.replace(
        public_network("simulation", bytes(32), BEGIN),
        version=3,  # without contracts, which nothing here is about: the figures in fsdecloud-ledger(7) are of these blocks
        storage_share=0,
        storage_levy=0,
        first_target=target_of(START_WORK),
        easiest_target=target_of(4),
        half_life=1800,
        stamp_bits=0,
        finality_depth=12,
        checkpoint_interval=4,
        unbond_delay=96,
        least_bond=100_000,
        least_stake=300_000,
    )


class Chain:
    """All valid blocks, their states, and what follows from them; the same for everybody who has the block."""

    def __init__(self, other: Chain | None = None) -> None:
        self.document = network()
        self.network = network_id(self.document)
        genesis = genesis_point(self.document)
        self.points: dict[bytes, Point] = {genesis.id: genesis} if other is None else dict(other.points)
        self.nodes: dict[bytes, bytes] = {} if other is None else dict(other.nodes)
        self.tip = genesis if other is None else other.tip
        self.transactions: dict[bytes, tuple[Transaction, ...]] = {} if other is None else dict(other.transactions)
        self._finality: dict[bytes, Finality] = {}
        self._next: dict[bytes, Finality] = {}
        self._work: dict[bytes, int] = {}

    def finality(self, point: Point) -> Finality:
        """Return the checkpoints after a block."""
        if point.id not in self._finality:
            self._finality[point.id] = finality.read_finality(self.document, point, self.nodes.get)
        return self._finality[point.id]

    def next_finality(self, point: Point) -> Finality:
        """Return the checkpoints that the block after one finds."""
        if point.id not in self._next:
            self._next[point.id] = finality.next_finality(self.document, point, self.nodes.get)
        return self._next[point.id]

    def work_after(self, point: Point) -> int:
        """Return how many hashes the block after one costs."""
        if point.id not in self._work:
            self._work[point.id] = work.work_of(work.target_after(self.document, point.lead))
        return self._work[point.id]

    def select(self, parent: Point, waiting: list[Transaction], time: int) -> list[Transaction]:
        """Return those of the waiting transactions that can be in the block after `parent`."""
        state, chosen = open_next(self.document, parent, self.nodes.get), []
        for tx in waiting:
            try:
                apply_transaction(self.document, state, tx, time, parent.height + 1)
            except InvalidTransaction:
                continue
            chosen.append(tx)
        return chosen

    def mine(self, parent: Point, waiting: list[Transaction], recipient: bytes, time: int, now: int) -> Point:
        """Build, mine and check the block after `parent`, and return its point."""
        chosen = self.select(parent, waiting, time)
        block = build_block(self.document, parent, chosen, recipient, time, self.nodes.get)
        nonce, _ = work.search(header_prefix(block.header), block.header.target, 0, lambda: False, 64)
        assert nonce is not None
        block = Block(msgspec.structs.replace(block.header, nonce=nonce), block.transactions)
        checked = check_block(self.document, parent, block, self.nodes.get, now)
        self.points[checked.point.id] = checked.point
        self.nodes.update(checked.nodes)
        self.transactions[checked.point.id] = checked.transactions
        return checked.point


@cache
def _prefix() -> Chain:
    """Return a chain in which nine voters of the same stake have begun to make checkpoints final."""
    chain = Chain()

    def add(transactions: list[bytes], recipient: bytes) -> None:
        time = chain.tip.time + INTERVAL
        chain.tip = chain.mine(chain.tip, [decode_tx(data) for data in transactions], recipient, time, time)

    for seed, key in zip(SEEDS, KEYS, strict=True):
        add([sign_register(chain.network, seed, "wss://a", 1 << 40, 1, bits=0)], key)
    add([sign_bond(chain.network, seed, 100_000, 1000, 0) for seed in SEEDS], HONEST)
    while chain.tip.height < 24:
        row = chain.next_finality(chain.tip)
        votes = []
        if chain.tip.height % 4 == 0 and row.front.stake:
            link = row.justified.id, row.justified.height, row.newest.id, row.newest.height
            votes = [sign_vote(chain.network, seed, *link) for seed in SEEDS]
        add(votes, HONEST)
    assert chain.finality(chain.tip).final.height > 0
    return chain


@dataclass
class Node:
    """One node: what it has, and what it follows."""

    number: int
    tip: Point
    final: tuple[int, bytes]
    known: set[bytes]
    orphans: dict[bytes, list[Point]] = field(default_factory=dict)
    voted: Voted = field(default_factory=Voted)
    side: int = 0
    deepest: int = 0
    refused: int = 0


@dataclass(frozen=True)
class Plan:
    """What happens in a run."""

    name: str
    evil: float = 0.0
    """Share of all work that is the attacker's."""
    attack: str = ""
    absent: int = 0
    """Voters that are away."""
    liars: int = 0
    """Voters that vote on every branch they see, and for blocks that nobody has."""
    factor: float = 1.0
    """By how much the honest work changes once the run begins."""
    split: float = 0.0
    """Share of the nodes on the other side of a partition for the first half."""


PLANS = (
    Plan("all is well"),
    Plan("51 % of the work rewrites", evil=0.51, attack="rewrite"),
    Plan("75 % of the work rewrites", evil=0.75, attack="rewrite"),
    Plan("selfish mining with 30 %", evil=0.30, attack="selfish"),
    Plan("selfish mining with 45 %", evil=0.45, attack="selfish"),
    Plan("times as early as may be, 45 %", evil=0.45, attack="early"),
    Plan("times as late as may be, 45 %", evil=0.45, attack="late"),
    Plan("100 times the work", factor=100.0),
    Plan("a hundredth of the work", factor=0.01),
    Plan("one node eclipsed, 51 %", evil=0.51, attack="eclipse"),
    Plan("two of nine voters equivocate", liars=2),
    Plan("four of nine voters away", absent=4),
    Plan("a partition in 7 and 3 of 10", split=0.3),
)


class Simulation:
    """One run from its seed: `run`, then the figures."""

    def __init__(self, seed: int, *, plan: Plan | None = None, blocks: int = 20) -> None:
        self.seed, self.plan = seed, plan or PLANS[seed % len(PLANS)]
        self.rng = random.Random(f"{self.plan.name} {seed}")
        self.chain = Chain(_prefix())
        self.begin = self.chain.tip
        self.now = float(self.begin.time)
        self.until = blocks
        self._events: list[tuple[float, int, partial[None]]] = []
        self._number = 0
        row = self.chain.finality(self.begin)
        known = set(self.chain.points)
        self.nodes = [
            Node(n, self.begin, (row.final.height, row.final.id), set(known), voted=Voted(0, row.justified.height))
            for n in range(NODES)
        ]
        for node in self.nodes[: int(NODES * self.plan.split)]:
            node.side = 1
        self.rng.shuffle(self.nodes)
        self.waiting: dict[int, dict[bytes, Transaction]] = {0: {}, 1: {}}
        self.finals: dict[int, bytes] = {}
        self.evil: list[Point] = []
        """The attacker's own branch, from its first block that nobody else has."""
        self.evil_fork = self.begin
        self.mined: Counter[str] = Counter()
        self.reverted_final = 0
        self.released = 0
        self.healed = self.plan.split == 0.0

    # ---- the clock -------------------------------------------------------------------------------------------------
    def run(self) -> Simulation:
        """Run until the honest chain has grown enough, let everything arrive, and check the promises."""
        power = RATE * self.plan.factor
        total = power / (1.0 - self.plan.evil)
        while self.best().height < self.begin.height + self.until:
            tips = {node.tip.id: node.tip for node in self.nodes}
            candidates = [*tips.values(), *self.evil[-1:]]
            least = min(self.chain.work_after(tip) for tip in candidates)
            found = self.now + self.rng.expovariate(total / least)
            while self._events and self._events[0][0] <= found:
                self.now, _, event = heapq.heappop(self._events)
                event()
            self.now = found
            self._try(least)
            if not self.healed and self.best().height >= self.begin.height + self.until // 2:
                self._heal()
        self._settle()
        self._check()
        return self

    def at(self, delay: float, event: partial[None]) -> None:
        """Do something later."""
        self._number += 1
        heapq.heappush(self._events, (self.now + delay, self._number, event))

    def best(self) -> Point:
        """Return the highest tip of the honest nodes."""
        return max((node.tip for node in self.nodes if node is not self._victim()), key=lambda point: point.height)

    def _victim(self) -> Node | None:
        return self.nodes[-1] if self.plan.attack == "eclipse" else None

    # ---- mining ----------------------------------------------------------------------------------------------------
    def _try(self, least: int) -> None:
        is_evil = self.rng.random() < self.plan.evil
        node = self.rng.choice([n for n in self.nodes if n is not self._victim()])
        parent = self._evil_parent(node) if is_evil else node.tip
        if self.rng.random() * self.chain.work_after(parent) > least:
            return
        waiting = list(self.waiting[0 if self.healed else node.side].values())
        now = int(self.now)
        if not is_evil:
            self._publish(self.chain.mine(parent, waiting, HONEST, now, now), node)
            self.mined["honest"] += 1
            return
        self.mined["evil"] += 1
        if self.plan.attack in ("early", "late"):
            time = parent.median_time + 1 if self.plan.attack == "early" else now + network().future_limit
            self._publish(self.chain.mine(parent, waiting, EVIL, time, now), node)
            return
        self.evil.append(self.chain.mine(parent, [], EVIL, now, now))
        self._after_evil()

    def _evil_parent(self, node: Node) -> Point:
        if self.plan.attack in ("early", "late"):
            return node.tip
        if not self.evil:
            tip = self.best()
            if self.plan.attack == "rewrite":  # what the last checkpoints stand on
                for _ in range(self.rng.randrange(12)):
                    tip = self.chain.points.get(tip.parent, tip) if tip.height > self.begin.height else tip
            self.evil_fork = tip
        return self.evil[-1] if self.evil else self.evil_fork

    def _after_evil(self) -> None:
        lead = self.evil[-1].work
        if self.plan.attack == "eclipse":
            victim = self._victim()
            assert victim is not None
            self._receive(victim, self.evil[-1])
        elif self.plan.attack == "rewrite" and lead > self.best().work and len(self.evil) >= 3:
            self._release()

    def _selfish(self) -> None:
        """Answer an honest block, after Eyal and Sirer (2014)."""
        if not self.evil:
            return
        best, own = self.best(), self.evil[-1]
        ahead = own.height - best.height
        if ahead < 0:
            self.evil = []
        elif ahead <= 1:
            self._release()

    def _release(self) -> None:
        self.released += 1
        for point in self.evil:
            for node in self.nodes:
                self.at(0.01, partial(self._receive, node, point))
        self.evil = []

    # ---- blocks ----------------------------------------------------------------------------------------------------
    def _publish(self, point: Point, origin: Node) -> None:
        self._receive(origin, point)
        for node in self.nodes:
            if node is not origin and node is not self._victim() and (self.healed or node.side == origin.side):
                self.at(self.rng.uniform(0.1, 4.0), partial(self._receive, node, point))
        if self.plan.attack == "selfish":
            self.at(4.1, partial(self._selfish))

    def _receive(self, node: Node, point: Point) -> None:
        if point.id in node.known:
            return
        if point.parent not in node.known:
            node.orphans.setdefault(point.parent, []).append(point)
            return
        node.known.add(point.id)
        self._consider(node, point)
        for orphan in node.orphans.pop(point.id, ()):
            self._receive(node, orphan)

    def _consider(self, node: Node, point: Point) -> None:
        try:
            switch = finality.choose_tip(
                network(), self.chain.points.get, self.chain.finality, node.tip, point, node.final[0]
            )
        except (ConflictsWithFinal, ReorgTooDeep):
            node.refused += 1
            return
        if switch is None:
            return
        node.deepest = max(node.deepest, len(switch.leave))
        self.reverted_final += sum(left.height <= node.final[0] for left in switch.leave)
        node.tip = point
        row = self.chain.finality(point)
        if row.final.height > node.final[0]:
            node.final = row.final.height, row.final.id
            if self.finals.setdefault(row.final.height, row.final.id) != row.final.id:
                raise Broken(f"{self}: two final checkpoints of height {row.final.height}")
        if node.number < VOTERS:
            self._vote(node)

    # ---- votes -----------------------------------------------------------------------------------------------------
    def _vote(self, node: Node) -> None:
        if VOTERS - self.plan.absent <= node.number:
            return
        row = self.chain.next_finality(node.tip)
        is_liar = node.number < self.plan.liars
        plan = finality.plan_vote(row, Voted(0, row.justified.height) if is_liar else node.voted)
        if plan is None:
            return
        source, target = plan
        node.voted = Voted(source.height, target.height)
        seed, side = SEEDS[node.number], 0 if self.healed else node.side
        link = source.id, source.height, target.id, target.height
        data = sign_vote(self.chain.network, seed, *link)
        self.waiting[side][data] = decode_tx(data)
        if is_liar:
            other = sign_vote(self.chain.network, seed, source.id, source.height, bytes(32), target.height)
            evidence = encode_evidence(data, other, 1000)
            self.at(self.rng.uniform(60.0, 400.0), partial(self._wait_for, side, evidence))

    def _wait_for(self, side: int, data: bytes) -> None:
        self.waiting[side][data] = decode_tx(data)

    def _heal(self) -> None:
        self.healed = True
        self.waiting[0] |= self.waiting[1]
        self._share()

    def _share(self) -> None:
        """Bring everybody what anybody has, oldest first."""
        everything = set().union(*(node.known for node in self.nodes))
        for identity in sorted(everything, key=lambda one: (self.chain.points[one].height, one)):
            for node in self.nodes:
                self.at(0.5, partial(self._receive, node, self.chain.points[identity]))

    def _settle(self) -> None:
        """Let all arrive, the eclipsed node's too, and mine until one chain leads."""
        self.healed = True
        self._share()
        while self._events:
            self.now, _, event = heapq.heappop(self._events)
            event()
        for _ in range(2):
            self.now += INTERVAL
            node = self.rng.choice(self.nodes)
            row = max(self.nodes, key=lambda n: (self.chain.finality(n.tip).justified.height, n.tip.work))
            point = self.chain.mine(row.tip, list(self.waiting[0].values()), HONEST, int(self.now), int(self.now))
            for node in self.nodes:
                self._receive(node, point)

    # ---- the promises ----------------------------------------------------------------------------------------------
    def _check(self) -> None:
        if self.reverted_final:
            raise Broken(f"{self}: {self.reverted_final} blocks below a final checkpoint were replaced")
        tips = {node.tip.id for node in self.nodes}
        if len(tips) != 1:
            raise Broken(f"{self}: {len(tips)} tips after all arrived")
        ids = {point.height: point.id for point in self.path()}
        for node in self.nodes:
            if node.final[0] > self.begin.height and ids[node.final[0]] != node.final[1]:
                raise Broken(f"{self}: what was final for a node is not in the chain")

    def path(self) -> list[Point]:
        """Return the best chain's blocks of this run, oldest first."""
        found, point = [], self.nodes[0].tip
        while point.height > self.begin.height:
            found.append(point)
            point = self.chain.points[point.parent]
        return found[::-1]

    @property
    def evil_share(self) -> float:
        """Share of the best chain's blocks that are the attacker's."""
        path = self.path()
        return sum(self.chain.transactions[point.id][0].recipient == EVIL for point in path) / len(path)

    @property
    def final_lag(self) -> int:
        """Blocks from the last final checkpoint to the tip."""
        tip = self.nodes[0].tip
        return tip.height - self.chain.finality(tip).final.height

    @property
    def deepest(self) -> int:
        """Blocks that some node left at once, at most."""
        return max(node.deepest for node in self.nodes)

    @property
    def burned(self) -> int:
        """Stakes that burned."""
        state = open_next(network(), self.nodes[0].tip, self.chain.nodes.get)
        return sum((stake := staking.stake_of(state, key)) is not None and stake.is_burned for key in KEYS)

    @property
    def seconds(self) -> float:
        """Time between two blocks of the best chain."""
        path = self.path()
        return (self.now - self.begin.time) / max(1, len(path))

    def __str__(self) -> str:
        return f"{self.plan.name}, seed {self.seed}"


def table(seeds: int, blocks: int) -> list[str]:
    """Return the lines of the table: each plan over some seeds."""
    lines = []
    for plan in PLANS:
        runs = [Simulation(seed, plan=plan, blocks=blocks).run() for seed in range(seeds)]
        lines.append(
            f"{plan.name:32} {max(run.deepest for run in runs):3} "
            f"{sum(run.reverted_final for run in runs):2} {statistics.mean(run.final_lag for run in runs):5.1f} "
            f"{statistics.mean(run.evil_share for run in runs):5.2f} {statistics.mean(run.seconds for run in runs):7.0f} "
            f"{statistics.mean(run.burned for run in runs):4.1f}"
        )
    return lines


if __name__ == "__main__":
    print(
        "\n".join(table(int(sys.argv[1]) if len(sys.argv) > 1 else 20, int(sys.argv[2]) if len(sys.argv) > 2 else 60))
    )
