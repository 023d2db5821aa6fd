"""A tree that no driver of ours wrote, sealed as it should be: what makes no sense is EIO, and the rest goes on."""

from __future__ import annotations

import errno
import stat

import msgspec
import pytest

from fsdecloud import codec
from fsdecloud.driver.namespace import Namespace
from fsdecloud.driver.recorder import Caller
from fsdecloud.driver.xattrs import Xattrs
from fsdecloud.errors import FsdecloudError, MalformedError
from fsdecloud.fs.inode import EntryValue, InodeValue
from fsdecloud.fs.keys import COOKIE_MIN, ROOT, entry_key, entry_prefix, inode_key
from fsdecloud.fuse.errnos import errno_of
from fsdecloud.types import Inode

ME = Caller(0, 0, 0, 0o022)
FILE = InodeValue(stat.S_IFREG | 0o644, 0, 0, 1, 0, 1, 1, 1, 1, 0, 0, 0, b"")


def namespace_of(driver) -> Namespace:
    driver.core.create_root(0, 0)
    return Namespace(driver.core, Xattrs(driver.core))


async def make(driver, names: Namespace, name: bytes, mode: int = stat.S_IFREG | 0o644) -> int:
    live = await driver.core.run(names.create, ROOT, name, mode, ME)
    return live.ino


async def errno_for(work) -> int:
    with pytest.raises(FsdecloudError) as caught:
        await work
    assert isinstance(caught.value, MalformedError)
    return errno_of(caught.value)


@pytest.mark.parametrize("name", [b".", b"..", b"a/b", b"a\0b", b"", b"n" * 256], ids=repr)
def test_fault_088_a_bad_name_never_reaches_the_kernel(run_driver, name: bytes) -> None:
    async def test(driver) -> None:
        names = namespace_of(driver)
        good = await make(driver, names, b"good")
        prefix = entry_prefix(ROOT)
        key = prefix + COOKIE_MIN.to_bytes(8, "big") + name
        driver.core.overlay.put(key, codec.encode(EntryValue(Inode(good), stat.S_IFREG)))
        assert await errno_for(driver.core.run(names.listing, ROOT, 0, 100)) == errno.EIO
        assert (await driver.core.run(names.lookup, ROOT, b"good")).ino == good, "the mount goes on"
        assert await driver.core.run(names.listing, ROOT, COOKIE_MIN, 100), "and so does the rest of the directory"
        assert not driver.core.failure

    run_driver(test)


@pytest.mark.parametrize(
    "change",
    [
        {"size": 1 << 63},
        {"mode": -1},
        {"mode": 0o7777},
        {"nlink": -1},
        {"target": b"a file has none"},
        {"mode": stat.S_IFLNK | 0o777, "target": b"a\0b"},
        {"mode": stat.S_IFLNK | 0o777, "target": b"t" * 4096},
        {"mode": stat.S_IFLNK | 0o777},
    ],
    ids=str,
)
def test_faults_090_and_091_a_bad_inode_is_an_error_of_its_own(run_driver, change: dict) -> None:
    async def test(driver) -> None:
        names = namespace_of(driver)
        await make(driver, names, b"good")
        bad = 1 << 30
        driver.core.overlay.put(inode_key(bad), codec.encode(msgspec.structs.replace(FILE, **change)))
        key = entry_key(driver.core.keys.border_secret, ROOT, b"bad")
        driver.core.overlay.put(key, codec.encode(EntryValue(Inode(bad), stat.S_IFREG)))
        assert await errno_for(driver.core.run(names.lookup, ROOT, b"bad")) == errno.EIO
        assert await driver.core.run(names.lookup, ROOT, b"good")
        assert not driver.core.failure

    run_driver(test)


def test_fault_089_a_directory_in_itself_is_walked_no_further_than_asked(run_driver) -> None:
    """The kernel asks for one name after the other, which ends with its path; and the record of each has a path that ends."""

    async def test(driver) -> None:
        names = namespace_of(driver)
        top = await driver.core.run(names.mkdir, ROOT, b"top", 0o755, ME)
        key = entry_key(driver.core.keys.border_secret, top.ino, b"again")
        driver.core.overlay.put(key, codec.encode(EntryValue(top.ino, stat.S_IFDIR)))
        live = top
        for _ in range(300):
            live = await driver.core.run(names.lookup, live.ino, b"again")
            assert live.ino == top.ino
        path = driver.core.path_of(live)
        assert path.count(b"/again") <= 256
        assert len(await driver.core.run(names.listing, top.ino, 0, 100)) == 1
        made = await driver.core.run(names.create, live.ino, b"file", stat.S_IFREG | 0o644, ME)
        assert (await driver.core.run(names.lookup, top.ino, b"file")).ino == made.ino
        with pytest.raises(FsdecloudError):
            await driver.core.run(names.rmdir, top.ino, b"again", ME)

    run_driver(test)
