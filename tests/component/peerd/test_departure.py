"""A peer announces that it leaves, or will be away: it takes nothing new, serves what it holds, and says what that is."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import trio
from peerworld import DEALS, NETWORK, OWNERS, deal, run, shard, until, world

from fsdecloud.cli import client
from fsdecloud.config import find_paths
from fsdecloud.crypto import sign
from fsdecloud.errors import BlobMissing, PeerRefused, UsageError
from fsdecloud.net.address import parse_url
from fsdecloud.net.pool import open_pool
from fsdecloud.peerd import departure as module
from fsdecloud.peerd import registration, setup
from fsdecloud.peerd.departure import Departure
from fsdecloud.wire import peer as wire
from fsdecloud.wire.agentapi import Empty
from fsdecloud.wire.peerapi import Announce, Departing, PeerdStatus


def test_who_leaves_takes_nothing_new_and_serves_what_it_has(tmp_path):
    async def work():
        async with world(tmp_path / "p") as w, w.client("a") as a, w.client("b") as b:
            items = [shard(i) for i in range(5)]
            await a.put(w.address, items)
            w.service._departure.leave()
            with pytest.raises(PeerRefused, match=wire.LEAVING):
                await a.put(w.address, [shard(9)])  # on a connection that was welcomed before
            with pytest.raises(PeerRefused, match=wire.LEAVING):
                await b.info(w.address)
            assert w.service.counters.refusals[wire.LEAVING] == 1
            assert await b.get(w.address, items[0][0]) == items[0][1]
            await a.delete(w.address, w.grant("a", [i for i, _ in items[:3]]))
            await until(lambda: w.store.counts()[0] == 2)
        async with world(tmp_path / "p") as w, w.client("a") as a:  # it is remembered
            with pytest.raises(PeerRefused, match=wire.LEAVING):
                await a.put(w.address, [shard(9)])
            w.service._departure.stay()
            await a.put(w.address, [shard(9)])

    run(work)


def test_a_maintenance_ends_by_itself(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(module.time, "time", lambda: now[0])
    departure = Departure(tmp_path / "d.toml")
    assert departure.reason == ""
    departure.pause(60)
    assert departure.reason == "maintenance until 1060"
    assert Departure(tmp_path / "d.toml").reason == departure.reason
    now[0] = 1060
    assert departure.reason == ""
    departure.leave()
    assert (departure.reason, departure.since) == ("leaving", 1060)
    now[0] = 2000
    departure.leave()
    assert departure.since == 1060
    with pytest.raises(UsageError, match="leaves"):
        departure.pause(60)
    departure.stay()
    assert Departure(tmp_path / "d.toml").reason == ""
    with pytest.raises(UsageError, match="days"):
        departure.pause(module.MAINTENANCE_MAX + 1)
    for bad in ("since = ", "since = 5", 'since = "x"\nuntil = 1'):
        (tmp_path / "d.toml").write_text(bad)
        with pytest.raises(UsageError, match="remove it"):
            Departure(tmp_path / "d.toml")


@pytest.fixture
def paths(tmp_path, monkeypatch):
    monkeypatch.setenv("FSDECLOUD_HOME", str(tmp_path / "home"))
    found = find_paths()
    setup.init_peer(found, "a", 1 << 30, "127.0.0.1:0", NETWORK)
    config = setup.load_config(found, "a")
    setup.save_config(found, "a", setup.PeerConfig(config.quota, config.listen, NETWORK, reserve=12345, grace=0))
    (found.peer_state("a") / "policy.toml").write_text('admit = ["*"]\n')
    return found


@contextmanager
def process():
    ours, theirs = os.pipe()
    started = subprocess.Popen(
        [sys.executable, "-m", "fsdecloud.peerd", "run", "--name", "a", "--ready-fd", str(theirs)],
        pass_fds=[theirs],
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs)
    with os.fdopen(ours) as pipe:
        ready = json.loads(pipe.readline())
    try:
        yield parse_url(ready["url"])
    finally:
        started.send_signal(signal.SIGTERM)
        started.wait(20)


def command(*arguments):
    """Run `decloud peer` as a person does; return exit code and output, or raise what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "fsdecloud.cli.main", "peer", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 3):
        raise UsageError(done.stderr, done.returncode)
    return done.returncode, done.stdout


def test_status_leave_and_stay_of_a_real_peer(paths):
    with process() as address:

        async def store():
            async def key(_peer):
                return sign.public_key(OWNERS["a"])

            async with open_pool(network=NETWORK, deal_seed=lambda _peer: DEALS["a"], owner=key) as pool:
                await pool.put(address, [shard(i) for i in range(4)])
                with pytest.raises(BlobMissing):
                    await pool.get(address, bytes(32))

        trio.run(store)
        status = client.call(paths.socket("peer-a"), "status", Empty(), PeerdStatus)
        assert (status.reserve, status.shards, status.damaged_shards, status.price) == (12345, 4, 0, 0)
        assert status.requests >= 2
        assert status.received_bytes > 4000
        assert status.sent_bytes > 0
        assert dict(status.refusals) == {"missing": 1}

        code, text = command("status", "a")
        assert code == 0
        for words in ("space: 4 shards", "no damaged shards", "missing (1 times)", "the ledger cannot be reached"):
            assert words in text
        code, text = command("status", "--json", "a")
        fields = json.loads(text)
        assert (fields["refusals"], fields["departure"], fields["earnings"]) == ({"missing": 1}, None, None)
        assert fields["damaged_shards"] == 0
        assert (fields["balance"], fields["operator"]) == (None, None)  # no ledger daemon, nobody was named

        code, text = command("leave", "--status", "a")
        assert code == 3
        assert "stays" in text
        code, text = command("leave", "--json", "a")
        fields = json.loads(text)
        assert code == 3
        assert (fields["reason"], fields["shards"], fields["bytes"]) == ("leaving", 4, 4000)
        assert fields["deals"] == [{"deal": deal("a").hex(), "shards": 4, "bytes": 4000}]
        assert fields["is_registered"] is False  # there is no ledger daemon
        assert "leaving" in command("status", "a")[1]
        with pytest.raises(UsageError, match="this peer leaves"):
            command("maintenance", "a", "--for", "1h")
    with process():
        code, text = command("leave", "--status", "a")
        assert "announces leaving" in text
        assert deal("a").hex()[:16] in text
        assert command("stay", "a")[0] == 0
        assert "for 59 min" in command("maintenance", "a", "--for", "1h")[1].replace("1 h 0 min", "59 min")
        assert "maintenance" in command("leave", "--status", "a")[1]
        command("stay", "a")
        assert client.call(paths.socket("peer-a"), "announce", Announce(""), Departing).reason == ""


def test_a_peer_without_anything_may_be_switched_off(paths):
    with process():
        code, text = command("leave", "a")
        assert code == 0
        assert "may be switched off" in text


def test_the_registry_says_it_too(tmp_path, monkeypatch):
    """Capacity 0 is what it offers: no rule of the ledger changes for that."""
    from fsdecloud.ledger.network import embedded_network, encode_network, network_id
    from fsdecloud.ledger.transactions import decode_tx
    from fsdecloud.net.address import Address
    from fsdecloud.net.unix import serve_unix
    from fsdecloud.wire.agentapi import Registry, RegistryPeer
    from fsdecloud.wire.ledgerapi import LedgerStatus, SubmitTx, TipNotice, TxResult

    monkeypatch.setattr(registration, "RETRY", (0.02, 0.05))
    document = embedded_network("test", bytes(32), 0)
    network = network_id(document)
    (tmp_path / "network").write_bytes(encode_network(document))
    seed, path = b"s" * 32, tmp_path / "run" / "ledger.sock"
    identity = sign.public_key(seed)
    registrar = registration.Registrar(
        socket=path,
        network_file=tmp_path / "network",
        seed=seed,
        peer=identity,
        network=network,
        url=str(Address("h", 1, identity, network)),
        capacity=9,
    )
    peers, submitted = {}, []

    def methods(connection):
        async def status(_params):
            return LedgerStatus(1, network, "", "", 7, bytes(32), 0, b"", 0, False, 0.0, ())

        async def registry(_params):
            return Registry(tuple(peers.values()))

        async def submit(params):
            tx = decode_tx(params.tx)
            submitted.append(tx.capacity)
            peers[tx.peer] = RegistryPeer(tx.peer, tx.url, tx.capacity)
            connection.notify_nowait("tip", TipNotice(8, bytes(32), 0))
            return TxResult(bytes(32), None)

        return {
            "watch": (Empty, status),
            "status": (Empty, status),
            "registry": (Empty, registry),
            "submit": (SubmitTx, submit),
        }, {}

    async def work():
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_unix, path, methods)
            nursery.start_soon(registrar.run)
            await until(lambda: registrar.announced == 9)
            registrar.announce(0)
            await until(lambda: registrar.announced == 0)
            assert peers[identity].capacity == 0
            registrar.announce(9)
            await until(lambda: registrar.announced == 9)
            assert submitted == [9, 0, 9]
            nursery.cancel_scope.cancel()

    run(work)
