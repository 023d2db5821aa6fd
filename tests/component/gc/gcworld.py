"""A whole volume without FUSE, its agent in the same process, peers in memory that delete at once, and a ledger of a page.

Everything between is real: driver, journals, location map, marks, grants. The peers check grants as `peerd` does and keep
nothing for a grace period, so that a wrong deletion is seen.
"""

from __future__ import annotations

import random
import shutil
import socket
import stat
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from blake3 import blake3

sys.path.insert(0, str(Path(__file__).parents[1] / "agent"))

from agentworld import FakeLedger, Info, until

from fsdecloud.agent import outbox, upload
from fsdecloud.agent.service import Service
from fsdecloud.config import Paths
from fsdecloud.crypto import sign
from fsdecloud.crypto.keys import VolumeKeys, deal_seed
from fsdecloud.crypto.slots import new_document
from fsdecloud.driver import garbage, marking
from fsdecloud.driver.agentlink import AgentLink
from fsdecloud.driver.reader import OpenFile
from fsdecloud.driver.recorder import Caller
from fsdecloud.driver.volume import VolumeSetup, open_volume
from fsdecloud.errors import BlobMissing, BlockPruned, FsdecloudError, NotFound, PeerRefused, PeerUnavailable, SealError
from fsdecloud.fs.keys import ROOT
from fsdecloud.fs.marks import entries_of
from fsdecloud.ledger.network import embedded_network, encode_network, network_id
from fsdecloud.ledger.transactions import decode_tx
from fsdecloud.mountoptions import MountOptions
from fsdecloud.net.unix import stream_from_fd
from fsdecloud.tree.node import Inner
from fsdecloud.types import EntryId, PeerId
from fsdecloud.wire import agentapi, ledgerapi
from fsdecloud.wire.grants import verify_grant
from fsdecloud.wire.receipts import ShardItem, sign_receipt, verify_receipt

DOCUMENT = embedded_network("test", bytes(32), 0)
NETWORK = network_id(DOCUMENT)
KEYS = VolumeKeys.from_root(b"r" * 32)
ME = Caller(0, 0, 0, 0o022)


def run(work, seconds=60):
    """Run an async test, for so many seconds at most."""

    async def bounded():
        with trio.fail_after(seconds):
            await work()

    trio.run(bounded)


def content(i, size=5000):
    """Bytes of a file, the same for the same numbers."""
    return random.Random(i).randbytes(size)


def make_world(base, monkeypatch):
    """Return a world in which nothing waits for longer than it must."""
    monkeypatch.setattr(outbox, "SETTLED", 0.0)
    monkeypatch.setattr(upload, "PACK_DELAY", 0.02)
    monkeypatch.setattr(upload, "RESEND_PATIENCE", 0.5)
    monkeypatch.setattr(marking, "REST", 0.0)
    monkeypatch.setattr(garbage, "STORE_PATIENCE", 20.0)
    return World(base, monkeypatch)


class GcPeer:
    """One peer: deletes at once what a good grant names."""

    def __init__(self, seed):
        self.seed = seed
        self.id = PeerId(sign.public_key(seed))
        self.deal = sign.public_key(deal_seed(KEYS.deal_secret, self.id))
        self.shards = {}
        self.stored_at = {}
        self.used = set()
        self.owner = b""
        self.is_down = False
        self.is_leaving = False
        self.deleted = 0


class GcTransport:
    """The peers and the connections to them. `delay` is waited for in every request."""

    def __init__(self, count=6):
        self.peers = {}
        for i in range(count):
            peer = GcPeer(bytes([i + 1]) * 32)
            self.peers[peer.id] = peer
        self.delay = lambda: 0.0
        self.owner = None

    def registry(self):
        return tuple(
            agentapi.RegistryPeer(p.id, f"wss://127.0.0.1:{1000 + i}/{p.id.hex()}?network={NETWORK.hex()}", 1 << 30)
            for i, p in enumerate(self.peers.values())
        )

    async def _reach(self, address):
        await trio.sleep(self.delay())
        peer = self.peers[address.id]
        if peer.is_down:
            raise PeerUnavailable("connection refused")
        return peer

    async def put(self, address, shards):
        peer = await self._reach(address)
        if peer.is_leaving:
            raise PeerRefused("leaving")
        peer.owner = peer.owner or await self.owner(peer.id)
        for shard, data in shards:
            assert blake3(data).digest() == shard
            peer.shards[shard] = bytes(data)
            peer.stored_at[shard] = int(time.time())
        await trio.sleep(self.delay())
        items = tuple(ShardItem(shard, len(data)) for shard, data in shards)
        return verify_receipt(sign_receipt(peer.seed, peer.id, peer.deal, int(time.time()), items))

    async def renew(self, address, shards):
        peer = await self._reach(address)
        items = tuple(ShardItem(shard, len(peer.shards[shard])) for shard in shards if shard in peer.shards)
        return verify_receipt(sign_receipt(peer.seed, peer.id, peer.deal, int(time.time()), items)) if items else None

    async def has(self, address, shards):
        peer = await self._reach(address)
        return tuple(shard in peer.shards for shard in shards)

    async def get(self, address, shard):
        peer = await self._reach(address)
        if shard not in peer.shards:
            raise BlobMissing("no such shard")
        return peer.shards[shard]

    async def delete(self, address, grant):
        peer = await self._reach(address)
        try:
            grant = verify_grant(
                grant, network=NETWORK, peer=peer.id, deal=peer.deal, owner=peer.owner, now=int(time.time())
            )
        except SealError as exc:
            raise PeerRefused(str(exc)) from exc
        if grant.nonce in peer.used:
            raise PeerRefused("used already")
        peer.used.add(grant.nonce)
        kept = {}
        for shard in grant.shards:
            if peer.stored_at.get(shard, 0) > grant.not_before:
                kept[shard] = "stored again since the grant was made"
            elif peer.shards.pop(shard, None) is not None:
                peer.deleted += 1
        await trio.sleep(self.delay())
        return kept

    async def info(self, address):
        peer = await self._reach(address)
        return Info(False, "leaving") if peer.is_leaving else Info()

    @asynccontextmanager
    async def open(self, _hello, owner):
        self.owner = owner
        yield self

    def bytes(self):
        return sum(len(data) for peer in self.peers.values() for data in peer.shards.values())


class GcLedger(FakeLedger):
    """A network that mines on demand."""

    pruned_below = 0
    """Anchors with lower sequence numbers were in blocks that this daemon has dropped."""

    def _methods(self, connection):
        methods, notices = super()._methods(connection)

        async def network(_):
            return ledgerapi.NetworkInfo(encode_network(DOCUMENT), "")

        async def anchors(query):
            if query.first < self.pruned_below:
                raise BlockPruned(f"dropped anchor {query.first}")
            flat = [(tx, height) for height, txs in enumerate(self.blocks, 1) for tx in txs]
            found = [a for a in flat if decode_tx(a[0]).sequence >= query.first][: query.count]
            return ledgerapi.AnchorList(tuple(ledgerapi.VolumeAnchor(*a) for a in found))

        methods["network"] = (agentapi.Empty, network)
        methods["anchors"] = (ledgerapi.AnchorQuery, anchors)
        return methods, notices


class World:
    """All that outlives a crash, and the volume while it is open."""

    def __init__(self, base, monkeypatch, peers=6):
        self.base = base
        self.paths = Paths(base / "config", base / "state", base / "cache", base / "run")
        (base / "config").mkdir(mode=0o700, parents=True)
        self.transport = GcTransport(peers)
        self.ledger = GcLedger(self.transport.registry(), NETWORK)
        self.volume = None
        self.agent_scope = None
        self.service = None
        world = self

        @asynccontextmanager
        async def start(_link):
            """The agent in this process; cancelling its scope is its sudden end."""
            ours, theirs = socket.socketpair()
            async with trio.open_nursery() as nursery:
                world.agent_scope = nursery.cancel_scope

                world.service = Service(world.transport.open)

                async def serve(service=world.service):
                    await service.run(stream_from_fd(theirs.detach()))
                    nursery.cancel_scope.cancel()

                nursery.start_soon(serve)
                stream = stream_from_fd(ours.detach())
                try:
                    yield stream
                finally:
                    await trio.aclose_forcefully(stream)
                    nursery.cancel_scope.cancel()

        monkeypatch.setattr(AgentLink, "_start", start)

    @asynccontextmanager
    async def open(self, *, clean=True, ledger=True):
        """Mount; without `clean` the end is a crash, without `ledger` no daemon answers."""
        document = new_document("v", KEYS.volume_id, NETWORK)
        setup = VolumeSetup(self.paths, document, KEYS, MountOptions(timeout=20.0), "/nowhere")
        async with trio.open_nursery() as nursery:
            if ledger:
                await nursery.start(self.ledger.serve, self.paths.socket("ledger"))
            async with open_volume(setup) as volume:
                self.volume = volume

                async def complete():
                    return volume.snapshots.is_complete

                await until(complete)
                yield self
                if not clean:
                    raise Crash
            nursery.cancel_scope.cancel()

    @property
    def agent(self):
        """The parts of the agent that runs."""
        return self.service._stack

    def drop_cache(self):
        """Delete what a cache may lose; nothing is mounted."""
        shutil.rmtree(self.base / "cache", ignore_errors=True)

    # ---- files -----------------------------------------------------------------------------------------------------
    async def write(self, name, data, offset=0):
        """Write to a file of the root directory, made if missing."""
        volume = self.volume
        live = await self.find(name)
        if live is None:
            live = await volume.core.run(volume.namespace.create, ROOT, name.encode(), stat.S_IFREG | 0o644, ME)
        live.opens += 1
        volume.files.write_nowait(live, offset, data)
        await volume.files.fsync(live, volume.journal.flush)
        live.opens -= 1

    async def find(self, name):
        volume = self.volume
        try:
            return await volume.core.run(volume.namespace.lookup, ROOT, name.encode())
        except NotFound:
            return None

    async def remove(self, name):
        volume = self.volume
        live = await self.find(name)
        await volume.core.run(volume.namespace.unlink, ROOT, name.encode(), ME)
        volume.maybe_reap(live.ino)

    async def read(self, name):
        volume = self.volume
        live = await self.find(name)
        if live is None:
            return None
        handle = OpenFile(live, 0, ME, b"", b"")
        return b"".join(
            [
                bytes(await volume.reader.read(handle, offset, min(1 << 17, live.size - offset)))
                for offset in range(0, live.size, 1 << 17)
            ]
        )

    async def names(self):
        volume = self.volume
        keys = await volume.core.run(lambda: [k for k, _ in volume.core.overlay.scan_prefix(b"D" + bytes(7) + b"\1")])
        return {key[17:].decode() for key in keys}

    async def anchor(self):
        """Have everything in a block."""
        volume = self.volume
        target = volume.core.change_sequence
        await volume.sync("anchored")

        async def is_anchored():
            volume.anchors.poke(urgent=True)
            return volume.anchors.anchored_sequence >= target and not volume.committer.meta.inflight

        await until(is_anchored)

    async def forget_all(self):
        """Forget every snapshot that nobody keeps."""
        snapshots = self.volume.snapshots
        rows = [row for row in await snapshots.rows() if not row.kept]
        await snapshots.forget([str(row.sequence) for row in rows])

    async def make_garbage(self, name, data):
        """Have the peers hold a file's data that no state needs any more."""
        await self.write(name, data)
        await self.anchor()
        await self.remove(name)
        await self.anchor()
        await self.forget_all()
        await self.anchor()

    async def is_stored(self):
        """Whether everything is complete on the peers, and the agent has said so."""
        return not self.volume.entries.incomplete and not self.agent.uploader.partial()

    # ---- garbage ---------------------------------------------------------------------------------------------------
    async def collect(self, *, dry_run=False):
        """Do what `decloud gc` does; returns its status."""
        collector = self.volume.collector

        async def is_free():
            return collector.status.requested == collector.status.finished

        await until(is_free)
        collector.request(dry_run=dry_run)
        await until(is_free)
        return collector.status

    async def check_everything(self):
        """Fail unless every entry that any retained state names can be had from the peers."""
        volume = self.volume
        seen = set()
        self.agent_scope.cancel()  # the next one has nothing in memory
        for root in await volume.snapshots.retained_roots():
            stack = [root]
            while stack:
                ref = stack.pop()
                if ref in seen:
                    continue
                seen.add(ref)
                await volume.core.run(volume.nodes.get, ref)
                node = volume.nodes.get(ref)
                await self._has(EntryId(ref[:32]), b"")
                if isinstance(node, Inner):
                    stack += node.refs
                    continue
                for key, value in zip(node.keys, node.values, strict=True):
                    for entry in entries_of([(key, value)]):
                        if entry in seen:
                            continue
                        seen.add(entry)
                        await self._has(entry, key)

    async def _fetch(self, entry, holders):
        request = agentapi.FetchEntry(entry, False, holders)
        return await self.volume.agent.call("fetch", request, agentapi.FetchedEntry, timeout=20)

    async def _has(self, entry, key):
        volume = self.volume
        if entry in volume.entries.staged or entry == bytes(32):  # the row that says that all rows are there
            return
        try:
            try:
                found = await self._fetch(entry, ())
            except BlobMissing:
                if key[:1] != b"B":
                    raise
                found = await self._fetch(entry, tuple(self.transport.peers))  # a manifest, which no map knows
        except FsdecloudError as exc:
            raise AssertionError(f"{key!r} needs {entry.hex()}, which is gone: {exc}") from exc
        data = found.data or volume.read_fetched(found)
        assert blake3(data).digest() == entry


class Crash(Exception):
    """The driver ends here."""
