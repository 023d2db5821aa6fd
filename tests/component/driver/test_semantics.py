"""Removal, truncation and parents in the driver's core: bounded steps, nothing comes back, nothing is left."""

from __future__ import annotations

import pytest
import trio

from fsdecloud.crypto.keys import VolumeKeys
from fsdecloud.driver.core import Core
from fsdecloud.driver.listing import Lister
from fsdecloud.driver.namespace import Namespace
from fsdecloud.driver.recorder import Caller
from fsdecloud.driver.xattrs import Xattrs
from fsdecloud.errors import NoSpace, NotFound, TooManyLinks
from fsdecloud.fs.chunks import Inline, encode_chunk
from fsdecloud.fs.keys import ROOT, chunk_key, chunk_prefix, orphan_key, parent_key
from fsdecloud.fs.overlay import Overlay
from fsdecloud.fuse.attributes import attributes_of
from fsdecloud.limits import CHUNK_SIZE
from fsdecloud.tree.node import NodeMissing

CALLER = Caller(0, 0, 0, 0)


def namespace_of(driver) -> Namespace:
    """The names of a driver's tree, with a root."""
    return Namespace(driver.core, Xattrs(driver.core))


async def large_file(driver, chunks: int):
    """A committed file of many small chunk values."""
    live = driver.new_file()
    raw = encode_chunk(Inline(b"x" * 10))
    for index in range(chunks):
        driver.core.overlay.put(chunk_key(live.ino, index), raw)
    live.size, live.allocated = chunks * CHUNK_SIZE, chunks * 10
    driver.core.inodes.touch(live)
    driver.core.changed()
    await driver.committer.commit()
    return live


def keys_of(driver, ino: int) -> int:
    return sum(1 for _ in driver.core.overlay.scan_prefix(chunk_prefix(ino)))


class Turns:
    """Counts how often another task gets its turn."""

    def __init__(self) -> None:
        self.count = 0

    async def run(self) -> None:
        while True:
            await trio.lowlevel.checkpoint()
            self.count += 1


def test_a_large_file_is_reaped_in_steps_and_an_end_in_between_leaves_an_orphan(run_driver) -> None:
    async def test(driver) -> None:
        live = await large_file(driver, 5000)
        live.nlink = 0
        driver.core.overlay.put(orphan_key(live.ino), b"")
        driver.core.inodes.touch(live)
        driver.core.changed()
        turns = Turns()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(turns.run)
            with trio.CancelScope() as scope:

                async def stop() -> None:
                    while keys_of(driver, live.ino) == 5000:
                        await trio.lowlevel.checkpoint()
                    scope.cancel()

                nursery.start_soon(stop)
                await driver.files.reap(live)
            assert scope.cancelled_caught
            assert 0 < keys_of(driver, live.ino) < 5000
            await driver.journal.flush()
            after = await driver.crashed()
            assert after.core.overlay.get(orphan_key(live.ino)) is not None
            left = await after.core.run(after.core.inodes.get, live.ino)
            await after.files.reap(left)
            assert keys_of(after, live.ino) == 0
            assert after.core.overlay.get(orphan_key(live.ino)) is None
            after.close()
            turns.count = 0
            await driver.files.reap(live)
            assert turns.count >= 1
            nursery.cancel_scope.cancel()
        assert keys_of(driver, live.ino) == 0

    run_driver(test)


def test_a_large_file_is_cut_in_steps(run_driver) -> None:
    async def test(driver) -> None:
        live = await large_file(driver, 4000)
        turns = Turns()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(turns.run)
            await driver.files.truncate(live, 10 * CHUNK_SIZE + 5)
            nursery.cancel_scope.cancel()
        assert turns.count >= 1
        assert keys_of(driver, live.ino) == 11
        assert live.allocated == 10 * 10 + 5
        await driver.files.truncate(live, 1 << 60)
        driver.files.write_nowait(live, (1 << 60) - 1, b"z")
        assert await driver.read(live.ino, (1 << 60) - 3, 5) == b"\0\0z"
        await driver.fsync(live)
        await driver.committer.commit()
        assert keys_of(driver, live.ino) == 12
        assert live.allocated == 10 * 10 + 5 + 1
        await driver.files.truncate(live, 0)
        assert (keys_of(driver, live.ino), live.allocated) == (0, 0)

    run_driver(test)


def test_what_a_failed_commit_kept_of_a_removed_file_does_not_come_back(run_driver) -> None:
    async def test(driver) -> None:
        live = driver.new_file()
        driver.files.write_nowait(live, 0, bytes(range(256)) * 4096)
        driver.files.write_nowait(live, CHUNK_SIZE, b"y" * 100_000)
        stage, may_stage = driver.entries.stage, trio.Event()

        async def slow_stage(items):
            await may_stage.wait()
            return await stage(items)

        driver.entries.stage = slow_stage
        driver.core.write_back(whole=True)
        driver.files.seal_all()
        driver.core.overlay.freeze()
        live.nlink = 0
        await driver.files.reap(live)
        driver.core.overlay.thaw()
        may_stage.set()
        while driver.sealer.dirty_bytes or driver.sealer.waiting_chunks():
            await driver.sealer.wait_progress()
        assert keys_of(driver, live.ino) == 0
        assert driver.sealer.dirty_chunks == 0
        await driver.committer.commit()
        assert keys_of(driver, live.ino) == 0

    run_driver(test)


def test_what_a_commit_in_progress_needs_of_a_removed_file_is_in_it(run_driver) -> None:
    """And in nothing after it."""

    async def test(driver) -> None:
        live = driver.new_file()
        driver.files.write_nowait(live, 0, bytes(range(256)) * 4096)
        update = driver.committer._update_tree
        seen = []

        async def slow_update() -> bytes:
            root = await update()
            seen.append(chunk_key(live.ino, 0) in driver.core.overlay.frozen)
            return root

        driver.committer._update_tree = slow_update
        async with trio.open_nursery() as nursery:
            nursery.start_soon(driver.committer.commit)
            while not driver.core.overlay.is_committing:
                await trio.lowlevel.checkpoint()
            live.nlink = 0
            await driver.files.reap(live)
        assert seen == [True]
        assert keys_of(driver, live.ino) == 0
        await driver.committer.commit()
        assert keys_of(driver, live.ino) == 0

    run_driver(test)


def test_parents_come_from_the_tree(run_driver) -> None:
    async def test(driver) -> None:
        driver.core.create_root(0, 0)
        names = namespace_of(driver)
        one = names.mkdir(ROOT, b"one", 0o755, CALLER)
        two = names.mkdir(ROOT, b"two", 0o755, CALLER)
        inner = names.mkdir(one.ino, b"inner", 0o755, CALLER)
        other = names.mkdir(two.ino, b"other", 0o755, CALLER)
        names.rename(one.ino, b"inner", two.ino, b"moved", 0, CALLER)
        names.rename(two.ino, b"other", ROOT, b"one", 2, CALLER)
        old = names.mkdir(inner.ino, b"old", 0o755, CALLER)
        driver.core.overlay.put(parent_key(old.ino), None)  # as in a volume made before parents were kept
        expected = {inner.ino: two.ino, other.ino: ROOT, one.ino: two.ino, two.ino: ROOT, old.ino: None}
        await driver.committer.commit()
        after = await driver.crashed()
        fresh = namespace_of(after)
        for ino, parent in expected.items():
            found = fresh.lookup_parent(ino)
            assert (found.ino if found is not None else None) == parent
        assert fresh.lookup_parent(ROOT).ino == ROOT
        found, _after = fresh.search_parent(old.ino, b"D")
        assert found.ino == inner.ino
        assert fresh.search_parent(999_999, b"D") == (None, b"")
        fresh.rmdir(inner.ino, b"old", CALLER)
        fresh.rmdir(two.ino, b"moved", CALLER)
        await after.files.reap(after.core.inodes.get(inner.ino))
        assert after.core.overlay.get(parent_key(inner.ino)) is None
        after.close()

    run_driver(test)


def test_a_directory_on_peers_is_listed_with_many_fetches_at_once(run_driver) -> None:
    async def test(driver) -> None:
        driver.core.create_root(0, 0)
        names = namespace_of(driver)
        for number in range(3000):
            names.create(ROOT, b"file %d" % number, 0o100644, CALLER)
        await driver.committer.commit()
        nodes = driver.nodes
        local = driver.entries.small_nowait
        running = waves = most = 0

        async def fetch(ref: bytes) -> None:
            nonlocal running, waves, most
            waves += not running
            running += 1
            most = max(most, running)
            await trio.lowlevel.checkpoint()
            running -= 1
            nodes._nodes[ref] = real(ref)

        def real(ref: bytes):
            driver.entries.small_nowait = local
            try:
                return get(ref)
            finally:
                driver.entries.small_nowait = lambda _entry: None

        get = nodes.get
        nodes.fetch = driver.core._fetch_node = fetch
        nodes._nodes.clear()
        driver.core.inodes._live.clear()
        driver.entries.small_nowait = lambda _entry: None
        lister = Lister(driver.core, names, nodes)
        after, found = 2, []
        while batch := await lister.entries(ROOT, after, 64):
            found += [name for _cookie, name, _live in batch]
            after = batch[-1][0]
        assert sorted(found) == sorted(b"file %d" % number for number in range(3000))
        assert most >= 8
        assert waves < 20, "not one fetch after another"

    run_driver(test)


def test_a_listing_goes_on_where_it_was_whatever_changes() -> None:
    """Cookies are hashes of names: entries that stay are listed exactly once (fault 144)."""

    def get(ref: bytes):
        raise NodeMissing(ref)

    async def fetch(_ref: bytes) -> None:
        raise AssertionError("nothing is on peers")

    core = Core(VolumeKeys.from_root(bytes(32)), Overlay(get, b""), fetch)
    core.create_root(0, 0)
    names = Namespace(core, Xattrs(core))
    for number in range(500):
        names.create(ROOT, b"stays %d" % number, 0o100644, CALLER)
    after, found, made = 2, [], 0
    while batch := names.listing(ROOT, after, 7):
        found += [name for _cookie, name, _live in batch]
        after = batch[-1][0]
        names.create(ROOT, b"new %d" % made, 0o100644, CALLER)
        made += 1
        if made % 3 == 0:
            names.unlink(ROOT, b"new %d" % (made - 2), CALLER)
    stayed = [name for name in found if name.startswith(b"stays")]
    assert sorted(stayed) == sorted(b"stays %d" % number for number in range(500))
    assert len(found) == len(set(found))


def test_directories_have_no_limit_of_subdirectories(run_driver) -> None:
    async def test(driver) -> None:
        driver.core.create_root(0, 0)
        names = namespace_of(driver)
        root = driver.core.inodes.get(ROOT)
        root.nlink = 65_000
        names.mkdir(ROOT, b"one more", 0o755, CALLER)
        assert root.nlink == 65_001
        assert attributes_of(root, 1, 1).st_nlink == 1  # as ext4
        names.rmdir(ROOT, b"one more", CALLER)
        assert attributes_of(root, 1, 1).st_nlink == 65_000

    run_driver(test)


def test_files_have_a_limit_of_names(run_driver) -> None:
    async def test(driver) -> None:
        driver.core.create_root(0, 0)
        names = namespace_of(driver)
        file = names.create(ROOT, b"first", 0o100644, CALLER)
        file.nlink = 64_999
        names.link(file.ino, ROOT, b"last", CALLER)
        assert attributes_of(file, 1, 1).st_nlink == 65_000
        with pytest.raises(TooManyLinks):
            names.link(file.ino, ROOT, b"one too many", CALLER)
        with pytest.raises(NotFound):
            names.lookup(ROOT, b"one too many")
        assert file.nlink == 65_000
        names.unlink(ROOT, b"first", CALLER)
        names.link(file.ino, ROOT, b"one again", CALLER)

    run_driver(test)


def test_inode_numbers_stay_below_what_is_promised_to_be_new(run_driver) -> None:
    async def test(driver) -> None:
        first = driver.new_file()
        assert driver.core.inode_bound > first.ino + 1
        await driver.committer.commit()
        assert driver.committer.meta.inode_bound == driver.core.inode_bound > 1 << 20
        driver.core.next_inode = driver.core.inode_bound
        with pytest.raises(NoSpace):
            driver.new_file()  # a crash could give the number out again

    run_driver(test)
