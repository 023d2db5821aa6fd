"""The peer daemon as a process: start, serve, die and come back, end."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import blake3
import pytest
import trio

from fsdecloud.cli import client
from fsdecloud.config import find_paths, make_private_dir
from fsdecloud.crypto import sign
from fsdecloud.errors import BlobMissing, InvalidTransaction, PeerRefused, PeerUnavailable, UsageError
from fsdecloud.ledger.network import embedded_network, encode_network, network_id
from fsdecloud.ledger.transactions import Register, decode_tx
from fsdecloud.net import pool as pool_module
from fsdecloud.net.address import Address, parse_url
from fsdecloud.net.pool import open_pool
from fsdecloud.net.unix import serve_unix
from fsdecloud.peerd import operators, registration, setup
from fsdecloud.peerd.registration import Registrar
from fsdecloud.peerd.writer import ShardWriter
from fsdecloud.wire.agentapi import Empty, Registry, RegistryPeer
from fsdecloud.wire.ledgerapi import LedgerStatus, SubmitTx, TipNotice, TxResult
from fsdecloud.wire.peerapi import PeerdStatus

NETWORK, DEAL_SEED = b"n" * 32, b"d" * 32
DEAL = sign.public_key(DEAL_SEED)


@pytest.fixture
def paths(tmp_path, monkeypatch):
    monkeypatch.setenv("FSDECLOUD_HOME", str(tmp_path / "home"))
    return find_paths()


def run(work):
    async def bounded():
        with trio.fail_after(60):
            await work()

    trio.run(bounded)


def shard(i, size=1000):
    data = (b"%08d" % i).ljust(size, b"s")
    return blake3.blake3(data).digest(), data


def set_up(paths, name="a", quota=1 << 30, listen="127.0.0.1:0"):
    peer = setup.init_peer(paths, name, quota, listen, NETWORK)
    setup.save_config(paths, name, setup.PeerConfig(quota, setup.load_config(paths, name).listen, NETWORK, reserve=0))
    (paths.peer_state(name) / "policy.toml").write_text(f'admit = ["{DEAL.hex()}"]\n')
    return peer


def start(name="a", *arguments):
    """Start a peer and return the process and what it said when it was ready."""
    ours, theirs = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "fsdecloud.peerd", "run", "--name", name, "--ready-fd", str(theirs), *arguments],
        pass_fds=[theirs],
        stderr=subprocess.PIPE,
    )
    os.close(theirs)
    with os.fdopen(ours) as pipe:
        line = pipe.readline()
    return process, json.loads(line) if line else {}


def end(process, number=signal.SIGTERM):
    """Send a signal (none for a process that ends by itself) and return exit code and log."""
    if number is not None:
        process.send_signal(number)
    code = process.wait(20)
    log = process.stderr.read().decode()
    process.stderr.close()
    return code, log


@contextmanager
def peer(*arguments):
    process, ready = start(*arguments)
    assert "url" in ready, (ready, process.stderr.read())
    try:
        yield process, ready
    finally:
        if process.poll() is None:
            end(process, signal.SIGKILL)
        else:
            process.stderr.close()


def pool():
    return open_pool(network=NETWORK, deal_seed=lambda _peer: DEAL_SEED)


def test_it_serves_reports_and_ends(paths):
    identity = set_up(paths)
    process, ready = start()
    assert ready["pid"] == process.pid
    address = parse_url(ready["url"])
    assert (address.id, address.network, address.port) == (identity, NETWORK, ready["port"])

    async def work():
        async with pool() as p:
            await p.put(address, [shard(i) for i in range(10)])
            assert await p.get(address, shard(3)[0]) == shard(3)[1]
            with pytest.raises(BlobMissing):
                await p.get(address, bytes(32))

    run(work)
    status = client.call(paths.socket("peer-a"), "status", Empty(), PeerdStatus)
    assert (status.pid, status.id, status.url) == (process.pid, identity, ready["url"])
    assert (status.shards, status.stored_shards, status.served_shards) == (10, 10, 1)
    assert status.used == status.stored_bytes == 10_000
    assert status.registered_height == -1
    with open(f"/proc/{process.pid}/limits") as limits:
        assert any(line.startswith("Max core file size") and " 0 " in line for line in limits)
    code, log = end(process)
    assert code == 0
    assert "SIGTERM" in log
    seed = setup.load_seed(paths, "a")
    assert seed.hex() not in log
    assert "Traceback" not in log


def test_faults_1_and_62_killed_and_restarted_it_has_what_it_signed_for(paths, monkeypatch):
    monkeypatch.setattr(pool_module, "BACKOFF", (0.01, 0.05))
    set_up(paths)
    signed = {}
    port = 0
    for round_ in range(3):
        with peer() as (process, ready):
            assert port in (0, ready["port"])  # the address stays
            port = ready["port"]
            address = parse_url(ready["url"])

            async def work(address=address, process=process, round_=round_):
                async with pool() as p:
                    for i, data in signed.items():
                        assert await p.get(address, i) == data

                    async def store(n):
                        for i in range(1000):
                            item = shard(round_ * 10**6 + n * 1000 + i, 20_000)
                            try:
                                await p.put(address, [item])
                            except PeerUnavailable:
                                return
                            signed[item[0]] = item[1]

                    async with trio.open_nursery() as nursery:
                        before = len(signed)
                        for n in range(8):
                            nursery.start_soon(store, n)
                        while len(signed) < before + 25 * (round_ + 1):  # noqa: ASYNC110
                            await trio.sleep(0.005)
                        process.kill()

            run(work)
            process.wait()
    assert len(signed) >= 150


def test_what_keeps_it_from_starting_is_said_in_one_line(paths):
    process, ready = start()
    assert "there is no peer 'a'" in ready["error"]
    assert end(process, None)[0] == ready["exit"] == 1
    set_up(paths)
    with peer() as (first, facts):
        process, ready = start()
        assert f"already running (pid {first.pid})" in ready["error"]
        code, log = end(process, None)
        assert code == ready["exit"] == 2
        assert "Traceback" not in log
        set_up(paths, "b", listen=f"127.0.0.1:{facts['port']}")
        process, ready = start("b")
        assert "cannot listen" in ready["error"]
        end(process, None)
    (paths.peer_state("a") / "peer.key").chmod(0o644)
    process, ready = start()
    assert "chmod 600" in ready["error"]
    end(process, None)
    (paths.peer_state("a") / "peer.key").chmod(0o600)
    (paths.peer_state("a") / "index" / "data.mdb").write_bytes(b"garbage" * 1000)
    process, ready = start()
    assert "damaged" in ready["error"]
    end(process, None)


def test_policy_is_reread_and_settings_are_checked(paths):
    set_up(paths)
    (paths.peer_state("a") / "policy.toml").write_text("admit = []\n")
    with peer() as (_process, ready):
        address = parse_url(ready["url"])

        async def work():
            async with pool() as p:
                with pytest.raises(PeerRefused):
                    await p.put(address, [shard(1)])
            (paths.peer_state("a") / "policy.toml").write_text(f'admit = ["{DEAL.hex().upper()}"]\n')
            async with pool() as p:
                await p.put(address, [shard(1)])

        run(work)
    path = paths.peer_state("a") / "peer.toml"
    good = path.read_text()
    for bad in ("quota = 1", good + "quotta = 5", good.replace("quota = 1", "quota = -1"), "x", good + "x = [", ""):
        path.write_text(bad)
        with pytest.raises(UsageError, match=r"peer\.toml"):
            setup.load_config(paths, "a")
    path.write_text(good.replace('"127.0.0.1', '"nowhere at all'))
    with pytest.raises(UsageError):
        setup.load_config(paths, "a")


def test_set_up_again_keeps_key_port_and_policy(paths):
    first = set_up(paths, listen="127.0.0.1:0")
    config = setup.load_config(paths, "a")
    setup.save_config(paths, "a", setup.PeerConfig(config.quota, "127.0.0.1:4711", NETWORK))
    assert setup.init_peer(paths, "a", 5, "127.0.0.1:0", NETWORK) == first
    assert setup.load_config(paths, "a").listen == "127.0.0.1:4711"
    assert setup.load_config(paths, "a").quota == 5
    assert DEAL.hex() in (paths.peer_state("a") / "policy.toml").read_text()
    with pytest.raises(UsageError, match="belongs to the network"):
        setup.init_peer(paths, "a", 5, "127.0.0.1:0", b"o" * 32)


def test_what_is_announced():
    def announced(listen, announce=""):
        config = setup.PeerConfig(1, listen, NETWORK, announce=announce)
        address = setup.announced_address(config, bytes(32), 99)
        return address and (address.host, address.port)

    assert announced("0.0.0.0:0") is None
    assert announced("[::]:0") is None
    assert announced("[::]:0", "peer.example") == ("peer.example", 99)
    assert announced("0.0.0.0:0", "peer.example:443") == ("peer.example", 443)
    assert announced("127.0.0.1:0", "[::1]") == ("::1", 99)
    assert announced("127.0.0.1:5") == ("127.0.0.1", 99)


class FakeLedger:
    """A ledger daemon that keeps registrations, once it is told to."""

    def __init__(self, network):
        self.network = network
        self.peers = {}
        self.refuse = 0
        self.connections = []
        self.submitted = []

    def methods(self, connection):
        self.connections.append(connection)
        return {
            "watch": (Empty, self.status),
            "status": (Empty, self.status),
            "registry": (Empty, self.registry),
            "submit": (SubmitTx, self.submit),
        }, {}

    async def status(self, _params):
        return LedgerStatus(1, self.network, "", "", 7, bytes(32), 0, b"", 0, False, 0.0, ())

    async def registry(self, _params):
        return Registry(tuple(self.peers.values()))

    async def submit(self, params):
        tx = decode_tx(params.tx)
        self.submitted.append(tx)
        if self.refuse:
            self.refuse -= 1
            raise InvalidTransaction("not today")
        if isinstance(tx, Register):
            self.peers[tx.peer] = RegistryPeer(tx.peer, tx.url, tx.capacity)
        else:
            known = self.peers[tx.peer]
            self.peers[tx.peer] = RegistryPeer(tx.peer, known.url, known.capacity, tx.sequence, tx.operator)
        for connection in self.connections:
            if not connection.is_closed:
                connection.notify_nowait("tip", TipNotice(8, bytes(32), 0))
        return TxResult(bytes(32), None)


def test_fault_076_its_operator_is_declared_after_it_is_registered(tmp_path, monkeypatch):
    """And again when the ledger lost it; an operator's key is made once, and what was declared lies beside the peer."""
    monkeypatch.setattr(registration, "RECHECK", 0.02)
    monkeypatch.setattr(registration, "CONFIRM_TIMEOUT", 0.05)
    monkeypatch.setenv("FSDECLOUD_HOME", str(tmp_path / "home"))
    paths = find_paths()
    document = embedded_network("test", bytes(32), 0)
    network = network_id(document)
    make_private_dir(paths.ledger_state)
    (paths.ledger_state / "network").write_bytes(encode_network(document))
    ledger = FakeLedger(network)
    operator_keys = []

    def registrar(name):
        identity = setup.init_peer(paths, name, 1 << 30, "127.0.0.1:0", network)
        return identity, Registrar(
            socket=paths.socket("ledger"), network_file=paths.ledger_state / "network",
            seed=setup.load_seed(paths, name), peer=identity, network=network,
            url=str(Address("h", 1, identity, network)), capacity=9,
            declaration=operators.load_declaration(paths, name),
        )  # fmt: skip

    async def until(condition):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.005)

    async def work():
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_unix, paths.socket("ledger"), ledger.methods)
            for name in "ab":
                setup.init_peer(paths, name, 1 << 30, "127.0.0.1:0", network)
                operator_keys.append(operators.declare_operator(paths, name, "somebody"))
                identity, one = registrar(name)
                nursery.start_soon(one.run)
                await until(lambda i=identity: i in ledger.peers and ledger.peers[i].operator)
                await until(lambda one=one: one.height == 7 and not one.error)
            first, second = ledger.peers.values()
            assert first.operator == second.operator == operator_keys[0] == operator_keys[1]
            assert [type(tx).__name__ for tx in ledger.submitted[:2]] == ["Register", "Operate"]
            count = len(ledger.submitted)
            ledger.peers[first.id] = RegistryPeer(first.id, first.url, first.capacity)  # a reorganisation
            await until(lambda: ledger.peers[first.id].operator)
            assert len(ledger.submitted) == count + 1
            nursery.cancel_scope.cancel()

    run(work)
    (paths.peer_state("a") / "operator.tx").write_bytes((paths.peer_state("b") / "operator.tx").read_bytes())
    with pytest.raises(UsageError, match="not this peer's"):
        operators.load_declaration(paths, "a")
    assert operators.declare_operator(paths, "a", None) == b""
    assert operators.load_declaration(paths, "a")


def test_it_registers_keeps_registered_and_waits_for_a_ledger(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(registration, "RETRY", (0.02, 0.05))
    monkeypatch.setattr(registration, "RECHECK", 0.02)
    monkeypatch.setattr(registration, "CONFIRM_TIMEOUT", 0.05)
    document = embedded_network("test", bytes(32), 0)
    network = network_id(document)
    (tmp_path / "network").write_bytes(encode_network(document))
    seed, path = b"s" * 32, tmp_path / "run" / "ledger.sock"
    identity = sign.public_key(seed)
    url = str(Address("h", 1, identity, network))
    registrar = Registrar(
        socket=path, network_file=tmp_path / "network", seed=seed, peer=identity, network=network, url=url, capacity=9
    )

    async def until(condition):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.005)

    async def work():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(registrar.run)
            await until(lambda: registrar.error)
            assert "nothing answers" in registrar.error
            ledger = FakeLedger(network)
            ledger.refuse = 1
            async with trio.open_nursery() as life:
                await life.start(serve_unix, path, ledger.methods)
                await until(lambda: registrar.height == 7)
                assert ledger.peers[identity].url == url
                assert (registrar.error, len(ledger.submitted)) == ("", 2)
                ledger.peers.clear()  # a reorganisation
                await until(lambda: len(ledger.submitted) == 3 and ledger.peers)
                life.cancel_scope.cancel()
            await until(lambda: registrar.error)
            assert any(words in registrar.error for words in ("went away", "nothing answers", "was closed"))
            stranger = FakeLedger(bytes(32))
            await nursery.start(serve_unix, path, stranger.methods)
            await until(lambda: "of network" in registrar.error)
            assert not stranger.submitted
            nursery.cancel_scope.cancel()

    run(work)


def test_puts_that_come_while_the_disk_works_are_one_batch():
    class Store:
        def __init__(self):
            self.batches = []

        def put_many(self, shards, claims, *, now, end):
            assert len(claims) == len(shards)
            assert end == 0
            self.batches.append(len(shards))
            return ["" if data != b"bad" else "why" for _, data in shards]

    async def work():
        store = Store()
        writer = ShardWriter(store)
        async with trio.open_nursery() as nursery, trio.open_nursery() as puts:
            results = []

            async def one(i):
                results.append((i, await writer.put([(bytes(32), b"bad" if i == 5 else b"x")])))

            for i in range(100):
                puts.start_soon(one, i)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(writer.run)
            while len(results) < 100:  # noqa: ASYNC110
                await trio.sleep(0.001)
            assert store.batches == [100]
            assert [(i, why) for i, (why,) in results if why] == [(5, "why")]
            nursery.cancel_scope.cancel()

    run(work)
