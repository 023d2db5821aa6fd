"""Ledger daemons as processes, each in a home of its own, for the tests of this directory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from fsdecloud.cli.client import Client
from fsdecloud.config import HOME_VARIABLE, Paths, find_paths
from fsdecloud.crypto import sign
from fsdecloud.ledger.network import NetworkDocument, embedded_network, network_id
from fsdecloud.ledger.transactions import NO_LINK, link, sign_anchor
from fsdecloud.ledgerd.setup import init_ledger
from fsdecloud.wire.agentapi import Empty
from fsdecloud.wire.ledgerapi import AnchorList, AnchorQuery, LedgerStatus, SubmitTx, TxResult

DEADLINE = 60.0


def quick_network() -> NetworkDocument:
    """The embedded network with blocks of about a thousand hashes."""
    easy = ((1 << 256) // 1024 - 1).to_bytes(32)
    document = embedded_network("test", os.urandom(32), int(time.time()) - 3600)
    return msgspec.structs.replace(document, first_target=easy, easiest_target=easy, stamp_bits=4)


def wait_until(condition: Callable[[], bool], what: str, deadline: float = DEADLINE) -> None:
    """Look again and again until it is so; fail after `deadline` seconds."""
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, f"still not after {deadline:g} s: {what}"
        time.sleep(0.02)


class Daemon:
    """One ledger daemon. `start` may be called again after `stop` or `kill`."""

    def __init__(self, home: Path, document: NetworkDocument | None = None) -> None:
        self.home = home
        self.paths: Paths = find_paths({HOME_VARIABLE: str(home)})
        self.process: subprocess.Popen[bytes] | None = None
        self.facts: dict[str, Any] = {}
        self.log = home.with_suffix(".log")
        if document is not None:
            init_ledger(self.paths, document)

    def start(self, *args: str) -> dict[str, Any]:
        """Start it and return its ready line (or its error)."""
        read, write = os.pipe()
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fsdecloud.ledgerd", "run", "--ready-fd", str(write), *args],
                env={**os.environ, HOME_VARIABLE: str(self.home)},
                pass_fds=[write],
                stderr=log,
            )
        os.close(write)
        with open(read, "rb") as ready:
            self.facts = json.loads(ready.readline() or b"{}")
        return self.facts

    def fail(self, *args: str) -> tuple[int, str]:
        """Start it, expecting an error; return exit code and message."""
        facts = self.start(*args)
        assert self.process is not None
        code = self.process.wait(DEADLINE)
        assert facts["exit"] == code
        return code, facts["error"]

    def stop(self) -> None:
        """End it as systemd does; it must end well."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(DEADLINE) == 0, self.log.read_text()[-3000:]

    def kill(self) -> None:
        """Kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(DEADLINE)

    def close(self) -> None:
        """End it if it runs."""
        if self.process is not None and self.process.poll() is None:
            self.kill()

    @property
    def url(self) -> str:
        return str(self.facts["url"])

    def call(self, method: str, params: object, result: type[Any]) -> Any:
        with Client(self.paths.socket("ledger")) as client:
            return client.call(method, params, result)

    def status(self) -> LedgerStatus:
        status = self.call("status", Empty(), LedgerStatus)
        assert isinstance(status, LedgerStatus)
        return status

    def submit(self, tx: bytes) -> TxResult:
        result = self.call("submit", SubmitTx(tx), TxResult)
        assert isinstance(result, TxResult)
        return result

    def anchors(self, volume: bytes) -> list[bytes]:
        found = self.call("anchors", AnchorQuery(sign.public_key(volume), 1, 256), AnchorList)
        return [anchor.tx for anchor in found.anchors]

    def children(self) -> list[int]:
        """Process ids of its children."""
        assert self.process is not None
        lists = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [int(word) for path in lists for word in path.read_text().split()]

    def cpu_ticks(self) -> int:
        """Processor time it used so far, in clock ticks."""
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])


def anchor(document: NetworkDocument, volume: bytes, sequence: int, *, mark: int = 0, lease_expiry: int = 0) -> bytes:
    """A volume's anchor; `mark` makes another one of the same place."""
    key = sign.public_key(volume)
    return sign_anchor(
        network_id(document),
        volume,
        bytes([7]) * 32,
        sequence=sequence,
        commitment=sequence.to_bytes(31) + bytes([mark]),
        previous=NO_LINK if sequence == 1 else link(key, sequence - 1, (sequence - 1).to_bytes(31) + bytes([mark])),
        lease_expiry=lease_expiry,
        payload=os.urandom(1024),
        bits=4,
    )


def agree(*daemons: Daemon) -> bool:
    """Tell whether all have the same tip and nothing waits."""
    found = [daemon.status() for daemon in daemons]
    return len({status.tip for status in found}) == 1 and not any(status.mempool for status in found)
