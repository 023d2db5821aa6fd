"""An agent whose peers want money: a real keeper and its API, peers that make deals as `swarm.dealing` has it, and blocks on
demand, each after everybody has done what the one before gave them to do."""

from __future__ import annotations

import shutil
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from fsdecloud.agent import dealing as agent_dealing
from fsdecloud.config import HOME_VARIABLE, find_paths
from fsdecloud.contracts import deal
from fsdecloud.contracts.deal import SignedRevision
from fsdecloud.contracts.machine import SEED_BLOCKS, challenge_seed
from fsdecloud.crypto import possession, sign
from fsdecloud.crypto.keys import VolumeKeys, deal_seed
from fsdecloud.crypto.shardset import EMPTY, ShardSet, update
from fsdecloud.driver.spending import Spending
from fsdecloud.errors import PeerRefused, PeerUnavailable
from fsdecloud.ledger.blocks import block_id, decode_header, encode_block
from fsdecloud.ledger.contracting import contract_of
from fsdecloud.ledger.transactions import Input, decode_tx, encode_tx, sign_input
from fsdecloud.ledgerd.api import LocalApi
from fsdecloud.ledgerd.hub import Hub
from fsdecloud.ledgerd.keeper import Keeper
from fsdecloud.ledgerd.services import Services
from fsdecloud.ledgerd.settings import Settings
from fsdecloud.net.unix import serve_unix
from fsdecloud.store.chain import open_chain
from fsdecloud.store.payments import PaymentStore
from fsdecloud.swarm import dealing, dealplan
from fsdecloud.swarm.dealing import Act, NotDue
from fsdecloud.wire import deals as wire
from tests.component.agent.agentworld import FakePeer, FakeTransport, Info, open_driver

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "ledger"))
from chainmaker import GENESIS_TIME, Maker, easy_network

NOW = GENESIS_TIME + 1_000_000
KEYS = VolumeKeys.from_root(b"w" * 32)
PRICE = 10**12
SCHEDULE = dealplan.Schedule(funding=12, period=40, periods=6, window=8, contest=2)
FEE = 1


@dataclass
class Contract:
    """What a peer keeps of a deal."""

    newest: SignedRevision
    pages: dict = field(default_factory=dict)
    found: ShardSet = EMPTY


class Hole(dict):
    """Shards of a peer that keeps none, whatever it signs for."""

    def __setitem__(self, key, value):
        pass


@dataclass
class PayingPeer(FakePeer):
    """A peer that wants money, and keeps its side unless it is told not to."""

    price: int = PRICE
    contracts: dict = field(default_factory=dict)
    revisions: list = field(default_factory=list)
    """Numbers of those that came, in order."""
    signed: dict = field(default_factory=dict)
    """(contract, number) -> the one revision of that number that the owner ever signed."""
    refuses_deals: bool = False
    refuses_revisions: int = 0
    """How many it refuses."""
    loses_answers: int = 0
    """How many of its answers to revisions are lost on the way."""
    attests: int = 0
    is_idle: bool = False
    """It does nothing on the chain."""
    attests_nothing: bool = False

    def running(self, world):
        state = world.keeper.state()
        for contract in self.contracts:
            found = contract_of(state, contract)
            if found is not None and self.view(world, contract).phase.name not in ("OWNER_PAYS", "PEER_PAYS", "OVER"):
                yield contract

    def view(self, world, contract):
        instance = contract_of(world.keeper.state(), contract).instance
        return dealing.view_of(contract, instance, world.keeper.tip.height + 1)

    # ---- what the owner asks ---------------------------------------------------------------------------------------
    def note_signed(self, world, contract, revision, signature):
        terms = self.view(world, contract).terms
        deal.check_revision(terms.owner, world.network, contract, revision, signature)
        known = self.signed.setdefault((contract, revision.number), revision)
        assert known == revision, "two revisions of one number"

    def sign(self, world, contract, revision, signature):
        own = deal.sign_revision(self.seed, world.network, contract, revision)
        return SignedRevision(revision, signature, own)

    def fund(self, world, contract, signature):
        if self.refuses_deals:
            raise PeerRefused("no deals today")
        found = contract_of(world.keeper.state(), contract)
        if found is None:
            raise PeerRefused("there is no such contract")
        first = dealing.first_revision()
        self.note_signed(world, contract, first, signature)
        if contract not in self.contracts:
            self.contracts[contract] = Contract(self.sign(world, contract, first, signature))
        view = self.view(world, contract)
        if view.phase is dealing.Phase.PEER_PAYS:
            self.send(world, contract, deal.fund_peer(view.terms))
        return wire.DealState(0, contract, contract in set(self.running(world)), self.contracts[contract].newest)

    def revise(self, world, contract, added, removed, revision, signature):
        kept = self.contracts[contract]
        self.revisions.append(revision.number)
        self.note_signed(world, contract, revision, signature)
        if self.refuses_revisions:
            self.refuses_revisions -= 1
            raise PeerRefused("not this one")
        if kept.newest.revision != revision:
            if not isinstance(self.shards, Hole):
                assert all(len(self.shards[shard]) == length for shard, length in added)
            changes = dict(added) | dict.fromkeys(removed)
            revised = update(kept.pages.get, kept.found, changes)
            gone = kept.found.size + sum(length for _, length in added) - revised.shard_set.size
            try:
                dealing.check_revision(self.view(world, contract), kept.newest.revision, revision, gone)
            except NotDue as exc:
                raise PeerRefused(str(exc)) from exc
            assert (revision.root, revision.bytes) == (revised.shard_set.root, revised.shard_set.size)
            for path, page in revised.pages.items():
                kept.pages[path] = page
            kept.found = revised.shard_set
            kept.newest = self.sign(world, contract, revision, signature)
        if self.loses_answers:
            self.loses_answers -= 1
            raise PeerUnavailable("the connection broke")
        return wire.DealState(0, contract, True, kept.newest)

    def attest(self, world, contract, number, seed, samples):
        kept = self.contracts[contract]
        self.attests += 1
        if self.attests_nothing:
            raise PeerUnavailable("no answer")
        assert number == kept.newest.revision.number
        try:
            return possession.prove(kept.pages.get, kept.found, seed, samples, self.shards.__getitem__)
        except KeyError:
            return b"no proof"

    # ---- the chain -------------------------------------------------------------------------------------------------
    def send(self, world, contract, acts):
        key = sign.public_key(self.seed)
        if world.pays_in(key, contract):
            return
        nonce = world.keeper.pool.next_nonce(key)
        world.keeper.submit(sign_input(world.network, self.seed, contract, acts, FEE, nonce))

    def act(self, world):
        """Do on the chain what there is to do."""
        if self.is_idle:
            return
        for contract in list(self.running(world)):
            view, kept = self.view(world, contract), self.contracts[contract]
            following = dealing.peer_next(view, kept.newest)
            newest = kept.newest if following.brings else None
            if following.act is Act.BRING:
                self.send(world, contract, deal.bring(kept.newest))
            elif following.act is Act.PROVE:
                start = dealing.challenge_height(view)
                headers = world.keeper.store.headers_from(start, SEED_BLOCKS)
                if len(headers) == SEED_BLOCKS and all(shard in self.shards for shard in kept_shards(kept)):
                    ids = tuple(bytes(block_id(decode_header(data))) for data in headers)
                    seed = challenge_seed(contract, view.standing.period, ids)
                    proof = possession.prove(
                        kept.pages.get, kept.found, seed, view.terms.samples, self.shards.__getitem__
                    )
                    self.send(world, contract, deal.prove(proof, newest))


def kept_shards(kept):
    from fsdecloud.crypto.shardset import shards_of

    return [shard for shard, _ in shards_of(kept.pages.get)]


class PayingTransport(FakeTransport):
    """Connections to such peers."""

    def __init__(self, count, **options):
        self.peers = {}
        for i in range(count):
            peer = PayingPeer(bytes([i + 1]) * 32, **options)
            self.peers[peer.id] = peer
        self.world = None

    async def info(self, address):
        peer = await self._reach(address)
        if peer.price and not any(True for _ in peer.running(self.world)):
            return Info(False, "no deal runs")
        return await super().info(address)

    async def put(self, address, shards):
        peer = await self._reach(address)
        if peer.price and not any(True for _ in peer.running(self.world)):
            raise PeerRefused("no deal runs")
        return await super().put(address, shards)

    async def fund(self, address, contract, signature):
        peer = await self._reach(address)
        return await self._step(lambda: peer.fund(self.world, contract, signature))

    async def revise(self, address, contract, added, removed, revision, signature):
        peer = await self._reach(address)
        return await self._step(lambda: peer.revise(self.world, contract, added, removed, revision, signature))

    async def attest(self, address, contract, number, seed, samples):
        peer = await self._reach(address)
        return await self._step(lambda: peer.attest(self.world, contract, number, seed, samples))

    async def _step(self, work):
        """Do something that the machine may die before, or after."""
        await self.world.step()
        answer = work()
        await self.world.step()
        return answer


class World:
    """The chain, the wallet, and what an agent does with both."""

    def __init__(self, path, make, keeper, transport):
        self.path, self.make, self.keeper, self.transport = path, make, keeper, transport
        self.network = make.network
        self.budget = 10**9
        self.store = PaymentStore(path / "payments", KEYS.at_rest_key)
        self.spending = Spending(KEYS, self.network, self.store, lambda: self.budget)
        self.spending.pay = self._note
        self.driver = None
        self.looks = {}
        self.steps = 0
        self.dies_in = 0

    async def _note(self, payment):
        await self.step()
        self.store.add(payment)
        await self.step()

    async def step(self):
        """Here the agent's machine dies, if it is the one that `dies_in` counts down to: what is on its disk now is kept."""
        self.steps += 1
        self.dies_in -= 1
        if self.dies_in == 0:
            shutil.copytree(self.path / "agent", self.path / "dead")
            self.died.set()
            await trio.sleep_forever()

    async def outlive(self, work):
        """Run `work` beside an agent that dies in its first step, and again with one that dies in its second, and so on, until
        one comes to the end."""
        number = 0
        while True:
            number += 1
            self.dies_in, self.died = number, trio.Event()
            async with self.agent(), trio.open_nursery() as nursery:

                async def watch(scope=nursery.cancel_scope):
                    await self.died.wait()
                    scope.cancel()

                nursery.start_soon(watch)
                await work()
                nursery.cancel_scope.cancel()
            if not self.died.is_set():
                return number
            shutil.rmtree(self.path / "agent")
            (self.path / "dead").rename(self.path / "agent")

    @property
    def dealer(self):
        return self.driver.service._stack.dealer

    def pays_in(self, key, contract):
        waiting = [decode_tx(data) for data in self.keeper.pool.naming({key})]
        return any(isinstance(tx, Input) and tx.sender == key and tx.contract == contract for tx in waiting)

    def balance(self, key):
        return self.keeper.state().account(key).balance

    def has(self, contract):
        return contract_of(self.keeper.state(), contract) is not None

    def deal_key(self, peer):
        return sign.public_key(deal_seed(KEYS.deal_secret, peer.id))

    def txs(self, kind):
        from fsdecloud.ledger.blocks import decode_block

        found = [decode_tx(data) for _, block in self.make.chain() for data in decode_block(block).transactions]
        return [tx for tx in found if isinstance(tx, kind)]

    def payments(self):
        return [decode_tx(payment.tx) for payment in self.store.all()]

    # ---- blocks ----------------------------------------------------------------------------------------------------
    async def settled(self):
        """Return once the agent has looked at the present tip, and has nothing more to do."""
        height = self.keeper.tip.height

        def is_done():
            link = self.driver.service._stack.link
            peers = self.dealer._wakes
            return link.height == height and all(self.looks.get(peer) == height for peer in peers)

        while not is_done():  # noqa: ASYNC110 - what it asks is in another task's state
            await trio.sleep(0.002)

    async def mine(self, count=1, *, until=None):
        """Add blocks with what waits, each when everybody has seen the one before; stop when `until` holds."""
        for _ in range(count):
            if self.driver is not None:
                await self.settled()
            if until is not None and until():
                return
            for peer in self.transport.all():
                peer.act(self)
            chosen = [encode_tx(tx) for tx in self.keeper.pool.select(self.make.tip.time + 1)]
            await self.keeper.accept(encode_block(self.make.add(chosen).block))
        if self.driver is not None:
            await self.settled()
        assert until is None or until(), f"{count} blocks were not enough"

    async def reorganise(self, fork):
        """Have another chain win from a block on, with nothing in it."""
        await self.settled()
        old = self.make.tip
        self.make.tip = fork
        blocks = []
        while self.make.tip.work <= old.work:
            blocks.append(encode_block(self.make.add().block))
        await self.keeper.accept_chain(blocks)
        assert self.keeper.tip.id == self.make.tip.id
        await self.settled()

    def running(self):
        return [peer for peer in self.transport.all() if any(True for _ in peer.running(self))]

    async def form(self, count):
        await self.mine(12, until=lambda: len(self.running()) >= count)
        await self.driver.wait_hosts(len(self.transport.peers), joined=count)

    async def store_data(self, *contents):
        entries = [self.driver.stage(data) for data in contents]
        await self.driver.store(entries)
        await self.driver.wait_stored(entries, 1)
        return entries

    def covered(self, peer):
        """Return the shards of a peer's newest revisions."""
        found = set()
        for contract in peer.running(self):
            found |= set(kept_shards(peer.contracts[contract]))
        return found

    async def wait_covered(self, *peers):
        """Wait until revisions name all that these peers have."""
        while any(self.covered(peer) != set(peer.shards) for peer in peers):  # noqa: ASYNC110 - as `settled`
            await trio.sleep(0.005)
        await self.settled()

    def newest(self, peer):
        return [peer.contracts[contract].newest.revision for contract in peer.running(self)]

    # ---- the agent -------------------------------------------------------------------------------------------------
    @asynccontextmanager
    async def agent(self, path=None):
        """Run the agent in `path` meanwhile, by default in the world's own."""
        async with open_driver(
            path or self.path,
            self.transport,
            volume=KEYS.volume_id,
            deal_secret=KEYS.deal_secret,
            network=self.network,
            ledger_socket=str(self.path / "run" / "ledger.sock"),
            wallet=self.spending.key,
            budget=self.budget,
            methods=self.spending.methods(),
        ) as driver:
            self.driver = driver
            self.looks.clear()
            try:
                yield driver
            finally:
                self.driver = None


def deal_test(tmp_path, monkeypatch, work, *, peers=3, money=True, seconds=60, **options):
    """Run `work(world)` beside a chain in which these peers are registered with their prices."""
    looks = {}
    tend = agent_dealing.Dealer._tend

    async def watched(dealer, peer):
        height = dealer._link.height
        looks.pop(peer, None)
        is_more = True
        try:
            is_more = await tend(dealer, peer)
        except BaseException:
            is_more = False
            raise
        finally:
            if not is_more:
                looks[peer] = height
        return is_more

    monkeypatch.setattr(agent_dealing.Dealer, "_tend", watched)
    monkeypatch.setattr(agent_dealing, "FLUSH", 0.005)
    monkeypatch.setattr(agent_dealing, "LOOK", 0.2)
    monkeypatch.setattr(dealplan, "schedule_for", lambda _interval: SCHEDULE)
    make = Maker(easy_network(interval=60))
    transport = PayingTransport(peers, **options)
    wallet = Spending(KEYS, make.network, PaymentStore(tmp_path, bytes(32)), lambda: 0).key
    for i, peer in enumerate(transport.all()):
        url = f"wss://127.0.0.1:{1000 + i}/{peer.id.hex()}?network={make.network.hex()}"
        make.add([make.register(peer.seed, 1, url, price=peer.price)], recipient=peer.id)
    if money:
        make.add(recipient=wallet)
        make.add(recipient=wallet)

    async def run():
        with trio.fail_after(seconds), open_chain(tmp_path / "chain", make.document, map_size=1 << 28) as store:
            keeper = Keeper(store, lambda: NOW)
            await keeper.accept_chain([data for _, data in make.chain()])
            hub = Hub(keeper, bytes(32), bytes(32))
            paths = find_paths({HOME_VARIABLE: str(tmp_path)})
            api = LocalApi(keeper, hub, Services(paths, Settings(mine=False), keeper, hub, bytes(32)))
            world = transport.world = World(tmp_path, make, keeper, transport)
            world.looks = looks
            async with trio.open_nursery() as nursery:
                await nursery.start(
                    lambda task_status: serve_unix(
                        tmp_path / "run" / "ledger.sock", api.methods_for, task_status=task_status
                    )
                )
                await work(world)
                nursery.cancel_scope.cancel()

    trio.run(run)
