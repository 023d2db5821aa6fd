"""A volume's driver without FUSE, agent or network, and what a kill -9 at any moment leaves of it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import trio

from fsdecloud.crypto.keys import VolumeKeys
from fsdecloud.driver.committer import Committer
from fsdecloud.driver.core import Core
from fsdecloud.driver.entries import Entries
from fsdecloud.driver.files import Files
from fsdecloud.driver.journal import META, Journal, replay
from fsdecloud.driver.meta import VolumeMeta, decode_meta
from fsdecloud.driver.reader import OpenFile, Reader
from fsdecloud.driver.recorder import Caller
from fsdecloud.driver.sealer import Sealer
from fsdecloud.driver.treenodes import TreeNodes
from fsdecloud.fs.inode import InodeValue
from fsdecloud.fs.overlay import Overlay
from fsdecloud.store.cache import CacheStore
from fsdecloud.store.segments import SegmentStore
from fsdecloud.store.state import StateStore

KEYS = VolumeKeys.from_root(bytes(32))


class SilentAgent:
    """All peers are away."""

    async def call(self, *_arguments, timeout=None, **_options):
        await trio.sleep_forever()


class Driver:
    """The parts of a volume, wired as `driver.volume` wires them."""

    def __init__(self, directory: Path, *, stage_size: int = 1 << 30) -> None:
        directory.mkdir(mode=0o700, exist_ok=True)
        self.directory = directory
        self.store = StateStore(directory / "state.lmdb", KEYS.at_rest_key, KEYS.volume_id)
        data = self.store.meta(META)
        meta = decode_meta(data) if data else VolumeMeta()
        self.staged, self.cache = SegmentStore(directory / "staged", "staged"), CacheStore(directory / "cache")
        self.nodes = TreeNodes(KEYS.seal_secret)
        self.entries = Entries(KEYS.seal_secret, self.staged, self.cache, SilentAgent(), 0.5)
        self.nodes.attach(self.entries)
        self.core = Core(KEYS, Overlay(self.nodes.get, meta.root), self.nodes.fetch)
        self.reader = Reader(self.core, self.entries)
        self.sealer = Sealer(self.core, self.entries, self.reader.load_plain)
        self.files = Files(self.core, self.entries, self.sealer, kernel_times=False, stage_size=stage_size)
        self.journal = Journal(self.core, self.files, self.entries, self.store)
        self.committer = Committer(self.core, self.files, self.entries, self.sealer, self.journal, self.nodes, meta)

    async def load(self) -> None:
        for entry, location in self.store.staged():
            self.entries.add_staged(entry, location, new=False)
        batched = self.committer.meta.batched
        self.journal.records_journaled = replay(self.core, self.files, self.store.replay(), batched)
        await self.files.install_replayed()
        await self.core.run(self.core.load_superblock)

    def new_file(self):
        return self.core.new_inode(InodeValue(0o100644, 0, 0, 1, 0, 1, 1, 1, 1, 0, 0, 0, b""))

    async def read(self, ino: int, offset: int, size: int) -> bytes:
        live = await self.core.run(self.core.inodes.get, ino)
        handle = OpenFile(live, 0, Caller(0, 0, 0, 0), b"", b"")
        return bytes(await self.reader.read(handle, offset, size))

    async def fsync(self, live) -> None:
        await self.files.fsync(live, self.journal.flush)

    async def crashed(self) -> Driver:
        """What the next mount finds if this process is killed now."""
        copy = self.directory.with_name(f"{self.directory.name}-{os.urandom(4).hex()}")
        # A kill is a moment: worker threads must not move log and tables on while they are copied.
        with self.store._lock:
            shutil.copytree(self.directory, copy)
        after = Driver(copy)
        await after.load()
        return after

    def close(self) -> None:
        for part in (self.store, self.staged, self.cache):
            part.close()


@pytest.fixture
def run_driver(tmp_path):
    """Run an async test with a Driver whose tasks run."""

    def run(test, **options) -> None:
        async def main() -> None:
            driver = Driver(tmp_path / "volume", **options)
            with trio.fail_after(30):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(driver.sealer.run)
                    nursery.start_soon(driver.journal.run)
                    await test(driver)
                    nursery.cancel_scope.cancel()
            driver.close()

        trio.run(main)

    return run
