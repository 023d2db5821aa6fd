"""A mounted volume whose peers take everything and whose ledger takes every anchor when it is told to."""

from __future__ import annotations

import os
import stat

import trio

from fsdecloud.crypto.seal import entry_id
from fsdecloud.driver.anchors import Anchors
from fsdecloud.driver.namespace import Namespace
from fsdecloud.driver.recorder import Caller
from fsdecloud.driver.restore import Restorer
from fsdecloud.driver.snapshots import Snapshots
from fsdecloud.driver.views import Views
from fsdecloud.driver.xattrs import Xattrs
from fsdecloud.fs.keys import ROOT
from fsdecloud.ledger.transactions import decode_tx
from fsdecloud.tree.lookup import scan
from fsdecloud.wire.agentapi import Anchored, Empty, FetchedEntry, Holders, LedgerVolume, MapCommit
from fsdecloud.wire.ledgerapi import VolumeAnchor
from tests.component.driver.conftest import Driver

ME = Caller(0, 0, 0, 0o022)


ME = Caller(0, 0, 0, 0o022)


class Network:
    """An agent whose peers take everything, and a ledger that takes every anchor when it is told to."""

    def __init__(self) -> None:
        self.manifests: dict[bytes, bytes] = {}
        self.anchors: list[bytes] = []
        self.deliver = lambda _notice: None
        self.is_mining = True

    async def call(self, method, params, _result, *, timeout=None):
        await trio.lowlevel.checkpoint()
        if method == "commit_map":
            return MapCommit(b"", b"")
        if method == "store_manifest":
            self.manifests[entry_id(params.data)] = params.data
            return Holders((b"p" * 32,), ())
        if method == "submit":
            if self.is_mining:
                self.mine(params)
            return Empty()
        if method == "fetch":
            return FetchedEntry(self.manifests[params.id], 0, 0, 0)
        assert method == "ledger_volume"
        return LedgerVolume(self.anchors[-1] if self.anchors else b"", len(self.anchors))

    def mine(self, params) -> None:
        if len(self.anchors) < params.sequence:
            self.anchors.append(params.tx)
        self.deliver(Anchored(params.sequence, b"", params.sequence, ""))


class States:
    """What `AnchoredStates` asks a ledger daemon."""

    def __init__(self, network: Network, keys) -> None:
        self.network, self.keys = network, keys
        self.asked: list[int] = []

    async def get(self, sequence: int):
        from fsdecloud.driver.anchors import fetch_manifest

        self.asked.append(sequence)
        tx = self.network.anchors[sequence - 1]
        manifest = await fetch_manifest(self.keys, decode_tx(tx), self.network, lambda answer: answer.data)
        return VolumeAnchor(tx, sequence), decode_tx(tx), manifest


class Mounted:
    """A driver with everything that `driver.volume` puts around snapshots."""

    def __init__(self, driver: Driver, network: Network) -> None:
        self.driver, self.network = driver, network
        core = self.core = driver.core
        self.xattrs = Xattrs(core)
        self.namespace = Namespace(core, self.xattrs)
        self.anchors = Anchors(
            core, driver.entries, driver.committer, network, network=bytes(32), device_seed=bytes(32)
        )
        network.deliver = self.anchors.take_anchored
        self.states = States(network, core.keys)
        self.snapshots = Snapshots(core, driver.committer, self.states, lambda: 1 << 40)
        self.views = Views(core, driver.reader, self.snapshots, has_acl=False)
        self.snapshots.on_forget = self.views.forget
        self.restorer = Restorer(
            core, self.namespace, driver.journal, driver.committer, self.snapshots, self.views, lambda _ino: None
        )
        if not core.overlay.root and core.overlay.get(b"I" + ROOT.to_bytes(8, "big")) is None:
            core.create_root(0, 0)
            self.snapshots.note_new_volume()

    async def crashed(self) -> Mounted:
        return Mounted(await self.driver.crashed(), self.network)

    async def commit(self):
        return await self.driver.committer.commit()

    async def anchor(self) -> None:
        """Commit, and have it in a block if there is something new."""
        await self.commit()
        self.driver.entries.mark_anchorable(list(self.driver.entries.unanchorable))
        if self.anchors._is_due():
            await self.anchors._anchor(self.driver.committer.latest)

    async def settle(self) -> None:
        """Commit and anchor until nothing calls for it any more: sealing is noted as a change after the freeze."""
        for _ in range(3):
            if self.driver.committer.has_work:
                await self.anchor()
        assert not self.driver.committer.has_work

    async def write(self, path: str, data: bytes) -> None:
        parent = await self.find(os.path.dirname(path))
        live = self.namespace.create(parent.ino, os.path.basename(path).encode(), stat.S_IFREG | 0o640, ME)
        self.driver.files.write_nowait(live, 0, data)

    async def mkdir(self, path: str) -> None:
        parent = await self.find(os.path.dirname(path))
        self.namespace.mkdir(parent.ino, os.path.basename(path).encode(), 0o751, ME)

    async def find(self, path: str):
        live = await self.core.run(self.core.inodes.get, ROOT)
        for part in filter(None, path.split("/")):
            live = await self.core.run(self.namespace.lookup, live.ino, part.encode())
        return live

    async def reap(self) -> None:
        """What `Volume.reap_orphans` does at a mount."""
        while keys := await self.core.run(lambda: [key for key, _ in self.core.overlay.scan_prefix(b"O")]):
            for key in keys:
                ino = int.from_bytes(key[1:], "big")
                live = await self.core.run(self.core.inodes.get, ino)
                while live.is_dir and await self.core.run(self.namespace.empty, ino, 3):
                    pass
                await self.driver.files.reap(live)

    def in_tree(self, prefix: bytes) -> list[bytes]:
        overlay = self.core.overlay
        stop = bytes((prefix[0] + 1,))
        return [key for key, _ in scan(self.driver.nodes.get, overlay.root, prefix, stop)] if overlay.root else []


def runner(run_driver):
    """What runs an async test with a Mounted driver."""

    def run(test) -> None:
        async def main(driver) -> None:
            mounted = Mounted(driver, Network())
            driver.core.changed()
            await test(mounted)

        run_driver(main)

    return run


async def describe(core, namespace, reader, path: str = "/", ino: int = ROOT) -> dict:
    """Return all that can be seen of a tree, but for change times."""
    live = await core.run(core.inodes.get, ino)
    found = {path: (live.mode, live.uid, live.nlink, live.size, live.mtime, live.xattrs, live.target)}
    if live.is_dir:
        for _cookie, name, child in await core.run(namespace.listing, ino, 0, 1000):
            found |= await describe(core, namespace, reader, f"{path.rstrip('/')}/{name.decode()}", child.ino)
    elif live.size:
        from fsdecloud.driver.reader import OpenFile

        found[path] += (bytes(await reader.read(OpenFile(live, 0, ME, b"", b""), 0, live.size)),)
    return found


async def sequences(mounted: Mounted) -> list[int]:
    return [row.sequence for row in await mounted.snapshots.rows()]
