"""Peers that a client does not reach itself, by way of those that it does: real peers and false ones, over loopback sockets."""

import os
import socket
import time
from contextlib import AsyncExitStack, asynccontextmanager

import blake3
import msgspec
import pytest
import trio

from fsdecloud.crypto import sign
from fsdecloud.errors import BlobCorrupt, BlobMissing, PeerRefused, PeerUnavailable
from fsdecloud.limits import MIB
from fsdecloud.net import relay as relay_module
from fsdecloud.net.address import Address
from fsdecloud.net.nursery import open_background
from fsdecloud.net.pool import open_pool
from fsdecloud.net.websocket import serve
from fsdecloud.peerd import forwarding as forwarding_module
from fsdecloud.peerd.clients import ClientLimits
from fsdecloud.peerd.forwarding import Forwarding, Nonces
from fsdecloud.peerd.server import PeerService
from fsdecloud.peerd.setup import Policy
from fsdecloud.peerd.writer import ShardWriter
from fsdecloud.store.shards import ShardStore
from fsdecloud.types import PeerId
from fsdecloud.wire import peer as wire
from fsdecloud.wire.forwarding import make_answer, make_forward
from fsdecloud.wire.grants import sign_grant
from fsdecloud.wire.session import ServerSession
from tests.component.peerd.hostile import hostile

NETWORK, DEAL_SEED, OWNER_SEED = b"n" * 32, b"d" * 32, b"o" * 32
DEAL, OWNER = sign.public_key(DEAL_SEED), sign.public_key(OWNER_SEED)


def run(work, *args):
    async def bounded():
        with trio.fail_after(60):
            await work(*args)

    trio.run(bounded)


def shard(i, size=1000):
    data = (b"%08d" % i).ljust(size, b"s")
    return blake3.blake3(data).digest(), data


class Known:
    """What one peer knows of others; a test changes it as a partition would."""

    def __init__(self):
        self.addresses = {}
        self.failures = []

    async def find(self, peer):
        return self.addresses.get(peer)

    def others(self):
        return list(self.addresses.values())

    def failed(self, address):
        self.failures.append(address)


class Node:
    """A peer with its service; `known` is whom it reaches."""

    def __init__(self, seed, address, service, store, known):
        self.seed = seed
        self.id = PeerId(sign.public_key(seed))
        self.address = address
        self.service = service
        self.store = store
        self.known = known

    def knows(self, *others):
        for other in others:
            self.known.addresses[other.id] = other.address


@asynccontextmanager
async def node(path, letter, *, limits=None, forwards=True, quota=1 << 30):
    seed = letter.encode() * 32
    peer = PeerId(sign.public_key(seed))
    path = path / letter
    path.mkdir(mode=0o700)
    (path / "policy.toml").write_text('admit = ["*"]\n')
    known = Known()
    async with AsyncExitStack() as stack:
        store = stack.enter_context(ShardStore(path, quota, reserve=0, map_size=1 << 28))
        pool = await stack.enter_async_context(open_pool(network=NETWORK))
        writer = ShardWriter(store)
        service = PeerService(
            seed=seed,
            peer=peer,
            network=NETWORK,
            store=store,
            writer=writer,
            policy=Policy(path / "policy.toml"),
            grace=0,
            limits=limits or ClientLimits(),
            forwarding=Forwarding(peer=peer, network=NETWORK, pool=pool, directory=known) if forwards else None,
        )
        nursery = await stack.enter_async_context(open_background())
        nursery.start_soon(writer.run)
        nursery.start_soon(service.deleter.run)
        port = await nursery.start(
            lambda task_status: serve("127.0.0.1", 0, seed, wire.SUBPROTOCOL, service.serve, task_status=task_status)
        )
        yield Node(seed, Address("127.0.0.1", port, peer, NETWORK), service, store, known)
        nursery.cancel_scope.cancel()


def closed_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def unreachable(peer):
    """Return an address of a peer at which nobody listens."""
    return Address("127.0.0.1", closed_port(), peer.id, NETWORK)


async def owner_key(_peer):
    return OWNER


@asynccontextmanager
async def client(*relays, deal=True):
    """A client that may ask by way of these addresses."""
    more = {"deal_seed": lambda _peer: DEAL_SEED, "owner": owner_key} if deal else {}
    async with open_pool(network=NETWORK, does_forward=True, **more) as pool:
        pool.use_relays(lambda: relays)
        yield pool


def test_everything_goes_by_way_of_another_peer(tmp_path):
    async def work():
        async with node(tmp_path, "a") as a, node(tmp_path, "x") as x, client(a.address) as pool:
            a.knows(x)
            far = unreachable(x)
            items = [shard(0), shard(1, MIB), shard(2, 0)]
            receipt = await pool.put(far, items)
            assert (receipt.peer, receipt.deal) == (x.id, DEAL)
            assert {item.id for item in receipt.shards} == {item[0] for item in items}
            assert all(x.store.locate(item[0]) and not a.store.locate(item[0]) for item in items)
            assert pool.way(x.id) == a.id
            for item in items:
                assert await pool.get(far, item[0]) == item[1]
            assert await pool.get_range(far, items[1][0], 7, 9) == items[1][1][7:16]
            assert await pool.has(far, [items[0][0], bytes(32)]) == (True, False)
            info = await pool.info(far)
            assert (info.admitted, info.shards) == (True, 3)
            with pytest.raises(BlobMissing):  # the far peer's own word
                await pool.get(far, bytes(32))
            now = int(time.time())
            grant = sign_grant(
                OWNER_SEED, network=NETWORK, peer=x.id, deal=DEAL, not_before=now + 1, expires=now + 100,
                nonce=os.urandom(32), shards=(items[0][0],),
            )  # fmt: skip
            with pytest.raises(PeerRefused):  # it holds from a second from now
                await pool.delete(far, grant)
            assert a.service.forwarding.forwarded_requests == 9
            assert a.service.forwarding.open_forwards == 0
            assert a.service.forwarding.forwarded_bytes > 2 * MIB

    run(work)


def test_a_shard_is_deleted_by_way_of_another_peer(tmp_path):
    async def work():
        async with node(tmp_path, "a") as a, node(tmp_path, "x") as x, client(a.address) as pool:
            a.knows(x)
            item = shard(0)
            await pool.put(unreachable(x), [item])
            now = int(time.time()) + 1
            grant = sign_grant(
                OWNER_SEED, network=NETWORK, peer=x.id, deal=DEAL, not_before=now, expires=now + 100,
                nonce=os.urandom(32), shards=(item[0],),
            )  # fmt: skip
            while time.time() < now:  # noqa: ASYNC110 - the clock
                await trio.sleep(0.05)
            assert await pool.delete(unreachable(x), grant) == {}
            assert x.service.deleter.dropped_shards == 1

    run(work)


def test_a_partition_is_crossed_by_two_peers_and_no_more(tmp_path):
    """We reach a, a reaches b, b reaches x. From y, which only b's neighbour c reaches, nothing comes: hops are bounded."""

    async def work():
        async with AsyncExitStack() as stack:
            a, b, c, x, y = [await stack.enter_async_context(node(tmp_path, letter)) for letter in "abcxy"]
            pool = await stack.enter_async_context(client(a.address))
            a.knows(b)
            b.knows(a, x, c)
            c.knows(y)
            item = shard(0)
            await pool.put(unreachable(x), [item])
            assert await pool.get(unreachable(x), item[0]) == item[1]
            assert pool.way(x.id) == a.id
            assert b.service.forwarding.forwarded_requests == 2
            with pytest.raises(PeerUnavailable, match="cannot connect"):  # why it is not reached directly
                await pool.get(unreachable(y), item[0])
            assert pool.way(y.id) is None
            assert c.service.forwarding.forwarded_requests == 0

    run(work)


def test_a_circle_of_peers_asks_nobody_twice(tmp_path):
    async def work():
        async with AsyncExitStack() as stack:
            a, b, c = [await stack.enter_async_context(node(tmp_path, letter)) for letter in "abc"]
            for one in (a, b, c):
                one.knows(*(other for other in (a, b, c) if other is not one))
            pool = await stack.enter_async_context(open_pool(network=NETWORK))
            make = make_forward(
                wire.Info(0), network=NETWORK, target=PeerId(b"q" * 32), nonce=b"1" * 32, hops=wire.HOPS_MAX,
                patience=20_000, deal_seed=None, owner=b"", now=0,
            )  # fmt: skip
            answer = await pool.forward(a.address, make, 100)
            assert answer.code == "unreachable"
            for one in (a, b, c):
                assert one.service.counters.requests <= 5  # each once by each path that does not cross itself
                assert one.service.forwarding.open_forwards == 0
            assert sum(one.service.counters.refusals["loop"] for one in (a, b, c)) > 0

    run(work)


def test_direct_is_tried_again_and_then_used(tmp_path):
    async def work():
        async with AsyncExitStack() as stack:
            a = await stack.enter_async_context(node(tmp_path, "a"))
            x = await stack.enter_async_context(node(tmp_path, "x"))
            pool = await stack.enter_async_context(client(a.address))
            a.knows(x)
            port = closed_port()
            far = Address("127.0.0.1", port, x.id, NETWORK)
            item = shard(0)
            await pool.put(far, [item])
            await pool.get(far, item[0])
            assert pool.way(x.id) == a.id
            nursery = await stack.enter_async_context(open_background())
            await nursery.start(
                lambda task_status: serve(
                    "127.0.0.1", port, x.seed, wire.SUBPROTOCOL, x.service.serve, task_status=task_status
                )
            )
            while pool.way(x.id) is not None:
                assert await pool.get(far, item[0]) == item[1]
                await trio.sleep(0.05)
            before = a.service.forwarding.forwarded_requests
            assert await pool.get(far, item[0]) == item[1]
            assert a.service.forwarding.forwarded_requests == before
            nursery.cancel_scope.cancel()

    run(work)


def test_a_silent_address_does_not_hold_up_what_another_peer_can_bring(tmp_path):
    """A firewall that drops: the connection neither comes nor fails (the head start is shorter than CONNECT_TIMEOUT)."""

    async def work():
        with socket.socket() as black_hole:
            black_hole.bind(("127.0.0.1", 0))
            black_hole.listen()
            async with node(tmp_path, "a") as a, node(tmp_path, "x") as x, client(a.address) as pool:
                a.knows(x)
                far = Address("127.0.0.1", black_hole.getsockname()[1], x.id, NETWORK)
                with trio.fail_after(relay_module.HEAD_START + 4):
                    await pool.put(far, [shard(0)])
                assert pool.way(x.id) == a.id

    run(work)


def test_without_anybody_to_ask_the_error_is_that_of_the_direct_connection(tmp_path):
    async def work():
        async with node(tmp_path, "a") as a, client(unreachable(a)) as pool:
            with pytest.raises(PeerUnavailable, match="cannot connect"):
                await pool.get(unreachable(a), bytes(32))

    run(work)


def test_a_target_that_is_down_costs_little(tmp_path, monkeypatch):
    """Relays are asked about it ever more seldom, and only the first one may ask further; others are not concerned."""
    monkeypatch.setattr(relay_module, "AGAIN", (0.2, 0.8))

    async def work():
        async with AsyncExitStack() as stack:
            a, b, c, x = [await stack.enter_async_context(node(tmp_path, letter)) for letter in "abcx"]
            down = Address("127.0.0.1", closed_port(), PeerId(sign.public_key(b"w" * 32)), NETWORK)
            for one in (a, b, c):
                one.knows(*(other for other in (a, b, c, x) if other is not one))
                one.known.addresses[down.id] = down
            pool = await stack.enter_async_context(client(a.address, b.address, c.address))
            before = trio.current_time()
            tries = 0
            while trio.current_time() < before + 1.5:
                tries += 1
                with pytest.raises(PeerUnavailable, match="cannot connect"):
                    await pool.get(down, bytes(32))
                await trio.sleep(0.01)
            assert tries > 20
            asked = sum(one.service.counters.requests for one in (a, b, c))
            assert asked <= 5 * 4  # three relays and two neighbours of the first, at 0, 0.2, 0.6 and 1.4 s
            await pool.put(unreachable(x), [ITEM])

    run(work)


# ---- relays that lie ---------------------------------------------------------------------------------------------------
def false_relay(answer, versions=(wire.OLDEST, wire.VERSION)):
    """A peer that greets rightly and answers a Forward with what `answer(forward)` returns."""
    seed = b"f" * 32

    async def handler(channel):
        session = ServerSession(
            peer=PeerId(sign.public_key(seed)), network=NETWORK, nonce=os.urandom(32),
            certificate_hash=channel.certificate_hash, window=8 * MIB, versions=versions,
        )  # fmt: skip
        await channel.send(session.start())
        session.receive(await channel.receive())
        await channel.send(session.welcome(admitted=True, free=1 << 30, reason=""))
        while True:
            request = session.receive(await channel.receive())
            await channel.send(session.answer(answer(request)))

    @asynccontextmanager
    async def serving():
        async with trio.open_nursery() as nursery:
            port = await nursery.start(
                lambda task_status: serve("127.0.0.1", 0, seed, wire.SUBPROTOCOL, handler, task_status=task_status)
            )
            yield Address("127.0.0.1", port, PeerId(sign.public_key(seed)), NETWORK)
            nursery.cancel_scope.cancel()

    return serving()


ITEM = shard(0)
LIES = {
    "its own signature": lambda forward: make_answer(forward, wire.Data(0, ITEM[1]), network=NETWORK, seed=b"f" * 32),
    "an answer of another request": lambda forward: make_answer(
        msgspec.structs.replace(forward, nonce=b"0" * 32), wire.Data(0, ITEM[1]), network=NETWORK, seed=b"x" * 32
    ),
    "a no that nobody said": lambda forward: make_answer(
        forward, wire.Error(0, "missing", "no such shard here"), network=NETWORK, seed=b"f" * 32
    ),
    "noise": lambda forward: wire.Forwarded(forward.request, os.urandom(64), memoryview(os.urandom(100))),
}


@pytest.mark.parametrize("lie", LIES)
def test_fault_069_a_relay_cannot_forge_and_its_lies_are_not_held_against_the_peer(tmp_path, lie):
    async def work():
        asked = []

        def answer(request):
            asked.append(request)
            return LIES[lie](request)

        async with false_relay(answer) as bad, node(tmp_path, "x") as x:
            await open_direct(x)
            async with client(bad, deal=False) as pool:
                with pytest.raises(PeerUnavailable):
                    await pool.get(unreachable(x), ITEM[0])
                assert len(asked) == 1
            async with node(tmp_path, "a") as a, client(bad, a.address) as pool:
                a.knows(x)
                pool._relays._ways[x.id] = bad  # it was an honest one before
                await pool._lane(bad, "read").connect()
                assert await pool.get(unreachable(x), ITEM[0]) == ITEM[1]
                assert pool.way(x.id) == a.id
                for _ in range(5):
                    await pool.get(unreachable(x), ITEM[0])
                assert len(asked) == 2  # it is not asked again

    run(work)


async def open_direct(x):
    """Store the item directly."""
    async with client() as pool:
        await pool.put(x.address, [ITEM])


def test_a_peer_that_lies_itself_is_found_out_through_a_relay(tmp_path):
    async def work():
        def answer(forward):
            return make_answer(forward, wire.Data(0, b"wrong"), network=NETWORK, seed=b"f" * 32)

        async with false_relay(answer) as bad, node(tmp_path, "a") as a, client(a.address) as pool:
            a.known.addresses[bad.id] = bad
            with pytest.raises(BlobCorrupt):
                await pool.get(Address("127.0.0.1", closed_port(), bad.id, NETWORK), ITEM[0])

    run(work)


@pytest.mark.parametrize("kind", ["old", "refusing", "off"])
def test_peers_that_do_not_forward_are_left_out(tmp_path, kind):
    async def work():
        async with AsyncExitStack() as stack:
            x = await stack.enter_async_context(node(tmp_path, "x"))
            if kind == "old":
                bad = await stack.enter_async_context(false_relay(None, versions=(3, 3)))
            elif kind == "refusing":
                bad = (await stack.enter_async_context(node(tmp_path, "b", forwards=False))).address
            else:
                limits = ClientLimits(forward_rate=0)
                bad = (await stack.enter_async_context(node(tmp_path, "b", limits=limits))).address
            pool = await stack.enter_async_context(client(bad))
            with pytest.raises(PeerUnavailable):
                await pool.put(unreachable(x), [ITEM])
            a = await stack.enter_async_context(node(tmp_path, "a"))
            a.knows(x)
            pool.use_relays(lambda: [bad, a.address])
            pool._relays._hopeless.clear()
            pool._relays._alone_until = 0.0
            assert (await pool.put(unreachable(x), [ITEM])).peer == x.id

    run(work)


# ---- what a relay allows -----------------------------------------------------------------------------------------------
def test_many_forwards_at_once_wait_for_their_turn_and_all_come(tmp_path, monkeypatch):
    monkeypatch.setattr(forwarding_module, "FORWARDS_MAX", 4)
    monkeypatch.setattr(relay_module, "BUSY_PAUSE", 0.02)
    most = 0

    async def work():
        nonlocal most
        async with node(tmp_path, "a") as a, node(tmp_path, "x") as x, client(a.address) as pool:
            a.knows(x)
            far = unreachable(x)
            items = [shard(i, 20_000) for i in range(60)]
            await pool.put(far, items)

            async def get(item):
                nonlocal most
                assert await pool.get(far, item[0]) == item[1]
                most = max(most, a.service.forwarding.open_forwards)

            async with trio.open_nursery() as nursery:
                for item in items:
                    nursery.start_soon(get, item)
            assert most <= 4
            assert a.service.forwarding._memory == 0

    run(work)


def test_a_client_that_forwards_too_much_waits_and_others_do_not(tmp_path):
    """Its rate of forwarded bytes is its own: its direct requests go on."""
    limits = ClientLimits(forward_rate=100_000, burst=1.0)

    async def work():
        async with node(tmp_path, "a", limits=limits) as a, node(tmp_path, "x") as x, client(a.address) as pool:
            a.knows(x)
            far = unreachable(x)
            item = shard(0, 900_000)  # more than readers and the address together may have at once
            await pool.put(far, [item])
            start = trio.current_time()
            await pool.put(a.address, [shard(1)])
            assert trio.current_time() - start < 1
            assert await pool.has(far, [item[0]]) == (True,)
            assert trio.current_time() - start > 1  # 900 kB at 200 kB/s are paid off

    run(work)


def test_deadlines_shrink_on_the_way(tmp_path):
    seen = []

    def answer(forward):
        seen.append(forward)
        return make_answer(forward, wire.HasResult(0, (False,)), network=NETWORK, seed=b"f" * 32)

    async def work():
        async with AsyncExitStack() as stack:
            far = await stack.enter_async_context(false_relay(answer))
            a = await stack.enter_async_context(node(tmp_path, "a"))
            b = await stack.enter_async_context(node(tmp_path, "b"))
            a.knows(b)
            b.known.addresses[far.id] = far
            pool = await stack.enter_async_context(client(a.address))
            assert await pool.has(Address("127.0.0.1", closed_port(), far.id, NETWORK), [bytes(32)]) == (False,)
            assert seen[0].hops == 0
            assert seen[0].patience <= 1000 * (relay_module.PATIENCE - 2 * forwarding_module.MARGIN)

    run(work)


def test_a_signed_request_is_taken_once(tmp_path):
    """A relay that keeps a Put cannot store it again later, when it has been deleted."""

    async def work():
        async with node(tmp_path, "x") as x, open_pool(network=NETWORK) as pool:
            put = wire.Put(0, (wire.Shard(ITEM[0], memoryview(ITEM[1])),))

            def make(**changes):
                values = {
                    "network": NETWORK, "target": x.id, "nonce": b"1" * 32, "hops": 0, "patience": 1000,
                    "deal_seed": DEAL_SEED, "owner": OWNER, "now": int(time.time()),
                }  # fmt: skip
                return make_forward(put, **values | changes)

            async def send(build):
                answer = await pool.forward(x.address, build, 2000)
                return msgspec.msgpack.decode(answer.body)

            assert (await send(make()))[0] == 20
            assert (await send(make()))[2:] == ["refused", "this request was here before"]
            for changes, why in (
                ({"now": int(time.time()) - 400}, "holds until"),
                ({"now": int(time.time()) + 4000}, "holds until"),
                ({"network": b"m" * 32}, "signature"),
                ({"deal_seed": None}, "no deal key"),
                ({"owner": b"o" * 31}, "key"),
            ):
                refused = await send(make(nonce=os.urandom(32), **changes))
                assert refused[0] == 30
                assert why in refused[3]
            assert x.store.counts()[0] == 1

    run(work)


def test_nonces_are_forgotten_when_they_expire_and_never_too_many(monkeypatch):
    monkeypatch.setattr(forwarding_module, "NONCES_MAX", 3)
    nonces = Nonces()
    assert [nonces.take(b"a", 10, 0), nonces.take(b"a", 10, 9), nonces.take(b"a", 20, 10)] == [True, False, True]
    assert all(nonces.take(bytes([i]), 30, 10) for i in range(5))
    assert len(nonces._until) == 3


def test_fault_095_who_takes_no_answers_holds_a_bounded_part_of_the_forwards(tmp_path):
    """64 small requests for a MiB each, by way of a peer, and nothing is read: others are still served by the same way."""

    async def work():
        async with AsyncExitStack() as stack:
            a = await stack.enter_async_context(node(tmp_path, "a"))
            x = await stack.enter_async_context(node(tmp_path, "x"))
            a.knows(x)
            item = shard(0, MIB)
            pool = await stack.enter_async_context(client(a.address))
            await pool.put(unreachable(x), [item])
            greedy = await stack.enter_async_context(hostile(a.address))
            session = await greedy.greet(a.address, NETWORK, None)
            for number in range(wire.REQUESTS_MAX):
                make = make_forward(
                    wire.Get(0, item[0], 0, 0), network=NETWORK, target=x.id, nonce=os.urandom(32), hops=0,
                    patience=60_000, deal_seed=None, owner=b"", now=0,
                )  # fmt: skip
                await greedy.send_frame(session.request(make(number)))
            forwarding = a.service.forwarding
            while forwarding.forwarded_requests < 5:  # noqa: ASYNC110 - another task's state
                await trio.sleep(0.01)
            assert 0 < forwarding.open_forwards < wire.REQUESTS_MAX / 2
            assert forwarding._memory <= forwarding_module.MEMORY_MAX / 2
            assert await pool.has(unreachable(x), [item[0]]) == (True,)
            other = shard(9)
            await pool.put(a.address, [other])
            assert await pool.get(a.address, other[0]) == other[1]

    run(work)
