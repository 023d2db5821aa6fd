"""Deleting with a peer: whose grants it takes, what they drop, and that the disk gets its space back."""

import contextlib
import time
from contextlib import asynccontextmanager

import blake3
import pytest
import trio

from fsdecloud.crypto import sign
from fsdecloud.errors import BlobMissing, PeerRefused, RemoteError
from fsdecloud.net.address import Address
from fsdecloud.net.pool import open_pool
from fsdecloud.net.websocket import serve
from fsdecloud.peerd import deleting
from fsdecloud.peerd.server import PeerService
from fsdecloud.peerd.setup import Policy
from fsdecloud.peerd.writer import ShardWriter
from fsdecloud.store.shards import ShardStore
from fsdecloud.wire import peer as wire
from fsdecloud.wire.grants import GRANT_LIFE_MAX, sign_grant

SEED, NETWORK = b"s" * 32, b"n" * 32
PEER = sign.public_key(SEED)
DEALS = {name: name.encode() * 32 for name in "ab"}
OWNERS = {name: (name.encode() * 16).upper() + bytes(16) for name in "ab"}


def shard(i, size=1000):
    data = (b"%08d" % i).ljust(size, b"s")
    return blake3.blake3(data).digest(), data


class World:
    """One peer, and clients of several volumes."""

    def __init__(self, address, store, service):
        self.address = address
        self.store = store
        self.service = service
        self.directory = store._path / "shards"

    @asynccontextmanager
    async def client(self, name, owner=None):
        async def key(_peer):
            return sign.public_key(owner or OWNERS[name])

        async with open_pool(network=NETWORK, deal_seed=lambda _peer: DEALS[name], owner=key) as pool:
            yield pool

    def grant(self, name, shards, **changes):
        now = int(time.time())
        values = {
            "network": NETWORK,
            "peer": PEER,
            "deal": sign.public_key(DEALS[name]),
            "not_before": now,
            "expires": now + 600,
            "nonce": time.time_ns().to_bytes(32, "big"),
            "shards": tuple(shards),
        }
        return sign_grant(changes.pop("seed", OWNERS[name]), **(values | changes))

    def on_disk(self):
        return sum(file.stat().st_size for file in self.directory.glob("*.seg"))


@asynccontextmanager
async def world(path, *, grace=0):
    path.mkdir(mode=0o700, exist_ok=True)
    (path / "policy.toml").write_text('admit = ["*"]\n')
    with ShardStore(path, 1 << 30, reserve=0, map_size=1 << 28) as store:
        writer = ShardWriter(store)
        service = PeerService(
            seed=SEED,
            peer=PEER,
            network=NETWORK,
            store=store,
            writer=writer,
            policy=Policy(path / "policy.toml"),
            grace=grace,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.run)
            nursery.start_soon(service.deleter.run)
            port = await nursery.start(
                lambda task_status: serve(
                    "127.0.0.1", 0, SEED, wire.SUBPROTOCOL, service.serve, task_status=task_status
                )
            )
            yield World(Address("127.0.0.1", port, PEER, NETWORK), store, service)
            nursery.cancel_scope.cancel()


def run(work, *args):
    async def bounded():
        with trio.fail_after(30):
            await work(*args)

    trio.run(bounded)


async def until(condition):
    while not condition():  # noqa: ASYNC110 - the state of other tasks
        await trio.sleep(0.005)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(deleting, "PAUSE", 0.001)


def test_what_a_grant_names_goes_and_its_space_comes_back(tmp_path):
    async def work():
        async with world(tmp_path / "p") as w, w.client("a") as a, w.client("b") as b:
            items = [shard(i, 10_000) for i in range(60)]
            await a.put(w.address, items)
            await b.put(w.address, items[50:])
            assert w.on_disk() == 600_000
            assert await a.delete(w.address, w.grant("a", [i for i, _ in items[10:]])) == {}
            await until(lambda: w.on_disk() == 200_000)
            assert w.service.deleter.removed_shards == 40
            for i, data in items[:10] + items[50:]:  # the others are still there
                assert await a.get(w.address, i) == data
            with pytest.raises(BlobMissing):
                await a.get(w.address, items[20][0])
            await a.delete(w.address, w.grant("a", [i for i, _ in items]))
            await b.delete(w.address, w.grant("b", [i for i, _ in items]))
            await until(lambda: w.on_disk() == 0)
            await a.put(w.address, items[:5])
            assert await a.get(w.address, items[0][0]) == items[0][1]

    run(work)


def test_a_shard_is_kept_for_the_grace_period_and_storing_it_again_saves_it(tmp_path):
    async def work():
        async with world(tmp_path / "p", grace=3600) as w, w.client("a") as a:
            items = [shard(i) for i in range(3)]
            await a.put(w.address, items)
            await a.delete(w.address, w.grant("a", [i for i, _ in items]))
            assert w.store.doomed_count() == 3
            assert await a.get(w.address, items[0][0]) == items[0][1]
            await a.put(w.address, items[:1])
            assert w.store.doomed_count() == 2

    run(work)
    with ShardStore(tmp_path / "p", 1 << 30, reserve=0, map_size=1 << 28) as store:
        assert store.doomed_count() == 2


def test_grants_that_do_not_hold_are_refused_and_change_nothing(tmp_path):
    async def work():
        async with world(tmp_path / "p") as w, w.client("a") as a, w.client("b") as b:
            items = [shard(i) for i in range(4)]
            ids = [i for i, _ in items]
            await a.put(w.address, items)
            await b.put(w.address, [shard(9)])
            now = int(time.time())
            bad = {
                "forged": (a, w.grant("a", ids, seed=DEALS["a"])),  # by the agent, which has the deal's key only
                "of another volume": (b, w.grant("a", ids)),
                "another volume's signature": (a, w.grant("a", ids, seed=OWNERS["b"])),
                "for another deal": (a, w.grant("b", ids)),
                "for another peer": (a, w.grant("a", ids, peer=b"x" * 32)),
                "of another network": (a, w.grant("a", ids, network=b"x" * 32)),
                "expired": (a, w.grant("a", ids, not_before=now - 100, expires=now - 1)),
                "too early": (a, w.grant("a", ids, not_before=now + 100, expires=now + 200)),
                "for ever": (a, w.grant("a", ids, expires=now + GRANT_LIFE_MAX + 10)),
                "cut off": (a, w.grant("a", ids)[:-1]),
                "garbage": (a, b"garbage"),
            }
            for name, (client, grant) in bad.items():
                with pytest.raises(PeerRefused):
                    await client.delete(w.address, grant)
                assert w.store.doomed_count() == 0, name
            assert w.service.deleter.refused_grants == len(bad)
            # B's good grant for A's shards drops nothing: B has no claim on them.
            assert await b.delete(w.address, w.grant("b", ids)) == {}
            # A recorded one is taken once.
            good = w.grant("a", ids[:1])
            await a.delete(w.address, good)
            await until(lambda: w.store.counts()[0] == 4)
            await a.put(w.address, items[:1])
            with pytest.raises(PeerRefused, match="used already"):
                await a.delete(w.address, good)
            for i, data in items:
                assert await a.get(w.address, i) == data

    run(work)


def test_a_deal_that_changes_its_owner_does_not_gain_the_right_to_delete(tmp_path):
    async def work():
        async with world(tmp_path / "p") as w:
            items = [shard(i) for i in range(3)]
            async with w.client("a") as a:
                await a.put(w.address, items)
            thief = b"T" * 32
            async with w.client("a", thief) as a:
                await a.put(w.address, [shard(7)])
                with pytest.raises(PeerRefused, match="signature"):
                    await a.delete(w.address, w.grant("a", [i for i, _ in items], seed=thief))
                assert w.store.doomed_count() == 0
                await a.delete(w.address, w.grant("a", [items[0][0]]))  # the first owner's still hold
                await until(lambda: w.service.deleter.removed_shards == 1)

    run(work)


def test_a_client_without_a_deal_or_with_one_that_stored_nothing_deletes_nothing(tmp_path):
    async def work():
        async with world(tmp_path / "p") as w, w.client("b") as b, open_pool(network=NETWORK) as reader:
            for client in (b, reader):
                with pytest.raises(PeerRefused, match="no"):
                    await client.delete(w.address, w.grant("b", [shard(1)[0]]))

    run(work)


def test_too_many_deletions_at_once_are_put_off(tmp_path, monkeypatch):
    monkeypatch.setattr(deleting, "BURST", 3.0)
    monkeypatch.setattr(deleting, "RATE", 0.0)

    async def work():
        async with world(tmp_path / "p") as w, w.client("a") as a, w.client("b") as b:
            await a.put(w.address, [shard(1)])
            await b.put(w.address, [shard(2)])
            for _ in range(3):
                await a.delete(w.address, w.grant("a", [bytes(32)]))
            with pytest.raises(RemoteError, match="too many"):
                await a.delete(w.address, w.grant("a", [shard(1)[0]]))
            await b.delete(w.address, w.grant("b", [bytes(32)]))  # the limit is each deal's own
            assert w.store.doomed_count() == 0

    run(work)


def test_puts_and_gets_go_on_beside_deletions(tmp_path):
    async def work():
        async with world(tmp_path / "p") as w, w.client("a") as a:

            async def churn(n):
                for i in range(15):
                    items = [shard(n * 1000 + i * 10 + j, 5000) for j in range(10)]
                    await a.put(w.address, items)
                    await a.delete(w.address, w.grant("a", [s for s, _ in items[1:]]))
                    kept.append(items[0])
                    for s, data in kept[-5:]:
                        assert await a.get(w.address, s) == data

            kept = []
            async with trio.open_nursery() as nursery:
                for n in range(2):
                    nursery.start_soon(churn, n)
            await until(lambda: w.store.counts()[0] == len(kept))
            await until(lambda: w.on_disk() <= 2 * 5000 * len(kept))
            for s, data in kept:
                assert await a.get(w.address, s) == data

    run(work)


def test_fault_052_what_is_said_twice_is_done_once(tmp_path):
    """Every request that changes something, again over another connection, as after an answer that got lost."""

    async def work():
        async with world(tmp_path / "p", grace=0) as peer:
            item = shard(1)
            sizes = []
            for _ in range(2):
                async with peer.client("a") as client:
                    receipt = await client.put(peer.address, [item])
                    assert [found.id for found in receipt.shards] == [item[0]]
                sizes.append(peer.store.used_bytes)
            used = sizes[0]
            assert sizes == [used, used]
            for _ in range(2):
                async with peer.client("a") as client:
                    renewed = await client.renew(peer.address, [item[0]])
                    assert [found.id for found in renewed.shards] == [item[0]]
            assert peer.store.used_bytes == used
            grant = peer.grant("a", [item[0]])
            async with peer.client("a") as client:
                assert await client.delete(peer.address, grant) == {}
            async with peer.client("a") as client:
                with contextlib.suppress(PeerRefused):  # it was used
                    assert await client.delete(peer.address, grant) == {}
                with pytest.raises(BlobMissing):
                    await client.get(peer.address, item[0])
                await client.put(peer.address, [item])  # and a late copy of the grant takes nothing that came after it
                with contextlib.suppress(PeerRefused):
                    await client.delete(peer.address, grant)
                assert await client.get(peer.address, item[0]) == item[1]

    run(work)
