"""What a storage peer asks for storing: its settings, the network that it takes, and the registry."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace

import blake3
import msgspec
import pytest
import trio
from click.testing import CliRunner

from fsdecloud.cli import client
from fsdecloud.cli.peer import command
from fsdecloud.config import find_paths, make_private_dir, write_private_file
from fsdecloud.crypto import sign
from fsdecloud.errors import PeerRefused, UsageError
from fsdecloud.ledger.network import embedded_network, encode_network, network_id
from fsdecloud.ledger.transactions import decode_tx
from fsdecloud.net.address import Address, parse_url
from fsdecloud.net.pool import open_pool
from fsdecloud.net.unix import serve_unix
from fsdecloud.peerd import daemon, registration, setup
from fsdecloud.wire.agentapi import Empty, Registry, RegistryPeer
from fsdecloud.wire.ledgerapi import LedgerStatus, SubmitTx, TipNotice, TxResult
from fsdecloud.wire.peerapi import PeerdStatus

DOCUMENT = embedded_network("test", b"n" * 32, 0)
NETWORK = network_id(DOCUMENT)
OLD = msgspec.structs.replace(DOCUMENT, version=3, storage_share=0, storage_levy=0)


@pytest.fixture
def paths(tmp_path, monkeypatch):
    monkeypatch.setenv("FSDECLOUD_HOME", str(tmp_path / "home"))
    found = find_paths()
    make_private_dir(found.ledger_state)
    join(found, DOCUMENT)
    return found


def join(paths, document):
    write_private_file(paths.ledger_state / "network", encode_network(document))


def init(paths, *, network=NETWORK, **more):
    return setup.init_peer(paths, "a", 1 << 30, "127.0.0.1:0", network, **more)


def decloud(*words):
    result = CliRunner().invoke(command, list(words))
    return result.exit_code, result.output + str(result.exception or "")


def test_a_peer_stores_for_nothing_unless_it_names_a_price(paths):
    init(paths)
    config = setup.load_config(paths, "a")
    assert (config.price, config.collateral, config.deal_days, config.deal_credit) == (0, 25, 366, 1 << 30)
    assert "price" not in (paths.peer_state("a") / "peer.toml").read_text()


def test_a_second_call_changes_price_and_collateral_where_they_are_given(paths):
    first = init(paths, price=5000)
    assert setup.load_config(paths, "a").price == 5000
    assert init(paths, collateral=40) == first
    setup.save_config(paths, "a", replace(setup.load_config(paths, "a"), deal_days=90, deal_credit=7))
    init(paths, price=6000)
    config = setup.load_config(paths, "a")
    assert (config.price, config.collateral, config.deal_days, config.deal_credit) == (6000, 40, 90, 7)
    init(paths, price=0)
    assert setup.load_config(paths, "a").price == 0


@pytest.mark.parametrize(
    "offer", [{"price": -1}, {"price": setup.PRICE_MAX + 1}, {"collateral": -1}, {"collateral": 1001}]
)
def test_values_without_sense_change_nothing(paths, offer):
    with pytest.raises(UsageError, match=next(iter(offer))):
        init(paths, **offer)
    assert not paths.peer_state("a").exists()
    init(paths, price=5)
    before = (paths.peer_state("a") / "peer.toml").read_bytes()
    with pytest.raises(UsageError, match=next(iter(offer))):
        init(paths, **offer)
    assert (paths.peer_state("a") / "peer.toml").read_bytes() == before


@pytest.mark.parametrize(
    "line",
    [
        "price = -1",
        f"price = {setup.PRICE_MAX + 1}",
        "collateral = 1001",
        "deal_days = 0",
        "deal_days = 3661",
        "deal_credit = -1",
    ],
)
def test_settings_without_sense_are_named(paths, line):
    init(paths)
    path = paths.peer_state("a") / "peer.toml"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UsageError, match=rf"peer\.toml: .*{line.split()[0]}"):
        setup.load_config(paths, "a")


def test_a_price_takes_a_network_with_contracts(paths):
    join(paths, OLD)
    with pytest.raises(UsageError, match="has no contracts"):
        init(paths, network=network_id(OLD), price=5)
    assert not paths.peer_state("a").exists()
    init(paths, network=network_id(OLD))
    with pytest.raises(UsageError, match="has no contracts"):
        init(paths, network=network_id(OLD), price=5)
    assert setup.load_config(paths, "a").price == 0


def test_a_price_takes_the_ledger_daemon_of_its_home(paths):
    with pytest.raises(UsageError, match="another's"):
        init(paths, network=bytes(32), price=5)
    (paths.ledger_state / "network").unlink()
    with pytest.raises(UsageError, match="cannot be read"):
        init(paths, price=5)


def test_a_peer_with_a_price_does_not_start_in_a_network_without_contracts(paths):
    """However the price came into its settings."""
    join(paths, OLD)
    init(paths, network=network_id(OLD))
    setup.save_config(paths, "a", replace(setup.load_config(paths, "a"), price=5))
    with pytest.raises(UsageError, match="has no contracts"):
        daemon.run(paths, "a")


def test_the_command_sets_and_changes_what_it_asks(paths):
    assert decloud("init", "a", "--price", "5000", "--quota", "5G") == (
        0,
        f"peer a is set up; {paths.peer_state('a') / 'policy.toml'} says who may store; decloud peer run a\n",
    )
    assert "there is a peer a already" in decloud("init", "a")[1]
    assert "there is a peer a already" in decloud("init", "a", "--quota", "6G")[1]
    assert "there is a peer a already" in decloud("init", "a", "--price", "1", "--operator", "me")[1]
    assert not (paths.config / "operators").exists()
    code, said = decloud("init", "a", "--collateral", "30")
    assert (code, "asks 5000 for a GiB and 30 days, with a collateral of up to 30 percent" in said) == (0, True)
    config = setup.load_config(paths, "a")
    assert (config.quota, config.price, config.collateral) == (5 << 30, 5000, 30)
    assert "stores for nothing" in decloud("init", "a", "--price", "0", "--quota", "6G")[1]
    assert (setup.load_config(paths, "a").quota, setup.load_config(paths, "a").price) == (6 << 30, 0)


def test_the_registry_has_its_price(paths, monkeypatch):
    """And is told again when it has another one."""
    monkeypatch.setattr(registration, "RETRY", (0.02, 0.05))
    seed = b"s" * 32
    identity = sign.public_key(seed)
    peers, submitted = {}, []

    def methods(connection):
        async def status(_params):
            return LedgerStatus(1, NETWORK, "", "", 7, bytes(32), 0, b"", 0, False, 0.0, ())

        async def registry(_params):
            return Registry(tuple(peers.values()))

        async def submit(params):
            tx = decode_tx(params.tx)
            submitted.append(tx.price)
            peers[tx.peer] = RegistryPeer(tx.peer, tx.url, tx.capacity, tx.sequence, b"", tx.price)
            connection.notify_nowait("tip", TipNotice(8, bytes(32), 0))
            return TxResult(bytes(32), None)

        return {
            "watch": (Empty, status),
            "status": (Empty, status),
            "registry": (Empty, registry),
            "submit": (SubmitTx, submit),
        }, {}

    def registrar(price):
        return registration.Registrar(
            socket=paths.socket("ledger"), network_file=paths.ledger_state / "network", seed=seed, peer=identity,
            network=NETWORK, url=str(Address("h", 1, identity, NETWORK)), capacity=9, price=price,
        )  # fmt: skip

    async def work():
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                await nursery.start(serve_unix, paths.socket("ledger"), methods)
                for price in (0, 5000, 5000, 6000):  # as after each start of the peer
                    async with trio.open_nursery() as life:
                        one = registrar(price)
                        life.start_soon(one.run)
                        while one.height < 0:  # noqa: ASYNC110 - the state of another task
                            await trio.sleep(0.005)
                        life.cancel_scope.cancel()
                nursery.cancel_scope.cancel()

    trio.run(work)
    assert submitted == [0, 5000, 6000]


@contextmanager
def running():
    """The peer as a process, and its address."""
    ours, theirs = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "fsdecloud.peerd", "run", "--name", "a", "--ready-fd", str(theirs)],
        pass_fds=[theirs],
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs)
    try:
        with os.fdopen(ours) as pipe:
            yield parse_url(json.loads(pipe.readline())["url"])
    finally:
        process.terminate()
        assert process.wait(30) == 0


def test_a_running_peer_with_a_price_stores_for_deals_only(paths):
    """And one that asks nothing any more, and has no deal that runs, for everybody again."""
    data = b"s" * 1000
    item = blake3.blake3(data).digest(), data

    def store(address):
        async def work():
            with trio.fail_after(60):
                async with open_pool(network=NETWORK, deal_seed=lambda _peer: b"d" * 32) as pool:
                    await pool.put(address, [item])

        trio.run(work)

    def status():
        return client.call(paths.socket("peer-a"), "status", Empty(), PeerdStatus)

    init(paths, price=5000)
    setup.save_config(paths, "a", replace(setup.load_config(paths, "a"), reserve=0))
    (paths.peer_state("a") / "policy.toml").write_text('admit = ["*"]\n')
    with running() as address:
        with pytest.raises(PeerRefused, match="no deal with this key"):
            store(address)
        found = status()
        assert found.price == 5000
        assert found.deals is not None
        assert (found.deals.running, found.deals.ended, found.deals.earned, found.deals.next_proof) == (0, 0, 0, 0)
        assert "deals: 0 running, 0 ended" in decloud("status", "a")[1]
    init(paths, price=0)
    with running() as address:
        store(address)
        assert (status().price, status().deals, status().shards) == (0, None, 1)
