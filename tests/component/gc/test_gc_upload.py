"""Files that change while their data is on its way: what is stored is what they are at last, and nothing else stays."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest
import trio

sys.path.insert(0, str(Path(__file__).parent))

from gcworld import ME, ROOT, content, make_world, run, until


@pytest.fixture
def world(tmp_path, monkeypatch):
    return make_world(tmp_path, monkeypatch)


class Gate:
    """Lets no shard through to a peer until it is opened, and counts what then comes."""

    def __init__(self, transport):
        self._put = transport.put
        self._open = trio.Event()
        self.waiting = 0
        self.came = Counter()
        transport.put = self.put

    async def put(self, address, shards):
        self.waiting += 1
        await self._open.wait()
        receipt = await self._put(address, shards)
        self.came.update((address.id, item.id) for item in receipt.shards)
        return receipt

    def open(self):
        self._open.set()

    async def is_met(self):
        return self.waiting > 0


async def on_its_way(world, gate):
    """Wait until some of what was written is being sent."""
    world.volume.uploads.hurry()
    await until(gate.is_met)


def test_fault_066_a_file_that_is_deleted_while_it_is_sent_leaves_nothing_behind(world):
    async def work():
        async with world.open():
            await world.write("stays", content(1, 400_000))
            await world.anchor()
            await world.forget_all()
            await world.anchor()
            await world.collect()
            before = world.transport.bytes()
            gate = Gate(world.transport)
            await world.write("goes", content(2, 3_000_000))
            await on_its_way(world, gate)
            await world.remove("goes")
            gate.open()
            await world.anchor()
            await until(world.is_stored)
            await world.forget_all()
            await world.anchor()
            assert (await world.collect()).error == ""
            assert world.transport.bytes() < before + 500_000, "what was sent in vain is still there"
            assert not world.volume.entries.incomplete
            await world.check_everything()
        world.drop_cache()
        async with world.open():
            assert await world.read("stays") == content(1, 400_000)
            assert await world.read("goes") is None

    run(work)


def test_fault_065_a_chunk_that_is_written_again_and_again_is_sent_once_for_each_version_at_most(world):
    async def work():
        async with world.open():
            gate = Gate(world.transport)
            await world.write("file", content(0, 300_000))
            await on_its_way(world, gate)
            for version in range(1, 40):
                await world.write("file", content(version, 300_000))
            gate.open()
            await world.anchor()
            await until(world.is_stored)
            assert max(gate.came.values()) == 1, "a shard was sent twice to a peer"
        world.drop_cache()
        async with world.open():
            assert await world.read("file") == content(39, 300_000), "the last version wins"

    run(work)


def test_fault_067_renamed_cut_and_written_again_while_it_is_sent(world):
    async def work():
        async with world.open():
            gate = Gate(world.transport)
            for name in ("renamed", "cut", "grown", "replaced", "removed"):
                await world.write(name, content(3, 300_000) + name.encode() * 50_000)
            await world.write("over", content(4, 500_000))
            await on_its_way(world, gate)
            volume = world.volume

            async def rename(old, new):
                await volume.core.run(volume.namespace.rename, ROOT, old, ROOT, new, 0, ME)

            await rename(b"renamed", b"other")
            await volume.files.truncate(await world.find("cut"), 1000)
            await volume.files.truncate(await world.find("grown"), 700_000)
            await rename(b"over", b"replaced")
            await world.remove("removed")
            await world.write("removed", b"again")
            gate.open()
            await world.anchor()
            await until(world.is_stored)
        world.drop_cache()
        async with world.open():
            was = content(3, 300_000)
            assert await world.names() >= {"other", "cut", "grown", "replaced", "removed"}
            assert await world.read("other") == was + b"renamed" * 50_000
            assert await world.read("cut") == was[:1000]
            grown = was + b"grown" * 50_000
            assert await world.read("grown") == grown + bytes(700_000 - len(grown))
            assert await world.read("replaced") == content(4, 500_000)
            assert await world.read("removed") == b"again"
            assert await world.read("renamed") is None
            await world.check_everything()

    run(work)
