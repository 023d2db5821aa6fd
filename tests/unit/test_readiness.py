"""The ready line and the word to systemd."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from fsdecloud.readiness import notify, report_failure, report_ready


def test_one_line_then_closed() -> None:
    reader, writer = os.pipe()
    report_ready(writer, {"url": "wss://x"})
    with open(reader, "rb") as pipe:
        assert json.loads(pipe.read()) == {"pid": os.getpid(), "url": "wss://x"}


def test_failure_line() -> None:
    reader, writer = os.pipe()
    report_failure(writer, "it is full", 2)
    with open(reader, "rb") as pipe:
        assert json.loads(pipe.read()) == {"error": "it is full", "exit": 2}


def test_a_starter_that_is_gone_does_not_matter() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    report_ready(writer, {})
    report_ready(None, {})


def test_systemd_hears_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(os.fspath(path))
        monkeypatch.setenv("NOTIFY_SOCKET", os.fspath(path))
        report_ready(None, {})
        assert manager.recv(100) == b"READY=1"
    assert not notify("STOPPING=1", {"NOTIFY_SOCKET": os.fspath(path)})
    assert not notify("STOPPING=1", {})
    assert not notify("STOPPING=1", {"NOTIFY_SOCKET": "relative"})
