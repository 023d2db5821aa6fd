"""What `make test` and `make test-long` run: some pytest processes side by side, because much of the time one would only wait.

    python -m tests.run MARKS [pytest's arguments]

The output of each is shown when it ends. With arguments there is one process with just those. The exit code is the first
that is not 0.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

WORKERS: Final = 4
"""Processes at once: two cores are busy with that, while one of them waits for a network to notice what was done to it."""

NOTHING: Final = 5
"""pytest's exit code when the marks leave no test."""

CLUSTER: Final = sorted(Path("tests/cluster").glob("test_*.py"))
LOADED: Final = tuple(str(path) for path in CLUSTER if "Loaded" in path.read_text())
"""Those that share a network with data on it, which takes a while to make."""

REST: Final = tuple(str(path) for path in CLUSTER if str(path) not in LOADED)
HALF: Final = (len(CLUSTER) + 3) // 2

JOBS: Final[tuple[tuple[str, ...], ...]] = (
    REST[:HALF],
    LOADED + REST[HALF:],
    ("tests/fuse",),
    ("tests/component",),
    ("tests/network",),
    ("tests/crash",),
    ("tests/programs",),
    ("tests/power",),
    ("tests/differential",),
    ("tests/unit",),
    ("tests/simulation",),
    ("tests/posix",),
)
"""What a process gets, the longest first."""


class Runner:
    """The jobs and what came of them."""

    def __init__(self, marks: str) -> None:
        self._command = [sys.executable, "-m", "pytest", "--durations=8", "-m", marks]
        self._jobs: queue.SimpleQueue[tuple[str, ...]] = queue.SimpleQueue()
        self._output = threading.Lock()
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._is_ending = False
        self.codes: list[int] = []
        for job in JOBS:
            self._jobs.put(job)

    def run(self) -> None:
        """Run all jobs; end them when interrupted, and show what they said."""
        threads = [threading.Thread(target=self._work) for _ in range(WORKERS)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        finally:
            self._is_ending = True
            for process in list(self._running.values()):
                process.terminate()
            for thread in threads:
                thread.join()

    def _work(self) -> None:
        while not self._is_ending:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return
            started = time.monotonic()
            with self._output:
                print(f"{' '.join(job)} begins", flush=True)
            with tempfile.TemporaryFile() as output:
                process = subprocess.Popen(
                    [*self._command, *job], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
                )
                self._running[process.pid] = process
                code = process.wait()
                del self._running[process.pid]
                output.seek(0)
                with self._output:
                    self.codes.append(0 if code == NOTHING else code)
                    sys.stdout.buffer.write(output.read())
                    sys.stdout.buffer.write(f"{' '.join(job)}: {time.monotonic() - started:.0f} s\n\n".encode())
                    sys.stdout.flush()


def main() -> int:
    """Run the tests and return the exit code."""
    marks, *arguments = sys.argv[1:]
    if arguments:
        return subprocess.run([sys.executable, "-m", "pytest", "-m", marks, *arguments], check=False).returncode
    missing = [name for name in _test_directories() if not any(path.startswith(name) for job in JOBS for path in job)]
    if missing:
        print(f"tests/run.py does not know {', '.join(missing)}", file=sys.stderr)
        return 1
    runner = Runner(marks)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    runner.run()
    return next(filter(None, runner.codes), 0 if len(runner.codes) == len(JOBS) else 1)


def _test_directories() -> list[str]:
    """Return the directories that hold tests."""
    found = []
    for entry in os.scandir("tests"):
        if entry.is_dir() and any(
            name.startswith("test_") for _path, _dirs, names in os.walk(entry.path) for name in names
        ):
            found.append(f"tests/{entry.name}")
    return sorted(found)


if __name__ == "__main__":
    sys.exit(main())
