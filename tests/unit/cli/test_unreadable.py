"""What `decloud unreadable` prints."""

from __future__ import annotations

import json

import pytest

from fsdecloud.cli import drivers, unreadable
from fsdecloud.cli.run import DEGRADED, OK, run
from fsdecloud.wire.controlapi import Unreadable, UnreadablePage, UnreadableQuery

FOUND = (
    Unreadable(b"photos/\x1b[31mred\n\xff", 7, "contents", 3 << 20, ((0, 1 << 20), (5 << 20, 7 << 20))),
    Unreadable(b"music", 8, "names", -1, ()),
    Unreadable(b"", 1, "attributes", -1, ()),
)


class Driver:
    """Answers in pages of one."""

    def __init__(self, found: tuple[Unreadable, ...]) -> None:
        self._found = found
        self.asked = 0

    def __call__(self, *_arguments: object, **_options: object) -> Driver:
        return self

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_arguments: object) -> None:
        """Nothing is open."""

    def call(self, method: str, query: UnreadableQuery, _result: type, *, timeout: float) -> UnreadablePage:
        assert (method, query.session, timeout > 0) == ("unreadable", 5 if self.asked else 0, True)
        self.asked += 1
        found = self._found[self.asked - 1 : self.asked]
        return UnreadablePage(found, 10 * self.asked, 5 if self.asked < len(self._found) else 0)


def call(monkeypatch: pytest.MonkeyPatch, found: tuple[Unreadable, ...], *arguments: str) -> int:
    driver = Driver(found)
    monkeypatch.setattr(drivers, "volume_of_path", lambda _paths, path: path or "photos")
    monkeypatch.setattr(unreadable.client, "Client", driver)
    code = run(unreadable.command, arguments, "decloud")
    assert driver.asked == max(len(found), 1)
    return code


def test_061_paths_are_safe_to_print(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, FOUND) == DEGRADED
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [r"photos/\x1b[31mred\x0a\xff", "music/", "."]
    assert "2 names lead to what cannot be read until a peer returns (3.00 MiB)" in shown.err
    assert "1 directories cannot be listed" in shown.err


def test_061_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, FOUND, "somewhere", "--json") == DEGRADED
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == {
        "path": "photos/\x1b[31mred\n\udcff",
        "inode": 7,
        "lacks": "contents",
        "bytes": 3 << 20,
        "ranges": [[0, 1 << 20], [5 << 20, 7 << 20]],
        "more_ranges": False,
    }
    assert [(line["path"], line["lacks"], line["bytes"]) for line in lines[1:]] == [
        ("music", "names", None),
        (".", "attributes", None),
    ]


def test_061_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, ()) == OK
    assert capsys.readouterr() == ("", "")
