"""Each kind of damage to a volume, planted alone: fsck names it, -y repairs what can be repaired, and then nothing is wrong."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import trio

from fsdecloud import codec
from fsdecloud.driver.fsckstate import Places, open_stores
from fsdecloud.driver.journal import META
from fsdecloud.driver.meta import decode_meta
from fsdecloud.driver.namespace import Namespace
from fsdecloud.driver.xattrs import Xattrs
from fsdecloud.fs.findings import DAMAGE, NOTE
from fsdecloud.fs.inode import EntryValue, InodeValue, decode_inode, decode_superblock
from fsdecloud.fs.keys import (
    ROOT,
    SUPERBLOCK,
    chunk_key,
    entry_key,
    entry_prefix,
    inode_key,
    orphan_key,
    parent_key,
    snapshot_key,
    xattr_key,
)
from fsdecloud.limits import CHUNK_SIZE
from fsdecloud.store.state import StateStore
from fsdecloud.types import EntryId, Inode
from tests.component.driver.conftest import Driver
from tests.component.driver.fsckworld import CALLER, KEYS, copy_of, look, texts

SECRET = KEYS.border_secret
CONTENT = random.Random(1).randbytes(CHUNK_SIZE + 70_000)
Pair = tuple[bytes, bytes | None]


class Volume:
    """The numbers of what the planted volume has."""

    top: int
    deep: int
    file: int
    small: int
    twice: int
    link: int
    removed: int


async def _fill(driver: Driver, volume: Volume) -> None:
    core, names = driver.core, Namespace(driver.core, Xattrs(driver.core))
    core.create_root(0, 0)
    volume.top = names.mkdir(ROOT, b"top", 0o755, CALLER).ino
    volume.deep = names.mkdir(volume.top, b"deep", 0o755, CALLER).ino
    for attribute, size in (("file", len(CONTENT)), ("small", 100), ("twice", 5000), ("removed", 300_000)):
        live = names.create(volume.deep, attribute.encode(), 0o100644, CALLER)
        setattr(volume, attribute, live.ino)
        driver.files.write_nowait(live, 0, CONTENT[:size])
    names.link(volume.twice, volume.top, b"again", CALLER)
    volume.link = names.symlink(volume.top, b"link", b"deep/file", CALLER).ino
    for ino in (volume.file, volume.deep, ROOT):
        Xattrs(core).set(ino, b"user.a", b"1", 0, CALLER)
    names.unlink(volume.deep, b"removed", CALLER)
    driver.files.seal_all()
    await driver.committer.commit()
    await core.run(names.create, volume.top, b"journaled", 0o100600, CALLER)
    await driver.journal.flush()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Volume]:
    """A volume whose driver was killed."""
    directory = tmp_path_factory.mktemp("fsck") / "volume"
    volume = Volume()

    async def main() -> None:
        driver = Driver(directory)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(driver.sealer.run)
            nursery.start_soon(driver.journal.run)
            with trio.fail_after(30):
                await _fill(driver, volume)
            nursery.cancel_scope.cancel()
        driver.close()

    trio.run(main)
    return directory, volume


def edit(directory: Path, plan: Callable[[Driver], list[Pair]]) -> None:
    """Change rows of a volume's tree behind its back; `plan` gets a driver to read it with."""

    async def main() -> None:
        driver = Driver(directory)
        await driver.load()
        for key, value in await driver.core.run(plan, driver):
            driver.core.overlay.put(key, value)
        driver.core.changed()
        await driver.journal.flush()  # else the commit's own transaction has the rows as well
        await driver.committer.commit()
        driver.close()

    trio.run(main)


def check(directory: Path, **options):
    return trio.run(lambda: look(directory, **options))


def content_of(directory: Path, ino: int, size: int) -> bytes:
    async def main() -> bytes:
        driver = Driver(directory)
        await driver.load()
        data = await driver.read(ino, 0, size)
        driver.close()
        return data

    return trio.run(main)


def attributes_of(directory: Path, ino: int) -> bytes:
    """The attribute that some inodes have."""

    async def main() -> bytes:
        driver = Driver(directory)
        await driver.load()
        data = await driver.core.run(Xattrs(driver.core).get, ino, b"user.a")
        driver.close()
        return data

    return trio.run(main)


def map_of(directory: Path) -> dict[bytes, bytes]:
    """All rows but the superblock."""

    async def main() -> dict[bytes, bytes]:
        driver = Driver(directory)
        await driver.load()
        found = await driver.core.run(lambda: dict(driver.core.overlay.scan(b"\0", b"\xff")))
        driver.close()
        return {key: value for key, value in found.items() if key != SUPERBLOCK}

    return trio.run(main)


def changed(driver: Driver, ino: int, **fields: object) -> Pair:
    """An inode's row with other values."""
    raw = driver.core.overlay.get(inode_key(ino))
    return inode_key(ino), codec.encode(msgspec.structs.replace(decode_inode(raw), **fields))


def counters(driver: Driver, **fields: object) -> Pair:
    raw = driver.core.overlay.get(SUPERBLOCK)
    return SUPERBLOCK, codec.encode(msgspec.structs.replace(decode_superblock(raw), **fields))


def name(parent: int, text: bytes, ino: int, kind: int = 0o100000) -> Pair:
    return entry_key(SECRET, parent, text), codec.encode(EntryValue(Inode(ino), kind))


def displaced(driver: Driver, v: Volume) -> list[Pair]:
    key, value = name(v.deep, b"small", v.small)
    return [(key, None), (key[:9] + (12345).to_bytes(8, "big") + b"small", value)]


def rows(driver: Driver, prefix: bytes) -> list[Pair]:
    return [(key, None) for key, _value in driver.core.overlay.scan_prefix(prefix)]


FILE, DIRECTORY = 0o100000, 0o040000
GONE = 1 << 30

REPAIRED: dict[str, tuple[str, Callable[[Driver, Volume], list[Pair]]]] = {
    "links of a file": ("links", lambda d, v: [changed(d, v.twice, nlink=7)]),
    "no links of a file with names": ("links", lambda d, v: [changed(d, v.twice, nlink=0)]),
    "links of a directory": ("links", lambda d, v: [changed(d, v.top, nlink=2)]),
    "links of the root": ("links", lambda d, v: [changed(d, ROOT, nlink=9)]),
    "bytes held": ("allocated", lambda d, v: [changed(d, v.file, allocated=1)]),
    "number of attributes": ("xattrs", lambda d, v: [changed(d, v.file, xattrs=0)]),
    "size too small": ("size", lambda d, v: [changed(d, v.file, size=10)]),
    "size of a link": ("size", lambda d, v: [changed(d, v.link, size=10)]),
    "a name to nowhere": ("name", lambda d, v: [name(v.top, b"nowhere", GONE)]),
    "a name of the root": ("name", lambda d, v: [name(v.top, b"up", 1, DIRECTORY)]),
    "a name in a file": ("name", lambda d, v: [name(v.small, b"in", v.twice)]),
    "a name with a slash": ("name", lambda d, v: [name(v.top, b"a/b", v.small)]),
    "dot dot": ("name", lambda d, v: [name(v.top, b"..", ROOT, DIRECTORY)]),
    "a name too long": ("name", lambda d, v: [name(v.top, b"x" * 256, v.small)]),
    "a name without a value": ("name", lambda d, v: [(entry_key(SECRET, v.top, b"void"), b"\xc1")]),
    "a name under a wrong hash": ("name", displaced),
    "the type in a name": ("type", lambda d, v: [name(v.deep, b"small", v.small, 0o120000)]),
    "a file without a name": ("lost", lambda d, v: [(name(v.deep, b"file", 0)[0], None)]),
    "a directory without a name": ("lost", lambda d, v: [(name(v.top, b"deep", 0)[0], None)]),
    "no name and no links": ("lost", lambda d, v: [(name(v.deep, b"small", 0)[0], None), changed(d, v.small, nlink=0)]),
    "removed and has links": ("lost", lambda d, v: [changed(d, v.removed, nlink=1)]),
    "removed and has a name": ("orphan", lambda d, v: [(orphan_key(v.small), b"")]),
    "a mark of nobody": ("stray", lambda d, v: [(orphan_key(GONE), b"")]),
    "an attribute of nobody": ("stray", lambda d, v: [(xattr_key(GONE, b"user.x"), b"1")]),
    "a parent of nobody": ("stray", lambda d, v: [(parent_key(GONE), bytes(7) + b"\1")]),
    "another parent": ("parent", lambda d, v: [(parent_key(v.deep), bytes(7) + b"\1")]),
    "a parent of a file": ("parent", lambda d, v: [(parent_key(v.small), bytes(7) + b"\1")]),
    "a parent of five bytes": ("parent", lambda d, v: [(parent_key(v.deep), bytes(5))]),
    "a circle": ("circle", lambda d, v: [(name(ROOT, b"top", 0)[0], None), name(v.deep, b"back", v.top, DIRECTORY)]),
    "itself": ("circle", lambda d, v: [(name(v.top, b"deep", 0)[0], None), name(v.deep, b"me", v.deep, DIRECTORY)]),
    "two names of a directory": ("name", lambda d, v: [name(ROOT, b"other", v.deep, DIRECTORY)]),
    "two names in one directory": ("name", lambda d, v: [name(v.top, b"other", v.deep, DIRECTORY)]),
    "a lost inode with contents": ("inode", lambda d, v: [(inode_key(v.file), None)]),
    "a lost directory": ("inode", lambda d, v: [(inode_key(v.deep), None)]),
    "a lost root": ("inode", lambda d, v: [(inode_key(ROOT), None)]),
    "number of files": ("superblock", lambda d, v: [counters(d, files=0)]),
    "number of bytes": ("superblock", lambda d, v: [counters(d, bytes=5)]),
    "next inode in use": ("superblock", lambda d, v: [counters(d, next_inode=3)]),
    "no superblock": ("superblock", lambda d, v: [(SUPERBLOCK, None)]),
    "a superblock of noise": ("superblock", lambda d, v: [(SUPERBLOCK, b"noise")]),
    "a policy of noise": ("policy", lambda d, v: [(b"R", b"noise")]),
}  # fmt: skip


@pytest.mark.parametrize("case", REPAIRED)
def test_what_can_be_repaired_is(made: tuple[Path, Volume], case: str) -> None:
    directory, volume = copy_of(made[0]), made[1]
    kind, plan = REPAIRED[case]
    edit(directory, lambda driver: plan(driver, volume))
    before = check(directory)
    assert kind in {one.kind for one in before.findings}, texts(before.findings)
    assert before.exit_code == 4
    repaired = check(directory, repair=True)
    assert texts(repaired.left) == []
    assert repaired.exit_code == 1
    assert set(before.findings) <= repaired.repaired | {one for one in before.findings if one.severity == NOTE}
    after = check(directory)
    assert texts(after.findings) == []
    assert after.exit_code == 0
    assert content_of(directory, volume.file, len(CONTENT)) == CONTENT
    assert {attributes_of(directory, ino) for ino in (volume.file, volume.deep, ROOT)} == {b"1"}
    shutil.rmtree(directory)


LEFT: dict[str, tuple[str, Callable[[Driver, Volume], list[Pair]]]] = {
    "an inode of noise": ("inode", lambda d, v: [(inode_key(v.small), b"noise")]),
    "a directory of noise": ("inode", lambda d, v: [(inode_key(v.deep), b"noise")]),
    "a directory of directories of noise": ("inode", lambda d, v: [(inode_key(v.top), b"noise")]),
    "a root of noise": ("inode", lambda d, v: [(inode_key(ROOT), b"noise")]),
    "a removed inode of noise": ("inode", lambda d, v: [(inode_key(v.removed), b"noise")]),
    "a chunk of noise": ("chunk", lambda d, v: [(chunk_key(v.file, 1), b"noise")]),
    "contents of a directory": ("chunk", lambda d, v: [(chunk_key(v.deep, 0), d.core.overlay.get(chunk_key(v.small, 0)))]),
    "a part of an attribute": ("attribute", lambda d, v: [(xattr_key(v.small, b"user.x\0\0\2"), b"1")]),
    "a key of no kind": ("key", lambda d, v: [(b"Zebra", b"1")]),
    "a key too short": ("key", lambda d, v: [(b"I\0\0", b"1")]),
    "a key of a name too short": ("key", lambda d, v: [(b"D\0\0", b"1")]),
    "a key of a batch too short": ("key", lambda d, v: [(b"B\0\0", b"1")]),
    "a key of a snapshot too short": ("key", lambda d, v: [(b"H\0", b"1")]),
    "a policy's key too long": ("key", lambda d, v: [(b"R\0", b"1")]),
    "a superblock's key too long": ("key", lambda d, v: [(b"Sx", b"1")]),
    "a snapshot of noise": ("snapshot", lambda d, v: [(snapshot_key(3), b"noise")]),
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT)
def test_what_cannot_be_repaired_is_named_and_left(made: tuple[Path, Volume], case: str) -> None:
    directory, volume = copy_of(made[0]), made[1]
    kind, plan = LEFT[case]
    edit(directory, lambda driver: plan(driver, volume))
    before = map_of(directory)
    found = check(directory, repair=True)
    assert kind in {one.kind for one in found.left}, texts(found.findings)
    assert found.exit_code == 4
    assert map_of(directory) == before
    assert [one.kind for one in check(directory).findings] == [kind]
    shutil.rmtree(directory)


def test_a_number_that_was_not_given_out(made: tuple[Path, Volume]) -> None:
    directory = copy_of(made[0])
    with StateStore(directory / "state.lmdb", KEYS.at_rest_key, KEYS.volume_id) as store:
        meta = decode_meta(store.meta(META))
        store.commit([], meta={META: codec.encode(msgspec.structs.replace(meta, inode_bound=3))})
    assert [one.kind for one in check(directory).findings] == ["bound"]
    assert check(directory, repair=True).exit_code == 1
    assert check(directory).exit_code == 0


def test_a_check_alone_changes_nothing(made: tuple[Path, Volume]) -> None:
    directory, volume = copy_of(made[0]), made[1]
    edit(directory, lambda driver: ruin(driver, volume))
    found = check(directory)
    with StateStore(directory / "state.lmdb", KEYS.at_rest_key, KEYS.volume_id) as store:
        last = store.last_sequence
    assert texts(check(directory).findings) == texts(found.findings)
    with StateStore(directory / "state.lmdb", KEYS.at_rest_key, KEYS.volume_id) as store:
        assert store.last_sequence == last


def test_findings_say_where(made: tuple[Path, Volume]) -> None:
    directory, volume = copy_of(made[0]), made[1]
    edit(directory, lambda driver: [changed(driver, volume.file, allocated=1)])
    (one,) = check(directory).findings
    assert (one.path, one.inode) == (b"/top/deep/file", volume.file)
    assert one.text == f"holds {len(CONTENT)} bytes, and says 1"


def test_what_is_left_is_left_wherever_a_repair_puts_it(made: tuple[Path, Volume]) -> None:
    directory, volume = copy_of(made[0]), made[1]
    edit(directory, lambda _driver: [(name(volume.top, b"deep", 0)[0], None), (chunk_key(volume.file, 1), b"noise")])
    found = check(directory, repair=True)
    assert [one.kind for one in found.left] == ["chunk"]
    assert sum(one.kind == "chunk" for one in found.findings) == 1
    assert {one.kind for one in found.repaired} == {"lost", "links"}


def test_what_can_be_repaired_is_beside_a_root_that_cannot_be_read(made: tuple[Path, Volume]) -> None:
    directory, volume = copy_of(made[0]), made[1]
    edit(
        directory,
        lambda driver: [
            (inode_key(ROOT), b"noise"),
            (name(volume.deep, b"small", 0)[0], None),  # would be found in /lost+found
            changed(driver, volume.file, allocated=1),
        ],
    )
    found = check(directory, repair=True)
    assert {one.kind for one in found.left} == {"inode", "lost"}
    assert "allocated" in {one.kind for one in found.repaired}
    assert {one.kind for one in check(directory).findings} == {"inode", "lost"}


def test_notes_that_are_too_many_are_nothing_wrong(made: tuple[Path, Volume], monkeypatch: pytest.MonkeyPatch) -> None:
    directory, volume = copy_of(made[0]), made[1]
    edit(directory, lambda _driver: [(parent_key(ino), None) for ino in (volume.top, volume.deep)])
    monkeypatch.setattr("fsdecloud.driver.fsck.FINDINGS_MAX", 1)
    found = check(directory)
    assert [one.severity for one in found.findings] == [NOTE]
    assert (found.dropped, found.exit_code) == (0, 0)
    edit(directory, lambda driver: [changed(driver, volume.file, allocated=1)])
    assert check(directory).exit_code == 4


def test_what_has_no_name_is_found_again(made: tuple[Path, Volume]) -> None:
    directory, volume = copy_of(made[0]), made[1]
    taken = InodeValue(0o100644, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, b"")
    edit(
        directory,
        lambda driver: [
            (name(volume.top, b"deep", 0)[0], None),
            name(ROOT, b"lost+found", volume.top + 500),  # a file that has the directory's name
            (inode_key(volume.top + 500), codec.encode(taken)),
        ],
    )
    assert check(directory, repair=True).exit_code == 1

    async def main() -> None:
        driver = Driver(directory)
        await driver.load()
        names = Namespace(driver.core, Xattrs(driver.core))
        found = await driver.core.run(names.lookup, ROOT, b"lost+found.1")
        assert found.mode == DIRECTORY | 0o700
        deep = await driver.core.run(names.lookup, found.ino, b"#%d" % volume.deep)
        assert (await driver.core.run(names.lookup, deep.ino, b"file")).ino == volume.file
        assert (await driver.core.run(names.lookup_parent, deep.ino)).ino == found.ino
        driver.close()

    trio.run(main)


def test_repairs_are_recorded(made: tuple[Path, Volume]) -> None:
    from fsdecloud.driver.journal import Records, decode_row
    from fsdecloud.fs.records import Operation, Record

    directory, volume = copy_of(made[0]), made[1]
    edit(directory, lambda driver: [changed(driver, volume.file, allocated=1)])
    check(directory, repair=True)
    with StateStore(directory / "state.lmdb", KEYS.at_rest_key, KEYS.volume_id) as store:
        groups = [decode_row(data) for _sequence, group in store.replay() for data in group]
    last = [codec.decode(raw, Record) for row in groups if isinstance(row, Records) for raw in row.records][-1]
    assert (last.operation, last.inode, last.path) == (Operation.REPAIR, volume.file, b"/top/deep/file")
    assert last.program == b"fsck.decloud"


# ---- stores ------------------------------------------------------------------------------------------------------------
def flip(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes((byte[0] ^ 1,)))


def staged_of(directory: Path) -> list[tuple[EntryId, Path, int, int]]:
    """Return id, file, offset and length of all staged entries."""
    with StateStore(directory / "state.lmdb", KEYS.at_rest_key, KEYS.volume_id) as store:
        return [
            (entry, directory / "staged" / f"staged-{place.segment:08d}.seg", place.offset, place.length)
            for entry, place in store.staged()
        ]


def largest(directory: Path) -> tuple[EntryId, Path, int, int]:
    """The first chunk of the file."""
    return max(staged_of(directory), key=lambda item: item[3])


def node_of(directory: Path) -> tuple[EntryId, Path, int, int]:
    with StateStore(directory / "state.lmdb", KEYS.at_rest_key, KEYS.volume_id) as store:
        root = decode_meta(store.meta(META)).root
    return next(item for item in staged_of(directory) if item[0] == root[:32])


def put_in_cache(directory: Path, entry: EntryId, data: bytes) -> None:
    with open_stores(Places(directory, directory / "cache"), KEYS, [], repair=False) as stores:
        assert stores is not None
        stores[2].put_small([(entry, data)])


def test_fault_018_a_damaged_staged_entry_names_the_file(made: tuple[Path, Volume]) -> None:
    directory, volume = copy_of(made[0]), made[1]
    _entry, path, offset, length = largest(directory)
    flip(path, offset + length // 2)
    found = check(directory, repair=True)
    assert {one.kind for one in found.findings} == {"staged", "reference"}
    (one,) = (one for one in found.findings if one.kind == "reference")
    assert (one.inode, one.path, one.severity) == (volume.file, b"/top/deep/file", DAMAGE)
    assert found.exit_code == 4
    os.truncate(path, offset + 1)
    assert "staged" in {one.kind for one in check(directory).findings}


def test_a_damaged_staged_entry_with_another_copy_is_staged_again(made: tuple[Path, Volume]) -> None:
    directory = copy_of(made[0])
    entry, path, offset, length = node_of(directory)
    put_in_cache(directory, entry, path.read_bytes()[offset : offset + length])
    flip(path, offset + length // 2)
    assert [one.kind for one in check(directory).findings] == ["staged"]
    assert check(directory, repair=True).exit_code == 1
    shutil.rmtree(directory / "cache")
    assert texts(check(directory).findings) == []


def test_fault_019_nothing_is_changed_while_the_tree_cannot_be_read(made: tuple[Path, Volume]) -> None:
    directory, volume = copy_of(made[0]), made[1]
    edit(directory, lambda driver: [changed(driver, volume.file, allocated=1)])
    _entry, path, offset, length = node_of(directory)
    flip(path, offset + length // 2)
    with StateStore(directory / "state.lmdb", KEYS.at_rest_key, KEYS.volume_id) as store:
        last = store.last_sequence
    found = check(directory, repair=True)
    assert {"tree", "staged"} & {one.kind for one in found.left}
    assert found.exit_code == 4
    with StateStore(directory / "state.lmdb", KEYS.at_rest_key, KEYS.volume_id) as store:
        assert store.last_sequence == last


def test_fault_017_a_damaged_cached_entry_is_dropped(made: tuple[Path, Volume]) -> None:
    directory = copy_of(made[0])
    entry, path, offset, length = node_of(directory)
    sealed = path.read_bytes()[offset : offset + length]
    put_in_cache(directory, entry, sealed[:-1] + bytes((sealed[-1] ^ 1,)))
    with StateStore(directory / "state.lmdb", KEYS.at_rest_key, KEYS.volume_id) as store:
        store.commit([], unstaged=[entry])  # only the cache has it, and it is damaged
    found = check(directory, repair=True)
    assert "cache" in {one.kind for one in found.repaired}
    with open_stores(Places(directory, directory / "cache"), KEYS, [], repair=False) as stores:
        assert stores is not None
        assert not stores[2].has(entry)


def test_a_damaged_cache_index_is_left_alone_until_it_may_be_dropped(made: tuple[Path, Volume]) -> None:
    directory = copy_of(made[0])
    put_in_cache(directory, EntryId(bytes(32)), b"x" * 1000)
    data = directory / "cache" / "index" / "data.mdb"
    data.write_bytes(b"\0" * 8192)
    assert check(directory, quick=True).exit_code == 0  # a mount empties it: no reason not to boot
    found = check(directory)
    assert [(one.kind, one.severity) for one in found.findings] == [("cache", NOTE)]
    assert found.exit_code == 0
    assert data.read_bytes() == b"\0" * 8192
    assert not (directory / "cache.fsck").exists()
    assert check(directory, repair=True).exit_code == 1
    assert check(directory).exit_code == 0


@pytest.mark.parametrize("what", ["zeroed", "truncated", "of another volume"])
def test_fault_020_a_state_that_does_not_open_is_said(made: tuple[Path, Volume], what: str) -> None:
    directory = copy_of(made[0])
    data = directory / "state.lmdb" / "data.mdb"
    if what == "zeroed":
        data.write_bytes(bytes(data.stat().st_size))
    elif what == "truncated":
        os.truncate(data, 5000)
    else:
        shutil.rmtree(directory / "state.lmdb")
        StateStore(directory / "state.lmdb", KEYS.at_rest_key, bytes(32)).close()
    found = check(directory, repair=True)
    assert [one.kind for one in found.findings] == ["state"]
    assert found.exit_code == 4


def test_a_journal_row_that_makes_no_sense_is_said(made: tuple[Path, Volume]) -> None:
    directory = copy_of(made[0])
    with StateStore(directory / "state.lmdb", KEYS.at_rest_key, KEYS.volume_id) as store:
        store.commit([b"noise"])
    found = check(directory)
    assert [one.kind for one in found.findings] == ["journal"]
    assert check(directory, quick=True).exit_code == found.exit_code == 4


def test_a_quick_check_looks_no_further(made: tuple[Path, Volume]) -> None:
    directory, volume = copy_of(made[0]), made[1]
    edit(directory, lambda driver: [changed(driver, volume.file, allocated=1)])
    assert check(directory, quick=True).exit_code == 0


# ---- fault 33 ----------------------------------------------------------------------------------------------------------
class Stopped(Exception):
    pass


def ruin(driver: Driver, volume: Volume) -> list[Pair]:
    """Faults of every kind at once, whose repairs uncover more."""
    pairs = dict(rows(driver, entry_prefix(volume.deep)))
    pairs |= {inode_key(ino): None for ino in (ROOT, volume.top, volume.file)}
    pairs |= dict([counters(driver, files=3), changed(driver, volume.small, nlink=3), name(ROOT, b"x", GONE)])
    return list(pairs.items())


def test_fault_033_stopped_between_any_two_commits_it_completes_when_run_again(
    made: tuple[Path, Volume], monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = made[1]
    ruined = copy_of(made[0])
    edit(ruined, lambda driver: ruin(driver, volume))
    commit = StateStore.commit
    monkeypatch.setattr("fsdecloud.driver.fsckrepair.GROUP", 2)
    stops = 0
    while True:
        directory, left = copy_of(ruined), stops

        def stop(*arguments, **options):
            nonlocal left
            if not left:
                raise Stopped
            left -= 1
            return commit(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(StateStore, "commit", stop)
            try:
                done = check(directory, repair=True)
            except* Stopped:
                done = None
        if done is not None:
            break
        stops += 1
        assert check(directory, repair=True).exit_code == 1
        assert texts(check(directory).findings) == []
        shutil.rmtree(directory)
    assert content_of(directory, volume.file, len(CONTENT)) == CONTENT
    assert done.exit_code == 1
    assert stops > 5


def test_fault_033_killed_at_a_random_point_it_completes_when_run_again(made: tuple[Path, Volume]) -> None:
    volume, chooser = made[1], random.Random(33)
    directory = copy_of(made[0])
    empty = InodeValue(0o100644, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, b"")
    edit(directory, lambda driver: [(inode_key(ino), codec.encode(empty)) for ino in range(1000, 3000)])
    program = (
        "import sys, trio; from pathlib import Path; from fsdecloud.driver import fsckrepair;"
        "from tests.component.driver.fsckworld import look; fsckrepair.GROUP = 20;"
        "from fsdecloud.store.state import StateStore; commit = StateStore.commit;"
        "StateStore.commit = lambda *args, **more: (commit(*args, **more), print('committed', flush=True))[0];"
        "trio.run(lambda: look(Path(sys.argv[1]), repair=True))"
    )
    kills = 0
    for _attempt in range(3):
        with subprocess.Popen([sys.executable, "-c", program, directory], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(chooser.randrange(1, 20)):  # of about a hundred
                process.stdout.readline()
            time.sleep(chooser.uniform(0.0, 0.005))  # any instant between two commits, or in one
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
    assert kills
    assert check(directory, repair=True).exit_code in (0, 1)
    assert texts(check(directory).findings) == []
    assert content_of(directory, volume.file, len(CONTENT)) == CONTENT
