"""What people are told of storage deals, and what a budget is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from fsdecloud.cli import budget, client, deals, parts, volumes
from fsdecloud.config import HOME_VARIABLE, find_paths
from fsdecloud.errors import UsageError
from fsdecloud.types import PeerId
from fsdecloud.wire.agentapi import Budget, DealInfo, DealsStatus

PEER = PeerId(b"\xab" * 32)
RUNNING = DealInfo(PEER, b"\x01" * 32, "running", 3 << 20, 1000, 500, 12, 43210, 10 * 86400, "")
WITHOUT = DealInfo(PeerId(b"\xcd" * 32), b"", "none", 0, 9, 0, 0, 0, 0, "no deals\x1b[2J today")
STATUS = DealsStatus(700, (RUNNING, WITHOUT), 3, 12, 500, 77, ("the money for deals runs out in 3 days",))


@pytest.mark.parametrize(("text", "amount"), [("5/month", 5), ("0/month", 0), (" 1000000000000/month ", 10**12)])
def test_a_budget_is_an_amount_for_a_month(text: str, amount: int) -> None:
    assert budget.parse_budget(text) == amount


@pytest.mark.parametrize(
    "text", ["", "5", "5/year", "-5/month", "5.5/month", "5 /month", f"{(1 << 60) + 1}/month", "٥/month"]
)
def test_anything_else_is_none_and_an_example_is_given(text: str) -> None:
    with pytest.raises(UsageError, match="as 5000/month"):
        budget.parse_budget(text)


def test_a_volume_without_money_shows_nothing_of_it() -> None:
    assert deals.summary(DealsStatus()) == ""
    assert deals.as_lines(DealsStatus()) == ["no storage deals: peers are paid nothing, and there is no budget"]


def test_deals_are_a_line_of_status_and_a_table() -> None:
    line, header, *rows, warning = deals.as_lines(STATUS)
    assert line == "deals: 1 running; 3 a month of a budget of 700, 12 earned by peers, 500 locked"
    assert header.split() == ["peer", "state", "bytes", "price", "earned", "ends", "problem"]
    assert rows[0].split()[:2] == ["abababab", "running"]
    assert "in 10 d" in rows[0]
    assert "(43210)" in rows[0]
    assert "no deals" in rows[1]
    assert "\x1b" not in rows[1]
    assert warning == "warning: the money for deals runs out in 3 days"
    assert json.loads(json.dumps(deals.as_fields(STATUS)))["running"] == 1


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    paths = find_paths()
    volumes.save_document(paths, volumes.make_document(paths, "photos", bytes(range(32)), bytes(32)))
    return tmp_path


def test_a_budget_is_kept_and_a_mounted_volume_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert home
    told = []
    runner = CliRunner()
    assert "has no budget" in runner.invoke(budget.command, ["photos"]).output
    done = runner.invoke(budget.command, ["photos", "70/month", "--json"])
    assert json.loads(done.output) == {"volume": "photos", "budget": 70}
    assert volumes.load_document(find_paths(), "photos").budget == 70
    monkeypatch.setattr(parts, "running_pid", lambda _paths, _daemon: 7)
    monkeypatch.setattr(
        client, "call", lambda _socket, method, params, _kind, **_options: told.append((method, params))
    )
    assert runner.invoke(budget.command, ["photos", "80/month"]).output == (
        "volume photos: storage deals may cost 80 a month\n"
    )
    assert told == [("budget", Budget(80))]


def test_deals_of_a_volume_that_is_not_mounted_say_what_to_do(home: Path) -> None:
    assert home
    failed = CliRunner().invoke(deals.command, [])
    assert isinstance(failed.exception, UsageError)
    assert "decloud mount photos" in str(failed.exception)
