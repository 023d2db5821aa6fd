"""What becomes of exceptions that nobody expected: counted, logged, and the task that had one is started again.

A bug in a background task costs that task a pause, never the mount. A task is restarted with a growing pause; each `run` of
the driver is written so that starting it again takes up whatever the last one left. Two kinds of failure end in *failsafe*
(`Core.fail_safe`: read-only, nothing is written to the disk any more): one in a task whose memory and disk may then
disagree (the journal), and one that a task without which nothing becomes durable keeps having.

Called only from the event loop. Not here: failures that are expected (`errors`), which each task handles itself.
"""

from __future__ import annotations

import logging
import re
import time
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import trio

log = logging.getLogger(__name__)

FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 60.0
"""Seconds between restarts of a task that fails at once: they double, so that a bug costs no processor time."""

SOUND_AFTER: Final = 120.0
"""A task that ran for this long is no longer taken to be failing."""

GIVE_UP: Final = 8
"""Failures in a row (about 25 s of pauses) after which a task without which nothing becomes durable ends in failsafe."""

_TRACES: Final = 3
_TRACE_WINDOW: Final = 60.0
"""Tracebacks logged for one place in this many seconds; the others are only counted."""

_TEXT_MAX: Final = 200
_CHAIN_MAX: Final = 5

_SECRET: Final = re.compile(r"""b'(?:[^'\\]|\\.)*'|b"(?:[^"\\]|\\.)*"|[0-9A-Fa-f]{16,}""")
"""Bytes and long hexadecimal numbers: keys look like that, and so do file names."""


@dataclass(slots=True)
class Incident:
    """What one place had so far."""

    where: str
    count: int = 0
    last: str = ""
    """The last one, as one line."""
    in_a_row: int = 0
    """For a task: failures without SOUND_AFTER seconds of work in between."""
    window: float = 0.0
    traces: int = 0
    silent: int = 0
    """For the limit on tracebacks: since when is counted, how many were logged, how many were not."""


class Incidents:
    """All unexpected exceptions of one mount, by place ("handler read", "task sealer"): as many as there are places."""

    def __init__(self) -> None:
        self._places: dict[str, Incident] = {}

    def note(self, where: str, error: BaseException) -> Incident:
        """Count an exception and log it, with its traceback if there were not many lately. Never raises an Exception."""
        incident = self._places.get(where)
        if incident is None:
            incident = self._places[where] = Incident(where)
        incident.count += 1
        try:
            incident.last = describe(error)
            self._log(incident, error)
        except Exception:  # noqa: BLE001 - no memory, no stack: it is counted, and the caller's request must still be answered
            incident.last = type(error).__name__
        return incident

    def count(self, kind: str) -> int:
        """Return how many exceptions the places of a kind had."""
        return sum(found.count for found in self._places.values() if found.where.startswith(kind + " "))

    def all(self) -> list[Incident]:
        """Return every place that had one."""
        return list(self._places.values())

    def _log(self, incident: Incident, error: BaseException) -> None:
        now = time.monotonic()
        if now - incident.window >= _TRACE_WINDOW:
            incident.window, incident.traces = now, 0
        if incident.traces >= _TRACES:
            incident.silent += 1
            return
        incident.traces += 1
        silent, incident.silent = incident.silent, 0
        more = f" ({silent} more since the last one shown)" if silent else ""
        log.error("unexpected error in %s, number %d%s\n%s", incident.where, incident.count, more, trace(error))


def describe(error: BaseException) -> str:
    """Return an exception as one line without anything that could be a key or a file's name."""
    found = first_leaf(error)
    text = _SECRET.sub("…", str(found)).replace("\n", " ")[:_TEXT_MAX]
    return f"{type(found).__name__}: {text}" if text else type(found).__name__


def trace(error: BaseException) -> str:
    """Return where an exception and its causes came from: places in the program, never the values there."""
    parts: list[str] = []
    chain: BaseException | None = first_leaf(error)
    while chain is not None and len(parts) < _CHAIN_MAX:
        parts.append("".join(traceback.format_tb(chain.__traceback__, -12)) + describe(chain))
        chain = chain.__cause__ or (None if chain.__suppress_context__ else chain.__context__)
    return "\nwhich came from\n".join(parts)


def first_leaf(error: BaseException) -> BaseException:
    """Return the first exception of a group that is no group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def is_thread_shortage(error: BaseException) -> bool:
    """Whether the system had no thread to give (fault 29): nothing was begun."""
    return isinstance(error, RuntimeError) and "can't start new thread" in str(error)


class Supervisor:
    """Runs the background tasks of one volume."""

    def __init__(self, incidents: Incidents, fail_safe: Callable[[str], None]) -> None:
        self.incidents = incidents
        self._fail_safe = fail_safe

    async def run(
        self, name: str, work: Callable[[], Awaitable[None]], *, vital: bool = False, doubtful: bool = False
    ) -> None:
        """Run `work`, again after each unexpected exception, until it returns or is cancelled.

        `vital`: nothing becomes durable without it, so failing again and again ends in failsafe. `doubtful`: after an
        exception in it, memory and disk may disagree, so the first one does.
        """
        where = f"task {name}"
        pause = FIRST_PAUSE
        while True:
            started = trio.current_time()
            try:
                await work()
                return
            except Exception as exc:  # noqa: BLE001 - the guard of design.md around everything that is no handler
                incident = self.incidents.note(where, exc)
                is_shortage = is_thread_shortage(first_leaf(exc))
            except BaseExceptionGroup as group:  # cancelled, and something else failed on the way out
                failed, cancelled = group.split(Exception)
                if failed is not None:  # else all tasks within it were just cancelled
                    self.incidents.note(where, failed)
                if cancelled is not None:
                    raise cancelled from None
                raise
            if trio.current_time() - started > SOUND_AFTER:
                incident.in_a_row, pause = 0, FIRST_PAUSE
            incident.in_a_row += 1
            if doubtful and not is_shortage:
                self._fail_safe(f"{name}: {incident.last}")
            elif vital and incident.in_a_row >= GIVE_UP:
                self._fail_safe(f"{name} failed {incident.in_a_row} times in a row: {incident.last}")
            await trio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def once(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Run something that need not succeed."""
        try:
            await work()
        except Exception as exc:  # noqa: BLE001 - as above
            self.incidents.note(f"task {name}", exc)

    def failing(self) -> list[str]:
        """Return what keeps failing now, for people."""
        return [
            f"{found.where} failed {found.in_a_row} times in a row: {found.last}"
            for found in self.incidents.all()
            if found.in_a_row >= 3
        ]
