"""The machines themselves: what the wire does to packets, and that nothing of it is left after a kill."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import cleanup
from tests.cluster.harness import ROOT
from tests.network.lab import CLIENT, LEDGER, Lab

ECHO = """
import socket, sys
server = socket.create_server(("10.0.101.1", 99))
print("ready", flush=True)
while True:
    connection, _ = server.accept()
    while data := connection.recv(1 << 16):
        connection.sendall(data)
"""
ASK = """
import socket, sys, time
connection = socket.create_connection(("10.0.101.1", 99), float(sys.argv[2]))
begin = time.monotonic()
left = size = int(sys.argv[1])
connection.sendall(bytes(size))
while left:
    left -= len(connection.recv(left))
print(time.monotonic() - begin)
"""


@pytest.fixture(scope="module")
def bare() -> Iterator[Lab]:
    """Machines without programs, but for one that sends back what it gets."""
    with Lab(peers=0) as lab:
        log = lab.work / "echo.log"
        lab.start(*lab.enter(LEDGER), sys.executable, "-c", ECHO, log=log)
        lab.wait_until(lambda: "ready" in log.read_text(), 20, "the echo serves")
        yield lab
        for process in lab._started:
            process.kill()


def ask(lab: Lab, size: int, patience: float = 20.0) -> float:
    """Return how many seconds an echo takes, -1 when none comes within `patience` seconds."""
    found = lab.run(*lab.enter(CLIENT), sys.executable, "-c", ASK, str(size), str(patience), check=False)
    return float(found.out) if found.code == 0 else -1.0


def test_a_wire_delays_loses_and_cuts_each_direction(bare: Lab) -> None:
    assert ask(bare, 1000) >= 0
    bare.rule(CLIENT, LEDGER, delay=0.2)
    assert ask(bare, 1000) >= 0.2
    bare.between(CLIENT, LEDGER, delay=0.2)
    assert ask(bare, 1000) >= 0.4
    bare.between(CLIENT, LEDGER, loss=0.05, repeat=0.05, reorder=0.2, delay=0.001)
    before = bare.tell(do="count")["dropped"]
    assert ask(bare, 1_000_000) > 0, "whole and in order, because TCP makes it so"
    assert bare.tell(do="count")["dropped"] > before
    for senders, receivers in ((CLIENT, LEDGER), (LEDGER, CLIENT)):
        bare.heal()
        bare.rule(senders, receivers, cut=True)
        assert ask(bare, 1, 1.0) < 0
    bare.heal()
    assert ask(bare, 1000) >= 0


def test_nothing_is_left_after_a_kill(tmp_path: Path) -> None:
    code = (
        "from tests.network.lab import Lab; import time; lab = Lab(peers=1);"
        "lab.start(*lab.enter('client'), 'sleep', '300'); print(lab.base, lab.wire.pid, flush=True); time.sleep(300)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            base, wire = process.stdout.readline().split()
            end = time.monotonic() + 30
            while (
                len(cleanup.tagged_processes(Path(base))) < 2
            ):  # one that begins another program is nobody for a moment
                assert time.monotonic() < end
                time.sleep(0.1)
        finally:
            process.kill()
    end = time.monotonic() + 30
    while cleanup.tagged_processes(Path(base)) or cleanup.is_alive(int(wire)) or Path(base).exists():
        assert time.monotonic() < end, cleanup.tagged_processes(Path(base))
        time.sleep(0.1)
