"""Peers that get to know each other, over loopback sockets: from one address, after a restart, after a move."""

import time
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio

from fsdecloud.crypto import sign
from fsdecloud.errors import RemoteError
from fsdecloud.net import discovery as module
from fsdecloud.net.address import Address
from fsdecloud.net.discovery import load_book
from fsdecloud.net.nursery import open_background
from fsdecloud.net.pool import open_pool
from fsdecloud.net.websocket import serve
from fsdecloud.peerd import exchange as answering
from fsdecloud.peerd.directory import Directory
from fsdecloud.peerd.exchange import Exchange
from fsdecloud.peerd.forwarding import Forwarding
from fsdecloud.peerd.server import PeerService
from fsdecloud.peerd.setup import Policy, parse_bootstrap
from fsdecloud.peerd.writer import ShardWriter
from fsdecloud.store.shards import ShardStore
from fsdecloud.types import PeerId
from fsdecloud.wire import peer as wire
from fsdecloud.wire.agentapi import RegistryPeer
from fsdecloud.wire.announcements import sign_announcement
from fsdecloud.wire.forwarding import check_answer, make_forward

NETWORK = b"n" * 32


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(module, "ASK_SOON", 0.3)
    monkeypatch.setattr(module, "TEST_PAUSE", 0.02)


def run(work, *args):
    async def bounded():
        with trio.fail_after(60):
            await work(*args)

    trio.run(bounded)


async def until(condition):
    while not condition():  # noqa: ASYNC110 - the state of other tasks
        await trio.sleep(0.01)


def peer_id(letter):
    return PeerId(sign.public_key(letter.encode() * 32))


class Node:
    def __init__(self, address, directory, exchange, pool):
        self.address = address
        self.id = address.id
        self.directory = directory
        self.exchange = exchange
        self.book = exchange.book
        self.pool = pool

    def knows(self):
        """Return the letters of all whom it has had a connection with."""
        return "".join(sorted(c for c in "abcdefxyz" if self.book.tried(peer_id(c)) is not None))

    def registry(self, *addresses):
        """Take a registry with these peers."""
        self.directory.use([RegistryPeer(a.id, str(a), 1) for a in addresses])


@asynccontextmanager
async def node(path, letter, *, bootstrap=(), port=0, registry=()):
    seed, peer = letter.encode() * 32, peer_id(letter)
    path = path / letter
    path.mkdir(mode=0o700, exist_ok=True)
    (path / "policy.toml").write_text('admit = ["*"]\n')
    async with AsyncExitStack() as stack:
        store = stack.enter_context(ShardStore(path, 1 << 30, reserve=0, map_size=1 << 28))
        pool = await stack.enter_async_context(open_pool(network=NETWORK))
        directory = Directory(socket=path / "nothing", network=NETWORK, peer=peer)
        directory.use([RegistryPeer(a.id, str(a), 1) for a in registry])
        exchange = Exchange(
            pool=pool, directory=directory, path=path / "known", network=NETWORK, peer=peer, bootstrap=bootstrap
        )
        writer = ShardWriter(store)
        service = PeerService(
            seed=seed,
            peer=peer,
            network=NETWORK,
            store=store,
            writer=writer,
            policy=Policy(path / "policy.toml"),
            forwarding=Forwarding(peer=peer, network=NETWORK, pool=pool, directory=directory),
            exchange=exchange,
        )
        nursery = await stack.enter_async_context(open_background())
        nursery.start_soon(writer.run)
        bound = await nursery.start(
            lambda task_status: serve("127.0.0.1", port, seed, wire.SUBPROTOCOL, service.serve, task_status=task_status)
        )
        address = Address("127.0.0.1", bound, peer, NETWORK)
        exchange.announce(seed, str(address))
        nursery.start_soon(exchange.run)
        yield Node(address, directory, exchange, pool)
        nursery.cancel_scope.cancel()


def somewhere(letter, port=9):
    """Return an address that a registry has of a peer; where it says does not matter to a test."""
    return Address("127.0.0.1", port, peer_id(letter), NETWORK)


def test_fault_059_one_bootstrap_address_is_enough_to_find_the_network(tmp_path):
    """The newcomer has no ledger; those who tell have one, and tell of registered peers only."""

    async def work():
        async with AsyncExitStack() as stack:
            a = await stack.enter_async_context(node(tmp_path, "a"))
            a.registry(*map(somewhere, "bcd"))
            others = [await stack.enter_async_context(node(tmp_path, c, bootstrap=[a.address])) for c in "bcd"]
            await until(lambda: a.knows() == "bcd")
            x = await stack.enter_async_context(node(tmp_path, "x", bootstrap=[a.address]))
            await until(lambda: x.knows() == "abcd")
            assert x.directory.known(others[0].id) == others[0].address
            assert {address.id for address in x.directory.others()} == {a.id, *(other.id for other in others)}
            assert a.knows() == "bcd"  # x is not registered: nobody tests it, and nobody is told of it
            a.registry(*map(somewhere, "bcdx"))
            await until(lambda: "x" in a.knows())

    run(work)


def test_fault_059_a_peer_with_an_empty_table_begins_with_its_bootstrap_again(tmp_path):
    async def work():
        async with node(tmp_path, "a") as a:
            a.registry(somewhere("x"))
            async with node(tmp_path, "x", bootstrap=[a.address]) as x:
                await until(lambda: x.knows() == "a")
            (tmp_path / "x" / "known").unlink()
            async with node(tmp_path, "x", bootstrap=[a.address]) as x:
                await until(lambda: x.knows() == "a")
            (tmp_path / "x" / "known").write_bytes(b"damaged")
            async with node(tmp_path, "x", bootstrap=[a.address]) as x:
                await until(lambda: x.knows() == "a")

    run(work)


def test_fault_059_anchors_are_enough_after_a_restart(tmp_path):
    """No bootstrap, no ledger: it asks whom it knew."""

    async def work():
        async with node(tmp_path, "a") as a, node(tmp_path, "b", bootstrap=[a.address]) as b:
            a.registry(somewhere("b"), somewhere("x"))
            async with node(tmp_path, "x", bootstrap=[a.address]) as x:
                await until(lambda: x.knows() == "ab")
            asked = a.exchange.answered_questions + b.exchange.answered_questions
            async with node(tmp_path, "x") as x:
                assert set(x.book.anchors) == {a.id, b.id}
                await until(lambda: a.exchange.answered_questions + b.exchange.answered_questions > asked)

    run(work)


def test_a_peer_that_moved_is_found_where_it_is_now(tmp_path):
    """It comes back at another port and shows itself to those it knew; requests for it go there."""

    async def work():
        async with node(tmp_path, "a") as a:
            a.registry(somewhere("x"))
            async with node(tmp_path, "x", bootstrap=[a.address]) as x:
                await until(lambda: a.knows() == "x")
                before = x.address
            now = int(time.time())
            while int(time.time()) == now:  # noqa: ASYNC110 - an announcement's sequence is in seconds
                await trio.sleep(0.05)
            async with node(tmp_path, "x") as x:
                assert x.address != before
                # Found when the new address has answered; the old one is the one that is known until then.
                await until(lambda: a.book.tried(x.id).port == x.address.port)
                assert await a.directory.find(x.id) == x.address
                async with open_pool(network=NETWORK) as pool:
                    make = make_forward(
                        wire.Info(0), network=NETWORK, target=x.id, nonce=b"1" * 32, hops=0, patience=9000,
                        deal_seed=None, owner=b"", now=0,
                    )  # fmt: skip
                    answer = await pool.forward(a.address, make, 10)
                    assert isinstance(check_answer(make(0), answer, network=NETWORK), wire.InfoResult)
            a.directory.failed(x.address)
            a.registry(somewhere("x", 77))  # the ledger says something newer than any announcement
            assert a.directory.known(x.id).port == 77

    run(work)


def test_what_others_say_is_taken_only_when_it_is_true(tmp_path):
    async def work():
        async with node(tmp_path, "a") as a, open_pool(network=NETWORK) as pool:
            a.registry(*map(somewhere, "bcdef"))
            now = int(time.time())

            def announcement(letter, *, network=NETWORK, sequence=now, url=None):
                url = url or str(somewhere(letter, 1000 + ord(letter)))
                return sign_announcement(letter.encode() * 32, network=network, url=url, sequence=sequence)

            lies = [
                announcement("b", network=b"m" * 32),
                announcement("b", sequence=now + 4000),
                announcement("b", url=str(somewhere("c"))),
                announcement("b", url="https://example.org/"),
                announcement("b", url=f"wss://127.0.0.1:5/{peer_id('b').hex()}?network={'00' * 32}"),
                announcement("b")[:-1] + bytes([announcement("b")[-1] ^ 1]),
                announcement("b") + b"\x00",
                b"\xc1",
            ]
            for lie in lies:
                assert await pool.peers(a.address, 64, lie)
                assert len(a.book) == 0, lie
            a.exchange.seeker.hear([announcement("b")], "9.9.9.9")  # a private address, told from outside
            assert len(a.book) == 0
            await pool.peers(a.address, 0, announcement("y"))  # true, but nobody registered it
            await until(lambda: len(a.book) == 0)
            await pool.peers(a.address, 0, announcement("c"))  # registered, but nobody is there
            assert len(a.book) == 1
            await until(lambda: a.book.known(peer_id("c")).failures == 1)
            assert len(await pool.peers(a.address, 64, b"")) == 1  # itself, not what it could not reach

    run(work)


def test_fault_095_questions_for_peers_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(answering, "BURST", 5.0)

    async def work():
        async with node(tmp_path, "a") as a, open_pool(network=NETWORK) as pool:

            async def ask_on():
                while True:
                    await pool.peers(a.address, 64, b"")

            with pytest.raises(RemoteError, match="a moment ago"):
                await ask_on()
            assert a.exchange.answered_questions <= 7
            assert await pool.has(a.address, [bytes(32)]) == (False,)  # everything else goes on

    run(work)


def test_bootstrap_addresses_name_their_peer():
    url = str(somewhere("a"))
    assert parse_bootstrap(f" {url}  {url}") == (somewhere("a"), somewhere("a"))
    assert parse_bootstrap("") == ()
    with pytest.raises(Exception, match="which peer"):
        parse_bootstrap("wss://127.0.0.1:9")


def test_a_book_that_cannot_be_read_is_begun_anew(tmp_path):
    path = tmp_path / "known"
    path.write_bytes(b"x")  # and others may read it
    assert len(load_book(path, peer_id("a"))) == 0
