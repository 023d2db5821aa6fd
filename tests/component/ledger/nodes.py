"""Daemons without a network for the tests of this directory: sessions over memory channels, and one spoken by hand."""

from __future__ import annotations

import contextlib
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import trio

from fsdecloud.errors import PeerUnavailable, RemoteProtocolError, RemoteTimeout
from fsdecloud.ledger.blocks import encode_block, encode_header
from fsdecloud.ledgerd.hub import Hub
from fsdecloud.ledgerd.keeper import Keeper
from fsdecloud.ledgerd.session import Session
from fsdecloud.store.chain import open_chain
from fsdecloud.wire import gossip

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "ledger"))
from chainmaker import GENESIS_TIME, Maker, easy_network

NOW = GENESIS_TIME + 100_000


class MemoryChannel:
    """What a session needs of `net.websocket.Channel`, without a network."""

    def __init__(self, outgoing, incoming, remote="198.51.100.7:7713"):
        self._outgoing, self._incoming = outgoing, incoming
        self.server_key = bytes(32)
        self.remote = remote

    async def send(self, message):
        assert len(message) <= gossip.MESSAGE_MAX
        try:
            await self._outgoing.send(message)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise PeerUnavailable("gone") from exc

    async def receive(self):
        try:
            return await self._incoming.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError) as exc:
            raise PeerUnavailable("gone") from exc

    def close(self):
        self._outgoing.close()
        self._incoming.close()


def channel_pair():
    a_out, b_in = trio.open_memory_channel(2)
    b_out, a_in = trio.open_memory_channel(2)
    return MemoryChannel(a_out, a_in), MemoryChannel(b_out, b_in)


class Node:
    """A daemon's keeper and hub. `ended` is what its last session ended with."""

    def __init__(self, store, number, now=NOW, body_limit=None, **options):
        self.time = now
        self.keeper = Keeper(store, lambda: self.time, body_limit)
        self.hub = Hub(self.keeper, bytes([number]) * 32, bytes([number]) * 32, **options)
        self.ended = None
        self.endings = []

    async def run(self, channel, *, inbound):
        try:
            await Session(self.hub, channel, inbound=inbound).run()
        except (PeerUnavailable, RemoteProtocolError, RemoteTimeout) as exc:
            self.ended = exc
            self.endings.append(exc)
        finally:
            channel.close()

    async def serve(self, channel):
        """As the server does: bans count."""
        try:
            await self.hub.serve(channel)
        except (PeerUnavailable, RemoteProtocolError, RemoteTimeout) as exc:
            self.ended = exc
            self.endings.append(exc)
        finally:
            channel.close()


def session_test(tmp_path, work, nodes=1, *, make=None, options=None, **changes):
    """Run `work(make, *nodes)` with as many daemons that sync; `changes` are of the network's parameters."""
    make = make or Maker(easy_network(**changes))

    async def run():
        with trio.fail_after(40):
            async with AsyncExitStack() as stack:
                opened = [
                    Node(
                        stack.enter_context(open_chain(tmp_path / str(n), make.document, map_size=1 << 28)),
                        n + 1,
                        **(options or {}),
                    )
                    for n in range(nodes)
                ]
                async with trio.open_nursery() as nursery:
                    for node in opened:
                        nursery.start_soon(node.hub.sync.run)
                    await work(make, *opened)
                    nursery.cancel_scope.cancel()

    trio.run(run)


@asynccontextmanager
async def connected(a, b):
    """`a` has called `b`."""
    one, two = channel_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: a.run(one, inbound=False))
        nursery.start_soon(lambda: b.run(two, inbound=True))
        yield
        one.close()
        two.close()


async def fill(node, make, count, **options):
    for _ in range(count):
        await node.keeper.accept(encode_block(make.add(**options).block))


async def until(node, condition):
    """Wait for a condition that changes with the tip or the mempool of `node`."""
    while not condition():
        event = node.keeper.change_event()
        if condition():
            return
        await event.wait()


async def until_so(condition):
    """Wait for any other condition."""
    while not condition():  # noqa: ASYNC110 - not everything has an event
        await trio.sleep(0.001)


class Rogue:
    """Speaks the protocol by hand to one node."""

    def __init__(self, node, make, channel):
        self.node, self.make, self._channel = node, make, channel

    async def send(self, message):
        await self.raw(gossip.encode_message(message))

    async def raw(self, data):
        await self._channel.send(data)

    async def hello(self, work=0, **changes):
        fields = {"network": self.make.network, "url": "", "nonce": bytes([99]) * 32, "height": 0, "tip": b"\xff" * 32}
        fields |= {"time": self.node.time, "first": 1, "work": work.to_bytes(32), "justified": 0}
        await self.send(gossip.Hello(gossip.VERSION, **(fields | changes)))

    async def claim(self, point):
        """Say hello with this block as the tip."""
        await self.hello(int.from_bytes(point.work), height=point.height, tip=point.id)

    async def receive(self):
        return gossip.decode_message(await self._channel.receive())

    async def receive_or_none(self):
        """Return the next message; None when the other side has ended the session."""
        try:
            return await self.receive()
        except PeerUnavailable:
            return None

    async def try_send(self, message):
        """Send, if the other side still listens."""
        with contextlib.suppress(PeerUnavailable):
            await self.send(message)

    async def expect(self, kind):
        """Return the next message of this kind; others are skipped, and no compact block is at hand."""
        while True:
            message = await self.receive()
            if isinstance(message, kind):
                return message
            if isinstance(message, gossip.GetCompact):
                await self.send(gossip.Compact(b"", b"", b""))

    async def give_headers(self, blocks):
        """Answer the next question for headers with those of encoded blocks' headers."""
        await self.expect(gossip.GetHeaders)
        await self.send(gossip.Headers(tuple(encode_header(block.header) for block in blocks)))

    async def is_dropped(self):
        with contextlib.suppress(PeerUnavailable):
            while True:
                await self._channel.receive()

    async def expect_dropped(self, text):
        await self.is_dropped()
        assert isinstance(self.node.ended, RemoteProtocolError)
        assert text in str(self.node.ended)

    def close(self):
        self._channel.close()


@asynccontextmanager
async def rogue_of(node, make, *, serve=False):
    """Somebody who called `node` and speaks by hand."""
    one, two = channel_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: node.serve(one) if serve else node.run(one, inbound=True))
        yield Rogue(node, make, two)
        two.close()


def rogue_test(tmp_path, work, **changes):
    async def run(make, node):
        async with rogue_of(node, make) as rogue:
            await work(rogue)
        assert node.hub.peers() == ()
        assert list(node.hub.sync.sessions()) == []

    session_test(tmp_path, run, **changes)
