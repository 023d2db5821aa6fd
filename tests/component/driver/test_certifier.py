"""Statements about files: what they say, and that each gets an anchor with nothing beside it."""

from __future__ import annotations

import msgspec
import pytest
import trio
from blake3 import blake3

from fsdecloud import codec
from fsdecloud.driver.certifier import Certifier
from fsdecloud.driver.history import History
from fsdecloud.driver.versions import Versions
from fsdecloud.errors import ReadOnly, UsageError
from fsdecloud.fs.records import Operation, Record
from fsdecloud.fs.statement import PathOpening, Statement, check_statement_row, path_commitment
from fsdecloud.ledger.certificate import Place, _check_record, assemble_certificate, branch_of
from fsdecloud.ledger.transactions import decode_tx, link
from fsdecloud.wire.controlapi import Certified, CertifyRequest, LogQuery, VersionQuery
from tests.component.driver.snapworld import ME, Mounted, runner

MIB = 1 << 20


@pytest.fixture
def run(run_driver):
    return runner(run_driver)


def certifier_of(mounted: Mounted) -> Certifier:
    driver = mounted.driver
    return Certifier(mounted.core, driver.committer, mounted.anchors, mounted.snapshots, mounted.views, mounted.states)


async def certify(mounted: Mounted, path: str, snapshot: str = "latest") -> Certified:
    """Certify while anchors are made as they would be by the anchor task."""
    found: list[Certified] = []

    async def ask() -> None:
        found.append(await certifier_of(mounted).certify(CertifyRequest(path.encode(), snapshot), ME))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        while not found:
            await trio.sleep(0.01)
            if mounted.driver.committer.latest.batches:
                mounted.driver.entries.mark_anchorable(list(mounted.driver.entries.unanchorable))
                if mounted.anchors._is_due():
                    await mounted.anchors._anchor(mounted.driver.committer.latest)
    return found[0]


def test_a_statement_says_what_the_file_was(run) -> None:
    async def test(mounted: Mounted) -> None:
        data = bytes(range(256)) * 6000
        await mounted.mkdir("/dir")
        await mounted.write("/dir/file", data)
        await mounted.write("/empty", b"")
        await mounted.settle()
        state = (await mounted.snapshots.rows())[-1]
        made = await certify(mounted, "//dir/./file")
        statement = codec.decode(made.statement, Statement)
        assert (statement.content, statement.size) == (blake3(data).digest(), len(data))
        assert statement.sequence == state.sequence
        anchor = decode_tx(mounted.network.anchors[state.sequence - 1])
        assert statement.link == link(anchor.volume, anchor.sequence, anchor.commitment)
        opening = codec.decode(made.path, PathOpening)
        assert opening.path == b"/dir/file"
        assert path_commitment(opening) == statement.path
        check_statement_row(made.record, statement)
        assert codec.decode((await certify(mounted, "/empty")).statement, Statement).content == blake3(b"").digest()

    run(test)


def test_it_is_alone_in_its_anchor_whatever_else_waits_for_one(run) -> None:
    async def test(mounted: Mounted) -> None:
        await mounted.write("/file", b"x" * 5000)
        await mounted.settle()
        for number in range(3):  # batches that wait
            await mounted.write(f"/{number}", b"y")
            await mounted.commit()
        made = await certify(mounted, "/file")
        _place, anchor, manifest = await mounted.states.get(made.sequence)
        assert [batch.count for batch in manifest.batches] == [1]
        _place, _anchor, before = await mounted.states.get(made.sequence - 1)
        assert len(before.batches) == 3, "those that waited came in one anchor before it"
        tx = mounted.network.anchors[made.sequence - 1]
        statement = codec.decode(made.statement, Statement)
        certificate = assemble_certificate(
            bytes(32), statement, None, made.record, (made.manifest, made.root),
            Place(tx, 1, branch_of([tx], 0)), None, [b""],
        )  # fmt: skip
        _check_record(certificate, anchor.commitment)
        assert not mounted.driver.committer.alone
        await mounted.settle()
        assert not mounted.core.recorder.statements
        assert not mounted.core.recorder.closing

    run(test)


def test_what_cannot_be_certified(run) -> None:
    async def test(mounted: Mounted) -> None:
        await mounted.mkdir("/dir")
        await mounted.write("/file", b"x")
        mounted.namespace.symlink(1, b"link", b"file", ME)
        await mounted.settle()
        for path, reason in (("/dir", "no regular file"), ("/link", "no regular file"), ("/none", "there is no /none"),
                             ("/file/x", "there is no"), ("/", "no regular file")):  # fmt: skip
            with pytest.raises(UsageError, match=reason):
                await certify_now(mounted, path)
        with pytest.raises(UsageError, match="no snapshot 2001"):
            await certify_now(mounted, "/file", "2001-01-01")
        mounted.core.read_only = "because"
        with pytest.raises(ReadOnly, match="because"):
            await certify_now(mounted, "/file")
        assert not mounted.snapshots.pinned
        assert not mounted.driver.committer.alone

    run(test)


async def certify_now(mounted: Mounted, path: str, snapshot: str = "latest") -> None:
    with trio.fail_after(10):
        await certifier_of(mounted).certify(CertifyRequest(path.encode(), snapshot), ME)


def test_it_is_of_the_state_that_was_asked_for(run) -> None:
    async def test(mounted: Mounted) -> None:
        await mounted.write("/file", b"old")
        await mounted.settle()
        old = (await mounted.snapshots.rows())[-1].sequence
        live = await mounted.find("/file")
        mounted.driver.files.write_nowait(live, 0, b"new!")
        await mounted.settle()
        made = await certify(mounted, "/file", str(old))
        statement = codec.decode(made.statement, Statement)
        assert (statement.content, statement.sequence) == (blake3(b"old").digest(), old)

    run(test)


def test_a_commit_that_fails_keeps_the_statement(run) -> None:
    async def test(mounted: Mounted) -> None:
        await mounted.write("/file", b"x")
        await mounted.settle()
        committer, recorder = mounted.driver.committer, mounted.core.recorder
        recorder.state(codec.encode(Record(1, Operation.CERTIFY, 0, b"", bytes(32), 0, b"decloud", 0, 0)))
        mounted.core.changed()
        update = committer._update_tree

        async def fail() -> bytes:
            assert recorder.closing
            raise UsageError("no")

        committer._update_tree = fail
        with pytest.raises(UsageError):
            await committer.commit()
        assert len(recorder.statements) == 1
        assert not recorder.closing
        committer._update_tree = update
        commit = await committer.commit()
        assert commit.batches[-1].count == 1

    run(test)


# ---- the log -------------------------------------------------------------------------------------------------------
class _Volume:
    """What `History` takes from a volume."""

    def __init__(self, mounted: Mounted) -> None:
        self.states = _Anchored(mounted)
        self.committer = mounted.driver.committer
        self.core = mounted.core
        self.entries = mounted.driver.entries


class _Anchored:
    def __init__(self, mounted: Mounted) -> None:
        self._mounted = mounted

    async def get(self, sequence: int):
        mounted = self._mounted
        return await mounted.states.get(sequence) if sequence <= len(mounted.network.anchors) else None


async def read_all(history: History, cursor: int = 0) -> list[bytes]:
    found = []
    while cursor >= 0:
        page = await history.page(LogQuery(cursor))
        found += [line.record for line in page.lines]
        cursor = page.next_batch
    return found


def test_every_record_is_in_the_log_once_at_any_moment(run) -> None:
    """Also between the freeze and the end of a commit, and while the driver does not know yet what the ledger has."""

    async def test(mounted: Mounted) -> None:
        history = History(_Volume(mounted))
        for name in ("/a", "/b"):
            await mounted.write(name, b"x")
            await mounted.commit()
        await mounted.write("/c", b"x")
        wanted = await read_all(history)
        assert len(wanted) == len(set(wanted)) >= 3
        committer = mounted.driver.committer
        update, seen = committer._update_tree, []

        async def look() -> bytes:
            seen.append(await read_all(history))
            return await update()

        committer._update_tree = look
        await mounted.commit()
        assert seen == [wanted]
        mounted.driver.entries.mark_anchorable(list(mounted.driver.entries.unanchorable))
        deliver, mounted.network.deliver = mounted.network.deliver, lambda _notice: None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mounted.anchors._anchor, committer.latest)
            while not mounted.network.anchors:  # noqa: ASYNC110 - the world's own code runs in between
                await trio.sleep(0.01)
            assert committer.meta.inflight
            assert await read_all(history) == wanted, "the ledger has the anchor, the driver was not told"
            nursery.cancel_scope.cancel()
        mounted.network.deliver = deliver

    run(test)


# ---- versions ------------------------------------------------------------------------------------------------------
def test_what_a_path_was_in_each_snapshot(run) -> None:
    async def test(mounted: Mounted) -> None:
        await mounted.mkdir("/dir")
        await mounted.settle()
        await mounted.write("/dir/file", b"one")
        await mounted.settle()
        live = await mounted.find("/dir/file")
        mounted.driver.files.write_nowait(live, 0, b"three")
        await mounted.settle()
        versions = Versions(mounted.core, mounted.namespace, mounted.snapshots)
        page = await versions.page(VersionQuery(b"/dir/file", 1))
        assert page.following == 0
        sizes = [version.size if version.inode else None for version in page.versions]
        assert sizes[0] is None
        assert sizes[-1] == 5, "the present"
        assert 3 in sizes
        assert page.versions[-1].sequence == 0
        assert [version.sequence for version in page.versions[:-1]] == sorted(
            row.sequence for row in await mounted.snapshots.rows()
        )
        later = await versions.page(VersionQuery(b"/dir/file", page.versions[-2].sequence))
        assert later.versions == page.versions[-2:]
        gone = await versions.page(VersionQuery(b"/dir/file/x", 1))
        assert {version.inode for version in gone.versions} == {0}
        assert msgspec.msgpack.encode(gone)

    run(test)
