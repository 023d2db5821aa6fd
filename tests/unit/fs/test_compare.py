"""Differences between two states, in paths."""

from __future__ import annotations

import posixpath
import stat

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from fsdecloud import codec
from fsdecloud.errors import MalformedError
from fsdecloud.fs.compare import ADDED, CHANGED, REMOVED, RENAMED, Change, compare, find_paths
from fsdecloud.fs.inode import EntryValue, InodeValue
from fsdecloud.fs.keys import chunk_key, entry_key, inode_key, xattr_key
from fsdecloud.tree.node import decode_node
from fsdecloud.tree.update import update
from fsdecloud.types import Inode

SECRET = bytes(range(32))


class Volume:
    """A file system in a dictionary, and its states as trees."""

    def __init__(self) -> None:
        self.store: dict[bytes, bytes] = {}
        self.names: dict[str, int] = {"/": 1}
        self.kinds = {1: stat.S_IFDIR}
        self.times = {1: 1}
        self.content: dict[int, bytes] = {}
        self.modes: dict[int, int] = {}
        self.attributes: dict[int, bytes] = {}
        self.next = 2

    def get(self, ref):
        return decode_node(self.store[ref])

    def put(self, data):
        ref = blake3(data).digest()
        self.store[ref] = data
        return ref

    def root(self) -> bytes:
        rows: dict[bytes, bytes] = {}
        links: dict[int, int] = {}
        for path, ino in self.names.items():
            links[ino] = links.get(ino, 0) + 1
            if path != "/":
                parent, name = posixpath.split(path)
                entry = EntryValue(Inode(ino), self.kinds[ino])
                rows[entry_key(SECRET, self.names[parent], name.encode())] = codec.encode(entry)
        for ino, count in links.items():
            mode = self.kinds[ino] | self.modes.get(ino, 0o644)
            size, time = len(self.content.get(ino, b"")), self.times[ino]
            value = InodeValue(mode, 0, 0, count, size, 7, time, time, 1, 0, 0, int(ino in self.attributes), b"")
            rows[inode_key(ino)] = codec.encode(value)
            if self.content.get(ino):
                rows[chunk_key(ino, 0)] = self.content[ino]
            if ino in self.attributes:
                rows[xattr_key(ino, b"user.a\0\0\0")] = self.attributes[ino]
        return update(self.get, self.put, SECRET, b"", sorted(rows.items()))

    def make(self, path: str, kind: int = stat.S_IFREG, content: bytes = b"") -> int:
        ino, self.next = self.next, self.next + 1
        self.names[path], self.kinds[ino], self.times[ino], self.content[ino] = ino, kind, 1, content
        self.times[self.names[posixpath.dirname(path)]] += 1
        return ino

    def mkdir(self, path: str) -> int:
        return self.make(path, stat.S_IFDIR)

    def write(self, path: str, content: bytes) -> None:
        ino = self.names[path]
        self.content[ino] = content
        self.times[ino] += 1

    def remove(self, path: str) -> None:
        for name in [name for name in self.names if name == path or name.startswith(path + "/")]:
            del self.names[name]

    def rename(self, old: str, new: str) -> None:
        self.remove(new)
        for name in [name for name in self.names if name == old or name.startswith(old + "/")]:
            self.names[new + name[len(old) :]] = self.names.pop(name)


def differences(volume: Volume, old: bytes, **more: int) -> set[tuple[str, ...]]:
    found = list(compare(volume.get, old, volume.root(), **more))
    assert len(set(found)) == len(found)
    return {tuple(part.decode() if isinstance(part, bytes) else part for part in change if part) for change in found}


@pytest.fixture
def volume() -> Volume:
    volume = Volume()
    for path in ("/a", "/a/b", "/a/b/c", "/d"):
        volume.mkdir(path)
    for path in ("/f", "/g", "/a/x", "/a/b/y", "/a/b/c/z"):
        volume.make(path, content=path.encode())
    return volume


@pytest.mark.parametrize("window", [1, 2, 1000])
def test_all_kinds_at_once(volume: Volume, window: int) -> None:
    old = volume.root()
    volume.make("/d/new", content=b"n")
    volume.mkdir("/d/dir")
    volume.make("/d/dir/in it")
    volume.remove("/g")
    volume.write("/a/b/y", b"other")
    volume.rename("/a/x", "/d/moved")
    volume.rename("/a/b/c", "/c")
    assert differences(volume, old, window=window) == {
        (ADDED, "/d/new"), (ADDED, "/d/dir"), (ADDED, "/d/dir/in it"), (REMOVED, "/g"), (CHANGED, "/a/b/y"),
        (RENAMED, "/a/x", "/d/moved"), (RENAMED, "/a/b/c", "/c"),
    }  # fmt: skip


def test_nothing_changed(volume: Volume) -> None:
    assert differences(volume, volume.root()) == set()


def test_times_of_directories_and_access_times_do_not_count(volume: Volume) -> None:
    old = volume.root()
    volume.times[volume.names["/a"]] = 99
    assert differences(volume, old) == set()
    volume.modes[volume.names["/a"]] = 0o700
    volume.attributes[volume.names["/f"]] = b"v"
    assert differences(volume, old) == {(CHANGED, "/a"), (CHANGED, "/f")}


def test_a_file_written_anew_under_its_name_is_changed(volume: Volume) -> None:
    old = volume.root()
    volume.make("/f.tmp", content=b"new")
    volume.rename("/f.tmp", "/f")
    assert differences(volume, old) == {(CHANGED, "/f")}


def test_a_file_that_became_a_directory_went_and_came(volume: Volume) -> None:
    old = volume.root()
    volume.remove("/f")
    volume.mkdir("/f")
    assert differences(volume, old) == {(REMOVED, "/f"), (ADDED, "/f")}


def test_a_rename_over_another_file_is_a_rename(volume: Volume) -> None:
    old = volume.root()
    volume.rename("/f", "/g")
    assert differences(volume, old) == {(RENAMED, "/f", "/g")}


def test_a_name_given_to_another_file_while_the_old_one_has_other_names(volume: Volume) -> None:
    volume.names["/a/link"] = volume.names["/f"]
    old = volume.root()
    volume.make("/t", content=b"t")
    volume.rename("/t", "/f")
    volume.rename("/a/link", "/a/moved")
    assert differences(volume, old) == {(CHANGED, "/f"), (RENAMED, "/a/link", "/a/moved")}


def test_two_files_that_changed_places(volume: Volume) -> None:
    old = volume.root()
    volume.rename("/f", "/t")
    volume.rename("/g", "/f")
    volume.rename("/t", "/g")
    assert differences(volume, old) == {(RENAMED, "/f", "/g"), (RENAMED, "/g", "/f")}


def test_hard_links(volume: Volume) -> None:
    volume.names["/a/link"] = volume.names["/f"]
    old = volume.root()
    volume.names["/d/another"] = volume.names["/f"]
    del volume.names["/a/link"]
    assert differences(volume, old) == {(RENAMED, "/a/link", "/d/another")}
    volume.names["/d/third"] = volume.names["/f"]
    assert differences(volume, old) == {(RENAMED, "/a/link", "/d/another"), (ADDED, "/d/third")} or differences(
        volume, old
    ) == {(RENAMED, "/a/link", "/d/third"), (ADDED, "/d/another")}


operations = st.lists(
    st.tuples(st.sampled_from(["make", "mkdir", "remove", "write", "rename"]), st.integers(0, 99), st.integers(0, 99)),
    max_size=25,
)


@given(operations, st.integers(1, 5))
@settings(max_examples=60)
def test_differences_lead_from_one_state_to_the_other(steps: list[tuple[str, int, int]], window: int) -> None:
    """Applied to the old paths and contents, they give the new ones."""
    volume = Volume()
    for path in ("/a", "/a/b", "/d"):
        volume.mkdir(path)
    for path in ("/f", "/a/x", "/a/b/y"):
        volume.make(path, content=path.encode())
    before = {path: (ino, volume.content[ino] if ino > 1 else b"") for path, ino in volume.names.items()}
    old = volume.root()
    for kind, one, two in steps:
        paths = sorted(volume.names)
        path = paths[one % len(paths)]
        is_dir = volume.kinds[volume.names[path]] == stat.S_IFDIR
        name = f"{path.rstrip('/')}/{two % 4}"
        if kind in ("make", "mkdir") and is_dir and name not in volume.names:
            getattr(volume, kind)(name)
        elif kind == "remove" and path != "/":
            volume.remove(path)
        elif kind == "write" and not is_dir:
            volume.write(path, b"w%d" % two)
        elif kind == "rename" and path != "/":
            target = paths[two % len(paths)]
            if target != "/" and not target.startswith(path) and not path.startswith(target):
                volume.rename(path, target)
    changes = list(compare(volume.get, old, volume.root(), window=window))
    after = {path: (ino, volume.content.get(ino, b"")) for path, ino in volume.names.items()}
    assert (changes == []) == (before == after)
    named = {change.path.decode() for change in changes} | {change.path2.decode() for change in changes}
    for path in set(before) ^ set(after):
        below = [p for p in named if p and (path == p or path.startswith(p + "/"))]
        assert below, (path, changes)
    for change in changes:
        path, path2 = change.path.decode(), change.path2.decode()
        if change.kind == ADDED:
            assert path in after
        elif change.kind == REMOVED:
            assert path in before
        elif change.kind == RENAMED:
            assert before[path][0] == after[path2][0]
        else:
            assert path in after


def test_directories_deeper_than_any_path_is_long(volume: Volume) -> None:
    old, path = volume.root(), "/d"
    for _level in range(4100):
        path += "/n"
        volume.mkdir(path)
    volume.make(path + "/end")
    found = list(compare(volume.get, old, volume.root()))
    assert max(found, key=lambda change: len(change.path)) == Change(ADDED, path.encode() + b"/end")
    assert len(found) == 4101


def test_fault_089_directories_without_end_are_refused() -> None:
    volume = Volume()
    ino = volume.mkdir("/a")
    volume.names["/a/a"] = ino  # a directory that contains itself
    volume.names["/a/b"] = volume.make("/b")
    root = volume.root()
    with pytest.raises(MalformedError):
        find_paths(volume.get, root, {99})
    assert isinstance(next(compare(volume.get, b"", root)), Change)
