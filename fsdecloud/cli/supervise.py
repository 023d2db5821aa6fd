"""Keeping the parts of `decloud up` running, and showing them.

Waits for the ends of processes (pidfd_open(2)) and for signals, so that it costs nothing while all is well. A part that died
is started again after a pause that doubles while it keeps dying.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from fsdecloud.cli import parts
from fsdecloud.cli.output import clean, note
from fsdecloud.cli.view import View, as_lines, take_view
from fsdecloud.config import Paths
from fsdecloud.errors import FsdecloudError

if TYPE_CHECKING:
    from rich.live import Live

PAUSE_FIRST: Final = 0.5
PAUSE_MAX: Final = 60.0
STEADY: Final = 60.0
"""A part that lived this long starts its next life without a pause."""

REFRESH: Final = 2.0
"""Seconds between looks at the state, on a terminal."""

REPORT: Final = 10.0
"""Seconds between lines when there is no terminal."""


@dataclass(slots=True)
class Watched:
    """One part: how to start it, and its recent history."""

    daemon: str
    start: Callable[[], None]
    """Starts the part unless it runs. Raises FsdecloudError."""
    pidfd: int = -1
    pid: int = 0
    started: float = 0.0
    pause: float = 0.0
    due: float = field(default=0.0)
    """When to start it again, while it is down."""

    def look(self, paths: Paths) -> bool:
        """Find the running process; return whether there is one."""
        pid = parts.running_pid(paths, self.daemon)
        if not pid:
            return False
        try:
            self.pidfd = os.pidfd_open(pid)
        except OSError:
            return False
        self.pid = pid
        self.started = time.monotonic()
        return True

    def forget(self) -> None:
        """Let go of a process that ended."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
        self.pidfd, self.pid = -1, 0


class Supervisor:
    """Runs until SIGINT, SIGTERM or SIGHUP. One thread; starting a part blocks it for as long as that takes."""

    def __init__(self, paths: Paths, volume: str, watched: list[Watched]) -> None:
        self._paths = paths
        self._volume = volume
        self._watched = watched
        self._wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self._wake_writer, False)
        os.set_blocking(self._wake_reader, False)
        self._last_report = ""

    def run(self) -> None:
        """Watch until a signal says to end."""
        old_wakeup = signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)
        old = {number: signal.signal(number, _ignore) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            if sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb":
                self._run_live()
            else:
                self._loop(self._report, REPORT)
        finally:
            signal.set_wakeup_fd(old_wakeup)
            for number, handler in old.items():
                signal.signal(number, handler)
            for part in self._watched:
                part.forget()
            os.close(self._wake_reader)
            os.close(self._wake_writer)

    def _run_live(self) -> None:
        from rich.console import Console
        from rich.live import Live

        with Live(console=Console(highlight=False), auto_refresh=False, transient=True) as live:
            self._loop(lambda: self._show(live), REFRESH)

    def _loop(self, show: Callable[[], None], every: float) -> None:
        show_at = 0.0
        while True:
            now = time.monotonic()
            for part in self._watched:
                if part.pidfd < 0 and part.due <= now:
                    self._revive(part)
            now = time.monotonic()
            if now >= show_at:
                show()
                show_at = time.monotonic() + every
            ended = self._wait(min([show_at, *(p.due for p in self._watched if p.pidfd < 0)]) - time.monotonic())
            if ended:
                return

    def _wait(self, timeout: float) -> bool:
        """Wait for an end of a part or for a signal; return whether a signal came."""
        poller = select.poll()
        poller.register(self._wake_reader, select.POLLIN)
        by_fd = {part.pidfd: part for part in self._watched if part.pidfd >= 0}
        for fd in by_fd:
            poller.register(fd, select.POLLIN)
        signalled = False
        for fd, _ in poller.poll(max(0.0, timeout) * 1000):
            if fd == self._wake_reader:
                signalled = bool(os.read(fd, 64))
            else:
                self._died(by_fd[fd])
        return signalled

    def _died(self, part: Watched) -> None:
        _reap(part.pid)
        lived = time.monotonic() - part.started
        part.pause = 0.0 if lived >= STEADY else min(PAUSE_MAX, max(PAUSE_FIRST, part.pause * 2))
        part.due = time.monotonic() + part.pause
        note(f"{part.daemon} (pid {part.pid}) ended; it is started again (log: {self._paths.log_file(part.daemon)})")
        part.forget()

    def _revive(self, part: Watched) -> None:
        if part.look(self._paths):
            return
        try:
            part.start()
        except FsdecloudError as exc:
            part.pause = min(PAUSE_MAX, max(PAUSE_FIRST, part.pause * 2))
            part.due = time.monotonic() + part.pause
            note(f"{part.daemon} does not start: {clean(str(exc))}; next try in {part.pause:g} s")
            return
        if not part.look(self._paths):
            part.due = time.monotonic() + PAUSE_FIRST

    def _view(self) -> View:
        running = parts.running_pid(self._paths, f"driver-{self._volume}") is not None
        return take_view(self._paths, self._volume if running else None)

    def _show(self, live: Live) -> None:
        from rich.text import Text

        text = "\n".join(as_lines(self._view()))
        if text != self._last_report:
            self._last_report = text
            live.update(
                Text(f"{text}\n\nCtrl-C unmounts and stops everything; decloud down does so from elsewhere."),
                refresh=True,
            )

    def _report(self) -> None:
        """Say what changed, in one line."""
        view = self._view()
        driver = view.driver
        lines = as_lines(view)
        text = "; ".join(line.strip() for line in (lines[:3] if driver is not None else lines[:1]))
        problems = "".join(f"; {problem}" for problem in view.problems)
        if text + problems != self._last_report:
            self._last_report = text + problems
            print(self._last_report, flush=True)


def _ignore(_number: int, _frame: object) -> None:
    """Let the wake-up descriptor tell (a handler must exist for that)."""


def _reap(pid: int) -> None:
    """Take a child's exit status, so that it leaves no zombie. Parts started elsewhere are not our children."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return
