"""Rows of anchors in the tree, retention, looking into snapshots, restoring; and a crash at every step of it."""

from __future__ import annotations

import os
import shutil
import stat

import msgspec
import pytest
import trio

from fsdecloud import codec
from fsdecloud.crypto.seal import entry_id
from fsdecloud.driver import restore, snapshots
from fsdecloud.driver.anchors import Anchors
from fsdecloud.driver.meta import VolumeMeta, decode_meta
from fsdecloud.driver.namespace import Namespace
from fsdecloud.driver.recorder import Caller
from fsdecloud.driver.restore import Restorer
from fsdecloud.driver.snapshotcontrol import PAGE, take_page
from fsdecloud.driver.snapshots import Snapshots
from fsdecloud.driver.views import Views, tag_of
from fsdecloud.driver.xattrs import Xattrs
from fsdecloud.errors import NoSpace, ReadOnly, StaleHandle, UsageError
from fsdecloud.fs.compare import ADDED, RENAMED, Change
from fsdecloud.fs.history import ALL_HERE, AnchorRow, decode_batches, parse_policy
from fsdecloud.fs.keys import INODE_BITS, ROOT, batches_key, snapshot_key
from fsdecloud.fs.records import Operation
from fsdecloud.ledger.transactions import decode_tx
from fsdecloud.limits import RPC_MAX
from fsdecloud.tree.lookup import lookup, scan
from fsdecloud.wire.agentapi import Anchored, Empty, FetchedEntry, Holders, LedgerVolume, MapCommit
from fsdecloud.wire.ledgerapi import VolumeAnchor
from tests.component.driver.conftest import Driver

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


@pytest.fixture
def run(run_driver):
    """Run an async test with a Mounted driver."""

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


# ---- rows ----------------------------------------------------------------------------------------------------------------
def test_the_rows_of_an_anchor_are_in_the_tree_of_the_next_commit_that_changes_something(run):
    async def test(m):
        await m.write("/a", b"one")
        await m.anchor()
        first = m.core.overlay.root
        assert m.in_tree(b"H") == []
        assert await sequences(m) == [1]
        await m.settle()
        assert m.core.overlay.root == first, "an idle volume stays idle"
        assert len(m.network.anchors) == 1

        m.core.recorder.record(Operation.READ, ME, 2, b"/a")
        m.core.changed()
        await m.commit()
        assert m.core.overlay.root == first, "reading changes no tree"
        assert await sequences(m) == [1]

        await m.write("/b", b"two")
        await m.anchor()
        assert m.in_tree(b"H") == [snapshot_key(1)]
        assert m.in_tree(b"B") == [ALL_HERE[0], batches_key(1, 0)]
        assert [row.snapshot.sequence for row in m.snapshots.pending()] == [2]
        rows = await m.snapshots.rows()
        assert [row.root for row in rows] == [first, m.core.overlay.root]
        assert [(row.files, row.size) for row in rows] == [(2, 3), (3, 6)]
        batches = decode_batches(lookup(m.driver.nodes.get, m.core.overlay.root, batches_key(1, 0)))
        assert sum(batch.count for batch in batches.batches) == rows[0].records > 0
        assert batches.manifest.id in m.network.manifests

    run(test)


def test_an_idle_volume_with_a_policy_that_forgets_does_not_anchor_for_ever(run):
    async def test(m):
        for name in "abcd":
            await m.write(f"/{name}", b"x")
            await m.anchor()
        await m.snapshots.set_policy(parse_policy("4w:forever"))
        await m.anchor()
        count = len(m.network.anchors)
        for _ in range(5):
            m.snapshots._policy_due = 0.0
            m.core.recorder.record(Operation.READ, ME, 2, b"/a")
            m.core.changed()
            await m.anchor()
        assert len(m.network.anchors) == count

    run(test)


def test_many_anchors_of_reads_do_not_pile_up(run, monkeypatch):
    monkeypatch.setattr(snapshots, "PENDING_MAX", 4)

    async def test(m):
        await m.write("/a", b"one")
        await m.anchor()
        for _ in range(7):
            m.core.recorder.record(Operation.READ, ME, 2, b"/a")
            m.core.changed()
            m.anchors.poke(urgent=True)
            await m.anchor()
            assert len(m.snapshots.pending()) <= 4 + 2
        assert await sequences(m) == list(range(1, len(m.network.anchors) + 1))

    run(test)


@pytest.mark.parametrize("saved", [True, False])
def test_a_crash_between_the_anchor_and_the_next_commit_loses_no_row_and_doubles_none(run, saved):
    async def test(m):
        await m.write("/a", b"one")
        await m.anchor()
        if saved:
            await m.driver.committer.save_meta()
        after = await m.crashed()
        if not saved:  # the meta still has it in flight; the agent says again where it is
            assert after.driver.committer.meta.inflight
            after.anchors.take_anchored(Anchored(1, b"", 1, ""))
            after.anchors.take_anchored(Anchored(1, b"", 1, ""))
        assert await sequences(after) == [1]
        for part in (after.driver.sealer, after.driver.journal):
            m.nursery.start_soon(part.run)
        await after.write("/b", b"two")
        await after.anchor()
        assert await sequences(after) == [1, 2]
        assert after.in_tree(b"H") == [snapshot_key(1)]

    async def with_nursery(m):
        async with trio.open_nursery() as m.nursery:
            await test(m)
            m.nursery.cancel_scope.cancel()

    run(with_nursery)


def test_a_crash_at_any_moment_of_a_commit_leaves_each_row_once(run):
    async def test(m):
        await m.write("/a", b"one")
        await m.anchor()
        copies = []
        commit = m.driver.journal.commit

        async def recorded(*arguments):
            copies.append(await m.crashed())
            await commit(*arguments)
            copies.append(await m.crashed())

        m.driver.journal.commit = recorded
        await m.write("/b", b"two")
        await m.driver.journal.flush()
        await m.commit()
        assert len(copies) >= 2
        for after in copies:
            if after.driver.committer.meta.inflight:
                after.anchors.take_anchored(Anchored(1, b"", 1, ""))
            in_tree = after.in_tree(b"H")
            pending = [row.snapshot.sequence for row in after.snapshots.pending()]
            assert await sequences(after) == [1]
            assert (in_tree == [snapshot_key(1)]) == (pending == [])

    run(test)


def test_a_commit_that_fails_keeps_the_rows_for_the_next(run):
    async def test(m):
        await m.write("/a", b"one")
        await m.anchor()
        await m.write("/b", b"two")
        stage = m.driver.entries.stage_sealed

        async def failing(_items):
            raise UsageError("a full disk")

        m.driver.entries.stage_sealed = failing
        with pytest.raises(UsageError):
            await m.commit()
        assert await sequences(m) == [1]
        assert len(m.snapshots.pending()) == 1
        m.driver.entries.stage_sealed = stage
        await m.commit()
        assert m.in_tree(b"H") == [snapshot_key(1)]
        assert m.snapshots.pending() == ()

    run(test)


def test_rows_that_another_machine_did_not_commit_come_from_the_ledger(run):
    async def test(m):
        for name in "abc":
            await m.write(f"/{name}", b"x")
            await m.anchor()
        rows = await m.snapshots.rows()
        # The latest anchored tree lacks the last rows: a machine that starts from it has to ask.
        meta = m.driver.committer.meta
        assert {row.snapshot.sequence for row in meta.history} == {3}
        m.driver.committer.meta = msgspec.structs.replace(meta, history=())
        assert await sequences(m) == [1, 2]
        changes = m.core.change_sequence
        await m.snapshots._fill_gaps()
        assert m.core.change_sequence == changes, "no reason for a commit by itself"
        assert m.states.asked == [3]
        assert m.snapshots.is_complete
        assert await m.snapshots.rows() == rows
        assert m.core.overlay.has_changes, "they wait for a commit that happens anyway"

    run(test)


def test_fault_031_a_volume_of_the_release_before_gets_all_its_snapshots(run):
    async def test(m):
        m.core.overlay.put(ALL_HERE[0], None)
        for name in "abc":
            await m.write(f"/{name}", b"x")
            await m.anchor()
            meta = m.driver.committer.meta
            m.driver.committer.meta = msgspec.structs.replace(meta, history=())
        assert await sequences(m) == []
        await m.snapshots._fill_gaps()
        assert await sequences(m) == [1, 2, 3]
        await m.write("/d", b"x")
        await m.commit()
        assert m.in_tree(b"H") == [snapshot_key(n) for n in (1, 2, 3)]
        m.states.asked.clear()
        await m.snapshots._fill_gaps()
        assert m.states.asked == []

    run(test)


def test_fault_031_the_meta_of_the_release_before_is_read():
    fields = codec.encode(VolumeMeta(root=b"r" * 64, sequence=7, takeover=True))
    old = list(msgspec.msgpack.decode(fields))
    del old[VolumeMeta.__struct_fields__.index("inflight_row") :]
    meta = decode_meta(msgspec.msgpack.encode(old))
    assert (meta.sequence, meta.takeover, meta.history) == (7, True, ())
    full = VolumeMeta(history=(), inflight_row=None)
    assert decode_meta(codec.encode(full)) == full
    assert AnchorRow is not None


# ---- keeping and forgetting ----------------------------------------------------------------------------------------------
def test_forgetting_takes_the_root_and_leaves_the_records(run):
    async def test(m):
        for name in "abc":
            await m.write(f"/{name}", b"x")
            await m.anchor()
        rows = {row.sequence: row for row in await m.snapshots.rows()}
        await m.snapshots.keep("1", name="first", kept=True)
        for wrong in (["1"], ["2", "1"], ["9"], ["2", "first"]):
            with pytest.raises(UsageError):
                await m.snapshots.forget(wrong)
        view = await m.views.get(tag_of(2) << INODE_BITS | ROOT)
        assert view.snapshot.sequence == 2
        await m.snapshots.forget(["2", "latest"])
        with pytest.raises(StaleHandle):
            await m.views.get(tag_of(2) << INODE_BITS | ROOT)
        assert await sequences(m) == [1]
        await m.anchor()
        roots = await m.snapshots.retained_roots()
        assert rows[1].root in roots
        assert rows[2].root not in roots
        assert m.core.overlay.root in roots
        assert {batches_key(n, 0) for n in (1, 2, 3)} <= set(m.in_tree(b"B"))
        with pytest.raises(UsageError, match="called first"):
            await m.snapshots.keep("latest", name="first", kept=True)
        await m.snapshots.keep("first", name=None, kept=False)
        assert (await m.snapshots.find("1")).name == ""
        m.core.read_only = "for a test"
        with pytest.raises(ReadOnly):
            await m.snapshots.forget(["1"])

    run(test)


def test_the_policy_thins_out_with_a_commit_and_spares_the_kept(run):
    async def test(m):
        for name in "abcde":
            await m.write(f"/{name}", b"x")
            await m.anchor()
        await m.snapshots.keep("3", name=None, kept=True)
        assert await m.snapshots.set_policy(parse_policy("4w:forever")) == 2  # 1 is the first, 3 is kept, 5 the newest
        assert await sequences(m) == [1, 2, 3, 4, 5]
        await m.write("/f", b"x")
        await m.anchor()
        assert await sequences(m) == [1, 3, 5, 6]

    run(test)


@pytest.mark.parametrize("ledger_time", [0, 1000])
def test_fault_030_a_clock_that_only_this_machine_believes_forgets_nothing(run, ledger_time):
    async def test(m):
        m.snapshots._ledger_time = lambda: ledger_time
        for name in "abc":
            await m.write(f"/{name}", b"x")
            await m.anchor()
        await m.snapshots.set_policy(parse_policy("all:1h"))
        m.snapshots._clocks = (m.snapshots._clocks[0] - 10**9, m.snapshots._clocks[1])
        await m.write("/d", b"x")
        await m.anchor()
        assert await sequences(m) == [1, 2, 3, 4]

    run(test)


# ---- looking and restoring -----------------------------------------------------------------------------------------------
async def make_tree(m) -> None:
    await m.mkdir("/d")
    await m.mkdir("/d/e")
    await m.write("/d/e/big", os.urandom(300_000))
    await m.write("/d/small", b"small")
    await m.write("/d/empty", b"")
    small, d = await m.find("/d/small"), await m.find("/d")
    m.namespace.link(small.ino, d.ino, b"linked", ME)
    m.namespace.link(small.ino, ROOT, b"outside", ME)
    m.namespace.symlink(d.ino, b"symlink", b"small", ME)
    m.xattrs.set(small.ino, b"user.a", b"v" * 5000, 0, ME)
    for number in range(20):
        await m.write(f"/d/e/{number}", b"%d" % number)


async def see(m, path: str) -> dict:
    live = await m.find(path)
    return await describe(m.core, m.namespace, m.driver.reader, "/", live.ino)


def test_a_view_shows_what_was_and_nothing_of_now(run):
    async def test(m):
        await make_tree(m)
        before = await see(m, "/")
        await m.anchor()
        live = await m.find("/d/small")
        m.driver.files.write_nowait(live, 0, b"other")
        m.namespace.rename(ROOT, b"d", ROOT, b"moved", 0, ME)
        await m.write("/new", b"new")
        view = m.views.open((await m.snapshots.rows())[0])
        assert await describe(view.core, view.namespace, view.reader) == before
        with pytest.raises(ReadOnly):
            view.namespace.create(ROOT, b"x", stat.S_IFREG, ME)
        with pytest.raises(ReadOnly):
            view.open(await view.core.run(view.namespace.lookup, ROOT, b"outside"), os.O_RDWR, ME, b"", b"")

    run(test)


def test_restored_is_what_was_and_no_byte_is_copied(run):
    async def test(m):
        await make_tree(m)
        before, files = await see(m, "/d"), m.core.files
        size = m.core.bytes
        await m.anchor()
        staged = m.driver.entries.staged_bytes
        row = (await m.snapshots.rows())[0]
        done = await m.restorer.restore(row, b"/d", b"/copy", force=False, caller=ME)
        assert m.driver.entries.staged_bytes == staged
        after = await see(m, "/copy")
        links = {path for path in before if path in ("/small", "/linked")}
        assert {path: value for path, value in after.items() if path not in links} == {
            path: value for path, value in before.items() if path not in links
        }
        for path in links:  # the third name lies outside of what was restored
            assert before[path][2] == 3
            assert after[path][2] == 2
            assert before[path][3:] == after[path][3:]
        assert (await m.find("/copy/small")).ino == (await m.find("/copy/linked")).ino
        assert done.files == len(after) - 1
        assert (m.core.files, m.core.bytes) == (files + done.files, size + done.size)
        with pytest.raises(UsageError, match="--force"):
            await m.restorer.restore(row, b"/d", b"/copy", force=False, caller=ME)
        for wrong in (b"/", b"/no/where", b"/.snapshots", b"/d/../x"):
            with pytest.raises(UsageError):
                await m.restorer.restore(row, b"/d", wrong, force=True, caller=ME)
        assert await see(m, "/copy") == after

    run(test)


@pytest.mark.parametrize("force", [False, True])
def test_a_crash_at_every_step_of_restoring_leaves_the_old_or_the_restored(run, monkeypatch, force):
    monkeypatch.setattr(restore, "BATCH", 5)
    monkeypatch.setattr(restore, "COMMIT_ROWS", 20)

    async def test(m):
        await make_tree(m)
        await m.anchor()
        row = (await m.snapshots.rows())[0]
        old: dict | None = None
        if force:
            await m.mkdir("/target")
            await m.write("/target/mine", b"mine")
            old = await see(m, "/target")
        await m.driver.journal.flush()
        copies: list[Mounted] = []
        breathe = restore._Copy._breathe

        async def breathe_and_crash(copy) -> None:
            await breathe(copy)
            await m.driver.journal.flush()
            copies.append(await m.crashed())

        monkeypatch.setattr(restore._Copy, "_breathe", breathe_and_crash)
        await m.restorer.restore(row, b"/d", b"/target", force=force, caller=ME)
        new = await see(m, "/target")
        copies.append(await m.crashed())
        seen = set()
        for after in copies:
            await after.reap()
            names = {name for _c, name, _l in await after.core.run(after.namespace.listing, ROOT, 0, 100)}
            assert names - {b"target"} == {b"d", b"outside"}
            found = await see(after, "/target") if b"target" in names else None
            assert found in (old, new)
            seen.add(found == new)
            everything = await describe(after.core, after.namespace, after.driver.reader)
            inodes = [key for key, _ in after.core.overlay.scan_prefix(b"I")]
            assert after.core.files == len(everything) - 1 - (2 if found == new else 1)  # files with several names
            assert len(inodes) == after.core.files
            after.driver.close()
            shutil.rmtree(after.driver.directory)
        assert seen == {True, False}
        assert len(copies) > 5

    run(test)


@pytest.mark.parametrize("place", ["before a child", "when its inode is read"])
def test_a_restore_that_fails_leaves_nothing_behind(run, monkeypatch, place):
    async def test(m):
        await make_tree(m)
        await m.anchor()
        row = (await m.snapshots.rows())[0]
        before, files, size = await see(m, "/"), m.core.files, m.core.bytes
        reaped = []
        m.restorer._reap = reaped.append
        copy_child, decode = restore._Copy._copy_child, restore.decode_inode
        left = 12

        def count() -> None:
            nonlocal left
            left -= 1
            if not left:
                raise UsageError("the peers are gone")

        async def failing(*arguments):
            count()
            return await copy_child(*arguments)

        def failing_decode(data: bytes):
            count()
            return decode(data)

        if place == "before a child":
            monkeypatch.setattr(restore._Copy, "_copy_child", failing)
        else:
            monkeypatch.setattr(restore, "decode_inode", failing_decode)
        with pytest.raises(UsageError, match="peers"):
            await m.restorer.restore(row, b"/d", b"/copy", force=False, caller=ME)
        assert len(reaped) == 1
        await m.reap()
        assert await see(m, "/") == before
        assert (m.core.files, m.core.bytes) == (files, size)
        assert m.snapshots.pinned == {}

    run(test)


def test_a_restore_whose_last_flush_fails_has_replaced_what_was_there_for_the_kernel_too(run, monkeypatch):
    async def test(m):
        await make_tree(m)
        await m.anchor()
        row = (await m.snapshots.rows())[0]
        old = (await m.find("/d")).ino
        reaped, told = [], []
        m.restorer._reap = reaped.append

        async def invalidate(*what):
            told.append(what)

        async def failing():
            raise NoSpace("the disk is full")

        m.restorer.invalidate = invalidate
        with monkeypatch.context() as patch:
            patch.setattr(m.driver.journal, "flush", failing)
            with pytest.raises(NoSpace):
                await m.restorer.restore(row, b"/d", b"/d", force=True, caller=ME)
        assert (await m.find("/d")).ino != old
        assert told == [(ROOT, b"d", old)]
        assert reaped == [old]

    run(test)


def test_a_page_of_differences_fits_into_an_answer() -> None:
    """Directories are nested deeper than PATH_MAX by chdir."""
    short = iter([Change(ADDED, b"/%d" % number) for number in range(PAGE + 1)])
    assert [(len(lines), is_last) for lines, is_last in (take_page(short), take_page(short))] == [
        (PAGE, False),
        (1, True),
    ]
    deep, shown = iter([Change(RENAMED, b"/n" * 10_000, b"/m" * 10_000)] * 300), 0
    is_last = False
    while not is_last:
        lines, is_last = take_page(deep)
        shown += len(lines)
        assert sum(len(one.path) + len(one.path2) for one in lines) < RPC_MAX / 2
    assert shown == 300


@pytest.mark.parametrize("what", ["keep", "forget"])
def test_what_a_user_says_of_a_snapshot_holds_whose_anchor_lands_while_the_rows_settle(run, monkeypatch, what):
    async def test(m):
        async def start_anchor():
            m.driver.entries.mark_anchorable(list(m.driver.entries.unanchorable))
            nursery.start_soon(m.anchors._anchor, m.driver.committer.latest)
            while not m.driver.committer.meta.inflight:
                await trio.lowlevel.checkpoint()

        async def land():
            m.network.deliver(Anchored(m.driver.committer.meta.sequence + 1, b"", 1, ""))

        m.network.is_mining = False
        async with trio.open_nursery() as nursery:
            await m.write("/a", b"x")
            await m.commit()
            await start_anchor()
            await m.write("/b", b"x")
            await m.commit()
            await land()
            await start_anchor()
            assert [row.snapshot.sequence for row in m.snapshots.pending()] == [1]
            wait_sealed = m.driver.committer._wait_sealed

            async def land_after_the_freeze(frozen):
                monkeypatch.undo()
                await land()
                await wait_sealed(frozen)

            monkeypatch.setattr(m.driver.committer, "_wait_sealed", land_after_the_freeze)
            if what == "keep":
                assert (await m.snapshots.keep("latest", name="mine", kept=True)).sequence == 2
            else:
                assert [row.sequence for row in await m.snapshots.forget(["2"])] == [2]
        await m.write("/c", b"x")
        await m.commit()
        await m.commit()
        found = {row.sequence: (row.kept, row.name) for row in await m.snapshots.rows()}
        assert found == ({1: (False, ""), 2: (True, "mine")} if what == "keep" else {1: (False, "")})

    run(test)


@pytest.mark.parametrize("what", ["keep", "policy"])
def test_the_policy_forgets_nothing_that_a_user_keeps_while_it_is_applied(run, monkeypatch, what):
    async def test(m):
        for name in "abcde":
            await m.write(f"/{name}", b"x")
            await m.anchor()
        await m.write("/f", b"x")
        await m.commit()
        await m.snapshots.set_policy(parse_policy("4w:forever"))
        policy = m.snapshots.policy

        async def policy_after_a_word():
            found = await policy()
            monkeypatch.undo()
            if what == "keep":
                await m.snapshots.keep("3", name=None, kept=True)
            else:
                await m.snapshots.set_policy(parse_policy("all:forever"))
            return found

        monkeypatch.setattr(m.snapshots, "policy", policy_after_a_word)
        for name in "ghi":
            await m.write(f"/{name}", b"x")
            await m.commit()
        assert await sequences(m) == ([1, 3, 5] if what == "keep" else [1, 2, 3, 4, 5])

    run(test)
