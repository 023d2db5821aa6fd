"""How likely a blob is lost: by a formula, and by the simulation where losses are frequent enough to be seen.

    python -m tests.simulation.durability [formula]

prints the tables of fsdecloud-durability(7); with `formula` those only that need no simulation.

The formula is the mean time to absorption of a birth-death chain: state i is a blob that has lost i of its n shards for good;
each of the others is lost at the rate of its peer's lifetime, each of the lost ones is made again after the time that
`swarm.repair.Policy` waits with so few left. For state-independent times the number of lost shards is that of an M/G/infinity
queue, which depends on the mean of the repair time alone and not on its distribution. Source of the method: Ford and others,
"Availability in globally distributed storage systems", OSDI 2010, section 7.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from fsdecloud.agent.auditor import PULSE
from fsdecloud.limits import MIB
from fsdecloud.swarm.hostmap import HOSTS_MAX
from fsdecloud.swarm.policy import Redundancy
from fsdecloud.swarm.repair import Health, Policy, Shard, next_due
from tests.simulation.client import Volume
from tests.simulation.world import DAY, GIB, Network, World, blob_id

YEAR: Final = 365 * DAY
CODES: Final = tuple(Redundancy(k, n) for k, n in ((1, 3), (2, 6), (4, 12), (10, 30)))
LIFETIMES: Final = (30, 100, 300)
"""Mean days until a peer is gone for good."""
VOLUME: Final = 1 << 40
BLOB: Final = MIB
NETWORK_BLOBS: Final = 1e6 * 1e12 / 3 / BLOB
"""Of a million peers with a terabyte each, at three bytes for one."""
OTHER_WAITS: Final = 600.0
"""Seconds for the survey, and for what is as urgent, when few shards are left."""


# ---- formula ---------------------------------------------------------------------------------------------------------
def repair_times(code: Redundancy, rules: Policy, transfer: float) -> list[float]:
    """Return for 1 to n-k lost shards the mean seconds until a lost one is made again; `transfer` is what all the shards of one
    host take. How long is waited is what the product says: `next_due` of a blob in that state."""
    times = []
    for lost in range(1, code.n - code.k + 1):
        states = (Shard.AWAY,) * lost + (Shard.HELD,) * (code.n - lost)
        wait = next_due(Health(code.k, states, (0.0,) * code.n), rules)
        times.append(PULSE / 2 + wait + (transfer if wait >= rules.gone_after else min(transfer, OTHER_WAITS)))
    return times


def mean_time_to_loss(code: Redundancy, lifetime: float, times: list[float]) -> float:
    """Return the mean seconds until fewer than k shards are left, from a whole blob: all terms are positive."""
    step = 1 / (code.n / lifetime)
    total = step
    for lost, repair_time in enumerate(times, 1):
        birth = (code.n - lost) / lifetime
        step = 1 / birth + (lost / repair_time / birth) * step
        total += step
    return total


def lost_by(code: Redundancy, lifetime: float, times: list[float], until: float) -> float:
    """Return the probability that a blob that is whole now is lost by then: the chain in small steps."""
    last = code.n - code.k + 1
    chance = [1.0] + [0.0] * last
    step = min([*times, lifetime / code.n]) / 40
    for _ in range(math.ceil(until / step)):
        after = list(chance)
        for state in range(last):
            up = chance[state] * (code.n - state) / lifetime * step
            down = chance[state] * (state / times[state - 1] if state else 0.0) * step
            after[state] -= up + down
            after[state + 1] += up
            if state:
                after[state - 1] += down
        chance = after
    return chance[last]


def transfer_time(code: Redundancy, rules: Policy) -> float:
    """Return the seconds for which the shards of one of HOSTS_MAX hosts of a VOLUME are made again, one at a time."""
    return VOLUME * code.n / code.k / HOSTS_MAX * (code.k + 1) / rules.rate


def at_once(code: Redundancy, share: float) -> float:
    """Return the chance that a blob is lost when each peer vanishes with this chance in one moment."""
    return sum(
        math.comb(code.n, gone) * share**gone * (1 - share) ** (code.n - gone)
        for gone in range(code.n - code.k + 1, code.n + 1)
    )


def repair_rate(code: Redundancy, lifetime: float, stored: float) -> float:
    """Return the bytes a second that repair moves for each peer that holds `stored` bytes: k + 1 for each that is lost."""
    return stored / lifetime * (code.k + 1)


def nines(chance: float) -> str:
    """Return a small probability as the page shows it."""
    if chance < 1e-30:
        return "< 1e-30"
    return f"{chance:.1e}" if chance < 0.095 else f"{min(chance, 1.0):.2f}"


def formula_tables() -> Iterator[str]:
    """Yield the lines of the tables that follow from the formula."""
    rules = Policy()
    yield "BLOB code   lifetime  lost in a year  any of 1 TiB"
    for code in CODES:
        for days in LIFETIMES:
            times = repair_times(code, rules, transfer_time(code, rules))
            rate = YEAR / mean_time_to_loss(code, days * DAY, times)
            chance = -math.expm1(-rate)
            volume = -math.expm1(-rate * VOLUME / BLOB)
            yield f"     {code!s:6} {days:5} days  {nines(chance):>14}  {nines(volume):>12}"
    yield "WEEK code   lifetime  lost in a year  any of 1 TiB"
    for code in CODES:
        for days in LIFETIMES:
            times = [7 * DAY] * (code.n - code.k)
            rate = YEAR / mean_time_to_loss(code, days * DAY, times)
            chance, volume = -math.expm1(-rate), -math.expm1(-rate * VOLUME / BLOB)
            yield f"     {code!s:6} {days:5} days  {nines(chance):>14}  {nines(volume):>12}"
    yield "ONCE code        10 %       30 %       50 %       60 %"
    for code in CODES:
        yield f"     {code!s:6} " + " ".join(f"{nines(at_once(code, share)):>10}" for share in (0.1, 0.3, 0.5, 0.6))
    yield "LOAD code   lifetime    kB/s per TB stored"
    for code in CODES:
        for days in LIFETIMES:
            yield f"     {code!s:6} {days:5} days  {repair_rate(code, days * DAY, 1e12) / 1e3:12.0f}"


# ---- simulation ------------------------------------------------------------------------------------------------------
SLOW: Final = Policy(urgent_grace=1.0 * DAY, grace=1.5 * DAY, gone_after=2.5 * DAY)
"""As slow that blobs are lost before one's eyes; the formula is asked for the same."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Peers that live for `lifetime` days in the mean, and a volume on them, watched for `days`."""

    code: Redundancy
    lifetime: float
    days: float = 6.0
    peers: int = 1000
    blobs: int = 60


TRIALS: Final = (
    Trial(Redundancy(1, 3), 6.0),
    Trial(Redundancy(2, 6), 4.0),
    Trial(Redundancy(4, 12), 3.0),
)
SEEDS: Final = 6


@dataclass(frozen=True, slots=True)
class Outcome:
    blobs: int
    lost: int
    made: int
    moved: float
    """In shards."""


def simulate(trial: Trial, seed: int) -> Outcome:
    """Let peers die, one by one and for good, and count the blobs that nobody has any more."""
    world = World(seed)
    network = Network(world)
    for number in range(trial.peers):
        network.add(number, 200 * GIB)
    volume = Volume(world, network, trial.code, SLOW)
    size = 4 * MIB
    for number in range(trial.blobs):
        world.at(60.0, volume.store, blob_id(seed, number), size)
    world.run(120.0)
    for peer in list(network.peers.values()):
        world.after(world.random.expovariate(1 / (trial.lifetime * DAY)), network.kill, peer)
    world.run(120.0 + trial.days * DAY)
    lost = 0
    for blob, row in volume.rows.items():
        left = sum(network.truly_has(peer, volume.shard(blob, i)) for i, peer in volume.places(blob).items())
        lost += left < row.k
    made = sum(count for _, _, count, _ in volume.repairs)
    moved = sum(moved for *_, moved in volume.repairs) / (size / trial.code.k)
    return Outcome(len(volume.rows), lost, made, moved)


def compare(trial: Trial, seeds: range) -> tuple[Outcome, float]:
    """Return what the simulation found in all, and the share of blobs that the formula expects to be lost."""
    found = [simulate(trial, seed) for seed in seeds]
    times = repair_times(trial.code, SLOW, 0.0)
    total = Outcome(*(sum(getattr(one, name) for one in found) for name in ("blobs", "lost", "made", "moved")))
    return total, lost_by(trial.code, trial.lifetime * DAY, times, trial.days * DAY)


def simulated_table() -> Iterator[str]:
    """Yield the lines of the table that compares both."""
    yield "SEEN code   lifetime   blobs  lost  expected  shards moved per shard made"
    for trial in TRIALS:
        total, expected = compare(trial, range(SEEDS))
        yield (
            f"     {trial.code!s:6} {trial.lifetime:5.0f} days  {total.blobs:6} {total.lost:5}  {expected * total.blobs:8.1f}"
            f"  {total.moved / max(total.made, 1):8.1f}"
        )


def main() -> None:
    logging.disable()
    for line in formula_tables():
        print(line)
    if "formula" not in sys.argv[1:]:
        for line in simulated_table():
            print(line)


if __name__ == "__main__":
    main()
