"""The world around an agent under test: peers in memory, a ledger daemon of a page, and the driver's side of the socket."""

import os
import socket
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
from blake3 import blake3

from fsdecloud import codec
from fsdecloud.agent import hosts, ledgerlink, peers, upload
from fsdecloud.agent.service import Service
from fsdecloud.crypto import sign
from fsdecloud.crypto.keys import grant_seed
from fsdecloud.errors import (
    BlobCorrupt,
    BlobMissing,
    InvalidTransaction,
    PeerRefused,
    PeerUnavailable,
)
from fsdecloud.ledger.transactions import decode_tx, tx_id
from fsdecloud.net.nursery import open_background
from fsdecloud.net.unix import open_rpc, serve_unix, stream_from_fd
from fsdecloud.store.segments import SegmentStore
from fsdecloud.types import EntryId, PeerId
from fsdecloud.wire import agentapi, ledgerapi
from fsdecloud.wire.agentapi import AgentHello, AgentReady, Empty, StagedEntry, StoreEntries
from fsdecloud.wire.grants import Grant
from fsdecloud.wire.receipts import ShardItem, sign_receipt, verify_receipt

NETWORK = b"N" * 32
DEAL = b"D" * 32


@dataclass
class Info:
    admitted: bool = True
    reason: str = ""
    free: int = 1 << 30


@dataclass
class FakePeer:
    """One peer: what it holds, and how it misbehaves."""

    seed: bytes
    shards: dict = field(default_factory=dict)
    is_down: bool = False
    is_refusing: bool = False
    is_leaving: bool = False
    """It says that it leaves for good: it gives what it has, and takes nothing."""
    is_silent: bool = False
    """It takes requests and never answers."""
    vanishes: float = 0.0
    """Seconds after which whoever asks gives it up, as when its packets are lost; 0: it is there."""
    is_withholding: bool = False
    """It says what it has, and never gives it."""
    delay: float = 0.0
    """Seconds before it gives a shard or takes some."""
    refused: set = field(default_factory=set)
    corrupt: set = field(default_factory=set)
    renewed: set = field(default_factory=set)
    asked: int = 0
    """How often it was asked for a shard, and how often it could answer."""
    gets: int = 0
    puts: int = 0
    busy: int = 0
    """Shards and messages of shards that it works at."""
    busiest: int = 0

    @property
    def id(self):
        return PeerId(sign.public_key(self.seed))


class FakeTransport:
    """The peers, and the connections to them."""

    def __init__(self, count):
        self.peers = {}
        for i in range(count):
            peer = FakePeer(bytes([i + 1]) * 32)
            self.peers[peer.id] = peer

    def all(self):
        return list(self.peers.values())

    def registry(self):
        return tuple(
            agentapi.RegistryPeer(
                peer.id, f"wss://127.0.0.1:{1000 + i}/{peer.id.hex()}?network={NETWORK.hex()}", 1 << 30
            )
            for i, peer in enumerate(self.all())
        )

    @asynccontextmanager
    async def _work(self, peer):
        peer.busy += 1
        peer.busiest = max(peer.busiest, peer.busy)
        try:
            if peer.delay:
                await trio.sleep(peer.delay)
            yield
        finally:
            peer.busy -= 1

    async def _reach(self, address):
        await trio.lowlevel.checkpoint()
        peer = self.peers[address.id]
        if peer.is_down:
            raise PeerUnavailable("connection refused")
        if peer.is_silent:
            await trio.sleep_forever()
        if peer.vanishes:
            await trio.sleep(peer.vanishes)
            raise PeerUnavailable("no answer")
        return peer

    async def put(self, address, shards):
        peer = await self._reach(address)
        peer.puts += 1
        if peer.is_refusing or peer.is_leaving:
            raise PeerRefused("quota")
        async with self._work(peer):
            pass
        taken = []
        for shard, data in shards:
            data = bytes(data)
            assert blake3(data).digest() == shard
            if shard not in peer.refused:
                peer.shards[shard] = data
                taken.append(ShardItem(shard, len(data)))
        if not taken:
            raise PeerRefused("none taken")
        return verify_receipt(sign_receipt(peer.seed, peer.id, DEAL, int(time.time()), tuple(taken)))

    async def renew(self, address, shards):
        peer = await self._reach(address)
        peer.renewed.update(shards)
        items = tuple(ShardItem(shard, len(peer.shards[shard])) for shard in shards if shard in peer.shards)
        return verify_receipt(sign_receipt(peer.seed, peer.id, DEAL, int(time.time()), items)) if items else None

    async def has(self, address, shards):
        peer = await self._reach(address)
        return tuple(shard in peer.shards for shard in shards)

    async def get(self, address, shard):
        self.peers[address.id].asked += 1
        peer = await self._reach(address)
        peer.gets += 1
        if shard not in peer.shards:
            raise BlobMissing("no such shard")
        async with self._work(peer):
            if peer.is_withholding:
                await trio.sleep_forever()
        if shard in peer.corrupt:
            raise BlobCorrupt("wrong bytes")
        return peer.shards[shard]

    async def delete(self, address, grant):
        peer = await self._reach(address)
        if peer.is_refusing:
            raise PeerRefused("grant")
        for shard in codec.decode(grant, Grant).shards:
            peer.shards.pop(shard, None)
        return {}

    async def info(self, address):
        peer = await self._reach(address)
        if peer.is_leaving:
            return Info(False, "leaving")
        return Info(not peer.is_refusing, "full" if peer.is_refusing else "")

    @asynccontextmanager
    async def open(self, _hello, _owner):
        yield self


class FakeLedger:
    """Takes any anchor whose predecessor is the one before, and puts it into a block at once."""

    def __init__(self, registry, network=NETWORK):
        self.registry = registry
        self.network = network
        self.blocks = []
        self.mempool = []
        self.connections = []
        self.is_mining = True

    def tip(self):
        return ledgerapi.TipNotice(len(self.blocks), b"t" * 32, 1000 + len(self.blocks))

    def mine(self):
        self.blocks.append(self.mempool)
        self.mempool = []
        self.notify()

    def notify(self):
        for connection in self.connections:
            if not connection.is_closed:
                connection.notify_nowait("tip", self.tip())

    def _find(self, number):
        for height, txs in enumerate(self.blocks, 1):
            for tx in txs:
                if tx_id(decode_tx(tx)) == number:
                    return tx, height
        return b"", None

    async def serve(self, path, *, task_status=trio.TASK_STATUS_IGNORED):
        await serve_unix(path, self._methods, task_status=task_status)

    def _methods(self, connection):
        async def watch(_):
            self.connections.append(connection)
            return ledgerapi.LedgerStatus(
                os.getpid(), self.network, "test", "", len(self.blocks), b"t" * 32, 1000, b"", 0, False, 0.0, ()
            )

        async def registry(_):
            return agentapi.Registry(self.registry)

        async def submit(request):
            tx = decode_tx(request.tx)
            found, height = self._find(tx_id(tx))
            if found:
                return ledgerapi.TxResult(tx_id(tx), height)
            before = [decode_tx(t).sequence for block in self.blocks for t in block]
            if tx.sequence != max(before, default=0) + 1:
                raise InvalidTransaction(f"anchor {tx.sequence} does not follow")
            if request.tx not in self.mempool:
                self.mempool.append(request.tx)
            if self.is_mining:
                self.mine()
            return ledgerapi.TxResult(tx_id(tx), self._find(tx_id(tx))[1])

        async def tx(query):
            found, height = self._find(query.id)
            confirmations = 0 if height is None else len(self.blocks) - height + 1
            return ledgerapi.TxFound(found, height, 0, confirmations)

        async def volume(_):
            flat = [(tx, height) for height, txs in enumerate(self.blocks, 1) for tx in txs]
            return ledgerapi.VolumeAnchor(*flat[-1]) if flat else ledgerapi.VolumeAnchor(b"", -1)

        return {
            "watch": (Empty, watch),
            "registry": (Empty, registry),
            "submit": (ledgerapi.SubmitTx, submit),
            "tx": (ledgerapi.TxQuery, tx),
            "volume": (ledgerapi.KeyQuery, volume),
        }, {}


class Driver:
    """The driver's side: stages entries, takes notices."""

    def __init__(self, path, connection_of):
        self.path = path
        self.staged = SegmentStore(path / "staged", "staged")
        self.cache = SegmentStore(path / "cache", "fetched", create=False)
        self.locations = {}
        self.stored = {}
        self.anchored = []
        self.repaired = []
        self.tips = []
        self.changed = trio.Event()
        self.connection = connection_of
        self.service = None

    def notices(self):
        return {
            "stored": (agentapi.Stored, self._take_stored),
            "anchored": (agentapi.Anchored, self._take(self.anchored)),
            "repaired": (agentapi.Repaired, self._take(self.repaired)),
            "ledger_tip": (agentapi.LedgerTip, self._take(self.tips)),
        }

    def _take(self, into):
        def take(notice):
            into.append(notice)
            self._wake()

        return take

    def _take_stored(self, notice):
        peers = set()
        for data in notice.receipts:
            receipt = verify_receipt(data)
            assert {item.id for item in receipt.shards} & set(notice.shards)
            peers.add(receipt.peer)
        assert len(notice.shards) == notice.n
        for entry in notice.entries:
            self.stored[entry] = (len(peers), notice)
        self._wake()

    def _wake(self):
        self.changed.set()
        self.changed = trio.Event()

    async def wait(self, condition):
        while not condition():
            await self.changed.wait()

    def stage(self, data):
        entry = EntryId(blake3(data).digest())
        where = self.staged.append(data)
        self.locations[entry] = StagedEntry(entry, where.segment, where.offset, where.length)
        return entry

    async def store(self, entries=None, *, flush=True):
        chosen = [self.locations[entry] for entry in (self.locations if entries is None else entries)]
        await self.call("store", StoreEntries(tuple(chosen)), Empty)
        if flush:
            await self.call("flush", Empty(), Empty)

    async def wait_stored(self, entries, count):
        """Wait until each entry's blob has `count` receipts of distinct peers, or all that it will get."""

        def is_stored(entry):
            got, notice = self.stored.get(entry, (0, None))
            return notice is not None and got >= min(count, notice.n)

        await self.wait(lambda: all(map(is_stored, entries)))

    async def fetch(self, entry, *, ahead=False, holders=()):
        found = await self.call("fetch", agentapi.FetchEntry(entry, ahead, holders), agentapi.FetchedEntry)
        if found.data:
            data = found.data
        else:
            data = self.read(found)
        assert blake3(data).digest() == entry
        return data

    def read(self, found):
        with self.cache.path(found.segment).open("rb") as file:
            file.seek(found.offset)
            return file.read(found.length)

    async def call(self, method, params, result):
        return await self.connection.call(method, params, result)

    def methods(self):
        async def grant_key(peer):
            return agentapi.GrantKey(sign.public_key(grant_seed(b"g" * 32, peer.id)))

        return {"grant_key": (agentapi.PeerName, grant_key)}

    async def wait_hosts(self, count, *, joined=None):
        """Wait until that many peers are known, and that many (`joined`, if it is less) are in the host map."""

        async def known():
            if sum(state.url != "" for state in (await self.status()).peers) < count:
                return False
            # An agent in another process does not say who is in the map.
            return self.service is None or len(self.service._stack.hosts.map.current) >= (joined or count)

        await until(known)

    async def status(self):
        return await self.call("status", Empty(), agentapi.AgentStatus)


def make_hello(path, **changes):
    values = {
        "volume": b"V" * 32,
        "deal_secret": b"d" * 32,
        "repair_secret": b"r" * 32,
        "state_dir": str(path / "agent"),
        "staged_dir": str(path / "staged"),
        "cache_dir": str(path / "cache"),
        "ledger_socket": str(path / "run" / "ledger.sock"),
        "network": NETWORK,
        "redundancy": "auto",
        "map_root": b"",
        "host_map": b"",
        "map_sequence": 0,
    }
    return AgentHello(**(values | changes))


@asynccontextmanager
async def open_driver(path, transport, *, methods=None, **changes):
    """Run an agent in this process, and the driver's side of it, which answers these methods, too."""
    ours, theirs = socket.socketpair()
    driver = Driver(path, None)
    opener = transport.open if isinstance(transport, FakeTransport) else transport
    async with open_background() as nursery:
        driver.service = Service(opener)
        nursery.start_soon(driver.service.run, stream_from_fd(theirs.detach()))
        answers = driver.methods() | dict(methods or {})
        async with open_rpc(stream_from_fd(ours.detach()), answers, driver.notices()) as connection:
            driver.connection = connection
            ready = await driver.call("hello", make_hello(path, **changes), AgentReady)
            assert ready.pid == os.getpid()
            yield driver


@asynccontextmanager
async def open_ledger(path, registry, **changes):
    """Run a ledger daemon at the place where the agent of `path` looks for it."""
    ledger = FakeLedger(registry, **changes)
    async with open_background() as nursery:
        await nursery.start(ledger.serve, path / "run" / "ledger.sock")
        yield ledger


def do_not_wait(monkeypatch):
    """Have an agent do within hundredths of a second what it waits seconds and minutes for."""
    monkeypatch.setattr(peers, "PROBE_URGENT", 0.02)
    monkeypatch.setattr(peers, "PROBE_IDLE", 0.05)
    monkeypatch.setattr(hosts, "SETTLE", 0.05)
    monkeypatch.setattr(hosts, "JOIN_WINDOW", 0.05)
    monkeypatch.setattr(hosts, "RECRUIT_FIRST", 0.05)
    monkeypatch.setattr(upload, "PACK_DELAY", 0.05)
    monkeypatch.setattr(upload, "RESEND_PATIENCE", 0.1)
    monkeypatch.setattr(ledgerlink, "REGISTRY_INTERVAL", 0.0)


def run(work, *args, seconds=30):
    async def bounded():
        with trio.fail_after(seconds):
            await work(*args)

    trio.run(bounded)


async def until(condition):
    """Return once `condition` (async) holds; the test's own deadline bounds it."""
    while not await condition():  # noqa: ASYNC110 - what it asks is in another task's state
        await trio.sleep(0.005)
