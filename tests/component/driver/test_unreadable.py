"""What `decloud unreadable` finds is what programs cannot read, whichever entries only absent peers have."""

from __future__ import annotations

import random

import pytest
import trio

from fsdecloud import limits
from fsdecloud.driver import unreadable
from fsdecloud.driver.namespace import Namespace
from fsdecloud.driver.unreadable import Search, UnreadableControl
from fsdecloud.driver.xattrs import Xattrs
from fsdecloud.errors import NotEnoughPeers, RemoteError, UsageError
from fsdecloud.fs.keys import ROOT, chunk_key, split_chunk_key
from fsdecloud.limits import CHUNK_SIZE
from fsdecloud.tree.node import Leaf, NodeMissing
from fsdecloud.wire.agentapi import EntryNames, FetchedEntry
from fsdecloud.wire.controlapi import UnreadableQuery
from tests.component.driver.fsckworld import CALLER

SIZES = (0, 60, 5000, 5000, 70_000, CHUNK_SIZE + 5000)


class Peers:
    """An agent whose peers have some entries, and cannot give others."""

    def __init__(self) -> None:
        self.lost: set[bytes] = set()
        self.there: dict[bytes, bytes] = {}
        self.fetched = 0
        self.probes = 0
        self.questions: list[int] = []

    async def call(self, method, params, _result, *, timeout=None):
        await trio.lowlevel.checkpoint()
        if method == "unreachable":
            self.probes += params.probe
            self.questions.append(len(params.entries))
            return EntryNames(tuple(entry for entry in params.entries if entry not in self.there))
        assert method == "fetch"
        if params.id not in self.there:
            raise NotEnoughPeers("no peer")
        self.fetched += 1
        data = self.there[params.id]
        return FetchedEntry(data, 0, 0, len(data))


class World:
    """A volume with files in directories, as a mount finds it whose peers do not have everything."""

    def __init__(self, driver, seed: int) -> None:
        self.driver = driver
        self.random = random.Random(seed)
        self.paths: dict[bytes, int] = {}
        self.names = Namespace(driver.core, Xattrs(driver.core))
        driver.core.create_root(0, 0)

    async def fill(self, directories: int, files: int) -> None:
        """Make files, overwrite parts of some, commit."""
        places = [(int(ROOT), b"")]
        core, names = self.driver.core, self.names
        for number in range(directories):
            parent, path = self.random.choice(places)
            name = b"directory-%d-%s" % (number, b"d" * 100)
            live = await core.run(names.mkdir, parent, name, 0o755, CALLER)
            places.append((live.ino, path + name + b"/"))
        made = []
        for number in range(files):
            parent, path = self.random.choice(places)
            name = b"file-%d-%s" % (number, b"f" * 60)
            live = await core.run(names.create, parent, name, 0o100644, CALLER)
            await self.driver.files.write_in_turn(live, 0, self.random.randbytes(self.random.choice(SIZES)))
            self.paths[path + name] = live.ino
            made.append(live)
        linked, (parent, path) = self.random.choice(made), places[-1]
        await core.run(names.link, linked.ino, parent, b"another name", CALLER)
        self.paths[path + b"another name"] = linked.ino
        await self.commit()
        for live in self.random.sample(made, files // 5):
            if live.size > 4000:
                await self.driver.files.write_in_turn(live, 1000, self.random.randbytes(600))
        await self.commit()

    async def commit(self) -> None:
        await self.driver.journal.flush()
        await self.driver.committer.commit()

    async def mounted(self, peers: Peers, share: float, *, on_peers: float = 0.0):
        """Return what the next mount finds: of its entries, a share is nowhere, and a part of the others on peers only."""
        after = await self.driver.crashed()
        after.entries._agent = peers
        for entry, place in list(after.entries.staged.items()):
            drawn = self.random.random()
            if drawn < share + on_peers:
                del after.entries.staged[entry]
                if drawn >= share and place.length <= 16384:
                    peers.there[entry] = after.staged.read(place)
        return after

    async def fails(self, after, path: bytes) -> bool:
        """Whether a program cannot read all of a file."""
        names = Namespace(after.core, Xattrs(after.core))
        try:
            live = await after.core.run(after.core.inodes.get, ROOT)
            for name in path.split(b"/"):
                live = await after.core.run(names.lookup, live.ino, name)
            for offset in range(0, live.size, CHUNK_SIZE):
                await after.read(live.ino, offset, CHUNK_SIZE)
        except RemoteError:
            return True
        return False


async def search(after, peers):
    """Return all that is found, by path."""
    control = UnreadableControl(lambda: Search(after.core, after.entries, after.nodes, peers))
    _kind, ask = control.methods()["unreadable"]
    found, session, pages = {}, 0, 0
    while True:
        page = await ask(UnreadableQuery(session))
        assert len(page.found) <= unreadable.PAGE
        for one in page.found:
            assert one.path not in found
            found[one.path] = one
        pages += 1
        session = page.session
        if not session:
            return found, pages


@pytest.fixture(autouse=True)
def _small_pages(monkeypatch):
    """Everything that is done in parts has many of them."""
    monkeypatch.setattr(unreadable, "PAGE", 16)
    monkeypatch.setattr(unreadable, "LISTED", 7)
    monkeypatch.setattr(unreadable, "KNOWN_MAX", 20)
    monkeypatch.setattr(unreadable, "NODES_KEPT", 8)


@pytest.mark.parametrize("on_peers", [0.0, 0.3], ids=["local", "fetched"])
@pytest.mark.parametrize("share", [0.02, 0.2])
@pytest.mark.parametrize("seed", range(2))
def test_fault_061_what_is_named_is_what_cannot_be_read(run_driver, seed, share, on_peers) -> None:
    async def test(driver) -> None:
        world = World(driver, f"{seed}/{share}/{on_peers}")
        await world.fill(15, 150)
        peers = Peers()
        after = await world.mounted(peers, share, on_peers=on_peers)
        found, _pages = await search(after, peers)
        assert peers.probes == 1
        assert max(peers.questions) <= 20
        failing = {path for path in world.paths if await world.fails(after, path)}
        assert failing, "proved nothing"
        unknown = [path for path, one in found.items() if one.lacks in ("names", "attributes")]
        files = {path for path in found if path in world.paths}
        assert files <= failing, "what can be read is not named"
        for path in failing - files:
            assert any(path.startswith(above + b"/") or not above for above in unknown), path
        after.close()

    run_driver(test)


def test_fault_061_a_large_node_that_is_here_is_not_asked_for(run_driver, monkeypatch) -> None:
    monkeypatch.setattr(limits, "SMALL_ENTRY", 0)

    async def test(driver) -> None:
        world = World(driver, "large")
        await world.fill(5, 50)
        peers = Peers()
        after = await world.mounted(peers, 0.0)
        assert await search(after, peers) == ({}, 1)
        assert not any(peers.questions[1:]), "peers were asked for what is here"
        after.close()

    run_driver(test)


def test_fault_061_a_chunk_that_waits_for_a_commit_needs_no_node(run_driver) -> None:
    async def test(driver) -> None:
        world = World(driver, "pending")
        await world.fill(2, 100)
        peers = Peers()
        after = await world.mounted(peers, 0.0)
        overlay = after.core.overlay
        by_ino = {ino: path for path, ino in world.paths.items() if path != b"another name"}
        rows = [key for key, _ in overlay.scan(chunk_key(0, 0), chunk_key(1 << 40, 0)) if key not in overlay.current]
        pending, missing = rows[len(rows) // 2 : len(rows) // 2 + 2]
        overlay.current[pending] = overlay.get(pending)
        leaves = [ref for ref, node in after.nodes._nodes.items() if isinstance(node, Leaf) and missing in node.keys]
        for ref in leaves:
            after.entries.staged.pop(ref[:32], None)
        after.nodes._nodes.clear()
        assert pending not in overlay.frozen
        with pytest.raises(NodeMissing):
            overlay.get(missing)
        found, _pages = await search(after, peers)
        assert found[by_ino[split_chunk_key(missing)[0]]].lacks == "contents"
        assert by_ino[split_chunk_key(pending)[0]] not in found
        after.close()

    run_driver(test)


def test_fault_061_bytes_and_ranges_of_contents(run_driver) -> None:
    async def test(driver) -> None:
        world = World(driver, 1)
        live = await driver.core.run(world.names.create, ROOT, b"long", 0o100644, CALLER)
        size = 9 * CHUNK_SIZE + 12345
        for index in range(10):
            data = world.random.randbytes(min(CHUNK_SIZE, size - index * CHUNK_SIZE))
            await driver.files.write_in_turn(live, index * CHUNK_SIZE, data)
        await world.commit()
        peers = Peers()
        after = await world.mounted(peers, 0.0)
        chunks = sorted(
            ((place.segment, place.offset), entry)
            for entry, place in after.entries.staged.items()
            if place.length > CHUNK_SIZE // 2
        )
        assert len(chunks) == 9
        for key in [b"C" + live.ino.to_bytes(8, "big") + index.to_bytes(8, "big") for index in (2, 3, 6, 9)]:
            value = await after.core.run(after.core.overlay.get, key)
            for ref in unreadable.refs(unreadable.decode_chunk(value)):
                del after.entries.staged[ref.id]
        again = await after.core.run(after.core.inodes.get, live.ino)
        found, _ = await search(after, peers)
        assert found[b"long"].lost == 3 * CHUNK_SIZE + 12345
        # One of them is overwritten as a whole, another one in part, and neither is sealed yet.
        await after.files.write_in_turn(again, 6 * CHUNK_SIZE, bytes(CHUNK_SIZE))
        await after.files.write_in_turn(again, 2 * CHUNK_SIZE + 77, bytes(1000))
        found, _ = await search(after, peers)
        (one,) = found.values()
        assert (one.path, one.inode, one.lacks, one.has_more) == (b"long", live.ino, "contents", False)
        assert one.ranges == ((2 * CHUNK_SIZE, 4 * CHUNK_SIZE), (9 * CHUNK_SIZE, size))
        assert one.lost == 2 * CHUNK_SIZE + 12345
        again.size = 3 * CHUNK_SIZE  # as a truncation that is not in the tree yet
        found, _ = await search(after, peers)
        assert [one.ranges for one in found.values()] == [((2 * CHUNK_SIZE, 3 * CHUNK_SIZE),)]
        again.size = 2 * CHUNK_SIZE
        assert (await search(after, peers))[0] == {}
        after.close()

    run_driver(test)


def test_fault_061_a_whole_volume_is_named_in_pages(run_driver) -> None:
    async def test(driver) -> None:
        world = World(driver, 3)
        await world.fill(5, 100)
        peers = Peers()
        after = await world.mounted(peers, 0.0)
        assert (await search(after, peers))[0] == {}
        for path, ino in world.paths.items():
            rows = after.core.overlay.scan_prefix(b"C" + ino.to_bytes(8, "big"))
            for _key, value in list(rows):
                for ref in unreadable.refs(unreadable.decode_chunk(value)):
                    after.entries.staged.pop(ref.id, None)
            assert path
        found, pages = await search(after, peers)
        assert pages > 3
        assert set(found) == {path for path in world.paths if await world.fails(after, path)}
        assert len(found) > 50
        control = UnreadableControl(lambda: Search(after.core, after.entries, after.nodes, peers))
        _kind, ask = control.methods()["unreadable"]
        with pytest.raises(UsageError):
            await ask(UnreadableQuery(7))
        first = await ask(UnreadableQuery(0))
        for _ in range(unreadable.SESSIONS_MAX):
            await ask(UnreadableQuery(0))
        with pytest.raises(UsageError, match="begin again"):
            await ask(UnreadableQuery(first.session))
        after.close()

    run_driver(test)
