"""`decloud peer status` of a real peer beside a real ledger daemon: what its key has, and who runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fsdecloud.config import HOME_VARIABLE
from fsdecloud.crypto import sign
from fsdecloud.ledger.transactions import sign_transfer
from fsdecloud.peerd.setup import load_seed
from fsdecloud.wire.ledgerapi import Account, KeyQuery
from tests.cluster.ledgernet import Daemon, quick_network, wait_until


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Daemon]:
    """A ledger daemon that mines, in a home of its own."""
    daemon = Daemon(tmp_path / "home", quick_network())
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.close()


def decloud(ledger: Daemon, *args: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "fsdecloud.cli.main", *args],
        env={**os.environ, HOME_VARIABLE: str(ledger.home)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def fields(ledger: Daemon) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(decloud(ledger, "peer", "status", "--json", "a"))
    return found


def test_fault_076_status_shows_the_balance_and_the_operator(ledger: Daemon) -> None:
    """And neither ever waits for a ledger daemon that is gone, or stands still."""
    decloud(ledger, "peer", "init", "a", "--listen", "127.0.0.1:0", "--operator", "somebody")
    operator = sign.public_key((ledger.paths.config / "operators" / "somebody.key").read_bytes()).hex()
    peer = sign.public_key(load_seed(ledger.paths, "a"))
    process = subprocess.Popen(
        [sys.executable, "-m", "fsdecloud.peerd", "run", "--name", "a"],
        env={**os.environ, HOME_VARIABLE: str(ledger.home)},
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(ledger.paths.socket("peer-a").exists, "the peer runs")
        wait_until(lambda: f"  operator: {operator}\n" in decloud(ledger, "peer", "status"), "the ledger says so")
        shown = decloud(ledger, "peer", "status")
        assert "  earnings: its key has 0 in the ledger; it makes no deals, the price is zero\n" in shown
        found = fields(ledger)
        assert (found["balance"], found["operator"], found["earnings"]) == (0, operator, None)

        miner = (ledger.paths.ledger_state / "node.key").read_bytes()
        account = ledger.call("account", KeyQuery(sign.public_key(miner)), Account)
        ledger.submit(sign_transfer(ledger.status().network, miner, peer, 1234, 5, account.nonce))
        wait_until(lambda: fields(ledger)["balance"] == 1234, "what it was paid is in a block")

        assert ledger.process is not None
        ledger.process.send_signal(signal.SIGSTOP)
        assert fields(ledger)["balance"] is None
        ledger.process.send_signal(signal.SIGCONT)
        ledger.kill()
        assert "  earnings: the ledger cannot be reached; it makes no deals" in decloud(ledger, "peer", "status")
        found = fields(ledger)
        assert (found["balance"], found["operator"]) == (None, operator)
    finally:
        process.terminate()
        assert process.wait(30) == 0
