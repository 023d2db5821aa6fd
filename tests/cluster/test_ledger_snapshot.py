"""A ledger daemon as a process that begins with a state from others, is killed on its way, and ends with the whole chain."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from fsdecloud.errors import LedgerUnavailable
from fsdecloud.ledger.snapshot import choose_pivot
from fsdecloud.ledgerd.setup import chain_path
from fsdecloud.ledgerd.verify import offline_verify
from fsdecloud.store.chain import open_chain
from fsdecloud.wire.ledgerapi import SnapshotProgress
from tests.bench.ledgersync import Chain, fast_network
from tests.cluster.ledgernet import Daemon, wait_until

BLOCKS, DEPTH = 400, 20
OLDEST = (1).to_bytes(32)
"""The seed of the first volume: its only anchor is in block 1."""


@pytest.fixture
def daemons(tmp_path: Path):
    document = msgspec.structs.replace(fast_network(), finality_depth=DEPTH)
    others = [Daemon(tmp_path / name, document) for name in ("one", "two")]
    with open_chain(chain_path(others[0].paths), document) as store:
        Chain(document, store).extend(BLOCKS, 1)
    shutil.copytree(chain_path(others[0].paths), chain_path(others[1].paths))
    newcomer = Daemon(tmp_path / "new", document)
    yield *others, newcomer
    for daemon in (*others, newcomer):
        daemon.close()


def test_fault_116_a_daemon_that_is_killed_on_its_way_ends_with_the_whole_chain(daemons):
    *others, newcomer = daemons
    for other in others:
        other.start("--no-mine")
    pivot = choose_pivot(BLOCKS, DEPTH)
    newcomer.start("--no-mine", "--snapshot")  # nobody to take it from, yet
    assert newcomer.status().snapshot == SnapshotProgress("headers", 0, 0, 0)
    with pytest.raises(LedgerUnavailable, match="fetching its first state"):
        newcomer.anchors(OLDEST)
    newcomer.kill()
    bootstrap = [word for other in others for word in ("--bootstrap", other.url)]
    newcomer.start("--no-mine", *bootstrap)
    wait_until(lambda: newcomer.status().height >= pivot, "it has the state")
    newcomer.kill()
    assert offline_verify(newcomer.paths).height >= pivot  # what is here is whole, headers among it
    newcomer.start("--no-mine", *bootstrap)
    wait_until(lambda: newcomer.status().history == 1, "it has the history")
    newcomer.kill()
    newcomer.start("--no-mine", *bootstrap)
    wait_until(
        lambda: newcomer.status().snapshot == SnapshotProgress("verified", pivot, pivot, pivot), "it is verified"
    )
    wait_until(lambda: newcomer.status().tip == others[0].status().tip, "it has the tip")
    assert newcomer.anchors(OLDEST) == others[0].anchors(OLDEST) != []
    newcomer.stop()
    others[0].stop()
    assert offline_verify(newcomer.paths) == offline_verify(others[0].paths)
