"""Mining as people start it: several processes, a share of a core, other machines, and the commands that show it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsdecloud.config import HOME_VARIABLE
from fsdecloud.crypto import sign
from fsdecloud.ledgerd.settings import settings_file, token_file
from fsdecloud.wire.agentapi import Empty
from fsdecloud.wire.ledgerapi import Account, KeyQuery, ServicesInfo
from tests.cluster.ledgernet import DEADLINE, Daemon, anchor, quick_network, wait_until

VOLUME = bytes([2]) * 32


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    document = quick_network()
    made = Daemon(tmp_path / "home", document)
    made.document = document
    try:
        yield made
    finally:
        made.close()


def decloud(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fsdecloud.cli.main", *arguments],
        env={**os.environ, HOME_VARIABLE: os.fspath(home)},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


def record(daemon: Daemon, sequence: int) -> None:
    daemon.submit(anchor(daemon.document, VOLUME, sequence))
    wait_until(lambda: daemon.status().height >= sequence, f"block {sequence}")


def services(daemon: Daemon) -> ServicesInfo:
    found = daemon.call("services", Empty(), ServicesInfo)
    assert isinstance(found, ServicesInfo)
    return found


def test_a_miner_of_another_machine(daemon: Daemon, tmp_path: Path) -> None:
    """A daemon that mines nothing itself; the miner has a home of its own and a copy of the token."""
    daemon.start("--mine-workers", "0", "--work", "0")
    url = services(daemon).work
    elsewhere = tmp_path / "elsewhere"
    refused = decloud(elsewhere, "mine", url)
    assert (refused.returncode, "--token-file" in refused.stderr) == (1, True)
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text("00" * 32)
    refused = decloud(elsewhere, "mine", url, "--token-file", os.fspath(token))
    assert (refused.returncode, "the token is not this daemon's" in refused.stderr) == (1, True)
    shutil.copyfile(token_file(daemon.paths), token)
    miner = subprocess.Popen(
        [
            sys.executable, "-m", "fsdecloud.cli.main", "mine", url, "--token-file", os.fspath(token),
            "--name", "far away", "--duty", "50%",
        ],
        env={**os.environ, HOME_VARIABLE: os.fspath(elsewhere)},
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        wait_until(lambda: len(services(daemon).miners) == 1, "the miner is connected")
        assert daemon.children() == [], "nothing is mined here"
        for sequence in (1, 2, 3):
            record(daemon, sequence)
        wait_until(lambda: services(daemon).miners[0].blocks == 3, "they are the miner's")
        shown = decloud(daemon.home, "ledger", "mining")
        assert "far away" in shown.stdout
        assert url in shown.stdout
        [facts] = json.loads(decloud(daemon.home, "ledger", "mining", "--json").stdout)["miners"]
        assert (facts["name"], facts["blocks"]) == ("far away", 3)
        key = sign.public_key((daemon.paths.ledger_state / "node.key").read_bytes())
        assert daemon.call("account", KeyQuery(key), Account).balance == 3 * daemon.document.subsidy
        miner.send_signal(signal.SIGTERM)
        _, said = miner.communicate(timeout=DEADLINE)
        assert miner.returncode == 0, said
        assert "found a block; 3 so far" in said
        wait_until(lambda: services(daemon).miners == (), "the daemon has noticed")
    finally:
        if miner.poll() is None:
            miner.kill()
            miner.communicate()
    daemon.stop()


def test_several_processes_with_settings_of_a_file(daemon: Daemon) -> None:
    settings_file(daemon.paths).write_text('mine_workers = 2\nmine_duty = "30%"\nexplorer = 0\n')
    daemon.start("--mine-nice", "3")
    assert daemon.children() == [], "no mining process before there is work"
    record(daemon, 1)
    assert (services(daemon).workers, services(daemon).duty) == (2, 30)
    wait_until(lambda: len(daemon.children()) == 2, "two processes")
    own = os.getpriority(os.PRIO_PROCESS, daemon.process.pid)
    wait_until(
        lambda: {os.getpriority(os.PRIO_PROCESS, pid) for pid in daemon.children()} == {min(19, own + 3)}, "they yield"
    )
    assert decloud(daemon.home, "ledger", "explorer").stdout == services(daemon).explorer + "\n"
    assert "2 processes here, 30% of a core each" in decloud(daemon.home, "ledger", "mining").stdout
    daemon.stop()
    settings_file(daemon.paths).write_text("mine_workers = 1000\n")
    code, error = daemon.fail()
    assert (code, "ledgerd.toml" in error) == (1, True)
    settings_file(daemon.paths).unlink()
    assert daemon.fail("--explorer", "0.0.0.0:0")[0] == 1
    daemon.start("--no-mine")
    shown = decloud(daemon.home, "ledger", "explorer")
    assert (shown.returncode, "--explorer PORT" in shown.stderr) == (1, True)
    daemon.stop()
