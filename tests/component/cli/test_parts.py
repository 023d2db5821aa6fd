"""Starting, finding and stopping daemons: with stand-ins that behave well and badly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from fsdecloud.cli import parts
from fsdecloud.config import Paths
from fsdecloud.errors import StoreLocked, UsageError

DAEMON = """
import argparse, json, os, signal, sys, time
from pathlib import Path
from fsdecloud.readiness import report_failure, report_ready
from fsdecloud.store.lockfile import acquire_lock

parser = argparse.ArgumentParser()
parser.add_argument("lock"); parser.add_argument("mode")
parser.add_argument("--ready-fd", type=int); parser.add_argument("--secret-fd", type=int)
a = parser.parse_args()
print("starting in", a.mode, file=sys.stderr, flush=True)
secret = os.read(a.secret_fd, 100) if a.secret_fd is not None else b""
if a.mode == "refuses":
    report_failure(a.ready_fd, "the disk\\x1b is full", 32); sys.exit(32)
if a.mode == "dies":
    print("a bug", file=sys.stderr); sys.exit(7)
if a.mode == "garbage":
    os.write(a.ready_fd, b"{nonsense\\n"); sys.exit(9)
if a.mode == "silent":
    time.sleep(600)
try:
    lock = acquire_lock(Path(a.lock))
except Exception as exc:
    report_failure(a.ready_fd, str(exc), 2); sys.exit(2)
if a.mode == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
report_ready(a.ready_fd, {"secret": secret.hex(), "session": os.getsid(0), "cwd": os.getcwd(),
                          "environ": sorted(os.environ), "argv": sys.argv, "path": sys.path})
signal.pause() if a.mode != "stubborn" else time.sleep(600)
"""


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "config", tmp_path / "state", tmp_path / "cache", tmp_path / "run")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module `standin` that `python -m` finds."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "standin.py").write_text(textwrap.dedent(DAEMON))
    monkeypatch.setenv("PYTHONPATH", os.fspath(tmp_path / "lib"))
    return "standin"


def part(paths: Paths, package: str, mode: str) -> parts.Part:
    return parts.Part("thing", package, (os.fspath(paths.lock_file("thing")), mode))


def end(process: object) -> None:
    process.kill()  # type: ignore[attr-defined]
    process.wait()  # type: ignore[attr-defined]


def test_a_part_serves_detached(paths: Paths, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
    secret = bytes(range(32))
    assert parts.running_pid(paths, "thing") is None
    process, facts = parts.start_part(paths, part(paths, package, "serves"), secret=secret)
    try:
        assert facts["pid"] == process.pid == parts.running_pid(paths, "thing")
        assert parts.running_daemons(paths) == {"thing": process.pid}
        assert facts["session"] == process.pid, "it outlives our terminal"
        assert facts["cwd"] == "/"
        assert facts["secret"] == secret.hex()
        command_line = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        environment = Path(f"/proc/{process.pid}/environ").read_bytes()
        for visible in (command_line, environment):
            assert secret not in visible
            assert secret.hex().encode() not in visible
        assert "NOTIFY_SOCKET" not in facts["environ"], "a part does not speak for our unit"
        assert "" not in facts["path"], "the present directory is no place to import from"
        log = paths.log_file("thing")
        assert log.read_text() == "starting in serves\n"
        assert log.stat().st_mode & 0o777 == 0o600
        with pytest.raises(StoreLocked, match=str(process.pid)):
            parts.require_stopped(paths, "thing")
        assert parts.ensure_part(paths, part(paths, package, "serves")) is None
        assert parts.stop_parts(paths, ["thing", "other"]) == []
        assert process.wait(5) == -signal.SIGTERM
        assert parts.running_pid(paths, "thing") is None
    finally:
        end(process)


@pytest.mark.parametrize(
    ("mode", "code", "says"),
    [
        ("refuses", 32, r"^the disk\\x1b is full$"),
        ("dies", 2, r"thing ended at its start \(exit code 7\): a bug \(see .*thing.log\)"),
        ("garbage", 2, r"thing ended at its start \(exit code 9\): starting in garbage"),
    ],
)
def test_a_part_that_cannot_serve_says_why(paths: Paths, package: str, mode: str, code: int, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        parts.start_part(paths, part(paths, package, mode))
    assert caught.value.exit_code == code


def test_a_silent_part_is_ended(paths: Paths, package: str) -> None:
    with pytest.raises(UsageError, match=r"does not answer after 0\.5 s"):
        parts.start_part(paths, part(paths, package, "silent"), timeout=0.5)
    assert parts.running_pid(paths, "thing") is None


def test_two_commands_at_once_start_one_part(paths: Paths, package: str) -> None:
    started: list[object] = []
    threads = [
        threading.Thread(target=lambda: started.append(parts.ensure_part(paths, part(paths, package, "serves"))))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    processes = [process for process in started if process is not None]
    try:
        assert len(started) == 3
        assert len(processes) == 1
    finally:
        for process in processes:
            end(process)


def test_a_stubborn_part_is_killed(paths: Paths, package: str) -> None:
    process, _ = parts.start_part(paths, part(paths, package, "stubborn"))
    try:
        assert parts.stop_parts(paths, ["thing"], timeout=0.3) == ["thing"]
        assert process.wait(5) == -signal.SIGKILL
    finally:
        end(process)


def test_a_large_log_is_set_aside(paths: Paths, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "LOG_MAX", 10)
    log = paths.log_file("thing")
    log.parent.mkdir(mode=0o700, parents=True)
    log.write_text("old and long\n")
    with pytest.raises(UsageError):
        parts.start_part(paths, part(paths, package, "dies"))
    assert log.with_name("thing.log.1").read_text() == "old and long\n"
    assert log.read_text() == "starting in dies\na bug\n"


def test_peers_are_counted_as_people_count(paths: Paths) -> None:
    for name in ("peer-10", "peer-2", "b", "peer-1"):
        paths.peer_state(name).mkdir(parents=True)
        (paths.peer_state(name) / "peer.toml").touch()
    paths.peer_state("unfinished").mkdir()
    assert parts.local_peers(paths) == ["b", "peer-1", "peer-2", "peer-10"]


def test_waiting_for_a_part_that_does_not_end(paths: Paths, package: str) -> None:
    process, _ = parts.start_part(paths, part(paths, package, "serves"))
    try:
        before = time.monotonic()
        assert not parts.wait_gone(paths, "thing", 0.2)
        assert time.monotonic() - before >= 0.2
    finally:
        end(process)
    assert parts.wait_gone(paths, "thing", 5.0)


def test_a_family_ends_when_its_last_child_has() -> None:
    script = "import subprocess, sys; subprocess.Popen(['sleep', '600']); print(flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdout, process.stdin:
        process.stdout.readline()
        with parts.Family([process.pid]) as family:
            assert not family.wait(0.05)
            process.kill()
            process.wait()
            assert not family.wait(0.05), "the child still runs"
            family.kill()
            assert family.wait(5.0)


def test_a_command_uses_this_interpreter(paths: Paths) -> None:
    assert parts.peer_part("x").command() == [sys.executable, "-P", "-m", "fsdecloud.peerd", "run", "--name", "x"]
