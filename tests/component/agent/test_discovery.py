"""An agent that finds peers by asking peers, over real sockets: from one address, and where they have moved to."""

import os
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio

sys.path.insert(0, str(Path(__file__).parent))

from agentworld import FakeTransport, open_driver, open_ledger, run, until

from fsdecloud import codec
from fsdecloud.agent import discovery, hosts, peers
from fsdecloud.agent.__main__ import open_transport
from fsdecloud.agent.journal import META, open_journal
from fsdecloud.config import make_private_dir
from fsdecloud.crypto import sign
from fsdecloud.errors import UsageError
from fsdecloud.net import discovery as seeking
from fsdecloud.net.address import Address, parse_url
from fsdecloud.net.discovery import load_book
from fsdecloud.net.nursery import open_background
from fsdecloud.net.pool import open_pool
from fsdecloud.net.websocket import serve
from fsdecloud.peerd.directory import Directory
from fsdecloud.peerd.exchange import Exchange
from fsdecloud.peerd.server import PeerService
from fsdecloud.peerd.setup import Policy
from fsdecloud.peerd.writer import ShardWriter
from fsdecloud.store.shards import ShardStore
from fsdecloud.types import PeerId
from fsdecloud.wire import agentapi
from fsdecloud.wire import peer as wire
from fsdecloud.wire.agentapi import Empty, RegistryPeer

NETWORK = b"N" * 32


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(seeking, "ASK_SOON", 0.2)
    monkeypatch.setattr(seeking, "TEST_PAUSE", 0.02)
    monkeypatch.setattr(discovery, "LOOK_SOON", 0.2)
    monkeypatch.setattr(hosts, "SETTLE", 0.3)
    monkeypatch.setattr(hosts, "RECRUIT_FIRST", 0.1)
    monkeypatch.setattr(peers, "PROBE_URGENT", 0.1)


def seed_of(letter):
    return letter.encode() * 32


def id_of(letter):
    return PeerId(sign.public_key(seed_of(letter)))


def registered(*nodes, sequence=1):
    return tuple(RegistryPeer(node.id, str(node.address), 1 << 30, sequence) for node in nodes)


class Node:
    """A storage peer: what it stores, whom it knows, where it listens."""

    def __init__(self, address, directory, exchange, store):
        self.address = address
        self.id = address.id
        self.directory = directory
        self.exchange = exchange
        self.store = store

    def register(self, letters):
        """Take a registry with these peers; where it says they are does not matter."""
        somewhere = [Address("127.0.0.1", 9, id_of(letter), NETWORK) for letter in letters]
        self.directory.use([RegistryPeer(a.id, str(a), 1) for a in somewhere])

    async def wait_knows(self, letters):
        async def knows():
            return all(self.exchange.book.tried(id_of(letter)) is not None for letter in letters)

        await until(knows)


@asynccontextmanager
async def open_node(path, letter, bootstrap=(), network="abcdef"):
    """Run a peer; what it holds stays for the next one of this name, which listens elsewhere."""
    peer = id_of(letter)
    path = path / letter
    path.mkdir(mode=0o700, exist_ok=True, parents=True)
    (path / "policy.toml").write_text('admit = ["*"]\n')
    async with AsyncExitStack() as stack:
        store = stack.enter_context(ShardStore(path, 1 << 30, reserve=0, map_size=1 << 28))
        pool = await stack.enter_async_context(open_pool(network=NETWORK))
        directory = Directory(socket=path / "nothing", network=NETWORK, peer=peer)
        exchange = Exchange(
            pool=pool, directory=directory, path=path / "known", network=NETWORK, peer=peer, bootstrap=bootstrap
        )
        writer = ShardWriter(store)
        service = PeerService(
            seed=seed_of(letter), peer=peer, network=NETWORK, store=store, writer=writer,
            policy=Policy(path / "policy.toml"), exchange=exchange,
        )  # fmt: skip
        nursery = await stack.enter_async_context(open_background())
        nursery.start_soon(writer.run)
        port = await nursery.start(
            lambda task_status: serve(
                "127.0.0.1", 0, seed_of(letter), wire.SUBPROTOCOL, service.serve, task_status=task_status
            )
        )
        address = Address("127.0.0.1", port, peer, NETWORK)
        exchange.announce(seed_of(letter), str(address))
        node = Node(address, directory, exchange, store)
        node.register(network)
        nursery.start_soon(exchange.run)
        yield node
        nursery.cancel_scope.cancel()


async def open_nodes(stack, path, letters):
    """Run peers that all know the first one; return when that knows them all."""
    first = await stack.enter_async_context(open_node(path, letters[0]))
    others = [
        await stack.enter_async_context(open_node(path, letter, [first.address], letters)) for letter in letters[1:]
    ]
    await first.wait_knows(letters[1:])
    return [first, *others]


async def wait_used(driver, nodes):
    """Wait until the agent uses these peers at these addresses, and they answer."""
    wanted = {(node.id, node.address.port) for node in nodes}

    async def used():
        status = await driver.status()
        return {(state.id, parse_url(state.url).port) for state in status.peers if state.state == "up"} >= wanted

    await until(used)


def test_fault_059_a_client_that_was_told_one_peer_finds_the_others(tmp_path):
    """There is no ledger anywhere near it. What it stores is on all of them, and after a restart it needs nobody to tell."""

    async def work():
        async with AsyncExitStack() as stack:
            nodes = await open_nodes(stack, tmp_path / "peers", "abcdef")
            told = {"bootstrap": (str(nodes[0].address),)}
            async with open_driver(tmp_path / "v", open_transport, **told) as driver:
                await wait_used(driver, nodes)

                async def are_hosts():
                    return (await driver.status()).n == 6

                await until(are_hosts)
                entry = driver.stage(os.urandom(300_000))
                await driver.store()
                await driver.wait_stored([entry], 6)
                assert all(node.store.used_bytes > 0 for node in nodes)
                assert await driver.fetch(entry)
            book = load_book(tmp_path / "v" / "agent" / "known", discovery.NOBODY)
            assert {PeerId(known.peer) for known in book.everybody()} == {node.id for node in nodes}
            assert book.anchors
            async with open_driver(tmp_path / "v", open_transport) as driver:  # it was told nobody
                await wait_used(driver, nodes)
                assert await driver.fetch(entry)

    run(work)


def test_fault_056_a_peer_that_moved_while_there_is_no_ledger_is_found(tmp_path):
    """The registry's address is one where nobody is; who has moved tells the others, and one of them tells the client."""

    async def work():
        volume = tmp_path / "v"
        async with AsyncExitStack() as stack:
            nodes = await open_nodes(stack, tmp_path / "peers", "abc")
            async with open_node(tmp_path / "peers", "d", [nodes[0].address], "abcd") as moving:
                nodes[0].register("abcd")
                await nodes[0].wait_knows("d")
                async with (
                    open_ledger(volume, registered(*nodes, moving, sequence=int(time.time()))),
                    open_driver(volume, open_transport, redundancy="3/4") as driver,
                ):
                    await wait_used(driver, [*nodes, moving])
                    entry = driver.stage(os.urandom(300_000))
                    await driver.store()
                    await driver.wait_stored([entry], 4)
            await trio.sleep(1.0)  # announcements are numbered by seconds: one that moves within one says nothing newer
            async with open_driver(volume, open_transport, redundancy="3/4") as driver:  # the ledger is gone
                await wait_used(driver, nodes)
                async with open_node(tmp_path / "peers", "d", [nodes[0].address], "abcd") as moved:
                    assert moved.address != moving.address
                    more = driver.stage(os.urandom(200_000))
                    await driver.store([more])
                    await wait_used(driver, [*nodes, moved])
                    await driver.wait_stored([more], 4)

    run(work)


def test_a_newer_announcement_wins_and_a_newer_registration_wins_again(tmp_path):
    """The peer answers at both addresses: which one is used is a matter of what it said last."""

    async def work():
        volume, now = tmp_path / "v", int(time.time())
        async with AsyncExitStack() as stack:
            a, b = await open_nodes(stack, tmp_path / "peers", "ab")
            old = Address("localhost", b.address.port, b.id, NETWORK)
            entry = RegistryPeer(b.id, str(old), 1 << 30, now - 1000)
            async with open_ledger(volume, (*registered(a, sequence=now), entry)) as ledger:

                async def host():
                    status = await driver.status()
                    return {parse_url(state.url).host for state in status.peers if state.id == b.id}

                async def is_announced():
                    return await host() == {"127.0.0.1"}

                async def is_registered():
                    return await host() == {"localhost"}

                async with open_driver(volume, open_transport) as driver:
                    await until(is_announced)
                    ledger.registry = (ledger.registry[0], RegistryPeer(b.id, str(old), 1 << 30, now + 1000))
                    ledger.mine()
                    await until(is_registered)

    run(work)


def test_a_registry_that_says_nothing_new_of_a_peer_moves_it_nowhere():
    """It was found at another address because it did not answer at the registered one; somebody else registers meanwhile."""

    async def work():
        net = FakeTransport(2)
        one, other = net.registry()
        book = peers.PeerBook(net, network=NETWORK, clock=trio.current_time, jitter=lambda: 0.5)
        book.update([RegistryPeer(one.id, one.url, 1, 100)])
        found = Address("192.0.2.1", 7, one.id, NETWORK)
        book.move(found, 0)
        book.update([RegistryPeer(one.id, one.url, 1, 100), other])
        assert book.peer(one.id).address == found
        book.update([RegistryPeer(one.id, one.url, 2, 101), other])  # it registers again: it is there
        assert book.peer(one.id).url == one.url
        book.move(found, 200)
        book.update([RegistryPeer(one.id, one.url, 2, 150), other])  # older than what it announced since
        assert book.peer(one.id).address == found
        await trio.lowlevel.checkpoint()

    run(work)


def test_fault_076_who_is_in_no_registry_is_not_used_when_there_is_one(tmp_path):
    async def work():
        volume = tmp_path / "v"
        async with AsyncExitStack() as stack:
            nodes = await open_nodes(stack, tmp_path / "peers", "abc")
            stranger = nodes[2]
            async with (
                open_ledger(volume, registered(*nodes[:2])),
                open_driver(volume, open_transport, bootstrap=(str(nodes[0].address),)) as driver,
            ):
                await wait_used(driver, nodes[:2])

                async def was_asked():
                    return nodes[0].exchange.answered_questions >= asked + 2

                asked = nodes[0].exchange.answered_questions
                await until(was_asked)
                assert stranger.id not in {state.id for state in (await driver.status()).peers}

    run(work)


def test_a_registry_that_an_earlier_release_kept_is_read(tmp_path):
    """It knew an id, an address and a capacity of each peer; without a ledger that is what there is."""

    async def work():
        volume = tmp_path / "v"
        async with AsyncExitStack() as stack:
            nodes = await open_nodes(stack, tmp_path / "peers", "ab")
            kept = codec.encode((tuple((node.id, str(node.address), 1 << 30) for node in nodes),))
            make_private_dir(volume / "agent")
            journal = open_journal(volume / "agent" / "journal", b"V" * 32)
            journal.apply([(META, b"registry", kept)])
            journal.close()
            async with open_driver(volume, open_transport) as driver:
                await wait_used(driver, nodes)

    run(work)


def test_an_address_that_names_no_peer_is_refused(tmp_path):
    async def work():
        with pytest.raises(UsageError, match="which peer"):
            async with open_driver(tmp_path / "v", open_transport, bootstrap=("wss://127.0.0.1:9",)) as driver:
                await driver.call("status", Empty(), agentapi.AgentStatus)

    run(work)
