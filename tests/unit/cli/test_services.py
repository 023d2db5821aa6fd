"""Options of mining, work and pages on their way to the daemon, and hash rates for people."""

from __future__ import annotations

import os
from pathlib import Path

import click
import pytest

from fsdecloud.cli import network, parts, services, settings
from fsdecloud.cli.ledger import command as ledger_command
from fsdecloud.cli.run import run
from fsdecloud.cli.up import Network, choose_settings
from fsdecloud.config import find_paths
from fsdecloud.errors import UsageError
from fsdecloud.types import BlockId
from fsdecloud.wire.ledgerapi import LedgerStatus


def test_the_daemon_gets_what_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSDECLOUD_HOME", os.fspath(tmp_path))
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _program, arguments: started.append(arguments))
    words = [
        "--no-mine",
        "--mine-workers",
        "3",
        "--mine-duty",
        "25%",
        "--mine-nice",
        "0",
        "--work",
        "7790",
        "--explorer",
        "0",
        "--light",
    ]
    assert run(ledger_command, ["run", *words], "decloud") == 0
    [arguments] = started
    assert arguments[-len(words) :] == [word.rstrip("%") for word in words]
    assert run(ledger_command, ["run"], "decloud") == 0
    assert started[1][-1] == "run"
    assert run(ledger_command, ["run", "--no-light"], "decloud") == 0
    assert started[2][-2:] == ["run", "--no-light"]


@pytest.mark.parametrize(
    "words",
    [
        ["--mine-duty", "0"],
        ["--mine-duty", "x"],
        ["--mine-workers", "-1"],
        ["--mine-workers", "257"],
        ["--mine-nice", "20"],
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.setenv("FSDECLOUD_HOME", os.fspath(tmp_path))
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("started"))
    assert run(ledger_command, ["run", *words], "decloud") == 1


def test_up_remembers_the_duty_and_passes_it_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = find_paths({"FSDECLOUD_HOME": os.fspath(tmp_path / "home")})
    given: list[tuple[str, ...]] = []
    monkeypatch.setattr(parts, "ensure_part", lambda _paths, part: given.append(part.arguments))
    where = os.fspath(tmp_path / "mount")
    Network(paths, choose_settings(paths, where, 1)).start_ledger()
    chosen = choose_settings(paths, where, 1, 25)
    settings.save_settings(paths, chosen)
    Network(paths, chosen).start_ledger()
    Network(paths, choose_settings(paths, None, None)).start_ledger()
    assert given == [("run",), ("run", "--mine-duty", "25"), ("run", "--mine-duty", "25")]


def test_a_light_daemon_is_started_where_there_is_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = find_paths({"FSDECLOUD_HOME": os.fspath(tmp_path / "home")})
    given: list[tuple[str, ...]] = []
    monkeypatch.setattr(parts, "ensure_part", lambda _paths, part: given.append(part.arguments))
    chosen = choose_settings(paths, os.fspath(tmp_path / "mount"), 1)
    with pytest.raises(UsageError, match="needs a network that others keep"):
        Network(paths, chosen, light=True).bring_up()
    with pytest.raises(UsageError, match="needs a network that others keep"):
        network.ensure_ledger(paths, light=True)
    assert not given
    assert not network.has_network(paths)
    network.ensure_network(paths)
    network.ensure_ledger(paths, light=True)
    network.ensure_ledger(paths)
    assert given == [("run", "--light"), ("run",)]
    full = LedgerStatus(12, bytes(32), "", "", 6, BlockId(bytes(32)), 0, b"", 0, False, 0.0, ())
    monkeypatch.setattr(parts, "running_pid", lambda _paths, _daemon: 12)
    monkeypatch.setattr(network, "ledger_status", lambda _paths: full)
    network.ensure_ledger(paths, light=True)
    assert "runs already, as a full one" in capsys.readouterr().err


def test_percent_of_an_option() -> None:
    option = click.Option(["--duty"])
    context = click.Context(click.Command("x"))
    assert services.take_percent(context, option, "30 %") == 30
    assert services.take_percent(context, option, None) is None
    with pytest.raises(click.BadParameter, match="from 1 to 100"):
        services.take_percent(context, option, "half")


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (0.0, "0 H/s"),
        (999.0, "999 H/s"),
        (1500.0, "1.5 kH/s"),
        (2.4e6, "2.4 MH/s"),
        (7e9, "7 GH/s"),
        (5e13, "50000 GH/s"),
    ],
)
def test_rates_for_people(rate: float, text: str) -> None:
    assert services.format_rate(rate) == text
