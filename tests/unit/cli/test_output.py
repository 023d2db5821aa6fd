"""What reaches a terminal or a program."""

from __future__ import annotations

import json

import pytest

from fsdecloud.cli.output import Progress, clean, emit_json, error_line, rfc3339, table


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ünï", "plain ünï"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\nb\tc\r", "a\\x0ab\\x09c\\x0d"),
        (b"caf\xe9", "caf\\xe9"),
        ("evil\u202egpj.exe", "evil\\u202egpj.exe"),
        ("\U000e0041", "\\U000e0041"),
        ("no\u00a0break", "no\u00a0break"),
    ],
)
def test_129_nothing_steers_the_terminal(text: str | bytes, shown: str) -> None:
    assert clean(text) == shown


def test_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    error_line("decloud", "first\n  second \x1b[31m\n")
    error_line("mount.decloud", "")
    assert capsys.readouterr().err == "decloud: first second \\x1b[31m\nmount.decloud: failed\n"


def test_table_aligns_and_cleans() -> None:
    rows = [["a", "1"], ["b\n", "100"]]
    assert table(rows, header=("name", "n"), right=(1,), indent="  ") == [
        "  name     n",
        "  a        1",
        "  b\\x0a  100",
    ]
    assert table([]) == []


def test_json_is_ascii_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    emit_json({"path": "ü\n\udc80"})
    out = capsys.readouterr().out
    assert out.isascii()
    assert out.count("\n") == 1
    assert json.loads(out) == {"path": "ü\n\udc80"}


def test_times_are_rfc3339() -> None:
    assert rfc3339(0) == "1970-01-01T00:00:00Z"
    assert rfc3339(1_700_000_000.9) == "2023-11-14T22:13:20Z"


def test_progress_without_a_terminal_speaks_every_ten_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    now = [100.0]
    progress = Progress(clock=lambda: now[0])
    for step in range(25):
        now[0] = 100.0 + step
        progress.show(f"step {step}")
    progress.end()
    assert capsys.readouterr().err == "step 10\nstep 20\n"
