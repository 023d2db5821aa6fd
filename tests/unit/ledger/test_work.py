"""Difficulty: reaches its interval from above and below, gives no credit for silence, cannot be talked down."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from fsdecloud.ledger import work
from fsdecloud.ledger.network import embedded_network, public_network

sys.path.insert(0, str(Path(__file__).parent))

DOCUMENT = public_network("w", bytes(32), 1_700_000_000)
INTERVAL = DOCUMENT.interval


class Chain:
    def __init__(self, document=DOCUMENT):
        self.document = document
        self.recent = (document.genesis_time,)
        self.lead = 0
        self.clock = float(document.genesis_time)

    @property
    def target(self):
        return work.target_after(self.document, self.lead)

    @property
    def work(self):
        return work.work_of(self.target)

    def add(self, time):
        time = max(time, work.median_time(self.recent) + 1)
        self.lead = work.next_lead(self.document, self.lead, self.recent, time)
        self.recent = work.next_recent(self.recent, time)

    def run(self, blocks, hash_rate, rng, shift=lambda number, clock: 0):
        start = self.clock
        for number in range(blocks):
            self.clock += rng.expovariate(hash_rate / self.work)
            self.add(int(self.clock) + shift(number, self.clock))
        return (self.clock - start) / blocks


def test_settles_at_the_interval():
    chain = Chain()
    rng = random.Random(1)
    rate = (1 << 24) / INTERVAL
    assert abs(chain.run(2000, rate, rng) - INTERVAL) < 0.1 * INTERVAL


def test_104_a_spike_and_a_collapse_of_hash_power_are_answered():
    rng = random.Random(2)
    rate = (1 << 24) / INTERVAL
    chain = Chain()
    chain.run(500, rate, rng)
    chain.run(3000, 100 * rate, rng)
    assert 0.8 * INTERVAL < chain.run(1000, 100 * rate, rng) < 1.2 * INTERVAL
    chain.run(1500, rate, rng)  # a block adds at most three intervals of lead: 6.6 half-lives are 800 blocks at best
    assert 0.8 * INTERVAL < chain.run(1000, rate, rng) < 1.25 * INTERVAL


def test_103_zigzag_times_do_not_lower_the_difficulty():
    rate = (1 << 24) / INTERVAL
    honest = Chain()
    honest.run(1500, rate, random.Random(3))
    for shift in (
        lambda n, clock: 7200 if n % 2 else -7200,
        lambda n, clock: (n % 11) * 600,
        lambda n, clock: 7200 if n % 11 < 5 else -100000,
        lambda n, clock: -100000 if n % 3 else 7200,
    ):
        liar = Chain()
        liar.run(1500, rate, random.Random(3), shift)
        assert liar.work > 0.7 * honest.work


def test_one_wrong_clock_moves_nothing():
    rate = (1 << 24) / INTERVAL
    chain = Chain()
    rng = random.Random(4)
    chain.run(500, rate, rng)
    before = chain.work
    chain.run(3, rate, rng, lambda n, clock: 7200)
    chain.run(30, rate, rng)
    assert 0.7 < chain.work / before < 1.4


def test_a_quiet_week_is_worth_four_intervals():
    chain = Chain()
    rng = random.Random(5)
    chain.run(100, (1 << 24) / INTERVAL, rng)
    before = chain.lead
    chain.clock += 7 * 86400
    for _ in range(work.MEDIAN_SPAN):
        chain.clock += INTERVAL
        chain.add(int(chain.clock))
    assert chain.lead - before < 2 * work.ACTIVE_INTERVALS * INTERVAL + 600


def test_years_of_rare_blocks_are_no_credit_for_fast_ones():
    chain = Chain(embedded_network("e", bytes(32), 1_700_000_000))
    for _ in range(5000):
        chain.clock += 3600
        chain.add(int(chain.clock))
    assert chain.target == chain.document.easiest_target
    easiest = chain.work
    for _ in range(4000):
        chain.clock += 0.2
        chain.add(int(chain.clock))
    assert chain.work > 4 * easiest


def test_targets_are_monotonous_and_bounded():
    last = bytes(32)
    for lead in range(-300 * DOCUMENT.half_life, 20 * DOCUMENT.half_life, DOCUMENT.half_life // 7):
        target = work.target_after(DOCUMENT, lead)
        assert last <= target <= DOCUMENT.easiest_target
        last = target
    assert work.target_after(DOCUMENT, 0) == DOCUMENT.first_target
    double = int.from_bytes(work.target_after(DOCUMENT, DOCUMENT.half_life))
    assert abs(double - 2 * int.from_bytes(DOCUMENT.first_target)) < double >> 12


@given(st.lists(st.integers(-10000, 10000), max_size=60))
@settings(max_examples=100)
def test_the_median_never_goes_back(steps):
    chain = Chain()
    last = work.median_time(chain.recent)
    for step in steps:
        chain.add(max(0, chain.document.genesis_time + step))
        median = work.median_time(chain.recent)
        assert median >= last
        last = median


def test_search_finds_what_it_promises():
    target = ((1 << 256) // 64 - 1).to_bytes(32)
    nonce, tried = work.search(b"prefix", target, 5, lambda: False, 10)
    assert nonce is not None
    assert int.from_bytes(nonce) == 5 + tried - 1
    assert work.search(b"prefix", bytes(32), 0, lambda: True, 100) == (None, 100)


def test_work_of():
    assert work.work_of(bytes([255]) * 32) == 1
    assert work.work_of(((1 << 256) // 1024 - 1).to_bytes(32)) == 1024
    assert msgspec.structs.asdict(DOCUMENT)["interval"] == INTERVAL
