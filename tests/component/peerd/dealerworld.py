"""A storage peer with deals beside a real ledger keeper and its API; blocks on demand; owners that say what the test says."""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from pathlib import Path

import blake3
import trio

from fsdecloud import codec
from fsdecloud.config import HOME_VARIABLE, find_paths
from fsdecloud.contracts import deal
from fsdecloud.contracts.library import standard
from fsdecloud.contracts.machine import Instance
from fsdecloud.crypto import sign
from fsdecloud.crypto.shardset import EMPTY, update
from fsdecloud.ledger.blocks import encode_block
from fsdecloud.ledger.mempool import Mempool
from fsdecloud.ledger.network import encode_network
from fsdecloud.ledger.transactions import Input, decode_tx, encode_tx, sign_deploy, sign_input, sign_transfer, tx_id
from fsdecloud.ledgerd.api import LocalApi
from fsdecloud.ledgerd.hub import Hub
from fsdecloud.ledgerd.keeper import Keeper
from fsdecloud.ledgerd.services import Services
from fsdecloud.ledgerd.settings import Settings
from fsdecloud.net.address import Address
from fsdecloud.net.pool import open_pool
from fsdecloud.net.unix import serve_unix
from fsdecloud.net.websocket import serve
from fsdecloud.peerd.dealing import Dealer, Offer
from fsdecloud.peerd.proving import Prover
from fsdecloud.peerd.server import PeerService
from fsdecloud.peerd.setup import Policy
from fsdecloud.peerd.writer import ShardWriter
from fsdecloud.store.chain import open_chain
from fsdecloud.store.shards import ShardStore
from fsdecloud.store.shardsets import ShardSets
from fsdecloud.swarm import dealing
from fsdecloud.swarm.dealing import view_of
from fsdecloud.wire import peer as wire
from fsdecloud.wire.ledgerapi import ContractsQuery
from tests.component.peerd.peerworld import until

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "ledger"))
from chainmaker import GENESIS_TIME, MINER, Maker, easy_network

NOW = GENESIS_TIME + 100_000
PEER_SEED = b"p" * 32
PEER = sign.public_key(PEER_SEED)
PRICE = 10**13
OFFER = Offer(price=PRICE, collateral=100, days=30, credit=50_000)


def shard(i, size=10_000):
    data = (b"%08d" % i).ljust(size, b"s")
    return blake3.blake3(data).digest(), data


class World:
    """The chain, its daemon, and the place of the peer."""

    def __init__(self, path, make, keeper):
        self.path, self.make, self.keeper = path, make, keeper
        self.socket = path / "run" / "ledger.sock"
        self.network_file = path / "network"
        self.network_file.write_bytes(encode_network(make.document))
        self.peer_path = path / "peer"
        self.dealer = None
        self.nonce = 0
        self.inputs = []
        """Of the chain, in order."""
        self.api = self.sets = self.store = self.nursery = self.daemon = None

    async def start_daemon(self):
        """Serve the ledger's API."""
        self.daemon = trio.CancelScope()

        async def serving(task_status):
            with self.daemon:
                await serve_unix(self.socket, self.api.methods_for, task_status=task_status)

        await self.nursery.start(serving)

    # ---- the chain -------------------------------------------------------------------------------------------------
    async def mine(self, count=1, *, with_pool=True):
        """Add blocks, with what waits or without it, and let the peer, if it runs, look at each."""
        for _ in range(count):
            chosen = self.keeper.pool.select(self.make.tip.time + 1) if with_pool else ()
            if not with_pool:
                self.keeper.pool = Mempool(self.make.document)
            await self.keeper.accept(encode_block(self.make.add([encode_tx(tx) for tx in chosen]).block))
            self.inputs += [tx for tx in chosen if isinstance(tx, Input)]
            await self.seen()

    async def mine_these(self, transactions=(), **options):
        """Add a block with just these transactions."""
        await self.keeper.accept(encode_block(self.make.add(transactions, **options).block))
        await self.seen()

    async def mine_to(self, height):
        """Mine until the next block is that of the height."""
        await self.mine(height - self.make.tip.height - 1)

    async def seen(self):
        """Wait until the peer did what it does after this tip."""
        if self.dealer is not None:
            await until(lambda: self.dealer.height == self.make.tip.height)

    async def pay(self, key, amount):
        self.keeper.submit(sign_transfer(self.make.network, MINER, key, amount, 1, self.nonce))
        self.nonce += 1
        await self.mine()

    def balance(self, key):
        return self.make.state().account(key).balance

    def waiting(self):
        """Inputs that wait for a block."""
        found = [decode_tx(self.keeper.pool.get(identity)) for identity in self.keeper.pool.ids()]
        return [tx for tx in found if isinstance(tx, Input)]

    async def view(self, contract):
        answer = await self.api.handlers()["contracts"][1](ContractsQuery((contract,)))
        if not answer.contracts[0]:
            return None
        return view_of(contract, codec.decode(answer.contracts[0], Instance), answer.height + 1)

    # ---- the peer --------------------------------------------------------------------------------------------------
    @asynccontextmanager
    async def peer(self, path=None, *, offer=OFFER, quota=1 << 30):
        """Run the peer on what lies at `path`; give the address."""
        path = path or self.peer_path
        path.mkdir(mode=0o700, exist_ok=True)
        (path / "policy.toml").write_text('admit = ["*"]\n')
        network = self.make.network
        with (
            ShardStore(path / "store", quota, reserve=0, map_size=1 << 28) as store,
            ShardSets(path / "sets", map_size=1 << 28) as sets,
        ):
            prover = Prover(sets=sets, store=store, suspect=lambda _shard: None)
            writer = ShardWriter(store)
            with Dealer(
                seed=PEER_SEED,
                peer=PEER,
                network=network,
                offer=offer,
                sets=sets,
                store=store,
                prover=prover,
                path=path / "deals",
                socket=self.socket,
                network_file=self.network_file,
            ) as dealer:
                service = PeerService(
                    seed=PEER_SEED,
                    peer=PEER,
                    network=network,
                    store=store,
                    writer=writer,
                    policy=Policy(path / "policy.toml"),
                    deals=dealer,
                )
                self.sets, self.store = sets, store
                async with trio.open_nursery() as nursery:
                    for task in (prover.run, writer.run, service.deleter.run, service.leaser.run, dealer.run):
                        nursery.start_soon(task)
                    port = await nursery.start(
                        lambda task_status: serve(
                            "127.0.0.1", 0, PEER_SEED, wire.SUBPROTOCOL, service.serve, task_status=task_status
                        )
                    )
                    self.dealer = dealer
                    await self.seen()
                    try:
                        yield Address("127.0.0.1", port, PEER, network)
                    finally:
                        self.dealer = None
                        nursery.cancel_scope.cancel()

    def damage(self, shard_id):
        """Flip a bit of a shard on the peer's disk."""
        place = self.store.locate(shard_id)
        with (self.peer_path / "store" / "shards" / f"shards-{place.segment:08d}.seg").open("r+b") as file:
            file.seek(place.offset)
            byte = file.read(1)[0]
            file.seek(place.offset)
            file.write(bytes([byte ^ 1]))


class Owner:
    """An owner who keeps in memory what it signs."""

    def __init__(self, world, seed):
        self.world, self.seed = world, seed
        self.key = sign.public_key(seed)
        self.nonce = 0
        self.pages, self.set = {}, EMPTY
        self.contract = b""
        self.newest = None

    def _submit(self, tx):
        self.world.keeper.submit(tx)
        self.nonce += 1
        return tx

    async def deploy(self, *, pays=True, **changes):
        """Begin a contract, and pay in."""
        fields = {"price": PRICE, "interval": self.world.make.document.interval, "most": 100_000, "collateral": 1000}
        fields |= {"period": 40, "periods": 2, "funding": 10, "window": 8, "contest": 1}
        terms = deal.plan_terms(self.key, PEER, **(fields | changes))
        network = self.world.make.network
        made = sign_deploy(network, self.seed, standard(deal.NAME).id, deal.arguments_of(terms), 1, self.nonce)
        self.contract = tx_id(decode_tx(self._submit(made)))
        await self.world.mine()
        if pays:
            self.send(deal.fund_owner(terms))
            await self.world.mine()
        self.terms = terms

    def send(self, acts):
        self._submit(self.signed(acts))

    def signed(self, acts):
        return sign_input(self.world.make.network, self.seed, self.contract, acts, 1, self.nonce)

    def sign(self, revision):
        return deal.sign_revision(self.seed, self.world.make.network, self.contract, revision)

    @asynccontextmanager
    async def pool(self):
        async def key(_peer):
            return self.key

        async with open_pool(network=self.world.make.network, deal_seed=lambda _peer: self.seed, owner=key) as pool:
            yield pool

    async def fund(self, pool, address):
        found = await pool.fund(address, self.contract, self.sign(dealing.first_revision()))
        self.newest = found.newest
        return found

    async def make_next(self, added=(), removed=(), **options):
        """Return the next revision, and the set's pages after it."""
        changes = dict(added) | dict.fromkeys(removed)
        revised = update(self.pages.get, self.set, changes)
        gone = self.set.size + sum(size for _, size in added) - revised.shard_set.size
        view = await self.world.view(self.contract)
        size = revised.shard_set.size
        before = self.newest.revision
        return dealing.next_revision(view, before, revised.shard_set.root, size, gone, **options), revised

    async def revise(self, pool, address, added=(), removed=(), **options):
        """Agree on the next revision."""
        revision, revised = await self.make_next(added, removed, **options)
        found = await pool.revise(address, self.contract, added, removed, revision, self.sign(revision))
        deal.check_signed(self.terms, self.world.make.network, self.contract, found.newest)
        assert found.newest.revision == revision
        for path, page in revised.pages.items():
            if page is None:
                self.pages.pop(path, None)
            else:
                self.pages[path] = page
        self.set, self.newest = revised.shard_set, found.newest
        return found

    async def store(self, pool, address, count=3, first=0):
        """Store shards and agree on them."""
        items = [shard(i) for i in range(first, first + count)]
        await pool.put(address, items)
        await self.revise(pool, address, [(one, len(data)) for one, data in items])


async def begin(world, owner, pool, address, **changes):
    """A deal with both deposits in the chain."""
    await owner.deploy(**changes)
    assert not (await owner.fund(pool, address)).is_funded
    await world.mine()
    assert (await owner.fund(pool, address)).is_funded


def dealer_test(tmp_path, work, *, money=10**6, **changes):
    make = Maker(easy_network(**changes))

    async def run():
        with trio.fail_after(60), open_chain(tmp_path / "c", make.document, map_size=1 << 28) as store:
            keeper = Keeper(store, lambda: NOW)
            hub = Hub(keeper, bytes(32), bytes(32))
            paths = find_paths({HOME_VARIABLE: str(tmp_path)})
            world = World(tmp_path, make, keeper)
            world.api = LocalApi(keeper, hub, Services(paths, Settings(mine=False), keeper, hub, bytes(32)))
            async with trio.open_nursery() as nursery:
                world.nursery = nursery
                await world.start_daemon()
                await world.mine()
                await world.pay(PEER, money)
                await work(world)
                nursery.cancel_scope.cancel()

    trio.run(run)


async def owner_of(world, letter="o", amount=10**7):
    owner = Owner(world, letter.encode() * 32)
    await world.pay(owner.key, amount)
    return owner
