"""Light daemons without a network, and full ones that lie by hand, for the tests of this directory."""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from fsdecloud.crypto import sign
from fsdecloud.ledger.transactions import decode_tx, tx_id
from fsdecloud.ledgerd.asking import Asker
from fsdecloud.ledgerd.hub import Hub
from fsdecloud.ledgerd.light import LightKeeper
from fsdecloud.ledgerd.lightanswers import LightAnswers
from fsdecloud.store.chain import open_chain
from fsdecloud.wire import ledgerapi

sys.path.insert(0, str(Path(__file__).parent))
from nodes import NOW, Node, Rogue, channel_pair, session_test, until_so

VOLUME = bytes([21]) * 32
KEY = sign.public_key(VOLUME)
NOBODY = sign.public_key(bytes([22]) * 32)


class Light(Node):
    """A light daemon without a network; `ask` is what a local program does."""

    def __init__(self, store, now=NOW, number=50):
        self.time = now
        self.keeper = LightKeeper(store, lambda: self.time)
        self.hub = Hub(self.keeper, bytes([number]) * 32, bytes([number]) * 32)
        self.asker = Asker(self.keeper, self.hub.sync.sessions, self.hub.sync.changed)
        self.answers = LightAnswers(self.keeper, self.asker)
        self.ended = None
        self.endings = []

    async def ask(self, method, params):
        return await self.answers.handlers()[method][1](params)

    async def volume(self, key=KEY):
        return await self.ask("volume", ledgerapi.KeyQuery(key))

    async def submit(self, tx):
        return await self.ask("submit", ledgerapi.SubmitTx(tx))

    async def find(self, tx):
        return await self.ask("tx", ledgerapi.TxQuery(tx_id(decode_tx(tx))))

    async def reach(self, point):
        """Wait until this block is the tip."""
        while self.keeper.tip != point:
            event = self.keeper.tip_event()
            if self.keeper.tip != point:
                await event.wait()


@asynccontextmanager
async def light_daemon(path, make, **options):
    with open_chain(path, make.document, map_size=1 << 26) as store:
        light = Light(store, **options)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(light.hub.sync.run)
            yield light
            nursery.cancel_scope.cancel()


def light_test(tmp_path, work, nodes=1, **options):
    """Run `work(make, light, *full daemons)`; nobody is connected yet."""

    async def run(make, *full):
        async with light_daemon(tmp_path / "light", make) as light:
            await work(make, light, *full)

    session_test(tmp_path, run, nodes, **options)


@asynccontextmanager
async def liar_of(light, make, work=None):
    """Somebody that the light daemon called, who claims this work, else that of the tip, and speaks by hand."""
    one, two = channel_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: light.run(one, inbound=False))
        liar = Rogue(light, make, two)
        await liar.hello(
            int.from_bytes(make.tip.work) if work is None else work, height=make.tip.height, tip=make.tip.id
        )
        await until_so(lambda: light.hub.peers())
        yield liar
        two.close()


def ask_last_first(light):
    """Let the daemon that was connected last be the one that is asked first."""
    light.asker._preferred = list(light.hub.sync.sessions())[-1]


async def answer(liar, kind, *messages):
    """Answer the next question of this kind; return it."""
    question = await liar.expect(kind)
    for message in messages:
        await liar.send(message(question) if callable(message) else message)
    return question
