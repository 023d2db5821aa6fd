"""Hypothesis drives the mount and an ext4 with the same operations and compares everything after each step.

Result or errno, and the whole tree: modes, owners, link counts, which names are one file, sizes, contents, targets, extended
attributes, and which of mtime and ctime the operation changed. In between the mount is unmounted and mounted, the kernel's
caches are dropped, and driver and agent are killed: its inode numbers, blocks and times are the same before and after.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.cluster.harness import Network
from tests.differential.pair import Pair

pytestmark = pytest.mark.fuse

NAMES = ["a", "b", "c", "d", "é", "x" * 255, "y" * 256]
names = st.sampled_from(NAMES + NAMES[:4] * 8)
paths = st.one_of(
    names,
    st.sampled_from(["a", "b", "c", "a/b", "a/c"]),
    st.builds("{}/{}".format, st.sampled_from(["a", "b", "c"]), names),
    st.builds("{}/{}/{}".format, st.sampled_from(["a", "b"]), st.sampled_from(["a", "b"]), names),
    st.sampled_from([".", "a/.", "a/..", "b/", "a//b", "", "c/d/.."]),
)
plain_paths = st.one_of(
    names,
    st.sampled_from(["c", "d", "a/c", "a/d"]),
    st.builds("{}/{}".format, st.sampled_from(["a", "b"]), st.sampled_from(["a", "b", "c"])),
)
slots = st.integers(0, 2)
users = st.sampled_from([False] * 6 + [True])
modes = st.sampled_from([0o777, 0o644, 0o600, 0o755, 0o700, 0o000, 0o1777, 0o2775, 0o4755, 0o2644, 0o6755, 0o555])
umasks = st.sampled_from([0o022, 0o000, 0o077])
MIB = 1 << 20
offsets = st.one_of(
    st.sampled_from([0, 1, 511, 4095, 4096, 4097, MIB - 1, MIB, MIB + 1, 2 * MIB - 4096, 3 * MIB]),
    st.integers(0, 3 * MIB),
    st.sampled_from([1 << 31, 1 << 40]),
)
small_offsets = st.one_of(st.sampled_from([0, 1, 4095, 4096, MIB - 1, MIB, 2 * MIB]), st.integers(0, 3 * MIB))
sizes = st.one_of(
    st.sampled_from([0, 1, 2, 2047, 2048, 2049, 4095, 4096, 4097, 65536, MIB - 1, MIB, MIB + 1]),
    st.integers(1, 300_000),
)
seeds = st.integers(0, 1000)
flags = st.sampled_from(
    [
        os.O_RDWR,
        os.O_RDWR,
        os.O_RDWR | os.O_CREAT,
        os.O_RDWR | os.O_CREAT,
        os.O_RDWR | os.O_CREAT | os.O_TRUNC,
        os.O_WRONLY | os.O_CREAT | os.O_EXCL,
        os.O_RDWR | os.O_APPEND,
        os.O_RDONLY,
        os.O_RDONLY | os.O_DIRECTORY,
        os.O_RDONLY | os.O_NOFOLLOW,
        os.O_RDWR | os.O_CREAT | os.O_SYNC,
        os.O_RDONLY | os.O_TRUNC,
    ]
)
times = st.one_of(st.sampled_from([0, 1, 10**18 + 123456789, -5_000_000_001]), st.integers(10**9, 2 * 10**18))
attributes = st.sampled_from(["user.a", "user.b", "trusted.t", "user." + "n" * 250, "other.x"])


class Differential(RuleBasedStateMachine):
    """One example: a few dozen operations in a fresh directory."""

    pair: ClassVar[Pair]

    def __init__(self) -> None:
        super().__init__()
        self.pair.begin()

    @initialize()
    def begin(self) -> None:
        """Something to work on: most operations on an empty directory are refused."""
        for path in ("a", "b", "a/b"):
            self.do("mkdir", path, 0o777, 0, False)
        for slot, path in enumerate(("c", "a/c", "a/b/c")):
            self.do("open", slot, path, os.O_RDWR | os.O_CREAT, 0o666, False)
            self.do("write", slot, 0, 5000, slot, False)

    def teardown(self) -> None:
        self.pair.disturb()  # however rarely the rule below was drawn
        self.pair.end()

    def do(self, *request: Any) -> None:
        self.pair.step(*request)

    # ---- names -----------------------------------------------------------------------------------------------------
    @rule(path=paths, mode=modes, umask=umasks, user=users)
    def create(self, path: str, mode: int, umask: int, user: bool) -> None:
        self.do("create", path, mode, umask, user)

    @rule(path=paths, mode=modes, umask=umasks, user=users)
    def mkdir(self, path: str, mode: int, umask: int, user: bool) -> None:
        self.do("mkdir", path, mode, umask, user)

    @rule(path=st.sampled_from(["a", "b", "a/a", "a/b"]))
    def mkdir_plain(self, path: str) -> None:
        self.do("mkdir", path, 0o777, 0, False)

    @rule(
        path=plain_paths,
        kind=st.sampled_from([stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFREG, stat.S_IFDIR]),
        mode=modes,
        user=users,
    )
    def mknod(self, path: str, kind: int, mode: int, user: bool) -> None:
        if kind != stat.S_IFSOCK or len(path) < 100:
            self.do("mknod", path, kind, mode, user)

    @rule(
        points_to=st.sampled_from(["a", "b", "../a", "nowhere", ".", "a/b", "t" * 4000, ""]),
        path=plain_paths,
        user=users,
    )
    def symlink(self, points_to: str, path: str, user: bool) -> None:
        self.do("symlink", points_to, path, user)

    @rule(old=paths, new=paths, user=users)
    def link(self, old: str, new: str, user: bool) -> None:
        self.do("link", old, new, user)

    @rule(path=paths, user=users)
    def unlink(self, path: str, user: bool) -> None:
        self.do("unlink", path, user)

    @rule(path=paths, user=users)
    def rmdir(self, path: str, user: bool) -> None:
        self.do("rmdir", path, user)

    @rule(old=paths, new=paths, flag=st.sampled_from([0, 0, 0, 1, 2, 3, 4]), user=users)
    def rename(self, old: str, new: str, flag: int, user: bool) -> None:
        if flag == 4 and not user:
            return  # RENAME_WHITEOUT by root: ext4 can, FUSE file systems cannot (EINVAL)
        self.do("rename", old, new, flag, user)

    @rule(old=plain_paths, new=plain_paths)
    def rename_plain(self, old: str, new: str) -> None:
        self.do("rename", old, new, 0, False)

    @rule(path=st.sampled_from(["a", "b", "c", "a/a", "a/b"]))
    def remove_tree(self, path: str) -> None:
        self.do("remove_tree", path, False)

    @rule(path=plain_paths, user=users)
    def readlink(self, path: str, user: bool) -> None:
        self.do("readlink", path, user)

    @rule(path=paths, user=users)
    def list_names(self, path: str, user: bool) -> None:
        self.do("list", path, user)

    # ---- attributes ------------------------------------------------------------------------------------------------
    @rule(path=paths, mode=modes, user=users)
    def chmod(self, path: str, mode: int, user: bool) -> None:
        self.do("chmod", path, mode, user)

    @rule(
        path=paths,
        uid=st.sampled_from([-1, 0, 12345, 777]),
        gid=st.sampled_from([-1, 0, 12345, 777]),
        follow=st.booleans(),
        user=users,
    )
    def chown(self, path: str, uid: int, gid: int, follow: bool, user: bool) -> None:
        self.do("chown", path, uid, gid, follow, user)

    @rule(path=paths, atime=times, mtime=times, follow=st.booleans(), user=users)
    def utime(self, path: str, atime: int, mtime: int, follow: bool, user: bool) -> None:
        self.do("utime", path, atime, mtime, follow, user)

    @rule(path=paths, mode=st.integers(0, 7), user=users)
    def access(self, path: str, mode: int, user: bool) -> None:
        self.do("access", path, mode, user)

    @rule(path=plain_paths, name=attributes, size=st.sampled_from([4, 100, 2000]), flag=st.integers(0, 2), user=users)
    def setxattr(self, path: str, name: str, size: int, flag: int, user: bool) -> None:
        self.do("setxattr", path, name, self.pair.steps, size, flag, user)

    @rule(path=plain_paths, name=attributes, user=users)
    def getxattr(self, path: str, name: str, user: bool) -> None:
        self.do("getxattr", path, name, user)

    @rule(path=plain_paths, name=attributes, user=users)
    def removexattr(self, path: str, name: str, user: bool) -> None:
        self.do("removexattr", path, name, user)

    @rule(path=paths, size=offsets, user=users)
    def truncate(self, path: str, size: int, user: bool) -> None:
        self.do("truncate", path, size, user)

    # ---- open files ------------------------------------------------------------------------------------------------
    @rule(slot=slots, path=plain_paths, flag=flags, mode=modes, user=users)
    def open(self, slot: int, path: str, flag: int, mode: int, user: bool) -> None:
        self.do("open", slot, path, flag, mode, user)

    @rule(slot=slots, path=st.sampled_from(["a", "b", "c"]))
    def open_plain(self, slot: int, path: str) -> None:
        self.do("open", slot, path, os.O_RDWR | os.O_CREAT, 0o666, False)

    @rule(slot=st.integers(0, 8))
    def close(self, slot: int) -> None:
        self.do("close", slot, False)

    @rule(slot=slots, offset=offsets, size=sizes, seed=seeds)
    def write(self, slot: int, offset: int, size: int, seed: int) -> None:
        self.do("write", slot, offset, size, seed, False)

    @rule(slot=slots, offset=small_offsets, size=sizes, seed=seeds)
    def write_near(self, slot: int, offset: int, size: int, seed: int) -> None:
        self.do("write", slot, offset, size, seed, False)

    @rule(slot=slots, size=sizes, seed=seeds)
    def append(self, slot: int, size: int, seed: int) -> None:
        self.do("append", slot, size, seed, False)

    @rule(slot=slots, offset=small_offsets, pieces=st.lists(st.integers(0, 9000), min_size=1, max_size=5), seed=seeds)
    def writev(self, slot: int, offset: int, pieces: list[int], seed: int) -> None:
        self.do("writev", slot, offset, pieces, seed, False)

    @rule(slot=slots, offset=offsets, size=sizes)
    def read(self, slot: int, offset: int, size: int) -> None:
        self.do("read", slot, offset, size, False)

    @rule(slot=slots, size=offsets)
    def ftruncate(self, slot: int, size: int) -> None:
        self.do("ftruncate", slot, size, False)

    @rule(slot=slots, data_only=st.booleans())
    def fsync(self, slot: int, data_only: bool) -> None:
        self.do("fsync", slot, data_only, False)

    @rule(slot=slots, mode=modes)
    def fchmod(self, slot: int, mode: int) -> None:
        self.do("fchmod", slot, mode, False)

    @rule(slot=slots, offset=st.integers(-10, 5000), whence=st.integers(0, 2))
    def seek(self, slot: int, offset: int, whence: int) -> None:
        self.do("seek", slot, offset, whence, False)

    @rule(slot=slots, offset=small_offsets, size=sizes, seed=seeds)
    def map(self, slot: int, offset: int, size: int, seed: int) -> None:
        self.do("map", slot, offset, size, seed, False)

    @rule(path=plain_paths, page=st.integers(0, 700), pages=st.integers(1, 300), seed=seeds)
    def direct(self, path: str, page: int, pages: int, seed: int) -> None:
        self.do("direct", path, page, pages, seed, False)

    @rule(source=slots, sink=slots, size=sizes)
    def copy(self, source: int, sink: int, size: int) -> None:
        self.do("copy", source, sink, size, False)

    @rule(slot=slots, kind=st.sampled_from([1, 2, 8]))
    def lock(self, slot: int, kind: int) -> None:
        self.do("lock", slot, kind, False)

    @rule(slot=slots)
    def drop(self, slot: int) -> None:
        self.do("drop", slot, False)

    # ---- what happens to a mount ---------------------------------------------------------------------------------------
    @rule(what=st.sampled_from(["kill", "remount", "drop caches", "drop caches", "", "", "", ""]))
    def disturb(self, what: str) -> None:
        if what == "kill":
            self.pair.kill()
        elif what == "remount":
            self.pair.remount()
        elif what:
            self.pair.drop_caches()


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with Network(peers=3) as network:
        both = Pair(network)
        try:
            yield both
        finally:
            both.close()


def drive(pair: Pair, examples: int, steps: int, *, fixed: bool) -> None:
    """Run the machine. `fixed`: the same examples each time."""
    Differential.pair = pair
    pair.failures.clear()
    try:
        run_state_machine_as_test(Differential, settings=_settings(examples, steps, fixed=fixed))
    except BaseException:  # a deadline, too: the first difference says why
        print("The first failure:", *pair.failures[:1])
        raise
    print(f"{pair.steps} steps, {pair.refused} refused, {pair.remounts} remounts, {pair.kills} kills")


def _settings(examples: int, steps: int, *, fixed: bool) -> settings:
    phases = (Phase.explicit, Phase.generate) if fixed else (Phase.explicit, Phase.generate, Phase.shrink)
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=fixed,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
        phases=phases,
    )


def test_mount_and_ext4_never_differ(pair: Pair) -> None:
    drive(pair, 10, 75, fixed=True)
    assert pair.steps >= 600
    assert pair.remounts >= 2
    assert pair.kills >= 2
    assert pair.refused < pair.steps * 2 / 3  # else it proved little


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_mount_and_ext4_never_differ_for_long(pair: Pair) -> None:
    drive(pair, 600, 100, fixed=False)
