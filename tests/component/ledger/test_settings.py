"""The ledger daemon's settings: file and command line, and what neither may say."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from fsdecloud.config import Paths, find_paths, make_private_dir
from fsdecloud.errors import UsageError
from fsdecloud.ledgerd.crew import CrewPlan
from fsdecloud.ledgerd.settings import (
    NO_WISHES,
    Settings,
    Wishes,
    ensure_token,
    load_settings,
    read_token,
    settings_file,
    token_file,
)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    found = find_paths({"FSDECLOUD_HOME": os.fspath(tmp_path / "home")})
    make_private_dir(found.ledger_state)
    return found


def test_without_any_all_is_default(paths: Paths) -> None:
    assert load_settings(paths, NO_WISHES) == Settings() == Settings(None, CrewPlan(1, 100, 10), "", "")


def test_the_command_line_goes_before_the_file(paths: Paths) -> None:
    settings_file(paths).write_text(
        'mine = true\nmine_workers = 2\nmine_duty = "25%"\nmine_nice = 3\nwork = "192.168.1.5:7790"\nexplorer = 7780\n'
    )
    found = load_settings(paths, NO_WISHES)
    assert found == Settings(True, CrewPlan(2, 25, 3), "192.168.1.5:7790", "127.0.0.1:7780")
    found = load_settings(paths, Wishes(0, "7", 19, "[::1]:1", "localhost:0"), mine=False)
    assert found == Settings(False, CrewPlan(0, 7, 19), "[::1]:1", "localhost:0")
    assert load_settings(paths, Wishes(work="off", explorer="off")) == Settings(True, CrewPlan(2, 25, 3), "", "")


def test_a_snapshot_is_the_command_lines_or_the_files(paths: Paths) -> None:
    assert load_settings(paths, NO_WISHES).snapshot is None
    assert load_settings(paths, Wishes(snapshot=True)).snapshot is True
    settings_file(paths).write_text("snapshot = true\n")
    assert load_settings(paths, NO_WISHES).snapshot is True
    assert load_settings(paths, Wishes(snapshot=False)).snapshot is False
    with pytest.raises(UsageError, match="cannot take a snapshot"):
        load_settings(paths, Wishes(light=True))


def test_light_is_the_command_lines_or_the_files_or_as_it_was(paths: Paths) -> None:
    assert load_settings(paths, NO_WISHES, was_light=True).light
    settings_file(paths).write_text('ledger = "full"\n')
    assert not load_settings(paths, NO_WISHES, was_light=True).light
    assert load_settings(paths, Wishes(light=True)).light
    settings_file(paths).write_text('ledger = "light"\n')
    assert load_settings(paths, NO_WISHES).light
    assert not load_settings(paths, Wishes(light=False)).light
    for wishes in (Wishes(work="1"), Wishes(explorer="1")):
        with pytest.raises(UsageError, match="it has no blocks"):
            load_settings(paths, wishes)
    with pytest.raises(UsageError, match="cannot mine"):
        load_settings(paths, NO_WISHES, mine=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('ledger = "heavy"', "heavy"),
        ("mine_duty = 0", "from 1 to 100"),
        ("mine_duty = 101", "from 1 to 100"),
        ('mine_duty = "half"', "from 1 to 100"),
        ("mine_duty = 2.5", "mine_duty"),
        ("mine_workers = 257", "256"),
        ("mine_workers = -1", "0"),
        ("mine_nice = 20", "19"),
        ('mine = "yes"', "bool"),
        ("explorer = true", "explorer"),
        ('explorer = "0.0.0.0:80"', "this machine alone"),
        ('explorer = "example.org:80"', "this machine alone"),
        ('work = "nowhere"', "HOST:PORT"),
        ("work = 65536", "HOST:PORT"),
        ("mining = true", "mining"),
        ("mine = ", "Invalid value"),
        ("#" * (64 << 10) + "\n\n", "larger than"),
    ],
)
def test_a_file_that_cannot_be_meant_is_named_with_the_reason(paths: Paths, text: str, words: str) -> None:
    settings_file(paths).write_text(text)
    with pytest.raises(UsageError) as caught:
        load_settings(paths, NO_WISHES)
    assert str(settings_file(paths)) in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "wishes",
    [
        Wishes(workers=-1),
        Wishes(workers=257),
        Wishes(duty="0%"),
        Wishes(duty=""),
        Wishes(nice=20),
        Wishes(explorer="10.0.0.1:80"),
        Wishes(explorer="127.0.0.1"),
        Wishes(explorer="-1"),
        Wishes(work="a b:1"),
    ],
)
def test_an_option_that_cannot_be_meant(paths: Paths, wishes: Wishes) -> None:
    with pytest.raises(UsageError):
        load_settings(paths, wishes)


def test_the_token_is_made_once_and_kept_private(paths: Paths) -> None:
    token = ensure_token(paths)
    assert len(token) == 32
    assert ensure_token(paths) == token == read_token(token_file(paths))
    assert stat.S_IMODE(token_file(paths).stat().st_mode) == 0o600
    token_file(paths).chmod(0o644)
    with pytest.raises(UsageError, match="readable by nobody else"):
        ensure_token(paths)
    token_file(paths).chmod(0o600)
    for wrong in (b"0" * 63, b"g" * 64, token, b"0" * 66):
        token_file(paths).write_bytes(wrong)
        with pytest.raises(UsageError, match="64 hexadecimal digits"):
            read_token(token_file(paths))
