"""Daemons as they run leave a chain for one with more work: what they hold then is what a fresh replay of it gives."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fsdecloud.crypto import sign
from fsdecloud.ledger.blocks import decode_block
from fsdecloud.ledger.chain import Switch, check_block
from fsdecloud.ledger.transactions import decode_tx, tx_id
from fsdecloud.ledgerd.setup import chain_path, init_ledger
from fsdecloud.ledgerd.verify import offline_verify
from fsdecloud.store.chain import open_chain
from fsdecloud.wire.ledgerapi import TxFound, TxQuery
from tests.cluster.ledgernet import Daemon, wait_until

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "ledger"))
from chainmaker import Maker, easy_network

sys.path.insert(0, str(Path(__file__).parents[1] / "component" / "ledger"))
from replay import contents, replayed

VOLUMES = [bytes([n]) * 32 for n in (2, 3, 4, 5)]
OTHER = sign.public_key(bytes([9]) * 32)
COMMON = 3


def prepare(daemon: Daemon, make: Maker) -> None:
    """Give a daemon that does not run the chain up to `make.tip`."""
    init_ledger(daemon.paths, make.document)
    with open_chain(chain_path(daemon.paths), make.document) as store:
        for _, data in make.chain():
            tip = store.tip()
            checked = check_block(make.document, tip, decode_block(data), store.node, None)
            store.add(checked, data, Switch(tip, (), (checked.point,)))


@pytest.mark.parametrize("depth", [1, 2, 6, 100])
def test_fault_100_a_reorganisation_between_daemons(tmp_path: Path, depth: int) -> None:
    """One has `depth` blocks with an anchor each that the other has not, and the other one block more. They meet: both are on
    the other's chain, and every anchor waits for a block again, on both sides."""
    make = Maker(easy_network())
    for _ in range(COMMON):
        make.add()
    fork = make.tip
    thrown_out = []
    for number in range(depth):
        volume = VOLUMES[number % len(VOLUMES)]
        thrown_out.append(make.anchor(volume, 1 + number // len(VOLUMES)))
        make.add([thrown_out[-1]])
    loser = Daemon(tmp_path / "loser")
    prepare(loser, make)
    make.tip = fork
    for _ in range(depth + 1):
        make.add(recipient=OTHER)
    winner = Daemon(tmp_path / "winner")
    prepare(winner, make)
    daemons = (loser, winner)
    try:
        winner.start("--no-mine")
        loser.start("--no-mine", "--bootstrap", winner.url)
        wait_until(lambda: loser.status().tip == make.tip.id, "it follows the chain with more work")
        wait_until(lambda: all(d.status().mempool == depth for d in daemons), "what was thrown out waits on both sides")
        for daemon in daemons:
            for tx in thrown_out:
                found = daemon.call("tx", TxQuery(tx_id(decode_tx(tx))), TxFound)
                assert (found.tx, found.height) == (tx, None)
            daemon.stop()
    finally:
        for daemon in daemons:
            daemon.close()
    found_contents = []
    for daemon in daemons:
        with open_chain(chain_path(daemon.paths), make.document) as store:
            found_contents.append(contents(store))
            assert found_contents[-1] == replayed(store, tmp_path / f"replay of {daemon.home.name}")
        assert offline_verify(daemon.paths).tip == make.tip.id
    assert found_contents[0] == found_contents[1]
