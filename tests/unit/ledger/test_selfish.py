"""What withholding blocks pays (selfish mining: Eyal and Sirer, "Majority is not enough", 2014) under this fork choice.

Of two chains with equal work the first seen stays, so who publishes his withheld block against a fresh honest one gets a part
of the others, `reach`, to mine on his: 0 when the honest block is everywhere first, 1 when he surrounds everybody. What he
wins is compared with his part of the hash power. Not solved here, as nowhere: with less than a third of the power, and no
better connection than everybody else, withholding loses money; with 45 % it pays. Results of this simulation:

    power   reach   part of the blocks won
    30 %    0       27 %
    30 %    1/2     33 %
    45 %    0       65 %
"""

from __future__ import annotations

import random

import msgspec
import pytest

from fsdecloud.ledger.chain import Point, is_better

GENESIS = Point(bytes(32), bytes(32), 0, 0, (0,), 0, bytes(32), bytes(32))


class World:
    """One withholding miner against all others."""

    def __init__(self, power: float, reach: float, seed: int) -> None:
        self.random = random.Random(seed)
        self.power, self.reach = power, reach
        self.count = 0
        self.miners: dict[bytes, bool] = {}
        self.points = {GENESIS.id: GENESIS}
        self.public = self.private = GENESIS
        self.shown = GENESIS
        """The newest of his blocks that he has published."""

    def mine(self, parent: Point, *, is_his: bool) -> Point:
        self.count += 1
        identity = self.count.to_bytes(32)
        work = (int.from_bytes(parent.work) + 1).to_bytes(32)
        point = msgspec.structs.replace(parent, id=identity, parent=parent.id, height=parent.height + 1, work=work)
        self.points[identity] = point
        self.miners[identity] = is_his
        return point

    def step(self) -> None:
        """One block is found."""
        if self.random.random() < self.power:
            self.private = self.mine(self.private, is_his=True)
            if self.shown.height == self.public.height and self.shown.id != self.public.id:
                self.publish(self.private)  # two chains of equal work are out, and his is now the longer one
            return
        lead = self.private.height - self.public.height
        is_race = self.shown.height == self.public.height and self.shown.id != self.public.id
        parent = self.shown if is_race and self.random.random() < self.reach else self.public
        found = self.mine(parent, is_his=False)
        assert is_better(found, self.public)
        self.public = found
        if lead <= 0:
            self.private = self.shown = found
        elif lead == 1:
            self.shown = self.private  # equal work: the others keep what they saw first
            assert not is_better(self.shown, self.public)
        elif lead == 2:
            self.publish(self.private)

    def publish(self, point: Point) -> None:
        assert is_better(point, self.public)
        self.public = self.private = self.shown = point

    def part_won(self, steps: int) -> float:
        for _ in range(steps):
            self.step()
        won = total = 0
        point = self.public
        while point.height:
            total += 1
            won += self.miners[point.id]
            point = self.points[point.parent]
        return won / total


@pytest.mark.parametrize(
    ("power", "reach", "low", "high"),
    [(0.3, 0.0, 0.25, 0.29), (0.3, 0.5, 0.31, 0.35), (0.45, 0.0, 0.62, 0.70), (0.2, 0.0, 0.10, 0.16)],
)
def test_fault_105_what_withholding_pays(power, reach, low, high):
    won = [World(power, reach, seed).part_won(20_000) for seed in range(3)]
    assert low < sum(won) / len(won) < high, won
