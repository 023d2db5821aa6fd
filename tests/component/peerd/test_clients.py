"""A greedy or hostile client leaves the others theirs. Counted, not timed."""

import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
import trio

sys.path.insert(0, str(Path(__file__).parent))

from peerworld import NETWORK, PEER, deal, run, shard, until, world

from fsdecloud.errors import BlobMissing, PeerRefused, PeerUnavailable
from fsdecloud.net import websocket
from fsdecloud.net.address import client_group
from fsdecloud.net.websocket import connect
from fsdecloud.peerd import clients as module
from fsdecloud.peerd.clients import ClientLimits
from fsdecloud.peerd.server import HAS_IDS
from fsdecloud.peerd.setup import PeerConfig, load_config, save_config
from fsdecloud.store.shards import FULL, SHARE
from fsdecloud.wire import peer as wire
from fsdecloud.wire.session import ClientSession

SLOW = 1e-9
"""Per second: a bucket that is not filled again within a test."""


async def flood(pool, address, answered, count, make):
    """Send many requests at once and count the answers."""

    async def one(i):
        with suppress(BlobMissing, PeerUnavailable):
            await make(pool, address, i)
        answered["n"] += 1

    async with trio.open_nursery() as nursery:
        for i in range(count):
            nursery.start_soon(one, i)


@pytest.mark.parametrize("kind", ["get", "has", "bytes"])
def test_fault_95_who_asks_too_much_is_slowed_down_and_nobody_else(tmp_path, kind):
    """Forty requests a client, eighty for those who only read; a Has of many ids, and many bytes, count more."""
    burst = 40 / SLOW
    limits = ClientLimits(requests=SLOW, burst=burst)
    if kind == "bytes":
        limits = ClientLimits(rate=20_000 * SLOW, burst=burst)  # 800,000 bytes: about 40 answers of 20,000

    async def make(pool, address, i):
        if kind == "has":
            await pool.has(address, [bytes(32)] * (9 * HAS_IDS))
        else:
            await pool.get(address, item[0])

    item = shard(1, 20_000)
    most = {"get": 81, "has": 9, "bytes": 83}[kind]

    async def work():
        async with world(tmp_path / "p", limits=limits) as w, w.client("c") as c:
            await c.put(w.address, [item])
            answered = Counter()
            async with trio.open_nursery() as nursery, w.client() as hostile, w.client("b") as honest:
                nursery.start_soon(flood, hostile, w.address, answered, 500, make)
                await until(lambda: w.service.clients.delays and answered["n"] >= most // 4)
                # The honest one shows its deal with what it stores; its own bucket is full.
                for i in range(10):
                    await honest.put(w.address, [shard(100 + i, 100)])
                assert answered["n"] <= most
                nursery.cancel_scope.cancel()

    run(work)


def test_keys_cost_nothing_so_an_address_has_its_limit_too(monkeypatch):
    monkeypatch.setattr(module, "HOST_FACTOR", 3)

    async def work():
        clients = module.Clients(ClientLimits(connections=2))
        with clients.enter(b"1" * 32, "h") as one, clients.enter(b"1" * 32, "h") as two:
            assert one is not None
            assert two is not None
            with clients.enter(b"1" * 32, "other") as third:  # the deal's own limit holds everywhere
                assert third is None
            with clients.enter(b"2" * 32, "h"), clients.enter(b"3" * 32, "h"), clients.enter(b"4" * 32, "h"):
                with clients.enter(b"5" * 32, "h") as too_many, clients.enter(b"5" * 32, "g") as elsewhere:
                    assert elsewhere is not None
                with clients.enter(b"6" * 32, "h"):
                    assert too_many is not None
                    with clients.enter(b"7" * 32, "h") as last:
                        assert last is None

    run(work)


def test_connections_of_one_client(tmp_path):
    async def work():
        async with world(tmp_path / "p", limits=ClientLimits(connections=2)) as w:
            async with w.client("a") as a1, w.client("a") as a2, w.client("a") as a3, w.client("b") as b:
                await a1.info(w.address)
                await a2.info(w.address)
                with pytest.raises(PeerUnavailable, match="too many connections"):
                    await a3.info(w.address)
                assert (await b.info(w.address)).admitted
                assert w.service.counters.refusals["connections"] == 1
            await until(lambda: not w.service.counters.connections)
            async with w.client("a") as a:
                assert (await a.info(w.address)).admitted

    run(work)


@pytest.mark.parametrize("count", [320, pytest.param(1000, marks=pytest.mark.long)])
def test_fault_82_very_many_unfinished_handshakes_and_an_honest_client(tmp_path, count):
    async def work():
        async with world(tmp_path / "p") as w:
            idle = []
            for i in range(count):
                try:
                    idle.append(await trio.open_tcp_stream(w.address.host, w.address.port))
                except OSError:
                    break
                if i % 300 == 299:
                    async with w.client("a") as a:
                        await a.put(w.address, [shard(i)])
                        assert await a.get(w.address, shard(i)[0]) == shard(i)[1]
            assert len(idle) > websocket.HANDSHAKES_MAX
            for stream in idle:
                await trio.aclose_forcefully(stream)

    run(work)


def test_fault_82_those_of_one_address_push_out_only_each_other():
    server = websocket._Server(b"s" * 32, "x", None, 8)
    for number, host in enumerate(["honest", *["bad"] * 5, "other"]):
        server._handshakes[number] = host, trio.CancelScope()
    for _ in range(4):
        server._give_up_handshake()
    assert [host for host, _ in server._handshakes.values()] == ["honest", "bad", "other"]
    server._give_up_handshake()
    assert len(server._handshakes) == 2
    assert client_group("[2001:db8:1:2:3::4]:77") == client_group("[2001:db8:1:2:ffff::1]:9") == "2001:db8:1:2::/64"
    assert client_group("10.1.2.3:4") == client_group("[::ffff:10.1.2.3]:5") == "10.1.2.3"
    assert client_group("a client") == ""


def test_fault_95_nothing_is_answered_before_the_hello(tmp_path):
    async def work():
        async with world(tmp_path / "p") as w:
            async with w.client("a") as a:
                await a.put(w.address, [shard(1)])
            async with connect(w.address, subprotocol=wire.SUBPROTOCOL) as channel:
                challenge = await channel.receive()
                assert len(challenge) < 300
                session = ClientSession(
                    peer=PEER, network=NETWORK, nonce=bytes(32), certificate_hash=channel.certificate_hash
                )
                session.receive(challenge)
                session._state = "open"
                await channel.send(session.request(wire.Get(0, shard(1)[0], 0, 0)))
                with pytest.raises(PeerUnavailable, match="1002"):
                    await channel.receive()
            assert w.service.counters.served_shards == 0

    run(work)


def test_fault_57_a_deal_that_has_its_share_is_refused_and_the_others_are_not(tmp_path):
    async def work():
        async with world(tmp_path / "p", quota=20_000) as w, w.client("a") as a, w.client("b") as b:
            w.store.deal_max = 5000
            receipt = await a.put(w.address, [shard(i) for i in range(8)])
            assert len(receipt.shards) == 5
            with pytest.raises(PeerRefused, match="share"):
                await a.put(w.address, [shard(7)])
            assert len((await b.put(w.address, [shard(20 + i) for i in range(5)])).shards) == 5
            assert w.service.counters.refusals[SHARE] == 4

    run(work)


def test_fault_57_the_reserve_of_the_file_system_is_kept(tmp_path):
    async def work():
        async with world(tmp_path / "p", reserve=1 << 62) as w, w.client("a") as a:
            with pytest.raises(PeerRefused, match="full"):
                await a.put(w.address, [shard(1)])
            assert w.service.counters.refusals[FULL] == 1
            assert await a.has(w.address, [shard(1)[0]]) == (False,)

    run(work)


def test_a_deal_that_is_denied(tmp_path):
    async def work():
        policy = f'admit = ["*"]\ndeny = ["{deal("b").hex()}"]\n'
        async with world(tmp_path / "p", policy=policy) as w, w.client("a") as a, w.client("b") as b:
            await a.put(w.address, [shard(1)])
            with pytest.raises(PeerRefused, match="does not admit"):
                await b.put(w.address, [shard(2)])
            assert await b.get(w.address, shard(1)[0]) == shard(1)[1]  # who knows an id may read

    run(work)


def test_what_waits_for_the_disk_is_bounded_for_each_client(tmp_path):
    async def work():
        limits = ClientLimits(memory=100_000)
        async with world(tmp_path / "p", limits=limits) as w, w.client("a") as a, w.client("b") as b:
            put_many, most = w.store.put_many, []

            def slow(shards, claims, *, now, end):
                most.append(max(Counter(claim.deal for claim in claims).values()))
                trio.from_thread.run(trio.sleep, 0.01)
                return put_many(shards, claims, now=now, end=end)

            w.store.put_many = slow
            async with trio.open_nursery() as nursery:
                for i in range(60):
                    nursery.start_soon(a.put, w.address, [shard(i, 50_000)])
                for i in range(5):
                    await b.put(w.address, [shard(1000 + i)])
            assert max(most) <= 4
            assert w.store.counts()[0] == 65

    run(work)


def test_settings_are_kept_and_checked(tmp_path, monkeypatch):
    from fsdecloud.config import find_paths
    from fsdecloud.errors import UsageError

    monkeypatch.setenv("FSDECLOUD_HOME", str(tmp_path))
    paths = find_paths()
    config = PeerConfig(1000, "127.0.0.1:1", NETWORK, client_rate=7, deal_share=25, scrub_days=0)
    save_config(paths, "a", config)
    path = paths.peer_state("a") / "peer.toml"
    assert load_config(paths, "a") == config
    assert "client_requests" not in path.read_text()
    assert config.limits.rate == 7
    good = path.read_text()
    for bad in ("client_rate = 0", "deal_share = 101", "scrub_days = -1", 'client_rate = "much"'):
        name = bad.split()[0]
        path.write_text("".join(line for line in good.splitlines(True) if not line.startswith(name)) + bad + "\n")
        with pytest.raises(UsageError, match=name):
            load_config(paths, "a")
