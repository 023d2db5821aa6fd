"""The two targets of the POSIX suite, set up once: a plain ext4 in a loop file, and a mounted volume that others may enter."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.harness import Hung, Network

DEADLINE = 60.0
"""For one group of cases; the long ones get ten times as much."""


class Posix:
    """Runs groups of cases in one long-lived process for each target."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.cases = {"ext4": 0, "decloud": 0}
        self.seconds = {"ext4": 0.0, "decloud": 0.0}
        self._ext4 = network.mount_ext4("ext4", 1 << 30)
        network.run("chmod", "755", self._ext4)
        self._log = network.base / "runner.log"
        self._runners: dict[str, subprocess.Popen[bytes]] = {}
        self._lost: set[str] = set()
        self._mount_volume()

    def _mount_volume(self) -> None:
        self.network.up()
        self.network.remount("allow_other", "suid", "dev")
        self.network.run("chmod", "755", self.network.mountpoint)

    def _start(self, target: str) -> subprocess.Popen[bytes]:
        root = self._ext4 if target == "ext4" else self.network.mountpoint
        readonly, elsewhere = self.network.base / f"{target}-readonly", self.network.base / f"{target}-elsewhere"
        self.network.run("mkdir", readonly, elsewhere)
        self.network.run("mount", "--bind", root, readonly)
        self.network.run("mount", "-o", "remount,bind,ro", readonly)
        command = [sys.executable, "-m", "tests.posix.runner", target, root, readonly, elsewhere]
        with open(self._log, "ab") as log:
            return subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self.network.environment,
                cwd=self.network.work,
                start_new_session=True,
            )

    def run(self, target: str, module: str, name: str, *, thorough: bool = False) -> None:
        """Run a group and fail with the names of all failed cases."""
        assert target not in self._lost, "the process that runs the cases was lost in an earlier test"
        if target not in self._runners:
            self._runners[target] = self._start(target)
        answer = self._ask(target, [module, name, thorough], DEADLINE * 10 if thorough else DEADLINE)
        self.cases[target] += answer["checks"]
        self.seconds[target] += answer["seconds"]
        assert answer["checks"], "a group without a single case"
        print(f"{answer['checks']} cases in {answer['seconds']:.2f} s")
        failures = answer["failures"]
        assert not failures, f"{len(failures)} of {answer['checks']} cases:\n" + "\n".join(failures[:200])

    def _ask(self, target: str, request: list[Any], deadline: float) -> Any:
        runner = self._runners[target]
        assert runner.stdin is not None
        assert runner.stdout is not None
        runner.stdin.write(json.dumps(request).encode() + b"\n")
        runner.stdin.flush()
        line = b""
        end = time.monotonic() + deadline
        with selectors.DefaultSelector() as selector:
            selector.register(runner.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                ready = selector.select(end - time.monotonic()) if end > time.monotonic() else []
                part = os.read(runner.stdout.fileno(), 1 << 20) if ready else b""
                if not part:
                    self._lost.add(target)
                    state = "ended" if ready else f"did not answer within {deadline:g} s"
                    self.network._end(runner)
                    raise Hung(f"the runner of {request} {state}: {self._log.read_text()[-3000:]}{self.network.logs()}")
                line += part
        return json.loads(line)

    def close(self) -> None:
        """End the runners and unmount what was mounted beside the volume."""
        for target, runner in self._runners.items():
            assert runner.stdin is not None
            assert runner.stdout is not None
            runner.stdin.close()
            runner.wait(20)
            runner.stdout.close()
            self.network.run("umount", self.network.base / f"{target}-readonly")
        self.network.run("umount", self._ext4)


@pytest.fixture(scope="session")
def posix(request: pytest.FixtureRequest) -> Iterator[Posix]:
    """The suite's targets."""
    with Network(peers=1) as network:
        suite = Posix(network)
        yield suite
        suite.close()
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        shown = ", ".join(f"{name} {suite.cases[name]} cases in {suite.seconds[name]:.1f} s" for name in suite.cases)
        reporter.write_line(f"\nPOSIX suite: {shown}")
