"""How a command starts, finds and stops the daemons of this home.

A part is a process of its own with a lock file: whoever holds the lock is the part, whatever started it. Parts are
started detached (own session, stderr to the part's log file), so that they outlive the command.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from fsdecloud.cli.output import clean
from fsdecloud.config import Paths, make_private_dir
from fsdecloud.errors import StoreLocked, UsageError
from fsdecloud.store.lockfile import lock_holder

START_TIMEOUT: Final = 60.0
"""A part that does not serve by then is broken: replaying a journal is the slowest thing it does."""

STOP_TIMEOUT: Final = 30.0
"""A part that does not end by then is killed; every store survives that."""

LOG_MAX: Final = 16 << 20
"""A log file larger than this is set aside (one generation) when its part starts again."""

READY_MAX: Final = 64 << 10

NOT_INHERITED: Final = frozenset(
    ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "CREDENTIALS_DIRECTORY")
)
"""What systemd said to us alone: a part must not speak for our unit, nor read its credentials."""

SYSTEM: Final = 2


@dataclass(frozen=True, slots=True)
class Part:
    """One daemon: the name of its lock, socket and log, and what to run."""

    daemon: str
    module: str
    arguments: tuple[str, ...]

    def command(self) -> list[str]:
        """Return the command line; -P keeps the present directory out of the import path."""
        return [sys.executable, "-P", "-m", self.module, *self.arguments]


def ledger_part(extra: Sequence[str] = ()) -> Part:
    """Return the ledger daemon."""
    return Part("ledger", "fsdecloud.ledgerd", ("run", *extra))


def peer_part(name: str, extra: Sequence[str] = ()) -> Part:
    """Return the storage peer `name`."""
    return Part(f"peer-{name}", "fsdecloud.peerd", ("run", "--name", name, *extra))


def running_pid(paths: Paths, daemon: str) -> int | None:
    """Return the part's pid, None if it does not run. A part whose pid cannot be read yet has pid 0."""
    return lock_holder(paths.lock_file(daemon))


def running_daemons(paths: Paths) -> dict[str, int]:
    """Return name and pid of everything of this home that holds a lock."""
    found = {}
    for path in sorted(paths.runtime.glob("*.lock")):
        pid = lock_holder(path)
        if pid is not None:
            found[path.stem] = pid
    return found


def local_peers(paths: Paths) -> list[str]:
    """Return the names of the peers set up in this home, in the order people count."""
    directory = paths.state / "peers"
    names = [p.parent.name for p in directory.glob("*/peer.toml")] if directory.is_dir() else []
    return sorted(names, key=lambda name: [(0, int(t), "") if t.isdigit() else (1, 0, t) for t in _split(name)])


def _split(name: str) -> list[str]:
    words = [""]
    for character in name:
        if words[-1] and words[-1][-1].isdigit() != character.isdigit():
            words.append("")
        words[-1] += character
    return words


def start_part(
    paths: Paths,
    part: Part,
    *,
    timeout: float = START_TIMEOUT,
    secret: bytes | None = None,
    detached: bool = True,
) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
    """Start a part, wait until it serves, and return its process and what it said of itself.

    `secret` goes through a pipe whose number is passed as --secret-fd: never argv, never the environment. A part that is not
    `detached` keeps our session, terminal and stderr. Raises UsageError with the part's own words and exit code when it
    cannot serve, and kills it when it says nothing in time.
    """
    ready_reader, ready_writer = os.pipe()
    arguments = [*part.command(), "--ready-fd", str(ready_writer)]
    inherited = [ready_writer]
    secret_reader = -1
    log = None
    try:
        if secret is not None:
            secret_reader = _filled_pipe(secret)
            arguments += ["--secret-fd", str(secret_reader)]
            inherited.append(secret_reader)
        if detached:
            log = _open_log(paths.log_file(part.daemon))
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",  # no part keeps a file system busy, least of all its own mount
            env={k: v for k, v in os.environ.items() if k not in NOT_INHERITED},
            pass_fds=inherited,
            start_new_session=detached,
        )
    finally:
        os.close(ready_writer)
        if secret_reader >= 0:
            os.close(secret_reader)
        if log is not None:
            os.close(log)
    try:
        line = _read_line(ready_reader, timeout)
    except BaseException:
        process.terminate()  # the person gave up: so does the part
        raise
    finally:
        os.close(ready_reader)
    return process, _facts(paths, part, process, line, timeout)


def _facts(
    paths: Paths, part: Part, process: subprocess.Popen[bytes], line: bytes | None, timeout: float
) -> dict[str, Any]:
    log = paths.log_file(part.daemon)
    if line is None:
        process.kill()
        process.wait()
        raise UsageError(f"{part.daemon} does not answer after {timeout:g} s and was ended; see {log}", SYSTEM)
    try:
        facts = json.loads(line) if line else None
    except ValueError:
        facts = None
    if isinstance(facts, dict) and "error" not in facts:
        return facts
    try:
        code = process.wait(timeout=STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    if isinstance(facts, dict):
        given = facts.get("exit")
        raise UsageError(clean(str(facts["error"])), given if isinstance(given, int) and 0 < given < 256 else SYSTEM)
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    raise UsageError(f"{part.daemon} ended at its start ({how}): {_last_line(log)}", SYSTEM)


def _filled_pipe(data: bytes) -> int:
    """Return the reading end of a pipe that holds `data` (which fits into a pipe's buffer) and then ends."""
    reader, writer = os.pipe()
    try:
        os.write(writer, data)
    finally:
        os.close(writer)
    return reader


def _open_log(path: Path) -> int:
    make_private_dir(path.parent)
    if path.exists() and path.stat().st_size > LOG_MAX:
        path.replace(path.with_name(path.name + ".1"))
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _last_line(log: Path) -> str:
    try:
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            lines = [line for line in file.read().splitlines() if line.strip()]
    except OSError:
        lines = []
    return f"{clean(lines[-1]).strip()} (see {log})" if lines else f"it left no word in {log}"


def _read_line(fd: int, timeout: float) -> bytes | None:
    """Return one line, b"" if the other side ended without one, None when the time is over."""
    deadline = time.monotonic() + timeout
    data = b""
    while b"\n" not in data and len(data) < READY_MAX:
        readable, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        if not readable:
            return None
        more = os.read(fd, 4096)
        if not more:
            return b""
        data += more
    return data.partition(b"\n")[0]


def ensure_part(paths: Paths, part: Part, *, timeout: float = START_TIMEOUT) -> subprocess.Popen[bytes] | None:
    """Start a part unless it runs; return the process if it was started here. Raises UsageError as `start_part` does.

    Two commands may do this at once: the one that comes second finds the part running.
    """
    if running_pid(paths, part.daemon) is not None:
        return None
    try:
        process, _ = start_part(paths, part, timeout=timeout)
    except UsageError:
        if running_pid(paths, part.daemon) is None:
            raise
        return None
    return process


class Family:
    """A part's process and its children, held by pidfd so that their ends can be waited for. A context manager.

    A part lets go of its lock a moment before its process ends, and its children (agent, miner) end after it.
    """

    def __init__(self, pids: Iterable[int]) -> None:
        self._handles: list[int] = []
        for pid in _with_descendants(pids):
            try:
                self._handles.append(os.pidfd_open(pid))
            except OSError:
                continue  # it has just ended

    def wait(self, timeout: float) -> bool:
        """Wait until all have ended, at most `timeout` seconds; return whether they have."""
        deadline = time.monotonic() + timeout
        for handle in self._handles:
            readable, _, _ = select.select([handle], [], [], max(0.0, deadline - time.monotonic()))
            if not readable:
                return False
        return True

    def kill(self) -> None:
        """Kill all that are left."""
        for handle in self._handles:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)

    def __enter__(self) -> Family:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            os.close(handle)
        self._handles = []


def family_of(paths: Paths, daemons: Iterable[str]) -> Family:
    """Return the processes of the parts that run, and their children."""
    return Family([pid for pid in (running_pid(paths, daemon) for daemon in daemons) if pid])


def _with_descendants(pids: Iterable[int]) -> list[int]:
    """Return the processes, their children, and theirs (/proc/PID/task/TID/children needs a kernel option)."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                stat = Path("/proc", name, "stat").read_bytes()
            except OSError:
                continue
            children.setdefault(int(stat.rpartition(b")")[2].split()[1]), []).append(int(name))
    found = list(pids)
    for pid in found:
        found += children.get(pid, [])
    return found


def wait_gone(paths: Paths, daemon: str, timeout: float) -> bool:
    """Wait until nobody holds the part's lock; return whether that happened in time."""
    deadline = time.monotonic() + timeout
    while (pid := running_pid(paths, daemon)) is not None:
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        if pid:
            _wait_exit(pid, min(left, 1.0))
        else:
            time.sleep(min(left, 0.05))  # it is just starting: its pid comes in a moment
    return True


def _wait_exit(pid: int, timeout: float) -> None:
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return
    try:
        select.select([handle], [], [], timeout)
    finally:
        os.close(handle)


def signal_part(paths: Paths, daemon: str, number: int = signal.SIGTERM) -> bool:
    """Send a signal to the part; return whether it ran."""
    pid = running_pid(paths, daemon)
    if not pid:
        return False
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def stop_parts(paths: Paths, daemons: Sequence[str], *, timeout: float = STOP_TIMEOUT) -> list[str]:
    """End parts with SIGTERM, all at once; kill those that take longer than `timeout`, and return their names."""
    deadline = time.monotonic() + timeout
    with contextlib.ExitStack() as stack:
        families = {daemon: stack.enter_context(family_of(paths, [daemon])) for daemon in daemons}
        asked = [daemon for daemon in daemons if signal_part(paths, daemon)]
        killed = []
        for daemon in asked:
            if not families[daemon].wait(max(0.0, deadline - time.monotonic())):
                families[daemon].kill()
                families[daemon].wait(5.0)
                killed.append(daemon)
        return killed


def require_stopped(paths: Paths, daemon: str) -> None:
    """Raise StoreLocked, naming the pid, when the part runs."""
    pid = running_pid(paths, daemon)
    if pid is not None:
        raise StoreLocked(f"{daemon} is already running (pid {pid or 'unknown'})")
