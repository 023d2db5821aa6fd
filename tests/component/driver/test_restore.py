"""Looking into snapshots, comparing and restoring them; and a crash at every step of it."""

from __future__ import annotations

import os
import shutil
import stat

import pytest

from fsdecloud.driver import restore
from fsdecloud.driver.snapshotcontrol import PAGE, take_page
from fsdecloud.errors import NoSpace, ReadOnly, UsageError
from fsdecloud.fs.compare import ADDED, RENAMED, Change
from fsdecloud.fs.keys import ROOT
from fsdecloud.limits import RPC_MAX
from tests.component.driver.snapworld import ME, Mounted, describe, runner


@pytest.fixture
def run(run_driver):
    return runner(run_driver)


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
