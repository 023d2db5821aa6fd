"""The pool against real peers and false ones, over loopback sockets."""

import os
import time
from contextlib import asynccontextmanager, suppress

import blake3
import msgspec
import pytest
import trio

from fsdecloud.crypto import sign
from fsdecloud.errors import BlobCorrupt, BlobMissing, PeerRefused, PeerUnavailable, RemoteError, RemoteTimeout
from fsdecloud.limits import WINDOW_BYTES
from fsdecloud.net import link as link_module
from fsdecloud.net import pool as pool_module
from fsdecloud.net.address import Address
from fsdecloud.net.link import Window
from fsdecloud.net.nursery import open_background
from fsdecloud.net.pool import open_pool
from fsdecloud.net.websocket import serve
from fsdecloud.peerd.server import PeerService
from fsdecloud.peerd.setup import Policy
from fsdecloud.peerd.writer import ShardWriter
from fsdecloud.store.shards import ShardStore
from fsdecloud.wire import peer as wire
from fsdecloud.wire import receipts
from fsdecloud.wire.receipts import sign_receipt
from fsdecloud.wire.session import ClientSession, ServerSession

SEED, DEAL_SEED = b"s" * 32, b"d" * 32
PEER, DEAL = sign.public_key(SEED), sign.public_key(DEAL_SEED)
NETWORK = b"n" * 32


def run(work):
    async def bounded():
        with trio.fail_after(60):
            await work()

    trio.run(bounded)


def shard(i, size=1000):
    data = (b"%08d" % i).ljust(size, b"s")
    return blake3.blake3(data).digest(), data


def pool(**options):
    return open_pool(**{"network": NETWORK, "deal_seed": lambda _peer: DEAL_SEED} | options)


@asynccontextmanager
async def serving(handler, port=0):
    async with trio.open_nursery() as nursery:
        bound = await nursery.start(
            lambda task_status: serve("127.0.0.1", port, SEED, wire.SUBPROTOCOL, handler, task_status=task_status)
        )
        yield Address("127.0.0.1", bound, PEER, NETWORK)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def peer(path, *, admit='["*"]', quota=1 << 30, port=0):
    path.mkdir(mode=0o700, exist_ok=True)
    (path / "policy.toml").write_text(f"admit = {admit}\n")
    with ShardStore(path, quota, reserve=0, map_size=1 << 28) as store:
        writer = ShardWriter(store)
        service = PeerService(
            seed=SEED, peer=PEER, network=NETWORK, store=store, writer=writer, policy=Policy(path / "policy.toml")
        )
        async with trio.open_nursery() as nursery, serving(service.serve, port) as address:
            nursery.start_soon(writer.run)
            yield address
            nursery.cancel_scope.cancel()


def false_peer(answer):
    """A peer that greets rightly and then does what `answer(session, request)` returns."""

    async def handler(channel):
        session = ServerSession(
            peer=PEER,
            network=NETWORK,
            nonce=os.urandom(32),
            certificate_hash=channel.certificate_hash,
            window=WINDOW_BYTES,
        )
        await channel.send(session.start())
        session.receive(await channel.receive())
        await channel.send(session.welcome(admitted=True, free=1, reason=""))
        while True:
            reply = answer(session.receive(await channel.receive()))
            if reply is not None:
                await channel.send(reply if isinstance(reply, bytes) else session.answer(reply))

    return handler


def test_put_get_has_info(tmp_path):
    async def work():
        async with peer(tmp_path / "p") as address, pool() as p:
            shards = [shard(i, 1000 * i) for i in range(1, 20)]
            receipt = await p.put(address, shards)
            assert (receipt.peer, receipt.deal) == (PEER, DEAL)
            assert [(item.id, item.length) for item in receipt.shards] == [(i, len(d)) for i, d in shards]
            for i, data in shards:
                assert await p.get(address, i) == data
            assert await p.get_range(address, shards[4][0], 100, 50) == shards[4][1][100:150]
            assert await p.has(address, [shards[0][0], bytes(32)]) == (True, False)
            info = await p.info(address)
            assert (info.shards, info.admitted) == (19, True)
            with pytest.raises(BlobMissing):
                await p.get(address, bytes(32))
            with pytest.raises(PeerRefused):
                await p.get_range(address, shards[0][0], 0, 2000)
            assert p.statistics() == {"connections": 2, "requests": 0}
            with pytest.raises(ValueError, match="do not make one request"):
                await p.put(address, [(bytes(32), bytes(wire.PUT_BYTES_MAX + 1))])

    run(work)


def test_hundreds_of_requests_at_once_keep_to_the_window(tmp_path):
    async def work():
        async with peer(tmp_path / "p") as address, pool() as p:
            shards = [shard(i, 300_000) for i in range(150)]

            async def one(i, data):
                await p.put(address, [(i, data)])
                assert await p.get(address, i) == data

            async with trio.open_nursery() as nursery:
                for item in shards:
                    nursery.start_soon(one, *item)

    run(work)


def test_a_reader_without_a_deal_reads_and_cannot_store(tmp_path):
    async def work():
        i, data = shard(1)
        async with peer(tmp_path / "p", admit=f'["{DEAL.hex()}"]') as address:
            async with pool() as owner:
                await owner.put(address, [(i, data)])
            async with pool(deal_seed=None) as reader:
                assert await reader.get(address, i) == data
                assert not (await reader.info(address)).admitted
                with pytest.raises(PeerRefused, match="no deal key"):
                    await reader.put(address, [(i, data)])

    run(work)


def test_a_deal_that_is_not_admitted_is_refused_until_the_policy_changes(tmp_path):
    async def work():
        async with peer(tmp_path / "p", admit="[]") as address:
            for _ in range(2):
                async with pool() as p:
                    with pytest.raises(PeerRefused, match="does not know your deal key"):
                        await p.put(address, [shard(1)])
                    with pytest.raises(PeerRefused, match="does not admit us"):
                        await p.info(address)
                (tmp_path / "p" / "policy.toml").write_text("admit = [nonsense\n")
                async with pool() as p:
                    with pytest.raises(PeerRefused, match="policy cannot be read"):
                        await p.put(address, [shard(1)])
                (tmp_path / "p" / "policy.toml").write_text("admit = []\n")
            (tmp_path / "p" / "policy.toml").write_text(f'admit = ["{DEAL.hex()}"]\n')
            async with pool() as p:
                await p.put(address, [shard(1)])

    run(work)


def test_fault_57_a_full_peer_says_so_and_keeps_what_it_has(tmp_path):
    async def work():
        async with peer(tmp_path / "p", quota=4000) as address, pool() as p:
            receipt = await p.put(address, [shard(i) for i in range(5)])
            assert len(receipt.shards) == 3
            with pytest.raises(PeerRefused, match="full"):
                await p.put(address, [shard(9)])
            assert await p.get(address, shard(0)[0]) == shard(0)[1]

    run(work)


def test_a_peer_of_another_network_is_left(tmp_path):
    async def work():
        async with peer(tmp_path / "p") as address, pool(network=b"x" * 32) as p:
            with pytest.raises(PeerUnavailable, match="belongs to network"):
                await p.info(address)

    run(work)


def good_receipt(request, **changes):
    values = {
        "seed": SEED,
        "peer": PEER,
        "deal": DEAL,
        "items": [(s.id, s.data.nbytes) for s in request.shards],
        "time": time.time(),
        "term": 1000,
    } | changes
    items = tuple(wire.ShardItem(*item) for item in values["items"])
    return sign_receipt(values["seed"], values["peer"], values["deal"], int(values["time"]), items, int(values["term"]))


def old_receipt(request):
    """Return a receipt as a release without leases made it."""
    items = [[s.id, s.data.nbytes] for s in request.shards]
    fields = [1, PEER, sign.public_key(DEAL_SEED), int(time.time()), items, b""]
    fields[-1] = sign.sign(SEED, receipts.DOMAIN, msgspec.msgpack.encode(fields))
    return msgspec.msgpack.encode(fields)


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (lambda r: wire.PutDone(r.request, b"junk", ()), PeerUnavailable, "does not hold"),
        (lambda r: wire.PutDone(r.request, good_receipt(r, seed=b"x" * 32), ()), PeerUnavailable, "does not hold"),
        (
            lambda r: wire.PutDone(r.request, good_receipt(r, seed=b"x" * 32, peer=sign.public_key(b"x" * 32)), ()),
            PeerUnavailable,
            "somebody else",
        ),
        (lambda r: wire.PutDone(r.request, good_receipt(r, deal=PEER), ()), PeerUnavailable, "somebody else"),
        (
            lambda r: wire.PutDone(r.request, good_receipt(r, items=[(bytes(32), 1000)]), ()),
            PeerUnavailable,
            "not sent",
        ),
        (
            lambda r: wire.PutDone(r.request, good_receipt(r, items=[(r.shards[0].id, 1)]), ()),
            PeerUnavailable,
            "not sent",
        ),
        (lambda r: wire.PutDone(r.request, good_receipt(r, items=[]), ()), PeerUnavailable, "not sent"),
        (lambda r: wire.PutDone(r.request, good_receipt(r, time=time.time() - 1001), ()), PeerUnavailable, "expired"),
        (lambda r: wire.PutDone(r.request, good_receipt(r, time=1), ()), PeerUnavailable, "expired"),
        (lambda r: wire.PutDone(r.request, good_receipt(r, time=time.time() + 90_000), ()), PeerUnavailable, "future"),
        (lambda r: wire.PutDone(r.request, good_receipt(r, term=0), ()), PeerUnavailable, "before it begins"),
        (lambda r: wire.PutDone(r.request, good_receipt(r, term=-5), ()), PeerUnavailable, "does not hold"),
        (lambda r: wire.PutDone(r.request, old_receipt(r), ()), PeerUnavailable, "without a term"),
        (lambda r: wire.PutDone(r.request, b"", ()), PeerRefused, "no reason"),
        (
            lambda r: wire.PutDone(r.request, b"", (wire.Refusal(r.shards[0].id, "\x1b[2Jno\n"),)),
            PeerRefused,
            r"\?\[2Jno\?",
        ),
        (lambda r: wire.Error(r.request, "failed", "oops"), RemoteError, "oops"),
        (lambda r: wire.Data(r.request, b"x"), PeerUnavailable, "not asked for"),
        (lambda _r: b"\xff", PeerUnavailable, "not a"),
        (lambda _r: bytes(100), PeerUnavailable, "not a"),
    ],
)
def test_faults_77_78_and_85_answers_that_do_not_hold(answer, error, words):
    async def work():
        async with serving(false_peer(answer)) as address, pool() as p:
            with pytest.raises(error, match=words):
                await p.put(address, [shard(1)])

    run(work)


def test_fault_69_wrong_bytes_are_noticed():
    async def work():
        i, data = shard(1)
        for wrong in (b"", data[:-1], data + b"x", bytes(1000)):
            async with serving(false_peer(lambda r, wrong=wrong: wire.Data(r.request, wrong))) as address, pool() as p:
                with pytest.raises(BlobCorrupt):
                    await p.get(address, i)

    run(work)


def test_fault_48_a_peer_that_never_answers_is_left_after_the_time_out(monkeypatch):
    monkeypatch.setattr(link_module, "REQUEST_TIMEOUT", 0.3)

    async def work():
        async with serving(false_peer(lambda _r: None)) as address, pool() as p:
            with pytest.raises(RemoteTimeout):
                await p.get(address, bytes(32))
            with pytest.raises(RemoteTimeout, match="no progress"):
                await p.put(address, [shard(1)])
            with pytest.raises(PeerUnavailable, match="tried a moment ago"):
                await p.put(address, [shard(1)])

    run(work)


def test_a_slow_line_is_slow_and_not_broken(monkeypatch, tmp_path):
    monkeypatch.setattr(link_module, "REQUEST_TIMEOUT", 0.4)

    async def work():
        async with (
            peer(tmp_path / "p") as address,
            proxy(address, pause=0.005, piece=4000) as (slow, _cut),
            pool() as p,
        ):
            i, data = shard(1, 1_000_000)  # more than a second on this line
            await p.put(slow, [(i, data)])
            assert await p.get(slow, i) == data

    run(work)


@asynccontextmanager
async def proxy(address, *, pause=0.0, piece=1 << 16, cut_after=None):
    """A line to `address` that is slow, or breaks after so many bytes; `cut()` breaks it now."""
    scopes = []
    left = [cut_after]

    async def carry(near):
        far = await trio.open_tcp_stream(address.host, address.port)

        async def one_way(a, b, scope):
            with trio.CancelScope():
                try:
                    while data := await a.receive_some(piece):
                        if left[0] is not None:
                            left[0] -= len(data)
                            if left[0] < 0:
                                break
                        await b.send_all(data)
                        if pause:
                            await trio.sleep(pause)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass
            scope.cancel()

        async with far, trio.open_nursery() as nursery:
            scopes.append(nursery.cancel_scope)
            nursery.start_soon(one_way, near, far, nursery.cancel_scope)
            nursery.start_soon(one_way, far, near, nursery.cancel_scope)

    def cut():
        for scope in scopes:
            scope.cancel()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, carry, 0)
        port = listeners[0].socket.getsockname()[1]
        yield Address("localhost", port, address.id), cut
        nursery.cancel_scope.cancel()


def test_fault_49_a_connection_that_breaks_after_any_number_of_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(pool_module, "BACKOFF", (0.001, 0.002))

    async def work():
        item = shard(1, 20_000)
        failures = 0
        async with peer(tmp_path / "p") as address:
            for cut_after in [*range(0, 4000, 250), *range(4000, 60_000, 4000)]:
                async with proxy(address, cut_after=cut_after, piece=300) as (line, _cut), pool() as p:
                    try:
                        await p.put(line, [item])
                        assert await p.get(line, item[0]) == item[1]
                    except PeerUnavailable:
                        failures += 1
            assert failures > 10
            async with pool() as p:
                await p.put(address, [item])
                assert await p.get(address, item[0]) == item[1]

    run(work)


def test_a_broken_connection_fails_all_its_requests_and_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(pool_module, "BACKOFF", (0.01, 0.02))

    async def work():
        async with (
            peer(tmp_path / "p") as address,
            proxy(address, pause=0.01, piece=10_000) as (line, cut),
            pool() as p,
        ):
            item = shard(1, 500_000)
            await p.info(line)
            outcomes = []

            async def one():
                try:
                    await p.put(line, [item])
                except PeerUnavailable as exc:
                    outcomes.append(exc)

            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(one)
                await trio.sleep(0.1)
                cut()
            assert len(outcomes) == 5
            while True:
                try:
                    await p.info(line)
                    break
                except PeerUnavailable:
                    await trio.sleep(0.01)

    run(work)


@pytest.mark.parametrize("is_noticed", [True, False])
def test_fault_055_a_connection_that_died_while_nobody_used_it_is_no_failure(tmp_path, monkeypatch, is_noticed):
    """All do whose machine slept, or moved to another network."""
    monkeypatch.setattr(link_module, "QUIET", 0.0)
    monkeypatch.setattr(pool_module, "BACKOFF", (3600.0, 3600.0))

    async def work():
        async with peer(tmp_path / "p") as address, proxy(address) as (line, cut), pool() as p:
            item = shard(1, 500_000)
            await p.put(line, [item])
            assert await p.get(line, item[0]) == item[1]
            for _ in range(3):
                cut()
                if is_noticed:
                    while p.statistics()["connections"]:  # noqa: ASYNC110 - the pool tells nobody
                        await trio.sleep(0.01)
                assert (await p.has(line, [item[0]])) == (True,)
                assert (await p.put(line, [item])).shards[0].id == item[0]

    run(work)


def test_fault_94_a_cancelled_request_leaves_the_connection_whole(tmp_path):
    async def work():
        async with (
            peer(tmp_path / "p") as address,
            proxy(address, pause=0.002, piece=20_000) as (line, _cut),
            pool() as p,
        ):
            await p.info(line)
            for i in range(30):
                with trio.move_on_after(0.003 * i):
                    await p.put(line, [shard(i, 100_000)])
            await p.put(line, [shard(99)])
            assert p.statistics() == {"connections": 1, "requests": 0}
            assert await p.get(line, shard(99)[0]) == shard(99)[1]

    run(work)


def test_an_idle_connection_is_closed_and_opened_again(tmp_path, monkeypatch):
    monkeypatch.setattr(link_module, "IDLE_TIMEOUT", 0.05)

    async def work():
        async with peer(tmp_path / "p") as address, pool() as p:
            for i in range(5):
                await p.put(address, [shard(i)])
                while p.statistics()["connections"]:  # noqa: ASYNC110
                    await trio.sleep(0.01)
            for _ in range(30):  # just as it closes
                await p.info(address)
                await trio.sleep(0.049)

    run(work)


def test_few_connections_for_reading_stay_open_and_many_do_not(tmp_path, monkeypatch):
    monkeypatch.setattr(link_module, "IDLE_TIMEOUT", 0.05)

    async def work():
        async with peer(tmp_path / "p") as address, pool() as p:
            name, data = shard(1)
            await p.put(address, [(name, data)])
            assert await p.get(address, name) == data
            while p.statistics()["connections"] > 1:  # noqa: ASYNC110 - the one for Puts closes
                await trio.sleep(0.01)
            await trio.sleep(0.2)
            assert p.is_open(address)
            assert await p.get(address, name) == data
            monkeypatch.setattr(pool_module, "KEPT_MAX", 0)
            while p.is_open(address):  # noqa: ASYNC110
                await trio.sleep(0.01)

    run(work)


@asynccontextmanager
async def long_line(address, delay):
    """A line on which everything takes `delay` seconds; yields the address, and who spoke in turn: "c" client, "s" server."""
    turns = []

    async def carry(near):
        far = await trio.open_tcp_stream(address.host, address.port)

        async def one_way(name, a, b):
            send, receive = trio.open_memory_channel(1000)

            async def deliver():
                async for data, at in receive:
                    await trio.sleep_until(at)
                    await b.send_all(data)

            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                async with trio.open_nursery() as line:
                    line.start_soon(deliver)
                    async with send:
                        while data := await a.receive_some(1 << 20):
                            if turns[-1:] != [name]:
                                turns.append(name)
                            send.send_nowait((data, trio.current_time() + delay))

        async with far, open_background() as nursery:
            nursery.start_soon(one_way, "c", near, far)
            await one_way("s", far, near)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, carry, 0)
        yield Address("localhost", listeners[0].socket.getsockname()[1], address.id), turns
        nursery.cancel_scope.cancel()


def test_round_trips_of_a_read_with_a_connection_without_one_and_with_one_opened_ahead(tmp_path):
    """Counted by who waits for whom: TLS; the certificate's proof and the websocket; Hello and the request."""

    async def work():
        name, data = shard(1)
        async with peer(tmp_path / "p") as near, pool() as p:
            await p.put(near, [(name, data)])
            async with long_line(near, 0.15) as (address, turns):
                assert await p.get(address, name) == data
                assert "".join(turns) == "cscscs"
                turns.clear()
                assert await p.get(address, name) == data
                assert "".join(turns) == "cs"
            async with long_line(near, 0.0) as (address, turns):
                p.open_ahead(address)
                assert not p.is_open(address)
                while not p.is_open(address):  # noqa: ASYNC110
                    await trio.sleep(0.01)
                before = p.statistics()["connections"]
                p.open_ahead(address)
                assert await p.get(address, name) == data
                assert p.statistics()["connections"] == before
            gone = Address("localhost", 1, PEER)
            p.open_ahead(gone)
            with pytest.raises(PeerUnavailable):
                await p.get(gone, name)

    run(work)


def test_who_is_turned_away_after_a_hello_without_a_deal_waits_longer_each_time(monkeypatch):
    async def work():
        greeted = 0

        async def refuse(channel):
            nonlocal greeted
            session = ServerSession(
                peer=PEER, network=NETWORK, nonce=bytes(32), certificate_hash=channel.certificate_hash, window=1 << 23
            )
            await channel.send(session.start())
            session.receive(await channel.receive())
            greeted += 1

        monkeypatch.setattr(pool_module, "BACKOFF", (0.05, 5.0))
        async with serving(refuse) as address, pool(deal_seed=None) as p:
            for _ in range(6):
                with pytest.raises(PeerUnavailable):
                    await p.get(address, bytes(32))
                await trio.sleep(0.1)
            assert greeted < 6, "the pause between two attempts grows"
            lane = next(iter(p._lanes.values()))
            assert lane._failures == greeted

    run(work)


def test_fault_46_a_dead_peer_fails_fast(monkeypatch):
    async def work():
        async with serving(false_peer(lambda _r: None)) as address:
            pass
        async with pool() as p:
            with pytest.raises(PeerUnavailable, match="cannot connect"):
                await p.get(address, bytes(32))
            with trio.fail_after(1):
                for _ in range(100):
                    with pytest.raises(PeerUnavailable):
                        await p.get(address, bytes(32))

    run(work)


def test_fault_76_addresses_that_lead_nowhere_are_forgotten(monkeypatch):
    """Whoever tells of very many fills no memory with them; who is connected stays so."""
    monkeypatch.setattr(pool_module, "LANES_MAX", 20)

    async def work():
        async with serving(false_peer(lambda r: wire.HasResult(r.request, (True,)))) as address, pool() as p:
            assert await p.has(address, [bytes(32)]) == (True,)
            for port in range(1, 101):
                with pytest.raises(PeerUnavailable):
                    await p.connect(Address("127.0.0.1", port, address.id))
            assert len(p._lanes) <= 20
            assert p.is_open(address)
            assert p.statistics()["connections"] == 1

    run(work)


def test_many_wait_for_one_connection_attempt():
    async def work():
        greetings = []
        inner = false_peer(lambda r: wire.HasResult(r.request, (True,)))

        async def handler(channel):
            greetings.append(channel)
            await inner(channel)

        async with serving(handler) as address, pool() as p, trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(p.has, address, [bytes(32)])
        assert len(greetings) == 1

    run(work)


def test_the_window_is_first_come_first_served_and_survives_cancellation():
    async def work():
        window = Window(10, 3)
        order = []

        async def take(name, size):
            await window.acquire(size)
            order.append(name)

        await take("a", 8)
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()

            async def cancelled():
                with scope:
                    await take("never", 9)

            nursery.start_soon(cancelled)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(take, "b", 2)
            await trio.testing.wait_all_tasks_blocked()
            assert order == ["a"]  # it would fit, but another was first
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            window.release(8)
            await trio.testing.wait_all_tasks_blocked()
            assert order == ["a", "b"]
            window.open()
            nursery.start_soon(take, "c", 99)

    run(work)


def test_flooding_a_peer_ends_only_the_flooders_connection(tmp_path):
    async def work():
        async with peer(tmp_path / "p", admit="[]") as address:
            from fsdecloud.net.websocket import connect

            async with connect(address, subprotocol=wire.SUBPROTOCOL) as channel:
                session = ClientSession(
                    peer=PEER, network=NETWORK, nonce=bytes(32), certificate_hash=channel.certificate_hash
                )
                session.receive(await channel.receive())
                await channel.send(session.hello())
                session.receive(await channel.receive())

                async def flood():
                    for number in range(100_000):
                        await channel.send(msgspec.msgpack.encode([12, number, [bytes(32)] * 4000]))

                with pytest.raises(PeerUnavailable):
                    await flood()
            async with pool(deal_seed=None) as p:
                assert await p.has(address, [bytes(32)]) == (False,)

    run(work)
