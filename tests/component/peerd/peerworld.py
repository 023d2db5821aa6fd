"""One storage peer within the test, on real files and sockets, and clients of several volumes."""

import time
from contextlib import asynccontextmanager

import blake3
import trio

from fsdecloud.crypto import sign
from fsdecloud.net.address import Address
from fsdecloud.net.pool import open_pool
from fsdecloud.net.websocket import serve
from fsdecloud.peerd.clients import ClientLimits
from fsdecloud.peerd.departure import Departure
from fsdecloud.peerd.server import PeerService
from fsdecloud.peerd.setup import Policy
from fsdecloud.peerd.writer import ShardWriter
from fsdecloud.store.shards import ShardStore
from fsdecloud.wire import peer as wire
from fsdecloud.wire.grants import sign_grant

SEED, NETWORK = b"s" * 32, b"n" * 32
PEER = sign.public_key(SEED)
DEALS = {name: name.encode() * 32 for name in "abcd"}
OWNERS = {name: (name.encode() * 16).upper() + bytes(16) for name in "abcd"}


def deal(name):
    return sign.public_key(DEALS[name])


def shard(i, size=1000):
    data = (b"%08d" % i).ljust(size, b"s")
    return blake3.blake3(data).digest(), data


class World:
    def __init__(self, path, address, store, service):
        self.path = path
        self.address = address
        self.store = store
        self.service = service

    @asynccontextmanager
    async def client(self, name=None):
        async def key(_peer):
            return sign.public_key(OWNERS[name])

        more = {"deal_seed": lambda _peer: DEALS[name], "owner": key} if name else {}
        async with open_pool(network=NETWORK, **more) as pool:
            yield pool

    def grant(self, name, shards):
        now = int(time.time())
        return sign_grant(
            OWNERS[name],
            network=NETWORK,
            peer=PEER,
            deal=deal(name),
            not_before=now,
            expires=now + 600,
            nonce=time.time_ns().to_bytes(32, "big"),
            shards=tuple(shards),
        )

    def change(self, shard_id, at=0):
        """Flip a bit of a shard on the disk."""
        place = self.store.locate(shard_id)
        with (self.path / "shards" / f"shards-{place.segment:08d}.seg").open("r+b") as file:
            file.seek(place.offset + at)
            byte = file.read(1)[0]
            file.seek(place.offset + at)
            file.write(bytes([byte ^ 1]))


@asynccontextmanager
async def world(path, *, policy='admit = ["*"]\n', quota=1 << 30, reserve=0, limits=None, scrub_period=0.0, **more):
    path.mkdir(mode=0o700, exist_ok=True)
    (path / "policy.toml").write_text(policy)
    with ShardStore(path, quota, reserve=reserve, map_size=1 << 28) as store:
        writer = ShardWriter(store)
        service = PeerService(
            seed=SEED,
            peer=PEER,
            network=NETWORK,
            store=store,
            writer=writer,
            policy=Policy(path / "policy.toml"),
            grace=0,
            limits=limits or ClientLimits(),
            departure=Departure(path / "departure.toml"),
            scrub_period=scrub_period,
            **more,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.run)
            nursery.start_soon(service.deleter.run)
            nursery.start_soon(service.scrubber.run)
            nursery.start_soon(service.leaser.run)
            port = await nursery.start(
                lambda task_status: serve(
                    "127.0.0.1", 0, SEED, wire.SUBPROTOCOL, service.serve, task_status=task_status
                )
            )
            yield World(path, Address("127.0.0.1", port, PEER, NETWORK), store, service)
            nursery.cancel_scope.cancel()


def run(work, *args):
    async def bounded():
        with trio.fail_after(40):
            await work(*args)

    trio.run(bounded)


async def until(condition):
    while not condition():  # noqa: ASYNC110 - the state of other tasks
        await trio.sleep(0.005)
