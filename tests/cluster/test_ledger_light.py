"""Machines that keep headers only: daemons as they run, and a volume that is written and found again with light ones alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fsdecloud.crypto import sign
from fsdecloud.errors import InvalidTransaction, UsageError
from fsdecloud.ledger.network import NetworkDocument, network_id
from fsdecloud.ledger.transactions import sign_operate, sign_register
from fsdecloud.ledgerd.setup import chain_path, light_path
from fsdecloud.ledgerd.verify import offline_verify
from fsdecloud.store.chain import open_chain
from fsdecloud.wire.agentapi import Empty, Registry
from fsdecloud.wire.ledgerapi import (
    Account,
    BlockList,
    BlockQuery,
    HeaderList,
    HeaderQuery,
    KeyQuery,
    TxFound,
    TxQuery,
    VolumeAnchor,
)
from tests.cluster.harness import Network
from tests.cluster.ledgernet import Daemon, anchor, quick_network, wait_until
from tests.cluster.test_recover import find_phrase

VOLUME = bytes([2]) * 32
KEY = sign.public_key(VOLUME)
PEER = bytes([4]) * 32
NOBODY = bytes([5]) * 32


@pytest.fixture
def document() -> NetworkDocument:
    return quick_network()


@pytest.fixture
def daemons(tmp_path: Path, document: NetworkDocument) -> Iterator[list[Daemon]]:
    """A miner, another full one, and a light one; none is started."""
    made = [Daemon(tmp_path / "miner", document), Daemon(tmp_path / "full", document), Daemon(tmp_path / "light")]
    try:
        yield made
    finally:
        for daemon in made:
            daemon.close()


def in_a_block(daemon: Daemon, tx: bytes) -> bool:
    """Whether a light daemon has it proved that a transaction which it submits is in a block."""
    return daemon.submit(tx).height is not None


def test_a_light_daemon_answers_as_a_full_one(daemons: list[Daemon], document: NetworkDocument) -> None:
    miner, full, light = daemons
    miner.start("--mine")
    full.start("--no-mine", "--bootstrap", miner.url)
    facts = light.start("--light", "--bootstrap", miner.url, "--bootstrap", full.url)
    assert facts["url"] == ""
    network = network_id(document)
    transactions = [anchor(document, VOLUME, 1), sign_register(network, PEER, "wss://127.0.0.1:1", 1 << 30, 1, bits=4)]
    transactions += [sign_operate(network, PEER, VOLUME, 1, bits=4), *(anchor(document, VOLUME, n) for n in (2, 3, 4))]
    found = []
    for tx in transactions:
        found.append(light.submit(tx).id)
        wait_until(lambda t=tx: in_a_block(light, t), "what the light one submits is in a block")
    wait_until(lambda: len({daemon.status().tip for daemon in daemons}) == 1, "all have the same tip")
    status = light.status()
    assert (status.light, status.provers, status.url, status.mempool, status.mining) == (True, 2, "", 0, False)
    assert not miner.status().light
    for other in (miner, full):
        for method, params, kind in (
            ("volume", KeyQuery(KEY), VolumeAnchor),
            ("volume", KeyQuery(NOBODY), VolumeAnchor),
            ("registry", Empty(), Registry),
            ("account", KeyQuery(sign.public_key(PEER)), Account),
            ("blocks", BlockQuery(1, 100), BlockList),
            ("headers", HeaderQuery(1, 100), HeaderList),
            *(("tx", TxQuery(identity), TxFound) for identity in found),
        ):
            assert light.call(method, params, kind) == other.call(method, params, kind), method
        assert light.anchors(VOLUME) == other.anchors(VOLUME)
    assert len(light.anchors(VOLUME)) == 4
    with pytest.raises(InvalidTransaction, match="WrongPredecessor: the volume's next anchor has sequence number 5"):
        light.submit(anchor(document, VOLUME, 4, mark=1))
    with pytest.raises(UsageError, match="keeps no blocks"):
        light.call("accept_tip", KeyQuery(status.tip), object)
    full.kill()  # the other one is asked
    assert light.anchors(VOLUME) == miner.anchors(VOLUME)
    light.stop()
    with open_chain(light_path(light.paths), document) as store:
        assert store.tip().id == status.tip
        assert not any(data for _, data in store.stored_blocks())
        assert store.node_count() == 0
    assert not chain_path(light.paths).exists()
    verified = offline_verify(light.paths)
    assert (verified.height, verified.tip) == (status.height, status.tip)


def test_it_is_remembered_and_can_be_undone(daemons: list[Daemon], document: NetworkDocument) -> None:
    miner, _, light = daemons
    miner.start("--mine")
    light.start("--light", "--bootstrap", miner.url)
    miner.submit(anchor(document, VOLUME, 1))
    wait_until(lambda: light.status().height == 1, "the header comes")
    light.kill()
    light.start()
    assert (light.status().light, light.status().height) == (True, 1)
    wait_until(lambda: light.status().provers == 1, "it finds the full one again")
    assert len(light.anchors(VOLUME)) == 1
    light.stop()
    light.start("--no-light")
    wait_until(lambda: light.status().height == 1, "it syncs in full")
    assert not light.status().light
    light.stop()
    (light.paths.ledger_state / "ledgerd.toml").write_text('ledger = "light"\n')
    light.start()
    assert (light.status().light, light.status().height) == (True, 1)


@pytest.mark.parametrize("arguments", [("--mine",), ("--work", "0"), ("--explorer", "0"), ("--prune", "16")])
def test_what_a_light_daemon_cannot_do_is_refused(daemons: list[Daemon], arguments: tuple[str, ...]) -> None:
    code, error = daemons[0].fail("--light", *arguments)
    assert code == 1
    assert "light ledger daemon" in error


@pytest.fixture
def network() -> Iterator[Network]:
    """A small network of its own: its volume ends on another machine."""
    with Network(peers=3) as fresh:
        fresh.up()
        yield fresh


def test_a_volume_is_found_again_and_written_with_light_daemons_alone(network: Network) -> None:
    """The machine that made it has the full daemon; another one recovers it with headers only, writes, and anchors that."""
    (network.work / "hello").write_text("hello\n")
    network.run("cp", network.work / "hello", network.mountpoint / "hello")
    network.sync("anchored")
    phrase = find_phrase(network.decloud("phrase", network.volume).out)
    url = network.ledger_url()
    height = network.status()["anchor_height"]
    network.umount()
    with Network() as other:
        secret = other.work / "words"
        secret.touch(mode=0o600)
        secret.write_text(phrase + "\n")
        found = other.decloud(
            "recover", "mine", "--light", "--phrase-file", secret, "--bootstrap", url, "--json", deadline=120
        ).json()
        assert found["height"] == height
        other.decloud("mount", "mine", other.mountpoint, deadline=90)
        assert other.run("cat", other.mountpoint / "hello").out == "hello\n"
        other.run("cp", network.work / "hello", other.mountpoint / "again")
        other.sync("anchored")
        status = other.decloud("ledger", "status", "--json").json()
        assert (status["light"], status["provers"]) == (True, 1)
        assert "full daemons that prove the rest: 1" in other.decloud("ledger", "status").out
        other.decloud("log", "mine", "--verify", deadline=120)
        assert other.status()["anchor_height"] > height
        certified = other.work / "certificate"
        made = other.decloud("certify", other.mountpoint / "again", "--to", certified, "--json").json()
        verified = other.decloud("verify-certificate", certified, network.work / "hello", "--json").json()
        assert (verified["ok"], verified["content"]) == (True, made["content"])
        assert verified["tied_to"], "the headers of the light daemon"
        assert "light" in other.decloud("status", other.mountpoint, check=False).out
        assert any(line["path"] == "/again" for line in other.decloud("log", "mine", "--json").json_lines())
        other.sync("anchored")
        other.drop_cache()
        assert [other.run("cat", other.mountpoint / name).out for name in ("hello", "again")] == ["hello\n"] * 2
        other.umount()
