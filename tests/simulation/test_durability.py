"""fsdecloud-durability(7) says what the program prints; formula and simulation agree."""

import logging
import math
from pathlib import Path

import pytest

from fsdecloud.swarm.policy import Redundancy
from fsdecloud.swarm.repair import Policy
from tests.simulation import durability as model
from tests.simulation.world import DAY

PAGE = (Path(__file__).parents[2] / "man" / "fsdecloud-durability.7").read_text()


@pytest.fixture(autouse=True)
def _no_log():
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


def on_the_page(line):
    return f"\n    {line[4:]}\n" in PAGE


@pytest.mark.parametrize("line", list(model.formula_tables()), ids=lambda line: " ".join(line.split())[:24])
def test_the_page_has_what_the_formula_gives(line):
    assert on_the_page(line)


def test_the_page_has_the_rules():
    rules = Policy()
    assert f"made again after {rules.gone_after / 3600:.0f} hours" in PAGE
    assert f"after {rules.grace / 60:.0f} minutes" in PAGE
    assert f"after {rules.urgent_grace:.0f} seconds" in PAGE
    assert f"Repair moves {rules.rate / (1 << 20):.0f} MiB a second" in PAGE
    assert f"{rules.rate_busy / (1 << 20):.0f} MiB while" in PAGE
    assert f"on {model.HOSTS_MAX} hosts" in PAGE
    assert (
        f"{model.SLOW.gone_after / DAY:g} days, {model.SLOW.grace / DAY:g} days and {model.SLOW.urgent_grace / DAY:g} day"
        in PAGE
    )
    assert f"{model.NETWORK_BLOBS:.1e}".replace("+", "") in PAGE
    code = Redundancy(4, 12)
    for times in (model.repair_times(code, rules, model.transfer_time(code, rules)), [7 * DAY] * 8):
        rate = model.YEAR / model.mean_time_to_loss(code, 100 * DAY, times)
        assert f"\n{rate * model.NETWORK_BLOBS:.1e}" in PAGE


@pytest.mark.long
def test_the_page_has_what_the_simulation_gives():
    assert all(on_the_page(line) for line in model.simulated_table())


@pytest.mark.parametrize("code", model.CODES, ids=str)
def test_the_chain_agrees_with_itself(code):
    """The mean time to absorption and the chain in small steps are reckoned in different ways."""
    times = [0.6 * DAY] * (code.n - code.k)
    mean = model.mean_time_to_loss(code, DAY, times)
    early = model.lost_by(code, DAY, times, 20 * DAY), model.lost_by(code, DAY, times, 24 * DAY)
    rate = math.log((1 - early[0]) / (1 - early[1])) / (4 * DAY)
    assert rate * mean == pytest.approx(1, rel=0.15)


def test_without_repair_it_is_the_binomial():
    code = Redundancy(2, 6)
    gone = -math.expm1(-0.5)
    assert model.lost_by(code, 2 * DAY, [1e12] * 4, DAY) == pytest.approx(model.at_once(code, gone), rel=0.05)


def test_simulation_and_formula_agree():
    """One seed of the first trial here; all of them are on the page."""
    total, expected = model.compare(model.TRIALS[0], range(1))
    expected *= total.blobs
    assert total.blobs == model.TRIALS[0].blobs
    assert abs(total.lost - expected) <= 4 * math.sqrt(expected * 4) + 2  # blobs share hosts: they are lost together
    assert total.moved <= (model.TRIALS[0].code.k + 1) * total.made


def test_the_page_agrees_with_itself():
    """What was seen lies within what chance allows of what the formula expects."""
    table = PAGE[PAGE.index("shards moved per shard made") :].splitlines()[1 : 1 + len(model.TRIALS)]
    for line, trial in zip(table, model.TRIALS, strict=True):
        code, lifetime, _, blobs, lost, expected, moved = line.split()
        assert (code, float(lifetime), int(blobs)) == (str(trial.code), trial.lifetime, model.SEEDS * trial.blobs)
        allowed = 4 * math.sqrt(float(expected) * 2) + 1
        assert int(lost) <= float(expected) + allowed
        # With few shards each has its own time, which is the formula's; with many it expects more than there are.
        assert trial.code.n > 6 or int(lost) >= float(expected) - allowed
        assert float(moved) <= trial.code.k + 1
