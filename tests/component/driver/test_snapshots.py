"""Rows of anchors in the tree, keeping, forgetting and retention; and a crash at every step of it."""

from __future__ import annotations

import msgspec
import pytest
import trio

from fsdecloud import codec
from fsdecloud.driver import snapshots
from fsdecloud.driver.meta import VolumeMeta, decode_meta
from fsdecloud.driver.views import tag_of
from fsdecloud.errors import ReadOnly, StaleHandle, UsageError
from fsdecloud.fs.history import ALL_HERE, AnchorRow, decode_batches, parse_policy
from fsdecloud.fs.keys import INODE_BITS, ROOT, batches_key, snapshot_key
from fsdecloud.fs.records import Operation
from fsdecloud.tree.lookup import lookup
from fsdecloud.wire.agentapi import Anchored
from tests.component.driver.snapworld import ME, runner, sequences


@pytest.fixture
def run(run_driver):
    return runner(run_driver)


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
