"""Rounds of the crash manifest: write, kill, mount again, compare (faults.md 8.1).

    python -m tests.crash.rounds [COUNT [SEED]]        by hand; prints one line a round and stops at the first loss

One network serves all rounds. What is random (the instant, what is killed) comes from the seed alone; what the processes
do at that instant does not, so a failure names the seed and the round, and shows what was found.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fsdecloud.cli import client
from fsdecloud.config import find_paths
from fsdecloud.wire.agentapi import Empty
from fsdecloud.wire.controlapi import DriverStatus
from tests.cluster import cleanup
from tests.cluster.harness import Network, remove_tree
from tests.crash.checker import acknowledged
from tests.crash.writer import STRICT

KINDS: Final = ("driver", "driver", "driver", "driver and agent", "driver and agent", "agent", "agent", "everything")
FSCK_EVERY: Final = 5
CLEAN: Final = {"lost": [], "mixed": [], "holes": [], "order": []}


@dataclass
class Round:
    """What one round found."""

    number: int
    kind: str
    directory: Path
    manifest: Path
    seed: str
    operations: int
    dirty: int
    loose: tuple[int, int]


class Rounds:
    """Kills, and what has to hold after each."""

    def __init__(self, network: Network, seed: int) -> None:
        self.network = network
        self.seed = seed
        self.done: list[Round] = []
        self.volume = network.volume
        self._paths = find_paths({"FSDECLOUD_HOME": str(network.home)})

    def status(self) -> DriverStatus:
        """Ask the driver, without starting a program for it."""
        socket = self._paths.socket(f"driver-{self.volume}")
        return client.call(socket, "status", Empty(), DriverStatus, timeout=20)

    def run(self, number: int, kind: str = "") -> Round:
        """Write under load, kill, mount again, compare. Raises AssertionError that names seed and round."""
        chooser = random.Random(f"{self.seed}/{number}")
        chosen = chooser.choice(KINDS)
        kind, delay = kind or chosen, chooser.uniform(0.0, 1.2)
        name = f"round-{number:04}"
        where = f"seed {self.seed}, round {number} ({kind}, {delay:.3f} s)"
        manifest = self.network.work / name
        manifest.mkdir()
        answer = manifest / "answer"
        directory = self.network.mountpoint / name
        seed = f"{self.seed}/{number}"
        writer = self.network.start(sys.executable, "-m", "tests.crash.writer", directory, manifest, seed, log=answer)
        self.network.wait_until(
            lambda: all(acknowledged(manifest / plan) for plan in STRICT), 30, f"writes are acknowledged: {where}"
        )
        end = time.monotonic() + delay
        while time.monotonic() < end:
            time.sleep(max(0.0, min(0.05, end - time.monotonic())))
        dirty = self._kill(kind, writer.pid)
        if kind == "agent":
            self.network.wait_until(lambda: self.status().agent_pid, 30, f"the agent is started again: {where}")
            (manifest / "stop").touch()
        code = self.network.wait_for_exit(writer, 60, f"the writer of {where}")
        said = answer.read_text()
        # A store to a mapped page of a dead mount ends the program, as on any disk that is pulled out.
        assert (code == 0 and not json.loads(said)["failures"]) or code == -signal.SIGBUS, f"{where}: {code} {said}"
        counts = {plan: acknowledged(manifest / plan) for plan in STRICT}
        assert all(counts.values()), f"{where} proved nothing: {counts}"
        if kind == "everything":
            self.network.wait_until(lambda: not self.network.processes(), 20, "all processes end")
        if kind != "agent" and number % FSCK_EVERY == 0:  # fsck would find nothing to repair in what the kill left
            self.network.decloud("fsck", self.volume, "--offline")
        if kind == "everything":
            self.network.up()
        elif kind != "agent":
            self.network.decloud("mount", self.volume, self.network.mountpoint)
        found = self._check(directory, manifest, seed, where)
        operations, loose = found.pop("operations"), tuple(found.pop("loose"))
        assert operations == sum(counts.values()), where
        result = Round(number, kind, directory, manifest, seed, operations, dirty, loose)
        self.done.append(result)
        return result

    def check_again(self, count: int) -> None:
        """Compare everything of that many rounds, chosen by the seed, once more."""
        for one in random.Random(self.seed).sample(self.done, count):
            found = self._check(one.directory, one.manifest, one.seed, f"seed {self.seed}, round {one.number}, again")
            assert found["operations"] == one.operations

    def forget(self) -> None:
        """Remove what the rounds so far wrote."""
        for one in self.done:
            self.network.run("rm", "-rf", one.directory)
            remove_tree(one.manifest)
        self.done.clear()

    def _kill(self, kind: str, writer: int) -> int:
        """Kill as soon as something is dirty; return the bytes that were not on all peers a moment before."""

        def dirty() -> DriverStatus | None:
            status = self.status()
            return status if status.dirty.bytes + status.staged.bytes else None

        status = self.network.wait_until(dirty, 30, "something is dirty")  # fault 3
        assert status is not None
        victims = {
            "driver": [status.driver_pid],
            "driver and agent": [status.driver_pid, status.agent_pid],
            "agent": [status.agent_pid],
            "everything": [pid for pid in self.network.processes() if pid != writer],
        }[kind]
        for pid in victims:
            if pid:
                cleanup.send_signal(pid, signal.SIGKILL)
        self.network.wait_until(lambda: not any(cleanup.is_alive(pid) for pid in victims if pid), 20, "they end")
        return status.dirty.bytes + status.staged.bytes

    def _check(self, directory: Path, manifest: Path, seed: str, where: str) -> dict[str, Any]:
        result = self.network.run(
            sys.executable, "-m", "tests.crash.checker", directory, manifest, seed, deadline=120, check=False
        )
        assert result.code == 0, f"{where}: {result.describe()}"
        found: dict[str, Any] = result.json()
        assert CLEAN.items() <= found.items(), f"{where}: {found}{self.network.logs()}"
        return found


def main() -> None:
    """Run rounds by hand."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else int.from_bytes(os.urandom(4), "big")
    started = time.monotonic()
    with Network(peers=3) as network:
        network.up()
        rounds = Rounds(network, seed)
        operations = 0
        for number in range(count):
            one = rounds.run(number)
            operations += one.operations
            shown = (
                f"{one.operations} operations, {one.dirty} bytes dirty, {one.loose[1]} of {one.loose[0]} loose files"
            )
            print(f"{time.monotonic() - started:7.1f} s  round {number} ({one.kind}): {shown}", flush=True)
            if number % 10 == 9:
                rounds.forget()
        network.sync("stored")
        assert rounds.status().handler_errors == 0
        print(f"seed {seed}: {count} kills, {operations} acknowledged operations, nothing lost")


if __name__ == "__main__":
    main()
