"""Three hundred ledgers under attack, each from its seed: nothing final is taken back, all end with one chain."""

import subprocess
import sys
from pathlib import Path

import pytest

from fsdecloud.ledger import chain, finality
from tests.simulation.ledger import PLANS, Broken, Plan, Simulation

ROOT = Path(__file__).parents[2]
BY_NAME = {plan.name: plan for plan in PLANS}
LONG = 70


# ---- every seed ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(300))
def test_faults_100_101_103_104_105_106_ledger_seed(seed):
    Simulation(seed).run()


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1000, 3000))
def test_more_ledger_seeds(seed):
    Simulation(seed, blocks=40).run()


@pytest.mark.long
@pytest.mark.parametrize("seed", range(130))
def test_longer_ledger_seeds(seed):
    Simulation(seed, blocks=200).run()


# ---- what the attacks get -------------------------------------------------------------------------------------------
def runs(name, count=4, blocks=LONG):
    return [Simulation(seed, plan=BY_NAME[name], blocks=blocks).run() for seed in range(count)]


@pytest.mark.parametrize("share", ["51 %", "75 %"])
def test_fault_101_most_of_the_work_takes_back_nothing_final(share):
    for run in runs(f"{share} of the work rewrites"):
        assert run.released
        assert run.reverted_final == 0
        assert run.deepest < 12
        assert run.final_lag <= 12


@pytest.mark.parametrize("share", [30, 45])
def test_fault_105_selfish_mining_gains_little_and_stops_nothing(share):
    for run in runs(f"selfish mining with {share} %"):
        assert run.final_lag <= 20
        assert run.evil_share < 2 * share / 100


@pytest.mark.parametrize("when", ["early", "late"])
def test_fault_103_false_times_do_not_make_blocks_cheap(when):
    found = runs(f"times as {when} as may be, 45 %", blocks=150)
    # 45 % of all work are the attacker's, on top of what the first difficulty was for.
    assert all(run.seconds > 25 for run in found)


def test_fault_104_finality_goes_on_when_work_comes_and_goes():
    for run in runs("100 times the work") + runs("a hundredth of the work"):
        assert run.final_lag <= 12


def test_fault_106_an_eclipsed_node_comes_back():
    for run in runs("one node eclipsed, 51 %"):
        assert run.deepest > 0
        assert run.evil_share == 0.0


def test_equivocation_burns_and_stops_nothing():
    for run in runs("two of nine voters equivocate"):
        assert run.burned == 2
        assert run.final_lag <= 12


def test_without_two_thirds_work_goes_on_and_the_absent_are_suspended():
    for run in runs("four of nine voters away", blocks=12):
        assert run.final_lag >= 16
    for run in runs("four of nine voters away", blocks=70):
        assert run.final_lag <= 16


# ---- the checks have teeth -------------------------------------------------------------------------------------------
def test_by_work_alone_an_attacker_takes_back_what_was_final(monkeypatch):
    def by_work(document, read_point, _read, tip, candidate, _held):
        return chain.plan_switch(read_point, tip, candidate, None) if chain.is_better(candidate, tip) else None

    monkeypatch.setattr(finality, "choose_tip", by_work)
    with pytest.raises(Broken, match=r"75 % of the work rewrites, seed \d+: "):
        runs("75 % of the work rewrites", 20)


def test_all_who_equivocate_burn():
    run = Simulation(3, plan=Plan("four lie", liars=4), blocks=30).run()
    assert run.burned == 4


# ---- replay ----------------------------------------------------------------------------------------------------------
def test_the_same_seed_gives_the_same_ledger_in_any_process():
    here = Simulation(1, blocks=30).run()
    script = (
        "from tests.simulation.ledger import Simulation; print(Simulation(1, blocks=30).run().nodes[0].tip.id.hex())"
    )
    for hash_seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env={"PYTHONHASHSEED": hash_seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == here.nodes[0].tip.id.hex()
